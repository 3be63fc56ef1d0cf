"""SQLite: one writer, a few readers, and the guards that keep what was acknowledged."""

from __future__ import annotations

import os
import sqlite3
import threading
import time
import uuid
import weakref
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager, suppress
from threading import get_ident
from typing import Any, TypeVar

import sqlalchemy as sa

from contextwindow.errors import StoreBusy, StoreError, StoreReadOnly, StoreReplaced
from contextwindow.records import Migration, Progress
from contextwindow.store import opening, upkeep, wal
from contextwindow.store.connection import ENDED, Connection, Refusal
from contextwindow.store.failures import translated
from contextwindow.store.files import connect, create, identity, logger, warn_of_size
from contextwindow.store.location import Location

_T = TypeVar("_T")

_READERS = 8
_MORE_READERS = 56


class SQLiteDatabase:
    """The SQLite side of `contextwindow.store.engine.Database`, which documents it."""

    def __init__(
        self,
        location: Location,
        *,
        synchronous: str,
        journal_mode: str,
        read_only: bool,
        busy_timeout: float,
        progress: Progress | None = None,
    ) -> None:
        self.location = location
        self.migration: Migration | None = None
        self._busy_timeout = busy_timeout
        self._read_only = read_only
        self._state = Refusal(StoreError, "")
        self._refused = False
        self._readers: sa.Engine | None = None
        self._raws: set[sqlite3.Connection] = set()
        self._active: set[Connection] = set()
        self._options = "mode=ro"
        self._wal = ""  # path of the -wal when this connection keeps one
        self._size = self._wal_size = 0
        self.most = 0  # bytes from which on a warning is logged, 0 for none
        self._torn = False  # without a -wal, a write that failed may be half in the file
        self._trimmer = wal.Trimmer(location.text, busy_timeout)
        path = location.path
        if path is not None:
            self.migration = opening.open_file(
                location, read_only=read_only, busy_timeout=busy_timeout, progress=progress
            )
        self._gate = _gate(path)
        try:
            self._raw: sqlite3.Connection | Refusal = self._open_writer(journal_mode)
        except sqlite3.Error as error:
            self._abandon()
            raise translated(error, location.text) from error
        except BaseException:
            self._abandon()
            raise
        self._level = ""
        self._connection = self._new_connection()
        self._identity = self._identify()
        plain, boundary = _levels(synchronous, wal=bool(self._wal))
        self._write = _Write(self, f"PRAGMA synchronous={plain}")
        self._boundary = _Write(self, f"PRAGMA synchronous={boundary}")
        if path is not None:
            self._readers = self._make_readers()
        _opened.add(self)

    # -- what the store uses

    def write(self, boundary: bool, patient: bool = True) -> AbstractContextManager[Connection]:
        """`Database.write`."""
        write = self._boundary if boundary else self._write
        return write if patient else _Write(self, write.level, patient=False)

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """`Database.read`."""
        if self._refused:
            self._state.refuse()
        if self._readers is None:
            with self._read_memory() as connection:
                yield connection
            return
        if identity(str(self.location.path)) != self._identity[:2]:
            self._replaced()
            self._state.refuse()
        if self._torn:
            self._put_together()
        try:
            fairy = self._readers.raw_connection()
        except (sqlite3.Error, sa.exc.SQLAlchemyError) as error:
            raise translated(error, self.location.text) from error
        raw: Any = fairy.dbapi_connection
        connection = self._new_connection()
        self._active.add(connection)
        try:
            raw.execute("BEGIN")
            connection.attach(raw)
            yield connection
        except sqlite3.Error as error:
            raise translated(error, self.location.text) from error
        finally:
            self._active.discard(connection)
            connection.attach(ENDED)
            if self._readers is not None:  # else a fork or a replaced file: not to be touched
                _roll_back(raw)
                fairy.close()

    def now(self, connection: Connection) -> float:
        """`Database.now`."""
        return time.monotonic()

    @contextmanager
    def beside(self) -> Iterator[Any]:
        """`Database.beside`."""
        if self._refused:
            self._state.refuse()
        if self.location.path is None:
            yield None
            return
        raw = self._open_reader()
        try:
            yield raw
        finally:
            if raw in self._raws:  # else a fork or a replaced file: not to be touched
                self._raws.discard(raw)
                raw.close()

    def backup(self, to_path: str) -> None:
        """`Database.backup`."""
        if self._refused:
            self._state.refuse()
        if self.location.path is not None:
            opening.back_up(self.location.path, to_path, self.location.text)
            return
        # Not inside a transaction: SQLite would wait for its end.
        self._gate.take(self._busy_timeout, self.location.text)
        try:
            raw = self._raw
            if isinstance(raw, Refusal):
                raw.refuse()
            opening.back_up_from(raw, to_path, self.location.text)
        finally:
            self._gate.give()

    def close(self) -> None:
        """`Database.close`."""
        self._gate.take(self._busy_timeout, self.location.text)
        try:
            if self._refused:
                return
            if self._identify() != self._identity:
                rescued = self._rescue()
                logger.warning(
                    "%s: was moved, deleted or replaced while it was open; what this process had"
                    " written is in %s",
                    self.location.text,
                    rescued,
                )
                self._leak()
            self._refuse(StoreError, f"{self.location.text}: the database is closed")
            self._abandon()
        finally:
            self._gate.give()

    # -- the writer

    def begin(self, level: str, patient: bool) -> Connection:
        """Takes the writer and begins; *level* is the PRAGMA for the commit."""
        self._gate.take(self._busy_timeout if patient else 0.0, self.location.text)
        raw = self._raw
        try:
            if level != self._level:
                # Inside a transaction SQLite ignores it.
                raw.execute(level)
                self._level = level
            if patient:
                raw.execute("BEGIN IMMEDIATE")
            else:
                with wal.patience(raw, 0.0, self._busy_timeout):
                    raw.execute("BEGIN IMMEDIATE")
        except sqlite3.Error as error:
            try:
                raise self._refused_by(error) from error
            finally:
                self._gate.give()
        except BaseException:
            self._gate.give()
            raise
        connection = self._connection
        connection.attach(raw)
        return connection

    def end(self, error: BaseException | None) -> None:
        """Commits, or rolls back when there is an *error*, and lets the next writer in."""
        self._connection.attach(ENDED)
        raw = self._raw
        try:
            if error is None:
                self._commit(raw)
                return
            _roll_back(raw)
            if isinstance(error, (sqlite3.Error, StoreError)):
                self._torn = not self._wal
                refused = self._refused_by(error)
                if refused is not error:
                    raise refused from error
        finally:
            self._gate.give()

    def _commit(self, raw: sqlite3.Connection | Refusal) -> None:
        if not raw.in_transaction:
            if isinstance(raw, Refusal):
                raw.refuse()
            raise StoreError(
                f"{self.location.text}: the transaction was rolled back by SQLite after an error"
                " inside it; nothing of it was stored"
            )
        try:
            raw.execute("COMMIT")
        except sqlite3.Error as error:
            _roll_back(raw)
            self._torn = not self._wal
            raise self._refused_by(error) from error
        if self._identify() != self._identity:
            self._replaced()
            self._state.refuse()
        if 0 < self.most < self._size + self._wal_size:
            size = self._size + self._wal_size
            warn_of_size(self.location.text, size, self.most)
            self.most = size + size // 10
        if self._wal_size > wal.MOST and isinstance(raw, sqlite3.Connection):
            self._trimmer.trim(raw, self._wal_size)

    def wipe(self) -> None:
        """`Database.wipe`."""
        with self.write(boundary=True) as connection:
            # What is only crossed out in it would be copied with it.
            upkeep.rebuild(connection)
        self._alone(lambda raw: raw.execute("VACUUM"))
        give_up = time.monotonic() + self._busy_timeout
        while self._wal and self._alone(self._empty_wal):
            if time.monotonic() > give_up:
                raise StoreBusy(
                    f"{self.location.text}: what was deleted cannot be read any more, but its bytes"
                    " are still in the -wal, since somebody is reading; call wipe_deleted() when"
                    " that is done"
                )
            time.sleep(0.05)
        with self.write(boundary=True) as connection:
            upkeep.note_wiped(connection)

    def _empty_wal(self, raw: sqlite3.Connection) -> bool:
        """Begin the -wal anew, with nothing in it; whether readers keep it from being so."""
        with wal.patience(raw, 0.1, self._busy_timeout):
            (busy, *_) = raw.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        return bool(busy)

    def _alone(self, work: Callable[[sqlite3.Connection], _T]) -> _T:
        """Do *work*, which is no transaction, while nobody else of this process writes.

        They wait for it however long it takes: a stream is not to end for it.
        """
        self._gate.take(self._busy_timeout, self.location.text)
        self._gate.long = True
        try:
            if isinstance(self._raw, Refusal):
                self._raw.refuse()
            return work(self._raw)
        except sqlite3.Error as error:
            raise self._refused_by(error) from error
        finally:
            self._gate.long = False
            self._gate.give()

    def size(self) -> int:
        """`Database.size`."""
        path = self.location.path
        if path is None:
            with self.read() as connection:
                (pages,) = connection.execute("PRAGMA page_count").fetchone() or (0,)
                (page,) = connection.execute("PRAGMA page_size").fetchone() or (0,)
                return int(pages * page)
        found = 0
        for name in (path, f"{path}-wal"):
            with suppress(OSError):
                found += os.stat(name).st_size
        return found

    def _put_together(self) -> None:
        """Take back what a failed write has left in the file: only a writer may."""
        with suppress(StoreError):
            with self.write(boundary=False, patient=False):
                pass
            self._torn = False

    def _refused_by(self, error: sqlite3.Error | StoreError) -> StoreError:
        """What to raise for *error*: what looks like a broken disk may be a file that is gone."""
        if isinstance(error, StoreReplaced) and self._refused:
            return error
        if self._identify() != self._identity and not self._refused:
            self._replaced()
            return StoreReplaced(self._state.message)
        return translated(error, self.location.text)

    def _identify(self) -> tuple[int, ...]:
        """Device and number of the file, number of its -wal; empty in memory."""
        path = self.location.path
        if path is None:
            return ()
        try:
            found = os.stat(path)
            self._size = found.st_size
            if not self._wal:
                return found.st_dev, found.st_ino
            log = os.stat(self._wal)
            self._wal_size = log.st_size
            return found.st_dev, found.st_ino, log.st_ino
        except OSError:
            return (0,)

    def _replaced(self) -> None:
        """Refuses everything from now on; what was written since went to a dead file."""
        rescued = self._rescue()
        kept = (
            f"all that this process had written is in {rescued}"
            if rescued
            else "the last write may be missing"
        )
        self._refuse(
            StoreReplaced,
            f"{self.location.text}: the file (or its -wal) was moved, deleted or replaced while it"
            f" was open; {kept}: open it again, in a new process if only its -wal is gone",
        )
        self._leak()

    def _rescue(self) -> str | None:
        """Copies the dead file, which this process alone can still read; the copy's path."""
        path = f"{self.location.path}.rescue-{uuid.uuid4().hex[:12]}"
        try:
            create(path)
            with closing(connect(path)) as copy:
                self._raw.backup(copy)  # type: ignore[union-attr]  # refused connections do not come here
        except (OSError, sqlite3.Error, AttributeError) as error:
            logger.warning("%s: could not be rescued: %s", self.location.text, error)
            with suppress(OSError):
                os.unlink(path)
            return None
        return path

    def _refuse(self, kind: type[StoreError], message: str) -> None:
        self._state = Refusal(kind, message)
        self._refused = True
        self._raw = self._state
        for connection in [self._connection, *list(self._active)]:
            connection.attach(self._state)

    # -- opening and closing

    def _open_writer(self, journal_mode: str) -> sqlite3.Connection | Refusal:
        path = self.location.path
        if path is None:
            raw = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)
            self._raws.add(raw)
            _prepare(raw)
            opening.fill(raw)
            return raw
        if self._read_only:
            self._choose_options(path)
            return Refusal(StoreReadOnly, f"{self.location.text}: was opened with read_only=True")
        try:
            raw, granted = self._open_journal(path, journal_mode)
        except sqlite3.Error as error:
            if not wal.is_refused(error):
                raise
            raw, granted = self._without_wal(path, error)
        if granted == "wal":
            self._wal = f"{path}-wal"
        if granted != journal_mode:
            logger.warning(
                "%s: journal mode %s was refused by the file system, %s is used",
                self.location.text,
                journal_mode,
                granted,
            )
        return raw

    def _open_journal(self, path: str, journal_mode: str) -> tuple[sqlite3.Connection, str]:
        """A connection that has written, and the journal mode that it was granted."""
        raw = connect(path, busy_timeout=self._busy_timeout)
        self._raws.add(raw)
        try:
            _prepare(raw)
            granted = wal.set_journal_mode(raw, journal_mode, self._busy_timeout)
            # The first transaction makes the -wal, whose identity is noted; and what was found
            # without a lock is looked at again.
            raw.execute("BEGIN IMMEDIATE")
            opening.revision_of(raw, self.location.text)
            raw.execute("COMMIT")
        except sqlite3.Error:
            self._raws.discard(raw)
            raw.close()
            raise
        return raw, granted

    def _without_wal(self, path: str, reason: sqlite3.Error) -> tuple[sqlite3.Connection, str]:
        """As `_open_journal`, where *reason* is that there cannot be a -wal."""
        try:
            wal.give_up(path, self._busy_timeout)
            return self._open_journal(path, "delete")
        except sqlite3.Error:
            # Not the -wal is what is wrong, or somebody else can use it.
            raise reason from None

    def _choose_options(self, path: str) -> None:
        """Finds out how the file can be read: in a read-only directory there can be no -wal."""
        with suppress(sqlite3.Error):
            raw = connect(path, options=self._options)
            try:
                raw.execute("SELECT count(*) FROM sqlite_master").fetchone()
                return
            finally:
                raw.close()
        if not os.path.exists(f"{path}-wal"):
            self._options = "mode=ro&immutable=1"

    def _make_readers(self) -> sa.Engine:
        readers = sa.create_engine(
            "sqlite://",
            creator=self._open_reader,
            poolclass=sa.QueuePool,
            pool_size=_READERS,
            max_overflow=_MORE_READERS,
            pool_timeout=self._busy_timeout,
            pool_reset_on_return=None,  # `read` ends its transaction itself
        )
        sa.event.listen(readers, "close", self._forget)
        return readers

    def _open_reader(self) -> sqlite3.Connection:
        raw = connect(
            str(self.location.path), options=self._options, busy_timeout=self._busy_timeout
        )
        self._raws.add(raw)
        _prepare(raw)
        # Two connections that reset the WAL at one time damage the file before SQLite 3.51.3.
        raw.execute("PRAGMA wal_autocheckpoint=0")
        raw.execute("PRAGMA query_only=ON")
        return raw

    def _forget(self, raw: Any, record: object) -> None:
        self._raws.discard(raw)

    def _new_connection(self) -> Connection:
        return Connection("sqlite", self.location.text, sqlite3.Error)

    @contextmanager
    def _read_memory(self) -> Iterator[Connection]:
        if self._gate.owner == get_ident():
            # Inside its own write: there is no second connection to the memory.
            yield self._connection
            return
        with self._write as connection:
            yield connection

    def _abandon(self) -> None:
        """Closes what is open; the writer last, for it checkpoints."""
        if self._readers is not None:
            self._readers.dispose()
        for raw in list(self._raws):
            self._raws.discard(raw)
            with suppress(sqlite3.Error):
                raw.close()

    def _leak(self) -> None:
        """Keeps every connection from ever being closed, even when the interpreter exits.

        Closing would copy the -wal of a file that is gone over the pages of the new one; in a
        forked child, it would work without the locks, which stayed with the parent.
        """
        import ctypes

        for thing in [*self._raws, self._readers]:
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(thing))
        self._raws.clear()
        self._readers = None

    def after_fork(self) -> None:
        """In a child: SQLite's locks stayed with the parent, so nothing may be touched."""
        self._gate = Gate()
        if not self._refused:
            self._refuse(
                StoreError,
                f"{self.location.text}: was opened before fork: open it again in the child",
            )
        self._leak()


