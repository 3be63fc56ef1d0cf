"""What a scripted model says: a reply, and the events that it arrives as."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from contextwindow.errors import ConfigError, Overloaded
from contextwindow.models.base import Delta, Item, PartEnd, PartKind
from contextwindow.models.sse import TextMender
from contextwindow.records import FinishReason, Record, Usage

Fault = Literal["eof", "reset", "stall", "error"]
Pieces = Literal["words", "characters", "whole"] | Callable[[str], Iterable[str]]
ScriptedCall = tuple[str, dict[str, Any] | str] | tuple[str, dict[str, Any] | str, str]

_FAULTS: Final = ("eof", "reset", "stall", "error")
_WORDS: Final = re.compile(r"\s*\S+|\s+$")
_CALL_PIECE: Final = 12
"""Characters of a tool call's arguments in one chunk."""


@dataclass(frozen=True, slots=True)
class ScriptedReply:
    """One answer of a ``ScriptedModel``: reasoning first, then text, refusal and tool calls.

    Chunks are counted over all of these, in that order, from 0.

    Attributes:
        chunks: the text; a list gives the exact chunks, a str is cut by the model's *pieces*.
        reasoning, refusal: as *chunks*.
        tool_calls: ``(name, arguments)`` or ``(name, arguments, call_id)``; the arguments are a
            mapping, or JSON text that is sent as it is, broken or not.
        usage: ``"count"`` makes up a figure from the lengths; None: the provider does not say.
        finish_reason: None for what fits: ``tool_calls``, ``refusal`` or ``stop``.
        response_id: None for ``resp_<model>_<number of the call>``.
        delay: seconds between two chunks.
        first_delay: seconds before the first.
        fault: what happens instead of the chunk *fail_at*: ``"eof"`` (the stream ends as if all
            were well, without its terminal event), ``"reset"`` (the connection is lost),
            ``"stall"`` (nothing more comes) or ``"error"`` (an event that reports *error*).
            None with *fail_at* is ``"reset"``, with *error* ``"error"``.
        fail_at: number of the first chunk that does not come; None, or a number past the last
            chunk: all chunks come and nothing behind them.
        error: what the event reports; None for ``Overloaded``.
        open_error: raised before the stream begins: one exception once, or each of a list, one
            for every attempt.  Then the reply is given, if the caller tries again.
        cursor: the provider keeps the stream, so that it can be resumed after any chunk.
        batch: chunks that arrive in one network read.

    Raises:
        ConfigError: an unknown fault, or a number that makes no sense.
    """

    chunks: str | Sequence[str] = ()
    reasoning: str | Sequence[str] = ()
    refusal: str | Sequence[str] = ()
    tool_calls: Sequence[ScriptedCall] = ()
    usage: Usage | Literal["count"] | None = "count"
    finish_reason: FinishReason | None = None
    response_id: str | None = None
    delay: float = 0.0
    first_delay: float = 0.0
    fault: Fault | None = None
    fail_at: int | None = None
    error: Exception | None = None
    open_error: Exception | Sequence[Exception] = ()
    cursor: bool = False
    batch: int = 1

    def __post_init__(self) -> None:
        if self.fault is not None and self.fault not in _FAULTS:
            raise ConfigError(f"unknown fault {self.fault!r}: use one of {', '.join(_FAULTS)}")
        if self.batch < 1:
            raise ConfigError(f"batch must be at least 1, not {self.batch}")
        if self.delay < 0 or self.first_delay < 0 or (self.fail_at or 0) < 0:
            raise ConfigError("delays and fail_at cannot be negative")

    @property
    def effective_fault(self) -> Fault | None:
        """The fault, where it follows from the other fields."""
        if self.fault is None and self.error is not None:
            return "error"
        return self.fault or (None if self.fail_at is None else "reset")

    @property
    def open_errors(self) -> tuple[Exception, ...]:
        """What is raised before the stream begins, attempt by attempt."""
        if isinstance(self.open_error, Exception):
            return (self.open_error,)
        return tuple(self.open_error)


@dataclass(slots=True)
class ScriptedEvent:
    """One event of a scripted stream.

    Attributes:
        items: what the decoder gives for it.
        is_chunk: whether it counts as a chunk.
        cursor: where to resume behind it, or None.
    """

    items: tuple[Item, ...] = ()
    is_chunk: bool = False
    cursor: str | None = None


@dataclass(slots=True)
class StartEvent(ScriptedEvent):
    """The reply begins."""

    response_id: str = ""


@dataclass(slots=True)
class EndEvent(ScriptedEvent):
    """The terminal event."""

    usage: Usage | None = None
    finish_reason: FinishReason = "stop"


@dataclass(slots=True)
class ErrorEvent(ScriptedEvent):
    """The provider reports an error in the stream."""

    error: Exception | None = None


@dataclass(slots=True)
class Take:
    """One reply, ready to be played.

    Attributes:
        reply: what was scripted.
        events: all of its events, as if nothing went wrong.
        cut: how many of them come before the fault; all of them without one.
    """

    reply: ScriptedReply
    response_id: str
    events: list[ScriptedEvent]
    cut: int


