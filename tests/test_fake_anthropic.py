"""The fake provider as Anthropic, judged by the real SDK: it must take the fake for the service."""

from __future__ import annotations

import asyncio
import json
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import anthropic
import httpx2
import pytest
from four_apis import provider

from contextwindow.records import Usage
from contextwindow.testing import FakeProvider, FakeReply

__all__ = ["provider"]

Ask = Callable[..., tuple[list[Any], Exception | None]]

CLAUDE = "claude-haiku-4-5"
PROMPT: Any = [{"role": "user", "content": "hello"}]
ONE_TO_FIVE = "one two three four five"
THINKS = {"type": "enabled", "budget_tokens": 1024}
LATE = defaultdict(lambda: 5.0, stall=0.2, stall_before=0.2)
"""Seconds until a client gives up: enough for a slow machine to send what comes before."""


@pytest.fixture(params=["sync", "async"])
def ask(request: pytest.FixtureRequest, provider: FakeProvider) -> Ask:
    """Asks for a stream: its events, and the error that ended it."""

    def blocking(*, timeout: float = 5, retries: int = 0, **options: Any) -> Any:
        events: list[Any] = []
        with anthropic.Anthropic(**settings(provider, timeout, retries)) as client:
            try:
                for event in client.messages.create(**fields(options), stream=True):
                    events.append(event)  # noqa: PERF402 - those before an error count
            except Exception as error:
                return events, error
        return events, None

    async def asynchronous(timeout: float, retries: int, options: dict[str, Any]) -> Any:
        events: list[Any] = []
        async with anthropic.AsyncAnthropic(**settings(provider, timeout, retries)) as client:
            try:
                async for event in await client.messages.create(**fields(options), stream=True):
                    events.append(event)  # noqa: PERF401 - those before an error count
            except Exception as error:
                return events, error
        return events, None

    def on_a_loop(*, timeout: float = 5, retries: int = 0, **options: Any) -> Any:
        return asyncio.run(asynchronous(timeout, retries, options))

    return blocking if request.param == "sync" else on_a_loop


@pytest.fixture(params=["sync", "async"])
def gather(request: pytest.FixtureRequest, provider: FakeProvider) -> Callable[..., Any]:
    """Asks for a stream: the message that the SDK makes of it, without what is not there."""

    def blocking(**options: Any) -> Any:
        with anthropic.Anthropic(**settings(provider)) as client:
            with client.messages.stream(**fields(options)) as stream:
                return stream.get_final_message().model_dump(exclude_none=True)

    async def asynchronous(options: dict[str, Any]) -> Any:
        async with anthropic.AsyncAnthropic(**settings(provider)) as client:
            async with client.messages.stream(**fields(options)) as stream:
                return (await stream.get_final_message()).model_dump(exclude_none=True)

    def on_a_loop(**options: Any) -> Any:
        return asyncio.run(asynchronous(options))

    return blocking if request.param == "sync" else on_a_loop


def fields(options: dict[str, Any]) -> Any:
    return {"model": CLAUDE, "messages": PROMPT, "max_tokens": 2000, **options}


def settings(provider: FakeProvider, timeout: float = 5, retries: int = 0) -> Any:
    url = provider.anthropic_url
    return {"api_key": "k", "base_url": url, "timeout": timeout, "max_retries": retries}


def said(events: list[Any]) -> str:
    deltas = [event.delta for event in events if event.type == "content_block_delta"]
    return "".join(delta.text for delta in deltas if delta.type == "text_delta")


def posted(provider: FakeProvider, **options: Any) -> httpx2.Response:
    """The answer to a request that the SDK would not make."""
    body = {"model": CLAUDE, "messages": PROMPT, "max_tokens": 2000, **options}
    kept = {name: value for name, value in body.items() if value is not None}
    return httpx2.post(f"{provider.anthropic_url}/v1/messages", json=kept)


def given_back(provider: FakeProvider, **options: Any) -> list[dict[str, Any]]:
    """The content of a reply in one body."""
    found: list[dict[str, Any]] = posted(provider, **options).json()["content"]
    return found


# -- replies -----------------------------------------------------------------------------


