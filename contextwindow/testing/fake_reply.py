"""What a fake provider answers, in terms of no provider's format."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal, get_args

from contextwindow.errors import ConfigError
from contextwindow.records import FinishReason, Usage
from contextwindow.testing.script import ScriptedCall, cut_in_pieces

FakeFault = Literal[
    "reset", "truncate", "eof", "eof_mid", "eof_close", "no_done", "error", "failed", "stall",
    "garbage", "html", "json_body", "reset_before", "stall_before",
]  # fmt: skip

DEFAULT_TEXT: Final = (
    "This is a reply from the fake provider. It is the same every time, it costs nothing, and it "
    "is long enough to be watched while it arrives, word by word."
)


@dataclass(frozen=True, slots=True)
class FakeReply:
    """One answer of a ``FakeProvider``: reasoning, then text, refusal and tool calls.

    Chunks are counted over all of these, in that order, from 0.

    Attributes:
        text: cut into words, each with the space before it.
        chunks: the text in exact chunks, instead of *text*.
        reasoning: a str, or its exact chunks.  It is signed where the format has signatures.
        hidden: the reasoning is counted, and sealed where the format has that, but not shown.
        refusal: as *reasoning*.
        tool_calls: ``(name, arguments)`` or ``(name, arguments, call_id)``; the arguments are a
            mapping, or JSON text that is sent as it is, broken or not (Gemini, whose calls come
            whole, reports a malformed call instead).
        call_ids: False sends calls without an id where the format allows that (Gemini).
        blocked: the prompt is refused before a word is said, each provider in its way.
        pauses: stop behind the text, in the middle of the provider's own search, to be asked to
            go on (Anthropic's ``pause_turn``; the other formats have none and stop).
        usage: ``"count"`` makes up a figure from the lengths; None: none is sent.
        finish_reason: None for what fits: ``tool_calls`` or ``stop``.
        pace: seconds between chunks, each a TCP segment of its own; 0 sends all at once.
        fault: what goes wrong instead of chunk *at*:

            ========== ======================================================================
            reset      TCP reset
            truncate   the connection is closed inside the chunked body
            eof        the body ends as if all were well, without its terminal event
            eof_mid    as ``eof``, in the middle of an event
            eof_close  as ``eof``, in a body that is framed by the connection's end
            no_done    only the very last event is missing (*at* does not matter)
            error      an error event, then the end
            failed     as ``error``, with the Responses API's ``response.failed``
            stall      nothing more comes, the connection stays open
            garbage    an event that is no JSON, then the rest
            ========== ======================================================================

            and, whatever *at* is: ``html`` (a page with status 200), ``json_body`` (one JSON
            body, though a stream was asked for), ``reset_before`` and ``stall_before`` (before
            the first byte of the answer).
        at: number of the chunk that does not come; None: all chunks come, nothing behind them.
        status: an HTTP error instead of a reply, such as 429; then *code*, *type*, *message*
            are the error's, None for what is usual, and *retry_after* is its header: seconds,
            or a date.
        forget: the server does not remember the response (Responses API).
        continues: go on from what the request's last assistant text has already of the text,
            as a model does that was asked to continue.
        echo: with *continues*: characters of that which are said again.

    Raises:
        ConfigError: an unknown fault, or a number that makes no sense.
    """

    text: str = ""
    chunks: Sequence[str] = ()
    reasoning: str | Sequence[str] = ()
    refusal: str | Sequence[str] = ()
    tool_calls: Sequence[ScriptedCall] = ()
    usage: Usage | Literal["count"] | None = "count"
    finish_reason: FinishReason | None = None
    pace: float = 0.0
    fault: FakeFault | None = None
    at: int | None = None
    status: int | None = None
    code: str | None = None
    type: str | None = None
    message: str | None = None
    retry_after: float | str | None = None
    forget: bool = False
    continues: bool = False
    echo: int = 0
    hidden: bool = False
    call_ids: bool = True
    blocked: bool = False
    pauses: bool = False

    def __post_init__(self) -> None:
        if self.fault is not None and self.fault not in get_args(FakeFault):
            raise ConfigError(
                f"unknown fault {self.fault!r}: use one of {', '.join(get_args(FakeFault))}"
            )
        if self.pace < 0 or self.echo < 0 or (self.at or 0) < 0:
            raise ConfigError("pace, echo and at cannot be negative")
        if self.status is not None and not 300 <= self.status <= 599:
            raise ConfigError(f"status is for errors, from 300 to 599, not {self.status}")

    def text_chunks(self, said: str = "") -> list[str]:
        """The text to send, after *said* in a reply that continues."""
        whole = "".join(self.chunks) or self.text
        # Saying all of it again is a new turn with the same reply, not a continuation.
        goes_on = self.continues and said and whole != said and whole.startswith(said)
        if goes_on:
            return cut_in_pieces(whole[max(0, len(said) - self.echo) :], "words")
        return list(self.chunks) or cut_in_pieces(whole, "words")
