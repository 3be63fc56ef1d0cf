"""What Gemini has sent, at Google AI and on Vertex AI, decoded and sent back.

The recordings stand beside the checkout; their licences do not let them be copied here.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from typing import Any

import pytest
from decoding import Decoded, cuts, decode, record
from google import genai
from google.genai._api_client import BaseApiClient
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
from contextwindow.models.base import CallOptions, Request
from contextwindow.models.gemini import GeminiModel
from contextwindow.models.gemini_contents import FOREIGN_SIGNATURE
from contextwindow.records import Record, RecordType, Usage


class UnlentClient(genai.Client):
    """A client that lets nobody at its bytes."""

    @staticmethod
    def _get_api_client(*arguments: Any, debug_config: Any = None, **options: Any) -> Any:
        class Unlent(BaseApiClient):
            pass

        return Unlent(*arguments, **options)


FINISH = {
    "STOP": "stop",
    "MAX_TOKENS": "length",
    "RECITATION": "content_filter",
    "SAFETY": "content_filter",
    "UNEXPECTED_TOOL_CALL": "stop",
    1: "stop",
}


def model_for(recording: Recording) -> GeminiModel:
    path = recording.request.get("path") or ""
    name = path.partition(":")[0].rpartition("/")[2]
    return GeminiModel(name or "gemini-3-pro", api_key="k")


def decoded_from(recording: Recording, chunks: Any = None) -> Decoded:
    body = recording.request.get("body")
    decoder = model_for(recording).decoder(Request(body if isinstance(body, dict) else {}))
    return decode(decoder, chunks or [recording.body])


def is_answer(recording: Recording) -> bool:
    return bool(recording.expected["kind"] != "error")


def our_calls(recording: Recording) -> list[dict[str, Any]]:
    """The calls that are for us: what the provider's own servers were asked, it has answered."""
    calls: list[dict[str, Any]] = recording.expected["tool_calls"]
    answered = {"type": "functionResponse"} in recording.expected["server_tool_items"]
    return [] if answered else calls


@each("gemini-", is_answer)
def test_recorded_answers_are_decoded_as_an_independent_parser_does(
    recording: Recording | None,
) -> None:
    needed(recording)
    assert recording is not None
    expected = recording.expected
    decoded = decoded_from(recording)

    assert decoded.text("text") == expected["text"]
    assert decoded.text("reasoning") == expected["reasoning_text"]
    calls = our_calls(recording)
    assert [(call.name, json.loads(call.text)) for call in decoded.calls] == [
        (call["name"], call["arguments"]) for call in calls
    ]
    for call, theirs in zip(decoded.calls, calls, strict=True):
        assert call.call_id == theirs["id"] or (theirs["id"] is None and call.call_id)
    assert len({call.call_id for call in decoded.calls}) == len(calls)
    assert decoded.decoder.response_id == expected["response_id"]
    assert decoded.decoder.model == expected["model"]
    assert decoded.decoder.usage == usage_of(expected)
    assert decoded.decoder.finish_reason == finish_of(recording)


@each("gemini-", lambda one: is_answer(one) and one.is_stream)
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


@each("gemini-", is_answer)
def test_recorded_answers_end_well_or_in_an_error(recording: Recording | None) -> None:
    needed(recording)
    assert recording is not None
    expected = recording.expected
    decoded = decoded_from(recording)

    feedback = expected.get("prompt_feedback") or {}
    if expected["in_stream_error"]:
        assert type(decoded.error) is Overloaded
        assert decoded.error.code == expected["in_stream_error"]["status"]
    elif feedback.get("blockReason") and not expected["finish_reason"]:
        assert type(decoded.error) is ContentBlocked
        assert decoded.error.code == feedback["blockReason"]
        assert feedback.get("blockReasonMessage", "") in str(decoded.error)
    elif not expected["terminated"]:
        assert isinstance(decoded.error, StreamInterrupted)
    else:
        assert decoded.error is None
        assert decoded.decoder.finished
        assert all(part.end is not None for part in decoded.parts.values())


