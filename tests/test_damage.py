"""A record that was damaged on the disk is named, never shown."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from contextwindow import ContextWindow, RecordCorrupt
from contextwindow.testing import ScriptedModel


@pytest.fixture
def damaged(tmp_path: Path) -> tuple[Path, int]:
    """A conversation of three prompts whose second has a flipped bit, and that record's id."""
    path = tmp_path / "x.db"
    with ContextWindow(path, "c") as window:
        ids = [window.add_prompt(text).id for text in ("first", "second", "third")]
    connection = sqlite3.connect(path)
    with connection:
        connection.execute("UPDATE records SET content = 'sekond' WHERE id = ?", (ids[1],))
    connection.close()
    return path, ids[1]


def test_a_damaged_record_is_an_error_that_names_it(damaged: tuple[Path, int]) -> None:
    """Fault 28b: A damaged record is named."""
    path, record_id = damaged
    model = ScriptedModel(["never"])
    with ContextWindow(path, "c", model=model) as window:
        for read in (window.live_records, window.records, window.call_model):
            with pytest.raises(RecordCorrupt, match=f"record {record_id} ") as raised:
                read()
            assert raised.value.record_id == record_id
    assert model.requests == []


def test_the_other_records_stay_readable(damaged: tuple[Path, int]) -> None:
    """Fault 28b: The others stay readable."""
    path, record_id = damaged
    with ContextWindow(path, "c") as window:
        assert [one.content for one in window.records(limit=1)] == ["first"]
        assert [one.content for one in window.records(after=record_id)] == ["third"]


def test_a_damaged_record_can_be_taken_out_and_the_conversation_goes_on(
    damaged: tuple[Path, int],
) -> None:
    path, record_id = damaged
    with ContextWindow(path, "c", model=ScriptedModel(["fine"])) as window:
        assert window.set_live([record_id], False) == []
        assert window.call_model().text == "fine"
        assert [one.content for one in window.live_records()] == ["first", "third", "fine"]
