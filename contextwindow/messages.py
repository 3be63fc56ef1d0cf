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
import re
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Final, Literal, TypeAlias

from contextwindow import media_types
from contextwindow.attachments import from_base64, from_url, read_attachment
from contextwindow.errors import ConfigError, ModelError
from contextwindow.models import anthropic_decoder, chat_decoder
from contextwindow.models.anthropic_decoder import AnthropicDecoder
from contextwindow.models.anthropic_messages import GO_ON, OPENING, anthropic_messages
from contextwindow.models.base import Delta, Item
from contextwindow.models.chat_decoder import ChatDecoder
from contextwindow.models.chat_messages import chat_messages
from contextwindow.models.openai_attachments import PDF, SOUNDS, chat_problem
from contextwindow.parts import SOURCES, Part
from contextwindow.records import Attachment, NewRecord, Record, RecordType
from contextwindow.store.checks import check_json, check_text, shown

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
_PICTURES: Final = ("image/png", "image/jpeg", "image/gif", "image/webp")
_USUAL_PICTURE: Final = "image/jpeg"
# Of replies alone.  What a server tool is called changes; how its blocks are called does not.
_SERVER_PARTS: Final = ("_tool_use", "_tool_result")
_SERVER_BLOCKS: Final = ("container_upload", "compaction")

_log = logging.getLogger("contextwindow")

# It goes back as it came; other names are mended when they are sent.
_NAME: Final = re.compile(r"[a-zA-Z0-9_-]{1,128}")

Object = dict[str, Any]


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
        for text in _texts(system, "system") if system is not None else ():
            if text:
                self.records.append(
                    NewRecord(source=RecordType.SYSTEM_PROMPT, content=text, where="system")
                )

    def add(self, at: int, message: Object, *, last: bool) -> None:
        """Take the message at the index *at*."""
        raise NotImplementedError

    def _drop(self, value: Object, *keys: str) -> None:
        """Note that the members *keys* of *value* are left out."""
        self.dropped.update(key for key in keys if not _is_empty(value.get(key)))

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
                _only(message, "role", "content", "name")
                speaker = _speaker(message)
                for text in filter(None, _texts(message.get("content"), "content")):
                    self._write(RecordType.SYSTEM_PROMPT, speaker + text)
                    speaker = ""
            case "user":
                _only(message, "role", "content", "name")
                parts = _spoken(message, list(_parts(message.get("content"), self._part)))
                self._prompts(parts, behind=True)
            case "assistant":
                self._assistant(message)
            case "tool":
                _only(message, "role", "content", "tool_call_id", "name")
                text = "".join(_texts(message.get("content"), "content"))
                self._answer(_text(message, "tool_call_id", "the message"), text)
            case "function":
                self._function(message)
            case role:
                raise ConfigError(f"the role {shown(role)} is not known")

    def _assistant(self, message: Object) -> None:
        _only(message, "role", "content", *_OPENAI_KEYS)
        self._drop(message, "audio", "reasoning_details")
        said: Object = {
            "content": "",
            "refusal": _text(message, "refusal", "the message", default=""),
        }
        for key in ("reasoning", "reasoning_content"):
            said[key] = _text(message, key, "the message", default="")
        for kind, text in _said(message.get("content")):
            said[kind] += text
        if not said["content"] and message.get("audio"):
            said["content"] = _text(_object(message, "audio"), "transcript", "audio", default="")
        if said["content"]:
            said["content"] = _speaker(message) + said["content"]
        calls = message.get("tool_calls") or []
        if not isinstance(calls, list):
            raise ConfigError(f"tool_calls must be a list, not {shown(calls)}")
        if message.get("function_call"):
            calls = [*calls, self._legacy_call(_object(message, "function_call"))]
        said["tool_calls"] = [_checked_call(call, number) for number, call in enumerate(calls)]
        decoder = ChatDecoder("the message")
        body = {"choices": [{"message": said, "finish_reason": "stop"}]}
        self._reply((*decoder.feed_body(body), *decoder.end()), chat_decoder.API)

    def _legacy_call(self, call: Object) -> Object:
        """A call of the older form in the newer one, with an id that is made up."""
        call_id = f"function_call_{self._at}"
        name = _text(call, "name", "a function call")
        self._legacy.setdefault(name, deque()).append(call_id)
        return {"id": call_id, "type": "function", "function": call}

    def _function(self, message: Object) -> None:
        """Take an output of the older form: it answers the first open call of its name."""
        _only(message, "role", "content", "name")
        name, content = _text(message, "name", "the message"), message.get("content")
        text = "" if content is None else "".join(_texts(content, "content"))
        if not self._legacy.get(name):
            raise ConfigError(f"no open function call has the name {name!r:.60}")
        self._answer(self._legacy[name].popleft(), text)

    def _part(self, part: Object) -> str | Attachment:
        match part.get("type"):
            case "text":
                _only(part, "type", "text")
                return _text(part, "text", "a text")
            case "image_url":
                _only(part, "type", "image_url")
                image = _object(part, "image_url")
                _only(image, "url", "detail")
                return _picture(from_url(_text(image, "url", "an image"), _USUAL_PICTURE))
            case "input_audio":
                _only(part, "type", "input_audio")
                sound = _object(part, "input_audio")
                _only(sound, "data", "format")
                kinds = {ending: media_type for media_type, ending in SOUNDS.items()}
                media_type = kinds.get(_text(sound, "format", "a sound"))
                if media_type is None:
                    raise ConfigError(f"the audio format {shown(sound['format'])} is not known")
                return from_base64(_text(sound, "data", "a sound"), media_type)
            case "file":
                _only(part, "type", "file")
                file = _object(part, "file")
                _only(file, "filename", "file_data")
                name = _text(file, "filename", "a file", default="")
                return from_url(_text(file, "file_data", "a file"), PDF, name)
            case kind:
                raise ConfigError(f"a part of the type {shown(kind)} is not known")


