"""Reads: records, turns, calls, what a call sent, tokens and usage."""

from __future__ import annotations

from contextlib import suppress
from decimal import Decimal
from typing import Any, Final

import sqlalchemy as sa

from contextwindow import tokens
from contextwindow.errors import ConfigError, ContextNotFound, RecordCorrupt
from contextwindow.records import Call, Record, RecordType, Turn, Usage
from contextwindow.store.checks import check_id, check_whole
from contextwindow.store.connection import Connection
from contextwindow.store.engine import Database
from contextwindow.store.rows import (
    CALL_COLUMNS,
    LIVE,
    RECORD_COLUMNS,
    TURN_COLUMNS,
    known_cost,
    to_call,
    to_record,
    to_turn,
    whole_text,
)
from contextwindow.store.schema import calls, contexts, records, turns
from contextwindow.store.spending import COUNTERS, Spent, together
from contextwindow.store.statement import Statement
from contextwindow.store.writing import lock

_bind = sa.bindparam
_IN_ORDER = (records.c.position, records.c.seq)

_PAGE = Statement(
    sa.select(*RECORD_COLUMNS)
    .where(records.c.context_id == _bind("context_id"))
    .where(sa.tuple_(*_IN_ORDER) > sa.tuple_(_bind("position"), _bind("seq")))
    .where(sa.tuple_(*_IN_ORDER) < sa.tuple_(_bind("end_position"), _bind("end_seq")))
    .order_by(*_IN_ORDER)
    .limit(_bind("limit"))
)

# From the end of it.
_PAGE_BACK = Statement(
    sa.select(*RECORD_COLUMNS)
    .where(records.c.context_id == _bind("context_id"))
    .where(sa.tuple_(*_IN_ORDER) > sa.tuple_(_bind("position"), _bind("seq")))
    .where(sa.tuple_(*_IN_ORDER) < sa.tuple_(_bind("end_position"), _bind("end_seq")))
    .order_by(*(column.desc() for column in _IN_ORDER))
    .limit(_bind("limit"))
)

_PLACE = Statement(
    sa.select(*_IN_ORDER)
    .where(records.c.context_id == _bind("context_id"))
    .where(records.c.id == _bind("record_id"))
)

_BY_ID = Statement(sa.select(*RECORD_COLUMNS).where(records.c.id == _bind("record_id")))

# Numbers of calls only grow; a clock may be set back.
_IN_TIME = (
    sa.func.coalesce(
        sa.select(sa.func.min(calls.c.id)).where(calls.c.turn_id == turns.c.id).scalar_subquery(),
        0,
    ),
    turns.c.started,
    turns.c.epoch,
)

_TURNS = Statement(
    sa.select(*TURN_COLUMNS).where(turns.c.context_id == _bind("context_id")).order_by(*_IN_TIME)
)

_NEWEST_TURNS = Statement(
    sa.select(*TURN_COLUMNS)
    .where(
        turns.c.id.in_(
            sa.select(turns.c.id)
            .where(turns.c.context_id == _bind("context_id"))
            .order_by(turns.c.started.desc(), turns.c.epoch.desc())
            .limit(_bind("limit"))
        )
    )
    .order_by(*_IN_TIME)
)

_TURN = Statement(
    sa.select(*TURN_COLUMNS)
    .where(turns.c.context_id == _bind("context_id"))
    .where(turns.c.id == _bind("turn_id"))
)

_ALL_TURNS = Statement(sa.select(*TURN_COLUMNS).order_by(*_IN_TIME))

_TURNS_IN = Statement(
    sa.select(*TURN_COLUMNS).where(turns.c.state == _bind("state_")).order_by(*_IN_TIME)
)

_PARTIAL_TEXT = Statement(
    sa.select(
        records.c.id, records.c.content, records.c.payload, records.c.checksum, records.c.live
    )
    .where(records.c.turn_id == _bind("turn_id"))
    .where(records.c.partial_response_id.is_not(None))
    .where(records.c.source == int(RecordType.MODEL_RESPONSE))
    .order_by(records.c.seq.desc())
    .limit(1)
)

_CALLS = Statement(
    sa.select(*CALL_COLUMNS)
    .where(
        calls.c.turn_id.in_(sa.select(turns.c.id).where(turns.c.context_id == _bind("context_id")))
    )
    .order_by(calls.c.id)
)

_CALLS_OF = Statement(
    sa.select(*CALL_COLUMNS)
    .where(calls.c.context_id == _bind("context_id"))
    .where(calls.c.turn_id == _bind("turn_id"))
    .order_by(calls.c.id)
)

_CALL = Statement(
    sa.select(*CALL_COLUMNS)
    .where(calls.c.context_id == _bind("context_id"))
    .where(calls.c.id == _bind("call_id"))
)

