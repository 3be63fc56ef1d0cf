from __future__ import annotations

import asyncio
import inspect
import json
import logging
import os
import subprocess
import sys
import threading
import traceback
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import google.genai._api_client as sdk_client
import google.genai.errors as sdk_errors
import httpx2
import pytest
from google import genai
from google.auth import exceptions as auth_errors
from openai_server import Answer, Server, serving

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
from contextwindow.models.base import Body, CallOptions, Delta, Request
from contextwindow.models.catalog import context_limit, model_from_string, price
from contextwindow.models.gemini import GeminiModel
from contextwindow.models.gemini_decoder import GeminiDecoder
from contextwindow.models.gemini_errors import MAPPED, reported_error, translated
from contextwindow.records import Usage

KEY = "AIzaSyD-secret0123456789"
JSON = {"content-type": "application/json"}


def event(text: str, **fields: Any) -> bytes:
    candidate = {"content": {"parts": [{"text": text}], "role": "model"}, "index": 0, **fields}
    return b"data: " + json.dumps({"candidates": [candidate]}).encode() + b"\r\n\r\n"


HELLO = event("hello")
WHOLE = HELLO + event(" you", finishReason="STOP")


class Unlent(sdk_client.BaseApiClient):
    """The inner client of another SDK, as far as this one knows."""


class UnlentClient(genai.Client):
    """A client that lets nobody at its bytes."""

    @staticmethod
    def _get_api_client(*arguments: Any, debug_config: Any = None, **options: Any) -> Unlent:
        return Unlent(*arguments, **options)


def own(url: str, **options: Any) -> GeminiModel:
    return GeminiModel("gemini-3-pro", api_key=KEY, base_url=url, **options)


def borrowed(url: str, kind: Any = genai.Client, **options: Any) -> GeminiModel:
    client = kind(api_key=KEY, http_options={"base_url": url})
    return GeminiModel("gemini-3-pro", client=client, **options)


def typed(url: str, **options: Any) -> GeminiModel:
    return borrowed(url, UnlentClient, **options)


WAYS = pytest.mark.parametrize("make", [own, borrowed, typed])


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


@WAYS
def test_events_of_a_whole_stream_are_read(read: Any, make: Any) -> None:
    with serving(Answer(WHOLE)) as server:
        events, error = read(make(server.url))

    assert error is None
    assert [one["candidates"][0]["content"]["parts"] for one in events] == [
        [{"text": "hello"}],
        [{"text": " you"}],
    ]
    (asked,) = server.requests
    assert asked["target"].endswith("models/gemini-3-pro:streamGenerateContent?alt=sse")
    assert asked["headers"]["x-goog-api-key"] == KEY
    assert KEY not in asked["target"]


@WAYS
def test_one_json_body_is_a_reply(read: Any, make: Any) -> None:
    answer = {"candidates": [{"content": {"parts": [{"text": "hi"}]}, "finishReason": "STOP"}]}
    with serving(Answer(json.dumps(answer).encode(), headers=JSON)) as server:
        events, error = read(make(server.url, stream=False))
        target = server.requests[0]["target"]

    assert error is None
    assert target.endswith(":generateContent")
    decoder = GeminiDecoder("m")
    for one in events:
        items = decoder.feed_body(one.json) if isinstance(one, Body) else decoder.feed(one)
        assert items == [Delta("text", 0, "hi")]
    assert decoder.finished


@WAYS
@pytest.mark.parametrize("end", ["reset", "cut"])
def test_a_connection_that_breaks_interrupts_and_keeps_what_came(
    read: Any, make: Any, end: Any
) -> None:
    with serving(Answer(HELLO, end=end)) as server:
        events, error = read(make(server.url))

    # A reset may overtake the bytes before it; the typed way waits for the first of them.
    if events or make is not typed:
        assert isinstance(error, StreamInterrupted)
        assert "127.0.0.1" in str(error)
    assert error.retryable
    assert len(events) == 1 or end == "reset"


