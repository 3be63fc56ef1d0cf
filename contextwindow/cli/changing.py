"""Forks, room in a window, deletion and migration."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime, timedelta
from typing import Final

import click

from contextwindow import CompactionResult, Model
from contextwindow.cli import models
from contextwindow.cli.bar import bar
from contextwindow.cli.figures import money
from contextwindow.cli.group import Failed, complain
from contextwindow.cli.opened import known, migrated, reading, writing
from contextwindow.cli.terminal import one_line

_SPAN: Final = re.compile(r"(\d+)\s*([smhdw])", re.ASCII)
_UNITS: Final = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


def fork(database: str, context: str, new: str, *, at: int | None) -> None:
    """Copy a context, up to and including the record *at*."""
    with writing(database) as store, known(store, context) as window:
        made = window.fork(new, at=at)
        records = window.context_stats(made.name).total_records
    click.echo(f"{one_line(made.name)}: {records} records of {one_line(context)}")


def compact(
    database: str,
    context: str,
    *,
    dry_run: bool,
    max_tokens: int | None,
    model: str | None,
    base_url: str | None,
    as_json: bool,
) -> None:
    """Make room in a window, or say what would leave it."""
    summarizer = None if model is None else models.chosen(model, base_url)
    try:
        with (
            writing(database) as store,
            known(store, context, summarizer=summarizer, max_tokens=max_tokens) as window,
        ):
            done = window.compact(dry_run=dry_run)
    finally:
        if isinstance(summarizer, Model):
            summarizer.close()
    if as_json:
        click.echo(json.dumps(_compaction(done)))
        return
    verb = "would leave" if dry_run else "left"
    click.echo(f"{len(done.removed)} records {verb} the window, by {_by(done)}")
    after = "after" if dry_run else "now"
    click.echo(f"{done.tokens_before:,} tokens before, {done.tokens_after:,} {after}")
    if done.usage.total_tokens:
        about = "about " if dry_run else ""
        click.echo(f"the summary: {about}{done.usage.total_tokens:,} tokens, {money(done.cost)}")
    for problem in done.problems:
        complain(problem)


def delete(database: str, context: str, *, secure: bool, yes: bool) -> None:
    """Delete a context, once its name was typed."""
    with writing(database) as store:
        stats = store.context_stats(context)
        if not yes:
            records = getattr(stats, "total_records", 0)
            click.echo(f"{one_line(context)} and its {records} records will be gone.", err=True)
            typed = click.prompt("Type its name to delete it", default="", err=True)
            if typed != context:
                raise Failed("that is another name; nothing was deleted")
        store.delete_context(context, secure=secure)
    click.echo(f"{one_line(context)}: deleted")


def prune(
    database: str, older_than: str, *, dry_run: bool, secure: bool, yes: bool, as_json: bool
) -> None:
    """Delete the contexts in which nothing has happened for long, once that was agreed to."""
    # A moment, so that what was agreed to is what is deleted.
    moment = _moment(older_than)
    with (reading if dry_run else writing)(database) as store:
        gone = store.prune(moment, dry_run=True)
        if not dry_run and gone:
            if not yes:
                for context in gone:
                    click.echo(one_line(context.name), err=True)
                click.confirm(f"Delete these {len(gone)} contexts?", abort=True, err=True)
            with bar("deleting") as progress:
                gone = store.prune(moment, secure=secure, progress=progress)
    for context in gone:
        if as_json:
            found = {"name": context.name, "context_id": context.id, "deleted": not dry_run}
            click.echo(json.dumps(found))
        else:
            click.echo(f"{one_line(context.name)}: {'would be ' if dry_run else ''}deleted")
    if not gone:
        click.echo("contextwindow: nothing is that old", err=True)


def migrate(database: str, *, as_json: bool) -> None:
    """Bring a database to the newest revision, as every command does that writes."""
    with writing(database, silent=True) as store:
        done = store.migration
        said = migrated(store)
        revision = store.revision
    if as_json:
        found = {
            "database": store.location,
            "from_revision": done.from_revision if done else revision,
            "to_revision": revision,
            "copy": done.copy if done else None,
        }
        click.echo(json.dumps(found))
    else:
        click.echo(said)


def _moment(text: str) -> datetime:
    """The moment that ``90d`` ago or ``2026-01-31`` stands for.

    Raises:
        UsageError: *text* is neither.
    """
    try:
        if span := _SPAN.fullmatch(text.strip()):
            return datetime.now(UTC) - timedelta(**{_UNITS[span[2]]: int(span[1])})
        moment = datetime.fromisoformat(text.strip())
        return moment.replace(tzinfo=moment.tzinfo or UTC)
    except (ValueError, OverflowError):
        raise click.UsageError(
            f"--older-than takes such as 90d, 12h, 4w or 2026-01-31, not {text!r}"
        ) from None


def _by(done: CompactionResult) -> str:
    return ", ".join(done.strategies) or "nothing: what is live has to stay"


def _compaction(done: CompactionResult) -> dict[str, object]:
    return {
        "dry_run": done.dry_run,
        "removed": [one.id for one in done.removed],
        "strategies": done.strategies,
        "summary_id": done.summary.id if done.summary else None,
        "tokens_before": done.tokens_before,
        "tokens_after": done.tokens_after,
        "cached_tokens": done.cached_tokens,
        "summary_tokens": done.usage.total_tokens,
        "cost": None if done.cost is None else str(done.cost),
        "problems": done.problems,
    }
