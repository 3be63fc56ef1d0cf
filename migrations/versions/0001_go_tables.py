"""The tables of the Go library's main branch, as its ``InitializeSchema`` makes them.

Existing tables are kept and get the columns and indexes they lack: that is how the Go library
upgrades its older files, and how every file of its comes to one form here.
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

_BIGINT = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


class _GoTime(sa.types.UserDefinedType[str]):
    cache_ok = True

    def get_col_spec(self, **_: object) -> str:
        return "DATETIME"


_TIME = sa.Text().with_variant(_GoTime(), "sqlite")


def upgrade() -> None:
    for table in _tables():
        table.create(op.get_bind(), checkfirst=True)
    _add(
        "contexts",
        sa.Column(
            "use_server_side_threading", sa.Boolean, nullable=False, server_default=sa.false()
        ),
        sa.Column("last_response_id", sa.Text),
    )
    _add("records", sa.Column("response_id", sa.Text))
    _index("idx_context_live", "records", ["context_id", "live"])
    _index("idx_context_ts", "records", ["context_id", "ts"])
    _index("idx_context_tools_context", "context_tools", ["context_id"])


def _add(table: str, *columns: sa.Column[Any]) -> None:
    have = {column["name"] for column in sa.inspect(op.get_bind()).get_columns(table)}
    for column in columns:
        if column.name not in have:
            op.add_column(table, column)


def _index(name: str, table: str, columns: list[str]) -> None:
    op.create_index(name, table, columns, if_not_exists=True)


def _tables() -> list[sa.Table]:
    metadata = sa.MetaData()
    contexts = sa.Table(
        "contexts",
        metadata,
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("start_time", _TIME, nullable=False),
    )
    records = sa.Table(
        "records",
        metadata,
        sa.Column("id", _BIGINT, primary_key=True, autoincrement=True),
        _context_id(),
        sa.Column("ts", _TIME, nullable=False),
        sa.Column("source", sa.Integer, nullable=False),
        sa.Column("content", sa.Text, nullable=False),
        sa.Column("live", sa.Boolean, nullable=False),
        sa.Column("est_tokens", sa.Integer, nullable=False),
        sqlite_autoincrement=True,
    )
    context_tools = sa.Table(
        "context_tools",
        metadata,
        sa.Column("id", _BIGINT, primary_key=True, autoincrement=True),
        _context_id(),
        sa.Column("tool_name", sa.Text, nullable=False),
        sa.Column("created_at", _TIME, nullable=False),
        sa.UniqueConstraint("context_id", "tool_name"),
        sqlite_autoincrement=True,
    )
    return [contexts, records, context_tools]


def _context_id() -> sa.Column[str]:
    key = sa.ForeignKey("contexts.id", ondelete="CASCADE")
    return sa.Column("context_id", sa.Text, key, nullable=False)
