"""Reading a context's log for a follower: rows to lines, and the reply that a turn has given."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Any, Final, cast

import sqlalchemy as sa

from contextwindow.chunks import Done, StreamChunk, StreamFailed
from contextwindow.errors import ConfigError, ContextNotFound, ModelError, StreamInterrupted
from contextwindow.follow import (
    Line,
    Position,
    Reading,
    Seam,
    Seams,
    attempt_of,
    begins,
    last_attempt,
    round_of,
)
from contextwindow.parts import tool_call
from contextwindow.records import FinishReason, Record, RecordType, Reply, ToolCall, Usage
from contextwindow.store.connection import Connection, Damaged
from contextwindow.store.leases import DIED
from contextwindow.store.rows import CALL_COLUMNS, RECORD_COLUMNS, joined, to_call, to_record
from contextwindow.store.schema import calls as calls_table
from contextwindow.store.schema import contexts, record_deltas, records, seams, turns
from contextwindow.store.seams import NEWEST
from contextwindow.store.spending import Spent, together
from contextwindow.store.statement import Statement
from contextwindow.store.values import load_json, matches, parse_time

_bind = sa.bindparam

_EPOCH = Statement(sa.select(contexts.c.epoch).where(contexts.c.id == _bind("context_id")))

_NEWEST = Statement(
    sa.select(records.c.id)
    .where(records.c.context_id == _bind("context_id"))
    .order_by(records.c.seq.desc())
    .limit(1)
)

_PLACE = Statement(
    sa.select(records.c.context_id, records.c.turn_id).where(records.c.id == _bind("record_id"))
)

_TURN = Statement(
    sa.select(
        turns.c.state,
        NEWEST,
        turns.c.error,
        turns.c.context_id,
        turns.c.started,
        turns.c.ended,
    ).where(turns.c.id == _bind("turn_id"))
)

_RUNNING = Statement(
    sa.select(turns.c.id, NEWEST)
    .where(turns.c.context_id == _bind("context_id"))
    .where(turns.c.state == sa.literal_column("'running'"))
)

_ATTEMPTS = Statement(
    sa.union(
        sa.select((turns.c.epoch * attempt_of(1)).label("attempt"), turns.c.id)
        .where(turns.c.context_id == _bind("context_id"))
        .where(turns.c.epoch * attempt_of(1) > _bind("attempt")),
        sa.select(seams.c.attempt.label("attempt"), seams.c.turn_id)
        .join(turns, turns.c.id == seams.c.turn_id)
        .where(turns.c.context_id == _bind("context_id"))
        .where(seams.c.attempt > _bind("attempt")),
    )
    .order_by("attempt")
    .limit(500)
)

# The epoch that the last turn had begun with when a record was written that belongs to none.
_BEFORE = Statement(
    sa.select(
        sa.func.max(
            sa.func.coalesce(
                sa.select(sa.func.min(seams.c.attempt) // attempt_of(1))
                .where(seams.c.turn_id == turns.c.id)
                .scalar_subquery(),
                turns.c.epoch,
            )
        )
    )
    .where(turns.c.context_id == _bind("context_id"))
    .where(sa.exists().where(records.c.turn_id == turns.c.id, records.c.id < _bind("record_id")))
)

_SEAMS = Statement(
    sa.select(seams.c.record_id, seams.c.attempt, seams.c.start, seams.c.reach)
    .where(seams.c.turn_id == _bind("turn_id"))
    .order_by(seams.c.attempt)
)

_LINES = Statement(
    sa.select(
        records.c.id,
        records.c.source,
        records.c.content,
        records.c.partial_response_id,
        records.c.live,
        records.c.accumulated_tokens,
        records.c.call_id,
        records.c.name,
        records.c.error,
        records.c.payload,
        records.c.checksum,
    )
    .where(records.c.turn_id == _bind("turn_id"))
    .where(records.c.id >= _bind("since"))
    .order_by(records.c.id)
)

_DELTAS = Statement(
    sa.select(record_deltas.c.idx, record_deltas.c.delta)
    .where(record_deltas.c.record_id == _bind("record_id"))
    .where(record_deltas.c.idx >= _bind("since"))
    .order_by(record_deltas.c.idx)
)

_RECORDS = Statement(
    sa.select(*RECORD_COLUMNS).where(records.c.turn_id == _bind("turn_id")).order_by(records.c.id)
)

_RECORD = Statement(sa.select(*RECORD_COLUMNS).where(records.c.id == _bind("record_id")))

_CALLS = Statement(
    sa.select(*CALL_COLUMNS)
    .where(calls_table.c.turn_id == _bind("turn_id"))
    .order_by(calls_table.c.id)
)

_Attempt = tuple[int, str]
"""Number and turn."""

_TYPES: Final = {kind.value: kind for kind in RecordType}
_WELL: Final = ("complete", "awaiting")


class Log:
    """One follower's way through the log of a context.

    Attributes:
        context_id: the context.
        reading: what was shown.
        running: whether an attempt was under way when the log was read last.
        more: whether there was more than was asked for.
    """

    def __init__(self, context_id: str, reading: Reading) -> None:
        self.context_id = context_id
        self.reading = reading
        self.running = self.more = False
        self._attempts: deque[_Attempt] = deque()
        self._since = 0
        self._last = 0
        self._tail: list[Line] = []
        # By record in flight: next delta, characters read, characters of its content.
        self._read: dict[int, tuple[int, int, int]] = {}

    @classmethod
    def from_now(cls, connection: Connection, context_id: str) -> Log:
        """Behind all that is there.

        Raises:
            ContextNotFound: the context was deleted.
        """
        epoch = _epoch(connection, context_id)
        newest = _newest(connection, context_id)
        running = _RUNNING.one(connection, context_id=context_id)
        attempt = last_attempt(epoch) if running is None else int(running[1])
        stage = 2 * attempt + (running is None)
        log = cls(context_id, Reading(stage, Position(newest, 0, stage)))
        if running is not None:
            log.reading.skip(log._enter(connection, running[0], running[1]))
        return log

    @classmethod
    def behind(cls, connection: Connection, context_id: str, position: Position) -> Log:
        """Behind what *position* says was shown.

        Raises:
            ContextNotFound: the context was deleted.
            ConfigError: the record of the position is another context's, or is gone.
        """
        _epoch(connection, context_id)
        log = cls(context_id, Reading(position.stage, position))
        if not position.record_id:
            if position.stage and not position.stage % 2:
                log._go_into(connection, None, position)
            return log
        row = _PLACE.one(connection, record_id=position.record_id)
        if row is None:
            raise ConfigError(
                f"cannot follow from record {position.record_id}: it was deleted, or never was; "
                "after='' follows from the beginning"
            )
        if row[0] != context_id:
            raise ConfigError(
                f"cannot follow from record {position.record_id}: it is in another context"
            )
        turn = None if row[1] is None else _TURN.one(connection, turn_id=row[1])
        turn_id = row[1] if turn is not None and turn[3] == context_id else None
        if position.stage % 2:
            return log
        if position.stage:
            log._go_into(connection, turn_id, position)
        elif turn_id is None:
            before = _BEFORE.scalar(connection, context_id=context_id, record_id=position.record_id)
            log.reading.stage = 2 * last_attempt(before or 0) + 1
        else:
            log._go_to(connection, turn_id, position)
        return log

    def _go_into(self, connection: Connection, turn_id: str | None, position: Position) -> None:
        """Go to a position that names its attempt, which may be of another turn."""
        attempt = position.stage // 2
        if turn_id is None or not _seams(connection, turn_id).has(attempt):
            found = _ATTEMPTS.one(connection, context_id=self.context_id, attempt=attempt - 1)
            if found is None or found[0] != attempt:
                # It was resumed, and what it had left was nothing.
                self.reading.leave()
                return
            turn_id = str(found[1])
        self.reading.go_to(position, self._enter(connection, turn_id, attempt))

    def _go_to(self, connection: Connection, turn_id: str, position: Position) -> None:
        """Go to a position of which record and characters say the attempt."""
        lines = self._enter(connection, turn_id, _seams(connection, turn_id).last)
        line = next(one for one in lines if one.id == position.record_id)
        attempt = self.reading.seams.era(line, position.characters)
        if attempt != self.reading.attempt:
            lines = self._enter(connection, turn_id, attempt)
        self.reading.go_to(position, lines)

    def advance(
        self, connection: Connection, died: int = 0, *, most: int | None = None
    ) -> list[StreamChunk]:
        """What the log holds beyond what was shown.

        Args:
            died: an attempt that is over although its turn says that it is running.
            most: chunks after which to stop at the end of an attempt; None: at the log's end.

        Raises:
            ContextNotFound: the context was deleted.
            RecordCorrupt: a record was damaged on the disk.
        """
        chunks: list[StreamChunk] = []
        reading = self.reading
        self.running = self.more = False
        while True:
            if most is not None and len(chunks) >= most:
                self.more = True
                return chunks
            if reading.turn_id is None:
                following = self._next_attempt(connection)
                if following is None:
                    return chunks
                chunks += self._begin(connection, *following)
            turn_id = reading.turn_id
            assert turn_id is not None  # noqa: S101 - just entered
            turn = _TURN.one(connection, turn_id=turn_id)
            if turn is None:
                raise _deleted(self.context_id)
            state, attempt = turn[:2]
            dead = died == reading.attempt and state == "running"
            over = attempt != reading.attempt or state != "running" or dead
            if over:
                self._since = 0
            lines = self._lines(connection, turn_id, state, over=over)
            chunks += reading.read(lines)
            if not over:
                self._move_on(lines)
                self.running = True
                return chunks
            chunks += self._end(connection, turn_id, turn, dead=dead)

    # -- attempts ------------------------------------------------------------------------

    def _next_attempt(self, connection: Connection, *, same: bool = False) -> _Attempt | None:
        """The attempt behind the one that was shown last.

        Args:
            same: look for one within its epoch, too.
        """
        now, queue = self.reading.attempt, self._attempts
        while queue and queue[0][0] <= now:
            queue.popleft()
        if not queue and (same or attempt_of(_epoch(connection, self.context_id)) > now):
            rows = _ATTEMPTS.all(connection, context_id=self.context_id, attempt=now)
            queue.extend((int(attempt), str(turn_id)) for attempt, turn_id in rows)
        return queue[0] if queue else None

    def _begin(self, connection: Connection, attempt: int, turn_id: str) -> Iterator[StreamChunk]:
        """The chunk that an attempt begins with; none where an earlier record grows again."""
        reading = self.reading
        again = reading.last_turn == turn_id
        lines = self._enter(connection, turn_id, attempt)
        first = reading.seams.is_first(attempt)
        if first or begins(attempt):
            newest = 0 if lines else _newest(connection, self.context_id)
            yield reading.start(lines, newest, again=again and first)

    def _enter(self, connection: Connection, turn_id: str, attempt: int) -> list[Line]:
        found = _seams(connection, turn_id)
        self._since = self._last = 0
        self._read.clear()
        self.reading.seams = found
        turn = _TURN.one(connection, turn_id=turn_id)
        if turn is None:
            raise _deleted(self.context_id)
        over = turn[0] != "running" or turn[1] != attempt
        self.reading.stage = 2 * attempt
        lines = self._lines(connection, turn_id, turn[0], over=over)
        # What was read is read again: nothing of it was shown yet.
        self._read.clear()
        self.reading.enter(turn_id, attempt, found, lines)
        return lines

    def _end(
        self, connection: Connection, turn_id: str, turn: tuple[Any, ...], *, dead: bool
    ) -> Iterator[StreamChunk]:
        """The last chunk of an attempt; none where the turn went on at once."""
        state, attempt, error = turn[:3]
        reading = self.reading
        chunk: StreamChunk
        if attempt != reading.attempt:
            reading.leave()
            following = self._next_attempt(connection, same=True)
            if following is None or following[1] == turn_id:
                return
            chunk = StreamFailed(StreamInterrupted("the reply was cut off", turn_id=turn_id))
        elif dead:
            chunk = _failed("interrupted", DIED, turn_id)
        elif state in ("interrupted", "failed"):
            chunk = _failed(state, error, turn_id)
        else:
            chunk = Done(_reply(connection, turn_id, turn))
        whole = [one for one in self._tail if not one.dead]
        texts = [one for one in whole if one.source is RecordType.MODEL_RESPONSE]
        set_back = [one for one in texts if one.length < reading.seen(one.id)]
        line = next(reversed(set_back or texts or whole), None)
        yield reading.finish(chunk, line, _newest(connection, self.context_id))

    # -- lines ---------------------------------------------------------------------------

    def _lines(self, connection: Connection, turn_id: str, state: str, *, over: bool) -> list[Line]:
        """The turn's records, from the first that may have news."""
        rows = _LINES.all(connection, turn_id=turn_id, since=self._since)
        # A text goes on after a drop although it seemed whole.
        texts = [row[0] for row in rows if row[1] == RecordType.MODEL_RESPONSE]
        lines = []
        for row in rows:
            _check(connection, row)
            grows = not over and bool(texts) and row[0] == texts[-1]
            lines.append(self._line(connection, row, state, over=over, grows=grows))
        if lines:
            self._last = lines[-1].id
        self._tail = lines
        return lines

    def _line(
        self, connection: Connection, row: tuple[Any, ...], state: str, *, over: bool, grows: bool
    ) -> Line:
        number, source, content, partial, live, count, call_id, name, error = row[:9]
        line = Line(
            number,
            _TYPES[source],
            content,
            dead=partial is None and count is not None,
            call_id=call_id or "",
            name=name or "",
            error=bool(error),
        )
        if line.source is RecordType.TOOL_OUTPUT:
            line.known = partial is None
            line.dead = False
            return line
        deltas = False
        if partial is not None or grows:
            deltas = self._unfold(connection, line, over=over)
        if partial is not None and not live:
            # Left behind by a resume; one that is read on grows although it is not live yet.
            seamed = self.reading.seams.finds(number, self.reading.attempt)
            running = state == "running"
            line.dead = state in _WELL or (running and not deltas and (seamed or not over))
        if source == RecordType.MODEL_RESPONSE and not content and row[9] is not None:
            refusal = load_json(row[9]).get("refusal")
            if refusal:
                line.text, line.refusal = refusal, True
        return line

    def _unfold(self, connection: Connection, line: Line, *, over: bool) -> bool:
        """Give *line* what has arrived since it was read last; whether anything is in flight."""
        size = len(line.text)
        at, read, before = self._read.get(line.id, (0, size, size))
        if over or before != size or self.reading.seen(line.id) < read:
            at, read = 0, size
        rows = _DELTAS.all(connection, record_id=line.id, since=at)
        news = joined(connection, line.id, rows, at)
        if at:
            line.begin, line.text = read, news
        else:
            line.text += news
        at = rows[-1][0] + 1 if rows else at
        self._read[line.id] = (at, line.length, size)
        return at > 0

    def _move_on(self, lines: list[Line]) -> None:
        """Read from the last line on that has anything: one before it grows only anew."""
        at = next((at for at in reversed(range(len(lines))) if lines[at].length), 0)
        if lines:
            # Tools of a round end in any order.
            self._since = next(round_of(lines, at), lines[at]).id


