"""SQL that is built by SQLAlchemy once and run by the driver.

SQLAlchemy's own ``execute`` costs 20 to 30 µs a statement, which is more than SQLite needs to
store a chunk; the text it compiles does not change from one call to the next.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable, Mapping
from operator import itemgetter
from typing import Any, Final, TypeAlias

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine.interfaces import Dialect

from contextwindow.errors import ConfigError
from contextwindow.store.connection import Connection, Cursor

Row: TypeAlias = tuple[Any, ...]
Insert: TypeAlias = "sqlite.Insert | postgresql.Insert"


class Statement:
    """One statement, compiled once per dialect.

    Values are bool, int, float, str or None and go to the driver as they are; rows come back as
    the driver's tuples (SQLite gives 0 and 1 for booleans).

    Args:
        build: a Core statement, or a function from ``"sqlite"`` or ``"postgresql"`` to one, for
            what the dialects write differently.  An ``IN`` over a list cannot be compiled once:
            it is refused when the statement first runs.
    """

    __slots__ = ("_build", "_compiled")

    def __init__(self, build: Callable[[str], sa.Executable] | sa.Executable) -> None:
        self._build = build
        self._compiled: dict[str, _Compiled] = {}

    def run(self, connection: Connection, /, **params: object) -> Cursor:
        """Executes it; ``rowcount`` of the cursor says how many rows were changed."""
        compiled = self._compiled.get(connection.dialect) or self._compile(connection.dialect)
        return connection.execute(compiled.sql, compiled.bind(params))

    def run_many(self, connection: Connection, rows: Iterable[Mapping[str, object]], /) -> None:
        """Executes it once for each of *rows*."""
        compiled = self._compiled.get(connection.dialect) or self._compile(connection.dialect)
        connection.executemany(compiled.sql, [compiled.bind(row) for row in rows])

    def one(self, connection: Connection, /, **params: object) -> Row | None:
        """The first row, or None when there is none."""
        compiled = self._compiled.get(connection.dialect) or self._compile(connection.dialect)
        try:
            return connection.execute(compiled.sql, compiled.bind(params)).fetchone()
        except sqlite3.OperationalError as error:
            rows = connection.undecoded(compiled.sql, compiled.bind(params), error)
            return rows[0] if rows else None

    def all(self, connection: Connection, /, **params: object) -> list[Row]:
        """All rows."""
        compiled = self._compiled.get(connection.dialect) or self._compile(connection.dialect)
        try:
            return connection.execute(compiled.sql, compiled.bind(params)).fetchall()
        except sqlite3.OperationalError as error:
            return connection.undecoded(compiled.sql, compiled.bind(params), error)

    def scalar(self, connection: Connection, /, **params: object) -> Any:
        """First column of the first row; None when there is no row."""
        row = self.one(connection, **params)
        return None if row is None else row[0]

    def sql(self, dialect: str) -> str:
        """The text that the driver gets."""
        return (self._compiled.get(dialect) or self._compile(dialect)).sql

    def _compile(self, dialect: str) -> _Compiled:
        build = self._build
        statement = build if isinstance(build, sa.Executable) else build(dialect)
        compiled = self._compiled[dialect] = _Compiled(statement, dialect)
        return compiled


def insert_ignore(dialect: str, table: sa.Table) -> Insert:
    """``INSERT`` into *table* that does nothing where a row of that key exists."""
    if dialect == "sqlite":
        return sqlite.insert(table).on_conflict_do_nothing()
    return postgresql.insert(table).on_conflict_do_nothing()


class _Compiled:
    """Text, and how a mapping becomes the tuple of its parameters."""

    __slots__ = ("bind", "sql")

    def __init__(self, statement: sa.Executable, dialect: str) -> None:
        compiled = statement.compile(dialect=_dialect(dialect))  # type: ignore[attr-defined]  # every Core statement has it
        if compiled.post_compile_params:
            raise ConfigError(f"cannot be compiled once, it has a list of values: {compiled}")
        names = list(compiled.positiontup or ())
        binds = {name: compiled.binds[name] for name in names}
        fixed = {name: bind.effective_value for name, bind in binds.items() if not bind.required}
        self.sql: str = str(compiled)
        self.bind = _binder(names, fixed)


def _binder(
    names: list[str], fixed: dict[str, object]
) -> Callable[[Mapping[str, object]], tuple[object, ...]]:
    if not names:
        return lambda params: ()
    if len(names) == 1:  # itemgetter of one name gives the bare value
        name = names[0]
        if fixed:
            return lambda params: (params.get(name, fixed[name]),)
        return lambda params: (params[name],)
    pick: Callable[[Mapping[str, object]], tuple[object, ...]] = itemgetter(*names)
    if fixed:
        return lambda params: pick({**fixed, **params})
    return pick


_DIALECTS: Final[dict[str, Dialect]] = {}


def _dialect(name: str) -> Dialect:
    """Made on first use: the PostgreSQL one loads psycopg's part of SQLAlchemy."""
    if name not in _DIALECTS:
        if name == "sqlite":
            _DIALECTS[name] = sqlite.dialect(paramstyle="qmark")
        else:
            from sqlalchemy.dialects.postgresql import psycopg

            _DIALECTS[name] = psycopg.dialect(paramstyle="format")  # type: ignore[no-untyped-call]  # SQLAlchemy's gap
    return _DIALECTS[name]
