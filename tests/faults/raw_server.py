"""A server of raw sockets that breaks off in every way, with TLS or without, for all four APIs."""

from __future__ import annotations

import socket
import ssl
import struct
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx2

from contextwindow.testing import FakeProvider, FakeReply

PATHS = {
    "openai-chat": "/v1/chat/completions",
    "openai-responses": "/v1/responses",
    "anthropic": "/v1/messages",
    "gemini": "/v1beta/models/m:streamGenerateContent?alt=sse",
}
STREAM = "text/event-stream; charset=utf-8"


class RawServer:
    """Answers every request by handing its connection to *answer*.

    Args:
        answer: writes to the socket what it likes; the connection is closed behind it.
        tls: certificate and key, for TLS.

    Attributes:
        requests: how many there were.
        over: set when the server is closed: what an answer that stalls waits for.
    """

    def __init__(
        self, answer: Callable[[socket.socket], None], tls: tuple[Path, Path] | None = None
    ) -> None:
        self.requests = 0
        self.over = threading.Event()
        self._answer = answer
        self._scheme = "http" if tls is None else "https"
        self._context = None
        if tls is not None:
            self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            self._context.load_cert_chain(*tls)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"{self._scheme}://127.0.0.1:{self._listener.getsockname()[1]}"

    # The names that `four_apis.model` knows a provider's addresses by.
    @property
    def openai_url(self) -> str:
        return f"{self.url}/v1"

    anthropic_url = gemini_url = url

    def close(self) -> None:
        """Stop, and end all answers."""
        self.over.set()
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for thread in self._threads:
            thread.join()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            thread = threading.Thread(target=self._serve, args=(connection,))
            self._threads.append(thread)
            thread.start()

    def _serve(self, connection: socket.socket) -> None:
        with connection, suppress(OSError):
            connection.settimeout(30)
            if self._context is not None:
                connection = self._context.wrap_socket(connection, server_side=True)
            with connection:
                read_request(connection)
                self.requests += 1
                self._answer(connection)


@contextmanager
def serving(
    answer: Callable[[socket.socket], None], tls: tuple[Path, Path] | None = None
) -> Iterator[Any]:
    """A ``RawServer``, closed at the end."""
    server = RawServer(answer, tls)
    try:
        yield server
    finally:
        server.close()


def read_request(connection: socket.socket) -> None:
    """Take a request off *connection*."""
    with connection.makefile("rb") as stream:
        size = 0
        while (line := stream.readline()).strip():
            name, _, value = line.partition(b":")
            if name.lower() == b"content-length":
                size = int(value)
        stream.read(size)


def head(content_type: str = STREAM, *, status: int = 200, **headers: str) -> bytes:
    """The head of an answer whose body the end of the connection frames, unless *headers* say."""
    fields = {"content-type": content_type, "connection": "close"}
    fields |= {name.replace("_", "-"): value for name, value in headers.items()}
    lines = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    return f"HTTP/1.1 {status} X\r\n{lines}\r\n".encode()


def plain(body: bytes, content_type: str = STREAM) -> Callable[[socket.socket], None]:
    """Answers with *body*, in one write, and a clean end."""

    def answer(connection: socket.socket) -> None:
        connection.sendall(head(content_type) + body)

    return answer


def reset(connection: socket.socket) -> None:
    """End *connection* with a TCP reset, whatever TLS would say."""
    raw = socket.socket(fileno=connection.detach())
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    raw.close()


def events(api: str, reply: FakeReply) -> list[bytes]:
    """The events of *reply* as *api* sends them, each with its blank line."""
    asked: dict[str, Any] = {"model": "m", "stream": True, "max_tokens": 100}
    if api == "gemini":
        asked = {"contents": [{"role": "user", "parts": [{"text": "count"}]}]}
    elif api == "openai-responses":
        asked["input"] = "count"
    else:
        asked["messages"] = [{"role": "user", "content": "count"}]
    if api == "openai-chat":
        asked["stream_options"] = {"include_usage": True}
    with FakeProvider(reply) as provider:
        headers = {"anthropic-version": "2023-06-01", "x-api-key": "k", "x-goog-api-key": "k"}
        answer = httpx2.post(f"{provider.url}{PATHS[api]}", json=asked, headers=headers)
    assert answer.status_code == 200, answer.text
    end = b"\r\n\r\n" if b"\r\n\r\n" in answer.content else b"\n\n"
    return [event + end for event in answer.content.split(end)[:-1]]


def certificate(folder: Path) -> tuple[Path, Path]:
    """A certificate for 127.0.0.1 that signs itself, and its key."""
    paths = folder / "certificate.pem", folder / "key.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"]
    command += ["-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"]
    command += ["-out", str(paths[0]), "-keyout", str(paths[1])]
    subprocess.run(command, check=True, capture_output=True)
    return paths
