"""One question to a model beside the conversation, asked in a database of its own in memory.

It is a turn like any other: retried, resumed, timed out and cancelled by the same code.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Final

from contextwindow.drive import Wiring
from contextwindow.effects import Ask
from contextwindow.middleware import Hooks
from contextwindow.models import catalog
from contextwindow.models.base import CallOptions
from contextwindow.plan import TurnPlan
from contextwindow.records import RecordType, Reply
from contextwindow.store import conversations, writing
from contextwindow.store.store import Store
from contextwindow.streams import AsyncStream, Stream

_NAME: Final = "question"


class Question:
    """A question that blocks until it is answered.

    Args:
        timeout: seconds without a byte; None for the client's own.
    """

    def __init__(self, ask: Ask, timeout: float | None = None) -> None:
        self._store, wire = _prepared(ask, timeout)
        plan = _plan(ask)
        self._stream = Stream(plan, wire(plan))

    def answer(self) -> Reply:
        """The whole reply.

        Raises:
            ModelError: the provider failed.
        """
        try:
            return self._stream.until_done()
        finally:
            self._store.close()

    def cancel(self) -> None:
        """End it soon, from any thread."""
        self._stream.cancel()


class AsyncQuestion:
    """A question for an event loop; see ``Question``.

    Args:
        executor: does what blocks while it is prepared.
    """

    def __init__(
        self, ask: Ask, timeout: float | None = None, executor: ThreadPoolExecutor | None = None
    ) -> None:
        self._ask = ask
        self._timeout = timeout
        self._executor = executor
        self._store: Store | None = None
        self._stream = AsyncStream(_plan(ask), self._wire)

    async def answer(self) -> Reply:
        """As ``Question.answer``."""
        try:
            return await self._stream.until_done()
        finally:
            if self._store is not None:
                # Nothing waits in it: the turn has ended.
                self._store.close()

    def cancel(self) -> None:
        """End it soon, from any thread."""
        self._stream.cancel()

    async def _wire(self, plan: TurnPlan) -> Wiring:
        loop = asyncio.get_running_loop()
        prepare = partial(_prepared, self._ask, self._timeout)
        self._store, wire = await loop.run_in_executor(self._executor, prepare)
        return wire(plan)


def _prepared(ask: Ask, timeout: float | None) -> tuple[Store, Callable[[TurnPlan], Wiring]]:
    """A database that holds the question, and what its turn is driven with."""
    store = Store(":memory:")
    try:
        context = conversations.get_or_create(store.database, _NAME)
        writing.set_system_prompt(store.database, context.id, ask.system)
        writing.append(store.database, context.id, RecordType.PROMPT, ask.prompt)
    except BaseException:
        store.close()
        raise

    def wire(plan: TurnPlan) -> Wiring:
        ledger = store.ledger(context.id, None)
        return Wiring(store, ledger, plan.model, plan.control, timeout=timeout, context_name=_NAME)

    return store, wire


def _plan(ask: Ask) -> TurnPlan:
    plan = TurnPlan(CallOptions(max_output_tokens=ask.max_output_tokens), str(uuid.uuid4()))
    plan.model = ask.model
    plan.hooks = Hooks()
    plan.price = catalog.CallPrices(ask.model)
    return plan
