"""Exports, message lists and logs that somebody made to break who takes them in."""

from __future__ import annotations

import base64
import copy
import hashlib
import json
import sqlite3
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from llm_tables import FIRST, LATER, NEWEST, make_log
from support import contents, problems
from support import file as file

from contextwindow import (
    AnthropicModel,
    Attachment,
    ConfigError,
    ContextWindow,
    ContextWindowError,
    GeminiModel,
    Model,
    OpenAIChatModel,
    OpenAIResponsesModel,
    Record,
    RecordType,
    Store,
)
from contextwindow.attachments import read_attachment
from contextwindow.models.base import CallOptions
from contextwindow.testing import ScriptedModel, ScriptedReply

DEPTH = 100_000
PNG = b"\x89PNG\r\n\x1a\n" + b"picture"
HUGE = 10**5_000


def an_export() -> dict[str, Any]:
    """An export with a record of every kind that an import treats differently."""
    asks = ScriptedReply(["ok"], tool_calls=[("look", {"at": 1}, "c1")])
    with ContextWindow(model=ScriptedModel([asks]), system_prompt="be kind") as window:
        window.add_prompt("look", [PNG])
        window.call_model()
        window.add_tool_output("fine", "c1")
        made: dict[str, Any] = json.loads(window.export_context_json())
    made["records"][1]["payload"] = {"api": "x", "items": [{"n": 1}]}
    made["context"]["metadata"] = {"user": 7}
    return made


EXPORT = an_export()


@pytest.fixture
def window(file: str) -> Iterator[ContextWindow]:
    with ContextWindow(file, "main") as window:
        window.add_prompt("hi")
        yield window


@contextmanager
def refused(window: ContextWindow, match: str | None = None) -> Iterator[None]:
    """What is inside fails as the caller's mistake, in a short message, and writes nothing."""
    with pytest.raises(ConfigError, match=match) as caught:
        yield
    assert len(str(caught.value)) < 1_000
    assert [context.name for context in window.list_contexts()] == ["main"]
    assert contents(window.records()) == ["hi"]
    assert problems(window._store) == []


@contextmanager
def memory_below(most: int) -> Iterator[None]:
    """What is inside never holds more than *most* bytes."""
    tracemalloc.start()
    try:
        yield
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < most


def changed(path: list[Any], value: Any) -> dict[str, Any]:
    """The export with *value* at a place in it."""
    export = copy.deepcopy(EXPORT)
    place: Any = export
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    return export


def test_the_export_that_the_tests_change_is_a_sound_one(window: ContextWindow) -> None:
    """Fault 48: What follows fails for what was changed."""
    window.import_context(copy.deepcopy(EXPORT), "copy")
    window.import_context(json.dumps(EXPORT), "again")

    assert problems(window._store) == []


# -- exports ------------------------------------------------------------------------------


@pytest.mark.parametrize("opening", ["[", '{"a":', '{"format":"contextwindow/1","records":['])
def test_brackets_without_end_are_refused(window: ContextWindow, opening: str) -> None:
    """Fault 48: 100,000 brackets, closed or not."""
    closing_ = {"[": "]", '{"a":': "}"}.get(opening, "]}")
    for text in (opening * DEPTH, opening * DEPTH + "1" + closing_ * DEPTH):
        with memory_below(60 * len(text)), refused(window):
            window.import_context(text)


def nested(depth: int, kind: str) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value] if kind == "list" else {"a": value}
    return value


@pytest.mark.parametrize("kind", ["list", "dict"])
@pytest.mark.parametrize(
    "path",
    [
        ["format"],
        ["records"],
        ["records", 1, "payload"],
        ["records", 1, "content"],
        ["records", 1, "source"],
        ["records", 1, "est_tokens"],
        ["records", 1, "attachments"],
        ["context", "metadata"],
        ["context", "name"],
        ["context", "start_time"],
        ["tools"],
        ["attachments"],
    ],
    ids=lambda path: ".".join(map(str, path)),
)
def test_values_that_are_nested_too_deeply_are_refused(
    window: ContextWindow, path: list[Any], kind: str
) -> None:
    """Fault 48: A dict may be nested deeper than any text that Python parses."""
    value = nested(5_000, kind)
    with refused(window):
        window.import_context(changed(path, {"a": value} if path[-1] == "payload" else value))


