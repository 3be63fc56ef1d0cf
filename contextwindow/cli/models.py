"""The model that a command talks to, as it is named on the command line."""

from __future__ import annotations

from contextwindow import (
    Call,
    ConfigError,
    ContextWindow,
    Model,
    OpenAIChatModel,
    OpenAIResponsesModel,
)


def chosen(model: str, base_url: str | None) -> Model | str:
    """What a window is given; a ``Model`` is the caller's to close.

    Raises:
        ConfigError: *model* is none that speaks at *base_url*.
    """
    if base_url is None:
        return model
    kind, _, name = model.partition(":")
    if kind == "openai" and name:
        return OpenAIResponsesModel(name, base_url=base_url)
    if kind == "openai-chat" and name:
        return OpenAIChatModel(name, base_url=base_url)
    raise ConfigError(
        f"with --base-url the model is openai:NAME or openai-chat:NAME, not {model!r}"
    )


def last_used(window: ContextWindow) -> str:
    """The model that the context called last, to be called again.

    Raises:
        ConfigError: none was called yet.
    """
    calls = window.calls()
    if not calls:
        raise ConfigError("no model was called in this context yet: name one with --model")
    return f"{_prefix(calls[-1])}:{calls[-1].model}"


def _prefix(call: Call) -> str:
    """What names the provider's API; OpenAI has two, told apart by their ids of responses."""
    if call.provider != "openai" or (call.response_id or "").startswith("resp_"):
        return call.provider
    return "openai-chat"
