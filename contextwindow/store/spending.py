"""What calls have used and cost: estimated where nobody said, summed up exactly."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Any, Final

import sqlalchemy as sa

from contextwindow.effects import EndCall
from contextwindow.models import catalog
from contextwindow.records import Usage
from contextwindow.store.connection import Connection
from contextwindow.store.engine import Database
from contextwindow.store.rows import CALL_COLUMNS, measure, to_call, to_pico
from contextwindow.store.schema import calls, contexts, turns
from contextwindow.store.statement import Statement

_bind = sa.bindparam

COUNTERS: Final = (
    "calls",
    "input_tokens",
    "output_tokens",
    "cache_read_tokens",
    "cache_write_tokens",
    "reasoning_tokens",
    "estimated_calls",
    "unpriced_calls",
    "cost_pico",
)
"""Columns of a context that count what its calls have used."""

_COUNT = Statement(
    sa.update(contexts)
    .where(contexts.c.id == _bind("context_id"))
    .values({name: contexts.c[name] + _bind(name) for name in (*COUNTERS, "total_tokens")})
)

_UNPRICED = Statement(
    sa.select(*CALL_COLUMNS)
    .join_from(calls, turns, calls.c.turn_id == turns.c.id)
    .where(turns.c.context_id == _bind("context_id"))
    .where(calls.c.cost.is_(None))
    .where(calls.c.usage_estimated)
    .where(calls.c.error == _bind("error"))
)

_SET_COST = Statement(
    sa.update(calls)
    .where(calls.c.id == _bind("call_id"))
    .where(calls.c.cost.is_(None))
    .where(calls.c.input_tokens + calls.c.output_tokens > 0)
    .values(cost=_bind("cost"))
)


@dataclass(frozen=True, slots=True)
class Spent:
    """What one call has used.

    Attributes:
        response_id: the provider's id of the response.
    """

    usage: Usage
    cost: Decimal | None = None
    response_id: str | None = None

    @property
    def unpriced(self) -> bool:
        """Whether it used what nobody knows the price of."""
        return self.cost is None and self.usage.total_tokens > 0

    def counters(self, sign: int = 1, *, call: int = 1) -> dict[str, int]:
        """What it adds to its context's counters; with *sign* -1 what it takes away."""
        usage = self.usage
        figures = (
            call,
            usage.input_tokens,
            usage.output_tokens,
            usage.cache_read_tokens,
            usage.cache_write_tokens,
            usage.reasoning_tokens,
            int(usage.estimated),
            int(self.unpriced),
            0 if self.cost is None else to_pico(self.cost),
        )
        return {name: sign * figure for name, figure in zip(COUNTERS, figures, strict=True)}


def spent(end: EndCall, sent: int) -> Spent:
    """What a call that ends has used, estimated where the provider did not say.

    Args:
        sent: tokens that it sent, as they were counted here.
    """
    usage = end.usage
    if usage is None:
        output, _ = measure(end.output)
        usage = Usage(input_tokens=sent, output_tokens=output, estimated=True)
        if end.partial is not None:
            usage = replace(
                end.partial,
                input_tokens=end.partial.input_tokens or sent,
                output_tokens=max(end.partial.output_tokens, output),
                estimated=True,
            )
    return Spent(usage, None if end.price is None else end.price(usage, end.model))


def together(several: Iterable[Spent]) -> tuple[Usage, Decimal | None]:
    """What *several* calls used, and what they cost: None when the price of one is not known."""
    listed = list(several)
    usage = sum((one.usage for one in listed), Usage())
    costs = [one.cost for one in listed if one.cost is not None]
    unknown = not costs or any(one.unpriced for one in listed)
    return usage, None if unknown else sum(costs, Decimal(0))


def changes(*counted: dict[str, int]) -> dict[str, int]:
    """The sum of *counted*, for ``COUNTERS``."""
    if len(counted) == 1:
        return counted[0]
    return {name: sum(one[name] for one in counted) for name in COUNTERS}


def count(
    connection: Connection, context_id: str, change: dict[str, int], *, total: int = 0
) -> None:
    """Add *change* to the counters of a context, and *total* tokens to their sum."""
    _COUNT.run(connection, context_id=context_id, total_tokens=total, **change)


def price_dead(database: Database, context_id: str, error: str) -> dict[int, Decimal]:
    """Price the calls of turns that were settled: outside of the settling, which holds others up.

    Args:
        error: what such calls have as theirs.

    Returns:
        The costs that are known now, by call.
    """
    with database.read() as connection:
        rows = _UNPRICED.all(connection, context_id=context_id, error=error)
    found: dict[int, Decimal] = {}
    for call in map(to_call, rows):
        usage = call.usage or Usage()
        cost = catalog.price_written(call.provider, call.model, usage, call.options, call.started)
        if cost is not None and usage.total_tokens:
            found[call.id] = cost
    if not found:
        return found
    with database.write() as connection:
        for call_id, cost in sorted(found.items()):
            # The context's row first, as every writer does.
            none: dict[str, Any] = dict.fromkeys(COUNTERS, 0)
            count(connection, context_id, none)
            if _SET_COST.run(connection, call_id=call_id, cost=str(cost)).rowcount == 1:
                change = none | {"unpriced_calls": -1, "cost_pico": to_pico(cost)}
                count(connection, context_id, change)
    return found
