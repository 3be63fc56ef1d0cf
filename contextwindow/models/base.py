"""What a model is to the rest of the library: the contract that every adapter keeps.

An adapter has two halves.  ``request`` and ``decoder`` are plain computations: records to a
request, parsed events to items.  ``open`` and ``open_async`` do the I/O with the provider's own
SDK client and give back what arrives, one network read at a time, already parsed.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Protocol

from contextwindow.errors import ModelError
from contextwindow.models.estimates import Estimate, estimate_request
from contextwindow.models.prices import Pricing, check_prices
from contextwindow.records import Attachment, FinishReason, Record, Usage

PartKind = Literal["text", "reasoning", "refusal", "tool_call"]


@dataclass(slots=True)
class Delta:
    """A piece of one part of a reply.

    Attributes:
        part: number of the part, counted by the decoder in order of first appearance.  Each
            part becomes one record.
        text: what was added; for a ``tool_call`` a fragment of its JSON arguments.  It may be
            empty when it only announces the part (a tool call with its name and id).
        call_id: the tool call's id, on ``tool_call`` parts.
        name: the tool's name, on ``tool_call`` parts.
    """

    kind: PartKind
    part: int
    text: str
    call_id: str = ""
    name: str = ""


@dataclass(slots=True)
class PartEnd:
    """A part is whole.

    Attributes:
        content: its whole text as the provider gave it, or None to keep the joined deltas.
        items: the provider's own items, sent back verbatim in later requests; items without a
            part of their own (server tools) stand in front of the part that follows them; where
            none does, they get a text part without text.
    """

    kind: PartKind
    part: int
    content: str | None = None
    items: list[Any] | None = None
    call_id: str = ""
    name: str = ""


Item = Delta | PartEnd


@dataclass(frozen=True, slots=True)
class Body:
    """A whole reply in one JSON body, where no event stream came."""

    json: Any


@dataclass(frozen=True, slots=True, kw_only=True)
class ResponseFormat:
    """The shape that a reply must have: a JSON schema and its name."""

    name: str
    schema: dict[str, Any]
    strict: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class CallOptions:
    """Options of one call, in our words; an adapter translates them.

    Attributes:
        reasoning: effort (``"low"``, ``"medium"``, ``"high"`` …) or the provider's own mapping.
        tools: objects with ``name``, ``description`` and ``parameters`` (a JSON schema).
        tool_choice: ``"auto"``, ``"none"``, ``"required"`` or a tool's name.
        extra: merged into the provider's request as it is, last.
        threaded: the provider shall keep the response, so that the next call can name it.
        previous_response_id: the records given continue this response of the provider.
        prefill: the last record is an unfinished reply that the model shall continue.
    """

    temperature: float | None = None
    max_output_tokens: int | None = None
    reasoning: str | dict[str, Any] | None = None
    response_format: ResponseFormat | None = None
    tools: tuple[Any, ...] = ()
    tool_choice: str | None = None
    extra: dict[str, Any] = field(default_factory=dict, repr=False)
    threaded: bool = False
    previous_response_id: str | None = None
    prefill: bool = False


@dataclass(frozen=True, slots=True)
class Request:
    """What ``open`` sends.

    Attributes:
        body: keyword arguments of the SDK's own method.
        response_id: set to read the provider's copy of this response instead of asking anew.
        starting_after: with *response_id*: the last event that is already known.
    """

    # Not shown: it is the whole conversation, and may hold headers of the caller's.
    body: dict[str, Any] = field(repr=False)
    response_id: str | None = None
    starting_after: int | None = None


class Decoder(ABC):
    """Turns the parsed events of one call into items; plain computation.

    Attributes:
        response_id: the provider's id of the response, once seen.
        model: the model that answered, once seen.
        cursor: the provider's position after the last event fed, where it has one to resume
            from; else None.
        usage: tokens as the provider counted them, in our terms; None until it said.
        finish_reason: why the reply ended; None until it said.
        finished: whether the terminal event has been seen.
        paused: the provider stopped a long reply in the middle and is to be called again with
            what it said.
    """

    response_id: str | None = None
    model: str | None = None
    cursor: str | None = None
    usage: Usage | None = None
    finish_reason: FinishReason | None = None
    finished: bool = False
    paused: bool = False

    @abstractmethod
    def feed(self, event: Any) -> Sequence[Item]:
        """Items of one parsed event; events of unknown types give none.

        Raises:
            ModelError: the event reports an error.
            StreamInterrupted: the event cannot be understood.
        """

    @abstractmethod
    def feed_body(self, body: Any) -> Sequence[Item]:
        """Items of a whole reply that came as one JSON body; sets ``finished``.

        Raises:
            ModelError: the body reports an error or is no reply at all.
        """

    @abstractmethod
    def end(self) -> Sequence[Item]:
        """Items that are left when the stream has ended.

        Raises:
            StreamInterrupted: the terminal event never came.
        """


class EventSource(Protocol):
    """An open call of a provider, read by blocking."""

    def read(self) -> list[Any] | None:
        """Parsed events of one network read, at least one; None at the end of the stream.

        A body that is no event stream comes as ``[Body(json)]``.

        Raises:
            ModelError: translated from whatever the SDK or the network raised.
        """

    def close(self) -> None:
        """Close the connection; may be called twice."""

    def abort(self) -> None:
        """Make a read that is under way end soon; safe to call from any thread."""


class AsyncEventSource(Protocol):
    """An open call of a provider, read on an event loop."""

    async def read(self) -> list[Any] | None:
        """As ``EventSource.read``."""

    async def close(self) -> None:
        """Close the connection; may be called twice."""

    def abort(self) -> None:
        """Make a read that is under way end soon; to be called on the event loop's thread."""


