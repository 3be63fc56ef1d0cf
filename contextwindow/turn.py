"""One turn, written once, without I/O.

``TurnRun.run`` is a generator.  It yields effects (``contextwindow.effects``), whose answers it
is sent, and chunks, which its driver hands to the reader.  The driver throws every error back in,
so that the turn alone decides what to store and how to end.
"""

from __future__ import annotations

import logging
from collections.abc import Generator, Sequence
from dataclasses import replace
from typing import Any

from contextwindow.chunks import (
    Done,
    Resumed,
    Retrying,
    StreamChunk,
    StreamFailed,
    StreamStart,
    TextDelta,
    UsageReport,
    place,
)
from contextwindow.effects import (
    CLOSE,
    NEXT,
    BeginTurn,
    Begun,
    Checkpoint,
    Effect,
    EndCall,
    EndTurn,
    OpenCall,
    OpenRecord,
    Operation,
    Progress,
    ReopenRecord,
    SetLive,
    Sleep,
    StartCall,
    Written,
)
from contextwindow.errors import (
    ConfigError,
    ContextNotFound,
    MiddlewareError,
    ModelError,
    ModelTimeout,
    StoreError,
    StreamInterrupted,
    TurnLost,
)
from contextwindow.hooking import Waiting, offer, run_hook, settle
from contextwindow.middleware import CallStart
from contextwindow.models.base import Body, CallOptions, Decoder, Delta, Item, Request
from contextwindow.parts import SOURCES, Part, instruction, text_record
from contextwindow.plan import LONGEST_WAIT, Strategy, TurnPlan, since, wait_before
from contextwindow.records import FinishReason, Record, RecordType, Reply, TurnState, Usage

Run = Generator["Effect | StreamChunk", Any, None]
Planned = Generator["Effect | StreamChunk", Any, Request]

_log = logging.getLogger("contextwindow")


class _Cancelled(Exception):
    """``cancel()`` was called: the turn ends with what it has."""


