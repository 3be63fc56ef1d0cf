"""JSON schemas as dicts: refusing what is none, and saying what in a value does not fit one.

Checked are ``type``, ``enum``, ``const``; ``properties``, ``required``, ``additionalProperties``,
``patternProperties``, ``minProperties``, ``maxProperties``; ``items``, ``prefixItems``,
``minItems``, ``maxItems``, ``uniqueItems``; ``minLength``, ``maxLength``, ``pattern``;
``minimum``, ``maximum``, ``exclusiveMinimum``, ``exclusiveMaximum``, ``multipleOf``; ``anyOf``,
``oneOf``, ``allOf``, ``not``, and ``$ref`` within the schema.  All else is left to the provider:
``format``, ``if``, ``contains``, ``dependent…``, ``unevaluated…``.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from fractions import Fraction
from typing import Any, Final

from contextwindow.errors import ConfigError
from contextwindow.tool_arguments import MAX_DEPTH, shortened

LONGEST: Final = 1_000_000
"""Characters of a schema; no provider takes one of that size."""

TYPES: Final[Mapping[str, tuple[type, ...]]] = {
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "object": (dict,),
    "array": (list,),
    "null": (type(None),),
}

_INNER: Final = ("not", "items", "additionalProperties")
_INNER_LISTS: Final = ("anyOf", "oneOf", "allOf", "prefixItems")
_INNER_DICTS: Final = ("properties", "patternProperties", "$defs", "definitions")
_IN_PLACE: Final = ("anyOf", "oneOf", "allOf")
_SIZES: Final = (
    *("minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties"),
)
_NUMBERS: Final = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf")

_MOST_STEPS: Final = 200_000
"""Forms within forms can make a small value cost an exponential number of looks."""


def read_schema(given: Mapping[Any, Any]) -> dict[str, Any]:
    """A copy of *given* that is surely a JSON schema.

    Raises:
        ConfigError: it is not: the error says where and why.
    """
    try:
        text = json.dumps(given, allow_nan=False, ensure_ascii=False)
        text.encode()
    except RecursionError:
        raise ConfigError(f"the schema is nested more than {MAX_DEPTH} levels deep") from None
    except (TypeError, ValueError) as error:
        raise ConfigError(f"the schema cannot be sent as JSON: {error}") from error
    if len(text) > LONGEST:
        raise ConfigError(f"the schema has {len(text):,} characters; at most {LONGEST:,} are taken")
    _check_keys(given, 0)
    schema: dict[str, Any] = json.loads(text)
    for place, inner in _subschemas(schema, ""):
        _check_keywords(inner, place)
        _check_reference(schema, inner, place)
    return schema


def problems(schema: dict[str, Any], value: Any) -> Iterator[str]:
    """What in *value*, which is parsed JSON, does not fit *schema*: a line each, path first."""
    return _Check(schema).problems(schema, value, "")


def resolve(root: Any, reference: str) -> Any:
    """What *reference* (``"#/$defs/Name"``) points at in *root*.

    Raises:
        KeyError: it points at nothing, or out of the schema.
    """
    if not reference.startswith("#"):
        raise KeyError(reference)
    found = root
    for step in reference[1:].split("/")[1:]:
        step = step.replace("~1", "/").replace("~0", "~")
        if isinstance(found, list) and step.isdigit() and int(step) < len(found):
            found = found[int(step)]
        elif isinstance(found, dict):
            found = found[step]
        else:
            raise KeyError(reference)
    return found


# -- is it a schema -------------------------------------------------------------------------


def _check_keys(value: Any, depth: int) -> None:
    if depth > MAX_DEPTH:
        raise ConfigError(f"the schema is nested more than {MAX_DEPTH} levels deep")
    if isinstance(value, Mapping):
        for key, inner in value.items():
            if not isinstance(key, str):
                raise ConfigError(f"the schema has the key {key!r}, which is no str")
            _check_keys(inner, depth + 1)
    elif isinstance(value, (list, tuple)):
        for inner in value:
            _check_keys(inner, depth + 1)


def _subschemas(schema: Any, place: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every schema within *schema*, and it itself, with the place of each."""
    if isinstance(schema, bool):
        return
    if not isinstance(schema, dict):
        _refuse(place, f"must be a schema, not {shortened(schema)}")
    yield place, schema
    for key in _INNER:
        if key in schema:
            yield from _subschemas(schema[key], f"{place}/{key}")
    for key in _INNER_LISTS:
        if key in schema:
            if not isinstance(schema[key], list) or not schema[key]:
                _refuse(f"{place}/{key}", "must be a list of schemas")
            for number, inner in enumerate(schema[key]):
                yield from _subschemas(inner, f"{place}/{key}/{number}")
    for key in _INNER_DICTS:
        if key in schema:
            if not isinstance(schema[key], dict):
                _refuse(f"{place}/{key}", "must be an object of schemas")
            for name, inner in schema[key].items():
                yield from _subschemas(inner, f"{place}/{key}/{name}")


