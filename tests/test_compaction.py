"""What leaves the window when it is full, and that nothing of it is gone."""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest
from conftest import missing
from four_apis import APIS
from four_apis import opened as opened
from four_apis import provider as provider
from hypothesis import given
from hypothesis import strategies as st
from support import Open, contents, problems, sent, shown, states
from support import file as file
from support import run as run

from contextwindow import (
    Compaction,
    ConfigError,
    ContextLengthExceeded,
    ContextWindow,
    DropToolOutputs,
    ModelError,
    NoCompaction,
    Overloaded,
    Prices,
    Record,
    RecordType,
    Store,
    StreamChunk,
    Summarize,
    ToolContext,
    Trim,
    Usage,
    tool,
)
from contextwindow.compaction import size_of, units_of
from contextwindow.testing import FakeProvider, FakeReply, ScriptedModel, ScriptedReply
from contextwindow.tokens import load_encoding

LONG = "word " * 100
"""100 tokens."""

NOTES = "They spoke of words."


@pytest.fixture(autouse=True)
def count() -> None:
    """Have tokens counted from the first on, where the encoding is at hand."""
    if load_encoding() is None:
        missing("no encoding: the figures of these tests are counted ones")


def talk(
    run: Open, database: Any, turns: int, *, summary: Any = NOTES, **options: Any
) -> tuple[ContextWindow, ScriptedModel, ScriptedModel]:
    """A window of 1,500 tokens with so many turns of about 130; its model and its summarizer."""
    model = ScriptedModel([f"reply {n} {LONG}" for n in range(turns + 5)])
    notes = ScriptedModel([summary] * 5)
    options = {"max_tokens": 1500, "summarizer": notes, "system_prompt": "Be brief."} | options
    window = run(database, "chat", model=model, **options)
    for number in range(turns):
        window.add_prompt(f"question {number} " + "ask " * 20)
        window.call_model()
    return window, model, notes


def kinds(records: list[Record]) -> list[str]:
    return [record.source.name for record in records]


# -- making room before a call -----------------------------------------------------------


def test_a_full_window_is_summarised_and_the_conversation_goes_on(file: str, run: Open) -> None:
    window, model, notes = talk(run, file, 9, compaction=Summarize(2, max_tokens=100))
    before = window.records()
    window.add_prompt("one more " + "ask " * 20)

    chunks = list(window.call_model_streaming())

    (compacted,) = [chunk for chunk in chunks if chunk.type == "compacted"]
    assert compacted.reason == "trigger"
    assert compacted.summary == NOTES
    assert compacted.tokens_after <= 750 < 1200 <= compacted.tokens_before
    assert chunks[0].type == "stream_start"
    assert chunks[-1].type == "done"
    assert sent(model)[:2] == ["Be brief.", NOTES]
    assert sent(model)[-1].startswith("one more")
    live = window.live_records()
    assert kinds(live)[:3] == ["SYSTEM_PROMPT", "SUMMARY", "PROMPT"]
    # Nothing is gone: what left is where it was, and can be brought back.
    kept = {record.id: record for record in window.records()}
    assert all(kept[record.id].content == record.content for record in before)
    gone = [record.id for record in before if not kept[record.id].live]
    assert len(gone) == compacted.removed
    (event,) = window.compactions()
    assert event.removed == gone
    assert event.strategies == ["Summarize"]
    assert kept[event.summary_id or 0].content == NOTES
    assert "question 0" in sent(notes)[-1]
    assert "one more" not in sent(notes)[-1]
    window.set_live(gone, True)
    assert len(window.live_records()) == len(live) + len(gone)
    window.close()
    assert problems(file) == []


