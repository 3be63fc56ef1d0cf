"""Going on with a reply that was cut off."""

from __future__ import annotations

import click

from contextwindow import Model
from contextwindow.cli import models
from contextwindow.cli.group import FAILED, Failed
from contextwindow.cli.growing import show_stream
from contextwindow.cli.opened import known, writing
from contextwindow.cli.stopping import once
from contextwindow.cli.styles import console
from contextwindow.cli.terminal import harmless


def run(database: str, context: str, *, model: str | None, base_url: str | None) -> None:
    """Show the rest of a reply while it arrives; on a terminal the end of what there was too."""
    out = console()
    with writing(database) as store:
        with known(store, context) as window:
            turns = window.interrupted()
            if not turns:
                raise Failed("no reply was cut off here; there is nothing to go on with", FAILED)
            name = model or models.last_used(window)
        chosen = models.chosen(name, base_url)
        try:
            with known(store, context, model=chosen) as window:
                if out.is_terminal:
                    end = harmless(turns[-1].partial_text[-60:])
                    click.echo(click.style(f"…{end}", dim=True))
                with once():
                    show_stream(window.resume_streaming(turns[-1].id), out)
        finally:
            if isinstance(chosen, Model):
                chosen.close()
