"""Attachments in the database: bytes once by their hash, and which record names them."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql

from contextwindow.attachments import read_attachment, renamed
from contextwindow.errors import ConfigError, RecordCorrupt
from contextwindow.records import Attachment, Record, RecordType
from contextwindow.store.checks import shown
from contextwindow.store.connection import Connection
from contextwindow.store.schema import attachments, record_attachments, records
from contextwindow.store.statement import Statement, insert_ignore
from contextwindow.store.values import checksum, dump_json

_bind = sa.bindparam

_FIXED_ROOM: Final = 20_000_000
_TIMES_THE_EXPORT: Final = 20
"""Bytes that the records of an export may name together, by the characters that it holds."""

_ONE = sa.select(attachments.c.size_bytes).where(attachments.c.digest == _bind("digest"))

# What is there must not lose its last record meanwhile; on SQLite one writer is inside.
_STORED = Statement(
    lambda dialect: (
        _ONE.with_for_update(read=True, key_share=True) if dialect == "postgresql" else _ONE
    )
)


def _insert(dialect: str) -> sa.Executable:
    columns = ("digest", "media_type", "size_bytes", "data")
    values: dict[str, Any] = {name: _bind(name) for name in columns}
    if dialect == "sqlite":
        return insert_ignore(dialect, attachments).values(**values)
    # A conflict that changes something locks the row that was there first.
    insert = postgresql.insert(attachments).values(**values)
    return insert.on_conflict_do_update(
        index_elements=["digest"], set_={"size_bytes": attachments.c.size_bytes}
    )


_INSERT = Statement(_insert)

_NAME = Statement(
    sa.insert(record_attachments).values(
        {
            name: _bind(name)
            for name in ("record_id", "idx", "digest", "url", "media_type", "name", "checksum")
        }
    )
)

_OF = Statement(
    sa.select(
        record_attachments.c.media_type,
        record_attachments.c.digest,
        record_attachments.c.name,
        record_attachments.c.url,
        record_attachments.c.checksum,
        attachments.c.data,
    )
    .join_from(
        record_attachments,
        attachments,
        attachments.c.digest == record_attachments.c.digest,
        isouter=True,
    )
    .where(record_attachments.c.record_id == _bind("record_id"))
    .order_by(record_attachments.c.idx)
)

_DIGESTS = Statement(
    sa.select(record_attachments.c.digest)
    .join_from(records, record_attachments, record_attachments.c.record_id == records.c.id)
    .where(records.c.context_id == _bind("context_id"))
    .where(records.c.attached > 0)
    .where(record_attachments.c.digest.is_not(None))
    .distinct()
    .order_by(record_attachments.c.digest)
)

_LOCK = Statement(lambda dialect: _ONE.with_for_update() if dialect == "postgresql" else _ONE)

_FORGET = Statement(
    sa.delete(attachments)
    .where(attachments.c.digest == _bind("digest"))
    .where(~sa.exists().where(record_attachments.c.digest == _bind("digest")))
)

_source, _copy = records.alias("source"), records.alias("copy")

_COPY = Statement(
    sa.insert(record_attachments).from_select(
        ["record_id", "idx", "digest", "url", "media_type", "name", "checksum"],
        sa.select(
            _copy.c.id,
            record_attachments.c.idx,
            record_attachments.c.digest,
            record_attachments.c.url,
            record_attachments.c.media_type,
            record_attachments.c.name,
            record_attachments.c.checksum,
        )
        .select_from(_source)
        .join(_copy, sa.and_(_copy.c.seq == _source.c.seq, _copy.c.context_id == _bind("copy_id")))
        .join(record_attachments, record_attachments.c.record_id == _source.c.id)
        .where(_source.c.context_id == _bind("context_id"))
        .where(_source.c.attached > 0),
    )
)

_BY_SEQ = Statement(
    sa.select(records.c.id)
    .where(records.c.context_id == _bind("context_id"))
    .where(records.c.seq == _bind("seq"))
)

_HAVING = Statement(sa.select(records.c.id).where(records.c.attached > 0).order_by(records.c.id))

_COUNT = Statement(sa.select(records.c.attached).where(records.c.id == _bind("record_id")))

_UNNAMED = Statement(
    sa.select(attachments.c.digest)
    .where(~sa.exists().where(record_attachments.c.digest == attachments.c.digest))
    .order_by(attachments.c.digest)
)


def attach(connection: Connection, record_id: int, found: Sequence[Attachment]) -> None:
    """Store the attachments of a record that was just written."""
    # In one order everywhere, so that no two writers wait for each other.
    for one in sorted(found, key=lambda one: one.digest):
        if one.data is not None and _STORED.one(connection, digest=one.digest) is None:
            _INSERT.run(
                connection,
                digest=one.digest,
                media_type=one.media_type,
                size_bytes=len(one.data),
                data=one.data,
            )
    for idx, one in enumerate(found):
        digest = one.digest or None
        _NAME.run(
            connection,
            record_id=record_id,
            idx=idx,
            digest=digest,
            url=one.url,
            media_type=one.media_type,
            name=one.name,
            checksum=_sum(one.media_type, digest, one.name, one.url),
        )


def attachments_of(connection: Connection, record_id: int, count: int) -> tuple[Attachment, ...]:
    """The *count* attachments of a record, with their bytes.

    Raises:
        RecordCorrupt: one is missing, or is not what was written.
    """
    rows = _OF.all(connection, record_id=record_id)
    found = []
    for media_type, digest, name, url, crc, data in rows:
        sound = crc == _sum(media_type, digest, name, url)
        if digest is not None:
            sound = sound and data is not None and hashlib.sha256(data).hexdigest() == digest
        if not sound:
            raise _corrupt(connection, record_id, f"attachment {name!r} does not match its hash")
        found.append(
            Attachment(media_type=media_type, digest=digest or "", name=name, data=data, url=url)
        )
    if len(found) != count:
        raise _corrupt(connection, record_id, f"{len(found)} of {count} attachments are there")
    return tuple(found)


def copy(connection: Connection, context_id: str, copy_id: str) -> None:
    """Give the copies of a context's records their attachments."""
    _COPY.run(connection, context_id=context_id, copy_id=copy_id)


