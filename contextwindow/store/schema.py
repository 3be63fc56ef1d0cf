"""The tables, indexes and views of the newest revision.

A new database is made from this file; an older one is brought here by ``migrations/``.  A test
holds the two against each other.

Times are text as the Go library wrote them, ``2025-10-31 08:58:20.4899189 +0000 UTC``: they sort
as text, keep nanoseconds, and mean the same on every database.  Leases are seconds of a clock
that their holders share (``Database.now``).  JSON is text with lone surrogates escaped, which
both databases store as it is.
"""

from __future__ import annotations

from typing import Final

import sqlalchemy as sa

REVISION: Final = "0007"
"""Newest revision; a database of a higher one is refused."""

metadata = sa.MetaData()

# On SQLite an INTEGER PRIMARY KEY is the rowid; PostgreSQL needs eight bytes for the same range.
_BIGINT = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
_REAL: sa.types.TypeEngine[float] = sa.Double().with_variant(sa.REAL(), "sqlite")


class GoTime(sa.types.UserDefinedType[str]):
    """Text that is declared ``DATETIME`` on SQLite, as the Go library declares it."""

    cache_ok = True

    def get_col_spec(self, **_: object) -> str:
        """The type as SQLite's ``CREATE TABLE`` has it."""
        return "DATETIME"


_TIME = sa.Text().with_variant(GoTime(), "sqlite")

contexts = sa.Table(
    "contexts",
    metadata,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("name", sa.Text, nullable=False, unique=True),
    sa.Column("start_time", _TIME, nullable=False),
    sa.Column("use_server_side_threading", sa.Boolean, nullable=False, server_default=sa.false()),
    sa.Column("last_response_id", sa.Text),
    # Counters, kept in the transaction of the change: reading them never counts rows.
    sa.Column("next_seq", _BIGINT, nullable=False, server_default="1"),
    sa.Column("record_count", _BIGINT, nullable=False, server_default="0"),
    sa.Column("live_count", _BIGINT, nullable=False, server_default="0"),
    sa.Column("live_tokens", _BIGINT, nullable=False, server_default="0"),
    # Live records whose est_tokens is a guess because no encoding was loaded at the time.
    sa.Column("uncounted", _BIGINT, nullable=False, server_default="0"),
    sa.Column("total_tokens", _BIGINT, nullable=False, server_default="0"),
    sa.Column("last_activity", _TIME),
    sa.Column("max_tokens", _BIGINT),
    sa.Column("parent_context_id", sa.Text),
    sa.Column("metadata", sa.Text),
    # Fencing token: grows with each turn that is started or taken over, never falls.
    sa.Column("epoch", _BIGINT, nullable=False, server_default="0"),
    # What the calls that have ended have used.
    sa.Column("calls", _BIGINT, nullable=False, server_default="0"),
    sa.Column("input_tokens", _BIGINT, nullable=False, server_default="0"),
    sa.Column("output_tokens", _BIGINT, nullable=False, server_default="0"),
    sa.Column("cache_read_tokens", _BIGINT, nullable=False, server_default="0"),
    sa.Column("cache_write_tokens", _BIGINT, nullable=False, server_default="0"),
    sa.Column("reasoning_tokens", _BIGINT, nullable=False, server_default="0"),
    sa.Column("estimated_calls", _BIGINT, nullable=False, server_default="0"),
    sa.Column("unpriced_calls", _BIGINT, nullable=False, server_default="0"),
    # Millionths of a millionth of a US dollar: whole numbers add up without an error.
    sa.Column("cost_pico", _BIGINT, nullable=False, server_default="0"),
)

