from __future__ import annotations

import base64
import json
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest
from decoding import Decoded, record
from google.genai import types
from hypothesis import given
from hypothesis import strategies as st
from openai_server import Answer, serving

from contextwindow import ContextWindow, tool
from contextwindow.errors import ContentBlocked, StreamInterrupted
from contextwindow.models.base import CallOptions, Delta, PartEnd, ResponseFormat
from contextwindow.models.gemini import GeminiModel
from contextwindow.models.gemini_arguments import path
from contextwindow.models.gemini_contents import FOREIGN_SIGNATURE
from contextwindow.models.gemini_decoder import GeminiDecoder
from contextwindow.records import Attachment, Record, RecordType, Usage

PROMPT = record(RecordType.PROMPT, "go", id=90)
WEATHER = SimpleNamespace(
    name="weather",
    description="of a city",
    parameters={"type": "object", "properties": {"the_city": {"type": "string"}}},
)


def gemini(name: str = "gemini-3-pro", **options: Any) -> GeminiModel:
    return GeminiModel(name, api_key="k" * 20, **options)


def contents(*records: Record, model: str = "gemini-3-pro") -> list[dict[str, Any]]:
    sent: list[dict[str, Any]] = gemini(model).request(records, CallOptions()).body["contents"]
    return sent


def call(call_id: str | None = "a", content: str = "{}", **fields: Any) -> Record:
    fields = {"id": 2, "name": "tool", "turn_id": "t", "response_id": "r", **fields}
    return record(RecordType.TOOL_CALL, content, call_id=call_id, **fields)


def output(call_id: str | None = "a", content: str = "done", **fields: Any) -> Record:
    return record(RecordType.TOOL_OUTPUT, content, call_id=call_id, **{"id": 3, **fields})


def own(*items: Any) -> dict[str, Any]:
    return {"api": "gemini", "items": list(items)}


# -- records ---------------------------------------------------------------------------------


def test_every_kind_of_record_goes_in_its_role() -> None:
    records = [
        record(RecordType.SYSTEM_PROMPT, "be kind"),
        record(RecordType.SYSTEM_PROMPT, "be brief"),
        record(RecordType.SUMMARY, "they met"),
        record(RecordType.PROMPT, "hello"),
        record(RecordType.REASONING, "hm"),
        record(RecordType.MODEL_RESPONSE, "hi"),
        record(RecordType.PROMPT, ""),
        record(RecordType.PROMPT, "bye"),
    ]
    body = gemini().request(records, CallOptions()).body

    assert body["systemInstruction"] == {"parts": [{"text": "be kind\n\nbe brief"}]}
    assert body["contents"] == [
        {
            "role": "user",
            "parts": [
                {"text": "Summary of the earlier conversation:\n\nthey met"},
                {"text": "hello"},
            ],
        },
        {"role": "model", "parts": [{"text": "hi"}]},
        {"role": "user", "parts": [{"text": "bye"}]},
    ]


def test_calls_and_outputs_of_a_reply_stand_together() -> None:
    records = [
        PROMPT,
        record(RecordType.MODEL_RESPONSE, "let me see", turn_id="t", response_id="r"),
        call("a", '{"x": 1}'),
        call("b", "[1]", name="other tool"),
        output("b", '{"y": [2]}'),
        output("a", "no", error=True),
        record(RecordType.PROMPT, "and now?"),
    ]

    assert contents(*records, model="gemini-2.5-pro")[1:] == [
        {
            "role": "model",
            "parts": [
                {"text": "let me see"},
                {"functionCall": {"id": "a", "name": "tool", "args": {"x": 1}}},
                {"functionCall": {"id": "b", "name": "other_tool", "args": {"input": "[1]"}}},
            ],
        },
        {
            "role": "user",
            "parts": [
                response("a", "tool", {"error": "no"}),
                response("b", "other_tool", {"output": {"y": [2]}}),
                {"text": "and now?"},
            ],
        },
    ]


def response(call_id: str | None, name: str, said: Any) -> dict[str, Any]:
    call_ids = {"id": call_id} if call_id else {}
    return {"functionResponse": {**call_ids, "name": name, "response": said}}


def test_a_call_without_an_output_gets_one_that_is_an_error() -> None:
    sent = contents(PROMPT, call("a"), record(RecordType.PROMPT, "still there?"))

    said = sent[2]["parts"][0]["functionResponse"]["response"]
    assert said == {"error": "interrupted: the outcome of this call is unknown"}