def test_a_stream_has_the_events_of_the_service_in_its_order(
    provider: FakeProvider, ask: Ask
) -> None:
    provider.reply(FakeReply("Look here.", reasoning="hm", tool_calls=[("f", {"a": "b" * 20})]))

    events, error = ask()

    assert error is None
    kinds = [event.type for event in events]
    assert kinds[:1] == ["message_start"]
    assert kinds[-2:] == ["message_delta", "message_stop"]
    started = [event.content_block.type for event in events if event.type == "content_block_start"]
    assert started == ["thinking", "text", "tool_use"]
    assert kinds.count("content_block_stop") == 3
    deltas = [event.delta for event in events if event.type == "content_block_delta"]
    assert [delta.type for delta in deltas] == [
        "thinking_delta",
        "signature_delta",
        "text_delta",
        "text_delta",
        "input_json_delta",
        "input_json_delta",
        "input_json_delta",
        "input_json_delta",
    ]
    assert deltas[4].partial_json == ""
    assert json.loads("".join(delta.partial_json for delta in deltas[4:])) == {"a": "b" * 20}


def test_a_ping_comes_early() -> None:
    with FakeProvider() as provider:
        body = {"model": CLAUDE, "messages": PROMPT, "max_tokens": 9, "stream": True}
        text = httpx2.post(f"{provider.anthropic_url}/v1/messages", json=body).text

    names = [line.removeprefix("event: ") for line in text.split("\n") if line[:6] == "event:"]
    assert names[:3] == ["message_start", "ping", "content_block_start"]


CALLS: Any = [("f", {"a": 1}), ("g", {}), ("h", "{}", "mine_1")]
REPLIES: list[tuple[FakeReply, list[Any], str]] = [
    (FakeReply("hi there"), [{"type": "text", "text": "hi there"}], "end_turn"),
    (FakeReply(chunks=["a", "b\n", " 🎉 "]), [{"type": "text", "text": "ab\n 🎉 "}], "end_turn"),
    (
        FakeReply("x", tool_calls=CALLS),
        [
            {"type": "text", "text": "x"},
            {"type": "tool_use", "id": "toolu_fake_1_1", "name": "f", "input": {"a": 1}},
            {"type": "tool_use", "id": "toolu_fake_1_2", "name": "g", "input": {}},
            {"type": "tool_use", "id": "mine_1", "name": "h", "input": {}},
        ],
        "tool_use",
    ),
    (FakeReply(refusal="I won't."), [{"type": "text", "text": "I won't."}], "refusal"),
    (FakeReply("x", blocked=True), [], "refusal"),
    (FakeReply("cut", finish_reason="length"), [{"type": "text", "text": "cut"}], "max_tokens"),
    (FakeReply(""), [], "end_turn"),
    (FakeReply("a", fault="json_body"), [{"type": "text", "text": "a"}], "end_turn"),
]


@pytest.mark.parametrize(("reply", "content", "reason"), REPLIES[:-1])
def test_the_sdk_puts_a_stream_together(
    provider: FakeProvider,
    gather: Callable[..., Any],
    reply: FakeReply,
    content: list[Any],
    reason: str,
) -> None:
    provider.reply(reply)

    message = gather()

    assert message["content"] == content
    assert message["stop_reason"] == reason
    assert message["model"] == CLAUDE


@pytest.mark.parametrize(("reply", "content", "reason"), REPLIES)
def test_one_body_says_the_same(
    provider: FakeProvider, reply: FakeReply, content: list[Any], reason: str
) -> None:
    provider.reply(reply)

    body = posted(provider, stream=reply.fault == "json_body").json()

    assert body["content"] == content
    assert body["stop_reason"] == reason
    anthropic.types.Message.model_validate(body)


@pytest.mark.parametrize(
    ("reply", "block"),
    [
        (FakeReply("x", reasoning="let me see"), ("thinking", "let me see")),
        (FakeReply("x", reasoning="let me see", hidden=True), ("redacted_thinking", None)),
    ],
)
def test_thinking_is_signed_or_sealed(
    provider: FakeProvider, gather: Callable[..., Any], reply: FakeReply, block: tuple[str, Any]
) -> None:
    provider.reply(reply)
    provider.reply(reply)

    streamed, at_once = gather(), posted(provider).json()

    for content in (streamed["content"], at_once["content"]):
        assert (content[0]["type"], content[0].get("thinking")) == block
        assert content[0].get("signature") or content[0].get("data")
    assert streamed["content"][0] != at_once["content"][0]
    assert at_once["usage"]["output_tokens_details"] == {"thinking_tokens": 3}
    assert at_once["usage"]["output_tokens"] == 4


