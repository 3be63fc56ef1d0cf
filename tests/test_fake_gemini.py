"""The fake provider as Google, judged by the real SDK: it must take the fake for the service."""

from __future__ import annotations

import asyncio
import json
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import httpx2
import pytest
from four_apis import provider
from google import genai
from google.genai import errors, types

from contextwindow.records import Usage
from contextwindow.testing import FakeProvider, FakeReply

__all__ = ["provider"]

Ask = Callable[..., tuple[list[Any], Exception | None]]

GEMINI = "gemini-3-pro"
ONE_TO_FIVE = "one two three four five"
LATE = defaultdict(lambda: 5.0, stall=0.2, stall_before=0.2)
"""Seconds until a client gives up: enough for a slow machine to send what comes before."""


@pytest.fixture(params=["sync", "async"])
def ask(request: pytest.FixtureRequest, provider: FakeProvider) -> Ask:
    """Asks for a stream: its chunks, and the error that ended it."""

    def options(seconds: float, **more: Any) -> types.HttpOptions:
        timeout = int(seconds * 1000)
        return types.HttpOptions(base_url=provider.gemini_url, timeout=timeout, **more)

    def fields(contents: Any, model: str) -> Any:
        config = types.GenerateContentConfig(automatic_continuation=False)
        return {"model": model, "contents": contents, "config": config}

    def blocking(contents: Any = "hello", *, timeout: float = 5, model: str = GEMINI) -> Any:
        chunks: list[Any] = []
        client = genai.Client(api_key="k", http_options=options(timeout))
        try:
            for chunk in client.models.generate_content_stream(**fields(contents, model)):
                chunks.append(chunk)  # noqa: PERF402 - those before an error count
        except Exception as error:
            return chunks, error
        finally:
            client.close()
        return chunks, None

    async def asynchronous(contents: Any, timeout: float, model: str) -> Any:
        chunks: list[Any] = []
        # Without a client of ours it would take aiohttp where that is installed.
        async with httpx2.AsyncClient() as http:
            settings = options(timeout, httpx_async_client=http)
            client = genai.Client(api_key="k", http_options=settings)
            try:
                stream = await client.aio.models.generate_content_stream(**fields(contents, model))
                async for chunk in stream:
                    chunks.append(chunk)  # noqa: PERF401 - those before an error count
            except Exception as error:
                return chunks, error
            finally:
                client.close()
        return chunks, None

    def on_a_loop(contents: Any = "hello", *, timeout: float = 5, model: str = GEMINI) -> Any:
        return asyncio.run(asynchronous(contents, timeout, model))

    return blocking if request.param == "sync" else on_a_loop


def parts(chunks: list[Any]) -> list[Any]:
    contents = [chunk.candidates[0].content for chunk in chunks if chunk.candidates]
    return [part for content in contents for part in content.parts or ()]


def said(chunks: list[Any]) -> str:
    return "".join(part.text or "" for part in parts(chunks) if not part.thought)


def posted(
    provider: FakeProvider,
    contents: Any = None,
    *,
    method: str = "generateContent",
    model: str = GEMINI,
) -> httpx2.Response:
    """The answer to a request that the SDK would not make."""
    address = f"{provider.gemini_url}/v1beta/models/{model}:{method}"
    return httpx2.post(address, json={"contents": [PROMPT] if contents is None else contents})


def given_back(provider: FakeProvider, contents: Any = None) -> list[dict[str, Any]]:
    """The parts of a reply in one body."""
    (candidate,) = posted(provider, contents).json()["candidates"]
    found: list[dict[str, Any]] = candidate["content"]["parts"]
    return found


def user(*given: Any) -> dict[str, Any]:
    return {"role": "user", "parts": list(given)}


def model(*given: Any) -> dict[str, Any]:
    return {"role": "model", "parts": list(given)}


PROMPT: Any = user({"text": "hello"})


# -- replies -----------------------------------------------------------------------------


