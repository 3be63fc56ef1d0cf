"""Streams: the order of their chunks, hooks, every way to end one early, drops and resuming."""

from __future__ import annotations

import asyncio
import gc
import itertools
import json
import sqlite3
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from typing import Any

import anyio
import pytest
from crash import recount
from hypothesis import given
from hypothesis import strategies as st
from support import (
    Open,
    Recorder,
    check_order,
    contents,
    problems,
    responses,
    sent,
    shown,
    states,
)
from support import file as file
from support import run as run

from contextwindow import (
    DROP,
    AsyncContextWindow,
    ConfigError,
    ContextNotFound,
    ContextWindow,
    ContextWindowError,
    Done,
    InvalidRequest,
    Middleware,
    MiddlewareError,
    ModelError,
    Overloaded,
    RecordType,
    Resumed,
    Store,
    StoreError,
    StreamChunk,
    StreamFailed,
    StreamInterrupted,
    TextDelta,
    TurnBusy,
    TurnLost,
    Usage,
    UsageReport,
    handler,
)
from contextwindow.overlap import EchoTrimmer
from contextwindow.testing import ScriptedModel, ScriptedReply

COUNT = "one two three four five six"


def ready(run: Open, database: str, *script: Any, **options: Any) -> ContextWindow:
    """A window with a prompt, whose model answers with *script*."""
    model = ScriptedModel(script or [COUNT, "next reply"], **options.pop("model", {}))
    window = run(database, "chat", model=model, **options)
    window.add_prompt("count")
    return window


def read(stream: Any) -> tuple[list[StreamChunk], Exception | None]:
    """The chunks of *stream*, and what it raised at the end."""
    chunks: list[StreamChunk] = []
    try:
        for chunk in stream:
            chunks.append(chunk)  # noqa: PERF402 - those before an error count
    except Exception as error:
        return chunks, error
    return chunks, None


def usable(window: ContextWindow, database: str) -> None:
    """Asserts that a stream which ended early has left all in order."""
    assert "running" not in states(window)
    assert problems(database) == []
    window.add_prompt("and now?")
    assert window.call_model().text == "next reply"


# -- order -------------------------------------------------------------------------------


@pytest.mark.parametrize("interval", [0, 0.05, None])
@pytest.mark.parametrize("batch", [1, 3, 100])
def test_chunks_keep_their_order_and_join_to_the_reply(
    database: str, run: Open, batch: int, interval: float | None
) -> None:
    reply = ScriptedReply(COUNT, reasoning="hm, let me count", batch=batch)
    window = ready(run, database, reply, checkpoint_interval=interval)

    with window.call_model_streaming() as stream:
        chunks = list(stream)

    check_order(chunks, stream.reply)
    assert shown(chunks) == stream.reply.text == COUNT
    assert chunks[-1] == Done(stream.reply)
    assert {chunk.type for chunk in chunks if chunk.delta} == {"text_delta"}
    assert contents(responses(window)) == [COUNT]
    assert problems(database) == []


def test_a_chunk_says_where_it_stands_in_its_record(database: str, run: Open) -> None:
    window = ready(run, database)

    texts = [chunk for chunk in window.call_model_streaming() if isinstance(chunk, TextDelta)]

    record = responses(window)[0]
    ends = [chunk.position for chunk in texts]
    assert [chunk.id for chunk in texts] == [f"{record.id}:{end}" for end in ends]
    for chunk, end in zip(texts, ends, strict=True):
        assert record.content[:end].endswith(chunk.delta)
    assert ends[-1] == len(COUNT)


def test_nothing_is_sent_or_written_before_the_first_chunk_is_asked_for(
    file: str, run: Open
) -> None:
    window = ready(run, file)

    window.call_model_streaming()

    assert window.turns() == []
    assert window.call_model().text == COUNT


def test_what_was_shown_is_in_the_database_already(file: str, run: Open) -> None:
    window = ready(run, file, checkpoint_interval=0)
    seen = ""
    with window.call_model_streaming() as stream, ContextWindow(file, "chat") as other:
        for chunk in stream:
            seen += chunk.delta
            if chunk.delta:
                record = other.live_records()[-1]
                assert record.content == seen
                assert record.partial_response_id
                assert other.turns()[-1].partial_text == seen


def test_with_an_interval_the_text_arrives_in_the_database_soon(database: str, run: Open) -> None:
    reply = ScriptedReply(COUNT, fault="stall", fail_at=3)
    window = ready(run, database, reply, "next reply", checkpoint_interval=0.01)
    other = ContextWindow(database, "chat")
    stream = window.call_model_streaming()
    with stream:
        for chunk in stream:
            if chunk.delta == " three":
                deadline = time.monotonic() + 5
                while other.live_records()[-1].content != "one two three":
                    assert time.monotonic() < deadline
                    time.sleep(0.005)
                break
    other.close()
    usable(window, database)


def test_text_deltas_give_the_text_alone(file: str, run: Open) -> None:
    window = ready(run, file)

    assert "".join(window.call_model_streaming().text_deltas()) == COUNT


def test_a_stream_is_read_once(file: str, run: Open) -> None:
    window = ready(run, file)
    stream = window.call_model_streaming()
    stream.until_done()

    with pytest.raises(ConfigError, match="read once"):
        list(stream)
    assert stream.reply.text == COUNT
    assert states(window) == ["complete"]


def test_the_reply_is_not_there_before_the_end(file: str, run: Open) -> None:
    window = ready(run, file)
    with window.call_model_streaming() as stream:
        for chunk in stream:
            if chunk.delta:
                with pytest.raises(AttributeError, match="ended"):
                    _ = stream.reply
    assert stream.reply.text == COUNT


def test_the_turn_is_known_by_its_id(file: str, run: Open) -> None:
    window = ready(run, file)
    stream = window.call_model_streaming()

    chunks = list(stream)

    assert stream.turn_id == chunks[0].turn_id == stream.reply.turn_id
    assert window.turns()[0].id == stream.turn_id


