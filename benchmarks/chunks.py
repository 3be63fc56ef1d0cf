"""Per chunk, against the SDK's own iterators: CPU of this process, the server is another one."""

from __future__ import annotations

import asyncio
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, NamedTuple

from benchmarks.report import Figure, in_turn
from benchmarks.server import PIECE, provider
from contextwindow import (
    AsyncContextWindow,
    ContextWindow,
    Middleware,
    OpenAIChatModel,
    OpenAIResponsesModel,
    StreamChunk,
)
from contextwindow.models.openai_client import OpenAIModel

BURST: Final = (5_000, 0.0)
"""Chunks, and seconds between them."""

PACED: Final = (500, 0.001)
MODELS: Final[dict[str, Callable[..., OpenAIModel]]] = {
    "chat": OpenAIChatModel,
    "Responses": OpenAIResponsesModel,
}


class Cost(NamedTuple):
    """Microseconds a chunk."""

    cpu: float
    wall: float


class Look(Middleware):
    """A hook that lets every chunk pass."""

    def on_stream_chunk(self, chunk: StreamChunk) -> None:
        """Look at it."""


def measure(rounds: int) -> list[Figure]:
    """Burst and paced, both checkpoint modes, blocking and asynchronous."""
    figures: list[Figure] = []
    with provider() as url, tempfile.TemporaryDirectory() as folder:
        for kind in MODELS:
            for interval, target in ((0.1, 0.25), (0.0, 0.35)):
                for way, ours, theirs in (
                    ("", _ours, _sdk),
                    (", async", _ours_async, _sdk_async),
                ):
                    for shape, goal in ((BURST, target), (PACED, None)):
                        place = Path(folder) / f"{len(figures)}.db"
                        pairs = in_turn(
                            ours(url, kind, place, interval, shape),
                            theirs(url, kind, shape),
                            rounds,
                        )
                        pace = "burst of 5,000" if shape is BURST else "one each ms"
                        when = "within 0.1 s" if interval else "before delivery"
                        name = f"a chunk, {kind}{way}, {pace}, committed {when}"
                        figures.append(_figure(name, pairs, goal))
    return figures


def _figure(name: str, pairs: list[tuple[Cost, Cost]], target: float | None) -> Figure:
    """CPU is held against the target; the wall clock is told beside it."""
    us = Cost(*map(statistics.median, zip(*(one for one, _ in pairs), strict=True)))
    sdk = Cost(*map(statistics.median, zip(*(two for _, two in pairs), strict=True)))
    detail = f"CPU {us.cpu:.1f} : {sdk.cpu:.0f} µs, wall {us.wall:.0f} : {sdk.wall:.0f}"
    return Figure(name, [one.cpu / two.cpu for one, two in pairs], target, detail=detail)


class _Clock:
    """Measures the block, whose *read* characters must be the whole of what was sent."""

    read = 0
    cost: Cost

    def __init__(self, count: int) -> None:
        self._count = count

    def __enter__(self) -> _Clock:
        self._began = time.process_time(), time.perf_counter()
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        cpu, wall = time.process_time() - self._began[0], time.perf_counter() - self._began[1]
        self.cost = Cost(cpu / self._count * 1e6, wall / self._count * 1e6)
        assert error or self.read == self._count * len(PIECE), "a chunk is missing"


def header(shape: tuple[int, float]) -> dict[str, str]:
    """What asks the benchmark's server for so many chunks at that pace."""
    return {"x-bench": f"{shape[0]},{shape[1]}"}


def _ours(
    url: str, kind: str, place: Path, interval: float, shape: tuple[int, float]
) -> Callable[[], Cost]:
    model = MODELS[kind]("m", base_url=url, api_key="none")
    window = ContextWindow(
        place, "c", model=model, middleware=[Look()], checkpoint_interval=interval
    )

    def once() -> Cost:
        window.set_live([one.id for one in window.live_records()], False)
        window.add_prompt("go")
        with _Clock(shape[0]) as clock:
            read = 0
            for chunk in window.call_model_streaming(extra={"extra_headers": header(shape)}):
                read += len(chunk.delta)
            clock.read = read
        stored = window.live_records()[-1]
        assert stored.content == PIECE * shape[0], "a chunk was not stored"
        return clock.cost

    return once


def _sdk(url: str, kind: str, shape: tuple[int, float]) -> Callable[[], Cost]:
    import openai

    client = openai.OpenAI(base_url=url, api_key="none")

    def once() -> Cost:
        with _Clock(shape[0]) as clock:
            create: Any = client.chat.completions.create if kind == "chat" else None
            create = create or client.responses.create
            read = 0
            for event in create(**_request(kind), extra_headers=header(shape)):
                read += _length(kind, event)
            clock.read = read
        return clock.cost

    return once


def _request(kind: str) -> dict[str, Any]:
    """What both SDK clients are asked; the same bytes come back to ours."""
    if kind == "chat":
        messages = [{"role": "user", "content": "go"}]
        options = {"include_usage": True}
        return {"model": "m", "messages": messages, "stream": True, "stream_options": options}
    return {"model": "m", "input": "go", "stream": True}


def _length(kind: str, event: Any) -> int:
    """Characters of text that an event of the SDK adds."""
    if kind == "chat":
        return len(event.choices[0].delta.content or "") if event.choices else 0
    return len(event.delta) if event.type == "response.output_text.delta" else 0


def _ours_async(
    url: str, kind: str, place: Path, interval: float, shape: tuple[int, float]
) -> Callable[[], Cost]:
    async def once() -> Cost:
        model = MODELS[kind]("m", base_url=url, api_key="none")
        async with AsyncContextWindow(
            place, "c", model=model, middleware=[Look()], checkpoint_interval=interval
        ) as window:
            await window.add_prompt("warm up")
            await window.call_model(extra={"extra_headers": header((3, 0.0))})
            await window.set_live([one.id for one in await window.live_records()], False)
            await window.add_prompt("go")
            with _Clock(shape[0]) as clock:
                read = 0
                extra = {"extra_headers": header(shape)}
                async with window.call_model_streaming(extra=extra) as stream:
                    async for chunk in stream:
                        read += len(chunk.delta)
                clock.read = read
            live = await window.live_records()
            assert live[-1].content == PIECE * shape[0], "a chunk was not stored"
            await window.set_live([one.id for one in live], False)
        await model.aclose()
        return clock.cost

    return lambda: asyncio.run(once())


def _sdk_async(url: str, kind: str, shape: tuple[int, float]) -> Callable[[], Cost]:
    import openai

    async def once() -> Cost:
        async with openai.AsyncOpenAI(base_url=url, api_key="none") as client:
            await read_async(client, kind, (3, 0.0))
            with _Clock(shape[0]) as clock:
                clock.read = await read_async(client, kind, shape)
        return clock.cost

    return lambda: asyncio.run(once())


async def read_async(client: Any, kind: str, shape: tuple[int, float]) -> int:
    """Characters that the SDK's asynchronous iterator gives."""
    create = client.chat.completions.create if kind == "chat" else client.responses.create
    read = 0
    async for event in await create(**_request(kind), extra_headers=header(shape)):
        read += _length(kind, event)
    return read
