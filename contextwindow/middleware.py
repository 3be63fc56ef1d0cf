"""Hooks around a stream."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from typing import Any, Final

from contextwindow.chunks import StreamChunk, TextDelta, ToolStart
from contextwindow.errors import ConfigError
from contextwindow.records import Record


class _Drop:
    def __repr__(self) -> str:
        return "DROP"


DROP: Final = _Drop()
"""Returned by ``on_stream_chunk`` to swallow a chunk: it is neither stored nor delivered."""


@dataclass(slots=True)
class CallStart:
    """A call that is about to be made.

    Attributes:
        records: what will be sent, in order; a hook may change the list in place.
        model: the model's name.
        turn_id: the turn that the call belongs to.
    """

    records: list[Record]
    model: str
    turn_id: str


class Middleware:
    """Base of hooks: override what you need; methods that are not overridden cost nothing.

    Every method may be ``async`` in an ``AsyncContextWindow``.  A slow hook holds the provider
    back.  An exception stops the stream with ``MiddlewareError``; what was delivered is stored.
    """

    def on_call_start(self, call: CallStart) -> Any:
        """Before a request is built; ``call.records`` may be edited."""

    def on_stream_start(self, stream: Any) -> Any:
        """Before the first request of a turn; *stream* is the stream and may be cancelled."""

    def on_stream_chunk(self, chunk: StreamChunk) -> Any:
        """For every chunk, before it is stored and delivered.

        Returns:
            None to pass it on, another chunk to replace it, ``DROP`` to swallow it.  Of
            ``stream_start`` and ``done`` the returned value is ignored.
        """

    def on_stream_complete(self, text: str, tokens: int) -> Any:
        """After the reply is stored, before ``done``.

        Args:
            text: the whole text of the reply.
            tokens: tokens that the turn used, input and output.
        """

    def on_stream_error(self, error: BaseException) -> Any:
        """After a stream has failed and what arrived of it is stored."""

    def on_tool_call(self, name: str, arguments: dict[str, Any]) -> Any:
        """Before a tool runs."""

    def on_tool_result(self, name: str, output: str, error: BaseException | None) -> Any:
        """After a tool has run."""


PLUGINS: Final = "contextwindow.middleware"
"""Entry point group of installed middleware; each is used only where it is named."""

HOOKS: Final = (
    "on_call_start",
    "on_stream_start",
    "on_stream_chunk",
    "on_stream_complete",
    "on_stream_error",
    "on_tool_call",
    "on_tool_result",
)


@dataclass(slots=True)
class Hooks:
    """The overridden methods of a list of middleware, bound once for a stream."""

    on_call_start: list[Callable[..., Any]] = field(default_factory=list)
    on_stream_start: list[Callable[..., Any]] = field(default_factory=list)
    on_stream_chunk: list[Callable[..., Any]] = field(default_factory=list)
    on_stream_complete: list[Callable[..., Any]] = field(default_factory=list)
    on_stream_error: list[Callable[..., Any]] = field(default_factory=list)
    on_tool_call: list[Callable[..., Any]] = field(default_factory=list)
    on_tool_result: list[Callable[..., Any]] = field(default_factory=list)


def bind(middleware: Iterable[Middleware]) -> Hooks:
    """The hooks of *middleware* in order of registration."""
    hooks = Hooks()
    for one in middleware:
        for name in HOOKS:
            method = getattr(one, name)
            if getattr(method, "__func__", method) is not getattr(Middleware, name):
                getattr(hooks, name).append(method)
    return hooks


def check_all(middleware: object, *, allow_async: bool) -> list[Middleware]:
    """*middleware* if it is a list of what can be used.

    Raises:
        ConfigError: it is no list, or one of it is no ``Middleware`` object.
    """
    if not isinstance(middleware, Iterable):
        raise ConfigError(f"middleware must be a list of Middleware objects, not {middleware!r}")
    if isinstance(middleware, str):
        raise ConfigError(f"middleware must be a list, such as [{middleware!r}]")
    return [check_middleware(one, allow_async=allow_async) for one in middleware]


def check_middleware(one: object, *, allow_async: bool) -> Middleware:
    """*one* if it can be used as middleware.

    Raises:
        ConfigError: it is no ``Middleware`` object, or has async hooks where none can run.
    """
    if isinstance(one, str):
        one = load_plugin(one)
    if isinstance(one, type):
        raise ConfigError(f"{one.__name__} is a class; pass an object: {one.__name__}()")
    if not isinstance(one, Middleware):
        raise ConfigError(
            f"{one!r} is not middleware: derive its class from contextwindow.Middleware, "
            "or make one from functions with contextwindow.handler()"
        )
    if not allow_async:
        for name in HOOKS:
            if inspect.iscoroutinefunction(getattr(one, name)):
                raise ConfigError(
                    f"{type(one).__name__}.{name} is async; use AsyncContextWindow for it"
                )
    return one


def load_plugin(name: str) -> object:
    """The middleware that an installed package offers under *name*; no other plugin is loaded.

    Raises:
        ConfigError: none offers it, or it cannot be loaded; the message names it.
    """
    found = {point.name: point for point in entry_points(group=PLUGINS)}
    if name not in found:
        known = ", ".join(sorted(found)) or "none"
        raise ConfigError(f"no installed package offers middleware {name!r}; offered: {known}")
    point = found[name]
    package = f" of package {point.dist.name}" if point.dist is not None else ""
    try:
        loaded = point.load()
        return loaded() if isinstance(loaded, type) else loaded
    except Exception as error:
        raise ConfigError(
            f"middleware {name!r}{package} ({point.value}) cannot be loaded: "
            f"{type(error).__name__}: {error}"
        ) from error


class _Handler(Middleware):
    """Middleware made of plain functions."""


def handler(
    *,
    on_start: Callable[[], Any] | None = None,
    on_token: Callable[[str], Any] | None = None,
    on_tool_call: Callable[[str, dict[str, Any]], Any] | None = None,
    on_complete: Callable[[str], Any] | None = None,
    on_error: Callable[[BaseException], Any] | None = None,
) -> Middleware:
    """Middleware from plain functions; their results are ignored, their exceptions are not.

    Args:
        on_start: once, before the first request of a turn.
        on_token: for every non-empty piece of text.
        on_tool_call: name and arguments of every tool that is about to run.
        on_complete: the whole text, once it is stored.
        on_error: what ended a stream that failed.
    """
    middleware = _Handler()

    def chunk_hook(chunk: StreamChunk) -> Any:
        if on_token is not None and type(chunk) is TextDelta and chunk.delta:
            return _ignore(on_token(chunk.delta))
        if on_tool_call is not None and type(chunk) is ToolStart:
            return _ignore(on_tool_call(chunk.name, chunk.arguments))
        return None

    chosen: dict[str, Callable[..., Any]] = {}
    if on_start is not None:
        chosen["on_stream_start"] = lambda stream: on_start()
    if on_token is not None or on_tool_call is not None:
        chosen["on_stream_chunk"] = chunk_hook
    if on_complete is not None:
        chosen["on_stream_complete"] = lambda text, tokens: on_complete(text)
    if on_error is not None:
        chosen["on_stream_error"] = on_error
    for name, function in chosen.items():
        setattr(middleware, name, function)
    return middleware


def _ignore(result: Any) -> Any:
    """Nothing, once an awaitable *result* has been waited for."""
    if not inspect.isawaitable(result):
        return None

    async def wait() -> None:
        await result

    return wait()
