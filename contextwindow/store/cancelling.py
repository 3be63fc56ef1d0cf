"""Asking a running turn to stop, wherever it runs."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Final

import sqlalchemy as sa

from contextwindow.store import leases
from contextwindow.store.connection import Connection
from contextwindow.store.engine import Database
from contextwindow.store.schema import cancellations, turns
from contextwindow.store.statement import Statement, insert_ignore
from contextwindow.store.values import now_text

if TYPE_CHECKING:
    from contextwindow.store.ledger import TurnLedger

_bind = sa.bindparam

_RUNNING = turns.c.state == sa.literal_column("'running'")

_ASK = Statement(
    lambda dialect: insert_ignore(dialect, cancellations).from_select(
        ["turn_id", "epoch", "asked_by", "asked"],
        sa.select(
            turns.c.id,
            turns.c.epoch,
            _bind("asked_by", type_=sa.Text),
            _bind("asked", type_=sa.Text),
        )
        .where(turns.c.id == _bind("turn_id"))
        .where(_RUNNING),
    )
)

_ASKED = Statement(
    sa.select(cancellations.c.turn_id, cancellations.c.epoch)
    .join(
        turns,
        sa.and_(turns.c.id == cancellations.c.turn_id, turns.c.epoch == cancellations.c.epoch),
    )
    .where(_RUNNING)
)

held: Final[weakref.WeakValueDictionary[str, TurnLedger]] = weakref.WeakValueDictionary()
"""The turns that run in this process, by id."""


def ask(database: Database, turn_id: str, holder: str) -> None:
    """Ask the turn, which *holder* runs, to stop; nothing if it has ended.

    From then on its lease is not renewed: a holder that does not react is fenced when it ends.
    """
    with database.write(boundary=True) as connection:
        _ASK.run(connection, turn_id=turn_id, asked_by=leases.owner(), asked=now_text())
    ledger = ours(turn_id, holder)
    if ledger is not None:
        ledger.stop()


def ours(turn_id: str, holder: str) -> TurnLedger | None:
    """The writer of a turn that this process runs; None for one of another process."""
    # A child that was forked has its parent's objects, and another name.
    return held.get(turn_id) if holder == leases.owner() else None


def asked(connection: Connection) -> set[tuple[str, int]]:
    """Running turns, with their epoch, that somebody wants to stop."""
    return {(turn_id, epoch) for turn_id, epoch in _ASKED.all(connection)}
