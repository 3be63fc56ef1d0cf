"""What calls use and cost: per call, turn, reply, context and day, through restarts and crashes."""

from __future__ import annotations

import subprocess
import sys
from decimal import Decimal
from pathlib import Path
from typing import Any

import other_wires
import pytest
import sqlalchemy as sa
from openai_server import serving
from support import Open, Recorder, check_order, file, problems, read, ready, run, states

from contextwindow import (
    Call,
    ConfigError,
    ContextStats,
    ContextWindow,
    Middleware,
    Model,
    OpenAIChatModel,
    OpenAIResponsesModel,
    Overloaded,
    Prices,
    RateLimited,
    RecordType,
    Store,
    Usage,
    UsageReport,
    tool,
)
from contextwindow.models.catalog import CallPrices, price, price_written
from contextwindow.models.sdk_model import plain_url
from contextwindow.store.migrating import migrate
from contextwindow.store.values import parse_time
from contextwindow.testing import FakeProvider, FakeReply, ScriptedModel, ScriptedReply

__all__ = ["file", "run"]

TWO_TEN = Prices(2, 10)
"""A million tokens in for 2 dollars, out for 10."""

ONE = Decimal("0.000070")
"""What `USED` costs by `TWO_TEN`."""

USED = Usage(10, 5)

# -- prices ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prices", "usage", "dollars"),
    [
        (Prices(2, 10), Usage(1_000_000, 100_000), "3"),
        (Prices("0.10", "0.40"), Usage(1, 1), "0.0000005"),
        (Prices(0.1, 0.4), Usage(1, 1), "0.0000005"),
        (Prices(Decimal(2), 10, cache_read="0.2"), Usage(100, 0, 50), "0.00011"),
        (Prices(2, 10, cache_write="2.5"), Usage(100, 0, 0, 50), "0.000225"),
        (Prices(2, 10, "0.2", "2.5"), Usage(100, 10, 50, 25), "0.0002225"),
        (Prices(2, 10), Usage(100, 10, 50, 25), "0.0003"),
        (Prices(2, 10), Usage(0, 10, reasoning_tokens=9), "0.0001"),
        (Prices(0, 0), Usage(100, 10), "0"),
    ],
)
def test_prices_are_for_a_million_tokens(prices: Prices, usage: Usage, dollars: str) -> None:
    assert prices.cost(usage) == Decimal(dollars)


@pytest.mark.parametrize(
    "bad", [-1, "-0.1", float("nan"), float("inf"), "NaN", "cheap", "", True, None, [1], 10**6]
)
def test_a_price_that_is_none_is_refused(bad: Any) -> None:
    with pytest.raises(ConfigError, match=r"input must be US dollars.*not"):
        Prices(bad, 1)
    with pytest.raises(ConfigError, match="output must be"):
        Prices(1, bad)
    if bad is not None:
        with pytest.raises(ConfigError, match="cache_read must be"):
            Prices(1, 1, cache_read=bad)


@pytest.mark.parametrize("bad", [5, "cheap", (1, 2), {"input": 1}])
def test_prices_of_a_model_are_prices_or_a_function(bad: Any) -> None:
    model = ScriptedModel(["x"])
    with pytest.raises(ConfigError, match="prices must be"):
        model.prices = bad
    assert model.prices is None


# -- the catalog: by hand, dollars a million tokens from the providers' pages ---------------


@pytest.mark.parametrize(
    ("provider", "model", "usage", "dollars"),
    [
        # 6,000 * 1.25 + 4,000 * 0.125 + 1,000 * 10
        ("openai", "gpt-5", Usage(10_000, 1_000, 4_000, 0, 800), "0.018"),
        # 4,000 * 5 + 4,000 * 0.50 + 2,000 * 6.25 + 1,000 * 25
        ("anthropic", "claude-opus-4-5", Usage(10_000, 1_000, 4_000, 2_000), "0.0595"),
        # 6,000 * 0.30 + 4,000 * 0.03 + 1,000 * 2.50
        ("google", "gemini-2.5-flash", Usage(10_000, 1_000, 4_000, 0, 900), "0.00442"),
        # OpenAI charges what it writes to its cache as any input: 10,000 * 1.25
        ("openai", "gpt-5", Usage(10_000, 0, 0, 5_000), "0.0125"),
        # above 200,000 all input costs more: 300,000 * 2.50 + 1,000 * 15
        ("google", "gemini-2.5-pro", Usage(300_000, 1_000), "0.765"),
    ],
)
def test_the_catalog_prices_cached_and_reasoning_tokens_right(
    provider: str, model: str, usage: Usage, dollars: str
) -> None:
    assert price(provider, model, usage) == Decimal(dollars)