def test_what_writing_the_summary_used_is_counted_with_the_turn(file: str, run: Open) -> None:
    window, model, notes = talk(run, file, 9, compaction=Summarize(2, max_tokens=100))
    notes.prices = Prices(1, 1)
    model.prices = Prices(1, 1)
    window.add_prompt("one more " + "ask " * 20)

    reply = window.call_model()

    own, summary = sorted(window.calls(reply.turn_id), key=lambda call: call.id)
    assert summary.options == {"purpose": "summary"}
    assert own.manifest
    assert own.usage is not None
    assert summary.usage is not None
    assert reply.usage == own.usage + summary.usage
    assert own.cost is not None
    assert reply.cost == own.cost + (summary.cost or 0)
    assert window.context_stats().calls == 11


def test_a_window_without_a_summarizer_lets_the_oldest_exchanges_go(file: str, run: Open) -> None:
    window, model, _ = talk(run, file, 9, summarizer=None)
    window.add_prompt("one more " + "ask " * 20)

    window.call_model()

    assert sent(model)[0] == "Be brief."
    assert sent(model)[1].startswith("question")
    assert window.live_tokens() < 900
    assert [event.strategies for event in window.compactions()] == [["Trim"]]


def test_a_compaction_leaves_the_share_of_the_window_that_it_says(file: str, run: Open) -> None:
    window, _, _ = talk(run, file, 12, compaction=Trim(0, target=0.79))

    events = window.compactions()

    assert events
    for event in events:
        # Whole exchanges leave, of some 140 tokens each.
        assert 0.79 * 1500 - 150 < event.tokens_after <= 0.79 * 1500 < event.tokens_before


def test_compacting_by_hand_below_the_trigger_leaves_a_share_of_what_is_there(
    file: str, run: Open
) -> None:
    window, _, _ = talk(run, file, 6, compaction=Trim(0))

    result = window.compact()

    assert result.tokens_before < 0.8 * 1500
    assert result.tokens_after <= result.tokens_before / 2


def test_room_is_made_rarely(file: str, run: Open) -> None:
    window, model, _ = talk(run, file, 28, summarizer=None)

    assert 3 <= len(window.compactions()) <= 6
    sizes = [size_of(list(request.records)) for request in model.requests]
    assert max(sizes) < 1500


def test_the_system_prompt_the_last_prompt_and_what_is_pinned_stay(file: str, run: Open) -> None:
    window, model, _ = talk(run, file, 9, compaction=Trim(0, target=0.1))
    pinned = window.records()[3]
    window.pin(pinned.id)
    window.add_prompt("one more " + LONG)

    window.call_model()

    assert sent(model) == ["Be brief.", pinned.content, "one more " + LONG]
    window.unpin(pinned.id)
    window.compact()
    assert pinned.id not in [record.id for record in window.live_records()]


def test_no_compaction_refuses_a_call_that_does_not_fit(file: str, run: Open) -> None:
    window, model, _ = talk(run, file, 9, compaction=NoCompaction())
    window.add_prompt("one more " + LONG + LONG)
    calls = len(model.requests)

    with pytest.raises(ContextLengthExceeded, match=r"about \d+ tokens to send and 150 kept"):
        window.call_model()

    assert len(model.requests) == calls
    assert window.live_records()[-1].content == "one more " + LONG + LONG
    assert states(window)[-1] == "failed"
    assert window.calls()[-1].usage == Usage(estimated=True)


def test_a_prompt_that_cannot_fit_is_refused_before_anything_is_sent(file: str, run: Open) -> None:
    window, model, _notes = talk(run, file, 1)
    prompt = window.add_prompt(LONG * 20)

    with pytest.raises(ContextLengthExceeded, match="of 1500; nothing was sent"):
        window.call_model()

    assert len(model.requests) == 1
    assert window.live_records()[-1].id == prompt.id
    window.set_live([prompt.id], False)
    window.add_prompt("shorter")
    assert window.call_model().text.startswith("reply 1")


