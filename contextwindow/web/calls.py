"""The calls of a conversation: how full the window was, what each sent, and what it cost."""

from __future__ import annotations

import json
from typing import Final

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from contextwindow import Call, CallSize, CompactionEvent, RecordType, Usage
from contextwindow.web.charts import Bar, Line, bars, legend
from contextwindow.web.conversation import above, tabs
from contextwindow.web.inspector import number_in, number_of, of
from contextwindow.web.layout import (
    context_address,
    dollars,
    facts,
    kind_of,
    moment,
    page,
    pager,
    seconds,
    short,
    table,
)
from contextwindow.web.markup import Child, Safe, link, tag
from contextwindow.web.records import article

_IN_THE_PICTURE: Final = 80
_ON_A_PAGE: Final = 25
_SENT: Final = 100

_ORDER: Final = (
    RecordType.SYSTEM_PROMPT,
    RecordType.SUMMARY,
    RecordType.PROMPT,
    RecordType.MODEL_RESPONSE,
    RecordType.REASONING,
    RecordType.TOOL_CALL,
    RecordType.TOOL_OUTPUT,
)


def window(request: Request) -> Response:
    """The window over time, and the newest calls."""
    context, reader = of(request).reader(request.path_params["id"])
    number = number_of(request, "before")
    found = reader.calls(before=number, last=_ON_A_PAGE + 1)
    sizes = reader.call_sizes(last=_IN_THE_PICTURE) if number is None else []
    events = reader.compactions() if number is None else []
    here = context_address(context.id, "window")
    older = found[1].id if len(found) > _ON_A_PAGE else None
    listed = found[-_ON_A_PAGE:]
    return page(
        request,
        "Window and calls",
        tabs(request, context.id),
        _picture(context.id, sizes, events) if sizes else None,
        _compactions(events) if events else None,
        tag("h2", "Calls, the newest first"),
        _listed(context.id, listed) if listed else tag("p", "No model was called.", class_="quiet"),
        pager(
            ("Newest", here if number is not None else None),
            ("Older", f"{here}?before={older}" if older is not None else None),
        ),
        trail=above(context),
        wide=True,
    )


def call(request: Request) -> Response:
    """One call: what was sent, what it cost, how long it took."""
    context, reader = of(request).reader(request.path_params["id"])
    one = reader.call(number_in(request, "call"))
    skipped = number_of(request, "skip") or 0
    sent = reader.manifest(one.id, skip=skipped, limit=_SENT)
    here = context_address(context.id, "calls", one.id)
    beyond = skipped + _SENT
    gone = len(one.manifest[skipped:beyond]) - len(sent)
    return page(
        request,
        f"Call {one.id}",
        _figures(one),
        tag("p", one.error, class_="problem", dir="auto") if one.error else None,
        tag("h2", "Options of the request"),
        tag(
            "div",
            json.dumps(one.options, indent=2, ensure_ascii=False),
            class_="text code",
            dir="auto",
            tabindex="0",
        ),
        tag("h2", f"What was sent: {len(one.manifest):,} records, in this order"),
        tag("p", f"{gone} of them were deleted since.", class_="quiet") if gone else None,
        tag("section", *(article(request, record, acts=False) for record in sent)),
        pager(
            ("Before", f"{here}?skip={max(skipped - _SENT, 0)}" if skipped else None),
            ("Behind", f"{here}?skip={beyond}" if beyond < len(one.manifest) else None),
        ),
        trail=[*above(context), " / ", link(context_address(context.id, "window"), "Calls")],
    )


def cache_share(usage: Usage | None) -> str | None:
    """How much of the input the provider had in its cache."""
    if usage is None or not usage.input_tokens:
        return None
    return f"{usage.cache_read_tokens / usage.input_tokens:.0%}"


