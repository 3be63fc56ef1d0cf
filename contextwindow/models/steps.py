"""Records in the order in which a provider can take them.

Every provider demands that tool outputs follow their calls and that no call lacks one.  What a
context holds may be anything: outputs without calls, calls that were never answered, a prompt
that another process wrote in between.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from contextwindow.models.sse import mended
from contextwindow.records import Record, RecordType

UNKNOWN_OUTCOME: Final = "interrupted: the outcome of this call is unknown"
NOT_RUN: Final = "interrupted: the call was cut off; it was not run"

_LOOKED_UP: Final = ("type", "id", "call_id", "tool_use_id")
_NAME: Final = re.compile(r"[^a-zA-Z0-9_-]")


@dataclass(slots=True)
class Step:
    """What one record, or a missing output, becomes.

    Attributes:
        kind: an output whose call is not known is quoted by a ``user`` step.
        record: of a missing output the call's.
        text: what to send, fit for UTF-8; of a call its arguments.
        call_id: on calls and outputs: never empty, at most as long as the provider takes.
    """

    kind: Literal["system", "user", "text", "reasoning", "call", "output"]
    record: Record
    text: str
    call_id: str = ""
    name: str = ""


def steps(records: Sequence[Record], *, id_limit: int, continued: bool = False) -> Iterator[Step]:
    """What to send for *records*: outputs stand behind their calls, every call has one.

    Args:
        id_limit: characters that the provider takes in a call id.
        continued: the calls may be in the provider's own copy, so an output alone is no orphan.
    """
    answers = _answers(records)
    answering = {id(record) for record in answers.values()}
    waiting: list[tuple[Step, Record | None]] = []
    asked: set[str] = set()
    for index, record in enumerate(records):
        step = _step(record, id_limit, continued=continued)
        if id(record) in answering:
            step = None
        if waiting and (
            step is None
            or not _goes_with(record, waiting[-1][0].record)
            # Within one message an id names one call.
            or (step.kind == "call" and step.call_id in asked)
        ):
            yield from (_output(*one) for one in waiting)
            waiting.clear()
            asked.clear()
        if step is None:
            continue
        yield step
        if step.kind == "call":
            waiting.append((step, answers.get(index)))
            asked.add(step.call_id)
    yield from (_output(*one) for one in waiting)


def sendable_id(record: Record, limit: int) -> str:
    """The call id of *record*: its own, a short stand-in for a long one, or one made up."""
    call_id = mended(record.call_id or "")
    if not call_id:
        return f"call_{record.id}"
    if len(call_id) <= limit:
        return call_id
    digest = hashlib.sha256(call_id.encode()).hexdigest()
    return f"call_{digest[:32]}"


def sendable_name(name: str | None) -> str:
    """A tool's name in the letters that every provider takes, at most 64."""
    return _NAME.sub("_", name or "")[:64] or "unknown_tool"


def native_items(record: Record, api: str) -> list[dict[str, Any]] | None:
    """The provider's own items of *record*, or None when they came from another API.

    An export that somebody made may hold anything.  What the builders of requests look things up
    by is a text or null here, and what is neither is no item of any provider.
    """
    payload = record.payload
    if not isinstance(payload, dict) or payload.get("api") != api:
        return None
    items = payload.get("items")
    if not isinstance(items, list):
        return None
    return [item for item in items if isinstance(item, dict) and _is_item(item)] or None


def refusal_of(record: Record) -> str:
    """The refusal that *record* holds instead of text, or ``""``."""
    refusal = record.payload.get("refusal") if isinstance(record.payload, dict) else None
    return mended(refusal) if isinstance(refusal, str) else ""


def is_json(text: str) -> bool:
    """Whether *text* is whole JSON."""
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def _is_item(item: dict[str, Any]) -> bool:
    return all(item.get(key) is None or isinstance(item[key], str) for key in _LOOKED_UP)


def _step(record: Record, id_limit: int, *, continued: bool) -> Step | None:
    text = mended(record.content)
    match record.source:
        case RecordType.SYSTEM_PROMPT:
            return Step("system", record, text)
        case RecordType.SUMMARY:
            return Step("user", record, f"Summary of the earlier conversation:\n\n{text}")
        case RecordType.MODEL_RESPONSE:
            return Step("text", record, text)
        case RecordType.REASONING:
            return Step("reasoning", record, text)
        case RecordType.TOOL_CALL:
            if record.partial_response_id is not None and not is_json(text):
                # It never ran, and servers that parse the arguments would refuse every request.
                text = "{}"
            call_id = sendable_id(record, id_limit)
            return Step("call", record, text or "{}", call_id, sendable_name(record.name))
        case RecordType.TOOL_OUTPUT:
            if continued and record.call_id:
                return Step("output", record, text, sendable_id(record, id_limit))
            source = f" of {record.name}" if record.name else ""
            return Step("user", record, f"Output{mended(source)} (a tool):\n\n{text}")
        case _:
            return Step("user", record, text)


def _output(call: Step, answer: Record | None) -> Step:
    if answer is not None:
        return Step("output", answer, mended(answer.content), call.call_id, call.name)
    cut = call.record.partial_response_id is not None or call.record.error
    return Step("output", call.record, NOT_RUN if cut else UNKNOWN_OUTCOME, call.call_id, call.name)


def _answers(records: Sequence[Record]) -> dict[int, Record]:
    """Outputs by the index of their call; ids may be used again, or be missing."""
    answers: dict[int, Record] = {}
    # Both may name what was answered meanwhile, by way of the other.
    in_order: deque[int] = deque()
    by_id: dict[str | None, deque[int]] = {}
    for index, record in enumerate(records):
        if record.source is RecordType.TOOL_CALL:
            in_order.append(index)
            by_id.setdefault(record.call_id, deque()).append(index)
        elif record.source is RecordType.TOOL_OUTPUT:
            waiting = by_id.get(record.call_id, deque()) if record.call_id else in_order
            while waiting:
                found = waiting.popleft()
                if found not in answers:
                    answers[found] = record
                    break
    return answers


def _goes_with(record: Record, call: Record) -> bool:
    """Whether *record* belongs to the reply that made *call*, so that outputs can wait."""
    return (
        record.source in (RecordType.MODEL_RESPONSE, RecordType.REASONING, RecordType.TOOL_CALL)
        and record.turn_id == call.turn_id
        and record.response_id == call.response_id
    )
