"""Finding records by the words in them, in one context or in all of a database."""

from __future__ import annotations

import re
import sqlite3
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from typing import Any, Final

import sqlalchemy as sa

from contextwindow.errors import ConfigError, RecordCorrupt, StoreBusy, StoreError
from contextwindow.records import SearchResult
from contextwindow.store.checks import check_flag, check_text, check_whole
from contextwindow.store.connection import Connection
from contextwindow.store.engine import Database
from contextwindow.store.files import logger
from contextwindow.store.rows import RECORD_COLUMNS, to_record
from contextwindow.store.schema import contexts, records
from contextwindow.store.search_schema import CREATE_INDEX, SEARCHED, VECTOR, take_in
from contextwindow.store.statement import Statement

_MOST_RESULTS: Final = 1_000
_MOST_CHARACTERS: Final = 10_000

# A word that more records have than this says little of any of them, and ranking by it costs more
# than the search: 16 ms for 16,000 records, 700 ms for 700,000, measured in a million.
_FREQUENT: Final = 4_000
# The newest matches, among which the best are chosen.
_CANDIDATES: Final = {"sqlite": 1_000, "postgresql": 100}
_RANKED_WORDS: Final = 4
# PostgreSQL indexes no word above 2 kB.
_LONGEST: Final = 500
_TAKEN_IN: Final = 1_000

# Scripts that put no spaces between words: an index of words does not know theirs.
_UNSPACED: Final = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u2e80-\u30ff\u3400-\u9fff\uac00-\ud7af\uf900-\ufaff"
    "\U00020000-\U0003ffff]"
)
_TOKEN: Final = re.compile(r"[^\W_]+")
_WHOLE: Final = r"(?<![^\W_]){}(?![^\W_])"
_BETWEEN: Final = r"[\W_]+"
_OPERATORS: Final = frozenset({"AND", "OR", "NOT", "NEAR", "content", "scope"})

_AROUND: Final = 70
"""Characters of a snippet on each side of the first hit."""

_NEWEST: Final = 1_500
_SHORT: Final = 20_000
_RANKED: Final = (
    "WITH q AS MATERIALIZED (SELECT {asked} AS asked), found AS MATERIALIZED ({found})"
    " SELECT id FROM found, q ORDER BY ts_rank(to_tsvector('simple'::regconfig,"
    f" left(content, {SEARCHED['postgresql']})), asked, 1) DESC, id DESC LIMIT %s"
)
"""PostgreSQL's query; ``found`` gives candidates, ``q`` what is asked."""

_FOUND = Statement(
    sa.select(*RECORD_COLUMNS, contexts.c.name)
    .join_from(records, contexts, contexts.c.id == records.c.context_id)
    .where(records.c.id == sa.bindparam("record_id"))
)


@dataclass(frozen=True, slots=True)
class Query:
    """What is looked for.

    Attributes:
        words: texts that all must occur as whole words; none in a raw query.
        parts: texts that must occur anywhere: an index of words does not find them.
        raw: a query in the database's own language, or None.
    """

    words: tuple[str, ...]
    parts: tuple[str, ...]
    raw: str | None = None

    @property
    def shown(self) -> list[str]:
        """What a snippet shows."""
        if self.raw is None:
            return [*self.words, *self.parts]
        return [word for word in _TOKEN.findall(self.raw) if word not in _OPERATORS]


def search(
    database: Database, text: str, limit: int, context_id: str | None, *, raw: bool
) -> list[SearchResult]:
    """The records in which *text* occurs, best first; see ``ContextWindow.search``.

    Args:
        context_id: only of this context; None: of all.
    """
    check_whole(limit, "limit", least=1)
    wanted = parse(text, raw=check_flag(raw, "raw"))
    limit = min(limit, _MOST_RESULTS)
    if database.dialect == "sqlite":
        _catch_up(database)
    with database.read() as connection:
        if wanted.words or wanted.raw is not None:
            find = _find_sqlite if database.dialect == "sqlite" else _find_postgresql
            ids = find(connection, wanted, limit, context_id)
        else:
            ids = _find_parts(connection, wanted.parts, limit, context_id)
        return _results(connection, ids, wanted.shown)


