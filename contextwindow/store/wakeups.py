"""Who is woken when: one thread of a store reads what was committed, for all who follow.

It runs only while somebody follows.  A context is read once for all of its followers; each takes
from a short buffer what it has not had.  One that is too slow for the buffer reads the log by
itself, later.
"""

from __future__ import annotations

import asyncio
import logging
import select
import socket
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from typing import Any, Final

from contextwindow.chunks import StreamChunk
from contextwindow.errors import ContextWindowError, StoreBusy, StoreError
from contextwindow.follow import attempt_of
from contextwindow.store import leases
from contextwindow.store.engine import Database
from contextwindow.store.following import Log
from contextwindow.store.notices import CHANNEL

BUSY: Final = 0.02
IDLE: Final = 0.25
"""Seconds between looks at what other processes have committed: while something comes, and when
nothing has for a while."""

SLOW: Final = 0.5
"""Seconds after which a context is read although nobody said that it has news."""

ALIVE: Final = 1.0
"""Seconds between looks whether the process that holds a running turn is still there."""

PACE: Final = 0.01
PACE_EACH: Final = 0.0005
"""Seconds between two reads of a context, and as many more for each of its followers: to wake one
costs 20 µs of the time that the stream needs."""

RETRY: Final = 5.0
"""Seconds after which a connection that was lost is asked for again."""

_KEPT: Final = 64
"""Batches that a follower may be behind before it reads the log by itself."""

_log = logging.getLogger("contextwindow")


@dataclass(frozen=True, slots=True)
class Batch:
    """What one read of a context gave.

    Attributes:
        running: whether a turn was under way.
    """

    chunks: tuple[StreamChunk, ...]
    running: bool


