"""Ctrl-C that ends a reply, and lets what it has left be written."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Final

_TWICE: Final = 2.0
"""Seconds after a Ctrl-C in which another one is taken for the same."""


@contextmanager
def once() -> Iterator[None]:
    """Have Ctrl-C raise ``KeyboardInterrupt``, but not again while that is being dealt with.

    Whoever is impatient presses twice; the second one would come in the middle of writing what
    was shown.  One that comes later is heard again.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    last = float("-inf")

    def pressed(_: int, __: FrameType | None) -> None:
        nonlocal last
        before, last = last, time.monotonic()
        if last - before > _TWICE:
            raise KeyboardInterrupt

    old = signal.signal(signal.SIGINT, pressed)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, old)
