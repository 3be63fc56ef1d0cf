"""What a whole request will take of a model's window, without asking the provider.

Texts are counted in OpenAI's ``o200k_base``; what providers put around them (marks of messages,
prompts about tools, schemas in their own form) is added as their documentation or recorded usage
gives it.  ``python -m benchmarks.token_accuracy`` holds the estimates against recorded usage.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from contextwindow.models import estimates_anthropic, estimates_gemini, estimates_openai
from contextwindow.models.tally import Count, Tally, strings
from contextwindow.tokens import count_tokens


@dataclass(frozen=True, slots=True)
class Estimate:
    """Tokens that a request will take as input.

    Attributes:
        tokens: all of them, also those that come from a cache.
        guessed: of them, those that no count of a text can know: images, files, hidden thoughts.
    """

    tokens: int
    guessed: int = 0


def estimate_request(api: str, body: Mapping[str, Any], count: Count = count_tokens) -> Estimate:
    """The input tokens of a request, as the provider will count them; it never raises.

    Args:
        api: which API, as in ``Model.api``.  Of an unknown one all texts are counted.
        body: the JSON of the request.
        count: tokens of a text in ``o200k_base``.
    """
    tally = _tally(api, body, count)
    return Estimate(tally.tokens, tally.guessed)


def is_countable(api: str, body: Mapping[str, Any]) -> str:
    """Why nobody can tell from *body* what it will take; ``""`` where that is not so."""
    if api in ("openai-chat", "openai-responses"):
        return estimates_openai.obstacle(body)
    if api == "anthropic":
        return estimates_anthropic.obstacle(body)
    if api == "gemini":
        return estimates_gemini.obstacle(body)
    return "an unknown API"


def _tally(api: str, body: Mapping[str, Any], count: Count) -> Tally:
    if api == "openai-chat":
        return estimates_openai.chat(body, count)
    if api == "openai-responses":
        return estimates_openai.responses(body, count)
    if api == "anthropic":
        return estimates_anthropic.messages(body, count)
    if api == "gemini":
        return estimates_gemini.contents(body, count)
    tally = Tally(count)
    for text in strings(body):
        tally.text(text)
    return tally
