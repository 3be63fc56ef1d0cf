"""``ContextWindow``: one conversation in a database, for code that may block."""

from __future__ import annotations

import math
import os
import uuid
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any, Final, TypeVar, Unpack

from contextwindow.attachments import Attachable, listed, read_attachment
from contextwindow.chunks import StreamChunk
from contextwindow.compaction import (
    SUMMARY_PROMPT,
    Compaction,
    CompactionResult,
    Room,
    SummaryResult,
    default_compaction,
    size_of,
)
from contextwindow.compacts import Squeeze
from contextwindow.drive import Wiring
from contextwindow.effects import Ask
from contextwindow.errors import ConfigError, ContextNotFound, ContextWindowError, ModelError
from contextwindow.messages import MessageFormat, import_messages
from contextwindow.middleware import Middleware, bind, check_all, check_middleware
from contextwindow.models import catalog
from contextwindow.models.base import CallOptions, Model
from contextwindow.options import CallArguments, Driving, read_options
from contextwindow.plan import STRATEGIES, Strategy, TurnPlan
from contextwindow.questions import Question
from contextwindow.reader import ContextReader, check_turn_id
from contextwindow.records import (
    Attachment,
    Call,
    CallSize,
    Context,
    ContextStats,
    Record,
    RecordType,
    Reply,
    SearchResult,
    TokenUsage,
    Turn,
)
from contextwindow.store import (
    conversations,
    copying,
    reading,
    resuming,
    tool_names,
    transfer,
    writing,
)
from contextwindow.store.checks import check_flag, check_id, check_text
from contextwindow.store.compacting import CompactionEvent
from contextwindow.store.explaining import Explanation
from contextwindow.store.sqlite import open_files
from contextwindow.store.store import Store
from contextwindow.streams import Stream
from contextwindow.tools import Tool, as_tool
from contextwindow.unanswered import check_taken

_T = TypeVar("_T")

_CHOICES: Final = ("auto", "none", "required")


