"""Processes that write to few contexts at random, are killed and paused, and a checker.

What they were told is in their logs; what is true is in the database; in which order it became
true, a trigger notes in a table of its own.
"""

from __future__ import annotations

import json
import os
import random
import signal
import time
import traceback
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mutants
from children import Child, Voice
from crash import recount

from contextwindow import ContextWindow, Record, RecordCorrupt, Store
from contextwindow.errors import ModelTimeout, StoreBusy, TurnBusy, TurnLost
from contextwindow.testing import ScriptedModel, ScriptedReply

CONTEXTS = 5

_WITNESS = {
    "sqlite": (
        "CREATE TABLE witness (n INTEGER PRIMARY KEY, context_id TEXT, turn_id TEXT)",
        "CREATE TRIGGER witness_text AFTER INSERT ON record_deltas BEGIN INSERT INTO witness"
        " (context_id, turn_id) SELECT context_id, turn_id FROM records WHERE id = NEW.record_id;"
        " END",
        "CREATE TRIGGER witness_record AFTER INSERT ON records WHEN NEW.turn_id IS NOT NULL BEGIN"
        " INSERT INTO witness (context_id, turn_id) VALUES (NEW.context_id, NEW.turn_id); END",
    ),
    "postgresql": (
        "CREATE TABLE witness (n BIGSERIAL PRIMARY KEY, context_id TEXT, turn_id TEXT)",
        "CREATE FUNCTION witness_text() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN INSERT INTO"
        " witness (context_id, turn_id) SELECT context_id, turn_id FROM records WHERE id ="
        " NEW.record_id; RETURN NEW; END $$",
        "CREATE FUNCTION witness_record() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN IF"
        " NEW.turn_id IS NOT NULL THEN INSERT INTO witness (context_id, turn_id) VALUES"
        " (NEW.context_id, NEW.turn_id); END IF; RETURN NEW; END $$",
        "CREATE TRIGGER witness_text AFTER INSERT ON record_deltas FOR EACH ROW EXECUTE FUNCTION"
        " witness_text()",
        "CREATE TRIGGER witness_record AFTER INSERT ON records FOR EACH ROW EXECUTE FUNCTION"
        " witness_record()",
    ),
}


@dataclass
class Outcome:
    """What a run came to.

    Attributes:
        figures: how often each thing happened.
        violations: what must never happen, and how often it did; empty when all is well.
        examples: one line for each kind of violation.
    """

    figures: Counter[str] = field(default_factory=Counter)
    violations: Counter[str] = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)

    def bad(self, what: str, example: object) -> None:
        """Count a violation."""
        self.violations[what] += 1
        self.examples.setdefault(what, str(example))


def run(
    database: str,
    folder: Path,
    *,
    seconds: float,
    processes: int = 8,
    seed: int = 0,
    mutant: str = "",
    lease: float = 1.0,
    turns: int = 0,
) -> Outcome:
    """Let *processes* work, kill and pause them, and check what is left.

    Args:
        seconds: how long; as often again as it takes a busy machine for *turns* to end.
    """
    chance = random.Random(seed)
    with Store(database) as store:
        for number in range(CONTEXTS):
            ContextWindow(store, f"c{number}").add_prompt("begin")
        with store.database.write() as connection:
            for sql in _WITNESS[store.dialect]:
                connection.execute(sql)
    outcome = Outcome()
    names = iter(range(1_000_000))
    for _ in range(20):
        _period(database, folder, names, seconds, processes, (seed, mutant, lease), chance, outcome)
        if _ended(folder) >= turns:
            break
    with Store(database) as store:
        store.recover()
        check(store, folder, outcome)
    return outcome


def _period(
    database: str,
    folder: Path,
    names: Iterator[int],
    seconds: float,
    processes: int,
    options: tuple[int, str, float],
    chance: random.Random,
    outcome: Outcome,
) -> None:
    end = time.monotonic() + seconds

    def start() -> Child:
        return Child(work, database, str(folder / str(next(names))), end, *options)

    workers = [start() for _ in range(processes)]
    paused: dict[int, tuple[Child, float]] = {}
    try:
        while time.monotonic() < end:
            _disturb(workers, paused, chance, outcome, start, options[2])
            # To give the others time is what this loop is for.
            time.sleep(0.01)
    finally:
        for child, _ in paused.values():
            child.signal(signal.SIGCONT)
        for worker in workers:
            with worker:
                worker.rest()


def _ended(folder: Path) -> int:
    """How many turns the processes have seen the end of."""
    return sum(path.read_text().count('["end", ') for path in folder.iterdir())


def _disturb(
    workers: list[Child],
    paused: dict[int, tuple[Child, float]],
    chance: random.Random,
    outcome: Outcome,
    start: Callable[[], Child],
    lease: float,
) -> None:
    """Kill one now and then, pause another for longer than a lease, let go on those that were."""
    for place, (child, until) in list(paused.items()):
        if time.monotonic() > until:
            child.signal(signal.SIGCONT)
            del paused[place]
    place = chance.randrange(len(workers))
    if place in paused:
        return
    dice = chance.random()
    if dice < 0.03:
        outcome.figures["kills"] += 1
        with workers[place]:
            pass
        workers[place] = start()
    elif dice < 0.06 and len(paused) < 2:
        outcome.figures["pauses"] += 1
        workers[place].signal(signal.SIGSTOP)
        paused[place] = workers[place], time.monotonic() + lease * chance.uniform(1.1, 2.0)


# -- a process --------------------------------------------------------------------------------


