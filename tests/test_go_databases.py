from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from contextwindow.store.engine import Database
from contextwindow.store.values import checksum

BASE = """
CREATE TABLE contexts (id TEXT PRIMARY KEY, name TEXT NOT NULL, start_time DATETIME NOT NULL);
CREATE TABLE records (
    id INTEGER PRIMARY KEY AUTOINCREMENT, context_id TEXT NOT NULL, ts DATETIME NOT NULL,
    source INTEGER NOT NULL, content TEXT NOT NULL, live BOOLEAN NOT NULL,
    est_tokens INTEGER NOT NULL,
    FOREIGN KEY (context_id) REFERENCES contexts(id) ON DELETE CASCADE
);
CREATE TABLE context_tools (
    id INTEGER PRIMARY KEY AUTOINCREMENT, context_id TEXT NOT NULL, tool_name TEXT NOT NULL,
    created_at DATETIME NOT NULL,
    FOREIGN KEY (context_id) REFERENCES contexts(id) ON DELETE CASCADE,
    UNIQUE(context_id, tool_name)
);
"""
MAIN = """
ALTER TABLE contexts ADD COLUMN use_server_side_threading BOOLEAN NOT NULL DEFAULT 0;
ALTER TABLE contexts ADD COLUMN last_response_id TEXT NULL;
ALTER TABLE records ADD COLUMN response_id TEXT NULL;
"""
STREAMING = """
ALTER TABLE records ADD COLUMN streamed BOOLEAN NOT NULL DEFAULT 0;
ALTER TABLE records ADD COLUMN partial_response_id TEXT NULL;
ALTER TABLE records ADD COLUMN accumulated_tokens INTEGER NULL;
"""
INDEXES = """
CREATE INDEX idx_context_live ON records(context_id, live);
CREATE INDEX idx_context_ts ON records(context_id, ts);
CREATE INDEX idx_context_tools_context ON context_tools(context_id);
"""
PROMPT, RESPONSE, CALL, OUTPUT = range(4)
NOON = "2025-10-31 12:00:00"


@pytest.fixture
def go(tmp_path: Path) -> Any:
    """Makes a Go-shaped file from SQL and opens it; gives rows of the migrated one."""

    def make(*statements: Any, layout: str = MAIN) -> Any:
        path = str(tmp_path / "go.db")
        with closing(sqlite3.connect(path, isolation_level=None)) as raw:
            raw.executescript(BASE + layout + INDEXES)
            for sql, *rows in statements:
                raw.executemany(sql, rows or [()])
        return migrated(path)

    return make


def migrated(path: str) -> Any:
    Database(path).close()
    return query(path)


def query(path: str) -> Callable[[str], list[Any]]:
    def run(sql: str) -> list[Any]:
        with closing(sqlite3.connect(path)) as raw:
            return raw.execute(sql).fetchall()

    return run


def contexts(*rows: Any) -> tuple[Any, ...]:
    return ("INSERT INTO contexts (id, name, start_time) VALUES (?, ?, ?)", *rows)


def records(*rows: Any) -> tuple[Any, ...]:
    """Rows of context, time, source, content."""
    sql = (
        "INSERT INTO records (context_id, ts, source, content, live, est_tokens)"
        " VALUES (?, ?, ?, ?, 1, 7)"
    )
    return (sql, *rows)


def conversation(*texts: tuple[int, str]) -> tuple[Any, ...]:
    """One context of (source, content), a second apart."""
    return (
        contexts(("c", "bot", f"{NOON} +0000 UTC")),
        records(
            *(("c", f"2025-10-31 12:00:{n:02} +0000 UTC", s, t) for n, (s, t) in enumerate(texts))
        ),
    )


@pytest.mark.parametrize("layout", ["", MAIN, MAIN + STREAMING], ids=["legacy", "main", "pr13"])
def test_every_layout_of_the_go_library_opens(go: Any, layout: str) -> None:
    rows = go(*conversation((PROMPT, "hello"), (RESPONSE, "hi")), layout=layout)

    assert rows("SELECT seq, position, content FROM records ORDER BY seq") == [
        (1, 1, "hello"),
        (2, 2, "hi"),
    ]