@each("gemini-", is_answer)
def test_signatures_are_kept_on_the_kind_of_part_they_came_with(
    recording: Recording | None,
) -> None:
    needed(recording)
    assert recording is not None
    decoded = decoded_from(recording)
    if decoded.error is not None:
        return

    kept = [item for item in decoded.items if "thoughtSignature" in item]

    assert [digest(item["thoughtSignature"]) for item in kept] == [
        one["sha256"] for one in recording.expected["signatures"]
    ]
    for item, theirs in zip(kept, recording.expected["signatures"], strict=True):
        assert theirs["on"] in item or theirs["on"] in ("bare", "thought")


@each("gemini-", is_answer)
def test_what_is_neither_text_nor_call_is_kept_verbatim_in_its_place(
    recording: Recording | None,
) -> None:
    needed(recording)
    assert recording is not None
    decoded = decoded_from(recording)
    if decoded.error is not None:
        return
    arrived = list(parts_of(recording))

    # As many records as there are changes of kind, each with what stood in front of it.
    assert [one for one in decoded.items if kind_of(one) == "other" and is_part(one)] == [
        one for one in arrived if kind_of(one) == "other"
    ]
    sent = model_for(recording).request(decoded.records("gemini"), CallOptions()).body["contents"]
    model = [one for content in sent if content["role"] == "model" for one in content["parts"]]
    assert shape(model) == shape(arrived)


@each("gemini-", is_answer)
def test_citations_and_grounding_are_kept_and_never_sent(recording: Recording | None) -> None:
    needed(recording)
    assert recording is not None
    decoded = decoded_from(recording)
    if decoded.error is not None:
        return

    (found,) = [one for one in decoded.items if not is_part(one)] or [{"candidateMetadata": {}}]
    given: dict[str, Any] = {}
    for candidate in candidates_of(recording):
        for name in ("citationMetadata", "groundingMetadata", "urlContextMetadata"):
            given.setdefault(name, []).extend([candidate[name]] if candidate.get(name) else [])
    assert found["candidateMetadata"].keys() == {name for name, some in given.items() if some}
    text = json.dumps(found)
    for link in (uri for some in given.values() for one in some for uri in uris(one)):
        assert json.dumps(link)[1:-1] in text
    body = model_for(recording).request(decoded.records("gemini"), CallOptions()).body
    assert "candidateMetadata" not in json.dumps(body)


def is_readable_for_the_sdk(recording: Recording) -> bool:
    # Its own reader knows fewer forms of SSE than the standard, and none that are cut off.
    derived = ("gemini-derived_framing", "gemini-derived_truncated-o02")
    return is_answer(recording) and recording.is_stream and not recording.name.startswith(derived)


@pytest.mark.filterwarnings("ignore:.* is not a valid:UserWarning")
@each("gemini-", is_readable_for_the_sdk)
def test_the_sdk_s_typed_chunks_say_the_same(recording: Recording | None) -> None:
    needed(recording)
    assert recording is not None
    direct = decoded_from(recording)
    model = model_for(recording)
    with serving(Answer(recording.body)) as server:
        client = UnlentClient(api_key="k", http_options={"base_url": server.url})
        through = GeminiModel(model.name, client=client)
        chunks: list[Any] = []
        error: ModelError | None = None
        try:
            source = through.open(Request({"model": model.name}), timeout=5)
            while (events := source.read()) is not None:
                chunks += events
            source.close()
        except ModelError as raised:
            error = raised
        through.close()
        client.close()

    body = b"".join(b"data: " + json.dumps(one).encode() + b"\n\n" for one in chunks)
    typed = decoded_from(recording, [body])
    assert typed.text("text") == direct.text("text")
    assert typed.text("reasoning") == direct.text("reasoning")
    assert [(one.name, one.text) for one in typed.calls] == [
        (one.name, one.text) for one in direct.calls
    ]
    assert typed.decoder.usage == direct.decoder.usage
    assert typed.decoder.finish_reason == direct.decoder.finish_reason
    assert signatures(typed) == signatures(direct)
    assert type(error or typed.error) is type(direct.error)


def signatures(decoded: Decoded) -> list[str]:
    items = decoded.items
    return [standard(one["thoughtSignature"]) for one in items if "thoughtSignature" in one]


