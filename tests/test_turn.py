"""The turn by hand: no event loop, no database; every effect and every chunk may fail."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from contextwindow.chunks import Done, StreamChunk, StreamFailed, TextDelta
from contextwindow.effects import (
    CLOSE,
    NEXT,
    BeginTurn,
    Begun,
    Checkpoint,
    CloseRecord,
    EndTurn,
    OpenCall,
    OpenRecord,
    Sleep,
    Written,
)
from contextwindow.errors import ModelTimeout, RateLimited, StreamInterrupted
from contextwindow.middleware import Hooks, Middleware, bind
from contextwindow.models.base import Body, Decoder, Delta, Item, PartEnd, Request
from contextwindow.plan import TurnPlan
from contextwindow.records import Record, Usage
from contextwindow.testing import ScriptedModel
from contextwindow.turn import TurnRun

READS: list[list[Any]] = [
    ["The ", "cat "],
    ["sat "],
    ["on ", "the ", "mat", "."],
    ["END"],
]
WORDS = [word for read in READS for word in read if word != "END"]


class WordDecoder(Decoder):
    """Every str is a piece of text; END is the terminal event."""

    def feed(self, event: Any) -> Sequence[Item]:
        if event == "END":
            self.finished = True
            self.usage = Usage(3, 7)
            return [PartEnd("text", 0)]
        return [Delta("text", 0, event)]

    def feed_body(self, body: Any) -> Sequence[Item]:
        self.finished = True
        return [PartEnd("text", 0, body)]

    def end(self) -> Sequence[Item]:
        if not self.finished:
            raise StreamInterrupted("no terminal event")
        return []


class WordModel(ScriptedModel):
    """A model whose decoder reads plain words; the test plays its connection."""

    def decoder(self, request: Request) -> Decoder:
        return WordDecoder()


class Hand:
    """Answers a turn's effects, and fails where it is told to."""

    def __init__(self, *, hooks: Hooks | None = None, **plan: Any) -> None:
        self.plan = TurnPlan(plan.pop("options", None) or _options(), "turn-1", **plan)
        self.plan.model = WordModel(["unused"], name="words")
        self.plan.hooks = hooks or Hooks()
        self.plan.price = lambda usage, model: None
        self.turn = TurnRun(self.plan)
        self.reads = [list(read) for read in READS]
        self.written = Written()
        self.operations: list[Any] = []
        self.effects: list[str] = []
        self.delivered: list[StreamChunk] = []
        self.checkpoints = 0

    @property
    def text(self) -> str:
        """What the reader was given."""
        return "".join(chunk.delta for chunk in self.delivered)

    @property
    def closings(self) -> dict[int, CloseRecord]:
        """How each record was closed at last."""
        return {one.key: one for one in self.operations if type(one) is CloseRecord}

    @property
    def state(self) -> str:
        """How the turn ended."""
        return next(one.state for one in self.operations if type(one) is EndTurn)

    def run(self, fail: dict[str, BaseException] | None = None) -> BaseException | None:
        """Play the turn; *fail* maps ``"chunk 3"``, ``"read 1"`` … to what is thrown there."""
        fail = dict(fail or {})
        steps = self.turn.run()
        answer: Any = None
        thrown: BaseException | None = None
        while True:
            try:
                want = steps.throw(thrown) if thrown is not None else steps.send(answer)
            except StopIteration:
                return None
            except BaseException as error:
                return error
            name, answer = self._answer(want)
            thrown = fail.pop(name, None)

    def _answer(self, want: Any) -> tuple[str, Any]:
        if isinstance(want, StreamChunk):
            self.delivered.append(want)
            return f"chunk {len(self.delivered)}", None
        if want is NEXT:
            read = self.reads.pop(0) if self.reads else None
            return f"read {len(READS) - len(self.reads)}", read
        if want is CLOSE:
            self.effects.append("close")
            return "close", None
        if isinstance(want, BeginTurn):
            return "begin", Begun(want.turn_id, "context-1", [])
        if isinstance(want, OpenCall):
            self.effects.append("open")
            return "open", None
        if isinstance(want, Sleep):
            self.effects.append(f"sleep {want.seconds:g}")
            return "sleep", None
        assert isinstance(want, Checkpoint)
        self.checkpoints += 1
        self._write(want)
        return f"checkpoint {self.checkpoints}", self.written

    def _write(self, checkpoint: Checkpoint) -> None:
        for operation in checkpoint.operations:
            self.operations.append(operation)
            if type(operation) is OpenRecord:
                self.written.ids[operation.key] = 100 + operation.key
            elif type(operation) is CloseRecord:
                self.written.records[operation.key] = Record(
                    id=100 + operation.key,
                    context_id="context-1",
                    source=1,  # type: ignore[arg-type]
                    content=operation.content,
                    timestamp=None,  # type: ignore[arg-type]
                )
            elif type(operation) is EndTurn:
                self.written.ended = True
                self.written.usage = self.written.last_usage = Usage(3, 7)


