"""One running turn in the database: its lease, and every write that it makes."""

from __future__ import annotations

import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Container, Iterable, Sequence
from copy import copy
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Protocol

from contextwindow.effects import (
    Append,
    BeginTurn,
    Begun,
    Checkpoint,
    CloseRecord,
    Compact,
    EndCall,
    EndTurn,
    Forget,
    OpenRecord,
    Operation,
    Progress,
    ReopenRecord,
    SetLive,
    StartCall,
    Written,
)
from contextwindow.errors import ContextNotFound, StoreBusy, StoreError, TurnLost
from contextwindow.follow import attempt_of, next_attempt
from contextwindow.records import Record, RecordType, Usage, defer_tokens
from contextwindow.store import beginning, cancelling, compacting, leases
from contextwindow.store import ledger_sql as sql
from contextwindow.store.connection import Connection
from contextwindow.store.engine import Database
from contextwindow.store.notices import NOTICE_EVERY, announce
from contextwindow.store.rows import measure, to_ranges, to_record
from contextwindow.store.seams import note_attempt, note_set_back
from contextwindow.store.spending import Spent, changes, price_dead, spent, together
from contextwindow.store.values import checksum, dump_json, now_text, parse_time

if TYPE_CHECKING:
    from contextwindow.store.checkpoints import Checkpointer


class Holder(Protocol):
    """Who drives a running turn in this process."""

    def stop(self, reason: str) -> None:
        """End the turn soon, from any thread."""

    def waits_for(self, thread: int, task: object) -> bool:
        """Whether the turn cannot go on while *task* of *thread* waits for it."""


class _Entry:
    """A record of the turn, as the database has it."""

    __slots__ = ("connected", "guess", "live", "next_delta", "reach", "record", "tokens")

    record: Record

    def __init__(self, connected: int) -> None:
        self.connected = connected
        self.tokens = 0
        self.guess = False
        self.live = True
        self.next_delta = 0
        self.reach = 0


class _Counters:
    """What one transaction changes of the context's counters."""

    __slots__ = ("live", "opened", "spent", "tokens", "total", "uncounted")

    def __init__(self) -> None:
        self.opened = self.live = self.tokens = self.uncounted = self.total = 0
        self.spent: dict[str, int] = {}

    def __bool__(self) -> bool:
        return bool(self.opened or self.live or self.tokens or self.uncounted or self.spent)

    def spend(self, ended: Sequence[Spent], void: Sequence[Spent]) -> None:
        """Count calls that end, and take back what earlier ones were taken to have used."""
        gained = [one.counters() for one in ended]
        self.spent = changes(*gained, *(one.counters(-1, call=0) for one in void))
        self.total = self.spent["input_tokens"] + self.spent["output_tokens"]


