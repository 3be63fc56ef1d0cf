"""Many streams over few contexts for a long time, with faults of every kind at random.

    PYTHONPATH=tests:tests/faults python tests/faults/soak.py --seconds 600 soak.db

It prints what the process holds at each mark, and at the end what is wrong.
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import gc
import os
import random
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from four_apis import APIS, model

from contextwindow import (
    AsyncContextWindow,
    ContextNotFound,
    ContextWindowError,
    Middleware,
    Model,
    Store,
    StreamChunk,
    tool,
)
from contextwindow.busy import OnBusy
from contextwindow.testing import FakeProvider, FakeReply

STREAMS: Final = 200
CONTEXTS: Final = 20
PAGE: Final = os.sysconf("SC_PAGE_SIZE")

BUSY: Final[tuple[OnBusy, ...]] = ("raise", "wait", "wait", "cancel_running")
CALLS: Final = [("double", {"n": 1}), ("fail", {})]


@tool
async def double(n: int) -> int:
    """Double a number."""
    await asyncio.sleep(0.01)
    return 2 * n


@tool
def fail() -> str:
    """Fail."""
    raise RuntimeError("out of order")


class Moody(Middleware):
    """Raises now and then."""

    def __init__(self, chance: random.Random) -> None:
        self._chance = chance

    def on_stream_chunk(self, chunk: StreamChunk) -> None:
        if self._chance.random() < 0.002:
            raise ValueError("a hook that fails")


@dataclass
class Mark:
    """What the process holds at a moment."""

    second: float
    memory: int
    files: int
    threads: int
    tasks: int

    @classmethod
    def now(cls, began: float) -> Mark:
        gc.collect()
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        try:
            tasks = len(asyncio.all_tasks())
        except RuntimeError:
            tasks = 0
        files = len(os.listdir("/proc/self/fd"))
        return cls(time.monotonic() - began, pages * PAGE, files, threading.active_count(), tasks)

    def __str__(self) -> str:
        return (
            f"{self.second:6.0f} s  {self.memory / 1e6:6.1f} MB  {self.files} files  "
            f"{self.threads} threads  {self.tasks} tasks"
        )


@dataclass
class Found:
    """What came of a soak."""

    marks: list[Mark] = field(default_factory=list)
    outcomes: collections.Counter[str] = field(default_factory=collections.Counter)
    problems: list[str] = field(default_factory=list)


def reply(chance: random.Random) -> FakeReply:
    """A good answer, or one of the bad ones."""
    text = "a reply of some words that takes a moment to come " * chance.randint(1, 4)
    if chance.random() < 0.5:
        calls = CALLS if chance.random() < 0.2 else []
        return FakeReply(text, pace=chance.choice((0, 0, 0.002)), tool_calls=calls)
    kind = chance.randrange(9)
    if kind < 6:
        fault: Any = ("reset", "eof", "truncate", "error", "stall", "garbage")[kind]
        return FakeReply(text, fault=fault, at=chance.randrange(8))
    return FakeReply(text, status=(429, 500, 400)[kind - 6], retry_after=0.05)


class Soak:
    """One run.

    Args:
        database: path or URL.
        seconds: how long streams are begun.
    """

    def __init__(self, database: str, seconds: float, seed: int) -> None:
        self._database = database
        self._seconds = seconds
        self._chance = random.Random(seed)
        self.found = Found()

    def run(self) -> Found:
        """Soak, and look whether all is well."""
        with Store(self._database) as store:
            asyncio.run(self._soak(store))
            sound = store.examine()
            self.found.problems += [problem.text for problem in sound.problems]
            self.found.problems += [f"turn {one.id} runs" for one in store.turns("running")]
        return self.found

    async def _soak(self, store: Store) -> None:
        began = time.monotonic()
        with FakeProvider() as provider:
            models = [model(api, provider, max_retries=1) for api in APIS]
            workers = [
                asyncio.create_task(self._work(store, provider, models, began))
                for _ in range(STREAMS)
            ]
            every = max(1.0, self._seconds / 10)
            while not all(worker.done() for worker in workers):
                await asyncio.wait(workers, timeout=every)
                # What the provider remembers of each request is no leak of ours.
                provider.requests.clear()
                self.found.marks.append(Mark.now(began))
            await asyncio.gather(*workers)
            provider.default = FakeReply("at last")
            for number in range(CONTEXTS):
                await self._is_sendable(store, models[number % 4], f"soak {number}")
            await close(models)

    async def _work(
        self, store: Store, provider: FakeProvider, models: list[Model], began: float
    ) -> None:
        chance = self._chance
        while time.monotonic() - began < self._seconds:
            name = f"soak {chance.randrange(CONTEXTS)}"
            window = AsyncContextWindow(
                store,
                name,
                model=chance.choice(models),
                max_tokens=3000,
                tools=[double, fail],
                middleware=[Moody(chance)],
            )
            provider.default = reply(chance)
            try:
                outcome = await asyncio.wait_for(self._turn(window, chance), 20)
            except TimeoutError:
                outcome = "cancelled task"
            except ContextWindowError as error:
                outcome = type(error).__name__
            self.found.outcomes[outcome] += 1
            await window.aclose()

    async def _turn(self, window: AsyncContextWindow, chance: random.Random) -> str:
        what = chance.random()
        if what < 0.05:
            with suppress(ContextNotFound):
                await window.delete_context(window.current_context if what < 0.01 else "nobody")
            return "deleted"
        if what < 0.15:
            async for _ in window.follow("" if what < 0.1 else None, timeout=0.3):
                pass
            return "followed"
        if what < 0.3 and await window.interrupted():
            await window.resume(timeout=1.0)
            return "resumed"
        await window.add_prompt(f"prompt {chance.random()}")
        busy: OnBusy = chance.choice(BUSY)
        async with window.call_model_streaming(
            on_busy=busy, timeout=1.0, deadline=15.0, max_tool_rounds=3
        ) as stream:
            async for chunk in stream:
                fate = chance.random()
                if fate < 0.01:
                    return "left"
                if fate < 0.02:
                    stream.cancel()
                if fate < 0.022:
                    raise TimeoutError
                if chunk.done:
                    return chunk.type
        return "ended"

    async def _is_sendable(self, store: Store, asked: Model, name: str) -> None:
        """Every context takes a turn at the end."""
        async with AsyncContextWindow(store, name, model=asked, max_tokens=3000) as window:
            await window.add_prompt("and now?")
            try:
                text = (await window.call_model(timeout=10.0)).text
            except ContextWindowError as error:
                text = repr(error)
            if text != "at last":
                self.found.problems.append(f"{name} cannot be sent any more: {text}")


async def close(models: list[Model]) -> None:
    for one in models:
        await one.aclose()


def main() -> None:
    """Soak, and print what was found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("database")
    parser.add_argument("--seconds", type=float, default=600)
    asked = parser.parse_args()
    first = Mark.now(time.monotonic())
    found = Soak(asked.database, asked.seconds, seed := random.randrange(1 << 30)).run()
    print(f"seed {seed}, before: {first}")
    for mark in found.marks:
        print(mark)
    print("after:", Mark.now(time.monotonic()))
    print(dict(found.outcomes))
    print("\n".join(found.problems) or "sound")


if __name__ == "__main__":
    main()
