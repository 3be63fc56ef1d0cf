"""A reply while it comes in: its parts, what of them is stored, and what was delivered."""

from __future__ import annotations

import itertools
from collections.abc import Generator, Sequence
from typing import Any

from contextwindow.chunks import StreamChunk, TextDelta, place
from contextwindow.effects import Checkpoint, Effect, OpenRecord, Operation, Progress, Written
from contextwindow.errors import MiddlewareError, ModelError, ModelTimeout
from contextwindow.hooking import Waiting, offer, run_hook, settle
from contextwindow.models.base import Body, Decoder, Delta, Item
from contextwindow.parts import SOURCES, Part
from contextwindow.plan import TurnPlan
from contextwindow.records import ToolCall

Run = Generator["Effect | StreamChunk", Any, None]


class Cancelled(Exception):
    """``cancel()`` was called: the turn ends with what it has."""


class Incoming:
    """What arrives in a turn, on its way past the hooks and the store to the reader.

    All chunks of one network read are committed together, then delivered one by one.

    Attributes:
        keys: gives the turn's numbers for records.
        parts: of the reply under way, in order of their appearance.
        by_number: the parts by the decoder's numbers.
        called: the turn's tool calls by their ids.
        written: what the database knows of the turn.
        decoder: of the call under way, or the last.
        cursor: the provider's position behind what is stored.
        noted: what the store was told of the call last.
        at_reader: whether the reader has a chunk in hand, so that an error is his.
        call_began: when the call was made, by the plan's clock.
        first_text: seconds from there to its first text, or None.
        first_of_all: the same of the first call of the turn that had any.
    """

    def __init__(self, plan: TurnPlan) -> None:
        self._plan = plan
        self.keys = itertools.count()
        self.parts: list[Part] = []
        # Of a reply with thousands of parts: those that something is still to be written of, and
        # those whose record is not known yet.
        self._busy: list[Part] = []
        self._unplaced: list[Part] = []
        self.by_number: dict[int, Part] = {}
        self._adopted: dict[str, Part] = {}
        self.called: dict[str, Part] = {}
        self.written = Written()
        self.decoder: Decoder | None = None
        self.cursor: str | None = None
        self.noted: tuple[object, ...] = ()
        self.at_reader = False
        self.call_began = plan.clock()
        self.first_text: float | None = None
        self.first_of_all: float | None = None
        # Chunks of one network read, and the provider's position behind each.
        self._segment: list[tuple[StreamChunk, Part, int]] = []
        self._cursors: list[str | None] = []
        self._sent = 0
        self._opening: list[Operation] = []

    @property
    def response_id(self) -> str | None:
        """The provider's id of the last response."""
        return None if self.decoder is None else self.decoder.response_id

    @property
    def text(self) -> str:
        """What the reader was shown of the reply under way."""
        return "".join(p.text() for p in self.parts if p.kind == "text" and not p.dead)

    @property
    def tool_calls(self) -> list[ToolCall]:
        """The calls that the reply under way asks for."""
        return [p.tool_call() for p in self.parts if p.kind == "tool_call" and not p.dead]

    def begin(self, parts: list[Part]) -> None:
        """Let a reply begin, with *parts* that it has already."""
        self.parts = parts
        self._busy = list(parts)
        self.by_number = {}
        self._adopted = {}

    def adopt(self, parts: list[Part]) -> None:
        """Let the next call go on with *parts*, by their kinds, and with no others."""
        self._adopted = {part.kind: part for part in parts}
        self._busy += [part for part in parts if part not in self._busy]

    def batch(self, events: list[Any], decoder: Decoder) -> Run:
        """Store and deliver what one network read brought."""
        failure: Exception | None = None
        try:
            yield from self._decoded(events, decoder)
        except ModelError as error:
            if self.at_reader:
                raise
            failure = self._plan.model.without_secrets(error)
            # What the provider said, key and all, is not for the locals of a traceback.
            events.clear()
        except MiddlewareError as error:
            if self.at_reader:
                raise
            failure = error
        yield from self.flush()
        self.cursor = decoder.cursor
        if failure is not None:
            raise failure

    def _decoded(self, events: list[Any], decoder: Decoder) -> Run:
        """Take the items of *events*."""
        if type(events[0]) is Body:
            yield from self.items(decoder.feed_body(events[0].json))
            return
        feed = decoder.feed
        by_number = self.by_number
        for event in events:
            for item in feed(event):
                part = by_number.get(item.part)
                if part is not None and type(item) is Delta and part.plain:
                    part.received(item.text)
                    waiting = self._offer(part, item.text)
                    if waiting is not None:
                        yield from self._settle(part, item.text, waiting)
                else:
                    yield from self.items((item,))

    def items(self, items: Sequence[Item]) -> Run:
        """Take *items* of the decoder; ``flush`` delivers them."""
        for item in items:
            part = self.by_number.get(item.part)
            if part is None:
                if type(item) is Delta and not item.text and item.kind != "tool_call":
                    continue
                part = yield from self._open_part(item)
            elif not part.open:
                continue  # its end was the last of it, whatever a server says behind it
            if type(item) is Delta:
                part.named(item.call_id, item.name)
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
                part.end(item, self._plan.model.api)  # type: ignore[arg-type]

    def _open_part(self, item: Item) -> Generator[Effect | StreamChunk, Any, Part]:
        """The part that an item of a new number belongs to."""
        yield from self.flush()
        part = self._adopted.pop(item.kind, None)
        if part is None:
            part = Part(next(self.keys), item.kind, item.call_id, item.name)
            if item.kind == "tool_call":
                self._tell_apart(part)
            source = SOURCES[item.kind]
            names = {"call_id": part.call_id or None, "name": part.name or None}
            self._opening.append(OpenRecord(part.key, source, **names))  # type: ignore[arg-type]
            self.parts.append(part)
            self._busy.append(part)
            self._unplaced.append(part)
            if self._plan.hooks.on_stream_chunk:
                # A hook is shown chunks that know their record.
                yield from self.write(self.due())
        self.by_number[item.part] = part
        return part

    def _tell_apart(self, part: Part) -> None:
        """See to it that no two calls of a turn have one id: servers repeat ids, or give none."""
        asked = self.called.get(part.call_id)
        if not part.call_id or (asked is not None and not asked.dead):
            part.rename()
        self.called[part.call_id] = part

    def flush(self) -> Run:
        """Commit what the segment holds, then deliver it."""
        segment = self._segment
        if not segment:
            return
        operations = self.due()
        operations += [part.take() for part in self._busy if part.fresh]
        # What nobody is shown may wait a little for the end, and cost one transaction with it.
        self.written = yield Checkpoint(operations, relaxed=self._plan.unwatched)
        self._place_segment()
        control = self._plan.control
        self.at_reader = True
        for chunk, _, _ in segment:
            self._sent += 1
            yield chunk
            if control.stop:
                break
        self.at_reader = False
        self.check_stop()
        self.cursor = self._cursors[-1]
        segment.clear()
        self._cursors.clear()
        self._sent = 0

    def _place_segment(self) -> None:
        """Tell the chunks of a record that was just written which one it is."""
        segment = self._segment
        part = segment[-1][1]
        if not part.record_id and part.key in self.written.ids:
            part.record_id = self.written.ids[part.key]
            for chunk, _, _ in segment:
                place(chunk, part.record_id)
        if self.first_text is None and any(type(one[0]) is TextDelta for one in segment):
            self.first_text = self._plan.clock() - self.call_began
            if self.first_of_all is None:
                self.first_of_all = self.first_text

    def write(self, operations: list[Operation], *, boundary: bool = False) -> Run:
        """Commit *operations*."""
        self.written = yield Checkpoint(operations, boundary=boundary)
        ids = self.written.ids
        for part in self._unplaced:
            part.record_id = part.record_id or ids.get(part.key, 0)
        self._unplaced = [part for part in self._unplaced if not part.record_id]

    def due(self) -> list[Operation]:
        """Closings of parts that are whole and delivered, openings, and news of the call."""
        busy = self._busy
        operations: list[Operation] = [
            part.close(self.response_id) for part in busy if part.ended and not part.fresh
        ]
        if operations:
            self._busy = [part for part in busy if part.open or part.ended or part.fresh]
        operations += self._opening
        self._opening = []
        decoder = self.decoder
        if decoder is not None:
            # Never beyond what the same transaction stores: the event under way is not in yet.
            at = self._cursors[-1] if self._cursors else self.cursor
            # Anthropic says at once how much it has read.
            given = decoder.usage
            sent = None if given is None else given.input_tokens or None
            news = (decoder.response_id, at, decoder.model, sent)
            if news != self.noted:
                self.noted = news
                operations.append(Progress(*news[:3], sent=sent))
        return operations

    def offer_chunk(self, chunk: StreamChunk) -> Run:
        """Deliver a chunk that belongs to no record, as the hooks leave it."""
        hooks = self._plan.hooks.on_stream_chunk
        waiting = offer(hooks, chunk)
        if waiting is not None:
            left = yield from settle(hooks, waiting)
            if left is None:
                return
            chunk = left
        self.at_reader = True
        yield chunk
        self.at_reader = False
        self.check_stop()

    def say(self, chunk: StreamChunk) -> Run:
        """Deliver a chunk that belongs to no record; hooks see it and cannot change it."""
        for hook in self._plan.hooks.on_stream_chunk:
            yield from run_hook("on_stream_chunk", hook, chunk)
        self.at_reader = True
        yield chunk
        self.at_reader = False
        if not self.written.ended:
            self.check_stop()

    def _offer(self, part: Part, text: str) -> Waiting | None:
        """Show the hooks a chunk that adds *text*, and take it when all let it pass.

        Returns:
            None when that is done; else what a hook had to say: ``_settle`` goes on from there.
        """
        chunk = part.chunk(text)
        waiting = offer(self._plan.hooks.on_stream_chunk, chunk)
        if waiting is None:
            self._take(part, chunk, text)
        return waiting

    def _settle(self, part: Part, text: str, waiting: Waiting) -> Run:
        """Go on with a chunk that a hook wants awaited, replaced or dropped."""
        chunk = yield from settle(self._plan.hooks.on_stream_chunk, waiting)
        if chunk is None:
            part.altered = True
            return
        stored = part.shown(chunk, text)
        part.altered = part.altered or stored != text
        self._take(part, part.placed(chunk, stored), stored)

    def _take(self, part: Part, chunk: StreamChunk, stored: str) -> None:
        part.append(stored)
        self._segment.append((chunk, part, len(stored)))
        self._cursors.append(self.decoder.cursor if self.decoder is not None else None)

    def check_stop(self) -> None:
        """Raise when the stream was cancelled, or its time is over."""
        stop = self._plan.control.stop
        if stop == "cancel":
            raise Cancelled
        if stop == "deadline":
            raise ModelTimeout(
                f"{self._plan.model.name}: the turn did not end within its deadline; what "
                "arrived is stored, resume_streaming() goes on with it"
            )

    def abandon(self) -> list[Operation]:
        """The closings of all parts, at what was delivered of them."""
        inside = bool(self._segment)
        for _, part, size in self._segment[self._sent :]:
            part.length -= size
            part.cut = True
        del self._segment[self._sent :]
        if self._sent:
            self.cursor = self._cursors[self._sent - 1]
        operations = self._opening
        self._opening = []
        for part in self.parts:
            # A checkpoint that was refused may have held its closing.
            closed = part.key in self.written.records
            whole = part.ended or not (part.open or closed)
            # Inside a segment the end of a part may lie beyond what was delivered.
            if whole and not (part.cut or part.dead or inside):
                operations.append(part.close(self.response_id))
            elif part.open or whole:
                operations.append(part.close_partial())
        if self.decoder is not None:
            # A second time, when the first ending was refused, it must come to the same.
            del self._cursors[self._sent :]
            decoder = self.decoder
            operations.append(Progress(decoder.response_id, self.cursor, decoder.model))
        return operations
