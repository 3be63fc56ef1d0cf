"""Calling a model: what is sent, what comes back, what it cost, and what the database has."""

from __future__ import annotations

import asyncio
import json
import threading
from decimal import Decimal
from typing import Any

import pydantic
import pytest
from support import Open, Recorder, contents, problems, responses, sent, states
from support import file as file
from support import run as run

from contextwindow import (
    AsyncContextWindow,
    AuthenticationFailed,
    ConfigError,
    ContextWindow,
    InvalidRequest,
    MiddlewareError,
    ModelTimeout,
    OutputInvalid,
    Overloaded,
    RateLimited,
    RecordType,
    Store,
    StoreError,
    TurnBusy,
    Usage,
)
from contextwindow.testing import ScriptedModel, ScriptedReply

# -- one call ----------------------------------------------------------------------------


def test_a_call_sends_what_is_live_and_stores_the_reply(database: str, run: Open) -> None:
    model = ScriptedModel(["Hello there."])
    window = run(database, "chat", model=model, system_prompt="be kind")
    window.add_prompt("dead")
    window.set_record_live_state_by_range(1, 1, False)
    window.add_prompt("hi")

    reply = window.call_model()

    assert str(reply) == reply.text == "Hello there."
    assert sent(model) == ["be kind", "hi"]
    stored = responses(window)
    assert stored == reply.records
    assert stored[0].content == "Hello there."
    assert stored[0].streamed
    assert stored[0].partial_response_id is None
    assert stored[0].response_id == reply.response_id == "resp_scripted_1"
    assert stored[0].turn_id == reply.turn_id
    assert reply.finish_reason == "stop"
    assert reply.model == "scripted"
    assert reply.duration > 0
    assert reply.time_to_first_token is not None
    assert states(window) == ["complete"]
    assert problems(database) == []


def test_a_conversation_of_many_turns_sends_all_of_it(database: str, run: Open) -> None:
    model = ScriptedModel([lambda records, options: f"{len(records)} records"], repeat=True)
    window = run(database, "chat", model=model)

    for number in range(4):
        window.add_prompt(f"prompt {number}")
        window.call_model()

    assert sent(model) == [
        "prompt 0",
        "1 records",
        "prompt 1",
        "3 records",
        "prompt 2",
        "5 records",
        "prompt 3",
    ]
    assert [record.seq for record in window.records()] == list(range(1, 9))
    assert problems(database) == []


def test_the_reply_of_a_model_that_says_nothing_is_empty_text(file: str, run: Open) -> None:
    window = run(file, "chat", model=ScriptedModel([ScriptedReply([])]))
    window.add_prompt("hi")

    reply = window.call_model()

    assert reply.text == ""
    assert reply.records == []
    assert contents(window.records()) == ["hi"]
    assert states(window) == ["complete"]


def test_reasoning_text_and_refusal_are_records_of_their_own(database: str, run: Open) -> None:
    answer = ScriptedReply("the answer", reasoning="let me think")
    window = run(database, "chat", model=ScriptedModel([answer, ScriptedReply(refusal="I won't")]))
    window.add_prompt("hi")

    reply = window.call_model()

    assert (reply.reasoning, reply.text) == ("let me think", "the answer")
    assert [record.source for record in reply.records] == [
        RecordType.REASONING,
        RecordType.MODEL_RESPONSE,
    ]
    window.add_prompt("do harm")
    refused = window.call_model()
    assert (refused.refusal, refused.text, refused.finish_reason) == ("I won't", "", "refusal")
    assert problems(database) == []


def test_the_answer_to_tool_calls_waits_for_their_outputs(database: str, run: Open) -> None:
    calls = ScriptedReply("let me look", tool_calls=[("ls", {"at": "/"}, "c1"), ("pwd", {}, "c2")])
    model = ScriptedModel([calls, "there are two"])
    window = run(database, "chat", model=model)
    window.add_prompt("what is there?")

    reply = window.call_model()

    assert reply.finish_reason == "tool_calls"
    assert [(c.id, c.name, c.arguments) for c in reply.tool_calls] == [
        ("c1", "ls", {"at": "/"}),
        ("c2", "pwd", {}),
    ]
    assert states(window) == ["awaiting"]
    window.add_tool_output("a b", "c1")
    window.add_tool_output("/home", "c2")
    assert window.call_model().text == "there are two"
    assert [(r.source, r.content) for r in model.requests[-1].records] == [
        (RecordType.PROMPT, "what is there?"),
        (RecordType.MODEL_RESPONSE, "let me look"),
        (RecordType.TOOL_CALL, '{"at": "/"}'),
        (RecordType.TOOL_CALL, "{}"),
        (RecordType.TOOL_OUTPUT, "a b"),
        (RecordType.TOOL_OUTPUT, "/home"),
    ]
    assert states(window) == ["complete", "complete"]
    assert problems(database) == []


