"""What the calls of each context have used, counted up, and what a call sends; attachments.

Columns are added, not tables made anew: all have a default or may be NULL.
"""

from __future__ import annotations

from alembic import op

revision = "0004"
down_revision = "0003"

_COUNTERS = (
    "calls",
    "input_tokens",
    "output_tokens",
    "cache_read_tokens",
    "cache_write_tokens",
    "reasoning_tokens",
    "estimated_calls",
    "unpriced_calls",
    "cost_pico",
)
_WHOLE = {"sqlite": "INTEGER", "postgresql": "BIGINT"}
_EXACT = {"sqlite": "REAL", "postgresql": "NUMERIC"}

_COUNT_UP = """
UPDATE contexts SET
  calls = (SELECT count(*) FROM calls c WHERE {own}),
  input_tokens = (SELECT coalesce(sum(input_tokens), 0) FROM calls c WHERE {own}),
  output_tokens = (SELECT coalesce(sum(output_tokens), 0) FROM calls c WHERE {own}),
  cache_read_tokens = (SELECT coalesce(sum(cache_read_tokens), 0) FROM calls c WHERE {own}),
  cache_write_tokens = (SELECT coalesce(sum(cache_write_tokens), 0) FROM calls c WHERE {own}),
  reasoning_tokens = (SELECT coalesce(sum(reasoning_tokens), 0) FROM calls c WHERE {own}),
  estimated_calls = (SELECT count(*) FROM calls c WHERE {own} AND usage_estimated),
  unpriced_calls = (SELECT count(*) FROM calls c WHERE {own} AND cost IS NULL
    AND coalesce(input_tokens, 0) + coalesce(output_tokens, 0) > 0),
  cost_pico = (SELECT coalesce(sum(
      CAST(round(CAST(cost AS {exact}) * 1000000000000) AS {whole})), 0)
    FROM calls c WHERE {own})
"""
_OWN = "c.context_id = contexts.id AND c.input_tokens IS NOT NULL"

_USAGE_BY_DAY = """CREATE VIEW usage_by_day AS
SELECT substr(started, 1, 10) AS day, provider, model, count(*) AS calls,
  sum(coalesce(input_tokens, 0)) AS input_tokens,
  sum(coalesce(output_tokens, 0)) AS output_tokens,
  sum(coalesce(cache_read_tokens, 0)) AS cache_read_tokens,
  sum(coalesce(cache_write_tokens, 0)) AS cache_write_tokens,
  sum(coalesce(reasoning_tokens, 0)) AS reasoning_tokens,
  sum(CAST(cost AS {exact})) AS cost,
  sum(CASE WHEN cost IS NULL AND input_tokens + output_tokens > 0 THEN 1 ELSE 0 END)
    AS unpriced_calls,
  sum(CASE WHEN usage_estimated THEN 1 ELSE 0 END) AS estimated_calls
FROM calls WHERE input_tokens IS NOT NULL GROUP BY substr(started, 1, 10), provider, model"""


def upgrade() -> None:
    connection = op.get_bind()
    dialect = connection.dialect.name
    types = {"whole": _WHOLE[dialect], "exact": _EXACT[dialect]}
    for name in _COUNTERS:
        connection.exec_driver_sql(
            f"ALTER TABLE contexts ADD COLUMN {name} {types['whole']} DEFAULT '0' NOT NULL"
        )
    connection.exec_driver_sql(f"ALTER TABLE calls ADD COLUMN sent_tokens {types['whole']}")
    connection.exec_driver_sql(_COUNT_UP.format(own=_OWN, **types))
    connection.exec_driver_sql("DROP VIEW usage_by_day")
    connection.exec_driver_sql(_USAGE_BY_DAY.format(**types))
    _create_cancellations(types["whole"])
    _create_attachments(types["whole"])


def _create_cancellations(whole: str) -> None:
    """A running turn can be asked to stop by any process."""
    rowid = " WITHOUT ROWID" if op.get_bind().dialect.name == "sqlite" else ""
    op.execute(
        f"CREATE TABLE cancellations (turn_id TEXT NOT NULL, epoch {whole} NOT NULL,"
        " asked_by TEXT NOT NULL, asked TEXT NOT NULL, PRIMARY KEY (turn_id, epoch),"
        f" FOREIGN KEY(turn_id) REFERENCES turns (id) ON DELETE CASCADE){rowid}"
    )


def _create_attachments(whole: str) -> None:
    """Bytes once by their hash, and which record names them."""
    sqlite = op.get_bind().dialect.name == "sqlite"
    rowid, binary = (" WITHOUT ROWID", "BLOB") if sqlite else ("", "BYTEA")
    op.execute("ALTER TABLE records ADD COLUMN attached INTEGER DEFAULT '0' NOT NULL")
    op.execute(
        f"CREATE TABLE attachments (digest TEXT NOT NULL, media_type TEXT NOT NULL,"
        f" size_bytes {whole} NOT NULL, data {binary} NOT NULL, PRIMARY KEY (digest))"
    )
    op.execute(
        f"CREATE TABLE record_attachments (record_id {whole} NOT NULL, idx {whole} NOT NULL,"
        " digest TEXT, url TEXT, media_type TEXT NOT NULL, name TEXT NOT NULL,"
        f" checksum {whole} NOT NULL, PRIMARY KEY (record_id, idx),"
        " FOREIGN KEY(record_id) REFERENCES records (id) ON DELETE CASCADE,"
        f" FOREIGN KEY(digest) REFERENCES attachments (digest)){rowid}"
    )
    op.execute(
        "CREATE INDEX record_attachments_digest ON record_attachments (digest)"
        " WHERE digest IS NOT NULL"
    )