class _Anthropic(_Reader):
    def add(self, at: int, message: Object, *, last: bool) -> None:
        self._at = at
        role, content = message.get("role"), message.get("content")
        if role == "user":
            _only(message, "role", "content")
            goes_on = last and _is_ours(content, GO_ON)
            opens = at == 0 and _is_ours(content, OPENING)
            if not goes_on and not opens:
                self._user(content)
        elif role == "assistant":
            _only(message, "role", "content")
            if _is_empty(content):
                return
            if isinstance(content, str):
                reply = f"imported_{at}"
                self._write(RecordType.MODEL_RESPONSE, content, response_id=reply)
                return
            body = {"content": list(_parts(content, _checked_block)), "stop_reason": "end_turn"}
            self._reply(AnthropicDecoder("the message").feed_body(body), anthropic_decoder.API)
        else:
            raise ConfigError(f"the role {shown(role)} is not known")

    def _user(self, content: object) -> None:
        asked = [part for part in _parts(content, self._part) if part is not None]
        if asked:
            self._prompts(asked, behind=False)

    def _part(self, block: Object) -> str | Attachment | None:
        """What the user says by *block*; None for a tool's output, which is written."""
        match block.get("type"):
            case "text":
                _only(block, "type", "text", "cache_control")
                return _text(block, "text", "a text")
            case "image":
                _only(block, "type", "source", "cache_control")
                return _picture(_from_source(_object(block, "source"), "", _USUAL_PICTURE))
            case "document":
                _only(block, "type", "source", "title", "context", "citations", "cache_control")
                self._drop(block, "context", "citations")
                title = _text(block, "title", "a document", default="")
                return _from_source(_object(block, "source"), title, PDF)
            case "tool_result":
                _only(block, "type", "tool_use_id", "content", "is_error", "cache_control")
                failed = block.get("is_error") or False
                if not isinstance(failed, bool):
                    raise ConfigError(f"is_error must be true or false, not {shown(failed)}")
                text = _output(block.get("content"))
                self._answer(_text(block, "tool_use_id", "a tool's output"), text, error=failed)
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


def _only(value: Object, *known: str) -> None:
    """Refuse what would be lost; what is empty says nothing.

    Raises:
        ConfigError: *value* has other members than the *known* ones.
    """
    for key, member in value.items():
        if key not in known and not _is_empty(member):
            raise ConfigError(f"{key!r:.60} is not known here")


def _is_empty(value: object) -> bool:
    return value in (None, [], {}, "")


def _text(value: Object, key: str, what: str, *, default: str | None = None) -> str:
    """The text under *key*; a *default* stands for what is missing or null.

    Raises:
        ConfigError: it is no text, or missing or empty where there is no default.
    """
    text = value.get(key)
    if text is None and default is not None:
        return default
    return check_text(text, f"{key!r} of {what}", empty=default is not None or key == "text")


def _object(value: Object, key: str) -> Object:
    found = value.get(key)
    if isinstance(found, dict):
        return found
    raise ConfigError(f"{key!r} must be an object, not {shown(found)}")


def _parts(content: object, read: Callable[[Object], Any]) -> Iterator[Any]:
    """What *read* makes of each part; a text stands for itself."""
    if isinstance(content, str):
        yield content
        return
    if not isinstance(content, list) or not content:
        raise ConfigError(f"'content' must be a text or a list, not {shown(content)}")
    for part in content:
        if not isinstance(part, dict):
            raise ConfigError(f"a part must be an object, not {shown(part)}")
        yield read(part)


def _speaker(message: Object) -> str:
    """What stands in front of the words of a message whose ``name`` says who they are from."""
    name = " ".join(_text(message, "name", "the message", default="").split())
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


