"""Looking into a database without writing to it: its contexts, their records, words in them."""

from __future__ import annotations

import json
import time

import click
from rich.table import Table
from rich.text import Text

from contextwindow import ContextReader, ContextStats, Record, SearchResult
from contextwindow.cli.opened import known, reading
from contextwindow.cli.show import as_json, print_heading, print_record
from contextwindow.cli.styles import console
from contextwindow.cli.terminal import harmless, one_line

_LOOKS_A_SECOND = 10


def contexts(database: str, *, json_lines: bool) -> None:
    """The conversations, newest first."""
    with reading(database) as store:
        found = store.context_stats()
    assert isinstance(found, list)  # noqa: S101 - no name was given
    if json_lines:
        for stats in found:
            click.echo(json.dumps(_stats(stats)))
        return
    table = Table("context", "records", "live", "tokens", "last activity", box=None, pad_edge=False)
    for column in table.columns[1:4]:
        column.justify = "right"
    for column in table.columns[1:]:
        column.no_wrap = True
    table.columns[0].overflow = "fold"
    for stats in found:
        when = f"{stats.last_activity:%Y-%m-%d %H:%M:%S}" if stats.last_activity else "never"
        figures = (stats.total_records, stats.live_records, stats.live_tokens)
        table.add_row(Text(one_line(stats.name)), *map(str, figures), when)
    console().print(table)


def show(database: str, context: str, *, json_lines: bool, everything: bool) -> None:
    """The transcript of one conversation."""
    with reading(database) as store, known(store, context) as window:
        records = window.records() if everything else window.live_records()
    for record in records:
        if json_lines:
            click.echo(json.dumps(as_json(record)))
        else:
            print_record(record)


def tail(
    database: str, context: str, *, last: int, until_idle: float | None, json_lines: bool
) -> None:
    """The newest records, and then what is added to them, each character once.

    As JSON each record is told when it is whole.
    """
    with reading(database) as store, known(store, context) as window:
        reader = window.reader()
        records = reader.records()
        at = records[-last - 1].id if 0 <= last < len(records) else None
        shown: dict[int, int] = {}
        idle_since = time.monotonic()
        try:
            while until_idle is None or time.monotonic() - idle_since < until_idle:
                at, news = _print_news(reader, at, shown, json_lines=json_lines)
                if news:
                    idle_since = time.monotonic()
                time.sleep(1 / _LOOKS_A_SECOND)
        except KeyboardInterrupt:
            pass
    if not json_lines:
        click.echo()


def search(
    database: str, query: str, *, context: str | None, limit: int, raw: bool, json_lines: bool
) -> None:
    """Records that hold every word of *query*, the best first."""
    with reading(database) as store:
        if context is None:
            found = store.search(query, limit, raw=raw)
        else:
            with known(store, context) as window:
                found = window.search(query, limit, raw=raw)
    if json_lines:
        for hit in found:
            click.echo(json.dumps(_hit(hit)))
        return
    out = console()
    for hit in found:
        record = hit.record
        about = f" ({record.source.role}, {record.timestamp:%Y-%m-%d %H:%M}, record {record.id})"
        out.print(Text.assemble((one_line(hit.context), "speaker"), (about, "quiet")))
        out.print(_highlighted(hit))
        out.print()
    if not found:
        click.echo("contextwindow: nothing was found", err=True)


def _print_news(
    reader: ContextReader, at: int | None, shown: dict[int, int], *, json_lines: bool
) -> tuple[int | None, bool]:
    """Print what is new behind the record *at*; the last record that will not grow any more."""
    news = False
    settled = True
    for record in reader.records(after=at):
        before = shown.get(record.id)
        whole = record.partial_response_id is None
        if json_lines:
            if whole and record.id not in shown:
                click.echo(json.dumps(as_json(record)))
                shown[record.id] = len(record.content)
                news = True
        else:
            news = _print_growth(record, before) or news
            shown[record.id] = len(record.content)
        settled = settled and whole
        if settled:
            at = record.id
    return at, news


def _print_growth(record: Record, before: int | None) -> bool:
    """Print what a record has beyond the *before* characters that were shown; whether it has."""
    if before is None:
        click.echo()
        print_heading(record)
    text = record.content[before or 0 :]
    if text:
        click.echo(harmless(text), nl=False)
    return bool(text) or before is None


def _highlighted(hit: SearchResult) -> Text:
    """The snippet, its hits marked; what is made harmless may be longer than it was."""
    text, at = Text(), 0
    for begin, end in hit.highlights:
        text.append(harmless(hit.snippet[at:begin]))
        text.append(harmless(hit.snippet[begin:end]), "hit")
        at = end
    return text.append(harmless(hit.snippet[at:]))


def _hit(hit: SearchResult) -> dict[str, object]:
    return {
        "context": hit.context,
        "record_id": hit.id,
        "time": hit.record.timestamp.isoformat(),
        "role": hit.record.source.role,
        "live": hit.record.live,
        "snippet": hit.snippet,
        "highlights": [list(one) for one in hit.highlights],
        "text": hit.content,
    }


def _stats(stats: ContextStats) -> dict[str, object]:
    return {
        "name": stats.name,
        "records": stats.total_records,
        "live": stats.live_records,
        "tokens": stats.live_tokens,
        "last_activity": stats.last_activity and stats.last_activity.isoformat(),
    }
