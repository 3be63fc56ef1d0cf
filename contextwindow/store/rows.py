"""Rows of the database as values, and values as rows."""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal
from typing import Any, Final

import sqlalchemy as sa

from contextwindow import tokens
from contextwindow.errors import RecordCorrupt, StoreError
from contextwindow.records import (
    Call,
    Context,
    ContextStats,
    Record,
    RecordType,
    Turn,
    Usage,
    defer_tokens,
)
from contextwindow.store.attached import attachments_of
from contextwindow.store.connection import Connection, Damaged
from contextwindow.store.schema import calls, contexts, record_deltas, records, turns
from contextwindow.store.statement import Statement
from contextwindow.store.values import load_json, matches, parse_time

_PICO: Final = Decimal(10) ** 12

_FREE: Final = Decimal(0)

_UNUSED: Final = Usage()

_TYPES: Final = {kind.value: kind for kind in RecordType}

RECORD_COLUMNS: Final = (
    records.c.id,
    records.c.context_id,
    records.c.ts,
    records.c.source,
    records.c.content,
    records.c.live,
    records.c.est_tokens,
    records.c.response_id,
    records.c.streamed,
    records.c.partial_response_id,
    records.c.accumulated_tokens,
    records.c.seq,
    records.c.turn_id,
    records.c.call_id,
    records.c.name,
    records.c.payload,
    records.c.checksum,
    records.c.pinned,
    records.c.error,
    records.c.uncounted,
    records.c.attached,
)

CONTEXT_COLUMNS: Final = (
    contexts.c.id,
    contexts.c.name,
    contexts.c.start_time,
    contexts.c.use_server_side_threading,
    contexts.c.last_response_id,
    contexts.c.max_tokens,
    contexts.c.parent_context_id,
    contexts.c.metadata,
)

STATS_COLUMNS: Final = (
    contexts.c.id,
    contexts.c.name,
    contexts.c.live_tokens,
    contexts.c.record_count,
    contexts.c.live_count,
    contexts.c.last_activity,
    contexts.c.start_time,
    contexts.c.calls,
    contexts.c.input_tokens,
    contexts.c.output_tokens,
    contexts.c.cache_read_tokens,
    contexts.c.cache_write_tokens,
    contexts.c.reasoning_tokens,
    contexts.c.estimated_calls,
    contexts.c.unpriced_calls,
    contexts.c.cost_pico,
)

TURN_COLUMNS: Final = (
    turns.c.id,
    turns.c.context_id,
    turns.c.state,
    turns.c.started,
    turns.c.ended,
    turns.c.owner,
    turns.c.epoch,
    turns.c.error,
)

CALL_COLUMNS: Final = (
    calls.c.id,
    calls.c.turn_id,
    calls.c.context_id,
    calls.c.provider,
    calls.c.model,
    calls.c.started,
    calls.c.response_id,
    calls.c.cursor,
    calls.c.finish_reason,
    calls.c.cost,
    calls.c.ttft,
    calls.c.duration,
    calls.c.error,
    calls.c.manifest,
    calls.c.options,
    calls.c.input_tokens,
    calls.c.output_tokens,
    calls.c.cache_read_tokens,
    calls.c.cache_write_tokens,
    calls.c.reasoning_tokens,
    calls.c.usage_estimated,
)

_DELTAS = Statement(
    sa.select(record_deltas.c.idx, record_deltas.c.delta)
    .where(record_deltas.c.record_id == sa.bindparam("record_id"))
    .order_by(record_deltas.c.idx)
)


LIVE_ORDER: Final = (records.c.position + 0, records.c.seq + 0)
"""Order of the live records.  The sums keep SQLite from walking through all records of a context
in order to sort the few that are live."""

LIVE: Final = Statement(
    sa.select(*RECORD_COLUMNS)
    .where(records.c.context_id == sa.bindparam("context_id"))
    .where(records.c.live)
    .order_by(*LIVE_ORDER)
)


def unfolded(connection: Connection, record_id: int) -> str:
    """Text of a record that has arrived and is not folded into its content yet.

    Raises:
        RecordCorrupt: a piece of it is missing, or is not text any more.
    """
    return joined(connection, record_id, _DELTAS.all(connection, record_id=record_id))


