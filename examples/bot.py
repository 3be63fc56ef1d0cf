"""A bot with many conversations: streams replies, and resumes what a restart cut off.

Runs offline against the fake provider; with OPENAI_API_KEY set it talks to the real service.
"""

from __future__ import annotations

import os
import tempfile
from contextlib import ExitStack
from pathlib import Path

from contextwindow import ContextWindow, OpenAIResponsesModel, Store, StreamInterrupted
from contextwindow.testing import FakeProvider, FakeReply


def main() -> None:
    """Serve two users, lose the connection in mid-reply, and go on."""
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        store = stack.enter_context(Store(Path(folder) / "bot.db"))
        model = make_model(stack)
        for user, question in (("alice", "What is a lease?"), ("bob", "And a fence?")):
            with ContextWindow(store, user, model=model, system_prompt="Be brief.") as window:
                window.add_prompt(question)
                answer(window)
        for stats in sorted(window_stats(store), key=lambda one: one[0]):
            print(*stats)


def make_model(stack: ExitStack) -> OpenAIResponsesModel:
    """The real service with a key, the fake provider without one."""
    if os.environ.get("OPENAI_API_KEY"):
        return OpenAIResponsesModel("gpt-5-mini")
    provider = stack.enter_context(FakeProvider())
    provider.reply(FakeReply("A lease is a promise that runs out by itself.", continues=True))
    text = "A fence keeps out whoever comes back after the promise ran out."
    provider.reply(FakeReply(text, fault="reset", at=4, continues=True))
    provider.reply(FakeReply(text, continues=True))
    model = OpenAIResponsesModel("fake-model", base_url=provider.openai_url, api_key="none")
    stack.callback(model.close)
    return model


def answer(window: ContextWindow) -> None:
    """Print the reply while it arrives; when it is cut off, resume it."""
    print(f"{window.current_context}: ", end="")
    try:
        with window.call_model_streaming(max_resumes=0) as stream:
            for text in stream.text_deltas():
                print(text, end="", flush=True)
    except StreamInterrupted as error:
        print(" [cut off] ", end="")
        with window.resume_streaming(error.turn_id) as stream:
            for text in stream.text_deltas():
                print(text, end="", flush=True)
    print(f"\n  {stream.reply.usage.total_tokens} tokens, cost {stream.reply.cost}")


def window_stats(store: Store) -> list[tuple[str, int, int]]:
    """Name, records and tokens of every conversation."""
    found = []
    for context in store.list_contexts():
        with ContextWindow(store, context.name) as window:
            stats = window.context_stats()
            found.append((stats.name, stats.total_records, stats.live_tokens))
    return found


if __name__ == "__main__":
    main()
