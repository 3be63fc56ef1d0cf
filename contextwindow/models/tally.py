"""Adding up the tokens of a request, and reading JSON that may be anything."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Any, Final, TypeAlias

Count: TypeAlias = Callable[[str], int]
"""Tokens of a text."""

PAGES_BYTES: Final = 50_000
"""Bytes of a page of PDF where the pages' own objects are compressed: usual ones."""

_PAGE: Final = re.compile(rb"/Type\s*/Page(?![A-Za-z])")
_MOST: Final = 1 << 30


class Tally:
    """Tokens while they are added up.

    Args:
        count: tokens of a text in OpenAI's ``o200k_base``.
        scale: tokens of the model for one of these.

    Attributes:
        guessed: of them, those that no count of a text can know.
    """

    def __init__(self, count: Count, *, scale: float = 1.0) -> None:
        self._count = count
        self._scale = scale
        self._tokens = 0.0
        self.guessed = 0

    def text(self, text: object, scale: float = 1.0) -> None:
        """Add a text, times *scale*; what is none adds nothing."""
        if isinstance(text, str) and text:
            self._tokens += self._count(text) * self._scale * scale

    def json(self, value: object) -> None:
        """Add *value* as JSON without spaces."""
        self.text(compact(value))

    def add(self, tokens: float) -> None:
        """Add what the provider puts around the texts."""
        self._tokens += tokens

    def guess(self, tokens: float) -> None:
        """Add tokens of an image, a file or a hidden thought."""
        tokens = min(max(round(tokens), 0), _MOST)
        self._tokens += tokens
        self.guessed += tokens

    @property
    def tokens(self) -> int:
        """All that was added."""
        return round(self._tokens)


def compact(value: object) -> str:
    """*value* as JSON without spaces, in its own alphabet."""
    try:
        return json.dumps(value, ensure_ascii=False, separators=(",", ":"), default=str)
    except (TypeError, ValueError, RecursionError):
        # No JSON (odd keys), or too deep: what can be read of it counts.
        return " ".join(strings(value))


def spaced(value: object) -> str:
    """*value* as JSON with spaces, as Python writes it."""
    try:
        return json.dumps(value, default=str)
    except (TypeError, ValueError, RecursionError):
        return " ".join(strings(value))


def mapping(value: object) -> Mapping[str, Any]:
    """*value* where it is a JSON object, else an empty one."""
    return value if isinstance(value, Mapping) else {}


def mappings(value: object) -> list[Mapping[str, Any]]:
    """The JSON objects in *value*, which may be a list of them or one."""
    if isinstance(value, Mapping):
        return [value]
    if isinstance(value, (list, tuple)):
        return [one for one in value if isinstance(one, Mapping)]
    return []


def string(value: object) -> str:
    """*value* where it is a text, else an empty one."""
    return value if isinstance(value, str) else ""


def strings(value: object) -> list[str]:
    """All texts in *value*, at any depth."""
    found: list[str] = []
    left, seen = [value], set()
    while left:
        one = left.pop()
        if isinstance(one, str):
            found.append(one)
        elif isinstance(one, (Mapping, list, tuple)) and id(one) not in seen:
            seen.add(id(one))  # what holds itself is read once
            inner = one.values() if isinstance(one, Mapping) else one
            left += inner
    return found


def pages_of(data: bytes) -> int:
    """Pages of a PDF: counted where that is possible, else by its size."""
    return len(_PAGE.findall(data)) or len(data) // PAGES_BYTES + 1
