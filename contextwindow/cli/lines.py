"""What a user types, over one line or several."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Final

FENCE: Final = '"""'

with suppress(ImportError):  # Windows has none: lines are typed without a history
    import readline  # noqa: F401  # gives input() editing and a history


def read_prompt(ask: Callable[[str], str] | None = None) -> str:
    r"""What was typed: a line; lines that end with ``\``, up to one that does not; or a block.

    A block begins with three double quotes and ends with a line that ends with them.

    Args:
        ask: reads a line, given what to show before it; None reads standard input.

    Raises:
        EOFError: the input has ended, and nothing was typed before its end.
    """
    ask = ask or _ask
    line = ask("> ")
    if line.lstrip().startswith(FENCE):
        return _block(line.lstrip().removeprefix(FENCE), ask)
    lines = [line]
    while lines[-1].endswith("\\"):
        lines[-1] = lines[-1][:-1]
        try:
            lines.append(ask("… "))
        except EOFError:
            break
    return "\n".join(lines)


def _block(line: str, ask: Callable[[str], str]) -> str:
    lines = [line]
    while not lines[-1].rstrip().endswith(FENCE):
        try:
            lines.append(ask("… "))
        except EOFError:
            return "\n".join(lines).strip("\n")
    lines[-1] = lines[-1].rstrip().removesuffix(FENCE)
    return "\n".join(lines).strip("\n")


def _ask(prompt: str) -> str:
    # A pipe has nobody to be asked.
    return input(prompt if sys.stdin.isatty() else "")
