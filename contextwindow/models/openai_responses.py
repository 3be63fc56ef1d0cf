"""OpenAI's Responses API.

What is stored under ``"openai-responses"``: the provider's output items as their ``done`` events
gave them, sent back verbatim and in order.

Unless a call is threaded or in the background it says ``store=False`` and asks for
``reasoning.encrypted_content``: the context's own database is the only copy, and nothing is lost
without the provider's.  Item ids go back too; the API takes them as long as nothing has to be
looked up.  Where a reasoning item cannot be sent (it came without encrypted content, or was cut
off behind it), the ids of the items that belonged to it are left out as well: the API refuses a
message or call by its id "without its required reasoning item", and takes the same one without.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Final

from contextwindow.errors import ConfigError, ModelError
from contextwindow.models.base import CallOptions, Decoder, Request
from contextwindow.models.openai_attachments import responses_part, responses_problem
from contextwindow.models.openai_client import OpenAIModel
from contextwindow.models.responses_decoder import API, ResponsesDecoder
from contextwindow.models.sdk_model import taken_by
from contextwindow.models.steps import Step, native_items, refusal_of, steps
from contextwindow.records import Attachment, Record

_ID_LIMIT: Final = 64
# These answer 400 when asked for encrypted reasoning, which they do not have.
_WITHOUT_REASONING: Final = re.compile(r"^(ft:)?(gpt-3|gpt-4|chatgpt-)|-chat(-latest)?$")
_CALLS: Final = frozenset({"function_call", "custom_tool_call"})
_WITH_FREE_IDS: Final = _CALLS | {"message"}


class OpenAIResponsesModel(OpenAIModel):
    """A model behind the Responses API.

    Args:
        background: the provider runs the call on its own and keeps its stream for about five
            minutes, so that a reply that was cut off resumes exactly where it stopped.
    """

    api: ClassVar[str] = API
    supports_threading = True

    def __init__(
        self,
        name: str,
        *,
        api_key: str | None = None,
        base_url: str | None = None,
        client: Any = None,
        stream: bool = True,
        background: bool = False,
        **client_options: Any,
    ) -> None:
        if background and not stream:
            raise ConfigError("background=True needs stream=True: its reply is read as a stream")
        super().__init__(
            name,
            api_key=api_key,
            base_url=base_url,
            client=client,
            stream=stream,
            **client_options,
        )
        self.background = background

    def request(self, records: Sequence[Record], options: CallOptions) -> Request:
        """The arguments of ``client.responses.create``."""
        background = bool(options.extra.get("background", self.background))
        # A response that the provider runs on its own is one that it keeps.
        stored = options.threaded or background
        continued = options.previous_response_id is not None
        entries = _Input(self, stored=stored)
        for step in steps(records, id_limit=_ID_LIMIT, continued=continued):
            entries.add(step)
        body: dict[str, Any] = {"model": self.name, "input": entries.done(), "store": stored}
        if continued:
            body["previous_response_id"] = options.previous_response_id
        if background:
            body["background"] = True
        if self.stream:
            body["stream"] = True
            if self.official:
                body["stream_options"] = {"include_obfuscation": False}
        if _WITHOUT_REASONING.search(self.name) is None:
            body["include"] = ["reasoning.encrypted_content"]
        _set_options(body, options)
        return Request(body)

    def resume_request(self, response_id: str, cursor: str) -> Request | None:
        """Read on in the provider's copy of a background response."""
        if not cursor.isdecimal():
            return None
        return Request({"background": True}, response_id, int(cursor))

    def decoder(self, request: Request) -> Decoder:
        """A fresh decoder for the answer to *request*."""
        return ResponsesDecoder(
            self.name,
            background=bool(request.body.get("background")),
            after=request.starting_after if request.response_id is not None else None,
        )

    def attachment_problem(self, attachment: Attachment) -> str | None:
        """Why this model cannot take *attachment*, or None when it can."""
        return responses_problem(self.name, attachment, hosted=self.hosted)

    def is_unknown_response(self, error: ModelError) -> bool:
        """Whether the provider no longer has the previous response."""
        if error.code == "previous_response_not_found":
            return True
        return error.status in (400, 404) and "Previous response with id" in str(error)

    def _method(self, client: Any, request: Request) -> tuple[Callable[..., Any], dict[str, Any]]:
        streaming = client.responses.with_streaming_response
        if request.response_id is None:
            return streaming.create, request.body
        arguments: dict[str, Any] = {"response_id": request.response_id, "stream": True}
        if request.starting_after is not None:
            arguments["starting_after"] = request.starting_after
        return streaming.retrieve, arguments

    def _counting(self, client: Any, request: Request) -> tuple[Callable[..., Any], dict[str, Any]]:
        method = client.responses.input_tokens.count
        return method, taken_by(method, request.body)


class _Entry:
    """One input item, and the response that it came with."""

    __slots__ = ("item", "native", "response")

    def __init__(self, item: dict[str, Any], response: str | None, *, native: bool) -> None:
        self.item = item
        self.response = response
        self.native = native

    @property
    def is_output(self) -> bool:
        """Whether the model wrote it."""
        return self.native or self.item.get("role") == "assistant" or self.type in _CALLS

    @property
    def type(self) -> Any:
        return self.item.get("type")


