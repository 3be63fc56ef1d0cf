"""Tools: what a model is told of a function, and what a function gets of a model."""

from __future__ import annotations

import asyncio
import dataclasses
import enum
import functools
import inspect
import json
import keyword
import math
import re
import subprocess
import sys
import threading
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import suppress
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Optional

import pydantic
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import BaseModel, Field
from typing_extensions import TypedDict

from contextwindow import (
    CallbackExpired,
    ConfigError,
    TextDelta,
    Tool,
    ToolContext,
    ToolError,
    tool,
)
from contextwindow.tool_arguments import MAX_CHARACTERS, MAX_DEPTH
from contextwindow.tool_schema import plain_function
from contextwindow.tools import as_tool, output_text

if TYPE_CHECKING:
    from fractions import Fraction


class Unit(enum.Enum):
    CELSIUS = "celsius"
    KELVIN = "kelvin"


class Place(BaseModel):
    """Where."""

    city: str
    title: str = "none"
    inside: Place | None = None


@dataclasses.dataclass
class Point:
    x: float
    y: float = 0.0


class Options(TypedDict, total=False):
    unit: Unit
    limit: int


def context(**more: Any) -> ToolContext:
    return ToolContext(call_id="c1", name="it", **more)


def run(made: Tool, **arguments: Any) -> Any:
    """What the tool gives for *arguments*, as a model writes them."""
    return made.call(made.arguments(json.dumps(arguments)), context())


def refused(made: Tool, raw: str) -> str:
    """What the model is told about *raw*."""
    with pytest.raises(ToolError) as caught:
        made.arguments(raw)
    return str(caught.value)


@tool
def weather(city: str, days: int = 1, *, unit: Literal["c", "k"] = "c") -> str:
    """Say how the weather will be.

    Not for the past.

    Args:
        city: name of the city,
            in English.
        days: how far ahead.
        unit: of the temperatures.

    Returns:
        A sentence.
    """
    return f"{city} {days} {unit}"


# -- what the model is told --------------------------------------------------------------


def test_a_function_becomes_a_schema_with_its_words() -> None:
    assert (weather.name, weather.is_async, weather.timeout) == ("weather", False, None)
    assert weather.description == "Say how the weather will be.\n\nNot for the past."
    assert weather.parameters == {
        "type": "object",
        "properties": {
            "city": {"type": "string", "description": "name of the city, in English."},
            "days": {"type": "integer", "default": 1, "description": "how far ahead."},
            "unit": {
                "type": "string",
                "enum": ["c", "k"],
                "default": "c",
                "description": "of the temperatures.",
            },
        },
        "required": ["city"],
        "additionalProperties": False,
    }


def test_a_function_without_words_and_arguments_is_a_tool() -> None:
    @tool
    def ping() -> None: ...

    assert ping.description == ""
    assert ping.parameters == {"type": "object", "properties": {}, "additionalProperties": False}
    assert ping.arguments("") == ping.arguments(" \n") == ping.arguments("{}") == {}


def test_options_of_the_decorator_win_over_the_function() -> None:
    @tool(name="other-name", description="Other words.", timeout=2, idempotent=True)
    def it() -> None:
        """Words."""

    assert (it.name, it.description) == ("other-name", "Other words.")
    assert (it.timeout, it.idempotent) == (2.0, True)
    assert tool(lambda: None, name="nameless").name == "nameless"
    assert tool(plain_function(weather), description="").description == ""


NUMPY = """Add numbers.

    Slowly.

    Parameters
    ----------
    a : int
        the first,
        of two
    b, c : int, optional
        the others

    Returns
    -------
    int
        the sum
    """

SPHINX = """Add numbers.

    Slowly.

    :param a: the first,
        of two
    :type a: int
    :param int b: the others
    :param c: the others
    :returns: the sum
    :raises ValueError: never
    """

GOOGLE = """Add numbers.

    Slowly.

    Note:
        Not this.

    Arguments:
        a (int): the first,
            of two
        b (Optional[int]): the others
        c: the others

    Example:
        b: not this either
    """


@pytest.mark.parametrize("text", [NUMPY, SPHINX, GOOGLE])
def test_arguments_are_described_in_every_style_of_docstring(text: str) -> None:
    def add(a: int, b: int = 0, c: int = 0) -> int:
        return a + b + c

    add.__doc__ = text

    made = tool(add)

    assert made.description == "Add numbers.\n\nSlowly."
    described = {name: one["description"] for name, one in made.parameters["properties"].items()}
    assert described == {"a": "the first, of two", "b": "the others", "c": "the others"}


def test_paragraphs_and_lists_in_the_words_of_an_argument_are_kept_apart() -> None:
    @tool
    def it(mode: str) -> None:
        """Do it.

        Args:
            mode: one of
                - fast, which
                  is not good
                - good

                In doubt: good.
        """

    assert it.parameters["properties"]["mode"]["description"] == (
        "one of\n- fast, which is not good\n- good\nIn doubt: good."
    )