class TurnLedger:
    """Writes one turn; safe to use from the turn's thread and the checkpointer's at once.

    Args:
        interval: seconds that text may wait to be written together with other turns' text; 0
            writes it before ``apply`` returns.
        lease: seconds after the last sign of life when others may take the turn over.
        tell: told the context's id after each commit.
    """

    def __init__(
        self,
        database: Database,
        context_id: str,
        *,
        interval: float,
        lease: float,
        checkpointer: Checkpointer,
        tell: Callable[[str], None] = lambda context_id: None,
    ) -> None:
        self.context_id = context_id
        self.interval = interval
        self.lease = lease
        self.turn_id = ""
        self.written = Written()
        self._unsaved: dict[int, str] = {}
        self._process = os.getpid()
        self._database = database
        self._checkpointer = checkpointer
        self._lock = threading.Lock()
        self._waiting: deque[Operation] = deque()
        self._failure: StoreError | TurnLost | ContextNotFound | None = None
        self._entries: dict[int, _Entry] = {}
        self._epoch = self._attempt = 0
        self._call_id = 0
        self._sent_tokens = 0
        self._began_seq = self._last_seq = 0
        self._sent: object = None
        self._renewed = 0.0
        self._calls: dict[int, Spent] = {}
        self._response_id: str | None = None
        self._void: list[int] = []
        self._flushing: tuple[list[Operation], tuple[Any, ...]] | None = None
        self._holder: weakref.ref[Holder] | None = None
        self._tell = tell
        self._announced = 0.0
        self._owes_notice = False
        self._furthest = 0
        self._waited = False  # in vain, for whoever holds the database locked

    # -- the lease -----------------------------------------------------------------------

    def begin(self, wanted: BeginTurn) -> Begun:
        """Take the lease.

        Raises:
            TurnBusy: another turn is running on the context.
            ContextNotFound: the context was deleted.
            ConfigError: there is no such turn to go on with.
        """
        with self._database.write(boundary=self._may_crash) as connection:
            now = self._database.now(connection)
            started = beginning.begin(connection, self.context_id, wanted, now, self.lease)
            if started.begun.threaded:
                self._sent = self._live_before(connection, started.next_seq, started.begun.turn_id)
            announce(connection, [self.context_id])
        self._tell(self.context_id)
        self.turn_id = started.begun.turn_id
        self._epoch = started.epoch
        self._attempt = attempt_of(started.epoch)
        self._call_id = started.call_id
        self._sent_tokens = started.sent_tokens
        self._began_seq = started.next_seq
        self._calls = started.calls
        if started.settled:
            costs = price_dead(self._database, self.context_id, leases.DIED)
            for call_id in costs.keys() & self._calls.keys():
                self._calls[call_id] = replace(self._calls[call_id], cost=costs[call_id])
        self._renewed = time.monotonic()
        self._checkpointer.add(self)
        cancelling.held[self.turn_id] = self
        return started.begun

    def held_by(self, holder: Holder) -> None:
        """Let *holder* be told when somebody wants the turn to stop."""
        # A stream that is dropped ends at once only if nothing else holds it.
        self._holder = weakref.ref(holder)

    @property
    def holder(self) -> Holder | None:
        """Who drives the turn; None when nobody does any more."""
        return None if self._holder is None else self._holder()

    def stop(self) -> None:
        """Have the turn end as cancelled."""
        holder = self.holder
        if holder is not None and not self.written.ended:
            holder.stop("cancel")

    @property
    def _may_crash(self) -> bool:
        """Whether the database can die without this process: then what begins is waited for.

        Text that a crash has taken is written with the end; a turn or record of which nothing is
        left has no end.
        """
        return self._database.dialect == "postgresql"

    @property
    def attempt(self) -> tuple[str, int]:
        """The turn, and the epoch in which it is held."""
        return self.turn_id, self._epoch

    # -- writing -------------------------------------------------------------------------

    def defer(self, checkpoint: Checkpoint) -> bool:
        """Keep *checkpoint* for the checkpointer, if it may wait; never blocks.

        Raises:
            StoreError, TurnLost, ContextNotFound: what was kept before could not be written.
        """
        if self._failure is not None:
            # The end holds the whole text and is worth another try.
            ends = bool(checkpoint.operations) and type(checkpoint.operations[-1]) is EndTurn
            if ends and isinstance(self._failure, StoreError):
                return False
            raise self._failure
        if not self.interval and not checkpoint.relaxed:
            return False
        for operation in checkpoint.operations:
            kind = type(operation)
            if kind is OpenRecord and checkpoint.relaxed:
                continue
            if kind is not Append and kind is not Progress:
                return False
        self._waiting.extend(checkpoint.operations)
        if not checkpoint.relaxed:
            self._checkpointer.wake(self.interval)
        return True

    def apply(self, checkpoint: Checkpoint) -> Written:
        """Write *checkpoint*, and before it what was deferred, in one transaction.

        Raises:
            TurnLost: the lease was taken over; nothing was written.
            ContextNotFound: the context was deleted; nothing was written.
            StoreError: the database refused; nothing was written.
        """
        # Outside of the transaction: the first price takes 0.2 s.
        ended = [
            spent(one, self._sent_tokens) for one in checkpoint.operations if type(one) is EndCall
        ]
        with self._lock:
            deferred = self._drain()
            operations = [*deferred, *checkpoint.operations]
            if not operations:
                return self.written
            kept = self._state(operations)
            opens = self._opens(operations)
            try:
                with self._database.write(
                    boundary=checkpoint.boundary or opens, patient=not self._waited
                ) as connection:
                    self._run(connection, operations, ended)
                    self._announce(connection, checkpoint.boundary)
                self._waited = False
            except BaseException as error:
                # What comes now is the end of the turn, for which nobody waits a second time.
                self._waited = isinstance(error, StoreBusy)
                self._restore(kept)
                self._waiting.extendleft(reversed(deferred))
                if type(operations[-1]) is EndTurn:
                    self._unsaved = self._texts(operations)
                raise
            if type(operations[-1]) is EndTurn:
                self.written.ended = True
                self._checkpointer.remove(self)
        self._tell(self.context_id)
        return self.written

    def _texts(self, operations: list[Operation]) -> dict[int, str]:
        """What *operations* would have left of each open record."""
        return {
            self._entries[one.key].record.id: one.content
            for one in operations
            if type(one) is CloseRecord
            and one.key in self._entries
            and self._entries[one.key].record.source is not RecordType.TOOL_OUTPUT
        }

    def committed(self) -> None:
        """What ``flush`` wrote is in the database."""
        self._flushing = None
        self._tell(self.context_id)

    def _announce(self, connection: Connection, boundary: bool) -> None:
        """Wake who follows from elsewhere: PostgreSQL commits notices one at a time."""
        if connection.dialect == "sqlite":
            return
        now = time.monotonic()
        self._owes_notice = not boundary and now - self._announced < NOTICE_EVERY
        if self._owes_notice:
            self._checkpointer.wake(NOTICE_EVERY)
        else:
            self._announced = now
            announce(connection, [self.context_id])

    def _state(self, operations: list[Operation]) -> tuple[Any, ...]:
        """What *operations* must not have changed when their transaction is rolled back."""
        # Only what they touch: a turn may have thousands of records.
        keys: set[int] = set()
        for one in operations:
            if isinstance(one, (Append, OpenRecord, CloseRecord, ReopenRecord)):
                keys.add(one.key)
            elif isinstance(one, Forget):
                keys.update(one.keys)
            elif isinstance(one, SetLive):
                keys.update(self._entries)
        entries = {key: copy(self._entries.get(key)) for key in keys}
        closed = {key: self.written.records.get(key) for key in keys}
        ends = any(isinstance(one, (EndCall, Compact)) for one in operations)
        calls = dict(self._calls) if ends else None
        numbers = self._call_id, self._attempt, self._furthest
        return entries, closed, numbers, self._response_id, calls

    def _restore(self, state: tuple[Any, ...]) -> None:
        entries, closed, numbers, self._response_id, calls = state
        self._call_id, self._attempt, self._furthest = numbers
        if calls is not None:
            self._calls = calls
        for key, entry in entries.items():
            if entry is None:
                self._entries.pop(key, None)
                self.written.ids.pop(key, None)
            else:
                self._entries[key] = entry
                self.written.ids[key] = entry.record.id
            if closed[key] is None:
                self.written.records.pop(key, None)
            else:
                self.written.records[key] = closed[key]

    def give_up(self) -> None:
        """Nobody drives the turn any more: if its end could not be written, others settle it."""
        # After a fork the turn is the parent's, who goes on with it.
        if self.turn_id and not self.written.ended and self._process == os.getpid():
            unsaved = leases.Unsaved(self._database.location, self.context_id, self._unsaved)
            leases.leave(self.turn_id, self._epoch, unsaved)
            self._checkpointer.remove(self)

    def needs_attention(self, now: float) -> bool:
        """Whether the checkpointer has something to do for this turn."""
        waits = bool(self._waiting) or self._owes_notice
        return waits or now - self._renewed > self.lease / 6

    @property
    def opens(self) -> bool:
        """Whether ``flush`` will write something that the server must not lose."""
        return self._opens(self._waiting)

    def _opens(self, operations: Iterable[Operation]) -> bool:
        return self._may_crash and any(type(one) is OpenRecord for one in operations)

    def flush(self, connection: Connection) -> bool:
        """Write what was deferred and renew the lease; called with ``lock`` held.

        Returns:
            Whether there is something new to be followed.
        """
        if self._failure is not None or self.written.ended:
            return False
        news, self._owes_notice = self._owes_notice, False
        operations = self._drain()
        self._flushing = (operations, self._state(operations))
        opens = any(type(one) is OpenRecord for one in operations)
        if opens:
            # The counters are written before it is known whether the turn is still ours.
            connection.execute("SAVEPOINT turn")
        try:
            if operations:
                self._run(connection, operations)
                news = True
            if time.monotonic() - self._renewed > self.lease / 6:
                # Behind the context's row, which all writers take before the turn's.
                self._renew(connection)
        except (TurnLost, ContextNotFound) as error:
            # Others in this transaction are not to suffer for it.
            if opens:
                connection.execute("ROLLBACK TO SAVEPOINT turn")
            self._failure = error
        return news

    def rolled_back(self) -> None:
        """What ``flush`` wrote is not in the database: keep it for another try."""
        if self._flushing is not None:
            operations, kept = self._flushing
            self._flushing = None
            self._waiting.extendleft(reversed(operations))
            self._restore(kept)

    @property
    def lock(self) -> threading.Lock:
        """Held while the turn is being written."""
        return self._lock

    def fail(self, error: StoreError) -> None:
        """Let the turn's next write raise *error*."""
        self._failure = error

    def _drain(self) -> list[Operation]:
        out: list[Operation] = []
        texts: dict[int, list[str]] = {}
        while self._waiting:
            operation = self._waiting.popleft()
            if type(operation) is Append:
                texts.setdefault(operation.key, []).append(operation.text)
            else:
                out.append(operation)
        out += [Append(key, "".join(pieces)) for key, pieces in texts.items()]
        return out

    def _renew(self, connection: Connection) -> None:
        now = self._database.now(connection)
        done = sql.RENEW.run(
            connection,
            turn_id=self.turn_id,
            epoch=self._epoch,
            now=now,
            expires=now + self.lease,
        )
        if done.rowcount != 1:
            raise self._lost(connection)
        self._renewed = time.monotonic()

    def _run(
        self, connection: Connection, operations: list[Operation], ended: Sequence[Spent] = ()
    ) -> None:
        """Write *operations*: counters first, then the fence, then the rows.

        Args:
            ended: what the calls that end with them have used.
        """
        counters = _Counters()
        opened = {one.key: one for one in operations if type(one) is OpenRecord}
        if connection.dialect == "postgresql" and self._touches_old(operations, opened):
            # Before the rows of records, as every other writer: two who differ would deadlock.
            sql.QUEUE.one(connection, context_id=self.context_id)
        for key in opened:
            self._entries[key] = _Entry(self._database.connected)
        # A record that is opened and closed in one transaction is written once, as it ends.
        whole: dict[int, CloseRecord] = {}
        for one in operations:
            if type(one) is CloseRecord and one.key in self._entries:
                if one.key not in opened:
                    self._look_again(connection, one)
                self._measure(one, counters)
                if one.key in opened:
                    whole[one.key] = one
        for one in operations:
            if type(one) is Progress and one.response_id is not None:
                self._response_id = one.response_id
        ends = [one for one in operations if type(one) is EndCall]
        counters.opened = len(opened)
        counters.live += len(opened)
        if ended:
            counters.spend(ended, self._replaced(ends))
        seq = self._touch(connection, counters) if counters else 0
        if not any(type(one) is EndTurn for one in operations):
            self._fence(connection)
        left = list(ended)
        closed = {one.key for one in operations if type(one) is CloseRecord}
        for one in operations:
            match one:
                case Append() if one.key not in whole:
                    self._append(connection, one, ends=one.key in closed)
                case OpenRecord():
                    self._open(connection, one, seq, whole.get(one.key))
                    seq += 1
                case CloseRecord() if one.key in self._entries and one.key not in whole:
                    # Otherwise it could not be opened, so nothing of it was shown.
                    self._close(connection, one)
                case ReopenRecord():
                    self._reopen(connection, one)
                case SetLive():
                    self._set_live(connection, one)
                case Compact():
                    self._compact(connection, one)
                case Forget():
                    self._forget(one)
                case StartCall():
                    self._start_call(connection, one)
                case Progress() if not ends:
                    self._progress(connection, one)
                case EndCall():
                    news = [two for two in operations if type(two) is Progress]
                    self._end_call(connection, one, left.pop(0), news)
                case EndTurn():
                    self._end_turn(connection, one)

    def _touches_old(self, operations: list[Operation], opened: Container[int]) -> bool:
        """Whether rows are locked of records that others may be changing."""
        return any(
            type(one) in (SetLive, Compact)
            or (type(one) is CloseRecord and one.key in self._entries and one.key not in opened)
            for one in operations
        )

    def _touch(self, connection: Connection, counters: _Counters) -> int:
        touch = sql.TOUCH_SPENT if counters.spent else sql.TOUCH_CONTEXT
        row = touch.one(
            connection,
            context_id=self.context_id,
            opened=counters.opened,
            live=counters.live,
            tokens=counters.tokens,
            uncounted=counters.uncounted,
            total=counters.total,
            now=now_text(),
            **counters.spent,
        )
        if row is None:
            raise self._deleted()
        return int(row[0]) - counters.opened

    def _fence(self, connection: Connection) -> None:
        if sql.FENCE.one(connection, turn_id=self.turn_id, epoch=self._epoch) is None:
            raise self._lost(connection)

    def _lost(self, connection: Connection) -> TurnLost | ContextNotFound:
        if sql.CONTEXT.one(connection, context_id=self.context_id) is None:
            return self._deleted()
        return TurnLost(
            f"turn {self.turn_id} was taken over after its lease of {self.lease:g} s had run "
            "out; nothing more of it was written here",
            turn_id=self.turn_id,
        )

    def _deleted(self) -> ContextNotFound:
        return ContextNotFound(
            f"context {self.context_id} was deleted while turn {self.turn_id} was running"
        )

    # -- records -------------------------------------------------------------------------

    def _open(
        self, connection: Connection, operation: OpenRecord, seq: int, end: CloseRecord | None
    ) -> None:
        """Insert a record: as it begins, or as it *end*s when that is known already."""
        now = now_text()
        entry = self._entries[operation.key]
        partial = operation.partial if end is None else end.partial
        source: OpenRecord | CloseRecord = end or operation
        payload = None if end is None or end.payload is None else dump_json(end.payload)
        columns: dict[str, Any] = {
            "context_id": self.context_id,
            "content": source.content,
            "live": entry.live,
            "est_tokens": entry.tokens,
            "response_id": None if end is None else end.response_id,
            "streamed": True,
            "partial_response_id": self.turn_id if partial else None,
            "accumulated_tokens": entry.tokens if partial else None,
            "seq": seq,
            "turn_id": self.turn_id,
            "call_id": source.call_id,
            "name": source.name,
            "error": end is not None and end.error,
        }
        row = sql.INSERT_RECORD.one(
            connection,
            ts=now,
            source=int(operation.source),
            position=seq,
            payload=payload,
            checksum=checksum(source.content, payload),
            uncounted=entry.guess,
            **columns,
        )
        assert row is not None  # noqa: S101 - RETURNING gives the row that was inserted
        entry.record = Record(
            id=row[0],
            source=operation.source,
            timestamp=parse_time(now),
            payload=None if end is None else end.payload,
            **columns,
        )
        entry.reach = len(source.content)
        if end is not None or operation.source is RecordType.TOOL_OUTPUT:
            self._furthest = row[0]
        self.written.ids[operation.key] = row[0]
        if end is not None:
            self._keep(operation.key, entry)

    def _reopen(self, connection: Connection, operation: ReopenRecord) -> None:
        row = sql.RECORD.one(connection, record_id=operation.record_id)
        if row is None:
            raise StoreError(f"record {operation.record_id} of turn {self.turn_id} is gone")
        record = to_record(connection, row)
        entry = _Entry(self._database.connected)
        entry.record, entry.live = record, record.live
        entry.reach = len(record.content)
        entry.tokens, entry.guess = row[6], bool(row[19])
        self._entries[operation.key] = entry
        self.written.ids[operation.key] = record.id
        self.written.records[operation.key] = record

    def _append(self, connection: Connection, operation: Append, *, ends: bool) -> None:
        """Write what has arrived; *ends*: the same transaction closes the record."""
        entry = self._entries[operation.key]
        if entry.connected != self._database.connected and not ends:
            self._check_deltas(connection, entry)
        if entry.record.id < self._furthest:
            self._go_back(connection)
        self._furthest = entry.record.id
        sql.INSERT_DELTA.run(
            connection,
            record_id=entry.record.id,
            idx=entry.next_delta,
            delta=operation.text,
        )
        entry.next_delta += 1
        entry.reach += len(operation.text)

    def _check_deltas(self, connection: Connection, entry: _Entry) -> None:
        """See whether a server that was connected to anew still has what it had taken.

        Raises:
            StoreError: it has not: what follows would leave a gap.  The end has the whole text.
        """
        connected = self._database.connected
        found = sql.COUNT_DELTAS.scalar(connection, record_id=entry.record.id)
        if found != entry.next_delta:
            raise self._forgotten(entry.record.id)
        entry.connected = connected

    def _forgotten(self, record_id: int) -> StoreError:
        return StoreError(
            f"{self._database.location}: the server has lost some of record {record_id}, which it "
            "had taken; it seems to have crashed"
        )

    def _go_back(self, connection: Connection) -> None:
        """An earlier record grows again, as of two that take turns, or of a reply resumed.

        Who follows goes through the records in their order: from here on once more. Of those that
        the same transaction has yet to insert, nobody has seen anything.
        """
        before, self._attempt = self._attempt, next_attempt(self._attempt)
        found = [
            (record.id, self._entries[key].reach)
            for key, record in self.written.records.items()
            if record.source is not RecordType.TOOL_OUTPUT
        ]
        note_attempt(connection, self.turn_id, before, self._attempt, found)

    def _look_again(self, connection: Connection, operation: CloseRecord) -> None:
        """Take over what others have made of a record's place in what is sent."""
        entry = self._entries[operation.key]
        row = sql.PLACE.one(connection, record_id=entry.record.id)
        if row is not None and bool(row[0]) != entry.live:
            operation.live = entry.live = bool(row[0])

    def _measure(self, operation: CloseRecord, counters: _Counters) -> None:
        """Count the closed text, and put what that changes on *counters*."""
        entry = self._entries[operation.key]
        size, guess = measure(operation.content)
        counters.live += operation.live - entry.live
        counters.tokens += size * operation.live - entry.tokens * entry.live
        counters.uncounted += (guess and operation.live) - (entry.guess and entry.live)
        entry.tokens, entry.guess, entry.live = size, guess, operation.live

    def _closed(self, record: Record, operation: CloseRecord, entry: _Entry) -> Record:
        """*record* as *operation* leaves it."""
        partial_id = (record.partial_response_id or self.turn_id) if operation.partial else None
        return replace(
            record,
            content=operation.content,
            live=operation.live,
            est_tokens=entry.tokens,
            response_id=operation.response_id,
            partial_response_id=partial_id,
            accumulated_tokens=entry.tokens if operation.partial else None,
            call_id=operation.call_id,
            name=operation.name,
            payload=operation.payload,
            error=operation.error,
        )

    def _close(self, connection: Connection, operation: CloseRecord) -> None:
        entry = self._entries[operation.key]
        closed = self._closed(entry.record, operation, entry)
        payload = None if closed.payload is None else dump_json(closed.payload)
        done = sql.CLOSE_RECORD.run(
            connection,
            record_id=closed.id,
            content=closed.content,
            payload=payload,
            checksum=checksum(closed.content, payload),
            est_tokens=entry.tokens,
            uncounted=entry.guess,
            accumulated_tokens=closed.accumulated_tokens,
            response_id=closed.response_id,
            partial_response_id=closed.partial_response_id,
            live=closed.live,
            call_id=closed.call_id,
            name=closed.name,
            error=closed.error,
        )
        if done.rowcount != 1:
            raise self._forgotten(closed.id)
        if entry.next_delta:
            sql.FORGET_DELTAS.run(connection, record_id=closed.id)
        if closed.partial_response_id is not None and len(closed.content) < entry.reach:
            note_set_back(connection, self.turn_id, self._attempt, closed.id, entry.reach)
        entry.reach = len(closed.content)
        entry.next_delta = 0
        entry.record = closed
        self._keep(operation.key, entry)

    def _keep(self, key: int, entry: _Entry) -> None:
        """Show the turn its record as it stands."""
        record = defer_tokens(copy(entry.record)) if entry.guess else entry.record
        self.written.records[key] = record

    def _set_live(self, connection: Connection, operation: SetLive) -> None:
        by_id = {entry.record.id: entry for entry in self._entries.values()}
        for record_id in operation.record_ids:
            entry = by_id[record_id]
            row = sql.GIVE_UP.one(connection, record_id=record_id, live=operation.live)
            if row is None or entry.live == operation.live:
                continue
            sign = 1 if operation.live else -1
            counters = _Counters()
            counters.live, counters.tokens = sign, sign * row[0]
            counters.uncounted = sign * int(row[1])
            entry.live = operation.live
            self._touch(connection, counters)

    def _compact(self, connection: Connection, operation: Compact) -> None:
        summary, _ = compacting.write(connection, self.context_id, operation, self.turn_id)
        asides = compacting.account(
            connection, self.context_id, self.turn_id, operation.spent, "summary"
        )
        self._calls.update(asides)
        self.written.summary = summary
        if self._sent is not None:
            # What has left is known to this turn: it is no stranger's change.
            self._sent = self._live_before(connection, self._began_seq, self.turn_id)

    def _forget(self, operation: Forget) -> None:
        for key in operation.keys:
            entry = self._entries.pop(key)
            self._last_seq = max(self._last_seq, entry.record.seq)
            self.written.records.pop(key, None)
            self.written.ids.pop(key, None)

    # -- calls and the end ---------------------------------------------------------------

    def _start_call(self, connection: Connection, operation: StartCall) -> None:
        self._response_id = None
        self._sent_tokens = operation.sent or 0
        self._call_id = beginning.insert_call(connection, self.context_id, self.turn_id, operation)

    def _progress(self, connection: Connection, operation: Progress) -> None:
        if operation.sent is not None:
            self._sent_tokens = operation.sent
        sql.PROGRESS.run(connection, call_id=self._call_id, **_news([operation]))

    def _replaced(self, ends: list[EndCall]) -> list[Spent]:
        """What was estimated for calls which one of *ends* now counts for good."""
        if not any(one.replaces and one.usage is not None for one in ends):
            return []
        replaced = []
        for call_id, one in list(self._calls.items()):
            same = call_id != self._call_id and one.response_id == self._response_id
            if same and one.usage.estimated:
                replaced.append(one)
                self._calls[call_id] = Spent(Usage(), None, one.response_id)
                self._void.append(call_id)
        return replaced

    def _end_call(
        self, connection: Connection, operation: EndCall, one: Spent, news: list[Progress]
    ) -> None:
        usage, cost = one.usage, one.cost
        self._calls[self._call_id] = Spent(usage, cost, self._response_id)
        while self._void:
            sql.VOID_USAGE.run(connection, call_id=self._void.pop())
        sql.END_CALL.run(
            connection,
            call_id=self._call_id,
            finish_reason=operation.finish_reason,
            cost=None if cost is None else str(cost),
            ttft=operation.time_to_first_token,
            duration=operation.duration,
            error=operation.error,
            **_columns(usage),
            **_news(news),
        )
        written = self.written
        written.last_usage, written.last_cost = usage, cost
        written.usage, written.cost = together(self._calls.values())

    def _end_turn(self, connection: Connection, operation: EndTurn) -> None:
        done = sql.END_TURN.run(
            connection,
            turn_id=self.turn_id,
            epoch=self._epoch,
            state_=operation.state,
            ended=now_text(),
            error=operation.error,
        )
        if done.rowcount != 1:
            raise self._lost(connection)
        if operation.state in ("interrupted", "cancelled", "failed"):
            sql.NEVER_RAN.run(connection, turn_id=self.turn_id)
        if operation.chain_broken or operation.threading_id is not None:
            holds = operation.threading_id if self._saw_everything(connection) else None
            sql.THREADING.run(connection, context_id=self.context_id, response_id=holds)

    def _saw_everything(self, connection: Connection) -> bool:
        """Whether nobody wrote between what this turn sent and what it got back, or changed it."""
        if self._live_before(connection, self._began_seq, self.turn_id) != self._sent:
            return False
        own = [entry.record.seq for entry in self._entries.values()] + [self._last_seq]
        stranger = sql.STRANGERS.one(
            connection,
            context_id=self.context_id,
            since=self._began_seq,
            before=max(own),
            turn_id=self.turn_id,
        )
        return stranger is None

    def _live_before(self, connection: Connection, seq: int, turn_id: str) -> object:
        return sql.SENT.one(connection, context_id=self.context_id, since=seq, turn_id=turn_id)


def _columns(usage: Usage) -> dict[str, Any]:
    return {
        "input_tokens": usage.input_tokens,
        "output_tokens": usage.output_tokens,
        "cache_read_tokens": usage.cache_read_tokens,
        "cache_write_tokens": usage.cache_write_tokens,
        "reasoning_tokens": usage.reasoning_tokens,
        "usage_estimated": usage.estimated,
    }


def _news(progress: list[Progress]) -> dict[str, Any]:
    """What *progress* says together, the later over the earlier."""
    names = ("response_id", "cursor", "model", "manifest", "sent", "options")
    news: dict[str, Any] = dict.fromkeys(names)
    for one in progress:
        news["response_id"] = one.response_id or news["response_id"]
        news["cursor"] = one.cursor or news["cursor"]
        news["model"] = one.model or news["model"]
        news["sent"] = news["sent"] if one.sent is None else one.sent
        if one.manifest is not None:
            news["manifest"] = dump_json(to_ranges(one.manifest))
        if one.options is not None:
            news["options"] = dump_json(one.options)
    return news
