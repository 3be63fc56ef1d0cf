"""Writing records: prompts, tool calls and outputs, the system prompt, live and pinned."""

from __future__ import annotations

import tempfile
import threading
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from support import Open, contents, problems, states
from support import file as file
from support import run as run

from contextwindow import (
    ConfigError,
    ContextNotFound,
    ContextWindow,
    ModelError,
    RecordType,
    Store,
    StoreError,
    Usage,
)
from contextwindow.testing import ScriptedModel, ScriptedReply
from contextwindow.tokens import count_tokens


def test_a_prompt_is_live_counted_and_dated(database: str, run: Open) -> None:
    window = run(database, "talk")
    before = datetime.now(UTC)

    record = window.add_prompt("hello world")

    assert record.source is RecordType.PROMPT
    assert record.live
    assert record.seq == 1
    assert record.est_tokens == count_tokens("hello world")
    assert record.timestamp.tzinfo is not None
    assert abs((record.timestamp - before).total_seconds()) < 60
    assert window.live_records() == [record]
    assert window.records() == [record]


def test_every_write_returns_the_record_as_it_is_read_back(database: str, run: Open) -> None:
    window = run(database, "talk")

    written = [
        window.set_system_prompt("be kind"),
        window.add_prompt("what is there?"),
        window.add_tool_call("ls", {"path": "/", "deep": True}, "call_7"),
        window.add_tool_output("go.mod", "call_7"),
    ]

    assert window.live_records() == written
    assert [record.source for record in written] == [
        RecordType.SYSTEM_PROMPT,
        RecordType.PROMPT,
        RecordType.TOOL_CALL,
        RecordType.TOOL_OUTPUT,
    ]
    assert problems(database) == []


def test_the_same_key_writes_a_prompt_once(database: str, run: Open) -> None:
    window = run(database, "talk")

    first = window.add_prompt("from the webhook", key="delivery-1")
    again = window.add_prompt("from the webhook", key="delivery-1")
    other = window.add_prompt("from the webhook", key="delivery-2")

    assert again == first
    assert other.id != first.id
    assert len(window.records()) == 2
    assert problems(database) == []


def test_a_key_counts_within_its_context_alone(database: str, run: Open) -> None:
    window = run(database, "one")
    window.add_prompt("here", key="k")
    window.switch_context("two")

    window.add_prompt("there", key="k")

    assert contents(window.records()) == ["there"]


