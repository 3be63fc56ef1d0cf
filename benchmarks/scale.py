"""A database of a million records: searching, forking, compacting, listing, appending."""

from __future__ import annotations

import itertools
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from benchmarks import append
from benchmarks.bare import TIME, connect
from benchmarks.reads import timed_query
from benchmarks.report import Figure, compare
from contextwindow import ContextWindow, Store
from contextwindow.store.values import checksum
from contextwindow.testing import ScriptedModel

RECORDS: Final = 1_000_000
LARGE: Final = 100_000
CONTEXTS: Final = 1_000
SMALL: Final = (RECORDS - LARGE) // (CONTEXTS - 1)
VOCABULARY: Final = 50_000

QUERIES: Final = {
    "a rare word": (20_000,),
    "a word in 2,000 records": (1_800,),
    "a word in 16,000 records": (200,),
    "the commonest word": (0,),
    "the commonest and a rare word": (0, 20_000),
    "the two commonest words": (0, 1),
    "five words": (3, 40, 300, 1_000, 2_000),
}


def measure(rounds: int) -> list[Figure]:
    """Milliseconds where the target is one, else ratios to the bare query."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "million.db"
        words = make(path)
        with Store(path, synchronous="normal") as store:
            figures = [
                *_searches(store, words, rounds),
                *_reads(store, path, rounds),
                *_turns(store, rounds),
                *_forks(store, rounds),
                *_compactions(store, rounds),
            ]
    return figures


def make(path: Path) -> list[str]:
    """Fill a database with texts whose words are as common as those of a language (Zipf).

    Returns:
        The words, the commonest first.
    """
    chance = random.Random(1)
    letters = "abcdefghijklmnopqrstuvwxyz"
    words = ["".join(chance.choices(letters, k=chance.randint(2, 9))) for _ in range(VOCABULARY)]
    weights = list(itertools.accumulate(1 / (rank + 2) for rank in range(VOCABULARY)))
    pool = chance.choices(words, cum_weights=weights, k=2_000_000)
    Store(path).close()
    connection = connect(path, "off")
    connection.execute("BEGIN")
    connection.execute("UPDATE upkeep SET paused = 1")
    sizes = [LARGE, *[SMALL] * (CONTEXTS - 1)]
    connection.executemany(
        "INSERT INTO contexts (id, name, start_time, next_seq, record_count, live_count,"
        " live_tokens, last_activity) VALUES (?, ?, ?, ?, ?, 50, 1500, ?)",
        ((f"id{n:030}", f"c{n}", TIME, size + 1, size, TIME) for n, size in enumerate(sizes)),
    )
    connection.executemany(
        "INSERT INTO records (context_id, ts, source, content, live, est_tokens, seq, position,"
        " checksum) VALUES (?, ?, ?, ?, ?, 30, ?, ?, ?)",
        _rows(sizes, pool, chance),
    )
    connection.execute("UPDATE upkeep SET paused = 0")
    connection.execute("INSERT INTO search_index(search_index) VALUES ('rebuild')")
    connection.execute("COMMIT")
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.close()
    return words


def _rows(sizes: list[int], pool: list[str], chance: random.Random) -> Iterator[tuple[object, ...]]:
    for context, size in enumerate(sizes):
        for seq in range(1, size + 1):
            begin = chance.randrange(len(pool) - 60)
            text = " ".join(pool[begin : begin + chance.randint(5, 60)])
            live = seq > size - 50
            source = 1 - seq % 2
            yield f"id{context:030}", TIME, source, text, live, seq, seq, checksum(text, None)


def _searches(store: Store, words: list[str], rounds: int) -> list[Figure]:
    large = ContextWindow(store, "c0")
    small = ContextWindow(store, "c500")
    figures = []
    for where, look in {
        "everywhere": store.search,
        f"in a context of {LARGE:,}": large.search,
        f"in a context of {SMALL:,}": small.search,
    }.items():
        for what, ranks in QUERIES.items():
            query = " ".join(words[rank] for rank in ranks)
            costs = [_milliseconds(lambda q=query, look=look: look(q)) for _ in range(2 * rounds)]  # type: ignore[misc]
            detail = f"{len(look(query))} found"
            name = f"{what}, looked for {where}"
            figures.append(Figure(name, costs, 20.0, unit="ms", detail=detail))
    return figures


def _reads(store: Store, path: Path, rounds: int) -> list[Figure]:
    bare = connect(path, "normal")
    large = ContextWindow(store, "c0")
    assert len(large.live_records()) == 50
    every = store.context_stats()
    assert isinstance(every, list)
    assert len(every) == CONTEXTS
    figures = [
        timed_query("50 live records loaded", large.live_records, bare, "live", rounds),
        timed_query("figures of a context", lambda: store.context_stats("c0"), bare, "one", rounds),
        timed_query("list of 1,000 contexts", store.context_stats, bare, "every", rounds),
    ]
    bare.close()
    return figures


def _turns(store: Store, rounds: int) -> list[Figure]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "few.db"
        with Store(path, synchronous="normal") as few:
            here = append.turns(ContextWindow(store, "c1", model=_model()))
            there = append.turns(ContextWindow(few, "c1", model=_model()))
            ratios, us, them = compare(here, there, rounds)
    detail = f"{us:.0f} : {them:.0f} µs"
    return [Figure("a turn appended, against one in an empty database", ratios, 1.3, detail=detail)]


def _model() -> ScriptedModel:
    return ScriptedModel([[append.REPLY]], repeat=True)


def _forks(store: Store, rounds: int) -> list[Figure]:
    window = ContextWindow(store, "c0")
    made, found, deleted = [], [], []
    for number in range(min(rounds, 3)):
        made.append(_milliseconds(lambda n=number: window.fork(f"fork {n}")) / 1e3)  # type: ignore[misc]
        assert store.context_stats(f"fork {number}").total_records == LARGE  # type: ignore[union-attr]
        found.append(_milliseconds(lambda: window.search("nothing")) / 1e3)
        deleted.append(_milliseconds(lambda n=number: window.delete_context(f"fork {n}")) / 1e3)  # type: ignore[misc]
    return [
        Figure(f"a fork of {LARGE:,} records", made, 1.0, unit="s"),
        Figure("the first search behind it, which indexes the fork", found, unit="s"),
        Figure(f"deleting {LARGE:,} records", deleted, unit="s"),
    ]


def _compactions(store: Store, rounds: int) -> list[Figure]:
    """A window of 2,000 live records in the context of 100,000."""
    window = ContextWindow(store, "c0", max_tokens=60_000)
    newest = [record.id for record in window.records()[-2_000:]]
    costs = []
    for _ in range(rounds):
        window.set_live(newest, True)
        costs.append(_milliseconds(window.compact))
        assert len(window.live_records()) < 1_100
    reads = [_milliseconds(window.live_records) for _ in range(rounds)]
    ratios = [cost / statistics.median(reads) for cost in costs]
    detail = f"{statistics.median(costs):.0f} ms; unit: reading what is left"
    return [Figure("2,000 live records compacted to a half", ratios, detail=detail)]


def _milliseconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return (time.perf_counter() - began) * 1e3
