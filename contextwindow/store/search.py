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

from contextwindow.errors import (
    ConfigError,
    RecordCorrupt,
    StoreBusy,
    StoreError,
    StoreFull,
    StoreReadOnly,
)
from contextwindow.records import SearchResult
from contextwindow.store.checks import check_flag, check_text, check_whole
from contextwindow.store.connection import Connection, Damaged
from contextwindow.store.engine import Database
from contextwindow.store.files import logger
from contextwindow.store.rows import RECORD_COLUMNS, to_record
from contextwindow.store.schema import contexts, records
from contextwindow.store.search_schema import (
    CREATE_INDEX,
    PUNCTUATION,
    SEARCHED,
    VECTOR,
    take_in,
)
from contextwindow.store.statement import Statement

_MOST_RESULTS: Final = 1_000
_MOST_CHARACTERS: Final = 10_000
_MOST_WORDS: Final = 100

# A word that more records have than this says little of any of them, and ranking by it costs more
# than the search: 16 ms for 16,000 records, 700 ms for 700,000, measured in a million.
_FREQUENT: Final = 4_000
# The newest matches, among which the best are chosen.
_CANDIDATES: Final = {"sqlite": 1_000, "postgresql": 100}
_RANKED_WORDS: Final = 4
# PostgreSQL indexes no word above 2 kB.
_LONGEST: Final = 500

# Scripts that put no spaces between words: an index of words does not know theirs.
_UNSPACED: Final = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u2e80-\u30ff\u3400-\u9fff\uac00-\ud7af\uf900-\ufaff"
    "\U00020000-\U0003ffff]"
)
_TOKEN: Final = re.compile(r"[^\W_]+")
# With the star of a beginning: ``word*`` on SQLite, ``word:*`` on PostgreSQL.
_RAW_TOKEN: Final = re.compile(r"([^\W_]+)(:?\*)?")
_WHOLE: Final = r"(?<![^\W_]){}(?![^\W_])"
_BEGINNING: Final = r"(?<![^\W_]){}[^\W_]*"
_BETWEEN: Final = r"[\W_]+"
_OPERATORS: Final = frozenset({"AND", "OR", "NOT", "NEAR", "content", "scope"})

_LOOKED_FOR: Final = 8
"""Words by which the piece of a text is found that is shown: each is tried at each letter."""

_AROUND: Final = 70
"""Characters of a snippet on each side of the first hit."""

_NEWEST: Final = 1_500
_SHORT: Final = 20_000
_APART: Final = str.maketrans(PUNCTUATION, " " * len(PUNCTUATION))
_queue = sa.table("search_queue", sa.column("record_id"))

_WAITING = Statement(
    sa.select(
        records.c.id,
        sa.func.substr(records.c.content, 1, SEARCHED["sqlite"]),
        sa.func.replace(records.c.context_id, "-", ""),
    )
    .join_from(_queue, records, records.c.id == _queue.c.record_id)
    .order_by(_queue.c.record_id)
)

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
        found = _RAW_TOKEN.findall(self.raw)
        return [word + "*" * bool(star) for word, star in found if word not in _OPERATORS]


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
    found = list(dict.fromkeys(asked.split()))
    if len(found) > _MOST_WORDS:
        raise ConfigError(f"the query has {len(found)} words; {_MOST_WORDS} are allowed")
    for word in found:
        indexed = _TOKEN.search(word) and not _UNSPACED.search(word) and len(word) < _LONGEST
        (words if indexed else parts).append(word)
    return Query(tuple(words), tuple(parts))


# -- SQLite ----------------------------------------------------------------------------------


def _catch_up(database: Database) -> None:
    """Bring what waits for it into the index, as far as the database takes writes now."""
    insert, forget = take_in()
    with suppress(StoreBusy, StoreFull, StoreReadOnly):
        while not database.read_only:
            with database.read() as connection:
                if not connection.execute("SELECT 1 FROM search_queue LIMIT 1").fetchone():
                    return
            with database.write(patient=False) as connection:
                connection.execute(insert)
                connection.execute(forget)


