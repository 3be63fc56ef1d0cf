"""A database that fails in the middle of a stream."""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from crash import recount
from support import (
    COUNT,
    Open,
    check_order,
    contents,
    problems,
    ready,
    responses,
    shown,
    states,
    usable,
)
from support import file as file
from support import run as run

from contextwindow import (
    ContextNotFound,
    ContextWindow,
    ContextWindowError,
    Middleware,
    Store,
    StoreError,
    StreamChunk,
    TurnBusy,
    TurnLost,
)
from contextwindow.testing import ScriptedModel, ScriptedReply


def break_it(file: str, *, table: str, operation: str, when: str = "1") -> None:
    """Makes every *operation* on *table* fail from now on."""
    with sqlite3.connect(file) as connection:
        connection.execute(
            f"CREATE TRIGGER broken BEFORE {operation} ON {table} WHEN {when} "
            "BEGIN SELECT RAISE(ABORT, 'no room left'); END"
        )
    connection.close()


def mend_it(file: str) -> None:
    """Undoes `break_it`."""
    with sqlite3.connect(file) as connection:
        connection.execute("DROP TRIGGER broken")
    connection.close()


def test_a_stream_whose_end_cannot_be_written_still_ends_with_stream_failed(
    file: str, run: Open
) -> None:
    window = ready(run, file, ScriptedReply(COUNT), "next reply", checkpoint_interval=0)
    chunks: list[StreamChunk] = []

    with pytest.raises(StoreError, match="no room left"):
        for chunk in window.call_model_streaming():
            chunks.append(chunk)
            if chunk.delta == " three":
                break_it(file, table="turns", operation="UPDATE")

    check_order(chunks, None)
    mend_it(file)
    with ContextWindow(file, "chat") as other:
        assert responses(other)[0].content == shown(chunks) == COUNT
    usable(window, file)


@pytest.mark.parametrize("watched", [True, False])
@pytest.mark.parametrize("interval", [0, 0.05])
def test_a_reply_whose_end_was_refused_is_kept_to_be_resumed(
    file: str, run: Open, watched: bool, interval: float
) -> None:
    window = ready(run, file, COUNT, " and more", checkpoint_interval=interval)
    break_it(file, table="turns", operation="UPDATE", when="NEW.state = 'complete'")

    with pytest.raises(StoreError, match="no room left"):
        window.call_model_streaming().until_done((lambda chunk: None) if watched else None)

    mend_it(file)
    assert contents(responses(window)) == [COUNT]
    assert states(window) == ["interrupted"]
    assert problems(file) == []


@pytest.mark.parametrize("where", ["hook", "callback"])
def test_an_interrupt_is_never_turned_into_a_store_error(file: str, where: str) -> None:
    def at_three(chunk: StreamChunk) -> None:
        if chunk.delta == " three":
            break_it(file, table="turns", operation="UPDATE")
            raise KeyboardInterrupt

    middleware = [_hook(at_three)] if where == "hook" else []
    model = ScriptedModel([COUNT])
    with ContextWindow(file, "chat", model=model, middleware=middleware) as window:
        window.add_prompt("count")
        with pytest.raises(KeyboardInterrupt):
            window.call_model_streaming().until_done(at_three if where == "callback" else None)


def test_an_error_of_the_callback_comes_out_unchanged_when_the_end_cannot_be_written(
    file: str, run: Open
) -> None:
    window = ready(run, file)
    mine = LookupError("mine")

    def at_three(chunk: StreamChunk) -> None:
        if chunk.delta == " three":
            break_it(file, table="turns", operation="UPDATE")
            raise mine

    with pytest.raises(LookupError) as caught:
        window.call_model_streaming().until_done(at_three)

    assert caught.value is mine
    mend_it(file)


def _hook(function: Callable[[StreamChunk], Any]) -> Middleware:
    middleware = Middleware()
    setattr(middleware, "on_stream_chunk", function)  # noqa: B010 - mypy forbids the other way
    return middleware


@pytest.mark.parametrize("watched", [True, False])
def test_a_lease_that_was_taken_over_leaves_the_counters_right(file: str, watched: bool) -> None:
    reply = ScriptedReply(["one", " two", " three"], delay=0.4)
    with Store(file, lease_seconds=0.5) as store:
        window = ContextWindow(store, "chat", model=ScriptedModel([reply]))
        window.add_prompt("count")

        def steal() -> None:
            with sqlite3.connect(file, timeout=5) as connection:
                connection.execute(
                    "UPDATE turns SET epoch = epoch + 1, state = 'interrupted' "
                    "WHERE state = 'running'"
                )
            connection.close()

        threading.Timer(0.1, steal).start()
        with pytest.raises(TurnLost):
            window.call_model_streaming().until_done((lambda chunk: None) if watched else None)

        assert recount(store) == []


def test_a_deleted_context_does_not_stop_the_streams_of_others(file: str) -> None:
    slow = ScriptedReply(["one", " two", " three", " four"], delay=0.1)
    with Store(file) as store:
        windows = [
            ContextWindow(store, name, model=ScriptedModel([slow]), checkpoint_interval=0.02)
            for name in ("doomed", "other")
        ]
        results: dict[str, Any] = {}

        def call(window: ContextWindow) -> None:
            window.add_prompt("count")
            try:
                results[window.current_context] = window.call_model_streaming().until_done(
                    lambda chunk: None
                )
            except ContextWindowError as error:
                results[window.current_context] = error

        threads = [threading.Thread(target=call, args=(window,)) for window in windows]
        for thread in threads:
            thread.start()
        time.sleep(0.15)
        ContextWindow(store, "third").delete_context("doomed")
        for thread in threads:
            thread.join()

        assert isinstance(results["doomed"], ContextNotFound)
        assert results["other"].text == "one two three four"
        assert problems(store) == []


def test_a_turn_that_was_lost_does_not_give_away_its_successor(file: str) -> None:
    """The same turn, resumed elsewhere in this process, keeps its lease."""
    with Store(file) as store:
        slow = ScriptedModel([ScriptedReply(["one", " two"], fault="stall", fail_at=1)])
        first = ContextWindow(store, "chat", model=slow)
        first.add_prompt("count")
        stream = first.call_model_streaming()
        chunks = iter(stream)
        while next(chunks).delta != "one":
            pass
        with sqlite3.connect(file) as connection:
            connection.execute("UPDATE turns SET expires = 0")
        connection.close()
        second = ContextWindow(store, "chat", model=ScriptedModel([[" two", " three"]]))
        with second.resume_streaming(stream.turn_id) as resumed:
            for chunk in resumed:
                if chunk.delta == " two":
                    stream.cancel()
                    with pytest.raises(TurnLost):
                        list(chunks)
                    with pytest.raises(TurnBusy):
                        ContextWindow(store, "chat", model=slow).call_model()

        assert resumed.reply.text == "one two three"
        assert contents(responses(second)) == ["one two three"]
        assert problems(store) == []
