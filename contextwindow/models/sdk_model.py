"""Models whose SDK lends its client: it knows keys, proxies and clouds, and the bytes are ours.

OpenAI's and Anthropic's SDKs are of one make.  ``with_streaming_response`` gives the open answer
without reading it.  Their retries are switched off: the turn retries, so that it can say so
(``Retrying``).
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import json
import logging
import threading
import warnings
import weakref
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import Any, Final
from urllib.parse import urlsplit, urlunsplit

from contextwindow.errors import ConfigError, InvalidRequest, ModelError
from contextwindow.models.base import CallOptions, Model, Request
from contextwindow.models.counts import tokens
from contextwindow.models.secrets import (
    redacted,
    secrets_in,
    shows_secrets,
    without_our_frames,
)
from contextwindow.models.sources import AsyncSource, Source
from contextwindow.records import Record

CONNECT_TIMEOUT: Final = 5.0
"""Seconds, as in the SDKs; FACTS: a client of httpx2's own would not have it."""


_log = logging.getLogger("contextwindow")

# Where the SDKs' clients keep what they were given, or have got from a function.
_KEYS: Final = ("api_key", "auth_token", "_azure_ad_token")


class SdkModel(Model):
    """A model that is called through its provider's SDK; adapters derive from it.

    They set ``_clients`` before they are used.
    """

    _clients: SdkClients

    def open(self, request: Request, *, timeout: float | None) -> Source:
        """Send *request* and return once the answer's headers have come."""
        client = self._clients.blocking()
        try:
            try:
                manager = self._call(client, request, timeout)
                response = manager.__enter__()
            except Warning as warning:
                with _noted(warning):
                    manager = self._call(client, request, timeout)
                    response = manager.__enter__()
        except Exception as error:  # noqa: BLE001 - each transport has exceptions of its own
            failure = self.failed(error, reading=False, timeout=timeout)
        else:
            return Source(self, manager, response.http_response, timeout)
        raise failure

    async def open_async(self, request: Request, *, timeout: float | None) -> AsyncSource:
        """As ``open``, on the running event loop."""
        client = self._clients.asynchronous()
        try:
            try:
                manager = self._call(client, request, timeout)
                response = await manager.__aenter__()
            except Warning as warning:
                with _noted(warning):
                    manager = self._call(client, request, timeout)
                    response = await manager.__aenter__()
        except Exception as error:  # noqa: BLE001 - each transport has exceptions of its own
            failure = self.failed(error, reading=False, timeout=timeout)
        else:
            return AsyncSource(self, manager, response.http_response, timeout)
        raise failure

    def count_tokens(
        self, records: Sequence[Record], options: CallOptions, *, timeout: float | None = None
    ) -> int | None:
        """The input tokens that a call would take, as the provider counts them; it asks once."""
        client = self._clients.blocking()
        asked = self._counting(client, self.request(records, options))
        if asked is None:
            return None
        try:
            try:
                answer = self._invoke(*asked, timeout)
            except Warning as warning:
                with _noted(warning):
                    answer = self._invoke(*asked, timeout)
        except json.JSONDecodeError as error:
            failure: ModelError = self._no_count()
            failure.__cause__ = self._clients.quotable(error)
        except Exception as error:  # noqa: BLE001 - each transport has exceptions of its own
            failure = self.failed(error, reading=False, timeout=timeout)
        else:
            return self._counted(answer)
        raise failure

    async def count_tokens_async(
        self, records: Sequence[Record], options: CallOptions, *, timeout: float | None = None
    ) -> int | None:
        """As ``count_tokens``, on the running event loop."""
        client = self._clients.asynchronous()
        asked = self._counting(client, self.request(records, options))
        if asked is None:
            return None
        try:
            try:
                answer = await self._invoke(*asked, timeout)
            except Warning as warning:
                with _noted(warning):
                    answer = await self._invoke(*asked, timeout)
        except json.JSONDecodeError as error:
            failure: ModelError = self._no_count()
            failure.__cause__ = self._clients.quotable(error)
        except Exception as error:  # noqa: BLE001 - each transport has exceptions of its own
            failure = self.failed(error, reading=False, timeout=timeout)
        else:
            return self._counted(answer)
        raise failure

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
        return self.without_secrets(self._translated(error, reading=reading, timeout=timeout))

    def failed(
        self, error: Exception, *, reading: bool, timeout: float | None = None
    ) -> ModelError:
        """As ``error``, with *error* as its cause where that shows no secret.

        To be raised outside of the ``except``, or *error* would be its context all the same.
        """
        found = self.error(error, reading=reading, timeout=timeout)
        if found is not error:
            found.__cause__ = self._clients.quotable(error)
        return found

    def without_secrets(self, error: ModelError) -> ModelError:
        """*error* with nothing in it that a log must not show; its traceback begins anew."""
        secrets = self._clients.secrets()
        error.args = (redacted(str(error), secrets),)
        if error.code is not None:
            error.code = redacted(error.code, secrets)
        error.__cause__ = self._clients.quotable(error.__cause__)
        error.__context__ = None
        # The locals of a decoder's frames are the provider's own words.
        return error.with_traceback(None)

    @abstractmethod
    def _method(self, client: Any, request: Request) -> tuple[Callable[..., Any], dict[str, Any]]:
        """The SDK's ``with_streaming_response`` method for *request*, and its arguments."""

    def _counting(
        self, client: Any, request: Request
    ) -> tuple[Callable[..., Any], dict[str, Any]] | None:
        """The SDK's method that counts *request*, and its arguments; None where there is none."""
        return None

    def _counted(self, answer: Any) -> int:
        """What the method of ``_counting`` has answered.

        Raises:
            InvalidRequest: it is no count.
        """
        count = tokens(getattr(answer, "input_tokens", answer))
        if not count:
            raise self._no_count()
        return count

    def _no_count(self) -> InvalidRequest:
        return InvalidRequest(
            f"{self.name}: the server answered with no count of tokens; check that base_url "
            "points at an API that counts them",
            provider=self.provider,
            status=200,
        )

    @abstractmethod
    def _translated(self, error: Exception, *, reading: bool, timeout: float | None) -> ModelError:
        """What the SDK or the network raised, in our terms; keys are taken out afterwards."""

    def _call(self, client: Any, request: Request, timeout: float | None) -> Any:
        return self._invoke(*self._method(client, request), timeout)

    def _invoke(
        self, method: Callable[..., Any], arguments: dict[str, Any], timeout: float | None
    ) -> Any:
        arguments = split_extra(method, arguments)
        self._clients.note(arguments.get("extra_headers"))
        if timeout is not None:
            import httpx2

            arguments["timeout"] = httpx2.Timeout(timeout, connect=min(CONNECT_TIMEOUT, timeout))
        return method(**arguments)


