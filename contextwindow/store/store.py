"""One database, shared by any number of windows."""

from __future__ import annotations

import math
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from contextwindow import tokens
from contextwindow.errors import (
    ConfigError,
    ContextNotFound,
    StoreBusy,
    StoreError,
    StoreReadOnly,
    TurnBusy,
)
from contextwindow.records import (
    Call,
    Context,
    ContextPage,
    ContextStats,
    Migration,
    Progress,
    SearchResult,
    Turn,
)
from contextwindow.store import (
    beginning,
    cancelling,
    conversations,
    leases,
    paging,
    reading,
    search,
    transfer,
)
from contextwindow.store.checkpoints import Checkpointer
from contextwindow.store.checks import check_flag, check_text, check_whole
from contextwindow.store.engine import Database
from contextwindow.store.examination import Examination, examine
from contextwindow.store.files import copies, logger
from contextwindow.store.leases import DIED
from contextwindow.store.ledger import TurnLedger
from contextwindow.store.location import locate
from contextwindow.store.notices import announce
from contextwindow.store.schema import REVISION
from contextwindow.store.spending import price_dead
from contextwindow.store.values import time_text
from contextwindow.store.wakeups import Wakeups
from contextwindow.store.writing import lock

_THREADS: Final = {"sqlite": 2, "postgresql": 10}


