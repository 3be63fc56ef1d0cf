"""Contexts as messages of a provider's SDK, and messages as contexts."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
from contextlib import suppress
from types import FrameType
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support import Open, contents, problems
from support import file as file
from support import run as run

from contextwindow import (
    ConfigError,
    ContextNotFound,
    ContextWindow,
    ModelError,
    Record,
    RecordType,
    tool,
)
from contextwindow.messages import MessageFormat
from contextwindow.models.anthropic_messages import GO_ON, OPENING
from contextwindow.testing import ScriptedModel, ScriptedReply
from contextwindow.testing.rules_anthropic import refusal
from contextwindow.testing.rules_openai import chat_refusal

PNG = b"\x89PNG\r\n\x1a\n" + b"picture"
PNG_TEXT = base64.b64encode(PNG).decode()
PDF = b"%PDF-1.7 paper"
PDF_TEXT = base64.b64encode(PDF).decode()

TEXT = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=20).filter(
    lambda text: bool(text.strip()) and text not in (GO_ON, OPENING)
)
NAME = st.from_regex(r"[a-zA-Z0-9_-]{1,64}", fullmatch=True)
INPUT = st.dictionaries(TEXT, st.none() | st.booleans() | st.integers() | TEXT, max_size=3)


def live(window: ContextWindow, name: str) -> list[Record]:
    window.switch_context(name)
    return window.live_records()


# -- round trips ------------------------------------------------------------------------------


@st.composite
def chat_lists(draw: st.DrawFn) -> dict[str, Any]:
    """Messages of Chat Completions in the shape in which they are given out."""
    messages: list[dict[str, Any]] = [
        {"role": "system", "content": text} for text in draw(st.lists(TEXT, max_size=2))
    ]
    ids = iter(range(1000))
    for kind in draw(st.lists(st.sampled_from(["user", "files", "text", "calls"]), max_size=6)):
        if kind == "user":
            messages.append({"role": "user", "content": draw(TEXT)})
        elif kind == "files":
            image = {"url": f"data:image/png;base64,{PNG_TEXT}"}
            where = {"url": "https://example.com/cat"}
            paper = {
                "filename": "paper.pdf",
                "file_data": f"data:application/pdf;base64,{PDF_TEXT}",
            }
            files = [
                {"type": "image_url", "image_url": image},
                {"type": "image_url", "image_url": where},
                {"type": "file", "file": paper},
            ]
            chosen = draw(st.lists(st.sampled_from(files), min_size=1, max_size=3))
            said = draw(st.lists(TEXT, max_size=1))
            texts = [{"type": "text", "text": text} for text in said]
            messages.append({"role": "user", "content": [*texts, *chosen]})
        elif kind == "text":
            messages.append({"role": "assistant", "content": draw(TEXT)})
        else:
            calls = [
                {
                    "id": f"call_{next(ids)}",
                    "type": "function",
                    "function": {"name": draw(NAME), "arguments": json.dumps(arguments)},
                }
                for arguments in draw(st.lists(INPUT, min_size=1, max_size=3))
            ]
            reply = {"role": "assistant", "tool_calls": calls}
            if draw(st.booleans()):
                reply["content"] = draw(TEXT)
            messages.append(reply)
            messages += (
                {"role": "tool", "tool_call_id": call["id"], "content": draw(st.text("ab \n"))}
                for call in calls
            )
    return {"messages": messages}


def block(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text}


IMAGE = {
    "type": "image",
    "source": {"type": "base64", "media_type": "image/png", "data": PNG_TEXT},
}
PAPER = {
    "type": "document",
    "source": {"type": "base64", "media_type": "application/pdf", "data": PDF_TEXT},
    "title": "paper.pdf",
}
LINKED = {"type": "image", "source": {"type": "url", "url": "https://example.com/cat"}}
THOUGHT = {"type": "thinking", "thinking": "hm", "signature": "c2ln"}
HIDDEN = {"type": "redacted_thinking", "data": "b3BhcXVl"}
SEARCH = {"type": "server_tool_use", "id": "srv_1", "name": "web_search", "input": {"query": "x"}}
FOUND = {"type": "web_search_tool_result", "tool_use_id": "srv_1", "content": []}


@st.composite
def anthropic_lists(draw: st.DrawFn) -> dict[str, Any]:
    """Messages of Anthropic's API in the shape in which they are given out."""
    messages: list[dict[str, Any]] = []
    asking: list[dict[str, Any]] = []
    ids = iter(range(1000))
    for thinks, searches in draw(st.lists(st.tuples(st.booleans(), st.booleans()), max_size=4)):
        files = draw(st.lists(st.sampled_from([IMAGE, PAPER, LINKED]), max_size=2))
        messages.append({"role": "user", "content": [*asking, *files, block(draw(TEXT))]})
        reply: list[dict[str, Any]] = [THOUGHT, HIDDEN] if thinks else []
        reply += [SEARCH, FOUND] if searches else []
        reply += [block(text) for text in draw(st.lists(TEXT, min_size=1, max_size=2))]
        calls = [
            {"type": "tool_use", "id": f"toolu_{next(ids)}", "name": draw(NAME), "input": arguments}
            for arguments in draw(st.lists(INPUT, max_size=2))
        ]
        messages.append({"role": "assistant", "content": reply + calls})
        asking = []
        for call in calls:
            result = {"type": "tool_result", "tool_use_id": call["id"], "content": draw(TEXT)}
            asking.append({**result, "is_error": True} if draw(st.booleans()) else result)
    messages.append({"role": "user", "content": [*asking, block(draw(TEXT))]})
    system = [block(text) for text in draw(st.lists(TEXT, max_size=2))]
    return {"messages": messages, "system": system} if system else {"messages": messages}


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(chat_lists())
def test_chat_messages_come_back_as_they_were(said: dict[str, Any]) -> None:
    with ContextWindow() as window:
        context = window.import_messages(said)

        assert window.export_messages("openai", context.name) == said


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(anthropic_lists())
def test_anthropic_messages_come_back_as_they_were(said: dict[str, Any]) -> None:
    with ContextWindow() as window:
        context = window.import_messages(said)

        assert window.export_messages("anthropic", context.name) == said


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(chat_lists() | anthropic_lists())
def test_what_goes_through_the_other_form_is_stable_and_of_that_form(said: dict[str, Any]) -> None:
    with ContextWindow() as window:
        window.import_messages(said, "first")
        forms: list[MessageFormat] = ["openai", "anthropic"]
        for form in forms:
            other = window.export_messages(form, "first")
            window.import_messages(other, form)

            assert window.export_messages(form, form) == other
            roles = {message["role"] for message in other["messages"]}
            own = {"system", "tool"} if form == "openai" else set()
            assert roles <= {"user", "assistant"} | own


