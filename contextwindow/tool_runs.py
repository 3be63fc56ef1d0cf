"""Tools while they run, for the two drivers: in threads, and as tasks of an event loop.

A blocking function cannot be stopped from outside.  One that is let go, or has run out of time,
goes on in a daemon thread; its context has expired, and what it returns is not heard.
"""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import logging
import queue
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from typing import Any, Final

from contextwindow.effects import Emitted, Finished, StopTools, ToolJob, ToolNews
from contextwindow.errors import CallbackExpired, ToolError
from contextwindow.tools import ToolContext

AT_ONCE: Final = 16
"""Tools of one reply that run at the same time, at the most; others wait for their place."""

_GRACE: Final = 5.0
"""Seconds that an async tool has to end when it is cancelled."""

MakeContext = Callable[[ToolJob, Callable[[Any], Any]], ToolContext]
"""Makes the context of a job, whose ``emit`` hands on what it is given."""

_log = logging.getLogger("contextwindow")


class _Job:
    """One tool while it runs in a thread."""

    def __init__(self, job: ToolJob) -> None:
        self.job = job
        self.variables = contextvars.copy_context()
        self.context: ToolContext | None = None
        self.began = 0.0
        self.ends = float("inf")
        self.over = False
        # Its thread was given up: another one has taken its place.
        self.replaced = False


class BlockingTools:
    """The tools of one turn, run in threads; ``next`` is called by the turn's own.

    Args:
        make_context: makes the contexts of the tools.
    """

    def __init__(self, make_context: MakeContext) -> None:
        self._make_context = make_context
        self._news: queue.SimpleQueue[tuple[_Job, ToolNews, Future[None] | None] | None]
        self._news = queue.SimpleQueue()
        self._waiting: deque[_Job] = deque()
        self._running: set[_Job] = set()
        self._emitted: Future[None] | None = None
        self._gone: BaseException | None = None
        self._lock = threading.Lock()

    def start(self, jobs: list[ToolJob]) -> None:
        """Run *jobs*, in their order as far as there is room."""
        self._waiting.extend(_Job(job) for job in jobs)
        for _ in range(min(len(jobs), AT_ONCE)):
            self._add_worker()

    def next(self) -> ToolNews | None:
        """Wait for what happens next; None when ``wake`` was called."""
        self._delivered(None)
        while True:
            try:
                found = self._news.get(timeout=self._patience())
            except queue.Empty:
                late = self._late()
                if late is not None:
                    return late
                continue
            if found is None:
                return None
            job, news, emitted = found
            if type(news) is Emitted:
                if job.over:
                    _settle(emitted, _expired(job.job))
                    continue
                self._emitted = emitted
                return news
            if self._end(job):
                return news

    def wake(self) -> None:
        """Let ``next`` return, from any thread."""
        self._news.put(None)

    def stop(self, stopping: StopTools) -> list[Finished]:
        """Let go of what still runs; what had ended unheard is returned."""
        error = stopping.error
        if error is None or not isinstance(error, Exception):
            error = CallbackExpired("the stream that this tool ran in has ended")
        with self._lock:
            self._gone = error
            self._waiting.clear()
            running = list(self._running)
        self._delivered(error)
        finished: list[Finished] = []
        with suppress(queue.Empty):
            while True:
                found = self._news.get_nowait()
                if found is None:
                    continue
                job, news, emitted = found
                _settle(emitted, error)
                if type(news) is Finished and self._end(job):
                    finished.append(news)
        for job in running:
            self._end(job)
        return finished

    def _add_worker(self) -> None:
        threading.Thread(target=self._work, name="contextwindow-tool", daemon=True).start()

    def _work(self) -> None:
        while True:
            with self._lock:
                if not self._waiting:
                    return
                job = self._waiting.popleft()
                job.began = time.monotonic()
                if job.job.tool.timeout is not None:
                    job.ends = job.began + job.job.tool.timeout
                self._running.add(job)
            if job.ends != float("inf"):
                # Whoever waits does not know of this limit yet.
                self._nudge()
            news = job.variables.run(self._run, job)
            self._news.put((job, news, None))
            if job.replaced:
                return

    def _run(self, job: _Job) -> Finished:
        def send(output: Any) -> None:
            self._emit(job, output)

        context = job.context = self._make_context(job.job, send)
        if job.over:
            context.expire()
        wanted = job.job
        try:
            output = _not_async(wanted.tool.call(wanted.arguments, context))
        except BaseException as error:  # noqa: BLE001 - the model is told; a thread has no caller
            return Finished(wanted.key, None, error, time.monotonic() - job.began)
        finally:
            context.expire()
        return Finished(wanted.key, output, None, time.monotonic() - job.began)

    def _emit(self, job: _Job, output: Any) -> None:
        """Hand *output* to the reader and wait until it has it; what it raises comes out here."""
        delivered: Future[None] = Future()
        with self._lock:
            if self._gone is not None:
                raise self._gone
            if job.over:
                raise _expired(job.job)
            self._news.put((job, Emitted(job.job.key, output), delivered))
        delivered.result()

    def _nudge(self) -> None:
        idle = _Job(ToolJob(-1, "", None, {}))  # type: ignore[arg-type]  # nobody runs it
        self._news.put((idle, Finished(-1), None))

    def _end(self, job: _Job) -> bool:
        """Mark *job* as over; False when it was, or is none of ours."""
        with self._lock:
            if job not in self._running:
                return False
            self._running.discard(job)
            job.over = True
        if job.context is not None:
            job.context.expire()
        return True

    def _patience(self) -> float | None:
        """Seconds until the first limit of a running tool."""
        with self._lock:
            first = min((job.ends for job in self._running), default=float("inf"))
        return None if first == float("inf") else max(0.0, first - time.monotonic())

    def _late(self) -> Finished | None:
        """A tool whose time is over."""
        now = time.monotonic()
        with self._lock:
            late = next((job for job in self._running if job.ends <= now), None)
        if late is None or not self._end(late):
            return None
        # Its thread may never come back.
        late.replaced = True
        self._add_worker()
        return Finished(late.job.key, None, _too_late(late.job), now - late.began)

    def _delivered(self, error: BaseException | None) -> None:
        emitted, self._emitted = self._emitted, None
        _settle(emitted, error)


