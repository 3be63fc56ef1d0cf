"""What the tests of the command line share."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from contextwindow import ContextWindow, StreamInterrupted
from contextwindow.cli import main
from contextwindow.testing import ScriptedModel, ScriptedReply

PAGE = (Path(__file__).resolve().parent.parent / "docs" / "cli.md").read_text("utf-8")


def run(*arguments: str, typed: str | bytes | None = None, **environment: str) -> Result:
    """Run a command in this process; what it raises comes out."""
    runner = CliRunner(env={"CONTEXTWINDOW_DB": None, "COLUMNS": "120", **environment})
    return runner.invoke(main, arguments, input=typed)


def fine(*arguments: str, typed: str | bytes | None = None, **environment: str) -> str:
    """What a command that has to succeed prints."""
    result = run(*arguments, typed=typed, **environment)
    assert result.exit_code == 0, result.output
    return result.stdout


def rows(*arguments: str, typed: str | bytes | None = None) -> list[dict[str, Any]]:
    """What a command that has to succeed prints as JSON."""
    return [json.loads(line) for line in fine(*arguments, "--json", typed=typed).splitlines()]


def talk(database: str, context: str = "alice") -> None:
    """Make a conversation, the last reply of which was cut off."""
    model = ScriptedModel(
        ["Fine, thank you.", ScriptedReply("It was a dark", fault="eof", fail_at=2)]
    )
    with ContextWindow(database, context, model=model, system_prompt="Be kind.") as window:
        window.add_prompt("How are you?")
        window.call_model()
        window.add_prompt("Tell me a story.")
        with pytest.raises(StreamInterrupted):
            window.call_model(max_resumes=0)


def documented(command: str) -> set[str]:
    """Names of the JSON fields that the documents have for *command*."""
    table = PAGE.split("## JSON")[1].split("\n## ")[0]
    (row,) = re.findall(rf"^\|[^|]*`{command}`[^|]*\|.*$", table, re.MULTILINE)
    return set(re.findall(r"`(\w+)`", row.split("|")[2]))
