"""Server-sent events: from the bytes of an answer to parsed JSON, without I/O.

Rules: WHATWG HTML, section 9.2 "Server-sent events" (read 2026-11).  ``id`` and ``retry`` are
ignored: none of our providers resumes by them.
"""

from __future__ import annotations

import json
import re
from typing import Any, Final

import jiter

from contextwindow.errors import InvalidRequest, StreamInterrupted
from contextwindow.models.base import Body

Event = tuple[bytes, bytes]
"""Name and data of one event; ``b""`` where the server gave no name."""

DONE: Final = "[DONE]"
"""What OpenAI's chat API and its imitators send as the last event; it is no JSON."""

_BOM: Final = b"\xef\xbb\xbf"
# Bytes of the shortest event with data worth parsing: waiting for them delays nobody.
_SHORTEST: Final = 8
_FIELD: Final = re.compile(rb":|(?:data|event|id|retry)(?:[:\r\n]|$)")
# Python refuses to print numbers of thousands of digits.
_LARGEST: Final = 10**100
_UNSENDABLE: Final = re.compile("[\0\ud800-\udfff]")


class EventSplitter:
    """Cuts a stream of bytes into events, wherever the network has cut it."""

    def __init__(self) -> None:
        self._start = b""
        self._started = False
        self._after_cr = False
        # Pieces of an event whose end has not come: joined once, so that an event of 10 MB in
        # small pieces costs linear time.
        self._pieces: list[bytes] = []

    def feed(self, chunk: bytes) -> list[Event]:
        """Events that *chunk* completes.  What has no blank line behind it at EOF is dropped."""
        if not self._started:
            chunk = self._without_bom(chunk)
        if self._after_cr or b"\r" in chunk:
            chunk = self._with_line_feeds(chunk)
        if not chunk:
            return []
        pieces = self._pieces
        if pieces:
            if b"\n\n" not in chunk and not (chunk[0] == 10 and pieces[-1][-1] == 10):
                pieces.append(chunk)
                return []
            pieces.append(chunk)
            chunk = b"".join(pieces)
            pieces.clear()
        blocks = chunk.split(b"\n\n")
        rest = blocks.pop()
        if rest:
            pieces.append(rest)
        return self._events(blocks)

    def _events(self, blocks: list[bytes]) -> list[Event]:
        events: list[Event] = []
        for block in blocks:
            # The two shapes that every provider sends: no need to walk through their lines.
            if block.startswith(b"data: ") and b"\n" not in block:
                events.append((b"", block[6:]))
                continue
            if block.startswith(b"event: "):
                end = block.find(b"\n")
                if block.startswith(b"data: ", end + 1) and block.find(b"\n", end + 1) < 0:
                    events.append((block[7:end], block[end + 7 :]))
                    continue
            event = _event(block)
            if event is not None:
                events.append(event)
        return events

    def _without_bom(self, chunk: bytes) -> bytes:
        chunk = self._start + chunk
        if len(chunk) < len(_BOM) and _BOM.startswith(chunk):
            self._start = chunk
            return b""
        self._started = True
        return chunk.removeprefix(_BOM)

    def _with_line_feeds(self, chunk: bytes) -> bytes:
        # CR and LF may come in different reads: the LF belongs to the line end already made.
        if self._after_cr and chunk.startswith(b"\n"):
            chunk = chunk[1:]
            self._after_cr = False
        if chunk:
            self._after_cr = chunk.endswith(b"\r")
        return chunk.replace(b"\r\n", b"\n").replace(b"\r", b"\n")


class EventReader:
    """Cuts a stream of bytes into events and parses their JSON.

    Args:
        who: model or service, for messages.
    """

    def __init__(self, who: str, provider: str = "") -> None:
        self._feed = EventSplitter().feed
        self._who = who
        self._provider = provider
        self._broken: StreamInterrupted | None = None

    def feed(self, chunk: bytes) -> list[Any]:
        """Parsed events that *chunk* completes; ``DONE`` for the chat API's last one.

        Raises:
            StreamInterrupted: an event is no JSON.  Those in front of it are returned first.
        """
        self.end()
        parsed: list[Any] = []
        for name, data in self._feed(chunk):
            try:
                value = jiter.from_json(data)
            except ValueError:
                if not data.strip():
                    continue
                if data.strip() == b"[DONE]":
                    parsed.append(DONE)
                    continue
                value = self._parse_hard(data)
                if self._broken is not None:
                    break
            if name == b"error" and isinstance(value, dict) and "error" not in value:
                value.setdefault("type", "error")
                value = {**value, "error": {**value}}
            parsed.append(value)
        if not parsed:
            self.end()
        return parsed

    def end(self) -> None:
        """Raise what *feed* has kept back."""
        if self._broken is not None:
            raise self._broken

    def _parse_hard(self, data: bytes) -> Any:
        """What jiter refuses though servers send it: lone surrogates, bytes that are no UTF-8."""
        try:
            return json.loads(data.decode("utf-8", "replace"))
        except (ValueError, RecursionError) as error:
            self._broken = StreamInterrupted(
                f"{self._who}: an event of the stream is no JSON ({error}, "
                f"{len(data)} bytes); what came before it is kept, resume the turn",
                provider=self._provider,
            )
            self._broken.__cause__ = error
            return None


