"""Anthropic's Messages API, as bytes: streamed, or in one body.

Shapes: recordings of 2025-02 to 2026-08.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Final

from contextwindow.records import Usage
from contextwindow.testing.fake_reply import FakeReply
from contextwindow.testing.rules_anthropic import blocks_of, refusal
from contextwindow.testing.script import (
    argument_pieces,
    cut_in_pieces,
    plausible_usage,
    spelled_out,
    token_count,
)
from contextwindow.testing.wire import (
    Answer,
    FakeRequest,
    WireStream,
    broken_before,
    in_one_body,
    json_answer,
    sse,
    streamed,
    to_json,
)
from contextwindow.testing.wire_openai import Desk

_ERRORS: Final[dict[int, tuple[str, str]]] = {
    400: ("invalid_request_error", "The request was not understood."),
    401: ("authentication_error", "invalid x-api-key"),
    402: ("billing_error", "Your credit balance is too low to access the API."),
    403: ("permission_error", "Your key has no permission for this."),
    404: ("not_found_error", "model: no such model"),
    413: ("request_too_large", "The request exceeds the maximum size."),
    429: ("rate_limit_error", "This request would exceed your rate limit."),
    500: ("api_error", "Internal server error"),
    503: ("api_error", "The service is temporarily unavailable."),
    504: ("timeout_error", "The request timed out."),
    529: ("overloaded_error", "Overloaded"),
}
_TOO_LONG: Final = "prompt is too long: 250000 tokens > 200000 maximum"
_REASONS: Final = {
    "length": "max_tokens",
    "tool_calls": "tool_use",
    "refusal": "refusal",
    "content_filter": "refusal",
}


_NOT_COUNTED: Final = frozenset(
    {"max_tokens", "stream", "temperature", "top_k", "top_p", "stop_sequences", "metadata"}
)

_TOOL: Final = "web_search"
"""What a reply that pauses is in the middle of."""


class AnthropicWire:
    """Messages and the counting of tokens, under ``/v1/messages``."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self._asked = 0
        self._signatures: dict[str, str] = {}

    def answer(self, request: FakeRequest) -> Answer | None:
        """The answer to *request*; None where the path is none of Anthropic's."""
        match request.method, request.path.rstrip("/").split("/"):
            case "POST", ["", "v1", "messages"]:
                answer = self._message(request)
            case "POST", ["", "v1", "messages", "count_tokens"]:
                answer = self._count(request)
            case _:
                return None
        self._asked += 1
        answer.headers["request-id"] = f"req_fake_{self._asked}"
        return answer

    def _count(self, request: FakeRequest) -> Answer:
        failure = self._desk.counting
        if failure is not None:
            broken = broken_before(failure.fault)
            return self._refused(failure) if broken is None else broken
        extra = sorted(request.fields.keys() & _NOT_COUNTED)
        if extra:
            message = f"{extra[0]}: Extra inputs are not permitted"
            return self._error(400, "invalid_request_error", message)
        # The one rule that does not hold here is that a limit must be given.
        why = refusal({"max_tokens": 1 << 30, **request.fields}, self._signatures)
        if why is not None:
            return self._error(400, "invalid_request_error", why)
        return json_answer({"input_tokens": _given(request)})

    def _message(self, request: FakeRequest) -> Answer:
        fields = request.fields
        why = refusal(fields, self._signatures)
        if why is not None:
            return self._error(400, "invalid_request_error", why)
        number, reply = self._desk.next_reply()
        if reply.status is not None:
            return self._refused(reply)
        broken = broken_before(reply.fault)
        if broken is not None:
            return broken
        if fields["messages"][-1]["role"] == "assistant":
            # A prefilled reply goes on behind its last character; nothing is said again.
            reply = replace(reply, echo=0)
        text = reply.text_chunks(_said(fields))
        message = MessageReply(fields, reply, number=number, text=text, given=_given(request))
        self._signatures |= message.signatures
        if fields.get("stream") and reply.fault != "json_body":
            return streamed(message.stream(), reply)
        return in_one_body(message.body(), error_body(reply), reply)

    def _refused(self, reply: FakeReply) -> Answer:
        status = reply.status or 500
        kind, message = _ERRORS.get(status, ("api_error", "The server had an error."))
        if reply.code == "context_length_exceeded":
            kind, message = "invalid_request_error", _TOO_LONG
        headers = {} if reply.retry_after is None else {"retry-after": str(reply.retry_after)}
        return self._error(status, reply.type or kind, reply.message or message, headers)

    def _error(
        self, status: int, kind: str, message: str, headers: dict[str, str] | None = None
    ) -> Answer:
        """An HTTP error in Anthropic's form."""
        error = {"type": kind, "message": message}
        body = {"type": "error", "error": error, "request_id": f"req_fake_{self._asked + 1}"}
        headers = dict(headers or {})
        if status < 500 and status not in (408, 409, 429):
            headers["x-should-retry"] = "false"
        return json_answer(body, status=status, headers=headers)


