"""The full-text index over the records, and what keeps it in step with them.

On SQLite an FTS5 table that reads its texts from ``records``.  A record that is written is only
queued, which costs a turn next to nothing; each 64th of them, and each long one, brings those that
wait into the index together, and a search brings in the rest.  What is changed or deleted leaves
the index in the same statement, whoever made it.  On PostgreSQL a GIN index over ``to_tsvector``,
which the server keeps.
"""

from __future__ import annotations

from typing import Final

SEARCHED: Final = {"sqlite": 1_000_000, "postgresql": 100_000}
"""Characters of a record that can be found; PostgreSQL refuses a tsvector above 1 MB."""

PUNCTUATION: Final = "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~"
"""What stands between words.  PostgreSQL takes addresses, paths and tags for words of their own, in
which nobody would find what they are made of."""

# A bare percent sign would be a placeholder to the driver.
_SIGNS: Final = "'" + PUNCTUATION.replace("'", "''").replace("%", "") + "' || chr(37)"

VECTOR: Final = (
    f"to_tsvector('simple'::regconfig, translate(left(records.content, {SEARCHED['postgresql']}),"
    f" {_SIGNS}, '{' ' * len(PUNCTUATION)}'))"
)
"""What PostgreSQL's index is made over: a query that is to use it says the same."""

CREATE_INDEX: Final = """CREATE VIRTUAL TABLE {name} USING fts5(content, scope,
  {source}tokenize='unicode61 remove_diacritics 2')"""

_MOST: Final = SEARCHED["sqlite"]
# A record of more characters does not wait for others to enter the index.
_LONG: Final = 50_000
# Characters from which on a batch ends: what takes too long keeps every other writer waiting.
_ENOUGH: Final = 500_000

# How a record stands in the index: its text, and its context as one word.
_ENTRY: Final = f"substr({{0}}.content, 1, {_MOST}), replace({{0}}.context_id, '-', '')"
_QUEUED: Final = "(SELECT 1 FROM search_queue WHERE record_id = {0}.id)"
SIZE: Final = f"min(length({{0}}.content), {_MOST})"
"""Characters of a record that enter the index."""

_FORGET: Final = f"""INSERT INTO search_index(search_index, rowid, content, scope)
    SELECT 'delete', old.id, {_ENTRY.format("old")}
    WHERE old.content <> '' AND NOT EXISTS {_QUEUED.format("old")};"""

_BATCH: Final = f"""SELECT record_id FROM (
      SELECT record_id, sum(size) OVER (ORDER BY record_id) - size AS before
      FROM (SELECT record_id, size FROM search_queue ORDER BY record_id LIMIT 128))
    WHERE before < {_ENOUGH}"""


def take_in() -> list[str]:
    """Statements that bring a batch of queued records into SQLite's index."""
    return [
        f"""INSERT INTO search_index(rowid, content, scope)
    SELECT r.id, {_ENTRY.format("r")}
    FROM ({_BATCH}) q JOIN records r ON r.id = q.record_id""",
        f"DELETE FROM search_queue WHERE record_id IN ({_BATCH})",
    ]


def search_statements(dialect: str) -> list[str]:
    """What makes the index of a new database.

    Args:
        dialect: ``"sqlite"`` or ``"postgresql"``.
    """
    if dialect == "postgresql":
        return [f"CREATE INDEX records_text ON records USING gin ({VECTOR})"]
    first, then = take_in()
    return [
        "CREATE TABLE search_queue (record_id INTEGER PRIMARY KEY, size INTEGER NOT NULL)",
        # While paused is 1, nothing is queued: who writes many records at once does it himself.
        # While unwiped is 1, a secure deletion has not come to its end.
        "CREATE TABLE upkeep (id INTEGER PRIMARY KEY CHECK (id = 1),"
        " paused INTEGER NOT NULL DEFAULT 0, unwiped INTEGER NOT NULL DEFAULT 0)",
        "INSERT INTO upkeep(id) VALUES (1)",
        f"""CREATE VIEW searchable AS
SELECT r.id AS id, substr(r.content, 1, {_MOST}) AS content,
  replace(r.context_id, '-', '') AS scope
FROM records r WHERE r.content <> '' AND NOT EXISTS {_QUEUED.format("r")}""",
        CREATE_INDEX.format(
            name="search_index", source="content='searchable', content_rowid='id',\n  "
        ),
        f"""CREATE TRIGGER records_search_insert AFTER INSERT ON records
  WHEN new.content <> '' AND (SELECT paused FROM upkeep) = 0
BEGIN
  INSERT INTO search_queue(record_id, size) VALUES (new.id, {SIZE.format("new")});
END""",
        f"""CREATE TRIGGER records_search_update AFTER UPDATE OF content ON records
  WHEN old.content IS NOT new.content
BEGIN
  {_FORGET}
  DELETE FROM search_queue WHERE record_id = old.id;
  INSERT INTO search_queue(record_id, size)
    SELECT new.id, {SIZE.format("new")} WHERE new.content <> '';
END""",
        f"""CREATE TRIGGER records_search_delete AFTER DELETE ON records
  WHEN old.content <> ''
BEGIN
  {_FORGET}
  DELETE FROM search_queue WHERE record_id = old.id;
END""",
        f"""CREATE TRIGGER search_queue_insert AFTER INSERT ON search_queue
  WHEN (new.record_id % 64 = 0 OR new.size > {_LONG}) AND (SELECT paused FROM upkeep) = 0
BEGIN
  {first};
  {then};
END""",
    ]