def test_a_service_tier_has_prices_of_its_own() -> None:
    usage = Usage(10_000, 1_000)
    usual = price("openai", "gpt-5", usage)
    assert usual is not None

    assert price("openai", "gpt-5", usage, tier="flex") == usual / 2
    assert price("openai", "gpt-5", usage, tier="auto") == usual


@pytest.mark.parametrize(
    ("provider", "model"),
    [
        *(("openai", "no-such-model"), ("no-such-provider", "gpt-5"), ("", "gpt-5")),
        *(("scripted", "gpt-5"), ("openrouter", "deepseek/deepseek-r1:free")),
    ],
)
def test_a_price_that_is_not_known_is_none_and_never_0(provider: str, model: str) -> None:
    assert price(provider, model, Usage(1_000, 100)) is None


def _chat(base_url: str | None, name: str = "gpt-4o") -> OpenAIChatModel:
    return OpenAIChatModel(name, api_key="sk-test", base_url=base_url)


@pytest.mark.parametrize(
    ("url", "name", "dollars"),
    [
        (None, "gpt-4o", "0.0035"),
        ("https://api.openai.com/v1", "gpt-4o", "0.0035"),
        ("https://eu.api.openai.com/v1", "gpt-4o", "0.0035"),
        ("http://localhost:11434/v1", "gpt-4o", None),
        ("https://llm.example.org/openai/v1", "gpt-4o", None),
        ("https://api.deepseek.com/v1", "gpt-4o", None),
        ("https://mine.openai.azure.com/openai/v1", "my-deployment", None),
        ("https://mine.openai.azure.com/openai/v1", "gpt-4o", "0.0035"),
        ("https://api.groq.com/openai/v1", "llama-3.3-70b-versatile", "0.000669"),
    ],
)
def test_a_server_is_priced_by_its_address(
    monkeypatch: pytest.MonkeyPatch, url: str | None, name: str, dollars: str | None
) -> None:
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    usage = Usage(1_000, 100)

    found = CallPrices(_chat(url, name))(usage)

    assert found == (None if dollars is None else Decimal(dollars))


def test_the_model_that_answered_is_priced_where_it_is_known() -> None:
    deployment = CallPrices(_chat("https://mine.openai.azure.com/openai/v1", "mine"))
    usage = Usage(1_000, 100)

    assert deployment(usage) is None
    assert deployment(usage, "gpt-4o-2024-11-20") == Decimal("0.0035")
    assert CallPrices(_chat(None, "gpt-4o"))(usage, "gpt-unheard-of") == Decimal("0.0035")


def test_prices_of_the_caller_come_first() -> None:
    model = _chat("http://localhost:11434/v1")
    model.prices = TWO_TEN
    assert CallPrices(model)(USED, "gpt-4o") == ONE
    model.prices = lambda usage: Decimal(usage.output_tokens)
    assert CallPrices(model)(USED) == 5
    model.prices = lambda usage: None
    assert CallPrices(_chat(None))(USED) is not None
    assert CallPrices(model)(USED) is None
    model.prices = None
    assert CallPrices(model)(USED) is None


@pytest.mark.parametrize("nonsense", ["cheap", float("nan"), -1, True, 10**9, object()])
def test_a_price_function_that_gives_nonsense_leaves_the_cost_unknown(
    nonsense: Any, caplog: pytest.LogCaptureFixture
) -> None:
    model = ScriptedModel(["x"])
    model.prices = lambda usage: nonsense

    assert CallPrices(model)(USED) is None
    assert "prices of a model failed" in caplog.text


def test_an_address_is_kept_without_what_may_be_secret() -> None:
    assert plain_url("https://me:key@host:8/v1?api-key=x#y") == "https://host:8/v1"


# -- one turn ----------------------------------------------------------------------------


def priced(
    run: Open, database: str, *script: Any, prices: Any = TWO_TEN, **options: Any
) -> ContextWindow:
    """A window with a prompt, whose model's tokens have *prices*."""
    model = ScriptedModel(script, **options.pop("model", {}))
    model.prices = prices
    window = run(database, "chat", model=model, **options)
    window.add_prompt("count")
    return window


def stats(database: str, name: str = "chat") -> ContextStats:
    with Store(database) as store:
        found = store.context_stats(name)
    assert isinstance(found, ContextStats)
    return found


def test_call_turn_reply_and_report_agree(database: str, run: Open) -> None:
    window = priced(run, database, ScriptedReply("one", usage=USED))
    stream = window.call_model_streaming()

    chunks, error = read(stream)

    assert error is None
    [report] = [chunk for chunk in chunks if isinstance(chunk, UsageReport)]
    [call], [turn] = window.calls(), window.turns()
    for one in (report, call, turn, stream.reply, stats(database)):
        assert (one.usage, one.cost) == (USED, ONE)
    assert problems(database) == []


