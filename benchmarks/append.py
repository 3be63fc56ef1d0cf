"""One turn appended: prompt of 200 bytes, reply of 2 KB, tokens counted."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any, Final
from unittest.mock import patch

from benchmarks.bare import TIME, connect, fill
from benchmarks.report import Figure, compare
from contextwindow import ContextWindow, Store
from contextwindow.store.connection import Connection
from contextwindow.store.sqlite import SQLiteDatabase
from contextwindow.testing import ScriptedModel
from contextwindow.tokens import count_tokens

PROMPT: Final = ("Is this a good question? " * 8)[:200]
REPLY: Final = ("The quick brown fox jumps over the lazy dog. " * 50)[:2_000]
TURNS: Final = 60
LEVELS: Final = (("normal", "normal", 3.5), ("boundaries", "full", 2.0))
SIZES: Final = (10, 1_000, 10_000, 100_000)


def measure(rounds: int) -> list[Figure]:
    """At 10 to 100,000 records, against the same inserts in one bare commit."""
    count_tokens("the encoding is loaded before anything is measured")
    figures = []
    with tempfile.TemporaryDirectory() as folder:
        for synchronous, plain, target in LEVELS:
            for size in SIZES:
                path = Path(folder) / f"{synchronous}-{size}.db"
                fill(path, "c", size, live=0)
                bare = Path(folder) / f"{synchronous}-{size}-bare.db"
                context_id = fill(bare, "c", size, live=0)
                theirs = _Bare(bare, context_id, plain)
                with _Turns(path, synchronous) as ours:
                    ratios, us, them = compare(ours.whole, theirs.one_commit, rounds)
                    name = f'a turn appended at {size:,} records, synchronous="{synchronous}"'
                    detail = f"{us:.0f} : {them:.0f} µs"
                    figures.append(Figure(name, ratios, target, detail=detail))
                    if size == SIZES[2]:
                        figures += _breakdown(ours, theirs, rounds, synchronous)
    return figures


def turns(window: ContextWindow) -> Callable[[], float]:
    """What measures a turn of *window*, in microseconds."""
    return lambda: statistics.median(prompt + reply for prompt, reply in _run(window))


class _Turns:
    """Our side: turns on one context whose earlier records are not live."""

    def __init__(self, path: Path, synchronous: str) -> None:
        self._store = Store(path, synchronous=synchronous)
        model = ScriptedModel([[REPLY]], repeat=True)
        self._window = ContextWindow(self._store, "c", model=model)

    def __enter__(self) -> _Turns:
        return self

    def __exit__(self, *_: object) -> None:
        self._store.close()

    def whole(self) -> float:
        """Median microseconds of a prompt and its reply."""
        return statistics.median(prompt + reply for prompt, reply in self.run())

    def run(self) -> list[tuple[float, float]]:
        """Microseconds of ``add_prompt`` and of ``call_model``, turn by turn."""
        return _run(self._window)

    def inside(self) -> tuple[float, float, float, float]:
        """Of a turn: statements, transactions, and the microseconds of both."""
        figures = []
        for _ in range(TURNS):
            self._window.set_live([record.id for record in self._window.live_records()], False)
            with _watched() as seen:
                self._window.add_prompt(PROMPT)
                self._window.call_model()
            figures.append(tuple(seen))
        inner = zip(*figures, strict=True)
        statements, microseconds, transactions, edges = map(statistics.median, inner)
        return statements, transactions, microseconds, edges


def _run(window: ContextWindow) -> list[tuple[float, float]]:
    costs = []
    for _ in range(TURNS):
        window.set_live([record.id for record in window.live_records()], False)
        began = time.perf_counter()
        window.add_prompt(PROMPT)
        asked = time.perf_counter()
        reply = window.call_model()
        ended = time.perf_counter()
        assert reply.text == REPLY, "the reply is not whole"
        costs.append(((asked - began) * 1e6, (ended - asked) * 1e6))
    return costs


@contextmanager
def _watched() -> Iterator[list[float]]:
    """Number and microseconds of statements, then of transactions' beginnings and ends."""
    seen = [0.0] * 4

    def timed(method: Callable[..., Any], slot: int) -> Callable[..., Any]:
        def run(*args: Any) -> Any:
            began = time.perf_counter()
            try:
                return method(*args)
            finally:
                seen[slot] += 1
                seen[slot + 1] += (time.perf_counter() - began) * 1e6

        return run

    with (
        patch.object(Connection, "execute", timed(Connection.execute, 0)),
        patch.object(SQLiteDatabase, "begin", timed(SQLiteDatabase.begin, 2)),
        patch.object(SQLiteDatabase, "end", timed(SQLiteDatabase.end, 2)),
    ):
        yield seen
    seen[2] /= 2


