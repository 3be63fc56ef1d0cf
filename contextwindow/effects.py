"""What a turn asks of its driver, and what it tells the store.

The turn yields these and is sent the answers; the drivers and the store act on them.  They are
plain values, so that a turn can be tested by hand.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, Final

from contextwindow.models.base import Model, Request
from contextwindow.records import FinishReason, Record, RecordType, TurnState, Usage
from contextwindow.tools import Tool


class _Mark:
    def __init__(self, name: str) -> None:
        self._name = name

    def __repr__(self) -> str:
        return self._name


NEXT: Final = _Mark("NEXT")
"""Read the provider's next events; answered with a list of them, or None at the end."""

CLOSE: Final = _Mark("CLOSE")
"""Close the provider's connection, if one is open."""


NEXT_TOOL: Final = _Mark("NEXT_TOOL")
"""Wait for what the running tools do next; answered with ``ToolNews``, or None when stopped.

What was emitted before is then taken as delivered.
"""


@dataclass(slots=True)
class OpenCall:
    """Send a request; answered with None once the headers of the answer have come."""

    request: Request


@dataclass(slots=True)
class Ask:
    """A question to *model* beside the conversation; answered with its ``Reply``.

    Attributes:
        system: what it is told to do.
        max_output_tokens: of the answer.
    """

    model: Model
    system: str
    prompt: str
    max_output_tokens: int


@dataclass(slots=True)
class Work:
    """Do *work*, which may take a while but waits for nobody; answered with what it returns."""

    work: Callable[[], Any]


@dataclass(slots=True)
class Sleep:
    """Wait so many seconds, or until the stream is cancelled."""

    seconds: float


@dataclass(slots=True)
class RunHook:
    """Await what an async hook returned; answered with its result.

    ``StopHook`` is thrown when the turn was stopped and the hook did not end.
    """

    awaitable: Awaitable[Any]


class StopHook(Exception):
    """A hook that was being awaited has been cancelled: the turn shall end."""


@dataclass(slots=True)
class ToolJob:
    """One tool to be run.

    Attributes:
        key: the turn's own number for its output.
        arguments: validated, as the tool's function takes them.
    """

    key: int
    call_id: str
    tool: Tool
    arguments: dict[str, Any]


@dataclass(slots=True)
class StartTools:
    """Run *jobs*, several at a time; answered with None at once."""

    jobs: list[ToolJob]


@dataclass(slots=True)
class StopTools:
    """Let go of the tools that still run: their contexts expire, those that are async end.

    Answered with the ``Finished`` that nobody had asked for yet.

    Attributes:
        error: what an ``emit`` that waits is given; None: that its time is over.
    """

    error: BaseException | None = None


@dataclass(slots=True)
class Emitted:
    """A tool has something to show: text, JSON, or a chunk of its own."""

    key: int
    output: Any


@dataclass(slots=True)
class Finished:
    """A tool has ended.

    Attributes:
        output: what it returned.
        error: what it raised instead.
        duration: seconds that it took.
    """

    key: int
    output: Any = None
    error: BaseException | None = None
    duration: float = 0.0


ToolNews = Emitted | Finished


@dataclass(slots=True)
class BeginTurn:
    """Take the lease; answered with ``Begun``.

    Attributes:
        resume: id of the turn to go on with, ``""`` for the newest that can be, None for a
            new turn.
        call: the first call, written in the same transaction; its manifest is left to the
            store.
    """

    turn_id: str
    resume: str | None
    call: StartCall


@dataclass(slots=True)
class Begun:
    """The lease is held.

    Attributes:
        records: the live records, in order; on a resume those before the unfinished ones.
        last_response_id: where server-side threading stands; None where it is off or broken.
        context_id: the context that it is held on.
        threaded: whether server-side threading is on for the context.
        own: on a resume: the turn's records since its last tool output, in order.
        whole: on a resume: the turn's records before those.
        response_id, cursor: on a resume: of the call that was cut off.
    """

    turn_id: str
    context_id: str
    records: list[Record]
    threaded: bool = False
    last_response_id: str | None = None
    own: list[Record] = field(default_factory=list)
    whole: list[Record] = field(default_factory=list)
    response_id: str | None = None
    cursor: str | None = None


@dataclass(slots=True)
class OpenRecord:
    """Write a new record.

    Attributes:
        key: the turn's own number for it; later operations name it by this.
        content: its first text; more comes by ``Append``.
        partial: whether its stream is still under way.
    """

    key: int
    source: RecordType
    content: str = ""
    partial: bool = True
    call_id: str | None = None
    name: str | None = None


@dataclass(slots=True)
class ReopenRecord:
    """Go on with the unfinished record *record_id* under the number *key*."""

    key: int
    record_id: int


@dataclass(slots=True)
class Append:
    """Text that was added to a record since the last checkpoint."""

    key: int
    text: str


