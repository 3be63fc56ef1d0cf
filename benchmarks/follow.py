"""What followers cost the stream that they follow: a paced reply with none, with 100, and stuck."""

from __future__ import annotations

import asyncio
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from benchmarks.report import Figure
from contextwindow import AsyncContextWindow, ContextWindow, Store
from contextwindow.testing import ScriptedModel, ScriptedReply

FOLLOWERS: Final = 100
CHUNKS: Final = 400
PACE: Final = 0.005
"""Seconds between two chunks: 200 a second, faster than any model writes."""

Follow = Callable[[Store], "Iterator[None]"]


def measure(rounds: int) -> list[Figure]:
    """Seconds that a stream takes, and that its chunks come late, against one without followers."""
    with tempfile.TemporaryDirectory() as folder:
        cases = {
            "nobody": _nobody,
            f"{FOLLOWERS} followers on an event loop": _on_a_loop,
            f"{FOLLOWERS} followers in threads": _in_threads,
            "a stuck follower": _stuck,
        }
        taken: dict[str, list[tuple[float, float]]] = {name: [] for name in cases}
        # In turn, so that what else the machine does falls on all of them.
        for number in range(max(3, rounds) + 1):
            for name, follow in cases.items():
                path = Path(folder) / f"{name}-{number}.db"
                took = _stream(path, follow)
                if number:
                    taken[name].append(took)
    alone = taken.pop("nobody")
    out = []
    for name, figures in taken.items():
        pairs = list(zip(figures, alone, strict=True))
        target = 1.02 if name.startswith("a stuck") else 1.10
        late = statistics.median(one[1] for one in figures) * 1e6
        without = statistics.median(one[1] for one in alone) * 1e6
        detail = f"a chunk is handed on in {late:.0f} µs, without followers in {without:.0f} µs"
        what = f"{CHUNKS} chunks, one every {PACE * 1000:g} ms: {name}"
        out.append(
            Figure(what, [ours[0] / theirs[0] for ours, theirs in pairs], target, detail=detail)
        )
    return out


def _stream(path: Path, follow: Callable[[Store], Iterator[None]]) -> tuple[float, float]:
    """Seconds of a whole stream, and the median of those that one chunk takes beyond its pace."""
    model = ScriptedModel([ScriptedReply(chunks=["a word "] * CHUNKS, delay=PACE)])
    with Store(path) as store:
        window = ContextWindow(store, "chat", model=model, checkpoint_interval=0.0)
        window.add_prompt("go")
        with contextmanager(follow)(store):
            late = []
            began = last = time.perf_counter()
            for chunk in window.call_model_streaming():
                now = time.perf_counter()
                if chunk.delta:
                    late.append(now - last - PACE)
                last = now
            return time.perf_counter() - began, statistics.median(late)


def _nobody(store: Store) -> Iterator[None]:
    yield


def _in_threads(store: Store) -> Iterator[None]:
    ready = threading.Barrier(FOLLOWERS + 1)
    sizes: list[int] = []

    def follow() -> None:
        chunks = ContextWindow(store, "chat").follow()
        ready.wait()
        sizes.append(sum(len(chunk.delta) for chunk in chunks))

    threads = [threading.Thread(target=follow) for _ in range(FOLLOWERS)]
    for thread in threads:
        thread.start()
    ready.wait()
    yield
    for thread in threads:
        thread.join()
    assert sizes == [len("a word ") * CHUNKS] * FOLLOWERS


def _on_a_loop(store: Store) -> Iterator[None]:
    ready = threading.Event()
    sizes: list[int] = []

    async def follow(window: AsyncContextWindow) -> None:
        sizes.append(sum([len(chunk.delta) async for chunk in window.follow("")]))

    async def main() -> None:
        async with AsyncContextWindow(store, "chat") as window:
            tasks = [asyncio.create_task(follow(window)) for _ in range(FOLLOWERS)]
            await asyncio.sleep(0.2)
            ready.set()
            await asyncio.gather(*tasks)

    thread = threading.Thread(target=lambda: asyncio.run(main()))
    thread.start()
    ready.wait()
    yield
    thread.join()
    assert sizes == [len("a word ") * CHUNKS] * FOLLOWERS


def _stuck(store: Store) -> Iterator[None]:
    following = ContextWindow(store, "chat").follow("")
    thread = threading.Thread(target=lambda: next(following))
    thread.start()
    yield
    thread.join()
    # It takes nothing more until the stream is over.
    assert sum(len(chunk.delta) for chunk in following) == len("a word ") * CHUNKS
