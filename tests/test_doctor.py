"""Settling from anywhere, and looking whether a database is sound."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from crash import kill_while_streaming
from support import COUNT, contents, problems
from support import file as file

from contextwindow import ContextWindow, Store
from contextwindow.cli import main
from contextwindow.errors import StoreReadOnly
from contextwindow.store.examination import has_reset_bug
from contextwindow.testing import ScriptedModel


def doctor(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["doctor", *arguments])


def report(*arguments: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(doctor(*arguments, "--json").output)
    return found


def kill_two(database: str) -> list[str]:
    """Leave the dead turns of two contexts behind; what was shown of each."""
    return [
        kill_while_streaming(
            database, interval=0.0, mode="sync", after=0.02, context=f"killed {number}"
        ).text
        for number in range(2)
    ]


def used(database: str) -> None:
    """Fill *database* with a conversation."""
    with ContextWindow(database, "chat", model=ScriptedModel([COUNT])) as window:
        window.add_prompt("count")
        window.call_model()


def spoil(database: str, sql: str) -> None:
    connection = sqlite3.connect(database)
    connection.execute(sql)
    connection.commit()
    connection.close()


def test_recover_settles_every_dead_turn_of_a_database(database: str) -> None:
    shown = kill_two(database)

    with Store(database) as store:
        settled = store.recover()

        assert [turn.state for turn in settled] == ["interrupted"] * 2
        for turn, text in zip(settled, shown, strict=True):
            assert turn.partial_text.startswith(text)
        assert store.recover() == []
        assert problems(store) == []


def test_recover_leaves_a_living_turn_alone(database: str) -> None:
    with ContextWindow(database, "chat", model=ScriptedModel([COUNT])) as window:
        window.add_prompt("count")
        with window.call_model_streaming() as stream, Store(database) as store:
            for chunk in stream:
                if chunk.delta:
                    assert store.recover() == []

        assert window.turns()[0].state == "complete"


def test_recover_does_not_stumble_over_a_context_that_is_deleted_meanwhile(file: str) -> None:
    kill_two(file)
    with Store(file) as store:
        settle = store.settle
        window = ContextWindow(store, "other")

        def deleted_first(context_id: str) -> bool:
            store.settle = settle  # type: ignore[method-assign]
            window.delete_context("killed 0")
            return settle(context_id)

        store.settle = deleted_first  # type: ignore[method-assign]
        assert len(store.recover()) == 1


def test_doctor_settles_dead_turns_and_says_so(database: str) -> None:
    kill_two(database)

    found = report(database)

    assert [one["partial_text"][:3] for one in found["settled"]] == ["w0 "] * 2
    assert found["sound"]
    assert (found["contexts"], found["dead"]) == (2, [])
    assert doctor(database).exit_code == 0
    assert problems(database) == []


def test_a_check_changes_nothing_and_lists_the_dead(file: str) -> None:
    kill_two(file)
    spoil(file, "UPDATE contexts SET live_tokens = live_tokens + 1")
    before = Path(file).read_bytes()

    found = report(file, "--check")

    assert len(found["dead"]) == 2
    assert {one["mended"] for one in found["problems"]} == {False}
    assert Path(file).read_bytes() == before
    assert doctor(file, "--check").exit_code == 1


@pytest.mark.parametrize(
    "counter", ["next_seq", "record_count", "live_tokens", "calls", "output_tokens", "cost_pico"]
)
def test_counters_that_went_wrong_are_counted_anew(file: str, counter: str) -> None:
    used(file)
    spoil(file, f"UPDATE contexts SET {counter} = {counter} + 7")

    result = doctor(file)

    assert result.exit_code == 1
    assert f"mended: context 'chat': {counter} is" in result.output
    assert doctor(file).exit_code == 0
    assert problems(file) == []


def test_text_that_no_turn_will_fold_is_folded(file: str) -> None:
    kill_two(file)
    spoil(file, "UPDATE turns SET state = 'interrupted'")
    with ContextWindow(file, "killed 0") as window:
        text = contents(window.live_records())[-1]

    found = report(file)

    assert [(one["kind"], one["mended"]) for one in found["problems"]] == [("delta", True)] * 2
    assert doctor(file).exit_code == 0
    with ContextWindow(file, "killed 0") as window:
        assert contents(window.live_records())[-1] == text
    assert problems(file) == []


def test_text_beside_a_whole_record_is_named_and_left(file: str) -> None:
    used(file)
    spoil(file, "INSERT INTO record_deltas SELECT max(id), 0, 'whose?' FROM records")

    for _ in range(2):
        (found,) = report(file)["problems"]
        assert (found["kind"], found["mended"], found["record_id"]) == ("delta", False, 2)


@pytest.mark.parametrize("damage", ["'one twO three'", "CAST(x'ff6f6e65' AS TEXT)"])
def test_a_damaged_record_is_named(file: str, damage: str) -> None:
    used(file)
    spoil(file, f"UPDATE records SET content = {damage} WHERE id = 2")

    result = doctor(file)

    assert result.exit_code == 1
    assert "record 2" in result.output
    assert report(file)["problems"][0]["record_id"] == 2
    assert report(file)["records"] == 2


def test_a_row_without_its_owner_is_named(file: str) -> None:
    used(file)
    spoil(file, "INSERT INTO record_deltas VALUES (99, 0, 'lost')")

    kinds = {one["kind"] for one in report(file)["problems"]}

    assert kinds == {"reference", "delta"}


def test_a_damaged_page_is_named_and_nothing_is_written(file: str) -> None:
    with ContextWindow(file, "chat") as window:
        for _ in range(50):
            window.add_prompt("x" * 2_000)
    spoil(file, "UPDATE contexts SET live_tokens = 0")
    with open(file, "r+b") as raw:
        raw.seek(12 * 4096)
        raw.write(b"\xa5" * 4096)

    result = doctor(file)

    assert result.exit_code == 1
    assert "mended" not in result.output
    assert report(file)["problems"][0]["kind"] == "pages"


@pytest.mark.parametrize("page", range(1, 40, 3))
def test_wherever_a_page_is_damaged_the_report_is_json(file: str, page: int) -> None:
    """Fault 23: A damaged page, wherever it is, is reported."""
    with ContextWindow(file, "chat") as window:
        for _ in range(50):
            window.add_prompt("x" * 2_000)
    with open(file, "r+b") as raw:
        raw.seek(page * 4096)
        raw.write(b"\xa5" * 4096)

    found = report(file)

    assert found.get("error") or found["problems"]


@pytest.mark.parametrize(
    "make",
    [
        lambda path: None,
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(b"no database" * 100),
        lambda path: path.mkdir(),
    ],
)
def test_what_cannot_be_opened_is_exit_status_2_and_left(
    tmp_path: Path, make: Callable[[Path], object]
) -> None:
    path = tmp_path / "x.db"
    make(path)
    before = sorted(tmp_path.rglob("*"))

    for options in ([], ["--check"], ["--json"]):
        assert doctor(str(path), *options).exit_code == 2

    assert sorted(tmp_path.rglob("*")) == before


def test_the_wal_reset_bug_is_named(file: str, monkeypatch: pytest.MonkeyPatch) -> None:
    used(file)
    monkeypatch.setattr(sqlite3, "sqlite_version_info", (3, 45, 1))
    result = doctor(file)
    assert "WAL-reset bug" in result.output
    assert result.exit_code == 0
    monkeypatch.setattr(sqlite3, "sqlite_version_info", (3, 51, 3))
    assert "WAL-reset bug" not in doctor(file).output


@pytest.mark.parametrize(
    ("version", "bug"),
    [
        ((3, 44, 5), True),
        ((3, 44, 6), False),
        ((3, 45, 0), True),
        ((3, 50, 6), True),
        ((3, 50, 7), False),
        ((3, 51, 2), True),
        ((3, 51, 3), False),
        ((3, 53, 0), False),
    ],
)
def test_versions_with_the_wal_reset_bug_are_known(version: tuple[int, ...], bug: bool) -> None:
    assert has_reset_bug(version) is bug


def test_a_store_that_is_read_only_cannot_be_mended(file: str) -> None:
    used(file)
    with Store(file, read_only=True) as store:
        assert store.examine().sound
        with pytest.raises(StoreReadOnly):
            store.examine(mend=True)


def test_what_a_model_said_cannot_speak_to_the_terminal_through_doctor(file: str) -> None:
    with ContextWindow(file, "a\x1b]52;c;ZXZpbA==\x07b"):
        pass
    spoil(file, "UPDATE contexts SET live_tokens = 1")

    assert "\x1b" not in doctor(file).output
