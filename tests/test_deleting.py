"""Deletion that is one: nothing of a context is left, in the tables, the index or the file."""

from __future__ import annotations

import logging
import sqlite3
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from support import problems

from contextwindow import (
    ConfigError,
    ContextNotFound,
    ContextWindow,
    Store,
    StoreBusy,
    StreamInterrupted,
    Summarize,
    Tool,
)
from contextwindow.store import conversations
from contextwindow.testing import ScriptedModel, ScriptedReply

SECRET = "xyzzyplughsecret"
TABLES = [
    "contexts",
    "records",
    "record_deltas",
    "turns",
    "calls",
    "context_tools",
    "compactions",
    "seams",
    "cancellations",
    "attachments",
    "record_attachments",
]


def in_files(path: Path, text: str) -> list[str]:
    """The files beside *path* that hold *text*, in either spelling of a database's file."""
    return [
        one.name
        for one in sorted(path.parent.iterdir())
        if text.encode() in one.read_bytes().lower()
    ]


def full_of_it(store: Store, name: str) -> ContextWindow:
    """A context with everything that one can have, the secret in each piece of it."""
    model = ScriptedModel(
        [
            ScriptedReply(
                f"{SECRET} says", reasoning=f"{SECRET}?", tool_calls=[("look", {"at": SECRET})]
            ),
            f"{SECRET} said",
            ScriptedReply([f"{SECRET} ", "cut"], fault="eof"),
        ]
    )
    look = Tool("look", SECRET, parameters={}, run=lambda at: f"{SECRET} seen")
    window = ContextWindow(
        store,
        name,
        model=model,
        tools=[look],
        system_prompt=f"keep {SECRET}",
        summarizer=ScriptedModel([f"they spoke of {SECRET}"], repeat=True),
        compaction=Summarize(keep_last=1),
    )
    window.add_prompt(f"{SECRET} asked", [(SECRET.encode() * 100, "text/plain")])
    window.call_model()
    window.add_prompt("more")
    with pytest.raises(StreamInterrupted):
        window.call_model(max_resumes=0)
    window.compact()
    return window


def rows(store: Store) -> dict[str, int]:
    with store.database.read() as connection:
        return {
            name: connection.execute(f"SELECT count(*) FROM {name}").fetchall()[0][0]
            for name in TABLES
        }


def test_nothing_of_a_deleted_context_is_left_in_any_table(database: str) -> None:
    with Store(database) as store:
        keep = ContextWindow(store, "keep")
        keep.add_prompt("stay")
        before = rows(store)
        full_of_it(store, "doomed")
        assert {name for name, count in rows(store).items() if count > before[name]} >= {
            "contexts",
            "records",
            "turns",
            "calls",
            "context_tools",
            "compactions",
            "attachments",
            "record_attachments",
        }
        assert store.search(SECRET)

        keep.delete_context("doomed")

        assert rows(store) == before
        assert store.search(SECRET) == []
        assert problems(store) == []
        assert store.examine().sound


def test_attachments_that_others_share_stay(database: str) -> None:
    with Store(database) as store:
        window = ContextWindow(store, "one")
        window.add_prompt("see", [(b"shared bytes", "text/plain")])
        window.fork("two")
        window.delete_context("one")

        (record,) = ContextWindow(store, "two").records()
        assert record.attachments[0].data == b"shared bytes"
        window.delete_context("two")
        assert rows(store)["attachments"] == 0


@pytest.mark.parametrize("journal_mode", ["wal", "delete"])
def test_no_byte_of_a_securely_deleted_context_is_left_in_the_file(
    tmp_path: Path, journal_mode: str
) -> None:
    path = tmp_path / "chat.db"
    with Store(path, journal_mode=journal_mode) as store:
        keep = ContextWindow(store, "keep")
        for number in range(200):
            keep.add_prompt(f"stay {number}")
        full_of_it(store, "doomed")
        store.search(SECRET)
        assert in_files(path, SECRET)

        keep.delete_context("doomed", secure=True)

        assert in_files(path, SECRET) == []
        assert [record.content for record in keep.records()] == [f"stay {n}" for n in range(200)]
        assert len(store.search("stay", limit=300)) == 200
        assert store.examine().sound
    assert in_files(path, SECRET) == []


def test_what_was_deleted_before_can_be_wiped_later(tmp_path: Path) -> None:
    path = tmp_path / "chat.db"
    with Store(path) as store:
        keep = ContextWindow(store, "keep")
        full_of_it(store, "doomed")
        keep.delete_context("doomed")

        store.wipe_deleted()

        assert in_files(path, SECRET) == []


def test_a_reader_that_holds_the_bytes_is_told_and_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "chat.db"
    with Store(path, busy_timeout=0.2) as store, closing(sqlite3.connect(path)) as reader:
        window = full_of_it(store, "doomed")
        reader.execute("BEGIN")
        reader.execute("SELECT * FROM records").fetchone()

        with pytest.raises(StoreBusy, match="wipe_deleted"):
            window.delete_context("doomed", secure=True)

        assert "doomed" not in [one.name for one in store.list_contexts()]
        assert window.current_context != "doomed"
        reader.rollback()
        store.wipe_deleted()
        assert in_files(path, SECRET) == []


