"""What the processes do that the tests of crashes kill; without pytest, so that they start fast."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from children import Statements, Voice
from tool_crash import CONTEXT, Log, tool_for

from contextwindow import AsyncContextWindow, ContextWindow, Record, RecordType, Store, Summarize
from contextwindow.errors import StoreError, TurnBusy, TurnLost
from contextwindow.store import leases
from contextwindow.testing import ScriptedModel, ScriptedReply

COUNT = "one two three four five six"


def one_round(records: Sequence[Record], options: Any) -> ScriptedReply:
    """A round of two calls, then an answer."""
    if any(record.source is RecordType.TOOL_OUTPUT for record in records):
        return ScriptedReply("All done.")
    calls = [("work", {"n": n}, f"c{n}") for n in range(2)]
    return ScriptedReply("Let me see.", tool_calls=calls)


def a_turn_with_tools(say: Voice, database: str, path: Path, fatal: int) -> None:
    statements = Statements(fatal)
    log = Log(path)
    model = ScriptedModel([one_round], repeat=True, pieces="whole")
    tools = [tool_for(log, is_async=False)]
    statements.watch()
    options: dict[str, Any] = {"model": model, "tools": tools, "checkpoint_interval": 0.0}
    with ContextWindow(database, CONTEXT, **options) as window:
        say(("prompt", window.add_prompt("go").content))
        for chunk in window.call_model_streaming():
            if chunk.delta:
                say(("text", chunk.delta))
    say(("statements", statements.count))


def settle(database: str) -> None:
    with Store(database) as store:
        store.recover()


def resume(database: str) -> None:
    model = ScriptedModel([" four five six"])
    with ContextWindow(database, "chat", model=model) as window:
        window.resume()


def fork(database: str) -> None:
    with ContextWindow(database, "other") as window:
        window.fork("copy", at=window.live_records()[-1].id)


def clone(database: str) -> None:
    with ContextWindow(database, "other") as window:
        window.clone("copy")


def delete(database: str) -> None:
    with ContextWindow(database, "other") as window:
        window.delete_context("other")


def import_(database: str) -> None:
    with ContextWindow(database, "other") as window:
        window.import_context(window.export_context("other"), name="copy")


def compact(database: str) -> None:
    notes = ScriptedModel(["Counted."])
    rule = Summarize(0, max_tokens=1)
    with ContextWindow(database, "other", summarizer=notes, compaction=rule) as window:
        window.add_prompt("more", key="more")
        window.compact()


def mend(database: str) -> None:
    with Store(database) as store:
        store.examine(mend=True)


WORK: dict[str, Callable[[str], None]] = {
    "settling": settle,
    "resuming": resume,
    "forking": fork,
    "cloning": clone,
    "importing": import_,
    "deleting": delete,
    "compacting": compact,
    "mending": mend,
}


def do(say: Voice, name: str, database: str, fatal: int) -> None:
    Statements(fatal).watch()
    WORK[name](database)


def bring_up(say: Voice, database: str, fatal: int) -> None:
    Statements(fatal).watch()
    Store(database).close()


def copy(say: Voice, database: str, to_path: str) -> None:
    store = Store(database)
    say("copying")
    store.database.backup(to_path)


def stream(say: Voice, database: str, mode: str, lease: float, delay: float) -> None:
    """Stream a reply that takes long, and say what is shown."""
    reply = ScriptedReply([f"w{n} " for n in range(1000)], delay=delay)
    options: dict[str, Any] = {"model": ScriptedModel([reply]), "checkpoint_interval": 0.0}
    with Store(database, lease_seconds=lease) as store:
        try:
            if mode == "sync":
                window = ContextWindow(store, "chat", **options)
                window.add_prompt("go")
                with window.call_model_streaming() as chunks:
                    for chunk in chunks:
                        say(chunk.delta)
                return

            async def main() -> None:
                async with AsyncContextWindow(store, "chat", **options) as own:
                    await own.add_prompt("go")
                    async with own.call_model_streaming() as chunks:
                        async for chunk in chunks:
                            say(chunk.delta)

            asyncio.run(main())
        except TurnLost:
            say("lost")
        except KeyboardInterrupt:
            say("interrupted")


def stream_on_another_host(say: Voice, database: str, lease: float) -> None:
    """As `stream`, in a process of a host that its parent does not know."""
    leases._host = lambda: "elsewhere:1"  # type: ignore[assignment]
    stream(say, database, "sync", lease, 0.01)


def fork_in_a_stream(say: Voice, database: str) -> None:
    """Fork in the middle of a stream; parent and child both go on with what they have."""
    with ContextWindow(database, "chat", model=ScriptedModel([COUNT])) as window:
        window.add_prompt("count")
        chunks = iter(window.call_model_streaming())
        while next(chunks).delta != " two":
            pass
        child = os.fork()
        if child == 0:
            uses = [
                lambda: list(chunks),
                lambda: window.add_prompt("from the child"),
                window.live_records,
                window.call_model,
            ]
            for use in uses:
                try:
                    use()
                except StoreError as error:
                    if "opened before fork: open it again in the child" not in str(error):
                        os._exit(3)
                else:
                    os._exit(4)
            del chunks
            again = ContextWindow(database, "from the child")
            again.add_prompt("hello")
            again.close()
            os._exit(0)
        _, status = os.waitpid(child, 0)
        say(("child", os.waitstatus_to_exitcode(status)))
        say(("parent", "".join(chunk.delta for chunk in chunks)))


def start_a_turn(say: Voice, database: str) -> None:
    """Start a turn when told to, end it when told to, and say how much was sent."""
    model = ScriptedModel([COUNT])
    with ContextWindow(database, "chat", model=model) as window:
        say("ready")
        say.heard()
        try:
            for chunk in window.call_model_streaming():
                if chunk.delta == " two":
                    say("running")
                    say.heard()
        except TurnBusy:
            say(("busy", len(model.requests)))
        else:
            say(("reply", len(model.requests)))


def stream_slowly(say: Voice, database: str, text: str) -> None:
    """Stream a reply, and wait behind " two" until told to go on."""
    with ContextWindow(database, "chat", model=ScriptedModel([text])) as window:
        window.add_prompt("count")
        with window.call_model_streaming() as stream:
            for chunk in stream:
                if chunk.delta:
                    say(chunk.delta)
                if chunk.delta == " two":
                    say.heard()
        say(stream.reply.finish_reason)


def append_under_one_key(say: Voice, database: str) -> None:
    """Add the prompts that everybody adds, and say which records they are."""
    with ContextWindow(database, "chat") as window:
        say("ready")
        say.heard()
        for number in range(10):
            record = window.add_prompt(f"webhook {number}", key=f"key {number}")
            say((record.id, record.seq))
