"""From records to the ``messages`` of an Anthropic request.

Rules of the API (platform.claude.com, "Messages", "Tool use" and "Extended thinking", read
2026-11): user and assistant take turns, the user begins; the results of a message's tool uses stand
first in the message behind it, all of them; no two tool uses have the same id; no text block is
empty; thinking goes back with its signature or not at all; blocks of server tools go back as they
came.
"""

from __future__ import annotations

import base64
import json
import re
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from typing import Any, Final

from contextwindow.models.anthropic_decoder import API, PAUSED
from contextwindow.models.sse import mended
from contextwindow.models.steps import Step, native_items, refusal_of, steps
from contextwindow.records import Attachment, Record, RecordType

_ID_LIMIT: Final = 64

OPENING: Final = "(The conversation begins.)"
"""The first message where a conversation does not begin with the user's."""

GO_ON: Final = "(Go on.)"
"""The last message where a conversation does not end with the user's."""

_IMAGES: Final = frozenset({"image/png", "image/jpeg", "image/gif", "image/webp"})
_BREAKPOINTS: Final = 4
"""Cache breakpoints that one request may have."""
_NOT_IN_IDS: Final = re.compile(r"[^a-zA-Z0-9_-]")
_EPHEMERAL: Final = {"type": "ephemeral"}

Block = dict[str, Any]


def anthropic_messages(
    records: Sequence[Record], model: str, *, prefill: bool = False
) -> tuple[list[dict[str, Any]], list[Block]]:
    """The messages and the system prompts that send *records*.

    Args:
        model: who takes them, for notes on attachments that it does not take.
        prefill: the last text is an unfinished reply that the model shall continue.
    """
    messages = _Messages(model)
    for step in steps(records, id_limit=_ID_LIMIT):
        messages.add(step)
    return messages.done(prefill=prefill), messages.system()


class _Messages:
    """The messages of a request while they are put together."""

    def __init__(self, model: str) -> None:
        self._model = model
        self._system: list[Block] = []
        self._messages: list[dict[str, Any]] = []
        self._paused = False
        # Ids that are taken, how often each was asked for, and of tool uses without their result
        # what is sent for our id.
        self._taken: set[str] = set()
        self._asked: Counter[str] = Counter()
        self._waiting: dict[str, deque[str]] = {}

    def add(self, step: Step) -> None:
        """Append what *step* becomes."""
        match step.kind:
            case "system":
                if step.text.strip():
                    self._system.append({"type": "text", "text": step.text})
            case "user":
                texts = [{"type": "text", "text": step.text}] if step.text.strip() else []
                attached = [_attached(self._model, one) for one in step.record.attachments]
                self._append("user", [*attached, *texts])
            case "text":
                self._append("assistant", self._text(step))
            case "reasoning":
                self._append("assistant", self._own(step))
            case "call":
                self._append("assistant", self._call(step))
            case "output":
                self._append("user", [self._result(step)])

    def done(self, *, prefill: bool) -> list[dict[str, Any]]:
        """All messages.

        Args:
            prefill: the last text is an unfinished reply that the model shall continue.
        """
        messages = self._messages
        for number, message in enumerate(messages):
            if message["role"] == "assistant" and number + 1 < len(messages):
                message["content"] = list(_answered(message["content"]))
        messages = [message for message in messages if message["content"]]
        messages = _merged(messages)
        if not messages or messages[0]["role"] != "user":
            messages.insert(0, _said("user", OPENING))
        if messages[-1]["role"] == "assistant":
            last = messages[-1]["content"][-1]
            if prefill and last["type"] == "text":
                # Refused by the API; the caller expects the space to come again.
                last["text"] = last["text"].rstrip()
            elif not self._paused:
                messages[-1]["content"] = list(_answered(messages[-1]["content"]))
                if not messages[-1]["content"]:
                    messages.pop()
                if messages[-1]["role"] == "assistant":
                    messages.append(_said("user", GO_ON))
        return messages

    def system(self) -> list[Block]:
        """The system prompts."""
        return self._system

    def _append(self, role: str, blocks: list[Block]) -> None:
        if not blocks:
            return
        if not self._messages or self._messages[-1]["role"] != role:
            self._messages.append({"role": role, "content": []})
        self._messages[-1]["content"] += blocks
        self._paused = role == "assistant" and self._paused

    def _text(self, step: Step) -> list[Block]:
        own = self._own(step)
        if own:
            return own
        text = step.text + refusal_of(step.record)
        return [{"type": "text", "text": text}] if text.strip() else []

    def _call(self, step: Step) -> list[Block]:
        own = self._own(step)
        sent = self._free_id(step.call_id)
        self._waiting.setdefault(step.call_id, deque()).append(sent)
        if any(block["type"] == "tool_use" for block in own):
            return [
                {**block, "id": sent} if block["type"] == "tool_use" else block for block in own
            ]
        call = {
            "type": "tool_use",
            "id": sent,
            "name": step.name,
            "input": _arguments(step.text),
        }
        return [*own, call]

    def _result(self, step: Step) -> Block:
        waiting = self._waiting.get(step.call_id)
        sent = waiting.popleft() if waiting else _sendable(step.call_id)
        result: Block = {"type": "tool_result", "tool_use_id": sent}
        if step.text.strip():
            result["content"] = step.text
        if step.record.error or step.record.source is RecordType.TOOL_CALL:
            result["is_error"] = True
        return result

    def _free_id(self, call_id: str) -> str:
        """*call_id* as the API takes it; some servers give the same one in every reply."""
        base = sent = _sendable(call_id)
        while sent in self._taken:
            self._asked[base] += 1
            sent = f"{base[: _ID_LIMIT - 8]}_{self._asked[base] + 1}"
        self._taken.add(sent)
        return sent

    def _own(self, step: Step) -> list[Block]:
        """The provider's own blocks of a record, those that it takes back."""
        blocks = native_items(step.record, API) or []
        self._paused = PAUSED in blocks
        return [dict(block) for block in blocks if _goes_back(block)]


