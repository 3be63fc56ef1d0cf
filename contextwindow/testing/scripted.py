"""A model that plays replies from a script, in process: no network and no SDK."""

from __future__ import annotations

import asyncio
import math
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Final

from contextwindow.errors import (
    ConfigError,
    InvalidRequest,
    ModelError,
    ModelTimeout,
    StreamInterrupted,
)
from contextwindow.models.base import CallOptions, Decoder, Item, Model, Request
from contextwindow.models.estimates import Estimate
from contextwindow.records import Attachment, Record
from contextwindow.testing.script import (
    EndEvent,
    ErrorEvent,
    Pieces,
    ScriptedEvent,
    ScriptedReply,
    StartEvent,
    Take,
    error_event,
    rehearse,
)
from contextwindow.tokens import count_tokens

Answer = str | list[str] | ScriptedReply
ScriptEntry = Answer | Callable[[Sequence[Record], CallOptions], Answer]

PROVIDER: Final = "scripted"

_UNKNOWN_RESPONSE: Final = "previous_response_not_found"


@dataclass(frozen=True, slots=True)
class ScriptedRequest:
    """One call that a ``ScriptedModel`` was asked to answer.

    Attributes:
        records: what was sent, in order; empty when a kept stream was read on.
        response_id, cursor: set when a kept stream was read on: where.
    """

    records: tuple[Record, ...]
    options: CallOptions
    response_id: str | None = None
    cursor: str | None = None


class ScriptedModel(Model):
    """Answers each call with the next entry of a script.

    An attempt that failed before its stream began and is made again is still the same call.

    Args:
        script: what to answer, one entry for each call: a str, a list of its exact chunks, a
            ``ScriptedReply``, or a function of the records and options of the call that gives
            one of these (plain computation: it must not wait).
        repeat: begin anew after the last entry, instead of raising ``InvalidRequest``.
        pieces: how a str is cut into chunks: ``"words"`` (each with the space before it),
            ``"characters"``, ``"whole"`` or a function.
        max_retries: how often a call that fails before its stream begins is made again.

    Attributes:
        requests: what was asked so far, in order; each call once.

    Raises:
        ConfigError: the script is a str, not a list, or has no entries.
    """

    provider: ClassVar[str] = PROVIDER
    api: ClassVar[str] = PROVIDER
    # Delays are waited for where they can be given up: in `read`.
    opens_at_once = True

    def __init__(
        self,
        script: Iterable[ScriptEntry],
        *,
        name: str = "scripted",
        repeat: bool = False,
        pieces: Pieces = "words",
        supports_threading: bool = False,
        supports_prefill: bool = False,
        max_retries: int = 2,
    ) -> None:
        super().__init__(name)
        if isinstance(script, str):
            raise ConfigError("script must be a list of replies: write [text]")
        self._script = list(script)
        if not self._script:
            raise ConfigError("the script has no replies")
        self._repeat = repeat
        self._pieces = pieces
        self.supports_threading = supports_threading
        self.supports_prefill = supports_prefill
        self.max_retries = max_retries
        self.requests: list[ScriptedRequest] = []
        self._lock = threading.Lock()
        self._calls = 0
        self._kept: dict[str, Take] = {}
        self._forgotten: set[str] = set()

    def forget(self, response_id: str) -> None:
        """Act from now on as a provider that no longer has the response *response_id*."""
        with self._lock:
            self._forgotten.add(response_id)

    def request(self, records: Sequence[Record], options: CallOptions) -> Request:
        """The request that sends *records*."""
        return _CallRequest({"records": list(records), "options": options})

    def estimate(self, request: Request) -> Estimate:
        """The tokens of the texts that *request* sends."""
        return Estimate(sum(count_tokens(one.content) for one in request.body.get("records", ())))

    def resume_request(self, response_id: str, cursor: str) -> Request | None:
        """A request that reads on after *cursor*; None for a stream that was not kept."""
        if response_id not in self._kept:
            return None
        return Request({}, response_id, int(cursor))

    def decoder(self, request: Request) -> Decoder:
        """A fresh decoder for the answer to *request*."""
        return _ScriptedDecoder(self.name, request.response_id)

    def open(self, request: Request, *, timeout: float | None) -> _Playback:
        """Begin to play the reply."""
        return _Playback(self.name, self._reads(request), timeout)

    async def open_async(self, request: Request, *, timeout: float | None) -> _AsyncPlayback:
        """As ``open``, on the running event loop."""
        return _AsyncPlayback(self.name, self._reads(request), timeout)

    def attachment_problem(self, attachment: Attachment) -> str | None:
        """None: it takes whatever there is; override this to act as a model that does not."""
        return None

    def is_unknown_response(self, error: ModelError) -> bool:
        """Whether *error* says that the previous response was forgotten."""
        return error.code == _UNKNOWN_RESPONSE

    def _reads(self, request: Request) -> Iterator[_Read]:
        if request.response_id is not None:
            return self._resumed(request.response_id, request.starting_after)
        ticket = request.ticket if isinstance(request, _CallRequest) else _Ticket()
        with self._lock:
            if ticket.take is None:
                ticket.take = self._answer(request)
                ticket.open_errors = list(ticket.take.reply.open_errors)
            if ticket.open_errors:
                raise ticket.open_errors.pop(0)
            take = ticket.take
            if take.reply.cursor:
                self._kept[take.response_id] = take
        return _reads(take, self.name)

    def _answer(self, request: Request) -> Take:
        """The entry that *request* is due, counted as asked; called with the lock held."""
        records = request.body.get("records", [])
        options = request.body.get("options", CallOptions())
        previous = options.previous_response_id
        self.requests.append(ScriptedRequest(tuple(records), options))
        if previous in self._forgotten:
            raise InvalidRequest(
                f"{self.name}: previous response {previous!r} was forgotten",
                provider=PROVIDER,
                status=400,
                code=_UNKNOWN_RESPONSE,
            )
        size = len(self._script)
        if self._calls >= size and not self._repeat:
            raise InvalidRequest(
                f"{self.name}: the script has {size} {'reply' if size == 1 else 'replies'} "
                f"and this is call {self._calls + 1}; add one, or pass repeat=True",
                provider=PROVIDER,
            )
        entry = self._script[self._calls % size]
        self._calls += 1
        answer = entry(records, options) if callable(entry) else entry
        reply = answer if isinstance(answer, ScriptedReply) else ScriptedReply(answer)
        return rehearse(
            reply, call=self._calls, model=self.name, pieces=self._pieces, records=records
        )

    def _resumed(self, response_id: str, after: int | None) -> Iterator[_Read]:
        with self._lock:
            cursor = None if after is None else str(after)
            self.requests.append(ScriptedRequest((), CallOptions(), response_id, cursor))
            take = self._kept.get(response_id)
            if take is None or response_id in self._forgotten:
                raise InvalidRequest(
                    f"{self.name}: response {response_id!r} is not kept",
                    provider=PROVIDER,
                    status=404,
                    code="not_found",
                )
        start = 0 if after is None else after + 1
        rest = take.events[start:]
        return _reads(Take(take.reply, response_id, rest, len(rest)), self.name)


