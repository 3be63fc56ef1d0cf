"""Following a context: one way through its log, walked by blocking or on an event loop."""

from __future__ import annotations

import asyncio
import time
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Iterator
from dataclasses import dataclass
from typing import Any, Final

import anyio

from contextwindow.chunks import StreamChunk
from contextwindow.errors import ConfigError
from contextwindow.follow import Position
from contextwindow.store.following import Log
from contextwindow.store.store import Store
from contextwindow.store.wakeups import Batch, Behind, Tail

_MOST: Final = 500
"""Chunks of a long log that are read at a time."""


@dataclass(slots=True)
class Work:
    """Do something that may wait for the database; answered with its result."""

    do: Callable[[], Any]


@dataclass(slots=True)
class Wait:
    """Wait for a batch of a tail; answered with it, or with None after *seconds*."""

    tail: Tail
    number: int
    seconds: float | None


Steps = Generator[Work | Wait | StreamChunk, Any, None]


class Way:
    """What one follower does: it asks for work and for waiting, and yields chunks.

    Args:
        after: where to begin; None: behind what is there when ``begin`` is called.
        timeout: seconds without news after which it ends.
    """

    def __init__(
        self, store: Store, context_id: str, after: Position | None, timeout: float | None
    ) -> None:
        self._store = store
        self._context_id = context_id
        self._place = after
        self._timeout = timeout
        self._log: Log | None = None
        self._tail: Tail | None = None
        self._until = 0.0
        # Whether the last chunk was the last one of a turn.
        self._at_end = False

    def begin(self) -> None:
        """Find the place in the log.

        Raises:
            ConfigError: the place is in another context, or its record was deleted.
            ContextNotFound: the context was deleted.
            StoreError: the database refused.
        """
        with self._store.database.read() as connection:
            if self._place is None:
                self._log = Log.from_now(connection, self._context_id)
                self._place = self._log.reading.place
            else:
                self._log = Log.behind(connection, self._context_id, self._place)

    def steps(self) -> Steps:
        """The follower's chunks, and what it asks for."""
        try:
            while True:
                if self._log is None:
                    yield Work(self.begin)
                self._stay()
                number, running = yield from self._catch_up()
                try:
                    yield from self._take_from(number, running)
                    return
                except Behind:
                    self.leave()
        finally:
            self.leave()

    def leave(self) -> None:
        """Give back what others would have to care for; may be called twice."""
        tail, self._tail, self._log = self._tail, None, None
        if tail is not None:
            self._store.wakeups.leave(tail)

    def _catch_up(self) -> Generator[Work | Wait | StreamChunk, Any, tuple[int, bool]]:
        """Read what is there, up to where the tail stands."""
        log = self._log
        assert log is not None  # noqa: S101 - begun by now
        while True:
            chunks = yield Work(lambda: self._read(log))
            yield from self._show(chunks)
            if not log.more:
                break
        chunks, number, running = yield Work(lambda: self._join(log))
        # From here on the tail's log is read, which this one may have become.
        self._log = None
        yield from self._show(chunks)
        return number, running

    def _read(self, log: Log) -> list[StreamChunk]:
        with self._store.database.read() as connection:
            return log.advance(connection, most=_MOST)

    def _join(self, log: Log) -> tuple[list[StreamChunk], int, bool]:
        tail = self._tail = self._store.wakeups.follow(self._context_id)
        return tail.join(log)

    def _take_from(self, number: int, running: bool) -> Steps:
        """What the tail hands on, from batch *number*, to the end."""
        tail = self._tail
        assert tail is not None  # noqa: S101 - joined
        while running or not self._at_end:
            batch: Batch | None = tail.take(number)
            if batch is None:
                left = None if self._timeout is None else self._until - time.monotonic()
                if left is not None and left <= 0:
                    return
                yield Wait(tail, number, left)
                continue
            number, running = number + 1, batch.running
            yield from self._show(batch.chunks)

    def _show(self, chunks: Any) -> Steps:
        for chunk in chunks:
            self._at_end = chunk.done
            self._place = Position.of(chunk)
            yield chunk
        if chunks:
            self._stay()

    def _stay(self) -> None:
        if self._timeout is not None:
            self._until = time.monotonic() + self._timeout


