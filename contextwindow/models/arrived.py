"""What of an answer has reached this process already.

A server flushes each event, and each comes out of the HTTP client as a piece of its own, though a
busy network delivers many at once.  Events that are here anyhow are to be stored in one
transaction, so one has to know whether the next piece can be had without waiting.  The client
does not say; its parser's buffer does.
"""

from __future__ import annotations

from collections.abc import Sized
from typing import Any, Final

# From the response to h11's buffer, as in httpx2 2.16 and httpcore2; sync and async are alike.
_PATH: Final = (
    "stream",
    "_stream",
    "_httpcore_stream",
    "_stream",
    "_connection",
    "_h11_state",
    "_receive_buffer",
)

_FRAMING: Final = 32
"""More bytes than the framing between two pieces takes: with so many there is a piece."""


class Arrived:
    """Whether more of an answer is here.

    Where the way to the buffer is another one (a client of the caller's own, HTTP/2, a later
    httpx2) or the body is compressed, the answer is always no, and pieces are read one by one.
    """

    __slots__ = ("_buffer",)

    def __init__(self, response: Any) -> None:
        found = response
        if "content-encoding" in response.headers:
            found = None
        for name in _PATH:
            found = getattr(found, name, None)
        self._buffer: Sized | None = found if isinstance(found, Sized) else None

    def __bool__(self) -> bool:
        return self._buffer is not None and len(self._buffer) >= _FRAMING
