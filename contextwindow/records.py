"""Plain values that describe what a database holds and what a call gave back."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from enum import IntEnum
from typing import Any, Final, Literal

from contextwindow.tokens import count_tokens, estimate_tokens

Progress = Callable[[int, int], object]
"""Told how far long work is: what is done, and how much there is in all."""

FinishReason = Literal["stop", "length", "tool_calls", "content_filter", "refusal", "cancelled"]
TurnState = Literal["running", "complete", "interrupted", "cancelled", "failed", "awaiting"]


class RecordType(IntEnum):
    """What a record is; the numbers are stored and never change meaning."""

    PROMPT = 0
    MODEL_RESPONSE = 1
    TOOL_CALL = 2
    TOOL_OUTPUT = 3
    SYSTEM_PROMPT = 4
    REASONING = 5
    SUMMARY = 6

    @property
    def role(self) -> str:
        """Who speaks, such as ``"user"``, ``"assistant"`` or ``"tool call"``."""
        return _ROLES[self]

    @property
    def label(self) -> str:
        """``role`` as it begins a line, such as ``"Tool call"``."""
        return self.role.capitalize()


_ROLES: Final = {
    RecordType.PROMPT: "user",
    RecordType.MODEL_RESPONSE: "assistant",
    RecordType.TOOL_CALL: "tool call",
    RecordType.TOOL_OUTPUT: "tool output",
    RecordType.SYSTEM_PROMPT: "system",
    RecordType.REASONING: "reasoning",
    RecordType.SUMMARY: "summary",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Attachment:
    """An image, a document or a text file that goes with a prompt.

    Attributes:
        media_type: such as ``"image/png"``, in lower case and without parameters.
        digest: SHA-256 of *data* in hexadecimal; ``""`` for a URL.
        name: the file's name, ``""`` when there is none.
        data: the bytes; None exactly when *url* is set.
        url: where the provider itself fetches it.
    """

    media_type: str
    digest: str = ""
    name: str = ""
    data: bytes | None = field(default=None, repr=False)
    url: str | None = None


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of one call, the same meaning on every provider.

    Attributes:
        input_tokens: all input, cache reads and writes included.
        output_tokens: all output, reasoning included.
        estimated: True when a part was counted by us because the provider did not say.
    """

    input_tokens: int = 0
    output_tokens: int = 0
    cache_read_tokens: int = 0
    cache_write_tokens: int = 0
    reasoning_tokens: int = 0
    estimated: bool = False

    @property
    def total_tokens(self) -> int:
        """Input and output together."""
        return self.input_tokens + self.output_tokens

    def __add__(self, other: Usage) -> Usage:
        """Both together, estimated when either is."""
        return Usage(
            self.input_tokens + other.input_tokens,
            self.output_tokens + other.output_tokens,
            self.cache_read_tokens + other.cache_read_tokens,
            self.cache_write_tokens + other.cache_write_tokens,
            self.reasoning_tokens + other.reasoning_tokens,
            self.estimated or other.estimated,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One entry of a context.

    Attributes:
        id: number of the record, unique in the database.
        seq: place in the order of writing within the context, from 1.
        timestamp: when it was written, aware UTC.
        content: the text; of a partial also what has not been folded yet.  A tool call holds
            its arguments as JSON text, a tool output its output.
        live: whether it is sent to the model.
        est_tokens: tokens of the content, counted offline, and of the attachments, guessed.
        response_id: the provider's id of the response that it came with.
        streamed: whether it arrived as a stream.
        partial_response_id: set while its stream has not ended well.
        accumulated_tokens: tokens of a partial so far; None otherwise.
        turn_id: the turn that wrote it.
        call_id: the tool call's id, on tool calls and tool outputs.
        name: the tool's name, on tool calls and tool outputs.
        error: on a tool output, whether the tool failed.
        payload: what a provider needs back verbatim: ``{"api": name, "items": [...]}``.
        attachments: on a prompt, the files that go with it.
    """

    id: int
    context_id: str
    source: RecordType
    content: str
    seq: int = 0
    timestamp: datetime
    live: bool = True
    est_tokens: int = 0
    response_id: str | None = None
    streamed: bool = False
    partial_response_id: str | None = None
    accumulated_tokens: int | None = None
    turn_id: str | None = None
    call_id: str | None = None
    name: str | None = None
    pinned: bool = False
    error: bool = False
    payload: dict[str, Any] | None = field(default=None, repr=False)
    attachments: tuple[Attachment, ...] = ()

    def __getattr__(self, name: str) -> Any:
        # Only reached where `defer_tokens` has left the figure open.
        if name == "est_tokens":
            object.__setattr__(self, name, count_tokens(self.content))
            return self.est_tokens
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")


@dataclass(frozen=True, slots=True, kw_only=True)
class NewRecord:
    """A record that is still to be written; see ``Record``.

    Attributes:
        where: what it came from, for messages, such as ``"messages[3]"``.
        timestamp: aware UTC; None stands for the time at which it is written.
    """

    source: RecordType
    content: str
    where: str
    timestamp: datetime | None = None
    live: bool = True
    response_id: str | None = None
    call_id: str | None = None
    name: str | None = None
    error: bool = False
    payload: dict[str, Any] | None = None
    attachments: tuple[Attachment, ...] = ()


def defer_tokens(record: Record) -> Record:
    """*record* itself, its ``est_tokens`` to be counted when somebody asks."""
    object.__delattr__(record, "est_tokens")
    return record


def tokens_known(records: Iterable[Record]) -> int:
    """Tokens of *records*; where one is not counted yet, a guess: counting may take a while."""
    total = 0
    for record in records:
        try:
            total += _counted(record)
        except AttributeError:
            total += estimate_tokens(record.content)
    return total


_counted: Final[Callable[[Record], int]] = Record.__dict__["est_tokens"].__get__


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """One named conversation.

    Attributes:
        id: its UUID.
        start_time: when it was made, aware UTC.
        use_server_side_threading: whether calls go on from the provider's own copy.
        last_response_id: where that copy stands, or None.
        parent_context_id: the context that it was made from, or None.
        metadata: the application's own values.
    """

    id: str
    name: str
    start_time: datetime
    use_server_side_threading: bool = False
    last_response_id: str | None = None
    max_tokens: int | None = None
    parent_context_id: str | None = None
    metadata: dict[str, Any] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Migration:
    """What opening has done to a database that an older version had made.

    Attributes:
        from_revision: of the schema; ``"0000"`` stands for a database of the Go library.
        to_revision: the newest.
        copy: path of the database as it was before; None on PostgreSQL.
    """

    from_revision: str
    to_revision: str
    copy: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ContextStats:
    """Size and activity of a context.

    Attributes:
        live_tokens: tokens of the live records, counted offline.
        last_activity: when the newest record was written, or None for an empty context.
        calls: calls of models that have ended.
        usage: what they used, together; ``estimated`` when a part of it is.
        cost: US dollars of those whose price is known; None where there are some, and it is known
            of none.
        unpriced_calls: how many used tokens whose price is not known.
    """

    context_id: str
    name: str
    live_tokens: int = 0
    total_records: int = 0
    live_records: int = 0
    last_activity: datetime | None = None
    start_time: datetime | None = None
    calls: int = 0
    usage: Usage = Usage()
    cost: Decimal | None = None
    unpriced_calls: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ContextPage:
    """Some of the contexts of a database, the last used first.

    Attributes:
        contexts: their figures.
        states: by ``context_id``, the state of the newest turn of each that has one.
        next: what ``Store.page_contexts`` takes as *after* for the page behind; None on the last.
    """

    contexts: list[ContextStats] = field(default_factory=list)
    states: dict[str, TurnState] = field(default_factory=dict)
    next: str | None = None


@dataclass(frozen=True, slots=True)
class SearchResult:
    """A record in which something was found.

    Attributes:
        context: name of its context.
        snippet: a piece of its text around the first hit, on one line, at most some 300
            characters long; ``…`` stands where it was cut.
        highlights: begin and end of each hit within *snippet*.
    """

    record: Record
    context: str
    snippet: str
    highlights: tuple[tuple[int, int], ...] = ()

    @property
    def id(self) -> int:
        """The record's id."""
        return self.record.id

    @property
    def content(self) -> str:
        """The record's whole text."""
        return self.record.content


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenUsage:
    """Tokens of a context.

    Attributes:
        live: tokens of the live records, counted offline.
        total: tokens that all calls of the context have used, as the providers counted them.
        max: tokens that the model takes, 0 when unknown.
        percent: ``live / max`` as a share from 0 to 1; it may exceed 1; 0 when max is unknown.
        exact: of what the next call will send, tokens that the provider has counted: all that the
            last call sent, and its reply. 0 when nothing was sent yet, or what was sent has left.
        estimated: the rest of what the next call will send, as estimated here.
    """

    live: int
    total: int
    max: int
    percent: float
    exact: int = 0
    estimated: int = 0


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A tool call that a reply asks for.

    Attributes:
        arguments: the parsed arguments; ``{}`` when *raw_arguments* is no JSON object.
        raw_arguments: the JSON text as the model wrote it, possibly cut short.
    """

    id: str
    name: str
    arguments: dict[str, Any]
    raw_arguments: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """What one turn gave back.

    Attributes:
        text: what the reader saw: the joined text of the turn's response records.
        cost: US dollars, or None when the price is not known.
        response_id: the provider's id of the last response.
        time_to_first_token: seconds from sending to the first text, or None without text.
        duration: seconds of the whole turn.
        parsed: the validated value with ``response_format``, else None.
    """

    text: str
    reasoning: str = ""
    refusal: str = ""
    tool_calls: list[ToolCall] = field(default_factory=list)
    records: list[Record] = field(default_factory=list)
    usage: Usage = field(default_factory=Usage)
    cost: Decimal | None = None
    finish_reason: FinishReason = "stop"
    response_id: str | None = None
    turn_id: str = ""
    model: str = ""
    time_to_first_token: float | None = None
    duration: float = 0.0
    parsed: Any = None

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """One ``call_model…`` of a context, as the database knows it.

    Attributes:
        owner: the process that ran it, as ``host/pid/start``.
        partial_text: text of its unfinished response record, ``""`` when there is none.
        usage: what its calls used, together; None while none of them has ended.
        cost: US dollars of its calls; None when the price of one of them is not known.
    """

    id: str
    context_id: str
    state: TurnState
    started: datetime
    ended: datetime | None = None
    owner: str = ""
    epoch: int = 0
    error: str | None = None
    partial_text: str = ""
    usage: Usage | None = None
    cost: Decimal | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One request to a provider.

    Attributes:
        cursor: the provider's position in its own copy of the stream, or None.
        time_to_first_token: seconds, or None without text.
        duration: seconds, or None while it runs.
        manifest: ids of the records that were sent.
        options: the options of the request, without its records and without secrets; beside them
            ``"previous_response_id"`` where the provider went on from its own copy, ``"hooks"``
            (what they did to the records: ``"added"``, ``"changed"``, ``"left out"``, or else
            ``"reordered"``), ``"resume"`` (the strategy) where it went on with a reply that was
            cut off.
    """

    id: int
    turn_id: str
    context_id: str
    provider: str
    model: str
    started: datetime
    response_id: str | None = None
    cursor: str | None = None
    finish_reason: str | None = None
    usage: Usage | None = None
    cost: Decimal | None = None
    time_to_first_token: float | None = None
    duration: float | None = None
    error: str | None = None
    manifest: list[int] = field(default_factory=list)
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class CallSize:
    """How full the window was when a call was made.

    Attributes:
        tokens: of the records that were sent, by kind, counted offline.
        input_tokens: what the provider has counted, or None as long as it has not.
        max_tokens: what the model takes; None when that is not known.
    """

    call_id: int
    turn_id: str
    provider: str
    model: str
    started: datetime
    tokens: dict[RecordType, int] = field(default_factory=dict)
    input_tokens: int | None = None
    max_tokens: int | None = None
