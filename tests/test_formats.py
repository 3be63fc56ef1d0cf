"""Forms of replies: what a provider is sent, and what is read out of a text."""

from __future__ import annotations

import dataclasses
import enum
import json
from typing import Any, Generic, Literal, TypeVar

import pydantic
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typing_extensions import TypedDict

from contextwindow import ConfigError, OutputInvalid, Record, RecordType, Reply
from contextwindow.formats import Format, read_format
from contextwindow.json_schema import problems, read_schema
from contextwindow.store.values import parse_time
from contextwindow.strict_schema import strict


class City(pydantic.BaseModel):
    """A place."""

    name: str
    people: int = 0
    mayor: str | None = None


@dataclasses.dataclass
class Point:
    x: float
    y: float = 0.0


class Person(TypedDict):
    name: str
    age: int


class Node(pydantic.BaseModel):
    value: int
    children: list[Node] = []


class Cat(pydantic.BaseModel):
    kind: Literal["cat"]
    lives: int = pydantic.Field(ge=0, le=9)


class Dog(pydantic.BaseModel):
    kind: Literal["dog"]
    tricks: list[str] = pydantic.Field(max_length=3)


class Pet(pydantic.BaseModel):
    animal: Cat | Dog = pydantic.Field(discriminator="kind", description="who")
    home: City = pydantic.Field(description="where")


T = TypeVar("T")


class Box(pydantic.BaseModel, Generic[T]):
    content: T


def form(value: Any) -> Format:
    found = read_format(value)
    assert found is not None
    return found


def refused(value: Any, text: str) -> OutputInvalid:
    with pytest.raises(OutputInvalid) as caught:
        form(value).parse(text)
    return caught.value


CITY: dict[str, Any] = {
    "title": "City",
    "type": "object",
    "properties": {"name": {"type": "string"}, "people": {"type": "integer", "minimum": 0}},
    "required": ["name", "people"],
}

# -- what is sent ------------------------------------------------------------------------


def test_no_form_is_none() -> None:
    assert read_format(None) is None


def test_of_a_type_every_member_is_required_and_no_other_allowed() -> None:
    sent = form(City).sent

    assert (sent.name, sent.strict) == ("City", True)
    assert sent.schema["required"] == ["name", "people", "mayor"]
    assert sent.schema["additionalProperties"] is False
    assert sent.schema["properties"]["people"] == {"title": "People", "type": "integer"}
    assert sent.schema["properties"]["mayor"]["anyOf"] == [{"type": "string"}, {"type": "null"}]


def test_a_strict_schema_is_strict_all_the_way_down() -> None:
    for kind in (City, Point, Person, Node, Pet, Box[City]):
        sent = form(kind).sent
        assert sent.strict, kind
        _assert_strict(sent.schema)
        assert sent.schema["type"] == "object"


def _assert_strict(schema: Any) -> None:
    assert not schema.keys() & {"oneOf", "allOf", "not", "default", "discriminator", "maxLength"}
    assert schema.keys() & {"type", "enum", "const", "anyOf", "$ref"}
    if "$ref" in schema:
        assert len(schema) == 1
    if schema.get("type") == "object":
        assert schema["additionalProperties"] is False
        assert set(schema["required"]) == schema["properties"].keys()
    inner = [*schema.get("properties", {}).values(), *schema.get("$defs", {}).values()]
    inner += schema.get("anyOf", [])
    inner += [schema["items"]] if "items" in schema else []
    for one in inner:
        _assert_strict(one)


def test_a_bound_that_is_not_enforced_is_told() -> None:
    class Tag(pydantic.BaseModel):
        text: str = pydantic.Field(min_length=1, max_length=8, description="One word.")

    sent = form(Tag).sent

    assert sent.strict
    assert sent.schema["properties"]["text"] == {
        "title": "Text",
        "type": "string",
        "description": "One word. (minLength: 1, maxLength: 8)",
    }
    assert refused(Tag, '{"text": ""}').problems[0].startswith("text: ")


