"""OpenAI's Chat Completions API, and the many servers that imitate it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

from contextwindow.models.base import CallOptions, Decoder, Request
from contextwindow.models.chat_decoder import API, ChatDecoder
from contextwindow.models.chat_messages import chat_messages
from contextwindow.models.openai_attachments import chat_problem
from contextwindow.models.openai_client import OpenAIModel
from contextwindow.records import Attachment, Record


class OpenAIChatModel(OpenAIModel):
    """A model behind Chat Completions.

    The reply's limit goes as ``max_completion_tokens`` to OpenAI and Azure and as ``max_tokens``
    to other servers, many of which know only that.

    Args:
        prefill: the server continues an unfinished assistant message at the end of a request
            (vLLM and others, some with an option to be set in ``extra``); OpenAI does not.
    """

    api: ClassVar[str] = API

    def __init__(
        self,
        name: str,
        *,
        api_key: str | None = None,
        base_url: str | None = None,
        client: Any = None,
        stream: bool = True,
        prefill: bool = False,
        **client_options: Any,
    ) -> None:
        super().__init__(
            name,
            api_key=api_key,
            base_url=base_url,
            client=client,
            stream=stream,
            **client_options,
        )
        self.supports_prefill = prefill

    def request(self, records: Sequence[Record], options: CallOptions) -> Request:
        """The arguments of ``client.chat.completions.create``."""
        messages = chat_messages(
            records, self.attachment_problem, hosted=self.hosted, prefill=options.prefill
        )
        body: dict[str, Any] = {"model": self.name, "messages": messages}
        if self.stream:
            body["stream"] = True
            body["stream_options"] = {"include_usage": True}
            if self.official:
                body["stream_options"]["include_obfuscation"] = False
        self._set_options(body, options)
        tools = [_tool(tool) for tool in options.tools]
        extra = dict(options.extra)
        if "tools" in extra:
            tools += extra.pop("tools")
        if tools:
            body["tools"] = tools
            if options.tool_choice is not None:
                body["tool_choice"] = _tool_choice(options.tool_choice)
        body.update(extra)
        return Request(body)

    def decoder(self, request: Request) -> Decoder:
        """A fresh decoder for the answer to *request*."""
        return ChatDecoder(self.name)

    def attachment_problem(self, attachment: Attachment) -> str | None:
        """Why this model cannot take *attachment*, or None when it can."""
        return chat_problem(self.name, attachment, hosted=self.hosted)

    def _set_options(self, body: dict[str, Any], options: CallOptions) -> None:
        if options.temperature is not None:
            body["temperature"] = options.temperature
        if options.max_output_tokens is not None:
            limit = "max_completion_tokens" if self.hosted else "max_tokens"
            body[limit] = options.max_output_tokens
        reasoning = options.reasoning
        if isinstance(reasoning, str):
            body["reasoning_effort"] = reasoning
        elif reasoning and self.hosted:
            # The mapping of Responses: of it, this API knows the effort alone.
            if reasoning.get("effort") is not None:
                body["reasoning_effort"] = reasoning["effort"]
        elif reasoning:
            body["reasoning"] = reasoning
        if options.response_format is not None:
            form = options.response_format
            schema = {"name": form.name, "schema": form.schema, "strict": form.strict}
            body["response_format"] = {"type": "json_schema", "json_schema": schema}

    def _method(self, client: Any, request: Request) -> tuple[Callable[..., Any], dict[str, Any]]:
        return client.chat.completions.with_streaming_response.create, request.body


def _tool(tool: Any) -> dict[str, Any]:
    if isinstance(tool, dict):
        return tool
    function = {
        "name": tool.name,
        "description": tool.description or "",
        "parameters": tool.parameters,
    }
    return {"type": "function", "function": function}


def _tool_choice(choice: str) -> str | dict[str, Any]:
    if choice in ("auto", "none", "required"):
        return choice
    return {"type": "function", "function": {"name": choice}}
