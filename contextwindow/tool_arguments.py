"""Reading what a model has written as the arguments of a tool: any text at all.

Models invent, repeat and cut off; what is wrong is said so that the model can mend it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

from contextwindow.errors import ToolError

MAX_CHARACTERS: Final = 4_000_000
"""Length of the arguments of one call; longer than any model's longest reply."""

MAX_DEPTH: Final = 100
"""Objects and lists within each other; what comes after us may recurse."""

_SHOWN: Final = 20
_LONGEST: Final = 400
_TYPES: Final[Mapping[str, tuple[type, ...]]] = {
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "object": (dict,),
    "array": (list,),
    "null": (type(None),),
}


def read_object(raw: str) -> dict[str, Any]:
    """The JSON object in *raw*; ``{}`` when there is nothing in it.

    Raises:
        ToolError: *raw* is too long, no JSON, no object or nested too deep; or it holds a key
            twice, a number that is none (NaN, infinity) or half of a surrogate pair.
    """
    if len(raw) > MAX_CHARACTERS:
        raise ToolError(
            f"the arguments are {len(raw):,} characters long; at most {MAX_CHARACTERS:,} are taken"
        )
    if not raw.strip():
        return {}
    try:
        value = json.loads(
            raw,
            object_pairs_hook=_members,
            parse_constant=_refuse_constant,
            parse_float=_finite,
        )
    except RecursionError:
        raise ToolError(_TOO_DEEP) from None
    except ValueError as error:
        # Not only JSONDecodeError: Python refuses integers of more than 4,300 digits.
        raise ToolError(f"the arguments are not valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise ToolError(f"the arguments must be a JSON object, not {shortened(value)}")
    if raw.count("[") + raw.count("{") > MAX_DEPTH and _is_deep(value):
        raise ToolError(_TOO_DEEP)
    if (not raw.isascii() or "\\u" in raw) and not _is_unicode(value):
        raise ToolError(
            "the arguments hold half of a surrogate pair, such as \\ud83d without the other half"
        )
    return value


def complaint(problems: Iterable[str]) -> ToolError:
    """One error for the model, of *problems* that each name an argument."""
    said = list(problems)
    shown = [one if len(one) <= _LONGEST else f"{one[:_LONGEST]}…" for one in said[:_SHOWN]]
    more = [f"… and {len(said) - _SHOWN:,} more"] if len(said) > _SHOWN else []
    return ToolError("\n".join(["these arguments cannot be used:", *shown, *more]))


def shortened(value: Any) -> str:
    """*value* as JSON of a length that a message can hold."""
    try:
        text = json.dumps(value, ensure_ascii=False, default=str)
    except (ValueError, TypeError, RecursionError):
        text = type(value).__name__
    return text if len(text) <= 60 else f"{text[:60]}…"


def problems(schema: Any, value: Any, path: str = "") -> Iterator[str]:
    """What in *value* does not fit *schema*, as far as it is looked at.

    Looked at are ``type``, ``enum``, ``const``, ``required``, ``additionalProperties: false``,
    and the same within ``properties`` and ``items``.
    """
    if not isinstance(schema, dict):
        return
    said = _mismatch(schema, value)
    if said:
        yield f"- {path or 'the whole'}: {said}, not {shortened(value)}"
    elif isinstance(value, dict):
        yield from _in_object(schema, value, f"{path}." if path else "")
    elif isinstance(value, list) and isinstance(schema.get("items"), dict):
        for number, item in enumerate(value):
            yield from problems(schema["items"], item, f"{path}[{number}]")


def expected(schema: Any) -> str:
    """What *schema* wants, in a word or two; ``""`` when it does not say."""
    if not isinstance(schema, dict):
        return ""
    kind = schema.get("type")
    if isinstance(kind, list):
        return " or ".join(str(one) for one in kind)
    if isinstance(schema.get("enum"), list):
        return f"one of {shortened(schema['enum'])}"
    if isinstance(schema.get("anyOf"), list):
        return " or ".join(word for one in schema["anyOf"] if (word := expected(one)))
    return kind if isinstance(kind, str) else ""


_TOO_DEEP = f"the arguments are nested more than {MAX_DEPTH} levels deep"


def _members(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise ToolError(f"the arguments hold the key {shortened(key)} twice")
            seen.add(key)
    return found


def _refuse_constant(name: str) -> Any:
    raise ToolError(f"the arguments hold {name}, which is no JSON number")


def _finite(text: str) -> float:
    number = float(text)
    if math.isinf(number):
        raise ToolError(f"the number {text[:30]} is too large")
    return number


def _is_deep(value: Any) -> bool:
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [
            inner
            for outer in level
            for inner in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(inner, (dict, list))
        ]
        if not level:
            return False
    return True


def _is_unicode(value: Any) -> bool:
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True


def _mismatch(schema: dict[str, Any], value: Any) -> str:
    kinds = schema.get("type")
    names = [kinds] if isinstance(kinds, str) else kinds if isinstance(kinds, list) else []
    if names and not any(_is(value, name) for name in names):
        return f"must be {' or '.join(str(name) for name in names)}"
    if isinstance(schema.get("enum"), list) and not any(
        _same(value, one) for one in schema["enum"]
    ):
        return f"must be one of {shortened(schema['enum'])}"
    if "const" in schema and not _same(value, schema["const"]):
        return f"must be {shortened(schema['const'])}"
    return ""


def _is(value: Any, name: Any) -> bool:
    if name not in _TYPES:
        return True
    if isinstance(value, bool):
        return bool(name == "boolean")
    if name == "integer" and isinstance(value, float):
        return value.is_integer()
    return isinstance(value, _TYPES[name])


def _same(one: Any, other: Any) -> bool:
    return isinstance(one, bool) == isinstance(other, bool) and bool(one == other)


def _in_object(schema: dict[str, Any], value: dict[str, Any], prefix: str) -> Iterator[str]:
    known = schema.get("properties")
    known = known if isinstance(known, dict) else {}
    required = schema.get("required")
    for name in required if isinstance(required, list) else []:
        if name not in value:
            kind = expected(known.get(name))
            yield f"- {prefix}{name}: missing" + (f"; must be {kind}" if kind else "")
    for name, item in value.items():
        if name in known:
            yield from problems(known[name], item, f"{prefix}{name}")
        elif schema.get("additionalProperties") is False:
            yield f"- {prefix}{name}: not an argument; there are {', '.join(known) or 'none'}"