def test_a_turn_with_tools_costs_what_its_calls_cost(database: str, run: Open) -> None:
    @tool
    def look() -> str:
        return "there"

    script = [
        ScriptedReply(tool_calls=[("look", {})], usage=Usage(100, 10)),
        ScriptedReply(tool_calls=[("look", {})], usage=Usage(200, 20, 150)),
        ScriptedReply("done", usage=Usage(300, 30, reasoning_tokens=25)),
    ]
    window = priced(run, database, *script, tools=[look])

    reply = window.call_model()

    assert [call.cost for call in window.calls()] == [
        *(Decimal("0.0003"), Decimal("0.0006"), Decimal("0.0009"))
    ]
    assert reply.usage == window.turns()[0].usage == Usage(600, 60, 150, 0, 25)
    assert reply.cost == window.turns()[0].cost == stats(database).cost == Decimal("0.0018")
    assert stats(database).calls == 3
    assert problems(database) == []


def test_a_turn_with_a_call_of_unknown_price_has_none(database: str, run: Open) -> None:
    @tool
    def look() -> str:
        return "there"

    def sometimes(usage: Usage) -> Decimal | None:
        return None if usage.input_tokens == 200 else Decimal(1)

    script = [
        ScriptedReply(tool_calls=[("look", {})], usage=Usage(100, 10)),
        ScriptedReply("done", usage=Usage(200, 20)),
        ScriptedReply("again", usage=Usage(100, 20)),
    ]
    window = priced(run, database, *script, tools=[look], prices=sometimes)

    reply = window.call_model()

    assert [call.cost for call in window.calls()] == [Decimal(1), None]
    assert reply.cost is None
    assert window.turns()[0].cost is None
    window.add_prompt("more")
    assert window.call_model().cost == 1
    found = stats(database)
    assert (found.cost, found.unpriced_calls, found.calls) == (Decimal(2), 1, 3)
    assert problems(database) == []


def test_without_a_price_nothing_costs_0(database: str, run: Open) -> None:
    window = ready(run, database, ScriptedReply("one", usage=USED))

    reply = window.call_model()

    found = stats(database)
    assert (reply.cost, window.calls()[0].cost, window.turns()[0].cost) == (None, None, None)
    assert (found.cost, found.unpriced_calls) == (None, 1)


def test_a_model_that_is_free_costs_0(database: str, run: Open) -> None:
    window = priced(run, database, ScriptedReply("one", usage=USED), prices=Prices(0, 0))

    assert window.call_model().cost == 0
    assert stats(database).cost == stats(database).unpriced_calls == 0


def test_prices_are_kept_with_the_call_and_a_function_is_not(file: str, run: Open) -> None:
    window = priced(run, file, "one", "two", prices=Prices("0.5", 2, cache_read="0.05"))
    window.call_model()
    assert window.calls()[0].options["prices"] == {
        "input": "0.5",
        "output": "2",
        "cache_read": "0.05",
    }

    window = priced(run, file, "one", prices=lambda usage: Decimal(1))
    window.call_model()
    assert window.calls()[1].options["prices"] is None


def test_the_first_price_is_looked_up_outside_of_the_transaction(file: str, run: Open) -> None:
    other = Store(file)

    def slow(usage: Usage) -> Decimal:
        with other.database.write() as connection:
            connection.execute("UPDATE contexts SET max_tokens = 5")
        return Decimal(1)

    window = priced(run, file, "one", prices=slow)

    assert window.call_model().cost == 1
    other.close()


# -- totals ------------------------------------------------------------------------------


def test_totals_survive_a_restart_and_go_on(database: str, run: Open) -> None:
    window = priced(run, database, ScriptedReply("a", usage=USED), ScriptedReply("b", usage=USED))
    window.call_model()
    window.add_prompt("more")
    window.call_model()
    before = window.context_stats()
    window.close()

    assert stats(database) == before
    window = priced(run, database, ScriptedReply("c", usage=Usage(90, 5, 80, 1, 2)))
    assert (before.calls, before.usage, before.cost) == (2, Usage(20, 10), 2 * ONE)
    window.call_model()

    after = window.context_stats()
    assert (after.calls, after.usage) == (3, Usage(110, 15, 80, 1, 2))
    assert after.cost == 2 * ONE + Decimal("0.00023")
    assert window.total_tokens() == after.usage.total_tokens == 125
    assert problems(database) == []


