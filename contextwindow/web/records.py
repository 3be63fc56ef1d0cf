"""One record on a page: what it says, what it is, and what can be done with it."""

from __future__ import annotations

import json
import re
from typing import Final

from starlette.requests import Request

from contextwindow import Attachment, Record, RecordType
from contextwindow.web.inspector import of
from contextwindow.web.layout import (
    action,
    context_address,
    hidden,
    kind_of,
    moment,
    proof,
    short,
)
from contextwindow.web.markup import Child, Safe, address, link, prose, tag

PICTURES: Final = frozenset({"image/png", "image/jpeg", "image/gif", "image/webp"})
"""What a browser may show by itself; all else is only given away as a file."""

LONGEST: Final = 12_000
"""Characters of a text that a page shows of each record."""

_DEEPEST: Final = 20
_BLANKS: Final = 4
"""How much longer JSON may become by its line breaks."""

_JSON: Final = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"|[{\[]\s*[}\]]?|,\s*|[}\]]')

_FOLDED: Final = {
    RecordType.TOOL_CALL: "arguments",
    RecordType.TOOL_OUTPUT: "output",
    RecordType.REASONING: "reasoning",
}


def article(request: Request, record: Record, *, running: bool = False, acts: bool = True) -> Safe:
    """A record of a conversation.

    Args:
        running: whether the turn that it belongs to is under way.
        acts: whether to offer what can be done with it.
    """
    partial = record.partial_response_id is not None
    growing = partial and running
    classes = ["record", f"kind-{kind_of(record.source)}"]
    classes += ["unsent"] * (not record.live) + ["growing" if growing else "partial"] * partial
    label = record.source.label
    title = f"{label}: {record.name}" if record.name else label
    heading = f"h{record.id}"
    return tag(
        "article",
        tag(
            "header",
            tag("h2", short(title), id=heading, dir="auto"),
            _marks(record, growing=growing),
            tag("span", f"{record.est_tokens:,} tokens", class_="quiet"),
            moment(record.timestamp),
            link(
                _own_page(record),
                f"#{record.seq}",
                class_="place",
                aria_label=f"Record {record.seq}",
            ),
            _menu(request, record) if acts else None,
        ),
        _body(record, growing=growing),
        [_attachment(record, number, one) for number, one in enumerate(record.attachments)],
        class_=" ".join(classes),
        id=f"r{record.id}",
        data_record=record.id,
        aria_labelledby=heading,
    )


def whole(record: Record, first: int = 0, most: int = LONGEST) -> Safe:
    """The text of a record, as much of it as a page can show."""
    text = record.content[first : first + most]
    if record.source in (RecordType.TOOL_CALL, RecordType.TOOL_OUTPUT) and not first:
        return tag(
            "div",
            _indented(text) if len(record.content) <= most else text,
            class_="text code",
            dir="auto",
            tabindex="0",
        )
    return tag("div", prose(text), class_="text", dir="auto", data_length=len(record.content))


def described(one: Attachment) -> str:
    """What a file is, in a line."""
    size = "at its address" if one.data is None else f"{len(one.data):,} bytes"
    return f"{one.media_type}, {size}"


def _own_page(record: Record) -> str:
    return context_address(record.context_id, "records", record.id)


def _marks(record: Record, *, growing: bool) -> list[Safe]:
    marks = []
    if growing:
        marks.append(tag("span", "being written", class_="tag running"))
    elif record.partial_response_id is not None:
        marks.append(tag("span", "partial", class_="tag interrupted", title="It was cut off"))
    if not record.live:
        marks.append(tag("span", "not sent", class_="tag", title="Not sent to the model any more"))
    if record.pinned:
        marks.append(tag("span", "pinned", class_="tag", title="Kept when the window is full"))
    if record.error:
        marks.append(tag("span", "failed", class_="tag failed"))
    return marks


def _body(record: Record, *, growing: bool) -> Child:
    text = whole(record) if record.content else None
    if growing:
        text = tag(
            "div",
            record.content[-LONGEST:],
            class_="text",
            dir="auto",
            data_length=len(record.content),
            aria_live="polite" if record.source is RecordType.MODEL_RESPONSE else None,
        )
    more = None
    if len(record.content) > LONGEST:
        more = tag(
            "p", link(_own_page(record), f"All {len(record.content):,} characters"), class_="more"
        )
    if text is None and record.payload is not None:
        return tag(
            "p", "No text. ", link(_own_page(record), "What the provider sent"), class_="quiet"
        )
    if record.source not in _FOLDED or text is None:
        return [text, more]
    name = _FOLDED[record.source]
    preview = short(" ".join(record.content[:300].split()), 100)
    return tag(
        "details",
        tag(
            "summary",
            tag("span", name.capitalize(), class_="unseen"),
            tag("span", preview, class_="preview", dir="auto"),
        ),
        text,
        more,
        open=growing,
    )


def _indented(text: str) -> str:
    """JSON with line breaks between its values and nothing else changed; anything else as it is.

    What is very deep, or would become very long, goes on as it stands.
    """
    if text[:1] not in ("{", "[") or "\n" in text:
        return text
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return text
    out: list[str] = []
    done = depth = 0
    room = _BLANKS * len(text)
    for found in _JSON.finditer(text):
        first, last = found[0][0], found[0][-1]
        # Texts are left alone, and so is what holds nothing.
        if first == '"' or (first in "{[" and last in "}]"):
            continue
        inner = depth + (first in "{[") - (first in "}]")
        if max(inner, depth) <= _DEEPEST:
            at = found.start() if first in "}]" else found.end()
            out += [text[done:at], "\n", "  " * inner]
            done = at
            room -= 1 + 2 * inner
            if room < 0:
                break
        depth = inner
    return "".join([*out, text[done:]])


def _attachment(record: Record, number: int, one: Attachment) -> Safe:
    name = short(one.name) or "unnamed file"
    if one.data is None:
        away = address("leave", to=one.url or "")
        shown = tag("a", one.url or "", href=away, rel="noopener noreferrer", class_="away")
        return tag("p", shown, tag("span", described(one), class_="quiet"), class_="file")
    where = context_address(record.context_id, "files", record.id, number)
    picture = None
    if one.media_type in PICTURES:
        picture = link(where, tag("img", src=where, alt=name, loading="lazy"), class_="picture")
    return tag(
        "p",
        picture,
        link(f"{where}?download=1", tag("bdi", name)),
        tag("span", described(one), class_="quiet"),
        class_="file",
    )


def _menu(request: Request, record: Record) -> Safe | None:
    if of(request).read_only:
        return None
    number = hidden("record", record.id)
    live = "" if record.live else "1"
    pinned = "" if record.pinned else "1"
    fork = tag(
        "form",
        proof(request),
        number,
        tag("label", "Fork here as", for_=f"f{record.id}"),
        tag("input", name="name", id=f"f{record.id}", required=True, autocomplete="off"),
        tag("button", "Fork"),
        method="post",
        action=context_address(record.context_id, "fork"),
    )
    return tag(
        "details",
        tag("summary", "⋯", aria_label=f"Actions for record {record.seq}", title="Actions"),
        tag(
            "div",
            action(
                request,
                context_address(record.context_id, "live"),
                number,
                hidden("live", live),
                label="Send it again" if live else "Send it no more",
            ),
            action(
                request,
                context_address(record.context_id, "pin"),
                number,
                hidden("pinned", pinned),
                label="Pin" if pinned else "Unpin",
            ),
            fork,
            class_="box",
        ),
        class_="menu",
    )
