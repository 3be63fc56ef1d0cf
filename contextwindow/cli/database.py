"""Which database and which context a command is for, as they are given on the command line."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from typing import Any, Final, TypeVar

import click
import click.shell_completion

VARIABLE: Final = "CONTEXTWINDOW_DB"

_F = TypeVar("_F", bound=Callable[..., Any])


_HARMLESS = re.compile(r"[\w@%+=:,./][\w@%+=:,./-]*")


class DatabaseCommand(click.Command):
    """A command whose first argument is the database, which may be named elsewhere.

    With ``--db`` that argument is left out.  Where the environment names a database, it is left
    out too when there is one argument fewer than the command takes; a full number of them begins
    with the database all the same.
    """

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Put the database in front of *args* where it stands elsewhere."""
        if ctx.resilient_parsing and args and args[-1].startswith("-"):
            # An option whose value is being completed; without it nothing would be read.
            args = args[:-1]
        options, left, _ = self.make_parser(ctx).parse_args(list(args))
        named = options.get("db")
        if isinstance(named, str):
            return super().parse_args(ctx, [named, *args])
        taken = [one.name for one in self.params if isinstance(one, click.Argument)]
        given = sum(isinstance(options.get(name or ""), str) for name in taken) + len(left)
        ambient = os.environ.get(VARIABLE)
        first = options.get("database")
        if ctx.resilient_parsing and isinstance(first, str) and os.path.isfile(first):
            # Not all is typed yet: a file is more likely the database than a context.
            ambient = None
        if ambient and given < len(taken):
            return super().parse_args(ctx, [ambient, *args])
        return super().parse_args(ctx, args)


def _required(ctx: click.Context, _: click.Parameter, value: str | None) -> str | None:
    if value is None and not ctx.resilient_parsing:
        raise click.UsageError(f"Which database? Give DB, or --db DB, or set {VARIABLE}.", ctx)
    return value


def database_argument(function: _F) -> _F:
    """The argument ``DB``, and ``--db`` in its place."""
    option = click.option(
        "--db",
        type=click.Path(),
        expose_value=False,
        help=f"Database, instead of DB; {VARIABLE} names it for all commands.",
    )
    argument = click.argument(
        "database", metavar="[DB]", type=click.Path(), required=False, callback=_required
    )
    return argument(option(function))


def names(
    ctx: click.Context, _: click.Parameter, incomplete: str
) -> list[click.shell_completion.CompletionItem]:
    """Contexts that a shell may complete *incomplete* to."""
    database = ctx.params.get("database")
    if not isinstance(database, str):
        return []
    from contextwindow.cli import opened

    return [
        click.shell_completion.CompletionItem(name)
        for name in opened.names(database)
        # bash puts a name on its line as it is, and would do what is written in it.
        if name.startswith(incomplete) and _HARMLESS.fullmatch(name)
    ]


def context_argument(function: _F) -> _F:
    """The argument ``CONTEXT``."""
    return click.argument("context", shell_complete=names)(function)