@dataclass(slots=True)
class _Ticket:
    """What a request was answered with, so that a second attempt gets the same."""

    take: Take | None = None
    open_errors: list[Exception] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _CallRequest(Request):
    ticket: _Ticket = field(default_factory=_Ticket, repr=False, compare=False)


class _ScriptedDecoder(Decoder):
    def __init__(self, model: str, response_id: str | None) -> None:
        self.model = model
        self.response_id = response_id

    def feed(self, event: ScriptedEvent) -> Sequence[Item]:
        if event.cursor is not None:
            self.cursor = event.cursor
        if event.is_chunk:
            return event.items
        if isinstance(event, StartEvent):
            self.response_id = event.response_id
        elif isinstance(event, EndEvent):
            self.usage = event.usage
            self.finish_reason = event.finish_reason
            self.finished = True
        elif isinstance(event, ErrorEvent) and event.error is not None:
            raise event.error
        return event.items

    def feed_body(self, body: Any) -> Sequence[Item]:
        raise InvalidRequest(f"{self.model}: a scripted reply never comes in one body")

    def end(self) -> Sequence[Item]:
        if not self.finished:
            raise StreamInterrupted(
                f"{self.model}: the stream ended before the reply did; "
                "what arrived is kept, resume the turn",
                provider=PROVIDER,
            )
        return ()


@dataclass(slots=True)
class _Read:
    """One network read: the wait before it, then its events or its error."""

    wait: float
    events: list[ScriptedEvent] = field(default_factory=list)
    error: Exception | None = None


