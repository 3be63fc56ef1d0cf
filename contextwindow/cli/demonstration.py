"""The whole promise in ten seconds: a process is killed in mid-reply, another one resumes it."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click

from contextwindow import ContextWindow, OpenAIResponsesModel
from contextwindow.cli.show import print_record
from contextwindow.cli.terminal import harmless

CONTEXT = "demo"
PROMPT = "Why write every chunk down before anyone sees it?"
TEXT = (
    "Because the reader has already seen it. A reply that lives only in a process dies with the "
    "process: the tokens are paid for, the words were read, and the conversation knows nothing "
    "of them. Written down first, they outlive a crash, a deploy and a closed laptop, and the "
    "next process goes on in the middle of the sentence as if nothing had happened."
)
KILL_AFTER = 130
"""Characters that are shown before the process is killed."""


def run(db: str | None, *, fast: bool) -> int:
    """Play all steps; 0 when the resumed reply is the whole one."""
    path = Path(db) if db else Path(tempfile.mkdtemp(prefix="contextwindow-")) / "demo.db"
    pace = 0.01 if fast else 0.06
    with _provider(pace) as url:
        _step("1. A process streams a reply from a local provider into", str(path))
        began = time.perf_counter()
        shown = _killed_in_mid_sentence(path, url)
        _step("2. kill -9.", f"It lived {time.perf_counter() - began:.1f} s.")
        opened = time.perf_counter()
        model = OpenAIResponsesModel("demo-model", base_url=url, api_key="none", background=True)
        with ContextWindow(path, CONTEXT, model=model) as window:
            (turn,) = window.interrupted()
            kept = turn.partial_text.startswith(shown)
            _step(
                "3. Another process opens the file.",
                f"{len(turn.partial_text)} characters are there; the reader had seen {len(shown)}.",
            )
            whole, strategy, first = _resumed(window, turn.id, turn.partial_text)
            _step("4. From the database:", "")
            for record in window.records():
                print_record(record)
            _figures(window, strategy, first - opened)
        model.close()
    right = kept and whole == TEXT
    click.echo(f"\nLook for yourself: contextwindow show {path} {CONTEXT}, or sqlite3 {path}")
    if not right:
        click.echo("contextwindow: the resumed reply is not the whole one", err=True)
    return 0 if right else 1


def stream(database: str, url: str, context: str) -> int:
    """What the process does that is going to be killed."""
    model = OpenAIResponsesModel("demo-model", base_url=url, api_key="none", background=True)
    with ContextWindow(database, context, model=model, system_prompt="Be brief.") as window:
        window.add_prompt(PROMPT)
        for chunk in window.call_model_streaming():
            os.write(1, chunk.delta.encode())
    return 0


def _killed_in_mid_sentence(path: Path, url: str) -> str:
    """What the child had shown before it was killed."""
    command = [sys.executable, "-m", "contextwindow", "demo", "--child", str(path), url, CONTEXT]
    child = subprocess.Popen(command, stdout=subprocess.PIPE)  # noqa: S603 - ourselves
    assert child.stdout is not None  # noqa: S101 - it is a pipe
    shown = b""
    try:
        while len(shown) < KILL_AFTER:
            piece = os.read(child.stdout.fileno(), 4096)
            if not piece:
                break
            shown += piece
            click.echo(harmless(piece.decode()), nl=False)
    finally:
        child.kill()
        rest = child.stdout.read()
        child.stdout.close()
        child.wait()
    click.echo(harmless(rest.decode()))
    return (shown + rest).decode()


def _resumed(window: ContextWindow, turn_id: str, partial: str) -> tuple[str, str, float]:
    """The whole text, how it was resumed, and when its first new chunk came."""
    strategy, first = "", 0.0
    click.echo(click.style("…" + harmless(partial[-40:]), dim=True), nl=False)
    with window.resume_streaming(turn_id) as reply:
        for chunk in reply:
            strategy = getattr(chunk, "strategy", strategy)
            if chunk.delta:
                first = first or time.perf_counter()
                click.echo(harmless(chunk.delta), nl=False)
    click.echo()
    return reply.reply.text, strategy, first


def _figures(window: ContextWindow, strategy: str, wait: float) -> None:
    click.echo(f"resumed by: {strategy}; first new chunk {wait * 1000:.0f} ms after opening")
    for call in window.calls():
        used = call.usage.total_tokens if call.usage else 0
        tokens = f"{used} tokens" if used else "its tokens are counted by the next call"
        how = "cut off" if call.error else f"{call.finish_reason} after {call.duration or 0:.1f} s"
        sent = f"sent records {call.manifest}" if call.manifest else "read on where it had stopped"
        click.echo(f"call {call.id}: {sent}; {how}; {tokens}")


def _step(title: str, rest: str) -> None:
    click.echo("\n" + click.style(title, bold=True) + (f" {rest}" if rest else ""))


@contextmanager
def _provider(pace: float) -> Iterator[str]:
    """A local provider in a process of its own; its address."""
    command = [sys.executable, "-m", "contextwindow.testing.fake_provider", "--port", "0"]
    command += ["--text", TEXT, "--pace", str(pace)]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)  # noqa: S603 - ourselves
    assert server.stdout is not None  # noqa: S101 - it is a pipe
    try:
        port = server.stdout.readline().split()[1]
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        server.terminate()
        server.wait()
        server.stdout.close()
