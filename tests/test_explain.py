"""Why a call sent a record, or did not, as far as the database can tell."""

from __future__ import annotations

import sqlite3
from dataclasses import replace
from typing import Any

import pytest
from conftest import missing
from support import Open, file, run

from contextwindow import (
    AnthropicModel,
    CallStart,
    ConfigError,
    ContextWindow,
    Explanation,
    GeminiModel,
    Middleware,
    OpenAIChatModel,
    OpenAIResponsesModel,
    Record,
    RecordCorrupt,
    RecordType,
    Store,
    Summarize,
    ToolContext,
    Trim,
    tool,
)
from contextwindow.models import (
    anthropic_decoder,
    chat_decoder,
    gemini_decoder,
    responses_decoder,
)
from contextwindow.store.explaining import TAKES_BACK
from contextwindow.testing import ScriptedModel, ScriptedReply
from contextwindow.tokens import load_encoding

__all__ = ["file", "run"]

LONG = "word " * 100


@pytest.fixture(autouse=True)
def count() -> None:
    """Have tokens counted from the first on: when there is room depends on it."""
    if load_encoding() is None:
        missing("no encoding: the figures of these tests are counted ones")


def opened(run: Open, database: Any, *script: Any, **options: Any) -> ContextWindow:
    model = options.pop("model", None) or ScriptedModel(script or ["fine"], repeat=True)
    return run(database, "chat", model=model, **options)


def explained(window: ContextWindow, number: int = -1) -> list[Explanation]:
    """What is said of a call, held against its manifest."""
    call = [one for one in window.calls() if "purpose" not in one.options][number]
    found = window.explain(call.id)
    assert [one.record for one in found] == window.records()
    sent = [one.record.id for one in found if one.sent or one.reason == "foreign_reasoning"]
    assert sorted(sent) == sorted(call.manifest)
    assert all(one.text and "\n" not in one.text for one in found)
    assert all((one.compaction is not None) == (one.reason == "compacted") for one in found)
    return found


def reasons(window: ContextWindow, number: int = -1) -> list[str]:
    return [one.reason for one in explained(window, number)]


def of(found: list[Explanation], record: Record) -> Explanation:
    return next(one for one in found if one.record.id == record.id)


def test_what_was_live_was_sent_and_the_reply_came_later(run: Open, database: str) -> None:
    window = opened(run, database, system_prompt="Be kind.")
    window.add_prompt("one")
    window.call_model()
    window.add_prompt("two")
    window.call_model()

    assert reasons(window, 0) == ["sent", "sent", "later", "later", "later"]
    assert reasons(window, 1) == ["sent", "sent", "sent", "sent", "later"]
    first = explained(window, 0)
    assert [one.text for one in first[2:4]] == [
        "what came of the call",
        "written after the call began",
    ]


def test_what_left_by_hand_or_for_a_newer_prompt_is_told_apart(run: Open, database: str) -> None:
    window = opened(run, database, system_prompt="old")
    gone = window.add_prompt("forget me")
    window.set_live([gone.id], False)
    new = window.set_system_prompt("new")
    window.add_prompt("hello")
    window.call_model()
    newest = window.set_system_prompt("newest")

    assert reasons(window) == ["superseded", "taken_out", "sent", "sent", "later", "later"]
    assert explained(window)[0].text == f"record {new.id} took its place as system prompt"
    assert newest.id


def test_a_compaction_is_named_for_the_calls_behind_it_alone(run: Open, database: str) -> None:
    window = opened(run, database, compaction=Trim(0))
    first = window.add_prompt("first")
    window.call_model()
    window.add_prompt("second")
    window.compact()
    window.call_model()

    assert reasons(window, 0) == ["sent", "later", "later", "later"]
    assert reasons(window, 1) == ["compacted", "compacted", "sent", "later"]
    found = of(explained(window), first)
    assert found.compaction == window.compactions()[0]
    assert found.text.startswith("left the window: Trim, 20")
    assert "compact()" in found.text


def test_a_turn_that_makes_room_for_itself_says_so_of_its_own_call(
    run: Open, database: str
) -> None:
    window = opened(
        run,
        database,
        f"reply {LONG}",
        max_tokens=800,
        summarizer=ScriptedModel(["They spoke of words."], repeat=True),
        compaction=Summarize(1, max_tokens=50),
    )
    for number in range(9):
        window.add_prompt(f"question {number}")
        window.call_model()

    (event, *_) = window.compactions()
    compacted = [one for one in explained(window) if one.reason == "compacted"]
    assert {one.record.id for one in compacted} >= set(event.removed)
    assert f"record {event.summary_id} sums up what left" in compacted[0].text
    assert "window was full" in compacted[0].text
    (summary,) = [one for one in explained(window) if one.reason == "summary"]
    assert summary.sent
    assert f"compaction {window.compactions()[-1].id}" in summary.text
    # The turn whose own call has made room, and the one before.
    turn = [one.turn_id for one in window.calls() if "purpose" not in one.options].index(
        event.turn_id or ""
    )
    assert "compacted" in reasons(window, turn)
    assert "compacted" not in reasons(window, turn - 1)
    beside = next(one for one in window.calls() if one.options.get("purpose"))
    assert {one.reason for one in window.explain(beside.id)} == {"beside"}


