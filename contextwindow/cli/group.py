"""The outer command: errors become one line on standard error and an exit status."""

from __future__ import annotations

import logging
import os
import sys
from contextlib import suppress
from functools import partial
from typing import Any, Final, NoReturn

import click

from contextwindow import (
    ContextNotFound,
    ContextWindowError,
    ModelError,
    StoreBusy,
    TurnBusy,
)
from contextwindow.cli.terminal import one_line

FAILED: Final = 1
USAGE: Final = 2
NOT_FOUND: Final = 3
BUSY: Final = 4
PROVIDER: Final = 5
STOPPED: Final = 130


class Failed(Exception):
    """What a command says in one line before it ends with *status*."""

    def __init__(self, message: str, status: int = FAILED) -> None:
        super().__init__(message)
        self.status = status


class Group(click.Group):
    """Ends with an exit status that scripts can tell apart, and never with a traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the chosen command."""
        # What the library logs is for programs; here the exit status and one line say it.
        logger = logging.getLogger("contextwindow")
        ctx.call_on_close(partial(logger.setLevel, logger.level))
        logger.setLevel(logging.ERROR)
        for stream in (sys.stdout, sys.stderr):
            if hasattr(stream, "reconfigure"):
                stream.reconfigure(errors="backslashreplace")
        try:
            return super().invoke(ctx)
        except Failed as error:
            _end(str(error), error.status)
        except ContextWindowError as error:
            _end(str(error), status_of(error))
        except BrokenPipeError:
            # Python would flush once more, and complain.
            with suppress(OSError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(0)
        except OSError as error:
            named = f"{error.filename}: " if error.filename else ""
            _end(f"{named}{error.strerror or error}", FAILED)
        except KeyboardInterrupt:
            click.echo(err=True)
            sys.exit(STOPPED)
        except click.Abort as error:
            if isinstance(error.__context__, KeyboardInterrupt):
                click.echo(err=True)
                sys.exit(STOPPED)
            _end("as you wish: nothing was done", FAILED)
        except (click.ClickException, click.exceptions.Exit):
            raise
        except Exception as error:
            if sys.flags.dev_mode:
                raise
            _end(f"{type(error).__name__}: {error} (python -X dev shows where)", FAILED)


def status_of(error: ContextWindowError) -> int:
    """The exit status that stands for *error*."""
    match error:
        case ContextNotFound():
            return NOT_FOUND
        case StoreBusy() | TurnBusy():
            return BUSY
        case ModelError():
            return PROVIDER
        case _:
            return FAILED


def complain(message: str) -> None:
    """Say on standard error what is wrong, in one line."""
    click.echo(f"contextwindow: {one_line(message)}", err=True)


def _end(message: str, status: int) -> NoReturn:
    complain(message)
    sys.exit(status)