class Tail:
    """The end of a context's log, read once for all who follow it there.

    Attributes:
        context_id: the context.
        followers: how many they are.
        dirty: somebody said that there is news.
        read_at: when the log was read last (seconds of the monotonic clock).
        told_at: when this process committed something to it last.
        running: whether a turn is under way.
    """

    def __init__(
        self,
        context_id: str,
        database: Database,
        settle: Callable[[str], bool],
    ) -> None:
        self.context_id = context_id
        self.followers = 0
        self.dirty = False
        self.read_at = self.told_at = float("-inf")
        self.running = False
        self._database = database
        self._settle = settle
        self._reading = threading.Lock()
        self._log: Log | None = None
        self._news = threading.Condition()
        self._batches: deque[Batch] = deque(maxlen=_KEPT)
        self._end = 0
        self._failure: ContextWindowError | None = None
        self._waiters: set[asyncio.Future[None]] = set()
        self._looked = float("-inf")
        self._died = 0

    @property
    def failed(self) -> bool:
        """Whether it cannot be read any more."""
        return self._failure is not None

    @property
    def pace(self) -> float:
        """Seconds between two reads."""
        return min(IDLE, max(PACE, PACE_EACH * self.followers))

    def is_older_than(self, epoch: int | None) -> bool:
        """Whether a context of that epoch has a turn that was not read; None: it is gone."""
        log = self._log
        return log is not None and (epoch is None or attempt_of(epoch) > log.reading.attempt)

    def join(self, log: Log) -> tuple[list[StreamChunk], int, bool]:
        """Bring *log* and the tail to the same place.

        Returns:
            What *log* had not shown yet, the number of the batch that comes next, and whether a
            turn is under way.

        Raises:
            ContextNotFound: the context was deleted.
            StoreError: the database refused.
        """
        with self._reading:
            chunks = self._advance_with(log)
            if log.running and self._looks_dead(log):
                chunks += self._advance_with(log)
            if self._log is None:
                self._log = log
            self.running = log.running
            return chunks, self._end, log.running

    def _advance_with(self, log: Log) -> list[StreamChunk]:
        """Read the log for the tail and for *log*, in the same state."""
        with self._database.read() as connection:
            if self._log is not None:
                self._add(self._log.advance(connection, self._died), self._log.running)
            return log.advance(connection, self._died)

    def read(self) -> None:
        """Read what was committed and hand it on; never raises."""
        with self._reading:
            self.dirty = False
            self.read_at = time.monotonic()
            if self._log is None or self._failure is not None:
                return
            try:
                self._read(self._log)
            except StoreBusy:
                self.dirty = True
            except ContextWindowError as error:
                self.fail(error)
            except Exception as error:  # noqa: BLE001 - raised where the chunks are waited for
                _log.exception("context %s cannot be followed any more", self.context_id)
                self.fail(StoreError(f"{self._database.location}: {error}"))

    def _read(self, log: Log) -> None:
        with self._database.read() as connection:
            chunks = log.advance(connection, self._died)
        self._add(chunks, log.running)
        if log.running and self._looks_dead(log):
            with self._database.read() as connection:
                chunks = log.advance(connection, self._died)
            self._add(chunks, log.running)

    def _looks_dead(self, log: Log) -> bool:
        """Settle the turn under way if nobody drives it; looks once a second."""
        moment = time.monotonic()
        if moment - self._looked < ALIVE:
            return False
        self._looked = moment
        with self._database.read() as connection:
            now = self._database.now(connection)
            if not leases.is_dead(connection, self.context_id, now):
                return False
        if self._database.read_only:
            # Who may not write tells it all the same.
            self._died = log.reading.attempt
        else:
            self._settle(self.context_id)
        return True

    def _add(self, chunks: list[StreamChunk], running: bool) -> None:
        changed, self.running = running != self.running, running
        if not chunks and not changed:
            return
        with self._news:
            self._batches.append(Batch(tuple(chunks), running))
            self._end += 1
            self._wake()

    def fail(self, error: ContextWindowError) -> None:
        """Let everybody who follows raise *error*."""
        with self._news:
            self._failure = self._failure or error
            self._wake()

    def _wake(self) -> None:
        self._news.notify_all()
        waiters, self._waiters = self._waiters, set()
        loops: dict[asyncio.AbstractEventLoop, list[asyncio.Future[None]]] = {}
        for one in waiters:
            loops.setdefault(one.get_loop(), []).append(one)
        for loop, futures in loops.items():
            with suppress(RuntimeError):  # the loop is closed: nobody waits any more
                loop.call_soon_threadsafe(_set, futures)

    def take(self, number: int) -> Batch | None:
        """The batch of that number; None when it is not there yet.

        Raises:
            Behind: it is not there any more.
            ContextNotFound: the context was deleted.
            StoreError: the log cannot be read any more.
        """
        with self._news:
            return self._take(number)

    def wait(self, number: int, timeout: float | None) -> Batch | None:
        """As ``take``, but wait for it; None when *timeout* seconds have passed."""
        with self._news:
            found = self._take(number)
            if found is None:
                self._news.wait(timeout)
                found = self._take(number)
            return found

    def waiter(self, number: int, waiter: asyncio.Future[None]) -> bool:
        """Have *waiter* woken when there is news; False when the batch is there already."""
        with self._news:
            if self._failure is not None or number < self._end:
                return False
            self._waiters.add(waiter)
            return True

    def forget(self, waiter: asyncio.Future[None]) -> None:
        """Do not wake *waiter*."""
        with self._news:
            self._waiters.discard(waiter)

    def _take(self, number: int) -> Batch | None:
        behind = self._end - number
        if behind > len(self._batches):
            raise Behind
        if behind > 0:
            return self._batches[-behind]
        if self._failure is not None:
            raise type(self._failure)(*self._failure.args) from self._failure
        return None


class Behind(Exception):
    """A follower is too slow for the buffer: it has to read the log by itself."""


