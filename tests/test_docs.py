"""What the documents say is so."""

from __future__ import annotations

import re
import runpy
import tomllib
from pathlib import Path

import pytest

import contextwindow
from contextwindow.store import schema

ROOT = Path(__file__).resolve().parent.parent
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
INTERNAL = "not part of the public interface"
# The first example of the README talks to the real service.
RUNNABLE = [
    pytest.param(block, id=f"{page.name}-{number}")
    for page in sorted((ROOT / "docs").glob("*.md"))
    for number, block in enumerate(BLOCK.findall(page.read_text("utf-8")))
]


@pytest.mark.parametrize("block", RUNNABLE)
def test_python_in_the_documents_runs(
    block: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {"__name__": "documents"}
    exec(compile(block, "documents", "exec", dont_inherit=True), namespace)
    assert namespace


def test_python_in_the_readme_compiles() -> None:
    blocks = BLOCK.findall((ROOT / "README.md").read_text("utf-8"))
    assert blocks
    for block in blocks:
        compile(block, "README.md", "exec")


def test_every_table_column_and_view_is_in_the_schema_page() -> None:
    page = (ROOT / "docs" / "schema.md").read_text("utf-8")
    for table in schema.metadata.tables.values():
        line = next(one for one in re.split(r"\n- ", page) if one.startswith(f"`{table.name}`"))
        for column in table.columns:
            assert re.search(rf"\b{column.name}\b", line), f"{table.name}.{column.name}"
    for name in schema.view_statements("sqlite"):
        assert f"- `{name}`" in page


def test_every_public_name_can_be_imported_and_says_what_it_is() -> None:
    for name in contextwindow.__all__:
        value = getattr(contextwindow, name)
        assert name == "DROP" or value.__doc__, name
    assert len(contextwindow.__all__) == len(set(contextwindow.__all__))


@pytest.mark.parametrize("kind", [contextwindow.ContextWindow, contextwindow.Store])
def test_every_public_method_is_in_the_documents(kind: type) -> None:
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    text = "\n".join(page.read_text("utf-8") for page in pages)
    missing = []
    for name in (name for name in dir(kind) if not name.startswith("_")):
        said = " ".join((getattr(kind, name).__doc__ or "").split())
        # As code: words such as "call" and "search" stand in many a sentence.
        if re.search(rf"[.`]{name}\b|\b{name}\(", text) is None and INTERNAL not in said:
            missing.append(name)
    assert missing == []


def test_an_unknown_public_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'ContextWindwo'"):
        _ = contextwindow.ContextWindwo


def test_links_between_the_documents_lead_somewhere() -> None:
    for page in [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text("utf-8")):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_the_version_is_the_packages() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    assert project["version"] == contextwindow.__version__


def test_the_picture_of_the_chat_is_what_its_script_draws() -> None:
    script = runpy.run_path(str(ROOT / "docs" / "images" / "make.py"))
    drawn = script["draw_chat"]()
    kept = (ROOT / "docs" / "images" / "chat.svg").read_text("utf-8")

    # The times of the records, and what rich may draw otherwise one day.
    def told(svg: str) -> list[str]:
        texts = re.findall(r"<text [^>]*>([^<]*)</text>", svg)
        words = [one.replace("&#160;", " ").strip() for one in texts]
        return [one for one in words if one and not re.search(r"\d\d:\d\d:\d\d", one)]

    assert told(drawn) == told(kept)
    assert set(re.findall(r"https?://[^\"'\s<]+", kept)) <= {
        "http://www.w3.org/2000/svg",
        "https://www.textualize.io",
    }