def test_text_that_only_looks_like_a_section_stays_in_the_description() -> None:
    @tool
    def it(a: int) -> None:
        """Call it like so:

        Remember: it is slow.
        Usage: rarely.
        """

    assert it.description == "Call it like so:\n\nRemember: it is slow.\nUsage: rarely."


@given(st.text(max_size=200), st.text(max_size=200))
@example("Args:\n\n:", ":param")
@example("Parameters\n---\n", "a :\n  :param a:")
def test_no_docstring_is_too_odd(one: str, other: str) -> None:
    def it(a: int) -> None: ...

    it.__doc__ = f"{one}\n\n    Args:\n        a: {other}\n"

    assert tool(it).parameters["required"] == ["a"]


def test_types_of_every_kind_are_described_and_converted() -> None:
    got = {}

    @tool
    def plan(  # type: ignore[no-untyped-def]  # as people write it
        when: datetime,
        day: date,
        place: Place,
        points: list[Point],
        options: Options,
        unit: Unit,
        price: Decimal,
        tags: set[str],
        table: dict[int, list[float]],
        either: int | str,
        who: uuid.UUID,
        maybe: Optional[int],  # noqa: UP045 - as people write it
        anything,
    ) -> None:
        got.update(locals())

    arguments = {
        "when": "2026-11-20T10:00:00Z",
        "day": "2026-11-20",
        "place": {"city": "Ulm", "inside": {"city": "Blaubeuren"}},
        "points": [{"x": 1}],
        "options": {"unit": "kelvin"},
        "unit": "celsius",
        "price": "1.10",
        "tags": ["a", "a"],
        "table": {"1": [1, 2.5]},
        "either": "x",
        "who": "12345678-1234-5678-1234-567812345678",
        "maybe": None,
        "anything": [1, {"a": None}],
    }
    run(plan, **arguments)

    assert {name: got[name] for name in arguments} == {
        "when": datetime(2026, 11, 20, 10, tzinfo=UTC),
        "day": date(2026, 11, 20),
        "place": Place(city="Ulm", inside=Place(city="Blaubeuren")),
        "points": [Point(1.0)],
        "options": {"unit": Unit.KELVIN},
        "unit": Unit.CELSIUS,
        "price": Decimal("1.10"),
        "tags": {"a"},
        "table": {1: [1.0, 2.5]},
        "either": "x",
        "who": uuid.UUID("12345678-1234-5678-1234-567812345678"),
        "maybe": None,
        "anything": [1, {"a": None}],
    }
    properties = plan.parameters["properties"]
    assert properties["when"] == {"type": "string", "format": "date-time"}
    assert properties["points"] == {"type": "array", "items": {"$ref": "#/$defs/Point"}}
    assert properties["anything"] == {}
    assert set(plan.parameters["$defs"]) == {"Place", "Point", "Options", "Unit"}
    assert plan.parameters["$defs"]["Place"]["description"] == "Where."
    assert plan.parameters["required"] == list(arguments)


def test_titles_of_pydantic_are_dropped_and_arguments_called_title_are_not() -> None:
    @tool
    def it(title: str, place: Place, named: Annotated[int, Field(title="Mine")]) -> None: ...

    assert it.parameters["properties"]["title"] == {"type": "string"}
    assert it.parameters["properties"]["named"]["title"] == "Mine"
    assert "title" not in it.parameters
    assert it.parameters["$defs"]["Place"]["properties"]["title"]["default"] == "none"
    assert "title" not in it.parameters["$defs"]["Place"]


def test_a_field_says_more_than_the_docstring() -> None:
    @tool
    def it(
        page: Annotated[int, Field(ge=1, description="from the field")],
        size: int = Field(10, le=50, description="a default"),
        from_: Annotated[str, Field(alias="from")] = "here",
        tags: Annotated[list[str], Field(default_factory=list)] = Field(default_factory=list),  # noqa: B008
    ) -> tuple[int, int, str, list[str]]:
        """Do it.

        Args:
            page: from the docstring
        """
        return page, size, from_, tags

    properties = it.parameters["properties"]
    assert properties["page"] == {"type": "integer", "minimum": 1, "description": "from the field"}
    assert properties["size"]["default"] == 10
    assert it.parameters["required"] == ["page"]
    assert run(it, page=1) == (1, 10, "here", [])
    assert run(it, page=2, **{"from": "there"}) == (2, 10, "there", [])
    assert "page: Input should be greater than or equal to 1, not 0" in refused(it, '{"page": 0}')


