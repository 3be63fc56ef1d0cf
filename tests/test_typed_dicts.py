"""The standard library's ``TypedDict`` in tools and forms of replies, on every Python."""

from __future__ import annotations

import typing
from typing import Annotated, Any, NotRequired, Optional

from pydantic import Field

from contextwindow import ContextWindow, RecordType, tool
from contextwindow.testing import ScriptedModel, ScriptedReply
from contextwindow.typed_dicts import readable


class Inner(typing.TypedDict):
    """Somebody."""

    name: str
    age: NotRequired[Annotated[int, Field(ge=0)]]


class Outer(typing.TypedDict, total=False):
    many: list[Inner]
    maybe: Optional[Inner]  # noqa: UP045 - as older code has it
    by_name: dict[str, Inner | None]


class Tree(typing.TypedDict):
    """Holds itself, which pydantic cannot build of the standard one."""

    branches: list[Any]


def test_a_tool_takes_the_standard_typed_dict() -> None:
    seen: list[Outer] = []

    @tool
    def note(what: Outer, others: list[Inner] | None = None) -> str:
        """Note people."""
        seen.append(what)
        return "noted"

    good = {"what": {"many": [{"name": "a"}], "maybe": None, "by_name": {"b": {"name": "b"}}}}
    bad = {"what": {"many": [{"name": "a", "age": -1}]}}
    calls: list[Any] = [("note", good, "c1"), ("note", bad, "c2")]
    script: list[Any] = [ScriptedReply(tool_calls=calls), "done"]
    with ContextWindow(model=ScriptedModel(script), tools=[note]) as window:
        window.add_prompt("note them")
        assert window.call_model().text == "done"
        outputs = [one for one in window.records() if one.source is RecordType.TOOL_OUTPUT]

    assert seen == [good["what"]]
    assert outputs[0].content == "noted"
    assert outputs[1].error
    assert "age" in outputs[1].content


def test_a_reply_takes_the_form_of_the_standard_typed_dict() -> None:
    reply = '{"name": "Ada", "age": 36}'
    with ContextWindow(model=ScriptedModel([reply])) as window:
        window.add_prompt("who?")
        assert window.call_model(response_format=Inner).parsed == {"name": "Ada", "age": 36}


def test_what_holds_no_typed_dict_stays_as_it_is() -> None:
    for kind in (int, list[int], dict[str, int | None], typing.Literal["a"], Annotated[int, 1]):
        assert readable(kind) == kind
    assert readable(Tree).__name__ == "Tree"
