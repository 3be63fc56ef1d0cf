"""Many who use one database, one context or one window at the same time."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
from children import Child
from crash_work import COUNT, append_under_one_key, start_a_turn, stream_slowly
from support import contents, problems, responses, states
from support import file as file

from contextwindow import AsyncContextWindow, ContextWindow, Middleware, Record, Store, StreamChunk
from contextwindow.effects import Append
from contextwindow.errors import ContextNotFound, ContextWindowError, StoreError, TurnBusy, TurnLost
from contextwindow.store import beginning, leases
from contextwindow.store.connection import Connection
from contextwindow.store.failures import Conflict
from contextwindow.store.ledger import TurnLedger
from contextwindow.testing import ScriptedModel, ScriptedReply


def at_once(count: int, work: Callable[[int], Any]) -> list[Any]:
    """What *work* gives, or raises, in so many threads that begin together."""
    gate = threading.Barrier(count)
    results: list[Any] = [None] * count

    def run(number: int) -> None:
        gate.wait()
        try:
            results[number] = work(number)
        except BaseException as error:
            results[number] = error

    threads = [threading.Thread(target=run, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    return results


def slow(text: str = COUNT, delay: float = 0.02) -> ScriptedModel:
    return ScriptedModel([ScriptedReply(text, delay=delay)], repeat=True)


# -- 29: one turn at a time -------------------------------------------------------------------


def test_of_many_threads_that_start_a_turn_at_once_one_runs(database: str) -> None:
    """Fault 29: Two callers start a turn at once (threads): one runs, the other is `TurnBusy`."""
    models = [slow() for _ in range(8)]
    with Store(database) as store:
        windows = [ContextWindow(store, "chat", model=model) for model in models]
        windows[0].add_prompt("count")

        results = at_once(8, lambda number: windows[number].call_model())

        busy = [one for one in results if isinstance(one, TurnBusy)]
        assert len(busy) == 7, results
        assert sum(len(model.requests) for model in models) == 1
        assert states(windows[0]) == ["complete"]
        assert problems(store) == []


def test_of_many_tasks_that_start_a_turn_at_once_one_runs(database: str) -> None:
    """Fault 29: Two callers start a turn at once (tasks): one runs, the other is `TurnBusy`."""

    async def main() -> list[Any]:
        model = slow()
        async with AsyncContextWindow(database, "chat", model=model) as window:
            await window.add_prompt("count")
            calls = [window.call_model() for _ in range(8)]
            results = await asyncio.gather(*calls, return_exceptions=True)
            assert len(model.requests) == 1
            return results

    results = asyncio.run(main())

    assert sum(isinstance(one, TurnBusy) for one in results) == 7, results
    assert problems(database) == []


def test_of_many_processes_that_start_a_turn_at_once_one_runs(database: str) -> None:
    """Fault 29: Two callers start a turn at once (processes): one runs, nothing else is sent."""
    with ContextWindow(database, "chat") as window:
        window.add_prompt("count")
    children = [Child(start_a_turn, database) for _ in range(6)]
    for child in children:
        child.until("ready")
    for child in children:
        child.tell("go")
    # The one that runs does not end before all have tried.
    first = [child.next() for child in children]
    for child, said in zip(children, first, strict=True):
        if said == "running":
            child.tell("go on")
    results = [child.rest() for child in children]
    for child in children:
        child.kill()

    assert sorted(map(str, first)) == [str(("busy", 0))] * 5 + ["running"]
    assert sorted(results) == [[]] * 5 + [[("reply", 1)]]
    with ContextWindow(database, "chat") as window:
        assert states(window) == ["complete"]
        assert problems(database) == []


# -- 31, 32: many who write -------------------------------------------------------------------


def test_a_prompt_from_another_process_while_a_turn_streams_is_kept_in_order(
    database: str,
) -> None:
    """Fault 31: A prompt added while a turn streams: stored in order, seen by the next call."""
    with Child(stream_slowly, database, COUNT) as child:
        child.until(" two")
        with ContextWindow(database, "chat", model=(model := ScriptedModel(["next"]))) as window:
            window.add_prompt("in between")
            child.tell("go on")
            assert child.rest()[-1] == "stop"

            assert contents(window.records()) == ["count", COUNT, "in between"]
            window.call_model()
            assert contents(list(model.requests[0].records)) == ["count", COUNT, "in between"]
            assert problems(database) == []


def test_64_threads_on_one_window_lose_nothing(database: str) -> None:
    """Fault 32: 64 threads on one window."""
    with ContextWindow(database, "chat", model=slow("fine", 0.0)) as window:
        window.add_prompt("begin")

        def work(number: int) -> Any:
            added = [window.add_prompt(f"{number}/{n}") for n in range(3)]
            window.live_records()
            window.token_usage()
            if number % 8 == 0:
                window.call_model(on_busy="wait")
            return [(record.id, record.content) for record in added]

        results = at_once(64, work)

        assert not [one for one in results if isinstance(one, BaseException)], results
        stored = {(record.id, record.content) for record in window.records()}
        assert stored >= {one for each in results for one in each}
        for number in range(64):
            own = [r.content for r in window.records() if r.content.startswith(f"{number}/")]
            assert own == [f"{number}/{n}" for n in range(3)]
        assert states(window) == ["complete"] * 8
        assert problems(database) == []


def test_200_tasks_on_one_window_lose_nothing(database: str) -> None:
    """Fault 32: 200 tasks on one async window."""

    async def main() -> None:
        async with AsyncContextWindow(database, "chat", model=slow("fine", 0.0)) as window:

            async def work(number: int) -> Record:
                record = await window.add_prompt(f"prompt {number}")
                if number % 40 == 0:
                    await window.call_model(on_busy="wait")
                return record

            added = await asyncio.gather(*(work(number) for number in range(200)))
            stored = {record.id: record.content for record in await window.records()}
            assert all(stored[record.id] == record.content for record in added)
            assert len(stored) == 205

    asyncio.run(main())
    assert problems(database) == []


def test_one_store_in_50_windows_runs_50_turns_at_once(database: str) -> None:
    """Fault 32: one `Store` in 50 windows."""
    with Store(database) as store:
        windows = [ContextWindow(store, f"chat {n}", model=slow(delay=0.005)) for n in range(50)]

        def work(number: int) -> str:
            windows[number].add_prompt("count")
            return windows[number].call_model_streaming().until_done(lambda chunk: None).text

        assert at_once(50, work) == [COUNT] * 50
        assert problems(store) == []


# -- 33: clocks -------------------------------------------------------------------------------


@pytest.mark.parametrize("hours", [-1, 1])
def test_a_clock_that_is_set_does_not_steal_a_lease(
    database: str, monkeypatch: pytest.MonkeyPatch, hours: int
) -> None:
    """Fault 33: Clock set back an hour, and forward: leases are not stolen."""
    clock = time.time
    with ContextWindow(database, "chat", model=slow()) as window:
        window.add_prompt("count")
        for chunk in (stream := window.call_model_streaming()):
            if chunk.delta == "one":
                with monkeypatch.context() as set_clock, Store(database) as other:
                    set_clock.setattr(time, "time", lambda: clock() + 3600 * hours)
                    settled = other.recover()
                    with pytest.raises(TurnBusy):
                        window.call_model()
                assert settled == []

        assert stream.reply.text == COUNT
        assert states(window) == ["complete"]


@pytest.mark.parametrize("hours", [-1, 1])
def test_a_clock_that_is_set_does_not_make_a_lease_immortal(
    database: str, monkeypatch: pytest.MonkeyPatch, hours: int
) -> None:
    """Fault 33: Clock set back an hour, and forward: leases are not immortal."""
    clock = time.time
    with Store(database, lease_seconds=0.4) as store:
        dead = stopped(store)
        window = ContextWindow(store, "chat", model=ScriptedModel(["new"]))
        with monkeypatch.context() as set_clock:
            set_clock.setattr(time, "time", lambda: clock() + 3600 * hours)
            reply = window.call_model(on_busy="wait", deadline=15)
        assert reply.text == "new"
        lost(dead)
        assert problems(store) == []


def stopped(store: Store) -> Any:
    """The chunks of a turn of another thread, whose lease nobody renews any more."""
    window = ContextWindow(store, "chat", model=slow())
    window.add_prompt("count")
    chunks = iter(window.call_model_streaming())

    def read() -> None:
        while next(chunks).delta != "one":
            pass

    thread = threading.Thread(target=read)
    thread.start()
    thread.join()
    store._checkpointer._ledgers.clear()
    return chunks


def lost(chunks: Any) -> None:
    """Read on in a turn that was taken over."""
    with pytest.raises(TurnLost):
        list(chunks)


def test_a_server_whose_clock_was_set_back_keeps_no_dead_turn_for_long(
    postgresql: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fault 33: Clock set back: a holder of another host that is gone is outlived."""
    monotonic = time.monotonic
    with Store(postgresql) as store:
        dead = stopped(store)
        with store.database.write() as connection:
            connection.execute(
                "UPDATE turns SET owner = 'elsewhere/1/1', heartbeat = heartbeat + 3600,"
                " expires = expires + 3600"
            )
        assert store.recover() == []
        # Its lease is as long as before the clock was set: 30 seconds, by our own clock.
        monkeypatch.setattr(time, "monotonic", lambda: monotonic() + 29)
        assert store.recover() == []
        monkeypatch.setattr(time, "monotonic", lambda: monotonic() + 31)
        assert [turn.state for turn in store.recover()] == ["interrupted"]
        monkeypatch.undo()
        lost(dead)