class _Write:
    """``with`` over one write transaction; one object serves all, it holds nothing."""

    __slots__ = ("_database", "_patient", "level")

    def __init__(self, database: SQLiteDatabase, level: str, *, patient: bool = True) -> None:
        self._database = database
        self._patient = patient
        self.level = level

    def __enter__(self) -> Connection:
        return self._database.begin(self.level, self._patient)

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self._database.end(error)


class Gate:
    """Lets one thread of the process write at a time.

    SQLite's own waiting is no queue: with eight writers the slowest waited seconds.

    Attributes:
        owner: the thread that is inside, 0 when none is.
        long: it does what may take minutes, for which others wait without end.
    """

    __slots__ = ("__weakref__", "_lock", "long", "owner")

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.owner = 0
        self.long = False

    def take(self, timeout: float, text: str) -> None:
        """Goes inside.

        Raises:
            StoreError: this thread is inside already: waiting would never end.
            StoreBusy: another thread stayed inside for *timeout* seconds.
        """
        if not self._lock.acquire(False):
            if self.owner == get_ident():
                raise StoreError(
                    f"{text}: this thread has a transaction open already; end it first"
                )
            while not self._lock.acquire(timeout=timeout):
                if self.long:
                    continue
                raise StoreBusy(f"{text}: another thread has been writing for {timeout:g} s")
        self.owner = get_ident()

    def give(self) -> None:
        """Goes outside; nothing to do in a child that was forked while its parent was inside."""
        if self.owner == get_ident():
            self.owner = 0
            self._lock.release()


