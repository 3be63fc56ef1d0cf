"""The events of a stream as its reader sees them."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from decimal import Decimal
from typing import Any, ClassVar

from contextwindow.records import Reply, Usage


@dataclass(frozen=True, slots=True)
class StreamChunk:
    """Base of every kind of chunk.

    Attributes:
        delta: text that the reader of the reply sees; empty on every kind but ``TextDelta``.
        done: True on the last chunk.
        error: what ended the stream, on ``StreamFailed``.
        metadata: the application's or a middleware's own values, JSON-safe.
        record_id: the record that the chunk belongs to, 0 when it belongs to none.
        position: characters of that record up to and including this chunk.
    """

    type: ClassVar[str] = "chunk"

    delta: str = field(default="", kw_only=True)
    done: bool = field(default=False, kw_only=True)
    error: BaseException | None = field(default=None, kw_only=True)
    metadata: dict[str, Any] | None = field(default=None, kw_only=True)
    record_id: int = field(default=0, kw_only=True)
    position: int = field(default=0, kw_only=True)

    @property
    def id(self) -> str:
        """Follow position, ``"<record_id>:<characters>"``; ``""`` outside a record."""
        return f"{self.record_id}:{self.position}" if self.record_id else ""

    def __getattr__(self, name: str) -> Any:
        # `text_chunk` leaves what has its default unset: the constructor of a frozen
        # dataclass with seven fields costs three times as much.
        if name in _DEFAULTS:
            return _DEFAULTS[name]
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def to_dict(self) -> dict[str, Any]:
        """The chunk as JSON-safe values; empty ones are left out."""
        out: dict[str, Any] = {"type": self.type}
        if self.record_id:
            out["id"] = self.id
        for spec in fields(self):
            if spec.name in ("record_id", "position"):
                continue
            value = _plain(getattr(self, spec.name))
            if value is not None and value != "" and value is not False:
                out[spec.name] = value
        return out


@dataclass(frozen=True, slots=True)
class StreamStart(StreamChunk):
    """First chunk of every stream."""

    type: ClassVar[str] = "stream_start"
    turn_id: str = ""


@dataclass(frozen=True, slots=True)
class TextDelta(StreamChunk):
    """Text of the reply."""

    type: ClassVar[str] = "text_delta"
    delta: str = ""


@dataclass(frozen=True, slots=True)
class ReasoningDelta(StreamChunk):
    """Text of the model's reasoning, or of its summary."""

    type: ClassVar[str] = "reasoning_delta"
    text: str = ""


@dataclass(frozen=True, slots=True)
class RefusalDelta(StreamChunk):
    """Text in which the model refuses."""

    type: ClassVar[str] = "refusal_delta"
    text: str = ""


@dataclass(frozen=True, slots=True)
class ToolCallDelta(StreamChunk):
    """A fragment of a tool call's JSON arguments, best effort."""

    type: ClassVar[str] = "tool_call_delta"
    call_id: str = ""
    name: str = ""
    arguments: str = ""


@dataclass(frozen=True, slots=True)
class ToolStart(StreamChunk):
    """A tool is about to run."""

    type: ClassVar[str] = "tool_start"
    call_id: str = ""
    name: str = ""
    arguments: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ToolOutputDelta(StreamChunk):
    """Something that a running tool has to show."""

    type: ClassVar[str] = "tool_output_delta"
    call_id: str = ""
    output: Any = None


@dataclass(frozen=True, slots=True)
class ToolEnd(StreamChunk):
    """A tool has returned or failed; *duration* in seconds."""

    type: ClassVar[str] = "tool_end"
    call_id: str = ""
    name: str = ""
    output: str = ""
    error: Any = field(default=None, kw_only=True)
    duration: float = field(default=0.0, kw_only=True)