def test_usage_tells_the_cache_apart(provider: FakeProvider, ask: Ask) -> None:
    used = Usage(100, 7, cache_read_tokens=30, cache_write_tokens=20)
    provider.reply(FakeReply("hi", usage=used))

    events, _ = ask()

    start = events[0].message.usage
    assert (start.input_tokens, start.output_tokens) == (50, 1)
    assert (start.cache_read_input_tokens, start.cache_creation_input_tokens) == (30, 20)
    assert events[-2].usage.output_tokens == 7


def test_arguments_may_be_broken(provider: FakeProvider, ask: Ask) -> None:
    for _ in range(2):
        provider.reply(FakeReply(tool_calls=[("f", '{"a": [1, 2')], finish_reason="length"))

    events, error = ask()

    deltas = [event.delta for event in events if event.type == "content_block_delta"]
    assert error is None
    assert "".join(delta.partial_json for delta in deltas) == '{"a": [1, 2'
    assert given_back(provider)[0]["input"] == {}


def test_a_reply_that_pauses_goes_on_with_what_its_search_has_found(
    provider: FakeProvider, gather: Callable[..., Any]
) -> None:
    provider.reply(FakeReply("Let me search.", pauses=True))
    provider.reply("Found it.")

    first = gather()
    messages = [*PROMPT, {"role": "assistant", "content": first["content"]}]
    second = gather(messages=messages)

    assert first["stop_reason"] == "pause_turn"
    text, search = first["content"]
    assert (text["text"], search["type"]) == ("Let me search.", "server_tool_use")
    found, text = second["content"]
    assert (found["type"], found["tool_use_id"]) == ("web_search_tool_result", search["id"])
    assert text["text"] == "Found it."
    both = [*PROMPT, {"role": "assistant", "content": first["content"] + second["content"]}]
    assert gather(messages=both + PROMPT)["stop_reason"] == "end_turn"


@pytest.mark.parametrize("model", ["claude-haiku-4-5", "claude-haiku-4-5-20251001"])
def test_a_prefilled_reply_goes_on_behind_its_last_character(
    provider: FakeProvider, ask: Ask, model: str
) -> None:
    provider.default = FakeReply(ONE_TO_FIVE, continues=True, echo=4)
    begun = [*PROMPT, {"role": "assistant", "content": "one two"}]

    events, error = ask(model=model, messages=begun)

    assert error is None
    assert said(events) == " three four five"


def test_a_reply_that_is_asked_to_go_on_may_say_a_bit_again(
    provider: FakeProvider, ask: Ask
) -> None:
    provider.default = FakeReply(ONE_TO_FIVE, continues=True, echo=4)
    asked = [*PROMPT, {"role": "assistant", "content": "one two"}, *PROMPT]

    assert said(ask(messages=asked)[0]) == " two three four five"
    assert said(ask()[0]) == ONE_TO_FIVE


# -- faults ------------------------------------------------------------------------------

FAULTS: list[tuple[str, type[Exception] | None]] = [
    ("reset", httpx2.ReadError),
    ("truncate", httpx2.RemoteProtocolError),
    ("eof", None),
    ("eof_mid", None),
    ("eof_close", None),
    ("error", anthropic.APIStatusError),
    ("failed", anthropic.APIStatusError),
    ("stall", httpx2.ReadTimeout),
    ("garbage", json.JSONDecodeError),
]


@pytest.mark.parametrize("at", [0, 2, 4, None])
@pytest.mark.parametrize(("fault", "raised"), FAULTS)
def test_a_fault_shows_as_the_service_s_does(
    provider: FakeProvider, ask: Ask, fault: Any, at: Any, raised: Any
) -> None:
    provider.reply(ONE_TO_FIVE, fault=fault, at=at)

    events, error = ask(timeout=LATE[fault])

    assert said(events) == " ".join(ONE_TO_FIVE.split()[:at])
    assert type(error) is type(None) if raised is None else isinstance(error, raised)
    assert events[-1].type != "message_stop"


