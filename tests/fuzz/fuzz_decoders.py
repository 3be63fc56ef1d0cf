"""Coverage-guided fuzzing of the four decoders, with atheris (``pip install atheris``).

    python tests/fuzz/fuzz_decoders.py anthropic -max_total_time=150

The first argument names a decoder of ``decoders.DECODERS``, the others are libFuzzer's.  What it
finds interesting is added to ``tests/fuzz/corpus/NAME``; a test decodes all of that in each run.
"""

from __future__ import annotations

import sys
from pathlib import Path

import atheris

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent.parent), str(HERE.parent), str(HERE)]

with atheris.instrument_imports(include=["contextwindow.models"]):
    from decoders import check


def main(arguments: list[str]) -> None:
    """Fuzz the decoder that the first argument names."""
    program, api, *options = arguments
    corpus = HERE / "corpus" / api
    corpus.mkdir(parents=True, exist_ok=True)
    atheris.Setup([program, str(corpus), *options], lambda data: check(api, data))
    atheris.Fuzz()


if __name__ == "__main__":
    main(sys.argv)
