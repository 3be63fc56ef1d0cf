"""Google's SDK builds and signs a request; the bytes of the answer are ours.

The SDK lends no open answer, but takes an HTTP client.  Ours ends in a transport that sends the
SDK's request through a real client, keeps the answer for us, and hands the SDK an empty one, so
that its iterator ends at once.  An answer that refuses goes to the SDK, which raises its errors.
What the transport belongs to is told by a context variable: the SDK sends from the thread, or the
task, that asked it to.

The request's body is written by us: the SDK's types refuse fields that they do not know, and
encode signatures anew.
"""

from __future__ import annotations

import contextlib
import copy
import json
import os
from collections.abc import Callable
from contextvars import ContextVar
from functools import partial
from types import SimpleNamespace
from typing import Any, Final, Self

import httpx2

from contextwindow.errors import ConfigError
from contextwindow.models.gemini_typed import TypedCall, Want, sdk_arguments, to_be_counted
from contextwindow.models.sdk_model import (
    CONNECT_TIMEOUT,
    SdkClients,
    host_of,
    plain_url,
    refuse_options,
)
from contextwindow.models.secrets import redacted, secrets_in, tells_of_secrets

DEFAULT_TIMEOUT: Final = 600.0
"""Seconds without a byte where the call sets no limit; the SDK would wait for ever."""

KEYS: Final = ("GOOGLE_API_KEY", "GEMINI_API_KEY")
"""Environment variables, in the order in which the SDK looks at them."""

# The SDK refuses to be built without one; gateways do not look at it.
_NO_KEY: Final = "no-key"
_VERTEX: Final = ("GOOGLE_GENAI_USE_ENTERPRISE", "GOOGLE_GENAI_USE_VERTEXAI")
_OWN_HTTP: Final = ("httpx_client", "httpx_async_client", "aiohttp_client", "async_client_args")
# What the real client sets by itself, for the body that is sent.
_NOT_PASSED_ON: Final = frozenset({"host", "content-length", "transfer-encoding"})


class Clients(SdkClients):
    """Google's clients of one model: one of the SDK, and a real HTTP client for each way.

    Attributes:
        url: of the server, without what may be a secret; None where it is Google's.
    """

    # Arguments of the real HTTP client; None where it is the caller's.
    _http_args: dict[str, Any] | None = None

    def __init__(
        self, api_key: str | None, base_url: str | None, client: Any, options: dict[str, Any]
    ) -> None:
        options = dict(options)
        # The turn retries, as many times as the other SDKs do by themselves.
        max_retries = options.pop("max_retries", 2)
        seconds = options.pop("timeout", None)
        self._timeout = None if seconds is None else _limits(seconds)
        if client is not None:
            given = {"api_key": api_key, "base_url": base_url}
            refuse_options(client, {k: v for k, v in given.items() if v is not None} | options)
            if not hasattr(client, "models"):
                raise ConfigError(
                    f"client must be a google.genai.Client, not {type(client).__name__}"
                )
        self._client = client or self._made(api_key, base_url, options)
        api = getattr(self._client, "_api_client", None)
        address = str(getattr(getattr(api, "_http_options", None), "base_url", None) or "")
        host = host_of(address)
        http = self._http_args or {}
        official = not host or host.endswith(".googleapis.com")
        self.url = None if official else plain_url(address)
        super().__init__(
            None,
            is_async=False,
            host=host or "the Gemini API",
            secrets=secrets_in(
                getattr(api, "api_key", None),
                headers=getattr(getattr(api, "_http_options", None), "headers", None),
                address=address,
            )
            | secrets_in(headers=http.get("headers"), query=http.get("params")),
            max_retries=int(max_retries),
        )

    def secrets(self) -> frozenset[str]:
        """What no message may hold, with the token that Google's library has got by now."""
        api = getattr(self._client, "_api_client", None)
        token = getattr(getattr(api, "_credentials", None), "token", None)
        return super().secrets() | secrets_in(token)

    def _make(self, *, asynchronous: bool) -> Any:
        lender = AsyncLender if asynchronous else Lender
        if self._http_args is not None:
            kind = httpx2.AsyncClient if asynchronous else httpx2.Client
            hooks = dict(self._http_args.get("event_hooks") or {})
            guard = _keep_keys_here_async if asynchronous else _keep_keys_here
            hooks["request"] = [*hooks.get("request", ()), guard]
            arguments = {"follow_redirects": True, **self._http_args, "event_hooks": hooks}
            http: Any = kind(**arguments)
            return lender(partial(Call, self._client, http), self._timeout, http)
        borrowed = _borrowed(self._client, asynchronous=asynchronous)
        call = partial(Call, *borrowed) if borrowed else partial(TypedCall, self._client)
        return lender(call, self._timeout)

    def _made(self, api_key: str | None, base_url: str | None, options: dict[str, Any]) -> Any:
        """A client of the SDK from options, which may hold HTTP clients of the caller's own."""
        from google import genai
        from google.auth.exceptions import GoogleAuthError
        from google.genai.types import HttpOptions

        settings = options.pop("http_options", None) or {}
        if isinstance(settings, HttpOptions):
            settings = {name: getattr(settings, name) for name in settings.model_fields_set}
        settings = dict(settings)
        if base_url is not None:
            settings["base_url"] = base_url
        options["api_key"] = api_key or _default_key(options, settings)
        if not any(settings.get(name) for name in _OWN_HTTP):
            self._http_args = dict(settings.pop("client_args", None) or {})
            settings.update(_handover_clients())
        try:
            return genai.Client(**options, http_options=HttpOptions(**settings))
        except (TypeError, ValueError, AttributeError, GoogleAuthError) as error:
            # Pydantic's errors quote the options, and a key may be among them.
            said = type(error).__name__ if "pydantic" in type(error).__module__ else str(error)
            key = secrets_in(options["api_key"])
            raise ConfigError(
                f"the Gemini client cannot be made ({redacted(said, key)}); "
                "check the arguments of GeminiModel"
            ) from None


