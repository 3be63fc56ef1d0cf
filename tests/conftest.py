"""Databases to test on: each test gets its own, empty, on every engine."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, settings

# How long an example takes is the machine's affair: speed is measured in benchmarks/.
settings.register_profile("tests", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("tests")

SERVER = os.environ.get("CONTEXTWINDOW_TEST_POSTGRES", "postgresql+psycopg://root@127.0.0.1/test")
SHARED = Path(
    os.environ.get("CONTEXTWINDOW_SHARED", Path(__file__).resolve().parent.parent.parent / "shared")
)
if (SHARED / "tiktoken").exists():
    # So that counting needs no network; a machine without it counts by what it has.
    os.environ.setdefault("TIKTOKEN_CACHE_DIR", str(SHARED / "tiktoken"))


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Path or URL of a database that does not exist yet, or is empty."""
    if request.param == "sqlite":
        return str(tmp_path / "conversations.db")
    return str(request.getfixturevalue("postgresql"))


@pytest.fixture(params=["sqlite", "memory", "postgresql"])
def any_database(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """As `database`, with ``":memory:"`` too: for tests that open it once."""
    if request.param == "memory":
        return ":memory:"
    if request.param == "sqlite":
        return str(tmp_path / "conversations.db")
    return str(request.getfixturevalue("postgresql"))


@pytest.fixture
def postgresql() -> Iterator[str]:
    """URL of an empty schema of its own on the PostgreSQL server."""
    import psycopg

    url = sa.make_url(SERVER)
    schema = f"test_{uuid.uuid4().hex}"
    plain = url.set(drivername="postgresql").render_as_string(hide_password=False)
    try:
        server = psycopg.connect(plain, autocommit=True, connect_timeout=5)
    except psycopg.OperationalError as error:
        missing(f"no PostgreSQL at {url}: {error}")
    with server:
        server.execute(f"CREATE SCHEMA {schema}")
        yield url.update_query_dict({"options": f"-csearch_path={schema}"}).render_as_string(
            hide_password=False
        )
        server.execute(f"DROP SCHEMA {schema} CASCADE")
    server.close()


@pytest.fixture(params=["go_legacy", "go_main", "go_pr13", "go_quirks"])
def go_file(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A copy of a database that is laid out as the Go library does."""
    source = SHARED / "go" / f"{request.param}.db"
    if not source.exists():
        missing(f"no Go databases in {SHARED}: set CONTEXTWINDOW_SHARED")
    copy = tmp_path / source.name
    copy.write_bytes(source.read_bytes())
    return copy


def missing(what: str) -> None:
    """Skips the test; on CI, where nothing may be missing, fails it."""
    if os.environ.get("CI") == "true":
        pytest.fail(what)
    pytest.skip(what)
