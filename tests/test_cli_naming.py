"""How the command line is told which database, what it completes, and how it ends."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from cli_runs import fine, run, talk
from click.testing import CliRunner
from support import file as file

from contextwindow import ContextWindow, Store, StoreBusy
from contextwindow.cli import figures, main
from contextwindow.testing import FakeProvider, FakeReply, ScriptedModel, ScriptedReply

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def other(tmp_path: Path) -> str:
    """A second database, with a context of its own."""
    path = str(tmp_path / "other.db")
    talk(path, "carol")
    return path


def test_an_option_or_the_environment_stand_for_the_first_argument(file: str) -> None:
    talk(file)
    said = fine("show", file, "alice")
    assert fine("show", "--db", file, "alice") == said
    assert fine("show", "alice", "--db", file) == said
    assert fine("show", "alice", CONTEXTWINDOW_DB=file) == said
    assert "alice" in fine("contexts", CONTEXTWINDOW_DB=file)
    assert "Fine" in fine("search", "thank", "-c", "alice", CONTEXTWINDOW_DB=file)


def test_a_first_argument_goes_before_the_environment(file: str, other: str) -> None:
    talk(file)
    assert "carol" in fine("contexts", other, CONTEXTWINDOW_DB=file)
    assert fine("show", other, "carol", CONTEXTWINDOW_DB=file)
    assert "carol" in fine("stats", other, "carol", CONTEXTWINDOW_DB=file)
    assert "alice" in fine("stats", "alice", CONTEXTWINDOW_DB=file)
    assert "carol" in fine("contexts", "--db", other, CONTEXTWINDOW_DB=file)


def test_a_database_that_is_named_twice_or_not_at_all_is_a_wrong_call(file: str) -> None:
    talk(file)
    assert run("show", file, "alice", "--db", file).exit_code == 2
    result = run("contexts")
    assert result.exit_code == 2
    assert "CONTEXTWINDOW_DB" in result.stderr
    assert run("contexts", CONTEXTWINDOW_DB="").exit_code == 2


@pytest.mark.parametrize("name", sorted(main.commands))
def test_every_command_has_help_without_a_database(name: str) -> None:
    assert (
        f"contextwindow {name}"
        in CliRunner().invoke(main, [name, "-h"], prog_name="contextwindow").output
    )


def test_help_loads_no_database_and_no_providers_sdk() -> None:
    code = """
import sys
from click.testing import CliRunner
from contextwindow.cli import main
for name in ["", *main.commands]:
    assert CliRunner().invoke(main, [*name.split(), "--help"]).exit_code == 0
heavy = {"sqlalchemy", "alembic", "openai", "anthropic", "google.genai", "rich", "tiktoken"}
assert not heavy & set(sys.modules), heavy & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, timeout=60)


def test_another_turn_is_busy(file: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "test")
    model = ScriptedModel([ScriptedReply(["one ", "two"])])
    with FakeProvider() as provider, ContextWindow(file, "alice", model=model) as window:
        window.add_prompt("count")
        with window.call_model_streaming() as stream:
            next(iter(stream))
            url = ("--base-url", provider.openai_url)
            result = run("chat", file, "-m", "openai-chat:m", "-c", "alice", *url, typed="hi\n")
    assert result.exit_code == 4
    assert result.stderr.count("\n") == 1


def test_a_database_that_is_held_is_busy(file: str, monkeypatch: pytest.MonkeyPatch) -> None:
    talk(file)

    def held(*_: object, **__: object) -> Any:
        raise StoreBusy("another program holds it")

    monkeypatch.setattr(figures, "_overview", held)
    assert run("stats", file).exit_code == 4


