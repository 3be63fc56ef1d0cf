"""Writes outside a turn: prompts, tool calls and outputs, the system prompt, live and pinned."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

import sqlalchemy as sa

from contextwindow import tokens
from contextwindow.attachments import tokens_of
from contextwindow.errors import ConfigError, ContextNotFound, RecordCorrupt
from contextwindow.records import Attachment, Record, RecordType
from contextwindow.store.attached import attach
from contextwindow.store.checks import check_flag, check_id, check_ids, check_text, check_whole
from contextwindow.store.connection import Connection
from contextwindow.store.engine import Database
from contextwindow.store.rows import LIVE_ORDER, RECORD_COLUMNS, measure, to_record
from contextwindow.store.schema import contexts, records
from contextwindow.store.statement import Statement
from contextwindow.store.values import checksum, now_text

_bind = sa.bindparam

_TAKE_PLACE = Statement(
    sa.update(contexts)
    .where(contexts.c.id == _bind("context_id"))
    .values(
        next_seq=contexts.c.next_seq + 1,
        record_count=contexts.c.record_count + 1,
        live_count=contexts.c.live_count + 1,
        live_tokens=contexts.c.live_tokens + _bind("tokens"),
        uncounted=contexts.c.uncounted + _bind("uncounted"),
        last_activity=_bind("now"),
    )
    .returning(contexts.c.next_seq)
)

_INSERT = Statement(
    sa.insert(records)
    .values(
        context_id=_bind("context_id"),
        ts=_bind("ts"),
        source=_bind("source"),
        content=_bind("content"),
        live=True,
        est_tokens=_bind("est_tokens"),
        seq=_bind("seq"),
        position=_bind("position"),
        call_id=_bind("call_id"),
        name=_bind("name"),
        checksum=_bind("checksum"),
        idempotency_key=_bind("idempotency_key"),
        error=_bind("error"),
        uncounted=_bind("uncounted"),
        attached=_bind("attached"),
    )
    .returning(records.c.id)
)

_BY_KEY = Statement(
    sa.select(*RECORD_COLUMNS)
    .where(records.c.context_id == _bind("context_id"))
    .where(records.c.idempotency_key == _bind("key"))
)

_BY_ID = Statement(
    sa.select(*RECORD_COLUMNS)
    .where(records.c.context_id == _bind("context_id"))
    .where(records.c.id == _bind("record_id"))
)

_OPEN_CALLS = Statement(
    sa.select(records.c.call_id, records.c.name)
    .where(records.c.context_id == _bind("context_id"))
    .where(records.c.source == int(RecordType.TOOL_CALL))
    .where(records.c.live)
    .where(records.c.call_id.is_not(None))
    .where(records.c.partial_response_id.is_(None))
    .where(
        ~sa.exists().where(
            (answer := records.alias("answer")).c.context_id == records.c.context_id,
            answer.c.source == int(RecordType.TOOL_OUTPUT),
            answer.c.call_id == records.c.call_id,
            # Some servers count their ids anew in every reply.
            answer.c.seq > records.c.seq,
        )
    )
    .order_by(*LIVE_ORDER)
)

_SET_LIVE = Statement(
    sa.update(records)
    .where(records.c.context_id == _bind("context_id"))
    .where(records.c.id == _bind("record_id"))
    .where(records.c.live != _bind("live"))
    .values(live=_bind("live"))
    .returning(records.c.est_tokens, records.c.uncounted)
)

_SYSTEM_OFF = Statement(
    sa.update(records)
    .where(records.c.context_id == _bind("context_id"))
    .where(records.c.source == int(RecordType.SYSTEM_PROMPT))
    .where(records.c.live)
    .values(live=False)
    .returning(records.c.est_tokens, records.c.uncounted)
)

# What was sent to the provider has changed: its own copy of the conversation no longer holds.
_COUNT = Statement(
    sa.update(contexts)
    .where(contexts.c.id == _bind("context_id"))
    .values(
        live_count=contexts.c.live_count + _bind("live"),
        live_tokens=contexts.c.live_tokens + _bind("tokens"),
        uncounted=contexts.c.uncounted + _bind("uncounted"),
        last_response_id=None,
    )
)

_LOCK = Statement(
    sa.update(contexts)
    .where(contexts.c.id == _bind("context_id"))
    .values(epoch=contexts.c.epoch)
    .returning(contexts.c.id)
)

_LIVE_IDS = Statement(
    sa.select(records.c.id)
    .where(records.c.context_id == _bind("context_id"))
    .where(records.c.live)
    .order_by(*LIVE_ORDER)
)

_PIN = Statement(
    sa.update(records)
    .where(records.c.context_id == _bind("context_id"))
    .where(records.c.id == _bind("record_id"))
    .values(pinned=_bind("pinned"))
    .returning(records.c.id)
)


def append(
    database: Database,
    context_id: str,
    source: RecordType,
    content: str,
    *,
    key: str | None = None,
    attachments: Sequence[Attachment] = (),
) -> Record:
    """Write one live record at the end; with *key*, once however often it is asked for.

    Raises:
        ContextNotFound: the context was deleted.
        StoreError: the database refused.
    """
    size, guess = measure(content)
    if attachments:
        # A later count would look at the text alone.
        size, guess = tokens.count_tokens(content) + tokens_of(attachments), False
    with database.write(boundary=True) as connection:
        if key is not None:
            lock(connection, context_id)
            known = _BY_KEY.one(connection, context_id=context_id, key=key)
            if known is not None:
                return to_record(connection, known)
        return insert(
            connection, context_id, source, content, size, guess, key=key, attachments=attachments
        )


def by_key(database: Database, context_id: str, key: str) -> Record | None:
    """The record that was written with *key*, or None."""
    with database.read() as connection:
        known = _BY_KEY.one(connection, context_id=context_id, key=key)
        return None if known is None else to_record(connection, known)


def insert(
    connection: Connection,
    context_id: str,
    source: RecordType,
    content: str,
    size: int,
    guess: bool,
    call_id: str | None = None,
    name: str | None = None,
    key: str | None = None,
    error: bool = False,
    attachments: Sequence[Attachment] = (),
    position: int | None = None,
) -> Record:
    """Write one live record, within a transaction; its place in the order is its number.

    Args:
        size, guess: its tokens, and whether they were guessed.
        position: where it stands instead.
    """
    now = now_text()
    row = _TAKE_PLACE.one(
        connection, context_id=context_id, tokens=size, uncounted=int(guess), now=now
    )
    if row is None:
        raise ContextNotFound(f"context {context_id} was deleted")
    seq = row[0] - 1
    check = checksum(content, None)
    inserted = _INSERT.one(
        connection,
        context_id=context_id,
        ts=now,
        source=int(source),
        content=content,
        est_tokens=size,
        seq=seq,
        position=position or seq,
        call_id=call_id,
        name=name,
        checksum=check,
        idempotency_key=key,
        error=error,
        uncounted=guess,
        attached=len(attachments),
    )
    assert inserted is not None  # noqa: S101 - RETURNING gives the row that was inserted
    if attachments:
        attach(connection, inserted[0], attachments)
    row = (inserted[0], context_id, now, source, content, True, size, None, False, None, None)
    row += (seq, None, call_id, name, None, check, False, error, guess, 0)
    record = to_record(connection, row)
    return replace(record, attachments=tuple(attachments)) if attachments else record


def lock(connection: Connection, context_id: str) -> None:
    """Make other writers of the context wait; the first statement of a write.

    Raises:
        ContextNotFound: the context was deleted.
    """
    if _LOCK.one(connection, context_id=context_id) is None:
        raise ContextNotFound(f"context {context_id} was deleted")


def add_tool_call(
    database: Database, context_id: str, name: str, arguments: object, call_id: str | None
) -> Record:
    """Write a tool call as if the model had made it.

    Raises:
        ConfigError: *arguments* are not JSON, or *call_id* is taken.
    """
    if isinstance(arguments, str):
        text = check_text(arguments, "arguments of a tool call", empty=True)
    elif not isinstance(arguments, dict):
        raise ConfigError(
            f"arguments of tool call {name!r} must be a dict or JSON text, not {arguments!r:.60}"
        )
    else:
        try:
            text = json.dumps(arguments, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        except (TypeError, ValueError) as error:
            raise ConfigError(f"arguments of tool call {name!r} are not JSON: {error}") from error
        check_text(text, "arguments of a tool call")
    call_id = f"call_{uuid.uuid4().hex[:24]}" if call_id is None else check_text(call_id, "call_id")
    size, guess = measure(text)
    with database.write(boundary=True) as connection:
        lock(connection, context_id)
        if call_id in _open_calls(connection, context_id):
            raise ConfigError(f"an open tool call has the id {call_id!r} already; give another")
        kind = RecordType.TOOL_CALL
        return insert(connection, context_id, kind, text, size, guess, call_id, name)


def add_tool_output(
    database: Database, context_id: str, output: str, call_id: str | None, error: bool
) -> Record:
    """Write the output of a tool call: of *call_id*, or of the oldest that has none.

    Raises:
        ConfigError: no open call has that id.
    """
    check_text(output, "output of a tool", empty=True)
    size, guess = measure(output)
    with database.write(boundary=True) as connection:
        lock(connection, context_id)
        waiting = _open_calls(connection, context_id)
        if call_id is None:
            call_id = next(iter(waiting), None)
        elif call_id not in waiting:
            known = ", ".join(waiting) or "none"
            raise ConfigError(f"no open tool call has the id {call_id!r}; open calls: {known}")
        name = None if call_id is None else waiting[call_id]
        kind = RecordType.TOOL_OUTPUT
        return insert(connection, context_id, kind, output, size, guess, call_id, name, error=error)


def _open_calls(connection: Connection, context_id: str) -> dict[str, str | None]:
    """Name of the tool by id of each call that waits for its output, oldest first."""
    return {row[0]: row[1] for row in _OPEN_CALLS.all(connection, context_id=context_id)}


def set_system_prompt(database: Database, context_id: str, text: str) -> Record:
    """Replace the live system prompt; earlier ones stay in the database."""
    size, guess = measure(text)
    with database.write(boundary=True) as connection:
        lock(connection, context_id)
        _apply_live(connection, context_id, _SYSTEM_OFF.run(connection, context_id=context_id), -1)
        return insert(connection, context_id, RecordType.SYSTEM_PROMPT, text, size, guess)


def set_live(database: Database, context_id: str, ids: Iterable[int], live: bool) -> list[Record]:
    """Take records out of what is sent to the model, or put them back; all or none.

    Raises:
        ConfigError: a record is not of this context.
    """
    chosen = check_ids(ids)
    check_flag(live, "live")
    with database.write(boundary=True) as connection:
        lock(connection, context_id)
        return set_live_within(connection, context_id, chosen, live)


def set_live_range(
    database: Database, context_id: str, start: int, end: int, live: bool
) -> list[Record]:
    """``set_live`` for the live records from index *start* to *end*, both included.

    Raises:
        ConfigError: the range is not within the live records.
    """
    check_flag(live, "live")
    check_whole(start, "start of a range", least=-1)
    check_whole(end, "end of a range", least=-1)
    if start < 0 or end < start:
        raise ConfigError(f"invalid range {start}..{end}: start at 0 or above, end not before it")
    with database.write(boundary=True) as connection:
        lock(connection, context_id)
        ids = [row[0] for row in _LIVE_IDS.all(connection, context_id=context_id)]
        if end >= len(ids):
            raise ConfigError(
                f"range {start}..{end} is out of range: the context has {len(ids)} live records, "
                f"the last index is {len(ids) - 1}"
            )
        return set_live_within(connection, context_id, ids[start : end + 1], live)


def set_live_within(
    connection: Connection, context_id: str, ids: list[int], live: bool
) -> list[Record]:
    """``set_live`` within a transaction that holds the context's row.

    Raises:
        ConfigError: a record is not of this context.
    """
    changed: list[tuple[Any, ...]] = []
    for record_id in ids:
        row = _SET_LIVE.one(connection, context_id=context_id, record_id=record_id, live=live)
        if row is not None:
            changed.append(row)
    found = []
    for record_id in ids:
        # A damaged record must be got rid of; its text is not shown.
        with suppress(RecordCorrupt):
            found.append(_known(connection, context_id, record_id))
    _apply_live(connection, context_id, changed, 1 if live else -1)
    return found


def take_out(connection: Connection, context_id: str, ids: Iterable[int]) -> int:
    """Take records out of what is sent, within a transaction; how many were live until now."""
    rows = (
        _SET_LIVE.one(connection, context_id=context_id, record_id=number, live=False)
        for number in ids
    )
    left = [row for row in rows if row is not None]
    _apply_live(connection, context_id, left, -1)
    return len(left)


def _apply_live(
    connection: Connection, context_id: str, rows: Iterable[tuple[Any, ...]], sign: int
) -> None:
    """Count *rows* of tokens and guesses in or out of what is live."""
    changed = list(rows)
    if changed:
        _COUNT.run(
            connection,
            context_id=context_id,
            live=sign * len(changed),
            tokens=sign * sum(row[0] for row in changed),
            uncounted=sign * sum(int(row[1]) for row in changed),
        )


def set_pinned(database: Database, context_id: str, record_id: int, pinned: bool) -> Record:
    """Keep a record in what is sent whatever compaction does, or no longer.

    Raises:
        ConfigError: the record is not of this context.
    """
    check_id(record_id, "record")
    with database.write() as connection:
        lock(connection, context_id)
        _PIN.run(connection, context_id=context_id, record_id=record_id, pinned=pinned)
        return _known(connection, context_id, record_id)


def _known(connection: Connection, context_id: str, record_id: int) -> Record:
    row = _BY_ID.one(connection, context_id=context_id, record_id=record_id)
    if row is None:
        raise ConfigError(f"this context has no record {record_id!r}")
    return to_record(connection, row)
