from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
import traceback
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import httpx2
import openai
import pytest
from decoding import decode
from openai_server import Answer, serving

from contextwindow.errors import (
    AuthenticationFailed,
    ConfigError,
    ContentBlocked,
    ContextLengthExceeded,
    InvalidRequest,
    ModelError,
    ModelTimeout,
    Overloaded,
    RateLimited,
    StreamInterrupted,
)
from contextwindow.models.base import Body, CallOptions, Request
from contextwindow.models.catalog import context_limit, model_from_string, price
from contextwindow.models.failures import retry_after
from contextwindow.models.openai_chat import OpenAIChatModel
from contextwindow.models.openai_errors import MAPPED, reported_error, translated
from contextwindow.models.openai_responses import OpenAIResponsesModel
from contextwindow.models.sse import DONE
from contextwindow.records import Usage

KEY = "sk-proj-secret0123456789"
HELLO = b'data: {"choices": [{"index": 0, "delta": {"content": "hello"}}]}\n\n'
JSON = {"content-type": "application/json"}


def chat(url: str, **options: Any) -> OpenAIChatModel:
    return OpenAIChatModel("m", api_key=KEY, base_url=url, **options)


def read_blocking(model: Any, request: Request, timeout: float | None) -> Iterator[list[Any]]:
    source = model.open(request, timeout=timeout)
    try:
        while (events := source.read()) is not None:
            yield events
    finally:
        source.close()
        source.close()
        model.close()


async def read_async(model: Any, request: Request, timeout: float | None, got: list[Any]) -> None:
    try:
        source = await model.open_async(request, timeout=timeout)
        try:
            while (events := await source.read()) is not None:
                got.extend(events)
        finally:
            await source.close()
            await source.close()
    finally:
        await model.aclose()


@pytest.fixture(params=["blocking", "async"])
def read(request: pytest.FixtureRequest) -> Any:
    """Reads all events of a call, by either way of waiting: ``(events, error)``."""

    def run(model: Any, timeout: float | None = 5) -> tuple[list[Any], ModelError | None]:
        got: list[Any] = []
        asked = model.request([], CallOptions())
        try:
            if request.param == "async":
                asyncio.run(read_async(model, asked, timeout, got))
            else:
                for events in read_blocking(model, asked, timeout):
                    got.extend(events)
        except ModelError as error:
            return got, error
        finally:
            model.close()
        return got, None

    return run


def test_events_of_a_whole_stream_are_read(read: Any) -> None:
    with serving(Answer(HELLO + b"data: [DONE]\n\n")) as server:
        events, error = read(chat(server.url))

    assert error is None
    assert [event == DONE for event in events] == [False, True]
    assert server.requests[0]["body"]["stream"] is True


@pytest.mark.parametrize("end", ["reset", "cut"])
def test_a_connection_that_breaks_interrupts_and_keeps_what_came(read: Any, end: Any) -> None:
    """Fault 10: A connection that breaks interrupts."""
    with serving(Answer(HELLO, end=end)) as server:
        events, error = read(chat(server.url))

    assert isinstance(error, StreamInterrupted)
    assert error.retryable
    assert "127.0.0.1" in str(error)
    # A reset may overtake the bytes before it.
    assert len(events) == 1 or end == "reset"


def test_a_stall_times_out(read: Any) -> None:
    with serving(Answer(HELLO, end="stall")) as server:
        events, error = read(chat(server.url), timeout=0.2)

    assert isinstance(error, ModelTimeout)
    assert "0.2 s" in str(error)
    assert len(events) == 1


def test_a_server_that_never_answers_times_out(read: Any) -> None:
    with serving(Answer(silent=True)) as server:
        _, error = read(chat(server.url), timeout=0.2)

    assert isinstance(error, ModelTimeout)
    assert error.retryable


