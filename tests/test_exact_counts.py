"""Asking the provider how many tokens a call will take, over HTTP on this machine."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterator
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import anthropic
import openai
import pytest
from four_apis import APIS, model
from google import genai

from contextwindow import AnthropicModel, Model, OpenAIResponsesModel, Record, RecordType
from contextwindow.errors import (
    AuthenticationFailed,
    InvalidRequest,
    ModelError,
    ModelTimeout,
    Overloaded,
    RateLimited,
)
from contextwindow.models.base import CallOptions, ResponseFormat
from contextwindow.models.gemini_typed import to_be_counted
from contextwindow.testing import FakeProvider, FakeReply, ScriptedModel

COUNTING = tuple(api for api in APIS if api != "openai-chat")
PATHS = {
    "openai-responses": "/v1/responses/input_tokens",
    "anthropic": "/v1/messages/count_tokens",
    "gemini": "/v1/models/gemini-3-pro:countTokens",
}
SECRET = "sk-a-secret-key-of-some-length"
TOOL = SimpleNamespace(
    name="weather",
    description="Tells the weather",
    parameters={"type": "object", "properties": {"city": {"type": "string"}}},
)
EVERYTHING = CallOptions(
    temperature=0.5,
    max_output_tokens=2_000,
    reasoning="low",
    tools=(TOOL,),
    tool_choice="auto",
    response_format=ResponseFormat(
        name="answer",
        schema={
            "type": "object",
            "properties": {"a": {"type": "string"}},
            "required": ["a"],
            "additionalProperties": False,
        },
    ),
)
Counts = Callable[..., int | None]


@pytest.fixture
def provider() -> Iterator[FakeProvider]:
    with FakeProvider() as running:
        yield running


@pytest.fixture(params=["blocking", "on a loop"])
def count(request: pytest.FixtureRequest) -> Counts:
    """Counts in one of the two ways, and closes the model."""

    def blocking(asked: Model, *arguments: Any, **options: Any) -> int | None:
        try:
            return asked.count_tokens(*arguments, **options)
        finally:
            asked.close()

    async def waiting(asked: Model, counted: Awaitable[int | None]) -> int | None:
        try:
            return await counted
        finally:
            await asked.aclose()

    def on_a_loop(asked: Model, *arguments: Any, **options: Any) -> int | None:
        return asyncio.run(waiting(asked, asked.count_tokens_async(*arguments, **options)))

    return blocking if request.param == "blocking" else on_a_loop


def records(*texts: str) -> list[Record]:
    kinds = (RecordType.PROMPT, RecordType.MODEL_RESPONSE)
    said = [(kinds[number % 2], text) for number, text in enumerate(texts)]
    return [
        Record(
            id=number,
            context_id="c",
            source=kind,
            content=text,
            timestamp=datetime(2026, 1, 1, tzinfo=UTC),
        )
        for number, (kind, text) in enumerate([(RecordType.SYSTEM_PROMPT, "Be brief."), *said])
    ]


@pytest.mark.parametrize("api", COUNTING)
def test_the_provider_counts_what_would_be_sent(
    api: str, provider: FakeProvider, count: Counts
) -> None:
    few = count(model(api, provider), records("Hello"), CallOptions())
    more = count(model(api, provider), records("Hello", "Hi!", "And now?" * 40), CallOptions())

    assert few is not None
    assert more is not None
    assert 0 < few < more
    assert {one.path for one in provider.requests} == {PATHS[api]}
    assert "Be brief." in json.dumps(provider.requests[-1].body)


@pytest.mark.parametrize("api", COUNTING)
def test_tools_and_forms_are_counted_and_what_is_of_no_matter_left_out(
    api: str, provider: FakeProvider, count: Counts
) -> None:
    assert count(model(api, provider), records("Hello"), EVERYTHING)

    (asked,) = provider.requests
    sent = json.dumps(asked.body)
    assert "Tells the weather" in sent
    assert '"a"' in sent
    if api != "gemini":  # the whole request of a call is what it counts
        assert not asked.fields.keys() & {"max_tokens", "max_output_tokens", "stream", "store"}


def test_chat_completions_count_nothing(provider: FakeProvider, count: Counts) -> None:
    assert count(model("openai-chat", provider), records("Hello"), CallOptions()) is None
    assert provider.requests == []


def test_a_scripted_model_counts_nothing(count: Counts) -> None:
    assert count(ScriptedModel(["Fine."]), records("Hello"), CallOptions()) is None


@pytest.mark.parametrize(
    ("status", "expected", "retryable"),
    [
        (401, AuthenticationFailed, False),
        (403, AuthenticationFailed, False),
        (404, InvalidRequest, False),
        (429, RateLimited, True),
        (503, Overloaded, True),
    ],
)
@pytest.mark.parametrize("api", COUNTING)
def test_a_refusal_is_the_error_that_a_call_would_get(
    api: str,
    status: int,
    expected: type[ModelError],
    retryable: bool,
    provider: FakeProvider,
    count: Counts,
) -> None:
    provider.counting = FakeReply(status=status)

    with pytest.raises(expected) as caught:
        count(model(api, provider), records("Hello"), CallOptions())

    assert caught.value.status == status
    assert caught.value.retryable is retryable
    assert len(provider.requests) == 1


@pytest.mark.parametrize("api", COUNTING)
def test_no_key_is_in_the_message(api: str, provider: FakeProvider, count: Counts) -> None:
    provider.counting = FakeReply(status=401, message=f"Incorrect API key: {SECRET}")
    asked: Model
    match api:
        case "openai-responses":
            asked = OpenAIResponsesModel("gpt-5", base_url=provider.openai_url, api_key=SECRET)
        case "anthropic":
            asked = AnthropicModel(
                "claude-haiku-4-5", base_url=provider.anthropic_url, api_key=SECRET
            )
        case _:
            from contextwindow import GeminiModel

            asked = GeminiModel("gemini-3-pro", base_url=provider.gemini_url, api_key=SECRET)

    with pytest.raises(AuthenticationFailed) as caught:
        count(asked, records("Hello"), CallOptions())

    assert SECRET not in str(caught.value)
    assert SECRET not in repr(caught.value.__cause__)


@pytest.mark.parametrize("api", COUNTING)
def test_a_page_in_the_place_of_a_count_is_told_as_what_it_is(
    api: str, provider: FakeProvider, count: Counts
) -> None:
    provider.counting = FakeReply(fault="html")

    with pytest.raises(InvalidRequest, match="no count of tokens"):
        count(model(api, provider), records("Hello"), CallOptions())


@pytest.mark.parametrize("api", COUNTING)
def test_a_server_that_says_nothing_is_a_timeout(
    api: str, provider: FakeProvider, count: Counts
) -> None:
    provider.counting = FakeReply(fault="stall_before")

    with pytest.raises(ModelTimeout):
        count(model(api, provider), records("Hello"), CallOptions(), timeout=0.2)


@pytest.mark.parametrize("api", COUNTING)
def test_a_lost_connection_is_an_error_to_be_tried_again(
    api: str, provider: FakeProvider, count: Counts
) -> None:
    provider.counting = FakeReply(fault="reset_before")

    with pytest.raises(ModelError) as caught:
        count(model(api, provider), records("Hello"), CallOptions())

    assert caught.value.retryable


@pytest.mark.parametrize("api", COUNTING)
def test_counting_takes_no_reply_and_a_call_goes_on_as_before(
    api: str, provider: FakeProvider
) -> None:
    provider.reply("Fine.")
    asked = model(api, provider)

    assert asked.count_tokens(records("Hello"), CallOptions())
    request = asked.request(records("Hello"), CallOptions())
    decoder, source = asked.decoder(request), asked.open(request, timeout=None)
    items = []
    while (events := source.read()) is not None:
        items += [item for event in events for item in decoder.feed(event)]
    source.close()
    asked.close()

    assert "".join(getattr(item, "text", "") for item in items) == "Fine."


def test_the_callers_own_clients_count(provider: FakeProvider) -> None:
    openai_client = openai.OpenAI(api_key="k", base_url=provider.openai_url)
    claude_client = anthropic.Anthropic(api_key="k", base_url=provider.anthropic_url)
    google = genai.Client(api_key="k", http_options={"base_url": provider.gemini_url})
    from contextwindow import GeminiModel

    asked: list[Model] = [
        OpenAIResponsesModel("gpt-5", client=openai_client),
        AnthropicModel("claude-haiku-4-5", client=claude_client),
        GeminiModel("gemini-3-pro", client=google),
    ]
    for one in asked:
        assert one.count_tokens(records("Hello"), CallOptions())
        one.close()
    for client in (openai_client, claude_client, google):
        client.close()


def test_vertex_gets_the_fields_themselves_and_gemini_the_whole_request() -> None:
    body = {"contents": [1], "tools": [2], "toolConfig": {}, "generationConfig": {}}

    def client(vertexai: bool) -> Any:
        return SimpleNamespace(_api_client=SimpleNamespace(vertexai=vertexai))

    whole = {"generateContentRequest": {"model": "models/gemini-3-pro", **body}}
    assert to_be_counted(client(False), "gemini-3-pro", body) == whole
    fields = {name: value for name, value in body.items() if name != "toolConfig"}
    assert to_be_counted(client(True), "gemini-3-pro", body) == fields
