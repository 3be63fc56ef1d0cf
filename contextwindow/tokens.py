"""Counting tokens, offline.

tiktoken's ``o200k_base`` stands in for every model.  It is loaded on first use (0.3 s, 76 MiB)
when its file is on this machine.  Counting never downloads it, which could stop the caller for as
long as the network pleases: the store does that in the background of the first call to a
provider.  Without it a token is taken as four bytes.
"""

from __future__ import annotations

import hashlib
import logging
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Final

ENCODING: Final = "o200k_base"

_URL: Final = f"https://openaipublic.blob.core.windows.net/encodings/{ENCODING}.tiktoken"
# tiktoken panics on a run of a million white-space characters and slows down on long words.
_PIECE: Final = 100_000
# Past this, ten pieces spread over the text are counted and the rest is taken to be alike.
_SAMPLED_ABOVE: Final = 2_000_000
_log = logging.getLogger("contextwindow")

_encode: Callable[[str], int] | None = None
_unavailable = False


def count_tokens(text: str) -> int:
    """Tokens of *text*, loading the encoding when its file is on this machine.

    Texts above 2 million characters are counted by a sample; without an encoding the figure is
    ``estimate_tokens(text)``.
    """
    encode = _encode or load_encoding()
    if encode is None:
        return estimate_tokens(text)
    if len(text) <= _PIECE:
        return encode(text)
    starts = range(0, len(text), _PIECE)
    if len(text) > _SAMPLED_ABOVE:
        sample = [text[start : start + _PIECE] for start in starts[:: len(starts) // 10]]
        seen = sum(map(len, sample))
        return round(sum(map(encode, sample)) * len(text) / seen)
    return sum(encode(text[start : start + _PIECE]) for start in starts)


def estimate_tokens(text: str) -> int:
    """A guess that needs nothing: four bytes a token, rounded up."""
    size = len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))
    return (size + 3) // 4


def quick_tokens(text: str) -> int:
    """Tokens of *text*: counted where that takes no time, else a guess."""
    return count_tokens(text) if is_loaded() and len(text) < 20_000 else estimate_tokens(text)


def is_loaded() -> bool:
    """Whether a count is as good and as cheap as it will get in this process."""
    return _encode is not None or _unavailable


def load_encoding() -> Callable[[str], int] | None:
    """Load the encoding if its file is on this machine; None if it is not.

    Loading twice at the same time is harmless.
    """
    global _encode, _unavailable
    if _encode is not None or _unavailable:
        return _encode
    if not _cached_file().exists():
        return None
    import tiktoken  # 14 ms that a process which never counts need not spend

    try:
        encoding = tiktoken.get_encoding(ENCODING)
    except Exception as error:  # noqa: BLE001 - a broken cache must not stop a conversation
        _give_up(str(error))
        return None
    _encode = _counter(encoding.encode)
    return _encode


def download_encoding() -> bool:
    """Fetch the encoding's file if it is missing, and load it; may take as long as the network.

    Returns:
        Whether tokens are counted exactly from now on.
    """
    global _unavailable
    import tiktoken

    try:
        tiktoken.get_encoding(ENCODING)
    except Exception as error:  # noqa: BLE001 - offline is a normal state
        _give_up(f"{type(error).__name__} while fetching it")
        return False
    _unavailable = False
    return load_encoding() is not None


def _counter(encode: Callable[..., list[int]]) -> Callable[[str], int]:
    def count(text: str) -> int:
        try:
            return len(encode(text, disallowed_special=()))
        except Exception:  # noqa: BLE001 - tiktoken refuses some texts (long white space)
            return estimate_tokens(text)

    return count


def _give_up(reason: str) -> None:
    global _unavailable
    if not _unavailable:
        _log.warning(
            "tokens are estimated as bytes / 4: encoding %s could not be had (%s); set "
            "TIKTOKEN_CACHE_DIR to a folder that holds its file",
            ENCODING,
            reason,
        )
    _unavailable = True


def _cached_file() -> Path:
    """Where tiktoken keeps the encoding's file (as in tiktoken 0.14, ``tiktoken/load.py``)."""
    folder = os.environ.get("TIKTOKEN_CACHE_DIR") or os.environ.get("DATA_GYM_CACHE_DIR")
    base = Path(folder) if folder else Path(tempfile.gettempdir()) / "data-gym-cache"
    return base / hashlib.sha1(_URL.encode(), usedforsecurity=False).hexdigest()
