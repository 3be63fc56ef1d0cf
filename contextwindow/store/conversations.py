"""Contexts: making, finding, copying and deleting them."""

from __future__ import annotations

import itertools
import json
import re
import uuid
from typing import Any, Final

import sqlalchemy as sa

from contextwindow.errors import ConfigError, ContextNotFound, RecordCorrupt
from contextwindow.records import Context, ContextStats, RecordType
from contextwindow.store import attached
from contextwindow.store.checks import check_id, check_text
from contextwindow.store.connection import Connection, Damaged
from contextwindow.store.engine import Database
from contextwindow.store.leases import RUNNING
from contextwindow.store.rows import (
    CONTEXT_COLUMNS,
    STATS_COLUMNS,
    measure,
    to_context,
    to_stats,
    unfolded,
)
from contextwindow.store.schema import context_tools, contexts, records, turns
from contextwindow.store.search import Paused
from contextwindow.store.statement import Statement, insert_ignore
from contextwindow.store.values import checksum, dump_json, matches, now_text
from contextwindow.store.writing import lock

_bind = sa.bindparam

_BY_NAME = Statement(sa.select(*CONTEXT_COLUMNS).where(contexts.c.name == _bind("name")))
_BY_ID = Statement(sa.select(*CONTEXT_COLUMNS).where(contexts.c.id == _bind("context_id")))
_ALL = Statement(sa.select(*CONTEXT_COLUMNS).order_by(contexts.c.start_time.desc(), contexts.c.id))
_STATS = Statement(
    sa.select(*STATS_COLUMNS, contexts.c.uncounted).where(contexts.c.name == _bind("name"))
)
_ALL_STATS = Statement(
    sa.select(*STATS_COLUMNS).order_by(contexts.c.start_time.desc(), contexts.c.id)
)

_INSERT = Statement(
    lambda dialect: insert_ignore(dialect, contexts).values(
        id=_bind("context_id"),
        name=_bind("name"),
        start_time=_bind("start_time"),
        use_server_side_threading=_bind("threading"),
        last_response_id=_bind("last_response_id"),
        parent_context_id=_bind("parent"),
        metadata=_bind("metadata_"),
        max_tokens=_bind("max_tokens"),
    )
)

_THREADING = Statement(
    sa.update(contexts)
    .where(contexts.c.id == _bind("context_id"))
    .where(contexts.c.use_server_side_threading != _bind("enabled"))
    .values(use_server_side_threading=_bind("enabled"), last_response_id=None)
)

_PARENT = Statement(
    sa.update(contexts)
    .where(contexts.c.id == _bind("context_id"))
    .values(parent_context_id=_bind("parent"))
)

_LOCK_TURNS = Statement(
    lambda dialect: (
        sa.select(turns.c.id).where(turns.c.context_id == _bind("context_id")).with_for_update()
        if dialect == "postgresql"
        else sa.select(turns.c.id).where(turns.c.context_id == _bind("context_id")).limit(0)
    )
)

_DELETE = Statement(sa.delete(contexts).where(contexts.c.id == _bind("context_id")))

_LAST = sa.func.coalesce(contexts.c.last_activity, contexts.c.start_time)

_ACTIVITY = Statement(sa.select(_LAST).where(contexts.c.id == _bind("context_id")))

_IDLE = Statement(
    sa.select(*CONTEXT_COLUMNS)
    .where(_bind("moment") > _LAST)
    .where(
        ~sa.exists().where(
            turns.c.context_id == contexts.c.id,
            turns.c.state == sa.literal_column("'running'"),
        )
    )
    .order_by(_LAST, contexts.c.id)
)

_TOOLS = Statement(
    sa.select(context_tools.c.tool_name)
    .where(context_tools.c.context_id == _bind("context_id"))
    .order_by(context_tools.c.created_at, context_tools.c.id)
)

_COPY_TOOLS = Statement(
    sa.insert(context_tools).from_select(
        ["context_id", "tool_name", "created_at"],
        sa.select(
            _bind("copy_id", type_=sa.Text),
            context_tools.c.tool_name,
            context_tools.c.created_at,
        ).where(context_tools.c.context_id == _bind("context_id")),
    )
)