def test_a_tool_call_whose_arguments_are_no_json_is_shown_as_it_came(file: str, run: Open) -> None:
    reply = ScriptedReply(tool_calls=[("t", '{"broken": ', "c1")])
    window = run(file, "chat", model=ScriptedModel([reply]))
    window.add_prompt("hi")

    (call,) = window.call_model().tool_calls

    assert call.arguments == {}
    assert call.raw_arguments == '{"broken": '
    assert window.live_records()[-1].content == '{"broken": '


def test_ids_that_a_server_uses_again_in_every_reply_stay_answerable(file: str, run: Open) -> None:
    model = ScriptedModel([ScriptedReply(tool_calls=[("t", {}, "call_0")])], repeat=True)
    window = run(file, "chat", model=model)
    window.add_prompt("hi")

    for number in range(3):
        window.call_model()
        window.add_tool_output(f"output {number}", "call_0")

    outputs = [r for r in window.records() if r.source is RecordType.TOOL_OUTPUT]
    assert contents(outputs) == ["output 0", "output 1", "output 2"]


def test_options_reach_the_model(file: str, run: Open) -> None:
    model = ScriptedModel(["ok"])
    window = run(file, "chat", model=model)
    window.add_prompt("hi")

    window.call_model(
        temperature=0.25,
        max_output_tokens=77,
        reasoning="low",
        tool_choice="none",
        extra={"seed": 7, "extra_headers": {"Authorization": "Bearer very-secret"}},
    )

    options = model.requests[0].options
    assert (options.temperature, options.max_output_tokens) == (0.25, 77)
    assert (options.reasoning, options.tool_choice) == ("low", "none")
    assert options.extra["seed"] == 7
    kept = window.calls()[0].options
    assert kept["temperature"] == 0.25
    assert "very-secret" not in json.dumps(kept)


class City(pydantic.BaseModel):
    name: str
    people: int


@pytest.mark.parametrize("wanted", [City, City.model_json_schema()], ids=["model", "schema"])
def test_a_reply_of_a_given_form_is_parsed(file: str, run: Open, wanted: Any) -> None:
    model = ScriptedModel(['{"name": "Bern", "people": 140000}'])
    window = run(file, "chat", model=model)
    window.add_prompt("a city?")

    reply = window.call_model(response_format=wanted)

    found = reply.parsed if isinstance(reply.parsed, City) else City(**reply.parsed)
    assert found == City(name="Bern", people=140000)
    form = model.requests[0].options.response_format
    assert form is not None
    assert form.name == "City"
    assert form.schema["properties"]["people"] == {"title": "People", "type": "integer"}


def test_a_reply_that_does_not_fit_its_form_is_stored_all_the_same(file: str, run: Open) -> None:
    window = run(file, "chat", model=ScriptedModel(['{"name": 1}', "fine"]))
    window.add_prompt("a city?")
    kinds: list[str] = []

    with pytest.raises(OutputInvalid) as caught:
        window.call_model_streaming(response_format=City).until_done(
            lambda chunk: kinds.append(chunk.type)
        )

    assert caught.value.text == '{"name": 1}'
    assert kinds[-1] == "stream_failed"
    assert contents(responses(window)) == ['{"name": 1}']
    assert states(window) == ["complete"]
    assert window.call_model().text == "fine"


# -- usage and figures -------------------------------------------------------------------


