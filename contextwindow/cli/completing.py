"""Scripts with which a shell completes what is typed."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from contextwindow.cli.group import Failed

PROGRAM = "contextwindow"
VARIABLE = "_CONTEXTWINDOW_COMPLETE"


def script(main: click.Command, shell: str) -> None:
    """Print the script for *shell*.

    Raises:
        Failed: click knows no such shell.
    """
    kind = get_completion_class(shell)
    if kind is None:
        raise Failed(f"{shell}: no such shell")
    click.echo(kind(main, {}, PROGRAM, VARIABLE).source())
