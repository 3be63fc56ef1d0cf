"""Text of models on a terminal: whatever it holds, the terminal only shows it."""

from __future__ import annotations

import unicodedata

_KEPT = {"\n", "\t"}
# Joiners within emoji and scripts, and the soft hyphen: they show nothing and do nothing.
_HARMLESS = {"\u200c", "\u200d", "\u00ad"}


def harmless(text: str) -> str:
    """*text* with every character that a terminal may act on made visible.

    Each character is judged by itself, so that an escape cut over two chunks is harmless too.
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(one if one.isprintable() or one in _KEPT else _shown(one) for one in text)


def one_line(text: str) -> str:
    """*text* made harmless, on one line."""
    return harmless(" ".join(text.split()))


def _shown(one: str) -> str:
    code = ord(one)
    if one in _HARMLESS:
        return one
    if code < 0x20:
        return chr(0x2400 + code)
    if code == 0x7F:
        return "\u2421"
    if unicodedata.category(one) == "Zs":
        return one
    return f"\\u{{{code:x}}}"