class AsyncTools:
    """The tools of one turn, run on an event loop; those that block in threads.

    Args:
        make_context: makes the contexts of the tools.
    """

    def __init__(self, make_context: MakeContext) -> None:
        self._make_context = make_context
        self._loop = asyncio.get_running_loop()
        self._news: asyncio.Queue[tuple[ToolNews, Future[None] | None] | None] = asyncio.Queue()
        self._room = asyncio.Semaphore(AT_ONCE)
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._over: set[int] = set()
        self._emitted: Future[None] | None = None
        self._gone: BaseException | None = None

    def start(self, jobs: list[ToolJob]) -> None:
        """Run *jobs*, in their order as far as there is room."""
        for job in jobs:
            task = self._loop.create_task(self._task(job), name=f"tool {job.tool.name}")
            self._tasks[job.key] = task

    async def next(self) -> ToolNews | None:
        """Wait for what happens next; None when ``wake`` was called."""
        self._delivered(None)
        while True:
            found = await self._news.get()
            if found is None:
                return None
            news, emitted = found
            if type(news) is Finished:
                return news
            if news.key in self._over:
                _settle(emitted, CallbackExpired("the tool has returned"))
                continue
            self._emitted = emitted
            return news

    def wake(self) -> None:
        """Let ``next`` return; to be called on the loop's thread."""
        self._news.put_nowait(None)

    async def stop(self, stopping: StopTools) -> list[Finished]:
        """Let go of what still runs; async tools are cancelled and have a little time to end.

        Returns:
            What had ended unheard.
        """
        error = stopping.error
        if error is None or not isinstance(error, Exception):
            error = CallbackExpired("the stream that this tool ran in has ended")
        self._gone = error
        self._delivered(error)
        finished: list[Finished] = []
        while not self._news.empty():
            found = self._news.get_nowait()
            if found is None:
                continue
            _settle(found[1], error)
            if type(found[0]) is Finished:
                finished.append(found[0])
        running = [task for task in self._tasks.values() if not task.done()]
        for task in running:
            task.cancel()
        if running:
            _, left = await asyncio.wait(running, timeout=_GRACE)
            for task in left:
                _log.warning("%s does not end although it was cancelled", task.get_name())
        return finished

    async def _task(self, job: ToolJob) -> None:
        async with self._room:
            began = time.monotonic()
            context = self._make_context(job, lambda output: self._emit(job, output))
            try:
                finished = await self._run(job, context)
            except asyncio.CancelledError as error:
                if self._gone is not None:
                    raise
                finished = Finished(job.key, None, error)
            except Exception as error:  # noqa: BLE001 - the model is told
                finished = Finished(job.key, None, error)
            finally:
                context.expire()
            finished.duration = time.monotonic() - began
        # Behind what the tool has emitted.
        self._news.put_nowait((finished, None))

    async def _run(self, job: ToolJob, context: ToolContext) -> Finished:
        try:
            async with asyncio.timeout(job.tool.timeout) as limit:
                if job.tool.is_async:
                    output = await job.tool.call(job.arguments, context)
                else:
                    output = await self._in_thread(job, context)
                    if inspect.isawaitable(output):
                        output = await output
        except TimeoutError as error:
            if not limit.expired():
                raise
            self._over.add(job.key)
            raise _too_late(job) from error
        return Finished(job.key, output)

    async def _in_thread(self, job: ToolJob, context: ToolContext) -> Any:
        """What a blocking tool returns; the loop's own threads would hold up the program's end."""
        done: asyncio.Future[Any] = self._loop.create_future()
        variables = contextvars.copy_context()

        def settle(output: Any, error: BaseException | None) -> None:
            if done.done():
                return
            if error is None:
                done.set_result(output)
            else:
                done.set_exception(_carried(error))

        def work() -> None:
            output, failed = None, None
            try:
                output = variables.run(job.tool.call, job.arguments, context)
            except BaseException as error:  # noqa: BLE001 - raised again where it is waited for
                failed = error
            with suppress(RuntimeError):  # the loop is closed: nobody waits
                self._loop.call_soon_threadsafe(settle, output, failed)

        threading.Thread(target=work, name="contextwindow-tool", daemon=True).start()
        return await done

    def _emit(self, job: ToolJob, output: Any) -> Any:
        """Hand *output* to the reader; in a thread wait until it has it.

        Returns:
            On the loop: what can be awaited for that.
        """
        if self._gone is not None:
            raise self._gone
        delivered: Future[None] = Future()
        item = (Emitted(job.key, output), delivered)
        try:
            on_loop = asyncio.get_running_loop() is self._loop
        except RuntimeError:
            on_loop = False
        if on_loop:
            self._news.put_nowait(item)
            return _Delivery(delivered)
        try:
            self._loop.call_soon_threadsafe(self._put, item)
        except RuntimeError:
            raise _expired(job) from None  # the loop is closed
        return delivered.result()

    def _put(self, item: tuple[ToolNews, Future[None] | None]) -> None:
        if self._gone is not None:
            _settle(item[1], self._gone)
        else:
            self._news.put_nowait(item)

    def _delivered(self, error: BaseException | None) -> None:
        emitted, self._emitted = self._emitted, None
        _settle(emitted, error)


