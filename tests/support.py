"""What the tests of the windows share: one scenario through both APIs, and a recount."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from decimal import Decimal
from pathlib import Path
from typing import Any, cast

import pytest
from crash import recount

from contextwindow import (
    AsyncContextWindow,
    ContextWindow,
    Middleware,
    Record,
    RecordType,
    Reply,
    Store,
    StreamChunk,
)
from contextwindow.testing import ScriptedModel

COUNT = "one two three four five six"

STREAMS = ("call_model_streaming", "resume_streaming", "follow")

Open = Callable[..., ContextWindow]


@pytest.fixture
def file(tmp_path: Path) -> str:
    """Path of an SQLite database that does not exist yet."""
    return str(tmp_path / "file.db")


@pytest.fixture(params=["sync", "async"])
def run(request: pytest.FixtureRequest) -> Iterator[Open]:
    """Opens windows to be used by blocking calls, whichever API is under test."""
    with opener(request.param) as open_window:
        yield open_window


@contextmanager
def opener(api: str) -> Iterator[Open]:
    """Opens windows of one API, and closes them in the end.

    With ``"async"`` every call is a task of one event loop, and streams are read on it.
    """
    opened: list[Any] = []
    runner = asyncio.Runner() if api == "async" else None

    def open_window(*args: Any, **options: Any) -> ContextWindow:
        if runner is None:
            window = ContextWindow(*args, **options)
        else:
            window = cast(ContextWindow, _Window(runner, AsyncContextWindow(*args, **options)))
            window.__enter__()
        opened.append(window)
        return window

    yield open_window
    for window in reversed(opened):
        window.close()
    if runner is not None:
        runner.close()


class _Window:
    """An ``AsyncContextWindow`` that is used by blocking calls."""

    def __init__(self, runner: asyncio.Runner, window: AsyncContextWindow) -> None:
        self._runner = runner
        self._window = window

    @property
    def server_side_threading(self) -> bool:
        return self._runner.run(self._window.server_side_threading)

    def __getattr__(self, name: str) -> Any:
        attribute = getattr(self._window, name)
        if name in STREAMS:
            return lambda *args, **options: _Stream(self._runner, attribute(*args, **options))
        if inspect.iscoroutinefunction(attribute):
            return lambda *args, **options: self._runner.run(attribute(*args, **options))
        return attribute

    def __repr__(self) -> str:
        return repr(self._window)

    def __enter__(self) -> _Window:
        self._runner.run(self._window.__aenter__())
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        self._runner.run(self._window.aclose())


class _Stream:
    """An ``AsyncStream`` that is read by blocking calls."""

    def __init__(self, runner: asyncio.Runner, stream: Any) -> None:
        self._runner = runner
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        attribute = getattr(self._stream, name)
        if inspect.iscoroutinefunction(attribute):
            return lambda *args, **options: self._runner.run(attribute(*args, **options))
        return attribute

    def __iter__(self) -> Iterator[StreamChunk]:
        return self._each(aiter(self._stream))

    def text_deltas(self) -> Iterator[str]:
        return self._each(self._stream.text_deltas())

    def _each(self, chunks: Any) -> Iterator[Any]:
        async def following() -> Any:
            return await anext(chunks)

        try:
            while True:
                try:
                    yield self._runner.run(following())
                except StopAsyncIteration:
                    return
        finally:
            self._runner.run(chunks.aclose())

    def __enter__(self) -> _Stream:
        self._runner.run(self._stream.__aenter__())
        return self

    def __exit__(self, *error: object) -> None:
        self._runner.run(self._stream.aclose())

    def close(self) -> None:
        self._runner.run(self._stream.aclose())


class Recorder(Middleware):
    """Writes down every hook that is called, as ``(name, what)``."""

    def __init__(self, label: str = "", log: list[tuple[Any, ...]] | None = None) -> None:
        self.label = label
        self.log: list[tuple[Any, ...]] = [] if log is None else log

    def _note(self, *what: Any) -> None:
        self.log.append((self.label, *what) if self.label else what)

    def on_call_start(self, call: Any) -> None:
        self._note("call_start", [record.content for record in call.records])

    def on_stream_start(self, stream: Any) -> None:
        self._note("start")

    def on_stream_chunk(self, chunk: StreamChunk) -> None:
        self._note("chunk", chunk.type, chunk.delta)

    def on_stream_complete(self, text: str, tokens: int) -> None:
        self._note("complete", text, tokens)

    def on_stream_error(self, error: BaseException) -> None:
        self._note("error", type(error).__name__)


def contents(records: list[Record]) -> list[str]:
    """The texts of *records*."""
    return [record.content for record in records]


def sent(model: Any, number: int = -1) -> list[str]:
    """The texts of the records that a scripted model was asked with."""
    return contents(list(model.requests[number].records))


def responses(window: ContextWindow) -> list[Record]:
    """The live response records."""
    return [one for one in window.live_records() if one.source is RecordType.MODEL_RESPONSE]


def states(window: ContextWindow) -> list[str]:
    """States of the turns, oldest first."""
    return [turn.state for turn in window.turns()]


def shown(chunks: list[StreamChunk]) -> str:
    """The text that a reader of *chunks* has seen."""
    return "".join(chunk.delta for chunk in chunks)


def problems(database: str | Store) -> list[str]:
    """What is wrong with a database's counters and rows; nothing when all is well."""
    if not isinstance(database, Store):
        with Store(database) as store:
            return problems(store)
    found = recount(database)
    with database.database.read() as connection:
        for name, *figures in connection.execute(
            "SELECT name, total_tokens, (SELECT coalesce(sum(input_tokens + output_tokens), 0) "
            "FROM calls WHERE calls.context_id = contexts.id) FROM contexts"
        ).fetchall():
            if figures[0] != figures[1]:
                found.append(f"{name}: total_tokens {figures[0]} != {figures[1]} of its calls")
        kinds = ("input", "output", "cache_read", "cache_write", "reasoning")
        names = [f"{kind}_tokens" for kind in kinds]
        summed = ", ".join(f"coalesce(sum(k.{name}), 0)" for name in names)
        for name, *figures in connection.execute(
            f"SELECT c.name, c.calls, {', '.join(f'c.{name}' for name in names)}, "
            f"c.estimated_calls, c.unpriced_calls, count(k.id), {summed}, "
            "sum(CASE WHEN k.usage_estimated THEN 1 ELSE 0 END), "
            "sum(CASE WHEN k.cost IS NULL AND k.input_tokens + k.output_tokens > 0 "
            "THEN 1 ELSE 0 END) FROM contexts c LEFT JOIN calls k ON k.context_id = c.id "
            "AND k.input_tokens IS NOT NULL GROUP BY c.id, c.name"
        ).fetchall():
            if figures[:8] != figures[8:]:
                found.append(f"{name}: counted of its calls {figures[:8]} != {figures[8:]}")
        costs: dict[str, Decimal] = {}
        for name, pico, cost in connection.execute(
            "SELECT c.name, c.cost_pico, k.cost FROM contexts c LEFT JOIN calls k "
            "ON k.context_id = c.id ORDER BY c.name"
        ).fetchall():
            costs.setdefault(name, Decimal(pico) / 10**12)
            costs[name] -= Decimal(cost or 0)
        found += [f"{name}: cost is off by {cost}" for name, cost in costs.items() if cost]
        for name, *figures in connection.execute(
            "SELECT name, uncounted, (SELECT count(*) FROM records WHERE live AND "
            "records.uncounted AND records.context_id = contexts.id) FROM contexts"
        ).fetchall():
            if figures[0] != figures[1]:
                found.append(f"{name}: uncounted {figures[0]} != {figures[1]}")
        stray = connection.execute(
            "SELECT record_id FROM record_deltas WHERE record_id NOT IN "
            "(SELECT records.id FROM records JOIN turns ON turns.id = records.turn_id "
            "WHERE turns.state = 'running')"
        ).fetchall()
        if stray:
            found.append(f"deltas of records that are not under way: {stray}")
    return found


