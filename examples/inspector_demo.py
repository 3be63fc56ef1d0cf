"""Conversations to look at with the inspector, and the picture of it in the documents.

``pip install 'contextwindow[web]'``, then::

    python examples/inspector_demo.py demo.db
    contextwindow inspect demo.db

The model is a script: no key and no network are needed.  ``--picture FILE`` has Chromium take a
picture of a page as well.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import shutil
import struct
import subprocess
import tempfile
import threading
from pathlib import Path
from typing import ClassVar
from zlib import compress, crc32

from contextwindow import Attachment, ContextWindow, DropToolOutputs, ModelError, Store, Usage
from contextwindow.testing import ScriptedModel, ScriptedReply
from contextwindow.web.app import make_app
from contextwindow.web.guard import Keys, Place
from contextwindow.web.serving import Server, listen

NAME = "support: parcel 4711"


class Pretended(ScriptedModel):
    """A scripted model that passes for one whose prices and limits are known."""

    provider: ClassVar[str] = "anthropic"


def model(*replies: ScriptedReply) -> Pretended:
    """A model that gives *replies*, and begins anew."""
    return Pretended(replies, name="claude-sonnet-4-5", repeat=True)


def used(sent: int, cached: int, written: int) -> Usage:
    """Tokens of one call."""
    return Usage(sent, written, cache_read_tokens=cached)


def label() -> bytes:
    """The picture of a parcel's label, as PNG."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", crc32(kind + data))

    wide, high = 280, 110
    rows = bytearray()
    for y in range(high):
        rows.append(0)
        for x in range(wide):
            bar = 20 <= x < 260 and 24 <= y < 86 and x * 7919 // 3 % 5 < 2
            edge = x < 3 or y < 3 or x >= wide - 3 or y >= high - 3
            rows.append(40 if bar else 150 if edge else 245)
    head = struct.pack(">IIBBBBB", wide, high, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", head)
        + chunk(b"IDAT", compress(bytes(rows), 9))
        + chunk(b"IEND", b"")
    )


def track_parcel(number: str) -> str:
    """Where a parcel is."""
    stops = ("Bergen, sorted", "Oslo, on its way", "Oslo, at the depot since Tuesday")
    lines = ",\n".join(f'  {{"at": "{stop}", "scan": {at}}}' for at, stop in enumerate(stops, 1))
    return f'{{"parcel": "{number}", "stops": [\n{lines}\n]}}'


def support(store: Store) -> None:
    """A conversation with tools, thoughts, a fork, and a reply that was cut off."""
    script = model(
        ScriptedReply(
            "Let me look that up.",
            reasoning="The customer wants to know where parcel 4711 is. I have a tool for that; "
            "its number is in the message.",
            tool_calls=[("track_parcel", {"number": "4711"})],
            usage=used(412, 0, 74),
        ),
        ScriptedReply(
            "Your parcel has been at the depot in Oslo since Tuesday.\n\n"
            "It should have gone out for delivery on Wednesday. I can ask the depot to send it "
            "today, or have it sent back; details are at https://parcels.example/4711.",
            usage=used(705, 412, 61),
        ),
        ScriptedReply(
            "Done: it goes out with the afternoon tour, and you will get a message an hour before "
            "it arrives. I have noted on it that it may be left with your neighbour at number 12",
            usage=used(861, 705, 48),
            fault="eof",
            fail_at=27,
        ),
    )
    with ContextWindow(
        store, NAME, model=script, tools=[track_parcel], system_prompt="You are kind and brief."
    ) as window:
        first = window.add_prompt("Where is my parcel 4711? It was due on Wednesday.")
        window.pin(first.id)
        window.call_model()
        window.add_prompt(
            "Today, please. If I am not in, number 12 will take it.",
            [Attachment(media_type="image/png", data=label(), name="label.png")],
        )
        with contextlib.suppress(ModelError):  # as it is meant
            window.call_model(max_resumes=0)
        window.fork(f"{NAME} (the other way)", at=first.id)


def research(store: Store) -> None:
    """A long conversation, of which parts have left the window."""
    chapters = [
        ScriptedReply(
            f"Chapter {number}. " + "The tide tables of the northern ports agree. " * (4 + number),
            tool_calls=[("read_table", {"port": f"port {number}"})] if number % 3 else [],
            usage=used(900 * number, 640 * number, 130 + 7 * number),
        )
        for number in range(1, 25)
    ]

    def read_table(port: str) -> str:
        """The tides of a port."""
        return "\n".join(f"{port} {hour:02}:00 {hour * 37 % 211} cm" for hour in range(24))

    with ContextWindow(
        store,
        "research: tides",
        model=model(*chapters),
        tools=[read_table],
        compaction=DropToolOutputs(keep_last=1),
        system_prompt="Read the tables one by one, and report.",
    ) as window:
        for number in range(9):
            window.add_prompt(f"Go on with part {number + 1}.")
            window.call_model()
            if number == 5:
                window.compact()


def make(store: Store) -> None:
    """Fill a database."""
    for name in ("standup bot", "translate: menu", "evaluation 2026-07", "onboarding: Ada"):
        reply = ScriptedReply(f"This was {name}, and it went well.", usage=used(220, 0, 18))
        with ContextWindow(store, name, model=model(reply)) as window:
            window.add_prompt("How did it go?")
            window.call_model()
    research(store)
    support(store)


def picture(store: Store, file: Path, *, size: str, page: str, dark: bool) -> None:
    """Have Chromium take a picture of a page of the inspector.

    Args:
        page: ``/`` and so on; ``{id}`` stands for the id of the conversation with tools.
        size: such as ``"1200,900"``.
    """
    listening = listen("127.0.0.1", 0)
    port = listening.getsockname()[1]
    keys = Keys()
    ending = asyncio.Event()
    server = Server(make_app(store, keys, Place("127.0.0.1", port), ending), ending)
    thread = threading.Thread(target=server.run, args=([listening],))
    thread.start()
    found = store.page_contexts(name_contains=NAME).contexts
    where = page.format(id=next(one.context_id for one in found if one.name == NAME))
    joint = "&" if "?" in where else "?"
    with tempfile.TemporaryDirectory() as profile:
        subprocess.run(
            [
                shutil.which("chromium") or "chromium",
                "--headless",
                "--no-sandbox",
                "--disable-gpu",
                "--disable-dev-shm-usage",
                "--hide-scrollbars",
                f"--blink-settings=preferredColorScheme={0 if dark else 1}",
                f"--user-data-dir={profile}",
                f"--window-size={size}",
                f"--screenshot={file.resolve()}",
                f"http://127.0.0.1:{port}{where}{joint}token={keys.invite()}",
            ],
            check=True,
            capture_output=True,
        )
    server.should_exit = True
    thread.join()


def main() -> None:
    """Make the database, and the picture if one is wanted."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("database", nargs="?", help="a file; without it one in a new folder")
    parser.add_argument("--picture", type=Path, help="a PNG file to write")
    parser.add_argument("--page", default="/c/{id}", help="what it shows")
    parser.add_argument("--size", default="1120,1180", help="of the browser's window")
    parser.add_argument("--dark", action="store_true")
    asked = parser.parse_args()
    database = asked.database or f"{tempfile.mkdtemp()}/demo.db"
    with Store(database) as store:
        if not store.page_contexts(limit=1).contexts:
            make(store)
        if asked.picture is not None:
            picture(store, asked.picture, size=asked.size, page=asked.page, dark=asked.dark)
        print(f"contextwindow inspect {database}")


if __name__ == "__main__":
    main()
