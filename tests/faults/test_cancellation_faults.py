"""Turns that are cancelled, left, or never let go, at every point where that can happen."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
from collections.abc import Callable, Coroutine
from typing import Any

import anyio
import pytest
from leaving import LEAVES, Leave
from support import COUNT, contents, opener, problems, responses, states
from support import file as file

from contextwindow import (
    AsyncContextWindow,
    ContextWindow,
    Middleware,
    RecordType,
    Store,
    StreamChunk,
    ToolContext,
)
from contextwindow.effects import EndTurn
from contextwindow.errors import ModelTimeout, StoreBusy
from contextwindow.store.ledger import TurnLedger
from contextwindow.testing import FakeProvider, FakeReply, ScriptedModel, ScriptedReply


class Stepper:
    """Runs a coroutine as a task that is cancelled at its n-th step, once or twice.

    A step is what the task does between two waits: cancelling at each of them cancels at every
    await of the turn.
    """

    def __init__(self, coroutine: Coroutine[Any, Any, Any], at: int, times: int) -> None:
        self._coroutine = coroutine
        self._at = at
        self._times = times
        self.steps = 0

    def __await__(self) -> Any:
        iterator = self._coroutine.__await__()
        value: Any = None
        while True:
            self.steps += 1
            if self.steps in range(self._at, self._at + self._times):
                task = asyncio.current_task()
                assert task is not None
                task.cancel()
            try:
                wanted = iterator.send(value)
            except StopIteration as stop:
                return stop.value
            try:
                value = yield wanted
            except BaseException as error:
                try:
                    wanted = iterator.throw(error)
                except StopIteration as stop:
                    return stop.value
                value = yield wanted


def lookup(n: int) -> str:
    "Look it up."
    return f"found {n}"


async def lookup_slowly(n: int) -> str:
    "Look it up, slowly."
    await asyncio.sleep(0)
    return f"found {n}"


def model_with_tools() -> ScriptedModel:
    calls = [("lookup", {"n": 1}, "c1"), ("lookup_slowly", {"n": 2}, "c2")]
    return ScriptedModel([ScriptedReply("Let me see.", tool_calls=calls), COUNT, "next reply"])


# -- 36: cancelling tasks --------------------------------------------------------------------


@pytest.mark.parametrize("times", [1, 2])
def test_a_task_that_is_cancelled_at_any_await_leaves_all_in_order(file: str, times: int) -> None:
    """Fault 36: `task.cancel()` at every await of a turn, once and twice: kept before."""
    seen = {"cancelled": 0, "whole": 0}

    async def main() -> None:
        async with AsyncContextWindow(store, "warm", model=ScriptedModel(["hi"])) as warm:
            await warm.add_prompt("so that everything is loaded")
            await warm.call_model()
        at = 0
        while not seen["whole"]:
            at += 1
            await cancel_at(store, at, times, seen)
        assert at > 15, "the awaits were not counted"

    with Store(file) as store:
        asyncio.run(main())
        assert problems(store) == []
    assert seen["cancelled"] > 10


async def cancel_at(store: Store, at: int, times: int, seen: dict[str, int]) -> None:
    """Cancel a turn at one of its steps and see to what is left."""
    shown: list[str] = []
    name = f"chat {at}"
    options: dict[str, Any] = {"model": model_with_tools(), "tools": [lookup, lookup_slowly]}
    async with AsyncContextWindow(store, name, **options) as window:
        await window.add_prompt("count")

        async def turn() -> None:
            async with window.call_model_streaming() as stream:
                async for chunk in stream:
                    shown.append(chunk.delta)  # noqa: PERF401 - those before an error count

        stepper = Stepper(turn(), at, times)

        async def run() -> None:
            await stepper

        task = asyncio.ensure_future(run())
        try:
            await task
            seen["whole"] += 1
        except asyncio.CancelledError:
            seen["cancelled"] += 1
        # At this moment, and not later, everything is stored.
        kept = [r for r in await window.records() if r.source is RecordType.MODEL_RESPONSE]
        assert "".join(contents(kept)) == "".join(shown), f"step {at}"
        ended = [turn.state for turn in await window.turns()]
        assert "running" not in ended, f"step {at}"
        assert problems(store) == [], f"step {at}"
        await window.add_prompt("and now?")
        assert (await window.call_model(on_busy="raise")).finish_reason in ("stop", "tool_calls")


SCOPES: dict[str, Callable[[], Any]] = {
    "anyio": lambda: anyio.move_on_after(0.05),
    "asyncio": lambda: asyncio.timeout(0.05),
}


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("where", ["stream", "tool", "hook"])
def test_a_scope_that_ends_leaves_nothing_open(database: str, scope: str, where: str) -> None:
    """Fault 36: an anyio scope; `asyncio.timeout`: kept, nothing left open."""

    async def forever(context: ToolContext) -> str:
        "Wait."
        await asyncio.sleep(60)
        return ""

    class Hook(Middleware):
        async def on_stream_chunk(self, chunk: StreamChunk) -> None:
            if chunk.delta and where == "hook":
                await asyncio.sleep(60)

    replies = {
        "stream": ScriptedReply(COUNT, fault="stall", fail_at=2),
        "tool": ScriptedReply("one two", tool_calls=[("forever", {}, "c1")]),
        "hook": ScriptedReply("one two"),
    }

    async def main() -> str:
        shown = ""
        options: dict[str, Any] = {"tools": [forever], "middleware": [Hook()]}
        model = ScriptedModel([replies[where]])
        async with AsyncContextWindow(database, "chat", model=model, **options) as window:
            await window.add_prompt("count")
            try:
                with SCOPES[scope]() if scope == "anyio" else Unlimited():
                    async with SCOPES[scope]() if scope == "asyncio" else Unlimited():
                        async with window.call_model_streaming() as stream:
                            async for chunk in stream:
                                shown += chunk.delta
            except TimeoutError:
                pass
            assert [turn.state for turn in await window.turns()] == ["cancelled"]
            assert asyncio.all_tasks() == {asyncio.current_task()}
        return shown

    shown = asyncio.run(main())
    with ContextWindow(database, "chat") as window:
        assert "".join(contents(responses(window))) == shown
        assert problems(database) == []
    assert not [t for t in threading.enumerate() if t.name.startswith("contextwindow-store")]


class Unlimited:
    """Stands where a scope does."""

    def __enter__(self) -> None: ...

    def __exit__(self, *error: object) -> None: ...

    async def __aenter__(self) -> None: ...

    async def __aexit__(self, *error: object) -> None: ...


def test_a_web_client_that_goes_away_closes_the_connection_to_the_provider(file: str) -> None:
    """Fault 36: a web client that goes away: kept, no connection left open."""
    from contextwindow import OpenAIChatModel

    reply = FakeReply(chunks=[f"w{n} " for n in range(2_000)], pace=0.005)

    async def main(url: str) -> str:
        shown: list[str] = []
        model = OpenAIChatModel("gpt-5-mini", base_url=url, api_key="k", max_retries=0)
        async with AsyncContextWindow(file, "chat", model=model) as window:
            await window.add_prompt("go")

            async def respond(send: Any) -> None:
                async with window.call_model_streaming() as stream:
                    async for text in stream.text_deltas():
                        await send(text)

            async def send(text: str) -> None:
                shown.append(text)
                if len(shown) == 20:
                    raise ConnectionResetError("the client has gone")

            with pytest.raises(ConnectionResetError):
                await respond(send)
            assert [turn.state for turn in await window.turns()] == ["cancelled"]
        await model.aclose()
        return "".join(shown)

    with FakeProvider(reply) as provider:
        shown = asyncio.run(main(provider.openai_url))
        with ContextWindow(file, "chat") as window:
            assert "".join(contents(responses(window))) == shown
        assert problems(file) == []


# -- 36a: neighbours, and cancelling against the commit --------------------------------------


def test_cancelling_one_task_leaves_its_neighbours_alone(database: str) -> None:
    """Fault 36a: Cancelling one task leaves its neighbours' rows alone."""
    slow = ScriptedReply(COUNT, delay=0.02)

    async def main() -> None:
        store = await asyncio.to_thread(Store, database)
        windows = [
            AsyncContextWindow(store, f"chat {n}", model=ScriptedModel([slow])) for n in range(12)
        ]
        for window in windows:
            await window.add_prompt("count")
        tasks = [asyncio.ensure_future(window.call_model()) for window in windows]
        await asyncio.sleep(0.05)
        for task in tasks[::3]:
            task.cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        for number, result in enumerate(results):
            state = [turn.state for turn in await windows[number].turns()]
            if number % 3:
                assert not isinstance(result, BaseException), result
                assert (result.text, state) == (COUNT, ["complete"])
            else:
                assert isinstance(result, asyncio.CancelledError)
                assert state == ["cancelled"]
        for window in windows:
            await window.aclose()
        await asyncio.to_thread(store.close)

    asyncio.run(main())
    assert problems(database) == []


