"""A conversation on the terminal: what is typed, what is obeyed, what stays."""

from __future__ import annotations

import io
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from cli_runs import fine, run, talk
from rich.console import Console
from support import contents
from support import file as file

from contextwindow import ConfigError, ContextWindow, Store
from contextwindow.cli import growing
from contextwindow.cli.lines import read_prompt
from contextwindow.cli.markdown import split
from contextwindow.cli.stopping import once
from contextwindow.cli.styles import console
from contextwindow.cli.talk import Talk
from contextwindow.testing import FakeProvider, FakeReply, ScriptedModel, ScriptedReply


def typing(*lines: str) -> Callable[[str], str]:
    """Someone who types these lines, and then ends."""
    left = iter(lines)

    def ask(_: str) -> str:
        for line in left:
            return line
        raise EOFError

    return ask


@pytest.mark.parametrize(
    ("lines", "prompt"),
    [
        (["hello"], "hello"),
        (["one\\", "two\\", "three"], "one\ntwo\nthree"),
        (["one\\"], "one"),
        (['"""', "a", "", "b", '"""'], "a\n\nb"),
        (['"""a', 'b"""'], "a\nb"),
        (['"""a"""'], "a"),
        (['"""a', "b"], "a\nb"),
        (["pasted\nlines"], "pasted\nlines"),
        (["a \\ b"], "a \\ b"),
    ],
)
def test_several_lines_are_one_prompt(lines: list[str], prompt: str) -> None:
    assert read_prompt(typing(*lines)) == prompt


def test_the_end_of_the_input_is_the_end() -> None:
    with pytest.raises(EOFError):
        read_prompt(typing())


class Told:
    """A conversation on a terminal that keeps what it is shown.

    Attributes:
        talk: what is talked to.
    """

    def __init__(self, talk: Talk, out: Console, store: Store) -> None:
        self.talk = talk
        self._out = out
        self._store = store

    def take(self, typed: str) -> str:
        """Type something; what is shown for it."""
        assert isinstance(self._out.file, io.StringIO)
        before = len(self._out.file.getvalue())
        self.talk.take(typed)
        return self._out.file.getvalue()[before:]

    def live(self, context: str = "alice") -> list[str]:
        with ContextWindow(self._store, context) as window:
            return contents(window.live_records())


@contextmanager
def opened(file: str, *, terminal: bool, model: ScriptedModel | None = None) -> Iterator[Told]:
    """A conversation on *file*, shown where something can be drawn anew, or where not."""
    out = console(io.StringIO(), force_terminal=terminal, width=100, color_system=None, height=30)
    replies = ScriptedModel([f"**reply {number}**" for number in range(1, 9)])
    with Store(file) as store:
        talk = Talk(store, "alice", model or replies, out)
        try:
            yield Told(talk, out, store)
        finally:
            talk.close()


@pytest.fixture(params=[False, True], ids=["plain", "terminal"])
def told(request: pytest.FixtureRequest, file: str) -> Iterator[Told]:
    """A conversation with a model that says ``**reply 1**`` and so on."""
    with opened(file, terminal=request.param) as one:
        yield one


def test_a_prompt_is_answered_and_both_are_kept(told: Told) -> None:
    assert "reply 1" in told.take("hello")
    assert told.live() == ["hello", "**reply 1**"]
    assert told.talk.status == 0


def test_two_slashes_begin_a_prompt(told: Told) -> None:
    told.take("//etc/hosts is a file")
    assert told.live()[0] == "/etc/hosts is a file"


def test_undo_takes_back_the_last_prompt_and_what_followed(told: Told) -> None:
    told.take("one")
    told.take("two")
    assert "taken back: two" in told.take("/undo")
    assert told.live() == ["one", "**reply 1**"]
    told.take("/undo")
    assert told.live() == []
    assert "no prompt" in told.take("/undo")
    with ContextWindow(told._store, "alice") as window:
        assert len(window.records()) == 4


def test_a_fork_goes_on_and_the_old_line_stays(told: Told) -> None:
    told.take("one")
    assert "now in alice (2)" in told.take("/fork")
    told.take("two")
    assert "now in idea" in told.take("/fork idea")
    assert told.live("alice") == ["one", "**reply 1**"]
    assert told.live("alice (2)") == told.live("idea") == [
        "one", "**reply 1**", "two", "**reply 2**"
    ]  # fmt: skip


