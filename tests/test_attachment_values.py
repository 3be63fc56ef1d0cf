"""What a caller may attach, whatever it is, wherever it comes from."""

from __future__ import annotations

import base64
import hashlib
import io
import os
import unicodedata
import zipfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contextwindow import Attachment, ConfigError, attachments, media_types
from contextwindow.attachments import LARGEST_BYTES, read_attachment, tokens_of

PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)
PDF = b"%PDF-1.4\n1 0 obj<</Type /Pages/Count 2>>\n<</Type/Page>>\n<</Type /Page >>\n%%EOF"
OFFICE = "application/vnd.openxmlformats-officedocument"


def zipped(*names: str, mimetype: str = "") -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        if mimetype:
            archive.writestr("mimetype", mimetype)
        for name in names:
            archive.writestr(name, "<x/>")
    return file.getvalue()


@pytest.mark.parametrize(
    ("data", "media_type"),
    [
        (PNG, "image/png"),
        (b"\xff\xd8\xff\xe0\0\x10JFIF", "image/jpeg"),
        (b"GIF89a\x01\0\x01\0", "image/gif"),
        (b"RIFF\x10\0\0\0WEBPVP8 ", "image/webp"),
        (b"RIFF\x10\0\0\0WAVEfmt ", "audio/wav"),
        (b"ID3\x04\0\0\0\0\0\0", "audio/mpeg"),
        (b"\xff\xfb\x90\x64\0\0", "audio/mpeg"),
        (b"\xff\xf1\x50\x80\0\0", "audio/aac"),
        (b"OggS\0\x02", "audio/ogg"),
        (b"fLaC\0\0\0\x22", "audio/flac"),
        (b"\0\0\0\x18ftypisom\0\0\0\0", "video/mp4"),
        (b"\0\0\0\x18ftypM4A \0\0\0\0", "audio/mp4"),
        (b"\0\0\0\x18ftypheic\0\0\0\0", "image/heic"),
        (b"\x1a\x45\xdf\xa3\x01\0\x42\x82\x84webm", "video/webm"),
        (PDF, "application/pdf"),
        (b"\xef\xbb\xbf\n%PDF-1.7\n", "application/pdf"),
        (zipped("[Content_Types].xml", "word/document.xml"), f"{OFFICE}.wordprocessingml.document"),
        (zipped("[Content_Types].xml", "xl/workbook.xml"), f"{OFFICE}.spreadsheetml.sheet"),
        (
            zipped("[Content_Types].xml", "ppt/presentation.xml"),
            f"{OFFICE}.presentationml.presentation",
        ),
        (
            zipped(mimetype="application/vnd.oasis.opendocument.text"),
            "application/vnd.oasis.opendocument.text",
        ),
        (zipped("notes.txt"), "application/zip"),
        (b"just text", "text/plain"),
        ("naïve text".encode(), "text/plain"),
    ],
)
def test_bytes_are_known_by_what_they_begin_with(data: bytes, media_type: str) -> None:
    found = read_attachment(data)

    assert found.media_type == media_type
    assert found.data == data
    assert found.digest == hashlib.sha256(data).hexdigest()
    assert (found.name, found.url) == ("", None)


@pytest.mark.parametrize("kind", [bytearray, memoryview])
def test_bytes_are_copied(kind: Any) -> None:
    given_ = bytearray(b"text")
    found = read_attachment(kind(given_))
    given_[0] = 0

    assert found.data == b"text"
    assert type(found.data) is bytes


@pytest.mark.parametrize("kind", [str, Path])
def test_a_file_is_read_and_named_by_its_last_part(tmp_path: Path, kind: Any) -> None:
    (tmp_path / "Ünïcode 1.md").write_bytes(b"# Title")

    found = read_attachment(kind(tmp_path / "Ünïcode 1.md"))

    assert (found.name, found.media_type) == ("Ünïcode 1.md", "text/markdown")


