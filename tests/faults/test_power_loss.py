"""What is left when the power fails at any moment."""

from __future__ import annotations

import os
import random
import shutil
from pathlib import Path

import pytest
from conftest import missing
from crash import recount
from power import Said, Step, after_power_failure, record

from contextwindow import ContextWindow, RecordType, Store
from contextwindow.testing import ScriptedModel

FAILURES = int(os.environ.get("CONTEXTWINDOW_POWER_FAILURES", "60"))
CHILD = str(Path(__file__).parent.parent / "power_child.py")


@pytest.mark.parametrize("synchronous", ["boundaries", "full", "normal"])
def test_no_boundary_is_lost_in_a_power_failure_and_the_database_is_sound(
    tmp_path: Path, synchronous: str
) -> None:
    """Fault 8: no committed turn is lost; with "normal" the database is sound all the same."""
    if shutil.which("strace") is None:
        missing("no strace: the writes of a process cannot be recorded")
    original = tmp_path / "power.db"
    steps = record(original, [CHILD, str(original), synchronous])
    assert Said("turn 7") in steps
    chance = random.Random(seed := random.randrange(1 << 30))
    first = steps.index(Said("prompt 0"))
    for number in range(FAILURES):
        moment = chance.randrange(first, len(steps))
        check(tmp_path / str(number), steps[: moment + 1], chance, synchronous, f"seed {seed}")


def check(
    folder: Path, steps: list[Step], chance: random.Random, synchronous: str, where: str
) -> None:
    """Holds what is left behind *steps* against what the process had said."""
    folder.mkdir()
    disk, said = after_power_failure(steps, chance)
    disk.save(folder)
    where = f"{where}, after {said[-1:]}"
    with Store(str(folder / "power.db")) as store:
        assert recount(store) == [], where
        if synchronous == "normal":
            return
        window = ContextWindow(store, "power", model=ScriptedModel(["the rest"]))
        records = window.records()
        prompts = {r.content for r in records if r.source is RecordType.PROMPT}
        calls = {r.call_id for r in records if r.source is RecordType.TOOL_CALL}
        outputs = {r.content for r in records if r.source is RecordType.TOOL_OUTPUT}
        complete = sum(1 for turn in window.turns() if turn.state == "complete")
        for line in said:
            what, _, number = line.partition(" ")
            if what == "prompt":
                assert f"prompt {number}" in prompts, where
            elif what == "tool":
                assert f"c{number}" in calls, f"a tool ran and its call is gone ({where})"
            elif what == "output":
                assert f"noted {number}" in outputs, where
            else:
                assert complete > int(number), where
        window.add_prompt("still there?")
        assert window.call_model().text == "the rest", where
