"""How text looks on a terminal, light or dark."""

from __future__ import annotations

from typing import IO, Any, Final

from rich.console import Console
from rich.theme import Theme

# Attributes rather than colours: of the eight that every terminal has, magenta alone is read well
# on black and on white.
_THEME: Final = Theme(
    {
        "markdown.code": "magenta",
        "markdown.code_block": "none",
        "markdown.block_quote": "italic",
        "markdown.list": "none",
        "markdown.item.bullet": "bold",
        "markdown.item.number": "bold",
        "markdown.hr": "dim",
        "markdown.h1": "bold underline",
        "markdown.h2": "bold underline",
        "markdown.h3": "bold",
        "markdown.h4": "bold italic",
        "markdown.h5": "italic",
        "markdown.h6": "italic",
        "markdown.link": "underline",
        "markdown.link_url": "dim",
        "markdown.table.border": "dim",
        "markdown.table.header": "bold",
        "speaker": "bold",
        "quiet": "dim",
        "hit": "bold reverse",
    }
)


def console(file: IO[str] | None = None, **options: Any) -> Console:
    """A console that takes nothing in a text for markup, and makes nothing up.

    Args:
        file: None is standard output.
        options: more of rich's own.
    """
    return Console(file=file, theme=_THEME, highlight=False, markup=False, emoji=False, **options)


def is_live(console: Console) -> bool:
    """Whether what was shown can be shown anew: a terminal that moves its cursor."""
    return console.is_terminal and not console.is_dumb_terminal
