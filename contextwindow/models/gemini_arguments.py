"""Arguments of a function call that arrive in pieces, each with the path of its place."""

from __future__ import annotations

import re
from itertools import pairwise
from typing import Any, Final

# RFC 9535 in the forms that name one place.
_STEP: Final = re.compile(
    r"\.(?P<name>[^.\[\]]+)|\[(?P<index>\d+)\]"
    r"|\['(?P<single>(?:[^'\\]|\\.)*)'\]|\[\"(?P<double>(?:[^\"\\]|\\.)*)\"\]"
)
_ESCAPE: Final = re.compile(r"\\(.)")
# An index far beyond the end of its list is no list that a model writes.
_GAP: Final = 1_000


def assemble(arguments: dict[str, Any], piece: dict[str, Any]) -> None:
    """Put one of ``partialArgs`` in its place: texts grow, all else is set.

    Raises:
        ValueError: the path is none, or leads through something that has no members.
    """
    steps = path(piece["jsonPath"])
    last = steps[-1]
    place: Any = arguments
    for step, following in pairwise(steps):
        place = _child(place, step, [] if isinstance(following, int) else {})
    before = _child(place, last, None)
    text = piece.get("stringValue")
    value = text if isinstance(text, str) else _value(piece)
    if isinstance(text, str) and isinstance(before, str):
        value = before + text
    place[last] = value


def path(text: str) -> list[str | int]:
    """The steps of a JSON path such as ``$.steps[0]['the name']``.

    Raises:
        ValueError: it is no path to one place.
    """
    found: list[str | int] = []
    position = 1
    while position < len(text):
        match = _STEP.match(text, position)
        if match is None:
            break
        position = match.end()
        quoted = match["single"] if match["single"] is not None else match["double"]
        if match["index"] is not None:
            found.append(int(match["index"]))
        elif quoted is not None:
            found.append(_ESCAPE.sub(r"\1", quoted))
        else:
            found.append(match["name"])
    if not text.startswith("$") or position < len(text) or not found:
        raise ValueError("not a JSON path")
    return found


def _child(place: Any, step: str | int, fresh: Any) -> Any:
    if isinstance(step, int):
        if not isinstance(place, list) or step > len(place) + _GAP:
            raise ValueError("a JSON path leads nowhere")
        place += [None] * (step + 1 - len(place))
        if place[step] is None:
            place[step] = fresh
        return place[step]
    if not isinstance(place, dict):
        raise ValueError("a JSON path leads nowhere")
    if place.get(step) is None:
        place[step] = fresh
    return place[step]


def _value(piece: dict[str, Any]) -> Any:
    if "numberValue" in piece:
        return piece["numberValue"]
    if "boolValue" in piece:
        return piece["boolValue"]
    return None
