"""Who gets into the inspector, what it tells browsers, and what it refuses."""

from __future__ import annotations

import asyncio
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from click.testing import CliRunner
from inspecting import Running, inspecting, post, proof

from contextwindow import ConfigError, ContextWindow, Store
from contextwindow.cli import main
from contextwindow.web.guard import Guard, Keys, Place, is_loopback
from contextwindow.web.serving import Server, serve


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store(str(tmp_path / "x.db")) as opened:
        yield opened


@pytest.fixture
def alice(store: Store) -> ContextWindow:
    window = ContextWindow(store, "alice")
    window.add_prompt("hello")
    return window


@pytest.fixture
def running(store: Store, alice: ContextWindow) -> Iterator[Running]:
    with inspecting(store) as found:
        yield found


def test_nobody_gets_in_without_a_token(running: Running) -> None:
    """Fault 49: Without a cookie there is nothing, under any address."""
    with httpx2.Client(base_url=running.url) as nobody:
        for path in ("/", "/usage", "/search?q=hello", "/static/inspector.js", "/nothing", "/c/x"):
            assert nobody.get(path).status_code == 403, path
        for token in ("", "x", "ü", "x" * 10_000):
            assert nobody.get("/", params={"token": token}).status_code == 403
        assert nobody.post("/", data={}).status_code == 403
        nobody.cookies.set(f"contextwindow_{running.port}", "guessed")
        assert nobody.get("/").status_code == 403


def test_a_token_is_changed_for_a_cookie_and_leaves_the_address(running: Running) -> None:
    """Fault 49: The token is in the address once, and in no page, link or referrer."""
    with httpx2.Client(base_url=running.url) as browser:
        answer = browser.get(f"{running.invitation()}&q=a+b")

        assert answer.status_code == 303
        assert answer.headers["location"] == "/?q=a+b"
        cookie = answer.headers["set-cookie"].lower()
        assert "httponly" in cookie
        assert "samesite=strict" in cookie
        assert "path=/" in cookie
        page = browser.get("/")
        assert page.status_code == 200
        assert "token=" not in page.text


def test_a_token_is_good_for_one_browser(running: Running) -> None:
    """Fault 49: Who finds the address later, in a history or a list of processes, has nothing."""
    invitation = running.invitation()
    assert httpx2.get(invitation).status_code == 303
    assert httpx2.get(invitation).status_code == 403


def test_a_used_token_is_followed_by_an_offer_of_another() -> None:
    told: list[str] = []
    keys = Keys(lambda: told.append(keys.invite()))
    first = keys.redeem(keys.invite())
    (another,) = told
    second = keys.redeem(another)

    assert first is not None
    assert second is not None
    assert keys.knows(first)
    assert keys.knows(second)
    assert first != second
    assert keys.proof(first) != keys.proof(second)


@pytest.mark.parametrize("error", [BrokenPipeError(), ValueError("closed file")])
def test_a_browser_is_let_in_when_nobody_reads_the_offer(error: Exception) -> None:
    """The output of the command may be closed, as that of ``inspect | head -1`` is."""

    def announce() -> None:
        raise error

    keys = Keys(announce)
    session = keys.redeem(keys.invite())
    assert session is not None
    assert keys.knows(session)


