"""Running hooks within a turn; those that are async are awaited by the turn's driver."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Any

from contextwindow.chunks import StreamChunk
from contextwindow.effects import Effect, RunHook, StopHook
from contextwindow.errors import MiddlewareError
from contextwindow.middleware import DROP

Hook = Callable[..., Any]


class HookStopped(MiddlewareError):
    """A hook was cancelled because the turn was stopped, by its deadline or from outside."""


@dataclass(slots=True)
class Waiting:
    """A chunk about which the hook *number* had something to say."""

    chunk: StreamChunk
    number: int
    result: Any


def offer(hooks: Sequence[Hook], chunk: StreamChunk) -> Waiting | None:
    """Show *chunk* to ``on_stream_chunk`` *hooks*; None when all of them let it pass.

    Raises:
        MiddlewareError: a hook raised.
    """
    for number, hook in enumerate(hooks):
        try:
            result = hook(chunk)
        except Exception as error:
            raise hook_error("on_stream_chunk", hook, error) from error
        if result is not None:
            return Waiting(chunk, number, result)
    return None


def settle(hooks: Sequence[Hook], waiting: Waiting) -> Generator[Effect, Any, StreamChunk | None]:
    """The chunk as the hooks leave it, from *waiting* on; None when one of them dropped it.

    Raises:
        MiddlewareError: a hook raised, or returned what is no chunk.
    """
    chunk, number, result = waiting.chunk, waiting.number, waiting.result
    while True:
        if inspect.isawaitable(result):
            result = yield from run_hook("on_stream_chunk", hooks[number], awaited=result)
        if result is DROP:
            return None
        if isinstance(result, StreamChunk):
            chunk = result
        elif result is not None:
            wrong = TypeError(f"{result!r} is neither None, a chunk nor DROP")
            raise hook_error("on_stream_chunk", hooks[number], wrong)
        number += 1
        if number == len(hooks):
            return chunk
        result = yield from run_hook("on_stream_chunk", hooks[number], chunk)


def run_hook(
    name: str, hook: Hook, *values: Any, awaited: Any = None
) -> Generator[Effect, Any, Any]:
    """What *hook* gives for *values*, or what *awaited* gives that it has returned already.

    Raises:
        MiddlewareError: it raised; the cause is chained.
    """
    try:
        result = awaited if awaited is not None else hook(*values)
        if result is not None and inspect.isawaitable(result):
            result = yield RunHook(result)
    except StopHook as error:
        owner = getattr(hook, "__self__", None)
        message = f"{name} of {_who(hook)} did not end when the turn was stopped"
        raise HookStopped(message, hook=name, middleware=owner) from error
    except Exception as error:
        raise hook_error(name, hook, error) from error
    return result


def hook_error(name: str, hook: Hook, error: Exception) -> MiddlewareError:
    """The error for a *hook* that raised *error*."""
    owner = getattr(hook, "__self__", None)
    return MiddlewareError(
        f"{name} of {_who(hook)} raised {type(error).__name__}: {error}",
        hook=name,
        middleware=owner,
    )


def _who(hook: Hook) -> str:
    owner = getattr(hook, "__self__", None)
    name = getattr(hook, "__name__", repr(hook)) if owner is None else type(owner).__name__
    return str(name)
