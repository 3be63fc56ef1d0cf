"""Which database a user means."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass

import sqlalchemy as sa

from contextwindow.errors import ConfigError

_URL = re.compile(r"[a-zA-Z][a-zA-Z0-9+.\-_]*://")
_POSTGRESQL = {"postgres", "postgresql", "postgresql+psycopg"}
_SQLITE = {"sqlite", "sqlite+pysqlite"}


@dataclass(frozen=True, slots=True)
class Location:
    """One database, found but not opened.

    Attributes:
        dialect: ``"sqlite"`` or ``"postgresql"``.
        text: path or URL for messages, without password and options.
        path: absolute path of the SQLite file with links resolved; None in memory and on
            PostgreSQL.
        url: of the PostgreSQL database; None on SQLite.
    """

    dialect: str
    text: str
    path: str | None = None
    url: sa.URL | None = None


def locate(database: str | os.PathLike[str] | sa.URL) -> Location:
    """Reads what a user gave as *database*: a path, ``":memory:"`` or an SQLAlchemy URL.

    Raises:
        ConfigError: it is empty, no URL, or of a database that is not supported.
    """
    if isinstance(database, sa.URL):
        return _from_url(database)
    try:
        text = os.fsdecode(database)
    except TypeError as error:
        raise ConfigError(
            f"database must be a path, ':memory:' or a URL, not {type(database).__name__}"
        ) from error
    if not text or "\0" in text:
        raise ConfigError(f"database must be a path, ':memory:' or a URL, not {text!r}")
    if isinstance(database, str) and _URL.match(text):
        try:
            return _from_url(sa.make_url(text))
        except (sa.exc.ArgumentError, ValueError) as error:
            raise ConfigError(f"not a database URL: {_hide_password(text)}") from error
    if text == ":memory:":
        return Location("sqlite", text)
    return _file(text)


def _from_url(url: sa.URL) -> Location:
    if url.drivername in _POSTGRESQL:
        url = url.set(drivername="postgresql+psycopg")
        # Options may hold a password or name a file with one; host and database are enough.
        return Location("postgresql", url.set(query={}).render_as_string(), url=url)
    if url.drivername not in _SQLITE:
        raise ConfigError(
            f"{url.set(query={}).render_as_string()}: {url.drivername} is not supported, use"
            " sqlite:///PATH or postgresql+psycopg://HOST/DATABASE"
        )
    if url.query or url.host:
        raise ConfigError(f"{url}: give the path alone; options are arguments of the store")
    if url.database in (None, "", ":memory:"):
        return Location("sqlite", ":memory:")
    return _file(str(url.database))


def _file(text: str) -> Location:
    # Resolved, because SQLite puts -wal and -shm beside the file that a link points to, and a
    # later chdir must not move us to another file.
    return Location("sqlite", text, path=os.path.realpath(text))


def _hide_password(url: str) -> str:
    return re.sub(r"(://[^:/@]*):.*@", r"\1:***@", url.partition("?")[0])