def test_a_call_that_had_no_id_goes_back_without_one() -> None:
    item = {"functionCall": {"name": "tool", "args": {}}, "thoughtSignature": "c2ln"}
    sent = contents(PROMPT, call("made_up", payload=own(item)), output("made_up"))

    assert sent[1]["parts"] == [item]
    assert sent[2]["parts"] == [response(None, "tool", {"output": "done"})]


def test_a_call_s_id_and_name_are_the_provider_s_own() -> None:
    item = {"functionCall": {"name": "a.b:c", "args": {}, "id": "x" * 80}}
    sent = contents(PROMPT, call("x" * 80, name="a.b:c", payload=own(item)), output("x" * 80))

    assert sent[2]["parts"] == [response("x" * 80, "a.b:c", {"output": "done"})]


def test_ids_that_are_used_again_are_told_apart() -> None:
    records = [
        PROMPT,
        call("a", name="one"),
        output("a", "1"),
        call("a", name="two", response_id="s"),
        output("a", "2"),
        call("a", name="three", response_id="u"),
        call("a", name="four", response_id="u"),
        output("a", "3"),
        output("a", "4"),
    ]
    sent = contents(*records)

    answers = [p["functionResponse"] for c in sent for p in c["parts"] if "functionResponse" in p]
    assert [(one["name"], one["response"]["output"]) for one in answers] == [
        ("one", "1"),
        ("two", "2"),
        ("three", "3"),
        ("four", "4"),
    ]


def test_the_first_call_of_a_reply_is_signed_where_the_model_demands_it() -> None:
    signed = {"functionCall": {"name": "tool", "args": {}}, "thoughtSignature": "c2ln"}
    records = [PROMPT, call("a"), call("b"), output("a"), output("b")]
    records += [call("c", payload=own(signed), response_id="s"), output("c")]

    for name in ("gemini-3-pro-preview", "gemini-flash-latest", "models/gemini-4-argon"):
        parts = [one for content in contents(*records, model=name) for one in content["parts"]]
        signatures = [one.get("thoughtSignature") for one in parts if "functionCall" in one]
        assert signatures == [FOREIGN_SIGNATURE, None, "c2ln"]
    for name in ("gemini-2.5-flash", "models/gemini-2.0-flash", "gemini-1.5-pro"):
        text = json.dumps(contents(*records, model=name))
        assert FOREIGN_SIGNATURE not in text
        assert "c2ln" in text


def test_thoughts_go_back_only_where_they_are_signed() -> None:
    signed = {"text": "hm", "thought": True, "thoughtSignature": "c2ln"}
    records = [
        PROMPT,
        record(RecordType.REASONING, "mine", payload=own(signed)),
        record(RecordType.REASONING, "of another", payload={"api": "x", "items": [signed]}),
        record(RecordType.REASONING, "cut off", partial_response_id="r"),
        record(RecordType.MODEL_RESPONSE, "so"),
    ]

    assert contents(*records)[1] == {"role": "model", "parts": [signed, {"text": "so"}]}


def test_the_user_begins_and_ends_and_nothing_is_empty() -> None:
    assert contents()[0]["role"] == "user"
    assert contents()[0]["parts"][0]["text"]
    sent = contents(record(RecordType.MODEL_RESPONSE, "hi"), record(RecordType.MODEL_RESPONSE, ""))
    assert [one["role"] for one in sent] == ["user", "model", "user"]
    assert sent[1]["parts"] == [{"text": "hi"}]


def test_what_another_provider_said_goes_as_plain_text() -> None:
    payload = {"api": "openai-responses", "items": [{"type": "message"}]}
    refused = {"api": "openai-chat", "refusal": "I won't"}
    sent = contents(
        PROMPT,
        record(RecordType.MODEL_RESPONSE, "hi", payload=payload),
        record(RecordType.MODEL_RESPONSE, "", payload=refused),
    )

    assert sent[1]["parts"] == [{"text": "hi"}, {"text": "I won't"}]


def test_text_that_is_no_utf8_is_sent_with_replacements() -> None:
    sent = contents(
        record(RecordType.PROMPT, "a\ud800\0b"),
        call("a", '{"x": "\\ud800"}'),
        output("a", "\udc00"),
    )

    json.dumps(sent, ensure_ascii=False).encode()
    assert sent[0]["parts"] == [{"text": "a\ufffd\ufffdb"}]


def test_an_output_that_is_almost_json_goes_as_text() -> None:
    for text in ('{"a": NaN}', '{"a": 1', "[1]", '"x"', "{" * 100_000, '{"a":' * 100_000):
        sent = contents(PROMPT, call("a"), output("a", text))
        assert sent[2]["parts"][0]["functionResponse"]["response"] == {"output": text}


