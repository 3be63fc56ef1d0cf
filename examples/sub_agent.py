"""A tool that asks another agent, which has a conversation of its own in the same database.

The other agent's conversation is stored, streamed and resumable like any other; the reader of the
first one is told where it is, and can watch both.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from contextwindow import ChildLinked, ContextWindow, Store, TextDelta, ToolContext, ToolEnd, tool
from contextwindow.testing import ScriptedModel, ScriptedReply

# In your program these are models of providers, and not the same one for both.
researcher = ScriptedModel(["The bridge was opened in 1894, and it took eight years to build."])
writer = ScriptedModel(
    [
        ScriptedReply(
            "I will ask. ", tool_calls=[("research", {"question": "When was it opened?"})]
        ),
        "It was opened in 1894.",
    ]
)


@tool(idempotent=True)
def research(question: str, context: ToolContext) -> str:
    """Ask a researcher who can look things up.

    Args:
        question: one question, complete in itself: the researcher has not read this conversation.
    """
    # Named after the call: after a crash the tool is run again (it is idempotent), and goes on in
    # the conversation that it had begun. The key sees to it that the question stands there once.
    name = f"research {context.call_id}"
    with ContextWindow(context.store, name, model=researcher) as child:
        # Before its first turn, so that whoever reads this stream can follow that one.
        context.link(child)
        child.add_prompt(question, key=context.call_id)
        with child.call_model_streaming() as stream:
            for text in stream.text_deltas():
                context.emit(text)  # optional: its text in the stream of the first agent
        return stream.reply.text


def main() -> None:
    """Ask the writer, who asks the researcher."""
    with tempfile.TemporaryDirectory() as folder, Store(Path(folder) / "agents.db") as store:
        with ContextWindow(store, "writer", model=writer, tools=[research]) as window:
            window.add_prompt("When was Tower Bridge opened?")
            with window.call_model_streaming() as stream:
                for chunk in stream:
                    if isinstance(chunk, TextDelta):
                        print(chunk.delta, end="", flush=True)
                    elif isinstance(chunk, ChildLinked):
                        print(f"\n  [conversation {chunk.context!r} begins]")
                    elif isinstance(chunk, ToolEnd):
                        print(f"  [it said: {chunk.output}]")
        print("\n\nEvery conversation of the database, and the one it was held for:")
        contexts = {one.id: one for one in store.list_contexts()}
        for one in contexts.values():
            parent = contexts.get(one.parent_context_id or "")
            print(f"  {one.name:<24} {parent.name if parent else '-'}")
            with ContextWindow(store, one.name) as window:
                for record in window.live_records():
                    print(f"      {record.source.name:<14} {record.content}")


if __name__ == "__main__":
    main()
