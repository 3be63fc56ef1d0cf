"""Contexts: making, finding, copying and deleting them."""

from __future__ import annotations

import uuid
from typing import Any, Final

import sqlalchemy as sa

from contextwindow.errors import ContextNotFound, StoreError
from contextwindow.records import Context, ContextStats
from contextwindow.store import attached, upkeep
from contextwindow.store.checks import check_text
from contextwindow.store.connection import Connection
from contextwindow.store.engine import Database
from contextwindow.store.leases import RUNNING
from contextwindow.store.rows import (
    CONTEXT_COLUMNS,
    STATS_COLUMNS,
    to_context,
    to_stats,
)
from contextwindow.store.schema import context_tools, contexts, records, turns
from contextwindow.store.statement import Statement, insert_ignore
from contextwindow.store.values import now_text
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

COUNTED: Final[dict[str, sa.ColumnElement[Any]]] = {
    "next_seq": sa.func.coalesce(sa.func.max(records.c.seq), 0) + 1,
    "record_count": sa.func.count(),
    "live_count": sa.func.count(sa.case((records.c.live, 1))),
    "live_tokens": sa.func.coalesce(
        sa.func.sum(sa.case((records.c.live, records.c.est_tokens), else_=0)), 0
    ),
    "uncounted": sa.func.count(sa.case((sa.and_(records.c.live, records.c.uncounted), 1))),
}
"""What the counters of a context count, by their names."""

_RECOUNT = Statement(
    sa.update(contexts)
    .where(contexts.c.id == _bind("context_id"))
    .values(
        # What was copied or came in is in use now, however old its records are.
        last_activity=_bind("now"),
        **{
            name: sa.select(expression)
            .where(records.c.context_id == _bind("context_id"))
            .scalar_subquery()
            for name, expression in COUNTED.items()
        },
    )
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


def delete(
    database: Database, context_id: str, *, idle_since: str | None = None, secure: bool = False
) -> bool:
    """Delete a context with its records, turns, calls, tools, and attachments of its own.

    Args:
        idle_since: leave it alone where something has happened in it since, or a turn runs.
        secure: its bytes will be wiped; an interruption in between is noted.

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
        if secure:
            upkeep.note_unwiped(connection)
        if not _delete(connection, context_id):
            raise ContextNotFound(f"context {context_id} was deleted already")
        attached.forget(connection, named)
    return True


def _delete(connection: Connection, context_id: str) -> bool:
    """Delete the row of a context, and with it all that hangs on it; whether there was one."""
    try:
        return _DELETE.run(connection, context_id=context_id).rowcount == 1
    except StoreError:
        if connection.dialect != "sqlite" or upkeep.index_is_sound(connection):
            raise
    # Text that was damaged on the disk is not what the index was made of: it cannot be taken out.
    upkeep.rebuild(connection)
    return _DELETE.run(connection, context_id=context_id).rowcount == 1


def idle_since(connection: Connection, moment: str) -> list[Context]:
    """Contexts in which nothing has happened since *moment* and no turn runs, oldest first."""
    return [to_context(row) for row in _IDLE.all(connection, moment=moment)]


def recount(connection: Connection, context_id: str) -> None:
    """Set the counters of a context that has just been made by the records that it has."""
    _RECOUNT.run(connection, context_id=context_id, now=now_text())
