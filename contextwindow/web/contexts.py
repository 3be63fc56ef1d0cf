"""The conversations of the database, and searching them."""

from __future__ import annotations

import contextlib
from typing import Final

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from contextwindow import ConfigError, ContextPage, ContextStats, ContextWindowError, SearchResult
from contextwindow.web.inspector import Inspector, of
from contextwindow.web.layout import (
    context_address,
    dollars,
    moment,
    page,
    pager,
    role_tag,
    short,
    state_tag,
    table,
)
from contextwindow.web.markup import Child, Safe, address, link, render, tag

_ON_A_PAGE: Final = 50
_FOUND: Final = 50


def index(request: Request) -> Response:
    """The conversations, the last used first."""
    wanted = request.query_params.get("name", "")
    after = request.query_params.get("after")
    shown = _settled(of(request), after, wanted)
    columns = ["Conversation", "State", "Records", "Live tokens", "Cost", "Last activity"]
    listed = table(
        "Conversations, the last used first",
        columns,
        [_row(one, shown) for one in shown.contexts],
        numbers=range(2, 5),
    )
    first = address(name=wanted or None) if after else None
    behind = address(name=wanted or None, after=shown.next) if shown.next else None
    return page(
        request,
        "Conversations",
        _filter(wanted),
        tag("div", listed if shown.contexts else _nothing(wanted), id="fresh"),
        pager(("First", first), ("Next", behind)),
        script=True,
        wide=True,
    )


def search(request: Request) -> Response:
    """Records of all conversations in which some words occur."""
    asked = request.query_params.get("q", "").strip()
    if not asked:
        return page(request, "Search", tag("p", "Type words into the field above.", class_="quiet"))
    try:
        found = of(request).store.search(asked, _FOUND)
    except ConfigError as error:
        return page(request, "Search", tag("p", str(error), class_="problem", role="alert"))
    told = "Nothing was found" if not found else f"{len(found)} records, the best first"
    if len(found) == _FOUND:
        told = f"The best {_FOUND} records"
    return page(
        request,
        "Search",
        tag("p", told, class_="quiet", role="status"),
        tag("ol", *(_hit(one) for one in found), class_="hits"),
    )


def _settled(inspector: Inspector, after: str | None, wanted: str) -> ContextPage:
    """A page of contexts, those turns settled whose process is gone."""

    def read() -> ContextPage:
        return inspector.store.page_contexts(
            after=after, limit=_ON_A_PAGE, name_contains=wanted or None
        )

    shown = read()
    running = [one for one, state in shown.states.items() if state == "running"]
    if not running or inspector.read_only:
        return shown
    for context_id in running:
        # Opening a window settles what is dead.  One that is gone by now, or a database that
        # others write to, must not take the list of the others away.
        with contextlib.suppress(ContextWindowError):
            inspector.reader(context_id)
    return read()


def _row(stats: ContextStats, shown: ContextPage) -> list[Child]:
    return [
        link(context_address(stats.context_id), tag("bdi", short(stats.name))),
        state_tag(shown.states.get(stats.context_id)),
        stats.total_records,
        stats.live_tokens,
        dollars(stats.cost) if stats.calls else "",
        moment(stats.last_activity),
    ]


def _filter(wanted: str) -> Safe:
    return tag(
        "form",
        tag("label", "Name holds", for_="name"),
        tag("input", type="search", id="name", name="name", value=wanted),
        tag("button", "Show"),
        link("/", "Show all") if wanted else None,
        action="/",
        class_="line",
    )


def _nothing(wanted: str) -> Safe:
    told = "No conversation has such a name." if wanted else "There are no conversations yet."
    return tag("p", told, class_="quiet")


def _hit(found: SearchResult) -> Safe:
    record = found.record
    where = context_address(record.context_id, at=record.id) + f"#r{record.id}"
    return tag(
        "li",
        tag(
            "h2",
            link(where, tag("bdi", short(found.context)), f" #{record.seq}"),
            role_tag(record),
        ),
        tag("p", _snippet(found), dir="auto"),
        moment(record.timestamp),
    )


def _snippet(found: SearchResult) -> Safe:
    """The piece of the text, with what was looked for marked."""
    out: list[Child] = []
    end = 0
    for first, last in found.highlights:
        out += [found.snippet[end:first], tag("mark", found.snippet[first:last])]
        end = last
    out.append(found.snippet[end:])
    return render(out)


ROUTES = [Route("/", index), Route("/search", search)]