def test_a_copy_has_used_nothing(database: str, run: Open) -> None:
    window = priced(run, database, ScriptedReply("a", usage=USED))
    window.call_model()
    window.fork("copy")
    window.import_context(window.export_context(), "import")

    for name in ("copy", "import"):
        found = stats(database, name)
        assert found.calls == found.cost == 0
        assert found.usage == Usage()
    assert problems(database) == []


def test_usage_is_summed_by_day_model_context_and_in_all(database: str, run: Open) -> None:
    window = priced(run, database, ScriptedReply("a", usage=USED), ScriptedReply("b", usage=None))
    window.call_model()
    window.add_prompt("more")
    window.call_model()
    window.close()
    other = ScriptedModel([ScriptedReply("c", usage=Usage(7, 3, 2, 1, 1))], name="other")
    window = run(database, "second", model=other)
    window.add_prompt("hi")
    window.call_model()
    with Store(database) as store:
        first = window.calls()[0].started
        by_model, by_context = store.usage("model"), store.usage("context")
        [total], days = store.usage("total"), store.usage()
        with pytest.raises(ConfigError, match=r"by 'week'.*day"):
            store.usage("week")

    assert [(row["provider"], row["model"], row["calls"]) for row in by_model] == [
        ("scripted", "other", 1),
        ("scripted", "scripted", 2),
    ]
    assert by_model[0] == {
        "provider": "scripted", "model": "other", "calls": 1, "input_tokens": 7,
        "output_tokens": 3, "cache_read_tokens": 2, "cache_write_tokens": 1,
        "reasoning_tokens": 1, "estimated_calls": 0, "unpriced_calls": 1, "cost": None,
    }  # fmt: skip
    assert [(row["context"], row["calls"]) for row in by_context] == [("chat", 2), ("second", 1)]
    assert by_context[0]["estimated_calls"] == 1
    assert (total["calls"], total["unpriced_calls"]) == (3, 1)
    assert total["cost"] == by_context[0]["cost"] == stats(database).cost
    assert isinstance(total["cost"], Decimal)
    assert [row["day"] for row in days] == [f"{first:%Y-%m-%d}"]
    assert {**days[0], "day": None} == {"day": None, **total}


def test_a_database_without_calls_has_no_usage(database: str) -> None:
    with Store(database) as store:
        assert store.usage() == []
        assert store.usage("context") == []
        [total] = store.usage("total")
    assert (total["calls"], total["input_tokens"], total["cost"]) == (0, 0, 0)


def _view(database: str) -> list[dict[str, Any]]:
    url = database if "://" in database else sa.URL.create("sqlite", database=database)
    engine = sa.create_engine(url)
    with engine.connect() as connection:
        rows = connection.exec_driver_sql("SELECT * FROM usage_by_day ORDER BY day").mappings()
        found = [dict(row) for row in rows]
    engine.dispose()
    return found


def test_the_view_counts_by_day_of_utc_and_what_is_not_priced(database: str, run: Open) -> None:
    replies = [ScriptedReply("x", usage=Usage(10 * number, 5)) for number in range(1, 4)]
    window = priced(run, database, *replies, prices=lambda u: None if u.input_tokens > 20 else ONE)
    for number in range(3):
        if number:
            window.add_prompt("more")
        window.call_model()
    first, second, third = (call.id for call in window.calls())
    with Store(database) as store, store.database.write() as connection:
        for number, moment in (
            (first, "2026-01-31 23:59:59.999999999 +0000 UTC"),
            (second, "2026-02-01 00:00:00 +0000 UTC"),
            (third, "2026-02-01 12:00:00.5 +0000 UTC"),
        ):
            connection.execute(f"UPDATE calls SET started = '{moment}' WHERE id = {number}")

    rows = _view(database)

    assert [(row["day"], row["calls"], row["input_tokens"]) for row in rows] == [
        ("2026-01-31", 1, 10),
        ("2026-02-01", 2, 50),
    ]
    assert [float(row["cost"]) for row in rows] == [float(ONE), float(ONE)]
    assert [row["unpriced_calls"] for row in rows] == [0, 1]
    with Store(database) as store:
        days = store.usage("day")
    assert [(row["day"], row["cost"], row["unpriced_calls"]) for row in days] == [
        ("2026-01-31", ONE, 0),
        ("2026-02-01", ONE, 1),
    ]


def test_where_no_price_is_known_the_view_has_null(database: str, run: Open) -> None:
    ready(run, database, ScriptedReply("x", usage=USED)).call_model()

    [row] = _view(database)

    assert (row["cost"], row["unpriced_calls"], row["estimated_calls"]) == (None, 1, 0)


