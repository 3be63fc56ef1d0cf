"""Figures against targets, as one table."""

from __future__ import annotations

import os
import platform
import shlex
import sqlite3
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

_T = TypeVar("_T")


@dataclass(frozen=True)
class Figure:
    """One measured figure; *target* is the most (or with *least* the least) that it may be.

    Attributes:
        values: one for each round, in *unit*; their median is held against the target.
        target: None for a figure that only explains another one.
    """

    what: str
    values: Sequence[float]
    target: float | None = None
    least: bool = False
    unit: str = "×"
    detail: str = ""

    @property
    def median(self) -> float:
        """The middle of the rounds."""
        return statistics.median(self.values)

    @property
    def holds(self) -> bool:
        """Whether the target is met; a figure without one always holds."""
        if self.target is None:
            return True
        return self.median >= self.target if self.least else self.median <= self.target


def in_turn(ours: Callable[[], _T], theirs: Callable[[], _T], rounds: int) -> list[tuple[_T, _T]]:
    """What both give, *rounds* times in turn after one that warms up."""
    ours(), theirs()
    return [(ours(), theirs()) for _ in range(rounds)]


def compare(
    ours: Callable[[], float], theirs: Callable[[], float], rounds: int
) -> tuple[list[float], float, float]:
    """Ratios of two costs measured in turn, and the medians of both."""
    pairs = in_turn(ours, theirs, rounds)
    return (
        [one / two for one, two in pairs],
        statistics.median(one for one, _ in pairs),
        statistics.median(two for _, two in pairs),
    )


def machine() -> str:
    """What the figures were measured on, and with which command."""
    model = "unknown processor"
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        model = names[0].split(":", 1)[1].strip() if names else model
    busy = f"load {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else "load unknown"
    command = shlex.join(["python", "-m", "benchmarks", *sys.argv[1:]])
    return (
        f"{os.cpu_count()} cores of {model} ({busy}), Python {platform.python_version()}, "
        f"SQLite {sqlite3.sqlite_version}; `{command}`"
    )


def table(figures: Sequence[Figure]) -> str:
    """The figures as Markdown."""
    lines = ["| what | median (min to max) | target | |", "|---|---|---|---|"]
    for one in figures:
        what = f"{one.what} ({one.detail})" if one.detail else one.what
        low, high = min(one.values), max(one.values)
        spread = f" ({_number(low)} to {_number(high)})" if len(one.values) > 1 else ""
        target = mark = ""
        if one.target is not None:
            target = f"{'≥' if one.least else '≤'} {one.target:g} {one.unit}"
            mark = "ok" if one.holds else "**MISSED**"
        value = f"{_number(one.median)} {one.unit}{spread}"
        lines.append(f"| {what} | {value} | {target} | {mark} |")
    return "\n".join(lines)


def _number(value: float) -> str:
    return f"{value:.2f}" if value < 20 else f"{value:.0f}"
