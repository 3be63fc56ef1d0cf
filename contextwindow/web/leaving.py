"""The page between a text of a conversation and wherever an address in it leads."""

from __future__ import annotations

from urllib.parse import urlsplit

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from contextwindow.web.layout import facts, page
from contextwindow.web.markup import LONGEST_LINK, tag


def leave(request: Request) -> Response:
    """Show where a link leads before anybody is sent there."""
    target = request.query_params.get("to", "")
    try:
        parts = urlsplit(target)
        host = parts.hostname
    except ValueError:
        host = None
    if not host or parts.scheme not in ("http", "https") or len(target) > LONGEST_LINK:
        raise HTTPException(400, "That is no address of the web")
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


ROUTES = [Route("/leave", leave)]