class Wakeups:
    """The tails of a store's contexts, and the thread that reads them.

    Args:
        settle: settles a context's dead turn; whether it did.
    """

    def __init__(self, database: Database, settle: Callable[[str], bool]) -> None:
        self._database = database
        self._settle = settle
        self._tails: dict[str, Tail] = {}
        self._lock = threading.Lock()
        self._source: _Source | None = None
        # Sources whose thread has not ended yet.
        self._open: set[_Source] = set()
        self._closed = False

    def committed(self, context_id: str) -> None:
        """This process has committed something to a context; never blocks, never raises."""
        # Nearly always nobody follows: that costs one look into an empty dict.
        tail = self._tails.get(context_id)
        if tail is not None:
            tail.told_at = time.monotonic()
            if not tail.dirty:
                tail.dirty = True
                self._wake()

    def _wake(self) -> None:
        source = self._source
        if source is not None:
            source.wake()

    def follow(self, context_id: str) -> Tail:
        """The tail of a context, to be given back with ``leave``.

        Raises:
            StoreError: the store is closed.
        """
        with self._lock:
            if self._closed:
                raise StoreError(f"{self._database.location}: the database is closed")
            tail = self._tails.get(context_id)
            if tail is None or tail.failed:
                tail = Tail(context_id, self._database, self._settle)
                self._tails[context_id] = tail
            tail.followers += 1
            if self._source is None:
                self._source = _source(self._database)
                self._open.add(self._source)
                threading.Thread(
                    target=self._run,
                    args=(self._source,),
                    name="contextwindow-followers",
                    daemon=True,
                ).start()
            return tail

    def leave(self, tail: Tail) -> None:
        """One follower less."""
        with self._lock:
            tail.followers -= 1
            if not tail.followers and self._tails.get(tail.context_id) is tail:
                del self._tails[tail.context_id]
            if not self._tails and self._source is not None:
                self._source.wake()
                self._source = None

    def close(self) -> None:
        """Let everybody who follows raise ``StoreError``."""
        with self._lock:
            self._closed = True
            tails, self._tails = list(self._tails.values()), {}
            self._source = None
            sources = list(self._open)
        for tail in tails:
            tail.fail(StoreError(f"{self._database.location}: the database was closed"))
        for source in sources:
            # A connection must not be closed while a thread uses it: the process would crash.
            source.wake()
            source.gone.wait()

    def _run(self, source: _Source) -> None:
        """Read tails as long as *source* is the one that is used."""
        pause = BUSY
        swept = 0.0
        try:
            if self._source is source:
                source.open()
            while self._source is source:
                hints = source.wait(pause)
                if self._source is not source:
                    return
                tails = list(self._tails.values())
                now = time.monotonic()
                foreign = source.changed(busy=pause <= BUSY)
                if foreign or now - swept > SLOW:
                    swept = now
                    self._sweep(tails)
                pause = self._serve(tails, hints, foreign, pause)
        finally:
            source.close()
            self._open.discard(source)
            source.gone.set()

    def _serve(self, tails: list[Tail], hints: set[str], foreign: bool, pause: float) -> float:
        """Read the tails that are due; seconds to wait then."""
        now = time.monotonic()
        busy = False
        soon = IDLE
        for tail in tails:
            if tail.context_id in hints:
                tail.dirty = True
            elif tail.running:
                # What this process writes it says itself.
                own = now - tail.told_at < 1.0
                tail.dirty |= now - tail.read_at > SLOW or (foreign and not own)
            busy = busy or tail.dirty or (tail.running and now - tail.told_at > 1.0)
            left = tail.read_at + tail.pace - now
            if tail.dirty and left <= 0:
                tail.read()
            elif tail.dirty:
                soon = min(soon, left)
        polled = BUSY if busy else min(IDLE, pause * 1.5)
        return min(soon, polled) if self._database.dialect == "sqlite" else min(soon, IDLE)

    def _sweep(self, tails: list[Tail]) -> None:
        """Find among contexts without a running turn those that have a new one, or are gone."""
        quiet = {tail.context_id: tail for tail in tails if not tail.running}
        try:
            for at in range(0, len(quiet), 500):
                some = list(quiet)[at : at + 500]
                mark = "?" if self._database.dialect == "sqlite" else "%s"
                marks = ", ".join([mark] * len(some))
                with self._database.read() as connection:
                    rows = connection.execute(
                        f"SELECT id, epoch FROM contexts WHERE id IN ({marks})",  # noqa: S608
                        some,
                    ).fetchall()
                epochs = dict(rows)
                for context_id in some:
                    tail = quiet[context_id]
                    tail.dirty |= tail.is_older_than(epochs.get(context_id))
        except StoreError as error:
            for tail in tails:
                tail.fail(error)


def _set(futures: list[asyncio.Future[None]]) -> None:
    for one in futures:
        if not one.done():
            one.set_result(None)


