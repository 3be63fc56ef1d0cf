"""Contexts: making, switching, listing, copying, deleting, exporting, and their figures."""

from __future__ import annotations

import json
import pickle
import sqlite3
import threading
from dataclasses import FrozenInstanceError, fields, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from support import Open, contents, problems
from support import file as file
from support import run as run

from contextwindow import (
    ConfigError,
    ContextNotFound,
    ContextStats,
    ContextWindow,
    Record,
    Store,
    StreamInterrupted,
    Usage,
)
from contextwindow.testing import ScriptedModel, ScriptedReply


def names(window: ContextWindow) -> list[str]:
    return [context.name for context in window.list_contexts()]


def test_a_window_without_a_name_gets_one_of_its_own(database: str, run: Open) -> None:
    first, second = run(database), run(database)

    assert first.current_context
    assert first.current_context != second.current_context
    assert set(names(first)) == {first.current_context, second.current_context}


def test_a_window_is_bound_to_the_context_that_it_names(database: str, run: Open) -> None:
    window = run(database, "chat")

    assert window.current_context == "chat"
    assert window.get_current_context().name == "chat"
    assert names(window) == ["chat"]
    assert repr(window).find("chat") > 0


def test_two_windows_of_one_name_share_the_context(database: str, run: Open) -> None:
    first = run(database, "chat")
    first.add_prompt("from the first")
    second = run(database, "chat")

    assert second.get_current_context() == first.get_current_context()
    assert contents(second.live_records()) == ["from the first"]
    assert names(second) == ["chat"]


def test_windows_of_other_names_see_only_their_own_records(database: str, run: Open) -> None:
    one, two = run(database, "one"), run(database, "two")

    one.add_prompt("in one")
    two.add_prompt("in two")

    assert contents(one.live_records()) == ["in one"]
    assert contents(two.live_records()) == ["in two"]


def test_a_conversation_goes_on_after_the_database_was_closed(database: str, run: Open) -> None:
    window = run(database, "chat")
    for text in ("one", "two"):
        window.add_prompt(text)
    window.close()

    again = run(database, "chat")
    again.add_prompt("three")

    assert contents(again.live_records()) == ["one", "two", "three"]
    assert [record.seq for record in again.records()] == [1, 2, 3]


def test_create_context_is_get_or_create_and_does_not_switch(database: str, run: Open) -> None:
    window = run(database, "main")

    made = window.create_context("other")
    again = window.create_context("other")

    assert made == again
    assert window.current_context == "main"
    assert set(names(window)) == {"main", "other"}


def test_switching_keeps_the_records_of_each_context_apart(database: str, run: Open) -> None:
    model = ScriptedModel([lambda records, options: f"re {records[-1].content}"], repeat=True)
    window = run(database, "a", model=model)
    for name in ("a", "b", "c"):
        window.switch_context(name)
        window.set_system_prompt(f"system {name}")
        window.add_prompt(f"prompt {name}")
        window.call_model()

    for name in ("a", "c", "b"):
        window.switch_context(name)
        expected = [f"system {name}", f"prompt {name}", f"re prompt {name}"]
        assert contents(window.live_records()) == expected
        assert len(window.turns()) == 1
        assert len(window.calls()) == 1
    assert problems(database) == []


def test_switching_to_an_empty_name_leaves_the_current_one(file: str, run: Open) -> None:
    window = run(file, "main")

    with pytest.raises(ConfigError, match="context name is empty"):
        window.switch_context("")

    assert window.current_context == "main"
    assert names(window) == ["main"]


def test_switching_to_an_unknown_name_makes_it(database: str, run: Open) -> None:
    window = run(database, "main")

    window.switch_context("new")

    assert window.current_context == "new"
    assert window.live_records() == []
    assert set(names(window)) == {"main", "new"}


def test_a_reply_goes_to_the_context_that_it_was_asked_in(database: str, run: Open) -> None:
    window = run(database, "a", model=ScriptedModel(["the answer"]))
    window.add_prompt("hi")
    with window.call_model_streaming() as stream:
        for chunk in stream:
            if chunk.delta:
                window.switch_context("b")

    assert window.live_records() == []
    window.switch_context("a")
    assert contents(window.live_records()) == ["hi", "the answer"]


