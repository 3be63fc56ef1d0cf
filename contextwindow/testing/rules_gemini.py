"""What ``generateContent`` refuses about a request, as far as a context could bring it about.

From its documentation ("Function calling", "Thought signatures"; read 2026-11), and messages that
users quote in public issues.
"""

from __future__ import annotations

import re
from collections.abc import Set
from itertools import pairwise
from typing import Any, Final

_UNSIGNED: Final = re.compile(r"gemini-[12]\b")
_DUMMIES: Final = frozenset(
    {"skip_thought_signature_validator", "context_engineering_is_the_way_to_go"}
)
_NAME: Final = re.compile(r"[a-zA-Z_][a-zA-Z0-9_.:-]{0,127}")

Content = dict[str, Any]


def refusal(model: str, body: dict[str, Any], signatures: Set[str]) -> str | None:
    """Why *body* is refused, or None.

    Args:
        signatures: what this server has signed.
    """
    contents = body.get("contents")
    if not isinstance(contents, list) or not contents:
        return "* GenerateContentRequest.contents: contents is not specified"
    if not all(isinstance(content, dict) for content in contents):
        return "Invalid value at 'contents'"
    roles = [content.get("role", "user") for content in contents]
    if set(roles) - {"user", "model"}:
        return "Please use a valid role: user, model."
    if roles[0] != "user":
        return "Please ensure that the conversation begins with a user turn."
    if roles[-1] != "user":
        return "Please ensure that multiturn requests ends with a user role or a function response."
    if any(one == two for one, two in pairwise(roles)):
        return "Please ensure that user and model take turns."
    return (
        _parts(contents, signatures)
        or _calls(contents)
        or (None if _UNSIGNED.search(model) else _signed(contents))
    )


def _parts(contents: list[Content], signatures: Set[str]) -> str | None:
    for number, content in enumerate(contents):
        parts = content.get("parts") or []
        where = f"* GenerateContentRequest.contents[{number}].parts"
        if not parts:
            return f"{where}: contents.parts must not be empty."
        for index, part in enumerate(parts):
            why = _part(part, content.get("role", "user"), signatures)
            if why is not None:
                return f"{where}[{index}]: {why}"
    return None


def _part(part: dict[str, Any], role: str, signatures: Set[str]) -> str | None:
    data = set(part) - {"thought", "thoughtSignature"}
    signature = part.get("thoughtSignature")
    if signature is not None and signature not in signatures | _DUMMIES:
        return "Corrupted thought signature."
    if not data or (data == {"text"} and not part["text"] and signature is None):
        return "required oneof field 'data' must have one initialized field"
    call, answer = part.get("functionCall"), part.get("functionResponse")
    if call is not None:
        if role != "model":
            return "functionCall is of the model's turn"
        if not isinstance(call.get("args", {}), dict):
            return "Invalid value at function_call.args"
        if _NAME.fullmatch(str(call.get("name"))) is None:
            return "Invalid function name."
    if answer is not None:
        if role != "user":
            return "functionResponse is of the user's turn"
        if not isinstance(answer.get("response"), dict):
            return "Invalid value at function_response.response"
    return None


def _calls(contents: list[Content]) -> str | None:
    waiting: list[dict[str, Any]] = []
    for content in contents:
        parts = content["parts"]
        answers = [part["functionResponse"] for part in parts if "functionResponse" in part]
        if answers and not waiting:
            return (
                "Please ensure that function response turn comes immediately after a function "
                "call turn."
            )
        if len(answers) != len(waiting):
            return (
                "Please ensure that the number of function response parts is equal to the number "
                "of function call parts of the function call turn."
            )
        if sorted(map(_matched, answers)) != sorted(map(_matched, waiting)):
            return "Please ensure that function responses match their function calls."
        waiting = [part["functionCall"] for part in parts if "functionCall" in part]
    return None


def _matched(one: dict[str, Any]) -> tuple[str, str]:
    """What joins a call and its response."""
    return str(one.get("name")), str(one.get("id") or "")


def _signed(contents: list[Content]) -> str | None:
    """The first call of each step of the current turn needs its signature."""
    for content in reversed(contents):
        calls = [part for part in content["parts"] if "functionCall" in part]
        if calls and not calls[0].get("thoughtSignature"):
            name = calls[0]["functionCall"].get("name")
            return (
                "Function call is missing a thought_signature in functionCall parts. Additional "
                f"data, function call `{name}`."
            )
        asks = [part for part in content["parts"] if "functionResponse" not in part]
        if content.get("role", "user") == "user" and asks:
            return None
    return None
