"""Anthropic's Claude models, through the Messages API.

What is stored under ``"anthropic"``: the content blocks of a reply, which go back as they came; see
``anthropic_decoder``.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Final

from contextwindow.errors import ConfigError, ModelError
from contextwindow.models.anthropic_decoder import API, AnthropicDecoder
from contextwindow.models.anthropic_errors import PROVIDER, translated
from contextwindow.models.anthropic_messages import (
    anthropic_messages,
    attachment_problem,
    set_breakpoints,
)
from contextwindow.models.base import CallOptions, Decoder, Request
from contextwindow.models.sdk_model import (
    SdkClients,
    SdkModel,
    host_of,
    plain_url,
    refuse_options,
    taken_by,
)
from contextwindow.models.secrets import redacted, secrets_in
from contextwindow.records import Attachment, Record

_URL: Final = "https://api.anthropic.com"
_NO_KEY: Final = "no-key"

# Output limits of the models overview (platform.claude.com, read 2026-11).  The API demands a
# limit; what is not used costs nothing.
_MOST_OUTPUT: Final = (
    (re.compile(r"claude-(?:2|instant|3-(?:opus|sonnet|haiku))"), 4_096),
    (re.compile(r"claude-3-5"), 8_192),
)
_USUAL_OUTPUT: Final = 32_000
_MOST_IN_ONE_BODY: Final = 16_000
"""The SDK refuses larger ones without a stream: they take longer than ten minutes."""

# Continue a trailing assistant message: up to the 4.5 family (FACTS, "Resuming").
_PREFILLS: Final = re.compile(
    r"claude-(?:2|instant|3)|claude-(?:opus|sonnet|haiku)-4(?:-[015])?(?:-\d{8}|@|-v\d|$|-latest)"
    r"|claude-4-(?:opus|sonnet)"
)
# Decide themselves how long to think, given an effort; others take a budget of tokens.
_THINKS_BY_BUDGET: Final = re.compile(
    r"claude-3-7|claude-(?:opus|sonnet|haiku)-4(?:-[015])?(?:-\d{8}|@|-v\d|$|-latest)"
    r"|claude-4-(?:opus|sonnet)"
)
_BUDGETS: Final = {"minimal": 1_024, "low": 2_048, "medium": 8_192, "high": 16_384}
_LEAST_BUDGET: Final = 1_024
_EFFORTS: Final = {"minimal": "low"}
_FORCED: Final = ("any", "tool")
# Counted by the endpoint, and not yet arguments of its method in the SDK.
_COUNTED_TOO: Final = frozenset({"context_management", "mcp_servers"})


class AnthropicModel(SdkModel):
    """A Claude model, at Anthropic, on Bedrock or on Vertex AI.

    Args:
        name: the provider's name of the model.
        api_key: default ``ANTHROPIC_API_KEY``; without either one, servers named by *base_url*
            get a placeholder.
        base_url: of a server that speaks Anthropic's protocol; default Anthropic's.
        client: a ready SDK client, blocking or asynchronous (also ``AnthropicBedrock`` and its
            like); it stays open on ``close``.
        stream: False asks for the whole reply in one body.
        prompt_caching: mark tools, system prompt and the stable prefix for the provider's cache:
            reading it costs a tenth of the price of input, writing it a quarter more.
        client_options: for the SDK's client, such as ``timeout`` (seconds), ``auth_token``,
            ``default_headers`` or ``max_retries``.

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
        prompt_caching: bool = True,
        **client_options: Any,
    ) -> None:
        super().__init__(name)
        self.stream = stream
        self.prompt_caching = prompt_caching
        self.supports_prefill = _PREFILLS.search(name) is not None
        self._clients = Clients(api_key, base_url, client, client_options)
        self.max_retries = self._clients.max_retries
        self.url = self._clients.url

    def request(self, records: Sequence[Record], options: CallOptions) -> Request:
        """The arguments of ``client.messages.create``."""
        messages, system = anthropic_messages(records, self.name, prefill=options.prefill)
        body: dict[str, Any] = {
            "model": self.name,
            "max_tokens": options.max_output_tokens or self._usual_output(),
            "messages": messages,
        }
        if self.stream:
            body["stream"] = True
        if system:
            body["system"] = system
        extra = dict(options.extra)
        self._set_tools(body, options, extra.pop("tools", ()))
        self._set_thinking(body, options)
        if options.temperature is not None and not _thinks(body):
            body["temperature"] = options.temperature
        if options.response_format is not None:
            schema = strict_schema(options.response_format.schema)
            body.setdefault("output_config", {})["format"] = {
                "type": "json_schema",
                "schema": schema,
            }
        if self.prompt_caching:
            set_breakpoints(body)
        if isinstance(extra.get("output_config"), dict):
            extra["output_config"] = {**body.get("output_config", {}), **extra["output_config"]}
        body.update(extra)
        return Request(body)

    def decoder(self, request: Request) -> Decoder:
        """A fresh decoder for the answer to *request*."""
        return AnthropicDecoder(self.name)

    def attachment_problem(self, attachment: Attachment) -> str | None:
        """Why Claude cannot take *attachment*, or None when it can."""
        return attachment_problem(self.name, attachment)

    def _usual_output(self) -> int:
        limit = next((most for name, most in _MOST_OUTPUT if name.search(self.name)), None)
        return limit or (_USUAL_OUTPUT if self.stream else _MOST_IN_ONE_BODY)

    def _set_tools(self, body: dict[str, Any], options: CallOptions, more: Sequence[Any]) -> None:
        tools = [_tool(tool) for tool in options.tools] + [dict(tool) for tool in more]
        if not tools:
            return
        body["tools"] = tools
        if options.tools and options.tool_choice is not None:
            body["tool_choice"] = _tool_choice(options.tool_choice)

    def _set_thinking(self, body: dict[str, Any], options: CallOptions) -> None:
        reasoning = options.reasoning
        if isinstance(reasoning, dict) and "type" not in reasoning:
            reasoning = reasoning.get("effort")
        if reasoning is None:
            return
        if isinstance(reasoning, dict):
            thinking = dict(reasoning)
        elif reasoning in ("none", "off"):
            thinking = {"type": "disabled"}
        elif _THINKS_BY_BUDGET.search(self.name):
            budget = _BUDGETS.get(reasoning, _BUDGETS["high"])
            thinking = {"type": "enabled", "budget_tokens": budget}
        elif _MOST_OUTPUT[0][0].search(self.name) or _MOST_OUTPUT[1][0].search(self.name):
            return  # they do not think
        else:
            thinking = {"type": "adaptive"}
            body["output_config"] = {"effort": _EFFORTS.get(reasoning, reasoning)}
        if thinking["type"] == "enabled":
            forced = body.get("tool_choice", {}).get("type") in _FORCED
            if forced or options.prefill or not _thought_first(body["messages"]):
                return  # refused by the API together with thinking
            budget = min(thinking.get("budget_tokens") or _LEAST_BUDGET, body["max_tokens"] - 1)
            if budget < _LEAST_BUDGET:
                return
            thinking["budget_tokens"] = budget
        body["thinking"] = thinking

    def _method(self, client: Any, request: Request) -> tuple[Callable[..., Any], dict[str, Any]]:
        return client.messages.with_streaming_response.create, request.body

    def _counting(self, client: Any, request: Request) -> tuple[Callable[..., Any], dict[str, Any]]:
        method = client.messages.count_tokens
        return method, taken_by(method, request.body, _COUNTED_TOO)

    def _translated(self, error: Exception, *, reading: bool, timeout: float | None) -> ModelError:
        host = self._clients.host
        return translated(error, self.name, host, reading=reading, timeout=timeout)