def test_a_prompt_that_is_cancelled_is_stored_once_or_not_at_all_and_it_is_known_which(
    database: str,
) -> None:
    """Fault 36a: cancel against commit: exactly one record or none, known which."""

    async def main() -> None:
        async with AsyncContextWindow(database, "chat") as window:
            await window.add_prompt("first")
            stored = ["first"]
            for number in range(60):
                task = asyncio.ensure_future(window.add_prompt(f"{number}", key=f"{number}"))
                for _ in range(number % 4):
                    await asyncio.sleep(0)
                task.cancel()
                try:
                    stored.append((await task).content)
                except asyncio.CancelledError:
                    found = contents(await window.records())
                    assert found in (stored, [*stored, f"{number}"])
                    stored = found
                # Asking again is what makes it known.
                again = await window.add_prompt(f"{number}", key=f"{number}")
                if again.content not in stored:
                    stored.append(again.content)
                assert contents(await window.records()) == stored

    asyncio.run(main())
    assert problems(database) == []


def test_a_turn_that_is_cancelled_while_its_end_is_committed_has_one_end(
    file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fault 36a: cancel against the commit of a turn's end: one state, and the text whole."""
    apply = TurnLedger.apply

    async def main() -> None:
        async with AsyncContextWindow(file, "chat", model=ScriptedModel([COUNT])) as window:
            await window.add_prompt("count")
            loop = asyncio.get_running_loop()
            task = asyncio.ensure_future(window.call_model())

            def late(ledger: TurnLedger, checkpoint: Any) -> Any:
                written = apply(ledger, checkpoint)
                if written.ended:
                    loop.call_soon_threadsafe(task.cancel)
                    time.sleep(0.02)
                return written

            monkeypatch.setattr(TurnLedger, "apply", late)
            with pytest.raises(asyncio.CancelledError):
                await task
            assert [turn.state for turn in await window.turns()] == ["complete"]
            assert contents(await window.live_records()) == ["count", COUNT]

    asyncio.run(main())
    assert problems(file) == []


# -- 37: leaving -----------------------------------------------------------------------------


@pytest.mark.parametrize("leave", LEAVES)
@pytest.mark.parametrize("api", ["sync", "async"])
def test_however_a_stream_is_left_nothing_stays_open(file: str, leave: Leave, api: str) -> None:
    """Fault 37: `break`, exception in the loop, `cancel()`: kept, and nothing is left open."""
    model = ScriptedModel([ScriptedReply(COUNT, delay=0.001), "next reply"])
    with opener(api) as run:
        window = run(file, "chat", model=model)
        window.add_prompt("count")
        seen, _ = leave(window)
        assert "".join(contents(responses(window))) == seen
        assert states(window)[0] in ("cancelled", "interrupted")
        assert window.call_model().text == "next reply"
        assert problems(file) == []


def test_a_generator_that_is_dropped_in_a_cycle_is_settled_by_the_collector(file: str) -> None:
    """Fault 37: generator dropped: kept, even where only the garbage collector finds it."""

    class Node:
        def __init__(self, window: ContextWindow) -> None:
            self.myself = self
            self.chunks = iter(window.call_model_streaming())

    with ContextWindow(file, "chat", model=ScriptedModel([COUNT, "next reply"])) as window:
        window.add_prompt("count")
        node = Node(window)
        while next(node.chunks).delta != " two":
            pass
        del node
        gc.collect()

        assert contents(responses(window)) == ["one two"]
        assert window.call_model().text == "next reply"
        assert states(window)[0] in ("cancelled", "interrupted")
        assert problems(file) == []


@pytest.mark.parametrize("where", ["thread", "hook", "callback", "tool"])
def test_cancel_works_from_everywhere(database: str, where: str) -> None:
    """Fault 37: `cancel()` from another thread, from a hook, from the callback, from a tool."""
    shown: list[str] = []

    class Hook(Middleware):
        def on_stream_chunk(self, chunk: StreamChunk) -> None:
            if chunk.delta == " two" and where == "hook":
                stream.cancel()

    def stop(context: ToolContext) -> str:
        "Stop."
        stream.cancel()
        return "stopped"

    calls: list[Any] = [("stop", {}, "c1")] if where == "tool" else []
    model = ScriptedModel([ScriptedReply(COUNT, tool_calls=calls, delay=0.005), "next reply"])
    options: dict[str, Any] = {"middleware": [Hook()], "tools": [stop]}
    with ContextWindow(database, "chat", model=model, **options) as window:
        window.add_prompt("count")
        stream = window.call_model_streaming()

        def seen(chunk: StreamChunk) -> None:
            shown.append(chunk.delta)
            if chunk.delta == " two":
                if where == "callback":
                    stream.cancel()
                elif where == "thread":
                    threading.Thread(target=stream.cancel).start()

        reply = stream.until_done(seen)
        assert reply.finish_reason == "cancelled"
        assert "".join(shown) == reply.text == "".join(contents(responses(window)))
        assert states(window) == ["cancelled"]
        assert window.call_model().text == "next reply"
        assert problems(database) == []


def test_a_cancelled_turn_whose_end_is_refused_says_why_and_keeps_its_text(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fault 37: `cancel()` in a burst, and the database refuses the end: clear, and kept."""
    apply = TurnLedger.apply

    def refused(ledger: TurnLedger, checkpoint: Any) -> Any:
        if checkpoint.operations and type(checkpoint.operations[-1]) is EndTurn:
            monkeypatch.undo()
            raise StoreBusy("another program holds the database locked")
        return apply(ledger, checkpoint)

    model = ScriptedModel([ScriptedReply(COUNT, batch=4), "next reply"])
    with ContextWindow(database, "chat", model=model, checkpoint_interval=0.0) as window:
        window.add_prompt("count")
        stream = window.call_model_streaming()
        monkeypatch.setattr(TurnLedger, "apply", refused)

        def seen(chunk: StreamChunk) -> None:
            if chunk.delta == " two":
                stream.cancel()

        with pytest.raises(StoreBusy):
            stream.until_done(seen)
        assert contents(responses(window)) == ["one two"]
        assert window.call_model().text == "next reply"
        assert problems(database) == []


# -- 38: what never returns ------------------------------------------------------------------


@pytest.mark.parametrize("api", ["sync", "async"])
def test_a_tool_that_never_returns_is_ended_by_the_deadline(database: str, api: str) -> None:
    """Fault 38: A tool that never returns: `deadline` ends the turn."""
    over = threading.Event()

    def forever(context: ToolContext) -> str:
        "Wait."
        over.wait(60)
        return ""

    model = ScriptedModel([ScriptedReply("one", tool_calls=[("forever", {}, "c1")]), "next"])
    with opener(api) as run:
        window = run(database, "chat", model=model, tools=[forever])
        window.add_prompt("count")
        began = time.monotonic()
        with pytest.raises(ModelTimeout, match="deadline"):
            window.call_model(deadline=0.3)
        assert time.monotonic() - began < 10
        assert states(window) == ["interrupted"]
        assert problems(database) == []
    over.set()


def test_an_async_hook_that_never_returns_is_ended_by_the_deadline(database: str) -> None:
    """Fault 38: A hook that never returns: `deadline` ends the turn."""

    class Stuck(Middleware):
        async def on_stream_chunk(self, chunk: StreamChunk) -> None:
            if chunk.delta == " two":
                await asyncio.sleep(60)

    async def main() -> None:
        options: dict[str, Any] = {"middleware": [Stuck()]}
        async with AsyncContextWindow(
            database, "chat", model=ScriptedModel([COUNT]), **options
        ) as window:
            await window.add_prompt("count")
            with pytest.raises(ModelTimeout, match="deadline"):
                async with asyncio.timeout(20):
                    await window.call_model_streaming(deadline=0.3).until_done(lambda chunk: None)
            assert [turn.state for turn in await window.turns()] == ["interrupted"]

    asyncio.run(main())
    assert problems(database) == []


# -- 39: BaseException -----------------------------------------------------------------------


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize(
    "hook", ["on_call_start", "on_stream_start", "on_stream_chunk", "on_stream_complete"]
)
def test_a_hook_that_wants_to_end_the_program_is_obeyed_once_all_is_kept(
    database: str, kind: type[BaseException], hook: str
) -> None:
    """Fault 39: A hook that raises `BaseException` (KeyboardInterrupt, SystemExit): re-raised."""
    mine = kind("mine")
    shown: list[str] = []

    def raising(*arguments: Any) -> None:
        chunk = arguments[0]
        if hook != "on_stream_chunk" or chunk.delta == " three":
            raise mine

    middleware = Middleware()
    setattr(middleware, hook, raising)
    options: dict[str, Any] = {"middleware": [middleware]}
    with ContextWindow(database, "chat", model=ScriptedModel([COUNT]), **options) as window:
        window.add_prompt("count")
        with pytest.raises(kind) as caught:
            window.call_model_streaming().until_done(lambda chunk: shown.append(chunk.delta))
        assert caught.value is mine
        assert "".join(contents(responses(window))) == "".join(shown)
        assert states(window) == ["complete" if hook == "on_stream_complete" else "cancelled"]
        assert problems(database) == []


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit])
def test_a_tool_that_wants_to_end_the_program_is_an_error_output(
    file: str, kind: type[BaseException]
) -> None:
    """Fault 39: a tool's thread cannot end the program; the model is told what it raised."""

    def leave(context: ToolContext) -> str:
        "Leave."
        raise kind("mine")

    model = ScriptedModel([ScriptedReply("one", tool_calls=[("leave", {}, "c1")]), "next reply"])
    with ContextWindow(file, "chat", model=model, tools=[leave]) as window:
        window.add_prompt("count")
        assert window.call_model().text == "onenext reply"
        (output,) = [r for r in window.records() if r.source is RecordType.TOOL_OUTPUT]
        assert output.error
        assert kind.__name__ in output.content
