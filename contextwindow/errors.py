"""Every exception that contextwindow raises.

::

    ContextWindowError
    ├── ConfigError              fix the call: a wrong name, option, text or index
    ├── ContextNotFound          no context of that name or id
    ├── StoreError               the database
    │   ├── SchemaTooNew         upgrade contextwindow
    │   ├── NotAContextDatabase  the file is not ours; it was left as it is
    │   ├── RecordCorrupt        a stored record does not match its checksum
    │   ├── StoreBusy            another program holds the database; try again
    │   ├── StoreFull            no room on the disk
    │   ├── StoreReadOnly        the database cannot be written
    │   └── StoreReplaced        the file was moved, deleted or replaced underneath
    ├── TurnBusy                 another turn is running on the context
    ├── TurnLost                 this turn's lease was taken over; nothing more was written
    ├── ToolError                a tool that cannot be used as given
    ├── CallbackExpired          a tool's callback was used after the tool had returned
    ├── MiddlewareError          a hook raised; the cause is chained
    ├── OutputInvalid            the reply does not fit ``response_format``; it is stored
    └── ModelError               the provider or the way to it
        ├── RateLimited          wait ``retry_after`` seconds
        ├── Overloaded           the provider fails on its side (5xx, 529); try again later
        ├── ContextLengthExceeded
        ├── AuthenticationFailed
        ├── InvalidRequest
        ├── ContentBlocked
        ├── ModelTimeout
        └── StreamInterrupted    the reply stopped short; ``partial_text`` is stored: resume
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Any


class ContextWindowError(Exception):
    """Base of every exception of this library.

    Attributes:
        turn_id: on an error that ended a turn, the turn; else ``""``.
        partial_text: on an error that ended a turn, the text that it had delivered.
    """

    turn_id: str = ""
    partial_text: str = ""


class ConfigError(ContextWindowError):
    """The call cannot be carried out as it was made; nothing was written."""


class ContextNotFound(ContextWindowError):
    """No context has that name or id."""


class StoreError(ContextWindowError):
    """The database could not do what was asked; the message says which and why."""


class SchemaTooNew(StoreError):
    """The database was written by a newer contextwindow; upgrade this one."""


class NotAContextDatabase(StoreError):
    """The file or database holds something else; it was not touched."""


class RecordCorrupt(StoreError):
    """A record's text does not match its checksum.

    Attributes:
        record_id: the record; the others stay readable.
    """

    def __init__(self, message: str, *, record_id: int | None = None) -> None:
        super().__init__(message)
        self.record_id = record_id


class StoreBusy(StoreError):
    """Another program holds the database locked; trying again later may work."""


class StoreFull(StoreError):
    """The disk has no room for the write."""


class StoreReadOnly(StoreError):
    """The database cannot be written: its file, its directory or the store is read-only."""


class StoreReplaced(StoreError):
    """The database file was moved, deleted or replaced while it was open."""


class TurnBusy(ContextWindowError):
    """Another turn is running on the context; nothing was sent.

    Attributes:
        turn_id: the running turn.
        owner: who holds it, as ``host/pid/start``.
        since: when it was started, or None.
    """

    def __init__(
        self,
        message: str,
        *,
        turn_id: str = "",
        owner: str = "",
        since: datetime | None = None,
    ) -> None:
        super().__init__(message)
        self.turn_id = turn_id
        self.owner = owner
        self.since = since


class TurnLost(ContextWindowError):
    """The turn's lease was taken over by another process; this one wrote nothing more.

    Attributes:
        turn_id: the turn that was lost.
    """

    def __init__(self, message: str, *, turn_id: str = "") -> None:
        super().__init__(message)
        self.turn_id = turn_id


class ToolError(ContextWindowError):
    """A tool cannot be used as it was given."""


class CallbackExpired(ContextWindowError):
    """A tool's ``emit`` was called after the tool had returned."""


class MiddlewareError(ContextWindowError):
    """A hook raised an exception, which is the ``__cause__``.

    Attributes:
        hook: name of the method, such as ``on_stream_chunk``.
        middleware: the middleware object.
    """

    def __init__(self, message: str, *, hook: str = "", middleware: object = None) -> None:
        super().__init__(message)
        self.hook = hook
        self.middleware = middleware


class OutputInvalid(ContextWindowError):
    """A finished reply does not fit ``response_format``.

    The turn is complete and the reply is stored: ask again, or use the text.

    Attributes:
        text: what the model said, as it said it.
        problems: what is wrong with it, a line each; the place comes first.
        reply: the whole ``Reply``, its ``parsed`` None.
        turn_id: the turn that gave it.
    """

    def __init__(
        self,
        message: str,
        *,
        text: str = "",
        problems: Iterable[str] = (),
        reply: Any = None,
        turn_id: str = "",
    ) -> None:
        super().__init__(message)
        self.text = text
        self.problems = list(problems)
        self.reply = reply
        self.turn_id = turn_id


class ModelError(ContextWindowError):
    """The provider refused or failed a call, or could not be reached.

    Attributes:
        provider: ``"openai"``, ``"anthropic"`` … or ``""``.
        status: HTTP status, or None when there was no answer.
        code: the provider's own error code or type, or None.
        retryable: whether the same call may succeed later.
        retry_after: seconds that the provider asks to wait, or None.
        turn_id: the turn that failed, once known.
        partial_text: text of the reply that arrived and is stored; ``""`` when none did.
    """

    retryable: bool = False

    def __init__(
        self,
        message: str,
        *,
        provider: str = "",
        status: int | None = None,
        code: str | None = None,
        retryable: bool | None = None,
        retry_after: float | None = None,
        turn_id: str = "",
        partial_text: str = "",
    ) -> None:
        super().__init__(message)
        self.provider = provider
        self.status = status
        self.code = code
        if retryable is not None:
            self.retryable = retryable
        self.retry_after = retry_after
        self.turn_id = turn_id
        self.partial_text = partial_text


class RateLimited(ModelError):
    """Too many requests or tokens; wait ``retry_after`` seconds when it is given."""

    retryable = True


class Overloaded(ModelError):
    """The provider is overloaded or failed on its side; the same call may succeed later."""

    retryable = True


class ContextLengthExceeded(ModelError):
    """The request holds more tokens than the model takes."""


class AuthenticationFailed(ModelError):
    """The key is missing, wrong, or may not do this."""


class InvalidRequest(ModelError):
    """The provider does not accept the request: unknown model, wrong parameter."""


class ContentBlocked(ModelError):
    """The provider's filter refused the prompt or cut the reply."""


class ModelTimeout(ModelError):
    """No byte arrived within ``timeout``, or the turn did not end within ``deadline``."""

    retryable = True


class StreamInterrupted(ModelError):
    """The stream ended before its terminal event.

    What arrived is stored (``partial_text``): ``resume_streaming(turn_id)`` goes on with it.
    """

    retryable = True
