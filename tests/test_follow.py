"""Following a context: each character once, whatever happens to stream, process and follower."""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from crash import CHUNKS, CONTEXT, kill_while_streaming
from following import Page, there, told
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support import Open, shown, states
from support import run as run

from contextwindow import (
    AsyncContextWindow,
    ConfigError,
    ContextNotFound,
    ContextWindow,
    Done,
    RecordType,
    Store,
    StoreError,
    StreamChunk,
    StreamFailed,
    StreamInterrupted,
    ToolEnd,
    ToolStart,
)
from contextwindow.chunks import place
from contextwindow.follow import MARK, Line, Position, Seam, Seams
from contextwindow.testing import ScriptedModel, ScriptedReply

WORDS = [f"w{number} " for number in range(12)]


def follower_threads() -> list[threading.Thread]:
    return [one for one in threading.enumerate() if one.name == "contextwindow-followers"]


def until(holds: Callable[[], bool]) -> None:
    """Waits until *holds* says so; fails after ten seconds."""
    give_up = time.monotonic() + 10.0
    while not holds():
        assert time.monotonic() < give_up
        time.sleep(0.001)


@pytest.fixture(autouse=True)
def nothing_left() -> Any:
    yield
    for thread in follower_threads():
        thread.join(5.0)
    assert follower_threads() == []


# -- ids -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "after", ["12", "12:", ":3", "a:b", "1:2:3", "-1:2", " 1:2", "1:2 ", "9" * 30 + ":1", 7, b"1:2"]
)
def test_what_is_no_id_is_refused_at_once(run: Open, after: Any) -> None:
    window = run()

    with pytest.raises(ConfigError, match="id of a chunk"):
        next(iter(window.follow(after)))


@pytest.mark.parametrize("timeout", [0, -1, "1", True, float("nan")])
def test_a_timeout_that_is_none_is_refused(run: Open, timeout: Any) -> None:
    with pytest.raises(ConfigError, match="timeout"):
        next(iter(run().follow("", timeout)))


@given(st.integers(1, 10**15), st.integers(0, MARK - 1), st.integers(0, 2**20))
def test_an_id_names_its_place(record: int, characters: int, stage: int) -> None:
    position = Position(record, characters, stage)
    chunk = place(StreamChunk(), record, position.number)

    assert Position.parse(chunk.id) == position == Position.of(chunk)


def test_ids_of_another_context_and_of_records_that_are_gone_say_so(run: Open) -> None:
    window = run(model=ScriptedModel(["one"], repeat=True))
    other = window.create_context("other")
    window.add_prompt("hello")
    window.call_model()
    last = there(window)[-1].id
    window.switch_context("other")
    assert other.name == "other"

    with pytest.raises(ConfigError, match="another context"):
        there(window, last)
    with pytest.raises(ConfigError, match="was deleted, or never was"):
        there(window, "4711:0")


# -- what comes ----------------------------------------------------------------------------


def test_a_turn_is_told_from_its_begin_to_its_reply(run: Open, any_database: str) -> None:
    model = ScriptedModel([ScriptedReply(chunks=WORDS, reasoning="let me see")])
    window = run(any_database, "chat", model=model)
    window.add_prompt("go")
    reply = window.call_model()

    chunks = there(window)

    kinds = [chunk.type for chunk in chunks]
    assert kinds == ["stream_start", "reasoning_delta", "text_delta", "done"]
    assert chunks[0].turn_id == reply.turn_id
    assert shown(chunks) == reply.text
    done = chunks[-1]
    assert isinstance(done, Done)
    same = ("text", "reasoning", "usage", "cost", "finish_reason", "turn_id", "model", "tool_calls")
    for name in (*same, "response_id", "refusal"):
        assert getattr(done.reply, name) == getattr(reply, name), name
    assert [one.id for one in done.reply.records] == [one.id for one in reply.records]
    assert done.reply.duration >= 0


