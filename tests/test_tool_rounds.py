"""Tools that a turn runs: what is committed when, what is told, and how it ends."""

from __future__ import annotations

import asyncio
import re
import sqlite3
import threading
from typing import Any

import pytest
from support import Open, check_order, contents, file, problems, read, run, sent, shown, states

from contextwindow import (
    DROP,
    AsyncContextWindow,
    CallbackExpired,
    ChildLinked,
    ConfigError,
    ContextWindow,
    InvalidRequest,
    Middleware,
    MiddlewareError,
    ModelTimeout,
    Record,
    RecordType,
    StreamChunk,
    StreamInterrupted,
    Tool,
    ToolContext,
    ToolEnd,
    ToolError,
    ToolOutputDelta,
    ToolStart,
    tool,
)
from contextwindow.models.steps import NOT_RUN, UNKNOWN_OUTCOME, steps
from contextwindow.testing import ScriptedModel, ScriptedReply

__all__ = ["file", "run"]

Call = tuple[Any, ...]


@tool
def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


def asks(*calls: Call, text: str = "", **options: Any) -> ScriptedReply:
    """A reply that calls tools."""
    return ScriptedReply(chunks=text, tool_calls=calls, **options)


def window_with(
    run: Open, file: str, tools: Any, *script: Any, **options: Any
) -> tuple[ContextWindow, ScriptedModel]:
    model = ScriptedModel(list(script))
    window = run(file, "chat", model=model, tools=tools, **options)
    window.add_prompt("go")
    return window, model


def outputs(window: ContextWindow) -> list[Record]:
    return [one for one in window.live_records() if one.source is RecordType.TOOL_OUTPUT]


def kinds(chunks: list[StreamChunk], *types: type[StreamChunk]) -> list[Any]:
    return [chunk for chunk in chunks if type(chunk) in types]


def paired(chunks: list[StreamChunk]) -> bool:
    """Whether every tool that started ended once, and none ended that had not started."""
    started = [chunk.call_id for chunk in kinds(chunks, ToolStart)]
    ended = [chunk.call_id for chunk in kinds(chunks, ToolEnd)]
    return sorted(started) == sorted(ended) and len(set(ended)) == len(ended)


# -- rounds ------------------------------------------------------------------------------


def test_the_model_gets_the_output_and_the_reader_one_reply(run: Open, file: str) -> None:
    reply = asks(("add", {"a": 1, "b": 2}, "c1"), text="Let me see. ")
    window, model = window_with(run, file, [add], reply, "It is 3.")

    stream = window.call_model_streaming()
    chunks, error = read(stream)

    assert error is None
    check_order(chunks, None)
    assert shown(chunks) == stream.reply.text == "Let me see. It is 3."
    assert sent(model) == ["go", "Let me see. ", '{"a": 1, "b": 2}', "3"]
    assert [one.source.name for one in stream.reply.records] == [
        "MODEL_RESPONSE",
        "TOOL_CALL",
        "TOOL_OUTPUT",
        "MODEL_RESPONSE",
    ]
    assert [call.name for call in stream.reply.tool_calls] == ["add"]
    assert stream.reply.finish_reason == "stop"
    assert [chunk.type for chunk in chunks if chunk.type.startswith(("tool_s", "tool_e"))] == [
        "tool_start",
        "tool_end",
    ]
    (start,), (end,) = kinds(chunks, ToolStart), kinds(chunks, ToolEnd)
    assert (start.name, start.arguments) == ("add", {"a": 1, "b": 2})
    assert (end.output, end.error) == ("3", None)
    assert end.duration >= 0
    assert states(window) == ["complete"]
    assert problems(file) == []


def test_each_call_has_its_usage_and_the_reply_the_sum(run: Open, file: str) -> None:
    window, _ = window_with(
        run, file, [add], asks(("add", {"a": 1, "b": 2})), asks(("add", {"a": 3, "b": 4})), "7"
    )

    stream = window.call_model_streaming()
    chunks, _ = read(stream)

    reports = [chunk.usage for chunk in chunks if chunk.type == "usage_report"]
    assert len(reports) == len(window.calls()) == 3
    assert sum(usage.total_tokens for usage in reports) == stream.reply.usage.total_tokens
    assert [call.finish_reason for call in window.calls()] == ["tool_calls", "tool_calls", "stop"]
    assert [len(call.manifest) for call in window.calls()] == [1, 3, 5]
    assert window.total_tokens() == stream.reply.usage.total_tokens


