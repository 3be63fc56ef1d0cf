"""Ways to break the lease that the checker of the stress test must notice."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from contextwindow.store import leases, writing
from contextwindow.store.connection import Connection
from contextwindow.store.ledger import TurnLedger


def no_fence(chance: random.Random, lease: float) -> None:
    """A turn writes without looking whether it is still its own."""
    _replace(TurnLedger, _fence=lambda ledger, connection: None)
    _keep_going()


def check_then_write(chance: random.Random, lease: float) -> None:
    """A turn looks in one transaction and writes in the next."""
    fence, apply = TurnLedger._fence, TurnLedger.apply

    def look(ledger: TurnLedger) -> None:
        with ledger._database.read() as connection:
            fence(ledger, connection)
        if chance.random() < 0.1:
            # What the scheduler does rarely is done often here.
            time.sleep(lease * 1.2)

    def applied(ledger: TurnLedger, checkpoint: Any) -> Any:
        look(ledger)
        return apply(ledger, checkpoint)

    _replace(TurnLedger, apply=applied)
    _replace(TurnLedger, _fence=lambda ledger, connection: None)
    _no_renewal()


def max_plus_one(chance: random.Random, lease: float) -> None:
    """A prompt takes the place behind the last record that was there a moment ago."""
    take = writing._TAKE_PLACE.one

    class Mutant:
        def one(self, connection: Connection, /, **params: Any) -> Any:
            take(connection, **params)
            return places[params["context_id"]]

    places: dict[str, Any] = {}
    add = writing.append

    def added(database: Any, context_id: str, *arguments: Any, **options: Any) -> Any:
        mark = "?" if database.dialect == "sqlite" else "%s"
        with database.read() as connection:
            places[context_id] = connection.execute(
                f"SELECT coalesce(max(seq), 0) + 2 FROM records WHERE context_id = {mark}",
                (context_id,),
            ).fetchone()
        if chance.random() < 0.3:
            time.sleep(lease / 4)
        return add(database, context_id, *arguments, **options)

    _replace(writing, _TAKE_PLACE=Mutant(), append=added)


def stolen_lease(chance: random.Random, lease: float) -> None:
    """A lease is taken whoever holds it."""
    _replace(leases, dead=lambda dialect, running, now: True)
    _replace(TurnLedger, _fence=lambda ledger, connection: None)


def _replace(owner: Any, **parts: Any) -> None:
    for name, part in parts.items():
        assert hasattr(owner, name), name
        setattr(owner, name, part)


def _keep_going() -> None:
    """A renewal that finds the turn taken over is not told."""
    renew = TurnLedger._renew

    def renewed(ledger: TurnLedger, connection: Connection) -> None:
        with suppress(Exception):
            renew(ledger, connection)
        ledger._renewed = time.monotonic()

    _replace(TurnLedger, _renew=renewed)


def _no_renewal() -> None:
    """Leases run out while their holder pauses; the thread that renews them is not paused."""

    def renewed(ledger: TurnLedger, connection: Connection) -> None:
        ledger._renewed = time.monotonic()

    _replace(TurnLedger, _renew=renewed)


MUTANTS: dict[str, Callable[[random.Random, float], None]] = {
    "no fence": no_fence,
    "check then write": check_then_write,
    "max + 1": max_plus_one,
    "stolen lease": stolen_lease,
}


def apply(name: str, chance: random.Random, lease: float) -> None:
    """Break this process in the way called *name*; ``""`` leaves it as it is."""
    if name:
        MUTANTS[name](chance, lease)