def test_a_stream_belongs_to_the_context_that_was_current_when_it_was_asked_for(
    file: str, run: Open
) -> None:
    window = run(file, "a", model=ScriptedModel(["the answer"]))
    window.add_prompt("hi")
    stream = window.call_model_streaming()
    window.switch_context("b")

    stream.until_done()

    assert window.live_records() == []
    window.switch_context("a")
    assert contents(window.live_records()) == ["hi", "the answer"]


def test_contexts_are_listed_newest_first(database: str, run: Open) -> None:
    window = run(database, "one")
    for name in ("two", "three"):
        window.create_context(name)

    assert names(window) == ["three", "two", "one"]


def test_an_unknown_context_is_named_and_not_made(database: str, run: Open) -> None:
    window = run(database, "main")

    for read in (window.get_context, window.context_stats, window.export_context):
        with pytest.raises(ContextNotFound, match="'typo'"):
            read("typo")
    with pytest.raises(ContextNotFound, match="'typo'"):
        window.delete_context("typo")

    assert names(window) == ["main"]


def test_stats_of_an_empty_context_are_zero(database: str, run: Open) -> None:
    stats = run(database, "empty").context_stats()

    assert (stats.live_tokens, stats.total_records, stats.live_records) == (0, 0, 0)
    assert stats.last_activity is None
    assert stats.name == "empty"


def test_stats_are_frozen_values_whether_anything_was_called(database: str, run: Open) -> None:
    window = run(database, "chat", model=ScriptedModel(["words"]))
    unused = window.context_stats()
    window.add_prompt("hello")
    window.call_model()

    stats = window.context_stats()

    assert type(stats) is type(unused) is ContextStats
    assert type(stats.usage) is Usage
    for value in (stats, stats.usage, unused, unused.usage):
        written = {field.name: getattr(value, field.name) for field in fields(value)}
        assert value == type(value)(**written)
        assert hash(value) == hash(type(value)(**written))
        assert repr(value) == repr(type(value)(**written))
        assert replace(value) == value == pickle.loads(pickle.dumps(value))
        with pytest.raises(FrozenInstanceError):
            setattr(value, next(iter(written)), 1)
    assert replace(stats, live_tokens=9).live_tokens == 9
    assert unused.usage == Usage()
    assert unused.cost == 0
    assert stats.usage.output_tokens > 0


def test_stats_count_dead_records_but_not_their_tokens(database: str, run: Open) -> None:
    window = run(database, "chat", system_prompt="old words")
    window.add_prompt("hello")
    window.create_context("other")
    window.set_system_prompt("new")
    window.add_prompt("world")

    stats = window.context_stats()

    assert (stats.total_records, stats.live_records) == (4, 3)
    assert stats.live_tokens == sum(one.est_tokens for one in window.live_records())
    assert stats.last_activity is not None
    assert abs((datetime.now(UTC) - stats.last_activity).total_seconds()) < 60
    assert window.context_stats("other").total_records == 0
    assert window.current_context == "chat"


def test_the_store_gives_the_stats_of_every_context(database: str) -> None:
    with Store(database) as store:
        for name, count in (("chat-1", 4), ("chat-2", 2), ("empty", 0)):
            window = ContextWindow(store, name)
            for number in range(count):
                window.add_prompt(f"{number}")

        found = store.context_stats()

        assert isinstance(found, list)
        assert [(one.name, one.total_records) for one in found] == [
            ("empty", 0),
            ("chat-2", 2),
            ("chat-1", 4),
        ]


