"""What may be written: checked before anything is, and the same for every database."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

from contextwindow.errors import ConfigError

_BAD = re.compile("[\0\ud800-\udfff]")
_LARGEST: Final = (1 << 63) - 1


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


def check_whole(value: object, what: str, *, least: int = 0) -> int:
    """*value* if it is a whole number that a database can hold.

    Raises:
        ConfigError: it is not, or is below *least*.
    """
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= _LARGEST:
        raise ConfigError(f"{what} must be a whole number of {least} or above, not {value!r:.60}")
    return value


def check_id(value: object, what: str) -> int:
    """*value* if it can be the number of a *what*; SQLite would take ``"1"`` for 1.

    Raises:
        ConfigError: it cannot.
    """
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value <= _LARGEST:
        raise ConfigError(f"this context has no {what} {value!r:.60}; ids are whole numbers")
    return value


def check_ids(values: object) -> list[int]:
    """*values* if they can be ids of records.

    Raises:
        ConfigError: they are no list, or one of them is no id.
    """
    if isinstance(values, (str, bytes)) or not isinstance(values, Iterable):
        raise ConfigError(f"record ids must be a list of whole numbers, not {values!r:.60}")
    return [check_id(value, "record") for value in values]


def check_flag(value: object, what: str) -> bool:
    """*value* if it is True or False: a database would store another number as it is.

    Raises:
        ConfigError: it is neither.
    """
    if isinstance(value, bool):
        return value
    raise ConfigError(f"{what} must be True or False, not {value!r:.60}")
