"""Attachments in the forms of OpenAI's two APIs, held against what was recorded."""

from __future__ import annotations

import base64
from typing import Any

import pytest
from decoding import record
from shared_files import Recording, each, needed
from test_attachment_values import PDF, PNG

from contextwindow import Attachment, ContextWindow, OpenAIChatModel, OpenAIResponsesModel
from contextwindow.attachments import read_attachment
from contextwindow.models.base import CallOptions, Model
from contextwindow.records import RecordType
from contextwindow.testing import FakeProvider

WAV = b"RIFF\x10\0\0\0WAVEfmt "
DOCX = "application/vnd.openxmlformats-officedocument.wordprocessingml.document"
LOCAL = {"base_url": "http://127.0.0.1:1/v1"}


def chat(**options: Any) -> OpenAIChatModel:
    return OpenAIChatModel("m", api_key="k", **options)


def responses(**options: Any) -> OpenAIResponsesModel:
    return OpenAIResponsesModel("m", api_key="k", **options)


def content(model: Model, *values: Any, text: str = "look") -> Any:
    found = tuple(read_attachment(one) for one in values)
    prompt = record(RecordType.PROMPT, text, attachments=found)
    body = model.request([prompt], CallOptions()).body
    (message,) = body["messages"] if "messages" in body else body["input"]
    assert message["role"] == "user"
    return message["content"]


def recorded_parts(recording: Recording) -> list[dict[str, Any]]:
    """What the first prompt of a recorded request says, in one list."""
    body = recording.request["body"]
    parts: list[dict[str, Any]] = []
    for message in body.get("messages") or body["input"]:
        if message.get("role") == "assistant":
            break
        if message.get("role") == "user" and isinstance(message["content"], list):
            parts += message["content"]
    return parts


def given(part: dict[str, Any]) -> Any:
    """What a caller would have attached for a recorded *part*, or None for text."""
    match part:
        case {"image_url": {"url": url}} | {"image_url": str(url)}:
            return url
        case {"file": {"file_data": url, "filename": name}} | {"file_data": url, "filename": name}:
            media_type, _, data = url.removeprefix("data:").partition(";base64,")
            return Attachment(media_type=media_type, name=name, data=base64.b64decode(data))
    return None


def is_attached(recording: Recording) -> bool:
    return any(given(part) for part in recorded_parts(recording))


def ours(recording: Recording) -> tuple[list[Any], list[Any]]:
    """The recorded parts, and those that a prompt with the same text and files becomes."""
    # Images may say how closely to look, which goes without saying.
    parts = [{k: v for k, v in part.items() if k != "detail"} for part in recorded_parts(recording)]
    for part in parts:
        if isinstance(part.get("image_url"), dict):
            part["image_url"].pop("detail", None)
    name = recording.name.partition("-")[0]
    model: Model = chat() if name == "openai_chat" else responses()
    values = [given(part) for part in parts]
    text = next(part["text"] for part in parts if "text" in part)
    return parts, content(model, *(one for one in values if one is not None), text=text)


@each("openai_chat-image_in", is_attached)
def test_images_are_sent_to_chat_as_recorded(recording: Recording | None) -> None:
    needed(recording)
    assert recording is not None
    theirs, made = ours(recording)
    assert made == theirs


@each("openai_chat-document_in", is_attached)
def test_documents_are_sent_to_chat_as_recorded(recording: Recording | None) -> None:
    needed(recording)
    assert recording is not None
    theirs, made = ours(recording)
    assert made == theirs


@each("openai_responses-image_in", is_attached)
def test_images_are_sent_to_responses_as_recorded(recording: Recording | None) -> None:
    needed(recording)
    assert recording is not None
    theirs, made = ours(recording)
    assert made == theirs


@each("openai_responses-document_in", is_attached)
def test_documents_are_sent_to_responses_as_recorded(recording: Recording | None) -> None:
    needed(recording)
    assert recording is not None
    theirs, made = ours(recording)
    if any("text/" in str(part.get("file_data", "")) for part in theirs):
        # A text is sent as text, which costs the model no tool; the file holds the same.
        (sent,) = [part["text"] for part in made if part["text"].startswith("File ")]
        (file,) = [part for part in theirs if "file_data" in part]
        data = base64.b64decode(file["file_data"].partition(",")[2]).decode()
        assert sent == f"File {file['filename']}:\n{data}"
    else:
        # The recorded prompt was two messages or one; the parts are the same.
        assert made == [part for part in theirs if "text" not in part or part == theirs[0]]


def test_a_prompt_without_attachments_stays_plain_text() -> None:
    assert content(chat()) == "look"
    assert content(responses()) == "look"


