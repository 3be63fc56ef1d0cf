"""Records on the terminal and as JSON."""

from __future__ import annotations

from typing import Any

import click
from rich.text import Text

from contextwindow import Attachment, Record
from contextwindow.cli.terminal import harmless


def print_record(record: Record) -> None:
    """One record, with its role."""
    print_heading(record)
    if record.content or not record.attachments:
        click.echo(harmless(record.content))
    click.echo()


def print_heading(record: Record) -> None:
    """The role of a record, and what is attached to it."""
    click.echo(click.style(record.source.role, bold=True) + _marks(record))
    for one in record.attachments:
        click.echo(attached(one))


def heading(record: Record) -> Text:
    """The role of a record and its marks, in a line."""
    return Text.assemble((record.source.role, "speaker"), (_marks(record), "quiet"))


def attached(one: Attachment) -> str:
    """What one attachment is, in a line."""
    size = "URL" if one.data is None else f"{len(one.data):,} bytes"
    named = one.name or one.url or "without a name"
    return f"[attachment: {harmless(named)}, {harmless(one.media_type)}, {size}]"


def as_json(record: Record) -> dict[str, Any]:
    """A record with the fields that docs/cli.md names."""
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


def _marks(record: Record) -> str:
    marks = [f"{record.timestamp:%H:%M:%S}"]
    if record.name:
        marks.append(harmless(record.name))
    if record.partial_response_id is not None:
        marks.append("partial")
    if record.error:
        marks.append("failed")
    if not record.live:
        marks.append("not live")
    return f" ({', '.join(marks)})"