# A copy belongs to no turn, so that resuming in one context never ends another's reply.
_COPIED = [
    column
    for column in records.c
    if column.name not in ("id", "context_id", "turn_id", "partial_response_id")
]

_COPY_RECORDS = Statement(
    sa.insert(records).from_select(
        ["context_id", *(column.name for column in _COPIED)],
        sa.select(_bind("copy_id", type_=sa.Text), *_COPIED)
        .where(records.c.context_id == _bind("context_id"))
        .where(
            sa.tuple_(records.c.position, records.c.seq)
            <= sa.tuple_(_bind("position"), _bind("seq"))
        )
        .order_by(records.c.position, records.c.seq),
    )
)

_IN_FLIGHT = Statement(
    sa.select(records.c.id, records.c.seq, records.c.content, records.c.payload, records.c.checksum)
    .where(records.c.context_id == _bind("context_id"))
    .where(records.c.partial_response_id.is_not(None))
)

_KIND = Statement(
    sa.select(records.c.source, records.c.est_tokens, records.c.attached, records.c.content)
    .where(records.c.context_id == _bind("copy_id"))
    .where(records.c.seq == _bind("seq"))
)

_SET_TEXT = Statement(
    sa.update(records)
    .where(records.c.context_id == _bind("copy_id"))
    .where(records.c.seq == _bind("seq"))
    .values(
        content=_bind("content"),
        checksum=_bind("checksum"),
        payload=None,
        est_tokens=_bind("tokens"),
        uncounted=_bind("guess"),
        response_id=None,
        streamed=False,
        accumulated_tokens=None,
        live=True,
    )
)

_SET_COPY = Statement(
    sa.update(records)
    .where(records.c.context_id == _bind("copy_id"))
    .where(records.c.seq == _bind("seq"))
    .values(
        content=_bind("content"),
        checksum=_bind("checksum"),
        uncounted=records.c.live,
        # Half a tool call or half a thought is nothing that a provider takes.
        live=sa.and_(records.c.live, records.c.source == int(RecordType.MODEL_RESPONSE)),
    )
)

_RECOUNT = Statement(
    sa.update(contexts)
    .where(contexts.c.id == _bind("context_id"))
    .values(
        {
            name: sa.select(expression)
            .where(records.c.context_id == _bind("context_id"))
            .scalar_subquery()
            for name, expression in {
                "next_seq": sa.func.coalesce(sa.func.max(records.c.seq), 0) + 1,
                "record_count": sa.func.count(),
                "live_count": sa.func.count(sa.case((records.c.live, 1))),
                "live_tokens": sa.func.coalesce(
                    sa.func.sum(sa.case((records.c.live, records.c.est_tokens), else_=0)), 0
                ),
                "uncounted": sa.func.count(
                    sa.case((sa.and_(records.c.live, records.c.uncounted), 1))
                ),
                "last_activity": sa.func.max(records.c.ts),
            }.items()
        }
    )
)

_PLACE = Statement(
    sa.select(records.c.position, records.c.seq)
    .where(records.c.context_id == _bind("context_id"))
    .where(records.c.id == _bind("record_id"))
)

LAST_PLACE: Final = (1 << 62) - 1
"""The largest number that a place in the order of a context may have."""


def find(connection: Connection, name: str) -> Context | None:
    """The context called *name*, or None."""
    row = _BY_NAME.one(connection, name=name)
    return None if row is None else to_context(row)


def known(database: Database, name: str) -> Context:
    """The context called *name*.

    Raises:
        ContextNotFound: there is none.
    """
    with database.read() as connection:
        context = find(connection, check_text(name, "context name"))
    if context is None:
        raise ContextNotFound(
            f"{database.location} has no context called {name!r}; list_contexts() names those "
            "it has"
        )
    return context


def by_id(connection: Connection, context_id: str) -> Context | None:
    """The context of that id, or None."""
    row = _BY_ID.one(connection, context_id=context_id)
    return None if row is None else to_context(row)


