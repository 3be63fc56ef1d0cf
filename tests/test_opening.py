from __future__ import annotations

import hashlib
import logging
import multiprocessing
import os
import sqlite3
import subprocess
import sys
import textwrap
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from contextwindow.errors import (
    ConfigError,
    NotAContextDatabase,
    SchemaTooNew,
    StoreBusy,
    StoreError,
    StoreReadOnly,
)
from contextwindow.store.engine import Database

GO = """
CREATE TABLE contexts (id TEXT PRIMARY KEY, name TEXT NOT NULL, start_time DATETIME NOT NULL);
CREATE TABLE records (id INTEGER PRIMARY KEY AUTOINCREMENT, context_id TEXT NOT NULL,
    ts DATETIME NOT NULL, source INTEGER NOT NULL, content TEXT NOT NULL, live BOOLEAN NOT NULL,
    est_tokens INTEGER NOT NULL,
    FOREIGN KEY (context_id) REFERENCES contexts(id) ON DELETE CASCADE);
CREATE TABLE context_tools (id INTEGER PRIMARY KEY AUTOINCREMENT, context_id TEXT NOT NULL,
    tool_name TEXT NOT NULL, created_at DATETIME NOT NULL,
    FOREIGN KEY (context_id) REFERENCES contexts(id) ON DELETE CASCADE,
    UNIQUE(context_id, tool_name));
CREATE INDEX idx_context_live ON records(context_id, live);
CREATE INDEX idx_context_ts ON records(context_id, ts);
CREATE INDEX idx_context_tools_context ON context_tools(context_id);
INSERT INTO contexts VALUES ('c', 'bot', '2025-10-31 12:00:00 +0000 UTC');
"""


def everything(folder: Path) -> dict[str, object]:
    """What a refusal must not change: every name, and the bytes and mode behind it."""
    return {
        str(path): (path.lstat().st_mode, path.is_file() and digest(path))
        for path in folder.rglob("*")
    }


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def run_sql(path: Path, sql: str) -> None:
    with closing(sqlite3.connect(path, isolation_level=None)) as raw:
        raw.executescript(sql)


def ours(path: Path) -> Path:
    Database(path).close()
    return path


# -- what is refused


def no_database(path: Path) -> None:
    path.write_bytes(b"a letter to my aunt\n" * 100)


def short_file(path: Path) -> None:
    path.write_bytes(b"SQLi")


def empty_file(path: Path) -> None:
    path.touch()


def of_another_program(path: Path) -> None:
    run_sql(path, "CREATE TABLE songs (id INTEGER); INSERT INTO songs VALUES (1)")


def of_another_program_in_wal_mode(path: Path) -> None:
    run_sql(path, "PRAGMA journal_mode=wal; CREATE TABLE songs (id INTEGER)")


def without_tables(path: Path) -> None:
    run_sql(path, "PRAGMA user_version = 7")


def of_another_alembic(path: Path) -> None:
    run_sql(
        path,
        "CREATE TABLE alembic_version (version_num TEXT); CREATE TABLE users (id INTEGER);"
        "INSERT INTO alembic_version VALUES ('ae1027a6acf')",
    )


def alike_but_not_go(path: Path) -> None:
    run_sql(path, GO + "ALTER TABLE records ADD COLUMN mood TEXT")


def go_and_more(path: Path) -> None:
    run_sql(path, GO + "CREATE TABLE invoices (id INTEGER)")


def newer(path: Path) -> None:
    run_sql(ours(path), "UPDATE alembic_version SET version_num = '0999'")


def unknown_revision(path: Path) -> None:
    run_sql(ours(path), "UPDATE alembic_version SET version_num = 'f00'")


