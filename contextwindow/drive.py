"""The two drivers of a turn: blocking, and on an event loop.

Everything here exists twice and nothing else does.  A driver answers effects, passes chunks out,
and throws every error back into the turn, which decides what to do about it.
"""

from __future__ import annotations

import asyncio
import threading
import weakref
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator
from concurrent.futures import Future
from contextlib import suppress
from typing import Any, Protocol, TypeVar

import anyio

from contextwindow.busy import OnBusy, Turnstile
from contextwindow.chunks import StreamChunk
from contextwindow.effects import (
    CLOSE,
    NEXT,
    NEXT_TOOL,
    Ask,
    BeginTurn,
    Checkpoint,
    Effect,
    Finished,
    OpenCall,
    RunHook,
    Sleep,
    StartTools,
    StopHook,
    StopTools,
    ToolJob,
    Work,
)
from contextwindow.errors import ConfigError, ModelError, StreamInterrupted
from contextwindow.incoming import Run
from contextwindow.models.base import AsyncEventSource, EventSource, Model, Request
from contextwindow.plan import Control
from contextwindow.records import Reply
from contextwindow.store.ledger import TurnLedger
from contextwindow.store.store import Store
from contextwindow.tool_runs import AsyncTools, BlockingTools
from contextwindow.tools import ToolContext

_T = TypeVar("_T")


_GRACE = 5.0
"""Seconds that an async hook has to end in a turn that was cancelled, or that fails."""


class Question(Protocol):
    """A question to a model beside the conversation."""

    def answer(self) -> Reply:
        """Wait for the reply."""

    def cancel(self) -> None:
        """End it soon, from any thread."""


class AsyncQuestion(Protocol):
    """A question to a model beside the conversation, for an event loop."""

    async def answer(self) -> Reply:
        """Wait for the reply."""

    def cancel(self) -> None:
        """End it soon, from any thread."""


class Wiring:
    """What a turn is driven with.

    Attributes:
        timeout: seconds without a byte; None for the client's own.
        deadline: seconds for the whole turn, or None.
        on_busy: what to do while another turn runs on the context.
        context_name: of the context, for its tools.
        reader: reads of the context, for its tools; what it is, is none of the driver's concern.
        question: makes what asks a model something beside the conversation; None where nothing is
            ever asked.
    """

    def __init__(
        self,
        store: Store,
        ledger: TurnLedger,
        model: Model,
        control: Control,
        *,
        timeout: float | None = None,
        deadline: float | None = None,
        on_busy: OnBusy = "raise",
        context_name: str = "",
        reader: object = None,
        question: Callable[[Ask, float | None], Question | AsyncQuestion] | None = None,
    ) -> None:
        self.store = store
        self.ledger = ledger
        self.model = model
        self.control = control
        self.timeout = timeout
        self.deadline = deadline
        self.on_busy = on_busy
        self.context_name = context_name
        self.reader = reader
        self._question = question

    def question(self, ask: Ask) -> Any:
        """What *ask* is asked with."""
        assert self._question is not None  # noqa: S101 - a turn that asks was given it
        return self._question(ask, self.timeout)

    def tool_context(self, job: ToolJob, send: Callable[[Any], Any]) -> ToolContext:
        """What the tool of *job* is given to know of its call."""
        return ToolContext(
            call_id=job.call_id,
            name=job.tool.name,
            turn_id=self.ledger.turn_id,
            context_id=self.ledger.context_id,
            context_name=self.context_name,
            store=self.store,
            reader=self.reader,
            send=send,
        )

    def warm_up(self) -> None:
        """Have the encoding loaded for the next reply: beside a stream it would hold it up."""
        self.store.warm_up(download=not self.model.opens_at_once)


