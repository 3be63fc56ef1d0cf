"""Writing down that records have left the window, and reading that back."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

import sqlalchemy as sa

from contextwindow.effects import Aside, Compact
from contextwindow.errors import ConfigError
from contextwindow.records import Record, RecordType
from contextwindow.store.connection import Connection
from contextwindow.store.engine import Database
from contextwindow.store.notices import announce
from contextwindow.store.rows import from_ranges, measure, to_ranges
from contextwindow.store.schema import calls, compactions, records, turns
from contextwindow.store.spending import Spent, count
from contextwindow.store.statement import Statement
from contextwindow.store.values import dump_json, load_json, now_text, parse_time
from contextwindow.store.writing import insert, lock, take_out

_bind = sa.bindparam

TURN_PREFIX: Final = "aside-"
"""Begins the ids of turns that only stand for calls beside the conversation."""

_PLACE = Statement(
    sa.select(records.c.position)
    .where(records.c.context_id == _bind("context_id"))
    .where(records.c.id == _bind("record_id"))
)

_INSERT = Statement(
    sa.insert(compactions).values(
        context_id=_bind("context_id"),
        turn_id=_bind("turn_id"),
        ts=_bind("now"),
        reason=_bind("reason"),
        strategies=_bind("strategies"),
        removed=_bind("removed"),
        summary_id=_bind("summary_id"),
        tokens_before=_bind("before"),
        tokens_after=_bind("after"),
    )
)

_OF_CONTEXT = Statement(
    sa.select(
        compactions.c.id,
        compactions.c.turn_id,
        compactions.c.ts,
        compactions.c.reason,
        compactions.c.strategies,
        compactions.c.removed,
        compactions.c.summary_id,
        compactions.c.tokens_before,
        compactions.c.tokens_after,
    )
    .where(compactions.c.context_id == _bind("context_id"))
    .order_by(compactions.c.id)
)

_INSERT_TURN = Statement(
    sa.insert(turns).values(
        id=_bind("turn_id"),
        context_id=_bind("context_id"),
        state="complete",
        owner="",
        epoch=0,
        heartbeat=0.0,
        expires=0.0,
        started=_bind("now"),
        ended=_bind("now"),
    )
)

_INSERT_CALL = Statement(
    sa.insert(calls)
    .values(
        turn_id=_bind("turn_id"),
        context_id=_bind("context_id"),
        provider=_bind("provider"),
        model=_bind("model"),
        started=_bind("now"),
        response_id=_bind("response_id"),
        finish_reason=_bind("finish_reason"),
        input_tokens=_bind("input_tokens"),
        output_tokens=_bind("output_tokens"),
        cache_read_tokens=_bind("cache_read_tokens"),
        cache_write_tokens=_bind("cache_write_tokens"),
        reasoning_tokens=_bind("reasoning_tokens"),
        usage_estimated=_bind("estimated"),
        cost=_bind("cost"),
        ttft=_bind("ttft"),
        duration=_bind("duration"),
        options=_bind("options"),
    )
    .returning(calls.c.id)
)


@dataclass(frozen=True, slots=True, kw_only=True)
class CompactionEvent:
    """One time that records left the window of a context.

    Attributes:
        turn_id: the turn that made room for itself, or None where it was asked for.
        reason: ``"trigger"``, ``"too long"`` (the provider said so) or ``"asked"``.
        removed: ids of the records that left.
        summary_id: the record that stands for them, or None.
        tokens_before, tokens_after: of what is sent, as counted here.
    """

    id: int
    time: datetime
    reason: str
    strategies: list[str]
    removed: list[int]
    summary_id: int | None
    tokens_before: int
    tokens_after: int
    turn_id: str | None = None


def write(
    connection: Connection, context_id: str, done: Compact, turn_id: str | None
) -> tuple[Record | None, int]:
    """Take out what *done* says, within a transaction that holds the context's row.

    Returns:
        The summary's record, and how many records were live until now.
    """
    place = 0
    if done.place is not None:
        row = _PLACE.one(connection, context_id=context_id, record_id=done.place)
        place = 0 if row is None else row[0]
    left = take_out(connection, context_id, done.gone)
    summary = None
    if done.summary is not None:
        size, guess = measure(done.summary)
        summary = insert(
            connection,
            context_id,
            RecordType.SUMMARY,
            done.summary,
            size,
            guess,
            position=place or None,
        )
    _INSERT.run(
        connection,
        context_id=context_id,
        turn_id=turn_id,
        now=now_text(),
        reason=done.reason,
        strategies=dump_json(done.strategies),
        removed=dump_json(to_ranges(sorted(done.gone))),
        summary_id=None if summary is None else summary.id,
        before=done.before,
        after=done.after,
    )
    return summary, left


def account(
    connection: Connection, context_id: str, turn_id: str, asides: Sequence[Aside], purpose: str
) -> dict[int, Spent]:
    """Write down calls that were made beside the conversation, and count what they used.

    Returns:
        What each has used, by the number of its call.
    """
    written: dict[int, Spent] = {}
    for one in asides:
        spent = Spent(one.usage, one.cost)
        row = _INSERT_CALL.one(
            connection,
            turn_id=turn_id,
            context_id=context_id,
            provider=one.provider,
            model=one.model,
            now=now_text(),
            response_id=one.response_id,
            finish_reason=one.finish_reason,
            input_tokens=one.usage.input_tokens,
            output_tokens=one.usage.output_tokens,
            cache_read_tokens=one.usage.cache_read_tokens,
            cache_write_tokens=one.usage.cache_write_tokens,
            reasoning_tokens=one.usage.reasoning_tokens,
            estimated=one.usage.estimated,
            cost=None if one.cost is None else str(one.cost),
            ttft=one.time_to_first_token,
            duration=one.duration,
            options=dump_json({"purpose": purpose}),
        )
        assert row is not None  # noqa: S101 - RETURNING gives the row that was inserted
        written[row[0]] = spent
        count(connection, context_id, spent.counters(), total=one.usage.total_tokens)
    return written


def apply(database: Database, context_id: str, done: Compact) -> Record | None:
    """Take out what *done* says, outside of any turn; all or nothing.

    Returns:
        The summary's record, or None without one.

    Raises:
        ConfigError: one of the records has left the window meanwhile; nothing was changed.
        ContextNotFound: the context was deleted.
    """
    with database.write(boundary=True) as connection:
        lock(connection, context_id)
        summary, left = write(connection, context_id, done, None)
        if left != len(done.gone):
            raise ConfigError(
                f"{len(done.gone) - left} of the {len(done.gone)} records have left the window "
                "since this was prepared; nothing was changed: prepare it again"
            )
        _account_apart(connection, context_id, done.spent)
        announce(connection, [context_id])
    return summary


def account_apart(database: Database, context_id: str, asides: Sequence[Aside]) -> None:
    """Write down calls that led to nothing: they were paid for all the same."""
    if not asides:
        return
    with database.write() as connection:
        lock(connection, context_id)
        _account_apart(connection, context_id, asides)


def _account_apart(connection: Connection, context_id: str, asides: Sequence[Aside]) -> None:
    if asides:
        turn_id = f"{TURN_PREFIX}{uuid.uuid4()}"
        _INSERT_TURN.run(connection, turn_id=turn_id, context_id=context_id, now=now_text())
        account(connection, context_id, turn_id, asides, "summary")


def events(connection: Connection, context_id: str) -> list[CompactionEvent]:
    """The compactions of a context, oldest first."""
    return [_event(row) for row in _OF_CONTEXT.all(connection, context_id=context_id)]


def _event(row: tuple[Any, ...]) -> CompactionEvent:
    number, turn_id, time, reason, strategies, removed, summary_id, before, after = row
    return CompactionEvent(
        id=number,
        turn_id=turn_id,
        time=parse_time(time),
        reason=reason,
        strategies=load_json(strategies),
        removed=from_ranges(load_json(removed)),
        summary_id=summary_id,
        tokens_before=before,
        tokens_after=after,
    )
