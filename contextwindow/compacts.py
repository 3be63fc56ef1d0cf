"""Making room in a window because somebody asks for it, outside of any turn."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from decimal import Decimal

from contextwindow.compaction import (
    AROUND,
    CompactionResult,
    NoSummary,
    Outcome,
    Room,
    Summarize,
    SummaryResult,
    carry_out,
    size_of,
    units_of,
)
from contextwindow.effects import Ask, Compact
from contextwindow.errors import ConfigError, ModelError
from contextwindow.making_room import accounted, noted
from contextwindow.models import catalog
from contextwindow.models.base import Model
from contextwindow.records import Record, Reply, Usage
from contextwindow.store import compacting, reading
from contextwindow.store.store import Store
from contextwindow.tokens import quick_tokens

_EVERYTHING = 1 << 60


@dataclass(slots=True)
class Squeeze:
    """The compaction of one context, as a window has it done.

    Its generators yield what is to be asked and are sent the replies, so that they serve windows
    that block and those that do not.

    Attributes:
        model: what the window calls, for the cost of its next call; None without one.
    """

    store: Store
    context_id: str
    room: Room
    model: Model | None

    def compact(self) -> Generator[Ask, Reply, CompactionResult]:
        """Take out what the window's compaction chooses, however full it is.

        Raises:
            ConfigError: a record that was chosen has left meanwhile; nothing was changed.
        """
        records = self._records()
        before = size_of(records)
        work = carry_out(self.room, records, before, self.room.goal(before))
        outcome = yield from work
        done = noted(outcome, "asked")
        summary = None
        if outcome.gone:
            try:
                summary = compacting.apply(self.store.database, self.context_id, done)
            except BaseException:
                compacting.account_apart(self.store.database, self.context_id, done.spent)
                raise
            self.store.wakeups.committed(self.context_id)
        else:
            compacting.account_apart(self.store.database, self.context_id, done.spent)
        usage, cost = _together(outcome.replies)
        return self._result(records, outcome, summary, usage, cost, dry_run=False)

    def dry_run(self) -> CompactionResult:
        """What ``compact`` would do, without asking anybody."""
        records = self._records()
        before = size_of(records)
        excess = before - self.room.goal(before)
        outcome = Outcome(before, before)
        units, usage, cost = units_of(records), Usage(), Decimal(0)
        known: Decimal | None = cost
        for step in self.room.compaction.steps:
            chosen = step.choose(units, excess) if excess > 0 else []
            if not chosen:
                continue
            outcome.take_out(type(step).__name__, chosen)
            if isinstance(step, Summarize):
                outcome.tokens_after += step.max_tokens + AROUND
                usage = Usage(size_of(chosen), step.max_tokens, estimated=True)
                known = self._price(self.room.summarizer, usage)
            gone = {record.id for record in outcome.gone}
            units = units_of([record for record in records if record.id not in gone])
            excess = outcome.tokens_after - self.room.goal(before)
        return self._result(records, outcome, None, usage, known, dry_run=True)

    def summarize(self) -> Generator[Ask, Reply, SummaryResult]:
        """A summary of all but the newest records, which nobody has accepted yet.

        Raises:
            ConfigError: there is nothing to summarise, or nobody who could.
            ModelError: the summarizer failed, or wrote nothing of use; what it used is counted.
        """
        steps = [one for one in self.room.compaction.steps if isinstance(one, Summarize)]
        step = steps[0] if steps else Summarize()
        records = self._records()
        chosen = step.choose(units_of(records), _EVERYTHING)
        if self.room.summarizer is None:
            raise ConfigError("nobody can summarise: pass summarizer= or model=, or set_summarizer")
        if not chosen:
            raise ConfigError(
                f"there is nothing to summarise: all {len(records)} live records are pinned, "
                f"unfinished, or among the last {step.keep_last}"
            )
        before = size_of(records)
        outcome = Outcome(before, before)
        try:
            text = yield from step.write(self.room, chosen, outcome)
        except NoSummary as reason:
            raise ModelError(str(reason)) from None
        finally:
            asides = [accounted(model, reply) for model, reply in outcome.replies]
            compacting.account_apart(self.store.database, self.context_id, asides)
        usage, cost = _together(outcome.replies)
        after = before - size_of(chosen) + quick_tokens(text) + AROUND
        return SummaryResult(
            text=text,
            context_id=self.context_id,
            records=chosen,
            tokens_before=before,
            tokens_after=after,
            usage=usage,
            cost=cost,
        )

    def accept(self, result: SummaryResult) -> Record:
        """Put a summary in the place of what it stands for.

        Raises:
            ConfigError: it is of another context, or one of its records has left meanwhile.
        """
        if not isinstance(result, SummaryResult):
            raise ConfigError(f"accept_summary takes a SummaryResult, not {result!r:.60}")
        if result.context_id != self.context_id:
            raise ConfigError(
                "this summary is of another context; switch_context() to it, or make a new one"
            )
        done = Compact(
            "asked",
            ["Summarize"],
            [record.id for record in result.records],
            result.tokens_before,
            result.tokens_after,
            result.text,
            result.records[0].id,
        )
        summary = compacting.apply(self.store.database, self.context_id, done)
        self.store.wakeups.committed(self.context_id)
        assert summary is not None  # noqa: S101 - there was a text
        return summary

    # -- inside --------------------------------------------------------------------------

    def _records(self) -> list[Record]:
        with self.store.database.read() as connection:
            return reading.live_records(connection, self.context_id)

    def _price(self, model: Model | None, usage: Usage) -> Decimal | None:
        return None if model is None else catalog.CallPrices(model)(usage)

    def _result(
        self,
        records: Sequence[Record],
        outcome: Outcome,
        summary: Record | None,
        usage: Usage,
        cost: Decimal | None,
        *,
        dry_run: bool,
    ) -> CompactionResult:
        gone = {record.id for record in outcome.gone}
        first = next((at for at, one in enumerate(records) if one.id in gone), len(records))
        before, after = outcome.tokens_before, outcome.tokens_after
        cached = size_of(records[:first])
        return CompactionResult(
            removed=outcome.gone,
            strategies=list(dict.fromkeys(outcome.strategies)),
            summary=summary,
            tokens_before=before,
            tokens_after=after,
            cached_tokens=cached,
            usage=usage,
            cost=cost,
            next_cost_before=self._price(self.model, Usage(before, cache_read_tokens=before)),
            next_cost_after=self._price(self.model, Usage(after, cache_read_tokens=cached)),
            problems=outcome.problems,
            dry_run=dry_run,
        )


def _together(replies: Sequence[tuple[Model, Reply]]) -> tuple[Usage, Decimal | None]:
    usage = sum((reply.usage for _, reply in replies), Usage())
    costs = [reply.cost for _, reply in replies if reply.cost is not None]
    return usage, sum(costs, Decimal(0)) if len(costs) == len(replies) else None