def joined(
    connection: Connection, record_id: int, deltas: list[tuple[Any, ...]], first: int = 0
) -> str:
    """The text of rows of number and delta.

    Args:
        first: number that the first of them must have.

    Raises:
        RecordCorrupt: a piece of it is missing, or is not text any more.
    """
    for number, row in enumerate(deltas, first):
        if row[0] != number or type(row[1]) is not str or type(row) is Damaged:
            raise corrupt(connection, record_id)
    return "".join(row[1] for row in deltas)


def whole_text(
    connection: Connection, record_id: int, content: str, payload: str | None, crc: int | None
) -> str:
    """Text of a record whose columns are given, with what is not folded into it yet.

    Raises:
        RecordCorrupt: any of it is damaged.
    """
    if not matches(content, payload, crc):
        raise corrupt(connection, record_id)
    return content + unfolded(connection, record_id)


def corrupt(connection: Connection, record_id: int) -> RecordCorrupt:
    """The error that names a damaged record."""
    return RecordCorrupt(
        f"record {record_id} of {connection.location} does not match its checksum, or cannot be "
        "read: it was damaged on the disk; restore the database from a backup, or take the "
        f"record out with set_live([{record_id}], False)",
        record_id=record_id,
    )


def to_record(connection: Connection, row: tuple[Any, ...]) -> Record:
    """The record of a row of ``RECORD_COLUMNS``, unfolded text and attachments included.

    Raises:
        RecordCorrupt: content, payload or attachments do not match their checksums, or the row
            cannot be read.
    """
    content, payload = row[4], row[15]
    damaged = type(row) is Damaged or bytes in map(type, row)
    if damaged or not matches(content, payload, row[16]):
        raise corrupt(connection, row[0])
    try:
        source, timestamp = _TYPES[row[3]], parse_time(row[2])
        data = None if payload is None else load_json(payload)
    except (AttributeError, KeyError, StoreError, TypeError) as error:
        raise corrupt(connection, row[0]) from error
    accumulated = row[10]
    if row[9] is not None:
        content += unfolded(connection, row[0])
        if accumulated is None:
            accumulated = tokens.estimate_tokens(content)
    record = Record(
        id=row[0],
        context_id=row[1],
        timestamp=timestamp,
        source=source,
        content=content,
        live=bool(row[5]),
        est_tokens=row[6],
        response_id=row[7],
        streamed=bool(row[8]),
        partial_response_id=row[9],
        accumulated_tokens=accumulated,
        seq=row[11],
        turn_id=row[12],
        call_id=row[13],
        name=row[14],
        payload=data,
        pinned=bool(row[17]),
        error=bool(row[18]),
        attachments=attachments_of(connection, row[0], row[20]) if row[20] else (),
    )
    return defer_tokens(record) if row[19] else record


def to_context(row: tuple[Any, ...]) -> Context:
    """The context of a row of ``CONTEXT_COLUMNS``."""
    return Context(
        id=row[0],
        name=row[1],
        start_time=parse_time(row[2]),
        use_server_side_threading=bool(row[3]),
        last_response_id=row[4],
        max_tokens=row[5],
        parent_context_id=row[6],
        metadata=None if row[7] is None else load_json(row[7]),
    )


def to_stats(row: tuple[Any, ...]) -> ContextStats:
    """The figures of a row of ``STATS_COLUMNS``."""
    # Unpacked at once, which is quicker than slices: a list has thousands of them.
    (id_, name, tokens, count, live, last, start, calls, sent, received, read, written, reasoning,
     estimated, unpriced, pico) = row  # fmt: skip
    usage = _UNUSED
    cost: Decimal | None = _FREE
    if calls:
        used = _Used(sent, received, read, written, reasoning, bool(estimated))
        used.__class__ = Usage  # type: ignore[assignment]  # the same slots, now frozen
        usage = used  # type: ignore[assignment]  # it is one now
        cost = known_cost(pico, unpriced)
    figures = _Figures(
        id_,
        name,
        tokens,
        count,
        live,
        None if last is None else parse_time(last),
        parse_time(start),
        calls,
        usage,
        cost,
        unpriced,
    )
    figures.__class__ = ContextStats  # type: ignore[assignment]  # the same slots, now frozen
    return figures  # type: ignore[return-value]