def test_from_now_nothing_is_told_that_was_there(run: Open, any_database: str) -> None:
    window = run(any_database, "chat", model=ScriptedModel(["old", "new"]))
    window.add_prompt("go")
    window.call_model()
    assert there(window, None) == []

    window.add_prompt("again")
    window.call_model()
    assert there(window, None) == []


def test_a_blocking_follower_is_at_its_place_before_its_first_chunk(any_database: str) -> None:
    with ContextWindow(any_database, model=ScriptedModel(["old", "new"])) as window:
        window.add_prompt("go")
        window.call_model()
        following = window.follow()
        window.add_prompt("again")
        window.call_model()

        assert shown(list(following)) == "new"


def test_who_comes_in_the_middle_is_told_what_is_still_to_come(any_database: str) -> None:
    model = ScriptedModel([ScriptedReply(chunks=WORDS, reasoning="well")])
    with ContextWindow(any_database, model=model, checkpoint_interval=0.0) as window:
        window.add_prompt("go")
        with window.call_model_streaming() as stream:
            seen = ""
            while len(seen) < 10:
                seen += next(stream).delta
            following = window.follow()
            rest = stream.until_done().text[len(seen) :]

        chunks = list(following)
        assert shown(chunks) == rest
        assert [one.type for one in chunks] == ["text_delta", "done"]


def test_a_stream_is_told_while_it_runs(run: Open, any_database: str) -> None:
    window = run(any_database, "chat", model=ScriptedModel([WORDS]), checkpoint_interval=0.0)
    window.add_prompt("go")
    page = Page()
    seen = ""
    with window.call_model_streaming() as stream:
        for chunk in stream:
            seen += chunk.delta
            page.show(there(window, page.last_id))
            assert page.text.startswith(seen)
    page.show(there(window, page.last_id))

    assert page.text == "".join(WORDS)
    assert [kind for kind in page.kinds if kind != "text_delta"] == ["stream_start", "done"]


def test_a_refusal_is_told(run: Open) -> None:
    window = run(model=ScriptedModel([ScriptedReply(refusal="I will not.")]))
    window.add_prompt("go")
    window.call_model()

    chunks = there(window)

    assert [one.type for one in chunks] == ["stream_start", "refusal_delta", "done"]
    assert chunks[1].text == "I will not."
    assert chunks[-1].reply.refusal == "I will not."
    assert there(window, chunks[1].id)[0].type == "done"


def test_a_call_that_the_caller_answers_ends_with_its_reply(run: Open) -> None:
    model = ScriptedModel([ScriptedReply(chunks="Wait.", tool_calls=[("ask", {"a": 1}, "c1")])])
    window = run(model=model)
    window.add_prompt("go")
    window.call_model()

    done = there(window)[-1]

    assert states(window) == ["awaiting"]
    assert isinstance(done, Done)
    assert [one.id for one in done.reply.tool_calls] == ["c1"]
    assert done.reply.finish_reason == "tool_calls"


def test_a_turn_that_failed_before_anything_came_is_told_once(run: Open) -> None:
    model = ScriptedModel([ScriptedReply(open_error=ConnectionError("no way"))], max_retries=0)
    window = run(model=model)
    window.add_prompt("go")
    with pytest.raises(ConnectionError):
        window.call_model()

    chunks = there(window)

    assert [one.type for one in chunks] == ["stream_start", "stream_failed"]
    assert "no way" in str(chunks[-1].error)
    assert [one.id for one in there(window, chunks[0].id)] == [chunks[1].id]
    assert there(window, chunks[1].id) == []


# -- tools ---------------------------------------------------------------------------------


def rounds() -> ContextWindow:
    """A window whose turn has two rounds of tools, of which one fails."""

    def look(place: str) -> str:
        """Look somewhere.

        Args:
            place: where.
        """
        if place == "b":
            raise LookupError("nothing there")
        return "" if place == "c" else f"seen {place}"

    replies: list[Any] = [
        ScriptedReply(
            chunks="First. ",
            reasoning="hm",
            tool_calls=[("look", {"place": name}, f"call_{name}") for name in "abc"],
        ),
        ScriptedReply(chunks="", tool_calls=[("look", {"place": "d"}, "call_d")]),
        "Done now.",
    ]
    window = ContextWindow(model=ScriptedModel(replies), tools=[look])
    window.add_prompt("go")
    return window


