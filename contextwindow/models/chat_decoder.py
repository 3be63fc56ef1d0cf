"""Decoding what Chat Completions sends: its chunks, or one body.

What is stored under ``"openai-chat"``: of a tool call the members of the provider's object that
our records have no place for (such as ``extra_content`` with Gemini's thought signature, or the
``type`` of a custom tool), merged into the call when it is sent back.  Ids, names and argument
texts stand in the records themselves.  Reasoning is shown and stored, and never sent back.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any, Final

from contextwindow.errors import InvalidRequest, StreamInterrupted
from contextwindow.models.base import Decoder, Delta, Item, PartEnd, PartKind
from contextwindow.models.counts import tokens
from contextwindow.models.openai_errors import PROVIDER, reported_error
from contextwindow.models.sse import DONE, TextMender, identifier
from contextwindow.records import FinishReason, Usage

API: Final = "openai-chat"

_FINISH: Final[dict[str, FinishReason]] = {
    "stop": "stop",
    "length": "length",
    "tool_calls": "tool_calls",
    "function_call": "tool_calls",
    "content_filter": "content_filter",
    "refusal": "refusal",
}
# What a tool call says that our records hold themselves.
_OWN: Final = frozenset({"index", "id", "function"})


class _Call:
    """A tool call while it arrives."""

    def __init__(self, part: int) -> None:
        self.part = part
        self.id = ""
        self.name = ""
        self.extra: dict[str, Any] = {}


class ChatDecoder(Decoder):
    """Decodes the first candidate of a chat completion."""

    def __init__(self, who: str) -> None:
        self._who = who
        self._kinds: list[PartKind] = []
        self._numbers: dict[str, int] = {}
        self._text: int | None = None
        self._calls: dict[Any, _Call] = {}
        self._ended = False
        self._mender = TextMender()
        self._held = self._mender.held

    def feed(self, event: Any) -> Sequence[Item]:
        """Items of one chunk."""
        part = self._text
        if part is not None:
            # One text delta and nothing else: nearly every event of a long reply.
            try:
                (choice,) = event["choices"]
                delta = choice["delta"]
                if (
                    len(delta) == 1
                    and choice["finish_reason"] is None
                    and not choice["index"]
                    and event.get("usage") is None
                ):
                    text = delta["content"]
                    if text.isascii() and "\0" not in text and not self._held:
                        return (Delta("text", part, text),)
            except (KeyError, TypeError, ValueError, AttributeError):
                pass
        try:
            return self._chunk(event)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise StreamInterrupted(
                f"{self._who}: an event of the stream has an unknown shape "
                f"({type(error).__name__}); what came before it is kept, resume the turn",
                provider=PROVIDER,
            ) from error

    def feed_body(self, body: Any) -> Sequence[Item]:
        """Items of a whole reply in one body."""
        if isinstance(body, dict) and not body.get("error") and body.get("choices"):
            items = self.feed(body)
            self._finish(None)
            return items
        reported = body.get("error") if isinstance(body, dict) else None
        if reported:
            raise reported_error(self._who, reported, status=200)
        raise InvalidRequest(
            f"{self._who}: the server answered with JSON that is no chat completion; "
            "check that base_url points at the API",
            provider=PROVIDER,
            status=200,
        )

    def end(self) -> Sequence[Item]:
        """The ends of all parts."""
        if not self.finished:
            raise StreamInterrupted(
                f"{self._who}: the stream ended before the reply did; "
                "what arrived is kept, resume the turn",
                provider=PROVIDER,
            )
        if self._ended:
            return ()
        self._ended = True
        items: list[Item] = []
        calls = {call.part: call for call in self._calls.values()}
        for part, kind in enumerate(self._kinds):
            held = self._mender.rest(part)
            if held:
                items.append(Delta(kind, part, held))
            end = PartEnd(kind, part)
            if kind == "tool_call":
                call = calls[part]
                end.call_id, end.name = call.id, call.name
                end.items = [call.extra] if call.extra else None
            items.append(end)
        return items

    def _chunk(self, event: Any) -> list[Item]:
        items: list[Item] = []
        if event == DONE:
            self._finish(None)
            return items
        if event.get("error"):
            raise reported_error(self._who, event["error"])
        self.response_id = self.response_id or identifier(event.get("id")) or None
        self.model = self.model or identifier(event.get("model")) or None
        groq = event.get("x_groq")
        self.usage = (
            _usage(event.get("usage"))
            or _usage(groq.get("usage") if isinstance(groq, dict) else None)
            or self.usage
        )
        for choice in event.get("choices") or ():
            if choice.get("index"):
                continue
            self._message(choice.get("delta") or choice.get("message") or {}, items)
            reason = choice.get("finish_reason")
            if reason:
                self._finish(reason)
        return items

    def _message(self, delta: dict[str, Any], items: list[Item]) -> None:
        # Two spellings of one thing; servers in transition send both.
        thought = _joined(delta.get("reasoning_content")) or _joined(delta.get("reasoning"))
        self._add("reasoning", thought, items)
        self._add("text", _joined(delta.get("content")), items)
        self._text = self._numbers.get("text")
        self._add("refusal", _joined(delta.get("refusal")), items)
        legacy = delta.get("function_call")
        if legacy:
            self._add_call("legacy", {"function": legacy}, items)
        for call in delta.get("tool_calls") or ():
            self._add_call(call.get("index"), call, items)

    def _add(self, kind: PartKind, text: str, items: list[Item]) -> None:
        if not text:
            return
        part = self._numbers.get(kind)
        if part is None:
            part = self._numbers[kind] = len(self._kinds)
            self._kinds.append(kind)
        text = self._mender.mend(part, text)
        if text:
            items.append(Delta(kind, part, text))

    def _add_call(self, index: Any, fragment: dict[str, Any], items: list[Item]) -> None:
        function = fragment.get("function") or {}
        custom = fragment.get("custom") or {}
        call_id = identifier(fragment.get("id"))
        name = identifier(function.get("name") or custom.get("name"))
        arguments = _joined(function.get("arguments")) or _joined(custom.get("input"))
        call = self._call_at(index, call_id, name)
        announced = (call.id, call.name)
        call.id = call.id or call_id or _made_up_id(self.response_id, call.part)
        if name != call.name:
            call.name += name
        for key, value in fragment.items():
            if key not in _OWN and value is not None and (key, value) != ("type", "function"):
                call.extra[key] = {"input": None} if key == "custom" else value
        text = self._mender.mend(call.part, arguments) if arguments else ""
        if text or announced != (call.id, call.name):
            items.append(Delta("tool_call", call.part, text, call.id, call.name))

    def _call_at(self, index: Any, call_id: str, name: str) -> _Call:
        """The call that a fragment belongs to; a new one where the fragment begins one."""
        if index is None and self._calls:
            # Servers without indices send whole calls, or go on with the last one.
            index = next(reversed(self._calls))
        call = self._calls.get(index)
        begins = call is not None and call_id and name and call_id != call.id
        if call is not None and not begins:
            return call
        if call is not None:
            # One index for several calls: keep the former under a key that nothing names.
            self._calls[(index, call.part)] = self._calls.pop(index)
        call = self._calls[index] = _Call(len(self._kinds))
        self._kinds.append("tool_call")
        return call

    def _finish(self, reason: str | None) -> None:
        self.finished = True
        if reason is None and self.finish_reason is not None:
            return
        found = _FINISH.get(str(reason), "stop")
        if found == "stop" and self._calls:
            # OpenAI says "stop" where a call was demanded by name, others always.
            found = "tool_calls"
        if found == "stop" and "refusal" in self._numbers:
            found = "refusal"
        self.finish_reason = found


def _usage(usage: Any) -> Usage | None:
    """The provider's counts in our terms; None where it gave none."""
    if not isinstance(usage, dict) or not _count(usage, "prompt_tokens", "completion_tokens"):
        return None
    read = usage.get("prompt_tokens_details")
    written = usage.get("completion_tokens_details")
    given = _count(usage, "prompt_tokens")
    output = _count(usage, "completion_tokens")
    reasoning = _count(written, "reasoning_tokens")
    if reasoning and _count(usage, "total_tokens") == given + output + reasoning:
        output += reasoning  # xAI counts the reasoning beside the output
    return Usage(
        input_tokens=given,
        output_tokens=output,
        cache_read_tokens=_count(read, "cached_tokens") or _count(usage, "prompt_cache_hit_tokens"),
        cache_write_tokens=_count(read, "cache_write_tokens"),
        reasoning_tokens=reasoning,
    )


def _count(counts: Any, *names: str) -> int:
    """The sum of *names*, without what is missing, negative or no number."""
    if not isinstance(counts, dict):
        return 0
    return sum(tokens(counts.get(name)) for name in names)


def _joined(content: Any) -> str:
    """Text, which some servers send in pieces such as ``{"type": "text", "text": …}``."""
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        pieces = [piece.get("text") for piece in content if isinstance(piece, dict)]
        return "".join(piece for piece in pieces if isinstance(piece, str))
    return ""


def _made_up_id(response_id: str | None, part: int) -> str:
    digest = hashlib.sha256(f"{response_id}/{part}".encode("utf-8", "replace")).hexdigest()
    return f"call_{digest[:24]}"
