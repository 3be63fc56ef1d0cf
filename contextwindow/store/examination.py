"""Whether a database is sound: its pages, its counters, its texts; and mending what can be."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final, Literal

import sqlalchemy as sa

from contextwindow.errors import ContextNotFound, RecordCorrupt, StoreError
from contextwindow.records import Progress, RecordType, Turn, Usage
from contextwindow.store import attached, leases, reading, upkeep, wal
from contextwindow.store.connection import Connection, Damaged
from contextwindow.store.conversations import COUNTED
from contextwindow.store.engine import Database
from contextwindow.store.files import exposures
from contextwindow.store.rows import CALL_COLUMNS, measure, to_call, unfolded
from contextwindow.store.schema import (
    REVISION,
    calls,
    contexts,
    record_deltas,
    records,
    turns,
)
from contextwindow.store.spending import COUNTERS, Spent, changes
from contextwindow.store.statement import Statement
from contextwindow.store.values import checksum, matches, parse_time
from contextwindow.store.writing import lock

_bind = sa.bindparam

Kind = Literal["pages", "reference", "counter", "delta", "record", "index"]

_BATCH: Final = 500
_SOURCES: Final = frozenset(kind.value for kind in RecordType)
_CONTEXTS = Statement(sa.select(contexts.c.id, contexts.c.name).order_by(contexts.c.name))
_TOTAL = Statement(
    sa.select(
        sa.select(sa.func.count()).select_from(contexts).scalar_subquery(),
        sa.select(sa.func.count()).select_from(records).scalar_subquery(),
    )
)
_STORED = Statement(
    sa.select(*(contexts.c[name] for name in (*COUNTED, *COUNTERS))).where(
        contexts.c.id == _bind("context_id")
    )
)
_RECOUNTED = Statement(
    sa.select(*COUNTED.values()).where(records.c.context_id == _bind("context_id"))
)
_CALLS = Statement(
    sa.select(*CALL_COLUMNS)
    .join_from(turns, calls, calls.c.turn_id == turns.c.id)
    .where(turns.c.context_id == _bind("context_id"))
    .where(calls.c.input_tokens.is_not(None))
)
_SET_COUNTERS = Statement(
    sa.update(contexts)
    .where(contexts.c.id == _bind("context_id"))
    .values({name: _bind(name) for name in (*COUNTED, *COUNTERS)})
)

_STRAY = Statement(
    sa.select(
        record_deltas.c.record_id,
        records.c.context_id,
        records.c.partial_response_id,
        records.c.content,
        records.c.payload,
        records.c.checksum,
    )
    .join_from(record_deltas, records, records.c.id == record_deltas.c.record_id, isouter=True)
    .join(turns, turns.c.id == records.c.turn_id, isouter=True)
    .where(sa.func.coalesce(turns.c.state, "") != sa.literal_column("'running'"))
    .distinct()
    .order_by(record_deltas.c.record_id)
)
_FOLD = Statement(
    sa.update(records)
    .where(records.c.id == _bind("record_id"))
    .values(
        content=_bind("content"),
        checksum=_bind("checksum"),
        est_tokens=_bind("tokens"),
        uncounted=_bind("guess"),
    )
)
_FORGET = Statement(sa.delete(record_deltas).where(record_deltas.c.record_id == _bind("record_id")))

_IN_FLIGHT = Statement(
    sa.select(record_deltas.c.record_id)
    .join(records, records.c.id == record_deltas.c.record_id)
    .distinct()
    .order_by(record_deltas.c.record_id)
)

_SUMS = (
    records.c.id,
    records.c.content,
    records.c.payload,
    records.c.checksum,
    records.c.ts,
    records.c.source,
    records.c.turn_id,
    records.c.call_id,
    records.c.name,
)
_PAGE = Statement(
    sa.select(*_SUMS).where(records.c.id > _bind("after")).order_by(records.c.id).limit(_BATCH)
)
_IDS = Statement(
    sa.select(records.c.id)
    .where(records.c.id > _bind("after"))
    .order_by(records.c.id)
    .limit(_BATCH)
)
_ONE = Statement(sa.select(*_SUMS).where(records.c.id == _bind("record_id")))


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """One thing that is wrong with a database.

    Attributes:
        kind: ``"pages"`` (the file), ``"reference"`` (a row whose owner is missing),
            ``"counter"``, ``"delta"`` (text that belongs to no running turn), ``"record"`` (a
            text or attachment that does not match its checksum) or ``"index"`` (what is searched).
        text: what it is, for people.
        mended: whether it was put right.
        record_id: the record that it concerns, or None.
    """

    kind: Kind
    text: str
    mended: bool = False
    record_id: int | None = None


@dataclass(slots=True)
class Examination:
    """What ``Store.examine`` has found.

    Attributes:
        location: path or URL of the database, without a password.
        dialect: ``"sqlite"`` or ``"postgresql"``.
        revision: of the schema.
        sqlite_version: of the library, ``""`` on PostgreSQL.
        contexts, records: how many there are.
        settled: dead turns that were settled.
        dead: ids of dead turns that are left as they are.
        problems: what is wrong, or was.
        warnings: what may go wrong one day.
    """

    location: str
    dialect: str
    revision: str = REVISION
    sqlite_version: str = ""
    contexts: int = 0
    records: int = 0
    settled: list[Turn] = field(default_factory=list)
    dead: list[str] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    @property
    def sound(self) -> bool:
        """Whether nothing was wrong."""
        return not self.problems


def examine(database: Database, *, mend: bool, progress: Progress | None = None) -> Examination:
    """Look at everything in *database*; see ``Store.examine``."""
    found = Examination(database.location, database.dialect)
    if database.dialect == "sqlite":
        _look_at_pages(database, found)
    # Writing into a file whose pages contradict each other makes it worse.
    whole = not found.problems
    tell = partial(_tell, found, progress, _total(database) if progress else 0)
    for look in (
        _look_at_deltas,
        partial(_look_at_counters, tell=tell),
        partial(_look_at_records, tell=tell),
        _look_at_attachments,
        _look_at_turns,
        _look_at_index,
    ):
        try:
            look(database, found, mend and whole)
        except StoreError as error:
            found.problems.append(Problem(kind="pages", text=str(error)))
    return found


def _total(database: Database) -> int:
    """Contexts and records to be looked at; 0 where the file is too damaged to tell."""
    try:
        with database.read() as connection:
            row = _TOTAL.one(connection)
    except StoreError:
        return 0
    return 0 if row is None else int(row[0]) + int(row[1])


def _tell(found: Examination, progress: Progress | None, total: int) -> None:
    if progress is not None:
        done = found.contexts + found.records
        progress(done, max(done, total))


def has_reset_bug(version: tuple[int, ...]) -> bool:
    """Whether SQLite of *version* may damage a file when two connections reset its WAL at once.

    Mended in 3.51.3, and in 3.50.7 and 3.44.6 (sqlite.org/wal.html, read 2026-11).
    """
    if version >= (3, 51, 3):
        return False
    return not ((3, 50, 7) <= version < (3, 51) or (3, 44, 6) <= version < (3, 45))


def _look_at_pages(database: Database, found: Examination) -> None:
    found.sqlite_version = sqlite3.sqlite_version
    try:
        with database.read() as connection:
            mode = str(_first(connection, "PRAGMA journal_mode"))
            for (line,) in connection.execute("PRAGMA integrity_check").fetchall():
                if line != "ok":
                    found.problems.append(Problem(kind="pages", text=str(line)))
            for table, row, owner, _ in connection.execute("PRAGMA foreign_key_check").fetchall():
                text = f"row {row} of {table} belongs to a row of {owner} that is missing"
                found.problems.append(Problem(kind="reference", text=text))
    except StoreError as error:
        found.problems.append(Problem(kind="pages", text=str(error)))
        return
    if mode == "wal" and has_reset_bug(sqlite3.sqlite_version_info):
        found.warnings.append(
            f"SQLite {sqlite3.sqlite_version} has the WAL-reset bug: rarely, two connections that "
            "checkpoint at one time damage the file.  Here only writers checkpoint, so that it "
            "takes two writing processes; use SQLite 3.51.3 (3.50.7, 3.44.6) or later, or "
            "Store(..., journal_mode='delete')"
        )
    if database.path is not None:
        found.warnings += exposures(database.path)
    size = 0 if database.path is None else wal.size_of(database.path)
    if wal.is_large(size):
        found.warnings.append(
            f"the -wal has grown to {size >> 20} MB: a program that reads keeps a transaction "
            "open, or is never done reading; it shrinks when that ends"
        )


def _look_at_index(database: Database, found: Examination, mend: bool) -> None:
    """Hold the search index against the records; PostgreSQL keeps its own."""
    broken = any(problem.kind == "pages" for problem in found.problems)
    if database.dialect != "sqlite" or database.read_only or broken:
        return
    with database.read() as connection:
        if upkeep.is_unwiped(connection):
            found.warnings.append(
                "a secure deletion was interrupted: bytes of what was deleted may still be in the "
                "file; Store.wipe_deleted() takes them away"
            )
    with database.write() as connection:
        if upkeep.index_is_sound(connection):
            return
        if mend:
            upkeep.rebuild(connection)
    text = "the search index does not match the records"
    found.problems.append(Problem(kind="index", text=text, mended=mend))


def _look_at_turns(database: Database, found: Examination, mend: bool) -> None:
    """Find the dead turns that nobody has settled yet."""
    with database.read() as connection:
        now = database.now(connection)
        found.dead = [
            turn.id
            for turn in reading.turns_in(connection, "running")
            if leases.is_dead(connection, turn.context_id, now)
        ]


def _look_at_counters(
    database: Database, found: Examination, mend: bool, *, tell: Callable[[], object]
) -> None:
    wrong = []
    with database.read() as connection:
        for one in _CONTEXTS.all(connection):
            found.contexts += 1
            if _miscounted(connection, one[0]):
                wrong.append(one)
            tell()
    for context_id, name in wrong:
        if not mend:
            with database.read() as connection:
                told = _miscounted(connection, context_id)
        else:
            told = _recount(database, context_id)
        for what in told:
            text = f"context {name!r}: {what}"
            found.problems.append(Problem(kind="counter", text=text, mended=mend))


def _counted(connection: Connection, context_id: str) -> dict[str, int]:
    """The counters of a context as its rows have them."""
    row = _RECOUNTED.one(connection, context_id=context_id) or ()
    used = dict.fromkeys(COUNTERS, 0)
    for call in map(to_call, _CALLS.all(connection, context_id=context_id)):
        used = changes(used, Spent(call.usage or Usage(), call.cost).counters())
    return dict(zip(COUNTED, row, strict=True)) | used


def _miscounted(connection: Connection, context_id: str) -> list[str]:
    """What is wrong with the counters of a context."""
    stored = _STORED.one(connection, context_id=context_id)
    if stored is None:
        return []
    pairs = zip(stored, _counted(connection, context_id).items(), strict=True)
    return [f"{name} is {had}, counted {is_}" for had, (name, is_) in pairs if had != is_]


def _recount(database: Database, context_id: str) -> list[str]:
    """Set the counters of a context right; what was wrong with them."""
    try:
        with database.write(boundary=True) as connection:
            lock(connection, context_id)
            told = _miscounted(connection, context_id)
            figures = _counted(connection, context_id)
            _SET_COUNTERS.run(connection, context_id=context_id, **figures)
            return told
    except ContextNotFound:
        return []


def _look_at_deltas(database: Database, found: Examination, mend: bool) -> None:
    """Find text that was left beside its record by a turn that is over, or is damaged."""
    with database.read() as connection:
        stray = _STRAY.all(connection)
        damaged = {
            record_id
            for (record_id,) in _IN_FLIGHT.all(connection)
            if not _is_whole(connection, record_id)
        }
    for record_id in sorted(damaged):
        text = (
            f"text of record {record_id}, which was arriving when its turn ended, is damaged: take "
            f"the record out with set_live([{record_id}], False)"
        )
        found.problems.append(Problem(kind="record", text=text, record_id=record_id))
    for record_id, context_id, unfinished, content, payload, crc in stray:
        if record_id in damaged:
            continue
        if context_id is None:
            text = f"text of record {record_id}, which is missing"
            found.problems.append(Problem(kind="delta", text=text, record_id=record_id))
            continue
        mended = False
        if mend and matches(content, payload, crc):
            mended = _fold(database, context_id, record_id, unfinished is None)
        text = f"text of record {record_id} was never folded into it"
        found.problems.append(Problem(kind="delta", text=text, mended=mended, record_id=record_id))


def _is_whole(connection: Connection, record_id: int) -> bool:
    """Whether what is not folded into a record yet can be read."""
    try:
        unfolded(connection, record_id)
    except RecordCorrupt:
        return False
    return True


def _fold(database: Database, context_id: str, record_id: int, whole: bool) -> bool:
    """Fold the text that lies beside a record into it; whether that could be done."""
    try:
        with database.write(boundary=True) as connection:
            lock(connection, context_id)
            row = _ONE.one(connection, record_id=record_id)
            text = unfolded(connection, record_id)
            if row is None:
                return False
            if whole and text not in row[1]:
                # Nobody was ever shown it as a part of the record, and it may not be one.
                return False
            if not whole:
                content = row[1] + text
                size, guess = measure(content)
                crc = checksum(content, row[2])
                _FOLD.run(
                    connection,
                    record_id=record_id,
                    content=content,
                    checksum=crc,
                    tokens=size,
                    guess=guess,
                )
            _FORGET.run(connection, record_id=record_id)
            figures = _counted(connection, context_id)
            _SET_COUNTERS.run(connection, context_id=context_id, **figures)
            return True
    except ContextNotFound:
        return False


def _look_at_records(
    database: Database, found: Examination, mend: bool, *, tell: Callable[[], object]
) -> None:
    """Find records whose text is not what was written."""
    after = 0
    while True:
        with database.read() as connection:
            ids = [row[0] for row in _IDS.all(connection, after=after)]
        if not ids:
            return
        for record_id, sound in _sums(database, after, ids):
            found.records += 1
            if not sound:
                text = (
                    f"record {record_id} does not match its checksum: restore it from a "
                    f"backup, or take it out with set_live([{record_id}], False)"
                )
                found.problems.append(Problem(kind="record", text=text, record_id=record_id))
        tell()
        after = ids[-1]


def _look_at_attachments(database: Database, found: Examination, mend: bool) -> None:
    """Find attachments that are not what was written, and bytes that no record names."""
    with database.read() as connection:
        having = attached.having(connection)
    for record_id in having:
        try:
            with database.read() as connection:
                attached.check(connection, record_id)
        except RecordCorrupt as error:
            problem = Problem(kind="record", text=str(error), record_id=record_id)
            found.problems.append(problem)
    with database.read() as connection:
        left = attached.unnamed(connection)
    if left and mend:
        with database.write() as connection:
            attached.forget(connection, left)
    for digest in left:
        text = f"attachment {digest} belongs to no record"
        found.problems.append(Problem(kind="reference", text=text, mended=mend))


def _sums(database: Database, after: int, ids: list[int]) -> Iterator[tuple[int, bool]]:
    """Which of the records *ids*, which follow *after*, are sound."""
    try:
        with database.read() as connection:
            rows = _PAGE.all(connection, after=after)
    except StoreError:
        # One of them cannot even be read: its text is not UTF-8 any more.
        for record_id in ids:
            yield record_id, _is_sound(database, record_id)
        return
    yield from ((row[0], _matches(row)) for row in rows)


def _is_sound(database: Database, record_id: int) -> bool:
    try:
        with database.read() as connection:
            row = _ONE.one(connection, record_id=record_id)
    except StoreError:
        return False
    return row is None or _matches(row)


def _matches(row: tuple[Any, ...]) -> bool:
    if type(row) is Damaged or bytes in map(type, row) or not matches(*row[1:4]):
        return False
    try:
        parse_time(row[4])
    except (AttributeError, StoreError, TypeError):
        return False
    return row[5] in _SOURCES


def _first(connection: Connection, sql: str) -> object:
    row = connection.execute(sql).fetchone()
    return None if row is None else row[0]
