"""OpenAI's errors, whether raised by the SDK or reported in a stream, in our terms."""

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
    own = type(error).__module__.partition(".")[0] == "openai"
    if own and "APIConnectionError" not in names:
        found = next((MAPPED[name] for name in names if name in MAPPED), ModelError)
        return found(f"{who}: {redacted(str(error))}", provider=PROVIDER)
    return connection_error(error, who, host, provider=PROVIDER, reading=reading, timeout=timeout)


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
    return said_by(who, found, status, code, message, key="OPENAI_API_KEY or api_key=")


def _word(value: Any) -> str:
    return str(value) if isinstance(value, (str, int)) else ""
