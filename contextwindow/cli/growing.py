"""A reply on the terminal while it arrives."""

from __future__ import annotations

import threading
import time
from types import TracebackType
from typing import Final

from rich.console import Console, ConsoleOptions, RenderResult
from rich.live import Live
from rich.segment import Segment
from rich.text import Text

from contextwindow import (
    Compacted,
    RefusalDelta,
    Resumed,
    Retrying,
    Stream,
    StreamChunk,
    TextDelta,
    ToolEnd,
    ToolStart,
)
from contextwindow.cli.markdown import SafeMarkdown, split
from contextwindow.cli.styles import is_live
from contextwindow.cli.terminal import harmless, one_line

_LOOKS_A_SECOND: Final = 12


def show_stream(stream: Stream, out: Console) -> None:
    """Show a reply to its end; leaving early ends it, and what was shown stays.

    Raises:
        ContextWindowError: as the stream.
    """
    with stream, _Growing(out) if is_live(out) else _Plain(out) as shown:
        for chunk in stream:
            if isinstance(chunk, (TextDelta, RefusalDelta)):
                shown.add(chunk.delta or getattr(chunk, "text", ""))
            elif note := _note(chunk):
                shown.note(note)


def _note(chunk: StreamChunk) -> str:
    """What a reader is told beside the text."""
    match chunk:
        case Retrying():
            return f"trying again in {chunk.delay:.0f} s: {one_line(str(chunk.error))}"
        case Resumed():
            return f"going on by {chunk.strategy}"
        case Compacted():
            return "the window was full: made room"
        case ToolStart():
            return f"calling {one_line(chunk.name)}"
        case ToolEnd() if chunk.error:
            return f"{one_line(chunk.name)} failed"
        case _:
            return ""


class _Plain:
    """Text as it comes, for files, pipes and simple terminals; notes go nowhere."""

    def __init__(self, out: Console) -> None:
        self._file = out.file

    def __enter__(self) -> _Plain:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._file.write("\n")
        self._file.flush()

    def add(self, text: str) -> None:
        """Write what has arrived."""
        self._file.write(harmless(text))
        self._file.flush()

    def note(self, text: str) -> None:
        """Nothing: a pipe gets the reply alone."""


class _Growing:
    """Markdown as it comes: blocks that are whole are printed, the last one is drawn anew.

    What is drawn anew never grows beyond the screen, since a terminal cannot take back what has
    left it.
    """

    def __init__(self, out: Console) -> None:
        self._out = out
        self._tail = ""
        self._look_at = 0
        self._begun = self._ended = False
        self._live = Live(self, console=out, auto_refresh=False, transient=True)
        # rich's own thread draws between the two halves of a print, and lines are left behind.
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._painter = threading.Thread(
            target=self._paint, name="contextwindow-reply", daemon=True
        )

    def __enter__(self) -> _Growing:
        self._live.start(refresh=True)
        self._painter.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._over.set()
        self._painter.join()
        tail, self._tail = self._tail, ""
        self._ended = True
        self._live.stop()
        self._print(tail)

    def add(self, text: str) -> None:
        """Take what has arrived; it is drawn soon."""
        with self._lock:
            self._tail += text
            if "\n" not in text or len(self._tail) < self._look_at:
                return
            if whole := split(self._tail):
                done, self._tail = self._tail[:whole], self._tail[whole:]
                self._print(done)
            # A list of a thousand items is one block, and would be read a thousand times.
            self._look_at = len(self._tail) + len(self._tail) // 4

    def note(self, text: str) -> None:
        """Say something beside the reply."""
        with self._lock:
            self._out.print(Text(f"[{text}]", "quiet"))

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """The last lines of the block that is not whole yet."""
        if not self._tail.strip():
            if not self._begun and not self._ended:
                yield Text("…", "quiet")
            return
        room = max(console.size.height - 3, 1)
        if self._begun:
            yield Segment.line()
        for line in console.render_lines(SafeMarkdown(self._tail), options, pad=False)[-room:]:
            yield from line
            yield Segment.line()

    def _paint(self) -> None:
        pause = 1 / _LOOKS_A_SECOND
        while not self._over.wait(pause):
            began = time.perf_counter()
            with self._lock:
                self._live.refresh()
            # A long block takes long to draw, and holds up what arrives.
            pause = max(1 / _LOOKS_A_SECOND, 5 * (time.perf_counter() - began))

    def _print(self, text: str) -> None:
        if not text.strip():
            return
        if self._begun:
            self._out.print()
        self._begun = True
        self._out.print(SafeMarkdown(text))