@pytest.mark.parametrize(("fault", "raised"), FAULTS)
@pytest.mark.parametrize(("at", "thought", "argued"), [(1, 1, 0), (2, 2, 0), (4, 2, 1)])
def test_a_fault_may_come_while_the_model_thinks_or_calls(
    provider: FakeProvider,
    ask: Ask,
    fault: Any,
    raised: Any,
    at: int,
    thought: int,
    argued: int,
) -> None:
    call = [("f", {"key": "a value that is cut"})]
    provider.reply(FakeReply("text", reasoning="a b", tool_calls=call, fault=fault, at=at))

    events, error = ask(timeout=LATE[fault])

    deltas = [event.delta for event in events if event.type == "content_block_delta"]
    assert sum(delta.type == "thinking_delta" for delta in deltas) == thought
    pieces = [delta.partial_json for delta in deltas if delta.type == "input_json_delta"]
    assert len([piece for piece in pieces if piece]) == argued
    assert type(error) is type(None) if raised is None else isinstance(error, raised)


def test_an_error_in_the_stream_has_the_status_of_success(provider: FakeProvider, ask: Ask) -> None:
    provider.reply("one two", fault="error", at=1, type="api_error", message="boom")

    _, error = ask()

    assert isinstance(error, anthropic.APIStatusError)
    assert error.status_code == 200
    assert error.type == "api_error"
    assert "boom" in str(error)


def test_only_the_last_event_is_missing(provider: FakeProvider, ask: Ask) -> None:
    provider.reply(ONE_TO_FIVE, fault="no_done")

    events, error = ask()

    assert error is None
    assert (events[-1].type, events[-1].delta.stop_reason) == ("message_delta", "end_turn")


@pytest.mark.parametrize(
    ("fault", "raised"),
    [("reset_before", anthropic.APIConnectionError), ("stall_before", anthropic.APITimeoutError)],
)
def test_a_fault_may_come_before_the_first_byte(
    provider: FakeProvider, ask: Ask, fault: Any, raised: type[Exception]
) -> None:
    provider.reply("x", fault=fault)
    provider.reply("here")

    assert isinstance(ask(timeout=LATE[fault])[1], raised)
    assert said(ask()[0]) == "here"


def test_a_page_may_come_in_place_of_a_reply(provider: FakeProvider) -> None:
    provider.reply("x", fault="html")

    page = posted(provider, stream=True)

    assert (page.status_code, page.headers["content-type"]) == (200, "text/html")


@pytest.mark.parametrize("fault", ["reset", "truncate", "eof", "garbage", "error"])
def test_one_body_breaks_as_well(provider: FakeProvider, fault: Any) -> None:
    provider.reply(ONE_TO_FIVE, fault=fault)

    if fault == "error":
        assert posted(provider).json()["type"] == "error"
        return
    with pytest.raises((httpx2.HTTPError, ValueError)):
        posted(provider).json()


@pytest.mark.parametrize(
    ("status", "raised", "kind"),
    [
        (400, anthropic.BadRequestError, "invalid_request_error"),
        (401, anthropic.AuthenticationError, "authentication_error"),
        (403, anthropic.PermissionDeniedError, "permission_error"),
        (404, anthropic.NotFoundError, "not_found_error"),
        (413, anthropic.ContentTooLargeError, "request_too_large"),
        (429, anthropic.RateLimitError, "rate_limit_error"),
        (500, anthropic.InternalServerError, "api_error"),
        (503, anthropic.ServiceUnavailableError, "api_error"),
        (529, anthropic.OverloadedError, "overloaded_error"),
    ],
)
def test_an_error_status_is_told_in_anthropic_s_form(
    provider: FakeProvider, ask: Ask, status: int, raised: Any, kind: str
) -> None:
    ask()
    provider.reply(FakeReply(status=status, message="so it is", retry_after=7))

    _, error = ask()

    assert isinstance(error, raised)
    assert error.body == {
        "type": "error",
        "error": {"type": kind, "message": "so it is"},
        "request_id": "req_fake_2",
    }
    assert error.request_id == "req_fake_2"
    assert error.response.headers["retry-after"] == "7"


