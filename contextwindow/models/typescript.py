"""Tools as OpenAI's models see them: a TypeScript namespace.

The form is that of "harmony" (github.com/openai/harmony, read 2026-11); earlier models' is the
same but for a few tokens.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

from contextwindow.models.tally import compact, mapping, mappings, string

_DEEPEST: Final = 30
_PLAIN: Final = {"integer": "number", "null": "null"}


def namespace(functions: Iterable[Mapping[str, Any]]) -> str:
    """*functions* (objects with ``name``, ``description`` and ``parameters``) as a namespace."""
    lines = ["# Tools", "", "## functions", "", "namespace functions {", ""]
    for function in functions:
        lines += _comment(function.get("description"))
        schema = mapping(function.get("parameters"))
        fields = _fields(schema, 0)
        name = string(function.get("name"))
        if fields:
            lines += [f"type {name} = (_: {{", *fields, "}) => any;", ""]
        else:
            lines += [f"type {name} = () => any;", ""]
    return "\n".join([*lines, "} // namespace functions"])


def _comment(text: object) -> list[str]:
    # Only the first of several lines has the mark (recorded usage of GPT-4o).
    said = string(text).strip()
    return [f"// {said}"] if said else []


def _fields(schema: Mapping[str, Any], depth: int) -> list[str]:
    required = schema.get("required")
    needed = required if isinstance(required, (list, tuple)) else ()
    lines = []
    for name, field in mapping(schema.get("properties")).items():
        one = mapping(field)
        lines += _comment(one.get("description"))
        mark = "" if name in needed else "?"
        default = f" // default: {compact(one['default'])}" if "default" in one else ""
        lines.append(f"{name}{mark}: {_type(one, depth + 1)},{default}")
    return lines


def _type(schema: Mapping[str, Any], depth: int) -> str:
    if depth > _DEEPEST:
        return compact(schema)
    choices = schema.get("enum")
    if isinstance(choices, (list, tuple)) and choices:
        return " | ".join(map(compact, choices))
    either = mappings(schema.get("anyOf")) or mappings(schema.get("oneOf"))
    if either:
        return " | ".join(_type(one, depth + 1) for one in either)
    kind = schema.get("type")
    if isinstance(kind, (list, tuple)):
        return " | ".join(_type({**schema, "type": one}, depth + 1) for one in kind)
    if kind == "array":
        return f"{_type(mapping(schema.get('items')), depth + 1)}[]"
    if kind == "object" or schema.get("properties"):
        fields = _fields(schema, depth)
        return "\n".join(["{", *fields, "}"]) if fields else "object"
    return _PLAIN.get(string(kind), string(kind) or "any")