def test_usage_is_kept_per_call_and_summed_per_context(database: str, run: Open) -> None:
    model = ScriptedModel(
        [
            ScriptedReply("one", usage=Usage(10, 5, cache_read_tokens=4)),
            ScriptedReply("two", usage=Usage(20, 7, reasoning_tokens=3)),
            ScriptedReply("three", usage=Usage(100, 1)),
        ]
    )
    window = run(database, "a", model=model)
    for _ in range(2):
        window.add_prompt("hi")
        window.call_model()
    window.switch_context("b")
    window.add_prompt("hi")
    assert window.call_model().usage == Usage(100, 1)

    assert window.total_tokens() == 101
    window.switch_context("a")
    assert window.total_tokens() == 42
    assert [call.usage for call in window.calls()] == [
        Usage(10, 5, cache_read_tokens=4),
        Usage(20, 7, reasoning_tokens=3),
    ]
    window.close()
    assert run(database, "a").total_tokens() == 42
    assert problems(database) == []


def test_usage_that_a_provider_does_not_give_is_estimated_and_marked(file: str, run: Open) -> None:
    window = run(file, "chat", model=ScriptedModel([ScriptedReply("a reply", usage=None)]))
    window.add_prompt("some words to send")

    usage = window.call_model().usage

    assert usage.estimated
    assert usage.input_tokens == window.records()[0].est_tokens
    assert usage.output_tokens == window.records()[1].est_tokens
    assert window.total_tokens() == usage.total_tokens
    assert problems(file) == []


def test_token_usage_measures_what_is_live_against_the_limit(file: str, run: Open) -> None:
    window = run(file, "chat", model=ScriptedModel([ScriptedReply("ok", usage=Usage(3, 2))]))
    window.add_prompt("word " * 50)
    assert (window.token_usage().max, window.token_usage().percent) == (0, 0.0)
    limited = run(file, "chat", max_tokens=25)

    usage = limited.token_usage()

    assert usage.live == limited.live_tokens() == window.live_records()[0].est_tokens
    assert (usage.total, usage.max) == (0, 25)
    assert usage.percent == usage.live / 25 > 1
    window.call_model()
    assert limited.token_usage().total == 5


