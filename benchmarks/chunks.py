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
    AnthropicModel,
    AsyncContextWindow,
    ContextWindow,
    GeminiModel,
    Middleware,
    OpenAIChatModel,
    OpenAIResponsesModel,
    StreamChunk,
)
from contextwindow.models.base import Model

BURST: Final = (5_000, 0.0)
"""Chunks, and seconds between them."""

PACED: Final = (500, 0.001)
MODELS: Final[dict[str, Callable[..., Model]]] = {
    "chat": OpenAIChatModel,
    "Responses": OpenAIResponsesModel,
    "Anthropic": AnthropicModel,
    "Gemini": GeminiModel,
}
TARGETS: Final = {
    "chat": (0.25, 0.35),
    "Responses": (0.25, 0.35),
    "Anthropic": (0.6, 0.8),
    "Gemini": (0.25, 0.35),
}
"""Committed within 0.1 s, and before delivery."""


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
            for interval, target in zip((0.1, 0.0), TARGETS[kind], strict=True):
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


def extra(kind: str, shape: tuple[int, float]) -> dict[str, Any]:
    """What asks the benchmark's server for so many chunks at that pace, as the SDK has it."""
    headers = {"x-bench": f"{shape[0]},{shape[1]}"}
    return (
        {"http_options": {"headers": headers}} if kind == "Gemini" else {"extra_headers": headers}
    )


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
            for chunk in window.call_model_streaming(extra=extra(kind, shape)):
                read += len(chunk.delta)
            clock.read = read
        stored = window.live_records()[-1]
        assert stored.content == PIECE * shape[0], "a chunk was not stored"
        return clock.cost

    return once


def _sdk(url: str, kind: str, shape: tuple[int, float]) -> Callable[[], Cost]:
    client = _client(url, kind)

    def once() -> Cost:
        with _Clock(shape[0]) as clock:
            read = 0
            for event in _create(client, kind)(**_request(kind, shape)):
                read += _length(kind, event)
            clock.read = read
        return clock.cost

    return once


def _client(url: str, kind: str, *, asynchronous: bool = False) -> Any:
    """The SDK's client."""
    if kind == "Gemini":
        from google import genai

        client = genai.Client(api_key="none", http_options={"base_url": url})
        return client.aio if asynchronous else client
    if kind == "Anthropic":
        import anthropic

        made = anthropic.AsyncAnthropic if asynchronous else anthropic.Anthropic
        return made(base_url=url, api_key="none")
    import openai

    return (openai.AsyncOpenAI if asynchronous else openai.OpenAI)(base_url=url, api_key="none")


def _create(client: Any, kind: str) -> Any:
    if kind == "Gemini":
        return client.models.generate_content_stream
    if kind == "Anthropic":
        return client.messages.create
    return client.chat.completions.create if kind == "chat" else client.responses.create


def _request(kind: str, shape: tuple[int, float]) -> dict[str, Any]:
    """What both SDK clients are asked; the same bytes come back to ours."""
    if kind == "Gemini":
        config = {"automatic_continuation": False, **extra(kind, shape)}
        return {"model": "m", "contents": "go", "config": config}
    messages = [{"role": "user", "content": "go"}]
    if kind == "Anthropic":
        asked = {"messages": messages, "max_tokens": 9_999}
        return {"model": "m", "stream": True, **asked, **extra(kind, shape)}
    if kind == "chat":
        options = {"include_usage": True}
        asked = {"messages": messages, "stream_options": options}
        return {"model": "m", "stream": True, **asked, **extra(kind, shape)}
    return {"model": "m", "input": "go", "stream": True, **extra(kind, shape)}


def _length(kind: str, event: Any) -> int:
    """Characters of text that an event of the SDK adds."""
    if kind == "Gemini":
        return len(event.text or "")
    if kind == "Anthropic":
        text = getattr(getattr(event, "delta", None), "text", None)
        return len(text) if isinstance(text, str) else 0
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
            await window.call_model(extra=extra(kind, (3, 0.0)))
            await window.set_live([one.id for one in await window.live_records()], False)
            await window.add_prompt("go")
            with _Clock(shape[0]) as clock:
                read = 0
                async with window.call_model_streaming(extra=extra(kind, shape)) as stream:
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
    async def once() -> Cost:
        async with sdk_client(url, kind) as client:
            await read_async(client, kind, (3, 0.0))
            with _Clock(shape[0]) as clock:
                clock.read = await read_async(client, kind, shape)
        return clock.cost

    return lambda: asyncio.run(once())


def sdk_client(url: str, kind: str) -> Any:
    """The SDK's asynchronous client, a context manager."""
    return _client(url, kind, asynchronous=True)


async def read_async(client: Any, kind: str, shape: tuple[int, float]) -> int:
    """Characters that the SDK's asynchronous iterator gives."""
    answer = _create(client, kind)(**_request(kind, shape))
    read = 0
    async for event in await answer:
        read += _length(kind, event)
    return read
