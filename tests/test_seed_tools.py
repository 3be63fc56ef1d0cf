"""The defects of the systems that this one grew from, as far as they concern tools, each beaten.

D33 (tools sent without their description) and P18 (usage of every round) over the providers' own
wire formats are shown in the tests of the adapters.
"""

from __future__ import annotations

import threading
from typing import Any

import pytest
from support import Open, contents, file, problems, read, responses, run, sent, shown, states

from contextwindow import (
    ConfigError,
    ContextWindow,
    InvalidRequest,
    RecordType,
    Tool,
    ToolContext,
    ToolEnd,
    ToolError,
    ToolOutputDelta,
    tool,
)
from contextwindow.testing import ScriptedModel, ScriptedReply

__all__ = ["file", "run"]


@tool
def look_up(word: str) -> str:
    """Look a word up."""
    return f"{word}: a word"


def asking(*words: str, text: str = "") -> ScriptedReply:
    calls = [("look_up", {"word": word}, f"c_{word}") for word in words]
    return ScriptedReply(chunks=text, tool_calls=calls)


def with_tool(run: Open, file: str, *script: Any, **options: Any) -> ContextWindow:
    options.setdefault("tools", [look_up])
    window = run(file, "chat", model=ScriptedModel(list(script)), **options)
    window.add_prompt("go")
    return window


def test_d1_a_tool_that_is_added_again_takes_the_place_of_the_first(file: str, run: Open) -> None:
    window = with_tool(run, file, asking("a"), "done")

    window.add_tool(Tool("look_up", "Another.", run=lambda word: "other", parameters=_WORD))
    window.call_model()

    assert window.list_tools() == ["look_up"]
    assert "other" in contents(window.live_records())


def test_d2_what_can_be_called_is_what_is_listed_also_in_another_context(
    file: str, run: Open
) -> None:
    window = with_tool(run, file, asking("a"), "done")

    window.switch_context("other")
    window.add_prompt("go")

    assert window.list_tools() == ["look_up"]
    assert window.call_model().text == "done"


def test_d3_two_windows_on_one_model_keep_their_tools_apart(file: str, run: Open) -> None:
    model = ScriptedModel([asking("a"), "first", asking("b"), "second"])
    ran: list[str] = []

    def tool_of(name: str) -> Tool:
        def look(word: str) -> str:
            ran.append(name)
            return name

        return Tool("look_up", "", _WORD, look)

    first = run(file, "first", model=model, tools=[tool_of("first")])
    second = run(file, "second", model=model, tools=[tool_of("second")])
    for window in (first, second):
        window.add_prompt("go")
        window.call_model()

    assert ran == ["first", "second"]


def test_d11_tools_that_ran_leave_their_trace_when_the_next_call_fails(
    file: str, run: Open
) -> None:
    refused = ScriptedReply(open_error=InvalidRequest("no"))
    window = with_tool(run, file, asking("a", text="Let me see. "), refused)

    with pytest.raises(InvalidRequest):
        window.call_model()

    assert contents(window.live_records())[1:] == ["Let me see. ", '{"word": "a"}', "a: a word"]
    assert problems(file) == []


def test_d20_calls_and_outputs_have_ids_names_and_an_error_flag(file: str, run: Open) -> None:
    window = with_tool(run, file, ScriptedReply(tool_calls=[("nope", {"x": 1}, "c1")]), "done")

    window.call_model()

    call, output = window.live_records()[1:3]
    assert (call.source, call.call_id, call.name) == (RecordType.TOOL_CALL, "c1", "nope")
    assert call.content == '{"x": 1}'
    assert (output.source, output.call_id, output.name) == (RecordType.TOOL_OUTPUT, "c1", "nope")
    assert output.error


def test_d30_a_tool_from_a_json_schema_is_called(file: str, run: Open) -> None:
    schema = {"type": "object", "properties": {"word": {"type": "string"}}, "required": ["word"]}
    raw = Tool("look_up", "Look up.", schema, lambda word: word.upper())
    window = with_tool(run, file, asking("a"), "done", tools=[raw])

    window.call_model()

    assert "A" in contents(window.live_records())


