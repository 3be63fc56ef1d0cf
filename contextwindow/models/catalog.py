"""What is known about models without asking a provider: names, limits, prices.

Limits and prices come from genai-prices, which is offline; its first use costs about 200 ms.
"""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal
from typing import Any, Final

from contextwindow.errors import ConfigError
from contextwindow.models.base import Model
from contextwindow.models.prices import Prices, cost_by, written_down
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
        case "gemini":
            from contextwindow.models.gemini import GeminiModel

            return GeminiModel(name)
        case "anthropic":
            from contextwindow.models.anthropic import AnthropicModel

            return AnthropicModel(name)
        case _:
            raise ConfigError(f"{text!r} names no known provider: write {FORMS}")


def context_limit(provider: str, model: str) -> int | None:
    """Tokens that *model* takes, or None when that is not known."""
    calculation = _calculation(provider, model, Usage())
    limit = getattr(getattr(calculation, "model", None), "context_window", None)
    return limit if isinstance(limit, int) and limit > 0 else None


def price(
    provider: str,
    model: str,
    usage: Usage,
    *,
    url: str | None = None,
    tier: str | None = None,
    at: datetime | None = None,
) -> Decimal | None:
    """US dollars for *usage* of *model*, or None when its price is not known; never a guess.

    Args:
        url: of the server, where it is not the provider's own: its prices are looked up by it.
        tier: the service tier that was asked for, such as ``"flex"``.
        at: when the call was made; None is now.
    """
    found = _calculation(provider, model, usage, url=url, tier=tier, at=at)
    total = getattr(found, "total_price", None)
    if not isinstance(total, Decimal):
        return None
    for tokens, name in ((usage.input_tokens, "input"), (usage.output_tokens, "output")):
        # What has no price costs nothing in the sum, and free is also what is not known.
        if tokens > 0 and not getattr(found.model_price, f"{name}_mtok", None):
            return None
    return total


class CallPrices:
    """What the calls of one turn cost.

    Args:
        model: its own ``prices`` come first; then those of the catalog.
        tier: the service tier that is asked for, or None.
    """

    def __init__(self, model: Model, tier: object = None) -> None:
        self._model = model
        self._tier = tier if isinstance(tier, str) else None

    def __call__(self, usage: Usage, answered: str | None = None) -> Decimal | None:
        """US dollars for *usage*, or None when that is not known.

        Args:
            answered: the model that the provider named; an alias or a deployment has another.
        """
        model = self._model
        if model.prices is not None:
            return cost_by(model.prices, usage)
        return _first_price(model.provider, (answered, model.name), usage, model.url, self._tier)

    def written_down(self) -> dict[str, Any]:
        """What has to be kept with a call, so that it can be priced when its process has died."""
        kept: dict[str, Any] = {}
        if self._model.prices is not None:
            kept["prices"] = written_down(self._model.prices)
        if self._model.url is not None:
            kept["server"] = self._model.url
        return kept


def price_written(
    provider: str, model: str, usage: Usage, options: dict[str, Any], at: datetime
) -> Decimal | None:
    """US dollars for a call of a process that has died, from what it had written down."""
    if "prices" in options:
        prices = options["prices"]
        return Prices(**prices).cost(usage) if prices else None
    tier = options.get("extra", {}).get("service_tier")
    return _first_price(provider, (model,), usage, options.get("server"), tier, at)


def _first_price(
    provider: str,
    names: tuple[str | None, ...],
    usage: Usage,
    url: str | None,
    tier: str | None,
    at: datetime | None = None,
) -> Decimal | None:
    for name in dict.fromkeys(filter(None, names)):
        found = price(provider, name, usage, url=url, tier=tier, at=at)
        if found is not None:
            return found
    return None


def _calculation(
    provider: str,
    model: str,
    usage: Usage,
    *,
    url: str | None = None,
    tier: str | None = None,
    at: datetime | None = None,
) -> Any:
    """genai-prices' answer, or None: a price is never worth an exception."""
    key = (provider, model, url)
    # Without a provider it would take the first that has a model of such a name.
    if key in _UNKNOWN or not (provider or url):
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
        place = {"provider_id": provider} if url is None else {"provider_api_url": url}
        context = None if tier is None else {"service_tier": tier}
        return calc_price(
            counted, model, genai_request_timestamp=at, price_context=context, **place
        )
    except LookupError:
        _UNKNOWN.add(key)
        return None
    except Exception:  # noqa: BLE001 - odd counts
        return None


# Looking for a model that is not there takes longer than finding one.
_UNKNOWN: Final[set[tuple[str, str, str | None]]] = set()
