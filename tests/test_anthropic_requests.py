"""What is sent to Anthropic for what a context holds, and what its events become."""

from __future__ import annotations

import json
import re
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest
from decoding import Decoded, record
from hypothesis import given
from hypothesis import strategies as st

from contextwindow.errors import InvalidRequest, Overloaded, StreamInterrupted
from contextwindow.models.anthropic import AnthropicModel
from contextwindow.models.anthropic_decoder import PAUSED, AnthropicDecoder
from contextwindow.models.base import CallOptions, ResponseFormat
from contextwindow.models.steps import UNKNOWN_OUTCOME
from contextwindow.records import Attachment, Record, RecordType, Usage

PROMPT = record(RecordType.PROMPT, "go", id=90)
WEATHER = SimpleNamespace(
    name="weather",
    description="of a city",
    parameters={"type": "object", "properties": {"city": {"type": "string"}}},
)
THOUGHT = {"type": "thinking", "thinking": "hm", "signature": "sig"}


def claude(name: str = "claude-sonnet-4-5", **options: Any) -> AnthropicModel:
    return AnthropicModel(name, api_key="k" * 20, **{"prompt_caching": False, **options})


def messages(*records: Record, **options: Any) -> list[dict[str, Any]]:
    body = claude().request(records, CallOptions(**options)).body
    sent: list[dict[str, Any]] = body["messages"]
    return sent


def body_of(model: AnthropicModel, *records: Record, **options: Any) -> dict[str, Any]:
    return model.request(records or (PROMPT,), CallOptions(**options)).body


def own(*items: Any) -> dict[str, Any]:
    return {"api": "anthropic", "items": list(items)}


def text(said: str) -> dict[str, Any]:
    return {"type": "text", "text": said}


def call(call_id: str = "a", content: str = "{}", **fields: Any) -> Record:
    fields = {"id": 2, "name": "tool", "turn_id": "t", "response_id": "r", **fields}
    return record(RecordType.TOOL_CALL, content, call_id=call_id, **fields)


def output(call_id: str = "a", content: str = "done", **fields: Any) -> Record:
    return record(RecordType.TOOL_OUTPUT, content, call_id=call_id, **{"id": 3, **fields})


# -- records -----------------------------------------------------------------------------


def test_every_kind_of_record_goes_in_its_role() -> None:
    body = body_of(
        claude(),
        record(RecordType.SYSTEM_PROMPT, "be kind"),
        record(RecordType.SUMMARY, "they met"),
        record(RecordType.PROMPT, "hello"),
        record(RecordType.REASONING, "hm"),
        record(RecordType.MODEL_RESPONSE, "hi"),
        record(RecordType.PROMPT, "bye"),
    )

    assert body["system"] == [text("be kind")]
    assert body["messages"] == [
        {
            "role": "user",
            "content": [text("Summary of the earlier conversation:\n\nthey met"), text("hello")],
        },
        {"role": "assistant", "content": [text("hi")]},
        {"role": "user", "content": [text("bye")]},
    ]


def test_results_of_parallel_calls_stand_first_in_one_message() -> None:
    sent = messages(
        PROMPT,
        call("a", '{"x": 1}'),
        call("b", "[1]"),
        output("b", "two"),
        output("a", "no", error=True),
        record(RecordType.PROMPT, "and now?"),
    )

    assert sent[1:] == [
        {
            "role": "assistant",
            "content": [
                {"type": "tool_use", "id": "a", "name": "tool", "input": {"x": 1}},
                {"type": "tool_use", "id": "b", "name": "tool", "input": {"_raw": "[1]"}},
            ],
        },
        {
            "role": "user",
            "content": [
                {"type": "tool_result", "tool_use_id": "a", "content": "no", "is_error": True},
                {"type": "tool_result", "tool_use_id": "b", "content": "two"},
                text("and now?"),
            ],
        },
    ]


def test_a_call_without_an_output_gets_one_that_is_an_error() -> None:
    (result, _) = messages(PROMPT, call("a"), record(RecordType.PROMPT, "there?"))[2]["content"]

    assert result == {
        "type": "tool_result",
        "tool_use_id": "a",
        "content": UNKNOWN_OUTCOME,
        "is_error": True,
    }