def _options() -> Any:
    from contextwindow.models.base import CallOptions

    return CallOptions()


def test_a_turn_delivers_every_word_and_ends_complete() -> None:
    hand = Hand()

    assert hand.run() is None

    assert hand.text == "".join(WORDS)
    assert hand.delivered[0].type == "stream_start"
    assert isinstance(hand.delivered[-1], Done)
    assert hand.delivered[-1].reply.text == hand.closings[0].content == hand.text
    assert hand.state == "complete"


def test_words_of_one_read_cost_one_checkpoint() -> None:
    hand = Hand()
    hand.run()

    assert hand.checkpoints == len(READS) - 1 + 1  # one a read with text, one for the end


@pytest.mark.parametrize("number", range(1, len(WORDS) + 2))
def test_a_reader_who_leaves_after_any_chunk_finds_exactly_that_stored(number: int) -> None:
    hand = Hand()
    error = hand.run({f"chunk {number}": GeneratorExit()})

    assert isinstance(error, GeneratorExit)
    assert "close" in hand.effects
    assert hand.state == "cancelled"
    assert [chunk.type for chunk in hand.delivered[1:]] == ["text_delta"] * (number - 1)
    stored = hand.closings[0] if hand.closings else None
    assert (stored.content if stored else "") == hand.text
    assert stored is None or stored.partial


@pytest.mark.parametrize("number", range(1, 5))
@pytest.mark.parametrize("error", [StreamInterrupted("cut"), ModelTimeout("slow"), KeyError("x")])
def test_an_error_at_any_read_keeps_every_delivered_chunk(number: int, error: Exception) -> None:
    hand = Hand(max_resumes=0)
    raised = hand.run({f"read {number}": error})

    assert raised is error
    assert "".join(one.content for one in hand.closings.values()) == hand.text
    assert isinstance(hand.delivered[-1], StreamFailed)
    assert sum(chunk.done for chunk in hand.delivered) == 1
    expected = "failed" if isinstance(error, KeyError) and not hand.text else "interrupted"
    assert hand.state == expected


@pytest.mark.parametrize("number", range(1, 5))
def test_a_failing_checkpoint_delivers_nothing_that_was_not_written(number: int) -> None:
    hand = Hand()
    error = OSError("disk")
    assert hand.run({f"checkpoint {number}": error}) is error

    written = sum(len(read) for read in READS[: number - 1])
    assert hand.text == "".join(WORDS[:written])


def test_cancelling_ends_with_a_reply_of_what_was_delivered() -> None:
    class Stop(Middleware):
        def on_stream_chunk(self, chunk: StreamChunk) -> None:
            if chunk.delta == "sat ":
                hand.plan.control.stop = "cancel"

    hand = Hand(hooks=bind([Stop()]))
    assert hand.run() is None

    last = hand.delivered[-1]
    assert isinstance(last, Done)
    assert last.reply.finish_reason == "cancelled"
    assert last.reply.text == hand.text == hand.closings[0].content
    assert hand.state == "cancelled"


def test_a_deadline_ends_the_turn_as_a_timeout() -> None:
    hand = Hand()
    hand.plan.control.stop = "deadline"
    error = hand.run()

    assert isinstance(error, ModelTimeout)
    assert hand.state in ("failed", "interrupted")


def test_a_call_that_is_refused_for_now_is_made_again_and_says_so() -> None:
    hand = Hand()
    assert hand.run({"open": RateLimited("busy", retry_after=0.25)}) is None

    assert [chunk.type for chunk in hand.delivered[:2]] == ["stream_start", "retrying"]
    assert hand.effects[:3] == ["open", "sleep 0.25", "open"]
    assert hand.text == "".join(WORDS)


def test_a_wait_of_more_than_a_minute_is_not_waited_for() -> None:
    hand = Hand()
    error = RateLimited("come back tomorrow", retry_after=86_400)

    assert hand.run({"open": error}) is error
    assert not any(effect.startswith("sleep") for effect in hand.effects)


def test_a_whole_body_is_one_chunk() -> None:
    hand = Hand()
    hand.reads = [[Body("Hello there")]]
    assert hand.run() is None

    assert [c.delta for c in hand.delivered if isinstance(c, TextDelta)] == ["Hello there"]


def test_a_word_that_a_hook_drops_is_neither_delivered_nor_stored() -> None:
    from contextwindow.middleware import DROP

    class Drop(Middleware):
        def on_stream_chunk(self, chunk: StreamChunk) -> Any:
            return DROP if chunk.delta == "cat " else None

    hand = Hand(hooks=bind([Drop()]))
    hand.run()

    assert hand.text == hand.closings[0].content == "".join(WORDS).replace("cat ", "")
    assert hand.closings[0].payload is None
