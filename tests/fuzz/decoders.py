"""What must hold of any answer, however broken: shared by the fuzzer and the tests.

Answers are bytes of an event stream or of one body.  Whatever they are, a decoder gives items or
one of our errors, and the same ones however the network cuts the bytes.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Final

from decoding import Decoded, decode, pieces

from contextwindow.errors import ModelError
from contextwindow.models.anthropic_decoder import AnthropicDecoder
from contextwindow.models.base import Decoder
from contextwindow.models.chat_decoder import ChatDecoder
from contextwindow.models.gemini_decoder import GeminiDecoder
from contextwindow.models.responses_decoder import ResponsesDecoder

DECODERS: Final[dict[str, Callable[[], Decoder]]] = {
    "openai-chat": lambda: ChatDecoder("m"),
    "openai-responses": lambda: ResponsesDecoder("m"),
    "anthropic": lambda: AnthropicDecoder("m"),
    "gemini": lambda: GeminiDecoder("m"),
}


def check(api: str, body: bytes) -> Decoded:
    """Decode *body* whole, byte by byte and in random pieces.

    Raises:
        AssertionError: the results differ, or make no sense.
    """
    whole = decode(DECODERS[api](), [body])
    assert whole.error is not None or whole.decoder.finished
    chance = random.Random(len(body))
    ways = [pieces(body, {chance.randrange(len(body)) for _ in range(5)})] if body else []
    if len(body) < 5_000:
        ways.append([body[at : at + 1] for at in range(len(body))])
    for way in ways:
        cut = decode(DECODERS[api](), way)
        for kind in ("text", "reasoning", "refusal", "tool_call"):
            assert cut.text(kind) == whole.text(kind), kind
        assert type(cut.error) is type(whole.error), (cut.error, whole.error)
        assert cut.decoder.usage == whole.decoder.usage
        assert cut.decoder.finish_reason == whole.decoder.finish_reason
    if whole.decoder.usage is not None:
        usage = whole.decoder.usage
        assert min(usage.input_tokens, usage.output_tokens, usage.cache_read_tokens) >= 0
    for part in whole.parts.values():
        part.text.encode()
    if whole.error is not None:
        assert isinstance(whole.error, ModelError)
        str(whole.error).encode()
    return whole
