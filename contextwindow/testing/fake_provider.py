"""A server on this machine that answers as a provider does, with faults on demand.

``python -m contextwindow.testing.fake_provider`` runs it as a process of its own.
"""

from __future__ import annotations

import argparse
import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, get_args

from contextwindow.testing.fake_http import LoopbackServer
from contextwindow.testing.fake_reply import DEFAULT_TEXT, FakeFault, FakeReply
from contextwindow.testing.wire import Answer, FakeRequest, json_answer
from contextwindow.testing.wire_anthropic import AnthropicWire
from contextwindow.testing.wire_gemini import GeminiWire
from contextwindow.testing.wire_openai import OpenAIWire


class FakeProvider:
    """A provider on the loopback interface that speaks the four APIs, each under its own paths.

    Of Anthropic's and Gemini's it also refuses what these refuse: a signature that it has not
    given out, a tool call without its result, roles out of order.

    It runs in a thread of its own from ``start`` to ``close``, which a ``with`` block calls.
    Every queued reply answers one request, in order; then ``default`` answers.

    Args:
        default: the reply to requests for which none is queued.
        port: 0 for any that is free.

    Attributes:
        default: may be set at any time.
        counting: a reply with a status, or with a fault from before the answer, to answer requests
            for a count of tokens with; None counts.  No queued reply answers these.
        requests: what was asked so far, in order, keys masked.
    """

    def __init__(self, default: FakeReply | str = DEFAULT_TEXT, *, port: int = 0) -> None:
        self.default: FakeReply | str = default
        self.counting: FakeReply | None = None
        self.requests: list[FakeRequest] = []
        self._port = port
        self._queue: deque[FakeReply] = deque()
        self._replies = 0
        self._openai = OpenAIWire(self)
        self._wires = (AnthropicWire(self), GeminiWire(self), self._openai)
        self._server: LoopbackServer | None = None

    def start(self) -> FakeProvider:
        """Begin to listen.

        Raises:
            OSError: the port is taken.
        """
        if self._server is None:
            self._server = LoopbackServer(self._respond, self._port)
        return self

    def close(self) -> None:
        """Drop all connections and stop; may be called twice."""
        server, self._server = self._server, None
        if server is not None:
            server.close()

    def __enter__(self) -> FakeProvider:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def url(self) -> str:
        """Where it listens.

        Raises:
            RuntimeError: it does not.
        """
        if self._server is None:
            raise RuntimeError("the fake provider is not running: use it in a with block")
        return f"http://127.0.0.1:{self._server.port}"

    @property
    def openai_url(self) -> str:
        """``base_url`` for an OpenAI client or model."""
        return f"{self.url}/v1"

    @property
    def anthropic_url(self) -> str:
        """``base_url`` for an Anthropic client or model."""
        return self.url

    @property
    def gemini_url(self) -> str:
        """``base_url`` for a Gemini client or model."""
        return self.url

    def reply(self, reply: FakeReply | str, **options: Any) -> None:
        """Queue the reply to one request; *options* are further fields of ``FakeReply``."""
        given = FakeReply(reply) if isinstance(reply, str) else reply
        self._queue.append(replace(given, **options))

    def forget(self, response_id: str) -> None:
        """Remember a response no longer: neither to resume it nor to go on from it."""
        self._openai.forget(response_id)

    def next_reply(self) -> tuple[int, FakeReply]:
        """The reply for a request, and its number; for the wire formats."""
        self._replies += 1
        if self._queue:
            return self._replies, self._queue.popleft()
        default = self.default
        return self._replies, default if isinstance(default, FakeReply) else FakeReply(default)

    def _respond(self, request: FakeRequest) -> Answer:
        self.requests.append(request)
        for wire in self._wires:
            answer = wire.answer(request)
            if answer is not None:
                return answer
        return json_answer({"error": {"message": f"nothing at {request.path}"}}, status=404)


def main(arguments: Sequence[str] | None = None) -> None:
    """Serve until killed; prints ``PORT n`` first."""
    parser = argparse.ArgumentParser(
        prog="python -m contextwindow.testing.fake_provider", description=__doc__
    )
    parser.add_argument("--port", type=int, default=0, help="0: any that is free")
    parser.add_argument("--text", default=DEFAULT_TEXT, help="what every reply says")
    parser.add_argument("--pace", type=float, default=0.0, help="seconds between words")
    parser.add_argument("--fault", choices=get_args(FakeFault), help="what goes wrong")
    parser.add_argument("--at", type=int, help="at which word")
    parser.add_argument("--times", type=int, default=1, help="how often; 0: always")
    parser.add_argument("--echo", type=int, default=0, help="letters said again after a resume")
    given = parser.parse_args(arguments)
    usual = FakeReply(given.text, pace=given.pace, continues=True, echo=given.echo)
    broken = replace(usual, fault=given.fault, at=given.at)
    provider = FakeProvider(usual if given.times else broken, port=given.port)
    for _ in range(given.times if given.fault is not None else 0):
        provider.reply(broken)
    with provider:
        print(f"PORT {provider.url.rpartition(':')[2]}", flush=True)  # noqa: T201 - its one output
        try:
            threading.Event().wait()
        except KeyboardInterrupt:
            return


if __name__ == "__main__":
    main()
