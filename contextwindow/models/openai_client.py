"""What the two OpenAI adapters share: clients, reading an answer, translating errors.

The bytes come from the SDK's own client (``with_streaming_response``), so that keys, proxies,
Azure and its like stay the SDK's business.  Its retries are switched off: the turn retries, so
that it can say so (``Retrying``).
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import os
import re
import socket
import threading
import weakref
from abc import abstractmethod
from collections.abc import Callable
from functools import lru_cache
from typing import Any, ClassVar, Final
from urllib.parse import urlsplit

from contextwindow.errors import ConfigError, InvalidRequest, ModelError, StreamInterrupted
from contextwindow.models.arrived import Arrived
from contextwindow.models.base import Model, Request
from contextwindow.models.openai_errors import names_a_key, redacted, translated
from contextwindow.models.sse import AnswerReader

CONNECT_TIMEOUT: Final = 5.0
"""Seconds, as in the SDK; FACTS: a client of httpx2's own would not have it."""

# The SDK refuses to be built without one; local servers do not look at it.
_NO_KEY: Final = "no-key"
_OFFICIAL: Final = re.compile(r"(^|\.)openai\.com$")
_AZURE: Final = re.compile(r"\.azure\.(com|us|cn)$|\.azure-api\.net$")


class OpenAIModel(Model):
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

    @property
    def official(self) -> bool:
        """Whether OpenAI itself answers, which knows every field of its API."""
        return _OFFICIAL.search(self._clients.host) is not None

    @property
    def hosted(self) -> bool:
        """Whether OpenAI or Azure answers."""
        return self.official or _AZURE.search(self._clients.host) is not None

    def open(self, request: Request, *, timeout: float | None) -> Source:
        """Send *request* and return once the answer's headers have come."""
        client = self._clients.blocking()
        try:
            manager = self._call(client, request, timeout)
            response = manager.__enter__()
        except Exception as error:  # noqa: BLE001 - each transport has exceptions of its own
            raise self.error(error, reading=False, timeout=timeout) from self.quotable(error)
        return Source(self, manager, response, timeout)

    async def open_async(self, request: Request, *, timeout: float | None) -> AsyncSource:
        """As ``open``, on the running event loop."""
        client = self._clients.asynchronous()
        try:
            manager = self._call(client, request, timeout)
            response = await manager.__aenter__()
        except Exception as error:  # noqa: BLE001 - each transport has exceptions of its own
            raise self.error(error, reading=False, timeout=timeout) from self.quotable(error)
        return AsyncSource(self, manager, response, timeout)

    def close(self) -> None:
        """Close the connections that this model opened; a client given to it stays open."""
        self._clients.close()

    async def aclose(self) -> None:
        """As ``close``, and for the running event loop's client.

        Call it before the loop ends: connections cannot be closed from another one.
        """
        await self._clients.aclose()

    def error(self, error: Exception, *, reading: bool, timeout: float | None = None) -> ModelError:
        """Translate what the SDK or the network raised."""
        if isinstance(error, (TypeError, ValueError)) and not reading:
            # The SDK's own words for arguments that it cannot send; not UnicodeError's, which
            # would quote the whole request.
            return InvalidRequest(
                f"{self.name}: the request cannot be sent ({type(error).__name__}); "
                "check the values in extra= and in the tools",
                provider=self.provider,
            )
        host = self._clients.host
        found = translated(error, self.name, host, reading=reading, timeout=timeout)
        found.args = (redacted(str(found), self._clients.secret),)
        return found

    def quotable(self, error: Exception) -> Exception | None:
        """*error* as the cause of ours, or None where its own text would show the key."""
        return None if names_a_key(error, self._clients.secret) else error

    @abstractmethod
    def _method(self, client: Any, request: Request) -> tuple[Callable[..., Any], dict[str, Any]]:
        """The SDK's method for *request*, and its arguments."""

    def _call(self, client: Any, request: Request, timeout: float | None) -> Any:
        method, arguments = self._method(client, request)
        arguments = _split_extra(method, arguments)
        if timeout is not None:
            import httpx2

            arguments["timeout"] = httpx2.Timeout(timeout, connect=min(CONNECT_TIMEOUT, timeout))
        return method(**arguments)


