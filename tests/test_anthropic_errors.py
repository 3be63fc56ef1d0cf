"""The real Anthropic SDK against a server on this machine: what goes wrong, in our terms."""

from __future__ import annotations

import asyncio
import inspect
import json
import subprocess
import sys
import threading
import traceback
from collections.abc import Iterator
from typing import Any

import anthropic
import anthropic._response as sdk_response
import anthropic.lib.credentials._workload as sdk_workload
import anthropic.lib.foundry as sdk_foundry
import httpx2
import pytest
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
from contextwindow.models.anthropic import AnthropicModel, ClaudeModel
from contextwindow.models.anthropic_errors import MAPPED, reported_error, translated
from contextwindow.models.base import Body, CallOptions, Request
from contextwindow.models.catalog import context_limit, model_from_string, price
from contextwindow.records import Usage

KEY = "sk-ant-secret-0123456789"
JSON = {"content-type": "application/json"}
HELLO = (
    b'event: message_start\ndata: {"type": "message_start", "message": {"id": "msg"}}\n\n'
    b'event: ping\ndata: {"type": "ping"}\n\n'
)
STOP = b'event: message_stop\ndata: {"type": "message_stop"}\n\n'


def claude(url: str, **options: Any) -> AnthropicModel:
    return AnthropicModel("claude-sonnet-4-5", api_key=KEY, base_url=url, **options)


async def read_async(model: Any, request: Request, timeout: float | None, got: list[Any]) -> None:
    try:
        source = await model.open_async(request, timeout=timeout)
        try:
            while (events := await source.read()) is not None:
                got.extend(events)
        finally:
            await source.close()
    finally:
        await model.aclose()


def read_blocking(model: Any, request: Request, timeout: float | None) -> Iterator[list[Any]]:
    source = model.open(request, timeout=timeout)
    try:
        while (events := source.read()) is not None:
            yield events
    finally:
        source.close()


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
    with serving(Answer(HELLO + STOP)) as server:
        events, error = read(claude(server.url))

    # The SDK warns of this model, and warnings are errors here: the call is made all the same.
    assert error is None
    assert [event["type"] for event in events] == ["message_start", "ping", "message_stop"]
    assert server.requests[0]["body"]["stream"] is True


def test_one_json_body_is_a_reply(read: Any) -> None:
    body = {"type": "message", "id": "m", "content": []}
    with serving(Answer(json.dumps(body).encode(), headers=JSON)) as server:
        events, error = read(claude(server.url, stream=False))

    assert error is None
    assert events == [Body(body)]
    assert "stream" not in server.requests[0]["body"]


@pytest.mark.parametrize("end", ["reset", "cut"])
def test_a_connection_that_breaks_interrupts_and_keeps_what_came(read: Any, end: Any) -> None:
    with serving(Answer(HELLO, end=end)) as server:
        events, error = read(claude(server.url))

    assert isinstance(error, StreamInterrupted)
    assert "127.0.0.1" in str(error)
    assert len(events) == 2 or end == "reset"


def test_a_stall_times_out(read: Any) -> None:
    with serving(Answer(HELLO, end="stall")) as server:
        events, error = read(claude(server.url), timeout=0.2)

    assert isinstance(error, ModelTimeout)
    assert "0.2 s" in str(error)
    assert len(events) == 2


def test_a_server_that_never_answers_times_out(read: Any) -> None:
    with serving(Answer(silent=True)) as server:
        _, error = read(claude(server.url), timeout=0.2)

    assert isinstance(error, ModelTimeout)


def test_the_sdk_makes_no_retries_of_its_own(read: Any) -> None:
    body = json.dumps({"type": "error", "error": {"type": "overloaded_error", "message": "no"}})
    with serving(Answer(body.encode(), status=529, headers=JSON)) as server:
        _, error = read(claude(server.url))

    assert isinstance(error, Overloaded)
    assert error.status == 529
    assert len(server.requests) == 1


