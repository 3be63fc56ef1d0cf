"""Reads against the bare query that reads the same rows."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.bare import connect, fill
from benchmarks.report import Figure, compare
from contextwindow import ContextWindow, Store

COLUMNS = (
    "id, context_id, ts, source, content, live, est_tokens, response_id, streamed,"
    " partial_response_id, accumulated_tokens, seq, turn_id, call_id, name, payload, checksum,"
    " pinned, error, uncounted"
)
STATS = "id, name, live_tokens, record_count, live_count, last_activity, start_time"


def measure(rounds: int) -> list[Figure]:
    """50 live records of 100,000; figures of that context; figures of 1,000 contexts."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.db"
        big = fill(path, "big", 100_000, live=50)
        fill(path, "small", 10, live=10)
        for number in range(1_000):
            fill_empty(path, number)
        with Store(path) as store, ContextWindow(store, "big") as window:
            bare = connect(path, "normal")
            live = f"SELECT {COLUMNS} FROM records WHERE context_id = ? AND live = 1 ORDER BY +seq"
            one = f"SELECT {STATS} FROM contexts WHERE name = ?"
            every = f"SELECT {STATS} FROM contexts ORDER BY start_time DESC"
            figures = [
                _figure(
                    "50 live of 100,000 records loaded",
                    window.live_records,
                    lambda: bare.execute(live, (big,)).fetchall(),
                    rounds,
                ),
                _figure(
                    "figures of a context of 100,000 records",
                    lambda: store.context_stats("big"),
                    lambda: bare.execute(one, ("big",)).fetchall(),
                    rounds,
                ),
                _figure(
                    "list of 1,000 contexts with figures",
                    store.context_stats,
                    lambda: bare.execute(every).fetchall(),
                    rounds,
                ),
            ]
            ratios, _, _ = compare(
                _timed(lambda: store.context_stats("big")),
                _timed(lambda: store.context_stats("small")),
                rounds,
            )
            flat = "figures at 100,000 records against 10"
            figures.append(Figure(flat, ratios, 1.5))
            bare.close()
    return figures


def fill_empty(path: Path, number: int) -> None:
    """One more context without records."""
    fill(path, f"empty-{number}", 0, live=0)


def _figure(
    what: str, ours: Callable[[], object], theirs: Callable[[], object], rounds: int
) -> Figure:
    ratios, us, bare = compare(_timed(ours), _timed(theirs), rounds)
    return Figure(what, ratios, 4.0, detail=f"{us:.0f} against {bare:.0f} µs")


def _timed(work: Callable[[], object]) -> Callable[[], float]:
    def once() -> float:
        costs = []
        for _ in range(50):
            began = time.perf_counter()
            work()
            costs.append(time.perf_counter() - began)
        return statistics.median(costs) * 1e6

    return once
