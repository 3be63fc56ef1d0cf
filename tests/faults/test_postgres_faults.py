"""A PostgreSQL server that is restarted, or drops its connections, in the middle of a stream."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from conftest import missing
from support import Open, problems, shown, states
from support import run as run

from contextwindow import ContextWindow, Store, StoreError, StreamChunk
from contextwindow.testing import ScriptedModel, ScriptedReply

WORDS = [f"{number} " for number in range(60)]


class Server:
    """A server of its own, which may be stopped."""

    def __init__(self, programs: Path, folder: Path) -> None:
        self._programs = programs
        self._folder = folder
        self.url = f"postgresql+psycopg://me@/postgres?host={folder}"
        self._run("initdb", "-D", f"{folder}/data", "-A", "trust", "-U", "me")

    def start(self) -> None:
        self._control("start", "-o", f"-c listen_addresses='' -k {self._folder}")

    def stop(self) -> None:
        self._control("stop", "-m", "fast")

    def _control(self, what: str, *arguments: str) -> None:
        folder = self._folder
        self._run("pg_ctl", "-D", f"{folder}/data", "-w", "-l", f"{folder}/log", *arguments, what)

    def _run(self, program: str, *arguments: str) -> None:
        # The server refuses to be run by root.
        user = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"]
        command = [*(user if os.geteuid() == 0 else []), str(self._programs / program), *arguments]
        subprocess.run(command, check=True, cwd="/tmp", stdout=subprocess.DEVNULL)


@pytest.fixture
def server() -> Iterator[Server]:
    """A running server; skips where PostgreSQL's programs are not installed."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if not found:
        missing("no programs of PostgreSQL: a server cannot be restarted")
    # The names of sockets are short.
    folder = Path(tempfile.mkdtemp(prefix="pg", dir="/tmp"))
    folder.chmod(0o777)
    running = Server(found[-1].parent, folder)
    running.start()
    yield running
    running.stop()
    shutil.rmtree(folder)


def check(
    window: ContextWindow, store: Store, chunks: list[StreamChunk], error: StoreError | None
) -> None:
    """Whether the stream went on, or all that was shown can be gone on with."""
    if error is None:
        assert shown(chunks) == "".join(WORDS)
        assert states(window) == ["complete"]
    else:
        assert error.partial_text == shown(chunks)
        kept = window.interrupted()[0].partial_text
        if re.search(
            "the connection to the server was lost|no connection to the server", str(error)
        ):
            assert kept == shown(chunks)
        else:
            # Of a commit that was not answered nobody knows whether it was carried out.
            assert "lost in a commit" in str(error)
            assert kept.startswith(shown(chunks))
        assert window.resume().text == kept + "the rest"
    assert problems(store) == []


@pytest.mark.parametrize("interval", [0, 0.1])
@pytest.mark.parametrize("away", [False, True])
def test_a_server_that_is_restarted_in_mid_stream_loses_nothing_that_was_shown(
    server: Server, run: Open, interval: float, away: bool
) -> None:
    """Fault 26: The server is restarted in mid-stream, at once or after the stream has failed."""
    model = ScriptedModel([ScriptedReply(WORDS, delay=0.005), "the rest"])
    with Store(server.url) as store:
        window = run(store, "chat", model=model, checkpoint_interval=interval)
        window.add_prompt("count")
        chunks: list[StreamChunk] = []
        error: StoreError | None = None
        try:
            for chunk in window.call_model_streaming():
                chunks.append(chunk)
                if chunk.delta == "20 ":
                    server.stop()
                    if not away:
                        server.start()
        except StoreError as raised:
            error = raised
        if away:
            server.start()

        check(window, store, chunks, error)


def test_connections_that_are_killed_in_mid_stream_lose_nothing_that_was_shown(
    server: Server, run: Open
) -> None:
    """Fault 26: Every connection is killed in mid-stream, idle or in the middle of a write."""
    model = ScriptedModel([ScriptedReply(WORDS, delay=0.005), "the rest"])
    with Store(server.url) as store:
        window = run(store, "chat", model=model, checkpoint_interval=0)
        window.add_prompt("count")
        chunks: list[StreamChunk] = []
        error: StoreError | None = None
        with psycopg.connect(server.url.replace("+psycopg", ""), autocommit=True) as other:
            try:
                for chunk in window.call_model_streaming():
                    chunks.append(chunk)
                    if chunk.delta == "20 ":
                        killed = other.execute(
                            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                            "WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"
                        ).fetchall()
                        assert killed
            except StoreError as raised:
                error = raised

        check(window, store, chunks, error)


def test_many_turns_share_few_connections(postgresql: str) -> None:
    """Fault 26: More turns than connections: they wait for one."""
    with Store(postgresql) as store:
        errors: list[BaseException] = []

        def turn(number: int) -> None:
            try:
                model = ScriptedModel([ScriptedReply(WORDS)])
                with ContextWindow(store, f"c{number}", model=model) as window:
                    window.add_prompt("count")
                    assert window.call_model().text == "".join(WORDS)
            except BaseException as error:
                errors.append(error)

        threads = [threading.Thread(target=turn, args=(number,)) for number in range(40)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

        assert errors == []
        assert problems(store) == []
