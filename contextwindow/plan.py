"""What a turn is to do, and the small decisions that need no state."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, Final, Literal, get_args

from contextwindow.compaction import Room
from contextwindow.errors import ModelError
from contextwindow.middleware import Hooks
from contextwindow.models.base import CallOptions, Model
from contextwindow.records import Record, Reply, Usage
from contextwindow.tokens import estimate_tokens
from contextwindow.tools import Tool

Strategy = Literal["auto", "cursor", "prefill", "continue", "regenerate"]
STRATEGIES: Final[tuple[str, ...]] = get_args(Strategy)

LONGEST_WAIT: Final = 60.0
"""Seconds: a provider that asks for more is not waited for; the error says how long."""


@dataclass(slots=True)
class Control:
    """How others stop a turn: ``stop`` is set, then the connection is shaken.

    Attributes:
        driven: whether a driver runs the turn.
        left: the ``GeneratorExit`` that the driver throws in: the reader has left.  Any other one
            comes from the garbage collector, and nobody would carry out what the turn asks for.
    """

    stop: Literal["", "cancel", "deadline"] = ""
    driven: bool = False
    left: BaseException | None = None

    def noted(self, error: BaseException) -> BaseException:
        """*error*, which is about to be thrown into the turn."""
        if isinstance(error, GeneratorExit):
            self.left = error
        return error


@dataclass(slots=True)
class TurnPlan:
    """What a turn is to do.

    Attributes:
        resume: turn to go on with, ``""`` for the newest that can be, None for a new turn.
        recorded: options as they are kept with the call, without secrets.
        price: cost of a call's usage, and of the model that answered; it may be slow the first
            time.
        parse: reads ``reply.parsed`` out of a reply that is not to be called back.
        tools: what the reply may call, by name; empty where every call is the caller's to answer.
        room: what the window holds, and what happens when it is full; None: nobody looks.
        max_tool_rounds: how often the tools that replies ask for are run.
        unwatched: nobody is shown the chunks, so a reply that arrives whole is written once.
        stream: handed to ``on_stream_start``.
        clock: seconds that only go forward.
    """

    options: CallOptions
    turn_id: str
    # Set before the turn begins: an asynchronous window may still have to be opened.
    model: Model = field(init=False)
    hooks: Hooks = field(init=False)
    price: Callable[[Usage, str | None], Decimal | None] = field(init=False)
    tools: dict[str, Tool] = field(default_factory=dict)
    room: Room | None = None
    max_tool_rounds: int = 50
    resume: str | None = None
    strategy: Strategy = "auto"
    max_resumes: int = 2
    recorded: dict[str, Any] = field(default_factory=dict)
    parse: Callable[[Reply], Any] | None = None
    unwatched: bool = False
    stream: Any = None
    control: Control = field(default_factory=Control)
    clock: Callable[[], float] = time.monotonic


def since(records: list[Record], response_id: str | None) -> tuple[list[Record] | None, str]:
    """What came after the response *response_id*; None, and why, where the chain does not hold."""
    if response_id is None:
        return None, "no response to go on from, or what had been sent was changed since"
    answers = [at for at, record in enumerate(records) if record.response_id is not None]
    if not answers or records[answers[-1]].response_id != response_id:
        return None, f"response {response_id} is not the newest live one"
    since = records[answers[-1] + 1 :]
    return since or None, "nothing was written since the last response"


def tokens_beside(options: CallOptions) -> int:
    """Tokens of what a call sends beside its records: tools, and the form of the reply."""
    texts = [
        f"{one.name} {one.description} {json.dumps(one.parameters, default=str)}"
        for one in options.tools
    ]
    if options.response_format is not None:
        texts.append(json.dumps(options.response_format.schema))
    return sum(map(estimate_tokens, texts))


def wait_before(attempt: int, error: ModelError) -> float:
    """Seconds before the next attempt: what the provider asks for, else 0.5, 1, 2 … 8."""
    if error.retry_after is not None:
        return error.retry_after
    return float(min(0.5 * 2 ** (attempt - 1), 8.0))