def _texts(content: object, what: str) -> Iterator[str]:
    """The texts of what may hold nothing else."""

    def read(part: Object) -> str:
        if part.get("type") != "text":
            raise ConfigError(f"{what} may hold text alone, not {shown(part.get('type'))}")
        _only(part, "type", "text", "cache_control")
        return _text(part, "text", what)

    if content == []:
        return iter(())
    return _parts(content, read)


def _output(content: object) -> str:
    """The text of a tool's output; of what is no text a note says that it was there."""
    notes: list[str] = []

    def read(part: Object) -> str:
        kind = part.get("type")
        if kind in ("image", "document"):
            media_type = _object(part, "source").get("media_type")
            what = media_type if isinstance(media_type, str) else kind
            notes.append(f"[attachment ({what:.60}) left out: a tool's output holds text alone]")
            return ""
        return "".join(_texts([part], "a tool's output"))

    text = "" if _is_empty(content) else "".join(_parts(content, read))
    return "\n\n".join(filter(None, [text, *notes]))


def _said(content: object) -> Iterator[tuple[str, str]]:
    """Texts and refusals of an assistant's message."""

    def read(part: Object) -> tuple[str, str]:
        kind = part.get("type")
        if kind == "text":
            _only(part, "type", "text")
            return "content", _text(part, "text", "a text")
        if kind == "refusal":
            _only(part, "type", "refusal")
            return "refusal", _text(part, "refusal", "a refusal")
        raise ConfigError(f"a part of the type {shown(kind)} is not known")

    if isinstance(content, str):
        return iter((("content", content),))
    return _parts(content, read) if content else iter(())


def _checked_call(call: object, number: int) -> Object:
    """A tool call for the decoder, its place in the reply said."""
    if not isinstance(call, dict):
        raise ConfigError(f"a tool call must be an object, not {shown(call)}")
    _text(call, "id", "a tool call")
    kind = call.get("type", "function")
    if kind not in ("function", "custom"):
        raise ConfigError(f"a tool call of the type {shown(kind)} is not known")
    given = _object(call, kind)
    _text(given, "name", "a tool call")
    arguments = "arguments" if kind == "function" else "input"
    _only(given, "name", arguments)
    _text(given, arguments, "a tool call", default="")
    return {**call, "index": number}


def _checked_block(block: Object) -> Object:
    """A block of a reply for the decoder, which keeps it as it is."""
    kind = block.get("type")
    match kind:
        case "text":
            _text(block, "text", "a text")
        case "thinking":
            _text(block, "thinking", "a thought", default="")
            _text(block, "signature", "a thought", default="")
        case "redacted_thinking":
            _text(block, "data", "a thought")
        case "tool_use":
            _text(block, "id", "a tool call")
            if _NAME.fullmatch(_text(block, "name", "a tool call")) is None:
                raise ConfigError(f"{block['name']!r:.60} is no name that a tool can have")
            _object(block, "input")
        case str() if kind.endswith(_SERVER_PARTS):
            _text(block, "id" if kind.endswith("use") else "tool_use_id", "a server's tool")
        case _ if kind not in _SERVER_BLOCKS:
            raise ConfigError(f"a block of the type {shown(kind)} is not known")
    return {key: member for key, member in block.items() if key != "cache_control"}


def _from_source(source: Object, name: str, usual: str) -> Attachment:
    """The attachment of an Anthropic block."""
    match source.get("type"):
        case "base64":
            _only(source, "type", "media_type", "data")
            media_type = _text(source, "media_type", "a source")
            return from_base64(_text(source, "data", "a source"), media_type, name)
        case "text":
            _only(source, "type", "media_type", "data")
            data = _text(source, "data", "a source").encode()
            return read_attachment(Attachment(media_type=media_types.TEXT, name=name, data=data))
        case "url":
            _only(source, "type", "url")
            return from_url(_text(source, "url", "a source"), usual, name)
        case kind:
            raise ConfigError(f"a source of the type {shown(kind)} is not known")


def _picture(found: Attachment) -> Attachment:
    """*found* as an image that all providers take.

    Raises:
        ConfigError: its bytes, or the name in its URL, are those of something else.
    """
    said = found.media_type
    if found.data is None and not said.startswith("image/"):
        # The name of a page or program, which gives a picture all the same.
        return replace(found, media_type=_USUAL_PICTURE)
    known = said if found.data is None else media_types.by_content(found.data)
    if said not in _PICTURES or known != said:
        raise ConfigError(f"an image must be a PNG, JPEG, GIF or WebP; this is none, but {said}")
    return found


def _is_ours(content: object, text: str) -> bool:
    """Whether *content* is *text* in the form in which we give it out; a user may say it too."""
    return content == [{"type": "text", "text": text}]