@dataclass(slots=True)
class CloseRecord:
    """A record's stream has ended; *content* is its whole text.

    Attributes:
        partial: it ended badly; the record stays resumable.
        live: False takes it out of what is sent.
        error: on a tool output, whether the tool failed.
    """

    key: int
    content: str
    payload: dict[str, Any] | None = None
    response_id: str | None = None
    partial: bool = False
    live: bool = True
    call_id: str | None = None
    name: str | None = None
    error: bool = False


@dataclass(slots=True)
class SetLive:
    """Take records out of what is sent, or put them back."""

    record_ids: list[int]
    live: bool


@dataclass(slots=True)
class Compact:
    """Records have left the window to make room.

    Attributes:
        reason: ``"trigger"``, ``"too long"`` (the provider said so) or ``"asked"``.
        strategies: names of what chose them.
        gone: their ids.
        summary: text that stands for them, from the place of the first on; None without one.
        place: id of the record in whose place it stands.
        before, after: tokens of what is sent.
        spent: what writing the summary has used.
    """

    reason: str
    strategies: list[str]
    gone: list[int]
    before: int
    after: int
    summary: str | None = None
    place: int | None = None
    spent: list[Aside] = field(default_factory=list)


@dataclass(slots=True)
class Aside:
    """A call of a model beside the conversation, as it is accounted for."""

    provider: str
    model: str
    usage: Usage
    cost: Decimal | None
    finish_reason: FinishReason
    response_id: str | None
    time_to_first_token: float | None
    duration: float


@dataclass(slots=True)
class Forget:
    """Records that the turn will not touch again: in a long turn they would be in the way."""

    keys: list[int]


@dataclass(slots=True)
class StartCall:
    """A request is about to be sent.

    Attributes:
        manifest: ids of the records that it holds; None for all live ones.
        sent: tokens of these records, counted offline; None for the live ones' count.
        beside: tokens of what is sent beside records, such as tools.
    """

    provider: str
    model: str
    options: dict[str, Any]
    manifest: list[int] | None = None
    sent: int | None = None
    beside: int = 0


@dataclass(slots=True)
class Progress:
    """News of the call under way; None leaves a value as it is.

    Attributes:
        sent: tokens of all that was sent, as counted here or by the provider.
        options: all that are kept with the call, in the place of those before.
    """

    response_id: str | None = None
    cursor: str | None = None
    model: str | None = None
    manifest: list[int] | None = None
    sent: int | None = None
    options: dict[str, Any] | None = None


@dataclass(slots=True)
class EndCall:
    """The call is over.

    Attributes:
        usage: as the provider counted; None lets the store estimate it from the texts.
        partial: what the provider had counted when it was cut off, for that estimate.
        output: text that the call produced, for that estimate.
        price: cost in US dollars of a usage and the *model* that answered; it may be slow the
            first time.
        replaces: the usage covers the turn's earlier calls of the same response, too.
    """

    usage: Usage | None
    partial: Usage | None = None
    output: str = ""
    price: Callable[[Usage, str | None], Decimal | None] | None = None
    model: str | None = None
    replaces: bool = False
    finish_reason: FinishReason | None = None
    time_to_first_token: float | None = None
    duration: float = 0.0
    error: str | None = None


@dataclass(slots=True)
class EndTurn:
    """The turn is over; the lease is given back.

    Attributes:
        threading_id: where server-side threading stands now; None leaves it as it is.
        chain_broken: the stored threading id no longer holds.
    """

    state: TurnState
    error: str | None = None
    threading_id: str | None = None
    chain_broken: bool = False


Operation = (
    OpenRecord
    | ReopenRecord
    | Append
    | CloseRecord
    | SetLive
    | Compact
    | Forget
    | StartCall
    | Progress
    | EndCall
    | EndTurn
)


@dataclass(slots=True)
class Checkpoint:
    """Write *operations* in one transaction; answered with ``Written``.

    Attributes:
        boundary: a prompt, a tool call or the end of a turn: it survives a power failure.
        relaxed: nobody is shown what it holds, so it may be written a little later.
    """

    operations: list[Operation]
    boundary: bool = False
    relaxed: bool = False


@dataclass(slots=True)
class Written:
    """What the database knows of a turn.

    Attributes:
        ids: record id by the turn's own number.
        records: closed records as they stand, by the turn's own number.
        usage, cost: of the calls that have ended, together.
        last_usage, last_cost: of the call that ended last.
        ended: whether the turn is over.
        summary: the record that the last compaction has written, or None.
    """

    ids: dict[int, int] = field(default_factory=dict)
    records: dict[int, Record] = field(default_factory=dict)
    usage: Usage | None = None
    cost: Decimal | None = None
    last_usage: Usage | None = None
    last_cost: Decimal | None = None
    ended: bool = False
    summary: Record | None = None


Effect = (
    _Mark
    | OpenCall
    | Ask
    | Work
    | Sleep
    | RunHook
    | StartTools
    | StopTools
    | BeginTurn
    | Checkpoint
)