def get_or_create(database: Database, name: str) -> Context:
    """The context called *name*, made if it is missing."""
    check_text(name, "context name")
    with database.read() as connection:
        context = find(connection, name)
    if context is not None or database.read_only:
        return context or known(database, name)
    with database.write(boundary=True) as connection:
        create(connection, name)
        created = find(connection, name)
    assert created is not None  # noqa: S101 - just written, or written by somebody else
    return created


def create(connection: Connection, name: str, **values: Any) -> tuple[str, bool]:
    """Id for a new context called *name*, and whether it was made by this."""
    context_id = str(uuid.uuid4())
    row = {
        "threading": False,
        "last_response_id": None,
        "parent": None,
        "metadata_": None,
        "max_tokens": None,
        "start_time": now_text(),
        **values,
    }
    done = _INSERT.run(connection, context_id=context_id, name=name, **row)
    return context_id, done.rowcount == 1


def all_contexts(connection: Connection) -> list[Context]:
    """Every context, newest first."""
    return [to_context(row) for row in _ALL.all(connection)]


def stats(connection: Connection, name: str) -> tuple[ContextStats, bool]:
    """Figures of one context, from its counters, and whether some of its tokens were guessed.

    Raises:
        ContextNotFound: there is none of that name.
    """
    row = _STATS.one(connection, name=name)
    if row is None:
        raise ContextNotFound(
            f"{connection.location} has no context called {name!r}; list_contexts() names those "
            "it has"
        )
    return to_stats(row[:-1]), bool(row[-1])


def all_stats(connection: Connection) -> list[ContextStats]:
    """Figures of every context, newest first."""
    return [to_stats(row) for row in _ALL_STATS.all(connection)]


def set_threading(database: Database, context_id: str, enabled: bool) -> None:
    """Switch server-side threading; the chain starts anew when that changes anything."""
    with database.write() as connection:
        _THREADING.run(connection, context_id=context_id, enabled=enabled)


def set_parent(database: Database, context_id: str, parent: str | None) -> None:
    """Note the context that this one was made from."""
    with database.write() as connection:
        _PARENT.run(connection, context_id=context_id, parent=parent)


def tools(connection: Connection, context_id: str) -> list[str]:
    """Names of the tools that are stored with the context."""
    return [row[0] for row in _TOOLS.all(connection, context_id=context_id)]


def delete(database: Database, context_id: str, *, idle_since: str | None = None) -> bool:
    """Delete a context with its records, turns, calls, tools, and attachments of its own.

    Args:
        idle_since: leave it alone where something has happened in it since, or a turn runs.

    Returns:
        Whether it was deleted.

    Raises:
        ContextNotFound: it was deleted already.
    """
    with database.write(boundary=True) as connection:
        # As every writer of a turn does: the context, then its turns, then what hangs on them.
        lock(connection, context_id)
        _LOCK_TURNS.all(connection, context_id=context_id)
        if idle_since is not None:
            active = _ACTIVITY.scalar(connection, context_id=context_id)
            if active >= idle_since or RUNNING.one(connection, context_id=context_id) is not None:
                return False
        named = attached.digests(connection, context_id)
        if _DELETE.run(connection, context_id=context_id).rowcount != 1:
            raise ContextNotFound(f"context {context_id} was deleted already")
        attached.forget(connection, named)
    return True


def idle_since(connection: Connection, moment: str) -> list[Context]:
    """Contexts in which nothing has happened since *moment* and no turn runs, oldest first."""
    return [to_context(row) for row in _IDLE.all(connection, moment=moment)]


