from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contextwindow.errors import StoreError
from contextwindow.store.values import (
    checksum,
    dump_json,
    load_json,
    now_text,
    parse_time,
    time_text,
)

WHEN = datetime(2025, 10, 31, 8, 58, 20, 489918, UTC)


@pytest.mark.parametrize(
    "text",
    [
        "2025-10-31 08:58:20.4899189 +0000 UTC",
        "2025-10-31 08:58:20.489918900 +0000 UTC",
        "2025-10-31 08:58:20.4899189 +0000 UTC m=+0.100000001",
        "2025-10-31 10:58:20.4899189 +0200 CEST",
        "2025-10-31 10:58:20.4899189 +0200 +0200",
        "2025-10-31 03:28:20.489918 -0530",
        "2025-10-31 10:58:20.489918+02:00",
        "2025-10-31 08:58:20.489918",
        "2025-10-31T08:58:20.489918Z",
        "2025-10-31T08:58:20.489918999+00:00",
    ],
)
def test_every_form_that_go_reads_is_read(text: str) -> None:
    assert parse_time(text) == WHEN
    assert parse_time(text).tzinfo is UTC


def test_a_whole_second_has_no_fraction() -> None:
    assert time_text(1_761_901_100_000_000_000) == "2025-10-31 08:58:20 +0000 UTC"
    assert parse_time("2025-10-31 08:58:20 +0000 UTC") == WHEN.replace(microsecond=0)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "noon",
        "2025-13-31 08:58:20 +0000 UTC",
        "2025-10-31",
        "2025-10-31 +0000 UTC",
        "x +0000 UTC",
    ],
)
def test_what_is_no_time_is_named(text: str) -> None:
    with pytest.raises(StoreError, match="not a time"):
        parse_time(text)


@given(st.lists(st.integers(0, 4_000_000_000_000_000_000), min_size=2, max_size=2))
def test_times_sort_as_text(pair: list[int]) -> None:
    first, second = sorted(pair)

    assert time_text(first) <= time_text(second)
    assert parse_time(time_text(first)).timestamp() == pytest.approx(first / 1e9, abs=1e-5)


def test_now_is_now() -> None:
    assert abs(parse_time(now_text()).timestamp() - time.time()) < 60


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text(st.characters(exclude_categories=[])),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)


@given(JSON)
def test_json_comes_back_and_is_text_for_every_database(value: Any) -> None:
    text = dump_json(value)

    assert "\0" not in text
    text.encode()
    # Two halves of a pair are the character they stand for, as in every JSON reader.
    assert joined(load_json(text)) == joined(value)


def joined(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "surrogatepass")
    if isinstance(value, list):
        return [joined(item) for item in value]
    if isinstance(value, dict):
        return {key: joined(item) for key, item in value.items()}
    return value


def test_what_is_no_json_is_named() -> None:
    with pytest.raises(StoreError, match="not JSON"):
        load_json("{")


@given(st.binary(min_size=1, max_size=200), st.data())
def test_a_flipped_bit_changes_the_checksum(data: Any, draw: Any) -> None:
    bit = draw.draw(st.integers(0, len(data) * 8 - 1))
    flipped = bytearray(data)
    flipped[bit // 8] ^= 1 << bit % 8

    assert checksum(data.decode("latin-1"), None) != checksum(flipped.decode("latin-1"), None)


def test_text_may_not_move_between_content_and_payload() -> None:
    assert checksum("ab", "c") != checksum("a", "bc")
    assert checksum("a", None) == checksum("a", "")
