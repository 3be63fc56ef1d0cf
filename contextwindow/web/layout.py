"""What every page has: its head, its navigation, its search field."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal
from typing import Final

from starlette.requests import Request
from starlette.responses import HTMLResponse

from contextwindow import Record, RecordType
from contextwindow.web.inspector import of
from contextwindow.web.markup import Child, Safe, address, link, render, tag


def page(
    request: Request,
    title: str,
    *body: Child,
    trail: Child = None,
    script: bool = False,
    wide: bool = False,
    status: int = 200,
) -> HTMLResponse:
    """A whole page.

    Args:
        trail: links to what is above it, in front of its heading.
        script: whether it changes by itself.
        wide: use all of a broad screen.
    """
    inspector = of(request)
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("title", f"{short(title)} · contextwindow"),
        tag("link", rel="icon", href="/static/icon.svg", type="image/svg+xml"),
        tag("link", rel="stylesheet", href="/static/inspector.css"),
        tag("script", src="/static/inspector.js", defer=True) if script else None,
    )
    banner = tag(
        "header",
        link(
            "/",
            tag("span", "▤", class_="logo", aria_hidden="true"),
            " contextwindow",
            class_="brand",
        ),
        tag(
            "nav",
            _tab(request, "/", "Conversations"),
            _tab(request, "/usage", "Usage"),
            aria_label="Main",
        ),
        search_form(request.query_params.get("q", "") if request.url.path == "/search" else ""),
        tag("span", "read only", class_="tag", title="Nothing can be changed here")
        if inspector.read_only
        else None,
        class_="banner",
    )
    main = tag(
        "main",
        tag("nav", trail, class_="trail", aria_label="Above this page") if trail else None,
        tag("h1", short(title), dir="auto"),
        *body,
        id="main",
        class_="broad" if wide else None,
        tabindex="-1",
    )
    foot = tag("footer", tag("span", inspector.store.location, class_="path"))
    skip = tag("a", "Skip to the content", href="#main", class_="skip")
    return HTMLResponse(
        "<!doctype html>\n" + tag("html", head, tag("body", skip, banner, main, foot), lang="en"),
        status,
    )


def search_form(asked: str) -> Safe:
    """The field that searches all conversations."""
    return tag(
        "form",
        tag("label", "Search all text", for_="search", class_="unseen"),
        tag(
            "input",
            type="search",
            name="q",
            id="search",
            value=asked,
            placeholder="Search all text",
        ),
        tag("button", "Search"),
        action="/search",
        role="search",
        class_="search",
    )


def action(request: Request, where: str, *fields: Child, label: str, **more: str | bool) -> Safe:
    """A form of one button; nothing where the database is only read."""
    if of(request).read_only:
        return Safe("")
    return tag(
        "form",
        proof(request),
        *fields,
        tag("button", label, **more),
        method="post",
        action=where,
        class_="action",
    )


def proof(request: Request) -> Safe:
    """The field by which a form is known to come from these pages."""
    return tag("input", type="hidden", name="proof", value=request.scope["state"]["proof"])


def hidden(name: str, value: str | int) -> Safe:
    """A field that nobody sees."""
    return tag("input", type="hidden", name=name, value=str(value))


def facts(*pairs: tuple[str, Child]) -> Safe:
    """Figures with their names; those that are None are left out."""
    shown = (
        tag("div", tag("dt", name), tag("dd", value)) for name, value in pairs if value is not None
    )
    return tag("dl", *shown, class_="facts")


def table(
    caption: str, columns: list[str], rows: list[list[Child]], *, numbers: range = range(0)
) -> Safe:
    """A table; on a narrow screen each row stands by itself, with the names of its columns.

    Args:
        caption: what it is, for who does not see it.
        numbers: the columns that hold numbers.
    """
    heads = (
        tag("th", name, scope="col", class_="number" if at in numbers else None)
        for at, name in enumerate(columns)
    )
    body = (
        tag("tr", *(_cell(at, one, columns, numbers) for at, one in enumerate(row))) for row in rows
    )
    return tag(
        "table",
        tag("caption", caption, class_="unseen"),
        tag("thead", tag("tr", *heads)),
        tag("tbody", *body),
    )


def _cell(at: int, child: Child, columns: list[str], numbers: range) -> Safe:
    if not at:
        return tag("th", child, scope="row")
    return tag("td", child, class_="number" if at in numbers else None, data_label=columns[at])


def pager(*ways: tuple[str, str | None]) -> Safe:
    """Links to other pages of the same; those that lead nowhere are left out."""
    links = [link(where, name) for name, where in ways if where]
    return tag("nav", *links, class_="pager", aria_label="Pages") if links else Safe("")


def short(text: str, most: int = 160) -> str:
    """*text*, or its beginning, for a heading or a line of a list."""
    return text if len(text) <= most else text[: most - 1] + "…"


_STATES: Final = {
    "running": "running",
    "interrupted": "interrupted",
    "cancelled": "cancelled",
    "failed": "failed",
    "awaiting": "awaits a tool",
}


def role_tag(record: Record) -> Safe:
    """What a record is, in the colour of its kind."""
    return tag("span", record.source.label, class_=f"role kind-{kind_of(record.source)}")


def kind_of(source: RecordType) -> str:
    """The class of a kind of records, such as ``tool-call``."""
    return source.name.lower().replace("_", "-")


def state_tag(state: str | None) -> Safe:
    """What is to be said of a turn; nothing of one that is complete."""
    if state not in _STATES:
        return Safe("")
    return tag("span", _STATES[state], class_=f"tag {state}")


def moment(when: datetime | None) -> Safe:
    """A time, to the second, in UTC."""
    if when is None:
        return render("never")
    shown = when.astimezone(UTC)
    return tag(
        "time", f"{shown:%Y-%m-%d %H:%M:%S}", datetime=shown.isoformat(), title=f"{shown:%A} (UTC)"
    )


def dollars(cost: Decimal | None) -> str:
    """US dollars, with the digits that tell something."""
    if cost is None:
        return "unknown"
    if 0 < cost < Decimal("0.0001"):
        return "< $0.0001"
    return f"${cost:.4f}" if 0 < cost < 1 else f"${cost:,.2f}"


def seconds(duration: float | None) -> str | None:
    """A duration."""
    return None if duration is None else f"{duration:.2f} s"


def context_address(context_id: str, *more: str | int, **query: str | int | None) -> str:
    """The address of a page of a context."""
    return address("c", context_id, *more, **query)


def _tab(request: Request, where: str, name: str) -> Safe:
    here = request.url.path == where
    return link(where, name, aria_current="page" if here else None)
