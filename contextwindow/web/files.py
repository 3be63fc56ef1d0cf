"""What leaves the inspector as a file: attachments and exports."""

from __future__ import annotations

import re
from typing import Final
from urllib.parse import quote

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from contextwindow.web.conversation import above, one_record, tabs
from contextwindow.web.inspector import number_in, of
from contextwindow.web.layout import context_address, page
from contextwindow.web.markup import link, tag
from contextwindow.web.records import PICTURES

_UNSAFE: Final = re.compile(r'[\0-\x1f\x7f-\x9f"%*/:<>?\\|\u200e\u200f\u2028-\u202e\u2066-\u2069]')
_LONGEST: Final = 120

_FORMATS: Final = {
    "json": ("JSON", "with everything, for import_context()"),
    "markdown": ("Markdown", "a document to read"),
    "html": ("HTML", "one file without scripts"),
}
_ENDINGS: Final = {"json": "json", "markdown": "md", "html": "html"}


def attachment(request: Request) -> Response:
    """The bytes of an attachment; only a picture is shown, all else is given away."""
    _, reader = of(request).reader(request.path_params["id"])
    record = one_record(reader, number_in(request, "record"))
    number = number_in(request, "number")
    if number >= len(record.attachments) or record.attachments[number].data is None:
        raise HTTPException(404, "There is no such file")
    one = record.attachments[number]
    assert one.data is not None  # noqa: S101 - just seen
    shows = one.media_type in PICTURES and "download" not in request.query_params
    return file(one.data, one.name or "attachment", one.media_type if shows else None)


def exports(request: Request) -> Response:
    """The forms in which a conversation leaves."""
    context, _ = of(request).reader(request.path_params["id"])
    ways = (
        tag(
            "li",
            link(context_address(context.id, "export", form), name),
            f": {what}",
        )
        for form, (name, what) in _FORMATS.items()
    )
    return page(
        request, "Export", tabs(request, context.id), tag("ul", *ways), trail=above(context)
    )


def export(request: Request) -> Response:
    """A conversation as a file."""
    context, reader = of(request).reader(request.path_params["id"])
    form = request.path_params["form"]
    match form:
        case "json":
            text = reader.export_context_json()
        case "markdown":
            text = reader.export_markdown()
        case "html":
            text = reader.export_html()
        case _:
            raise HTTPException(404, "There is no such form")
    return file(text.encode(), f"{context.name[:_LONGEST]}.{_ENDINGS[form]}")


def file(data: bytes, name: str, shown_as: str | None = None) -> Response:
    """Bytes for the browser to save.

    Args:
        shown_as: the type as which it may show them instead.
    """
    safe = safe_name(name)
    plain = safe.encode("ascii", "replace").decode().replace("?", "_")
    how = "inline" if shown_as else "attachment"
    names = f"filename=\"{plain}\"; filename*=UTF-8''{quote(safe, safe='')}"
    return Response(
        data,
        headers={
            "Content-Type": shown_as or "application/octet-stream",
            "Content-Disposition": f"{how}; {names}",
            "Content-Security-Policy": "default-src 'none'; sandbox; frame-ancestors 'none'",
        },
    )


def safe_name(name: str) -> str:
    """*name* without anything that leads elsewhere, hides the file, or means something."""
    last = re.split(r"[/\\]", name)[-1]
    safe = _UNSAFE.sub("_", last).strip(" .")
    stem, dot, ending = safe.rpartition(".")
    if len(safe) > _LONGEST:
        ending = ending[:20] if dot else ""
        safe = f"{(stem or safe)[: _LONGEST - 21]}.{ending}".rstrip(".")
    return safe or "attachment"


ROUTES = [
    Route("/c/{id}/files/{record}/{number}", attachment),
    Route("/c/{id}/export", exports),
    Route("/c/{id}/export/{form}", export),
]
