from __future__ import annotations

import json
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from decoding import Decoded, decode, record
from hypothesis import given
from hypothesis import strategies as st
from openai_server import Answer, serving

from contextwindow.errors import ConfigError, StreamInterrupted
from contextwindow.models.base import CallOptions, PartEnd, Request, ResponseFormat
from contextwindow.models.openai_chat import OpenAIChatModel
from contextwindow.models.openai_responses import OpenAIResponsesModel
from contextwindow.models.steps import NOT_RUN, UNKNOWN_OUTCOME
from contextwindow.records import Record, RecordType, Usage

P, R, C, Q, S, T, Z = (
    RecordType.PROMPT,
    RecordType.MODEL_RESPONSE,
    RecordType.TOOL_CALL,
    RecordType.TOOL_OUTPUT,
    RecordType.SYSTEM_PROMPT,
    RecordType.REASONING,
    RecordType.SUMMARY,
)
TOOL = SimpleNamespace(name="add", description="Adds.", parameters={"type": "object"})
FORMAT = ResponseFormat(name="city", schema={"type": "object"})


def chat(**options: Any) -> OpenAIChatModel:
    return OpenAIChatModel("gpt-5", api_key="k", **options)


def responses(**options: Any) -> OpenAIResponsesModel:
    return OpenAIResponsesModel("gpt-5", api_key="k", **options)


def local(**options: Any) -> OpenAIChatModel:
    return OpenAIChatModel("m", base_url="http://127.0.0.1:1/v1", api_key="k", **options)


def messages(*records: Record, **options: Any) -> list[dict[str, Any]]:
    sent = chat().request(records, CallOptions(**options)).body["messages"]
    assert isinstance(sent, list)
    return sent


def items(*records: Record, **options: Any) -> list[dict[str, Any]]:
    sent = responses().request(records, CallOptions(**options)).body["input"]
    assert isinstance(sent, list)
    return sent


def called(call_id: str | None = "c1", arguments: str = "{}", **fields: Any) -> Record:
    return record(C, arguments, **{"call_id": call_id, "name": "add", "id": 9, **fields})


def answered(call_id: str | None = "c1", text: str = "3", **fields: Any) -> Record:
    return record(Q, text, **{"call_id": call_id, "name": "add", "id": 10, **fields})


# -- chat: messages --------------------------------------------------------------------------


def test_chat_sends_every_kind_of_record_in_its_role() -> None:
    assert messages(
        record(P, "hi"), record(R, "hello"), record(S, "be kind"), record(Z, "they met")
    ) == [
        {"role": "system", "content": "be kind"},
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "hello"},
        {"role": "user", "content": "Summary of the earlier conversation:\n\nthey met"},
    ]


def test_chat_groups_the_calls_of_a_reply_with_its_text() -> None:
    sent = messages(
        record(R, "wait", turn_id="t", response_id="r"),
        called("c1", '{"a": 1}', turn_id="t", response_id="r"),
        called("c2", turn_id="t", response_id="r"),
        answered("c1"),
        answered("c2", "4"),
    )

    assert [message["role"] for message in sent] == ["assistant", "tool", "tool"]
    assert sent[0]["content"] == "wait"
    assert [call["id"] for call in sent[0]["tool_calls"]] == ["c1", "c2"]
    assert sent[0]["tool_calls"][0] == {
        "id": "c1",
        "type": "function",
        "function": {"name": "add", "arguments": '{"a": 1}'},
    }
    assert [message["tool_call_id"] for message in sent[1:]] == ["c1", "c2"]


def test_chat_does_not_group_calls_of_different_replies() -> None:
    sent = messages(
        called("c1", response_id="r1"), called("c2", response_id="r2"), answered("c1"),
        answered("c2"),
    )  # fmt: skip

    assert [message["role"] for message in sent] == ["assistant", "tool", "assistant", "tool"]


def test_chat_puts_text_behind_a_call_into_the_same_message() -> None:
    sent = messages(called("c1"), record(R, "so"), record(R, "on"), answered("c1"))

    assert [message["role"] for message in sent] == ["assistant", "tool"]
    assert sent[0]["content"] == "soon"