def test_a_page_of_html_is_a_clear_error(read: Any) -> None:
    """Fault 20: HTML with status 200 is a clear error."""
    page = b"<!DOCTYPE html><html>sign in</html>"
    with serving(Answer(page, headers={"content-type": "text/html"})) as server:
        _, error = read(claude(server.url))

    assert isinstance(error, InvalidRequest)
    assert "base_url" in str(error)


def test_a_key_stands_in_no_message_and_no_traceback(read: Any) -> None:
    """Fault 46: No key in any message or traceback."""
    said = {"type": "error", "error": {"type": "authentication_error", "message": f"bad {KEY}"}}
    answer = Answer(json.dumps(said).encode(), status=401, headers=JSON)
    with serving(answer) as server:
        _, error = read(claude(server.url))

    assert isinstance(error, AuthenticationFailed)
    shown = "".join(traceback.format_exception(error))
    assert KEY not in shown
    assert "ANTHROPIC_API_KEY" in shown


def test_abort_from_another_thread_ends_a_read_that_waits() -> None:
    with serving(Answer(HELLO, end="stall")) as server:
        model = claude(server.url)
        source = model.open(model.request([], CallOptions()), timeout=20)
        source.read()
        threading.Timer(0.1, source.abort).start()
        with pytest.raises(StreamInterrupted):
            while source.read() is not None:
                pass
        source.close()
        model.close()


# -- mapping -----------------------------------------------------------------------------


def status_error(status: int, body: Any = None, **headers: str) -> Exception:
    request = httpx2.Request("POST", "https://api.anthropic.com/v1/messages")
    response = httpx2.Response(status, json=body, headers=headers, request=request)
    client = anthropic.Anthropic(api_key="k")
    return client._make_status_error_from_response(response)


def mapped(error: Exception, *, reading: bool = False) -> ModelError:
    return translated(error, "m", "host", reading=reading)


def said(kind: str, message: str = "no") -> dict[str, Any]:
    return {"type": "error", "error": {"type": kind, "message": message}}


@pytest.mark.parametrize(
    ("status", "body", "expected", "retryable"),
    [
        (400, said("invalid_request_error"), InvalidRequest, False),
        (
            400,
            said("invalid_request_error", "prompt is too long: 3 tokens > 2 maximum"),
            ContextLengthExceeded,
            False,
        ),
        (
            400,
            said("invalid_request_error", "input length and `max_tokens` exceed context limit"),
            ContextLengthExceeded,
            False,
        ),
        (
            400,
            said("invalid_request_error", "Your credit balance is too low to access the API"),
            RateLimited,
            False,
        ),
        (
            400,
            said("invalid_request_error", "Output blocked by content filtering policy"),
            ContentBlocked,
            False,
        ),
        (401, said("authentication_error"), AuthenticationFailed, False),
        (402, said("billing_error"), RateLimited, False),
        (403, said("permission_error"), AuthenticationFailed, False),
        (404, said("not_found_error"), InvalidRequest, False),
        (408, None, Overloaded, True),
        (413, said("request_too_large"), ContextLengthExceeded, False),
        (429, said("rate_limit_error"), RateLimited, True),
        (500, said("api_error"), Overloaded, True),
        (503, None, Overloaded, True),
        (504, said("timeout_error"), Overloaded, True),
        (529, said("overloaded_error"), Overloaded, True),
    ],
)
def test_status_errors_say_what_the_caller_can_do(
    status: int, body: Any, expected: type[ModelError], retryable: bool
) -> None:
    """Fault 14: Statuses are mapped, and what makes no sense is not retried."""
    error = mapped(status_error(status, body))

    assert type(error) is expected
    assert error.status == status
    assert error.retryable is retryable
    assert error.provider == "anthropic"


def test_the_wait_is_read_from_the_headers() -> None:
    """Fault 12: `retry-after` in every form."""
    headers = {"retry-after": "7"}
    error = mapped(status_error(429, said("rate_limit_error"), **headers))

    assert error.retry_after == 7


