"""Contexts out of the database and into it as JSON."""

from __future__ import annotations

import json
import os
import re
import uuid
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

import sqlalchemy as sa

from contextwindow.attachments import tokens_of
from contextwindow.errors import ConfigError, StoreError
from contextwindow.records import Context, NewRecord, Progress, RecordType
from contextwindow.store import attached
from contextwindow.store.checks import check_json, check_text, check_whole, shown
from contextwindow.store.connection import Connection
from contextwindow.store.conversations import LAST_PLACE, by_id, create, recount, tools
from contextwindow.store.engine import Database
from contextwindow.store.failures import Conflict
from contextwindow.store.files import logger
from contextwindow.store.llm_logs import Conversation, LlmLog
from contextwindow.store.rows import RECORD_COLUMNS, measure, to_record
from contextwindow.store.schema import context_tools, contexts, records
from contextwindow.store.statement import Statement
from contextwindow.store.upkeep import Paused
from contextwindow.store.values import checksum, dump_json, load_json, now_text, parse_time
from contextwindow.tokens import count_tokens

_bind = sa.bindparam

FORMAT: Final = "contextwindow/1"
"""Version of the JSON that ``export_context`` gives."""

_VERSION: Final = re.compile(r"contextwindow/([1-9][0-9]{0,8})")
# What a column for tokens holds on every database.
_MOST_TOKENS: Final = (1 << 31) - 1
# Times before the year 1, and values that are nested without an end.
_TOO_MUCH: Final = (OverflowError, RecursionError)

_EXPORT = Statement(
    sa.select(*RECORD_COLUMNS, records.c.ts, records.c.position, records.c.payload)
    .where(records.c.context_id == _bind("context_id"))
    .order_by(records.c.position, records.c.seq)
)

_IMPORTED = (
    "ts",
    "source",
    "content",
    "live",
    "est_tokens",
    "response_id",
    "streamed",
    "seq",
    "position",
    "call_id",
    "name",
    "pinned",
    "error",
    "attached",
)

_IMPORT = Statement(
    sa.insert(records).values(
        context_id=_bind("context_id"),
        payload=_bind("payload"),
        checksum=_bind("checksum"),
        uncounted=_bind("uncounted"),
        **{name: _bind(name) for name in _IMPORTED},
    )
)

_ORIGINS = Statement(sa.select(contexts.c.metadata).where(contexts.c.metadata.is_not(None)))

_IMPORT_TOOL = Statement(
    sa.insert(context_tools).values(
        context_id=_bind("context_id"), tool_name=_bind("name"), created_at=_bind("now")
    )
)


def export(connection: Connection, context: Context) -> dict[str, Any]:
    """A context as JSON-safe values: its records, live or not, and the names of its tools."""
    out: dict[str, Any] = {
        "format": FORMAT,
        "context": {
            "id": context.id,
            "name": context.name,
            "start_time": context.start_time.isoformat(),
            "use_server_side_threading": context.use_server_side_threading,
            "last_response_id": context.last_response_id,
            "max_tokens": context.max_tokens,
            "metadata": context.metadata,
        },
        "records": [],
        "attachments": {},
        "tools": tools(connection, context.id),
    }
    for row in _EXPORT.all(connection, context_id=context.id):
        record = to_record(connection, row)
        out["attachments"] |= attached.exported(record)
        out["records"].append(
            {
                "id": record.id,
                "ts": row[-3],
                "source": record.source.name.lower(),
                "content": record.content,
                "live": record.live,
                "est_tokens": record.est_tokens,
                "response_id": record.response_id,
                "streamed": record.streamed,
                "partial": record.partial_response_id is not None,
                "seq": record.seq,
                "position": row[-2],
                "call_id": record.call_id,
                "name": record.name,
                "pinned": record.pinned,
                "error": record.error,
                "payload": record.payload,
                "attachments": attached.described(record),
            }
        )
    return out