_ANY_CALL = Statement(sa.select(*CALL_COLUMNS).where(calls.c.id == _bind("call_id")))

_FIGURES = Statement(
    sa.select(contexts.c.live_tokens, contexts.c.total_tokens, contexts.c.uncounted).where(
        contexts.c.id == _bind("context_id")
    )
)

_GUESSES = Statement(
    sa.select(records.c.id, records.c.content, records.c.live)
    .where(records.c.context_id == _bind("context_id"))
    .where(records.c.live)
    .where(records.c.uncounted)
)

_SET_TOKENS = Statement(
    sa.update(records)
    .where(records.c.id == _bind("record_id"))
    .values(est_tokens=_bind("tokens"), uncounted=False)
)

_RECOUNT = Statement(
    sa.update(contexts)
    .where(contexts.c.id == _bind("context_id"))
    .values(
        live_tokens=sa.select(sa.func.coalesce(sa.func.sum(records.c.est_tokens), 0))
        .where(records.c.context_id == _bind("context_id"))
        .where(records.c.live)
        .scalar_subquery(),
        uncounted=0,
    )
)

_SPENT = (
    calls.c.turn_id,
    calls.c.cost,
    calls.c.input_tokens,
    calls.c.output_tokens,
    calls.c.cache_read_tokens,
    calls.c.cache_write_tokens,
    calls.c.reasoning_tokens,
    calls.c.usage_estimated,
)

_SPENT_OF = Statement(
    sa.select(*_SPENT)
    .join_from(calls, turns, calls.c.turn_id == turns.c.id)
    .where(turns.c.context_id == _bind("context_id"))
    .where(calls.c.input_tokens.is_not(None))
    .order_by(calls.c.id)
)

_SPENT_BY = Statement(
    sa.select(*_SPENT)
    .where(calls.c.turn_id == _bind("turn_id"))
    .where(calls.c.input_tokens.is_not(None))
    .order_by(calls.c.id)
)

_SPENT_IN = Statement(
    sa.select(*_SPENT)
    .join_from(calls, turns, calls.c.turn_id == turns.c.id)
    .where(sa.or_(turns.c.state == _bind("state_"), _bind("state_", type_=sa.Text).is_(None)))
    .where(calls.c.input_tokens.is_not(None))
    .order_by(calls.c.id)
)


def _used(*keys: sa.ColumnElement[Any]) -> Statement:
    """The counters of ``COUNTERS`` over all calls that have ended, by *keys*."""
    figures = ("input", "output", "cache_read", "cache_write", "reasoning")
    tokens_used = calls.c.input_tokens + calls.c.output_tokens
    unpriced = sa.and_(calls.c.cost.is_(None), tokens_used > 0)
    # Each cost has fewer digits than a double, and whole numbers add up without an error.
    pico = sa.cast(sa.func.round(sa.cast(calls.c.cost, sa.Double) * 1e12), sa.BigInteger)
    statement = (
        sa.select(
            *keys,
            sa.func.count(),
            *(sa.func.coalesce(sa.func.sum(calls.c[f"{name}_tokens"]), 0) for name in figures),
            sa.func.count(sa.case((calls.c.usage_estimated, 1))),
            sa.func.count(sa.case((unpriced, 1))),
            sa.func.coalesce(sa.func.sum(pico), 0),
        )
        .select_from(calls.outerjoin(contexts, contexts.c.id == calls.c.context_id))
        .where(calls.c.input_tokens.is_not(None))
    )
    return Statement(statement.group_by(*keys).order_by(*keys) if keys else statement)


_USAGE: Final[dict[str, tuple[Statement, tuple[str, ...]]]] = {
    "day": (_used(sa.literal_column("substr(calls.started, 1, 10)")), ("day",)),
    "model": (_used(calls.c.provider, calls.c.model), ("provider", "model")),
    "context": (_used(contexts.c.name, contexts.c.id), ("context", "context_id")),
    "total": (_used(), ()),
}

_NO_LIMIT = (1 << 62) - 1


def live_records(connection: Connection, context_id: str) -> list[Record]:
    """What is sent to the model, in order."""
    return [to_record(connection, row) for row in LIVE.all(connection, context_id=context_id)]


