"""What a request of OpenAI's two APIs will take: messages, tools, schemas and images.

Two templates.  Up to GPT-4.1 a message is ``<|im_start|>role<|im_sep|>…<|im_end|>``, as in OpenAI's
cookbook ("How to count tokens with tiktoken").  Models that reason use "harmony", published with
gpt-oss (github.com/openai/harmony, read 2026-11): ``<|start|>role<|message|>…<|end|>``, and a
channel in front of a reply.  Both show tools to the model as a TypeScript namespace.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from contextwindow.models.pictures import decoded, size_of
from contextwindow.models.tally import (
    Count,
    Tally,
    compact,
    mapping,
    mappings,
    pages_of,
    string,
)
from contextwindow.models.typescript import namespace

_KNOWN: Final = re.compile(r"(?:^|[/:])(?:gpt-|chatgpt|o\d|codex|computer-use|ft:gpt)")
# Keep thoughts over turns unless told otherwise (as recorded with GPT-5.6).
_REMEMBERS: Final = re.compile(r"gpt-(?:5\.[6-9]|[6-9])")
_BEFORE_4O: Final = re.compile(r"gpt-(?:3|4(?![o.\d]))")
_REASONS: Final = re.compile(r"(?:^|[/:])(?:gpt-(?:[5-9]|oss)|o\d|codex)")


@dataclass(frozen=True)
class _Template:
    """What stands around the texts, in tokens.

    Attributes:
        message: around each message.
        reply: more around each reply of the model (its channel).
        opening: that begins the new reply.
        tools: more than the namespace itself.
        call: a tool call with its output, without names, arguments and output.
    """

    message: int
    reply: int
    opening: int
    tools: int
    call: int


# The marks above, counted; tools and calls: what recordings show beyond the texts.
_HARMONY: Final = _Template(message=4, reply=2, opening=2, tools=3, call=24)
_CHATML: Final = _Template(message=4, reply=0, opening=3, tools=-3, call=13)
_CHATML_3: Final = _Template(message=4, reply=0, opening=3, tools=5, call=13)

_PARALLEL_NAMESPACE: Final = 81
"""Tokens of ``multi_tool_use`` beside the tools: Chat Completions shows it to models that reason,
Responses does not (the same tools recorded on both)."""

_PARALLEL_CALLS: Final = 20
"""Tokens of the ``multi_tool_use`` call around parallel calls; Chat up to GPT-4.1."""

_SCHEMA: Final = 4
"""Tokens around the schema of a response format ("# Response Formats", "## name")."""

# Encrypted reasoning: base64 grows by 6 characters a token beyond some 1,100 (recorded replies
# whose reasoning tokens are known).
_HIDDEN_FIXED: Final = 1_100
_HIDDEN_A_TOKEN: Final = 6

_SERVER_TOOL: Final = 300
"""Tokens of a tool that OpenAI runs itself, without what it finds (web search: 295 to 310)."""

# "Images and vision", read 2026-11: tiles of 512 pixels, base and tokens of a tile …
_TILES: Final = (
    (re.compile(r"gpt-4o-mini"), 2833, 5667),
    (re.compile(r"o1|o3(?!-mini)"), 75, 150),
    (re.compile(r"gpt-5(?![.\d])(?!-mini|-nano)"), 70, 140),
    (re.compile(r"computer-use"), 65, 129),
)
_USUAL_TILES: Final = (85, 170)
# … or patches of 32 pixels, at most 1,536, and tokens of a patch.  Of GPT-5 mini and nano what is
# billed, which is less than that page says (community.openai.com/t/1344040).
_PATCHES: Final = (
    (re.compile(r"gpt-4\.1-mini"), 1.62),
    (re.compile(r"gpt-4\.1-nano"), 2.46),
    (re.compile(r"gpt-5(?:\.\d)?-nano"), 1.5),
    (re.compile(r"gpt-5-mini"), 1.2),
    (re.compile(r"o4-mini"), 1.72),
    (re.compile(r"gpt-5\.\d|gpt-[6-9]"), 1.2),
)
_MOST_PATCHES: Final = 1_536
_UNKNOWN_IMAGE: Final = 765
"""Of 1,024 by 1,024 pixels, where the size cannot be seen."""

_PDF_PAGE: Final = 1_000
"""A page's image and some text (recorded: 755 and 1,033; GPT-5.4 takes only the text)."""

