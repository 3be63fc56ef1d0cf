"""Keys and passwords: where a model is given them, and how they are kept out of what it says."""

from __future__ import annotations

import json
import re
from base64 import b64encode
from collections.abc import Collection, Iterator, Mapping
from types import TracebackType
from typing import Any, Final
from urllib.parse import quote, unquote, urlsplit

_SHORTEST: Final = 8
"""Characters of a secret; shorter texts are dummies and would be found in plain words."""

# OpenAI's and Anthropic's keys, Google's, bearer tokens, and headers that cannot be sent.
_KEY: Final = re.compile(
    r"\b(?:sk|sess|pk)-[\w*.\-]{4,}|\bAIza[\w\-]{10,}|\bya29\.[\w.\-]{10,}"
    r"|\bbearer\s+[\w.\-+/=~]{8,}|(?<=Illegal header value )b?(?:'[^']*'|\"[^\"]*\")",
    re.IGNORECASE,
)
# Passwords and keys in an address; what stands before them is kept.
_IN_ADDRESS: Final = re.compile(
    r"(://[^\s/:@'\"]*:)[^\s/@'\"]+(?=@)"
    r"|([?&][\w.\-]*(?:key|token|secret|password|sig|signature)=)[^&\s'\"]+",
    re.IGNORECASE,
)
_TELLING: Final = re.compile(r"key|token|secret|auth|cookie|passw|credential|signature", re.I)
_PACKAGE: Final = __name__.partition(".")[0] + "."


def secrets_in(
    *keys: Any,
    headers: Any = None,
    query: Any = None,
    address: str | None = None,
) -> frozenset[str]:
    """What no message may hold.

    Args:
        keys: what may be a key; all but texts is passed over.
        headers: for every request; of those whose name tells of a secret the values are taken.
        query: as *headers*, for the query of the address.
        address: of the server; its user, password and query are taken.
    """
    texts = [_text(key) for key in keys]
    for fields in (headers, query):
        if isinstance(fields, Mapping):
            texts += [_text(value) for name, value in fields.items() if tells_of_secrets(str(name))]
    if address is not None:
        texts += _in_address(address)
    found: set[str] = set()
    for text in texts:
        # "Bearer KEY": a message may name the one or the other.
        for secret in (text.strip(), text.strip().rpartition(" ")[2]):
            if len(secret) >= _SHORTEST:
                found |= {secret, quote(secret), quote(secret, safe=""), json.dumps(secret)[1:-1]}
    return frozenset(found)


def tells_of_secrets(name: str) -> bool:
    """Whether what is called *name*, a header or a field of a query, is likely to be one."""
    return _TELLING.search(name) is not None


def redacted(text: str, secrets: Collection[str] = ()) -> str:
    """*text* without *secrets* and what looks like keys, shortened to what a person reads."""
    # The longest first: one may be a part of another.
    for secret in sorted(secrets, key=len, reverse=True):
        text = text.replace(secret, "[key]")
    text = _IN_ADDRESS.sub(lambda found: (found[1] or found[2]) + "[key]", _KEY.sub("[key]", text))
    return text if len(text) <= 1_000 else text[:1_000] + "…"


def shows_secrets(error: BaseException, secrets: Collection[str]) -> bool:
    """Whether a report of *error*, its causes and its contexts would show a secret."""
    return any(_shows(one, secrets) for one in _chain(error))


def without_our_frames(error: Exception) -> Exception:
    """*error* with a traceback that begins where another package's code does.

    The locals of our frames are the whole request, and some programs report locals.
    """
    trace: TracebackType | None = error.__traceback__
    while trace is not None and _is_ours(trace):
        trace = trace.tb_next
    return error.with_traceback(trace)


def _is_ours(trace: TracebackType) -> bool:
    return str(trace.tb_frame.f_globals.get("__name__", "")).startswith(_PACKAGE)


def _shows(error: BaseException, secrets: Collection[str]) -> bool:
    text = f"{error} {error!r} {vars(error)!r}"
    return (
        _KEY.search(text) is not None
        or _IN_ADDRESS.search(text) is not None
        or any(secret in text for secret in secrets)
    )


def _chain(error: BaseException) -> Iterator[BaseException]:
    waiting: list[BaseException | None] = [error]
    seen: set[int] = set()
    while waiting:
        one = waiting.pop()
        if one is not None and id(one) not in seen:
            seen.add(id(one))
            yield one
            waiting += [one.__cause__, one.__context__]


def _in_address(address: str) -> list[str]:
    try:
        parts = urlsplit(address)
    except ValueError:
        return []
    user, _, password = parts.netloc.rpartition("@")[0].partition(":")
    fields = [field.partition("=") for field in parts.query.split("&")]
    values = [value for name, _, value in fields if tells_of_secrets(unquote(name))]
    basic = b64encode(f"{unquote(user)}:{unquote(password)}".encode()).decode() if user else ""
    return [text for one in (user, password, *values) for text in (one, unquote(one))] + [basic]


def _text(value: Any) -> str:
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    return value if isinstance(value, str) else ""