def test_chat_leaves_out_reasoning_and_empty_replies() -> None:
    reasoning = record(T, "hm", payload={"api": "openai-chat", "items": [{"x": 1}]})
    empty = record(R, "", partial_response_id="r")

    assert messages(record(P, "hi"), reasoning, empty, record(R, "")) == [
        {"role": "user", "content": "hi"}
    ]


def test_chat_sends_refusals_as_such_to_those_who_know_them() -> None:
    refused = record(R, "", payload={"api": "x", "refusal": "No."})

    assert messages(refused)[0]["content"] == [{"type": "refusal", "refusal": "No."}]
    [plain] = local().request([refused], CallOptions()).body["messages"]
    assert plain == {"role": "assistant", "content": "No."}


def test_chat_sends_back_what_a_call_has_besides_our_fields() -> None:
    item = {"extra_content": {"google": {"thought_signature": "s"}}}
    payload = {"api": "openai-chat", "items": [item]}

    [message, _] = messages(called(payload=payload))
    [foreign, _] = messages(called(payload={**payload, "api": "gemini"}))

    assert message["tool_calls"][0]["extra_content"] == item["extra_content"]
    assert "extra_content" not in foreign["tool_calls"][0]


def test_chat_sends_custom_calls_back_as_such() -> None:
    payload = {"api": "openai-chat", "items": [{"type": "custom"}]}

    [message, _] = messages(called(arguments="SELECT 1", payload=payload))

    assert message["tool_calls"][0]["custom"] == {"name": "add", "input": "SELECT 1"}


def test_chat_prefill_ends_with_the_unfinished_reply() -> None:
    model = local(prefill=True)
    records = [record(P, "hi"), record(R, "Once \n", partial_response_id="r")]

    sent = model.request(records, CallOptions(prefill=True)).body["messages"]

    assert model.supports_prefill
    assert sent[-1] == {"role": "assistant", "content": "Once"}
    assert not local().supports_prefill


# -- both: calls and outputs -----------------------------------------------------------------

OUTPUTS = [
    pytest.param(
        lambda *records: [
            (one["tool_call_id"], one["content"])
            for one in messages(*records)
            if one["role"] == "tool"
        ],
        id="chat",
    ),
    pytest.param(
        lambda *records: [
            (one["call_id"], one["output"])
            for one in items(*records)
            if one.get("type") == "function_call_output"
        ],
        id="responses",
    ),
]
outputs_of = pytest.mark.parametrize("outputs", OUTPUTS)


@outputs_of
def test_a_call_without_an_output_gets_one(outputs: Any) -> None:
    assert outputs(called("c1"), record(P, "and?")) == [("c1", UNKNOWN_OUTCOME)]
    assert outputs(called("c1"), called("c2"), answered("c2")) == [
        ("c1", UNKNOWN_OUTCOME),
        ("c2", "3"),
    ]


@outputs_of
def test_an_output_stands_behind_its_call_whatever_came_between(outputs: Any) -> None:
    assert outputs(called("c1"), record(P, "are you there?"), answered("c1")) == [("c1", "3")]


@outputs_of
def test_ids_that_are_used_again_are_told_apart(outputs: Any) -> None:
    assert outputs(called("0"), answered("0", "a"), called("0"), answered("0", "b")) == [
        ("0", "a"),
        ("0", "b"),
    ]


@outputs_of
def test_calls_without_an_id_get_a_stable_one(outputs: Any) -> None:
    pair = [called(None, id=7), answered(None)]

    assert outputs(*pair) == outputs(*pair) == [("call_7", "3")]


@outputs_of
def test_ids_that_are_too_long_are_shortened_alike(outputs: Any) -> None:
    [(call_id, text)] = outputs(called("x" * 99), answered("x" * 99))

    assert len(call_id) <= 40
    assert text == "3"


