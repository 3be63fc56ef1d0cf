"""What a reader with fresh eyes found: each was a bug once."""

from __future__ import annotations

from typing import Any

import pytest
from support import Open, problems, responses
from support import file as file
from support import run as run

from contextwindow import (
    Middleware,
    OpenAIResponsesModel,
    StreamChunk,
    StreamInterrupted,
    TextDelta,
)
from contextwindow.testing import FakeProvider, FakeReply, ScriptedModel, ScriptedReply


def test_a_continuation_without_text_ends_the_reply(file: str, run: Open) -> None:
    cut = ScriptedReply(["Hello ", "world"], fault="reset", fail_at=2)
    window = run(file, "c", model=ScriptedModel([cut, ScriptedReply([])]))
    window.add_prompt("hi")
    reply = window.call_model()

    assert reply.text == "Hello world"
    assert [one.partial_response_id for one in responses(window)] == [None]
    assert problems(file) == []


def test_a_hook_that_shortens_text_does_not_double_it_on_a_resume(file: str, run: Open) -> None:
    class Redact(Middleware):
        def on_stream_chunk(self, chunk: StreamChunk) -> Any:
            if isinstance(chunk, TextDelta) and "secret" in chunk.delta:
                return TextDelta(chunk.delta.replace("secret", "*"))
            return None

    with FakeProvider() as provider:
        provider.reply(FakeReply("my secret is that I sing", fault="reset", at=4))
        model = OpenAIResponsesModel(
            "m", base_url=provider.openai_url, api_key="k", background=True
        )
        window = run(file, "c", model=model, middleware=[Redact()])
        window.add_prompt("hi")
        with pytest.raises(StreamInterrupted):
            window.call_model(max_resumes=0)
        again = run(file, "c", model=model, middleware=[Redact()])
        reply = again.resume()
        model.close()
    assert reply.text == "my * is that I sing"


def test_taking_a_reply_out_while_it_streams_keeps_it_out(file: str, run: Open) -> None:
    window = run(file, "c", model=ScriptedModel([["a", "b", "c"]]))
    window.add_prompt("hi")
    with window.call_model_streaming() as stream:
        for chunk in stream:
            if chunk.delta == "b":
                window.set_live([chunk.record_id], False)

    assert responses(window) == []
    assert problems(file) == []


def test_a_new_system_prompt_is_sent_when_a_reply_is_resumed(file: str, run: Open) -> None:
    cut = ScriptedReply(["Hello ", "world"], fault="reset", fail_at=1)
    model = ScriptedModel([cut, "world"])
    window = run(file, "c", model=model, system_prompt="be nice")
    window.add_prompt("hi")
    with pytest.raises(StreamInterrupted):
        window.call_model(max_resumes=0)
    window.set_system_prompt("be very nice")
    window.resume()

    assert "be very nice" in [one.content for one in model.requests[-1].records]