@pytest.mark.parametrize(
    ("default", "described"),
    [
        (3, 3),
        ([1], [1]),
        (Unit.KELVIN, "kelvin"),
        (Place(city="Ulm"), {"city": "Ulm", "title": "none", "inside": None}),
        (date(2026, 1, 2), "2026-01-02"),
        (object(), None),
        (math.nan, None),
        (b"\xff", None),
    ],
)
def test_a_default_is_in_the_schema_where_json_has_it(default: Any, described: Any) -> None:
    def it(value: Any = default) -> Any:
        return value

    made = tool(it)

    assert made.parameters["properties"]["value"].get("default") == described
    assert "required" not in made.parameters
    assert run(made) is default
    assert run(made, value=None) is None


def test_an_argument_whose_default_is_none_may_be_null() -> None:
    @tool
    def it(limit: int = None) -> Any:  # type: ignore[assignment]  # noqa: RUF013 - as people write it
        return limit

    assert run(it, limit=None) is None
    assert run(it, limit=3) == 3
    assert it.parameters["properties"]["limit"] == {
        "anyOf": [{"type": "integer"}, {"type": "null"}],
        "default": None,
    }


def test_what_a_field_says_of_an_argument_that_may_be_null_is_kept() -> None:
    @tool
    def it(
        from_: Annotated[int, Field(ge=1, alias="from")] = None,  # type: ignore[assignment]  # noqa: RUF013
        size: Annotated[int, Field(default=7)] = Field(description="of it"),
        count: Annotated[int, Field(default_factory=lambda: 8)] = Field(),
    ) -> Any:
        return from_, size, count

    assert run(it) == (None, 7, 8)
    assert run(it, **{"from": None}, size=1) == (None, 1, 8)
    assert "- from" in refused(it, '{"from": 0}')
    assert it.parameters["properties"]["size"]["description"] == "of it"


def test_names_that_mean_something_to_pydantic_are_only_names() -> None:
    @tool
    def it(schema: str, model_config: int, _private: int, copy: int, a0: int, self: int) -> Any:
        return schema, model_config, _private, copy, a0, self

    names = ["schema", "model_config", "_private", "copy", "a0", "self"]
    assert list(it.parameters["properties"]) == names
    assert run(it, schema="s", **dict.fromkeys(names[1:], 1)) == ("s", 1, 1, 1, 1, 1)


@pytest.mark.parametrize("name", ["", "a b", "é", "a.b", "x" * 65, "name\n", None, 3])
def test_names_that_providers_refuse_are_refused(name: Any) -> None:
    with pytest.raises(ConfigError, match="cannot be a tool's name"):
        Tool(name)


# -- how a function is called ------------------------------------------------------------


def test_positional_only_arguments_are_given_by_position() -> None:
    @tool
    def it(a: int, b: int = 2, c: int = 3, /, d: int = 4) -> Any:
        return a, b, c, d

    assert run(it, a=1) == (1, 2, 3, 4)
    assert run(it, a=1, c=30) == (1, 2, 30, 4)
    assert run(it, a=1, b=20, d=40) == (1, 20, 3, 40)


def test_double_star_takes_what_else_the_model_gives() -> None:
    @tool
    def it(a: int, context: ToolContext, **more: int) -> Any:
        return a, more

    assert it.parameters["additionalProperties"] == {"type": "integer"}
    assert run(it, a=1, b="2", a0=3) == (1, {"b": 2, "a0": 3})
    assert "- b: " in refused(it, '{"a": 1, "b": "x"}')
    assert "- context: not an argument" in refused(it, '{"a": 1, "context": 1}')


def test_untyped_double_star_takes_anything() -> None:
    @tool
    def it(**more): ...  # type: ignore[no-untyped-def]  # as people write it

    assert it.parameters["additionalProperties"] is True
    assert it.arguments('{"a": [1]}') == {"a": [1]}


def test_a_method_is_a_tool_of_its_object() -> None:
    class Agent:
        def __init__(self, name: str) -> None:
            self.name = name

        @tool
        def greet(self, who: str, /, how: str = "Hello") -> str:
            """Greet.

            Args:
                who: the other one.
            """
            return f"{self.name}: {how} {who}"

        def plain(self, who: str) -> str:
            return f"{self.name} {who}"

    agent = Agent("A")

    assert list(Agent.greet.parameters["properties"]) == ["who", "how"]
    assert run(agent.greet, who="B") == "A: Hello B"
    assert run(Agent("C").greet, who="B") == "C: Hello B"
    assert agent.greet("B", how="Bye") == "A: Bye B"
    assert run(as_tool(agent.plain), who="B") == "A B"
    assert as_tool(agent.greet).name == "greet"
    with pytest.raises(ConfigError, match=r"take it from an object, as in Agent\(\).greet"):
        as_tool(Agent.greet)