@outputs_of
def test_a_call_that_was_cut_off_is_sent_as_one_that_did_not_run(outputs: Any) -> None:
    cut = called("c1", '{"a": ', partial_response_id="r")

    assert outputs(cut) == [("c1", NOT_RUN)]
    assert messages(cut)[0]["tool_calls"][0]["function"]["arguments"] == "{}"
    assert items(cut)[0]["arguments"] == "{}"


def test_an_output_without_a_call_is_quoted() -> None:
    quoted = {"role": "user", "content": "Output of add (a tool):\n\n3"}

    assert messages(answered("c1")) == [quoted]
    assert items(answered("c1")) == [quoted]
    assert messages(called("c1"), answered("c1"), answered("c1"))[-1] == quoted


def test_arguments_are_sent_as_they_are_and_names_as_providers_take_them() -> None:
    odd = called("c1", '{"a": 1,}', name="my tool.é")

    assert messages(odd)[0]["tool_calls"][0]["function"] == {
        "name": "my_tool__",
        "arguments": '{"a": 1,}',
    }
    assert messages(called(arguments="", name=None))[0]["tool_calls"][0]["function"] == {
        "name": "unknown_tool",
        "arguments": "{}",
    }


def test_text_that_is_no_utf8_is_sent_with_replacements() -> None:
    for sent in (messages(record(P, "a\ud83d")), items(record(P, "a\ud83d"))):
        assert sent[0]["content"] == "a\ufffd"
    assert messages(record(P, "\ud83d\ude00"))[0]["content"] == "😀"


PAYLOADS = st.sampled_from(
    [
        None,
        {},
        {"api": "openai-responses"},
        {"api": "openai-responses", "items": "no list"},
        {"api": "openai-responses", "items": [3, {}, {"type": 7}, {"type": "message"}]},
        {"api": "openai-responses", "items": [{"type": "reasoning", "encrypted_content": "e"}]},
        {"api": "openai-responses", "items": [{"type": "reasoning", "id": "rs"}]},
        {"api": "openai-responses", "items": [{"type": "function_call", "call_id": "a"}]},
        {"api": "openai-chat", "items": [{"type": "custom"}]},
        {"api": "anthropic", "items": [{"type": "thinking"}], "refusal": 3},
        {"api": "openai-chat", "refusal": "no"},
    ]
)
RECORDS = st.builds(
    record,
    st.sampled_from(list(RecordType)),
    st.sampled_from(["", "text", "{}", '{"a', "\ud800\0"]),
    id=st.integers(0, 5),
    call_id=st.sampled_from([None, "", "a", "b", "x" * 100, "\ud800"]),
    name=st.sampled_from([None, "", "tool", "t t\0"]),
    turn_id=st.sampled_from([None, "t"]),
    response_id=st.sampled_from([None, "r1", "r2"]),
    partial_response_id=st.sampled_from([None, "r"]),
    payload=PAYLOADS,
)
CHAT, RESPONSES = chat(), responses()


@given(st.lists(RECORDS, max_size=10), st.booleans())
def test_every_context_can_be_sent(records: list[Record], flag: bool) -> None:
    options = CallOptions(threaded=flag, prefill=flag)
    sent = CHAT.request(records, options).body["messages"]
    given_items = RESPONSES.request(records, options).body["input"]

    json.dumps([sent, given_items], ensure_ascii=False).encode()
    waiting: list[str] = []
    for message in sent:
        if message["role"] == "tool":
            assert message["tool_call_id"] == waiting.pop(0)
            continue
        assert waiting == []
        waiting = [call["id"] for call in message.get("tool_calls", ())]
        assert message.get("content") or waiting or message["role"] != "assistant" or flag
    assert waiting == []
    for index, item in enumerate(given_items):
        if item.get("type") == "reasoning":
            assert given_items[index + 1].get("role") != "user"


# -- options ---------------------------------------------------------------------------------