records = sa.Table(
    "records",
    metadata,
    sa.Column("id", _BIGINT, primary_key=True, autoincrement=True),
    sa.Column(
        "context_id", sa.Text, sa.ForeignKey("contexts.id", ondelete="CASCADE"), nullable=False
    ),
    sa.Column("ts", _TIME, nullable=False),
    sa.Column("source", sa.Integer, nullable=False),
    sa.Column("content", sa.Text, nullable=False),
    sa.Column("live", sa.Boolean, nullable=False),
    sa.Column("est_tokens", sa.Integer, nullable=False),
    sa.Column("response_id", sa.Text),
    sa.Column("streamed", sa.Boolean, nullable=False, server_default=sa.false()),
    sa.Column("partial_response_id", sa.Text),
    sa.Column("accumulated_tokens", sa.Integer),
    sa.Column("seq", _BIGINT, nullable=False),
    sa.Column("position", _BIGINT, nullable=False),
    sa.Column("turn_id", sa.Text),
    sa.Column("call_id", sa.Text),
    sa.Column("name", sa.Text),
    sa.Column("payload", sa.Text),
    sa.Column("checksum", _BIGINT),
    sa.Column("idempotency_key", sa.Text),
    sa.Column("pinned", sa.Boolean, nullable=False, server_default=sa.false()),
    sa.Column("error", sa.Boolean, nullable=False, server_default=sa.false()),
    # est_tokens is a guess (no encoding was loaded) until a later write counts the text.
    sa.Column("uncounted", sa.Boolean, nullable=False, server_default=sa.false()),
    # How many attachments it has: without any, nobody looks for them.
    sa.Column("attached", sa.Integer, nullable=False, server_default="0"),
    sqlite_autoincrement=True,
)
sa.Index("idx_context_live", records.c.context_id, records.c.live)
sa.Index("records_context_seq", records.c.context_id, records.c.seq, unique=True)
sa.Index("records_order", records.c.context_id, records.c.position, records.c.seq)
sa.Index(
    "records_idempotency",
    records.c.context_id,
    records.c.idempotency_key,
    unique=True,
    sqlite_where=records.c.idempotency_key.is_not(None),
    postgresql_where=records.c.idempotency_key.is_not(None),
)
sa.Index(
    "records_partial",
    records.c.partial_response_id,
    sqlite_where=records.c.partial_response_id.is_not(None),
    postgresql_where=records.c.partial_response_id.is_not(None),
)
sa.Index(
    "records_turn",
    records.c.turn_id,
    sqlite_where=records.c.turn_id.is_not(None),
    postgresql_where=records.c.turn_id.is_not(None),
)

record_deltas = sa.Table(
    "record_deltas",
    metadata,
    sa.Column(
        "record_id",
        _BIGINT,
        sa.ForeignKey("records.id", ondelete="CASCADE"),
        primary_key=True,
        autoincrement=False,
    ),
    sa.Column("idx", _BIGINT, primary_key=True, autoincrement=False),
    sa.Column("delta", sa.Text, nullable=False),
    sqlite_with_rowid=False,
)

# Bytes that records name, each once however often it was attached.
attachments = sa.Table(
    "attachments",
    metadata,
    sa.Column("digest", sa.Text, primary_key=True),
    sa.Column("media_type", sa.Text, nullable=False),
    sa.Column("size_bytes", _BIGINT, nullable=False),
    sa.Column("data", sa.LargeBinary, nullable=False),
)

record_attachments = sa.Table(
    "record_attachments",
    metadata,
    sa.Column(
        "record_id",
        _BIGINT,
        sa.ForeignKey("records.id", ondelete="CASCADE"),
        primary_key=True,
        autoincrement=False,
    ),
    sa.Column("idx", _BIGINT, primary_key=True, autoincrement=False),
    # NULL for a URL.
    sa.Column("digest", sa.Text, sa.ForeignKey("attachments.digest")),
    sa.Column("url", sa.Text),
    sa.Column("media_type", sa.Text, nullable=False),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("checksum", _BIGINT, nullable=False),
    sqlite_with_rowid=False,
)
# For what names bytes that may go.
sa.Index(
    "record_attachments_digest",
    record_attachments.c.digest,
    sqlite_where=record_attachments.c.digest.is_not(None),
    postgresql_where=record_attachments.c.digest.is_not(None),
)

