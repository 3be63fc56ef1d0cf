"""Replies that were cut off, and how they go on."""

from __future__ import annotations

import itertools
import threading
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from leaving import LEAVES, Leave, by_break_in_with
from support import (
    COUNT,
    Open,
    Recorder,
    check_order,
    contents,
    problems,
    ready,
    responses,
    sent,
    shown,
    states,
    usable,
)
from support import file as file
from support import run as run

from contextwindow import (
    ConfigError,
    ContextWindow,
    RecordType,
    Resumed,
    StreamInterrupted,
    TurnBusy,
    Usage,
)
from contextwindow.overlap import EchoTrimmer
from contextwindow.testing import ScriptedModel, ScriptedReply


def test_an_end_of_file_is_never_taken_for_an_end_of_the_reply(database: str, run: Open) -> None:
    """Fault 9: A clean end without the terminal event is no end of the reply."""
    window = ready(run, database, ScriptedReply(COUNT, fault="eof", fail_at=3), "next reply")

    with pytest.raises(StreamInterrupted) as caught:
        window.call_model(max_resumes=0)

    assert caught.value.partial_text == "one two three"
    turn = window.turns()[0]
    assert caught.value.turn_id == turn.id
    assert turn.state == "interrupted"
    assert window.interrupted() == [turn]
    assert responses(window)[0].partial_response_id
    usable(window, database)


def test_a_stream_cut_behind_its_last_chunk_is_cut_all_the_same(file: str, run: Open) -> None:
    """Fault 9: Cut behind its last chunk."""
    window = ready(run, file, ScriptedReply(COUNT, fault="eof"), "next reply")

    with pytest.raises(StreamInterrupted) as caught:
        window.call_model(max_resumes=0)

    assert caught.value.partial_text == COUNT
    usable(window, file)


def test_a_drop_is_resumed_without_the_callers_help(database: str, run: Open) -> None:
    window = ready(
        run,
        database,
        ScriptedReply(COUNT, fault="reset", fail_at=2),
        ScriptedReply(" three four", fault="eof", fail_at=1),
        ScriptedReply(" four five six", usage=Usage(50, 5)),
    )

    with window.call_model_streaming() as stream:
        chunks = list(stream)

    reply = stream.reply
    check_order([c for c in chunks if c.type != "resumed"], reply)
    assert shown(chunks) == reply.text == COUNT
    assert [c.strategy for c in chunks if isinstance(c, Resumed)] == ["continue", "continue"]
    assert contents(responses(window)) == [COUNT]
    assert len(reply.records) == 1
    assert len({chunk.record_id for chunk in chunks if chunk.delta}) == 1
    first, second, third = window.calls()
    assert first.usage is not None
    assert second.usage is not None
    assert (first.usage.estimated, second.usage.estimated) == (True, True)
    assert third.usage == Usage(50, 5)
    assert reply.usage == first.usage + second.usage + third.usage
    assert window.total_tokens() == reply.usage.total_tokens
    assert "cut" in (first.error or "") or "lost" in (first.error or "")
    assert states(window) == ["complete"]
    assert problems(database) == []


def test_drops_are_resumed_max_resumes_times(file: str, run: Open) -> None:
    cut = [ScriptedReply(f" word{number} more", fault="eof", fail_at=1) for number in range(4)]
    window = ready(run, file, *cut)

    with pytest.raises(StreamInterrupted) as caught:
        window.call_model(max_resumes=2)

    assert caught.value.partial_text == " word0 word1 word2"
    assert len(window.calls()) == 3
    assert states(window) == ["interrupted"]
    assert window.interrupted()[0].partial_text == " word0 word1 word2"


def test_two_drops_without_progress_are_raised(file: str, run: Open) -> None:
    nothing = ScriptedReply(COUNT, fault="eof", fail_at=0)
    window = ready(run, file, nothing, nothing, nothing, "never")

    with pytest.raises(StreamInterrupted):
        window.call_model(max_resumes=9)

    assert len(window.calls()) == 2
    assert problems(file) == []


