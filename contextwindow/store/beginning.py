"""Taking the lease of a turn: the one transaction before money is spent."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final

import sqlalchemy as sa

from contextwindow.effects import BeginTurn, Begun, StartCall
from contextwindow.errors import ConfigError, ContextNotFound, TurnBusy
from contextwindow.records import Record, RecordType, Usage
from contextwindow.store import leases
from contextwindow.store.connection import Connection
from contextwindow.store.rows import (
    CALL_COLUMNS,
    LIVE,
    RECORD_COLUMNS,
    to_call,
    to_ranges,
    to_record,
)
from contextwindow.store.schema import calls, contexts, records, turns
from contextwindow.store.seams import note_resume
from contextwindow.store.spending import Spent
from contextwindow.store.statement import Statement
from contextwindow.store.values import dump_json, now_text, parse_time

_bind = sa.bindparam

_LIVE_TOKENS = Statement(
    sa.select(contexts.c.live_tokens).where(contexts.c.id == _bind("context_id"))
)

RESUMABLE: Final = ("interrupted", "cancelled", "failed")

_NEW_EPOCH = Statement(
    sa.update(contexts)
    .where(contexts.c.id == _bind("context_id"))
    .values(epoch=contexts.c.epoch + 1)
    .returning(
        contexts.c.epoch,
        contexts.c.use_server_side_threading,
        contexts.c.last_response_id,
        contexts.c.live_tokens,
        contexts.c.next_seq,
    )
)

_INSERT_TURN = Statement(
    sa.insert(turns).values(
        id=_bind("turn_id"),
        context_id=_bind("context_id"),
        state="running",
        owner=_bind("owner"),
        epoch=_bind("epoch"),
        heartbeat=_bind("now"),
        expires=_bind("expires"),
        started=_bind("started"),
    )
)

_REOPEN_TURN = Statement(
    sa.update(turns)
    .where(turns.c.id == _bind("turn_id"))
    .values(
        state="running",
        owner=_bind("owner"),
        epoch=_bind("epoch"),
        heartbeat=_bind("now"),
        expires=_bind("expires"),
        ended=None,
        error=None,
    )
)

_ANSWERED = Statement(
    sa.update(turns)
    .where(turns.c.context_id == _bind("context_id"))
    .where(turns.c.state == sa.literal_column("'awaiting'"))
    .values(state="complete")
)

_TURN = Statement(
    sa.select(turns.c.id, turns.c.state)
    .where(turns.c.context_id == _bind("context_id"))
    .where(turns.c.id == _bind("turn_id"))
)

# A turn that failed before anything arrived is resumed only when it is named.
_NEWEST_OPEN = Statement(
    sa.select(turns.c.id, turns.c.state)
    .where(turns.c.context_id == _bind("context_id"))
    .where(
        sa.or_(
            turns.c.state == sa.literal_column("'interrupted'"),
            sa.and_(
                turns.c.state == sa.literal_column("'cancelled'"),
                sa.exists().where(
                    records.c.turn_id == turns.c.id,
                    records.c.partial_response_id.is_not(None),
                ),
            ),
        )
    )
    # Numbers of calls only grow; a clock may be set back.
    .order_by(
        sa.func.coalesce(
            sa.select(sa.func.min(calls.c.id))
            .where(calls.c.turn_id == turns.c.id)
            .scalar_subquery(),
            0,
        ).desc(),
        turns.c.started.desc(),
        turns.c.epoch.desc(),
    )
    .limit(1)
)

_OWN = Statement(
    sa.select(*RECORD_COLUMNS).where(records.c.turn_id == _bind("turn_id")).order_by(records.c.seq)
)

_CALLS = Statement(
    sa.select(*CALL_COLUMNS).where(calls.c.turn_id == _bind("turn_id")).order_by(calls.c.id)
)

_INSERT_CALL = Statement(
    sa.insert(calls)
    .values(
        turn_id=_bind("turn_id"),
        context_id=_bind("context_id"),
        provider=_bind("provider"),
        model=_bind("model"),
        started=_bind("started"),
        manifest=_bind("manifest"),
        options=_bind("options"),
        sent_tokens=_bind("sent"),
    )
    .returning(calls.c.id)
)


@dataclass(slots=True)
class Started:
    """A lease that was taken, and what the ledger has to know.

    Attributes:
        sent_tokens: of the first call, as counted here.
        settled: whether a dead turn was settled first.
        calls: what the turn's earlier calls have used, by their numbers.
    """

    begun: Begun
    epoch: int
    call_id: int
    sent_tokens: int
    next_seq: int
    settled: bool = False
    calls: dict[int, Spent] = field(default_factory=dict)


def begin(
    connection: Connection, context_id: str, wanted: BeginTurn, now: float, lease: float
) -> Started:
    """Take the lease of *context_id*, settling a dead turn that still holds it.

    Raises:
        TurnBusy: a live turn holds it.
        ContextNotFound: there is no such context any more.
        ConfigError: the turn to go on with does not exist, or has ended well.
    """
    row = _NEW_EPOCH.one(connection, context_id=context_id)
    if row is None:
        raise ContextNotFound(f"context {context_id} was deleted")
    epoch, threaded, last_response_id, live_tokens, next_seq = row
    settled = release(connection, context_id, now)
    if settled:
        live_tokens = _LIVE_TOKENS.scalar(connection, context_id=context_id)
    lasting = {"owner": leases.owner(), "epoch": epoch, "now": now, "expires": now + lease}
    if wanted.resume is None:
        turn_id = wanted.turn_id
        _INSERT_TURN.run(
            connection, turn_id=turn_id, context_id=context_id, started=now_text(), **lasting
        )
        begun = Begun(turn_id, context_id, _records(connection, LIVE, context_id=context_id))
        earlier: dict[int, Spent] = {}
        if begun.records and begun.records[-1].source == RecordType.TOOL_OUTPUT:
            _ANSWERED.run(connection, context_id=context_id)
    else:
        turn_id = resumable(connection, context_id, wanted.resume)
        begun, earlier = _reopened(connection, context_id, turn_id)
        note_resume(connection, turn_id, epoch, [*begun.whole, *begun.own])
        _REOPEN_TURN.run(connection, turn_id=turn_id, **lasting)
    begun.threaded, begun.last_response_id = bool(threaded), last_response_id
    manifest = [record.id for record in begun.records]
    sent = live_tokens + wanted.call.beside
    asked = wanted.call
    call = StartCall(asked.provider, asked.model, asked.options, manifest, sent)
    call_id = insert_call(connection, context_id, turn_id, call)
    return Started(begun, epoch, call_id, sent, next_seq, settled, earlier)


def is_running(connection: Connection, context_id: str) -> bool:
    """Whether some turn holds the lease of *context_id*."""
    return leases.RUNNING.one(connection, context_id=context_id) is not None


def release(connection: Connection, context_id: str, now: float) -> bool:
    """Settle a dead turn that still holds the lease of *context_id*; whether there was one.

    Raises:
        TurnBusy: the holder lives, or may live.
    """
    running = leases.RUNNING.one(connection, context_id=context_id)
    if running is None:
        return False
    if leases.dead(connection.dialect, running, now):
        # Its holder may have been in the middle of a write, and has ended the turn by now.
        running = leases.RUNNING_ALONE.one(connection, context_id=context_id)
        if running is None:
            return False
    turn_id, owner, _, _, started, epoch = running
    if not leases.dead(connection.dialect, running, now):
        since = parse_time(started)
        raise TurnBusy(
            f"turn {turn_id} has been running on this context since {since:%Y-%m-%d %H:%M:%S} "
            f"UTC, held by {owner}; wait for it (on_busy='wait') or stop it "
            "(on_busy='cancel_running')",
            turn_id=turn_id,
            owner=owner,
            since=since,
        )
    leases.save(connection, turn_id, epoch)
    leases.settle(connection, context_id, turn_id)
    return True


def insert_call(connection: Connection, context_id: str, turn_id: str, call: StartCall) -> int:
    """The number of a new call."""
    row = _INSERT_CALL.one(
        connection,
        turn_id=turn_id,
        context_id=context_id,
        provider=call.provider,
        model=call.model,
        started=now_text(),
        manifest=dump_json(to_ranges(call.manifest or [])),
        options=dump_json(call.options),
        sent=call.sent,
    )
    assert row is not None  # noqa: S101 - RETURNING gives the row that was inserted
    return int(row[0])


def resumable(connection: Connection, context_id: str, turn_id: str) -> str:
    """Id of a turn that can be resumed; ``""`` asks for the newest.

    Raises:
        ConfigError: there is none, or it is in another state.
    """
    if not turn_id:
        row = _NEWEST_OPEN.one(connection, context_id=context_id)
        if row is None:
            raise ConfigError("nothing to resume: no turn of this context was interrupted")
        return str(row[0])
    row = _TURN.one(connection, context_id=context_id, turn_id=turn_id)
    if row is None:
        raise ConfigError(f"this context has no turn {turn_id!r}; interrupted() lists what it has")
    if row[1] not in RESUMABLE:
        raise ConfigError(f"turn {turn_id} is {row[1]}: there is nothing to resume")
    return turn_id


def _reopened(
    connection: Connection, context_id: str, turn_id: str
) -> tuple[Begun, dict[int, Spent]]:
    """What an earlier attempt at the turn has left."""
    turn = _records(connection, _OWN, turn_id=turn_id)
    last_output = max((r.seq for r in turn if r.source == RecordType.TOOL_OUTPUT), default=0)
    kept = [r for r in turn if r.live or r.partial_response_id is not None]
    own = [r for r in kept if r.seq > last_output]
    whole = [r for r in kept if r.seq <= last_output]
    mine = {record.id for record in own}
    live = _records(connection, LIVE, context_id=context_id)
    # What was written after the part that broke off comes after it, but for what stands in the
    # place of what came before.
    first = min((record.seq for record in own), default=None)
    anywhere = (RecordType.SYSTEM_PROMPT, RecordType.SUMMARY)
    before = [
        r
        for r in live
        if r.id not in mine and (first is None or r.seq < first or r.source in anywhere)
    ]
    earlier: dict[int, Spent] = {}
    last: tuple[str | None, str | None] = (None, None)
    for row in _CALLS.all(connection, turn_id=turn_id):
        call = to_call(row)
        earlier[call.id] = Spent(call.usage or Usage(), call.cost, call.response_id)
        # A reply that ended well, its tools under way, is not read again.
        cut = call.error is not None or call.finish_reason in (None, "cancelled")
        last = (call.response_id, call.cursor) if cut else (None, None)
    begun = Begun(
        turn_id,
        context_id,
        before,
        own=own,
        whole=whole,
        response_id=last[0],
        cursor=last[1],
    )
    return begun, earlier


def _records(connection: Connection, statement: Statement, **params: Any) -> list[Record]:
    return [to_record(connection, row) for row in statement.all(connection, **params)]
