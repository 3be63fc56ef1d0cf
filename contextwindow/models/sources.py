"""An open call of a provider, read one network read at a time, by blocking or on a loop."""

from __future__ import annotations

import contextlib
import socket
from typing import Any, Protocol

from contextwindow.errors import ModelError, StreamInterrupted
from contextwindow.models.arrived import Arrived
from contextwindow.models.sse import AnswerReader


class Reading(Protocol):
    """What a source asks of the model that it belongs to."""

    name: str

    @property
    def provider(self) -> str:
        """The company's service."""

    def failed(
        self, error: Exception, *, reading: bool, timeout: float | None = None
    ) -> ModelError:
        """What the SDK or the network raised, in our terms, to be raised outside of ``except``."""

    def without_secrets(self, error: ModelError) -> ModelError:
        """*error* with nothing in it that a log must not show."""


class _SourceCore:
    """What reading an answer takes, whichever way it waits."""

    def __init__(self, model: Reading, manager: Any, response: Any, timeout: float | None) -> None:
        self._model = model
        self._manager = manager
        self._http = response
        self._timeout = timeout
        content_type = response.headers.get("content-type", "")
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
        if self._late is None:
            return
        failure = self._failure(self._late)
        self._late = None
        raise failure

    def _take(self, chunk: bytes | None) -> list[Any]:
        if self._aborted:
            raise self._stopped()
        try:
            if chunk is not None:
                return self._answer.feed(chunk)
            self._ended = True
            return self._answer.end()
        except ModelError as error:
            failure = self._model.without_secrets(error)
        # What the provider sent, key and all, is not for the locals of a traceback.
        chunk = None
        raise failure

    def _failure(self, error: Exception) -> ModelError:
        self._ended = True
        if self._aborted:
            return self._stopped()
        return self._model.failed(error, reading=True, timeout=self._timeout)

    def _stopped(self) -> StreamInterrupted:
        return StreamInterrupted(
            f"{self._model.name}: the stream was stopped on this side",
            provider=self._model.provider,
        )


class Source(_SourceCore):
    """An open call, read by blocking.

    Args:
        manager: leaving it closes the connection.
        response: the ``httpx2.Response`` whose body is read.
        timeout: seconds without a byte that the call allows, for the message; None: the client's.
    """

    def __init__(self, model: Reading, manager: Any, response: Any, timeout: float | None) -> None:
        super().__init__(model, manager, response, timeout)
        # Without an encoding the raw bytes are the bytes, two layers cheaper.
        encoded = "content-encoding" in self._http.headers
        self._chunks = self._http.iter_bytes() if encoded else self._http.iter_raw()

    def read(self) -> list[Any] | None:
        """Parsed events of one network read; see ``EventSource.read``."""
        while not self._ended:
            events = self._take(self._fetch())
            if events:
                return events
        return None

    def _fetch(self) -> bytes | None:
        """All that has arrived, at least something; None at the end."""
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
            return b"".join((*pieces, chunk))
        return chunk

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
    """An open call, read on an event loop; its arguments are those of ``Source``."""

    def __init__(self, model: Reading, manager: Any, response: Any, timeout: float | None) -> None:
        super().__init__(model, manager, response, timeout)
        encoded = "content-encoding" in self._http.headers
        self._chunks = self._http.aiter_bytes() if encoded else self._http.aiter_raw()

    async def read(self) -> list[Any] | None:
        """Parsed events of one network read; see ``EventSource.read``."""
        while not self._ended:
            events = self._take(await self._fetch())
            if events:
                return events
        return None

    async def _fetch(self) -> bytes | None:
        """All that has arrived, at least something; None at the end."""
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
            return b"".join((*pieces, chunk))
        return chunk

    async def close(self) -> None:
        """Close the connection; may be called twice."""
        if not self._closed:
            self._closed = self._ended = True
            with contextlib.suppress(Exception):
                await self._chunks.aclose()
            with contextlib.suppress(Exception):
                await self._manager.__aexit__(None, None, None)
