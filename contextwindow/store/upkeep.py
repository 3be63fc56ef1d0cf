"""Keeping SQLite's search index in step with the records, and wiping what was deleted."""

from __future__ import annotations

import sqlite3

from contextwindow.errors import StoreError
from contextwindow.store.connection import Connection
from contextwindow.store.search_schema import SIZE


def index_is_sound(connection: Connection) -> bool:
    """Whether SQLite's index has what the records hold; to be asked in a write transaction.

    Raises:
        StoreError: it could not be looked at.
    """
    try:
        connection.execute(
            "INSERT INTO search_index(search_index, rank) VALUES ('integrity-check', 1)"
        )
    except StoreError as error:
        code = getattr(error.__cause__, "sqlite_errorcode", 0)
        if code & 0xFF != sqlite3.SQLITE_CORRUPT:
            raise
        return False
    return True


def rebuild(connection: Connection) -> None:
    """Make SQLite's index anew, of nothing but the records that there are."""
    connection.execute("DELETE FROM search_queue")
    connection.execute("INSERT INTO search_index(search_index) VALUES ('rebuild')")


class Paused:
    """``with`` over statements that write many records: they are queued at once, behind them.

    Args:
        connection: its write transaction, which is rolled back where this raises.
        context_id: of the records.
    """

    def __init__(self, connection: Connection, context_id: str) -> None:
        self._connection = connection
        self._context_id = context_id
        self._needed = connection.dialect == "sqlite"

    def __enter__(self) -> None:
        if self._needed:
            self._connection.execute("UPDATE upkeep SET paused = 1")

    def __exit__(self, kind: object, *_: object) -> None:
        if not self._needed or kind is not None:
            return
        self._connection.execute(
            f"INSERT INTO search_queue(record_id, size) SELECT id, {SIZE.format('records')}"
            " FROM records WHERE context_id = ? AND content <> ''"
            " AND id NOT IN (SELECT record_id FROM search_queue)",
            (self._context_id,),
        )
        self._connection.execute("UPDATE upkeep SET paused = 0")


def note_unwiped(connection: Connection) -> None:
    """Note, in the transaction that deletes, that the bytes are still to be wiped."""
    connection.execute("UPDATE upkeep SET unwiped = 1")


def note_wiped(connection: Connection) -> None:
    """Note that nothing is left of what was deleted."""
    connection.execute("UPDATE upkeep SET unwiped = 0 WHERE unwiped = 1")


def is_unwiped(connection: Connection) -> bool:
    """Whether a secure deletion has not come to its end."""
    return bool((connection.execute("SELECT unwiped FROM upkeep").fetchone() or (0,))[0])
