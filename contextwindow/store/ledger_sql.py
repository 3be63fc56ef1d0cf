"""The statements that a running turn writes itself with."""

from __future__ import annotations

from typing import Final

import sqlalchemy as sa

from contextwindow.records import RecordType
from contextwindow.store.rows import RECORD_COLUMNS
from contextwindow.store.schema import (
    calls,
    cancellations,
    contexts,
    record_deltas,
    records,
    turns,
)
from contextwindow.store.spending import COUNTERS
from contextwindow.store.statement import Statement

_bind = sa.bindparam

_TOUCH = (
    sa.update(contexts)
    .where(contexts.c.id == _bind("context_id"))
    .values(
        next_seq=contexts.c.next_seq + _bind("opened"),
        record_count=contexts.c.record_count + _bind("opened"),
        live_count=contexts.c.live_count + _bind("live"),
        live_tokens=contexts.c.live_tokens + _bind("tokens"),
        uncounted=contexts.c.uncounted + _bind("uncounted"),
        total_tokens=contexts.c.total_tokens + _bind("total"),
        last_activity=_bind("now"),
    )
    .returning(contexts.c.next_seq)
)
TOUCH_CONTEXT = Statement(_TOUCH)
TOUCH_SPENT = Statement(_TOUCH.values({name: contexts.c[name] + _bind(name) for name in COUNTERS}))

QUEUE = Statement(
    sa.select(contexts.c.id).where(contexts.c.id == _bind("context_id")).with_for_update()
)

CONTEXT = Statement(sa.select(contexts.c.id).where(contexts.c.id == _bind("context_id")))

FENCE = Statement(
    lambda dialect: (
        sa.select(turns.c.id)
        .where(turns.c.id == _bind("turn_id"))
        .where(turns.c.epoch == _bind("epoch"))
        .where(turns.c.state == sa.literal_column("'running'"))
        # SQLite's write transaction keeps everybody out; PostgreSQL needs the row locked.
        .with_for_update()
        if dialect == "postgresql"
        else sa.select(turns.c.id)
        .where(turns.c.id == _bind("turn_id"))
        .where(turns.c.epoch == _bind("epoch"))
        .where(turns.c.state == sa.literal_column("'running'"))
    )
)

RENEW = Statement(
    sa.update(turns)
    .where(turns.c.id == _bind("turn_id"))
    .where(turns.c.epoch == _bind("epoch"))
    .where(turns.c.state == sa.literal_column("'running'"))
    .values(
        heartbeat=_bind("now"),
        # Who was asked to stop and does not is fenced when his lease ends.
        expires=sa.case(
            (
                sa.exists()
                .where(cancellations.c.turn_id == turns.c.id)
                .where(cancellations.c.epoch == turns.c.epoch)
                .correlate(turns),
                turns.c.expires,
            ),
            else_=_bind("expires", type_=sa.Double),
        ),
    )
)

END_TURN = Statement(
    sa.update(turns)
    .where(turns.c.id == _bind("turn_id"))
    .where(turns.c.epoch == _bind("epoch"))
    .where(turns.c.state == sa.literal_column("'running'"))
    .values(state=_bind("state_"), ended=_bind("ended"), error=_bind("error"))
)

INSERT_RECORD = Statement(
    sa.insert(records)
    .values(
        {
            column: _bind(column.name)
            for column in records.c
            if column.name not in ("id", "idempotency_key", "pinned", "attached")
        }
    )
    .returning(records.c.id)
)

INSERT_DELTA = Statement(
    sa.insert(record_deltas).values(
        record_id=_bind("record_id"), idx=_bind("idx"), delta=_bind("delta")
    )
)

COUNT_DELTAS = Statement(
    sa.select(sa.func.count()).where(record_deltas.c.record_id == _bind("record_id"))
)

FORGET_DELTAS = Statement(
    sa.delete(record_deltas).where(record_deltas.c.record_id == _bind("record_id"))
)

