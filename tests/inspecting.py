"""An inspector that listens on a port, and who has been let in."""

from __future__ import annotations

import asyncio
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from typing import Any

import httpx2
from conftest import missing

from contextwindow import Model, Store

PROOF = re.compile(r'name="proof" value="([0-9a-f]+)"')


class Running:
    """An inspector of a store.

    Attributes:
        url: without a slash at its end.
        keys: make tokens.
    """

    def __init__(self, store: Store, host: str, **options: Any) -> None:
        from contextwindow.web.app import make_app
        from contextwindow.web.guard import Keys, Place
        from contextwindow.web.serving import Server, listen

        self._listening = listen(host, 0)
        self.port = int(self._listening.getsockname()[1])
        self.url = f"http://{host}:{self.port}"
        self.keys = Keys()
        ending = asyncio.Event()
        app = make_app(store, self.keys, Place(host, self.port), ending, **options)
        self._server = Server(app, ending)
        self._thread = threading.Thread(target=self._server.run, args=([self._listening],))
        self._thread.start()

    def invitation(self) -> str:
        """An address that lets one browser in."""
        return f"{self.url}/?token={self.keys.invite()}"

    @contextmanager
    def client(self) -> Iterator[httpx2.Client]:
        """A browser that was let in."""
        with httpx2.Client(base_url=self.url, timeout=30.0) as client:
            assert client.get(self.invitation()).status_code == 303
            yield client

    def stop(self) -> None:
        """End it, and wait until it has."""
        self._server.should_exit = True
        self._thread.join()
        self._listening.close()


@contextmanager
def inspecting(
    store: Store,
    *,
    host: str = "127.0.0.1",
    read_only: bool = False,
    model: Model | str | None = None,
) -> Iterator[Running]:
    """An inspector of *store*, in a thread."""
    for name in ("starlette", "uvicorn"):
        if find_spec(name) is None:
            missing(f"no {name}: pip install contextwindow[web]")
    running = Running(store, host, read_only=read_only, model=model)
    try:
        yield running
    finally:
        running.stop()


def proof(page: str) -> str:
    """What the forms of a page bring with them."""
    found = PROOF.search(page)
    assert found is not None, "the page has no form"
    return found[1]


def post(
    client: httpx2.Client, path: str, page: str | None = None, **fields: Any
) -> httpx2.Response:
    """Send a form of the page at *page* (None: the same address), as a browser does."""
    shown = client.get(path if page is None else page)
    assert shown.status_code == 200, shown.text
    origin = str(client.base_url).rstrip("/")
    return client.post(
        path, data={"proof": proof(shown.text), **fields}, headers={"Origin": origin}
    )


class Elsewhere:
    """Another server.

    Attributes:
        pages: what it has, by path.
        asked: the paths that it was asked for beside these.
        headers: what came with each of them.
    """

    def __init__(self) -> None:
        asked: list[str] = []
        headers: list[dict[str, str]] = []
        pages: dict[str, str] = {}

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                body = pages.get(self.path, "").encode()
                if self.path not in pages and self.path != "/favicon.ico":
                    asked.append(self.path)
                    headers.append({name.lower(): value for name, value in self.headers.items()})
                self.send_response(200)
                self.send_header("Content-Type", "text/html")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            do_POST = do_GET

            def log_message(self, format: str, *args: Any) -> None:
                """Say nothing."""

        self.asked, self.headers, self.pages = asked, headers, pages
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever)

    def __enter__(self) -> Elsewhere:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


def until(holds: Any, seconds: float = 20.0) -> None:
    """Wait until a function gives something true."""
    give_up = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < give_up, "it has not come to pass"
        time.sleep(0.01)