def test_class_and_static_methods_are_tools() -> None:
    class Agent:
        label = "A"

        @classmethod
        def named(cls, who: str) -> str:
            return f"{cls.label} {who}"

        @staticmethod
        @tool
        def inner(who: str) -> str:
            return who

        @tool
        @staticmethod
        def outer(who: str) -> str:
            return who

    assert run(as_tool(Agent.named), who="B") == "A B"
    assert run(Agent.inner, who="B") == run(Agent.outer, who="B") == run(Agent().outer, who="B")
    with pytest.raises(ConfigError, match="put @classmethod above @tool"):
        tool(Agent.__dict__["named"])


def test_what_a_partial_has_filled_in_is_hidden_from_the_model() -> None:
    def search(key: str, query: str, limit: int = 3) -> Any:
        """Search."""
        return key, query, limit

    made = as_tool(functools.partial(search, key="secret"))

    assert (made.name, made.description) == ("search", "Search.")
    assert list(made.parameters["properties"]) == ["query", "limit"]
    assert "secret" not in json.dumps(made.parameters)
    assert run(made, query="q") == ("secret", "q", 3)
    refused(made, '{"query": "q", "key": "other"}')
    assert run(as_tool(functools.partial(search, "secret")), query="q") == ("secret", "q", 3)


def test_a_decorated_function_is_described_by_the_one_inside() -> None:
    def noisy(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            return ["noise", function(*args, **kwargs)]

        return wrapper

    @tool
    @noisy
    def it(n: int) -> int:
        """Count."""
        return n

    assert it.description == "Count."
    assert run(it, n="3") == ["noise", 3]


def test_an_object_that_can_be_called_is_a_tool_when_it_has_a_name() -> None:
    class Search:
        async def __call__(self, query: str, context: ToolContext) -> str:
            """Search.

            Args:
                query: what for.
            """
            return query

    made = tool(Search(), name="search")

    assert made.is_async
    assert made.description == "Search."
    assert made.parameters["properties"] == {
        "query": {"type": "string", "description": "what for."}
    }
    assert asyncio.run(run(made, query="x")) == "x"
    with pytest.raises(ConfigError, match="give one with name="):
        tool(Search())


def test_async_functions_are_told_from_others() -> None:
    class Agent:
        async def method(self) -> None: ...

        async def __call__(self) -> None: ...

    async def plain() -> None: ...

    found: list[Callable[..., Any]] = [
        plain,
        functools.partial(plain),
        functools.partial(functools.partial(plain)),
    ]
    assert all(as_tool(one).is_async for one in found)
    assert as_tool(Agent().method).is_async
    assert tool(functools.partial(Agent()), name="it").is_async
    assert not weather.is_async
    assert not Tool("external").is_async


def test_a_tool_is_still_its_function() -> None:
    assert weather("Ulm", days=2) == "Ulm 2 c"
    assert weather.__doc__ is not None
    assert weather.__doc__.startswith("Say how")


def test_tools_are_equal_only_to_themselves() -> None:
    first, second = (Tool("it", "words") for _ in range(2))
    assert first != second
    assert len({first, second, first}) == 2
    assert repr(first) == "Tool('it')"


@pytest.mark.parametrize("kind", ["bare", "optional", "union", "annotated", "text", "two"])
def test_a_tool_context_is_given_and_not_described(kind: str) -> None:
    def bare(a: int, anything: ToolContext) -> Any:
        return anything

    def optional(a: int, ctx: Optional[ToolContext] = None) -> Any:  # noqa: UP045
        return ctx

    def union(a: int, *, ctx: Place | ToolContext | None = None) -> Any:
        return ctx

    def annotated(a: int, ctx: Annotated[ToolContext, "why"]) -> Any:
        return ctx

    def text(a: int, ctx: "ToolContext | None" = None) -> Any:  # noqa: UP037
        return ctx

    def two(ctx: ToolContext, /, a: int, *, other: ToolContext) -> Any:
        return other if ctx is other else None

    made = tool(locals()[kind])
    given = context()

    assert list(made.parameters["properties"]) == ["a"]
    assert made.call(made.arguments('{"a": 1}'), given) is given


def test_a_tool_context_may_be_imported_for_the_type_checker_alone(tmp_path: Path) -> None:
    code = (
        "from __future__ import annotations\n"
        "from typing import TYPE_CHECKING\n"
        "from contextwindow import tool\n"
        "if TYPE_CHECKING:\n"
        "    from contextwindow import ToolContext\n"
        "@tool\n"
        "def it(a: int, context: ToolContext) -> Missing: ...\n"
    )
    namespace: dict[str, Any] = {"__name__": "elsewhere"}
    exec(compile(code, "elsewhere", "exec"), namespace)

    assert list(namespace["it"].parameters["properties"]) == ["a"]


def test_types_beside_a_function_within_a_function_are_found() -> None:
    @dataclasses.dataclass
    class Local:
        n: int

    def it(value: Local) -> int:
        return value.n

    assert run(tool(it), value={"n": "4"}) == 4
    assert run(as_tool(it), value={"n": 4}) == 4


# -- functions that cannot be tools ------------------------------------------------------


def star(*values: int) -> None: ...
def later(value: Later) -> None: ...  # type: ignore[name-defined]  # noqa: F821 - that is the point
def checker_only(value: Fraction) -> None: ...
def calls(value: int, back: Callable[[int], int]) -> None: ...
def strange(value: threading.Lock) -> None: ...
def constraint(value: Annotated[int | str, Field(discriminator="x")]) -> None: ...
def more(a: int, **values: threading.Lock) -> None: ...
def generator() -> Iterator[int]:
    yield 1


async def generator_async() -> AsyncIterator[int]:
    yield 1


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (star, r"'star': parameter 'values' is \*args: name each argument"),
        (later, r"'later': parameter 'value'.*'Later'.*define or import the type"),
        (checker_only, r"'checker_only': parameter 'value'.*'Fraction'.*define or import"),
        (calls, r"'calls': parameter 'back' cannot be described to a model.*JSON"),
        (strange, r"'strange': parameter 'value' cannot be described to a model"),
        (constraint, r"'constraint': parameter 'value' cannot be described to a model"),
        (more, r"'more': parameter 'values' cannot be described to a model"),
        (generator, r"generator has `yield`.*emit\(\)"),
        (generator_async, r"generator_async has `yield`.*emit\(\)"),
        (lambda: None, "a lambda has no name.*name="),
        (dict, "made from a function, not from <class 'dict'>"),
        (Place, r"made from a function.*Tool\(name, description, parameters, run\)"),
        ("weather", "made from a function, not from 'weather'"),
        ({"name": "weather"}, "made from a function"),
        (None, "made from a function"),
    ],
)
def test_what_cannot_be_a_tool_is_refused_with_its_reason(function: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        as_tool(function)


def test_an_object_whose_signature_is_unknown_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"does not know the parameters of .*wrap it"):
        as_tool(min)