def test_usage_comes_before_done(file: str, run: Open) -> None:
    window = ready(run, file, ScriptedReply(COUNT, usage=Usage(11, 6)))

    report, done = list(window.call_model_streaming())[-2:]

    assert isinstance(report, UsageReport)
    assert isinstance(done, Done)
    assert report.usage == done.reply.usage == Usage(11, 6)


def test_every_chunk_is_json_safe(file: str, run: Open) -> None:
    reply = ScriptedReply(COUNT, reasoning="hm", tool_calls=[("t", {"a": 1})])
    window = ready(run, file, reply)

    plain = [json.loads(json.dumps(c.to_dict())) for c in window.call_model_streaming()]

    assert plain[0]["type"] == "stream_start"
    assert "".join(one.get("delta", "") for one in plain) == COUNT
    assert plain[-1]["reply"]["text"] == COUNT
    assert plain[-1]["done"] is True


def test_a_failed_stream_ends_with_the_error_and_raises_it(file: str, run: Open) -> None:
    window = ready(run, file, ScriptedReply(COUNT, error=InvalidRequest("no"), fail_at=2))

    chunks, error = read(window.call_model_streaming())

    check_order(chunks, None)
    last = chunks[-1]
    assert isinstance(last, StreamFailed)
    assert isinstance(error, InvalidRequest)
    assert last.error is error
    assert shown(chunks) == error.partial_text == "one two"
    assert contents(responses(window)) == ["one two"]


@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("fail_at", range(7))
@pytest.mark.parametrize("fault", ["eof", "reset", "error"])
def test_whatever_ends_a_stream_what_was_shown_is_what_is_stored(
    file: str, run: Open, fault: Any, fail_at: int, batch: int
) -> None:
    reply = ScriptedReply(COUNT, fault=fault, fail_at=fail_at, batch=batch)
    window = ready(run, file, reply, "next reply")

    chunks, error = read(window.call_model_streaming(max_resumes=0))

    check_order(chunks, None)
    text = shown(chunks)
    assert isinstance(error, ModelError)
    assert error.partial_text == text
    assert error.turn_id == window.turns()[0].id
    assert "".join(contents(responses(window))) == text
    assert text == " ".join(COUNT.split()[:fail_at])
    usable(window, file)


# -- hooks -------------------------------------------------------------------------------


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


# -- every way to end a stream early -----------------------------------------------------

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


@pytest.mark.parametrize("interval", [0, 0.05])
@pytest.mark.parametrize("batch", [1, 2, 100])
@pytest.mark.parametrize("leave", LEAVES)
def test_leaving_a_stream_keeps_exactly_what_was_delivered(
    file: str, run: Open, leave: Leave, batch: int, interval: float
) -> None:
    reply = ScriptedReply(COUNT, batch=batch)
    window = ready(run, file, reply, "next reply", checkpoint_interval=interval)

    seen, _ = leave(window)

    assert seen == "one two three"
    record = responses(window)[0]
    assert record.content == seen
    assert record.partial_response_id
    expected = {"cancelled"} if "cancel" in leave.__name__ else {"cancelled", "interrupted"}
    assert states(window)[0] in expected
    assert window.turns()[0].partial_text == seen
    usable(window, file)


@pytest.mark.parametrize("leave", LEAVES)
def test_leaving_a_stream_is_the_same_on_every_database(
    database: str, run: Open, leave: Leave
) -> None:
    window = ready(run, database)

    seen, _ = leave(window)

    assert contents(responses(window)) == [seen] == ["one two three"]
    usable(window, database)


@pytest.mark.parametrize("batch", [1, 100])
def test_a_plain_break_ends_the_turn_there_and_then(file: str, batch: int) -> None:
    model = ScriptedModel([ScriptedReply(COUNT, batch=batch), "next reply"])
    with ContextWindow(file, "chat", model=model) as window:
        window.add_prompt("count")

        seen, _ = by_break(window)

        assert contents(responses(window)) == [seen] == ["one two three"]
        usable(window, file)


def test_dropping_an_iterator_ends_the_turn(file: str) -> None:
    with ContextWindow(file, "chat", model=ScriptedModel([COUNT, "next reply"])) as window:
        window.add_prompt("count")
        chunks = iter(window.call_model_streaming())
        while next(chunks).delta != " three":
            pass

        del chunks
        gc.collect()

        assert contents(responses(window)) == ["one two three"]
        usable(window, file)


def test_dropping_a_stream_that_is_read_by_next_ends_the_turn(file: str) -> None:
    with ContextWindow(file, "chat", model=ScriptedModel([COUNT, "next reply"])) as window:
        window.add_prompt("count")
        stream = window.call_model_streaming()
        while next(stream).delta != " three":
            pass

        del stream
        gc.collect()

        assert contents(responses(window)) == ["one two three"]
        usable(window, file)


def test_an_abandoned_async_iterator_warns_and_is_settled(file: str) -> None:
    async def main() -> None:
        model = ScriptedModel([COUNT, "next reply"])
        async with AsyncContextWindow(file, "chat", model=model) as window:
            await window.add_prompt("count")
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                async for chunk in window.call_model_streaming():
                    if chunk.delta == " three":
                        break
                gc.collect()
                for _ in range(200):
                    if (await window.turns())[0].state != "running":
                        break
                    await asyncio.sleep(0.01)
            assert [w.category for w in caught] == [ResourceWarning]
            assert "async with" in str(caught[0].message)
            assert contents(await window.live_records()) == ["count", "one two three"]
            assert (await window.call_model()).text == "next reply"

    asyncio.run(main())
    assert problems(file) == []


def test_cancel_from_another_thread_ends_a_stream_that_waits(file: str, run: Open) -> None:
    reply = ScriptedReply(COUNT, fault="stall", fail_at=3)
    window = ready(run, file, reply, "next reply")
    stream = window.call_model_streaming()
    seen = threading.Event()

    def cancel() -> None:
        seen.wait()
        time.sleep(0.05)
        stream.cancel()

    thread = threading.Thread(target=cancel)
    thread.start()

    final = stream.until_done(lambda chunk: seen.set() if chunk.delta == " three" else None)
    thread.join()

    assert final.finish_reason == "cancelled"
    assert final.text == "one two three"
    assert states(window) == ["cancelled"]
    usable(window, file)


