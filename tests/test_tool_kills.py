"""A process that is killed between a call, its tool and the next request leaves no doubt."""

from __future__ import annotations

import os
import random
from collections import Counter
from pathlib import Path

import pytest
from crash import recount
from tool_crash import CALLS, CONTEXT, Log, kill_while_tools_run, tool_for

from contextwindow import ContextWindow, Record, RecordType, Store
from contextwindow.models.steps import NOT_RUN, UNKNOWN_OUTCOME, steps
from contextwindow.testing import ScriptedModel

KILLS = int(os.environ.get("CONTEXTWINDOW_KILLS", "200")) // 2

pytestmark = pytest.mark.skipif(os.name != "posix", reason="SIGKILL is a POSIX signal")


@pytest.mark.parametrize("mode", ["sync", "async"])
def test_the_next_process_knows_which_tools_ran_and_which_may_have(
    tmp_path: Path, mode: str
) -> None:
    """Fault 2: SIGKILL between any two statements of a tool round: what ran is known."""
    chance = random.Random(seed := random.randrange(1 << 30))
    seen: Counter[str] = Counter()
    for number in range(KILLS // 2):
        where = f"seed {seed}, kill {number}"
        log = Log(tmp_path / f"{number}.log")
        database = str(tmp_path / f"{number}.db")
        kill_while_tools_run(database, log, mode=mode, after=chance.uniform(0.0, 0.2))

        with Store(database) as store:
            model = ScriptedModel(["the rest"])
            tools = [tool_for(log, is_async=False)]
            window = ContextWindow(store, CONTEXT, model=model, tools=tools)
            assert recount(store) == [], where
            check_what_is_known(window, log.read(), seen, where)
            before = Counter(log.started)
            reply = window.resume()
            assert reply.text.endswith("the rest"), where
            assert Counter(log.read().started) == before, f"a tool ran again ({where})"
            check_what_is_told(list(model.requests[0].records), log, where)
            assert recount(store) == [], where
            assert [turn.state for turn in window.turns()] == ["complete"], where
    assert seen["ran"], "no kill came late enough to see a tool's output"


def check_what_is_known(window: ContextWindow, log: Log, seen: Counter[str], where: str) -> None:
    """Holds the records against what the tools really did."""
    records = window.records()
    answers = {r.call_id: r for r in records if r.source is RecordType.TOOL_OUTPUT}
    for call in (r for r in records if r.source is RecordType.TOOL_CALL):
        answer = answers.get(call.call_id)
        name = str(call.call_id)
        if answer is None:
            seen["not run"] += 1
            assert name not in log.started, f"{name} ran, and nothing says so ({where})"
            assert call.error or call.partial_response_id, where
        elif answer.partial_response_id is not None:
            seen["may have run"] += 1
            assert (answer.content, answer.error) == (UNKNOWN_OUTCOME, True), where
        else:
            seen["ran"] += 1
            assert answer.content == f"worked {name}", where
            assert name in log.ended, f"{name} has an output and never ended ({where})"
    assert {str(r.call_id) for r in records if r.call_id} >= set(log.started), where
    assert max(Counter(log.started).values(), default=0) <= 1, f"a tool ran twice ({where})"
    # Outputs stand in the order of their calls.
    called = [r.call_id for r in records if r.source is RecordType.TOOL_CALL]
    answered = [r.call_id for r in records if r.source is RecordType.TOOL_OUTPUT]
    assert answered == [one for one in called if one in set(answered)], where
    assert len(called) <= len(answered) + CALLS, where


def check_what_is_told(records: list[Record], log: Log, where: str) -> None:
    """Holds what the model is sent against what the tools really did."""
    for step in steps(records, id_limit=64):
        if step.kind != "output":
            continue
        if step.text == NOT_RUN:
            assert step.call_id not in log.started, where
        elif step.text != UNKNOWN_OUTCOME:
            assert step.call_id in log.ended, where
