"""Who holds a turn, and what becomes of a turn whose holder is gone."""

from __future__ import annotations

import os
import socket
import time
import uuid
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

import sqlalchemy as sa

from contextwindow.errors import RecordCorrupt
from contextwindow.models.steps import UNKNOWN_OUTCOME
from contextwindow.records import RecordType, Usage
from contextwindow.store.connection import Connection
from contextwindow.store.ledger_sql import FORGET_DELTAS, INSERT_DELTA, NEVER_RAN
from contextwindow.store.rows import measure, unfolded, whole_text
from contextwindow.store.schema import calls, contexts, record_deltas, records, turns
from contextwindow.store.spending import Spent, count
from contextwindow.store.statement import Statement
from contextwindow.store.values import checksum, now_text

_bind = sa.bindparam

_RUNNING = (
    sa.select(
        turns.c.id,
        turns.c.owner,
        turns.c.heartbeat,
        turns.c.expires,
        turns.c.started,
        turns.c.epoch,
    )
    .where(turns.c.context_id == _bind("context_id"))
    .where(turns.c.state == sa.literal_column("'running'"))
)
RUNNING = Statement(_RUNNING)

RUNNING_ALONE = Statement(
    # A write of the holder may be under way on PostgreSQL; SQLite has let nobody else in.
    lambda dialect: _RUNNING.with_for_update() if dialect == "postgresql" else _RUNNING
)

_PARTIALS = Statement(
    sa.select(
        records.c.id,
        records.c.content,
        records.c.payload,
        records.c.live,
        records.c.est_tokens,
        records.c.source,
        records.c.uncounted,
        records.c.ts,
        records.c.checksum,
    )
    .where(records.c.turn_id == _bind("turn_id"))
    .where(records.c.partial_response_id.is_not(None))
    .order_by(records.c.seq)
)

_FOLD = Statement(
    sa.update(records)
    .where(records.c.id == _bind("record_id"))
    .values(
        content=_bind("content"),
        checksum=_bind("checksum"),
        est_tokens=_bind("est_tokens"),
        accumulated_tokens=_bind("est_tokens"),
        uncounted=_bind("uncounted"),
        live=_bind("live"),
        error=_bind("error"),
    )
)

_SETTLE_TURN = Statement(
    sa.update(turns)
    .where(turns.c.id == _bind("turn_id"))
    .values(state="interrupted", ended=_bind("ended"), error=_bind("error"))
)

_OPEN_CALL = Statement(
    sa.select(calls.c.id, calls.c.started, calls.c.sent_tokens)
    .where(calls.c.turn_id == _bind("turn_id"))
    .where(calls.c.duration.is_(None))
    .where(calls.c.error.is_(None))
    .order_by(calls.c.id.desc())
    .limit(1)
)

_SETTLE_CALL = Statement(
    sa.update(calls)
    .where(calls.c.id == _bind("call_id"))
    .values(
        error=_bind("error"),
        input_tokens=_bind("input_tokens"),
        output_tokens=_bind("output_tokens"),
        usage_estimated=True,
    )
)

# What the model had written to its end.
_WRITTEN = Statement(
    sa.select(sa.func.coalesce(sa.func.sum(records.c.est_tokens), 0))
    .where(records.c.turn_id == _bind("turn_id"))
    .where(records.c.ts >= _bind("since"))
    .where(records.c.partial_response_id.is_(None))
    .where(
        sa.or_(
            records.c.source == int(RecordType.MODEL_RESPONSE),
            records.c.source == int(RecordType.REASONING),
            records.c.source == int(RecordType.TOOL_CALL),
        )
    )
)

_CONTENT = Statement(
    sa.select(
        records.c.content,
        sa.select(sa.func.coalesce(sa.func.max(record_deltas.c.idx), -1) + 1)
        .where(record_deltas.c.record_id == records.c.id)
        .scalar_subquery(),
    )
    .where(records.c.id == _bind("record_id"))
    .where(records.c.turn_id == _bind("turn_id"))
    .where(records.c.partial_response_id.is_not(None))
)

