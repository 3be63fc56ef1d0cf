"""A disk that fails at any moment of a turn, in every way that systems know."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from crash_work import one_round
from faulty_disk import FaultyDisk
from support import Open, contents, problems, responses, shown, states
from support import file as file
from support import run as run

from contextwindow import (
    ContextWindow,
    Store,
    StoreError,
    StoreFull,
    StreamChunk,
    Tool,
)
from contextwindow.testing import ScriptedModel, ScriptedReply

PIECES = [f"{number:04} " + "x" * 4000 for number in range(50)]


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[FaultyDisk]:
    """A file system that fails when told to."""
    if os.geteuid() != 0 or not os.path.exists("/dev/fuse"):
        pytest.skip("only root may mount a file system, and where there is FUSE")
    with FaultyDisk(str(tmp_path)) as disk:
        yield disk


def check(database: str | Store) -> None:
    """Asserts that everything is sound: pages, references, counters, texts."""
    assert problems(database) == []
    if isinstance(database, Store):
        assert database.examine().sound
        return
    with Store(database) as store:
        assert store.examine().sound


# -- 21: whatever the disk says ---------------------------------------------------------------


@pytest.mark.parametrize("what", ["write", "create", "fsync"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS])
def test_a_disk_that_fails_in_mid_stream_loses_nothing_that_was_shown(
    disk: FaultyDisk, run: Open, what: str, code: int
) -> None:
    """Fault 21: (fault 22: as well) No room, a quota, a broken disk, one that turns read-only."""
    database = f"{disk.place}/chat.db"
    model = ScriptedModel([ScriptedReply(["one ", "two ", "three ", "four"]), "the rest"])
    window = run(database, "chat", model=model)
    window.add_prompt("count")
    chunks: list[StreamChunk] = []

    with pytest.raises(StoreError) as caught:
        for chunk in window.call_model_streaming():
            chunks.append(chunk)
            if chunk.delta == "two ":
                disk.fail(what, code)

    assert (type(caught.value) is StoreFull) == ((what, code) == ("write", errno.ENOSPC))
    assert database in str(caught.value)
    assert "the disk" in str(caught.value)
    assert caught.value.partial_text == shown(chunks) == "one two "
    with pytest.raises(StoreError):
        window.add_prompt("now?")
    disk.fail(what, 0)
    assert window.resume().text == "one two the rest"
    assert contents(window.records()) == ["count", "one two the rest"]
    window.close()
    check(database)


@pytest.mark.parametrize("first", range(3))
def test_a_disk_that_is_full_from_any_write_of_a_turn_on_is_outlived(
    disk: FaultyDisk, first: int
) -> None:
    """Fault 21: No room from the n-th write of a turn with tools on: nothing half-written."""
    endings = set()
    for number in (*range(first, 100, 9), 100_000):
        database = f"{disk.place}/{number}.db"
        ran: list[int] = []
        model = ScriptedModel([one_round], repeat=True, pieces="whole")
        tools = [Tool("work", "Work.", parameters={}, run=lambda n, ran=ran: ran.append(n))]
        with ContextWindow(database, "chat", model=model, tools=tools) as window:
            window.add_prompt("go")
            disk.fail("write", errno.ENOSPC, after=number)
            chunks: list[StreamChunk] = []
            texts: list[tuple[str, str]] = []
            try:
                chunks.extend(window.call_model_streaming())
                endings.add("complete")
            except StoreFull as error:
                endings.add("full")
                texts.append((shown(chunks), error.partial_text))
            disk.fail("write", 0)
            assert all(all_of_it.endswith(last) for all_of_it, last in texts)

            if window.interrupted():
                assert "".join(contents(responses(window))).startswith(shown(chunks))
                window.resume()
            elif "complete" not in states(window):
                assert shown(chunks) == ""
                window.call_model()
            assert "".join(contents(responses(window))) == "Let me see.All done."
            assert len(ran) == len(set(ran))
        check(database)
    assert endings == {"complete", "full"}
