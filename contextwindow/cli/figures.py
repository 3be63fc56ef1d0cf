"""Tokens and cost: of a database, of one context, by day or by model."""

from __future__ import annotations

import json
from dataclasses import asdict
from decimal import Decimal
from typing import Any, Final

import click
from rich.table import Table
from rich.text import Text

from contextwindow import Call, ContextStats, Store, Usage
from contextwindow.cli.opened import known, reading
from contextwindow.cli.styles import console
from contextwindow.cli.terminal import one_line

BY: Final = ("day", "model", "context", "total")

_TOKENS: Final = (
    "input_tokens",
    "output_tokens",
    "cache_read_tokens",
    "cache_write_tokens",
    "reasoning_tokens",
)


def stats(database: str, context: str | None, *, by: str | None, json_lines: bool) -> None:
    """Figures of all or of one context, in rows where *by* is given."""
    with reading(database) as store:
        if by is not None:
            rows = store.usage(by) if context is None else _usage_of(store, context, by)
        elif context is None:
            rows = [_overview(store)]
        else:
            rows = [_of(store, context)]
    if json_lines:
        for row in rows:
            click.echo(json.dumps(row, default=str))
    elif by is not None:
        _print_rows(rows)
    else:
        _print_one(rows[0])


def money(dollars: Decimal | None) -> str:
    """*dollars* for people; a price that is not known is none."""
    if dollars is None:
        return "cost unknown"
    if not dollars or dollars >= 1:
        return f"${dollars:,.2f}"
    return f"${Decimal(f'{dollars:.3g}'):f}"


def _overview(store: Store) -> dict[str, Any]:
    found = store.context_stats()
    assert isinstance(found, list)  # noqa: S101 - no name was given
    total = store.usage("total")
    return {
        "database": store.location,
        "size_bytes": store.database_bytes(),
        "contexts": len(found),
        "records": sum(one.total_records for one in found),
        "live": sum(one.live_records for one in found),
        "tokens": sum(one.live_tokens for one in found),
        **(total[0] if total else _added_up([])),
    }


def _of(store: Store, context: str) -> dict[str, Any]:
    found = store.context_stats(context)
    assert isinstance(found, ContextStats)  # noqa: S101 - a name was given
    return {
        "context": found.name,
        "context_id": found.context_id,
        "begun": found.start_time and found.start_time.isoformat(),
        "last_activity": found.last_activity and found.last_activity.isoformat(),
        "records": found.total_records,
        "live": found.live_records,
        "tokens": found.live_tokens,
        "calls": found.calls,
        **{name: getattr(found.usage, name) for name in _TOKENS},
        "unpriced_calls": found.unpriced_calls,
        "cost": found.cost,
    }


def _usage_of(store: Store, context: str, by: str) -> list[dict[str, Any]]:
    """As ``Store.usage``, of the calls of one context."""
    with known(store, context) as window:
        calls = [one for one in window.calls() if one.usage is not None]
        context_id = window.get_current_context().id
    groups: dict[tuple[str, ...], list[Call]] = {}
    for call in calls:
        match by:
            case "day":
                key: tuple[str, ...] = (f"{call.started:%Y-%m-%d}",)
            case "model":
                key = (call.provider, call.model)
            case "context":
                key = (context, context_id)
            case _:
                key = ()
        groups.setdefault(key, []).append(call)
    columns = {
        "day": ("day",),
        "model": ("provider", "model"),
        "context": ("context", "context_id"),
    }
    keys = columns.get(by, ())
    return [dict(zip(keys, key, strict=True)) | _added_up(groups[key]) for key in sorted(groups)]


def _added_up(calls: list[Call]) -> dict[str, Any]:
    used = [call.usage or Usage() for call in calls]
    unpriced = sum(
        call.cost is None and bool(call.usage and call.usage.total_tokens) for call in calls
    )
    known_costs = [call.cost for call in calls if call.cost is not None]
    together = asdict(sum(used, Usage()))
    return {
        "calls": len(calls),
        **{name: together[name] for name in _TOKENS},
        "estimated_calls": sum(one.estimated for one in used),
        "unpriced_calls": unpriced,
        "cost": sum(known_costs, Decimal(0)) if known_costs or not unpriced else None,
    }


def _print_one(row: dict[str, Any]) -> None:
    table = Table(box=None, show_header=False, pad_edge=False)
    for name, value in row.items():
        table.add_row(Text(name.replace("_", " "), "quiet"), Text(_shown(name, value)))
    console().print(table)


def _print_rows(rows: list[dict[str, Any]]) -> None:
    if not rows:
        click.echo("contextwindow: no call has ended yet", err=True)
        return
    names = [name for name in rows[0] if name not in ("context_id", *_TOKENS[2:])]
    table = Table(box=None, pad_edge=False)
    for name in names:
        # Eighty columns have room for the figures and one name.
        heading = Text(name.replace("_tokens", "").replace("_calls", ""))
        if isinstance(rows[0][name], str):
            table.add_column(heading, overflow="fold", min_width=10)
        else:
            table.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(*(Text(_shown(name, row[name])) for name in names))
    console().print(table)


def _shown(name: str, value: object) -> str:
    if name == "cost":
        return money(value) if isinstance(value, Decimal) else "unknown"
    if isinstance(value, int):
        return f"{value:,}"
    return "never" if value is None else one_line(str(value))
