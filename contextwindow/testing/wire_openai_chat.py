"""OpenAI Chat Completions, as bytes: streamed, or in one body.

Shapes: recordings of 2024-12 to 2026-05; ``reasoning_content`` is what DeepSeek and its like send.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from contextwindow.records import Usage
from contextwindow.testing.fake_reply import FakeReply
from contextwindow.testing.script import argument_pieces, cut_in_pieces, spelled_out
from contextwindow.testing.wire import WireStream, sse

_PADDING: Final = "aB3xK9qLm2Zt7Rw5"


class ChatReply:
    """One reply to one request.

    Args:
        number: of the reply on this server; ids are made from it.
        text: what is left to say, in chunks.
        usage: None sends none.
    """

    def __init__(
        self,
        body: dict[str, Any],
        reply: FakeReply,
        *,
        number: int,
        text: Sequence[str],
        usage: Usage | None,
        created: int,
    ) -> None:
        self._reply = reply
        self._text = text
        self._calls = spelled_out(reply.tool_calls, number)
        self._usage = None if usage is None else _usage(usage)
        options = body.get("stream_options")
        self._options: dict[str, Any] = options if isinstance(options, dict) else {}
        self._head = {
            "id": f"chatcmpl-fake-{number}",
            "object": "chat.completion.chunk",
            "created": created,
            "model": body.get("model", "fake-model"),
            "service_tier": "default",
            "system_fingerprint": "fp_fake",
        }
        self._events: list[bytes] = []
        self._chunks: list[int] = []

    def stream(self) -> WireStream:
        """The reply as events."""
        reply = self._reply
        content = None if self._calls and not self._text else ""
        self._add({"role": "assistant", "content": content, "refusal": None})
        for text in () if reply.hidden else cut_in_pieces(reply.reasoning, "words"):
            self._add({"reasoning_content": text}, chunk=True)
        for text in self._text:
            self._add({"content": text}, chunk=True)
        for text in cut_in_pieces(reply.refusal, "words"):
            self._add({"refusal": text}, chunk=True)
        for index, (name, raw, call_id) in enumerate(self._calls):
            function = {"name": name, "arguments": ""}
            call = {"index": index, "id": call_id, "type": "function", "function": function}
            self._add({"tool_calls": [call]})
            for text in argument_pieces(raw):
                piece = {"index": index, "function": {"arguments": text}}
                self._add({"tool_calls": [piece]}, chunk=True)
        self._add({}, finish_reason=self._finish_reason())
        if self._options.get("include_usage") and self._usage is not None:
            self._events.append(sse({**self._head, "choices": [], "usage": self._usage}))
        self._events.append(sse("[DONE]"))
        error = sse({"error": error_fields(self._reply)})
        return WireStream(self._events, self._chunks, lambda _: error, lambda _: error)

    def body(self) -> dict[str, Any]:
        """The reply in one body."""
        reply = self._reply
        message: dict[str, Any] = {
            "role": "assistant",
            "content": "".join(self._text) or None,
            "refusal": "".join(reply.refusal) or None,
            "annotations": [],
        }
        if reply.reasoning and not reply.hidden:
            message["reasoning_content"] = "".join(reply.reasoning)
        if self._calls:
            message["tool_calls"] = [
                {"id": call_id, "type": "function", "function": {"name": name, "arguments": raw}}
                for name, raw, call_id in self._calls
            ]
        choice = {
            "index": 0,
            "message": message,
            "logprobs": None,
            "finish_reason": self._finish_reason(),
        }
        whole = {**self._head, "object": "chat.completion", "choices": [choice]}
        if self._usage is not None:
            whole["usage"] = self._usage
        return whole

    def _add(
        self, delta: dict[str, Any], *, chunk: bool = False, finish_reason: str | None = None
    ) -> None:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
        event = {**self._head, "choices": [choice]}
        if self._options.get("include_usage"):
            event["usage"] = None
        if self._options.get("include_obfuscation", True):
            event["obfuscation"] = padding(delta)
        if chunk:
            self._chunks.append(len(self._events))
        self._events.append(sse(event))

    def _finish_reason(self) -> str:
        reason = self._reply.finish_reason
        if reason in ("length", "content_filter", "tool_calls", "stop"):
            return reason
        return "tool_calls" if self._calls and reason is None else "stop"


def padding(delta: object) -> str:
    """What OpenAI adds to hide a chunk's length; here the same in every run."""
    return _PADDING[: 16 - len(str(delta)) % 16]


def error_fields(reply: FakeReply) -> dict[str, Any]:
    """The error of *reply* in a stream."""
    return {
        "message": reply.message or "The server had an error while processing your request.",
        "type": reply.type or "server_error",
        "param": None,
        "code": reply.code,
    }


def _usage(usage: Usage) -> dict[str, Any]:
    return {
        "prompt_tokens": usage.input_tokens,
        "completion_tokens": usage.output_tokens,
        "total_tokens": usage.total_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cache_read_tokens, "audio_tokens": 0},
        "completion_tokens_details": {
            "reasoning_tokens": usage.reasoning_tokens,
            "audio_tokens": 0,
            "accepted_prediction_tokens": 0,
            "rejected_prediction_tokens": 0,
        },
    }
