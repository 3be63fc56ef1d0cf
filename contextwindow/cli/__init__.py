"""The command line: a demo, a chat, and ways to look into a database."""

from __future__ import annotations

import logging
import sys
from functools import partial
from typing import Any

import click

from contextwindow import ContextWindowError


class _Group(click.Group):
    """Turns the library's errors into one line and exit status 1."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the chosen command."""
        from contextwindow.cli.terminal import harmless

        # What the library logs is for programs; here the exit status and one line say it.
        logger = logging.getLogger("contextwindow")
        ctx.call_on_close(partial(logger.setLevel, logger.level))
        logger.setLevel(logging.ERROR)
        try:
            return super().invoke(ctx)
        except ContextWindowError as error:
            click.echo(f"contextwindow: {harmless(str(error))}", err=True)
            sys.exit(1)
        except BrokenPipeError:
            sys.exit(0)


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="contextwindow")
def main() -> None:
    """Conversations with language models that survive."""


@main.command()
@click.option("--db", type=click.Path(), help="Database to use; default: one in a new folder.")
@click.option("--fast", is_flag=True, help="Stream faster.")
@click.option("--child", hidden=True, nargs=3)
def demo(db: str | None, fast: bool, child: tuple[str, str, str] | None) -> None:
    """Kill a process in mid-reply, and resume the reply in another; needs no key."""
    from contextwindow.cli import demonstration

    sys.exit(demonstration.stream(*child) if child else demonstration.run(db, fast=fast))


@main.command()
@click.argument("database", metavar="DB")
@click.option("-m", "--model", required=True, help="Such as openai:gpt-5-mini.")
@click.option("-c", "--context", default="chat", show_default=True, help="Conversation.")
@click.option("--system", help="System prompt.")
@click.option("--base-url", help="Server that speaks OpenAI's protocol.")
def chat(database: str, model: str, context: str, system: str | None, base_url: str | None) -> None:
    """Talk to a model; Ctrl-C stops a reply, Ctrl-D ends."""
    from contextwindow.cli import talk

    talk.run(database, model, context, system, base_url)


@main.command()
@click.argument("database", metavar="DB")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
def contexts(database: str, as_json: bool) -> None:
    """List the conversations of a database."""
    from contextwindow.cli import look

    look.contexts(database, as_json=as_json)


@main.command()
@click.argument("database", metavar="DB")
@click.argument("context")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
@click.option("--all", "everything", is_flag=True, help="Also what is not sent any more.")
def show(database: str, context: str, as_json: bool, everything: bool) -> None:
    """Print a conversation."""
    from contextwindow.cli import look

    look.show(database, context, as_json=as_json, everything=everything)


@main.command()
@click.argument("database", metavar="DB")
@click.argument("context")
@click.option("-n", "last", default=5, show_default=True, help="Records to begin with.")
@click.option("--until-idle", type=float, help="Stop after so many seconds without news.")
def tail(database: str, context: str, last: int, until_idle: float | None) -> None:
    """Print a conversation as it grows, replies under way included."""
    from contextwindow.cli import look

    look.tail(database, context, last=last, until_idle=until_idle)


@main.command()
@click.argument("database", metavar="DB")
@click.argument("call", type=int)
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
@click.option("--in", "only", flag_value="in", help="Only what was sent.")
@click.option("--out", "only", flag_value="out", help="Only what was not sent.")
def explain(database: str, call: int, as_json: bool, only: str | None) -> None:
    """Say why each record was sent with a past call, or was not."""
    from contextwindow.cli import explaining

    explaining.run(database, call, as_json=as_json, only=only)


@main.command("doctor")
@click.argument("database", metavar="DB")
@click.option("--check", is_flag=True, help="Change nothing.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def examine(database: str, check: bool, as_json: bool) -> None:
    """Settle dead turns, and look whether a database is sound.

    Exit status: 0 all is well, 1 something was wrong (what could be mended is), 2 the database
    cannot be opened.
    """
    from contextwindow.cli import doctor

    sys.exit(doctor.run(database, check=check, as_json=as_json))