def test_no_text_time_or_number_of_a_go_file_is_lost(go_file: Path) -> None:
    """Fault 28f: Files of the Go library open, every byte of text equal."""
    before = query(str(go_file))
    rows = "SELECT id, context_id, ts, source, live, est_tokens, {} FROM records ORDER BY id"
    old = before(rows.format("content"))
    old_contexts = before("SELECT id, start_time FROM contexts ORDER BY id")
    old_tools = before(
        "SELECT id, context_id, tool_name, created_at FROM context_tools ORDER BY id"
    )

    after = migrated(str(go_file))

    text = (
        "CASE WHEN name IS NOT NULL AND source = 2 THEN name || '(' || content || ')'"
        " ELSE content END"
    )
    tools = "SELECT id, context_id, tool_name, created_at FROM context_tools"
    if after("SELECT 1 FROM sqlite_master WHERE name = 'orphaned_context_tools'"):
        tools += " UNION ALL SELECT * FROM orphaned_context_tools"
    assert after(rows.format(text)) == old
    assert after("SELECT id, start_time FROM contexts ORDER BY id") == old_contexts
    assert after(f"{tools} ORDER BY id") == old_tools


def test_a_migrated_go_file_is_sound(go_file: Path) -> None:
    after = migrated(str(go_file))

    assert after("PRAGMA integrity_check") == [("ok",)]
    assert after("PRAGMA foreign_key_check") == []
    for content, payload, stored in after("SELECT content, payload, checksum FROM records"):
        assert checksum(content, payload) == stored


def test_a_copy_of_the_go_file_is_left_beside_it(go_file: Path) -> None:
    bytes_before = go_file.read_bytes()
    before = list(query(str(go_file))("SELECT * FROM records"))

    migrated(str(go_file))

    (copy,) = go_file.parent.glob("*.backup-*")
    assert copy.stat().st_mode & 0o777 == 0o600
    assert copy.stat().st_size == len(bytes_before)
    assert query(str(copy))("SELECT * FROM records") == before


def test_contexts_of_one_name_keep_it_oldest_first(go: Any) -> None:
    rows = go(
        contexts(
            ("late", "bot", f"{NOON}.9 +0000 UTC"),
            ("early", "bot", f"{NOON}.1 +0000 UTC"),
            ("later", "bot", f"{NOON}.95 +0000 UTC"),
            ("other", "bot (2)", f"{NOON}.99 +0000 UTC"),
        )
    )

    assert dict(rows("SELECT id, name FROM contexts")) == {
        "early": "bot",
        "late": "bot (3)",
        "later": "bot (4)",
        "other": "bot (2)",
    }


def test_records_are_in_the_order_of_time_then_of_id(go: Any) -> None:
    rows = go(
        contexts(("c", "bot", NOON)),
        records(
            ("c", f"{NOON}.5 +0000 UTC", PROMPT, "third"),
            ("c", f"{NOON} +0000 UTC", PROMPT, "first"),
            ("c", f"{NOON}.5 +0000 UTC", PROMPT, "fourth"),
            ("c", f"{NOON}.4999 +0000 UTC", PROMPT, "second"),
        ),
    )

    found = [text for (text,) in rows("SELECT content FROM records ORDER BY position, seq")]
    assert found == ["first", "second", "third", "fourth"]


def test_tool_calls_are_split_and_paired_with_their_outputs(go: Any) -> None:
    rows = go(
        *conversation(
            (CALL, 'read({"a": "(b)\n"})'),
            (CALL, "now()"),
            (OUTPUT, "error: denied"),
            (OUTPUT, "noon"),
            (CALL, "lost({})"),
            (PROMPT, "again"),
            (CALL, "not a call"),
            (OUTPUT, "done"),
            (OUTPUT, "whose?"),
        )
    )

    assert rows("SELECT call_id, name, content, error FROM records ORDER BY seq") == [
        ("go-1", "read", '{"a": "(b)\n"}', 0),
        ("go-2", "now", "", 0),
        ("go-1", "read", "error: denied", 1),
        ("go-2", "now", "noon", 0),
        ("go-5", "lost", "{}", 0),
        (None, None, "again", 0),
        ("go-7", None, "not a call", 0),
        ("go-7", None, "done", 0),
        (None, None, "whose?", 0),
    ]