def test_a_file_whose_tokens_are_a_guess_is_left_to_the_provider(file: str, run: Open) -> None:
    model = ScriptedModel(["a long document"])
    model.attachment_problem = lambda attachment: None  # type: ignore[method-assign]
    window = run(file, "chat", model=model, max_tokens=2000)
    window.add_prompt("What is it?", [(b"%PDF-1.4 " + b"x" * 5_000_000, "application/pdf")])
    assert window.live_tokens() > 5000

    assert window.call_model().text == "a long document"


def test_room_for_the_reply_is_what_the_caller_allows_it(file: str, run: Open) -> None:
    window, _model, _ = talk(run, file, 1, compaction=NoCompaction())
    window.add_prompt("go on")

    with pytest.raises(ContextLengthExceeded, match="1490 kept for the reply"):
        window.call_model(max_output_tokens=1490)
    assert window.call_model(max_output_tokens=500).text


def test_a_provider_that_says_too_long_is_obeyed_once(file: str, run: Open) -> None:
    refusal = ContextLengthExceeded("too many tokens")
    replies: list[Any] = [f"reply {LONG}"] * 4 + [
        ScriptedReply("never", open_error=refusal),
        "fits",
    ]
    window = run(file, "chat", model=ScriptedModel(replies), max_tokens=100_000)
    for number in range(5):
        window.add_prompt(f"question {number}")
        reply = window.call_model()

    assert reply.text == "fits"
    (event,) = window.compactions()
    assert event.reason == "too long"
    assert event.strategies == ["Trim"]
    assert [call.error for call in window.calls(reply.turn_id)] == ["too many tokens", None]
    window.close()
    assert problems(file) == []


def test_a_provider_that_says_so_in_the_stream_is_obeyed_too(file: str, run: Open) -> None:
    refusal = ContextLengthExceeded("too many tokens")
    model = ScriptedModel([f"reply {LONG}"] * 3 + [ScriptedReply(error=refusal, fail_at=0), "fits"])
    window = run(file, "chat", model=model)
    for number in range(4):
        window.add_prompt(f"question {number}")
        reply = window.call_model()

    assert reply.text == "fits"
    assert len(window.compactions()) == 1


def test_a_provider_that_says_so_twice_is_believed(file: str, run: Open) -> None:
    refusals = [ContextLengthExceeded("too many tokens"), ContextLengthExceeded("still")]
    refused = [ScriptedReply("never", open_error=one) for one in refusals]
    model = ScriptedModel([*[f"reply {LONG}"] * 4, *refused])
    window = run(file, "chat", model=model)
    for number in range(4):
        window.add_prompt(f"question {number}")
        window.call_model()
    window.add_prompt("the last")

    with pytest.raises(ContextLengthExceeded, match="still"):
        window.call_model()


def test_where_nothing_may_leave_the_providers_word_is_raised(file: str, run: Open) -> None:
    refusal = ContextLengthExceeded("too many tokens")
    window = run(file, "chat", model=ScriptedModel([ScriptedReply("x", open_error=refusal)]))
    window.add_prompt("only this")

    with pytest.raises(ContextLengthExceeded, match="too many tokens"):
        window.call_model()
    assert window.compactions() == []


# -- tools -------------------------------------------------------------------------------


@tool
def look(at: str) -> str:
    """Look at something."""
    return f"{at}: {LONG}"


def looking(run: Open, database: Any, rounds: int, **options: Any) -> ContextWindow:
    """A window whose model has looked at *rounds* things, one prompt each."""
    script: list[Any] = []
    for number in range(rounds + 3):
        calls = [("look", {"at": f"thing {number}"}, f"c{number}")]
        script += [ScriptedReply("I look.", reasoning="hm", tool_calls=calls), f"seen {number}"]
    options = {"max_tokens": 1500, "tools": [look]} | options
    window = run(database, "chat", model=ScriptedModel(script), **options)
    for number in range(rounds):
        window.add_prompt(f"look at {number}")
        window.call_model()
    return window