class Lender:
    """A client of the SDK that lends its open answers.

    Args:
        call: makes a call from the model, the body, what is wanted, the SDK's options for one
            request, and the timeout.
        timeout: of calls that have none of their own; None for the SDK's client's.
        http: the HTTP client to be closed; None where it is the caller's.
    """

    def __init__(
        self, call: Callable[..., Any], timeout: httpx2.Timeout | None, http: Any = None
    ) -> None:
        self._call = call
        self._timeout = timeout
        self._http = http

    def with_options(self, **_options: Any) -> Self:
        """Itself: this SDK makes no retries that would have to be switched off."""
        return self

    def lend(
        self,
        *,
        model: str,
        body: dict[str, Any],
        stream: bool,
        http_options: Any = None,
        timeout: httpx2.Timeout | None = None,
    ) -> Call | TypedCall:
        """A call, made when its context is entered."""
        return self._made(model, body, "stream" if stream else "body", http_options, timeout)

    def count(
        self,
        *,
        model: str,
        body: dict[str, Any],
        http_options: Any = None,
        timeout: httpx2.Timeout | None = None,
    ) -> Any:
        """What the provider counts in *body*; None where it says nothing."""
        with self._made(model, body, "count", http_options, timeout) as call:
            return call.counted

    def _made(
        self,
        model: str,
        body: dict[str, Any],
        want: Want,
        http_options: Any,
        timeout: httpx2.Timeout | None,
    ) -> Call | TypedCall:
        if hasattr(http_options, "model_dump"):
            http_options = http_options.model_dump(exclude_none=True)
        timeout = timeout or self._timeout
        made: Call | TypedCall = self._call(model, body, want, http_options or {}, timeout)
        return made

    def close(self) -> None:
        """Close the HTTP client."""
        if self._http is not None:
            self._http.close()


class AsyncLender(Lender):
    """As ``Lender``, for one event loop."""

    async def count(
        self,
        *,
        model: str,
        body: dict[str, Any],
        http_options: Any = None,
        timeout: httpx2.Timeout | None = None,
    ) -> Any:
        """What the provider counts in *body*; None where it says nothing."""
        async with self._made(model, body, "count", http_options, timeout) as call:
            return call.counted

    async def close(self) -> None:  # type: ignore[override]  # as the SDKs' asynchronous clients
        """Close the HTTP client."""
        if self._http is not None:
            await self._http.aclose()