def truncated(path: Path) -> None:
    os.truncate(ours(path), path.stat().st_size // 2)


def damaged_first_page(path: Path) -> None:
    data = bytearray(ours(path).read_bytes())
    data[100:140] = b"\xa5" * 40
    path.write_bytes(data)


REFUSED: dict[Callable[[Path], None], tuple[type[StoreError], str]] = {
    no_database: (NotAContextDatabase, "is not an SQLite database"),
    short_file: (NotAContextDatabase, "is not an SQLite database"),
    empty_file: (NotAContextDatabase, "is an empty file"),
    of_another_program: (NotAContextDatabase, "another program .tables songs"),
    of_another_program_in_wal_mode: (NotAContextDatabase, "another program .tables songs"),
    without_tables: (NotAContextDatabase, "without tables"),
    of_another_alembic: (NotAContextDatabase, "ae1027a6acf"),
    alike_but_not_go: (NotAContextDatabase, "another program"),
    go_and_more: (NotAContextDatabase, "invoices"),
    newer: (SchemaTooNew, "0999.*upgrade"),
    unknown_revision: (NotAContextDatabase, "f00"),
    truncated: (StoreError, "damaged.*doctor"),
    damaged_first_page: (StoreError, "damaged.*doctor"),
}


@pytest.mark.parametrize("read_only", [False, True], ids=["writable", "read_only"])
@pytest.mark.parametrize("make", REFUSED, ids=lambda make: make.__name__)
def test_what_is_not_ours_is_refused_and_left_as_it_is(
    tmp_path: Path, make: Callable[[Path], None], read_only: bool
) -> None:
    """Fault 23: (fault 28g: as well) Not a database: refused, its bytes unchanged."""
    path = tmp_path / "some.db"
    make(path)
    before = everything(tmp_path)
    kind, message = REFUSED[make]

    with pytest.raises(kind, match=message) as raised:
        Database(path, read_only=read_only)

    assert everything(tmp_path) == before
    assert type(raised.value) is kind
    assert str(path) in str(raised.value)


def test_another_programs_database_in_use_is_left_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "songs.db"
    with closing(sqlite3.connect(path, isolation_level=None)) as raw:
        raw.executescript("PRAGMA journal_mode=wal; CREATE TABLE songs (id INTEGER)")
        before = sorted(os.listdir(tmp_path))

        with pytest.raises(NotAContextDatabase):
            Database(path)

        raw.execute("INSERT INTO songs VALUES (1)")
        assert sorted(os.listdir(tmp_path)) == before


def test_a_dangling_link_is_refused(tmp_path: Path) -> None:
    """Fault 28g: A dangling link."""
    link = tmp_path / "link.db"
    link.symlink_to(tmp_path / "nowhere.db")

    with pytest.raises(NotAContextDatabase, match=r"nowhere\.db, which does not exist"):
        Database(link)

    assert os.listdir(tmp_path) == ["link.db"]


def test_a_link_to_a_database_opens_it(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    real = ours(tmp_path / "deep" / "real.db")
    (tmp_path / "link.db").symlink_to(real)

    database = Database(tmp_path / "link.db")

    assert database.path == str(real)
    database.close()


@pytest.mark.parametrize("read_only", [False, True])
def test_a_directory_in_its_place_is_refused(tmp_path: Path, read_only: bool) -> None:
    """Fault 22: A directory in its place."""
    with pytest.raises(StoreError, match="is a directory"):
        Database(tmp_path, read_only=read_only)


def test_a_device_is_refused() -> None:
    with pytest.raises(NotAContextDatabase, match="regular file"):
        Database("/dev/null")


@pytest.mark.parametrize("name", ["no/such.db", "file/in.db"])
def test_a_missing_directory_is_named(tmp_path: Path, name: str) -> None:
    """Fault 22: A missing directory."""
    (tmp_path / "file").touch()

    with pytest.raises(StoreError, match=str(tmp_path / name.split("/")[0])):
        Database(tmp_path / name)

    assert os.listdir(tmp_path) == ["file"]


def test_a_missing_file_is_not_made_for_reading(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="does not exist"):
        Database(tmp_path / "a.db", read_only=True)

    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    "value",
    [
        "",
        "mysql://root:secret@host/db",
        "postgresql+asyncpg://root:secret@host/db",
        "sqlite+aiosqlite:///x.db",
        "sqlite:///x.db?mode=ro",
        "postgresql://root:secret@host:port/db",
        "a\0b",
        7,
    ],
)
def test_a_location_that_cannot_be_is_refused_without_its_password(value: Any) -> None:
    with pytest.raises(ConfigError) as raised:
        Database(value)

    assert "secret" not in str(raised.value)


@pytest.mark.parametrize("option", [{"synchronous": "off"}, {"journal_mode": "memory"}])
def test_an_unknown_option_is_refused(option: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(option))):
        Database(":memory:", **option)


