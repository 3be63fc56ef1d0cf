"""``python -m benchmarks [NAME …] [--quick]``: measures, prints a table, fails on a miss."""

from __future__ import annotations

import argparse
import sys

from benchmarks import (
    append,
    cache,
    chunks,
    cold,
    follow,
    reads,
    scale,
    streams,
    token_accuracy,
    writers,
)
from benchmarks.report import machine, table

PARTS = {
    "chunks": chunks.measure,
    "streams": streams.measure,
    "append": append.measure,
    "reads": reads.measure,
    "cold": cold.measure,
    "writers": writers.measure,
    "follow": follow.measure,
    "scale": scale.measure,
    "cache": cache.measure,
    "token_accuracy": token_accuracy.measure,
}


def main() -> int:
    """Run what was asked for; 1 when a target is missed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks")
    parser.add_argument("parts", nargs="*", metavar="NAME", help=", ".join(PARTS))
    parser.add_argument("--quick", action="store_true", help="fewer and shorter rounds")
    asked = parser.parse_args()
    unknown = set(asked.parts) - set(PARTS)
    if unknown:
        parser.error(f"no benchmark is called {', '.join(sorted(unknown))}")
    header = machine()
    figures = []
    for name in asked.parts or PARTS:
        print(f"measuring {name} …", file=sys.stderr)
        figures += PARTS[name](3 if asked.quick else 7)
    missed = [one for one in figures if not one.holds]
    print(f"{header}\n\n{table(figures)}")
    print(f"\n{sum(one.target is not None for one in figures)} targets, {len(missed)} missed.")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