class SdkClients(ABC):
    """The SDK's clients of one model: made when first needed, one for each way of waiting.

    Args:
        given: the caller's own client, or None; it is used for its way of waiting.
        is_async: whether *given* waits on an event loop.
        secrets: what no message may hold, as far as it is known beforehand.

    Attributes:
        host: the server, for messages.
        max_retries: as the caller has set it on the client, or the SDK's default.
    """

    def __init__(
        self,
        given: Any,
        *,
        is_async: bool,
        host: str,
        secrets: frozenset[str],
        max_retries: int,
    ) -> None:
        self.host = host
        self._secrets = secrets
        # Bounded: each user of a bot may have a key of his own.
        self._of_calls: deque[frozenset[str]] = deque(maxlen=1_000)
        self.max_retries = max_retries
        self._given = given
        self._is_async = is_async
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
                    client = self._make(asynchronous=False)
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
                client = self._make(asynchronous=True)
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

    def secrets(self) -> frozenset[str]:
        """What no message may hold; keys that a function gives are known once they were used."""
        clients = [self._given, self._blocking]
        with contextlib.suppress(RuntimeError):  # no event loop runs
            clients.append(self._by_loop.get(asyncio.get_running_loop()))
        keys = [getattr(client, name, None) for client in clients for name in _KEYS]
        return self._secrets.union(secrets_in(*keys), *self._of_calls)

    def note(self, headers: Any) -> None:
        """Remember the secrets in *headers*, which a caller has given for one call."""
        found = secrets_in(headers=headers)
        if found and found not in self._of_calls:
            self._of_calls.append(found)

    def quotable(self, error: BaseException | None) -> Exception | None:
        """*error* as the cause of ours, or None where a report of it would show a secret."""
        if not isinstance(error, Exception) or shows_secrets(error, self.secrets()):
            return None
        return without_our_frames(error)

    @abstractmethod
    def _make(self, *, asynchronous: bool) -> Any:
        """A new client: from the options, or a twin of the given one that waits the other way.

        Raises:
            ConfigError: it cannot be made.
        """


@contextlib.contextmanager
def _noted(warning: Warning) -> Iterator[None]:
    """Log *warning*, which the SDK gave before anything was sent, and let it say no more.

    Where warnings are errors it would end the call: that a model is to be retired some day is
    no reason for a bot to fall silent.
    """
    _log.warning("%s", warning)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def refuse_options(client: Any, options: dict[str, Any]) -> None:
    """Refuse *options* for a client where a ready one was given, too.

    Raises:
        ConfigError: both were given.
    """
    if client is not None and options:
        raise ConfigError(
            "a client was given together with options for one; "
            f"set {', '.join(options)} on the client itself"
        )


def plain_url(url: str) -> str:
    """*url* with nothing in it that may be a secret: no user, query or fragment."""
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def host_of(address: str) -> str:
    """The host that *address* names.

    Raises:
        ConfigError: it is no address; it is not quoted, for it may hold a password.
    """
    import httpx2

    try:
        host = urlsplit(address).hostname or ""
        httpx2.URL(address)
    except (ValueError, httpx2.InvalidURL):
        host = None
    if host is None:
        raise ConfigError("base_url is not the address of a server, such as https://HOST/PATH")
    return host


def split_extra(method: Callable[..., Any], body: dict[str, Any]) -> dict[str, Any]:
    """*body* with what *method* has no argument for moved to ``extra_body``."""
    known = _parameters(getattr(method, "__func__", method))
    unknown = body.keys() - known
    if not unknown:
        return dict(body)
    arguments = {name: value for name, value in body.items() if name in known}
    extra = {name: value for name, value in body.items() if name in unknown}
    arguments["extra_body"] = {**extra, **(body.get("extra_body") or {})}
    return arguments


def taken_by(
    method: Callable[..., Any], body: dict[str, Any], also: frozenset[str] = frozenset()
) -> dict[str, Any]:
    """Of *body* what *method* has an argument for, and what *also* names."""
    known = _parameters(getattr(method, "__func__", method)) | also
    return {name: value for name, value in body.items() if name in known}


@lru_cache(maxsize=32)
def _parameters(function: Callable[..., Any]) -> frozenset[str]:
    return frozenset(inspect.signature(function).parameters)