def test_copies_that_were_made_beside_the_file_are_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "chat.db"
    copy = tmp_path / "chat.db.backup-0003-20260101T000000Z"
    with Store(path) as store:
        window = full_of_it(store, "doomed")
        store.database.backup(copy)
        with caplog.at_level(logging.WARNING, "contextwindow"):
            window.delete_context("doomed", secure=True)

    assert str(copy) in caplog.text
    assert in_files(path, SECRET) == [copy.name]


def test_a_server_is_not_said_to_forget(postgresql: str) -> None:
    with Store(postgresql) as store:
        window = ContextWindow(store, "chat")

        with pytest.raises(ConfigError, match="secure"):
            window.delete_context("chat", secure=True)
        with pytest.raises(ConfigError, match="secure"):
            store.prune(older_than=timedelta(0), secure=True)

        assert [one.name for one in store.list_contexts()] == ["chat"]


@pytest.mark.parametrize("secure", [1, None, "yes"])
def test_secure_is_a_flag(secure: Any) -> None:
    with ContextWindow(":memory:", "chat") as window, pytest.raises(ConfigError, match="secure"):
        window.delete_context("chat", secure=secure)


# -- prune ------------------------------------------------------------------------------------


def aged(store: Store, name: str, days: float) -> ContextWindow:
    """A context that was last used so many days ago."""
    window = ContextWindow(store, name)
    window.add_prompt(f"hello from {name}")
    then = (datetime.now(UTC) - timedelta(days=days)).strftime("%Y-%m-%d %H:%M:%S +0000 UTC")
    with store.database.write() as connection:
        mark = "?" if store.dialect == "sqlite" else "%s"
        connection.execute(
            f"UPDATE contexts SET start_time = {mark}, last_activity = {mark} WHERE name = {mark}",
            (then, then, name),
        )
    return window


def names(store: Store) -> set[str]:
    return {one.name for one in store.list_contexts()}


def test_contexts_that_nobody_has_used_for_long_are_pruned(database: str) -> None:
    with Store(database) as store:
        for name, days in {"old": 100, "older": 200, "new": 1}.items():
            aged(store, name, days)

        would = store.prune(older_than=timedelta(days=90), dry_run=True)
        assert [one.name for one in would] == ["older", "old"]
        assert names(store) == {"old", "older", "new"}

        assert store.prune(older_than=timedelta(days=90)) == would
        assert names(store) == {"new"}
        assert store.search("old") == []
        assert store.prune(older_than=datetime.now(UTC) - timedelta(days=90)) == []
        assert [one.name for one in store.prune(older_than=timedelta(0))] == ["new"]


def test_a_context_that_was_made_and_never_used_is_as_old_as_it_is(database: str) -> None:
    with Store(database) as store:
        ContextWindow(store, "empty")

        assert store.prune(older_than=timedelta(hours=1)) == []
        assert [one.name for one in store.prune(older_than=timedelta(0))] == ["empty"]


def test_what_was_copied_or_brought_in_just_now_is_not_old(database: str) -> None:
    with Store(database) as store:
        window = aged(store, "old", 200)
        with store.database.write() as connection:
            connection.execute("UPDATE records SET ts = '2020-01-01 00:00:00 +0000 UTC'")
        window.clone("copy")
        window.import_context(window.export_context(), "import")
        window.edit(window.records()[0].id, "hello again")

        assert [one.name for one in store.prune(older_than=timedelta(days=90))] == ["old"]


def test_a_context_whose_turn_runs_is_not_pruned(database: str) -> None:
    with Store(database) as store:
        window = ContextWindow(store, "busy", model=ScriptedModel([["a ", "b ", "c"]]))
        window.add_prompt("go")
        stream = window.call_model_streaming()
        next(stream)
        aged_by = datetime.now(UTC)

        assert store.prune(older_than=aged_by) == []
        assert stream.until_done().text == "a b c"
        assert len(store.prune(older_than=timedelta(0))) == 1


def test_pruning_securely_leaves_no_byte(tmp_path: Path) -> None:
    path = tmp_path / "chat.db"
    with Store(path) as store:
        full_of_it(store, "doomed")

        assert len(store.prune(older_than=timedelta(0), secure=True)) == 1

        assert in_files(path, SECRET) == []


@pytest.mark.parametrize(
    "older_than",
    [None, 90, "90d", datetime(2020, 1, 1), timedelta(days=-1), timedelta.max],  # noqa: DTZ001
)
def test_what_is_no_age_is_refused(older_than: Any) -> None:
    with Store(":memory:") as store:
        ContextWindow(store, "chat")
        with pytest.raises(ConfigError, match="older_than"):
            store.prune(older_than=older_than)
        assert names(store) == {"chat"}


