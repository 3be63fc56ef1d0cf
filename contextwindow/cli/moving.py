"""Contexts out of a database and into it."""

from __future__ import annotations

import json
import os
import sys
import tempfile
from contextlib import suppress
from typing import Any, Final

import click

from contextwindow import ConfigError, Context, ContextWindow, Store
from contextwindow.cli.bar import bar
from contextwindow.cli.group import Failed
from contextwindow.cli.opened import known, reading, writing
from contextwindow.cli.terminal import harmless, one_line

OUT: Final = ("json", "openai", "anthropic", "markdown", "html")
IN: Final = ("auto", "json", "messages", "llm")

_SQLITE: Final = b"SQLite format 3\0"


def export(database: str, context: str, *, form: str, output: str | None, force: bool) -> None:
    """A context in one of the forms of `OUT`, on standard output or in a file."""
    if output is not None:
        _check_target(output, database, force=force)
    with (
        bar("exporting"),
        reading(database) as store,
        known(store, context) as window,
    ):
        text = _exported(window, form)
    if output is not None:
        _write(output, text)
    elif sys.stdout.isatty():
        click.echo(harmless(text))
    else:
        click.echo(text)


def _exported(window: ContextWindow, form: str) -> str:
    match form:
        case "json":
            return window.export_context_json()
        case "markdown":
            return window.export_markdown()
        case "html":
            return window.export_html()
        case "openai":
            return json.dumps(window.export_messages("openai"), indent=2)
        case _:
            return json.dumps(window.export_messages("anthropic"), indent=2)


def import_(database: str, file: str, *, form: str, name: str | None, as_json: bool) -> None:
    """Contexts from a file; what they are called now is printed."""
    data = b"" if form == "llm" else _read(file)
    if form == "auto":
        form = _form_of(data, file)
    if form == "llm" and (name is not None or file == "-"):
        raise click.UsageError(
            "a log of llm is a file, and its conversations have names of their own: give no --name"
        )
    export = None if form == "llm" else _parsed(data, form, name, file)
    with writing(database, create=True) as store, bar("importing") as progress:
        if export is None:
            made = store.import_llm_logs(file, progress=progress)
        else:
            made = [store.import_context(export, name)]
        _tell(store, made, as_json=as_json)


def _tell(store: Store, made: list[Context], *, as_json: bool) -> None:
    for context in made:
        stats = store.context_stats(context.name)
        records = getattr(stats, "total_records", 0)
        if as_json:
            click.echo(
                json.dumps({"name": context.name, "context_id": context.id, "records": records})
            )
        else:
            click.echo(f"{one_line(context.name)}: {records} records")
    if not made:
        click.echo("contextwindow: all of it had been taken in before", err=True)


def _read(file: str) -> bytes:
    if file == "-":
        return sys.stdin.buffer.read()
    # Before the database is opened: closing a descriptor of its file would drop SQLite's locks.
    with open(file, "rb") as opened:
        begin = opened.read(len(_SQLITE))
        return begin if begin == _SQLITE else begin + opened.read()


def _form_of(data: bytes, file: str) -> str:
    if data.startswith(_SQLITE):
        return "llm"
    with suppress(ValueError, RecursionError):
        found = json.loads(data)
        if isinstance(found, dict) and "format" in found:
            return "json"
        if isinstance(found, list) or (isinstance(found, dict) and "messages" in found):
            return "messages"
    raise Failed(
        f"{file}: is no export, no list of messages and no log of llm; --format says what it is"
    )


def _parsed(data: bytes, form: str, name: str | None, file: str) -> Any:
    """What ``Store.import_context`` takes.

    Raises:
        ConfigError: messages are none.
    """
    if form == "json":
        return data
    try:
        messages = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{file}: is no JSON: {error}") from error
    with ContextWindow() as window:
        made = window.import_messages(messages, name)
        return window.export_context(made.name)


def _check_target(output: str, database: str, *, force: bool) -> None:
    """See whether *output* may be written.

    Raises:
        Failed: it is there already, or is the database.
    """
    if not os.path.lexists(output):
        return
    path = Store.file_of(database)
    for one in () if path is None else (path, f"{path}-wal", f"{path}-shm", f"{path}-journal"):
        if os.path.exists(one) and os.path.samefile(one, output):
            raise Failed(f"{output}: is the database itself")
    if not force:
        raise Failed(f"{output}: is there already; --force writes over it")


def _write(output: str, text: str) -> None:
    """Write a file, readable by its owner alone, whole or not at all."""
    if os.path.lexists(output) and not os.path.isfile(output):
        with open(output, "w", encoding="utf-8") as device:
            device.write(text + "\n")
        return
    folder = os.path.dirname(os.path.realpath(output))
    descriptor, temporary = tempfile.mkstemp(dir=folder, prefix=".contextwindow-")
    try:
        with open(descriptor, "w", encoding="utf-8", errors="backslashreplace") as made:
            made.write(text + "\n")
        os.replace(temporary, os.path.realpath(output))
    except BaseException:
        with suppress(OSError):
            os.unlink(temporary)
        raise