def test_anthropic_messages_become_chat_messages(file: str, run: Open) -> None:
    window = run(file, "main")
    said = {
        "system": "be kind",
        "messages": [
            {"role": "user", "content": [IMAGE, block("what?")]},
            {
                "role": "assistant",
                "content": [
                    THOUGHT,
                    block("let me look"),
                    {"type": "tool_use", "id": "t1", "name": "look", "input": {"at": "ü"}},
                ],
            },
            {
                "role": "user",
                "content": [{"type": "tool_result", "tool_use_id": "t1", "content": "a cat"}],
            },
            {"role": "assistant", "content": "a cat"},
        ],
    }

    window.import_messages(said, "cat")

    assert window.export_messages(name="cat") == {
        "messages": [
            {"role": "system", "content": "be kind"},
            {
                "role": "user",
                "content": [
                    block("what?"),
                    {
                        "type": "image_url",
                        "image_url": {"url": f"data:image/png;base64,{PNG_TEXT}"},
                    },
                ],
            },
            {
                "role": "assistant",
                "content": "let me look",
                "tool_calls": [
                    {
                        "id": "t1",
                        "type": "function",
                        "function": {"name": "look", "arguments": '{"at": "ü"}'},
                    }
                ],
            },
            {"role": "tool", "tool_call_id": "t1", "content": "a cat"},
            {"role": "assistant", "content": "a cat"},
        ]
    }
    assert window.current_context == "main"