def import_(database: Database, data: dict[str, Any] | str | bytes, name: str | None) -> Context:
    """A new context from what ``export`` gave; nothing is written unless all of it is right.

    Raises:
        ConfigError: it is no export, of a version not known here, or its name is taken.
    """
    export_ = _parsed(data)
    try:
        head = export_["context"]
        target = check_text(name if name is not None else head["name"], "context name")
        rows = [_row(one) for one in _list(export_["records"], "records")]
        _check_distinct(rows, export_["records"])
        files = attached.imported(export_)
        names = dict.fromkeys(
            check_text(one, "tool name") for one in _list(export_.get("tools") or [], "tools")
        )
        most = head.get("max_tokens")
        values = {
            "start_time": _time_text(head["start_time"]),
            "threading": _flag(head, "use_server_side_threading"),
            "max_tokens": None if most is None else _whole(most, "max_tokens", least=1),
            "metadata_": _json(head, "metadata"),
        }
    except (ConfigError, StoreError) as error:
        raise ConfigError(f"this is no whole export: {error}") from error
    except (LookupError, TypeError, ValueError, AttributeError, *_TOO_MUCH) as error:
        why = f"{type(error).__name__} {error!s:.200}"
        raise ConfigError(f"this is no whole export: {why}") from error
    with database.write(boundary=True) as connection:
        context_id, made = create(connection, target, **values)
        if not made:
            raise ConfigError(f"a context called {target!r} already exists; pass another name=")
        try:
            with Paused(connection, context_id):
                _IMPORT.run_many(connection, [{**row, "context_id": context_id} for row in rows])
        except Conflict as error:
            raise ConfigError(f"this is no whole export: {error}") from error
        attached.attach_imported(connection, context_id, files)
        for tool in names:
            _IMPORT_TOOL.run(connection, context_id=context_id, name=tool, now=now_text())
        recount(connection, context_id)
        imported = by_id(connection, context_id)
    assert imported is not None  # noqa: S101 - made in this transaction
    return imported


def write_new(database: Database, name: str | None, new: Sequence[NewRecord]) -> Context:
    """A new context of the records *new*; None gives it a name of its own.

    Raises:
        ConfigError: the name is taken, or something cannot be stored; nothing was written.
    """
    target = str(uuid.uuid4()) if name is None else check_text(name, "context name")
    rows = new_rows(new)
    with database.write(boundary=True) as connection:
        context_id, made = create(connection, target)
        if not made:
            raise ConfigError(f"a context called {target!r} already exists; pass another name=")
        insert_rows(connection, context_id, rows, new)
        written = by_id(connection, context_id)
    assert written is not None  # noqa: S101 - made in this transaction
    return written


def import_llm(
    database: Database,
    path: str | os.PathLike[str],
    max_bytes: int,
    progress: Progress | None = None,
) -> list[Context]:
    """A context for each conversation in a log of llm that was not taken in before.

    Args:
        max_bytes: characters of text and bytes of attachments that may be read in all.
        progress: told how many conversations were read.


    Raises:
        ConfigError: it is no such log, or holds more, or what cannot be kept; nothing was
            written.
    """
    with database.read() as connection:
        known = _imported_from_llm(connection)
    # The log may be long: nobody waits for the lock on our database while it is read.
    with closing(LlmLog(path, check_whole(max_bytes, "max_bytes", least=1))) as log:
        keys = log.ids()
        read = []
        for done, key in enumerate(keys):
            if progress is not None:
                progress(done, len(keys))
            if key not in known:
                read.append(_prepared(log.conversation(key)))
    if log.odd_times or log.odd_parts:
        logger.warning(
            "%s: %d times could not be read, and are their neighbours'; %d parts are of a kind that"
            " is not known, and notes stand for them",
            path,
            log.odd_times,
            log.odd_parts,
        )
    found = [one for one in read if one.rows]
    if not found:
        return []
    made: list[Context] = []
    with database.write(boundary=True) as connection:
        # Another import may have been faster.
        known = _imported_from_llm(connection)
        numbers: dict[str, int] = {}
        for one in found:
            if one.key in known:
                continue
            context_id = _create_named(connection, one.name, one.values, numbers)
            insert_rows(connection, context_id, one.rows, one.records)
            written = by_id(connection, context_id)
            assert written is not None  # noqa: S101 - made in this transaction
            made.append(written)
        if progress is not None:
            progress(len(keys), len(keys))
    return made


