from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from contextwindow.errors import (
    ConfigError,
    StoreBusy,
    StoreError,
    StoreFull,
    StoreReadOnly,
    StoreReplaced,
)
from contextwindow.store.engine import Conflict, Connection, Database, Statement, insert_ignore
from contextwindow.store.schema import contexts, records

ADD = Statement(
    sa.insert(contexts).values(id=sa.bindparam("id"), name=sa.bindparam("name"), start_time="noon")
)
ADD_OR_NOT = Statement(
    lambda dialect: insert_ignore(dialect, contexts).values(
        id=sa.bindparam("id"), name=sa.bindparam("id"), start_time=""
    )
)
NAMES = Statement(sa.select(contexts.c.name).order_by(contexts.c.name))
NAME = Statement(sa.select(contexts.c.name).where(contexts.c.id == sa.bindparam("id")))
COUNT = Statement(sa.select(sa.func.count()).select_from(contexts))


@pytest.fixture
def opened(database: str) -> Iterator[Database]:
    with closing(Database(database)) as opened:
        yield opened


@pytest.fixture
def anywhere(any_database: str) -> Iterator[Database]:
    with closing(Database(any_database)) as opened:
        yield opened


@pytest.fixture
def on_file(tmp_path: Path) -> Iterator[Database]:
    with closing(Database(tmp_path / "a.db")) as opened:
        yield opened


@pytest.fixture
def on_server(postgresql: str) -> Iterator[Database]:
    with closing(Database(postgresql, busy_timeout=5)) as opened:
        yield opened


def add(database: Database, *names: str, boundary: bool = False) -> None:
    with database.write(boundary=boundary) as connection:
        for name in names:
            ADD.run(connection, id=name, name=name)


def names(database: Database) -> list[str]:
    with database.read() as connection:
        return [name for (name,) in NAMES.all(connection)]


class Oops(Exception):
    pass


# -- transactions


def test_a_write_is_committed_at_its_end(anywhere: Database) -> None:
    add(anywhere, "a", "b")

    assert names(anywhere) == ["a", "b"]


@pytest.mark.parametrize("error", [Oops, KeyboardInterrupt])
def test_a_write_that_raises_leaves_nothing_and_the_next_one_works(
    anywhere: Database, error: type[BaseException]
) -> None:
    with pytest.raises(error), anywhere.write() as connection:
        ADD.run(connection, id="a", name="a")
        raise error

    add(anywhere, "b")
    assert names(anywhere) == ["b"]


def test_a_read_sees_one_state(opened: Database) -> None:
    with opened.read() as connection:
        assert COUNT.scalar(connection) == 0
        add(opened, "a")
        assert COUNT.scalar(connection) == 0

    assert names(opened) == ["a"]


def test_a_read_in_a_write_in_memory_sees_the_write() -> None:
    with closing(Database()) as database, database.write() as connection:
        ADD.run(connection, id="a", name="a")

        assert names(database) == ["a"]


def test_a_read_cannot_write(opened: Database) -> None:
    with pytest.raises(StoreReadOnly), opened.read() as connection:
        ADD.run(connection, id="a", name="a")


def test_a_write_inside_a_write_is_refused_at_once(on_file: Database) -> None:
    with pytest.raises(StoreError, match="has a transaction open"), on_file.write():
        with on_file.write():
            pass

    add(on_file, "a")


def test_a_write_inside_a_write_by_another_opening_of_the_file_is_refused_too(
    on_file: Database,
) -> None:
    with closing(Database(str(on_file.path))) as other:
        with pytest.raises(StoreError, match="has a transaction open"), on_file.write():
            add(other, "a")


def test_a_connection_ends_with_its_transaction(anywhere: Database) -> None:
    with anywhere.write() as written:
        pass
    with anywhere.read() as read:
        pass

    for connection in (written, read):
        with pytest.raises(StoreError, match="has ended"):
            NAMES.all(connection)


