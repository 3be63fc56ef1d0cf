"""Where chunks go beside their reader: a function, a queue, an SSE response, a WebSocket.

A sink takes chunks with ``send`` until it is closed; ``AsyncSink`` is its form for an event loop.
A profile says which kinds of chunks it is given: what a user sees is less than what a developer
wants to see.
"""

from __future__ import annotations

import asyncio
import json
import threading
from collections import deque
from collections.abc import (
    AsyncIterable,
    AsyncIterator,
    Awaitable,
    Callable,
    Iterable,
    Iterator,
)
from contextlib import AsyncExitStack, ExitStack
from typing import Any, Final, Protocol, runtime_checkable

from contextwindow.chunks import StreamChunk
from contextwindow.errors import ConfigError

PROFILES: Final[dict[str, frozenset[str] | None]] = {
    "default": None,
    "user_chat": frozenset(
        {
            "stream_start",
            "text_delta",
            "refusal_delta",
            "tool_start",
            "tool_end",
            "resumed",
            "done",
            "stream_failed",
        }
    ),
    "agent_debug": frozenset(
        {
            "stream_start",
            "text_delta",
            "reasoning_delta",
            "refusal_delta",
            "tool_call_delta",
            "tool_start",
            "tool_output_delta",
            "tool_end",
            "child_linked",
            "retrying",
            "resumed",
            "compacted",
            "done",
            "stream_failed",
        }
    ),
    "metrics": frozenset(
        {
            "stream_start",
            "tool_end",
            "usage_report",
            "retrying",
            "resumed",
            "compacted",
            "done",
            "stream_failed",
        }
    ),
}
"""Kinds of chunks (``chunk.type``) by profile; None stands for all of them.

What a user is shown holds no thoughts, no arguments and no outputs of tools: ``user_chat`` also
leaves out the contents of ``tool_start`` and ``tool_end``.
"""

_ROOM: Final = 10


@runtime_checkable
class Sink(Protocol):
    """Takes chunks."""

    def send(self, chunk: StreamChunk) -> object:
        """Take *chunk*; what it returns is not looked at."""

    def close(self) -> object:
        """No more chunks come; may be called twice."""


@runtime_checkable
class AsyncSink(Protocol):
    """Takes chunks, on an event loop."""

    async def send(self, chunk: StreamChunk) -> object:
        """Take *chunk*."""

    async def close(self) -> object:
        """No more chunks come; may be called twice."""


class Profile:
    """Which kinds of chunks a sink is given.

    Args:
        name: ``"default"`` (all), ``"user_chat"``, ``"agent_debug"`` or ``"metrics"``.

    Raises:
        ConfigError: there is no such profile.
    """

    def __init__(self, name: str = "default") -> None:
        if name not in PROFILES:
            raise ConfigError(f"there is no profile {name!r}; the profiles: {', '.join(PROFILES)}")
        self.name = name
        self._kinds = PROFILES[name]

    def __repr__(self) -> str:
        return f"Profile({self.name!r})"

    def takes(self, chunk: StreamChunk) -> bool:
        """Whether *chunk* is of a kind that belongs to the profile."""
        return self._kinds is None or chunk.type in self._kinds

    def to_dict(self, chunk: StreamChunk) -> dict[str, Any]:
        """*chunk* as JSON-safe values, without what the profile keeps to itself."""
        values = chunk.to_dict()
        if self.name == "user_chat" and chunk.type in ("tool_start", "tool_end"):
            for name in ("arguments", "output"):
                values.pop(name, None)
            if "error" in values:
                values["error"] = True
        return values


class CallbackSink:
    """Gives each chunk to a function.

    Args:
        callback: a function of one chunk; its exceptions come out of ``send``.
        profile: which kinds it is given.
    """

    def __init__(
        self, callback: Callable[[StreamChunk], object], *, profile: str = "default"
    ) -> None:
        if not callable(callback):
            raise ConfigError(f"callback must be a function of one chunk, not {callback!r}")
        self._callback = callback
        self._profile = Profile(profile)
        self._closed = False

    def send(self, chunk: StreamChunk) -> None:
        """Call the function; nothing once the sink is closed."""
        if not self._closed and self._profile.takes(chunk):
            self._callback(chunk)

    def close(self) -> None:
        """Call the function no more."""
        self._closed = True


class QueueSink:
    """Hands chunks to another thread, which iterates over it; a full queue holds the sender back.

    Args:
        size: chunks that it holds.
        profile: which kinds it takes.
        timeout: seconds that ``send`` waits for room; None waits for ever.

    Raises:
        ConfigError: *size* is below 1.
    """

    def __init__(
        self, size: int = _ROOM, *, profile: str = "default", timeout: float | None = None
    ) -> None:
        self._room = _room(size)
        self._profile = Profile(profile)
        self._timeout = timeout
        self._chunks: deque[StreamChunk] = deque()
        self._closed = False
        self._changed = threading.Condition()

    def send(self, chunk: StreamChunk) -> None:
        """Put *chunk* into the queue, waiting for room; nothing once the sink is closed.

        Raises:
            TimeoutError: there was no room for the time that was given.
        """
        if not self._profile.takes(chunk):
            return
        with self._changed:
            if not self._changed.wait_for(self._has_room, self._timeout):
                raise TimeoutError(f"nobody took a chunk for {self._timeout:g} s")
            if not self._closed:
                self._chunks.append(chunk)
                self._changed.notify_all()

    def close(self) -> None:
        """End the iteration behind what is in the queue; a sender who waits for room goes on."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def __iter__(self) -> Iterator[StreamChunk]:
        """The chunks, until the sink is closed and empty."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._closed or self._chunks)
                if not self._chunks:
                    return
                chunk = self._chunks.popleft()
                self._changed.notify_all()
            yield chunk

    def _has_room(self) -> bool:
        return self._closed or len(self._chunks) < self._room


