"""Long work tells how far it is; and what the store does for a database that has no window."""

from __future__ import annotations

import sqlite3
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from llm_tables import FIRST
from support import contents
from support import file as file

from contextwindow import ConfigError, ContextNotFound, ContextWindow, Migration, Store
from contextwindow.store.migrating import migrate
from contextwindow.store.schema import REVISION


class Heard:
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.told: list[tuple[int, int]] = []

    def __call__(self, done: int, total: int) -> None:
        self.told.append((done, total))

    def assert_grew_to_the_end(self) -> None:
        done = [one for one, _ in self.told]
        assert done == sorted(done)
        assert self.told[-1][0] == self.told[-1][1]


def fill(database: str, *names: str) -> None:
    with Store(database) as store:
        for name in names:
            with ContextWindow(store, name) as window:
                window.add_prompt(f"hello from {name}")


def test_an_examination_tells_how_far_it_is(database: str) -> None:
    fill(database, "a", "b", "c")
    heard = Heard()
    with Store(database) as store:
        found = store.examine(mend=True, progress=heard)
    assert found.sound
    assert heard.told[-1] == (6, 6)
    heard.assert_grew_to_the_end()


def test_pruning_tells_how_far_it_is(database: str) -> None:
    fill(database, "a", "b")
    heard = Heard()
    with Store(database) as store:
        store.prune(timedelta(0), dry_run=True, progress=heard)
        assert not heard.told
        gone = store.prune(timedelta(0), progress=heard)
    assert len(gone) == 2
    assert heard.told == [(1, 2), (2, 2)]


def test_taking_in_a_log_tells_how_far_it_is(file: str, tmp_path: Path) -> None:
    log = sqlite3.connect(tmp_path / "logs.db")
    log.executescript(FIRST)
    for number in range(3):
        log.execute("INSERT INTO conversations VALUES (?, ?, 'm')", (str(number), f"c{number}"))
        log.execute(
            "INSERT INTO responses (id, prompt, response, conversation_id) VALUES (?, 'a', 'b', ?)",
            (str(number), str(number)),
        )
    log.commit()
    log.close()
    heard = Heard()
    with Store(file) as store:
        assert len(store.import_llm_logs(tmp_path / "logs.db", progress=heard)) == 3
    assert heard.told == [(0, 3), (1, 3), (2, 3), (3, 3)]


def test_opening_tells_what_it_has_migrated_and_where_the_copy_is(go_file: Path) -> None:
    before = go_file.read_bytes()
    heard = Heard()
    with Store(go_file, progress=heard) as store:
        done = store.migration
    assert done is not None
    assert (done.from_revision, done.to_revision) == ("0000", REVISION)
    assert done.copy is not None
    with sqlite3.connect(done.copy) as copy, sqlite3.connect(":memory:") as original:
        original.deserialize(before)
        assert list(copy.iterdump()) == list(original.iterdump())
    copy.close()
    original.close()
    heard.assert_grew_to_the_end()

    with Store(go_file) as store:
        assert store.migration is None


def test_opening_tells_what_it_has_migrated_on_a_server(postgresql: str) -> None:
    engine = sa.create_engine(postgresql)
    with engine.begin() as connection:
        migrate(connection, "0003")
    engine.dispose()
    with Store(postgresql) as store:
        assert store.migration == Migration(from_revision="0003", to_revision=REVISION)


def test_a_store_deletes_a_context_and_makes_none(database: str) -> None:
    fill(database, "a")
    with Store(database) as store:
        with pytest.raises(ContextNotFound):
            store.delete_context("b")
        store.delete_context("a")
        assert store.list_contexts() == []


def test_a_store_takes_a_context_in_without_a_window(database: str) -> None:
    with ContextWindow(context="a") as window:
        window.add_prompt("hello")
        export: dict[str, Any] = window.export_context()
    with Store(database) as store:
        assert store.import_context(export, "b").name == "b"
        with pytest.raises(ConfigError, match="exists"):
            store.import_context(export, "b")
        with ContextWindow(store, "b") as window:
            assert contents(window.records()) == ["hello"]