def test_the_client_s_own_timeout_holds_where_none_is_given(read: Any) -> None:
    with serving(Answer(HELLO, end="stall")) as server:
        _, error = read(chat(server.url, timeout=0.2), timeout=None)

    assert isinstance(error, ModelTimeout)


def test_a_reset_before_any_answer_may_be_tried_again(read: Any) -> None:
    with serving(Answer(silent=True, end="reset")) as server:
        _, error = read(chat(server.url))

    assert type(error) is ModelError
    assert error.retryable
    assert "no connection to 127.0.0.1" in str(error)


def test_the_sdk_makes_no_retries_of_its_own(read: Any) -> None:
    with serving(Answer(b"{}", status=500, headers=JSON)) as server:
        model = chat(server.url, max_retries=7)
        _, error = read(model)

    assert isinstance(error, Overloaded)
    assert model.max_retries == 7
    assert len(server.requests) == 1


def test_one_json_body_is_a_reply(read: Any) -> None:
    body = b'{"id": "r", "choices": [{"message": {"content": "hi"}, "finish_reason": "stop"}]}'
    with serving(Answer(body, headers=JSON)) as server:
        events, error = read(chat(server.url))
        plain, _ = read(chat(server.url, stream=False))

    assert error is None
    assert events == plain
    assert isinstance(events[0], Body)
    assert server.requests[0]["body"]["stream"] is True
    assert "stream" not in server.requests[1]["body"]


def test_a_page_of_html_is_a_clear_error(read: Any) -> None:
    """Fault 20: HTML with status 200 is a clear error."""
    page = Answer(b"<html>sign in</html>", headers={"content-type": "text/html"})
    with serving(page) as server:
        events, error = read(chat(server.url))

    assert isinstance(error, InvalidRequest)
    assert "text/html" in str(error)
    assert events == []


@pytest.mark.parametrize("api", [OpenAIChatModel, OpenAIResponsesModel])
@pytest.mark.parametrize("key", [KEY, "a key of another shape"])
def test_a_key_stands_in_no_message_and_no_traceback(read: Any, api: Any, key: str) -> None:
    """Fault 46: No key in any message or traceback."""
    said = f'{{"error": {{"message": "wrong key {key}", "code": "invalid_api_key"}}}}'.encode()
    with serving(Answer(said, status=401, headers=JSON)) as server:
        model = api("m", api_key=key, base_url=server.url)
        _, error = read(model)

    assert isinstance(error, AuthenticationFailed)
    assert key not in "".join(traceback.format_exception(error))
    assert key not in repr(model)


def test_abort_from_another_thread_ends_a_read_that_waits() -> None:
    with serving(Answer(HELLO, end="stall")) as server:
        model = chat(server.url)
        source = model.open(model.request([], CallOptions()), timeout=30)
        assert len(source.read() or ()) == 1
        timer = threading.Timer(0.05, source.abort)
        timer.start()

        with pytest.raises(StreamInterrupted, match="stopped"):
            source.read()
        timer.join()
        source.close()
        source.abort()
        model.close()


def test_abort_on_the_loop_ends_a_read_that_waits() -> None:
    async def run(url: str) -> None:
        model = chat(url)
        source = await model.open_async(model.request([], CallOptions()), timeout=30)
        assert len(await source.read() or ()) == 1
        asyncio.get_running_loop().call_later(0.05, source.abort)
        with pytest.raises(StreamInterrupted, match="stopped"):
            await source.read()
        await source.close()
        await model.aclose()

    with serving(Answer(HELLO, end="stall")) as server:
        asyncio.run(run(server.url))


def test_a_task_that_is_cancelled_closes_the_connection() -> None:
    async def run(url: str) -> None:
        model = chat(url)
        source = await model.open_async(model.request([], CallOptions()), timeout=30)
        await source.read()
        task = asyncio.create_task(source.read())
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await source.close()
        assert await source.read() is None
        await model.aclose()

    with serving(Answer(HELLO, end="stall")) as server:
        asyncio.run(run(server.url))