def page(
    connection: Connection,
    context_id: str,
    after: int | None = None,
    limit: int | None = None,
    *,
    before: int | None = None,
    last: int | None = None,
) -> list[Record]:
    """Records in order, live or not, between the records *after* and *before*.

    Args:
        limit: how many at the most, from the beginning.
        last: how many at the most, from the end.

    Raises:
        ConfigError: *after* or *before* is no record of the context, *limit* or *last* is below
            0, or both are given.
    """
    if limit is not None:
        check_whole(limit, "limit")
    if last is not None:
        check_whole(last, "last")
        if limit is not None:
            raise ConfigError("pass limit (from the beginning) or last (from the end), not both")
    first = _place(connection, context_id, after) or (-1, -1)
    end = _place(connection, context_id, before) or (_NO_LIMIT, _NO_LIMIT)
    most = limit if last is None else last
    rows = (_PAGE if last is None else _PAGE_BACK).all(
        connection,
        context_id=context_id,
        position=first[0],
        seq=first[1],
        end_position=end[0],
        end_seq=end[1],
        limit=_NO_LIMIT if most is None else most,
    )
    if last is not None:
        rows.reverse()
    return [to_record(connection, row) for row in rows]


def around(
    connection: Connection, context_id: str, record_id: int, before: int, after: int
) -> list[Record]:
    """A record between so many of its neighbours, in order; a damaged neighbour is left out.

    Raises:
        ConfigError: it is no record of the context, or a number is below 0.
        RecordCorrupt: it is damaged.
    """
    position, seq = _place(connection, context_id, record_id) or (-1, -1)
    earlier = _PAGE_BACK.all(
        connection,
        context_id=context_id,
        position=-1,
        seq=-1,
        end_position=position,
        end_seq=seq,
        limit=check_whole(before, "before"),
    )
    later = _PAGE.all(
        connection,
        context_id=context_id,
        position=position,
        seq=seq,
        end_position=_NO_LIMIT,
        end_seq=_NO_LIMIT,
        limit=check_whole(after, "after"),
    )
    row = _BY_ID.one(connection, record_id=record_id)
    assert row is not None  # noqa: S101 - it has a place
    return [
        *_readable(connection, earlier[::-1]),
        to_record(connection, row),
        *_readable(connection, later),
    ]


def _readable(connection: Connection, rows: list[tuple[Any, ...]]) -> list[Record]:
    found = []
    for row in rows:
        with suppress(RecordCorrupt):
            found.append(to_record(connection, row))
    return found


def _place(
    connection: Connection, context_id: str, record_id: int | None
) -> tuple[Any, ...] | None:
    """Where a record stands in the order of its context.

    Raises:
        ConfigError: it is no record of the context.
    """
    if record_id is None:
        return None
    check_id(record_id, "record")
    place = _PLACE.one(connection, context_id=context_id, record_id=record_id)
    if place is None:
        raise ConfigError(f"this context has no record {record_id!r}")
    return place


def turns_of(connection: Connection, context_id: str) -> list[Turn]:
    """All turns of a context, oldest first."""
    spent = _by_turn(_SPENT_OF.all(connection, context_id=context_id))
    rows = _TURNS.all(connection, context_id=context_id)
    return [_turn(connection, row, spent.get(row[0])) for row in rows]


def newest_turns(connection: Connection, context_id: str, last: int) -> list[Turn]:
    """The newest *last* turns of a context, by the clocks of who began them, oldest first.

    Raises:
        ConfigError: *last* is below 0.
    """
    check_whole(last, "last")
    rows = _NEWEST_TURNS.all(connection, context_id=context_id, limit=last)
    return [_with_spent(connection, row) for row in rows]


def turn_of(connection: Connection, context_id: str, turn_id: str) -> Turn:
    """One turn of a context.

    Raises:
        ConfigError: the context has no such turn.
    """
    row = _TURN.one(connection, context_id=context_id, turn_id=turn_id)
    if row is None:
        raise ConfigError(f"this context has no turn {turn_id!r}")
    return _with_spent(connection, row)


def _with_spent(connection: Connection, row: tuple[Any, ...]) -> Turn:
    spent = _by_turn(_SPENT_BY.all(connection, turn_id=row[0]))
    return _turn(connection, row, spent.get(row[0]))


def turns_in(connection: Connection, state: str | None) -> list[Turn]:
    """Turns of every context, in one state or in all, oldest first.

    A damaged text is left out of it: one conversation does not stand in the way of all others.
    """
    rows = _ALL_TURNS.all(connection) if state is None else _TURNS_IN.all(connection, state_=state)
    spent = _by_turn(_SPENT_IN.all(connection, state_=state))
    return [_turn(connection, row, spent.get(row[0]), strict=False) for row in rows]


def _turn(
    connection: Connection, row: tuple[Any, ...], spent: list[Spent] | None, *, strict: bool = True
) -> Turn:
    text = "" if row[2] == "complete" else _partial_text(connection, row[0], strict=strict)
    return to_turn(row, text, *(together(spent) if spent else ()))