def test_tools_start_and_end_once_in_the_order_of_their_calls() -> None:
    with rounds() as window:
        reply = window.call_model()
        chunks = there(window)

    starts = [one for one in chunks if isinstance(one, ToolStart)]
    ends = [one for one in chunks if isinstance(one, ToolEnd)]
    assert [one.call_id for one in starts] == ["call_a", "call_b", "call_c", "call_d"]
    assert [one.arguments for one in starts] == [{"place": name} for name in "abcd"]
    assert [one.call_id for one in ends] == [one.call_id for one in starts]
    assert [bool(one.error) for one in ends] == [False, True, False, False]
    assert ends[0].output == "seen a"
    assert ends[2].output == ""
    assert shown(chunks) == reply.text == "First. Done now."
    assert [one.id for one in chunks[-1].reply.tool_calls] == [one.id for one in reply.tool_calls]


def test_every_id_of_a_turn_with_tools_leads_to_what_came_behind_it() -> None:
    with rounds() as window:
        live: list[StreamChunk] = []
        with window.call_model_streaming() as stream:
            for _ in stream:
                live += there(window, live[-1].id if live else "")
        live += there(window, live[-1].id)

        assert told(live) == told(there(window, ""))
        assert len({one.id for one in live}) == len(live)
        for number, chunk in enumerate(live):
            assert told(there(window, chunk.id)) == told(live[number + 1 :]), chunk


# -- cut off and resumed -------------------------------------------------------------------


def follow_step_by_step(window: ContextWindow, stream: Any, live: list[StreamChunk]) -> None:
    """Read *stream* to its end or its error; after each chunk take what is there."""
    try:
        with stream:
            for _ in stream:
                live += there(window, live[-1].id if live else "")
    except StreamInterrupted:
        pass
    live += there(window, live[-1].id)


def leads_on(window: ContextWindow, live: list[StreamChunk]) -> None:
    """Asserts that whoever comes back with any id has in the end what he had who stayed."""
    whole = Page().show(live)
    kept = {one.id for one in window.records() if one.accumulated_tokens is None}
    for number, chunk in enumerate(live):
        page = Page().show(live[: number + 1])
        page.show(there(window, chunk.id))
        for record in kept & whole.texts.keys():
            assert page.texts[record] == whole.texts[record], chunk
        assert page.kinds[-1] == "done"
        # Of a turn that went on it is no longer told how it had stopped.
        assert 1 <= page.kinds.count("done") <= whole.kinds.count("done")
        assert page.kinds.count("stream_start") == whole.kinds.count("stream_start")
        assert page.kinds.count("tool_start") == whole.kinds.count("tool_start")
        assert page.kinds.count("tool_end") == whole.kinds.count("tool_end")


@pytest.mark.parametrize("strategy", ["continue", "cursor", "prefill"])
def test_a_reply_that_is_resumed_goes_on_where_it_was_left(
    any_database: str, strategy: Any
) -> None:
    cut = ScriptedReply(
        chunks=WORDS, reasoning="well", fail_at=6, fault="reset", cursor=strategy == "cursor"
    )
    model = ScriptedModel([cut, "the rest"], supports_prefill=strategy == "prefill")
    with ContextWindow(any_database, "chat", model=model, checkpoint_interval=0.0) as window:
        window.add_prompt("go")
        live: list[StreamChunk] = []
        follow_step_by_step(window, window.call_model_streaming(max_resumes=0), live)
        assert live[-1].type == "stream_failed"
        assert isinstance(live[-1].error, StreamInterrupted)
        assert there(window, live[-1].id) == []
        follow_step_by_step(window, window.resume_streaming(strategy=strategy), live)

        assert [one.type for one in live if one.delta == ""][-3:] == [
            "stream_failed",
            "resumed",
            "done",
        ]
        assert shown(live) == live[-1].reply.text
        assert Page().show(live).set_back == 0
        assert shown(there(window, "")) == shown(live)
        leads_on(window, live)


