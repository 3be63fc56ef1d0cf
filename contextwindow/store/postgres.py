"""PostgreSQL: pooled connections, and the schema made under an advisory lock."""

from __future__ import annotations

import os
import weakref
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import sqlalchemy as sa

from contextwindow.errors import (
    ConfigError,
    NotAContextDatabase,
    StoreError,
    StoreReadOnly,
)
from contextwindow.records import Migration
from contextwindow.store.connection import ENDED, Connection, Refusal
from contextwindow.store.failures import lost, translated
from contextwindow.store.location import Location
from contextwindow.store.opening import create_statements, known_revision
from contextwindow.store.schema import REVISION, metadata, view_statements

_POOL = 10
_MORE = 30
# Any number that nobody else uses: all who open a schema at once take this lock in turn.
_OPENING_LOCK = 0x636F_6E74

_READ = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY"
_WRITE = "BEGIN ISOLATION LEVEL READ COMMITTED"
# The commit is not waited for: a crash of the server may lose the last ones, whole.
_WRITE_FAST = f"{_WRITE}; SET LOCAL synchronous_commit TO off"


class PostgresDatabase:
    """The PostgreSQL side of `contextwindow.store.engine.Database`, which documents it."""

    def __init__(
        self, location: Location, *, synchronous: str, read_only: bool, busy_timeout: float
    ) -> None:
        self.location = location
        self._read_only = read_only
        self._busy_timeout = busy_timeout
        self._state: Refusal | None = None
        self._refusal = ENDED
        self._forked = False
        self._active: set[Connection] = set()
        self.connected = 0
        self.migration: Migration | None = None
        self._plain = _WRITE if synchronous == "full" else _WRITE_FAST
        self._boundary = _WRITE_FAST if synchronous == "normal" else _WRITE
        try:
            import psycopg
        except ImportError as error:
            raise ConfigError(
                f"{location.text} needs psycopg: pip install contextwindow[postgres]"
            ) from error
        self._error = psycopg.Error
        self._in_transaction = psycopg.pq.TransactionStatus.INTRANS
        self._engine = self._make_engine()
        try:
            self._open()
        except BaseException:
            self._engine.dispose()
            raise
        _opened.add(self)

    # -- what the store uses

    def write(self, boundary: bool, patient: bool = True) -> AbstractContextManager[Connection]:
        """`Database.write`."""
        if self._read_only:
            raise StoreReadOnly(f"{self.location.text}: was opened with read_only=True")
        return self._transaction(self._boundary if boundary else self._plain)

    def read(self) -> AbstractContextManager[Connection]:
        """`Database.read`."""
        return self._transaction(_READ)

    def now(self, connection: Connection) -> float:
        """`Database.now`."""
        sql = "SELECT extract(epoch FROM clock_timestamp())::float8"
        row = connection.execute(sql).fetchone()
        return float(row[0]) if row else 0.0

    @contextmanager
    def beside(self) -> Iterator[Any]:
        """`Database.beside`."""
        if self._state is not None:
            self._state.refuse()
        try:
            fairy = self._engine.raw_connection()
        except (self._error, sa.exc.SQLAlchemyError) as error:
            raise translated(error, self.location.text) from error
        raw: Any = fairy.dbapi_connection
        fairy.detach()
        try:
            yield raw
        finally:
            if not self._forked:
                raw.close()

    def backup(self, to_path: str) -> None:
        """`Database.backup`."""
        raise StoreError(f"{self.location.text}: copy a PostgreSQL database with pg_dump")

    def size(self) -> int:
        """`Database.size`."""
        with self.read() as connection:
            row = connection.execute("SELECT pg_database_size(current_database())").fetchone()
        return int(row[0]) if row else 0

    def close(self) -> None:
        """`Database.close`."""
        if self._state is None:
            self._refuse(f"{self.location.text}: the database is closed")
            self._engine.dispose()

    def after_fork(self) -> None:
        """In a child: the sockets are the parent's."""
        import ctypes

        self._forked = True
        if self._state is None:
            self._refuse(
                f"{self.location.text}: was opened before fork: open it again in the child"
            )
        for connection in self._active:
            connection.attach(self._refusal)
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(self._engine))

    # -- transactions

    @contextmanager
    def _transaction(self, begin: str) -> Iterator[Connection]:
        if self._state is not None:
            self._state.refuse()
        fairy, raw = self._begin(begin)
        connection = Connection("postgresql", self.location.text, self._error)
        connection.attach(raw)
        self._active.add(connection)
        try:
            yield connection
            self._commit(raw)
        except self._error as error:
            raise translated(error, self.location.text) from error
        finally:
            self._active.discard(connection)
            connection.attach(ENDED)
            self._give_back(fairy, raw)

    def _begin(self, begin: str) -> tuple[Any, Any]:
        """A connection of the pool with an open transaction.

        A server that was restarted leaves a pool of dead connections behind; nothing was sent on
        them, so trying the next one is safe.
        """
        for _ in range(_POOL + 1):
            fairy, error = self._try_begin(begin)
            if fairy is None or error is None or not lost(error):
                break
            fairy.invalidate()
        if error is not None:
            if fairy is not None:
                self._give_back(fairy, fairy.dbapi_connection)
            raise translated(error, self.location.text) from error
        return fairy, fairy.dbapi_connection

    def _try_begin(self, begin: str) -> tuple[Any, Exception | None]:
        fairy: Any = None
        try:
            fairy = self._engine.raw_connection()
            fairy.dbapi_connection.execute(begin)
        except (self._error, sa.exc.SQLAlchemyError) as error:
            return fairy, error
        return fairy, None

    def _commit(self, raw: Any) -> None:
        if self._forked:
            self._refusal.refuse()
        # psycopg would take the commit of a failed transaction for a rollback, in silence.
        if raw.info.transaction_status != self._in_transaction:
            raise StoreError(
                f"{self.location.text}: the transaction was rolled back by the server after an"
                " error inside it; nothing of it was stored"
            )
        try:
            raw.execute("COMMIT")
        except self._error as error:
            if lost(error):
                raise StoreError(
                    f"{self.location.text}: the connection was lost in a commit; whether the last"
                    " change was stored is not known: read it, then try again"
                ) from error
            raise translated(error, self.location.text) from error

    def _give_back(self, fairy: Any, raw: Any) -> None:
        if self._forked:
            return
        if raw.closed or self._state is not None:
            fairy.invalidate()
            return
        try:
            raw.rollback()
        except self._error:
            fairy.invalidate()
        else:
            fairy.close()

    def _refuse(self, message: str) -> None:
        self._state = self._refusal = Refusal(StoreError, message)

    # -- opening

    def _make_engine(self) -> sa.Engine:
        url = self.location.url
        assert url is not None  # noqa: S101  # `locate` gives one for this dialect
        try:
            engine = sa.create_engine(
                url,
                poolclass=sa.QueuePool,
                pool_size=_POOL,
                max_overflow=_MORE,
                pool_timeout=self._busy_timeout,
                pool_reset_on_return=None,  # `_give_back` does it
                connect_args=_connect_args(url),
            )
        except sa.exc.SQLAlchemyError as error:
            raise ConfigError(f"{self.location.text}: {error}") from error
        sa.event.listen(engine, "connect", self._prepare)
        return engine

    def _prepare(self, raw: Any, record: object) -> None:
        self.connected += 1
        # Transactions are begun with our own words, as on SQLite.
        raw.autocommit = True
        raw.execute(f"SET lock_timeout = {int(self._busy_timeout * 1000)}")

    def _open(self) -> None:
        try:
            with self._engine.connect() as connection:
                if self._read_only:
                    revision = self._revision(connection)
                else:
                    revision = self._bring_to_newest(connection)
        except (sa.exc.SQLAlchemyError, self._error) as error:
            raise translated(error, self.location.text) from error
        if revision != REVISION:
            raise StoreError(
                f"{self.location.text}: has "
                + (f"the older revision {revision}" if revision else "no contextwindow tables")
                + ": open it once without read_only, which migrates it, as `contextwindow migrate`"
                " does"
            )

    def _bring_to_newest(self, connection: sa.Connection) -> str:
        connection.begin()
        connection.exec_driver_sql(_WRITE)
        key = "hashtext(coalesce(current_schema(), ''))"
        connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_OPENING_LOCK}, {key})")
        revision = self._revision(connection)
        if not revision:
            for statement in create_statements(connection.dialect):
                # Not `exec_driver_sql` with parameters: the texts hold bare percent signs.
                connection.exec_driver_sql(statement)
        elif revision != REVISION:
            self._migrate(connection, revision)
        connection.commit()
        return REVISION

    def _migrate(self, connection: sa.Connection, revision: str) -> None:
        from contextwindow.store.migrating import migrate

        try:
            migrate(connection)
        except Exception as error:
            raise StoreError(
                f"{self.location.text}: could not be brought from revision {revision} to"
                f" {REVISION}, it is as it was: {translated(error, self.location.text)}"
            ) from error
        self.migration = Migration(from_revision=revision, to_revision=REVISION)

    def _revision(self, connection: sa.Connection) -> str:
        """Revision of the current schema; ``""`` where none of our tables is."""
        schema = connection.exec_driver_sql("SELECT current_schema()").scalar()
        if schema is None:
            raise StoreError(f"{self.location.text}: no schema of the search_path exists")
        found = connection.exec_driver_sql(
            "SELECT c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace"
            " WHERE n.nspname = current_schema() AND c.relkind IN ('r', 'p', 'v', 'm', 'f')"
        )
        names = set(found.scalars())
        if "alembic_version" in names:
            rows = connection.exec_driver_sql("SELECT version_num FROM alembic_version").scalars()
            return known_revision(names, rows, f"{self.location.text} (schema {schema})")
        ours = set(metadata.tables) | set(view_statements("postgresql"))
        if names & ours:
            raise NotAContextDatabase(
                f"{self.location.text}: schema {schema} has another program's"
                f" {', '.join(sorted(names & ours))}; use a schema or database of its own"
            )
        return ""


def _connect_args(url: sa.URL) -> dict[str, object]:
    """What the URL does not say itself; the client library would wait for minutes."""
    ours: dict[str, object] = {"connect_timeout": 10, "application_name": "contextwindow"}
    return {name: value for name, value in ours.items() if name not in url.query}


_opened: weakref.WeakSet[PostgresDatabase] = weakref.WeakSet()


def _after_fork() -> None:
    for database in list(_opened):
        database.after_fork()


os.register_at_fork(after_in_child=_after_fork)