def test_an_attachment_alone_has_no_empty_text_beside_it() -> None:
    url = "https://host/cat.png"
    assert content(chat(), url, text="") == [{"type": "image_url", "image_url": {"url": url}}]
    assert content(responses(), url, text="") == [{"type": "input_image", "image_url": url}]


def test_every_kind_that_chat_takes_has_its_form() -> None:
    named = Attachment(media_type="text/csv", name="a.csv", data="ä,b\n".encode())

    parts = content(chat(), PNG, PDF, WAV, (b"ID3\1", "audio/mpeg"), named, b"bare")

    data = base64.b64encode(PNG).decode()
    assert parts == [
        {"type": "text", "text": "look"},
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}},
        {
            "type": "file",
            "file": {
                "filename": "document.pdf",
                "file_data": f"data:application/pdf;base64,{base64.b64encode(PDF).decode()}",
            },
        },
        {
            "type": "input_audio",
            "input_audio": {"data": base64.b64encode(WAV).decode(), "format": "wav"},
        },
        {
            "type": "input_audio",
            "input_audio": {"data": base64.b64encode(b"ID3\1").decode(), "format": "mp3"},
        },
        {"type": "text", "text": "File a.csv:\nä,b\n"},
        {"type": "text", "text": "File:\nbare"},
    ]


def test_every_kind_that_responses_take_has_its_form() -> None:
    office = Attachment(media_type=DOCX, name="a", data=b"PK\3\4")

    parts = content(responses(), PNG, ("https://h/x", "application/pdf"), office, b"bare")

    data = base64.b64encode(PNG).decode()
    assert parts == [
        {"type": "input_text", "text": "look"},
        {"type": "input_image", "image_url": f"data:image/png;base64,{data}"},
        {"type": "input_file", "file_url": "https://h/x"},
        {
            "type": "input_file",
            "filename": "a.docx",
            "file_data": f"data:{DOCX};base64,{base64.b64encode(bytes((80, 75, 3, 4))).decode()}",
        },
        {"type": "input_text", "text": "File:\nbare"},
    ]


@pytest.mark.parametrize(
    ("model", "value", "problem"),
    [
        (chat(), "https://h/a.pdf", "as bytes, not by URL"),
        (chat(), "https://h/a.txt", "as bytes, not by URL"),
        (chat(), "https://h/a.wav", "as bytes, not by URL"),
        (chat(), ("gs://b/a", "image/png"), "http and https URLs alone"),
        (chat(), (b"PK\3\4", DOCX), "takes images (PNG, JPEG, GIF, WebP), PDF, WAV, MP3 and text"),
        (chat(), (b"\1", "image/tiff"), "no image/tiff"),
        (chat(**LOCAL), PDF, "takes images (PNG, JPEG, GIF, WebP) and text, no application/pdf"),
        (chat(**LOCAL), WAV, "no audio/wav"),
        (responses(), WAV, "PDF, office documents and text, no audio/wav"),
        (responses(), ("gs://b/a", "application/pdf"), "http and https URLs alone"),
        (responses(**LOCAL), PDF, "no application/pdf"),
        (responses(**LOCAL), "https://h/a.txt", "as bytes, not by URL"),
    ],
)
def test_what_a_model_cannot_take_is_said_and_a_note_stands_in_its_place(
    model: Model, value: Any, problem: str
) -> None:
    found = read_attachment(value)

    said = model.attachment_problem(found)

    assert said is not None
    assert problem in said
    note = content(model, value)[1]["text"]
    name = f" {found.name}" if found.name else ""
    assert note == f"[attachment{name} ({found.media_type}) left out: {said}]"


@pytest.mark.parametrize("make", [chat, responses])
def test_servers_that_imitate_openai_take_images_and_text(make: Any) -> None:
    model = make(**LOCAL)
    for value in (PNG, "https://h/a.webp", b"text", (b"# x", "text/markdown")):
        assert model.attachment_problem(read_attachment(value)) is None
        assert "left out" not in str(content(model, value))


@pytest.mark.parametrize("make", [OpenAIChatModel, OpenAIResponsesModel])
def test_what_goes_over_the_wire_is_what_was_attached(make: Any, tmp_path: Any) -> None:
    with FakeProvider("A cat.") as provider:
        model = make("m", api_key="k", base_url=f"{provider.url}/v1")
        with ContextWindow(tmp_path / "x.db", "chat", model=model) as window:
            window.add_prompt("What is it?", [PNG])
            assert window.call_model().text == "A cat."
            window.add_prompt("Sure?")
            assert window.call_model().text == "A cat."

    wanted = f"data:image/png;base64,{base64.b64encode(PNG).decode()}"
    assert [str(request.body).count(wanted) for request in provider.requests] == [1, 1]