def test_chat_messages_become_anthropic_messages(file: str, run: Open) -> None:
    window = run(file, "main")
    said: list[dict[str, Any]] = [
        {"role": "developer", "content": "be kind"},
        {"role": "user", "content": "what?"},
        {
            "role": "assistant",
            "content": None,
            "refusal": None,
            "tool_calls": [
                {"id": "c1", "type": "function", "function": {"name": "look", "arguments": "{}"}}
            ],
        },
        {"role": "tool", "tool_call_id": "c1", "content": "a cat"},
    ]

    window.import_messages(said, "cat")

    assert window.export_messages("anthropic", "cat") == {
        "system": [block("be kind")],
        "messages": [
            {"role": "user", "content": [block("what?")]},
            {
                "role": "assistant",
                "content": [{"type": "tool_use", "id": "c1", "name": "look", "input": {}}],
            },
            {
                "role": "user",
                "content": [{"type": "tool_result", "tool_use_id": "c1", "content": "a cat"}],
            },
        ],
    }


# -- out --------------------------------------------------------------------------------------


@tool
def look(at: str) -> str:
    """Look at something."""
    return f"{at} is fine"


def test_what_a_conversation_sends_next_is_given_out(database: str, run: Open) -> None:
    model = ScriptedModel(
        [ScriptedReply(tool_calls=[("look", {"at": "door"}, "c1")]), "all is well"]
    )
    window = run(database, "main", model=model, tools=[look], system_prompt="be kind")
    window.add_prompt("how is the door?")
    window.call_model()
    window.add_prompt("not sent")
    window.set_live([window.records()[-1].id], False)

    said = window.export_messages()["messages"]

    assert [message["role"] for message in said] == [
        "system",
        "user",
        "assistant",
        "tool",
        "assistant",
    ]
    assert said[3]["content"] == "door is fine"
    assert window.export_messages()["messages"] == said


def test_a_call_without_an_output_gets_one_and_a_partial_is_sent(file: str) -> None:
    with ContextWindow(file, "main") as window:
        window.add_prompt("go")
        window.add_tool_call("look", {"at": "door"}, "c1")

        chat = window.export_messages("openai")["messages"]
        claude = window.export_messages("anthropic")["messages"]

    assert "interrupted" in chat[-1]["content"]
    assert chat[-1]["tool_call_id"] == "c1"
    assert claude[-1]["content"][0]["is_error"] is True


WRITES = st.lists(
    st.one_of(
        st.tuples(st.just("prompt"), TEXT),
        st.tuples(st.just("system"), TEXT),
        st.tuples(st.just("call"), st.sampled_from(["c1", "c2", "ü" * 70])),
        st.tuples(st.just("output"), TEXT),
        st.tuples(st.just("model"), st.sampled_from(["text", "refusal", "cut", "calls"])),
        st.tuples(st.just("hide"), st.integers(0, 9)),
    ),
    min_size=1,
    max_size=10,
)


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(WRITES)
def test_whatever_a_context_holds_the_list_is_one_that_is_taken(
    writes: list[tuple[str, Any]],
) -> None:
    script = {
        "text": ScriptedReply("fine", reasoning="hm"),
        "refusal": ScriptedReply(refusal="no"),
        "cut": ScriptedReply(["a ", "b ", "c"], reasoning="hm", fail_at=3),
        "calls": ScriptedReply("so", tool_calls=[("look", {}, "c1"), ("look", {}, "c2")]),
    }
    replies = [script[what] for kind, what in writes if kind == "model"]
    with ContextWindow(model=ScriptedModel([*replies, "spare"])) as window:
        for kind, what in writes:
            with suppress(ConfigError, ModelError):
                write(window, kind, what)
        window.add_prompt("and?")
        chat, claude = window.export_messages("openai"), window.export_messages("anthropic")

        assert chat_refusal(chat) is None
        assert refusal({"max_tokens": 1, **claude}, {}) is None
        again = window.import_messages(claude, "claude"), window.import_messages(chat, "chat")
        for context in again:
            assert chat_refusal(window.export_messages("openai", context.name)) is None
            back = window.export_messages("anthropic", context.name)
            assert refusal({"max_tokens": 1, **back}, {}) is None