def test_parallel_calls_run_at_once_and_are_stored_in_call_order(run: Open, file: str) -> None:
    meeting = threading.Barrier(3, timeout=20)
    order: list[str] = []

    @tool
    def meet(who: str) -> str:
        meeting.wait()
        order.append(who)
        return who

    @tool
    def last(who: str) -> str:
        meeting.wait()
        while len(order) < 2:
            pass
        return who

    window, model = window_with(
        run,
        file,
        [meet, last],
        asks(("last", {"who": "a"}), ("meet", {"who": "b"}), ("meet", {"who": "c"})),
        "done",
    )

    window.call_model()

    assert contents(outputs(window)) == ["a", "b", "c"]
    assert sent(model)[-3:] == ["a", "b", "c"]


def test_async_tools_run_at_once_on_the_loop() -> None:
    async def main() -> list[str]:
        both = asyncio.Event()
        waiting = 0

        @tool
        async def meet(who: str, context: ToolContext) -> str:
            nonlocal waiting
            waiting += 1
            if waiting == 2:
                both.set()
            await both.wait()
            await context.emit(f"{who} is here")
            return who

        model = ScriptedModel([asks(("meet", {"who": "a"}), ("meet", {"who": "b"})), "done"])
        async with AsyncContextWindow(model=model, tools=[meet]) as window:
            await window.add_prompt("go")
            seen: list[StreamChunk] = []
            reply = await window.call_model_streaming().until_done(seen.append)
            assert reply.text == "done"
            shown = [chunk.output for chunk in kinds(seen, ToolOutputDelta)]
            assert sorted(shown) == ["a is here", "b is here"]
            return contents([r for r in reply.records if r.source is RecordType.TOOL_OUTPUT])

    assert asyncio.run(main()) == ["a", "b"]


def test_a_call_is_committed_before_its_tool_runs_and_its_output_before_the_next_request(
    run: Open, file: str
) -> None:
    def rows() -> list[tuple[Any, ...]]:
        connection = sqlite3.connect(file)
        try:
            return connection.execute(
                "SELECT source, content, partial_response_id IS NOT NULL, error FROM records "
                "WHERE source IN (2, 3) ORDER BY position"
            ).fetchall()
        finally:
            connection.close()

    seen: list[Any] = []

    @tool
    def look(n: int) -> str:
        seen.append(rows())
        return f"saw {n}"

    def next_request(records: Any, options: Any) -> str:
        seen.append(rows())
        return "done"

    model = ScriptedModel([asks(("look", {"n": 1}, "c1")), next_request])
    window = run(file, "chat", model=model, tools=[look])
    window.add_prompt("go")

    window.call_model()

    in_tool, in_request = seen
    assert in_tool == [(2, '{"n": 1}', 0, 0), (3, "", 1, 0)]
    assert in_request == [(2, '{"n": 1}', 0, 0), (3, "saw 1", 0, 0)]


def test_an_early_output_is_on_disk_while_a_slower_tool_still_runs(run: Open, file: str) -> None:
    def stored() -> list[str]:
        connection = sqlite3.connect(file)
        try:
            query = "SELECT content FROM records WHERE source = 3 ORDER BY position"
            return [row[0] for row in connection.execute(query)]
        finally:
            connection.close()

    @tool
    def quick() -> str:
        return "quick"

    @tool
    def slow() -> str:
        while "quick" not in stored():
            pass
        return "slow"

    window, _ = window_with(run, file, [quick, slow], asks(("slow", {}), ("quick", {})), "done")

    window.call_model()

    assert contents(outputs(window)) == ["slow", "quick"]


def test_more_calls_than_fit_at_once_all_run(run: Open, file: str) -> None:
    calls = [("add", {"a": n, "b": 0}) for n in range(100)]
    window, _ = window_with(run, file, [add], asks(*calls), "done")

    window.call_model()

    assert contents(outputs(window)) == [str(n) for n in range(100)]
    assert problems(file) == []


def test_rounds_end_with_a_clear_error_at_their_limit(run: Open, file: str) -> None:
    model = ScriptedModel([asks(("add", {"a": 1, "b": 2}))], repeat=True)
    window = run(file, "chat", model=model, tools=[add])
    window.add_prompt("go")

    with pytest.raises(ToolError, match="max_tool_rounds"):
        window.call_model(max_tool_rounds=3)

    assert len(model.requests) == 4
    assert len(outputs(window)) == 3
    assert problems(file) == []
    # The context stays usable: the call that was not run is answered as such.
    model._script[:] = ["enough"]
    assert window.call_model().text == "enough"