def test_a_value_that_holds_itself_is_refused(window: ContextWindow) -> None:
    """Fault 48: A dict can, JSON cannot."""
    own: dict[str, Any] = {}
    own["own"] = own
    for path in (["records", 1, "payload"], ["context", "metadata"]):
        with refused(window, "levels deep"):
            window.import_context(changed(path, own))


@pytest.mark.parametrize("version", ["contextwindow/2", "contextwindow/99"])
def test_an_export_of_a_newer_version_says_so(window: ContextWindow, version: str) -> None:
    """Fault 48: The message says who made it and what to do."""
    with refused(window, f"'{version}', made by a newer contextwindow.*upgrade"):
        window.import_context({**EXPORT, "format": version})


@pytest.mark.parametrize(
    "version", ["contextwindow/0", "contextwindow/", "contextwindow/1e9", "other/99", 99, None, []]
)
def test_an_export_of_another_program_is_none(window: ContextWindow, version: Any) -> None:
    """Fault 48: Nobody is told to upgrade for it."""
    with refused(window, "no export that can be read"):
        window.import_context({**EXPORT, "format": version})


@pytest.mark.parametrize("key", ["id", "seq"])
def test_two_records_with_one_number_are_refused(window: ContextWindow, key: str) -> None:
    """Fault 48: Record ids and places in the order are unique."""
    export = copy.deepcopy(EXPORT)
    export["records"][1][key] = export["records"][0][key]

    with refused(window, f"two records have the same {key}"):
        window.import_context(export)


def test_a_key_that_is_there_twice_is_refused(window: ContextWindow) -> None:
    """Fault 48: The second attachment of one hash would hide the first."""
    digest = next(iter(EXPORT["attachments"]))
    twice = f'"{digest}": "aGk=", "{digest}"'
    text = json.dumps(EXPORT).replace(f'"attachments": {{"{digest}"', f'"attachments": {{{twice}')

    assert text.count(digest) == 3
    with refused(window, "the same key twice"):
        window.import_context(text)


OTHERS: list[Any] = [
    None,
    True,
    -1,
    0,
    1.5,
    float("nan"),
    float("inf"),
    1 << 31,
    1 << 63,
    HUGE,
    "",
    "x",
    "\0",
    "\ud800",
    b"x",
    [],
    [1],
    {},
    {"a": 1},
    object(),
]

PLACES: list[list[Any]] = [
    *([key] for key in EXPORT),
    *(["context", key] for key in EXPORT["context"]),
    *(["records", 1, key] for key in EXPORT["records"][1]),
    *(["records", 1, "attachments", 0, key] for key in EXPORT["records"][1]["attachments"][0]),
    ["records", 0],
    ["records", 1, "attachments", 0],
    ["attachments", next(iter(EXPORT["attachments"]))],
    ["tools", 0],
]


@pytest.mark.parametrize("path", PLACES, ids=lambda path: ".".join(map(str, path)))
def test_other_types_are_taken_as_they_are_or_refused(
    window: ContextWindow, path: list[Any]
) -> None:
    """Fault 48: Whatever stands in a place, there is a whole context or a ConfigError."""
    start = copy.deepcopy(EXPORT)
    start["tools"] = ["look"]
    for number, value in enumerate(OTHERS):
        export = copy.deepcopy(start)
        place: Any = export
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] = value
        name = f"copy {number}"
        before = len(window.list_contexts())
        try:
            window.import_context(export, name)
        except ConfigError:
            assert len(window.list_contexts()) == before
        else:
            assert window.export_context(name)["format"] == "contextwindow/1"
    assert not window._store.examine().problems


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (["records", 1, "content"], "a\0b"),
        (["records", 1, "content"], "a\ud83d"),
        (["records", 1, "est_tokens"], float("nan")),
        (["records", 1, "est_tokens"], HUGE),
        (["records", 1, "est_tokens"], 1 << 40),
        (["records", 1, "seq"], 1 << 63),
        (["records", 1, "position"], 1 << 63),
        (["records", 1, "payload"], {"n": float("inf")}),
        (["records", 1, "payload"], {"n": HUGE}),
        (["records", 1, "payload"], ["x"]),
        (["records", 1, "payload"], {1: 2}),
        (["records", 1, "ts"], "0001-01-01 00:00:00 +2300 UTC"),
        (["records", 1, "ts"], "9999-12-31 23:59:59 -2300"),
        (["records", 1, "ts"], "yesterday"),
        (["context", "metadata"], {"n": float("nan")}),
        (["context", "metadata"], "x"),
        (["context", "max_tokens"], HUGE),
        (["tools"], ["a\0b"]),
    ],
    ids=lambda value: type(value).__name__ if not isinstance(value, list) else str(value[-1]),
)
def test_what_no_database_keeps_is_refused(
    window: ContextWindow, path: list[Any], value: Any
) -> None:
    """Fault 48: NUL, half surrogates, NaN, Infinity, numbers without end."""
    with refused(window, "no whole export"):
        window.import_context(changed(path, value))


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999", "9" * 5_000])
def test_numbers_that_are_none_are_refused_in_text(window: ContextWindow, number: str) -> None:
    """Fault 48: Python's JSON takes NaN; other readers of the database do not."""
    text = json.dumps(changed(["records", 1, "payload"], {"n": 4711})).replace("4711", number)

    with refused(window):
        window.import_context(text)


