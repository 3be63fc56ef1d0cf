"""Eight writers on one conversation: two processes of four threads."""

from __future__ import annotations

import multiprocessing
import sqlite3
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from benchmarks.bare import TIME, connect
from benchmarks.report import Figure, compare
from contextwindow import ContextWindow, Store

EACH: Final = 400
TEXT: Final = "x" * 200
PROCESSES, THREADS = 2, 4


def measure(rounds: int) -> list[Figure]:
    """Prompts a second against bare sqlite3; none fails, none is lost, none is doubled."""
    rounds = max(3, rounds // 2)
    with tempfile.TemporaryDirectory() as folder:
        ours, bare = Path(folder) / "ours.db", Path(folder) / "bare.db"
        ContextWindow(ours, "c").close()
        ContextWindow(bare, "c").close()
        ratios, seconds, plain = compare(
            lambda: _timed(_prompts, ours), lambda: _timed(_rows, bare), rounds
        )
        total = PROCESSES * THREADS * EACH
        with Store(ours) as store, ContextWindow(store, "c") as window:
            seqs = [record.seq for record in window.records()]
            stats = window.context_stats()
        expected = total * (rounds + 1)  # one round warms up
        assert seqs == list(range(1, expected + 1)), "a prompt was lost or doubled"
        assert stats.total_records == stats.live_records == expected, "the counters are wrong"
        (rows,) = sqlite3.connect(bare).execute("SELECT count(*) FROM records").fetchone()
        assert rows == expected, "bare sqlite3 lost a row"
    detail = f"{total / seconds:,.0f} : {total / plain:,.0f} a second"
    speed = [1 / ratio for ratio in ratios]
    name = 'prompts of 8 writers on one conversation, synchronous="normal"'
    return [Figure(name, speed, 0.5, least=True, detail=detail)]


def _timed(work: Callable[[str, Any], None], path: Path) -> float:
    """Seconds from the moment when all are ready until the last has written its last."""
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(PROCESSES + 1)
    processes = [context.Process(target=work, args=(str(path), barrier)) for _ in range(PROCESSES)]
    for process in processes:
        process.start()
    barrier.wait(timeout=60)
    began = time.perf_counter()
    barrier.wait(timeout=120)
    seconds = time.perf_counter() - began
    for process in processes:
        process.join()
        assert process.exitcode == 0, "a writer failed"
    return seconds


def _prompts(path: str, barrier: Any) -> None:
    with Store(path, synchronous="normal") as store, ContextWindow(store, "c") as window:

        def write() -> None:
            for _ in range(EACH):
                window.add_prompt(TEXT)

        _run([write] * THREADS, barrier)


def _rows(path: str, barrier: Any) -> None:
    connections = [connect(Path(path), "normal", check_same_thread=False) for _ in range(THREADS)]
    (context_id,) = connections[0].execute("SELECT id FROM contexts").fetchone()

    def write(connection: sqlite3.Connection) -> None:
        for _ in range(EACH):
            connection.execute("BEGIN IMMEDIATE")
            (seq,) = connection.execute(
                "UPDATE contexts SET next_seq = next_seq + 1, record_count = record_count + 1,"
                " live_count = live_count + 1, live_tokens = live_tokens + 50,"
                " last_activity = ? WHERE id = ? RETURNING next_seq",
                (TIME, context_id),
            ).fetchone()
            connection.execute(
                "INSERT INTO records (context_id, ts, source, content, live, est_tokens, seq,"
                " position, checksum) VALUES (?, ?, 0, ?, 1, 50, ?, ?, 1)",
                (context_id, TIME, TEXT, seq, seq),
            )
            connection.execute("COMMIT")

    _run([lambda one=one: write(one) for one in connections], barrier)  # type: ignore[misc]  # its default is of that type
    for connection in connections:
        connection.close()


def _run(work: list[Callable[[], None]], barrier: Any) -> None:
    """Do all of *work* at once, each in a thread; raises when one of them did."""
    failed: list[BaseException] = []

    def guarded(one: Callable[[], None]) -> None:
        try:
            one()
        except BaseException as error:  # noqa: BLE001 - shown by the process's exit code
            failed.append(error)

    threads = [threading.Thread(target=guarded, args=(one,)) for one in work]
    barrier.wait(timeout=60)
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    barrier.wait(timeout=60)
    if failed:
        raise failed[0]
