"""A reply while it arrives, as its reader holds it."""

from __future__ import annotations

import warnings
import weakref
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Generator, Iterator
from types import TracebackType

from contextwindow.chunks import StreamChunk, TextDelta
from contextwindow.drive import AsyncDriver, BlockingDriver, Wiring
from contextwindow.errors import ConfigError
from contextwindow.plan import TurnPlan
from contextwindow.records import Reply
from contextwindow.turn import TurnRun


class _StreamBase:
    """What both kinds of stream are: one turn that has not been started yet."""

    def __init__(self, plan: TurnPlan) -> None:
        plan.stream = self
        self._turn = TurnRun(plan)
        self._begun = False
        self._held = False

    def __repr__(self) -> str:
        return f"<{type(self).__name__} turn {self.turn_id}>"

    @property
    def turn_id(self) -> str:
        """The turn; where the newest one is resumed, known once the stream has begun."""
        return self._turn.turn_id

    @property
    def reply(self) -> Reply:
        """What came of it.

        Raises:
            AttributeError: the stream has not ended, or did not end well.
        """
        if self._turn.reply is None:
            raise AttributeError("reply is there once the stream has ended well: read it first")
        return self._turn.reply

    def _start(self) -> None:
        if self._begun:
            raise ConfigError("a stream can be read once; call the model again for another reply")
        self._begun = True


class Stream(_StreamBase):
    """A reply while it arrives; iterate over it once.

    Nothing is sent before the first chunk is asked for.  Leaving the loop early, an exception in
    it, ``cancel()`` and the end of a ``with`` block close the connection and store what was
    delivered.
    """

    def __init__(self, plan: TurnPlan, wiring: Wiring) -> None:
        super().__init__(plan)
        self._driver = BlockingDriver(wiring)
        self._own: Generator[StreamChunk, None, None] | None = None
        self._weak: weakref.ref[Generator[StreamChunk, None, None]] | None = None

    def __iter__(self) -> Iterator[StreamChunk]:
        """The chunks.

        Raises:
            TurnBusy: another turn is running on the context; nothing was sent.
            ModelError: the provider failed; what arrived is stored.
            MiddlewareError: a hook raised; what was delivered is stored.
        """
        if self._own is not None:
            return self._own
        self._start()
        chunks = self._driver.run(self._turn.run())
        # Held by the loop alone: leaving it ends the turn there and then.
        self._weak = weakref.ref(chunks)
        if self._held:
            self._own = chunks
        return chunks

    def __next__(self) -> StreamChunk:
        if self._own is None:
            self._held = True
            iter(self)
        assert self._own is not None  # noqa: S101 - kept by __iter__ when held
        return next(self._own)

    def text_deltas(self) -> Iterator[str]:
        """The text alone, piece by piece."""
        for chunk in self:
            if type(chunk) is TextDelta and chunk.delta:
                yield chunk.delta

    def until_done(self, callback: Callable[[StreamChunk], object] | None = None) -> Reply:
        """Read to the end, showing each chunk to *callback*.

        An exception of *callback* stops the stream and comes out of here as it is.
        """
        _check_callback(callback)
        self._turn.plan.unwatched = callback is None and not self._begun
        chunks = iter(self)
        for chunk in chunks:
            if callback is not None:
                try:
                    callback(chunk)
                except StopIteration:
                    chunks.close()  # type: ignore[attr-defined]  # it is a generator
                    raise
                except BaseException as error:
                    chunks.throw(error)  # type: ignore[attr-defined]
                    raise
        return self.reply

    def cancel(self) -> None:
        """End the stream soon, from any thread: what was delivered stays."""
        self._driver.stop("cancel")

    def close(self) -> None:
        """End the stream now, as leaving its loop does; nothing if it has ended."""
        chunks = self._weak() if self._weak is not None else None
        self._own = None
        if chunks is not None:
            chunks.close()

    def __enter__(self) -> Stream:
        self._held = True
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


class AsyncStream(_StreamBase):
    """A reply while it arrives; iterate over it once, with ``async for``.

    As ``Stream``.  Use ``async with`` around the loop: Python closes an abandoned asynchronous
    iterator at a time that nobody chose.
    """

    def __init__(self, plan: TurnPlan, wire: Callable[[TurnPlan], Awaitable[Wiring]]) -> None:
        super().__init__(plan)
        self._driver = AsyncDriver(plan.control, lambda: wire(plan))
        self._own: AsyncGenerator[StreamChunk, None] | None = None
        self._weak: weakref.ref[AsyncGenerator[StreamChunk, None]] | None = None

    def __aiter__(self) -> AsyncIterator[StreamChunk]:
        """The chunks; raises what ``Stream`` raises."""
        if self._own is not None:
            return self._own
        self._start()
        chunks = self._driver.run(self._turn.run())
        self._weak = weakref.ref(chunks)
        if self._held:
            self._own = chunks
        else:
            weakref.finalize(chunks, _warn_if_abandoned, weakref.ref(self._turn)).atexit = False
        return chunks

    async def __anext__(self) -> StreamChunk:
        if self._own is None:
            self._held = True
            self.__aiter__()
        assert self._own is not None  # noqa: S101 - kept by __aiter__ when held
        return await anext(self._own)

    async def text_deltas(self) -> AsyncIterator[str]:
        """The text alone, piece by piece."""
        async for chunk in self:
            if type(chunk) is TextDelta and chunk.delta:
                yield chunk.delta

    async def until_done(self, callback: Callable[[StreamChunk], object] | None = None) -> Reply:
        """Read to the end, showing each chunk to *callback*, which may be async.

        An exception of *callback* stops the stream and comes out of here as it is.
        """
        _check_callback(callback)
        self._held = True
        self._turn.plan.unwatched = callback is None and not self._begun
        chunks = self.__aiter__()
        try:
            async for chunk in chunks:
                if callback is not None:
                    try:
                        result = callback(chunk)
                        if isinstance(result, Awaitable):
                            await result
                    except BaseException as error:
                        await chunks.athrow(error)  # type: ignore[attr-defined]
                        raise
        finally:
            await self.aclose()
        return self.reply

    def cancel(self) -> None:
        """End the stream soon, from any thread: what was delivered stays."""
        self._driver.stop("cancel")

    async def aclose(self) -> None:
        """End the stream now, as leaving its loop does; nothing if it has ended."""
        chunks = self._weak() if self._weak is not None else None
        self._own = None
        if chunks is not None:
            await chunks.aclose()

    async def __aenter__(self) -> AsyncStream:
        self._held = True
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()


def _check_callback(callback: object) -> None:
    """Raises ``ConfigError`` for what cannot be called, before anything is sent."""
    if callback is not None and not callable(callback):
        raise ConfigError(f"callback must be a function of one chunk, not {callback!r}")


def _warn_if_abandoned(turn: weakref.ref[TurnRun]) -> None:
    run = turn()
    if run is not None and run.running:
        warnings.warn(
            f"the stream of turn {run.turn_id} was left without being closed; read it inside "
            "`async with`",
            ResourceWarning,
            stacklevel=2,
        )