def test_a_text_that_goes_on_before_a_tool_call_that_was_given_up(any_database: str) -> None:
    cut = ScriptedReply(
        chunks=["Let me ", "look"],
        tool_calls=[("look", '{"place": "a very long way away"}', "call_a")],
        fail_at=3,
        fault="reset",
    )
    model = ScriptedModel([cut, [": never ", "mind", "."]])
    with ContextWindow(any_database, "chat", model=model, checkpoint_interval=0.0) as window:
        window.add_prompt("go")
        live: list[StreamChunk] = []
        follow_step_by_step(window, window.call_model_streaming(max_resumes=0), live)
        assert "tool_call_delta" in [one.type for one in live]
        follow_step_by_step(window, window.resume_streaming(), live)

        assert shown(live) == "Let me look: never mind." == shown(there(window, ""))
        leads_on(window, live)


def test_a_reply_that_is_made_anew_replaces_the_one_before(any_database: str) -> None:
    model = ScriptedModel([ScriptedReply(chunks=WORDS, fail_at=4, fault="reset"), "all anew"])
    with ContextWindow(any_database, "chat", model=model, checkpoint_interval=0.0) as window:
        window.add_prompt("go")
        live: list[StreamChunk] = []
        follow_step_by_step(window, window.call_model_streaming(max_resumes=0), live)
        follow_step_by_step(window, window.resume_streaming(strategy="regenerate"), live)

        assert shown(there(window, "")) == "all anew"
        assert live[-1].reply.text == "all anew"
        leads_on(window, live)


@pytest.mark.parametrize("left_at", [1, 2, 3])
@pytest.mark.parametrize("rest", ["X", "XY", "the rest of it, which is longer"])
def test_text_that_is_set_back_is_shown_anew_from_there(
    any_database: str, left_at: int, rest: str
) -> None:
    # A network read of four chunks is committed, then its reader leaves in the middle of it.
    model = ScriptedModel([ScriptedReply(chunks=list("abcdefgh"), batch=4), list(rest)])
    with ContextWindow(any_database, "chat", model=model, checkpoint_interval=0.0) as window:
        window.add_prompt("go")
        live: list[StreamChunk] = []
        count = 0
        for chunk in window.call_model_streaming():
            live += there(window, live[-1].id if live else "")
            count += bool(chunk.delta)
            if count == 4 + left_at:
                break
        assert shown(live) == "abcdefgh"
        live += there(window, live[-1].id)
        assert live[-1].reply.finish_reason == "cancelled"
        follow_step_by_step(window, window.resume_streaming(), live)

        kept = "abcd" + "efgh"[:left_at]
        assert live[-1].reply.text == kept + rest
        page = Page().show(live)
        assert page.text == kept + rest
        assert page.set_back == (left_at < 4)
        leads_on(window, live)


def test_a_resume_while_tools_ran_tells_each_tool_once(any_database: str) -> None:
    def look(place: str) -> str:
        """Look."""
        if place == "b" and not resumed:
            raise KeyboardInterrupt
        return f"seen {place}"

    resumed: list[bool] = []
    calls = [("look", {"place": name}, f"call_{name}") for name in "abc"]
    model = ScriptedModel([ScriptedReply(chunks="So. ", tool_calls=calls), "That is all."])
    window = ContextWindow(
        any_database,
        "chat",
        model=model,
        tools=[look],
        checkpoint_interval=0.0,
    )
    with window:
        window.add_prompt("go")
        live: list[StreamChunk] = []
        stream = window.call_model_streaming()
        for chunk in stream:
            live += there(window, live[-1].id if live else "")
            if isinstance(chunk, ToolStart) and chunk.call_id == "call_c":
                break
        stream.close()
        live += there(window, live[-1].id)
        resumed.append(True)
        [turn] = window.turns()
        follow_step_by_step(window, window.resume_streaming(turn.id), live)

        starts = [one.call_id for one in live if isinstance(one, ToolStart)]
        ends = [one.call_id for one in live if isinstance(one, ToolEnd)]
        assert starts == ends == ["call_a", "call_b", "call_c"]
        assert shown(live) == "So. That is all."
        leads_on(window, live)