def _reads(take: Take, model: str) -> Iterator[_Read]:
    """The reads of *take* up to its fault, or to its end."""
    reply = take.reply
    events = take.events[: take.cut]
    fault = reply.effective_fault if take.cut < len(take.events) else None
    if fault == "error":
        events.append(error_event(reply, model))
    wait, chunks = reply.first_delay, 0
    group: list[ScriptedEvent] = []
    for event in events:
        group.append(event)
        chunks += event.is_chunk
        if chunks == reply.batch:
            yield _Read(wait, group)
            wait, chunks, group = reply.delay, 0, []
        elif isinstance(event, StartEvent):
            yield _Read(0.0, group)
            group = []
    if group:
        yield _Read(wait if chunks else 0.0, group)
    if fault == "stall":
        yield _Read(math.inf)
    elif fault == "reset":
        yield _Read(0.0, error=_lost(model))


def _lost(model: str) -> StreamInterrupted:
    return StreamInterrupted(
        f"{model}: the connection was lost in the middle of the reply; "
        "what arrived is kept, resume the turn",
        provider=PROVIDER,
    )


class _PlaybackCore:
    """What playing a reply takes, whichever way it waits."""

    def __init__(self, model: str, reads: Iterator[_Read], timeout: float | None) -> None:
        self._model = model
        self._reads = reads
        self._timeout = timeout
        self._closed = False

    def _within_timeout(self, wait: float) -> tuple[float | None, bool]:
        """Seconds to wait (None: for ever), and whether that ends in a timeout."""
        if self._timeout is not None and wait >= self._timeout:
            return self._timeout, True
        return (None if wait == math.inf else wait), False

    def _next(self) -> _Read | None:
        return None if self._closed else next(self._reads, None)

    def _result(self, read: _Read, *, late: bool) -> list[ScriptedEvent]:
        if late:
            raise ModelTimeout(
                f"{self._model}: no byte came within {self._timeout} s; "
                "what arrived is kept, resume the turn",
                provider=PROVIDER,
            )
        if read.error is not None:
            raise read.error
        return read.events

    def _stopped(self) -> StreamInterrupted:
        return StreamInterrupted(
            f"{self._model}: the stream was stopped on this side", provider=PROVIDER
        )


class _Playback(_PlaybackCore):
    """A reply being played, read by blocking."""

    def __init__(self, model: str, reads: Iterator[_Read], timeout: float | None) -> None:
        super().__init__(model, reads, timeout)
        self._stop = threading.Event()

    def read(self) -> list[ScriptedEvent] | None:
        """Events of one network read; None at the end."""
        read = self._next()
        if self._stop.is_set() and not self._closed:
            raise self._stopped()
        if read is None:
            return None
        late = False
        if read.wait:
            wait, late = self._within_timeout(read.wait)
            if self._stop.wait(wait):
                raise self._stopped()
        return self._result(read, late=late)

    def close(self) -> None:
        """End the playing; may be called twice."""
        self._closed = True
        self._stop.set()

    def abort(self) -> None:
        """Make a read that is under way end soon; safe to call from any thread."""
        self._stop.set()


class _AsyncPlayback(_PlaybackCore):
    """A reply being played, read on an event loop."""

    def __init__(self, model: str, reads: Iterator[_Read], timeout: float | None) -> None:
        super().__init__(model, reads, timeout)
        self._stop = asyncio.Event()

    async def read(self) -> list[ScriptedEvent] | None:
        """Events of one network read; None at the end."""
        # A network read gives the loop away: so must this, or one stream starves the others.
        await asyncio.sleep(0)
        read = self._next()
        if self._stop.is_set() and not self._closed:
            raise self._stopped()
        if read is None:
            return None
        late = False
        if read.wait:
            wait, late = self._within_timeout(read.wait)
            if await self._stopped_within(wait):
                raise self._stopped()
        return self._result(read, late=late)

    async def close(self) -> None:
        """End the playing; may be called twice."""
        self._closed = True
        self._stop.set()

    def abort(self) -> None:
        """Make a read that is under way end soon."""
        self._stop.set()

    async def _stopped_within(self, seconds: float | None) -> bool:
        try:
            async with asyncio.timeout(seconds):
                await self._stop.wait()
        except TimeoutError:
            return False
        return True
