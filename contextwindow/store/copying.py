"""Copies of contexts: whole, up to a record, and with other words in it."""

from __future__ import annotations

import itertools
import json
import re
from typing import Any

import sqlalchemy as sa

from contextwindow.errors import ConfigError, RecordCorrupt
from contextwindow.records import Context, RecordType
from contextwindow.store import attached
from contextwindow.store.checks import check_id, check_text
from contextwindow.store.connection import Connection, Damaged
from contextwindow.store.conversations import LAST_PLACE, by_id, create, find, recount
from contextwindow.store.engine import Database
from contextwindow.store.rows import measure, unfolded
from contextwindow.store.schema import compactions, context_tools, records
from contextwindow.store.statement import Statement
from contextwindow.store.upkeep import Paused
from contextwindow.store.values import checksum, dump_json, load_json, matches
from contextwindow.store.writing import lock

_bind = sa.bindparam

_COPY_TOOLS = Statement(
    sa.insert(context_tools).from_select(
        ["context_id", "tool_name", "created_at"],
        sa.select(
            _bind("copy_id", type_=sa.Text),
            context_tools.c.tool_name,
            context_tools.c.created_at,
        ).where(context_tools.c.context_id == _bind("context_id")),
    )
)

# A copy belongs to no turn, so that resuming in one context never ends another's reply.
_COPIED = [
    column
    for column in records.c
    if column.name not in ("id", "context_id", "turn_id", "partial_response_id")
]

_COPY_RECORDS = Statement(
    sa.insert(records).from_select(
        ["context_id", *(column.name for column in _COPIED)],
        sa.select(_bind("copy_id", type_=sa.Text), *_COPIED)
        .where(records.c.context_id == _bind("context_id"))
        .where(records.c.seq <= _bind("last"))
        .where(
            sa.tuple_(records.c.position, records.c.seq)
            <= sa.tuple_(_bind("position"), _bind("seq"))
        )
        .order_by(records.c.position, records.c.seq),
    )
)

_IN_FLIGHT = Statement(
    sa.select(records.c.id, records.c.seq, records.c.content, records.c.payload, records.c.checksum)
    .where(records.c.context_id == _bind("context_id"))
    .where(records.c.partial_response_id.is_not(None))
)

_KIND = Statement(
    sa.select(records.c.source, records.c.est_tokens, records.c.attached, records.c.content)
    .where(records.c.context_id == _bind("copy_id"))
    .where(records.c.seq == _bind("seq"))
)

_SET_TEXT = Statement(
    sa.update(records)
    .where(records.c.context_id == _bind("copy_id"))
    .where(records.c.seq == _bind("seq"))
    .values(
        content=_bind("content"),
        checksum=_bind("checksum"),
        payload=None,
        est_tokens=_bind("tokens"),
        uncounted=_bind("guess"),
        response_id=None,
        streamed=False,
        accumulated_tokens=None,
        live=True,
    )
)

_SET_COPY = Statement(
    sa.update(records)
    .where(records.c.context_id == _bind("copy_id"))
    .where(records.c.seq == _bind("seq"))
    .values(
        content=_bind("content"),
        checksum=_bind("checksum"),
        uncounted=records.c.live,
        # Half a tool call or half a thought is nothing that a provider takes.
        live=sa.and_(records.c.live, records.c.source == int(RecordType.MODEL_RESPONSE)),
    )
)

_REMOVED_SINCE = Statement(
    sa.select(compactions.c.removed)
    .where(compactions.c.context_id == _bind("context_id"))
    .where(compactions.c.ts > _bind("ts"))
)

_REVIVE = Statement(
    sa.update(records)
    .where(records.c.context_id == _bind("copy_id"))
    .where(
        records.c.seq.in_(
            sa.select((was := records.alias("was")).c.seq)
            .where(was.c.context_id == _bind("context_id"))
            .where(was.c.id.between(_bind("first"), _bind("last")))
        )
    )
    .values(live=True)
)

# It was superseded later: here nothing came later.
_REVIVE_PROMPT = Statement(
    sa.update(records)
    .where(records.c.context_id == _bind("copy_id"))
    .where(
        records.c.seq
        == sa.select(sa.func.max((old := records.alias("old")).c.seq))
        .where(old.c.context_id == _bind("copy_id"))
        .where(old.c.source == int(RecordType.SYSTEM_PROMPT))
        .scalar_subquery()
    )
    .where(
        ~sa.exists().where(
            (live := records.alias("alive")).c.context_id == _bind("copy_id"),
            live.c.source == int(RecordType.SYSTEM_PROMPT),
            live.c.live,
        )
    )
    .where(
        sa.exists().where(
            (later := records.alias("later")).c.context_id == _bind("context_id"),
            later.c.source == int(RecordType.SYSTEM_PROMPT),
            later.c.seq > _bind("seq"),
        )
    )
    .values(live=True)
)

_PLACE = Statement(
    sa.select(records.c.position, records.c.seq, records.c.ts)
    .where(records.c.context_id == _bind("context_id"))
    .where(records.c.id == _bind("record_id"))
)


