"""One turn, written once, without I/O.

``TurnRun.run`` is a generator.  It yields effects (``contextwindow.effects``), whose answers it
is sent, and chunks, which its driver hands to the reader.  The driver throws every error back in,
so that the turn alone decides what to store and how to end.
"""

from __future__ import annotations

import logging
from collections.abc import Generator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Final

from contextwindow.attachments import tokens_of
from contextwindow.chunks import (
    Done,
    Resumed,
    Retrying,
    StreamChunk,
    StreamFailed,
    StreamStart,
    UsageReport,
)
from contextwindow.compaction import size_of
from contextwindow.effects import (
    CLOSE,
    NEXT,
    BeginTurn,
    Begun,
    Checkpoint,
    Effect,
    EndCall,
    EndTurn,
    Forget,
    OpenCall,
    Operation,
    Progress,
    ReopenRecord,
    SetLive,
    Sleep,
    StartCall,
    StopTools,
    Work,
)
from contextwindow.errors import (
    ConfigError,
    ContextNotFound,
    ContextWindowError,
    MiddlewareError,
    ModelError,
    ModelTimeout,
    StoreError,
    StreamInterrupted,
    ToolError,
    TurnLost,
)
from contextwindow.hooking import HookStopped, run_hook
from contextwindow.incoming import Cancelled, Incoming, Run
from contextwindow.making_room import Load, MakingRoom
from contextwindow.middleware import CallStart
from contextwindow.models.base import CallOptions, Decoder, Model, Request
from contextwindow.parts import Part, instruction, text_record, tool_call
from contextwindow.plan import (
    LONGEST_WAIT,
    Strategy,
    TurnPlan,
    since,
    tokens_beside,
    wait_before,
)
from contextwindow.records import (
    FinishReason,
    Record,
    RecordType,
    Reply,
    ToolCall,
    TurnState,
    Usage,
    tokens_known,
)
from contextwindow.rounds import ToolRound
from contextwindow.unanswered import check_unanswered

Planned = Generator["Effect | StreamChunk", Any, Request]

_log = logging.getLogger("contextwindow")

_COMPACTIONS: Final = 3
"""How often room is made for one call: what is left may take more than was thought."""