def parse(text: object, *, raw: bool) -> Query:
    """*text* as a query: words of which each must occur, never operators unless it is *raw*.

    Raises:
        ConfigError: there is nothing to look for, or too much.
    """
    asked = check_text(text, "query")
    if len(asked) > _MOST_CHARACTERS:
        raise ConfigError(f"the query has {len(asked)} characters; {_MOST_CHARACTERS} are allowed")
    if not asked.strip():
        raise ConfigError("the query is empty; give a word to look for")
    if raw:
        return Query((), (), asked)
    words: list[str] = []
    parts: list[str] = []
    for word in dict.fromkeys(asked.split()):
        indexed = _TOKEN.search(word) and not _UNSPACED.search(word) and len(word) < _LONGEST
        (words if indexed else parts).append(word)
    return Query(tuple(words), tuple(parts))


# -- SQLite ----------------------------------------------------------------------------------


def _catch_up(database: Database) -> None:
    """Bring what waits for it into the index."""
    insert, forget = take_in("?")
    with suppress(StoreBusy):
        while not database.read_only:
            with database.read() as connection:
                if not connection.execute("SELECT 1 FROM search_queue LIMIT 1").fetchone():
                    return
            with database.write(patient=False) as connection:
                connection.execute(insert, (_TAKEN_IN,))
                connection.execute(forget, (_TAKEN_IN,))


def _find_sqlite(
    connection: Connection, wanted: Query, limit: int, context_id: str | None
) -> list[int]:
    """Ids of the best matches: of those still waiting for the index, then of those in it."""
    found: list[int] = []
    waiting = connection.execute(
        "SELECT r.id, substr(r.content, 1, ?), replace(r.context_id, '-', '') FROM search_queue q"
        " JOIN records r ON r.id = q.record_id ORDER BY q.record_id",
        (SEARCHED["sqlite"],),
    ).fetchall()
    if waiting:
        with closing(sqlite3.connect(":memory:")) as aside:
            aside.execute(CREATE_INDEX.format(name="search_index", source=""))
            aside.executemany(
                "INSERT INTO search_index(rowid, content, scope) VALUES (?, ?, ?)", waiting
            )
            found = _Fts(aside.execute, wanted, context_id).best(limit, len(waiting))
    # Each part of a text is looked for in what has its words, which must then be all of it.
    most = _CANDIDATES["sqlite"] if not wanted.parts else 1 << 40
    found += _Fts(connection.execute, wanted, context_id).best(
        limit if not wanted.parts else most, most
    )
    return _with_parts(connection, found, wanted.parts, context_id)[:limit]


class _Fts:
    """One query of an FTS5 table ``search_index``.

    Args:
        execute: runs a statement.
        context_id: what a match must be of, or None.
    """

    def __init__(self, execute: Callable[..., Any], wanted: Query, context_id: str | None) -> None:
        self._execute = execute
        self._words = [_quoted(word) for word in wanted.words]
        inner = " AND ".join(self._words) if wanted.raw is None else wanted.raw
        self._raw = wanted.raw is not None
        self._match = f"{{content}} : ({inner}\n)"
        self._scope = "" if context_id is None else context_id.replace("-", "")
        if self._scope:
            self._match += f" AND scope : {_quoted(self._scope)}"

    def best(self, limit: int, candidates: int) -> list[int]:
        """Ids of the *limit* best of the newest *candidates* matches, best first."""
        newest = self._ids(max(limit, candidates))
        if len(newest) < 2:
            return newest
        ranked = self._ranked(few=len(newest) < candidates)
        # What no rare word tells apart stays in order of time.
        return sorted(newest, key=lambda number: (ranked.get(number, 0.0), -number))[:limit]

    def _ranked(self, *, few: bool) -> dict[int, float]:
        """The score of each record that has the rarest words; lower is better (BM25)."""
        if self._raw:
            return self._scores(self._match) if few else {}
        counted = [(self._frequency(word), word) for word in self._words]
        rare = sorted(one for one in counted if one[0] <= _FREQUENT)[:_RANKED_WORDS]
        if not rare:
            return {}
        return self._scores("{content} : (" + " AND ".join(word for _, word in rare) + ")")

    def _scores(self, match: str) -> dict[int, float]:
        rows = self._execute(
            "SELECT rowid, bm25(search_index) FROM search_index WHERE search_index MATCH ?",
            (match,),
        )
        return dict(rows.fetchall())

    def _frequency(self, word: str) -> int:
        (count,) = self._execute(
            "SELECT count(*) FROM (SELECT 1 FROM search_index WHERE search_index MATCH ? LIMIT ?)",
            (f"{{content}} : {word}", _FREQUENT + 1),
        ).fetchone()
        return int(count)

    def _ids(self, most: int) -> list[int]:
        """Ids of the newest matches."""
        # A raw query may talk its way out of the context that the index was asked for.
        inside = " AND scope = ?" if self._raw and self._scope else ""
        params = (self._match, self._scope, most) if inside else (self._match, most)
        try:
            found = self._execute(
                f"SELECT rowid FROM search_index WHERE search_index MATCH ?{inside}"
                " ORDER BY rowid DESC LIMIT ?",
                params,
            )
            return [row[0] for row in found.fetchall()]
        except (StoreError, sqlite3.Error) as error:
            if not self._raw or ("fts5:" not in str(error) and "no such column" not in str(error)):
                raise
            raise ConfigError(
                f"the raw query is not in FTS5's language: {error}; leave raw=True away to look "
                "for it as it stands"
            ) from error


