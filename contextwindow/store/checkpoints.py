"""Writing the text of many streams in one transaction, and keeping their leases alive."""

from __future__ import annotations

import logging
import threading
import time
import weakref
from contextlib import ExitStack
from typing import Final

from contextwindow.errors import ContextWindowError, StoreBusy, StoreError
from contextwindow.store import cancelling
from contextwindow.store.engine import Database
from contextwindow.store.ledger import TurnLedger
from contextwindow.store.notices import announce

IDLE: Final = 10.0
"""Seconds without a turn before the thread ends: starting one costs 80 µs."""

LOOK: Final = 0.25
"""Seconds between looks at turns that wait for nobody: waking the thread costs 50 µs."""

ASKED: Final = 0.5
"""Seconds between looks whether somebody wants a turn to stop: a look costs 20 µs."""

_log = logging.getLogger("contextwindow")


class Checkpointer:
    """A thread that flushes every running turn of a store; it runs only while turns do.

    Turns are held weakly: one whose stream was dropped without being closed loses its lease in
    time instead of keeping it for ever.
    """

    def __init__(self, database: Database, lease: float) -> None:
        self._database = database
        self._beat = min(lease / 6, LOOK)
        self._ledgers: weakref.WeakSet[TurnLedger] = weakref.WeakSet()
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._interval = 0.0
        self._thread: threading.Thread | None = None
        self._closed = False
        self._looked = 0.0

    def add(self, ledger: TurnLedger) -> None:
        """Look after *ledger* until it ends."""
        with self._lock:
            self._ledgers.add(ledger)
            if self._thread is None and not self._closed:
                self._thread = threading.Thread(
                    target=self._run, name="contextwindow-checkpoints", daemon=True
                )
                self._thread.start()

    def remove(self, ledger: TurnLedger) -> None:
        """Forget *ledger*: it has ended."""
        with self._lock:
            self._ledgers.discard(ledger)

    def wake(self, interval: float) -> None:
        """Have what was deferred written within *interval* seconds; never blocks."""
        if not self._wake.is_set():
            self._interval = interval
            self._wake.set()

    def flush(self) -> None:
        """Write everything that waits, in one transaction."""
        now = time.monotonic()
        with self._lock:
            due = [ledger for ledger in self._ledgers if ledger.needs_attention(now)]
        if not due:
            return
        with ExitStack() as locks:
            for ledger in due:
                locks.enter_context(ledger.lock)
            try:
                boundary = any(ledger.opens for ledger in due)
                with self._database.write(boundary=boundary) as connection:
                    news = [one.context_id for one in due if one.flush(connection)]
                    announce(connection, news)
                for ledger in due:
                    ledger.committed()
            except StoreBusy as error:
                _log.warning("text of %d running replies waits: %s", len(due), error)
                for ledger in due:
                    ledger.rolled_back()
            except BaseException as error:
                for ledger in due:
                    ledger.rolled_back()
                if not isinstance(error, ContextWindowError):
                    raise
                reason = error if isinstance(error, StoreError) else StoreError(str(error))
                _log.warning("text of %d running replies was not written: %s", len(due), error)
                for ledger in due:
                    ledger.fail(reason)

    def look(self) -> None:
        """Stop the turns that somebody wants to stop."""
        with self._lock:
            running = list(self._ledgers)
        if not running:
            return
        try:
            with self._database.read() as connection:
                asked = cancelling.asked(connection)
        except StoreError as error:
            # The turns' own writes say so loud enough.
            _log.debug("not known whether somebody wants a turn to stop: %s", error)
            return
        for ledger in running if asked else ():
            if ledger.attempt in asked:
                ledger.stop()

    def close(self) -> None:
        """Write what waits and stop the thread."""
        self._closed = True
        self._wake.set()
        thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join()
        self.flush()

    def _run(self) -> None:
        idle_since = time.monotonic()
        while not self._closed:
            woken = self._wake.wait(self._beat)
            if woken and not self._closed:
                # Half of it, so that what is older than the interval is written for sure.
                time.sleep(self._interval / 2)
            self._wake.clear()
            try:
                self.flush()
                if time.monotonic() - self._looked > ASKED:
                    self._looked = time.monotonic()
                    self.look()
            except Exception:  # noqa: BLE001 - said in the log
                # Without this thread no lease would be renewed and no text written any more.
                _log.exception("the checkpoint thread goes on after an error")
            with self._lock:
                now = time.monotonic()
                if self._ledgers:
                    idle_since = now
                elif now - idle_since > IDLE:
                    break
        with self._lock:
            self._thread = None
