"""Decoding what ``generateContent`` and ``streamGenerateContent`` send.

An answer is a list of *parts*.  Neighbouring texts are one record, as are neighbouring thoughts;
a function call is one of its own.  What the provider needs back is kept as it came and where it
stood: parts with a ``thoughtSignature``, code that the provider ran, media, tools of its own,
and kinds of parts that are not known yet.  Plain text and plain thoughts need no copy.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence, Set
from typing import Any, Final

from contextwindow.errors import InvalidRequest, StreamInterrupted
from contextwindow.models.base import Decoder, Delta, Item, PartEnd, PartKind
from contextwindow.models.counts import tokens
from contextwindow.models.gemini_arguments import assemble
from contextwindow.models.gemini_errors import PROVIDER, blocked_prompt, reported_error
from contextwindow.models.sse import TextMender, identifier, mended_json
from contextwindow.records import FinishReason, Usage

API: Final = "gemini"

METADATA: Final = "candidateMetadata"
"""Key of a payload item that is no part: what the answer says about its text."""

# What is not named here, or has no counterpart (OTHER, NO_IMAGE), counts as "stop".  A malformed
# call or answer was given up in the middle, so the reply is not whole: "length" says that.
_FINISH: Final[dict[str, FinishReason]] = {
    "MAX_TOKENS": "length",
    "CONTINUATION": "length",
    "TOO_MANY_TOOL_CALLS": "length",
    "MALFORMED_FUNCTION_CALL": "length",
    "MALFORMED_RESPONSE": "length",
    "MISSING_THOUGHT_SIGNATURE": "length",
    "SAFETY": "content_filter",
    "RECITATION": "content_filter",
    "LANGUAGE": "content_filter",
    "BLOCKLIST": "content_filter",
    "PROHIBITED_CONTENT": "content_filter",
    "SPII": "content_filter",
    "IMAGE_SAFETY": "content_filter",
    "IMAGE_PROHIBITED_CONTENT": "content_filter",
    "IMAGE_RECITATION": "content_filter",
    "ESCALATION": "content_filter",
    "PUP_LIMITED_DISABLED": "content_filter",
    "MODEL_ARMOR": "content_filter",
}
# A candidate with these members alone holds nothing but text worth reading.
_PLAIN: Final = frozenset({"content", "index", "safetyRatings"})
_KEPT: Final = ("citationMetadata", "groundingMetadata", "urlContextMetadata")
_TEXT: Final = frozenset({"text", "thought"})


class _Run:
    """Neighbouring texts, or thoughts, while they arrive."""

    __slots__ = ("items", "kind", "part", "pieces")

    def __init__(self, kind: PartKind, part: int) -> None:
        self.kind = kind
        self.part = part
        # Text since the last part that is kept as it came.
        self.pieces: list[str] = []
        self.items: list[Any] = []

    def keep(self, item: dict[str, Any]) -> None:
        """Keep a part as it came, behind the text that stands before it."""
        self.fold()
        self.items.append(item)

    def fold(self) -> None:
        text = "".join(self.pieces)
        self.pieces.clear()
        if text and self.kind == "text":
            self.items.append({"text": text})


class _Call:
    """A function call whose arguments arrive in pieces."""

    __slots__ = ("arguments", "item", "part")

    def __init__(self, part: int, item: dict[str, Any]) -> None:
        self.part = part
        self.item = item
        self.arguments: dict[str, Any] = {}


class GeminiDecoder(Decoder):
    """Decodes the first candidate of an answer.

    Args:
        who: the model, for messages.
        own_tools: names of the functions that are run on this side, when the provider may call
            others by itself (``mcpServers``); None: all are.
    """

    def __init__(self, who: str, *, own_tools: Set[str] | None = None) -> None:
        self._who = who
        self._own_tools = own_tools
        self._count = 0
        self._run: _Run | None = None
        # Part of the run that plain text goes to: all that the fast path needs.
        self._text: int | None = None
        self._open: _Call | None = None
        # Items without a part of their own, for the part that follows them.
        self._loose: list[Any] = []
        self._metadata: dict[str, Any] = {}
        self._called = False
        self._any = False
        self._ended = False
        self._counts: Any = None
        self._mender = TextMender()
        self._held = self._mender.held

    @property
    def usage(self) -> Usage | None:  # type: ignore[override]  # counted when asked: in each chunk
        """Tokens so far, of the last chunk that counted them."""
        return _usage(self._counts)

    def feed(self, event: Any) -> Sequence[Item]:
        """Items of one chunk."""
        part = self._text
        if part is not None:
            # One text and nothing else: nearly every event of a long reply.
            try:
                (candidate,) = event["candidates"]
                if candidate.keys() <= _PLAIN and not candidate.get("index"):
                    (only,) = candidate["content"]["parts"]
                    if len(only) == 1 and "error" not in event:
                        text = only["text"]
                        if text and text.isascii() and "\0" not in text and not self._held:
                            counts = event.get("usageMetadata")
                            if counts and "promptTokenCount" in counts:
                                self._counts = counts
                            self._run.pieces.append(text)  # type: ignore[union-attr]  # has a part
                            return (Delta("text", part, text),)
            except (KeyError, TypeError, ValueError, AttributeError):
                pass
        try:
            return self._chunk(event)
        except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
            raise StreamInterrupted(
                f"{self._who}: an event of the stream has an unknown shape "
                f"({type(error).__name__}); what came before it is kept, resume the turn",
                provider=PROVIDER,
            ) from error

    def feed_body(self, body: Any) -> Sequence[Item]:
        """Items of a whole reply in one body, or of a list of chunks."""
        items: list[Item] = []
        for chunk in body if isinstance(body, list) else [body]:
            if not isinstance(chunk, dict) or not chunk.keys() & {
                "candidates",
                "promptFeedback",
                "usageMetadata",
                "error",
            }:
                raise InvalidRequest(
                    f"{self._who}: the server answered with JSON that is no generated content; "
                    "check that base_url points at the API",
                    provider=PROVIDER,
                    status=200,
                )
            if chunk.get("error"):
                raise reported_error(self._who, chunk["error"], status=200)
            items += self.feed(chunk)
        return items

    def end(self) -> Sequence[Item]:
        """The ends of the parts that are still open."""
        if not self.finished:
            raise StreamInterrupted(
                f"{self._who}: the stream ended before the reply did; "
                "what arrived is kept, resume the turn",
                provider=PROVIDER,
            )
        if self._ended:
            return ()
        self._ended = True
        items: list[Item] = []
        if self._open is not None:
            self._close_call(items)
        if self._metadata:
            self._loose_or_run({METADATA: self._metadata})
        self._close_run(items)
        if self._loose:
            items.append(PartEnd("text", self._next(), None, self._take_loose()))
        return items

    def _chunk(self, event: Any) -> list[Item]:
        items: list[Item] = []
        if event.get("error"):
            raise reported_error(self._who, event["error"])
        self.response_id = self.response_id or identifier(event.get("responseId")) or None
        self.model = self.model or identifier(event.get("modelVersion")) or None
        if _usage(event.get("usageMetadata")) is not None:
            self._counts = event["usageMetadata"]
        candidates = event.get("candidates") or ()
        feedback = event.get("promptFeedback") or {}
        if not candidates and not self._any and feedback.get("blockReason"):
            raise blocked_prompt(self._who, feedback)
        for candidate in candidates:
            if candidate.get("index"):
                continue
            self._any = True
            content = candidate.get("content") or {}
            for part in content.get("parts") or ():
                self._part(part, items)
            for name in _KEPT:
                if candidate.get(name):
                    _merge(self._metadata, {name: mended_json(candidate[name])})
            self._finish(candidate.get("finishReason"))
        return items

    def _part(self, part: dict[str, Any], items: list[Item]) -> None:
        call = part.get("functionCall")
        if isinstance(call, dict) and self._is_ours(call):
            self._call(part, call, items)
            return
        if self._open is not None:
            self._close_call(items)
        text = part.get("text")
        signed = "thoughtSignature" in part
        if isinstance(text, str) or (signed and not part.keys() - _TEXT - {"thoughtSignature"}):
            self._add_text(part, text or "", items)
        elif part.keys() - {"thought"}:
            self._close_run(items)
            self._loose.append(mended_json(part))

    def _is_ours(self, call: dict[str, Any]) -> bool:
        if self._own_tools is None or self._open is not None:
            return True
        return call.get("name") in self._own_tools

    def _add_text(self, part: dict[str, Any], text: str, items: list[Item]) -> None:
        special = bool(part.keys() - _TEXT)
        if not text and not special:
            return
        kind: PartKind = "reasoning" if part.get("thought") else "text"
        run = self._run
        if run is not None and run.kind != kind:
            self._close_run(items)
            run = None
        if run is None and not text:
            # A signature alone makes no record.
            self._loose.append(mended_json({**part, "text": ""}))
            return
        if run is None:
            run = self._run = _Run(kind, self._next())
            self._text = run.part if kind == "text" else None
        shown = self._mender.mend(run.part, text) if text else ""
        if special:
            run.keep(mended_json({**part, "text": shown}))
        elif shown:
            run.pieces.append(shown)
        if shown:
            items.append(Delta(kind, run.part, shown))

    def _call(self, part: dict[str, Any], call: dict[str, Any], items: list[Item]) -> None:
        goes_on = bool(call.get("willContinue"))
        opened = self._open
        if opened is not None and call.get("name"):
            self._close_call(items)
            opened = None
        if opened is None:
            if not call.get("name"):
                return
            self._close_run(items)
            opened = self._open = _Call(self._next(), dict(part))
            self._called = True
            items.append(Delta("tool_call", opened.part, "", *self._names(opened)))
        else:
            # A signature may come with any piece.
            opened.item.update({k: v for k, v in part.items() if k != "functionCall"})
        if isinstance(call.get("args"), dict):
            opened.arguments.update(call["args"])
        for piece in call.get("partialArgs") or ():
            assemble(opened.arguments, piece)
        if not goes_on:
            self._close_call(items)

    def _close_call(self, items: list[Item]) -> None:
        opened, self._open = self._open, None
        if opened is None:
            return
        names = self._names(opened)
        call = opened.item["functionCall"]
        known = {k: v for k, v in call.items() if k not in ("willContinue", "partialArgs")}
        item = mended_json({**opened.item, "functionCall": {**known, "args": opened.arguments}})
        arguments = json.dumps(item["functionCall"]["args"], ensure_ascii=False)
        items.append(Delta("tool_call", opened.part, arguments, *names))
        items.append(PartEnd("tool_call", opened.part, None, [*self._take_loose(), item], *names))

    def _names(self, opened: _Call) -> tuple[str, str]:
        call = opened.item["functionCall"]
        call_id = identifier(call.get("id")) or self._made_up_id(opened.part)
        return call_id, identifier(call["name"])

    def _made_up_id(self, part: int) -> str:
        """A call id where the provider gives none; it is never sent."""
        seed = f"{self.response_id}/{part}".encode("utf-8", "replace")
        return f"call_{hashlib.sha256(seed).hexdigest()[:24]}"

    def _close_run(self, items: list[Item]) -> None:
        run, self._run, self._text = self._run, None, None
        if run is None:
            return
        held = self._mender.rest(run.part)
        if held:
            run.pieces.append(held)
            items.append(Delta(run.kind, run.part, held))
        before = self._take_loose()
        if run.items or before:
            run.fold()
        items.append(PartEnd(run.kind, run.part, None, [*before, *run.items] or None))

    def _loose_or_run(self, item: dict[str, Any]) -> None:
        if self._run is not None and self._run.kind == "text":
            self._run.keep(item)
        else:
            self._loose.append(item)

    def _take_loose(self) -> list[Any]:
        taken, self._loose = self._loose, []
        return taken

    def _next(self) -> int:
        self._count += 1
        return self._count - 1

    def _finish(self, reason: Any) -> None:
        if not reason or reason == "FINISH_REASON_UNSPECIFIED":
            if self.finished and self._called and self.finish_reason == "stop":
                self.finish_reason = "tool_calls"
            return
        self.finished = True
        found = _FINISH.get(str(reason), "stop")
        self.finish_reason = "tool_calls" if found == "stop" and self._called else found


def _merge(target: dict[str, Any], new: dict[str, Any]) -> None:
    """Add *new* metadata: each chunk has its own citations, or all so far."""
    for key, value in new.items():
        known = target.get(key)
        if isinstance(known, dict) and isinstance(value, dict):
            _merge(known, value)
        elif isinstance(known, list) and isinstance(value, list):
            known += [one for one in value if one not in known]
        else:
            target[key] = value


def _usage(counts: Any) -> Usage | None:
    """The provider's counts in our terms; None where it gave none."""
    if not isinstance(counts, dict):
        return None
    thoughts = _count(counts, "thoughtsTokenCount")
    given = _count(counts, "promptTokenCount") + _count(counts, "toolUsePromptTokenCount")
    output = _count(counts, "candidatesTokenCount") + thoughts
    if not given and not output:
        return None
    return Usage(
        input_tokens=given,
        output_tokens=output,
        cache_read_tokens=_count(counts, "cachedContentTokenCount"),
        reasoning_tokens=thoughts,
    )


def _count(counts: dict[str, Any], name: str) -> int:
    """A count, or 0 for what is missing, negative or no number."""
    return tokens(counts.get(name))
