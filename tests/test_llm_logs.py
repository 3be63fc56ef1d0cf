"""Taking in the logs of llm, of each generation of its tables."""

from __future__ import annotations

import hashlib
import sqlite3
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from llm_tables import FIRST, LATER, NEWEST, make_log
from support import contents, problems
from support import file as file

from contextwindow import ConfigError, ContextWindow, Record, RecordType, Store
from contextwindow.store.conversations import create
from contextwindow.store.llm_logs import Conversation, LlmLog

PNG = b"\x89PNG\r\n\x1a\n" + b"picture"


def response(number: int, conversation: str | None = "c1", **values: Any) -> dict[str, Any]:
    return {
        "id": f"r{number}",
        "model": "gpt-4o",
        "prompt": f"question {number}",
        "response": f"answer {number}",
        "conversation_id": conversation,
        "datetime_utc": f"2025-05-01T10:0{number}:00.123456+00:00",
        **values,
    }


TALK: dict[str, Any] = {
    "conversations": [{"id": "c1", "name": "A talk", "model": "gpt-4o"}],
    "responses": [response(1, system="be kind"), response(2)],
}


def records(store: Store, name: str) -> list[Record]:
    with ContextWindow(store, name) as window:
        return window.records()


@pytest.mark.parametrize("tables", [FIRST, LATER, NEWEST], ids=["first", "later", "newest"])
def test_a_conversation_becomes_a_context(database: str, tmp_path: Path, tables: str) -> None:
    log = make_log(tmp_path / "logs.db", tables, **TALK)
    with Store(database) as store:
        (context,) = store.import_llm_logs(log)

        assert context.name == "A talk"
        assert context.metadata == {
            "imported_from": "llm",
            "conversation_id": "c1",
            "model": "gpt-4o",
        }
        assert context.start_time == datetime(2025, 5, 1, 10, 1, 0, 123456, tzinfo=UTC)
        found = records(store, "A talk")
        assert contents(found) == ["be kind", "question 1", "answer 1", "question 2", "answer 2"]
        assert found[0].source is RecordType.SYSTEM_PROMPT
        assert found[-1].timestamp == datetime(2025, 5, 1, 10, 2, 0, 123456, tzinfo=UTC)
        stats = store.context_stats("A talk")
        assert not isinstance(stats, list)
        assert stats.usage.total_tokens == 0
        assert stats.live_records == 5
    assert problems(database) == []


def test_a_log_that_was_taken_in_is_not_taken_in_again(file: str, tmp_path: Path) -> None:
    log = make_log(tmp_path / "logs.db", **TALK)
    with Store(file) as store:
        assert len(store.import_llm_logs(str(log))) == 1
        assert store.import_llm_logs(log) == []

        with closing(sqlite3.connect(log)) as connection:
            connection.execute("INSERT INTO conversations VALUES ('c2', 'Another', 'm')")
            connection.execute(
                "INSERT INTO responses (id, prompt, response, conversation_id) "
                "VALUES ('r9', 'hi', 'ho', 'c2')"
            )
            connection.commit()
        assert [context.name for context in store.import_llm_logs(log)] == ["Another"]


def test_a_name_that_is_taken_gets_a_number(file: str, tmp_path: Path) -> None:
    log = make_log(
        tmp_path / "logs.db",
        conversations=[{"id": f"c{n}", "name": "A talk", "model": "m"} for n in (1, 2, 3)],
        responses=[response(n, f"c{n}") for n in (1, 2, 3)],
    )
    with Store(file) as store:
        made = store.import_llm_logs(log)

        assert [context.name for context in made] == ["A talk", "A talk (2)", "A talk (3)"]
        assert contents(records(store, "A talk (3)")) == ["question 3", "answer 3"]


def test_a_long_name_of_many_lines_is_one_short_line(file: str, tmp_path: Path) -> None:
    named = [{"id": "c1", "name": " Two\n\nlines " + "x" * 300, "model": "m"}]
    log = make_log(tmp_path / "logs.db", conversations=named, responses=[response(1)])
    with Store(file) as store:
        (context,) = store.import_llm_logs(log)

        assert context.name == "Two lines " + "x" * 190