@WAYS
def test_a_stall_times_out(read: Any, make: Any) -> None:
    """Fault 11: A stall ends, though the SDK would wait for ever."""
    with serving(Answer(HELLO, end="stall")) as server:
        events, error = read(make(server.url), timeout=0.2)

    assert isinstance(error, ModelTimeout)
    assert "0.2 s" in str(error)
    assert len(events) == 1


@WAYS
def test_a_server_that_never_answers_times_out(read: Any, make: Any) -> None:
    with serving(Answer(silent=True)) as server:
        _, error = read(make(server.url), timeout=0.2)

    assert isinstance(error, ModelTimeout)
    assert error.retryable


def test_the_client_s_own_timeout_holds_where_none_is_given(read: Any) -> None:
    with serving(Answer(HELLO, end="stall")) as server:
        _, error = read(own(server.url, http_options={"timeout": 200}), timeout=None)

    assert isinstance(error, ModelTimeout)


@WAYS
def test_the_model_s_timeout_holds_where_none_is_given(read: Any, make: Any) -> None:
    with serving(Answer(HELLO, end="stall")) as server:
        _, error = read(make(server.url, timeout=0.2), timeout=None)

    assert isinstance(error, ModelTimeout)


def test_without_any_timeout_a_call_waits_ten_minutes_for_a_byte(read: Any) -> None:
    seen: list[Any] = []

    def answer(request: httpx2.Request) -> httpx2.Response:
        seen.append(request.extensions["timeout"])
        return httpx2.Response(200, stream=httpx2.ByteStream(WHOLE))

    arguments = {"transport": httpx2.MockTransport(answer)}
    model = own("http://h", http_options={"client_args": arguments})
    _, error = read(model, timeout=None)

    assert error is None
    assert (seen[0]["connect"], seen[0]["read"]) == (5, 600)


@WAYS
def test_a_reset_before_any_answer_may_be_tried_again(read: Any, make: Any) -> None:
    with serving(Answer(silent=True, end="reset")) as server:
        _, error = read(make(server.url))

    assert type(error) is ModelError
    assert error.retryable
    assert "no connection to 127.0.0.1" in str(error)


@WAYS
def test_the_sdk_makes_no_retries_of_its_own(read: Any, make: Any) -> None:
    body = json.dumps({"error": {"code": 503, "message": "busy", "status": "UNAVAILABLE"}})
    with serving(Answer(body.encode(), status=503, headers=JSON)) as server:
        model = make(server.url)
        _, error = read(model)

    assert isinstance(error, Overloaded)
    assert (error.status, error.code) == (503, "UNAVAILABLE")
    assert "busy" in str(error)
    assert model.max_retries == 2
    assert len(server.requests) == 1


def test_retries_that_the_client_is_set_to_are_left_to_the_turn(read: Any) -> None:
    with serving(Answer(b"{}", status=500, headers=JSON)) as server:
        model = own(server.url, max_retries=7, http_options={"retry_options": {"attempts": 4}})
        _, error = read(model)

    assert isinstance(error, Overloaded)
    assert model.max_retries == 7
    assert len(server.requests) == 1


@pytest.mark.parametrize("page", [b"<html>sign in</html>", b"\xff\xfe<html>", b""])
@pytest.mark.parametrize("status", [200, 502])
def test_a_page_of_html_is_a_clear_error(read: Any, page: bytes, status: int) -> None:
    """Fault 20: HTML with status 200 is a clear error."""
    with serving(Answer(page, status, headers={"content-type": "text/html"})) as server:
        events, error = read(own(server.url))

    if status == 502:
        assert isinstance(error, Overloaded)
        assert "html" not in str(error)
    elif page:
        assert isinstance(error, InvalidRequest)
        assert "text/html" in str(error)
    assert events == []