@pytest.mark.parametrize(
    "free",
    [
        {"type": "object"},
        {"type": "object", "properties": {"a": {"type": "string"}}},
        {"type": "object", "properties": {"a": {}}, "required": ["a"]},
        {"type": "object", "properties": {}, "additionalProperties": True},
        {"type": "object", "properties": {}, "required": ["a"]},
        {"type": "object", "properties": {"a": {"not": {"type": "null"}}}, "required": ["a"]},
        {"type": "array", "items": {"type": "string"}},
        {"anyOf": [CITY, CITY]},
        {"allOf": [CITY, CITY], "type": "object", "properties": {}},
        {"type": "string"},
        {},
    ],
)
def test_what_strict_mode_cannot_say_is_sent_as_it_is(free: dict[str, Any]) -> None:
    sent = form(free).sent

    assert not sent.strict
    assert sent.schema == free


def test_types_without_a_strict_form_are_sent_as_they_are() -> None:
    class Free(pydantic.BaseModel):
        scores: dict[str, int]

    class Open(pydantic.BaseModel):
        model_config = pydantic.ConfigDict(extra="allow")

    assert not form(Free).sent.strict
    assert not form(Open).sent.strict
    assert form(Free).parse('{"scores": {"a": 1}}').scores == {"a": 1}


def test_a_schema_with_all_members_required_becomes_strict() -> None:
    sent = form(CITY).sent

    assert sent.strict
    assert sent.schema == CITY | {"additionalProperties": False}


def test_a_schema_is_copied() -> None:
    mine = json.loads(json.dumps(CITY))
    found = form(mine)
    mine["properties"]["name"]["type"] = "null"

    assert found.parse('{"name": "Bern", "people": 1}') == {"name": "Bern", "people": 1}


@pytest.mark.parametrize(
    ("title", "name"),
    [
        ("City", "City"),
        ("A city, with people!", "A_city_with_people"),
        ("Größe", "Gr_e"),
        ("日本", "reply"),
        ("x" * 100, "x" * 64),
        ("", "reply"),
        (None, "reply"),
    ],
)
def test_a_name_has_only_what_providers_take(title: str | None, name: str) -> None:
    assert form(CITY | {"title": title}).sent.name == name


def test_a_generic_type_has_a_usable_name() -> None:
    assert form(Box[City]).sent.name == "Box_City"


# -- what cannot be a form ---------------------------------------------------------------

_CIRCLE: dict[str, Any] = {"type": "object"}
_CIRCLE["properties"] = {"a": _CIRCLE}