def test_chat_options_are_said_in_the_provider_s_words() -> None:
    options = CallOptions(
        temperature=0.5,
        max_output_tokens=9,
        reasoning="low",
        response_format=FORMAT,
        tools=(TOOL, {"type": "custom"}),
        tool_choice="add",
        extra={"seed": 3, "temperature": 0.1},
    )

    assert chat().request([], options).body == {
        "model": "gpt-5",
        "messages": [],
        "stream": True,
        "stream_options": {"include_usage": True, "include_obfuscation": False},
        "temperature": 0.1,
        "max_completion_tokens": 9,
        "reasoning_effort": "low",
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "city", "schema": {"type": "object"}, "strict": True},
        },
        "tools": [
            {
                "type": "function",
                "function": {
                    "name": "add",
                    "description": "Adds.",
                    "parameters": {"type": "object"},
                },
            },
            {"type": "custom"},
        ],
        "tool_choice": {"type": "function", "function": {"name": "add"}},
        "seed": 3,
    }


def test_other_servers_get_only_what_most_of_them_know() -> None:
    options = CallOptions(max_output_tokens=9, reasoning={"effort": "low"}, tool_choice="auto")

    assert local().request([], options).body == {
        "model": "m",
        "messages": [],
        "stream": True,
        "stream_options": {"include_usage": True},
        "max_tokens": 9,
        "reasoning": {"effort": "low"},
    }
    assert chat().request([], options).body["reasoning_effort"] == "low"


def test_responses_options_are_said_in_the_provider_s_words() -> None:
    options = CallOptions(
        temperature=0.5,
        max_output_tokens=9,
        reasoning="low",
        response_format=FORMAT,
        tools=(TOOL,),
        tool_choice="required",
        extra={"tools": [{"type": "web_search"}], "truncation": "auto"},
    )

    assert responses().request([], options).body == {
        "model": "gpt-5",
        "input": [],
        "store": False,
        "stream": True,
        "stream_options": {"include_obfuscation": False},
        "include": ["reasoning.encrypted_content"],
        "temperature": 0.5,
        "max_output_tokens": 9,
        "reasoning": {"effort": "low", "summary": "auto"},
        "text": {
            "format": {
                "type": "json_schema",
                "name": "city",
                "schema": {"type": "object"},
                "strict": True,
            }
        },
        "tools": [
            {
                "type": "function",
                "name": "add",
                "description": "Adds.",
                "parameters": {"type": "object"},
                "strict": False,
            },
            {"type": "web_search"},
        ],
        "tool_choice": "required",
        "truncation": "auto",
    }


@pytest.mark.parametrize("name", ["gpt-4o", "gpt-4.1-mini", "chatgpt-4o-latest", "gpt-5-chat"])
def test_encrypted_reasoning_is_not_asked_of_models_without_any(name: str) -> None:
    model = OpenAIResponsesModel(name, api_key="k")

    assert "include" not in model.request([], CallOptions()).body


def test_stored_calls_say_so() -> None:
    threaded = CallOptions(threaded=True, previous_response_id="resp_1", reasoning={"effort": "x"})
    body = responses().request([record(P, "go on")], threaded).body
    background = responses(background=True).request([], CallOptions()).body

    assert body["store"] is True
    assert body["previous_response_id"] == "resp_1"
    assert body["input"] == [{"role": "user", "content": "go on"}]
    assert body["reasoning"] == {"effort": "x"}
    assert (background["store"], background["background"]) == (True, True)
    with pytest.raises(ConfigError, match="stream=True"):
        responses(background=True, stream=False)


def test_an_output_whose_call_the_provider_keeps_is_no_orphan() -> None:
    sent = items(answered("c1"), threaded=True, previous_response_id="resp_1")

    assert sent == [{"type": "function_call_output", "call_id": "c1", "output": "3"}]


# -- responses: the provider's own items -----------------------------------------------------

REASONING = {"type": "reasoning", "id": "rs", "summary": [], "encrypted_content": "e"}
MESSAGE = {
    "type": "message",
    "id": "msg",
    "role": "assistant",
    "content": [{"type": "output_text", "text": "hello"}],
}
CALL = {"type": "function_call", "id": "fc", "call_id": "c1", "name": "add", "arguments": "{}"}
SEARCH = {"type": "web_search_call", "id": "ws", "status": "completed"}