def check_order(chunks: list[StreamChunk], reply: Reply | None) -> None:
    """Asserts the order that every stream keeps (DESIGN section 4)."""
    kinds = [chunk.type for chunk in chunks]
    ends = ("done", "stream_failed")
    assert kinds[0] == "stream_start"
    assert kinds.count("stream_start") == 1
    assert [kind for kind in kinds if kind in ends] == [kinds[-1]]
    assert chunks[-1].done
    assert not any(chunk.done for chunk in chunks[:-1])
    if reply is not None:
        live = [r for r in reply.records if r.source is RecordType.MODEL_RESPONSE]
        assert "".join(contents(live)) == reply.text
        assert kinds.index("usage_report") == len(kinds) - 2


def ready(run: Open, database: str, *script: Any, **options: Any) -> ContextWindow:
    """A window with a prompt, whose model answers with *script*."""
    model = ScriptedModel(script or [COUNT, "next reply"], **options.pop("model", {}))
    window = run(database, "chat", model=model, **options)
    window.add_prompt("count")
    return window


def read(stream: Any) -> tuple[list[StreamChunk], Exception | None]:
    """The chunks of *stream*, and what it raised at the end."""
    chunks: list[StreamChunk] = []
    try:
        for chunk in stream:
            chunks.append(chunk)  # noqa: PERF402 - those before an error count
    except Exception as error:
        return chunks, error
    return chunks, None


def usable(window: ContextWindow, database: str) -> None:
    """Asserts that a stream which ended early has left all in order."""
    assert "running" not in states(window)
    assert problems(database) == []
    window.add_prompt("and now?")
    assert window.call_model().text == "next reply"
