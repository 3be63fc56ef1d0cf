"""Server-side threading: what is sent, and when the provider's own copy no longer holds."""

from __future__ import annotations

import logging
from typing import Any

import pytest
from support import Open, contents, problems, sent
from support import file as file
from support import run as run

from contextwindow import (
    AuthenticationFailed,
    ContextWindow,
    InvalidRequest,
    RateLimited,
    StreamInterrupted,
)
from contextwindow.testing import ScriptedModel, ScriptedReply


def capable(*script: Any, **options: Any) -> ScriptedModel:
    """A model that can go on from its own copy."""
    return ScriptedModel(script or ["fine"], repeat=True, supports_threading=True, **options)


def threaded(run: Open, database: str, model: ScriptedModel, **options: Any) -> ContextWindow:
    """A window with threading on and one whole turn behind it."""
    window = run(database, "chat", model=model, **options)
    window.set_server_side_threading(True)
    window.add_prompt("first")
    window.call_model()
    return window


def previous(model: ScriptedModel, number: int = -1) -> str | None:
    """The response that a request went on from."""
    return model.requests[number].options.previous_response_id


def full(model: ScriptedModel, number: int = -1) -> list[str]:
    """What was sent, which went on from nothing."""
    assert previous(model, number) is None
    return sent(model, number)


def test_the_flag_is_kept_with_the_context(database: str, run: Open) -> None:
    window = run(database, "chat", model=capable())
    assert window.server_side_threading is False

    window.set_server_side_threading(True)
    assert window.server_side_threading is True
    window.create_context("chat")
    window.switch_context("chat")
    assert window.server_side_threading is True
    window.close()
    again = run(database, "chat", model=capable())
    assert again.server_side_threading is True
    again.switch_context("other")
    assert again.server_side_threading is False
    again.switch_context("chat")
    again.set_server_side_threading(False)
    assert again.server_side_threading is False


def test_threading_starts_with_the_first_call(database: str, run: Open) -> None:
    model = capable()
    window = run(database, "chat", model=model)
    window.set_server_side_threading(True)
    window.add_prompt("first")

    reply = window.call_model()

    assert full(model) == ["first"]
    assert model.requests[0].options.threaded
    assert window.get_current_context().last_response_id == reply.response_id


def test_later_calls_send_what_came_after_the_last_response(database: str, run: Open) -> None:
    model = capable()
    window = threaded(run, database, model)
    for number in range(3):
        last = window.get_current_context().last_response_id
        window.add_prompt(f"prompt {number}")
        window.call_model()

        assert previous(model) == last == f"resp_scripted_{number + 1}"
        assert sent(model) == [f"prompt {number}"]
    assert problems(database) == []


def test_the_manifest_says_what_a_threaded_call_sent(file: str, run: Open) -> None:
    window = threaded(run, file, capable())
    window.add_prompt("second")

    window.call_model()

    assert contents(window.manifest(window.calls()[-1].id)) == ["second"]


def test_every_record_since_is_sent_whole(file: str, run: Open) -> None:
    model = capable()
    window = threaded(run, file, model)
    window.add_prompt("two\nlines\nUser: not a turn")
    window.add_prompt("and another prompt")

    window.call_model()

    assert previous(model) == "resp_scripted_1"
    assert sent(model) == ["two\nlines\nUser: not a turn", "and another prompt"]


def test_tool_outputs_go_on_from_the_call_that_asked_for_them(database: str, run: Open) -> None:
    asks = ScriptedReply("let me look", tool_calls=[("ls", {}, "c1"), ("pwd", {}, "c2")])
    model = capable(asks, "there you are")
    window = threaded(run, database, model)
    window.add_tool_output("a b", "c1")
    window.add_tool_output("/", "c2")

    window.call_model()

    assert previous(model) == "resp_scripted_1"
    assert sent(model) == ["a b", "/"]
    window.add_prompt("thanks")
    window.call_model()
    assert previous(model) == "resp_scripted_2"
    assert sent(model) == ["thanks"]


def test_a_system_prompt_that_was_there_from_the_start_is_part_of_the_copy(
    file: str, run: Open
) -> None:
    model = capable()
    window = threaded(run, file, model, system_prompt="be kind")
    window.add_prompt("second")

    window.call_model()

    assert full(model, 0) == ["be kind", "first"]
    assert previous(model) == "resp_scripted_1"


def test_a_changed_system_prompt_sends_the_full_history(
    database: str, run: Open, caplog: pytest.LogCaptureFixture
) -> None:
    model = capable()
    window = threaded(run, database, model, system_prompt="be kind")
    window.set_system_prompt("be brief")
    window.add_prompt("second")

    with caplog.at_level(logging.INFO, logger="contextwindow"):
        window.call_model()

    assert full(model) == ["first", "fine", "be brief", "second"]
    assert "full history" in caplog.text
    window.add_prompt("third")
    window.call_model()
    assert previous(model) == "resp_scripted_2"
    assert sent(model) == ["third"]


