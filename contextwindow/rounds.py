"""The tools that one reply asks for, from its calls to their outputs; without I/O.

The outputs' records are opened, in the order of the calls, before the first tool runs.  So the
database says of every call what became of it: without an output it was not run, an output that
is partial may have been, any other has been.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from contextwindow.chunks import StreamChunk, ToolEnd, ToolOutputDelta, ToolStart
from contextwindow.effects import (
    NEXT_TOOL,
    CloseRecord,
    Effect,
    Emitted,
    Finished,
    OpenRecord,
    Operation,
    ReopenRecord,
    StartTools,
    ToolJob,
)
from contextwindow.errors import MiddlewareError, ToolError
from contextwindow.hooking import run_hook
from contextwindow.models.sse import mended
from contextwindow.models.steps import UNKNOWN_OUTCOME
from contextwindow.parts import tool_call
from contextwindow.plan import TurnPlan
from contextwindow.records import Record, RecordType, ToolCall
from contextwindow.tools import Tool, output_text

Run = Generator["Effect | StreamChunk", Any, None]


class Speaker(Protocol):
    """What a round asks of its turn."""

    def say(self, chunk: StreamChunk) -> Run:
        """Deliver a chunk; hooks see it and cannot change it."""

    def offer_chunk(self, chunk: StreamChunk) -> Run:
        """Deliver a chunk that hooks may replace or drop."""

    def write(self, operations: list[Operation], *, boundary: bool = False) -> Run:
        """Commit *operations*."""

    def check_stop(self) -> None:
        """Raise when the stream was cancelled."""


@dataclass(slots=True)
class _Answer:
    """One call on its way to its output."""

    key: int
    call: ToolCall
    record_id: int = 0
    tool: Tool | None = None
    arguments: dict[str, Any] = field(default_factory=dict)
    shown: dict[str, Any] = field(default_factory=dict)
    error: BaseException | None = None
    text: str | None = None
    started: bool = False
    stored: bool = False
    ended: bool = False


class ToolRound:
    """The calls of one reply.

    Args:
        calls: all that the reply asks for, in its order.
        keys: gives the numbers that the turn has for records.

    Attributes:
        external: calls that are the caller's to answer.
        opened: whether the outputs have their records.
    """

    def __init__(self, calls: Sequence[ToolCall], plan: TurnPlan, keys: Iterator[int]) -> None:
        self._plan = plan
        tools = plan.tools
        self.external = [c for c in calls if c.name in tools and tools[c.name].run is None]
        self._answers = [_Answer(next(keys), c) for c in calls if c not in self.external]
        self.opened = False

    @classmethod
    def again(
        cls, whole: Sequence[Record], plan: TurnPlan, keys: Iterator[int]
    ) -> ToolRound | None:
        """A round for the outputs that an earlier attempt at the turn left unknown.

        Tools that say so run again; of the others the outcome stays unknown.

        Args:
            whole: the turn's records.

        Returns:
            None when there is no such output.
        """
        left = [
            record
            for record in whole
            if record.source is RecordType.TOOL_OUTPUT and record.partial_response_id is not None
        ]
        if not left:
            return None
        calls = {one.call_id: one for one in whole if one.source is RecordType.TOOL_CALL}
        again = cls((), plan, keys)
        for record in left:
            call = calls.get(record.call_id)
            made = tool_call(record if call is None else call)
            answer = _Answer(next(keys), made, record.id)
            tool = plan.tools.get(made.name)
            if call is None or tool is None or tool.run is None or not tool.idempotent:
                answer.text, answer.error = UNKNOWN_OUTCOME, ToolError(UNKNOWN_OUTCOME)
                answer.started = answer.ended = True
            again._answers.append(answer)
        return again

    @property
    def keys(self) -> list[int]:
        """The turn's numbers of the outputs, in the order of the calls."""
        return [answer.key for answer in self._answers]

    def prepare(self) -> Generator[Effect, Any, None]:
        """Validate the arguments and ask the hooks; what is wrong becomes the output.

        Raises:
            MiddlewareError: a hook raised.
        """
        for answer in self._answers:
            if answer.ended:
                continue
            try:
                yield from self._prepare(answer)
            except ToolError as error:
                _fail(answer, error)

    def opening(self) -> list[Operation]:
        """The records of the outputs, and the whole of those that are known already."""
        self.opened = True
        operations: list[Operation] = []
        for answer in self._answers:
            if answer.record_id:
                operations.append(ReopenRecord(answer.key, answer.record_id))
            else:
                names = {"call_id": answer.call.id or None, "name": answer.call.name or None}
                operations.append(OpenRecord(answer.key, RecordType.TOOL_OUTPUT, **names))  # type: ignore[arg-type]
        operations += [_close(one) for one in self._answers if one.text is not None]
        for answer in self._answers:
            answer.stored = answer.text is not None
        return operations

    def run(self, turn: Speaker) -> Run:
        """Run the tools, and write and show what comes of them."""
        for answer in self._answers:
            if not answer.ended:
                answer.started = True
                yield from turn.say(ToolStart(answer.call.id, answer.call.name, answer.shown))
        for answer in self._answers:
            if answer.text is not None and not answer.ended:
                yield from self._end(turn, answer, 0.0)
        waiting = {answer.key: answer for answer in self._answers if not answer.ended}
        if waiting:
            yield StartTools([_job(answer) for answer in waiting.values()])
        while waiting:
            news = yield NEXT_TOOL
            if type(news) is Finished and news.key in waiting:
                # Known before anything else is done, a cancellation not excepted.
                _finish(waiting[news.key], news)
            turn.check_stop()
            if type(news) is Emitted and news.key in waiting:
                yield from turn.offer_chunk(_shown(waiting[news.key], news.output))
            elif type(news) is Finished and news.key in waiting:
                answer = waiting.pop(news.key)
                yield from turn.write([_close(answer)], boundary=True)
                answer.stored = True
                yield from self._end(turn, answer, news.duration)

    def take(self, news: Sequence[Finished]) -> None:
        """Note what has come in while the turn was ending."""
        by_key = {answer.key: answer for answer in self._answers if answer.text is None}
        for one in news:
            if one.key in by_key:
                _finish(by_key[one.key], one)

    def abandon(self) -> list[Operation]:
        """The closings of the outputs when the turn ends badly: as they are, or as unknown."""
        if not self.opened:
            return []
        left = [answer for answer in self._answers if not answer.stored]
        return [_close(one) if one.text is not None else _unknown(one) for one in left]

    def left(self) -> list[ToolEnd]:
        """The ends of tools that were started and let go."""
        lost = [one for one in self._answers if one.started and not one.ended]
        for answer in lost:
            answer.ended = True
        unknown = ToolError(UNKNOWN_OUTCOME)
        return [
            ToolEnd(one.call.id, one.call.name, one.text, error=one.error)
            if one.text is not None
            else ToolEnd(one.call.id, one.call.name, UNKNOWN_OUTCOME, error=unknown)
            for one in lost
        ]

    def _prepare(self, answer: _Answer) -> Generator[Effect, Any, None]:
        tools, call = self._plan.tools, answer.call
        tool = answer.tool = tools.get(call.name)
        if tool is None:
            known = ", ".join(tools) or "none"
            raise ToolError(f"there is no tool {call.name!r}; the tools are: {known}")
        answer.arguments = tool.arguments(call.raw_arguments)
        answer.shown = call.arguments
        for hook in self._plan.hooks.on_tool_call:
            changed = yield from _asked(hook, call.name, answer.shown)
            if changed is not None:
                answer.shown = changed
                answer.arguments = tool.arguments(json.dumps(changed))

    def _end(self, turn: Speaker, answer: _Answer, duration: float) -> Run:
        """Tell hooks and reader of an output that is stored."""
        call, text = answer.call, answer.text or ""
        for hook in self._plan.hooks.on_tool_result:
            yield from run_hook("on_tool_result", hook, call.name, text, answer.error)
        answer.ended = True
        yield from turn.say(
            ToolEnd(call.id, call.name, text, error=answer.error, duration=duration)
        )


