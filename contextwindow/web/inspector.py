"""What the pages share: the database, and the replies that were begun from them."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Iterator
from typing import Any, Final

from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request

from contextwindow import (
    AsyncContextWindow,
    ConfigError,
    Context,
    ContextNotFound,
    ContextReader,
    ContextWindow,
    ContextWindowError,
    Model,
    Store,
)

_PATIENCE: Final = 1.0
"""Seconds that a page waits for a reply to begin."""

_DIGITS: Final = 18

log = logging.getLogger("contextwindow.web")


class Inspector:
    """One database, as its pages see it.

    Args:
        ending: set when the server ends.
        model: what goes on with a reply; None takes the one that a form names.
        read_only: offer nothing that would change the database.
    """

    def __init__(
        self,
        store: Store,
        ending: asyncio.Event,
        *,
        model: Model | str | None = None,
        read_only: bool = False,
    ) -> None:
        self.store = store
        self.ending = ending
        self.model = model
        self.read_only = read_only
        self.problems: dict[str, str] = {}
        """Why the last reply of a context that was begun here has ended, until it is shown."""
        self._replies: set[asyncio.Task[None]] = set()

    @contextlib.contextmanager
    def window(
        self, context_id: str, model: Model | str | None = None
    ) -> Iterator[tuple[Context, ContextWindow]]:
        """The context of that id, and a window on it, for one request.

        Raises:
            ContextNotFound: there is none.
        """
        # A window is opened by name, and makes what is missing: so it is looked for at once before.
        context = self.store.context_by_id(context_id)
        with ContextWindow(
            self.store, context.name, model=model, max_tokens=context.max_tokens
        ) as window:
            _check_same(context, window.get_current_context())
            yield context, window

    async def open(
        self, context_id: str, model: Model | str | None = None
    ) -> tuple[Context, AsyncContextWindow]:
        """The context of that id, and a window on it, which is to be closed.

        Raises:
            ConfigError: there is no such model, or it cannot be used.
            ContextNotFound: there is no such context.
        """
        context = await run_in_threadpool(self.store.context_by_id, context_id)
        window = AsyncContextWindow(self.store, context.name, model=model)
        try:
            _check_same(context, await window.get_current_context())
        except BaseException:
            await window.aclose()
            raise
        return context, window

    def reader(self, context_id: str) -> tuple[Context, ContextReader]:
        """The context of that id, and its reads."""
        with self.window(context_id) as (context, window):
            return context, window.reader()

    async def resume(self, context_id: str, turn_id: str, model: Model | str) -> None:
        """Go on with a reply in a task that no request can end.

        Raises:
            ConfigError: there is no such model, or it cannot be used.
            ContextNotFound: there is no such context.
        """
        _, window = await self.open(context_id, model)
        begun = asyncio.Event()
        task = asyncio.create_task(self._resume(context_id, turn_id, window, begun))
        self._replies.add(task)
        task.add_done_callback(self._replies.discard)
        # What cannot even begin is told on the page that is shown next.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_PATIENCE):
                await begun.wait()

    async def _resume(
        self, context_id: str, turn_id: str, window: AsyncContextWindow, begun: asyncio.Event
    ) -> None:
        try:
            async with window, window.resume_streaming(turn_id, disable_tools=True) as stream:
                async for _ in stream:
                    begun.set()  # the rest is written down; the page follows
        except ContextWindowError as error:
            self.problems[context_id] = str(error)
            log.warning("a reply has ended: %s", error)
        finally:
            begun.set()

    async def stop(self) -> None:
        """Let go of the replies; what they have is stored, and can be resumed."""
        for task in self._replies:
            task.cancel()
        await asyncio.gather(*self._replies, return_exceptions=True)


def _check_same(asked: Context, opened: Context) -> None:
    """Refuse another context that has taken the name of the one that was asked for.

    Raises:
        ContextNotFound: it has.
    """
    if opened.id != asked.id:
        raise ContextNotFound(f"the context of the id {asked.id!r} was deleted just now")


def of(request: Request) -> Inspector:
    """The inspector that a request is for."""
    found: Inspector = request.app.state.inspector
    return found


def number_of(request: Request, name: str) -> int | None:
    """A number that the address asks with, or None.

    Raises:
        ConfigError: it is none.
    """
    given = request.query_params.get(name)
    return whole(given, name) if given else None


def number_in(request: Request, name: str) -> int:
    """A number in the path of the address.

    Raises:
        HTTPException: it is none, so there is no such page.
    """
    try:
        return whole(request.path_params[name], name)
    except ConfigError:
        raise HTTPException(404, "There is no such page") from None


def whole(given: str, name: str) -> int:
    """A number that somebody has sent, no larger than a database knows.

    Raises:
        ConfigError: it is none.
    """
    if not given.isascii() or not given.isdigit() or len(given) > _DIGITS:
        raise ConfigError(f"{name} must be a number, not {given!r:.40}")
    return int(given)


def form_of(request: Request) -> dict[str, Any]:
    """The fields of a form, which the guard has read."""
    form: dict[str, Any] = request.scope["state"]["form"]
    return form