def write(window: ContextWindow, kind: str, what: Any) -> None:
    match kind:
        case "prompt":
            window.add_prompt(what)
        case "system":
            window.set_system_prompt(what)
        case "call":
            window.add_tool_call("look at", {}, what)
        case "output":
            window.add_tool_output(what)
        case "model":
            window.call_model(max_resumes=0)
        case "hide":
            window.set_record_live_state_by_range(what, what, False)


def test_two_calls_of_one_id_stand_in_two_messages(file: str) -> None:
    with ContextWindow(file, "main") as window:
        window.add_tool_call("look", {}, "c1")
        output = window.add_tool_output("fine", "c1")
        window.add_tool_call("look", {}, "c1")
        window.set_live([output.id], False)

        said = window.export_messages("openai")["messages"]

    assert [one["role"] for one in said] == ["assistant", "tool", "assistant", "tool"]
    assert chat_refusal({"messages": said}) is None


def test_an_unknown_format_or_context_is_refused(file: str, run: Open) -> None:
    window = run(file, "main")

    with pytest.raises(ConfigError, match="openai, anthropic, not 'gemini'"):
        window.export_messages("gemini")  # type: ignore[arg-type]
    with pytest.raises(ContextNotFound, match="'typo'"):
        window.export_messages(name="typo")


def test_no_sdk_is_loaded_for_it() -> None:
    program = (
        "import sys\n"
        "from contextwindow import ContextWindow\n"
        "with ContextWindow() as window:\n"
        "    window.import_messages([{'role': 'user', 'content': 'hi'}], 'a')\n"
        "    window.export_messages('openai', 'a'), window.export_messages('anthropic', 'a')\n"
        "print([m for m in ('openai', 'anthropic', 'google.genai') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


# -- in ---------------------------------------------------------------------------------------


def test_records_are_what_a_turn_would_have_written(database: str, run: Open) -> None:
    window = run(database, "main")
    window.import_messages(
        {
            "messages": [
                {"role": "user", "content": [PAPER, block("read")]},
                {
                    "role": "assistant",
                    "content": [
                        THOUGHT,
                        block("I will"),
                        {"type": "tool_use", "id": "t1", "name": "look", "input": {}},
                    ],
                },
                {
                    "role": "user",
                    "content": [
                        {
                            "type": "tool_result",
                            "tool_use_id": "t1",
                            "content": [block("no")],
                            "is_error": True,
                        }
                    ],
                },
            ]
        },
        "paper",
    )

    prompt, thought, text, call, output = live(window, "paper")
    assert prompt.attachments[0].data == PDF
    assert prompt.attachments[0].name == "paper.pdf"
    assert thought.source is RecordType.REASONING
    assert thought.content == "hm"
    assert thought.payload == {"api": "anthropic", "items": [THOUGHT]}
    assert text.content == "I will"
    assert (call.call_id, call.name, call.content) == ("t1", "look", "{}")
    assert (output.call_id, output.name, output.content, output.error) == ("t1", "look", "no", True)
    assert text.response_id == call.response_id
    assert problems(database) == []
    assert window.context_stats().live_tokens > 1_500


def test_a_conversation_goes_on_from_what_was_taken_in(file: str, run: Open) -> None:
    model = ScriptedModel(["blue"])
    window = run(file, "main", model=model)
    window.import_messages(
        [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}], "in"
    )
    window.switch_context("in")
    window.add_prompt("colour?")

    assert window.call_model().text == "blue"
    assert contents(list(model.requests[0].records)) == ["hi", "hello", "colour?"]


def test_reasoning_of_chat_servers_is_kept_and_not_sent(file: str) -> None:
    reply = {"role": "assistant", "content": "4", "reasoning_content": "2 and 2"}
    with ContextWindow(file, "main") as window:
        window.import_messages([{"role": "user", "content": "2+2"}, reply], "in")

        assert window.export_messages("openai", "in")["messages"][1:] == [
            {"role": "assistant", "content": "4"}
        ]
        assert contents(live(window, "in")) == ["2+2", "2 and 2", "4"]