def test_room_made_between_two_rounds_is_told_of_the_second_call(run: Open, file: str) -> None:
    @tool
    def read() -> str:
        """Read."""
        return "long " * 720

    asks = ScriptedReply(tool_calls=[("read", {})])
    window = opened(
        run, file, "fine", asks, "done", tools=[read], max_tokens=1000, compaction=Trim(0)
    )
    window.add_prompt("first " + LONG)
    window.call_model()
    window.add_prompt("second")
    window.call_model()

    assert reasons(window, 1)[:3] == ["sent", "sent", "sent"]
    assert reasons(window, 2)[:3] == ["compacted", "compacted", "sent"]


def test_what_the_provider_had_is_not_taken_for_lost(run: Open, database: str) -> None:
    model = ScriptedModel(["fine"], repeat=True, supports_threading=True)
    window = opened(run, database, model=model)
    window.set_server_side_threading(True)
    for text in ("one", "two", "three"):
        window.add_prompt(text)
        window.call_model()

    assert reasons(window) == ["threaded"] * 4 + ["sent", "later"]
    assert "in response resp_scripted_2" in explained(window)[0].text
    # Taken out behind the call: the provider had it all the same.
    window.set_live([window.records()[0].id], False)
    assert reasons(window) == ["threaded"] * 4 + ["sent", "later"]
    window.add_prompt("four")
    window.call_model()
    assert reasons(window) == ["taken_out", *["sent"] * 6, "later"]


def test_a_copy_of_a_threaded_context_goes_on_from_what_its_source_has_sent(
    run: Open, file: str
) -> None:
    model = ScriptedModel(["fine"], repeat=True, supports_threading=True)
    window = opened(run, file, model=model)
    window.set_server_side_threading(True)
    window.set_live([window.add_prompt("gone").id], False)
    window.add_prompt("one")
    window.call_model()
    window.clone("copy")
    window.switch_context("copy")
    window.add_prompt("two")
    window.call_model()

    assert reasons(window) == ["copied", "threaded", "threaded", "sent", "later"]


class _Edits(Middleware):
    def __init__(self, edit: Any) -> None:
        self.edit = edit

    def on_call_start(self, call: CallStart) -> None:
        self.edit(call.records)


def test_a_hook_that_left_out_or_changed_records_is_told(run: Open, file: str) -> None:
    edits: list[Any] = [lambda records: records.pop(0)]
    hook = _Edits(lambda records: edits[0](records))
    window = opened(run, file, middleware=[hook])
    window.add_prompt("first")
    window.add_prompt("second")
    window.call_model()
    assert reasons(window) == ["hook", "sent", "later"]
    assert window.calls()[-1].options["hooks"] == ["left out"]

    edits[0] = lambda records: records.__setitem__(0, replace(records[0], content="…"))
    window.call_model()
    assert reasons(window) == ["sent", "sent", "sent", "later"]
    assert "hooks changed" in explained(window)[0].text

    edits[0] = lambda records: records.reverse()
    window.call_model()
    assert window.calls()[-1].options["hooks"] == ["reordered"]

    edits[0] = lambda records: None
    window.call_model()
    assert "hooks" not in window.calls()[-1].options


def test_a_record_that_a_hook_brought_back_is_told(run: Open, file: str) -> None:
    first: list[Record] = []
    hook = _Edits(lambda records: records.insert(0, first[0]) if first else None)
    window = opened(run, file, middleware=[hook], compaction=Trim(0))
    kept = window.add_prompt("first")
    window.call_model()
    window.add_prompt("second")
    window.compact()
    first.append(kept)
    window.call_model()

    found = of(explained(window), kept)
    assert (found.sent, found.reason) == (True, "hook")
    assert window.calls()[-1].options["hooks"] == ["added"]


def test_what_others_write_while_a_turn_runs_waits_for_the_next(run: Open, database: str) -> None:
    @tool
    def meet(context: ToolContext) -> str:
        """Let another one write."""
        with ContextWindow(context.store, context.context_name) as other:
            other.add_prompt("from elsewhere")
        return "met"

    asks = ScriptedReply(tool_calls=[("meet", {})])
    window = opened(run, database, asks, "done", "next", tools=[meet])
    window.add_prompt("go")
    window.call_model()
    window.call_model()

    contents = [one.record.content for one in explained(window, 1)]
    assert reasons(window, 0) == ["sent", "later", "later", "later", "later", "later"]
    assert reasons(window, 1)[contents.index("from elsewhere")] == "meanwhile"
    assert reasons(window, 2)[contents.index("from elsewhere")] == "sent"