class TurnRun:
    """The state of one turn while it runs.

    Attributes:
        reply: what came of it, once that is stored.
        turn_id: the turn; on a resume known when it has begun.
    """

    def __init__(self, plan: TurnPlan) -> None:
        self.plan = plan
        self._options = plan.options
        self.reply: Reply | None = None
        self.turn_id = plan.resume or plan.turn_id
        self._begun: Begun | None = None
        self._started = False
        self._out = Incoming(plan)
        self._manifest: list[int] = []
        # What is kept with the call under way beside its options; see ``Call``.
        self._about: dict[str, Any] = {}
        self._strategy = ""
        self._spliced = False
        self._reads_on = False
        self._threaded_from: str | None = None
        self._call_open = False
        # Whether the provider may have begun to work on the call.
        self._sent = False
        # Characters of each part that earlier calls have brought.
        self._before: dict[int, int] = {}
        self._turn_began = self._out.call_began
        self._round: ToolRound | None = None
        self._calls_made: list[ToolCall] = []
        self._calls_left: list[ToolCall] = []
        # Numbers of records that are whole and behind the turn.
        self._over: list[int] = []
        self._room: MakingRoom | None = None

    @property
    def running(self) -> bool:
        """Whether it holds the lease of its context."""
        return self._begun is not None and not self._out.written.ended

    def run(self) -> Run:
        """The turn from its lease to its last chunk."""
        try:
            try:
                try:
                    yield from self._turn()
                except HookStopped:
                    if not self._out.written.ended:
                        self._out.check_stop()
                    raise
            except Cancelled:
                yield from self._finish("cancelled", "cancelled", None)
        except BaseException as error:
            control = self.plan.control
            if isinstance(error, GeneratorExit) and control.driven and control.left is not error:
                raise
            last = yield from self._fail(error)
            if last is error:
                raise
            raise last  # noqa: B904 - it came while *error* was handled, and says so

    def _turn(self) -> Run:
        request = yield from self._begin()
        rounds = 0
        while True:
            yield from self._whole_reply(request)
            decoder = self._known_decoder()
            if not decoder.paused:
                calls = self._calls_to_run(decoder)
                if not calls:
                    break
                rounds += 1
                if rounds > self.plan.max_tool_rounds:
                    raise ToolError(_too_many(self.plan.max_tool_rounds))
                yield from self._run_tools(calls)
                if self._calls_left:
                    break
            else:
                yield from self._end_reply([])
            self._options = _after_tools(self._options)
            request = yield from self._plan_call()
        yield from self._finish(*self._outcome(decoder), decoder.usage)

    def _whole_reply(self, request: Request) -> Run:
        """One reply of the model, resumed when it is cut off."""
        drops = stuck = 0
        while True:
            before = sum(part.length for part in self._out.parts)
            try:
                yield from self._call(request)
                return
            except StreamInterrupted as error:
                self._out.check_stop()
                progress = sum(part.length for part in self._out.parts) > before
                drops += 1
                stuck = 0 if progress else stuck + 1
                if self._out.at_reader or drops > self.plan.max_resumes or stuck > 1:
                    raise
                request = yield from self._go_on_after(error)
            except ModelError as error:
                self._out.check_stop()
                if self._room is not None and not self._out.parts and self._room.refused(error):
                    smaller = yield from self._shrink(error)
                    if smaller is None:
                        raise
                    request = smaller
                    continue
                # The provider no longer has the stream: the next rung of the ladder.
                reading_on = request.response_id is not None and self._out.decoder is None
                if self._out.at_reader or not reading_on:
                    raise
                if self.plan.strategy == "cursor":
                    raise
                request = yield from self._resume("auto", None, None)

    def _begin(self) -> Planned:
        plan = self.plan
        self._options = plan.options
        self._beside = tokens_beside(plan.options)
        if plan.room is not None:
            self._room = MakingRoom(plan.room, plan.options.max_output_tokens)
        provider = plan.model.provider or plan.model.api
        start = StartCall(provider, plan.model.name, plan.recorded, beside=self._beside)
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
        yield from self._out.say(StreamStart(begun.turn_id))
        if plan.resume is None:
            return (yield from self._plan_call())
        yield from self._answer_again()
        called = [one for one in begun.whole if one.source is RecordType.TOOL_CALL]
        self._calls_made = [tool_call(one) for one in called]
        earlier = (Part.from_record(next(self._out.keys), one) for one in called)
        self._out.called = {part.call_id: part for part in earlier}
        self._out.begin([Part.from_record(next(self._out.keys), one) for one in begun.own])
        self._before = {part.key: part.length for part in self._out.parts}
        operations: list[Operation] = [ReopenRecord(p.key, p.record_id) for p in self._out.parts]
        if operations:
            yield from self._out.write(operations)
        return (yield from self._resume(plan.strategy, begun.response_id, begun.cursor))

    # -- room ----------------------------------------------------------------------------

    def _make_room(self) -> Run:
        """Have what is live fit the window before it is sent.

        Raises:
            ContextLengthExceeded: it does not, whatever may leave.
        """
        room, begun = self._room, self._known_begun()
        if room is None:
            return
        quick = size_of(begun.records) + self._beside
        yield from room.look_up(quick + (self.plan.options.max_output_tokens or 0))
        load = yield from self._load()
        for _ in range(_COMPACTIONS):
            if not room.wanted(load.tokens):
                break
            before = begun.records
            yield from self._compact(load)
            if begun.records is before:
                break
            load = yield from self._load()
        room.check_fits(load.tokens, lambda: _guessed(begun.records))

    def _load(self) -> Generator[Effect, Any, Load]:
        """What a request takes; near a full window, with what the provider makes of its texts."""
        begun, room = self._known_begun(), self._room
        load = Load(size_of(begun.records), self._beside)
        if room is None or not load.texts or not room.is_near(load.tokens):
            return load
        whole = yield Work(partial(_estimated, self.plan.model, begun.records, self._options))
        return replace(load, scale=max(1.0, (whole - load.beside) / load.texts))

    def _shrink(self, error: ModelError) -> Generator[Effect | StreamChunk, Any, Request | None]:
        """The request after a provider has said that there is too much; None without a way."""
        begun = self._known_begun()
        before = len(begun.records)
        yield CLOSE
        yield from self._out.write([self._end_call(str(error), None, None)])
        yield from self._compact((yield from self._load()), refused=True)
        if len(begun.records) == before:
            return None
        return (yield from self._plan_call())

    def _compact(self, load: Load, *, refused: bool = False) -> Run:
        begun, room = self._known_begun(), self._room
        assert room is not None  # noqa: S101 - asked for by those who have one
        left = yield from room.make(begun.records, load, self._out, refused=refused)
        if len(left) != len(begun.records) or self._out.written.summary is not None:
            # The provider's own copy holds what has left.
            begun.records, begun.last_response_id = left, None

    # -- tools ---------------------------------------------------------------------------

    def _calls_to_run(self, decoder: Decoder) -> list[ToolCall]:
        """The calls of a whole reply that tools of the window answer."""
        if not self.plan.tools or decoder.finish_reason in ("content_filter", "refusal"):
            return []
        return self._out.tool_calls

    def _run_tools(self, calls: list[ToolCall]) -> Run:
        """Answer *calls*; those that are the caller's to answer stay in ``_calls_left``."""
        self._calls_made += calls
        self._round = tools = ToolRound(calls, self.plan, self._out.keys)
        yield from tools.prepare()
        yield from self._end_reply(tools.opening())
        yield from tools.run(self._out)
        self._roll_over(tools.keys)
        self._round, self._calls_left = None, tools.external

    def _answer_again(self) -> Run:
        """On a resume: deal with outputs that an earlier attempt left unknown."""
        begun = self._known_begun()
        self._round = tools = ToolRound.again(begun.whole, self.plan, self._out.keys)
        if tools is None:
            return
        yield from tools.prepare()
        yield from self._out.write(tools.opening(), boundary=True)
        yield from tools.run(self._out)
        self._round = None
        news = {r.id: r for r in (self._out.written.records[key] for key in tools.keys)}
        begun.records = [news.get(record.id, record) for record in begun.records]
        begun.whole = [news.get(record.id, record) for record in begun.whole]

    def _end_reply(self, opening: list[Operation]) -> Run:
        """Store the end of a reply that the turn goes on from."""
        decoder = self._known_decoder()
        for part in self._out.parts:
            part.settle()
        ended = self._end_call(None, decoder.usage, decoder.finish_reason or "stop")
        yield from self._out.write([*self._out.due(), ended, *opening], boundary=True)
        yield from self._report_usage()
        if not opening:
            self._roll_over([])

    def _roll_over(self, outputs: list[int]) -> None:
        """Make what this reply has brought a part of what the next call sends."""
        begun, closed = self._known_begun(), self._out.written.records
        keys = [part.key for part in self._out.parts if not part.dead] + outputs
        own = [closed[key] for key in keys]
        self._over += keys
        begun.whole += own
        begun.records += [record for record in own if record.live]
        if begun.threaded and not self._spliced:
            begun.last_response_id = self._out.response_id
        self._out.begin([])
        self._before = {}
        self._reads_on = False

    # -- requests ------------------------------------------------------------------------

    def _plan_call(
        self, options: CallOptions | None = None, extra: Sequence[Record] = ()
    ) -> Planned:
        """The request for what is live now, with *extra* records behind it."""
        begun, plan = self._known_begun(), self.plan
        options = options or self._options
        own = [
            text_record(part, begun.context_id, begun.turn_id)
            for part in self._out.parts
            if part.kind == "text" and part.length and not part.dead
        ]
        if not own and not extra:
            yield from self._make_room()
        records = whole = [*begun.records, *own, *extra]
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
        about: dict[str, Any] = {}
        if self._threaded_from is not None:
            about["previous_response_id"] = self._threaded_from
        if plan.hooks.on_call_start:
            call = CallStart(list(records), plan.model.name, begun.turn_id)
            for hook in plan.hooks.on_call_start:
                yield from run_hook("on_call_start", hook, call)
            if call.records != records:
                # What the provider keeps is then not what the database has.
                self._spliced = True
                about["hooks"] = _changes(records, call.records)
            records = call.records
        check_unanswered(plan.model, records)
        # What the provider has of its own is paid for again.
        charged = records if options.previous_response_id is None else whole
        manifest = [record.id for record in records if record.id]
        yield from self._note_call(manifest, charged, about)
        return plan.model.request(records, options)

    def _note_call(
        self, manifest: list[int], charged: Sequence[Record], about: dict[str, Any]
    ) -> Run:
        """Tell the store of the call that is about to be made, what it sends and is charged for."""
        if self._strategy:
            about["resume"] = self._strategy
        recorded = {**self.plan.recorded, **about} if about else self.plan.recorded
        if not self._call_open:
            model = self.plan.model
            provider = model.provider or model.api
            sent = self._tokens_of(charged)
            start = StartCall(provider, model.name, recorded, manifest, sent)
            self._out.noted = ()
            yield from self._out.write([Forget(self._over), start] if self._over else [start])
            self._over = []
        elif manifest != self._manifest or about != self._about:
            progress = Progress(manifest=manifest, sent=self._tokens_of(charged))
            if about != self._about:
                progress.options = recorded
            yield from self._out.write([progress])
        self._call_open = True
        self._sent = False
        self._manifest = manifest
        self._about = about

    def _tokens_of(self, charged: Sequence[Record]) -> int:
        """Tokens of a call that sends *charged*; reading a response again sends nothing."""
        return tokens_known(charged) + self._beside if charged else 0

    # -- one call ------------------------------------------------------------------------

    def _call(self, request: Request) -> Run:
        self._out.decoder = None
        self._out.first_text = None
        request = yield from self._open(request)
        if self._strategy:
            yield from self._out.say(Resumed(self._strategy))
            self._strategy = ""
        self._out.decoder = decoder = self.plan.model.decoder(request)
        self._out.by_number = {}
        self._out.cursor = None if request.starting_after is None else str(request.starting_after)
        try:
            while True:
                events = yield NEXT
                self._out.check_stop()
                if events is None:
                    break
                yield from self._out.batch(events, decoder)
        except (StreamInterrupted, ModelTimeout):
            # What comes after the terminal event cannot spoil a finished reply.
            if self._out.at_reader or not decoder.finished or self.plan.control.stop:
                raise
        yield from self._out.items(decoder.end())
        yield from self._out.flush()
        yield CLOSE

    def _open(self, request: Request) -> Planned:
        attempt = 0
        while True:
            self._out.call_began = self.plan.clock()
            self._sent = True
            try:
                yield OpenCall(request)
                self._out.check_stop()
                return request
            except ModelError as error:
                # Nobody charges for a call that was refused.
                self._sent = error.status is None
                self._out.check_stop()
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
            yield from self._out.say(Retrying(attempt, wait, error=reason))
            yield Sleep(wait)
            self._out.check_stop()

    # -- going on after a drop -----------------------------------------------------------

    def _go_on_after(self, error: StreamInterrupted) -> Planned:
        """End the call that was cut off and plan the one that continues it."""
        decoder = self._out.decoder
        yield CLOSE
        yield from self._out.write([*self._out.due(), self._end_call(str(error), None, None)])
        response_id = decoder.response_id if decoder is not None else None
        return (yield from self._resume("auto", response_id, self._out.cursor))

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
                self._out.adopt([part for part in self._out.parts if part.open])
                yield from self._note_call([], (), {})
                return request
            if strategy == "cursor":
                raise ConfigError(
                    f"turn {self._known_begun().turn_id} cannot resume by cursor: its call was "
                    "not made in background mode, or nothing of it had arrived"
                )
        self._reads_on = False
        yield from self._leave_behind()
        text = next((p for p in reversed(self._out.parts) if p.says_something), None)
        if text is not None and strategy != "regenerate":
            self._spliced = True
            self._out.adopt([text])
            if model.supports_prefill and strategy in ("auto", "prefill"):
                self._strategy = "prefill"
                text.expect_echo(whitespace_only=True)
                return (yield from self._plan_call(replace(self._options, prefill=True)))
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
        dead = [part.record_id for part in self._out.parts if not part.dead and part.record_id]
        for part in self._out.parts:
            part.discard()
        if dead:
            yield from self._out.write([SetLive(dead, False)])
        self._strategy = "regenerate"
        return (yield from self._plan_call())

    def _leave_behind(self) -> Run:
        """Give up reasoning and tool calls: no provider takes them back half done."""
        self._out.adopt([])
        operations: list[Operation] = []
        dead: list[int] = []
        for part in self._out.parts:
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
            yield from self._out.write(operations)

    # -- the end -------------------------------------------------------------------------

    def _outcome(self, decoder: Decoder) -> tuple[TurnState, FinishReason]:
        reason = decoder.finish_reason or "stop"
        if self._calls_left:
            return "awaiting", "tool_calls"
        calls = self._out.tool_calls
        self._calls_made += calls
        if not calls or reason != "tool_calls":
            return "complete", reason
        self._calls_left = calls
        return "awaiting", reason

    def _finish(self, state: TurnState, reason: FinishReason, usage: Usage | None) -> Run:
        """Store the end of the turn, then tell hooks and reader."""
        if self._begun is None:
            return
        if state == "cancelled":
            yield from self._let_go(None)
            operations = self._abandon()
        else:
            for part in self._out.parts:
                part.settle()
            operations = self._out.due()
        called = self._call_open
        if called:
            operations.append(self._end_call(None, usage, reason))
        operations.append(self._end_turn(state, None))
        self._out.written = yield Checkpoint(operations, boundary=True)
        self.reply = reply = self._reply(reason)
        if state == "cancelled":
            yield from self._end_tools()
            yield from self._out.say(Done(reply))
            return
        if called:
            yield from self._report_usage()
        for hook in self.plan.hooks.on_stream_complete:
            tokens = reply.usage.total_tokens
            yield from run_hook("on_stream_complete", hook, reply.text, tokens)
        if self.plan.parse is not None and state == "complete":
            self.reply = reply = replace(reply, parsed=self.plan.parse(reply))
        yield from self._out.say(Done(reply))

    def _report_usage(self) -> Run:
        written = self._out.written
        yield from self._out.say(UsageReport(written.last_usage or Usage(), written.last_cost))

    def _let_go(self, error: BaseException | None) -> Run:
        """Close the connection, and leave the tools that still run to themselves."""
        if self._round is not None:
            finished = yield StopTools(error)
            self._round.take(finished or ())
        yield CLOSE

    def _end_tools(self) -> Run:
        """Tell the reader of tools that were let go."""
        for chunk in self._round.left() if self._round is not None else ():
            yield from self._out.say(chunk)

    def _fail(self, error: BaseException) -> Generator[Effect | StreamChunk, Any, BaseException]:
        """Store what arrived; tell hooks and reader, unless the reader is the one who left.

        Returns:
            What is to be raised: *error*, or what went wrong after it.
        """
        begun = self._begun
        if begun is None:
            return error
        reader_left = self._out.at_reader or not isinstance(error, Exception)
        yield from self._let_go(error)
        if not self._out.written.ended and not isinstance(error, TurnLost):
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
        if isinstance(error, ContextWindowError):
            error.turn_id = begun.turn_id
            error.partial_text = error.partial_text or self._out.text
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
        yield from self._round.left() if self._round is not None else ()
        yield StreamFailed(error)
        return error

    def _store_failure(self, error: BaseException) -> Run:
        """Write the end of a turn that *error* has ended."""
        operations = self._abandon()
        state = self._state_after(error)
        reason = None if state == "cancelled" else _describe(error)
        ended: FinishReason | None = "cancelled" if state == "cancelled" else None
        if self._call_open:
            operations.append(self._end_call(reason, None, ended))
        operations.append(self._end_turn(state, reason))
        self._out.written = yield Checkpoint(operations, boundary=True)

    def _state_after(self, error: BaseException) -> TurnState:
        if not isinstance(error, Exception):
            return "cancelled"
        arrived = any(part.length for part in self._out.parts) or bool(self._known_begun().whole)
        if arrived or isinstance(error, (StreamInterrupted, ModelTimeout)):
            return "interrupted"
        return "failed"

    def _abandon(self) -> list[Operation]:
        """The closings of all records that are open."""
        return self._out.abandon() + ([] if self._round is None else self._round.abandon())

    # -- what is written -----------------------------------------------------------------

    def _end_call(
        self, error: str | None, usage: Usage | None, reason: FinishReason | None
    ) -> EndCall:
        self._call_open = False
        decoder, partial = self._out.decoder, None
        if not self._sent:
            usage = Usage(estimated=True)
        elif usage is None and decoder is not None:
            # Before its end a provider has counted no more than a part.
            usage, partial = (decoder.usage, None) if decoder.finished else (None, decoder.usage)
        parts = self._out.parts
        output = "".join(part.text()[self._before.get(part.key, 0) :] for part in parts)
        self._before = {part.key: part.length for part in parts}
        return EndCall(
            usage,
            partial=partial,
            output=output,
            price=self.plan.price,
            model=None if decoder is None else decoder.model,
            replaces=self._reads_on,
            finish_reason=reason,
            time_to_first_token=self._out.first_text,
            duration=self.plan.clock() - self._out.call_began,
            error=error,
        )

    def _end_turn(self, state: TurnState, error: str | None) -> EndTurn:
        threaded = self._known_begun().threaded and self.plan.model.supports_threading
        holds = threaded and not self._spliced and state in ("complete", "awaiting")
        return EndTurn(
            state,
            error=error,
            threading_id=self._out.response_id if holds else None,
            chain_broken=threaded and not holds,
        )

    def _reply(self, reason: FinishReason) -> Reply:
        begun, written, decoder = self._known_begun(), self._out.written, self._out.decoder
        parts = [part for part in self._out.parts if not part.dead]
        before = [one for one in begun.whole if one.source is RecordType.MODEL_RESPONSE]
        thought = [one.content for one in begun.whole if one.source is RecordType.REASONING]
        outputs = [] if self._round is None else self._round.keys
        keys = [*(part.key for part in parts), *(key for key in outputs if key in written.records)]
        return Reply(
            text="".join(one.content for one in before) + self._out.text,
            reasoning="".join((*thought, *(p.text() for p in parts if p.kind == "reasoning"))),
            refusal="".join(part.text() for part in parts if part.kind == "refusal"),
            tool_calls=self._calls_left or self._calls_made,
            records=[*begun.whole, *(written.records[key] for key in keys)],
            usage=written.usage or Usage(),
            cost=written.cost,
            finish_reason=reason,
            response_id=self._out.response_id,
            turn_id=begun.turn_id,
            model=(decoder.model if decoder is not None else None) or self.plan.model.name,
            time_to_first_token=self._out.first_of_all,
            duration=self.plan.clock() - self._turn_began,
        )

    def _known_begun(self) -> Begun:
        assert self._begun is not None  # noqa: S101 - the first thing a turn does
        return self._begun

    def _known_decoder(self) -> Decoder:
        assert self._out.decoder is not None  # noqa: S101 - set when the call was opened
        return self._out.decoder