_COUNT = Statement(
    sa.update(contexts)
    .where(contexts.c.id == _bind("context_id"))
    .values(
        live_count=contexts.c.live_count + _bind("live"),
        live_tokens=contexts.c.live_tokens + _bind("tokens"),
        uncounted=contexts.c.uncounted + _bind("uncounted"),
    )
)


@dataclass(slots=True)
class Unsaved:
    """What a turn had delivered when its end could not be written.

    Attributes:
        location: of its database.
        context_id: that it ran on.
        texts: whole texts of its open records, by record.
    """

    location: str
    context_id: str
    texts: dict[int, str] = field(default_factory=dict)


_MOST_GIVEN_UP: Final = 1000

given_up: Final[dict[tuple[str, int], Unsaved]] = {}
"""Turns, with their epoch, that this process has left without being able to write their end.

Nobody has to wait for their lease.  What they had delivered is written when they are settled.
"""

_WALL_CLOCK: Final = 1e9
"""Seconds: no machine has been up for 31 years, and no server's clock stands before 2001."""

_seen: Final[dict[str, tuple[float, float]]] = {}
"""Turns whose last sign of life lies in the future: that sign, and when it was seen first."""

DIED: Final = "its process ended before the turn did"


# A child has left none of its parent's turns.
os.register_at_fork(after_in_child=given_up.clear)


def leave(turn_id: str, epoch: int, unsaved: Unsaved) -> None:
    """Note that nobody drives a turn any more whose end could not be written."""
    while len(given_up) >= _MOST_GIVEN_UP:
        del given_up[next(iter(given_up))]
    given_up[turn_id, epoch] = unsaved


def save(connection: Connection, turn_id: str, epoch: int) -> None:
    """Write what a turn had delivered when the database refused it, within a transaction."""
    unsaved = given_up.get((turn_id, epoch))
    for record_id, text in unsaved.texts.items() if unsaved is not None else ():
        row = _CONTENT.one(connection, record_id=record_id, turn_id=turn_id)
        if row is None:
            continue
        try:
            stored = row[0] + unfolded(connection, record_id)
        except RecordCorrupt:
            continue
        if text.startswith(stored) and len(text) > len(stored):
            INSERT_DELTA.run(connection, record_id=record_id, idx=row[1], delta=text[len(stored) :])


def owner() -> str:
    """This process, as ``host/pid/start``: no other process has had or will have that name."""
    return _owner(os.getpid())


@lru_cache(maxsize=2)
def _owner(pid: int) -> str:
    return f"{_host()}/{pid}/{_start_of(pid) or uuid.uuid4().hex[:8]}"


@lru_cache(maxsize=1)
def _host() -> str:
    # Two containers may share a host name; their process numbers mean different processes.
    try:
        space = os.readlink("/proc/self/ns/pid").strip("pid:[]")
    except OSError:
        space = ""
    return f"{socket.gethostname()}:{space}" if space else socket.gethostname()