class _Input:
    """The ``input`` of a request while it is put together.

    Args:
        stored: the provider keeps copies of responses, and checks items against them by id.
    """

    def __init__(self, model: OpenAIResponsesModel, *, stored: bool) -> None:
        self._problem = model.attachment_problem
        # Reasoning is worthless without its encrypted content; other servers may take open text.
        self._opaque = model.hosted
        self._stored = stored
        self._system: list[dict[str, Any]] = []
        self._entries: list[_Entry] = []
        self._custom: set[str] = set()

    def add(self, step: Step) -> None:
        """Append what *step* becomes."""
        if step.kind == "system":
            self._system.append({"role": "system", "content": step.text})
        elif step.kind == "user":
            self._append({"role": "user", "content": self._asked(step)})
        elif step.kind == "output":
            kind = "function_call_output"
            if step.call_id in self._custom:
                kind = "custom_tool_call_output"
            self._append({"type": kind, "call_id": step.call_id, "output": step.text})
        else:
            self._add_output(step)

    def done(self) -> list[dict[str, Any]]:
        """All items, system prompts first."""
        broken: set[str | None] = set()
        kept: list[_Entry] = []
        followed = False
        # Backwards: a reasoning item must have something of the model's behind it.
        for entry in reversed(self._entries):
            if entry.type == "reasoning" and not (followed and self._is_whole(entry.item)):
                broken.add(entry.response)
                continue
            followed = entry.is_output
            kept.append(entry)
        kept.reverse()
        if self._stored:
            reasoned = {entry.response for entry in kept if entry.type == "reasoning"}
            broken |= {entry.response for entry in kept} - reasoned
        return self._system + [_without_id(entry, broken) for entry in kept]

    def _asked(self, step: Step) -> str | list[dict[str, Any]]:
        attached = step.record.attachments
        if not attached:
            return step.text
        texts = [{"type": "input_text", "text": step.text}] if step.text else []
        return [*texts, *(responses_part(one, self._problem(one)) for one in attached)]

    def _add_output(self, step: Step) -> None:
        record = step.record
        items = native_items(record, API)
        for item in items or ():
            if step.kind == "call" and item.get("type") in _CALLS:
                # Of an id that is too long to be sent there is a short stand-in.
                item = {**item, "call_id": step.call_id}
            if item.get("type") == "custom_tool_call":
                self._custom.add(str(item.get("call_id")))
            self._entries.append(_Entry(item, record.response_id, native=True))
        if step.kind == "call":
            if not any(item.get("type") in _CALLS for item in items or ()):
                self._append(
                    {
                        "type": "function_call",
                        "call_id": step.call_id,
                        "name": step.name,
                        "arguments": step.text,
                    },
                    record.response_id,
                )
        elif step.kind == "text" and not _has_message(items):
            text = step.text + refusal_of(record)
            if text:
                self._append({"role": "assistant", "content": text}, record.response_id)

    def _append(self, item: dict[str, Any], response: str | None = None) -> None:
        self._entries.append(_Entry(item, response, native=False))

    def _is_whole(self, item: dict[str, Any]) -> bool:
        if item.get("encrypted_content"):
            return True
        return not self._opaque and bool(item.get("content") or item.get("summary"))


def _set_options(body: dict[str, Any], options: CallOptions) -> None:
    if options.temperature is not None:
        body["temperature"] = options.temperature
    if options.max_output_tokens is not None:
        body["max_output_tokens"] = options.max_output_tokens
    if isinstance(options.reasoning, str):
        body["reasoning"] = {"effort": options.reasoning, "summary": "auto"}
    elif options.reasoning:
        body["reasoning"] = options.reasoning
    if options.response_format is not None:
        form = options.response_format
        body["text"] = {
            "format": {
                "type": "json_schema",
                "name": form.name,
                "schema": form.schema,
                "strict": form.strict,
            }
        }
    tools = [_tool(tool) for tool in options.tools]
    extra = dict(options.extra)
    if "tools" in extra:
        # The provider's own tools stand beside ours, not in their place.
        tools += extra.pop("tools")
    if tools:
        body["tools"] = tools
        if options.tool_choice is not None:
            body["tool_choice"] = _tool_choice(options.tool_choice)
    body.update(extra)


def _has_message(items: list[dict[str, Any]] | None) -> bool:
    return any(item.get("type") == "message" for item in items or ())


def _without_id(entry: _Entry, broken: set[str | None]) -> dict[str, Any]:
    item = entry.item
    if entry.native and entry.response in broken and entry.type in _WITH_FREE_IDS:
        return {key: value for key, value in item.items() if key != "id"}
    return item


def _tool(tool: Any) -> dict[str, Any]:
    if isinstance(tool, dict):
        return tool
    return {
        "type": "function",
        "name": tool.name,
        "description": tool.description or "",
        "parameters": tool.parameters,
        # Left out it means True here, and schemas with optional members are refused.
        "strict": False,
    }


def _tool_choice(choice: str) -> str | dict[str, Any]:
    if choice in ("auto", "none", "required"):
        return choice
    return {"type": "function", "name": choice}
