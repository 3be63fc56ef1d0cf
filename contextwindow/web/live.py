"""A conversation while it grows, as server-sent events."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Final

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from contextwindow import (
    ConfigError,
    ContextWindowError,
    ReasoningDelta,
    StreamChunk,
    TextDelta,
)
from contextwindow.web.inspector import Inspector, of

STILL_HERE: Final = 10.0
"""Seconds without a chunk after which the page is told what else was written."""

_CHARACTERS: Final = 1 << 32
"""A position modulo this counts the characters of its record."""


async def events(request: Request) -> Response:
    """What is written from a place on, or from the last event that the browser has seen."""
    store = of(request).store
    context = await run_in_threadpool(store.context_by_id, request.path_params["id"])
    # A browser that reconnects asks for the same address, and says more in the header.
    after = request.headers.get("last-event-id") or request.query_params.get("after", "")
    return StreamingResponse(
        _events(of(request), context.id, after),
        media_type="text/event-stream",
        headers={"X-Accel-Buffering": "no"},
    )


async def _events(inspector: Inspector, context_id: str, after: str) -> AsyncIterator[str]:
    yield "retry: 500\n\n"
    try:
        _, opened = await inspector.open(context_id)
        async with opened as window:
            known = (await window.context_stats()).total_records
            while not inspector.ending.is_set():
                # It ends with each turn, and after a while without news: then it is begun again.
                chunks = _until(inspector.ending, window.follow(after, timeout=STILL_HERE))
                async with contextlib.aclosing(chunks):
                    async for chunk in chunks:
                        after = chunk.id or after
                        yield event(chunk)
                records = (await window.context_stats()).total_records
                yield ": still here\n\n" if records == known else "event: change\ndata: {}\n\n"
                known = records
    except ConfigError:
        # The place is of a record that is gone.
        yield "event: reload\ndata: {}\n\n"
    except ContextWindowError:
        # The conversation is gone, or the database cannot be read; the page will tell.
        yield "event: gone\ndata: {}\n\n"


async def _until(
    ending: asyncio.Event, chunks: AsyncIterator[StreamChunk]
) -> AsyncGenerator[StreamChunk]:
    """*chunks*, until the server ends: nobody is to be torn off."""
    over = asyncio.ensure_future(ending.wait())
    waiting: asyncio.Future[StreamChunk | None] | None = None
    try:
        while True:
            waiting = asyncio.ensure_future(anext(chunks, None))
            await asyncio.wait({over, waiting}, return_when=asyncio.FIRST_COMPLETED)
            chunk = waiting.result() if waiting.done() else None
            if chunk is None:
                return
            yield chunk
    finally:
        left = [one for one in (over, waiting) if one is not None]
        for one in left:
            one.cancel()
        await asyncio.gather(*left, return_exceptions=True)


def event(chunk: StreamChunk) -> str:
    """A chunk for the page: text that goes to a record, or that more has changed."""
    text = chunk.text if isinstance(chunk, ReasoningDelta) else chunk.delta
    lines = [f"id: {chunk.id}"] if chunk.id else []
    if text and isinstance(chunk, (TextDelta, ReasoningDelta)):
        end = chunk.position % _CHARACTERS
        told = {"record": chunk.record_id, "start": end - len(text), "text": text}
        lines += ["event: text", f"data: {json.dumps(told)}"]
    else:
        lines += ["event: change", f"data: {json.dumps({'over': chunk.done})}"]
    return "\n".join(lines) + "\n\n"


ROUTES = [Route("/c/{id}/events", events)]