class Clients:
    """The SDK's clients of one model: made when first needed, one for each way of waiting."""

    def __init__(
        self, api_key: str | None, base_url: str | None, client: Any, options: dict[str, Any]
    ) -> None:
        import openai

        self._openai = openai
        self._given = client
        if client is not None:
            if api_key is not None or base_url is not None or options:
                raise ConfigError(
                    "a client was given together with options for one; "
                    f"set {', '.join(['api_key', 'base_url', *options])} on the client itself"
                )
            self._is_async = isinstance(client, openai.AsyncOpenAI)
            if not self._is_async and not isinstance(client, openai.OpenAI):
                raise ConfigError(
                    f"client must be an openai.OpenAI or openai.AsyncOpenAI, "
                    f"not {type(client).__name__}"
                )
            self.max_retries = int(client.max_retries)
            self.host = client.base_url.host
            self.secret = _secret(client.api_key)
        else:
            self._options = _own_options(api_key, base_url, options)
            self.max_retries = int(options.get("max_retries", openai.DEFAULT_MAX_RETRIES))
            base_url = base_url or os.environ.get("OPENAI_BASE_URL") or "https://api.openai.com/v1"
            self.secret = _secret(self._options.get("api_key"))
            self.host = urlsplit(str(base_url)).hostname or ""
        self._blocking: Any = None
        # A connection belongs to the loop that made it, so each loop has its own client.
        self._by_loop: weakref.WeakKeyDictionary[Any, Any] = weakref.WeakKeyDictionary()
        self._opened: list[Any] = []
        self._lock = threading.Lock()

    def blocking(self) -> Any:
        """The client for ``open``, without retries."""
        with self._lock:
            if self._blocking is None:
                if self._given is not None and not self._is_async:
                    client = self._given
                else:
                    client = self._make(self._openai.OpenAI, self._openai.AzureOpenAI)
                    self._opened.append(client)
                self._blocking = client.with_options(max_retries=0)
            return self._blocking

    def asynchronous(self) -> Any:
        """The client for ``open_async`` on the running loop, without retries."""
        loop = asyncio.get_running_loop()
        client = self._by_loop.get(loop)
        if client is None:
            if self._given is not None and self._is_async:
                client = self._given
            else:
                client = self._make(self._openai.AsyncOpenAI, self._openai.AsyncAzureOpenAI)
            client = client.with_options(max_retries=0)
            self._by_loop[loop] = client
        return client

    def close(self) -> None:
        """Close the blocking client, if it was made here."""
        self._blocking = None
        while self._opened:
            self._opened.pop().close()

    async def aclose(self) -> None:
        """Close what was made here, of the asynchronous clients the running loop's."""
        self.close()
        client = self._by_loop.pop(asyncio.get_running_loop(), None)
        if client is not None and not (self._given is not None and self._is_async):
            await client.close()

    def _make(self, plain: Any, azure: Any) -> Any:
        if self._given is not None:
            return _twin(self._openai, self._given, plain, azure)
        options = self._options
        if plain is self._openai.AsyncOpenAI and "http_client" not in options:
            # The SDK's own closes itself on whichever loop runs when it is collected.
            options = {**options, "http_client": self._openai.DefaultAsyncHttpxClient()}
        try:
            return plain(**options)
        except (TypeError, self._openai.OpenAIError) as error:
            raise ConfigError(f"the OpenAI client cannot be made: {error}") from error


class _SourceCore:
    """What reading an answer takes, whichever way it waits."""

    def __init__(
        self, model: OpenAIModel, manager: Any, response: Any, timeout: float | None
    ) -> None:
        self._model = model
        self._manager = manager
        self._http = response.http_response
        self._timeout = timeout
        content_type = self._http.headers.get("content-type", "")
        self._answer = AnswerReader(content_type, model.name, model.provider)
        self._arrived = Arrived(self._http)
        self._late: Exception | None = None
        self._aborted = False
        self._ended = False
        self._closed = False

    def abort(self) -> None:
        """Make a read that is under way end soon."""
        self._aborted = True
        stream = self._http.extensions.get("network_stream")
        raw = stream.get_extra_info("socket") if stream is not None else None
        if raw is None:
            return
        with contextlib.suppress(OSError, AttributeError):
            if isinstance(raw, socket.socket):
                # Not the SSLSocket's own method: it takes the TLS object from under the reader.
                socket.socket.shutdown(raw, socket.SHUT_RDWR)
            else:
                raw.shutdown(socket.SHUT_RDWR)

    def _raise_late(self) -> None:
        """Raise what went wrong behind the pieces that were given out last."""
        error, self._late = self._late, None
        if error is not None:
            raise self._failure(error) from self._model.quotable(error)

    def _take(self, chunk: bytes | None) -> list[Any]:
        if self._aborted:
            raise self._stopped()
        if chunk is not None:
            return self._answer.feed(chunk)
        self._ended = True
        return self._answer.end()

    def _failure(self, error: Exception) -> ModelError:
        self._ended = True
        if self._aborted:
            return self._stopped()
        return self._model.error(error, reading=True, timeout=self._timeout)

    def _stopped(self) -> StreamInterrupted:
        return StreamInterrupted(
            f"{self._model.name}: the stream was stopped on this side",
            provider=self._model.provider,
        )


