"""A conversation on the terminal."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import partial
from typing import Final

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from contextwindow import (
    ContextWindow,
    ContextWindowError,
    Model,
    Record,
    RecordType,
    Store,
    Stream,
)
from contextwindow.cli import models
from contextwindow.cli.figures import money
from contextwindow.cli.group import complain, status_of
from contextwindow.cli.growing import show_stream
from contextwindow.cli.lines import read_prompt
from contextwindow.cli.markdown import SafeMarkdown
from contextwindow.cli.opened import writing
from contextwindow.cli.show import attached, heading
from contextwindow.cli.stopping import once
from contextwindow.cli.styles import console, is_live
from contextwindow.cli.terminal import harmless, one_line

LAST: Final = 4
"""Records that are shown where a conversation is picked up."""

COMMANDS: Final = {
    "/fork [NAME]": "go on in a copy; this conversation stays as it is",
    "/undo": "take the last prompt back, and all that followed; nothing is deleted",
    "/model NAME": "let another model answer, such as anthropic:NAME",
    "/resume": "go on with a reply that was cut off",
    "/tokens": "how full the window is, and what was spent",
    "/compact": "make room in the window",
    "/tools": "tools that the conversation knows",
    "/help": "this list",
    "/quit": "end; so does Ctrl-D",
}


def run(database: str, model: str, context: str, system: str | None, base_url: str | None) -> int:
    """Talk until the input ends; the exit status: of the last error where nobody watches."""
    out = console()
    with writing(database, create=True) as store:
        talk = Talk(store, context, model, out, system=system, base_url=base_url)
        try:
            talk.begin()
            talk.go_on()
        finally:
            talk.close()
    return 0 if is_live(out) else talk.status


class Talk:
    """One conversation with whoever types.

    Args:
        out: where it is shown.
        system: as in ``ContextWindow``.
        base_url: server of a model that speaks OpenAI's protocol.

    Attributes:
        status: exit status that stands for the last reply.

    Raises:
        ConfigError: *model* cannot be used.
    """

    def __init__(
        self,
        store: Store,
        context: str,
        model: Model | str,
        out: Console,
        *,
        system: str | None = None,
        base_url: str | None = None,
    ) -> None:
        self.status = 0
        self._store = store
        self._out = out
        self._base_url = base_url
        self._model: Model | str = ""
        self._window = self._open(context, model, system)
        self._done = False

    def close(self) -> None:
        """Close the window and its model; the store is the caller's."""
        self._window.close()
        if isinstance(self._model, Model):
            self._model.close()

    def begin(self) -> None:
        """Show where the conversation was left, and offer to go on with what was cut off."""
        live = self._window.live_records()
        if is_live(self._out):
            name = self._window.current_context
            self._say(f"{one_line(name)} · {self._named()} · /help lists the commands\n")
            if len(live) > LAST:
                self._say(f"… {len(live) - LAST} records before")
            for record in live[-LAST:]:
                self.show(record)
        for turn in self._window.interrupted():
            self._say(f"A reply was cut off after: …{one_line(turn.partial_text[-60:])}")
            try:
                wanted = click.confirm("Go on with it?", default=True)
            except click.Abort:
                click.echo()
                return
            if wanted:
                self._answer(partial(self._window.resume_streaming, turn.id))

    def go_on(self) -> None:
        """Read prompts and commands until the input ends."""
        while not self._done:
            try:
                typed = read_prompt()
            except EOFError:
                click.echo()
                return
            except KeyboardInterrupt:
                click.echo()
                self._say("Ctrl-D or /quit ends")
                continue
            if typed.strip():
                self.take(typed)

    def take(self, typed: str) -> None:
        """Carry out a command, or have a prompt answered."""
        if typed.startswith("/") and not typed.startswith("//"):
            try:
                self._obey(typed)
            except ContextWindowError as error:
                complain(str(error))
            except KeyboardInterrupt:
                self._say("stopped")
            return
        text = typed[1:] if typed.startswith("//") else typed
        self._answer(lambda: self._prompted(text))

    def show(self, record: Record) -> None:
        """One record that was there before."""
        self._out.print(heading(record))
        for one in record.attachments:
            self._out.print(Text(attached(one)))
        if record.source is RecordType.MODEL_RESPONSE:
            self._out.print(SafeMarkdown(record.content))
        else:
            self._out.print(Text(harmless(record.content)))
        self._out.print()

    # -- inside --------------------------------------------------------------------------

    def _prompted(self, text: str) -> Stream:
        self._window.add_prompt(text)
        return self._window.call_model_streaming()

    def _answer(self, ask: Callable[[], Stream]) -> None:
        """Show a reply; Ctrl-C ends it, and what was shown of it stays."""
        with once():
            try:
                show_stream(ask(), self._out)
                self.status = 0
            except KeyboardInterrupt:
                self._say("stopped; what was shown is kept")
            except ContextWindowError as error:
                self.status = status_of(error)
                complain(str(error))
                if is_live(self._out) and self._window.interrupted():
                    self._say("/resume goes on with it")
        if is_live(self._out):
            self._out.print()

    def _obey(self, typed: str) -> None:
        word, _, rest = typed.strip().partition(" ")
        rest = rest.strip()
        match word:
            case "/quit" | "/exit":
                self._done = True
            case "/help":
                self._help()
            case "/fork":
                self._fork(rest)
            case "/undo":
                self._undo()
            case "/model":
                self._switch(rest)
            case "/resume":
                self._answer(self._window.resume_streaming)
            case "/tokens":
                self._tokens()
            case "/compact":
                self._compact()
            case "/tools":
                tools = ", ".join(map(one_line, self._window.list_tools()))
                self._say(tools or "it knows no tools")
            case _:
                self._say(f"{one_line(word)} is no command; /help lists them, // begins a prompt")

    def _help(self) -> None:
        table = Table(box=None, show_header=False, pad_edge=False)
        for command, what in COMMANDS.items():
            table.add_row(Text(command, "speaker"), Text(what))
        self._out.print(table)
        self._say(
            'A line that ends with \\ goes on in the next; """ begins and ends several lines. '
            "Ctrl-C stops a reply."
        )

    def _fork(self, name: str) -> None:
        old = self._window.current_context
        made = self._window.fork(name or self._free_name(old))
        self._window.switch_context(made.name)
        self._say(f"now in {one_line(made.name)}; {one_line(old)} stays as it is")

    def _free_name(self, name: str) -> str:
        taken = {one.name for one in self._store.list_contexts()}
        numbered = (f"{name} ({number})" for number in itertools.count(2))
        return next(one for one in numbered if one not in taken)

    def _undo(self) -> None:
        live = self._window.live_records()
        prompts = [at for at, one in enumerate(live) if one.source is RecordType.PROMPT]
        if not prompts:
            self._say("there is no prompt to take back")
            return
        gone = live[prompts[-1] :]
        self._window.set_live([one.id for one in gone], False)
        self._say(f"taken back: {one_line(gone[0].content)[:60]} ({len(gone)} records)")

    def _switch(self, name: str) -> None:
        if not name:
            self._say(self._named())
            return
        old, model = self._window, self._model
        self._window = self._open(old.current_context, name)
        old.close()
        if isinstance(model, Model):
            model.close()
        self._say(f"{one_line(name)} answers now")

    def _tokens(self) -> None:
        usage, stats = self._window.token_usage(), self._window.context_stats()
        most = f" of {usage.max:,} ({usage.percent:.0%})" if usage.max else ""
        self._say(
            f"{usage.live:,} tokens are live{most}; the next call sends about "
            f"{usage.exact + usage.estimated:,}"
        )
        self._say(f"{stats.calls:,} calls used {usage.total:,} tokens: {money(stats.cost)}")

    def _compact(self) -> None:
        done = self._window.compact()
        self._say(
            f"{len(done.removed)} records left the window: {done.tokens_before:,} tokens before, "
            f"{done.tokens_after:,} now"
        )
        for problem in done.problems:
            complain(problem)

    def _open(self, context: str, model: Model | str, system: str | None = None) -> ContextWindow:
        """A window that *model* answers in."""
        made: Model | str = model
        if isinstance(model, str):
            # A server that speaks OpenAI's protocol is none for the models of others.
            theirs = self._model and not model.startswith(("openai:", "openai-chat:"))
            made = models.chosen(model, None if theirs else self._base_url)
        window = ContextWindow(self._store, context, model=made, system_prompt=system)
        self._model = made
        return window

    def _named(self) -> str:
        return one_line(self._model if isinstance(self._model, str) else self._model.name)

    def _say(self, text: str) -> None:
        """A word of the program's own."""
        self._out.print(Text(text, "quiet"))