class Store:
    """One database of contexts: SQLite or PostgreSQL.

    Windows made with the same store share its connections, its checkpoints and its cost.  It is
    safe to use from many threads.

    Args:
        database: a path, ``":memory:"``, or an SQLAlchemy URL (``postgresql+psycopg://…``).  A
            missing SQLite file is created, readable by its owner alone.
        synchronous: what survives a power failure on SQLite: ``"boundaries"`` (prompts, tool
            calls and ends of turns), ``"full"`` (every commit) or ``"normal"`` (nothing newer
            than SQLite's last checkpoint).  A killed process loses nothing in any of them.
        journal_mode: ``"wal"``, or ``"delete"`` where WAL cannot be used.
        lease_seconds: how long a turn is held without a sign of life before others may take it.
        read_only: open without ever writing.
        busy_timeout: seconds to wait for another program that holds the database locked.
        max_database_bytes: a warning is logged when the database becomes larger, on SQLite again
            with each tenth more; nothing is ever refused or deleted for it.
        progress: called with how many pages of the copy are made, and how many there are, where
            an SQLite file has to be migrated.

    Raises:
        ConfigError: an argument is not one of these.
        StoreError: the database cannot be opened; its kinds say why.
    """

    def __init__(
        self,
        database: str | os.PathLike[str] = ":memory:",
        *,
        synchronous: str = "boundaries",
        journal_mode: str = "wal",
        lease_seconds: float = 30.0,
        read_only: bool = False,
        busy_timeout: float = 10.0,
        max_database_bytes: int | None = None,
        progress: Progress | None = None,
    ) -> None:
        if max_database_bytes is not None:
            check_whole(max_database_bytes, "max_database_bytes", least=1)
        _check_seconds(lease_seconds, "lease_seconds")
        _check_seconds(busy_timeout, "busy_timeout")
        self._database = Database(
            database,
            synchronous=synchronous,
            journal_mode=journal_mode,
            read_only=read_only,
            busy_timeout=busy_timeout,
            progress=progress,
        )
        if max_database_bytes is not None:
            self._database.limit(max_database_bytes)
        self._lease = lease_seconds
        self._checkpointer = Checkpointer(self._database, lease_seconds)
        self._wakeups = Wakeups(self._database, self.settle)
        self._executor: ThreadPoolExecutor | None = None
        self._executor_lock = threading.Lock()
        self._warmed = False

    def __repr__(self) -> str:
        return f"Store({self.location!r})"

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @staticmethod
    def file_of(database: str | os.PathLike[str]) -> str | None:
        """Absolute path of the SQLite file that *database* means, whether it exists or not.

        None in memory and on PostgreSQL.

        Raises:
            ConfigError: it is empty, no URL, or of a database that is not supported.
        """
        return locate(database).path

    @property
    def location(self) -> str:
        """Path or URL of the database, without a password."""
        return self._database.location

    @property
    def dialect(self) -> str:
        """``"sqlite"`` or ``"postgresql"``."""
        return self._database.dialect

    @property
    def revision(self) -> str:
        """Of the schema: the newest, which opening sees to."""
        return REVISION

    @property
    def migration(self) -> Migration | None:
        """What opening has done to a database of an older version; None where nothing was to do."""
        return self._database.migration

    @property
    def database(self) -> Database:
        """The connections; not part of the public interface."""
        return self._database

    @property
    def wakeups(self) -> Wakeups:
        """Who is woken by what is committed; not part of the public interface."""
        return self._wakeups

    @property
    def executor(self) -> ThreadPoolExecutor:
        """The threads of asynchronous windows; not part of the public interface."""
        with self._executor_lock:
            if self._executor is None:
                self._executor = ThreadPoolExecutor(
                    _THREADS[self.dialect], thread_name_prefix="contextwindow-store"
                )
            return self._executor

    @property
    def default_interval(self) -> float:
        """Seconds between checkpoints when a window does not say."""
        return 0.0 if self.dialect == "sqlite" else 0.1

    def list_contexts(self) -> list[Context]:
        """Every context, newest first."""
        with self._database.read() as connection:
            return conversations.all_contexts(connection)

    def context_stats(self, name: str | None = None) -> ContextStats | list[ContextStats]:
        """Figures of the context *name*, or of every context, newest first.

        Raises:
            ContextNotFound: there is no context of that name.
            ConfigError: no context can have that name.
        """
        if name is not None:
            check_text(name, "context name")
        with self._database.read() as connection:
            if name is None:
                return conversations.all_stats(connection)
            return conversations.stats(connection, name)[0]

    def page_contexts(
        self, *, after: str | None = None, limit: int = 50, name_contains: str | None = None
    ) -> ContextPage:
        """Some of the contexts, the last used first, with their figures.

        Args:
            after: the ``next`` of the page before; None begins with the context used last.
            limit: how many at the most.
            name_contains: only those whose name holds that text, capitals or not.

        Raises:
            ConfigError: *after* is no place, or *limit* is below 1.
        """
        with self._database.read() as connection:
            return paging.context_page(connection, after, limit, name_contains)

    def context_by_id(self, context_id: str) -> Context:
        """The context of that id.

        Raises:
            ContextNotFound: there is none; nothing is created.
        """
        check_text(context_id, "context_id")
        with self._database.read() as connection:
            context = conversations.by_id(connection, context_id)
        if context is None:
            raise ContextNotFound(f"{self.location} has no context of the id {context_id!r:.60}")
        return context

    def search(self, query: str, limit: int = 20, *, raw: bool = False) -> list[SearchResult]:
        """Records of all contexts in which every word of *query* occurs.

        ``ContextWindow.search`` tells what it means, and looks in one context.
        """
        return search.search(self._database, query, limit, None, raw=raw)

    def import_context(
        self, export: dict[str, Any] | str | bytes, name: str | None = None
    ) -> Context:
        """A new context from what ``export_context`` gave; see ``ContextWindow.import_context``."""
        return transfer.import_(self._database, export, name)

    def import_llm_logs(
        self,
        path: str | os.PathLike[str],
        *,
        max_bytes: int = 2_000_000_000,
        progress: Progress | None = None,
    ) -> list[Context]:
        """Take in the log of Simon Willison's ``llm``: a context for each conversation.

        One transaction writes them all; the log is only read.  Times are kept, token counts
        are not taken over.  The context's metadata names the conversation, by which one that was
        taken in before is known, and left as it is.  Files that the log names by their path are
        not opened: a note stands in the prompt.  A note also stands for a part of a kind that is
        not known here, and of a time that cannot be read the neighbour's; a warning is logged.

        Args:
            path: of ``logs.db``; ``llm logs path`` tells it.
            max_bytes: characters of text and bytes of attachments that may be read from it in
                all: they are in memory until they are written.  A text that was sent with many
                prompts counts for each, so that a small file can mean much.
            progress: called with how many conversations were read, and how many there are.

        Returns:
            The new contexts; a number stands behind a name that was taken.

        Raises:
            ConfigError: it is no such log, is damaged, or holds more; nothing was written.
        """
        return transfer.import_llm(self._database, path, max_bytes, progress)

    def turns(self, state: str | None = None) -> list[Turn]:
        """Turns of every context, oldest first; only those in *state* if it is given."""
        with self._database.read() as connection:
            return reading.turns_in(connection, state)

    def call(self, call_id: int) -> Call:
        """One request to a provider, of whichever context.

        Raises:
            ConfigError: there is none of that id.
        """
        with self._database.read() as connection:
            return reading.any_call(connection, call_id)

    def usage(self, by: str = "day") -> list[dict[str, Any]]:
        """Tokens and cost of all calls that have ended.

        Args:
            by: ``"day"`` (of UTC), ``"model"``, ``"context"``, or ``"total"``: one row.

        Returns:
            Rows in order, each a dict: ``day``, or ``provider`` and ``model``, or ``context``
            (its name) and ``context_id``; then ``calls``, the tokens by the names of ``Usage``,
            ``estimated_calls``, ``unpriced_calls`` (they used tokens whose price is not known)
            and ``cost``: a Decimal, US dollars of the others, or None where there are none.

        Raises:
            ConfigError: *by* is none of these.
        """
        with self._database.read() as connection:
            return reading.usage(connection, by)

    def recover(self) -> list[Turn]:
        """Settle every turn whose process is gone or whose lease has run out.

        Returns:
            The turns that were settled; ``resume_streaming(turn.id)`` goes on with one.
        """
        settled = [turn for turn in self.turns("running") if self.settle(turn.context_id)]
        found = {turn.id: turn for turn in self.turns("interrupted")}
        return [found[turn.id] for turn in settled if turn.id in found]

    def prune(
        self,
        older_than: timedelta | datetime,
        *,
        secure: bool = False,
        dry_run: bool = False,
        progress: Progress | None = None,
    ) -> list[Context]:
        """Delete the contexts in which nothing has happened for long, each as a whole.

        A context whose turn is running stays.

        Args:
            older_than: how long nothing has happened, or a moment (aware) since when.
            secure: as for ``delete_context``.
            dry_run: only tell which they are.
            progress: called with how many were deleted, and how many there are.

        Returns:
            The contexts that were deleted, or would be, the longest unused first.

        Raises:
            ConfigError: *older_than* is neither, or lies in the future; nothing was deleted.
        """
        moment = _moment(older_than)
        if secure and not dry_run:
            self._check_wipes()
        if not dry_run:
            self.recover()
        with self._database.read() as connection:
            old = conversations.idle_since(connection, moment)
        if dry_run:
            return old
        gone = []
        try:
            for done, context in enumerate(old, 1):
                with suppress(ContextNotFound):
                    if conversations.delete(
                        self._database, context.id, idle_since=moment, secure=secure
                    ):
                        self._wakeups.committed(context.id)
                        gone.append(context)
                if progress is not None:
                    progress(done, len(old))
        finally:
            if secure and gone:
                self._database.wipe()
        return gone

    def delete_context(self, name: str, *, secure: bool = False) -> None:
        """Delete a context with everything in it; see ``ContextWindow.delete_context``.

        Raises:
            ContextNotFound: there is none of that name; nothing changes.
            ConfigError: *secure* is not to be had on PostgreSQL; nothing was deleted.
            StoreBusy: with *secure*: it is deleted, but its bytes are still there.
        """
        check_text(name, "context name")
        self.delete(conversations.known(self._database, name).id, secure=secure)

    def delete(self, context_id: str, *, secure: bool = False) -> None:
        """Delete a context; not part of the public interface, as ``delete_context`` is."""
        if check_flag(secure, "secure"):
            self._check_wipes()
        conversations.delete(self._database, context_id, secure=secure)
        self._wakeups.committed(context_id)
        if secure:
            self._database.wipe()

    def wipe_deleted(self) -> None:
        """Write an SQLite file anew, so that nothing that was ever deleted is left in it.

        It takes as long as copying the database, and as much room beside it for that time, in
        which nobody can write: other threads of this process wait, other programs for as long as
        their own patience lasts.
        Copies elsewhere are not touched: backups, what a migration has put beside the file, and
        what the disk itself keeps of blocks that it has given up.

        Raises:
            ConfigError: this is PostgreSQL.
            StoreBusy: another program is reading; try again when it is done.
            StoreError: the database refused, such as ``StoreFull``.
        """
        self._check_wipes()
        self._database.wipe()

    def _check_wipes(self) -> None:
        self._database.check_wipes()
        if self._database.path is not None:
            for copy in copies(self._database.path):
                logger.warning("%s: deleted text may still be in the copy %s", self.location, copy)

    def database_bytes(self) -> int:
        """Size of the database: the file and its -wal, or all of the server's database."""
        return self._database.size()

    def examine(self, *, mend: bool = False, progress: Progress | None = None) -> Examination:
        """Look whether everything in the database is sound.

        Pages and references (SQLite's own checks), the counters of every context, text that no
        turn will fold any more, and the checksum of every record.  It reads all of it.

        Args:
            mend: settle dead turns, set counters right and fold text that was left over;
                otherwise nothing is changed.
            progress: called with how many contexts and records were looked at, and how many there
                are.

        Raises:
            StoreError: the database is closed, or was opened read-only and is to be mended.
        """
        if mend and self._database.read_only:
            raise StoreReadOnly(f"{self.location}: was opened with read_only=True")
        settled: list[Turn] = []
        if mend:
            try:
                settled = self.recover()
            except StoreError as error:
                if type(error) is not StoreError:
                    raise
                # Its pages are damaged, which is told below; writing would make it worse.
                mend = False
        found = examine(self._database, mend=mend, progress=progress)
        found.settled = settled
        return found

    def settle(self, context_id: str) -> bool:
        """Settle the context's running turn if it is dead; whether it was.

        It is not part of the public interface: ``recover`` settles the turns of all contexts.
        """
        with self._database.read() as connection:
            running = beginning.is_running(connection, context_id)
        if not running or self._database.read_only:
            return False
        try:
            with self._database.write() as connection:
                lock(connection, context_id)
                now = self._database.now(connection)
                settled = beginning.release(connection, context_id, now)
                announce(connection, [context_id] if settled else [])
        except (TurnBusy, ContextNotFound):
            return False
        if settled:
            self._wakeups.committed(context_id)
            price_dead(self._database, context_id, DIED)
        return settled

    def ask_to_stop(self, busy: TurnBusy) -> None:
        """Ask the turn that *busy* tells of to stop; not part of the public interface."""
        cancelling.ask(self._database, busy.turn_id, busy.owner)

    def _save_unsaved(self) -> None:
        """Settle the turns whose end the database had refused, if it takes them now."""
        for unsaved in list(leases.given_up.values()):
            if unsaved.location == self.location and unsaved.texts:
                try:
                    self.settle(unsaved.context_id)
                except StoreError as error:
                    logger.warning(
                        "%s: the end of a reply is still in memory alone, and lost with this"
                        " process unless the database is opened again in it: %s",
                        self.location,
                        error,
                    )
                    if isinstance(error, StoreBusy):
                        return  # each of the others would wait as long

    def ledger(self, context_id: str, interval: float | None) -> TurnLedger:
        """The writer of one turn; not part of the public interface."""
        return TurnLedger(
            self._database,
            context_id,
            interval=self.default_interval if interval is None else interval,
            lease=self._lease,
            checkpointer=self._checkpointer,
            tell=self._wakeups.committed,
        )

    def warm_up(self, *, download: bool) -> None:
        """Load, in the background, what counting the first reply will need.

        It is not part of the public interface.

        Args:
            download: fetch the encoding when it is not on this machine.
        """
        if not tokens.is_loaded() and not self._warmed:
            self._warmed = True
            work = tokens.download_encoding if download else tokens.load_encoding
            threading.Thread(target=work, name="contextwindow-encoding", daemon=True).start()

    def close(self) -> None:
        """Write what waits and close the connections; may be called twice."""
        self._checkpointer.close()
        self._save_unsaved()
        self._wakeups.close()
        if self._executor is not None:
            self._executor.shutdown(wait=True)
        self._database.close()


def _check_seconds(seconds: object, name: str) -> None:
    number = isinstance(seconds, (int, float)) and not isinstance(seconds, bool)
    if not number or not 0 < seconds < math.inf:  # type: ignore[operator]  # it is a number
        raise ConfigError(f"{name} must be a number above 0, not {seconds!r}")


def _moment(older_than: object) -> str:
    """As it is stored, for comparisons.

    Raises:
        ConfigError: it is no time span and no moment, or would delete what is used now.
    """
    now = datetime.now(UTC)
    try:
        if isinstance(older_than, timedelta):
            moment = now - older_than
        elif isinstance(older_than, datetime) and older_than.tzinfo is not None:
            moment = older_than.astimezone(UTC)
        else:
            raise ConfigError(
                "older_than must be a timedelta, such as timedelta(days=90), or a datetime with a"
                f" time zone, not {older_than!r:.60}"
            )
    except OverflowError:
        raise ConfigError(f"older_than lies before all times: {older_than!r}") from None
    if moment > now:
        raise ConfigError(f"older_than lies in the future: {older_than!r}")
    return time_text(int(moment.timestamp() * 1_000_000) * 1_000)