class MessageReply:
    """One reply to one request.

    Args:
        number: of the reply on this server; ids are made from it.
        text: what is left to say, in chunks.
        given: tokens of the request.

    Attributes:
        signatures: of its thinking, each with the thought that it signs.
    """

    def __init__(
        self,
        body: dict[str, Any],
        reply: FakeReply,
        *,
        number: int,
        text: Sequence[str],
        given: int,
    ) -> None:
        said = not reply.blocked
        self._reply = reply
        self._text = [*text, *cut_in_pieces(reply.refusal, "words")] if said else []
        self._calls = _calls(reply, number) if said else []
        self._thought = "".join(reply.reasoning) if said else ""
        spoken = "".join(name + raw for name, raw, _ in self._calls)
        counted = plausible_usage(given, self._thought, (self._text, spoken))
        self._usage = counted if reply.usage == "count" else reply.usage
        # In place of what the service has encrypted: no two replies have the same.
        self._seal = base64.b64encode(f"fake signature {number}".encode()).decode()
        sealed = "" if reply.hidden else self._thought
        self.signatures = {self._seal: sealed} if self._thought else {}
        self._searching = _searching(body)
        self._search = f"srvtoolu_fake_{number}" if reply.pauses and said else None
        self._head = {
            "id": f"msg_fake_{number}",
            "type": "message",
            "role": "assistant",
            "model": body.get("model", "fake-model"),
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
        }
        self._events: list[bytes] = []
        self._chunks: list[int] = []
        self._count = 0

    def stream(self) -> WireStream:
        """The reply as events."""
        usage = self._counts(output=1)
        head = {**self._head, "usage": usage} if usage else self._head
        self._add("message_start", message=head)
        self._add("ping")
        for block in self.blocks():
            self._stream_block(block)
        end = {"stop_reason": self._stop_reason(), "stop_sequence": None}
        self._add("message_delta", delta=end, usage=self._counts() or {"output_tokens": 0})
        self._add("message_stop")
        error = sse(error_body(self._reply), "error")
        # Under a name that means something: SDKs do not look at events without one.
        garbage = sse('{"broken": ', "content_block_delta")
        return WireStream(self._events, self._chunks, lambda _: error, lambda _: error, garbage)

    def body(self) -> dict[str, Any]:
        """The reply in one body."""
        whole = {**self._head, "content": self.blocks(), "stop_reason": self._stop_reason()}
        return {**whole, "usage": self._counts() or {}}

    def blocks(self) -> list[dict[str, Any]]:
        """The content, whole."""
        blocks: list[dict[str, Any]] = []
        if self._searching is not None:
            found = {"tool_use_id": self._searching, "content": []}
            blocks.append({"type": f"{_TOOL}_tool_result", **found})
        if self._thought and self._reply.hidden:
            blocks.append({"type": "redacted_thinking", "data": self._seal})
        elif self._thought:
            signed = {"thinking": self._thought, "signature": self._seal}
            blocks.append({"type": "thinking", **signed})
        if self._text:
            blocks.append({"type": "text", "text": "".join(self._text)})
        if self._search is not None:
            search = {"id": self._search, "name": _TOOL, "input": {"query": "what comes next"}}
            blocks.append({"type": "server_tool_use", **search})
        for name, raw, call_id in self._calls:
            call = {"id": call_id, "name": name, "input": _input(raw)}
            blocks.append({"type": "tool_use", **call})
        return blocks

    def _stream_block(self, block: dict[str, Any]) -> None:
        match block["type"]:
            case "thinking":
                pieces = cut_in_pieces(self._reply.reasoning, "words")
                deltas = [{"type": "thinking_delta", "thinking": piece} for piece in pieces]
                signed = {"type": "signature_delta", "signature": block["signature"]}
                self._block({**block, "thinking": "", "signature": ""}, deltas, last=[signed])
            case "text":
                deltas = [{"type": "text_delta", "text": piece} for piece in self._text]
                self._block({**block, "text": ""}, deltas)
            case "tool_use":
                raw = next(raw for _, raw, call_id in self._calls if call_id == block["id"])
                deltas = [_fragment(piece) for piece in argument_pieces(raw)]
                # As the API begins: with a fragment that is empty.
                self._block({**block, "input": {}}, deltas, first=[_fragment("")])
            case "server_tool_use":
                whole = json.dumps(block["input"])
                self._block({**block, "input": {}}, [], first=[_fragment(""), _fragment(whole)])
            case _:
                self._block(block, [])

    def _block(
        self,
        start: dict[str, Any],
        deltas: list[dict[str, Any]],
        *,
        first: Sequence[dict[str, Any]] = (),
        last: Sequence[dict[str, Any]] = (),
    ) -> None:
        """The events of one block; *deltas* are its chunks."""
        index, self._count = self._count, self._count + 1
        self._add("content_block_start", index=index, content_block=start)
        for delta in first:
            self._add("content_block_delta", index=index, delta=delta)
        for delta in deltas:
            self._chunks.append(len(self._events))
            self._add("content_block_delta", index=index, delta=delta)
        for delta in last:
            self._add("content_block_delta", index=index, delta=delta)
        self._add("content_block_stop", index=index)

    def _add(self, kind: str, **fields: Any) -> None:
        self._events.append(sse({"type": kind, **fields}, kind))

    def _counts(self, output: int | None = None) -> dict[str, Any]:
        """The usage in Anthropic's terms: input without what the cache was read or written for."""
        usage: Usage | None = self._usage
        if usage is None:
            return {}
        cached = usage.cache_read_tokens + usage.cache_write_tokens
        counts: dict[str, Any] = {
            "input_tokens": max(0, usage.input_tokens - cached),
            "cache_creation_input_tokens": usage.cache_write_tokens,
            "cache_read_input_tokens": usage.cache_read_tokens,
            "output_tokens": usage.output_tokens if output is None else output,
        }
        if usage.reasoning_tokens and output is None:
            counts["output_tokens_details"] = {"thinking_tokens": usage.reasoning_tokens}
        return counts

    def _stop_reason(self) -> str:
        reason = self._reply.finish_reason
        if reason is not None:
            return _REASONS.get(reason, "end_turn")
        if self._reply.refusal or self._reply.blocked:
            return "refusal"
        if self._search is not None:
            return "pause_turn"
        return "tool_use" if self._calls else "end_turn"