# -- attachments -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("media_type", "sent"),
    [
        ("image/png", "image/png"),
        ("image/heic", "image/heic"),
        ("application/pdf", "application/pdf"),
        ("audio/wav", "audio/wav"),
        ("video/mp4", "video/mp4"),
        ("text/markdown", "text/markdown"),
        ("text/x-rust", "text/plain"),
    ],
)
def test_attachments_go_behind_their_prompt(media_type: str, sent: str) -> None:
    data = Attachment(media_type=media_type, data=b"\x00\xff\xfe")
    link = Attachment(media_type=media_type, url="https://h/f")
    prompt = record(RecordType.PROMPT, "look", attachments=(data, link))

    assert gemini().attachment_problem(data) is None
    assert contents(prompt)[0]["parts"] == [
        {"text": "look"},
        {"inlineData": {"mimeType": sent, "data": base64.b64encode(b"\x00\xff\xfe").decode()}},
        {"fileData": {"mimeType": sent, "fileUri": "https://h/f"}},
    ]


def test_attachments_that_cannot_go_leave_a_word() -> None:
    odd = Attachment(media_type="application/zip", name="a.zip", data=b"x")
    large = Attachment(media_type="image/png", name="b.png", data=bytes(16_000_000))
    empty = Attachment(media_type="image/png", name="c.png", data=b"")
    sent = contents(record(RecordType.PROMPT, "", attachments=(odd, large, empty)))

    texts = [part["text"] for part in sent[0]["parts"]]
    assert texts[0] == (
        "[attachment a.zip (application/zip) left out: gemini-3-pro takes no application/zip]"
    )
    assert texts[1].startswith("[attachment b.png (image/png) left out: it takes 21.3 MB")
    assert "empty" in texts[2]
    assert gemini().attachment_problem(large) is not None


# -- any context can be sent -----------------------------------------------------------------


PARTS = st.sampled_from(
    [
        {"text": "own"},
        {"text": "", "thoughtSignature": "c2ln"},
        {"text": "hm", "thought": True, "thoughtSignature": "c2ln"},
        {"functionCall": {"name": "own.tool", "args": {"x": 1}}, "thoughtSignature": "c2ln"},
        {"functionCall": {"name": "own.tool", "args": {}, "id": "a"}},
        {"inlineData": {"mimeType": "image/png", "data": "AA=="}},
        {"executableCode": {"language": "PYTHON", "code": "1"}},
        {"candidateMetadata": {"citationMetadata": {}}},
    ]
)
PAYLOADS = st.one_of(
    st.none(),
    st.sampled_from(
        [{}, {"api": "gemini"}, own(), own(3), {"api": "gemini", "items": "x"}, {"refusal": "no"}]
    ),
    st.lists(PARTS, max_size=3).map(lambda parts: {"api": "gemini", "items": parts}),
    st.lists(PARTS, max_size=2).map(lambda parts: {"api": "anthropic", "items": parts}),
)
RECORDS = st.builds(
    record,
    st.sampled_from(list(RecordType)),
    st.sampled_from(["", "text", "{}", '{"a', "[1]", "\ud800\0"]),
    id=st.integers(0, 5),
    call_id=st.sampled_from([None, "", "a", "b", "x" * 100, "\ud800"]),
    name=st.sampled_from([None, "", "tool", "t t\0"]),
    turn_id=st.sampled_from([None, "t"]),
    response_id=st.sampled_from([None, "r1", "r2"]),
    partial_response_id=st.sampled_from([None, "r"]),
    error=st.booleans(),
    attachments=st.sampled_from(
        [
            (),
            (Attachment(media_type="image/png", data=b"x"),),
            (Attachment(media_type="application/zip", url="https://h"),),
        ]
    ),
    payload=PAYLOADS,
)
MODELS = {name: gemini(name) for name in ("gemini-3-pro", "gemini-2.5-flash")}


@given(st.lists(RECORDS, max_size=10), st.sampled_from(sorted(MODELS)))
def test_every_context_can_be_sent(records: list[Record], name: str) -> None:
    # A record holds calls of its own kind alone: that is how decoders make them.
    records = [one for one in records if holds_what_it_is(one)]
    body = MODELS[name].request(records, CallOptions()).body

    json.dumps(body, ensure_ascii=False, allow_nan=False).encode()
    check(body["contents"], signed=name.startswith("gemini-3"))


