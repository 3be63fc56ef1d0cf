"""Reading the counts that a provider sends."""

from __future__ import annotations

from typing import Final

_MOST: Final = 10**12
"""Tokens: a database keeps sums of them in eight bytes."""


def tokens(value: object) -> int:
    """A count of tokens, or 0 for what is missing, negative, absurd or no number."""
    return value if type(value) is int and 0 < value < _MOST else 0