def test_thinking_goes_back_with_its_signature_or_not_at_all() -> None:
    unsigned = {"type": "thinking", "thinking": "hm", "signature": ""}
    redacted = {"type": "redacted_thinking", "data": "xyz"}
    sent = messages(
        PROMPT,
        record(RecordType.REASONING, "hm", payload=own(THOUGHT, unsigned, redacted)),
        record(RecordType.REASONING, "cut off"),
        record(RecordType.REASONING, "theirs", payload={"api": "openai-chat", "items": [THOUGHT]}),
        record(RecordType.MODEL_RESPONSE, "hi"),
        PROMPT,
    )

    assert sent[1]["content"] == [THOUGHT, redacted, text("hi")]


def test_ids_of_other_providers_are_made_sendable_on_call_and_result_alike() -> None:
    sent = messages(PROMPT, call("functions.f:0/é"), output("functions.f:0/é"))

    (asked,), (answer,) = sent[1]["content"], sent[2]["content"]
    assert asked["id"] == answer["tool_use_id"] == "functions_f_0__"


def test_a_server_tool_that_was_interrupted_is_left_out() -> None:
    use = {"type": "server_tool_use", "id": "s1", "name": "web_search", "input": {}}
    result = {"type": "web_search_tool_result", "tool_use_id": "s1", "content": []}
    alone = {**use, "id": "s2"}
    reply = record(RecordType.MODEL_RESPONSE, "x", payload=own(use, result, alone, text("x")))

    sent = messages(PROMPT, reply, PROMPT)

    assert sent[1]["content"] == [use, result, text("x")]


def test_a_paused_reply_goes_back_as_it_is_and_is_gone_on_with() -> None:
    use = {"type": "server_tool_use", "id": "s1", "name": "web_search", "input": {}}
    reply = record(RecordType.MODEL_RESPONSE, "x", payload=own(text("x"), use, PAUSED))

    sent = messages(PROMPT, reply)

    assert sent[-1] == {"role": "assistant", "content": [text("x"), use]}


def test_a_context_that_ends_with_the_assistant_is_asked_to_go_on() -> None:
    sent = messages(PROMPT, record(RecordType.MODEL_RESPONSE, "hi"))

    assert [one["role"] for one in sent] == ["user", "assistant", "user"]


def test_a_prefilled_reply_ends_the_request_without_white_space() -> None:
    sent = messages(PROMPT, record(RecordType.MODEL_RESPONSE, "The cat \n"), prefill=True)

    assert sent[-1] == {"role": "assistant", "content": [text("The cat")]}


def test_attachments_stand_before_the_text() -> None:
    image = Attachment(media_type="image/png", data=b"png")
    page = Attachment(media_type="application/pdf", url="https://h/a.pdf", name="a.pdf")
    notes = Attachment(media_type="text/csv", data=b"a,b", name="n.csv")
    film = Attachment(media_type="video/mp4", data=b"x", name="f.mp4")
    prompt = record(RecordType.PROMPT, "look", attachments=(image, page, notes, film))

    ((sent,),) = [messages(prompt)]

    source = {"type": "base64", "media_type": "image/png", "data": "cG5n"}
    plain = {"type": "text", "media_type": "text/plain", "data": "a,b"}
    assert sent["content"][:3] == [
        {"type": "image", "source": source},
        {
            "type": "document",
            "source": {"type": "url", "url": "https://h/a.pdf"},
            "title": "a.pdf",
        },
        {"type": "document", "source": plain, "title": "n.csv"},
    ]
    assert sent["content"][3]["text"].startswith("[attachment f.mp4 (video/mp4) left out: ")
    assert sent["content"][4] == text("look")


# -- options -----------------------------------------------------------------------------


def test_a_limit_of_output_is_always_sent() -> None:
    assert body_of(claude())["max_tokens"] == 32_000
    assert body_of(claude(stream=False))["max_tokens"] == 16_000
    assert body_of(claude("claude-3-haiku-20240307"))["max_tokens"] == 4_096
    assert body_of(claude(), max_output_tokens=9)["max_tokens"] == 9


