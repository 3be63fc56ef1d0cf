"""The fake provider, judged by the real SDK: it must take the fake for the service."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import httpx2
import openai
import pytest
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from openai.types.completion_usage import PromptTokensDetails
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter

from contextwindow import ContextWindow, OpenAIChatModel, OpenAIResponsesModel, Resumed
from contextwindow.errors import ConfigError, ModelTimeout
from contextwindow.records import Usage
from contextwindow.testing import FakeProvider, FakeReply

PROMPT: Any = [{"role": "user", "content": "hello"}]
EVENT: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)
ONE_TO_FIVE = "one two three four five"
LATE = defaultdict(lambda: 5.0, stall=0.2)
"""Seconds until a client gives up: enough for a slow machine to send what comes before."""


@pytest.fixture
def provider() -> Iterator[FakeProvider]:
    with FakeProvider() as provider:
        yield provider


@pytest.fixture
def client(provider: FakeProvider) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(
        api_key="sk-secret", base_url=provider.openai_url, max_retries=0, timeout=5
    ) as client:
        yield client


def chat(client: openai.OpenAI, **options: Any) -> list[ChatCompletionChunk]:
    options = {"stream_options": {"include_usage": True}, **options}
    stream = client.chat.completions.create(
        model="fake-model", messages=PROMPT, stream=True, **options
    )
    return list(stream)


def said(chunks: list[ChatCompletionChunk]) -> str:
    return "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)


def respond(client: openai.OpenAI, **options: Any) -> list[Any]:
    return list(client.responses.create(model="fake-model", input=PROMPT, stream=True, **options))


def text_of(events: list[Any]) -> str:
    return "".join(e.delta for e in events if e.type == "response.output_text.delta")


def until_error(stream: Any, received: list[Any]) -> None:
    with stream:
        for event in stream:
            received.append(event)  # noqa: PERF402 - what came before the error counts


class TestChat:
    def test_a_stream_has_text_reason_and_usage(
        self, provider: FakeProvider, client: openai.OpenAI
    ) -> None:
        provider.reply(ONE_TO_FIVE, usage=Usage(10, 5, 3, 0, 2))

        chunks = chat(client)

        assert said(chunks) == ONE_TO_FIVE
        assert chunks[-2].choices[0].finish_reason == "stop"
        assert chunks[-1].choices == []
        assert chunks[-1].usage is not None
        assert chunks[-1].usage.total_tokens == 15
        assert chunks[-1].usage.prompt_tokens_details == PromptTokensDetails(
            cached_tokens=3, audio_tokens=0
        )

    def test_chunks_are_as_given(self, provider: FakeProvider, client: openai.OpenAI) -> None:
        provider.reply(FakeReply(chunks=["a", "b\n", " 🎉 "]))

        deltas = [c.choices[0].delta.content for c in chat(client) if c.choices]

        assert [text for text in deltas if text] == ["a", "b\n", " 🎉 "]

    def test_tool_calls_and_reasoning_arrive_in_pieces(
        self, provider: FakeProvider, client: openai.OpenAI
    ) -> None:
        calls: Any = [("weather", {"city": "Paris", "days": 3}), ("time", "{}", "call_mine")]
        provider.reply(FakeReply(reasoning="let me see", tool_calls=calls))

        chunks = chat(client)

        deltas = [c.choices[0].delta for c in chunks if c.choices]
        assert "".join(getattr(d, "reasoning_content", "") for d in deltas) == "let me see"
        pieces = [call for d in deltas for call in d.tool_calls or ()]
        assert [p.id for p in pieces if p.id] == ["call_1_1", "call_mine"]
        first = [p.function.arguments or "" for p in pieces if p.index == 0 and p.function]
        assert len(first) > 2
        assert "".join(first) == '{"city": "Paris", "days": 3}'
        assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "tool_calls"

    def test_a_whole_body_is_a_completion(
        self, provider: FakeProvider, client: openai.OpenAI
    ) -> None:
        provider.reply(FakeReply("hi", tool_calls=[("f", {})], refusal="no"))

        whole = client.chat.completions.create(model="fake-model", messages=PROMPT)

        assert ChatCompletion.model_validate(whole.model_dump()) == whole
        assert whole.choices[0].message.content == "hi"
        assert whole.choices[0].message.refusal == "no"
        assert whole.choices[0].finish_reason == "tool_calls"

    def test_the_sdks_accumulating_stream_takes_it(
        self, provider: FakeProvider, client: openai.OpenAI
    ) -> None:
        provider.reply(FakeReply("thinking", tool_calls=[("f", {"a": 1})]))

        with client.chat.completions.stream(model="fake-model", messages=PROMPT) as stream:
            whole = stream.get_final_completion()

        calls = whole.choices[0].message.tool_calls
        assert calls is not None
        assert [call.function.arguments for call in calls] == ['{"a": 1}']

    def test_obfuscation_and_usage_come_only_when_wanted(
        self, provider: FakeProvider, client: openai.OpenAI
    ) -> None:
        plain = chat(client, stream_options={"include_obfuscation": False})

        assert all(c.obfuscation is None for c in plain)
        assert all(c.usage is None for c in plain)
        assert chat(client)[1].obfuscation

    def test_lone_surrogates_travel_as_escapes(
        self, provider: FakeProvider, client: openai.OpenAI
    ) -> None:
        provider.reply(FakeReply(chunks=["\ud83d", "\ude00"]))

        raw = httpx2.post(
            f"{provider.openai_url}/chat/completions", json={"messages": PROMPT, "stream": True}
        )

        assert b'"content":"\\ud83d"' in raw.content


class TestResponses:
    def test_every_event_is_one_that_the_sdk_knows(
        self, provider: FakeProvider, client: openai.OpenAI
    ) -> None:
        reply = FakeReply(
            ONE_TO_FIVE,
            reasoning="let me see",
            refusal="but no",
            tool_calls=[("weather", {"city": "Paris"})],
        )
        provider.reply(reply)

        events = respond(client, include=["reasoning.encrypted_content"])

        for event in events:
            EVENT.validate_python(event.model_dump(), strict=False)
        assert [e.sequence_number for e in events] == list(range(len(events)))
        assert text_of(events) == ONE_TO_FIVE
        Response.model_validate(events[-1].response.model_dump())
        reasoning, message, call = events[-1].response.output
        assert reasoning.summary[0].text == "let me see"
        assert reasoning.encrypted_content == "encrypted-1"
        assert [part.type for part in message.content] == ["output_text", "refusal"]
        assert call.arguments == '{"city": "Paris"}'

    def test_the_order_of_events_is_the_recorded_one(
        self, provider: FakeProvider, client: openai.OpenAI
    ) -> None:
        provider.reply(FakeReply("hi", reasoning="hm"))

        assert [e.type.removeprefix("response.") for e in respond(client)] == [
            "created",
            "in_progress",
            "output_item.added",
            "reasoning_summary_part.added",
            "reasoning_summary_text.delta",
            "reasoning_summary_text.done",
            "reasoning_summary_part.done",
            "output_item.done",
            "output_item.added",
            "content_part.added",
            "output_text.delta",
            "output_text.done",
            "content_part.done",
            "output_item.done",
            "completed",
        ]

    def test_a_whole_body_is_a_response(
        self, provider: FakeProvider, client: openai.OpenAI
    ) -> None:
        provider.reply(FakeReply("hi", finish_reason="length"))

        whole = client.responses.create(model="fake-model", input="hello")

        assert whole.output_text == "hi"
        assert whole.status == "incomplete"
        assert whole.incomplete_details is not None
        assert whole.incomplete_details.reason == "max_output_tokens"

    def test_known_responses_can_be_gone_on_from(
        self, provider: FakeProvider, client: openai.OpenAI
    ) -> None:
        first = client.responses.create(model="fake-model", input="hello")

        second = client.responses.create(
            model="fake-model", input="and?", previous_response_id=first.id
        )

        assert second.previous_response_id == first.id
        provider.forget(first.id)
        with pytest.raises(openai.BadRequestError) as caught:
            client.responses.create(model="m", input="?", previous_response_id=first.id)
        assert caught.value.code == "previous_response_not_found"

    @pytest.mark.parametrize("fault", ["reset", "eof", "stall"])
    @pytest.mark.parametrize("at", [0, 3, None])
    def test_a_background_stream_goes_on_exactly(
        self, provider: FakeProvider, client: openai.OpenAI, fault: Any, at: Any
    ) -> None:
        provider.reply(FakeReply(ONE_TO_FIVE, reasoning="a b", fault=fault, at=at))
        stream = client.responses.create(
            model="fake-model", input="?", background=True, stream=True, timeout=LATE[fault]
        )
        seen: list[Any] = []
        if fault == "eof":
            until_error(stream, seen)
        else:
            with pytest.raises(openai.APIConnectionError):
                until_error(stream, seen)

        rest = client.responses.retrieve(
            seen[0].response.id, stream=True, starting_after=seen[-1].sequence_number
        )
        events = [*seen, *rest]

        assert text_of(events) == ONE_TO_FIVE
        assert [e.sequence_number for e in events] == list(range(len(events)))
        assert events[-1].type == "response.completed"

    def test_a_background_response_must_be_stored(
        self, provider: FakeProvider, client: openai.OpenAI
    ) -> None:
        with pytest.raises(openai.BadRequestError, match="store=true"):
            respond(client, background=True, store=False)

    def test_a_forgotten_stream_is_not_found(
        self, provider: FakeProvider, client: openai.OpenAI
    ) -> None:
        provider.reply(FakeReply("hi there", fault="eof", at=1, forget=True))
        events = respond(client, background=True)

        with pytest.raises(openai.NotFoundError):
            client.responses.retrieve(events[0].response.id, stream=True, starting_after=1)


@pytest.mark.parametrize("call", [chat, respond])
class TestFaults:
    """What FACTS.md says that the SDK does."""

    @pytest.mark.parametrize(
        "fault", ["reset", "truncate", "reset_before", "stall", "stall_before"]
    )
    def test_a_broken_connection_is_an_error(
        self, provider: FakeProvider, client: openai.OpenAI, call: Any, fault: Any
    ) -> None:
        provider.reply(ONE_TO_FIVE, fault=fault, at=2)

        with pytest.raises(openai.APIConnectionError):
            call(client, timeout=0.05)

    @pytest.mark.parametrize("fault", ["eof", "eof_mid", "eof_close"])
    @pytest.mark.parametrize("at", [0, 2, None])
    def test_a_clean_end_passes_in_silence(
        self, provider: FakeProvider, client: openai.OpenAI, call: Any, fault: Any, at: Any
    ) -> None:
        provider.reply(ONE_TO_FIVE, fault=fault, at=at)

        events = call(client)

        text = said(events) if call is chat else text_of(events)
        assert text == " ".join(ONE_TO_FIVE.split()[:at])

    def test_only_the_last_marker_is_missing(
        self, provider: FakeProvider, client: openai.OpenAI, call: Any
    ) -> None:
        provider.reply(ONE_TO_FIVE, fault="no_done")

        events = call(client)

        if call is chat:
            assert events[-2].choices[0].finish_reason == "stop"
        else:
            assert events[-1].type == "response.output_item.done"

    def test_an_error_in_the_stream(
        self, provider: FakeProvider, client: openai.OpenAI, call: Any
    ) -> None:
        provider.reply(ONE_TO_FIVE, fault="error", at=2, message="boom")

        if call is chat:
            with pytest.raises(openai.APIError, match="boom") as caught:
                call(client)
            assert not isinstance(caught.value, openai.APIStatusError)
        else:
            assert call(client)[-1].message == "boom"

    def test_an_event_that_is_no_json(
        self, provider: FakeProvider, client: openai.OpenAI, call: Any
    ) -> None:
        provider.reply(ONE_TO_FIVE, fault="garbage", at=2)

        with pytest.raises(ValueError, match=r"(?i)json|expecting|EOF"):
            call(client)

    @pytest.mark.parametrize(
        ("status", "error"),
        [
            (400, openai.BadRequestError),
            (401, openai.AuthenticationError),
            (404, openai.NotFoundError),
            (429, openai.RateLimitError),
            (500, openai.InternalServerError),
            (503, openai.InternalServerError),
            (529, openai.InternalServerError),
        ],
    )
    def test_an_http_error_comes_before_the_stream(
        self,
        provider: FakeProvider,
        client: openai.OpenAI,
        call: Any,
        status: int,
        error: type[openai.APIStatusError],
    ) -> None:
        provider.reply(FakeReply(status=status, code="my_code", retry_after="7"))

        with pytest.raises(error) as caught:
            call(client)

        assert caught.value.code == "my_code"
        assert caught.value.response.headers["retry-after"] == "7"
        assert caught.value.request_id == "req_1"
        assert call(client)

    def test_every_error_of_the_queue_is_used_once(
        self, provider: FakeProvider, client: openai.OpenAI, call: Any
    ) -> None:
        provider.reply(FakeReply(status=429, retry_after=0.001))
        provider.reply(FakeReply(status=500, retry_after=0.001))
        provider.reply("at last")

        events = call(client.with_options(max_retries=2))

        assert (said(events) if call is chat else text_of(events)) == "at last"
        assert len(provider.requests) == 3


def test_a_reset_takes_nothing_from_what_was_sent(
    provider: FakeProvider, client: openai.OpenAI
) -> None:
    words = " ".join(["word"] * 4_000)
    provider.reply(words, fault="reset")
    received: list[Any] = []
    stream = client.chat.completions.create(model="m", messages=PROMPT, stream=True)

    with pytest.raises(openai.APIConnectionError):
        until_error(stream, received)

    assert said(received) == words


def test_a_stream_request_may_get_one_body_or_a_page(
    provider: FakeProvider, client: openai.OpenAI
) -> None:
    provider.reply("all at once", fault="json_body")
    provider.reply("", fault="html")
    url, body = f"{provider.openai_url}/chat/completions", {"messages": PROMPT, "stream": True}

    whole, page = httpx2.post(url, json=body), httpx2.post(url, json=body)

    assert whole.json()["choices"][0]["message"]["content"] == "all at once"
    assert page.headers["content-type"] == "text/html"
    assert page.status_code == 200


@pytest.mark.parametrize("fault", ["reset", "truncate", "eof", "garbage", "error"])
def test_a_body_without_a_stream_breaks_as_well(
    provider: FakeProvider, client: openai.OpenAI, fault: Any
) -> None:
    provider.reply(ONE_TO_FIVE, fault=fault)

    if fault == "error":
        failed = client.responses.create(model="m", input="?")
        assert failed.status == "failed"
        assert failed.error is not None
        assert failed.error.code == "server_error"
        return
    with pytest.raises((openai.APIConnectionError, ValueError)):
        client.responses.create(model="m", input="?")


@pytest.mark.parametrize(("echo", "sent"), [(0, " three four five"), (4, " two three four five")])
def test_a_continued_reply_says_what_is_missing(
    provider: FakeProvider, client: openai.OpenAI, echo: int, sent: str
) -> None:
    provider.default = FakeReply(ONE_TO_FIVE, continues=True, echo=echo)
    begun: Any = [*PROMPT, {"role": "assistant", "content": "one two"}]
    parts: Any = [{"role": "assistant", "content": [{"type": "output_text", "text": "one two"}]}]

    whole = client.chat.completions.create(model="m", messages=[*begun, *PROMPT])

    assert whole.choices[0].message.content == sent
    assert client.responses.create(model="m", input=[*parts, *PROMPT]).output_text == sent
    assert client.responses.create(model="m", input="new").output_text == ONE_TO_FIVE


def test_a_new_turn_is_no_continuation(provider: FakeProvider, client: openai.OpenAI) -> None:
    provider.default = FakeReply(ONE_TO_FIVE, continues=True)
    history: Any = [*PROMPT, {"role": "assistant", "content": ONE_TO_FIVE}, *PROMPT]

    whole = client.chat.completions.create(model="m", messages=history)

    assert whole.choices[0].message.content == ONE_TO_FIVE


def test_requests_are_kept_without_keys(provider: FakeProvider, client: openai.OpenAI) -> None:
    client.chat.completions.create(model="fake-model", messages=PROMPT)
    client.models.list()

    first, second = provider.requests
    assert (first.method, first.path) == ("POST", "/v1/chat/completions")
    assert first.body["messages"] == PROMPT
    assert first.headers["authorization"] == "Bearer ***"
    assert "sk-secret" not in repr(provider.requests)
    assert second.path == "/v1/models"


def test_connections_are_kept_alive_and_ids_repeat_in_every_run() -> None:
    ids: list[Any] = []
    for _ in range(2):
        with FakeProvider() as provider, httpx2.Client(base_url=provider.openai_url) as http:
            body = {"messages": PROMPT, "model": "m"}
            answers = [http.post("/chat/completions", json=body) for _ in range(2)]
            ids.append([(a.json()["id"], a.json()["created"]) for a in answers])
            ids[-1].append([a.headers["x-request-id"] for a in answers])
    assert ids[0] == ids[1]
    assert ids[0][2] == ["req_1", "req_2"]


def test_many_clients_are_served_while_one_stream_stalls(provider: FakeProvider) -> None:
    provider.reply("stalls", fault="stall")

    async def ask(client: openai.AsyncOpenAI) -> str:
        stream = await client.chat.completions.create(model="m", messages=PROMPT, stream=True)
        return "".join([c.choices[0].delta.content or "" async for c in stream])

    async def main() -> list[str]:
        async with openai.AsyncOpenAI(
            api_key="k", base_url=provider.openai_url, max_retries=0
        ) as client:
            stalled = await client.chat.completions.create(model="m", messages=PROMPT, stream=True)
            texts = await asyncio.gather(*(ask(client) for _ in range(20)))
            await stalled.close()
            return texts

    provider.default = FakeReply(ONE_TO_FIVE, pace=0.001)
    assert asyncio.run(main()) == [ONE_TO_FIVE] * 20


def test_async_responses_stream(provider: FakeProvider) -> None:
    async def main() -> list[Any]:
        async with openai.AsyncOpenAI(api_key="k", base_url=provider.openai_url) as client:
            stream = await client.responses.create(model="m", input="?", stream=True)
            return [event async for event in stream]

    provider.reply(ONE_TO_FIVE)
    assert text_of(asyncio.run(main())) == ONE_TO_FIVE


def test_closing_ends_stalled_streams_and_the_thread() -> None:
    provider = FakeProvider().start()
    provider.reply("never ends", fault="stall", at=1)
    with openai.OpenAI(api_key="k", base_url=provider.openai_url, max_retries=0) as client:
        stream = client.chat.completions.create(model="m", messages=PROMPT, stream=True)
        next(iter(stream))

        provider.close()
        provider.close()

        with pytest.raises(openai.APIConnectionError):
            until_error(stream, [])
    assert "fake-provider" not in [thread.name for thread in threading.enumerate()]
    with pytest.raises(RuntimeError, match="with block"):
        _ = provider.url


def test_a_client_that_leaves_does_no_harm(provider: FakeProvider, client: openai.OpenAI) -> None:
    provider.reply(FakeReply(ONE_TO_FIVE * 50, pace=0.001))
    with client.chat.completions.create(model="m", messages=PROMPT, stream=True) as stream:
        next(iter(stream))

    assert said(chat(client)).startswith("This is a reply")


@pytest.mark.parametrize("target", [b"nonsense\r\n\r\n", b"GET / HTTP/1.1\r\nno colon\r\n\r\n"])
def test_what_is_no_http_is_refused(provider: FakeProvider, target: bytes) -> None:
    import socket

    port = int(provider.url.rpartition(":")[2])
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(target)
        assert connection.recv(100).startswith(b"HTTP/1.1 400 ")


@pytest.mark.parametrize("path", ["/v1/unknown", "/elsewhere"])
def test_unknown_paths_are_not_found(provider: FakeProvider, path: str) -> None:
    assert httpx2.get(provider.url + path).status_code == 404


@pytest.mark.parametrize("wrong", [{"fault": "fire"}, {"pace": -1}, {"at": -1}, {"status": 200}])
def test_replies_that_make_no_sense_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        FakeReply("hi", **wrong)


def test_it_runs_as_a_process_of_its_own() -> None:
    command = [sys.executable, "-W", "error", "-m", "contextwindow.testing.fake_provider"]
    options = ["--text", ONE_TO_FIVE, "--fault", "eof", "--at", "2"]
    with subprocess.Popen([*command, *options], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            word, port = process.stdout.readline().split()
            assert word == "PORT"
            url = f"http://127.0.0.1:{port}/v1"
            with openai.OpenAI(api_key="k", base_url=url) as client:
                texts = [said(chat(client)) for _ in range(2)]
        finally:
            process.kill()
    assert texts == ["one two", ONE_TO_FIVE]


@pytest.mark.parametrize("kind", [OpenAIChatModel, OpenAIResponsesModel])
@pytest.mark.parametrize("fault", ["reset", "truncate", "eof", "eof_mid", "eof_close", "stall"])
@pytest.mark.parametrize("echo", [0, 9])
def test_a_resumed_reply_is_one_text(
    provider: FakeProvider, kind: Any, fault: Any, echo: int
) -> None:
    provider.default = FakeReply(ONE_TO_FIVE, continues=True, echo=echo)
    provider.reply(FakeReply(ONE_TO_FIVE, fault=fault, at=3))
    model = kind("fake-model", base_url=provider.openai_url, api_key="test")

    with ContextWindow(model=model) as window:
        window.add_prompt("count")
        if fault == "stall":
            with pytest.raises(ModelTimeout):
                window.call_model(timeout=1.0)
            reply = window.resume()
        else:
            reply = window.call_model()
    model.close()

    assert reply.text == ONE_TO_FIVE


@pytest.mark.parametrize(("forget", "strategy"), [(False, "cursor"), (True, "continue")])
def test_a_background_reply_resumes_by_cursor_while_the_server_has_it(
    provider: FakeProvider, forget: bool, strategy: str
) -> None:
    provider.default = FakeReply(ONE_TO_FIVE, continues=True)
    provider.reply(FakeReply(ONE_TO_FIVE, fault="reset", at=3, forget=forget))
    url = provider.openai_url
    model = OpenAIResponsesModel("fake-model", base_url=url, api_key="test", background=True)

    with ContextWindow(model=model) as window:
        window.add_prompt("count")
        with window.call_model_streaming() as stream:
            resumed = [chunk.strategy for chunk in stream if isinstance(chunk, Resumed)]
    model.close()

    assert stream.reply.text == ONE_TO_FIVE
    assert resumed[-1] == strategy
