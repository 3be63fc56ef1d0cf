"""The names of a context's tools; what they do belongs to the window."""

from __future__ import annotations

from collections.abc import Iterable

import sqlalchemy as sa

from contextwindow.errors import ContextNotFound
from contextwindow.store import conversations, writing
from contextwindow.store.engine import Database
from contextwindow.store.schema import context_tools
from contextwindow.store.statement import Statement
from contextwindow.store.values import now_text

_bind = sa.bindparam

_ADD = Statement(
    sa.insert(context_tools).values(
        context_id=_bind("context_id"), tool_name=_bind("name"), created_at=_bind("now")
    )
)

_REMOVE = Statement(
    sa.delete(context_tools)
    .where(context_tools.c.context_id == _bind("context_id"))
    .where(context_tools.c.tool_name == _bind("name"))
)


def add(database: Database, context_id: str, names: Iterable[str]) -> None:
    """Store *names* with the context; those that are there stay where they are.

    Raises:
        ContextNotFound: the context was deleted.
    """
    wanted = list(names)
    with database.read() as connection:
        if set(wanted) <= set(conversations.tools(connection, context_id)):
            return
    with database.write() as connection:
        writing.lock(connection, context_id)
        known = set(conversations.tools(connection, context_id))
        for name in wanted:
            if name not in known:
                _ADD.run(connection, context_id=context_id, name=name, now=now_text())


def remove(database: Database, context_id: str, name: str) -> bool:
    """Forget *name*; whether it was there."""
    with database.write() as connection:
        try:
            writing.lock(connection, context_id)
        except ContextNotFound:
            return False
        return _REMOVE.run(connection, context_id=context_id, name=name).rowcount > 0
