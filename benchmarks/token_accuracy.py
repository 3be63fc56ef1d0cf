"""Estimates of a request's input tokens against what providers have counted.

The recordings of real calls stand beside the checkout, or in the folder that
``CONTEXTWINDOW_SHARED`` names.  Where they are missing there is nothing to compare with.
"""

from __future__ import annotations

import json
import os
import re
import statistics
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Final

from benchmarks.report import Figure
from contextwindow.models.estimates import Estimate, estimate_request, is_countable
from contextwindow.tokens import ENCODING, load_encoding

SHARED: Final = Path(
    os.environ.get("CONTEXTWINDOW_SHARED", Path(__file__).resolve().parents[2] / "shared")
)
NAMES: Final = {
    "openai-chat": "OpenAI Chat Completions",
    "openai-responses": "OpenAI Responses",
    "anthropic": "Anthropic",
    "gemini": "Gemini",
}

MEDIAN: Final = 5.0
"""Percent that the median error of a provider may be."""
WORST: Final = 15.0
"""Percent that any error may be."""
SMALL: Final = 50
"""Tokens below which a request is small: there two tokens are five percent …"""
SLACK: Final = 3
"""… so that this many tokens of its error are not counted."""

_REDACTED: Final = re.compile(r"(?:encrypted_content|signature)_REDACTED")
# Usage of March 2025, when Responses was new: 334 and 812 tokens for texts and tools that take
# 117 and 174 on Chat Completions, with the same model and the same tools.
_DISPUTED: Final = ("openai_responses-tool_loop-04/01", "openai_responses-tool_loop-04/02")


@dataclass(frozen=True)
class Case:
    """One recorded request, and the input tokens that the provider counted."""

    name: str
    body: dict[str, Any]
    tokens: int
    estimate: Estimate

    @property
    def off(self) -> float:
        """By how many percent the estimate is wrong."""
        return abs(self.estimate.tokens - self.tokens) / self.tokens * 100

    @property
    def error(self) -> float:
        """As ``off``, after the allowance for small requests."""
        wrong = abs(self.estimate.tokens - self.tokens)
        if self.tokens < SMALL:
            wrong = max(wrong - SLACK, 0)
        return wrong / self.tokens * 100


@dataclass
class Accuracy:
    """How well the requests of one API are estimated.

    Attributes:
        excluded: how many recordings are not compared, by reason.
    """

    api: str
    cases: list[Case] = field(default_factory=list)
    excluded: Counter[str] = field(default_factory=Counter)

    @property
    def median(self) -> float:
        """The middle of the errors, in percent."""
        return statistics.median(one.error for one in self.cases)

    @property
    def worst(self) -> Case:
        """The one with the largest error."""
        return max(self.cases, key=lambda one: one.error)


@cache
def accuracies() -> Sequence[Accuracy]:
    """Of each API that there are recordings of."""
    if (SHARED / "tiktoken").exists():
        os.environ.setdefault("TIKTOKEN_CACHE_DIR", str(SHARED / "tiktoken"))
    found = {api: Accuracy(api) for api in NAMES}
    for name, folder in _recordings():
        accuracy = found[name.split("-")[0].replace("_", "-")]
        case = _case(accuracy.api, name, folder)
        if isinstance(case, str):
            accuracy.excluded[case] += 1
        else:
            accuracy.cases.append(case)
    return [one for one in found.values() if one.cases]


def measure(_rounds: int) -> list[Figure]:
    """Median and worst error of each API; nothing where there are no recordings."""
    figures = []
    for one in accuracies():
        name, worst = NAMES[one.api], one.worst
        errors = [case.error for case in one.cases]
        counted = f"{len(errors)} requests"
        figures += [
            Figure(f"{name}: estimated input tokens off by", errors, MEDIAN, False, "%", counted),
            Figure(f"{name}: at worst", [worst.error], WORST, False, "%", worst.name),
        ]
    if not figures:
        print(_missing(), file=sys.stderr)
    return figures


def table(found: Sequence[Accuracy]) -> str:
    """What was found, as Markdown."""
    lines = [
        "| | counted | median error | worst error | worst, every token counted | |",
        "|---|---|---|---|---|---|",
    ]
    for one in found:
        worst, raw = one.worst, max(one.cases, key=lambda case: case.off)
        mark = "ok" if holds(one) else "**MISSED**"
        lines.append(
            f"| {NAMES[one.api]} | {len(one.cases)} | {one.median:.1f} % | {_told(worst)} "
            f"{worst.error:.1f} % | {_told(raw)} {raw.off:.1f} % | {mark} |"
        )
    lines += [
        "",
        f"Targets: {MEDIAN:g} % in the median, {WORST:g} % at worst. In requests below {SMALL} "
        f"tokens a difference of up to {SLACK} tokens is not counted.",
        "",
        "Not compared:",
        "",
    ]
    for one in found:
        reasons = "; ".join(f"{reason}: {count}" for reason, count in one.excluded.most_common())
        lines.append(f"- {NAMES[one.api]}: {reasons}")
    return "\n".join(lines)


def holds(accuracy: Accuracy) -> bool:
    """Whether both targets are met."""
    return accuracy.median <= MEDIAN and accuracy.worst.error <= WORST


def main() -> int:
    """Print the table; 1 when a target is missed."""
    found = accuracies()
    if not found:
        print(_missing())
        return 0
    if load_encoding() is None:
        print(f"{ENCODING} is not on this machine: a token is taken as four bytes.\n")
    print(table(found))
    return 0 if all(map(holds, found)) else 1


def _missing() -> str:
    return f"no recordings in {SHARED}: nothing to compare with; set CONTEXTWINDOW_SHARED"


def _told(case: Case) -> str:
    return f"{case.name} ({case.estimate.tokens} for {case.tokens})"


def _recordings() -> Iterator[tuple[str, Path]]:
    wire = SHARED / "wire"
    for case in sorted(wire.glob("*")):
        if case.is_dir() and case.name.split("-")[0].replace("_", "-") in NAMES:
            for folder in sorted(case.glob("[0-9][0-9]")) or [case]:
                yield folder.relative_to(wire).as_posix(), folder


def _case(api: str, name: str, folder: Path) -> Case | str:
    """The comparison, or why there is none."""
    if "-derived_" in name:
        return "a copy of another recording"
    request = json.loads((folder / "request.json").read_text("utf-8"))
    usage = json.loads((folder / "expected.json").read_text("utf-8")).get("usage") or {}
    if not isinstance(request.get("body"), dict):
        return "the request was not recorded"
    if not usage.get("input"):
        return "the provider told no usage"
    body = dict(request["body"])
    found = re.search(r"/models?/([^/:?]+)", request["path"])
    if found and not body.get("model"):
        body["model"] = found[1]
    if name in _DISPUTED:
        return "usage that the same tools elsewhere contradict"
    if _REDACTED.search(json.dumps(body)):
        return "hidden thoughts cut out of the recording"
    if "/projects/" in request["path"] and body.get("tools"):
        return "Vertex AI, whose usage leaves out tools and thoughts"
    why = is_countable(api, body)
    if why:
        return why
    tokens = usage["input"]
    if api == "anthropic":
        tokens += (usage.get("cache_read") or 0) + (usage.get("cache_write") or 0)
    return Case(name, body, tokens, estimate_request(api, body))


if __name__ == "__main__":
    sys.exit(main())