def test_a_machine_that_was_started_anew_leaves_no_lease_behind(file: str) -> None:
    """Fault 33: the clock of SQLite's leases begins anew with the machine."""
    with Store(file) as store:
        dead = stopped(store)
        with store.database.write() as connection:
            connection.execute(
                "UPDATE turns SET owner = 'elsewhere/1/1', heartbeat = heartbeat + 1e6,"
                " expires = expires + 1e6"
            )
        assert [turn.state for turn in store.recover()] == ["interrupted"]
        lost(dead)


def test_a_lease_of_an_older_revision_is_in_the_time_of_the_day(file: str) -> None:
    """Fault 33: what an older contextwindow left runs out, and is not stolen before."""
    with Store(file) as store:
        dead = stopped(store)
        for left, settled in ((10.0, 0), (-1.0, 1)):
            with store.database.write() as connection:
                connection.execute(
                    "UPDATE turns SET owner = 'elsewhere/1/1', heartbeat = ?, expires = ?",
                    (time.time(), time.time() + left),
                )
            assert len(store.recover()) == settled
        lost(dead)


def test_the_order_of_records_and_turns_does_not_follow_the_clock(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fault 33: Clock set back an hour, and forward: order unchanged."""
    clock, hours = time.time_ns, [0, 1, -1, 0]
    model = ScriptedModel([ScriptedReply(COUNT, fault="eof", fail_at=2), "reply"], repeat=True)
    with ContextWindow(database, "chat", model=model) as window:
        for number, shift in enumerate(hours):
            monkeypatch.setattr(time, "time_ns", lambda shift=shift: clock() + shift * 3600 * 10**9)
            window.add_prompt(f"prompt {number}")
            with suppress(ContextWindowError):
                window.call_model(max_resumes=0)

        prompts = [r.content for r in window.live_records() if r.content.startswith("prompt")]
        assert prompts == [f"prompt {number}" for number in range(4)]
        assert states(window) == ["interrupted", "complete"] * 2
        cut = [turn.id for turn in window.turns()][2]
        assert window.resume_streaming().until_done().turn_id == cut, "the newest is resumed"


# -- 34, 35: readers, and contexts that vanish --------------------------------------------------


def test_a_reader_is_consistent_or_clear_whatever_its_window_does(database: str) -> None:
    """Fault 34: Reader used while the window is switched, closed, deleted."""
    with Store(database) as store:
        window = ContextWindow(store, "a", model=slow("fine", 0.001))
        for _ in range(5):
            window.add_prompt("hello")
        reader = window.reader()
        over = threading.Event()

        def read(number: int) -> int:
            seen = 0
            while not over.is_set():
                try:
                    records = reader.records()
                    assert [r.content for r in records if r.content != "fine"] == ["hello"] * 5
                    reader.token_usage()
                    reader.turns()
                except (ContextNotFound, StoreError):
                    pass
                except AssertionError:
                    if records:
                        raise
                seen += 1
            return seen

        def change(number: int) -> int:
            try:
                for turn in range(20):
                    window.switch_context("a")
                    window.call_model()
                    window.switch_context(window.create_context(f"b{turn}").name)
                ContextWindow(store, "c").delete_context("a")
            finally:
                over.set()
            return 1

        results = at_once(5, lambda number: change(number) if number == 4 else read(number))

        assert not [one for one in results if isinstance(one, BaseException)], results
        assert problems(store) == []
    with pytest.raises(StoreError, match="closed"):
        reader.records()


@pytest.mark.parametrize("silent", [False, True])
def test_a_context_that_is_deleted_in_its_turn_ends_it_with_a_clear_error(
    database: str, silent: bool
) -> None:
    """Fault 35: A context deleted in the middle of its turn: a clear error, no orphan rows."""
    with Store(database) as store:
        window = ContextWindow(store, "doomed", model=slow())
        window.add_prompt("count")
        other = ContextWindow(store, "other")

        def delete(chunk: StreamChunk) -> None:
            if chunk.delta == " two":
                other.delete_context("doomed")

        class Deleting(Middleware):
            def on_stream_chunk(self, chunk: StreamChunk) -> None:
                delete(chunk)

        if silent:
            window.add_middleware(Deleting())
        with pytest.raises(ContextNotFound, match="was deleted while turn"):
            window.call_model_streaming().until_done(None if silent else delete)

        assert store.turns() == []
        with store.database.read() as connection:
            for table in ("records", "record_deltas", "calls", "cancellations", "context_tools"):
                rows = connection.execute(f"SELECT count(*) FROM {table}").fetchone()
                assert rows == (0,), table
        assert problems(store) == []


# -- 35a, 35b: keys, hooks ----------------------------------------------------------------------


def test_the_same_key_from_8_processes_is_one_record(database: str) -> None:
    """Fault 35a: The same idempotency key from 8 processes: one record."""
    Store(database).close()
    children = [Child(append_under_one_key, database) for _ in range(8)]
    for child in children:
        child.until("ready")
    for child in children:
        child.tell("go")
    said = [child.rest() for child in children]
    for child in children:
        child.kill()

    assert len({tuple(one) for one in said}) == 1, said
    with ContextWindow(database, "chat") as window:
        assert contents(window.records()) == [f"webhook {number}" for number in range(10)]
        assert problems(database) == []


def test_the_same_key_after_a_commit_whose_answer_was_lost_is_one_record(
    postgresql: str,
) -> None:
    """Fault 35a: and after an ambiguous commit: one record."""
    with ContextWindow(postgresql, "chat") as window:
        import psycopg

        execute = psycopg.Connection.execute

        def lost(raw: Any, sql: Any, *arguments: Any, **options: Any) -> Any:
            result = execute(raw, sql, *arguments, **options)
            if sql == "COMMIT":
                psycopg.Connection.execute = execute  # type: ignore[method-assign]
                raw.close()
                raise psycopg.OperationalError("the connection was lost")
            return result

        psycopg.Connection.execute = lost  # type: ignore[method-assign,assignment]
        with pytest.raises(StoreError, match="not known"):
            window.add_prompt("once", key="webhook 1")

        assert window.add_prompt("once", key="webhook 1").content == "once"
        assert contents(window.records()) == ["once"]
        assert problems(postgresql) == []


def test_hooks_that_write_to_the_same_store_do_not_deadlock(database: str) -> None:
    """Fault 35b: A hook that writes to the same store: no deadlock."""

    class Writer(Middleware):
        def _write(self) -> None:
            log.add_prompt("noted")
            window.live_records()

        def on_call_start(self, call: Any) -> None:
            self._write()

        def on_stream_start(self, stream: Any) -> None:
            self._write()

        def on_stream_chunk(self, chunk: StreamChunk) -> None:
            self._write()

        def on_stream_complete(self, text: str, tokens: int) -> None:
            self._write()

    for interval in (0.0, 0.02):
        with Store(database) as store:
            log = ContextWindow(store, "log")
            options: dict[str, Any] = {"middleware": [Writer()], "checkpoint_interval": interval}
            window = ContextWindow(store, "chat", model=slow(), **options)
            window.add_prompt("count")
            stream = window.call_model_streaming()
            assert "".join(chunk.delta for chunk in stream if log.live_records()) == COUNT
            assert len(log.records()) > 8
            assert problems(store) == []


# -- settling against a write that is under way -------------------------------------------------


def test_settling_waits_for_a_write_of_the_holder_that_is_under_way(
    postgresql: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fault 30: a turn that is taken over in the middle of its holder's write loses none of it."""
    inside, go_on, taken = threading.Event(), threading.Event(), threading.Event()
    append = TurnLedger._append

    def slow_append(
        ledger: TurnLedger, connection: Connection, operation: Append, *, ends: bool
    ) -> None:
        append(ledger, connection, operation, ends=ends)
        if operation.text == " two":
            inside.set()
            go_on.wait(20)

    monkeypatch.setattr(TurnLedger, "_append", slow_append)
    with Store(postgresql) as store, Store(postgresql) as other:
        model = ScriptedModel([["one", " two", " three"]])
        window = ContextWindow(store, "chat", model=model, checkpoint_interval=0.0)
        window.add_prompt("count")
        taker = ContextWindow(other, "chat", model=ScriptedModel(["new"]))
        shown: list[str] = []

        def show(chunk: StreamChunk) -> None:
            shown.append(chunk.delta)
            if chunk.delta == " two":
                # Otherwise the holder's next write may come before the taker's.
                taken.wait(20)

        def hold(number: int) -> None:
            with pytest.raises(TurnLost):
                window.call_model_streaming().until_done(show)

        def take(number: int) -> str:
            assert inside.wait(20)
            monkeypatch.setattr(leases, "dead", lambda dialect, running, now: True)
            threading.Timer(0.3, go_on.set).start()
            try:
                return taker.call_model(on_busy="wait", deadline=20).text
            finally:
                taken.set()

        results = at_once(2, lambda number: take(number) if number else hold(number))

        assert results == [None, "new"]
        assert "".join(shown) == "one two"
        assert contents(responses(window)) == ["one two", "new"]
        assert problems(store) == []


def test_a_record_that_is_closed_while_another_takes_it_out_is_no_deadlock(
    postgresql: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fault 30: all who write take the context's row first."""
    inside = threading.Event()
    look = TurnLedger._look_again

    def slow_look(ledger: TurnLedger, connection: Connection, operation: Any) -> None:
        look(ledger, connection, operation)
        inside.set()
        # Long enough for the other one to come as far as it can.
        time.sleep(0.3)

    with Store(postgresql) as store, Store(postgresql) as other:
        window = ContextWindow(store, "chat", model=slow(), checkpoint_interval=0.0)
        window.add_prompt("count")
        taker = ContextWindow(other, "chat")
        monkeypatch.setattr(TurnLedger, "_look_again", slow_look)

        def take_out(number: int) -> bool:
            assert inside.wait(20)
            (record,) = responses(taker)
            return taker.set_live([record.id], False)[0].live

        results = at_once(2, lambda number: take_out(0) if number else watched(window))

        assert results == [COUNT, False]
        assert problems(store) == []


def watched(window: ContextWindow) -> str:
    """A reply that somebody reads."""
    return window.call_model_streaming().until_done(lambda chunk: None).text


def test_a_lease_that_was_taken_in_between_is_a_busy_turn_and_no_conflict(
    file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fault 29: the unique index is the last word on who runs."""
    with ContextWindow(file, "chat", model=slow()) as window:
        window.add_prompt("count")
        chunks = iter(window.call_model_streaming())
        next(chunks)
        monkeypatch.setattr(beginning, "release", lambda *_: False)
        with pytest.raises((TurnBusy, Conflict)):
            window.call_model()
        monkeypatch.undo()
        list(chunks)
        assert states(window) == ["complete"]
    connection = sqlite3.connect(file)
    with pytest.raises(sqlite3.IntegrityError):
        for number in range(2):
            connection.execute(
                "INSERT INTO turns (id, context_id, state, owner, epoch, heartbeat, expires,"
                " started) SELECT ?, id, 'running', '', 0, 0, 0, '' FROM contexts",
                (f"t{number}",),
            )
    connection.close()
