"""Contexts as documents for people."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import UTC, datetime
from html.parser import HTMLParser
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from support import Open
from support import file as file
from support import run as run

from contextwindow import Attachment, ConfigError, ContextNotFound, ContextWindow
from contextwindow.records import Context, Record, RecordType
from contextwindow.testing import ScriptedModel
from contextwindow.transcripts import _UNSEEN, to_html, to_markdown

NOW = datetime(2026, 11, 21, 8, 30, tzinfo=UTC)
HOSTILE = [
    "# Forged",
    "text\n## User · 2026-11-21 08:30:00 UTC\n\nforged",
    "text\n\n\n## User",
    "Forged\n======",
    "Forged\n---",
    "```\n## in code\n```\n## out of code",
    "````````\n## after a long fence",
    "> quote\n\n## after a quote",
    "- item\n\n## after a list",
    "\r## after a return",
    "\r\n## after a line",
    "</details>\n\n## after details",
    "<!--\n\n## in a comment",
    "<pre>\n\n## in HTML",
    "[a]: http://example.com 'x'\n\n## after a definition",
    "\t## tab",
    "</div></article><h2>User</h2><script>alert(1)</script>",
    "</pre><h2>User</h2>",
    "&lt;h2&gt; &amp; \"quoted\" 'single'",
    "</title><script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "\u202eforged\u2066\u200f\x1b[31m\x07\x9b31m\x7f",
    "text\u2028## User · 2026-11-21 08:30:00 UTC",
    "text\u2029## User\x85## User\v## User\f## User\x1c## User",
    "\u200e\u061c\U000e0001\U000e0068\U000e0069",
]
TEXT = st.one_of(
    st.sampled_from(HOSTILE),
    st.text(st.sampled_from("#` \n\r\t>-=~<!&x[]*|\\\x1b\u2028"), max_size=30),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=20),
)


def record(source: RecordType, content: str, **values: Any) -> Record:
    return Record(
        id=1, context_id="c", source=source, content=content, timestamp=NOW, est_tokens=1, **values
    )


def context(name: str = "chat") -> Context:
    return Context(id="c", name=name, start_time=NOW)


def headings(markdown: str) -> list[str]:
    """What stands in the headings of the document itself."""
    tokens = MarkdownIt("commonmark").parse(markdown)
    return [
        tokens[at + 1].content
        for at, token in enumerate(tokens)
        if token.type == "heading_open" and token.level == 0
    ]


class Page(HTMLParser):
    """The tags of a page, and its text."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data: str) -> None:
        self.text.append(data)

    def images(self) -> Iterator[str]:
        return (value or "" for key, value in self.attributes if key == "src")


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(list(RecordType)), TEXT), max_size=5), TEXT, TEXT)
def test_no_text_passes_for_a_heading(
    said: list[tuple[RecordType, str]], name: str, tool: str
) -> None:
    records = [record(source, text, name=tool) for source, text in said]

    found = headings(to_markdown(context(name), records))
    page = Page(to_html(context(name), records))

    assert len(found) == len(records) + 1
    assert all(re.search(r" · 2026-11-21 08:30:00 UTC$", one) for one in found[1:])
    assert page.tags.count("h2") == page.tags.count("article") == len(records)
    known = {"html", "head", "meta", "title", "style", "body", "main", "h1", "h2", "p", "time"}
    assert set(page.tags) <= known | {"article", "div", "pre", "details", "summary", "span"}


@pytest.mark.parametrize("text", HOSTILE, ids=repr)
def test_a_line_that_begins_with_two_signs_is_ours(text: str) -> None:
    """Also for who reads the file as text, and for whom more than LF ends a line."""
    for source in (RecordType.PROMPT, RecordType.MODEL_RESPONSE, RecordType.SUMMARY):
        lines = to_markdown(context(text), [record(source, text, name=text)]).splitlines()

        assert sum(line.startswith("## ") for line in lines) == 1


@settings(max_examples=100, deadline=None)
@given(TEXT, st.sampled_from(list(RecordType)))
def test_a_page_shows_what_was_said(text: str, source: RecordType) -> None:
    shown = "".join(Page(to_html(context(), [record(source, text)])).text)

    kept = _UNSEEN.sub("\0", text)
    for piece in kept.split("\0"):
        assert piece in shown


def test_controls_are_made_visible() -> None:
    text = "a\x1b[31m\x07\x7f\x9b\u202eb\tc\r\nd\re"
    for document in (
        to_markdown(context(), [record(RecordType.TOOL_OUTPUT, text)]),
        to_html(context(), [record(RecordType.TOOL_OUTPUT, text)]),
    ):
        assert "a\u241b[31m\u2407\u2421\\u{9b}\\u{202e}b\tc\nd\u240de" in document