def test_psycopg_missing_says_what_to_install(tmp_path: Path) -> None:
    script = """
        import sys
        sys.modules["psycopg"] = None
        from contextwindow.store.engine import Database
        try:
            Database("postgresql://root@127.0.0.1/test")
        except Exception as error:
            print(type(error).__name__, error)
    """
    assert "ConfigError" in python(script)
    assert "pip install contextwindow[postgres]" in python(script)


# -- what is created


@pytest.mark.parametrize(
    "name",
    ["a.db", "100%.db", "what?.db", "a b#c.db", "ünï🤖.db", 'it\'s "q".db', "file:x.db", "%41"],
)
def test_any_file_name_works(tmp_path: Path, name: str) -> None:
    path = ours(tmp_path / name)

    assert os.listdir(tmp_path) == [name]
    Database(str(path)).close()
    Database(sa.URL.create("sqlite", database=str(path))).close()
    assert os.listdir(tmp_path) == [name]


def test_a_new_file_is_for_its_owner_alone(tmp_path: Path) -> None:
    """Fault 47: Files are 0600 under any umask."""
    database = Database(tmp_path / "a.db")

    modes = {path.name: path.stat().st_mode & 0o777 for path in tmp_path.iterdir()}
    database.close()
    assert modes == {"a.db": 0o600, "a.db-wal": 0o600, "a.db-shm": 0o600}


def test_the_mode_of_an_existing_file_is_left_alone(tmp_path: Path) -> None:
    path = ours(tmp_path / "a.db")
    path.chmod(0o664)

    Database(path).close()

    assert path.stat().st_mode & 0o777 == 0o664