_FILE: Final = 28
"""Tokens around a text file, whose name is shown, too (recorded: the text and 28)."""

_BYTES_A_SOUND_TOKEN: Final = 3_200
"""10 tokens a second ("Audio", read 2026-11) of 16-bit samples at 16 kHz."""


def chat(body: Mapping[str, Any], count: Count) -> Tally:
    """Of a request of Chat Completions."""
    tally, template = _begun(body, count)
    messages = mappings(body.get("messages"))
    declared = mappings(body.get("tools")) or mappings(body.get("functions"))
    for message in messages:
        _message(tally, template, message, body)
        calls = mappings(message.get("tool_calls")) or mappings(message.get("function_call"))
        if len(calls) > 1 and template is not _HARMONY:
            tally.add(_PARALLEL_CALLS)
        for call in calls:
            said = mapping(call.get("function")) or mapping(call.get("custom")) or call
            _call(tally, template, said, said.get("arguments") or said.get("input"))
    _tools(tally, template, declared)
    if declared and template is _HARMONY:
        tally.add(_PARALLEL_NAMESPACE)
    _format(tally, mapping(mapping(body.get("response_format")).get("json_schema")))
    return tally


def responses(body: Mapping[str, Any], count: Count) -> Tally:
    """Of a request of the Responses API."""
    tally, template = _begun(body, count)
    if body.get("instructions"):
        tally.add(template.message)
        tally.text(body["instructions"])
    given = body.get("input")
    items = mappings({"role": "user", "content": given} if isinstance(given, str) else given)
    thoughts_from = _thoughts_from(body, items)
    for at, item in enumerate(items):
        kind = item.get("type", "message")
        if kind == "message":
            _message(tally, template, item, body)
        elif kind in ("function_call", "custom_tool_call"):
            _call(tally, template, item, item.get("arguments") or item.get("input"))
        elif kind in ("function_call_output", "custom_tool_call_output"):
            _content(tally, item.get("output"), body)
        elif kind == "reasoning":
            if at >= thoughts_from:
                tally.guess(_hidden(string(item.get("encrypted_content"))))
        else:
            _content(tally, item, body)
    _tools(tally, template, mappings(body.get("tools")))
    _format(tally, mapping(mapping(body.get("text")).get("format")))
    return tally


def _thoughts_from(body: Mapping[str, Any], items: list[Mapping[str, Any]]) -> int:
    """Number of the item from which on thoughts count: those of earlier turns are left out.

    OpenAI's "Reasoning models", "Keeping reasoning items in context", read 2026-11.
    """
    context = mapping(body.get("reasoning")).get("context")
    told = isinstance(context, str) and context != "auto"
    if context == "all_turns" or (not told and _REMEMBERS.search(string(body.get("model")))):
        return 0
    return max((at for at, item in enumerate(items) if item.get("role") == "user"), default=0)


def obstacle(body: Mapping[str, Any]) -> str:
    """Why nobody can tell from *body* what it will take; empty where that is not so."""
    if body.get("previous_response_id") or body.get("conversation") or body.get("prompt"):
        return "goes on from what the provider keeps"
    if not _KNOWN.search(string(body.get("model"))):
        return "not known as a model of OpenAI's"
    tools = mappings(body.get("tools"))
    if any(one.get("type", "function") not in ("function", "custom") for one in tools):
        return "tools that the provider runs"
    items = mappings(body.get("input"))
    thoughts = [
        one for one in items[_thoughts_from(body, items) :] if one.get("type") == "reasoning"
    ]
    if not all(one.get("encrypted_content") for one in thoughts):
        return "goes on from what the provider keeps"
    parts = _parts(body.get("messages")) + _parts(items)
    for part in parts:
        kind = part.get("type")
        if kind == "item_reference":
            return "goes on from what the provider keeps"
        if isinstance(part.get("output"), list):
            parts += mappings(part["output"])
        file = mapping(part.get("file")) or part
        if file.get("file_id") or string(file.get("file_url")):
            return "a file that is not in the request"
        if _address(part).startswith(("http://", "https://")):
            return "an image that is not in the request"
        if string(file.get("file_data")).startswith("data:application/pdf"):
            return "a PDF, whose text is compressed"
        if kind == "input_audio":
            return "sound"
    return ""