def test_old_tool_outputs_leave_with_their_calls_and_what_was_said_stays(
    file: str, run: Open
) -> None:
    window = looking(run, file, 12, compaction=DropToolOutputs(keep_last=1))

    live = window.live_records()
    calls = [one.call_id for one in live if one.source is RecordType.TOOL_CALL]
    outputs = [one.call_id for one in live if one.source is RecordType.TOOL_OUTPUT]
    assert calls == outputs
    assert 1 <= len(calls) < 12
    said = [one.content for one in live if one.source is RecordType.MODEL_RESPONSE]
    assert [text for text in said if text.startswith("seen")] == [f"seen {n}" for n in range(12)]
    assert window.compactions()


def test_a_thought_stays_with_the_words_it_led_to_and_leaves_with_the_calls(file: str) -> None:
    calls = [("look", {"at": "x"}, "c1")]
    script: list[Any] = [
        ScriptedReply("I look.", reasoning="first", tool_calls=calls),
        ScriptedReply(reasoning="second", tool_calls=[("look", {"at": "y"}, "c2")]),
        ScriptedReply("seen", reasoning="third"),
    ]
    rule = DropToolOutputs(0)
    with ContextWindow(file, "chat", model=ScriptedModel(script), tools=[look]) as window:
        window.add_prompt("look twice")
        window.call_model()
    with ContextWindow(file, "chat", compaction=rule) as window:
        result = window.compact()
        assert kinds(result.removed) == ["TOOL_CALL", "TOOL_OUTPUT", *kinds(result.removed)[2:]]
        left = [(one.source.name, one.content) for one in window.live_records()]

    assert left == [
        ("PROMPT", "look twice"),
        ("REASONING", "first"),
        ("MODEL_RESPONSE", "I look."),
        ("REASONING", "third"),
        ("MODEL_RESPONSE", "seen"),
    ]


def test_room_is_made_between_two_rounds_of_tools(file: str, run: Open) -> None:
    script: list[Any] = [
        ScriptedReply(tool_calls=[("look", {"at": f"thing {number}"}, f"c{number}")])
        for number in range(20)
    ]
    model = ScriptedModel([*script, "done"])
    window = run(file, "chat", model=model, max_tokens=1500, tools=[look])
    window.add_prompt("look at everything")

    reply = window.call_model()

    assert reply.text == "done"
    assert len(reply.records) == 41
    assert len(window.compactions()) >= 2
    assert all(size_of(list(request.records)) < 1500 for request in model.requests)
    assert all("look at everything" in contents(list(one.records)) for one in model.requests)
    window.close()
    assert problems(file) == []


def test_an_open_tool_call_stays(file: str, run: Open) -> None:
    window = looking(run, file, 1, compaction=Trim(0))
    call = window.add_tool_call("look", {"at": "x"}, "open")
    window.add_prompt(LONG)

    window.compact()

    assert call.id in [record.id for record in window.live_records()]


@pytest.mark.parametrize("api", APIS)
@pytest.mark.parametrize("compaction", [DropToolOutputs(0), Trim(0), Summarize(0)], ids=repr)
def test_what_is_left_is_taken_by_every_provider(
    api: str,
    compaction: Compaction,
    file: str,
    provider: FakeProvider,
    opened: Callable[..., ContextWindow],
) -> None:
    window = opened(api, file, tools=[look], compaction=compaction)
    for number in range(3):
        calls = [("look", {"at": f"{number} {side}"}) for side in "ab"]
        provider.reply(FakeReply("I look.", reasoning="hm", tool_calls=calls))
        provider.reply(f"seen {number} {LONG}")
        window.add_prompt(f"look at {number}")
        window.call_model()
    if isinstance(compaction, Summarize):
        provider.reply(NOTES)

    result = window.compact()

    assert result.removed
    assert result.problems == []
    provider.reply("still here")
    window.add_prompt("and now?")
    assert window.call_model().text == "still here"


# -- choosing ----------------------------------------------------------------------------