def _nested(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(depth):
        schema = {"type": "array", "items": schema}
    return schema


@pytest.mark.parametrize(
    ("schema", "why"),
    [
        ({"type": "wat"}, r"#/type must be of string, .*\"wat\""),
        ({"type": "json_schema", "json_schema": {}}, "pass the schema itself"),
        ({"type": 5}, "#/type"),
        ({"type": "object", "properties": []}, "#/properties"),
        ({"type": "object", "properties": {"a": 5}}, "#/properties/a must be a schema, not 5"),
        ({"type": "object", "required": "name"}, "#/required"),
        ({"type": "object", "required": [1]}, "#/required"),
        ({"enum": []}, "#/enum"),
        ({"enum": "a"}, "#/enum"),
        ({"anyOf": []}, "#/anyOf"),
        ({"anyOf": [5]}, "#/anyOf/0"),
        ({"items": [{"type": "string"}]}, "#/items"),
        ({"minLength": -1}, "#/minLength"),
        ({"maxItems": 1.5}, "#/maxItems"),
        ({"minimum": "0"}, "#/minimum"),
        ({"multipleOf": 0}, "#/multipleOf"),
        ({"pattern": "("}, "#/pattern is no regular expression"),
        ({"pattern": 5}, "#/pattern"),
        ({"patternProperties": {"(": {}}}, "#/pattern"),
        ({"$ref": "#/$defs/None"}, r"#/\$ref points at nothing.*None"),
        ({"$ref": "https://example.org/x"}, "points at nothing"),
        ({"$ref": 5}, "points at nothing"),
        ({"$ref": "#"}, "in a circle"),
        ({"$defs": {"A": {"$ref": "#/$defs/A"}}, "$ref": "#/$defs/A"}, "in a circle"),
        ({"$defs": {"A": {"anyOf": [{"$ref": "#/$defs/A"}]}}, "type": "null"}, "in a circle"),
        ({"$ref": "#/title", "title": "x"}, "points at no schema"),
        ({"default": {1, 2}}, "cannot be sent as JSON"),
        ({"default": b"x"}, "cannot be sent as JSON"),
        ({"minimum": float("nan")}, "cannot be sent as JSON"),
        ({"title": "\ud800"}, "cannot be sent as JSON"),
        ({"properties": {1: {"type": "string"}}}, "the key 1"),
        (_CIRCLE, "cannot be sent as JSON"),
        (_nested(150), "levels deep"),
        (_nested(50_000), "levels deep"),
        ({"description": "x" * 1_000_001}, "characters"),
    ],
)
def test_a_schema_that_is_none_is_refused_with_its_place(schema: dict[Any, Any], why: str) -> None:
    with pytest.raises(ConfigError, match=f"response_format.*{why}"):
        read_format(schema)


class Unfinished(pydantic.BaseModel):
    later: NotThere  # type: ignore[name-defined]  # noqa: F821 - that is the point


class Uncallable(pydantic.BaseModel):
    f: Any = None
    g: type = int

    @classmethod
    def __get_pydantic_json_schema__(cls, *_: Any) -> Any:
        raise RuntimeError("no schema today")


@pytest.mark.parametrize(
    "value",
    [
        *(5, "City", int, str, dict, list, object, enum.Enum, list[City], City | None),
        *(City(name="x"), Point(1, 2), lambda: City, Unfinished, Uncallable),
    ],
)
def test_what_has_no_form_is_refused(value: object) -> None:
    with pytest.raises(ConfigError, match="response_format"):
        read_format(value)


# -- reading -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "text", "expected"),
    [
        (City, '{"name": "Bern", "people": 1}', City(name="Bern", people=1)),
        (City, ' \n{"name": "Bern"}\t\r\n', City(name="Bern")),
        (City, '\ufeff{"name": "Bern"}', City(name="Bern")),
        (City, '```json\n{"name": "Bern"}\n```', City(name="Bern")),
        (City, '```\n{"name": "Bern"}\n```', City(name="Bern")),
        (City, 'Here it is:\n\n```JSON\r\n{"name": "Bern"}\r\n```\nEnjoy!', City(name="Bern")),
        (City, '{"name": "```json\\n{}\\n```"}', City(name="```json\n{}\n```")),
        (Point, '{"x": 1, "y": 2.5}', Point(1.0, 2.5)),
        (Person, '{"name": "Ann", "age": 5}', {"name": "Ann", "age": 5}),
        (Box[int], '{"content": 5}', Box[int](content=5)),
        (CITY, '{"name": "Bern", "people": 0, "more": [1]}',
         {"name": "Bern", "people": 0, "more": [1]}),
        ({"type": "array", "items": {"type": "null"}}, "[null]", [None]),
        ({}, '"anything"', "anything"),
    ],
)  # fmt: skip
def test_a_text_that_fits_becomes_the_value(value: Any, text: str, expected: Any) -> None:
    found = form(value).parse(text)

    assert found == expected
    assert type(found) is type(expected)


@pytest.mark.parametrize("value", [City, CITY])
@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "no text"),
        (" \n\t ", "no text"),
        ("Bern", "no JSON"),
        ('{"name": "Ber', "no JSON"),
        ('{"name": "Bern"} {"name": "Genf"}', "no JSON"),
        ('{"name": "Bern",}', "no JSON"),
        ('{"name": NaN}', "NaN is no JSON number"),
        ('{"name": 1e999}', "too large"),
        ('{"name": "a", "name": "b"}', '"name" stands twice'),
        ('```json\n{"name": "Bern"}\n```\n```json\n{"name": "Genf"}\n```', "no JSON"),
        ('```json\n{"name": \n```', "no JSON"),
        ("[" * 200 + "]" * 200, "levels deep"),
        ("[" * 100_000, "deep"),
        ("1" * 5_000, "no JSON"),
    ],
)
def test_a_text_that_is_no_json_is_one_clear_error(value: Any, text: str, why: str) -> None:
    error = refused(value, text)

    assert why in error.problems[0]
    assert why in str(error)
    assert str(error).startswith("City: ")


def test_of_a_type_each_problem_has_its_place() -> None:
    error = refused(Node, '{"value": "x", "children": [{"value": 1}, {}]}')

    assert [line.partition(":")[0] for line in error.problems] == ["value", "children[1].value"]
    assert error.problems[0].endswith('not "x"')
    assert isinstance(error.__cause__, pydantic.ValidationError)


def test_a_message_names_three_problems_and_counts_the_rest() -> None:
    wanted = {"type": "array", "items": {"type": "string"}}
    assert str(refused(wanted, "[0, 1, 2, 3]")).endswith("not 2 and 1 more")

    error = refused(wanted, json.dumps(list(range(100))))

    assert str(error) == (
        "the reply does not fit reply: [0]: must be string, not 0; [1]: must be string, not 1; "
        "[2]: must be string, not 2 and many more"
    )


