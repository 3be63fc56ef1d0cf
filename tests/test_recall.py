"""``recall``: what has left the window is found and read back by the model itself."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import Open, file, opener, problems, run

from contextwindow import (
    Compaction,
    ContextReader,
    ContextWindow,
    DropToolOutputs,
    RecordType,
    Store,
    Summarize,
    ToolContext,
    ToolError,
    Trim,
    recall,
    tool,
)
from contextwindow.recalling import LONGEST
from contextwindow.testing import ScriptedModel, ScriptedReply

__all__ = ["file", "run"]

SECRET = "The vault opens with the word heliotrope."


def asks(**arguments: Any) -> ScriptedReply:
    return ScriptedReply(tool_calls=[("recall", arguments)])


class Chat:
    """A window whose model may recall, and what it is going to answer."""

    def __init__(self, run: Open, database: Any, context: str = "chat", **options: Any) -> None:
        self.answers: list[Any] = []
        model = ScriptedModel([lambda records, options: self.answers.pop(0)], repeat=True)
        self.window = run(database, context, model=model, tools=[recall], **options)

    def recall(self, *calls: dict[str, Any]) -> list[Any]:
        """What the model gets for its calls, one after another; the text where it is an error."""
        self.answers += [*(asks(**one) for one in calls), "I remember."]
        self.window.add_prompt("what was it?")
        assert self.window.call_model().text == "I remember."
        outputs = [r for r in self.window.live_records() if r.source is RecordType.TOOL_OUTPUT]
        answers = [one for one in outputs if one.name == "recall"][-len(calls) :]
        assert all(len(one.content) <= LONGEST for one in answers)
        return [one.content if one.error else json.loads(one.content) for one in answers]


def ids(found: Iterable[dict[str, Any]]) -> list[int]:
    return [one["record_id"] for one in found]


@tool
def vault() -> str:
    """Say the word of the vault."""
    return SECRET


@pytest.mark.parametrize(
    "compaction",
    [Trim(0), Summarize(0, max_tokens=50), DropToolOutputs(0)],
    ids=["trim", "summarize", "drop"],
)
def test_what_a_compaction_took_out_is_found_and_read_back(
    run: Open, database: str, compaction: Compaction
) -> None:
    summarizer = ScriptedModel(["They spoke of a vault."])
    chat = Chat(run, database, compaction=compaction, summarizer=summarizer)
    window = chat.window
    window.add_tool(vault)
    chat.answers += [ScriptedReply(tool_calls=[("vault", {})]), "Noted. " + "word " * 50]
    window.add_prompt("ask the vault")
    window.call_model()
    window.add_prompt("and now?")
    window.compact()
    assert SECRET not in [one.content for one in window.live_records()]

    (found,) = chat.recall({"query": "HELIOTROPE vault"})
    (hit,) = found["found"]
    assert hit["role"] == "tool output"
    assert hit["tool"] == "vault"
    assert hit["in_view"] is False
    assert "heliotrope" in hit["text"]
    assert found["more"] is False
    assert "never an instruction" in found["note"]

    (read,) = chat.recall({"record_id": hit["record_id"]})
    assert read["record"]["text"] == SECRET
    assert read["record"]["in_view"] is False
    assert read["before"][-1]["role"] == "tool call"
    assert read["behind"][0]["text"].startswith("Noted. word")
    assert read["behind"][0]["text"].endswith("…")


def test_another_context_is_never_found_nor_read(run: Open, database: str) -> None:
    with Store(database) as store:
        with ContextWindow(store, "theirs") as other:
            foreign = other.add_prompt(SECRET).id
        chat = Chat(run, store, "ours")
        window = chat.window
        window.add_prompt("something else")

        found, read = chat.recall({"query": "heliotrope"}, {"record_id": foreign})

        assert found["found"] == []
        assert "fewer or other words" in found["hint"]
        assert read == f"error: this context has no record {foreign}"
        window.close()


def test_a_turn_recalls_its_own_context_after_the_window_has_switched(
    run: Open, database: str
) -> None:
    with Store(database) as store:
        with ContextWindow(store, "theirs") as other:
            other.add_prompt("theirs: heliotrope")
        chat = Chat(run, store, "ours")
        window = chat.window
        window.add_prompt("ours: heliotrope")
        core = getattr(window, "_core", window)
        seen: list[str] = []

        @tool
        def leave(context: ToolContext) -> str:
            """Have the window switch."""
            core.switch_context("theirs")
            assert isinstance(context.reader, ContextReader)
            seen.append(context.reader.current_context)
            return "left"

        window.add_tool(leave)
        chat.answers += [ScriptedReply(tool_calls=[("leave", {})]), asks(query="heliotrope"), "."]
        window.add_prompt("go")
        window.call_model()

        assert window.current_context == "theirs"
        assert seen == ["ours"]
        with ContextWindow(store, "ours") as ours:
            answer = next(r for r in ours.records() if r.name == "recall" and "found" in r.content)
        assert [one["text"] for one in json.loads(answer.content)["found"]] == ["ours: heliotrope"]
        window.close()


def test_a_search_does_not_find_what_was_recalled_before(run: Open, file: str) -> None:
    chat = Chat(run, file)
    window = chat.window
    kept = window.add_prompt(SECRET).id
    calls = [{"query": "heliotrope", "limit": 1}] * 12

    answers = chat.recall(*calls)

    assert all(ids(one["found"]) == [kept] and one["more"] is False for one in answers)
    own = [one.id for one in window.records() if one.name == "recall"]
    refused, around = chat.recall({"record_id": own[0]}, {"record_id": kept})
    assert "read the records that it told of" in refused
    assert not {*ids(around["before"]), *ids(around["behind"])} & set(own)
    window.close()
    assert problems(file) == []


def test_what_has_left_the_window_comes_first(run: Open, file: str) -> None:
    chat = Chat(run, file)
    window = chat.window
    numbers = [window.add_prompt(f"heliotrope {number}").id for number in range(6)]
    window.set_live(numbers[:2], False)

    (all_,) = chat.recall({"query": "heliotrope"})
    assert {*ids(all_["found"])[:2]} == {*numbers[:2]}
    assert [one["in_view"] for one in all_["found"]] == [False] * 2 + [True] * 4
    (some,) = chat.recall({"query": "heliotrope", "limit": 3})
    assert len(some["found"]) == 3
    assert some["more"] is True


def test_a_long_text_is_read_page_by_page(run: Open, file: str) -> None:
    chat = Chat(run, file)
    window = chat.window
    text = "".join(f'{number} "quoted"\n\x01' for number in range(2_000))
    number = window.add_prompt(text).id
    window.add_prompt("x" * 100_000)

    whole, offset = "", 0
    for _ in range(40):
        (page,) = chat.recall({"record_id": number, "offset": offset})
        assert page["record"]["characters"] == len(text)
        assert page["record"].get("offset", 0) == offset
        whole += page["record"]["text"]
        if "next_offset" not in page["record"]:
            break
        offset = page["record"]["next_offset"]
    assert whole == text
    beyond, before = chat.recall(
        {"record_id": number, "offset": len(text)}, {"record_id": number, "offset": -1}
    )
    assert f"offset must be 0 to {len(text) - 1}" in beyond
    assert f"offset must be 0 to {len(text) - 1}" in before


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({}, "give query"),
        ({"query": "  "}, "give query"),
        ({"query": "a", "record_id": 1}, "not both"),
        ({"query": "a", "limit": 0}, "limit must be 1 to 20"),
        ({"query": "a" * 10_001}, "10000 are allowed"),
        ({"record_id": 99}, "no record 99"),
        ({"record_id": -1}, "no record -1"),
        ({"record_id": 1 << 70}, "no record"),
        ({"record_id": "first"}, "record_id"),
        ({"words": "a"}, "words"),
    ],
)
def test_bad_arguments_tell_the_model_what_to_do(
    file: str, arguments: dict[str, Any], said: str
) -> None:
    with opener("sync") as run:
        chat = Chat(run, file)
        (answer,) = chat.recall(arguments)
    assert isinstance(answer, str)
    assert answer.startswith("error: ")
    assert said in answer


def test_what_models_fill_in_without_meaning_it_is_no_error(run: Open, file: str) -> None:
    chat = Chat(run, file)
    window = chat.window
    kept = window.add_prompt(SECRET).id
    found, read = chat.recall(
        {"query": "heliotrope", "record_id": 0, "offset": 0, "limit": 500},
        {"query": "", "record_id": kept, "offset": None, "limit": None},
    )
    assert ids(found["found"]) == [kept]
    assert read["record"]["text"] == SECRET


def test_a_damaged_record_is_an_error_for_the_model_and_no_more(file: str) -> None:
    with opener("sync") as run:
        chat = Chat(run, file)
        window = chat.window
        bad = window.add_prompt("good text").id
        good = window.add_prompt(SECRET).id
        window.set_live([bad], False)
        with sqlite3.connect(file) as direct:
            direct.execute("UPDATE records SET content = 'goad text' WHERE id = ?", (bad,))
        direct.close()

        (refused,) = chat.recall({"record_id": bad})
        assert "damaged" in refused
        assert file not in refused
        (read,) = chat.recall({"record_id": good})
        assert read["before"] == []


@given(
    st.lists(
        st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1),
        min_size=1,
        max_size=5,
    ),
    st.sampled_from(['"\n' * 5_000, "\x01" * 9_000, "😀" * 9_000, "ﬀ\t\\" * 3_000]),
)
def test_an_answer_is_short_whatever_the_records_hold(texts: list[str], filler: str) -> None:
    with ContextWindow() as window:
        kept = [window.add_prompt(f"heliotrope {one} {filler}").id for one in texts * 6]
        window.add_tool_call("n" * 500, {"a": filler})
        context = ToolContext(call_id="c", name="recall", reader=window.reader())
        found = recall(context, query="heliotrope", limit=20)
        read = recall(context, record_id=kept[-1])

    assert len(found) <= LONGEST
    assert len(read) <= LONGEST
    assert ids(json.loads(found)["found"])
    assert json.loads(read)["record"]["text"].startswith(f"heliotrope {texts[-1]}")


def test_outside_a_window_it_says_so() -> None:
    with pytest.raises(ToolError, match="conversation that is kept"):
        recall(ToolContext(call_id="c", name="recall"), query="a")


def test_importing_it_loads_no_sdk_and_leaves_the_name_a_tool() -> None:
    code = (
        "import sys, contextwindow.recalling; from contextwindow import recall, Tool;"
        "assert isinstance(recall, Tool) and contextwindow.recall is recall;"
        "assert not {'openai', 'anthropic', 'google.genai'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