class ContextWindow:
    """One named conversation; sends what is live to a model and writes down what comes back.

    Close it, or use it in a ``with`` block.  It is safe to use from many threads.

    Args:
        database: a path, ``":memory:"``, an SQLAlchemy URL (``postgresql+psycopg://…``), or a
            ``Store`` that is shared with other windows.
        context: name of the conversation, made if it is missing; None makes one with a new name.
        model: what answers: a model object, or ``"openai:NAME"`` (Responses),
            ``"openai-chat:NAME"``.
        system_prompt: the live system prompt; None leaves what the database has.
        max_tokens: tokens that the window may hold; None takes the model's own limit.
        summarizer: the model that writes summaries; None takes *model* where one is asked for.
        compaction: what leaves the window when it is full, such as ``DropToolOutputs() |
            Summarize()``; None: old tool outputs, then the oldest messages, for a summary where
            there is a *summarizer*; ``NoCompaction()``: nothing.
        tools: what the model may call: ``Tool`` objects, or typed functions.
        middleware: hooks around every stream, in this order: objects, or names of installed
            plugins.
        checkpoint_interval: seconds that streamed text may wait to be written, together with
            other streams; 0 writes each chunk before it is delivered; None is 0 on SQLite and
            0.1 on PostgreSQL.

    Raises:
        ConfigError: an argument cannot be used.
        StoreError: the database cannot be opened.
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
        name = str(uuid.uuid4()) if context is None else check_text(context, "context name")
        if system_prompt is not None:
            check_text(system_prompt, "system prompt")
        self._max_tokens = _limit(max_tokens)
        self._interval = _interval(checkpoint_interval)
        self._middleware = check_all(middleware, allow_async=self._allows_async)
        self._tools = check_tools(tools, allow_async=self._allows_async)
        self._compaction = _check_compaction(compaction)
        self._summary_prompt = SUMMARY_PROMPT
        self._model, self._owns_model = _model(model)
        try:
            self._summarizer, self._owns_summarizer = _model(summarizer, "summarizer")
        except BaseException:
            self._close_models()
            raise
        self._owns_store = not isinstance(database, Store)
        self._store = database if isinstance(database, Store) else Store(_place(database))
        try:
            self._current = self._named(conversations.get_or_create(self._store.database, name))
            self._reader = ContextReader(
                self._store, lambda: self._current, self._most_tokens, self._estimated
            )
            self._store.settle(self._current[0])
            if self._tools:
                tool_names.add(self._store.database, self._current[0], self._tools)
            if system_prompt is not None and self._system_prompt() != system_prompt:
                self.set_system_prompt(system_prompt)
        except BaseException:
            self.close()
            raise

    _allows_async = False
    _question: Callable[[Ask, float | None], Any] = Question
    _owns_summarizer = False
    _summarizer: Model | None = None

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._store.location!r}, {self.current_context!r})"

    def __enter__(self) -> ContextWindow:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close what this window opened itself; may be called twice."""
        if self._owns_store:
            self._store.close()
        self._close_models()

    def _close_models(self) -> None:
        if self._owns_model and self._model is not None:
            self._model.close()
        if self._owns_summarizer and self._summarizer is not None:
            self._summarizer.close()

    # -- write ---------------------------------------------------------------------------

    def add_prompt(
        self, text: str, attachments: Iterable[Attachable] = (), *, key: str | None = None
    ) -> Record:
        """Write what the user says.

        Args:
            text: may be empty where there is an attachment.
            attachments: files that go with it: paths, bytes, URLs, ``Attachment`` objects, or
                tuples of one of these and its media type.  Files are read now; a URL is left to
                the provider to fetch.
            key: the application's own id for it, such as a webhook's: the same key a second time
                writes nothing and gives the first record back.

        Raises:
            ConfigError: the text is empty, or holds what no database keeps (NUL, a lone
                surrogate); an attachment cannot be read, or not be taken by this window's model.
                Nothing was written.
        """
        values, place = listed(attachments), self._current
        known = self._known_prompt(place, text, values, key)
        return known or self._write_prompt(place, text, self._read_attachments(values), key)

    def add_tool_call(
        self, name: str, arguments: dict[str, Any] | str, call_id: str | None = None
    ) -> Record:
        """Write a tool call as if the model had made it.

        Args:
            arguments: a dict, or JSON text.
            call_id: None makes one.

        Raises:
            ConfigError: a value cannot be stored.
        """
        check_text(name, "tool name")
        return writing.add_tool_call(
            self._store.database, self._current[0], name, arguments, call_id
        )

    def add_tool_output(
        self, output: str, call_id: str | None = None, *, error: bool = False
    ) -> Record:
        """Write what a tool gave back.

        Args:
            call_id: the call that it answers; None takes the oldest that has no output.
            error: whether the tool failed.

        Raises:
            ConfigError: no open call has that id.
        """
        return writing.add_tool_output(
            self._store.database, self._current[0], output, call_id, error
        )

    def set_system_prompt(self, text: str) -> Record:
        """Replace the live system prompt; the one before stays in the database.

        Raises:
            ConfigError: the text is empty or cannot be stored.
        """
        check_text(text, "system prompt")
        return writing.set_system_prompt(self._store.database, self._current[0], text)

    def set_record_live_state_by_range(self, start: int, end: int, live: bool) -> list[Record]:
        """Set whether records are sent, by their indices in ``live_records()``, both included.

        Raises:
            ConfigError: the range is invalid or out of range; nothing was changed.
        """
        return writing.set_live_range(self._store.database, self._current[0], start, end, live)

    def set_live(self, record_ids: Iterable[int], live: bool) -> list[Record]:
        """Set whether records are sent, whatever they are now; all or none.

        Returns:
            The records; one whose text is damaged is changed all the same, and not among them.

        Raises:
            ConfigError: one of them is no record of this context; nothing was changed.
        """
        return writing.set_live(self._store.database, self._current[0], record_ids, live)

    def pin(self, record_id: int) -> Record:
        """Keep a record in what is sent when the window is compacted.

        Raises:
            ConfigError: it is no record of this context.
        """
        return writing.set_pinned(self._store.database, self._current[0], record_id, True)

    def unpin(self, record_id: int) -> Record:
        """Undo ``pin``.

        Raises:
            ConfigError: it is no record of this context.
        """
        return writing.set_pinned(self._store.database, self._current[0], record_id, False)

    # -- call ----------------------------------------------------------------------------

    def call_model(self, **options: Unpack[CallArguments]) -> Reply:
        """Send what is live and wait for the whole reply; the options are ``CallArguments``.

        Raises:
            ConfigError: there is no model, or an option is wrong; nothing was sent.
            TurnBusy: another turn is running on the context; nothing was sent.
            ModelError: the provider failed; what arrived is stored.
        """
        return self.call_model_streaming(**options).until_done()

    def call_model_streaming(self, **options: Unpack[CallArguments]) -> Stream:
        """Send what is live and give the reply while it arrives; see ``call_model``.

        Nothing is sent before the first chunk is asked for.
        """
        return self._stream(options)

    # -- resume --------------------------------------------------------------------------

    def interrupted(self) -> list[Turn]:
        """Turns that were cut off and can be resumed."""
        return self._reader.interrupted()

    def resume_streaming(
        self,
        turn_id: str | None = None,
        strategy: Strategy = "auto",
        **options: Unpack[CallArguments],
    ) -> Stream:
        """Go on with a reply that was cut off: here, in another process, on another machine.

        The chunks begin where the stored text ends; ``reply.text`` is the whole.

        Args:
            turn_id: None takes the newest that can be resumed.
            strategy: ``"auto"`` takes the first that applies of ``"cursor"`` (the provider still
                has the stream), ``"prefill"`` (the model continues its own message),
                ``"continue"`` (it is asked to) and ``"regenerate"`` (a new reply replaces it).

        Raises:
            ConfigError: there is nothing to resume, or *strategy* does not apply.
            TurnBusy: another turn is running on the context.
            ModelError: the provider failed; what arrived is stored.
        """
        return self._stream(options, check_turn_id(turn_id), strategy)

    def resume(
        self,
        turn_id: str | None = None,
        strategy: Strategy = "auto",
        **options: Unpack[CallArguments],
    ) -> Reply:
        """``resume_streaming``, waiting for the whole reply."""
        return self.resume_streaming(turn_id, strategy, **options).until_done()

    def discard_partial(self, turn_id: str | None = None) -> list[Record]:
        """Take what a turn left unfinished out of what is sent; it stays in the database.

        Raises:
            ConfigError: there is no such turn, or nothing of it is unfinished.
        """
        return resuming.discard(self._store.database, self._current[0], check_turn_id(turn_id))

    # -- follow --------------------------------------------------------------------------

    def follow(
        self, after: str | None = None, timeout: float | None = None
    ) -> Iterator[StreamChunk]:
        """The context's chunks as they are committed, whoever runs its turns, in any process.

        It ends behind the last chunk of a turn (``Done`` or ``StreamFailed``) when no turn is
        under way; before that it waits.  Nothing that it does holds up a stream.

        Args:
            after: ``chunk.id`` of the last chunk that was seen: what came behind it, each
                character once, whatever has become of the turn since; ``""``: from the
                beginning; None: what comes from now on.
            timeout: seconds without a chunk after which it ends; None waits for ever.

        Raises:
            ConfigError: *after* is no id, an id of another context, or its record was deleted.
            ContextNotFound: the context was deleted.
            StoreError: the database cannot be read any more.
        """
        return self._reader.follow(after, timeout)

    # -- read ----------------------------------------------------------------------------

    def reader(self) -> ContextReader:
        """All reads, for other threads."""
        return self._reader

    def live_records(self) -> list[Record]:
        """What is sent to the model, in order."""
        return self._reader.live_records()

    def records(
        self,
        after: int | None = None,
        limit: int | None = None,
        *,
        before: int | None = None,
        last: int | None = None,
    ) -> list[Record]:
        """All records in order, live or not, between the records *after* and *before*.

        Args:
            limit: how many at the most, from the beginning.
            last: how many at the most, from the end.

        Raises:
            ConfigError: *after* or *before* is no record of this context, *limit* or *last* is
                below 0, or both are given.
        """
        return self._reader.records(after, limit, before=before, last=last)

    def search(self, query: str, limit: int = 20, *, raw: bool = False) -> list[SearchResult]:
        """Records of the context, live or not, in which every word of *query* occurs.

        The best come first; where a word is too common to tell records apart, the newest do.
        Case does not matter, nor do accents on SQLite. Scripts without spaces between words are
        found by their characters. A reply that is still arriving is not found yet.
        ``Store.search`` looks in every context.

        Args:
            query: words, none of which is an operator: ``a AND "b"`` looks for a, and, b.
            limit: results at the most, up to 1,000.
            raw: *query* is in the database's own language: FTS5's on SQLite, that of
                ``to_tsquery`` on PostgreSQL.

        Raises:
            ConfigError: *query* is empty or cannot be read, or *limit* is below 1.
        """
        return self._reader.search(query, limit, raw=raw)

    def turns(self, *, last: int | None = None) -> list[Turn]:
        """The turns of the context, oldest first; only the newest *last* if it is given."""
        return self._reader.turns(last=last)

    def turn(self, turn_id: str) -> Turn:
        """One turn; a ``ConfigError`` where the context has no such turn."""
        return self._reader.turn(turn_id)

    def calls(
        self, turn_id: str | None = None, *, before: int | None = None, last: int | None = None
    ) -> list[Call]:
        """Requests made to providers, oldest first.

        Args:
            turn_id: only those of that turn.
            before: id of the call in front of which to end; with *last*.
            last: only so many, the newest.

        Raises:
            ConfigError: the context has no call *before*, or the arguments do not go together.
        """
        return self._reader.calls(turn_id, before=before, last=last)

    def call(self, call_id: int) -> Call:
        """One request; a ``ConfigError`` where the context has no such call."""
        return self._reader.call(call_id)

    def call_sizes(self, *, last: int = 100) -> list[CallSize]:
        """How full the window was at each of the newest *last* calls, oldest first."""
        return self._reader.call_sizes(last=last)

    def manifest(self, call_id: int, *, skip: int = 0, limit: int | None = None) -> list[Record]:
        """The records that a call sent, in its order; *limit* at the most, behind *skip*."""
        return self._reader.manifest(call_id, skip=skip, limit=limit)

    def explain(self, call_id: int) -> list[Explanation]:
        """Why each record of the context was part of a call or not, as far as is known.

        Args:
            call_id: ``calls()`` has them.

        Returns:
            One for each record, in the order of ``records()``.

        Raises:
            ConfigError: the context has no such call.
            RecordCorrupt: a record was damaged on the disk; the error names it.
        """
        return self._reader.explain(call_id)

    def live_tokens(self, *, exact: bool = False) -> int:
        """Tokens of the live records, counted offline.

        Args:
            exact: ask the provider how many tokens the next call will send, its tools included;
                one request, which costs nothing but time.

        Raises:
            ConfigError: *exact*, and there is no model, or its API has no way to count (Chat
                Completions); ``token_usage()`` has an estimate.
            ModelError: *exact*, and the provider refused or could not be reached.
        """
        if not check_flag(exact, "exact"):
            return self._reader.live_tokens()
        model, records, options = self._counted()
        return self._known(model, model.count_tokens(records, options))

    def total_tokens(self) -> int:
        """Tokens that all calls of the context have used; kept in the database."""
        return self._reader.total_tokens()

    def token_usage(self) -> TokenUsage:
        """Live and total tokens against what the model takes."""
        return self._reader.token_usage()

    # -- contexts ------------------------------------------------------------------------

    @property
    def current_context(self) -> str:
        """Name of the current context."""
        return self._current[1]

    def get_current_context(self) -> Context:
        """The current context as the database has it.

        Raises:
            ContextNotFound: it was deleted.
        """
        return self._reader.get_current_context()

    def create_context(self, name: str) -> Context:
        """The context called *name*, made if it is missing; the current one stays.

        Raises:
            ConfigError: the name is empty or cannot be stored.
        """
        return conversations.get_or_create(self._store.database, name)

    def switch_context(self, name: str) -> Context:
        """Make the context called *name* the current one, and make it if it is missing.

        A reply that is under way goes on in the context that it was asked in.

        Raises:
            ConfigError: the name is empty or cannot be stored; nothing changes.
        """
        context = conversations.get_or_create(self._store.database, name)
        self._store.settle(context.id)
        if self._tools:
            tool_names.add(self._store.database, context.id, self._tools)
        self._current = self._named(context)
        return context

    def set_parent(self, context_id: str | None) -> Context:
        """Say from which context the current one was made; see ``ToolContext.link``.

        Args:
            context_id: id of a context, of this database or another one; None takes it back.

        Raises:
            ContextNotFound: the current context was deleted.
        """
        if context_id is not None:
            check_text(context_id, "context_id")
        conversations.set_parent(self._store.database, self._current[0], context_id)
        return self._reader.get_current_context()

    def list_contexts(self) -> list[Context]:
        """Every context of the database, newest first."""
        return self._reader.list_contexts()

    def get_context(self, name: str) -> Context:
        """The context called *name*; ``ContextNotFound`` when there is none."""
        return self._reader.get_context(name)

    def context_stats(self, name: str | None = None) -> ContextStats:
        """Figures of the context *name*, or of the current one."""
        return self._reader.context_stats(name)

    def clone(self, dest_name: str) -> Context:
        """Copy the current context, its tools included, to a new one.

        Raises:
            ConfigError: *dest_name* is taken or cannot be used.
        """
        return self.fork(dest_name)

    def fork(self, dest_name: str, *, at: int | None = None) -> Context:
        """Copy the current context up to and including the record *at* to a new one.

        Raises:
            ConfigError: *dest_name* is taken, or *at* is no record of this context.
        """
        check_text(dest_name, "context name")
        current = self._reader.get_current_context()
        return copying.copy(self._store.database, current, dest_name, at)

    def edit(self, record_id: int, text: str, *, dest_name: str | None = None) -> Context:
        """Say *text* in the place of a record, and go on from there.

        The current context stays as it is. A fork of it, up to and including that record, has the
        new text, and is the current one from now on: ``call_model`` answers it.

        Args:
            dest_name: of the fork; None takes that of the current one with a number, ``chat (2)``.

        Returns:
            The fork.

        Raises:
            ConfigError: *record_id* is no record of this context, or is reasoning; *text* cannot
                be stored; *dest_name* is taken. Nothing was changed.
        """
        check_id(record_id, "record")
        return self._branch(dest_name, record_id, check_text(text, "text of a record"))

    def regenerate(
        self, *, dest_name: str | None = None, **options: Unpack[CallArguments]
    ) -> Reply:
        """Have the last prompt answered anew; the reply that there is stays in its context.

        A fork that ends with the last live prompt becomes the current context, and gets the new
        reply, as from ``call_model``.

        Args:
            dest_name: as for ``edit``.

        Raises:
            ConfigError: no prompt is live, or as ``edit`` and ``call_model``.
            ModelError: the provider failed; the fork is the current context all the same.
        """
        return self.regenerate_streaming(dest_name=dest_name, **options).until_done()

    def regenerate_streaming(
        self, *, dest_name: str | None = None, **options: Unpack[CallArguments]
    ) -> Stream:
        """``regenerate``, giving the reply while it arrives; the fork is made at once."""
        # What is wrong with the options is to be said before there is a fork.
        self._complete(*draft(options, None, "auto"))
        self._branch(dest_name, self._last_prompt(self._current[0]))
        return self._stream(options)

    def delete_context(self, name: str, *, secure: bool = False) -> None:
        """Delete a context with everything in it.

        When it is the current one, the newest other one becomes current; ``"default"`` is made
        when there is none.

        Args:
            secure: write the SQLite file anew as well, so that no byte of it is left; see
                ``Store.wipe_deleted``.

        Raises:
            ContextNotFound: there is none of that name; nothing changes.
            ConfigError: *secure* is not to be had on PostgreSQL; nothing was deleted.
            StoreBusy: with *secure*: it is deleted, but another program reads, and its bytes are
                still there; ``Store.wipe_deleted`` takes them away.
        """
        doomed = conversations.known(self._store.database, name)
        try:
            self._store.delete(doomed.id, secure=secure)
        finally:
            self._leave(doomed)

    def _leave(self, doomed: Context) -> None:
        """Go elsewhere if the current context was *doomed* and is gone."""
        with self._store.database.read() as connection:
            gone = conversations.by_id(connection, doomed.id) is None
        if gone and doomed.id == self._current[0]:
            others = self._store.list_contexts()
            self.switch_context(others[0].name if others else "default")

    def export_context(self, name: str | None = None) -> dict[str, Any]:
        """A context as JSON-safe values, for ``import_context``."""
        return self._reader.export_context(name)

    def export_context_json(self, name: str | None = None) -> str:
        """``export_context`` as JSON text, indented by 2."""
        return self._reader.export_context_json(name)

    def import_context(
        self, export: dict[str, Any] | str | bytes, name: str | None = None
    ) -> Context:
        """A new context from what ``export_context`` gave; the current one stays.

        Args:
            name: None takes the exported name.

        Raises:
            ConfigError: it is no export, or the name is taken; nothing was written.
        """
        return transfer.import_(self._store.database, export, name)

    def export_messages(
        self, format: MessageFormat = "openai", name: str | None = None
    ) -> dict[str, Any]:
        """The live records of a context as arguments of a provider's SDK.

        Args:
            format: ``"openai"`` (Chat Completions) or ``"anthropic"``.

        Raises:
            ConfigError: *format* is not known.
        """
        return self._reader.export_messages(format, name)

    def export_markdown(self, name: str | None = None) -> str:
        """A context as a document in Markdown: all its records, those that are not sent marked."""
        return self._reader.export_markdown(name)

    def export_html(self, name: str | None = None) -> str:
        """A context as one HTML file, without scripts and without anything to fetch."""
        return self._reader.export_html(name)

    def import_messages(
        self, messages: dict[str, Any] | Sequence[dict[str, Any]], name: str | None = None
    ) -> Context:
        """A new context from messages of OpenAI's chat or Anthropic's API; the current one stays.

        Args:
            messages: the list, or a dict that has it under ``"messages"`` and may have a
                ``"system"``.
            name: None makes one.

        Raises:
            ConfigError: something in a message is not known, which the error names by the
                message's index, or the name is taken; nothing was written.
        """
        return transfer.write_new(self._store.database, name, import_messages(messages))

    # -- tools ---------------------------------------------------------------------------

    def add_tool(self, tool: Tool | Callable[..., Any]) -> Tool:
        """Offer a tool from the next call on; one of the same name is replaced.

        Args:
            tool: a ``Tool``, or a typed function, of which one is made.

        Raises:
            ConfigError: it cannot be used as a tool, or is async.
        """
        made = check_tool(tool, allow_async=self._allows_async)
        tool_names.add(self._store.database, self._current[0], [made.name])
        self._tools = {**self._tools, made.name: made}
        return made

    def remove_tool(self, name: str) -> None:
        """Offer a tool no longer, and forget its name.

        Raises:
            ConfigError: there is no tool of that name.
        """
        check_text(name, "tool name")
        known = name in self._tools
        self._tools = {other: tool for other, tool in self._tools.items() if other != name}
        if not tool_names.remove(self._store.database, self._current[0], name) and not known:
            names = ", ".join(self.list_tools()) or "none"
            raise ConfigError(f"there is no tool {name!r} to remove; the tools are: {names}")

    def list_tools(self) -> list[str]:
        """Names of the context's tools, oldest first.

        They are kept in the database; those that this window was not given are not offered.
        """
        return self._reader.list_tools()

    def has_tool(self, name: str) -> bool:
        """Whether the context has a tool of that name."""
        return name in self.list_tools()

    # -- summaries and compaction --------------------------------------------------------

    def set_summarizer(self, model: Model | str | None) -> None:
        """Choose the model that writes summaries; None: the window's own, where one is asked for.

        Raises:
            ConfigError: it is no model.
        """
        made, owned = _model(model, "summarizer")
        if self._owns_summarizer and self._summarizer is not None:
            self._summarizer.close()
        self._summarizer, self._owns_summarizer = made, owned

    def set_summarizer_prompt(self, text: str) -> None:
        """Tell the summarizer what to do; ``Summarize(prompt=…)`` comes before it.

        Raises:
            ConfigError: the text is empty or cannot be sent.
        """
        self._summary_prompt = check_text(text, "summarizer prompt")

    def summarize_live_context(self) -> SummaryResult:
        """Have a summary written of all that is live but the newest, and change nothing yet.

        What it cost is counted, whether ``accept_summary`` follows or not.

        Raises:
            ConfigError: there is nothing to summarise, or no model that could.
            ModelError: the summarizer failed or wrote nothing of use; nothing was changed.
        """
        return self._asked(self._squeeze().summarize())

    def accept_summary(self, result: SummaryResult) -> Record:
        """Put a summary in the place of the records that it stands for, which leave the window.

        What was written since is kept.

        Raises:
            ConfigError: one of them has left since, or the summary is of another context; nothing
                was changed.
        """
        return self._squeeze().accept(result)

    def reject_summary(self, result: SummaryResult) -> None:
        """Let a summary go; nothing has to be undone.

        Raises:
            ConfigError: it is no ``SummaryResult``.
        """
        if not isinstance(result, SummaryResult):
            raise ConfigError(f"reject_summary takes a SummaryResult, not {result!r:.60}")

    def compact(self, *, dry_run: bool = False) -> CompactionResult:
        """Make room now, however full the window is, as its compaction says.

        Args:
            dry_run: say what would leave, what it would cost and what of the provider's prompt
                cache would be lost, and change nothing.

        Raises:
            ConfigError: what was chosen has left meanwhile; nothing was changed.
        """
        if not isinstance(dry_run, bool):
            raise ConfigError(f"dry_run must be True or False, not {dry_run!r}")
        squeeze = self._squeeze()
        return squeeze.dry_run() if dry_run else self._asked(squeeze.compact())

    def compactions(self) -> list[CompactionEvent]:
        """Each time that records have left this context's window to make room, oldest first."""
        return self._reader.compactions()

    # -- middleware and threading --------------------------------------------------------

    def add_middleware(self, middleware: Middleware | str) -> None:
        """Add hooks for the streams that begin from now on.

        Raises:
            ConfigError: it is no middleware, or has async hooks.
        """
        self._middleware.append(check_middleware(middleware, allow_async=self._allows_async))

    @property
    def server_side_threading(self) -> bool:
        """Whether calls go on from the provider's own copy of the conversation."""
        return self._reader.get_current_context().use_server_side_threading

    def set_server_side_threading(self, enabled: bool) -> None:
        """Switch that; a model that cannot do it is sent the full history all the same."""
        if not isinstance(enabled, bool):
            raise ConfigError(f"enabled must be True or False, not {enabled!r}")
        conversations.set_threading(self._store.database, self._current[0], enabled)

    # -- inside --------------------------------------------------------------------------

    def _branch(
        self,
        dest_name: str | None,
        at: int,
        text: str | None = None,
        source: tuple[str, str] | None = None,
    ) -> Context:
        """Make a fork the current context; of *source*, or of the one that was current."""
        place = source or self._current
        with self._store.database.read() as connection:
            context = conversations.by_id(connection, place[0])
        if context is None:
            raise ContextNotFound(f"context {place[1]!r} was deleted")
        made = copying.copy(self._store.database, context, dest_name, at, text)
        self._current = self._named(made)
        return made

    def _counted(self) -> tuple[Model, list[Record], CallOptions]:
        """What the next call would send, for the provider to count.

        Raises:
            ConfigError: there is no model.
        """
        plan, driving = draft({}, None, "auto")
        self._complete(plan, driving)
        return plan.model, self._reader.live_records(), plan.options

    @staticmethod
    def _known(model: Model, tokens: int | None) -> int:
        """*tokens*, if the provider has counted.

        Raises:
            ConfigError: it does not count.
        """
        if tokens is None:
            raise ConfigError(
                f"the provider of {model.name} has no way to count tokens; token_usage() tells "
                "about how many the next call will send"
            )
        return tokens

    def _estimated(self) -> int:
        """Tokens of the next call as they are estimated here."""
        if self._model is None:
            live = self._reader.live_records()
            return size_of(live)
        model, records, options = self._counted()
        try:
            return model.estimate(model.request(records, options)).tokens
        except ContextWindowError:
            return size_of(records)  # what no call could send

    def _last_prompt(self, context_id: str) -> int:
        with self._store.database.read() as connection:
            live = reading.live_records(connection, context_id)
        prompts = [record.id for record in live if record.source is RecordType.PROMPT]
        if not prompts:
            raise ConfigError("no prompt is live: there is nothing to answer anew")
        return prompts[-1]

    def _known_prompt(
        self, place: tuple[str, str], text: str, values: list[object], key: str | None
    ) -> Record | None:
        """The prompt of that *key*, if its attachments need not be read again.

        Raises:
            ConfigError: *text* or *key* cannot be stored.
        """
        check_text(text, "prompt", empty=bool(values))
        if key is None:
            return None
        check_text(key, "key")
        # What is delivered twice may be gone the second time.
        return writing.by_key(self._store.database, place[0], key) if values else None

    def _read_attachments(self, values: list[object]) -> list[Attachment]:
        if not values:
            return []
        untouchable = open_files()
        found = [read_attachment(one, untouchable=untouchable) for one in values]
        check_taken(self._model, found)
        return found

    def _write_prompt(
        self, place: tuple[str, str], text: str, attachments: list[Attachment], key: str | None
    ) -> Record:
        return writing.append(
            self._store.database,
            place[0],
            RecordType.PROMPT,
            text,
            key=key,
            attachments=attachments,
        )

    @staticmethod
    def _named(context: Context) -> tuple[str, str]:
        return context.id, context.name

    def _system_prompt(self) -> str | None:
        live = self._reader.live_records()
        found = [one.content for one in live if one.source is RecordType.SYSTEM_PROMPT]
        return found[-1] if found else None

    def _most_tokens(self) -> int:
        if self._max_tokens is not None:
            return self._max_tokens
        if self._model is None:
            return 0
        return catalog.context_limit(self._model.provider, self._model.name) or 0

    def _stream(
        self, options: CallArguments, resume: str | None = None, strategy: Strategy = "auto"
    ) -> Stream:
        plan, driving = draft(options, resume, strategy)
        self._complete(plan, driving)
        return Stream(plan, self._wire(plan, driving, self._current))

    def _complete(self, plan: TurnPlan, driving: Driving) -> None:
        """Give *plan* this window's model, hooks and tools.

        Raises:
            ConfigError: there is no model, or no tool of the name that shall be called.
        """
        if self._model is None:
            raise ConfigError(
                "this window has no model: pass model='openai:NAME' or a model object"
            )
        plan.model = self._model
        plan.hooks = bind(self._middleware)
        plan.room = self._room()
        prices = catalog.CallPrices(self._model, plan.options.extra.get("service_tier"))
        plan.price = prices
        plan.recorded = {**plan.recorded, **prices.written_down()}
        if self._tools and not driving.disable_tools:
            tools = plan.tools = self._tools
            choice = plan.options.tool_choice
            if choice is not None and choice not in (*_CHOICES, *tools):
                known = ", ".join((*_CHOICES, *tools))
                raise ConfigError(f"tool_choice {choice!r} names no tool; use one of: {known}")
            plan.options = replace(plan.options, tools=tuple(tools.values()))

    def _room(self) -> Room:
        """What the window holds, and what happens when it is full."""
        summarizer = self._summarizer or self._model
        chosen = self._compaction
        if chosen is None:
            chosen = default_compaction(summarizes=self._summarizer is not None)

        def look_up(room: Room) -> None:
            room.max_tokens = self._most_tokens()
            if summarizer is not None:
                found = catalog.context_limit(summarizer.provider, summarizer.name)
                room.summarizer_limit = found or 0

        return Room(
            self._max_tokens or 0, chosen, summarizer, prompt=self._summary_prompt, look_up=look_up
        )

    def _squeeze(self) -> Squeeze:
        room = self._room()
        room.complete()
        return Squeeze(self._store, self._current[0], room, self._model)

    @staticmethod
    def _asked(work: Generator[Ask, Reply, _T]) -> _T:
        """*work*, its questions asked and waited for."""
        step: Callable[[Any], Ask] = work.send
        answer: Any = None
        while True:
            try:
                ask = step(answer)
            except StopIteration as end:
                return end.value  # type: ignore[no-any-return]  # what the generator returns
            try:
                step, answer = work.send, Question(ask).answer()
            except ModelError as error:
                step, answer = work.throw, error

    def _wire(self, plan: TurnPlan, driving: Driving, context: tuple[str, str]) -> Wiring:
        return Wiring(
            self._store,
            self._store.ledger(context[0], self._interval),
            plan.model,
            plan.control,
            timeout=driving.timeout,
            deadline=driving.deadline,
            on_busy=driving.on_busy,
            context_name=context[1],
            reader=ContextReader(self._store, lambda: context, self._most_tokens),
            question=self._question,
        )