def test_a_refusal_stays_a_refusal(file: str) -> None:
    said: list[dict[str, Any]] = [
        {"role": "user", "content": "bad"},
        {"role": "assistant", "content": [{"type": "refusal", "refusal": "I won't"}]},
    ]
    with ContextWindow(file, "main") as window:
        window.import_messages(said, "in")

        assert window.export_messages("openai", "in")["messages"] == said


def test_what_a_call_holds_beyond_our_records_goes_back(file: str) -> None:
    calls = [
        {
            "id": "c1",
            "type": "function",
            "function": {"name": "f", "arguments": "{}"},
            "extra_content": {"google": {"thought_signature": "abc"}},
        },
        {"id": "c2", "type": "custom", "custom": {"name": "g", "input": "SELECT 1"}},
    ]
    said: list[dict[str, Any]] = [
        {"role": "user", "content": "go"},
        {"role": "assistant", "tool_calls": calls},
        {"role": "tool", "tool_call_id": "c1", "content": "1"},
        {"role": "tool", "tool_call_id": "c2", "content": "2"},
    ]
    with ContextWindow(file, "main") as window:
        window.import_messages(said, "in")

        assert window.export_messages("openai", "in")["messages"] == said
    assert chat_refusal({"messages": said}) is None
    del calls[1]["custom"]
    assert "expected a string" in (chat_refusal({"messages": said}) or "")


def test_texts_between_pictures_stay_where_they_were(file: str) -> None:
    content = [IMAGE, block("this"), PAPER, block("or that?"), IMAGE]
    with ContextWindow(file, "main") as window:
        window.import_messages([{"role": "user", "content": content}], "in")

        assert window.export_messages("anthropic", "in")["messages"] == [
            {"role": "user", "content": content}
        ]


def test_a_name_is_made_where_none_is_given_and_a_taken_one_is_refused(
    file: str, run: Open
) -> None:
    window = run(file, "main")
    context = window.import_messages([{"role": "user", "content": "hi"}])

    assert len(context.name) == 36
    with pytest.raises(ConfigError, match="'main' already exists"):
        window.import_messages([], "main")


USER: dict[str, Any] = {"role": "user", "content": "hi"}


def test_who_speaks_stands_in_front_of_what_is_said(file: str) -> None:
    picture = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PNG_TEXT}"}}
    said: list[dict[str, Any]] = [
        {"role": "system", "content": "be kind", "name": "house"},
        {"role": "user", "content": "hi", "name": " bob\nand ann "},
        {"role": "assistant", "content": "hello", "name": "ada"},
        {"role": "user", "content": [picture, block("what?"), block("and?")], "name": "bob"},
        {"role": "user", "content": [picture], "name": "bob"},
    ]
    with ContextWindow(file, "main") as window:
        window.import_messages(said, "in")

        assert contents(live(window, "in")) == [
            "house: be kind",
            "bob and ann: hi",
            "ada: hello",
            "bob: what?",
            "and?",
            "bob:",
        ]
        assert [len(one.attachments) for one in window.live_records()] == [0, 0, 0, 1, 0, 1]


def test_calls_of_the_older_form_become_calls_and_outputs(file: str) -> None:
    asks: list[dict[str, Any]] = [
        {"role": "assistant", "content": None, "function_call": {"name": name, "arguments": "{}"}}
        for name in ("f", "g", "f")
    ]
    outputs = [
        {"role": "function", "name": name, "content": content}
        for name, content in (("f", "1"), ("g", None), ("f", "3"))
    ]
    said = [USER, *(one for pair in zip(asks, outputs, strict=True) for one in pair)]
    with ContextWindow(file, "main") as window:
        window.import_messages(said, "in")
        given = window.export_messages("openai", "in")

        assert chat_refusal(given) is None
        calls = [one["tool_calls"][0] for one in given["messages"] if "tool_calls" in one]
        answers = [one for one in given["messages"] if one["role"] == "tool"]
        assert [one["function"]["name"] for one in calls] == ["f", "g", "f"]
        assert [one["id"] for one in calls] == [one["tool_call_id"] for one in answers]
        assert [one["content"] for one in answers] == ["1", "", "3"]