def test_many_threads_lose_nothing(opened: Database) -> None:
    def work(thread: int) -> None:
        for n in range(25):
            add(opened, f"{thread}-{n}", boundary=n % 2 == 0)
            names(opened)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))

    assert len(names(opened)) == 200


def test_closing_is_final_and_may_be_repeated(anywhere: Database) -> None:
    anywhere.close()
    anywhere.close()

    for use in (lambda: add(anywhere, "a"), lambda: names(anywhere)):
        with pytest.raises(StoreError, match="the database is closed"):
            use()


def test_closing_a_file_leaves_one_file(on_file: Database) -> None:
    add(on_file, "a")
    names(on_file)

    on_file.close()

    assert os.listdir(Path(str(on_file.path)).parent) == ["a.db"]


# -- statements


def test_a_statement_gives_rows(anywhere: Database) -> None:
    add(anywhere, "a", "b")

    with anywhere.read() as connection:
        assert NAME.one(connection, id="a") == ("a",)
        assert NAME.one(connection, id="x") is None
        assert NAME.scalar(connection, id="x") is None
        assert list(NAMES.run(connection)) == [("a",), ("b",)]


def test_a_statement_runs_for_many_rows(anywhere: Database) -> None:
    with anywhere.write() as connection:
        ADD.run_many(connection, [{"id": str(n), "name": f"name {n}"} for n in range(3)])

    assert names(anywhere) == ["name 0", "name 1", "name 2"]


def test_a_statement_says_how_many_rows_it_changed(anywhere: Database) -> None:
    with anywhere.write() as connection:
        assert ADD_OR_NOT.run(connection, id="a").rowcount == 1
        assert ADD_OR_NOT.run(connection, id="a").rowcount == 0


def test_values_that_the_statement_brings_itself_are_bound(anywhere: Database) -> None:
    odd = "100% of 'it' :a ? %s"
    statement = Statement(
        sa.insert(contexts).values(id="x", name=odd, start_time=odd, metadata=sa.null())
    )
    find = Statement(sa.select(contexts.c.name).where(contexts.c.start_time == odd))
    like = Statement(sa.select(contexts.c.id).where(contexts.c.name.like("100%")))

    with anywhere.write() as connection:
        statement.run(connection)
        assert find.one(connection) == (odd,)
        assert like.one(connection) == ("x",)


def test_a_missing_parameter_is_an_error(anywhere: Database) -> None:
    with pytest.raises(KeyError), anywhere.write() as connection:
        ADD.run(connection, id="a")


def test_a_list_of_values_cannot_be_compiled_once(anywhere: Database) -> None:
    statement = Statement(sa.select(contexts.c.id).where(contexts.c.id.in_(sa.bindparam("ids"))))

    with pytest.raises(ConfigError, match="list of values"), anywhere.read() as connection:
        statement.all(connection, ids=["a"])


def test_a_taken_name_is_a_conflict(anywhere: Database) -> None:
    add(anywhere, "a")

    with pytest.raises(Conflict) as raised:
        add(anywhere, "a")

    assert raised.value.__cause__ is not None
    assert names(anywhere) == ["a"]


def test_a_record_needs_its_context(anywhere: Database) -> None:
    statement = Statement(
        sa.insert(records).values(
            context_id="none",
            ts="",
            source=0,
            content="",
            live=True,
            est_tokens=0,
            seq=1,
            position=1,
        )
    )

    with pytest.raises(Conflict), anywhere.write() as connection:
        statement.run(connection)


# -- durability


