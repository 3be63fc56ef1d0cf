"""Contexts as the message lists of OpenAI's Chat Completions and Anthropic's Messages API.

Out of a context they are built by what builds the adapters' requests; into one they are read by
what decodes the adapters' replies.  Here is only what neither of them does: telling the two forms
apart, and reading what a user and tools say.

Kept out of a context: ``cache_control``, ``detail`` and ``annotations``, which say how to process a
part or where it is from and not what it is, and the two messages that Anthropic's rules make us put
around a conversation.  What else is lost is logged; whatever is not known is refused.
"""

from __future__ import annotations

import logging
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Final, Literal, TypeAlias

from contextwindow.attachments import from_base64, from_url
from contextwindow.errors import ConfigError, ModelError
from contextwindow.message_parts import (
    USUAL_PICTURE,
    Object,
    checked_block,
    checked_call,
    each_part,
    from_source,
    is_empty,
    object_in,
    only,
    output_in,
    picture,
    said_in,
    text_in,
    texts_in,
)
from contextwindow.models import anthropic_decoder, chat_decoder
from contextwindow.models.anthropic_decoder import AnthropicDecoder
from contextwindow.models.anthropic_messages import GO_ON, OPENING, anthropic_messages
from contextwindow.models.base import Delta, Item
from contextwindow.models.chat_decoder import ChatDecoder
from contextwindow.models.chat_messages import chat_messages
from contextwindow.models.openai_attachments import PDF, SOUNDS, chat_problem
from contextwindow.parts import SOURCES, Part
from contextwindow.records import Attachment, NewRecord, Record, RecordType
from contextwindow.store.checks import check_json, shown

MessageFormat: TypeAlias = Literal["openai", "anthropic"]

FORMATS: Final = ("openai", "anthropic")

_OPENAI_ROLES: Final = ("system", "developer", "tool", "function")
_OPENAI_KEYS: Final = frozenset(
    {
        *("tool_calls", "function_call", "refusal", "reasoning", "reasoning_content"),
        *("reasoning_details", "audio", "annotations", "name"),
    }
)
_OPENAI_PARTS: Final = frozenset({"image_url", "input_audio", "file", "refusal"})
_ANTHROPIC_PARTS: Final = frozenset({"image", "document", "thinking", "redacted_thinking"})

_log = logging.getLogger("contextwindow")


def export_messages(records: Sequence[Record], form: str) -> dict[str, Any]:
    """Live *records* as arguments of the provider's own SDK.

    Raises:
        ConfigError: *form* is not known.
    """
    if form == "openai":
        problem = partial(chat_problem, "OpenAI", hosted=True)
        return {"messages": chat_messages(records, problem, hosted=True)}
    if form == "anthropic":
        messages, system = anthropic_messages(records, "Claude")
        return {"messages": messages, "system": system} if system else {"messages": messages}
    raise ConfigError(f"format must be one of {', '.join(FORMATS)}, not {shown(form)}")


def import_messages(value: object) -> list[NewRecord]:
    """The records that a list of messages stands for.

    Args:
        value: the list, or a dict that has it under ``"messages"`` and may have a ``"system"``;
            what else an SDK is given beside them (``model``, ``tools`` …) is no conversation.

    Raises:
        ConfigError: something in it is not known, or could not be sent; the error says where.
    """
    messages, system = _opened(value)
    for at, message in enumerate(messages):
        _located(at, partial(check_json, message, "it"))
    check_json(system, "system")
    reader = (_Anthropic if _is_anthropic(messages, system) else _OpenAI)()
    reader.add_system(system)
    for at, message in enumerate(messages):
        _located(at, partial(reader.add, at, message, last=at == len(messages) - 1))
    if reader.dropped:
        counts = ", ".join(f"{what} ({count})" for what, count in sorted(reader.dropped.items()))
        _log.warning("import_messages: left out what no context holds: %s", counts)
    return reader.records