turns = sa.Table(
    "turns",
    metadata,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column(
        "context_id", sa.Text, sa.ForeignKey("contexts.id", ondelete="CASCADE"), nullable=False
    ),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("owner", sa.Text, nullable=False),
    sa.Column("epoch", _BIGINT, nullable=False),
    sa.Column("heartbeat", _REAL, nullable=False),
    sa.Column("expires", _REAL, nullable=False),
    sa.Column("started", _TIME, nullable=False),
    sa.Column("ended", _TIME),
    sa.Column("error", sa.Text),
    sqlite_with_rowid=False,
)
# The lease is a constraint: a context has one running turn at the most.
sa.Index(
    "turns_one_running",
    turns.c.context_id,
    unique=True,
    sqlite_where=turns.c.state == sa.literal_column("'running'"),
    postgresql_where=turns.c.state == sa.literal_column("'running'"),
)
sa.Index("turns_context", turns.c.context_id, turns.c.started)

# A running turn that somebody wants to stop; it may run in another process.
cancellations = sa.Table(
    "cancellations",
    metadata,
    sa.Column("turn_id", sa.Text, sa.ForeignKey("turns.id", ondelete="CASCADE"), primary_key=True),
    sa.Column("epoch", _BIGINT, primary_key=True, autoincrement=False),
    sa.Column("asked_by", sa.Text, nullable=False),
    sa.Column("asked", sa.Text, nullable=False),
    sqlite_with_rowid=False,
)

# Where an attempt at a turn found the records that it goes on with.
seams = sa.Table(
    "seams",
    metadata,
    sa.Column("turn_id", sa.Text, sa.ForeignKey("turns.id", ondelete="CASCADE"), primary_key=True),
    # The epoch times 256, and how often the reply was resumed within it.
    sa.Column("attempt", _BIGINT, primary_key=True, autoincrement=False),
    sa.Column("record_id", _BIGINT, primary_key=True, autoincrement=False),
    # Characters that the attempt found (-1: it made the record), and how far it reached before it
    # was set back.
    sa.Column("start", _BIGINT, nullable=False),
    sa.Column("reach", _BIGINT, nullable=False, server_default="0"),
    sqlite_with_rowid=False,
)

calls = sa.Table(
    "calls",
    metadata,
    sa.Column("id", _BIGINT, primary_key=True, autoincrement=True),
    sa.Column("turn_id", sa.Text, sa.ForeignKey("turns.id", ondelete="CASCADE"), nullable=False),
    sa.Column("context_id", sa.Text, nullable=False),
    sa.Column("provider", sa.Text, nullable=False),
    sa.Column("model", sa.Text, nullable=False),
    sa.Column("started", _TIME, nullable=False),
    sa.Column("response_id", sa.Text),
    sa.Column("cursor", sa.Text),
    sa.Column("finish_reason", sa.Text),
    sa.Column("input_tokens", _BIGINT),
    sa.Column("output_tokens", _BIGINT),
    sa.Column("cache_read_tokens", _BIGINT),
    sa.Column("cache_write_tokens", _BIGINT),
    sa.Column("reasoning_tokens", _BIGINT),
    sa.Column("usage_estimated", sa.Boolean, nullable=False, server_default=sa.false()),
    # Decimal as text: a float would change it.
    sa.Column("cost", sa.Text),
    sa.Column("ttft", _REAL),
    sa.Column("duration", _REAL),
    sa.Column("error", sa.Text),
    sa.Column("manifest", sa.Text, nullable=False, server_default="[]"),
    sa.Column("options", sa.Text, nullable=False, server_default="{}"),
    # Counted by us, until the provider says: for a call that never tells its usage.
    sa.Column("sent_tokens", _BIGINT),
)
# Calls of a context are found through its turns: each index costs every turn a page of the log.
sa.Index("calls_turn", calls.c.turn_id)

# Each time that records have left the window to make room.
compactions = sa.Table(
    "compactions",
    metadata,
    sa.Column("id", _BIGINT, primary_key=True, autoincrement=True),
    sa.Column(
        "context_id", sa.Text, sa.ForeignKey("contexts.id", ondelete="CASCADE"), nullable=False
    ),
    # NULL where it was asked for outside of a turn.
    sa.Column("turn_id", sa.Text),
    sa.Column("ts", _TIME, nullable=False),
    # 'trigger', 'too long' (the provider said so) or 'asked'.
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("strategies", sa.Text, nullable=False),
    # Ids of the records that left, as ranges.
    sa.Column("removed", sa.Text, nullable=False),
    sa.Column("summary_id", _BIGINT),
    sa.Column("tokens_before", _BIGINT, nullable=False),
    sa.Column("tokens_after", _BIGINT, nullable=False),
)
sa.Index("compactions_context", compactions.c.context_id)

