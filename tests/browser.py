"""A real browser without a window: Chromium, driven over chromedriver's HTTP protocol."""

from __future__ import annotations

import base64
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import httpx2
from conftest import missing

_ARGUMENTS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
)


class Browser:
    """One window of the browser."""

    def __init__(self, http: httpx2.Client, session: str) -> None:
        self._http = http
        self._session = session

    def _call(self, method: str, path: str, **body: Any) -> Any:
        url = f"/session/{self._session}/{path}"
        answer = self._http.request(method, url, json=body if method == "POST" else None)
        value = answer.json()["value"]
        assert answer.status_code == 200, value
        return value

    def go(self, url: str) -> None:
        """Load a page."""
        self._call("POST", "url", url=url)

    def reload(self) -> None:
        """Load the page again."""
        self._call("POST", "refresh")

    def run(self, script: str) -> Any:
        """What a script in the page returns."""
        return self._call("POST", "execute/sync", script=script, args=[])

    def write(self, selector: str, text: str) -> None:
        """Type *text* into the element, as a user does."""
        found = self._call("POST", "element", using="css selector", value=selector)
        (element,) = found.values()
        self._call("POST", f"element/{element}/value", text=text)

    def click(self, selector: str) -> None:
        """Click the element, as a user does."""
        found = self._call("POST", "element", using="css selector", value=selector)
        (element,) = found.values()
        self._call("POST", f"element/{element}/click")

    def press(self, *keys: str) -> None:
        """Press keys, one after the other, wherever the focus is."""
        actions = [{"type": kind, "value": key} for key in keys for kind in ("keyDown", "keyUp")]
        self._call("POST", "actions", actions=[{"type": "key", "id": "keys", "actions": actions}])

    def devtools(self, command: str, **params: Any) -> Any:
        """Have Chromium's own protocol do something."""
        return self._call("POST", "goog/cdp/execute", cmd=command, params=params)

    def picture(self) -> bytes:
        """What is to be seen, as PNG."""
        return base64.b64decode(self._call("GET", "screenshot"))

    def until(self, script: str, holds: Callable[[Any], bool], seconds: float = 30.0) -> Any:
        """What a script returns once *holds* says so."""
        give_up = time.monotonic() + seconds
        while True:
            value = self.run(script)
            if holds(value):
                return value
            assert time.monotonic() < give_up, f"{script} still gives {value!r}"
            time.sleep(0.02)


@contextmanager
def browser(profile: Path) -> Iterator[Browser]:
    """A browser with a profile of its own; skips the test where there is none."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    driver = shutil.which("chromedriver")
    if chromium is None or driver is None:
        missing("no browser: install chromium and chromium-driver")
    port = free_port()
    process = subprocess.Popen([str(driver), f"--port={port}"], stdout=subprocess.DEVNULL)
    try:
        with httpx2.Client(base_url=f"http://127.0.0.1:{port}", timeout=60.0) as http:
            wait_for(f"http://127.0.0.1:{port}/status")
            options = {"binary": chromium, "args": [*_ARGUMENTS, f"--user-data-dir={profile}"]}
            wanted = {"alwaysMatch": {"browserName": "chrome", "goog:chromeOptions": options}}
            made = http.post("/session", json={"capabilities": wanted}).json()["value"]
            session = made["sessionId"]
            try:
                yield Browser(http, session)
            finally:
                http.delete(f"/session/{session}")
    finally:
        process.terminate()
        process.wait()


def free_port() -> int:
    """A port that nobody listens on."""
    with closing(socket.socket()) as server:
        server.bind(("127.0.0.1", 0))
        return int(server.getsockname()[1])


def wait_for(url: str, seconds: float = 30.0) -> None:
    """Wait until a server answers."""
    give_up = time.monotonic() + seconds
    while True:
        try:
            httpx2.get(url)
        except httpx2.TransportError:
            assert time.monotonic() < give_up, f"{url} does not answer"
            time.sleep(0.02)
        else:
            return