def digests(connection: Connection, context_id: str) -> list[str]:
    """Hashes of the bytes that a context's records name, in order."""
    return [row[0] for row in _DIGESTS.all(connection, context_id=context_id)]


def forget(connection: Connection, unsure: Iterable[str]) -> None:
    """Delete those of the bytes *unsure*, in order, that no record names any more."""
    for digest in unsure:
        # A statement of its own: the next one sees what was written while it waited.
        _LOCK.one(connection, digest=digest)
        _FORGET.run(connection, digest=digest)


def having(connection: Connection) -> list[int]:
    """Ids of the records that have attachments, in order."""
    return [row[0] for row in _HAVING.all(connection)]


def check(connection: Connection, record_id: int) -> None:
    """Look whether the attachments of a record are what was written.

    Raises:
        RecordCorrupt: they are not.
    """
    row = _COUNT.one(connection, record_id=record_id)
    if row is not None:
        attachments_of(connection, record_id, row[0])


def unnamed(connection: Connection) -> list[str]:
    """Hashes of bytes that no record names, in order."""
    return [row[0] for row in _UNNAMED.all(connection)]


def exported(record: Record) -> dict[str, str]:
    """The bytes of a record's attachments in base64, by their hashes."""
    return {
        one.digest: base64.b64encode(one.data).decode("ascii")
        for one in record.attachments
        if one.data is not None
    }


def described(record: Record) -> list[dict[str, str]]:
    """The attachments of *record* as an export holds them, without their bytes."""
    return [
        {"media_type": one.media_type, "name": one.name}
        | ({"digest": one.digest} if one.url is None else {"url": one.url})
        for one in record.attachments
    ]


def imported(export: Mapping[str, Any]) -> dict[int, list[Attachment]]:
    """The attachments in an export, by the ``seq`` of their records.

    Raises:
        ConfigError: one of them cannot be an attachment, or its bytes are missing or others, or
            the same bytes are named so often that each later call would be many times the export.
        KeyError, TypeError, AttributeError: it is no export.
    """
    texts = export.get("attachments") or {}
    blobs = {digest: _decoded(digest, text) for digest, text in texts.items()}
    held = sum(map(len, texts.values()))
    held += sum(len(record["content"]) for record in export["records"])
    room = _FIXED_ROOM + _TIMES_THE_EXPORT * held
    known: dict[tuple[object, object], Attachment] = {}
    found: dict[int, list[Attachment]] = {}
    for record in export["records"]:
        for one in record.get("attachments") or ():
            if record["source"] != RecordType.PROMPT.name.lower():
                raise ConfigError(f"record {shown(record['seq'])} has attachments and is no prompt")
            made = _imported(one, blobs, known)
            room -= len(made.data or b"")
            if room < 0:
                raise ConfigError(
                    "its records name the same attachments so often that they are many times "
                    "larger than the export"
                )
            found.setdefault(record["seq"], []).append(made)
    return found


def _decoded(digest: str, text: str) -> bytes:
    try:
        data = base64.b64decode(text, validate=True)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"attachment {digest!r:.80} is no base64: {error}") from error
    if hashlib.sha256(data).hexdigest() != digest:
        raise ConfigError(f"attachment {digest!r:.80} does not match its hash")
    return data


def _imported(
    one: Mapping[str, Any],
    blobs: Mapping[str, bytes],
    known: dict[tuple[object, object], Attachment],
) -> Attachment:
    """The attachment *one*.

    Args:
        known: by hash and media type what was checked, which is not looked through again.
    """
    url, data = one.get("url"), None
    if url is None:
        data = blobs.get(one["digest"])
        if data is None:
            raise ConfigError(f"the bytes of attachment {one['digest']!r:.80} are missing")
    # We do not write a size; what another program claims must not be believed.
    claimed = one.get("size_bytes", None if data is None else len(data))
    if data is not None and claimed != len(data):
        raise ConfigError(f"an attachment of {len(data)} bytes claims to have {shown(claimed)}")
    media_type, name = one["media_type"], one["name"]
    if data is None:
        return read_attachment(Attachment(media_type=media_type, name=name, url=url))
    key = (one["digest"], media_type)
    if media_type and key in known:
        return renamed(known[key], name)
    made = read_attachment(Attachment(media_type=media_type, name=name, data=data))
    return known.setdefault(key, made)


def attach_imported(
    connection: Connection, context_id: str, found: Mapping[int, Sequence[Attachment]]
) -> None:
    """Store the attachments of imported records, by the records' ``seq``."""
    for seq, some in found.items():
        row = _BY_SEQ.one(connection, context_id=context_id, seq=seq)
        assert row is not None  # noqa: S101 - written in this transaction
        attach(connection, row[0], some)


def _sum(media_type: str, digest: str | None, name: str, url: str | None) -> int:
    return checksum(dump_json([media_type, digest, name, url]), None)


def _corrupt(connection: Connection, record_id: int, what: str) -> RecordCorrupt:
    return RecordCorrupt(
        f"record {record_id} of {connection.location}: {what}: it was damaged on the disk; "
        "restore the database from a backup, or take the record out with "
        f"set_live([{record_id}], False)",
        record_id=record_id,
    )
