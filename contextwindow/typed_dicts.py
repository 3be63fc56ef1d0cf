"""``typing.TypedDict`` in the form that pydantic takes on Python 3.11, too."""

from __future__ import annotations

import sys
import types
from typing import (
    Annotated,
    Any,
    Final,
    Literal,
    NotRequired,
    Required,
    Union,
    get_args,
    get_origin,
    get_type_hints,
    is_typeddict,
)

import typing_extensions

_PLAIN: Final = sys.version_info >= (3, 12)


def readable(kind: Any) -> Any:
    """*kind* with each ``typing.TypedDict`` in it made anew, where Python is too old for pydantic.

    Before 3.12 the standard one does not keep what pydantic has to know; that of
    ``typing_extensions``, on which pydantic depends, does.
    """
    return kind if _PLAIN else _readable(kind, {})


def _readable(kind: Any, made: dict[Any, Any]) -> Any:
    if is_typeddict(kind):
        return _typed_dict(kind, made)
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is None or origin is Literal or not arguments:
        return kind
    if origin is Annotated:
        return Annotated[(_readable(arguments[0], made), *arguments[1:])]
    changed = tuple(_readable(one, made) for one in arguments)
    if changed == arguments:
        return kind
    if origin in (Union, types.UnionType):
        return Union[changed]  # noqa: UP007 - a tuple of any length
    return kind.copy_with(changed) if hasattr(kind, "copy_with") else origin[changed]


def _typed_dict(kind: Any, made: dict[Any, Any]) -> Any:
    if kind in made or type(kind).__module__ != "typing":
        return made.get(kind, kind)
    made[kind] = kind  # one that holds itself is left to pydantic
    try:
        hints = get_type_hints(kind, include_extras=True)
    except NameError:
        return kind
    fields = {}
    for name, hint in hints.items():
        inner = _readable(hint, made)
        if get_origin(hint) not in (Required, NotRequired):
            inner = Required[inner] if name in kind.__required_keys__ else NotRequired[inner]
        fields[name] = inner
    make: Any = typing_extensions.TypedDict
    new = make(kind.__name__, fields)
    new.__doc__, new.__module__ = kind.__doc__, kind.__module__
    made[kind] = new
    return new