class _Delivery:
    """May be awaited until the reader has what was emitted; need not be."""

    def __init__(self, delivered: Future[None]) -> None:
        self._delivered = delivered

    def __await__(self) -> Any:
        return asyncio.wrap_future(self._delivered).__await__()


def _settle(emitted: Future[None] | None, error: BaseException | None) -> None:
    if emitted is None or emitted.done():
        return
    if error is None:
        emitted.set_result(None)
    else:
        emitted.set_exception(error)


def _not_async(output: Any) -> Any:
    """*output* of a blocking tool.

    Raises:
        ToolError: it wants to be awaited.
    """
    if not inspect.isawaitable(output):
        return output
    close = getattr(output, "close", None)
    if close is not None:
        close()
    raise ToolError("an async tool needs an AsyncContextWindow")


def _carried(error: BaseException) -> BaseException:
    """*error* in a form that a future takes and that ends no event loop."""
    if isinstance(error, (StopIteration, SystemExit, KeyboardInterrupt, asyncio.CancelledError)):
        carried = ToolError(f"{type(error).__name__}: {error}")
        carried.__cause__ = error
        return carried
    return error


def _expired(job: ToolJob) -> CallbackExpired:
    return CallbackExpired(f"tool {job.tool.name!r} has returned: its emit is over")


def _too_late(job: ToolJob) -> ToolError:
    return ToolError(f"the tool did not answer within {job.tool.timeout:g} s")
