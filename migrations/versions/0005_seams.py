"""Where a reply that was cut off went on, so that who follows it can tell what he has seen."""

from __future__ import annotations

from alembic import op

revision = "0005"
down_revision = "0004"

_WHOLE = {"sqlite": "INTEGER", "postgresql": "BIGINT"}


def upgrade() -> None:
    dialect = op.get_bind().dialect.name
    whole = _WHOLE[dialect]
    rowid = " WITHOUT ROWID" if dialect == "sqlite" else ""
    op.execute(
        f"CREATE TABLE seams (turn_id TEXT NOT NULL, attempt {whole} NOT NULL,"
        f" record_id {whole} NOT NULL, start {whole} NOT NULL,"
        f" reach {whole} DEFAULT '0' NOT NULL, PRIMARY KEY (turn_id, attempt, record_id),"
        f" FOREIGN KEY(turn_id) REFERENCES turns (id) ON DELETE CASCADE){rowid}"
    )
