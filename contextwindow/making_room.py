"""Making room in the window before a call is made, as a part of a turn."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Final

from contextwindow.chunks import Compacted, StreamChunk
from contextwindow.compaction import Outcome, Room, carry_out
from contextwindow.effects import Aside, Compact, Effect, Work
from contextwindow.errors import ContextLengthExceeded, ModelError
from contextwindow.incoming import Incoming
from contextwindow.models.base import Model
from contextwindow.records import Record, Reply, Usage

_NEAR: Final = 0.4
"""Share of the trigger from which a request is counted as a whole: what providers make of many
small tool calls is 2.2 times what their texts are here, and a short conversation need not spend
it."""

_GROWN: Final = 1.1
"""What was tried in vain is tried again when there is a tenth more: a summary costs money."""


@dataclass(frozen=True, slots=True)
class Load:
    """What a request takes, by what is known of its parts.

    Attributes:
        texts: tokens of its records, as their texts are counted here.
        beside: tokens of tools and the form of the reply.
        scale: tokens that the provider makes of one token of the records.
    """

    texts: int
    beside: int
    scale: float = 1.0

    @property
    def tokens(self) -> int:
        """Tokens that the request takes."""
        return self.of(self.texts)

    def of(self, texts: float) -> int:
        """Tokens that a request takes with other records, of so many *texts*."""
        return round(self.beside + self.scale * texts)

    def texts_for(self, tokens: int) -> int:
        """What the records may have as texts for the request to take *tokens*."""
        return round((tokens - self.beside) / self.scale)


class MakingRoom:
    """Keeps what a turn sends within the window.

    Args:
        room: what the window holds.
        reply: tokens that the caller allows the reply, or None.
    """

    def __init__(self, room: Room, reply: int | None) -> None:
        self._room = room
        self._reply = reply
        # What a compaction of this turn has not reached: it would not reach it again.
        self._in_vain = 0
        self._refused = False

    def look_up(self, tokens: int) -> Generator[Effect, Any, None]:
        """Find out what the window holds, if *tokens* are so many that it matters."""
        if self._room.look_up is not None and self._room.is_close(tokens):
            yield Work(self._room.complete)

    def is_near(self, tokens: int) -> bool:
        """Whether *tokens*, as quickly counted, may be more than they seem to a full window."""
        return tokens >= _NEAR * self._room.trigger

    def wanted(self, tokens: int) -> bool:
        """Whether a call that sends *tokens* is to make room first."""
        return tokens >= self._room.trigger and tokens > self._in_vain * _GROWN

    def refused(self, error: ModelError) -> bool:
        """Whether *error* says that there is too much, for the first time in this turn."""
        first = isinstance(error, ContextLengthExceeded) and not self._refused
        self._refused = self._refused or first
        return first and bool(self._room.compaction.steps)

    def make(
        self, records: Sequence[Record], load: Load, out: Incoming, *, refused: bool = False
    ) -> Generator[Effect | StreamChunk, Any, list[Record]]:
        """Let records leave, write that down and tell the reader.

        Args:
            records: what is live, in order.
            load: what a request with them takes.
            refused: the provider has refused it, so it takes more than was thought.

        Returns:
            What is live then, in order.
        """
        # What leaves is chosen by its text: the goal is told in the same measure.
        goal = load.texts_for(self._room.goal(load.tokens))
        outcome: Outcome = yield from self._carried_out(records, load.texts, goal, out)
        if not outcome.gone:
            self._in_vain = load.tokens
            return list(records)
        outcome.tokens_before = load.tokens
        self._in_vain = outcome.tokens_after = load.of(outcome.tokens_after)
        done = noted(outcome, "too long" if refused else "trigger")
        yield from out.write([done], boundary=True)
        usage, cost = _together(done.spent)
        chunk = Compacted(
            done.reason,
            done.strategies,
            len(done.gone),
            done.before,
            done.after,
            done.summary or "",
            usage,
            cost,
        )
        yield from out.say(chunk)
        return _without(records, outcome, out.written.summary)

    def check_fits(self, tokens: int, guessed: Callable[[], int]) -> None:
        """See that a call can be made.

        Args:
            guessed: how many of *tokens* are no more than a guess, such as those of a PDF: nothing
                is refused for them.

        Raises:
            ContextLengthExceeded: a call that sends *tokens* leaves no room for the reply.
        """
        most = self._room.max_tokens
        kept = self._room.kept_for_reply(self._reply)
        close = most and tokens + kept > most and self._room.is_close(tokens + kept)
        if close and tokens + kept - guessed() > most:
            raise ContextLengthExceeded(
                f"the window is too small for this call: about {tokens} tokens to send and "
                f"{kept} kept for the reply, of {most}; nothing was sent. Shorten the "
                "prompt, unpin or set_live(…, False) what is not needed, allow fewer "
                "max_output_tokens, or set another compaction"
            )

    def _carried_out(
        self, records: Sequence[Record], tokens: int, goal: int, out: Incoming
    ) -> Generator[Effect | StreamChunk, Any, Outcome]:
        """``carry_out``, its questions asked of the driver."""
        work = carry_out(self._room, records, tokens, goal)
        step, answer = work.send, None
        while True:
            try:
                ask = step(answer)  # type: ignore[arg-type]  # None is how a generator begins
            except StopIteration as end:
                return end.value  # type: ignore[no-any-return]  # what the generator returns
            try:
                answer = yield ask
                step = work.send
            except ModelError as error:
                step, answer = work.throw, error  # type: ignore[assignment]
            out.check_stop()


def noted(outcome: Outcome, reason: str) -> Compact:
    """*outcome* for the store."""
    return Compact(
        reason,
        list(dict.fromkeys(outcome.strategies)),
        [record.id for record in outcome.gone],
        outcome.tokens_before,
        outcome.tokens_after,
        outcome.summary,
        _place(outcome),
        [accounted(model, reply) for model, reply in outcome.replies],
    )


def accounted(model: Model, reply: Reply) -> Aside:
    """A *reply* of *model* that belongs to no conversation."""
    return Aside(
        model.provider or model.api,
        reply.model or model.name,
        reply.usage,
        reply.cost,
        reply.finish_reason,
        reply.response_id,
        reply.time_to_first_token,
        reply.duration,
    )


def _place(outcome: Outcome) -> int | None:
    return outcome.summarized[0].id if outcome.summarized else None


def _without(records: Sequence[Record], outcome: Outcome, summary: Record | None) -> list[Record]:
    gone = {record.id for record in outcome.gone}
    place = _place(outcome)
    left: list[Record] = []
    for record in records:
        if summary is not None and record.id == place:
            left.append(summary)
        if record.id not in gone:
            left.append(record)
    return left


def _together(spent: Sequence[Aside]) -> tuple[Usage | None, Decimal | None]:
    if not spent:
        return None, None
    usage = sum((one.usage for one in spent), Usage())
    costs = [one.cost for one in spent if one.cost is not None]
    return usage, sum(costs, Decimal(0)) if len(costs) == len(spent) else None