def _partial_text(connection: Connection, turn_id: str, *, strict: bool) -> str:
    row = _PARTIAL_TEXT.one(connection, turn_id=turn_id)
    if row is None:
        return ""
    try:
        return whole_text(connection, *row[:4])
    except RecordCorrupt:
        if strict and row[4]:
            raise
        # It was taken out, as the error had said: the turn is not to stand in the way of others.
        return ""


def _by_turn(rows: list[tuple[Any, ...]]) -> dict[str, list[Spent]]:
    found: dict[str, list[Spent]] = {}
    for turn_id, cost, sent, received, read, written, reasoning, estimated in rows:
        used = Usage(sent, received or 0, read or 0, written or 0, reasoning or 0, bool(estimated))
        one = Spent(used, None if cost is None else Decimal(cost))
        found.setdefault(turn_id, []).append(one)
    return found


def calls_of(connection: Connection, context_id: str, turn_id: str | None) -> list[Call]:
    """Calls of a context or of one turn, oldest first."""
    rows = (
        _CALLS.all(connection, context_id=context_id)
        if turn_id is None
        else _CALLS_OF.all(connection, context_id=context_id, turn_id=turn_id)
    )
    return [to_call(row) for row in rows]


def call(connection: Connection, context_id: str, call_id: int) -> Call:
    """One call of a context.

    Raises:
        ConfigError: the context has no such call.
    """
    check_id(call_id, "call")
    row = _CALL.one(connection, context_id=context_id, call_id=call_id)
    if row is None:
        raise ConfigError(f"this context has no call {call_id!r}")
    return to_call(row)


def any_call(connection: Connection, call_id: int) -> Call:
    """One call, whichever context it is of.

    Raises:
        ConfigError: there is no such call.
    """
    row = _ANY_CALL.one(connection, call_id=check_whole(call_id, "the id of a call", least=1))
    if row is None:
        raise ConfigError(f"there is no call {call_id!r} in {connection.location}")
    return to_call(row)


def manifest(
    connection: Connection, context_id: str, call_id: int, skip: int = 0, limit: int | None = None
) -> list[Record]:
    """The records that a call sent, in the order in which it sent them.

    Args:
        skip: leave out so many of the first.
        limit: how many at the most.

    Raises:
        ConfigError: the context has no such call, or *skip* or *limit* is below 0.
    """
    check_whole(skip, "skip")
    end = None if limit is None else skip + check_whole(limit, "limit")
    sent = call(connection, context_id, call_id).manifest[skip:end]
    found = (_BY_ID.one(connection, record_id=number) for number in sent)
    return [to_record(connection, one) for one in found if one is not None]


def figures(database: Database, context_id: str) -> tuple[int, int]:
    """Live tokens and total tokens of a context, after counting what was only guessed.

    Raises:
        ContextNotFound: the context was deleted.
    """
    with database.read() as connection:
        row = _FIGURES.one(connection, context_id=context_id)
    if row is None:
        raise ContextNotFound(f"context {context_id} was deleted")
    if row[2] and not database.read_only and tokens.load_encoding() is not None:
        recount(database, context_id)
        return figures_as_stored(database, context_id)
    return row[0], row[1]


def figures_as_stored(database: Database, context_id: str) -> tuple[int, int]:
    """Live tokens and total tokens as the database has them."""
    with database.read() as connection:
        row = _FIGURES.one(connection, context_id=context_id)
    return (0, 0) if row is None else (row[0], row[1])


def recount(database: Database, context_id: str) -> None:
    """Count the live records whose tokens were guessed, if that gets better now."""
    with database.read() as connection:
        guesses = _GUESSES.all(connection, context_id=context_id)
    # What is damaged is no text any more; reading it says so.
    texts = [(number, text if isinstance(text, str) else "") for number, text, _ in guesses]
    counted = [(number, tokens.count_tokens(text)) for number, text in texts]
    with database.write() as connection:
        lock(connection, context_id)
        for number, size in counted:
            _SET_TOKENS.run(connection, record_id=number, tokens=size)
        _RECOUNT.run(connection, context_id=context_id)


def usage(connection: Connection, by: str) -> list[dict[str, Any]]:
    """Tokens and cost of the calls that have ended, by a day of UTC, a model, a context or all.

    Raises:
        ConfigError: *by* is none of these.
    """
    if by not in _USAGE:
        raise ConfigError(f"usage by {by!r} is not known; by: {', '.join(_USAGE)}")
    statement, keys = _USAGE[by]
    rows = []
    for row in statement.all(connection):
        known, figures = row[: len(keys)], [int(one) for one in row[len(keys) :]]
        rows.append(
            dict(zip(keys, known, strict=True))
            | dict(zip(COUNTERS[:-1], figures[:-1], strict=True))
            | {"cost": known_cost(figures[-1], figures[-2])}
        )
    return rows