def test_a_running_call_is_counted_when_it_ends(file: str, run: Open) -> None:
    window = priced(run, file, ScriptedReply("one two three", usage=USED))
    with window.call_model_streaming() as stream:
        chunks = iter(stream)
        next(chunks)
        with Store(file, read_only=True) as store:
            [total] = store.usage("total")
        assert (total["calls"], stats(file).calls) == (0, 0)
        assert window.turns()[0].usage is None
        assert window.calls()[0].usage is None

    assert stats(file).calls == 1


# -- calls that do not end well ----------------------------------------------------------


@tool
def weather(city: str) -> str:
    """The weather in a city, with all that one may want to know of it."""
    return "fine"


def used(call: Call) -> Usage:
    """The usage of a call that has ended."""
    assert call.usage is not None
    return call.usage


def counted(window: Any, *kinds: RecordType) -> int:
    """Tokens of the window's records of *kinds*."""
    return sum(record.est_tokens for record in window.records() if record.source in kinds)


SENT = (RecordType.SYSTEM_PROMPT, RecordType.PROMPT)


def test_an_interrupted_call_is_estimated_from_what_was_sent_and_came(
    database: str, run: Open
) -> None:
    cut = ScriptedReply("one two three four", fail_at=2)
    window = priced(run, database, cut, system_prompt="Be brief. " * 50)

    _, error = read(window.call_model_streaming(max_resumes=0))

    assert error is not None
    [call] = window.calls()
    assert call.usage == Usage(
        counted(window, *SENT), counted(window, RecordType.MODEL_RESPONSE), estimated=True
    )
    assert call.usage.input_tokens > 100
    assert call.cost == TWO_TEN.cost(call.usage)
    assert window.turns()[0].usage == stats(database).usage == call.usage
    assert problems(database) == []


@pytest.mark.parametrize("how", ["cancel", "leave", "hook"])
def test_a_call_that_is_given_up_is_estimated_too(database: str, run: Open, how: str) -> None:
    class Broken(Middleware):
        def on_stream_chunk(self, chunk: Any) -> Any:
            if how == "hook" and chunk.delta == " three":
                raise RuntimeError

    window = priced(run, database, ScriptedReply("one two three four"), middleware=[Broken()])
    stream = window.call_model_streaming()
    if how == "hook":
        read(stream)
    else:
        for chunk in stream:
            if chunk.delta == " two":
                if how == "leave":
                    break
                stream.cancel()
        stream.close() if how == "leave" else None

    [call] = window.calls()
    assert call.usage is not None
    assert call.usage.estimated
    assert call.usage.input_tokens == counted(window, RecordType.PROMPT)
    assert call.usage.output_tokens == counted(window, RecordType.MODEL_RESPONSE) > 0
    assert problems(database) == []


def test_tools_and_the_form_of_the_reply_are_counted_as_sent(file: str, run: Open) -> None:
    cut = ScriptedReply("one two", fail_at=1)
    bare = priced(run, file, cut)
    read(bare.call_model_streaming(max_resumes=0))
    bare.discard_partial()
    armed = priced(run, f"{file}2", cut, tools=[weather])
    read(armed.call_model_streaming(max_resumes=0))
    formed = priced(run, f"{file}3", cut, tools=[weather])
    form = {"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"]}
    read(formed.call_model_streaming(max_resumes=0, response_format=form))
    without = priced(run, f"{file}4", cut, tools=[weather])
    read(without.call_model_streaming(max_resumes=0, disable_tools=True))

    sent = [used(one.calls()[0]).input_tokens for one in (bare, armed, formed, without)]

    assert sent[0] == sent[3] < sent[0] + 20 < sent[1] < sent[2]


def test_the_second_call_of_a_turn_is_estimated_with_the_first_reply(
    database: str, run: Open
) -> None:
    asks = ScriptedReply("Let me look. " * 20, tool_calls=[("weather", {"city": "Bern"})])
    window = priced(run, database, asks, ScriptedReply("x y", fail_at=1), tools=[weather])

    read(window.call_model_streaming(max_resumes=0))

    first, second = window.calls()
    assert (used(first).estimated, used(second).estimated) == (False, True)
    sent = counted(window, *SENT, RecordType.TOOL_CALL, RecordType.TOOL_OUTPUT)
    said = [r for r in window.records() if r.source is RecordType.MODEL_RESPONSE]
    beside = used(second).input_tokens - sent - said[0].est_tokens
    assert 0 < beside < 100
    assert used(second).output_tokens == said[1].est_tokens
    assert problems(database) == []


