"""Texts, sizes and tool outputs that break programs."""

from __future__ import annotations

import json
import unicodedata
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support import Open, contents, problems, shown
from support import file as file
from support import run as run

from contextwindow import ConfigError, ContextNotFound, ContextWindow, RecordType, Store, tool
from contextwindow.testing import ScriptedModel, ScriptedReply

MEGABYTE = 1_000_000

# -- 40: characters ---------------------------------------------------------------------------

TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1)


@settings(max_examples=30, suppress_health_check=list(HealthCheck))
@given(st.lists(TEXTS, min_size=1, max_size=6))
def test_any_text_comes_back_and_positions_count_its_characters(
    database: str, pieces: list[str]
) -> None:
    """Fault 40: The stored text equals the sent text; positions count characters everywhere."""
    with ContextWindow(database, model=ScriptedModel([ScriptedReply(pieces)])) as window:
        text = "".join(pieces)
        window.add_prompt(text)
        chunks = list(window.call_model_streaming())

        assert contents(window.records()) == [text, text]
        assert shown(chunks) == text
        positions = [chunk.position for chunk in chunks if chunk.delta]
        sizes = [len(piece) for piece in pieces]
        assert positions == [sum(sizes[: at + 1]) for at in range(len(sizes))]
        middle = next((chunk for chunk in chunks if chunk.delta), chunks[0])
        assert shown(list(window.follow(middle.id, timeout=5))) == text[middle.position :]


@pytest.mark.parametrize(
    "pieces",
    [
        ["a\ud83d", "\ude00b"],
        ["\udc00", "x"],
        ["\ud800"],
        ["a\0b"],
        ["e\u0301", "\u202e", "\U0001f468\u200d\U0001f469\u200d\U0001f467", "\ufffd"],
    ],
    ids=["pair split", "lone low", "lone high", "nul", "combining"],
)
def test_what_a_model_sends_is_stored_as_it_is_shown(
    database: str, run: Open, pieces: list[str]
) -> None:
    """Fault 40: Halves of pairs and NUL from a model: what is shown is what is stored."""
    window = run(database, "chat", model=ScriptedModel([ScriptedReply(pieces), "on"]))
    window.add_prompt("go")

    chunks = list(window.call_model_streaming())

    assert window.records()[-1].content == shown(chunks)
    shown(chunks).encode()
    window.add_prompt("still?")
    assert window.call_model().text == "on"


# -- 41, 42: sizes ----------------------------------------------------------------------------


def test_a_prompt_and_a_reply_of_many_megabytes_are_kept(file: str, run: Open) -> None:
    """Fault 41: Prompts and replies of 30 MB, with a line of 10 MB."""
    pieces = ["y" * MEGABYTE] * 10 + ["z\n" * (MEGABYTE // 2)] * 20
    window = run(file, "chat", model=ScriptedModel([ScriptedReply(pieces)]))
    window.add_prompt("x " * (15 * MEGABYTE))

    reply = window.call_model()

    assert reply.text == "".join(pieces)
    assert [len(text) for text in contents(window.records())] == [30 * MEGABYTE] * 2
    window.close()
    assert problems(file) == []


def test_a_reply_of_many_chunks_takes_time_in_proportion(file: str) -> None:
    """Fault 41: 50,000 chunks in a reply, each of which is stored before it is shown."""
    pieces = [f"{number} " for number in range(50_000)]
    with ContextWindow(file, "chat", model=ScriptedModel([ScriptedReply(pieces)])) as window:
        window.add_prompt("count")
        assert shown(list(window.call_model_streaming())) == "".join(pieces)
        assert window.records()[-1].content == "".join(pieces)


@tool
def double(n: int) -> int:
    """Double a number."""
    return 2 * n


def test_ten_thousand_calls_in_a_turn_are_answered_in_their_order(file: str) -> None:
    """Fault 42: 10,000 tool calls in one turn."""
    calls = [("double", {"n": number}, f"c{number}") for number in range(10_000)]
    model = ScriptedModel([ScriptedReply(tool_calls=calls), "done"])
    with ContextWindow(file, "chat", model=model, tools=[double]) as window:
        window.add_prompt("all of them")
        assert window.call_model().text == "done"
        outputs = [one for one in window.records() if one.source is RecordType.TOOL_OUTPUT]
    assert contents(outputs) == [str(2 * number) for number in range(10_000)]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ('{"n": ', "not valid JSON"),
        ('{"n": NaN}', "NaN"),
        ('{"n": 1, "n": 2}', "twice"),
        ('{"n": ' + "[" * 10_000 + "]" * 10_000 + "}", "nested more than"),
        ('{"n": ' + "9" * 5000 + "}", "digits"),
        (json.dumps({"n": "x" * (5 * MEGABYTE)}), "characters long"),
        ("[1]", "object"),
    ],
    ids=["cut", "nan", "twice", "deep", "digits", "large", "list"],
)
def test_arguments_that_are_none_are_answered_to_the_model(
    file: str, run: Open, arguments: str, said: str
) -> None:
    """Fault 42: Arguments of 5 MB, invalid JSON, duplicate keys, NaN, depth 10,000."""
    model = ScriptedModel([ScriptedReply(tool_calls=[("double", arguments, "c1")]), "I see"])
    window = run(file, "chat", model=model, tools=[double])
    window.add_prompt("double it")

    assert window.call_model().text == "I see"

    (output,) = [one for one in window.records() if one.source is RecordType.TOOL_OUTPUT]
    assert output.error
    assert said in output.content


