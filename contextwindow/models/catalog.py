"""What is known about models without asking a provider: names, limits, prices.

Limits and prices come from genai-prices, which is offline; its first use costs about 200 ms.
"""

from __future__ import annotations

from decimal import Decimal
from typing import Any, Final

from contextwindow.errors import ConfigError
from contextwindow.models.base import Model
from contextwindow.records import Usage

FORMS: Final = "'openai:NAME', 'openai-chat:NAME', 'anthropic:NAME' or 'gemini:NAME'"


def model_from_string(text: str) -> Model:
    """The model that *text* names, such as ``"openai:gpt-5"`` (Responses API).

    Raises:
        ConfigError: the form or the provider is unknown, or its key is not set.
    """
    prefix, colon, name = text.partition(":")
    name = name.strip()
    if not colon or not name:
        raise ConfigError(f"{text!r} names no model: write {FORMS}")
    match prefix.strip():
        case "openai":
            from contextwindow.models.openai_responses import OpenAIResponsesModel

            return OpenAIResponsesModel(name)
        case "openai-chat":
            from contextwindow.models.openai_chat import OpenAIChatModel

            return OpenAIChatModel(name)
        case "anthropic" | "gemini":
            raise ConfigError(
                f"{text!r}: {prefix} models are not available in this version; "
                "use 'openai:NAME' or 'openai-chat:NAME'"
            )
        case _:
            raise ConfigError(f"{text!r} names no known provider: write {FORMS}")


def context_limit(provider: str, model: str) -> int | None:
    """Tokens that *model* takes, or None when that is not known."""
    calculation = _calculation(provider, model, Usage())
    limit = getattr(getattr(calculation, "model", None), "context_window", None)
    return limit if isinstance(limit, int) and limit > 0 else None


def price(provider: str, model: str, usage: Usage) -> Decimal | None:
    """US dollars for *usage* of *model*, or None when its price is not known."""
    total = getattr(_calculation(provider, model, usage), "total_price", None)
    return total if isinstance(total, Decimal) else None


def _calculation(provider: str, model: str, usage: Usage) -> Any:
    """genai-prices' answer, or None: a price is never worth an exception."""
    if (provider, model) in _UNKNOWN:
        return None
    try:
        from genai_prices import Usage as Priced
        from genai_prices import calc_price

        # Its input_tokens include the cached ones, as ours do (genai-prices 0.2.3).
        read = min(usage.cache_read_tokens, usage.input_tokens)
        counted = Priced(
            input_tokens=usage.input_tokens,
            output_tokens=usage.output_tokens,
            cache_read_tokens=read or None,
            cache_write_tokens=min(usage.cache_write_tokens, usage.input_tokens - read) or None,
        )
        return calc_price(counted, model, provider_id=provider or None)
    except LookupError:
        _UNKNOWN.add((provider, model))
        return None
    except Exception:  # noqa: BLE001 - odd counts
        return None


# Looking for a model that is not there takes longer than finding one.
_UNKNOWN: Final[set[tuple[str, str]]] = set()