def test_a_stream_has_thoughts_text_and_calls_in_its_order(
    provider: FakeProvider, ask: Ask
) -> None:
    calls = [("f", {"a": 1}), ("g", {})]
    provider.reply(FakeReply("Look here.", reasoning="hm hm", tool_calls=calls))

    chunks, error = ask()

    assert error is None
    found = parts(chunks)
    assert [part.text for part in found if part.thought] == ["hm", " hm"]
    assert [part.text for part in found if part.text and not part.thought] == ["Look", " here."]
    asked = [part for part in found if part.function_call]
    assert [(one.function_call.name, one.function_call.args) for one in asked] == calls
    assert [one.function_call.id for one in asked] == ["call_1_1", "call_1_2"]
    assert [bool(part.thought_signature) for part in found] == [*[False] * 4, True, False, False]
    ends = [chunk.candidates[0].finish_reason for chunk in chunks]
    assert ends == [*[None] * 6, "STOP"]
    assert {chunk.model_version for chunk in chunks} == {GEMINI}
    assert {chunk.response_id for chunk in chunks} == {"fake-1"}


REPLIES: list[tuple[FakeReply, str, str]] = [
    (FakeReply("hi there"), "hi there", "STOP"),
    (FakeReply(chunks=["a", "b\n", " 🎉 "]), "ab\n 🎉 ", "STOP"),
    (FakeReply("x", reasoning="hm"), "x", "STOP"),
    (FakeReply("x", reasoning="hm", hidden=True), "x", "STOP"),
    (FakeReply("x", tool_calls=[("f", {})]), "x", "STOP"),
    (FakeReply(refusal="I won't."), "I won't.", "SAFETY"),
    (FakeReply("cut", finish_reason="length"), "cut", "MAX_TOKENS"),
    (FakeReply(finish_reason="content_filter"), "", "SAFETY"),
    (FakeReply("x", pauses=True), "x", "STOP"),
]


@pytest.mark.parametrize(("reply", "text", "reason"), REPLIES)
def test_the_sdk_reads_a_stream(
    provider: FakeProvider, ask: Ask, reply: FakeReply, text: str, reason: str
) -> None:
    provider.reply(reply)

    chunks, error = ask()

    assert error is None
    assert said(chunks) == text
    assert chunks[-1].candidates[0].finish_reason == reason


@pytest.mark.parametrize(("reply", "text", "reason"), REPLIES)
def test_one_body_and_the_array_say_the_same(
    provider: FakeProvider, reply: FakeReply, text: str, reason: str
) -> None:
    provider.reply(reply)
    provider.reply(reply)

    body = posted(provider).json()
    array = posted(provider, method="streamGenerateContent")

    whole = types.GenerateContentResponse.model_validate(body)
    pieces = [types.GenerateContentResponse.model_validate(chunk) for chunk in array.json()]
    assert said([whole]) == said(pieces) == text
    assert whole.candidates is not None
    assert whole.candidates[0].finish_reason == reason
    assert array.headers["content-type"].startswith("application/json")
    signed = [part for part in parts([whole]) if part.thought_signature]
    assert len(signed) == (1 if reply.reasoning or reply.tool_calls else 0)
    assert len(signed) == len([part for part in parts(pieces) if part.thought_signature])


def test_text_after_thoughts_ends_with_a_signature_in_a_part_of_its_own(
    provider: FakeProvider, ask: Ask
) -> None:
    provider.reply(FakeReply("so", reasoning="hm"))

    last = parts(ask()[0])[-1]

    assert (last.text, bool(last.thought_signature)) == ("", True)


def test_thoughts_may_be_hidden_and_are_counted(provider: FakeProvider, ask: Ask) -> None:
    provider.reply(FakeReply("so", reasoning="let me see", hidden=True))

    chunks, _ = ask()

    assert not any(part.thought for part in parts(chunks))
    assert chunks[-1].usage_metadata.thoughts_token_count == 3
    assert chunks[-1].usage_metadata.candidates_token_count == 1