@dataclass(slots=True)
class _Prepared:
    """A conversation of llm as it is written."""

    key: str
    name: str
    values: dict[str, Any]
    rows: list[dict[str, Any]]
    records: list[NewRecord]


def _prepared(found: Conversation) -> _Prepared:
    """What is written of *found*.

    Raises:
        ConfigError: it cannot be stored.
    """
    origin = {"imported_from": "llm", "conversation_id": found.id, "model": found.model}
    values: dict[str, Any] = {"metadata_": dump_json(origin)}
    first = found.records[0].timestamp if found.records else None
    if first is not None:
        values["start_time"] = _moment_text(first)
    name = check_text(found.name or f"llm {found.id}", "name of a conversation")
    return _Prepared(found.id, name, values, new_rows(found.records), found.records)


def _imported_from_llm(connection: Connection) -> set[str]:
    """Ids of the conversations that are here already."""
    known = set()
    for (text,) in _ORIGINS.all(connection):
        origin = load_json(text)
        if isinstance(origin, dict) and origin.get("imported_from") == "llm":
            known.add(str(origin.get("conversation_id")))
    return known


def _create_named(
    connection: Connection, name: str, values: dict[str, Any], numbers: dict[str, int]
) -> str:
    """A new context called *name*, with a number behind it where that is taken.

    Args:
        numbers: the last one that was tried for each name: a log may hold thousands of one name.
    """
    while True:
        number = numbers[name] = numbers.get(name, 0) + 1
        numbered = name if number == 1 else f"{name} ({number})"
        context_id, made = create(connection, numbered, **values)
        if made:
            return context_id


def new_rows(new: Sequence[NewRecord]) -> list[dict[str, Any]]:
    """Rows for *new*, in order.

    Raises:
        ConfigError: one cannot be stored.
    """
    return [_new_row(one, seq) for seq, one in enumerate(new, 1)]


def insert_rows(
    connection: Connection,
    context_id: str,
    rows: list[dict[str, Any]],
    new: Sequence[NewRecord],
) -> None:
    """Write the rows of *new* to a context that has no records yet."""
    with Paused(connection, context_id):
        _IMPORT.run_many(connection, [{**row, "context_id": context_id} for row in rows])
    files = {seq: one.attachments for seq, one in enumerate(new, 1) if one.attachments}
    attached.attach_imported(connection, context_id, files)
    recount(connection, context_id)


def _new_row(one: NewRecord, seq: int) -> dict[str, Any]:
    content = check_text(one.content, f"the text of {one.where}", empty=True)
    for value in (one.call_id, one.name):
        if value is not None:
            check_text(value, f"a name in {one.where}", empty=True)
    payload = None if one.payload is None else dump_json(one.payload)
    size, guess = measure(content)
    if one.attachments:
        # A later count would look at the text alone.
        size, guess = count_tokens(content) + tokens_of(one.attachments), False
    return {
        "ts": now_text() if one.timestamp is None else _moment_text(one.timestamp),
        "source": int(one.source),
        "content": content,
        "live": one.live,
        "est_tokens": size,
        "response_id": one.response_id,
        "streamed": False,
        "seq": seq,
        "position": seq,
        "call_id": one.call_id,
        "name": one.name,
        "pinned": False,
        "error": one.error,
        "payload": payload,
        "checksum": checksum(content, payload),
        "attached": len(one.attachments),
        "uncounted": guess,
    }


