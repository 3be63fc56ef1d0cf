"""Processes that share contexts, are killed and paused; and a checker that is checked."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest
from mutants import MUTANTS
from stress import run

SECONDS = float(os.environ.get("CONTEXTWINDOW_STRESS_SECONDS", "6"))

pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")


def test_no_turns_overlap_and_nothing_is_lost_whatever_is_killed_and_paused(
    database: str, tmp_path: Path
) -> None:
    """Fault 30: 8 processes, random appends, turns, kills: no overlap, no gap, nothing lost."""
    seed = random.randrange(1 << 30)
    folder = tmp_path / "logs"
    folder.mkdir()

    outcome = run(database, folder, seconds=SECONDS, seed=seed, turns=int(SECONDS) + 1)

    print(dict(outcome.figures))
    assert outcome.violations == {}, f"seed {seed}: {outcome.examples}"
    figures = outcome.figures
    assert figures["end"] > SECONDS, figures
    assert figures["kills"] > 0, figures
    assert figures["prompt"] > SECONDS, figures


@pytest.mark.parametrize("mutant", MUTANTS)
def test_the_checker_catches_a_broken_lease(tmp_path: Path, mutant: str) -> None:
    """Fault 8c: Mutants without fence, with check-then-write, with max+1 must be caught."""
    folder = tmp_path / "logs"
    folder.mkdir()
    for seed in range(5):
        outcome = run(
            str(tmp_path / f"{seed}.db"),
            folder,
            seconds=2.0,
            processes=6,
            seed=seed,
            mutant=mutant,
            lease=0.3,
            turns=20,
        )
        if outcome.violations:
            return
        for path in folder.iterdir():
            path.unlink()
    pytest.fail(f"nothing was noticed: {outcome.figures}")
