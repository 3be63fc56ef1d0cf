"""The fake provider as Anthropic and as Google, judged by their real SDKs."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import anthropic
import httpx2
import pytest
from four_apis import provider
from google import genai
from google.genai import errors as google_errors

from contextwindow.testing import FakeProvider, FakeReply

__all__ = ["provider"]

PROMPT: Any = [{"role": "user", "content": "hello"}]
CLAUDE = "claude-haiku-4-5"


@pytest.fixture
def claude(provider: FakeProvider) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(
        api_key="k", base_url=provider.anthropic_url, max_retries=0, timeout=5
    ) as client:
        yield client


@pytest.fixture
def gemini(provider: FakeProvider) -> Iterator[genai.Client]:
    client = genai.Client(api_key="k", http_options={"base_url": provider.gemini_url})
    yield client
    client.close()


def asked(client: anthropic.Anthropic, **options: Any) -> anthropic.types.Message:
    options = {"messages": PROMPT, "max_tokens": 100, **options}
    with client.messages.stream(model=CLAUDE, **options) as stream:
        return stream.get_final_message()


def generated(client: genai.Client, contents: Any = "hello", **config: Any) -> list[Any]:
    settings: Any = {"automatic_continuation": False, **config}
    chunks = client.models.generate_content_stream(
        model="gemini-3-pro", contents=contents, config=settings
    )
    return list(chunks)


# -- Anthropic ---------------------------------------------------------------------------


def test_anthropic_s_sdk_reads_thinking_text_and_tool_use(
    provider: FakeProvider, claude: anthropic.Anthropic
) -> None:
    provider.reply(FakeReply("Look.", reasoning="hm hm", tool_calls=[("f", {"a": 1}, "call_1")]))

    message = asked(claude)

    assert [block.type for block in message.content] == ["thinking", "text", "tool_use"]
    thinking, text, use = message.content
    assert (thinking.thinking, bool(thinking.signature)) == ("hm hm", True)  # type: ignore[union-attr]
    assert text.text == "Look."  # type: ignore[union-attr]
    assert (use.id, use.name, use.input) == ("call_1", "f", {"a": 1})  # type: ignore[union-attr]
    assert message.stop_reason == "tool_use"
    assert message.usage.output_tokens > 0


def test_anthropic_s_sdk_reads_one_body(
    provider: FakeProvider, claude: anthropic.Anthropic
) -> None:
    provider.reply(FakeReply("hi", refusal=" no"))

    message = claude.messages.create(model=CLAUDE, messages=PROMPT, max_tokens=9)

    assert message.content[0].text == "hi no"  # type: ignore[union-attr]
    assert message.stop_reason == "refusal"
    assert claude.messages.count_tokens(model=CLAUDE, messages=PROMPT).input_tokens > 0


@pytest.mark.parametrize(
    ("fault", "raised"),
    [
        ("reset", httpx2.ReadError),
        ("truncate", httpx2.RemoteProtocolError),
        ("error", anthropic.APIStatusError),
        ("reset_before", anthropic.APIConnectionError),
    ],
)
def test_a_fault_shows_to_anthropic_s_sdk_as_it_does_in_life(
    provider: FakeProvider, claude: anthropic.Anthropic, fault: Any, raised: type[Exception]
) -> None:
    provider.reply(FakeReply("one two three", fault=fault, at=1))

    with pytest.raises(raised):
        asked(claude)


@pytest.mark.parametrize(
    ("status", "raised"),
    [
        (400, anthropic.BadRequestError),
        (401, anthropic.AuthenticationError),
        (413, anthropic.ContentTooLargeError),
        (429, anthropic.RateLimitError),
        (529, anthropic.OverloadedError),
    ],
)
def test_an_error_status_is_anthropic_s(
    provider: FakeProvider, claude: anthropic.Anthropic, status: int, raised: type[Exception]
) -> None:
    provider.reply(FakeReply(status=status))

    with pytest.raises(raised):
        asked(claude)


USE = {"type": "tool_use", "id": "t1", "name": "f", "input": {}}
RESULT = {"type": "tool_result", "tool_use_id": "t1", "content": "x"}
FORGED = {"type": "thinking", "thinking": "hm", "signature": "forged"}
REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"max_tokens": 0}, "max_tokens"),
    ({"messages": [{"role": "assistant", "content": "hi"}]}, "first message"),
    ({"messages": [*PROMPT, {"role": "assistant", "content": [USE]}, *PROMPT]}, "tool_use"),
    ({"messages": [{"role": "user", "content": [RESULT]}]}, "tool_use_id"),
    ({"messages": [{"role": "user", "content": [{"type": "text", "text": " "}]}]}, "non-white"),
    ({"messages": [*PROMPT, {"role": "assistant", "content": [FORGED]}, *PROMPT]}, "signature"),
    ({"messages": [*PROMPT, {"role": "assistant", "content": "hi "}]}, "whitespace"),
    (
        {"messages": [*PROMPT, {"role": "assistant", "content": "hi"}], "model": "claude-opus-4-6"},
        "prefill",
    ),
    (
        {"messages": [*PROMPT, {"role": "assistant", "content": [{**USE, "id": "a.b"}]}, *PROMPT]},
        "tool_use",
    ),
]


@pytest.mark.parametrize(("body", "why"), REFUSED)
def test_what_anthropic_refuses_is_refused(
    provider: FakeProvider, claude: anthropic.Anthropic, body: dict[str, Any], why: str
) -> None:
    fields: Any = {"model": CLAUDE, "messages": PROMPT, "max_tokens": 9, **body}

    with pytest.raises(anthropic.BadRequestError, match=why):
        claude.messages.create(**fields)


def test_anthropic_s_asynchronous_sdk_reads_a_reply(provider: FakeProvider) -> None:
    async def main() -> str:
        async with anthropic.AsyncAnthropic(api_key="k", base_url=provider.anthropic_url) as client:
            async with client.messages.stream(
                model=CLAUDE, messages=PROMPT, max_tokens=9
            ) as stream:
                return await stream.get_final_text()

    provider.reply("hello there")
    assert asyncio.run(main()) == "hello there"


# -- Gemini ------------------------------------------------------------------------------


def test_google_s_sdk_reads_thoughts_text_and_calls(
    provider: FakeProvider, gemini: genai.Client
) -> None:
    calls = [("f", {"a": 1}), ("g", {})]
    provider.reply(FakeReply("Look.", reasoning="hm hm", tool_calls=calls))

    chunks = generated(gemini)

    parts = [part for chunk in chunks for part in chunk.candidates[0].content.parts]
    assert "".join(part.text for part in parts if part.thought) == "hm hm"
    assert "".join(part.text or "" for part in parts if not part.thought) == "Look."
    asked = [part for part in parts if part.function_call]
    assert [(one.function_call.name, one.function_call.args) for one in asked] == calls
    assert [bool(one.thought_signature) for one in asked] == [True, False]
    assert chunks[-1].candidates[0].finish_reason == "STOP"
    assert chunks[-1].usage_metadata.thoughts_token_count > 0


def test_google_s_sdk_reads_one_body(provider: FakeProvider, gemini: genai.Client) -> None:
    provider.reply(FakeReply("hi there", finish_reason="length"))

    answer = gemini.models.generate_content(model="gemini-3-pro", contents="hello")

    assert answer.text == "hi there"
    assert answer.candidates is not None
    assert answer.candidates[0].finish_reason == "MAX_TOKENS"
    counted = gemini.models.count_tokens(model="gemini-3-pro", contents="hello")
    assert (counted.total_tokens or 0) > 0


@pytest.mark.parametrize(
    ("fault", "raised"),
    [
        ("reset", httpx2.ReadError),
        ("truncate", httpx2.RemoteProtocolError),
        ("error", google_errors.ServerError),
        ("reset_before", httpx2.HTTPError),
    ],
)
def test_a_fault_shows_to_google_s_sdk_as_it_does_in_life(
    provider: FakeProvider, gemini: genai.Client, fault: Any, raised: type[Exception]
) -> None:
    provider.reply(FakeReply("one two three", fault=fault, at=1))

    with pytest.raises(raised):
        generated(gemini)


@pytest.mark.parametrize(
    ("status", "raised"),
    [(400, google_errors.ClientError), (429, google_errors.ClientError),
     (503, google_errors.ServerError)],
)  # fmt: skip
def test_an_error_status_is_google_s(
    provider: FakeProvider, gemini: genai.Client, status: int, raised: type[Exception]
) -> None:
    provider.reply(FakeReply(status=status, retry_after=3))

    with pytest.raises(raised) as caught:
        generated(gemini)

    assert caught.value.code == status  # type: ignore[attr-defined]


ASK: Any = {"role": "user", "parts": [{"text": "hello"}]}
CALL: Any = {"functionCall": {"name": "f", "args": {}, "id": "1"}}
SAID: Any = {"functionResponse": {"name": "f", "id": "1", "response": {"output": 1}}}


@pytest.mark.parametrize(
    ("contents", "why"),
    [
        ([ASK, {"role": "model", "parts": [{"text": "hi"}]}], "ends with a user role"),
        ([{"role": "user", "parts": [{"text": ""}]}], "'data' must have"),
        ([ASK, {"role": "model", "parts": [CALL]}, ASK], "number of function response"),
        ([ASK, {"role": "model", "parts": [CALL]}, {"role": "user", "parts": [SAID]}], "signature"),
        (
            [ASK, {"role": "model", "parts": [{**CALL, "thoughtSignature": "Zm9yZ2Vk"}]},
             {"role": "user", "parts": [SAID]}],
            "Corrupted",
        ),
    ],
)  # fmt: skip
def test_what_gemini_refuses_is_refused(
    provider: FakeProvider, contents: list[Any], why: str
) -> None:
    address = f"{provider.gemini_url}/v1beta/models/gemini-3-pro:generateContent"

    answer = httpx2.post(address, json={"contents": contents})

    assert answer.status_code == 400
    assert why in answer.json()["error"]["message"]


def test_google_s_asynchronous_sdk_reads_a_reply(provider: FakeProvider) -> None:
    async def main() -> str:
        async with httpx2.AsyncClient() as http:
            return await ask(http)

    async def ask(http: httpx2.AsyncClient) -> str:
        client = genai.Client(
            api_key="k",
            http_options=genai.types.HttpOptions(
                base_url=provider.gemini_url, httpx_async_client=http
            ),
        )
        said = ""
        stream = await client.aio.models.generate_content_stream(
            model="gemini-3-pro",
            contents="hello",
            config=genai.types.GenerateContentConfig(automatic_continuation=False),
        )
        async for chunk in stream:
            said += chunk.text or ""
        client.close()
        return said

    provider.reply("hello there")
    assert asyncio.run(main()) == "hello there"