def test_one_model_serves_several_event_loops_in_turn() -> None:
    async def run(model: OpenAIChatModel) -> list[Any]:
        got: list[Any] = []
        await read_async(model, model.request([], CallOptions()), 5, got)
        return got

    with serving(Answer(HELLO)) as server:
        model = chat(server.url)

        assert [len(asyncio.run(run(model))) for _ in range(3)] == [1, 1, 1]


def test_events_in_front_of_a_broken_one_are_read_first(read: Any) -> None:
    with serving(Answer(HELLO + b'data: {"cut\n\n')) as server:
        events, error = read(chat(server.url))

    assert len(events) == 1
    assert isinstance(error, StreamInterrupted)


# -- mapping ---------------------------------------------------------------------------------


def status_error(status: int, body: Any = None, **headers: str) -> Exception:
    fields = {name.replace("_", "-"): value for name, value in headers.items()}
    request = httpx2.Request("POST", "http://h", headers={"authorization": f"Bearer {KEY}"})
    response = httpx2.Response(status, headers=fields, request=request)
    client = openai.OpenAI(api_key=KEY)
    error = client._make_status_error("said", body={"error": body}, response=response)
    client.close()
    return error


def mapped(error: Exception, *, reading: bool = False) -> ModelError:
    return translated(error, "m", "h", reading=reading)


@pytest.mark.parametrize(
    ("status", "code", "message", "expected", "retryable"),
    [
        (400, None, "bad", InvalidRequest, False),
        (400, "context_length_exceeded", "", ContextLengthExceeded, False),
        (400, None, "This model's maximum context length is 8192", ContextLengthExceeded, False),
        (400, None, "the request exceeds the available context size", ContextLengthExceeded, False),
        (400, None, "outside of the context window", ContextLengthExceeded, False),
        (400, "content_filter", "", ContentBlocked, False),
        (400, "content_policy_violation", "", ContentBlocked, False),
        (401, "invalid_api_key", "", AuthenticationFailed, False),
        (403, None, "", AuthenticationFailed, False),
        (404, "model_not_found", "", InvalidRequest, False),
        (408, None, "", Overloaded, True),
        (409, None, "", Overloaded, True),
        (413, None, "", ContextLengthExceeded, False),
        (422, None, "", InvalidRequest, False),
        (429, "rate_limit_exceeded", "", RateLimited, True),
        (429, "insufficient_quota", "", RateLimited, False),
        (500, None, "", Overloaded, True),
        (503, None, "", Overloaded, True),
        (529, None, "", Overloaded, True),
    ],
)
def test_status_errors_say_what_the_caller_can_do(
    status: int, code: str | None, message: str, expected: type, retryable: bool
) -> None:
    """Fault 14: Statuses are mapped, and what makes no sense is not retried."""
    error = mapped(status_error(status, {"code": code, "message": message}))

    assert type(error) is expected
    assert (error.status, error.code, error.provider) == (status, code, "openai")
    assert error.retryable is retryable
    assert str(error).startswith("m: ")


@pytest.mark.parametrize("body", [None, "text", ["list"], {"message": {"a": 1}, "code": [1]}])
def test_error_bodies_of_any_shape_are_read(body: Any) -> None:
    assert isinstance(mapped(status_error(400, body)), InvalidRequest)