def test_a_reply_that_went_on_is_counted_once(database: str, run: Open) -> None:
    pieces = [f"word{number} " for number in range(40)]
    script = [
        ScriptedReply(chunks=pieces, fail_at=20),
        ScriptedReply(chunks=pieces[20:], fail_at=10),
        ScriptedReply(chunks=pieces[30:], usage=None),
    ]
    window = priced(run, database, *script)

    reply = window.call_model()

    assert reply.text == "".join(pieces)
    said = [used(call).output_tokens for call in window.calls()]
    whole = counted(window, RecordType.MODEL_RESPONSE)
    assert abs(sum(said) - whole) <= 3
    assert said[0] > said[1]
    assert reply.usage == stats(database).usage
    assert reply.usage.estimated
    assert problems(database) == []


def test_a_stream_that_is_read_on_is_counted_once(database: str, run: Open) -> None:
    cut = ScriptedReply("one two three four", fail_at=2, cursor=True, usage=Usage(50, 9))
    window = priced(run, database, cut)

    reply = window.call_model()

    assert reply.usage == stats(database).usage == Usage(50, 9)
    assert reply.cost == stats(database).cost == TWO_TEN.cost(Usage(50, 9))
    assert stats(database).unpriced_calls == 0
    assert problems(database) == []


class Telling(ScriptedModel):
    """A provider that says at once what it has read, as Anthropic does."""

    def decoder(self, request: Any) -> Any:
        decoder = super().decoder(request)
        decoder.usage = Usage(1_000, 1, 600, 100)
        return decoder


def test_what_the_provider_had_counted_is_taken(database: str, run: Open) -> None:
    model = Telling([ScriptedReply("one two three four five six", fail_at=5)])
    model.prices = prices = Prices(2, 10, "0.2", "2.5")
    window = run(database, "chat", model=model)
    window.add_prompt("count")

    read(window.call_model_streaming(max_resumes=0))

    [call] = window.calls()
    said = counted(window, RecordType.MODEL_RESPONSE)
    assert call.usage == Usage(1_000, said, 600, 100, estimated=True)
    assert said > 1
    assert call.cost == prices.cost(call.usage)


@pytest.mark.parametrize("error", [RateLimited("slow", status=429), Overloaded("no", status=529)])
def test_a_call_that_was_refused_has_used_nothing(
    database: str, run: Open, error: Exception
) -> None:
    window = priced(run, database, ScriptedReply("x", open_error=error), model={"max_retries": 0})

    _, raised = read(window.call_model_streaming())

    assert raised is error
    [call] = window.calls()
    assert call.usage == Usage(estimated=True)
    assert call.cost == 0
    assert states(window) == ["failed"]
    assert problems(database) == []


def test_a_call_that_was_never_made_has_used_nothing(database: str, run: Open) -> None:
    class Broken(Recorder):
        def on_call_start(self, call: Any) -> None:
            raise RuntimeError

    window = ready(run, database, "x", middleware=[Broken()])
    read(window.call_model_streaming())

    assert window.calls()[0].usage == Usage(estimated=True)
    assert stats(database).unpriced_calls == 0


def test_a_call_that_may_have_arrived_is_estimated(database: str, run: Open) -> None:
    lost = Overloaded("the connection was lost")
    window = ready(run, database, ScriptedReply("x", open_error=lost), model={"max_retries": 0})
    read(window.call_model_streaming())

    assert window.calls()[0].usage == Usage(counted(window, RecordType.PROMPT), 0, estimated=True)


def test_a_threaded_call_is_estimated_with_what_the_provider_has(database: str, run: Open) -> None:
    model = ScriptedModel(["word " * 100, ScriptedReply("x y", fail_at=1)], supports_threading=True)
    window = run(database, "chat", model=model)
    window.set_server_side_threading(True)
    window.add_prompt("hello " * 100)
    window.call_model()
    window.add_prompt("more")
    read(window.call_model_streaming(max_resumes=0))

    call = window.calls()[1]
    assert model.requests[1].options.previous_response_id is not None
    assert len(window.manifest(call.id)) == 1
    assert call.usage is not None
    assert call.usage.input_tokens == sum(r.est_tokens for r in window.records()[:3]) > 200


# -- crashes -----------------------------------------------------------------------------

_DIES = """
import os, sys
from contextwindow import ContextWindow, Prices, Usage, tool
from contextwindow.testing import ScriptedModel, ScriptedReply

class Known(ScriptedModel):
    provider = "openai"

@tool
def look(place: str) -> str:
    "What is there, told at some length so that it counts."
    return "there"

model = Known([
    ScriptedReply("hm", tool_calls=[("look", {"place": "here"})], usage=Usage(100, 10)),
    ScriptedReply(reasoning="thinking of it", chunks=["one ", "two ", "three ", "four"]),
], name="gpt-5")
if sys.argv[2] == "own":
    model.prices = Prices(2, 10)
window = ContextWindow(sys.argv[1], "chat", model=model, tools=[look], checkpoint_interval=0)
window.add_prompt("count " * 30)
for chunk in window.call_model_streaming():
    if chunk.delta == "three ":
        os.kill(os.getpid(), 9)
"""


