"""Models of all four APIs that ask one fake provider."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Final

import pytest
from support import Open

from contextwindow import (
    AnthropicModel,
    ContextWindow,
    GeminiModel,
    Model,
    OpenAIChatModel,
    OpenAIResponsesModel,
)
from contextwindow.testing import FakeProvider

APIS: Final = ("openai-chat", "openai-responses", "anthropic", "gemini")
PAIRS: Final = [(one, two) for one in APIS for two in APIS if one != two]


@pytest.fixture
def provider() -> Iterator[FakeProvider]:
    """A provider that refuses what the real ones refuse."""
    with FakeProvider() as running:
        yield running


@pytest.fixture
def opened(run: Open, provider: FakeProvider) -> Iterator[Callable[..., ContextWindow]]:
    """Opens windows on the models of an API, and closes the models in the end."""
    made: list[tuple[Any, Model]] = []

    def open_window(api: str, database: Any, **options: Any) -> ContextWindow:
        asked = model(api, provider, **options.pop("model", {}))
        window = run(database, "chat", model=asked, **options)
        made.append((window, asked))
        return window

    yield open_window
    for window, asked in made:
        runner = vars(window).get("_runner")
        if runner is None:
            asked.close()
        else:
            runner.run(asked.aclose())


def model(api: str, provider: FakeProvider, **options: Any) -> Model:
    """A model of *api* that asks *provider*."""
    match api:
        case "openai-chat":
            return OpenAIChatModel("gpt-5", base_url=provider.openai_url, api_key="k", **options)
        case "openai-responses":
            url = provider.openai_url
            return OpenAIResponsesModel("gpt-5", base_url=url, api_key="k", **options)
        case "anthropic":
            name = options.pop("name", "claude-haiku-4-5")
            return AnthropicModel(name, base_url=provider.anthropic_url, api_key="k", **options)
        case _:
            name = options.pop("name", "gemini-3-pro")
            return GeminiModel(name, base_url=provider.gemini_url, api_key="k", **options)
