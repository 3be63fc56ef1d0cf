"""One opened database, whichever it is: what the rest of the store stands on."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager
from typing import Any, Final

import sqlalchemy as sa

from contextwindow.errors import ConfigError
from contextwindow.records import Migration, Progress
from contextwindow.store import statement
from contextwindow.store.connection import Connection, Cursor
from contextwindow.store.failures import Conflict
from contextwindow.store.files import warn_of_size
from contextwindow.store.location import locate
from contextwindow.store.postgres import PostgresDatabase
from contextwindow.store.sqlite import SQLiteDatabase
from contextwindow.store.statement import Statement, insert_ignore

__all__ = ["Conflict", "Connection", "Cursor", "Database", "Statement", "insert_ignore"]

_SYNCHRONOUS: Final = ("boundaries", "full", "normal")
_JOURNAL_MODES: Final = ("wal", "delete")


class Database:
    """One opened database: a writer, readers, and guards against losing what was acknowledged.

    Opening does everything: a new database is created, an older one migrated, a foreign one
    refused.  Safe for threads; after ``fork`` the child has to open its own.

    Args:
        database: a path, ``":memory:"`` or an SQLAlchemy URL of SQLite or PostgreSQL.
        synchronous: which commits wait for the disk: ``"boundaries"`` (those that ask),
            ``"full"`` (all) or ``"normal"`` (none: a power failure may take the last ones back).
        journal_mode: ``"wal"`` or ``"delete"``; SQLite only.
        read_only: nothing is created, migrated or written.
        busy_timeout: seconds to wait for another writer.
        progress: told how many pages of the copy before a migration are made.

    Attributes:
        dialect: ``"sqlite"`` or ``"postgresql"``.
        location: path or URL for messages, without a password.
        path: absolute path of the SQLite file; None in memory and on PostgreSQL.
        read_only: as given.

    Raises:
        ConfigError: an argument is wrong, or psycopg is not installed.
        NotAContextDatabase: it holds something else, and was left as it is.
        SchemaTooNew: a later contextwindow made it.
        StoreReadOnly: the file or its directory cannot be written.
        StoreBusy: another program held it for *busy_timeout*.
        StoreError: it is damaged or out of reach; the message says what to do.
    """

    def __init__(
        self,
        database: str | os.PathLike[str] | sa.URL = ":memory:",
        *,
        synchronous: str = "boundaries",
        journal_mode: str = "wal",
        read_only: bool = False,
        busy_timeout: float = 10.0,
        progress: Progress | None = None,
    ) -> None:
        _one_of("synchronous", synchronous, _SYNCHRONOUS)
        _one_of("journal_mode", journal_mode, _JOURNAL_MODES)
        found = locate(database)
        self.dialect = found.dialect
        self.location = found.text
        self.path = found.path
        self.read_only = read_only
        self._inner: SQLiteDatabase | PostgresDatabase
        if found.dialect == "sqlite":
            self._inner = SQLiteDatabase(
                found,
                synchronous=synchronous,
                journal_mode=journal_mode,
                read_only=read_only,
                busy_timeout=busy_timeout,
                progress=progress,
            )
        else:
            self._inner = PostgresDatabase(
                found, synchronous=synchronous, read_only=read_only, busy_timeout=busy_timeout
            )

    def __repr__(self) -> str:
        return f"Database({self.location!r})"

    def write(
        self, *, boundary: bool = False, patient: bool = True
    ) -> AbstractContextManager[Connection]:
        """One write transaction: committed at the end of the ``with``, rolled back on any error.

        On SQLite one thread of the process is inside at a time, and another program's lock is
        waited for at the start, never at the commit.

        Args:
            boundary: the commit survives a power failure also with ``synchronous="boundaries"``.
            patient: wait for another program's lock on SQLite; the caller who has just waited
                for ``busy_timeout`` in vain does not do it again.

        Raises:
            StoreBusy: another writer was faster, for longer than ``busy_timeout``.
            StoreFull: no room; nothing was stored.
            StoreReadOnly: opened with ``read_only``, or the disk does not take writes.
            StoreReplaced: the file was moved, deleted or replaced; open it again.
            StoreError: closed, forked, lost or damaged; the message says which.
        """
        return self._inner.write(boundary, patient)

    def read(self) -> AbstractContextManager[Connection]:
        """One read transaction: all its statements see the same state.

        Raises:
            StoreError: and its kinds, as `write`.
        """
        return self._inner.read()

    @property
    def migration(self) -> Migration | None:
        """What opening has migrated; None where nothing was to be."""
        return self._inner.migration

    def wipe(self) -> None:
        """Write an SQLite file anew without anything that was deleted from it.

        Raises:
            ConfigError: this is PostgreSQL.
            StoreBusy: another program reads; what was deleted is still in the -wal.
            StoreError: as `write`.
        """
        self.check_wipes()
        assert isinstance(self._inner, SQLiteDatabase)  # noqa: S101 - just checked
        self._inner.wipe()

    def check_wipes(self) -> None:
        """See whether `wipe` can do what is asked of it.

        Raises:
            ConfigError: this is PostgreSQL.
        """
        if self.dialect != "sqlite":
            raise ConfigError(
                f"{self.location}: what a server keeps of deleted rows (its log, its backups, its"
                " replicas) is not in this library's hands; delete without secure=True"
            )

    def size(self) -> int:
        """Bytes of the database: of the file and its -wal, or of all of the server's database."""
        return self._inner.size()

    def limit(self, most: int) -> None:
        """Have a warning logged when the database has more than *most* bytes.

        On SQLite whenever it has grown by a tenth more; on PostgreSQL only now.
        """
        if isinstance(self._inner, SQLiteDatabase):
            self._inner.most = most
        size = self.size()
        if size > most:
            warn_of_size(self.location, size, most)

    @property
    def connected(self) -> int:
        """How often a server was connected to; 0 on SQLite.

        A server that crashes closes every connection, and may have lost what it had just taken:
        as long as this number stays, it did not.
        """
        return self._inner.connected if isinstance(self._inner, PostgresDatabase) else 0

    def now(self, connection: Connection) -> float:
        """Seconds by a clock that all users of the database share.

        The server's on PostgreSQL.  On SQLite they share the machine: the time since it was
        started, which nobody sets.
        """
        return self._inner.now(connection)

    def beside(self) -> AbstractContextManager[Any]:
        """A driver's connection of its own, only to learn from it that others have committed.

        None in memory, where there are no others.
        """
        return self._inner.beside()

    def insert_ignore(self, table: sa.Table) -> statement.Insert:
        """``INSERT`` into *table* that does nothing where a row of that key exists."""
        return insert_ignore(self.dialect, table)

    def backup(self, to_path: str | os.PathLike[str]) -> None:
        """Copies an SQLite database, while it is used, to a file that must not exist.

        Raises:
            StoreError: *to_path* exists or cannot be written, or this is PostgreSQL.
        """
        self._inner.backup(os.path.abspath(os.fsdecode(to_path)))

    def close(self) -> None:
        """Waits for the write that runs and closes; may be called again.

        Afterwards every use raises StoreError.
        """
        self._inner.close()


def _one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ConfigError(f"{name} must be one of {', '.join(allowed)}, not {value!r}")
