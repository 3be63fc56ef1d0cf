"""A conversation goes on with any other provider, and nothing that is left in it bricks it.

The fake provider refuses what the real ones refuse: signatures that it has not given out, tool
calls without their results, empty texts, roles out of order.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from four_apis import APIS, PAIRS, opened, provider
from support import file, problems, read, responses, run, shown

from contextwindow import ContextWindow, RecordType, Store, StreamInterrupted, tool
from contextwindow.models.steps import UNKNOWN_OUTCOME
from contextwindow.testing import FakeProvider, FakeReply

__all__ = ["file", "opened", "provider", "run"]

Opened = Callable[..., ContextWindow]


@tool
def weather(city: str) -> str:
    """The weather in a city."""
    return f"{city}: sunny"


def asking(*cities: str, text: str = "Let me look. ", **options: Any) -> FakeReply:
    calls = [("weather", {"city": city}) for city in cities]
    return FakeReply(text, reasoning="I should look.", tool_calls=calls, **options)


def turn(window: ContextWindow, provider: FakeProvider, prompt: str, *replies: Any) -> str:
    """One turn in which the provider answers with *replies*; nothing may be refused."""
    for reply in replies:
        provider.reply(reply)
    window.add_prompt(prompt)
    return window.call_model(max_resumes=0, reasoning="low").text


@pytest.mark.parametrize(("first", "second"), PAIRS)
def test_a_conversation_with_tools_and_reasoning_goes_on_with_another_provider_and_back(
    opened: Opened, file: str, provider: FakeProvider, first: str, second: str
) -> None:
    store = Store(file)
    one = opened(first, store, tools=[weather])
    two = opened(second, store, tools=[weather])

    turn(one, provider, "Weather in Rome and Oslo?", asking("Rome", "Oslo"), "Both are sunny.")
    turn(two, provider, "And in Bonn?", asking("Bonn"), FakeReply("Sunny.", reasoning="so"))
    turn(one, provider, "And in Nice?", asking("Nice", "Lyon"), "Sunny, too.")
    text = turn(two, provider, "Thanks.", FakeReply("You are welcome.", reasoning="polite"))

    assert text == "You are welcome."
    outputs = [r for r in one.live_records() if r.source is RecordType.TOOL_OUTPUT]
    assert [r.content for r in outputs] == [
        "Rome: sunny",
        "Oslo: sunny",
        "Bonn: sunny",
        "Nice: sunny",
        "Lyon: sunny",
    ]
    assert [turn.state for turn in one.turns()] == ["complete"] * 4
    store.close()
    assert problems(file) == []


@pytest.mark.parametrize(("first", "second"), PAIRS)
def test_a_reply_that_one_provider_left_unfinished_is_resumed_by_another(
    opened: Opened, file: str, provider: FakeProvider, first: str, second: str
) -> None:
    text = "one two three four five six seven"
    store = Store(file)
    one = opened(first, store)
    two = opened(second, store)
    provider.reply(FakeReply(text, reasoning="Let me count.", fault="reset", at=6))
    one.add_prompt("count")
    _, error = read(one.call_model_streaming(max_resumes=0))
    assert isinstance(error, StreamInterrupted)
    provider.reply(FakeReply(text, continues=True))

    reply = two.resume()

    assert reply.text == text
    assert [one.content for one in responses(two)] == [text]
    assert turn(one, provider, "again", "fine") == "fine"
    store.close()


WRECKS = ("thought", "partial thought", "call", "empty", "orphan", "stray output")


def wreck(window: ContextWindow, provider: FakeProvider, what: str) -> None:
    """Leave something in the context that no provider would take as it is."""
    window.add_prompt("go")
    calls = [("weather", {"city": "Rome"})]
    match what:
        case "thought":
            # The text never came: what is left is a thought without its signature.
            provider.reply(FakeReply("x", reasoning="a b c", fault="reset", at=3))
            read(window.call_model_streaming(max_resumes=0))
        case "partial thought":
            provider.reply(FakeReply("x", reasoning="a b c d", fault="reset", at=2))
            read(window.call_model_streaming(max_resumes=0))
        case "call":
            cut = FakeReply("Look. ", tool_calls=calls, fault="reset", at=2)
            provider.reply(cut)
            read(window.call_model_streaming(max_resumes=0))
        case "empty":
            provider.reply(FakeReply("", fault="eof"))
            read(window.call_model_streaming(max_resumes=0))
        case "orphan":
            window.add_tool_call("weather", {"city": "Rome"}, "call.1:x/y")
        case "stray output":
            call = window.add_tool_call("weather", {"city": "Rome"})
            window.add_tool_output("sunny")
            window.set_live([call.id], False)


@pytest.mark.parametrize("what", WRECKS)
@pytest.mark.parametrize("second", APIS)
@pytest.mark.parametrize("first", APIS)
def test_nothing_that_is_left_behind_bricks_a_context(
    opened: Opened, file: str, provider: FakeProvider, first: str, second: str, what: str
) -> None:
    store = Store(file)
    one = opened(first, store)
    two = opened(second, store, tools=[weather])
    wreck(one, provider, what)

    two.set_system_prompt("Be brief.")
    assert turn(two, provider, "still there?", asking("Bonn"), "Yes.") == "Let me look. Yes."
    two.set_system_prompt("Be long.")
    assert turn(one, provider, "and here?", "Yes, too.") == "Yes, too."
    store.close()
    assert problems(file) == []


@pytest.mark.parametrize("api", APIS)
def test_what_a_hook_has_changed_goes_back_as_it_was_shown(
    opened: Opened, file: str, provider: FakeProvider, api: str
) -> None:
    from contextwindow import Middleware, ReasoningDelta, StreamChunk, TextDelta

    class Loud(Middleware):
        def on_stream_chunk(self, chunk: StreamChunk) -> Any:
            if isinstance(chunk, TextDelta):
                return TextDelta(chunk.delta.upper())
            return ReasoningDelta("") if isinstance(chunk, ReasoningDelta) else None

    window = opened(api, file, tools=[weather], middleware=[Loud()])

    turn(window, provider, "Weather?", asking("Rome"), "sunny")

    assert turn(window, provider, "And?", "nothing") == "NOTHING"
    assert "LET ME LOOK. " in str(provider.requests[-1].body)


@pytest.mark.parametrize("api", APIS)
def test_an_interrupted_tool_is_told_to_every_provider(
    opened: Opened, file: str, provider: FakeProvider, api: str
) -> None:
    window = opened(api, file)
    window.add_prompt("go")
    window.add_tool_call("weather", {"city": "Rome"}, "c1")
    window.add_prompt("and?")
    provider.reply("ok")

    window.call_model()

    assert UNKNOWN_OUTCOME in str(provider.requests[-1].body)


@pytest.mark.parametrize("api", APIS)
def test_the_text_that_streams_is_the_text_that_is_kept(
    opened: Opened, file: str, provider: FakeProvider, api: str
) -> None:
    window = opened(api, file, tools=[weather])
    provider.reply(asking("Rome", "Oslo"))
    provider.reply("Sunny.")
    window.add_prompt("Weather?")

    stream = window.call_model_streaming()
    chunks, error = read(stream)

    assert error is None
    assert shown(chunks) == stream.reply.text == "Let me look. Sunny."
    assert stream.reply.reasoning == "I should look."
    assert sum(chunk.type == "usage_report" for chunk in chunks) == 2
