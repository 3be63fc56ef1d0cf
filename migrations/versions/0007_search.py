"""Full-text search: an index over the text of the records."""

from __future__ import annotations

from pathlib import Path

from alembic import op

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    connection = op.get_bind()
    dialect = connection.dialect.name
    text = Path(__file__).with_name(f"0007.{dialect}.sql").read_text("utf-8")
    for statement in text.rstrip(";\n").split(";\n\n"):
        connection.exec_driver_sql(statement)
    if dialect == "sqlite":
        connection.exec_driver_sql("INSERT INTO search_index(search_index) VALUES ('rebuild')")