def test_a_tool_cannot_be_made_of_a_tool() -> None:
    assert as_tool(weather) is weather
    with pytest.raises(ConfigError, match="is a tool already"):
        tool(weather)


@pytest.mark.parametrize("timeout", [0, -1, math.inf, math.nan, True, "3"])
def test_a_timeout_is_a_number_of_seconds(timeout: Any) -> None:
    with pytest.raises(ConfigError, match="timeout must be above 0 seconds"):
        Tool("it", timeout=timeout)


def test_a_description_is_text() -> None:
    with pytest.raises(ConfigError, match="description must be a str"):
        Tool("it", None)  # type: ignore[arg-type]


# -- what the model gets wrong -----------------------------------------------------------


def test_the_model_is_told_of_every_bad_argument() -> None:
    said = refused(weather, '{"days": "abc", "unit": "f", "town": "Ulm"}').splitlines()

    assert said == [
        "these arguments cannot be used:",
        "- city: missing; must be string",
        '- days: Input should be a valid integer, unable to parse string as an integer, not "abc"',
        "- unit: Input should be 'c' or 'k', not \"f\"",
        "- town: not an argument; there are city, days, unit",
    ]


def test_a_place_deep_within_an_argument_is_named() -> None:
    @tool
    def it(stops: list[Place]) -> None: ...

    said = refused(it, '{"stops": [{"city": "a"}, {"city": "b", "inside": {"city": 1}}]}')

    assert "- stops[1].inside.city: Input should be a valid string, not 1" in said


def test_numbers_as_text_are_accepted() -> None:
    assert weather.arguments('{"city": "Ulm", "days": "3"}') == {"city": "Ulm", "days": 3}


def test_a_thousand_mistakes_make_a_short_message() -> None:
    @tool
    def it(values: list[int]) -> None: ...

    raw = json.dumps({"values": ["x" * 1000] * 1000, **{f"k{n}" * 100: 1 for n in range(1000)}})

    said = refused(it, raw)

    assert len(said) < 10_000
    assert said.endswith("… and 1,980 more")


def test_an_exception_of_a_users_type_is_told_to_the_model() -> None:
    class Odd(BaseModel):
        n: int

        @pydantic.field_validator("n")
        @classmethod
        def check(cls, value: int) -> int:
            raise LookupError("no such n")

    @tool
    def it(odd: Odd) -> None: ...

    assert "LookupError: no such n" in refused(it, '{"odd": {"n": 1}}')


