"""The application: its routes, and what it answers when something is wrong."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from importlib import resources
from typing import Final

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from contextwindow import (
    ConfigError,
    ContextNotFound,
    ContextWindowError,
    Model,
    RecordCorrupt,
    Store,
    TurnBusy,
)
from contextwindow.web import (
    actions,
    calls,
    contexts,
    conversation,
    files,
    leaving,
    live,
    usage,
)
from contextwindow.web.guard import Guard, Keys, Place
from contextwindow.web.inspector import Inspector
from contextwindow.web.layout import page
from contextwindow.web.markup import link, tag

_FILES: Final = {
    "inspector.css": "text/css; charset=utf-8",
    "inspector.js": "text/javascript; charset=utf-8",
    "icon.svg": "image/svg+xml",
}


def make_app(
    store: Store,
    keys: Keys,
    place: Place,
    ending: asyncio.Event,
    *,
    model: Model | str | None = None,
    read_only: bool = False,
) -> Guard:
    """The inspector of *store*, guarded.

    Args:
        ending: set when the server ends: streams end with it.
        model: what goes on with a reply that was cut off; None asks which.
        read_only: refuse whatever would change the database.
    """
    inspector = Inspector(store, ending, model=model, read_only=read_only)

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        yield
        await inspector.stop()

    app = Starlette(
        routes=[
            Route("/static/{name}", _static),
            *contexts.ROUTES,
            *usage.ROUTES,
            *leaving.ROUTES,
            *conversation.ROUTES,
            *calls.ROUTES,
            *live.ROUTES,
            *files.ROUTES,
            *actions.ROUTES,
        ],
        exception_handlers={HTTPException: _not_there, ContextWindowError: _failed},
        lifespan=lifespan,
    )
    app.state.inspector = inspector
    return Guard(app, keys, place, read_only=read_only)


def _static(request: Request) -> Response:
    """One of the files that come with the pages; there are no others."""
    name = request.path_params["name"]
    if name not in _FILES:
        raise HTTPException(404)
    data = resources.files("contextwindow.web").joinpath("static", name).read_bytes()
    return Response(data, media_type=_FILES[name])


def _not_there(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)  # noqa: S101 - what it is registered for
    return page(request, error.detail, link("/", "All conversations"), status=error.status_code)


def _failed(request: Request, error: Exception) -> Response:
    """What the library says, in its own words."""
    title, status = "The database could not be read", 500
    if isinstance(error, ContextNotFound):
        title, status = "There is no such conversation", 404
    elif isinstance(error, ConfigError):
        title, status = "That cannot be done", 400
    elif isinstance(error, TurnBusy):
        title, status = "A reply is being written", 409
    around = None
    if isinstance(error, RecordCorrupt) and "id" in request.path_params:
        here = request.url.path
        around = tag(
            "p",
            link(f"{here}?before={error.record_id}", "What is before it"),
            " · ",
            link(f"{here}?after={error.record_id}", "What is behind it"),
        )
    said = tag("p", str(error), class_="problem", role="alert", dir="auto")
    return page(request, title, said, around, link("/", "All conversations"), status=status)
