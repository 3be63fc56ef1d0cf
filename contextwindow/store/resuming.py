"""Giving up what a turn left unfinished."""

from __future__ import annotations

import sqlalchemy as sa

from contextwindow.errors import ConfigError
from contextwindow.records import Record
from contextwindow.store import beginning, writing
from contextwindow.store.engine import Database
from contextwindow.store.schema import records, turns
from contextwindow.store.statement import Statement

_bind = sa.bindparam

_UNFINISHED = Statement(
    sa.select(records.c.id)
    .where(records.c.turn_id == _bind("turn_id"))
    .where(records.c.partial_response_id.is_not(None))
    .order_by(records.c.seq)
)

_GIVE_UP = Statement(
    sa.update(records).where(records.c.id == _bind("record_id")).values(partial_response_id=None)
)

_CANCEL = Statement(
    sa.update(turns).where(turns.c.id == _bind("turn_id")).values(state="cancelled")
)


def discard(database: Database, context_id: str, turn_id: str) -> list[Record]:
    """Take a turn's unfinished records out of what is sent; ``""`` is the newest such turn.

    Raises:
        ConfigError: there is no such turn, or nothing of it is unfinished.
        TurnBusy: the context's turn is still running.
    """
    with database.write(boundary=True) as connection:
        writing.lock(connection, context_id)
        beginning.release(connection, context_id, database.now(connection))
        turn_id = beginning.resumable(connection, context_id, turn_id)
        ids = [row[0] for row in _UNFINISHED.all(connection, turn_id=turn_id)]
        if not ids:
            raise ConfigError(f"turn {turn_id} has left nothing unfinished")
        found = writing.set_live_within(connection, context_id, ids, False)
        # A damaged one stays as it is, for whoever reads it to be told.
        for record in found:
            _GIVE_UP.run(connection, record_id=record.id)
        _CANCEL.run(connection, turn_id=turn_id)
        return found