class Call:
    """One call: its context holds the connection open.

    Attributes:
        http_response: the answer, once it has come.
        server: where the SDK sends the request; a redirect may send it elsewhere.
        counted: the tokens, where a count was wanted.
    """

    server: httpx2.URL | None = None

    def __init__(
        self,
        client: Any,
        http: Any,
        model: str,
        body: dict[str, Any],
        want: Want,
        http_options: dict[str, Any],
        timeout: httpx2.Timeout | None,
    ) -> None:
        self.http_response: Any = None
        self.counted: Any = None
        self._client = client
        self._http = http
        self._body = to_be_counted(client, model, body) if want == "count" else body
        self._want = want
        self._timeout = timeout
        self._arguments = sdk_arguments(model, http_options, want)

    def __enter__(self) -> Call:
        models = self._client.models
        token = _CALL.set(self)
        try:
            if self._want == "count":
                self.counted = models.count_tokens(**self._arguments).total_tokens
            elif self._want == "stream":
                for _ in models.generate_content_stream(**self._arguments):
                    pass
            else:
                models.generate_content(**self._arguments)
        except BaseException:
            self.__exit__(None, None, None)
            raise
        finally:
            _CALL.reset(token)
        return self

    def __exit__(self, *_error: object) -> None:
        if self.http_response is not None:
            self.http_response.close()

    async def __aenter__(self) -> Call:
        models = self._client.aio.models
        token = _CALL.set(self)
        try:
            if self._want == "count":
                self.counted = (await models.count_tokens(**self._arguments)).total_tokens
            elif self._want == "stream":
                async for _ in await models.generate_content_stream(**self._arguments):
                    pass
            else:
                await models.generate_content(**self._arguments)
        except BaseException:
            await self.__aexit__(None, None, None)
            raise
        finally:
            _CALL.reset(token)
        return self

    async def __aexit__(self, *_error: object) -> None:
        if self.http_response is not None:
            await self.http_response.aclose()

    def request(self, request: httpx2.Request, content: bytes) -> Any:
        """The SDK's *request* with our body and timeouts, for the real client."""
        # What the SDK has put there beside the contents is an `extra_body` of the caller's.
        body = {**json.loads(content or b"{}"), **self._body}
        if "generateContentRequest" in body:
            del body["contents"]
        limits = self._timeout or _client_timeout(request)
        self.server = request.url
        return self._http.build_request(
            request.method,
            str(request.url),
            headers=[one for one in request.headers.multi_items() if one[0] not in _NOT_PASSED_ON],
            content=json.dumps(body, allow_nan=False).encode(),
            timeout=(limits.connect, limits.read, limits.write, limits.pool),
        )

    def send(self, request: Any) -> Any:
        """The answer of the real client, which is open."""
        return self._http.send(request, stream=True)

    def keeps(self, answer: Any) -> bool:
        """Whether *answer* is for us; refusals and counts are for the SDK to read."""
        return answer.status_code == 200 and self._want != "count"

    def keep(self, answer: Any) -> httpx2.Response:
        """Keep *answer* for us; what the SDK gets instead."""
        self.http_response = answer
        return httpx2.Response(200, headers={"content-type": "text/event-stream"})


class Handover(httpx2.BaseTransport):
    """The transport of the SDK's blocking client."""

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        """Send *request* as the call says whose it is."""
        call = _CALL.get()
        answer = call.send(call.request(request, request.read()))
        if call.keeps(answer):
            return call.keep(answer)
        with contextlib.closing(answer):
            return _readable(answer, answer.read())


class AsyncHandover(httpx2.AsyncBaseTransport):
    """The transport of the SDK's asynchronous client."""

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """Send *request* as the call says whose it is."""
        call = _CALL.get()
        answer = await call.send(call.request(request, await request.aread()))
        if call.keeps(answer):
            return call.keep(answer)
        async with contextlib.aclosing(answer):
            return _readable(answer, await answer.aread())


