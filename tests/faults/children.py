"""Processes that do one thing, say how far they are, and are killed, paused or asked to stop.

Made by a fork server, so that hundreds are cheap.  This module is loaded in each child.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sqlite3
import sys
from collections.abc import Callable
from functools import cache
from multiprocessing import forkserver
from types import TracebackType
from typing import Any

PATIENCE = 30.0
"""Seconds after which a child that says nothing has failed the test."""

_context = multiprocessing.get_context("forkserver")
_PRELOAD = ["contextwindow.window_async", "contextwindow.store.migrating", "psycopg", "crash_work"]


class Child:
    """A process that runs *work*, which is given a function to say things with.

    Leaving its ``with`` kills it.
    """

    def __init__(self, work: Callable[..., None], *arguments: Any) -> None:
        _serve()
        self._pipe, theirs = _context.Pipe()
        self.process = _context.Process(target=_run, args=(work, theirs, *arguments))
        self.process.start()
        theirs.close()

    def __enter__(self) -> Child:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.kill()
        self._pipe.close()
        self.process.close()

    @property
    def exitcode(self) -> int | None:
        """Of the process; -9 when it was killed."""
        return self.process.exitcode

    def next(self) -> Any:
        """What it says next; None when it is gone."""
        if not self._pipe.poll(PATIENCE):
            raise AssertionError("the child says nothing")
        try:
            return self._pipe.recv()
        except (EOFError, ConnectionResetError):
            return None

    def rest(self) -> list[Any]:
        """All that it still says before it is gone."""
        said = []
        while (one := self.next()) is not None:
            said.append(one)
        self.join()
        return said

    def until(self, what: Any) -> list[Any]:
        """What it says up to *what*."""
        said: list[Any] = []
        while (one := self.next()) != what:
            assert one is not None, f"the child ended before {what!r}, after {said}"
            said.append(one)
        return said

    def tell(self, what: Any) -> None:
        """Say something to it; it hears by the function's ``heard``."""
        self._pipe.send(what)

    def signal(self, number: int) -> None:
        """Send it a signal."""
        assert self.process.pid is not None
        os.kill(self.process.pid, number)

    def kill(self) -> None:
        """End it by SIGKILL, if it is there."""
        self.process.kill()
        self.process.join()

    def join(self) -> None:
        """Wait for its end."""
        self.process.join(PATIENCE)
        assert self.process.exitcode is not None, "the child does not end"


@cache
def _serve() -> None:
    """Start the fork server with what the children need; where it runs already, it is slower."""
    _context.set_forkserver_preload(_PRELOAD)
    # Python 3.11 does not tell it where modules are.
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(sys.path)
    forkserver.ensure_running()
    if before is None:
        del os.environ["PYTHONPATH"]
    else:
        os.environ["PYTHONPATH"] = before


class Voice:
    """How a child speaks with its parent."""

    def __init__(self, pipe: Any) -> None:
        self._pipe = pipe

    def __call__(self, what: Any) -> None:
        self._pipe.send(what)

    def heard(self) -> Any:
        """Wait for what the parent tells."""
        return self._pipe.recv()


def _run(work: Callable[..., None], pipe: Any, *arguments: Any) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    work(Voice(pipe), *arguments)


class Statements:
    """Counts the statements of this process, and kills it before one of them.

    Args:
        fatal: number of the statement, counted from 1, that is not run any more; 0 for none.

    Attributes:
        count: how many were run.
    """

    def __init__(self, fatal: int) -> None:
        self.fatal = fatal
        self.count = 0

    def note(self, *_: object) -> None:
        """One more statement is about to be run."""
        self.count += 1
        if self.count == self.fatal:
            os.kill(os.getpid(), signal.SIGKILL)

    def watch(self) -> None:
        """Begin with the connections that are opened from now on."""
        import psycopg

        from contextwindow.store import files, opening, sqlite

        connect, execute = files.connect, psycopg.Connection.execute

        def watched(*args: Any, **options: Any) -> sqlite3.Connection:
            raw = connect(*args, **options)
            raw.set_trace_callback(self.note)
            return raw

        def noted(raw: Any, *args: Any, **options: Any) -> Any:
            self.note()
            return execute(raw, *args, **options)

        for module in (files, opening, sqlite):
            module.connect = watched  # type: ignore[attr-defined]
        psycopg.Connection.execute = noted  # type: ignore[method-assign,assignment]