def test_a_mark_of_the_byte_order_is_no_part_of_an_export(window: ContextWindow) -> None:
    text = json.dumps(EXPORT)
    both: list[str | bytes] = [f"\ufeff{text}", text.encode("utf-8-sig")]
    for number, marked in enumerate(both):
        assert window.import_context(marked, f"copy {number}").name == f"copy {number}"


# -- attachments ----------------------------------------------------------------------------


def with_attachment(data: str, digest: str, **more: Any) -> dict[str, Any]:
    export = changed(["attachments"], {digest: data})
    described = {"media_type": "image/png", "name": "a.png", "digest": digest, **more}
    export["records"][1]["attachments"] = [described]
    return export


@pytest.mark.parametrize(
    "claimed", [10_000_000_000, -1, 0, "15", 1 << 70, HUGE, None, 15.5], ids=lambda _: "size"
)
def test_a_size_that_is_claimed_and_not_there_is_refused(
    window: ContextWindow, claimed: Any
) -> None:
    """Fault 48: An attachment that says it has 10 GB; nothing is reserved for it."""
    data, digest = base64.b64encode(PNG).decode(), hashlib.sha256(PNG).hexdigest()

    with memory_below(10_000_000), refused(window, "claims to have"):
        window.import_context(with_attachment(data, digest, size_bytes=claimed))


@pytest.mark.parametrize("data", ["%%%", "aGk", "aGk=\n", "é", "=" * 10_000, "A" * 10_001])
def test_base64_that_is_none_is_refused(window: ContextWindow, data: str) -> None:
    """Fault 48: Nothing is guessed from it."""
    digest = hashlib.sha256(PNG).hexdigest()

    with refused(window, "attachment"):
        window.import_context(with_attachment(data, digest))


def test_bytes_that_do_not_match_their_hash_are_refused(window: ContextWindow) -> None:
    """Fault 48: Else one export could change what another context has attached."""
    other = base64.b64encode(PNG + b"!").decode()
    for digest in (hashlib.sha256(PNG).hexdigest(), "../../etc/passwd", "", "0" * 64):
        with refused(window, "does not match its hash"):
            window.import_context(with_attachment(other, digest))


def with_references(size: int, count: int) -> dict[str, Any]:
    """An export of one picture, which its prompt names *count* times."""
    data = PNG + b"x" * size
    digest = hashlib.sha256(data).hexdigest()
    export = with_attachment(base64.b64encode(data).decode(), digest)
    described = export["records"][1]["attachments"][0]
    export["records"][1]["attachments"] = [
        {**described, "name": f"{number}.png"} for number in range(count)
    ]
    return export


def test_one_picture_that_a_record_names_800_times_is_refused(window: ContextWindow) -> None:
    """Fault 48: 0.8 MB of export would be 0.5 GB in each later call."""
    export = with_references(580_000, 800)

    with memory_below(20_000_000), refused(window, "many times larger than the export"):
        window.import_context(export)


