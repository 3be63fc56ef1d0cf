"""Counting tokens with an encoding, without one, and with texts that tiktoken does not like."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import SHARED, missing

from contextwindow import ContextWindow, tokens


@pytest.fixture
def with_encoding(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The module as a new process has it, with encodings on the machine."""
    if not (SHARED / "tiktoken").exists():
        missing(f"no encodings in {SHARED}")
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(SHARED / "tiktoken"))
    importlib.reload(tokens)
    yield
    importlib.reload(tokens)


@pytest.fixture
def without_encoding(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """The module as a new process has it, on a machine without encodings."""
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path / "none"))
    importlib.reload(tokens)
    yield
    importlib.reload(tokens)


def test_text_is_counted_as_the_encoding_does(with_encoding: None) -> None:
    assert tokens.count_tokens("hello world") == 2
    assert tokens.count_tokens("") == 0
    assert tokens.is_loaded()


def test_special_tokens_in_a_users_text_are_text(with_encoding: None) -> None:
    assert tokens.count_tokens("<|endoftext|>") > 1


@pytest.mark.parametrize("text", [" " * 1_100_000, "a" * 250_000, "日本語" * 40_000, "\n" * 99])
def test_long_and_odd_texts_are_counted_without_panic(with_encoding: None, text: str) -> None:
    """Fault 41: 1 M spaces and other texts that tiktoken panics on."""
    assert 0 < tokens.count_tokens(text) <= len(text.encode())


def test_very_long_texts_are_sampled_to_within_a_few_percent(with_encoding: None) -> None:
    third = ("The quick brown fox jumps over the lazy dog. " * 25_000)[:1_000_000]
    exact = 3 * tokens.count_tokens(third)
    assert abs(tokens.count_tokens(third * 3) - exact) < exact * 0.05


def test_without_an_encoding_a_token_is_four_bytes(without_encoding: None) -> None:
    assert tokens.count_tokens("hello world") == 3
    assert tokens.count_tokens("äöü") == 2
    assert not tokens.is_loaded()


def test_a_prompt_that_was_guessed_is_counted_when_somebody_asks(
    with_encoding: None, tmp_path: Path
) -> None:
    with ContextWindow(tmp_path / "x.db", "c") as window:
        record = window.add_prompt("hello world, " * 20)
        assert not tokens.is_loaded()
        assert record.est_tokens == tokens.count_tokens(record.content)
        assert window.live_tokens() == record.est_tokens
        assert window.context_stats().live_tokens == record.est_tokens
        assert window.live_records()[0].est_tokens == record.est_tokens
