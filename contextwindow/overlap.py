"""Trimming what a model repeats when it goes on with a reply that was cut off."""

from __future__ import annotations

from typing import Final

LONGEST: Final = 1_000
"""Characters of the text before that are looked at for an echo."""

SHORTEST: Final = 3
"""Fewer repeated characters are taken for chance: 'Hel' + 'lo' is no echo of 'l'."""


class EchoTrimmer:
    """Holds a continuation back until it is known how much of it repeats what was there.

    The longest start of the continuation that is also an end of the text before is an echo.
    Text is held only as long as a longer echo is still possible.
    """

    def __init__(self, before: str) -> None:
        self._tail = before[-LONGEST:]
        self._held = ""
        self._decided = not self._tail

    def feed(self, text: str) -> str:
        """The new part of *text*, or ``""`` while that cannot be told."""
        if self._decided:
            return text
        self._held += text
        if len(self._held) < len(self._tail) and self._may_grow():
            return ""
        return self._decide()

    def flush(self) -> str:
        """What is still held back, when no more text will come."""
        return "" if self._decided else self._decide()

    def _may_grow(self) -> bool:
        """Whether some end of the tail is longer than what is held and starts with it."""
        return self._tail.find(self._held, 0, len(self._tail) - 1) >= 0

    def _decide(self) -> str:
        self._decided = True
        held, tail = self._held, self._tail
        for size in range(min(len(held), len(tail)), 0, -1):
            if tail.endswith(held[:size]) and _is_echo(held[:size]):
                return held[size:]
        return held


def _is_echo(repeated: str) -> bool:
    """Whether *repeated* is long enough, or a doubled space, which nobody writes."""
    return len(repeated) >= SHORTEST or not repeated.strip(" \t")
