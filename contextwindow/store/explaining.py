"""Telling of each record of a context why a call sent it, or did not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, Literal

import sqlalchemy as sa

from contextwindow.errors import ContextNotFound
from contextwindow.records import Call, Record, RecordType
from contextwindow.store import compacting, conversations, reading
from contextwindow.store.compacting import CompactionEvent
from contextwindow.store.connection import Connection
from contextwindow.store.rows import from_ranges
from contextwindow.store.schema import calls, turns
from contextwindow.store.statement import Statement
from contextwindow.store.values import load_json

_bind = sa.bindparam

Reason = Literal[
    "sent",
    "summary",
    "hook",
    "threaded",
    "foreign_reasoning",
    "compacted",
    "superseded",
    "discarded",
    "taken_out",
    "copied",
    "later",
    "meanwhile",
    "read_on",
    "beside",
    "unknown",
]

# Manifests stay as they are stored: those of a long conversation are many and long.
_EARLIER: Final = Statement(
    sa.select(calls.c.response_id, calls.c.manifest, calls.c.options)
    .where(
        calls.c.turn_id.in_(sa.select(turns.c.id).where(turns.c.context_id == _bind("context_id")))
    )
    .where(calls.c.id < _bind("call_id"))
    .where(calls.c.response_id.is_not(None))
    .order_by(calls.c.id)
)

TAKES_BACK: Final = {
    "openai": "openai-responses",
    "anthropic": "anthropic",
    "google": "gemini",
}
"""The API, by provider, that is sent reasoning, if it came from itself; of others it is not known.
A test holds it against the adapters."""

_OF_A_REPLY: Final = frozenset(
    {
        RecordType.MODEL_RESPONSE,
        RecordType.REASONING,
        RecordType.TOOL_CALL,
        RecordType.TOOL_OUTPUT,
    }
)

_WHY: Final = {
    "trigger": "the window was full",
    "too long": "the provider said that there was too much",
    "asked": "compact() or accept_summary() was called",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """Why a call sent a record, or did not, as far as the database can tell.

    Attributes:
        sent: whether the record was part of the request.
        reason: of those that were sent ``"sent"``, ``"summary"`` (it stands for others that had
            left) or ``"hook"`` (it was not in the window; a hook added it).  Of the others:
            ``"threaded"`` (the provider had it already), ``"foreign_reasoning"`` (of another
            provider, or such as none takes back), ``"compacted"``, ``"superseded"`` (a later
            system prompt took its place), ``"discarded"`` (unfinished, or replaced by another
            attempt), ``"taken_out"`` (by hand), ``"copied"`` (it was not live in what this context
            was copied from, or was taken out since), ``"later"`` (written after the call began),
            ``"meanwhile"`` (written after its turn began), ``"hook"`` (a hook left it out),
            ``"read_on"`` (nothing was sent: the call read on where a reply had stopped),
            ``"beside"`` (nothing of the conversation as such was: it wrote a summary) or
            ``"unknown"``.
        text: the same for people, in one line.
        compaction: when it left the window, where it was compacted.
    """

    record: Record
    sent: bool
    reason: Reason
    text: str
    compaction: CompactionEvent | None = None


def explain(connection: Connection, context_id: str, call_id: int) -> list[Explanation]:
    """Why each record of a context was part of a call or not, in the order of the records.

    Raises:
        ConfigError: the context has no such call.
        ContextNotFound: the context was deleted.
        RecordCorrupt: a record was damaged.
    """
    call = reading.call(connection, context_id, call_id)
    context = conversations.by_id(connection, context_id)
    if context is None:
        raise ContextNotFound(f"context {context_id} was deleted")
    facts = _Facts(
        call,
        reading.page(connection, context_id, None, None),
        compacting.events(connection, context_id),
        reading.calls_of(connection, context_id, call.turn_id),
        context.start_time,
    )
    if facts.previous is not None:
        rows = _EARLIER.all(connection, context_id=context_id, call_id=call.id)
        facts.follow_chain(rows)
    return [facts.explain(record) for record in facts.records]


class _Facts:
    """What is known of one call.

    Args:
        records: of its context, in order.
        events: the compactions of its context, oldest first.
        siblings: the calls of its turn, itself included, oldest first.
        made: when the context was.
    """

    def __init__(
        self,
        call: Call,
        records: list[Record],
        events: list[CompactionEvent],
        siblings: list[Call],
        made: datetime,
    ) -> None:
        self.call = call
        self.records = records
        self.previous: str | None = call.options.get("previous_response_id")
        self._hooks: Sequence[str] = call.options.get("hooks", ())
        self._sent = set(call.manifest)
        self._places = {record.id: at for at, record in enumerate(records)}
        self._began = siblings[0].started
        before = [one for one in siblings if one.id <= call.id]
        self._resumed = any("resume" in one.options for one in before)
        self._next = next((one.started for one in siblings if one.id > call.id), None)
        self._made = made
        self._events = [event for event in events if self._is_before(event)]
        self._gone: dict[int, CompactionEvent] = {}
        for event in self._events:
            self._gone.update(dict.fromkeys(event.removed, event))
        self._summaries = {event.summary_id: event for event in self._events}
        # What the provider has in its own copy, and the place up to which that is not known.
        self._kept: set[int] = set()
        self._kept_until = -1

    def follow_chain(self, earlier: list[tuple[Any, ...]]) -> None:
        """Find out what the provider had in the response that the call went on from.

        Args:
            earlier: response id, manifest and options of the calls before it, oldest first.
        """
        known = {row[0]: row for row in earlier}
        answers: set[str] = set()
        link = self.previous
        while link is not None and link not in answers:
            answers.add(link)
            if link not in known:
                # The context was copied, its calls were not.
                places = [at for at, one in enumerate(self.records) if one.response_id == link]
                self._kept_until = max(places, default=-1)
                break
            _, manifest, options = known[link]
            self._kept.update(from_ranges(load_json(manifest)))
            link = load_json(options).get("previous_response_id")
        self._kept.update(one.id for one in self.records if one.response_id in answers)

    def explain(self, record: Record) -> Explanation:
        """Why *record* was sent, or was not."""
        event = self._gone.get(record.id)
        if record.id in self._sent:
            return self._explain_sent(record, event)
        reason, text = self._reason(record, event)
        return Explanation(
            record=record,
            sent=False,
            reason=reason,
            text=text,
            compaction=event if reason == "compacted" else None,
        )

    def _explain_sent(self, record: Record, event: CompactionEvent | None) -> Explanation:
        reason: Reason = "sent"
        text = "sent"
        stands_for = self._summaries.get(record.id)
        if record.source is RecordType.REASONING and not self._takes_back(record):
            reason, text = "foreign_reasoning", "left out: the provider takes back only its own"
        elif self._had_left(record, event) and "added" in self._hooks:
            reason, text = "hook", "sent: it had left the window, and a hook added it"
        elif stands_for is not None:
            reason = "summary"
            text = f"sent: it stands for what left with compaction {stands_for.id}"
        elif "changed" in self._hooks:
            text = "sent; hooks changed what some of the records said"
        sent = reason != "foreign_reasoning"
        return Explanation(record=record, sent=sent, reason=reason, text=text)

    def _reason(self, record: Record, event: CompactionEvent | None) -> tuple[Reason, str]:
        """Why *record*, which is not in the manifest, is not."""
        call = self.call
        if call.options.get("purpose"):
            return "beside", "the call stood beside the conversation: it wrote a summary"
        if call.options.get("resume") == "cursor" and not call.manifest:
            return "read_on", "nothing was sent: the call read on where the reply had stopped"
        if record.timestamp > call.started and event is None:
            came = record.turn_id == call.turn_id
            return "later", "what came of the call" if came else "written after the call began"
        if event is not None:
            return "compacted", _compacted(event)
        if record.id in self._kept or (record.live and self._places[record.id] <= self._kept_until):
            return "threaded", f"not sent again: the provider had it in response {self.previous}"
        if record.source is RecordType.SYSTEM_PROMPT and (newer := self._newer_prompt(record)):
            return "superseded", f"record {newer.id} took its place as system prompt"
        # A turn that was resumed has looked anew at what was live.
        looked = record.live or not self._resumed
        if looked and record.turn_id != call.turn_id and record.timestamp > self._began:
            return "meanwhile", "written while the turn ran, which sends what was there before"
        return self._by_state(record)

    def _by_state(self, record: Record) -> tuple[Reason, str]:
        """What can be told from what *record* is now."""
        if record.live:
            if "left out" in self._hooks:
                return "hook", "a hook left it out"
            return "unknown", "out (it is not known why)"
        unfinished = record.partial_response_id is not None or record.accumulated_tokens is not None
        if unfinished and record.source in _OF_A_REPLY:
            return "discarded", "unfinished, or replaced by another attempt at the reply"
        if record.timestamp < self._made:
            return "copied", "not live since this context was copied, or taken out by hand since"
        if "left out" in self._hooks:
            return "taken_out", "taken out by hand (set_live), or left out by a hook"
        return "taken_out", "taken out by hand (set_live)"

    def _is_before(self, event: CompactionEvent) -> bool:
        """Whether *event* was over when the call was sent."""
        if event.time <= self.call.started:
            return True
        # A turn's first call is noted when it begins, before it makes room.  One that makes room
        # sends all there is: its provider's own copy is of no use any more.
        ours = event.turn_id == self.call.turn_id and self.previous is None
        return ours and (self._next is None or event.time <= self._next)

    def _had_left(self, record: Record, event: CompactionEvent | None) -> bool:
        early = event is not None and event.time <= self.call.started
        return early and not record.live

    def _newer_prompt(self, record: Record) -> Record | None:
        """The system prompt that stood in the place of *record* when the call was made."""
        later = self.records[self._places[record.id] + 1 :]
        found = [
            one
            for one in later
            if one.source is RecordType.SYSTEM_PROMPT and one.timestamp <= self.call.started
        ]
        return found[-1] if found else None

    def _takes_back(self, record: Record) -> bool:
        """Whether the provider of the call is sent the reasoning *record*."""
        wanted = TAKES_BACK.get(self.call.provider)
        return wanted is None or (record.payload or {}).get("api") == wanted


def _compacted(event: CompactionEvent) -> str:
    how = ", ".join(event.strategies) or "compaction"
    text = (
        f"left the window: {how}, {event.time:%Y-%m-%d %H:%M:%S} UTC, as "
        f"{_WHY.get(event.reason, event.reason)} (compaction {event.id})"
    )
    if event.summary_id is None:
        return text
    return f"{text}; record {event.summary_id} sums up what left"
