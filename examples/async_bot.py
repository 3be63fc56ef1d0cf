"""Many conversations at once on one event loop, with a hook that counts and one that redacts."""

from __future__ import annotations

import asyncio
import tempfile
from dataclasses import replace
from pathlib import Path

from contextwindow import AsyncContextWindow, Middleware, Store, StreamChunk, TextDelta
from contextwindow.testing import ScriptedModel


class Redact(Middleware):
    """Keeps a secret out of what is shown and out of what is stored."""

    def on_stream_chunk(self, chunk: StreamChunk) -> StreamChunk | None:
        """Replace the secret, where it stands within one chunk."""
        if isinstance(chunk, TextDelta) and "swordfish" in chunk.delta:
            return replace(chunk, delta=chunk.delta.replace("swordfish", "*********"))
        return None


class Count(Middleware):
    """Counts replies; an asynchronous hook."""

    def __init__(self) -> None:
        self.replies = 0

    async def on_stream_complete(self, text: str, tokens: int) -> None:
        """Called once the reply is stored."""
        await asyncio.sleep(0)
        self.replies += 1


async def converse(store: Store, name: str, count: Count) -> str:
    """One prompt and its reply in the conversation *name*."""
    model = ScriptedModel([f"Hello {name}, the password is swordfish today."])
    async with AsyncContextWindow(store, name, model=model, middleware=[Redact(), count]) as window:
        await window.add_prompt("What is the password?")
        async with window.call_model_streaming() as stream:
            async for _ in stream:
                pass
        return (await window.live_records())[-1].content


async def main() -> None:
    """Twenty conversations in one database."""
    count = Count()
    with tempfile.TemporaryDirectory() as folder, Store(Path(folder) / "bots.db") as store:
        names = [f"user-{number}" for number in range(20)]
        stored = await asyncio.gather(*(converse(store, name, count) for name in names))
    assert all("swordfish" not in text for text in stored)
    print(f"{count.replies} replies; the first: {stored[0]}")


if __name__ == "__main__":
    asyncio.run(main())