def test_one_picture_in_thirty_prompts_is_taken_and_looked_through_once(
    window: ContextWindow, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[object] = []

    def counting(value: Attachment) -> Attachment:
        read.append(value)
        return read_attachment(value)

    monkeypatch.setattr("contextwindow.store.attached.read_attachment", counting)
    window.import_context(with_references(5_000_000, 30), "copy")
    window.switch_context("copy")

    assert len(read) == 1
    assert [one.name for one in window.records()[1].attachments][28:] == ["28.png", "29.png"]


def test_a_large_export_costs_a_small_multiple_of_its_size(window: ContextWindow) -> None:
    """Fault 48: 8 MB of attachment that is refused in the end, and 8 MB of text."""
    data = base64.b64encode(PNG + b"x" * 6_000_000).decode()
    attached = json.dumps(with_attachment(data, "0" * 64))
    texts = json.dumps(changed(["records", 1, "content"], "x" * 8_000_000 + "\0"))

    for text in (attached, texts):
        with memory_below(5 * len(text)), refused(window):
            window.import_context(text)


# -- payloads -------------------------------------------------------------------------------

MODELS: list[Model] = [
    OpenAIChatModel("gpt-5", api_key="k"),
    OpenAIResponsesModel("gpt-5", api_key="k"),
    AnthropicModel("claude-sonnet-4-5", api_key="k"),
    GeminiModel("gemini-3-pro", api_key="k"),
]
KINDS = [
    "text",
    "thinking",
    "tool_use",
    "server_tool_use",
    "mcp_tool_use",
    "web_search_tool_result",
    "message",
    "reasoning",
    "function_call",
    "custom_tool_call",
    "custom",
    "contextwindow_paused",
]
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=3) | st.sampled_from(KINDS),
    lambda inner: (
        st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(["name", "id"]), inner)
    ),
    max_leaves=4,
)
MEMBERS = [
    *("id", "call_id", "tool_use_id", "text", "signature", "data", "input", "content", "summary"),
    *(
        "encrypted_content",
        "functionCall",
        "thoughtSignature",
        "custom",
        "function",
        "name",
        "role",
    ),
    *("cache_control", "candidateMetadata"),
]
ITEM = st.builds(
    lambda kind, members: {**kind, **members},
    st.fixed_dictionaries({}, optional={"type": st.sampled_from(KINDS) | ANYTHING}),
    st.dictionaries(st.sampled_from(MEMBERS), ANYTHING, max_size=4),
)
SAID = st.tuples(
    st.sampled_from(list(RecordType)),
    st.sampled_from([model.api for model in MODELS]),
    st.lists(ITEM | ANYTHING, max_size=3),
    st.sampled_from([None, "c1", "c2"]),
)


@settings(max_examples=400, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(SAID, min_size=1, max_size=4), st.booleans(), st.booleans())
def test_any_payload_makes_a_request(
    said: list[tuple[RecordType, str, list[Any], str | None]], prefill: bool, threaded: bool
) -> None:
    """Fault 48: What is no item of a provider is left out; no later call breaks on it."""
    records = [
        Record(
            id=number,
            context_id="c",
            source=source,
            content="{}",
            timestamp=datetime(2026, 11, 21, tzinfo=UTC),
            est_tokens=1,
            call_id=call_id,
            payload={"api": api, "items": items},
        )
        for number, (source, api, items, call_id) in enumerate(said, 1)
    ]
    for model in MODELS:
        with suppress(ContextWindowError):
            body = model.request(records, CallOptions(prefill=prefill, threaded=threaded)).body
            json.dumps(body)


@pytest.mark.parametrize(
    ("model", "item"),
    [
        (MODELS[2], {"type": "server_tool_use"}),
        (MODELS[1], {"type": ["x"]}),
        (MODELS[1], {"type": "custom_tool_call", "call_id": {}}),
        (MODELS[2], {"type": "web_search_tool_result", "tool_use_id": []}),
    ],
    ids=lambda value: str(value["type"]) if isinstance(value, dict) else value.api,
)
def test_a_context_with_items_that_are_none_goes_on(
    window: ContextWindow, model: Model, item: dict[str, Any]
) -> None:
    """Fault 48: An export with such a payload is taken, and can be sent."""
    export = copy.deepcopy(EXPORT)
    call = next(one for one in export["records"] if one["source"] == "tool_call")
    call["payload"] = {"api": model.api, "items": [item]}
    window.import_context(export, "copy")
    window.switch_context("copy")

    body = model.request(window.live_records(), CallOptions()).body

    assert "look" in json.dumps(body)