def holds_what_it_is(one: Record) -> bool:
    items = (one.payload or {}).get("items")
    found = items if isinstance(items, list) else []
    calls = sum(1 for item in found if isinstance(item, dict) and "functionCall" in item)
    return calls <= (one.source is RecordType.TOOL_CALL)


def check(sent: list[dict[str, Any]], *, signed: bool) -> None:
    """What the API refuses."""
    assert sent
    roles = [content["role"] for content in sent]
    assert roles[0] == "user"
    assert all(one != two for one, two in pairwise(roles))
    waiting: list[dict[str, Any]] = []
    for content in sent:
        assert content["parts"]
        for part in content["parts"]:
            assert "candidateMetadata" not in part
            assert part != {"text": ""}
        responses = [p["functionResponse"] for p in content["parts"] if "functionResponse" in p]
        assert len(responses) == len(waiting)
        for answer, asked in zip(responses, waiting, strict=True):
            assert answer["name"] == asked["name"] != ""
            assert answer.get("id") == asked.get("id")
            assert isinstance(answer["response"], dict)
        # Outputs come first: what else the user says stands behind them.
        assert all("functionResponse" in one for one in content["parts"][: len(responses)])
        calls = [part for part in content["parts"] if "functionCall" in part]
        assert not calls or content["role"] == "model"
        assert all(isinstance(part["functionCall"]["args"], dict) for part in calls)
        assert not calls or not signed or calls[0].get("thoughtSignature")
        waiting = [part["functionCall"] for part in calls]
    assert not waiting


# -- options ---------------------------------------------------------------------------------


def test_options_are_said_in_the_provider_s_words() -> None:
    schema = {"type": "object", "properties": {"a_b": {"type": "string"}}, "$defs": {}}
    options = CallOptions(
        temperature=0.5,
        max_output_tokens=7,
        reasoning="low",
        response_format=ResponseFormat(name="x", schema=schema),
        tools=(WEATHER, {"googleSearch": {}}),
        tool_choice="weather",
    )
    body = gemini().request([PROMPT], options).body

    assert body["generationConfig"] == {
        "temperature": 0.5,
        "maxOutputTokens": 7,
        "thinkingConfig": {"thinkingLevel": "LOW", "includeThoughts": True},
        "responseMimeType": "application/json",
        "responseJsonSchema": schema,
    }
    declared = {
        "name": "weather",
        "description": "of a city",
        "parametersJsonSchema": WEATHER.parameters,
    }
    assert body["tools"] == [{"functionDeclarations": [declared]}, {"googleSearch": {}}]
    calling = {"mode": "ANY", "allowedFunctionNames": ["weather"]}
    assert body["toolConfig"] == {"functionCallingConfig": calling}


@pytest.mark.parametrize(
    ("choice", "mode"), [("auto", "AUTO"), ("none", "NONE"), ("required", "ANY")]
)
def test_tool_choices_are_modes(choice: str, mode: str) -> None:
    body = gemini().request([], CallOptions(tools=(WEATHER,), tool_choice=choice)).body
    assert body["toolConfig"] == {"functionCallingConfig": {"mode": mode}}
    assert "toolConfig" not in gemini().request([], CallOptions(tool_choice=choice)).body


@pytest.mark.parametrize(
    ("name", "reasoning", "config"),
    [
        ("gemini-3-flash", "high", {"thinkingLevel": "HIGH", "includeThoughts": True}),
        ("gemini-3-flash", "none", {"thinkingLevel": "MINIMAL", "includeThoughts": True}),
        ("gemini-flash-latest", "max", {"thinkingLevel": "XHIGH", "includeThoughts": True}),
        ("gemini-2.5-flash", "low", {"thinkingBudget": 1_024, "includeThoughts": True}),
        ("gemini-2.5-pro", "high", {"thinkingBudget": 24_576, "includeThoughts": True}),
        ("gemini-2.5-flash", "none", {"thinkingBudget": 0}),
        ("gemini-2.5-flash", {"thinking_budget": -1}, {"thinkingBudget": -1}),
        ("gemini-3-pro", {"thinkingLevel": "LOW"}, {"thinkingLevel": "LOW"}),
    ],
)
def test_efforts_are_levels_or_budgets(name: str, reasoning: Any, config: Any) -> None:
    body = gemini(name).request([], CallOptions(reasoning=reasoning)).body
    assert body["generationConfig"] == {"thinkingConfig": config}