@pytest.mark.parametrize(
    ("synchronous", "journal_mode", "plain", "boundary"),
    [
        ("boundaries", "wal", 1, 2),
        ("normal", "wal", 1, 1),
        ("full", "wal", 2, 2),
        ("boundaries", "delete", 2, 2),
    ],
)
def test_sqlite_waits_for_the_disk_where_it_is_told_to(
    tmp_path: Path, synchronous: str, journal_mode: str, plain: Any, boundary: Any
) -> None:
    path = tmp_path / "a.db"
    with closing(Database(path, synchronous=synchronous, journal_mode=journal_mode)) as database:
        for wanted, level in [(False, plain), (True, boundary), (True, boundary), (False, plain)]:
            with database.write(boundary=wanted) as connection:
                assert connection.execute("PRAGMA synchronous").fetchone() == (level,)
                assert connection.execute("PRAGMA journal_mode").fetchone() == (journal_mode,)


@pytest.mark.parametrize(
    ("synchronous", "plain", "boundary"),
    [("boundaries", "off", "on"), ("normal", "off", "off"), ("full", "on", "on")],
)
def test_postgresql_waits_for_the_disk_where_it_is_told_to(
    postgresql: str, synchronous: str, plain: Any, boundary: Any
) -> None:
    with closing(Database(postgresql, synchronous=synchronous)) as database:
        for wanted, level in [(True, boundary), (False, plain), (True, boundary)]:
            with database.write(boundary=wanted) as connection:
                assert connection.execute("SHOW synchronous_commit").fetchone() == (level,)


def test_only_the_writer_checkpoints(on_file: Database) -> None:
    with on_file.write() as connection:
        assert connection.execute("PRAGMA wal_autocheckpoint").fetchone() == (1000,)
    with on_file.read() as connection:
        assert connection.execute("PRAGMA wal_autocheckpoint").fetchone() == (0,)