# -- messages -------------------------------------------------------------------------------

USER = {"role": "user", "content": "hi"}
CALL = {"role": "assistant", "content": [{"type": "tool_use", "id": "t", "name": "f", "input": {}}]}


def asking(value: Any) -> list[dict[str, Any]]:
    return [
        USER,
        {
            "role": "assistant",
            "content": [{"type": "tool_use", "id": "t", "name": "f", "input": {"a": value}}],
        },
    ]


@pytest.mark.parametrize(
    "value",
    [
        nested(5_000, "list"),
        nested(5_000, "dict"),
        float("nan"),
        float("-inf"),
        HUGE,
        "\0",
        "\ud800",
        {"\0": 1},
        {1: 2},
        b"x",
        {1, 2},
        object(),
    ],
    ids=lambda value: type(value).__name__,
)
def test_messages_with_what_is_no_json_are_refused(window: ContextWindow, value: Any) -> None:
    """Fault 48: Deep nesting, NaN, NUL and other types anywhere in a message."""
    with refused(window, r"messages\[1\]"):
        window.import_messages(asking(value))
    with refused(window, r"messages\[0\]"):
        window.import_messages([{"role": "user", "content": value}])
    with refused(window, r"messages\[0\]"):
        window.import_messages([{**USER, "extra": value}])


def test_messages_that_name_a_file_of_the_machine_do_not_open_it(
    window: ContextWindow, tmp_path: Path
) -> None:
    """Fault 48: A path where a URL belongs would send the file to the provider."""
    secret = tmp_path / "secret.png"
    secret.write_bytes(PNG)
    for where in (str(secret), f"file://{secret}", f"{secret}#", f" {secret}"):
        parts: list[dict[str, Any]] = [
            {"type": "image_url", "image_url": {"url": where}},
            {"type": "image", "source": {"type": "url", "url": where}},
            {"type": "file", "file": {"filename": "a.png", "file_data": where}},
        ]
        for part in parts:
            with refused(window, r"messages\[0\]"):
                window.import_messages([{"role": "user", "content": [part]}])


def test_a_message_that_claims_10_gb_is_read_by_what_it_has(window: ContextWindow) -> None:
    """Fault 48: A data: URL's length is that of its data."""
    url = f"data:image/png;size=10000000000;base64,{base64.b64encode(PNG).decode()}"
    part = {"type": "image_url", "image_url": {"url": url}}

    with memory_below(10_000_000):
        context = window.import_messages([{"role": "user", "content": [part]}], "small")

    window.switch_context(context.name)
    assert window.live_records()[0].attachments[0].data == PNG


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from(["user", "assistant", "tool", "text", "tool_use", "tool_result", "image"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["role", "content", "type", "text", "id", "name", "input", "tool_calls", "source"]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(JSON, max_size=3))
def test_any_messages_are_a_context_or_a_config_error(messages: list[Any]) -> None:
    """Fault 48: Wrong types everywhere."""
    with ContextWindow(":memory:", "main") as window:
        try:
            window.import_messages(messages, "in")
        except ConfigError:
            assert len(window.list_contexts()) == 1
        else:
            window.export_messages("openai", "in")
            window.export_messages("anthropic", "in")


# -- logs of llm ----------------------------------------------------------------------------


def spoiled(path: Path, spoil: Callable[[sqlite3.Connection], object]) -> Path:
    with closing(sqlite3.connect(path)) as connection:
        spoil(connection)
        connection.commit()
    return path


ROW = {"id": "r1", "prompt": "hi", "response": "ho", "conversation_id": "c1"}


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE responses SET prompt = x'00ff'",
        "UPDATE responses SET conversation_id = x'00ff'",
        "UPDATE responses SET response = 1e999, prompt = x'01'",
        "INSERT INTO tool_calls (response_id, arguments) VALUES ('r1', x'00')",
        "INSERT INTO threads VALUES ('c9', 'x', 'gone', NULL, NULL)",
        "INSERT INTO threads VALUES ('c9', 'x', 'loop', NULL, NULL)",
        "INSERT INTO threads VALUES ('c9', 'x', 'deep', NULL, NULL)",
        "INSERT INTO threads VALUES ('c9', 'x', 'nan', NULL, NULL)",
    ],
)
def test_a_log_with_rows_that_cannot_be_read_is_refused_whole(
    window: ContextWindow, tmp_path: Path, statement: str
) -> None:
    """Fault 48: The conversations in front of the bad row are not written either."""
    log = make_log(
        tmp_path / "logs.db",
        NEWEST,
        responses=[{**ROW, "id": "r0", "conversation_id": "c0"}, ROW],
        messages=[
            {"hash": "loop", "parent_hash": "loop", "role": "user"},
            *({"hash": one, "role": "user"} for one in ("deep", "nan")),
        ],
        parts=[
            {"message_hash": "deep", "position": 0, "type": "text", "payload": "[" * DEPTH},
            {"message_hash": "nan", "position": 0, "type": "text", "payload": '{"a": NaN}'},
        ],
    )
    spoiled(log, lambda connection: connection.execute(statement + _where(statement)))

    with refused(window):
        window._store.import_llm_logs(log)


