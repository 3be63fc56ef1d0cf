"""Processes that are killed, paused, forked or run out of memory at every step."""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from children import Child
from crash import recount
from crash_work import (
    COUNT,
    WORK,
    a_turn_with_tools,
    bring_up,
    copy,
    do,
    fork_in_a_stream,
    stream,
    stream_on_another_host,
)
from support import contents, problems, responses, states
from support import file as file
from test_tool_kills import check_what_is_known, check_what_is_told
from tool_crash import CONTEXT, Log, tool_for

from contextwindow import AsyncContextWindow, ContextWindow, Store
from contextwindow.errors import ContextWindowError, TurnBusy
from contextwindow.store.ledger import TurnLedger
from contextwindow.store.migrating import migrate
from contextwindow.testing import ScriptedModel, ScriptedReply

pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")

CUT = ScriptedReply(COUNT, fault="eof", fail_at=3)


# -- SIGKILL at every statement -------------------------------------------------------------


def kill_at(database: str, log: Log, fatal: int) -> tuple[list[tuple[str, Any]], bool]:
    """What a turn had said before its statement number *fatal*; whether it got that far."""
    with Child(a_turn_with_tools, database, log.path, fatal) as child:
        said = child.rest()
        return said, child.exitcode == -signal.SIGKILL


@pytest.mark.parametrize(("engine", "stride"), [("sqlite", 1), ("postgresql", 7)])
def test_a_kill_before_any_statement_of_a_turn_with_tools_leaves_no_doubt(
    tmp_path: Path, request: pytest.FixtureRequest, engine: str, stride: int
) -> None:
    """Fault 8a: Kill at the n-th database statement, for every n of a turn with tools."""
    server = request.getfixturevalue("postgresql") if engine == "postgresql" else ""
    seen: Counter[str] = Counter()
    fatal, killed = 1, True
    while killed:
        database = str(tmp_path / f"{fatal}.db")
        if server:
            database = server
            with Store(server) as store:
                empty(store)
        log = Log(tmp_path / f"{fatal}.log")
        said, killed = kill_at(database, log, fatal)
        where = f"statement {fatal}"
        with Store(database) as store:
            check_the_rest(store, said, log.read(), seen, where)
        fatal += stride
    assert fatal > 60, "the statements were not counted"
    assert seen["ran"] * stride > 5
    assert seen["may have run"] * stride > 5


def empty(store: Store) -> None:
    with ContextWindow(store, CONTEXT) as window:
        window.delete_context(CONTEXT)


def check_the_rest(
    store: Store, said: list[tuple[str, Any]], log: Log, seen: Counter[str], where: str
) -> None:
    """Holds what is stored against what was said, and goes on with it."""
    model = ScriptedModel(["the rest"])
    window = ContextWindow(store, CONTEXT, model=model, tools=[tool_for(log, is_async=False)])
    stored = contents(window.records())
    assert problems(store) == [], where
    prompts = [what for kind, what in said if kind == "prompt"]
    assert stored[:1] == prompts[:1] or not prompts, where
    shown = "".join(what for kind, what in said if kind == "text")
    assert "".join(contents(responses(window))).startswith(shown), where
    check_what_is_known(window, log, seen, where)
    if not window.interrupted():
        return
    before = Counter(log.started)
    assert window.resume().text.endswith("the rest"), where
    assert Counter(log.read().started) == before, f"a tool ran again ({where})"
    check_what_is_told(list(model.requests[0].records), log, where)
    assert problems(store) == [], where
    assert states(window) == ["complete"], where


# -- SIGKILL in everything else that writes ---------------------------------------------------


def prepare(database: str) -> None:
    """A context "chat" with a turn that was cut off, and a context "other" to be copied."""
    with Store(database) as store:
        window = ContextWindow(store, "chat", model=ScriptedModel([CUT]))
        window.add_prompt("count")
        with pytest.raises(ContextWindowError):
            window.call_model(max_resumes=0)
        other = ContextWindow(store, "other", model=ScriptedModel([COUNT]))
        other.add_prompt("count")
        other.call_model()


def die_in_a_turn(database: str) -> None:
    """As `prepare`, but the turn of "chat" has not been settled."""
    prepare(database)
    mark = sa.create_engine(database if "://" in database else f"sqlite:///{database}")
    with mark.begin() as connection:
        connection.exec_driver_sql(
            "UPDATE turns SET state = 'running', owner = 'elsewhere/1/1', expires = 0"
            " WHERE state = 'interrupted'"
        )
    mark.dispose()


