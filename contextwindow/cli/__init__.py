"""The command line: its commands and what they take.

What a command does is loaded when it is run: ``--help`` needs no database and no provider's SDK.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, TypeVar

import click

from contextwindow.cli.database import (
    DatabaseCommand,
    context_argument,
    database_argument,
    names,
)
from contextwindow.cli.group import Group
from contextwindow.cli.inspect import inspect

_F = TypeVar("_F", bound=Callable[..., Any])


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="contextwindow")
def main() -> None:
    """Conversations with language models that survive.

    A command's first argument is the database: a path or a URL. It can be left out where
    CONTEXTWINDOW_DB names one.
    """


def _json_option(what: str) -> Callable[[_F], _F]:
    return click.option("--json", "as_json", is_flag=True, help=what)


def _base_url_option(function: _F) -> _F:
    return click.option("--base-url", help="Server that speaks OpenAI's protocol.")(function)


_LINES = _json_option("One JSON object a line.")
_OBJECT = _json_option("One JSON object.")


# -- talking ---------------------------------------------------------------------------------


@main.command()
@click.option("--db", type=click.Path(), help="Database to use; default: one in a new folder.")
@click.option("--fast", is_flag=True, help="Stream faster.")
@click.option("--child", hidden=True, nargs=3)
def demo(db: str | None, fast: bool, child: tuple[str, str, str] | None) -> None:
    """Kill a process in mid-reply, and resume the reply in another; needs no key."""
    from contextwindow.cli import demonstration

    sys.exit(demonstration.stream(*child) if child else demonstration.run(db, fast=fast))


@main.command(cls=DatabaseCommand)
@database_argument
@click.option("-m", "--model", required=True, help="Such as openai:gpt-5-mini.")
@click.option(
    "-c",
    "--context",
    default="chat",
    show_default=True,
    shell_complete=names,
    help="Conversation.",
)
@click.option("--system", help="System prompt.")
@_base_url_option
def chat(database: str, model: str, context: str, system: str | None, base_url: str | None) -> None:
    r'''Talk to a model, from where the conversation was left.

    A line that ends with \ goes on in the next one; """ begins and ends several lines. Ctrl-C
    stops a reply, and what was shown of it is kept; Ctrl-D ends. /help lists the commands: /fork,
    /undo, /model, /resume, /tokens, /compact, /tools, /quit. /undo takes back the last prompt and
    what followed: it is not sent any more, and stays in the database.
    '''
    from contextwindow.cli import talk

    sys.exit(talk.run(database, model, context, system, base_url))


@main.command(cls=DatabaseCommand)
@database_argument
@context_argument
@click.option("-m", "--model", help="Default: the one that was called last.")
@_base_url_option
def resume(database: str, context: str, model: str | None, base_url: str | None) -> None:
    """Go on with a reply that was cut off; prints the rest of it."""
    from contextwindow.cli import resuming

    resuming.run(database, context, model=model, base_url=base_url)


# -- looking ---------------------------------------------------------------------------------


@main.command(cls=DatabaseCommand)
@database_argument
@_LINES
def contexts(database: str, as_json: bool) -> None:
    """List the conversations of a database."""
    from contextwindow.cli import look

    look.contexts(database, json_lines=as_json)


@main.command(cls=DatabaseCommand)
@database_argument
@context_argument
@_LINES
@click.option("--all", "everything", is_flag=True, help="Also what is not sent any more.")
def show(database: str, context: str, as_json: bool, everything: bool) -> None:
    """Print a conversation."""
    from contextwindow.cli import look

    look.show(database, context, json_lines=as_json, everything=everything)


@main.command(cls=DatabaseCommand)
@database_argument
@context_argument
@click.option("-n", "last", default=5, show_default=True, help="Records to begin with.")
@click.option("--until-idle", type=float, help="Stop after so many seconds without news.")
@_json_option("One JSON object a line, for each record once it is whole.")
def tail(database: str, context: str, last: int, until_idle: float | None, as_json: bool) -> None:
    """Print a conversation as it grows, replies under way included."""
    from contextwindow.cli import look

    look.tail(database, context, last=last, until_idle=until_idle, json_lines=as_json)


@main.command(cls=DatabaseCommand)
@database_argument
@click.argument("call", type=int)
@_LINES
@click.option("--in", "only", flag_value="in", help="Only what was sent.")
@click.option("--out", "only", flag_value="out", help="Only what was not sent.")
def explain(database: str, call: int, as_json: bool, only: str | None) -> None:
    """Say why each record was sent with a past call, or was not."""
    from contextwindow.cli import explaining

    explaining.run(database, call, as_json=as_json, only=only)


@main.command(cls=DatabaseCommand)
@database_argument
@click.argument("query")
@click.option("-c", "--context", shell_complete=names, help="Look in this conversation alone.")
@click.option("--limit", type=click.IntRange(1, 1000), default=20, show_default=True, help="Hits.")
@click.option("--raw", is_flag=True, help="QUERY is in the database's own language.")
@_LINES
def search(
    database: str, query: str, context: str | None, limit: int, raw: bool, as_json: bool
) -> None:
    """Find records that hold every word of QUERY, the best first."""
    from contextwindow.cli import look

    look.search(database, query, context=context, limit=limit, raw=raw, json_lines=as_json)


@main.command(cls=DatabaseCommand)
@database_argument
@click.argument("context", required=False, shell_complete=names)
@click.option(
    "--by", type=click.Choice(["day", "model", "context", "total"]), help="Usage in rows."
)
@_LINES
def stats(database: str, context: str | None, by: str | None, as_json: bool) -> None:
    """Tokens, cost and size: of a database, or of one conversation."""
    from contextwindow.cli import figures

    figures.stats(database, context, by=by, json_lines=as_json)


# -- moving and changing ---------------------------------------------------------------------


@main.command(cls=DatabaseCommand)
@database_argument
@context_argument
@click.option(
    "--format",
    "form",
    type=click.Choice(["json", "openai", "anthropic", "markdown", "html"]),
    default="json",
    show_default=True,
    help="json holds everything; openai and anthropic what is sent.",
)
@click.option("-o", "--output", type=click.Path(), help="File; default: standard output.")
@click.option("--force", is_flag=True, help="Write over FILE if it is there.")
def export(database: str, context: str, form: str, output: str | None, force: bool) -> None:
    """Give out a conversation."""
    from contextwindow.cli import moving

    moving.export(database, context, form=form, output=output, force=force)


@main.command("import", cls=DatabaseCommand)
@database_argument
@click.argument("file", type=click.Path(exists=True, dir_okay=False, allow_dash=True))
@click.option(
    "--format",
    "form",
    type=click.Choice(["auto", "json", "messages", "llm"]),
    default="auto",
    show_default=True,
    help="json: of export; messages: of OpenAI or Anthropic; llm: its logs.db.",
)
@click.option("--name", help="Of the new conversation.")
@_LINES
def import_(database: str, file: str, form: str, name: str | None, as_json: bool) -> None:
    """Take conversations in from FILE; - is standard input."""
    from contextwindow.cli import moving

    moving.import_(database, file, form=form, name=name, as_json=as_json)


@main.command(cls=DatabaseCommand)
@database_argument
@context_argument
@click.argument("new")
@click.option("--at", type=int, metavar="RECORD", help="Up to this record, by its id.")
def fork(database: str, context: str, new: str, at: int | None) -> None:
    """Copy a conversation to one called NEW."""
    from contextwindow.cli import changing

    changing.fork(database, context, new, at=at)


@main.command(cls=DatabaseCommand)
@database_argument
@context_argument
@click.option("--dry-run", is_flag=True, help="Say what would leave, and change nothing.")
@click.option("--max-tokens", type=click.IntRange(1), help="Tokens that the window may hold.")
@click.option("-m", "--model", help="Writes a summary; without one the oldest leave for none.")
@_base_url_option
@_OBJECT
def compact(
    database: str,
    context: str,
    dry_run: bool,
    max_tokens: int | None,
    model: str | None,
    base_url: str | None,
    as_json: bool,
) -> None:
    """Make room in the window of a conversation; nothing is deleted."""
    from contextwindow.cli import changing

    changing.compact(
        database,
        context,
        dry_run=dry_run,
        max_tokens=max_tokens,
        model=model,
        base_url=base_url,
        as_json=as_json,
    )


@main.command(cls=DatabaseCommand)
@database_argument
@context_argument
@click.option("--secure", is_flag=True, help="Leave no byte of it in the file (SQLite).")
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
def delete(database: str, context: str, secure: bool, yes: bool) -> None:
    """Delete a conversation with everything in it."""
    from contextwindow.cli import changing

    changing.delete(database, context, secure=secure, yes=yes)


@main.command(cls=DatabaseCommand)
@database_argument
@click.option("--older-than", required=True, help="Such as 90d, 12h, 4w, or 2026-01-31 (UTC).")
@click.option("--dry-run", is_flag=True, help="Only tell which they are.")
@click.option("--secure", is_flag=True, help="Leave no byte of them in the file (SQLite).")
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
@_LINES
def prune(
    database: str, older_than: str, dry_run: bool, secure: bool, yes: bool, as_json: bool
) -> None:
    """Delete the conversations in which nothing has happened for long."""
    from contextwindow.cli import changing

    changing.prune(database, older_than, dry_run=dry_run, secure=secure, yes=yes, as_json=as_json)


# -- the database ----------------------------------------------------------------------------


@main.command("doctor", cls=DatabaseCommand)
@database_argument
@click.option("--check", is_flag=True, help="Change nothing.")
@_OBJECT
def examine(database: str, check: bool, as_json: bool) -> None:
    """Settle dead turns, and look whether a database is sound.

    Exit status: 0 all is well, 1 something was wrong (what could be mended is), 2 the database
    cannot be opened.
    """
    from contextwindow.cli import doctor

    sys.exit(doctor.run(database, check=check, as_json=as_json))


@main.command(cls=DatabaseCommand)
@database_argument
@_OBJECT
def migrate(database: str, as_json: bool) -> None:
    """Bring a database of an older version to the newest schema.

    Every command that writes does the same when it opens the database, and says so. A copy is made
    beside an SQLite file first.
    """
    from contextwindow.cli import changing

    changing.migrate(database, as_json=as_json)


@main.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print a script that completes commands, options and names of conversations.

    For bash: eval "$(contextwindow completion bash)" in ~/.bashrc.
    """
    from contextwindow.cli import completing

    completing.script(main, shell)


main.add_command(inspect)