class AnswerReader:
    """Parses the body of an answer, in whichever form the server chose to send it.

    The first bytes decide, not the header: servers send one JSON body, or a page of HTML, with
    any content type.

    Args:
        content_type: of the answer; only named in messages.
    """

    def __init__(self, content_type: str, who: str, provider: str = "") -> None:
        self._content_type = content_type
        self._who = who
        self._provider = provider
        self._events: EventReader | None = None
        self._is_json = False
        self._pieces: list[bytes] = []
        self._last = b""

    def feed(self, chunk: bytes) -> list[Any]:
        """Parsed events that *chunk* completes.

        Raises:
            StreamInterrupted: an event is no JSON.
            InvalidRequest: the answer is neither an event stream nor JSON.
        """
        self._last = chunk
        if self._events is not None:
            return self._events.feed(chunk)
        self._pieces.append(chunk)
        if self._is_json:
            return []
        return self._decide(b"".join(self._pieces), whole=False)

    def end(self) -> list[Any]:
        """What is left at the end of the body: ``[Body(json)]``, a last event, or nothing.

        Servers and proxies leave out the blank line behind the last event; an event whose lines
        are whole is taken, though the specification of SSE would drop it.

        Raises:
            StreamInterrupted: the JSON is cut off, or an event was no JSON.
            InvalidRequest: the answer is neither an event stream nor JSON.
        """
        if self._events is None and not self._is_json and self._pieces:
            self._decide(b"".join(self._pieces), whole=True)
        if self._events is not None:
            self._events.end()
            return self._events.feed(b"\n\n") if self._last.endswith((b"\n", b"\r")) else []
        if not self._is_json:
            return []
        self._is_json = False
        text = b"".join(self._pieces).decode("utf-8-sig", "replace")
        self._pieces.clear()
        try:
            return [Body(json.loads(text))]
        except (ValueError, RecursionError) as error:
            raise StreamInterrupted(
                f"{self._who}: the answer is broken JSON ({error}); try again",
                provider=self._provider,
            ) from error

    def _decide(self, head: bytes, *, whole: bool) -> list[Any]:
        text = head.removeprefix(_BOM).lstrip()
        if text.startswith((b"{", b"[")):
            self._is_json = True
            return []
        if len(text) < _SHORTEST and not whole:
            return []
        streamed = "event-stream" in self._content_type and not text.startswith(b"<")
        if not text or streamed or _FIELD.match(text):
            self._pieces.clear()
            self._events = EventReader(self._who, self._provider)
            return self._events.feed(head)
        raise InvalidRequest(
            f"{self._who}: the server answered with {self._content_type or 'no content type'!r} "
            "instead of an event stream or JSON; check that base_url points at the API",
            provider=self._provider,
            status=200,
        )


class TextMender:
    """Makes the text of deltas storable: what is delivered is then what is stored.

    Surrogate pairs that were split over two deltas are joined; lone surrogates and NUL, which
    databases and terminals refuse, become U+FFFD.
    """

    def __init__(self) -> None:
        self.held: dict[int, str] = {}

    def mend(self, part: int, text: str) -> str:
        """*text* of *part*, possibly less by its last character, which then waits for the next.

        Callers skip the call where ``text.isascii()``, no NUL is in it and nothing is held.
        """
        if self.held:
            text = self.held.pop(part, "") + text
        if _UNSENDABLE.search(text) is None:
            return text
        if "\ud800" <= text[-1] <= "\udbff":
            self.held[part] = text[-1]
            text = text[:-1]
        return mended(text)

    def rest(self, part: int) -> str:
        """What still waits for *part*."""
        return mended(self.held.pop(part, ""))


def mended(text: str) -> str:
    """*text* with pairs joined, and U+FFFD for lone surrogates and NUL."""
    if "\0" not in text:
        if text.isascii():
            return text
        try:
            text.encode()  # ten times as fast as a search
        except UnicodeEncodeError:
            pass
        else:
            return text
    joined = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return joined.replace("\0", "\ufffd")


def identifier(value: Any) -> str:
    """An id or a name that a provider gave, fit to be stored; ``""`` for what is none."""
    if isinstance(value, str):
        return mended(value)
    return str(value) if type(value) is int and abs(value) < _LARGEST else ""


def mended_json(value: Any) -> Any:
    """A copy of the JSON *value* with every string ``mended``."""
    if isinstance(value, str):
        return mended(value)
    if isinstance(value, dict):
        return {mended(key): mended_json(member) for key, member in value.items()}
    if isinstance(value, list):
        return [mended_json(member) for member in value]
    return value


def _event(block: bytes) -> Event | None:
    """The event of lines that end in LF, or None where they hold no data."""
    name = b""
    data: list[bytes] = []
    for line in block.split(b"\n"):
        field, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if field == b"data":
            data.append(value)
        elif field == b"event":
            name = value
    return (name, b"\n".join(data)) if data else None