def has_copy(database: str) -> bool:
    """Whether there is a copy of "other"; all of it."""
    with Store(database) as store:
        names = [context.name for context in store.list_contexts()]
        if "copy" in names:
            assert contents(ContextWindow(store, "copy").records()) == ["count", COUNT]
        return "copy" in names


def is_settled(database: str) -> bool:
    with Store(database) as store, ContextWindow(store, "chat") as window:
        assert states(window) == ["interrupted"]
        assert window.turns()[0].partial_text == "one two three"
        return True


def is_resumed(database: str) -> bool:
    with Store(database) as store, ContextWindow(store, "chat") as window:
        (text,) = contents(responses(window))
        assert (COUNT).startswith(text)
        assert text.startswith("one two three")
        return states(window) == ["complete"]


def is_deleted(database: str) -> bool:
    with Store(database) as store:
        names = [context.name for context in store.list_contexts()]
        if "other" in names:
            assert len(ContextWindow(store, "other").records()) == 2
        return "other" not in names


def is_compacted(database: str) -> bool:
    with Store(database) as store, ContextWindow(store, "other") as window:
        live = [text for text in contents(window.live_records()) if text != "more"]
        assert contents(window.records())[:1] == ["count"]
        assert COUNT in contents(window.records())
        assert live in (["count", COUNT], ["Counted."])
        assert bool(window.compactions()) == (live == ["Counted."])
        return live == ["Counted."]


JOBS: dict[str, tuple[Callable[[str], None], Callable[[str], bool]]] = {
    "settling": (die_in_a_turn, is_settled),
    "resuming": (prepare, is_resumed),
    "forking": (prepare, has_copy),
    "cloning": (prepare, has_copy),
    "importing": (prepare, has_copy),
    "deleting": (prepare, is_deleted),
    "compacting": (prepare, is_compacted),
    "mending": (die_in_a_turn, is_settled),
}


@pytest.mark.parametrize("job", JOBS)
def test_a_kill_before_any_statement_of_it_is_undone_or_finished_by_the_next_start(
    tmp_path: Path, job: str
) -> None:
    """Fault 3: SIGKILL while settling, resuming, compacting, importing, migrating, forking."""
    before, is_done = JOBS[job]
    original = tmp_path / "original.db"
    before(str(original))
    fatal, killed = 1, True
    while killed:
        database = str(tmp_path / f"{fatal}.db")
        Path(database).write_bytes(original.read_bytes())
        with Child(do, job, database, fatal) as child:
            child.rest()
            killed = child.exitcode == -signal.SIGKILL
            assert killed or child.exitcode == 0
        done = is_done(database)
        assert problems(database) == []
        if not done:
            assert killed, f"{job} has done nothing"
            WORK[job](database)
            assert is_done(database)
            assert problems(database) == []
        fatal += 1
    assert fatal > 10, "the statements were not counted"


def old(path: Path) -> None:
    """A database of the Go library's first revision, with two contexts of one name."""
    engine = sa.create_engine(f"sqlite:///{path}")
    with engine.begin() as connection:
        migrate(connection, "0001")
        for number in range(2):
            connection.exec_driver_sql(
                "INSERT INTO contexts (id, name, start_time) VALUES (?, 'chat', ?)",
                (f"c{number}", f"2025-10-31 08:58:2{number} +0000 UTC"),
            )
            connection.exec_driver_sql(
                "INSERT INTO records (context_id, ts, source, content, live, est_tokens)"
                " VALUES (?, '2025-10-31 08:58:20 +0000 UTC', 0, ?, 1, 2)",
                (f"c{number}", f"hello {number}"),
            )
        connection.exec_driver_sql("DROP TABLE alembic_version")
    engine.dispose()


def test_a_kill_before_any_statement_of_a_migration_leaves_the_old_file_or_the_new_one(
    tmp_path: Path,
) -> None:
    """Fault 3: SIGKILL while migrating; fault 8b: no copy beside it is truncated."""
    original = tmp_path / "original.db"
    old(original)
    fatal, killed = 1, True
    while killed:
        folder = tmp_path / str(fatal)
        folder.mkdir()
        database = folder / "x.db"
        database.write_bytes(original.read_bytes())
        with Child(bring_up, str(database), fatal) as child:
            child.rest()
            killed = child.exitcode == -signal.SIGKILL
            assert killed or child.exitcode == 0
        for made in folder.glob("x.db.backup-*"):
            check_copy(made)
        with Store(database) as store:
            names = sorted(context.name for context in store.list_contexts())
            assert names == ["chat", "chat (2)"]
            texts = [contents(ContextWindow(store, name).records()) for name in names]
            assert texts == [["hello 0"], ["hello 1"]]
            assert recount(store) == []
        # Each statement of a migration is like the next: a few are enough.
        fatal += 1 if fatal < 12 else 5
    assert fatal > 40, "the statements were not counted"