@st.composite
def conversations(draw: st.DrawFn) -> list[Record]:
    """Live records in an order in which they may come."""
    records: list[Record] = []
    waiting: list[str] = []

    def add(source: RecordType, call_id: str | None = None) -> None:
        records.append(
            Record(
                id=len(records) + 1,
                context_id="c",
                source=source,
                content="x",
                timestamp=datetime.now(UTC),
                est_tokens=draw(st.integers(0, 200)),
                turn_id=f"t{draw(st.integers(0, 3))}",
                call_id=call_id,
                pinned=draw(st.integers(0, 9)) == 0,
            )
        )

    for step in draw(st.lists(st.sampled_from("pratcosu"), max_size=40)):
        match step:
            case "p":
                add(RecordType.PROMPT)
            case "r":
                add(RecordType.REASONING)
            case "a" | "t":
                add(RecordType.MODEL_RESPONSE)
            case "c":
                waiting.append(f"call{len(records)}")
                add(RecordType.TOOL_CALL, waiting[-1])
            case "o" if waiting:
                at = draw(st.integers(0, len(waiting) - 1))
                add(RecordType.TOOL_OUTPUT, waiting.pop(at))
            case "s":
                add(RecordType.SYSTEM_PROMPT)
            case "u":
                add(RecordType.SUMMARY)
    return records


STRATEGIES: list[Compaction] = [DropToolOutputs(0), DropToolOutputs(2), Trim(0), Trim(3)]
STRATEGIES += [Summarize(0), Summarize(4)]
STRATEGIES += [DropToolOutputs() | Summarize() | Trim(2)]


@given(conversations(), st.sampled_from(STRATEGIES), st.integers(1, 3000))
def test_a_call_leaves_with_its_output_and_what_must_stay_stays(
    records: list[Record], strategy: Compaction, excess: int
) -> None:
    chosen = strategy.choose(units_of(records), excess)

    gone = {record.id for record in chosen}
    assert len(gone) == len(chosen)
    assert gone <= {record.id for record in records}
    for record in records:
        pairs = {one.id for one in records if one.call_id and one.call_id == record.call_id}
        assert not pairs & gone or pairs <= gone
    fixed = {record.id for record in records if record.pinned}
    fixed |= {record.id for record in records if record.source is RecordType.SYSTEM_PROMPT}
    fixed |= set([one.id for one in records if one.source is RecordType.PROMPT][-1:])
    answered = {one.call_id for one in records if one.source is RecordType.TOOL_OUTPUT}
    for record in records:
        if record.source is RecordType.TOOL_CALL and record.call_id not in answered:
            fixed.add(record.id)
    assert not gone & fixed


# -- summaries ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "summary",
    ["", "   ", ScriptedReply(refusal="no"), ScriptedReply(error=Overloaded("busy"), fail_at=0)],
    ids=["empty", "blank", "refused", "failed"],
)
def test_a_summary_that_fails_leaves_everything_as_it_was(
    file: str, run: Open, summary: Any, caplog: pytest.LogCaptureFixture
) -> None:
    window, _model, _ = talk(
        run, file, 8, summary=summary, compaction=Summarize(2, max_tokens=100, trigger=0.7)
    )
    before = [record.id for record in window.live_records()]
    prompt = window.add_prompt("one more " + "ask " * 20)

    reply = window.call_model()

    assert [record.id for record in window.live_records()][:-1] == [*before, prompt.id]
    assert reply.text
    assert window.compactions() == []
    assert "summar" in caplog.text
    with pytest.raises(ModelError):
        window.summarize_live_context()
    result = window.compact()
    assert result.removed == []
    assert len(result.problems) == 1
    window.close()
    assert problems(file) == []