def _start_of(pid: int) -> str:
    """When process *pid* was started, in the kernel's ticks; ``""`` where that is not known."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    except (OSError, IndexError):
        return ""
    return "" if fields[0] in "ZX" else fields[19]


def is_gone(holder: str) -> bool:
    """Whether *holder* is surely dead: a process of this host that is not there any more.

    Of another host nothing can be said: its lease has to run out.
    """
    host, _, rest = holder.rpartition("/")[0].rpartition("/")
    start = holder.rpartition("/")[2]
    if host != _host() or not rest.isdigit():
        return False
    if holder == owner():
        return False
    pid = int(rest)
    if Path("/proc/self/stat").exists():
        return _start_of(pid) != start
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except OSError:
        return False
    return pid == os.getpid()


def is_dead(connection: Connection, context_id: str, now: float) -> bool:
    """Whether the turn that runs on a context has nobody who drives it."""
    running = RUNNING.one(connection, context_id=context_id)
    return running is not None and dead(connection.dialect, running, now)


def dead(dialect: str, running: tuple[Any, ...], now: float) -> bool:
    """Whether a row of ``RUNNING`` is of a turn that nobody drives any more."""
    turn_id, holder, heartbeat, expires, _, epoch = running
    return (
        (turn_id, epoch) in given_up
        or is_gone(holder)
        or has_run_out(dialect, turn_id, heartbeat, expires, now)
    )


def has_run_out(dialect: str, turn_id: str, heartbeat: float, expires: float, now: float) -> bool:
    """Whether the lease of a turn is over.

    Args:
        heartbeat, expires: of the lease, as stored.
        now: by the clock that all users of the database share (``Database.now``).
    """
    if expires > _WALL_CLOCK > now:
        # Written before revision 0004, when SQLite's leases were in the time of the day.
        return expires < time.time()
    if expires < now:
        return True
    if heartbeat <= now + 1.0:
        return False
    if dialect == "sqlite":
        # Its clock never goes back while the machine runs: the machine was started anew.
        return True
    # The server's clock was set back.  Who lives shows it within a sixth of its lease; who does
    # not would otherwise hold it until the clock is there again.
    return _stood_still(turn_id, heartbeat, expires - heartbeat)


def _stood_still(turn_id: str, heartbeat: float, seconds: float) -> bool:
    """Whether the turn has shown no other sign of life for so long, by our own clock."""
    moment = time.monotonic()
    known, since = _seen.get(turn_id, (None, moment))
    if known != heartbeat:
        if len(_seen) > 10_000:
            _seen.clear()
        _seen[turn_id] = (heartbeat, moment)
        return False
    return moment - since > seconds


def settle(connection: Connection, context_id: str, turn_id: str, error: str = DIED) -> None:
    """Fold what a dead turn has left and mark it ``interrupted``; within a transaction.

    Nothing that was committed is lost.  Its usage is estimated from the texts, and marked so.  Of
    its tools it is noted which may have run.
    """
    live = grown = guessed = output = 0
    call = _OPEN_CALL.one(connection, turn_id=turn_id)
    for row in _PARTIALS.all(connection, turn_id=turn_id):
        record_id, content, payload, was_live, old, source, was_guess, began, crc = row
        unknown = source == RecordType.TOOL_OUTPUT
        try:
            text = whole_text(connection, record_id, content, payload, crc)
        except RecordCorrupt:
            # Left as it is: a checksum of what it is now would make it right.
            continue
        if unknown:
            text = UNKNOWN_OUTCOME
        size, guess = measure(text)
        # No provider takes half a thought or half a call back; half a reply it does.
        stays = bool(was_live) and (unknown or source == RecordType.MODEL_RESPONSE)
        if call is not None and not unknown:
            # What an earlier call had brought of it was counted when that one ended.
            output += size if began >= call[1] else max(0, size - old)
        live += stays - bool(was_live)
        grown += (size if stays else 0) - (old if was_live else 0)
        guessed += (guess and stays) - (bool(was_guess) and bool(was_live))
        _FOLD.run(
            connection,
            record_id=record_id,
            content=text,
            checksum=checksum(text, payload),
            est_tokens=size,
            uncounted=guess,
            live=stays,
            error=unknown,
        )
        FORGET_DELTAS.run(connection, record_id=record_id)
    NEVER_RAN.run(connection, turn_id=turn_id)
    _COUNT.run(connection, context_id=context_id, live=live, tokens=grown, uncounted=guessed)
    if call is not None:
        output += _WRITTEN.scalar(connection, turn_id=turn_id, since=call[1])
        spent = Spent(Usage(call[2] or 0, output, estimated=True))
        _SETTLE_CALL.run(
            connection,
            call_id=call[0],
            error=error,
            input_tokens=spent.usage.input_tokens,
            output_tokens=output,
        )
        count(connection, context_id, spent.counters(), total=spent.usage.total_tokens)
    _SETTLE_TURN.run(connection, turn_id=turn_id, ended=now_text(), error=error)
