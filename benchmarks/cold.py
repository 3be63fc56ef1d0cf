"""What a new process pays before it can do anything."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.report import Figure, compare

PROMPT = """
from contextwindow import ContextWindow
with ContextWindow({path!r}, "c") as window:
    window.add_prompt("hello")
"""


def measure(rounds: int) -> list[Figure]:
    """Importing, and a new and a known database opened for one prompt, in fresh processes."""
    with tempfile.TemporaryDirectory() as folder:
        # Compiled once, by the first run of each, which is not counted.
        environment = {**os.environ, "PYTHONPYCACHEPREFIX": str(Path(folder) / "bytecode")}
        environment.pop("PYTHONDONTWRITEBYTECODE", None)
        run = _Runner(environment)
        known = str(Path(folder) / "known.db")
        new = Path(folder) / "new.db"

        def first_prompt() -> float:
            for one in Path(folder).glob("new.db*"):
                one.unlink()
            return run.seconds(PROMPT.format(path=str(new)))

        cases: tuple[tuple[str, Callable[[], float], str, float], ...] = (
            (
                "import contextwindow against import openai",
                lambda: run.seconds("import contextwindow"),
                "openai",
                0.12,
            ),
            (
                "make a database, add a prompt, against import sqlalchemy",
                first_prompt,
                "sqlalchemy",
                2.0,
            ),
            (
                "open a database, add a prompt, against import sqlalchemy",
                lambda: run.seconds(PROMPT.format(path=known)),
                "sqlalchemy",
                2.0,
            ),
        )
        figures = []
        for what, ours, module, target in cases:
            ratios, us, them = compare(ours, run.importing(module), rounds)
            detail = f"{us * 1000:.0f} : {them * 1000:.0f} ms"
            figures.append(Figure(what, ratios, target, detail=detail))
    return figures


class _Runner:
    """Runs code in fresh processes; an empty one's time is taken off."""

    def __init__(self, environment: dict[str, str]) -> None:
        self._environment = environment
        self._nothing = 0.0
        self.seconds("pass")
        self._nothing = min(self.seconds("pass") for _ in range(5))

    def seconds(self, code: str) -> float:
        """Seconds that a process with *code* takes beyond an empty one."""
        began = time.perf_counter()
        subprocess.run([sys.executable, "-c", code], check=True, env=self._environment)
        return max(time.perf_counter() - began - self._nothing, 0.0001)

    def importing(self, module: str) -> Callable[[], float]:
        """Seconds of importing *module*, on each call."""
        return lambda: self.seconds(f"import {module}")