@pytest.mark.parametrize("text", ["one", " three", " six"])
@pytest.mark.parametrize("batch", [1, 100])
def test_cancel_from_a_hook_keeps_what_was_delivered(
    file: str, run: Open, text: str, batch: int
) -> None:
    class Cancels(Middleware):
        stream: Any = None

        def on_stream_start(self, stream: Any) -> None:
            self.stream = stream

        def on_stream_chunk(self, chunk: StreamChunk) -> None:
            if chunk.delta == text:
                self.stream.cancel()

    reply = ScriptedReply(COUNT, batch=batch)
    window = ready(run, file, reply, "next reply", middleware=[Cancels()])

    with window.call_model_streaming() as stream:
        chunks = list(stream)

    check_order(chunks, None)
    assert stream.reply.finish_reason == "cancelled"
    assert "".join(contents(responses(window))) == shown(chunks) == stream.reply.text
    assert COUNT.startswith(shown(chunks))
    assert states(window) == ["cancelled"]
    usable(window, file)


def test_cancel_before_the_first_chunk_sends_nothing(file: str, run: Open) -> None:
    window = ready(run, file, "next reply")
    stream = window.call_model_streaming()

    stream.cancel()
    chunks = list(stream)

    assert shown(chunks) == ""
    assert [chunk.type for chunk in chunks] in (["stream_start", "done"], [])
    assert "running" not in states(window)
    assert contents(window.records()) == ["count"]
    usable(window, file)


def test_cancel_after_the_end_changes_nothing(file: str, run: Open) -> None:
    window = ready(run, file)
    stream = window.call_model_streaming()
    reply = stream.until_done()

    stream.cancel()

    assert reply.finish_reason == "stop"
    assert states(window) == ["complete"]
    usable(window, file)


def test_cancel_ends_the_wait_before_another_attempt(file: str, run: Open) -> None:
    reply = ScriptedReply(COUNT, open_error=[Overloaded("busy", retry_after=30.0)])
    window = ready(run, file, reply)
    began = time.monotonic()

    with window.call_model_streaming() as stream:
        for chunk in stream:
            if chunk.type == "retrying":
                threading.Timer(0.05, stream.cancel).start()

    assert time.monotonic() - began < 10
    assert states(window) == ["cancelled"]
    assert problems(file) == []


@pytest.mark.parametrize("where", ["callback", "hook", "loop"])
@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit])
def test_an_interrupt_is_raised_again_once_all_is_stored(
    file: str, kind: type[BaseException], where: str
) -> None:
    def at_three(chunk: StreamChunk) -> None:
        if chunk.delta == " three":
            raise kind

    class Interrupts(Middleware):
        def on_stream_chunk(self, chunk: StreamChunk) -> None:
            at_three(chunk)

    middleware = [Interrupts()] if where == "hook" else []
    model = ScriptedModel([COUNT])
    with ContextWindow(file, "chat", model=model, middleware=middleware) as window:
        window.add_prompt("count")
        with pytest.raises(kind):
            if where == "loop":
                for chunk in window.call_model_streaming():
                    at_three(chunk)
            else:
                window.call_model_streaming().until_done(at_three)

        expected = "one two" if where == "hook" else "one two three"
        assert contents(responses(window)) == [expected]
        assert "running" not in states(window)
    assert problems(file) == []


@pytest.mark.parametrize("where", ["callback", "hook"])
def test_an_interrupt_on_an_event_loop_is_stored_before_it_leaves(file: str, where: str) -> None:
    def at_three(chunk: StreamChunk) -> None:
        if chunk.delta == " three":
            raise KeyboardInterrupt

    class Interrupts(Middleware):
        def on_stream_chunk(self, chunk: StreamChunk) -> None:
            at_three(chunk)

    async def main() -> None:
        middleware = [Interrupts()] if where == "hook" else []
        model = ScriptedModel([COUNT])
        async with AsyncContextWindow(file, "chat", model=model, middleware=middleware) as window:
            await window.add_prompt("count")
            await window.call_model_streaming().until_done(
                at_three if where == "callback" else None
            )

    with pytest.raises(KeyboardInterrupt):
        asyncio.run(main())

    with ContextWindow(file, "chat") as window:
        expected = "one two" if where == "hook" else "one two three"
        assert contents(responses(window)) == [expected]
    assert problems(file) == []


# -- asyncio -----------------------------------------------------------------------------


async def stalling(file: str) -> AsyncContextWindow:
    """An open window whose model says three words and then nothing for ever."""
    reply = ScriptedReply(COUNT, fault="stall", fail_at=3)
    window = AsyncContextWindow(file, "chat", model=ScriptedModel([reply, "next reply"]))
    await window.add_prompt("count")
    return window


async def stored_and_usable(window: AsyncContextWindow) -> None:
    """Asserts what a cancelled reader has left, with no chance to settle it later."""
    assert [turn.state for turn in await window.turns()] == ["cancelled"]
    assert contents(await window.live_records()) == ["count", "one two three"]
    assert (await window.call_model()).text == "next reply"
    await window.aclose()


@pytest.mark.parametrize("times", [1, 2, 5])
@pytest.mark.parametrize("api", ["call", "stream"])
def test_a_cancelled_task_has_stored_everything_when_it_ends(
    database: str, times: int, api: str
) -> None:
    async def main() -> None:
        window = await stalling(database)
        seen = asyncio.Event()

        async def read() -> None:
            if api == "call":
                asyncio.get_running_loop().call_later(0.1, seen.set)
                await window.call_model()
                return
            async with window.call_model_streaming() as stream:
                async for chunk in stream:
                    if chunk.delta == " three":
                        seen.set()

        task = asyncio.create_task(read())
        await seen.wait()
        for _ in range(times):
            task.cancel()
            await asyncio.sleep(0)
        with pytest.raises(asyncio.CancelledError):
            await task
        await stored_and_usable(window)

    asyncio.run(main())
    assert problems(database) == []


