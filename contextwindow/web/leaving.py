"""The page between a text of a conversation and wherever an address in it leads."""

from __future__ import annotations

import re
import unicodedata
from typing import Final
from urllib.parse import SplitResult, quote, urlsplit, urlunsplit

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from contextwindow.web.layout import facts, page
from contextwindow.web.markup import LONGEST_LINK, tag

_NAME: Final = re.compile(r"[0-9a-z_.-]+")
_NUMBER: Final = re.compile(r"[0-9a-f:.]+")

_PART: Final = "/%:@!$&'()*+,;=~?"
"""What stands in a path or a query as it is."""


def leave(request: Request) -> Response:
    """Show where a link leads before anybody is sent there."""
    found = _plain(request.query_params.get("to", ""))
    if found is None:
        raise HTTPException(400, "That is no address of the web")
    host, target = found
    return page(
        request,
        "Leave the inspector?",
        tag("p", "This address was written in a conversation, perhaps by a model."),
        facts(("Site", host), ("Address", tag("code", target))),
        tag(
            "p",
            tag(
                "a",
                f"Open {host}",
                href=target,
                rel="noopener noreferrer nofollow",
                target="_blank",
                class_="button",
            ),
        ),
    )


def _plain(target: str) -> tuple[str, str] | None:
    """The site of an address, and the address as everybody reads it alike.

    None where browsers may read another site in it: they take a backslash for a slash, and leave
    out what cannot be seen.
    """
    if len(target) > LONGEST_LINK or "\\" in target:
        return None
    # Controls, marks, lone surrogates; all that is blank.
    if any(unicodedata.category(one)[0] in "CZ" for one in target):
        return None
    try:
        parts = urlsplit(target)
        host = _host(parts)
        port = parts.port
    except ValueError:
        return None
    if host is None or parts.scheme not in ("http", "https"):
        return None
    place = host if port is None else f"{host}:{port}"
    path, query, mark = (quote(one, _PART) for one in (parts.path, parts.query, parts.fragment))
    return host, urlunsplit((parts.scheme, place, path, query, mark))


def _host(parts: SplitResult) -> str | None:
    """The host in the letters that are asked for, in which no two names look alike.

    Raises:
        ValueError: it has none.
    """
    if "@" in parts.netloc or not parts.hostname:
        return None
    if ":" in parts.hostname:
        return f"[{parts.hostname}]" if _NUMBER.fullmatch(parts.hostname) else None
    name = parts.hostname.encode("idna").decode().lower()
    return name if _NAME.fullmatch(name) else None


ROUTES = [Route("/leave", leave)]