def rehearse(
    reply: ScriptedReply, *, call: int, model: str, pieces: Pieces, records: Sequence[Record]
) -> Take:
    """The events of *reply*, the answer to call number *call* with *records*."""
    response_id = reply.response_id or f"resp_{model}_{call}"
    events: list[ScriptedEvent] = [StartEvent(response_id=response_id)]
    for part, (kind, texts, call_id, name) in enumerate(_parts(reply, call, pieces)):
        events += _part_events(kind, part, texts, call_id, name)
    cut = _cut(reply, events)
    usage = reply.usage
    if usage == "count":
        given = sum(token_count(record.content) for record in records) + 4 * len(records)
        calls = "".join(name + raw for name, raw, _ in spelled_out(reply.tool_calls, call))
        usage = plausible_usage(given, reply.reasoning, (reply.chunks, reply.refusal, calls))
    events.append(EndEvent(usage=usage, finish_reason=_finish_reason(reply)))
    if reply.cursor:
        for number, event in enumerate(events):
            event.cursor = str(number)
    return Take(reply, response_id, events, len(events) if cut is None else cut)


def cut_in_pieces(text: str | Sequence[str], pieces: Pieces) -> list[str]:
    """*text* in chunks; a list is taken as it is."""
    if not isinstance(text, str):
        return list(text)
    if callable(pieces):
        return list(pieces(text))
    if pieces == "characters":
        return list(text)
    if pieces == "whole":
        return [text] if text else []
    return _WORDS.findall(text)


def spelled_out(tool_calls: Sequence[ScriptedCall], call: int) -> list[tuple[str, str, str]]:
    """Name, JSON text and id of each of *tool_calls* in the answer to call number *call*."""
    return [
        (
            given[0],
            given[1] if isinstance(given[1], str) else json.dumps(given[1]),
            given[2] if len(given) == 3 else f"call_{call}_{number}",
        )
        for number, given in enumerate(tool_calls, 1)
    ]


def argument_pieces(raw: str) -> list[str]:
    """A tool call's arguments in chunks."""
    return [raw[start : start + _CALL_PIECE] for start in range(0, len(raw), _CALL_PIECE)]


def plausible_usage(
    given: int, reasoning: str | Sequence[str], said: Iterable[str | Sequence[str]]
) -> Usage:
    """Tokens of a call with *given* input, the same in every run."""
    thought = token_count(reasoning)
    return Usage(
        input_tokens=given,
        output_tokens=thought + sum(map(token_count, said)),
        reasoning_tokens=thought,
    )


def token_count(text: str | Sequence[str]) -> int:
    """A plausible count: four characters are a token."""
    size = len(text) if isinstance(text, str) else sum(map(len, text))
    return -(-size // 4)


def error_event(reply: ScriptedReply, model: str) -> ErrorEvent:
    """The event that a reply with the fault ``"error"`` ends with."""
    error = reply.error or Overloaded(f"{model}: the scripted server is overloaded; try again")
    return ErrorEvent(error=error)


def _parts(
    reply: ScriptedReply, call: int, pieces: Pieces
) -> list[tuple[PartKind, list[str], str, str]]:
    """Kind, chunks, call id and tool name of each part, in order."""
    kinds: tuple[PartKind, ...] = ("reasoning", "text", "refusal")
    given = (reply.reasoning, reply.chunks, reply.refusal)
    parts: list[tuple[PartKind, list[str], str, str]] = [
        (kind, cut_in_pieces(text, pieces), "", "")
        for kind, text in zip(kinds, given, strict=True)
        if text
    ]
    for name, raw, call_id in spelled_out(reply.tool_calls, call):
        parts.append(("tool_call", argument_pieces(raw) or [""], call_id, name))
    return parts


def _part_events(
    kind: PartKind, part: int, texts: Sequence[str], call_id: str, name: str
) -> list[ScriptedEvent]:
    # As in the real adapters: what is delivered can be stored.
    mender = TextMender()
    events: list[ScriptedEvent] = []
    for text in texts:
        sent = mender.mend(part, text) if text else ""
        silent = not sent and kind != "tool_call"
        items = () if silent else (Delta(kind, part, sent, call_id, name),)
        events.append(ScriptedEvent(items, is_chunk=True))
    last: Item = PartEnd(kind, part, call_id=call_id, name=name)
    rest = mender.rest(part)
    held = (Delta(kind, part, rest, call_id, name),) if rest else ()
    events.append(ScriptedEvent((*held, last)))
    return events


def _cut(reply: ScriptedReply, events: list[ScriptedEvent]) -> int | None:
    """How many of *events* come before the fault; None without one."""
    if reply.effective_fault is None:
        return None
    chunks = [number for number, event in enumerate(events) if event.is_chunk]
    if reply.fail_at is not None and reply.fail_at < len(chunks):
        return chunks[reply.fail_at]
    return chunks[-1] + 1 if chunks else 1


def _finish_reason(reply: ScriptedReply) -> FinishReason:
    if reply.finish_reason is not None:
        return reply.finish_reason
    if reply.tool_calls:
        return "tool_calls"
    return "refusal" if reply.refusal else "stop"
