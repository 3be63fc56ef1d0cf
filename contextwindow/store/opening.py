"""Which revision a SQLite file has, and how it is brought to the newest.

A file that is refused is left as it was: every byte, and no file beside it.  So the first look is
read-only, and where there is no -wal it is ``immutable``, since even a reader would make one.
"""

from __future__ import annotations

import itertools
import os
import re
import sqlite3
import time
from collections.abc import Iterable
from contextlib import closing
from functools import partial

import sqlalchemy as sa
from sqlalchemy.dialects import sqlite
from sqlalchemy.engine.interfaces import Dialect
from sqlalchemy.schema import CreateIndex, CreateTable

from contextwindow.errors import NotAContextDatabase, SchemaTooNew, StoreBusy, StoreError
from contextwindow.records import Migration, Progress
from contextwindow.store import wal
from contextwindow.store.failures import damaged, translated
from contextwindow.store.files import check_file, check_folder, check_writable, connect, publish
from contextwindow.store.location import Location
from contextwindow.store.schema import REVISION, metadata, view_statements
from contextwindow.store.search_schema import search_statements

GO = "0000"
"""Stands for a database of the Go library, which has no revision."""

_COPY_TIMEOUT = 10.0
# Pages that are copied between two words to whoever asks for progress: 8 MB of usual ones.
_COPIED_AT_ONCE = 2048

_REVISION = re.compile(r"\d{4}")
_GO_COLUMNS = {
    "contexts": (
        {"id", "name", "start_time"},
        {"use_server_side_threading", "last_response_id"},
    ),
    "records": (
        {"id", "context_id", "ts", "source", "content", "live", "est_tokens"},
        {"response_id", "streamed", "partial_response_id", "accumulated_tokens"},
    ),
    "context_tools": ({"id", "context_id", "tool_name", "created_at"}, set[str]()),
}


def open_file(
    location: Location, *, read_only: bool, busy_timeout: float, progress: Progress | None = None
) -> Migration | None:
    """Makes sure that the file holds the newest revision; creates it where there is none.

    Args:
        progress: told how many pages of the copy are made before a migration.

    Returns:
        The migration, where one was needed.

    Raises:
        StoreError: and its kinds; the message says what the file is and what to do.  The file is
            as it was.
    """
    path = str(location.path)
    check_folder(path, location.text)
    if not check_file(path, location.text, read_only=read_only):
        if read_only:
            raise StoreError(f"{location.text}: does not exist")
        check_writable(path, location.text)
        if _create(path, location.text):
            return None
        check_file(path, location.text, read_only=read_only)
    revision = _probe(path, location.text)
    if revision == REVISION:
        return None
    if read_only:
        raise StoreError(
            f"{location.text}: has the older revision {revision} and cannot be read as it is: open"
            " it once without read_only, which migrates it, as `contextwindow migrate` does"
        )
    return _migrate(path, location.text, busy_timeout, progress)


def create_statements(dialect: Dialect) -> list[str]:
    """All statements that make an empty database one of the newest revision."""
    tables = metadata.sorted_tables
    ddl: list[CreateTable | CreateIndex] = [CreateTable(table) for table in tables]
    for table in tables:
        ddl += [CreateIndex(index) for index in sorted(table.indexes, key=lambda i: str(i.name))]
    return [
        *(str(statement.compile(dialect=dialect)) for statement in ddl),
        *view_statements(dialect.name).values(),
        *search_statements(dialect.name),
        "CREATE TABLE alembic_version (version_num VARCHAR(32) NOT NULL,"
        " CONSTRAINT alembic_version_pkc PRIMARY KEY (version_num))",
        f"INSERT INTO alembic_version VALUES ('{REVISION}')",  # noqa: S608  # a constant
    ]


def known_revision(tables: Iterable[str], versions: Iterable[str], text: str) -> str:
    """The revision of a database that has a table ``alembic_version``.

    Args:
        tables: names of all tables.
        versions: rows of ``alembic_version``.
        text: of the database, for messages.

    Raises:
        SchemaTooNew: a later contextwindow made it.
        NotAContextDatabase: another program did.
    """
    found = list(versions)
    ours = {"contexts", "records", "context_tools"} <= set(tables)
    if not ours or len(found) != 1 or not _REVISION.fullmatch(found[0]):
        raise NotAContextDatabase(
            f"{text}: belongs to another program (its Alembic revision is"
            f" {', '.join(found) or 'missing'}); it was left as it is"
        )
    if found[0] > REVISION:
        raise SchemaTooNew(
            f"{text}: has revision {found[0]}, this contextwindow knows {REVISION}: upgrade"
            " contextwindow"
        )
    return found[0]


