from __future__ import annotations

import ast
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from contextwindow.errors import StoreError
from contextwindow.store.engine import Database
from contextwindow.store.migrating import migrate
from contextwindow.store.schema import REVISION

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def migrated(database: str, tmp_path: Path) -> Iterator[sa.URL]:
    """URL of a second empty database of the same kind, brought up by the migrations alone."""
    if database.startswith("postgresql"):
        other = sa.make_url(database)
        schema = schema_of(other) + "_m"
        engine = sa.create_engine(other)
        with engine.begin() as connection:
            connection.exec_driver_sql(f"CREATE SCHEMA {schema}")
        engine.dispose()
        url = other.update_query_dict({"options": f"-csearch_path={schema}"})
    else:
        url = sa.URL.create("sqlite", database=str(tmp_path / "migrated.db"))
    engine = sa.create_engine(url)
    with engine.begin() as connection:
        migrate(connection)
    engine.dispose()
    yield url
    if url.drivername.startswith("postgresql"):
        with engine.begin() as connection:
            connection.exec_driver_sql(f"DROP SCHEMA {schema_of(url)} CASCADE")
        engine.dispose()


def schema_of(url: sa.URL) -> str:
    return str(url.query.get("options", "")).removeprefix("-csearch_path=")


def test_migrations_and_schema_make_the_same_database(database: str, migrated: sa.URL) -> None:
    Database(database).close()
    made = (
        sa.make_url(database) if "://" in database else sa.URL.create("sqlite", database=database)
    )

    assert described(migrated) == described(made)


def test_a_migrated_empty_database_opens(migrated: sa.URL) -> None:
    location = str(migrated.database) if migrated.drivername == "sqlite" else migrated

    database = Database(location)
    assert database.dialect == migrated.get_backend_name()
    database.close()


def test_last_migration_is_the_newest_revision() -> None:
    files = sorted((ROOT / "migrations" / "versions").glob("[0-9]*_*.py"))

    assert files[-1].name.partition("_")[0] == REVISION


def test_every_package_is_shipped() -> None:
    packages = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"][
        "packages"
    ]
    folders = [
        *(
            "contextwindow" / path.parent.relative_to(ROOT / "contextwindow")
            for path in (ROOT / "contextwindow").rglob("*.py")
        ),
        *(
            "contextwindow.migrations" / path.parent.relative_to(ROOT / "migrations")
            for path in (ROOT / "migrations").rglob("*.py")
        ),
    ]

    assert {".".join(folder.parts) for folder in folders} <= set(packages)


def test_the_files_of_the_pages_are_shipped() -> None:
    data = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"][
        "package-data"
    ]
    folder = ROOT / "contextwindow" / "web"
    shipped = {path for pattern in data["contextwindow.web"] for path in folder.glob(pattern)}

    assert {path for path in folder.rglob("*") if path.suffix in (".css", ".js", ".svg")} == shipped


@pytest.mark.parametrize("revision", ["0001", "0002"])
def test_an_older_database_on_postgresql_is_migrated_when_it_is_opened(
    postgresql: str, revision: str
) -> None:
    engine = sa.create_engine(postgresql)
    with engine.begin() as connection:
        migrate(connection, revision)
        connection.exec_driver_sql(
            "INSERT INTO contexts (id, name, start_time) VALUES ('a', 'b', 'x')"
        )
        connection.exec_driver_sql(
            "INSERT INTO records (context_id, ts, source, content, live, est_tokens)"
            " VALUES ('a', 'x', 0, 'hello', true, 1)"
        )
    engine.dispose()
    with pytest.raises(StoreError, match="older revision"):
        Database(postgresql, read_only=True)

    database = Database(postgresql)

    with database.read() as connection:
        assert connection.execute("SELECT content, seq FROM records").fetchall() == [("hello", 1)]
    with database.write() as connection:
        row = connection.execute(
            "INSERT INTO records (context_id, ts, source, content, live, est_tokens, seq, position)"
            " VALUES ('a', 'x', 0, 'next', true, 1, 2, 2) RETURNING id"
        ).fetchone()
    database.close()
    assert row == (2,)


def described(url: sa.URL) -> Any:
    """Everything about tables and views that a program could notice."""
    engine = sa.create_engine(url)
    found = sa.inspect(engine)
    result: dict[str, Any] = {}
    for table in sorted(found.get_table_names()):
        result[table] = {
            "columns": [
                {key: str(value) for key, value in column.items()}
                for column in found.get_columns(table)
            ],
            "primary key": found.get_pk_constraint(table),
            "foreign keys": found.get_foreign_keys(table),
            "unique": sorted(map(str, found.get_unique_constraints(table))),
            "indexes": sorted(
                (str(index["name"]), index["column_names"], index["unique"])
                for index in found.get_indexes(table)
            ),
        }
    with engine.connect() as connection:
        if engine.dialect.name == "sqlite":
            views = "SELECT name, sql FROM sqlite_master WHERE type IN ('view', 'index')"
        else:
            views = (
                "SELECT viewname, definition FROM pg_views WHERE schemaname = current_schema()"
                " UNION ALL SELECT indexname, indexdef FROM pg_indexes"
                " WHERE schemaname = current_schema()"
            )
        result["views"] = {
            name: " ".join((sql or "").split()) for name, sql in connection.exec_driver_sql(views)
        }
        if engine.dialect.name == "sqlite":
            tables = "SELECT name, sql FROM sqlite_master WHERE type = 'table' ORDER BY name"
            result["sql"] = [
                (name, "".join(sql.split())) for name, sql in connection.exec_driver_sql(tables)
            ]
    engine.dispose()
    return strip_schema(result, url)


def strip_schema(result: dict[str, Any], url: sa.URL) -> Any:
    schema = schema_of(url)
    return ast.literal_eval(repr(result).replace(f"{schema}.", "")) if schema else result