def _where(statement: str) -> str:
    return " WHERE id = 'r1'" if statement.startswith("UPDATE") else ""


def test_a_log_whose_pages_are_damaged_is_refused(window: ContextWindow, tmp_path: Path) -> None:
    """Fault 48: At whichever place the damage is."""
    rows = [{**ROW, "id": f"r{n}", "prompt": "x" * 2_000} for n in range(30)]
    whole = make_log(tmp_path / "logs.db", FIRST, responses=rows).read_bytes()
    refusals = 0
    for at in range(0, len(whole), len(whole) // 25):
        broken = tmp_path / "broken.db"
        broken.write_bytes(whole[:at] + b"\xff" * 600 + whole[at + 600 :])
        with Store() as store:
            try:
                store.import_llm_logs(broken)
            except ConfigError:
                refusals += 1
                assert store.list_contexts() == []
    assert refusals > 3


def test_views_and_virtual_tables_of_a_log_are_not_asked(
    window: ContextWindow, tmp_path: Path
) -> None:
    """Fault 48: A view can compute rows for ever."""
    log = make_log(tmp_path / "logs.db", "CREATE TABLE conversations (id TEXT, name TEXT);")
    endless = (
        "CREATE VIEW responses AS WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) "
        "SELECT i AS id, 'p' AS prompt, 'r' AS response, 'c' AS conversation_id FROM n"
    )
    spoiled(log, lambda connection: connection.execute(endless))

    with refused(window, "no log of llm"):
        window._store.import_llm_logs(log)


def test_one_text_that_a_thousand_rows_name_is_not_multiplied_without_end(
    window: ContextWindow, tmp_path: Path
) -> None:
    """Fault 48: A small file that would become gigabytes."""
    log = make_log(
        tmp_path / "logs.db",
        LATER,
        responses=[ROW],
        fragments=[{"id": 1, "content": "x" * 1_000_000}],
        prompt_fragments=[
            {"response_id": "r1", "fragment_id": 1, "order": at} for at in range(1_000)
        ],
    )

    with memory_below(60_000_000), refused(window, r"50,000,000 bytes.*pass a larger max_bytes"):
        window._store.import_llm_logs(log, max_bytes=50_000_000)


def test_an_attachment_of_a_log_that_claims_10_gb_is_left_out(
    window: ContextWindow, tmp_path: Path
) -> None:
    """Fault 48: What is stored decides, and a note says what is missing."""
    log = make_log(
        tmp_path / "logs.db",
        LATER,
        responses=[ROW],
        attachments=[{"id": "a", "type": "image/png"}],
        prompt_attachments=[{"response_id": "r1", "attachment_id": "a", "order": 0}],
    )
    spoiled(
        log,
        lambda connection: connection.execute(
            "UPDATE attachments SET content = zeroblob(60000000)"
        ),
    )

    with memory_below(100_000_000):
        (context,) = window._store.import_llm_logs(log)

    window.switch_context(context.name)
    assert "left out: it has more than 50 MB" in window.records()[0].content