class BlockingDriver:
    """Drives one turn in the caller's thread."""

    def __init__(self, wiring: Wiring) -> None:
        self._wiring = wiring
        self._source: EventSource | None = None
        self._stopped = threading.Event()
        self._news = threading.Event()
        self._timer: threading.Timer | None = None
        self._tools: BlockingTools | None = None
        self._question: Question | None = None
        self._thread = 0

    def stop(self, reason: str) -> None:
        """End the turn soon, from any thread; *reason* is ``"cancel"`` or ``"deadline"``."""
        control = self._wiring.control
        control.stop = control.stop or reason  # type: ignore[assignment]
        self._stopped.set()
        self._news.set()
        source, tools = self._source, self._tools
        if source is not None:
            source.abort()
        if tools is not None:
            tools.wake()
        question = self._question
        if question is not None:
            question.cancel()

    def waits_for(self, thread: int, task: object) -> bool:
        """Whether the turn goes on only when *thread*, which waits, reads on."""
        return task is None and thread == self._thread

    def run(self, turn: Run) -> Generator[StreamChunk, None, None]:
        """The chunks of *turn*."""
        self._thread = threading.get_ident()
        self._wiring.ledger.held_by(self)
        if self._wiring.deadline is not None:
            self._timer = threading.Timer(self._wiring.deadline, self.stop, ("deadline",))
            self._timer.daemon = True
            self._timer.start()
        try:
            yield from self._run(turn)
        finally:
            if self._timer is not None:
                self._timer.cancel()
            self._close()
            self._wiring.warm_up()
            self._wiring.ledger.give_up()

    def _run(self, turn: Run) -> Generator[StreamChunk, None, None]:
        control = self._wiring.control
        control.driven = True
        step: Callable[[Any], Any] = turn.send
        answer: Any = None
        while True:
            try:
                want = step(answer)
            except StopIteration:
                return
            step = turn.send
            try:
                if isinstance(want, StreamChunk):
                    answer = yield want
                    self._thread = threading.get_ident()
                elif want is NEXT:
                    answer = self._source.read()  # type: ignore[union-attr]
                elif want is NEXT_TOOL:
                    answer = self._tools.next()  # type: ignore[union-attr]
                else:
                    answer = self._answer(want)
            except BaseException as error:  # noqa: BLE001 - the turn decides what to do
                step, answer = turn.throw, control.noted(error)

    def _answer(self, want: Effect) -> Any:
        match want:
            case Checkpoint():
                ledger = self._wiring.ledger
                return ledger.written if ledger.defer(want) else ledger.apply(want)
            case StartTools():
                self._start_tools(want)
            case StopTools():
                return [] if self._tools is None else self._tools.stop(want)
            case OpenCall():
                self._open(want.request)
            case Ask():
                return self._ask(want)
            case Work():
                return want.work()
            case BeginTurn():
                return self._begin(want)
            case Sleep():
                self._stopped.wait(want.seconds)
            case RunHook():
                close = getattr(want.awaitable, "close", None)
                if close is not None:
                    close()
                raise ConfigError("an async hook needs an AsyncContextWindow")
            case _ if want is CLOSE:
                self._close()
        return None

    def _start_tools(self, want: StartTools) -> None:
        self._tools = tools = BlockingTools(self._wiring.tool_context)
        if self._stopped.is_set():
            tools.wake()
        tools.start(want.jobs)

    def _ask(self, want: Ask) -> Reply:
        question: Question = self._wiring.question(want)
        self._question = question
        try:
            if self._stopped.is_set():
                question.cancel()
            return question.answer()
        finally:
            self._question = None

    def _begin(self, want: BeginTurn) -> Any:
        wiring = self._wiring
        turnstile = Turnstile(wiring.store, wiring.ledger, wiring.on_busy, thread=self._thread)
        while True:
            begun = turnstile.attempt(want)
            if not isinstance(begun, float):
                return begun
            if self._stopped.wait(begun):
                raise turnstile.given_up(wiring.control.stop)

    def _open(self, request: Request) -> None:
        """Open the call where it can be given up: a connect or a slow header may take minutes."""
        wiring = self._wiring
        if wiring.model.opens_at_once:
            self._source = wiring.model.open(request, timeout=wiring.timeout)
        else:
            self._source = self._open_elsewhere(request)
        if self._stopped.is_set():
            self._source.abort()

    def _open_elsewhere(self, request: Request) -> EventSource:
        opened: Future[EventSource] = Future()
        given_up = threading.Event()
        self._news.clear()
        if self._stopped.is_set():
            self._news.set()

        def work() -> None:
            try:
                source = self._wiring.model.open(request, timeout=self._wiring.timeout)
            except BaseException as error:  # noqa: BLE001 - raised again where it is waited for
                opened.set_exception(error)
                return
            opened.set_result(source)
            if given_up.is_set():
                source.close()

        opened.add_done_callback(lambda _: self._news.set())
        threading.Thread(target=work, name="contextwindow-open", daemon=True).start()
        try:
            self._news.wait()
            if not opened.done():
                raise StreamInterrupted("the call was given up before it was answered")
        except BaseException:
            given_up.set()
            if opened.done() and opened.exception() is None:
                opened.result().close()
            raise
        return opened.result()

    def _close(self) -> None:
        source, self._source = self._source, None
        if source is not None:
            with suppress(ModelError):
                source.close()


