"""What a caller does while another turn runs on the context."""

from __future__ import annotations

import time
from typing import Final, Literal, get_args

from contextwindow.effects import BeginTurn, Begun
from contextwindow.errors import TurnBusy
from contextwindow.store import cancelling
from contextwindow.store.ledger import TurnLedger
from contextwindow.store.store import Store

OnBusy = Literal["raise", "wait", "cancel_running"]
ON_BUSY: Final[tuple[str, ...]] = get_args(OnBusy)

_SOON: Final = 0.02
_LATE: Final = 1.0
"""Seconds between looks at a context that another turn holds, at first and at last."""


class Turnstile:
    """Takes the lease of one turn, as often as it takes.

    Args:
        on_busy: what to do while another turn holds it.
        thread: identity of the thread that waits.
        task: the asyncio task that waits; None where the thread does.
    """

    def __init__(
        self, store: Store, ledger: TurnLedger, on_busy: OnBusy, *, thread: int, task: object = None
    ) -> None:
        self._store = store
        self._ledger = ledger
        self._on_busy = on_busy
        self._thread = thread
        self._task = task
        self._pause = _SOON
        self._since = time.monotonic()
        self._asked: set[str] = set()
        self._busy: TurnBusy | None = None

    def attempt(self, wanted: BeginTurn) -> Begun | float:
        """The lease, or seconds until the next attempt.

        Raises:
            TurnBusy: another turn holds it, and it is not to be waited for, or would wait for
                the caller.
        """
        try:
            return self._ledger.begin(wanted)
        except TurnBusy as busy:
            if self._on_busy == "raise":
                raise
            self._busy = busy
            self._deal_with(busy)
        pause, self._pause = self._pause, min(self._pause * 1.5, _LATE)
        return pause

    def _deal_with(self, busy: TurnBusy) -> None:
        running = cancelling.ours(busy.turn_id, busy.owner)
        holder = None if running is None else running.holder
        if holder is not None and holder.waits_for(self._thread, self._task):
            raise self._told(
                "it is being read right here, so that waiting for it would never end: close its "
                "stream first"
            ) from busy
        if self._on_busy == "cancel_running" and busy.turn_id not in self._asked:
            self._asked.add(busy.turn_id)
            self._store.ask_to_stop(busy)

    def given_up(self, reason: str) -> TurnBusy:
        """The error for a wait that *reason* (``"cancel"`` or ``"deadline"``) has ended."""
        waited = f"after {time.monotonic() - self._since:.1f} s"
        asked = " it was asked to stop, and" if self._asked else ""
        if reason == "deadline":
            return self._told(f"{asked} the deadline of this call ended the wait {waited}")
        return self._told(f"{asked} cancel() ended the wait {waited}")

    def _told(self, what: str) -> TurnBusy:
        busy = self._busy or TurnBusy("another turn is running on the context")
        return TurnBusy(
            f"turn {busy.turn_id}, held by {busy.owner}, is running on this context:"
            f" {what.strip()}; nothing was sent",
            turn_id=busy.turn_id,
            owner=busy.owner,
            since=busy.since,
        )