def test_the_continuation_is_told_where_to_go_on_and_leaves_no_trace(file: str, run: Open) -> None:
    model = ScriptedModel([ScriptedReply(COUNT, fault="eof", fail_at=2), " three"])
    window = run(file, "chat", model=model)
    window.add_prompt("count")

    window.call_model()

    assert sent(model)[:2] == ["count", "one two"]
    assert "one two" in sent(model)[2]
    assert "last character" in sent(model)[2]
    assert contents(window.records()) == ["count", "one two three"]
    manifest = window.manifest(window.calls()[-1].id)
    assert contents(manifest) == ["count", "one two three"]


@pytest.mark.parametrize("watched", [True, False])
def test_what_was_cut_off_before_the_text_is_closed_and_not_sent(
    file: str, run: Open, watched: bool
) -> None:
    cut = ScriptedReply(reasoning="let me think", fault="eof", fail_at=2)
    window = ready(run, file, cut, ScriptedReply("the answer", reasoning="again"))

    reply = window.call_model_streaming().until_done((lambda chunk: None) if watched else None)

    assert reply.text == "the answer"
    assert reply.reasoning == "again"
    live = [record.content for record in window.live_records()]
    assert live == ["count", "again", "the answer"]
    assert not [one.content for one in window.live_records() if one.partial_response_id]
    assert problems(file) == []


@pytest.mark.parametrize("strategy", ["auto", "continue"])
def test_a_fresh_window_goes_on_with_what_is_there(database: str, run: Open, strategy: Any) -> None:
    first = ready(run, database, ScriptedReply(COUNT, fault="eof", fail_at=3))
    with pytest.raises(StreamInterrupted) as caught:
        first.call_model(max_resumes=0)
    first.close()
    window = run(database, "chat", model=ScriptedModel([" four five six"]))

    with window.resume_streaming(caught.value.turn_id, strategy=strategy) as stream:
        chunks = list(stream)

    check_order([c for c in chunks if c.type != "resumed"], stream.reply)
    assert shown(chunks) == " four five six"
    assert stream.reply.text == COUNT
    assert stream.turn_id == caught.value.turn_id
    assert contents(window.records()) == ["count", COUNT]
    assert responses(window)[0].partial_response_id is None
    assert states(window) == ["complete"]
    assert window.interrupted() == []
    assert [bool(c.usage and c.usage.estimated) for c in window.calls()] == [True, False]
    assert stream.reply.usage.total_tokens == window.total_tokens()
    assert problems(database) == []


def test_regenerating_replaces_the_partial(database: str, run: Open) -> None:
    cut = ScriptedReply(COUNT, reasoning="hm", fault="eof", fail_at=3)
    model = ScriptedModel([cut, "another answer"])
    window = run(database, "chat", model=model)
    window.add_prompt("count")
    with pytest.raises(StreamInterrupted):
        window.call_model(max_resumes=0)

    with window.resume_streaming(strategy="regenerate") as stream:
        chunks = list(stream)

    assert sent(model) == ["count"]
    assert shown(chunks) == stream.reply.text == "another answer"
    assert [c.strategy for c in chunks if isinstance(c, Resumed)] == ["regenerate"]
    assert contents(window.live_records()) == ["count", "another answer"]
    assert [r.content for r in window.records() if not r.live] == ["hm", "one two"]
    assert not any(record.partial_response_id for record in window.records())
    assert states(window) == ["complete"]
    assert problems(database) == []


def test_a_model_that_takes_a_prefill_goes_on_with_its_own_words(file: str, run: Open) -> None:
    cut = ScriptedReply(COUNT, fault="eof", fail_at=2)
    model = ScriptedModel([cut, " three four"], supports_prefill=True)
    window = run(file, "chat", model=model)
    window.add_prompt("count")

    reply = window.call_model()

    assert reply.text == "one two three four"
    assert sent(model) == ["count", "one two"]
    assert model.requests[-1].options.prefill