class _Reader:
    """Messages of one form while they are read.

    Attributes:
        dropped: what was left out, and how often.
    """

    def __init__(self) -> None:
        self.records: list[NewRecord] = []
        self.dropped: Counter[str] = Counter()
        self._at = 0
        # Names of the calls without an output, by their ids, which may be used again.
        self._waiting: dict[str, deque[str]] = {}

    def add_system(self, system: object) -> None:
        """Take the system prompt that stands beside the messages."""
        for text in texts_in(system, "system") if system is not None else ():
            if text:
                self.records.append(
                    NewRecord(source=RecordType.SYSTEM_PROMPT, content=text, where="system")
                )

    def add(self, at: int, message: Object, *, last: bool) -> None:
        """Take the message at the index *at*."""
        raise NotImplementedError

    def _drop(self, value: Object, *keys: str) -> None:
        """Note that the members *keys* of *value* are left out."""
        self.dropped.update(key for key in keys if not is_empty(value.get(key)))

    def _write(self, source: RecordType, content: str, **values: Any) -> None:
        where = f"messages[{self._at}]"
        self.records.append(NewRecord(source=source, content=content, where=where, **values))

    def _prompts(self, parts: Iterable[str | Attachment], *, behind: bool) -> None:
        """Write one prompt for each text, with the attachments that stand beside it.

        Args:
            behind: attachments belong to the text in front of them.
        """
        for text, files in _grouped(list(parts), behind=behind):
            self._write(RecordType.PROMPT, text, attachments=tuple(files))

    def _reply(self, items: Iterable[Item], api: str) -> None:
        """Write what a decoder made of a reply, as a turn would."""
        parts: dict[int, Part] = {}
        for item in items:
            part = parts.get(item.part)
            if part is None:
                part = parts[item.part] = Part(item.part, item.kind, item.call_id, item.name)
            if isinstance(item, Delta):
                part.received(item.text)
                part.append(item.text)
                continue
            part.append(part.rest(item.content))
            part.end(item, api)
        asked: set[str] = set()
        for part in parts.values():
            closed = part.close(None)
            if not closed.content and closed.payload is None and part.kind != "tool_call":
                continue
            if part.kind == "tool_call":
                if part.call_id in asked:
                    raise ConfigError(f"two tool calls have the id {part.call_id!r:.60}")
                asked.add(part.call_id)
                self._waiting.setdefault(part.call_id, deque()).append(part.name)
            self._write(
                SOURCES[part.kind],
                closed.content,
                # Nothing else tells which records are one message.
                response_id=f"imported_{self._at}",
                call_id=closed.call_id,
                name=closed.name,
                payload=closed.payload,
            )

    def _answer(self, call_id: str, output: str, *, error: bool = False) -> None:
        """Write an output.

        Raises:
            ConfigError: it answers no call: the provider would refuse the list.
        """
        waiting = self._waiting.get(call_id)
        if not waiting:
            raise ConfigError(f"no open tool call has the id {call_id!r:.60}")
        name = waiting.popleft()
        self._write(RecordType.TOOL_OUTPUT, output, call_id=call_id, name=name, error=error)


