"""A process that holds a conversation and says what it takes for stored; see ``power``."""

from __future__ import annotations

import os
import sys

from contextwindow import ContextWindow, Store, tool
from contextwindow.testing import ScriptedModel, ScriptedReply

TURNS = 8
TEXT = "one two three four five six seven eight nine ten "


@tool
def note(n: int) -> str:
    """Note a number."""
    say(f"tool {n}")
    return f"noted {n}"


def say(what: str) -> None:
    """Say it with one system call."""
    os.write(1, f"{what}\n".encode())


def main(database: str, synchronous: str) -> None:
    """Hold *TURNS* turns, each with a tool."""
    script = []
    for number in range(TURNS):
        script.append(ScriptedReply(tool_calls=[("note", {"n": number}, f"c{number}")]))
        script.append(ScriptedReply(chunks=f"{number}: {TEXT * 3}"))
    with Store(database, synchronous=synchronous) as store:
        window = ContextWindow(store, "power", model=ScriptedModel(script), tools=[note])
        for number in range(TURNS):
            window.add_prompt(f"prompt {number}")
            say(f"prompt {number}")
            for chunk in window.call_model_streaming():
                if chunk.type == "tool_end":
                    say(f"output {number}")
            say(f"turn {number}")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