def test_a_directory_where_anyone_may_replace_files_is_warned_about(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Fault 47: A directory where anyone may replace files."""
    tmp_path.chmod(0o777)

    with caplog.at_level(logging.WARNING, "contextwindow"):
        Database(tmp_path / "a.db").close()

    assert "anyone may replace" in caplog.text


def test_eight_processes_open_a_new_file_at_once(tmp_path: Path) -> None:
    """Fault 28: 8 processes open a new file at once."""
    path = tmp_path / "new.db"
    at_once(path)

    with closing(sqlite3.connect(path)) as raw:
        names = {name for (name,) in raw.execute("SELECT name FROM contexts")}
        assert len(names) == 8
        assert raw.execute("SELECT count(*) FROM alembic_version").fetchone() == (1,)
    assert [name for name in os.listdir(tmp_path) if "new-" in name] == []


def test_eight_processes_open_an_old_file_at_once(tmp_path: Path) -> None:
    path = tmp_path / "go.db"
    run_sql(path, GO)
    at_once(path)

    with closing(sqlite3.connect(path)) as raw:
        assert raw.execute("SELECT count(*) FROM contexts").fetchone() == (9,)
    assert len(list(tmp_path.glob("*.backup-*"))) == 1


def test_eight_processes_open_a_new_schema_at_once(postgresql: str) -> None:
    at_once(postgresql)

    database = Database(postgresql)
    with database.read() as connection:
        assert connection.execute("SELECT count(*) FROM contexts").fetchone() == (8,)
    database.close()


def at_once(location: str | Path) -> None:
    method = multiprocessing.get_context("spawn")
    start = method.Barrier(8)
    processes = [
        method.Process(target=open_and_write, args=(str(location), start)) for _ in range(8)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0] * 8


def open_and_write(location: str | Path, start: Any) -> None:
    start.wait(60)
    database = Database(location)
    with database.write() as connection:
        mark = "%s" if database.dialect == "postgresql" else "?"
        connection.execute(
            f"INSERT INTO contexts (id, name, start_time) VALUES ({mark}, {mark}, '')",
            (str(os.getpid()), str(os.getpid())),
        )
    database.close()


# -- what may not be written


def test_an_older_file_is_not_read_as_it_is(tmp_path: Path) -> None:
    run_sql(tmp_path / "go.db", GO)
    before = everything(tmp_path)

    with pytest.raises(StoreError, match="without read_only"):
        Database(tmp_path / "go.db", read_only=True)

    assert everything(tmp_path) == before


def test_reading_only_reads(tmp_path: Path) -> None:
    path = ours(tmp_path / "a.db")
    bytes_before = digest(path)

    database = Database(path, read_only=True)
    with pytest.raises(StoreReadOnly, match="read_only"), database.write():
        pass
    with pytest.raises(StoreReadOnly), database.read() as connection:
        connection.execute("DELETE FROM contexts")
    database.close()

    assert digest(path) == bytes_before


def test_a_reader_sees_what_others_write_later(tmp_path: Path) -> None:
    path = ours(tmp_path / "a.db")
    reader = Database(path, read_only=True)
    writer = Database(path)
    with writer.write() as connection:
        connection.execute("INSERT INTO contexts (id, name, start_time) VALUES ('a', 'a', '')")

    with reader.read() as connection:
        assert connection.execute("SELECT name FROM contexts").fetchall() == [("a",)]
    reader.close()
    writer.close()


PERMISSIONS = """
    import os, sys
    from contextwindow.store.engine import Database
    os.setgroups([]); os.setgid(65534); os.setuid(65534)
    try:
        database = Database(sys.argv[1], read_only=sys.argv[2] == "read")
        with database.read() as connection:
            print(connection.execute("SELECT count(*) FROM contexts").fetchall())
        database.close()
    except Exception as error:
        print(type(error).__name__, error)
"""


@pytest.mark.parametrize(
    ("file_mode", "folder_mode", "how", "expected"),
    [
        (0o444, 0o755, "write", "StoreReadOnly .* the file is read-only"),
        (0o444, 0o755, "read", r"\[\(0,\)\]"),
        (0o666, 0o755, "write", "StoreReadOnly .* directory .* is read-only"),
        (0o666, 0o755, "read", r"\[\(0,\)\]"),
        (0o000, 0o755, "read", "StoreError .* no permission to read"),
        (0o000, 0o755, "write", "StoreError .* no permission to read"),
        (None, 0o755, "write", "StoreReadOnly .* directory .* is read-only"),
    ],
)
@pytest.mark.skipif(os.geteuid() != 0, reason="changes to another user, which only root may")
def test_missing_permissions_are_named(
    file_mode: int | None, folder_mode: int, how: str, expected: str
) -> None:
    """Fault 22: No permission; a read-only file or directory."""
    import re
    import shutil
    import tempfile

    # Not below tmp_path, whose parents other users may not enter.
    folder = Path(tempfile.mkdtemp(dir="/tmp"))
    try:
        path = folder / "a.db"
        if file_mode is not None:
            ours(path).chmod(file_mode)
        folder.chmod(folder_mode)
        before = everything(folder)

        output = python(PERMISSIONS, str(path), how)

        assert re.search(expected, output), output
        assert everything(folder) == before
    finally:
        shutil.rmtree(folder)


# -- what fails half-way


def test_a_migration_that_fails_half_way_leaves_the_file_and_names_the_copy(tmp_path: Path) -> None:
    """Fault 27: A migration that fails half-way."""
    path = tmp_path / "go.db"
    rows = "INSERT INTO records (context_id, ts, source, content, live, est_tokens) VALUES"
    run_sql(path, GO + f"{rows} ('c', '', 0, '{'x' * 900_000}', 1, 1);")
    before = digest(path)

    # The copy fits below the limit, the second set of tables beside the first does not.
    output = python(
        """
        import resource, sys
        from contextwindow.store.engine import Database
        resource.setrlimit(resource.RLIMIT_FSIZE, (1_200_000, 1_200_000))
        try:
            Database(sys.argv[1])
        except Exception as error:
            print(type(error).__mro__, error)
        """,
        str(path),
    )

    (copy,) = tmp_path.glob("*.backup-*")
    assert "StoreError" in output
    assert f"it is as it was; a copy was made at {copy}" in output
    assert digest(path) == before
    with closing(sqlite3.connect(copy)) as raw:
        assert raw.execute("SELECT length(content) FROM records").fetchone() == (900_000,)


def test_a_locked_file_is_waited_for_and_then_named(tmp_path: Path) -> None:
    """Fault 24: A locked file is waited for, then named."""
    path = ours(tmp_path / "a.db")
    with closing(sqlite3.connect(path, isolation_level=None)) as raw:
        raw.execute("BEGIN IMMEDIATE")

        with pytest.raises(StoreBusy, match="another program"):
            Database(path, busy_timeout=0.05)


def test_a_file_whose_wal_was_left_by_a_killed_process_opens(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    python(
        """
        import os, sys
        from contextwindow.store.engine import Database
        database = Database(sys.argv[1])
        with database.write() as connection:
            connection.execute("INSERT INTO contexts (id, name, start_time) VALUES ('a', 'a', '')")
        os._exit(0)
        """,
        str(path),
    )
    (tmp_path / "a.db-shm").unlink()

    database = Database(path)

    with database.read() as connection:
        assert connection.execute("SELECT name FROM contexts").fetchall() == [("a",)]
    database.close()


# -- PostgreSQL


def on_server(url: str, *statements: str) -> None:
    engine = sa.create_engine(url)
    with engine.begin() as connection:
        for statement in statements:
            connection.exec_driver_sql(statement)
    engine.dispose()


@pytest.mark.parametrize(
    ("statements", "kind", "message"),
    [
        (["CREATE TABLE records (id int)"], NotAContextDatabase, "another program's records"),
        (["CREATE VIEW transcript AS SELECT 1"], NotAContextDatabase, "transcript"),
        (
            [
                "CREATE TABLE alembic_version (version_num text)",
                "INSERT INTO alembic_version VALUES ('ae1027a6acf')",
            ],
            NotAContextDatabase,
            "ae1027a6acf",
        ),
        (["UPDATE alembic_version SET version_num = '0999'"], SchemaTooNew, "0999"),
    ],
)
def test_a_schema_that_is_not_ours_is_refused(
    postgresql: str, statements: Any, kind: type[Exception], message: str
) -> None:
    if kind is SchemaTooNew:
        Database(postgresql).close()
    on_server(postgresql, *statements)

    with pytest.raises(kind, match=message):
        Database(postgresql)


def test_other_tables_beside_ours_are_no_hindrance(postgresql: str) -> None:
    on_server(postgresql, "CREATE TABLE users (id int)")

    database = Database(postgresql)
    with database.read() as connection:
        assert connection.execute("SELECT count(*) FROM contexts").fetchone() == (0,)
    database.close()


def test_an_empty_schema_is_not_filled_for_reading(postgresql: str) -> None:
    with pytest.raises(StoreError, match="no contextwindow tables"):
        Database(postgresql, read_only=True)


@pytest.mark.parametrize("scheme", ["postgresql", "postgres", "postgresql+psycopg"])
def test_every_spelling_of_a_postgresql_url_is_known(postgresql: str, scheme: str) -> None:
    database = Database(scheme + postgresql.removeprefix("postgresql+psycopg"))

    assert database.dialect == "postgresql"
    database.close()


def test_a_server_that_does_not_answer_is_named_without_the_password() -> None:
    with pytest.raises(StoreError) as raised:
        Database("postgresql://root:secret@127.0.0.1:1/test")

    assert "127.0.0.1:1/test" in str(raised.value)
    assert "secret" not in str(raised.value)


def python(script: str, *arguments: str) -> str:
    """Output of a script in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        env={
            **os.environ,
            "PYTHONPATH": str(Path(__file__).parent.parent),
            "PYTHONDONTWRITEBYTECODE": "1",
        },
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