def _parsed(data: dict[str, Any] | str | bytes) -> dict[str, Any]:
    if not isinstance(data, dict):
        try:
            # Of bytes it is taken off by what reads them.
            text = data.removeprefix("\ufeff") if isinstance(data, str) else data
            data = json.loads(text, object_pairs_hook=_distinct)
        except (ValueError, RecursionError, TypeError) as error:
            raise ConfigError(f"an export must be JSON: {error!s:.200}") from error
    form = data.get("format") if isinstance(data, dict) else None
    if isinstance(data, dict) and form == FORMAT:
        return data
    newer = _VERSION.fullmatch(form) if isinstance(form, str) else None
    if newer is not None and int(newer[1]) > int(FORMAT.rpartition("/")[2]):
        raise ConfigError(
            f"this export is {form!r}, made by a newer contextwindow; {FORMAT!r} is the newest "
            "that can be read here: upgrade, or export it anew with the older one"
        )
    found = shown(form) if isinstance(data, dict) else type(data).__name__
    raise ConfigError(f"this is no export that can be read here: {found}, not {FORMAT!r}")


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON, each of whose keys is there once: a later one would hide the first."""
    made = dict(pairs)
    if len(made) != len(pairs):
        raise ValueError("an object has the same key twice")
    return made


def _check_distinct(rows: list[dict[str, Any]], given: list[dict[str, Any]]) -> None:
    if len({row["seq"] for row in rows}) != len(rows):
        raise ConfigError("two records have the same seq")
    ids = [one["id"] for one in given if one.get("id") is not None]
    if len(set(ids)) != len(ids):
        raise ConfigError("two records have the same id")


def _row(one: dict[str, Any]) -> dict[str, Any]:
    """A record of an export as a row."""
    content = check_text(one["content"], "content of a record", empty=True)
    payload = _json(one, "payload")
    seq = _whole(one["seq"], "seq", least=1)
    source = RecordType[str(one["source"]).upper()]
    partial = _flag(one, "partial")
    return {
        "ts": _time_text(one["ts"]),
        "source": int(source),
        "content": content,
        "live": _flag(one, "live") and (source == RecordType.MODEL_RESPONSE or not partial),
        "est_tokens": _whole(one["est_tokens"], "est_tokens", least=0, most=_MOST_TOKENS),
        "response_id": _text(one, "response_id"),
        "streamed": _flag(one, "streamed"),
        "seq": seq,
        "position": _whole(one.get("position") or seq, "position", least=1),
        "call_id": _text(one, "call_id"),
        "name": _text(one, "name"),
        "pinned": _flag(one, "pinned"),
        "error": _flag(one, "error"),
        "payload": payload,
        "checksum": checksum(content, payload),
        "attached": len(_list(one.get("attachments") or [], "attachments")),
        "uncounted": False,
    }


def _list(value: object, what: str) -> list[Any]:
    if isinstance(value, list):
        return value
    raise TypeError(f"{what} must be a list, not {shown(value)}")


def _json(one: dict[str, Any], key: str) -> str | None:
    """The object under *key* as it is stored, or None."""
    value = one.get(key)
    if value is None:
        return None
    if not isinstance(value, dict):
        raise TypeError(f"{key} must be an object, not {shown(value)}")
    check_json(value, key, texts=False)
    return dump_json(value)


def _whole(value: object, what: str, *, least: int, most: int = LAST_PLACE - 1) -> int:
    if isinstance(value, int) and not isinstance(value, bool) and least <= value <= most:
        return value
    raise ValueError(f"{what} must be a whole number from {least} to {most}, not {shown(value)}")


def _flag(one: dict[str, Any], key: str) -> bool:
    value = one.get(key, False)
    if isinstance(value, bool):
        return value
    raise TypeError(f"{key} must be true or false, not {shown(value)}")


def _text(one: dict[str, Any], key: str) -> str | None:
    return None if one.get(key) is None else check_text(one[key], key, empty=True)


def _time_text(text: str) -> str:
    """*text* as it is stored; it must be a time."""
    moment = parse_time(text)
    if text.endswith(" UTC"):
        return text
    return _moment_text(moment)


def _moment_text(moment: datetime) -> str:
    # Not strftime, which writes years below 1000 without their zeros.
    text = moment.astimezone(UTC).replace(tzinfo=None).isoformat(sep=" ")
    return (text.rstrip("0") if "." in text else text) + " +0000 UTC"
