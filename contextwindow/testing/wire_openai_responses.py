"""OpenAI Responses, as bytes: streamed, or in one body.

Order and fields of the events: recordings of 2025-07 to 2026-05.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from contextwindow.records import Usage
from contextwindow.testing.fake_reply import FakeReply
from contextwindow.testing.script import argument_pieces, cut_in_pieces, spelled_out
from contextwindow.testing.wire import WireStream, sse
from contextwindow.testing.wire_openai_chat import error_fields, padding

_COPIED = (
    "instructions", "max_output_tokens", "previous_response_id", "tools", "tool_choice",
    "temperature", "top_p", "metadata", "store", "background", "parallel_tool_calls",
)  # fmt: skip


class ResponsesReply:
    """One response to one request.

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
        self.id = f"resp_fake_{number}"
        self._body = body
        self._reply = reply
        self._number = number
        self._text = text
        self._created = created
        self._calls = spelled_out(reply.tool_calls, number)
        self._usage = None if usage is None else _usage(usage)
        options = body.get("stream_options")
        self._obfuscated = not isinstance(options, dict) or options.get("include_obfuscation", True)
        self._events: list[bytes] = []
        self._chunks: list[int] = []
        self._output: list[dict[str, Any]] = []

    def stream(self) -> WireStream:
        """The response as events; the number of each is its ``sequence_number``."""
        first = "queued" if self._body.get("background") else "in_progress"
        self._add("response.created", response=self._response(first))
        if first == "queued":
            self._add("response.queued", response=self._response(first))
        self._add("response.in_progress", response=self._response("in_progress"))
        if self._reply.reasoning:
            self._reasoning()
        if self._text or self._reply.refusal:
            self._message()
        for place, call in enumerate(self._calls, 1):
            self._function_call(place, *call)
        status = self._status()
        self._add(f"response.{status}", response=self._response(status))
        return WireStream(self._events, self._chunks, self._error, self._failed)

    def body(self) -> dict[str, Any]:
        """The response in one body."""
        if not self._events:
            self.stream()
        return self._response(self._status())

    def failure(self) -> dict[str, Any]:
        """The body of a response that failed."""
        error = error_fields(self._reply)
        reported = {"code": error["code"] or "server_error", "message": error["message"]}
        return {**self._response("failed"), "output": [], "usage": None, "error": reported}

    def _reasoning(self) -> None:
        item: dict[str, Any] = {"id": f"rs_fake_{self._number}", "type": "reasoning"}
        item["summary"] = []
        if "reasoning.encrypted_content" in (self._body.get("include") or ()):
            item["encrypted_content"] = f"encrypted-{self._number}"
        at = {"item_id": item["id"], "output_index": len(self._output), "summary_index": 0}
        self._item_added(item)
        if self._reply.hidden:
            self._item_done(item)
            return
        part = {"type": "summary_text", "text": ""}
        self._add("response.reasoning_summary_part.added", **at, part=part)
        chunks = cut_in_pieces(self._reply.reasoning, "words")
        self._deltas("response.reasoning_summary_text.delta", at, chunks)
        whole = {**part, "text": "".join(chunks)}
        self._add("response.reasoning_summary_text.done", **at, text=whole["text"])
        self._add("response.reasoning_summary_part.done", **at, part=whole)
        self._item_done({**item, "summary": [whole]})

    def _message(self) -> None:
        item = {
            "id": f"msg_fake_{self._number}",
            "type": "message",
            "status": "in_progress",
            "role": "assistant",
            "content": [],
        }
        self._item_added(item)
        contents: list[dict[str, Any]] = []
        at = {"item_id": item["id"], "output_index": len(self._output)}
        if self._text:
            part = {"type": "output_text", "annotations": [], "logprobs": [], "text": ""}
            self._content(at, contents, part, self._text)
        if self._reply.refusal:
            chunks = cut_in_pieces(self._reply.refusal, "words")
            self._content(at, contents, {"type": "refusal", "refusal": ""}, chunks)
        status = "incomplete" if self._status() == "incomplete" else "completed"
        self._item_done({**item, "status": status, "content": contents})

    def _content(
        self,
        item: dict[str, Any],
        contents: list[dict[str, Any]],
        part: dict[str, Any],
        chunks: Sequence[str],
    ) -> None:
        at = {**item, "content_index": len(contents)}
        key = "refusal" if part["type"] == "refusal" else "text"
        name = "refusal" if key == "refusal" else "output_text"
        extra: dict[str, Any] = {} if key == "refusal" else {"logprobs": []}
        self._add("response.content_part.added", **at, part=part)
        self._deltas(f"response.{name}.delta", {**at, **extra}, chunks)
        whole = {**part, key: "".join(chunks)}
        self._add(f"response.{name}.done", **at, **extra, **{key: whole[key]})
        self._add("response.content_part.done", **at, part=whole)
        contents.append(whole)

    def _function_call(self, place: int, name: str, raw: str, call_id: str) -> None:
        item = {
            "id": f"fc_fake_{self._number}_{place}",
            "type": "function_call",
            "status": "in_progress",
            "arguments": "",
            "call_id": call_id,
            "name": name,
        }
        at = {"item_id": item["id"], "output_index": len(self._output)}
        self._item_added(item)
        self._deltas("response.function_call_arguments.delta", at, argument_pieces(raw))
        self._add("response.function_call_arguments.done", **at, name=name, arguments=raw)
        self._item_done({**item, "status": "completed", "arguments": raw})

    def _deltas(self, kind: str, at: dict[str, Any], chunks: Sequence[str]) -> None:
        for text in chunks:
            self._chunks.append(len(self._events))
            extra = {"obfuscation": padding(text)} if self._obfuscated else {}
            self._add(kind, **at, delta=text, **extra)

    def _item_added(self, item: dict[str, Any]) -> None:
        self._add("response.output_item.added", output_index=len(self._output), item=item)

    def _item_done(self, item: dict[str, Any]) -> None:
        self._add("response.output_item.done", output_index=len(self._output), item=item)
        self._output.append(item)

    def _add(self, kind: str, **fields: Any) -> None:
        number = len(self._events)
        self._events.append(sse({"type": kind, "sequence_number": number, **fields}, kind))

    def _error(self, number: int) -> bytes:
        error = error_fields(self._reply)
        event = {
            "type": "error",
            "sequence_number": number,
            "code": error["code"] or "server_error",
            "message": error["message"],
            "param": None,
        }
        return sse(event, "error")

    def _failed(self, number: int) -> bytes:
        event = {"type": "response.failed", "sequence_number": number, "response": self.failure()}
        return sse(event, "response.failed")

    def _status(self) -> str:
        cut = self._reply.finish_reason in ("length", "content_filter")
        return "incomplete" if cut else "completed"

    def _response(self, status: str) -> dict[str, Any]:
        ended = status in ("completed", "incomplete")
        details = None
        if status == "incomplete":
            cut = self._reply.finish_reason == "length"
            details = {"reason": "max_output_tokens" if cut else "content_filter"}
        response: dict[str, Any] = {
            "id": self.id,
            "object": "response",
            "created_at": self._created,
            "status": status,
            "background": False,
            "error": None,
            "incomplete_details": details,
            "instructions": None,
            "max_output_tokens": None,
            "model": self._body.get("model", "fake-model"),
            "output": list(self._output) if ended else [],
            "parallel_tool_calls": True,
            "previous_response_id": None,
            "reasoning": {"effort": None, "summary": None},
            "service_tier": "default",
            "store": True,
            "temperature": 1.0,
            "text": {"format": {"type": "text"}, "verbosity": "medium"},
            "tool_choice": "auto",
            "tools": [],
            "top_p": 1.0,
            "truncation": "disabled",
            "usage": self._usage if ended else None,
            "user": None,
            "metadata": {},
        }
        given = {key: self._body[key] for key in _COPIED if self._body.get(key) is not None}
        return {**response, **given}


def _usage(usage: Usage) -> dict[str, Any]:
    return {
        "input_tokens": usage.input_tokens,
        "input_tokens_details": {
            "cached_tokens": usage.cache_read_tokens,
            "cache_write_tokens": usage.cache_write_tokens,
        },
        "output_tokens": usage.output_tokens,
        "output_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
        "total_tokens": usage.total_tokens,
    }