def test_what_a_command_cannot_do_is_said_and_the_talk_goes_on(
    told: Told, capsys: pytest.CaptureFixture[str]
) -> None:
    told.take("/fork alice")
    assert "alice" in capsys.readouterr().err
    told.take("/model nobody:x")
    assert "nobody" in capsys.readouterr().err
    told.take("/resume")
    assert capsys.readouterr().err.count("\n") == 1
    assert "no command" in told.take("/nonsense [red]x[/red]")
    assert "reply 1" in told.take("hello")


def test_another_model_goes_on(told: Told, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "test")
    told.take("one")
    with FakeProvider("From elsewhere.") as provider:
        told.talk._base_url = provider.openai_url
        assert "openai-chat:m answers now" in told.take("/model openai-chat:m")
        assert "From elsewhere." in told.take("two")
    assert told.live()[-1] == "From elsewhere."


def test_commands_tell_how_it_stands(told: Told) -> None:
    told.take("one")
    assert "tokens are live" in told.take("/tokens")
    assert "records left the window" in told.take("/compact")
    assert "no tools" in told.take("/tools")
    assert "/undo" in told.take("/help")


def test_a_failed_reply_can_be_gone_on_with(file: str, capsys: pytest.CaptureFixture[str]) -> None:
    cut = [ScriptedReply([f"part {number} ", "lost"], fault="eof", fail_at=1) for number in "123"]
    with opened(file, terminal=True, model=ScriptedModel([*cut, "and the rest."])) as told:
        assert "/resume" in told.take("a story")
        assert told.talk.status == 5
        assert capsys.readouterr().err.count("\n") == 1
        told.take("/resume")
        assert told.live()[-1] == "part 1 part 2 part 3 and the rest."


def test_picking_up_shows_the_last_records(file: str) -> None:
    talk(file)
    out = console(io.StringIO(), force_terminal=True, width=100, color_system=None)
    with Store(file) as store:
        with ContextWindow(store, "alice") as window:
            window.discard_partial()
            window.add_prompt("see [red]this[/red] \x1b[31m")
        one = Talk(store, "alice", ScriptedModel(["x"]), out)
        one.begin()
        one.close()
    assert isinstance(out.file, io.StringIO)
    shown = out.file.getvalue()
    assert "Tell me a story." in shown
    assert "see [red]this[/red] \u241b[31m" in shown
    assert "/help" in shown


def test_a_pipe_gets_the_reply_alone(file: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "test")
    with FakeProvider("**Bold** \x1b[31m[red]reply[/red]") as provider:
        url = ("--base-url", provider.openai_url)
        command = ("chat", file, "-m", "openai-chat:m", *url)
        assert fine(*command, typed="hi\n").strip() == "**Bold** \u241b[31m[red]reply[/red]"
        provider.reply(FakeReply(status=400))
        assert run(*command, typed="hi\n").exit_code == 5
        provider.reply(FakeReply(status=400))
        assert run(*command, typed="hi\nagain\n").exit_code == 0


def test_a_model_that_cannot_be_used_leaves_the_one_that_can(told: Told) -> None:
    with pytest.raises(ConfigError):
        told.talk._switch("openai-chat:")
    assert "reply 1" in told.take("still there?")


def test_a_second_ctrl_c_does_not_disturb_what_the_first_has_begun(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    before = signal.getsignal(signal.SIGINT)
    done = []
    with once():
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt:
            signal.raise_signal(signal.SIGINT)
            done.append("written")
        now = 110.0
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert done == ["written"]
    assert signal.getsignal(signal.SIGINT) is before


def test_a_block_that_grows_long_is_not_read_anew_with_each_line(
    file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = []

    def counted(text: str) -> int:
        read.append(len(text))
        return split(text)

    monkeypatch.setattr(growing, "split", counted)
    items = [f"- item {number}\n" for number in range(2000)]
    model = ScriptedModel([ScriptedReply([*items, "\n", "The end.\n"])])
    with opened(file, terminal=True, model=model) as told:
        shown = told.take("a list")
    assert shown.count("item 1999") >= 1
    assert shown.rstrip().endswith("The end.")
    assert sum(read) < 20 * len("".join(items))