def test_fifty_rounds_are_the_limit_unless_said_otherwise(run: Open, file: str) -> None:
    model = ScriptedModel([asks(("add", {"a": 1, "b": 2}))], repeat=True)
    window = run(file, "chat", model=model, tools=[add])
    window.add_prompt("go")

    with pytest.raises(ToolError):
        window.call_model()

    assert len(model.requests) == 51


def test_disabled_tools_are_not_offered(run: Open, file: str) -> None:
    window, model = window_with(run, file, [add], "plain", "with")

    window.call_model(disable_tools=True)
    window.call_model()

    assert [len(request.options.tools) for request in model.requests] == [0, 1]


def test_a_forced_call_is_forced_once(run: Open, file: str) -> None:
    window, model = window_with(run, file, [add], asks(("add", {"a": 1, "b": 2})), "3")

    window.call_model(tool_choice="add")

    assert [request.options.tool_choice for request in model.requests] == ["add", None]


def test_a_choice_that_names_no_tool_is_refused_before_anything_is_sent(
    run: Open, file: str
) -> None:
    window, model = window_with(run, file, [add], "x")

    with pytest.raises(ConfigError, match=r"'sum' names no tool.*add"):
        window.call_model(tool_choice="sum")

    assert model.requests == []


# -- what goes wrong in a tool -----------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (("nope", {}), "there is no tool 'nope'.*add"),
        (("add", '{"a": 1, "b"'), "JSON"),
        (("add", "[1, 2]"), "object"),
        (("add", {"a": "one", "b": 2}), "a"),
        (("add", {"a": 1}), "b"),
    ],
)
def test_a_call_that_cannot_run_is_answered_to_the_model(
    run: Open, file: str, call: Call, said: str
) -> None:
    window, model = window_with(run, file, [add], asks(call), "sorry")

    stream = window.call_model_streaming()
    chunks, error = read(stream)

    assert error is None
    (output,) = outputs(window)
    assert output.error
    assert output.content.startswith("error: ")
    assert re.search(said, output.content)
    assert sent(model)[-1] == output.content
    assert paired(chunks)
    assert stream.reply.text == "sorry"


def test_a_tool_that_raises_tells_the_model_and_not_the_caller(run: Open, file: str) -> None:
    @tool
    def bad() -> str:
        raise ZeroDivisionError("by zero")

    @tool
    def worse() -> str:
        raise SystemExit(3)

    window, _ = window_with(run, file, [bad, worse], asks(("bad", {}), ("worse", {})), "sorry")

    stream = window.call_model_streaming()
    chunks, error = read(stream)

    assert error is None
    assert contents(outputs(window)) == [
        "error: ZeroDivisionError: by zero",
        "error: SystemExit: 3",
    ]
    assert [one.error for one in outputs(window)] == [True, True]
    ends = kinds(chunks, ToolEnd)
    assert isinstance(ends[0].error, ZeroDivisionError)
    assert paired(chunks)


def test_an_output_that_no_json_holds_is_an_error_to_the_model(run: Open, file: str) -> None:
    @tool
    def odd() -> Any:
        return object()

    window, _ = window_with(run, file, [odd], asks(("odd", {})), "sorry")

    assert window.call_model().text == "sorry"
    assert outputs(window)[0].error


def test_an_output_is_stored_without_what_no_database_keeps(run: Open, file: str) -> None:
    @tool
    def odd() -> str:
        return "a\0b\ud800c"

    window, model = window_with(run, file, [odd], asks(("odd", {})), "fine")

    window.call_model()

    assert sent(model)[-1] == "a\ufffdb\ufffdc"


def test_a_tool_that_takes_too_long_is_given_up(run: Open, file: str) -> None:
    let_go = threading.Event()
    expired: list[BaseException] = []
    done = threading.Event()

    @tool(timeout=0.05)
    def slow(context: ToolContext) -> str:
        let_go.wait(20)
        try:
            context.emit("too late")
        except CallbackExpired as error:
            expired.append(error)
        done.set()
        return "late"

    window, _ = window_with(
        run, file, [slow, add], asks(("slow", {}), ("add", {"a": 1, "b": 2})), "x"
    )

    stream = window.call_model_streaming()
    chunks, error = read(stream)
    let_go.set()

    assert error is None
    assert contents(outputs(window)) == ["error: the tool did not answer within 0.05 s", "3"]
    assert paired(chunks)
    assert done.wait(20)
    assert len(expired) == 1