@pytest.mark.parametrize("index", [0, 1])
def test_a_record_that_was_taken_out_sends_the_full_history_without_it(
    database: str, run: Open, index: int
) -> None:
    model = capable()
    window = threaded(run, database, model)
    window.set_record_live_state_by_range(index, index, False)
    window.add_prompt("second")

    window.call_model()

    expected = ["first", "fine", "second"]
    assert full(model) == expected[:index] + expected[index + 1 :]


def test_a_record_that_was_put_back_sends_the_full_history(file: str, run: Open) -> None:
    model = capable()
    window = run(file, "chat", model=model)
    window.set_server_side_threading(True)
    dead = window.add_prompt("dead")
    window.set_live([dead.id], False)
    window.add_prompt("first")
    window.call_model()
    window.set_live([dead.id], True)

    window.call_model()

    assert full(model) == ["dead", "first", "fine"]


def test_a_record_taken_out_while_the_reply_comes_sends_the_full_history(
    file: str, run: Open
) -> None:
    model = capable()
    window = run(file, "chat", model=model)
    window.set_server_side_threading(True)
    first = window.add_prompt("first")
    with window.call_model_streaming() as stream:
        for chunk in stream:
            if chunk.delta:
                window.set_live([first.id], False)
    window.add_prompt("second")

    window.call_model()

    assert full(model) == ["fine", "second"]


def test_a_call_with_nothing_new_sends_the_full_history(file: str, run: Open) -> None:
    model = capable()
    window = threaded(run, file, model)

    window.call_model()

    assert full(model) == ["first", "fine"]


def test_a_response_that_the_provider_no_longer_knows_is_told_in_the_log(
    database: str, run: Open, caplog: pytest.LogCaptureFixture
) -> None:
    """Fault 18: An unknown `previous_response_id`: full history, said in the log."""
    model = capable()
    window = threaded(run, database, model)
    model.forget("resp_scripted_1")
    window.add_prompt("second")

    with caplog.at_level(logging.INFO, logger="contextwindow"):
        reply = window.call_model()

    assert reply.text == "fine"
    assert previous(model, -2) == "resp_scripted_1"
    assert full(model) == ["first", "fine", "second"]
    assert "resp_scripted_1" in caplog.text
    assert "full history" in caplog.text
    assert contents(window.manifest(window.calls()[-1].id)) == ["first", "fine", "second"]
    window.add_prompt("third")
    window.call_model()
    assert previous(model) == reply.response_id
    assert sent(model) == ["third"]
    assert problems(database) == []


@pytest.mark.parametrize(
    "error",
    [
        AuthenticationFailed("bad key", status=401),
        RateLimited("slow down", status=429, retry_after=3600.0),
        InvalidRequest("bad request", status=400),
    ],
)
def test_other_errors_are_raised_and_not_tried_with_the_full_history(
    file: str, run: Open, error: Exception
) -> None:
    model = capable("fine", ScriptedReply("never", open_error=error), "good")
    window = threaded(run, file, model)
    window.add_prompt("second")

    with pytest.raises(type(error)):
        window.call_model()

    assert len(model.requests) == 2
    assert previous(model) == "resp_scripted_1"


def test_a_cancelled_reply_is_not_tried_again(file: str, run: Open) -> None:
    model = capable("fine", "one two three", "good")
    window = threaded(run, file, model)
    window.add_prompt("second")
    with window.call_model_streaming() as stream:
        for chunk in stream:
            if chunk.delta == "one":
                stream.cancel()

    assert len(model.requests) == 2
    window.add_prompt("third")
    window.call_model()
    assert full(model) == ["first", "fine", "second", "one", "third"]


def test_a_reply_that_was_spliced_sends_the_full_history_next(database: str, run: Open) -> None:
    cut = ScriptedReply("one two", fault="eof", fail_at=1)
    model = capable("fine", cut, " two", "good")
    window = threaded(run, database, model)
    window.add_prompt("second")

    assert window.call_model().text == "one two"

    assert previous(model) is None
    window.add_prompt("third")
    window.call_model()
    assert full(model) == ["first", "fine", "second", "one two", "third"]
    window.add_prompt("fourth")
    window.call_model()
    assert sent(model) == ["fourth"]


def test_a_reply_that_was_interrupted_sends_the_full_history_next(file: str, run: Open) -> None:
    cut = ScriptedReply("one two", fault="eof", fail_at=1)
    model = capable("fine", cut, "good")
    window = threaded(run, file, model)
    window.add_prompt("second")
    with pytest.raises(StreamInterrupted):
        window.call_model(max_resumes=0)
    window.add_prompt("third")

    window.call_model()

    assert full(model) == ["first", "fine", "second", "one", "third"]


