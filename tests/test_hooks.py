"""Hooks around a stream: their order, what they change, and what becomes of their errors."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest
from support import (
    COUNT,
    Open,
    Recorder,
    check_order,
    contents,
    problems,
    read,
    ready,
    responses,
    shown,
    states,
    usable,
)
from support import file as file
from support import run as run

from contextwindow import (
    DROP,
    AsyncContextWindow,
    ConfigError,
    ContextWindow,
    Middleware,
    MiddlewareError,
    StreamChunk,
    StreamInterrupted,
    TextDelta,
    handler,
)
from contextwindow.testing import ScriptedModel, ScriptedReply


def test_hooks_see_every_chunk_in_order_of_registration_and_then_the_caller(
    file: str, run: Open
) -> None:
    log: list[tuple[Any, ...]] = []
    window = ready(run, file, "a b", middleware=[Recorder("1", log), Recorder("2", log)])

    window.call_model_streaming().until_done(lambda chunk: log.append(("caller", chunk.type)))

    tokens = window.total_tokens()
    assert log == [
        *[("1", "start"), ("2", "start")],
        *_seen("stream_start", ""),
        *[("1", "call_start", ["count"]), ("2", "call_start", ["count"])],
        *_seen("text_delta", "a"),
        *_seen("text_delta", " b"),
        *_seen("usage_report", ""),
        *[("1", "complete", "a b", tokens), ("2", "complete", "a b", tokens)],
        *_seen("done", ""),
    ]


def _seen(kind: str, delta: str) -> list[tuple[Any, ...]]:
    return [("1", "chunk", kind, delta), ("2", "chunk", kind, delta), ("caller", kind)]


class Upper(Middleware):
    """Replaces every text by its capitals."""

    def on_stream_chunk(self, chunk: StreamChunk) -> StreamChunk | None:
        if isinstance(chunk, TextDelta):
            return replace(chunk, delta=chunk.delta.upper(), metadata={"was": chunk.delta})
        return None


class Without(Middleware):
    """Drops every chunk of text that holds *word*."""

    def __init__(self, word: str) -> None:
        self.word = word

    def on_stream_chunk(self, chunk: StreamChunk) -> Any:
        return DROP if chunk.delta and self.word in chunk.delta else None


@pytest.mark.parametrize("batch", [1, 100])
def test_what_leaves_the_last_hook_is_delivered_and_stored(
    database: str, run: Open, batch: int
) -> None:
    last = Recorder()
    window = ready(
        run,
        database,
        ScriptedReply(COUNT, batch=batch),
        middleware=[Without("three"), Upper(), last],
    )

    chunks = list(window.call_model_streaming())

    expected = "ONE TWO FOUR FIVE SIX"
    assert shown(chunks) == expected
    assert contents(responses(window)) == [expected]
    assert [e[1] for e in last.log if e[0] == "complete"] == [expected]
    texts = [chunk for chunk in chunks if chunk.delta]
    assert texts[0].metadata == {"was": "one"}
    assert [chunk.position for chunk in texts] == [3, 7, 12, 17, 21]
    assert problems(database) == []


def test_a_later_hook_sees_what_an_earlier_one_made_of_it(file: str, run: Open) -> None:
    window = ready(run, file, middleware=[Upper(), Without("THREE")])

    assert window.call_model().text == "ONE TWO FOUR FIVE SIX"


def test_a_reply_whose_text_was_all_dropped_is_empty(file: str, run: Open) -> None:
    window = ready(run, file, COUNT, "next reply", middleware=[Without("")])

    with window.call_model_streaming() as stream:
        chunks = list(stream)

    assert shown(chunks) == stream.reply.text == ""
    assert "".join(contents(responses(window))) == ""
    assert states(window) == ["complete"]


def test_hooks_cannot_change_the_first_and_the_last_chunk(file: str, run: Open) -> None:
    class DropAll(Middleware):
        def on_stream_chunk(self, chunk: StreamChunk) -> Any:
            return DROP if not chunk.delta else None

    window = ready(run, file, middleware=[DropAll()])

    chunks = list(window.call_model_streaming())

    check_order(chunks, chunks[-1].reply)
    assert [chunks[0].type, chunks[-1].type] == ["stream_start", "done"]


def test_a_hook_that_returns_something_else_is_told_so(file: str, run: Open) -> None:
    class Wrong(Middleware):
        def on_stream_chunk(self, chunk: StreamChunk) -> Any:
            return "text" if chunk.delta else None

    window = ready(run, file, middleware=[Wrong()])

    with pytest.raises(MiddlewareError, match="'text'"):
        window.call_model()


class Breaks(Middleware):
    """Raises *error* in the hook *name*; in `on_stream_chunk` at the text " three"."""

    def __init__(self, name: str, error: BaseException) -> None:
        self.error = error
        self.errors_seen: list[BaseException] = []
        setattr(self, name, self._at_three if name == "on_stream_chunk" else self._now)

    def _now(self, *_: Any) -> None:
        raise self.error

    def _at_three(self, chunk: StreamChunk) -> None:
        if chunk.delta == " three":
            raise self.error

    def on_stream_error(self, error: BaseException) -> None:
        self.errors_seen.append(error)


@pytest.mark.parametrize("batch", [1, 100])
@pytest.mark.parametrize(
    ("hook", "stored", "state"),
    [
        ("on_call_start", [], "failed"),
        ("on_stream_start", [], "failed"),
        ("on_stream_chunk", ["one two"], "interrupted"),
        ("on_stream_complete", [COUNT], "complete"),
    ],
)
def test_an_error_of_a_hook_names_hook_and_middleware(
    database: str, run: Open, hook: str, stored: list[str], state: str, batch: int
) -> None:
    cause = ValueError("out of ink")
    middleware = Breaks(hook, cause)
    reply = ScriptedReply(COUNT, batch=batch)
    window = ready(run, database, reply, "next reply", middleware=[middleware])

    chunks, error = read(window.call_model_streaming())

    assert isinstance(error, MiddlewareError)
    assert f"{hook} of Breaks" in str(error)
    assert "out of ink" in str(error)
    assert error.__cause__ is cause
    assert error.hook == hook
    assert error.middleware is middleware
    assert middleware.errors_seen == [error]
    check_order(chunks, None)
    assert chunks[-1].error is error
    assert shown(chunks) == "".join(stored)
    assert contents(responses(window)) == stored
    assert states(window) == [state]
    assert problems(database) == []
    with ContextWindow(database, "chat", model=ScriptedModel(["next reply"])) as plain:
        assert plain.call_model().text == "next reply"


def test_an_error_of_on_stream_error_chains_the_first_one(file: str, run: Open) -> None:
    middleware = Breaks("on_stream_error", ValueError("worse"))
    window = ready(run, file, ScriptedReply(COUNT, fault="eof", fail_at=1), middleware=[middleware])

    chunks, raised = read(window.call_model_streaming(max_resumes=0))

    assert isinstance(raised, MiddlewareError)
    assert "on_stream_error of Breaks raised ValueError: worse" in str(raised)
    check_order(chunks, None)
    assert chunks[-1].error is raised
    seen: list[BaseException | None] = [raised]
    while seen[-1] is not None:
        seen.append(seen[-1].__cause__ or seen[-1].__context__)
    assert any(isinstance(error, StreamInterrupted) for error in seen)
    assert contents(responses(window)) == ["one"]
    assert problems(file) == []


def test_every_middleware_hears_of_the_error_of_one(file: str, run: Open) -> None:
    before, after = Recorder(), Recorder()
    broken = Breaks("on_stream_start", ValueError("no"))
    window = ready(run, file, middleware=[before, broken, after])

    with pytest.raises(MiddlewareError):
        window.call_model()

    assert before.log[-1] == ("error", "MiddlewareError")
    assert after.log[-1] == ("error", "MiddlewareError")


def test_on_stream_error_is_told_of_a_drop_but_not_of_a_reader_who_leaves(
    file: str, run: Open
) -> None:
    recorder = Recorder()
    cut = ScriptedReply(COUNT, fault="eof", fail_at=2)
    window = ready(run, file, cut, COUNT, "next reply", middleware=[recorder])
    with pytest.raises(StreamInterrupted):
        window.call_model(max_resumes=0)
    assert recorder.log[-1] == ("error", "StreamInterrupted")
    window.discard_partial()
    recorder.log.clear()

    with window.call_model_streaming() as stream:
        for chunk in stream:
            if chunk.delta == " two":
                break

    assert "error" not in [entry[0] for entry in recorder.log]
    usable(window, file)


def test_a_handler_is_made_of_plain_functions(file: str, run: Open) -> None:
    log: list[Any] = []
    window = ready(
        run,
        file,
        ScriptedReply("a b"),
        ScriptedReply("c d", fault="eof", fail_at=1),
        middleware=[
            handler(
                on_start=lambda: log.append("start"),
                on_token=log.append,
                on_complete=lambda text: log.append(("complete", text)),
                on_error=lambda error: log.append(type(error).__name__),
            )
        ],
    )
    window.call_model()
    with pytest.raises(StreamInterrupted):
        window.call_model(max_resumes=0)

    assert log == ["start", "a", " b", ("complete", "a b"), "start", "c", "StreamInterrupted"]


def test_what_a_handlers_functions_return_is_ignored(file: str, run: Open) -> None:
    window = ready(run, file, middleware=[handler(on_token=lambda text: DROP)])

    assert window.call_model().text == COUNT


def test_async_hooks_are_awaited_one_after_the_other(file: str) -> None:
    class Slow(Recorder):
        async def on_stream_start(self, stream: Any) -> None:  # type: ignore[override]
            await asyncio.sleep(0)
            self._note("start")

        async def on_stream_chunk(self, chunk: StreamChunk) -> Any:  # type: ignore[override]
            await asyncio.sleep(0)
            self._note("chunk", chunk.type, chunk.delta)
            if chunk.delta == " two":
                return DROP
            return replace(chunk, delta=chunk.delta + "!") if chunk.delta else None

        async def on_stream_complete(self, text: str, tokens: int) -> None:  # type: ignore[override]
            await asyncio.sleep(0)
            self._note("complete", text)

    async def main() -> None:
        log: list[tuple[Any, ...]] = []
        model = ScriptedModel(["one two three"])
        hooks = [Slow("slow", log), Recorder("fast", log)]
        async with AsyncContextWindow(file, "chat", model=model, middleware=hooks) as window:
            await window.add_prompt("count")
            reply = await window.call_model()
            assert reply.text == "one! three!"
            assert contents(await window.live_records()) == ["count", "one! three!"]
        texts = [entry for entry in log if entry[1] == "chunk" and entry[3]]
        assert texts == [
            ("slow", "chunk", "text_delta", "one"),
            ("fast", "chunk", "text_delta", "one!"),
            ("slow", "chunk", "text_delta", " two"),
            ("slow", "chunk", "text_delta", " three"),
            ("fast", "chunk", "text_delta", " three!"),
        ]
        assert ("slow", "complete", "one! three!") in log

    asyncio.run(main())


@pytest.mark.parametrize("hook", ["on_stream_start", "on_stream_chunk", "on_stream_complete"])
def test_an_error_of_an_async_hook_names_it(file: str, hook: str) -> None:
    async def broken(*_: Any) -> None:
        await asyncio.sleep(0)
        raise ValueError("out of ink")

    async def main() -> None:
        middleware = type("Broken", (Middleware,), {hook: lambda self, *args: broken()})()
        model = ScriptedModel([COUNT])
        async with AsyncContextWindow(file, "chat", model=model, middleware=[middleware]) as window:
            await window.add_prompt("count")
            with pytest.raises(MiddlewareError, match=f"{hook} of Broken.*out of ink") as caught:
                await window.call_model()
            assert isinstance(caught.value.__cause__, ValueError)

    asyncio.run(main())
    assert problems(file) == []


def test_async_hooks_are_refused_where_nothing_can_await_them(file: str) -> None:
    class Async(Middleware):
        async def on_stream_chunk(self, chunk: StreamChunk) -> None:
            pass

    with pytest.raises(ConfigError, match=r"Async\.on_stream_chunk is async; use Async"):
        ContextWindow(file, "chat", middleware=[Async()])
    with ContextWindow(file, "chat") as window, pytest.raises(ConfigError, match="is async"):
        window.add_middleware(Async())


def test_an_awaitable_from_a_hook_of_a_sync_window_is_an_error_not_a_silence(file: str) -> None:
    async def later() -> None:
        pass

    class Sneaky(Middleware):
        def on_stream_chunk(self, chunk: StreamChunk) -> Any:
            return later() if chunk.delta else None

    with ContextWindow(file, "chat", model=ScriptedModel([COUNT]), middleware=[Sneaky()]) as window:
        window.add_prompt("count")
        with pytest.raises(MiddlewareError, match="async"):
            window.call_model()
    assert problems(file) == []
