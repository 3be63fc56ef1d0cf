"""What the databases' drivers raise, in our words."""

from __future__ import annotations

import re
import sqlite3

import sqlalchemy as sa

from contextwindow.errors import (
    StoreBusy,
    StoreError,
    StoreFull,
    StoreReadOnly,
    StoreReplaced,
)


class Conflict(StoreError):
    """A row breaks a constraint: a name, a key or a lease that is taken.

    Internal: the store turns it into the error that says what was taken.
    """


def translated(error: BaseException, location: str) -> StoreError:
    """The error to raise for one of a driver, to be chained to it.

    Args:
        error: what sqlite3, psycopg or SQLAlchemy raised.
        location: of the database, for the message; without a password.
    """
    if isinstance(error, StoreError):
        return error
    if isinstance(error, sa.exc.DBAPIError) and error.orig is not None:
        return translated(error.orig, location)
    if isinstance(error, sa.exc.TimeoutError):
        return StoreBusy(f"{location}: all connections are in use; try again")
    if isinstance(error, sqlite3.Error):
        return _from_sqlite(error, location)
    return _from_postgresql(error, location)


def damaged(location: str, reason: object) -> StoreError:
    """The error for a database whose pages or files contradict each other."""
    return StoreError(
        f"{location}: the database is damaged ({reason}): run `contextwindow doctor` on it, or"
        " put a backup in its place"
    )


def _from_sqlite(error: sqlite3.Error, location: str) -> StoreError:
    if "no such module: fts5" in str(error):
        return StoreError(
            f"{location}: the SQLite of this Python was built without FTS5, its full-text search:"
            " use another build of Python, or PostgreSQL"
        )
    code = getattr(error, "sqlite_errorcode", 0)
    if code == sqlite3.SQLITE_READONLY_DBMOVED:
        return StoreReplaced(f"{location}: the file was moved or deleted: open it again")
    match code & 0xFF:  # the low byte is the primary code, the rest says more
        case sqlite3.SQLITE_BUSY | sqlite3.SQLITE_LOCKED:
            return StoreBusy(f"{location}: another program holds the database locked; try again")
        case sqlite3.SQLITE_FULL:
            return StoreFull(f"{location}: no room on the disk; nothing of this write was stored")
        case sqlite3.SQLITE_READONLY:
            return StoreReadOnly(f"{location}: the database cannot be written ({error})")
        case sqlite3.SQLITE_CORRUPT | sqlite3.SQLITE_NOTADB:
            return damaged(location, error)
        case sqlite3.SQLITE_CONSTRAINT:
            return Conflict(f"{location}: {error}")
        case sqlite3.SQLITE_IOERR:
            # Of a quota, a disk that breaks or one that turned read-only SQLite says no more.
            name = getattr(error, "sqlite_errorname", "")
            return StoreError(
                f"{location}: the disk failed ({error}, {name}): look at its quota, at its health,"
                " and whether it is mounted read-only; nothing of a write was stored"
            )
        case sqlite3.SQLITE_CANTOPEN:
            return StoreError(
                f"{location}: {error}: look at the permissions of it and its directory, at the"
                " room on the disk, and at the limit of open files"
            )
    return StoreError(f"{location}: {error}")


_BUSY = {
    "55P03",  # lock_not_available
    "40001",  # serialization_failure
    "40P01",  # deadlock_detected
    "57014",  # query_canceled: a statement timeout of the server
    "53300",  # too_many_connections
}


def _from_postgresql(error: BaseException, location: str) -> StoreError:
    state = getattr(error, "sqlstate", None)
    if state is None and (reason := _refusal(error)):
        kind = StoreBusy if _FULL.search(reason) else StoreError
        return kind(f"{location}: no connection to the server ({reason}); try again")
    if state is None or state.startswith(("08", "57P")):
        if lost(error):
            return StoreError(f"{location}: the connection to the server was lost; try again")
        return StoreError(f"{location}: {error}")
    if state in _BUSY:
        return StoreBusy(f"{location}: the server is busy with other writers ({error}); try again")
    if state == "53100":
        return StoreFull(f"{location}: no room on the server's disk")
    if state in ("25006", "42501"):
        return StoreReadOnly(f"{location}: the database cannot be written ({error})")
    if state in ("XX001", "XX002"):
        return damaged(location, error)
    if state.startswith("23"):
        return Conflict(f"{location}: {error}")
    return StoreError(f"{location}: {error}")


_FULL = re.compile("too many clients|too many connections|remaining connection slots")
_REFUSED = "connection failed: "


def _refusal(error: BaseException) -> str:
    """Why there was no connection, in the client library's words; ``""`` if there was one."""
    text = " ".join(str(error).split())
    if text.startswith(_REFUSED) or type(error).__name__ == "ConnectionTimeout":
        return text.removeprefix(_REFUSED)
    return ""


def lost(error: BaseException) -> bool:
    """Whether psycopg's *error* means that there is no connection any more."""
    state = getattr(error, "sqlstate", None)
    if state is not None:
        return bool(state.startswith(("08", "57P")))
    # psycopg raises without a state what the client library found out by itself.
    return type(error).__name__ in ("OperationalError", "InterfaceError")