@WAYS
@pytest.mark.parametrize("stream", [True, False])
def test_a_key_stands_in_no_message_no_traceback_and_no_log(
    read: Any, make: Any, stream: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """Fault 46: No key in any message, traceback or log."""
    caplog.set_level(logging.DEBUG)
    details = [{"@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": "API_KEY_INVALID"}]
    said = {"error": {"code": 400, "message": f"wrong key {KEY}", "details": details}}
    with serving(Answer(json.dumps(said).encode(), status=400, headers=JSON)) as server:
        model = make(server.url, stream=stream)
        _, error = read(model)

    assert isinstance(error, AuthenticationFailed)
    assert "GEMINI_API_KEY" in str(error)
    assert KEY not in "".join(traceback.format_exception(error))
    assert KEY not in repr(model)
    assert KEY not in caplog.text


def test_a_key_in_the_address_stands_in_no_message(read: Any) -> None:
    with serving(Answer(silent=True, end="reset")) as server:
        _, error = read(own(f"{server.url}?key={KEY}"))

    assert KEY not in "".join(traceback.format_exception(error))


def test_abort_from_another_thread_ends_a_read_that_waits() -> None:
    with serving(Answer(HELLO, end="stall")) as server:
        model = own(server.url)
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


@pytest.mark.parametrize("make", [own, borrowed])
def test_abort_on_the_loop_ends_a_read_that_waits(make: Any) -> None:
    async def run(url: str) -> None:
        model = make(url)
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
        model = own(url)
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


def test_a_task_that_is_cancelled_while_it_waits_for_the_answer_leaves_nothing_open() -> None:
    async def run(url: str) -> None:
        model = own(url)
        opening = model.open_async(model.request([], CallOptions()), timeout=30)
        task = asyncio.create_task(opening)
        while not server.requests:  # noqa: ASYNC110 - the server is a thread
            await asyncio.sleep(0.001)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await model.aclose()

    with serving(Answer(silent=True)) as server:
        asyncio.run(run(server.url))


def test_one_model_serves_several_event_loops_in_turn() -> None:
    async def run(model: GeminiModel) -> list[Any]:
        got: list[Any] = []
        await read_async(model, model.request([], CallOptions()), 5, got)
        return got

    with serving(Answer(HELLO)) as server:
        model = own(server.url)

        assert [len(asyncio.run(run(model))) for _ in range(3)] == [1, 1, 1]


class Echo(Server):
    """Answers each request with the prompt that it asked."""

    def _write(self, connection: Any, answer: Answer) -> None:
        # The requests are noted by the threads that answer them, one at a time.
        prompt = self.asked.prompt
        super()._write(connection, Answer(event(prompt, finishReason="STOP")))

    def _read_request(self, connection: Any) -> None:
        with self.lock:
            before = len(self.requests)
            super()._read_request(connection)
            self.asked.prompt = self.requests[before]["body"]["contents"][0]["parts"][0]["text"]

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.asked = threading.local()
        super().__init__([Answer()])


@pytest.fixture
def echo() -> Iterator[Echo]:
    server = Echo()
    yield server
    server.close()


def asking(model: GeminiModel, number: int) -> Request:
    body = {"model": model.name, "contents": [{"role": "user", "parts": [{"text": f"p{number}"}]}]}
    return Request(body)


def answered(events: list[Any]) -> str:
    return "".join(one["candidates"][0]["content"]["parts"][0]["text"] for one in events)


@WAYS
def test_calls_in_threads_each_get_their_own_answer(echo: Echo, make: Any) -> None:
    model = make(echo.url)

    def ask(number: int) -> str:
        source = model.open(asking(model, number), timeout=10)
        events: list[Any] = []
        while (more := source.read()) is not None:
            events += more
        source.close()
        return answered(events)

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(ask, range(40))) == [f"p{number}" for number in range(40)]
    model.close()


