"""OpenAI's two APIs: paths, errors, and the responses that the server remembers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Final, Protocol

from contextwindow.records import Usage
from contextwindow.testing.fake_reply import FakeReply
from contextwindow.testing.rules_openai import GivenOut, chat_refusal, responses_refusal
from contextwindow.testing.script import plausible_usage, spelled_out, token_count
from contextwindow.testing.wire import (
    Answer,
    FakeRequest,
    WireStream,
    broken_before,
    in_one_body,
    json_answer,
    streamed,
    to_json,
)
from contextwindow.testing.wire_openai_chat import ChatReply, error_fields
from contextwindow.testing.wire_openai_responses import ResponsesReply

_EPOCH: Final = 1_767_225_600
"""2026-01-01; replies are one second apart, the same in every run."""

_ERRORS: Final[dict[int, tuple[str, str | None, str]]] = {
    400: ("invalid_request_error", None, "The request was not understood."),
    401: ("invalid_request_error", "invalid_api_key", "Incorrect API key provided."),
    403: ("invalid_request_error", "unsupported_country", "This is not allowed."),
    404: ("invalid_request_error", "model_not_found", "The model does not exist."),
    413: ("invalid_request_error", None, "The request is too large."),
    429: ("requests", "rate_limit_exceeded", "Rate limit reached. Please try again later."),
    503: ("server_error", None, "The server is overloaded or not ready yet."),
    529: ("server_error", "overloaded", "The server is overloaded."),
}
_MESSAGES: Final = {
    "context_length_exceeded": "Your input exceeds the context window of this model.",
    "insufficient_quota": "You exceeded your current quota, please check your plan.",
    "content_filter": "The prompt triggered the content management policy.",
}


# What the count of a response's input takes (openai 3.5, `responses.input_tokens.count`).
_COUNTED: Final = frozenset(
    {"conversation", "input", "instructions", "model", "parallel_tool_calls", "personality"}
    | {"previous_response_id", "reasoning", "text", "tool_choice", "tools", "truncation"}
)


class Desk(Protocol):
    """Where a wire format gets its replies.

    Attributes:
        counting: the failure that answers requests for a count of tokens; None for none.
    """

    counting: FakeReply | None

    def next_reply(self) -> tuple[int, FakeReply]:
        """The reply for a request, and its number, from 1."""


@dataclass(slots=True)
class _Kept:
    """A response that the server remembers; *stream* only of one in the background."""

    reply: FakeReply
    body: dict[str, Any]
    stream: WireStream | None


class OpenAIWire:
    """Chat Completions, Responses and the list of models, under ``/v1``."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self._kept: dict[str, _Kept] = {}
        self._given = GivenOut()

    def forget(self, response_id: str) -> None:
        """Remember the response *response_id* no longer."""
        self._kept.pop(response_id, None)

    def answer(self, request: FakeRequest) -> Answer | None:
        """The answer to *request*; None where the path is none of OpenAI's."""
        match request.method, request.path.rstrip("/").split("/"):
            case "POST", ["", "v1", "chat", "completions"]:
                return self._chat(request)
            case "POST", ["", "v1", "responses"]:
                return self._responses(request)
            case "POST", ["", "v1", "responses", "input_tokens"]:
                return self._count(request)
            case "GET" | "DELETE", ["", "v1", "responses", response_id]:
                return self._kept_response(request, response_id)
            case "GET", ["", "v1", "models"]:
                model = {"id": "fake-model", "object": "model", "owned_by": "contextwindow"}
                listed = {"object": "list", "data": [{**model, "created": _EPOCH}]}
                return json_answer(listed)
            case _, ["", "v1", *_]:
                return error_answer(404, "Unknown request URL.", code=None)
        return None

    def _chat(self, request: FakeRequest) -> Answer:
        why = chat_refusal(request.fields)
        if why is not None:
            return error_answer(400, why, code=None, param="messages")
        number, reply = self._desk.next_reply()
        broken = _no_reply(reply)
        if broken is not None:
            return broken
        text = reply.text_chunks(_said(request.fields.get("messages")))
        chat = ChatReply(
            request.fields,
            reply,
            number=number,
            text=text,
            usage=_usage(request, reply, text),
            created=_EPOCH + number,
        )
        if request.fields.get("stream") and reply.fault != "json_body":
            return streamed(chat.stream(), reply)
        return in_one_body(chat.body(), {"error": error_fields(reply)}, reply)

    def _count(self, request: FakeRequest) -> Answer:
        broken = _no_reply(self._desk.counting) if self._desk.counting else None
        if broken is not None:
            return broken
        unknown = sorted(request.fields.keys() - _COUNTED)
        if unknown:
            return error_answer(
                400, f"Unknown parameter: '{unknown[0]}'.", code="unknown_parameter"
            )
        return json_answer({"object": "response.input_tokens", "input_tokens": _given(request)})

    def _responses(self, request: FakeRequest) -> Answer:
        fields = request.fields
        refused = self._refused(fields)
        if refused is not None:
            return refused
        number, reply = self._desk.next_reply()
        broken = _no_reply(reply)
        if broken is not None:
            return broken
        text = reply.text_chunks(_said(fields.get("input")))
        response = ResponsesReply(
            fields,
            reply,
            number=number,
            text=text,
            usage=_usage(request, reply, text),
            created=_EPOCH + number,
        )
        stream = response.stream()
        keeps = not reply.forget and fields.get("store") is not False
        self._given.note(response.body()["output"], kept=keeps)
        if keeps:
            kept = stream if fields.get("background") else None
            self._kept[response.id] = _Kept(reply, response.body(), kept)
        if fields.get("stream") and reply.fault != "json_body":
            return streamed(stream, reply)
        return in_one_body(response.body(), response.failure(), reply)

    def _refused(self, fields: dict[str, Any]) -> Answer | None:
        """The answer to a request for a response that makes no sense, or None."""
        previous = fields.get("previous_response_id")
        if previous is not None and previous not in self._kept:
            return error_answer(
                400,
                f"Previous response with id '{previous}' not found.",
                code="previous_response_not_found",
                param="previous_response_id",
            )
        if fields.get("background") and fields.get("store") is False:
            # OpenAI's guide "Background mode", limits: stateless requests are rejected.
            return error_answer(400, "Background mode requires store=true.", code=None)
        before = self._kept[previous].body["output"] if previous is not None else ()
        why = responses_refusal(fields, self._given, before)
        return None if why is None else error_answer(400, why, code=None, param="input")

    def _kept_response(self, request: FakeRequest, response_id: str) -> Answer:
        kept = self._kept.get(response_id)
        if kept is None:
            return error_answer(404, f"Response with id '{response_id}' not found.", code=None)
        if request.method == "DELETE":
            del self._kept[response_id]
            return json_answer({"id": response_id, "object": "response", "deleted": True})
        if request.query.get("stream") != "true":
            return json_answer(kept.body)
        if kept.stream is None:
            message = "This response was not created with background=true and cannot be streamed."
            return error_answer(400, message, code=None)
        return streamed(_after(kept.stream, request), FakeReply(pace=kept.reply.pace))