@pytest.mark.parametrize(
    ("name", "takes"),
    [
        ("claude-sonnet-4-5", True),
        ("claude-sonnet-4-5-20250929", True),
        ("claude-haiku-4-5", True),
        ("claude-opus-4-5-20251101", True),
        ("claude-opus-4-1-20250805", True),
        ("claude-sonnet-4-20250514", True),
        ("claude-3-5-sonnet-20241022", True),
        ("anthropic.claude-sonnet-4-5-20250929-v1:0", True),
        ("claude-opus-4-6", False),
        ("claude-sonnet-4-6", False),
        ("claude-opus-4-8", False),
        ("claude-fable-5", False),
        ("other", False),
    ],
)
def test_prefill_is_known_by_the_model_s_name(name: str, takes: bool) -> None:
    assert claude(name).supports_prefill is takes


def test_effort_becomes_a_budget_or_an_effort_by_the_model() -> None:
    old = body_of(claude(), reasoning="low", temperature=0.3)
    new = body_of(claude("claude-opus-4-6"), reasoning="high")
    off = body_of(claude(), reasoning="none", temperature=0.3)
    small = body_of(claude(), reasoning="high", max_output_tokens=500)

    assert old["thinking"] == {"type": "enabled", "budget_tokens": 2_048}
    assert "temperature" not in old
    assert new["thinking"] == {"type": "adaptive"}
    assert new["output_config"] == {"effort": "high"}
    assert (off["thinking"], off["temperature"]) == ({"type": "disabled"}, 0.3)
    assert "thinking" not in small
    given = {"type": "enabled", "budget_tokens": 99_999}
    assert body_of(claude(), reasoning=given)["thinking"]["budget_tokens"] == 31_999


def test_thinking_is_left_out_where_the_provider_would_refuse_it() -> None:
    loop = (PROMPT, call("a"), output("a"))
    fields = {"turn_id": "t", "response_id": "r"}
    thought = record(RecordType.REASONING, "hm", payload=own(THOUGHT), **fields)

    assert "thinking" not in body_of(claude(), *loop, reasoning="low")
    assert "thinking" in body_of(claude(), PROMPT, thought, *loop[1:], reasoning="low")
    # A prompt stands in one message with the results: the loop is still the last.
    assert "thinking" not in body_of(claude(), *loop, PROMPT, reasoning="low")
    over = (*loop, record(RecordType.MODEL_RESPONSE, "done"), PROMPT)
    assert "thinking" in body_of(claude(), *over, reasoning="low")
    forced = {"tools": (WEATHER,), "tool_choice": "required"}
    assert "thinking" not in body_of(claude(), PROMPT, reasoning="low", **forced)


def test_tools_and_their_choice() -> None:
    body = body_of(claude(), tools=(WEATHER,), tool_choice="weather", extra={"tools": [{"x": 1}]})

    schema = {"type": "object", "properties": {"city": {"type": "string"}}}
    mine = {"name": "weather", "description": "of a city", "input_schema": schema}
    assert body["tools"] == [mine, {"x": 1}]
    assert body["tool_choice"] == {"type": "tool", "name": "weather"}
    for choice, sent in (("auto", "auto"), ("none", "none"), ("required", "any")):
        got = body_of(claude(), tools=(WEATHER,), tool_choice=choice)["tool_choice"]
        assert got == {"type": sent}


def test_a_format_is_sent_in_the_form_that_the_api_takes() -> None:
    schema = {
        "type": "object",
        "properties": {"age": {"type": "integer", "minimum": 0}},
        "required": ["age"],
    }
    form = ResponseFormat(name="person", schema=schema)

    sent = body_of(claude(), response_format=form)["output_config"]["format"]

    assert sent["type"] == "json_schema"
    assert sent["schema"]["additionalProperties"] is False
    assert "minimum" not in sent["schema"]["properties"]["age"]
    assert schema["properties"] == {"age": {"type": "integer", "minimum": 0}}