def test_a_turn_that_another_one_has_passed_goes_on_for_its_followers(any_database: str) -> None:
    cut = ScriptedReply(chunks=WORDS, fail_at=4, fault="reset")
    model = ScriptedModel([cut, "in between", "the rest"])
    with ContextWindow(any_database, "chat", model=model, checkpoint_interval=0.0) as window:
        window.add_prompt("go")
        live: list[StreamChunk] = []
        follow_step_by_step(window, window.call_model_streaming(max_resumes=0), live)
        [turn] = window.turns()
        window.add_prompt("something else")
        follow_step_by_step(window, window.call_model_streaming(), live)
        follow_step_by_step(window, window.resume_streaming(turn.id), live)

        assert shown(live) == "".join(WORDS[:4]) + "in between" + "the rest"
        assert told(there(window, "")) == told(live)
        leads_on(window, live)


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_whatever_happens_every_id_leads_to_the_same_text(data: st.DataObject) -> None:
    """Turns that are cut off, left, resumed and passed, in any order."""
    with ContextWindow(model=ScriptedModel([_any_reply], repeat=True)) as window:
        live: list[StreamChunk] = []
        for _ in range(data.draw(st.integers(1, 5), label="turns")):
            fails = data.draw(st.one_of(st.none(), st.integers(0, 8)), label="fails at")
            _ANY["reply"] = ScriptedReply(
                chunks=data.draw(st.lists(st.text("ab c", min_size=1, max_size=3), max_size=8)),
                reasoning=data.draw(st.sampled_from(["", "hm hm"])),
                tool_calls=data.draw(st.sampled_from([(), [("ask", {"a": 1})]])),
                batch=data.draw(st.integers(1, 4)),
                fault=None if fails is None else "reset",
                fail_at=fails,
            )
            open_turns = [one.id for one in window.turns() if one.state == "interrupted"]
            again = data.draw(st.sampled_from([None, *open_turns]))
            if again is None:
                window.add_prompt("go")
                stream = window.call_model_streaming(max_resumes=data.draw(st.integers(0, 1)))
            else:
                stream = window.resume_streaming(again, max_resumes=0)
            leave_at = data.draw(st.integers(1, 30))
            try:
                for count, _ in enumerate(stream):
                    live += there(window, live[-1].id if live else "")
                    if count == leave_at:
                        break
            except StreamInterrupted:
                pass
            stream.close()
            live += there(window, live[-1].id if live else "")

        whole = Page().show(live)
        for number, chunk in enumerate(live):
            page = Page().show(live[: number + 1])
            page.show(there(window, chunk.id))
            assert page.texts == whole.texts, (number, chunk)
        by_id = {one.id: one.content for one in window.records()}
        for number, text in whole.texts.items():
            assert by_id[number] == text


_ANY: dict[str, Any] = {}


def _any_reply(records: Any, options: Any) -> Any:
    return _ANY["reply"]


# -- processes -----------------------------------------------------------------------------


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
            thread.join()

        assert page.text == reply.text
        assert reply.text.startswith("".join(CHUNKS[:3]))
        assert page.kinds.count("stream_start") == 1
        assert page.kinds.count("stream_failed") == 1
        assert page.kinds.count("resumed") == 1
        assert page.kinds.count("done") == 1


def test_a_follower_that_may_not_write_is_told_of_a_death(tmp_path: Any) -> None:
    """Fault 35c: A producer that died, seen by who may only read."""
    database = str(tmp_path / "x.db")
    kill_while_streaming(database, interval=0.0, mode="sync", after=0.05)
    with Store(database, read_only=True) as store, ContextWindow(store, CONTEXT) as window:
        chunks = list(window.follow(""))

        assert isinstance(chunks[-1], StreamFailed)
        assert "process ended" in str(chunks[-1].error)
        assert shown(chunks) == window.live_records()[-1].content
        assert there(window, "")[-1].type == "stream_failed"