def test_an_unfinished_reply_that_was_given_up_is_told(run: Open, database: str) -> None:
    cut = ScriptedReply("It was a dark night", fault="eof", fail_at=2)
    window = opened(run, database, cut, "fine", cut, "anew", "last")
    window.add_prompt("one")
    with pytest.raises(Exception, match="resume"):
        window.call_model(max_resumes=0)
    window.discard_partial()
    window.add_prompt("two")
    window.call_model()
    assert reasons(window) == ["sent", "discarded", "sent", "later"]

    window.add_prompt("three")
    with pytest.raises(Exception, match="resume"):
        window.call_model(max_resumes=0)
    window.resume(strategy="regenerate")
    assert window.calls()[-1].options["resume"] == "regenerate"
    kinds = reasons(window)
    assert kinds[5] == "discarded"
    assert kinds[6] == "later"


def test_a_call_that_reads_on_sends_nothing(run: Open, file: str) -> None:
    cut = ScriptedReply("It was a dark night", fault="eof", fail_at=2, cursor=True)
    window = opened(run, file, cut)
    window.add_prompt("one")
    with pytest.raises(Exception, match="resume"):
        window.call_model(max_resumes=0)
    window.resume(strategy="cursor")

    assert set(reasons(window)) == {"read_on"}


def test_a_reply_that_went_on_was_sent_as_far_as_it_had_come(run: Open, file: str) -> None:
    cut = ScriptedReply("It was a dark night", fault="eof", fail_at=2)
    window = opened(run, file, cut, " dark night")
    window.add_prompt("one")
    with pytest.raises(Exception, match="resume"):
        window.call_model(max_resumes=0)
    window.resume(strategy="continue")

    assert reasons(window) == ["sent", "sent"]
    assert window.calls()[-1].options["resume"] == "continue"


def test_what_was_put_back_since_is_out_for_no_known_reason(run: Open, file: str) -> None:
    window = opened(run, file)
    gone = window.add_prompt("out and in")
    window.set_live([gone.id], False)
    window.add_prompt("hello")
    window.call_model()
    window.set_live([gone.id], True)

    assert of(explained(window), gone).text == "out (it is not known why)"


def test_a_fork_says_of_what_was_not_live_in_its_source_that_it_was_copied(
    run: Open, database: str
) -> None:
    window = opened(run, database, compaction=Trim(0))
    window.add_prompt("first")
    window.call_model()
    window.add_prompt("second")
    window.compact()
    window.clone("copy")
    window.switch_context("copy")
    window.call_model()

    assert reasons(window) == ["copied", "copied", "sent", "later"]


def test_thoughts_that_a_provider_does_not_take_back_count_as_left_out(
    run: Open, file: str
) -> None:
    window = opened(run, file, ScriptedReply("hi", reasoning="hm"), "again")
    window.add_prompt("one")
    window.call_model()
    window.add_prompt("two")
    window.call_model()
    assert reasons(window) == ["sent", "sent", "sent", "sent", "later"]

    with sqlite3.connect(file) as direct:
        direct.execute("UPDATE calls SET provider = 'anthropic'")
    direct.close()
    assert reasons(window) == ["sent", "foreign_reasoning", "sent", "sent", "later"]
    thought = explained(window)[1]
    assert thought.record.source is RecordType.REASONING
    assert not thought.sent


def test_the_apis_that_take_thoughts_back_are_the_adapters() -> None:
    adapters = {
        responses_decoder.API: OpenAIResponsesModel,
        anthropic_decoder.API: AnthropicModel,
        gemini_decoder.API: GeminiModel,
    }
    assert {kind.provider: api for api, kind in adapters.items()} == TAKES_BACK
    assert chat_decoder.API not in TAKES_BACK.values()
    assert OpenAIChatModel.provider in TAKES_BACK


def test_an_id_that_is_no_call_of_the_context_is_refused(run: Open, database: str) -> None:
    with Store(database) as store:
        window = opened(run, store)
        window.add_prompt("one")
        window.call_model()
        (call,) = window.calls()
        assert store.call(call.id) == call
        window.switch_context("other")
        for wrong in (call.id, 4711, 0, -1, True, "1", None):
            with pytest.raises(ConfigError, match="no call"):
                window.explain(wrong)  # type: ignore[arg-type]
        for unknown in (4711, 0, "1", 1 << 80):
            with pytest.raises(ConfigError, match="call"):
                store.call(unknown)  # type: ignore[arg-type]
        window.close()


def test_a_damaged_record_is_named(file: str) -> None:
    with ContextWindow(file, "chat", model=ScriptedModel(["hi"])) as window:
        bad = window.add_prompt("one")
        window.call_model()
        with sqlite3.connect(file) as direct:
            direct.execute("UPDATE records SET content = 'two' WHERE id = ?", (bad.id,))
        direct.close()
        with pytest.raises(RecordCorrupt) as caught:
            window.explain(window.calls()[0].id)
        assert caught.value.record_id == bad.id