def follow(
    store: Store, context_id: str, after: str | None, timeout: float | None
) -> Iterator[StreamChunk]:
    """The chunks of a context, by blocking; its place in the log is found at once."""
    way = Way(store, context_id, *check(after, timeout))
    way.begin()
    return _blocking(way)


def _blocking(way: Way) -> Iterator[StreamChunk]:
    steps = way.steps()
    answer: Any = None
    try:
        while True:
            try:
                step = steps.send(answer)
            except StopIteration:
                return
            answer = None
            if isinstance(step, Work):
                answer = step.do()
            elif isinstance(step, Wait):
                step.tail.wait(step.number, step.seconds)
            else:
                yield step
    finally:
        steps.close()


class AsyncFollower(AsyncIterator[StreamChunk]):
    """The chunks of a context, on an event loop.

    Leaving its loop, or cancelling the task that waits, frees all that it holds.

    Args:
        make: gives the store and the context's id.
    """

    def __init__(
        self,
        make: Callable[[], Awaitable[tuple[Store, str]]],
        after: str | None,
        timeout: float | None,
    ) -> None:
        self._make = make
        self._wanted = check(after, timeout)
        self._store: Store | None = None
        self._steps: Steps | None = None
        self._free: Callable[[], object] = lambda: None
        self._answer: Any = None
        self._over = False

    def __aiter__(self) -> AsyncFollower:
        return self

    async def __anext__(self) -> StreamChunk:
        """The next chunk; waits for it.

        Raises:
            StopAsyncIteration: the turn has ended, or there was no news for the timeout.
            ConfigError: the place to follow from is in another context, or was deleted.
            ContextNotFound: the context was deleted.
            StoreError: the database refused.
        """
        if self._over:
            raise StopAsyncIteration
        try:
            return await self._next()
        except BaseException:
            await self.aclose()
            raise

    async def aclose(self) -> None:
        """Free all that it holds; may be called twice."""
        self._over = True
        if self._steps is not None:
            self._steps.close()
        self._free()

    async def _next(self) -> StreamChunk:
        if self._store is None:
            self._store, context_id = await self._make()
            way = Way(self._store, context_id, *self._wanted)
            self._steps = way.steps()
            # Nobody closes an iterator whose loop was left.
            self._free = weakref.finalize(self, way.leave)
        assert self._steps is not None  # noqa: S101 - just made
        while True:
            answer, self._answer = self._answer, None
            try:
                step = self._steps.send(answer)
            except StopIteration:
                raise StopAsyncIteration from None
            if isinstance(step, Work):
                self._answer = await self._in_thread(step.do)
            elif isinstance(step, Wait):
                await self._wait(step)
            else:
                return step

    async def _in_thread(self, work: Callable[[], Any]) -> Any:
        """Run *work* in a thread of the store, and outlast it: it may have to be undone."""
        assert self._store is not None  # noqa: S101 - opened by now
        running = asyncio.get_running_loop().run_in_executor(self._store.executor, work)
        cancelled: BaseException | None = None
        with anyio.CancelScope(shield=True):
            while not running.done():
                try:
                    await asyncio.wait({running})
                except asyncio.CancelledError as error:
                    cancelled = error
        if cancelled is not None:
            running.exception()
            raise cancelled
        return running.result()

    async def _wait(self, step: Wait) -> None:
        waiter = asyncio.get_running_loop().create_future()
        if not step.tail.waiter(step.number, waiter):
            return
        try:
            async with asyncio.timeout(step.seconds):
                await waiter
        except TimeoutError:
            pass
        finally:
            step.tail.forget(waiter)


def check(after: object, timeout: object) -> tuple[Position | None, float | None]:
    """The arguments of ``follow``.

    Raises:
        ConfigError: *after* is no id of a chunk, or *timeout* no number above 0.
    """
    position = None if after is None else Position.parse(after)
    if timeout is None:
        return position, None
    number = isinstance(timeout, (int, float)) and not isinstance(timeout, bool)
    if not number or not timeout > 0:  # type: ignore[operator]  # it is a number
        raise ConfigError(f"timeout must be above 0 seconds, not {timeout!r}")
    return position, float(timeout)  # type: ignore[arg-type]