class AsyncQueueSink:
    """``QueueSink`` between tasks of one event loop; ``asyncio.timeout`` limits its waiting."""

    def __init__(self, size: int = _ROOM, *, profile: str = "default") -> None:
        self._room = _room(size)
        self._profile = Profile(profile)
        self._chunks: deque[StreamChunk] = deque()
        self._closed = False
        self._changed = asyncio.Condition()

    async def send(self, chunk: StreamChunk) -> None:
        """Put *chunk* into the queue, waiting for room; nothing once the sink is closed."""
        if not self._profile.takes(chunk):
            return
        async with self._changed:
            await self._changed.wait_for(self._has_room)
            if not self._closed:
                self._chunks.append(chunk)
                self._changed.notify_all()

    async def close(self) -> None:
        """End the iteration behind what is in the queue; a sender who waits for room goes on."""
        async with self._changed:
            self._closed = True
            self._changed.notify_all()

    async def __aiter__(self) -> AsyncIterator[StreamChunk]:
        """The chunks, until the sink is closed and empty."""
        while True:
            async with self._changed:
                await self._changed.wait_for(lambda: self._closed or bool(self._chunks))
                if not self._chunks:
                    return
                chunk = self._chunks.popleft()
                self._changed.notify_all()
            yield chunk

    def _has_room(self) -> bool:
        return self._closed or len(self._chunks) < self._room


class SSESink:
    """Writes chunks as server-sent events.

    The event's id is ``chunk.id``: a browser that reconnects sends it back as ``Last-Event-ID``,
    which ``follow(after=…)`` takes.

    Args:
        write: takes text, such as a response's or a file's ``write``.
        profile: which kinds it is given.
    """

    def __init__(self, write: Callable[[str], object], *, profile: str = "user_chat") -> None:
        self._write = write
        self._profile = Profile(profile)
        self._closed = False

    def send(self, chunk: StreamChunk) -> None:
        """Write one event; nothing once the sink is closed."""
        if not self._closed and self._profile.takes(chunk):
            self._write(sse_event(chunk, self._profile))

    def close(self) -> None:
        """Write no more."""
        self._closed = True


class WebSocketSink:
    """Sends chunks as JSON text; a slow socket holds the sender back.

    Args:
        send_text: an async function of one str, such as a WebSocket's ``send_text``.
        profile: which kinds it is given.
    """

    def __init__(
        self, send_text: Callable[[str], Awaitable[object]], *, profile: str = "user_chat"
    ) -> None:
        self._send_text = send_text
        self._profile = Profile(profile)
        self._closed = False

    async def send(self, chunk: StreamChunk) -> None:
        """Send one message; nothing once the sink is closed."""
        if not self._closed and self._profile.takes(chunk):
            await self._send_text(json_text(chunk, self._profile))

    async def close(self) -> None:
        """Send no more; the socket itself stays open."""
        self._closed = True


def pump(chunks: Iterable[StreamChunk], *sinks: Sink) -> None:
    """Send *chunks* to each of *sinks*, and close these, whatever ends the chunks.

    An exception of a sink ends it, for all.
    """
    with ExitStack() as closing:
        for sink in sinks:
            closing.callback(sink.close)
        for chunk in chunks:
            for sink in sinks:
                sink.send(chunk)


async def pump_async(chunks: AsyncIterable[StreamChunk], *sinks: AsyncSink) -> None:
    """As ``pump``, on an event loop."""
    async with AsyncExitStack() as closing:
        for sink in sinks:
            closing.push_async_callback(sink.close)
        async for chunk in chunks:
            for sink in sinks:
                await sink.send(chunk)


def json_text(chunk: StreamChunk, profile: Profile) -> str:
    """*chunk* as JSON text of one line, any character of which may stand in a page's script."""
    text = json.dumps(profile.to_dict(chunk), separators=(",", ":"))
    return text.replace("<", "\\u003c")


def sse_event(chunk: StreamChunk, profile: Profile | None = None) -> str:
    """*chunk* as one server-sent event: its type, its id where it has one, and its JSON."""
    lines = [f"event: {chunk.type}"]
    if chunk.id:
        lines.append(f"id: {chunk.id}")
    lines.append(f"data: {json_text(chunk, profile or Profile())}")
    return "\n".join(lines) + "\n\n"


def _room(size: object) -> int:
    if isinstance(size, bool) or not isinstance(size, int) or size < 1:
        raise ConfigError(f"size must be a whole number of 1 or above, not {size!r}")
    return size