def test_counters_say_what_the_rows_say(go: Any) -> None:
    rows = go(
        *conversation((PROMPT, "a"), (RESPONSE, "b"), (PROMPT, "c")),
        ("UPDATE records SET live = 0 WHERE id = 1",),
        contexts(("empty", "empty", NOON)),
    )

    counters = "SELECT next_seq, record_count, live_count, live_tokens, total_tokens, last_activity"
    assert rows(f"{counters} FROM contexts ORDER BY id") == [
        (4, 3, 2, 14, 21, "2025-10-31 12:00:02 +0000 UTC"),
        (1, 0, 0, 0, 0, None),
    ]


def test_a_reply_that_was_cut_off_is_an_interrupted_turn(go: Any) -> None:
    rows = go(
        *conversation((PROMPT, "hello"), (RESPONSE, "I was abo")),
        ("UPDATE records SET streamed = 1, partial_response_id = 'p' WHERE id = 2",),
        layout=MAIN + STREAMING,
    )

    assert rows("SELECT context, state, partial_text FROM interrupted_turns") == [
        ("bot", "interrupted", "I was abo")
    ]
    assert rows("SELECT partial_response_id, streamed FROM records WHERE id = 2") == [("p", 1)]


def test_what_belongs_to_no_context_is_kept(go: Any) -> None:
    rows = go(
        records(("gone", f"{NOON} +0000 UTC", PROMPT, "still here")),
        (
            "INSERT INTO context_tools (context_id, tool_name, created_at) VALUES (?, ?, ?)",
            ("gone", "read", NOON),
            ("nowhere", "write", NOON),
        ),
    )

    assert rows("SELECT id, name, record_count FROM contexts") == [("gone", "recovered-gone", 1)]
    assert rows("SELECT context_id, tool_name FROM context_tools") == [("gone", "read")]
    assert rows("SELECT context_id, tool_name FROM orphaned_context_tools") == [
        ("nowhere", "write")
    ]


def test_ids_of_deleted_rows_are_not_used_again(go: Any, tmp_path: Path) -> None:
    go(
        *conversation((PROMPT, "a"), (PROMPT, "b")),
        ("DELETE FROM records",),
    )

    with closing(sqlite3.connect(tmp_path / "go.db")) as raw:
        row = raw.execute(
            "INSERT INTO records (context_id, ts, source, content, live, est_tokens, seq, position)"
            " VALUES ('c', '', 0, '', 1, 0, 1, 1) RETURNING id"
        ).fetchone()
    assert row == (3,)


def test_text_that_is_not_utf_8_becomes_readable_and_the_copy_keeps_it(
    go: Any, tmp_path: Path
) -> None:
    rows = go(
        *conversation((PROMPT, "a")), ("UPDATE records SET content = CAST(x'61ff62' AS TEXT)",)
    )

    (copy,) = tmp_path.glob("*.backup-*")
    assert rows("SELECT content FROM records") == [("a\N{REPLACEMENT CHARACTER}b",)]
    assert query(str(copy))("SELECT CAST(content AS BLOB) FROM records") == [(b"a\xffb",)]


def test_server_side_threading_is_kept(go: Any) -> None:
    rows = go(
        *conversation((PROMPT, "a")),
        ("UPDATE contexts SET use_server_side_threading = 1, last_response_id = 'resp_1'",),
    )

    assert rows("SELECT use_server_side_threading, last_response_id FROM contexts") == [
        (1, "resp_1")
    ]


def test_a_migrated_file_is_opened_without_a_second_migration(go: Any, tmp_path: Path) -> None:
    go(*conversation((PROMPT, "a")))

    Database(tmp_path / "go.db").close()

    assert len(list(tmp_path.glob("*.backup-*"))) == 1
