"""What Anthropic's and Google's servers send, for `openai_server.serving`."""

from __future__ import annotations

import json
from typing import Any

from openai_server import Answer, Server

from contextwindow import AnthropicModel, GeminiModel, Model, Usage

ANTHROPIC_ENDS = {"stop": "end_turn", "length": "max_tokens", "refusal": "refusal"}
GOOGLE_ENDS = {"stop": "STOP", "length": "MAX_TOKENS", "refusal": "SAFETY"}


def model(api: str, server: Server) -> Model:
    """A model that asks *server*; it tries once."""
    url = server.url.removesuffix("/v1")
    kind: Any = AnthropicModel if api == "anthropic" else GeminiModel
    made: Model = kind("fake", api_key="sk-test", base_url=url, max_retries=0)
    return made


def answer(api: str, text: str, used: Usage, *, ends: str | None = "stop") -> Answer:
    """A stream that says *text* in two pieces; it breaks off where *ends* is None."""
    middle = len(text) // 2
    pieces = [piece for piece in (text[:middle], text[middle:]) if piece]
    events = (_anthropic if api == "anthropic" else _google)(pieces, used, ends)
    body = ""
    for event in events:
        body += f"event: {event['type']}\n" if api == "anthropic" else ""
        body += f"data: {json.dumps(event)}\n\n"
    return Answer(body.encode(), end="whole" if ends else "reset")


def _anthropic(pieces: list[str], used: Usage, ends: str | None) -> list[dict[str, Any]]:
    plain = used.input_tokens - used.cache_read_tokens - used.cache_write_tokens
    counts = {
        "input_tokens": plain,
        "cache_read_input_tokens": used.cache_read_tokens,
        "cache_creation_input_tokens": used.cache_write_tokens,
        "output_tokens": 1,
    }
    message: dict[str, Any] = {
        "id": "msg_1", "type": "message", "role": "assistant", "model": "fake", "content": [],
        "stop_reason": None, "usage": counts,
    }  # fmt: skip
    start = {
        "type": "content_block_start",
        "index": 0,
        "content_block": {"type": "text", "text": ""},
    }
    events: list[dict[str, Any]] = [{"type": "message_start", "message": message}, start]
    for piece in pieces:
        delta = {"type": "text_delta", "text": piece}
        events.append({"type": "content_block_delta", "index": 0, "delta": delta})
    if ends is None:
        return events
    return [
        *events,
        {"type": "content_block_stop", "index": 0},
        {
            "type": "message_delta",
            "delta": {"stop_reason": ANTHROPIC_ENDS[ends]},
            "usage": {"output_tokens": used.output_tokens},
        },
        {"type": "message_stop"},
    ]


def _google(pieces: list[str], used: Usage, ends: str | None) -> list[dict[str, Any]]:
    counts = {
        "promptTokenCount": used.input_tokens,
        "cachedContentTokenCount": used.cache_read_tokens,
        "candidatesTokenCount": used.output_tokens - used.reasoning_tokens,
        "thoughtsTokenCount": used.reasoning_tokens,
        "totalTokenCount": used.total_tokens,
    }
    events: list[dict[str, Any]] = [
        {
            "candidates": [{"content": {"role": "model", "parts": [{"text": piece}]}}],
            "usageMetadata": {**counts, "candidatesTokenCount": 1, "thoughtsTokenCount": 0},
            "modelVersion": "fake",
        }
        for piece in pieces
    ]
    if ends is not None:
        last = {"finishReason": GOOGLE_ENDS[ends], "content": {"role": "model", "parts": []}}
        events.append({"candidates": [last], "usageMetadata": counts, "modelVersion": "fake"})
    return events
