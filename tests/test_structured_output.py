"""Replies of a given form, from the call to ``reply.parsed``, on every API of every provider."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterator
from typing import Any

import other_wires
import pydantic
import pytest
from openai_server import serving
from support import (
    Open,
    Recorder,
    check_order,
    contents,
    file,
    problems,
    read,
    ready,
    responses,
    run,
    states,
)

from contextwindow import (
    Model,
    OpenAIChatModel,
    OpenAIResponsesModel,
    OutputInvalid,
    RecordType,
    StreamFailed,
    Usage,
    tool,
)
from contextwindow.testing import FakeProvider, FakeReply, ScriptedModel, ScriptedReply

__all__ = ["file", "run"]


class City(pydantic.BaseModel):
    name: str
    people: int


@dataclasses.dataclass
class Point:
    x: int


BERN = '{"name": "Bern", "people": 140000}'
SCHEMA = City.model_json_schema()

# -- one turn ----------------------------------------------------------------------------


@pytest.mark.parametrize("wanted", [City, SCHEMA])
def test_a_stream_ends_with_the_parsed_reply(database: str, run: Open, wanted: Any) -> None:
    window = ready(run, database, BERN)
    stream = window.call_model_streaming(response_format=wanted)

    chunks, error = read(stream)

    assert error is None
    check_order(chunks, stream.reply)
    expected = City(name="Bern", people=140000)
    assert stream.reply.parsed == (expected if wanted is City else expected.model_dump())
    assert chunks[-1].reply.parsed == stream.reply.parsed
    assert stream.reply.text == BERN


def test_a_dataclass_comes_back_as_one(database: str, run: Open) -> None:
    window = ready(run, database, '{"x": 5}')

    assert window.call_model(response_format=Point).parsed == Point(5)


def test_a_reply_that_does_not_fit_is_complete_and_raised_after_its_last_text(
    database: str, run: Open
) -> None:
    log = Recorder()
    window = ready(run, database, '{"name": 5}', "fine", middleware=[log])
    stream = window.call_model_streaming(response_format=City)

    chunks, error = read(stream)

    assert isinstance(error, OutputInvalid)
    assert error.text == error.reply.text == '{"name": 5}'
    assert error.reply.parsed is None
    assert error.turn_id == error.reply.turn_id == window.turns()[0].id
    assert [line.partition(":")[0] for line in error.problems] == ["name", "people"]
    check_order(chunks, None)
    assert [chunk.type for chunk in chunks[-2:]] == ["usage_report", "stream_failed"]
    assert isinstance(chunks[-1], StreamFailed)
    assert chunks[-1].error is error
    assert contents(responses(window)) == ['{"name": 5}']
    assert responses(window)[0].partial_response_id is None
    assert states(window) == ["complete"]
    assert window.interrupted() == []
    assert problems(database) == []
    assert [entry[0] for entry in log.log[-2:]] == ["complete", "error"]
    assert window.call_model().text == "fine"


def test_the_reply_of_a_failed_stream_is_still_there(database: str, run: Open) -> None:
    window = ready(run, database, "no JSON")
    stream = window.call_model_streaming(response_format=City)
    _, error = read(stream)

    assert isinstance(error, OutputInvalid)
    assert stream.reply is error.reply


@pytest.mark.parametrize(
    ("reply", "why"),
    [
        (ScriptedReply(BERN[:20], finish_reason="length"), "cut at max_output_tokens"),
        (ScriptedReply("", finish_reason="length"), "cut at max_output_tokens"),
        (ScriptedReply(refusal="I will not."), "the model refused: I will not."),
        (ScriptedReply("Never.", finish_reason="refusal"), "the model refused: Never."),
        (ScriptedReply(BERN[:9], finish_reason="content_filter"), "filter"),
        (ScriptedReply(" \n"), "no text"),
        (ScriptedReply(reasoning="hm"), "no text"),
        (ScriptedReply("Bern has 140,000."), "no JSON"),
    ],
)
def test_a_reply_without_a_value_says_why(
    file: str, run: Open, reply: ScriptedReply, why: str
) -> None:
    window = ready(run, file, reply)

    with pytest.raises(OutputInvalid, match=f"City: .*{why}") as caught:
        window.call_model(response_format=City)

    assert states(window) == ["complete"]
    assert caught.value.reply.finish_reason == (
        reply.finish_reason or window.calls()[0].finish_reason
    )
    assert problems(file) == []


def test_an_error_of_a_hook_comes_before_the_form(file: str, run: Open) -> None:
    class Broken(Recorder):
        def on_stream_complete(self, text: str, tokens: int) -> None:
            raise RuntimeError("mine")

    window = ready(run, file, "no JSON", middleware=[Broken()])
    _, error = read(window.call_model_streaming(response_format=City))

    assert type(error).__name__ == "MiddlewareError"


def test_a_cancelled_reply_is_not_parsed(file: str, run: Open) -> None:
    window = ready(run, file, ScriptedReply(chunks=[BERN[:9], BERN[9:]]))
    stream = window.call_model_streaming(response_format=City)
    for chunk in stream:
        if chunk.delta:
            stream.cancel()

    assert stream.reply.finish_reason == "cancelled"
    assert stream.reply.parsed is None


# -- tools and resuming ------------------------------------------------------------------


def test_with_tools_only_the_final_reply_is_parsed(database: str, run: Open) -> None:
    @tool
    def look_up(name: str) -> int:
        return 140000

    asks = ScriptedReply("Let me see.", tool_calls=[("look_up", {"name": "Bern"})])
    window = ready(run, database, asks, BERN, tools=[look_up])

    reply = window.call_model(response_format=City)

    assert reply.parsed == City(name="Bern", people=140000)
    assert reply.text == "Let me see." + BERN
    assert window.calls()[1].options["response_format"] == "City"


def test_with_tools_the_raw_text_of_an_error_is_the_final_replys(file: str, run: Open) -> None:
    @tool
    def look_up(name: str) -> int:
        return 1

    asks = ScriptedReply("Let me see.", tool_calls=[("look_up", {"name": "Bern"})])
    window = ready(run, file, asks, "Sorry.", tools=[look_up])

    with pytest.raises(OutputInvalid) as caught:
        window.call_model(response_format=City)

    assert caught.value.text == "Sorry."
    assert caught.value.reply.text == "Let me see.Sorry."


def test_a_reply_that_asks_for_the_callers_tools_is_not_parsed(file: str, run: Open) -> None:
    asks = ScriptedReply("Let me see.", tool_calls=[("look_up", {"name": "Bern"}, "c1")])
    window = ready(run, file, asks, BERN)

    reply = window.call_model(response_format=City)
    assert (reply.finish_reason, reply.parsed) == ("tool_calls", None)

    window.add_tool_output("140000", "c1")
    assert window.call_model(response_format=City).parsed == City(name="Bern", people=140000)


@pytest.mark.parametrize("at", range(1, 6))
def test_a_reply_that_was_cut_off_is_parsed_whole(database: str, run: Open, at: int) -> None:
    pieces = ['{"name"', ': "Be', 'rn", "pe', 'ople": 14', "0000", "}"]
    cut = ScriptedReply(chunks=pieces, fail_at=at)
    rest = ScriptedReply(chunks=pieces[at:])
    window = ready(run, database, cut, rest)

    with pytest.raises(Exception, match="lost"):
        window.call_model(response_format=City, max_resumes=0)
    reply = window.resume(response_format=City)

    assert reply.parsed == City(name="Bern", people=140000)
    assert contents(responses(window)) == ["".join(pieces)]


def test_a_drop_in_the_process_is_parsed_whole(database: str, run: Open) -> None:
    pieces = ['{"name": "Bern", ', '"people": ', "140000}"]
    cut = ScriptedReply(chunks=pieces, fail_at=1)
    window = ready(run, database, cut, ScriptedReply(chunks=pieces[1:]))

    assert window.call_model(response_format=City).parsed == City(name="Bern", people=140000)


def test_what_the_hooks_leave_is_what_is_parsed(file: str, run: Open) -> None:
    class Shout(Recorder):
        def on_stream_chunk(self, chunk: Any) -> Any:
            if chunk.type == "text_delta":
                return dataclasses.replace(chunk, delta=chunk.delta.replace("Bern", "BERN"))
            return None

    window = ready(run, file, BERN, middleware=[Shout()])

    assert window.call_model(response_format=City).parsed.name == "BERN"


# -- providers ---------------------------------------------------------------------------


def _models(provider: FakeProvider) -> dict[str, Model]:
    return {
        "chat": OpenAIChatModel("fake", base_url=provider.openai_url, max_retries=0),
        "responses": OpenAIResponsesModel("fake", base_url=provider.openai_url, max_retries=0),
    }


@pytest.fixture
def provider() -> Iterator[FakeProvider]:
    with FakeProvider() as provider:
        yield provider


APIS = ["chat", "responses"]


def _sent_form(api: str, body: dict[str, Any]) -> dict[str, Any]:
    found = body["response_format"]["json_schema"] if api == "chat" else body["text"]["format"]
    assert isinstance(found, dict)
    return found


@pytest.mark.parametrize("api", APIS)
@pytest.mark.parametrize("wanted", [City, SCHEMA])
def test_every_provider_is_told_the_form_and_its_reply_parsed(
    file: str, run: Open, provider: FakeProvider, api: str, wanted: Any
) -> None:
    window = run(file, "chat", model=_models(provider)[api])
    window.add_prompt("a city?")
    provider.reply(BERN)

    reply = window.call_model(response_format=wanted)

    assert City.model_validate(reply.parsed, from_attributes=True).name == "Bern"
    told = _sent_form(api, provider.requests[0].body)
    assert told["name"] == "City"
    assert told["strict"] is True
    assert told["schema"]["additionalProperties"] is False


@pytest.mark.parametrize("api", APIS)
def test_every_provider_can_refuse(file: str, run: Open, provider: FakeProvider, api: str) -> None:
    window = run(file, "chat", model=_models(provider)[api])
    window.add_prompt("a city?")
    provider.reply(FakeReply(refusal="I will not."))

    with pytest.raises(OutputInvalid, match="the model refused: I will not") as caught:
        window.call_model(response_format=City)

    assert caught.value.reply.refusal == "I will not."
    assert states(window) == ["complete"]


@pytest.mark.parametrize("api", APIS)
def test_every_provider_can_run_out_of_tokens(
    file: str, run: Open, provider: FakeProvider, api: str
) -> None:
    window = run(file, "chat", model=_models(provider)[api])
    window.add_prompt("a city?")
    provider.reply(FakeReply(BERN[:12], finish_reason="length"))

    with pytest.raises(OutputInvalid, match="cut at max_output_tokens") as caught:
        window.call_model(response_format=City, max_output_tokens=16)

    assert caught.value.text == BERN[:12]
    assert contents(responses(window)) == [BERN[:12]]


@pytest.mark.parametrize("api", APIS)
def test_every_provider_calls_tools_before_the_form(
    file: str, run: Open, provider: FakeProvider, api: str
) -> None:
    @tool
    def look_up(name: str) -> int:
        return 140000

    window = run(file, "chat", model=_models(provider)[api], tools=[look_up])
    window.add_prompt("a city?")
    provider.reply(FakeReply("Wait.", tool_calls=[("look_up", {"name": "Bern"})]))
    provider.reply(BERN)

    reply = window.call_model(response_format=City)

    assert reply.parsed == City(name="Bern", people=140000)
    kinds = [record.source for record in reply.records]
    assert kinds.count(RecordType.TOOL_OUTPUT) == 1
    assert all(_sent_form(api, asked.body)["name"] == "City" for asked in provider.requests)


@pytest.mark.parametrize("api", ["anthropic", "gemini"])
@pytest.mark.parametrize(
    ("text", "ends", "why"),
    [
        (BERN, "stop", None),
        (BERN[:12], "length", "cut at max_output_tokens"),
        ("I will not.", "refusal", "the model refused|the provider's filter"),
        ("A city.", "stop", "no JSON"),
    ],
)
def test_the_others_are_told_the_form_and_their_replies_read(
    file: str, run: Open, api: str, text: str, ends: str, why: str | None
) -> None:
    with serving(other_wires.answer(api, text, Usage(9, 5), ends=ends)) as server:
        window = run(file, "chat", model=other_wires.model(api, server))
        window.add_prompt("a city?")
        stream = window.call_model_streaming(response_format=City)
        chunks, error = read(stream)
        told = json.dumps(server.requests[0]["body"])

    assert '"people"' in told
    assert '"additionalProperties": false' in told
    assert states(window) == ["complete"]
    assert contents(responses(window)) == [text]
    if why is None:
        assert error is None
        assert stream.reply.parsed == City(name="Bern", people=140000)
        return
    assert isinstance(error, OutputInvalid)
    assert re.search(why, error.problems[0])
    assert error.text == text
    assert chunks[-1].type == "stream_failed"


def test_the_scripted_model_sees_the_form(file: str, run: Open) -> None:
    model = ScriptedModel([BERN])
    window = run(file, "chat", model=model)
    window.add_prompt("a city?")
    window.call_model(response_format=City)

    form = model.requests[0].options.response_format
    assert form is not None
    assert (form.name, form.strict) == ("City", True)