def test_the_server_may_say_whether_to_try_again() -> None:
    assert not mapped(status_error(503, x_should_retry="false")).retryable
    assert mapped(status_error(400, x_should_retry="true")).retryable


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"retry-after": "2"}, 2.0),
        ({"retry-after": "0.5"}, 0.5),
        ({"retry-after-ms": "1500", "retry-after": "9"}, 1.5),
        ({"retry-after": "-3"}, 0.0),
        ({"retry-after": "inf"}, None),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "Fri, 20 Nov 2026 12:00:30 GMT"}, 30.0),
        ({"retry-after": "Fri, 20 Nov 2026 11:00:00 GMT"}, 0.0),
        (
            {
                "retry-after": "Fri, 20 Nov 2026 13:00:10 GMT",
                "date": "Fri, 20 Nov 2026 13:00:00 GMT",
            },
            10.0,
        ),
    ],
)
def test_the_wait_is_read_from_every_form(headers: dict[str, str], seconds: float | None) -> None:
    """Fault 12: `retry-after` in seconds, in milliseconds and as a date."""
    now = None if "date" in headers else datetime(2026, 11, 20, 12, tzinfo=UTC)

    assert retry_after(headers, now) == seconds


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({"code": "rate_limit_exceeded"}, RateLimited),
        ({"type": "tokens", "code": "rate_limit_exceeded"}, RateLimited),
        ({"code": "insufficient_quota"}, RateLimited),
        ({"code": "server_error"}, Overloaded),
        ({"type": "server_error", "code": None}, Overloaded),
        ({"code": "context_length_exceeded"}, ContextLengthExceeded),
        ({"message": "maximum context length is 3"}, ContextLengthExceeded),
        ({"code": "content_filter"}, ContentBlocked),
        ({"code": "invalid_prompt"}, ContentBlocked),
        ({"code": "invalid_image"}, InvalidRequest),
        ({"type": "invalid_request_error"}, InvalidRequest),
        ({"code": 429, "message": "slow down"}, RateLimited),
        ({"code": 502}, Overloaded),
        ({"type": "error", "message": "odd"}, Overloaded),
        ("mere text", Overloaded),
        (None, Overloaded),
    ],
)
def test_reported_errors_map_to_the_same_tree(body: Any, expected: type) -> None:
    """Fault 13: Errors that events report."""
    error = reported_error("m", body)

    assert type(error) is expected
    assert error.status is None


def exceptions(base: type[Exception]) -> Iterator[type[Any]]:
    for found in base.__subclasses__():
        yield found
        yield from exceptions(found)


def test_every_exception_class_of_the_sdk_is_mapped() -> None:
    """Fault 10: Every exception of the SDK is one of ours."""
    import openai.lib.azure  # its exceptions are the SDK's too

    for found in exceptions(openai.OpenAIError):
        if not found.__module__.startswith("openai"):
            continue
        names = {base.__name__ for base in found.__mro__}
        assert names & (MAPPED.keys() | {"APIStatusError"}) or found is openai.APIError, found


def test_every_exception_class_of_the_transport_interrupts_or_times_out() -> None:
    for found in exceptions(httpx2.HTTPError):
        if found is httpx2.HTTPStatusError:
            continue
        late = mapped(found("broken"), reading=True)
        early = mapped(found("broken"))

        if issubclass(found, httpx2.TimeoutException):
            assert isinstance(late, ModelTimeout)
            assert isinstance(early, ModelTimeout)
        else:
            assert isinstance(late, StreamInterrupted)
            assert early.retryable
    assert isinstance(mapped(OSError("x"), reading=True), StreamInterrupted)


def test_sdk_errors_without_a_status_are_mapped() -> None:
    request = httpx2.Request("POST", "http://h")
    connection = openai.APIConnectionError(request=request)
    connection.__cause__ = OSError("no route to host")

    assert "no route" in str(mapped(connection))
    assert isinstance(mapped(connection, reading=True), StreamInterrupted)
    assert isinstance(mapped(openai.APITimeoutError(request)), ModelTimeout)
    assert isinstance(mapped(openai.APIError("odd", request, body=None)), ModelError)
    assert mapped(Overloaded("ours")).args == ("ours",)


