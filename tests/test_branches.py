"""Forks: copies, other words in the place of a record, and other replies to a prompt."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from support import contents, problems

from contextwindow import (
    AsyncContextWindow,
    ConfigError,
    ContextWindow,
    ModelError,
    RecordType,
    Store,
    Summarize,
    Tool,
    Trim,
)
from contextwindow.testing import ScriptedModel, ScriptedReply


def echo(records: Any, options: Any) -> str:
    return f"heard: {records[-1].content}"


def talked(database: Any, **options: Any) -> ContextWindow:
    window = ContextWindow(
        database,
        "chat",
        model=ScriptedModel([echo], repeat=True),
        system_prompt="Listen.",
        **options,
    )
    for text in ("one", "two"):
        window.add_prompt(text)
        window.call_model()
    return window


def line(window: ContextWindow) -> list[str]:
    return contents(window.live_records())


def test_an_edited_prompt_is_answered_in_a_fork_and_the_old_line_stays(any_database: str) -> None:
    with Store(any_database) as store, talked(store) as window:
        before = window.records()
        prompt = before[3]

        made = window.edit(prompt.id, "2")

        assert made.name == window.current_context == "chat (2)"
        assert line(window) == ["Listen.", "one", "heard: one", "2"]
        assert window.call_model().text == "heard: 2"
        assert ContextWindow(store, "chat").records() == before
        assert made.parent_context_id == before[0].context_id
        assert window.live_tokens() == sum(one.est_tokens for one in window.live_records())
        assert problems(store) == []
        assert store.examine().sound


def test_a_regenerated_reply_stands_beside_the_first(any_database: str) -> None:
    with Store(any_database) as store, talked(store) as window:
        reply = window.regenerate(temperature=0.5)

        assert reply.text == "heard: two"
        assert line(window) == ["Listen.", "one", "heard: one", "two", "heard: two"]
        assert window.current_context == "chat (2)"
        assert [turn.state for turn in window.turns()] == ["complete"]
        assert line(ContextWindow(store, "chat")) == line(window)
        window.regenerate()
        assert window.current_context == "chat (3)"
        assert {one.name for one in store.list_contexts()} == {"chat", "chat (2)", "chat (3)"}


def test_a_reply_is_regenerated_while_it_streams(database: str) -> None:
    with talked(database) as window:
        text = "".join(window.regenerate_streaming(dest_name="other").text_deltas())

        assert text == "heard: two"
        assert window.current_context == "other"


def test_an_async_window_edits_and_regenerates(database: str) -> None:
    async def main() -> None:
        model = ScriptedModel([echo], repeat=True)
        async with AsyncContextWindow(database, "chat", model=model) as window:
            prompt = await window.add_prompt("one")
            await window.call_model()
            assert (await window.regenerate()).text == "heard: one"
            assert window.current_context == "chat (2)"
            await window.switch_context("chat")
            await window.edit(prompt.id, "other", dest_name="edited")
            deltas = [d async for d in window.regenerate_streaming(dest_name="x").text_deltas()]
            assert "".join(deltas) == "heard: other"
            assert window.current_context == "x"

    asyncio.run(main())


def test_what_the_model_said_can_be_put_right(any_database: str) -> None:
    with talked(any_database) as window:
        reply = window.records()[2]
        window.edit(reply.id, "I heard two", dest_name="right")

        assert line(window) == ["Listen.", "one", "I heard two"]
        assert window.records()[-1].source is RecordType.MODEL_RESPONSE
        assert window.records()[-1].payload is None


def test_a_tool_call_and_its_output_can_be_put_right(database: str) -> None:
    model = ScriptedModel([ScriptedReply(tool_calls=[("add", {"a": 1})]), "done"])
    add = Tool("add", "Adds.", parameters={}, run=lambda a: str(a + 1))
    with ContextWindow(database, "chat", model=model, tools=[add]) as window:
        window.add_prompt("go")
        window.call_model()
        call, output = window.records()[1:3]

        window.edit(output.id, "three", dest_name="output")
        assert [(one.call_id, one.content) for one in window.records()[1:]] == [
            (call.call_id, call.content),
            (call.call_id, "three"),
        ]
        window.switch_context("chat")
        window.edit(call.id, '{"a": 5}', dest_name="call")
        assert window.records()[-1].content == '{"a": 5}'
        window.switch_context("chat")
        with pytest.raises(ConfigError, match="JSON object"):
            window.edit(call.id, "five")
        assert window.current_context == "chat"


def test_files_of_an_edited_prompt_stay_with_it(any_database: str) -> None:
    with ContextWindow(any_database, "chat") as window:
        before = window.add_prompt("see this", [(b"text", "text/plain")])
        window.edit(before.id, "see that, which is longer")
        (after,) = window.records()

        assert after.attachments == before.attachments
        assert after.est_tokens > before.est_tokens
        assert window.get_current_context().name == "chat (2)"


def test_reasoning_is_the_models_own(database: str) -> None:
    model = ScriptedModel([ScriptedReply("so", reasoning="hm")])
    with ContextWindow(database, "chat", model=model) as window:
        window.add_prompt("go")
        window.call_model()
        thought = next(one for one in window.records() if one.source is RecordType.REASONING)
        with pytest.raises(ConfigError, match="reasoning"):
            window.edit(thought.id, "aha")
        assert [one.name for one in window.list_contexts()] == ["chat"]


@pytest.mark.parametrize(
    ("record_id", "text", "name"),
    [
        (99, "x", None),
        ("1", "x", None),
        (1, "", None),
        (1, None, None),
        (1, "x\0", None),
        (1, "x", "chat"),
        (1, "x", ""),
    ],
)
def test_an_edit_that_cannot_be_changes_nothing(
    any_database: str, record_id: Any, text: Any, name: Any
) -> None:
    with ContextWindow(any_database, "chat") as window:
        window.add_prompt("hello")
        with pytest.raises(ConfigError):
            window.edit(record_id, text, dest_name=name)
        assert window.current_context == "chat"
        assert [one.name for one in window.list_contexts()] == ["chat"]


def test_nothing_is_forked_for_a_call_that_cannot_be_made(database: str) -> None:
    with talked(database) as window:
        with pytest.raises(ConfigError):
            window.regenerate(temperature="hot")  # type: ignore[arg-type]
        window.set_live([record.id for record in window.records()], False)
        with pytest.raises(ConfigError, match="no prompt"):
            window.regenerate()
        assert [one.name for one in window.list_contexts()] == ["chat"]


def test_a_provider_that_fails_leaves_the_fork_with_its_prompt(database: str) -> None:
    model = ScriptedModel(["first", ScriptedReply(error=ModelError("gone"), fail_at=0), "second"])
    with ContextWindow(database, "chat", model=model) as window:
        window.add_prompt("go")
        window.call_model()
        with pytest.raises(ModelError):
            window.regenerate()
        assert (window.current_context, line(window)) == ("chat (2)", ["go"])
        assert window.call_model().text == "second"


# -- as it was then ---------------------------------------------------------------------------


def test_a_fork_has_the_system_prompt_of_its_time(any_database: str) -> None:
    with ContextWindow(any_database, "chat", system_prompt="v1") as window:
        prompt = window.add_prompt("q")
        window.set_system_prompt("v2")
        window.edit(prompt.id, "q!")

        assert line(window) == ["v1", "q!"]


def test_a_system_prompt_that_was_taken_out_by_hand_stays_out(any_database: str) -> None:
    with ContextWindow(any_database, "chat", system_prompt="v1") as window:
        prompt = window.add_prompt("q")
        window.set_live([window.records()[0].id], False)
        window.edit(prompt.id, "q!")

        assert line(window) == ["q!"]


@pytest.mark.parametrize("way", ["summary", "trim"])
def test_a_fork_has_what_a_later_compaction_took_out_and_nothing_of_what_came_later(
    any_database: str, way: str
) -> None:
    writer = ScriptedModel(["notes of the future"], repeat=True)
    compaction = Summarize(keep_last=1, max_tokens=20) if way == "summary" else Trim(keep_last=1)
    with ContextWindow(
        any_database, "chat", model=writer, compaction=compaction, max_tokens=10_000
    ) as window:
        records = [window.add_prompt(f"{number} " + "word " * 20) for number in range(10)]
        assert window.compact().removed
        window.add_prompt("later")

        window.fork("fork", at=records[5].id)
        window.edit(records[3].id, "EDITED", dest_name="edit")

        assert line(window) == [one.content for one in records[:3]] + ["EDITED"]
        window.switch_context("fork")
        assert line(window) == [one.content for one in records[:6]]
        assert window.live_tokens() == sum(one.est_tokens for one in window.live_records())
        window.switch_context("chat")
        window.clone("clone")
        before = line(window)
        window.switch_context("clone")
        assert line(window) == before


def test_a_fork_keeps_the_summary_that_stood_there_already(any_database: str) -> None:
    writer = ScriptedModel(["old notes", "new notes"])
    with ContextWindow(
        any_database, "chat", model=writer, compaction=Summarize(keep_last=1), max_tokens=10_000
    ) as window:
        for number in range(6):
            window.add_prompt(f"{number} " + "word " * 20)
        window.compact()
        middle = [window.add_prompt(f"{number} " + "word " * 20) for number in range(6, 12)]
        at_that_time = line(window)
        window.compact()
        assert "new notes" in line(window)

        window.fork("fork", at=middle[-1].id)
        window.switch_context("fork")

        assert line(window) == at_that_time


def test_an_async_call_that_cannot_be_made_forks_nothing(database: str) -> None:
    async def main() -> None:
        async with AsyncContextWindow(database, "chat") as window:
            await window.add_prompt("q")
            with pytest.raises(ConfigError, match="no model"):
                await window.regenerate()
            assert window.current_context == "chat"
            assert [one.name for one in await window.list_contexts()] == ["chat"]

    asyncio.run(main())


def test_two_regenerations_at_once_are_two_forks_of_one_context(database: str) -> None:
    async def main() -> None:
        model = ScriptedModel([echo], repeat=True)
        async with AsyncContextWindow(database, "chat", model=model) as window:
            await window.add_prompt("q")
            both = await asyncio.gather(window.regenerate(), window.regenerate())
            assert [reply.text for reply in both] == ["heard: q", "heard: q"]
            names = [one.name for one in await window.list_contexts()]
            assert sorted(names) == ["chat", "chat (2)", "chat (3)"]
            for name in ("chat (2)", "chat (3)"):
                await window.switch_context(name)
                assert len(await window.records()) == 2

    asyncio.run(main())