def test_two_hundred_reconnects_at_random_ids_give_each_character_once(database: str) -> None:
    """Fault 35c: 200 reconnects: each character once."""
    text = [f"w{number} " for number in range(1500)]
    model = ScriptedModel([ScriptedReply(chunks=text, delay=0.0005, batch=3)])
    chance = random.Random(7)
    with Store(database) as store:
        window = ContextWindow(store, "chat", model=model, checkpoint_interval=0.0)
        window.add_prompt("go")
        producer = threading.Thread(target=lambda: list(window.call_model_streaming()))
        everything: list[StreamChunk] = []
        producer.start()
        page = Page()
        for _ in range(200):
            following = window.follow(page.last_id, timeout=10.0)
            for chunk in following:
                page.show([chunk])
                everything.append(chunk)
                if chance.random() < 0.3:
                    break
            if page.kinds[-1] == "done":
                break
        page.show(window.follow(page.last_id, timeout=0.2 if page.kinds[-1] == "done" else 10.0))
        producer.join()

        assert page.text == "".join(text)
        assert page.set_back == 0
        assert page.kinds.count("done") == page.kinds.count("stream_start") == 1
        for chunk in chance.sample(everything, min(50, len(everything))):
            at = everything.index(chunk) + 1
            again = Page().show(everything[:at]).show(there(window, chunk.id))
            assert again.text == page.text


def test_a_follower_in_another_store_is_woken(database: str) -> None:
    model = ScriptedModel([ScriptedReply(chunks=WORDS, delay=0.01)])
    with Store(database) as here, Store(database) as elsewhere:
        window = ContextWindow(here, "chat", model=model)
        window.add_prompt("go")
        following = ContextWindow(elsewhere, "chat").follow(timeout=10.0)
        began = time.monotonic()
        producer = threading.Thread(target=window.call_model)
        producer.start()
        chunks = list(following)
        producer.join()

        assert shown(chunks) == "".join(WORDS)
        assert chunks[-1].type == "done"
        assert time.monotonic() - began < 5.0


def test_lost_notices_are_made_up_for(postgresql: str) -> None:
    """Fault 35c: The end notice was lost: it ends all the same."""
    with Store(postgresql) as here, Store(postgresql) as elsewhere:
        window = ContextWindow(here, "chat", model=ScriptedModel([WORDS, WORDS]))
        window.add_prompt("go")
        following = ContextWindow(elsewhere, "chat").follow(timeout=20.0)
        producer = threading.Timer(0.3, window.call_model)
        killer = threading.Timer(0.1, _end_listeners, [here])
        killer.start()
        producer.start()
        chunks = list(following)
        producer.join()
        killer.join()

        assert shown(chunks) == "".join(WORDS)


def _end_listeners(store: Store) -> None:
    with store.database.write() as connection:
        ended = connection.execute(
            "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity "
            "WHERE query = 'LISTEN contextwindow' AND pid <> pg_backend_pid()"
        ).fetchone()
    assert ended is not None
    assert ended[0] >= 1


# -- waiting, leaving, ending --------------------------------------------------------------


def test_many_follow_one_stream_in_threads_and_on_a_loop(tmp_path: Any) -> None:
    model = ScriptedModel([ScriptedReply(chunks=WORDS * 10, delay=0.002)])
    with Store(tmp_path / "x.db") as store:
        window = ContextWindow(store, "chat", model=model)
        window.add_prompt("go")
        texts: list[str] = []

        def follow() -> None:
            texts.append(shown(list(window.follow(""))))

        threads = [threading.Thread(target=follow) for _ in range(30)]

        async def follow_on_a_loop() -> None:
            async with AsyncContextWindow(store, "chat") as mine:

                async def one() -> None:
                    chunks = [chunk async for chunk in mine.follow("")]
                    texts.append(shown(chunks))

                await asyncio.gather(*(one() for _ in range(30)))

        threads.append(threading.Thread(target=lambda: asyncio.run(follow_on_a_loop())))
        for thread in threads:
            thread.start()
        window.call_model_streaming().until_done(lambda chunk: None)
        for thread in threads:
            thread.join()

        assert texts == ["".join(WORDS * 10)] * 60


