"""What a docstring says of a function and of each of its arguments.

Understands the sections of Google's style (``Args:``), NumPy's (``Parameters`` underlined) and
Sphinx's fields (``:param name:``).
"""

from __future__ import annotations

import inspect
import re
from typing import Final, NamedTuple

_ARGUMENTS: Final = {
    *("args", "arguments", "parameters", "params"),
    *("other parameters", "keyword args", "keyword arguments"),
}
_SECTIONS: Final = _ARGUMENTS | {
    *("attributes", "example", "examples", "note", "notes", "raises", "references", "return"),
    *("returns", "see also", "todo", "warning", "warnings", "warns", "yield", "yields"),
}
_GOOGLE = re.compile(r"([A-Za-z][A-Za-z ]*):\s*$")
_FIELD = re.compile(r"[:@]\w+[^:]*:(\s|$)")
_SPHINX = re.compile(
    r"[:@](?:param|parameter|arg|argument|key|keyword)\s+(?:[^:]*\s)?\*{0,2}(\w+)\s*:\s*(.*)$"
)
# `name: text`, `name (int, optional): text`, `*names: text`.
_GOOGLE_ENTRY = re.compile(r"\*{0,2}(\w+)\s*(?:\((?:[^()]|\([^()]*\))*\))?\s*:(?:\s+(.*))?$")
# `name`, `name : int, optional`, `x, y : float`.
_NUMPY_ENTRY = re.compile(r"((?:\*{0,2}\w+)(?:\s*,\s*\*{0,2}\w+)*)\s*(?::.*)?$")
_ITEM = re.compile(r"([-*+•]|\d+[.)])\s")


class Documented(NamedTuple):
    """A docstring, taken apart.

    Attributes:
        description: what stands before the first section.
        arguments: text of each argument that is described, by its name.
    """

    description: str
    arguments: dict[str, str]


def read_docstring(text: str | None) -> Documented:
    """*text* taken apart; of None and of ``""`` both parts are empty."""
    lines = inspect.cleandoc(text or "").splitlines()
    description: list[str] = []
    arguments: dict[str, str] = {}
    number = 0
    while number < len(lines) and not _begins_section(lines, number):
        description.append(lines[number])
        number += 1
    while number < len(lines):
        number = _read_section(lines, number, arguments)
    return Documented("\n".join(description).strip(), arguments)


def _begins_section(lines: list[str], number: int) -> bool:
    line = lines[number]
    return bool(_FIELD.match(line)) or _heading(lines, number) is not None


def _heading(lines: list[str], number: int) -> tuple[str, bool] | None:
    """Name of the section that begins here, and whether it is in NumPy's style."""
    line = lines[number]
    under = lines[number + 1].strip() if number + 1 < len(lines) else ""
    if line.strip().lower() in _SECTIONS and len(under) > 2 and not under.strip("-="):
        return line.strip().lower(), True
    found = _GOOGLE.match(line)
    if found and found[1].lower() in _SECTIONS:
        return found[1].lower(), False
    return None


def _read_section(lines: list[str], number: int, arguments: dict[str, str]) -> int:
    """Read the section that begins at *number*; returns where the next one begins."""
    heading = _heading(lines, number)
    begin = number + 1 if heading is None or not heading[1] else number + 2
    end = begin
    while end < len(lines) and not _begins_section(lines, end):
        end += 1
    if heading is None:
        found = _SPHINX.match(lines[number])
        if found:
            arguments[found[1]] = _joined([found[2], *lines[begin:end]])
    elif heading[0] in _ARGUMENTS:
        _read_entries(lines[begin:end], arguments, numpy=heading[1])
    return end


def _read_entries(lines: list[str], arguments: dict[str, str], *, numpy: bool) -> None:
    """Read entries whose first lines are indented least, and the lines that belong to each."""
    depth = min((_indent(line) for line in lines if line.strip()), default=0)
    names: list[str] = []
    text: list[str] = []
    for line in [*lines, None]:
        if line is not None and (not line.strip() or _indent(line) > depth):
            text.append(line)
            continue
        for name in names:
            arguments[name] = _joined(text)
        if line is None:
            return
        found = (_NUMPY_ENTRY if numpy else _GOOGLE_ENTRY).match(line.strip())
        if found is None:
            names, text = [], []
        elif numpy:
            names, text = [one.strip().lstrip("*") for one in found[1].split(",")], []
        else:
            names, text = [found[1]], [found[2] or ""]


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip())


def _joined(lines: list[str]) -> str:
    """*lines* as one text: wrapped lines are joined, items of a list and paragraphs kept apart."""
    text = ""
    apart = True
    for line in (line.strip() for line in lines):
        if line and text:
            text += "\n" if apart or _ITEM.match(line) else " "
        text += line
        apart = not line
    return text