def test_many_of_one_name_cost_one_insert_each(
    file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[str] = []

    def counting(connection: Any, name: str, **values: Any) -> tuple[str, bool]:
        tried.append(name)
        return create(connection, name, **values)

    monkeypatch.setattr("contextwindow.store.transfer.create", counting)
    log = make_log(
        tmp_path / "logs.db",
        conversations=[{"id": f"c{n}", "name": "A talk", "model": "m"} for n in range(60)],
        responses=[{**response(0, f"c{n}"), "id": f"r{n}"} for n in range(60)],
    )
    with Store(file) as store:
        made = store.import_llm_logs(log)

        assert {one.name for one in made} >= {"A talk", "A talk (2)", "A talk (60)"}
        assert len(tried) == 60


def test_others_write_while_a_log_is_read(
    file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = make_log(tmp_path / "logs.db", **TALK)
    with Store(file, busy_timeout=0.1) as other, Store(file) as store:
        window = ContextWindow(other, "other")
        read = LlmLog.conversation

        def reading(self: LlmLog, key: str) -> Conversation:
            window.add_prompt("hi")
            return read(self, key)

        monkeypatch.setattr(LlmLog, "conversation", reading)

        assert [one.name for one in store.import_llm_logs(log)] == ["A talk"]
        assert contents(window.records()) == ["hi"]


def test_two_imports_at_once_take_a_conversation_in_once(
    file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = make_log(tmp_path / "logs.db", **TALK)
    with Store(file) as other, Store(file) as store:
        read = LlmLog.conversation

        def reading(self: LlmLog, key: str) -> Conversation:
            monkeypatch.undo()
            assert len(other.import_llm_logs(log)) == 1
            return read(self, key)

        monkeypatch.setattr(LlmLog, "conversation", reading)

        assert store.import_llm_logs(log) == []
        assert [one.name for one in store.list_contexts()] == ["A talk"]


def test_responses_without_a_conversation_or_a_name_are_named_by_their_prompt(
    file: str, tmp_path: Path
) -> None:
    rows = [response(1, None, prompt="  Two\nlines "), response(2, None, prompt=None)]
    log = make_log(tmp_path / "logs.db", responses=rows)
    with Store(file) as store:
        assert [context.name for context in store.import_llm_logs(log)] == ["Two lines", "llm r2"]


def test_tools_thoughts_fragments_and_attachments_come_along(file: str, tmp_path: Path) -> None:
    digest = hashlib.sha256(PNG).hexdigest()
    log = make_log(
        tmp_path / "logs.db",
        conversations=[{"id": "c1", "name": "Tools", "model": "gpt-4o"}],
        responses=[
            response(1, system="be kind", response="", reasoning="hm"),
            response(2, prompt="", system="be kind"),
            response(3, system="be brief"),
        ],
        fragments=[{"id": 1, "content": "a novel"}, {"id": 2, "content": "rules"}],
        prompt_fragments=[{"response_id": "r1", "fragment_id": 1, "order": 0}],
        system_fragments=[{"response_id": "r3", "fragment_id": 2, "order": 0}],
        attachments=[
            {"id": digest, "type": "image/png", "content": PNG},
            {"id": "u", "type": "image/png", "url": "https://example.com/a.png"},
            {"id": "p", "type": "text/plain", "path": "/etc/hostname"},
            {"id": "x", "type": "image/png", "content": b"%PDF-1.7"},
        ],
        prompt_attachments=[
            {"response_id": "r1", "attachment_id": key, "order": at}
            for at, key in enumerate((digest, "u", "p", "x"))
        ],
        tool_calls=[
            {"response_id": "r1", "name": "look", "arguments": '{"at": 1}', "tool_call_id": "t1"},
            {"response_id": "r1", "name": "look", "arguments": None, "tool_call_id": None},
        ],
        tool_results=[
            {"response_id": "r2", "name": "look", "output": "fine", "tool_call_id": "t1"},
            {
                "response_id": "r2",
                "name": "look",
                "output": "",
                "tool_call_id": None,
                "exception": "ValueError: no",
            },
        ],
    )
    with Store(file) as store:
        store.import_llm_logs(log)
        found = records(store, "Tools")

        assert [(one.source.name, one.live) for one in found] == [
            ("SYSTEM_PROMPT", False),
            ("PROMPT", True),
            ("REASONING", True),
            ("TOOL_CALL", True),
            ("TOOL_CALL", True),
            ("TOOL_OUTPUT", True),
            ("TOOL_OUTPUT", True),
            ("MODEL_RESPONSE", True),
            ("SYSTEM_PROMPT", True),
            ("PROMPT", True),
            ("MODEL_RESPONSE", True),
        ]
        prompt = found[1]
        assert prompt.content.startswith("a novel\nquestion 1\n\n[attachment hostname (text/plain)")
        assert "is not opened]" in prompt.content
        assert "[attachment (image/png) left out" in prompt.content
        assert [(one.data, one.url) for one in prompt.attachments] == [
            (PNG, None),
            (None, "https://example.com/a.png"),
        ]
        assert (found[3].call_id, found[3].name, found[3].content) == ("t1", "look", '{"at": 1}')
        assert found[4].content == "{}"
        assert (found[6].content, found[6].error) == ("ValueError: no", True)
        assert found[8].content == "rules\n\nbe brief"

        with ContextWindow(store, "Tools") as window:
            said = window.export_messages("openai")["messages"]
        assert [one["role"] for one in said][:5] == [
            "system",
            "user",
            "assistant",
            "tool",
            "tool",
        ]
        assert [one["content"] for one in said[3:5]] == ["fine", "ValueError: no"]


def message(own: str, parent: str | None, role: str) -> dict[str, Any]:
    return {"hash": own, "parent_hash": parent, "role": role}


def part(own: str, position: int, kind: str, **values: Any) -> dict[str, Any]:
    return {"message_hash": own, "position": position, "type": kind, **values}


THREADS: dict[str, Any] = {
    "messages": [
        message("m0", None, "system"),
        message("m1", "m0", "user"),
        message("m2", "m1", "assistant"),
        message("m3", "m2", "tool"),
        message("m4", "m3", "assistant"),
        message("m5", "m2", "user"),
    ],
    "parts": [
        part("m0", 0, "text", text="be kind"),
        part(
            "m1",
            0,
            "text",
            payload='{"text_ref": [{"fragment": 1}, {"literal": "\\nwhat of it?"}]}',
        ),
        {**part("m1", 1, "attachment", payload='{"attachment": {}}'), "id": 77},
        part("m2", 0, "reasoning", text="hm"),
        part("m2", 1, "text", text="let me look"),
        part(
            "m2",
            2,
            "tool_call",
            tool_name="look",
            payload='{"arguments": {"at": "ü"}, "tool_call_id": "t1"}',
        ),
        part(
            "m3",
            0,
            "tool_result",
            tool_name="look",
            payload='{"output": "a cat", "tool_call_id": "t1"}',
        ),
        part("m4", 0, "text", text="a cat"),
        part("m5", 0, "text", text="never mind"),
    ],
    "fragments": [{"id": 1, "content": "a novel"}],
    "attachments": [{"id": "a", "type": "image/png", "content": PNG}],
    "part_attachments": [{"part_id": 77, "attachment_id": "a", "order": 0}],
    "threads": [
        {"id": "c1", "name": "A thread", "tip_message_hash": "m4"},
        {"id": "c3", "name": "A fork", "tip_message_hash": "m5", "forked_from": "c1"},
    ],
    "turns": [
        {
            "id": "t1",
            "tip_message_hash": "m2",
            "model": "gpt-5.5",
            "datetime_utc": "2026-08-01T10:00:00+00:00",
        },
        {
            "id": "t2",
            "tip_message_hash": "m4",
            "model": "gpt-5.5",
            "datetime_utc": "2026-08-01T10:01:00+00:00",
        },
    ],
}


def test_threads_of_messages_become_contexts_and_forks_have_the_whole_history(
    file: str, tmp_path: Path
) -> None:
    both = {**THREADS, **TALK, "responses": [*TALK["responses"], response(3, "c2")]}
    both["conversations"] = [*TALK["conversations"], {"id": "c2", "name": "Old", "model": "m"}]
    log = make_log(tmp_path / "logs.db", NEWEST, **both)
    with Store(file) as store:
        made = store.import_llm_logs(log)

        assert [context.name for context in made] == ["A thread", "Old", "A fork"]
        assert (made[0].metadata or {})["model"] == "gpt-5.5"
        found = records(store, "A thread")
        assert contents(found) == [
            "be kind",
            "a novel\nwhat of it?",
            "hm",
            "let me look",
            '{"at": "ü"}',
            "a cat",
            "a cat",
        ]
        assert found[1].attachments[0].data == PNG
        assert (found[5].source, found[5].call_id) == (RecordType.TOOL_OUTPUT, "t1")
        minutes = [one.timestamp.minute for one in found]
        assert minutes == [0, 0, 0, 0, 0, 1, 1]
        assert contents(records(store, "A fork"))[-2:] == ['{"at": "ü"}', "never mind"]


@pytest.mark.parametrize("when", ["yesterday", "9999-12-31 23:59:59 -2300", b"\0\xff", 17.5])
def test_a_time_that_cannot_be_read_is_the_neighbours(
    file: str, tmp_path: Path, caplog: pytest.LogCaptureFixture, when: Any
) -> None:
    rows = [response(n) for n in (1, 2, 3)]
    log = make_log(tmp_path / "logs.db", **{**TALK, "responses": rows})
    with closing(sqlite3.connect(log)) as connection:
        connection.execute("UPDATE responses SET datetime_utc = ? WHERE id = 'r2'", (when,))
        connection.commit()
    with Store(file) as store:
        store.import_llm_logs(log)

        minutes = {one.content: one.timestamp.minute for one in records(store, "A talk")}
        assert (minutes["question 1"], minutes["question 3"]) == (1, 3)
        assert minutes["question 2"] in (1, 3)
        assert [one.getMessage() for one in caplog.records if "1 times" in one.getMessage()]


def test_a_part_of_a_new_kind_leaves_a_note(
    file: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    new = [part("m4", 1, "hologram", text="seen"), part("m1", 2, "scent")]
    turns = [{**THREADS["turns"][0], "datetime_utc": "soon"}, THREADS["turns"][1]]
    log = make_log(
        tmp_path / "logs.db",
        NEWEST,
        **{**THREADS, "parts": [*THREADS["parts"], *new], "turns": turns},
    )
    with Store(file) as store:
        store.import_llm_logs(log)
        found = records(store, "A thread")

    assert found[1].content.endswith("[part left out: the type 'scent' is not known]")
    assert found[-1].content == "seen\n\n[part left out: the type 'hologram' is not known]"
    assert {one.timestamp.minute for one in found} == {1}
    (warning,) = [one.getMessage() for one in caplog.records]
    assert "1 times could not be read" in warning
    assert "3 parts are of a kind" in warning


def test_a_long_fragment_of_many_prompts_is_taken_up_to_what_is_allowed(
    file: str, tmp_path: Path
) -> None:
    log = make_log(
        tmp_path / "logs.db",
        responses=[response(0, f"c{n}", id=f"r{n}") for n in range(300)],
        fragments=[{"id": 1, "content": "x" * 10_000}],
        prompt_fragments=[
            {"response_id": f"r{n}", "fragment_id": 1, "order": 0} for n in range(300)
        ],
    )
    with Store(file) as store:
        with pytest.raises(ConfigError, match=r"1,000,000 bytes.*max_bytes="):
            store.import_llm_logs(log, max_bytes=1_000_000)
        for bad in (0, -1, "x", None, 1.5):
            with pytest.raises(ConfigError, match="max_bytes"):
                store.import_llm_logs(log, max_bytes=bad)  # type: ignore[arg-type]  # on purpose

        assert len(store.import_llm_logs(log)) == 300


def test_the_log_is_not_written_to(file: str, tmp_path: Path) -> None:
    log = make_log(tmp_path / "logs.db", **TALK)
    log.chmod(0o400)
    before = log.read_bytes()
    with Store(file) as store:
        assert len(store.import_llm_logs(log)) == 1

    assert log.read_bytes() == before
    assert sorted(one.name for one in tmp_path.iterdir() if "logs" in one.name) == ["logs.db"]


def test_a_log_in_use_is_read_up_to_its_last_commit(file: str, tmp_path: Path) -> None:
    log = make_log(tmp_path / "logs.db", **TALK)
    with closing(sqlite3.connect(log)) as other, Store(file) as store:
        other.execute("PRAGMA journal_mode = wal")
        other.execute("UPDATE conversations SET name = 'Renamed'")
        other.commit()
        other.execute("UPDATE conversations SET name = 'Not yet'")

        assert [context.name for context in store.import_llm_logs(log)] == ["Renamed"]


def test_what_no_database_keeps_is_replaced(file: str, tmp_path: Path) -> None:
    rows = [response(1, prompt="a\0b"), response(2, response=None)]
    log = make_log(tmp_path / "logs.db", conversations=TALK["conversations"], responses=rows)
    with closing(sqlite3.connect(log)) as connection:
        connection.execute("UPDATE responses SET response = CAST(x'61ff62' AS TEXT)")
        connection.commit()
    with Store(file) as store:
        store.import_llm_logs(log)

        assert contents(records(store, "A talk"))[:2] == ["a\ufffdb", "a\ufffdb"]


@pytest.mark.parametrize("path", [None, 5, "", "no such file.db", "\0"], ids=repr)
def test_what_is_no_path_of_a_file_is_refused(file: str, path: Any) -> None:
    with Store(file) as store, pytest.raises(ConfigError, match=r"file|path"):
        store.import_llm_logs(path)


def test_a_file_that_is_no_log_is_refused(file: str, tmp_path: Path) -> None:
    text = tmp_path / "text.db"
    text.write_text("no database at all " * 100)
    other = make_log(tmp_path / "other.db", "CREATE TABLE responses (id TEXT, body TEXT);")
    with Store(file) as store:
        for path in (text, other, file, tmp_path):
            with pytest.raises(ConfigError, match=r"log of llm|no file"):
                store.import_llm_logs(path)

        assert store.list_contexts() == []