def test_an_async_tool_that_takes_too_long_is_cancelled() -> None:
    cancelled: list[bool] = []

    @tool(timeout=0.02)
    async def slow() -> str:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            cancelled.append(True)
            raise
        return "late"

    async def main() -> str:
        model = ScriptedModel([asks(("slow", {})), "sorry"])
        async with AsyncContextWindow(model=model, tools=[slow]) as window:
            await window.add_prompt("go")
            await window.call_model()
            return outputs_of(await window.live_records())

    def outputs_of(records: list[Record]) -> str:
        return "".join(r.content for r in records if r.source is RecordType.TOOL_OUTPUT)

    assert asyncio.run(main()) == "error: the tool did not answer within 0.02 s"
    assert cancelled == [True]


# -- emit --------------------------------------------------------------------------------


def test_what_a_tool_emits_is_streamed_before_its_end(run: Open, file: str) -> None:
    @tool
    def count(to: int, context: ToolContext) -> str:
        for number in range(to):
            context.emit({"at": number})
        return "counted"

    window, _ = window_with(run, file, [count], asks(("count", {"to": 3}, "c1")), "done")

    stream = window.call_model_streaming()
    chunks, _ = read(stream)

    tail = [c for c in chunks if type(c) in (ToolStart, ToolOutputDelta, ToolEnd)]
    assert [c.type for c in tail] == ["tool_start"] + ["tool_output_delta"] * 3 + ["tool_end"]
    assert [c.output for c in kinds(chunks, ToolOutputDelta)] == [{"at": n} for n in range(3)]
    assert shown(chunks) == "done"


def test_a_tool_knows_its_call(run: Open, file: str) -> None:
    seen: list[ToolContext] = []

    @tool
    def who(context: ToolContext) -> None:
        seen.append(context)

    window, _ = window_with(run, file, [who], asks(("who", {}, "c1")), "done")

    reply = window.call_model()

    (context,) = seen
    assert (context.call_id, context.name, context.turn_id) == ("c1", "who", reply.turn_id)
    assert context.context_name == "chat"
    assert contents(outputs(window)) == [""]


def test_emit_is_over_when_the_tool_is(run: Open, file: str) -> None:
    kept: list[ToolContext] = []

    @tool
    def keep(context: ToolContext) -> str:
        kept.append(context)
        return "kept"

    window, _ = window_with(run, file, [keep], asks(("keep", {})), "done")
    window.call_model()

    with pytest.raises(CallbackExpired):
        kept[0].emit("late")


def test_an_exception_of_the_callback_comes_out_of_emit_and_of_the_stream(
    run: Open, file: str
) -> None:
    raised: list[BaseException] = []
    done = threading.Event()

    @tool
    def talk(context: ToolContext) -> str:
        try:
            context.emit("hello")
        except BaseException as error:
            raised.append(error)
            raise
        finally:
            done.set()
        return "said"

    boom = ValueError("the screen is full")

    def show(chunk: StreamChunk) -> None:
        if type(chunk) is ToolOutputDelta:
            raise boom

    window, _ = window_with(run, file, [talk], asks(("talk", {}, "c1")), "never")

    with pytest.raises(ValueError, match="the screen is full"):
        window.call_model_streaming().until_done(show)

    assert done.wait(20)
    assert raised == [boom]
    assert states(window) == ["interrupted"]
    (output,) = outputs(window)
    assert (output.content, output.error) == (UNKNOWN_OUTCOME, True)
    assert problems(file) == []


def test_hooks_may_replace_and_drop_what_a_tool_emits(run: Open, file: str) -> None:
    class Censor(Middleware):
        def on_stream_chunk(self, chunk: StreamChunk) -> Any:
            if isinstance(chunk, ToolOutputDelta):
                return DROP if chunk.output == "secret" else ToolOutputDelta("c1", "[shown]")
            return None

    @tool
    def talk(context: ToolContext) -> str:
        context.emit("secret")
        context.emit("open")
        return "said"

    window, _ = window_with(
        run, file, [talk], asks(("talk", {}, "c1")), "done", middleware=[Censor()]
    )

    chunks, _ = read(window.call_model_streaming())

    assert [c.output for c in kinds(chunks, ToolOutputDelta)] == ["[shown]"]