def error_body(reply: FakeReply) -> dict[str, Any]:
    """The error of *reply* in a stream."""
    kind = reply.type or "overloaded_error"
    message = reply.message or "Overloaded"
    return {"type": "error", "error": {"type": kind, "message": message}}


def _calls(reply: FakeReply, number: int) -> list[tuple[str, str, str]]:
    """The tool calls of *reply*; ids that nobody gave look like Anthropic's."""
    given = [len(call) == 3 for call in reply.tool_calls]
    return [
        (name, raw, call_id if own else call_id.replace("call_", "toolu_fake_"))
        for (name, raw, call_id), own in zip(
            spelled_out(reply.tool_calls, number), given, strict=True
        )
    ]


def _input(raw: str) -> dict[str, Any]:
    """Arguments as an object: what is broken does not get into a body."""
    try:
        value = json.loads(raw or "{}")
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _fragment(text: str) -> dict[str, Any]:
    return {"type": "input_json_delta", "partial_json": text}


def _searching(body: dict[str, Any]) -> str | None:
    """The provider's own search that a paused reply is in the middle of, or None."""
    last = body["messages"][-1]
    block = blocks_of(last)[-1]
    paused = last["role"] == "assistant" and block.get("type") == "server_tool_use"
    return str(block["id"]) if paused else None


def _given(request: FakeRequest) -> int:
    fields = request.fields
    return token_count(to_json([fields.get("system"), fields.get("messages")]).decode())


def _said(body: dict[str, Any]) -> str:
    """The last text of the assistant, or ``""``."""
    for message in reversed(body.get("messages") or []):
        if message.get("role") == "assistant":
            said = "".join(str(b["text"]) for b in blocks_of(message) if b.get("type") == "text")
            if said:
                return said
    return ""