def test_usage_is_in_gemini_s_terms(provider: FakeProvider, ask: Ask) -> None:
    used = Usage(100, 7, cache_read_tokens=30, reasoning_tokens=4)
    provider.reply(FakeReply("hi", usage=used))

    counts = ask()[0][-1].usage_metadata

    assert counts.prompt_token_count == 100
    assert counts.cached_content_token_count == 30
    assert (counts.candidates_token_count, counts.thoughts_token_count) == (3, 4)
    assert counts.total_token_count == 107


def test_calls_may_come_without_ids(provider: FakeProvider, ask: Ask) -> None:
    calls: Any = [("f", {"a": 1}, "mine"), ("f", {"a": 2})]
    provider.reply(FakeReply(tool_calls=calls, call_ids=False))

    chunks, error = ask()

    assert error is None
    asked = [part.function_call for part in parts(chunks) if part.function_call]
    assert [(one.id, one.args) for one in asked] == [(None, {"a": 1}), (None, {"a": 2})]


@pytest.mark.parametrize("raw", ['{"a": [1, 2', "[1]", '{"a": NaN}', "7"])
def test_a_call_that_is_no_object_is_a_malformed_one(
    provider: FakeProvider, ask: Ask, raw: str
) -> None:
    provider.reply(FakeReply(tool_calls=[("f", {}), ("g", raw)]))

    chunks, error = ask()

    assert error is None
    assert [part.function_call.name for part in parts(chunks) if part.function_call] == ["f"]
    assert chunks[-1].candidates[0].finish_reason == "MALFORMED_FUNCTION_CALL"


def test_a_prompt_may_be_blocked(provider: FakeProvider, ask: Ask) -> None:
    for _ in range(3):
        provider.reply(FakeReply("x", blocked=True))

    chunks, error = ask()

    assert error is None
    assert [chunk.prompt_feedback.block_reason for chunk in chunks] == ["SAFETY"]
    assert chunks[0].candidates is None
    assert posted(provider).json()["promptFeedback"]["blockReason"] == "SAFETY"
    (only,) = posted(provider, method="streamGenerateContent").json()
    assert "candidates" not in only


def test_a_reply_that_is_asked_to_go_on_says_what_is_missing(
    provider: FakeProvider, ask: Ask
) -> None:
    provider.default = FakeReply(ONE_TO_FIVE, continues=True, echo=4)
    thought = {"text": "hm", "thought": True}

    chunks, _ = ask([PROMPT, model(thought, {"text": "one two"}), PROMPT])

    assert said(chunks) == " two three four five"
    assert said(ask()[0]) == ONE_TO_FIVE


def test_tokens_are_counted(provider: FakeProvider) -> None:
    client = genai.Client(api_key="k", http_options={"base_url": provider.gemini_url})
    few = client.models.count_tokens(model=GEMINI, contents="hello").total_tokens or 0
    more = client.models.count_tokens(model=GEMINI, contents="hello" * 9).total_tokens or 0
    client.close()

    assert 0 < few < more


# -- faults ------------------------------------------------------------------------------

FAULTS: list[tuple[str, type[Exception] | None]] = [
    ("reset", httpx2.ReadError),
    ("truncate", httpx2.RemoteProtocolError),
    ("eof", None),
    ("eof_mid", errors.UnknownApiResponseError),
    ("eof_close", None),
    ("no_done", None),
    ("error", errors.ServerError),
    ("failed", errors.ServerError),
    ("stall", httpx2.ReadTimeout),
    ("garbage", errors.UnknownApiResponseError),
]


