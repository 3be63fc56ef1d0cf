"""Looking whether a database is sound, and mending what can be mended."""

from __future__ import annotations

import json
from typing import Any

import click

from contextwindow import ContextWindowError, Examination, Store, Turn
from contextwindow.cli.bar import bar
from contextwindow.cli.opened import is_missing, migrated, without_password
from contextwindow.cli.terminal import harmless, one_line

SOUND, PROBLEMS, CLOSED = range(3)
"""Exit status: nothing was wrong, something was, it could not be opened."""


def run(database: str, *, check: bool, as_json: bool) -> int:
    """Examine *database* and print what was found; the exit status.

    Args:
        check: change nothing.
    """
    try:
        if is_missing(database):
            raise click.ClickException(f"{without_password(database)}: does not exist")
        with bar("copying before the migration", lazy=True) as progress:
            store = Store(database, read_only=check, progress=progress)
    except (ContextWindowError, click.ClickException) as error:
        if as_json:
            click.echo(json.dumps({"database": without_password(database), "error": str(error)}))
        else:
            click.echo(f"contextwindow: {one_line(str(error))}", err=True)
        return CLOSED
    with store:
        if store.migration is not None:
            click.echo(f"contextwindow: {migrated(store)}", err=True)
        with bar("looking") as progress:
            found = store.examine(mend=not check, progress=progress)
    if as_json:
        click.echo(json.dumps(_as_json(found)))
    else:
        _print(found)
    return SOUND if found.sound else PROBLEMS


def _print(found: Examination) -> None:
    click.echo(f"{harmless(found.location)}: revision {found.revision}", nl=False)
    click.echo(f", SQLite {found.sqlite_version}" if found.sqlite_version else ", PostgreSQL")
    click.echo(f"{found.contexts} contexts, {found.records} records")
    for turn in found.settled:
        click.echo(
            f"settled turn {turn.id}, held by {harmless(turn.owner)}: "
            f"{len(turn.partial_text)} characters of its reply are kept"
        )
    for turn_id in found.dead:
        click.echo(f"turn {turn_id} is dead: it is settled when its context is opened")
    for warning in found.warnings:
        click.echo(f"warning: {warning}")
    for problem in found.problems:
        state = "mended" if problem.mended else "problem"
        click.echo(f"{state}: {harmless(problem.text)}")
    click.echo("sound" if found.sound else f"{len(found.problems)} problems")


def _as_json(found: Examination) -> dict[str, Any]:
    return {
        "database": found.location,
        "dialect": found.dialect,
        "revision": found.revision,
        "sqlite_version": found.sqlite_version or None,
        "contexts": found.contexts,
        "records": found.records,
        "settled": [_turn(turn) for turn in found.settled],
        "dead": found.dead,
        "warnings": found.warnings,
        "problems": [
            {
                "kind": problem.kind,
                "text": problem.text,
                "mended": problem.mended,
                "record_id": problem.record_id,
            }
            for problem in found.problems
        ],
        "sound": found.sound,
    }


def _turn(turn: Turn) -> dict[str, Any]:
    return {
        "id": turn.id,
        "context_id": turn.context_id,
        "owner": turn.owner,
        "started": turn.started.isoformat(),
        "partial_text": turn.partial_text,
    }
