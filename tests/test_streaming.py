"""Streams: the order of their chunks, and what is written when."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from support import (
    COUNT,
    Open,
    check_order,
    contents,
    problems,
    read,
    ready,
    responses,
    shown,
    states,
    usable,
)
from support import file as file
from support import run as run

from contextwindow import (
    ConfigError,
    ContextWindow,
    Done,
    InvalidRequest,
    ModelError,
    StreamFailed,
    TextDelta,
    Usage,
    UsageReport,
)
from contextwindow.testing import ScriptedReply


@pytest.mark.parametrize("interval", [0, 0.05, None])
@pytest.mark.parametrize("batch", [1, 3, 100])
def test_chunks_keep_their_order_and_join_to_the_reply(
    database: str, run: Open, batch: int, interval: float | None
) -> None:
    reply = ScriptedReply(COUNT, reasoning="hm, let me count", batch=batch)
    window = ready(run, database, reply, checkpoint_interval=interval)

    with window.call_model_streaming() as stream:
        chunks = list(stream)

    check_order(chunks, stream.reply)
    assert shown(chunks) == stream.reply.text == COUNT
    assert chunks[-1] == Done(stream.reply)
    assert {chunk.type for chunk in chunks if chunk.delta} == {"text_delta"}
    assert contents(responses(window)) == [COUNT]
    assert problems(database) == []


def test_a_chunk_says_where_it_stands_in_its_record(database: str, run: Open) -> None:
    window = ready(run, database)

    texts = [chunk for chunk in window.call_model_streaming() if isinstance(chunk, TextDelta)]

    record = responses(window)[0]
    ends = [chunk.position for chunk in texts]
    assert [chunk.id for chunk in texts] == [f"{record.id}:{end}" for end in ends]
    for chunk, end in zip(texts, ends, strict=True):
        assert record.content[:end].endswith(chunk.delta)
    assert ends[-1] == len(COUNT)


def test_nothing_is_sent_or_written_before_the_first_chunk_is_asked_for(
    file: str, run: Open
) -> None:
    window = ready(run, file)

    window.call_model_streaming()

    assert window.turns() == []
    assert window.call_model().text == COUNT


def test_what_was_shown_is_in_the_database_already(file: str, run: Open) -> None:
    window = ready(run, file, checkpoint_interval=0)
    seen = ""
    with window.call_model_streaming() as stream, ContextWindow(file, "chat") as other:
        for chunk in stream:
            seen += chunk.delta
            if chunk.delta:
                record = other.live_records()[-1]
                assert record.content == seen
                assert record.partial_response_id
                assert other.turns()[-1].partial_text == seen


def test_with_an_interval_the_text_arrives_in_the_database_soon(database: str, run: Open) -> None:
    reply = ScriptedReply(COUNT, fault="stall", fail_at=3)
    window = ready(run, database, reply, "next reply", checkpoint_interval=0.01)
    other = ContextWindow(database, "chat")
    stream = window.call_model_streaming()
    with stream:
        for chunk in stream:
            if chunk.delta == " three":
                deadline = time.monotonic() + 5
                while other.live_records()[-1].content != "one two three":
                    assert time.monotonic() < deadline
                    time.sleep(0.005)
                break
    other.close()
    usable(window, database)


def test_text_deltas_give_the_text_alone(file: str, run: Open) -> None:
    window = ready(run, file)

    assert "".join(window.call_model_streaming().text_deltas()) == COUNT


def test_a_stream_is_read_once(file: str, run: Open) -> None:
    window = ready(run, file)
    stream = window.call_model_streaming()
    stream.until_done()

    with pytest.raises(ConfigError, match="read once"):
        list(stream)
    assert stream.reply.text == COUNT
    assert states(window) == ["complete"]


def test_the_reply_is_not_there_before_the_end(file: str, run: Open) -> None:
    window = ready(run, file)
    with window.call_model_streaming() as stream:
        for chunk in stream:
            if chunk.delta:
                with pytest.raises(AttributeError, match="ended"):
                    _ = stream.reply
    assert stream.reply.text == COUNT


def test_the_turn_is_known_by_its_id(file: str, run: Open) -> None:
    window = ready(run, file)
    stream = window.call_model_streaming()

    chunks = list(stream)

    assert stream.turn_id == chunks[0].turn_id == stream.reply.turn_id
    assert window.turns()[0].id == stream.turn_id


def test_usage_comes_before_done(file: str, run: Open) -> None:
    window = ready(run, file, ScriptedReply(COUNT, usage=Usage(11, 6)))

    report, done = list(window.call_model_streaming())[-2:]

    assert isinstance(report, UsageReport)
    assert isinstance(done, Done)
    assert report.usage == done.reply.usage == Usage(11, 6)


def test_every_chunk_is_json_safe(file: str, run: Open) -> None:
    reply = ScriptedReply(COUNT, reasoning="hm", tool_calls=[("t", {"a": 1})])
    window = ready(run, file, reply)

    plain = [json.loads(json.dumps(c.to_dict())) for c in window.call_model_streaming()]

    assert plain[0]["type"] == "stream_start"
    assert "".join(one.get("delta", "") for one in plain) == COUNT
    assert plain[-1]["reply"]["text"] == COUNT
    assert plain[-1]["done"] is True


def test_a_failed_stream_ends_with_the_error_and_raises_it(file: str, run: Open) -> None:
    window = ready(run, file, ScriptedReply(COUNT, error=InvalidRequest("no"), fail_at=2))

    chunks, error = read(window.call_model_streaming())

    check_order(chunks, None)
    last = chunks[-1]
    assert isinstance(last, StreamFailed)
    assert isinstance(error, InvalidRequest)
    assert last.error is error
    assert shown(chunks) == error.partial_text == "one two"
    assert contents(responses(window)) == ["one two"]


@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("fail_at", range(7))
@pytest.mark.parametrize("fault", ["eof", "reset", "error"])
def test_whatever_ends_a_stream_what_was_shown_is_what_is_stored(
    file: str, run: Open, fault: Any, fail_at: int, batch: int
) -> None:
    reply = ScriptedReply(COUNT, fault=fault, fail_at=fail_at, batch=batch)
    window = ready(run, file, reply, "next reply")

    chunks, error = read(window.call_model_streaming(max_resumes=0))

    check_order(chunks, None)
    text = shown(chunks)
    assert isinstance(error, ModelError)
    assert error.partial_text == text
    assert error.turn_id == window.turns()[0].id
    assert "".join(contents(responses(window))) == text
    assert text == " ".join(COUNT.split()[:fail_at])
    usable(window, file)