def test_a_validator_that_raises_anything_is_a_reply_that_does_not_fit() -> None:
    class Odd(pydantic.BaseModel):
        name: str

        @pydantic.field_validator("name")
        @classmethod
        def look(cls, value: str) -> str:
            raise KeyError(value)

    error = refused(Odd, '{"name": "x"}')

    assert error.problems == ["KeyError: 'x'"]
    assert isinstance(error.__cause__, KeyError)


# -- replies -----------------------------------------------------------------------------


def reply(text: str, **fields: Any) -> Reply:
    record = Record(
        id=1,
        context_id="c",
        source=RecordType.MODEL_RESPONSE,
        content=text,
        timestamp=parse_time("2026-01-01 00:00:00 +0000 UTC"),
    )
    return Reply(text=text, turn_id="t", records=[record] if text else [], **fields)


def test_an_error_has_the_text_the_reply_and_the_turn() -> None:
    given_reply = reply('{"name": 5}')

    with pytest.raises(OutputInvalid) as caught:
        form(City).parse_reply(given_reply)

    assert caught.value.text == '{"name": 5}'
    assert caught.value.reply is given_reply
    assert caught.value.turn_id == "t"


@pytest.mark.parametrize(
    ("given_reply", "why"),
    [
        (reply("", refusal="I would rather not."), "the model refused: I would rather not."),
        (reply("", finish_reason="refusal"), "the model refused"),
        (reply("No.", finish_reason="refusal"), "the model refused: No."),
        (reply('{"name": "Be', finish_reason="length"), "cut at max_output_tokens"),
        (reply("", finish_reason="length"), "cut at max_output_tokens"),
        (reply('{"name": "Be', finish_reason="content_filter"), "filter"),
        (reply(""), "no text"),
    ],
)
def test_why_there_is_no_value_is_said(given_reply: Reply, why: str) -> None:
    with pytest.raises(OutputInvalid, match=f"City: .*{why}") as caught:
        form(City).parse_reply(given_reply)

    assert why in caught.value.problems[0]
    assert caught.value.reply is given_reply


def test_whole_json_is_taken_whatever_the_provider_says_of_its_end() -> None:
    assert form(City).parse_reply(reply('{"name": "Bern"}', finish_reason="length")).name == "Bern"
    with pytest.raises(OutputInvalid, match="does not fit City: name: "):
        form(City).parse_reply(reply('{"name": 5}', finish_reason="length"))


# -- the validator -----------------------------------------------------------------------

TREE = {
    "$defs": {
        "node": {
            "type": "object",
            "properties": {"v": {"type": "integer"}, "next": {"$ref": "#/$defs/node"}},
            "required": ["v"],
            "additionalProperties": False,
        }
    },
    "$ref": "#/$defs/node",
}