def _check(connection: Connection, row: tuple[Any, ...]) -> None:
    """Raises ``RecordCorrupt`` where a row of ``_LINES`` was damaged."""
    damaged = type(row) is Damaged or row[1] not in _TYPES or bytes in map(type, row)
    if damaged or not matches(row[2], row[9], row[10]):
        found = _RECORD.one(connection, record_id=row[0])
        if found is not None:
            to_record(connection, found)


def _epoch(connection: Connection, context_id: str) -> int:
    row = _EPOCH.one(connection, context_id=context_id)
    if row is None:
        raise _deleted(context_id)
    return int(row[0])


def _newest(connection: Connection, context_id: str) -> int:
    return int(_NEWEST.scalar(connection, context_id=context_id) or 0)


def _seams(connection: Connection, turn_id: str) -> Seams:
    turn = _TURN.one(connection, turn_id=turn_id)
    found = Seams(0 if turn is None else turn[1])
    for number, attempt, start, reach in _SEAMS.all(connection, turn_id=turn_id):
        found.found.setdefault(number, []).append(Seam(attempt, start, reach))
    return found


def _deleted(context_id: str) -> ContextNotFound:
    return ContextNotFound(f"context {context_id} was deleted")


def _failed(state: str, error: str | None, turn_id: str) -> StreamFailed:
    text = error or "the turn has failed"
    if state == "failed":
        failed = ModelError(text)
        failed.turn_id = turn_id
        return StreamFailed(failed)
    return StreamFailed(StreamInterrupted(text, turn_id=turn_id))


