"""What a window says that the next call will send: counted by the provider, or estimated."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable

import pytest
from conftest import missing
from four_apis import APIS
from four_apis import opened as opened
from four_apis import provider as provider
from support import Open
from support import file as file
from support import run as run

import contextwindow.tokens as tokens
from contextwindow import (
    AnthropicModel,
    AsyncContextWindow,
    ConfigError,
    ContextLengthExceeded,
    ContextWindow,
    ModelError,
    Store,
    Summarize,
    Tool,
    Trim,
    Usage,
)
from contextwindow.models.base import CallOptions
from contextwindow.testing import FakeProvider, ScriptedModel, ScriptedReply


@pytest.fixture(autouse=True)
def count() -> None:
    """Have tokens counted from the first on, where the encoding is at hand."""
    if tokens.load_encoding() is None:
        missing("no encoding: the figures of these tests are counted ones")


def answering(*usages: Usage) -> ScriptedModel:
    return ScriptedModel([ScriptedReply("well then", usage=usage) for usage in usages])


def figures(window: ContextWindow) -> tuple[int, int]:
    usage = window.token_usage()
    assert usage.live == window.live_tokens()
    return usage.exact, usage.estimated


# -- anchored by what the provider has counted ------------------------------------------------


def test_before_the_first_call_all_is_estimated(run: Open, database: str) -> None:
    window = run(database, "chat", model=answering(Usage(1, 1)))
    window.add_prompt("hello there")

    exact, estimated = figures(window)

    assert exact == 0
    assert estimated >= window.live_tokens() == 2


def test_after_a_call_what_the_provider_counted_is_exact(run: Open, database: str) -> None:
    window = run(database, "chat", model=answering(Usage(100, 20), Usage(160, 30)))
    window.add_prompt("hello there")
    window.call_model()
    assert figures(window) == (120, 0)

    prompt = window.add_prompt("and now?")
    assert figures(window) == (120, prompt.est_tokens + 4)

    window.call_model()
    assert figures(window) == (190, 0)


def test_reasoning_is_counted_as_it_is_sent_back_not_as_it_was_paid_for(
    run: Open, database: str
) -> None:
    reply = ScriptedReply("so", reasoning="hm " * 20, usage=Usage(100, 1020, reasoning_tokens=1000))
    window = run(database, "chat", model=ScriptedModel([reply]))
    window.add_prompt("go")
    window.call_model()
    thought = window.live_records()[1]

    assert figures(window) == (120, thought.est_tokens)


def test_rounds_of_tools_are_anchored_by_the_last_of_them(run: Open, database: str) -> None:
    model = ScriptedModel(
        [
            ScriptedReply("", tool_calls=[("look", {})], usage=Usage(50, 10)),
            ScriptedReply("seen", usage=Usage(90, 5)),
        ]
    )
    look = Tool("look", "Looks.", parameters={}, run=lambda: "a " * 20)
    window = run(database, "chat", model=model, tools=[look])
    window.add_prompt("go")
    window.call_model()

    assert figures(window) == (95, 0)


def test_an_output_that_no_call_has_sent_yet_is_estimated(run: Open, database: str) -> None:
    reply = ScriptedReply("", tool_calls=[("ask", {})], usage=Usage(50, 10))
    window = run(database, "chat", model=ScriptedModel([reply]))
    window.add_prompt("go")
    window.call_model()
    output = window.add_tool_output("an answer")

    assert figures(window) == (60, output.est_tokens + 4)


def test_once_something_has_left_nothing_is_exact_and_the_anchor_still_helps(
    run: Open, database: str
) -> None:
    window = run(database, "chat", model=answering(Usage(500, 20)), system_prompt="Listen.")
    first = window.add_prompt("hello there")
    window.call_model()
    window.set_live([first.id], False)

    assert figures(window) == (0, 520 - first.est_tokens - 4)


def test_a_summary_that_was_paid_for_is_no_anchor(run: Open, database: str) -> None:
    writer = ScriptedModel([ScriptedReply("notes", usage=Usage(9_000, 9))], repeat=True)
    window = run(
        database,
        "chat",
        model=answering(Usage(100, 20), Usage(160, 30)),
        summarizer=writer,
        compaction=Summarize(keep_last=1, max_tokens=5),
    )
    for text in ("hello there " * 10, "more"):
        window.add_prompt(text)
        window.call_model()
    window.compact()

    exact, estimated = figures(window)
    assert exact == 0
    assert estimated < 190


def test_a_call_that_told_no_usage_is_no_anchor(run: Open, database: str) -> None:
    cut = ScriptedReply(["a ", "b"], fault="eof")
    window = run(database, "chat", model=ScriptedModel([cut]))
    window.add_prompt("go")
    with pytest.raises(ModelError):
        window.call_model(max_resumes=0)

    assert figures(window)[0] == 0


def test_a_fork_begins_without_an_anchor(run: Open, database: str) -> None:
    window = run(database, "chat", model=answering(Usage(100, 20)))
    window.add_prompt("hello")
    window.call_model()
    window.fork("other")
    window.switch_context("other")

    exact, estimated = figures(window)
    assert (exact, estimated > 0) == (0, True)


@pytest.mark.parametrize("api", APIS)
def test_the_first_estimate_includes_the_tools(
    opened: Callable[..., ContextWindow], api: str, file: str
) -> None:
    bare = opened(api, file)
    bare.add_prompt("hello")
    without = bare.token_usage().estimated
    bare.add_tool(Tool("look", "Looks at a thing. " * 30, parameters={}, run=lambda: ""))

    assert bare.token_usage().estimated > without + 100


# -- counted by the provider ------------------------------------------------------------------


@pytest.mark.parametrize("api", [one for one in APIS if one != "openai-chat"])
def test_a_provider_that_counts_is_asked(
    opened: Callable[..., ContextWindow], provider: FakeProvider, api: str, file: str
) -> None:
    window = opened(api, file, system_prompt="Listen.")
    window.add_prompt("hello")

    counted = window.live_tokens(exact=True)

    assert counted > 0
    window.add_prompt("and a good deal more to be counted")
    assert window.live_tokens(exact=True) > counted
    assert window.total_tokens() == 0
    assert window.calls() == []


def test_an_api_that_cannot_count_says_so(opened: Callable[..., ContextWindow], file: str) -> None:
    window = opened("openai-chat", file)
    window.add_prompt("hello")
    with pytest.raises(ConfigError, match="token_usage"):
        window.live_tokens(exact=True)


def test_without_a_model_nobody_can_be_asked(file: str) -> None:
    with ContextWindow(file) as window:
        window.add_prompt("hello")
        with pytest.raises(ConfigError, match="no model"):
            window.live_tokens(exact=True)
        with pytest.raises(ConfigError, match="exact"):
            window.live_tokens(exact="yes")  # type: ignore[arg-type]
        assert window.token_usage().estimated > 0


# -- the budget -------------------------------------------------------------------------------


def test_what_a_provider_makes_of_tools_counts_against_the_window(
    opened: Callable[..., ContextWindow], provider: FakeProvider, file: str
) -> None:
    tools = [
        Tool(f"tool_{n}", "Does a thing with it. " * 8, parameters={}, run=lambda: "")
        for n in range(10)
    ]
    window = opened("anthropic", file, tools=tools, max_tokens=2_600, compaction=Trim())
    for number in range(6):
        window.add_prompt(f"{number} " + "word " * 100)
        provider.reply("fine " * 100)
        window.call_model()
    assert window.compactions()
    assert window.live_tokens() < 2_080, "counted as texts, there would have been room"


@pytest.mark.parametrize("model", ["claude-sonnet-4-5", "claude-opus-4-7"])
@pytest.mark.parametrize("times", [1, 4])
@pytest.mark.parametrize("shape", ["small tool calls", "texts"])
def test_a_compaction_leaves_its_share_whatever_the_provider_makes_of_the_texts(
    provider: FakeProvider, file: str, model: str, times: int, shape: str
) -> None:
    size = 20_000
    asked = AnthropicModel(model, api_key="k", base_url=provider.anthropic_url)
    options = CallOptions()
    with Store(file) as store, ContextWindow(store, "chat") as window:
        while asked.estimate(asked.request(window.live_records(), options)).tokens < times * size:
            for number in range(40):
                if shape == "texts":
                    window.add_prompt(f"question {number} " + "of some words " * 10)
                    continue
                window.add_prompt("next")
                window.add_tool_call("search_things", {"query": 'in "Paris"\n', "n": number})
                window.add_tool_output("[1,2,3]")
        window.add_prompt("and now?")
        full = ContextWindow(
            store, "chat", model=asked, max_tokens=size, compaction=Trim(keep_last=2)
        )
        full.call_model()
        (call,) = full.calls()
        sent = asked.estimate(asked.request(full.manifest(call.id), options)).tokens

    assert 0.35 * size < sent < 0.6 * size
    asked.close()


def test_what_does_not_fit_is_refused_before_it_is_sent(
    opened: Callable[..., ContextWindow], provider: FakeProvider, file: str
) -> None:
    window = opened("gemini", file, max_tokens=1_000)
    window.add_prompt("word " * 2_000)
    with pytest.raises(ContextLengthExceeded, match="1000"):
        window.call_model()
    assert provider.requests == []


# -- never on the event loop ------------------------------------------------------------------


def test_long_texts_are_counted_beside_the_event_loop(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = threading.get_ident()
    long: list[int] = []
    encode = tokens.load_encoding()
    assert encode is not None

    def counting(text: str) -> int:
        if len(text) > 20_000 and threading.get_ident() == here:
            long.append(len(text))
        return encode(text)

    monkeypatch.setattr(tokens, "_encode", counting)
    text = "word and word " * 100_000

    async def main() -> None:
        model = ScriptedModel([text], pieces="whole", repeat=True)
        look = Tool("look", "Looks.", parameters={}, run=lambda: text)
        async with AsyncContextWindow(
            database, "chat", model=model, tools=[look], max_tokens=2_000_000, compaction=Trim()
        ) as window:
            for _ in range(5):
                await window.add_prompt(text)
                await window.call_model()
            await window.token_usage()
            assert len(await window.records()) == 10

    asyncio.run(main())
    assert long == []