def to_turn(
    row: tuple[Any, ...],
    partial_text: str = "",
    usage: Usage | None = None,
    cost: Decimal | None = None,
) -> Turn:
    """The turn of a row of ``TURN_COLUMNS``; the rest is found elsewhere."""
    return Turn(
        id=row[0],
        context_id=row[1],
        state=row[2],
        started=parse_time(row[3]),
        ended=None if row[4] is None else parse_time(row[4]),
        owner=row[5],
        epoch=row[6],
        error=row[7],
        partial_text=partial_text,
        usage=usage,
        cost=cost,
    )


def to_call(row: tuple[Any, ...]) -> Call:
    """The call of a row of ``CALL_COLUMNS``."""
    used = row[15:20]
    return Call(
        id=row[0],
        turn_id=row[1],
        context_id=row[2],
        provider=row[3],
        model=row[4],
        started=parse_time(row[5]),
        response_id=row[6],
        cursor=row[7],
        finish_reason=row[8],
        cost=None if row[9] is None else Decimal(row[9]),
        time_to_first_token=row[10],
        duration=row[11],
        error=row[12],
        manifest=from_ranges(load_json(row[13])),
        options=load_json(row[14]),
        usage=None if used[0] is None else _usage(used, bool(row[20])),
    )


def _usage(figures: tuple[int | None, ...], estimated: bool) -> Usage:
    sent, received, read, written, reasoning = (figure or 0 for figure in figures)
    return Usage(sent, received, read, written, reasoning, estimated)


def to_pico(cost: Decimal) -> int:
    """US dollars as they are counted up: in millionths of a millionth."""
    return int((cost * _PICO).to_integral_value())


def known_cost(pico: int, unpriced: int) -> Decimal | None:
    """US dollars that were counted up; None where the price of nothing was known.

    Args:
        unpriced: calls whose price is not known.
    """
    return None if unpriced and not pico else Decimal(pico) / _PICO


def to_ranges(ids: list[int]) -> list[list[int]]:
    """*ids* as ``[first, last]`` pairs of neighbours, in their order."""
    ranges: list[list[int]] = []
    for number in ids:
        if ranges and ranges[-1][1] == number - 1:
            ranges[-1][1] = number
        else:
            ranges.append([number, number])
    return ranges


def from_ranges(ranges: list[list[int]]) -> list[int]:
    """The numbers that ``to_ranges`` was given."""
    return [number for first, last in ranges for number in range(first, last + 1)]


def measure(text: str) -> tuple[int, bool]:
    """Tokens of *text*, and whether that is a guess to be counted properly later.

    Loading the encoding takes 0.3 s: a process that writes one prompt does not wait for it.
    """
    if tokens.is_loaded():
        return tokens.count_tokens(text), False
    return tokens.estimate_tokens(text), bool(text)


class _Figures:
    """A ``ContextStats`` while it is filled.

    Setting the slots of a frozen dataclass costs 1.1 µs, of this 0.25: lists have thousands.
    """

    __slots__ = ContextStats.__slots__

    def __init__(
        self,
        context_id: str,
        name: str,
        live_tokens: int,
        total_records: int,
        live_records: int,
        last_activity: datetime | None,
        start_time: datetime,
        calls: int,
        usage: Usage,
        cost: Decimal | None,
        unpriced_calls: int,
    ) -> None:
        self.context_id = context_id
        self.name = name
        self.live_tokens = live_tokens
        self.total_records = total_records
        self.live_records = live_records
        self.last_activity = last_activity
        self.start_time = start_time
        self.calls = calls
        self.usage = usage
        self.cost = cost
        self.unpriced_calls = unpriced_calls


class _Used:
    """A ``Usage`` while it is filled, as ``_Figures``."""

    __slots__ = Usage.__slots__

    def __init__(
        self, sent: int, received: int, read: int, written: int, reasoning: int, estimated: bool
    ) -> None:
        self.input_tokens = sent
        self.output_tokens = received
        self.cache_read_tokens = read
        self.cache_write_tokens = written
        self.reasoning_tokens = reasoning
        self.estimated = estimated
