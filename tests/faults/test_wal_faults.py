"""SQLite's write-ahead log where it cannot be used, and where it cannot be begun anew."""

from __future__ import annotations

import logging
import os
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import pytest
from children import PATIENCE, Child, Voice
from faulty_disk import FaultyDisk
from support import COUNT, Open, contents, problems, shown
from support import file as file
from support import run as run

from contextwindow import ContextWindow, Store
from contextwindow.store import files, opening, sqlite, wal
from contextwindow.testing import ScriptedModel

MEGABYTE = "x" * (1 << 20)


@contextmanager
def without_shared_memory(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Have SQLite reach files by its own layer for systems that have none."""
    connect = files.connect

    def reach(path: str, *, options: str = "", busy_timeout: float = 10.0) -> sqlite3.Connection:
        options = f"{options or 'mode=rw'}&vfs=unix-none"
        return connect(path, options=options, busy_timeout=busy_timeout)

    with monkeypatch.context() as patch:
        for module in (files, opening, sqlite, wal):
            patch.setattr(module, "connect", reach)
        yield


def talk(window: ContextWindow) -> None:
    """A turn, every chunk of it stored."""
    window.add_prompt("count")
    chunks = list(window.call_model_streaming())
    assert shown(chunks) == COUNT


def check(database: str, texts: list[str]) -> None:
    """Asserts that *texts* are stored, in a database that is sound."""
    with Store(database) as store:
        assert contents(ContextWindow(store, "chat").records()) == texts
        assert problems(store) == []
        assert store.examine().sound


# -- 28d: no write-ahead log ------------------------------------------------------------------


@pytest.mark.parametrize("before", ["nothing", "closed", "killed"])
def test_a_disk_that_takes_no_wal_is_used_with_a_journal_and_a_warning(
    file: str,
    run: Open,
    before: str,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Fault 28d: WAL refused by the file system: a warning, and the next best mode.

    Also of a database that had one elsewhere, with text in it that was never copied back.
    """
    texts = ["count", COUNT]
    if before != "nothing":
        with Child(add_and_wait, file, "elsewhere") as other:
            other.until("written")
            if before == "closed":
                other.tell("close")
                other.rest()
        assert os.path.exists(f"{file}-wal") == (before == "killed")
        texts = ["elsewhere", *texts]
    with without_shared_memory(monkeypatch):
        window = run(file, "chat", model=ScriptedModel([COUNT]))
        talk(window)

        assert "journal mode wal was refused by the file system, delete is used" in caplog.text
        assert not os.path.exists(f"{file}-wal")
        window.close()
        check(file, texts)
    check(file, texts)


def add_and_wait(say: Voice, database: str, text: str) -> None:
    """Write a prompt and stay until told to close."""
    window = ContextWindow(database, "chat")
    window.add_prompt(text)
    say("written")
    say.heard()
    window.close()


def test_a_file_system_that_cannot_map_memory_is_used_with_a_journal(
    tmp_path: Path, run: Open, caplog: pytest.LogCaptureFixture
) -> None:
    """Fault 28d: a real file system on which SQLite grants a WAL, and then cannot use it."""
    with mounted(tmp_path) as disk:
        database = f"{disk.place}/chat.db"
        window = run(database, "chat", model=ScriptedModel([COUNT]))
        talk(window)
        window.close()

        assert "journal mode wal was refused by the file system, delete is used" in caplog.text
        check(database, ["count", COUNT])


@contextmanager
def mounted(folder: Path) -> Iterator[FaultyDisk]:
    """A `FaultyDisk`, where this user may mount one."""
    if os.geteuid() != 0 or not os.path.exists("/dev/fuse"):
        pytest.skip("only root may mount a file system, and where there is FUSE")
    with FaultyDisk(str(folder)) as disk:
        yield disk


def test_a_wal_that_others_can_use_is_not_taken_from_them(
    file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fault 28d: who has it open keeps his journal."""
    with ContextWindow(file, "chat") as window:
        window.add_prompt("one")
        with Child(give_up, file) as other:
            assert other.next() == "database is locked"
        window.add_prompt("two")
        with closing(sqlite3.connect(file)) as raw:
            assert raw.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    check(file, ["one", "two"])


def give_up(say: Voice, database: str) -> None:
    """Do what is done where there can be no WAL, and say what comes of it."""
    try:
        wal.give_up(database, 0.2)
    except sqlite3.OperationalError as error:
        say(str(error))


# -- 28e: readers -----------------------------------------------------------------------------


@contextmanager
def readers_of_ours(database: str) -> Iterator[None]:
    """Everything of ours that looks at a database for long, in the midst of looking."""
    with ExitStack() as stack:
        inspecting = stack.enter_context(Store(database, read_only=True))
        window = stack.enter_context(ContextWindow(inspecting, "chat"))
        window.records()
        model = ScriptedModel([COUNT])
        other = stack.enter_context(ContextWindow(database, "other", model=model))
        other.add_prompt("count")
        streaming = stack.enter_context(other.call_model_streaming())
        next(iter(streaming))
        window.switch_context("other")
        following = threading.Event()
        thread = threading.Thread(target=follow, args=(window, following))
        thread.start()
        assert following.wait(PATIENCE)
        yield
        streaming.close()
        thread.join(PATIENCE)


def follow(window: ContextWindow, following: threading.Event) -> None:
    """Follow the turn that runs, to its end."""
    for _ in window.follow(after=""):
        following.set()


def test_nothing_of_ours_that_stays_open_lets_the_wal_grow(file: str) -> None:
    """Fault 28e: A reader that stays open: the WAL stays as long as it is without one."""
    with ContextWindow(file, "chat") as window:
        window.add_prompt("one")
        with readers_of_ours(file):
            longest = 0
            for _ in range(30):
                window.add_prompt(MEGABYTE)
                longest = max(longest, wal.size_of(file))
        assert longest < wal.MOST + (4 << 20)
    assert problems(file) == []


def read_without_a_pause(say: Voice, database: str) -> None:
    """Read the context again and again."""
    with Store(database, read_only=True) as store:
        window = ContextWindow(store, "chat")
        window.records(limit=10)
        say("reading")
        while True:
            window.records(limit=10)


def test_readers_that_never_pause_do_not_keep_the_wal_from_being_begun_anew(
    file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fault 28e: Somebody reads at every moment: the WAL is begun anew all the same."""
    monkeypatch.setattr(wal, "MOST", 2 << 20)
    with ContextWindow(file, "chat") as window, ExitStack() as stack:
        for number in range(20):
            window.add_prompt(f"{number}" * 10_000)
        for _ in range(2):
            reader = stack.enter_context(Child(read_without_a_pause, file))
            reader.until("reading")
        for _ in range(3):
            window.add_prompt(MEGABYTE * 3)
            until_short(window, file)
    assert problems(file) == []


def until(said: str, window: ContextWindow, caplog: pytest.LogCaptureFixture) -> None:
    """Write little things until the log says that."""
    give_up = time.monotonic() + PATIENCE
    while said not in caplog.text:
        assert time.monotonic() < give_up, f"the log never says {said!r}"
        window.add_prompt("on")


def until_short(window: ContextWindow, database: str) -> None:
    """Write little things until the WAL has been begun anew."""
    give_up = time.monotonic() + PATIENCE
    while wal.size_of(database) > 2 << 20:
        assert time.monotonic() < give_up, "the WAL is never begun anew"
        window.add_prompt("on")


def test_a_transaction_that_another_program_keeps_open_is_named_and_outlived(
    file: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fault 28e: A reader of another program: the log and `doctor` say so; later it shrinks."""
    monkeypatch.setattr(wal, "MOST", 1 << 20)
    with Store(file) as store, ContextWindow(store, "chat") as window:
        window.add_prompt("one")
        with closing(sqlite3.connect(file, isolation_level=None)) as reader:
            reader.execute("BEGIN")
            reader.execute("SELECT count(*) FROM records").fetchone()
            with caplog.at_level(logging.WARNING, "contextwindow"):
                for _ in range(2):
                    window.add_prompt(MEGABYTE * 3)
                until("-wal has grown to", window, caplog)
            assert reader.execute("SELECT count(*) FROM records").fetchone() == (1,)
            found = store.examine()
            assert found.sound
            assert any("-wal has grown to" in warning for warning in found.warnings)
        until_short(window, file)
        assert not any("-wal has grown" in warning for warning in store.examine().warnings)
    assert problems(file) == []
