"""Chunks from the rows of the log: what a follower has seen, and what comes next.  No I/O.

The log is a sequence of *attempts*: every begin of a turn, new or resumed, has an epoch of its
own, which grows within the context, and within an epoch there is another attempt whenever an
earlier record grows again.  So an attempt adds to the turn's records one after the other, and
attempt, record and a number of characters say exactly what has been seen.  An id says the attempt
only where record and characters do not.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from contextwindow.chunks import (
    ReasoningDelta,
    RefusalDelta,
    Resumed,
    StreamChunk,
    StreamStart,
    ToolCallDelta,
    ToolEnd,
    ToolStart,
    place,
    text_chunk,
)
from contextwindow.errors import ConfigError, ToolError
from contextwindow.records import RecordType

MARK: Final = 1 << 32
"""What stands before the characters of an id, times this: the stage of the log it was given at."""

_WITHIN: Final = 256
"""Attempts that an epoch has room for; what is beyond shares the last."""

_ID: Final = re.compile(r"([0-9]{1,18}):([0-9]{1,25})")

_TEXTS: Final = (RecordType.MODEL_RESPONSE, RecordType.REASONING, RecordType.TOOL_CALL)


def attempt_of(epoch: int) -> int:
    """The number of the attempt that an epoch begins with."""
    return epoch * _WITHIN


def begins(attempt: int) -> bool:
    """Whether an epoch begins with the attempt."""
    return attempt % _WITHIN == 0


def next_attempt(attempt: int) -> int:
    """The number of the attempt that follows in the same epoch."""
    return min(attempt + 1, last_attempt(attempt // _WITHIN))


def last_attempt(epoch: int) -> int:
    """The highest number that an attempt of an epoch can have."""
    return attempt_of(epoch) + _WITHIN - 1


@dataclass(frozen=True, slots=True)
class Position:
    """A place in the log.

    Attributes:
        record_id: the record that was shown last, 0 for none.
        characters: what was shown of it; of a tool output 0 when the tool was started, 1 or more
            when it had ended.
        stage: twice the number of the attempt, and 1 more when its end was shown; 0 when record
            and characters say it.
    """

    record_id: int = 0
    characters: int = 0
    stage: int = 0

    @classmethod
    def parse(cls, text: object) -> Position:
        """The place that a ``chunk.id`` names; ``""`` and ``"0:0"`` are the beginning.

        Raises:
            ConfigError: it is no such id.
        """
        found = _ID.fullmatch(text) if isinstance(text, str) else None
        if text == "":
            return cls()
        if found is None:
            raise ConfigError(
                f"after must be the id of a chunk, such as '12:340', '' for the beginning or "
                f"None for what comes from now on; not {text!r}"
            )
        stage, characters = divmod(int(found[2]), MARK)
        return cls(int(found[1]), characters, stage)

    @property
    def number(self) -> int:
        """What stands behind the record in an id."""
        return self.characters + self.stage * MARK

    @classmethod
    def of(cls, chunk: StreamChunk) -> Position:
        """The place behind *chunk*."""
        stage, characters = divmod(chunk.position, MARK)
        return cls(chunk.record_id, characters, stage)


@dataclass(slots=True)
class Line:
    """One record of a turn as it is shown.

    Attributes:
        text: from character *begin* on.
        dead: it was given up; it is no part of the reply.
        known: of a tool output, whether it is there.
    """

    id: int
    source: RecordType
    text: str = ""
    begin: int = 0
    dead: bool = False
    known: bool = True
    refusal: bool = False
    call_id: str = ""
    name: str = ""
    error: bool = False

    @property
    def length(self) -> int:
        """Characters; of a tool output 0 while it is not there, then at least 1."""
        if self.source is RecordType.TOOL_OUTPUT:
            return max(1, len(self.text)) if self.known else 0
        return self.begin + len(self.text)


@dataclass(frozen=True, slots=True)
class Seam:
    """Where an attempt found a record, and how far that reached before it was set back.

    Attributes:
        start: characters, -1 when the attempt made the record.
    """

    attempt: int
    start: int
    reach: int = 0


@dataclass(slots=True)
class Seams:
    """The attempts at one turn.

    Attributes:
        last: the newest.
        found: what they found, by record, in order.
    """

    last: int
    found: dict[int, list[Seam]] = field(default_factory=dict)

    @property
    def attempts(self) -> list[int]:
        """Of all attempts that are known, in order."""
        return sorted({self.last, *(one.attempt for row in self.found.values() for one in row)})

    def is_first(self, attempt: int) -> bool:
        """Whether an attempt is the one that the turn began with."""
        return attempt <= self.attempts[0]

    def next(self, attempt: int) -> int | None:
        """The attempt behind *attempt*; None when there is none."""
        return next((one for one in self.attempts if one > attempt), None)

    def has(self, attempt: int) -> bool:
        """Whether *attempt* is one of them."""
        return attempt in self.attempts

    def base(self, line: Line, attempt: int) -> int:
        """What of *line* was there when the attempt began: -1 for none of it."""
        rows = self.found.get(line.id, ())
        if rows and rows[0].attempt > attempt:
            return -1
        if self.is_first(attempt) or line.id > self._newest(attempt):
            return -1
        return next((one.start for one in rows if one.attempt >= attempt), line.length)

    def end(self, line: Line, attempt: int) -> int:
        """What of *line* was there when the attempt ended."""
        later = self.next(attempt)
        return line.length if later is None else self.base(line, later)

    def era(self, line: Line, characters: int) -> int:
        """The earliest attempt that may have shown so much of *line*."""
        rows = self.found.get(line.id, [])
        for at, one in enumerate(rows):
            behind = rows[at + 1].start if at + 1 < len(rows) else None
            if behind is None or characters <= max(behind, one.reach):
                return one.attempt
        made = [one for one in self.attempts[1:] if line.id > self._newest(one)]
        return made[-1] if made else self.attempts[0]

    def finds(self, line_id: int, attempt: int) -> bool:
        """Whether it is noted that the attempt found the record."""
        return any(one.attempt == attempt and one.start >= 0 for one in self.found.get(line_id, ()))

    def doubtful(self, line_id: int, characters: int, attempt: int) -> bool:
        """Whether an earlier attempt has shown other text at that place."""
        rows = self.found.get(line_id, ())
        return any(one.attempt < attempt and characters <= one.reach for one in rows)

    def _newest(self, attempt: int) -> int:
        """The last record that the attempt found."""
        found = (number for number in self.found if self.finds(number, attempt))
        return max(found, default=0)


class Reading:
    """What one follower has seen, and the chunks of what he has not.

    Attributes:
        stage: as in ``Position``: all attempts before it are behind him.
        turn_id: the turn whose attempt is being shown; None between turns.
        last_turn: the turn that was shown last.
        place: the position behind what was shown last.
        seams: of that turn.
    """

    def __init__(self, stage: int = 0, place: Position | None = None) -> None:
        self.stage = stage
        self.place = place or Position()
        self.turn_id: str | None = None
        self.last_turn: str | None = None
        self.seams = Seams(0)
        self._seen: dict[int, int] = {}
        self._calls: dict[str, Line] = {}

    @property
    def attempt(self) -> int:
        """The attempt that is being shown, or was shown last."""
        return self.stage // 2

    def seen(self, line_id: int) -> int:
        """Characters of a record that were shown."""
        return self._seen.get(line_id, 0)

    def enter(self, turn_id: str, attempt: int, seams: Seams, lines: Sequence[Line]) -> None:
        """Begin to show an attempt of which nothing was shown yet."""
        self.stage = 2 * attempt
        self.turn_id = self.last_turn = turn_id
        self.seams = seams
        bases = {line.id: seams.base(line, attempt) for line in lines}
        self._seen = {number: size for number, size in bases.items() if size >= 0}
        self._calls = {}

    def go_to(self, position: Position, lines: Sequence[Line]) -> None:
        """Within the attempt that was entered: go behind what *position* says was shown."""
        self.place = position
        at = next((at for at, one in enumerate(lines) if one.id == position.record_id), None)
        if at is None:
            return
        line, size = lines[at], position.characters
        if position.stage and size <= max(0, self.seen(line.id)):
            return  # it names the begin of the attempt
        for one in lines[:at]:
            end = self.seams.end(one, self.attempt)
            if end >= 0:
                self._seen[one.id] = end
        self._seen[line.id] = size
        if line.source is RecordType.TOOL_OUTPUT:
            self._go_into_round(lines, at, ended=size > 0)

    def _go_into_round(self, lines: Sequence[Line], at: int, *, ended: bool) -> None:
        """Tools of a round all start before the first of them ends."""
        for one in round_of(lines, at):
            before = self.seams.base(one, self.attempt)
            passed = one.id <= lines[at].id
            if ended:
                self._seen[one.id] = max(1, one.length) if passed else max(0, before)
            elif passed:
                self._seen[one.id] = max(0, before)

    def skip(self, lines: Sequence[Line]) -> None:
        """Take all that is there as shown."""
        for line in lines:
            self._seen[line.id] = line.length
        if lines:
            self.place = Position(lines[-1].id, lines[-1].length, self.stage)

    def start(self, lines: Sequence[Line], newest: int, *, again: bool) -> StreamChunk:
        """The chunk that begins the attempt.

        Args:
            newest: number of the context's newest record.
            again: the turn was shown before, and has left nothing.
        """
        if self.seams.is_first(self.attempt) and not again:
            start = StreamStart(self.turn_id or "")
            if lines:
                return self._at(start, lines[0].id, 0, self.stage)
            return self._stay_at(start, newest)
        grown = (one for one in lines if self.seams.finds(one.id, self.attempt))
        line = next((one for one in grown if one.source in _TEXTS and not one.dead), None)
        if line is None:
            return self._stay_at(Resumed(), newest)
        return self._at(Resumed(), line.id, self.seen(line.id), self.stage)

    def finish(self, chunk: StreamChunk, line: Line | None, newest: int) -> StreamChunk:
        """*chunk* as the last one of the attempt.

        Args:
            line: where to place it: it says where that text ends; None: the turn has none.
            newest: number of the context's newest record.
        """
        self.leave()
        if line is None:
            return self._stay_at(chunk, newest)
        return self._at(chunk, line.id, min(self.seen(line.id), line.length), self.stage)

    def leave(self) -> None:
        """The attempt has ended."""
        self.stage |= 1
        self.turn_id = None

    def read(self, lines: Sequence[Line]) -> Iterator[StreamChunk]:
        """What the turn's records hold beyond what was shown.

        Args:
            lines: in order, from the first that may have news.
        """
        at = 0
        while at < len(lines):
            line = lines[at]
            if line.source is RecordType.TOOL_OUTPUT:
                outputs = list(round_of(lines, at))
                yield from self._outputs(outputs)
                at += len(outputs)
                continue
            at += 1
            if line.source not in _TEXTS or line.dead:
                continue
            if line.source is RecordType.TOOL_CALL:
                self._calls[line.call_id] = line
            yield from self._growth(line)

    # -- inside --------------------------------------------------------------------------

    def _growth(self, line: Line) -> Iterator[StreamChunk]:
        seen = self.seen(line.id)
        size = line.length
        later = self.seams.next(self.attempt)
        if later is not None:
            size = self.seams.base(line, later)
        if size <= seen:
            return
        text = line.text[max(0, seen - line.begin) : size - line.begin]
        self._seen[line.id] = size
        chunk: StreamChunk
        if line.refusal:
            chunk = RefusalDelta(text)
        elif line.source is RecordType.MODEL_RESPONSE:
            chunk = text_chunk(text, line.id, size)
        elif line.source is RecordType.REASONING:
            chunk = ReasoningDelta(text)
        else:
            chunk = ToolCallDelta(line.call_id, line.name, text)
        doubtful = self.seams.doubtful(line.id, size, self.attempt)
        yield self._at(chunk, line.id, size, self.stage if doubtful else 0)

    def _outputs(self, outputs: Sequence[Line]) -> Iterator[StreamChunk]:
        """Starts and ends of the tools of one round, both in the order of the calls."""
        later = self.seams.next(self.attempt)
        ends = {
            line.id: line.length if later is None else self.seams.base(line, later)
            for line in outputs
        }
        for line in outputs:
            if line.id not in self._seen and ends[line.id] >= 0:
                self._seen[line.id] = 0
                start = ToolStart(line.call_id, line.name, self._arguments(line.call_id))
                yield self._at(start, line.id, 0, 0)
        for line in outputs:
            if ends[line.id] <= 0:
                return
            if not self._seen[line.id]:
                self._seen[line.id] = line.length
                error = ToolError(line.text) if line.error else None
                end = ToolEnd(line.call_id, line.name, line.text, error=error)
                yield self._at(end, line.id, line.length, 0)

    def _arguments(self, call_id: str) -> dict[str, Any]:
        call = self._calls.get(call_id)
        try:
            found = json.loads(call.text) if call is not None else {}
        except (ValueError, RecursionError):
            return {}
        return found if isinstance(found, dict) else {}

    def _stay_at(self, chunk: StreamChunk, newest: int) -> StreamChunk:
        """*chunk* where the last one was: it has no record of its own."""
        number = self.place.record_id or newest
        return self._at(chunk, number, self.place.characters, self.stage)

    def _at(self, chunk: StreamChunk, number: int, characters: int, stage: int) -> StreamChunk:
        self.place = Position(number, characters, stage)
        return place(chunk, number, self.place.number)


def round_of(lines: Sequence[Line], at: int) -> Iterator[Line]:
    """The outputs that stand together with the one at *at*."""
    first = at
    while first and lines[first - 1].source is RecordType.TOOL_OUTPUT:
        first -= 1
    for line in lines[first:]:
        if line.source is not RecordType.TOOL_OUTPUT:
            return
        yield line