def _quoted(word: str) -> str:
    return '"' + word.replace('"', '""') + '"'


# -- PostgreSQL ------------------------------------------------------------------------------


def _find_postgresql(
    connection: Connection, wanted: Query, limit: int, context_id: str | None
) -> list[int]:
    """Ids of the best matches, best first."""
    if wanted.raw is None:
        asked = " && ".join(["phraseto_tsquery('simple', %s)"] * len(wanted.words))
        terms: tuple[str, ...] = wanted.words
    else:
        asked, terms = "to_tsquery('simple', %s)", (wanted.raw,)
    where, params = _in_context(context_id)
    for part in wanted.parts:
        where += " AND content LIKE %s"
        params.append(_like(part))
    most = max(limit, _CANDIDATES["postgresql"])
    if wanted.raw is None:
        found = _among_newest(connection, wanted, asked, most, limit, context_id)
        if len(found) == limit:
            return found
    # What is found is kept apart from ranking it: it is few, and ranking all would take seconds.
    sql = _RANKED.format(
        asked=asked,
        found=f"SELECT id, content FROM records, q WHERE {VECTOR} @@ asked{where}"
        " ORDER BY id DESC LIMIT %s",
    )
    try:
        rows = connection.execute(sql, (*terms, *params, most, limit)).fetchall()
    except StoreError as error:
        if wanted.raw is None or "tsquery" not in str(error):
            raise
        raise ConfigError(
            f"the raw query is not in the language of to_tsquery: {error}; leave raw=True away to "
            "look for it as it stands"
        ) from error
    return [row[0] for row in rows]


def _among_newest(
    connection: Connection,
    wanted: Query,
    asked: str,
    most: int,
    limit: int,
    context_id: str | None,
) -> list[int]:
    """Ids of matches among the newest records, where a common word is found without its index.

    The index gives every record of a word before the newest of them is known: 0.4 s for a word
    in 200,000.
    """
    where, order = "", "id DESC"
    params: list[object] = []
    if context_id is not None:
        where, order, params = " WHERE context_id = %s", "position DESC, seq DESC", [context_id]
    likes = " AND ".join(["content ILIKE %s"] * len(wanted.words))
    parts = " AND content LIKE %s" * len(wanted.parts)
    sql = _RANKED.format(
        asked=asked,
        # A text is tried for the letters of a word before it is taken apart.
        found=f"SELECT id, content FROM (SELECT id, content FROM records{where}"
        f" ORDER BY {order} LIMIT {_NEWEST}) AS records, q"
        f" WHERE octet_length(content) < {_SHORT} AND {likes}{parts} AND {VECTOR} @@ asked"
        " ORDER BY id DESC LIMIT %s",
    )
    patterns = [_like(text) for text in (*wanted.words, *wanted.parts)]
    rows = connection.execute(sql, (*wanted.words, *params, *patterns, most, limit)).fetchall()
    return [row[0] for row in rows]


# -- both ------------------------------------------------------------------------------------


def _in_context(context_id: str | None) -> tuple[str, list[object]]:
    return ("", []) if context_id is None else (" AND context_id = %s", [context_id])


def _like(part: str) -> str:
    return "%" + re.sub(r"([\\%_])", r"\\\1", part) + "%"


def _find_parts(
    connection: Connection, parts: Sequence[str], limit: int, context_id: str | None
) -> list[int]:
    """Ids of the newest records that hold all of *parts*; without an index, all are read."""
    where, params = _in_context(context_id)
    likes = " AND ".join([r"content LIKE %s ESCAPE '\'"] * len(parts))
    sql = f"SELECT id FROM records WHERE {likes}{where} ORDER BY id DESC LIMIT %s"
    if connection.dialect == "sqlite":
        sql = sql.replace("%s", "?")
    rows = connection.execute(sql, (*map(_like, parts), *params, limit)).fetchall()
    return [row[0] for row in rows]