class Model(ABC):
    """One model behind one provider API.

    A model may be shared by many windows and threads; it holds nothing of any of them.

    Attributes:
        provider: the company's service, such as ``"openai"``; prices are looked up under it.
        api: which of its APIs, such as ``"openai-responses"``; payloads are kept under it.
        name: the provider's name of the model.
        url: of the server that answers, where it is not the provider's own; prices are then
            looked up by it.
        max_retries: how often a call that fails before its stream starts is made again.
        supports_threading: whether calls can go on from the provider's own copy.
        supports_prefill: whether an unfinished reply at the end of a request is continued.
        opens_at_once: whether ``open`` never waits, so that it needs no thread of its own.
    """

    provider: ClassVar[str] = ""
    api: ClassVar[str] = ""
    url: str | None = None
    supports_threading: bool = False
    supports_prefill: bool = False
    opens_at_once: bool = False
    max_retries: int = 2

    _prices: Pricing | None = None

    def __init__(self, name: str) -> None:
        self.name = name

    @property
    def prices(self) -> Pricing | None:
        """What its tokens cost: ``Prices``, a function of ``Usage``, or None for the catalog.

        A function gives US dollars, or None when it does not know.

        Raises:
            ConfigError: when something else is assigned.
        """
        return self._prices

    @prices.setter
    def prices(self, prices: Pricing | None) -> None:
        self._prices = check_prices(prices)

    def __repr__(self) -> str:
        # Never the client: its repr may show keys.
        return f"{type(self).__name__}({self.name!r})"

    @abstractmethod
    def request(self, records: Sequence[Record], options: CallOptions) -> Request:
        """The request that sends *records* (all live, in order).

        It never raises for what a context may hold: unanswered tool calls get a synthetic
        output, partial reasoning is left out, other providers' payloads go as plain text.
        """

    def resume_request(self, response_id: str, cursor: str) -> Request | None:
        """A request that reads on after *cursor* in the provider's copy, or None."""
        return None

    @abstractmethod
    def decoder(self, request: Request) -> Decoder:
        """A fresh decoder for the answer to *request*."""

    @abstractmethod
    def open(self, request: Request, *, timeout: float | None) -> EventSource:
        """Send *request* and return once the answer's headers have come.

        Args:
            timeout: seconds without a byte before ``ModelTimeout``; None for the client's own.

        Raises:
            ModelError: the request failed; nothing was read.
        """

    @abstractmethod
    async def open_async(self, request: Request, *, timeout: float | None) -> AsyncEventSource:
        """As ``open``, on the running event loop."""

    def estimate(self, request: Request) -> Estimate:
        """The input tokens that *request* (of ``request``) will take, told without the provider.

        It never raises.  A request that reads on in the provider's copy sends nothing.
        """
        if request.response_id is not None:
            return Estimate(0)
        return estimate_request(self.api, request.body)

    def count_tokens(
        self, records: Sequence[Record], options: CallOptions, *, timeout: float | None = None
    ) -> int | None:
        """The input tokens that a call would take, as the provider counts them; it asks once.

        Args:
            records: all live ones, in order, as for ``request``.
            timeout: seconds without a byte before ``ModelTimeout``; None for the client's own.

        Returns:
            None where the provider's API does not count; ``estimate`` tells about how many.

        Raises:
            ModelError: as from ``open``; what is ``retryable`` may be asked again.
        """
        return None

    async def count_tokens_async(
        self, records: Sequence[Record], options: CallOptions, *, timeout: float | None = None
    ) -> int | None:
        """As ``count_tokens``, on the running event loop."""
        return None

    def attachment_problem(self, attachment: Attachment) -> str | None:
        """Why this model cannot take *attachment*, or None when it can; text goes everywhere."""
        if attachment.data is not None and attachment.media_type.startswith("text/"):
            return None
        return f"{self.name} takes no {attachment.media_type}"

    def without_secrets(self, error: ModelError) -> ModelError:
        """*error*, which was made of what the provider said, without keys that it repeats."""
        return error

    def is_unknown_response(self, error: ModelError) -> bool:
        """Whether *error* says that the provider no longer has the previous response."""
        return False

    def close(self) -> None:  # noqa: B027 - a model without connections has nothing to close
        """Close the connections that this model opened; a client given to it stays open."""

    async def aclose(self) -> None:  # noqa: B027 - see close
        """As ``close``, for the asynchronous client."""
