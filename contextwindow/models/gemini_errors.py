"""Gemini's errors, whether raised by the SDK or reported in an answer, in our terms."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

from contextwindow.errors import (
    AuthenticationFailed,
    ContentBlocked,
    ContextLengthExceeded,
    InvalidRequest,
    ModelError,
    Overloaded,
    RateLimited,
    StreamInterrupted,
)
from contextwindow.models.failures import connection_error, retry_after, said_by
from contextwindow.models.secrets import redacted

PROVIDER: Final = "google"

# By name, so that this module does not load the SDK (0.4 s).  Status errors go by their status.
MAPPED: Final[dict[str, type[ModelError]]] = {
    "APIError": ModelError,
    "EphemeralTokenAPIKeyError": AuthenticationFailed,
    "UnknownFunctionCallArgumentError": InvalidRequest,
    "UnsupportedFunctionError": InvalidRequest,
    "FunctionInvocationError": InvalidRequest,
    "UnknownApiResponseError": StreamInterrupted,
    "ContinuationInterruptedError": StreamInterrupted,
    "ExperimentalWarning": InvalidRequest,
    "GoogleAuthError": AuthenticationFailed,
}
"""The SDK's exception classes; a class that is not named goes as its nearest named base."""

_TOO_LONG: Final = re.compile(
    r"token count.{0,40}exceeds|exceeds? the maximum number of (?:input )?tokens"
    r"|context[ _-]?(?:window|length|size)|prompt is too long|payload size exceeds",
    re.IGNORECASE,
)
_BAD_KEY: Final = re.compile(r"API[ _]key (?:not|expired|is invalid|invalid)", re.IGNORECASE)
# Quotas that waiting for a minute does not renew.
_LONG_QUOTA: Final = re.compile(r"per[ _-]?(?:day|month)|\blimit: 0\b", re.IGNORECASE)
_DELAY: Final = re.compile(r"(\d+(?:\.\d+)?)s")
# google.rpc.Code, as far as the words say what the HTTP status may not.
_WORDS: Final[dict[str, int]] = {
    "RESOURCE_EXHAUSTED": 429,
    "UNAUTHENTICATED": 401,
    "PERMISSION_DENIED": 403,
    "NOT_FOUND": 404,
    "INVALID_ARGUMENT": 400,
    "FAILED_PRECONDITION": 400,
    "OUT_OF_RANGE": 400,
    "UNIMPLEMENTED": 400,
    "ABORTED": 409,
    "CANCELLED": 503,
    "DEADLINE_EXCEEDED": 504,
    "INTERNAL": 500,
    "UNKNOWN": 500,
    "UNAVAILABLE": 503,
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
    if is_own(error):
        if "APIError" in names:
            return _status_error(error, who, reading=reading)
        # google-auth names what the network did to it as others do.
        if "TransportError" not in names:
            found = next((MAPPED[name] for name in names if name in MAPPED), ModelError)
            return found(f"{who}: {redacted(str(error))}", provider=PROVIDER)
    return connection_error(error, who, host, provider=PROVIDER, reading=reading, timeout=timeout)


def is_own(error: Exception) -> bool:
    """Whether *error* is of a class of Google's libraries."""
    return type(error).__module__.partition(".")[0] == "google"


def reported_error(who: str, body: Any, *, status: int | None = None) -> ModelError:
    """The error that an event of a stream, or a body with status 200, reports.

    Args:
        body: the provider's ``error`` object.
        status: HTTP status of the answer, where it is worth telling.
    """
    fields: Mapping[str, Any] = body if isinstance(body, Mapping) else {"message": body}
    code = fields.get("code")
    number = code if isinstance(code, int) and not isinstance(code, bool) else None
    word = _word(fields.get("status"))
    message = _word(fields.get("message"))
    refused = _WORDS.get(word, number)
    found, retryable = _classify(refused, message, fields)
    return found(
        _message(who, found, None, word, message),
        provider=PROVIDER,
        status=status,
        code=word or (str(number) if number is not None else None),
        retryable=retryable,
        retry_after=_delay(fields),
    )


def blocked_prompt(who: str, feedback: Mapping[str, Any]) -> ContentBlocked:
    """The refusal of a prompt: an answer that holds no candidate, only *feedback*."""
    reason = _word(feedback.get("blockReason"))
    message = _word(feedback.get("blockReasonMessage"))
    return ContentBlocked(
        _message(who, ContentBlocked, None, reason, message),
        provider=PROVIDER,
        status=200,
        code=reason or None,
    )


def _status_error(error: Any, who: str, *, reading: bool) -> ModelError:
    details = error.details
    inner = details.get("error") if isinstance(details, Mapping) else None
    fields: Mapping[str, Any] = inner if isinstance(inner, Mapping) else {}
    status = error.code if isinstance(error.code, int) else None
    # Without an error of the API the SDK puts the body and the reason phrase in its place.
    word = _word(fields.get("status"))
    message = _word(fields.get("message")) or _page(_word(error.message))
    found, retryable = _classify(status or _WORDS.get(word), message, fields)
    headers = getattr(error.response, "headers", None) or {}
    wait = _delay(fields)
    return found(
        _message(who, found, None if reading else status, word, message),
        provider=PROVIDER,
        status=None if reading else status,
        code=word or None,
        retryable=retryable,
        retry_after=retry_after(headers) if wait is None else wait,
    )


def _classify(
    status: int | None, message: str, fields: Mapping[str, Any]
) -> tuple[type[ModelError], bool | None]:
    """The class of an error, and whether it may pass if that differs from the class's own."""
    reasons = {_word(detail.get("reason")) for detail in _details(fields, "ErrorInfo")}
    bad_key = any(reason.startswith("API_KEY_") for reason in reasons)
    if status in (401, 403) or bad_key or (status == 400 and _BAD_KEY.search(message)):
        return AuthenticationFailed, None
    if status == 429:
        quotas = " ".join(
            _word(violation.get("quotaId"))
            for detail in _details(fields, "QuotaFailure")
            for violation in detail.get("violations") or ()
            if isinstance(violation, Mapping)
        )
        return RateLimited, False if _LONG_QUOTA.search(f"{quotas} {message}") else None
    if status == 413 or (status in (None, 400, 422) and _TOO_LONG.search(message)):
        return ContextLengthExceeded, None
    if status is None or status in (408, 409, 499) or status >= 500:
        return Overloaded, None
    return InvalidRequest, None


def _delay(fields: Mapping[str, Any]) -> float | None:
    """Seconds to wait, from ``google.rpc.RetryInfo``."""
    for detail in _details(fields, "RetryInfo"):
        found = _DELAY.fullmatch(_word(detail.get("retryDelay")))
        if found is not None:
            return float(found[1])
    return None


def _details(fields: Mapping[str, Any], kind: str) -> Iterator[Mapping[str, Any]]:
    details = fields.get("details")
    for detail in details if isinstance(details, list) else ():
        if isinstance(detail, Mapping) and _word(detail.get("@type")).endswith(f".{kind}"):
            yield detail


def _page(text: str) -> str:
    """The text of an answer that is no error of the API; pages of HTML say nothing."""
    return "" if "<" in text else text


def _message(who: str, found: type[ModelError], status: int | None, code: str, message: str) -> str:
    return said_by(who, found, status, code, message, key="GEMINI_API_KEY or api_key=")


def _word(value: Any) -> str:
    return value if isinstance(value, str) else ""