def copy(
    database: Database,
    context: Context,
    name: str | None,
    at: int | None = None,
    text: str | None = None,
) -> Context:
    """A new context *name* with the records of *context*, up to the record *at*.

    Args:
        name: None makes one from that of *context*.
        text: what the record *at* says in the copy, instead of what it says.

    Raises:
        ConfigError: *name* is taken, *at* is no record of the context, or it cannot be changed.
        ContextNotFound: *context* was deleted.
    """
    if name is not None:
        check_text(name, "context name")
    if at is not None:
        check_id(at, "record")
    if text is not None:
        check_text(text, "text of a record")
    with database.write(boundary=True) as connection:
        lock(connection, context.id)
        source = by_id(connection, context.id) or context
        place = (LAST_PLACE, LAST_PLACE, "")
        if at is not None:
            found = _PLACE.one(connection, context_id=context.id, record_id=at)
            if found is None:
                raise ConfigError(f"context {context.name!r} has no record {at!r}")
            place = found[0], found[1], found[2]
        if name is None:
            name = _free_name(connection, source.name)
        copy_id, made = create(
            connection,
            name,
            threading=source.use_server_side_threading,
            last_response_id=source.last_response_id if at is None else None,
            parent=source.id,
            max_tokens=source.max_tokens,
            metadata_=None if source.metadata is None else dump_json(source.metadata),
        )
        if not made:
            raise ConfigError(f"a context called {name!r} already exists; choose another name")
        ids = {"copy_id": copy_id, "context_id": source.id}
        with Paused(connection, copy_id):
            _copy_records(connection, place, **ids)
        for row in _IN_FLIGHT.all(connection, context_id=source.id):
            _copy_in_flight(connection, copy_id, row)
        if text is not None:
            _rewrite(connection, copy_id, int(place[1]), text)
        attached.copy(connection, source.id, copy_id)
        _COPY_TOOLS.run(connection, **ids)
        recount(connection, copy_id)
        made_context = by_id(connection, copy_id)
    assert made_context is not None  # noqa: S101 - made in this transaction
    return made_context


def _copy_records(
    connection: Connection, place: tuple[int, int, str], copy_id: str, context_id: str
) -> None:
    """Copy what there was when the record at *place* was written, live as it was then."""
    ids = {"copy_id": copy_id, "context_id": context_id}
    position, seq, written = place
    if position != seq or not written:
        # All of it, or up to a summary: it stands before what came before it.
        _COPY_RECORDS.run(connection, position=position, seq=seq, last=LAST_PLACE, **ids)
        return
    _COPY_RECORDS.run(connection, position=LAST_PLACE, seq=LAST_PLACE, last=seq, **ids)
    for (removed,) in _REMOVED_SINCE.all(connection, context_id=context_id, ts=written):
        for first, last in load_json(removed):
            _REVIVE.run(connection, first=first, last=last, **ids)
    _REVIVE_PROMPT.run(connection, seq=seq, **ids)


def _free_name(connection: Connection, name: str) -> str:
    """*name* with the first number behind it that no context has."""
    bare = re.sub(r" \(\d{1,9}\)$", "", name) or name
    # Names are few that begin alike; a database of many others is not read for them.
    for number in itertools.count(2):
        wanted = f"{bare} ({number})"
        if find(connection, wanted) is None:
            return wanted
    raise AssertionError  # numbers do not end


def _rewrite(connection: Connection, copy_id: str, seq: int, text: str) -> None:
    """Have the record of a copy say *text*, in words that no provider has signed.

    Raises:
        ConfigError: it is of a kind whose text is not the caller's.
    """
    row = _KIND.one(connection, copy_id=copy_id, seq=seq)
    assert row is not None  # noqa: S101 - just copied
    source = RecordType(row[0])
    if source is RecordType.REASONING:
        raise ConfigError("reasoning is the model's own and cannot be edited; edit what it said")
    if source is RecordType.TOOL_CALL:
        try:
            valid = isinstance(json.loads(text), dict)
        except (ValueError, RecursionError):
            valid = False
        if not valid:
            raise ConfigError("the text of a tool call must be the JSON object of its arguments")
    size, guess = measure(text)
    if row[2]:
        # What its files take stays as it was counted.
        size, guess = max(0, row[1] - measure(row[3])[0]) + size, False
    _SET_TEXT.run(
        connection,
        copy_id=copy_id,
        seq=seq,
        content=text,
        checksum=checksum(text, None),
        tokens=size,
        guess=guess,
    )


def _copy_in_flight(connection: Connection, copy_id: str, row: tuple[Any, ...]) -> None:
    """Fold into the copy what arrived of a record; what is damaged stays so, for it to be seen."""
    record_id, seq, content, payload, crc = row
    if type(row) is Damaged or not matches(content, payload, crc):
        return
    try:
        text = content + unfolded(connection, record_id)
        crc = checksum(text, payload)
    except RecordCorrupt:
        text, crc = content, checksum(content, payload) ^ 1
    _SET_COPY.run(connection, copy_id=copy_id, seq=seq, content=text, checksum=crc)