def error_answer(
    status: int,
    message: str,
    *,
    code: str | None,
    type: str = "invalid_request_error",
    param: str | None = None,
    headers: dict[str, str] | None = None,
) -> Answer:
    """An HTTP error in OpenAI's form."""
    error = {"message": message, "type": type, "param": param, "code": code}
    return json_answer({"error": error}, status=status, headers=headers)


def _no_reply(reply: FakeReply) -> Answer | None:
    """The answer to a request that fails before its reply, or None."""
    if reply.blocked:
        reply = replace(reply, status=400, code=reply.code or "content_filter")
    if reply.status is None:
        return broken_before(reply.fault)
    usual = _ERRORS.get(reply.status, ("server_error", None, "The server had an error."))
    code = reply.code or usual[1]
    headers = {} if reply.retry_after is None else {"retry-after": str(reply.retry_after)}
    return error_answer(
        reply.status,
        reply.message or _MESSAGES.get(code or "", usual[2]),
        code=code,
        type=reply.type or usual[0],
        headers=headers,
    )


def _after(stream: WireStream, request: FakeRequest) -> WireStream:
    """The events of *stream* behind the one that *request* names."""
    after = request.query.get("starting_after", "")
    start = int(after) + 1 if after.isdigit() else 0
    chunks = [number - start for number in stream.chunks if number >= start]
    return WireStream(stream.events[start:], chunks, stream.error, stream.failed)


def _usage(request: FakeRequest, reply: FakeReply, text: list[str]) -> Usage | None:
    if reply.usage != "count":
        return reply.usage
    calls = "".join(name + raw for name, raw, _ in spelled_out(reply.tool_calls, 0))
    return plausible_usage(_given(request), reply.reasoning, (text, reply.refusal, calls))


def _given(request: FakeRequest) -> int:
    sent = request.fields.get("messages") or request.fields.get("input") or ""
    return token_count(to_json(sent).decode())


def _said(messages: Any) -> str:
    """The last text of the assistant in *messages*, or ``""``."""
    for message in reversed(messages if isinstance(messages, list) else []):
        if isinstance(message, dict) and message.get("role") == "assistant":
            said = "".join(_texts(message.get("content")))
            if said:
                return said
    return ""


def _texts(content: Any) -> Iterator[str]:
    if isinstance(content, str):
        yield content
    for part in content if isinstance(content, list) else ():
        if isinstance(part, dict) and isinstance(part.get("text"), str):
            yield part["text"]