def test_a_context_that_is_gone_is_not_deleted_twice(database: str) -> None:
    with Store(database) as store:
        window = ContextWindow(store, "chat")
        window.delete_context("chat")
        with pytest.raises(ContextNotFound):
            window.delete_context("chat")


# -- size -------------------------------------------------------------------------------------


def test_a_database_that_grows_too_large_says_so_now_and_then(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with Store(tmp_path / "chat.db", max_database_bytes=1_000_000) as store:
        window = ContextWindow(store, "chat")
        window.add_prompt("small")
        assert "max_database_bytes" not in caplog.text
        for _ in range(20):
            window.add_prompt("x" * 100_000)

        told = [one for one in caplog.messages if "max_database_bytes" in one]
        assert 2 <= len(told) < 12
        assert store.database_bytes() > 1_000_000


def test_a_database_that_is_too_large_already_says_so_when_it_is_opened(
    database: str, caplog: pytest.LogCaptureFixture
) -> None:
    with Store(database) as store:
        ContextWindow(store, "chat").add_prompt("hello")
        assert store.database_bytes() > 10_000
    with Store(database, max_database_bytes=10_000):
        assert "max_database_bytes" in caplog.text


@pytest.mark.parametrize("most", [0, -1, 1.5, "1G", True])
def test_a_limit_is_a_number_of_bytes(most: Any) -> None:
    with pytest.raises(ConfigError, match="max_database_bytes"):
        Store(":memory:", max_database_bytes=most)


# -- what a review has found ------------------------------------------------------------------


def test_a_stream_goes_on_while_the_file_is_wiped(tmp_path: Path) -> None:
    path = tmp_path / "chat.db"
    with Store(path, busy_timeout=0.5) as store, closing(sqlite3.connect(path)) as reader:
        keep = ContextWindow(store, "keep")
        for _ in range(60):
            keep.add_prompt("x" * 500_000)
        keep.create_context("doomed")
        words = [f"{number} " for number in range(300)]
        model = ScriptedModel([ScriptedReply(words, delay=0.002)])
        window = ContextWindow(store, "stream", model=model)
        window.add_prompt("count")
        with ThreadPoolExecutor(1) as pool:
            reply = pool.submit(window.call_model)
            while not window.records()[1:]:
                pass
            reader.execute("BEGIN")
            reader.execute("SELECT * FROM records").fetchone()
            with pytest.raises(StoreBusy, match="wipe_deleted"):
                keep.delete_context("doomed", secure=True)
            reader.rollback()
            store.wipe_deleted()
            assert reply.result(60).text == "".join(words)


@pytest.mark.parametrize("word", ["alphabet", "topsecretword"])
def test_a_context_with_a_damaged_record_can_be_deleted_and_wiped(
    tmp_path: Path, word: str
) -> None:
    path = tmp_path / "chat.db"
    with Store(path) as store:
        window = ContextWindow(store, "keep")
        window.create_context("doomed")
        window.switch_context("doomed")
        window.add_prompt(f"{word} of mine")
        store.search("mine")
    data = path.read_bytes()
    place = data.index(f"{word} of".encode()) + 4
    path.write_bytes(data[:place] + b" " + data[place + 1 :])

    with Store(path) as store:
        window = ContextWindow(store, "keep")
        assert {one.kind for one in store.examine().problems} == {"record", "index"}
        window.delete_context("doomed", secure=True)
        assert store.examine().sound
    assert in_files(path, word) == []
    assert in_files(path, word[:4]) == []


def test_the_index_of_a_damaged_record_is_mended(tmp_path: Path) -> None:
    path = tmp_path / "chat.db"
    with Store(path) as store:
        ContextWindow(store, "chat").add_prompt("alphabet of mine")
        store.search("mine")
    data = path.read_bytes()
    path.write_bytes(data.replace(b"alphabet of", b"alph bet of"))
    with Store(path) as store:
        found = store.examine(mend=True).problems
        assert [(one.kind, one.mended) for one in found] == [("record", False), ("index", True)]
        assert [one.kind for one in store.examine().problems] == ["record"]


def test_a_wipe_that_was_interrupted_is_remembered(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "chat.db"
    with Store(path) as store:
        full_of_it(store, "doomed")
        (context,) = store.list_contexts()
        # As a kill between the two would leave it.
        conversations.delete(store.database, context.id, secure=True)
    with Store(path) as store:
        assert any("wipe_deleted" in one for one in store.examine().warnings)
        store.wipe_deleted()
        assert not any("wipe_deleted" in one for one in store.examine().warnings)
    assert in_files(path, SECRET) == []


def test_the_size_is_that_of_now_whoever_wrote(tmp_path: Path) -> None:
    path = tmp_path / "chat.db"
    with Store(path) as writer, Store(path, read_only=True) as reader:
        before = reader.database_bytes()
        ContextWindow(writer, "chat").add_prompt("x" * 1_000_000)
        assert reader.database_bytes() == writer.database_bytes() > before + 1_000_000
