"""Events that have arrived together are read together, and none waits for what has not."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from contextwindow import ModelTimeout, OpenAIChatModel, OpenAIResponsesModel
from contextwindow.models.base import CallOptions
from contextwindow.testing import FakeProvider, FakeReply

WORDS = [f"w{number} " for number in range(1_000)]


@pytest.mark.parametrize("kind", [OpenAIChatModel, OpenAIResponsesModel])
def test_a_burst_is_read_in_few_pieces_and_whole(kind: Any) -> None:
    with FakeProvider() as provider:
        provider.reply(FakeReply(chunks=WORDS))
        model = kind("m", base_url=provider.openai_url, api_key="k")
        request = model.request([], CallOptions())
        decoder = model.decoder(request)
        source = model.open(request, timeout=5)
        reads, text = 0, ""
        while (events := source.read()) is not None:
            reads += 1
            for event in events:
                text += "".join(i.text for i in decoder.feed(event) if hasattr(i, "text"))
        source.close()
        model.close()

    assert text == "".join(WORDS)
    assert reads < len(WORDS) / 5


def test_a_burst_is_read_whole_on_an_event_loop() -> None:
    async def main(url: str) -> tuple[int, str]:
        model = OpenAIChatModel("m", base_url=url, api_key="k")
        request = model.request([], CallOptions())
        decoder = model.decoder(request)
        source = await model.open_async(request, timeout=5)
        reads, text = 0, ""
        while (events := await source.read()) is not None:
            reads += 1
            for event in events:
                text += "".join(i.text for i in decoder.feed(event) if hasattr(i, "text"))
        await source.close()
        await model.aclose()
        return reads, text

    with FakeProvider() as provider:
        provider.reply(FakeReply(chunks=WORDS))
        reads, text = asyncio.run(main(provider.openai_url))
    assert text == "".join(WORDS)
    assert reads < len(WORDS) / 5


@contextmanager
def server_that_stops(body: bytes) -> Iterator[str]:
    """Sends a chunked answer whose bytes end with *body*, and then nothing more."""
    listening = socket.create_server(("127.0.0.1", 0))
    done = threading.Event()

    def serve() -> None:
        connection, _ = listening.accept()
        with connection:
            connection.recv(65_536)
            connection.sendall(
                b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n"
                b"transfer-encoding: chunked\r\n\r\n" + body
            )
            done.wait(10)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}/v1"
    finally:
        done.set()
        thread.join()
        listening.close()


@pytest.mark.parametrize("cut", range(0, 60, 3))
def test_a_whole_event_does_not_wait_for_the_rest_of_the_next(cut: int) -> None:
    event = b'data: {"choices":[{"index":0,"delta":{"content":"word"}}]}\n\n'
    piece = b"%x\r\n%s\r\n" % (len(event), event)
    with server_that_stops(piece * 3 + piece[:cut]) as url:
        model = OpenAIChatModel("m", base_url=url, api_key="k")
        source = model.open(model.request([], CallOptions()), timeout=0.3)
        found = 0
        with pytest.raises(ModelTimeout):
            while (events := source.read()) is not None:
                found += len(events)
        source.close()
        model.close()
    assert found == 3
