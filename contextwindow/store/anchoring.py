"""What the next call will send, by what the provider has counted of the last one."""

from __future__ import annotations

from typing import Any, Final

import sqlalchemy as sa

from contextwindow.compaction import AROUND
from contextwindow.records import RecordType
from contextwindow.store.connection import Connection
from contextwindow.store.rows import LIVE_ORDER, from_ranges
from contextwindow.store.schema import calls, records, turns
from contextwindow.store.statement import Statement
from contextwindow.store.values import load_json

_bind = sa.bindparam

_SPOKEN: Final = frozenset({RecordType.MODEL_RESPONSE, RecordType.REASONING, RecordType.TOOL_CALL})

# A call without records of the conversation is a summary's; one that sent nothing read a reply on.
_LAST_COUNTED = Statement(
    sa.select(
        calls.c.turn_id,
        calls.c.input_tokens,
        calls.c.output_tokens,
        calls.c.reasoning_tokens,
        calls.c.manifest,
    )
    .where(
        calls.c.turn_id.in_(sa.select(turns.c.id).where(turns.c.context_id == _bind("context_id")))
    )
    .where(calls.c.input_tokens > 0)
    .where(~calls.c.usage_estimated)
    .where(calls.c.sent_tokens > 0)
    .where(calls.c.manifest != sa.literal_column("'[]'"))
    .order_by(calls.c.id.desc())
    .limit(1)
)

_LIVE = Statement(
    sa.select(records.c.id, records.c.source, records.c.turn_id, records.c.est_tokens)
    .where(records.c.context_id == _bind("context_id"))
    .where(records.c.live)
    .order_by(*LIVE_ORDER)
)

_SIZE = Statement(sa.select(records.c.est_tokens).where(records.c.id == _bind("record_id")))


def anchored(connection: Connection, context_id: str) -> tuple[int, int] | None:
    """Tokens of the next call that the provider has counted, and those that are estimated.

    None where it has counted no call of the context.
    """
    call = _LAST_COUNTED.one(connection, context_id=context_id)
    if call is None:
        return None
    turn_id, sent, received, reasoned, manifest = call
    was_sent = set(from_ranges(load_json(manifest)))
    live = _LIVE.all(connection, context_id=context_id)
    left = was_sent.difference(row[0] for row in live)
    new = [row for row in live if row[0] not in was_sent]
    reply, since = _parted(new, turn_id)
    estimated = sum(row[3] + AROUND for row in since)
    if any(row[1] != RecordType.REASONING for row in reply):
        # Of its reasoning a provider is sent back what it wants, which is not what it counted.
        sent += max(0, (received or 0) - (reasoned or 0))
        estimated += sum(row[3] for row in reply if row[1] == RecordType.REASONING)
    if not left:
        return sent, estimated
    gone = sum((_SIZE.scalar(connection, record_id=number) or 0) + AROUND for number in left)
    return 0, max(sent - gone, 0) + estimated


def _parted(new: list[tuple[Any, ...]], turn_id: str) -> tuple[list[Any], list[Any]]:
    """What a call has answered, and what came behind that."""
    count = 0
    for _, source, turn, _ in new:
        if turn != turn_id or source not in _SPOKEN:
            break
        count += 1
    return new[:count], new[count:]
