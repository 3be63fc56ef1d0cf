"""A context as a document for people: Markdown, or one HTML file.

Nothing in a record can pass for a heading of the transcript.  In Markdown what somebody wrote is
quoted, each line of it behind ``> ``, and what tools and thoughts hold stands in code blocks whose
fences are longer than any in it: a line that begins with ``## `` is ours.  Markup inside the
quotes stays as it is; a viewer that lets raw HTML through draws what that says.  In HTML every text
is escaped, nothing is fetched and nothing can run.

Control characters, what ends a line for some readers alone, what turns the direction of the text,
and tags, which nobody sees, are made visible.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator, Sequence
from html import escape
from typing import Final

from contextwindow.models.steps import refusal_of
from contextwindow.records import Attachment, Context, Record, RecordType

_CODE: Final = (RecordType.TOOL_CALL, RecordType.TOOL_OUTPUT)
# Drawn by a browser; an SVG is a document that may hold more than a picture.
_PICTURES: Final = ("image/png", "image/jpeg", "image/gif", "image/webp")

# Controls; marks and isolates that turn the direction; separators at which many a reader begins a
# line; tags, which spell text that nobody sees.
_UNSEEN: Final = re.compile(
    "[\0-\b\v-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\U000e0000-\U000e007f]"
)
_TICKS: Final = re.compile("`+")
_MARKUP: Final = re.compile(r"([\\`*_\[\]<>&#~|$!])")

_POLICY: Final = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
_STYLE: Final = """
:root { color-scheme: light dark; --back: #fff; --text: #1c1e21; --soft: #5c6370;
  --line: #d8dce2; --box: #f4f6f8; --user: #2563a8; --model: #2c7a4b; --tool: #8a5a00; }
@media (prefers-color-scheme: dark) {
  :root { --back: #16181c; --text: #e4e6ea; --soft: #9aa2ae; --line: #343a43; --box: #1f2329;
    --user: #7ab5f0; --model: #7fcf9c; --tool: #e0b058; } }
body { margin: 0; background: var(--back); color: var(--text);
  font: 1rem/1.55 system-ui, sans-serif; }
main { max-width: 46rem; margin: 0 auto; padding: 1.5rem 1rem 4rem; }
h1 { font-size: 1.4rem; overflow-wrap: anywhere; }
h2 { font-size: 1rem; margin: 0; display: inline; overflow-wrap: anywhere; }
article { border-left: 3px solid var(--line); padding: 0 0 0 1rem; margin: 1.5rem 0; }
article.user { border-color: var(--user); } article.user h2 { color: var(--user); }
article.assistant { border-color: var(--model); } article.assistant h2 { color: var(--model); }
article.tool { border-color: var(--tool); } article.tool h2 { color: var(--tool); }
article.unsent { border-left-style: dashed; } article.unsent .body { opacity: .65; }
time, .file, .count, summary { color: var(--soft); font-size: .85rem; }
.mark { border: 1px solid var(--line); border-radius: .6rem; padding: 0 .5rem;
  font-size: .8rem; color: var(--soft); }
.text, pre { white-space: pre-wrap; overflow-wrap: anywhere; unicode-bidi: isolate; }
.text { margin: .3rem 0; }
pre { background: var(--box); padding: .6rem .8rem; border-radius: .3rem; margin: .4rem 0;
  font: .85rem/1.45 ui-monospace, monospace; }
img { display: block; max-width: 100%; max-height: 30rem; margin: .4rem 0; }
"""


def to_markdown(context: Context, records: Sequence[Record]) -> str:
    """The transcript of *records*, live or not, as CommonMark."""
    lines = [f"# {_inline(context.name)}", ""]
    for record in records:
        marks = "".join(f" ({mark})" for mark in _marks(record))
        lines += [f"## {_inline(_title(record))} · {_time(record)}{marks}", ""]
        lines += _markdown_body(record)
        for one in record.attachments:
            lines += [f"- Attachment: {_inline(_described(one))}", ""]
    return "\n".join(lines)


def to_html(context: Context, records: Sequence[Record]) -> str:
    """The transcript of *records*, live or not, as one file that needs no other."""
    name = _text(context.name, lines=False)
    articles = "\n".join(_article(record) for record in records)
    count = "1 record" if len(records) == 1 else f"{len(records):,} records"
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="referrer" content="no-referrer">\n'
        f"<title>{name}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n<main>\n"
        f'<h1 dir="auto">{name}</h1>\n<p class="count">{count}</p>\n'
        f"{articles}\n</main>\n</body>\n</html>\n"
    )


def _markdown_body(record: Record) -> list[str]:
    text = _visible(_content(record))
    if not text:
        return []
    if record.source is RecordType.REASONING:
        return ["<details><summary>Reasoning</summary>", "", *_fenced(text), "</details>", ""]
    if record.source in _CODE:
        return _fenced(text)
    return [*(f"> {line}" if line else ">" for line in text.split("\n")), ""]


def _fenced(text: str) -> list[str]:
    """*text* as a code block that nothing in it can end."""
    longest = max((len(run) for run in _TICKS.findall(text)), default=0)
    fence = "`" * max(3, longest + 1)
    return [fence, text, fence, ""]


def _article(record: Record) -> str:
    kind = "tool" if record.source in _CODE else record.source.role
    unsent = "" if record.live else " unsent"
    marks = "".join(f' <span class="mark">{mark}</span>' for mark in _marks(record))
    return (
        f'<article class="{kind}{unsent}">\n'
        f'<h2 dir="auto">{_text(_title(record), lines=False)}</h2> '
        f'<time datetime="{record.timestamp.isoformat()}">{_time(record)}</time>{marks}\n'
        f'<div class="body">\n{"".join(_html_body(record))}</div>\n</article>'
    )


def _html_body(record: Record) -> Iterator[str]:
    text = _text(_content(record))
    if text and record.source is RecordType.REASONING:
        said = f'<div class="text" dir="auto">{text}</div>'
        yield f"<details><summary>Reasoning</summary>\n{said}\n</details>\n"
    elif text and record.source in _CODE:
        # A line break behind the tag would be dropped.
        yield f'<pre dir="auto">\n{text}</pre>\n'
    elif text:
        yield f'<div class="text" dir="auto">{text}</div>\n'
    for one in record.attachments:
        if one.data is not None and one.media_type in _PICTURES:
            data = base64.b64encode(one.data).decode("ascii")
            alt = _text(one.name, lines=False)
            yield f'<img alt="{alt}" src="data:{one.media_type};base64,{data}">\n'
        yield f'<p class="file" dir="auto">{_text(_described(one), lines=False)}</p>\n'


def _title(record: Record) -> str:
    role = record.source.label
    return f"{role}: {record.name}" if record.name else role


def _content(record: Record) -> str:
    return record.content + refusal_of(record)


def _marks(record: Record) -> Iterator[str]:
    """What is to be said of *record* beside its role."""
    if record.partial_response_id is not None:
        yield "partial"
    if record.error:
        yield "failed"
    if refusal_of(record):
        yield "refusal"
    if not record.live:
        yield "not sent"


def _described(one: Attachment) -> str:
    where = one.url if one.data is None else f"{len(one.data):,} bytes"
    return f"{one.name or 'unnamed'} ({one.media_type}, {where})"


def _time(record: Record) -> str:
    return f"{record.timestamp:%Y-%m-%d %H:%M:%S} UTC"


def _text(text: str, *, lines: bool = True) -> str:
    """*text* for HTML, with or without its line breaks."""
    text = _visible(text)
    return escape(text if lines else text.replace("\n", " "))


def _inline(text: str) -> str:
    """*text* within one line of Markdown, nothing of it markup."""
    return _MARKUP.sub(r"\\\1", _visible(text).replace("\n", " "))


def _visible(text: str) -> str:
    """*text* with its line breaks alike, and what cannot be seen made visible."""
    if "\r" in text:
        text = text.replace("\r\n", "\n")
    return _UNSEEN.sub(lambda found: _picture(ord(found[0])), text)


def _picture(code: int) -> str:
    if code < 0x20:
        return chr(0x2400 + code)
    return "\u2421" if code == 0x7F else f"\\u{{{code:x}}}"