def test_extra_goes_last_in_either_spelling() -> None:
    settings = [{"category": "HARM_CATEGORY_HARASSMENT", "threshold": "OFF"}]
    extra = {
        "top_p": 0.1,
        "temperature": 1.0,
        "thinking_config": {"include_thoughts": False},
        "generationConfig": {"topK": 3, "stopSequences": ["."]},
        "safety_settings": settings,
        "labels": {"my_key": "v"},
        "tools": [
            {"google_search": {}},
            {"function_declarations": [{"name": "f", "parameters": {"x_y": {"z_z": 1}}}]},
            types.Tool(url_context=types.UrlContext()),
        ],
        "tool_config": {"includeServerSideToolInvocations": True},
        "system_instruction": "sing",
        "some_new_field": {"a_b": 1},
    }
    options = CallOptions(
        temperature=0.5, reasoning="low", tools=(WEATHER,), tool_choice="auto", extra=extra
    )
    body = gemini().request([record(RecordType.SYSTEM_PROMPT, "x"), PROMPT], options).body

    assert body["generationConfig"] == {
        "temperature": 1.0,
        "thinkingConfig": {"thinkingLevel": "LOW", "includeThoughts": False},
        "topP": 0.1,
        "topK": 3,
        "stopSequences": ["."],
    }
    assert body["safetySettings"] == settings
    assert body["labels"] == {"my_key": "v"}
    assert [next(iter(one)) for one in body["tools"]] == [
        "functionDeclarations",
        "googleSearch",
        "functionDeclarations",
        "urlContext",
    ]
    assert body["tools"][2]["functionDeclarations"][0]["parameters"] == {"x_y": {"z_z": 1}}
    assert body["toolConfig"] == {
        "functionCallingConfig": {"mode": "AUTO"},
        "includeServerSideToolInvocations": True,
    }
    assert body["systemInstruction"] == {"parts": [{"text": "sing"}]}
    assert body["some_new_field"] == {"a_b": 1}
    assert extra["tools"][0] == {"google_search": {}}  # type: ignore[index]  # left as it was


def test_what_was_built_is_what_arrives() -> None:
    items = [
        {"text": "a", "thoughtSignature": "+/+/Zg==", "aNewField": {"b_c": [None, 1.5]}},
        {"aNewPart": {"x": "y"}},
        {"functionCall": {"name": "f", "args": {"x": None, "b_c": []}}, "thoughtSignature": "-_8="},
    ]
    records = [PROMPT, call("a", payload=own(*items)), output("a", "\u2028é😀")]
    extra = {"aNewOption": {"c_d": 1}, "generationConfig": {"another": True}}
    with serving(Answer(b"data: {}\n\n")) as server:
        for stream in (True, False):
            model = gemini(base_url=server.url, stream=stream)
            request = model.request(records, CallOptions(temperature=1, extra=extra))
            model.open(request, timeout=5).close()
            model.close()

    sent = {name: value for name, value in request.body.items() if name != "model"}
    assert [one["body"] for one in server.requests] == [sent, sent]
    assert server.requests[0]["body"]["contents"][1]["parts"] == items


# -- answers ---------------------------------------------------------------------------------


def chunk(*parts: Any, **fields: Any) -> dict[str, Any]:
    candidate = {"content": {"parts": list(parts), "role": "model"}, "index": 0, **fields}
    return {"candidates": [candidate], "responseId": "r", "modelVersion": "m-1"}


def decoded(*chunks: dict[str, Any], decoder: GeminiDecoder | None = None) -> Decoded:
    found = Decoded(decoder or GeminiDecoder("m"))
    for one in chunks:
        found.take(found.decoder.feed(one))
    found.take(found.decoder.end())
    return found


STOP = chunk(finishReason="STOP")


def test_plain_text_is_one_record_without_a_copy() -> None:
    found = decoded(chunk({"text": "a"}), chunk({"text": "b"}), chunk({"text": "é"}), STOP)

    assert found.text("text") == "abé"
    assert found.items == []
    assert len(found.parts) == 1


def test_each_signature_stays_on_its_own_part_among_joined_texts() -> None:
    found = decoded(
        chunk({"text": "a"}),
        chunk({"text": "b"}),
        chunk({"text": "c", "thoughtSignature": "s1"}),
        chunk({"text": "d"}),
        chunk({"text": "e"}),
        chunk({"text": "", "thoughtSignature": "s2"}, finishReason="STOP"),
    )

    assert found.text("text") == "abcde"
    assert found.items == [
        {"text": "ab"},
        {"text": "c", "thoughtSignature": "s1"},
        {"text": "de"},
        {"text": "", "thoughtSignature": "s2"},
    ]
    sent = contents(PROMPT, *found.records("gemini"))
    assert sent[1]["parts"] == found.items


