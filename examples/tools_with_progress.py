"""Tools that show progress while they run, side by side, and one that fails.

Runs offline: the replies come from a provider on this machine, so the example shows what your
program sees, not what a model would say.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass

from contextwindow import (
    ContextWindow,
    OpenAIResponsesModel,
    StreamChunk,
    TextDelta,
    ToolContext,
    ToolEnd,
    ToolOutputDelta,
    ToolStart,
    tool,
)
from contextwindow.testing import FakeProvider, FakeReply


@dataclass
class Report:
    """What `scan` gives back; the model gets it as JSON."""

    folder: str
    files: int


# Two scans are waited for here, to show that the calls of one reply run at the same time.
both_are_running = threading.Barrier(2, timeout=30)


@tool(timeout=60)
def scan(folder: str, context: ToolContext) -> Report:
    """Count the files of a folder.

    Args:
        folder: path of the folder.
    """
    # The context is given by the window: the model knows nothing of that parameter.
    both_are_running.wait()
    for percent in (50, 100):
        context.emit(f"{folder}: {percent} %")
    return Report(folder, files=len(folder))


@tool
def delete(folder: str) -> None:
    """Delete a folder.

    Args:
        folder: path of the folder.
    """
    raise PermissionError(f"{folder} is not yours")


def main() -> None:
    """One prompt; the reply asks for tools twice before it answers."""
    with FakeProvider() as provider:
        # What the model "says": first two calls at once, then one that fails, then words.
        provider.reply(
            FakeReply(
                "I will look.\n",
                tool_calls=[("scan", {"folder": "/tmp"}), ("scan", {"folder": "/home"})],  # noqa: S108 - a name
            )
        )
        provider.reply(FakeReply(tool_calls=[("delete", {"folder": "/home"})]))
        provider.reply(FakeReply("I may not delete /home.\n"))

        model = OpenAIResponsesModel("fake-model", base_url=provider.openai_url, api_key="none")
        with ContextWindow(model=model, tools=[scan, delete]) as window:
            window.add_prompt("Look at /tmp and /home, and delete the smaller one.")
            with window.call_model_streaming() as stream:
                for chunk in stream:
                    show(chunk)
            print(f"{len(stream.reply.records)} records, {len(window.calls())} calls")
            # Each output is stored where its call was, however long it took.
            for record in window.live_records():
                print(f"  {record.source.name:<14} {record.content.strip()}")
        model.close()


def show(chunk: StreamChunk) -> None:
    """One line for whatever happens to a tool; the text as it comes."""
    match chunk:
        case TextDelta():
            print(chunk.delta, end="", flush=True)
        case ToolStart():
            print(f"  > {chunk.name} {chunk.arguments}")
        case ToolOutputDelta():
            print(f"  … {chunk.output}")
        case ToolEnd():
            # A tool that fails does not end the turn: the model is told, and goes on.
            print(f"  {'!' if chunk.error else '<'} {chunk.output}")


if __name__ == "__main__":
    main()
