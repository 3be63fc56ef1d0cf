"""``NOTIFY``: a hint to followers in other processes that a context has news."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from contextwindow.store.connection import Connection

CHANNEL: Final = "contextwindow"

NOTICE_EVERY: Final = 0.02
"""Seconds between notices of one turn: PostgreSQL takes one lock for all that are committed."""


def announce(connection: Connection, context_ids: Sequence[str]) -> None:
    """Tell who listens, when the transaction is committed; nothing on SQLite."""
    if connection.dialect == "postgresql" and context_ids:
        connection.execute(
            f"SELECT pg_notify('{CHANNEL}', unnest(%s::text[]))", [list(context_ids)]
        )
