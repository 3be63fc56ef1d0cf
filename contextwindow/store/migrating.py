"""Runs the migrations; loaded, and Alembic with it, only when there is something to migrate."""

from __future__ import annotations

import threading
from pathlib import Path

import sqlalchemy as sa
from alembic import command
from alembic.config import Config

from contextwindow.errors import StoreError
from contextwindow.store.schema import REVISION

# Alembic keeps the migration that runs in module globals.
_lock = threading.Lock()


def migrate(connection: sa.Connection, revision: str = REVISION) -> None:
    """Brings the database to *revision* in the transaction that is open on *connection*.

    Args:
        connection: of either dialect; the caller commits.
        revision: up to which; a test stops earlier.
    """
    config = Config()
    config.set_main_option("script_location", str(migrations_folder()).replace("%", "%%"))
    config.attributes["connection"] = connection
    with _lock:
        command.upgrade(config, revision)


def migrations_folder() -> Path:
    """Where ``env.py`` is: in the installed package, or beside it in a checkout.

    Raises:
        StoreError: in neither place.
    """
    package = Path(__file__).resolve().parent.parent
    for folder in (package / "migrations", package.parent / "migrations"):
        if (folder / "env.py").is_file():
            return folder
    raise StoreError(f"the migrations are missing from the installation in {package}")
