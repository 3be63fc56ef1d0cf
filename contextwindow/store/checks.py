"""What may be written: checked before anything is, and the same for every database."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator
from typing import Final

from contextwindow.errors import ConfigError

_BAD = re.compile("[\0\ud800-\udfff]")
_LARGEST: Final = (1 << 63) - 1
# Python writes JSON by recursion, and refuses numbers of more than 4,300 digits.
_DEEPEST: Final = 400
_LONGEST_BITS: Final = 4_096


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


def check_json(value: object, what: str, *, texts: bool = True) -> None:
    """Look whether *value* is JSON that can be stored; what it costs is linear in its size.

    Args:
        what: what the value is, for the message.
        texts: refuse also texts that no database keeps; where they are stored escaped, they may be.

    Raises:
        ConfigError: it holds another type, a number that is none, or is nested too deeply.
    """
    # Iterators and not what they give: a list of a million numbers costs no more than a short one.
    open_: list[Iterator[object]] = [iter((value,))]
    while open_:
        for one in open_[-1]:
            if isinstance(one, dict):
                _check_keys(one, what, texts=texts)
                open_.append(iter(one.values()))
                break
            if isinstance(one, list):
                open_.append(iter(one))
                break
            if isinstance(one, str):
                if texts:
                    check_text(one, f"a text in {what}", empty=True)
            elif not _plain(one):
                raise ConfigError(f"{what} holds {shown(one)}, which is no JSON")
        else:
            open_.pop()
        if len(open_) > _DEEPEST:
            raise ConfigError(f"{what} is nested more than {_DEEPEST} levels deep")


def shown(value: object) -> str:
    """*value* for a message: its beginning, or its type where it cannot be written out."""
    try:
        return f"{value!r:.60}"
    except (ValueError, RecursionError):  # a number of thousands of digits, a list in itself
        return f"{type(value).__name__} that cannot be shown"


def _check_keys(value: dict[object, object], what: str, *, texts: bool) -> None:
    for key in value:
        if not isinstance(key, str):
            raise ConfigError(f"{what} has a key that is no text: {shown(key)}")
        if texts:
            check_text(key, f"a key in {what}", empty=True)


def _plain(value: object) -> bool:
    if isinstance(value, float):
        return math.isfinite(value)
    if isinstance(value, int):
        return value.bit_length() <= _LONGEST_BITS
    return value is None


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
