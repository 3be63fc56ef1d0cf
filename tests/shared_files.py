"""The provider recordings beside the checkout, where they are."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

SHARED = Path(
    os.environ.get("CONTEXTWINDOW_SHARED", Path(__file__).resolve().parents[2] / "shared")
)


@dataclass(frozen=True)
class Recording:
    """One answer of a provider, and what was asked."""

    name: str
    folder: Path

    @property
    def expected(self) -> dict[str, Any]:
        return self._json("expected.json")

    @property
    def request(self) -> dict[str, Any]:
        return self._json("request.json")

    @property
    def response(self) -> dict[str, Any]:
        return self._json("response.json")

    @property
    def is_stream(self) -> bool:
        return (self.folder / "response.sse").exists()

    @property
    def body(self) -> bytes:
        name = "response.sse" if self.is_stream else "response.body"
        return (self.folder / name).read_bytes()

    def _json(self, name: str) -> dict[str, Any]:
        content: dict[str, Any] = json.loads((self.folder / name).read_text("utf-8"))
        return content


def turns(prefix: str) -> list[list[Recording]]:
    """The cases whose name begins with *prefix*, each as the list of its turns."""
    cases = []
    for case in sorted((SHARED / "wire").glob(f"{prefix}*")):
        folders = sorted(case.glob("[0-9][0-9]")) or [case]
        cases.append([Recording(f.relative_to(SHARED / "wire").as_posix(), f) for f in folders])
    return cases


def each(prefix: str, wanted: Callable[[Recording], bool]) -> pytest.MarkDecorator:
    """Parametrizes a test with every wanted answer of *prefix*; ``None`` where none is there."""
    found = [turn for case in turns(prefix) for turn in case if wanted(turn)]
    return pytest.mark.parametrize(
        "recording", found or [None], ids=lambda one: one.name if one else "missing"
    )


def needed(found: Any) -> None:
    """Skip the test where the recordings are missing; on CI, where they may not be, fail it."""
    if found:
        return
    what = f"no recordings in {SHARED}: set CONTEXTWINDOW_SHARED"
    if os.environ.get("CI") == "true":
        pytest.fail(what)
    pytest.skip(what)