def test_the_stable_prefix_is_marked_for_the_cache() -> None:
    records = [record(RecordType.SYSTEM_PROMPT, "be kind")]
    for number in range(4):
        records.append(record(RecordType.PROMPT, f"prompt {number}"))
        records.append(record(RecordType.MODEL_RESPONSE, f"reply {number}"))
    records.append(record(RecordType.PROMPT, "last"))

    body = body_of(claude(prompt_caching=True), *records, tools=(WEATHER,))

    marked = [
        block["text"]
        for message in body["messages"]
        for block in message["content"]
        if "cache_control" in block
    ]
    assert marked == ["prompt 3", "last"]
    assert "cache_control" in body["tools"][-1]
    assert "cache_control" in body["system"][-1]
    plain = json.dumps(body_of(claude(), *records, tools=(WEATHER,)))
    assert "cache_control" not in plain


# -- any context -------------------------------------------------------------------------

BLOCKS = st.sampled_from(
    [
        text(""),
        text(" "),
        text("x"),
        THOUGHT,
        {"type": "thinking", "thinking": "hm", "signature": ""},
        {"type": "redacted_thinking", "data": "d"},
        {"type": "server_tool_use", "id": "s1", "name": "web_search", "input": {}},
        {"type": "web_search_tool_result", "tool_use_id": "s1", "content": []},
        PAUSED,
        {},
    ]
)
PAYLOADS = st.one_of(
    st.none(),
    st.sampled_from([{}, {"api": "anthropic"}, own(3), {"api": "anthropic", "items": "x"}]),
    st.lists(BLOCKS, max_size=3).map(lambda blocks: own(*blocks)),
    st.lists(BLOCKS, max_size=2).map(lambda blocks: {"api": "gemini", "items": blocks}),
)
RECORDS = st.builds(
    record,
    st.sampled_from(list(RecordType)),
    st.sampled_from(["", " ", "text ", "{}", '{"a', "[1]", "\ud800\0"]),
    id=st.integers(0, 5),
    call_id=st.sampled_from([None, "", "a", "b", "x" * 100, "\ud800", "a.b"]),
    name=st.sampled_from([None, "", "tool", "t t\0"]),
    turn_id=st.sampled_from([None, "t"]),
    response_id=st.sampled_from([None, "r1", "r2"]),
    partial_response_id=st.sampled_from([None, "r"]),
    error=st.booleans(),
    attachments=st.sampled_from([(), (Attachment(media_type="image/png", data=b"x"),)]),
    payload=PAYLOADS,
)
MODELS = [claude(), claude("claude-opus-4-6", prompt_caching=True)]


@given(st.lists(RECORDS, max_size=10), st.sampled_from(MODELS), st.booleans())
def test_every_context_can_be_sent(
    records: list[Record], model: AnthropicModel, thinking: bool
) -> None:
    options = CallOptions(reasoning="low" if thinking else None, tools=(WEATHER,))
    body = model.request(records, options).body

    json.dumps(body, ensure_ascii=False, allow_nan=False).encode()
    check(body)


def check(body: dict[str, Any]) -> None:
    """What the API refuses."""
    sent = body["messages"]
    roles = [message["role"] for message in sent]
    assert roles[0] == "user"
    assert all(one != two for one, two in pairwise(roles))
    waiting: list[str] = []
    for message in sent:
        blocks = message["content"]
        assert blocks
        results = [b["tool_use_id"] for b in blocks if b["type"] == "tool_result"]
        assert sorted(results) == sorted(waiting)
        assert all(block["type"] == "tool_result" for block in blocks[: len(results)])
        for block in blocks:
            assert block["type"] != "contextwindow_paused"
            if block["type"] == "text":
                assert block["text"].strip()
            if block["type"] == "thinking":
                assert block["signature"]
        waiting = [b["id"] for b in blocks if b["type"] == "tool_use"]
        assert all(re.fullmatch(r"[a-zA-Z0-9_-]+", one) for one in waiting)
        assert not waiting or message["role"] == "assistant"
    assert not waiting
    assert json.dumps(body).count('"cache_control"') <= 4


# -- events ------------------------------------------------------------------------------


def decoded(*events: dict[str, Any]) -> Decoded:
    found = Decoded(AnthropicDecoder("m"))
    for event in events:
        found.take(found.decoder.feed(event))
    found.take(found.decoder.end())
    return found


def start(**usage: int) -> dict[str, Any]:
    message = {"id": "msg", "model": "m", "usage": {"input_tokens": 3, **usage}}
    return {"type": "message_start", "message": message}


