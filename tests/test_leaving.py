"""Every way to end a stream early keeps exactly what was delivered."""

from __future__ import annotations

import asyncio
import gc
import sqlite3
import threading
import time
import warnings
from contextlib import suppress
from typing import Any

import anyio
import pytest
from leaving import LEAVES, Leave, by_break
from support import (
    COUNT,
    Open,
    check_order,
    contents,
    problems,
    ready,
    responses,
    shown,
    states,
    usable,
)
from support import file as file
from support import run as run

from contextwindow import (
    AsyncContextWindow,
    ContextWindow,
    Middleware,
    Overloaded,
    StreamChunk,
)
from contextwindow.testing import ScriptedModel, ScriptedReply


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
