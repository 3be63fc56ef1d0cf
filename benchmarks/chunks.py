"""Per chunk, against the SDK's own iterators: CPU of this process, the server is another one."""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.report import Figure, compare
from benchmarks.server import provider
from contextwindow import (
    AsyncContextWindow,
    ContextWindow,
    Middleware,
    OpenAIChatModel,
    OpenAIResponsesModel,
    StreamChunk,
)

BURST = (5_000, 0.0)
PACED = (300, 0.001)
KINDS = {"chat": OpenAIChatModel, "Responses": OpenAIResponsesModel}


class Look(Middleware):
    """A hook that lets every chunk pass."""

    def on_stream_chunk(self, chunk: StreamChunk) -> None:
        """Look at it."""


def measure(rounds: int) -> list[Figure]:
    """Burst and paced, both checkpoint modes, blocking and asynchronous."""
    figures: list[Figure] = []
    with provider() as url, tempfile.TemporaryDirectory() as folder:
        for kind in KINDS:
            for interval, target in ((0.1, 0.25), (0.0, 0.35)):
                for way, ours, theirs in (
                    ("", _ours, _sdk),
                    (", async", _ours_async, _sdk_async),
                ):
                    for shape, goal in ((BURST, target), (PACED, None)):
                        place = Path(folder) / f"{len(figures)}.db"
                        ratios, us, sdk = compare(
                            ours(url, kind, place, interval, shape),
                            theirs(url, kind, shape),
                            rounds,
                        )
                        burst = "burst of 5,000" if shape is BURST else "paced"
                        when = "every 0.1 s" if interval else "before delivery"
                        name = f"a chunk, {kind}{way}, {burst}, committed {when}"
                        detail = f"{us:.0f} against {sdk:.0f} µs"
                        figures.append(Figure(name, ratios, goal, detail=detail))
    return figures


def _cost(work: Callable[[], object], count: int) -> float:
    began = time.process_time()
    work()
    return (time.process_time() - began) / count * 1e6


def _header(shape: tuple[int, float]) -> dict[str, str]:
    return {"x-bench": f"{shape[0]},{shape[1]}"}


def _ours(
    url: str, kind: str, place: Path, interval: float, shape: tuple[int, float]
) -> Callable[[], float]:
    model = KINDS[kind]("m", base_url=url, api_key="none")
    window = ContextWindow(
        place, "c", model=model, middleware=[Look()], checkpoint_interval=interval
    )

    def read() -> None:
        for chunk in window.call_model_streaming(extra={"extra_headers": _header(shape)}):
            _ = chunk.delta

    def once() -> float:
        window.set_live([one.id for one in window.live_records()], False)
        window.add_prompt("go")
        return _cost(read, shape[0])

    return once


def _sdk(url: str, kind: str, shape: tuple[int, float]) -> Callable[[], float]:
    import openai

    client = openai.OpenAI(base_url=url, api_key="none")
    header = _header(shape)

    def chat() -> None:
        messages: Any = [{"role": "user", "content": "go"}]
        options: Any = {"include_usage": True}
        for chunk in client.chat.completions.create(
            model="m", messages=messages, stream=True, stream_options=options, extra_headers=header
        ):
            _ = chunk.choices and chunk.choices[0].delta.content

    def responses() -> None:
        for event in client.responses.create(
            model="m", input="go", stream=True, extra_headers=header
        ):
            _ = event.type == "response.output_text.delta" and event.delta

    return lambda: _cost(chat if kind == "chat" else responses, shape[0])


def _ours_async(
    url: str, kind: str, place: Path, interval: float, shape: tuple[int, float]
) -> Callable[[], float]:
    async def once() -> float:
        model = KINDS[kind]("m", base_url=url, api_key="none")
        async with AsyncContextWindow(
            place, "c", model=model, middleware=[Look()], checkpoint_interval=interval
        ) as window:
            header = {"extra_headers": _header((3, 0.0))}
            await window.add_prompt("warm up")
            await window.call_model(extra=header)
            await window.set_live([one.id for one in await window.live_records()], False)
            await window.add_prompt("go")
            began = time.process_time()
            header = {"extra_headers": _header(shape)}
            async with window.call_model_streaming(extra=header) as stream:
                async for chunk in stream:
                    _ = chunk.delta
            cost = (time.process_time() - began) / shape[0] * 1e6
            await window.set_live([one.id for one in await window.live_records()], False)
        await model.aclose()
        return cost

    return lambda: asyncio.run(once())


def _sdk_async(url: str, kind: str, shape: tuple[int, float]) -> Callable[[], float]:
    import openai

    async def once() -> float:
        async with openai.AsyncOpenAI(base_url=url, api_key="none") as client:
            await _read(client, kind, _header((3, 0.0)))
            began = time.process_time()
            await _read(client, kind, _header(shape))
            return (time.process_time() - began) / shape[0] * 1e6

    async def _read(client: Any, kind: str, header: dict[str, str]) -> None:
        if kind == "chat":
            stream = await client.chat.completions.create(
                model="m",
                messages=[{"role": "user", "content": "go"}],
                stream=True,
                stream_options={"include_usage": True},
                extra_headers=header,
            )
        else:
            stream = await client.responses.create(
                model="m", input="go", stream=True, extra_headers=header
            )
        async for _ in stream:
            pass

    return lambda: asyncio.run(once())