class _OpenAI(_Reader):
    def __init__(self) -> None:
        super().__init__()
        # Calls of the older form, which have no ids, by the names of their functions.
        self._legacy: dict[str, deque[str]] = {}

    def add(self, at: int, message: Object, *, last: bool) -> None:
        self._at = at
        match message.get("role"):
            case "system" | "developer":
                only(message, "role", "content", "name")
                speaker = _speaker(message)
                for text in filter(None, texts_in(message.get("content"), "content")):
                    self._write(RecordType.SYSTEM_PROMPT, speaker + text)
                    speaker = ""
            case "user":
                only(message, "role", "content", "name")
                parts = _spoken(message, list(each_part(message.get("content"), self._part)))
                self._prompts(parts, behind=True)
            case "assistant":
                self._assistant(message)
            case "tool":
                only(message, "role", "content", "tool_call_id", "name")
                text = "".join(texts_in(message.get("content"), "content"))
                self._answer(text_in(message, "tool_call_id", "the message"), text)
            case "function":
                self._function(message)
            case role:
                raise ConfigError(f"the role {shown(role)} is not known")

    def _assistant(self, message: Object) -> None:
        only(message, "role", "content", *_OPENAI_KEYS)
        self._drop(message, "audio", "reasoning_details")
        said: Object = {
            "content": "",
            "refusal": text_in(message, "refusal", "the message", default=""),
        }
        for key in ("reasoning", "reasoning_content"):
            said[key] = text_in(message, key, "the message", default="")
        for kind, text in said_in(message.get("content")):
            said[kind] += text
        if not said["content"] and message.get("audio"):
            said["content"] = text_in(
                object_in(message, "audio"), "transcript", "audio", default=""
            )
        if said["content"]:
            said["content"] = _speaker(message) + said["content"]
        calls = message.get("tool_calls") or []
        if not isinstance(calls, list):
            raise ConfigError(f"tool_calls must be a list, not {shown(calls)}")
        if message.get("function_call"):
            calls = [*calls, self._legacy_call(object_in(message, "function_call"))]
        said["tool_calls"] = [checked_call(call, number) for number, call in enumerate(calls)]
        decoder = ChatDecoder("the message")
        body = {"choices": [{"message": said, "finish_reason": "stop"}]}
        self._reply((*decoder.feed_body(body), *decoder.end()), chat_decoder.API)

    def _legacy_call(self, call: Object) -> Object:
        """A call of the older form in the newer one, with an id that is made up."""
        call_id = f"function_call_{self._at}"
        name = text_in(call, "name", "a function call")
        self._legacy.setdefault(name, deque()).append(call_id)
        return {"id": call_id, "type": "function", "function": call}

    def _function(self, message: Object) -> None:
        """Take an output of the older form: it answers the first open call of its name."""
        only(message, "role", "content", "name")
        name, content = text_in(message, "name", "the message"), message.get("content")
        text = "" if content is None else "".join(texts_in(content, "content"))
        if not self._legacy.get(name):
            raise ConfigError(f"no open function call has the name {name!r:.60}")
        self._answer(self._legacy[name].popleft(), text)

    def _part(self, part: Object) -> str | Attachment:
        match part.get("type"):
            case "text":
                only(part, "type", "text")
                return text_in(part, "text", "a text")
            case "image_url":
                only(part, "type", "image_url")
                image = object_in(part, "image_url")
                only(image, "url", "detail")
                return picture(from_url(text_in(image, "url", "an image"), USUAL_PICTURE))
            case "input_audio":
                only(part, "type", "input_audio")
                sound = object_in(part, "input_audio")
                only(sound, "data", "format")
                kinds = {ending: media_type for media_type, ending in SOUNDS.items()}
                media_type = kinds.get(text_in(sound, "format", "a sound"))
                if media_type is None:
                    raise ConfigError(f"the audio format {shown(sound['format'])} is not known")
                return from_base64(text_in(sound, "data", "a sound"), media_type)
            case "file":
                only(part, "type", "file")
                file = object_in(part, "file")
                only(file, "filename", "file_data")
                name = text_in(file, "filename", "a file", default="")
                return from_url(text_in(file, "file_data", "a file"), PDF, name)
            case kind:
                raise ConfigError(f"a part of the type {shown(kind)} is not known")


class _Anthropic(_Reader):
    def add(self, at: int, message: Object, *, last: bool) -> None:
        self._at = at
        role, content = message.get("role"), message.get("content")
        if role == "user":
            only(message, "role", "content")
            goes_on = last and _is_ours(content, GO_ON)
            opens = at == 0 and _is_ours(content, OPENING)
            if not goes_on and not opens:
                self._user(content)
        elif role == "assistant":
            only(message, "role", "content")
            if is_empty(content):
                return
            if isinstance(content, str):
                reply = f"imported_{at}"
                self._write(RecordType.MODEL_RESPONSE, content, response_id=reply)
                return
            body = {"content": list(each_part(content, checked_block)), "stop_reason": "end_turn"}
            self._reply(AnthropicDecoder("the message").feed_body(body), anthropic_decoder.API)
        else:
            raise ConfigError(f"the role {shown(role)} is not known")

    def _user(self, content: object) -> None:
        asked = [part for part in each_part(content, self._part) if part is not None]
        if asked:
            self._prompts(asked, behind=False)

    def _part(self, block: Object) -> str | Attachment | None:
        """What the user says by *block*; None for a tool's output, which is written."""
        match block.get("type"):
            case "text":
                only(block, "type", "text", "cache_control")
                return text_in(block, "text", "a text")
            case "image":
                only(block, "type", "source", "cache_control")
                return picture(from_source(object_in(block, "source"), "", USUAL_PICTURE))
            case "document":
                only(block, "type", "source", "title", "context", "citations", "cache_control")
                self._drop(block, "context", "citations")
                title = text_in(block, "title", "a document", default="")
                return from_source(object_in(block, "source"), title, PDF)
            case "tool_result":
                only(block, "type", "tool_use_id", "content", "is_error", "cache_control")
                failed = block.get("is_error") or False
                if not isinstance(failed, bool):
                    raise ConfigError(f"is_error must be true or false, not {shown(failed)}")
                text = output_in(block.get("content"))
                self._answer(text_in(block, "tool_use_id", "a tool's output"), text, error=failed)
                return None
            case kind:
                raise ConfigError(f"a block of the type {shown(kind)} is not known")


