"""The parts of a reply while they arrive: each becomes one record."""

from __future__ import annotations

import json
import uuid
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, Final

from contextwindow.chunks import (
    ReasoningDelta,
    RefusalDelta,
    StreamChunk,
    ToolCallDelta,
    place,
    text_chunk,
)
from contextwindow.effects import Append, CloseRecord
from contextwindow.models.base import PartEnd, PartKind
from contextwindow.overlap import EchoTrimmer
from contextwindow.records import Record, RecordType, ToolCall

SOURCES: Final[dict[PartKind, RecordType]] = {
    "text": RecordType.MODEL_RESPONSE,
    "reasoning": RecordType.REASONING,
    "refusal": RecordType.MODEL_RESPONSE,
    "tool_call": RecordType.TOOL_CALL,
}

_KINDS: Final[dict[RecordType, PartKind]] = {
    RecordType.MODEL_RESPONSE: "text",
    RecordType.REASONING: "reasoning",
    RecordType.TOOL_CALL: "tool_call",
}

_INSTRUCTION: Final = (
    "Your last message was cut off while it was being sent. Go on from its very last character: "
    "begin with the character that comes next, repeat nothing, add no greeting and no remark. "
    "It ends with: "
)


class Part:
    """One part of a reply, and what of it is stored and delivered.

    Attributes:
        key: the turn's number for its record.
        record_id: its record, 0 until that is written.
        length: characters that were delivered or are about to be.
        open: whether its stream has not ended.
        dead: it was given up; it is not part of the reply.
        ended: it is whole, and its closing is still to be written.
    """

    def __init__(self, key: int, kind: PartKind, call_id: str = "", name: str = "") -> None:
        self.key = key
        self.kind = kind
        self.call_id = call_id
        self.name = name
        self.record_id = 0
        self.length = 0
        self.open = True
        self.dead = False
        self.ended = False
        self.cut = False
        self.altered = False
        self.announce = kind == "tool_call"
        self._renamed = False
        self.trimmer: EchoTrimmer | None = None
        self._texts: list[str] = []
        self._fresh: list[str] = []
        self._received = 0
        self._restored = False
        self._payload: dict[str, Any] | None = None

    @classmethod
    def from_record(cls, key: int, record: Record) -> Part:
        """The part that an earlier attempt at the turn left as *record*."""
        part = cls(key, _KINDS[record.source], record.call_id or "", record.name or "")
        part.record_id = record.id
        part.open = record.partial_response_id is not None
        part.announce = False
        part._restored = True
        part._texts = [record.content]
        part.length = part._received = len(record.content)
        return part

    def text(self) -> str:
        """What was delivered of it."""
        return "".join(self._texts)[: self.length]

    def named(self, call_id: str, name: str) -> None:
        """Take the names that the provider gives it, which may come late."""
        self.name = name or self.name
        if not self._renamed:
            self.call_id = call_id or self.call_id

    def rename(self) -> None:
        """Give the call an id of our own, instead of one that is another call's, or none."""
        self.call_id = f"call_{uuid.uuid4().hex[:24]}"
        self._renamed = True

    def chunk(self, text: str) -> StreamChunk:
        """A chunk that adds *text*."""
        position = self.length + len(text)
        if self.kind == "text":
            return text_chunk(text, self.record_id, position)
        chunk: StreamChunk
        if self.kind == "reasoning":
            chunk = ReasoningDelta(text)
        elif self.kind == "refusal":
            return RefusalDelta(text)
        else:
            chunk = ToolCallDelta(self.call_id, self.name, text)
        return place(chunk, self.record_id, position)

    def shown(self, chunk: StreamChunk, text: str) -> str:
        """Of a *chunk* that replaced the one for *text*: what is to be stored."""
        if self.kind == "text":
            return chunk.delta
        if self.kind == "reasoning":
            return chunk.text if isinstance(chunk, ReasoningDelta) else ""
        return text

    def placed(self, chunk: StreamChunk, stored: str) -> StreamChunk:
        """A copy of a hook's *chunk* that stands in this part's record."""
        return replace(chunk, record_id=self.record_id, position=self.length + len(stored))

    def append(self, text: str) -> None:
        """Take *text* as the newest piece."""
        self._texts.append(text)
        self.length += len(text)
        if self.kind != "refusal":
            self._fresh.append(text)

    def received(self, text: str) -> None:
        """Count *text* as sent by the provider, whatever the hooks make of it."""
        self._received += len(text)

    def rest(self, content: str | None) -> str:
        """What a whole *content* holds beyond the pieces that came."""
        if content is None:
            return ""
        if self._restored:
            # How much the provider had sent is not known: hooks may have changed what is stored.
            text = "".join(self._texts)
            return content[len(text) :] if content.startswith(text) else ""
        return content[self._received :]

    @property
    def plain(self) -> bool:
        """Whether a delta is simply added: text of a part whose record is under way."""
        return self.kind == "text" and self.open and self.trimmer is None

    @property
    def says_something(self) -> bool:
        """Whether it is text of the reply that a continuation can start from."""
        return self.kind == "text" and self.length > 0 and not self.dead

    @property
    def fresh(self) -> bool:
        """Whether there is text that no checkpoint has taken."""
        return bool(self._fresh)

    def take(self) -> Append:
        """The fresh text, for a checkpoint."""
        text = "".join(self._fresh)
        self._fresh.clear()
        return Append(self.key, text)

    def expect_echo(self, *, whitespace_only: bool = False) -> None:
        """Go on with this part from a call that may repeat its end."""
        before = self.text()
        if whitespace_only:
            before = before[len(before.rstrip()) :]
        self.trimmer = EchoTrimmer(before)
        self.open = True
        self.ended = False

    def end(self, item: PartEnd, api: str) -> None:
        """Its stream has ended well."""
        self.open = False
        self.ended = True
        self.trimmer = None
        self.named(item.call_id, item.name)
        payload: dict[str, Any] = {"api": api}
        # A provider's item holds the text as it came: none of it may get past a hook.
        if item.items and not self.altered:
            payload["items"] = item.items
        if self.kind == "refusal":
            payload["refusal"] = self.text()
        self._payload = payload if len(payload) > 1 else None

    def settle(self) -> None:
        """Take the part as whole although nothing came to end it: a continuation without text."""
        if self.open and not self.dead:
            self.open = False
            self.ended = True
            self.trimmer = None

    def close(self, response_id: str | None) -> CloseRecord:
        """The closing of a part that ended well."""
        self.ended = False
        return CloseRecord(
            self.key,
            "" if self.kind == "refusal" else self.text(),
            payload=self._payload,
            response_id=response_id,
            call_id=self.call_id or None,
            name=self.name or None,
        )

    def close_partial(self) -> CloseRecord:
        """The closing of a part whose stream broke off; only text stays in what is sent."""
        refused = {"api": "", "refusal": self.text()} if self.kind == "refusal" else None
        return CloseRecord(
            self.key,
            "" if self.kind == "refusal" else self.text(),
            payload=refused,
            partial=True,
            live=self.kind in ("text", "refusal"),
            call_id=self.call_id or None,
            name=self.name or None,
        )

    def discard(self) -> None:
        """Give the part up."""
        self.open = False
        self.dead = True
        self._fresh.clear()

    def tool_call(self) -> ToolCall:
        """The tool call that this part asks for."""
        return _tool_call(self.call_id, self.name, self.text())


def tool_call(record: Record) -> ToolCall:
    """The tool call that *record* holds."""
    return _tool_call(record.call_id or "", record.name or "", record.content)


def text_record(part: Part, context_id: str, turn_id: str) -> Record:
    """A text part that is not in the database yet, as a record to send."""
    return Record(
        id=part.record_id,
        context_id=context_id,
        source=RecordType.MODEL_RESPONSE,
        content=part.text(),
        timestamp=datetime.now(UTC),
        turn_id=turn_id,
    )


def instruction(text: str, context_id: str) -> Record:
    """The request to go on with *text*, as a record that is sent and never stored."""
    return Record(
        id=0,
        context_id=context_id,
        source=RecordType.PROMPT,
        content=_INSTRUCTION + json.dumps(text[-60:], ensure_ascii=False),
        timestamp=datetime.now(UTC),
    )


def _tool_call(call_id: str, name: str, raw: str) -> ToolCall:
    try:
        arguments = json.loads(raw) if raw.strip() else {}
    except (ValueError, RecursionError):
        arguments = {}
    return ToolCall(call_id, name, arguments if isinstance(arguments, dict) else {}, raw)
