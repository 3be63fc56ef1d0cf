"""Schemas as strict structured output wants them: every member required, and no other allowed.

What OpenAI's strict mode takes (platform.openai.com, *Structured model outputs*, "Supported
schemas"): objects with all members required and ``additionalProperties: false``, no ``default``,
``anyOf`` but no ``oneOf``, ``allOf`` or ``not``, an object at the root.  A bound that it does not
enforce goes into the description, where the model reads it; the reply is checked against the
schema as it was given in any case.
"""

from __future__ import annotations

import json
from typing import Any, Final

from contextwindow.json_schema import resolve

_KEPT: Final = frozenset(
    {
        *("type", "enum", "const", "title", "description", "$ref", "pattern"),
        *("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"),
        *("minItems", "maxItems"),
    }
)
_SAID: Final = ("minLength", "maxLength", "uniqueItems", "minProperties", "maxProperties", "format")
"""Bounds that are told in words."""

_IDLE: Final = frozenset(
    {
        *("default", "examples", "deprecated", "readOnly", "writeOnly", "discriminator"),
        *("$schema", "$id", "$comment", "contentMediaType", "contentEncoding"),
    }
)
"""What bounds nothing: dropped."""

_FORMATS: Final = frozenset(
    ("date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uuid")
)
_CONTAINERS: Final = frozenset(
    {
        *("properties", "required", "additionalProperties", "items", "anyOf", "oneOf", "allOf"),
        *("$defs", "definitions"),
    }
)


class _NotStrict(Exception):
    """The schema allows what strict mode cannot say."""


def strict(schema: dict[str, Any], *, require_all: bool) -> dict[str, Any] | None:
    """*schema* in its strict form; None where it has none.

    It has none where an object may have members of any name, where a value may be of any kind,
    where forms are combined other than by ``anyOf``, and where the root is no object.

    Args:
        require_all: make members required that may be left out.  Types of Python have defaults
            for them; for a schema that somebody wrote it would change what it says, so that one
            has no strict form.
    """
    root = dict(schema)
    if set(root) - {"$defs", "definitions"} == {"$ref"}:
        # A recursive model refers to itself; the root must be an object there and then.
        root = {**resolve(schema, root.pop("$ref")), **root}
    if root.get("type") != "object":
        return None
    try:
        return _strict(root, require_all)
    except _NotStrict:
        return None


def _strict(schema: Any, require_all: bool) -> dict[str, Any]:
    if not isinstance(schema, dict) or schema.keys() - _KEPT - _IDLE - _CONTAINERS - set(_SAID):
        raise _NotStrict
    if not schema.keys() & {"type", "enum", "const", "anyOf", "oneOf", "allOf", "$ref"}:
        raise _NotStrict
    made = {key: value for key, value in schema.items() if key in _KEPT}
    if schema.get("format") in _FORMATS:
        made["format"] = schema["format"]
    _tell(made, schema)
    kinds = schema.get("type")
    if kinds == "object" or (isinstance(kinds, list) and "object" in kinds):
        made |= _object(schema, require_all)
    elif schema.keys() & {"properties", "required", "additionalProperties"}:
        raise _NotStrict
    if kinds == "array" or "items" in schema:
        made["items"] = _strict(schema.get("items"), require_all)
    forms = [schema[key] for key in ("anyOf", "oneOf", "allOf") if key in schema]
    if len(forms) > 1 or len(schema.get("allOf", ())) > 1:
        raise _NotStrict
    if forms:
        # One form stands for allOf with a single one, too.
        made["anyOf"] = [_strict(form, require_all) for form in forms[0]]
    for key in ("$defs", "definitions"):
        if key in schema:
            inner = schema[key].items()
            made[key] = {name: _strict(one, require_all) for name, one in inner}
    if "$ref" in made and len(made) > 1:
        made["anyOf"] = [{"$ref": made.pop("$ref")}]
    return made


def _object(schema: dict[str, Any], require_all: bool) -> dict[str, Any]:
    members = schema.get("properties")
    if members is None or schema.get("additionalProperties", False) is not False:
        raise _NotStrict
    required = schema.get("required", [])
    if set(required) - members.keys() or (not require_all and members.keys() - set(required)):
        raise _NotStrict
    return {
        "properties": {name: _strict(one, require_all) for name, one in members.items()},
        "required": list(members),
        "additionalProperties": False,
    }


def _tell(made: dict[str, Any], schema: dict[str, Any]) -> None:
    """Put into words what *made* has no keyword for."""
    said = [
        f"{key}: {json.dumps(schema[key])}" for key in _SAID if key in schema and key not in made
    ]
    if said:
        before = f"{schema['description']} " if schema.get("description") else ""
        made["description"] = f"{before}({', '.join(said)})"