def fill(raw: sqlite3.Connection) -> None:
    """Makes the newest revision in an empty SQLite database."""
    raw.execute("BEGIN IMMEDIATE")
    for statement in create_statements(sqlite.dialect()):
        raw.execute(statement)
    raw.execute("COMMIT")


def _create(path: str, text: str) -> bool:
    try:
        return publish(path, _fill_file)
    except sqlite3.Error as error:
        raise translated(error, text) from error
    except OSError as error:
        raise StoreError(f"{text}: cannot be created: {error.strerror}") from error


def _fill_file(raw: sqlite3.Connection) -> None:
    # What fails half-way is thrown away, so no journal is needed on the disk.
    raw.execute("PRAGMA journal_mode=MEMORY")
    fill(raw)


def _probe(path: str, text: str) -> str:
    """Revision of the file, which is only looked at.

    Raises:
        NotAContextDatabase: no database, or of another program.
        SchemaTooNew: of a later contextwindow.
        StoreError: it is damaged.
    """
    if not os.path.exists(path + "-wal"):
        ways = ["mode=ro&immutable=1"] * 3
    elif os.path.exists(path + "-shm"):
        ways = ["mode=ro"]
    else:
        # A -wal alone: a reader would make the -shm.  A process killed in a checkpoint may have
        # left the file unreadable without its -wal, though; and behind a power failure in a
        # checkpoint only a writer may put it together again, as any program that opens it does.
        ways = ["mode=ro&immutable=1", "mode=ro", "mode=rw"]
    alone = False
    while True:
        try:
            with closing(connect(path, options=ways.pop(0))) as raw:
                return revision_of(raw, text)
        except (sqlite3.DatabaseError, UnicodeDecodeError) as error:
            # What sqlite3 cannot decode is a message that quotes a damaged schema.
            corrupt = sqlite3.SQLITE_CORRUPT if isinstance(error, UnicodeDecodeError) else 0
            code = getattr(error, "sqlite_errorcode", corrupt) & 0xFF
            if code == sqlite3.SQLITE_NOTADB:
                raise NotAContextDatabase(
                    f"{text}: is not an SQLite database; it was left as it is"
                ) from error
            recovers = code == sqlite3.SQLITE_READONLY and ways[:1] == ["mode=rw"]
            if not ways and wal.is_refused(error) and not alone:
                # No reader can make a -shm here; who writes does without.  The file alone has
                # the tables at least.
                alone, ways = True, ["mode=ro&immutable=1"]
                continue
            if code != sqlite3.SQLITE_CORRUPT and not recovers:
                raise translated(error, text) from error
            if not ways:
                raise damaged(text, error) from error
            # Without locks a page may be seen while another process writes it.
            time.sleep(0.02)


def revision_of(raw: sqlite3.Connection, text: str) -> str:
    """Revision of an SQLite database, `GO` for one of the Go library.

    Raises:
        NotAContextDatabase: it is neither.
        SchemaTooNew: a later contextwindow made it.
        sqlite3.Error: it cannot be read.
    """
    names = raw.execute(
        "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite!_%'"
        " ESCAPE '!'"
    )
    tables = {name for (name,) in names}
    if "alembic_version" in tables:
        versions = raw.execute("SELECT version_num FROM alembic_version").fetchall()
        return known_revision(tables, [str(row[0]) for row in versions], text)
    if tables == set(_GO_COLUMNS) and all(_is_go(raw, table) for table in tables):
        return GO
    if not tables:
        raise NotAContextDatabase(
            f"{text}: is an SQLite database without tables; delete it and one is made there"
        )
    raise NotAContextDatabase(
        f"{text}: belongs to another program (tables {', '.join(sorted(tables)[:5])}); it was"
        " left as it is"
    )


