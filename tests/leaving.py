"""Ways to leave a stream early, for tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from support import file as file
from support import run as run

from contextwindow import (
    ContextWindow,
    StreamChunk,
)

Leave = Callable[[ContextWindow], "tuple[str, BaseException | None]"]


def until_three(stream: Any) -> Iterator[str]:
    """The text of a stream up to " three", which is the last that is delivered."""
    for chunk in stream:
        yield chunk.delta
        if chunk.delta == " three":
            return


def by_break(window: ContextWindow) -> tuple[str, BaseException | None]:
    seen = ""
    for chunk in window.call_model_streaming():
        seen += chunk.delta
        if chunk.delta == " three":
            break
    return seen, None


def by_break_in_with(window: ContextWindow) -> tuple[str, BaseException | None]:
    seen = ""
    with window.call_model_streaming() as stream:
        for chunk in stream:
            seen += chunk.delta
            if chunk.delta == " three":
                break
    return seen, None


def by_an_exception_in_the_loop(window: ContextWindow) -> tuple[str, BaseException | None]:
    seen = ""
    try:
        with window.call_model_streaming() as stream:
            for chunk in stream:
                seen += chunk.delta
                if chunk.delta == " three":
                    raise LookupError("mine")
    except LookupError as error:
        return seen, error
    raise AssertionError("the exception was lost")


def by_an_exception_in_the_callback(window: ContextWindow) -> tuple[str, BaseException | None]:
    seen: list[str] = []
    mine = LookupError("mine")

    def callback(chunk: StreamChunk) -> None:
        seen.append(chunk.delta)
        if chunk.delta == " three":
            raise mine

    with pytest.raises(LookupError) as caught:
        window.call_model_streaming().until_done(callback)
    assert caught.value is mine
    assert caught.value.__cause__ is None
    return "".join(seen), mine


def by_closing(window: ContextWindow) -> tuple[str, BaseException | None]:
    seen = ""
    with window.call_model_streaming() as stream:
        for text in until_three(stream):
            seen += text
        stream.close()
        stream.close()
    return seen, None


def by_cancel_in_the_loop(window: ContextWindow) -> tuple[str, BaseException | None]:
    seen = ""
    kinds = []
    with window.call_model_streaming() as stream:
        for chunk in stream:
            seen += chunk.delta
            kinds.append(chunk.type)
            if chunk.delta == " three":
                stream.cancel()
    assert kinds[-1] == "done"
    assert stream.reply.finish_reason == "cancelled"
    assert stream.reply.text == seen
    return seen, None


def by_cancel_in_the_callback(window: ContextWindow) -> tuple[str, BaseException | None]:
    seen: list[str] = []
    stream = window.call_model_streaming()

    def callback(chunk: StreamChunk) -> None:
        seen.append(chunk.delta)
        if chunk.delta == " three":
            stream.cancel()

    reply = stream.until_done(callback)
    assert reply.finish_reason == "cancelled"
    return "".join(seen), None


LEAVES: list[Leave] = [
    by_break_in_with,
    by_an_exception_in_the_loop,
    by_an_exception_in_the_callback,
    by_closing,
    by_cancel_in_the_loop,
    by_cancel_in_the_callback,
]