@WAYS
def test_calls_in_tasks_each_get_their_own_answer(echo: Echo, make: Any) -> None:
    model = make(echo.url)

    async def ask(number: int) -> str:
        source = await model.open_async(asking(model, number), timeout=10)
        events: list[Any] = []
        while (more := await source.read()) is not None:
            events += more
        await source.close()
        return answered(events)

    async def run() -> list[str]:
        found = await asyncio.gather(*map(ask, range(40)))
        await model.aclose()
        return found

    assert asyncio.run(run()) == [f"p{number}" for number in range(40)]


# -- what is raised --------------------------------------------------------------------------


def status(code: int, message: str = "", word: str = "", details: Any = None) -> ModelError:
    said = {"error": {"code": code, "message": message, "status": word, "details": details or []}}
    kind = sdk_errors.ClientError if code < 500 else sdk_errors.ServerError
    return mapped(kind(code, said, httpx2.Response(code)))


def mapped(error: Exception, *, reading: bool = False) -> ModelError:
    return translated(error, "gemini-3-pro", "h", reading=reading)


def info(kind: str, **fields: Any) -> list[dict[str, Any]]:
    return [{"@type": f"type.googleapis.com/google.rpc.{kind}", **fields}]


@pytest.mark.parametrize(
    ("code", "message", "details", "expected", "retryable"),
    [
        (400, "The temperature is odd.", None, InvalidRequest, False),
        (400, "API key not valid. Please pass a valid API key.", None, AuthenticationFailed, False),
        (400, "x", info("ErrorInfo", reason="API_KEY_INVALID"), AuthenticationFailed, False),
        (
            400,
            "The input token count (9) exceeds the maximum number of tokens allowed (8).",
            None,
            ContextLengthExceeded,
            False,
        ),
        (400, "The input token count exceeds the maximum", None, ContextLengthExceeded, False),
        (401, "who", None, AuthenticationFailed, False),
        (403, "not you", None, AuthenticationFailed, False),
        (404, "no model", None, InvalidRequest, False),
        (408, "slow", None, Overloaded, True),
        (409, "aborted", None, Overloaded, True),
        (413, "large", None, ContextLengthExceeded, False),
        (429, "wait", None, RateLimited, True),
        (429, "Quota exceeded, limit: 0", None, RateLimited, False),
        (
            429,
            "Quota exceeded",
            info("QuotaFailure", violations=[{"quotaId": "GenerateRequestsPerDayPerProject"}]),
            RateLimited,
            False,
        ),
        (
            429,
            "Quota exceeded",
            info("QuotaFailure", violations=[{"quotaId": "GenerateRequestsPerMinute"}, 7]),
            RateLimited,
            True,
        ),
        (499, "cancelled", None, Overloaded, True),
        (500, "internal", None, Overloaded, True),
        (503, "overloaded", None, Overloaded, True),
        (504, "deadline", None, Overloaded, True),
    ],
)
def test_status_errors_say_what_the_caller_can_do(
    code: int, message: str, details: Any, expected: type, retryable: bool
) -> None:
    """Fault 14: Statuses are mapped, and what makes no sense is not retried."""
    error = status(code, message, "WORD", details)

    assert type(error) is expected
    assert error.retryable is retryable
    assert (error.status, error.code, error.provider) == (code, "WORD", "google")
    assert message in str(error)
    assert str(code) in str(error)


@pytest.mark.parametrize(
    ("delay", "seconds"),
    [("17s", 17.0), ("48.939935699s", 48.939935699), ("soon", None), (3, None)],
)
def test_the_wait_is_read_from_the_details(delay: Any, seconds: float | None) -> None:
    """Fault 12: The wait that the details ask for."""
    error = status(429, "", "RESOURCE_EXHAUSTED", info("RetryInfo", retryDelay=delay))

    assert error.retry_after == seconds


def test_the_wait_is_read_from_the_headers_where_the_details_have_none(read: Any) -> None:
    headers = {**JSON, "retry-after": "7"}
    with serving(Answer(b'{"error": {"code": 429}}', status=429, headers=headers)) as server:
        _, error = read(own(server.url))

    assert error.retry_after == 7


