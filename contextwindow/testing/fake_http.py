"""The HTTP server of the fake provider: its own thread, loopback only, standard library only."""

from __future__ import annotations

import asyncio
import json
import socket
import struct
import threading
from collections.abc import Callable
from contextlib import suppress
from http import HTTPStatus
from typing import Any, Final
from urllib.parse import parse_qsl, unquote, urlsplit

from contextwindow.testing.wire import Answer, FakeRequest, json_answer

_HEAD_LIMIT: Final = 1 << 20
_WRITE_BYTES: Final = 1 << 16
_PATIENCE: Final = 500
"""Looks, 2 ms apart, at a client that reads nothing, before it is reset all the same."""

_SECRET: Final = frozenset({"authorization", "api-key", "x-api-key", "x-goog-api-key", "cookie"})

Respond = Callable[[FakeRequest], Answer]


class LoopbackServer:
    """Answers requests on 127.0.0.1 until it is closed.

    Args:
        respond: gives the answer to each request; called in the server's thread.
        port: 0 for any that is free.

    Attributes:
        port: where it listens.

    Raises:
        OSError: the port is taken.
    """

    def __init__(self, respond: Respond, port: int = 0) -> None:
        self._respond = respond
        self._requests = 0
        self._connections: set[asyncio.Task[None]] = set()
        self._socket = socket.create_server(("127.0.0.1", port))
        self._loop = asyncio.new_event_loop()
        self._stop = asyncio.Event()
        self.port: int = self._socket.getsockname()[1]
        self._thread = threading.Thread(target=self._run, name="fake-provider", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Drop all connections and end the thread; may be called twice."""
        with suppress(RuntimeError):  # the loop is closed already
            self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(self._serve())

    async def _serve(self) -> None:
        server = await asyncio.start_server(self._connection, sock=self._socket, limit=_HEAD_LIMIT)
        await self._stop.wait()
        server.close()
        for task in self._connections:
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)
        await server.wait_closed()

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - start_server makes one for each connection
        self._connections.add(task)
        # So that `drain` waits until the kernel has it all: a reset must not overtake data.
        writer.transport.set_write_buffer_limits(0)
        try:
            while True:
                request = await _read_request(reader, writer)
                if request is None or not await self._answer(request, reader, writer):
                    break
            writer.close()
            await writer.wait_closed()
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass  # the client went away, or the server is closed
        finally:
            writer.transport.abort()
            self._connections.discard(task)

    async def _answer(
        self, request: FakeRequest, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> bool:
        """Send the answer to *request*; whether the connection can take another one."""
        try:
            answer = self._respond(request)
        except Exception as error:  # noqa: BLE001 - a bug in a fake must not look like a network fault
            message = f"the fake provider failed: {error!r}"
            answer = json_answer({"error": {"message": message}}, status=500)
        self._requests += 1
        if not answer.silent:
            writer.write(_head(answer, self._requests))
            await _send_body(answer, writer)
        match answer.ending:
            case "reset":
                await _reset(writer)
            case "stall":
                while await reader.read(_WRITE_BYTES):
                    pass
            case "whole":
                if answer.length is None:
                    writer.write(b"0\r\n\r\n")
                await writer.drain()
                return request.headers.get("connection", "").lower() != "close"
        return False


async def _read_request(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> FakeRequest | None:
    """The next request of a connection; None where there is none, or none that makes sense."""
    try:
        head = await reader.readuntil(b"\r\n\r\n")
        lines = head.decode("latin-1").split("\r\n")
        method, target, _ = lines[0].split(" ", 2)
        pairs = (line.split(":", 1) for line in lines[1:] if line)
        headers = {name.strip().lower(): value.strip() for name, value in pairs}
        if headers.get("expect", "").lower() == "100-continue":
            writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        raw = await _read_body(reader, headers)
    except (ValueError, asyncio.LimitOverrunError):
        writer.write(b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n")
        return None
    url = urlsplit(target)
    body: Any = None
    with suppress(ValueError, RecursionError):
        body = json.loads(raw)
    masked = {name: _masked(name, value) for name, value in headers.items()}
    return FakeRequest(method, unquote(url.path), dict(parse_qsl(url.query)), masked, body)


async def _read_body(reader: asyncio.StreamReader, headers: dict[str, str]) -> bytes:
    if headers.get("transfer-encoding", "").lower() != "chunked":
        return await reader.readexactly(int(headers.get("content-length", "0")))
    pieces: list[bytes] = []
    while True:
        size = int((await reader.readline()).split(b";")[0], 16)
        pieces.append(await reader.readexactly(size))
        await reader.readexactly(2)
        if size == 0:
            return b"".join(pieces)


def _masked(name: str, value: str) -> str:
    if name not in _SECRET:
        return value
    scheme, space, _ = value.partition(" ")
    return f"{scheme} ***" if space else "***"


def _head(answer: Answer, number: int) -> bytes:
    try:
        phrase = HTTPStatus(answer.status).phrase
    except ValueError:
        phrase = "Unknown"
    lines = [
        f"HTTP/1.1 {answer.status} {phrase}",
        f"content-type: {answer.content_type}",
        f"x-request-id: req_{number}",
    ]
    lines += [f"{name}: {value}" for name, value in answer.headers.items()]
    if answer.length is not None:
        lines.append(f"content-length: {answer.length}")
    elif answer.ending == "close":
        lines.append("connection: close")
    else:
        lines.append("transfer-encoding: chunked")
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


async def _send_body(answer: Answer, writer: asyncio.StreamWriter) -> None:
    chunked = answer.length is None and answer.ending != "close"
    waiting = bytearray()
    paced = False
    for piece, is_chunk in answer.pieces:
        if answer.pace and is_chunk:
            if paced:
                await asyncio.sleep(answer.pace)
            paced = True
        waiting += b"%x\r\n%s\r\n" % (len(piece), piece) if chunked else piece
        if answer.pace or len(waiting) >= _WRITE_BYTES:
            writer.write(bytes(waiting))
            waiting.clear()
            await writer.drain()
    writer.write(bytes(waiting))
    await writer.drain()


async def _reset(writer: asyncio.StreamWriter) -> None:
    """End the connection with a TCP reset, once what was sent has arrived."""
    connection = writer.get_extra_info("socket")
    before, patience = 0, _PATIENCE
    while (left := _unacknowledged(connection)) and patience and not writer.is_closing():
        patience = _PATIENCE if left != before else patience - 1
        before = left
        await asyncio.sleep(0.002)
    linger = struct.pack("ii", 1, 0)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    writer.transport.abort()


def _unacknowledged(connection: socket.socket) -> int:
    """Bytes that the other side's kernel has not taken; 0 where the system does not say."""
    try:
        import fcntl
        import termios

        raw = fcntl.ioctl(connection.fileno(), termios.TIOCOUTQ, b"\0\0\0\0")
    except (ImportError, OSError):
        return 0
    return int(struct.unpack("i", raw)[0])