context_tools = sa.Table(
    "context_tools",
    metadata,
    sa.Column("id", _BIGINT, primary_key=True, autoincrement=True),
    sa.Column(
        "context_id", sa.Text, sa.ForeignKey("contexts.id", ondelete="CASCADE"), nullable=False
    ),
    sa.Column("tool_name", sa.Text, nullable=False),
    sa.Column("created_at", _TIME, nullable=False),
    sa.UniqueConstraint("context_id", "tool_name"),
    sqlite_autoincrement=True,
)
sa.Index("idx_context_tools_context", context_tools.c.context_id)

_IN_FLIGHT = {
    "sqlite": "coalesce((SELECT group_concat(delta, '') FROM"
    " (SELECT delta FROM record_deltas d WHERE d.record_id = r.id ORDER BY idx)), '')",
    "postgresql": "coalesce((SELECT string_agg(delta, '' ORDER BY idx) FROM record_deltas d"
    " WHERE d.record_id = r.id), '')",
}

# PostgreSQL's REAL has six digits.
_EXACT = {"sqlite": "REAL", "postgresql": "NUMERIC"}


def view_statements(dialect: str) -> dict[str, str]:
    """``CREATE VIEW`` statements for people who look into the database, by view name.

    Args:
        dialect: ``"sqlite"`` or ``"postgresql"``.
    """
    return {
        "transcript": f"""CREATE VIEW transcript AS
SELECT c.name AS context, r.seq AS seq, r.ts AS time,
  CASE r.source WHEN 0 THEN 'user' WHEN 1 THEN 'assistant' WHEN 2 THEN 'tool call'
    WHEN 3 THEN 'tool output' WHEN 4 THEN 'system' WHEN 5 THEN 'reasoning'
    WHEN 6 THEN 'summary' ELSE 'unknown' END AS role,
  r.name AS tool, r.content || {_IN_FLIGHT[dialect]} AS text,
  CASE WHEN r.partial_response_id IS NULL THEN 'whole'
    WHEN t.state = 'running' THEN 'streaming' ELSE 'partial' END AS state,
  r.live AS live, r.id AS record_id
FROM records r JOIN contexts c ON c.id = r.context_id LEFT JOIN turns t ON t.id = r.turn_id
ORDER BY c.name, r.position, r.seq""",
        "usage_by_day": f"""CREATE VIEW usage_by_day AS
SELECT substr(started, 1, 10) AS day, provider, model, count(*) AS calls,
  sum(coalesce(input_tokens, 0)) AS input_tokens,
  sum(coalesce(output_tokens, 0)) AS output_tokens,
  sum(coalesce(cache_read_tokens, 0)) AS cache_read_tokens,
  sum(coalesce(cache_write_tokens, 0)) AS cache_write_tokens,
  sum(coalesce(reasoning_tokens, 0)) AS reasoning_tokens,
  sum(CAST(cost AS {_EXACT[dialect]})) AS cost,
  sum(CASE WHEN cost IS NULL AND input_tokens + output_tokens > 0 THEN 1 ELSE 0 END)
    AS unpriced_calls,
  sum(CASE WHEN usage_estimated THEN 1 ELSE 0 END) AS estimated_calls
FROM calls WHERE input_tokens IS NOT NULL GROUP BY substr(started, 1, 10), provider, model""",
        "interrupted_turns": f"""CREATE VIEW interrupted_turns AS
SELECT t.id AS turn_id, c.name AS context, t.state AS state, t.started AS started,
  t.owner AS owner, t.error AS error,
  (SELECT r.content || {_IN_FLIGHT[dialect]} FROM records r
    WHERE r.turn_id = t.id AND r.partial_response_id IS NOT NULL AND r.source = 1
    ORDER BY r.seq DESC LIMIT 1) AS partial_text
FROM turns t JOIN contexts c ON c.id = t.context_id
WHERE t.state IN ('interrupted', 'running')""",
    }