@pytest.mark.parametrize("text", [OPENING, GO_ON])
def test_our_own_words_stay_where_a_user_says_them(file: str, text: str) -> None:
    said: list[dict[str, Any]] = [{"role": "user", "content": text}]
    with ContextWindow(file, "main") as window:
        window.import_messages(said, "theirs")
        window.import_messages([{"role": "user", "content": [block(text)]}], "ours")

        assert contents(live(window, "theirs")) == [text]
        assert contents(live(window, "ours")) == []


def test_an_image_behind_a_page_is_an_image(file: str) -> None:
    page = {"type": "image_url", "image_url": {"url": "https://example.com/show.html"}}
    with ContextWindow(file, "main") as window:
        window.import_messages([{"role": "user", "content": [page]}], "in")

        assert window.export_messages("openai", "in")["messages"][0]["content"] == [page]


def test_empty_system_prompts_are_skipped(file: str) -> None:
    chat = [{"role": "system", "content": ""}, {"role": "developer", "content": "x"}, USER]
    with ContextWindow(file, "main") as window:
        window.import_messages(chat, "chat")
        window.import_messages({"system": "", "messages": [USER]}, "one")
        window.import_messages({"system": [block(""), block("y")], "messages": [USER]}, "two")

        assert contents(live(window, "chat")) == ["x", "hi"]
        assert contents(live(window, "one")) == ["hi"]
        assert contents(live(window, "two")) == ["y", "hi"]


def test_thousands_of_calls_that_are_answered_in_reverse_cost_what_they_are(file: str) -> None:
    """Quadratic, it takes 2,000 * 1,000 comparisons in each of three places."""
    calls: list[dict[str, Any]] = [
        {"id": f"c{number}", "type": "function", "function": {"name": "f", "arguments": "{}"}}
        for number in range(2_000)
    ]
    outputs = [
        {"role": "tool", "tool_call_id": one["id"], "content": one["id"]} for one in calls[::-1]
    ]
    said: list[dict[str, Any]] = [USER, {"role": "assistant", "tool_calls": calls}, *outputs]
    lines = 0

    def count(frame: FrameType, event: str, _: object) -> Any:
        nonlocal lines
        if not frame.f_code.co_filename.endswith(("messages.py", "steps.py")):
            return None
        lines += event == "line"
        return count

    with ContextWindow(file, "main") as window:
        before = sys.gettrace()
        sys.settrace(count)
        try:
            window.import_messages(said, "in")
            given = window.export_messages("openai", "in")["messages"]
            claude = window.export_messages("anthropic", "in")["messages"]
        finally:
            sys.settrace(before)

    assert [one["content"] for one in given[2:]] == [one["id"] for one in calls]
    assert [one["content"] for one in claude[2]["content"]] == [one["id"] for one in calls]
    assert lines < 2_000 * 500


def test_of_a_spoken_reply_the_transcript_is_kept(file: str) -> None:
    reply = {"role": "assistant", "content": None, "audio": {"id": "a", "transcript": "hello"}}
    with ContextWindow(file, "main") as window:
        window.import_messages([USER, reply], "in")

        assert contents(live(window, "in")) == ["hi", "hello"]


def test_what_no_context_holds_is_left_out_and_logged(
    file: str, caplog: pytest.LogCaptureFixture
) -> None:
    noted = [{"type": "url_citation", "url_citation": {"url": "https://example.com"}}]
    reply = {"role": "assistant", "content": "ho", "annotations": noted}
    more = {"reasoning_details": [{"type": "reasoning.encrypted"}], "audio": {"id": "a"}}
    paper = {**PAPER, "context": "from a shelf", "citations": {"enabled": True}}
    with ContextWindow(file, "main") as window:
        window.import_messages([USER, reply], "quiet")
        assert not caplog.records
        window.import_messages([USER, {**reply, **more}, {**reply, **more}], "chat")
        window.import_messages([{"role": "user", "content": [paper, block("read")]}], "claude")

        assert contents(live(window, "chat")) == ["hi", "ho", "ho"]
        assert live(window, "claude")[0].attachments[0].name == "paper.pdf"
    said = [one.getMessage() for one in caplog.records]
    assert [one.partition(": ")[2] for one in said] == [
        "left out what no context holds: audio (2), reasoning_details (2)",
        "left out what no context holds: citations (1), context (1)",
    ]


