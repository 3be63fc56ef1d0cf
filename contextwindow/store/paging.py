"""Pages of contexts and calls: what is read does not grow with what is there."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable
from itertools import accumulate
from typing import Any, Final

import sqlalchemy as sa

from contextwindow.errors import ConfigError
from contextwindow.records import Call, CallSize, ContextPage, RecordType, TurnState
from contextwindow.store.checks import check_id, check_text, check_whole
from contextwindow.store.connection import Connection
from contextwindow.store.rows import CALL_COLUMNS, STATS_COLUMNS, to_call, to_stats
from contextwindow.store.schema import calls, contexts, records, turns
from contextwindow.store.statement import Statement
from contextwindow.store.values import load_json, parse_time

_bind = sa.bindparam

_LAST = sa.func.coalesce(contexts.c.last_activity, contexts.c.start_time)


def _named(dialect: str) -> sa.ColumnElement[bool]:
    """Whether a name holds a text, as the database tells capitals from others."""
    within = sa.func.instr if dialect == "sqlite" else sa.func.strpos
    held = within(sa.func.lower(contexts.c.name), sa.func.lower(_bind("part", type_=sa.Text)))
    return sa.or_(_bind("part", type_=sa.Text) == "", held > 0)


_CONTEXTS = Statement(
    lambda dialect: (
        sa.select(*STATS_COLUMNS, _LAST)
        .where(
            sa.or_(
                _bind("moment") > _LAST,
                sa.and_(_bind("moment") == _LAST, contexts.c.id > _bind("context_id")),
            )
        )
        .where(_named(dialect))
        .order_by(_LAST.desc(), contexts.c.id)
        .limit(_bind("limit"))
    )
)

_STATE = Statement(
    sa.select(turns.c.state)
    .where(turns.c.context_id == _bind("context_id"))
    .order_by(turns.c.started.desc(), turns.c.epoch.desc())
    .limit(1)
)

_NEWEST_TURNS = (
    sa.select(turns.c.id)
    .where(turns.c.context_id == _bind("context_id"))
    .where(turns.c.started <= _bind("started"))
    .order_by(turns.c.started.desc(), turns.c.epoch.desc())
    .limit(_bind("limit"))
)

_NEWEST_CALLS = Statement(
    sa.select(*CALL_COLUMNS)
    .where(calls.c.turn_id.in_(_NEWEST_TURNS))
    .where(calls.c.id < _bind("before"))
    .order_by(calls.c.id.desc())
    .limit(_bind("limit"))
)

_CALL_STARTED = Statement(
    sa.select(turns.c.started)
    .join_from(calls, turns, calls.c.turn_id == turns.c.id)
    .where(turns.c.context_id == _bind("context_id"))
    .where(calls.c.id == _bind("call_id"))
)

_MANIFESTS = Statement(
    sa.select(
        calls.c.id,
        calls.c.turn_id,
        calls.c.provider,
        calls.c.model,
        calls.c.started,
        calls.c.manifest,
        calls.c.input_tokens,
    )
    .where(calls.c.turn_id.in_(_NEWEST_TURNS))
    .order_by(calls.c.id.desc())
    .limit(_bind("limit"))
)

_SIZES = Statement(
    sa.select(records.c.id, records.c.source, records.c.est_tokens)
    .where(records.c.id >= _bind("first"))
    .where(records.c.id <= _bind("last"))
    .where(records.c.context_id == _bind("context_id"))
    .order_by(records.c.id)
)

# Behind every time that is written, and every number.
_END_OF_TIME: Final = "~"
_LARGEST: Final = (1 << 62) - 1


def context_page(
    connection: Connection, after: str | None, limit: int, name_contains: str | None
) -> ContextPage:
    """Contexts, the last used first, from behind the place *after*.

    Raises:
        ConfigError: *after* is no place, or *limit* is below 1.
    """
    check_whole(limit, "limit", least=1)
    moment, context_id = _END_OF_TIME, ""
    if after is not None:
        moment, bar, context_id = check_text(after, "after").partition("|")
        if not bar:
            raise ConfigError(f"after must be the `next` of a page, not {after!r:.60}")
    part = "" if name_contains is None else check_text(name_contains, "name_contains", empty=True)
    rows = _CONTEXTS.all(
        connection, moment=moment, context_id=context_id, part=part, limit=limit + 1
    )
    shown = rows[:limit]
    states: dict[str, TurnState] = {}
    for row in shown:
        state = _STATE.scalar(connection, context_id=row[0])
        if state is not None:
            states[row[0]] = state
    return ContextPage(
        contexts=[to_stats(row[: len(STATS_COLUMNS)]) for row in shown],
        states=states,
        next=f"{shown[-1][-1]}|{shown[-1][0]}" if len(rows) > limit else None,
    )


def newest_calls(
    connection: Connection, context_id: str, last: int, before: int | None
) -> list[Call]:
    """The newest *last* calls of a context, oldest first; those in front of *before* if given.

    Raises:
        ConfigError: the context has no call *before*, or *last* is below 0.
    """
    check_whole(last, "last")
    started: Any = _END_OF_TIME
    if before is not None:
        check_id(before, "call")
        started = _CALL_STARTED.scalar(connection, context_id=context_id, call_id=before)
        if started is None:
            raise ConfigError(f"this context has no call {before!r}")
    rows = _NEWEST_CALLS.all(
        connection,
        context_id=context_id,
        started=started,
        before=_LARGEST if before is None else before,
        limit=last + (before is not None),
    )
    return [to_call(row) for row in reversed(rows[:last])]


def call_sizes(connection: Connection, context_id: str, last: int) -> list[CallSize]:
    """What the newest *last* calls of a context have sent, by kind of record, oldest first.

    Raises:
        ConfigError: *last* is below 0.
    """
    check_whole(last, "last")
    rows = _MANIFESTS.all(connection, context_id=context_id, started=_END_OF_TIME, limit=last)
    manifests = [load_json(row[5]) for row in rows]
    sums = _Sums(connection, context_id, (one for manifest in manifests for one in manifest))
    return [
        CallSize(
            call_id=row[0],
            turn_id=row[1],
            provider=row[2],
            model=row[3],
            started=parse_time(row[4]),
            tokens=sums.of(manifest),
            input_tokens=row[6],
        )
        for row, manifest in reversed(list(zip(rows, manifests, strict=True)))
    ]


class _Sums:
    """Tokens of ranges of records, by kind; each record is read once, however often it was sent."""

    def __init__(
        self, connection: Connection, context_id: str, ranges: Iterable[list[int]]
    ) -> None:
        by_kind: dict[RecordType, list[tuple[int, int]]] = {}
        for first, last in _merged(ranges):
            for number, source, size in _SIZES.all(
                connection, context_id=context_id, first=first, last=last
            ):
                by_kind.setdefault(RecordType(source), []).append((number, size))
        self._kinds = {
            kind: ([one[0] for one in found], [0, *accumulate(one[1] for one in found)])
            for kind, found in by_kind.items()
        }

    def of(self, ranges: list[list[int]]) -> dict[RecordType, int]:
        """The tokens of *ranges*; kinds of which there are none are left out."""
        found = {
            kind: sum(
                sums[bisect_right(ids, last)] - sums[bisect_left(ids, first)]
                for first, last in ranges
            )
            for kind, (ids, sums) in self._kinds.items()
        }
        return {kind: size for kind, size in sorted(found.items()) if size}


def _merged(ranges: Iterable[list[int]]) -> list[list[int]]:
    """*ranges* in order, those that touch or overlap as one."""
    out: list[list[int]] = []
    for first, last in sorted(ranges):
        if out and first <= out[-1][1] + 1:
            out[-1][1] = max(out[-1][1], last)
        else:
            out.append([first, last])
    return out
