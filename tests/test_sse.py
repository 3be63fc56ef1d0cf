from __future__ import annotations

import json
import re
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contextwindow.errors import InvalidRequest, StreamInterrupted
from contextwindow.models.base import Body
from contextwindow.models.sse import (
    DONE,
    AnswerReader,
    EventReader,
    EventSplitter,
    TextMender,
    mended,
    mended_json,
)

BOM = b"\xef\xbb\xbf"
PIECES = [
    b"data: {}", b"data:x", b"data", b"data: ", b"data:  two", b"event: a", b"event:b", b"event",
    b": comment", b"id: 7", b"retry: 3", b"unknown: y", b"{}", "data: é漢😀".encode(), b"\xff",
    b"\n", b"\n\n", b"\r", b"\r\n", b"\r\r", b"\r\n\r\n", BOM,
]  # fmt: skip


def split(*chunks: bytes) -> list[tuple[bytes, bytes]]:
    splitter = EventSplitter()
    return [event for chunk in chunks for event in splitter.feed(chunk)]


def by_the_specification(stream: bytes) -> list[tuple[bytes, bytes]]:
    """The standard's algorithm, line by line, of a whole stream."""
    events, name, data = [], b"", None
    for line in re.split(b"\r\n|\n|\r", stream.removeprefix(BOM))[:-1]:
        field, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if not line:
            if data is not None:
                events.append((name, data[:-1]))
            name, data = b"", None
        elif field == b"data":
            data = (data or b"") + value + b"\n"
        elif field == b"event":
            name = value
    return events


@given(st.lists(st.sampled_from(PIECES), max_size=12).map(b"".join), st.data())
def test_any_cut_gives_the_events_of_the_specification(stream: bytes, data: st.DataObject) -> None:
    """Fault 15: Events cut anywhere."""
    places = data.draw(st.sets(st.integers(0, len(stream)), max_size=8))
    edges = [0, *sorted(places), len(stream)]
    chunks = [stream[a:b] for a, b in pairwise(edges)]

    assert split(*chunks) == by_the_specification(stream)


@given(st.lists(st.sampled_from(PIECES), max_size=10).map(b"".join))
def test_single_bytes_give_the_events_of_the_specification(stream: bytes) -> None:
    """Fault 15: Events cut at every byte."""
    assert split(*(stream[i : i + 1] for i in range(len(stream)))) == by_the_specification(stream)


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
def test_all_line_ends_comments_and_fields_are_understood(end: bytes) -> None:
    """Fault 15: CR LF, LF, CR, comments, no space behind `data:`."""
    lines = [
        b": hello",
        b"event: a",
        b"data: one",
        b"data:two",
        b"id: 1",
        b"",
        b"data:  x",
        b"",
        b"",
    ]

    assert split(end.join(lines)) == [(b"a", b"one\ntwo"), (b"", b" x")]


def test_an_event_without_its_blank_line_is_dropped() -> None:
    assert split(b"data: 1\n\ndata: 2\n") == [(b"", b"1")]


def test_a_byte_order_mark_is_dropped_once_at_the_start_only() -> None:
    """Fault 15: A byte order mark."""
    assert split(BOM[:1], BOM[1:], b"data: 1\n\n", BOM + b"data: 2\n\n") == [(b"", b"1")]


def test_a_carriage_return_at_the_end_of_a_read_ends_the_line_at_once() -> None:
    splitter = EventSplitter()

    assert splitter.feed(b"data: 1\r\r") == [(b"", b"1")]
    assert splitter.feed(b"\ndata: 2\r\n\r") == [(b"", b"2")]
    assert splitter.feed(b"\n") == []


def test_an_event_of_ten_megabytes_in_small_pieces_is_joined_once() -> None:
    """Fault 15: An event of 10 MB."""
    text = b"x" * 10_000_000
    stream = b"data: " + text + b"\n\n"

    chunks = (stream[i : i + 500] for i in range(0, len(stream), 500))

    assert split(*chunks) == [(b"", text)]


def test_done_is_passed_on_and_empty_data_is_not() -> None:
    stream = b'data: {"a": 1}\n\ndata:\n\ndata: [DONE]\n\n'

    assert EventReader("m").feed(stream) == [{"a": 1}, DONE]


def test_events_in_front_of_a_broken_one_are_returned_first() -> None:
    reader = EventReader("m")

    assert reader.feed(b'data: 1\n\ndata: {"a\n\ndata: 2\n\n') == [1]
    with pytest.raises(StreamInterrupted, match="no JSON"):
        reader.feed(b"data: 3\n\n")
    with pytest.raises(StreamInterrupted):
        reader.end()


@pytest.mark.parametrize("data", [b"{", b"nothing", b'"\x01"', b"[" * 100_000])
def test_broken_json_interrupts_the_stream(data: bytes) -> None:
    """Fault 15: Broken JSON is `StreamInterrupted`."""
    with pytest.raises(StreamInterrupted):
        EventReader("m").feed(b"data: " + data + b"\n\n")


