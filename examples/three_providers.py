"""One conversation, answered by OpenAI, Anthropic and Gemini in turn, with a tool.

The records in the database are the conversation, not some provider's copy of it: each model is
sent what the others said and what their tools found, in its own format. Runs offline against the
fake provider, which speaks all three; without `base_url`, and with real names and keys, the same
program talks to the services.
"""

from __future__ import annotations

import json
import tempfile
from contextlib import ExitStack
from pathlib import Path

from contextwindow import (
    AnthropicModel,
    ContextWindow,
    GeminiModel,
    Model,
    OpenAIResponsesModel,
    Store,
    tool,
)
from contextwindow.testing import FakeProvider, FakeReply


@tool
def population(city: str) -> int:
    """Say how many people live in a city.

    Args:
        city: name of the city.
    """
    return {"Ulm": 129_000, "Paris": 2_100_000}[city]


def main() -> None:
    """Three questions, each to another provider."""
    with ExitStack() as stack:
        provider = stack.enter_context(FakeProvider())
        script(provider)
        store = Store(Path(stack.enter_context(tempfile.TemporaryDirectory())) / "chat.db")
        stack.enter_context(store)
        for model, question in zip(make_models(provider, stack), QUESTIONS, strict=True):
            # A model belongs to a window, the conversation to the database.
            with ContextWindow(store, "chat", model=model, tools=[population]) as window:
                window.add_prompt(question)
                print(f"{model.provider}: {question} {window.call_model().text}")

        print("\nWhat was stored, and what each call used:")
        with ContextWindow(store, "chat") as window:
            for record in window.live_records():
                print(f"  {record.source.name:<14} {record.content}")
            for call in window.calls():
                used = call.usage.total_tokens if call.usage else 0
                print(f"  {call.provider:<14} {used} tokens")

        print("\nWhat the last of them was sent:")
        print(json.dumps(provider.requests[-1].fields["contents"], indent=1))


QUESTIONS = (
    "How many people live in Ulm?",
    "And in Paris?",
    "Which of the two is larger?",
)


def script(provider: FakeProvider) -> None:
    """What the models will say: one reply for each request, whichever format it comes in."""
    provider.reply(FakeReply(tool_calls=[("population", {"city": "Ulm"})]))
    provider.reply(FakeReply("129,000."))
    provider.reply(FakeReply("Let me see. ", tool_calls=[("population", {"city": "Paris"})]))
    provider.reply(FakeReply("2,100,000."))
    provider.reply(FakeReply("Paris, by far."))


def make_models(provider: FakeProvider, stack: ExitStack) -> list[Model]:
    """One model of each provider, closed when *stack* is."""
    models: list[Model] = [
        OpenAIResponsesModel("gpt-fake", base_url=provider.openai_url, api_key="none"),
        AnthropicModel("claude-fake", base_url=provider.anthropic_url, api_key="none"),
        GeminiModel("gemini-fake", base_url=provider.gemini_url, api_key="none"),
    ]
    for model in models:
        stack.callback(model.close)
    return models


if __name__ == "__main__":
    main()
