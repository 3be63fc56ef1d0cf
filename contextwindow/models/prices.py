"""What tokens cost where the caller knows better than the catalog."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, fields
from decimal import Decimal, InvalidOperation
from typing import Any, Final

from contextwindow.errors import ConfigError
from contextwindow.records import Usage

_MILLION: Final = Decimal(1_000_000)

_log = logging.getLogger("contextwindow")


@dataclass(frozen=True, slots=True)
class Prices:
    """Prices of a model, in US dollars for a million tokens.

    Attributes:
        input: what is sent, and neither read from the provider's cache nor written to it.
        output: what comes back, reasoning included.
        cache_read: input that the provider had in its cache; None costs as *input*.
        cache_write: input that it put there; None costs as *input*.

    Raises:
        ConfigError: a price is no number of 0 or above.
    """

    input: Decimal | str | float
    output: Decimal | str | float
    cache_read: Decimal | str | float | None = None
    cache_write: Decimal | str | float | None = None

    def __post_init__(self) -> None:
        for field in fields(self):
            given = getattr(self, field.name)
            if given is not None or field.name in ("input", "output"):
                object.__setattr__(self, field.name, _price(field.name, given))

    def cost(self, usage: Usage) -> Decimal:
        """US dollars for *usage*."""
        read, written = usage.cache_read_tokens, usage.cache_write_tokens
        plain = max(0, usage.input_tokens - read - written)
        total = plain * Decimal(self.input) + usage.output_tokens * Decimal(self.output)
        total += read * Decimal(self.input if self.cache_read is None else self.cache_read)
        total += written * Decimal(self.input if self.cache_write is None else self.cache_write)
        return total / _MILLION


Pricing = Prices | Callable[[Usage], Decimal | None]


def check_prices(given: object) -> Pricing | None:
    """*given* as prices.

    Raises:
        ConfigError: it is neither prices, a function nor None.
    """
    if given is None or isinstance(given, Prices) or callable(given):
        return given
    raise ConfigError(f"prices must be Prices(input, output) or a function, not {given!r}")


def cost_by(pricing: Pricing, usage: Usage) -> Decimal | None:
    """What *usage* costs by *pricing*; None where a function does not say, or says nonsense."""
    if isinstance(pricing, Prices):
        return pricing.cost(usage)
    try:
        found: Any = pricing(usage)
        return None if found is None else _price("cost", found)
    except Exception as error:  # noqa: BLE001 - a price is never worth a turn
        _log.warning("the prices of a model failed, the cost is not known: %r", error)
        return None


def written_down(pricing: Pricing) -> dict[str, str] | None:
    """*pricing* as it is kept with a call; None for a function."""
    if not isinstance(pricing, Prices):
        return None
    found = {field.name: getattr(pricing, field.name) for field in fields(pricing)}
    return {name: str(value) for name, value in found.items() if value is not None}


def _price(name: str, given: object) -> Decimal:
    try:
        if isinstance(given, bool) or not isinstance(given, (Decimal, str, int, float)):
            raise ValueError
        value = Decimal(str(given))
        if not value.is_finite() or value < 0 or value >= _MILLION:
            raise ValueError
    except (ValueError, InvalidOperation):
        raise ConfigError(
            f"{name} must be US dollars, a number from 0 to below a million, not {given!r}"
        ) from None
    return value
