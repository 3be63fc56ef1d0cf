"""200 streams at once on one event loop, 20 chunks a second each, with checkpoints."""

from __future__ import annotations

import asyncio
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.report import Figure
from benchmarks.server import provider
from contextwindow import AsyncContextWindow, OpenAIChatModel, Store

STREAMS, CHUNKS, PACE = 200, 60, 0.05


def measure(rounds: int) -> list[Figure]:
    """CPU a chunk against the SDK's own asynchronous iterators without any store."""
    ratios = []
    for _ in range(max(3, rounds // 2)):
        with provider() as url, tempfile.TemporaryDirectory() as folder:
            ours = asyncio.run(_ours(url, Path(folder) / "x.db"))
            theirs = asyncio.run(_sdk(url))
        ratios.append(ours / theirs)
    name = f"a chunk of {STREAMS} concurrent streams, checkpoints every 0.1 s"
    return [Figure(name, ratios, 0.7, detail=f"{ours:.0f} against {theirs:.0f} µs")]


async def _ours(url: str, place: Path) -> float:
    header = {"extra_headers": {"x-bench": f"{CHUNKS},{PACE}"}}
    model = OpenAIChatModel("m", base_url=url, api_key="none")
    with Store(place) as store:
        windows = [
            AsyncContextWindow(store, f"c{number}", model=model, checkpoint_interval=0.1)
            for number in range(STREAMS)
        ]
        for window in windows:
            await window.add_prompt("go")

        async def read(window: AsyncContextWindow) -> None:
            async with window.call_model_streaming(extra=header) as stream:
                async for _ in stream:
                    pass

        began = time.process_time()
        await asyncio.gather(*map(read, windows))
        cost = time.process_time() - began
    await model.aclose()
    return cost / STREAMS / CHUNKS * 1e6


async def _sdk(url: str) -> float:
    import openai

    limits: Any = {"x-bench": f"{CHUNKS},{PACE}"}
    async with openai.AsyncOpenAI(base_url=url, api_key="none") as client:

        async def read() -> None:
            stream = await client.chat.completions.create(
                model="m",
                messages=[{"role": "user", "content": "go"}],
                stream=True,
                extra_headers=limits,
            )
            async for _ in stream:
                pass

        began = time.process_time()
        await asyncio.gather(*(read() for _ in range(STREAMS)))
        cost = time.process_time() - began
    return cost / STREAMS / CHUNKS * 1e6