@pytest.mark.parametrize("at", [0, 2, 4, None])
@pytest.mark.parametrize(("fault", "raised"), FAULTS)
def test_a_fault_shows_as_the_service_s_does(
    provider: FakeProvider, ask: Ask, fault: Any, at: Any, raised: Any
) -> None:
    provider.reply(ONE_TO_FIVE, fault=fault, at=at)

    chunks, error = ask(timeout=LATE[fault])

    before = None if fault == "no_done" else at
    assert said(chunks) == " ".join(ONE_TO_FIVE.split()[:before])
    assert type(error) is type(None) if raised is None else isinstance(error, raised)
    assert not any(chunk.candidates[0].finish_reason for chunk in chunks)


@pytest.mark.parametrize(("fault", "raised"), FAULTS)
@pytest.mark.parametrize(("at", "thought", "asked"), [(1, 1, 0), (2, 2, 0), (4, 2, 1)])
def test_a_fault_may_come_while_the_model_thinks_or_calls(
    provider: FakeProvider, ask: Ask, fault: Any, raised: Any, at: int, thought: int, asked: int
) -> None:
    calls: Any = [("f", {}), ("g", {})]
    provider.reply(FakeReply("text", reasoning="a b", tool_calls=calls, fault=fault, at=at))

    chunks, error = ask(timeout=LATE[fault])

    if fault != "no_done":
        assert sum(bool(part.thought) for part in parts(chunks)) == thought
        assert sum(bool(part.function_call) for part in parts(chunks)) == asked
    assert type(error) is type(None) if raised is None else isinstance(error, raised)


@pytest.mark.parametrize(
    ("kind", "code", "raised"),
    [
        ("UNAVAILABLE", 503, errors.ServerError),
        ("INTERNAL", 500, errors.ServerError),
        ("RESOURCE_EXHAUSTED", 429, errors.ClientError),
    ],
)
def test_an_error_in_the_stream_has_google_s_form(
    provider: FakeProvider, ask: Ask, kind: str, code: int, raised: type[errors.APIError]
) -> None:
    provider.reply("one two", fault="error", at=1, type=kind, message="boom")

    chunks, error = ask()

    assert said(chunks) == "one"
    assert isinstance(error, raised)
    assert (error.code, error.status, error.message) == (code, kind, "boom")


@pytest.mark.parametrize("at", [0, 2])
@pytest.mark.parametrize("fault", ["reset", "truncate", "eof", "eof_mid", "error", "garbage"])
def test_an_array_breaks_as_well(provider: FakeProvider, fault: Any, at: int) -> None:
    provider.reply(ONE_TO_FIVE, fault=fault, at=at)

    if fault == "error":
        *chunks, last = posted(provider, method="streamGenerateContent").json()
        assert (len(chunks), last["error"]["code"]) == (at, 503)
        return
    with pytest.raises((httpx2.HTTPError, ValueError)):
        posted(provider, method="streamGenerateContent").json()


@pytest.mark.parametrize("fault", ["reset", "truncate", "eof", "garbage", "error"])
def test_one_body_breaks_as_well(provider: FakeProvider, fault: Any) -> None:
    provider.reply(ONE_TO_FIVE, fault=fault)

    if fault == "error":
        assert posted(provider).json()["error"]["status"] == "UNAVAILABLE"
        return
    with pytest.raises((httpx2.HTTPError, ValueError)):
        posted(provider).json()


@pytest.mark.parametrize(
    ("fault", "raised"),
    [
        # Through the asynchronous client a lost connection may be seen as one that was closed.
        ("reset_before", (httpx2.ReadError, httpx2.RemoteProtocolError)),
        ("stall_before", httpx2.ReadTimeout),
    ],
)
def test_a_fault_may_come_before_the_first_byte(
    provider: FakeProvider, ask: Ask, fault: Any, raised: Any
) -> None:
    provider.reply("x", fault=fault)
    provider.reply("here")

    assert isinstance(ask(timeout=LATE[fault])[1], raised)
    assert said(ask()[0]) == "here"


