"""What the command line changes, moves and deletes."""

from __future__ import annotations

import json
import sqlite3
import stat
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cli_runs import documented, fine, rows, run, talk
from llm_tables import FIRST
from support import contents
from support import file as file

from contextwindow import ContextWindow, Store
from contextwindow.store.schema import REVISION
from contextwindow.testing import FakeProvider


def names(database: str) -> list[str]:
    with Store(database, read_only=True) as store:
        return sorted(one.name for one in store.list_contexts())


def texts(database: str, context: str) -> list[str]:
    with Store(database, read_only=True) as store, ContextWindow(store, context) as window:
        return contents(window.live_records())


def test_an_export_comes_back_whole(database: str, tmp_path: Path) -> None:
    talk(database)
    fine("export", database, "alice", "-o", str(tmp_path / "alice.json"))
    copy = str(tmp_path / "new.db")

    (told,) = rows("import", copy, str(tmp_path / "alice.json"))

    assert texts(copy, "alice") == texts(database, "alice")
    assert (told["name"], told["records"]) == ("alice", 5)
    assert set(told) <= documented("import")
    assert fine("import", copy, "-", "--name", "b", typed=fine("export", database, "alice"))
    assert names(copy) == ["alice", "b"]
    assert run("import", copy, str(tmp_path / "alice.json")).exit_code == 1


@pytest.mark.parametrize("form", ["openai", "anthropic"])
def test_messages_go_out_and_come_in(form: str, file: str, tmp_path: Path) -> None:
    talk(file)
    messages = fine("export", file, "alice", "--format", form)
    fine("import", file, "-", "--name", "again", typed=messages)
    assert texts(file, "again")[:3] == ["Be kind.", "How are you?", "Fine, thank you."]
    assert names(file) == ["again", "alice"]


@pytest.mark.parametrize(("form", "mark"), [("markdown", "# alice"), ("html", "<!doctype html>")])
def test_documents_go_out(form: str, mark: str, file: str) -> None:
    talk(file)
    assert fine("export", file, "alice", "--format", form).lower().startswith(mark)


def test_a_log_of_llm_comes_in_once(file: str, tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "logs.db")) as log:
        log.executescript(FIRST)
        log.execute("INSERT INTO conversations VALUES ('c', 'Pelicans', 'm')")
        log.execute(
            "INSERT INTO responses (id, prompt, response, conversation_id) VALUES ('r','a','b','c')"
        )
        log.commit()
    log_file = str(tmp_path / "logs.db")

    assert run("import", file, log_file, "--name", "x").exit_code == 2
    assert fine("import", file, log_file) == "Pelicans: 2 records\n"
    assert "before" in run("import", file, log_file).stderr
    assert names(file) == ["Pelicans"]


def test_what_is_nothing_of_these_is_refused_and_makes_no_database(
    file: str, tmp_path: Path
) -> None:
    (tmp_path / "x.json").write_text('{"a": 1}')
    assert run("import", file, str(tmp_path / "x.json")).exit_code == 1
    assert run("import", file, "/nowhere/x.json").exit_code == 2
    assert not Path(file).exists()


def test_an_export_is_for_its_owner_alone_and_never_the_database(file: str, tmp_path: Path) -> None:
    talk(file)
    before = Path(file).read_bytes()
    out = tmp_path / "out.json"
    fine("export", file, "alice", "-o", str(out))
    assert stat.S_IMODE(out.stat().st_mode) == 0o600
    assert "--force" in run("export", file, "alice", "-o", str(out)).stderr
    fine("export", file, "alice", "-o", str(out), "--force", "--format", "markdown")
    assert out.read_text().startswith("# alice")

    for name in (file, f"{file}-wal"):
        Path(name).touch()
        assert run("export", file, "alice", "-o", name, "--force").exit_code == 1
    assert Path(file).read_bytes() == before
    assert not list(tmp_path.glob(".contextwindow-*"))


def test_a_fork_ends_where_it_is_told_to(database: str) -> None:
    talk(database)
    at = rows("show", database, "alice")[2]["id"]
    fine("fork", database, "alice", "whole")
    fine("fork", database, "alice", "part", "--at", str(at))
    assert texts(database, "whole") == texts(database, "alice")
    assert texts(database, "part") == ["Be kind.", "How are you?", "Fine, thank you."]
    assert run("fork", database, "alice", "other", "--at", "999").exit_code == 1


def test_compacting_makes_room_or_only_tells(file: str) -> None:
    with ContextWindow(file, "alice") as window:
        for number in range(20):
            window.add_prompt(f"question {number}")
    before = len(texts(file, "alice"))

    (told,) = rows("compact", file, "alice", "--dry-run")
    assert told["removed"]
    assert set(told) <= documented("compact")
    assert len(texts(file, "alice")) == before
    assert "would leave" in fine("compact", file, "alice", "--dry-run", "--max-tokens", "100")

    assert "left the window" in fine("compact", file, "alice")
    assert len(texts(file, "alice")) == before - len(told["removed"])


