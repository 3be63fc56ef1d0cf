"""What a request will take, told without the provider."""

from __future__ import annotations

import base64
import copy
import struct
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from shared_files import needed

from benchmarks import token_accuracy
from contextwindow import Attachment, GeminiModel, OpenAIChatModel, Record
from contextwindow.models.base import CallOptions, Request
from contextwindow.models.estimates import Estimate, estimate_request, is_countable
from contextwindow.models.pictures import size_of
from contextwindow.records import RecordType
from contextwindow.testing import ScriptedModel
from contextwindow.tokens import count_tokens

APIS = ("openai-chat", "openai-responses", "anthropic", "gemini")
MODELS = {
    "openai-chat": "gpt-4o",
    "openai-responses": "gpt-5",
    "anthropic": "claude-haiku-4-5",
    "gemini": "gemini-3-pro",
}
SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string", "description": "Where"}},
    "required": ["city"],
}
PNG = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + struct.pack(">II", 640, 480)


def body(api: str, texts: list[str], tools: int = 0) -> dict[str, Any]:
    """A request of *api* in which user and model say *texts* in turn."""
    roles = ("user", "model" if api == "gemini" else "assistant")
    said = [(roles[number % 2], text) for number, text in enumerate(texts)]
    made: dict[str, Any] = {"model": MODELS[api]}
    names = [f"weather_{number}" for number in range(tools)]
    if api == "gemini":
        made["contents"] = [{"role": role, "parts": [{"text": text}]} for role, text in said]
        declared = [{"name": name, "parametersJsonSchema": SCHEMA} for name in names]
        made["tools"] = [{"functionDeclarations": declared}]
        return made
    messages = [{"role": role, "content": text} for role, text in said]
    made["input" if api == "openai-responses" else "messages"] = messages
    if api == "anthropic":
        made["tools"] = [{"name": name, "input_schema": SCHEMA} for name in names]
    elif api == "openai-chat":
        functions = [{"name": name, "parameters": SCHEMA} for name in names]
        made["tools"] = [{"type": "function", "function": one} for one in functions]
    else:
        made["tools"] = [{"type": "function", "name": n, "parameters": SCHEMA} for n in names]
    return made


def prompt(text: str, *attached: Attachment) -> Record:
    """A prompt that a context holds."""
    when = datetime(2026, 1, 1, tzinfo=UTC)
    return Record(
        id=1,
        context_id="c",
        source=RecordType.PROMPT,
        content=text,
        timestamp=when,
        attachments=attached,
    )


@pytest.mark.parametrize("api", APIS)
def test_estimates_are_near_what_the_provider_counted(api: str) -> None:
    found = [one for one in token_accuracy.accuracies() if one.api == api]
    needed(found)

    (accuracy,) = found
    wrong = [(one.name, one.estimate, one.tokens) for one in accuracy.cases if one.error > 15]
    assert len(accuracy.cases) > 30
    assert accuracy.median <= token_accuracy.MEDIAN
    assert wrong == []


def test_most_recordings_of_a_request_with_usage_are_compared() -> None:
    needed(token_accuracy.accuracies())
    unusable = ("a copy of another recording", "the request was not recorded")
    for one in token_accuracy.accuracies():
        left_out = sum(
            count
            for reason, count in one.excluded.items()
            if reason not in (*unusable, "the provider told no usage")
        )
        assert left_out < len(one.cases) / 2, (one.api, one.excluded)


@pytest.mark.parametrize("api", APIS)
@given(
    texts=st.lists(st.text(max_size=40), min_size=1, max_size=6),
    more=st.text(max_size=40),
    tools=st.integers(0, 3),
)
@settings(max_examples=50)
def test_more_text_or_more_tools_never_make_it_smaller(
    api: str, texts: list[str], more: str, tools: int
) -> None:
    # By letters: a longer text may be one word, and so fewer tokens.
    small = estimate_request(api, body(api, texts, tools), len)
    assert estimate_request(api, body(api, [*texts, more], tools), len).tokens >= small.tokens
    longer = [*texts[:-1], texts[-1] + more]
    assert estimate_request(api, body(api, longer, tools), len).tokens >= small.tokens
    assert estimate_request(api, body(api, texts, tools + 1), len).tokens > small.tokens