def test_a_stream_request_may_get_one_body_or_a_page(provider: FakeProvider) -> None:
    provider.reply("all at once", fault="json_body")
    provider.reply("", fault="html")

    whole, page = (posted(provider, method="streamGenerateContent?alt=sse") for _ in range(2))

    assert whole.json()["candidates"][0]["content"]["parts"][0]["text"] == "all at once"
    assert (page.status_code, page.headers["content-type"]) == (200, "text/html")


@pytest.mark.parametrize(
    ("status", "raised", "kind"),
    [
        (400, errors.ClientError, "INVALID_ARGUMENT"),
        (403, errors.ClientError, "PERMISSION_DENIED"),
        (404, errors.ClientError, "NOT_FOUND"),
        (429, errors.ClientError, "RESOURCE_EXHAUSTED"),
        (500, errors.ServerError, "INTERNAL"),
        (503, errors.ServerError, "UNAVAILABLE"),
        (504, errors.ServerError, "DEADLINE_EXCEEDED"),
    ],
)
def test_an_error_status_is_told_in_google_s_form(
    provider: FakeProvider, ask: Ask, status: int, raised: Any, kind: str
) -> None:
    provider.reply(FakeReply(status=status, message="so it is", retry_after=7))

    _, error = ask()

    assert isinstance(error, raised)
    wait = {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "7s"}
    told = {"code": status, "message": "so it is", "status": kind, "details": [wait]}
    assert error.details == {"error": told}
    provider.reply(FakeReply(status=status, message="so it is", retry_after=7))
    assert posted(provider, method="streamGenerateContent").json() == [{"error": told}]


# -- what is refused ---------------------------------------------------------------------

DUMMY = "skip_thought_signature_validator"
CALL: Any = {"functionCall": {"name": "f", "args": {}, "id": "1"}, "thoughtSignature": DUMMY}
SAID: Any = {"functionResponse": {"name": "f", "id": "1", "response": {"output": 1}}}
UNSIGNED: Any = {"functionCall": CALL["functionCall"]}
TEXT: Any = {"text": "hi"}


def asking(**changes: Any) -> dict[str, Any]:
    return {**CALL, "functionCall": {**CALL["functionCall"], **changes}}


def answering(**changes: Any) -> dict[str, Any]:
    return {"functionResponse": {**SAID["functionResponse"], **changes}}


REFUSED: list[tuple[str, list[Any]]] = [
    ("contents is not specified", []),
    ("valid role", [{"role": "assistant", "parts": [TEXT]}]),
    ("valid role", [PROMPT, model(CALL), {"role": "function", "parts": [SAID]}]),
    ("ends with a user role or a function response", [PROMPT, model(TEXT)]),
    ("begins with a user turn", [model(TEXT), PROMPT]),
    ("take turns", [PROMPT, PROMPT]),
    ("must not be empty", [PROMPT, model(), PROMPT]),
    ("must have one initialized field", [user({"text": ""})]),
    ("must have one initialized field", [PROMPT, model({"thought": True}), PROMPT]),
    ("number of function response parts", [PROMPT, model(CALL), PROMPT]),
    ("number of function response parts", [PROMPT, model(CALL, asking(id="2")), user(SAID)]),
    ("number of function response parts", [PROMPT, model(CALL), user(SAID, answering(id="2"))]),
    ("immediately after a function call", [user(SAID)]),
    ("immediately after a function call", [PROMPT, model(TEXT), user(SAID)]),
    ("match their function calls", [PROMPT, model(CALL), user(answering(name="g"))]),
    ("match their function calls", [PROMPT, model(CALL), user(answering(id="2"))]),
    ("missing a thought_signature", [PROMPT, model(UNSIGNED), user(SAID)]),
    (
        "missing a thought_signature",
        [PROMPT, model(CALL), user(SAID), model(UNSIGNED), user(SAID)],
    ),
    (
        "missing a thought_signature",
        [PROMPT, model(UNSIGNED), user(SAID), model(CALL), user(SAID)],
    ),
    ("Corrupted", [PROMPT, model({**CALL, "thoughtSignature": "Zm9yZ2Vk"}), user(SAID)]),
    ("Corrupted", [PROMPT, model({**TEXT, "thoughtSignature": "Zm9yZ2Vk"}), PROMPT]),
    ("function_call.args", [PROMPT, model(asking(args="x")), user(SAID)]),
    ("function_response.response", [PROMPT, model(CALL), user(answering(response="x"))]),
    ("Invalid function name", [PROMPT, model(asking(name="a b")), user(answering(name="a b"))]),
    ("of the user's turn", [PROMPT, model(CALL, SAID), user(SAID)]),
    ("of the model's turn", [user(CALL)]),
]


