"""One turn appended: prompt of 200 bytes, reply of 2 KB, tokens counted."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from itertools import count
from pathlib import Path

from benchmarks.bare import TIME, connect, fill
from benchmarks.report import Figure, compare
from contextwindow import ContextWindow, Store
from contextwindow.testing import ScriptedModel

PROMPT = ("Is this a good question? " * 8)[:200]
REPLY = ("The quick brown fox jumps over the lazy dog. " * 50)[:2_000]
TURNS = 60


def measure(rounds: int) -> list[Figure]:
    """At 10 to 100,000 records, against the same inserts in one bare commit."""
    figures = []
    with tempfile.TemporaryDirectory() as folder:
        for synchronous, plain, target in (("normal", "normal", 3.5), ("boundaries", "full", 2.0)):
            for size in (10, 1_000, 10_000, 100_000):
                path = Path(folder) / f"{synchronous}-{size}.db"
                fill(path, "c", size, live=0)
                bare = Path(folder) / f"{synchronous}-{size}-bare.db"
                context_id = fill(bare, "c", size, live=0)
                ratios, ours, theirs = compare(
                    _ours(path, synchronous), _bare(bare, context_id, plain), rounds
                )
                name = f'a turn appended at {size:,} records, synchronous="{synchronous}"'
                detail = f"{ours:.0f} against {theirs:.0f} µs"
                figures.append(Figure(name, ratios, target, detail=detail))
    return figures


def _ours(path: Path, synchronous: str) -> Callable[[], float]:
    store = Store(path, synchronous=synchronous)
    window = ContextWindow(store, "c", model=ScriptedModel([[REPLY]], repeat=True))

    def once() -> float:
        costs = []
        for _ in range(TURNS):
            window.set_live([record.id for record in window.live_records()], False)
            began = time.perf_counter()
            window.add_prompt(PROMPT)
            window.call_model()
            costs.append(time.perf_counter() - began)
        return statistics.median(costs) * 1e6

    return once


def _bare(path: Path, context_id: str, synchronous: str) -> Callable[[], float]:
    connection = connect(path, synchronous)
    numbers = count(1_000_000)
    insert = (
        "INSERT INTO records (context_id, ts, source, content, live, est_tokens, seq, position,"
        " turn_id, checksum) VALUES (?, ?, ?, ?, 1, 100, ?, ?, ?, 1)"
    )

    def turn() -> None:
        number = next(numbers) * 2
        name = f"turn-{number}"
        connection.execute("BEGIN IMMEDIATE")
        connection.execute(insert, (context_id, TIME, 0, PROMPT, number, number, None))
        connection.execute(
            "INSERT INTO turns (id, context_id, state, owner, epoch, heartbeat, expires, started)"
            " VALUES (?, ?, 'complete', 'me', 1, 1.0, 1.0, ?)",
            (name, context_id, TIME),
        )
        connection.execute(
            "INSERT INTO calls (turn_id, context_id, provider, model, started)"
            " VALUES (?, ?, 'p', 'm', ?)",
            (name, context_id, TIME),
        )
        connection.execute(insert, (context_id, TIME, 1, REPLY, number + 1, number + 1, name))
        connection.execute(
            "UPDATE contexts SET next_seq = next_seq + 2, record_count = record_count + 2,"
            " live_count = live_count + 2, live_tokens = live_tokens + 200 WHERE id = ?",
            (context_id,),
        )
        connection.execute("COMMIT")

    def once() -> float:
        costs = []
        for _ in range(TURNS):
            began = time.perf_counter()
            turn()
            costs.append(time.perf_counter() - began)
        return statistics.median(costs) * 1e6

    return once