RAW = Tool(
    "raw",
    "As it is.",
    {
        "properties": {
            "name": {"type": "string"},
            "size": {"type": ["integer", "null"]},
            "kind": {"enum": ["a", "b", 1]},
            "one": {"const": 1},
            "list": {"type": "array", "items": {"type": "number"}},
            "inner": {
                "type": "object",
                "properties": {"on": {"type": "boolean"}},
                "required": ["on"],
                "additionalProperties": False,
            },
            "any": True,
        },
        "required": ["name"],
    },
)


def test_a_schema_is_kept_as_it_is_given() -> None:
    schema = {"properties": {"a": {"type": "string"}}, "x-mine": [1]}
    made = Tool("it", "words", schema, lambda a="x": a)
    schema["properties"] = {}

    assert made.parameters == {
        "type": "object",
        "properties": {"a": {"type": "string"}},
        "x-mine": [1],
    }
    assert run(made, a="y") == "y"


def test_arguments_for_a_given_schema_are_left_as_they_are() -> None:
    given = {
        "name": "3",
        "size": 4.0,
        "kind": 1,
        "one": 1,
        "list": [1, 2.5],
        "inner": {"on": True},
        "any": {"x": [None]},
        "unknown": "1",
    }
    assert RAW.arguments(json.dumps(given)) == given
    assert RAW.arguments('{"name": "x", "size": null}')["size"] is None


def test_a_given_schema_is_held_against_the_arguments() -> None:
    wrong = {
        "size": 4.5,
        "kind": True,
        "one": 2,
        "list": [1, "2"],
        "inner": {"off": True},
        "any": 3,
    }

    assert refused(RAW, json.dumps(wrong)).splitlines() == [
        "these arguments cannot be used:",
        "- name: missing; must be string",
        "- size: must be integer or null, not 4.5",
        '- kind: must be one of ["a", "b", 1], not true',
        "- one: must be 1, not 2",
        '- list[1]: must be number, not "2"',
        "- inner.on: missing; must be boolean",
        "- inner.off: not an argument; there are on",
    ]
    assert refused(RAW, '{"name": true}').endswith("- name: must be string, not true")


@pytest.mark.parametrize(
    "schema",
    [
        "{}",
        [],
        {"type": "string"},
        {"properties": []},
        {"properties": {"a": object()}},
        {"properties": {"a": {"default": math.nan}}},
    ],
)
def test_a_schema_that_is_none_is_refused(schema: Any) -> None:
    with pytest.raises(ConfigError, match="parameters"):
        Tool("it", "", schema)


def test_a_function_that_cannot_take_its_schema_is_refused() -> None:
    schema = {"properties": {"city": {"type": "string"}}}
    with pytest.raises(ConfigError, match="property 'city', which its function does not take"):
        Tool("it", "", schema, lambda town: town)
    with pytest.raises(ConfigError, match="needs 'town', which its schema does not have"):
        Tool("it", "", {**schema, "additionalProperties": False}, lambda city, town: town)
    assert run(Tool("it", "", schema, lambda **all: all), city="x") == {"city": "x"}


def test_an_external_tool_has_a_schema_and_nothing_to_run() -> None:
    made = Tool("ask", "Ask the user.")

    assert made.run is None
    assert made.parameters == {"type": "object", "properties": {}}
    calls: list[Callable[[], Any]] = [lambda: made.call({}, context()), made]
    for call in calls:
        with pytest.raises(ConfigError, match="answered with add_tool_output"):
            call()


# -- hostile arguments -------------------------------------------------------------------


def nested(depth: int) -> str:
    return '{"city": ' + "[" * depth + "]" * depth + "}"


HOSTILE = {
    "a list": ("[1]", r"must be a JSON object, not \[1\]"),
    "text": ('"city"', "must be a JSON object"),
    "null": ("null", "must be a JSON object, not null"),
    "cut short": ('{"city": "Pa', "not valid JSON"),
    "two objects": ("{} {}", "not valid JSON"),
    "no JSON": ("city=Paris", "not valid JSON"),
    "a key twice": ('{"city": "a", "city": "b"}', 'the key "city" twice'),
    "a key twice within": ('{"city": {"a": 1, "b": 1, "b": 1}}', 'the key "b" twice'),
    "NaN": ('{"days": NaN}', "NaN"),
    "infinity": ('{"days": -Infinity}', "-Infinity"),
    "a large number": ('{"days": 1e999}', "1e999 is too large"),
    "a number of 5,000 digits": ('{"days": ' + "9" * 5000 + "}", "not valid JSON"),
    "half a pair": ('{"city": "\\ud83d"}', "half of a surrogate pair"),
    "half a pair as a key": ('{"\\udc00": 1}', "half of a surrogate pair"),
    "half a pair, not escaped": ('{"city": "\ud83d"}', "half of a surrogate pair"),
    "deep": (nested(MAX_DEPTH), "more than 100 levels deep"),
    "very deep": (nested(100_000), "more than 100 levels deep"),
    "ten million characters": ('{"city": "' + "x" * 10_000_000 + '"}', "10,000,012 characters"),
    "a long list": ('{"city": [' + "1," * 1_000_000 + "1]}", "city: "),
    "a mark of byte order": ("\ufeff{}", "not valid JSON"),
    "NUL": ("\0", "not valid JSON"),
}


