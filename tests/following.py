"""What the tests of followers share: a page that shows chunks, and ways to look at the log."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from contextwindow import ContextWindow, StreamChunk, TextDelta
from contextwindow.follow import Position

A_MOMENT = 0.001
"""Seconds of a follower that only takes what is there."""


@dataclass
class Page:
    """Shows chunks as a reader's page does: each at its place; the last one says where text ends.

    Attributes:
        texts: by record.
        set_back: how often text that was there was taken back.
    """

    texts: dict[int, str] = field(default_factory=dict)
    set_back: int = 0
    last_id: str = ""
    kinds: list[str] = field(default_factory=list)

    def show(self, chunks: Iterable[StreamChunk]) -> Page:
        for chunk in chunks:
            self.last_id = chunk.id or self.last_id
            self.kinds.append(chunk.type)
            if isinstance(chunk, TextDelta):
                place = Position.of(chunk)
                begin = place.characters - len(chunk.delta)
                text = self.texts.get(place.record_id, "")
                assert begin <= len(text), f"characters are missing before {chunk.id}"
                self.set_back += begin < len(text)
                self.texts[place.record_id] = text[:begin] + chunk.delta
            elif chunk.done and chunk.record_id in self.texts:
                text = self.texts[chunk.record_id]
                end = Position.of(chunk).characters
                self.set_back += end < len(text)
                self.texts[chunk.record_id] = text[:end]
        return self

    @property
    def text(self) -> str:
        return "".join(self.texts[number] for number in sorted(self.texts))


def there(window: ContextWindow, after: str | None = "") -> list[StreamChunk]:
    """What the log holds behind *after*, without waiting for more."""
    return list(window.follow(after, timeout=A_MOMENT))


def told(chunks: Iterable[StreamChunk]) -> list[tuple[Any, ...]]:
    """What *chunks* say, however their texts are cut."""
    out: list[tuple[Any, ...]] = []
    for chunk in chunks:
        text = chunk.delta or getattr(chunk, "text", "")
        arguments = getattr(chunk, "arguments", "")
        if isinstance(arguments, str):
            text = text or arguments
        # Where a turn begins and ends is said by the record that is nearest at the time.
        number = chunk.record_id if text or hasattr(chunk, "call_id") else 0
        what = (chunk.type, number, getattr(chunk, "call_id", ""))
        if text and out and out[-1][:-1] == what:
            out[-1] = (*what, out[-1][-1] + text)
        else:
            out.append((*what, text or getattr(chunk, "output", "")))
    return out