@pytest.mark.parametrize(("why", "contents"), REFUSED)
def test_what_the_service_refuses_is_refused_and_costs_no_reply(
    provider: FakeProvider, why: str, contents: list[Any]
) -> None:
    provider.reply("still there")

    refused = posted(provider, contents)

    assert refused.status_code == 400
    assert refused.json()["error"]["status"] == "INVALID_ARGUMENT"
    assert why in refused.json()["error"]["message"]
    assert given_back(provider) == [{"text": "still there"}]


TAKEN: list[list[Any]] = [
    [{"parts": [TEXT]}],
    [PROMPT, model(TEXT), PROMPT],
    [PROMPT, model(CALL), user(SAID)],
    [PROMPT, model(CALL), user(SAID, {"text": "and?"})],
    [PROMPT, model(CALL, asking(id="2")), user(SAID, answering(id="2"))],
    # Only the first of parallel calls is signed.
    [PROMPT, model(CALL, {"functionCall": {"name": "g"}}), user(SAID, answering(name="g", id=""))],
    # Turns that are over are not looked at.
    [PROMPT, model(UNSIGNED), user(SAID), model(TEXT), PROMPT],
    [PROMPT, model({"text": "hm", "thought": True}, TEXT), PROMPT],
]


@pytest.mark.parametrize("contents", TAKEN)
def test_what_the_service_takes_is_taken(provider: FakeProvider, contents: list[Any]) -> None:
    assert posted(provider, contents).status_code == 200


@pytest.mark.parametrize("name", ["gemini-2.5-flash", "gemini-2.0-flash", "gemini-1.5-pro"])
def test_older_models_ask_for_no_signature(provider: FakeProvider, name: str) -> None:
    loop = [PROMPT, model(UNSIGNED), user(SAID)]

    assert posted(provider, loop, model=name).status_code == 200
    assert posted(provider, loop, model="gemini-3.1-flash").status_code == 400


@pytest.mark.parametrize("ids", [False, True])
def test_what_was_signed_here_goes_back(provider: FakeProvider, ids: bool) -> None:
    provider.reply(FakeReply("so", tool_calls=[("f", {}), ("g", {})], call_ids=ids))
    reply = given_back(provider)
    calls = [part["functionCall"] for part in reply if "functionCall" in part]
    answers = [
        {"functionResponse": {**{k: v for k, v in call.items() if k != "args"}, "response": {}}}
        for call in calls
    ]

    provider.reply(FakeReply("done", reasoning="hm"))
    loop = [PROMPT, model(*reply), user(*answers)]
    last = given_back(provider, loop)

    assert [part.get("text") for part in last] == ["hm", "done"]
    assert posted(provider, [*loop, model(*last), PROMPT]).status_code == 200
    with FakeProvider() as other:
        assert posted(other, loop).status_code == 400


def test_all_that_comes_is_json(provider: FakeProvider) -> None:
    provider.reply(FakeReply("one two", reasoning="hm"))

    text = posted(provider, method="streamGenerateContent?alt=sse").text

    events = [json.loads(line.removeprefix("data: ")) for line in text.split("\n") if line]
    assert len(events) == 4
