"""The full-text index over the records, and what keeps it in step with them.

On SQLite an FTS5 table that reads its texts from ``records``.  A record that is written is only
queued, which costs a turn next to nothing; each 64th of them brings those that wait into the index
together, and a search brings in the rest.  What is changed or deleted leaves the index in the same
statement, whoever made it.  On PostgreSQL a GIN index over ``to_tsvector``, which the server keeps.
"""

from __future__ import annotations

from typing import Final

SEARCHED: Final = {"sqlite": 1_000_000, "postgresql": 100_000}
"""Characters of a record that can be found; PostgreSQL refuses a tsvector above 1 MB."""

VECTOR: Final = f"to_tsvector('simple'::regconfig, left(records.content, {SEARCHED['postgresql']}))"
"""What PostgreSQL's index is made over: a query that is to use it has the same words."""

CREATE_INDEX: Final = """CREATE VIRTUAL TABLE {name} USING fts5(content, scope,
  {source}tokenize='unicode61 remove_diacritics 2')"""

# How a record stands in the index: its text, and its context as one word.
_ENTRY: Final = "substr({0}.content, 1, 1000000), replace({0}.context_id, '-', '')"
_QUEUED: Final = "(SELECT 1 FROM search_queue WHERE record_id = {0}.id)"

_FORGET: Final = f"""INSERT INTO search_index(search_index, rowid, content, scope)
    SELECT 'delete', old.id, {_ENTRY.format("old")}
    WHERE old.content <> '' AND NOT EXISTS {_QUEUED.format("old")};"""

_BATCH: Final = "SELECT record_id FROM search_queue ORDER BY record_id LIMIT {0}"


def take_in(most: str) -> list[str]:
    """Statements that bring queued records into SQLite's index, at most so many.

    Args:
        most: a number, or a placeholder.
    """
    return [
        f"""INSERT INTO search_index(rowid, content, scope)
    SELECT r.id, {_ENTRY.format("r")}
    FROM ({_BATCH.format(most)}) q JOIN records r ON r.id = q.record_id""",
        f"DELETE FROM search_queue WHERE record_id IN ({_BATCH.format(most)})",
    ]


def search_statements(dialect: str) -> list[str]:
    """What makes the index of a new database.

    Args:
        dialect: ``"sqlite"`` or ``"postgresql"``.
    """
    if dialect == "postgresql":
        return [f"CREATE INDEX records_text ON records USING gin ({VECTOR})"]
    first, then = take_in("128")
    return [
        "CREATE TABLE search_queue (record_id INTEGER PRIMARY KEY)",
        # While it is 1, nothing is queued: who writes many records at once does it himself.
        "CREATE TABLE search_state (id INTEGER PRIMARY KEY CHECK (id = 1),"
        " paused INTEGER NOT NULL DEFAULT 0)",
        "INSERT INTO search_state VALUES (1, 0)",
        f"""CREATE VIEW searchable AS
SELECT r.id AS id, substr(r.content, 1, 1000000) AS content,
  replace(r.context_id, '-', '') AS scope
FROM records r WHERE r.content <> '' AND NOT EXISTS {_QUEUED.format("r")}""",
        CREATE_INDEX.format(
            name="search_index", source="content='searchable', content_rowid='id',\n  "
        ),
        """CREATE TRIGGER records_search_insert AFTER INSERT ON records
  WHEN new.content <> '' AND (SELECT paused FROM search_state) = 0
BEGIN
  INSERT INTO search_queue(record_id) VALUES (new.id);
END""",
        f"""CREATE TRIGGER records_search_update AFTER UPDATE OF content ON records
  WHEN old.content IS NOT new.content
BEGIN
  {_FORGET}
  DELETE FROM search_queue WHERE record_id = old.id;
  INSERT INTO search_queue(record_id) SELECT new.id WHERE new.content <> '';
END""",
        f"""CREATE TRIGGER records_search_delete AFTER DELETE ON records
  WHEN old.content <> ''
BEGIN
  {_FORGET}
  DELETE FROM search_queue WHERE record_id = old.id;
END""",
        f"""CREATE TRIGGER search_queue_insert AFTER INSERT ON search_queue
  WHEN new.record_id % 64 = 0 AND (SELECT paused FROM search_state) = 0
BEGIN
  {first};
  {then};
END""",
    ]