ClaudeModel = AnthropicModel
"""The same under the name of the models."""


class Clients(SdkClients):
    """Anthropic's clients of one model.

    Attributes:
        url: of the server, where it is not Anthropic's own.
    """

    def __init__(
        self, api_key: str | None, base_url: str | None, client: Any, options: dict[str, Any]
    ) -> None:
        import anthropic

        self._anthropic = anthropic
        environment = os.environ.get("ANTHROPIC_API_KEY") or os.environ.get("ANTHROPIC_AUTH_TOKEN")
        if client is not None:
            given = {"api_key": api_key, "base_url": base_url}
            refuse_options(client, {k: v for k, v in given.items() if v is not None} | options)
            is_async = hasattr(client, "messages") and hasattr(type(client), "__aenter__")
            if not is_async and not hasattr(type(client), "__enter__"):
                raise ConfigError(
                    "client must be one of the Anthropic SDK's, such as anthropic.Anthropic or "
                    f"anthropic.AsyncAnthropic, not {type(client).__name__}"
                )
            if not hasattr(client, "messages"):
                raise ConfigError(f"{type(client).__name__} has no messages: it cannot be called")
            address = str(client.base_url)
            keys: tuple[Any, ...] = (environment,)
            headers = getattr(client, "_custom_headers", None)
            query = getattr(client, "_custom_query", None)
            retries = int(client.max_retries)
        else:
            self._options = _own_options(api_key, base_url, options)
            is_async = False
            address = str(base_url or os.environ.get("ANTHROPIC_BASE_URL") or _URL)
            keys = (self._options.get("api_key"), self._options.get("auth_token"), environment)
            headers = options.get("default_headers")
            query = options.get("default_query")
            retries = int(options.get("max_retries", anthropic.DEFAULT_MAX_RETRIES))
        host = host_of(address)
        self.url = None if address.rstrip("/") == _URL else plain_url(address)
        secrets = secrets_in(*keys, headers=headers, query=query, address=address)
        super().__init__(client, is_async=is_async, host=host, secrets=secrets, max_retries=retries)

    def _make(self, *, asynchronous: bool) -> Any:
        anthropic = self._anthropic
        plain = anthropic.AsyncAnthropic if asynchronous else anthropic.Anthropic
        options = self._options if self._given is None else self._twin(asynchronous)
        if asynchronous and "http_client" not in options:
            # The SDK's own closes itself on whichever loop runs when it is collected.
            options = {**options, "http_client": anthropic.DefaultAsyncHttpxClient()}
        try:
            return plain(**options)
        except (TypeError, ValueError, anthropic.AnthropicError) as error:
            options = {}  # the key is not for the locals of a traceback
            said, cause = redacted(str(error), self.secrets()), self.quotable(error)
        raise ConfigError(f"the Anthropic client cannot be made: {said}") from cause

    def _twin(self, asynchronous: bool) -> dict[str, Any]:
        """Settings of the given client for one that waits the other way."""
        given, anthropic = self._given, self._anthropic
        # What a user has put in is not seen in public attributes (anthropic 2.11).
        own_transport = not type(given._client).__name__.endswith("HttpxClientWrapper")
        credentials = getattr(given, "credentials", None) is not None
        plain = type(given) in (anthropic.Anthropic, anthropic.AsyncAnthropic)
        if own_transport or credentials or not plain:
            kind = "asynchronous" if asynchronous else "blocking"
            raise ConfigError(
                f"the {type(given).__name__} given cannot serve {kind} calls, and its settings "
                "(own http_client, credentials or cloud) cannot be carried over: pass a "
                f"{kind} client to a model of its own"
            )
        return {
            "api_key": given.api_key,
            "auth_token": given.auth_token,
            "base_url": str(given.base_url),
            "timeout": given.timeout,
            "max_retries": given.max_retries,
            "default_headers": given._custom_headers,
            "default_query": given._custom_query,
        }


