"""Markdown of a model: drawn, never obeyed, and the same however it arrives."""

from __future__ import annotations

import io
import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from rich.console import Console

from contextwindow.cli.markdown import SafeMarkdown, split
from contextwindow.cli.styles import console

MARKS = st.text(alphabet=st.sampled_from("ab \n\t#*_`~>-+1.)(![]|:\\&;<x\x1b\u202e&"), max_size=80)
STYLE = re.compile(r"\x1b\[[\d;]*m")


def drawn(text: str, width: int = 80) -> str:
    """What a terminal of that width is sent."""
    out = terminal(width)
    out.print(SafeMarkdown(text))
    assert isinstance(out.file, io.StringIO)
    return out.file.getvalue()


def terminal(width: int = 80) -> Console:
    return console(io.StringIO(), force_terminal=True, color_system="standard", width=width)


def seen(text: str) -> str:
    """*text* without what sets styles."""
    return STYLE.sub("", text)


@given(st.one_of(MARKS, st.text(max_size=60)))
@example("&#x1b;]8;;http://evil&#x1b;\\x")
@example("&#x202e;evil")
@example('[a](<http://x/\u202e>) ![b](http://y "\x1b[31m")')
@example("```\x1b[31m\n\x1b]52;c;eA==\x07\n```")
def test_nothing_but_styles_reaches_the_terminal(text: str) -> None:
    shown = seen(drawn(text))
    assert not {one for one in shown if ord(one) < 0x20 or 0x7F <= ord(one) < 0xA0} - {"\n"}
    assert not set("\u202a\u202b\u202d\u202e\u2066\u2067\u2068\u2069") & set(shown)


def test_links_and_images_are_text_with_their_address() -> None:
    shown = drawn("[bank](https://evil.example) ![cat](https://evil.example/cat.png)")
    assert "\x1b]8" not in shown
    assert "bank (https://evil.example)" in seen(shown)
    assert "https://evil.example/cat.png" in seen(shown)


@pytest.mark.parametrize(
    "text",
    ["[red]x[/red]", "<b>x</b>", "<!-- x -->", ":smile:", "<script>x</script>", "a <T> b"],
)
def test_what_is_no_markdown_is_shown_as_it_is(text: str) -> None:
    assert seen(drawn(text)).strip() == text


def test_markdown_is_drawn() -> None:
    shown = drawn(
        "# Title\n\n- *a*\n- `b`\n\n| x | y |\n|---|---|\n| 1 | 2 |\n\n```py\nif 1: 2\n```"
    )
    assert "# Title" not in shown
    assert "\x1b[1;4mTitle" in shown
    assert "• " in shown
    assert "|---|" not in shown
    assert "    if 1: 2" in seen(shown)


@pytest.mark.parametrize("width", [1, 5, 20, 200])
def test_any_width_will_do(width: int) -> None:
    text = "# A title\n\n- item\n\n> quote\n\n| x | y |\n|---|---|\n| 1 | 2 |\n\n```\ncode\n```"
    assert all(len(line) <= width for line in seen(drawn(text, width)).splitlines())


WHOLE = (
    "A paragraph\nof two lines.\n\n# A heading\n\n1. one\n\n2. two\n\n   more of two\n\n"
    "> quoted\nlazily\n\n```python\na = 1\n\nb = 2\n```\n\n| x | y |\n|---|---|\n| 1 | 2 |\n\nEnd"
)


@pytest.mark.parametrize("size", [1, 2, 7, 1000])
def test_blocks_that_are_cut_off_are_those_of_the_whole(size: int) -> None:
    blocks, tail = [], ""
    for at in range(0, len(WHOLE), size):
        tail += WHOLE[at : at + size]
        if cut := split(tail):
            blocks.append(tail[:cut])
            tail = tail[cut:]
    blocks.append(tail)
    assert "".join(blocks) == WHOLE
    one = [line.rstrip() for line in seen(drawn(WHOLE)).splitlines() if line.strip()]
    many = [
        line.rstrip()
        for block in blocks
        for line in seen(drawn(block)).splitlines()
        if line.strip()
    ]
    assert many == one


@given(MARKS)
def test_cutting_loses_nothing(text: str) -> None:
    assert 0 <= split(text) <= len(text)
    assert text[: split(text)].endswith("\n") or split(text) == 0