class AsyncDriver:
    """Drives one turn on the running event loop; the store's work is done in its own threads.

    Args:
        wire: gives the wiring; it may have to open the database first.
    """

    def __init__(self, control: Control, wire: Callable[[], Awaitable[Wiring]]) -> None:
        self._control = control
        self._wire = wire
        self._source: AsyncEventSource | None = None
        self._opening: asyncio.Future[AsyncEventSource] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stopped: asyncio.Event | None = None
        self._cancelled: BaseException | None = None
        self._tools: AsyncTools | None = None
        self._question: AsyncQuestion | None = None
        self._thread = 0
        self._task: weakref.ref[asyncio.Task[Any]] | None = None
        self._hook: asyncio.Timeout | None = None

    def stop(self, reason: str) -> None:
        """End the turn soon, from any thread; *reason* is ``"cancel"`` or ``"deadline"``."""
        control = self._control
        control.stop = control.stop or reason  # type: ignore[assignment]
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._shake)

    def _shake(self) -> None:
        if self._stopped is not None:
            self._stopped.set()
        if self._opening is not None:
            self._opening.cancel()
        if self._source is not None:
            self._source.abort()
        if self._tools is not None:
            self._tools.wake()
        if self._question is not None:
            self._question.cancel()
        if self._hook is not None and not self._hook.expired():
            self._limit(self._hook, 0.0 if self._control.stop == "deadline" else _GRACE)

    def waits_for(self, thread: int, task: object) -> bool:
        """Whether the turn goes on only when *task*, or its loop's thread, does not wait."""
        reader = None if self._task is None else self._task()
        return thread == self._thread and (task is None or task is reader)

    def _read_here(self) -> None:
        """Note which task reads the stream."""
        task = asyncio.current_task(self._loop)
        if task is not None and (self._task is None or self._task() is not task):
            self._task = weakref.ref(task)

    async def run(self, turn: Run) -> AsyncGenerator[StreamChunk, None]:
        """The chunks of *turn*."""
        self._loop = asyncio.get_running_loop()
        self._thread = threading.get_ident()
        self._read_here()
        self._stopped = asyncio.Event()
        self._wiring = await self._wire()
        self._wiring.ledger.held_by(self)
        timer = None
        if self._wiring.deadline is not None:
            timer = self._loop.call_later(self._wiring.deadline, self.stop, "deadline")
        ledger = self._wiring.ledger
        self._control.driven = True
        step: Callable[[Any], Any] = turn.send
        answer: Any = None
        try:
            while True:
                try:
                    want = step(answer)
                except StopIteration:
                    return
                step = turn.send
                due = self._cancelled is not None and want is not CLOSE
                if due and type(want) not in (Checkpoint, StopTools):
                    # It came while the lease was taken, which the turn had to hear of first.
                    step, answer, self._cancelled = turn.throw, self._cancelled, None
                    continue
                try:
                    if isinstance(want, StreamChunk):
                        answer = yield want
                        self._read_here()
                    elif want is NEXT:
                        answer = await self._source.read()  # type: ignore[union-attr]
                    elif want is NEXT_TOOL:
                        answer = await self._tools.next()  # type: ignore[union-attr]
                    elif type(want) is Checkpoint and ledger.defer(want):
                        answer = ledger.written
                    else:
                        answer = await self._answer(want)
                except BaseException as error:  # noqa: BLE001 - the turn decides what to do
                    step, answer = turn.throw, self._control.noted(error)
        finally:
            if timer is not None:
                timer.cancel()
            await self._close()
            self._wiring.warm_up()
            self._wiring.ledger.give_up()

    async def _answer(self, want: Effect) -> Any:
        match want:
            case Checkpoint():
                return await self._write(self._wiring.ledger.apply, want)
            case OpenCall():
                await self._open(want.request)
            case Ask():
                return await self._ask(want)
            case Work():
                return await self._write(lambda _: want.work(), None)
            case BeginTurn():
                return await self._begin(want)
            case Sleep():
                await self._sleep(want.seconds)
            case RunHook():
                return await self._run_hook(want)
            case StartTools():
                self._start_tools(want)
            case StopTools():
                return await self._stop_tools(want)
            case _ if want is CLOSE:
                await self._close()
        return None

    def _start_tools(self, want: StartTools) -> None:
        self._tools = tools = AsyncTools(self._wiring.tool_context)
        if self._control.stop:
            tools.wake()
        tools.start(want.jobs)

    async def _run_hook(self, want: RunHook) -> Any:
        """Await a hook, which must not outlive the turn for long.

        Raises:
            StopHook: the turn was stopped, and the hook did not end.
        """
        limit = asyncio.timeout(None)
        try:
            async with limit:
                self._hook = limit
                if self._control.stop:
                    self._limit(limit, _GRACE)
                return await want.awaitable
        except TimeoutError as error:
            if limit.expired():
                raise StopHook from error
            raise
        finally:
            self._hook = None

    @staticmethod
    def _limit(limit: asyncio.Timeout, seconds: float) -> None:
        limit.reschedule(asyncio.get_running_loop().time() + seconds)

    async def _stop_tools(self, want: StopTools) -> list[Finished]:
        if self._tools is None:
            return []
        stopping = asyncio.ensure_future(self._tools.stop(want))
        await self._outlast(stopping)
        return stopping.result()

    async def _ask(self, want: Ask) -> Reply:
        question: AsyncQuestion = self._wiring.question(want)
        self._question = question
        try:
            if self._control.stop:
                question.cancel()
            return await question.answer()
        finally:
            self._question = None

    async def _begin(self, want: BeginTurn) -> Any:
        wiring = self._wiring
        turnstile = Turnstile(
            wiring.store,
            wiring.ledger,
            wiring.on_busy,
            thread=self._thread,
            task=asyncio.current_task(),
        )
        while True:
            begun = await self._write(turnstile.attempt, want, late=True)
            if not isinstance(begun, float):
                return begun
            if self._cancelled is None:
                await self._sleep(begun)
            cancelled, self._cancelled = self._cancelled, None
            if cancelled is not None:
                raise cancelled
            if self._control.stop:
                raise turnstile.given_up(self._control.stop)

    async def _write(self, function: Callable[[Any], _T], value: Any, *, late: bool = False) -> _T:
        """Run *function* in the store's thread and wait for it, whatever cancels us meanwhile.

        A shield alone loses the last checkpoint to a second ``cancel()``.

        Args:
            late: hand the result over, and raise a cancellation at the next effect.
        """
        loop = asyncio.get_running_loop()
        writing = loop.run_in_executor(self._wiring.store.executor, function, value)
        await self._outlast(writing)
        if late and writing.exception() is None:
            return writing.result()
        cancelled, self._cancelled = self._cancelled, None
        if cancelled is not None:
            if writing.exception() is not None:
                raise cancelled from writing.exception()
            raise cancelled
        return writing.result()

    async def _outlast(self, work: asyncio.Future[Any]) -> None:
        """Wait for *work*; a cancellation meanwhile is kept for ``_cancelled``."""
        with anyio.CancelScope(shield=True):
            while not work.done():
                try:
                    await asyncio.wait({work})
                except asyncio.CancelledError as error:
                    self._cancelled = error

    async def _open(self, request: Request) -> None:
        wiring = self._wiring
        self._opening = asyncio.ensure_future(
            wiring.model.open_async(request, timeout=wiring.timeout)
        )
        try:
            self._source = await self._opening
        except asyncio.CancelledError:
            if self._control.stop:
                raise StreamInterrupted("the call was given up before it was answered") from None
            raise
        finally:
            self._opening = None
        if self._control.stop:
            self._source.abort()

    async def _sleep(self, seconds: float) -> None:
        assert self._stopped is not None  # noqa: S101 - set before the turn's first step
        with suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._stopped.wait(), seconds)

    async def _close(self) -> None:
        """Close the connection; a cancellation meanwhile waits until something can take it."""
        source, self._source = self._source, None
        if source is None:
            return
        closing = asyncio.ensure_future(_closed(source.close()))
        await self._outlast(closing)


async def _closed(closing: Awaitable[None]) -> None:
    with suppress(ModelError):
        await closing
