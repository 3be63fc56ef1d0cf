"""The command line: what it shows, what it refuses, and that it is documented."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st

from contextwindow import ContextReader, ContextWindow, Record, Store
from contextwindow.cli import main
from contextwindow.cli.talk import COMMANDS
from contextwindow.cli.terminal import harmless
from contextwindow.testing import FakeProvider, FakeReply, ScriptedModel, ScriptedReply

ROOT = Path(__file__).resolve().parent.parent
HOSTILE = (
    "\x1b]52;c;ZXZpbA==\x07 \x9b31m \x1b]8;;http://x\x1b\\ \u202eevil\u2066 a\rb \x7f \U000e0041"
)


@pytest.fixture
def database(tmp_path: Path) -> str:
    """A database with one conversation, the last reply of which was cut off."""
    path = str(tmp_path / "x.db")
    model = ScriptedModel(["Fine.", ScriptedReply("It was a dark", fault="eof", fail_at=2)])
    with ContextWindow(path, "alice", model=model, system_prompt="Be kind.") as window:
        window.add_prompt("How are you?")
        window.call_model()
        window.add_prompt("Tell me a story.")
        with pytest.raises(Exception, match="resume"):
            window.call_model(max_resumes=0)
    return path


def run(*arguments: str, typed: str | None = None) -> Result:
    return CliRunner().invoke(main, arguments, input=typed)


def test_contexts_lists_names_and_figures(database: str) -> None:
    assert "alice" in run("contexts", database).output
    (line,) = run("contexts", database, "--json").output.splitlines()
    assert json.loads(line)["records"] == 5


def test_show_prints_roles_and_marks_a_partial(database: str) -> None:
    output = run("show", database, "alice").output
    assert "assistant" in output
    assert "partial" in output
    assert "It was" in output
    records = [
        json.loads(line) for line in run("show", database, "alice", "--json").output.splitlines()
    ]
    assert [one["role"] for one in records] == ["system", "user", "assistant", "user", "assistant"]
    assert records[-1]["partial"] is True


def test_explain_finds_the_context_of_a_call_and_says_of_each_record_why(database: str) -> None:
    with ContextWindow(database, "bob", model=ScriptedModel([HOSTILE])) as window:
        window.add_prompt("forget this")
        window.set_live([window.add_prompt(HOSTILE).id], False)
        window.call_model()
        call = str(window.calls()[0].id)

    output = run("explain", database, call).output
    assert f"call {call} of bob: scripted scripted" in output
    assert "1 of 3 records sent" in output
    assert "taken out by hand" in output
    assert not {"\x1b", "\x9b", "\u202e"} & set(output)
    parsed = [json.loads(x) for x in run("explain", database, call, "--json").output.splitlines()]
    assert [(one["sent"], one["reason"]) for one in parsed] == [
        (True, "sent"),
        (False, "taken_out"),
        (False, "later"),
    ]
    assert parsed[1]["content"] == HOSTILE
    only = run("explain", database, call, "--json", "--in").output.splitlines()
    assert [json.loads(one)["content"] for one in only] == ["forget this"]
    assert len(run("explain", database, call, "--json", "--out").output.splitlines()) == 2
    assert run("explain", database, "one").exit_code == 2


def test_looking_writes_nothing(database: str) -> None:
    before = Path(database).read_bytes()
    run("contexts", database)
    run("show", database, "alice")
    run("explain", database, "1")
    run("tail", database, "alice", "--until-idle", "0.05")
    assert Path(database).read_bytes() == before


def test_tail_shows_each_character_of_a_growing_reply_once(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = [f"word{number} " for number in range(40)]
    model = ScriptedModel([ScriptedReply(chunks=words, delay=0.01)])
    begun = threading.Event()
    read = ContextReader.records

    def reading(self: ContextReader, *args: Any, **options: Any) -> list[Record]:
        found = read(self, *args, **options)
        begun.set()
        return found

    monkeypatch.setattr(ContextReader, "records", reading)

    def stream() -> None:
        begun.wait(60)
        with ContextWindow(database, "alice", model=model) as window:
            window.add_prompt("go")
            window.call_model_streaming().until_done(lambda chunk: None)

    thread = threading.Thread(target=stream)
    thread.start()
    result = run("tail", database, "alice", "-n", "0", "--until-idle", "3")
    thread.join()

    assert result.exit_code == 0, result.output
    assert result.output.count("word39 ") == 1
    assert "".join(words) in result.output


@pytest.mark.parametrize(
    ("arguments", "said", "status"),
    [
        (["contexts", "/nowhere/x.db"], "/nowhere", 3),
        (["show", "DB", "bob"], "'bob'", 3),
        (["tail", "DB", "bob"], "'bob'", 3),
        (["fork", "DB", "bob", "carol"], "'bob'", 3),
        (["compact", "DB", "bob"], "'bob'", 3),
        (["delete", "DB", "bob", "--yes"], "'bob'", 3),
        (["export", "DB", "bob"], "'bob'", 3),
        (["resume", "DB", "bob"], "'bob'", 3),
        (["search", "DB", "word", "-c", "bob"], "'bob'", 3),
        (["stats", "DB", "bob"], "'bob'", 3),
        (["stats", "DB", "bob", "--by", "day"], "'bob'", 3),
        (["explain", "DB", "4711"], "no call 4711", 3),
        (["explain", "DB", "0"], "whole number of 1", 3),
        (["explain", "DB", str(1 << 70)], "whole number", 3),
        (["explain", "/nowhere/x.db", "1"], "/nowhere", 3),
        (["migrate", "/nowhere/x.db"], "/nowhere", 3),
        (["fork", "DB", "alice", "alice"], "alice", 1),
        (["search", "DB", " "], "query", 1),
        (["show", "DB", "\udcff"], "surrogate", 1),
        (["delete", "DB", "\udcff", "--yes"], "surrogate", 1),
        (["search", "DB", "word", "-c", "\udcff"], "surrogate", 1),
        (["contexts", "\udcff"], "exist", 3),
        (["chat", "-m", "gpt-5", "DB"], "gpt-5", 1),
        (["chat", "-m", "nobody:x", "DB"], "nobody", 1),
        (["chat", "-m", "openai:x", "DB"], "OPENAI_API_KEY", 1),
        (["resume", "DB", "alice", "-m", "openai:x"], "OPENAI_API_KEY", 1),
        (["export", "DB", "alice", "-o", "/nowhere/x"], "/nowhere", 1),
    ],
)
def test_an_error_is_one_line_and_a_status_that_tells_its_kind(
    arguments: list[str],
    said: str,
    status: int,
    database: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    result = run(*[database if one == "DB" else one for one in arguments])
    assert result.exit_code == status, result.output
    assert result.stdout == ""
    assert result.stderr.count("\n") == 1
    assert said in result.stderr
    with Store(database, read_only=True) as store:
        assert [one.name for one in store.list_contexts()] == ["alice"]


def test_a_wrong_call_is_status_2() -> None:
    assert run("show").exit_code == 2
    assert run("nonsense").exit_code == 2


def test_chat_answers_and_offers_to_resume(database: str) -> None:
    with FakeProvider() as provider:
        provider.reply(FakeReply("It was a dark and stormy night.", continues=True))
        provider.reply(FakeReply("You are welcome."))
        os.environ["OPENAI_API_KEY"] = "test"
        url = ("--base-url", provider.openai_url)
        typed = "y\nThank you\n/quit\n"
        result = run("chat", "-m", "openai-chat:m", "-c", "alice", *url, database, typed=typed)
    del os.environ["OPENAI_API_KEY"]

    assert result.exit_code == 0, result.output
    assert "stormy night" in result.output
    assert "You are welcome." in result.output


@given(st.text())
def test_no_text_of_a_model_reaches_the_terminal_as_a_command(text: str) -> None:
    """Fault 45: Terminal escapes in model text are harmless."""
    shown = harmless(text)
    assert all(
        one.isprintable() or one in "\n\t\u200c\u200d\u00ad\u3000\xa0" or one.isspace()
        for one in shown
    )
    assert not {one for one in shown if ord(one) < 0x20} - {"\n", "\t"}
    assert "".join(map(harmless, text)) == shown


def test_escapes_and_bidi_marks_are_shown(tmp_path: Path) -> None:
    """Fault 45: They are shown."""
    path = str(tmp_path / "x.db")
    with ContextWindow(path, "c", model=ScriptedModel([HOSTILE])) as window:
        window.add_prompt(HOSTILE)
        window.call_model()
    output = run("show", path, "c").output
    for bad in "\x1b\x07\x9b\u202e\u2066\r\x7f\U000e0041":
        assert bad not in output
    assert "\u241b" in output


def test_every_command_and_option_is_in_the_documents() -> None:
    page = (ROOT / "docs" / "cli.md").read_text("utf-8")
    for name, command in main.commands.items():
        (line,) = re.findall(rf"^(?:\| )?`contextwindow {name}\b.*", page, re.MULTILINE)
        for option in command.params:
            if option.opts[0].startswith("-") and not getattr(option, "hidden", False):
                assert any(one in line for one in option.opts), f"{name} {option.opts}"


def test_every_command_of_a_conversation_is_in_the_documents_and_the_help() -> None:
    page = (ROOT / "docs" / "cli.md").read_text("utf-8")
    told = run("chat", "--help").output
    for command in COMMANDS:
        assert f"`{command}`" in page
        assert command.split()[0] in told or command == "/help"


def test_the_demo_kills_a_process_and_resumes_its_reply(tmp_path: Path) -> None:
    database = tmp_path / "demo.db"
    done = subprocess.run(
        [sys.executable, "-m", "contextwindow", "demo", "--fast", "--db", str(database)],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=ROOT,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "resumed by: cursor" in done.stdout
    assert database.exists()
