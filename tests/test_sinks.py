"""Sinks: what they are given, and how they hold a sender back."""

from __future__ import annotations

import asyncio
import io
import json
import threading
from typing import Any

import pytest

from contextwindow import (
    AsyncQueueSink,
    AsyncSink,
    CallbackSink,
    ConfigError,
    ContextWindow,
    Done,
    Profile,
    QueueSink,
    ReasoningDelta,
    Reply,
    Resumed,
    Retrying,
    Sink,
    SSESink,
    StreamChunk,
    StreamFailed,
    StreamStart,
    TextDelta,
    ToolCallDelta,
    ToolEnd,
    ToolError,
    ToolOutputDelta,
    ToolStart,
    UsageReport,
    WebSocketSink,
    pump,
    pump_async,
)
from contextwindow.chunks import place
from contextwindow.sinks import PROFILES
from contextwindow.testing import ScriptedModel

CHUNKS: list[StreamChunk] = [
    StreamStart("t1"),
    ReasoningDelta("hm"),
    TextDelta("Hello"),
    ToolCallDelta("c1", "look", '{"a'),
    ToolStart("c1", "look", {"a": "secret"}),
    ToolOutputDelta("c1", "half"),
    ToolEnd("c1", "look", "secret too", error=ToolError("no")),
    UsageReport(),
    Retrying(1, 0.5, error=ToolError("again")),
    Resumed("continue"),
    Done(Reply(text="Hello")),
]


@pytest.mark.parametrize(
    ("profile", "left_out"),
    [
        ("default", set()),
        (
            "user_chat",
            {
                "reasoning_delta",
                "tool_call_delta",
                "tool_output_delta",
                "usage_report",
                "retrying",
            },
        ),
        ("agent_debug", {"usage_report"}),
        (
            "metrics",
            {
                "reasoning_delta",
                "text_delta",
                "tool_call_delta",
                "tool_start",
                "tool_output_delta",
            },
        ),
    ],
)
def test_a_profile_says_which_kinds_a_sink_is_given(profile: str, left_out: set[str]) -> None:
    seen: list[str] = []
    pump(CHUNKS, CallbackSink(lambda chunk: seen.append(chunk.type), profile=profile))

    assert seen == [one.type for one in CHUNKS if one.type not in left_out]


def test_every_kind_of_chunk_is_in_some_profile_but_default() -> None:
    named = set().union(*(kinds for kinds in PROFILES.values() if kinds is not None))
    kinds = {kind.type for kind in StreamChunk.__subclasses__()}

    assert named == kinds
    assert all(
        {"stream_start", "done", "stream_failed"} <= kinds
        for kinds in PROFILES.values()
        if kinds is not None
    )


def test_an_unknown_profile_is_refused() -> None:
    for make in (CallbackSink, SSESink, WebSocketSink):
        with pytest.raises(ConfigError, match="user_chat"):
            make(print, profile="nobody")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="agent_debug"):
        Profile("")


def test_what_is_no_function_or_no_size_is_refused() -> None:
    with pytest.raises(ConfigError, match="callback"):
        CallbackSink("print")  # type: ignore[arg-type]
    for size in (0, -1, True, "3", 1.5):
        for make in (QueueSink, AsyncQueueSink):
            with pytest.raises(ConfigError, match="size"):
                make(size)  # type: ignore[arg-type]


def test_a_user_is_shown_no_arguments_and_no_outputs() -> None:
    out = io.StringIO()
    pump(CHUNKS, SSESink(out.write))

    assert "secret" not in out.getvalue()
    assert "hm" not in out.getvalue()
    assert '"name":"look"' in out.getvalue()


def test_an_event_has_its_type_its_id_and_one_line_of_json() -> None:
    out = io.StringIO()
    sink = SSESink(out.write, profile="default")
    sink.send(place(TextDelta("one\n\ntwo </script>\r\x85\u2028"), 7, 16))
    sink.send(StreamFailed(ToolError("no\nway")))

    first, second, rest = out.getvalue().split("\n\n")
    assert rest == ""
    assert first.splitlines()[:2] == ["event: text_delta", "id: 7:16"]
    data = first.splitlines()[2]
    assert "<" not in data
    assert json.loads(data.removeprefix("data: "))["delta"] == "one\n\ntwo </script>\r\x85\u2028"
    assert second.startswith("event: stream_failed\ndata: ")