def test_a_model_summarises_what_leaves(file: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "test")
    with ContextWindow(file, "alice") as window:
        for number in range(20):
            window.add_prompt(f"a rather long question about the number {number} " * 20)
    with FakeProvider("They asked about numbers.") as provider:
        url = ("--base-url", provider.openai_url)
        (told,) = rows("compact", file, "alice", "-m", "openai-chat:m", *url)
    assert told["summary_id"]
    assert texts(file, "alice")[0] == "They asked about numbers."


def test_deleting_asks_for_the_name(file: str) -> None:
    talk(file)
    result = run("delete", file, "alice", typed="bob\n")
    assert (result.exit_code, names(file)) == (1, ["alice"])
    assert run("delete", file, "alice", typed="").exit_code == 1
    fine("delete", file, "alice", typed="alice\n")
    assert names(file) == []


def test_deleting_securely_leaves_no_byte(file: str) -> None:
    talk(file)
    fine("delete", file, "alice", "--yes", "--secure")
    assert b"story" not in Path(file).read_bytes()


def test_secure_deletion_on_a_server_is_refused_before_anything_is_deleted(postgresql: str) -> None:
    talk(postgresql)
    assert run("delete", postgresql, "alice", "--yes", "--secure").exit_code == 1
    assert names(postgresql) == ["alice"]
    fine("delete", postgresql, "alice", "--yes")


def test_pruning_asks_and_deletes_what_is_old(database: str) -> None:
    talk(database, "alice")
    talk(database, "bob")

    assert rows("prune", database, "--older-than", "90d", "--yes") == []
    told = rows("prune", database, "--older-than", "0s", "--dry-run")
    assert [(one["name"], one["deleted"]) for one in told] == [("alice", False), ("bob", False)]
    assert set(told[0]) <= documented("prune")
    assert run("prune", database, "--older-than", "0s", typed="n\n").exit_code == 1
    assert names(database) == ["alice", "bob"]
    fine("prune", database, "--older-than", "0s", typed="y\n")
    assert names(database) == []


@pytest.mark.parametrize("age", ["x", "90", "9999999999w", "-3d", ""])
def test_an_age_that_is_none_is_a_wrong_call(age: str, file: str) -> None:
    talk(file)
    assert run("prune", file, f"--older-than={age}", "--yes").exit_code == 2
    assert names(file) == ["alice"]


def test_a_date_is_an_age(file: str) -> None:
    talk(file)
    tomorrow = (datetime.now(UTC) + timedelta(days=1)).date().isoformat()
    assert run("prune", file, "--older-than", tomorrow, "--yes").exit_code == 1
    assert rows("prune", file, "--older-than", "2001-01-31", "--yes") == []


def test_migrate_says_from_where_to_where_and_where_the_copy_is(go_file: Path) -> None:
    database = str(go_file)
    refused = run("contexts", database)
    assert refused.exit_code == 1
    assert "contextwindow migrate" in refused.stderr

    (told,) = rows("migrate", database)
    assert (told["from_revision"], told["to_revision"]) == ("0000", REVISION)
    assert Path(told["copy"]).exists()
    assert set(told) <= documented("migrate")
    assert "nothing was to do" in fine("migrate", database)
    assert rows("migrate", database)[0]["from_revision"] == REVISION


@pytest.mark.parametrize(
    "command", [["doctor", "DB"], ["prune", "DB", "--older-than", "10000w"], ["migrate", "DB"]]
)
def test_every_command_that_writes_says_what_it_has_migrated(
    command: list[str], go_file: Path
) -> None:
    result = run(*[str(go_file) if one == "DB" else one for one in command])
    (copy,) = go_file.parent.glob(f"{go_file.name}.backup-*")
    assert f"to {REVISION}" in result.output
    assert str(copy) in result.output


def test_resume_prints_the_rest_by_the_model_that_was_called_last(
    file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "test")
    talk(file)
    whole = "It was a dark and stormy night."
    with FakeProvider(whole) as provider:
        url = ("--base-url", provider.openai_url)
        assert "scripted" in run("resume", file, "alice").stderr
        rest = fine("resume", file, "alice", "-m", "openai-chat:m", *url)
        assert provider.requests
        assert run("resume", file, "alice", "-m", "openai-chat:m", *url).exit_code == 1
    assert "stormy night." in rest
    assert texts(file, "alice")[-1].endswith(rest.rstrip("\n"))
    assert json.loads(fine("show", file, "alice", "--json").splitlines()[-1])["partial"] is False