@pytest.mark.parametrize("body", [b"[]", b"3", b'"no"', b"null", b'[{"error": {}}]', b"{", b"{}"])
def test_error_bodies_of_any_shape_are_read(read: Any, body: bytes) -> None:
    with serving(Answer(body, status=400, headers=JSON)) as server:
        _, error = read(own(server.url))

    assert type(error) is InvalidRequest
    assert error.status == 400


def exceptions(module: Any) -> list[type[Exception]]:
    found = [one for _, one in inspect.getmembers(module, inspect.isclass)]
    return [one for one in found if issubclass(one, Exception)]


def test_every_exception_class_of_the_sdk_is_mapped() -> None:
    """Fault 10: Every exception of the SDK is one of ours."""
    found = [*exceptions(sdk_errors), *exceptions(auth_errors)]
    found.append(sdk_client.EphemeralTokenAPIKeyError)
    assert len(found) > 20

    for one in found:
        if not one.__module__.startswith("google"):
            continue
        assert {base.__name__ for base in one.__mro__} & MAPPED.keys(), one
        if not issubclass(one, sdk_errors.APIError):
            assert type(mapped(one("no"))) is not ModelError or "Transport" in str(one.__mro__)


def test_errors_of_the_way_to_a_token_are_mapped() -> None:
    def found(kind: Any) -> ModelError:
        return mapped(kind("no route"))

    assert isinstance(found(auth_errors.DefaultCredentialsError), AuthenticationFailed)
    assert isinstance(found(auth_errors.RefreshError), AuthenticationFailed)
    lost = found(auth_errors.TransportError)
    assert type(lost) is ModelError
    assert lost.retryable


def test_every_exception_class_of_the_transport_interrupts_or_times_out() -> None:
    for found in exceptions(httpx2):
        if not issubclass(found, httpx2.TransportError):
            continue
        late = mapped(found("broken"), reading=True)
        early = mapped(found("broken"))

        if issubclass(found, httpx2.TimeoutException):
            assert isinstance(late, ModelTimeout)
            assert isinstance(early, ModelTimeout)
        else:
            assert isinstance(late, StreamInterrupted)
            assert early.retryable


@pytest.mark.parametrize(
    ("body", "expected", "code"),
    [
        ({"code": 503, "message": "busy", "status": "UNAVAILABLE"}, Overloaded, "UNAVAILABLE"),
        ({"code": 429, "status": "RESOURCE_EXHAUSTED"}, RateLimited, "RESOURCE_EXHAUSTED"),
        ({"code": 400, "status": "INVALID_ARGUMENT"}, InvalidRequest, "INVALID_ARGUMENT"),
        ({"status": "PERMISSION_DENIED"}, AuthenticationFailed, "PERMISSION_DENIED"),
        ({"code": 500}, Overloaded, "500"),
        ("went wrong", Overloaded, None),
        (["odd"], Overloaded, None),
        ({"code": True, "status": 7, "details": {"a": 1}}, Overloaded, None),
    ],
)
def test_reported_errors_map_to_the_same_tree(body: Any, expected: type, code: Any) -> None:
    """Fault 13: Errors that events report."""
    error = reported_error("m", body)

    assert type(error) is expected
    assert error.code == code
    assert error.status is None


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({"error": {"code": 503, "status": "UNAVAILABLE"}}, Overloaded),
        ([{"error": {"code": 429, "status": "RESOURCE_EXHAUSTED"}}], RateLimited),
        ({"promptFeedback": {"blockReason": "SAFETY"}}, ContentBlocked),
        ({"models": []}, InvalidRequest),
        ([3], InvalidRequest),
        ("text", InvalidRequest),
        (None, InvalidRequest),
        ({"candidates": [{"content": 3}]}, StreamInterrupted),
    ],
)
def test_bodies_that_are_no_reply_raise(body: Any, expected: type) -> None:
    with pytest.raises(expected):
        GeminiDecoder("m").feed_body(body)