@pytest.mark.parametrize(
    ("code", "status", "message", "unknown"),
    [
        ("previous_response_not_found", 400, "", True),
        (None, 404, "Previous response with id 'resp_1' not found.", True),
        ("model_not_found", 404, "no such model", False),
        (None, 500, "Previous response with id", False),
    ],
)
def test_a_response_that_the_provider_lost_is_told_from_other_errors(
    code: str | None, status: int, message: str, unknown: bool
) -> None:
    error = mapped(status_error(status, {"code": code, "message": message}))
    model = OpenAIResponsesModel("m", api_key="k")

    assert model.is_unknown_response(error) is unknown
    assert not OpenAIChatModel("m", api_key="k").is_unknown_response(error)


@pytest.mark.parametrize("event", [[], 7, None, "x", {"choices": 3}, {"choices": [None]},
                                   {"choices": [{"delta": {"tool_calls": [3]}}]}])  # fmt: skip
def test_events_of_a_wrong_shape_interrupt_a_chat(event: Any) -> None:
    """Fault 15: Events of a wrong shape."""
    decoder = OpenAIChatModel("m", api_key="k").decoder(Request({}))

    with pytest.raises(StreamInterrupted):
        decoder.feed(event)


@pytest.mark.parametrize("event", [[], 7, None, {}, {"type": "response.output_text.delta"},
                                   {"type": "response.output_item.done", "item": 3}])  # fmt: skip
def test_events_of_a_wrong_shape_interrupt_a_response(event: Any) -> None:
    """Fault 15: Events of a wrong shape."""
    decoder = OpenAIResponsesModel("m", api_key="k").decoder(Request({}))

    with pytest.raises(StreamInterrupted):
        decoder.feed(event)


@pytest.mark.parametrize("api", [OpenAIChatModel, OpenAIResponsesModel])
@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ([], InvalidRequest),
        ({}, InvalidRequest),
        ({"choices": []}, InvalidRequest),
        ({"error": {"code": "server_error"}}, Overloaded),
        ({"error": "no"}, Overloaded),
    ],
)
def test_bodies_that_are_no_reply_raise(api: Any, body: Any, expected: type) -> None:
    with pytest.raises(expected):
        api("m", api_key="k").decoder(Request({})).feed_body(body)


def test_errors_in_a_stream_are_raised_with_what_came_before() -> None:
    decoder = OpenAIChatModel("m", api_key="k").decoder(Request({}))
    stream = HELLO + b'data: {"error": {"message": "x", "type": "server_error"}}\n\n'

    decoded = decode(decoder, [stream])

    assert decoded.text("text") == "hello"
    assert isinstance(decoded.error, Overloaded)


# -- clients ---------------------------------------------------------------------------------


def test_without_a_key_the_error_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)

    with pytest.raises(ConfigError, match=r"OPENAI_API_KEY is not set.*api_key="):
        OpenAIChatModel("m")


def test_a_local_server_needs_no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with serving(Answer(HELLO)) as server:
        model = OpenAIChatModel("m", base_url=server.url)
        model.open(model.request([], CallOptions()), timeout=5).close()
        model.close()

    assert server.requests[0]["headers"]["authorization"] == "Bearer no-key"


def test_a_client_given_with_options_or_of_a_wrong_type_is_refused() -> None:
    client = openai.OpenAI(api_key="k", base_url="http://h/v1")

    with pytest.raises(ConfigError, match="set timeout on the client itself"):
        OpenAIChatModel("m", client=client, timeout=3)
    with pytest.raises(ConfigError, match="not str"):
        OpenAIChatModel("m", client="client")
    client.close()


def test_a_client_given_serves_both_ways_of_waiting_and_stays_open(read: Any) -> None:
    with serving(Answer(HELLO)) as server:
        client = openai.OpenAI(
            api_key="k", base_url=server.url, default_headers={"x-mine": "1"}, max_retries=5
        )
        model = OpenAIChatModel("m", client=client)
        events, error = read(model)

        assert (len(events), error, model.max_retries) == (1, None, 5)
        assert server.requests[0]["headers"]["x-mine"] == "1"
        assert not client.is_closed()
        client.close()


