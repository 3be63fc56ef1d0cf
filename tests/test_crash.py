"""A process that is killed loses nothing that it had shown."""

from __future__ import annotations

import os
import random
import sqlite3
from pathlib import Path

import pytest
from crash import CHUNKS, CONTEXT, kill_while_streaming, recount

from contextwindow import ContextWindow, Store
from contextwindow.testing import ScriptedModel

KILLS = int(os.environ.get("CONTEXTWINDOW_KILLS", "200"))
GRACE = 0.1
"""Seconds beyond the interval that the flushing thread of a busy machine may need."""

pytestmark = pytest.mark.skipif(os.name != "posix", reason="SIGKILL is a POSIX signal")


@pytest.mark.parametrize("mode", ["sync", "async"])
@pytest.mark.parametrize("interval", [0.0, 0.1])
def test_sigkill_at_a_random_moment_keeps_what_was_shown(
    tmp_path: Path, mode: str, interval: float
) -> None:
    """Fault 1: SIGKILL at a random moment of a stream, 200 times, sync and async: kept."""
    seed = random.randrange(1 << 30)
    chance = random.Random(seed)
    for number in range(KILLS // 4):
        database = str(tmp_path / f"{number}.db")
        after = chance.uniform(0.0, 0.25)
        death = kill_while_streaming(database, interval=interval, mode=mode, after=after)
        assert death.shown, f"nothing was streamed (seed {seed})"

        with Store(database) as store:
            window = ContextWindow(store, CONTEXT, model=ScriptedModel(["the rest"]))
            stored = window.live_records()[-1].content
            shown = (
                death.text
                if not interval
                else death.text_before(death.killed_at - interval - GRACE)
            )
            assert stored.startswith(shown), f"lost text (seed {seed}, kill {number})"
            assert "".join(CHUNKS).startswith(stored)
            assert recount(store) == [], f"seed {seed}, kill {number}"
            assert [turn.state for turn in window.turns()] == ["interrupted"]
            reply = window.resume()
            assert reply.text == stored + "the rest"
            assert [r.content for r in window.live_records()] == ["go", reply.text]
            assert recount(store) == []


def test_the_file_of_a_killed_process_can_be_read_with_sqlite_alone(tmp_path: Path) -> None:
    database = str(tmp_path / "x.db")
    death = kill_while_streaming(database, interval=0.0, mode="sync", after=0.05)
    with sqlite3.connect(database) as connection:
        rows = connection.execute("SELECT role, text, state FROM transcript").fetchall()
        waiting = connection.execute("SELECT partial_text FROM interrupted_turns").fetchall()
    connection.close()

    assert rows[0] == ("user", "go", "whole")
    assert rows[1][0] == "assistant"
    assert rows[1][1].startswith(death.text)
    assert rows[1][2] == "streaming"
    assert waiting == [(rows[1][1],)]


def test_a_prompt_can_be_added_instead_of_resuming(tmp_path: Path) -> None:
    database = str(tmp_path / "x.db")
    kill_while_streaming(database, interval=0.0, mode="sync", after=0.02)
    model = ScriptedModel(["fine"])
    with ContextWindow(database, CONTEXT, model=model) as window:
        partial = window.live_records()[-1].content
        window.add_prompt("never mind")
        assert window.call_model().text == "fine"

        sent = [record.content for record in model.requests[0].records]
        assert sent == ["go", partial, "never mind"]
        assert window.interrupted() == []


@pytest.mark.parametrize("mode", ["sync", "async"])
@pytest.mark.parametrize("interval", [0.0, 0.1])
def test_sigkill_keeps_what_was_shown_on_postgresql(
    postgresql: str, mode: str, interval: float
) -> None:
    chance = random.Random()
    for number in range(max(1, KILLS // 50)):
        after = chance.uniform(0.0, 0.25)
        context = f"killed {number}"
        death = kill_while_streaming(
            postgresql, interval=interval, mode=mode, after=after, context=context
        )
        before = death.text_before(death.killed_at - interval - GRACE)
        shown = before if interval else death.text
        with Store(postgresql) as store:
            window = ContextWindow(store, context, model=ScriptedModel(["the rest"]))
            stored = window.live_records()[-1].content
            assert stored.startswith(shown)
            assert "".join(CHUNKS).startswith(stored)
            assert window.resume().text == stored + "the rest"
            assert recount(store) == []