@pytest.mark.parametrize(
    ("name", "data", "media_type"),
    [
        ("a.png", b"\xff\xd8\xff\xe0", "image/jpeg"),  # the bytes are right, the name is not
        ("a.svg", b"<svg/>", "image/svg+xml"),
        ("a.csv", b"a,b\n", "text/csv"),
        ("a.json", b"{}", "text/plain"),
        ("a.doc", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1\0", "application/msword"),
        ("a.docx", zipped("x"), f"{OFFICE}.wordprocessingml.document"),
        ("a.mp3", b"\1\2\3\xff", "audio/mpeg"),
        ("Makefile", b"all:\n", "text/plain"),
    ],
)
def test_a_name_tells_what_the_bytes_do_not(
    tmp_path: Path, name: str, data: bytes, media_type: str
) -> None:
    (tmp_path / name).write_bytes(data)

    assert read_attachment(tmp_path / name).media_type == media_type


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("a.bin", b"\0\1\2"),
        ("a.md", b"\xff\xfe#\0"),
        ("a.png", b"<html>404 not found</html>"),
        ("a.pdf", b"not a pdf"),
    ],
)
def test_what_cannot_be_told_asks_for_the_tuple(tmp_path: Path, name: str, data: bytes) -> None:
    (tmp_path / name).write_bytes(data)

    with pytest.raises(ConfigError, match=r"pass \(value, media_type\)") as raised:
        read_attachment(tmp_path / name)
    assert name in str(raised.value)


def test_a_tuple_says_the_media_type() -> None:
    assert read_attachment((b"\0\1", "Application/X-Thing; v=1")).media_type == (
        "application/x-thing"
    )
    assert read_attachment((PNG, "image/x-png")).media_type == "image/png"
    assert read_attachment((b"a,b", "text/csv")).media_type == "text/csv"


@pytest.mark.parametrize(
    ("value", "why"),
    [
        ((PNG, "image/jpeg"), "is image/png, not image/jpeg"),
        ((PNG, "application/pdf"), "is image/png"),
        ((PDF, "image/png"), "is application/pdf"),
        ((b"\xff\xfet\0", "text/plain"), "no UTF-8 text"),
        ((b"a\0b", "text/plain"), "without NUL"),
        ((b"x", "png"), "no media type"),
        ((b"x", "image/"), "no media type"),
        ((b"x", "image/png\nX: y"), "no media type"),
        ((b"x", 7), "must be a str"),
        ((b"x",), "is (value, media_type)"),
        (((b"x", "text/plain"), "text/plain"), "is (value, media_type)"),
        (b"", "is empty"),
        (None, "must be a path"),
        (7, "must be a path"),
        (["a"], "must be a path"),
    ],
)
def test_what_is_wrong_is_said(value: Any, why: str) -> None:
    with pytest.raises(ConfigError) as raised:
        read_attachment(value)
    assert why in str(raised.value)


@pytest.mark.parametrize(
    ("value", "why"),
    [
        ("", "neither an existing file nor a URL"),
        ("no/such/file.png", "neither an existing file nor a URL"),
        ("the text itself " * 1000, "passed as bytes"),
        ("a\0b", "neither an existing file nor a URL"),
        ("file:///etc/passwd", "not a file: URL"),
        ("ftp://host/a.png", "URLs of ftp: are not known"),
        ("javascript://x/%0aalert(1)", "URLs of javascript: are not known"),
        ("https:///a.png", "names no host"),
        ("https://[bad/a.png", "is no URL"),
        ("https://user:secret@host/a.png", "user name or password"),
        ("https://host/a b.png", "%-escape"),
        ("https://host/a\r\nX-Header: 1.png", "%-escape"),
        ("https://host/\u202egnp.exe", "%-escape"),
        ("https://host/\ud800.png", "%-escape"),
        ("https://host/" + "a" * 20_000, "characters"),
        ("https://host/page", "(url, 'image/png')"),
        ("data:image/png;base64", "no comma"),
        ("data:image/png;base64,****", "no base64"),
        ("data:image/png;base64,QQ=", "no base64"),
        ("data:image/png;base64,é", "no base64"),
        ("data:,", "is empty"),
        ("data:image/jpeg;base64," + base64.b64encode(PNG).decode(), "is image/png"),
        ("data:text/plain;charset=utf-16,x", "it must be in UTF-8"),
    ],
)
def test_text_that_leads_nowhere_is_refused(value: str, why: str) -> None:
    with pytest.raises(ConfigError) as raised:
        read_attachment(value)
    assert why in str(raised.value)
    assert len(str(raised.value)) < 500
    assert "secret" not in str(raised.value)


