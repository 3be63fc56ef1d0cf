"""Replies that break off, on all four APIs, over a real connection and through the real SDKs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from four_apis import APIS, opened, provider
from support import check_order, file, problems, read, responses, run, shown, states

from contextwindow import (
    ContextWindow,
    ModelTimeout,
    Overloaded,
    RateLimited,
    Resumed,
    StreamInterrupted,
)
from contextwindow.testing import FakeProvider, FakeReply

__all__ = ["file", "opened", "provider", "run"]

Opened = Callable[..., ContextWindow]
TEXT = "one two three four five six seven eight nine ten"
BREAKS = ("reset", "truncate", "eof", "eof_mid", "eof_close", "garbage")
STRATEGIES = {"anthropic": "prefill"}


@pytest.mark.parametrize("at", [0, 1, 5, 9])
@pytest.mark.parametrize("fault", BREAKS)
@pytest.mark.parametrize("api", APIS)
def test_a_reply_that_breaks_off_is_gone_on_with_and_read_once(
    opened: Opened, file: str, provider: FakeProvider, api: str, fault: Any, at: int
) -> None:
    """Fault 10: Resets and unfinished bodies on every API: interrupted, kept, gone on with."""
    window = opened(api, file)
    provider.reply(FakeReply(TEXT, fault=fault, at=at))
    provider.reply(FakeReply(TEXT, continues=True))
    window.add_prompt("count")

    stream = window.call_model_streaming()
    chunks, error = read(stream)

    assert error is None
    check_order(chunks, stream.reply)
    assert shown(chunks) == stream.reply.text == TEXT
    assert [one.content for one in responses(window)] == [TEXT]
    assert states(window) == ["complete"]
    strategies = [chunk.strategy for chunk in chunks if isinstance(chunk, Resumed)]
    usual = STRATEGIES.get(api, "continue")
    # A reset may overtake the bytes before it.
    assert strategies in ([usual], ["regenerate"])
    assert strategies == [usual] or at == 0 or fault == "reset"
    assert problems(file) == []


@pytest.mark.parametrize("fault", BREAKS)
@pytest.mark.parametrize("api", APIS)
def test_a_reply_that_only_lacks_its_end_is_not_taken_for_finished(
    opened: Opened, file: str, provider: FakeProvider, api: str, fault: Any
) -> None:
    """Fault 9: A clean end without the terminal event, on every API: no finished reply."""
    window = opened(api, file)
    provider.reply(FakeReply(TEXT, fault=fault))
    window.add_prompt("count")

    chunks, error = read(window.call_model_streaming(max_resumes=0))

    assert isinstance(error, StreamInterrupted)
    assert TEXT.startswith(error.partial_text)
    assert shown(chunks) == error.partial_text
    assert states(window) == ["interrupted"]
    assert window.interrupted()[0].partial_text == error.partial_text


@pytest.mark.parametrize("api", APIS)
def test_a_stall_times_out_and_keeps_what_came(
    opened: Opened, file: str, provider: FakeProvider, api: str
) -> None:
    """Fault 11: A stall ends after `timeout` on every API."""
    window = opened(api, file)
    provider.reply(FakeReply(TEXT, fault="stall", at=3))
    window.add_prompt("count")

    chunks, error = read(window.call_model_streaming(timeout=0.3))

    assert isinstance(error, ModelTimeout)
    assert shown(chunks) == "one two three"
    provider.reply(FakeReply(TEXT, continues=True))
    assert window.resume().text == TEXT


@pytest.mark.parametrize("api", APIS)
def test_an_error_in_the_stream_is_mapped_and_keeps_what_came(
    opened: Opened, file: str, provider: FakeProvider, api: str
) -> None:
    """Fault 13: Error events in the stream of every API are mapped; what came is kept."""
    window = opened(api, file)
    provider.reply(FakeReply(TEXT, fault="error", at=3))
    window.add_prompt("count")

    chunks, error = read(window.call_model_streaming())

    assert isinstance(error, Overloaded)
    assert error.partial_text == shown(chunks) == "one two three"
    assert states(window) == ["interrupted"]


@pytest.mark.parametrize("api", APIS)
def test_a_refusal_before_the_stream_is_tried_again_and_told(
    opened: Opened, file: str, provider: FakeProvider, api: str
) -> None:
    """Fault 12: 429, 500, 503, 529 before the stream: tried again and told."""
    window = opened(api, file)
    provider.reply(FakeReply(status=429, retry_after=0.01))
    provider.reply(FakeReply(status=503))
    provider.reply(TEXT)
    window.add_prompt("count")

    stream = window.call_model_streaming()
    chunks, error = read(stream)

    assert error is None
    assert stream.reply.text == TEXT
    retries = [chunk for chunk in chunks if chunk.type == "retrying"]
    assert [type(chunk.error) for chunk in retries] == [RateLimited, Overloaded]


@pytest.mark.parametrize("api", APIS)
def test_one_body_is_a_whole_reply(
    opened: Opened, file: str, provider: FakeProvider, api: str
) -> None:
    """Fault 20: One JSON body in answer to a stream request is a reply."""
    window = opened(api, file, model={"stream": False})
    provider.reply(FakeReply(TEXT, reasoning="let me count"))
    window.add_prompt("count")

    reply = window.call_model()

    assert (reply.text, reply.reasoning) == (TEXT, "let me count")
    assert not reply.usage.estimated


@pytest.mark.parametrize("api", APIS)
def test_an_interrupted_reply_s_usage_is_estimated_and_marked(
    opened: Opened, file: str, provider: FakeProvider, api: str
) -> None:
    """Fault 16: Usage that never came is estimated and marked."""
    window = opened(api, file)
    provider.reply(FakeReply(TEXT, fault="truncate", at=5))
    provider.reply(FakeReply(TEXT, continues=True))
    window.add_prompt("count")

    reply = window.call_model()

    first, second = window.calls()
    assert first.usage is not None
    assert first.usage.estimated
    assert first.usage.output_tokens > 0
    assert second.usage is not None
    assert not second.usage.estimated
    assert reply.usage.estimated
    assert reply.usage.total_tokens == window.total_tokens()