def test_a_signature_without_text_behind_a_call_is_kept() -> None:
    found = decoded(
        chunk({"functionCall": {"name": "f", "args": {}}, "thoughtSignature": "s1"}),
        chunk({"text": ""}),
        chunk({"thoughtSignature": "s2"}, finishReason="STOP"),
    )

    assert [part.kind for part in found.parts.values()] == ["tool_call", "text"]
    assert found.items[-1] == {"text": "", "thoughtSignature": "s2"}


def test_what_is_unknown_stands_in_front_of_what_follows() -> None:
    code = {"executableCode": {"code": "1"}, "thoughtSignature": "s"}
    result = {"codeExecutionResult": {"output": "1"}}
    image = {"inlineData": {"mimeType": "image/png", "data": "AA=="}}
    found = decoded(chunk({"text": "a"}, code), chunk(result, {"text": "b"}, image, {}), STOP)

    assert [(part.kind, part.text) for part in found.parts.values()] == [
        ("text", "a"),
        ("text", "b"),
        ("text", ""),
    ]
    assert found.items == [code, result, {"text": "b"}, image]
    sent = contents(PROMPT, *found.records("gemini"))
    assert sent[1]["parts"] == [{"text": "a"}, code, result, {"text": "b"}, image]


def test_calls_without_ids_get_stable_ones_that_differ() -> None:
    chunks = [chunk(*({"functionCall": {"name": "f", "args": {"n": n}}} for n in range(3))), STOP]
    ids = [part.call_id for part in decoded(*chunks).calls]

    assert len(set(ids)) == 3
    assert ids == [part.call_id for part in decoded(*chunks).calls]
    other = [{**one, "responseId": "other"} for one in chunks]
    assert not set(ids) & {part.call_id for part in decoded(*other).calls}


def test_arguments_in_pieces_are_put_in_their_places() -> None:
    def piece(*arguments: Any, **fields: Any) -> dict[str, Any]:
        return chunk({"functionCall": {"partialArgs": list(arguments), **fields}})

    found = decoded(
        chunk({"functionCall": {"name": "f", "id": "i", "willContinue": True}}),
        piece(
            {"jsonPath": "$.a.b[1].c", "stringValue": "x", "willContinue": True}, willContinue=True
        ),
        piece({"jsonPath": "$.a.b[1].c", "stringValue": "y"}, willContinue=True),
        piece({"jsonPath": "$['o.o']", "numberValue": 1.5}, willContinue=True),
        piece({"jsonPath": '$["q\\"q"]', "boolValue": False}, willContinue=True),
        piece({"jsonPath": "$.n", "nullValue": "NULL_VALUE"}, willContinue=True),
        chunk({"functionCall": {}, "thoughtSignature": "s"}),
        chunk({"functionCall": {"name": "g", "willContinue": True}}),
        STOP,
    )

    arguments = {"a": {"b": [None, {"c": "xy"}]}, "o.o": 1.5, 'q"q': False, "n": None}
    assert [(part.name, json.loads(part.text)) for part in found.calls] == [
        ("f", arguments),
        ("g", {}),
    ]
    assert found.items[0] == {
        "functionCall": {"name": "f", "id": "i", "args": arguments},
        "thoughtSignature": "s",
    }
    assert found.decoder.finish_reason == "tool_calls"
    with pytest.raises(ValueError, match="path"):
        path("$.a[*]")


def test_calls_that_the_provider_answers_itself_are_not_ours() -> None:
    asked = {"functionCall": {"name": "server_tool", "args": {}}, "thoughtSignature": "s"}
    said = {"functionResponse": {"name": "server_tool", "response": {}}}
    options = CallOptions(tools=(WEATHER,), extra={"tools": [{"mcpServers": [{"name": "x"}]}]})
    decoder = gemini().decoder(gemini().request([], options))
    assert isinstance(decoder, GeminiDecoder)
    ours = {"functionCall": {"name": "weather", "args": {}}}

    found = decoded(chunk(asked, said, {"text": "so"}, ours), STOP, decoder=decoder)

    assert [part.name for part in found.calls] == ["weather"]
    assert found.items == [asked, said, {"text": "so"}, ours]