@dataclass(frozen=True, slots=True)
class ChildLinked(StreamChunk):
    """A tool has begun a conversation of its own, which can be read and followed there.

    Attributes:
        call_id: the call whose tool it is.
        context: name of the other context.
        context_id: its id.
    """

    type: ClassVar[str] = "child_linked"
    call_id: str = ""
    context: str = ""
    context_id: str = ""


@dataclass(frozen=True, slots=True)
class UsageReport(StreamChunk):
    """Tokens and cost of one call; *cost* is a Decimal in US dollars or None."""

    type: ClassVar[str] = "usage_report"
    usage: Usage = field(default_factory=Usage)
    cost: Any = None


@dataclass(frozen=True, slots=True)
class Compacted(StreamChunk):
    """The window was full: records have left what is sent; none was deleted.

    Attributes:
        reason: ``"trigger"``, or ``"too long"`` where the provider had said so.
        strategies: what chose them, such as ``["Summarize"]``.
        removed: how many have left.
        tokens_before, tokens_after: of what is sent, as counted here.
        summary: what stands for them now, or ``""``.
        usage, cost: of writing the summary; cost in US dollars, None when it is not known.
    """

    type: ClassVar[str] = "compacted"
    reason: str = "trigger"
    strategies: list[str] = field(default_factory=list)
    removed: int = 0
    tokens_before: int = 0
    tokens_after: int = 0
    summary: str = ""
    usage: Usage | None = None
    cost: Decimal | None = None


@dataclass(frozen=True, slots=True)
class Retrying(StreamChunk):
    """The call failed and is made again after *delay* seconds."""

    type: ClassVar[str] = "retrying"
    attempt: int = 1
    delay: float = 0.0
    error: Any = field(default=None, kw_only=True)


@dataclass(frozen=True, slots=True)
class Resumed(StreamChunk):
    """A reply that was cut off goes on; *strategy* says how."""

    type: ClassVar[str] = "resumed"
    strategy: str = ""


@dataclass(frozen=True, slots=True)
class Done(StreamChunk):
    """Last chunk of a stream that ended well."""

    type: ClassVar[str] = "done"
    reply: Reply = None  # type: ignore[assignment]  # set on every chunk that is delivered
    done: bool = field(default=True, kw_only=True)


@dataclass(frozen=True, slots=True)
class StreamFailed(StreamChunk):
    """Last chunk of a stream that did not; the error is raised after it."""

    type: ClassVar[str] = "stream_failed"
    error: Any = None
    done: bool = field(default=True, kw_only=True)


def text_chunk(text: str, record_id: int, position: int) -> TextDelta:
    """A ``TextDelta``, made the cheap way."""
    chunk = _new(TextDelta)
    _set_delta(chunk, text)
    _set_record(chunk, record_id)
    _set_position(chunk, position)
    return chunk


def place(chunk: StreamChunk, record_id: int, position: int | None = None) -> StreamChunk:
    """*chunk* itself, told where it stands; only for chunks that nobody has seen yet."""
    _set_record(chunk, record_id)
    if position is not None:
        _set_position(chunk, position)
    return chunk


_DEFAULTS: dict[str, Any] = {"done": False, "error": None, "metadata": None}
_new = object.__new__
_set_delta = StreamChunk.__dict__["delta"].__set__
_set_record = StreamChunk.__dict__["record_id"].__set__
_set_position = StreamChunk.__dict__["position"].__set__


def _plain(value: Any) -> Any:
    """*value* as JSON takes it."""
    if value is None or isinstance(value, (str, bool, int, float)):
        return value
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, BaseException):
        return {"type": type(value).__name__, "message": str(value)}
    if isinstance(value, Reply):
        return {
            "text": value.text,
            "finish_reason": value.finish_reason,
            "turn_id": value.turn_id,
            "model": value.model,
            "usage": _plain(value.usage),
            "cost": _plain(value.cost),
        }
    if isinstance(value, Usage):
        return {spec.name: getattr(value, spec.name) for spec in fields(value)}
    return str(value)