def draft(
    options: CallArguments, resume: str | None, strategy: Strategy
) -> tuple[TurnPlan, Driving]:
    """The plan of a turn, without the model and the hooks of a window.

    Args:
        resume: None for a new turn, else the turn to go on with, ``""`` for the newest.

    Raises:
        ConfigError: an option or *strategy* is wrong.
    """
    if strategy not in STRATEGIES:
        raise ConfigError(f"strategy must be one of {', '.join(STRATEGIES)}, not {strategy!r}")
    asked, driving = read_options(options)
    plan = TurnPlan(
        asked,
        str(uuid.uuid4()),
        resume=resume,
        strategy=strategy,
        max_resumes=driving.max_resumes,
        max_tool_rounds=driving.max_tool_rounds,
        recorded=driving.recorded,
        parse=driving.parse,
    )
    return plan, driving


def check_tool(tool: Tool | Callable[..., Any], *, allow_async: bool) -> Tool:
    """*tool* as a ``Tool`` that can be run.

    Raises:
        ConfigError: it cannot be used as a tool, or is async where none can run.
    """
    made = as_tool(tool)
    if made.is_async and not allow_async:
        raise ConfigError(f"tool {made.name!r} is async; use AsyncContextWindow for it")
    return made


def check_tools(tools: object, *, allow_async: bool) -> dict[str, Tool]:
    """*tools* by their names.

    Raises:
        ConfigError: it is no list, one of it is no tool, or two have one name.
    """
    if isinstance(tools, str) or not isinstance(tools, Iterable):
        raise ConfigError(f"tools must be a list of tools or functions, not {tools!r}")
    found: dict[str, Tool] = {}
    for one in tools:
        made = check_tool(one, allow_async=allow_async)
        if made.name in found:
            raise ConfigError(f"two tools have the name {made.name!r}; give one another name")
        found[made.name] = made
    return found


