"""One conversation: its records, the newest page first, and where it stands."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Final

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route

from contextwindow import (
    Context,
    ContextNotFound,
    ContextReader,
    ContextStats,
    Record,
    Turn,
)
from contextwindow.web.inspector import number_in, number_of, of
from contextwindow.web.layout import (
    action,
    context_address,
    dollars,
    facts,
    hidden,
    moment,
    page,
    pager,
    short,
    state_tag,
)
from contextwindow.web.markup import Child, Safe, link, render, tag
from contextwindow.web.records import LONGEST, article, whole

_ON_A_PAGE: Final = 50
_AROUND: Final = 20
_PART: Final = 100_000

_TOLD: Final = {
    "interrupted": "The newest reply was cut off",
    "failed": "The newest reply has failed",
    "cancelled": "The newest reply was cancelled",
}


@dataclass(frozen=True, slots=True)
class Shown:
    """The records of one page, and what is beyond it.

    Attributes:
        since: the record before the first of them, if there is one.
        newer: whether there are such.
    """

    records: list[Record]
    since: int | None
    newer: bool


def conversation(request: Request) -> Response:
    """The records of a page, and the state of the conversation."""
    context, reader = of(request).reader(request.path_params["id"])
    shown = _shown(reader, request)
    stats = reader.context_stats()
    newest = reader.turns(last=1)
    running = bool(newest) and newest[-1].state == "running"
    articles = [_article(request, reader, one, newest) for one in shown.records]
    first, last = (shown.records[0].id, shown.records[-1].id) if shown.records else (0, 0)
    here = context_address(context.id)
    return page(
        request,
        context.name,
        summary(request, context, stats, state_tag(newest[-1].state if newest else None)),
        tabs(request, context.id),
        _problem(request, context),
        _cut_off(request, context, reader, newest),
        pager(("Older", f"{here}?before={first}" if shown.since is not None else None)),
        tag(
            "section",
            *articles,
            id="records",
            aria_label="Records",
            data_records=context_address(context.id, "records"),
            data_since=None if shown.since is None else str(shown.since),
            data_events=None if shown.newer else context_address(context.id, "events"),
            data_after=behind(shown.records),
            data_most=str(_ON_A_PAGE),
        ),
        _metadata(context),
        None if shown.records else tag("p", "Nothing has been said yet.", class_="quiet"),
        tag(
            "p",
            "A reply is being written." if running else "",
            id="status",
            role="status",
            class_="quiet",
        ),
        pager(
            ("Newer", f"{here}?after={last}" if shown.newer else None),
            ("Newest", here if shown.newer else None),
        ),
        trail=link("/", "Conversations"),
        script=True,
    )


def fragment(request: Request) -> Response:
    """The records behind one, as they are now; the page puts them into itself."""
    _, reader = of(request).reader(request.path_params["id"])
    after = number_of(request, "after")
    newest = reader.turns(last=1)
    records = reader.records(after, _ON_A_PAGE)
    running = bool(newest) and newest[-1].state == "running"
    return HTMLResponse(
        render([_article(request, reader, one, newest) for one in records]),
        headers={"X-Running": "1" if running else "0"},
    )


def record_page(request: Request) -> Response:
    """One record with all that is known of it, its text in parts when it is long."""
    context, reader = of(request).reader(request.path_params["id"])
    record = one_record(reader, number_in(request, "record"))
    part = number_of(request, "part") or 0
    here = context_address(context.id, "records", record.id)
    parts = max(1, -(-len(record.content) // _PART))
    if part >= parts:
        raise HTTPException(404, "There is no such part")
    calls = reader.calls(record.turn_id) if record.turn_id else []
    return page(
        request,
        f"Record {record.seq}",
        facts(
            ("Kind", record.source.name.lower().replace("_", " ")),
            ("Written", moment(record.timestamp)),
            ("Tokens", record.est_tokens),
            ("Characters", len(record.content)),
            ("Tool", record.name),
            ("Tool call", record.call_id),
            ("Response", record.response_id),
            ("Turn", record.turn_id),
            (
                "Calls of its turn",
                [link(context_address(context.id, "calls", one.id), f"{one.id} ") for one in calls]
                or None,
            ),
        ),
        tag(
            "p",
            link(context_address(context.id, at=record.id) + f"#r{record.id}", "Where it was said"),
        ),
        whole(record, part * _PART, _PART),
        pager(
            ("Part before", f"{here}?part={part - 1}" if part else None),
            ("Next part", f"{here}?part={part + 1}" if part + 1 < parts else None),
        ),
        _payload(record),
        trail=above(context),
    )


def summary(request: Request, context: Context, stats: ContextStats, state: Safe) -> Safe:
    """The figures of a conversation."""
    parent: Child = None
    if context.parent_context_id is not None:
        try:
            made_from = of(request).store.context_by_id(context.parent_context_id)
            parent = link(context_address(made_from.id), tag("bdi", short(made_from.name, 60)))
        except ContextNotFound:
            parent = "a conversation that is not here"
    usage = stats.usage
    return facts(
        ("State", state or None),
        ("Records", f"{stats.total_records:,} ({stats.live_records:,} live)"),
        ("Live tokens", stats.live_tokens),
        ("Calls", stats.calls),
        ("Tokens in", usage.input_tokens),
        ("Tokens out", usage.output_tokens),
        ("Cost", dollars(stats.cost) if stats.calls else "none"),
        ("Last activity", moment(stats.last_activity)),
        ("Made from", parent),
    )


def tabs(request: Request, context_id: str) -> Safe:
    """What there is to see of a conversation, and to do with it as a whole."""
    writes = not of(request).read_only
    ways = [
        ("Records", context_address(context_id)),
        ("Window and calls", context_address(context_id, "window")),
        ("Export", context_address(context_id, "export")),
        *([("Compact", context_address(context_id, "compact"))] if writes else []),
        *([("Delete", context_address(context_id, "delete"))] if writes else []),
    ]
    here = request.url.path
    return tag(
        "nav",
        *(link(way, name, aria_current="page" if way == here else None) for name, way in ways),
        class_="tabs",
        aria_label="This conversation",
    )


def above(context: Context) -> list[Child]:
    """Links to what is above a page of a conversation."""
    return [
        link("/", "Conversations"),
        " / ",
        link(context_address(context.id), tag("bdi", short(context.name, 60))),
    ]


def behind(records: list[Record]) -> str:
    """The place behind the last of *records*, for following."""
    return f"{records[-1].id}:{len(records[-1].content)}" if records else ""


def one_record(reader: ContextReader, record_id: int) -> Record:
    """A record of the context.

    Raises:
        ConfigError: it is none.
    """
    before = reader.records(before=record_id, last=1)
    # What follows the one before it; the first of all follows nothing.
    return reader.records(before[0].id if before else None, 1)[0]


def _shown(reader: ContextReader, request: Request) -> Shown:
    before, after, at = (number_of(request, name) for name in ("before", "after", "at"))
    if at is not None:
        older = reader.records(before=at, last=_AROUND + 1)
        since = older[-1].id if older else None
        rest = reader.records(since, _ON_A_PAGE - _AROUND + 1)
        records = older[-_AROUND:] + rest[: _ON_A_PAGE - _AROUND]
        before_it = older[0].id if len(older) > _AROUND else None
        return Shown(records, before_it, len(rest) > _ON_A_PAGE - _AROUND)
    if after is not None:
        rest = reader.records(after, _ON_A_PAGE + 1)
        return Shown(rest[:_ON_A_PAGE], after, len(rest) > _ON_A_PAGE)
    found = reader.records(before=before, last=_ON_A_PAGE + 1)
    since = found[0].id if len(found) > _ON_A_PAGE else None
    return Shown(found[-_ON_A_PAGE:], since, before is not None)


def _article(request: Request, reader: ContextReader, record: Record, newest: list[Turn]) -> Safe:
    running = bool(newest) and newest[-1].id == record.turn_id and newest[-1].state == "running"
    return article(request, record, running=running)


def _problem(request: Request, context: Context) -> Safe | None:
    told = of(request).problems.pop(context.id, None)
    return tag("p", told, class_="problem", role="alert", dir="auto") if told else None


def _cut_off(
    request: Request, context: Context, reader: ContextReader, newest: list[Turn]
) -> Safe | None:
    """What has become of a reply that did not end well, and the way to go on with it."""
    if not newest or newest[-1].state not in _TOLD:
        return None
    turn = newest[-1]
    inspector = of(request)
    resumes = turn.state == "interrupted"
    calls = reader.calls(last=1)
    suggested = f"{calls[-1].provider}:{calls[-1].model}" if calls else ""
    model = None
    if inspector.model is None:
        model = [
            tag("label", "with", for_="model"),
            tag("input", name="model", id="model", value=suggested, required=True),
        ]
    return tag(
        "section",
        tag("h2", _TOLD[turn.state]),
        tag("p", short(turn.error, 2_000), dir="auto") if turn.error else None,
        action(
            request,
            context_address(context.id, "resume"),
            hidden("turn", turn.id),
            model,
            label="Resume",
        )
        if resumes
        else None,
        class_="notice",
    )


def _payload(record: Record) -> Safe | None:
    return _folded("What the provider sent", record.payload)


def _metadata(context: Context) -> Safe | None:
    return _folded("Metadata of the conversation", context.metadata)


def _folded(summary: str, values: dict[str, Any] | None) -> Safe | None:
    """JSON that opens when somebody wants to see it."""
    if not values:
        return None
    text = json.dumps(values, indent=2, ensure_ascii=False)
    shown = tag("div", short(text, 4 * LONGEST), class_="text code", dir="auto", tabindex="0")
    return tag("details", tag("summary", summary), shown)


ROUTES = [
    Route("/c/{id}", conversation),
    Route("/c/{id}/records", fragment),
    Route("/c/{id}/records/{record}", record_page),
]