def pieces(arguments: Any) -> dict[str, Any]:
    part = {"functionCall": {"name": "f", "partialArgs": arguments}}
    return {"candidates": [{"content": {"parts": [part]}}]}


@pytest.mark.parametrize(
    "shape",
    [
        3,
        [],
        "x",
        None,
        {"candidates": 3},
        {"candidates": [3]},
        {"candidates": [{"content": {"parts": [3]}}]},
        pieces(3),
        pieces([{"jsonPath": "$.a[999999999]", "stringValue": "x"}]),
        pieces([{"jsonPath": "$.a.b", "boolValue": True}, {"jsonPath": "$.a[0]"}]),
        pieces([{"jsonPath": "a"}]),
        pieces([{"jsonPath": "$"}]),
        pieces([{"jsonPath": "$..a"}]),
    ],
)
def test_events_of_a_wrong_shape_interrupt(shape: Any) -> None:
    """Fault 15: Events of a wrong shape."""
    decoder = GeminiDecoder("m")
    decoder.feed(json.loads(HELLO[6:]))

    with pytest.raises(StreamInterrupted, match="unknown shape"):
        decoder.feed(shape)


# -- making a model --------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def no_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith(("GOOGLE_", "GEMINI_")):
            monkeypatch.delenv(name)


def test_without_a_key_the_error_says_what_to_do() -> None:
    with pytest.raises(ConfigError, match="GEMINI_API_KEY is not set"):
        GeminiModel("gemini-3-pro")
    with pytest.raises(ConfigError, match="GEMINI_API_KEY is not set"):
        model_from_string("gemini:gemini-3-pro")