def test_a_summary_that_fails_is_not_asked_for_again_at_every_round(file: str, run: Open) -> None:
    script: list[Any] = [
        ScriptedReply(tool_calls=[("nothing", {}, f"c{number}")]) for number in range(12)
    ]
    notes = ScriptedModel([""], repeat=True)

    @tool
    def nothing() -> str:
        """Do nothing."""
        return "ok"

    rule = Summarize(0, max_tokens=10, trigger=0.5, target=0.1)
    model = ScriptedModel(["hello " + LONG * 8, *script, "done"])
    window = run(
        file,
        "chat",
        model=model,
        summarizer=notes,
        max_tokens=1600,
        compaction=rule,
        tools=[nothing],
    )
    for text in ("talk", "work"):
        window.add_prompt(text)
        reply = window.call_model()

    assert reply.text == "done"
    assert 1 <= len(notes.requests) <= 3


def test_the_next_strategy_makes_room_where_a_summary_fails(file: str, run: Open) -> None:
    window, _, _ = talk(
        run, file, 8, summary="", compaction=Summarize(2, max_tokens=100, trigger=0.7) | Trim(2)
    )
    window.add_prompt("one more " + "ask " * 20)

    window.call_model()

    assert [event.strategies for event in window.compactions()] == [["Trim"]]


def test_a_summary_is_looked_at_before_it_is_accepted(file: str, run: Open) -> None:
    window, _, notes = talk(run, file, 4, compaction=Summarize(2))
    notes.prices = Prices(1, 1)
    before = window.live_records()

    result = window.summarize_live_context()

    assert result.text == NOTES
    assert contents(result.records) == contents(before[1:-2])
    assert [record.id for record in window.live_records()] == [record.id for record in before]
    assert result.tokens_after < result.tokens_before
    stats = window.context_stats()
    assert stats.calls == 5
    assert stats.cost == result.cost != Decimal(0)
    # What is written while somebody reads the summary is kept.
    late = window.add_prompt("meanwhile")
    window.reject_summary(result)
    summary = window.accept_summary(result)
    assert summary.source is RecordType.SUMMARY
    live = window.live_records()
    assert kinds(live) == ["SYSTEM_PROMPT", "SUMMARY", "PROMPT", "MODEL_RESPONSE", "PROMPT"]
    assert live[-1].id == late.id
    with pytest.raises(ConfigError, match="have left the window"):
        window.accept_summary(result)
    window.switch_context("other")
    with pytest.raises(ConfigError, match="another context"):
        window.accept_summary(result)
    window.close()
    assert problems(file) == []


def test_a_summary_of_a_summary_takes_its_place(file: str, run: Open) -> None:
    window, _, _ = talk(run, file, 3, compaction=Summarize(0))
    window.accept_summary(window.summarize_live_context())
    window.add_prompt("more")
    window.call_model()

    second = window.accept_summary(window.summarize_live_context())

    live = window.live_records()
    assert [one.id for one in live if one.source is RecordType.SUMMARY] == [second.id]
    assert live[1].id == second.id


