"""Eight writers on one conversation: two processes of four threads."""

from __future__ import annotations

import multiprocessing
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.bare import TIME, connect
from benchmarks.report import Figure, compare
from contextwindow import ContextWindow, Store

EACH = 150
TEXT = "x" * 200


def measure(rounds: int) -> list[Figure]:
    """Prompts a second against bare sqlite3, and that none is lost."""
    with tempfile.TemporaryDirectory() as folder:
        ours, bare = Path(folder) / "ours.db", Path(folder) / "bare.db"
        ContextWindow(ours, "c").close()
        ContextWindow(bare, "c").close()
        ratios, seconds, plain = compare(
            lambda: _timed(_prompts, ours), lambda: _timed(_rows, bare), max(1, rounds // 2)
        )
        with Store(ours) as store, ContextWindow(store, "c") as window:
            seqs = [record.seq for record in window.records()]
        assert seqs == list(range(1, len(seqs) + 1)), "a record was lost or doubled"
    detail = f"{8 * EACH / seconds:.0f} against {8 * EACH / plain:.0f} a second"
    speed = [1 / ratio for ratio in ratios]
    return [Figure("prompts of 8 writers on one conversation", speed, 0.5, True, detail)]


def _timed(work: Callable[[str, Any], None], path: Path) -> float:
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(3)
    processes = [context.Process(target=work, args=(str(path), barrier)) for _ in range(2)]
    for process in processes:
        process.start()
    barrier.wait()
    began = time.perf_counter()
    for process in processes:
        process.join()
        assert process.exitcode == 0, "a writer failed"
    return time.perf_counter() - began


def _prompts(path: str, barrier: Any) -> None:
    with Store(path, synchronous="normal") as store, ContextWindow(store, "c") as window:

        def write() -> None:
            for _ in range(EACH):
                window.add_prompt(TEXT)

        _run(write, barrier)


def _rows(path: str, barrier: Any) -> None:
    def write() -> None:
        connection = connect(Path(path), "normal")
        (context_id,) = connection.execute("SELECT id FROM contexts").fetchone()
        for _ in range(EACH):
            connection.execute("BEGIN IMMEDIATE")
            (seq,) = connection.execute(
                "UPDATE contexts SET next_seq = next_seq + 1, record_count = record_count + 1"
                " WHERE id = ? RETURNING next_seq",
                (context_id,),
            ).fetchone()
            connection.execute(
                "INSERT INTO records (context_id, ts, source, content, live, est_tokens, seq,"
                " position) VALUES (?, ?, 0, ?, 1, 50, ?, ?)",
                (context_id, TIME, TEXT, seq, seq),
            )
            connection.execute("COMMIT")
        connection.close()

    _run(write, barrier)


def _run(write: Callable[[], None], barrier: Any) -> None:
    threads = [threading.Thread(target=write) for _ in range(4)]
    barrier.wait()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
