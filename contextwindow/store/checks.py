"""What may be written: checked before anything is, and the same for every database."""

from __future__ import annotations

import re

from contextwindow.errors import ConfigError

_BAD = re.compile("[\0\ud800-\udfff]")


def check_text(text: object, what: str, *, empty: bool = False) -> str:
    """*text* if it can be stored and read back unchanged on every database.

    Args:
        what: what the text is, for the message.
        empty: whether ``""`` is allowed.

    Raises:
        ConfigError: it is no str, is empty, or holds NUL or half a surrogate pair.
    """
    if not isinstance(text, str):
        raise ConfigError(f"{what} must be str, not {type(text).__name__}: {text!r:.60}")
    if not text and not empty:
        raise ConfigError(f"{what} is empty; give it at least one character")
    if text.isascii() and "\0" not in text:
        return text
    bad = _BAD.search(text)
    if bad is not None:
        found = "a NUL character" if bad[0] == "\0" else f"a lone surrogate ({bad[0]!a})"
        raise ConfigError(
            f"{what} holds {found} at index {bad.start()}, which no database keeps; remove it, "
            "or replace it with '\\ufffd'"
        )
    return text