@each("gemini-", lambda one: one.expected["kind"] == "error")
def test_recorded_refusals_raise_what_the_caller_can_act_on(recording: Recording | None) -> None:
    needed(recording)
    assert recording is not None
    expected = recording.expected["error"]
    headers = {"content-type": recording.response["headers"]["content-type"]}
    answer = Answer(recording.body, recording.response["status"], headers)
    with serving(answer) as server:
        model = GeminiModel("gemini-3-pro", api_key="k" * 20, base_url=server.url)
        with pytest.raises(ModelError) as caught:
            model.open(model.request([], CallOptions()), timeout=5)
        model.close()

    assert type(caught.value) is class_of(expected)
    assert caught.value.status == expected["status"]
    assert caught.value.code == expected["type"]
    assert (expected["message"] or "")[:900] in str(caught.value) or "<" in expected["message"]
    assert len(server.requests) == 1
    if "RetryInfo" in recording.body.decode():
        assert caught.value.retry_after is not None
        assert caught.value.retryable


def class_of(error: dict[str, Any]) -> type[ModelError]:
    if error["status"] in (401, 403) or "API key not valid" in str(error["message"]):
        return AuthenticationFailed
    if "token count" in str(error["message"]):
        return ContextLengthExceeded
    if error["status"] == 429:
        return RateLimited
    return Overloaded if error["status"] >= 500 else InvalidRequest


def usage_of(expected: dict[str, Any]) -> Usage | None:
    usage = expected["usage"]
    if usage["input"] is None:
        return None
    tools = expected["usage_raw"].get("toolUsePromptTokenCount", 0)
    thoughts = usage["reasoning"] or 0
    return Usage(
        usage["input"] + tools,
        (usage["output"] or 0) + thoughts,
        usage["cache_read"] or 0,
        0,
        thoughts,
    )


def finish_of(recording: Recording) -> str | None:
    reason = recording.expected["finish_reason"]
    if reason is None:
        return None
    found = FINISH[reason]
    return "tool_calls" if found == "stop" and our_calls(recording) else found


def candidates_of(recording: Recording) -> list[dict[str, Any]]:
    """The first candidates of all chunks."""
    text = recording.body.decode().removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")
    if recording.is_stream:
        events = [
            "\n".join(
                line[5:].removeprefix(" ") for line in block.split("\n") if line.startswith("data:")
            )
            for block in text.split("\n\n")
        ]
        chunks = [json.loads(event) for event in events if event.strip()]
    else:
        chunks = json.loads(text)
    found = [one for chunk in aslist(chunks) for one in chunk.get("candidates") or ()]
    return [one for one in found if not one.get("index")]