class _Source:
    """Where news comes from: this process, by ``wake``; for other processes see below."""

    def __init__(self) -> None:
        self.gone = threading.Event()
        self._woken = threading.Event()

    def open(self) -> None:
        """Begin to listen to others; in the thread that waits."""

    def wake(self) -> None:
        """End a ``wait``; from any thread, never blocks."""
        self._woken.set()

    def wait(self, seconds: float) -> set[str]:
        """Wait for a ``wake``; the contexts that others say have news."""
        self._woken.wait(seconds)
        self._woken.clear()
        return set()

    def changed(self, *, busy: bool) -> bool:
        """Whether anybody has committed since the last look, as far as that is known."""
        return False

    def close(self) -> None:
        """Free everything."""


class _File(_Source):
    """Other processes on SQLite: asks for the file's version."""

    def __init__(self, database: Database) -> None:
        super().__init__()
        self._beside = database.beside()
        self._raw: Any = None
        self._version = -1
        self._looked = 0.0

    def open(self) -> None:
        """Open the connection."""
        with suppress(ContextWindowError):  # whoever reads finds out what is wrong
            self._raw = self._beside.__enter__()

    def changed(self, *, busy: bool) -> bool:
        """Whether anybody has committed; asked at most every 20 ms."""
        now = time.monotonic()
        if now - self._looked < BUSY * 0.9:
            return False
        self._looked = now
        if self._raw is None:
            return True
        try:
            version = self._raw.execute("PRAGMA data_version").fetchone()[0]
        except sqlite3.Error:
            return True
        changed = bool(version != self._version)
        self._version = version
        return changed

    def close(self) -> None:
        """Close the connection."""
        if self._raw is not None:
            self._beside.__exit__(None, None, None)


class _Server(_Source):
    """Other processes on PostgreSQL: listens.  A notice is a hint; lost ones are polled for."""

    def __init__(self, database: Database) -> None:
        super().__init__()
        self._database = database
        self._beside: AbstractContextManager[Any] | None = None
        self._raw: Any = None
        self._try_at = 0.0
        self._fresh = False
        # Not a pipe: a late write must never hit a file that has got the pipe's number.
        self._inlet, self._outlet = socket.socketpair()
        self._inlet.setblocking(False)
        self._outlet.setblocking(False)

    def open(self) -> None:
        """Begin to listen."""
        self._listen()

    def wake(self) -> None:
        """End a ``wait``."""
        if not self._woken.is_set():
            self._woken.set()
            with suppress(OSError):
                self._outlet.send(b"!")

    def wait(self, seconds: float) -> set[str]:
        """Wait for a ``wake`` or for notices."""
        if self._raw is None and time.monotonic() > self._try_at:
            self._listen()
        sources = [self._inlet] if self._raw is None else [self._inlet, self._raw]
        try:
            ready, _, _ = select.select(sources, [], [], seconds)
        except (OSError, ValueError):
            self._lose()
            return set()
        if self._inlet in ready:
            with suppress(OSError):
                self._inlet.recv(4096)
            self._woken.clear()
        return self._notices() if self._raw in ready else set()

    def changed(self, *, busy: bool) -> bool:
        """Whether notices may have been missed."""
        fresh, self._fresh = self._fresh, False
        return fresh

    def _notices(self) -> set[str]:
        import psycopg

        try:
            return {notice.payload for notice in self._raw.notifies(timeout=0)}
        except psycopg.Error:
            self._lose()
            return set()

    def _listen(self) -> None:
        import psycopg

        beside = self._database.beside()
        try:
            self._raw = beside.__enter__()
            self._beside = beside
            self._raw.execute(f"LISTEN {CHANNEL}")
            self._fresh = True
        except (psycopg.Error, ContextWindowError) as error:
            self._lose()
            _log.warning("%s: cannot listen, will poll: %s", self._database.location, error)

    def _lose(self) -> None:
        beside, self._beside, self._raw = self._beside, None, None
        self._try_at = time.monotonic() + RETRY
        self._fresh = True
        if beside is not None:
            beside.__exit__(None, None, None)

    def close(self) -> None:
        """Close the connection and the pipe."""
        self._lose()
        self._inlet.close()
        self._outlet.close()


def _source(database: Database) -> _Source:
    if database.dialect == "postgresql":
        return _Server(database)
    return _Source() if database.path is None else _File(database)