def _asked(
    hook: Callable[..., Any], name: str, arguments: dict[str, Any]
) -> Generator[Effect, Any, dict[str, Any] | None]:
    """What ``on_tool_call`` makes of a call: other arguments, or None to leave them.

    Raises:
        ToolError: it refuses the call.
        MiddlewareError: it raised, or returned what cannot be understood.
    """
    try:
        result = yield from run_hook("on_tool_call", hook, name, arguments)
    except MiddlewareError as error:
        if isinstance(error.__cause__, ToolError):
            raise error.__cause__ from None
        raise
    if isinstance(result, str):
        raise ToolError(result or "the call was refused")
    if result is None or isinstance(result, dict):
        return result
    raise MiddlewareError(
        f"on_tool_call returned {result!r}: return None, other arguments as a dict, or a str "
        "that says why the call is refused",
        hook="on_tool_call",
        middleware=getattr(hook, "__self__", None),
    )


def _job(answer: _Answer) -> ToolJob:
    assert answer.tool is not None  # noqa: S101 - without one the call is answered already
    return ToolJob(answer.key, answer.call.id, answer.tool, answer.arguments)


def _shown(answer: _Answer, output: Any) -> StreamChunk:
    """What a tool has emitted, as a chunk."""
    if isinstance(output, StreamChunk):
        return output
    return ToolOutputDelta(answer.call.id, output)


def _finish(answer: _Answer, news: Finished) -> None:
    if news.error is not None:
        _fail(answer, news.error)
        return
    try:
        answer.text = mended(output_text(news.output))
    except ToolError as error:
        _fail(answer, error)


def _fail(answer: _Answer, error: BaseException) -> None:
    """Let the model know what went wrong."""
    said = str(error)
    if not isinstance(error, ToolError):
        said = f"{type(error).__name__}: {said}" if said else type(error).__name__
    answer.error, answer.text = error, mended(f"error: {said}")


def _unknown(answer: _Answer) -> CloseRecord:
    return CloseRecord(
        answer.key,
        UNKNOWN_OUTCOME,
        partial=True,
        call_id=answer.call.id or None,
        name=answer.call.name or None,
        error=True,
    )


def _close(answer: _Answer) -> CloseRecord:
    return CloseRecord(
        answer.key,
        answer.text or "",
        call_id=answer.call.id or None,
        name=answer.call.name or None,
        error=answer.error is not None,
    )
