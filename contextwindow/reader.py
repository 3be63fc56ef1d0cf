"""The read-only view of a window, and the reads that both windows share."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from contextwindow import messages, transcripts
from contextwindow.chunks import StreamChunk
from contextwindow.errors import ConfigError, ContextNotFound
from contextwindow.followers import follow
from contextwindow.messages import MessageFormat
from contextwindow.models import catalog
from contextwindow.records import (
    Call,
    CallSize,
    Context,
    ContextStats,
    Record,
    SearchResult,
    TokenUsage,
    Turn,
)
from contextwindow.store import (
    anchoring,
    compacting,
    conversations,
    explaining,
    paging,
    reading,
    search,
    transfer,
)
from contextwindow.store.checks import check_text
from contextwindow.store.compacting import CompactionEvent
from contextwindow.store.explaining import Explanation
from contextwindow.store.store import Store


class ContextReader:
    """Reads of a window's current context, safe to use from any thread while it is written to.

    It follows the window: after ``switch_context`` it reads the new one.

    Args:
        store: the database.
        current: gives the id and the name of the current context.
        limit: gives the tokens that the window may hold, or 0.
        estimate: gives the tokens of the next call as long as no provider has counted one; None
            takes what the live texts have.
    """

    def __init__(
        self,
        store: Store,
        current: Callable[[], tuple[str, str]],
        limit: Callable[[], int],
        estimate: Callable[[], int] | None = None,
    ) -> None:
        self._store = store
        self._current = current
        self._limit = limit
        self._estimate = estimate

    @property
    def current_context(self) -> str:
        """Name of the current context."""
        return self._current()[1]

    @property
    def max_tokens(self) -> int:
        """Tokens that the window may hold; 0 when that is not known."""
        return self._limit()

    def live_records(self) -> list[Record]:
        """What is sent to the model, in order.

        Raises:
            RecordCorrupt: a record was damaged on the disk; the error names it.
        """
        with self._store.database.read() as connection:
            return reading.live_records(connection, self._current()[0])

    def records(
        self,
        after: int | None = None,
        limit: int | None = None,
        *,
        before: int | None = None,
        last: int | None = None,
    ) -> list[Record]:
        """All records in order, live or not.

        Args:
            after: id of the record behind which to begin.
            limit: how many at the most, from the beginning.
            before: id of the record in front of which to end.
            last: how many at the most, from the end.

        Raises:
            ConfigError: *after* or *before* is no record of this context, *limit* or *last* is
                below 0, or both are given.
            RecordCorrupt: a record was damaged on the disk; the error names it.
        """
        with self._store.database.read() as connection:
            return reading.page(
                connection, self._current()[0], after, limit, before=before, last=last
            )

    def around(self, record_id: int, *, before: int = 1, after: int = 1) -> list[Record]:
        """A record and its neighbours in order, live or not; a damaged neighbour is left out.

        Args:
            before, after: how many neighbours at the most.

        Raises:
            ConfigError: *record_id* is no record of this context, or a number is below 0.
            RecordCorrupt: the record itself was damaged on the disk.
        """
        with self._store.database.read() as connection:
            return reading.around(connection, self._current()[0], record_id, before, after)

    def turns(self, *, last: int | None = None) -> list[Turn]:
        """The turns of the context, oldest first.

        Args:
            last: only so many, the newest by the clocks of who began them.

        Raises:
            ConfigError: *last* is below 0.
        """
        with self._store.database.read() as connection:
            if last is not None:
                return reading.newest_turns(connection, self._current()[0], last)
            return reading.turns_of(connection, self._current()[0])

    def turn(self, turn_id: str) -> Turn:
        """One turn.

        Raises:
            ConfigError: the context has no such turn.
        """
        with self._store.database.read() as connection:
            return reading.turn_of(connection, self._current()[0], _named_turn(turn_id))

    def interrupted(self) -> list[Turn]:
        """Turns that were cut off and can be resumed; a dead one is settled first.

        A turn that a later one has passed is not among them.
        """
        context_id = self._current()[0]
        self._store.settle(context_id)
        # What stands for calls beside the conversation passes no reply.
        turns = [one for one in self.turns() if not one.id.startswith(compacting.TURN_PREFIX)]
        return [turn for turn in turns[-1:] if turn.state == "interrupted"]

    def calls(
        self, turn_id: str | None = None, *, before: int | None = None, last: int | None = None
    ) -> list[Call]:
        """Requests made to providers, oldest first.

        Args:
            turn_id: only those of that turn.
            before: id of the call in front of which to end; with *last*.
            last: only so many, the newest.

        Raises:
            ConfigError: the context has no call *before*, *last* is below 0, *before* is given
                without it, or *turn_id* with it.
        """
        if turn_id is not None:
            check_turn_id(turn_id)
        if (turn_id is not None and last is not None) or (before is not None and last is None):
            raise ConfigError("calls takes turn_id, or last, or last and before")
        with self._store.database.read() as connection:
            if last is not None:
                return paging.newest_calls(connection, self._current()[0], last, before)
            return reading.calls_of(connection, self._current()[0], turn_id)

    def call(self, call_id: int) -> Call:
        """One request made to a provider.

        Raises:
            ConfigError: the context has no such call.
        """
        with self._store.database.read() as connection:
            return reading.call(connection, self._current()[0], call_id)

    def call_sizes(self, *, last: int = 100) -> list[CallSize]:
        """How full the window was at each of the newest *last* calls, oldest first.

        Raises:
            ConfigError: *last* is below 0.
        """
        with self._store.database.read() as connection:
            found = paging.call_sizes(connection, self._current()[0], last)
        models = {(one.provider, one.model) for one in found}
        limits = {model: catalog.context_limit(*model) for model in models}
        return [replace(one, max_tokens=limits[one.provider, one.model]) for one in found]

    def manifest(self, call_id: int, *, skip: int = 0, limit: int | None = None) -> list[Record]:
        """The records that a call sent, in its order.

        Args:
            skip: leave out so many of the first.
            limit: how many at the most.

        Raises:
            ConfigError: the context has no such call, or *skip* or *limit* is below 0.
        """
        with self._store.database.read() as connection:
            return reading.manifest(connection, self._current()[0], call_id, skip, limit)

    def explain(self, call_id: int) -> list[Explanation]:
        """Why each record was part of a call or not; see ``ContextWindow.explain``."""
        with self._store.database.read() as connection:
            return explaining.explain(connection, self._current()[0], call_id)

    def compactions(self) -> list[CompactionEvent]:
        """Each time that records have left the window to make room, oldest first."""
        with self._store.database.read() as connection:
            return compacting.events(connection, self._current()[0])

    def search(self, query: str, limit: int = 20, *, raw: bool = False) -> list[SearchResult]:
        """Records of the context in which *query* occurs; see ``ContextWindow.search``."""
        return search.search(self._store.database, query, limit, self._current()[0], raw=raw)

    def follow(
        self, after: str | None = None, timeout: float | None = None
    ) -> Iterator[StreamChunk]:
        """The context's chunks as they are committed; see ``ContextWindow.follow``."""
        return follow(self._store, self._current()[0], after, timeout)

    def live_tokens(self) -> int:
        """Tokens of the live records, counted offline."""
        return reading.figures(self._store.database, self._current()[0])[0]

    def total_tokens(self) -> int:
        """Tokens that all calls of the context have used; kept in the database."""
        return reading.figures(self._store.database, self._current()[0])[1]

    def token_usage(self) -> TokenUsage:
        """Live and total tokens against what the model takes, and what the next call will send.

        The provider's own count of the last call anchors that figure; what has come since is
        estimated.
        """
        context_id = self._current()[0]
        live, total = reading.figures(self._store.database, context_id)
        with self._store.database.read() as connection:
            anchored = anchoring.anchored(connection, context_id)
        if anchored is None:
            anchored = 0, live if self._estimate is None else self._estimate()
        exact, estimated = anchored
        most = self._limit()
        return TokenUsage(
            live=live,
            total=total,
            max=most,
            percent=live / most if most else 0.0,
            exact=exact,
            estimated=estimated,
        )

    def list_contexts(self) -> list[Context]:
        """Every context of the database, newest first."""
        return self._store.list_contexts()

    def get_context(self, name: str) -> Context:
        """The context called *name*.

        Raises:
            ContextNotFound: there is none; nothing is created.
        """
        return conversations.known(self._store.database, name)

    def get_current_context(self) -> Context:
        """The current context as the database has it.

        Raises:
            ContextNotFound: it was deleted.
        """
        context_id, name = self._current()
        with self._store.database.read() as connection:
            context = conversations.by_id(connection, context_id)
        if context is None:
            raise ContextNotFound(f"context {name!r} was deleted")
        return context

    def context_stats(self, name: str | None = None) -> ContextStats:
        """Figures of the context *name*, or of the current one.

        Raises:
            ContextNotFound: there is none of that name.
        """
        chosen = self._current()[1] if name is None else check_text(name, "context name")
        with self._store.database.read() as connection:
            stats, guessed = conversations.stats(connection, chosen)
        if guessed:
            live, _ = reading.figures(self._store.database, stats.context_id)
            stats = replace(stats, live_tokens=live)
        return stats

    def export_context(self, name: str | None = None) -> dict[str, Any]:
        """A context as JSON-safe values, for ``import_context``.

        Raises:
            ContextNotFound: there is none of that name.
        """
        context = self._chosen(name)
        with self._store.database.read() as connection:
            return transfer.export(connection, context)

    def export_context_json(self, name: str | None = None) -> str:
        """``export_context`` as JSON text, indented by 2."""
        return json.dumps(self.export_context(name), indent=2)

    def export_messages(
        self, format: MessageFormat = "openai", name: str | None = None
    ) -> dict[str, Any]:
        """The live records of a context as arguments of a provider's SDK.

        Args:
            format: ``"openai"`` (Chat Completions) or ``"anthropic"``.
            name: None takes the current context.

        Returns:
            ``{"messages": […]}``, and with ``"anthropic"`` a ``"system"`` where there is one.

        Raises:
            ConfigError: *format* is not known.
            ContextNotFound: there is no context of that name.
        """
        context = self._chosen(name)
        with self._store.database.read() as connection:
            live = reading.live_records(connection, context.id)
        return messages.export_messages(live, format)

    def export_markdown(self, name: str | None = None) -> str:
        """A context as a document in Markdown: all its records, those that are not sent marked.

        What somebody wrote is quoted, so that no text passes for a heading of the transcript.

        Args:
            name: None takes the current context.

        Raises:
            ContextNotFound: there is no context of that name.
        """
        return transcripts.to_markdown(*self._whole(name))

    def export_html(self, name: str | None = None) -> str:
        """A context as one HTML file, without scripts and without anything to fetch.

        Args:
            name: None takes the current context.

        Raises:
            ContextNotFound: there is no context of that name.
        """
        return transcripts.to_html(*self._whole(name))

    def list_tools(self) -> list[str]:
        """Names of the tools that are stored with the context."""
        with self._store.database.read() as connection:
            return conversations.tools(connection, self._current()[0])

    def _whole(self, name: str | None) -> tuple[Context, list[Record]]:
        """A context and all its records."""
        context = self._chosen(name)
        with self._store.database.read() as connection:
            return context, reading.page(connection, context.id, None, None)

    def _chosen(self, name: str | None) -> Context:
        """The context called *name*, or the current one."""
        chosen = self._current()[1] if name is None else name
        return conversations.known(self._store.database, chosen)


def _named_turn(turn_id: object) -> str:
    if turn_id is None:
        raise ConfigError("turn_id must be the id of a turn, not None")
    return check_turn_id(turn_id)


def check_turn_id(turn_id: object) -> str:
    """*turn_id* for the store: ``""`` stands for the newest.

    Raises:
        ConfigError: it is neither None nor a non-empty str.
    """
    if turn_id is None:
        return ""
    if not isinstance(turn_id, str) or not turn_id:
        raise ConfigError(f"turn_id must be the id of a turn, not {turn_id!r}")
    return turn_id
