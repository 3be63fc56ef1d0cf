"""What happens when the disk, or somebody else on it, gets in the way of a stream."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from children import Child, Voice
from support import Open, contents, problems, shown, states
from support import file as file
from support import run as run

from contextwindow import ContextWindow, RecordCorrupt, Store, StoreError, StreamChunk
from contextwindow.errors import StoreBusy, StoreFull, StoreReplaced, StreamInterrupted
from contextwindow.testing import ScriptedModel, ScriptedReply

PIECES = [f"{number:04} " + "x" * 4000 for number in range(200)]
TEXT = "".join(PIECES)


def fill(store: Store, pages: int = 20) -> None:
    """Let the database of *store* grow by no more than *pages*: then SQLite says it is full."""
    with store.database.write() as connection:
        (count,) = connection.execute("PRAGMA page_count").fetchone() or (0,)
        connection.execute(f"PRAGMA max_page_count = {count + pages}")


def make_room(store: Store) -> None:
    with store.database.write() as connection:
        connection.execute("PRAGMA max_page_count = 1073741823")


def until_it_fails(window: ContextWindow, chunks: list[StreamChunk]) -> StoreError:
    """Read a stream to the error of the database that ends it."""
    with pytest.raises(StoreError) as caught:
        chunks.extend(window.call_model_streaming())
    return caught.value


# -- 21: no room ------------------------------------------------------------------------------


@pytest.mark.parametrize("interval", [0, 0.05])
def test_a_disk_that_is_full_in_mid_stream_loses_nothing_that_was_shown(
    file: str, run: Open, interval: float
) -> None:
    """Fault 21: Disk full in mid-stream: one clear error, what was shown is kept, it goes on."""
    with Store(file) as store:
        model = ScriptedModel([ScriptedReply(PIECES, delay=0.001), "the rest"])
        window = run(store, "chat", model=model, checkpoint_interval=interval)
        window.add_prompt("go on")
        fill(store)
        chunks: list[StreamChunk] = []

        error = until_it_fails(window, chunks)

        assert isinstance(error, StoreFull)
        assert "no room on the disk" in str(error)
        text = shown(chunks)
        assert 0 < len(text) < len(TEXT)
        assert error.partial_text == text
        assert error.turn_id == window.turns()[0].id
        assert problems(store) == []

        make_room(store)
        (turn,) = window.interrupted()
        assert turn.partial_text == text
        assert window.resume().text == text + "the rest"
        assert states(window) == ["complete"]
        assert problems(store) == []


def test_what_was_shown_is_written_when_the_store_is_closed_at_the_latest(file: str) -> None:
    """Fault 21: What was shown and not stored is kept in memory while the process lives."""
    with Store(file) as store:
        model = ScriptedModel([ScriptedReply(PIECES, delay=0.001)])
        window = ContextWindow(store, "chat", model=model, checkpoint_interval=0.05)
        window.add_prompt("go on")
        fill(store, 8)
        chunks: list[StreamChunk] = []
        until_it_fails(window, chunks)
        make_room(store)

    with ContextWindow(file, "chat") as later:
        (turn,) = later.interrupted()
        assert turn.partial_text == shown(chunks)
    assert problems(file) == []


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of one megabyte."""
    place = tmp_path / "disk"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(place)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("a file system cannot be mounted here")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def test_a_real_disk_that_is_full_leaves_a_sound_database(small_disk: Path) -> None:
    """Fault 21: A file system without room: nothing half-written, on with it when there is."""
    database = str(small_disk / "chat.db")
    model = ScriptedModel([ScriptedReply(PIECES * 2), "the rest"])
    with ContextWindow(database, "chat", model=model) as window:
        window.add_prompt("go on")
        chunks: list[StreamChunk] = []
        assert isinstance(until_it_fails(window, chunks), StoreFull)
        with pytest.raises(StoreFull):
            window.add_prompt("more " * 200_000)
        room = ["mount", "-o", "remount,size=64m", str(small_disk)]
        subprocess.run(room, check=True)

        assert window.resume().text == shown(chunks) + "the rest"
    assert problems(database) == []


# -- 24: locked by others ---------------------------------------------------------------------


def hold_locked(say: Voice, database: str) -> None:
    """Lock the database as another program would, until told to let go."""
    raw = sqlite3.connect(database, isolation_level=None)
    raw.execute("BEGIN EXCLUSIVE")
    say("locked")
    say.heard()
    raw.execute("ROLLBACK")
    say("let go")


