"""What a caller may do while another turn runs on the context: raise, wait, or stop it."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from typing import Any

import pytest
from children import Child, Voice
from support import COUNT, Open, contents, problems, responses, states
from support import file as file
from support import run as run

from contextwindow import (
    AsyncContextWindow,
    ContextWindow,
    Middleware,
    Store,
    StreamChunk,
    ToolContext,
)
from contextwindow.errors import TurnBusy, TurnLost
from contextwindow.testing import ScriptedModel, ScriptedReply

STALLED = ScriptedReply([" one", " two", " three"], fault="stall", fail_at=2)


class Running:
    """A turn that another thread runs on "chat", and that does not end by itself."""

    def __init__(self, store: Store, model: ScriptedModel, **options: Any) -> None:
        self.model = model
        self.window = ContextWindow(store, "chat", model=model, **options)
        self.window.add_prompt("count")
        self.stream = self.window.call_model_streaming()
        self.chunks: list[StreamChunk] = []
        self.error: BaseException | None = None
        self.under_way = threading.Event()
        self.thread = threading.Thread(target=self._read)
        self.thread.start()
        assert self.under_way.wait(10)

    def _read(self) -> None:
        try:
            for chunk in self.stream:
                self.chunks.append(chunk)
                if chunk.delta == " two" or chunk.type == "tool_start":
                    self.under_way.set()
        except BaseException as error:
            self.error = error

    def ended(self) -> list[StreamChunk]:
        self.thread.join(20)
        assert not self.thread.is_alive()
        return self.chunks


def test_the_running_turn_is_stopped_and_what_it_delivered_stays(database: str, run: Open) -> None:
    with Store(database) as store:
        running = Running(store, ScriptedModel([STALLED]))
        window = run(store, "chat", model=ScriptedModel(["new reply"]))

        reply = window.call_model(on_busy="cancel_running")

        assert running.ended()[-1].type == "done"
        assert running.stream.reply.finish_reason == "cancelled"
        assert reply.text == "new reply"
        assert states(window) == ["cancelled", "complete"]
        assert contents(responses(window)) == [" one two", "new reply"]
        assert problems(store) == []


def test_a_turn_of_another_store_on_the_same_database_is_stopped(database: str, run: Open) -> None:
    with Store(database) as store, Store(database) as other:
        running = Running(store, ScriptedModel([STALLED]))
        window = run(other, "chat", model=ScriptedModel(["new reply"]))

        assert window.call_model(on_busy="cancel_running").text == "new reply"
        assert running.ended()[-1].type == "done"
        assert problems(store) == []


def stream_in_a_child(say: Voice, database: str, mode: str, silent: str, lease: float) -> None:
    """Run a turn that waits for its provider, its tool or its reader, until it is stopped."""
    waiting = threading.Event()

    def sleep(context: ToolContext) -> str:
        "Sleep."
        say("under way")
        waiting.wait(60)
        return "slept"

    async def sleep_on_loop(context: ToolContext) -> str:
        "Sleep."
        say("under way")
        await asyncio.sleep(60)
        return "slept"

    tool = sleep if mode == "sync" else sleep_on_loop
    called = ScriptedReply(" one two", tool_calls=[(tool.__name__, {}, "c1")])
    model = ScriptedModel([called if silent == "tool" else STALLED])
    tools = [tool] if silent == "tool" else []

    def seen(chunk: StreamChunk) -> None:
        if chunk.delta == " two" and silent != "tool":
            say("under way")
            if silent == "reader":
                waiting.wait(60)

    with Store(database, lease_seconds=lease) as store:
        try:
            if mode == "sync":
                window = ContextWindow(store, "chat", model=model, tools=tools)
                window.add_prompt("count")
                say(window.call_model_streaming().until_done(seen).finish_reason)
            else:

                async def main() -> None:
                    async with AsyncContextWindow(store, "chat", model=model, tools=tools) as own:
                        await own.add_prompt("count")
                        reply = await own.call_model_streaming().until_done(seen)
                        say(reply.finish_reason)

                asyncio.run(main())
        except TurnLost as error:
            say(f"lost {error.turn_id}")


@pytest.mark.parametrize("mode", ["sync", "async"])
@pytest.mark.parametrize("silent", ["provider", "tool"])
def test_a_turn_of_another_process_is_stopped_through_the_database(
    database: str, mode: str, silent: str
) -> None:
    with Child(stream_in_a_child, database, mode, silent, 30.0) as child:
        child.until("under way")
        with Store(database) as store:
            window = ContextWindow(store, "chat", model=ScriptedModel(["new reply"]))
            before = time.monotonic()
            reply = window.call_model(on_busy="cancel_running", deadline=20)

            # It looks at least once a second; a lease would have lasted for thirty.
            assert time.monotonic() - before < 10
            assert child.rest() == ["cancelled"]
            assert reply.text == "new reply"
            assert states(window) == ["cancelled", "complete"]
            assert contents(responses(window)) == [" one two", "new reply"]
            assert problems(store) == []


def test_a_holder_that_does_not_react_is_fenced_when_its_lease_ends(database: str) -> None:
    with Child(stream_in_a_child, database, "sync", "reader", 1.0) as child:
        child.until("under way")
        with Store(database) as store:
            window = ContextWindow(store, "chat", model=ScriptedModel(["new reply"]))
            with pytest.raises(TurnBusy):
                window.call_model()

            assert window.call_model(on_busy="cancel_running", deadline=20).text == "new reply"
            assert states(window) == ["interrupted", "complete"]
            assert problems(store) == []


def test_two_who_want_the_context_stop_each_other_and_nobody_hangs(database: str) -> None:
    with Store(database) as store:
        running = Running(store, ScriptedModel([STALLED]))
        replies: list[Any] = []

        def call() -> None:
            model = ScriptedModel([ScriptedReply(COUNT, delay=0.01)])
            window = ContextWindow(store, "chat", model=model)
            replies.append(window.call_model(on_busy="cancel_running"))

        threads = [threading.Thread(target=call) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)

        running.ended()
        assert len(replies) == 4
        assert [one.finish_reason for one in replies].count("stop") >= 1
        assert {one.finish_reason for one in replies} <= {"stop", "cancelled"}
        assert problems(store) == []


def test_a_turn_that_is_resumed_forgets_that_it_was_asked_to_stop(file: str) -> None:
    with Store(file) as store:
        running = Running(store, ScriptedModel([STALLED]))
        ContextWindow(store, "chat", model=ScriptedModel(["new"])).call_model(
            on_busy="cancel_running"
        )
        running.ended()
        slow = ScriptedModel([ScriptedReply([" three", " four"], delay=0.7)])
        again = ContextWindow(store, "chat", model=slow)

        reply = again.resume(running.stream.turn_id)

        assert reply.text == " one two three four"
        assert reply.finish_reason == "stop"


@pytest.mark.parametrize("on_busy", ["wait", "cancel_running"])
def test_a_deadline_ends_the_wait_and_says_so(file: str, run: Open, on_busy: Any) -> None:
    with Child(stream_in_a_child, file, "sync", "reader", 30.0) as child:
        child.until("under way")
        model = ScriptedModel(["never"])
        window = run(file, "chat", model=model)

        with pytest.raises(TurnBusy, match=r"the deadline of this call ended the wait.*nothing"):
            window.call_model(on_busy=on_busy, deadline=0.2)

        assert model.requests == []
        assert states(window) == ["running"]


def test_cancel_ends_the_wait_and_says_so(file: str, run: Open) -> None:
    with Store(file) as store:
        running = Running(store, ScriptedModel([STALLED]))
        model = ScriptedModel(["never"])
        window = run(store, "chat", model=model)
        stream = window.call_model_streaming(on_busy="wait")
        threading.Timer(0.2, stream.cancel).start()

        with pytest.raises(TurnBusy, match=r"cancel\(\) ended the wait") as busy:
            list(stream)

        assert busy.value.turn_id == running.stream.turn_id
        assert busy.value.owner.split("/")[1] == str(os.getpid())
        assert busy.value.since == window.turns()[0].started
        assert model.requests == []
        running.stream.cancel()
        running.ended()


def test_a_task_that_is_cancelled_while_it_waits_leaves_no_trace(file: str) -> None:
    async def main() -> None:
        running = Running(store, ScriptedModel([STALLED]))
        async with AsyncContextWindow(store, "chat", model=ScriptedModel(["never"])) as window:
            for _ in range(3):
                task = asyncio.ensure_future(window.call_model(on_busy="wait"))
                await asyncio.sleep(0.05)
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
            running.stream.cancel()
            await asyncio.to_thread(running.ended)
            assert [turn.state for turn in await window.turns()] == ["cancelled"]

    with Store(file) as store:
        asyncio.run(main())


@pytest.mark.parametrize("on_busy", ["wait", "cancel_running"])
def test_a_caller_that_holds_up_the_turn_itself_is_told_at_once(file: str, on_busy: Any) -> None:
    """Waiting for the stream that this very loop reads would never end."""
    with ContextWindow(file, "chat", model=ScriptedModel([COUNT])) as window:
        window.add_prompt("count")
        for chunk in (stream := window.call_model_streaming()):
            if chunk.delta:
                with pytest.raises(TurnBusy, match="close its stream first"):
                    window.call_model(on_busy=on_busy)

        assert stream.reply.text == COUNT
        assert states(window) == ["complete"]


def test_a_hook_that_waits_for_its_own_turn_is_told_at_once(file: str) -> None:
    class Impatient(Middleware):
        def on_stream_start(self, stream: Any) -> None:
            with pytest.raises(TurnBusy, match="close its stream first"):
                window.call_model(on_busy="wait")

    middleware = [Impatient()]
    with ContextWindow(file, "chat", model=ScriptedModel([COUNT]), middleware=middleware) as window:
        window.add_prompt("count")
        assert window.call_model().text == COUNT


def test_a_task_that_holds_up_the_turn_itself_is_told_at_once_and_others_may_wait(
    file: str,
) -> None:
    async def main() -> list[str]:
        model = ScriptedModel([COUNT, "other"])
        async with AsyncContextWindow(file, "chat", model=model) as window:
            await window.add_prompt("count")
            other = None
            async with window.call_model_streaming() as stream:
                async for chunk in stream:
                    if chunk.delta and other is None:
                        with pytest.raises(TurnBusy, match="close its stream first"):
                            await window.call_model(on_busy="wait")
                        other = asyncio.ensure_future(window.call_model(on_busy="wait"))
            assert other is not None
            return [stream.reply.text, (await other).text]

    assert asyncio.run(main()) == [COUNT, "other"]


def test_a_tool_may_stop_the_turn_that_called_it(file: str) -> None:
    replies: list[Any] = []

    def start_over(context: ToolContext) -> str:
        "Start over."
        own = ContextWindow(context.store, "chat", model=ScriptedModel(["anew"]))
        replies.append(own.call_model(on_busy="cancel_running"))
        done.set()
        return "too late"

    done = threading.Event()
    model = ScriptedModel([ScriptedReply("one", tool_calls=[("start_over", {}, "c1")])])
    with ContextWindow(file, "chat", model=model, tools=[start_over]) as window:
        window.add_prompt("count")
        assert window.call_model().finish_reason == "cancelled"
        assert done.wait(10)

        assert replies[0].text == "anew"
        assert states(window) == ["cancelled", "complete"]
        assert problems(file) == []


@pytest.mark.parametrize("leave", ["cancel_running", "wait"])
def test_a_stream_that_is_dropped_still_ends_at_once(file: str, leave: Any) -> None:
    """That others can stop a turn must not keep its stream alive."""
    with ContextWindow(file, "chat", model=ScriptedModel([COUNT, "next"])) as window:
        window.add_prompt("count")
        for chunk in window.call_model_streaming():
            if chunk.delta:
                break
        assert states(window) == ["cancelled"]
        assert window.call_model(on_busy=leave).text == "next"
