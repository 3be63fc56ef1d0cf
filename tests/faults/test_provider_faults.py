"""Providers that are slow, strange or forgetful, on every API."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

import pytest
from decoders import DECODERS
from decoding import Decoded, decode
from four_apis import APIS
from four_apis import opened as opened
from four_apis import provider as provider
from support import run as run
from support import shown

from contextwindow import ContextWindow, OpenAIResponsesModel, StreamInterrupted
from contextwindow.testing import FakeProvider, FakeReply

Opened = Callable[..., ContextWindow]


def answer(api: str, *events: Any) -> Decoded:
    return decode(
        DECODERS[api](), [b"data: " + json.dumps(one).encode() + b"\n\n" for one in events]
    )


@pytest.mark.parametrize("at", range(6))
@pytest.mark.parametrize("fault", ["eof", "eof_mid", "eof_close", "truncate", "reset"])
@pytest.mark.parametrize("api", APIS)
def test_an_end_at_any_event_is_no_end_of_the_reply(
    opened: Opened, provider: FakeProvider, tmp_path: Any, api: str, fault: Any, at: int
) -> None:
    """Fault 9: A clean end without the terminal event, behind and inside each event."""
    window = opened(api, str(tmp_path / "chat.db"))
    pieces = ["one ", "two ", "three ", "four ", "five"]
    provider.reply(FakeReply(chunks=pieces, fault=fault, at=at))
    window.add_prompt("count")
    chunks: list[Any] = []

    with pytest.raises(StreamInterrupted) as caught:
        chunks.extend(window.call_model_streaming(max_resumes=0))

    kept = window.interrupted()[0].partial_text
    assert kept == caught.value.partial_text
    assert "one two three four five".startswith(kept)


@pytest.mark.parametrize("api", APIS)
def test_a_slow_stream_that_says_something_in_time_is_left_alone(
    opened: Opened, provider: FakeProvider, tmp_path: Any, api: str
) -> None:
    """Fault 11: A slow stream that sends a byte in time is left alone."""
    window = opened(api, str(tmp_path / "chat.db"))
    provider.reply(FakeReply(chunks=[f"{n} " for n in range(12)], pace=0.3))
    window.add_prompt("count")
    begun = time.monotonic()

    text = shown(list(window.call_model_streaming(timeout=2)))

    assert text == "".join(f"{n} " for n in range(12))
    assert time.monotonic() - begun > 2


@pytest.mark.parametrize("api", APIS)
def test_the_wait_before_another_attempt_can_be_cancelled(
    opened: Opened, provider: FakeProvider, tmp_path: Any, api: str
) -> None:
    """Fault 12: The wait is reported (`Retrying`) and can be cancelled."""
    window = opened(api, str(tmp_path / "chat.db"))
    provider.default = FakeReply("x", status=429, retry_after=50)
    window.add_prompt("hello")
    stream = window.call_model_streaming()
    begun = time.monotonic()
    kinds = []
    for chunk in stream:
        kinds.append(chunk.type)
        if chunk.type == "retrying":
            assert chunk.delay == 50
            stream.cancel()

    assert kinds[-2:] == ["retrying", "done"]
    assert time.monotonic() - begun < 40


USAGES: list[Any] = [
    {},
    None,
    [],
    {"prompt_tokens": -5, "completion_tokens": -1},
    {"prompt_tokens": "many", "completion_tokens": 1.5},
    {"prompt_tokens": None},
    {"prompt_tokens": 10**30, "completion_tokens": True},
]


@pytest.mark.parametrize("usage", USAGES, ids=repr)
def test_usage_that_makes_no_sense_is_not_taken_for_one(usage: Any) -> None:
    """Fault 16: Usage missing, negative, of a wrong type, absurd."""
    text = {
        "id": "1",
        "choices": [{"index": 0, "delta": {"content": "x"}, "finish_reason": "stop"}],
    }
    decoded = answer("openai-chat", text, {"choices": [], "usage": usage}, {"choices": []})

    assert decoded.error is None
    assert decoded.text("text") == "x"
    found = decoded.decoder.usage
    assert found is None or (0 <= found.input_tokens < 10**18 and 0 <= found.output_tokens < 10**18)


def test_usage_that_is_sent_twice_counts_once() -> None:
    """Fault 16: Usage sent twice, as servers do that send it with each chunk."""
    usage = {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7}
    chunk = {"id": "1", "choices": [{"index": 0, "delta": {"content": "x"}}], "usage": usage}
    end = {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}], "usage": usage}
    decoded = answer("openai-chat", chunk, chunk, end, {"choices": [], "usage": usage})

    assert decoded.decoder.usage is not None
    assert decoded.decoder.usage.total_tokens == 7


@pytest.mark.parametrize("reason", [None, "", "because", 3])
def test_a_finish_reason_that_is_unknown_ends_a_reply_all_the_same(reason: Any) -> None:
    """Fault 16: Finish reason unknown, or missing before `[DONE]`; ids absent."""
    chunk = {"choices": [{"index": 0, "delta": {"content": "x"}}]}
    end = {"choices": [{"index": 0, "delta": {}, "finish_reason": reason}]}
    body = b"".join(b"data: " + json.dumps(one).encode() + b"\n\n" for one in (chunk, end))
    decoded = decode(DECODERS["openai-chat"](), [body + b"data: [DONE]\n\n"])

    assert decoded.error is None
    assert decoded.decoder.finished
    assert decoded.text("text") == "x"


@pytest.mark.parametrize(("forget", "strategy"), [(False, "cursor"), (True, "continue")])
def test_a_background_reply_that_is_forgotten_goes_on_by_the_next_rung(
    provider: FakeProvider, forget: bool, strategy: str
) -> None:
    """Fault 19: A background stream that the provider no longer has: the next rung."""
    text = "one two three four five"
    provider.default = FakeReply(text, continues=True)
    provider.reply(FakeReply(text, fault="reset", at=3, forget=forget))
    model = OpenAIResponsesModel("m", base_url=provider.openai_url, api_key="k", background=True)
    with ContextWindow(model=model) as window:
        window.add_prompt("count")
        with window.call_model_streaming() as stream:
            resumed = [chunk.strategy for chunk in stream if chunk.type == "resumed"]
        assert stream.reply.text == text
    model.close()

    assert resumed[-1] == strategy
