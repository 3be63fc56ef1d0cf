"""Google's Gemini models, through ``generateContent``.

What is stored under ``"gemini"``: the parts of an answer that the provider needs back as they came;
see ``gemini_decoder``.  Thoughts are shown and stored, and sent back only where they are signed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

from contextwindow.errors import ModelError
from contextwindow.models.base import CallOptions, Decoder, Request
from contextwindow.models.gemini_client import Clients
from contextwindow.models.gemini_contents import ID_LIMIT, Contents, attachment_problem
from contextwindow.models.gemini_decoder import API, GeminiDecoder
from contextwindow.models.gemini_errors import PROVIDER, is_own, translated
from contextwindow.models.gemini_options import HTTP_OPTIONS, merged, thinking
from contextwindow.models.sdk_model import SdkModel
from contextwindow.models.steps import steps
from contextwindow.records import Attachment, Record


class GeminiModel(SdkModel):
    """A Gemini model, at the Gemini API or on Vertex AI.

    ``extra`` may hold members of the REST body (``safetySettings``, ``generationConfig`` …) or
    names of the SDK's ``GenerateContentConfig`` (``top_p``, ``safety_settings`` …).  Tools in it
    stand beside ours.

    Args:
        name: the provider's name of the model.
        api_key: default ``GOOGLE_API_KEY`` or ``GEMINI_API_KEY``.
        base_url: of a gateway that speaks Gemini's protocol; without a key it gets a placeholder.
        client: a ready ``google.genai.Client``; it stays open on ``close``.
        stream: False asks for the whole reply in one body.
        client_options: for ``google.genai.Client``, such as ``vertexai``, ``project``,
            ``location``, ``credentials`` or ``http_options``; and ``timeout`` (seconds without a
            byte, by default 600) and ``max_retries``, which go with a ready client, too.

    Raises:
        ConfigError: there is no key, or the options contradict each other.
    """

    provider: ClassVar[str] = PROVIDER
    api: ClassVar[str] = API

    def __init__(
        self,
        name: str,
        *,
        api_key: str | None = None,
        base_url: str | None = None,
        client: Any = None,
        stream: bool = True,
        **client_options: Any,
    ) -> None:
        super().__init__(name)
        self.stream = stream
        self._clients = Clients(api_key, base_url, client, client_options)
        self.max_retries = self._clients.max_retries
        self.url = self._clients.url

    def request(self, records: Sequence[Record], options: CallOptions) -> Request:
        """The body of ``generateContent``, and the model's name."""
        contents = Contents(self.name)
        for step in steps(records, id_limit=ID_LIMIT):
            contents.add(step)
        body: dict[str, Any] = {"model": self.name, "contents": contents.done()}
        system = contents.system()
        if system is not None:
            body["systemInstruction"] = system
        self._set_tools(body, options)
        generation = self._generation(options)
        if generation:
            body["generationConfig"] = generation
        return Request(merged(body, options.extra))

    def decoder(self, request: Request) -> Decoder:
        """A fresh decoder for the answer to *request*."""
        tools = [tool for tool in request.body.get("tools") or () if isinstance(tool, dict)]
        own = None
        if any("mcpServers" in tool for tool in tools):
            declared = [one for tool in tools for one in tool.get("functionDeclarations") or ()]
            own = {str(one.get("name")) for one in declared if isinstance(one, dict)}
        return GeminiDecoder(self.name, own_tools=own)

    def attachment_problem(self, attachment: Attachment) -> str | None:
        """Why Gemini cannot take *attachment*, or None when it can."""
        return attachment_problem(self.name, attachment)

    def error(self, error: Exception, *, reading: bool, timeout: float | None = None) -> ModelError:
        """Translate what the SDK or the network raised."""
        if not is_own(error):
            return super().error(error, reading=reading, timeout=timeout)
        # Some of its own errors are ValueErrors, which the general case takes for bad arguments.
        found = self._translated(error, reading=reading, timeout=timeout)
        return self.without_secrets(found)

    def _set_tools(self, body: dict[str, Any], options: CallOptions) -> None:
        tools = [tool for tool in options.tools if isinstance(tool, dict)]
        functions = [_declaration(tool) for tool in options.tools if not isinstance(tool, dict)]
        if functions:
            tools.insert(0, {"functionDeclarations": functions})
        if tools:
            body["tools"] = tools
        if functions and options.tool_choice is not None:
            body["toolConfig"] = {"functionCallingConfig": _calling(options.tool_choice)}

    def _generation(self, options: CallOptions) -> dict[str, Any]:
        config: dict[str, Any] = {}
        if options.temperature is not None:
            config["temperature"] = options.temperature
        if options.max_output_tokens is not None:
            config["maxOutputTokens"] = options.max_output_tokens
        if options.reasoning:
            config["thinkingConfig"] = thinking(self.name, options.reasoning)
        if options.response_format is not None:
            config["responseMimeType"] = "application/json"
            config["responseJsonSchema"] = options.response_format.schema
        return config

    def _method(self, client: Any, request: Request) -> tuple[Callable[..., Any], dict[str, Any]]:
        body = dict(request.body)
        arguments = {
            "model": body.pop("model"),
            "http_options": body.pop(HTTP_OPTIONS, None),
            "body": body,
            "stream": self.stream,
        }
        return client.lend, arguments

    def _counting(self, client: Any, request: Request) -> tuple[Callable[..., Any], dict[str, Any]]:
        body = dict(request.body)
        options = body.pop(HTTP_OPTIONS, None)
        return client.count, {"model": body.pop("model"), "http_options": options, "body": body}

    def _translated(self, error: Exception, *, reading: bool, timeout: float | None) -> ModelError:
        host = self._clients.host
        return translated(error, self.name, host, reading=reading, timeout=timeout)


def _declaration(tool: Any) -> dict[str, Any]:
    return {
        "name": tool.name,
        "description": tool.description or "",
        "parametersJsonSchema": tool.parameters,
    }


def _calling(choice: str) -> dict[str, Any]:
    modes = {"auto": "AUTO", "none": "NONE", "required": "ANY"}
    if choice in modes:
        return {"mode": modes[choice]}
    return {"mode": "ANY", "allowedFunctionNames": [choice]}
