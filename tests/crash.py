"""Processes that stream a reply and are killed; made by a fork server, so that 200 are cheap."""

from __future__ import annotations

import asyncio
import multiprocessing
import time
from dataclasses import dataclass, field
from typing import Any

from contextwindow import AsyncContextWindow, ContextWindow, Store
from contextwindow.testing import ScriptedModel, ScriptedReply

CHUNKS = [f"w{number} " for number in range(2_000)]
CONTEXT = "killed"

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["crash", "contextwindow.window_async", "sqlite3"])


@dataclass
class Death:
    """What a child had shown before it was killed.

    Attributes:
        shown: the text, and when each piece was shown (seconds of the monotonic clock).
        killed_at: when the signal was sent.
    """

    shown: list[tuple[float, str]] = field(default_factory=list)
    killed_at: float = 0.0

    @property
    def text(self) -> str:
        """All that was shown."""
        return "".join(text for _, text in self.shown)

    def text_before(self, moment: float) -> str:
        """What had been shown by *moment*."""
        return "".join(text for at, text in self.shown if at < moment)


def kill_while_streaming(
    database: str, *, interval: float, mode: str, after: float, context: str = CONTEXT
) -> Death:
    """Start a child that streams, and kill it *after* seconds of text."""
    parent_end, child_end = _context.Pipe(duplex=False)
    child = _context.Process(target=_stream, args=(database, interval, mode, context, child_end))
    child.start()
    child_end.close()
    death = Death()
    deadline: float | None = None
    while True:
        wait = 30.0 if deadline is None else max(0.0, deadline - time.monotonic())
        if not parent_end.poll(wait):
            break
        try:
            death.shown.append(parent_end.recv())
        except EOFError:
            break
        if deadline is None:
            deadline = time.monotonic() + after
        elif time.monotonic() > deadline:
            break
    death.killed_at = time.monotonic()
    child.kill()
    child.join()
    while True:  # what it had shown before the signal came
        try:
            if not parent_end.poll(0):
                break
            death.shown.append(parent_end.recv())
        except EOFError:
            break
    parent_end.close()
    return death


def _stream(database: str, interval: float, mode: str, context: str, pipe: Any) -> None:
    def show(text: str) -> None:
        pipe.send((time.monotonic(), text))

    model = ScriptedModel([ScriptedReply(chunks=CHUNKS, delay=0.0005)])
    if mode == "sync":
        with ContextWindow(database, context, model=model, checkpoint_interval=interval) as window:
            window.add_prompt("go")
            for chunk in window.call_model_streaming():
                if chunk.delta:
                    show(chunk.delta)
        return

    async def main() -> None:
        async with AsyncContextWindow(
            database, context, model=model, checkpoint_interval=interval
        ) as window:
            await window.add_prompt("go")
            async with window.call_model_streaming() as stream:
                async for chunk in stream:
                    if chunk.delta:
                        show(chunk.delta)

    asyncio.run(main())


def recount(store: Store) -> list[str]:
    """What is wrong with a store's counters and rows; nothing when all is well."""
    problems = []
    with store.database.read() as connection:
        rows = connection.execute(
            "SELECT id, name, next_seq, record_count, live_count, live_tokens FROM contexts"
        ).fetchall()
        for context_id, name, next_seq, records, live, tokens in rows:
            found = connection.execute(
                "SELECT seq, live, est_tokens, id FROM records WHERE context_id = "
                + ("?" if store.dialect == "sqlite" else "%s")
                + " ORDER BY seq",
                (context_id,),
            ).fetchall()
            alive = [row for row in found if row[1]]
            expected = (len(found) + 1, len(found), len(alive), sum(row[2] for row in alive))
            if (next_seq, records, live, tokens) != expected:
                problems.append(f"{name}: {(next_seq, records, live, tokens)} != {expected}")
            if [row[0] for row in found] != list(range(1, len(found) + 1)):
                problems.append(f"{name}: seq has gaps: {[row[0] for row in found]}")
        if store.dialect == "sqlite":
            for check in ("integrity_check", "foreign_key_check"):
                answer = connection.execute(f"PRAGMA {check}").fetchall()
                if answer not in ([("ok",)], []):
                    problems.append(f"{check}: {answer}")
    return problems
