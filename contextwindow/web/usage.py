"""What all calls have used and cost, by day and by model."""

from __future__ import annotations

from datetime import date, timedelta
from decimal import Decimal
from typing import Any, Final

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from contextwindow.web.charts import Bar, bars, legend
from contextwindow.web.inspector import of
from contextwindow.web.layout import dollars, facts, page, short, table
from contextwindow.web.markup import Child, Safe, link, tag

_DAYS: Final = 30
_MOST: Final = 400
_COLUMNS: Final = ["Calls", "Input", "of it cached", "Output", "of it reasoning", "Cost"]


def usage(request: Request) -> Response:
    """Tables of tokens and US dollars, with pictures where they go by day."""
    by_model = request.query_params.get("by") == "model"
    rows = of(request).store.usage("model" if by_model else "day")
    if not rows:
        return page(request, "Usage", tag("p", "No call has ended yet.", class_="quiet"))
    ways = (("By day", "/usage", not by_model), ("By model", "/usage?by=model", by_model))
    return page(
        request,
        "Usage",
        tag(
            "nav",
            *(link(way, name, aria_current="page" if here else None) for name, way, here in ways),
            class_="tabs",
            aria_label="Usage",
        ),
        _totals(rows),
        _models(rows) if by_model else [_pictures(rows), _days(rows)],
        wide=True,
    )


def _days(days: list[dict[str, Any]]) -> Safe:
    rows = [[one["day"], *_figures(one)] for one in reversed(days)]
    columns = ["Day (UTC)", *_COLUMNS]
    return table("Usage by day, the newest first", columns, rows[:_MOST], numbers=range(1, 7))


def _models(models: list[dict[str, Any]]) -> Safe:
    rows = [
        [tag("bdi", short(f"{one['provider']}: {one['model']}")), *_figures(one)] for one in models
    ]
    return table("Usage by model", ["Model", *_COLUMNS], rows[:_MOST], numbers=range(1, 7))


def _figures(one: dict[str, Any]) -> list[Child]:
    unknown = (
        f" + {one['unpriced_calls']:,} unpriced" if one["unpriced_calls"] and one["cost"] else ""
    )
    return [
        one["calls"],
        one["input_tokens"],
        one["cache_read_tokens"],
        one["output_tokens"],
        one["reasoning_tokens"],
        dollars(one["cost"]) + unknown,
    ]


def _totals(rows: list[dict[str, Any]]) -> Safe:
    def total(name: str) -> int:
        return sum(one[name] for one in rows)

    costs = [one["cost"] for one in rows if one["cost"] is not None]
    return facts(
        ("Calls", total("calls")),
        ("Input tokens", total("input_tokens")),
        ("Output tokens", total("output_tokens")),
        ("Cost", dollars(sum(costs, Decimal(0)) if costs else None)),
        ("Calls without a known price", total("unpriced_calls") or None),
        ("Calls that were estimated", total("estimated_calls") or None),
    )


def _pictures(days: list[dict[str, Any]]) -> list[Safe]:
    """The last days, those without a call included."""
    known = {one["day"]: one for one in days}
    last = date.fromisoformat(days[-1]["day"])
    first = max(date.fromisoformat(days[0]["day"]), last - timedelta(days=_DAYS - 1))
    shown = [str(first + timedelta(days=at)) for at in range((last - first).days + 1)]
    # Not more names than there is room for.
    every = -(-len(shown) // 10)
    costs, sizes = [], []
    for at, day in enumerate(shown):
        one = known.get(day, {})
        label = day[5:] if at % every == 0 else ""
        cost = one.get("cost") or Decimal(0)
        costs.append(Bar([("cost", float(cost))], f"{day}: {dollars(cost)}", label))
        cached = one.get("cache_read_tokens", 0)
        fresh, written = one.get("input_tokens", 0) - cached, one.get("output_tokens", 0)
        told = f"{day}: {fresh:,} new input, {cached:,} cached input, {written:,} output"
        parts = [("cached", cached), ("fresh", fresh), ("written", written)]
        sizes.append(Bar(parts, told, label))
    return [
        tag(
            "figure",
            tag("figcaption", "Cost by day"),
            bars("Cost by day, US dollars", costs, unit="$"),
        ),
        tag(
            "figure",
            tag("figcaption", "Tokens by day"),
            bars("Tokens by day", sizes),
            legend(
                ("cached", "input from the cache"), ("fresh", "other input"), ("written", "output")
            ),
        ),
    ]


ROUTES = [Route("/usage", usage)]