def test_a_stuck_follower_reads_the_log_later(tmp_path: Any) -> None:
    model = ScriptedModel([ScriptedReply(chunks=WORDS, delay=0.0)] * 1, repeat=True)
    with Store(tmp_path / "x.db") as store:
        window = ContextWindow(store, "chat", model=model)
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
        assert shown(rest) == "".join(WORDS) * 101


def test_leaving_frees_everything_at_once(run: Open, database: str) -> None:
    window = run(database, "chat", model=ScriptedModel([WORDS]))
    window.add_prompt("go")
    window.call_model()
    following = iter(window.follow(""))
    next(following)
    next(following)
    del following

    for thread in follower_threads():
        thread.join(5.0)
    assert follower_threads() == []


def test_a_task_that_is_cancelled_frees_everything(database: str) -> None:
    async def main() -> None:
        async with AsyncContextWindow(database, "chat") as window:
            following = window.follow()
            waiting = asyncio.ensure_future(anext(following))
            await asyncio.to_thread(until, lambda: bool(follower_threads()))
            await asyncio.sleep(0.01)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
            await asyncio.to_thread(until, lambda: not follower_threads())
            with pytest.raises(StopAsyncIteration):
                await anext(following)

    asyncio.run(main())


def test_an_abandoned_loop_frees_everything() -> None:
    async def main() -> None:
        async with AsyncContextWindow(model=ScriptedModel([WORDS])) as window:
            await window.add_prompt("go")
            await window.call_model()
            async for _ in window.follow(""):
                break
            await asyncio.to_thread(until, lambda: not follower_threads())

    asyncio.run(main())


def test_without_news_it_ends_after_the_timeout(run: Open) -> None:
    window = run()

    assert list(window.follow(None, 0.02)) == []
    assert list(window.follow("", 0.02)) == []


def test_waiting_followers_of_a_deleted_context_are_told(tmp_path: Any) -> None:
    with Store(tmp_path / "x.db") as store:
        window = ContextWindow(store, "doomed")
        following = window.follow()
        other = ContextWindow(store, "other")
        deleting = threading.Timer(0.05, other.delete_context, ["doomed"])
        deleting.start()

        with pytest.raises(ContextNotFound):
            next(following)
        deleting.join()


def test_waiting_followers_of_a_closed_store_are_told(database: str) -> None:
    store = Store(database)
    window = ContextWindow(store, "chat")
    following = window.follow()
    closing = threading.Timer(0.05, store.close)
    closing.start()

    with pytest.raises(StoreError, match="closed"):
        next(following)
    closing.join()


def test_nobody_who_follows_costs_a_stream_a_thread(tmp_path: Any) -> None:
    with ContextWindow(str(tmp_path / "x.db"), model=ScriptedModel([WORDS])) as window:
        window.add_prompt("go")
        window.call_model()

        assert follower_threads() == []
        assert there(window, None) == []


# -- seams ---------------------------------------------------------------------------------


def test_the_earliest_attempt_that_can_have_shown_a_place_is_taken() -> None:
    line = Line(5, RecordType.MODEL_RESPONSE, "x" * 50)
    seams = Seams(9, {5: [Seam(1, -1, 30), Seam(4, 20), Seam(9, 40)]})

    assert [seams.era(line, size) for size in (0, 20, 25, 30, 31, 40, 41, 50)] == [
        1, 1, 1, 1, 4, 4, 9, 9,
    ]  # fmt: skip
    assert [seams.doubtful(5, size, 4) for size in (20, 25, 30, 31)] == [True, True, True, False]
    assert seams.base(line, 4) == 20
    assert seams.end(line, 4) == 40
    assert seams.end(line, 9) == 50
