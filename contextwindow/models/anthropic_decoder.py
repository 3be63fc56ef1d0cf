"""Decoding what the Messages API sends: its events, or one body.

What is stored under ``"anthropic"``: the content blocks as they go back, in their order.  Text
blocks that follow each other are one part, with the blocks of server tools that stand between
them; thinking blocks that follow each other are one; each tool call is a part of its own.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Final

from contextwindow.errors import InvalidRequest, ModelError, StreamInterrupted
from contextwindow.models.anthropic_errors import PROVIDER, reported_error
from contextwindow.models.base import Decoder, Delta, Item, PartEnd, PartKind
from contextwindow.models.counts import tokens
from contextwindow.models.sse import TextMender, identifier, mended, mended_json
from contextwindow.records import FinishReason, Usage

API: Final = "anthropic"

PAUSED: Final = {"type": "contextwindow_paused"}
"""Behind the blocks of a reply that the provider stopped in the middle; never sent."""

_FINISH: Final[dict[str, FinishReason]] = {
    "end_turn": "stop",
    "stop_sequence": "stop",
    "pause_turn": "stop",
    "compaction": "stop",
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    "tool_use": "tool_calls",
    "refusal": "refusal",
}
_PAUSES: Final = frozenset({"pause_turn", "compaction"})
_PARTS: Final[dict[str, PartKind]] = {
    "text": "text",
    "thinking": "reasoning",
    "redacted_thinking": "reasoning",
    "tool_use": "tool_call",
}


class _Part:
    """A part while it arrives, and the blocks that go back for it."""

    __slots__ = ("blocks", "call_id", "content", "kind", "name", "number")

    def __init__(self, kind: PartKind, number: int) -> None:
        self.kind = kind
        self.number = number
        self.blocks: list[dict[str, Any]] = []
        self.content: str | None = None
        self.call_id = ""
        self.name = ""


class _Block:
    """A content block while it arrives."""

    __slots__ = ("json", "part", "start", "texts")

    def __init__(self, start: dict[str, Any], part: _Part | None) -> None:
        self.start = start
        self.part = part
        self.texts: list[str] = []
        self.json: list[str] = []


class AnthropicDecoder(Decoder):
    """Decodes one message.

    Args:
        who: the model, for messages.
    """

    def __init__(self, who: str) -> None:
        self._who = who
        self._blocks: dict[int, _Block] = {}
        # Of text blocks: the part and its pieces, all that the fast path needs.
        self._texts: dict[int, tuple[int, list[str]]] = {}
        self._open: _Part | None = None
        self._count = 0
        self._loose: list[dict[str, Any]] = []
        self._said: dict[str, Any] = {}
        self._called = False
        self._ended = False
        self._mender = TextMender()
        self._held = self._mender.held

    def feed(self, event: Any) -> Sequence[Item]:
        """Items of one event."""
        try:
            kind = event["type"]
            if kind == "content_block_delta":
                delta = event["delta"]
                found = self._texts.get(event["index"])
                if found is not None and delta["type"] == "text_delta" and not self._held:
                    text = delta["text"]
                    if text.isascii() and "\0" not in text:
                        found[1].append(text)
                        return (Delta("text", found[0], text),) if text else ()
                return self._delta(event["index"], delta)
            return self._event(kind, event)
        except ModelError:
            raise
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise StreamInterrupted(
                f"{self._who}: an event of the stream has an unknown shape "
                f"({type(error).__name__}); what came before it is kept, resume the turn",
                provider=PROVIDER,
            ) from error

    def feed_body(self, body: Any) -> Sequence[Item]:
        """Items of a whole message in one body."""
        if isinstance(body, dict) and isinstance(body.get("content"), list):
            items: list[Item] = [*self.feed({"type": "message_start", "message": body})]
            for index, block in enumerate(body["content"]):
                start = {"type": "content_block_start", "index": index, "content_block": block}
                items += self.feed(start)
                items += self.feed({"type": "content_block_stop", "index": index})
            items += self.feed({"type": "message_delta", "delta": body, "usage": None})
            items += self.feed({"type": "message_stop"})
            return items
        reported = body.get("error") if isinstance(body, dict) else None
        if reported:
            raise reported_error(self._who, reported)
        raise InvalidRequest(
            f"{self._who}: the server answered with JSON that is no message; "
            "check that base_url points at the API",
            provider=PROVIDER,
            status=200,
        )

    def end(self) -> Sequence[Item]:
        """Nothing is left: the terminal event has closed every part."""
        if not self.finished:
            raise StreamInterrupted(
                f"{self._who}: the stream ended before the reply did; "
                "what arrived is kept, resume the turn",
                provider=PROVIDER,
            )
        return ()

    def _event(self, kind: str, event: dict[str, Any]) -> Sequence[Item]:
        match kind:
            case "message_start":
                message = event["message"]
                self.response_id = self.response_id or identifier(message.get("id")) or None
                self.model = self.model or identifier(message.get("model")) or None
                self._count_usage(message.get("usage"))
            case "content_block_start":
                return self._start(event["index"], event["content_block"])
            case "content_block_stop":
                return self._stop(event["index"])
            case "message_delta":
                self._count_usage(event.get("usage"))
                reason = event["delta"].get("stop_reason")
                if reason is not None:
                    self.finish_reason = _FINISH.get(str(reason))
                    self.paused = reason in _PAUSES
            case "message_stop":
                return self._finish()
            case "error":
                raise reported_error(self._who, event.get("error"))
        return ()

    def _start(self, index: int, start: dict[str, Any]) -> Sequence[Item]:
        kind = _PARTS.get(start["type"])
        if kind is None:
            # A server tool's, or of a kind that is still to come: kept in its place.
            self._blocks[index] = _Block(dict(start), None)
            return ()
        items: list[Item] = []
        part = self._open
        if part is None or part.kind != kind or kind == "tool_call":
            items += self._close()
            part = self._open = _Part(kind, self._count)
            self._count += 1
        block = self._blocks[index] = _Block(dict(start), part)
        part.blocks += self._loose
        self._loose.clear()
        if kind == "tool_call":
            part.call_id = identifier(start.get("id"))
            part.name = identifier(start.get("name"))
            self._called = True
            items.append(Delta(kind, part.number, "", part.call_id, part.name))
        elif kind == "text":
            self._texts[index] = (part.number, block.texts)
            items += self._text(block, part, start.get("text"))
        else:
            items += self._text(block, part, start.get("thinking"))
        return items

    def _delta(self, index: int, delta: dict[str, Any]) -> Sequence[Item]:
        block = self._blocks[index]
        part, start = block.part, block.start
        if part is not None and part is not self._open:
            raise ValueError("a block went on after the next one had begun")
        match delta["type"]:
            case "text_delta" | "thinking_delta" if part is not None:
                return self._text(block, part, delta.get("text", delta.get("thinking")))
            case "input_json_delta":
                fragment = delta["partial_json"]
                block.json.append(fragment)
                if part is None or not fragment:
                    return ()
                text = self._mender.mend(part.number, fragment)
                return (Delta("tool_call", part.number, text, part.call_id, part.name),)
            case "signature_delta":
                start["signature"] = (start.get("signature") or "") + delta["signature"]
            case "citations_delta":
                start["citations"] = [*(start.get("citations") or ()), delta["citation"]]
            case _:
                start.update({name: value for name, value in delta.items() if name != "type"})
        return ()

    def _text(self, block: _Block, part: _Part, text: str | None) -> Sequence[Item]:
        if not text:
            return ()
        block.texts.append(text)
        text = self._mender.mend(part.number, text)
        return (Delta(part.kind, part.number, text),) if text else ()

    def _stop(self, index: int) -> Sequence[Item]:
        block = self._blocks.pop(index)
        self._texts.pop(index, None)
        start, part = block.start, block.part
        if part is not None and part.kind == "tool_call":
            self._end_call(block, part)
            return self._close()
        if start["type"] == "text":
            start["text"] = "".join(block.texts)
            if not start.get("citations"):
                start.pop("citations", None)
        elif start["type"] == "thinking":
            start["thinking"] = "".join(block.texts)
        elif block.json:
            start["input"] = _parsed("".join(block.json))
        whole: dict[str, Any] = mended_json(start)
        if part is not None:
            part.blocks += [*self._loose, whole]
            self._loose.clear()
        else:
            self._loose.append(whole)
        return ()

    def _end_call(self, block: _Block, part: _Part) -> None:
        text = "".join(block.json)
        if not text.strip():
            given = block.start.get("input") or {}
            part.content = mended(json.dumps(given, ensure_ascii=False))
            part.blocks.append(mended_json(block.start))
            return
        arguments = _parsed(text)
        if isinstance(arguments, dict):
            part.blocks.append(mended_json({**block.start, "input": arguments}))

    def _close(self) -> list[Item]:
        """The end of the part that is open."""
        self._texts.clear()
        part, self._open = self._open, None
        if part is None:
            return []
        items: list[Item] = []
        held = self._mender.rest(part.number)
        if held:
            items.append(Delta(part.kind, part.number, held))
        if part.kind == "text":
            part.blocks += self._loose
            self._loose.clear()
        end = PartEnd(part.kind, part.number, part.content, part.blocks or None)
        end.call_id, end.name = part.call_id, part.name
        items.append(end)
        return items

    def _finish(self) -> list[Item]:
        self.finished = True
        if self._ended:
            return []
        self._ended = True
        if self.finish_reason is None:
            self.finish_reason = "tool_calls" if self._called else "stop"
        if self.paused:
            self._loose.append(dict(PAUSED))
        if self._loose and (self._open is None or self._open.kind != "text"):
            items = self._close()
            self._open = _Part("text", self._count)
            return items + self._close()
        return self._close()

    def _count_usage(self, usage: Any) -> None:
        """Take what is known of the usage by now: the counts are cumulative."""
        if not isinstance(usage, dict):
            return
        self._said.update({name: value for name, value in usage.items() if value is not None})
        read, write = (
            self._number("cache_read_input_tokens"),
            self._number("cache_creation_input_tokens"),
        )
        details = self._said.get("output_tokens_details")
        thought = details.get("thinking_tokens") if isinstance(details, dict) else None
        given = self._number("input_tokens") + read + write
        output = self._number("output_tokens")
        if given or output:
            self.usage = Usage(given, output, read, write, tokens(thought))

    def _number(self, name: str) -> int:
        return tokens(self._said.get(name))


def _parsed(text: str) -> Any:
    """The JSON *text*, or the text itself where it is cut off."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text
