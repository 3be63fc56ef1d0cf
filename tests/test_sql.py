"""Queries of the documents, and what Datasette is told of the tables."""

from __future__ import annotations

import json
import re
import sqlite3
from contextlib import closing
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from support import file as file

from contextwindow import ContextWindow, ModelError, Prices, Store
from contextwindow.testing import ScriptedModel, ScriptedReply

DOCS = Path(__file__).resolve().parent.parent / "docs"
QUERIES = dict(
    re.findall(
        r"^## \d+\. (.*?)\n.*?```sql\n(.*?)\n```", (DOCS / "sql.md").read_text("utf-8"), re.M | re.S
    )
)
METADATA: dict[str, Any] = json.loads((DOCS / "datasette.json").read_text("utf-8"))
(DATASETTE,) = METADATA["databases"].values()


def fill(database: str) -> None:
    """Everything that a query of the documents asks for, once at least."""
    model = ScriptedModel(
        [
            ScriptedReply("", tool_calls=[("look", {"at": "it"}), ("fail", {})]),
            "Fine.",
            ScriptedReply("It was a dark", fault="eof", fail_at=2),
        ]
    )
    model.prices = Prices(input=Decimal(1), output=Decimal(2))

    def look(at: str) -> str:
        """Look."""
        return at

    def fail() -> str:
        """Fail."""
        raise ValueError("no")

    with Store(database) as store:
        with ContextWindow(store, "alice", model=model, tools=[look, fail]) as window:
            window.add_prompt("How are you?")
            window.call_model()
            window.fork("bob")
            window.add_prompt("Tell me a story.")
            with pytest.raises(ModelError):
                window.call_model(max_resumes=0)


@pytest.mark.parametrize("title", QUERIES)
def test_a_query_of_the_documents_finds_what_it_is_for(title: str, database: str) -> None:
    fill(database)
    url = database if "://" in database else f"sqlite:///{database}"
    engine = sa.create_engine(url)
    with engine.connect() as connection:
        found = connection.exec_driver_sql(QUERIES[title].replace("%", "%%")).mappings().all()
    engine.dispose()
    assert found


def test_there_are_ten_queries_and_datasette_has_the_same() -> None:
    assert len(QUERIES) == 10
    given = DATASETTE["queries"].values()
    assert {one["title"]: one["sql"] for one in given} == QUERIES
    assert all(one["description"] for one in given)


def test_tools_that_failed_are_counted(file: str) -> None:
    fill(file)
    with closing(sqlite3.connect(file)) as connection:
        found = connection.execute(QUERIES["How often each tool was called, and failed"]).fetchall()
    assert sorted(found) == [("fail", 2, 2, 0), ("look", 2, 0, 0)]  # one of each in the fork


def test_every_table_and_view_is_described_or_hidden_and_no_other(file: str) -> None:
    fill(file)
    with closing(sqlite3.connect(file)) as connection:
        names = {
            name
            for (name,) in connection.execute(
                "SELECT name FROM sqlite_master WHERE type IN ('table', 'view')"
                " AND name NOT LIKE 'sqlite!_%' ESCAPE '!'"
            )
        }
        columns = {
            name: {row[1] for row in connection.execute(f"PRAGMA table_info({name})")}
            for name in names
        }
    described = DATASETTE["tables"]
    assert set(described) == names
    for name, told in described.items():
        assert told.get("hidden") or (told["title"] and told["description"]), name
        assert set(told.get("columns", ())) <= columns[name], name
        assert {told.get("sort_desc", "id")} <= columns[name] | {"id"}, name
