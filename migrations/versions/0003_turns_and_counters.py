"""Everything that the Go library has not: turns, calls, deltas, counters, order, checksums.

The tables are made anew (``0003.<dialect>.sql``, the schema as it was then) and the rows copied,
since SQLite cannot add what is NOT NULL or UNIQUE to a table.  Nothing is lost:

- contexts of one name: the oldest keeps it, the others become ``name (2)``, ``name (3)``;
- records of a context that is gone: it comes back as ``recovered-<id>``;
- tools of a context that is gone: moved to a table ``orphaned_context_tools``, which exists only
  where there were some;
- tool calls as text: ``name(arguments)`` becomes name and arguments, and is paired with its output;
- replies that were cut off: each gets an interrupted turn, so that it can be resumed.
"""

from __future__ import annotations

import itertools
import re
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from alembic import op

from contextwindow.store.values import checksum

revision = "0003"
down_revision = "0002"

_OLD = ("context_tools", "records", "contexts")
_PROMPT, _RESPONSE, _TOOL_CALL, _TOOL_OUTPUT = range(4)
_CALL = re.compile(r"([A-Za-z0-9_.-]+)\((.*)\)", re.DOTALL)

_INSERT_RECORD = sa.text(
    "INSERT INTO records (id, context_id, ts, source, content, live, est_tokens, response_id,"
    " streamed, partial_response_id, accumulated_tokens, seq, position, turn_id, call_id, name,"
    " checksum, error) VALUES (:id, :context_id, :ts, :source, :content, :live, :est_tokens,"
    " :response_id, :streamed, :partial_response_id, :accumulated_tokens, :seq, :seq, :turn_id,"
    " :call_id, :name, :checksum, :error)"
)
_INSERT_TURN = sa.text(
    "INSERT INTO turns (id, context_id, state, owner, epoch, heartbeat, expires, started, ended)"
    " VALUES (:turn_id, :context_id, 'interrupted', '', 0, 0, 0, :ts, :ts)"
)
_COUNT = """
UPDATE contexts SET
  record_count = (SELECT count(*) FROM records r WHERE r.context_id = contexts.id),
  next_seq = 1 + (SELECT count(*) FROM records r WHERE r.context_id = contexts.id),
  live_count = (SELECT count(*) FROM records r WHERE r.context_id = contexts.id AND r.live),
  live_tokens = (SELECT coalesce(sum(est_tokens), 0) FROM records r
    WHERE r.context_id = contexts.id AND r.live),
  total_tokens = (SELECT coalesce(sum(est_tokens), 0) FROM records r
    WHERE r.context_id = contexts.id),
  last_activity = (SELECT max(ts) FROM records r WHERE r.context_id = contexts.id)
"""


def upgrade() -> None:
    connection = op.get_bind()
    _set_aside()
    script = Path(__file__).with_name(f"0003.{connection.dialect.name}.sql")
    for statement in script.read_text().strip().rstrip(";").split(";\n\n"):
        connection.exec_driver_sql(statement)
    _copy_contexts(connection)
    _copy_records(connection)
    _copy_tools(connection)
    connection.exec_driver_sql(_COUNT)
    _keep_ids_unused(connection)
    for table in _OLD:
        op.drop_table(f"go_{table}")


def _set_aside() -> None:
    """Renames the old tables; their indexes would stand in the way of the new ones."""
    for name in ("idx_context_live", "idx_context_ts", "idx_context_tools_context"):
        op.drop_index(name)
    for table in _OLD:
        op.rename_table(table, f"go_{table}")
    if op.get_bind().dialect.name == "postgresql":
        for name in (
            "contexts_pkey",
            "records_pkey",
            "context_tools_pkey",
            "context_tools_context_id_tool_name_key",
        ):
            op.execute(f"ALTER INDEX {name} RENAME TO go_{name}")
        for table in ("records", "context_tools"):
            key = f"{table}_context_id_fkey"
            op.execute(f"ALTER TABLE go_{table} RENAME CONSTRAINT {key} TO go_{key}")
            op.execute(f"ALTER SEQUENCE {table}_id_seq RENAME TO go_{table}_id_seq")


def _copy_contexts(connection: sa.Connection) -> None:
    insert = sa.text(
        "INSERT INTO contexts (id, name, start_time, use_server_side_threading, last_response_id)"
        " VALUES (:id, :name, :start_time, :use_server_side_threading, :last_response_id)"
    )
    rows = [
        dict(row)
        for row in connection.exec_driver_sql(
            "SELECT id, name, start_time, use_server_side_threading, last_response_id"
            " FROM go_contexts ORDER BY start_time, id"
        ).mappings()
    ]
    rows += _lost_contexts(connection)
    taken = {row["name"] for row in rows}
    seen = set[str]()
    for row in rows:
        name = row["name"]
        if name in seen:
            free = (f"{name} ({n})" for n in itertools.count(2))
            row["name"] = next(text for text in free if text not in taken)
            taken.add(row["name"])
        seen.add(row["name"])
        connection.execute(insert, row)