def _opened(value: object) -> tuple[list[Object], object]:
    """The messages and the system prompt of *value*."""
    system: object = None
    if isinstance(value, Mapping):
        if "messages" not in value:
            raise ConfigError("a dict of messages must have them under 'messages'")
        others = [shown(key) for key in value if key not in ("messages", "system")]
        if others:
            _log.info("import_messages: no part of a conversation: %.300s", ", ".join(others))
        system, value = value.get("system"), value["messages"]
    if isinstance(value, (str, bytes)) or not isinstance(value, Sequence):
        raise ConfigError(f"messages must be a list of dicts, not {shown(value)}")
    for at, message in enumerate(value):
        if not isinstance(message, dict):
            raise ConfigError(f"messages[{at}]: it must be a dict, not {shown(message)}")
    return list(value), system


def _located(at: int, work: Callable[[], object]) -> None:
    """Run *work* on the message at the index *at*, which its errors are to name."""
    try:
        work()
    except (ConfigError, ModelError) as error:
        raise ConfigError(f"messages[{at}]: {error}") from error
    except RecursionError as error:
        raise ConfigError(f"messages[{at}]: it is nested too deeply") from error


def _is_anthropic(messages: list[Object], system: object) -> bool:
    """Whether the messages are Anthropic's; what is in neither form's own words is read so too.

    Raises:
        ConfigError: they are of both forms.
    """
    marks: dict[str, str] = {} if system is None else {"anthropic": "'system'"}
    for at, message in enumerate(messages):
        for form, what in _marks(message):
            marks.setdefault(form, f"{what} of messages[{at}]")
    if len(marks) == 2:
        raise ConfigError(
            f"the messages are in two forms: {marks['openai']} is OpenAI's, "
            f"{marks['anthropic']} is Anthropic's"
        )
    return "openai" not in marks


def _marks(message: Object) -> Iterator[tuple[str, str]]:
    """What tells the form of *message*: the form, and by what."""
    if message.get("role") in _OPENAI_ROLES:
        yield "openai", f"the role {message['role']!r}"
    for key in _OPENAI_KEYS & message.keys():
        if message[key]:
            yield "openai", f"{key!r}"
    content = message.get("content")
    for part in content if isinstance(content, list) else ():
        kind = part.get("type") if isinstance(part, dict) else None
        if not isinstance(kind, str):
            continue
        if kind in _OPENAI_PARTS:
            yield "openai", f"the part {kind!r}"
        elif kind in _ANTHROPIC_PARTS or kind.endswith(("tool_use", "tool_result")):
            yield "anthropic", f"the block {kind!r}"


def _speaker(message: Object) -> str:
    """What stands in front of the words of a message whose ``name`` says who they are from."""
    name = " ".join(text_in(message, "name", "the message", default="").split())
    return f"{name}: " if name else ""


def _spoken(message: Object, parts: list[str | Attachment]) -> list[str | Attachment]:
    """*parts* of what a user says, in front of their first text who it is."""
    speaker = _speaker(message)
    if not speaker:
        return parts
    for at, part in enumerate(parts):
        if isinstance(part, str):
            return [*parts[:at], speaker + part, *parts[at + 1 :]]
    return [speaker.rstrip(), *parts]


def _grouped(
    parts: list[str | Attachment], *, behind: bool
) -> Iterator[tuple[str, list[Attachment]]]:
    """Each text with its attachments.

    Where they stand *behind* it, those in front of the first text are its own too.  Else those that
    no text follows are a prompt of their own, or Anthropic's would come back in another order.
    """
    groups: list[tuple[str | None, list[Attachment]]] = []
    for part in parts if behind else reversed(parts):
        if isinstance(part, Attachment):
            if not groups:
                groups.append((None, []))
            groups[-1][1].append(part)
        elif behind and groups and groups[-1][0] is None:
            groups[-1] = (part, groups[-1][1])
        else:
            groups.append((part, []))
    for text, files in groups if behind else reversed(groups):
        yield text or "", files if behind else files[::-1]


def _is_ours(content: object, text: str) -> bool:
    """Whether *content* is *text* in the form in which we give it out; a user may say it too."""
    return content == [{"type": "text", "text": text}]