@pytest.mark.parametrize("content", [None, "", []], ids=repr)
@pytest.mark.parametrize("more", [{}, {"tool_calls": []}, {"refusal": None}], ids=repr)
def test_an_assistant_who_says_nothing_is_left_out(
    file: str, content: Any, more: dict[str, Any]
) -> None:
    silent = {"role": "assistant", "content": content, **more}
    answered: list[dict[str, Any]] = [
        call(),
        {"role": "tool", "tool_call_id": "c1", "content": "x"},
    ]
    with ContextWindow(file, "main") as window:
        for number, said in enumerate(([USER, silent, USER], [USER, silent, *answered])):
            window.import_messages(said, f"in {number}")

        assert contents(live(window, "in 0")) == ["hi", "hi"]
        assert contents(live(window, "in 1")) == ["hi", "{}", "x"]


def test_arguments_of_the_sdk_beside_messages_are_no_conversation(file: str) -> None:
    body = {"model": "m", "max_tokens": 5, "tools": [{"name": "f"}], "system": "be kind"}
    with ContextWindow(file, "main") as window:
        window.import_messages({**body, "messages": [USER]}, "in")

        assert contents(live(window, "in")) == ["be kind", "hi"]


def test_a_picture_that_a_tool_gave_leaves_a_note(file: str) -> None:
    result = {
        "type": "tool_result",
        "tool_use_id": "t1",
        "content": [block("seen: "), IMAGE, LINKED, PAPER, block("a cat")],
    }
    use = {"type": "tool_use", "id": "t1", "name": "look", "input": {}}
    said: list[dict[str, Any]] = [
        USER,
        {"role": "assistant", "content": [use]},
        {"role": "user", "content": [result]},
    ]
    with ContextWindow(file, "main") as window:
        window.import_messages(said, "in")

        why = "left out: a tool's output holds text alone]"
        assert live(window, "in")[-1].content.split("\n\n") == [
            "seen: a cat",
            f"[attachment (image/png) {why}",
            f"[attachment (image) {why}",
            f"[attachment (application/pdf) {why}",
        ]


def call(**values: Any) -> dict[str, Any]:
    one = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}, **values}
    return {"role": "assistant", "content": None, "tool_calls": [one]}


