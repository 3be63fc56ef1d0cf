"""A loopback server that answers as it is told, and breaks off as it is told."""

from __future__ import annotations

import json
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass
class Answer:
    """One answer; *end* says what happens behind the body's last byte.

    A silent one sends nothing at all: not even its head.
    """

    body: bytes = b""
    status: int = 200
    headers: dict[str, str] = field(default_factory=lambda: {"content-type": "text/event-stream"})
    end: Literal["whole", "reset", "cut", "stall"] = "whole"
    silent: bool = False


class Server:
    """Gives one answer after the other, the last one for ever."""

    def __init__(self, answers: list[Answer]) -> None:
        self.requests: list[dict[str, Any]] = []
        self._answers = answers
        self._over = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._listener.getsockname()[1]}/v1"

    def close(self) -> None:
        self._over.set()
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
            connection.settimeout(10)
            self._read_request(connection)
            answer = self._answers[min(len(self.requests), len(self._answers)) - 1]
            if not answer.silent:
                self._write(connection, answer)
            if answer.end == "reset":
                option = struct.pack("ii", 1, 0)
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, option)
            elif answer.end == "stall" or answer.silent:
                self._over.wait(10)

    def _read_request(self, connection: socket.socket) -> None:
        with connection.makefile("rb") as stream:
            line = stream.readline().decode()
            headers = {}
            while (header := stream.readline().strip()) != b"":
                name, _, value = header.decode().partition(":")
                headers[name.lower()] = value.strip()
            body = stream.read(int(headers.get("content-length", 0)))
        self.requests.append(
            {
                "target": line.split(" ")[1],
                "headers": headers,
                "body": json.loads(body) if body else None,
            }
        )

    def _write(self, connection: socket.socket, answer: Answer) -> None:
        head = f"HTTP/1.1 {answer.status} X\r\nconnection: close\r\n"
        head += "".join(f"{name}: {value}\r\n" for name, value in answer.headers.items())
        connection.sendall(head.encode() + b"transfer-encoding: chunked\r\n\r\n")
        if answer.body:
            connection.sendall(b"%x\r\n%b\r\n" % (len(answer.body), answer.body))
        if answer.end == "whole":
            connection.sendall(b"0\r\n\r\n")


@contextmanager
def serving(*answers: Answer) -> Iterator[Server]:
    """A server that gives *answers*, closed at the end."""
    server = Server(list(answers))
    try:
        yield server
    finally:
        server.close()