def test_what_does_not_fit_the_summarizer_is_summarised_part_by_part(
    file: str, run: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits = {"small": 4000}
    monkeypatch.setattr(
        "contextwindow.models.catalog.context_limit", lambda provider, name: limits.get(name)
    )
    small = ScriptedModel(["first part", "both parts", "all parts"] * 3, name="small")
    window, _, _ = talk(
        run, file, 20, summarizer=small, max_tokens=100_000, compaction=Summarize(0, max_tokens=500)
    )

    result = window.summarize_live_context()

    assert len(small.requests) >= 2
    assert "first part" in sent(small, 1)[-1]
    asked = "".join(sent(small, number)[-1] for number in range(len(small.requests)))
    assert all(f"question {number} " in asked for number in range(19))
    assert result.usage.input_tokens == sum(
        call.usage.input_tokens
        for call in window.calls()
        if call.usage is not None and call.options == {"purpose": "summary"}
    )


def test_the_summarizer_and_its_prompt_can_be_changed(file: str, run: Open) -> None:
    window, _, _ = talk(run, file, 3)
    other = ScriptedModel(["other notes"])
    window.set_summarizer(other)
    window.set_summarizer_prompt("Only names.")

    assert window.summarize_live_context().text == "other notes"
    assert sent(other)[0] == "Only names."
    with pytest.raises(ConfigError, match="summarizer must be"):
        window.set_summarizer(3)  # type: ignore[arg-type]
    with pytest.raises(ConfigError):
        window.set_summarizer_prompt("")


def test_a_dry_run_says_what_would_happen_and_changes_nothing(file: str, run: Open) -> None:
    window, model, notes = talk(run, file, 8, compaction=Summarize(2, max_tokens=100))
    notes.prices = Prices(1, 2)
    model.prices = Prices(10, 0, cache_read=1)
    before = [record.id for record in window.live_records()]

    result = window.compact(dry_run=True)

    assert result.dry_run
    assert result.strategies == ["Summarize"]
    assert result.removed
    assert notes.requests == []
    assert window.compactions() == []
    assert [record.id for record in window.live_records()] == before
    assert result.usage.output_tokens == 100
    assert result.cost == Decimal(result.usage.input_tokens + 200) / Decimal(1_000_000)
    # The system prompt stays in the provider's cache, what follows is read anew.
    assert 0 < result.cached_tokens < 20
    assert result.next_cost_before == Decimal(result.tokens_before) / 1_000_000
    fresh = result.tokens_after - result.cached_tokens
    assert result.next_cost_after == Decimal(10 * fresh + result.cached_tokens) / 1_000_000
    assert window.compact().removed == result.removed


def test_asking_for_a_summary_does_not_hide_a_reply_that_was_cut_off(file: str, run: Open) -> None:
    cut = ScriptedReply(["half", " of", " it"], fail_at=2)
    model = ScriptedModel([f"reply {LONG}", cut, " of it"])
    notes = ScriptedModel([NOTES])
    window = run(file, "chat", model=model, summarizer=notes, compaction=Summarize(0))
    window.add_prompt("begin")
    window.call_model()
    window.add_prompt("go on")
    with pytest.raises(ModelError):
        window.call_model(max_resumes=0)

    window.accept_summary(window.summarize_live_context())

    assert len(window.interrupted()) == 1
    assert window.resume().text == "half of it"
    assert sent(model)[0] == NOTES


def test_followers_do_not_see_calls_beside_the_conversation(file: str, run: Open) -> None:
    window, _, _ = talk(run, file, 2, compaction=Summarize(0))
    window.accept_summary(window.summarize_live_context())
    window.add_prompt("go on")
    window.call_model()

    chunks = list(window.follow(after="", timeout=5))

    texts = [one.content for one in window.records() if one.source is RecordType.MODEL_RESPONSE]
    assert shown(chunks) == "".join(texts)
    assert [chunk.type for chunk in chunks].count("stream_start") == 3


# -- others at the same time -------------------------------------------------------------


class Slow(ScriptedModel):
    """A summarizer that says when it was asked, and waits."""

    def __init__(self) -> None:
        super().__init__([ScriptedReply(NOTES, fault="stall", fail_at=1), NOTES])
        self.asked = threading.Event()

    def decoder(self, request: Any) -> Any:
        self.asked.set()
        return super().decoder(request)


def test_a_turn_that_is_cancelled_while_it_summarises_changes_nothing(file: str, run: Open) -> None:
    slow = Slow()
    window, _, _ = talk(run, file, 9, summarizer=slow, compaction=Summarize(2, max_tokens=100))
    before = [record.id for record in window.live_records()]
    window.add_prompt("one more " + "ask " * 20)
    stream = window.call_model_streaming()

    def cancel() -> None:
        slow.asked.wait(30)
        stream.cancel()

    helper = threading.Thread(target=cancel)
    helper.start()

    chunks: list[StreamChunk] = list(stream)

    helper.join()
    assert slow.asked.is_set()
    assert chunks[-1].type == "done"
    assert states(window)[-1] == "cancelled"
    assert window.compactions() == []
    assert [record.id for record in window.live_records()][:-1] == before


def test_a_deadline_ends_a_summary(file: str, run: Open) -> None:
    window, _, _ = talk(run, file, 9, summarizer=Slow(), compaction=Summarize(2, max_tokens=100))
    window.add_prompt("one more " + "ask " * 20)

    with pytest.raises(ModelError):
        window.call_model(deadline=0.5)

    assert window.compactions() == []
    assert states(window)[-1] in ("failed", "interrupted")


def test_a_prompt_that_comes_while_the_window_is_summarised_is_kept(file: str, run: Open) -> None:
    class Interrupting(ScriptedModel):
        def decoder(self, request: Any) -> Any:
            with ContextWindow(file, "chat") as other:
                other.add_prompt("from elsewhere")
            return super().decoder(request)

    window, model, _ = talk(
        run, file, 9, summarizer=Interrupting([NOTES]), compaction=Summarize(2, max_tokens=100)
    )
    window.add_prompt("one more " + "ask " * 20)
    window.call_model()

    assert "from elsewhere" in contents(window.live_records())
    window.add_prompt("and now?")
    window.call_model()
    assert "from elsewhere" in sent(model)
    window.close()
    assert problems(file) == []


def test_a_tool_that_compacts_its_own_conversation_does_no_harm(file: str, run: Open) -> None:
    @tool
    def tidy(context: ToolContext) -> str:
        """Make room."""
        with ContextWindow(context.store, context.context_name, max_tokens=10) as other:
            return f"{len(other.compact().removed)} left"

    script: list[Any] = [ScriptedReply(tool_calls=[("tidy", {}, "c1")]), "done"]
    window = run(file, "chat", model=ScriptedModel(["first", *script]), tools=[tidy])
    for text in ("hello", "tidy up"):
        window.add_prompt(text)
        reply = window.call_model()

    assert reply.text == "done"
    window.close()
    assert problems(file) == []


@pytest.mark.parametrize("database", ["postgresql"], indirect=True)
def test_compaction_works_on_postgresql(database: str, run: Open) -> None:
    window, model, _ = talk(run, database, 9, compaction=Summarize(2, max_tokens=100))
    window.add_prompt("one more " + "ask " * 20)

    window.call_model()

    assert sent(model)[1] == NOTES
    assert len(window.compactions()) == 1
    window.accept_summary(window.summarize_live_context())
    with Store(database) as store:
        assert problems(store) == []


# -- bad input ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Trim(trigger=0.3), "target 0.5 must be below trigger 0.3"),
        (lambda: Trim(trigger=80), "share from 0 to 1"),
        (lambda: Trim(-1), "keep_last"),
        (lambda: Summarize(prompt=" "), "prompt"),
        (lambda: Summarize(max_tokens=0), "max_tokens"),
        (lambda: Summarize() | Trim() | Summarize(), "one Summarize"),
        (lambda: ContextWindow(compaction=Trim), "pass Trim()"),  # type: ignore[arg-type]
        (lambda: ContextWindow(compaction="trim"), "DropToolOutputs"),  # type: ignore[arg-type]
        (lambda: ContextWindow(summarizer=3), "summarizer must be"),  # type: ignore[arg-type]
        (lambda: ContextWindow().compact(dry_run="x"), "dry_run"),  # type: ignore[arg-type]
        (lambda: ContextWindow().accept_summary("x"), "SummaryResult"),  # type: ignore[arg-type]
        (lambda: ContextWindow().reject_summary(None), "SummaryResult"),  # type: ignore[arg-type]
        (lambda: ContextWindow().summarize_live_context(), "nobody can summarise"),
        (lambda: ContextWindow(model=ScriptedModel(["x"])).summarize_live_context(), "nothing to"),
    ],
)
def test_what_cannot_be_done_is_said(make: Callable[[], Any], words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        make()
    assert words in str(caught.value)