def test_lone_surrogates_and_bytes_that_are_no_utf8_are_read_as_far_as_possible() -> None:
    """Fault 40: Lone surrogates and bytes that are no UTF-8 in events."""
    stream = b'data: "\\ud83d"\n\ndata: "\xff"\n\ndata: "\\ud83d\\ude00"\n\n'

    assert EventReader("m").feed(stream) == ["\ud83d", "\ufffd", "😀"]


def test_an_event_called_error_is_one_whatever_its_data_looks_like() -> None:
    [event] = EventReader("m").feed(b'event: error\ndata: {"message": "no"}\n\n')

    assert event["error"]["message"] == "no"


@pytest.mark.parametrize("size", [1, 3, 1000])
@pytest.mark.parametrize("start", [b"", b"\n ", BOM])
def test_a_json_body_is_found_whatever_the_header_says(size: int, start: bytes) -> None:
    body = start + json.dumps({"a": "é"}).encode()
    reader = AnswerReader("text/event-stream", "m")

    for i in range(0, len(body), size):
        assert reader.feed(body[i : i + size]) == []

    assert reader.end() == [Body({"a": "é"})]
    assert reader.end() == []


@pytest.mark.parametrize("size", [1, 1000])
@pytest.mark.parametrize("start", [b"", b": hi\n\n", b"event: x\n", b"\n"])
@pytest.mark.parametrize("content_type", ["", "application/json", "text/event-stream"])
def test_an_event_stream_is_found_whatever_the_header_says(
    size: int, start: bytes, content_type: str
) -> None:
    reader = AnswerReader(content_type, "m")
    body = start + b"data: 12345\n\n"

    chunks = [body[i : i + size] for i in range(0, len(body), size)]

    assert [event for chunk in chunks for event in reader.feed(chunk)] == [12345]
    assert reader.end() == []


@pytest.mark.parametrize("body", [b"<!doctype html><p>sign in", b"<h", b"Internal error", b"no"])
def test_an_answer_that_is_neither_names_its_content_type(body: bytes) -> None:
    reader = AnswerReader("text/html; charset=utf-8", "m", "openai")

    with pytest.raises(InvalidRequest, match=r"text/html.*base_url") as caught:
        reader.feed(body) or reader.end()
    assert caught.value.provider == "openai"


def test_broken_json_bodies_and_empty_bodies_end_in_an_error_or_nothing() -> None:
    cut, empty = AnswerReader("application/json", "m"), AnswerReader("text/event-stream", "m")
    cut.feed(b'{"a": ')

    with pytest.raises(StreamInterrupted, match="broken JSON"):
        cut.end()
    assert empty.end() == []


TEXTS = st.text(
    st.sampled_from("ab é漢😀\0\ufffd\ud83d\ude00\udc00\ud800") | st.characters(), max_size=20
)


@given(TEXTS, st.data())
def test_mended_pieces_join_to_the_mended_whole(text: str, data: st.DataObject) -> None:
    # Cut in UTF-16, as servers that send half a pair do.
    units = [
        text.encode("utf-16-le", "surrogatepass")[i : i + 2].decode("utf-16-le", "surrogatepass")
        for i in range(0, len(text.encode("utf-16-le", "surrogatepass")), 2)
    ]
    places = data.draw(st.sets(st.integers(0, len(units)), max_size=6))
    edges = [0, *sorted(places), len(units)]
    mender = TextMender()

    pieces = ["".join(units[a:b]) for a, b in pairwise(edges)]
    joined = "".join(mender.mend(1, piece) for piece in pieces if piece) + mender.rest(1)

    assert joined == mended(text)
    joined.encode()
    assert "\0" not in joined


def test_pairs_of_different_parts_are_not_mixed() -> None:
    """Fault 40: Surrogate pairs split over two chunks."""
    mender = TextMender()

    assert mender.mend(1, "a\ud83d") == "a"
    assert mender.mend(2, "\ude00") == "\ufffd"
    assert mender.mend(1, "\ude00b") == "😀b"


def test_json_is_mended_in_keys_and_values() -> None:
    assert mended_json({"a\0": ["\ud800", 1, None]}) == {"a\ufffd": ["\ufffd", 1, None]}


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
def test_a_last_event_without_its_blank_line_is_taken_if_its_lines_are_whole(end: bytes) -> None:
    reader = AnswerReader("text/event-stream", "m")

    events = [*reader.feed(b'data: {"a": 1}\n\ndata: {"b": 2}' + end), *reader.end()]

    assert events == [{"a": 1}, {"b": 2}]


def test_a_last_event_that_breaks_off_inside_a_line_is_dropped() -> None:
    reader = AnswerReader("text/event-stream", "m")

    assert [*reader.feed(b'data: {"a": 1}\n\ndata: {"b": 2}'), *reader.end()] == [{"a": 1}]