def _check_keywords(schema: dict[str, Any], place: str) -> None:
    kinds = schema.get("type", [])
    for kind in kinds if isinstance(kinds, list) else [kinds]:
        if not isinstance(kind, str) or kind not in TYPES:
            hint = "; pass the schema itself" if kind in ("json_schema", "json_object") else ""
            _refuse(f"{place}/type", f"must be of {', '.join(TYPES)}, not {shortened(kind)}{hint}")
    required = schema.get("required", [])
    if not isinstance(required, list) or not all(isinstance(one, str) for one in required):
        _refuse(f"{place}/required", "must be a list of names")
    if "enum" in schema and (not isinstance(schema["enum"], list) or not schema["enum"]):
        _refuse(f"{place}/enum", "must be a list of values")
    for key in _SIZES:
        size = schema.get(key, 0)
        if isinstance(size, bool) or not isinstance(size, int) or size < 0:
            _refuse(f"{place}/{key}", f"must be a whole number from 0, not {shortened(size)}")
    for key in _NUMBERS:
        number = schema.get(key, 1)
        if isinstance(number, bool) or not isinstance(number, (int, float)):
            _refuse(f"{place}/{key}", f"must be a number, not {shortened(number)}")
    if schema.get("multipleOf", 1) <= 0:
        _refuse(f"{place}/multipleOf", "must be above 0")
    patterns = [schema["pattern"]] if "pattern" in schema else []
    for pattern in (*patterns, *schema.get("patternProperties", ())):
        try:
            re.compile(pattern)
        except (re.error, TypeError, OverflowError, RecursionError) as error:
            _refuse(f"{place}/pattern", f"is no regular expression: {error}")


def _check_reference(root: dict[str, Any], schema: dict[str, Any], place: str) -> None:
    if "$ref" not in schema:
        return
    # Everything that is looked at without going a step into the value.
    seen: list[Any] = []
    ahead: list[Any] = [schema]
    while ahead:
        one = ahead.pop()
        if not isinstance(one, dict):
            continue
        if any(one is other for other in seen):
            if one is schema:
                _refuse(f"{place}/$ref", "refers to itself in a circle")
            continue
        seen.append(one)
        reference = one.get("$ref")
        if reference is not None:
            try:
                found = resolve(root, reference)
            except (KeyError, AttributeError, ValueError):
                _refuse(f"{place}/$ref", f"points at nothing in the schema: {shortened(reference)}")
            if not isinstance(found, (dict, bool)):
                _refuse(f"{place}/$ref", f"points at no schema: {shortened(reference)}")
            ahead.append(found)
        for key in _IN_PLACE:
            ahead += one.get(key, [])
        ahead.append(one.get("not"))


def _refuse(place: str, why: str) -> Any:
    raise ConfigError(f"the schema at #{place} {why}")


# -- does a value fit -----------------------------------------------------------------------