@pytest.mark.parametrize(
    ("schema", "fits", "does_not"),
    [
        ({"type": "integer"}, [1, -5, 2.0], [1.5, True, "1", None]),
        ({"type": "number"}, [1, 1.5], [False, "1"]),
        ({"type": "boolean"}, [True], [1, 0, "true"]),
        ({"type": "null"}, [None], [0, "", False]),
        ({"type": ["string", "null"]}, ["", None], [1]),
        ({"enum": [1, "a", None]}, [1, 1.0, "a", None], [True, "b", 2]),
        ({"const": {"a": [1]}}, [{"a": [1]}, {"a": [1.0]}], [{"a": [True]}, {}, {"a": [1, 2]}]),
        ({"minLength": 2, "maxLength": 3}, ["ab", "abc", 5], ["a", "abcd"]),
        ({"pattern": "^a+$"}, ["aa", 5], ["b", ""]),
        ({"minimum": 1, "maximum": 2}, [1, 2, "x"], [0, 3]),
        ({"exclusiveMinimum": 1, "exclusiveMaximum": 2}, [1.5], [1, 2]),
        ({"multipleOf": 0.1}, [0.3, 1, 1e300], [0.25]),
        ({"items": {"minimum": 0}, "minItems": 1, "maxItems": 1}, [[1]], [[], [-1], [1, 1]]),
        ({"uniqueItems": True}, [[1, 2], [1, True]], [[1, 1], [{"a": 1}, {"a": 1}]]),
        ({"prefixItems": [{"type": "string"}], "items": False}, [["a"], []], [["a", 1], [1]]),
        ({"properties": {"a": {"minimum": 0}}, "required": ["a"]}, [{"a": 1}, 5], [{}, {"a": -1}]),
        ({"additionalProperties": {"type": "integer"}}, [{"x": 1}], [{"x": "1"}]),
        ({"properties": {"a": True}, "additionalProperties": False}, [{"a": 1}], [{"b": 1}]),
        ({"patternProperties": {"^n_": {"type": "number"}}, "additionalProperties": False},
         [{"n_a": 1}], [{"n_a": "1"}, {"b": 1}]),
        ({"minProperties": 1, "maxProperties": 1}, [{"a": 1}], [{}, {"a": 1, "b": 2}]),
        ({"anyOf": [{"type": "string"}, {"minimum": 5}]}, ["", 5, None], [4]),
        ({"oneOf": [{"minimum": 0}, {"maximum": 0}]}, [1, -1], [0]),
        ({"oneOf": [{"type": "string"}, {"type": "null"}]}, ["", None], [5]),
        ({"allOf": [{"minimum": 0}, {"maximum": 5}]}, [3], [6, -1]),
        ({"not": {"type": "string"}}, [5], ["x"]),
        (TREE, [{"v": 1}, {"v": 1, "next": {"v": 2}}], [{"v": 1, "next": {}}, {"v": 1, "x": 1}]),
        ({"definitions": {"a/b": {"type": "null"}}, "$ref": "#/definitions/a~1b"}, [None], [5]),
        ({"properties": {"a": False}}, [{}], [{"a": 1}]),
    ],
)  # fmt: skip
def test_the_validator_knows_each_keyword(
    schema: dict[str, Any], fits: list[Any], does_not: list[Any]
) -> None:
    known = read_schema(schema)

    assert {json.dumps(value): list(problems(known, value)) for value in fits} == {
        json.dumps(value): [] for value in fits
    }
    assert [value for value in does_not if not list(problems(known, value))] == []


@pytest.mark.parametrize(
    ("schema", "value", "said"),
    [
        (CITY, {"name": 5}, ["people: missing", "name: must be string, not 5"]),
        (CITY, [], ["the whole: must be object, not []"]),
        (TREE, {"v": 1, "next": {"v": "2"}}, ['next.v: must be integer, not "2"']),
        (
            {"items": {"anyOf": [{"type": "string"}, {"type": "null"}]}},
            ["a", 5],
            ["[1]: must be string or null, not 5"],
        ),
        (
            {"anyOf": [{"type": "null"}, CITY]},
            {"name": "Bern", "people": -1},
            ["people: must be at least 0, not -1"],
        ),
        ({"additionalProperties": False}, {"a": 1}, ["a: not expected; there are none"]),
    ],
)
def test_a_problem_says_where_what_was_expected_and_what_was_there(
    schema: dict[str, Any], value: Any, said: list[str]
) -> None:
    assert list(problems(read_schema(schema), value)) == said


def test_a_schema_that_doubles_its_work_at_every_level_is_given_up() -> None:
    levels: dict[str, Any] = {"d0": {"type": "null"}}
    for number in range(1, 60):
        reference = {"$ref": f"#/$defs/d{number - 1}"}
        levels[f"d{number}"] = {"allOf": [reference, reference]}
    schema = read_schema({"$defs": levels, "$ref": "#/$defs/d59"})

    assert any("could not be checked" in line for line in problems(schema, None))


_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.text("ab", max_size=2),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["name", "people", "mayor", "x"]), inner, max_size=3)
    ),
    max_leaves=8,
)


class Exact(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(strict=True, extra="forbid")
    name: str
    people: int | None
    mayor: list[str]


@settings(max_examples=300, deadline=None)
@given(_VALUES | st.fixed_dictionaries({"name": _VALUES, "people": _VALUES, "mayor": _VALUES}))
def test_the_validator_and_pydantic_agree(value: Any) -> None:
    schema = read_schema(Exact.model_json_schema())
    try:
        Exact.model_validate_json(json.dumps(value))
        fits = True
    except pydantic.ValidationError:
        fits = False

    assert (not list(problems(schema, value))) == fits
    narrow = strict(schema, require_all=True)
    assert narrow is not None
    assert (not list(problems(narrow, value))) == fits
