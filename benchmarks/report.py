"""Figures against targets, as one table."""

from __future__ import annotations

import os
import platform
import sqlite3
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Figure:
    """One measured ratio; *target* is the most (or with *least* the least) that it may be."""

    what: str
    ratios: Sequence[float]
    target: float | None
    least: bool = False
    detail: str = ""

    @property
    def median(self) -> float:
        """The middle of the rounds."""
        return statistics.median(self.ratios)

    @property
    def holds(self) -> bool:
        """Whether the target is met; a figure without one always holds."""
        if self.target is None:
            return True
        return self.median >= self.target if self.least else self.median <= self.target


def compare(
    ours: Callable[[], float], theirs: Callable[[], float], rounds: int
) -> tuple[list[float], float, float]:
    """Ratios of two costs measured in turn, and the medians of both."""
    ours(), theirs()
    pairs = [(ours(), theirs()) for _ in range(rounds)]
    ratios = [ours_cost / their_cost for ours_cost, their_cost in pairs]
    return (
        ratios,
        statistics.median(one for one, _ in pairs),
        statistics.median(two for _, two in pairs),
    )


def machine() -> str:
    """What the figures were measured on."""
    model = "unknown processor"
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        model = names[0].split(":", 1)[1].strip() if names else model
    return (
        f"{os.cpu_count()} cores of {model}, Python {platform.python_version()}, "
        f"SQLite {sqlite3.sqlite_version}"
    )


def table(figures: Sequence[Figure]) -> str:
    """The figures as Markdown."""
    lines = ["| what | ratio (min to max) | target | |", "|---|---|---|---|"]
    for one in figures:
        sign = "≥" if one.least else "≤"
        target = "" if one.target is None else f"{sign} {one.target:g} ×"
        spread = f"{one.median:.2f} × ({min(one.ratios):.2f} to {max(one.ratios):.2f})"
        mark = "" if one.target is None else ("ok" if one.holds else "**missed**")
        lines.append(
            f"| {one.what}{one.detail and f' ({one.detail})'} | {spread} | {target} | {mark} |"
        )
    return "\n".join(lines)
