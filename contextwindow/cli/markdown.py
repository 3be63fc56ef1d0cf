"""Markdown of a model on a terminal: drawn, and never obeyed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, ClassVar, Final

from markdown_it import MarkdownIt
from markdown_it.token import Token
from rich.console import Console, ConsoleOptions, RenderResult
from rich.markdown import CodeBlock, Heading, Markdown, MarkdownElement
from rich.padding import Padding
from rich.segment import Segment
from rich.text import Text

from contextwindow.cli.terminal import harmless

# No HTML, which would vanish, and no images, which are links in disguise.
_PARSER: Final = (
    MarkdownIt("commonmark", {"html": False}).enable(["strikethrough", "table"]).disable("image")
)


class _Code(CodeBlock):
    """Code without colours, whose backgrounds fit dark terminals or light ones, never both."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield Padding(Text(str(self.text).rstrip()), (0, 0, 0, 4))


class _LeftHeading(Heading):
    """A heading where the text begins, whatever the width of the window."""

    LEVEL_ALIGN: ClassVar[dict[str, Any]] = dict.fromkeys(Heading.LEVEL_ALIGN, "left")


class _Markdown(Markdown):
    elements: ClassVar[dict[str, type[MarkdownElement]]] = {
        **Markdown.elements,
        "fence": _Code,
        "code_block": _Code,
        "heading_open": _LeftHeading,
    }

    def __init__(self, text: str) -> None:
        super().__init__("", hyperlinks=False)
        self.markup = harmless(text)
        self.parsed = _PARSER.parse(self.markup)
        _make_harmless(self.parsed)


class SafeMarkdown:
    """A text in Markdown whose links show where they lead and are none.

    Nothing in it reaches the terminal as a command, entities included.
    """

    def __init__(self, text: str) -> None:
        self._inner = _Markdown(text)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """The lines, without the blank ones that lists and tables put around themselves."""
        lines = console.render_lines(self._inner, options.update(height=None), pad=False)
        shown = [at for at, line in enumerate(lines) if any(one.text.strip() for one in line)]
        for line in lines[shown[0] : shown[-1] + 1] if shown else []:
            yield from _stripped(line)
            yield Segment.line()


def split(text: str) -> int:
    """How much of *text*, which grows, will be drawn as it is now: all blocks but the last.

    An unfinished line may still turn into anything, so that the last block is that of whole lines.
    """
    lines = text.split("\n")[:-1]
    starts = [
        token.map[0]
        for token in _PARSER.parse("\n".join(lines))
        if token.level == 0 and token.map is not None
    ]
    last = starts[-1] if starts else 0
    return sum(len(line) + 1 for line in lines[:last])


def _stripped(line: Sequence[Segment]) -> list[Segment]:
    """*line* without the spaces that fill it up, which whoever copies it does not want."""
    kept = list(line)
    while kept and not kept[-1].text.strip():
        kept.pop()
    if kept:
        kept[-1] = Segment(kept[-1].text.rstrip(), kept[-1].style)
    return kept


def _make_harmless(tokens: Iterable[Token]) -> None:
    for token in tokens:
        token.content = harmless(token.content)
        token.attrs = {
            name: harmless(value) if isinstance(value, str) else value
            for name, value in token.attrs.items()
        }
        _make_harmless(token.children or ())