def test_a_short_lock_of_another_program_does_not_tear_a_stream(file: str, run: Open) -> None:
    """Fault 24: Locked by another program for a moment: the stream waits and goes on."""
    model = ScriptedModel([ScriptedReply(["one ", "two ", "three ", "four"], delay=0.01)])
    window = run(file, "chat", model=model)
    window.add_prompt("count")
    chunks: list[StreamChunk] = []
    with Child(hold_locked, file) as other:
        for chunk in window.call_model_streaming():
            chunks.append(chunk)
            if chunk.delta == "two ":
                other.until("locked")
                threading.Timer(1.0, other.tell, ["go on"]).start()

    assert shown(chunks) == "one two three four"
    assert states(window) == ["complete"]
    window.close()
    assert problems(file) == []


def test_a_long_lock_of_another_program_is_one_clear_error_and_nothing_is_lost(
    file: str, run: Open
) -> None:
    """Fault 24: Locked for longer than the timeout: `StoreBusy`; what was shown is stored later."""
    store = Store(file, busy_timeout=0.5)
    model = ScriptedModel([ScriptedReply(["one ", "two ", "three ", "four"], delay=0.01), "three"])
    window = run(store, "chat", model=model)
    window.add_prompt("count")
    chunks: list[StreamChunk] = []
    with Child(hold_locked, file) as other:
        with pytest.raises(StoreBusy, match="locked"):
            for chunk in window.call_model_streaming():
                chunks.append(chunk)
                if chunk.delta == "two ":
                    other.until("locked")
        with pytest.raises(StoreBusy):
            window.add_prompt("now?")
        other.tell("go on")
        other.until("let go")

    assert shown(chunks) == "one two "
    assert window.interrupted()[0].partial_text == "one two "
    assert window.resume().text == "one two three"
    window.close()
    store.close()
    assert problems(file) == []


# -- 25, 28a: the file under our feet ---------------------------------------------------------


def removed(path: Path) -> None:
    path.unlink()


def replaced(path: Path) -> None:
    other = path.with_name("other.db")
    with ContextWindow(str(other), "chat") as window:
        window.add_prompt("of the other file")
    other.replace(path)


def moved(path: Path) -> None:
    path.rename(path.with_name("moved.db"))


def without_wal(path: Path) -> None:
    path.with_name(path.name + "-wal").unlink()


@pytest.mark.parametrize("happens", [removed, replaced, moved, without_wal])
def test_a_file_that_is_taken_away_in_mid_stream_is_rescued(
    file: str, run: Open, happens: Any
) -> None:
    """Fault 25: (fault 28a: as well) `StoreReplaced`; what was acknowledged is rescued."""
    model = ScriptedModel([ScriptedReply(["one ", "two ", "three ", "four"])])
    window = run(file, "chat", model=model)
    window.add_prompt("count")
    chunks: list[StreamChunk] = []

    with pytest.raises(StoreReplaced, match="was moved, deleted or replaced") as caught:
        for chunk in window.call_model_streaming():
            chunks.append(chunk)
            if chunk.delta == "two ":
                happens(Path(file))

    assert caught.value.partial_text == shown(chunks)
    with pytest.raises(StoreReplaced):
        window.add_prompt("gone?")
    (rescue,) = Path(file).parent.glob("*.rescue-*")
    assert str(rescue) in str(caught.value)
    assert rescue.stat().st_mode & 0o777 == 0o600
    with ContextWindow(str(rescue), "chat", model=ScriptedModel(["the rest"])) as rescued:
        assert contents(rescued.records())[0] == "count"
        assert contents(rescued.records())[1].startswith(shown(chunks))
    assert problems(str(rescue)) == []


def test_the_file_that_took_the_place_is_left_alone(file: str) -> None:
    """Fault 25: A file put in the place of ours is not written to."""
    window = ContextWindow(file, "chat")
    window.add_prompt("one")
    replaced(Path(file))
    before = Path(file).read_bytes()

    with pytest.raises(StoreReplaced):
        window.add_prompt("two")
    window.close()

    assert Path(file).read_bytes() == before


@pytest.mark.parametrize("what", ["-wal", "-shm"])
def test_a_file_of_the_journal_that_is_gone_between_two_runs_is_no_hindrance(
    file: str, what: str
) -> None:
    """Fault 25: WAL or SHM removed between runs: what was checkpointed is there and sound."""
    with ContextWindow(file, "chat") as window:
        window.add_prompt("one")
    with Child(add_and_wait, file) as other:
        other.until("written")
        other.kill()
    Path(file + what).unlink()

    with ContextWindow(file, "chat") as window:
        assert contents(window.records())[:1] == ["one"]
        window.add_prompt("three")
    assert problems(file) == []