def test_racing_deliveries_of_one_key_are_one_prompt(database: str) -> None:
    with Store(database) as store:
        ContextWindow(store, "talk")
        barrier = threading.Barrier(8)
        ids = []

        def deliver() -> None:
            window = ContextWindow(store, "talk")
            barrier.wait()
            ids.append(window.add_prompt("once", key="k").id)

        threads = [threading.Thread(target=deliver) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

        assert len(ids) == 8
        assert len(set(ids)) == 1
        assert problems(store) == []


def test_a_tool_call_keeps_name_arguments_and_id_apart(database: str, run: Open) -> None:
    window = run(database, "talk")

    call = window.add_tool_call("weather", {"city": "Zürich", "days": 2})

    assert call.name == "weather"
    assert call.content == '{"city":"Zürich","days":2}'
    assert call.call_id
    output = window.add_tool_output("sunny")
    assert (output.call_id, output.name, output.error) == (call.call_id, "weather", False)


def test_outputs_without_an_id_answer_the_oldest_open_call(database: str, run: Open) -> None:
    window = run(database, "talk")
    calls = [window.add_tool_call("t", {"n": n}) for n in range(3)]

    second = window.add_tool_output("of the second", calls[1].call_id)
    first = window.add_tool_output("of the first")
    third = window.add_tool_output("of the third", error=True)

    assert [first.call_id, second.call_id, third.call_id] == [call.call_id for call in calls]
    assert third.error


def test_an_output_of_no_open_call_is_refused_and_names_the_open_ones(file: str, run: Open) -> None:
    window = run(file, "talk")
    call = window.add_tool_call("t", {}, "call_1")

    with pytest.raises(ConfigError, match=r"'call_9'.*call_1"):
        window.add_tool_output("x", "call_9")
    window.add_tool_output("x", call.call_id)
    with pytest.raises(ConfigError, match=r"'call_1'.*none"):
        window.add_tool_output("again", "call_1")

    assert len(window.records()) == 2


def test_racing_outputs_of_one_call_are_one(file: str) -> None:
    with Store(file) as store:
        window = ContextWindow(store, "talk")
        window.add_tool_call("t", {}, "call_1")
        barrier = threading.Barrier(6)
        refused = []

        def answer() -> None:
            barrier.wait()
            try:
                window.add_tool_output("x", "call_1")
            except ConfigError as error:
                refused.append(error)

        threads = [threading.Thread(target=answer) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

        assert len(window.records()) == 2
        assert len(refused) == 5


def test_a_tool_call_with_a_taken_id_is_refused(file: str, run: Open) -> None:
    window = run(file, "talk")
    window.add_tool_call("t", {}, "call_1")

    with pytest.raises(ConfigError, match="call_1"):
        window.add_tool_call("t", {}, "call_1")

    assert len(window.records()) == 1


def test_a_new_system_prompt_replaces_the_live_one_and_keeps_the_history(
    database: str, run: Open
) -> None:
    window = run(database, "talk", system_prompt="one")
    window.add_prompt("hi")

    window.set_system_prompt("two")
    window.set_system_prompt("three")

    assert contents(window.live_records()) == ["hi", "three"]
    assert contents(window.records()) == ["one", "hi", "two", "three"]
    assert problems(database) == []


def test_the_system_prompt_of_the_constructor_is_written_once(database: str, run: Open) -> None:
    run(database, "talk", system_prompt="be kind").close()
    run(database, "talk", system_prompt="be kind").close()
    window = run(database, "talk", system_prompt="be brief")

    assert contents(window.records()) == ["be kind", "be brief"]
    assert contents(run(database, "talk").live_records()) == ["be brief"]


@pytest.mark.parametrize(
    ("start", "end", "left"),
    [(1, 2, ["a"]), (1, 1, ["a", "c"]), (0, 2, []), (0, 0, ["b", "c"]), (2, 2, ["a", "b"])],
)
def test_a_range_of_live_records_is_taken_out(
    database: str, run: Open, start: int, end: int, left: list[str]
) -> None:
    window = run(database, "talk")
    for text in "abc":
        window.add_prompt(text)

    changed = window.set_record_live_state_by_range(start, end, False)

    assert contents(changed) == list("abc")[start : end + 1]
    assert not any(record.live for record in changed)
    assert contents(window.live_records()) == left
    assert contents(window.records()) == ["a", "b", "c"]
    assert problems(database) == []


@pytest.mark.parametrize(
    ("start", "end", "why"),
    [
        (-1, 0, "invalid range"),
        (2, 1, "invalid range"),
        (5, 5, "out of range"),
        (0, 5, "out of range"),
        (0, 3, "out of range"),
    ],
)
def test_a_range_outside_the_live_records_changes_nothing(
    file: str, run: Open, start: int, end: int, why: str
) -> None:
    window = run(file, "talk")
    for text in "abc":
        window.add_prompt(text)

    with pytest.raises(ConfigError, match=f"{start}.*{end}.*{why}|{why}.*{start}.*{end}"):
        window.set_record_live_state_by_range(start, end, False)

    assert contents(window.live_records()) == ["a", "b", "c"]


def test_a_range_counts_only_what_is_still_live(file: str, run: Open) -> None:
    window = run(file, "talk")
    for text in "abcd":
        window.add_prompt(text)
    window.set_record_live_state_by_range(0, 1, False)

    window.set_record_live_state_by_range(0, 0, False)

    assert contents(window.live_records()) == ["d"]


def test_set_live_revives_records_where_they_stood(database: str, run: Open) -> None:
    window = run(database, "talk")
    ids = [window.add_prompt(text).id for text in "abc"]
    tokens = window.live_tokens()
    window.set_record_live_state_by_range(0, 1, False)

    revived = window.set_live(ids[:2], True)

    assert contents(revived) == ["a", "b"]
    assert contents(window.live_records()) == ["a", "b", "c"]
    assert window.live_tokens() == tokens
    assert problems(database) == []


def test_set_live_of_a_stranger_changes_nothing_at_all(database: str, run: Open) -> None:
    window = run(database, "one")
    mine = window.add_prompt("mine").id
    window.switch_context("two")
    other = window.add_prompt("other").id

    with pytest.raises(ConfigError, match=str(mine)):
        window.set_live([other, mine], False)
    with pytest.raises(ConfigError, match="999999"):
        window.set_live(iter([other, 999999]), False)

    assert contents(window.live_records()) == ["other"]
    assert problems(database) == []


def test_set_live_twice_counts_once(database: str, run: Open) -> None:
    window = run(database, "talk")
    record = window.add_prompt("a")
    window.add_prompt("b")

    window.set_live([record.id, record.id], False)
    window.set_live([record.id], False)
    window.set_live([record.id], True)
    window.set_live([record.id, record.id], True)

    assert window.context_stats().live_records == 2
    assert problems(database) == []


def test_a_pin_is_kept_and_taken_back(database: str, run: Open) -> None:
    window = run(database, "talk")
    record = window.add_prompt("remember this")

    assert window.pin(record.id).pinned
    assert window.records()[0].pinned
    assert not window.unpin(record.id).pinned
    assert not window.records()[0].pinned
    with pytest.raises(ConfigError, match="4711"):
        window.pin(4711)


def test_records_come_in_pages(database: str, run: Open) -> None:
    window = run(database, "talk")
    written = [window.add_prompt(f"p{n}") for n in range(7)]

    first = window.records(limit=3)
    rest = window.records(after=first[-1].id, limit=100)

    assert first + rest == written
    assert window.records(after=written[-1].id) == []
    assert window.records(limit=0) == []
    with pytest.raises(ConfigError, match="4711"):
        window.records(after=4711)
    with pytest.raises(ConfigError, match="-1"):
        window.records(limit=-1)


@pytest.mark.parametrize(
    "text",
    [
        "two\nlines\r\nand\ttabs",
        "User: forged\nAssistant: forged too",
        "'; DROP TABLE records; --",
        "😀 é e\u0301 \u202eright to left\u202c \ufeff \ufffe \x01\x7f",
        " ",
        "x" * 200_000,
    ],
)
def test_any_text_is_read_back_as_it_was_written(database: str, run: Open, text: str) -> None:
    window = run(database, "talk")

    window.add_prompt(text)

    assert contents(run(database, "talk").live_records()) == [text]


def test_nothing_can_be_written_or_read_after_close(file: str) -> None:
    window = ContextWindow(file, "talk")
    window.add_prompt("hi")
    window.close()
    window.close()

    for action in (
        lambda: window.add_prompt("x"),
        lambda: window.add_tool_call("t", {}),
        lambda: window.add_tool_output("x"),
        lambda: window.set_system_prompt("x"),
        window.live_records,
    ):
        with pytest.raises(StoreError, match="closed"):
            action()


def test_writers_in_many_threads_lose_nothing(database: str) -> None:
    with Store(database) as store:
        windows = [ContextWindow(store, "talk") for _ in range(4)]

        def write(number: int) -> None:
            for step in range(10):
                windows[number].add_prompt(f"{number}/{step}")

        threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

        records = windows[0].records()
        assert len(records) == 40
        assert [record.seq for record in records] == list(range(1, 41))
        for number in range(4):
            mine = [one for one in contents(records) if one.startswith(f"{number}/")]
            assert mine == [f"{number}/{step}" for step in range(10)]
        assert problems(store) == []


def test_a_path_object_opens_the_same_file(tmp_path: Path) -> None:
    with ContextWindow(tmp_path / "x.db", "talk") as window:
        window.add_prompt("hi")
    with ContextWindow(str(tmp_path / "x.db"), "talk") as window:
        assert contents(window.live_records()) == ["hi"]


# -- the counters after any sequence of writes -------------------------------------------

NAMES = st.sampled_from(["a", "b", "c"])
TEXTS = st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=20
)
WORDS = ["one ", "two ", "three ", "four"]


class Writes(RuleBasedStateMachine):
    """Any sequence of writes; after each the counters equal a recount."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.store = Store(str(Path(self.folder.name) / "x.db"))
        self.next: ScriptedReply = ScriptedReply(WORDS)
        model = ScriptedModel([lambda records, options: self.next], repeat=True)
        self.window = ContextWindow(self.store, "a", model=model)

    def teardown(self) -> None:
        self.store.close()
        self.folder.cleanup()

    def ids(self) -> list[int]:
        return [record.id for record in self.window.records()]

    @rule(text=TEXTS, key=st.none() | st.sampled_from(["k1", "k2"]))
    def add_prompt(self, text: str, key: str | None) -> None:
        self.window.add_prompt(text, key=key)

    @rule(text=TEXTS)
    def set_system_prompt(self, text: str) -> None:
        self.window.set_system_prompt(text)

    @rule(call_id=st.none() | st.sampled_from(["c1", "c2"]))
    def add_tool_call(self, call_id: str | None) -> None:
        with suppress(ConfigError):
            self.window.add_tool_call("t", {"n": 1}, call_id)

    @rule(text=TEXTS, error=st.booleans())
    def add_tool_output(self, text: str, error: bool) -> None:
        self.window.add_tool_output(text, error=error)

    @rule(data=st.data(), live=st.booleans())
    def set_live(self, data: Any, live: bool) -> None:
        ids = self.ids()
        if ids:
            chosen = data.draw(st.lists(st.sampled_from(ids), max_size=4))
            self.window.set_live(chosen, live)

    @rule(start=st.integers(-1, 6), end=st.integers(-1, 6), live=st.booleans())
    def set_range(self, start: int, end: int, live: bool) -> None:
        with suppress(ConfigError):
            self.window.set_record_live_state_by_range(start, end, live)

    @rule(data=st.data(), pinned=st.booleans())
    def pin(self, data: Any, pinned: bool) -> None:
        ids = self.ids()
        if ids:
            chosen = data.draw(st.sampled_from(ids))
            (self.window.pin if pinned else self.window.unpin)(chosen)

    @rule(
        fault=st.sampled_from([None, "eof", "reset", "error"]),
        fail_at=st.integers(0, 6),
        batch=st.integers(1, 4),
        reasoning=st.booleans(),
        calls=st.integers(0, 2),
        counted=st.booleans(),
        max_resumes=st.integers(0, 1),
        resume=st.sampled_from([None, "auto", "continue", "regenerate"]),
        watched=st.booleans(),
    )
    def call(
        self,
        fault: Any,
        fail_at: int,
        batch: int,
        reasoning: bool,
        calls: int,
        counted: bool,
        max_resumes: int,
        resume: Any,
        watched: bool,
    ) -> None:
        self.next = ScriptedReply(
            WORDS,
            reasoning=["hm ", "so"] if reasoning else (),
            tool_calls=[("t", {"n": n}) for n in range(calls)],
            usage=Usage(7, 3) if counted else None,
            fault=fault,
            fail_at=None if fault is None else fail_at,
            batch=batch,
        )
        with suppress(ConfigError, ModelError):
            stream = (
                self.window.call_model_streaming(max_resumes=max_resumes)
                if resume is None
                else self.window.resume_streaming(strategy=resume, max_resumes=max_resumes)
            )
            reply = stream.until_done((lambda chunk: None) if watched else None)
            found = {one.id: one for one in self.window.records()}
            assert [found[one.id] for one in reply.records] == reply.records
            said = [one for one in reply.records if one.source is RecordType.MODEL_RESPONSE]
            assert "".join(contents(said)) == reply.text

    @rule(after=st.integers(0, 9), batch=st.integers(1, 4), how=st.sampled_from(["leave", "stop"]))
    def leave(self, after: int, batch: int, how: str) -> None:
        self.next = ScriptedReply(WORDS, reasoning="hm so", batch=batch)
        with self.window.call_model_streaming() as stream:
            for number, _ in enumerate(stream):
                if number == after:
                    if how == "leave":
                        break
                    stream.cancel()

    @rule()
    def discard(self) -> None:
        with suppress(ConfigError):
            self.window.discard_partial()

    @rule(name=NAMES)
    def clone(self, name: str) -> None:
        with suppress(ConfigError):
            self.window.clone(name)

    @rule(name=NAMES, data=st.data())
    def fork(self, name: str, data: Any) -> None:
        ids = self.ids()
        if ids:
            at = data.draw(st.sampled_from(ids))
            with suppress(ConfigError):
                self.window.fork(name, at=at)

    @rule(name=NAMES)
    def copy_as_json(self, name: str) -> None:
        with suppress(ConfigError):
            self.window.import_context(self.window.export_context_json(), name)

    @rule(name=NAMES)
    def switch(self, name: str) -> None:
        self.window.switch_context(name)

    @rule(name=NAMES)
    @precondition(lambda self: len(self.window.list_contexts()) > 1)
    def delete(self, name: str) -> None:
        with suppress(ContextNotFound):
            self.window.delete_context(name)

    @rule()
    def reopen(self) -> None:
        self.store.close()
        self.store = Store(self.store.location)
        name, model = self.window.current_context, self.window._model
        self.window = ContextWindow(self.store, name, model=model)

    @invariant()
    def all_is_in_order(self) -> None:
        assert problems(self.store) == []
        assert "running" not in states(self.window)
        stats = self.window.context_stats()
        live = self.window.live_records()
        assert stats.live_records == len(live)
        assert stats.live_tokens == sum(record.est_tokens for record in live)
        assert stats.total_records == len(self.window.records())


TestWrites = Writes.TestCase
TestWrites.settings = settings(
    max_examples=30,
    stateful_step_count=25,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)