@pytest.mark.parametrize("name", ["GOOGLE_API_KEY", "GEMINI_API_KEY"])
def test_a_key_in_the_environment_is_used(
    read: Any, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv(name, "k")
    with serving(Answer(WHOLE)) as server:
        _, error = read(GeminiModel("m", base_url=server.url))

    assert error is None
    assert server.requests[0]["headers"]["x-goog-api-key"] == "k"
    assert repr(model_from_string("gemini:gemini-3-pro")) == "GeminiModel('gemini-3-pro')"


def test_a_gateway_needs_no_key(read: Any) -> None:
    with serving(Answer(WHOLE)) as server:
        _, error = read(GeminiModel("m", base_url=server.url))

    assert error is None
    assert server.requests[0]["headers"]["x-goog-api-key"] == "no-key"


def test_a_client_given_with_options_or_of_a_wrong_type_is_refused() -> None:
    client = genai.Client(api_key="k")

    with pytest.raises(ConfigError, match="set project on the client itself"):
        GeminiModel("m", client=client, project="p")
    with pytest.raises(ConfigError, match="not str"):
        GeminiModel("m", client="client")
    client.close()


def test_options_that_the_sdk_does_not_know_are_refused_clearly() -> None:
    with pytest.raises(ConfigError, match="no_such_option") as caught:
        GeminiModel("m", api_key=KEY, no_such_option=1)
    assert KEY not in "".join(traceback.format_exception(caught.value))
    with pytest.raises(ConfigError, match="project"):
        GeminiModel("m", api_key=KEY, project="p")
    with pytest.raises(ConfigError, match="ValidationError") as caught:
        GeminiModel("m", api_key=KEY, http_options={"headers": KEY})
    assert KEY not in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize("kind", [genai.Client, UnlentClient])
def test_a_client_given_keeps_its_settings_and_stays_open(read: Any, kind: Any) -> None:
    with serving(Answer(WHOLE)) as server:
        options = {"base_url": server.url, "headers": {"x-mine": "1"}, "api_version": "v9"}
        client = kind(api_key=KEY, http_options=options)
        for _ in range(2):
            _, error = read(GeminiModel("m", client=client))
            assert error is None
        assert server.requests[1]["headers"]["x-mine"] == "1"
        assert "/v9/models/m:" in server.requests[1]["target"]
        chunks = client.models.generate_content_stream(model="m", contents="mine")
        assert "".join(chunk.text or "" for chunk in chunks) == "hello you"
        client.close()


def test_an_http_client_of_the_caller_s_own_is_used(read: Any) -> None:
    seen: list[httpx2.Request] = []

    def answer(request: httpx2.Request) -> httpx2.Response:
        seen.append(request)
        return httpx2.Response(200, stream=httpx2.ByteStream(WHOLE))

    transport = httpx2.MockTransport(answer)
    clients = {
        "httpx_client": httpx2.Client(transport=transport, headers={"x-proxy": "1"}),
        "httpx_async_client": httpx2.AsyncClient(transport=transport, headers={"x-proxy": "1"}),
    }
    events, error = read(GeminiModel("m", api_key=KEY, http_options=clients))

    assert error is None
    assert len(events) == 2
    assert seen[0].headers["x-proxy"] == "1"
    assert seen[0].url.host == "generativelanguage.googleapis.com"


def test_vertex_addresses_and_signs_by_itself(read: Any) -> None:
    from google.oauth2.credentials import Credentials

    token = "ya29.secret-token-0123456789"
    credentials = Credentials(token)  # type: ignore[no-untyped-call]
    with serving(Answer(WHOLE)) as server:
        model = GeminiModel(
            "gemini-3-pro",
            base_url=server.url,
            vertexai=True,
            project="p",
            location="l",
            credentials=credentials,
        )
        _, error = read(model)

    assert error is None
    (asked,) = server.requests
    assert "/projects/p/locations/l/publishers/google/models/gemini-3-pro:" in asked["target"]
    assert asked["headers"]["authorization"] == f"Bearer {token}"


def test_a_request_that_cannot_be_written_is_refused_clearly(read: Any) -> None:
    with serving(Answer(HELLO)) as server:
        model = own(server.url)
        for value in (object(), float("nan")):
            request = model.request([], CallOptions(extra={"user": value}))
            with pytest.raises(InvalidRequest, match="extra="):
                model.open(request, timeout=5)
        model.close()
    assert server.requests == []


def test_more_headers_go_through_the_sdk_s_own_option(read: Any) -> None:
    with serving(Answer(WHOLE)) as server:
        model = own(server.url)
        options = CallOptions(extra={"http_options": {"headers": {"x-more": "1"}}})
        model.open(model.request([], options), timeout=5).close()
        model.close()

    assert server.requests[0]["headers"]["x-more"] == "1"
    assert "http_options" not in server.requests[0]["body"]


def test_importing_the_adapter_does_not_load_the_sdk() -> None:
    code = (
        "import sys, contextwindow.models.gemini, contextwindow.models.catalog; "
        "sys.exit(bool({'google.genai', 'genai_prices'} & set(sys.modules)))"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}

    assert subprocess.run([sys.executable, "-c", code], env=environment).returncode == 0


def test_the_address_of_another_server_is_told_for_its_prices() -> None:
    vertex: dict[str, Any] = {"vertexai": True, "project": "p", "location": "us-central1"}

    assert GeminiModel("m", api_key="k").url is None
    assert GeminiModel("m", api_key="k", **vertex).url is None
    assert GeminiModel("m", base_url=f"https://u:p@gate/v?key={KEY}").url == "https://gate/v"


def test_limits_and_prices_are_known() -> None:
    provider = GeminiModel.provider
    cached = price(provider, "gemini-2.5-flash", Usage(1_000, 100, 500))
    full = price(provider, "gemini-2.5-flash", Usage(1_000, 100))

    assert cached is not None
    assert full is not None
    assert cached < full
    assert (context_limit(provider, "gemini-2.5-flash") or 0) > 1_000_000