# -- 43: what tools give back -----------------------------------------------------------------


class Odd:
    def __repr__(self) -> str:
        raise RuntimeError("no repr")


def mutate(arguments: dict[str, Any]) -> str:
    """Change what it was given."""
    arguments.clear()
    return "changed"


@pytest.mark.parametrize(
    ("give", "error"),
    [
        (lambda: b"\xff\xfe", None),
        (lambda: {"at": {1, 2}}, None),
        (lambda: float("nan"), None),
        (lambda: None, None),
        (Odd, None),
        (lambda: "x" * (50 * MEGABYTE), None),
        (lambda: "a\0b\ud800", None),
        (lambda: print("to the terminal"), None),
        (lambda: 1 / 0, True),
    ],
    ids=["bytes", "set", "nan", "none", "odd", "50 MB", "NUL", "prints", "raises"],
)
def test_whatever_a_tool_gives_back_the_conversation_goes_on(
    file: str, run: Open, give: Any, error: bool | None
) -> None:
    """Fault 43: Output that is no text, no JSON, raises, prints, or is 50 MB large."""

    @tool
    def odd() -> Any:
        """Give something back."""
        return give()

    script: list[Any] = [ScriptedReply(tool_calls=[("odd", {}, "c1")]), "on"]
    window = run(file, "chat", model=ScriptedModel(script), tools=[odd])
    window.add_prompt("go")

    assert window.call_model().text == "on"

    (output,) = [one for one in window.records() if one.source is RecordType.TOOL_OUTPUT]
    output.content.encode()
    assert output.error or not error
    window.close()
    assert problems(file) == []


def test_a_tool_that_changes_its_arguments_changes_nothing_that_is_stored(
    file: str, run: Open
) -> None:
    """Fault 43: A tool that mutates its arguments."""
    change = tool(mutate)
    arguments = {"arguments": {"a": {"b": 1}}}
    script: list[Any] = [ScriptedReply(tool_calls=[("mutate", arguments, "c1")]), "on"]
    window = run(file, "chat", model=ScriptedModel(script), tools=[change])
    window.add_prompt("go")

    starts = [chunk for chunk in window.call_model_streaming() if chunk.type == "tool_start"]

    assert [chunk.arguments for chunk in starts] == [arguments]
    (call,) = [one for one in window.records() if one.source is RecordType.TOOL_CALL]
    assert json.loads(call.content) == arguments


# -- 44: syntax in names and texts ------------------------------------------------------------

NAMES = [
    "'; DROP TABLE records; --",
    '" OR 1=1',
    "%_",
    "../../etc/passwd",
    "a/b\\c",
    "two\nlines\t",
    "NEAR(a b) AND *",
    "x" * 10_000,
    unicodedata.normalize("NFC", "é"),
    unicodedata.normalize("NFD", "é"),
    "${HOME} `id` $(id)",
    "?:@#",
]


def test_a_name_is_a_name_whatever_it_looks_like(database: str) -> None:
    """Fault 44: SQL, FTS and LIKE syntax, paths, newlines, 10 kB, two normal forms as names."""
    with Store(database) as store:
        for name in NAMES:
            with ContextWindow(store, name) as window:
                window.add_prompt(name)
        for name in NAMES:
            assert store.context_stats(name).total_records == 1  # type: ignore[union-attr]
        assert {context.name for context in store.list_contexts()} == set(NAMES)
        with ContextWindow(store, NAMES[2]) as window:
            window.delete_context(NAMES[2])
            with pytest.raises(ContextNotFound):
                window.get_context(NAMES[2])
            assert len(window.list_contexts()) == len(NAMES) - 1
            copy = window.clone(NAMES[0] + " copy")
            assert window.get_context(copy.name).id == copy.id
        assert problems(store) == []


@pytest.mark.parametrize("name", ["", "a\0b", "\ud800"])
def test_a_name_that_no_database_keeps_is_refused(database: str, name: str) -> None:
    """Fault 44: Names that cannot be stored."""
    with pytest.raises(ConfigError):
        ContextWindow(database, name)