def _lost_contexts(connection: sa.Connection) -> list[dict[str, Any]]:
    # The Go library runs without foreign keys, so that records can outlive their context.
    found = connection.exec_driver_sql(
        "SELECT context_id, min(ts) FROM go_records"
        " WHERE context_id NOT IN (SELECT id FROM go_contexts) GROUP BY context_id"
        " ORDER BY min(ts), context_id"
    )
    return [
        {
            "id": context_id,
            "name": f"recovered-{context_id}",
            "start_time": time,
            "use_server_side_threading": False,
            "last_response_id": None,
        }
        for context_id, time in found
    ]


def _copy_records(connection: sa.Connection) -> None:
    # By time as text and then by id: the order in which the Go library sends them, made total.
    found = connection.exec_driver_sql(
        "SELECT id, context_id, ts, source, content, live, est_tokens, response_id, streamed,"
        " partial_response_id, accumulated_tokens FROM go_records ORDER BY context_id, ts, id"
    ).mappings()
    for batch in _batched(_numbered(dict(row) for row in found), 1000):
        turns = [row for row in batch if row["turn_id"] is not None]
        if turns:
            connection.execute(_INSERT_TURN, turns)
        connection.execute(_INSERT_RECORD, batch)


def _numbered(rows: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    for _, group in itertools.groupby(rows, key=lambda row: row["context_id"]):
        pairing = _Pairing()
        for seq, row in enumerate(group, start=1):
            row |= {"seq": seq, "turn_id": None, "call_id": None, "name": None, "error": False}
            if row["partial_response_id"] is not None:
                row["turn_id"] = f"go-{row['id']}"
            pairing.apply(row)
            row["checksum"] = checksum(row["content"], None)
            yield row


class _Pairing:
    """Gives tool calls ids and their outputs the same.

    The Go library stores no ids; each output follows its call.  A prompt or a response in between
    means that the call never got its output (the process died in the tool).
    """

    def __init__(self) -> None:
        self.open_calls: deque[tuple[str, str | None]] = deque()

    def apply(self, row: dict[str, Any]) -> None:
        if row["source"] == _TOOL_CALL:
            row["call_id"] = f"go-{row['id']}"
            match = _CALL.fullmatch(row["content"])
            if match is not None:
                row["name"], row["content"] = match.groups()
            self.open_calls.append((row["call_id"], row["name"]))
        elif row["source"] == _TOOL_OUTPUT:
            row["error"] = row["content"].startswith("error: ")
            if self.open_calls:
                row["call_id"], row["name"] = self.open_calls.popleft()
        elif row["source"] in (_PROMPT, _RESPONSE):
            self.open_calls.clear()


def _copy_tools(connection: sa.Connection) -> None:
    columns = "id, context_id, tool_name, created_at"
    known = "context_id IN (SELECT id FROM contexts)"
    orphans = f"FROM go_context_tools WHERE NOT {known}"
    connection.exec_driver_sql(
        f"INSERT INTO context_tools ({columns})"  # noqa: S608
        f" SELECT {columns} FROM go_context_tools WHERE {known}"
    )
    if connection.exec_driver_sql(f"SELECT 1 {orphans}").first() is not None:
        connection.exec_driver_sql(
            f"CREATE TABLE orphaned_context_tools AS SELECT {columns} {orphans}"
        )


def _keep_ids_unused(connection: sa.Connection) -> None:
    """Lets new ids start above the old ones, those of deleted rows included."""
    if connection.dialect.name == "postgresql":
        for table in ("records", "context_tools"):
            connection.exec_driver_sql(
                f"SELECT setval('{table}_id_seq', last_value, is_called)"  # noqa: S608
                f" FROM go_{table}_id_seq"
            )
        return
    connection.exec_driver_sql(
        "DELETE FROM sqlite_sequence WHERE name IN ('records', 'context_tools')"
    )
    connection.exec_driver_sql(
        "UPDATE sqlite_sequence SET name = substr(name, 4)"
        " WHERE name IN ('go_records', 'go_context_tools')"
    )


def _batched(rows: Iterator[dict[str, Any]], size: int) -> Iterator[list[dict[str, Any]]]:
    while batch := list(itertools.islice(rows, size)):
        yield batch
