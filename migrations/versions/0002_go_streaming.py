"""The columns that the Go library's streaming branch (its pull request 13) adds."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    have = {column["name"] for column in sa.inspect(op.get_bind()).get_columns("records")}
    for column in (
        sa.Column("streamed", sa.Boolean, nullable=False, server_default=sa.false()),
        sa.Column("partial_response_id", sa.Text),
        sa.Column("accumulated_tokens", sa.Integer),
    ):
        # A database that the streaming branch made has them.
        if column.name not in have:
            op.add_column("records", column)
