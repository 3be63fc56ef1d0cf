"""What OpenAI, Azure and imitators have sent, decoded and sent back.

The recordings stand beside the checkout; their licences do not let them be copied here.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from typing import Any

import pytest
from decoding import Decoded, cuts, decode, record
from openai_server import Answer, serving
from shared_files import Recording, each, needed, turns

from contextwindow.errors import (
    AuthenticationFailed,
    ContentBlocked,
    ContextLengthExceeded,
    InvalidRequest,
    ModelError,
    Overloaded,
    RateLimited,
    StreamInterrupted,
)
from contextwindow.models.base import CallOptions
from contextwindow.models.openai_chat import OpenAIChatModel
from contextwindow.models.openai_client import OpenAIModel
from contextwindow.models.openai_responses import OpenAIResponsesModel
from contextwindow.records import Record, RecordType, Usage

MODELS: dict[str, type[OpenAIModel]] = {
    "openai_chat": OpenAIChatModel,
    "openai_responses": OpenAIResponsesModel,
}

WITHOUT_DONE = {"openai_responses-mcp-01"}


def model_for(recording: Recording) -> OpenAIModel:
    return MODELS[recording.name.partition("-")[0]]("m", api_key="k")


def decoded_from(recording: Recording, chunks: Any = None) -> Decoded:
    model = model_for(recording)
    decoder = model.decoder(model.request([], CallOptions()))
    return decode(decoder, chunks or [recording.body])


def is_answer(recording: Recording) -> bool:
    return bool(recording.expected["kind"] != "error")


@each("openai_", is_answer)
def test_recorded_answers_are_decoded_as_an_independent_parser_does(
    recording: Recording | None,
) -> None:
    needed(recording)
    assert recording is not None
    expected = recording.expected
    decoded = decoded_from(recording)
    decoder = decoded.decoder

    assert decoded.text("text") == expected["text"]
    assert decoded.text("reasoning") == expected["reasoning_text"]
    assert decoded.text("refusal") == (expected["refusal_text"] or "")
    assert unnamed(expected) or [call_of(call) for call in decoded.calls] == [
        (call["id"], call["name"], raw(call["arguments"])) for call in expected["tool_calls"]
    ]
    assert decoder.response_id == expected.get("response_id")
    assert decoder.model == expected.get("model")
    assert decoder.usage == usage_of(expected["usage"])
    assert decoder.finish_reason == finish_of(recording, expected)


@each("openai_", lambda one: is_answer(one) and one.is_stream)
def test_recorded_streams_say_the_same_however_they_are_cut(recording: Recording | None) -> None:
    needed(recording)
    assert recording is not None
    whole = decoded_from(recording)

    for how, chunks in cuts(recording.body):
        cut = decoded_from(recording, chunks)

        assert cut.parts == whole.parts, how
        assert vars(cut.decoder).get("usage") == whole.decoder.usage, how
        assert repr(cut.error) == repr(whole.error), how


@each("openai_", is_answer)
def test_recorded_answers_end_well_or_in_an_error(recording: Recording | None) -> None:
    needed(recording)
    assert recording is not None
    expected = recording.expected
    decoded = decoded_from(recording)

    if expected["in_stream_error"]:
        assert decoded.error is not None
        assert not isinstance(decoded.error, StreamInterrupted)
        assert decoded.error.code == (
            expected["in_stream_error"]["code"] or expected["in_stream_error"]["type"]
        )
    elif not ends(expected):
        assert isinstance(decoded.error, StreamInterrupted)
    else:
        assert decoded.error is None
        assert decoded.decoder.finished
        assert all(part.end is not None for part in decoded.parts.values())


@each("openai_responses", is_answer)
def test_signatures_and_server_tool_items_are_kept_in_order(recording: Recording | None) -> None:
    needed(recording)
    assert recording is not None
    expected = recording.expected
    items = decoded_from(recording).items

    blobs = [item["encrypted_content"] for item in items if item["type"] == "reasoning"
             and item.get("encrypted_content")]  # fmt: skip
    own = [blob for blob in expected["signatures"] if blob["item_id"].startswith("rs_")]
    assert [(len(b), hashlib.sha256(b.encode()).hexdigest()) for b in blobs] == [
        (blob["len"], blob["sha256"]) for blob in own
    ]
    if expected["terminated"] and not expected["in_stream_error"]:
        # An item whose `done` never came is known from the last event only: it stands behind.
        found = [item["type"] for item in items]
        assert sorted(found) == sorted(expected["block_types"])
        assert found == expected["block_types"] or recording.name in WITHOUT_DONE
    server = [item for item in items if item["id"] in ids(expected["server_tool_items"])]
    assert sorted(ids(server)) == sorted(ids(expected["server_tool_items"]))


@each("openai_", lambda one: one.expected["kind"] == "error")
def test_recorded_refusals_raise_what_the_caller_can_act_on(recording: Recording | None) -> None:
    needed(recording)
    assert recording is not None
    expected = recording.expected["error"]
    content_type = recording.response["headers"].get("content-type", "application/json")
    headers = {"content-type": content_type}
    if recording.expected.get("retry_after"):
        headers["retry-after"] = recording.expected["retry_after"]
    answer = Answer(recording.body, recording.response["status"], headers)
    with serving(answer) as server:
        model = MODELS[recording.name.partition("-")[0]]("m", api_key="k", base_url=server.url)
        with pytest.raises(ModelError) as caught:
            model.open(model.request([], CallOptions()), timeout=5)
        model.close()

    assert type(caught.value) is class_of(expected)
    assert caught.value.status == expected["status"]
    assert caught.value.code == (expected["code"] or expected["type"])
    assert expected["message"] is None or expected["message"] in str(caught.value)
    after = recording.expected.get("retry_after")
    assert caught.value.retry_after == (float(after) if after else None)
    assert len(server.requests) == 1


def class_of(error: dict[str, Any]) -> type[ModelError]:
    if error["code"] == "context_length_exceeded":
        return ContextLengthExceeded
    if error["code"] in ("content_filter", "content_policy_violation", "invalid_prompt"):
        return ContentBlocked
    if error["status"] == 401:
        return AuthenticationFailed
    if error["status"] == 429:
        return RateLimited
    return Overloaded if error["status"] >= 500 else InvalidRequest


def call_of(call: Any) -> tuple[str | None, str, Any]:
    return call.call_id, call.name, raw(call.text)


def unnamed(expected: dict[str, Any]) -> bool:
    """Whether the wire gave no id, so that ours is made up."""
    return [call["id"] for call in expected["tool_calls"]] == [None]


def raw(arguments: Any) -> Any:
    if isinstance(arguments, str):
        try:
            return json.loads(arguments or "{}")
        except ValueError:
            return arguments
    return arguments


def usage_of(usage: dict[str, Any]) -> Usage | None:
    if usage["input"] is None:
        return None
    return Usage(
        usage["input"],
        usage["output"],
        usage["cache_read"] or 0,
        usage["cache_write"] or 0,
        usage["reasoning"] or 0,
    )


def ends(expected: dict[str, Any]) -> bool:
    # Chat: without [DONE] a finish reason is an end as well (DESIGN, section 6).
    return bool(expected["terminated"] or expected["finish_reason"])


def finish_of(recording: Recording, expected: dict[str, Any]) -> str | None:
    reason = expected["finish_reason"]
    if reason in (None, "failed") or not ends(expected):
        return None
    if reason == "incomplete":
        return "length"
    if reason in ("stop", "completed", "tool_calls", "function_call"):
        if expected["tool_calls"]:
            return "tool_calls"
        return "refusal" if expected["refusal_text"] else "stop"
    return str(reason)


def ids(items: list[dict[str, Any]]) -> list[str]:
    return [item["id"] for item in items]


# -- the next turn's request -----------------------------------------------------------------


def conversations(prefix: str) -> pytest.MarkDecorator:
    """Recorded requests that go on from recorded answers."""
    found = [
        case[: number + 1]
        for case in turns(prefix)
        for number in range(1, len(case))
        if case[number].request["body"]
    ]
    return pytest.mark.parametrize(
        "case", found or [None], ids=lambda one: one[-1].name if one else "missing"
    )


@conversations("openai_chat")
def test_the_next_chat_request_is_the_recorded_one(case: list[Recording] | None) -> None:
    needed(case)
    assert case is not None
    messages = case[-1].request["body"]["messages"]
    replies = [decoded_from(turn).records("openai-chat") for turn in case[:-1]]
    records: list[Record] = []
    for message in messages:
        if message["role"] == "assistant":
            if message.get("content") or message.get("tool_calls"):
                records += replies.pop(0) if replies else []
        else:
            records.append(record_of(message, len(records) + 100))

    sent = OpenAIChatModel("m", api_key="k").request(records, CallOptions()).body["messages"]

    kept = [one for one in messages if one.get("content") or one.get("tool_calls")]
    assert [essence(message) for message in sent] == [essence(message) for message in kept]


def record_of(message: dict[str, Any], number: int) -> Record:
    source = {
        "system": RecordType.SYSTEM_PROMPT,
        "developer": RecordType.SYSTEM_PROMPT,
        "user": RecordType.PROMPT,
        "tool": RecordType.TOOL_OUTPUT,
    }[message["role"]]
    return record(source, flat(message["content"]), id=number, call_id=message.get("tool_call_id"))


def essence(message: dict[str, Any]) -> dict[str, Any]:
    """What the server looks at."""
    return {
        "role": message["role"],
        "content": flat(message.get("content")),
        "tool_call_id": message.get("tool_call_id"),
        "tool_calls": [
            (call["id"], call["function"]["name"], raw(call["function"]["arguments"]))
            for call in message.get("tool_calls") or ()
        ],
    }


def flat(content: Any) -> str:
    if isinstance(content, list):
        # Images and files have no place in a record: any text does.
        return "".join(part.get("text", "[part]") for part in content)
    return content or ""


@conversations("openai_responses")
def test_the_next_responses_request_is_the_recorded_one(case: list[Recording] | None) -> None:
    needed(case)
    assert case is not None
    given = case[-1].request["body"]["input"]
    replies = [
        decoded_from(turn).records("openai-responses", turn_id=turn.name) for turn in case[:-1]
    ]
    # Some clients name calls by their items.
    call_ids = {
        item.get("id"): item.get("call_id")
        for reply in replies
        for one in reply
        for item in (one.payload or {}).get("items", ())
    }
    records: list[Record] = []
    in_reply = False
    for item in given:
        if is_output(item):
            records += [] if in_reply or not replies else replies.pop(0)
        else:
            one = input_record(item, len(records) + 100)
            records.append(replace(one, call_id=call_ids.get(one.call_id, one.call_id)))
        in_reply = is_output(item)

    sent = OpenAIResponsesModel("m", api_key="k").request(records, CallOptions()).body["input"]

    # A reasoning item that the provider kept for itself cannot go with store=False.
    kept = [one for one in given if one.get("type") != "reasoning" or "encrypted_content" in one]
    compared = [item_essence(*pair) for pair in zip(sent, kept, strict=True)]
    assert [pair[0] for pair in compared] == [pair[1] for pair in compared]


def is_output(item: dict[str, Any]) -> bool:
    if "output" in str(item.get("type")) and item["type"].endswith("output"):
        return False
    return item.get("role") == "assistant" or item.get("type") not in (None, "message")


def input_record(item: dict[str, Any], number: int) -> Record:
    if item.get("type", "").endswith("output"):
        text = flat(item["output"])
        return record(RecordType.TOOL_OUTPUT, text, id=number, call_id=item["call_id"])
    system = item["role"] in ("system", "developer")
    source = RecordType.SYSTEM_PROMPT if system else RecordType.PROMPT
    return record(source, flat(item["content"]), id=number)


def item_essence(ours: dict[str, Any], theirs: dict[str, Any]) -> tuple[Any, Any]:
    """Both items, as far as the recorded client sent what the provider had given it."""
    names = {"type", "encrypted_content", "name", "summary"}
    if not str(theirs.get("call_id")).startswith("fc_"):
        names.add("call_id")
    if not str(theirs.get("id", "msg_missing")).startswith("msg_missing") and "id" in ours:
        names.add("id")
    mine = {name: ours[name] for name in names & theirs.keys() & ours.keys()}
    recorded = {name: theirs[name] for name in mine}
    mine["arguments"] = raw(ours.get("arguments"))
    recorded["arguments"] = raw(theirs.get("arguments"))
    mine["role"], recorded["role"] = ours.get("role"), theirs.get("role")
    mine["text"] = flat(ours.get("content") or ours.get("output"))
    recorded["text"] = flat(theirs.get("content") or theirs.get("output"))
    return mine, recorded
