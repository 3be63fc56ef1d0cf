"""``AsyncContextWindow``: one conversation in a database, for code on an event loop.

It holds a ``ContextWindow`` and does its work in the store's threads; only streams are driven
on the event loop.  A test holds the two surfaces against each other.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Coroutine, Generator, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar, Unpack

import anyio

from contextwindow.attachments import Attachable, listed
from contextwindow.compaction import Compaction, CompactionResult, SummaryResult
from contextwindow.compacts import Squeeze
from contextwindow.drive import Wiring
from contextwindow.effects import Ask
from contextwindow.errors import ConfigError, ModelError
from contextwindow.followers import AsyncFollower
from contextwindow.messages import MessageFormat
from contextwindow.middleware import Middleware, check_all
from contextwindow.models.base import CallOptions, Model
from contextwindow.options import CallArguments, Driving
from contextwindow.plan import Strategy, TurnPlan
from contextwindow.questions import AsyncQuestion
from contextwindow.reader import ContextReader, check_turn_id
from contextwindow.records import (
    Attachment,
    Call,
    CallSize,
    Context,
    ContextStats,
    Record,
    Reply,
    SearchResult,
    TokenUsage,
    Turn,
)
from contextwindow.store.checks import check_flag, check_ids
from contextwindow.store.compacting import CompactionEvent
from contextwindow.store.explaining import Explanation
from contextwindow.store.store import Store
from contextwindow.streams import AsyncStream
from contextwindow.tools import Tool
from contextwindow.window import ContextWindow, check_tools, draft

_T = TypeVar("_T")


class _Core(ContextWindow):
    """The blocking half, whose hooks may be async."""

    _allows_async = True

    def _question(self, ask: Ask, timeout: float | None) -> AsyncQuestion:
        return AsyncQuestion(ask, timeout, self.executor)

    def counted(self) -> tuple[Model, list[Record], CallOptions]:
        """What the next call would send, for the provider to count."""
        return self._counted()

    @classmethod
    def known(cls, model: Model, tokens: int | None) -> int:
        """*tokens*, if the provider has counted."""
        return cls._known(model, tokens)

    def branch(
        self,
        plan: TurnPlan,
        driving: Driving,
        dest_name: str | None,
        place: tuple[str, str] | None,
    ) -> tuple[str, str]:
        """Make a fork that ends with the last prompt the current context, if *plan* can be done.

        Args:
            place: id and name of the context to fork; None: the current one.

        Returns:
            Id and name of the fork.
        """
        self._complete(plan, driving)
        source = place or self._current
        made = self._branch(dest_name, self._last_prompt(source[0]), source=source)
        return made.id, made.name

    def squeeze(self) -> Squeeze:
        """The compaction of the current context."""
        return self._squeeze()

    @property
    def own_summarizer(self) -> Model | None:
        """The summarizer, if it was made here."""
        return self._summarizer if self._owns_summarizer else None

    @property
    def executor(self) -> ThreadPoolExecutor:
        """The threads in which the store is used."""
        return self._store.executor

    @property
    def store(self) -> Store:
        """The database."""
        return self._store

    @property
    def own_model(self) -> Model | None:
        """The model, if it was made here."""
        return self._model if self._owns_model else None

    @property
    def place(self) -> tuple[str, str]:
        """Id and name of the current context."""
        return self._current

    def known_prompt(
        self, place: tuple[str, str], text: str, values: list[object], key: str | None
    ) -> Record | None:
        """The prompt of that *key*, if its attachments need not be read again."""
        return self._known_prompt(place, text, values, key)

    def read_attachments(self, values: list[object]) -> list[Attachment]:
        """*values* of a caller as attachments that the model takes."""
        return self._read_attachments(values)

    def write_prompt(
        self, place: tuple[str, str], text: str, attachments: list[Attachment], key: str | None
    ) -> Record:
        """Write a prompt whose attachments were read."""
        return self._write_prompt(place, text, attachments, key)

    def wiring(self, plan: TurnPlan, driving: Driving, place: tuple[str, str] | None) -> Wiring:
        """What *plan* is driven with; completes the plan."""
        self._complete(plan, driving)
        return self._wire(plan, driving, place or self._current)


class AsyncContextWindow:
    """``ContextWindow`` for an event loop: the same methods, as coroutines.

    ``call_model_streaming`` and ``resume_streaming`` give their stream at once.  The database is
    opened by ``async with`` or by the first call, never on the event loop's thread.

    Args: those of ``ContextWindow``; hooks of *middleware* may be async.

    Raises:
        ConfigError: an argument cannot be used; what concerns the database is raised by
            ``async with`` or the first call.
    """

    def __init__(
        self,
        database: str | os.PathLike[str] | Store = ":memory:",
        context: str | None = None,
        *,
        model: Model | str | None = None,
        system_prompt: str | None = None,
        max_tokens: int | None = None,
        summarizer: Model | str | None = None,
        compaction: Compaction | None = None,
        tools: Iterable[Tool | Callable[..., Any]] = (),
        middleware: Iterable[Middleware | str] = (),
        checkpoint_interval: float | None = None,
    ) -> None:
        hooks = check_all(middleware, allow_async=True)
        usable = list(check_tools(tools, allow_async=True).values())
        self._make: Callable[[], _Core] = partial(
            _Core,
            database,
            context,
            model=model,
            system_prompt=system_prompt,
            max_tokens=max_tokens,
            summarizer=summarizer,
            compaction=compaction,
            tools=usable,
            middleware=hooks,
            checkpoint_interval=checkpoint_interval,
        )
        self._core: _Core | None = None
        self._opening: asyncio.Future[_Core] | None = None
        self._closed = False

    def __repr__(self) -> str:
        return f"AsyncContextWindow({self._core!r})"

    async def __aenter__(self) -> AsyncContextWindow:
        await self._open()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close what this window opened itself; may be called twice."""
        core, self._closed = self._core, True
        if core is None:
            return
        for model in (core.own_model, core.own_summarizer):
            if model is not None:
                await model.aclose()
        await _finish(core.close)

    async def close(self) -> None:
        """As ``aclose``."""
        await self.aclose()

    # -- write ---------------------------------------------------------------------------

    async def add_prompt(
        self, text: str, attachments: Iterable[Attachable] = (), *, key: str | None = None
    ) -> Record:
        """Write what the user says; see ``ContextWindow.add_prompt``."""
        values = listed(attachments)
        if not values:
            return await self._run(lambda core: core.add_prompt(text, key=key))
        core = await self._open()
        # The context that is current now, whatever becomes of that while files are read.
        place = core.place
        known = await self._run(lambda core: core.known_prompt(place, text, values, key))
        if known is not None:
            return known
        # Not in the store's threads: a slow disk must not hold up the streams.
        read = partial(core.read_attachments, values)
        found = await anyio.to_thread.run_sync(read, abandon_on_cancel=True)
        return await self._run(lambda core: core.write_prompt(place, text, found, key))

    async def add_tool_call(
        self, name: str, arguments: dict[str, Any] | str, call_id: str | None = None
    ) -> Record:
        """Write a tool call; see ``ContextWindow.add_tool_call``."""
        return await self._run(lambda core: core.add_tool_call(name, arguments, call_id))

    async def add_tool_output(
        self, output: str, call_id: str | None = None, *, error: bool = False
    ) -> Record:
        """Write what a tool gave back; see ``ContextWindow.add_tool_output``."""
        return await self._run(lambda core: core.add_tool_output(output, call_id, error=error))

    async def set_system_prompt(self, text: str) -> Record:
        """Replace the live system prompt; see ``ContextWindow.set_system_prompt``."""
        return await self._run(lambda core: core.set_system_prompt(text))

    async def set_record_live_state_by_range(
        self, start: int, end: int, live: bool
    ) -> list[Record]:
        """See ``ContextWindow.set_record_live_state_by_range``."""
        return await self._run(lambda core: core.set_record_live_state_by_range(start, end, live))

    async def set_live(self, record_ids: Iterable[int], live: bool) -> list[Record]:
        """Set whether records are sent; see ``ContextWindow.set_live``."""
        ids = check_ids(record_ids)
        return await self._run(lambda core: core.set_live(ids, live))

    async def pin(self, record_id: int) -> Record:
        """Keep a record when the window is compacted; see ``ContextWindow.pin``."""
        return await self._run(lambda core: core.pin(record_id))

    async def unpin(self, record_id: int) -> Record:
        """Undo ``pin``."""
        return await self._run(lambda core: core.unpin(record_id))

    # -- call ----------------------------------------------------------------------------

    async def call_model(self, **options: Unpack[CallArguments]) -> Reply:
        """Send what is live and wait for the reply; see ``ContextWindow.call_model``."""
        return await self.call_model_streaming(**options).until_done()

    def call_model_streaming(self, **options: Unpack[CallArguments]) -> AsyncStream:
        """Give the reply while it arrives; see ``ContextWindow.call_model_streaming``."""
        return self._stream(options)

    # -- resume --------------------------------------------------------------------------

    async def interrupted(self) -> list[Turn]:
        """Turns that were cut off and can be resumed."""
        return await self._run(lambda core: core.interrupted())

    def resume_streaming(
        self,
        turn_id: str | None = None,
        strategy: Strategy = "auto",
        **options: Unpack[CallArguments],
    ) -> AsyncStream:
        """Go on with a reply that was cut off; see ``ContextWindow.resume_streaming``."""
        return self._stream(options, check_turn_id(turn_id), strategy)

    async def resume(
        self,
        turn_id: str | None = None,
        strategy: Strategy = "auto",
        **options: Unpack[CallArguments],
    ) -> Reply:
        """``resume_streaming``, waiting for the whole reply."""
        return await self.resume_streaming(turn_id, strategy, **options).until_done()

    async def discard_partial(self, turn_id: str | None = None) -> list[Record]:
        """Take what a turn left unfinished out; see ``ContextWindow.discard_partial``."""
        return await self._run(lambda core: core.discard_partial(turn_id))

    # -- follow --------------------------------------------------------------------------

    def follow(self, after: str | None = None, timeout: float | None = None) -> AsyncFollower:
        """The context's chunks as they are committed; see ``ContextWindow.follow``.

        With *after* None they begin with what is written after the first one was asked for.
        """
        place = None if self._core is None else self._core.place

        async def make() -> tuple[Store, str]:
            core = await self._open()
            return core.store, (place or core.place)[0]

        return AsyncFollower(make, after, timeout)

    # -- read ----------------------------------------------------------------------------

    async def reader(self) -> ContextReader:
        """All reads, blocking, for other threads."""
        return await self._run(lambda core: core.reader())

    async def live_records(self) -> list[Record]:
        """What is sent to the model, in order."""
        return await self._run(lambda core: core.live_records())

    async def records(
        self,
        after: int | None = None,
        limit: int | None = None,
        *,
        before: int | None = None,
        last: int | None = None,
    ) -> list[Record]:
        """All records in order, live or not; see ``ContextWindow.records``."""
        return await self._run(lambda core: core.records(after, limit, before=before, last=last))

    async def search(self, query: str, limit: int = 20, *, raw: bool = False) -> list[SearchResult]:
        """As ``ContextWindow.search``."""
        return await self._run(lambda core: core.search(query, limit, raw=raw))

    async def turns(self, *, last: int | None = None) -> list[Turn]:
        """The turns of the context, oldest first; only the newest *last* if it is given."""
        return await self._run(lambda core: core.turns(last=last))

    async def turn(self, turn_id: str) -> Turn:
        """One turn; see ``ContextWindow.turn``."""
        return await self._run(lambda core: core.turn(turn_id))

    async def calls(
        self, turn_id: str | None = None, *, before: int | None = None, last: int | None = None
    ) -> list[Call]:
        """Requests made to providers, oldest first; see ``ContextWindow.calls``."""
        return await self._run(lambda core: core.calls(turn_id, before=before, last=last))

    async def call(self, call_id: int) -> Call:
        """One request made to a provider; see ``ContextWindow.call``."""
        return await self._run(lambda core: core.call(call_id))

    async def call_sizes(self, *, last: int = 100) -> list[CallSize]:
        """How full the window was at the newest *last* calls, oldest first."""
        return await self._run(lambda core: core.call_sizes(last=last))

    async def manifest(
        self, call_id: int, *, skip: int = 0, limit: int | None = None
    ) -> list[Record]:
        """The records that a call sent, in its order; *limit* at the most, behind *skip*."""
        return await self._run(lambda core: core.manifest(call_id, skip=skip, limit=limit))

    async def explain(self, call_id: int) -> list[Explanation]:
        """Why each record was part of a call or not; see ``ContextWindow.explain``."""
        return await self._run(lambda core: core.explain(call_id))

    async def live_tokens(self, *, exact: bool = False) -> int:
        """Tokens of the live records; see ``ContextWindow.live_tokens``."""
        if not check_flag(exact, "exact"):
            return await self._run(lambda core: core.live_tokens())
        model, records, options = await self._run(lambda core: core.counted())
        return _Core.known(model, await model.count_tokens_async(records, options))

    async def total_tokens(self) -> int:
        """Tokens that all calls of the context have used; kept in the database."""
        return await self._run(lambda core: core.total_tokens())

    async def token_usage(self) -> TokenUsage:
        """Live and total tokens against what the model takes."""
        return await self._run(lambda core: core.token_usage())

    # -- contexts ------------------------------------------------------------------------

    @property
    def current_context(self) -> str:
        """Name of the current context.

        Raises:
            ConfigError: the window has not been opened yet.
        """
        if self._core is None:
            raise ConfigError("open the window first: `async with` it, or await any of its calls")
        return self._core.current_context

    async def get_current_context(self) -> Context:
        """The current context as the database has it."""
        return await self._run(lambda core: core.get_current_context())

    async def create_context(self, name: str) -> Context:
        """The context called *name*, made if it is missing; the current one stays."""
        return await self._run(lambda core: core.create_context(name))

    async def switch_context(self, name: str) -> Context:
        """Make the context called *name* the current one; see ``ContextWindow``."""
        return await self._run(lambda core: core.switch_context(name))

    async def set_parent(self, context_id: str | None) -> Context:
        """Say from which context the current one was made; see ``ContextWindow.set_parent``."""
        return await self._run(lambda core: core.set_parent(context_id))

    async def list_contexts(self) -> list[Context]:
        """Every context of the database, newest first."""
        return await self._run(lambda core: core.list_contexts())

    async def get_context(self, name: str) -> Context:
        """The context called *name*; ``ContextNotFound`` when there is none."""
        return await self._run(lambda core: core.get_context(name))

    async def context_stats(self, name: str | None = None) -> ContextStats:
        """Figures of the context *name*, or of the current one."""
        return await self._run(lambda core: core.context_stats(name))

    async def clone(self, dest_name: str) -> Context:
        """Copy the current context to a new one; see ``ContextWindow.clone``."""
        return await self._run(lambda core: core.clone(dest_name))

    async def fork(self, dest_name: str, *, at: int | None = None) -> Context:
        """Copy the context up to the record *at* to a new one; see ``ContextWindow.fork``."""
        return await self._run(lambda core: core.fork(dest_name, at=at))

    async def edit(self, record_id: int, text: str, *, dest_name: str | None = None) -> Context:
        """Say *text* in the place of a record, in a fork; see ``ContextWindow.edit``."""
        return await self._run(lambda core: core.edit(record_id, text, dest_name=dest_name))

    async def regenerate(
        self, *, dest_name: str | None = None, **options: Unpack[CallArguments]
    ) -> Reply:
        """Have the last prompt answered anew, in a fork; see ``ContextWindow.regenerate``."""
        return await self.regenerate_streaming(dest_name=dest_name, **options).until_done()

    def regenerate_streaming(
        self, *, dest_name: str | None = None, **options: Unpack[CallArguments]
    ) -> AsyncStream:
        """``regenerate``, giving the reply while it arrives; the fork is made as it begins."""
        plan, driving = draft(options, None, "auto")
        place = None if self._core is None else self._core.place

        async def wire(plan: TurnPlan) -> Wiring:
            made = await self._run(lambda core: core.branch(plan, driving, dest_name, place))
            core = await self._open()
            return core.wiring(plan, driving, made)

        return AsyncStream(plan, wire)

    async def delete_context(self, name: str, *, secure: bool = False) -> None:
        """Delete a context with everything in it; see ``ContextWindow.delete_context``."""
        await self._run(lambda core: core.delete_context(name, secure=secure))

    async def export_context(self, name: str | None = None) -> dict[str, Any]:
        """A context as JSON-safe values, for ``import_context``."""
        return await self._run(lambda core: core.export_context(name))

    async def export_context_json(self, name: str | None = None) -> str:
        """``export_context`` as JSON text, indented by 2."""
        return await self._run(lambda core: core.export_context_json(name))

    async def import_context(
        self, export: dict[str, Any] | str | bytes, name: str | None = None
    ) -> Context:
        """A new context from what ``export_context`` gave; see ``ContextWindow``."""
        return await self._run(lambda core: core.import_context(export, name))

    async def export_messages(
        self, format: MessageFormat = "openai", name: str | None = None
    ) -> dict[str, Any]:
        """A context as arguments of a provider's SDK; see ``ContextWindow.export_messages``."""
        return await self._run(lambda core: core.export_messages(format, name))

    async def export_markdown(self, name: str | None = None) -> str:
        """A context as a document in Markdown; see ``ContextReader.export_markdown``."""
        return await self._run(lambda core: core.export_markdown(name))

    async def export_html(self, name: str | None = None) -> str:
        """A context as one HTML file; see ``ContextReader.export_html``."""
        return await self._run(lambda core: core.export_html(name))

    async def import_messages(
        self, messages: dict[str, Any] | Sequence[dict[str, Any]], name: str | None = None
    ) -> Context:
        """A new context from a list of messages; see ``ContextWindow.import_messages``."""
        return await self._run(lambda core: core.import_messages(messages, name))

    # -- tools ---------------------------------------------------------------------------

    async def add_tool(self, tool: Tool | Callable[..., Any]) -> Tool:
        """Offer a tool, which may be async; see ``ContextWindow.add_tool``."""
        return await self._run(lambda core: core.add_tool(tool))

    async def remove_tool(self, name: str) -> None:
        """Offer a tool no longer; see ``ContextWindow.remove_tool``."""
        await self._run(lambda core: core.remove_tool(name))

    async def list_tools(self) -> list[str]:
        """Names of the context's tools, oldest first; see ``ContextWindow.list_tools``."""
        return await self._run(lambda core: core.list_tools())

    async def has_tool(self, name: str) -> bool:
        """Whether the context has a tool of that name."""
        return await self._run(lambda core: core.has_tool(name))

    # -- summaries and compaction --------------------------------------------------------

    async def set_summarizer(self, model: Model | str | None) -> None:
        """Choose the model that writes summaries; see ``ContextWindow.set_summarizer``."""
        core = await self._open()
        before = core.own_summarizer
        await self._run(lambda core: core.set_summarizer(model))
        if before is not None:
            await before.aclose()

    async def set_summarizer_prompt(self, text: str) -> None:
        """Tell the summarizer what to do; see ``ContextWindow.set_summarizer_prompt``."""
        await self._run(lambda core: core.set_summarizer_prompt(text))

    async def summarize_live_context(self) -> SummaryResult:
        """Have a summary written; see ``ContextWindow.summarize_live_context``."""
        squeeze = await self._run(lambda core: core.squeeze())
        return await self._asked(squeeze.summarize())

    async def accept_summary(self, result: SummaryResult) -> Record:
        """Put a summary in its place; see ``ContextWindow.accept_summary``."""
        return await self._run(lambda core: core.accept_summary(result))

    async def reject_summary(self, result: SummaryResult) -> None:
        """Let a summary go; nothing has to be undone."""
        await self._run(lambda core: core.reject_summary(result))

    async def compact(self, *, dry_run: bool = False) -> CompactionResult:
        """Make room now, or say what that would do; see ``ContextWindow.compact``."""
        if dry_run is not False:
            return await self._run(lambda core: core.compact(dry_run=dry_run))
        squeeze = await self._run(lambda core: core.squeeze())
        return await self._asked(squeeze.compact())

    async def compactions(self) -> list[CompactionEvent]:
        """Each time that records have left the window to make room, oldest first."""
        return await self._run(lambda core: core.compactions())

    # -- middleware and threading --------------------------------------------------------

    async def add_middleware(self, middleware: Middleware | str) -> None:
        """Add hooks for the streams that begin from now on; they may be async."""
        await self._run(lambda core: core.add_middleware(middleware))

    @property
    def server_side_threading(self) -> Coroutine[Any, Any, bool]:
        """Whether calls go on from the provider's own copy of the conversation; await it."""
        return self._run(lambda core: core.server_side_threading)

    async def set_server_side_threading(self, enabled: bool) -> None:
        """Switch that; see ``ContextWindow.set_server_side_threading``."""
        await self._run(lambda core: core.set_server_side_threading(enabled))

    # -- inside --------------------------------------------------------------------------

    async def _open(self) -> _Core:
        """The blocking half, opened in a thread by whoever comes first."""
        if self._core is not None:
            return self._core
        if self._closed:
            raise ConfigError("the window is closed; make a new one")
        if self._opening is None:
            self._opening = asyncio.ensure_future(_finish(self._make))
        try:
            self._core = await asyncio.shield(self._opening)
        except Exception:
            self._opening = None
            raise
        return self._core

    async def _asked(self, work: Generator[Ask, Reply, _T]) -> _T:
        """*work*, each step of it in the store's threads and its questions on the event loop."""
        core = await self._open()
        step: Callable[[Any], Ask] = work.send
        answer: Any = None
        while True:
            done = await _finish(partial(_step, step, answer), core.executor)
            if isinstance(done, _Result):
                return done.value  # type: ignore[no-any-return]  # what the generator returns
            try:
                answer = await AsyncQuestion(done, None, core.executor).answer()
                step = work.send
            except ModelError as error:
                step, answer = work.throw, error
            except BaseException:
                # What was asked before was paid for: the generator writes that down.
                await _finish(work.close, core.executor)
                raise

    async def _run(self, work: Callable[[_Core], _T]) -> _T:
        core = await self._open()
        return await _finish(partial(work, core), core.executor)

    def _stream(
        self, options: CallArguments, resume: str | None = None, strategy: Strategy = "auto"
    ) -> AsyncStream:
        plan, driving = draft(options, resume, strategy)
        # A stream belongs to the context that was current when it was asked for.
        place = None if self._core is None else self._core.place

        async def wire(plan: TurnPlan) -> Wiring:
            core = await self._open()
            return core.wiring(plan, driving, place)

        return AsyncStream(plan, wire)


class _Result:
    """What a generator has returned."""

    def __init__(self, value: Any) -> None:
        self.value = value


def _step(step: Callable[[Any], Ask], answer: Any) -> Ask | _Result:
    try:
        return step(answer)
    except StopIteration as end:
        return _Result(end.value)


async def _finish(work: Callable[[], _T], executor: ThreadPoolExecutor | None = None) -> _T:
    """Run blocking *work* in a thread and wait for it, whatever cancels the task meanwhile."""
    running = asyncio.get_running_loop().run_in_executor(executor, work)
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