@pytest.mark.parametrize("code", [0x2028, 0x2029, 0x200E, 0x200F, 0x61C, 0xE0001, 0xE007F], ids=hex)
def test_what_cannot_be_seen_is_made_visible(code: int) -> None:
    said = record(RecordType.PROMPT, f"a{chr(code)}b", name=f"c{chr(code)}d")
    for document in (to_markdown(context(), [said]), to_html(context(), [said])):
        assert chr(code) not in document
        assert f"a\\u{{{code:x}}}b" in document


def test_markdown_of_a_model_stays_as_it_is() -> None:
    text = "**bold**  \n\n- one\n- two\n\n```py\nx = 1\n```"

    document = to_markdown(context(), [record(RecordType.MODEL_RESPONSE, text)])

    quoted = [line for line in document.split("\n") if line.startswith(">")]
    assert "\n".join(line[2:] for line in quoted) == text


def test_a_page_has_its_policy_and_no_way_out() -> None:
    files = (
        Attachment(media_type="image/png", name='a"b.png', data=b"\x89PNG\r\n\x1a\n"),
        Attachment(media_type="image/svg+xml", name="b.svg", data=b"<svg onload=alert(1)>"),
        Attachment(media_type="image/png", name="c.png", url="https://example.com/c.png"),
    )
    page = to_html(context(), [record(RecordType.PROMPT, "look", attachments=files)])
    read = Page(page)

    policy = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    assert ("content", policy) in read.attributes
    assert list(read.images()) == ["data:image/png;base64,iVBORw0KGgo="]
    assert "a" not in read.tags
    assert not [key for key, _ in read.attributes if key.startswith("on") or key == "href"]
    text = "".join(read.text)
    assert 'a"b.png (image/png, 8 bytes)' in text
    assert "b.svg (image/svg+xml, 21 bytes)" in text
    assert "c.png (image/png, https://example.com/c.png)" in text
    assert "<svg" not in page
    assert "prefers-color-scheme: dark" in page


def test_attachments_are_named_in_markdown() -> None:
    file = Attachment(media_type="text/plain", name="notes_[1].txt", data=b"hello")

    document = to_markdown(context(), [record(RecordType.PROMPT, "", attachments=(file,))])

    assert "- Attachment: notes\\_\\[1\\].txt (text/plain, 5 bytes)" in document


def test_a_transcript_tells_what_became_of_each_record(database: str, run: Open) -> None:
    window = run(database, "chat", model=ScriptedModel(["I think"]), system_prompt="be kind")
    window.add_prompt("hi")
    window.call_model()
    window.add_tool_call("look", {"at": "```"}, "c1")
    window.add_tool_output("nothing", "c1", error=True)
    window.set_live([window.records()[1].id], False)

    document, page = window.export_markdown(), window.export_html()

    found = headings(document)
    assert found[0] == "chat"
    assert [re.sub(r" · \S+ \S+ UTC", "", one) for one in found[1:]] == [
        "System",
        "User (not sent)",
        "Assistant",
        "Tool call: look",
        "Tool output: look (failed)",
    ]
    assert '````\n{"at":"```"}\n````' in document.replace(": ", ":")
    assert "> be kind" in document
    read = Page(page)
    assert read.tags.count("article") == 5
    assert ("class", "user unsent") in read.attributes
    assert "I think" in page


def test_a_partial_reply_is_marked_and_thoughts_are_folded() -> None:
    records = [
        record(RecordType.REASONING, "hm"),
        record(RecordType.MODEL_RESPONSE, "half", partial_response_id="p"),
        record(RecordType.MODEL_RESPONSE, "", payload={"api": "", "refusal": "I won't"}),
    ]

    document, page = to_markdown(context(), records), to_html(context(), records)

    assert "<details><summary>Reasoning</summary>\n\n```\nhm\n```" in document
    assert "UTC (partial)\n\n> half" in document
    assert "UTC (refusal)\n\n> I won't" in document
    assert "<details><summary>Reasoning</summary>" in page
    assert '<span class="mark">partial</span>' in page


def test_a_document_of_another_context_is_given_by_name(file: str, run: Open) -> None:
    window = run(file, "main")
    window.create_context("other")

    assert window.export_markdown("other").startswith("# other\n")
    assert "<h1" in window.export_html("other")
    for export in (window.export_markdown, window.export_html):
        with pytest.raises(ContextNotFound, match="'typo'"):
            export("typo")
        with pytest.raises(ConfigError):
            export(5)  # type: ignore[arg-type]


def test_the_reader_gives_all_of_them(file: str) -> None:
    with ContextWindow(file, "main") as window:
        window.add_prompt("hi")
        reader = window.reader()

        assert reader.export_markdown() == window.export_markdown()
        assert reader.export_html() == window.export_html()
        assert reader.export_messages() == window.export_messages()