@pytest.mark.parametrize(
    ("message", "why"),
    [
        ("hi", "must be a dict"),
        (None, "must be a dict"),
        ({}, "role None"),
        ({"role": "robot", "content": "x"}, "role 'robot'"),
        ({"role": ["user"], "content": "x"}, "role"),
        ({"role": "user"}, "'content' must be"),
        ({"role": "user", "content": []}, "'content' must be"),
        ({"role": "user", "content": 5}, "'content' must be"),
        ({"role": "user", "content": ["x"]}, "part must be an object"),
        ({"role": "user", "content": [{"type": "hologram"}]}, "'hologram'"),
        ({"role": "user", "content": [{"type": "text"}]}, "'text'"),
        ({"role": "user", "content": [{"type": "text", "text": 5}]}, "'text'.*int"),
        ({"role": "user", "content": "x\0"}, "NUL"),
        ({"role": "user", "content": "x\ud83d"}, "surrogate"),
        ({"role": "assistant", "content": None, "tool_calls": "x"}, "list"),
        ({"role": "assistant", "content": None, "tool_calls": ["x"]}, "object"),
        (call(id=None), "'id'"),
        (call(id=7), "'id'"),
        (call(type="telepathy"), "'telepathy'"),
        (call(function={"name": "", "arguments": "{}"}), "'name'"),
        (call(function={"name": "f", "arguments": {}}), "'arguments'"),
        ({"role": "assistant", "content": "", "function_call": {"name": ""}}, "'name'"),
        ({"role": "assistant", "content": "", "function_call": "f"}, "'function_call'"),
        ({"role": "user", "content": "x", "name": 5}, "'name'"),
        ({"role": "tool", "tool_call_id": "c9", "content": "x"}, "'c9'"),
        ({"role": "tool", "content": "x"}, "tool_call_id"),
        ({"role": "tool", "tool_call_id": "c9", "content": [{"type": "image_url"}]}, "text alone"),
        ({"role": "function", "name": "f", "content": "x"}, "no open function call.*'f'"),
        (
            {"role": "user", "content": [{"type": "image_url", "image_url": "x"}]},
            "'image_url' must be",
        ),
        (
            {
                "role": "user",
                "content": [{"type": "image_url", "image_url": {"url": "/etc/hosts"}}],
            },
            "'/etc/hosts'",
        ),
        (
            {"role": "user", "content": [{"type": "file", "file": {"file_id": "file-1"}}]},
            "'file_id'",
        ),
        (
            {
                "role": "user",
                "content": [
                    {"type": "input_audio", "input_audio": {"data": "aGk=", "format": "ogg"}}
                ],
            },
            "'ogg'",
        ),
        ({"role": "user", "content": [{**IMAGE, "source": {"type": "file"}}]}, "'file'"),
        (
            {
                "role": "user",
                "content": [
                    {
                        "type": "image",
                        "source": {"type": "base64", "media_type": "image/png", "data": "%%%"},
                    }
                ],
            },
            "no base64",
        ),
        *(
            ({"role": "user", "content": [{"type": "image", "source": source}]}, "must be a PNG")
            for source in (
                {"type": "base64", "media_type": "image/png", "data": "AAAA"},
                {"type": "base64", "media_type": "image/svg+xml", "data": "PHN2Zy8+"},
                {"type": "base64", "media_type": "text/plain", "data": "aGVsbG8="},
                {"type": "url", "url": "https://example.com/a.svg"},
            )
        ),
        (
            {
                "role": "user",
                "content": [
                    {"type": "image_url", "image_url": {"url": "data:image/svg+xml,<svg/>"}},
                ],
            },
            "must be a PNG",
        ),
        ({"role": "assistant", "content": [{"type": "tool_use", "id": "t", "name": "f"}]}, "input"),
        (
            {
                "role": "assistant",
                "content": [{"type": "tool_use", "id": "t", "name": "a b", "input": {}}],
            },
            "'a b' is no name",
        ),
        ({"role": "assistant", "content": [{"type": "thinking", "thinking": 5}]}, "'thinking'"),
        ({"role": "assistant", "content": [{"type": "server_tool_use"}]}, "'id'"),
        (
            {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t9"}]},
            "no open tool call.*'t9'",
        ),
    ],
    ids=lambda value: str(value)[:60] if not isinstance(value, str) else None,
)
def test_what_is_not_known_is_refused_by_its_index(file: str, message: Any, why: str) -> None:
    with ContextWindow(file, "main") as window:
        with pytest.raises(ConfigError, match=rf"(?s)messages\[1\].*{why}"):
            window.import_messages([USER, message], "in")

        assert [context.name for context in window.list_contexts()] == ["main"]


@pytest.mark.parametrize(
    "value",
    [None, 5, "hi", b"hi", {}, {"messages": 5}, {"model": "x"}, {"system": "x"}],
    ids=repr,
)
def test_what_is_no_list_of_messages_is_refused(file: str, value: Any) -> None:
    with ContextWindow(file, "main") as window, pytest.raises(ConfigError, match="messages"):
        window.import_messages(value)


def test_messages_of_both_forms_are_refused(file: str) -> None:
    said: list[dict[str, Any]] = [USER, call(), {"role": "user", "content": [IMAGE]}]
    with ContextWindow(file, "main") as window:
        with pytest.raises(ConfigError, match=r"messages\[1\] is OpenAI's.*messages\[2\] is Anth"):
            window.import_messages(said)


def test_two_calls_of_one_reply_with_one_id_are_refused(file: str) -> None:
    doubled = call()
    doubled["tool_calls"] *= 2
    with ContextWindow(file, "main") as window, pytest.raises(ConfigError, match="two tool calls"):
        window.import_messages([USER, doubled])
