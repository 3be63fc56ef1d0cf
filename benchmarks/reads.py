"""Reads against the bare query that reads the same rows."""

from __future__ import annotations

import sqlite3
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.bare import connect, fill, fill_empty
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
        full, sparse = Path(folder) / "full.db", Path(folder) / "sparse.db"
        big = fill(full, "big", 100_000, live=50)
        fill(full, "small", 10, live=10)
        fill(sparse, "big", 10, live=10)
        fill(sparse, "small", 10, live=10)
        for path in (full, sparse):
            fill_empty(path, 998)
        with (
            Store(full) as store,
            Store(sparse) as few,
            ContextWindow(store, "big") as window,
        ):
            bare = connect(full, "normal")
            # As the library asks, and quicker than ORDER BY seq: that walks all of the records.
            live = f"SELECT {COLUMNS} FROM records WHERE context_id = ? AND live = 1 ORDER BY +seq"
            one = f"SELECT {STATS} FROM contexts WHERE name = ?"
            every = f"SELECT {STATS} FROM contexts ORDER BY start_time DESC"
            assert len(window.live_records()) == 50
            assert len(_all(store)) == len(_all(few)) == 1_000
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
                    lambda: _all(store),
                    lambda: bare.execute(every).fetchall(),
                    rounds,
                ),
                _flat(
                    "figures of a context of 100,000 records against one of 10",
                    lambda: store.context_stats("big"),
                    lambda: store.context_stats("small"),
                    rounds,
                ),
                _flat(
                    "list of 1,000 contexts with 100,010 records against 20",
                    lambda: _all(store),
                    lambda: _all(few),
                    rounds,
                ),
            ]
            bare.close()
    return figures


def timed_query(
    what: str,
    ours: Callable[[], object],
    bare: sqlite3.Connection,
    query: str,
    rounds: int,
) -> Figure:
    """Ours against a bare query of a database of ``benchmarks.scale``."""
    live = f"SELECT {COLUMNS} FROM records WHERE context_id = ? AND live = 1 ORDER BY +seq"
    sql, params = {
        "live": (live, (f"id{0:030}",)),
        "one": (f"SELECT {STATS} FROM contexts WHERE name = ?", ("c0",)),
        "every": (f"SELECT {STATS} FROM contexts ORDER BY start_time DESC", ()),
    }[query]
    return _figure(
        f"{what}, in a million records",
        ours,
        lambda: bare.execute(sql, params).fetchall(),
        rounds,
    )


def _all(store: Store) -> list[object]:
    found = store.context_stats()
    assert isinstance(found, list)
    return list(found)


def _figure(
    what: str, ours: Callable[[], object], theirs: Callable[[], object], rounds: int
) -> Figure:
    ratios, us, bare = compare(_timed(ours), _timed(theirs), rounds)
    return Figure(what, ratios, 4.0, detail=f"{us:.0f} : {bare:.0f} µs")


def _flat(what: str, much: Callable[[], object], few: Callable[[], object], rounds: int) -> Figure:
    """Whether a cost grows with the records; noise alone is given a fifth."""
    ratios, one, two = compare(_timed(much), _timed(few), rounds)
    return Figure(what, ratios, 1.2, detail=f"{one:.0f} : {two:.0f} µs")


def _timed(work: Callable[[], object]) -> Callable[[], float]:
    def once() -> float:
        costs = []
        for _ in range(50):
            began = time.perf_counter()
            work()
            costs.append(time.perf_counter() - began)
        return statistics.median(costs) * 1e6

    return once