_CALL: Final[ContextVar[Call]] = ContextVar("contextwindow_gemini_call")


def _keep_keys_here(request: httpx2.Request) -> None:
    """Take keys out of *request* where a redirect sends it to another server.

    httpx2 itself takes out ``authorization``, and knows nothing of ``x-goog-api-key``.
    """
    call = _CALL.get(None)
    here = None if call is None else call.server
    if here is None or here.origin == request.url.origin:
        return
    upgraded = (here.scheme, request.url.scheme) == ("http", "https")
    if upgraded and here.host == request.url.host:
        return
    for name in list(request.headers):
        if tells_of_secrets(name):
            del request.headers[name]


async def _keep_keys_here_async(request: httpx2.Request) -> None:
    _keep_keys_here(request)


def _handover_clients() -> dict[str, Any]:
    blocking = httpx2.Client(transport=Handover())
    asynchronous = httpx2.AsyncClient(transport=AsyncHandover())
    for client in (blocking, asynchronous):
        # The real client has defaults of its own, which these would replace.
        for name in list(client.headers):
            del client.headers[name]
    return {"httpx_client": blocking, "httpx_async_client": asynchronous}


def _borrowed(client: Any, *, asynchronous: bool) -> tuple[Any, Any] | None:
    """A client that sends through us, and the HTTP client inside the given *client*; or None.

    The SDK has no public way to it (google-genai 3.4): a copy of its inner client gets ours.
    """
    from google.genai.models import AsyncModels, Models

    try:
        api = client._api_client
        inner = api._async_httpx_client if asynchronous else api._httpx_client
        sessions = api._use_google_auth_async() if asynchronous else api._use_google_auth_sync()
        if inner is None or sessions or type(api).__name__ != "BaseApiClient":
            return None
        twin = copy.copy(api)
        clients = _handover_clients()
        twin._http_options = api._http_options.model_copy(update=clients)
        twin._httpx_client = clients["httpx_client"]
        twin._async_httpx_client = clients["httpx_async_client"]
        # Not the caller's own: the copy would close them when it is collected.
        twin._aiohttp_sessions, twin._authorized_session = {}, None
        models = AsyncModels(twin) if asynchronous else Models(twin)
        return SimpleNamespace(models=models, aio=SimpleNamespace(models=models)), inner
    except (AttributeError, TypeError):
        return None


def _client_timeout(request: httpx2.Request) -> httpx2.Timeout:
    """The timeout that is set on the SDK's client, or our own: the SDK's is none at all."""
    return _limits(request.extensions.get("timeout", {}).get("read") or DEFAULT_TIMEOUT)


def _limits(seconds: float) -> httpx2.Timeout:
    return httpx2.Timeout(seconds, connect=min(CONNECT_TIMEOUT, seconds))


def _readable(answer: Any, content: bytes) -> httpx2.Response:
    """*answer*, decoded and whole, in a form that the SDK can read."""
    headers = [
        one
        for one in answer.headers.multi_items()
        if one[0] not in ("content-encoding", "content-length", "transfer-encoding")
    ]
    text = content.decode("utf-8", "replace")
    return httpx2.Response(answer.status_code, headers=headers, content=text.encode())


def _default_key(options: dict[str, Any], settings: dict[str, Any]) -> str | None:
    """The key where none was given.

    Raises:
        ConfigError: nothing says who pays.
    """
    if any(options.get(name) for name in ("vertexai", "enterprise", "credentials", "project")):
        return None
    if any(os.environ.get(name, "").lower() in ("1", "true") for name in _VERTEX):
        return None
    key = next((os.environ[name] for name in KEYS if os.environ.get(name)), None)
    if key is not None:
        return key
    if settings.get("base_url") or os.environ.get("GOOGLE_GEMINI_BASE_URL"):
        return _NO_KEY
    raise ConfigError("GEMINI_API_KEY is not set: set it (or GOOGLE_API_KEY), or pass api_key=")
