"""HTML that is put together from values: whatever is not made here is text."""

from __future__ import annotations

import re
from collections.abc import Iterable
from html import escape
from typing import Final, TypeAlias
from urllib.parse import quote, urlencode

_VOID: Final = frozenset({"br", "hr", "img", "input", "link", "meta"})
# Controls, and the marks by which a text can turn round the letters beside it.
_MARKS: Final = r"\0-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069"
_UNSEEN: Final = re.compile(f"[{_MARKS}]")
# Up to what no address holds without being quoted; what may be the sentence's stays outside.
_OUTSIDE: Final = _MARKS + r"\s<>\"'`{}|\\^\[\]"
_ADDRESS: Final = re.compile(rf"https?://[^{_OUTSIDE}]+[^{_OUTSIDE}.,;:!?)]")
# What a browser acts upon, or sends back: it must stay what it is.
_EXACT: Final = frozenset({"action", "href", "src", "value"})

LONGEST_LINK: Final = 2_000


class Safe(str):
    """HTML that was made here."""

    __slots__ = ()


Child: TypeAlias = "str | int | Iterable[Child] | None"


def visible(text: str) -> str:
    """*text* with its line breaks alike, and what cannot be seen made visible."""
    if "\r" in text:
        text = text.replace("\r\n", "\n")
    return _UNSEEN.sub(lambda found: _picture(ord(found[0])), text)


def render(child: Child) -> Safe:
    """A child of an element as HTML: ``Safe`` as it is, all else escaped."""
    if isinstance(child, Safe):
        return child
    if child is None:
        return Safe("")
    if isinstance(child, str):
        return Safe(escape(visible(child)))
    if isinstance(child, int):
        return Safe(f"{child:,}")
    return Safe("".join(map(render, child)))


def tag(name: str, /, *children: Child, **attributes: str | int | bool | None) -> Safe:
    """One element.

    Args:
        attributes: ``class_`` is ``class``, ``aria_label`` is ``aria-label``; None and False
            leave one out, True writes it without a value.
    """
    written = "".join(
        f" {key.rstrip('_').replace('_', '-')}"
        + (
            ""
            if value is True
            else f'="{escape(str(value) if key in _EXACT else visible(str(value)))}"'
        )
        for key, value in attributes.items()
        if value is not None and value is not False
    )
    if name in _VOID:
        return Safe(f"<{name}{written}>")
    return Safe(f"<{name}{written}>{render(children)}</{name}>")


def address(*path: str | int, **query: str | int | None) -> str:
    """An address of this server: each part of *path* quoted, ``None`` left out of *query*."""
    asked = urlencode({key: value for key, value in query.items() if value is not None})
    place = "/" + "/".join(quote(str(part), safe="") for part in path)
    return f"{place}?{asked}" if asked else place


def link(where: str, *children: Child, **attributes: str | int | bool | None) -> Safe:
    """A link to an address of this server."""
    return tag("a", *children, href=where, **attributes)


def prose(text: str) -> Safe:
    """What somebody wrote: text, in which addresses lead to a page that asks first."""
    out: list[Child] = []
    end = 0
    for found in _ADDRESS.finditer(text):
        if len(found[0]) > LONGEST_LINK:
            continue
        out.append(text[end : found.start()])
        away = address("leave", to=found[0])
        out.append(tag("a", found[0], href=away, rel="noopener noreferrer", class_="away"))
        end = found.end()
    out.append(text[end:])
    return render(out)


def _picture(code: int) -> str:
    if code < 0x20:
        return chr(0x2400 + code)
    return "\u2421" if code == 0x7F else f"\\u{{{code:x}}}"