def test_what_was_committed_survives_a_kill(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    python(
        """
        database = Database(sys.argv[1])
        for n in range(5):
            with database.write() as connection:
                connection.execute(
                    "INSERT INTO contexts (id, name, start_time) VALUES (?, ?, '')", (n, n)
                )
        context = database.write()
        context.__enter__().execute("DELETE FROM contexts")
        os.kill(os.getpid(), 9)
        """,
        path,
        code=-9,
    )

    with closing(Database(path)) as database:
        assert names(database) == ["0", "1", "2", "3", "4"]


# -- a transaction that the database ended by itself


def fill_the_disk(connection: Connection) -> None:
    """Lets the transaction run into SQLITE_FULL, which rolls it back, and goes on."""
    ADD.run(connection, id="half", name="half")
    ((pages,),) = connection.execute("PRAGMA page_count").fetchall()
    connection.execute(f"PRAGMA max_page_count={pages + 20}")
    with pytest.raises(StoreFull, match="no room"):
        ADD.run(connection, id="big", name="x" * 20_000_000)


def test_a_swallowed_full_disk_does_not_let_later_statements_commit(on_file: Database) -> None:
    """Fault 28c: A swallowed error: later statements raise."""
    with pytest.raises(StoreError, match="rolled back"), on_file.write() as connection:
        fill_the_disk(connection)
        ADD.run(connection, id="later", name="later")

    assert names(on_file) == []
    add(on_file, "next")
    assert names(on_file) == ["next"]


def test_a_swallowed_full_disk_does_not_let_the_commit_pass(on_file: Database) -> None:
    """Fault 28c: A swallowed error: the commit raises."""
    with pytest.raises(StoreError, match="rolled back"), on_file.write() as connection:
        fill_the_disk(connection)

    assert names(on_file) == []


def test_a_swallowed_error_on_postgresql_does_not_let_the_commit_pass(on_server: Database) -> None:
    """Fault 28c: A swallowed error on PostgreSQL: the commit raises."""
    with pytest.raises(StoreError, match="rolled back"), on_server.write() as connection:
        ADD.run(connection, id="a", name="a")
        with pytest.raises(Conflict):
            ADD.run(connection, id="a", name="a")

    assert names(on_server) == []


def test_a_conflict_on_sqlite_undoes_its_statement_alone(on_file: Database) -> None:
    with on_file.write() as connection:
        ADD.run(connection, id="a", name="a")
        with pytest.raises(Conflict):
            ADD.run(connection, id="a", name="a")

    assert names(on_file) == ["a"]


# -- the file


def remove(path: Path) -> None:
    path.unlink()


def move(path: Path) -> None:
    path.rename(path.with_name("elsewhere.db"))


def replace(path: Path) -> None:
    other = path.with_name("other.db")
    Database(other).close()
    other.rename(path)


def remove_wal(path: Path) -> None:
    path.with_name(path.name + "-wal").unlink()


@pytest.mark.parametrize("change", [remove, move, replace, remove_wal])
def test_a_file_that_is_replaced_underneath_is_noticed_for_good(
    on_file: Database, change: Callable[[Path], None]
) -> None:
    add(on_file, "before")
    path = Path(str(on_file.path))
    change(path)

    with pytest.raises(StoreReplaced, match="open it again"):
        add(on_file, "lost")

    for use in (lambda: add(on_file, "a"), lambda: names(on_file)):
        with pytest.raises(StoreReplaced):
            use()
    on_file.close()


def test_a_process_whose_file_was_replaced_does_not_harm_the_new_one(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    python(
        """
        database = Database(sys.argv[1])
        other = Database(sys.argv[1] + ".new")
        def add(database, names):
            for name in names:
                with database.write() as connection:
                    connection.execute(
                        "INSERT INTO contexts (id, name, start_time) VALUES (?, ?, '')",
                        (name, name),
                    )
        add(database, "abcdefgh")
        add(other, "xyz")
        other.close()
        os.rename(sys.argv[1] + ".new", sys.argv[1])
        try:
            add(database, "i")
        except Exception as error:
            print(type(error).__name__)
        """,
        path,
    )
    for rest in tmp_path.glob("*-*"):
        rest.unlink()

    with closing(sqlite3.connect(path)) as raw:
        assert raw.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        assert raw.execute("SELECT name FROM contexts").fetchall() == [("x",), ("y",), ("z",)]


def test_opening_copying_and_refusing_in_one_process_drops_no_locks(
    on_file: Database, tmp_path: Path
) -> None:
    # Closing any other descriptor of the file would: the process below would then think that it
    # is the last one and remove the -wal from under us.
    """Fault 28a: Our own process drops no locks."""
    add(on_file, "a")
    Database(str(on_file.path)).close()
    Database(str(on_file.path), read_only=True).close()
    on_file.backup(tmp_path / "copy.db")
    python(
        """
        with sqlite3.connect(sys.argv[1], isolation_level=None) as raw:
            raw.execute("INSERT INTO contexts (id, name, start_time) VALUES ('b', 'b', '')")
        raw.close()
        """,
        on_file.path,
    )

    add(on_file, "c")

    assert names(on_file) == ["a", "b", "c"]


def test_a_damaged_page_is_named_and_not_read_over(tmp_path: Path) -> None:
    """Fault 23: A flipped byte in a page."""
    path = tmp_path / "a.db"
    with closing(Database(path)) as database:
        add(database, *(f"{n:04}" + "x" * 500 for n in range(200)))
    data = bytearray(path.read_bytes())
    data[-40_000:] = os.urandom(1) * 40_000
    path.write_bytes(data)

    with closing(Database(path)) as database, pytest.raises(StoreError, match="damaged"):
        names(database)


def test_another_programs_lock_is_waited_for(tmp_path: Path) -> None:
    with closing(Database(tmp_path / "a.db", busy_timeout=0.05)) as database:
        with closing(sqlite3.connect(str(database.path), isolation_level=None)) as raw:
            raw.execute("BEGIN IMMEDIATE")
            with pytest.raises(StoreBusy, match="another program"):
                add(database, "a")

        add(database, "a")


def test_another_threads_write_is_waited_for(tmp_path: Path) -> None:
    with closing(Database(tmp_path / "a.db", busy_timeout=0.05)) as database:
        with database.write(), ThreadPoolExecutor(1) as pool:
            with pytest.raises(StoreBusy, match="another thread"):
                pool.submit(add, database, "a").result()

        add(database, "a")


# -- fork


FORK = """
    database = Database(sys.argv[1])
    mark = "?" if database.dialect == "sqlite" else "%s"
    def add(database, name):
        with database.write() as connection:
            connection.execute(
                f"INSERT INTO contexts (id, name, start_time) VALUES ({mark}, {mark}, '')",
                (name, name),
            )
    def look(database):
        with database.read() as connection:
            return connection.execute("SELECT name FROM contexts ORDER BY name").fetchall()
    add(database, "parent 1")
    look(database)
    if sys.argv[2] == "inside a write":
        transaction = database.write()
        held = transaction.__enter__()
    child = os.fork()
    if child == 0:
        uses = [add, look]
        if sys.argv[2] == "inside a write":
            uses.append(lambda _: held.execute("SELECT 1"))
        for use in uses:
            try:
                use(database, "child") if use is add else use(database)
            except StoreError as error:
                assert "opened before fork: open it again in the child" in str(error), error
            else:
                os._exit(3)
        if sys.argv[2] == "inside a write":
            try:
                transaction.__exit__(None, None, None)
            except StoreError:
                pass
            else:
                os._exit(4)
        database.close()
        if sys.argv[2] == "idle":
            again = Database(sys.argv[1])
            add(again, "child")
            again.close()
        sys.exit(0)
    _, status = os.waitpid(child, 0)
    if sys.argv[2] == "inside a write":
        transaction.__exit__(None, None, None)
    add(database, "parent 2")
    print(status, look(database))
    database.close()
"""


@pytest.mark.parametrize("when", ["idle", "inside a write"])
def test_a_child_cannot_use_what_was_opened_before_the_fork(database: str, when: str) -> None:
    output = python(FORK, database, when)

    child = "('child',), " if when == "idle" else ""
    assert output == f"0 [{child}('parent 1',), ('parent 2',)]\n"


# -- copies


def test_a_copy_is_made_while_the_database_is_used(on_file: Database, tmp_path: Path) -> None:
    add(on_file, "a")
    with on_file.write() as connection:
        ADD.run(connection, id="b", name="b")
        on_file.backup(tmp_path / "copy.db")

    assert (tmp_path / "copy.db").stat().st_mode & 0o777 == 0o600
    with closing(Database(tmp_path / "copy.db")) as copy:
        assert names(copy) == ["a"]
    assert names(on_file) == ["a", "b"]


def test_memory_can_be_copied_to_a_file(tmp_path: Path) -> None:
    with closing(Database()) as database:
        add(database, "a")
        database.backup(tmp_path / "copy.db")

    with closing(Database(tmp_path / "copy.db")) as copy:
        assert names(copy) == ["a"]


def test_a_copy_overwrites_nothing(on_file: Database, tmp_path: Path) -> None:
    (tmp_path / "letter").write_text("dear aunt")

    with pytest.raises(StoreError, match="exists"):
        on_file.backup(tmp_path / "letter")

    assert (tmp_path / "letter").read_text() == "dear aunt"


def test_a_copy_of_postgresql_is_left_to_its_own_tool(on_server: Database, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="pg_dump"):
        on_server.backup(tmp_path / "copy")


# -- PostgreSQL


def kill_connections(url: str, schema: str) -> None:
    engine = sa.create_engine(url)
    with engine.begin() as connection:
        connection.exec_driver_sql(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = %s",
            (schema,),
        )
    engine.dispose()


@pytest.fixture
def named(postgresql: str) -> Iterator[tuple[Database, str]]:
    """A database whose connections can be told from those of others, and their name."""
    url = sa.make_url(postgresql)
    name = str(url.query["options"]).removeprefix("-csearch_path=")
    with closing(Database(url.update_query_dict({"application_name": name}))) as opened:
        yield opened, name


def test_idle_connections_that_died_are_replaced(
    named: tuple[Database, str], postgresql: str
) -> None:
    """Fault 26: Idle connections that were killed."""
    database, name = named
    with database.read(), database.read(), database.read():
        pass
    kill_connections(postgresql, name)

    add(database, "a")

    assert names(database) == ["a"]


def test_a_connection_that_dies_in_a_write_is_an_error_and_the_next_write_works(
    named: tuple[Database, str], postgresql: str
) -> None:
    """Fault 26: A connection that is killed in a write."""
    database, name = named
    with pytest.raises(StoreError, match="connection to the server was lost"):
        with database.write() as connection:
            ADD.run(connection, id="a", name="a")
            kill_connections(postgresql, name)
            ADD.run(connection, id="b", name="b")

    add(database, "c")
    assert names(database) == ["c"]


def test_a_connection_that_dies_before_the_commit_leaves_it_open_what_happened(
    named: tuple[Database, str], postgresql: str
) -> None:
    """Fault 26: A connection that is killed at a commit."""
    database, name = named
    with pytest.raises(StoreError, match="is not known"), database.write() as connection:
        ADD.run(connection, id="a", name="a")
        kill_connections(postgresql, name)


def test_a_row_that_another_holds_is_waited_for(postgresql: str) -> None:
    """Fault 26: A row that another holds."""
    with closing(Database(postgresql, busy_timeout=0.1)) as database:
        with database.write() as connection, ThreadPoolExecutor(1) as pool:
            ADD.run(connection, id="a", name="a")
            with pytest.raises(StoreBusy, match="busy"):
                pool.submit(add, database, "a").result()


def test_a_read_only_server_is_named(postgresql: str) -> None:
    """Fault 26: A server that only reads."""
    Database(postgresql).close()
    url = sa.make_url(postgresql)
    options = f"{url.query['options']} -cdefault_transaction_read_only=on"
    with closing(Database(url.update_query_dict({"options": options}))) as database:
        with pytest.raises(StoreReadOnly):
            add(database, "a")


def test_a_read_only_opening_of_a_server_reads(postgresql: str) -> None:
    Database(postgresql).close()

    with closing(Database(postgresql, read_only=True)) as database:
        assert names(database) == []
        with pytest.raises(StoreReadOnly, match="read_only"), database.write():
            pass


# -- the rest


def test_the_clock_is_shared(anywhere: Database) -> None:
    with anywhere.read() as connection:
        shared = time.monotonic() if anywhere.dialect == "sqlite" else time.time()
        assert abs(anywhere.now(connection) - shared) < 5


def test_a_password_is_not_shown(postgresql: str) -> None:
    url = sa.make_url(postgresql).set(password="secret")
    with closing(Database(url)) as database:
        assert "secret" not in repr(database) + database.location


def test_threads_that_are_left_reading_do_not_stop_a_close(on_file: Database) -> None:
    inside, go = threading.Event(), threading.Event()
    errors = []

    def read() -> None:
        try:
            with on_file.read() as connection:
                inside.set()
                go.wait(10)
                NAMES.all(connection)
        except StoreError as error:
            errors.append(str(error))

    thread = threading.Thread(target=read)
    thread.start()
    inside.wait(10)
    on_file.close()
    go.set()
    thread.join(10)

    assert len(errors) == 1
    assert "the database is closed" in errors[0]


def python(script: str, *arguments: object, code: int = 0) -> str:
    """Output of a script in a process of its own."""
    start = (
        "import os, sqlite3, sys\n"
        "from contextwindow.errors import StoreError\n"
        "from contextwindow.store.engine import Database\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", start + textwrap.dedent(script), *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)},
    )
    assert done.returncode == code, done.stderr
    assert not done.stderr
    return done.stdout
