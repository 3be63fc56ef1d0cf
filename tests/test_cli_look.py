"""What the command line tells of a database, and that it writes nothing for it."""

from __future__ import annotations

import json
from decimal import Decimal
from pathlib import Path

import pytest
from cli_runs import documented, fine, rows, run, talk
from support import file as file

from contextwindow import Attachment, ContextWindow, Prices, Store
from contextwindow.cli.figures import money
from contextwindow.testing import ScriptedModel

HOSTILE = "\x1b]52;c;ZXZpbA==\x07 needle [red]x[/red] \u202e"


def test_search_marks_what_it_finds_in_one_context_or_in_all(database: str) -> None:
    talk(database, "alice")
    talk(database, "bob")

    assert {one["context"] for one in rows("search", database, "fine thank")} == {"alice", "bob"}
    (hit,) = rows("search", database, "thank", "--context", "bob")
    assert hit["role"] == "assistant"
    begin, end = hit["highlights"][0]
    assert hit["snippet"][begin:end] == "thank"
    assert set(hit) <= documented("search")
    shown = fine("search", database, "thank", "-c", "bob", FORCE_COLOR="1")
    assert "\x1b[1;7mthank\x1b[0m" in shown

    result = run("search", database, "nowhere")
    assert (result.exit_code, result.stdout) == (0, "")
    assert len(rows("search", database, "fine", "--limit", "1")) == 1


def test_search_in_the_databases_own_language(file: str) -> None:
    talk(file)
    assert len(rows("search", file, "fine OR kind", "--raw")) == 2
    assert run("search", file, '"', "--raw").exit_code == 1


@pytest.mark.parametrize("command", [["search", "DB", "needle"], ["contexts", "DB"]])
def test_what_is_found_is_harmless(command: list[str], file: str) -> None:
    with ContextWindow(file, f"name {HOSTILE}") as window:
        window.add_prompt(HOSTILE)
    shown = fine(*[file if one == "DB" else one for one in command])
    assert not {"\x1b", "\x07", "\u202e"} & set(shown)
    assert "needle" in shown
    assert "[red]x[/red]" in shown


def test_stats_of_a_database_and_of_a_context(database: str) -> None:
    prices = Prices(input=Decimal(1), output=Decimal(2))
    with Store(database) as store:
        for name in ("alice", "bob"):
            model = ScriptedModel(["Fine."])
            model.prices = prices
            with ContextWindow(store, name, model=model) as window:
                window.add_prompt("How are you?")
                cost = window.call_model().cost
                used = window.total_tokens()
    assert cost

    (all_,) = rows("stats", database)
    assert (all_["contexts"], all_["records"], all_["calls"]) == (2, 4, 2)
    assert Decimal(all_["cost"]) == 2 * cost
    (one,) = rows("stats", database, "alice")
    assert one["input_tokens"] + one["output_tokens"] == used
    assert Decimal(one["cost"]) == cost
    assert set(all_) | set(one) <= documented("stats") | documented("stats --by")
    assert "$" in fine("stats", database)
    assert "alice" in fine("stats", database, "alice")


@pytest.mark.parametrize("by", ["day", "model", "context", "total"])
def test_usage_of_one_context_is_told_as_that_of_all(by: str, database: str) -> None:
    talk(database)
    (of_all,) = rows("stats", database, "--by", by)
    (of_one,) = rows("stats", database, "alice", "--by", by)
    assert of_all == of_one
    assert set(of_one) <= documented("stats") | documented("stats --by")
    assert "calls" in fine("stats", database, "--by", by)


@pytest.mark.parametrize(
    ("dollars", "shown"),
    [
        ("0", "$0.00"),
        ("0.000000123456", "$0.000000123"),
        ("0.0312", "$0.0312"),
        ("0.5", "$0.5"),
        ("0.9999", "$1.00"),
        ("1234.567", "$1,234.57"),
    ],
)
def test_small_and_large_costs_are_told(dollars: str, shown: str) -> None:
    assert money(Decimal(dollars)) == shown


def test_usage_of_nothing_is_no_row(file: str) -> None:
    with ContextWindow(file, "alice"):
        pass
    assert rows("stats", file, "--by", "day") == []
    assert rows("stats", file, "alice", "--by", "model") == []
    assert rows("stats", file)[0]["calls"] == 0


def test_tail_gives_each_whole_record_as_json(file: str) -> None:
    talk(file)
    told = rows("tail", file, "alice", "--until-idle", "0.05", "-n", "3")
    assert [one["text"] for one in told] == ["Fine, thank you.", "Tell me a story."]
    assert told == [one for one in rows("show", file, "alice") if not one["partial"]][2:]


def test_every_field_of_a_record_and_of_a_context_is_documented(file: str) -> None:
    talk(file)
    with ContextWindow(file, "alice") as window:
        window.add_prompt("see", [Attachment(media_type="text/plain", data=b"x")])
    record = rows("show", file, "alice")[-1]
    assert set(record) | set(record["attachments"][0]) <= documented("show")
    assert set(rows("contexts", file)[0]) <= documented("contexts")
    found = json.loads(fine("doctor", file, "--json"))
    assert set(found) <= documented("doctor")


def test_looking_further_writes_nothing(file: str) -> None:
    talk(file)
    before = Path(file).read_bytes()
    fine("search", file, "fine")
    fine("stats", file)
    fine("stats", file, "alice", "--by", "day")
    fine("export", file, "alice")
    fine("prune", file, "--older-than", "1s", "--dry-run")
    fine("tail", file, "alice", "--until-idle", "0.05", "--json")
    assert Path(file).read_bytes() == before
