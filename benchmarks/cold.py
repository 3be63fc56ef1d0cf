"""What a new process pays before it can do anything."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable

from benchmarks.report import Figure, compare

PROMPT = """
import tempfile
from contextwindow import ContextWindow
with tempfile.TemporaryDirectory() as folder, ContextWindow(folder + "/x.db", "c") as window:
    window.add_prompt("hello")
"""


def measure(rounds: int) -> list[Figure]:
    """Importing, and opening a new database for one prompt, in fresh processes."""
    nothing = min(_process("pass")() for _ in range(5))
    figures = []
    for what, ours, theirs, target in (
        ("import contextwindow against import openai", "import contextwindow", "openai", 0.12),
        ("open a database, add a prompt, against import sqlalchemy", PROMPT, "sqlalchemy", 2.0),
    ):
        ratios, us, them = compare(
            _process(ours, nothing), _process(f"import {theirs}", nothing), rounds
        )
        detail = f"{us * 1000:.0f} against {them * 1000:.0f} ms"
        figures.append(Figure(what, ratios, target, detail=detail))
    return figures


def _process(code: str, nothing: float = 0.0) -> Callable[[], float]:
    """Seconds that a process with *code* takes beyond an empty one."""

    def once() -> float:
        began = time.perf_counter()
        subprocess.run([sys.executable, "-c", code], check=True)
        return max(time.perf_counter() - began - nothing, 0.0001)

    return once
