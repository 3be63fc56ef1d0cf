"""From records to the ``messages`` of a Chat Completions request."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

from contextwindow.models.chat_decoder import API
from contextwindow.models.openai_attachments import chat_part
from contextwindow.models.steps import Step, native_items, refusal_of, steps
from contextwindow.records import Attachment, Record

_ID_LIMIT: Final = 40


def chat_messages(
    records: Sequence[Record],
    problem: Callable[[Attachment], str | None],
    *,
    hosted: bool,
    prefill: bool = False,
) -> list[dict[str, Any]]:
    """The messages that send *records*.

    Args:
        problem: why an attachment cannot be taken, or None.
        hosted: OpenAI or Azure answers, which know refusals from texts.
        prefill: the last text is an unfinished reply that the model shall continue.
    """
    messages = _Messages(problem, native_refusals=hosted)
    for step in steps(records, id_limit=_ID_LIMIT):
        messages.add(step)
    return messages.done(prefill)


class _Messages:
    """The messages of a request while they are put together."""

    def __init__(
        self, problem: Callable[[Attachment], str | None], *, native_refusals: bool
    ) -> None:
        self._problem = problem
        self._native_refusals = native_refusals
        self._system: list[dict[str, Any]] = []
        self._messages: list[dict[str, Any]] = []
        # The reply that the last message is a part of, or None when it is no reply.
        self._reply: tuple[str | None, str | None] | None = None

    def add(self, step: Step) -> None:
        """Append what *step* becomes."""
        if step.kind == "system":
            self._system.append({"role": "system", "content": step.text})
        elif step.kind == "text":
            self._add_text(step)
        elif step.kind == "call":
            message = self._assistant(step.record)
            message.setdefault("tool_calls", []).append(_tool_call(step))
        elif step.kind == "output":
            self._append({"role": "tool", "tool_call_id": step.call_id, "content": step.text})
        elif step.kind == "user":
            self._append({"role": "user", "content": self._asked(step)})

    def done(self, prefill: bool) -> list[dict[str, Any]]:
        """All messages, system prompts first."""
        last = self._messages[-1] if self._messages else None
        if prefill and last is not None and last["role"] == "assistant":
            # Servers' templates trim it or fail; the caller expects the space to come again.
            last["content"] = str(last.get("content") or "").rstrip()
        return self._system + self._messages

    def _asked(self, step: Step) -> str | list[dict[str, Any]]:
        attached = step.record.attachments
        if not attached:
            return step.text
        texts = [{"type": "text", "text": step.text}] if step.text else []
        return [*texts, *(chat_part(one, self._problem(one)) for one in attached)]

    def _add_text(self, step: Step) -> None:
        refusal = refusal_of(step.record)
        if refusal and self._native_refusals:
            content = [{"type": "refusal", "refusal": refusal}]
            self._append({"role": "assistant", "content": content})
        text = step.text if self._native_refusals else step.text + refusal
        if not text:
            return
        message = self._messages[-1] if self._reply == _reply(step.record) else None
        if message is not None and "tool_calls" in message:
            # Outputs must follow the message with the calls at once: no message between.
            message["content"] = message.get("content", "") + text
            return
        self._append({"role": "assistant", "content": text})
        self._reply = _reply(step.record)

    def _assistant(self, record: Record) -> dict[str, Any]:
        if self._reply != _reply(record):
            self._append({"role": "assistant"})
            self._reply = _reply(record)
        return self._messages[-1]

    def _append(self, message: dict[str, Any]) -> None:
        self._messages.append(message)
        self._reply = None


def _reply(record: Record) -> tuple[str | None, str | None]:
    return (record.turn_id, record.response_id)


def _tool_call(step: Step) -> dict[str, Any]:
    call: dict[str, Any] = {"id": step.call_id, "type": "function"}
    for fragment in native_items(step.record, API) or ():
        call.update(fragment)
    if call["type"] == "custom":
        call["custom"] = {"name": step.name, "input": step.text}
    else:
        call["function"] = {"name": step.name, "arguments": step.text}
    return call