def _after_tools(options: CallOptions) -> CallOptions:
    """*options* for the call behind a round of tools: what forces a call would force it again."""
    if options.tool_choice in (None, "auto", "none"):
        return options
    return replace(options, tool_choice=None)


def _estimated(model: Model, records: Sequence[Record], options: CallOptions) -> int:
    """Tokens of the request that *model* would make; 0 where it cannot make it."""
    try:
        return model.estimate(model.request(list(records), options)).tokens
    except ContextWindowError:
        return 0  # the call itself will say what is wrong


def _changes(before: Sequence[Record], after: Sequence[Record]) -> list[str]:
    """What hooks have done to the records of a call: in words, as their ids may be many."""
    old, new = ({one.id: one for one in records} for records in (before, after))
    changed = any(new.get(number, record) != record for number, record in old.items())
    found = {"added": new.keys() - old.keys(), "changed": changed, "left out": old.keys() - new}
    return [what for what, is_so in found.items() if is_so] or ["reordered"]


def _guessed(records: Sequence[Record]) -> int:
    """Tokens of what cannot be counted: pictures, pages and sounds."""
    files = [one for record in records for one in record.attachments]
    return tokens_of([one for one in files if not one.media_type.startswith("text/")])


def _too_many(rounds: int) -> str:
    return (
        f"the model still calls tools after {rounds} rounds of them (max_tool_rounds); what it "
        "said is stored: raise the limit and resume_streaming(), or look at what it is doing"
    )


def _describe(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