def _place(database: object) -> str | os.PathLike[str]:
    if isinstance(database, (str, os.PathLike)):
        return database
    raise ConfigError(f"database must be a path, a URL or a Store, not {database!r}")


def _check_compaction(compaction: object) -> Compaction | None:
    if compaction is None or isinstance(compaction, Compaction):
        return compaction
    if isinstance(compaction, type) and issubclass(compaction, Compaction):
        raise ConfigError(f"{compaction.__name__} is a class; pass {compaction.__name__}()")
    raise ConfigError(
        f"compaction must be such as DropToolOutputs() | Summarize(), not {compaction!r}"
    )


def _model(model: Model | str | None, what: str = "model") -> tuple[Model | None, bool]:
    """The model, and whether it was made here."""
    if model is None or isinstance(model, Model):
        return model, False
    if isinstance(model, str):
        return catalog.model_from_string(model), True
    raise ConfigError(f"{what} must be a Model or a str such as 'openai:NAME', not {model!r}")


def _limit(tokens: object) -> int | None:
    if tokens is None:
        return None
    if isinstance(tokens, bool) or not isinstance(tokens, int) or tokens < 1:
        raise ConfigError(f"max_tokens must be a whole number above 0, not {tokens!r}")
    return tokens


def _interval(seconds: object) -> float | None:
    if seconds is None:
        return None
    number = isinstance(seconds, (int, float)) and not isinstance(seconds, bool)
    if not number or not 0 <= seconds < math.inf:  # type: ignore[operator]  # it is a number
        raise ConfigError(f"checkpoint_interval must be 0 seconds or more, not {seconds!r}")
    return float(seconds)  # type: ignore[arg-type]