def test_a_tool_that_does_not_wait_for_the_reader_loses_nothing() -> None:
    @tool
    async def talk(context: ToolContext) -> str:
        for number in range(50):
            context.emit(number)
        return "said"

    async def main() -> list[Any]:
        model = ScriptedModel([asks(("talk", {})), "done"])
        async with AsyncContextWindow(model=model, tools=[talk]) as window:
            await window.add_prompt("go")
            seen: list[StreamChunk] = []
            await window.call_model_streaming().until_done(seen.append)
            return [chunk.output for chunk in kinds(seen, ToolOutputDelta)]

    assert asyncio.run(main()) == list(range(50))


# -- hooks -------------------------------------------------------------------------------


def test_a_hook_may_replace_the_arguments(run: Open, file: str) -> None:
    class Tenfold(Middleware):
        def on_tool_call(self, name: str, arguments: dict[str, Any]) -> Any:
            return {**arguments, "b": arguments["b"] * 10}

    call = asks(("add", {"a": 1, "b": 2}, "c1"))
    window, _ = window_with(run, file, [add], call, "done", middleware=[Tenfold()])

    chunks, _ = read(window.call_model_streaming())

    assert contents(outputs(window)) == ["21"]
    assert kinds(chunks, ToolStart)[0].arguments == {"a": 1, "b": 20}
    (asked,) = [r for r in window.live_records() if r.source is RecordType.TOOL_CALL]
    assert asked.content == '{"a": 1, "b": 2}'


@pytest.mark.parametrize("way", ["return", "raise"])
def test_a_hook_may_refuse_a_call_with_a_reason(run: Open, file: str, way: str) -> None:
    ran: list[int] = []

    @tool
    def delete() -> str:
        ran.append(1)
        return "gone"

    class Guard(Middleware):
        def on_tool_call(self, name: str, arguments: dict[str, Any]) -> Any:
            if way == "raise":
                raise ToolError("not on a Sunday")
            return "not on a Sunday"

    window, _ = window_with(
        run, file, [delete], asks(("delete", {})), "as you wish", middleware=[Guard()]
    )

    chunks, error = read(window.call_model_streaming())

    assert error is None
    assert ran == []
    assert contents(outputs(window)) == ["error: not on a Sunday"]
    assert paired(chunks)


def test_a_hook_that_fails_stops_the_turn_before_the_tool(run: Open, file: str) -> None:
    ran: list[int] = []

    @tool
    def touch() -> str:
        ran.append(1)
        return "touched"

    class Broken(Middleware):
        def on_tool_call(self, name: str, arguments: dict[str, Any]) -> Any:
            raise KeyError("oops")

    window, _ = window_with(
        run, file, [touch], asks(("touch", {}, "c1")), "next", middleware=[Broken()]
    )

    chunks, error = read(window.call_model_streaming())

    assert isinstance(error, MiddlewareError)
    assert chunks[-1].type == "stream_failed"
    assert paired(chunks)
    assert ran == []
    assert outputs(window) == []
    (asked,) = [r for r in window.live_records() if r.source is RecordType.TOOL_CALL]
    assert asked.error  # it is known not to have run
    assert problems(file) == []


def test_hooks_hear_of_results_and_errors(run: Open, file: str) -> None:
    heard: list[Any] = []

    class Ear(Middleware):
        def on_tool_result(self, name: str, output: str, error: BaseException | None) -> None:
            heard.append((name, output, type(error).__name__))

    calls = asks(("add", {"a": 1, "b": 2}), ("nope", {}))
    window, _ = window_with(run, file, [add], calls, "done", middleware=[Ear()])

    window.call_model()

    assert sorted(heard)[0] == ("add", "3", "NoneType")
    assert sorted(heard)[1][::2] == ("nope", "ToolError")


def test_async_hooks_are_awaited() -> None:
    class Slow(Middleware):
        async def on_tool_call(self, name: str, arguments: dict[str, Any]) -> Any:
            await asyncio.sleep(0)
            return {"a": 5, "b": 5}

    async def main() -> str:
        model = ScriptedModel([asks(("add", {"a": 1, "b": 2})), "done"])
        async with AsyncContextWindow(model=model, tools=[add], middleware=[Slow()]) as window:
            await window.add_prompt("go")
            reply = await window.call_model()
            return next(r.content for r in reply.records if r.source is RecordType.TOOL_OUTPUT)

    assert asyncio.run(main()) == "10"


# -- external tools ----------------------------------------------------------------------


