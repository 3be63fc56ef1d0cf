"""What a request of the Gemini API will take.

Gemini's tokenizer is near OpenAI's for prose, and reads numbers digit by digit.  Tools are shown in
a form of their own, which Google has published with FunctionGemma (ai.google.dev, "Function calling
with FunctionGemma", read 2026-11): ``declaration:name{description:…,parameters:{…}}``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
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

_DIGITS: Final = re.compile(r"\d+")
_BEFORE_3: Final = re.compile(r"gemini-(?:[12]|pro|flash(?!-latest))")
_BEFORE_25: Final = re.compile(r"gemini-(?:1|2\.0)")

# Measured on recordings: what is left beside the texts.
_MESSAGE: Final = 1
_SYSTEM: Final = 1
_TOOL: Final = 4
_FIELD: Final = 8
"""A parameter of a tool costs Gemini 3 more."""
_OLD_TOOL_SCALE: Final = 0.7
"""Gemini 2.0 shows tools in fewer words."""
_CALL: Final = 7
_OUTPUT: Final = 8
_SERVER_TOOL: Final = 70
"""A tool that Google runs itself, with Gemini 3 (earlier ones: none)."""

# A thought comes as a signature: characters of base64 for a token (recorded replies whose
# thoughts were counted).
_SIGNATURE: Final = 5.8
_OLD_SIGNATURE: Final = 8.0

_TILE: Final = 258
"""An image up to 384 pixels, and each tile of a larger one (ai.google.dev, "Understand tokens");
a page of a PDF."""
_SMALL: Final = 384
_IMAGE: Final = 1_090
"""Gemini 3, whatever the size: as recorded, also for one pixel."""
_PAGE: Final = 258
_PAGE_3: Final = 520
"""A page of a PDF with Gemini 3, as recorded."""
_BYTES_A_SOUND_TOKEN: Final = 500
"""32 tokens a second ("Audio understanding"), at 16,000 bytes a second."""
_DEEPEST: Final = 30


def contents(body: Mapping[str, Any], count: Count) -> Tally:
    """Of a request of ``generateContent``."""
    model = string(body.get("model"))
    former = _BEFORE_3.search(model) is not None
    tally = Tally(lambda text: count(text) + _more_digits(text))
    system = _get(body, "systemInstruction")
    if system:
        tally.add(_SYSTEM)
    tally.text(system)
    for given in mappings(system) + mappings(body.get("contents")):
        tally.add(_MESSAGE)
        for part in mappings(given.get("parts")):
            _part(tally, part, former=former)
    for tool in mappings(body.get("tools")):
        _tool(tally, tool, model, former=former)
    return tally


def obstacle(body: Mapping[str, Any]) -> str:
    """Why nobody can tell from *body* what it will take; empty where that is not so."""
    if _get(body, "cachedContent"):
        return "goes on from what the provider keeps"
    former = _BEFORE_3.search(string(body.get("model"))) is not None
    for tool in mappings(body.get("tools")):
        if _is_googles(tool) and not former:
            return "tools that the provider runs"
    for given in mappings(body.get("contents")):
        for part in mappings(given.get("parts")):
            if _get(part, "fileData"):
                return "a file that is not in the request"
            kind = string(_get(mapping(_get(part, "inlineData")), "mimeType"))
            if kind.startswith(("audio/", "video/")):
                return "sound or film"
    return ""


def _get(value: Mapping[str, Any], name: str) -> Any:
    """A field under the name of the API, or in the spelling of Python."""
    found = value.get(name)
    if found is None:
        found = value.get(re.sub(r"([A-Z])", lambda match: "_" + match[1].lower(), name))
    return found


def _more_digits(text: str) -> int:
    # o200k_base takes up to three digits at once.
    return sum(len(run) - -(-len(run) // 3) for run in _DIGITS.findall(text))


def _part(tally: Tally, part: Mapping[str, Any], *, former: bool) -> None:
    if part.get("thought") is not True:
        tally.text(part.get("text"))
    call = mapping(_get(part, "functionCall"))
    if call:
        tally.add(_CALL)
        tally.text(call.get("name"))
        tally.json(call.get("args") or {})
    output = mapping(_get(part, "functionResponse"))
    if output:
        tally.add(_OUTPUT)
        tally.text(output.get("name"))
        tally.json(output.get("response") or {})
        for inner in mappings(output.get("parts")):
            _media(tally, inner, former=former)
    code = mapping(_get(part, "executableCode"))
    tally.text(code.get("code"))
    tally.text(mapping(_get(part, "codeExecutionResult")).get("output"))
    signature = _get(part, "thoughtSignature")
    if isinstance(signature, str):
        tally.guess(len(signature) / (_OLD_SIGNATURE if former else _SIGNATURE))
    _media(tally, part, former=former)


def _media(tally: Tally, part: Mapping[str, Any], *, former: bool) -> None:
    blob = mapping(_get(part, "inlineData"))
    file = mapping(_get(part, "fileData"))
    kind = string(_get(blob or file, "mimeType"))
    data = blob.get("data")
    if not (blob or file):
        return
    if kind.startswith("image/") or (file and not kind):
        tally.guess(_image(data) if former else _IMAGE)
    elif kind.startswith("text/"):
        tally.text(decoded(data).decode("utf-8", "replace"))
    elif kind.startswith(("audio/", "video/")):
        size = len(data) if isinstance(data, (str, bytes)) else _BYTES_A_SOUND_TOKEN
        tally.guess(size * 3 / 4 / _BYTES_A_SOUND_TOKEN + 1)
    else:
        tally.guess((pages_of(decoded(data)) if data else 1) * (_PAGE if former else _PAGE_3))


def _image(data: object) -> float:
    size = size_of(data)
    if size is None or max(size) <= _SMALL:
        return _TILE
    # Tiles are cut by the smaller side, 256 to 768 pixels of it.
    crop = min(max(min(size) / 1.5, 256), 768)
    return _TILE * -(-size[0] // int(crop)) * -(-size[1] // int(crop))


def _tool(tally: Tally, tool: Mapping[str, Any], model: str, *, former: bool) -> None:
    scale = _OLD_TOOL_SCALE if _BEFORE_25.search(model) else 1.0
    for declared in mappings(_get(tool, "functionDeclarations")):
        tally.text(_declaration(declared), scale)
        tally.add(_TOOL)
        if not former:
            schema = mapping(_get(declared, "parameters"))
            schema = schema or mapping(_get(declared, "parametersJsonSchema"))
            tally.add(1 + _FIELD * len(mapping(schema.get("properties"))))
    if not former and _is_googles(tool):
        tally.add(_SERVER_TOOL)


def _is_googles(tool: Mapping[str, Any]) -> bool:
    own = {key for key, value in tool.items() if value is not None}
    return bool(own - {"functionDeclarations", "function_declarations"})


def _declaration(declared: Mapping[str, Any]) -> str:
    rest = {key: value for key, value in declared.items() if key != "name"}
    return f"declaration:{declared.get('name')}{_written(rest, 0)}"


def _written(value: object, depth: int) -> str:
    if isinstance(value, Mapping) and depth < _DEEPEST:
        inner = (
            f"{key}:{_written(one, depth + 1)}" for key, one in value.items() if one is not None
        )
        return "{" + ",".join(inner) + "}"
    if isinstance(value, (list, tuple)) and depth < _DEEPEST:
        return "[" + ",".join(_written(one, depth + 1) for one in value) + "]"
    return compact(value)