def _with_parts(
    connection: Connection, ids: Iterable[int], parts: Sequence[str], context_id: str | None
) -> list[int]:
    """Those of *ids* that hold all of *parts* as well."""
    if not parts:
        return list(dict.fromkeys(ids))
    both = set(_find_parts(connection, parts, 1 << 40, context_id))
    return [number for number in dict.fromkeys(ids) if number in both]


def _results(
    connection: Connection, ids: Iterable[int], shown: Sequence[str]
) -> list[SearchResult]:
    found = []
    pattern = _pattern(shown)
    for number in ids:
        row = _FOUND.one(connection, record_id=number)
        if row is None:
            continue
        try:
            record = to_record(connection, row)
        except RecordCorrupt as error:
            logger.warning("left out of what a search found: %s", error)
            continue
        snippet, hits = excerpt(record.content, pattern)
        found.append(SearchResult(record, str(row[-1]), snippet, hits))
    return found


def _pattern(shown: Iterable[str]) -> re.Pattern[str]:
    """What is marked in a snippet."""
    ways = []
    for text in shown:
        tokens = [] if _UNSPACED.search(text) else _TOKEN.findall(_plain(text))
        if tokens:
            ways.append(_WHOLE.format(_BETWEEN.join(map(re.escape, tokens))))
        else:
            ways.append(re.escape(_plain(text)))
    return re.compile("|".join(ways) or r"(?!)", re.IGNORECASE)


def excerpt(text: str, pattern: re.Pattern[str]) -> tuple[str, tuple[tuple[int, int], ...]]:
    """A piece of *text* around the first place that *pattern* matches, and the places in it."""
    first = pattern.search(text) or (None if text.isascii() else pattern.search(_plain(text)))
    middle, end = (first.start(), first.end()) if first else (0, 0)
    begin, end = max(0, middle - _AROUND), min(len(text), max(end, middle + 1) + _AROUND)
    end = min(end, begin + 4 * _AROUND)
    piece = re.sub(r"\s", " ", text[begin:end])
    if begin and " " in piece[: _AROUND // 2]:
        piece = piece[piece.index(" ") + 1 :]
    if end < len(text) and " " in piece[-_AROUND // 2 :]:
        piece = piece[: piece.rindex(" ")]
    piece = ("…" if begin else "") + piece + ("…" if end < len(text) else "")
    hits = tuple(hit.span() for hit in pattern.finditer(_plain(piece)))
    return piece, hits


def _plain(text: str) -> str:
    """*text* without the marks of its letters, each at the place where it was."""
    if text.isascii():
        return text
    return "".join(c if c.isascii() else unicodedata.normalize("NFD", c)[:1] or c for c in text)


def index_is_sound(connection: Connection) -> bool:
    """Whether SQLite's index has what the records hold; to be asked in a write transaction."""
    try:
        connection.execute(
            "INSERT INTO search_index(search_index, rank) VALUES ('integrity-check', 1)"
        )
    except StoreError:
        return False
    return True


def rebuild(connection: Connection) -> None:
    """Make SQLite's index anew."""
    connection.execute("DELETE FROM search_queue")
    connection.execute("UPDATE search_state SET paused = 0")
    connection.execute("INSERT INTO search_index(search_index) VALUES ('rebuild')")


def clean(connection: Connection) -> None:
    """Take the words of deleted records out of SQLite's index, where they are only crossed out."""
    if connection.dialect == "sqlite":
        connection.execute("INSERT INTO search_index(search_index) VALUES ('optimize')")


class Paused:
    """``with`` over statements that write many records: they are queued at once, behind them.

    Args:
        connection: its write transaction, which is rolled back where this raises.
        context_id: of the records.
    """

    def __init__(self, connection: Connection, context_id: str) -> None:
        self._connection = connection
        self._context_id = context_id
        self._needed = connection.dialect == "sqlite"

    def __enter__(self) -> None:
        if self._needed:
            self._connection.execute("UPDATE search_state SET paused = 1")

    def __exit__(self, kind: object, *_: object) -> None:
        if not self._needed or kind is not None:
            return
        self._connection.execute(
            "INSERT INTO search_queue(record_id) SELECT id FROM records"
            " WHERE context_id = ? AND content <> ''"
            " AND id NOT IN (SELECT record_id FROM search_queue)",
            (self._context_id,),
        )
        self._connection.execute("UPDATE search_state SET paused = 0")
