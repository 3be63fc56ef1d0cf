"""What cannot be used is refused with one clear error, and nothing of it is written."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pydantic
import pytest
from support import Open, contents, opener, problems
from support import file as file
from support import run as run

from contextwindow import (
    AsyncContextWindow,
    ConfigError,
    ContextNotFound,
    ContextWindow,
    ContextWindowError,
    Middleware,
    Store,
)
from contextwindow.testing import ScriptedModel

Action = Callable[[ContextWindow], Any]

BAD_TEXTS = [
    ("", "empty"),
    ("nul \0 inside", "NUL"),
    ("half a pair \ud83d", "surrogate"),
    ("\udc00", "surrogate"),
    (None, "None"),
    (b"bytes", "bytes"),
    (7, "7"),
    (["a"], "list"),
]


def check(file: str) -> None:
    """Asserts that the database is as it was: one context with one record."""
    with Store(file) as store:
        assert problems(store) == []
        assert [context.name for context in store.list_contexts()] == ["main"]
        assert ContextWindow(store, "main").records()[0].content == "hi"
        assert len(ContextWindow(store, "main").records()) == 1


@pytest.fixture(params=["sync", "async"])
def window(request: pytest.FixtureRequest) -> Any:
    """A window on a context with one record, in both APIs and on both databases."""
    where = "file" if request.param == "sync" else "postgresql"
    database = request.getfixturevalue(where)
    with opener(request.param) as open_window:
        window = open_window(database, "main", model=ScriptedModel(["fine"], repeat=True))
        window.add_prompt("hi")
        yield window
    check(database)


# -- texts and names ---------------------------------------------------------------------


@pytest.mark.parametrize(("text", "why"), BAD_TEXTS)
@pytest.mark.parametrize(
    "action",
    [
        lambda w, text: w.add_prompt(text),
        lambda w, text: w.set_system_prompt(text),
        lambda w, text: w.add_tool_call(text, {}),
        lambda w, text: w.create_context(text),
        lambda w, text: w.switch_context(text),
        lambda w, text: w.get_context(text),
        lambda w, text: w.delete_context(text),
        lambda w, text: w.clone(text),
        lambda w, text: w.fork(text),
    ],
    ids=["prompt", "system", "tool", "create", "switch", "get", "delete", "clone", "fork"],
)
def test_a_text_that_no_database_keeps_is_refused(
    window: ContextWindow, action: Callable[[ContextWindow, Any], Any], text: Any, why: str
) -> None:
    """Fault 40: NUL and lone surrogates are refused before anything is stored."""
    with pytest.raises(ConfigError, match=why):
        action(window, text)

    assert window.current_context == "main"


@pytest.mark.parametrize(("text", "why"), [one for one in BAD_TEXTS if one[0] is not None])
def test_optional_texts_are_checked_too(window: ContextWindow, text: Any, why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        window.add_prompt("text", key=text)
    with pytest.raises(ConfigError, match=why):
        window.add_tool_call("t", {}, text)
    with pytest.raises(ConfigError, match=why):
        window.context_stats(text)
    with pytest.raises(ConfigError, match=why):
        window.export_context(text)
    with pytest.raises(ConfigError, match=why):
        window.import_context(window.export_context(), text)


@pytest.mark.parametrize(
    "arguments",
    [
        {"not": {"json"}},
        {"nan": float("nan")},
        {"infinite": float("inf")},
        {"half": "\ud83d"},
        "nul \0",
        b"{}",
        7,
        None,
        ["a list"],
    ],
    ids=repr,
)
def test_arguments_that_are_no_json_object_are_refused(
    window: ContextWindow, arguments: Any
) -> None:
    with pytest.raises(ConfigError, match="argument"):
        window.add_tool_call("t", arguments)


@pytest.mark.parametrize("output", ["nul \0", "\ud83d", None, 7, {"a": 1}], ids=repr)
def test_an_output_that_is_no_text_is_refused(window: ContextWindow, output: Any) -> None:
    with pytest.raises(ConfigError, match="output"):
        window.add_tool_output(output)


def test_a_message_shows_the_beginning_of_a_long_value_only(window: ContextWindow) -> None:
    with pytest.raises(ConfigError) as caught:
        window.add_prompt(b"x" * 1_000_000)  # type: ignore[arg-type]

    assert len(str(caught.value)) < 300


def test_fifty_megabytes_are_stored_and_read_back(file: str) -> None:
    text = "Zwölf Boxkämpfer jagen Viktor quer über den Sylter Deich. " * 870_000
    assert len(text.encode()) > 50_000_000
    model = ScriptedModel(["that was long"])
    with ContextWindow(file, "main", model=model) as window:
        record = window.add_prompt(text)
        assert record.est_tokens > 1_000_000
        assert window.call_model().text == "that was long"
        assert model.requests[0].records[0].content == text

    with ContextWindow(file, "main") as window:
        assert window.live_records()[0].content == text
    assert problems(file) == []


# -- ids, indices and ranges -------------------------------------------------------------


@pytest.mark.parametrize("bad", [0, -1, 4711, 1 << 70, "1", 1.0, None, True, [1]], ids=repr)
@pytest.mark.parametrize(
    "action",
    [
        lambda w, bad: w.pin(bad),
        lambda w, bad: w.unpin(bad),
        lambda w, bad: w.set_live([w.records()[0].id, bad], False),
        lambda w, bad: w.manifest(bad),
        lambda w, bad: w.records(after=bad if bad is not None else "None"),
        lambda w, bad: w.fork("copy", at=bad if bad is not None else "None"),
    ],
    ids=["pin", "unpin", "set_live", "manifest", "after", "fork"],
)
def test_a_number_that_names_no_record_is_refused(
    window: ContextWindow, action: Callable[[ContextWindow, Any], Any], bad: Any
) -> None:
    with pytest.raises(ConfigError):
        action(window, bad)

    assert contents(window.live_records()) == ["hi"]


@pytest.mark.parametrize(
    ("start", "end"),
    [(-1, 0), (1, 0), (0, 1), (1, 1), (0, 1 << 70), ("0", 0), (0, None), (0.0, 0), (False, 0)],
)
def test_a_range_that_is_none_is_refused(window: ContextWindow, start: Any, end: Any) -> None:
    with pytest.raises(ConfigError, match=r"range|index"):
        window.set_record_live_state_by_range(start, end, False)

    assert contents(window.live_records()) == ["hi"]


@pytest.mark.parametrize("live", [None, "yes", 2, 0], ids=repr)
def test_live_is_true_or_false(window: ContextWindow, live: Any) -> None:
    with pytest.raises(ConfigError, match="live"):
        window.set_live([window.records()[0].id], live)
    with pytest.raises(ConfigError, match="live"):
        window.set_record_live_state_by_range(0, 0, live)


@pytest.mark.parametrize("ids", [5, None, "12", object()], ids=["5", "None", "'12'", "object"])
def test_record_ids_are_a_list(window: ContextWindow, ids: Any) -> None:
    with pytest.raises(ConfigError, match="record"):
        window.set_live(ids, False)


@pytest.mark.parametrize("limit", [-1, "3", 1.5, 1 << 70, True], ids=repr)
def test_a_limit_is_a_whole_number(window: ContextWindow, limit: Any) -> None:
    with pytest.raises(ConfigError, match="limit"):
        window.records(limit=limit)


@pytest.mark.parametrize("enabled", [None, 1, "yes"])
def test_threading_is_on_or_off(window: ContextWindow, enabled: Any) -> None:
    with pytest.raises(ConfigError, match="enabled"):
        window.set_server_side_threading(enabled)


@pytest.mark.parametrize("turn_id", ["", 5, b"x", ["x"]], ids=repr)
def test_a_turn_id_is_a_text(window: ContextWindow, turn_id: Any) -> None:
    for action in (window.resume, window.resume_streaming, window.discard_partial):
        with pytest.raises(ConfigError, match="turn_id"):
            action(turn_id)


def test_an_unknown_turn_is_named(window: ContextWindow) -> None:
    with pytest.raises(ConfigError, match="'no such turn'"):
        window.resume("no such turn")
    with pytest.raises(ConfigError, match="'no such turn'"):
        window.discard_partial("no such turn")
    assert window.calls("no such turn") == []
    with pytest.raises(ConfigError, match="turn_id"):
        window.calls(5)  # type: ignore[arg-type]


def test_a_strategy_is_one_of_five(window: ContextWindow) -> None:
    with pytest.raises(ConfigError, match=r"cursor.*'guess'"):
        window.resume(strategy="guess")  # type: ignore[arg-type]


@pytest.mark.parametrize("data", [None, 5, "", "{", b"\xff", {}, [], "[1, 2]"], ids=repr)
def test_what_is_no_export_is_not_imported(window: ContextWindow, data: Any) -> None:
    with pytest.raises(ConfigError, match="export"):
        window.import_context(data)


def test_reads_of_an_unknown_context_name_it(window: ContextWindow) -> None:
    for action in (window.get_context, window.context_stats, window.export_context):
        with pytest.raises(ContextNotFound, match="'typo'"):
            action("typo")
    with pytest.raises(ContextNotFound, match="'typo'"):
        window.export_context_json("typo")


# -- options of a call -------------------------------------------------------------------


class Form(pydantic.BaseModel):
    name: str


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"temprature": 1}, "'temprature'.*'temperature'"),
        ({"stream": True}, "'stream'.*extra"),
        ({"temperature": "hot"}, "temperature.*'hot'"),
        ({"temperature": True}, "temperature.*True"),
        ({"temperature": float("nan")}, "temperature.*nan"),
        ({"max_output_tokens": 0}, "max_output_tokens.*0"),
        ({"max_output_tokens": 1.5}, "max_output_tokens.*1.5"),
        ({"reasoning": 5}, "reasoning.*5"),
        ({"response_format": 5}, "response_format.*5"),
        ({"response_format": int}, "response_format.*int"),
        ({"response_format": Form(name="x")}, "response_format.*Form"),
        ({"timeout": 0}, "timeout.*0"),
        ({"timeout": -1}, "timeout.*-1"),
        ({"timeout": float("nan")}, "timeout.*nan"),
        ({"timeout": "5"}, "timeout.*'5'"),
        ({"deadline": 0}, "deadline.*0"),
        ({"max_resumes": -1}, "max_resumes.*-1"),
        ({"max_resumes": 1.5}, "max_resumes.*1.5"),
        ({"on_busy": "panic"}, "on_busy.*'panic'"),
        ({"on_busy": ["wait"]}, "on_busy"),
        ({"tool_choice": ""}, "tool_choice.*''"),
        ({"tool_choice": 5}, "tool_choice.*5"),
        ({"extra": 5}, "extra.*5"),
        ({"extra": "x"}, "extra.*'x'"),
        ({"extra": {1: 2}}, "extra.*1"),
    ],
)
def test_an_option_that_cannot_be_used_is_named(
    window: ContextWindow, options: Any, why: str
) -> None:
    with pytest.raises(ConfigError, match=why):
        window.call_model(**options)
    with pytest.raises(ConfigError, match=why):
        window.call_model_streaming(**options)
    with pytest.raises(ConfigError, match=why):
        window.resume_streaming(**options)

    assert window.turns() == []


def test_options_that_are_none_are_as_if_left_out(file: str, run: Open) -> None:
    from contextwindow.options import read_options

    names = ("temperature", "max_output_tokens", "reasoning", "response_format", "timeout")
    more = ("deadline", "max_resumes", "tool_choice", "extra")

    assert read_options(dict.fromkeys([*names, *more]))[1].max_resumes == 2


def test_no_secret_of_extra_reaches_the_database(file: str, run: Open) -> None:
    """Fault 46: No secret of `extra` reaches the database."""
    window = run(file, "main", model=ScriptedModel(["ok"]))
    window.add_prompt("hi")

    window.call_model(
        extra={
            "extra_headers": {"Authorization": "Bearer hush"},
            "api_key": "hush",
            "extra_body": {"provider": {"api_key": "hush", "order": ["a"]}},
            "list": [{"token": "hush"}],
        }
    )

    assert "hush" not in json.dumps(window.calls()[0].options)
    assert window.calls()[0].options["extra"]["extra_body"]["provider"]["order"] == ["a"]


# -- making a window ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ({"database": 42}, "database.*42"),
        ({"database": None}, "database.*None"),
        ({"database": b"x.db"}, "database"),
        ({"context": ""}, "context name is empty"),
        ({"context": "\0"}, "NUL"),
        ({"context": 7}, "context name.*7"),
        ({"model": 42}, "model.*42"),
        ({"model": "gpt-5"}, "'gpt-5'.*openai:NAME"),
        ({"model": "nobody:gpt-5"}, "'nobody:gpt-5'.*openai:NAME"),
        ({"model": "openai:"}, "'openai:'.*openai:NAME"),
        ({"model": ""}, "''.*openai:NAME"),
        ({"model": ScriptedModel}, "model.*ScriptedModel"),
        ({"system_prompt": ""}, "system prompt is empty"),
        ({"system_prompt": 7}, "system prompt.*7"),
        ({"max_tokens": 0}, "max_tokens.*0"),
        ({"max_tokens": -5}, "max_tokens.*-5"),
        ({"max_tokens": "many"}, "max_tokens.*'many'"),
        ({"max_tokens": True}, "max_tokens.*True"),
        ({"checkpoint_interval": -1}, "checkpoint_interval.*-1"),
        ({"checkpoint_interval": "soon"}, "checkpoint_interval.*'soon'"),
        ({"checkpoint_interval": float("nan")}, "checkpoint_interval.*nan"),
        ({"checkpoint_interval": float("inf")}, "checkpoint_interval.*inf"),
        ({"middleware": [object()]}, "not middleware.*contextwindow.Middleware"),
        ({"middleware": [Middleware]}, r"Middleware is a class.*Middleware\(\)"),
        ({"middleware": [print]}, "not middleware"),
        ({"middleware": 5}, "middleware.*5"),
        ({"middleware": None}, "middleware.*None"),
        ({"middleware": Middleware()}, "middleware"),
    ],
)
def test_an_argument_that_cannot_be_used_is_named_and_makes_no_file(
    tmp_path: Path, run: Open, arguments: Any, why: str
) -> None:
    file = tmp_path / "x.db"

    with pytest.raises(ConfigError, match=why):
        run(**{"database": str(file), "context": "main", **arguments})

    assert not file.exists()


@pytest.mark.parametrize("arguments", [{"lease_seconds": 0}, {"lease_seconds": "x"}, {}], ids=repr)
def test_arguments_of_a_store_are_checked_too(tmp_path: Path, arguments: Any) -> None:
    arguments = arguments or {"synchronous": "sometimes"}

    with pytest.raises(ConfigError, match=next(iter(arguments))):
        Store(str(tmp_path / "x.db"), **arguments)

    assert not (tmp_path / "x.db").exists()


@pytest.mark.parametrize("form", ["openai:gpt-5", "openai-chat:gpt-5"])
def test_a_model_without_a_key_says_which_variable_to_set(
    tmp_path: Path, run: Open, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)

    with pytest.raises(ContextWindowError, match="OPENAI_API_KEY"):
        window = run(str(tmp_path / "x.db"), "main", model=form)
        window.add_prompt("hi")
        window.call_model()


@pytest.mark.parametrize(
    ("form", "names"),
    [
        ("anthropic:claude", ("ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN", "ANTHROPIC_BASE_URL")),
        ("gemini:gemini", ("GEMINI_API_KEY", "GOOGLE_API_KEY")),
    ],
)
def test_a_key_that_is_missing_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str, names: tuple[str, ...]
) -> None:
    for name in names:
        monkeypatch.delenv(name, raising=False)

    with pytest.raises(ConfigError, match=names[0]):
        ContextWindow(str(tmp_path / "x.db"), "main", model=form)

    assert not (tmp_path / "x.db").exists()


@pytest.mark.parametrize("middleware", [object(), Middleware, print, None, 5])
def test_what_is_no_middleware_cannot_be_added(window: ContextWindow, middleware: Any) -> None:
    with pytest.raises(ConfigError, match=r"middleware|class"):
        window.add_middleware(middleware)


def test_an_async_window_that_could_not_be_opened_says_so_each_time(tmp_path: Path) -> None:
    async def main() -> None:
        window = AsyncContextWindow(str(tmp_path / "x.db"), "")
        for _ in range(2):
            with pytest.raises(ConfigError, match="context name is empty"):
                await window.add_prompt("hi")
        await window.aclose()
        await window.aclose()
        with pytest.raises(ConfigError, match="closed"):
            await window.add_prompt("hi")

    asyncio.run(main())


def test_the_name_of_an_async_window_is_known_once_it_is_open(file: str) -> None:
    async def main() -> None:
        window = AsyncContextWindow(file, "main")
        with pytest.raises(ConfigError, match="open the window first"):
            _ = window.current_context
        async with window:
            assert window.current_context == "main"

    asyncio.run(main())


def test_a_callback_that_cannot_be_called_is_refused_before_anything_is_sent(
    window: ContextWindow,
) -> None:
    with pytest.raises(ConfigError, match=r"callback.*5"):
        window.call_model_streaming().until_done(5)  # type: ignore[arg-type]

    assert window.turns() == []