CLOSE_RECORD = Statement(
    sa.update(records)
    .where(records.c.id == _bind("record_id"))
    .values(
        content=_bind("content"),
        payload=_bind("payload"),
        checksum=_bind("checksum"),
        est_tokens=_bind("est_tokens"),
        uncounted=_bind("uncounted"),
        accumulated_tokens=_bind("accumulated_tokens"),
        response_id=_bind("response_id"),
        partial_response_id=_bind("partial_response_id"),
        live=_bind("live"),
        call_id=_bind("call_id"),
        name=_bind("name"),
        error=_bind("error"),
    )
)

GIVE_UP = Statement(
    sa.update(records)
    .where(records.c.id == _bind("record_id"))
    .values(
        live=_bind("live"),
        partial_response_id=None,
        # That it has a count and is no partial tells it from a record that was compacted.
        accumulated_tokens=sa.func.coalesce(records.c.accumulated_tokens, records.c.est_tokens),
    )
    .returning(records.c.est_tokens, records.c.uncounted)
)

RECORD = Statement(sa.select(*RECORD_COLUMNS).where(records.c.id == _bind("record_id")))

_NEWS: Final = {
    **{
        name: sa.func.coalesce(_bind(name, type_=sa.Text), calls.c[name])
        for name in ("response_id", "cursor", "model", "manifest", "options")
    },
    "sent_tokens": sa.func.coalesce(_bind("sent", type_=sa.BigInteger), calls.c.sent_tokens),
}

END_CALL = Statement(
    sa.update(calls)
    .where(calls.c.id == _bind("call_id"))
    .values(
        finish_reason=_bind("finish_reason"),
        input_tokens=_bind("input_tokens"),
        output_tokens=_bind("output_tokens"),
        cache_read_tokens=_bind("cache_read_tokens"),
        cache_write_tokens=_bind("cache_write_tokens"),
        reasoning_tokens=_bind("reasoning_tokens"),
        usage_estimated=_bind("usage_estimated"),
        cost=_bind("cost"),
        ttft=_bind("ttft"),
        duration=_bind("duration"),
        error=_bind("error"),
        **_NEWS,
    )
)

VOID_USAGE = Statement(
    sa.update(calls)
    .where(calls.c.id == _bind("call_id"))
    .values(
        input_tokens=0,
        output_tokens=0,
        cache_read_tokens=0,
        cache_write_tokens=0,
        reasoning_tokens=0,
        usage_estimated=False,
        cost=None,
    )
)

PROGRESS = Statement(sa.update(calls).where(calls.c.id == _bind("call_id")).values(**_NEWS))

# A call that has no output record when its turn ends badly was never handed to its tool.
NEVER_RAN = Statement(
    sa.update(records)
    .where(records.c.turn_id == _bind("turn_id"))
    .where(records.c.source == int(RecordType.TOOL_CALL))
    .where(
        ~sa.exists().where(
            (answer := records.alias("answer")).c.turn_id == records.c.turn_id,
            answer.c.source == int(RecordType.TOOL_OUTPUT),
            answer.c.call_id == records.c.call_id,
            answer.c.seq > records.c.seq,
        )
    )
    .values(error=True)
)

THREADING = Statement(
    sa.update(contexts)
    .where(contexts.c.id == _bind("context_id"))
    .values(last_response_id=_bind("response_id"))
)

PLACE = Statement(
    lambda dialect: (
        sa.select(records.c.live).where(records.c.id == _bind("record_id")).with_for_update()
        if dialect == "postgresql"
        else sa.select(records.c.live).where(records.c.id == _bind("record_id"))
    )
)

STRANGERS = Statement(
    sa.select(records.c.id)
    .where(records.c.context_id == _bind("context_id"))
    .where(records.c.seq >= _bind("since"))
    .where(records.c.seq < _bind("before"))
    .where(sa.or_(records.c.turn_id.is_(None), records.c.turn_id != _bind("turn_id")))
    .limit(1)
)

# Two numbers that change when a record is taken out of what was sent, or put back into it.
SENT = Statement(
    sa.select(sa.func.count(), sa.func.coalesce(sa.func.sum(records.c.id), 0))
    .where(records.c.context_id == _bind("context_id"))
    .where(records.c.live)
    .where(records.c.seq < _bind("since"))
    .where(sa.or_(records.c.turn_id.is_(None), records.c.turn_id != _bind("turn_id")))
)