@pytest.mark.parametrize("fail_at", range(1, 6))
@pytest.mark.parametrize("fresh", [True, False])
def test_a_kept_stream_is_read_on_exactly_once(
    file: str, run: Open, fail_at: int, fresh: bool
) -> None:
    reply = ScriptedReply(COUNT, fault="reset", fail_at=fail_at, cursor=True, usage=Usage(9, 6))
    model = ScriptedModel([reply])
    window = run(file, "chat", model=model)
    window.add_prompt("count")
    if fresh:
        with pytest.raises(StreamInterrupted) as caught:
            window.call_model(max_resumes=0)
        window.close()
        window = run(file, "chat", model=model)
        chunks = list(window.resume_streaming(caught.value.turn_id))
        assert caught.value.partial_text + shown(chunks) == COUNT
    else:
        chunks = list(window.call_model_streaming())
        assert shown(chunks) == COUNT

    assert [c.strategy for c in chunks if isinstance(c, Resumed)] == ["cursor"]
    assert contents(window.records()) == ["count", COUNT]
    assert model.requests[-1].response_id == "resp_scripted_1"
    # The provider counts the whole response once: the estimate for its first part is void.
    assert chunks[-1].reply.usage == Usage(9, 6)
    assert window.total_tokens() == 15
    assert problems(file) == []


@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("leave", LEAVES)
def test_what_a_reader_left_early_can_be_resumed(
    file: str, run: Open, leave: Leave, batch: int
) -> None:
    reply = ScriptedReply(COUNT, batch=batch)
    window = ready(run, file, reply, " four five six")
    leave(window)
    turn = window.turns()[0]

    reply_two = window.resume(turn.id)

    assert reply_two.text == COUNT
    assert contents(window.records()) == ["count", COUNT]
    assert states(window) == ["complete"]
    assert problems(file) == []


def test_a_kept_stream_left_early_is_read_on_where_the_reader_left(file: str, run: Open) -> None:
    for batch in (1, 2, 4, 100):
        reply = ScriptedReply(COUNT, batch=batch, cursor=True)
        name = f"batch {batch}"
        window = run(file, name, model=ScriptedModel([reply], name=f"model{batch}"))
        window.add_prompt("count")
        seen, _ = by_break_in_with(window)

        chunks = list(window.resume_streaming())

        assert seen + shown(chunks) == COUNT, batch
        assert contents(responses(window)) == [COUNT]
    assert problems(file) == []


def test_a_prompt_instead_of_resuming_sends_the_partial_as_what_was_said(
    database: str, run: Open
) -> None:
    cut = ScriptedReply(COUNT, fault="eof", fail_at=2)
    model = ScriptedModel([cut, "fine"])
    window = run(database, "chat", model=model)
    window.add_prompt("count")
    with pytest.raises(StreamInterrupted) as caught:
        window.call_model(max_resumes=0)

    window.add_prompt("stop that")
    reply = window.call_model()

    assert sent(model) == ["count", "one two", "stop that"]
    assert reply.text == "fine"
    assert window.interrupted() == []
    assert contents(window.live_records()) == ["count", "one two", "stop that", "fine"]
    assert caught.value.turn_id != reply.turn_id
    assert problems(database) == []


def test_a_partial_behind_which_a_prompt_was_added_resumes_in_its_place(
    file: str, run: Open
) -> None:
    model = ScriptedModel([ScriptedReply(COUNT, fault="eof", fail_at=2), " three"])
    window = run(file, "chat", model=model)
    window.add_prompt("count")
    with pytest.raises(StreamInterrupted):
        window.call_model(max_resumes=0)
    window.add_prompt("a later thought")

    window.resume()

    assert "a later thought" not in sent(model)
    assert contents(window.live_records()) == ["count", "one two three", "a later thought"]


def test_a_discarded_partial_is_no_longer_sent(database: str, run: Open) -> None:
    model = ScriptedModel([ScriptedReply(COUNT, fault="eof", fail_at=2), "fine"])
    window = run(database, "chat", model=model)
    window.add_prompt("count")
    with pytest.raises(StreamInterrupted) as caught:
        window.call_model(max_resumes=0)

    discarded = window.discard_partial(caught.value.turn_id)

    assert contents(discarded) == ["one two"]
    assert window.interrupted() == []
    assert states(window) == ["cancelled"]
    with pytest.raises(ConfigError):
        window.discard_partial()
    with pytest.raises(ConfigError, match="nothing to resume"):
        window.resume()
    assert window.call_model().text == "fine"
    assert sent(model) == ["count"]
    assert contents(window.records()) == ["count", "one two", "fine"]
    assert problems(database) == []