def _figures(one: Call) -> Safe:
    usage = one.usage or Usage()
    about = " (estimated)" if usage.estimated else ""
    known = one.usage is not None
    return facts(
        ("Model", tag("bdi", short(f"{one.provider}: {one.model}"))),
        ("Started", moment(one.started)),
        ("Time to first token", seconds(one.time_to_first_token)),
        ("Duration", seconds(one.duration) or "it has not ended"),
        ("Finish reason", one.finish_reason and short(one.finish_reason)),
        ("Cost", dollars(one.cost) if known else None),
        ("Input tokens", f"{usage.input_tokens:,}{about}" if known else None),
        (
            "Read from the cache",
            (known and f"{usage.cache_read_tokens:,} ({cache_share(usage) or '0%'})") or None,
        ),
        ("Written to the cache", usage.cache_write_tokens or None),
        ("Output tokens", f"{usage.output_tokens:,}{about}" if known else None),
        ("Reasoning tokens", usage.reasoning_tokens or None),
        ("Response", one.response_id),
        ("Turn", one.turn_id),
    )


def _listed(context_id: str, found: list[Call]) -> Safe:
    rows: list[list[Child]] = []
    for one in reversed(found):
        usage = one.usage
        rows.append(
            [
                link(context_address(context_id, "calls", one.id), f"Call {one.id}"),
                moment(one.started),
                tag("bdi", short(one.model, 60)),
                usage.input_tokens if usage else None,
                usage.output_tokens if usage else None,
                cache_share(usage),
                dollars(one.cost) if usage else None,
                seconds(one.time_to_first_token),
                seconds(one.duration),
                tag("span", "failed", class_="tag failed", title=short(one.error))
                if one.error
                else short(one.finish_reason or "running"),
            ]
        )
    columns = [
        "Call",
        "Started",
        "Model",
        "In",
        "Out",
        "Cached",
        "Cost",
        "First token",
        "Duration",
        "Ended",
    ]
    return tag(
        "div", table("Calls, the newest first", columns, rows, numbers=range(3, 9)), class_="wide"
    )


def _picture(context_id: str, sizes: list[CallSize], events: list[CompactionEvent]) -> Safe:
    """What each call sent, by kind of record."""
    kinds = [kind for kind in _ORDER if any(kind in one.tokens for one in sizes)]
    shown = [
        Bar(
            [(f"kind-{kind_of(kind)}", one.tokens.get(kind, 0)) for kind in kinds],
            _told(one, kinds),
            href=context_address(context_id, "calls", one.call_id),
        )
        for one in sizes
    ]
    lines = [
        Line(
            at,
            f"{len(event.removed):,} records left:"
            f" {event.tokens_before:,} to {event.tokens_after:,} tokens",
        )
        for event in events
        if (at := sum(one.started < event.time for one in sizes)) > 0
    ]
    title = f"Tokens that the last {len(sizes)} calls have sent, by kind of record"
    most = sizes[-1].max_tokens
    told = tag("span", f" of the {most:,} that the model takes", class_="quiet") if most else None
    classes = [(f"kind-{kind_of(kind)}", kind.label) for kind in kinds]
    if lines:
        classes.append(("cut", "records left the window"))
    return tag(
        "figure",
        tag("figcaption", title, told),
        bars(title, shown, limit=most, lines=lines),
        legend(*classes),
    )


def _told(one: CallSize, kinds: list[RecordType]) -> str:
    parts = (f"{kind.label} {one.tokens[kind]:,}" for kind in kinds if kind in one.tokens)
    return f"Call {one.call_id}, {sum(one.tokens.values()):,} tokens: {', '.join(parts)}"


def _compactions(events: list[CompactionEvent]) -> Safe:
    rows: list[list[Child]] = [
        [
            moment(one.time),
            one.reason,
            ", ".join(one.strategies),
            len(one.removed),
            one.tokens_before,
            one.tokens_after,
        ]
        for one in reversed(events[-_ON_A_PAGE:])
    ]
    columns = ["When", "Why", "How", "Records that left", "Tokens before", "after"]
    listed = table("Times that records left the window", columns, rows, numbers=range(3, 6))
    often = "once" if len(events) == 1 else f"{len(events):,} times"
    return tag("details", tag("summary", f"Records have left the window {often}"), listed)


ROUTES = [Route("/c/{id}/window", window), Route("/c/{id}/calls/{call}", call)]