def test_a_cancel_scope_that_ends_leaves_everything_stored(file: str) -> None:
    async def main() -> None:
        window = await stalling(file)
        with anyio.move_on_after(0.1) as scope:
            await window.call_model()
        assert scope.cancelled_caught
        await stored_and_usable(window)

    asyncio.run(main())
    assert problems(file) == []


def test_a_timeout_that_ends_leaves_everything_stored(file: str) -> None:
    async def main() -> None:
        window = await stalling(file)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                async with window.call_model_streaming() as stream:
                    async for _ in stream:
                        pass
        await stored_and_usable(window)

    asyncio.run(main())
    assert problems(file) == []


def test_a_task_group_that_fails_cancels_its_streams_in_good_order(file: str) -> None:
    async def main() -> None:
        window = await stalling(file)

        async def fail() -> None:
            await asyncio.sleep(0.1)
            raise LookupError("mine")

        with pytest.raises(ExceptionGroup):
            async with asyncio.TaskGroup() as group:
                group.create_task(window.call_model())
                group.create_task(fail())
        await stored_and_usable(window)

    asyncio.run(main())
    assert problems(file) == []


def test_a_loop_that_ends_in_the_middle_of_a_stream_leaves_it_to_be_resumed(file: str) -> None:
    async def main() -> None:
        window = await stalling(file)
        asyncio.get_running_loop().call_later(0.1, asyncio.current_task().cancel)  # type: ignore[union-attr]
        await window.call_model()

    with suppress(asyncio.CancelledError):
        asyncio.run(main())

    with ContextWindow(file, "chat", model=ScriptedModel([" four"])) as window:
        assert window.resume().text == "one two three four"
    assert problems(file) == []


def test_an_async_callback_is_awaited(file: str) -> None:
    async def main() -> None:
        seen = []

        async def callback(chunk: StreamChunk) -> None:
            await asyncio.sleep(0)
            seen.append(chunk.delta)

        async with AsyncContextWindow(file, "chat", model=ScriptedModel([COUNT])) as window:
            await window.add_prompt("count")
            await window.call_model_streaming().until_done(callback)
        assert "".join(seen) == COUNT

    asyncio.run(main())


def test_the_event_loop_turns_while_the_database_is_locked(file: str) -> None:
    async def main() -> None:
        async with AsyncContextWindow(file, "chat", model=ScriptedModel([COUNT])) as window:
            await window.add_prompt("count")
            blocker = sqlite3.connect(file, isolation_level=None)
            blocker.execute("BEGIN IMMEDIATE")
            task = asyncio.create_task(window.call_model())
            beats = 0
            for _ in range(20):
                await asyncio.sleep(0.01)
                beats += 1
            assert not task.done()
            blocker.execute("COMMIT")
            blocker.close()
            assert (await task).text == COUNT
            assert beats == 20

    asyncio.run(main())


# -- drops and resuming ------------------------------------------------------------------


def test_an_end_of_file_is_never_taken_for_an_end_of_the_reply(database: str, run: Open) -> None:
    window = ready(run, database, ScriptedReply(COUNT, fault="eof", fail_at=3), "next reply")

    with pytest.raises(StreamInterrupted) as caught:
        window.call_model(max_resumes=0)

    assert caught.value.partial_text == "one two three"
    turn = window.turns()[0]
    assert caught.value.turn_id == turn.id
    assert turn.state == "interrupted"
    assert window.interrupted() == [turn]
    assert responses(window)[0].partial_response_id
    usable(window, database)


def test_a_stream_cut_behind_its_last_chunk_is_cut_all_the_same(file: str, run: Open) -> None:
    window = ready(run, file, ScriptedReply(COUNT, fault="eof"), "next reply")

    with pytest.raises(StreamInterrupted) as caught:
        window.call_model(max_resumes=0)

    assert caught.value.partial_text == COUNT
    usable(window, file)


def test_a_drop_is_resumed_without_the_callers_help(database: str, run: Open) -> None:
    window = ready(
        run,
        database,
        ScriptedReply(COUNT, fault="reset", fail_at=2),
        ScriptedReply(" three four", fault="eof", fail_at=1),
        ScriptedReply(" four five six", usage=Usage(50, 5)),
    )

    with window.call_model_streaming() as stream:
        chunks = list(stream)

    reply = stream.reply
    check_order([c for c in chunks if c.type != "resumed"], reply)
    assert shown(chunks) == reply.text == COUNT
    assert [c.strategy for c in chunks if isinstance(c, Resumed)] == ["continue", "continue"]
    assert contents(responses(window)) == [COUNT]
    assert len(reply.records) == 1
    assert len({chunk.record_id for chunk in chunks if chunk.delta}) == 1
    first, second, third = window.calls()
    assert first.usage is not None
    assert second.usage is not None
    assert (first.usage.estimated, second.usage.estimated) == (True, True)
    assert third.usage == Usage(50, 5)
    assert reply.usage == first.usage + second.usage + third.usage
    assert window.total_tokens() == reply.usage.total_tokens
    assert "cut" in (first.error or "") or "lost" in (first.error or "")
    assert states(window) == ["complete"]
    assert problems(database) == []


def test_drops_are_resumed_max_resumes_times(file: str, run: Open) -> None:
    cut = [ScriptedReply(f" word{number} more", fault="eof", fail_at=1) for number in range(4)]
    window = ready(run, file, *cut)

    with pytest.raises(StreamInterrupted) as caught:
        window.call_model(max_resumes=2)

    assert caught.value.partial_text == " word0 word1 word2"
    assert len(window.calls()) == 3
    assert states(window) == ["interrupted"]
    assert window.interrupted()[0].partial_text == " word0 word1 word2"


