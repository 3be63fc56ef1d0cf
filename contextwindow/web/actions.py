"""What can be done with a conversation; the guard has looked at every form."""

from __future__ import annotations

import hashlib

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from contextwindow import CompactionResult, ConfigError, Context
from contextwindow.web.conversation import above, tabs
from contextwindow.web.inspector import form_of, of, whole
from contextwindow.web.layout import (
    context_address,
    dollars,
    facts,
    hidden,
    moment,
    page,
    proof,
    role_tag,
    short,
    table,
)
from contextwindow.web.markup import Child, tag, visible


def live(request: Request) -> Response:
    """Set whether a record is sent to the model."""
    form, context_id = form_of(request), request.path_params["id"]
    number, wanted = _record(form), _choice(form, "live")
    with of(request).window(context_id) as (_, window):
        window.set_live([number], wanted)
    return _to(context_address(context_id, at=number) + f"#r{number}")


def pin(request: Request) -> Response:
    """Keep a record when the window is full, or no longer."""
    form, context_id = form_of(request), request.path_params["id"]
    number, wanted = _record(form), _choice(form, "pinned")
    with of(request).window(context_id) as (_, window):
        (window.pin if wanted else window.unpin)(number)
    return _to(context_address(context_id, at=number) + f"#r{number}")


def fork(request: Request) -> Response:
    """A new conversation with everything up to a record."""
    form, context_id = form_of(request), request.path_params["id"]
    with of(request).window(context_id) as (_, window):
        made = window.fork(form.get("name", ""), at=_record(form))
    return _to(context_address(made.id))


async def resume(request: Request) -> Response:
    """Go on with a reply that was cut off; the page shows how it grows."""
    form, context_id = form_of(request), request.path_params["id"]
    inspector = of(request)
    model = inspector.model or form.get("model", "").strip()
    await inspector.resume(context_id, form.get("turn", ""), model)
    return _to(context_address(context_id))


def compact(request: Request) -> Response:
    """What would leave the window, and, once that was confirmed, have it leave."""
    context_id = request.path_params["id"]
    with of(request).window(context_id) as (context, window):
        planned = window.compact(dry_run=True)
        if request.method == "POST" and form_of(request).get("plan") == _plan(planned):
            window.compact()
            return _to(context_address(context_id, "window"))
    return _planned(request, context, planned)


def delete(request: Request) -> Response:
    """Ask for the name of a conversation, and delete it."""
    inspector = of(request)
    context = inspector.store.context_by_id(request.path_params["id"])
    wrong = None
    if request.method == "POST":
        given = form_of(request).get("name", "")
        typed = _typed(given)
        # What cannot be seen cannot be typed either; but nothing at all is typed by nobody.
        alike = bool(typed) and typed in (_typed(context.name), _typed(visible(context.name)))
        if given == context.name or alike:
            # It goes by name, and none changes its own: by the id, it is still this one's.
            inspector.store.context_by_id(context.id)
            inspector.store.delete_context(context.name)
            return _to("/")
        wrong = tag(
            "p", "That is not its name; nothing was deleted.", class_="problem", role="alert"
        )
    return page(
        request,
        "Delete this conversation?",
        tabs(request, context.id),
        wrong,
        tag("p", "All its records, calls and figures go, and cannot be brought back. Its name is:"),
        tag("div", context.name, class_="text code", dir="auto"),
        tag(
            "form",
            proof(request),
            tag("label", "Type its name to delete it", for_="typed"),
            tag("input", name="name", id="typed", required=True, autocomplete="off"),
            tag("button", "Delete", class_="danger"),
            method="post",
            class_="line",
        ),
        trail=above(context),
    )


def _planned(request: Request, context: Context, planned: CompactionResult) -> Response:
    rows: list[list[Child]] = [
        [
            f"#{one.seq}",
            role_tag(one),
            short(" ".join(one.content[:300].split()), 100),
            one.est_tokens,
            moment(one.timestamp),
        ]
        for one in planned.removed[:200]
    ]
    body: list[Child] = [
        tag("p", "Nothing would leave the window.", class_="quiet"),
    ]
    if planned.removed:
        body = [
            facts(
                ("Records that would leave", len(planned.removed)),
                ("Tokens now", planned.tokens_before),
                ("Tokens then", planned.tokens_after),
                ("Still in the provider's cache", planned.cached_tokens),
                ("How", ", ".join(planned.strategies)),
                (
                    "Cost of a summary",
                    dollars(planned.cost) if planned.usage.total_tokens else None,
                ),
            ),
            tag(
                "form",
                proof(request),
                hidden("plan", _plan(planned)),
                tag("button", "Have them leave"),
                method="post",
                class_="line",
            ),
            table(
                "Records that would leave",
                ["Record", "Kind", "Text", "Tokens", "Written"],
                rows,
                numbers=range(3, 4),
            ),
        ]
    changed = None
    if request.method == "POST":
        changed = tag(
            "p", "The conversation has changed; look again.", class_="problem", role="alert"
        )
    return page(
        request,
        "Make room in the window?",
        tabs(request, context.id),
        changed,
        tag(
            "p",
            "Old tool outputs leave first, then the oldest messages, until half is left. "
            "They stay in the database, and can be sent again.",
        ),
        *body,
        trail=above(context),
    )


def _plan(planned: CompactionResult) -> str:
    """What is confirmed: these records, and no others."""
    ids = ",".join(str(one.id) for one in planned.removed)
    return hashlib.sha256(ids.encode()).hexdigest()


def _record(form: dict[str, str]) -> int:
    return whole(form.get("record", ""), "record")


def _choice(form: dict[str, str], name: str) -> bool:
    """A field that says yes by any text, and no by none; a form without it says neither."""
    if name not in form:
        raise ConfigError(f"the form does not say {name}")
    return bool(form[name])


def _typed(name: str) -> str:
    """A name as a field of one line can hold it."""
    return " ".join(name.split())


def _to(where: str) -> Response:
    return RedirectResponse(where, 303)


_POST = ["POST"]
ROUTES = [
    Route("/c/{id}/live", live, methods=_POST),
    Route("/c/{id}/pin", pin, methods=_POST),
    Route("/c/{id}/fork", fork, methods=_POST),
    Route("/c/{id}/resume", resume, methods=_POST),
    Route("/c/{id}/compact", compact, methods=["GET", "POST"]),
    Route("/c/{id}/delete", delete, methods=["GET", "POST"]),
]
