"""SQLite's write-ahead log: beginning one where the disk allows it, and keeping it short."""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Final

from contextwindow.store.connection import Refusal
from contextwindow.store.files import connect, logger

MOST: Final = 16 << 20
"""Bytes of a -wal from which on readers are waited for.

SQLite begins it anew at 4 MB, but only at a moment when nobody reads: a single process that reads
without a pause let it grow for as long as it was watched.
"""

_PATIENCE: Final = 0.25
"""Seconds that readers are waited for; nobody can write meanwhile."""

_PAUSES: Final = (1.0, 60.0)
"""Seconds before they are waited for again: at first, doubled each time, and at most."""

_NO_SHARED_MEMORY: Final = (
    sqlite3.SQLITE_IOERR_SHMOPEN,
    sqlite3.SQLITE_IOERR_SHMMAP,
    sqlite3.SQLITE_IOERR_SHMLOCK,
    sqlite3.SQLITE_READONLY_CANTINIT,
)
"""How it is said that a -shm cannot be made, mapped or locked, as on many network file systems."""


class Trimmer:
    """Keeps the -wal of one database short.

    Args:
        text: of the database, for messages.
        busy_timeout: seconds, of the connection that writes.
    """

    def __init__(self, text: str, busy_timeout: float) -> None:
        self._text = text
        self._busy_timeout = busy_timeout
        self._not_before = 0.0
        self._pause = _PAUSES[0]
        self._warned = False

    def trim(self, raw: sqlite3.Connection, size: int) -> None:
        """Begin the -wal anew, once those who read it are done; called behind a commit.

        Args:
            raw: the connection that writes, outside of a transaction.
            size: of the -wal, in bytes.
        """
        if size <= MOST or time.monotonic() < self._not_before:
            return
        try:
            with patience(raw, _PATIENCE, self._busy_timeout):
                (busy, *_) = raw.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        except sqlite3.Error as error:
            # What was committed is in the -wal, wherever that ends.
            logger.debug("%s: its -wal could not be begun anew: %s", self._text, error)
            busy = 1
        if not busy:
            self._pause, self._warned = _PAUSES[0], False
            return
        self._not_before = time.monotonic() + self._pause
        self._pause = min(2 * self._pause, _PAUSES[1])
        if is_large(size) and not self._warned:
            self._warned = True
            logger.warning(
                "%s: its -wal has grown to %d MB, since a program that reads keeps a transaction"
                " open; it shrinks when that ends",
                self._text,
                size >> 20,
            )


@contextmanager
def patience(raw: sqlite3.Connection | Refusal, seconds: float, usual: float) -> Iterator[None]:
    """Has *raw* wait for others for so many seconds, and then again as is *usual*."""
    raw.execute(f"PRAGMA busy_timeout={int(seconds * 1000)}")
    try:
        yield
    finally:
        raw.execute(f"PRAGMA busy_timeout={int(usual * 1000)}")


def is_large(size: int) -> bool:
    """Whether a -wal of *size* bytes is worth a word."""
    return size > 4 * MOST


def size_of(path: str) -> int:
    """Bytes of the -wal beside the database at *path*; 0 where there is none."""
    try:
        return os.stat(f"{path}-wal").st_size
    except OSError:
        return 0


def set_journal_mode(raw: sqlite3.Connection, wanted: str, busy_timeout: float) -> str:
    """Ask for the journal mode *wanted*; the one that SQLite grants.

    Raises:
        sqlite3.Error: others held the file for *busy_timeout* seconds, or it cannot be used.
    """
    give_up = time.monotonic() + busy_timeout
    while True:
        try:
            (granted,) = raw.execute(f"PRAGMA journal_mode={wanted}").fetchone()
            return str(granted)
        except sqlite3.OperationalError as error:
            # SQLite does not wait by itself where waiting could deadlock.
            busy = error.sqlite_errorcode & 0xFF == sqlite3.SQLITE_BUSY
            if not busy or time.monotonic() > give_up:
                raise
            time.sleep(0.01)


def is_refused(error: Exception) -> bool:
    """Whether *error* says that the file system cannot carry a write-ahead log."""
    code = getattr(error, "sqlite_errorcode", 0)
    return code in _NO_SHARED_MEMORY or code & 0xFF in (
        sqlite3.SQLITE_CANTOPEN,
        sqlite3.SQLITE_PROTOCOL,
    )  # of the -shm, too, where the system says no more than that


def give_up(path: str, busy_timeout: float) -> None:
    """Write a database's -wal back into it, and have it keep a rollback journal from now on.

    Works without shared memory, and therefore only while nobody else has the file open.

    Args:
        path: absolute.
        busy_timeout: seconds to wait for others.

    Raises:
        sqlite3.Error: somebody has it open, or the journal is not what the matter is.
    """
    with closing(connect(path, busy_timeout=busy_timeout)) as raw:
        # Before the first look at the file: then the index of the -wal is kept in memory.
        raw.execute("PRAGMA locking_mode=EXCLUSIVE")
        set_journal_mode(raw, "delete", busy_timeout)
