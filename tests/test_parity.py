"""The two APIs are one: the same names, the same parameters, coroutines for calls."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest

from contextwindow import AsyncContextWindow, AsyncStream, ContextWindow, Stream

STREAMS = {"call_model_streaming", "resume_streaming", "regenerate_streaming", "follow"}
ASYNC_ONLY = {"aclose"}
PLAIN = {"current_context", "cancel", "turn_id", "reply"}


def public(kind: type) -> dict[str, Any]:
    return {
        name: inspect.getattr_static(kind, name) for name in dir(kind) if not name.startswith("_")
    }


def parameters(function: Callable[..., Any]) -> list[tuple[str, Any, Any, Any]]:
    return [
        (one.name, one.kind, one.default, one.annotation)
        for one in inspect.signature(function).parameters.values()
    ]


def test_both_windows_have_the_same_public_names() -> None:
    assert set(public(AsyncContextWindow)) - ASYNC_ONLY == set(public(ContextWindow))


def test_both_streams_have_the_same_public_names() -> None:
    assert set(public(AsyncStream)) - ASYNC_ONLY == set(public(Stream)) - {"close"}


def test_both_windows_are_made_with_the_same_arguments() -> None:
    assert parameters(AsyncContextWindow.__init__) == parameters(ContextWindow.__init__)


@pytest.mark.parametrize("name", sorted(public(ContextWindow)))
def test_a_method_has_the_same_parameters_in_both_windows(name: str) -> None:
    sync, other = public(ContextWindow)[name], public(AsyncContextWindow)[name]

    assert isinstance(sync, property) == isinstance(other, property)
    if not isinstance(sync, property):
        assert parameters(sync) == parameters(other)


@pytest.mark.parametrize("name", sorted(public(ContextWindow)))
def test_what_waits_is_a_coroutine_and_streams_are_plain_functions(name: str) -> None:
    sync, other = public(ContextWindow)[name], public(AsyncContextWindow)[name]

    assert not inspect.iscoroutinefunction(sync)
    if name in STREAMS:
        assert not inspect.iscoroutinefunction(other)
    elif isinstance(other, property):
        assert name in PLAIN or "Coroutine" in str(inspect.signature(other.fget).return_annotation)  # type: ignore[arg-type]
    else:
        assert inspect.iscoroutinefunction(other)


@pytest.mark.parametrize("name", sorted(set(public(Stream)) - {"close"}))
def test_a_method_has_the_same_parameters_in_both_streams(name: str) -> None:
    sync, other = public(Stream)[name], public(AsyncStream)[name]

    assert isinstance(sync, property) == isinstance(other, property)
    if isinstance(sync, property):
        return
    assert parameters(sync) == parameters(other)
    waits = inspect.iscoroutinefunction(other) or inspect.isasyncgenfunction(other)
    assert waits == (name not in PLAIN)


@pytest.mark.parametrize("kind", [ContextWindow, AsyncContextWindow, Stream, AsyncStream])
def test_every_public_name_is_described(kind: type) -> None:
    for name, member in public(kind).items():
        described = member.fget if isinstance(member, property) else member
        assert inspect.getdoc(described), f"{kind.__name__}.{name} has no docstring"
