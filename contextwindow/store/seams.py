"""Where the attempts at a turn begin in its records: what tells a follower what he has seen.

A reply that is resumed grows in the records that it left, and not always in the last one: a text
goes on, and the half of a tool call behind it is given up.  A reader who leaves in the middle of
a network read sets a record back that followers may have read to its end.  Both are noted, in the
transaction that makes them so: a row says how many characters an attempt found.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final

import sqlalchemy as sa

from contextwindow.follow import attempt_of
from contextwindow.records import Record, RecordType
from contextwindow.store.connection import Connection
from contextwindow.store.schema import seams, turns
from contextwindow.store.statement import Statement, insert_ignore

_bind = sa.bindparam

_MADE: Final = -1
"""Instead of a number of characters: the attempt made the record."""

NEWEST: Final[sa.ColumnElement[Any]] = sa.func.coalesce(
    sa.select(sa.func.max(seams.c.attempt))
    .where(seams.c.turn_id == turns.c.id)
    .where(seams.c.attempt >= turns.c.epoch * attempt_of(1))
    .correlate(turns)
    .scalar_subquery(),
    turns.c.epoch * attempt_of(1),
)
"""Of a turn: the attempt that runs, or that ran last."""

_NEWEST: Final = Statement(sa.select(NEWEST).where(turns.c.id == _bind("turn_id")))

_NOTE: Final = Statement(
    lambda dialect: insert_ignore(dialect, seams).values(
        {name: _bind(name) for name in ("turn_id", "attempt", "record_id", "start")}
    )
)

_SET_BACK: Final = Statement(
    sa.update(seams)
    .where(seams.c.turn_id == _bind("turn_id"))
    .where(seams.c.attempt == _bind("attempt"))
    .where(seams.c.record_id == _bind("record_id"))
    .values(reach=_bind("reach"))
)


def note_resume(connection: Connection, turn_id: str, epoch: int, turn: Sequence[Record]) -> None:
    """Note what a turn that is resumed has; before it is given its new *epoch*.

    Args:
        turn: its records in order, those left out that were given up.
    """
    last = max((at for at, one in enumerate(turn) if _is_output(one)), default=-1)
    found = [
        (one.id, _size(one))
        for at, one in enumerate(turn)
        # The last one always: it says which records are older than the attempt.
        if at > last or at == len(turn) - 1 or (_is_output(one) and one.partial_response_id)
    ]
    before = _NEWEST.scalar(connection, turn_id=turn_id)
    note_attempt(connection, turn_id, before, attempt_of(epoch), found)


def note_attempt(
    connection: Connection,
    turn_id: str,
    before: int,
    attempt: int,
    found: Iterable[tuple[int, int]],
) -> None:
    """Note what an attempt finds that follows the attempt *before*.

    Args:
        found: records with their characters; of a tool output 0: its tool was started, 1 or more:
            it had ended.
    """
    for number, size in found:
        for one, start in ((before, _MADE), (attempt, size)):
            _NOTE.run(connection, turn_id=turn_id, attempt=one, record_id=number, start=start)


def note_set_back(
    connection: Connection, turn_id: str, attempt: int, record_id: int, reach: int
) -> None:
    """Note that a record reached *reach* characters before the attempt set it back."""
    _NOTE.run(connection, turn_id=turn_id, attempt=attempt, record_id=record_id, start=_MADE)
    _SET_BACK.run(connection, turn_id=turn_id, attempt=attempt, record_id=record_id, reach=reach)


def _size(record: Record) -> int:
    if not _is_output(record):
        return len(record.content)
    return 0 if record.partial_response_id else max(1, len(record.content))


def _is_output(record: Record) -> bool:
    return record.source is RecordType.TOOL_OUTPUT