def test_an_error_in_a_stream_has_the_class_of_its_type_although_its_status_is_200() -> None:
    """Fault 13: An error event with status 200."""
    raised = anthropic.APIStatusError(
        "overloaded",
        response=httpx2.Response(200, request=httpx2.Request("POST", "https://h")),
        body=said("overloaded_error"),
    )

    for error in (mapped(raised), reported_error("m", said("overloaded_error")["error"])):
        assert isinstance(error, Overloaded)
        assert error.retryable
        assert error.code == "overloaded_error"


def exceptions(base: type[Exception]) -> Iterator[type[Any]]:
    yield base
    for one in base.__subclasses__():
        yield from exceptions(one)


def test_every_exception_class_of_the_sdk_is_mapped() -> None:
    # Loaded, so that their classes are among the subclasses.
    """Fault 10: Every exception of the SDK is one of ours."""
    assert all(inspect.ismodule(one) for one in (sdk_response, sdk_workload, sdk_foundry))
    found = list(exceptions(anthropic.AnthropicError))
    assert len(found) > 20

    for one in found:
        if one in (anthropic.AnthropicError, anthropic.APIError):
            continue
        if not one.__module__.startswith("anthropic"):
            continue
        assert {base.__name__ for base in one.__mro__} & MAPPED.keys(), one


def test_every_exception_class_of_the_transport_interrupts_or_times_out() -> None:
    for one in exceptions(httpx2.TransportError):
        late, early = mapped(one("broken"), reading=True), mapped(one("broken"))

        if issubclass(one, httpx2.TimeoutException):
            assert isinstance(late, ModelTimeout)
        else:
            assert isinstance(late, StreamInterrupted)
            assert early.retryable


# -- clients -----------------------------------------------------------------------------


def test_without_a_key_the_error_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN", "ANTHROPIC_BASE_URL"):
        monkeypatch.delenv(name, raising=False)

    with pytest.raises(ConfigError, match="ANTHROPIC_API_KEY is not set"):
        AnthropicModel("claude-sonnet-4-5")
    with pytest.raises(ConfigError, match="ANTHROPIC_API_KEY"):
        model_from_string("anthropic:claude-sonnet-4-5")


def test_a_client_given_serves_both_ways_of_waiting_and_stays_open(read: Any) -> None:
    with serving(Answer(HELLO + STOP)) as server:
        client = anthropic.Anthropic(api_key=KEY, base_url=server.url)
        _, error = read(AnthropicModel("claude-sonnet-4-5", client=client))

        assert error is None
        assert not client.is_closed()
        client.close()


def test_a_client_given_with_options_or_of_a_wrong_type_is_refused() -> None:
    client = anthropic.Anthropic(api_key="k")

    with pytest.raises(ConfigError, match="set timeout on the client itself"):
        AnthropicModel("m", client=client, timeout=3)
    with pytest.raises(ConfigError, match="client must be"):
        AnthropicModel("m", client=object())


def test_options_that_the_sdk_does_not_know_are_refused_clearly(read: Any) -> None:
    with pytest.raises(ConfigError, match="nonsense"):
        read(claude("http://127.0.0.1:1", nonsense=1))


def test_extra_arguments_that_the_sdk_does_not_know_go_into_the_body(read: Any) -> None:
    with serving(Answer(HELLO + STOP)) as server:
        model = claude(server.url)
        request = model.request([], CallOptions(extra={"new_field": 1, "top_k": 3}))
        source = model.open(request, timeout=5)
        source.close()
        model.close()

    assert server.requests[0]["body"]["new_field"] == 1
    assert server.requests[0]["body"]["top_k"] == 3


def test_importing_the_adapter_does_not_load_the_sdk() -> None:
    code = "import contextwindow.models.anthropic, sys; assert 'anthropic' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_it_has_two_names() -> None:
    assert ClaudeModel is AnthropicModel


def test_limits_and_prices_are_known() -> None:
    assert (context_limit("anthropic", "claude-sonnet-4-5") or 0) >= 200_000
    assert price("anthropic", "claude-sonnet-4-5", Usage(1000, 100))
