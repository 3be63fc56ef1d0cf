"""Faults under followers: dead producers, lost notices, reconnects, followers that stand still."""

from __future__ import annotations

import asyncio
import random
import sqlite3
import threading
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
import sqlalchemy as sa
from crash import CHUNKS, CONTEXT, kill_while_streaming
from following import A_MOMENT, Page, there
from support import shown

from contextwindow import (
    AsyncContextWindow,
    ContextWindow,
    Store,
    StreamChunk,
    StreamFailed,
    StreamInterrupted,
)
from contextwindow.testing import ScriptedModel, ScriptedReply

ENOUGH = 60.0
"""Seconds after which what should have ended counts as stuck."""


def until(holds: Callable[[], bool]) -> None:
    give_up = time.monotonic() + ENOUGH
    while not holds():
        assert time.monotonic() < give_up
        time.sleep(0.002)


def ended(thread: threading.Thread) -> bool:
    thread.join(ENOUGH)
    return not thread.is_alive()


# -- the producer dies ---------------------------------------------------------------------


def test_a_stream_of_a_killed_process_that_is_resumed_elsewhere(database: str) -> None:
    """Fault 35c: A follower whose producer died: it ends, and goes on when the reply does."""
    rest = [f"r{number} " for number in range(300)]
    model = ScriptedModel([ScriptedReply(chunks=rest, delay=0.0005)])
    chance = random.Random(5)
    page = Page()
    with Store(database, lease_seconds=2.0) as store, ContextWindow(store, CONTEXT) as reader:
        over = threading.Event()

        def reconnect() -> None:
            while not over.is_set():
                for chunk in reader.follow(page.last_id, timeout=0.5):
                    page.show([chunk])
                    if chance.random() < 0.05 or over.is_set():
                        break

        thread = threading.Thread(target=reconnect)
        thread.start()
        try:
            kill_while_streaming(database, interval=0.0, mode="sync", after=0.3)
            until(lambda: "stream_failed" in page.kinds)
            with ContextWindow(database, CONTEXT, model=model) as other:
                reply = other.resume()
            until(lambda: "done" in page.kinds)
        finally:
            over.set()
            assert ended(thread)

        assert page.text == reply.text
        assert reply.text.startswith("".join(CHUNKS[:3]))
        assert page.kinds.count("stream_start") == 1
        assert page.kinds.count("stream_failed") == 1
        assert page.kinds.count("resumed") == 1
        assert page.kinds.count("done") == 1


def test_a_waiting_follower_of_a_killed_process_ends_and_says_interrupted(database: str) -> None:
    """Fault 35c: A follower that never reconnects and has no timeout ends, too."""
    chunks: list[StreamChunk] = []
    with Store(database) as store, ContextWindow(store, CONTEXT) as reader:
        following = reader.follow()
        thread = threading.Thread(target=lambda: chunks.extend(following))
        thread.start()
        death = kill_while_streaming(database, interval=0.0, mode="async", after=0.1)

        assert ended(thread)
        assert shown(chunks).startswith(death.text)
        assert isinstance(chunks[-1], StreamFailed)
        assert isinstance(chunks[-1].error, StreamInterrupted)
        assert [turn.state for turn in reader.turns()] == ["interrupted"]


def test_a_follower_that_may_not_write_is_told_of_a_death(tmp_path: Path) -> None:
    """Fault 35c: A producer that died, seen by who may only read."""
    database = str(tmp_path / "x.db")
    kill_while_streaming(database, interval=0.0, mode="sync", after=0.05)
    with Store(database, read_only=True) as store, ContextWindow(store, CONTEXT) as window:
        chunks = list(window.follow(""))

        assert isinstance(chunks[-1], StreamFailed)
        assert "process ended" in str(chunks[-1].error)
        assert shown(chunks) == window.live_records()[-1].content
        assert there(window, "")[-1].type == "stream_failed"


# -- notices are lost ----------------------------------------------------------------------


