"""The SQLite file of somebody else's log: opened for reading alone, and trusted with nothing.

A few of its bytes can be made to mean much (one text that is named by a thousand rows), and an
honest log does so too, of a text that was sent with many prompts: the caller bounds the sum.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from typing import Any, Final
from urllib.parse import quote

from contextwindow.errors import ConfigError
from contextwindow.models.sse import mended

_LONGEST: Final = 200_000_000
"""Bytes of one value."""


class LlmFile:
    """The tables of a log.

    Args:
        max_bytes: characters of text and bytes of attachments that may be read from it in all.

    Attributes:
        path: of the file.

    Raises:
        ConfigError: it cannot be read.
    """

    def __init__(self, path: str | os.PathLike[str], max_bytes: int) -> None:
        self.path = _checked(path)
        self._most = self._room = max_bytes
        self._columns: dict[str, set[str]] = {}
        self._connection = self._open()
        try:
            self._columns = self._look()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close it."""
        self._connection.close()

    def spend(self, size: int) -> None:
        """Count *size* characters or bytes that were read.

        Raises:
            ConfigError: it is more than was allowed.
        """
        self._room -= size
        if self._room < 0:
            raise ConfigError(
                f"what it holds, with texts that many rows name, is more than {self._most:,} "
                "bytes; nothing was written: where you trust the log, pass a larger max_bytes="
            )

    def text(self, value: object) -> str:
        """A value of a column that holds text, counted."""
        found = string(value)
        self.spend(len(found))
        return found

    def has(self, wanted: dict[str, set[str]]) -> bool:
        """Whether there are these tables with these columns."""
        return all(columns <= self._columns.get(name, set()) for name, columns in wanted.items())

    def column(self, table: str, name: str) -> str:
        """The column for a query, or NULL where an older program has not made it."""
        return f'{table}."{name}"' if name in self._columns.get(table, ()) else "NULL"

    def one(
        self, table: str, columns: tuple[str, ...], key: str, value: object
    ) -> tuple[Any, ...] | None:
        """The row of *table* whose *key* is *value*, or None."""
        if not self.has({table: {key} - {"rowid"}}):
            return None
        chosen = ", ".join(self.column(table, one) for one in columns)
        # Names of tables and columns alone, which the callers write.
        sql = f"SELECT {chosen} FROM {table} WHERE {key} = ? LIMIT 1"  # noqa: S608
        return next(self.rows(sql, value), None)

    def rows(self, sql: str, *values: object) -> Iterator[tuple[Any, ...]]:
        """The rows of a query, one by one.

        Raises:
            ConfigError: the file is damaged.
        """
        try:
            # Not `yield from`, which closes the cursor of an abandoned query: too late, and loudly.
            for row in self._connection.execute(sql, values):  # noqa: UP028
                yield row
        except (sqlite3.Error, OverflowError) as error:
            raise self._failed(error) from error

    def _open(self) -> sqlite3.Connection:
        try:
            connection = sqlite3.connect(
                f"file:{quote(os.path.abspath(self.path))}?mode=ro",
                uri=True,
                isolation_level=None,
                check_same_thread=False,
            )
        except sqlite3.Error as error:
            raise self._failed(error) from error
        connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, _LONGEST)
        # As what arrives from a model: what no database keeps is replaced.
        connection.text_factory = lambda raw: mended(raw.decode("utf-8", "replace"))
        return connection

    def _look(self) -> dict[str, set[str]]:
        """The columns of the tables; views and virtual tables may compute anything."""
        try:
            for pragma in ("query_only = 1", "trusted_schema = 0", "cell_size_check = 1"):
                self._connection.execute(f"PRAGMA {pragma}")
            # All that follows sees one state.
            self._connection.execute("BEGIN")
        except sqlite3.Error as error:
            raise self._failed(error) from error
        names = self.rows(
            "SELECT name FROM sqlite_master WHERE type = 'table' AND sql NOT LIKE 'create virtual%'"
        )
        found: dict[str, set[str]] = {}
        for name in [string(name) for (name,) in names]:
            columns = self.rows("SELECT name, hidden FROM pragma_table_xinfo(?)", name)
            found[name] = {string(column) for column, hidden in columns if not hidden}
        return found

    def _failed(self, error: Exception) -> ConfigError:
        return ConfigError(f"{self.path} cannot be read as a log of llm: {error}")


def string(value: object) -> str:
    """A value of a column that holds text."""
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    raise ConfigError(f"a column of the log holds {type(value).__name__} where text belongs")


def _checked(path: object) -> str:
    try:
        text = os.fsdecode(path)  # type: ignore[arg-type]  # what is no path is the caller's error
        if not os.path.isfile(text):
            raise ConfigError(f"there is no file {text!r:.120}")
    except (TypeError, ValueError) as error:
        raise ConfigError(f"path must be the path of a log of llm, not {path!r:.60}") from error
    return text