def check_copy(path: Path) -> None:
    """Asserts that a file is a whole copy of the old database."""
    connection = sqlite3.connect(f"file:{path}?mode=ro&immutable=1", uri=True)
    assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    found = connection.execute("SELECT content FROM records ORDER BY id").fetchall()
    assert found == [("hello 0",), ("hello 1",)]
    connection.close()


def test_a_copy_whose_process_is_killed_is_whole_or_not_there(tmp_path: Path) -> None:
    """Fault 8b: Kill in an export: no truncated final file."""
    database = str(tmp_path / "x.db")
    with ContextWindow(database, "chat") as window:
        for number in range(20):
            window.add_prompt(f"{number} " * 20_000)
    for number in range(8):
        target = tmp_path / f"copy {number}.db"
        with Child(copy, database, str(target)) as child:
            child.until("copying")
            child.process.join(0.002 * number)
            child.kill()
        if target.exists():
            with Store(target) as store:
                assert len(ContextWindow(store, "chat").records()) == 20
                assert problems(store) == []


# -- SIGTERM, Ctrl-C, SIGSTOP -----------------------------------------------------------------


@pytest.mark.parametrize("mode", ["sync", "async"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_process_soon_and_keeps_what_was_shown(
    database: str, mode: str, number: signal.Signals
) -> None:
    """Fault 4: SIGTERM and Ctrl-C in a stream: kept, the turn ended, exit in < 1 s."""
    with Child(stream, database, mode, 30.0, 0.01) as child:
        said = child.until("w20 ")
        sent = time.monotonic()
        child.signal(number)
        said += ["w20 ", *child.rest()]
        assert time.monotonic() - sent < 1.0 + 4 * float(os.getloadavg()[0] > 2)
    interrupted = said[-1] == "interrupted"
    shown = "".join(one for one in said if one.startswith("w"))
    assert interrupted is (number == signal.SIGINT)
    with ContextWindow(database, "chat", model=ScriptedModel(["the rest"])) as window:
        (text,) = contents(responses(window))
        assert text == shown if interrupted else text.startswith(shown)
        assert states(window) == ["cancelled" if interrupted else "interrupted"]
        assert problems(database) == []
        assert window.resume().text == text + "the rest"


@pytest.mark.parametrize("mode", ["sync", "async"])
@pytest.mark.parametrize("how", ["resumed", "anew"])
def test_a_process_that_was_paused_past_its_lease_writes_nothing_more(
    database: str, mode: str, how: str
) -> None:
    """Fault 5: SIGSTOP for longer than the lease, then SIGCONT: ``TurnLost``, nothing written."""
    with Child(stream, database, mode, 0.6, 0.01) as child:
        child.until("w5 ")
        child.signal(signal.SIGSTOP)
        with Store(database) as store:
            window = ContextWindow(store, "chat", model=ScriptedModel(["the rest"]))
            if how == "resumed":
                reply = wait_and_resume(window)
            else:
                reply = window.call_model(on_busy="wait", deadline=20)
            before = contents(window.records())
            child.signal(signal.SIGCONT)
            assert child.rest()[-1] == "lost"

            assert contents(window.records()) == before
            assert reply.text.endswith("the rest")
            assert states(window)[-1] == "complete"
            assert problems(store) == []


def test_a_turn_of_another_host_is_resumed_once_its_lease_is_over(database: str) -> None:
    """Fault 5: of a killed process of another host only the lease can tell that it is gone."""
    with Child(stream_on_another_host, database, 1.0) as child:
        shown = "".join([*child.until("w9 "), "w9 "])
    with ContextWindow(database, "chat", model=ScriptedModel(["the rest"])) as window:
        assert states(window) == ["running"]
        with pytest.raises(TurnBusy, match="held by elsewhere:1/"):
            window.resume()
        reply = wait_and_resume(window)

        assert reply.text.startswith(shown)
        assert reply.text.endswith("the rest")
        assert states(window) == ["complete"]
        assert problems(database) == []


def wait_and_resume(window: ContextWindow) -> Any:
    """Resume what a process that does not move has begun, once its lease is over."""
    return window.resume(window.turns()[0].id, on_busy="wait", deadline=20)


# -- fork and exit ----------------------------------------------------------------------------


def test_a_fork_in_a_stream_leaves_the_parent_going_on(database: str) -> None:
    """Fault 6: fork in the middle of a stream: the child gets a clear error, the parent goes on."""
    with Child(fork_in_a_stream, database) as child:
        assert child.rest() == [("child", 0), ("parent", " three four five six")]
    with Store(database) as store:
        window = ContextWindow(store, "chat")
        assert contents(window.records()) == ["count", COUNT]
        assert states(window) == ["complete"]
        assert contents(ContextWindow(store, "from the child").records()) == ["hello"]
        assert problems(store) == []


EXIT = """
import sys, threading
from contextwindow import ContextWindow
from contextwindow.testing import ScriptedModel, ScriptedReply

model = ScriptedModel([ScriptedReply([f"w{n} " for n in range(5000)], delay=0.001)], repeat=True)
window = ContextWindow(sys.argv[1], "main", model=model)
window.add_prompt("go")
other = ContextWindow(sys.argv[1], "thread", model=model)
other.add_prompt("go")
under_way = threading.Event()

def read():
    for chunk in other.call_model_streaming():
        if chunk.delta:
            under_way.set()

threading.Thread(target=read, daemon=True).start()
under_way.wait()
stream = window.call_model_streaming()
chunks = iter(stream)
shown = ""
while len(shown) < 50:
    shown += next(chunks).delta
print(shown, flush=True)
if sys.argv[2] == "sys.exit":
    sys.exit(7)
if sys.argv[2] == "error":
    raise SystemError("mine")
"""


@pytest.mark.parametrize("how", ["end", "sys.exit", "error"])
def test_an_interpreter_that_exits_with_streams_open_hangs_not_and_keeps_all(
    file: str, how: str
) -> None:
    """Fault 7: Interpreter exit with a stream open, daemon threads running: kept, no hang."""
    done = subprocess.run(
        [sys.executable, "-c", EXIT, file, how], capture_output=True, text=True, timeout=60
    )

    assert done.returncode == {"end": 0, "sys.exit": 7, "error": 1}[how]
    if how == "error":
        assert done.stderr.count("Traceback") == 1
        assert done.stderr.strip().endswith("SystemError: mine")
    else:
        assert done.stderr == ""
    with Store(file) as store:
        window = ContextWindow(store, "main")
        assert contents(responses(window)) == [done.stdout.rstrip("\n")]
        assert states(window) in (["cancelled"], ["interrupted"])
        assert contents(responses(ContextWindow(store, "thread")))[0].startswith("w0 ")
        store.recover()
        assert problems(store) == []


# -- MemoryError ------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["sync", "async"])
@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_memory_error_at_any_checkpoint_loses_nothing_that_was_shown(
    file: str, monkeypatch: pytest.MonkeyPatch, mode: str, moment: str
) -> None:
    """Fault 8b: ``MemoryError`` at the n-th checkpoint: kept in memory or clear."""
    run = TurnLedger._run
    number, raised = 1, True
    while raised:
        left = number

        def failing(ledger: TurnLedger, *arguments: Any) -> None:
            nonlocal left
            left -= 1
            if left == 0 and moment == "before":
                raise MemoryError
            run(ledger, *arguments)
            if left == 0:
                raise MemoryError

        monkeypatch.setattr(TurnLedger, "_run", failing)
        shown, raised = show(file, f"{mode} {number}", mode)
        monkeypatch.setattr(TurnLedger, "_run", run)
        with ContextWindow(file, f"{mode} {number}", model=ScriptedModel(["rest"])) as window:
            texts = contents(responses(window))
            assert "".join(texts) == shown, f"checkpoint {number}"
            assert problems(file) == [], f"checkpoint {number}"
            if raised:
                assert states(window) != ["running"]
                assert window.call_model().text == "rest"
        number += 1
    assert number > 5, "the checkpoints were not counted"


def show(database: str, name: str, mode: str) -> tuple[str, bool]:
    """What a reply has shown before a ``MemoryError``, and whether one came."""
    shown = ""
    model = ScriptedModel([ScriptedReply(COUNT, batch=2)])
    if mode == "sync":
        with ContextWindow(database, name, model=model) as window:
            window.add_prompt("count")
            try:
                for chunk in window.call_model_streaming():
                    shown += chunk.delta
            except MemoryError:
                return shown, True
        return shown, False

    async def main() -> bool:
        nonlocal shown
        async with AsyncContextWindow(database, name, model=model) as window:
            await window.add_prompt("count")
            try:
                async with window.call_model_streaming() as stream:
                    async for chunk in stream:
                        shown += chunk.delta
            except MemoryError:
                return True
        return False

    raised = asyncio.run(main())
    return shown, raised