@pytest.mark.parametrize("made", [weather, RAW], ids=["typed", "raw"])
@pytest.mark.parametrize(("raw", "said"), HOSTILE.values(), ids=HOSTILE)
def test_hostile_arguments_are_answered_with_a_clear_error(made: Tool, raw: str, said: str) -> None:
    if made is RAW:
        raw, said = raw.replace('"city"', '"name"'), said.replace("city", "name")

    message = refused(made, raw)

    assert len(message) < 1000
    assert re.search(said, message)


def test_what_is_just_not_too_much_is_taken() -> None:
    @tool
    def it(value: Any) -> None: ...

    deep = '{"value": ' + "[" * (MAX_DEPTH - 1) + "]" * (MAX_DEPTH - 1) + "}"
    assert it.arguments(deep)["value"]
    wide = '{"value": [' + ",".join(["[]"] * 1000) + "]}"
    assert len(it.arguments(wide)["value"]) == 1000
    text = "x" * (MAX_CHARACTERS - len('{"value":""}'))
    assert it.arguments(f'{{"value":"{text}"}}') == {"value": text}
    assert it.arguments('{"value": "\\ud83d\\ude00 é"}') == {"value": "😀 é"}


def test_arguments_are_read_with_almost_no_stack_left() -> None:
    def dig(depth: int) -> None:
        if depth:
            dig(depth - 1)
        else:
            with pytest.raises(ToolError):
                weather.arguments(nested(MAX_DEPTH - 1))

    dig(sys.getrecursionlimit() // 2)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)
NAMES = st.sampled_from(["when", "place", "points", "options", "unit", "table", "either", "x"])


@tool
def everything(
    when: datetime,
    place: Place,
    points: list[Point] = [],  # noqa: B006 - never changed
    options: Options | None = None,
    unit: Unit = Unit.KELVIN,
    table: dict[int, tuple[int, str]] = {},  # noqa: B006
    either: Place | list[Point] | bool = False,
) -> None: ...


@pytest.mark.parametrize("made", [everything, weather, RAW])
@given(raw=st.text() | JSON.map(json.dumps) | st.dictionaries(NAMES, JSON).map(json.dumps))
def test_arguments_of_any_kind_are_taken_or_answered(made: Tool, raw: str) -> None:
    with suppress(ToolError):
        assert isinstance(made.arguments(raw), dict)


PLACES = st.recursive(
    st.builds(Place, city=st.text(), title=st.text()),
    lambda inner: st.builds(Place, city=st.text(), title=st.text(), inside=inner),
    max_leaves=3,
)
FINITE = st.floats(allow_nan=False, allow_infinity=False)


@given(
    place=PLACES,
    points=st.lists(st.builds(Point, FINITE, FINITE), max_size=3),
    unit=st.sampled_from(Unit),
    when=st.datetimes(timezones=st.just(UTC)),
    table=st.dictionaries(st.integers(), st.tuples(st.integers(), st.text()), max_size=3),
)
def test_what_a_model_writes_after_the_schema_arrives_as_it_was_meant(**meant: Any) -> None:
    written = output_text(meant)

    assert everything.arguments(written) == meant


HINTS = st.recursive(
    st.sampled_from([int, str, bool, float, date, Unit, Place, Point, Options, Literal["a", 1]]),
    lambda inner: (
        inner.map(lambda one: list[one])  # type: ignore[valid-type]
        | inner.map(lambda one: dict[str, one])  # type: ignore[valid-type]
        | inner.map(lambda one: Optional[one])  # noqa: UP045
    ),
    max_leaves=3,
)


@given(st.dictionaries(st.from_regex(r"[a-z_]{1,8}", fullmatch=True), HINTS, max_size=4))
def test_every_schema_is_json_that_refers_only_to_itself(hints: dict[str, Any]) -> None:
    def it(**values: Any) -> None: ...

    it.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=hint)
            for name, hint in hints.items()
            if not keyword.iskeyword(name)
        ]
    )
    made = tool(it)

    schema = json.loads(json.dumps(made.parameters, allow_nan=False))
    assert set(schema["properties"]) == set(inspect.signature(it).parameters)

    def references(value: Any) -> Iterator[str]:
        if isinstance(value, dict):
            yield from [value["$ref"]] if isinstance(value.get("$ref"), str) else []
            for inner in value.values():
                yield from references(inner)
        elif isinstance(value, list):
            for inner in value:
                yield from references(inner)

    assert {one.rpartition("/")[2] for one in references(schema)} <= set(schema.get("$defs", {}))