def test_two_drops_without_progress_are_raised(file: str, run: Open) -> None:
    nothing = ScriptedReply(COUNT, fault="eof", fail_at=0)
    window = ready(run, file, nothing, nothing, nothing, "never")

    with pytest.raises(StreamInterrupted):
        window.call_model(max_resumes=9)

    assert len(window.calls()) == 2
    assert problems(file) == []


def test_the_continuation_is_told_where_to_go_on_and_leaves_no_trace(file: str, run: Open) -> None:
    model = ScriptedModel([ScriptedReply(COUNT, fault="eof", fail_at=2), " three"])
    window = run(file, "chat", model=model)
    window.add_prompt("count")

    window.call_model()

    assert sent(model)[:2] == ["count", "one two"]
    assert "one two" in sent(model)[2]
    assert "last character" in sent(model)[2]
    assert contents(window.records()) == ["count", "one two three"]
    manifest = window.manifest(window.calls()[-1].id)
    assert contents(manifest) == ["count", "one two three"]


@pytest.mark.parametrize("watched", [True, False])
def test_what_was_cut_off_before_the_text_is_closed_and_not_sent(
    file: str, run: Open, watched: bool
) -> None:
    cut = ScriptedReply(reasoning="let me think", fault="eof", fail_at=2)
    window = ready(run, file, cut, ScriptedReply("the answer", reasoning="again"))

    reply = window.call_model_streaming().until_done((lambda chunk: None) if watched else None)

    assert reply.text == "the answer"
    assert reply.reasoning == "again"
    live = [record.content for record in window.live_records()]
    assert live == ["count", "again", "the answer"]
    assert not [one.content for one in window.live_records() if one.partial_response_id]
    assert problems(file) == []


@pytest.mark.parametrize("strategy", ["auto", "continue"])
def test_a_fresh_window_goes_on_with_what_is_there(database: str, run: Open, strategy: Any) -> None:
    first = ready(run, database, ScriptedReply(COUNT, fault="eof", fail_at=3))
    with pytest.raises(StreamInterrupted) as caught:
        first.call_model(max_resumes=0)
    first.close()
    window = run(database, "chat", model=ScriptedModel([" four five six"]))

    with window.resume_streaming(caught.value.turn_id, strategy=strategy) as stream:
        chunks = list(stream)

    check_order([c for c in chunks if c.type != "resumed"], stream.reply)
    assert shown(chunks) == " four five six"
    assert stream.reply.text == COUNT
    assert stream.turn_id == caught.value.turn_id
    assert contents(window.records()) == ["count", COUNT]
    assert responses(window)[0].partial_response_id is None
    assert states(window) == ["complete"]
    assert window.interrupted() == []
    assert [bool(c.usage and c.usage.estimated) for c in window.calls()] == [True, False]
    assert stream.reply.usage.total_tokens == window.total_tokens()
    assert problems(database) == []


def test_regenerating_replaces_the_partial(database: str, run: Open) -> None:
    cut = ScriptedReply(COUNT, reasoning="hm", fault="eof", fail_at=3)
    model = ScriptedModel([cut, "another answer"])
    window = run(database, "chat", model=model)
    window.add_prompt("count")
    with pytest.raises(StreamInterrupted):
        window.call_model(max_resumes=0)

    with window.resume_streaming(strategy="regenerate") as stream:
        chunks = list(stream)

    assert sent(model) == ["count"]
    assert shown(chunks) == stream.reply.text == "another answer"
    assert [c.strategy for c in chunks if isinstance(c, Resumed)] == ["regenerate"]
    assert contents(window.live_records()) == ["count", "another answer"]
    assert [r.content for r in window.records() if not r.live] == ["hm", "one two"]
    assert not any(record.partial_response_id for record in window.records())
    assert states(window) == ["complete"]
    assert problems(database) == []


def test_a_model_that_takes_a_prefill_goes_on_with_its_own_words(file: str, run: Open) -> None:
    cut = ScriptedReply(COUNT, fault="eof", fail_at=2)
    model = ScriptedModel([cut, " three four"], supports_prefill=True)
    window = run(file, "chat", model=model)
    window.add_prompt("count")

    reply = window.call_model()

    assert reply.text == "one two three four"
    assert sent(model) == ["count", "one two"]
    assert model.requests[-1].options.prefill


@pytest.mark.parametrize("fail_at", range(1, 6))
@pytest.mark.parametrize("fresh", [True, False])
def test_a_kept_stream_is_read_on_exactly_once(
    file: str, run: Open, fail_at: int, fresh: bool
) -> None:
    reply = ScriptedReply(COUNT, fault="reset", fail_at=fail_at, cursor=True, usage=Usage(9, 6))
    model = ScriptedModel([reply])
    window = run(file, "chat", model=model)
    window.add_prompt("count")
    if fresh:
        with pytest.raises(StreamInterrupted) as caught:
            window.call_model(max_resumes=0)
        window.close()
        window = run(file, "chat", model=model)
        chunks = list(window.resume_streaming(caught.value.turn_id))
        assert caught.value.partial_text + shown(chunks) == COUNT
    else:
        chunks = list(window.call_model_streaming())
        assert shown(chunks) == COUNT

    assert [c.strategy for c in chunks if isinstance(c, Resumed)] == ["cursor"]
    assert contents(window.records()) == ["count", COUNT]
    assert model.requests[-1].response_id == "resp_scripted_1"
    # The provider counts the whole response once: the estimate for its first part is void.
    assert chunks[-1].reply.usage == Usage(9, 6)
    assert window.total_tokens() == 15
    assert problems(file) == []


@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("leave", LEAVES)
def test_what_a_reader_left_early_can_be_resumed(
    file: str, run: Open, leave: Leave, batch: int
) -> None:
    reply = ScriptedReply(COUNT, batch=batch)
    window = ready(run, file, reply, " four five six")
    leave(window)
    turn = window.turns()[0]

    reply_two = window.resume(turn.id)

    assert reply_two.text == COUNT
    assert contents(window.records()) == ["count", COUNT]
    assert states(window) == ["complete"]
    assert problems(file) == []