def add_and_wait(say: Voice, database: str) -> None:
    """Write a prompt and stay."""
    window = ContextWindow(database, "chat")
    window.add_prompt("two")
    say("written")
    say.heard()


@pytest.mark.parametrize("what", ["open", "copy", "hash"])
def test_other_code_of_the_process_that_opens_the_live_file_costs_nothing(
    file: str, what: str
) -> None:
    """Fault 28a: The live file opened, copied or hashed by other code: nothing is lost."""
    lost: StoreReplaced | None = None
    with Child(append_many, file) as other, ContextWindow(file, "chat") as window:
        other.until("begun")
        written = []
        try:
            for number in range(100):
                written.append(window.add_prompt(f"ours {number}").content)
                # Closing any descriptor of a file drops all the locks the process has on it.
                if what == "copy":
                    shutil.copy(file, f"{file}.copy")
                else:
                    with open(file, "rb") as raw:
                        raw.read(1 if what == "open" else -1)
        except StoreReplaced as error:
            # The other process has taken itself for the last one, and removed the -wal.
            lost = error
        other.rest()
    # SQLite shares what it knows of a file among all who open it in a process.
    found = set(Child(say_texts, file).rest())
    if lost is not None:
        (rescue,) = Path(file).parent.glob("*.rescue-*")
        assert str(rescue) in str(lost)
        found |= set(Child(say_texts, str(rescue)).rest())
    assert found >= {f"theirs {number}" for number in range(100)} | set(written)
    assert not [text for text in found if text.startswith("problem")]


def say_texts(say: Voice, database: str) -> None:
    """Say every text, and what is wrong with the database."""
    with ContextWindow(database, "chat") as window:
        for text in contents(window.records()):
            say(text)
    for problem in problems(database):
        say(f"problem: {problem}")


def append_many(say: Voice, database: str) -> None:
    """Write a hundred prompts."""
    with ContextWindow(database, "chat") as window:
        say("begun")
        for number in range(100):
            window.add_prompt(f"theirs {number}")


# -- 28b: damaged text ------------------------------------------------------------------------


@pytest.mark.parametrize("column", ["content", "payload"])
def test_text_that_is_no_utf8_any_more_is_an_error_that_names_its_record(
    file: str, run: Open, column: str
) -> None:
    """Fault 28b: A damaged record: `RecordCorrupt` names it, the others stay readable."""
    window = run(file, "chat")
    good, bad = window.add_prompt("good"), window.add_prompt("bad")
    with closing(sqlite3.connect(file)) as raw:
        raw.execute(
            f"UPDATE records SET {column} = CAST(x'62ff64' AS TEXT) WHERE id = ?", (bad.id,)
        )
        raw.commit()

    with pytest.raises(RecordCorrupt, match=f"record {bad.id} "):
        window.live_records()
    with pytest.raises(RecordCorrupt):
        window.records()
    window.set_live([bad.id], False)
    assert [record.id for record in window.live_records()] == [good.id]
    window.close()
    with Store(file) as store:
        found = store.examine().problems
    assert [one.record_id for one in found if one.kind == "record"] == [bad.id]


def test_the_gate_of_a_replaced_file_is_open_for_others(file: str) -> None:
    """Fault 25: After a replacement the new file can be opened in the same process."""
    window = ContextWindow(file, "chat")
    window.add_prompt("one")
    removed(Path(file))
    with pytest.raises(StoreReplaced):
        window.add_prompt("two")

    with ContextWindow(file, "chat") as again:
        again.add_prompt("anew")
        assert contents(again.records()) == ["anew"]


def test_a_damaged_partial_of_one_conversation_does_not_hide_the_turns_of_others(
    tmp_path: Path,
) -> None:
    """Fault 28b: `Store.turns()` and `recover()` go on; the conversation itself names it."""
    path = tmp_path / "chat.db"
    with Store(path) as store:
        for name in ("bad", "good"):
            model = ScriptedModel([ScriptedReply(["one ", "two"], fault="eof")])
            with ContextWindow(store, name, model=model) as window:
                window.add_prompt("count")
                with pytest.raises(StreamInterrupted):
                    window.call_model(max_resumes=0)
        with store.database.write() as connection:
            connection.execute(
                "UPDATE records SET content = 'x' WHERE content = 'one two' AND id = 2"
            )

        assert sorted(turn.partial_text for turn in store.turns("interrupted")) == ["", "one two"]
        assert store.recover() == []
        with pytest.raises(RecordCorrupt, match="record 2 "):
            ContextWindow(store, "bad").interrupted()
