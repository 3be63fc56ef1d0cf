"""Decoding what the Responses API sends: its events, or one body."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from contextwindow.errors import InvalidRequest, ModelError, StreamInterrupted
from contextwindow.models.base import Decoder, Delta, Item, PartEnd, PartKind
from contextwindow.models.counts import tokens
from contextwindow.models.openai_errors import PROVIDER, reported_error
from contextwindow.models.sse import TextMender, identifier, mended, mended_json
from contextwindow.records import Usage

API: Final = "openai-responses"

_DELTAS: Final[dict[str, PartKind]] = {
    "response.output_text.delta": "text",
    "response.refusal.delta": "refusal",
    "response.reasoning_summary_text.delta": "reasoning",
    "response.reasoning_text.delta": "reasoning",
    "response.function_call_arguments.delta": "tool_call",
    "response.custom_tool_call_input.delta": "tool_call",
}
_CALLS: Final = frozenset({"function_call", "custom_tool_call"})
_TERMINAL: Final = frozenset({"completed", "incomplete", "failed", "cancelled"})


class _Open:
    """An output item while it arrives.

    Attributes:
        parts: numbers of its parts by kind; a message may have text and a refusal.
        known: its beginning was seen by this decoder.
    """

    __slots__ = ("done", "index", "item", "known", "parts", "streamed")

    def __init__(self, item: dict[str, Any], index: int, *, known: bool) -> None:
        self.item = item
        self.index = index
        self.known = known
        self.parts: dict[PartKind, int] = {}
        self.streamed = False
        self.done = False


class ResponsesDecoder(Decoder):
    """Decodes one response.

    Args:
        who: the model, for messages.
        background: the provider keeps the stream, so ``cursor`` is worth noting.
        after: last event that is already known, when the stream begins in its middle.  Items
            then have beginnings that this decoder never sees: their ends give the whole text.
    """

    def __init__(self, who: str, *, background: bool = False, after: int | None = None) -> None:
        self._who = who
        self._resumed = after is not None
        self._after = -1 if after is None else after
        self._keeps_cursor = background or self._resumed
        # Part of each message's text: all that the fast path needs.
        self._texts: dict[str, int] = {}
        self._items: dict[str, _Open] = {}
        # Some servers give an item a new id with every event; its place stays.
        self._places: dict[int, _Open] = {}
        self._count = 0
        # Items without a part of their own, by their place in the output.
        self._loose: list[tuple[int, dict[str, Any]]] = []
        self._called = False
        self._refused = False
        self._mender = TextMender()
        self._held = self._mender.held

    def feed(self, event: Any) -> Sequence[Item]:
        """Items of one event."""
        try:
            kind = event["type"]
            if kind == "response.output_text.delta" and not self._keeps_cursor:
                part = self._texts.get(event["item_id"])
                text = event["delta"]
                if part is not None and text.isascii() and "\0" not in text and not self._held:
                    return (Delta("text", part, text),) if text else ()
            return self._event(kind, event)
        except ModelError:
            raise
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise StreamInterrupted(
                f"{self._who}: an event of the stream has an unknown shape "
                f"({type(error).__name__}); what came before it is kept, resume the turn",
                provider=PROVIDER,
            ) from error

    def feed_body(self, body: Any) -> Sequence[Item]:
        """Items of a whole response in one body."""
        if isinstance(body, dict) and isinstance(body.get("output"), list):
            status = body.get("status") or "completed"
            if status in _TERMINAL:
                return self.feed({"type": f"response.{status}", "response": body})
        reported = body.get("error") if isinstance(body, dict) else None
        if reported:
            raise reported_error(self._who, reported, status=200)
        raise InvalidRequest(
            f"{self._who}: the server answered with JSON that is no finished response; "
            "check that base_url points at the API",
            provider=PROVIDER,
            status=200,
        )

    def end(self) -> Sequence[Item]:
        """Nothing is left: the terminal event has closed every part."""
        if not self.finished:
            raise StreamInterrupted(
                f"{self._who}: the stream ended before the reply did; "
                "what arrived is kept, resume the turn",
                provider=PROVIDER,
            )
        return ()

    def _event(self, kind: str, event: dict[str, Any]) -> Sequence[Item]:
        if self._keeps_cursor:
            number = event.get("sequence_number")
            if isinstance(number, int):
                if number <= self._after:
                    return ()
                self._after = number
                self.cursor = str(number)
        if self.finished:
            return ()  # nothing comes behind the terminal event
        part_kind = _DELTAS.get(kind)
        if part_kind is not None:
            return self._delta(part_kind, event)
        if kind == "response.output_item.added":
            return self._added(event["item"], event.get("output_index"))
        if kind == "response.output_item.done":
            return self._done(event["item"], event.get("output_index"))
        if kind == "error":
            reported = event.get("error")
            raise reported_error(self._who, reported if isinstance(reported, dict) else event)
        response = event.get("response")
        if kind.startswith("response.") and isinstance(response, dict):
            self.response_id = self.response_id or identifier(response.get("id")) or None
            self.model = self.model or identifier(response.get("model")) or None
            if kind.removeprefix("response.") in _TERMINAL:
                return self._finish(kind.removeprefix("response."), response)
        return ()

    def _delta(self, kind: PartKind, event: dict[str, Any]) -> Sequence[Item]:
        text = event["delta"]
        opened = self._opened({"id": event["item_id"]}, event.get("output_index"))
        if opened.done:
            return ()  # too late: its end has given the whole
        opened.streamed = True
        part = self._part(opened, kind)
        text = self._mender.mend(part, text) if text else ""
        if not text:
            return ()
        if kind != "tool_call":
            return (Delta(kind, part, text),)
        return (Delta(kind, part, text, *_names(opened.item)),)

    def _added(self, item: dict[str, Any], index: Any) -> Sequence[Item]:
        opened = self._opened(item, index, known=True)
        if item.get("type") in _CALLS:
            return (Delta("tool_call", self._part(opened, "tool_call"), "", *_names(item)),)
        return ()

    def _done(self, item: dict[str, Any], index: Any) -> Sequence[Item]:
        """Close an item; one that was never streamed is opened as well."""
        opened = self._opened(item, index, known=not self._resumed)
        if opened.done:
            return ()
        opened.done = True
        own = opened.parts.values()
        self._texts = {name: part for name, part in self._texts.items() if part not in own}
        item = mended_json(item)
        kind = item.get("type")
        if kind in _CALLS:
            text = item.get("input") if kind == "custom_tool_call" else item.get("arguments")
            return self._close(opened, "tool_call", text or "", [item])
        if kind == "reasoning":
            return self._close(opened, "reasoning", _reasoning(item), [item])
        if kind != "message":
            self._loose.append((opened.index, item))
            return ()
        contents = [one for one in item.get("content") or () if isinstance(one, dict)]
        texts = [one for one in contents if one.get("type") != "refusal"]
        refusals = [one for one in contents if one.get("type") == "refusal"]
        if not refusals and "refusal" not in opened.parts:
            if not texts and "text" not in opened.parts:
                self._loose.append((opened.index, item))
                return ()
            return self._close(opened, "text", _joined(texts, "text"), [item])
        items: list[Item] = []
        if texts or "text" in opened.parts:
            # Each of the two records gets its own half of the message.
            items += self._close(
                opened, "text", _joined(texts, "text"), [{**item, "content": texts}]
            )
            item = {key: value for key, value in item.items() if key != "id"}
        refusal = _joined(refusals, "refusal")
        items += self._close(opened, "refusal", refusal, [{**item, "content": refusals}])
        return items

    def _close(
        self, opened: _Open, kind: PartKind, whole: str, own: list[dict[str, Any]]
    ) -> list[Item]:
        names = _names(opened.item) if kind == "tool_call" else ("", "")
        part = self._part(opened, kind)
        items: list[Item] = []
        text = self._mender.rest(part)
        if opened.known and not opened.streamed:
            text = mended(whole)
        if text:
            items.append(Delta(kind, part, text, *names))
        before = [item for place, item in self._loose if place < opened.index]
        self._loose = [one for one in self._loose if one[0] >= opened.index]
        content = None if opened.known else mended(whole)
        items.append(PartEnd(kind, part, content, before + own, *names))
        return items

    def _finish(self, status: str, response: dict[str, Any]) -> Sequence[Item]:
        self.usage = _usage(response.get("usage")) or self.usage
        if status == "failed":
            reported = response.get("error") or {"message": "the response failed without a reason"}
            raise reported_error(self._who, reported)
        items: list[Item] = []
        for index, item in enumerate(response.get("output") or ()):
            # In a resumed stream, what was never seen had ended before: it is stored.
            if not self._resumed or item.get("id") in self._items:
                items += self._done(item, index)
            self._called = self._called or item.get("type") in _CALLS
            contents = item.get("content") if item.get("type") == "message" else None
            if any(one.get("type") == "refusal" for one in contents or ()):
                self._refused = True
        items += self._end_open_parts()
        reason = (response.get("incomplete_details") or {}).get("reason")
        if status == "cancelled":
            self.finish_reason = "cancelled"
        elif status == "incomplete":
            self.finish_reason = "content_filter" if reason == "content_filter" else "length"
        elif self._called:
            self.finish_reason = "tool_calls"
        else:
            self.finish_reason = "refusal" if self._refused else "stop"
        self.finished = True
        self._texts.clear()
        return items

    def _end_open_parts(self) -> list[Item]:
        items: list[Item] = []
        for opened in self._items.values():
            for kind, part in opened.parts.items() if not opened.done else ():
                names = _names(opened.item) if kind == "tool_call" else ("", "")
                held = self._mender.rest(part)
                if held:
                    items.append(Delta(kind, part, held, *names))
                items.append(PartEnd(kind, part, None, None, *names))
        if self._loose:
            # Nothing follows them, and the part before is closed: they get one of their own.
            own = [item for _, item in sorted(self._loose, key=lambda one: one[0])]
            self._loose = []
            items.append(PartEnd("text", self._count, None, own))
            self._count += 1
        return items

    def _opened(self, item: dict[str, Any], index: Any, *, known: bool = False) -> _Open:
        place = index if isinstance(index, int) else len(self._items)
        key = item.get("id") or f"#{place}"
        opened = self._items.get(key) or (self._places.get(place) if index is not None else None)
        if opened is None:
            opened = _Open(item, place, known=known or not self._resumed)
            self._items[key] = self._places[place] = opened
        elif "type" in item:
            opened.item = item
        return opened

    def _part(self, opened: _Open, kind: PartKind) -> int:
        part = opened.parts.get(kind)
        if part is None:
            part = opened.parts[kind] = self._count
            self._count += 1
            if kind == "text" and opened.item.get("id"):
                self._texts[opened.item["id"]] = part
            self._called = self._called or kind == "tool_call"
            self._refused = self._refused or kind == "refusal"
        return part


def _names(item: dict[str, Any]) -> tuple[str, str]:
    return identifier(item.get("call_id") or item.get("id")), identifier(item.get("name"))


def _joined(contents: list[dict[str, Any]], key: str) -> str:
    pieces = [content.get(key) for content in contents]
    return "".join(piece for piece in pieces if isinstance(piece, str))


def _reasoning(item: dict[str, Any]) -> str:
    pieces = [*(item.get("summary") or ()), *(item.get("content") or ())]
    return _joined([piece for piece in pieces if isinstance(piece, dict)], "text")


def _usage(usage: Any) -> Usage | None:
    """The provider's counts in our terms; None where it gave none."""
    given, output = _count(usage, "input_tokens"), _count(usage, "output_tokens")
    if not given and not output:
        return None
    read = usage.get("input_tokens_details")
    return Usage(
        input_tokens=given,
        output_tokens=output,
        cache_read_tokens=_count(read, "cached_tokens"),
        cache_write_tokens=_count(read, "cache_write_tokens"),
        reasoning_tokens=_count(usage.get("output_tokens_details"), "reasoning_tokens"),
    )


def _count(counts: Any, name: str) -> int:
    """A count, or 0 for what is missing, negative or no number."""
    return tokens(counts.get(name)) if isinstance(counts, dict) else 0