class TurnRun:
    """The state of one turn while it runs.

    Attributes:
        reply: what came of it, once that is stored.
        turn_id: the turn; on a resume known when it has begun.
    """

    def __init__(self, plan: TurnPlan) -> None:
        self.plan = plan
        self.reply: Reply | None = None
        self.turn_id = plan.resume or plan.turn_id
        self._begun: Begun | None = None
        self._started = False
        self._at_reader = False
        self._parts: list[Part] = []
        self._by_number: dict[int, Part] = {}
        # Parts that the next call goes on with, by their kind.
        self._adopted: dict[str, Part] = {}
        # Chunks of one network read: committed together, then delivered one by one.
        self._segment: list[tuple[StreamChunk, Part, int]] = []
        self._cursors: list[str | None] = []
        self._sent = 0
        self._opening: list[Operation] = []
        self._cursor: str | None = None
        self._noted: tuple[str | None, ...] = ()
        self._decoder: Decoder | None = None
        self._manifest: list[int] = []
        self._strategy = ""
        self._spliced = False
        self._reads_on = False
        self._threaded_from: str | None = None
        self._written = Written()
        self._call_open = False
        self._call_parts = 0
        self._turn_began = self._call_began = plan.clock()
        self._first_text: float | None = None

    @property
    def running(self) -> bool:
        """Whether it holds the lease of its context."""
        return self._begun is not None and not self._written.ended

    def run(self) -> Run:
        """The turn from its lease to its last chunk."""
        try:
            try:
                yield from self._turn()
            except _Cancelled:
                yield from self._finish("cancelled", "cancelled", None)
        except BaseException as error:
            last = yield from self._fail(error)
            if last is error:
                raise
            raise last  # noqa: B904 - it came while *error* was handled, and says so

    def _turn(self) -> Run:
        request = yield from self._begin()
        drops = stuck = 0
        while True:
            before = sum(part.length for part in self._parts)
            try:
                yield from self._call(request)
                break
            except StreamInterrupted as error:
                self._check_stop()
                progress = sum(part.length for part in self._parts) > before
                drops += 1
                stuck = 0 if progress else stuck + 1
                if self._at_reader or drops > self.plan.max_resumes or stuck > 1:
                    raise
                request = yield from self._go_on_after(error)
            except ModelError:
                self._check_stop()
                # The provider no longer has the stream: the next rung of the ladder.
                if self._at_reader or request.response_id is None or self._decoder is not None:
                    raise
                if self.plan.strategy == "cursor":
                    raise
                request = yield from self._resume("auto", None, None)
        decoder = self._known_decoder()
        yield from self._finish(*self._outcome(decoder), decoder.usage)

    def _begin(self) -> Planned:
        plan = self.plan
        start = StartCall(plan.model.provider or plan.model.api, plan.model.name, plan.recorded)
        begun: Begun = yield BeginTurn(plan.turn_id, plan.resume, start)
        self._begun = begun
        self.turn_id = begun.turn_id
        self._call_open = True
        self._manifest = [record.id for record in begun.records]
        for hook in plan.hooks.on_stream_start:
            yield from run_hook("on_stream_start", hook, plan.stream)
        # Otherwise a stream and its turn hold each other, and dropping it would not end it.
        plan.stream = None
        self._started = True
        yield from self._say(StreamStart(begun.turn_id))
        if plan.resume is None:
            return (yield from self._plan_call())
        self._parts = [Part.from_record(key, record) for key, record in enumerate(begun.own)]
        self._call_parts = len(self._parts)
        operations: list[Operation] = [ReopenRecord(p.key, p.record_id) for p in self._parts]
        if operations:
            yield from self._write(operations)
        return (yield from self._resume(plan.strategy, begun.response_id, begun.cursor))

    # -- requests ------------------------------------------------------------------------

    def _plan_call(
        self, options: CallOptions | None = None, extra: Sequence[Record] = ()
    ) -> Planned:
        """The request for what is live now, with *extra* records behind it."""
        begun, plan = self._known_begun(), self.plan
        options = options or plan.options
        own = [
            text_record(part, begun.context_id, begun.turn_id)
            for part in self._parts
            if part.kind == "text" and part.length and not part.dead
        ]
        records = [*begun.records, *own, *extra]
        if begun.threaded and plan.model.supports_threading:
            options = replace(options, threaded=True)
            newer, reason = since(records, begun.last_response_id)
            if own or extra:
                newer, reason = None, "a reply is being resumed"
            if newer is None:
                _log.info("context %s: the full history is sent: %s", begun.context_id, reason)
            else:
                options = replace(options, previous_response_id=begun.last_response_id)
                records = newer
        self._threaded_from = options.previous_response_id
        if plan.hooks.on_call_start:
            call = CallStart(list(records), plan.model.name, begun.turn_id)
            for hook in plan.hooks.on_call_start:
                yield from run_hook("on_call_start", hook, call)
            # What the provider keeps is then not what the database has.
            self._spliced = self._spliced or call.records != records
            records = call.records
        yield from self._note_call([record.id for record in records if record.id])
        return plan.model.request(records, options)

    def _note_call(self, manifest: list[int]) -> Run:
        """Tell the store of the call that is about to be made, and what it sends."""
        if not self._call_open:
            model = self.plan.model
            provider = model.provider or model.api
            start = StartCall(provider, model.name, self.plan.recorded, manifest)
            self._noted = ()
            yield from self._write([start])
        elif manifest != self._manifest:
            yield from self._write([Progress(manifest=manifest)])
        self._call_open = True
        self._manifest = manifest

    # -- one call ------------------------------------------------------------------------

    def _call(self, request: Request) -> Run:
        self._decoder = None
        request = yield from self._open(request)
        if self._strategy:
            yield from self._say(Resumed(self._strategy))
            self._strategy = ""
        self._decoder = decoder = self.plan.model.decoder(request)
        self._by_number = {}
        self._cursor = None if request.starting_after is None else str(request.starting_after)
        try:
            while True:
                events = yield NEXT
                self._check_stop()
                if events is None:
                    break
                yield from self._batch(events, decoder)
        except (StreamInterrupted, ModelTimeout):
            # What comes after the terminal event cannot spoil a finished reply.
            if self._at_reader or not decoder.finished or self.plan.control.stop:
                raise
        yield from self._items(decoder.end())
        yield from self._flush()
        yield CLOSE

    def _open(self, request: Request) -> Planned:
        attempt = 0
        while True:
            self._call_began = self.plan.clock()
            try:
                yield OpenCall(request)
                self._check_stop()
                return request
            except ModelError as error:
                self._check_stop()
                reason = error
            if self._threaded_from and self.plan.model.is_unknown_response(reason):
                self._known_begun().last_response_id = None
                _log.warning("the provider does not know the last response: %s", reason)
                request = yield from self._plan_call()
                continue
            attempt += 1
            wait = wait_before(attempt, reason)
            retries = self.plan.model.max_retries
            if not reason.retryable or attempt > retries or wait > LONGEST_WAIT:
                raise reason
            yield from self._say(Retrying(attempt, wait, error=reason))
            yield Sleep(wait)
            self._check_stop()

    def _batch(self, events: list[Any], decoder: Decoder) -> Run:
        """Store and deliver what one network read brought."""
        failure: Exception | None = None
        feed = decoder.feed
        try:
            if type(events[0]) is Body:
                yield from self._items(decoder.feed_body(events[0].json))
                events = []
            by_number = self._by_number
            for event in events:
                for item in feed(event):
                    part = by_number.get(item.part)
                    if part is not None and type(item) is Delta and part.plain:
                        part.received(item.text)
                        waiting = self._offer(part, item.text)
                        if waiting is not None:
                            yield from self._settle(part, item.text, waiting)
                    else:
                        yield from self._items((item,))
        except (ModelError, MiddlewareError) as error:
            if self._at_reader:
                raise
            failure = error
        yield from self._flush()
        self._cursor = decoder.cursor
        if failure is not None:
            raise failure

    def _items(self, items: Sequence[Item]) -> Run:
        for item in items:
            part = self._by_number.get(item.part)
            if part is None:
                if type(item) is Delta and not item.text and item.kind != "tool_call":
                    continue
                part = yield from self._open_part(item)
            if type(item) is Delta:
                part.call_id = item.call_id or part.call_id
                part.name = item.name or part.name
                text = item.text
                part.received(text)
                if part.trimmer is not None:
                    text = part.trimmer.feed(text)
            else:
                text = part.rest(item.content)  # type: ignore[union-attr]
                part.received(text)
                if part.trimmer is not None:
                    text = part.trimmer.feed(text) + part.trimmer.flush()
            if text or (part.announce and type(item) is Delta):
                waiting = self._offer(part, text)
                if waiting is not None:
                    yield from self._settle(part, text, waiting)
            if type(item) is not Delta:
                part.end(item, self.plan.model.api)  # type: ignore[arg-type]

    def _open_part(self, item: Item) -> Generator[Effect | StreamChunk, Any, Part]:
        """The part that an item of a new number belongs to."""
        yield from self._flush()
        part = self._adopted.pop(item.kind, None)
        if part is None:
            part = Part(len(self._parts), item.kind, item.call_id, item.name)
            source = SOURCES[item.kind]
            names = {"call_id": item.call_id or None, "name": item.name or None}
            self._opening.append(OpenRecord(part.key, source, **names))  # type: ignore[arg-type]
            self._parts.append(part)
            if self.plan.hooks.on_stream_chunk:
                # A hook is shown chunks that know their record.
                yield from self._write(self._due())
        self._by_number[item.part] = part
        return part

    def _flush(self) -> Run:
        """Commit what the segment holds, then deliver it."""
        segment = self._segment
        if not segment:
            return
        operations = self._due()
        operations += [part.take() for part in self._parts if part.fresh]
        # What nobody is shown may wait a little for the end, and cost one transaction with it.
        self._written = yield Checkpoint(operations, relaxed=self.plan.unwatched)
        self._place_segment()
        control = self.plan.control
        self._at_reader = True
        for chunk, _, _ in segment:
            self._sent += 1
            yield chunk
            if control.stop:
                break
        self._at_reader = False
        self._check_stop()
        self._cursor = self._cursors[-1]
        segment.clear()
        self._cursors.clear()
        self._sent = 0

    def _place_segment(self) -> None:
        """Tell the chunks of a record that was just written which one it is."""
        segment = self._segment
        part = segment[-1][1]
        if not part.record_id and part.key in self._written.ids:
            part.record_id = self._written.ids[part.key]
            for chunk, _, _ in segment:
                place(chunk, part.record_id)
        if self._first_text is None and any(type(one[0]) is TextDelta for one in segment):
            self._first_text = self.plan.clock() - self._call_began

    # -- going on after a drop -----------------------------------------------------------

    def _go_on_after(self, error: StreamInterrupted) -> Planned:
        """End the call that was cut off and plan the one that continues it."""
        decoder = self._decoder
        yield CLOSE
        yield from self._write([*self._due(), self._end_call(str(error), None, None)])
        response_id = decoder.response_id if decoder is not None else None
        return (yield from self._resume("auto", response_id, self._cursor))

    def _resume(self, strategy: Strategy, response_id: str | None, cursor: str | None) -> Planned:
        """The request that continues the open parts, by the first rung that holds."""
        model = self.plan.model
        if strategy in ("auto", "cursor"):
            request = None
            if response_id is not None and cursor is not None:
                request = model.resume_request(response_id, cursor)
            if request is not None:
                self._strategy = "cursor"
                self._reads_on = True
                self._adopted = {part.kind: part for part in self._parts if part.open}
                yield from self._note_call([])
                return request
            if strategy == "cursor":
                raise ConfigError(
                    f"turn {self._known_begun().turn_id} cannot resume by cursor: its call was "
                    "not made in background mode, or nothing of it had arrived"
                )
        self._reads_on = False
        yield from self._leave_behind()
        text = next((p for p in reversed(self._parts) if p.says_something), None)
        if text is not None and strategy != "regenerate":
            self._spliced = True
            self._adopted = {"text": text}
            if model.supports_prefill and strategy in ("auto", "prefill"):
                self._strategy = "prefill"
                text.expect_echo(whitespace_only=True)
                return (yield from self._plan_call(replace(self.plan.options, prefill=True)))
            if strategy == "prefill":
                raise ConfigError(f"{model!r} cannot go on with a prefilled reply")
            self._strategy = "continue"
            text.expect_echo()
            order = instruction(text.text(), self._known_begun().context_id)
            return (yield from self._plan_call(extra=[order]))
        if strategy not in ("auto", "regenerate"):
            raise ConfigError(f"there is no text to {strategy}; use strategy='regenerate'")
        return (yield from self._regenerate())

    def _regenerate(self) -> Planned:
        dead = [part.record_id for part in self._parts if not part.dead and part.record_id]
        for part in self._parts:
            part.discard()
        if dead:
            yield from self._write([SetLive(dead, False)])
        self._strategy = "regenerate"
        return (yield from self._plan_call())

    def _leave_behind(self) -> Run:
        """Give up reasoning and tool calls: no provider takes them back half done."""
        self._adopted = {}
        operations: list[Operation] = []
        dead: list[int] = []
        for part in self._parts:
            if part.kind in ("text", "refusal") or part.dead or not part.record_id:
                continue
            if part.open:
                operations.append(part.close_partial())
            else:
                dead.append(part.record_id)
            part.discard()
        if dead:
            operations.append(SetLive(dead, False))
        if operations:
            yield from self._write(operations)

    # -- the end -------------------------------------------------------------------------

    def _outcome(self, decoder: Decoder) -> tuple[TurnState, FinishReason]:
        reason = decoder.finish_reason or "stop"
        calls = any(part.kind == "tool_call" and not part.dead for part in self._parts)
        return ("awaiting" if calls and reason == "tool_calls" else "complete"), reason

    def _finish(self, state: TurnState, reason: FinishReason, usage: Usage | None) -> Run:
        """Store the end of the turn, then tell hooks and reader."""
        if self._begun is None:
            return
        if state == "cancelled":
            yield CLOSE
            operations = self._abandon()
        else:
            for part in self._parts:
                part.settle()
            operations = self._due()
        operations.append(self._end_call(None, usage, reason))
        operations.append(self._end_turn(state, None))
        self._written = yield Checkpoint(operations, boundary=True)
        self.reply = reply = self._reply(reason)
        if state == "cancelled":
            yield from self._say(Done(reply))
            return
        written = self._written
        yield from self._say(UsageReport(written.last_usage or Usage(), written.last_cost))
        for hook in self.plan.hooks.on_stream_complete:
            tokens = reply.usage.total_tokens
            yield from run_hook("on_stream_complete", hook, reply.text, tokens)
        if self.plan.parse is not None and reason == "stop" and not reply.refusal:
            self.reply = reply = replace(reply, parsed=self.plan.parse(reply.text))
        yield from self._say(Done(reply))

    def _fail(self, error: BaseException) -> Generator[Effect | StreamChunk, Any, BaseException]:
        """Store what arrived; tell hooks and reader, unless the reader is the one who left.

        Returns:
            What is to be raised: *error*, or what went wrong after it.
        """
        begun = self._begun
        if begun is None:
            return error
        reader_left = self._at_reader or not isinstance(error, Exception)
        yield CLOSE
        if not self._written.ended and not isinstance(error, TurnLost):
            try:
                yield from self._store_failure(error)
            except (StoreError, ContextNotFound, TurnLost) as refused:
                # A reader's own exception comes out as it is; closing a stream raises none.
                if isinstance(error, GeneratorExit):
                    raise
                note = f"what arrived last of turn {begun.turn_id} could not be stored: {refused}"
                _log.warning("%s", note)
                if not reader_left and isinstance(error, (ModelError, MiddlewareError)):
                    error = refused
                elif error is not refused:
                    error.add_note(note)
        if isinstance(error, ModelError):
            error.turn_id = begun.turn_id
            error.partial_text = error.partial_text or self._text()
        if reader_left:
            return error
        told = error
        for hook in self.plan.hooks.on_stream_error:
            try:
                yield from run_hook("on_stream_error", hook, told)
            except MiddlewareError as worse:
                error = worse
        if not self._started:
            yield StreamStart(begun.turn_id)
        yield StreamFailed(error)
        return error

    def _store_failure(self, error: BaseException) -> Run:
        """Write the end of a turn that *error* has ended."""
        operations = self._abandon()
        state = self._state_after(error)
        reason = None if state == "cancelled" else _describe(error)
        ended: FinishReason | None = "cancelled" if state == "cancelled" else None
        operations.append(self._end_call(reason, None, ended))
        operations.append(self._end_turn(state, reason))
        self._written = yield Checkpoint(operations, boundary=True)

    def _state_after(self, error: BaseException) -> TurnState:
        if not isinstance(error, Exception):
            return "cancelled"
        arrived = any(part.length for part in self._parts)
        if arrived or isinstance(error, (StreamInterrupted, ModelTimeout)):
            return "interrupted"
        return "failed"

    def _abandon(self) -> list[Operation]:
        """Close every part at what was delivered of it."""
        inside = bool(self._segment)
        for _, part, size in self._segment[self._sent :]:
            part.length -= size
            part.cut = True
        del self._segment[self._sent :]
        if self._sent:
            self._cursor = self._cursors[self._sent - 1]
        operations = self._opening
        self._opening = []
        for part in self._parts:
            # A checkpoint that was refused may have held its closing.
            closed = part.key in self._written.records
            whole = part.ended or not (part.open or closed)
            # Inside a segment the end of a part may lie beyond what was delivered.
            if whole and not (part.cut or part.dead or inside):
                operations.append(part.close(self._response_id()))
            elif part.open or whole:
                operations.append(part.close_partial())
        if self._decoder is not None:
            self._cursors.clear()
            decoder = self._decoder
            operations.append(Progress(decoder.response_id, self._cursor, decoder.model))
        return operations

    # -- what is written -----------------------------------------------------------------

    def _write(self, operations: list[Operation]) -> Run:
        self._written = yield Checkpoint(operations)
        for part in self._parts:
            part.record_id = part.record_id or self._written.ids.get(part.key, 0)

    def _due(self) -> list[Operation]:
        """Closings of parts that are whole and delivered, openings, and news of the call."""
        operations: list[Operation] = [
            part.close(self._response_id()) for part in self._parts if part.ended and not part.fresh
        ]
        operations += self._opening
        self._opening = []
        decoder = self._decoder
        if decoder is not None:
            # Never beyond what the same transaction stores: the event under way is not in yet.
            at = self._cursors[-1] if self._cursors else self._cursor
            news = (decoder.response_id, at, decoder.model)
            if news != self._noted:
                self._noted = news
                operations.append(Progress(*news))
        return operations

    def _end_call(
        self, error: str | None, usage: Usage | None, reason: FinishReason | None
    ) -> EndCall:
        self._call_open = False
        if usage is None and self._decoder is not None:
            usage = self._decoder.usage
        output = "".join(part.text() for part in self._parts[self._call_parts :])
        self._call_parts = len(self._parts)
        return EndCall(
            usage,
            output=output,
            price=self.plan.price,
            replaces=self._reads_on,
            finish_reason=reason,
            time_to_first_token=self._first_text,
            duration=self.plan.clock() - self._call_began,
            error=error,
        )

    def _end_turn(self, state: TurnState, error: str | None) -> EndTurn:
        threaded = self._known_begun().threaded and self.plan.model.supports_threading
        holds = threaded and not self._spliced and state in ("complete", "awaiting")
        return EndTurn(
            state,
            error=error,
            threading_id=self._response_id() if holds else None,
            chain_broken=threaded and not holds,
        )

    def _response_id(self) -> str | None:
        return self._decoder.response_id if self._decoder is not None else None

    def _text(self) -> str:
        return "".join(p.text() for p in self._parts if p.kind == "text" and not p.dead)

    def _reply(self, reason: FinishReason) -> Reply:
        begun, written, decoder = self._known_begun(), self._written, self._decoder
        parts = [part for part in self._parts if not part.dead]
        before = [one for one in begun.whole if one.source is RecordType.MODEL_RESPONSE]
        return Reply(
            text="".join(one.content for one in before) + self._text(),
            reasoning="".join(part.text() for part in parts if part.kind == "reasoning"),
            refusal="".join(part.text() for part in parts if part.kind == "refusal"),
            tool_calls=[part.tool_call() for part in parts if part.kind == "tool_call"],
            records=[*begun.whole, *(written.records[part.key] for part in parts)],
            usage=written.usage or Usage(),
            cost=written.cost,
            finish_reason=reason,
            response_id=self._response_id(),
            turn_id=begun.turn_id,
            model=(decoder.model if decoder is not None else None) or self.plan.model.name,
            time_to_first_token=self._first_text,
            duration=self.plan.clock() - self._turn_began,
        )

    # -- chunks and hooks ----------------------------------------------------------------

    def _say(self, chunk: StreamChunk) -> Run:
        """Deliver a chunk that belongs to no record; hooks see it and cannot change it."""
        for hook in self.plan.hooks.on_stream_chunk:
            yield from run_hook("on_stream_chunk", hook, chunk)
        self._at_reader = True
        yield chunk
        self._at_reader = False
        if not self._written.ended:
            self._check_stop()

    def _offer(self, part: Part, text: str) -> Waiting | None:
        """Show the hooks a chunk that adds *text*, and take it when all let it pass.

        Returns:
            None when that is done; else what a hook had to say: ``_settle`` goes on from there.
        """
        chunk = part.chunk(text)
        waiting = offer(self.plan.hooks.on_stream_chunk, chunk)
        if waiting is None:
            self._take(part, chunk, text)
        return waiting

    def _settle(self, part: Part, text: str, waiting: Waiting) -> Run:
        """Go on with a chunk that a hook wants awaited, replaced or dropped."""
        chunk = yield from settle(self.plan.hooks.on_stream_chunk, waiting)
        if chunk is None:
            part.altered = True
            return
        stored = part.shown(chunk, text)
        part.altered = part.altered or stored != text
        self._take(part, part.placed(chunk, stored), stored)

    def _take(self, part: Part, chunk: StreamChunk, stored: str) -> None:
        part.append(stored)
        self._segment.append((chunk, part, len(stored)))
        self._cursors.append(self._decoder.cursor if self._decoder is not None else None)

    # -- small things --------------------------------------------------------------------

    def _check_stop(self) -> None:
        stop = self.plan.control.stop
        if stop == "cancel":
            raise _Cancelled
        if stop == "deadline":
            raise ModelTimeout(
                f"{self.plan.model.name}: the turn did not end within its deadline; what "
                "arrived is stored, resume_streaming() goes on with it"
            )

    def _known_begun(self) -> Begun:
        assert self._begun is not None  # noqa: S101 - the first thing a turn does
        return self._begun

    def _known_decoder(self) -> Decoder:
        assert self._decoder is not None  # noqa: S101 - set when the call was opened
        return self._decoder


def _describe(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