def _breakdown(ours: _Turns, theirs: _Bare, rounds: int, synchronous: str) -> list[Figure]:
    """Where a turn's time goes, in the unit of the bare turn."""
    parts: dict[str, list[float]] = {}
    costs: dict[str, list[float]] = {}
    bare = []
    for _ in range(rounds):
        turns = ours.run()
        statements, transactions, inside, edges = ours.inside()
        round_ = {
            "add_prompt": statistics.median(prompt for prompt, _ in turns),
            "call_model": statistics.median(reply for _, reply in turns),
            "counting tokens of both texts": _counting(),
            f"{statements:.0f} statements": inside,
            f"beginning and ending {transactions:.0f} transactions": edges,
            "bare sqlite3 writing the same rows in its three commits": theirs.three_commits(),
        }
        bare.append(theirs.one_commit())
        for name, cost in round_.items():
            costs.setdefault(name, []).append(cost)
            parts.setdefault(name, []).append(cost / bare[-1])
    return [
        Figure(
            f'… in it: {name}, synchronous="{synchronous}"',
            parts[name],
            detail=f"{statistics.median(costs[name]):.0f} µs",
        )
        for name in parts
    ]


def _counting() -> float:
    costs = []
    for _ in range(TURNS):
        began = time.perf_counter()
        count_tokens(PROMPT), count_tokens(REPLY)
        costs.append(time.perf_counter() - began)
    return statistics.median(costs) * 1e6


class _Bare:
    """The rows of a turn written by plain sqlite3, with no token counted."""

    _INSERT: Final = (
        "INSERT INTO records (context_id, ts, source, content, live, est_tokens, seq, position,"
        " turn_id, checksum) VALUES (?, ?, ?, ?, 1, 100, ?, ?, ?, 1)"
    )
    _COUNT: Final = (
        "UPDATE contexts SET next_seq = next_seq + ?, record_count = record_count + ?,"
        " live_count = live_count + ?, live_tokens = live_tokens + ? WHERE id = ?"
    )

    def __init__(self, path: Path, context_id: str, synchronous: str) -> None:
        self._connection = connect(path, synchronous)
        self._context_id = context_id
        self._boundary = synchronous
        self._numbers = count(1_000_000)

    def one_commit(self) -> float:
        """Median microseconds of a turn that is one transaction."""
        return self._median(self._one_commit)

    def three_commits(self) -> float:
        """The same where the prompt, the lease and the end are safe one after the other."""
        return self._median(self._three_commits)

    def _median(self, turn: Callable[[int], None]) -> float:
        costs = []
        for _ in range(TURNS):
            number = next(self._numbers) * 2
            began = time.perf_counter()
            turn(number)
            costs.append(time.perf_counter() - began)
        return statistics.median(costs) * 1e6

    def _one_commit(self, number: int) -> None:
        self._connection.execute("BEGIN IMMEDIATE")
        self._prompt(number)
        self._lease(number, "complete")
        self._reply(number)
        self._connection.execute(self._COUNT, (2, 2, 2, 200, self._context_id))
        self._connection.execute("COMMIT")

    def _three_commits(self, number: int) -> None:
        run = self._connection.execute
        run("BEGIN IMMEDIATE")
        run(self._COUNT, (1, 1, 1, 50, self._context_id))
        self._prompt(number)
        run("COMMIT")
        if self._boundary == "full":
            run("PRAGMA synchronous=normal")
        run("BEGIN IMMEDIATE")
        run("UPDATE contexts SET epoch = epoch + 1 WHERE id = ?", (self._context_id,))
        call_id = self._lease(number, "running")
        run("COMMIT")
        if self._boundary == "full":
            run("PRAGMA synchronous=full")
        run("BEGIN IMMEDIATE")
        run(self._COUNT, (1, 1, 1, 150, self._context_id))
        self._reply(number)
        run("UPDATE calls SET duration = 1.0, output_tokens = 9 WHERE id = ?", (call_id,))
        run("UPDATE turns SET state = 'complete', ended = ? WHERE id = ?", (TIME, f"t-{number}"))
        run("COMMIT")

    def _prompt(self, number: int) -> None:
        row = (self._context_id, TIME, 0, PROMPT, number, number, None)
        self._connection.execute(self._INSERT, row)

    def _lease(self, number: int, state: str) -> int | None:
        self._connection.execute(
            "INSERT INTO turns (id, context_id, state, owner, epoch, heartbeat, expires, started)"
            " VALUES (?, ?, ?, 'me', 1, 1.0, 1.0, ?)",
            (f"t-{number}", self._context_id, state, TIME),
        )
        return self._connection.execute(
            "INSERT INTO calls (turn_id, context_id, provider, model, started)"
            " VALUES (?, ?, 'p', 'm', ?)",
            (f"t-{number}", self._context_id, TIME),
        ).lastrowid

    def _reply(self, number: int) -> None:
        row = (self._context_id, TIME, 1, REPLY, number + 1, number + 1, f"t-{number}")
        self._connection.execute(self._INSERT, row)
