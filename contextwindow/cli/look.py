"""Looking into a database without writing to it."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from contextwindow import (
    Attachment,
    ContextReader,
    ContextStats,
    ContextWindow,
    Record,
    Store,
)
from contextwindow.cli.terminal import harmless

_LOOKS_A_SECOND = 10


def contexts(database: str, *, as_json: bool) -> None:
    """The conversations, newest first."""
    with Store(database, read_only=True) as store:
        found = store.context_stats()
    assert isinstance(found, list)  # noqa: S101 - no name was given
    if as_json:
        for stats in found:
            click.echo(json.dumps(_stats(stats)))
        return
    table = Table("context", "records", "live", "tokens", "last activity", box=None)
    for column in table.columns[1:4]:
        column.justify = "right"
    for stats in found:
        when = f"{stats.last_activity:%Y-%m-%d %H:%M:%S}" if stats.last_activity else "never"
        figures = (stats.total_records, stats.live_records, stats.live_tokens)
        table.add_row(Text(harmless(stats.name)), *map(str, figures), when)
    Console(highlight=False).print(table)


def show(database: str, context: str, *, as_json: bool, everything: bool) -> None:
    """The transcript of one conversation."""
    with _looking(database, context) as window:
        records = window.records() if everything else window.live_records()
    for record in records:
        if as_json:
            click.echo(json.dumps(_record(record)))
        else:
            print_record(record)


def tail(database: str, context: str, *, last: int, until_idle: float | None) -> None:
    """The newest records, and then what is added to them, each character once."""
    with _looking(database, context) as window:
        reader = window.reader()
        records = reader.records()
        at = records[-last - 1].id if 0 <= last < len(records) else None
        shown: dict[int, int] = {}
        idle_since = time.monotonic()
        try:
            while until_idle is None or time.monotonic() - idle_since < until_idle:
                at, news = _print_news(reader, at, shown)
                if news:
                    idle_since = time.monotonic()
                time.sleep(1 / _LOOKS_A_SECOND)
        except KeyboardInterrupt:
            pass
    click.echo()


def _print_news(
    reader: ContextReader, at: int | None, shown: dict[int, int]
) -> tuple[int | None, bool]:
    """Print what is new behind the record *at*; the last record that will not grow any more."""
    news = False
    settled = True
    for record in reader.records(after=at):
        before = shown.get(record.id)
        if before is None:
            click.echo(f"\n{_heading(record)}")
            for one in record.attachments:
                click.echo(_attached(one))
        text = record.content[before or 0 :]
        if text or before is None:
            news = True
            click.echo(harmless(text), nl=False)
        shown[record.id] = len(record.content)
        settled = settled and record.partial_response_id is None
        if settled:
            at = record.id
    return at, news


def print_record(record: Record) -> None:
    """One record, with its role."""
    click.echo(_heading(record))
    for one in record.attachments:
        click.echo(_attached(one))
    if record.content or not record.attachments:
        click.echo(harmless(record.content))
    click.echo()


def _heading(record: Record) -> str:
    marks = [f"{record.timestamp:%H:%M:%S}"]
    if record.name:
        marks.append(harmless(record.name))
    if record.partial_response_id is not None:
        marks.append("partial")
    if record.error:
        marks.append("failed")
    if not record.live:
        marks.append("not live")
    return click.style(record.source.role, bold=True) + f" ({', '.join(marks)})"


def _attached(one: Attachment) -> str:
    """What one attachment is, in a line."""
    size = "URL" if one.data is None else f"{len(one.data):,} bytes"
    named = one.name or one.url or "without a name"
    return f"[attachment: {harmless(named)}, {harmless(one.media_type)}, {size}]"


@contextmanager
def _looking(database: str, context: str) -> Iterator[ContextWindow]:
    """A window that cannot write."""
    with Store(database, read_only=True) as store, ContextWindow(store, context) as window:
        yield window


def _stats(stats: ContextStats) -> dict[str, object]:
    return {
        "name": stats.name,
        "records": stats.total_records,
        "live": stats.live_records,
        "tokens": stats.live_tokens,
        "last_activity": stats.last_activity and stats.last_activity.isoformat(),
    }


def _record(record: Record) -> dict[str, object]:
    return {
        "id": record.id,
        "seq": record.seq,
        "time": record.timestamp.isoformat(),
        "role": record.source.role,
        "text": record.content,
        "name": record.name,
        "call_id": record.call_id,
        "live": record.live,
        "partial": record.partial_response_id is not None,
        "tokens": record.est_tokens,
        "turn_id": record.turn_id,
        "attachments": [
            {
                "name": one.name,
                "media_type": one.media_type,
                "size": None if one.data is None else len(one.data),
                "digest": one.digest,
                "url": one.url,
            }
            for one in record.attachments
        ],
    }
