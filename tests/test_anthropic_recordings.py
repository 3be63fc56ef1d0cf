"""What Anthropic has sent, decoded and sent back.

The recordings stand beside the checkout; their licences do not let them be copied here.
"""

from __future__ import annotations

import hashlib
import json
from itertools import pairwise
from typing import Any

import pytest
from decoding import Decoded, cuts, decode, record
from shared_files import Recording, each, needed, turns

from contextwindow.errors import (
    AuthenticationFailed,
    ContextLengthExceeded,
    InvalidRequest,
    ModelError,
    Overloaded,
    RateLimited,
    StreamInterrupted,
)
from contextwindow.models.anthropic import AnthropicModel
from contextwindow.models.anthropic_decoder import PAUSED
from contextwindow.models.anthropic_errors import reported_error
from contextwindow.models.base import CallOptions, Request
from contextwindow.records import Record, RecordType, Usage

FINISH = {
    "end_turn": "stop",
    "stop_sequence": "stop",
    "pause_turn": "stop",
    "max_tokens": "length",
    "tool_use": "tool_calls",
    "refusal": "refusal",
    None: None,
}
# Whoever was recorded has lost the signed thinking, which the provider would have taken back.
WITHOUT_THOUGHTS = {"anthropic-web_search-06/01"}
OWN_PARTS = ("text", "thinking", "redacted_thinking", "tool_use")


def model() -> AnthropicModel:
    return AnthropicModel("claude-sonnet-4-5", api_key="k", prompt_caching=False)


def decoded_from(recording: Recording, chunks: Any = None) -> Decoded:
    return decode(model().decoder(Request({})), chunks or [recording.body])


def is_answer(recording: Recording) -> bool:
    return bool(recording.expected["kind"] != "error")


@each("anthropic-", is_answer)
def test_recorded_answers_are_decoded_as_an_independent_parser_does(
    recording: Recording | None,
) -> None:
    needed(recording)
    assert recording is not None
    expected = recording.expected
    decoded = decoded_from(recording)

    assert decoded.text("text") == expected["text"]
    assert decoded.text("reasoning") == expected["reasoning_text"]
    assert [(call.call_id, call.name) for call in decoded.calls] == [
        (call["id"], call["name"]) for call in expected["tool_calls"]
    ]
    for call, theirs in zip(decoded.calls, expected["tool_calls"], strict=True):
        if theirs.get("arguments_json_ok", True):
            assert json.loads(call.text or "{}") == theirs["arguments"]
        else:
            assert call.text == theirs["arguments"]
    assert decoded.decoder.response_id == expected["response_id"]
    assert decoded.decoder.model == expected["model"]
    assert decoded.decoder.usage == usage_of(expected)
    assert decoded.decoder.finish_reason == FINISH[expected["finish_reason"]]


@each("anthropic-", lambda one: is_answer(one) and one.is_stream)
def test_recorded_streams_say_the_same_however_they_are_cut(recording: Recording | None) -> None:
    needed(recording)
    assert recording is not None
    at_once = decoded_from(recording)

    for how, chunks in cuts(recording.body):
        cut = decoded_from(recording, chunks)

        assert cut.parts == at_once.parts, how
        assert cut.decoder.usage == at_once.decoder.usage, how
        assert cut.decoder.finish_reason == at_once.decoder.finish_reason, how
        assert repr(cut.error) == repr(at_once.error), how


@each("anthropic-", is_answer)
def test_recorded_answers_end_well_or_in_an_error(recording: Recording | None) -> None:
    needed(recording)
    assert recording is not None
    expected = recording.expected
    decoded = decoded_from(recording)

    if expected["in_stream_error"]:
        assert type(decoded.error) is Overloaded
        assert decoded.error.code == expected["in_stream_error"]["type"]
    elif not expected["terminated"]:
        assert isinstance(decoded.error, StreamInterrupted)
    else:
        assert decoded.error is None
        assert decoded.decoder.finished
        assert all(part.end is not None for part in decoded.parts.values())


@each("anthropic-", is_answer)
def test_signatures_and_blocks_of_server_tools_are_kept_in_their_order(
    recording: Recording | None,
) -> None:
    needed(recording)
    assert recording is not None
    decoded = decoded_from(recording)
    if decoded.error is not None:
        return
    expected = recording.expected
    kept = [item for item in decoded.items if item != PAUSED]

    signed = [one["signature"] for one in kept if one.get("signature")]
    assert [digest(text) for text in signed] == [one["sha256"] for one in expected["signatures"]]
    theirs = [(one["type"], one["id"]) for one in expected["server_tool_items"]]
    ours = [(one["type"], one.get("id")) for one in kept if one["type"] not in OWN_PARTS]
    assert [one[0] for one in ours] == [one[0] for one in theirs]
    assert [block["type"] for block in kept] == [
        kind for kind in expected["block_types"] if kind != "tool_use" or all_whole(expected)
    ]


