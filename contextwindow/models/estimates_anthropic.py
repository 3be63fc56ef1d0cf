"""What a request of Anthropic's Messages API will take.

Claude's tokenizers are not public: texts are counted in OpenAI's and scaled.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

from contextwindow.models.pictures import decoded, size_of
from contextwindow.models.tally import (
    Count,
    Tally,
    mapping,
    mappings,
    pages_of,
    spaced,
    string,
)

# "Token counting" (platform.claude.com, read 2026-11): Opus from 4.7, Sonnet 5 and their
# successors give about 30 percent more tokens than the models before them.
_FORMER: Final = re.compile(
    r"claude-(?:instant|[123]|opus-4(?:-[0-6])?(?!-?\d|-[78])|(?:sonnet|haiku)-4|4-)"
)
_SCALE: Final = 1.06
"""Claude's tokens for one of ``o200k_base``, in English: 1.00 to 1.13 in recordings."""
_NEWER_SCALE: Final = 1.3

# The system prompt that comes with tools, and the one where a call is forced ("Tool use with
# Claude", "Pricing", read 2026-11).  First match; others as Sonnet 5.
_TOOL_PROMPTS: Final = (
    (re.compile(r"3-opus"), 530, 281),
    (re.compile(r"3-sonnet"), 159, 235),
    (re.compile(r"3(?:-5)?-haiku"), 264, 340),
    (re.compile(r"3-5-sonnet-20240620"), 294, 261),
    (re.compile(r"3-[57]-sonnet"), 346, 313),
    (re.compile(r"(?:opus|sonnet|haiku)-4-[56](?!\d)"), 496, 588),
    (re.compile(r"opus-4-7"), 675, 804),
    (re.compile(r"opus-4-8"), 290, 410),
    (re.compile(r"(?:opus|sonnet)-4"), 313, 315),
)
_USUAL_TOOL_PROMPT: Final = (354, 474)

# Measured on recordings: what is left beside the texts.
_OPENING: Final = 5
_MESSAGE: Final = 3
_SYSTEM: Final = 3
_THINKING: Final = 30
"""Tokens that ``thinking`` with a budget adds; adaptive thinking adds none."""
_CALL: Final = 55
"""A call and its output: XML around them, and the call's id twice."""
_ARGUMENT: Final = 10
"""XML around an argument of a call."""
_FORMAT: Final = 66
_FORMAT_SCALE: Final = 1.9
"""A response format: a prompt, and its schema in a longer form than it is sent in."""
_TOOL_SCALE: Final = 1.04

_CITATIONS: Final = 590
"""The prompt about citations, where a document asks for them (one recording)."""
_SERVER_TOOL: Final = 2_300
"""A tool that Anthropic runs itself, without what it finds (web search, code execution)."""

_DEEPEST: Final = 5

_PIXELS_A_TOKEN: Final = 750
_LONGEST_SIDE: Final = 1_568
_MOST_OF_AN_IMAGE: Final = 1_600
"""Images: width times height / 750, after scaling down ("Vision", read 2026-11)."""
_IMAGE: Final = 5
_PDF_PAGE: Final = 1_600
"""An image of the page and its text ("PDF support": 1,500 to 3,000 of text a page)."""


def messages(body: Mapping[str, Any], count: Count) -> Tally:
    """Of a request of the Messages API."""
    model = string(body.get("model"))
    scale = _SCALE if _FORMER.search(model) else _NEWER_SCALE
    tally = Tally(count, scale=scale)
    tally.add(_OPENING)
    _system(tally, body.get("system"))
    given = mappings(body.get("messages"))
    asked = _last_question(given)
    for at, message in enumerate(given):
        if message.get("role") != "assistant" or at < len(given) - 1:
            # A reply that is to be continued stands where the new one would begin.
            tally.add(_MESSAGE)
        _content(tally, message.get("content"), thoughts=at > asked)
    _tools(tally, body, model)
    if mapping(body.get("thinking")).get("type") == "enabled":
        tally.add(_THINKING)
    form = mapping(mapping(body.get("output_config")).get("format"))
    schema = mapping((form or mapping(body.get("output_format"))).get("schema"))
    if schema:
        tally.add(_FORMAT)
        tally.add(count(spaced(schema)) * _FORMAT_SCALE)
    return tally


