"""What leaves the inspector as a file: attachments and exports."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

import httpx2
import pytest
from inspecting import inspecting
from test_inspector import PNG, here, talked

from contextwindow import Attachment, ContextWindow, Store
from contextwindow.web.files import safe_name


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store(str(tmp_path / "x.db")) as opened:
        yield opened


@pytest.fixture
def client(store: Store) -> Iterator[httpx2.Client]:
    with inspecting(store) as running, running.client() as found:
        yield found


def test_files_are_given_away_and_only_pictures_are_shown(
    store: Store, client: httpx2.Client
) -> None:
    """Fault 49: No attachment is a page: neither HTML nor SVG, whatever it calls itself."""
    window = ContextWindow(store, "files")
    script = b"<svg xmlns='http://www.w3.org/2000/svg' onload='alert(1)'/>"
    record = window.add_prompt(
        "look",
        [
            Attachment(media_type="image/png", data=PNG, name="dot.png"),
            Attachment(media_type="image/svg+xml", data=script, name="../../dot.svg"),
            Attachment(media_type="text/html", data=script, name='a"; x=y.html'),
            Attachment(media_type="application/pdf", data=b"%PDF-1.4", name="Größe.pdf"),
        ],
    )

    def get(number: int, query: str = "") -> httpx2.Response:
        answer = client.get(f"{here(window)}/files/{record.id}/{number}{query}")
        assert answer.status_code == 200
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert "sandbox" in answer.headers["content-security-policy"]
        return answer

    shown = get(0)
    assert shown.headers["content-type"] == "image/png"
    assert shown.headers["content-disposition"].startswith("inline;")
    assert shown.content == PNG
    for number, name in ((1, "dot.svg"), (2, "a_; x=y.html"), (3, "Größe.pdf")):
        answer = get(number)
        assert answer.headers["content-type"] == "application/octet-stream"
        how, _, names = answer.headers["content-disposition"].partition("; ")
        assert how == "attachment"
        assert unquote(names.rpartition("''")[2]).endswith(name)
        assert "/" not in unquote(names)
    assert get(0, "?download=1").headers["content-type"] == "application/octet-stream"
    assert client.get(f"{here(window)}/files/{record.id}/4").status_code == 404


@pytest.mark.parametrize(
    ("name", "safe"),
    [
        ("a.txt", "a.txt"),
        ("../../etc/passwd", "passwd"),
        ("C:\\evil\\a.exe", "a.exe"),
        ("...", "attachment"),
        ("", "attachment"),
        (".bashrc", "bashrc"),
        ("gpj.\u202eexe.txt", "gpj._exe.txt"),
        ('a"b\n.txt', "a_b_.txt"),
        ("x" * 300 + ".tar", "x" * 99 + ".tar"),
        ("日本語.png", "日本語.png"),
    ],
)
def test_a_file_name_is_a_name_and_nothing_else(name: str, safe: str) -> None:
    assert safe_name(name) == safe


def test_a_conversation_is_exported_in_each_form(store: Store, client: httpx2.Client) -> None:
    window = talked(store, "a/li\u202ece")
    for form, ending in (("json", "json"), ("markdown", "md"), ("html", "html")):
        answer = client.get(f"{here(window)}/export/{form}")
        assert answer.headers["content-type"] == "application/octet-stream"
        assert answer.headers["content-disposition"].startswith("attachment;")
        assert answer.headers["content-disposition"].endswith(f"li_ce.{ending}")
        assert "Fine, thank you." in answer.text
    exported = client.get(f"{here(window)}/export/json").text
    with Store() as other:
        window = ContextWindow(other, "x")
        assert window.import_context(json.loads(exported)).name == "a/li\u202ece"
