"""Anthropic's errors, whether raised by the SDK or reported in a stream, in our terms."""

from __future__ import annotations

import re
from collections.abc import Mapping
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
from contextwindow.models.failures import connection_error, retry_after, said_by
from contextwindow.models.secrets import redacted

PROVIDER: Final = "anthropic"

# By name, so that this module does not load the SDK (1.4 s).  Status errors go by their status.
MAPPED: Final[dict[str, type[ModelError]]] = {
    "APITimeoutError": ModelTimeout,
    "APIConnectionError": ModelError,
    "APIResponseValidationError": StreamInterrupted,
    "APIWebhookValidationError": InvalidRequest,
    "APIStatusError": ModelError,
    "RetryableError": ModelError,
    "CredentialsError": AuthenticationFailed,
    "WorkloadIdentityError": AuthenticationFailed,
    "MutuallyExclusiveAuthError": AuthenticationFailed,
    "StreamAlreadyConsumed": StreamInterrupted,
    "MissingDependencyError": InvalidRequest,
    "ToolsetUsageError": InvalidRequest,
}
"""The SDK's exception classes; a class that is not named goes as its nearest named base."""

_TOO_LONG: Final = re.compile(
    r"prompt is too long|context (?:window|limit|length)|exceed\w* .{0,40}context"
    r"|too many (?:total )?(?:text |input )?(?:bytes|tokens)"
    r"|input length and `?max_tokens`? exceed",
    re.IGNORECASE,
)
_NO_CREDIT: Final = re.compile(r"credit balance|billing|spend limit|usage limits", re.IGNORECASE)
_BLOCKED: Final = re.compile(r"content filter(?:ing)? policy|usage polic", re.IGNORECASE)

_KINDS: Final[dict[str, type[ModelError]]] = {
    "invalid_request_error": InvalidRequest,
    "authentication_error": AuthenticationFailed,
    "permission_error": AuthenticationFailed,
    "billing_error": RateLimited,
    "not_found_error": InvalidRequest,
    "request_too_large": ContextLengthExceeded,
    "rate_limit_error": RateLimited,
    "timeout_error": Overloaded,
    "gateway_timeout_error": Overloaded,
    "api_error": Overloaded,
    "overloaded_error": Overloaded,
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
    own = type(error).__module__.partition(".")[0] == "anthropic"
    if own and "APIConnectionError" not in names:
        found = next((MAPPED[name] for name in names if name in MAPPED), ModelError)
        return found(f"{who}: {redacted(str(error))}", provider=PROVIDER)
    return connection_error(error, who, host, provider=PROVIDER, reading=reading, timeout=timeout)


def reported_error(who: str, body: Any) -> ModelError:
    """The error that an event of a stream, or a body with status 200, reports.

    Args:
        body: the provider's ``error`` object.
    """
    return _made(who, body, None, None, None)


def _status_error(error: Any, who: str) -> ModelError:
    body = error.body
    if isinstance(body, Mapping) and isinstance(body.get("error"), Mapping):
        body = body["error"]
    headers = error.response.headers
    advice = headers.get("x-should-retry", "").lower()
    retryable = {"true": True, "false": False}.get(advice)
    # In a stream the SDK raises with the status of the answer, which was 200.
    status = error.status_code if error.status_code >= 400 else None
    return _made(who, body, status, retry_after(headers), retryable)


def _made(
    who: str, body: Any, status: int | None, wait: float | None, advised: bool | None
) -> ModelError:
    fields: Mapping[str, Any] = body if isinstance(body, Mapping) else {"message": body}
    kind, message = (_word(fields.get(name)) for name in ("type", "message"))
    found, retryable = _classify(status, kind, message)
    return found(
        said_by(who, found, status, kind, message, key="ANTHROPIC_API_KEY or api_key="),
        provider=PROVIDER,
        status=status,
        code=kind or None,
        retryable=advised if retryable is None else retryable,
        retry_after=wait,
    )


def _classify(status: int | None, kind: str, message: str) -> tuple[type[ModelError], bool | None]:
    """The class of an error, and whether it may pass if that differs from the class's own."""
    if kind == "billing_error" or status == 402 or _NO_CREDIT.search(message):
        return RateLimited, False
    if status in (None, 400, 413, 422) and _TOO_LONG.search(message):
        return ContextLengthExceeded, None
    if status in (None, 400) and _BLOCKED.search(message):
        return ContentBlocked, None
    if kind in _KINDS:
        return _KINDS[kind], None
    if status == 429:
        return RateLimited, None
    if status in (401, 403):
        return AuthenticationFailed, None
    if status == 413:
        return ContextLengthExceeded, None
    if status is None or status in (408, 409) or status >= 500:
        return Overloaded, None
    return InvalidRequest, None


def _word(value: Any) -> str:
    return str(value) if isinstance(value, (str, int)) else ""
