"""What left the window when it was full."""

from __future__ import annotations

from alembic import op

revision = "0006"
down_revision = "0005"

_WHOLE = {"sqlite": "INTEGER", "postgresql": "BIGINT"}
_SERIAL = {"sqlite": "INTEGER", "postgresql": "BIGSERIAL"}
_TIME = {"sqlite": "DATETIME", "postgresql": "TEXT"}


def upgrade() -> None:
    dialect = op.get_bind().dialect.name
    whole = _WHOLE[dialect]
    op.execute(
        f"CREATE TABLE compactions (id {_SERIAL[dialect]} NOT NULL, context_id TEXT NOT NULL,"
        f" turn_id TEXT, ts {_TIME[dialect]} NOT NULL, reason TEXT NOT NULL,"
        f" strategies TEXT NOT NULL, removed TEXT NOT NULL, summary_id {whole},"
        f" tokens_before {whole} NOT NULL, tokens_after {whole} NOT NULL, PRIMARY KEY (id),"
        f" FOREIGN KEY(context_id) REFERENCES contexts (id) ON DELETE CASCADE)"
    )
    op.execute("CREATE INDEX compactions_context ON compactions (context_id)")