class Source(_SourceCore):
    """An open call, read by blocking."""

    def __init__(
        self, model: OpenAIModel, manager: Any, response: Any, timeout: float | None
    ) -> None:
        super().__init__(model, manager, response, timeout)
        # Without an encoding the raw bytes are the bytes, two layers cheaper.
        encoded = "content-encoding" in self._http.headers
        self._chunks = self._http.iter_bytes() if encoded else self._http.iter_raw()

    def read(self) -> list[Any] | None:
        """Parsed events of one network read; see ``EventSource.read``."""
        while not self._ended:
            self._raise_late()
            pieces: list[bytes] = []
            try:
                chunk = next(self._chunks, None)
                while chunk is not None and self._arrived:
                    pieces.append(chunk)
                    chunk = next(self._chunks, b"")
            except Exception as error:  # noqa: BLE001 - each transport has exceptions of its own
                self._late, chunk = error, b""
                if not pieces:
                    self._raise_late()
            if pieces and chunk is not None:
                chunk = b"".join((*pieces, chunk))
            events = self._take(chunk)
            if events:
                return events
        return None

    def close(self) -> None:
        """Close the connection; may be called twice."""
        if not self._closed:
            self._closed = self._ended = True
            # A connection that is thrown away may fail as it likes.
            with contextlib.suppress(Exception):
                self._chunks.close()
            with contextlib.suppress(Exception):
                self._manager.__exit__(None, None, None)


class AsyncSource(_SourceCore):
    """An open call, read on an event loop."""

    def __init__(
        self, model: OpenAIModel, manager: Any, response: Any, timeout: float | None
    ) -> None:
        super().__init__(model, manager, response, timeout)
        encoded = "content-encoding" in self._http.headers
        self._chunks = self._http.aiter_bytes() if encoded else self._http.aiter_raw()

    async def read(self) -> list[Any] | None:
        """Parsed events of one network read; see ``EventSource.read``."""
        while not self._ended:
            self._raise_late()
            pieces: list[bytes] = []
            try:
                chunk = await anext(self._chunks, None)
                while chunk is not None and self._arrived:
                    pieces.append(chunk)
                    chunk = await anext(self._chunks, b"")
            except Exception as error:  # noqa: BLE001 - each transport has exceptions of its own
                self._late, chunk = error, b""
                if not pieces:
                    self._raise_late()
            if pieces and chunk is not None:
                chunk = b"".join((*pieces, chunk))
            events = self._take(chunk)
            if events:
                return events
        return None

    async def close(self) -> None:
        """Close the connection; may be called twice."""
        if not self._closed:
            self._closed = self._ended = True
            with contextlib.suppress(Exception):
                await self._chunks.aclose()
            with contextlib.suppress(Exception):
                await self._manager.__aexit__(None, None, None)


def _secret(key: Any) -> str:
    """What no message may hold; shorter texts are dummies and would be found in plain words."""
    key = key or os.environ.get("OPENAI_API_KEY")
    return key if isinstance(key, str) and len(key) >= 8 else ""


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


def _split_extra(method: Callable[..., Any], body: dict[str, Any]) -> dict[str, Any]:
    """*body* with what *method* has no argument for moved to ``extra_body``."""
    known = _parameters(getattr(method, "__func__", method))
    unknown = body.keys() - known
    if not unknown:
        return dict(body)
    arguments = {name: value for name, value in body.items() if name in known}
    extra = {name: value for name, value in body.items() if name in unknown}
    arguments["extra_body"] = {**extra, **(body.get("extra_body") or {})}
    return arguments


@lru_cache(maxsize=32)
def _parameters(function: Callable[..., Any]) -> frozenset[str]:
    return frozenset(inspect.signature(function).parameters)