def strict_schema(schema: dict[str, Any]) -> dict[str, Any]:
    """*schema* in the form that the API takes; what it refuses is moved to descriptions."""
    from anthropic import transform_schema

    try:
        return transform_schema(schema)
    except (ValueError, TypeError, AttributeError, AssertionError, RecursionError):
        # The API says what is wrong with it.
        return schema


def _own_options(
    api_key: str | None, base_url: str | None, options: dict[str, Any]
) -> dict[str, Any]:
    """Arguments for the SDK's client.

    Raises:
        ConfigError: nothing says who pays.
    """
    options = dict(options)
    if base_url is not None:
        options["base_url"] = base_url
    known = os.environ.get("ANTHROPIC_API_KEY") or os.environ.get("ANTHROPIC_AUTH_TOKEN")
    if api_key is not None:
        options["api_key"] = api_key
    elif not known and not options.keys() & {"auth_token", "credentials", "profile"}:
        if base_url is None and not os.environ.get("ANTHROPIC_BASE_URL"):
            raise ConfigError("ANTHROPIC_API_KEY is not set: set it, or pass api_key=")
        options["api_key"] = _NO_KEY
    return options


def _tool(tool: Any) -> dict[str, Any]:
    if isinstance(tool, dict):
        return dict(tool)
    made = {"name": tool.name, "input_schema": tool.parameters}
    if tool.description:
        made["description"] = tool.description
    return made


def _tool_choice(choice: str) -> dict[str, Any]:
    if choice in ("auto", "none"):
        return {"type": choice}
    if choice == "required":
        return {"type": "any"}
    return {"type": "tool", "name": choice}


def _thinks(body: dict[str, Any]) -> bool:
    return body.get("thinking", {}).get("type") in ("enabled", "adaptive")


def _thought_first(messages: list[dict[str, Any]]) -> bool:
    """Whether the tool loop that is under way began with a thought, if there is one."""
    for message in reversed(messages):
        kinds = [block["type"] for block in message["content"]]
        if message["role"] == "user" and "tool_result" not in kinds:
            return True
        if message["role"] == "assistant" and "tool_use" in kinds:
            return kinds[0] in ("thinking", "redacted_thinking")
    return True
