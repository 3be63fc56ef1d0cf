"""Many streams at once on one event loop: what they cost, how late they are stored, what they hold.

``python -m benchmarks.streams hold URL PATH`` and ``… delay URL PATH`` are the parts that need a
process of their own.
"""

from __future__ import annotations

import asyncio
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from bisect import bisect_left
from pathlib import Path
from typing import Final

from benchmarks.chunks import MODELS, extra, read_async, sdk_client
from benchmarks.report import Figure
from benchmarks.server import PIECE, provider
from contextwindow import AsyncContextWindow, Store

STREAMS: Final = 200
PACE: Final = 0.05
SHAPE: Final = (200, PACE)
"""Chunks, and seconds between them."""

HELD: Final = 1_000
HELD_SHAPE: Final = (40, 0.25)

Seen = dict[str, list[tuple[float, int]]]
"""By context: at which time (``monotonic``) how many characters were there."""


def measure(rounds: int) -> list[Figure]:
    """CPU a chunk against the SDK's own asynchronous iterators; delay of commits; memory."""
    rounds = 1 if rounds < 5 else 3
    cases = [("chat", 0.1, 0.7), ("Responses", 0.1, 0.7), ("Gemini", 0.1, 0.7), ("chat", 0.0, None)]
    figures = []
    with provider() as url, tempfile.TemporaryDirectory() as folder:
        for kind, interval, target in cases[: 1 + rounds]:
            figures.append(_cost(url, kind, Path(folder), interval, rounds, target))
        figures.append(_delay(url, Path(folder) / "delay.db", rounds))
        figures.append(_memory(url, Path(folder) / "held.db"))
    return figures


def _cost(
    url: str, kind: str, folder: Path, interval: float, rounds: int, target: float | None
) -> Figure:
    pairs = []
    # Both are warmed up by streams of a tenth of a second.
    for number in range(rounds + 1):
        shape = SHAPE if number else (2, PACE)
        place = folder / f"{kind}-{interval}-{number}.db"
        ours = asyncio.run(_ours(url, kind, place, STREAMS, shape, interval))
        pairs.append((ours, asyncio.run(_sdk(url, kind, shape))))
    del pairs[0]
    us, sdk = (statistics.median(side) for side in zip(*pairs, strict=True))
    when = "within 0.1 s" if interval else "before delivery"
    name = f"a chunk of {STREAMS} async streams of 20 a second, {kind}, committed {when}"
    detail = f"CPU {us:.0f} : {sdk:.0f} µs"
    return Figure(name, [one / two for one, two in pairs], target, detail=detail)


async def _ours(
    url: str,
    kind: str,
    place: Path,
    streams: int,
    shape: tuple[int, float],
    interval: float,
    delivered: Seen | None = None,
) -> float:
    """Microseconds of CPU a chunk; notes in *delivered*, if it is given, what came when."""
    model = MODELS[kind]("m", base_url=url, api_key="none")
    with Store(place) as store:
        windows = [
            AsyncContextWindow(store, f"c{number}", model=model, checkpoint_interval=interval)
            for number in range(streams)
        ]
        for window in windows:
            await window.add_prompt("go")
        await windows[0].call_model(extra=extra(kind, (3, 0.0)))

        async def read(window: AsyncContextWindow) -> None:
            size = 0
            seen = None if delivered is None else delivered.setdefault(window.current_context, [])
            async with window.call_model_streaming(extra=extra(kind, shape)) as stream:
                async for chunk in stream:
                    size += len(chunk.delta)
                    if seen is not None:
                        seen.append((time.monotonic(), size))
            assert size == shape[0] * len(PIECE), "a chunk is missing"

        began = time.process_time()
        await asyncio.gather(*map(read, windows))
        cost = time.process_time() - began
    await model.aclose()
    return cost / streams / shape[0] * 1e6


async def _sdk(url: str, kind: str, shape: tuple[int, float]) -> float:
    async with sdk_client(url, kind) as client:
        await read_async(client, kind, (3, 0.0))
        began = time.process_time()
        sizes = await asyncio.gather(*(read_async(client, kind, shape) for _ in range(STREAMS)))
        cost = time.process_time() - began
    assert set(sizes) == {shape[0] * len(PIECE)}, "a chunk is missing"
    return cost / STREAMS / shape[0] * 1e6


def _delay(url: str, place: Path, rounds: int) -> Figure:
    """The slowest chunk of all rounds, from its delivery until another process finds it."""
    delays: list[tuple[float, float]] = []
    for number in range(rounds):
        path = str(place.with_stem(f"{place.stem}-{number}"))
        Store(path).close()
        sampler = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.sampler", path],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        # A process of its own: what the other benchmarks left would slow its garbage collections.
        delivered: Seen = json.loads(_alone("delay", url, path))
        out, _ = sampler.communicate("stop\n")
        delays += _delays(delivered, json.loads(out))
    missing = sorted(least for least, _ in delays)
    late, surely = missing[len(missing) * 99 // 100], max(most for _, most in delays)
    name = f"slowest of {len(delays):,} chunks of {STREAMS} streams, until it is committed"
    detail = f"median {statistics.median(missing):.0f}, 99 % {late:.0f}, surely by {surely:.0f}"
    return Figure(name, missing[-1:], 250, unit="ms", detail=detail)


def _delays(
    delivered: Seen, committed: dict[str, list[tuple[float, float, int]]]
) -> list[tuple[float, float]]:
    """Milliseconds after each delivery: when it was still missing, and when it was there.

    The sampler may be kept waiting by the machine; what it did not see is not held against us.
    """
    delays = []
    for name, chunks in delivered.items():
        samples = committed[name]
        sizes = [size for _, _, size in samples]
        for at, size in chunks:
            place = bisect_left(sizes, size)
            if not size:  # it carries no text
                continue
            assert place < len(sizes), "a chunk was delivered and never committed"
            before, after, _ = samples[place]
            delays.append((max(0.0, before - at) * 1e3, max(0.0, after - at) * 1e3))
    return delays


def _memory(url: str, place: Path) -> Figure:
    """Greatest size of a process that holds a thousand streams."""
    start, peak = (float(one) for one in _alone("hold", url, str(place)).split())
    name = f"a process that holds {HELD:,} streams of 4 chunks a second"
    return Figure(name, [peak], 400, unit="MB", detail=f"{start:.0f} MB before the first")


def _alone(what: str, url: str, place: str) -> str:
    command = [sys.executable, "-m", "benchmarks.streams", what, url, place]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def _megabytes() -> float:
    """Greatest size of this process so far."""
    status = Path("/proc/self/status")
    if status.exists():
        # Not ru_maxrss, which a process on Linux inherits from the one that started it.
        line = next(one for one in status.read_text().splitlines() if one.startswith("VmHWM"))
        return int(line.split()[1]) * 1_024 / 1e6
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def _hold(url: str, place: Path) -> None:
    """Read the streams, and print this process's size before them and at its greatest."""
    import openai

    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    openai.AsyncOpenAI(base_url=url, api_key="none")
    start = _megabytes()
    asyncio.run(_ours(url, "chat", place, HELD, HELD_SHAPE, 0.1))
    print(start, _megabytes())


def _deliver(url: str, place: Path) -> None:
    """Read the streams, and print what was delivered when."""
    delivered: Seen = {}
    asyncio.run(_ours(url, "chat", place, STREAMS, SHAPE, 0.1, delivered))
    print(json.dumps(delivered))


if __name__ == "__main__":
    {"hold": _hold, "delay": _deliver}[sys.argv[1]](sys.argv[2], Path(sys.argv[3]))
