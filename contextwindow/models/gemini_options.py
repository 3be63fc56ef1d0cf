"""Options of a call in Gemini's words: thinking, and what ``extra`` adds to a request."""

from __future__ import annotations

import re
from typing import Any, Final

HTTP_OPTIONS: Final = "http_options"
"""Key of a request for the SDK alone, such as more headers; it is no part of what is sent."""

# Models that count their thinking in tokens; later ones have levels.
_BUDGETED: Final = re.compile(r"(?:^|/)gemini-2\.5\b")
# As Google's own OpenAI-compatible server translates efforts (read 2026-11).
_BUDGETS: Final = {"minimal": 1_024, "low": 1_024, "medium": 8_192}
_MOST: Final = 24_576
_NONE: Final = frozenset({"none", "off"})
_LEVELS: Final = {"none": "MINIMAL", "off": "MINIMAL", "max": "XHIGH"}

# Names of the SDK's configuration that stand in the body's generationConfig.
_GENERATION: Final = frozenset(
    {
        "temperature", "topP", "topK", "candidateCount", "maxOutputTokens", "stopSequences",
        "responseLogprobs", "logprobs", "presencePenalty", "frequencyPenalty", "seed",
        "responseMimeType", "responseSchema", "responseJsonSchema", "routingConfig",
        "modelSelectionConfig", "responseModalities", "mediaResolution", "speechConfig",
        "audioTimestamp", "thinkingConfig", "imageConfig", "enableEnhancedCivicAnswers",
    }
)  # fmt: skip
_BODY: Final = frozenset(
    {
        "contents", "systemInstruction", "tools", "toolConfig", "safetySettings", "cachedContent",
        "labels", "generationConfig", "serviceTier", "modelArmorConfig", "store",
    }
)  # fmt: skip
# Members whose names are the user's own.
_VERBATIM: Final = frozenset(
    {
        "args", "labels", "parameters", "parametersJsonSchema", "response", "responseJsonSchema",
        "responseSchema", "schema", "partMetadata",
    }
)  # fmt: skip


def thinking(model: str, reasoning: str | dict[str, Any]) -> dict[str, Any]:
    """The ``thinkingConfig`` for an effort, or the provider's own mapping as it is."""
    if isinstance(reasoning, dict):
        found: dict[str, Any] = _in_camel_case(reasoning)
        return found
    effort = reasoning.lower()
    if _BUDGETED.search(model) is None:
        return {"thinkingLevel": _LEVELS.get(effort, effort.upper()), "includeThoughts": True}
    if effort in _NONE:
        return {"thinkingBudget": 0}
    return {"thinkingBudget": _BUDGETS.get(effort, _MOST), "includeThoughts": True}


def merged(body: dict[str, Any], extra: dict[str, Any]) -> dict[str, Any]:
    """*body* with *extra*: mappings are merged, tools are added, all else is replaced."""
    for name, value in extra.items():
        key = _camel(name)
        if key == "httpOptions":
            body[HTTP_OPTIONS] = value
        elif key in _GENERATION:
            _merge(body, {"generationConfig": {key: _member(key, value)}})
        elif key == "tools":
            body["tools"] = [*body.get("tools", ()), *_in_camel_case(list(value))]
        elif key == "systemInstruction" and isinstance(value, str):
            body[key] = {"parts": [{"text": value}]}
        elif key in _BODY:
            _merge(body, {key: _member(key, value)})
        else:
            body[name] = value
    return body


def _merge(target: dict[str, Any], new: dict[str, Any]) -> None:
    for key, value in new.items():
        known = target.get(key)
        if isinstance(known, dict) and isinstance(value, dict) and key not in _VERBATIM:
            target[key] = dict(known)
            _merge(target[key], value)
        else:
            target[key] = value


def _in_camel_case(value: Any) -> Any:
    """*value* with the SDK's names as the API has them; its objects become mappings."""
    if hasattr(value, "model_dump"):
        value = value.model_dump(mode="json", by_alias=True, exclude_none=True)
    if isinstance(value, dict):
        return {_camel(key): _member(_camel(key), member) for key, member in value.items()}
    if isinstance(value, (list, tuple)):
        return [_in_camel_case(member) for member in value]
    return value


def _member(key: str, value: Any) -> Any:
    return value if key in _VERBATIM and isinstance(value, dict) else _in_camel_case(value)


def _camel(name: str) -> str:
    head, *tail = name.split("_")
    return head + "".join(word[:1].upper() + word[1:] for word in tail) if head else name