def _is_go(raw: sqlite3.Connection, table: str) -> bool:
    columns = {row[1] for row in raw.execute(f"PRAGMA table_info({table})")}
    needed, added = _GO_COLUMNS[table]
    return needed <= columns <= needed | added


def _migrate(
    path: str, text: str, busy_timeout: float, progress: Progress | None
) -> Migration | None:
    """Brings the file to the newest revision in one transaction, after a copy was made.

    Raises:
        StoreError: it could not be done; the file is as it was and the message names the copy.
    """
    raw = connect(path, busy_timeout=busy_timeout)
    raw.text_factory = _lenient
    engine = sa.create_engine("sqlite://", creator=lambda: raw, poolclass=sa.StaticPool)
    copy = ""
    try:
        with engine.connect() as connection:
            connection.begin()
            connection.exec_driver_sql("BEGIN IMMEDIATE")
            revision = revision_of(raw, text)
            if revision == REVISION:  # another process was faster
                return None
            # While the write lock is held nobody can change what is copied.
            copy = _free_name(
                f"{path}.backup-{revision}-{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}"
            )
            back_up(path, copy, text, progress)
            _run_migrations(connection)
            connection.commit()
            return Migration(from_revision=revision, to_revision=REVISION, copy=copy)
    except Exception as error:
        raise _failed(error, text, copy) from error
    finally:
        engine.dispose()
        raw.close()


def _free_name(path: str) -> str:
    """*path*, or it with a number: an attempt that was killed has left its copy behind."""
    names = (path if n == 1 else f"{path}-{n}" for n in itertools.count(1))
    return next(name for name in names if not os.path.lexists(name))


def _lenient(data: bytes) -> str:
    # Go stores any bytes as text.  What is not UTF-8 could never be read again here; the copy
    # that is made beforehand keeps it.
    return data.decode("utf-8", "replace")


def _run_migrations(connection: sa.Connection) -> None:
    from contextwindow.store.migrating import migrate

    migrate(connection)


def _failed(error: Exception, text: str, copy: str) -> StoreError:
    if isinstance(error, StoreError):
        return error
    kind = StoreError
    reason: object = error
    if isinstance(error, (sqlite3.Error, sa.exc.SQLAlchemyError)):
        reason = translated(error, text)
        kind = type(reason)
    where = f"; a copy was made at {copy}" if copy else ""
    return kind(
        f"{text}: could not be brought to revision {REVISION}, it is as it was{where}: {reason}"
    )


def back_up(path: str, to_path: str, text: str, progress: Progress | None = None) -> None:
    """Copies a database, live or not, with SQLite's own means.

    Args:
        path: absolute, of the database.
        to_path: absolute; must not exist.  Made 0600, and only when it is whole.
        text: of the database, for messages.
        progress: told how many pages are copied; then nobody else may write meanwhile, which
            would begin the copy anew.

    Raises:
        StoreError: *to_path* exists or cannot be written.
    """
    with closing(connect(path, options="mode=ro")) as source:
        back_up_from(source, to_path, text, progress)


def back_up_from(
    source: sqlite3.Connection, to_path: str, text: str, progress: Progress | None = None
) -> None:
    """As `back_up`, from an open connection."""
    try:
        made = publish(to_path, partial(_copy, source, progress))
    except sqlite3.Error as error:
        raise translated(error, f"{text} (copy to {to_path})") from error
    except OSError as error:
        raise StoreError(f"{text}: no copy at {to_path}: {error.strerror}") from error
    if not made:
        raise StoreError(f"{text}: no copy was made, {to_path} exists")


def _copy(
    source: sqlite3.Connection, progress: Progress | None, target: sqlite3.Connection
) -> None:
    give_up = time.monotonic() + _COPY_TIMEOUT

    def waiting(status: int, remaining: int, total: int) -> None:
        # sqlite3 itself would try for ever.
        if status in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED) and time.monotonic() > give_up:
            raise StoreBusy("another program holds the database locked; no copy was made")
        if progress is not None:
            progress(total - remaining, total)

    at_once = -1 if progress is None else _COPIED_AT_ONCE
    source.backup(target, pages=at_once, progress=waiting)
    # The copied header says WAL: a copy is one file, which opens in a read-only place too.
    target.execute("PRAGMA journal_mode=DELETE")