def _reply(connection: Connection, turn_id: str, turn: tuple[Any, ...]) -> Reply:
    """What a turn that has ended has given, as the database has it."""
    found = [to_record(connection, row) for row in _RECORDS.all(connection, turn_id=turn_id)]
    kept = [one for one in found if not _given_up(one, turn[0])]
    made = [to_call(row) for row in _CALLS.all(connection, turn_id=turn_id)]
    spent = [Spent(one.usage, one.cost) for one in made if one.usage is not None]
    usage, cost = together(spent) if spent else (Usage(), None)
    last = made[-1] if made else None
    times = (one.time_to_first_token for one in made if one.time_to_first_token is not None)
    reason = "cancelled" if turn[0] == "cancelled" else (last and last.finish_reason) or "stop"
    ended = parse_time(turn[5] or turn[4])
    return Reply(
        text=_joined(kept, RecordType.MODEL_RESPONSE),
        reasoning=_joined(kept, RecordType.REASONING),
        refusal="".join(str((one.payload or {}).get("refusal") or "") for one in kept),
        tool_calls=_tool_calls(kept, open_only=turn[0] == "awaiting"),
        records=kept,
        usage=usage,
        cost=cost,
        finish_reason=cast(FinishReason, reason),
        response_id=None if last is None else last.response_id,
        turn_id=turn_id,
        model="" if last is None else last.model,
        time_to_first_token=next(times, None),
        duration=max(0.0, (ended - parse_time(turn[4])).total_seconds()),
    )


def _given_up(record: Record, state: str) -> bool:
    if record.partial_response_id is None:
        return record.accumulated_tokens is not None
    return not record.live and state in _WELL


def _joined(records_: list[Record], source: RecordType) -> str:
    return "".join(one.content for one in records_ if one.source is source)


def _tool_calls(kept: list[Record], *, open_only: bool) -> list[ToolCall]:
    answered = {one.call_id for one in kept if one.source is RecordType.TOOL_OUTPUT}
    calls = [one for one in kept if one.source is RecordType.TOOL_CALL]
    return [tool_call(one) for one in calls if not (open_only and one.call_id in answered)]