class _Check:
    """One look at a value."""

    def __init__(self, root: dict[str, Any]) -> None:
        self._root = root
        self._steps = 0

    def problems(self, schema: Any, value: Any, path: str) -> Iterator[str]:
        self._steps += 1
        if self._steps > _MOST_STEPS:
            if self._steps == _MOST_STEPS + 1:
                yield f"{_name(path)}: could not be checked in {_MOST_STEPS:,} steps"
            return
        if isinstance(schema, bool):
            if not schema:
                yield f"{_name(path)}: must not be there"
            return
        if "$ref" in schema:
            yield from self.problems(resolve(self._root, schema["$ref"]), value, path)
        said = _mismatch(schema, value)
        if said:
            yield f"{_name(path)}: {said}, not {shortened(value)}"
            return
        if isinstance(value, dict):
            yield from self._in_object(schema, value, path)
        elif isinstance(value, list):
            yield from self._in_list(schema, value, path)
        yield from self._in_forms(schema, value, path)

    def _in_object(self, schema: dict[str, Any], value: dict[str, Any], path: str) -> Iterator[str]:
        known = schema.get("properties", {})
        for name in schema.get("required", ()):
            if name not in value:
                yield f"{_member(path, name)}: missing"
        patterns = schema.get("patternProperties", {})
        other = schema.get("additionalProperties", True)
        for name, inner in value.items():
            place = _member(path, name)
            forms = [form for pattern, form in patterns.items() if re.search(pattern, name)]
            forms += [known[name]] if name in known else []
            if forms:
                for form in forms:
                    yield from self.problems(form, inner, place)
            elif other is False:
                yield f"{place}: not expected; there are {', '.join(known) or 'none'}"
            else:
                yield from self.problems(other, inner, place)

    def _in_list(self, schema: dict[str, Any], value: list[Any], path: str) -> Iterator[str]:
        first = schema.get("prefixItems", [])
        for number, inner in enumerate(value):
            if number < len(first):
                yield from self.problems(first[number], inner, f"{path}[{number}]")
            elif "items" in schema:
                yield from self.problems(schema["items"], inner, f"{path}[{number}]")

    def _in_forms(self, schema: dict[str, Any], value: Any, path: str) -> Iterator[str]:
        for form in schema.get("allOf", ()):
            yield from self.problems(form, value, path)
        if "anyOf" in schema:
            yield from self._nearest(schema["anyOf"], value, path)
        if "oneOf" in schema:
            fitting = [f for f in schema["oneOf"] if not any(self.problems(f, value, path))]
            if not fitting:
                yield from self._nearest(schema["oneOf"], value, path)
            elif len(fitting) > 1:
                yield f"{_name(path)}: fits {len(fitting)} of the forms of which it may fit one"
        if "not" in schema and not any(self.problems(schema["not"], value, path)):
            yield f"{_name(path)}: fits what it must not fit: {shortened(schema['not'])}"

    def _nearest(self, forms: list[Any], value: Any, path: str) -> Iterator[str]:
        """Nothing where *value* fits one of *forms*, else what is wrong for the nearest."""
        best: list[str] | None = None
        for form in forms:
            found = list(self.problems(form, value, path))
            if not found:
                return
            # One line at the place itself is a form of another kind altogether.
            foreign = len(found) == 1 and found[0].startswith(f"{_name(path)}: must be")
            if not foreign and (best is None or len(found) < len(best)):
                best = found
        wanted = " or ".join(dict.fromkeys(filter(None, map(self._kind, forms))))
        if best is None:
            yield f"{_name(path)}: must be {wanted or 'of another form'}, not {shortened(value)}"
        else:
            yield from best

    def _kind(self, form: Any) -> str:
        if not isinstance(form, dict):
            return ""
        if "$ref" in form:
            return self._kind(resolve(self._root, form["$ref"]))
        for key in ("const", "enum"):
            if key in form:
                return shortened(form[key])
        kinds = form.get("type", "")
        return " or ".join(kinds) if isinstance(kinds, list) else kinds


def _name(path: str) -> str:
    return path or "the whole"


def _member(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _mismatch(schema: dict[str, Any], value: Any) -> str:
    """Why *value* itself does not fit, whatever is in it; ``""`` where it does."""
    kinds = schema.get("type")
    names = [kinds] if isinstance(kinds, str) else kinds or []
    if names and not any(_is(value, name) for name in names):
        return f"must be {' or '.join(names)}"
    if "enum" in schema and not any(_same(value, one) for one in schema["enum"]):
        return f"must be one of {shortened(schema['enum'])}"
    if "const" in schema and not _same(value, schema["const"]):
        return f"must be {shortened(schema['const'])}"
    if isinstance(value, str):
        if "pattern" in schema and not re.search(schema["pattern"], value):
            return f"must match {schema['pattern']!r}"
        return _size(schema, len(value), "Length", "characters")
    if isinstance(value, list):
        if schema.get("uniqueItems") is True and not _unique(value):
            return "must have no item twice"
        return _size(schema, len(value), "Items", "items")
    if isinstance(value, dict):
        return _size(schema, len(value), "Properties", "members")
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return _range(schema, value)
    return ""


def _size(schema: dict[str, Any], size: int, word: str, unit: str) -> str:
    if size < schema.get(f"min{word}", 0):
        return f"must have at least {schema[f'min{word}']} {unit}"
    if size > schema.get(f"max{word}", size):
        return f"must have at most {schema[f'max{word}']} {unit}"
    return ""


def _range(schema: dict[str, Any], value: float) -> str:
    if value < schema.get("minimum", value):
        return f"must be at least {schema['minimum']}"
    if value > schema.get("maximum", value):
        return f"must be at most {schema['maximum']}"
    if value <= schema.get("exclusiveMinimum", -math.inf):
        return f"must be above {schema['exclusiveMinimum']}"
    if value >= schema.get("exclusiveMaximum", math.inf):
        return f"must be below {schema['exclusiveMaximum']}"
    step = schema.get("multipleOf")
    # As they are written: 0.3 is a multiple of 0.1, which the binary numbers deny.
    if step is not None and Fraction(str(value)) % Fraction(str(step)):
        return f"must be a multiple of {step}"
    return ""


def _is(value: Any, name: str) -> bool:
    if isinstance(value, bool):
        return name == "boolean"
    if name == "integer" and isinstance(value, float):
        return value.is_integer()
    return isinstance(value, TYPES[name])


def _same(one: Any, other: Any) -> bool:
    """Whether both are the same JSON: 1 and 1.0 are, 1 and true are not."""
    if isinstance(one, bool) or isinstance(other, bool):
        return one is other
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_same(one[key], other[key]) for key in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_same, one, other))
    return bool(one == other)


def _unique(values: list[Any]) -> bool:
    written = [json.dumps(one, sort_keys=True) for one in values]
    return len(set(written)) == len(written)
