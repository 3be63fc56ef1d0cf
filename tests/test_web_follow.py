"""The page of ``examples/web_follow.py`` in a real browser: reload, restart, and who sees what."""

from __future__ import annotations

import importlib.util
import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest
from browser import browser, free_port, wait_for
from conftest import missing

ROOT = Path(__file__).resolve().parent.parent
EXAMPLE = ROOT / "examples" / "web_follow.py"
TEXT = "return [...document.querySelectorAll('.model_response')].map((e) => e.textContent).join('')"


def story(prompt: str) -> str:
    spec = importlib.util.spec_from_file_location("web_follow", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return str(module.story(prompt))


class Server:
    """The example, in a process of its own."""

    def __init__(self, database: str, pace: float) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._command = [
            sys.executable,
            "-W",
            "error",
            str(EXAMPLE),
            "--demo",
            f"--port={self.port}",
            f"--database={database}",
            f"--pace={pace}",
        ]
        self.start()

    def start(self) -> None:
        self._process = subprocess.Popen(self._command, cwd=ROOT)
        wait_for(self.url)

    def end(self, how: signal.Signals = signal.SIGKILL) -> None:
        self._process.send_signal(how)
        self._process.wait()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    for name in ("starlette", "uvicorn", "websockets"):
        if importlib.util.find_spec(name) is None:
            missing(f"no {name}: pip install contextwindow[web]")
    running = Server(str(tmp_path / "chats.db"), 0.02)
    yield running
    running.end()


@pytest.fixture
def user(server: Server) -> Iterator[httpx2.Client]:
    with a_user(server) as client:
        yield client


@contextmanager
def a_user(server: Server) -> Iterator[httpx2.Client]:
    with httpx2.Client(base_url=server.url, timeout=30.0) as client:
        assert client.get("/").status_code == 200
        yield client


def ask(user: httpx2.Client, text: str, chat: str = "main", key: str = "k") -> httpx2.Response:
    return user.post(f"/chats/{chat}/prompts", json={"text": text, "key": key})


def events(
    user: httpx2.Client, after: str = "", *, most: int = 10_000, header: bool = True
) -> list[tuple[str, str, Any]]:
    """Type, id and data of the events up to the end of the turn, or *most* of them."""
    headers = {"Last-Event-ID": after} if header and after else {}
    params = {} if header else {"after": after}
    out: list[tuple[str, str, Any]] = []
    fields: dict[str, str] = {}
    with user.stream("GET", "/chats/main/events", headers=headers, params=params) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        for line in answer.iter_lines():
            if line:
                name, _, value = line.partition(": ")
                fields[name] = value
            elif "data" in fields:
                out.append((fields["event"], fields.get("id", ""), json.loads(fields["data"])))
                fields = {}
                if out[-1][0] in ("done", "stream_failed") or len(out) == most:
                    return out
    return out


def joined(found: list[tuple[str, str, Any]]) -> str:
    return "".join(data.get("delta", "") for _, _, data in found)


# -- in the browser ------------------------------------------------------------------------


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_the_page_survives_reload_and_restart_in_mid_reply(
    server: Server, tmp_path: Path, how: signal.Signals
) -> None:
    whole = story("hello")
    with browser(tmp_path / "profile") as page:
        page.go(server.url)
        page.until("return document.querySelector('#text') !== null", bool)
        page.write("#text", "hello\n")
        page.until(TEXT, lambda text: len(text) > 60)

        page.reload()
        seen = page.until(TEXT, lambda text: len(text) > 120)
        assert whole.startswith(seen)
        page.until(TEXT, lambda text: len(text) > len(seen))

        server.end(how)
        shown = page.run(TEXT)
        assert whole.startswith(shown)
        assert shown != whole
        page.until("return document.querySelector('#state').textContent", lambda s: "away" in s)
        server.start()
        page.until(TEXT, lambda text: len(text) > len(shown))

        assert page.until(TEXT, lambda text: len(text) >= len(whole)) == whole
        page.until("return document.querySelector('#state').textContent", lambda text: text == "")
        prompts = "return [...document.querySelectorAll('.user')].map((e) => e.textContent)"
        assert page.run(prompts) == ["hello"]
        page.reload()
        assert page.until(TEXT, bool) == whole
        assert page.run(prompts) == ["hello"]


def test_a_prompt_that_is_sent_while_the_server_is_away_arrives(
    server: Server, tmp_path: Path
) -> None:
    with browser(tmp_path / "profile") as page:
        page.go(server.url)
        page.until("return document.querySelector('#text') !== null", bool)
        server.end()
        page.write("#text", "are you there?\n")
        page.until("return document.querySelector('#state').textContent", lambda s: "away" in s)
        server.start()

        whole = story("are you there?")
        assert page.until(TEXT, lambda text: len(text) >= len(whole)) == whole


def test_what_the_model_says_is_text_and_never_html(server: Server, tmp_path: Path) -> None:
    prompt = "<img src=x onerror=document.title='mine'>"
    with browser(tmp_path / "profile") as page:
        page.go(server.url)
        page.until("return document.querySelector('#text') !== null", bool)
        page.write("#text", prompt + "\n")
        whole = story(prompt)
        assert page.until(TEXT, lambda text: len(text) >= len(whole)) == whole
        assert "<b>" in whole
        assert page.run("return document.querySelectorAll('#log b, #log img').length") == 0
        page.reload()
        page.until(TEXT, bool)
        assert page.run("return document.querySelectorAll('#log b, #log img').length") == 0
        assert page.run("return document.title") == "A reply that survives"


# -- over HTTP -----------------------------------------------------------------------------


def test_a_user_sees_his_own_conversations_alone(server: Server, user: httpx2.Client) -> None:
    """Fault 51: Endpoints of the example show a user only his own contexts."""
    ask(user, "mine")
    mine = events(user)
    assert joined(mine) == story("mine")

    with a_user(server) as other:
        assert other.get("/chats/main/history").json() == {"records": [], "after": ""}
        last = mine[-1][1]
        with other.stream("GET", "/chats/main/events", headers={"Last-Event-ID": last}) as answer:
            lines = [line for line in answer.iter_lines() if line]
        assert lines == ["retry: 300", "event: reload", "data: {}"]
    with httpx2.Client(base_url=server.url) as nobody:
        for cookie in ("", "a.b", f"{user.cookies['chat_user'].partition('.')[0]}.00"):
            nobody.cookies.set("chat_user", cookie)
            for path in ("history", "events"):
                assert nobody.get(f"/chats/main/{path}").status_code == 403
            assert ask(nobody, "let me in").status_code == 403


def test_an_encoded_slash_leads_to_nobody_else(server: Server, user: httpx2.Client) -> None:
    """Fault 51: No spelling of an address leads to others."""
    ask(user, "mine", chat="a")
    with a_user(server) as other:
        name = user.cookies["chat_user"].partition(".")[0]
        for chat in (f"..%2F{name}%2Fa", f"{name}%2Fa", f"%2F{name}%2Fa"):
            answer = other.get(f"/chats/{chat}/history")
            assert answer.status_code == 404 or answer.json()["records"] == []


def test_a_prompt_is_taken_once_and_only_as_json(user: httpx2.Client) -> None:
    first, second = ask(user, "once"), ask(user, "once")
    assert first.status_code == second.status_code == 201
    assert first.json() == second.json()
    events(user)
    roles = [one["role"] for one in user.get("/chats/main/history").json()["records"]]
    assert roles == ["user", "model_response"]

    assert user.post("/chats/main/prompts", data={"text": "a", "key": "b"}).status_code == 415
    for sent in ("[]", "{}", '{"text": "", "key": "k2"}', "nonsense", '{"text": "a"}'):
        answer = user.post(
            "/chats/main/prompts", content=sent, headers={"Content-Type": "application/json"}
        )
        assert answer.status_code == 400, sent


def test_every_event_id_leads_on_to_the_rest(user: httpx2.Client) -> None:
    ask(user, "ids")
    live = events(user)
    whole = story("ids")
    assert joined(live) == whole
    assert [kind for kind, _, _ in live if kind != "text_delta"] == ["stream_start", "done"]
    for at in (0, 1, len(live) // 2, len(live) - 2):
        rest = events(user, live[at][1])
        assert joined(live[: at + 1]) + joined(rest) == whole
        assert joined(events(user, live[at][1], header=False)) == joined(rest)


def test_an_open_stream_goes_on_with_the_next_turn(user: httpx2.Client) -> None:
    ask(user, "first", key="1")
    first = events(user)
    ask(user, "second", key="2")

    assert joined(events(user, first[-1][1])) == story("second")


def test_the_websocket_tells_the_same(server: Server, user: httpx2.Client) -> None:
    from websockets.exceptions import WebSocketException
    from websockets.sync.client import connect

    ask(user, "over a socket")
    url = f"ws://127.0.0.1:{server.port}/chats/main/socket"
    cookie: Any = {"Cookie": f"chat_user={user.cookies['chat_user']}"}
    origin: Any = server.url
    with connect(url, additional_headers=cookie, origin=origin) as socket:
        socket.send("")
        chunks = [json.loads(socket.recv()) for _ in range(20)]
    with connect(url, additional_headers=cookie, origin=origin) as socket:
        socket.send(chunks[-1]["id"])
        chunks += [json.loads(text) for text in socket]

    assert "".join(one.get("delta", "") for one in chunks) == story("over a socket")
    assert chunks[0]["type"] == "stream_start"
    assert chunks[-1]["type"] == "done"
    elsewhere: Any = "http://elsewhere.example"
    for headers, place in ((cookie, elsewhere), ({}, origin)):
        with pytest.raises(WebSocketException):
            connect(url, additional_headers=headers, origin=place)