def test_a_whole_turn_cannot_be_resumed(file: str, run: Open) -> None:
    window = ready(run, file)
    reply = window.call_model()

    with pytest.raises(ConfigError, match="is complete"):
        window.resume(reply.turn_id)
    with pytest.raises(ConfigError, match="no turn 'nonsense'"):
        window.resume("nonsense")
    with pytest.raises(ConfigError, match="nothing to resume"):
        window.resume()
    assert states(window) == ["complete"]


def test_a_failed_resume_is_one_more_interruption_of_the_same_turn(file: str, run: Open) -> None:
    cut = ScriptedReply(COUNT, fault="eof", fail_at=1)
    more = ScriptedReply(" two three", fault="eof", fail_at=1)
    window = ready(run, file, cut, more, " three")
    for expected in ("one", "one two"):
        with pytest.raises(StreamInterrupted) as caught:
            if expected == "one":
                window.call_model(max_resumes=0)
            else:
                window.resume(max_resumes=0)
        assert caught.value.partial_text == expected

    assert window.resume().text == "one two three"

    assert contents(window.records()) == ["count", "one two three"]
    assert len(window.turns()) == 1
    assert len(window.calls()) == 3
    assert problems(file) == []


def test_tool_calls_that_were_cut_off_are_asked_for_anew(file: str, run: Open) -> None:
    cut = ScriptedReply("let me look", tool_calls=[("ls", {"at": "/" * 40}, "c1")], fail_at=4)
    again = ScriptedReply(" again", tool_calls=[("ls", {"at": "/"}, "c2")])
    window = ready(run, file, cut, again)

    reply = window.call_model()

    assert reply.text == "let me look again"
    assert [call.id for call in reply.tool_calls] == ["c2"]
    assert [r.call_id for r in window.live_records() if r.source is RecordType.TOOL_CALL] == ["c2"]
    assert problems(file) == []


def test_hooks_run_on_a_resumed_reply_over_its_new_text_alone(file: str, run: Open) -> None:
    recorder = Recorder()
    first = ready(run, file, ScriptedReply(COUNT, fault="eof", fail_at=2))
    with pytest.raises(StreamInterrupted):
        first.call_model(max_resumes=0)
    window = run(file, "chat", model=ScriptedModel([" three"]), middleware=[recorder])

    window.resume()

    texts = [entry[2] for entry in recorder.log if entry[0] == "chunk" and entry[2]]
    assert texts == [" three"]
    assert [e[1] for e in recorder.log if e[0] == "complete"] == ["one two three"]


def test_the_partials_of_another_context_are_not_resumed(file: str, run: Open) -> None:
    window = ready(run, file, ScriptedReply(COUNT, fault="eof", fail_at=2), " three")
    with pytest.raises(StreamInterrupted) as caught:
        window.call_model(max_resumes=0)
    window.clone("copy")
    window.switch_context("copy")

    with pytest.raises(ConfigError, match="no turn"):
        window.resume(caught.value.turn_id)
    assert window.interrupted() == []

    window.switch_context("chat")
    assert window.resume().text == "one two three"
    window.switch_context("copy")
    assert contents(window.live_records()) == ["count", "one two"]
    assert problems(file) == []