def _parts(messages: object) -> list[Mapping[str, Any]]:
    found = []
    for message in mappings(messages):
        found += [message, *mappings(message.get("content"))]
    return found


def _begun(body: Mapping[str, Any], count: Count) -> tuple[Tally, _Template]:
    model = string(body.get("model"))
    template = _CHATML_3 if _BEFORE_4O.search(model) else _CHATML
    if _REASONS.search(model):
        template = _HARMONY
    tally = Tally(count)
    tally.add(template.opening)
    return tally, template


def _message(
    tally: Tally, template: _Template, message: Mapping[str, Any], body: Mapping[str, Any]
) -> None:
    role = message.get("role")
    calls = message.get("tool_calls") or message.get("function_call")
    if role not in ("tool", "function") and (message.get("content") or not calls):
        tally.add(template.message)
        if role == "assistant":
            tally.add(template.reply)
    tally.text(message.get("name") if role == "user" else None)
    _content(tally, message.get("content"), body)
    tally.text(message.get("refusal"))


def _content(tally: Tally, content: object, body: Mapping[str, Any]) -> None:
    tally.text(content)
    for part in mappings(content):
        tally.text(part.get("text"))
        tally.text(part.get("refusal"))
        kind = part.get("type")
        if kind in ("image_url", "input_image"):
            detail = part.get("detail") or mapping(part.get("image_url")).get("detail")
            tally.guess(_image(string(body.get("model")), _address(part), detail))
        elif kind in ("file", "input_file"):
            _file(tally, mapping(part.get("file")) or part)
        elif kind == "input_audio":
            sound = string(mapping(part.get("input_audio")).get("data"))
            tally.guess(len(sound) * 3 / 4 / _BYTES_A_SOUND_TOKEN + 1)


def _call(tally: Tally, template: _Template, call: Mapping[str, Any], arguments: object) -> None:
    tally.add(template.call)
    # The name stands in the call and again in front of the output.
    tally.text(call.get("name"))
    tally.text(call.get("name"))
    tally.text(arguments if isinstance(arguments, str) else compact(arguments or {}))


def _tools(tally: Tally, template: _Template, tools: list[Mapping[str, Any]]) -> None:
    functions = []
    for tool in tools:
        if tool.get("type", "function") in ("function", "custom"):
            functions.append(mapping(tool.get("function")) or mapping(tool.get("custom")) or tool)
        else:
            tally.add(_SERVER_TOOL)
            tally.text(tool.get("server_description"))
    if functions:
        tally.text(namespace(functions))
        tally.add(template.tools)


def _format(tally: Tally, form: Mapping[str, Any]) -> None:
    if form.get("schema"):
        tally.add(_SCHEMA)
        tally.text(form.get("description"))
        tally.json(form["schema"])


def _file(tally: Tally, file: Mapping[str, Any]) -> None:
    data = string(file.get("file_data"))
    tally.text(file.get("filename"))
    if data.startswith("data:text/"):
        tally.add(_FILE)
        tally.text(decoded(data).decode("utf-8", "replace"))
        return
    pages = pages_of(decoded(data)) if data else 1
    tally.guess(pages * _PDF_PAGE)


def _address(part: Mapping[str, Any]) -> str:
    image = part.get("image_url")
    return string(image) or string(mapping(image).get("url"))


def _image(model: str, address: str, detail: object) -> float:
    size = size_of(address) if address.startswith("data:") else None
    if size is None:
        return _UNKNOWN_IMAGE
    width, height = size
    rate = next((rate for name, rate in _PATCHES if name.search(model)), None)
    if rate is not None:
        patches = math.ceil(width / 32) * math.ceil(height / 32)
        return math.ceil(min(patches, _MOST_PATCHES) * rate) + 1
    base, tile = next(
        ((base, tile) for name, base, tile in _TILES if name.search(model)), _USUAL_TILES
    )
    if detail == "low":
        return base
    scale = min(1.0, 2_048 / max(width, height))
    scale *= min(1.0, 768 / (min(width, height) * scale))
    tiles = math.ceil(width * scale / 512) * math.ceil(height * scale / 512)
    return base + tiles * tile


def _hidden(encrypted: str) -> float:
    return max(len(encrypted) - _HIDDEN_FIXED, 0) / _HIDDEN_A_TOKEN