def test_a_reply_that_was_read_on_from_the_providers_copy_keeps_the_chain(
    file: str, run: Open
) -> None:
    kept = ScriptedReply("one two", fault="reset", fail_at=1, cursor=True)
    model = capable("fine", kept, "good")
    window = threaded(run, file, model)
    window.add_prompt("second")
    assert window.call_model().text == "one two"
    window.add_prompt("third")

    window.call_model()

    assert previous(model) == "resp_scripted_2"
    assert sent(model) == ["third"]


@pytest.mark.parametrize(("moment", "expected"), [("stream_start", False), ("text_delta", True)])
def test_a_prompt_that_comes_in_the_middle_is_never_lost(
    database: str, run: Open, moment: str, expected: bool
) -> None:
    model = capable()
    window = run(database, "chat", model=model)
    window.set_server_side_threading(True)
    window.add_prompt("first")
    with window.call_model_streaming() as stream:
        for chunk in stream:
            if chunk.type == moment:
                window.add_prompt("meanwhile")
    window.add_prompt("second")

    window.call_model()

    if expected:
        assert previous(model) == "resp_scripted_1"
        assert sent(model) == ["meanwhile", "second"]
    else:
        assert full(model) == ["first", "meanwhile", "fine", "second"]


def test_a_model_that_cannot_thread_is_sent_the_full_history(database: str, run: Open) -> None:
    model = ScriptedModel(["fine"], repeat=True)
    window = run(database, "chat", model=model)
    window.set_server_side_threading(True)
    for text in ("first", "second"):
        window.add_prompt(text)
        window.call_model()

    assert full(model) == ["first", "fine", "second"]
    assert not model.requests[-1].options.threaded
    assert window.get_current_context().last_response_id is None


def test_without_the_flag_nothing_is_threaded(file: str, run: Open) -> None:
    model = capable()
    window = run(file, "chat", model=model)
    for text in ("first", "second"):
        window.add_prompt(text)
        window.call_model()

    assert full(model) == ["first", "fine", "second"]
    assert not model.requests[-1].options.threaded
    assert window.get_current_context().last_response_id is None


def test_switching_off_and_on_again_starts_a_new_chain(file: str, run: Open) -> None:
    model = capable()
    window = threaded(run, file, model)
    window.set_server_side_threading(True)
    assert window.get_current_context().last_response_id == "resp_scripted_1"

    window.set_server_side_threading(False)
    window.set_server_side_threading(True)
    window.add_prompt("second")
    window.call_model()

    assert full(model) == ["first", "fine", "second"]


def test_a_clone_goes_on_from_the_same_response(database: str, run: Open) -> None:
    model = capable()
    window = threaded(run, database, model)
    window.clone("copy")
    window.add_prompt("in the source")
    window.call_model()
    window.switch_context("copy")
    window.add_prompt("in the copy")

    window.call_model()

    assert window.server_side_threading
    assert previous(model) == "resp_scripted_1"
    assert sent(model) == ["in the copy"]


def test_a_fork_in_the_past_starts_a_chain_of_its_own(file: str, run: Open) -> None:
    model = capable()
    window = threaded(run, file, model)
    window.add_prompt("second")
    window.call_model()
    window.fork("branch", at=window.records()[1].id)
    window.switch_context("branch")
    window.add_prompt("other second")

    window.call_model()

    assert full(model) == ["first", "fine", "other second"]


def test_an_import_starts_a_chain_of_its_own(file: str, run: Open) -> None:
    model = capable()
    window = threaded(run, file, model)
    window.import_context(window.export_context(), "again")
    window.switch_context("again")
    window.add_prompt("second")

    window.call_model()

    assert window.server_side_threading
    assert full(model) == ["first", "fine", "second"]


def test_a_provider_without_response_ids_is_sent_the_full_history(file: str, run: Open) -> None:
    from contextwindow.models.base import Decoder, Request

    class Nameless(ScriptedModel):
        def decoder(self, request: Request) -> Decoder:
            decoder = super().decoder(request)
            feed = decoder.feed

            def feeding(event: Any) -> Any:
                items = feed(event)
                decoder.response_id = None
                return items

            decoder.feed = feeding  # type: ignore[method-assign]
            return decoder

    model = Nameless(["fine"], repeat=True, supports_threading=True)
    window = threaded(run, file, model)
    window.add_prompt("second")

    window.call_model()

    assert full(model) == ["first", "fine", "second"]


def test_windows_of_one_context_share_the_chain(database: str, run: Open) -> None:
    model = capable()
    threaded(run, database, model)
    other = run(database, "chat", model=model)
    other.add_prompt("from another window")

    other.call_model()

    assert previous(model) == "resp_scripted_1"
    assert sent(model) == ["from another window"]