def copy(
    database: Database,
    context: Context,
    name: str | None,
    at: int | None = None,
    text: str | None = None,
) -> Context:
    """A new context *name* with the records of *context*, up to the record *at*.

    Args:
        name: None makes one from that of *context*.
        text: what the record *at* says in the copy, instead of what it says.

    Raises:
        ConfigError: *name* is taken, *at* is no record of the context, or it cannot be changed.
        ContextNotFound: *context* was deleted.
    """
    if name is not None:
        check_text(name, "context name")
    if at is not None:
        check_id(at, "record")
    if text is not None:
        check_text(text, "text of a record")
    with database.write(boundary=True) as connection:
        lock(connection, context.id)
        source = by_id(connection, context.id) or context
        place: tuple[Any, ...] | None = (LAST_PLACE, LAST_PLACE)
        if at is not None:
            place = _PLACE.one(connection, context_id=context.id, record_id=at)
            if place is None:
                raise ConfigError(f"context {context.name!r} has no record {at!r}")
        if name is None:
            name = _free_name(connection, source.name)
        assert place is not None  # noqa: S101 - just checked
        copy_id, made = create(
            connection,
            name,
            threading=source.use_server_side_threading,
            last_response_id=source.last_response_id if at is None else None,
            parent=source.id,
            max_tokens=source.max_tokens,
            metadata_=None if source.metadata is None else dump_json(source.metadata),
        )
        if not made:
            raise ConfigError(f"a context called {name!r} already exists; choose another name")
        ids = {"copy_id": copy_id, "context_id": source.id}
        with Paused(connection, copy_id):
            _COPY_RECORDS.run(connection, position=place[0], seq=place[1], **ids)
        for row in _IN_FLIGHT.all(connection, context_id=source.id):
            _copy_in_flight(connection, copy_id, row)
        if text is not None:
            _rewrite(connection, copy_id, int(place[1]), text)
        attached.copy(connection, source.id, copy_id)
        _COPY_TOOLS.run(connection, **ids)
        recount(connection, copy_id)
        made_context = by_id(connection, copy_id)
    assert made_context is not None  # noqa: S101 - made in this transaction
    return made_context


def _free_name(connection: Connection, name: str) -> str:
    """*name* with the first number behind it that no context has."""
    bare = re.sub(r" \(\d{1,9}\)$", "", name) or name
    # Names are few that begin alike; a database of many others is not read for them.
    for number in itertools.count(2):
        wanted = f"{bare} ({number})"
        if _BY_NAME.one(connection, name=wanted) is None:
            return wanted
    raise AssertionError  # numbers do not end


def _rewrite(connection: Connection, copy_id: str, seq: int, text: str) -> None:
    """Have the record of a copy say *text*, in words that no provider has signed.

    Raises:
        ConfigError: it is of a kind whose text is not the caller's.
    """
    row = _KIND.one(connection, copy_id=copy_id, seq=seq)
    assert row is not None  # noqa: S101 - just copied
    source = RecordType(row[0])
    if source is RecordType.REASONING:
        raise ConfigError("reasoning is the model's own and cannot be edited; edit what it said")
    if source is RecordType.TOOL_CALL:
        try:
            valid = isinstance(json.loads(text), dict)
        except (ValueError, RecursionError):
            valid = False
        if not valid:
            raise ConfigError("the text of a tool call must be the JSON object of its arguments")
    size, guess = measure(text)
    if row[2]:
        # What its files take stays as it was counted.
        size, guess = max(0, row[1] - measure(row[3])[0]) + size, False
    _SET_TEXT.run(
        connection,
        copy_id=copy_id,
        seq=seq,
        content=text,
        checksum=checksum(text, None),
        tokens=size,
        guess=guess,
    )


def _copy_in_flight(connection: Connection, copy_id: str, row: tuple[Any, ...]) -> None:
    """Fold into the copy what arrived of a record; what is damaged stays so, for it to be seen."""
    record_id, seq, content, payload, crc = row
    if type(row) is Damaged or not matches(content, payload, crc):
        return
    try:
        text = content + unfolded(connection, record_id)
        crc = checksum(text, payload)
    except RecordCorrupt:
        text, crc = content, checksum(content, payload) ^ 1
    _SET_COPY.run(connection, copy_id=copy_id, seq=seq, content=text, checksum=crc)


def recount(connection: Connection, context_id: str) -> None:
    """Set the counters of a context by the records that it has."""
    _RECOUNT.run(connection, context_id=context_id)