def killed(database: str, prices: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _DIES, database, prices],
        cwd=Path(__file__).resolve().parent.parent,
        check=False,
    )
    assert done.returncode == -9


@pytest.mark.parametrize("prices", ["own", "catalog"])
def test_a_killed_call_is_estimated_and_priced_by_whoever_settles_it(
    database: str, run: Open, prices: str
) -> None:
    killed(database, prices)
    window = run(database, "chat", model=ScriptedModel([ScriptedReply("four", usage=Usage(9, 1))]))

    first, second = window.calls()
    assert first.usage == Usage(100, 10)
    assert second.usage is not None
    assert second.usage.estimated
    kinds = (RecordType.PROMPT, RecordType.TOOL_CALL, RecordType.TOOL_OUTPUT)
    hm, text = (r for r in window.records() if r.source is RecordType.MODEL_RESPONSE)
    beside = second.usage.input_tokens - counted(window, *kinds) - hm.est_tokens
    assert 0 < beside < 100
    said = counted(window, RecordType.REASONING) + text.est_tokens
    assert text.content == "one two three "
    # What is not counted yet is guessed, and counted when somebody asks.
    assert abs(second.usage.output_tokens - said) <= 2
    rate = TWO_TEN if prices == "own" else Prices("1.25", 10)
    assert second.cost == rate.cost(second.usage)
    [turn] = window.turns()
    assert turn.state == "interrupted"
    assert turn.usage == first.usage + second.usage
    assert first.cost is not None
    assert turn.cost == stats(database).cost == first.cost + second.cost
    assert problems(database) == []

    reply = window.resume()

    assert reply.text == "hmone two three four"
    assert reply.usage == turn.usage + Usage(9, 1) == stats(database).usage
    assert (reply.cost, stats(database).unpriced_calls) == (None, 1)
    assert problems(database) == []


def test_a_killed_call_is_priced_when_the_next_call_settles_it(database: str) -> None:
    with Store(database) as store:
        window = ContextWindow(store, "chat", model=ScriptedModel(["x"]))
        killed(database, "own")
        # The window was open before: its next call finds the dead turn.
        reply = window.resume()

        [turn] = window.turns()
        assert [call.cost is None for call in window.calls()] == [False, False, True]
        assert reply.usage == turn.usage
    assert problems(database) == []


def test_prices_written_down_are_enough_to_price_a_dead_call() -> None:
    now = parse_time("2026-11-01 00:00:00 +0000 UTC")
    own = {"prices": {"input": "2", "output": "10"}}

    assert price_written("openai", "gpt-5", USED, own, now) == ONE
    assert price_written("openai", "gpt-5", USED, {"prices": None}, now) is None
    assert price_written("openai", "gpt-5", USED, {}, now) == Decimal("0.0000625")
    flex = {"extra": {"service_tier": "flex"}}
    assert price_written("openai", "gpt-5", USED, flex, now) == Decimal("0.00003125")
    assert price_written("openai", "gpt-5", USED, {"server": "http://localhost"}, now) is None


# -- migration ---------------------------------------------------------------------------


NOON = "2026-01-01 12:00:00 +0000 UTC"


def test_the_calls_of_an_older_database_are_counted_up(database: str) -> None:
    url = database if "://" in database else sa.URL.create("sqlite", database=database)
    engine = sa.create_engine(url)
    with engine.begin() as connection:
        migrate(connection, "0003")
        for statement in (
            f"INSERT INTO contexts (id, name, start_time) VALUES ('c', 'chat', '{NOON}')",
            f"INSERT INTO contexts (id, name, start_time) VALUES ('d', 'idle', '{NOON}')",
            "INSERT INTO turns (id, context_id, state, owner, epoch, heartbeat, expires, started)"
            f" VALUES ('t', 'c', 'complete', '', 1, 0, 0, '{NOON}')",
        ):
            connection.exec_driver_sql(statement)
        for values in (
            "10, 5, 1, 2, 3, false, '0.000070'",
            "20, 5, 0, 0, 0, true, '0.1234567891'",
            "30, 5, 0, 0, 0, true, NULL",
            "0, 0, 0, 0, 0, false, NULL",
            "NULL, NULL, NULL, NULL, NULL, false, NULL",
        ):
            connection.exec_driver_sql(
                "INSERT INTO calls (turn_id, context_id, provider, model, started, input_tokens,"
                " output_tokens, cache_read_tokens, cache_write_tokens, reasoning_tokens,"
                f" usage_estimated, cost) VALUES ('t', 'c', 'p', 'm', '{NOON}', {values})"
            )
        connection.exec_driver_sql("UPDATE contexts SET total_tokens = 75 WHERE id = 'c'")
    engine.dispose()

    found, idle = stats(database), stats(database, "idle")

    assert (found.calls, found.unpriced_calls) == (4, 1)
    assert found.usage == Usage(60, 15, 1, 2, 3, estimated=True)
    assert found.cost == Decimal("0.1235267891")
    assert idle.calls == idle.cost == 0
    assert idle.usage == Usage()