def test_racing_opens_of_one_name_make_one_context(database: str) -> None:
    Store(database).close()
    barrier = threading.Barrier(8)
    ids = []

    def open_it() -> None:
        barrier.wait()
        with ContextWindow(database, "the one") as window:
            ids.append(window.get_current_context().id)

    threads = [threading.Thread(target=open_it) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(ids) == 8
    assert len(set(ids)) == 1
    with Store(database) as store:
        assert len(store.list_contexts()) == 1


# -- clone and fork ----------------------------------------------------------------------


def strip(records: list[Record]) -> list[tuple[Any, ...]]:
    return [
        (one.seq, one.source, one.content, one.live, one.timestamp, one.est_tokens, one.pinned)
        for one in records
    ]


def test_a_clone_holds_the_same_records_under_its_own_id(database: str, run: Open) -> None:
    window = run(database, "chat", model=ScriptedModel(["fine"]), system_prompt="s")
    window.add_prompt("how are you?")
    window.call_model()
    window.set_system_prompt("t")
    window.pin(window.add_prompt("keep me").id)
    before = window.records()

    context = window.clone("copy")

    assert context.id != window.get_current_context().id
    assert context.parent_context_id == window.get_current_context().id
    assert window.current_context == "chat"
    window.switch_context("copy")
    assert strip(window.records()) == strip(before)
    assert {record.context_id for record in window.records()} == {context.id}
    assert {one.id for one in window.records()}.isdisjoint({one.id for one in before})
    assert problems(database) == []


def test_a_clone_and_its_source_go_on_apart(database: str, run: Open) -> None:
    window = run(database, "chat", model=ScriptedModel(["one", "two"]))
    window.add_prompt("hi")
    window.clone("copy")

    window.call_model()
    window.switch_context("copy")
    window.call_model()

    assert contents(window.live_records()) == ["hi", "two"]
    window.switch_context("chat")
    assert contents(window.live_records()) == ["hi", "one"]
    assert problems(database) == []


@pytest.mark.parametrize("name", ["", "taken", "chat"])
def test_a_clone_needs_a_name_of_its_own(database: str, run: Open, name: str) -> None:
    window = run(database, "chat")
    window.create_context("taken")

    with pytest.raises(ConfigError, match=name or "empty"):
        window.clone(name)

    assert set(names(window)) == {"chat", "taken"}


def test_a_clone_of_a_deleted_context_is_refused(file: str, run: Open) -> None:
    window, other = run(file, "chat"), run(file, "other")
    other.delete_context("chat")

    with pytest.raises(ContextNotFound, match="'chat'"):
        window.clone("copy")
    with pytest.raises(ContextNotFound):
        window.add_prompt("hi")

    assert names(other) == ["other"]


def test_a_fork_ends_at_the_record_that_it_names(database: str, run: Open) -> None:
    window = run(database, "chat")
    records = [window.add_prompt(text) for text in "abcd"]
    window.set_live([records[0].id], False)

    window.fork("branch", at=records[2].id)

    window.switch_context("branch")
    assert contents(window.records()) == ["a", "b", "c"]
    assert contents(window.live_records()) == ["b", "c"]
    window.add_prompt("other end")
    assert problems(database) == []


def test_a_fork_at_a_record_of_another_context_is_refused(database: str, run: Open) -> None:
    window = run(database, "one")
    record = window.add_prompt("hi")
    window.switch_context("two")

    with pytest.raises(ConfigError, match=str(record.id)):
        window.fork("branch", at=record.id)

    assert set(names(window)) == {"one", "two"}


def test_a_fork_in_the_middle_of_a_reply_has_what_was_delivered(database: str, run: Open) -> None:
    window = run(database, "chat", model=ScriptedModel(["one two three"]), checkpoint_interval=0)
    window.add_prompt("count")
    with window.call_model_streaming() as stream:
        seen = ""
        for chunk in stream:
            seen += chunk.delta
            if seen == "one two":
                window.clone("copy")

    window.switch_context("copy")
    assert contents(window.live_records()) == ["count", "one two"]
    assert window.interrupted() == []
    assert problems(database) == []


# -- delete ------------------------------------------------------------------------------


def test_deleting_another_context_leaves_the_current_one(database: str, run: Open) -> None:
    window = run(database, "main")
    window.create_context("other")

    window.delete_context("other")

    assert window.current_context == "main"
    assert names(window) == ["main"]


def test_deleting_the_current_context_makes_the_newest_other_one_current(
    database: str, run: Open
) -> None:
    window = run(database, "old")
    window.create_context("middle")
    window.switch_context("new")

    window.delete_context("new")

    assert window.current_context == "middle"
    window.add_prompt("still works")
    assert set(names(window)) == {"old", "middle"}


@pytest.mark.parametrize("name", ["default", "chat"])
def test_deleting_the_only_context_leaves_a_usable_default(
    database: str, run: Open, name: str
) -> None:
    window = run(database, name)
    window.add_prompt("gone")

    window.delete_context(name)

    assert window.current_context == "default"
    assert window.live_records() == []
    window.add_prompt("hi")
    assert names(window) == ["default"]
    assert problems(database) == []


def test_deleting_takes_everything_of_the_context_along(file: str, run: Open) -> None:
    model = ScriptedModel(["fine", ScriptedReply("cut off", fault="eof")])
    window = run(file, "doomed", model=model)
    window.add_prompt("hi")
    window.call_model()
    window.add_prompt("go on")
    with pytest.raises(StreamInterrupted):
        window.call_model(max_resumes=0)
    window.create_context("other")

    window.delete_context("doomed")
    window.close()

    with sqlite3.connect(file) as connection:
        for table in ("records", "record_deltas", "turns", "calls", "context_tools"):
            rows = connection.execute(f"SELECT count(*) FROM {table}").fetchone()
            assert rows == (0,), table
    connection.close()


def test_a_reply_to_a_context_that_is_deleted_meanwhile_fails_by_name(file: str, run: Open) -> None:
    window = run(file, "chat", model=ScriptedModel(["one two three"]))
    other = run(file, "other")
    window.add_prompt("hi")

    with pytest.raises(ContextNotFound, match="deleted"), window.call_model_streaming() as stream:
        for chunk in stream:
            if chunk.delta == "one":
                other.delete_context("chat")

    assert names(other) == ["other"]
    assert problems(file) == []


# -- export and import -------------------------------------------------------------------


def test_an_export_holds_names_and_times_that_people_and_programs_read(
    database: str, run: Open
) -> None:
    window = run(database, "chat", system_prompt="<b>&")
    window.add_prompt("hi")

    data = json.loads(window.export_context_json())

    assert data == window.export_context()
    assert data["context"]["name"] == "chat"
    assert [one["source"] for one in data["records"]] == ["system_prompt", "prompt"]
    assert data["tools"] == []
    assert datetime.fromisoformat(data["context"]["start_time"]).tzinfo is not None
    assert window.export_context_json().startswith('{\n  "')
    assert "<b>&" in window.export_context_json()


def test_an_empty_context_is_exported_with_empty_lists(file: str, run: Open) -> None:
    data = run(file, "empty").export_context()

    assert data["records"] == []
    assert data["tools"] == []


@pytest.mark.parametrize("as_json", [True, False])
def test_what_is_exported_is_imported_again(database: str, run: Open, as_json: bool) -> None:
    window = run(database, "chat", model=ScriptedModel(["fine"]), system_prompt="s")
    window.add_prompt("hi 😀")
    window.call_model()
    window.set_system_prompt("t")
    window.add_tool_call("t", {"a": 1}, "call_1")
    window.add_tool_output("42", "call_1", error=True)
    window.pin(window.records()[1].id)
    data = window.export_context_json() if as_json else window.export_context()

    context = window.import_context(data, "again")

    assert context.name == "again"
    assert window.current_context == "chat"
    before = window.records()
    window.switch_context("again")
    assert strip(window.records()) == strip(before)
    assert [(r.call_id, r.name, r.error) for r in window.records()] == [
        (r.call_id, r.name, r.error) for r in before
    ]
    window.add_prompt("goes on")
    assert problems(database) == []


def test_an_import_into_another_database_keeps_the_name(tmp_path: Path, run: Open) -> None:
    window = run(str(tmp_path / "a.db"), "chat")
    window.add_prompt("hi")
    other = run(str(tmp_path / "b.db"), "other")

    other.import_context(window.export_context())

    assert contents(run(str(tmp_path / "b.db"), "chat").live_records()) == ["hi"]


def test_an_import_under_a_taken_name_is_refused(database: str, run: Open) -> None:
    window = run(database, "chat")
    window.add_prompt("hi")

    with pytest.raises(ConfigError, match=r"'chat'.*name="):
        window.import_context(window.export_context())

    assert contents(window.records()) == ["hi"]
    assert problems(database) == []


def _broken() -> list[Any]:
    good: dict[str, Any] = {
        "format": "contextwindow/1",
        "context": {"name": "x", "start_time": "2026-01-01T00:00:00+00:00"},
        "records": [
            {
                "ts": "2026-01-01T00:00:00+00:00",
                "source": "prompt",
                "content": "hi",
                "live": True,
                "est_tokens": 1,
                "seq": 1,
            }
        ],
        "tools": [],
    }

    def with_record(**changes: Any) -> dict[str, Any]:
        record = {**good["records"][0], **changes}
        return {**good, "records": [*good["records"], record]}

    return [
        "no JSON",
        "[]",
        "null",
        b"\xff\xfe",
        {},
        {**good, "format": "contextwindow/99"},
        {key: value for key, value in good.items() if key != "context"},
        {key: value for key, value in good.items() if key != "records"},
        {**good, "records": "none"},
        {**good, "records": [1]},
        {**good, "context": {"name": ""}},
        {**good, "context": {**good["context"], "start_time": "yesterday"}},
        with_record(),  # the same seq twice
        with_record(seq=2, source="nonsense"),
        with_record(seq=2, content="nul \0 inside"),
        with_record(seq=2, content=None),
        with_record(seq=2, ts="yesterday"),
        with_record(seq=2, est_tokens="many"),
        with_record(seq=-3),
        with_record(seq=2, est_tokens=-7),
        with_record(seq=2, call_id=7),
        with_record(seq=2, name=["x"]),
        with_record(seq=2, response_id={}),
        {**good, "tools": [1]},
        {**good, "context": {**good["context"], "max_tokens": "many"}},
    ]


@pytest.mark.parametrize("data", _broken(), ids=lambda data: repr(data)[:40])
def test_a_broken_export_is_refused_and_leaves_nothing(database: str, data: Any) -> None:
    with ContextWindow(database, "main") as window:
        with pytest.raises(ConfigError, match="export"):
            window.import_context(data, "imported")

        assert names(window) == ["main"]
    assert problems(database) == []


# -- reader ------------------------------------------------------------------------------


def test_the_reader_reads_what_the_window_does(database: str, run: Open) -> None:
    window = run(database, "chat", max_tokens=4096)
    for text in ("a", "b", "c"):
        window.add_prompt(text)
    reader = window.reader()

    assert reader.live_records() == window.live_records()
    assert reader.records(limit=2) == window.records(limit=2)
    assert reader.current_context == "chat"
    assert reader.get_current_context() == window.get_current_context()
    assert reader.list_contexts() == window.list_contexts()
    assert reader.get_context("chat") == window.get_context("chat")
    assert reader.context_stats() == window.context_stats()
    assert reader.live_tokens() == window.live_tokens() > 0
    assert reader.total_tokens() == 0
    assert reader.token_usage() == window.token_usage()
    assert reader.max_tokens == 4096
    assert reader.export_context_json() == window.export_context_json()
    assert reader.turns() == []
    assert reader.calls() == []
    assert reader.interrupted() == []
    assert not [name for name in dir(reader) if name.startswith(("add", "set", "call_model"))]


def test_the_reader_follows_the_window_to_another_context(database: str, run: Open) -> None:
    window = run(database, "one")
    window.add_prompt("in one")
    reader = window.reader()

    window.switch_context("two")
    window.add_prompt("in two")

    assert reader.current_context == "two"
    assert contents(reader.live_records()) == ["in two"]
    assert reader.get_context("one").name == "one"


def test_many_threads_read_while_the_window_switches_and_writes(any_database: str) -> None:
    problems_seen: list[BaseException] = []
    done = threading.Event()
    with ContextWindow(any_database, "a") as window:
        reader = window.reader()

        def read() -> None:
            try:
                while not done.is_set():
                    texts = contents(reader.live_records())
                    assert texts == sorted(texts)
                    assert len({text[0] for text in texts}) <= 1
                    stats = reader.context_stats(reader.current_context)
                    assert stats.total_records >= stats.live_records
                    reader.token_usage()
            except BaseException as error:
                problems_seen.append(error)

        threads = [threading.Thread(target=read) for _ in range(3)]
        for thread in threads:
            thread.start()
        for number in range(40):
            name = "ab"[number % 2]
            window.switch_context(name)
            window.add_prompt(f"{name}{number:03}")
        done.set()
        for thread in threads:
            thread.join()

    assert problems_seen == []