def native(source: RecordType, *own: dict[str, Any], **fields: Any) -> Record:
    payload = {"api": "openai-responses", "items": list(own)}
    return record(source, **{"payload": payload, "response_id": "r", **fields})


def test_items_go_back_verbatim_and_in_order() -> None:
    sent = items(
        record(P, "hi"),
        native(T, REASONING),
        native(R, SEARCH, MESSAGE, content="hello"),
        native(C, CALL, call_id="c1", name="add"),
        answered("c1"),
    )

    assert sent[1:] == [
        REASONING,
        SEARCH,
        MESSAGE,
        CALL,
        {"type": "function_call_output", "call_id": "c1", "output": "3"},
    ]


def test_items_of_another_api_go_as_plain_text() -> None:
    foreign = {"api": "anthropic", "items": [{"type": "thinking", "signature": "s"}]}

    assert items(
        record(T, "hm", payload=foreign),
        record(R, "hello", payload=foreign),
        called("c1", payload=foreign),
        answered("c1"),
    ) == [
        {"role": "assistant", "content": "hello"},
        {"type": "function_call", "call_id": "c1", "name": "add", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c1", "output": "3"},
    ]


@pytest.mark.parametrize("content", [None, ""])
def test_reasoning_without_its_content_takes_the_ids_of_its_reply_along(content: Any) -> None:
    bare = {**REASONING, "encrypted_content": content}

    sent = items(native(T, bare), native(R, SEARCH, MESSAGE), native(R, MESSAGE, response_id="q"))

    assert sent == [SEARCH, {k: v for k, v in MESSAGE.items() if k != "id"}, MESSAGE]


def test_reasoning_that_nothing_follows_is_left_out() -> None:
    assert items(native(T, REASONING), record(P, "hi")) == [{"role": "user", "content": "hi"}]
    assert items(native(T, REASONING)) == []
    assert items(native(T, REASONING), record(R, "half", partial_response_id="r")) == [
        REASONING,
        {"role": "assistant", "content": "half"},
    ]


def test_ids_are_left_out_where_the_provider_would_look_for_reasoning_that_left() -> None:
    sent = items(native(R, MESSAGE), native(T, REASONING, response_id="q"),
                 native(R, MESSAGE, response_id="q"), threaded=True)  # fmt: skip

    assert [item.get("id") for item in sent] == [None, "rs", "msg"]


def test_other_servers_take_open_reasoning() -> None:
    model = OpenAIResponsesModel("m", base_url="http://127.0.0.1:1/v1", api_key="k")
    opened = {"type": "reasoning", "content": [{"type": "reasoning_text", "text": "hm"}]}

    sent = model.request([native(T, opened), native(R, MESSAGE)], CallOptions()).body["input"]

    assert sent == [opened, MESSAGE]


def test_outputs_of_custom_calls_are_custom_outputs() -> None:
    custom = {"type": "custom_tool_call", "id": "ct", "call_id": "c1", "name": "sql", "input": "x"}

    sent = items(native(C, custom, call_id="c1", content="x"), answered("c1"))

    assert sent[1]["type"] == "custom_tool_call_output"


def test_items_that_lack_their_record_s_text_or_call_are_completed() -> None:
    assert items(native(R, SEARCH, content="hello"))[1] == {
        "role": "assistant",
        "content": "hello",
    }
    assert items(native(C, SEARCH, call_id="c1", name="add", content="{}"))[1] == {
        "type": "function_call",
        "call_id": "c1",
        "name": "add",
        "arguments": "{}",
    }


# -- decoding --------------------------------------------------------------------------------


def sse(*events: Any) -> bytes:
    return b"".join(b"data: " + json.dumps(event).encode() + b"\n\n" for event in events)


def chunk(delta: Any = None, reason: str | None = None, **fields: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": delta, "finish_reason": reason}], **fields}


def decode_chat(*events: Any) -> Decoded:
    return decode(chat().decoder(Request({})), [sse(*events)])


def fragment(index: int | None, **function: Any) -> dict[str, Any]:
    call_id = function.pop("id", None)
    return chunk({"tool_calls": [{"index": index, "id": call_id, "function": function}]})


def test_chat_usage_is_read_wherever_it_stands() -> None:
    one = {"prompt_tokens": 5, "completion_tokens": 1}
    late = {
        "prompt_tokens": 9,
        "completion_tokens": 2,
        "prompt_tokens_details": {"cached_tokens": 4, "cache_write_tokens": 1},
        "completion_tokens_details": {"reasoning_tokens": 1},
    }

    first = decode_chat(chunk({"content": "a"}, usage=one), chunk({}, "stop"),
                        {"choices": [], "usage": late})  # fmt: skip
    groq = decode_chat(chunk({}, "stop", x_groq={"usage": one}))
    odd = decode_chat(chunk({}, "stop", usage={"prompt_tokens": -3, "completion_tokens": "x"}))

    assert first.decoder.usage == Usage(9, 2, 4, 1, 1)
    assert groq.decoder.usage == Usage(5, 1)
    assert odd.decoder.usage is None


def test_chat_reasoning_beside_the_output_is_counted_in() -> None:
    usage = {
        "prompt_tokens": 5,
        "completion_tokens": 1,
        "total_tokens": 9,
        "completion_tokens_details": {"reasoning_tokens": 3},
    }

    assert decode_chat(chunk({}, "stop", usage=usage)).decoder.usage == Usage(5, 4, 0, 0, 3)


@pytest.mark.parametrize(
    ("reason", "expected"),
    [
        ("stop", "stop"),
        ("length", "length"),
        ("content_filter", "content_filter"),
        ("function_call", "tool_calls"),
        ("eos", "stop"),
    ],
)
def test_chat_finish_reasons_are_ours(reason: str, expected: str) -> None:
    assert decode_chat(chunk({"content": "a"}, reason)).decoder.finish_reason == expected


def test_chat_done_alone_ends_a_reply_and_nothing_does_not() -> None:
    hello = sse(chunk({"content": "a"}), chunk(None), {"choices": None})
    done = decode(chat().decoder(Request({})), [hello + b"data: [DONE]\n\n"])
    cut = decode(chat().decoder(Request({})), [hello])

    assert (done.error, done.decoder.finish_reason) == (None, "stop")
    assert isinstance(cut.error, StreamInterrupted)
    assert cut.text("text") == "a"


def test_chat_calls_are_told_apart_by_index_and_where_it_is_missing_by_id() -> None:
    interleaved = decode_chat(
        fragment(0, id="a", name="f", arguments=""),
        fragment(1, id="b", name="g", arguments=""),
        fragment(0, arguments='{"x"'),
        fragment(1, arguments="{}"),
        fragment(0, id="a", name="f", arguments=":1}"),
    )
    for index in (None, 0):
        whole = decode_chat(
            fragment(index, id="a", name="f", arguments="{}"),
            fragment(index, id="b", name="f", arguments="[]"),
        )
        assert [(c.call_id, c.name, c.text) for c in whole.calls] == [
            ("a", "f", "{}"),
            ("b", "f", "[]"),
        ]
    assert [(c.call_id, c.name, c.text) for c in interleaved.calls] == [
        ("a", "f", '{"x":1}'),
        ("b", "g", "{}"),
    ]


def test_chat_names_in_pieces_are_joined_and_missing_ids_made_up() -> None:
    events = [fragment(0, name="get_", arguments=""), fragment(0, name="time", arguments="{}")]
    once, again = decode_chat(*events), decode_chat(*events)
    other = decode_chat({"id": "another", **events[0]})

    assert once.calls[0].name == "get_time"
    assert once.calls[0].call_id == again.calls[0].call_id != other.calls[0].call_id


def test_chat_calls_end_a_reply_that_says_stop() -> None:
    decoded = decode_chat(fragment(0, id="a", name="f", arguments="{}"), chunk({}, "stop"))

    assert decoded.decoder.finish_reason == "tool_calls"


def test_chat_keeps_what_servers_add_to_a_call() -> None:
    call = {"index": 0, "id": "a", "function": {"name": "f"}, "extra_content": {"s": 1}}
    custom = {"index": 1, "id": "b", "type": "custom", "custom": {"name": "sql", "input": "x"}}

    decoded = decode_chat(chunk({"tool_calls": [call, custom]}), chunk({}, "tool_calls"))
    sent = messages(*decoded.records("openai-chat"))[0]["tool_calls"]

    assert decoded.items[0] == {"extra_content": {"s": 1}}
    assert sent[0]["extra_content"] == {"s": 1}
    assert sent[1] == {"id": "b", "type": "custom", "custom": {"name": "sql", "input": "x"}}


def test_chat_reasoning_has_two_spellings_and_is_taken_once() -> None:
    both = {"reasoning_content": "hm", "reasoning": "hm", "content": None}
    pieces = [{"type": "text", "text": "a"}, {"type": "image"}, {"type": "text", "text": "b"}]

    decoded = decode_chat(chunk(both), chunk({"reasoning": "!"}), chunk({"content": pieces}))

    assert decoded.text("reasoning") == "hm!"
    assert decoded.text("text") == "ab"


def test_text_of_deltas_is_storable() -> None:
    events = [chunk({"content": c}) for c in ("a", "\ud83d", "\ude00b", "\0", "\ud83d", "z\ud83d")]

    for start in range(2):
        decoded = decode_chat(*events[start:], chunk({}, "stop"))
        assert decoded.text("text") == "a😀b\ufffd\ufffdz\ufffd"[start:]


# -- decoding responses ----------------------------------------------------------------------


def event(kind: str, number: int = 0, **fields: Any) -> dict[str, Any]:
    return {"type": f"response.{kind}", "sequence_number": number, **fields}


def completed(*output: Any, status: str = "completed", **fields: Any) -> dict[str, Any]:
    response = {"id": "resp", "model": "m", "status": status, "output": list(output), **fields}
    return event(status, 99, response=response)


def text_delta(text: str, number: int = 0, item_id: str = "msg", index: int = 0) -> dict[str, Any]:
    return event("output_text.delta", number, item_id=item_id, output_index=index, delta=text)


def decode_response(*events: Any, request: Request | None = None) -> Decoded:
    return decode(responses().decoder(request or Request({})), [sse(*events)])


def test_output_that_was_never_streamed_is_decoded_from_the_end() -> None:
    decoded = decode_response(completed(REASONING, MESSAGE, CALL))

    assert decoded.text("text") == "hello"
    assert [call.call_id for call in decoded.calls] == ["c1"]
    assert decoded.items == [REASONING, MESSAGE, CALL]
    assert decoded.decoder.finish_reason == "tool_calls"


def test_server_items_stand_in_front_of_the_part_that_follows() -> None:
    decoded = decode_response(
        event("output_item.done", output_index=0, item=SEARCH),
        event("output_item.done", output_index=1, item=MESSAGE),
        event("output_item.done", output_index=2, item={**SEARCH, "id": "ws2"}),
        completed(),
    )

    assert [part.text for part in decoded.parts.values()] == ["hello", ""]
    assert decoded.items == [SEARCH, MESSAGE, {**SEARCH, "id": "ws2"}]


def test_a_message_of_text_and_refusal_becomes_two_records_that_go_back_as_two() -> None:
    refusal = {"type": "refusal", "refusal": "No."}
    mixed = {**MESSAGE, "content": [*MESSAGE["content"], refusal]}
    decoded = decode_response(completed(mixed))

    sent = items(*decoded.records("openai-responses"))

    assert (decoded.text("text"), decoded.text("refusal")) == ("hello", "No.")
    assert [item["content"] for item in sent] == [MESSAGE["content"], [refusal]]
    assert decoded.decoder.finish_reason == "refusal"


@pytest.mark.parametrize(
    ("status", "fields", "expected"),
    [
        ("incomplete", {"incomplete_details": {"reason": "max_output_tokens"}}, "length"),
        ("incomplete", {"incomplete_details": {"reason": "content_filter"}}, "content_filter"),
        ("incomplete", {"incomplete_details": None}, "length"),
        ("cancelled", {}, "cancelled"),
        ("completed", {}, "stop"),
    ],
)
def test_responses_finish_reasons_are_ours(status: str, fields: Any, expected: str) -> None:
    decoded = decode_response(text_delta("a"), completed(status=status, **fields))

    assert decoded.error is None
    assert decoded.decoder.finish_reason == expected
    assert decoded.parts[0].end == PartEnd("text", 0)


def test_items_whose_ids_change_with_every_event_are_one() -> None:
    decoded = decode_response(
        event("output_item.added", item={"type": "message", "id": "x1"}, output_index=0),
        text_delta("hel", item_id="x2"),
        text_delta("lo", item_id="x3"),
        event("output_item.done", item={**MESSAGE, "id": "x4"}, output_index=0),
        completed({**MESSAGE, "id": "x5"}),
    )

    assert [part.text for part in decoded.parts.values()] == ["hello"]


def test_text_of_responses_is_storable() -> None:
    decoded = decode_response(text_delta("a\ud83d"), text_delta("\ude00\0"), text_delta("\ud83d"),
                              completed({**MESSAGE, "content": [
                                  {"type": "output_text", "text": "a😀\0\ud83d"}]}))  # fmt: skip

    assert decoded.text("text") == "a😀\ufffd\ufffd"
    json.dumps(decoded.items, ensure_ascii=False).encode()


def test_only_responses_that_the_provider_keeps_have_a_cursor() -> None:
    plain = decode_response(text_delta("a", 4))
    kept = decode_response(text_delta("a", 4), request=Request({"background": True}))

    assert plain.decoder.cursor is None
    assert kept.decoder.cursor == "4"


def test_a_resumed_stream_goes_on_in_the_middle() -> None:
    model = responses(background=True)
    request = model.resume_request("resp", "4")
    assert request is not None

    decoded = decode_response(
        text_delta("old", 4),
        text_delta("lo", 5),
        event("output_item.done", 6, output_index=1, item=MESSAGE),
        event("function_call_arguments.delta", 7, item_id="fc", output_index=2, delta="{}"),
        event("output_item.done", 8, output_index=2, item=CALL),
        completed(REASONING, MESSAGE, CALL),
        request=request,
    )

    assert [(part.kind, part.end.content) for part in decoded.parts.values() if part.end] == [
        ("text", "hello"),
        ("tool_call", "{}"),
    ]
    assert decoded.items == [MESSAGE, CALL]
    assert decoded.decoder.cursor == "99"
    assert decoded.decoder.finish_reason == "tool_calls"
    assert model.resume_request("resp", "no number") is None
    assert chat().resume_request("resp", "4") is None


def test_a_resumed_stream_is_asked_for_where_it_stopped() -> None:
    with serving(Answer(sse(completed(MESSAGE)))) as server:
        model = OpenAIResponsesModel("m", api_key="k", base_url=server.url)
        request = model.resume_request("resp_1", "17")
        assert request is not None
        source = model.open(request, timeout=5)
        assert len(source.read() or ()) == 1
        source.close()
        model.close()

    target = server.requests[0]["target"]
    assert target.startswith("/v1/responses/resp_1?")
    assert "starting_after=17" in target
    assert "stream=true" in target


def test_a_reply_goes_back_as_it_came_after_its_text_was_changed_by_nobody() -> None:
    decoded = decode_response(completed(REASONING, MESSAGE))
    records = decoded.records("openai-responses")

    assert items(*records) == [REASONING, MESSAGE]
    plain = [replace(one, payload=None) for one in records]
    assert items(*plain) == [{"role": "assistant", "content": "hello"}]