def test_a_kept_stream_left_early_is_read_on_where_the_reader_left(file: str, run: Open) -> None:
    for batch in (1, 2, 4, 100):
        reply = ScriptedReply(COUNT, batch=batch, cursor=True)
        name = f"batch {batch}"
        window = run(file, name, model=ScriptedModel([reply], name=f"model{batch}"))
        window.add_prompt("count")
        seen, _ = by_break_in_with(window)

        chunks = list(window.resume_streaming())

        assert seen + shown(chunks) == COUNT, batch
        assert contents(responses(window)) == [COUNT]
    assert problems(file) == []


def test_a_prompt_instead_of_resuming_sends_the_partial_as_what_was_said(
    database: str, run: Open
) -> None:
    cut = ScriptedReply(COUNT, fault="eof", fail_at=2)
    model = ScriptedModel([cut, "fine"])
    window = run(database, "chat", model=model)
    window.add_prompt("count")
    with pytest.raises(StreamInterrupted) as caught:
        window.call_model(max_resumes=0)

    window.add_prompt("stop that")
    reply = window.call_model()

    assert sent(model) == ["count", "one two", "stop that"]
    assert reply.text == "fine"
    assert window.interrupted() == []
    assert contents(window.live_records()) == ["count", "one two", "stop that", "fine"]
    assert caught.value.turn_id != reply.turn_id
    assert problems(database) == []


def test_a_partial_behind_which_a_prompt_was_added_resumes_in_its_place(
    file: str, run: Open
) -> None:
    model = ScriptedModel([ScriptedReply(COUNT, fault="eof", fail_at=2), " three"])
    window = run(file, "chat", model=model)
    window.add_prompt("count")
    with pytest.raises(StreamInterrupted):
        window.call_model(max_resumes=0)
    window.add_prompt("a later thought")

    window.resume()

    assert "a later thought" not in sent(model)
    assert contents(window.live_records()) == ["count", "one two three", "a later thought"]


def test_a_discarded_partial_is_no_longer_sent(database: str, run: Open) -> None:
    model = ScriptedModel([ScriptedReply(COUNT, fault="eof", fail_at=2), "fine"])
    window = run(database, "chat", model=model)
    window.add_prompt("count")
    with pytest.raises(StreamInterrupted) as caught:
        window.call_model(max_resumes=0)

    discarded = window.discard_partial(caught.value.turn_id)

    assert contents(discarded) == ["one two"]
    assert window.interrupted() == []
    assert states(window) == ["cancelled"]
    with pytest.raises(ConfigError):
        window.discard_partial()
    with pytest.raises(ConfigError, match="nothing to resume"):
        window.resume()
    assert window.call_model().text == "fine"
    assert sent(model) == ["count"]
    assert contents(window.records()) == ["count", "one two", "fine"]
    assert problems(database) == []


def test_a_whole_turn_cannot_be_resumed(file: str, run: Open) -> None:
    window = ready(run, file)
    reply = window.call_model()

    with pytest.raises(ConfigError, match="is complete"):
        window.resume(reply.turn_id)
    with pytest.raises(ConfigError, match="no turn 'nonsense'"):
        window.resume("nonsense")
    with pytest.raises(ConfigError, match="nothing to resume"):
        window.resume()
    assert states(window) == ["complete"]


def test_a_failed_resume_is_one_more_interruption_of_the_same_turn(file: str, run: Open) -> None:
    cut = ScriptedReply(COUNT, fault="eof", fail_at=1)
    more = ScriptedReply(" two three", fault="eof", fail_at=1)
    window = ready(run, file, cut, more, " three")
    for expected in ("one", "one two"):
        with pytest.raises(StreamInterrupted) as caught:
            if expected == "one":
                window.call_model(max_resumes=0)
            else:
                window.resume(max_resumes=0)
        assert caught.value.partial_text == expected

    assert window.resume().text == "one two three"

    assert contents(window.records()) == ["count", "one two three"]
    assert len(window.turns()) == 1
    assert len(window.calls()) == 3
    assert problems(file) == []


def test_tool_calls_that_were_cut_off_are_asked_for_anew(file: str, run: Open) -> None:
    cut = ScriptedReply("let me look", tool_calls=[("ls", {"at": "/" * 40}, "c1")], fail_at=4)
    again = ScriptedReply(" again", tool_calls=[("ls", {"at": "/"}, "c2")])
    window = ready(run, file, cut, again)

    reply = window.call_model()

    assert reply.text == "let me look again"
    assert [call.id for call in reply.tool_calls] == ["c2"]
    assert [r.call_id for r in window.live_records() if r.source is RecordType.TOOL_CALL] == ["c2"]
    assert problems(file) == []


def test_hooks_run_on_a_resumed_reply_over_its_new_text_alone(file: str, run: Open) -> None:
    recorder = Recorder()
    first = ready(run, file, ScriptedReply(COUNT, fault="eof", fail_at=2))
    with pytest.raises(StreamInterrupted):
        first.call_model(max_resumes=0)
    window = run(file, "chat", model=ScriptedModel([" three"]), middleware=[recorder])

    window.resume()

    texts = [entry[2] for entry in recorder.log if entry[0] == "chunk" and entry[2]]
    assert texts == [" three"]
    assert [e[1] for e in recorder.log if e[0] == "complete"] == ["one two three"]


def test_the_partials_of_another_context_are_not_resumed(file: str, run: Open) -> None:
    window = ready(run, file, ScriptedReply(COUNT, fault="eof", fail_at=2), " three")
    with pytest.raises(StreamInterrupted) as caught:
        window.call_model(max_resumes=0)
    window.clone("copy")
    window.switch_context("copy")

    with pytest.raises(ConfigError, match="no turn"):
        window.resume(caught.value.turn_id)
    assert window.interrupted() == []

    window.switch_context("chat")
    assert window.resume().text == "one two three"
    window.switch_context("copy")
    assert contents(window.live_records()) == ["count", "one two"]
    assert problems(file) == []


