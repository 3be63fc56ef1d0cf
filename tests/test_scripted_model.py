"""The scripted model, through its own `open` and decoder, read both ways."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import pytest

from contextwindow.errors import (
    AuthenticationFailed,
    ConfigError,
    InvalidRequest,
    ModelTimeout,
    Overloaded,
    RateLimited,
    StreamInterrupted,
)
from contextwindow.models.base import (
    AsyncEventSource,
    CallOptions,
    Decoder,
    Delta,
    EventSource,
    Item,
    PartEnd,
    Request,
)
from contextwindow.records import Record, RecordType, Usage
from contextwindow.testing import ScriptedModel, ScriptedReply

ONE_TO_FIVE = "one two three four five"


@dataclass
class Heard:
    """What one call brought."""

    decoder: Decoder
    reads: list[list[Any]] = field(default_factory=list)
    items: list[Item] = field(default_factory=list)
    error: Exception | None = None

    @property
    def deltas(self) -> list[str]:
        return [item.text for item in self.items if isinstance(item, Delta)]

    @property
    def text(self) -> str:
        return "".join(self.deltas)


Play = Callable[..., Heard]


def blocking(model: ScriptedModel, request: Request, timeout: float | None = None) -> Heard:
    heard = Heard(model.decoder(request))
    source = model.open(request, timeout=timeout)
    try:
        while (events := source.read()) is not None:
            take(heard, events)
        heard.items += heard.decoder.end()
    except Exception as error:
        heard.error = error
    source.close()
    return heard


def on_a_loop(model: ScriptedModel, request: Request, timeout: float | None = None) -> Heard:
    async def main() -> Heard:
        heard = Heard(model.decoder(request))
        source = await model.open_async(request, timeout=timeout)
        try:
            while (events := await source.read()) is not None:
                take(heard, events)
            heard.items += heard.decoder.end()
        except Exception as error:
            heard.error = error
        await source.close()
        return heard

    return asyncio.run(main())


def take(heard: Heard, events: list[Any]) -> None:
    assert events
    heard.reads.append(events)
    for event in events:
        heard.items += heard.decoder.feed(event)


def read_to_the_end(source: EventSource) -> None:
    while source.read():
        pass


async def endless(source: AsyncEventSource) -> AsyncIterator[list[Any] | None]:
    while True:
        yield await source.read()


@pytest.fixture(params=[blocking, on_a_loop])
def play(request: pytest.FixtureRequest) -> Play:
    """Plays one call to its end."""
    return request.param  # type: ignore[no-any-return]  # one of the two above


def prompt(text: str) -> Record:
    return Record(
        id=1,
        context_id="c",
        source=RecordType.PROMPT,
        content=text,
        timestamp=datetime(2026, 1, 1, tzinfo=UTC),
    )


def resuming(model: ScriptedModel, cut: Heard) -> Request:
    """The request that goes on where *cut* broke off."""
    assert cut.decoder.response_id is not None
    assert cut.decoder.cursor is not None
    request = model.resume_request(cut.decoder.response_id, cut.decoder.cursor)
    assert request is not None
    return request


def asked(model: ScriptedModel, text: str = "hi", **options: Any) -> Request:
    return model.request([prompt(text)], CallOptions(**options))


def test_entries_answer_calls_in_order_word_by_word(play: Play) -> None:
    model = ScriptedModel(["Hello there,  you.\n", ["He", "llo"]])

    first, second = play(model, asked(model)), play(model, asked(model))

    assert first.deltas == ["Hello", " there,", "  you.", "\n"]
    assert second.deltas == ["He", "llo"]
    assert first.decoder.finished
    assert first.decoder.finish_reason == "stop"
    assert (first.decoder.response_id, second.decoder.response_id) == (
        "resp_scripted_1",
        "resp_scripted_2",
    )
    assert first.decoder.model == "scripted"
    assert first.decoder.cursor is None


@pytest.mark.parametrize(
    ("pieces", "chunks"),
    [
        ("characters", ["a", "b", " ", "c"]),
        ("whole", ["ab c"]),
        (lambda text: text.split("b"), ["a", " c"]),
    ],
)
def test_pieces_decide_where_a_text_is_cut(play: Play, pieces: Any, chunks: list[str]) -> None:
    model = ScriptedModel(["ab c"], pieces=pieces)

    assert play(model, asked(model)).deltas == chunks


def test_a_reply_has_its_parts_in_order(play: Play) -> None:
    reply = ScriptedReply(
        "the text",
        reasoning="hm hm",
        refusal="no",
        tool_calls=[("f", {"city": "Paris", "days": 3}), ("g", "", "mine")],
    )
    model = ScriptedModel([reply])

    heard = play(model, asked(model))

    ends = [(i.kind, i.part, i.name, i.call_id) for i in heard.items if isinstance(i, PartEnd)]
    assert ends == [
        ("reasoning", 0, "", ""),
        ("text", 1, "", ""),
        ("refusal", 2, "", ""),
        ("tool_call", 3, "f", "call_1_1"),
        ("tool_call", 4, "g", "mine"),
    ]
    arguments = [i.text for i in heard.items if isinstance(i, Delta) and i.part == 3]
    assert len(arguments) > 2
    assert "".join(arguments) == '{"city": "Paris", "days": 3}'
    assert [i for i in heard.items if i.part == 4] == [
        Delta("tool_call", 4, "", "mine", "g"),
        PartEnd("tool_call", 4, call_id="mine", name="g"),
    ]
    assert heard.decoder.finish_reason == "tool_calls"


def test_usage_is_counted_given_or_missing(play: Play) -> None:
    given = Usage(1, 2, 3)
    model = ScriptedModel(
        [
            ScriptedReply("12345678", reasoning="1234"),
            ScriptedReply("x", usage=given),
            ScriptedReply("x", usage=None),
        ]
    )

    usages = [play(model, asked(model, "1234")).decoder.usage for _ in range(3)]

    assert usages == [Usage(5, 3, reasoning_tokens=1), given, None]


def test_every_chunk_is_a_read_of_its_own_unless_batched(play: Play) -> None:
    model = ScriptedModel([ONE_TO_FIVE, ScriptedReply(ONE_TO_FIVE, batch=2)])

    sizes = [
        [sum(event.is_chunk for event in read) for read in play(model, asked(model)).reads]
        for _ in range(2)
    ]

    assert sizes == [[0, 1, 1, 1, 1, 1, 0], [0, 2, 2, 1]]


@pytest.mark.parametrize("fault", ["eof", "reset", "error", "stall"])
@pytest.mark.parametrize("at", [0, 1, 4, 5, None])
@pytest.mark.parametrize("batch", [1, 3])
def test_a_fault_leaves_exactly_the_chunks_before_it(
    play: Play, fault: Any, at: Any, batch: int
) -> None:
    reply = ScriptedReply(
        "three four five", reasoning="one two", fault=fault, fail_at=at, batch=batch
    )
    model = ScriptedModel([reply])

    heard = play(model, asked(model), timeout=0.001)

    assert len(heard.deltas) == (5 if at is None else at)
    kinds = {"eof": StreamInterrupted, "reset": StreamInterrupted, "error": Overloaded}
    assert type(heard.error) is kinds.get(fault, ModelTimeout)
    assert not heard.decoder.finished
    if at in (5, None):
        assert not any(isinstance(i, PartEnd) and i.kind == "text" for i in heard.items)


def test_the_fault_follows_from_what_else_is_given(play: Play) -> None:
    blocked = AuthenticationFailed("key withdrawn")
    model = ScriptedModel(
        [ScriptedReply("a b", fail_at=1), ScriptedReply("a b", fail_at=1, error=blocked)]
    )

    lost, reported = play(model, asked(model)), play(model, asked(model))

    assert isinstance(lost.error, StreamInterrupted)
    assert reported.error is blocked
    assert reported.deltas == ["a"]


def test_an_open_error_is_raised_once_and_the_next_attempt_answers(play: Play) -> None:
    error = RateLimited("slow down", retry_after=0.01)
    model = ScriptedModel([ScriptedReply("at last", open_error=[error, error]), "next"])
    request = asked(model)

    for _ in range(2):
        with pytest.raises(RateLimited):
            play(model, request)

    assert play(model, request).text == "at last"
    assert play(model, asked(model)).text == "next"
    assert len(model.requests) == 2


def test_a_call_beyond_the_script_says_so(play: Play) -> None:
    model = ScriptedModel(["only"])
    play(model, asked(model))

    with pytest.raises(InvalidRequest, match="the script has 1 reply and this is call 2"):
        play(model, asked(model))


def test_repeat_begins_anew(play: Play) -> None:
    model = ScriptedModel(["a", "b"], repeat=True)

    assert [play(model, asked(model)).text for _ in range(5)] == ["a", "b", "a", "b", "a"]


def test_a_function_computes_the_reply_from_the_request(play: Play) -> None:
    model = ScriptedModel(
        [lambda records, options: f"{records[-1].content}? {options.temperature}"], repeat=True
    )

    assert play(model, asked(model, "why", temperature=0.5)).text == "why? 0.5"


def test_requests_are_kept_for_assertions(play: Play) -> None:
    model = ScriptedModel(["a", "b"])
    for text in ("first", "second"):
        play(model, asked(model, text, max_output_tokens=7))

    assert [r.records[-1].content for r in model.requests] == ["first", "second"]
    assert model.requests[0].options.max_output_tokens == 7


@pytest.mark.parametrize("at", range(6))
def test_a_kept_stream_goes_on_exactly_after_the_cursor(play: Play, at: Any) -> None:
    model = ScriptedModel([ScriptedReply(ONE_TO_FIVE, cursor=True, fault="eof", fail_at=at)])
    cut = play(model, asked(model))

    request = resuming(model, cut)
    rest = play(model, request)

    assert cut.text + rest.text == ONE_TO_FIVE
    assert rest.error is None
    assert rest.decoder.finished
    assert rest.decoder.response_id == cut.decoder.response_id
    assert model.requests[1].response_id == cut.decoder.response_id


def test_a_forgotten_stream_is_refused(play: Play) -> None:
    model = ScriptedModel([ScriptedReply("a b", cursor=True, fail_at=1), "c"])
    cut = play(model, asked(model))
    request = resuming(model, cut)
    model.forget(request.response_id or "")

    with pytest.raises(InvalidRequest, match="not kept"):
        play(model, request)

    assert model.resume_request("resp_other", "1") is None
    with pytest.raises(InvalidRequest) as caught:
        play(model, asked(model, previous_response_id=cut.decoder.response_id))
    assert model.is_unknown_response(caught.value)
    assert play(model, asked(model)).text == "c"


@pytest.mark.parametrize("reply", [{"fault": "stall"}, {"first_delay": 60}, {"delay": 60}])
def test_abort_ends_a_blocking_read_from_another_thread(reply: dict[str, Any]) -> None:
    model = ScriptedModel([ScriptedReply("a b", **reply)])
    source = model.open(asked(model), timeout=None)
    aborter = threading.Timer(0.01, source.abort)
    aborter.start()

    with pytest.raises(StreamInterrupted, match="on this side"):
        read_to_the_end(source)

    aborter.join()
    with pytest.raises(StreamInterrupted):
        source.read()
    source.close()
    assert source.read() is None


def test_abort_ends_a_read_on_a_loop() -> None:
    async def main() -> None:
        model = ScriptedModel([ScriptedReply("a b", fault="stall")])
        source = await model.open_async(asked(model), timeout=None)
        asyncio.get_running_loop().call_later(0.01, source.abort)
        with pytest.raises(StreamInterrupted, match="on this side"):
            [read async for read in endless(source)]
        await source.close()
        assert await source.read() is None

    asyncio.run(main())


def test_a_slow_reply_that_keeps_within_the_timeout_is_left_alone(play: Play) -> None:
    model = ScriptedModel([ScriptedReply("a b c", first_delay=0.001, delay=0.001)])

    assert play(model, asked(model), timeout=5.0).text == "a b c"


def test_a_delay_beyond_the_timeout_is_a_timeout(play: Play) -> None:
    model = ScriptedModel([ScriptedReply("a b c", delay=60)])

    heard = play(model, asked(model), timeout=0.001)

    assert isinstance(heard.error, ModelTimeout)
    assert heard.text == "a"


def test_text_is_mended_as_the_adapters_do(play: Play) -> None:
    model = ScriptedModel([["a\ud83d", "\ude00b", "\0", "\ud83d"]])

    assert play(model, asked(model)).deltas == ["a", "\U0001f600b", "\ufffd", "\ufffd"]


def test_one_model_serves_many_threads() -> None:
    model = ScriptedModel([f"reply {n}" for n in range(40)])
    texts: list[str] = []

    def work() -> None:
        texts.extend(blocking(model, asked(model)).text for _ in range(5))

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert sorted(texts) == sorted(f"reply {n}" for n in range(40))
    assert len(model.requests) == 40


@pytest.mark.parametrize("script", ["a text", []])
def test_a_script_is_a_list_with_entries(script: Any) -> None:
    with pytest.raises(ConfigError):
        ScriptedModel(script)


@pytest.mark.parametrize("wrong", [{"fault": "fire"}, {"batch": 0}, {"delay": -1}])
def test_replies_that_make_no_sense_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        ScriptedReply("hi", **wrong)