def test_a_prompt_may_be_too_long(provider: FakeProvider, ask: Ask) -> None:
    provider.reply(FakeReply(status=400, code="context_length_exceeded"))

    assert "prompt is too long" in str(ask()[1])


def test_the_sdk_tries_again_what_passes(provider: FakeProvider, ask: Ask) -> None:
    provider.reply(FakeReply(status=529, retry_after=0.001))
    provider.reply(FakeReply(status=429, retry_after=0.001))
    provider.reply("at last")

    events, error = ask(retries=2)

    assert (error, said(events)) == (None, "at last")


# -- what is refused ---------------------------------------------------------------------

USE: Any = {"type": "tool_use", "id": "t1", "name": "f", "input": {}}
RESULT: Any = {"type": "tool_result", "tool_use_id": "t1", "content": "x"}
ANOTHER: Any = {**RESULT, "tool_use_id": "t2"}
CACHED: Any = {"type": "text", "text": "x", "cache_control": {"type": "ephemeral"}}


def user(*blocks: Any) -> dict[str, Any]:
    return {"role": "user", "content": list(blocks)}


def assistant(*blocks: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": list(blocks)}


def text(words: str) -> dict[str, Any]:
    return {"type": "text", "text": words}


def told(*messages: Any, **options: Any) -> dict[str, Any]:
    """A conversation that begins with a prompt."""
    return {"messages": [*PROMPT, *messages], **options}


REFUSED: list[tuple[str, dict[str, Any]]] = [
    ("max_tokens: Field required", {"max_tokens": None}),
    ("max_tokens: must be greater", {"max_tokens": 0}),
    ("at least one message", {"messages": []}),
    ("first message must use the user role", {"messages": [assistant(text("hi")), *PROMPT]}),
    ("messages.1.role", told({"role": "system", "content": "x"})),
    ("messages.1: all messages must have non-empty content", told(assistant(), *PROMPT)),
    ("messages.1: all messages must have non-empty content", told({"role": "user", "content": ""})),
    ("non-whitespace", {"messages": [user(text(""))]}),
    ("non-whitespace", {"messages": [user(text(" \n"))]}),
    ("non-whitespace", told(assistant(USE), user({**RESULT, "content": [text("")]}))),
    ("without `tool_result` blocks immediately after", told(assistant(USE), *PROMPT)),
    (
        "without `tool_result` blocks immediately after",
        told(assistant(USE, {**USE, "id": "t2"}), user(RESULT)),
    ),
    (
        "without `tool_result` blocks immediately after",
        told(assistant(USE), *PROMPT, user(RESULT)),
    ),
    ("without `tool_result` blocks", told(assistant(USE))),
    ("unexpected `tool_use_id`", {"messages": [user(RESULT)]}),
    (
        "unexpected `tool_use_id`",
        told(assistant(USE), user(RESULT, {**RESULT, "tool_use_id": "?"})),
    ),
    ("single result", told(assistant(USE), user(RESULT, RESULT))),
    ("must come first", told(assistant(USE), user(text("so:"), RESULT))),
    ("ids must be unique", told(assistant(USE, USE), user(RESULT))),
    ("ids must be unique", told(assistant(USE), user(RESULT), assistant(USE), user(RESULT))),
    ("tool_use.id", told(assistant({**USE, "id": "a.b"}), user({**RESULT, "tool_use_id": "a.b"}))),
    ("tool_use.input", told(assistant({**USE, "input": "x"}), user(RESULT))),
    ("tool_use.name", told(assistant({**USE, "name": "a b"}), user(RESULT))),
    ("can only be in `user`", told(assistant(RESULT), *PROMPT)),
    ("can only be in `assistant`", {"messages": [user(USE)]}),
    (
        "Invalid `signature`",
        told(assistant({"type": "thinking", "thinking": "hm", "signature": ""}), *PROMPT),
    ),
    (
        "Invalid `signature`",
        told(assistant({"type": "thinking", "thinking": "hm", "signature": "Zm9yZ2Vk"}), *PROMPT),
    ),
    ("Invalid `data`", told(assistant({"type": "redacted_thinking", "data": "x"}), *PROMPT)),
    ("trailing whitespace", told(assistant(text("hi ")))),
    ("prefill", told(assistant(text("hi")), model="claude-opus-4-6")),
    ("prefill", told(assistant(text("hi")), model="claude-sonnet-5")),
    ("prefilled", told(assistant(text("hi")), thinking=THINKS)),
    ("Expected `thinking`", told(assistant(USE), user(RESULT), thinking=THINKS)),
    ("maximum of 4", {"messages": [user(*[CACHED] * 5)]}),
    ("greater than or equal to 1024", {"thinking": {"type": "enabled", "budget_tokens": 99}}),
    ("must be greater than `thinking", {"thinking": THINKS, "max_tokens": 1024}),
    ("may only be set to 1", {"thinking": THINKS, "temperature": 0.5}),
    ("forces tool use", {"thinking": THINKS, "tool_choice": {"type": "any"}}),
    ("range: 0..1", {"temperature": 1.5}),
    ("tools.0.custom.name", {"tools": [{"name": "a b", "input_schema": {}}]}),
]


@pytest.mark.parametrize(("why", "body"), REFUSED)
def test_what_the_service_refuses_is_refused_and_costs_no_reply(
    provider: FakeProvider, why: str, body: dict[str, Any]
) -> None:
    provider.reply("still there")

    refused = posted(provider, **body)

    assert refused.status_code == 400
    assert refused.json()["error"]["type"] == "invalid_request_error"
    assert why in refused.json()["error"]["message"]
    assert given_back(provider) == [text("still there")]


TAKEN: list[dict[str, Any]] = [
    told(*PROMPT),
    told(assistant(text("hi")), assistant(text("there")), *PROMPT),
    told(assistant(text("hi"))),
    told(assistant(text("hi"), USE), user(RESULT, text("and?"))),
    told(assistant(USE), user({"type": "tool_result", "tool_use_id": "t1"})),
    told(assistant(USE, {**USE, "id": "t2"}), user(ANOTHER, RESULT)),
    # Thinking that comes to a finished tool loop, or to none, may be missing there.
    told(assistant(USE), user(RESULT), assistant(text("so")), *PROMPT, thinking=THINKS),
    {"messages": [user(*[CACHED] * 4)]},
    {"thinking": {"type": "adaptive"}, "model": "claude-opus-4-6"},
]


@pytest.mark.parametrize("body", TAKEN)
def test_what_the_service_takes_is_taken(provider: FakeProvider, body: dict[str, Any]) -> None:
    assert posted(provider, **body).status_code == 200


@pytest.mark.parametrize("hidden", [False, True])
def test_thinking_goes_back_as_it_came_or_not_at_all(provider: FakeProvider, hidden: bool) -> None:
    provider.reply(FakeReply(reasoning="so", hidden=hidden, tool_calls=[("f", {}, "t1")]))
    thought, use = given_back(provider)
    loop = told(assistant(thought, use), user(RESULT), thinking=THINKS)

    assert posted(provider, **loop).status_code == 200

    name = "data" if hidden else "thinking"
    altered = {**thought, name: thought[name] + "!"}
    refused = posted(provider, **told(assistant(altered, use), user(RESULT)))
    assert refused.status_code == 400
    assert "thinking" in refused.json()["error"]["message"]


def test_a_signature_of_another_server_is_refused(provider: FakeProvider) -> None:
    with FakeProvider() as other:
        for each in range(2):
            other.reply(FakeReply(reasoning=f"so {each}", text="x"))
            thought = given_back(other)[0]

    refused = posted(provider, **told(assistant(thought, text("x")), *PROMPT))

    assert refused.status_code == 400


def test_tokens_are_counted_under_the_same_rules(provider: FakeProvider) -> None:
    with anthropic.Anthropic(api_key="k", base_url=provider.anthropic_url) as client:
        few = client.messages.count_tokens(model=CLAUDE, messages=PROMPT)
        more = client.messages.count_tokens(model=CLAUDE, messages=PROMPT, system="x" * 400)
        orphan: Any = [user(RESULT)]
        with pytest.raises(anthropic.BadRequestError, match="tool_use_id"):
            client.messages.count_tokens(model=CLAUDE, messages=orphan)

    assert 0 < few.input_tokens < more.input_tokens
