"""A process whose model calls tools, and which is killed; it notes in a file what its tools do."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from contextwindow import AsyncContextWindow, ContextWindow, Record, Tool, ToolContext
from contextwindow.testing import ScriptedModel, ScriptedReply

CONTEXT = "killed"
ROUNDS = 30
CALLS = 3

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["tool_crash", "contextwindow.window_async", "sqlite3"])


@dataclass
class Log:
    """What tools have done: a line is in the file before the tool goes on.

    Attributes:
        started, ended: ids of calls, as often as it happened.
    """

    path: Path
    started: list[str] = field(default_factory=list)
    ended: list[str] = field(default_factory=list)

    def note(self, what: str) -> None:
        """Append a line with one system call, which no kill can tear."""
        file = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(file, f"{what}\n".encode())
        os.close(file)

    def read(self) -> Log:
        """The log as the file has it."""
        lines = self.path.read_text().split("\n") if self.path.exists() else []
        self.started = [line[6:] for line in lines if line.startswith("start ")]
        self.ended = [line[4:] for line in lines if line.startswith("end ")]
        return self


def script(records: Sequence[Record], options: Any) -> ScriptedReply:
    """A round of calls, each with an id of its own; in the end an answer."""
    done = sum(1 for one in records if one.call_id is not None and one.error is False)
    number = len(records)
    if done >= ROUNDS * CALLS * 2:
        return ScriptedReply(chunks="All done.")
    calls = [("work", {"n": n}, f"c{number}_{n}") for n in range(CALLS)]
    return ScriptedReply(chunks=f"Round {number}. ", tool_calls=calls, delay=0.0002)


def tool_for(log: Log, *, is_async: bool) -> Tool:
    """The tool of the test, which notes when it starts and when it ends."""

    def work(n: int, context: ToolContext) -> str:
        log.note(f"start {context.call_id}")
        time.sleep(0.001 * (n + 1))
        log.note(f"end {context.call_id}")
        return f"worked {context.call_id}"

    async def work_async(n: int, context: ToolContext) -> str:
        log.note(f"start {context.call_id}")
        await asyncio.sleep(0.001 * (n + 1))
        log.note(f"end {context.call_id}")
        return f"worked {context.call_id}"

    parameters = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
    run = work_async if is_async else work
    return Tool("work", "Work.", parameters, run)


def kill_while_tools_run(database: str, log: Log, *, mode: str, after: float) -> None:
    """Start a child that runs rounds of tools, and kill it *after* seconds of work."""
    child = _context.Process(target=_rounds, args=(database, log.path, mode))
    child.start()
    deadline = time.monotonic() + 30.0
    while not log.path.exists() and time.monotonic() < deadline and child.is_alive():
        time.sleep(0.001)
    child.join(after)
    child.kill()
    child.join()


def _rounds(database: str, path: Path, mode: str) -> None:
    log = Log(path)
    model = ScriptedModel([script], repeat=True)
    tool = tool_for(log, is_async=mode == "async")
    if mode == "sync":
        with ContextWindow(database, CONTEXT, model=model, tools=[tool]) as window:
            window.add_prompt("go")
            window.call_model()
        return

    async def main() -> None:
        async with AsyncContextWindow(database, CONTEXT, model=model, tools=[tool]) as window:
            await window.add_prompt("go")
            await window.call_model()

    asyncio.run(main())
