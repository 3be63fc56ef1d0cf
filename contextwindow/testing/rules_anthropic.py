"""What the Messages API refuses about a request, as far as a context could bring it about.

From its documentation ("Messages", "Tool use", "Extended thinking", "Prompt caching"; read
2026-11), and messages that users quote in public issues.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

_ID: Final = re.compile(r"[a-zA-Z0-9_-]+")
_NAME: Final = re.compile(r"[a-zA-Z0-9_-]{1,128}")
_PREFILLS: Final = re.compile(
    r"claude-(?:2|instant|3)|claude-(?:opus|sonnet|haiku)-4(?:-[015])?(?:-\d{8}|@|$|-latest)"
)
_MOST_BREAKPOINTS: Final = 4
_LEAST_BUDGET: Final = 1_024
_THOUGHTS: Final = ("thinking", "redacted_thinking")

Message = dict[str, Any]


def refusal(body: dict[str, Any], signatures: Mapping[str, str]) -> str | None:
    """Why *body* is refused, or None.

    Args:
        signatures: what this server has signed, and the thought that belongs to it.
    """
    messages = body.get("messages")
    if not isinstance(body.get("max_tokens"), int):
        return "max_tokens: Field required"
    if body["max_tokens"] < 1:
        return "max_tokens: must be greater than or equal to 1"
    if not isinstance(messages, list) or not messages:
        return "messages: at least one message is required"
    if not all(isinstance(message, dict) for message in messages):
        return "messages: Input should be an object"
    if messages[0].get("role") != "user":
        return "messages: first message must use the user role"
    if json.dumps(body).count('"cache_control"') > _MOST_BREAKPOINTS:
        return "A maximum of 4 blocks with cache_control may be provided."
    return (
        _options(body)
        or _blocks(messages, signatures)
        or _tools(messages)
        or _ending(body, messages)
    )


def blocks_of(message: Message) -> list[dict[str, Any]]:
    """The content of *message* as blocks."""
    content = message.get("content")
    if isinstance(content, str):
        return [{"type": "text", "text": content}] if content else []
    return [block for block in content or () if isinstance(block, dict)]


def _options(body: dict[str, Any]) -> str | None:
    """What thinking and tools allow beside them."""
    for number, tool in enumerate(body.get("tools") or ()):
        if "input_schema" in tool and _NAME.fullmatch(str(tool.get("name"))) is None:
            return f"tools.{number}.custom.name: String should match '^[a-zA-Z0-9_-]{{1,128}}$'"
    temperature = body.get("temperature")
    if temperature is not None and not 0 <= temperature <= 1:
        return "temperature: range: 0..1"
    thinking = body.get("thinking") or {}
    if thinking.get("type") not in ("enabled", "adaptive"):
        return None
    if temperature not in (None, 1):
        return "`temperature` may only be set to 1 when thinking is enabled."
    if (body.get("tool_choice") or {}).get("type") in ("any", "tool"):
        return "Thinking may not be enabled when tool_choice forces tool use."
    budget = thinking.get("budget_tokens")
    if thinking["type"] == "adaptive":
        return None
    if not isinstance(budget, int) or budget < _LEAST_BUDGET:
        return "thinking.enabled.budget_tokens: Input should be greater than or equal to 1024"
    if budget >= body["max_tokens"]:
        return "`max_tokens` must be greater than `thinking.budget_tokens`."
    return None


def _blocks(messages: list[Message], signatures: Mapping[str, str]) -> str | None:
    for number, message in enumerate(messages):
        where = f"messages.{number}"
        blocks = blocks_of(message)
        if message.get("role") not in ("user", "assistant"):
            return f"{where}.role: Input should be 'user' or 'assistant'"
        if not blocks:
            return (
                f"{where}: all messages must have non-empty content except for the optional final "
                "assistant message"
            )
        results = {block.get("tool_use_id") for block in blocks}
        for index, block in enumerate(blocks):
            why = _block(block, message["role"], signatures)
            if why is None and block.get("type") == "server_tool_use":
                paused = number == len(messages) - 1 and index == len(blocks) - 1
                if block.get("id") not in results and not paused:
                    why = "`server_tool_use` blocks must have a corresponding result"
            if why is not None:
                return f"{where}.content.{index}: {why}"
    return None


def _block(block: dict[str, Any], role: str, signatures: Mapping[str, str]) -> str | None:
    kind = block.get("type")
    if (kind in _THOUGHTS or kind in ("tool_use", "server_tool_use")) and role != "assistant":
        return f"`{kind}` blocks can only be in `assistant` messages"
    if kind == "tool_result" and role != "user":
        return "`tool_result` blocks can only be in `user` messages"
    match kind:
        case "text":
            return _empty(block)
        case "thinking":
            signed = signatures.get(str(block.get("signature")))
            if signed is None:
                return "Invalid `signature` in `thinking` block"
            if signed != block.get("thinking"):
                return "`thinking` or `redacted_thinking` blocks cannot be modified."
        case "redacted_thinking" if block.get("data") not in signatures:
            return "Invalid `data` in `redacted_thinking` block"
        case "tool_use":
            if _ID.fullmatch(str(block.get("id"))) is None:
                return "tool_use.id: String should match pattern '^[a-zA-Z0-9_-]+$'"
            if not isinstance(block.get("input"), dict):
                return "tool_use.input: Input should be a valid dictionary"
            if _NAME.fullmatch(str(block.get("name"))) is None:
                return "tool_use.name: String should match pattern '^[a-zA-Z0-9_-]{1,128}$'"
        case "tool_result":
            inner = block.get("content")
            parts = inner if isinstance(inner, list) else []
            return next((why for part in parts if (why := _empty(part))), None)
    return None


def _empty(block: dict[str, Any]) -> str | None:
    if block.get("type") == "text" and not str(block.get("text", "")).strip():
        return "text content blocks must contain non-whitespace text"
    return None


def _tools(messages: list[Message]) -> str | None:
    waiting: list[str] = []
    known: set[str] = set()
    for number, message in enumerate(messages):
        where = f"messages.{number}"
        blocks = blocks_of(message)
        results = list(_ids(blocks, "tool_result", "tool_use_id"))
        if set(results) - set(waiting):
            return f"{where}: unexpected `tool_use_id` found in `tool_result` blocks"
        if len(set(results)) < len(results):
            return f"{where}: each tool_use must have a single result"
        if set(waiting) - set(results):
            return (
                f"{where}: `tool_use` ids were found without `tool_result` blocks immediately after"
            )
        if any(block.get("type") != "tool_result" for block in blocks[: len(results)]):
            return f"{where}: `tool_result` blocks must come first"
        waiting = list(_ids(blocks, "tool_use", "id"))
        if len(set(waiting)) < len(waiting) or known & set(waiting):
            return f"{where}: `tool_use` ids must be unique"
        known |= set(waiting)
    return "`tool_use` ids were found without `tool_result` blocks" if waiting else None


def _ids(blocks: list[dict[str, Any]], kind: str, name: str) -> Iterator[str]:
    return (str(block.get(name)) for block in blocks if block.get("type") == kind)


def _ending(body: dict[str, Any], messages: list[Message]) -> str | None:
    thinks = (body.get("thinking") or {}).get("type") == "enabled"
    last = messages[-1]
    if last["role"] == "assistant":
        block = blocks_of(last)[-1]
        if block.get("type") == "server_tool_use":
            return None  # a reply that was paused
        if not _PREFILLS.search(str(body.get("model"))):
            return (
                "This model does not support assistant message prefill. The conversation must end "
                "with a user message."
            )
        if thinks:
            return "`thinking` cannot be used together with a prefilled reply"
        text = str(block.get("text", ""))
        if text != text.rstrip():
            return "messages: final assistant content cannot end with trailing whitespace"
    return _thought_first(messages) if thinks else None


def _thought_first(messages: list[Message]) -> str | None:
    """The tool loop that is under way must have begun with a thought."""
    for message in reversed(messages):
        kinds = [block.get("type") for block in blocks_of(message)]
        if message["role"] == "user" and "tool_result" not in kinds:
            return None
        if message["role"] == "assistant" and "tool_use" in kinds:
            if kinds[0] in _THOUGHTS:
                return None
            return f"Expected `thinking` or `redacted_thinking`, but found `{kinds[0]}`"
    return None
