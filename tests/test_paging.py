"""Reading a large database page by page, through both windows and the store."""

from __future__ import annotations

from typing import Any

import anyio
import pytest

from contextwindow import (
    AsyncContextWindow,
    CallSize,
    ConfigError,
    Context,
    ContextNotFound,
    ContextWindow,
    Record,
    RecordType,
    Store,
)
from contextwindow.testing import ScriptedModel, ScriptedReply


def talked(store: Store, name: str = "alice", turns: int = 3) -> ContextWindow:
    model = ScriptedModel([f"reply {number}" for number in range(turns + 1)])
    window = ContextWindow(store, name, model=model, system_prompt="Be kind.")
    for number in range(turns):
        window.add_prompt(f"prompt {number}")
        window.call_model()
    return window


@pytest.fixture(params=["window", "async window", "reader"])
def reads(request: pytest.FixtureRequest) -> Any:
    """A function that calls a method of a window, by its name, in each of the three ways."""

    def call(window: ContextWindow, store: Store, name: str, *given: Any, **named: Any) -> Any:
        if request.param == "window":
            return getattr(window, name)(*given, **named)
        if request.param == "reader":
            return getattr(window.reader(), name)(*given, **named)

        async def ask() -> Any:
            async with AsyncContextWindow(store, window.current_context) as other:
                return await getattr(other, name)(*given, **named)

        return anyio.run(ask)

    return call


def texts(records: list[Record]) -> list[str]:
    return [one.content for one in records]


def test_contexts_come_in_pages_the_last_used_first(any_database: str) -> None:
    with Store(any_database) as store:
        for number in range(7):
            ContextWindow(store, f"context {number}").add_prompt("hello")
        ContextWindow(store, "context 2").add_prompt("again")

        names: list[str] = []
        after = None
        pages = 0
        while True:
            page = store.page_contexts(after=after, limit=3)
            names += [one.name for one in page.contexts]
            pages += 1
            after = page.next
            if after is None:
                break

        assert names == [f"context {number}" for number in (2, 6, 5, 4, 3, 1, 0)]
        assert pages == 3
        assert page.contexts[0].total_records == 1


def test_a_page_goes_on_where_it_was_whatever_has_been_used_since(any_database: str) -> None:
    with Store(any_database) as store:
        for number in range(4):
            ContextWindow(store, f"context {number}").add_prompt("hello")
        page = store.page_contexts(limit=2)
        ContextWindow(store, "context 2").add_prompt("again")

        rest = store.page_contexts(after=page.next, limit=5)

        assert [one.name for one in page.contexts] == ["context 3", "context 2"]
        assert [one.name for one in rest.contexts] == ["context 1", "context 0"]
        assert rest.next is None


def test_contexts_are_found_by_a_part_of_their_name(any_database: str) -> None:
    with Store(any_database) as store:
        for name in ("Alice", "ALICE's", "bob", "50% of_it", "Ärger"):
            ContextWindow(store, name)

        def named(part: str) -> set[str]:
            return {one.name for one in store.page_contexts(name_contains=part).contexts}

        assert named("alice") == {"Alice", "ALICE's"}
        assert named("%") == {"50% of_it"}
        assert named("_") == {"50% of_it"}
        assert named("Ärg") == {"Ärger"}
        assert named("'") == {"ALICE's"}
        assert len(named("")) == 5
        assert named("nobody") == set()


def test_a_page_tells_the_state_of_each_newest_turn(any_database: str) -> None:
    with Store(any_database) as store:
        talked(store, "fine")
        cut = ScriptedModel([ScriptedReply("It was a dark", fault="eof", fail_at=2)])
        window = ContextWindow(store, "cut", model=cut)
        window.add_prompt("Tell me a story.")
        with pytest.raises(Exception, match="resume"):
            window.call_model(max_resumes=0)
        ContextWindow(store, "silent")

        page = store.page_contexts()

        states = {one.name: page.states.get(one.context_id) for one in page.contexts}
        assert states == {"fine": "complete", "cut": "interrupted", "silent": None}


@pytest.mark.parametrize("wrong", [{"after": "x"}, {"after": 3}, {"limit": 0}, {"limit": "2"}])
def test_a_page_that_cannot_be_is_refused(wrong: dict[str, Any]) -> None:
    with Store() as store, pytest.raises(ConfigError):
        store.page_contexts(**wrong)