@pytest.mark.parametrize(
    ("reason", "expected"),
    [
        ("STOP", "stop"),
        ("MAX_TOKENS", "length"),
        ("CONTINUATION", "length"),
        ("SAFETY", "content_filter"),
        ("SPII", "content_filter"),
        ("IMAGE_SAFETY", "content_filter"),
        ("MODEL_ARMOR", "content_filter"),
        ("MALFORMED_FUNCTION_CALL", "length"),
        ("UNEXPECTED_TOOL_CALL", "stop"),
        ("OTHER", "stop"),
        ("A_NEW_ONE", "stop"),
        (1, "stop"),
    ],
)
def test_finish_reasons_are_ours(reason: Any, expected: str) -> None:
    text = decoded(chunk({"text": "a"}, finishReason=reason))
    asked = decoded(chunk({"functionCall": {"name": "f"}}, finishReason=reason))

    assert text.decoder.finish_reason == expected
    assert asked.decoder.finish_reason == ("tool_calls" if expected == "stop" else expected)


def test_the_sdk_knows_no_finish_reason_that_we_have_not_thought_of() -> None:
    plain = {"FINISH_REASON_UNSPECIFIED", "STOP", "OTHER", "IMAGE_OTHER", "NO_IMAGE"}
    for reason in types.FinishReason:
        if reason.value in plain | {"UNEXPECTED_TOOL_CALL"}:
            continue
        found = decoded(chunk({"text": "a"}, finishReason=reason.value))
        assert found.decoder.finish_reason in ("length", "content_filter"), reason


def test_nothing_is_finished_without_a_reason() -> None:
    nothing: dict[str, Any] = {"candidates": []}
    for last in (chunk(), chunk(finishReason="FINISH_REASON_UNSPECIFIED"), nothing):
        with pytest.raises(StreamInterrupted, match="ended before"):
            decoded(chunk({"text": "a"}), last)


def test_other_candidates_are_left_out() -> None:
    other = {"content": {"parts": [{"text": "no"}]}, "index": 1, "finishReason": "SAFETY"}
    both = chunk({"text": "b"})
    both["candidates"].append(other)
    found = decoded(chunk({"text": "a"}), both, {"candidates": [other]}, STOP)

    assert found.text("text") == "ab"
    assert found.decoder.finish_reason == "stop"


def test_a_blocked_prompt_says_why() -> None:
    feedback = {"blockReason": "MODEL_ARMOR", "blockReasonMessage": "a jailbreak"}
    with pytest.raises(ContentBlocked, match=r"MODEL_ARMOR\): a jailbreak") as caught:
        GeminiDecoder("m").feed({"promptFeedback": feedback})
    assert caught.value.code == "MODEL_ARMOR"
    assert not caught.value.retryable
    # Behind an answer it is no refusal of the prompt.
    assert decoded(chunk({"text": "a"}), {"promptFeedback": feedback}, STOP).text("text") == "a"


def test_usage_includes_thoughts_and_what_tools_put_into_the_prompt() -> None:
    counts = {
        "promptTokenCount": 10,
        "toolUsePromptTokenCount": 5,
        "candidatesTokenCount": 3,
        "thoughtsTokenCount": 4,
        "cachedContentTokenCount": 2,
        "totalTokenCount": 22,
    }
    found = decoded(
        {**chunk({"text": "a"}), "usageMetadata": {"promptTokenCount": 10}},
        {**chunk({"text": "b"}), "usageMetadata": counts},
        {**chunk({"text": "c"}), "usageMetadata": {"trafficType": "ON_DEMAND"}},
        STOP,
        {"usageMetadata": {"promptTokenCount": -1, "candidatesTokenCount": "x"}},
    )

    assert found.decoder.usage == Usage(15, 7, 2, 0, 4)
    assert GeminiDecoder("m").usage is None


def test_usage_may_come_behind_the_end() -> None:
    decoder = GeminiDecoder("m")
    found = Decoded(decoder)
    found.take(decoder.feed(chunk({"text": "a"}, finishReason="STOP")))
    assert decoder.finished
    found.take(decoder.feed({"usageMetadata": {"promptTokenCount": 3, "candidatesTokenCount": 1}}))
    found.take(decoder.feed(chunk({"text": "b"})))
    found.take(decoder.end())

    assert found.text("text") == "ab"
    assert decoder.usage == Usage(3, 1)
    assert decoder.end() == ()


def test_text_is_storable() -> None:
    found = decoded(
        chunk({"text": "a\ud83d"}),
        chunk({"text": "\ude00b\0"}),
        chunk({"text": "\ud83d"}),
        chunk({"text": "c"}),
        chunk({"text": "\ud83d"}),
        chunk({"functionCall": {"name": "f\ud800", "args": {"x": "\0"}}}),
        STOP,
    )

    assert found.text("text") == "a😀b\ufffd\ufffdc\ufffd"
    assert found.calls[0].name == "f\ufffd"
    json.dumps(found.items, ensure_ascii=False).encode()
    assert all("\0" not in part.text for part in found.parts.values())