def block(index: int, first: dict[str, Any], *deltas: dict[str, Any]) -> list[dict[str, Any]]:
    return [
        {"type": "content_block_start", "index": index, "content_block": first},
        *({"type": "content_block_delta", "index": index, "delta": delta} for delta in deltas),
        {"type": "content_block_stop", "index": index},
    ]


def stop(reason: str = "end_turn", **usage: int) -> list[dict[str, Any]]:
    delta = {"stop_reason": reason}
    return [
        {"type": "message_delta", "delta": delta, "usage": {"output_tokens": 7, **usage}},
        {"type": "message_stop"},
    ]


def says(said: str) -> dict[str, Any]:
    return {"type": "text_delta", "text": said}


def test_a_pause_is_told_and_kept() -> None:
    use = {"type": "server_tool_use", "id": "s", "name": "web_search", "input": {}}
    asking = {"type": "input_json_delta", "partial_json": '{"q": 1}'}
    found = decoded(
        start(), *block(0, text(""), says("x")), *block(1, use, asking), *stop("pause_turn")
    )

    assert found.decoder.paused
    assert found.decoder.finish_reason == "stop"
    assert found.items == [text("x"), {**use, "input": {"q": 1}}, PAUSED]


def test_text_blocks_in_a_row_are_one_part_with_what_stands_between_them() -> None:
    result = {"type": "web_search_tool_result", "tool_use_id": "s", "content": []}
    citation = {"type": "citations_delta", "citation": {"url": "u"}}
    found = decoded(
        start(),
        *block(0, text(""), says("a")),
        *block(1, result),
        *block(2, text(""), says("b"), citation),
        *stop(),
    )

    assert [(part.kind, part.text) for part in found.parts.values()] == [("text", "ab")]
    assert found.items == [text("a"), result, {**text("b"), "citations": [{"url": "u"}]}]


def test_a_call_without_arguments_has_an_empty_object() -> None:
    use = {"type": "tool_use", "id": "t", "name": "now", "input": {}}
    found = decoded(start(), *block(0, use), *stop("tool_use"))

    assert [(one.call_id, one.name, one.text) for one in found.calls] == [("t", "now", "{}")]
    assert found.items == [use]


def test_arguments_that_are_cut_off_are_kept_as_text() -> None:
    use = {"type": "tool_use", "id": "t", "name": "f", "input": {}}
    cut = {"type": "input_json_delta", "partial_json": '{"a": "x'}
    found = decoded(start(), *block(0, use, cut), *stop("max_tokens"))

    assert found.calls[0].text == '{"a": "x'
    assert found.items == []
    assert found.decoder.finish_reason == "length"


def test_cache_reads_and_writes_are_input_and_counts_are_the_latest() -> None:
    first = start(cache_read_input_tokens=10, cache_creation_input_tokens=100, output_tokens=1)
    found = decoded(first, *block(0, text(""), says("x")), *stop(cache_read_input_tokens=20))

    assert found.decoder.usage == Usage(123, 7, 20, 100)


def test_text_is_storable() -> None:
    found = decoded(
        start(),
        *block(0, text(""), says("a\ud83d"), says("\ude00b\0"), says("\ud83d")),
        *stop(),
    )

    assert found.text("text") == "a😀b\ufffd\ufffd"
    json.dumps(found.items, ensure_ascii=False).encode()


@pytest.mark.parametrize("shape", [3, {"type": "content_block_delta"}, {"type": "message_start"}])
def test_events_of_a_wrong_shape_interrupt(shape: Any) -> None:
    with pytest.raises(StreamInterrupted):
        AnthropicDecoder("m").feed(shape)


def test_events_of_an_unknown_type_are_ignored() -> None:
    assert list(AnthropicDecoder("m").feed({"type": "from the future"})) == []


def test_an_error_in_the_stream_is_raised_in_our_terms() -> None:
    event = {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}

    with pytest.raises(Overloaded):
        AnthropicDecoder("m").feed(event)


def test_a_body_that_is_no_message_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="base_url"):
        AnthropicDecoder("m").feed_body({"hello": 1})