def test_an_external_tool_is_the_callers_to_answer(run: Open, file: str) -> None:
    ask = Tool("ask_user", "Ask the user.", {"type": "object", "properties": {}})
    window, _ = window_with(run, file, [ask], asks(("ask_user", {"q": 1}, "c1")), "thanks")

    reply = window.call_model()

    assert reply.finish_reason == "tool_calls"
    assert [(call.id, call.arguments) for call in reply.tool_calls] == [("c1", {"q": 1})]
    assert states(window) == ["awaiting"]
    window.add_tool_output("yes", "c1")
    assert window.call_model().text == "thanks"
    assert states(window) == ["complete", "complete"]


def test_with_external_calls_beside_others_the_others_run_first(run: Open, file: str) -> None:
    ask = Tool("ask_user", "Ask the user.", {"type": "object", "properties": {}})
    calls = asks(("add", {"a": 1, "b": 2}, "c1"), ("ask_user", {}, "c2"), ("nope", {}, "c3"))
    window, model = window_with(run, file, [add, ask], calls, "thanks")

    stream = window.call_model_streaming()
    chunks, error = read(stream)

    assert error is None
    assert [call.id for call in stream.reply.tool_calls] == ["c2"]
    assert stream.reply.finish_reason == "tool_calls"
    assert paired(chunks)
    assert states(window) == ["awaiting"]
    window.add_tool_output("yes", "c2")
    window.call_model()
    assert len(model.requests) == 2
    assert problems(file) == []


def test_without_tools_every_call_is_the_callers(run: Open, file: str) -> None:
    window, _ = window_with(run, file, [], asks(("anything", {}, "c1")), "thanks")

    assert window.call_model().finish_reason == "tool_calls"
    assert states(window) == ["awaiting"]


# -- leaving -----------------------------------------------------------------------------


def test_cancelling_while_a_tool_runs_ends_its_start_and_tells_the_model(
    run: Open, file: str
) -> None:
    let_go = threading.Event()

    @tool
    def slow(context: ToolContext) -> str:
        context.emit("working")
        let_go.wait(20)
        return "late"

    window, model = window_with(run, file, [slow], asks(("slow", {}, "c1")), "next")

    stream = window.call_model_streaming()
    chunks: list[StreamChunk] = []
    for chunk in stream:
        chunks.append(chunk)
        if type(chunk) is ToolOutputDelta:
            stream.cancel()
    let_go.set()

    assert chunks[-1].type == "done"
    assert stream.reply.finish_reason == "cancelled"
    assert paired(chunks)
    assert states(window) == ["cancelled"]
    (output,) = outputs(window)
    assert (output.content, output.error) == (UNKNOWN_OUTCOME, True)
    window.add_prompt("and now?")
    window.call_model()
    assert UNKNOWN_OUTCOME in sent(model)
    assert problems(file) == []


def test_leaving_the_loop_while_a_tool_runs_stores_what_is_known(run: Open, file: str) -> None:
    let_go = threading.Event()

    @tool
    def slow(context: ToolContext) -> str:
        context.emit("working")
        let_go.wait(20)
        return "late"

    calls = asks(("add", {"a": 1, "b": 2}, "c1"), ("slow", {}, "c2"))
    window, _ = window_with(run, file, [slow, add], calls, "next")

    with window.call_model_streaming() as stream:
        ended = False
        for chunk in stream:
            ended = ended or type(chunk) is ToolEnd
            if ended and type(chunk) in (ToolEnd, ToolOutputDelta):
                break
    let_go.set()

    assert states(window) == ["cancelled"]
    assert contents(outputs(window)) == ["3", UNKNOWN_OUTCOME]
    assert problems(file) == []


def test_a_deadline_ends_a_turn_whose_tool_is_slow(run: Open, file: str) -> None:
    let_go = threading.Event()

    @tool
    def slow() -> str:
        let_go.wait(20)
        return "late"

    window, _ = window_with(run, file, [slow], asks(("slow", {})), "next")

    stream = window.call_model_streaming(deadline=0.2)
    chunks, error = read(stream)
    let_go.set()

    assert isinstance(error, ModelTimeout)
    assert paired(chunks)
    assert states(window) == ["interrupted"]


def test_a_cancelled_task_cancels_its_tools_and_stores_the_turn(file: str) -> None:
    cancelled: list[bool] = []

    async def main() -> list[Record]:
        running = asyncio.Event()

        @tool
        async def slow() -> str:
            running.set()
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                cancelled.append(True)
                raise
            return "late"

        model = ScriptedModel([asks(("slow", {})), "next"])
        async with AsyncContextWindow(file, "chat", model=model, tools=[slow]) as window:
            await window.add_prompt("go")
            task = asyncio.create_task(window.call_model())
            await running.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert [turn.state for turn in await window.turns()] == ["cancelled"]
            return await window.live_records()

    records = asyncio.run(main())

    assert cancelled == [True]
    assert records[-1].content == UNKNOWN_OUTCOME
    assert problems(file) == []