def test_nothing_is_sent_to_a_closed_sink() -> None:
    seen: list[Any] = []
    sinks: list[Any] = [CallbackSink(seen.append), SSESink(seen.append), QueueSink(1)]
    for sink in sinks:
        sink.close()
        sink.close()
        sink.send(TextDelta("late"))
        sink.send(TextDelta("later"))

    assert seen == []
    assert list(sinks[2]) == []


def test_a_full_queue_holds_the_sender_back() -> None:
    sink = QueueSink()
    sent: list[int] = []

    def send() -> None:
        for number in range(25):
            sink.send(TextDelta(str(number)))
            sent.append(number)
        sink.close()

    sender = threading.Thread(target=send)
    sender.start()
    chunks = iter(sink)
    got = [next(chunks)]
    while len(sent) < 11:
        assert sender.is_alive()
    sender.join(0.02)
    assert len(sent) == 11
    got += list(chunks)
    sender.join()

    assert [one.delta for one in got] == [str(number) for number in range(25)]


def test_a_sender_does_not_wait_for_room_longer_than_it_was_told() -> None:
    sink = QueueSink(1, timeout=0.01)
    sink.send(TextDelta("a"))

    with pytest.raises(TimeoutError, match="nobody took"):
        sink.send(TextDelta("b"))


def test_closing_lets_a_waiting_sender_go() -> None:
    sink = QueueSink(1)
    sink.send(TextDelta("a"))
    sender = threading.Thread(target=sink.send, args=(TextDelta("b"),))
    sender.start()
    sink.close()
    sender.join(5.0)

    assert not sender.is_alive()
    assert [one.delta for one in sink] == ["a"]


def test_a_full_queue_holds_a_task_back() -> None:
    async def main() -> list[str]:
        sink = AsyncQueueSink(2)
        sent: list[int] = []

        async def send() -> None:
            for number in range(6):
                await sink.send(TextDelta(str(number)))
                sent.append(number)
            await sink.close()

        sender = asyncio.ensure_future(send())
        for _ in range(10):
            await asyncio.sleep(0)
        assert sent == [0, 1]
        got = [chunk.delta async for chunk in sink]
        await sender
        await sink.send(TextDelta("late"))
        return got

    assert asyncio.run(main()) == ["0", "1", "2", "3", "4", "5"]


def test_a_cancelled_sender_leaves_the_queue_usable() -> None:
    async def main() -> None:
        sink = AsyncQueueSink(1)
        await sink.send(TextDelta("a"))
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await sink.send(TextDelta("b"))
        chunks = aiter(sink)
        assert (await anext(chunks)).delta == "a"
        await sink.send(TextDelta("c"))
        await sink.close()
        assert [chunk.delta async for chunk in chunks] == ["c"]

    asyncio.run(main())


def test_a_websocket_is_sent_json() -> None:
    sent: list[str] = []

    async def send_text(text: str) -> None:
        await asyncio.sleep(0)
        sent.append(text)

    async def chunks() -> Any:
        for chunk in CHUNKS:
            yield chunk

    sink = WebSocketSink(send_text, profile="metrics")
    asyncio.run(pump_async(chunks(), sink))
    asyncio.run(sink.send(CHUNKS[0]))

    assert [json.loads(one)["type"] for one in sent] == [
        "stream_start",
        "tool_end",
        "usage_report",
        "retrying",
        "resumed",
        "done",
    ]


def test_whatever_ends_the_chunks_all_sinks_are_closed() -> None:
    closed: list[str] = []

    class Mine:
        def __init__(self, name: str) -> None:
            self.name = name

        def send(self, chunk: StreamChunk) -> None:
            if self.name == "b":
                raise LookupError("mine")

        def close(self) -> None:
            closed.append(self.name)
            if self.name == "a":
                raise ValueError("closing")

    assert isinstance(Mine("a"), Sink)
    assert isinstance(WebSocketSink(_never), AsyncSink)
    with pytest.raises(ValueError, match="closing") as caught:
        pump(CHUNKS, Mine("a"), Mine("b"), Mine("c"))

    assert isinstance(caught.value.__context__, LookupError)
    assert sorted(closed) == ["a", "b", "c"]


async def _never(text: str) -> None:
    raise AssertionError(text)


def test_a_stream_and_its_followers_feed_the_same_sinks() -> None:
    with ContextWindow(model=ScriptedModel(["a short reply"])) as window:
        window.add_prompt("go")
        shown: list[str] = []
        pump(window.call_model_streaming(), CallbackSink(lambda chunk: shown.append(chunk.delta)))
        followed: list[str] = []
        pump(window.follow(""), CallbackSink(lambda chunk: followed.append(chunk.delta)))

    assert "".join(shown) == "".join(followed) == "a short reply"