@given(
    st.lists(
        st.sampled_from(
            [
                {"text": "a"},
                {"text": "é\ud83d"},
                {"text": "\ude00"},
                {"text": "b", "thoughtSignature": "s"},
                {"text": "", "thoughtSignature": "s"},
                {"text": "t", "thought": True},
                {"text": "u", "thought": True, "thoughtSignature": "s"},
                {"functionCall": {"name": "f", "args": {"x": 1}}},
                {"functionCall": {"name": "g", "id": "i"}, "thoughtSignature": "s"},
                {"inlineData": {"data": "AA=="}},
                {},
            ]
        ),
        max_size=12,
    ),
    st.integers(1, 4),
)
def test_any_reply_decodes_alike_in_one_body_and_goes_back_as_a_valid_one(
    parts: list[dict[str, Any]], size: int
) -> None:
    groups = [parts[place : place + size] for place in range(0, len(parts), size)]
    streamed = decoded(*(chunk(*group) for group in groups), STOP)
    body = Decoded(GeminiDecoder("m"))
    body.take(body.decoder.feed_body(chunk(*parts, finishReason="STOP")))
    body.take(body.decoder.end())

    assert streamed.parts == body.parts
    records = [PROMPT, *streamed.records("gemini")]
    for name, model in MODELS.items():
        sent = model.request(records, CallOptions()).body["contents"]
        check(sent, signed=name.startswith("gemini-3"))
        kept = [one.get("thoughtSignature") for content in sent for one in content["parts"]]
        assert kept.count("s") == sum("thoughtSignature" in part for part in parts)


def test_parts_end_as_soon_as_another_kind_begins() -> None:
    decoder = GeminiDecoder("m")
    assert decoder.feed(chunk({"text": "hm", "thought": True})) == [Delta("reasoning", 0, "hm")]
    assert decoder.feed(chunk({"text": "a"})) == [PartEnd("reasoning", 0), Delta("text", 1, "a")]
    assert decoder.feed(chunk({"text": "b"})) == (Delta("text", 1, "b"),)


# -- a window --------------------------------------------------------------------------------


def events(*chunks: dict[str, Any]) -> bytes:
    return b"".join(b"data: " + json.dumps(one).encode() + b"\r\n\r\n" for one in chunks)


def test_a_window_runs_tools_and_sends_every_signature_back() -> None:
    @tool
    def add(a: int, b: int) -> int:
        """Add two numbers."""
        return a + b

    thought = {"text": "sum", "thought": True}
    asked = {"functionCall": {"name": "add", "args": {"a": 2, "b": 3}}, "thoughtSignature": "c2ln"}
    counts = {"promptTokenCount": 5, "candidatesTokenCount": 2, "thoughtsTokenCount": 1}
    first = events(chunk(thought), {**chunk(asked, finishReason="STOP"), "usageMetadata": counts})
    second = events(
        chunk({"text": "It is "}),
        {
            **chunk({"text": "5.", "thoughtSignature": "dHdv"}, finishReason="STOP"),
            "usageMetadata": {"promptTokenCount": 9, "candidatesTokenCount": 4},
        },
    )
    with serving(Answer(first), Answer(second), Answer(second)) as server:
        model = gemini("gemini-2.5-flash", base_url=server.url)
        with ContextWindow(":memory:", "c", model=model, tools=[add]) as window:
            window.add_prompt("2 + 3?")
            reply = window.call_model()
            window.add_prompt("sure?")
            window.call_model()
        model.close()

    assert reply.text == "It is 5."
    assert reply.reasoning == "sum"
    assert reply.finish_reason == "stop"
    assert reply.usage == Usage(14, 7, reasoning_tokens=1)
    last = server.requests[2]["body"]["contents"]
    assert last == [
        {"role": "user", "parts": [{"text": "2 + 3?"}]},
        {"role": "model", "parts": [asked]},
        {"role": "user", "parts": [response(None, "add", {"output": "5"})]},
        {
            "role": "model",
            "parts": [{"text": "It is "}, {"text": "5.", "thoughtSignature": "dHdv"}],
        },
        {"role": "user", "parts": [{"text": "sure?"}]},
    ]
    (declared,) = server.requests[0]["body"]["tools"][0]["functionDeclarations"]
    assert declared["name"] == "add"
    assert declared["parametersJsonSchema"]["required"] == ["a", "b"]