def test_a_url_is_kept_and_not_fetched() -> None:
    url = "https://host.invalid/a/caf%C3%A9.PNG?sig=1#x"
    assert read_attachment(url) == Attachment(media_type="image/png", name="café.PNG", url=url)
    assert read_attachment(("gs://bucket/talk", "video/mp4")).url == "gs://bucket/talk"
    assert read_attachment(("http://h/%2e%2e%2f%0a", "image/png")).name == ""


@pytest.mark.parametrize(
    ("url", "media_type", "data"),
    [
        ("data:image/png;base64," + base64.b64encode(PNG).decode(), "image/png", PNG),
        ("DATA:image/x-png;name=a;base64,\n" + base64.b64encode(PNG).decode(), "image/png", PNG),
        ("data:,a%20b", "text/plain", b"a b"),
        ("data:text/csv;charset=UTF-8,a,b", "text/csv", b"a,b"),
        ("data:;base64,YQ==", "text/plain", b"a"),
    ],
)
def test_a_data_url_becomes_bytes(url: str, media_type: str, data: bytes) -> None:
    found = read_attachment(url)

    assert (found.media_type, found.data, found.url) == (media_type, data, None)


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    (tmp_path / "empty.txt").touch()
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for value, why in [
        (tmp_path / "missing.png", "there is no file"),
        (tmp_path, "is a directory"),
        (str(tmp_path), "is a directory"),
        (tmp_path / "empty.txt", "is empty"),
        (tmp_path / "dangling", "there is no file"),
        (tmp_path / "loop", "cannot be read"),
        (tmp_path / ("n" * 300), "cannot be read"),
        (Path("a\0b"), "control character"),
        (Path("a\0b/c"), "cannot be read"),
    ]:
        with pytest.raises(ConfigError, match=why):
            read_attachment(value)


def test_a_file_without_permission_is_a_clear_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.txt").write_text("secret")

    def refused(*args: Any, **options: Any) -> int:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "open", refused)  # root may read everything
    with pytest.raises(ConfigError, match="cannot be read: Permission denied"):
        read_attachment(tmp_path / "a.txt")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_pipe_or_device_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/zero")):
        with pytest.raises(ConfigError, match="is no regular file"):
            read_attachment(path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_pipe_that_takes_the_place_of_a_file_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, pipe = tmp_path / "a.txt", tmp_path / "pipe"
    file.write_text("x")
    os.mkfifo(pipe)
    real = os.open
    monkeypatch.setattr(os, "open", lambda name, flags: real(pipe, flags))

    with pytest.raises(ConfigError, match="no regular file any more"):
        read_attachment(file)


def test_what_is_too_large_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with open(tmp_path / "sparse.txt", "wb") as file:
        file.truncate(LARGEST_BYTES + 1)
    with pytest.raises(ConfigError, match=r"50.0 MB; an attachment may have 50 MB"):
        read_attachment(tmp_path / "sparse.txt")
    monkeypatch.setattr(attachments, "LARGEST_BYTES", 4)
    for value in (b"12345", "data:,12345", "data:;base64,MTIzNDU=", "data:," + "%31" * 5):
        with pytest.raises(ConfigError, match="may have 0 MB"):
            read_attachment(value)
    assert read_attachment(b"1234").data == b"1234"


def test_a_file_that_grows_while_it_is_read_is_held_to_the_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "log.txt").write_text("12345")
    monkeypatch.setattr(attachments, "LARGEST_BYTES", 4)
    found = os.stat(tmp_path)
    real = os.stat

    def small(path: Any) -> os.stat_result:
        values = list(real(path))
        values[6] = 3
        return os.stat_result(values)

    monkeypatch.setattr(os, "stat", small)
    with pytest.raises(ConfigError, match="may have 0 MB"):
        read_attachment(tmp_path / "log.txt")
    assert found