def _find_sqlite(
    connection: Connection, wanted: Query, limit: int, context_id: str | None
) -> list[int]:
    """Ids of the best matches: of those still waiting for the index, then of those in it."""
    found: list[int] = []
    waiting = [
        row for row in _WAITING.all(connection) if type(row) is not Damaged and type(row[1]) is str
    ]
    if waiting:
        with closing(sqlite3.connect(":memory:")) as aside:
            aside.execute(CREATE_INDEX.format(name="search_index", source=""))
            aside.executemany(
                "INSERT INTO search_index(rowid, content, scope) VALUES (?, ?, ?)", waiting
            )
            most = len(waiting)
            look = _Fts(aside.execute, wanted, context_id)
            found = look.best(most if wanted.parts else limit, most)
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
            cause = error if isinstance(error, sqlite3.Error) else error.__cause__
            # Its syntax is all that is plainly an error, and neither the disk's nor a lock's.
            wrong = getattr(cause, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_ERROR
            if not self._raw or not wrong:
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
        terms = tuple(word.translate(_APART) for word in wanted.words)
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
    sql = _ranked_sql(
        asked=asked,
        found=f"SELECT id, content FROM records, q WHERE {VECTOR} @@ asked{where}"
        " ORDER BY id DESC LIMIT %s",
    )
    try:
        rows = connection.execute(sql, (*terms, *params, most, limit)).fetchall()
    except StoreError as error:
        # Classes of PostgreSQL's errors: values and syntax.
        state = getattr(error.__cause__, "sqlstate", None) or ""
        if wanted.raw is None or state[:2] not in ("22", "42"):
            raise
        raise ConfigError(
            f"the raw query is not in the language of to_tsquery: {error}; leave raw=True away to "
            "look for it as it stands"
        ) from error
    return [row[0] for row in rows]


def _ranked_sql(asked: str, found: str) -> str:
    """PostgreSQL's query: *found* gives candidates, q is what is *asked*."""
    return (
        f"WITH q AS MATERIALIZED (SELECT {asked} AS asked), found AS MATERIALIZED ({found})"
        " SELECT id FROM found AS records, q"
        f" ORDER BY ts_rank({VECTOR}, asked, 1) DESC, id DESC LIMIT %s"
    )


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
    sql = _ranked_sql(
        asked=asked,
        # A text is tried for the letters of a word before it is taken apart.
        found=f"SELECT id, content FROM (SELECT id, content FROM records{where}"
        f" ORDER BY {order} LIMIT {_NEWEST}) AS records, q"
        f" WHERE octet_length(content) < {_SHORT} AND {likes}{parts} AND {VECTOR} @@ asked"
        " ORDER BY id DESC LIMIT %s",
    )
    patterns = [_like(text) for text in (*wanted.words, *wanted.parts)]
    terms = [word.translate(_APART) for word in wanted.words]
    rows = connection.execute(sql, (*terms, *params, *patterns, most, limit)).fetchall()
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
    first, pattern = _pattern(shown[:_LOOKED_FOR]), _pattern(shown)
    for number in ids:
        row = _FOUND.one(connection, record_id=number)
        if row is None:
            continue
        try:
            record = to_record(connection, row)
        except RecordCorrupt as error:
            logger.warning("left out of what a search found: %s", error)
            continue
        snippet, hits = excerpt(record.content, first, pattern)
        found.append(SearchResult(record, str(row[-1]), snippet, hits))
    return found


def _pattern(shown: Iterable[str]) -> re.Pattern[str]:
    """What is marked in a snippet."""
    ways = []
    for text in shown:
        tokens = [] if _UNSPACED.search(text) else _TOKEN.findall(_plain(text))
        if tokens:
            way = _BETWEEN.join(map(re.escape, tokens))
            ways.append(_BEGINNING.format(way) if text.endswith("*") else _WHOLE.format(way))
        else:
            ways.append(re.escape(_plain(text)))
    return re.compile("|".join(ways) or r"(?!)", re.IGNORECASE)


def excerpt(
    text: str, first: re.Pattern[str], pattern: re.Pattern[str]
) -> tuple[str, tuple[tuple[int, int], ...]]:
    """A piece of *text* around where *first* matches, and the places in it of *pattern*."""
    hit = first.search(text) or (None if text.isascii() else first.search(_plain(text)))
    middle, end = hit.span() if hit else (0, 0)
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
    return "".join(
        c if c.isascii() or _UNSPACED.match(c) else unicodedata.normalize("NFD", c)[:1]
        for c in text
    )