def attachment_problem(model: str, attachment: Attachment) -> str | None:
    """Why *model* cannot take *attachment*, or None when it can."""
    media_type = attachment.media_type
    if media_type in _IMAGES or media_type == "application/pdf":
        return None
    if media_type.startswith("text/"):
        return None if attachment.data is not None else f"{model} takes text as bytes, not by URL"
    return f"{model} takes images (PNG, JPEG, GIF, WebP), PDF and text, no {media_type}"


def set_breakpoints(body: dict[str, Any]) -> None:
    """Mark what the provider shall cache: tools, system prompt, and the prefix that stays.

    The last block of the request is read by the next one; the last block that the request before
    this one ended with is where this one reads (the provider looks 20 blocks back).
    """
    marks = [body["tools"][-1]] if body.get("tools") else []
    marks += [body["system"][-1]] if body.get("system") else []
    asked = [message["content"] for message in body["messages"] if message["role"] == "user"]
    marks += [content[-1] for content in asked[-2:]]
    given = sum("cache_control" in block for block in _cachable(body))
    for block in reversed(marks[: max(0, _BREAKPOINTS - given)]):
        block.setdefault("cache_control", dict(_EPHEMERAL))


def _cachable(body: dict[str, Any]) -> Iterator[Block]:
    yield from body.get("tools") or ()
    yield from body.get("system") or ()
    for message in body["messages"]:
        yield from message["content"]


def _goes_back(block: Block) -> bool:
    match block.get("type"):
        case "text":
            return isinstance(block.get("text"), str) and bool(block["text"].strip())
        case "thinking":
            return bool(block.get("signature"))
        case "redacted_thinking":
            return bool(block.get("data"))
        case "contextwindow_paused" | None:
            return False
        case _:
            return True


def _answered(blocks: list[Block]) -> Iterator[Block]:
    """*blocks* without server tools' uses that have no result: the provider refuses those."""
    results = {block.get("tool_use_id") for block in blocks} - {None}
    for block in blocks:
        if block["type"] in ("server_tool_use", "mcp_tool_use") and block.get("id") not in results:
            continue
        yield block


def _merged(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    merged: list[dict[str, Any]] = []
    for message in messages:
        if merged and merged[-1]["role"] == message["role"]:
            merged[-1]["content"] += message["content"]
        else:
            merged.append(message)
    return merged


def _attached(model: str, attachment: Attachment) -> Block:
    problem = attachment_problem(model, attachment)
    name, media_type = mended(attachment.name), attachment.media_type
    if problem is not None:
        text = f"[attachment {name} ({media_type}) left out: {problem}]"
        return {"type": "text", "text": text}
    source: Block
    if attachment.data is None:
        source = {"type": "url", "url": attachment.url}
    elif media_type.startswith("text/"):
        text = mended(attachment.data.decode("utf-8", "replace"))
        source = {"type": "text", "media_type": "text/plain", "data": text}
    else:
        data = base64.b64encode(attachment.data).decode("ascii")
        source = {"type": "base64", "media_type": media_type, "data": data}
    if media_type in _IMAGES:
        return {"type": "image", "source": source}
    document: Block = {"type": "document", "source": source}
    return {**document, "title": name[:500]} if name else document


def _arguments(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = None
    if isinstance(value, dict):
        return value
    return {"_raw": text} if text.strip() else {}


def _sendable(call_id: str) -> str:
    """*call_id* in the letters that the API takes; other providers use more."""
    return _NOT_IN_IDS.sub("_", call_id)


def _said(role: str, text: str) -> dict[str, Any]:
    return {"role": role, "content": [{"type": "text", "text": text}]}