def test_an_asynchronous_client_serves_blocking_calls() -> None:
    with serving(Answer(HELLO)) as server:
        client = openai.AsyncOpenAI(api_key="k", base_url=server.url)
        model = OpenAIChatModel("m", client=client)
        source = model.open(model.request([], CallOptions()), timeout=5)
        assert len(source.read() or ()) == 1
        source.close()
        model.close()


def test_settings_that_cannot_be_carried_over_are_named() -> None:
    client = openai.OpenAI(api_key="k", http_client=httpx2.Client())
    model = OpenAIChatModel("m", client=client)

    async def run() -> None:
        with pytest.raises(ConfigError, match=r"AsyncOpenAI"):
            await model.open_async(model.request([], CallOptions()), timeout=5)

    asyncio.run(run())
    client.close()


def test_azure_clients_are_carried_over() -> None:
    client = openai.AzureOpenAI(
        api_key="k", api_version="2026-01-01", azure_endpoint="https://x.openai.azure.com"
    )
    model = OpenAIChatModel("m", client=client)

    async def run() -> Any:
        return model._clients.asynchronous()

    twin = asyncio.run(run())

    assert isinstance(twin, openai.AsyncAzureOpenAI)
    assert twin.base_url == client.base_url
    assert model.hosted
    assert not model.official
    client.close()


def test_options_that_the_sdk_does_not_know_are_refused_clearly() -> None:
    model = OpenAIChatModel("m", api_key="k", no_such_option=1)

    with pytest.raises(ConfigError, match="no_such_option"):
        model.open(model.request([], CallOptions()), timeout=5)


def test_a_request_that_cannot_be_written_is_refused_clearly(read: Any) -> None:
    with serving(Answer(HELLO)) as server:
        model = chat(server.url)
        request = model.request([], CallOptions(extra={"user": object()}))
        with pytest.raises(InvalidRequest, match="extra="):
            model.open(request, timeout=5)
        model.close()


def test_extra_arguments_that_the_sdk_does_not_know_go_into_the_body() -> None:
    with serving(Answer(HELLO)) as server:
        model = chat(server.url)
        options = CallOptions(extra={"top_k": 3, "user": "u", "extra_body": {"min_p": 0.1}})
        model.open(model.request([], options), timeout=5).close()
        model.close()

    body = server.requests[0]["body"]
    assert (body["top_k"], body["user"], body["min_p"]) == (3, "u", 0.1)


def test_importing_the_adapters_does_not_load_the_sdk() -> None:
    code = (
        "import sys, contextwindow.models.openai_chat, contextwindow.models.openai_responses, "
        "contextwindow.models.catalog; "
        "sys.exit(bool({'openai', 'genai_prices'} & set(sys.modules)))"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}

    assert subprocess.run([sys.executable, "-c", code], env=environment).returncode == 0


# -- the catalog -----------------------------------------------------------------------------


def test_strings_name_models(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "k")

    assert repr(model_from_string("openai:gpt-5")) == "OpenAIResponsesModel('gpt-5')"
    assert repr(model_from_string("openai-chat: a:b")) == "OpenAIChatModel('a:b')"


@pytest.mark.parametrize("text", ["gpt-5", "", "openai:", "mistral:x", ":x"])
def test_strings_that_name_no_model_are_named(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        model_from_string(text)

    assert repr(text) in str(caught.value)
    assert "openai-chat:NAME" in str(caught.value)


def test_limits_and_prices_are_known_or_none() -> None:
    cached = price("openai", "gpt-5", Usage(1_000, 100, 500))
    full = price("openai", "gpt-5", Usage(1_000, 100))

    assert cached is not None
    assert full is not None
    assert cached < full
    assert (context_limit("openai", "gpt-5") or 0) > 100_000
    assert context_limit("openai", "no-such-model") is None
    assert price("openai", "no-such-model", Usage(1)) is None
    assert price("", "", Usage(-1, -1, 5)) is None