@pytest.fixture
def listener(postgresql: str) -> str:
    """URL of the same database, by which the server tells its connections from all others."""
    name = f"follower {sa.make_url(postgresql).query['options'][-24:]}"
    url = sa.make_url(postgresql).update_query_dict({"application_name": name})
    return url.render_as_string(hide_password=False)


def end_listener(store: Store, listener: str) -> None:
    """Have the server end the connection that listens; waits until there is one."""
    name = sa.make_url(listener).query["application_name"]

    def ends() -> bool:
        with store.database.write() as connection:
            found = connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE application_name = %s AND query LIKE 'LISTEN%%' AND state = 'idle'",
                (name,),
            ).fetchall()
        return len(found) == 1 and bool(found[0][0])

    until(ends)


@pytest.mark.parametrize("at", ["begin", "middle", "end"])
def test_a_follower_whose_listening_connection_is_ended_goes_on(
    postgresql: str, listener: str, at: str
) -> None:
    """Fault 35c: Notices were lost, that of the end among them: it ends all the same."""
    words = [f"w{number} " for number in range(30)]
    chunks: list[StreamChunk] = []
    with Store(postgresql) as here, Store(listener) as elsewhere:
        window = ContextWindow(here, "chat", model=ScriptedModel([words]), checkpoint_interval=0.0)
        window.add_prompt("go")
        following = ContextWindow(elsewhere, "chat").follow()
        thread = threading.Thread(target=lambda: chunks.extend(following))
        thread.start()
        if at == "begin":
            end_listener(here, listener)
        for number, _ in enumerate(window.call_model_streaming()):
            if number == 15:
                until(lambda: bool(chunks))
                if at == "middle":
                    end_listener(here, listener)
            elif number == 30 and at == "end":
                end_listener(here, listener)

        assert ended(thread)
        assert shown(chunks) == "".join(words)
        assert chunks[-1].type == "done"


# -- reconnects ----------------------------------------------------------------------------


def test_two_hundred_reconnects_to_a_running_stream_give_each_character_once(
    database: str,
) -> None:
    """Fault 35c: 200 reconnects: each character once."""
    text = [f"w{number} " for number in range(1500)]
    model = ScriptedModel([ScriptedReply(chunks=text, delay=0.0005, batch=3)])
    chance = random.Random(7)
    with Store(database) as store:
        window = ContextWindow(store, "chat", model=model, checkpoint_interval=0.0)
        window.add_prompt("go")
        producer = threading.Thread(target=lambda: list(window.call_model_streaming()))
        producer.start()
        page = Page()
        for _ in range(200):
            for chunk in window.follow(page.last_id, timeout=ENOUGH):
                page.show([chunk])
                if chance.random() < 0.3:
                    break
            if page.kinds[-1] == "done":
                break
        else:
            page.show(window.follow(page.last_id, timeout=ENOUGH))

        assert ended(producer)
        assert page.text == "".join(text)
        assert page.set_back == 0
        assert page.kinds.count("done") == page.kinds.count("stream_start") == 1


def test_two_hundred_reconnects_at_random_ids_give_each_character_once(database: str) -> None:
    """Fault 35c: 200 reconnects at random ids: during, after a resume elsewhere, at the end."""
    texts = [f"w{number} " for number in range(100)]
    model = ScriptedModel([texts[:60], texts[60:]])
    chance = random.Random(11)
    seen: list[StreamChunk] = []
    reconnects = 0

    def reconnect(window: ContextWindow) -> None:
        nonlocal seen, reconnects
        reconnects += 1
        # Any place that somebody has seen, not only the newest.
        at = chance.randrange(len(seen) + 1)
        news = list(window.follow(seen[at - 1].id if at else "", timeout=A_MOMENT))
        page = Page().show([*seen[:at], *news])
        everything = "".join(one.content for one in window.records() if one.id in page.texts)
        assert page.text == everything
        assert page.set_back == 0
        seen = [*seen[:at], *news]

    with Store(database) as first, Store(database) as second:
        window = ContextWindow(first, "chat", model=model, checkpoint_interval=0.0)
        window.add_prompt("go")
        stream = window.call_model_streaming()
        for number, _ in enumerate(stream):
            reconnect(window)
            if number == 50:
                break
        stream.close()
        for _ in range(40):
            reconnect(window)
        other = ContextWindow(second, "chat", model=model, checkpoint_interval=0.0)
        for _ in other.resume_streaming():
            reconnect(window)
        while reconnects < 200:
            reconnect(window)

        kinds = [chunk.type for chunk in seen if chunk.type != "text_delta"]
        # Whoever comes again after it was resumed is not told that it had failed.
        kinds = [kind for kind in kinds if kind != "stream_failed"]
        assert kinds == ["stream_start", "resumed", "done"]
        assert shown(seen) == other.live_records()[-1].content