class _Log:
    """Lines of JSON, each written by one system call, which no kill can tear."""

    def __init__(self, path: str) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def __call__(self, *what: Any) -> None:
        os.write(self._file, (json.dumps(what) + "\n").encode())


def work(
    say: Voice, database: str, path: str, end: float, seed: int, mutant: str, lease: float
) -> None:
    """Write prompts and run turns until *end*, and note what was acknowledged."""
    log, chance = _Log(path), random.Random(f"{seed} {path}")
    mutants.apply(mutant, chance, lease)
    name = Path(path).name
    with Store(database, lease_seconds=lease) as store:
        number = 0
        while time.monotonic() < end:
            number += 1
            context = f"c{chance.randrange(CONTEXTS)}"
            try:
                if chance.random() < 0.4:
                    _prompt(store, context, f"{name}-{number}", log, chance)
                else:
                    _turn(store, context, f"{name}-{number}", log, chance)
            except TurnBusy:
                log("busy", context)
                time.sleep(chance.uniform(0, 0.01))
            except ModelTimeout:
                log("late", context)
            except TurnLost as error:
                log("lost", context, error.turn_id)
            except StoreBusy as error:
                log("store busy", context, str(error))
            except BaseException as error:
                log("error", context, "".join(traceback.format_exception(error)))


def _prompt(store: Store, context: str, key: str, log: _Log, chance: random.Random) -> None:
    window = ContextWindow(store, context)
    for _ in range(chance.choice((1, 1, 2))):
        record = window.add_prompt(f"prompt {key}", key=key)
        log("prompt", context, key, record.id, record.seq)


def _turn(store: Store, context: str, name: str, log: _Log, chance: random.Random) -> None:
    chunks = [f"{name}/{n} " for n in range(chance.randrange(1, 20))]
    model = ScriptedModel([ScriptedReply(chunks, delay=chance.uniform(0, 0.004))])
    window = ContextWindow(store, context, model=model, checkpoint_interval=0.0)
    on_busy: Any = chance.choice(("raise", "raise", "wait", "cancel_running"))
    stream = window.call_model_streaming(on_busy=on_busy, deadline=5.0)
    for chunk in stream:
        if chunk.type == "stream_start":
            log("begin", context, stream.turn_id)
        elif chunk.delta:
            log("shown", context, stream.turn_id, chunk.delta)
    log("end", context, stream.turn_id, stream.reply.finish_reason, stream.reply.text)


# -- the checker ------------------------------------------------------------------------------


def check(store: Store, folder: Path, outcome: Outcome) -> None:
    """Hold what is in the database against what the processes were told."""
    logs = [
        json.loads(line)
        for path in sorted(folder.iterdir())
        for line in path.read_text().splitlines()
    ]
    outcome.figures.update(line[0] for line in logs)
    for line in logs:
        if line[0] == "error":
            outcome.bad("unexpected error", line)
    for problem in recount(store):
        outcome.bad("counters or order", problem)
    _check_prompts(store, logs, outcome)
    _check_turns(store, logs, outcome)
    _check_witness(store, outcome)


def _records(store: Store, context: str, outcome: Outcome) -> list[Record]:
    try:
        return ContextWindow(store, context).records()
    except RecordCorrupt as error:
        outcome.bad("a record is damaged", error)
        return []


def _check_prompts(store: Store, logs: list[Any], outcome: Outcome) -> None:
    stored = {}
    for context in store.list_contexts():
        for record in _records(store, context.name, outcome):
            stored[context.name, record.content] = record.id, record.seq
    for _, context, key, *place in (line for line in logs if line[0] == "prompt"):
        if list(stored.get((context, f"prompt {key}"), ())) != place:
            outcome.bad("prompt lost, moved or written twice", (context, key, place))


def _check_turns(store: Store, logs: list[Any], outcome: Outcome) -> None:
    texts: dict[str, str] = defaultdict(str)
    for context in store.list_contexts():
        for record in _records(store, context.name, outcome):
            texts[record.turn_id or ""] += record.content
    shown: dict[str, str] = defaultdict(str)
    for line in logs:
        if line[0] == "shown":
            shown[line[2]] += line[3]
    for turn_id, text in shown.items():
        if not texts[turn_id].startswith(text):
            outcome.bad("shown text lost", (turn_id, text, texts[turn_id]))
    states = {turn.id: turn.state for turn in store.turns()}
    if "running" in states.values():
        outcome.bad("a dead turn was not settled", states)
    for _, context, turn_id, reason, text in (line for line in logs if line[0] == "end"):
        if texts[turn_id] != text:
            outcome.bad("stored reply differs", (context, turn_id, text, texts[turn_id]))
        if states[turn_id] != ("cancelled" if reason == "cancelled" else "complete"):
            outcome.bad("state differs", (context, turn_id, reason, states[turn_id]))
    with store.database.read() as connection:
        stray = connection.execute("SELECT count(*) FROM record_deltas").fetchone()
    if stray != (0,):
        outcome.bad("text beside settled records", stray)


def _check_witness(store: Store, outcome: Outcome) -> None:
    """No turn has written once another had begun to."""
    over: dict[str, set[str]] = defaultdict(set)
    last: dict[str, str] = {}
    with store.database.read() as connection:
        rows = connection.execute("SELECT context_id, turn_id FROM witness ORDER BY n").fetchall()
    for context_id, turn_id in rows:
        before = last.get(context_id)
        if before not in (None, turn_id):
            over[context_id].add(str(before))
        if turn_id in over[context_id]:
            outcome.bad("two turns overlap", (context_id, turn_id))
        last[context_id] = turn_id
    outcome.figures["writes"] = len(rows)
