"""Answers of a Google client that lets nobody at its bytes: its typed chunks, written anew.

A client with sessions of its own (client certificates), a replaying one, or one of a later SDK.
The chunks cost ten times as much, and a read that hangs ends no sooner than the SDK ends it.
"""

from __future__ import annotations

import base64
import json
import math
from collections.abc import AsyncIterator, Iterator
from typing import Any, Final, Literal, TypeAlias

Want: TypeAlias = Literal["stream", "body", "count"]
"""What a call is for: a streamed reply, one in a single body, or the tokens of its input."""

_DEFAULT_TIMEOUT: Final = 600.0
_BYTES: Final = frozenset({"thoughtSignature", "data"})


class TypedCall:
    """One call, and the answer to it in the form in which answers are read."""

    def __init__(
        self,
        client: Any,
        model: str,
        body: dict[str, Any],
        want: Want,
        http_options: dict[str, Any],
        timeout: Any,
    ) -> None:
        self.headers = {"content-type": "text/event-stream"}
        self.extensions: dict[str, Any] = {}
        self.counted: Any = None
        self._client = client
        self._want = want
        self._chunks: Any = None
        self._first: Any = None
        seconds = (timeout.read if timeout is not None else None) or _DEFAULT_TIMEOUT
        # The SDK asks the server to give up after the seconds that are meant for silence.
        headers = {"X-Server-Timeout": str(math.ceil(max(seconds, _DEFAULT_TIMEOUT)))}
        options = {
            **http_options,
            "timeout": math.ceil(seconds * 1_000),
            "headers": {**headers, **(http_options.get("headers") or {})},
            "extra_body": {
                **(http_options.get("extra_body") or {}),
                **(to_be_counted(client, model, body) if want == "count" else body),
            },
        }
        self._arguments = sdk_arguments(model, options, want)

    @property
    def http_response(self) -> TypedCall:
        """Itself."""
        return self

    def __enter__(self) -> TypedCall:
        models = self._client.models
        if self._want == "count":
            self.counted = models.count_tokens(**self._arguments).total_tokens
            return self
        if self._want == "stream":
            self._chunks = models.generate_content_stream(**self._arguments)
        else:
            self._chunks = iter([models.generate_content(**self._arguments)])
        self._first = next(self._chunks, None)
        return self

    def __exit__(self, *_error: object) -> None:
        close = getattr(self._chunks, "close", None)
        if close is not None:
            close()

    async def __aenter__(self) -> TypedCall:
        models = self._client.aio.models
        if self._want == "count":
            self.counted = (await models.count_tokens(**self._arguments)).total_tokens
            return self
        if self._want == "stream":
            self._chunks = await models.generate_content_stream(**self._arguments)
        else:
            self._chunks = _only(await models.generate_content(**self._arguments))
        self._first = await anext(self._chunks, None)
        return self

    async def __aexit__(self, *_error: object) -> None:
        close = getattr(self._chunks, "aclose", None)
        if close is not None:
            await close()

    def iter_raw(self) -> Iterator[bytes]:
        """The answer's events."""
        chunk = self._first
        while chunk is not None:
            yield _event(chunk)
            chunk = next(self._chunks, None)

    async def aiter_raw(self) -> AsyncIterator[bytes]:
        """The answer's events."""
        chunk = self._first
        while chunk is not None:
            yield _event(chunk)
            chunk = await anext(self._chunks, None)


def sdk_arguments(model: str, http_options: dict[str, Any], want: Want) -> dict[str, Any]:
    """Arguments of the SDK's methods that let it address and sign a request, and no more."""
    if want == "count":
        options = {**http_options, "retry_options": {"attempts": 1}}
        return {"model": model, "contents": ".", "config": {"http_options": options}}
    return {
        "model": model,
        "contents": ".",
        "config": {
            # google-genai 3.4: after a drop it would ask again, and duplicate text.
            "automatic_continuation": False,
            "automatic_function_calling": {"disable": True},
            "http_options": {**http_options, "retry_options": {"attempts": 1}},
        },
    }


def to_be_counted(client: Any, model: str, body: dict[str, Any]) -> dict[str, Any]:
    """The body of ``countTokens`` for the *body* of a call.

    The Gemini API counts system prompt and tools only in a whole request, and then ignores the
    contents beside it; Vertex AI takes the fields themselves (both references, read 2026-11).
    """
    api = getattr(client, "_api_client", None) or getattr(client.models, "_api_client", None)
    if getattr(api, "vertexai", False):
        counted = ("contents", "systemInstruction", "tools", "generationConfig")
        return {name: body[name] for name in counted if name in body}
    name = model if "/" in model else f"models/{model}"
    return {"generateContentRequest": {"model": name, **body}}


async def _only(answer: Any) -> AsyncIterator[Any]:
    yield answer


def _event(chunk: Any) -> bytes:
    """A typed chunk as the server would have sent it."""
    fields = chunk.model_dump(
        mode="json",
        by_alias=True,
        exclude_none=True,
        exclude={"sdk_http_response", "automatic_function_calling_history", "parsed"},
    )
    return b"data: " + json.dumps(_plain(fields)).encode() + b"\n\n"


def _plain(value: Any) -> Any:
    """*value* with bytes in the base64 of the server: pydantic writes that of URLs."""
    if isinstance(value, dict):
        return {
            key: _standard(member) if key in _BYTES else _plain(member)
            for key, member in value.items()
        }
    if isinstance(value, list):
        return [_plain(member) for member in value]
    return value


def _standard(text: Any) -> Any:
    if not isinstance(text, str):
        return _plain(text)
    try:
        return base64.b64encode(base64.urlsafe_b64decode(text)).decode("ascii")
    except ValueError:
        return text