@pytest.mark.parametrize("path", ["//evil.example/", "/\\evil.example", "///evil.example/a"])
def test_the_redirect_leads_to_no_other_server(running: Running, path: str) -> None:
    """Fault 49: No open redirect."""
    with socket.create_connection(("127.0.0.1", running.port)) as raw:
        target = f"{path}?token={running.keys.invite()}"
        host = f"127.0.0.1:{running.port}"
        raw.sendall(f"GET {target} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
        answer = b"".join(iter(lambda: raw.recv(65_536), b"")).decode()

    (location,) = (
        line.split(": ", 1)[1] for line in answer.split("\r\n") if line.startswith("location")
    )
    assert location.startswith("/evil.example")
    assert not location.startswith(("//", "/\\"))


@pytest.mark.parametrize(
    "host",
    ["evil.example", "evil.example:{port}", "127.0.0.1:1", "localhost.evil.example:{port}", ""],
)
def test_another_name_for_the_server_is_refused(running: Running, host: str) -> None:
    """Fault 49: A site that makes its own name lead here (DNS rebinding) is not answered."""
    with running.client() as client:
        answer = client.get("/", headers={"Host": host.format(port=running.port)})

        assert answer.status_code in (400, 421)
        assert "alice" not in answer.text
        assert client.get("/", headers={"Host": f"localhost:{running.port}"}).status_code == 200


def test_the_names_that_a_place_answers_to() -> None:
    here = Place("127.0.0.1", 80)
    assert here.answers_to("127.0.0.1")
    assert here.answers_to("LOCALHOST:80")
    assert here.answers_to("[::1]")
    assert not here.answers_to("10.0.0.1:80")
    everywhere = Place("0.0.0.0", 8000)
    assert everywhere.answers_to("10.0.0.1:8000")
    assert everywhere.answers_to("[fe80::1]:8000")
    assert not everywhere.answers_to("evil.example:8000")
    assert Place("10.0.0.7", 8000).answers_to("10.0.0.7:8000")
    assert not Place("10.0.0.7", 8000).answers_to("10.0.0.8:8000")


def test_every_answer_carries_the_headers_that_lock_a_page_in(running: Running) -> None:
    """Fault 49: What a page may load, who may frame or read it, and what it tells others."""
    with running.client() as client:
        answers = [
            client.get("/"),
            client.get("/nothing"),
            client.get("/static/inspector.css"),
            httpx2.get(running.url),
            client.get("/", headers={"Host": "evil.example"}),
        ]
    for answer in answers:
        policy = dict(
            part.strip().split(" ", 1)
            for part in answer.headers["content-security-policy"].split(";")
        )
        assert policy == {
            "default-src": "'none'",
            "script-src": "'self'",
            "style-src": "'self'",
            "img-src": "'self' data:",
            "connect-src": "'self'",
            "form-action": "'self'",
            "frame-ancestors": "'none'",
            "base-uri": "'none'",
        }
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["referrer-policy"] == "no-referrer"
        assert answer.headers["cache-control"] == "no-store"
        assert answer.headers["cross-origin-opener-policy"] == "same-origin"
        assert answer.headers["cross-origin-resource-policy"] == "same-origin"
        assert "server" not in answer.headers or answer.headers["server"] == "uvicorn"


@pytest.mark.parametrize("site", ["cross-site", "same-site"])
def test_what_another_site_asks_for_in_the_background_is_refused(
    running: Running, site: str
) -> None:
    """Fault 49: Cross-origin reads, another port of this machine included."""
    with running.client() as client:
        for mode, dest in (("no-cors", "image"), ("cors", "empty"), ("navigate", "iframe")):
            headers = {"Sec-Fetch-Site": site, "Sec-Fetch-Mode": mode, "Sec-Fetch-Dest": dest}
            assert client.get("/", headers=headers).status_code == 403
        headers = {
            "Sec-Fetch-Site": site,
            "Sec-Fetch-Mode": "navigate",
            "Sec-Fetch-Dest": "document",
        }
        assert client.get("/", headers=headers).status_code == 200
        assert client.post("/", headers=headers).status_code == 403


def test_nothing_but_the_listed_files_is_served(running: Running) -> None:
    """Fault 49: Path traversal."""
    with running.client() as client:
        for path in (
            "/static/../app.py",
            "/static/..%2fapp.py",
            "/static/%2e%2e/app.py",
            "/static/%2e%2e%2f%2e%2e%2f__init__.py",
            "/static/..%5capp.py",
            "/static/",
            "/static/guard.py",
            "/static//etc/passwd",
        ):
            assert client.get(path).status_code == 404, path
        assert client.get("/static/inspector.css").status_code == 200
        assert client.request("PUT", "/").status_code == 405
        assert client.request("OPTIONS", "/").status_code == 405


def test_only_this_machine_is_served_unless_somebody_says_otherwise(store: Store) -> None:
    assert is_loopback("127.0.0.1")
    assert is_loopback("::1")
    assert is_loopback("localhost")
    for host in ("0.0.0.0", "::", "", "10.0.0.1", "example.com"):
        assert not is_loopback(host)
        with pytest.raises(ConfigError, match="--expose"):
            serve(store.location, host=host, browser=False)


FORM = {"Content-Type": "application/x-www-form-urlencoded"}


def test_a_form_is_taken_only_from_a_page_of_this_server_and_this_browser(
    running: Running, alice: ContextWindow
) -> None:
    """Fault 49: CSRF: the Origin, and what only the page knows, are asked for on every form."""
    where = f"/c/{alice.get_current_context().id}"
    record = alice.records()[0].id
    fields = {"record": str(record), "live": ""}
    with running.client() as client, running.client() as other:
        known = proof(client.get(where).text)
        origin = {"Origin": running.url}

        def status(headers: dict[str, str], **more: str) -> int:
            return client.post(
                f"{where}/live", data={**fields, **more}, headers=headers
            ).status_code

        assert status(origin) == 403
        assert status(origin, proof="x") == 403
        assert status(origin, proof=proof(other.get(where).text)) == 403
        assert status({}, proof=known) == 403
        for wrong in (
            "http://evil.example",
            "null",
            running.url.replace("http", "https"),
            f"http://127.0.0.1:{running.port + 1}",
            f"{running.url}.evil.example",
        ):
            assert status({"Origin": wrong}, proof=known) == 403, wrong
        null = {"Origin": "null", "Sec-Fetch-Site": "cross-site"}
        assert status(null, proof=known) == 403
        long = client.post(
            f"{where}/live", content=b"x=" + b"y" * 70_000, headers={**origin, **FORM}
        )
        assert long.status_code == 413
        for body in (b"\xff=1", b"&".join([b"a=1"] * 200)):
            answer = client.post(f"{where}/live", content=body, headers={**origin, **FORM})
            assert answer.status_code == 400
        assert alice.records()[0].live

        assert status(origin, proof=known) == 303
        assert not alice.records()[0].live
        # As a browser does under "no-referrer".
        null = {"Origin": "null", "Sec-Fetch-Site": "same-origin"}
        assert status(null, proof=known, live="1") == 303
        assert alice.records()[0].live


def test_a_form_that_was_cut_off_is_not_obeyed(running: Running, alice: ContextWindow) -> None:
    """Fault 49: Half of a form may say something else than the whole."""
    where = f"/c/{alice.get_current_context().id}"
    record = alice.records()[0]
    with running.client() as client:
        known = proof(client.get(where).text)
        headers = {"Origin": running.url, **FORM}
        for action in ("live", "pin"):
            half = f"proof={known}&record={record.id}".encode()
            answer = client.post(f"{where}/{action}", content=half, headers=headers)
            assert answer.status_code == 400
    assert alice.records() == [record]


def test_the_end_of_a_connection_is_not_the_end_of_a_form() -> None:
    """Fault 49: What was sent up to there is no form."""
    keys, place, passed, sent = Keys(), Place("127.0.0.1", 80), [], []
    session = keys.redeem(keys.invite()) or ""
    fields = f"proof={Keys.proof(session)}&record=1&live=".encode()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        passed.append(scope["state"]["form"])

    async def send(message: Any) -> None:
        sent.append(message)

    def answered(*messages: dict[str, Any]) -> None:
        coming = iter(messages)

        async def receive() -> Any:
            return next(coming)

        scope = {
            "type": "http",
            "method": "POST",
            "path": "/",
            "query_string": b"",
            "headers": [
                (b"host", b"127.0.0.1"),
                (b"origin", b"http://127.0.0.1"),
                (b"cookie", f"{place.cookie}={session}".encode()),
            ],
        }
        asyncio.run(Guard(app, keys, place, read_only=False)(scope, receive, send))

    part = {"type": "http.request", "body": fields, "more_body": True}
    answered(part, {"type": "http.disconnect"})
    assert passed == []
    assert sent[0]["status"] == 400
    answered(part, {"type": "http.request", "body": b"1"})
    assert [one["live"] for one in passed] == ["1"]


@pytest.mark.parametrize("action", ["live", "pin", "fork", "resume"])
def test_an_action_is_no_link(running: Running, alice: ContextWindow, action: str) -> None:
    """Fault 49: What changes something is never done by opening an address."""
    where = f"/c/{alice.get_current_context().id}"
    with running.client() as client:
        assert client.get(f"{where}/{action}?record=1&live=&name=x").status_code == 405
        client.get(f"{where}/delete?name=alice")
        client.get(f"{where}/compact?plan=x")
        assert client.get(where).status_code == 200
        assert post(client, f"{where}/delete", name="alice").status_code == 303


def test_a_server_that_others_reach_keeps_its_locks(store: Store, alice: ContextWindow) -> None:
    with inspecting(store, host="0.0.0.0") as running:
        base = f"http://127.0.0.1:{running.port}"
        with httpx2.Client(base_url=base) as client:
            assert client.get("/").status_code == 403
            client.get(f"/?token={running.keys.invite()}")
            page = client.get("/")
            assert page.status_code == 200
            # Without encryption browsers do not say where a form comes from, but for its Origin.
            assert page.headers["referrer-policy"] == "same-origin"
            answer = client.get("/", headers={"Host": f"evil.example:{running.port}"})
            assert answer.status_code == 421


def test_the_command_serves_says_where_and_ends_without_a_word(store: Store) -> None:
    window = ContextWindow(store, "alice")
    where = f"c/{window.get_current_context().id}/events?after="
    command = [sys.executable, "-m", "contextwindow", "inspect", store.location, "--no-browser"]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        line = process.stdout.readline()
        (url,) = re.findall(r"http://127\.0\.0\.1:\d+/\?token=[\w-]+", line)
        with httpx2.Client(timeout=30.0) as client:
            assert client.get(url).status_code == 303
            base = url.partition("?")[0]
            assert "alice" in client.get(base).text
            process.stdout.readline()
            another = process.stdout.readline()
            assert "another browser" in another
            assert url not in another
            with client.stream("GET", base + where) as events:
                lines = events.iter_lines()
                assert next(lines).startswith("retry")
                process.send_signal(signal.SIGINT)
                assert process.wait(30) == 0
                # A comment may still have been on its way, which keeps the connection open.
                assert not [one for one in lines if one and not one.startswith(":")]
        assert process.stderr.read() == ""


def test_the_command_refuses_what_it_cannot_serve(tmp_path: Path) -> None:
    missing = CliRunner().invoke(main, ["inspect", str(tmp_path / "none.db")])
    assert missing.exit_code == 3
    assert "does not exist" in missing.output
    assert not (tmp_path / "none.db").exists()
    ContextWindow(str(tmp_path / "x.db"), "a").close()
    exposed = CliRunner().invoke(main, ["inspect", str(tmp_path / "x.db"), "--host", "0.0.0.0"])
    assert exposed.exit_code == 1
    assert "--expose" in exposed.output
    nowhere = ["inspect", str(tmp_path / "x.db"), "--host", "256.0.0.1", "--expose"]
    assert "cannot listen" in CliRunner().invoke(main, nowhere).output


def test_the_command_says_that_it_has_migrated(
    go_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Server, "run", lambda *_, **__: None)
    command = ["inspect", str(go_file), "--no-browser"]
    refused = CliRunner().invoke(main, [*command, "--read-only"])
    assert refused.exit_code == 1
    told = CliRunner().invoke(main, command)
    assert told.exit_code == 0
    assert "migrated from the Go library's tables" in told.stderr
    assert "as it was before: " in told.stderr
    assert CliRunner().invoke(main, command).stderr == ""


def test_without_the_extra_one_line_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [one for one in sys.modules if one.startswith("contextwindow.web")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    told = CliRunner().invoke(main, ["inspect", str(tmp_path / "x.db")])

    assert told.exit_code == 1
    assert "pip install 'contextwindow[web]'" in told.output
    assert len(told.output.splitlines()) == 1
