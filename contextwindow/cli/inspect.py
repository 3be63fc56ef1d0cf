"""The inspector: pages for a browser."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from contextwindow.cli.database import DatabaseCommand, database_argument
from contextwindow.cli.group import NOT_FOUND, Failed

if TYPE_CHECKING:
    from contextwindow import Store


@click.command("inspect", cls=DatabaseCommand)
@database_argument
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", default=0, show_default="a free one", help="Port to listen on.")
@click.option("--expose", is_flag=True, help="Allow a host that other machines reach.")
@click.option("--read-only", is_flag=True, help="Change nothing.")
@click.option("--no-browser", is_flag=True, help="Only print the address.")
@click.option("-m", "--model", help="What goes on with replies, such as openai:gpt-5-mini.")
def inspect(
    database: str,
    host: str,
    port: int,
    expose: bool,
    read_only: bool,
    no_browser: bool,
    model: str | None,
) -> None:
    """Look into a database in a browser; needs the extra web."""
    from contextwindow.cli.opened import is_missing

    try:
        from contextwindow.web.serving import serve
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in ("starlette", "uvicorn"):
            raise
        raise Failed(
            f"the inspector needs {error.name}: pip install 'contextwindow[web]'"
        ) from None
    if is_missing(database):
        raise Failed(f"{database}: does not exist", NOT_FOUND)
    serve(
        database,
        host=host,
        port=port,
        exposed=expose,
        read_only=read_only,
        model=model,
        browser=not no_browser,
        tell=click.echo,
        opened=_tell_migration,
    )


def _tell_migration(store: Store) -> None:
    """Say what opening has done to the schema, if anything."""
    from contextwindow.cli.opened import migrated

    if store.migration is not None:
        click.echo(f"contextwindow: {migrated(store)}", err=True)
