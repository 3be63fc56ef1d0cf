"""OpenAI's errors, whether raised by the SDK or reported in a stream, in our terms."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, Final

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

PROVIDER: Final = "openai"

# By name, so that this module does not load the SDK (0.5 s).  Status errors go by their status.
MAPPED: Final[dict[str, type[ModelError]]] = {
    "APITimeoutError": ModelTimeout,
    "APIConnectionError": ModelError,
    "APIResponseValidationError": StreamInterrupted,
    "APIStatusError": ModelError,
    "OAuthError": AuthenticationFailed,
    "SubjectTokenProviderError": AuthenticationFailed,
    "MutuallyExclusiveAuthError": AuthenticationFailed,
    "LengthFinishReasonError": InvalidRequest,
    "ContentFilterFinishReasonError": ContentBlocked,
    "InvalidWebhookSignatureError": InvalidRequest,
    "WebSocketConnectionClosedError": StreamInterrupted,
    "WebSocketQueueFullError": Overloaded,
    "StreamAlreadyConsumed": StreamInterrupted,
    "_AmbiguousModuleClientUsageError": AuthenticationFailed,
    "APIRemovedInV1": InvalidRequest,
    "MissingDependencyError": InvalidRequest,
    "AgentOutputParseError": InvalidRequest,
    "AgentTurnResultError": InvalidRequest,
    "AgentFilePreparationError": InvalidRequest,
    "AgentFileStagingError": InvalidRequest,
}
"""The SDK's exception classes; a class that is not named goes as its nearest named base."""

_KEY: Final = re.compile(r"\b(?:sk|sess|pk)-[\w*.\-]{4,}|\bbearer\s+[\w.\-]{8,}", re.IGNORECASE)
_TOO_LONG: Final = re.compile(
    r"maximum context length|context[ _-]?(?:window|length|size)|prompt is too long"
    r"|too many (?:input )?tokens|exceeds? the (?:model's )?maximum (?:number of )?(?:input )?tok",
    re.IGNORECASE,
)
_BLOCKED: Final = frozenset(
    {
        "content_filter",
        "content_policy_violation",
        "moderation_blocked",
        "invalid_prompt",
        "bio_policy",
        "cyber_policy",
    }
)
_NO_QUOTA: Final = frozenset(
    {"insufficient_quota", "billing_hard_limit_reached", "billing_not_active"}
)
_ADVICE: Final[dict[type[ModelError], str]] = {
    AuthenticationFailed: "the key was refused; check OPENAI_API_KEY or api_key=",
    RateLimited: "rate limit; wait and call again",
    Overloaded: "the provider failed on its side; try again later",
    ContextLengthExceeded: "the request is too long for the model; compact or trim the context",
    ContentBlocked: "the provider's filter refused it; change the prompt",
    InvalidRequest: "the request was refused; check the model's name and the options",
}


def translated(
    error: Exception, who: str, host: str, *, reading: bool, timeout: float | None = None
) -> ModelError:
    """*error* of the SDK or the network in our terms; the caller raises it ``from`` *error*.

    Args:
        who: the model, for the message.
        host: the server, for the message.
        reading: whether the answer had begun.
        timeout: seconds that were waited at most, where the call had a limit of its own.
    """
    if isinstance(error, ModelError):
        return error
    names = [base.__name__ for base in type(error).__mro__]
    if "APIStatusError" in names:
        return _status_error(error, who)
    if "APITimeoutError" in names or "TimeoutException" in names or "TimeoutError" in names:
        limit = f"for {timeout:g} s" if timeout is not None else "within the client's timeout"
        what = "no byte came" if reading else "no answer came"
        return ModelTimeout(
            f"{who}: {what} from {host} {limit}; raise timeout= or try again", provider=PROVIDER
        )
    if type(error).__module__.partition(".")[0] == "openai" and "APIConnectionError" not in names:
        found = next((MAPPED[name] for name in names if name in MAPPED), ModelError)
        return found(f"{who}: {redacted(str(error))}", provider=PROVIDER)
    reason = _reason(error)
    if reading:
        return StreamInterrupted(
            f"{who}: the connection to {host} broke in the middle of the reply ({reason}); "
            "what arrived is kept, resume the turn",
            provider=PROVIDER,
        )
    return ModelError(
        f"{who}: no connection to {host} ({reason}); check the network, base_url and proxies",
        provider=PROVIDER,
        retryable=True,
    )


