"""What OpenAI's two APIs refuse about a request, as far as a context could bring it about.

From their documentation ("Function calling", "Reasoning models", "Conversation state"; read
2026-11), and messages that users quote in public issues.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Final

_NAME: Final = re.compile(r"[a-zA-Z0-9_-]{1,64}")
_LONGEST_CHAT_ID: Final = 40
_LONGEST_ID: Final = 64
_CALLS: Final = ("function_call", "custom_tool_call")

Item = dict[str, Any]


@dataclass(slots=True)
class GivenOut:
    """What a server has sent, as far as it checks it when it comes back.

    Attributes:
        sealed: encrypted reasoning.
        kept: items of responses that it keeps, by id, and the reasoning item before each.
    """

    sealed: set[str] = field(default_factory=set)
    kept: dict[str, str | None] = field(default_factory=dict)

    def note(self, output: Iterable[Item], *, kept: bool) -> None:
        """Remember the *output* of a response."""
        reasoning: str | None = None
        for item in output:
            if item["type"] == "reasoning":
                self.sealed.add(item.get("encrypted_content", ""))
            if kept:
                self.kept[item["id"]] = reasoning
            if item["type"] == "reasoning":
                reasoning = item["id"]


def chat_refusal(body: Mapping[str, Any]) -> str | None:
    """Why the Chat Completions API refuses *body*, or None."""
    waiting: dict[str, None] = {}
    for number, message in enumerate(_dicts(body.get("messages"))):
        where = f"messages.[{number}]"
        role = message.get("role")
        if role == "tool":
            if message.get("tool_call_id") not in waiting:
                return (
                    "Invalid parameter: messages with role 'tool' must be a response to a "
                    "preceeding message with 'tool_calls'."
                )
            del waiting[message["tool_call_id"]]
            continue
        if waiting:
            return _unanswered(waiting)
        if role != "assistant":
            continue
        calls = _dicts(message.get("tool_calls"))
        if message.get("content") is None and not calls and not message.get("refusal"):
            return f"Invalid value for 'content': expected a string, got null. ({where})"
        for call in calls:
            named = call.get("function") or {}
            if call.get("type") == "custom":
                custom = call.get("custom") or {}
                named = {"name": custom.get("name"), "arguments": custom.get("input")}
            why = _call(str(call.get("id")), named, _LONGEST_CHAT_ID)
            if why is not None:
                return f"Invalid '{where}.tool_calls': {why}"
            waiting[str(call["id"])] = None
    return _unanswered(waiting) if waiting else None


def responses_refusal(
    body: Mapping[str, Any], given: GivenOut, previous: Iterable[Item]
) -> str | None:
    """Why the Responses API refuses *body*, or None.

    Args:
        given: what the server has sent.
        previous: output of the response that the request goes on from.
    """
    items = _dicts(body.get("input"))
    return _outputs(items, previous) or _reasoning(items, given) or _identified(items, given)


def _outputs(items: list[Item], previous: Iterable[Item]) -> str | None:
    waiting = {str(item["call_id"]): None for item in previous if item.get("type") in _CALLS}
    for number, item in enumerate(items):
        kind, call_id = str(item.get("type")), str(item.get("call_id"))
        if kind in _CALLS:
            named = {"arguments": "", **item} if kind == "custom_tool_call" else item
            why = _call(call_id, named, _LONGEST_ID)
            if why is not None:
                return f"Invalid 'input[{number}]': {why}"
            waiting[call_id] = None
        elif kind in ("function_call_output", "custom_tool_call_output"):
            if call_id not in waiting:
                return f"No tool call found for function call output with call_id {call_id}."
            del waiting[call_id]
    for call_id in waiting:
        return f"No tool output found for function call {call_id}."
    return None


def _reasoning(items: list[Item], given: GivenOut) -> str | None:
    for item, following in pairwise([*items, {}]):
        if item.get("type") != "reasoning":
            continue
        sealed, name = item.get("encrypted_content"), item.get("id")
        if sealed and sealed not in given.sealed:
            return f"The encrypted content for item {name} could not be verified."
        if not sealed and name not in given.kept:
            return (
                f"Item with id '{name}' not found. Items are not persisted when `store` is set to "
                "false."
            )
        said = following.get("role") == "assistant" or following.get("type") == "reasoning"
        if not said and following.get("type") not in _CALLS:
            return (
                f"Item '{name}' of type 'reasoning' was provided without its required following "
                "item."
            )
    return None


def _identified(items: list[Item], given: GivenOut) -> str | None:
    """What is said by id must be whole: a kept item goes back with its reasoning."""
    seen: set[str] = set()
    for item in items:
        name = item.get("id")
        if name is None:
            continue
        if name in seen:
            return f"Duplicate item found with id {name}. Remove duplicate items from your input."
        needed = given.kept.get(name)
        if needed is not None and needed not in seen and item.get("type") != "reasoning":
            return (
                f"Item '{name}' of type '{item.get('type')}' was provided without its required "
                f"'reasoning' item: '{needed}'."
            )
        seen.add(name)
    return None


def _call(call_id: str, call: Mapping[str, Any], longest: int) -> str | None:
    if not 0 < len(call_id) <= longest:
        return f"string too long. Expected a string with maximum length {longest}."
    if _NAME.fullmatch(str(call.get("name"))) is None:
        return "name: string does not match pattern '^[a-zA-Z0-9_-]+$'."
    if not isinstance(call.get("arguments"), str):
        return "arguments: expected a string."
    return None


def _unanswered(waiting: Iterable[str]) -> str:
    return (
        "An assistant message with 'tool_calls' must be followed by tool messages responding to "
        "each 'tool_call_id'. The following tool_call_ids did not have response messages: "
        f"{', '.join(waiting)}"
    )


def _dicts(value: Any) -> list[Item]:
    return [one for one in value if isinstance(one, dict)] if isinstance(value, list) else []
