"""The command line in a process of its own, on a terminal of its own."""

from __future__ import annotations

import codecs
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from support import contents
from support import file as file

from contextwindow import ContextWindow, Store
from contextwindow.testing import FakeProvider, FakeReply

ROOT = Path(__file__).resolve().parent.parent
WORDS = [f"word{number} " for number in range(400)]


class Terminal:
    """A command on a pseudo-terminal of 80 columns.

    Attributes:
        shown: all that it has written.
    """

    def __init__(self, *arguments: str) -> None:
        self.shown = ""
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._ours, theirs = pty.openpty()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "contextwindow", *arguments],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            cwd=ROOT,
            env={
                **os.environ,
                "OPENAI_API_KEY": "test",
                "TERM": "xterm-256color",
                "COLUMNS": "80",
                "LINES": "24",
            },
            preexec_fn=_own_terminal,
        )
        os.close(theirs)

    def type(self, text: str) -> None:
        os.write(self._ours, text.encode())

    def until(self, *wanted: str, seconds: float = 60) -> str:
        """What it writes until all of *wanted* was written."""
        before, end = len(self.shown), time.monotonic() + seconds
        while not all(one in self.shown[before:] for one in wanted):
            assert time.monotonic() < end, f"no {wanted} in {self.shown[before:]!r}"
            self._read(0.2)
        return self.shown[before:]

    def prompted(self, seconds: float = 60) -> None:
        """Wait until it asks for the next prompt."""
        end = time.monotonic() + seconds
        while not self.shown.endswith("> "):
            assert time.monotonic() < end, f"no prompt in {self.shown!r}"
            self._read(0.2)

    def ended(self, seconds: float = 60) -> int:
        """Its exit status."""
        end = time.monotonic() + seconds
        while self._process.poll() is None:
            assert time.monotonic() < end, f"it goes on: {self.shown!r}"
            self._read(0.1)
        while self._read(0.05):
            pass
        return self._process.returncode

    def interrupt(self, wanted: str) -> None:
        """Press Ctrl-C until *wanted* is written.

        Again and again: Python hears of one that comes just before it waits for a line when that
        line is there.
        """
        before = len(self.shown)
        for _ in range(30):
            self.type("\x03")
            end = time.monotonic() + 2
            while time.monotonic() < end:
                if wanted in self.shown[before:]:
                    return
                self._read(0.2)
        raise AssertionError(f"no {wanted!r} in {self.shown[before:]!r}")

    def interrupted(self) -> int:
        """Its exit status once Ctrl-C was pressed, as often as it takes."""
        for _ in range(30):
            self.type("\x03")
            with suppress(AssertionError):
                return self.ended(seconds=2)
        raise AssertionError(f"it goes on: {self.shown!r}")

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()

    def close(self) -> None:
        if self._process.poll() is None:
            self.kill()
        os.close(self._ours)

    def _read(self, seconds: float) -> bool:
        if not select.select([self._ours], [], [], seconds)[0]:
            return False
        try:
            data = os.read(self._ours, 65536)
        except OSError:  # Linux says so where the other side has gone
            return False
        self.shown += self._decoder.decode(data)
        return bool(data)


def _own_terminal() -> None:
    """Make standard input the terminal whose Ctrl-C this process gets."""
    import fcntl
    import termios

    os.setsid()
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def provider() -> Iterator[FakeProvider]:
    """A provider that says word after word for some seconds."""
    with FakeProvider(FakeReply(chunks=WORDS, pace=0.02)) as one:
        yield one


def chat(file: str, provider: FakeProvider) -> Terminal:
    return Terminal(
        "chat", file, "-m", "openai-chat:m", "-c", "alice", "--base-url", provider.openai_url
    )


def test_ctrl_c_stops_the_reply_and_not_the_program(file: str, provider: FakeProvider) -> None:
    terminal = chat(file, provider)
    try:
        terminal.prompted()
        terminal.type("go\r")
        terminal.until("word5 ")
        terminal.interrupt("stopped")
        terminal.prompted()
        terminal.type("half a line")
        terminal.until("half a line")
        terminal.interrupt("ends")
        terminal.prompted()
        provider.default = FakeReply("**Whole** this time.")
        terminal.type("again\\\r")
        terminal.until("… ")
        terminal.type("and again\r")
        terminal.until("Whole")
        terminal.prompted()
        terminal.type("\x04")
        assert terminal.ended() == 0
    finally:
        terminal.close()

    with Store(file, read_only=True) as store, ContextWindow(store, "alice") as window:
        asked, stopped, again, answer = window.live_records()
        states = [turn.state for turn in window.turns()]
    assert (asked.content, again.content) == ("go", "again\nand again")
    assert answer.content == "**Whole** this time."
    assert stopped.partial_response_id is not None
    assert "".join(WORDS).startswith(stopped.content)
    assert "word5 " in stopped.content
    assert states[0] in ("cancelled", "interrupted")
    assert "Traceback" not in terminal.shown
    assert "\x1b[1mWhole" in terminal.shown
    assert "\x1b]8" not in terminal.shown


def test_a_chat_that_was_killed_is_picked_up(file: str, provider: FakeProvider) -> None:
    first = chat(file, provider)
    try:
        first.prompted()
        first.type("go\r")
        first.until("word9 ")
        first.kill()
    finally:
        first.close()
    shown = max(int(number) for number in re.findall(r"word(\d+) ", first.shown))

    provider.default = FakeReply("".join(WORDS), continues=True)
    second = chat(file, provider)
    try:
        second.until("cut off", "Go on with it?")
        second.type("y\r")
        second.until("word399")
        second.prompted()
        second.type("/quit\r")
        assert second.ended() == 0
    finally:
        second.close()
    with Store(file, read_only=True) as store, ContextWindow(store, "alice") as window:
        _, reply = contents(window.live_records())
    assert shown >= 9
    assert reply.split() == "".join(WORDS).split()


def test_ctrl_c_ends_other_commands_with_130(file: str, provider: FakeProvider) -> None:
    with ContextWindow(file, "alice") as window:
        window.add_prompt("hello")
    terminal = Terminal("delete", file, "alice")
    try:
        terminal.until("Type its name")
        assert terminal.interrupted() == 130
    finally:
        terminal.close()
    assert "Traceback" not in terminal.shown
    with Store(file, read_only=True) as store:
        assert len(store.list_contexts()) == 1


def test_a_bar_is_shown_on_a_terminal_alone(file: str) -> None:
    with Store(file) as store:
        for number in range(5):
            with ContextWindow(store, f"context {number}") as window:
                window.add_prompt("hello")
    terminal = Terminal("doctor", file)
    try:
        assert terminal.ended() == 0
    finally:
        terminal.close()
    assert "looking" in terminal.shown
    assert "sound" in terminal.shown

    done = subprocess.run(
        [sys.executable, "-m", "contextwindow", "doctor", file],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=True,
        timeout=60,
    )
    assert done.stderr == ""
    assert "looking" not in done.stdout