def test_the_limit_of_a_known_model_comes_from_the_catalog(
    file: str, run: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-test")

    window = run(file, "chat", model="openai:gpt-4o-mini")

    assert window.token_usage().max == 128_000


def test_a_call_has_its_model_manifest_times_and_price(database: str, run: Open) -> None:
    window = run(database, "chat", model=ScriptedModel(["fine", "good"]), system_prompt="s")
    first = window.add_prompt("hi")
    window.call_model()
    second = window.add_prompt("again")
    window.set_live([first.id], False)
    reply = window.call_model()

    calls = window.calls()

    assert [call.model for call in calls] == ["scripted", "scripted"]
    assert calls[1].turn_id == reply.turn_id
    assert window.calls(reply.turn_id) == calls[1:]
    assert window.calls("no such turn") == []
    assert contents(window.manifest(calls[0].id)) == ["s", "hi"]
    assert contents(window.manifest(calls[1].id)) == ["s", "fine", "again"]
    assert calls[1].manifest[-1] == second.id
    assert calls[1].duration is not None
    assert calls[1].time_to_first_token is not None
    assert calls[1].finish_reason == "stop"
    assert calls[1].cost is None
    with pytest.raises(ConfigError, match="4711"):
        window.manifest(4711)


def test_a_priced_model_has_a_cost_on_its_reply_and_its_call(file: str, run: Open) -> None:
    class Priced(ScriptedModel):
        provider = "openai"

    model = Priced([ScriptedReply("ok", usage=Usage(1_000_000, 0))], name="gpt-4o-mini")
    window = run(file, "chat", model=model)
    window.add_prompt("hi")

    reply = window.call_model()

    assert reply.cost == Decimal("0.15")
    assert window.calls()[0].cost == reply.cost


# -- failing -----------------------------------------------------------------------------


def test_a_call_without_a_model_says_how_to_get_one(file: str, run: Open) -> None:
    window = run(file, "chat")
    window.add_prompt("hi")

    with pytest.raises(ConfigError, match="model='openai:NAME'"):
        window.call_model()

    assert window.turns() == []


@pytest.mark.parametrize(
    "error",
    [
        AuthenticationFailed("bad key", status=401),
        InvalidRequest("no such model", status=404),
        RateLimited("slow down", status=429, retry_after=3600.0),
    ],
)
def test_a_refused_call_is_raised_and_leaves_the_context_usable(
    database: str, run: Open, error: Exception
) -> None:
    model = ScriptedModel([ScriptedReply("never", open_error=error), "fine"])
    window = run(database, "chat", model=model)
    window.add_prompt("hi")

    with pytest.raises(type(error)) as caught:
        window.call_model()

    assert caught.value is error
    assert caught.value.turn_id == window.turns()[0].id  # type: ignore[attr-defined]
    assert states(window) == ["failed"]
    assert contents(window.records()) == ["hi"]
    assert str(error) in (window.turns()[0].error or "")
    assert str(error) in (window.calls()[0].error or "")
    assert window.interrupted() == []
    assert window.call_model().text == "fine"
    assert problems(database) == []


def test_a_call_that_may_succeed_later_is_made_again(file: str, run: Open) -> None:
    errors = [Overloaded("busy", retry_after=0.01), RateLimited("slow", retry_after=0.01)]
    model = ScriptedModel([ScriptedReply("at last", open_error=errors)])
    window = run(file, "chat", model=model)
    window.add_prompt("hi")

    chunks = list(window.call_model_streaming())

    assert [chunk.type for chunk in chunks][:3] == ["stream_start", "retrying", "retrying"]
    assert [chunk.error for chunk in chunks[1:3]] == errors
    assert chunks[-1].done
    assert contents(responses(window)) == ["at last"]
    assert len(window.calls()) == 1


def test_a_call_that_keeps_failing_is_given_up(file: str, run: Open) -> None:
    errors = [Overloaded(f"busy {number}", retry_after=0.0) for number in range(9)]
    model = ScriptedModel([ScriptedReply("never", open_error=errors)], max_retries=2)
    window = run(file, "chat", model=model)
    window.add_prompt("hi")

    with pytest.raises(Overloaded, match="busy 2"):
        window.call_model()

    assert states(window) == ["failed"]


def test_a_provider_that_stalls_ends_in_a_timeout_and_keeps_the_text(file: str, run: Open) -> None:
    model = ScriptedModel([ScriptedReply("one two three", fault="stall", fail_at=2)])
    window = run(file, "chat", model=model)
    window.add_prompt("count")

    with pytest.raises(ModelTimeout) as caught:
        window.call_model(timeout=0.05)

    assert caught.value.partial_text == "one two"
    assert contents(window.live_records()) == ["count", "one two"]
    assert [turn.partial_text for turn in window.interrupted()] == ["one two"]
    assert problems(file) == []


def test_a_deadline_ends_the_turn_and_keeps_the_text(file: str, run: Open) -> None:
    model = ScriptedModel([ScriptedReply("one two three", fault="stall", fail_at=2)])
    window = run(file, "chat", model=model)
    window.add_prompt("count")

    with pytest.raises(ModelTimeout, match="deadline"):
        window.call_model(deadline=0.2)

    assert contents(window.live_records()) == ["count", "one two"]
    assert states(window) == ["interrupted"]


def test_a_window_closed_in_the_middle_of_a_call_fails_with_a_store_error(
    file: str, run: Open
) -> None:
    model = ScriptedModel(["one two three"])
    window = ContextWindow(file, "chat", model=model, checkpoint_interval=0)
    window.add_prompt("count")

    with pytest.raises(StoreError, match="closed"):
        for chunk in window.call_model_streaming():
            if chunk.delta == " two":
                window.close()

    again = run(file, "chat", model=ScriptedModel(["fine"]))
    assert contents(again.live_records()) == ["count", "one two"]


# -- one turn at a time ------------------------------------------------------------------


def test_a_second_caller_is_told_before_anything_is_sent(database: str, run: Open) -> None:
    model = ScriptedModel(["one two three"])
    window = run(database, "chat", model=model)
    window.add_prompt("count")
    with window.call_model_streaming() as stream:
        for chunk in stream:
            if chunk.delta == "one":
                with pytest.raises(TurnBusy) as busy:
                    run(database, "chat", model=model).call_model()
                with pytest.raises(TurnBusy):
                    window.call_model()
                with pytest.raises(TurnBusy):
                    window.resume()
                with pytest.raises(TurnBusy):
                    window.discard_partial()
                assert busy.value.turn_id == stream.turn_id
                assert busy.value.owner

    assert len(model.requests) == 1
    assert states(window) == ["complete"]
    assert contents(responses(window)) == ["one two three"]
    assert problems(database) == []


def test_turns_of_other_contexts_run_at_the_same_time(database: str, run: Open) -> None:
    window = run(database, "a", model=ScriptedModel(["one two", "three four"]))
    other = run(database, "b", model=ScriptedModel(["five six"]))
    window.add_prompt("hi")
    other.add_prompt("hi")
    with window.call_model_streaming() as stream:
        for chunk in stream:
            if chunk.delta == "one":
                assert other.call_model().text == "five six"

    assert contents(responses(window)) == ["one two"]
    assert problems(database) == []


def test_callers_that_wait_get_their_turns_one_after_the_other(database: str) -> None:
    model = ScriptedModel(["a b c d"], repeat=True)
    with Store(database) as store:
        windows = [ContextWindow(store, "chat", model=model) for _ in range(4)]
        windows[0].add_prompt("hi")
        failures: list[BaseException] = []

        def call(window: ContextWindow) -> None:
            try:
                window.call_model(on_busy="wait")
            except BaseException as error:
                failures.append(error)

        threads = [threading.Thread(target=call, args=(window,)) for window in windows]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

        assert failures == []
        assert states(windows[0]) == ["complete"] * 4
        assert sorted(len(request.records) for request in model.requests) == [1, 2, 3, 4]
        assert problems(store) == []


def test_many_conversations_stream_at_once_on_one_event_loop(database: str) -> None:
    async def main() -> None:
        model = ScriptedModel(
            [lambda records, options: f"echo of {records[-1].content}"], repeat=True
        )
        store = Store(database)
        windows = [AsyncContextWindow(store, f"user {n}", model=model) for n in range(15)]

        async def talk(number: int, window: AsyncContextWindow) -> str:
            async with window:
                await window.add_prompt(f"prompt {number}")
                text = ""
                async with window.call_model_streaming() as stream:
                    async for chunk in stream:
                        text += chunk.delta
                stored = await window.live_records()
                assert contents(stored) == [f"prompt {number}", text]
                return text

        texts = await asyncio.gather(*(talk(n, window) for n, window in enumerate(windows)))
        assert texts == [f"echo of prompt {number}" for number in range(15)]
        assert problems(store) == []
        store.close()

    asyncio.run(main())


# -- middleware around a call ------------------------------------------------------------


def test_a_hook_may_change_what_is_sent_and_the_manifest_says_so(file: str, run: Open) -> None:
    class LastOnly(Recorder):
        def on_call_start(self, call: Any) -> None:
            assert call.model == "scripted"
            assert call.turn_id
            del call.records[:-1]

    model = ScriptedModel(["ok"])
    window = run(file, "chat", model=model, middleware=[LastOnly()])
    window.add_prompt("one")
    window.add_prompt("two")

    window.call_model()

    assert sent(model) == ["two"]
    assert contents(window.manifest(window.calls()[0].id)) == ["two"]
    assert contents(window.live_records()) == ["one", "two", "ok"]


def test_middleware_added_later_is_used_from_the_next_stream_on(file: str, run: Open) -> None:
    window = run(file, "chat", model=ScriptedModel(["a", "b"]))
    window.add_prompt("hi")
    window.call_model()
    recorder = Recorder()

    window.add_middleware(recorder)
    window.call_model()

    assert [entry[0] for entry in recorder.log][:2] == ["start", "chunk"]
    assert ("complete", "b", window.calls()[-1].usage.total_tokens) in recorder.log  # type: ignore[union-attr]


def test_a_shared_model_uses_each_windows_own_middleware(file: str, run: Open) -> None:
    model = ScriptedModel(["a", "b"])
    first, second = Recorder(), Recorder()
    one = run(file, "one", model=model, middleware=[first])
    two = run(file, "two", model=model, middleware=[second])
    one.add_prompt("hi")
    two.add_prompt("hi")

    one.call_model()
    two.call_model()

    assert next(entry for entry in first.log if entry[0] == "complete")[1] == "a"
    assert next(entry for entry in second.log if entry[0] == "complete")[1] == "b"


def test_an_error_of_on_call_start_comes_before_anything_is_sent(file: str, run: Open) -> None:
    class Broken(Recorder):
        def on_call_start(self, call: Any) -> None:
            raise KeyError("records")

    model = ScriptedModel(["never"])
    window = run(file, "chat", model=model, middleware=[Broken()])
    window.add_prompt("hi")

    with pytest.raises(MiddlewareError, match="on_call_start of Broken"):
        window.call_model()

    assert model.requests == []
    assert states(window) == ["failed"]