def test_a_providers_failure_is_status_5_and_shows_no_key(
    file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = "sk-verysecretverysecret"
    monkeypatch.setenv("OPENAI_API_KEY", key)
    with FakeProvider() as provider:
        provider.default = FakeReply(status=401)
        url = ("--base-url", provider.openai_url)
        result = run("chat", file, "-m", "openai-chat:m", *url, typed="hi\n")
    assert result.exit_code == 5
    assert result.stderr.count("\n") == 1
    assert key not in result.output


def test_a_password_in_a_url_is_not_shown() -> None:
    result = run("contexts", "postgresql://me:hunter2hunter2@127.0.0.1:1/none")
    assert result.exit_code == 1
    assert result.stderr.count("\n") == 1
    assert "hunter2" not in result.output


def test_a_bug_is_one_line_too(file: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> Any:
        raise ValueError("first\nsecond \x1b[31m")

    talk(file)
    monkeypatch.setattr(figures, "_overview", broken)
    result = run("stats", file)
    assert (result.exit_code, result.stderr.count("\n")) == (1, 1)
    assert "ValueError: first second \u241b" in result.stderr


def test_a_reader_who_leaves_is_no_error(file: str) -> None:
    with ContextWindow(file, "alice") as window:
        for _ in range(50):
            window.add_prompt("word " * 2000)
    command = [sys.executable, "-m", "contextwindow", "show", file, "alice"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.read(10)
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(timeout=60) == 0


def completed(*words: str, **environment: str) -> list[str]:
    """What a shell would be offered for the last of *words*."""
    result = CliRunner(
        env={
            "CONTEXTWINDOW_DB": None,
            "_CONTEXTWINDOW_COMPLETE": "bash_complete",
            "COMP_WORDS": " ".join(["contextwindow", *words]),
            "COMP_CWORD": str(len(words)),
            **environment,
        }
    ).invoke(main, prog_name="contextwindow")
    return [line.partition(",")[2] for line in result.output.split()]


def test_names_of_contexts_complete_from_the_database(file: str) -> None:
    with Store(file) as store:
        for name in ("alice", "albert", "bob", "al\x1b[31m", "al\nx"):
            ContextWindow(store, name)
    assert completed("show", file, "al") == ["albert", "alice"]
    assert completed("show", "al", CONTEXTWINDOW_DB=file) == ["albert", "alice"]
    assert completed("show", "--db", file, "b") == ["bob"]
    assert completed("fork", file, "b") == ["bob"]
    assert completed("chat", file, "-c", "b") == ["bob"]
    assert completed("stats", "b", CONTEXTWINDOW_DB=file) == ["bob"]
    assert completed("show", file, "b", CONTEXTWINDOW_DB="other.db") == ["bob"]
    assert completed("sea") == ["search"]


def test_completing_is_silent_where_there_is_no_database(tmp_path: Path) -> None:
    (tmp_path / "x.db").write_bytes(b"no database")
    assert completed("show", str(tmp_path / "x.db"), "a") == []
    assert completed("show", str(tmp_path / "none.db"), "a") == []
    assert sorted(tmp_path.iterdir()) == [tmp_path / "x.db"]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_script_for_each_shell(shell: str) -> None:
    assert "_CONTEXTWINDOW_COMPLETE" in fine("completion", shell)


def test_a_real_shell_completes_names(file: str, tmp_path: Path) -> None:
    bash = shutil.which("bash")
    assert bash
    talk(file)
    program = tmp_path / "bin" / "contextwindow"
    program.parent.mkdir()
    program.write_text(
        f'#!/bin/sh\nexec {sys.executable} -c "from contextwindow.cli import main; '
        'main(prog_name=\'contextwindow\')" "$@"\n'
    )
    program.chmod(0o755)
    script = f"""
eval "$(contextwindow completion bash)"
COMP_WORDS=(contextwindow show {file} al) COMP_CWORD=3
_contextwindow_completion contextwindow
echo "${{COMPREPLY[@]}}"
"""
    done = subprocess.run(
        [bash, "-c", script],
        env={
            **os.environ,
            "PATH": f"{program.parent}:{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
        },
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout.strip() == "alice", done.stderr


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_name_that_a_shell_would_obey_is_not_offered(tmp_path: Path, shell: str) -> None:
    path = str(tmp_path / "x.db")
    hostile = [
        "x$(touch pwned)",
        "x`touch pwned`",
        "x;touch",
        "x y",
        "--yes",
        "x*",
        "x'",
        'x"',
        "x\\",
    ]
    with Store(path) as store:
        for name in ("x-1", *hostile):
            ContextWindow(store, name)
    found = CliRunner().invoke(
        main,
        [],
        prog_name="contextwindow",
        env={
            "_CONTEXTWINDOW_COMPLETE": f"{shell}_complete",
            "COMP_WORDS": f"contextwindow show {path} x",
            "COMP_CWORD": "3" if shell != "fish" else "x",
        },
    )
    assert "x-1" in found.output
    for name in hostile:
        assert name not in found.output


@pytest.mark.parametrize("scheme", ["", "sqlite:///", "sqlite+pysqlite:///"])
def test_a_database_is_known_however_it_is_written(tmp_path: Path, scheme: str) -> None:
    path = tmp_path / "x.db"
    ContextWindow(path, "alice").close()
    before = path.read_bytes()

    result = run("export", f"{scheme}{path}", "alice", "-o", str(path), "--force")
    assert (result.exit_code, "database itself" in result.output) == (1, True)
    assert path.read_bytes() == before

    for command in (["delete", "-y"], ["show"], ["doctor"], ["fork"]):
        name, *options = command
        arguments = {"doctor": [], "fork": ["alice", "bob"]}.get(name, ["alice"])
        result = run(name, f"{scheme}{tmp_path}/none.db", *arguments, *options)
        assert result.exit_code in (2, 3)
        assert "does not exist" in result.output
        assert not (tmp_path / "none.db").exists()


@pytest.mark.parametrize(
    "url", ["postgresql+psycopg://u:SECRETPW@127.0.0.1:1/x", "postgresql:/u:SECRETPW@h/x"]
)
def test_a_password_in_an_address_is_never_shown(url: str) -> None:
    for arguments in (
        ["doctor", url, "--json"],
        ["doctor", url],
        ["show", url, "a"],
        ["contexts", url],
    ):
        result = run(*arguments)
        assert result.exit_code != 0
        assert "SECRETPW" not in result.output