@pytest.mark.parametrize(
    ("name", "kept"),
    [
        ("../../etc/passwd", "passwd"),
        ("C:\\docs\\a.txt", "a.txt"),
        ("a/..", ""),
        (".", ""),
        (" a.txt ", "a.txt"),
        ("\u202egnp.\u2066exe\u200b", "gnp.exe"),
        ("a\u2028b", "ab"),
        ("\udcff.txt", "\ufffd.txt"),
        ("x" * 300 + ".txt", "x" * 251 + ".txt"),
        ("x" * 300, "x" * 255),
    ],
)
def test_names_are_base_names_without_what_hides(name: str, kept: str) -> None:
    given_ = Attachment(media_type="text/plain", name=name, data=b"x")

    assert read_attachment(given_).name == kept


@pytest.mark.parametrize("bad", ["\n", "\0", "\x1b", "\x7f", "\x9b"])
def test_control_characters_in_names_are_refused(tmp_path: Path, bad: str) -> None:
    with pytest.raises(ConfigError, match="control character"):
        read_attachment(Attachment(media_type="text/plain", name=f"a{bad}b", data=b"x"))
    if bad != "\0":
        (tmp_path / f"a{bad}b").write_text("x")
        with pytest.raises(ConfigError, match="control character"):
            read_attachment(tmp_path / f"a{bad}b")


def test_an_attachment_is_checked_like_everything_else() -> None:
    good = Attachment(media_type="IMAGE/JPG", name="x", data=b"\xff\xd8\xff", digest="made up")
    found = read_attachment(good)
    assert found.media_type == "image/jpeg"
    assert found.digest == hashlib.sha256(b"\xff\xd8\xff").hexdigest()
    assert read_attachment(found) == found
    assert read_attachment(Attachment(media_type="", data=PNG)).media_type == "image/png"
    link = Attachment(media_type="application/pdf", name="n.pdf", url="https://h/x")
    assert read_attachment(link) == link
    wrong: list[tuple[dict[str, Any], str]] = [
        ({}, "either data"),
        ({"data": b"x", "url": "https://h/x"}, "either data"),
        ({"data": "text"}, "must be bytes"),
        ({"url": 7}, "must be str"),
        ({"url": "ftp://h/x"}, "is not http"),
        ({"url": "data:,x"}, "is not http"),
        ({"url": "https://u:p@h/x"}, "user name"),
        ({"data": b"x", "name": 7}, "must be str"),
        ({"data": b""}, "is empty"),
    ]
    for fields, why in wrong:
        with pytest.raises(ConfigError, match=why):
            read_attachment(Attachment(media_type="text/plain", **fields))


@pytest.mark.parametrize(
    ("value", "tokens"),
    [
        (PNG, 1_000),
        (("https://h/a", "image/png"), 1_000),
        (PDF, 3_000),
        (b"%PDF-1.7 objects in streams" + b"\1" * 120_000, 4_500),
        (b"%PDF-1.7 " + b"/Type/Page " * 20_000, 15_000_000),
        (("https://h/a", "application/pdf"), 1_500),
        ((b"one two three", "text/plain"), 3),
        (b"RIFF\x10\0\0\0WAVE" + b"\0" * 49_988, 101),
    ],
)
def test_tokens_are_guessed_by_kind(value: Any, tokens: int) -> None:
    assert tokens_of([read_attachment(value)]) == tokens


def test_a_guess_fits_into_every_database() -> None:
    pages = read_attachment(b"%PDF-1.7 " + b"/Type/Page " * 20_000)

    assert tokens_of([pages] * 1_000) == 1 << 30


@given(st.binary(max_size=200), st.text(max_size=20))
def test_any_bytes_under_any_name_are_told_or_refused(data: bytes, name: str) -> None:
    try:
        found = read_attachment(Attachment(media_type="", name=name, data=data))
    except ConfigError:
        return
    assert found.data == data
    assert media_types.normal(found.media_type) == found.media_type
    assert all(unicodedata.category(one) not in ("Cc", "Cf", "Cs") for one in found.name)
    assert read_attachment(found) == found


@given(st.text(max_size=60))
def test_any_text_is_told_or_refused(text: str) -> None:
    for prefix in ("", "https://", "data:", "https://h/"):
        try:
            found = read_attachment(prefix + text)
        except ConfigError:
            continue
        assert (found.data is None) == (found.url is not None)
