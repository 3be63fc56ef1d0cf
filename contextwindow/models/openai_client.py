"""What the two OpenAI adapters share: who answers, and the SDK's clients."""

from __future__ import annotations

import os
import re
from typing import Any, ClassVar, Final

from contextwindow.errors import ConfigError, ModelError
from contextwindow.models.openai_errors import translated
from contextwindow.models.sdk_model import (
    SdkClients,
    SdkModel,
    host_of,
    plain_url,
    refuse_options,
)
from contextwindow.models.secrets import redacted, secrets_in

# The SDK refuses to be built without one; local servers do not look at it.
_NO_KEY: Final = "no-key"
_OFFICIAL: Final = re.compile(r"(^|\.)openai\.com$")
_AZURE: Final = re.compile(r"\.azure\.(com|us|cn)$|\.azure-api\.net$")


class OpenAIModel(SdkModel):
    """A model behind one of OpenAI's APIs, at OpenAI, on Azure or on a server that imitates it.

    Args:
        name: the provider's name of the model.
        api_key: default ``OPENAI_API_KEY``; without either one, servers named by *base_url* get
            a placeholder.
        base_url: of a server that speaks OpenAI's protocol; default OpenAI's.
        client: a ready SDK client, blocking or asynchronous; it stays open on ``close``.
        stream: False asks for the whole reply in one body.
        client_options: for the SDK's client, such as ``timeout`` (seconds), ``organization``,
            ``default_headers`` or ``max_retries``.

    Raises:
        ConfigError: there is no key, or the options contradict each other.
    """

    provider: ClassVar[str] = "openai"

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
        if not self.official:
            self.url = self._clients.url

    @property
    def official(self) -> bool:
        """Whether OpenAI itself answers, which knows every field of its API."""
        return _OFFICIAL.search(self._clients.host) is not None

    @property
    def hosted(self) -> bool:
        """Whether OpenAI or Azure answers."""
        return self.official or _AZURE.search(self._clients.host) is not None

    def _translated(self, error: Exception, *, reading: bool, timeout: float | None) -> ModelError:
        host = self._clients.host
        return translated(error, self.name, host, reading=reading, timeout=timeout)


class Clients(SdkClients):
    """OpenAI's clients of one model.

    Attributes:
        url: of the server, without what may be a secret.
    """

    def __init__(
        self, api_key: str | None, base_url: str | None, client: Any, options: dict[str, Any]
    ) -> None:
        import openai

        self._openai = openai
        if client is not None:
            given = {"api_key": api_key, "base_url": base_url}
            refuse_options(client, {k: v for k, v in given.items() if v is not None} | options)
            is_async = isinstance(client, openai.AsyncOpenAI)
            self.url = plain_url(str(getattr(client, "base_url", "")))
            if not is_async and not isinstance(client, openai.OpenAI):
                raise ConfigError(
                    f"client must be an openai.OpenAI or openai.AsyncOpenAI, "
                    f"not {type(client).__name__}"
                )
            super().__init__(
                client,
                is_async=is_async,
                host=client.base_url.host,
                secrets=secrets_in(
                    os.environ.get("OPENAI_API_KEY"),
                    headers=getattr(client, "_custom_headers", None),
                    query=getattr(client, "_custom_query", None),
                    address=str(client.base_url),
                ),
                max_retries=int(client.max_retries),
            )
            return
        self._options = _own_options(api_key, base_url, options)
        base_url = base_url or os.environ.get("OPENAI_BASE_URL") or "https://api.openai.com/v1"
        host = host_of(str(base_url))
        self.url = plain_url(str(base_url))
        key = self._options.get("api_key") or os.environ.get("OPENAI_API_KEY")
        super().__init__(
            None,
            is_async=False,
            host=host,
            secrets=secrets_in(
                key,
                headers=options.get("default_headers"),
                query=options.get("default_query"),
                address=str(base_url),
            ),
            max_retries=int(options.get("max_retries", openai.DEFAULT_MAX_RETRIES)),
        )

    def _make(self, *, asynchronous: bool) -> Any:
        openai = self._openai
        plain = openai.AsyncOpenAI if asynchronous else openai.OpenAI
        azure = openai.AsyncAzureOpenAI if asynchronous else openai.AzureOpenAI
        if self._given is not None:
            return _twin(openai, self._given, plain, azure)
        options = self._options
        if asynchronous and "http_client" not in options:
            # The SDK's own closes itself on whichever loop runs when it is collected.
            options = {**options, "http_client": openai.DefaultAsyncHttpxClient()}
        try:
            return plain(**options)
        except (TypeError, openai.OpenAIError) as error:
            options = {}  # the key is not for the locals of a traceback
            said, cause = redacted(str(error), self.secrets()), self.quotable(error)
        raise ConfigError(f"the OpenAI client cannot be made: {said}") from cause


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
    if api_key is not None:
        options["api_key"] = api_key
    elif not os.environ.get("OPENAI_API_KEY"):
        if base_url is not None or os.environ.get("OPENAI_BASE_URL"):
            options["api_key"] = _NO_KEY
        elif not options.keys() & {"workload_identity", "provider"}:
            raise ConfigError("OPENAI_API_KEY is not set: set it, or pass api_key=")
    return options


def _twin(openai: Any, given: Any, plain: Any, azure: Any) -> Any:
    """A client with *given*'s settings that waits the other way.

    Raises:
        ConfigError: a setting cannot be carried over.
    """
    kind = "blocking" if plain is openai.OpenAI else "asynchronous"
    is_azure = type(given) in (openai.AzureOpenAI, openai.AsyncAzureOpenAI)
    # What a user has put in is not seen in public attributes (openai 3.52).
    own_transport = not type(given._client).__name__.endswith("HttpxClientWrapper")
    dynamic = [
        name
        for name in ("_api_key_provider", "workload_identity", "_azure_ad_token_provider")
        if getattr(given, name, None) is not None
    ]
    if own_transport or dynamic or not (is_azure or type(given) in _plain_types(openai)):
        raise ConfigError(
            f"the {type(given).__name__} given cannot serve {kind} calls, and its settings "
            f"(own http_client, key function or subclass) cannot be carried over: pass a {kind} "
            f"client, such as {plain.__name__}, to a model of its own"
        )
    options: dict[str, Any] = {
        "organization": given.organization,
        "project": given.project,
        "timeout": given.timeout,
        "max_retries": given.max_retries,
        "default_headers": given._custom_headers,
    }
    if is_azure:
        return azure(**_azure_settings(given), **options)
    query = given._custom_query
    return plain(
        api_key=given.api_key, base_url=str(given.base_url), default_query=query, **options
    )


def _azure_settings(given: Any) -> dict[str, Any]:
    settings: dict[str, Any] = {"api_version": given._api_version}
    if given._azure_ad_token is not None:
        settings["azure_ad_token"] = given._azure_ad_token
    else:
        settings["api_key"] = given.api_key
    if given._azure_endpoint is not None:
        settings["azure_endpoint"] = str(given._azure_endpoint)
        settings["azure_deployment"] = given._azure_deployment
    else:
        settings["base_url"] = str(given.base_url)
    return settings


def _plain_types(openai: Any) -> tuple[Any, ...]:
    return (openai.OpenAI, openai.AsyncOpenAI)