# -- outputs -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("as it is", "as it is"),
        ("", ""),
        (None, ""),
        (enum.StrEnum("E", {"A": "x"}).A, "x"),  # type: ignore[attr-defined]
        (True, "true"),
        (1.5, "1.5"),
        ({"Größe": [1, None]}, '{"Größe": [1, null]}'),
        ((1, 2), "[1, 2]"),
        (Place(city="Ulm"), '{"city": "Ulm", "title": "none", "inside": null}'),
        ([Point(1.0)], '[{"x": 1.0, "y": 0.0}]'),
        ({"at": datetime(2026, 1, 2, tzinfo=UTC)}, '{"at": "2026-01-02T00:00:00Z"}'),
        (Decimal("1.10"), '"1.10"'),
        (Unit.KELVIN, '"kelvin"'),
        ({3}, "[3]"),
        (Path("a/b"), '"a/b"'),
        ({"mean": math.nan, "max": math.inf}, '{"mean": "NaN", "max": "Infinity"}'),
        ({"half": "\ud800"}, '{"half": "\ud800"}'),
    ],
)
def test_what_a_tool_returns_becomes_text(value: Any, text: str) -> None:
    assert output_text(value) == text


def circle() -> list[Any]:
    around: list[Any] = []
    around.append(around)
    return around


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (b"abc", "returned bytes"),
        (bytearray(b"abc"), "returned bytes"),
        (object(), "returned object, which has no JSON form"),
        ([threading.Lock()], "returned list, which has no JSON form"),
        (circle(), "no JSON form"),
        ({"a": b"\xff"}, "no JSON form"),
        (ValueError("x"), "returned ValueError"),
    ],
)
def test_what_has_no_json_form_is_refused(value: Any, said: str) -> None:
    with pytest.raises(ToolError, match=said):
        output_text(value)


# -- showing progress --------------------------------------------------------------------


def test_a_context_knows_its_call() -> None:
    store = object()
    made = ToolContext(
        call_id="c", name="n", turn_id="t", context_id="i", context_name="chat", store=store
    )
    assert (made.call_id, made.name, made.turn_id) == ("c", "n", "t")
    assert (made.context_id, made.context_name, made.store) == ("i", "chat", store)


def test_what_is_emitted_is_sent_as_a_copy() -> None:
    sent: list[Any] = []
    made = context(send=sent.append)
    done = [1]
    progress = {"done": done, 2: (3,)}

    made.emit("half")
    made.emit(progress)
    done.append(2)
    made.emit(None)
    made.emit("\ud83d\ude00 \ud83d")

    assert sent == ["half", {"done": [1], "2": [3]}, None, "😀 \ufffd"]


@pytest.mark.parametrize("value", [b"x", object(), {1, 2}, math.nan, circle(), TextDelta("x")])
def test_only_text_and_json_are_emitted(value: Any) -> None:
    sent: list[Any] = []

    with pytest.raises(ToolError, match="emit takes"):
        context(send=sent.append).emit(value)

    assert sent == []


def test_emit_may_be_awaited_and_need_not_be() -> None:
    sent: list[Any] = []

    async def main() -> None:
        made = context(send=sent.append)
        made.emit(1)
        await made.emit(2)
        await context().emit(3)

    asyncio.run(main())

    assert sent == [1, 2]


def test_emit_gives_back_what_is_to_be_awaited() -> None:
    async def main() -> None:
        delivered: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        waiting: Awaitable[None] = context(send=lambda output: delivered).emit("x")
        assert waiting is delivered
        delivered.set_result(None)
        await waiting

    asyncio.run(main())


def test_an_exception_of_the_reader_comes_out_of_emit() -> None:
    def fail(output: Any) -> None:
        raise LookupError(output)

    with pytest.raises(LookupError, match="shown"):
        context(send=fail).emit("shown")


def test_emit_is_over_when_the_tool_has_returned() -> None:
    sent: list[Any] = []
    made = context(send=sent.append)
    thread = threading.Thread(target=made.expire)
    thread.start()
    thread.join()

    with pytest.raises(CallbackExpired, match="'it' has returned"):
        made.emit("late")
    with pytest.raises(CallbackExpired):
        made.link(None)  # type: ignore[arg-type]
    assert sent == []


# -- cost and threads --------------------------------------------------------------------


def test_importing_tools_loads_no_pydantic() -> None:
    code = "import sys, contextwindow.tools; assert 'pydantic' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_one_tool_serves_many_threads() -> None:
    found: list[Any] = []

    def work(number: int) -> None:
        said = [run(weather, city="x", days=number) for _ in range(50)]
        found.append(said == [f"x {number} c"] * 50)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert found == [True] * 8