def test_d31_tools_are_sent_in_the_order_in_which_they_were_given(file: str, run: Open) -> None:
    names = [f"t{number}" for number in (5, 3, 9, 1, 7)]
    tools = [Tool(name, "", None, None) for name in names]
    window = with_tool(run, file, "one", "two", tools=tools)

    model: Any = ScriptedModel(["one", "two"])
    with ContextWindow(file, "other", model=model, tools=tools) as other:
        other.add_prompt("go")
        other.call_model()
        other.call_model()

    for request in model.requests:
        assert [one.name for one in request.options.tools] == names
    assert window.list_tools() == names


def test_d32_a_tool_can_be_removed(file: str, run: Open) -> None:
    window = with_tool(run, file, "done")

    window.remove_tool("look_up")

    assert window.list_tools() == []
    with pytest.raises(ConfigError):
        window.remove_tool("look_up")


def test_d34_rounds_have_a_limit_and_a_tool_that_crashes_ends_nothing(file: str, run: Open) -> None:
    @tool
    def crash() -> str:
        raise RecursionError("deep")

    again = ScriptedReply(tool_calls=[("crash", {})])
    window = with_tool(run, file, again, again, again, tools=[crash])

    with pytest.raises(ToolError, match="max_tool_rounds"):
        window.call_model(max_tool_rounds=2)

    assert contents(window.records()).count("error: RecursionError: deep") == 2


def test_d38_and_p18_the_usage_of_every_round_counts(file: str, run: Open) -> None:
    window = with_tool(run, file, asking("a"), asking("b"), "done")

    reply = window.call_model()

    used = [call.usage for call in window.calls()]
    assert len(used) == 3
    assert reply.usage.total_tokens == sum(one.total_tokens for one in used if one is not None)


def test_d39_text_before_a_tool_call_is_kept_and_sent_again(file: str, run: Open) -> None:
    model = ScriptedModel([asking("a", text="Let me see. "), "Done."])
    window = run(file, "chat", model=model, tools=[look_up])
    window.add_prompt("go")

    reply = window.call_model()

    assert contents(responses(window)) == ["Let me see. ", "Done."]
    assert reply.text == "Let me see. Done."
    assert "Let me see. " in sent(model)


def test_p10_tools_that_ran_before_an_interruption_are_kept(file: str, run: Open) -> None:
    cut = ScriptedReply(chunks=["It ", "is ", "a"], fault="reset", fail_at=2)
    window = with_tool(run, file, asking("a"), cut, "a word")
    read(window.call_model_streaming(max_resumes=0))

    reply = window.resume()

    assert reply.text == "It is a word"
    assert contents(window.live_records()) == ["go", '{"word": "a"}', "a: a word", "It is a word"]


def test_p16_tool_output_is_no_text_of_the_reply(file: str, run: Open) -> None:
    @tool
    def talk(context: ToolContext) -> str:
        context.emit("working")
        return "worked"

    call = ScriptedReply(tool_calls=[("talk", {})])
    window = with_tool(run, file, call, "Done.", tools=[talk])

    stream = window.call_model_streaming()
    chunks, _ = read(stream)

    assert shown(chunks) == stream.reply.text == "Done."
    assert all(not c.delta for c in chunks if type(c) in (ToolOutputDelta, ToolEnd))


def test_p22_a_cancellation_during_a_tool_keeps_the_records(file: str, run: Open) -> None:
    let_go = threading.Event()

    @tool
    def slow(context: ToolContext) -> str:
        context.emit("working")
        let_go.wait(20)
        return "late"

    window = with_tool(run, file, ScriptedReply(tool_calls=[("slow", {}, "c1")]), tools=[slow])

    stream = window.call_model_streaming()
    for chunk in stream:
        if type(chunk) is ToolOutputDelta:
            stream.cancel()
    let_go.set()

    assert states(window) == ["cancelled"]
    assert [one.call_id for one in stream.reply.records] == ["c1", "c1"]


_WORD = {"type": "object", "properties": {"word": {"type": "string"}}, "required": ["word"]}
