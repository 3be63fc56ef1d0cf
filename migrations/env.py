"""Runs a migration on the connection that ``contextwindow.store.migrating`` hands over.

There is no other way in: the caller holds the lock, has made the copy, and commits or rolls back
everything at once.  To write a new revision: ``alembic revision`` is not needed, copy the last
file, and let ``tests/test_migrations.py`` say what is missing.
"""

from __future__ import annotations

from alembic import context
from sqlalchemy import Connection

_connection = context.config.attributes.get("connection")
if not isinstance(_connection, Connection):
    raise RuntimeError("open the database with contextwindow, which migrates it")
context.configure(connection=_connection)
with context.begin_transaction():
    context.run_migrations()