def reported_error(who: str, body: Any, *, status: int | None = None) -> ModelError:
    """The error that an event of a stream, or a body with status 200, reports.

    Args:
        body: the provider's ``error`` object; some servers send a mere text.
    """
    fields = body if isinstance(body, Mapping) else {"message": body}
    code, kind, message = (_word(fields.get(key)) for key in ("code", "type", "message"))
    kind = kind.removeprefix("error")  # an event's own type says nothing
    # OpenRouter and its like put the HTTP status where OpenAI has a word.
    number = int(code) if code.isdecimal() and len(code) == 3 else None
    refused = status if status is not None and status >= 400 else number
    found, retryable = _classify(refused, code, kind, message)
    return found(
        _message(who, found, None, code or kind, message),
        provider=PROVIDER,
        status=status,
        code=code or kind or None,
        retryable=retryable,
    )


def names_a_key(error: BaseException, secret: str) -> bool:
    """Whether a traceback of *error* would show *secret*, or what looks like a key."""
    text = str(error)
    cause = error.__cause__
    found = _KEY.search(text) is not None or (bool(secret) and secret in text)
    return found or (cause is not None and names_a_key(cause, secret))


def redacted(text: str, secret: str = "") -> str:
    """*text* without keys, shortened to what a person reads."""
    if secret:
        text = text.replace(secret, "[key]")
    text = _KEY.sub("[key]", text)
    return text if len(text) <= 1_000 else text[:1_000] + "…"


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


def _status_error(error: Any, who: str) -> ModelError:
    body = error.body
    # Azure and some gateways nest it once more than the SDK unwraps.
    if isinstance(body, Mapping) and isinstance(body.get("error"), Mapping):
        body = body["error"]
    fields: Mapping[str, Any] = body if isinstance(body, Mapping) else {}
    code, kind, message = (_word(fields.get(key)) for key in ("code", "type", "message"))
    if not message and isinstance(body, str) and "<" not in body:
        message = body
    status = error.status_code
    found, retryable = _classify(status, code, kind, message)
    headers = error.response.headers
    advice = headers.get("x-should-retry", "").lower()
    if retryable is None and advice in ("true", "false"):
        retryable = advice == "true"
    return found(
        _message(who, found, status, code or kind, message),
        provider=PROVIDER,
        status=status,
        code=code or kind or None,
        retryable=retryable,
        retry_after=retry_after(headers),
    )


def _classify(
    status: int | None, code: str, kind: str, message: str
) -> tuple[type[ModelError], bool | None]:
    """The class of an error, and whether it may pass if that differs from the class's own."""
    words = {code.lower(), kind.lower()}
    if words & _NO_QUOTA:
        return RateLimited, False
    if status == 429 or words & {"rate_limit_exceeded", "rate_limit_error", "too_many_requests"}:
        return RateLimited, None
    if status in (401, 403) or words & {"invalid_api_key", "authentication_error"}:
        return AuthenticationFailed, None
    if words & _BLOCKED:
        return ContentBlocked, None
    if status == 413 or "context_length_exceeded" in words:
        return ContextLengthExceeded, None
    if status in (None, 400, 422) and _TOO_LONG.search(message):
        return ContextLengthExceeded, None
    if status in (408, 409) or (status is not None and status >= 500):
        return Overloaded, None
    if status is not None or "invalid_request_error" in words or code.startswith("invalid_"):
        return InvalidRequest, None
    return Overloaded, None


def _message(who: str, found: type[ModelError], status: int | None, code: str, message: str) -> str:
    marks = ", ".join(str(mark) for mark in (status, code) if mark)
    advice = _ADVICE.get(found, "the provider reported an error")
    said = f": {redacted(message)}" if message else ""
    return f"{who}: {advice}" + (f" ({marks})" if marks else "") + said


def _reason(error: Exception) -> str:
    """The innermost words: the SDK's own are just "Connection error."."""
    cause: BaseException = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    text = redacted(str(cause))
    return f"{type(cause).__name__}: {text}" if text else type(cause).__name__


def _word(value: Any) -> str:
    return str(value) if isinstance(value, (str, int)) else ""


def _date(text: str | None) -> datetime | None:
    try:
        date = parsedate_to_datetime(text or "")
    except ValueError:
        return None
    return date if date.tzinfo is not None else date.replace(tzinfo=UTC)