KEYS = (
    *("type", "role", "content", "text", "name", "arguments", "input", "output", "parts", "id"),
    *("functionCall", "functionResponse", "response", "inlineData", "mimeType", "data", "args"),
    *("source", "media_type", "tools", "function", "parameters", "properties", "enum", "anyOf"),
    *("items", "required", "functionDeclarations", "image_url", "url", "file", "file_data"),
    *("filename", "input_schema", "thinking", "thoughtSignature", "encrypted_content", "format"),
    *("schema", "tool_calls", "citations"),
)
FIELDS = (
    *("model", "messages", "input", "contents", "tools", "functions", "system", "text"),
    *("systemInstruction", "instructions", "response_format", "output_config", "output_format"),
    *("thinking", "tool_choice", "context_management"),
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=True) | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(KEYS),
            inner
            | st.sampled_from(["object", "array", "image", "document", "function", "tool_use"]),
            max_size=4,
        )
    ),
    max_leaves=12,
)


@pytest.mark.parametrize("api", [*APIS, "another"])
@given(odd=st.dictionaries(st.sampled_from(FIELDS), JSON, max_size=5))
@settings(max_examples=150)
def test_whatever_the_body_is_nothing_is_raised(api: str, odd: dict[str, Any]) -> None:
    before = copy.deepcopy(odd)

    estimate = estimate_request(api, odd, len)

    assert estimate.tokens >= estimate.guessed >= 0
    assert isinstance(is_countable(api, odd), str)
    assert repr(odd) == repr(before)


@pytest.mark.parametrize("api", APIS)
@pytest.mark.parametrize("text", ["<|endoftext|>", " " * 1_100_000, "\ud800", "\0"])
def test_special_tokens_and_long_white_space_are_text(api: str, text: str) -> None:
    assert estimate_request(api, body(api, [text])).tokens > 0


@pytest.mark.parametrize("key", ["content", "properties", "items", "output", "parts"])
@pytest.mark.parametrize("api", APIS)
def test_a_body_as_deep_as_json_goes_is_told_somehow(api: str, key: str) -> None:
    deep: Any = "text"
    for _ in range(2_000):
        deep = {"type": "object", key: {"a": deep} if key == "properties" else [deep]}
    made = body(api, ["hello"], 1)
    made["tools"][0] |= {"parameters": deep, "input_schema": deep}
    made["tools"] += [{"functionDeclarations": [{"name": "f", "parameters": deep}]}]
    for field in ("messages", "input", "contents"):
        if field in made:
            made[field].append({"role": "user", "content": [{"content": deep}], "parts": [deep]})

    assert estimate_request(api, made).tokens > 0


@pytest.mark.parametrize("api", APIS)
def test_an_image_is_guessed_by_its_size(api: str) -> None:
    data = base64.b64encode(PNG).decode()
    url = f"data:image/png;base64,{data}"
    made = body(api, ["What is it?"])
    plain = estimate_request(api, made)
    match api:
        case "openai-chat":
            part: dict[str, Any] = {"type": "image_url", "image_url": {"url": url}}
            made["messages"][0]["content"] = [{"type": "text", "text": "What is it?"}, part]
            expected = 85 + 2 * 170
        case "openai-responses":
            part = {"type": "input_image", "image_url": url}
            text = {"type": "input_text", "text": "What is it?"}
            made["input"][0]["content"] = [text, part]
            expected = 70 + 2 * 140
        case "anthropic":
            source = {"type": "base64", "media_type": "image/png", "data": data}
            text = {"type": "text", "text": "What is it?"}
            made["messages"][0]["content"] = [text, {"type": "image", "source": source}]
            expected = round(640 * 480 / 750)
        case _:
            part = {"inlineData": {"mimeType": "image/png", "data": data}}
            made["contents"][0]["parts"].append(part)
            expected = 1_090

    found = estimate_request(api, made)

    assert plain.guessed == 0
    assert found.guessed == expected
    assert found.tokens - found.guessed == pytest.approx(plain.tokens, abs=6)
    assert is_countable(api, made) == ""


