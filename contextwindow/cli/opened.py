"""Opening the database that a command is for."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import click

from contextwindow import ContextWindow, ContextWindowError, Store
from contextwindow.cli.bar import bar
from contextwindow.cli.group import NOT_FOUND, Failed
from contextwindow.cli.terminal import one_line


def names(database: str) -> list[str]:
    """Names of the contexts, newest first; none where the database cannot be read."""
    if is_missing(database):
        return []
    try:
        with Store(database, read_only=True) as store:
            return [one.name for one in store.list_contexts()]
    except ContextWindowError:
        return []


def without_password(database: str) -> str:
    """What was given as a database, for messages: also where it is a URL that was mistyped."""
    return re.sub(r"(:/{1,2}[^:@/]*:)[^@]*@", r"\1***@", database)


def is_missing(database: str) -> bool:
    """Whether there is no such file: opening would make it."""
    path = Store.file_of(database)
    return path is not None and not os.path.lexists(path)


@contextmanager
def reading(database: str) -> Iterator[Store]:
    """The database, opened so that nothing can be written.

    Raises:
        Failed: it does not exist.
    """
    _check_exists(database)
    with Store(database, read_only=True) as store:
        yield store


@contextmanager
def writing(database: str, *, create: bool = False, silent: bool = False) -> Iterator[Store]:
    """The database, which is migrated if it is of an older revision; that is said.

    Args:
        create: make it if it is missing.
        silent: say nothing of a migration.

    Raises:
        Failed: it does not exist.
    """
    if not create:
        _check_exists(database)
    with bar("copying before the migration", lazy=True) as progress:
        store = Store(database, progress=progress)
    with store:
        if store.migration is not None and not silent:
            click.echo(f"contextwindow: {migrated(store)}", err=True)
        yield store


def migrated(store: Store) -> str:
    """What opening has done to the schema, for people."""
    done = store.migration
    if done is None:
        return f"{store.location}: has the newest revision, {store.revision}; nothing was to do"
    was = "the Go library's tables" if done.from_revision == "0000" else done.from_revision
    copy = f"; as it was before: {done.copy}" if done.copy else ""
    return one_line(f"{store.location}: migrated from {was} to {done.to_revision}{copy}")


@contextmanager
def known(store: Store, context: str, **arguments: Any) -> Iterator[ContextWindow]:
    """A window on a context that is there.

    Raises:
        ContextNotFound: it is not; none is made.
    """
    store.context_stats(context)
    with ContextWindow(store, context, **arguments) as window:
        yield window


def _check_exists(database: str) -> None:
    if is_missing(database):
        raise Failed(f"{without_password(database)}: does not exist", NOT_FOUND)