# -- providers ---------------------------------------------------------------------------

APIS = ["chat", "responses"]


def _models(provider: FakeProvider) -> dict[str, Model]:
    return {
        "chat": OpenAIChatModel("fake", base_url=provider.openai_url, max_retries=0),
        "responses": OpenAIResponsesModel("fake", base_url=provider.openai_url, max_retries=0),
    }


@pytest.mark.parametrize("api", APIS)
def test_every_providers_counts_mean_the_same(file: str, run: Open, api: str) -> None:
    with FakeProvider() as provider:
        model = _models(provider)[api]
        model.prices = Prices(2, 10, cache_read="0.2")
        window = run(file, "chat", model=model)
        window.add_prompt("hi")
        used = Usage(100, 20, 60, 0, 7)
        provider.reply(FakeReply("fine", usage=used))
        stream = window.call_model_streaming()

        chunks, error = read(stream)

    assert error is None
    check_order(chunks, stream.reply)
    assert stream.reply.usage == used
    # 40 * 2 + 60 * 0.2 + 20 * 10
    assert stream.reply.cost == window.calls()[0].cost == Decimal("0.000292")
    assert problems(file) == []


@pytest.mark.parametrize("api", APIS)
def test_of_every_provider_an_interrupted_call_is_estimated(file: str, run: Open, api: str) -> None:
    with FakeProvider() as provider:
        window = run(file, "chat", model=_models(provider)[api])
        window.add_prompt("hi " * 50)
        provider.reply(FakeReply("one two three four", fault="reset", at=2))
        _, error = read(window.call_model_streaming(max_resumes=0))

    assert error is not None
    [call] = window.calls()
    assert call.usage == Usage(
        counted(window, RecordType.PROMPT),
        counted(window, RecordType.MODEL_RESPONSE),
        estimated=True,
    )
    assert call.cost is None
    assert call.options["server"] == provider_url(call.options)


def provider_url(options: dict[str, Any]) -> str:
    server = str(options["server"])
    assert server.startswith("http://127.0.0.1:")
    return server


@pytest.mark.parametrize("api", APIS)
def test_of_every_provider_a_refused_call_costs_nothing(file: str, run: Open, api: str) -> None:
    with FakeProvider() as provider:
        model = _models(provider)[api]
        model.prices = TWO_TEN
        window = run(file, "chat", model=model)
        window.add_prompt("hi")
        provider.reply(FakeReply(status=401))
        read(window.call_model_streaming())

    assert window.calls()[0].usage == Usage(estimated=True)
    assert window.calls()[0].cost == 0


@pytest.mark.parametrize(
    ("api", "counts"),
    [("anthropic", Usage(100, 20, 60, 30)), ("gemini", Usage(100, 20, 60, 0, 7))],
)
def test_the_others_counts_mean_the_same(file: str, run: Open, api: str, counts: Usage) -> None:
    with serving(other_wires.answer(api, "fine", counts)) as server:
        model = other_wires.model(api, server)
        model.prices = prices = Prices(2, 10, "0.2", "2.5")
        window = run(file, "chat", model=model)
        window.add_prompt("hi")
        reply = window.call_model()

    assert reply.usage == counts
    # 40 * 2 + 60 * 0.2 + 20 * 10; of Anthropic 30 of the 40 are written to the cache for 2.5
    assert reply.cost == Decimal("0.000307" if api == "anthropic" else "0.000292")
    assert reply.cost == prices.cost(counts) == stats(file).cost
    assert problems(file) == []


@pytest.mark.parametrize("api", ["anthropic", "gemini"])
def test_of_the_others_what_they_had_counted_is_taken(file: str, run: Open, api: str) -> None:
    text = "one two three four five six"
    with serving(other_wires.answer(api, text, Usage(1_000, 9, 600), ends=None)) as server:
        window = run(file, "chat", model=other_wires.model(api, server))
        window.add_prompt("count")
        read(window.call_model_streaming(max_resumes=0))

    [call] = window.calls()
    said = counted(window, RecordType.MODEL_RESPONSE)
    assert said > 1
    assert call.usage == Usage(1_000, said, 600, estimated=True)
    assert call.cost is None
    assert problems(file) == []