def aslist(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def parts_of(recording: Recording) -> list[dict[str, Any]]:
    return [
        part
        for candidate in candidates_of(recording)
        for part in (candidate.get("content") or {}).get("parts") or ()
    ]


def is_part(item: dict[str, Any]) -> bool:
    return "candidateMetadata" not in item


def kind_of(part: dict[str, Any]) -> str:
    if "functionCall" in part:
        return "call"
    if "text" in part:
        return "thought" if part.get("thought") else "text"
    return "other" if part.keys() - {"thought"} else "nothing"


def shape(parts: list[dict[str, Any]]) -> list[Any]:
    """The parts in order: plain texts joined, plain thoughts, empty ones and pieces left out."""
    found: list[Any] = []
    for part in parts:
        kind = kind_of(part)
        signature = part.get("thoughtSignature")
        signature = None if signature == FOREIGN_SIGNATURE else signature
        if kind == "call":
            name = part["functionCall"].get("name")
            if name:
                found.append((name, part["functionCall"].get("id"), signature))
        elif kind == "other":
            found.append(part)
        elif kind == "text" and not signature and part["text"]:
            if found and isinstance(found[-1], str):
                found[-1] += part["text"]
            else:
                found.append(part["text"])
        elif signature:
            found.append((kind, part["text"], signature))
    return found


def uris(value: Any) -> list[str]:
    if isinstance(value, dict):
        own = [value["uri"]] if isinstance(value.get("uri"), str) else []
        return own + [uri for member in value.values() for uri in uris(member)]
    return [uri for member in value for uri in uris(member)] if isinstance(value, list) else []


def digest(signature: str) -> str:
    return hashlib.sha256(signature.encode()).hexdigest()


# -- the next turn's request -----------------------------------------------------------------


def conversations() -> pytest.MarkDecorator:
    """Recorded requests that go on from recorded answers."""
    found = [
        case[: number + 1]
        for case in turns("gemini-")
        for number in range(1, len(case))
        if case[number].request["body"]
    ]
    return pytest.mark.parametrize(
        "case", found or [None], ids=lambda one: one[-1].name if one else "missing"
    )


@conversations()
def test_the_next_request_is_the_recorded_one(case: list[Recording] | None) -> None:
    needed(case)
    assert case is not None
    contents = case[-1].request["body"]["contents"]
    replies = [decoded_from(turn).records("gemini", turn_id=turn.name) for turn in case[:-1]]
    records: list[Record] = []
    last: list[Record] = []
    for content in contents:
        if content["role"] == "model":
            last = replies.pop(0)
            records += last
        else:
            records += given(content["parts"], last, len(records) + 100)
    assert not replies

    sent = model_for(case[-1]).request(records, CallOptions()).body["contents"]

    theirs = merged(contents)
    assert [content["role"] for content in sent] == [content["role"] for content in theirs]
    for ours, recorded in zip(sent, theirs, strict=True):
        if ours["role"] == "user":
            assert [said(one) for one in ours["parts"]] == [
                said(one, ours) for one in recorded["parts"]
            ]
        else:
            check_reply(ours["parts"], recorded["parts"])


def given(parts: list[dict[str, Any]], reply: list[Record], number: int) -> list[Record]:
    calls = [one for one in reply if one.source is RecordType.TOOL_CALL]
    found = []
    for part in parts:
        response = field(part, "functionResponse")
        if response is None:
            found.append(record(RecordType.PROMPT, part.get("text", "[media]"), id=number))
            continue
        call = calls.pop(0)
        output = response["response"]
        text = output.get("output") if isinstance(output.get("output"), str) else json.dumps(output)
        one = record(RecordType.TOOL_OUTPUT, str(text), id=number, call_id=call.call_id)
        found.append(replace(one, error="error" in output))
    return found


def merged(contents: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Neighbouring contents of one role are one: that is how the provider reads them."""
    found: list[dict[str, Any]] = []
    for content in contents:
        if found and found[-1]["role"] == content["role"]:
            found[-1]["parts"] = [*found[-1]["parts"], *content["parts"]]
        else:
            found.append(dict(content))
    return found


def said(part: dict[str, Any], ours: dict[str, Any] | None = None) -> Any:
    """What the provider checks of a part of the user's: ids only where they are its own."""
    response = field(part, "functionResponse")
    if response is None:
        return part.get("text", "[media]")
    call_id = response.get("id")
    if ours is not None:
        # Some clients made ids up, or left the provider's out.
        known = [one["functionResponse"] for one in ours["parts"] if "functionResponse" in one]
        call_id = next((one.get("id") for one in known if one["name"] == response["name"]), None)
        if len(known) > 1:
            call_id = response.get("id")
    return ("output", response["name"], call_id)


def check_reply(ours: list[dict[str, Any]], recorded: list[dict[str, Any]]) -> None:
    """Ours says what the recorded one says, and has every signature that it sent back."""
    assert text_of(ours) == text_of(recorded)
    mine = [one for one in ours if "functionCall" in one]
    theirs = [one for one in recorded if field(one, "functionCall") is not None]
    for part, other in zip(mine, theirs, strict=True):
        call, called = part["functionCall"], field(other, "functionCall")
        assert (call["name"], call["args"]) == (called["name"], called["args"])
        assert "id" not in call or call["id"] == called.get("id", call["id"])
        signature = field(other, "thoughtSignature")
        if signature is not None:
            assert standard(part["thoughtSignature"]) == standard(signature)
    kept = [standard(one["thoughtSignature"]) for one in ours if "thoughtSignature" in one]
    sent = [field(one, "thoughtSignature") for one in recorded]
    assert {standard(one) for one in sent if one} <= set(kept)
    others = [one for one in recorded if kind_of(one) == "other" and "functionCall" not in one]
    for one in others:
        if not any("_" in key for key in one):
            assert one in ours


def text_of(parts: list[dict[str, Any]]) -> Any:
    text = "".join(one.get("text", "") for one in parts if not one.get("thought"))
    # Some clients write the JSON of a structured reply anew.
    return json.loads(text) if text.startswith("{") else text


def standard(signature: str) -> str:
    return signature.replace("-", "+").replace("_", "/")


def field(part: dict[str, Any], name: str) -> Any:
    """A member under either of its spellings."""
    snake = "".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in name)
    return part.get(name, part.get(snake))
