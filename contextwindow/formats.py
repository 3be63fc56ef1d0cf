"""The form that a reply must have: what the provider is sent, and reading the reply.

A form is a pydantic model class, a dataclass or a TypedDict, whose values the reply becomes; or a
JSON schema, whose replies stay plain JSON and are checked as ``contextwindow.json_schema`` says.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import re
from collections import Counter
from collections.abc import Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final, is_typeddict

from contextwindow.errors import ConfigError, OutputInvalid
from contextwindow.json_schema import problems, read_schema
from contextwindow.models.base import ResponseFormat
from contextwindow.records import RecordType, Reply
from contextwindow.strict_schema import strict
from contextwindow.tool_arguments import MAX_DEPTH, shortened
from contextwindow.typed_dicts import readable

if TYPE_CHECKING:
    from pydantic import TypeAdapter

_FENCED: Final = re.compile(
    r"^[ \t]*```(?:json)?[ \t]*\r?\n(.*?)^[ \t]*```[ \t]*$",
    re.IGNORECASE | re.MULTILINE | re.DOTALL,
)
_SHOWN: Final = 20
_NAMED: Final = 3


class Format:
    """A form that replies are read by.

    Attributes:
        sent: what the provider is told.
    """

    def __init__(
        self, name: str, schema: dict[str, Any], adapter: TypeAdapter[Any] | None = None
    ) -> None:
        self._schema = schema
        self._adapter = adapter
        narrow = strict(schema, require_all=adapter is not None)
        self.sent = ResponseFormat(
            name=_name(name), schema=narrow or schema, strict=narrow is not None
        )

    def parse(self, text: str) -> Any:
        """The value that *text* is; white space and a fence around it are passed over.

        Raises:
            OutputInvalid: it is no JSON, or does not fit.
        """
        return self._fit(*self._read(text))

    def parse_reply(self, reply: Reply) -> Any:
        """The value of a finished *reply*: of what it says behind its last tool output.

        Raises:
            OutputInvalid: the model refused, was cut off, or said something that does not fit.
        """
        text = _last_text(reply)
        try:
            if reply.refusal or reply.finish_reason == "refusal":
                refusal = reply.refusal or text
                raise self._invalid("the model refused" + (f": {refusal}" if refusal else ""))
            try:
                found = self._read(text)
            except OutputInvalid as error:
                # Whole JSON is whole, whatever the provider says.
                cut = _CUT.get(reply.finish_reason)
                raise (self._invalid(cut, *error.problems) if cut else error) from None
            return self._fit(*found)
        except OutputInvalid as error:
            error.text, error.reply, error.turn_id = text, reply, reply.turn_id
            raise

    def _read(self, text: str) -> tuple[Any, str]:
        """The JSON in *text*, parsed and as text."""
        plain = text.strip().lstrip("\ufeff")
        if not plain:
            raise self._invalid("the reply has no text")
        fenced = _FENCED.findall(plain)
        why = ""
        for candidate in (plain, *(fenced if len(fenced) == 1 else ())):
            try:
                return _json(candidate), candidate
            except RecursionError:
                why = f"the reply is nested more than {MAX_DEPTH} levels deep"
            except ValueError as error:
                why = f"the reply is no JSON: {error}"
        raise self._invalid(why)

    def _fit(self, value: Any, text: str) -> Any:
        """What the caller gets of the JSON *value*, whose text is *text*."""
        if self._adapter is None:
            said = list(itertools.islice(problems(self._schema, value), _SHOWN))
            if said:
                raise self._unfit(said)
            return value
        from pydantic import ValidationError

        try:
            return self._adapter.validate_json(text)
        except ValidationError as error:
            raise self._unfit(_said(error)) from error
        except Exception as error:
            # Validators of the user's types raise what they like.
            raise self._unfit([f"{type(error).__name__}: {error}"]) from error

    def _invalid(self, *said: str) -> OutputInvalid:
        return OutputInvalid(f"{self.sent.name}: {said[0]}", problems=said)

    def _unfit(self, said: list[str]) -> OutputInvalid:
        rest = "many" if len(said) == _SHOWN else len(said) - _NAMED
        more = f" and {rest} more" if len(said) > _NAMED else ""
        return OutputInvalid(
            f"the reply does not fit {self.sent.name}: {'; '.join(said[:_NAMED])}{more}",
            problems=said,
        )


def read_format(value: object) -> Format | None:
    """The form that a caller names; None for none.

    Raises:
        ConfigError: it is no type that has a JSON schema, and no schema.
    """
    if value is None:
        return None
    if isinstance(value, Mapping):
        try:
            schema = read_schema(value)
        except ConfigError as error:
            raise ConfigError(f"response_format: {error}") from error
        return Format(str(schema.get("title") or "reply"), schema)
    if isinstance(value, type) and (
        hasattr(value, "model_json_schema")
        or dataclasses.is_dataclass(value)
        or is_typeddict(value)
        or getattr(value, "__total__", None) is not None
    ):
        return _of_type(value)
    raise ConfigError(
        "response_format must be a pydantic model class, a dataclass, a TypedDict or a JSON "
        f"schema, not {value!r}; a list or a union goes into a field of such a class"
    )


_CUT: Final[Mapping[str, str]] = {
    "length": "the reply was cut at max_output_tokens before its JSON was whole",
    "content_filter": "the provider's filter cut the reply",
}


@lru_cache(maxsize=64)
def _of_type(kind: type) -> Format:
    """The form of *kind*; building it takes milliseconds, and bots ask for the same again."""
    from pydantic import TypeAdapter
    from pydantic.json_schema import GenerateJsonSchema

    class Quiet(GenerateJsonSchema):
        # A default that has no JSON is the type's own business: it is not sent.
        ignored_warning_kinds = {"non-serializable-default"}  # noqa: RUF012 - as the base has it

    try:
        adapter: TypeAdapter[Any] = TypeAdapter(readable(kind))
        schema = read_schema(adapter.json_schema(schema_generator=Quiet))
    except Exception as error:
        # Whatever a user's own type raises when it is asked for its schema.
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ConfigError(f"response_format {kind.__name__} has no JSON schema: {first}") from error
    return Format(kind.__name__, schema, adapter)


def _name(name: str) -> str:
    """*name* as providers take one: letters, digits, ``_`` and ``-``, 64 at the most."""
    return re.sub(r"[^a-zA-Z0-9_-]+", "_", name)[:64].strip("_") or "reply"


def _last_text(reply: Reply) -> str:
    texts: list[str] = []
    for record in reply.records:
        if record.source is RecordType.TOOL_OUTPUT:
            texts.clear()
        elif record.source is RecordType.MODEL_RESPONSE:
            texts.append(record.content)
    return "".join(texts) if reply.records else reply.text


def _json(text: str) -> Any:
    value = json.loads(
        text, object_pairs_hook=_members, parse_constant=_no_number, parse_float=_finite
    )
    if text.count("[") + text.count("{") > MAX_DEPTH:
        _check_depth(value)
    return value


def _check_depth(value: Any) -> None:
    level = [value]
    for _ in range(MAX_DEPTH + 1):
        level = [
            inner
            for outer in level
            if isinstance(outer, (dict, list))
            for inner in (outer.values() if isinstance(outer, dict) else outer)
        ]
    if level:
        raise RecursionError


def _members(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        (twice, _), *_ = Counter(key for key, _ in pairs).most_common(1)
        raise ValueError(f"the key {shortened(twice)} stands twice in one object")
    return found


def _no_number(name: str) -> Any:
    raise ValueError(f"{name} is no JSON number")


def _finite(text: str) -> float:
    number = float(text)
    if math.isinf(number):
        raise ValueError(f"the number {text[:30]} is too large")
    return number


def _said(error: Any) -> list[str]:
    """The complaints of pydantic, the place of each in front."""
    lines = []
    for one in error.errors(include_url=False, include_context=False)[:_SHOWN]:
        place = ""
        for step in one["loc"]:
            place += f"[{step}]" if isinstance(step, int) else f".{step}" if place else str(step)
        given = "" if one["type"] == "missing" else f", not {shortened(one['input'])}"
        lines.append(f"{place or 'the whole'}: {one['msg']}{given}")
    return lines