# -- drops and resumes -------------------------------------------------------------------


def test_a_drop_behind_a_round_resumes_without_running_tools_again(run: Open, file: str) -> None:
    ran: list[int] = []

    @tool
    def once() -> str:
        ran.append(1)
        return "ran"

    dropped = ScriptedReply(chunks=["The ", "answer ", "is ", "4."], fault="reset", fail_at=2)
    window, _ = window_with(run, file, [once], asks(("once", {}), text="A. "), dropped, "is 4.")

    stream = window.call_model_streaming()
    chunks, error = read(stream)

    assert error is None
    assert shown(chunks) == stream.reply.text == "A. The answer is 4."
    assert ran == [1]
    assert problems(file) == []


def test_a_reply_that_breaks_off_inside_its_calls_runs_none_of_them(run: Open, file: str) -> None:
    ran: list[int] = []

    @tool
    def once(n: int) -> str:
        ran.append(n)
        return "ran"

    broken = asks(("once", {"n": 1}, "c1"), ("once", {"n": 2}, "c2"), fault="reset", fail_at=1)
    window, model = window_with(run, file, [once], broken, asks(("once", {"n": 3}, "c3")), "done")

    assert window.call_model().text == "done"
    assert ran == [3]
    assert "c1" not in [record.call_id for record in model.requests[-1].records]


@pytest.mark.parametrize("idempotent", [False, True])
def test_an_interrupted_tool_runs_again_only_if_that_does_no_harm(
    run: Open, file: str, idempotent: bool
) -> None:
    ran: list[int] = []
    stop: list[Any] = []

    @tool(idempotent=idempotent)
    def risky() -> str:
        ran.append(1)
        if len(ran) == 1:
            stop[0].cancel()
            threading.Event().wait(0.2)
        return "ran"

    window, model = window_with(run, file, [risky], asks(("risky", {}, "c1"), text="A. "), "B.")
    stream = window.call_model_streaming()
    stop.append(stream)
    read(stream)

    reply = window.resume()

    assert reply.text == "A. B."
    assert len(ran) == (2 if idempotent else 1)
    (output,) = outputs(window)
    assert output.partial_response_id is None
    assert output.content == ("ran" if idempotent else UNKNOWN_OUTCOME)
    assert sent(model)[-1] == output.content
    assert states(window) == ["complete"]
    assert problems(file) == []


def test_a_turn_that_ended_between_rounds_goes_on_with_its_outputs(run: Open, file: str) -> None:
    fails = ScriptedReply(open_error=InvalidRequest("no"))
    window, model = window_with(
        run, file, [add], asks(("add", {"a": 1, "b": 2})), fails, "It is 3."
    )
    with pytest.raises(InvalidRequest):
        window.call_model()
    assert states(window) == ["interrupted"]

    reply = window.resume()

    assert reply.text == "It is 3."
    assert sent(model) == ["go", '{"a": 1, "b": 2}', "3"]
    assert [call.name for call in reply.tool_calls] == ["add"]
    assert len(window.turns()) == 1


def test_a_call_that_was_never_run_says_so_to_the_next_request(run: Open, file: str) -> None:
    broken = asks(("add", {"a": 1, "b": 2}, "c1"), ("add", {"a": 3, "b": 4}, "c2"), text="A. ")
    cut = ScriptedReply(
        chunks=broken.chunks, tool_calls=broken.tool_calls, fault="reset", fail_at=4
    )
    window, _ = window_with(run, file, [add], cut, "ok")
    with pytest.raises(StreamInterrupted):
        window.call_model(max_resumes=0)

    first = next(r for r in window.records() if r.call_id == "c1")

    assert first.error
    (output,) = [s for s in steps(window.records(), id_limit=64) if s.call_id == "c1"][1:]
    assert (output.kind, output.text) == ("output", NOT_RUN)


# -- the window's tools ------------------------------------------------------------------


