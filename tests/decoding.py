"""Decoding an answer by hand, and the records that a turn would make of it."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import pairwise
from typing import Any

from contextwindow.errors import ModelError
from contextwindow.models.base import Body, Decoder, Delta, Item, PartEnd
from contextwindow.models.sse import AnswerReader
from contextwindow.records import Record, RecordType

NOW = datetime(2026, 11, 20, tzinfo=UTC)
SOURCES = {
    "text": RecordType.MODEL_RESPONSE,
    "refusal": RecordType.MODEL_RESPONSE,
    "reasoning": RecordType.REASONING,
    "tool_call": RecordType.TOOL_CALL,
}


@dataclass
class Part:
    """What became of one part."""

    kind: str
    text: str = ""
    call_id: str = ""
    name: str = ""
    end: PartEnd | None = None


@dataclass
class Decoded:
    """All that an answer held."""

    decoder: Decoder
    parts: dict[int, Part] = field(default_factory=dict)
    error: ModelError | None = None

    def take(self, items: Iterable[Item]) -> None:
        for item in items:
            part = self.parts.setdefault(item.part, Part(item.kind))
            assert part.kind == item.kind
            assert part.end is None, "a part went on after its end"
            part.call_id = item.call_id or part.call_id
            part.name = item.name or part.name
            if isinstance(item, Delta):
                part.text += item.text
            else:
                part.end = item
                part.text = part.text if item.content is None else item.content

    def text(self, kind: str) -> str:
        return "".join(part.text for part in self.parts.values() if part.kind == kind)

    @property
    def calls(self) -> list[Part]:
        return [part for part in self.parts.values() if part.kind == "tool_call"]

    @property
    def items(self) -> list[Any]:
        ends = [part.end for part in self.parts.values() if part.end is not None]
        return [item for end in ends for item in end.items or ()]

    def records(self, api: str, *, turn_id: str = "t") -> list[Record]:
        """The records of the reply, as a turn makes them."""
        found = []
        for number, part in self.parts.items():
            payload: dict[str, Any] = {"api": api}
            if part.end is not None and part.end.items:
                payload["items"] = part.end.items
            if part.kind == "refusal":
                payload["refusal"] = part.text
            found.append(
                record(
                    SOURCES[part.kind],
                    "" if part.kind == "refusal" else part.text,
                    id=number + 1,
                    call_id=part.call_id or None,
                    name=part.name or None,
                    turn_id=turn_id,
                    response_id=self.decoder.response_id,
                    payload=payload if len(payload) > 1 else None,
                )
            )
        return found


def record(source: RecordType, content: str = "", **fields: Any) -> Record:
    """A record with what it needs."""
    return Record(
        **{"id": 1, "context_id": "c", "timestamp": NOW, **fields}, source=source, content=content
    )


def decode(
    decoder: Decoder, chunks: Iterable[bytes], content_type: str = "text/event-stream"
) -> Decoded:
    """Everything that *chunks* hold, as far as they go."""
    decoded = Decoded(decoder)
    reader = AnswerReader(content_type, "m")
    try:
        for chunk in chunks:
            _feed(decoded, reader.feed(chunk))
        _feed(decoded, reader.end())
        decoded.take(decoder.end())
    except ModelError as error:
        decoded.error = error
    return decoded


def cuts(body: bytes) -> Iterator[tuple[str, list[bytes]]]:
    """*body* in the pieces that a network might make of it."""
    yield "whole", [body]
    if len(body) < 60_000:
        yield "single bytes", [body[i : i + 1] for i in range(len(body))]
    awkward = {i for i in range(1, len(body)) if body[i] & 0xC0 == 0x80 or body[i] in b"\r\n:{\\"}
    awkward |= {i + 1 for i in awkward}
    yield "awkward", pieces(body, awkward)
    for seed in range(3):
        chance = random.Random(seed)
        places = [chance.randrange(len(body)) for _ in range(len(body) // 50)]
        yield f"random {seed}", pieces(body, set(places))


def pieces(body: bytes, places: set[int]) -> list[bytes]:
    """*body* cut at *places*."""
    edges = [0, *sorted(p for p in places if 0 < p < len(body)), len(body)]
    return [body[a:b] for a, b in pairwise(edges)]


def _feed(decoded: Decoded, events: list[Any]) -> None:
    decoder = decoded.decoder
    for event in events:
        if isinstance(event, Body):
            decoded.take(decoder.feed_body(event.json))
        else:
            decoded.take(decoder.feed(event))