def test_records_are_read_from_both_ends(any_database: str, reads: Any) -> None:
    with Store(any_database) as store:
        window = talked(store)
        whole = texts(window.records())
        ids = [one.id for one in window.records()]

        def records(**named: Any) -> list[str]:
            return texts(reads(window, store, "records", **named))

        assert records(last=2) == whole[-2:]
        assert records(before=ids[3], last=2) == whole[1:3]
        assert records(before=ids[3]) == whole[:3]
        assert records(before=ids[3], limit=1) == whole[:1]
        assert records(after=ids[0], before=ids[3]) == whole[1:3]
        assert records(after=ids[3], before=ids[0]) == []
        assert records(last=0) == []
        assert records(last=99) == whole
        for wrong in ({"limit": 1, "last": 1}, {"before": 10**9}, {"last": -1}):
            with pytest.raises(ConfigError):
                records(**wrong)


def test_the_newest_turns_and_calls_are_read_alone(any_database: str, reads: Any) -> None:
    with Store(any_database) as store:
        window = talked(store)
        turns, calls = window.turns(), window.calls()

        assert reads(window, store, "turns", last=2) == turns[-2:]
        assert reads(window, store, "turns", last=0) == []
        assert reads(window, store, "turn", turns[1].id) == turns[1]
        assert reads(window, store, "calls", last=2) == calls[-2:]
        assert reads(window, store, "calls", last=2, before=calls[2].id) == calls[:2]
        assert reads(window, store, "calls", last=1, before=calls[0].id) == []
        assert reads(window, store, "call", calls[1].id) == calls[1]
        for name, wrong in (
            ("turn", {"turn_id": "x"}),
            ("turn", {"turn_id": None}),
            ("call", {"call_id": 10**9}),
            ("calls", {"last": 1, "before": 10**9}),
            ("calls", {"last": -1}),
            ("calls", {"before": calls[1].id}),
            ("calls", {"turn_id": turns[0].id, "last": 1}),
            ("turns", {"last": -1}),
        ):
            with pytest.raises(ConfigError):
                reads(window, store, name, **wrong)


def test_a_call_of_another_context_is_not_this_ones(any_database: str) -> None:
    with Store(any_database) as store:
        one, other = talked(store, "one"), talked(store, "other")
        call, turn = one.calls()[0], one.turns()[0]

        with pytest.raises(ConfigError):
            other.call(call.id)
        with pytest.raises(ConfigError):
            other.turn(turn.id)
        with pytest.raises(ConfigError):
            other.calls(last=1, before=call.id)
        with pytest.raises(ConfigError):
            other.records(before=one.records()[0].id)


def test_sizes_of_calls_are_those_of_what_they_sent(any_database: str, reads: Any) -> None:
    with Store(any_database) as store:
        window = talked(store)
        window.set_live([window.records()[1].id], False)
        window.add_prompt("once more")
        window.call_model()

        sizes: list[CallSize] = reads(window, store, "call_sizes", last=3)

        calls = window.calls(last=3)
        assert [one.call_id for one in sizes] == [call.id for call in calls]
        for size, call in zip(sizes, calls, strict=True):
            expected: dict[RecordType, int] = {}
            for record in window.manifest(call.id):
                expected[record.source] = expected.get(record.source, 0) + record.est_tokens
            assert size.tokens == expected
            assert size.input_tokens == (call.usage and call.usage.input_tokens)
            assert size.max_tokens is None
        assert reads(window, store, "call_sizes", last=0) == []
        with pytest.raises(ConfigError):
            reads(window, store, "call_sizes", last=-1)


def test_a_part_of_what_a_call_sent_is_read_alone(any_database: str, reads: Any) -> None:
    with Store(any_database) as store:
        window = talked(store)
        call = window.calls()[-1]
        sent = window.manifest(call.id)

        assert reads(window, store, "manifest", call.id, skip=1, limit=2) == sent[1:3]
        assert reads(window, store, "manifest", call.id, skip=2) == sent[2:]
        assert reads(window, store, "manifest", call.id, limit=0) == []
        with pytest.raises(ConfigError):
            reads(window, store, "manifest", call.id, skip=-1)


def test_a_context_is_found_by_its_id_and_deleted_by_its_name(any_database: str) -> None:
    with Store(any_database) as store:
        window = talked(store)
        context: Context = window.get_current_context()

        assert store.context_by_id(context.id) == context
        store.delete_context("alice")

        with pytest.raises(ContextNotFound):
            store.context_by_id(context.id)
        with pytest.raises(ContextNotFound):
            store.delete_context("alice")
        assert store.page_contexts().contexts == []
        with pytest.raises(ConfigError):
            store.context_by_id("")
