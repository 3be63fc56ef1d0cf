"""The same rows with nothing but sqlite3: what a store costs at the very least."""

from __future__ import annotations

import sqlite3
from pathlib import Path

from contextwindow import Store
from contextwindow.store.values import checksum

TIME = "2026-11-20 12:00:00.123456789 +0000 UTC"


def connect(path: Path, synchronous: str, *, check_same_thread: bool = True) -> sqlite3.Connection:
    """A plain connection to a database of the library's own schema."""
    if not path.exists():
        Store(path).close()
    connection = sqlite3.connect(
        path, isolation_level=None, timeout=30, check_same_thread=check_same_thread
    )
    connection.execute("PRAGMA journal_mode=wal")
    connection.execute(f"PRAGMA synchronous={synchronous}")
    return connection


def fill(path: Path, name: str, count: int, live: int) -> str:
    """A context of *count* records, the last *live* of which are live; its id."""
    connection = connect(path, "normal")
    context_id = f"id-{name}"
    text = "x" * 400
    rows = (
        (context_id, TIME, n % 2, text, n >= count - live, 100, n + 1, n + 1, checksum(text, None))
        for n in range(count)
    )
    with connection:
        connection.execute("BEGIN")
        connection.execute(
            "INSERT INTO contexts (id, name, start_time, next_seq, record_count, live_count,"
            " live_tokens, last_activity) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            (context_id, name, TIME, count + 1, count, live, live * 100, TIME),
        )
        connection.executemany(
            "INSERT INTO records (context_id, ts, source, content, live, est_tokens, seq,"
            " position, checksum) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            rows,
        )
    connection.close()
    return context_id


def fill_empty(path: Path, count: int) -> None:
    """So many contexts more, without records."""
    connection = connect(path, "normal")
    with connection:
        connection.execute("BEGIN")
        connection.executemany(
            "INSERT INTO contexts (id, name, start_time, last_activity) VALUES (?, ?, ?, ?)",
            ((f"id-empty-{n}", f"empty-{n}", TIME, TIME) for n in range(count)),
        )
    connection.close()
