"""What all adapters' errors have in common, whichever SDK raised them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Final

from contextwindow.errors import (
    AuthenticationFailed,
    ContentBlocked,
    ContextLengthExceeded,
    InvalidRequest,
    ModelError,
    ModelTimeout,
    Overloaded,
    RateLimited,
    StreamInterrupted,
)
from contextwindow.models.secrets import redacted

_ADVICE: Final[dict[type[ModelError], str]] = {
    AuthenticationFailed: "the key was refused; check it",
    RateLimited: "rate limit; wait and call again",
    Overloaded: "the provider failed on its side; try again later",
    ContextLengthExceeded: "the request is too long for the model; compact or trim the context",
    ContentBlocked: "the provider's filter refused it; change the prompt",
    InvalidRequest: "the request was refused; check the model's name and the options",
}


def said_by(
    who: str,
    found: type[ModelError],
    status: int | None,
    code: str,
    message: str,
    *,
    key: str = "",
) -> str:
    """The text of an error that a provider reported.

    Args:
        who: the model.
        found: the class that the error becomes; its advice is given.
        code: the provider's own word, ``""`` for none.
        message: the provider's own sentence, ``""`` for none.
        key: where the key is set, for the advice to look at it.
    """
    marks = ", ".join(str(mark) for mark in (status, code) if mark)
    advice = _ADVICE.get(found, "the provider reported an error")
    if found is AuthenticationFailed and key:
        advice = f"the key was refused; check {key}"
    said = f": {redacted(message)}" if message else ""
    return f"{who}: {advice}" + (f" ({marks})" if marks else "") + said


def connection_error(
    error: Exception,
    who: str,
    host: str,
    *,
    provider: str,
    reading: bool,
    timeout: float | None = None,
) -> ModelError:
    """The failure of a connection, or its silence, in our terms.

    Args:
        who: the model, for the message.
        host: the server, for the message.
        reading: whether the answer had begun.
        timeout: seconds that were waited at most, where the call had a limit of its own.
    """
    names = [base.__name__ for base in type(error).__mro__]
    if "APITimeoutError" in names or "TimeoutException" in names or "TimeoutError" in names:
        limit = f"for {timeout:g} s" if timeout is not None else "within the client's timeout"
        what = "no byte came" if reading else "no answer came"
        return ModelTimeout(
            f"{who}: {what} from {host} {limit}; raise timeout= or try again", provider=provider
        )
    reason = innermost(error)
    if reading:
        return StreamInterrupted(
            f"{who}: the connection to {host} broke in the middle of the reply ({reason}); "
            "what arrived is kept, resume the turn",
            provider=provider,
        )
    return ModelError(
        f"{who}: no connection to {host} ({reason}); check the network, base_url and proxies",
        provider=provider,
        retryable=True,
    )


def retry_after(headers: Mapping[str, str], now: datetime | None = None) -> float | None:
    """Seconds that *headers* ask to wait: milliseconds, seconds, or an HTTP date; else None.

    Args:
        now: default the server's own ``date``, which a wrong clock here cannot spoil.
    """
    for name, unit in (("retry-after-ms", 1_000.0), ("retry-after", 1.0)):
        try:
            seconds = float(headers.get(name, "")) / unit
        except ValueError:
            continue
        if math.isfinite(seconds):
            return max(0.0, seconds)
    then = _date(headers.get("retry-after"))
    if then is None:
        return None
    now = now or _date(headers.get("date")) or datetime.now(UTC)
    return max(0.0, (then - now).total_seconds())


def innermost(error: Exception) -> str:
    """The words of the first cause: an SDK's own are just "Connection error."."""
    cause: BaseException = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    text = redacted(str(cause))
    return f"{type(cause).__name__}: {text}" if text else type(cause).__name__


def _date(text: str | None) -> datetime | None:
    try:
        date = parsedate_to_datetime(text or "")
    except ValueError:
        return None
    return date if date.tzinfo is not None else date.replace(tzinfo=UTC)