CASES = [case for case in turns("anthropic-") if len(case) > 1] or [[]]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case[0].name if case else "none")
def test_the_next_request_is_the_recorded_one_in_all_that_the_provider_checks(
    case: list[Recording],
) -> None:
    needed(case[0] if case else None)
    for before, after in pairwise(case):
        asked = (before.request.get("body") or {}).get("messages")
        wanted = (after.request.get("body") or {}).get("messages")
        decoded = decoded_from(before)
        if not asked or not wanted or decoded.error is not None:
            continue
        rest = wanted[len(asked) :]
        if not rest or rest[0]["role"] != "assistant" or len(rest) < 2:
            continue  # a conversation of its own
        records = records_of(asked) + decoded.records("anthropic")
        records += records_of(rest[1:])

        sent = model().request(records, CallOptions()).body["messages"]

        assert [one["role"] for one in sent] == [one["role"] for one in merged(wanted)]
        ours = next(m for m in sent[len(merged(asked)) :] if m["role"] == "assistant")
        theirs = [shape(block) for block in blocks_of(rest[0])]
        given = [shape(block) for block in ours["content"]]
        if before.name in WITHOUT_THOUGHTS:
            given = [block for block in given if block["type"] != "thinking"]
        assert given == theirs
        results = [b for b in sent[-1]["content"] if b["type"] == "tool_result"]
        wanted_results = [b for b in blocks_of(rest[-1]) if b["type"] == "tool_result"]
        assert [one["tool_use_id"] for one in results] == [
            one["tool_use_id"] for one in wanted_results
        ]


ERRORS = {
    401: AuthenticationFailed,
    404: InvalidRequest,
    413: ContextLengthExceeded,
    429: RateLimited,
    500: Overloaded,
    529: Overloaded,
}


@each("anthropic-", lambda one: not is_answer(one))
def test_recorded_refusals_are_errors_of_the_right_class(recording: Recording | None) -> None:
    needed(recording)
    assert recording is not None
    status = recording.response["status"]
    body = json.loads(recording.body)

    found = reported_error("m", body["error"])

    expected: type[ModelError] = ERRORS.get(status, InvalidRequest)
    if "prompt is too long" in body["error"]["message"]:
        expected = ContextLengthExceeded
    assert isinstance(found, expected)
    assert body["error"]["message"][:40] in str(found)


def usage_of(expected: dict[str, Any]) -> Usage | None:
    usage = expected["usage"]
    if not usage or usage.get("input") is None:
        return None
    read, write = usage["cache_read"] or 0, usage["cache_write"] or 0
    return Usage(
        usage["input"] + read + write, usage["output"] or 0, read, write, usage["reasoning"] or 0
    )


def all_whole(expected: dict[str, Any]) -> bool:
    return all(call.get("arguments_json_ok", True) for call in expected["tool_calls"])


def digest(text: str | None) -> str:
    return hashlib.sha256((text or "").encode()).hexdigest()


def blocks_of(message: dict[str, Any]) -> list[dict[str, Any]]:
    content = message["content"]
    blocks = [{"type": "text", "text": content}] if isinstance(content, str) else content
    return [block for block in blocks if block.get("type") != "text" or block["text"].strip()]


def merged(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for message in messages:
        if not found or found[-1]["role"] != message["role"]:
            found.append(message)
    return found


def shape(block: dict[str, Any]) -> Any:
    """What the provider checks of a block: everything but what callers may add to it."""
    dropped = ("cache_control", "citations", "caller")
    return {k: v for k, v in block.items() if k not in dropped and v is not None}


def records_of(messages: list[dict[str, Any]]) -> list[Record]:
    """Records as a context would hold them for recorded messages."""
    records: list[Record] = []
    for message in messages:
        for block in blocks_of(message):
            kind, fields = block["type"], {"id": len(records) + 100, "turn_id": None}
            if message["role"] == "user" and kind == "tool_result":
                text = json.dumps(block.get("content", ""))
                call = {"call_id": block["tool_use_id"], "name": "t"}
                records.append(record(RecordType.TOOL_OUTPUT, text, **call, **fields))
            elif message["role"] == "user":
                records.append(record(RecordType.PROMPT, block.get("text", kind), **fields))
            else:
                records.append(assistant(block, fields))
    return records


def assistant(block: dict[str, Any], fields: dict[str, Any]) -> Record:
    payload = {"api": "anthropic", "items": [block]}
    if block["type"] == "tool_use":
        call = {"call_id": block["id"], "name": block["name"]}
        text = json.dumps(block["input"])
        return record(RecordType.TOOL_CALL, text, payload=payload, **call, **fields)
    if block["type"] in ("thinking", "redacted_thinking"):
        return record(RecordType.REASONING, "", payload=payload, **fields)
    return record(RecordType.MODEL_RESPONSE, block.get("text", ""), payload=payload, **fields)
