"""Serving the inspector until somebody stops it."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
import webbrowser
from collections.abc import Callable

import uvicorn
from starlette.types import ASGIApp

from contextwindow import ConfigError, Store
from contextwindow.web.app import make_app
from contextwindow.web.guard import Keys, Place, is_loopback


def serve(
    database: str,
    *,
    host: str = "127.0.0.1",
    port: int = 0,
    exposed: bool = False,
    read_only: bool = False,
    model: str | None = None,
    browser: bool = True,
    tell: Callable[[str], object] = print,
    opened: Callable[[Store], object] = lambda store: None,
) -> None:
    """Serve the inspector of *database* until Ctrl-C.

    Args:
        host: what to listen on.
        port: 0 takes one that is free.
        exposed: allow a host that other machines reach.
        model: what goes on with a reply that was cut off, such as ``"openai:gpt-5"``.
        browser: open one.
        tell: is given each line that the user is to read.
        opened: is given the database, which opening may have migrated.

    Raises:
        ConfigError: other machines would reach *host*, or it cannot be listened on.
        StoreError: the database cannot be opened.
    """
    if not is_loopback(host) and not exposed:
        raise ConfigError(
            f"{host!r} is reached by other machines, and the pages show every conversation, "
            "unencrypted; pass --expose if that is meant"
        )
    with Store(database, read_only=read_only) as store, listen(host, port) as listening:
        opened(store)
        # Counting tokens takes 0.3 s the first time; no page is to wait for that.
        store.warm_up(download=False)
        place = Place(host, listening.getsockname()[1])
        base = f"http://{_spoken(host)}:{place.port}/"
        keys = Keys(lambda: tell(f"For another browser: {base}?token={keys.invite()}"))
        ending = asyncio.Event()
        app = make_app(store, keys, place, ending, model=model, read_only=read_only)
        if not place.loopback:
            tell("Warning: other machines reach this server, and nothing is encrypted.")
        url = f"{base}?token={keys.invite()}"
        tell(f"Inspecting {store.location} at {url}")
        tell("The address is good for one browser. Ctrl-C ends.")
        if browser:
            threading.Thread(target=webbrowser.open, args=(url,), daemon=True).start()
        with contextlib.suppress(KeyboardInterrupt):  # as it is meant to be ended
            Server(app, ending).run(sockets=[listening])


class Server(uvicorn.Server):
    """A server that has streams of events end, instead of tearing them off.

    Args:
        ending: is set when the server ends.
    """

    def __init__(self, app: ASGIApp, ending: asyncio.Event) -> None:
        config = uvicorn.Config(
            app,
            log_level="warning",
            access_log=False,
            server_header=False,
            proxy_headers=False,
            ws="none",
            timeout_graceful_shutdown=1,
        )
        super().__init__(config)
        self._ending = ending

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Have streams end, and wait for what is under way."""
        self._ending.set()
        await super().shutdown(sockets)
        # What has not ended in time is torn off, or its socket would outlive the server.
        for connection in list(self.server_state.connections):
            transport = connection.transport
            if transport is not None:
                transport.abort()
        await asyncio.sleep(0)


def listen(host: str, port: int) -> socket.socket:
    """A socket on the first address that *host* has.

    Raises:
        ConfigError: it has none, or the port is taken.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listening = socket.socket(family, kind, protocol)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
    except OSError as error:
        raise ConfigError(f"cannot listen on {host!r}, port {port}: {error.strerror}") from error
    # asyncio sends small answers at once only where it sees that this is TCP, as `protocol` says.
    # The socket is there before the server is: who comes early waits.
    listening.listen(128)
    return listening


def _spoken(host: str) -> str:
    """*host* as an address has it."""
    if host in ("", "0.0.0.0", "::"):  # noqa: S104 - looked for, not listened on
        return socket.gethostname()
    return f"[{host}]" if ":" in host else host
