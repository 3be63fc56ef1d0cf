"""One open transaction, as the store sees it."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final, NoReturn, Protocol

from contextwindow.errors import StoreError
from contextwindow.store.failures import translated


class Cursor(Protocol):
    """What sqlite3's and psycopg's cursors have in common."""

    @property
    def rowcount(self) -> int:
        """Rows that the statement changed."""

    def fetchone(self) -> tuple[Any, ...] | None:
        """The next row, or None after the last."""

    def fetchall(self) -> list[tuple[Any, ...]]:
        """The rows that are left."""

    def __iter__(self) -> Iterator[tuple[Any, ...]]: ...


_UNDECODABLE: Final = "Could not decode to UTF-8"
"""How sqlite3 begins to say so (CPython 3.11 to 3.14)."""


class Damaged(tuple[Any, ...]):
    """A row of SQLite that holds text which is not UTF-8; U+FFFD stands where it is not."""

    __slots__ = ()


class _Undecodable(str):
    __slots__ = ()


def _lenient(text: bytes) -> str:
    try:
        return text.decode()
    except UnicodeDecodeError:
        return _Undecodable(text, "utf-8", "replace")


class Connection:
    """Runs SQL on the driver's connection while its transaction is open.

    The thinnest thing that still translates errors, and that refuses to go on after the database
    has rolled the transaction back by itself: SQLite does on a full disk, and would then store
    each later statement on its own.

    Attributes:
        dialect: ``"sqlite"`` or ``"postgresql"``.
        location: of the database, for messages.
    """

    __slots__ = ("__weakref__", "_errors", "_raw", "dialect", "location")

    def __init__(self, dialect: str, location: str, errors: type[Exception]) -> None:
        self.dialect = dialect
        self.location = location
        self._errors = errors
        self._raw: Any = ENDED

    def execute(self, sql: str, params: Sequence[object] = ()) -> Cursor:
        """Runs one statement with the driver's own placeholders.

        Raises:
            StoreError: the database refused it, or the transaction is over.
        """
        try:
            return self._raw.execute(sql, params)  # type: ignore[no-any-return]  # either driver's
        except self._errors as error:
            raise self._failed(error) from error

    def executemany(self, sql: str, rows: Iterable[Sequence[object]]) -> None:
        """Runs one statement for each of *rows*.

        Raises:
            StoreError: as `execute`.
        """
        try:
            self._raw.cursor().executemany(sql, rows)
        except self._errors as error:
            raise self._failed(error) from error

    def undecoded(
        self, sql: str, params: Sequence[object], error: sqlite3.OperationalError
    ) -> list[tuple[Any, ...]]:
        """The rows of a query whose text is damaged; those that are, as `Damaged`.

        Raises:
            StoreError: *error*, if it is about anything else.
        """
        if _UNDECODABLE not in str(error) or not sql.startswith("SELECT"):
            raise self._failed(error) from error
        raw = self._raw
        usual, raw.text_factory = raw.text_factory, _lenient
        try:
            rows = self.execute(sql, params).fetchall()
        finally:
            raw.text_factory = usual
        return [Damaged(row) if _Undecodable in map(type, row) else row for row in rows]

    def attach(self, raw: Any) -> None:
        """Begins to run statements on *raw*; a `Refusal` makes each of them raise."""
        self._raw = raw

    def _failed(self, error: Exception) -> StoreError:
        # PostgreSQL refuses all that follows an error, and would take a COMMIT for a ROLLBACK.
        alive = self.dialect == "sqlite" and self._raw.in_transaction
        if not alive:
            self._raw = Refusal(
                StoreError,
                f"{self.location}: the transaction was rolled back by the database after an"
                f" error ({error}); nothing of it was stored",
            )
        return translated(error, self.location)


class Refusal:
    """Stands where a driver's connection was, and raises when it is used."""

    __slots__ = ("kind", "message")

    in_transaction = False

    def __init__(self, kind: type[StoreError], message: str) -> None:
        self.kind = kind
        self.message = message

    def refuse(self) -> NoReturn:
        """Raises; a new exception each time, since tracebacks grow on a shared one."""
        raise self.kind(self.message)

    def execute(self, sql: str, params: object = ()) -> NoReturn:
        """Raises."""
        self.refuse()

    def cursor(self) -> NoReturn:
        """Raises."""
        self.refuse()


ENDED = Refusal(StoreError, "the transaction has ended: its connection cannot be used any more")
