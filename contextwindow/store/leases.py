"""Who holds a turn, and what becomes of a turn whose holder is gone."""

from __future__ import annotations

import os
import socket
import uuid
from functools import lru_cache
from pathlib import Path
from typing import Final

import sqlalchemy as sa

from contextwindow.records import RecordType
from contextwindow.store.connection import Connection
from contextwindow.store.ledger_sql import FORGET_DELTAS
from contextwindow.store.rows import measure, unfolded
from contextwindow.store.schema import calls, contexts, records, turns
from contextwindow.store.statement import Statement
from contextwindow.store.values import checksum, now_text

_bind = sa.bindparam

RUNNING = Statement(
    sa.select(turns.c.id, turns.c.owner, turns.c.expires, turns.c.started, turns.c.epoch)
    .where(turns.c.context_id == _bind("context_id"))
    .where(turns.c.state == sa.literal_column("'running'"))
)

_PARTIALS = Statement(
    sa.select(
        records.c.id,
        records.c.content,
        records.c.payload,
        records.c.live,
        records.c.est_tokens,
        records.c.source,
        records.c.uncounted,
    )
    .where(records.c.turn_id == _bind("turn_id"))
    .where(records.c.partial_response_id.is_not(None))
    .order_by(records.c.seq)
)

_FOLD = Statement(
    sa.update(records)
    .where(records.c.id == _bind("record_id"))
    .values(
        content=_bind("content"),
        checksum=_bind("checksum"),
        est_tokens=_bind("est_tokens"),
        accumulated_tokens=_bind("est_tokens"),
        uncounted=_bind("uncounted"),
        live=_bind("live"),
    )
)

_SETTLE_TURN = Statement(
    sa.update(turns)
    .where(turns.c.id == _bind("turn_id"))
    .values(state="interrupted", ended=_bind("ended"), error=_bind("error"))
)

_SETTLE_CALLS = Statement(
    sa.update(calls)
    .where(calls.c.turn_id == _bind("turn_id"))
    .where(calls.c.duration.is_(None))
    .where(calls.c.error.is_(None))
    .values(
        error=_bind("error"),
        input_tokens=sa.func.coalesce(calls.c.input_tokens, _bind("input_tokens")),
        output_tokens=sa.func.coalesce(calls.c.output_tokens, _bind("output_tokens")),
        usage_estimated=True,
    )
)

_COUNT = Statement(
    sa.update(contexts)
    .where(contexts.c.id == _bind("context_id"))
    .values(
        live_count=contexts.c.live_count + _bind("live"),
        live_tokens=contexts.c.live_tokens + _bind("tokens"),
        uncounted=contexts.c.uncounted + _bind("uncounted"),
        total_tokens=contexts.c.total_tokens + _bind("total"),
    )
)

_LIVE_TOKENS = Statement(
    sa.select(contexts.c.live_tokens).where(contexts.c.id == _bind("context_id"))
)

given_up: Final[set[tuple[str, int]]] = set()
"""Turns, with their epoch, that this process has left without being able to write their end.

Nobody has to wait for their lease.
"""

DIED: Final = "its process ended before the turn did"


def owner() -> str:
    """This process, as ``host/pid/start``: no other process has had or will have that name."""
    return _owner(os.getpid())


@lru_cache(maxsize=2)
def _owner(pid: int) -> str:
    return f"{_host()}/{pid}/{_start_of(pid) or uuid.uuid4().hex[:8]}"


@lru_cache(maxsize=1)
def _host() -> str:
    # Two containers may share a host name; their process numbers mean different processes.
    try:
        space = os.readlink("/proc/self/ns/pid").strip("pid:[]")
    except OSError:
        space = ""
    return f"{socket.gethostname()}:{space}" if space else socket.gethostname()


def _start_of(pid: int) -> str:
    """When process *pid* was started, in the kernel's ticks; ``""`` where that is not known."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    except (OSError, IndexError):
        return ""
    return "" if fields[0] in "ZX" else fields[19]


def is_gone(holder: str) -> bool:
    """Whether *holder* is surely dead: a process of this host that is not there any more.

    Of another host nothing can be said: its lease has to run out.
    """
    host, _, rest = holder.rpartition("/")[0].rpartition("/")
    start = holder.rpartition("/")[2]
    if host != _host() or not rest.isdigit():
        return False
    if holder == owner():
        return False
    pid = int(rest)
    if Path("/proc/self/stat").exists():
        return _start_of(pid) != start
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except OSError:
        return False
    return pid == os.getpid()


def settle(connection: Connection, context_id: str, turn_id: str, error: str = DIED) -> None:
    """Fold what a dead turn has left and mark it ``interrupted``; within a transaction.

    Nothing that was committed is lost.  Its usage is estimated from the texts, and marked so.
    """
    live = grown = guessed = output = 0
    for record_id, content, payload, was_live, old, source, was_guess in _PARTIALS.all(
        connection, turn_id=turn_id
    ):
        text = content + unfolded(connection, record_id)
        size, guess = measure(text)
        # No provider takes half a thought or half a call back; half a reply it does.
        stays = bool(was_live) and source == RecordType.MODEL_RESPONSE
        output += size
        live += stays - bool(was_live)
        grown += (size if stays else 0) - (old if was_live else 0)
        guessed += (guess and stays) - (bool(was_guess) and bool(was_live))
        _FOLD.run(
            connection,
            record_id=record_id,
            content=text,
            checksum=checksum(text, payload),
            est_tokens=size,
            uncounted=guess,
            live=stays,
        )
        FORGET_DELTAS.run(connection, record_id=record_id)
    sent = _LIVE_TOKENS.scalar(connection, context_id=context_id) or 0
    done = _SETTLE_CALLS.run(
        connection, turn_id=turn_id, error=error, input_tokens=sent, output_tokens=output
    )
    _COUNT.run(
        connection,
        context_id=context_id,
        live=live,
        tokens=grown,
        uncounted=guessed,
        total=sent + output if done.rowcount > 0 else 0,
    )
    _SETTLE_TURN.run(connection, turn_id=turn_id, ended=now_text(), error=error)
