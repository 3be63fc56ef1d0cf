"""Saying why each record was part of a past call, or was not."""

from __future__ import annotations

import json

import click

from contextwindow import Call, ConfigError, ContextNotFound, ContextWindow, Explanation
from contextwindow.cli.group import NOT_FOUND, Failed
from contextwindow.cli.opened import reading
from contextwindow.cli.terminal import harmless

_SHOWN = 60
"""Characters that are shown of a record."""


def run(database: str, call_id: int, *, as_json: bool, only: str | None) -> None:
    """Print an explanation of each record, in order.

    Args:
        only: ``"in"`` for what was sent, ``"out"`` for what was not, None for all.
    """
    with reading(database) as store:
        try:
            call = store.call(call_id)
        except ConfigError as error:
            raise Failed(str(error), NOT_FOUND) from error
        context = next((one for one in store.list_contexts() if one.id == call.context_id), None)
        if context is None:
            raise ContextNotFound(f"the context of call {call_id} was deleted")
        with ContextWindow(store, context.name) as window:
            found = window.explain(call_id)
    chosen = [one for one in found if only is None or one.sent == (only == "in")]
    if as_json:
        for one in chosen:
            click.echo(json.dumps(_as_json(call, one)))
        return
    sent = sum(one.sent for one in found)
    model = harmless(f"{call.provider} {call.model}")
    click.echo(
        f"call {call.id} of {harmless(context.name)}: {model}, "
        f"{call.started:%Y-%m-%d %H:%M:%S} UTC, {sent} of {len(found)} records sent"
    )
    for one in chosen:
        _print(one)


def _print(one: Explanation) -> None:
    record = one.record
    begin = " ".join(record.content[: 2 * _SHOWN].split())[:_SHOWN]
    where = click.style("in ", bold=True) if one.sent else "out"
    named = f" {harmless(record.name)}" if record.name else ""
    more = "…" if len(begin) < len(record.content) else ""
    click.echo(f"{where} {record.id:>6} {record.source.role}{named}: {harmless(begin)}{more}")
    click.echo(click.style(f"           {harmless(one.text)}", dim=True))


def _as_json(call: Call, one: Explanation) -> dict[str, object]:
    return {
        "call_id": call.id,
        "record_id": one.record.id,
        "role": one.record.source.role,
        "time": one.record.timestamp.isoformat(),
        "sent": one.sent,
        "reason": one.reason,
        "text": one.text,
        "compaction_id": one.compaction and one.compaction.id,
        "content": one.record.content,
    }