def test_only_one_of_many_resumes_goes_on(database: str) -> None:
    with ContextWindow(
        database, "chat", model=ScriptedModel([ScriptedReply(COUNT, fault="eof", fail_at=2)])
    ) as window:
        window.add_prompt("count")
        with pytest.raises(StreamInterrupted):
            window.call_model(max_resumes=0)
    barrier = threading.Barrier(4)
    results: list[Any] = []

    def resume() -> None:
        model = ScriptedModel([ScriptedReply(" three four", delay=0.02)])
        with ContextWindow(database, "chat", model=model) as mine:
            barrier.wait()
            try:
                results.append(mine.resume().text)
            except (TurnBusy, ConfigError) as error:
                results.append(type(error))

    threads = [threading.Thread(target=resume) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert results.count("one two three four") == 1
    assert len(results) == 4
    with ContextWindow(database, "chat") as window:
        assert contents(window.records()) == ["count", "one two three four"]
    assert problems(database) == []


# -- what a model repeats when it goes on ------------------------------------------------

STORY = " ".join(f"sentence number {number} of the story." for number in range(40))


def expected_rest(before: str, continuation: str) -> str:
    """The rule of `overlap.py` in its plainest form."""
    tail = before[-1_000:]
    for size in range(min(len(tail), len(continuation)), 0, -1):
        echo = continuation[:size]
        if tail.endswith(echo) and (size >= 3 or not any(map(str.isalnum, echo))):
            return continuation[size:]
    return continuation


@pytest.mark.parametrize("fresh", [True, False])
@pytest.mark.parametrize("pieces", ["words", "characters", "whole"])
@pytest.mark.parametrize("echo", [0, 3, 10, 100, 500])
def test_an_echo_of_what_was_said_is_trimmed_before_anyone_sees_it(
    file: str, run: Open, echo: int, pieces: Any, fresh: bool
) -> None:
    said, rest = STORY[:900], STORY[900:]
    cut = ScriptedReply([said], fault="eof", fail_at=1)
    again = ScriptedReply(STORY[900 - echo :], batch=3)
    model = ScriptedModel([cut, again], pieces=pieces)
    window = run(file, "chat", model=model)
    window.add_prompt("tell me a story")
    if fresh:
        with pytest.raises(StreamInterrupted):
            window.call_model(max_resumes=0)
        stream = window.resume_streaming()
    else:
        stream = window.call_model_streaming()

    chunks = list(stream)

    assert shown(chunks).removeprefix("" if fresh else said) == rest
    assert stream.reply.text == STORY
    assert contents(responses(window)) == [STORY]
    positions = [chunk.position for chunk in chunks if chunk.delta]
    assert positions == sorted(positions)
    assert positions[-1] == len(STORY)
    assert problems(file) == []


def test_one_or_two_letters_are_no_echo(file: str, run: Open) -> None:
    window = ready(run, file, ScriptedReply(["Hel"], fault="eof", fail_at=1), ["lo"])

    assert window.call_model().text == "Hello"


def test_a_doubled_space_is_an_echo(file: str, run: Open) -> None:
    window = ready(run, file, ScriptedReply(["Hello "], fault="eof", fail_at=1), [" world"])

    assert window.call_model().text == "Hello world"


def test_a_continuation_that_only_repeats_adds_nothing(file: str, run: Open) -> None:
    window = ready(run, file, ScriptedReply([COUNT], fault="eof", fail_at=1), [COUNT])

    with window.call_model_streaming() as stream:
        chunks = list(stream)

    assert shown(chunks) == stream.reply.text == COUNT
    assert contents(responses(window)) == [COUNT]
    assert responses(window)[0].partial_response_id is None


def test_a_drop_while_an_echo_is_held_back_loses_nothing(file: str, run: Open) -> None:
    first = ScriptedReply([COUNT], fault="eof", fail_at=1)
    echo = ScriptedReply([" fi", "ve", " six", " seven"], fault="eof", fail_at=2)
    window = ready(run, file, first, echo, [" five six", " seven"])

    assert window.call_model(max_resumes=3).text == COUNT + " seven"
    assert problems(file) == []


@given(
    before=st.text("ab .", min_size=1, max_size=30),
    echo=st.integers(0, 30),
    rest=st.text("ab .", max_size=20),
    cuts=st.lists(st.integers(0, 50), max_size=6),
)
def test_the_longest_echo_is_trimmed_however_it_arrives(
    before: str, echo: int, rest: str, cuts: list[int]
) -> None:
    continuation = (before[-echo:] if echo else "") + rest
    edges = [0, *sorted(min(cut, len(continuation)) for cut in cuts), len(continuation)]
    trimmer = EchoTrimmer(before)

    out = "".join(trimmer.feed(continuation[start:end]) for start, end in itertools.pairwise(edges))

    assert out + trimmer.flush() == expected_rest(before, continuation)


@given(echo=st.integers(3, 1_000), size=st.integers(1, 4))
def test_an_echo_of_repetitive_text_ends_where_the_new_text_begins(echo: int, size: int) -> None:
    before = ("ha " * 700)[:-1]
    continuation = before[-echo:] + "! the end"
    trimmer = EchoTrimmer(before)
    pieces = [continuation[at : at + size] for at in range(0, len(continuation), size)]

    out = "".join(map(trimmer.feed, pieces)) + trimmer.flush()

    assert out == "! the end"


# -- a database that fails ---------------------------------------------------------------


def break_it(file: str, *, table: str, operation: str, when: str = "1") -> None:
    """Makes every *operation* on *table* fail from now on."""
    with sqlite3.connect(file) as connection:
        connection.execute(
            f"CREATE TRIGGER broken BEFORE {operation} ON {table} WHEN {when} "
            "BEGIN SELECT RAISE(ABORT, 'no room left'); END"
        )
    connection.close()


def mend_it(file: str) -> None:
    """Undoes `break_it`."""
    with sqlite3.connect(file) as connection:
        connection.execute("DROP TRIGGER broken")
    connection.close()


def test_a_stream_whose_end_cannot_be_written_still_ends_with_stream_failed(
    file: str, run: Open
) -> None:
    window = ready(run, file, ScriptedReply(COUNT), "next reply", checkpoint_interval=0)
    chunks: list[StreamChunk] = []

    with pytest.raises(StoreError, match="no room left"):
        for chunk in window.call_model_streaming():
            chunks.append(chunk)
            if chunk.delta == " three":
                break_it(file, table="turns", operation="UPDATE")

    check_order(chunks, None)
    mend_it(file)
    with ContextWindow(file, "chat") as other:
        assert responses(other)[0].content == shown(chunks) == COUNT
    usable(window, file)


@pytest.mark.parametrize("watched", [True, False])
@pytest.mark.parametrize("interval", [0, 0.05])
def test_a_reply_whose_end_was_refused_is_kept_to_be_resumed(
    file: str, run: Open, watched: bool, interval: float
) -> None:
    window = ready(run, file, COUNT, " and more", checkpoint_interval=interval)
    break_it(file, table="turns", operation="UPDATE", when="NEW.state = 'complete'")

    with pytest.raises(StoreError, match="no room left"):
        window.call_model_streaming().until_done((lambda chunk: None) if watched else None)

    mend_it(file)
    assert contents(responses(window)) == [COUNT]
    assert states(window) == ["interrupted"]
    assert problems(file) == []


@pytest.mark.parametrize("where", ["hook", "callback"])
def test_an_interrupt_is_never_turned_into_a_store_error(file: str, where: str) -> None:
    def at_three(chunk: StreamChunk) -> None:
        if chunk.delta == " three":
            break_it(file, table="turns", operation="UPDATE")
            raise KeyboardInterrupt

    middleware = [_hook(at_three)] if where == "hook" else []
    model = ScriptedModel([COUNT])
    with ContextWindow(file, "chat", model=model, middleware=middleware) as window:
        window.add_prompt("count")
        with pytest.raises(KeyboardInterrupt):
            window.call_model_streaming().until_done(at_three if where == "callback" else None)


def test_an_error_of_the_callback_comes_out_unchanged_when_the_end_cannot_be_written(
    file: str, run: Open
) -> None:
    window = ready(run, file)
    mine = LookupError("mine")

    def at_three(chunk: StreamChunk) -> None:
        if chunk.delta == " three":
            break_it(file, table="turns", operation="UPDATE")
            raise mine

    with pytest.raises(LookupError) as caught:
        window.call_model_streaming().until_done(at_three)

    assert caught.value is mine
    mend_it(file)


def _hook(function: Callable[[StreamChunk], Any]) -> Middleware:
    middleware = Middleware()
    setattr(middleware, "on_stream_chunk", function)  # noqa: B010 - mypy forbids the other way
    return middleware


@pytest.mark.parametrize("watched", [True, False])
def test_a_lease_that_was_taken_over_leaves_the_counters_right(file: str, watched: bool) -> None:
    reply = ScriptedReply(["one", " two", " three"], delay=0.4)
    with Store(file, lease_seconds=0.5) as store:
        window = ContextWindow(store, "chat", model=ScriptedModel([reply]))
        window.add_prompt("count")

        def steal() -> None:
            with sqlite3.connect(file, timeout=5) as connection:
                connection.execute(
                    "UPDATE turns SET epoch = epoch + 1, state = 'interrupted' "
                    "WHERE state = 'running'"
                )
            connection.close()

        threading.Timer(0.1, steal).start()
        with pytest.raises(TurnLost):
            window.call_model_streaming().until_done((lambda chunk: None) if watched else None)

        assert recount(store) == []


def test_a_deleted_context_does_not_stop_the_streams_of_others(file: str) -> None:
    slow = ScriptedReply(["one", " two", " three", " four"], delay=0.1)
    with Store(file) as store:
        windows = [
            ContextWindow(store, name, model=ScriptedModel([slow]), checkpoint_interval=0.02)
            for name in ("doomed", "other")
        ]
        results: dict[str, Any] = {}

        def call(window: ContextWindow) -> None:
            window.add_prompt("count")
            try:
                results[window.current_context] = window.call_model_streaming().until_done(
                    lambda chunk: None
                )
            except ContextWindowError as error:
                results[window.current_context] = error

        threads = [threading.Thread(target=call, args=(window,)) for window in windows]
        for thread in threads:
            thread.start()
        time.sleep(0.15)
        ContextWindow(store, "third").delete_context("doomed")
        for thread in threads:
            thread.join()

        assert isinstance(results["doomed"], ContextNotFound)
        assert results["other"].text == "one two three four"
        assert problems(store) == []


def test_a_turn_that_was_lost_does_not_give_away_its_successor(file: str) -> None:
    """The same turn, resumed elsewhere in this process, keeps its lease."""
    with Store(file) as store:
        slow = ScriptedModel([ScriptedReply(["one", " two"], fault="stall", fail_at=1)])
        first = ContextWindow(store, "chat", model=slow)
        first.add_prompt("count")
        stream = first.call_model_streaming()
        chunks = iter(stream)
        while next(chunks).delta != "one":
            pass
        with sqlite3.connect(file) as connection:
            connection.execute("UPDATE turns SET expires = 0")
        connection.close()
        second = ContextWindow(store, "chat", model=ScriptedModel([[" two", " three"]]))
        with second.resume_streaming(stream.turn_id) as resumed:
            for chunk in resumed:
                if chunk.delta == " two":
                    stream.cancel()
                    with pytest.raises(TurnLost):
                        list(chunks)
                    with pytest.raises(TurnBusy):
                        ContextWindow(store, "chat", model=slow).call_model()

        assert resumed.reply.text == "one two three"
        assert contents(responses(second)) == ["one two three"]
        assert problems(store) == []