@pytest.mark.parametrize(
    ("data", "size"),
    [
        (PNG, (640, 480)),
        (b"GIF89a" + struct.pack("<HH", 3, 4), (3, 4)),
        (b"\xff\xd8\xff\xe0\0\4\0\0\xff\xc0\0\x11\x08\0\x05\0\x06\0\0\0", (6, 5)),
        (b"RIFF\0\0\0\0WEBPVP8X" + b"\0" * 8 + b"\x07\0\0\x08\0\0", (8, 9)),
        (b"RIFF\0\0\0\0WEBPVP8 " + b"\0" * 10 + struct.pack("<HH", 11, 12), (11, 12)),
        (b"RIFF\0\0\0\0WEBPVP8L\0\0\0\0\x2f" + struct.pack("<I", 9 | 19 << 14), (10, 20)),
        (PNG[:-3], None),
        (b"\xff\xd8\xff\xe0\0\4\0\0\0\0\0\0\0\0\0\0\0\0\0\0", None),
        (b"no picture", None),
        (b"", None),
    ],
)
def test_the_size_of_a_picture_is_read_from_its_head(
    data: bytes, size: tuple[int, int] | None
) -> None:
    assert size_of(base64.b64encode(data).decode()) == size


def test_the_size_of_what_is_no_base64_is_not_known() -> None:
    assert size_of("%%%") is None
    assert size_of(5) is None


def test_why_a_request_cannot_be_told_is_said() -> None:
    asked = body("openai-responses", ["hello"])
    assert is_countable("openai-responses", asked) == ""
    assert "keeps" in is_countable("openai-responses", {**asked, "previous_response_id": "r"})
    search = {**asked, "tools": [{"type": "web_search"}]}
    assert "provider runs" in is_countable("openai-responses", search)
    assert "OpenAI" in is_countable("openai-chat", {"model": "llama-3"})
    assert is_countable("another", {}) == "an unknown API"


def test_an_unknown_api_has_all_its_texts_counted() -> None:
    asked = {"prompt": "Hello, world", "more": ["again"]}
    assert estimate_request("another", asked, len) == Estimate(len("Hello, worldagain"))


def test_hidden_thoughts_are_guessed_while_their_turn_goes_on() -> None:
    thought = {"type": "reasoning", "encrypted_content": "x" * 1_700, "summary": []}
    made = body("openai-responses", ["Hello"])
    made["input"].append(thought)
    assert estimate_request("openai-responses", made).guessed == 100

    made["input"].append({"role": "user", "content": "And now?"})
    assert estimate_request("openai-responses", made).guessed == 0
    made["reasoning"] = {"context": "all_turns"}
    assert estimate_request("openai-responses", made).guessed == 100
    assert is_countable("openai-responses", made) == ""

    del thought["encrypted_content"]
    assert "keeps" in is_countable("openai-responses", made)


def test_a_model_estimates_the_request_that_it_would_send() -> None:
    record = prompt("What is in it?")
    model = OpenAIChatModel("gpt-4o", api_key="k")

    request = model.request([record], CallOptions())
    estimate = model.estimate(request)

    assert estimate == estimate_request("openai-chat", request.body)
    assert estimate.tokens == count_tokens("What is in it?") + 7
    assert model.estimate(Request({}, "resp_1", 5)) == Estimate(0)


def test_the_adapter_of_gemini_says_which_model_it_asks() -> None:
    picture = Attachment(media_type="image/png", data=PNG)
    record = prompt("What is it?", picture)

    def guessed(name: str) -> int:
        model = GeminiModel(name, api_key="k")
        return model.estimate(model.request([record], CallOptions())).guessed

    assert guessed("gemini-2.5-flash") == 4 * 258
    assert guessed("gemini-3-pro") == 1_090


def test_a_scripted_model_counts_the_texts_that_it_is_asked() -> None:
    model = ScriptedModel(["Fine."])
    record = prompt("How are you?")

    estimate = model.estimate(model.request([record], CallOptions()))

    assert estimate == Estimate(count_tokens("How are you?"))