def obstacle(body: Mapping[str, Any]) -> str:
    """Why nobody can tell from *body* what it will take; empty where that is not so."""
    if body.get("container") or body.get("mcp_servers"):
        return "tools that the provider runs"
    if any(one.get("type", "custom") != "custom" for one in mappings(body.get("tools"))):
        return "tools that the provider runs"
    if mapping(body.get("context_management")).get("edits"):
        return "the provider edits the context"
    for message in mappings(body.get("messages")):
        for block in _blocks(message.get("content")):
            source = mapping(block.get("source"))
            if source.get("type") in ("url", "file"):
                return "a file that is not in the request"
            if source.get("media_type") == "application/pdf":
                return "a PDF, whose text is compressed"
            if mapping(block.get("citations")).get("enabled"):
                return "citations"
            if block.get("type") == "compaction":
                return "the provider edits the context"
    return ""


def _blocks(content: object) -> list[Mapping[str, Any]]:
    blocks = mappings(content)
    return blocks + [inner for block in blocks for inner in mappings(block.get("content"))]


def _system(tally: Tally, system: object) -> None:
    if system:
        tally.add(_SYSTEM)
    tally.text(system)
    for block in mappings(system):
        tally.text(block.get("text"))


def _last_question(messages: list[Mapping[str, Any]]) -> int:
    """Where the user spoke last: thoughts before it are left out ("Extended thinking")."""
    for at in range(len(messages) - 1, -1, -1):
        content = messages[at].get("content")
        kinds = [block.get("type") for block in mappings(content)]
        if messages[at].get("role") == "user" and "tool_result" not in kinds:
            return at
    return -1


def _content(tally: Tally, content: object, *, thoughts: bool, depth: int = 0) -> None:
    tally.text(content)
    for block in mappings(content):
        kind = block.get("type")
        if kind == "thinking":
            if thoughts:
                tally.text(block.get("thinking"))
        elif kind in ("tool_use", "server_tool_use"):
            _call(tally, block)
        elif kind == "image":
            tally.add(_IMAGE)
            tally.guess(_image(mapping(block.get("source"))))
        elif kind == "document":
            _document(tally, block, depth)
        elif kind != "redacted_thinking":
            tally.text(block.get("text"))
            if depth < _DEEPEST:
                _content(tally, block.get("content"), thoughts=False, depth=depth + 1)


def _call(tally: Tally, call: Mapping[str, Any]) -> None:
    tally.add(_CALL)
    tally.text(call.get("name"))
    for name, value in mapping(call.get("input")).items():
        tally.add(_ARGUMENT)
        tally.text(name)
        tally.text(value if isinstance(value, str) else spaced(value))


def _tools(tally: Tally, body: Mapping[str, Any], model: str) -> None:
    tools = mappings(body.get("tools"))
    if not tools:
        return
    forced = mapping(body.get("tool_choice")).get("type") in ("any", "tool")
    prompts = ((free, must) for name, free, must in _TOOL_PROMPTS if name.search(model))
    tally.add(next(prompts, _USUAL_TOOL_PROMPT)[forced])
    for tool in tools:
        if tool.get("type", "custom") != "custom":
            tally.add(_SERVER_TOOL)
            continue
        shown = {
            "description": tool.get("description") or "",
            "name": tool.get("name"),
            "parameters": tool.get("input_schema"),
        }
        tally.text(spaced(shown))


def _document(tally: Tally, block: Mapping[str, Any], depth: int) -> None:
    source = mapping(block.get("source"))
    tally.text(block.get("title"))
    tally.text(block.get("context"))
    if mapping(block.get("citations")).get("enabled"):
        tally.add(_CITATIONS)
    if source.get("type") == "text":
        tally.text(source.get("data"))
    elif source.get("type") == "content" and depth < _DEEPEST:
        _content(tally, source.get("content"), thoughts=False, depth=depth + 1)
    else:
        data = source.get("data")
        tally.guess(_PDF_PAGE * (pages_of(decoded(data)) if data else 1))


def _image(source: Mapping[str, Any]) -> float:
    size = size_of(source.get("data"))
    if size is None:
        return _MOST_OF_AN_IMAGE
    shrunk = min(1.0, _LONGEST_SIDE / max(size))
    return min(size[0] * size[1] * shrunk * shrunk / _PIXELS_A_TOKEN, _MOST_OF_AN_IMAGE)