# -- standing still ------------------------------------------------------------------------


def test_a_stuck_follower_reads_the_log_later(tmp_path: Path) -> None:
    """Fault 35c: One that takes nothing for longer than its buffer lasts misses nothing."""
    words = [f"w{number} " for number in range(12)]
    with Store(tmp_path / "x.db") as store:
        window = ContextWindow(store, "chat", model=ScriptedModel([words], repeat=True))
        window.add_prompt("go")
        stuck = window.follow("")
        window.call_model()
        first = next(stuck)
        # More than the buffer holds while it stands still.
        for _ in range(100):
            window.add_prompt("more")
            window.call_model()
        rest = list(stuck)

        assert first.type == "stream_start"
        assert shown(rest) == "".join(words) * 101


def test_stuck_followers_hold_nothing_that_others_need(tmp_path: Path) -> None:
    """Fault 35c: Whoever stands still in the middle of a reply keeps no old state open."""
    words = [f"w{number} " for number in range(300)]
    model = ScriptedModel([words])
    path = tmp_path / "x.db"
    with Store(path) as store:
        window = ContextWindow(store, "chat", model=model, checkpoint_interval=0.0)
        window.add_prompt("go")
        stuck = [window.follow("") for _ in range(20)]
        stream = window.call_model_streaming()
        shown_before = [next(stream) for _ in range(100)]
        for one in stuck:
            assert next(one).type == "stream_start"
        rest = list(stream)

        assert shown([*shown_before, *rest]) == "".join(words)
        until(lambda: _log_can_be_emptied(path))
        for one in stuck:
            assert shown(list(one)) == "".join(words)


def test_stuck_tasks_keep_no_transaction_open(postgresql: str, listener: str) -> None:
    """Fault 35c: Nor on a server, where it would hold its cleaning up."""
    words = [f"w{number} " for number in range(300)]
    with Store(postgresql) as here, Store(listener) as elsewhere:
        window = ContextWindow(here, "chat", model=ScriptedModel([words]), checkpoint_interval=0.0)
        window.add_prompt("go")
        stream = window.call_model_streaming()
        for _ in range(100):
            next(stream)

        async def main() -> None:
            async with AsyncContextWindow(elsewhere, "chat") as following:
                stuck = [following.follow("") for _ in range(20)]
                for one in stuck:
                    assert (await anext(one)).type == "stream_start"
                await asyncio.to_thread(list, stream)
                await asyncio.to_thread(until, lambda: not _in_transactions(here, listener))
                for one in stuck:
                    assert shown([chunk async for chunk in one]) == "".join(words)

        asyncio.run(main())


def _log_can_be_emptied(path: Path) -> bool:
    with closing(sqlite3.connect(path)) as connection:
        busy = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]
    return bool(busy == 0)


def _in_transactions(store: Store, listener: str) -> list[str]:
    """States of the connections of that name that have a transaction open."""
    name = sa.make_url(listener).query["application_name"]
    with store.database.read() as connection:
        rows = connection.execute(
            "SELECT state FROM pg_stat_activity "
            "WHERE application_name = %s AND state LIKE 'idle in transaction%%'",
            (name,),
        ).fetchall()
    return [str(row[0]) for row in rows]