_gates: weakref.WeakValueDictionary[str, Gate] = weakref.WeakValueDictionary()
_gates_lock = threading.Lock()
_opened: weakref.WeakSet[SQLiteDatabase] = weakref.WeakSet()


def _gate(path: str | None) -> Gate:
    """One for all who opened *path* in this process."""
    if path is None:
        return Gate()
    with _gates_lock:
        return _gates.setdefault(path, Gate())


def open_files() -> set[tuple[int, int]]:
    """Device and number of all files that this process has open as databases."""
    found = set()
    for database in list(_opened):
        path = database.location.path
        for ending in ("", "-wal", "-shm", "-journal") if path is not None else ():
            with suppress(OSError):
                file = os.stat(f"{path}{ending}")
                found.add((file.st_dev, file.st_ino))
    return found


def _after_fork() -> None:
    global _gates_lock
    _gates_lock = threading.Lock()
    _gates.clear()
    for database in list(_opened):
        database.after_fork()


os.register_at_fork(after_in_child=_after_fork)


def _prepare(raw: sqlite3.Connection) -> None:
    raw.execute("PRAGMA foreign_keys=ON")
    # trusted_schema stays on, or triggers could not fill the search index before SQLite 3.42; a
    # trigger in a file from elsewhere has nothing to call, since no function is registered here.


def _levels(synchronous: str, *, wal: bool) -> tuple[str, str]:
    """``PRAGMA synchronous`` of a plain commit and of a boundary."""
    if synchronous == "full":
        return "FULL", "FULL"
    if synchronous == "normal":
        return "NORMAL", "NORMAL"
    # Without a WAL, NORMAL may damage the file in a power failure; with one it cannot.
    return ("NORMAL" if wal else "FULL"), "FULL"


def _roll_back(raw: sqlite3.Connection | Refusal) -> None:
    with suppress(sqlite3.Error):
        if raw.in_transaction:
            raw.execute("ROLLBACK")