def test_tools_can_be_added_and_removed_and_their_names_stay(run: Open, file: str) -> None:
    window, model = window_with(run, file, [], "a", "b")

    window.add_tool(add)
    assert window.has_tool("add")
    window.call_model()
    assert [one.name for one in model.requests[-1].options.tools] == ["add"]
    with ContextWindow(file, "chat") as other:
        assert other.list_tools() == ["add"]
    window.remove_tool("add")

    window.call_model()
    assert model.requests[-1].options.tools == ()
    assert window.list_tools() == []
    with pytest.raises(ConfigError, match="no tool 'add'"):
        window.remove_tool("add")


def test_tools_go_with_the_window_into_another_context(run: Open, file: str) -> None:
    window, _ = window_with(run, file, [add], "a")

    window.switch_context("other")

    assert window.list_tools() == ["add"]


def test_a_blocking_window_refuses_an_async_tool(file: str) -> None:
    @tool
    async def wait() -> str:
        return "x"

    with pytest.raises(ConfigError, match=r"'wait' is async.*AsyncContextWindow"):
        ContextWindow(file, tools=[wait])
    with ContextWindow(file) as window, pytest.raises(ConfigError, match="is async"):
        window.add_tool(wait)


@pytest.mark.parametrize("tools", ["add", 3, [3], [add, add]])
def test_tools_that_cannot_be_used_are_refused(file: str, tools: Any) -> None:
    with pytest.raises(ConfigError):
        ContextWindow(file, tools=tools)
    with pytest.raises(ConfigError):
        AsyncContextWindow(file, tools=tools)


# -- sub-conversations -------------------------------------------------------------------


def test_a_tool_may_hold_a_conversation_of_its_own(run: Open, file: str) -> None:
    @tool
    def research(question: str, context: ToolContext) -> str:
        """Ask another model."""
        model = ScriptedModel([f"An answer to: {question}"])
        with ContextWindow(context.store, f"research {context.call_id}", model=model) as child:
            context.link(child)
            child.add_prompt(question)
            return child.call_model().text

    calls = asks(("research", {"question": "why?"}, "c1"), ("research", {"question": "how?"}, "c2"))
    window, _ = window_with(run, file, [research], calls, "done")

    chunks, error = read(window.call_model_streaming())

    assert error is None
    assert contents(outputs(window)) == ["An answer to: why?", "An answer to: how?"]
    links = kinds(chunks, ChildLinked)
    assert sorted(link.context for link in links) == ["research c1", "research c2"]
    parent = window.get_current_context()
    for link in links:
        child = window.get_context(link.context)
        assert (child.id, child.parent_context_id) == (link.context_id, parent.id)
    assert problems(file) == []


def test_an_async_tool_may_hold_a_conversation_of_its_own(file: str) -> None:
    @tool
    async def research(question: str, context: ToolContext) -> str:
        model = ScriptedModel([f"An answer to: {question}"])
        async with AsyncContextWindow(context.store, "child", model=model) as child:
            await context.link(child)
            await child.add_prompt(question)
            return (await child.call_model()).text

    async def main() -> list[StreamChunk]:
        model = ScriptedModel([asks(("research", {"question": "why?"}, "c1")), "done"])
        async with AsyncContextWindow(file, "chat", model=model, tools=[research]) as window:
            await window.add_prompt("go")
            seen: list[StreamChunk] = []
            await window.call_model_streaming().until_done(seen.append)
            child = await window.get_context("child")
            assert child.parent_context_id == (await window.get_current_context()).id
            return seen

    assert [link.context for link in kinds(asyncio.run(main()), ChildLinked)] == ["child"]


# -- every database ----------------------------------------------------------------------


def test_rounds_interruptions_and_resumes_are_the_same_on_every_database(
    run: Open, database: str
) -> None:
    stop: list[Any] = []
    first_is_stored = threading.Event()

    @tool(idempotent=True)
    def risky() -> str:
        if stop:
            first_is_stored.wait(20)
            stop.pop().cancel()
            threading.Event().wait(0.1)
        return "ran"

    calls = asks(("add", {"a": 1, "b": 2}, "c1"), ("risky", {}, "c2"), text="A. ")
    model = ScriptedModel([calls, "B."])
    window = run(database, "chat", model=model, tools=[risky, add])
    window.add_prompt("go")
    stream = window.call_model_streaming()
    stop.append(stream)
    for chunk in stream:
        if type(chunk) is ToolEnd and chunk.call_id == "c1":
            first_is_stored.set()
    assert states(window) == ["cancelled"]

    assert window.resume().text == "A. B."

    assert contents(outputs(window)) == ["3", "ran"]
    assert window.list_tools() == ["risky", "add"]
    assert problems(database) == []