def test_only_one_of_many_resumes_goes_on(database: str) -> None:
    with ContextWindow(
        database, "chat", model=ScriptedModel([ScriptedReply(COUNT, fault="eof", fail_at=2)])
    ) as window:
        window.add_prompt("count")
        with pytest.raises(StreamInterrupted):
            window.call_model(max_resumes=0)
    barrier = threading.Barrier(4)
    results: list[Any] = []

    def resume() -> None:
        model = ScriptedModel([ScriptedReply(" three four", delay=0.02)])
        with ContextWindow(database, "chat", model=model) as mine:
            barrier.wait()
            try:
                results.append(mine.resume().text)
            except (TurnBusy, ConfigError) as error:
                results.append(type(error))

    threads = [threading.Thread(target=resume) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert results.count("one two three four") == 1
    assert len(results) == 4
    with ContextWindow(database, "chat") as window:
        assert contents(window.records()) == ["count", "one two three four"]
    assert problems(database) == []


STORY = " ".join(f"sentence number {number} of the story." for number in range(40))


def expected_rest(before: str, continuation: str) -> str:
    """The rule of `overlap.py` in its plainest form."""
    tail = before[-1_000:]
    for size in range(min(len(tail), len(continuation)), 0, -1):
        echo = continuation[:size]
        if tail.endswith(echo) and (size >= 3 or not echo.strip(" \t")):
            return continuation[size:]
    return continuation


@pytest.mark.parametrize("fresh", [True, False])
@pytest.mark.parametrize("pieces", ["words", "characters", "whole"])
@pytest.mark.parametrize("echo", [0, 3, 10, 100, 500])
def test_an_echo_of_what_was_said_is_trimmed_before_anyone_sees_it(
    file: str, run: Open, echo: int, pieces: Any, fresh: bool
) -> None:
    """Fault 17: An echo is trimmed before anyone sees it."""
    said, rest = STORY[:900], STORY[900:]
    cut = ScriptedReply([said], fault="eof", fail_at=1)
    again = ScriptedReply(STORY[900 - echo :], batch=3)
    model = ScriptedModel([cut, again], pieces=pieces)
    window = run(file, "chat", model=model)
    window.add_prompt("tell me a story")
    if fresh:
        with pytest.raises(StreamInterrupted):
            window.call_model(max_resumes=0)
        stream = window.resume_streaming()
    else:
        stream = window.call_model_streaming()

    chunks = list(stream)

    assert shown(chunks).removeprefix("" if fresh else said) == rest
    assert stream.reply.text == STORY
    assert contents(responses(window)) == [STORY]
    positions = [chunk.position for chunk in chunks if chunk.delta]
    assert positions == sorted(positions)
    assert positions[-1] == len(STORY)
    assert problems(file) == []


def test_one_or_two_letters_are_no_echo(file: str, run: Open) -> None:
    """Fault 17: What is new is not trimmed."""
    window = ready(run, file, ScriptedReply(["Hel"], fault="eof", fail_at=1), ["lo"])

    assert window.call_model().text == "Hello"


def test_a_doubled_space_is_an_echo(file: str, run: Open) -> None:
    window = ready(run, file, ScriptedReply(["Hello "], fault="eof", fail_at=1), [" world"])

    assert window.call_model().text == "Hello world"


def test_a_continuation_that_only_repeats_adds_nothing(file: str, run: Open) -> None:
    window = ready(run, file, ScriptedReply([COUNT], fault="eof", fail_at=1), [COUNT])

    with window.call_model_streaming() as stream:
        chunks = list(stream)

    assert shown(chunks) == stream.reply.text == COUNT
    assert contents(responses(window)) == [COUNT]
    assert responses(window)[0].partial_response_id is None


def test_a_drop_while_an_echo_is_held_back_loses_nothing(file: str, run: Open) -> None:
    first = ScriptedReply([COUNT], fault="eof", fail_at=1)
    echo = ScriptedReply([" fi", "ve", " six", " seven"], fault="eof", fail_at=2)
    window = ready(run, file, first, echo, [" five six", " seven"])

    assert window.call_model(max_resumes=3).text == COUNT + " seven"
    assert problems(file) == []


@given(
    before=st.text("ab .", min_size=1, max_size=30),
    echo=st.integers(0, 30),
    rest=st.text("ab .", max_size=20),
    cuts=st.lists(st.integers(0, 50), max_size=6),
)
def test_the_longest_echo_is_trimmed_however_it_arrives(
    before: str, echo: int, rest: str, cuts: list[int]
) -> None:
    """Fault 17: The longest echo, however it arrives."""
    continuation = (before[-echo:] if echo else "") + rest
    edges = [0, *sorted(min(cut, len(continuation)) for cut in cuts), len(continuation)]
    trimmer = EchoTrimmer(before)

    out = "".join(trimmer.feed(continuation[start:end]) for start, end in itertools.pairwise(edges))

    assert out + trimmer.flush() == expected_rest(before, continuation)


@given(echo=st.integers(3, 1_000), size=st.integers(1, 4))
def test_an_echo_of_repetitive_text_ends_where_the_new_text_begins(echo: int, size: int) -> None:
    """Fault 17: An echo of repetitive text."""
    before = ("ha " * 700)[:-1]
    continuation = before[-echo:] + "! the end"
    trimmer = EchoTrimmer(before)
    pieces = [continuation[at : at + size] for at in range(0, len(continuation), size)]

    out = "".join(map(trimmer.feed, pieces)) + trimmer.flush()

    assert out == "! the end"
