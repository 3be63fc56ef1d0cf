"""Who may come in, and what every answer says to the browser.

An address with a token is good for one browser, once: whoever reads it later, in a list of
processes or a history, has nothing.  From then on a cookie is asked for.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import ipaddress
import secrets
import socket
from collections.abc import Callable, Iterable
from typing import Final
from urllib.parse import parse_qs, parse_qsl, quote, urlencode

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import cookie_parser
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

MOST_BYTES: Final = 64_000
"""What a form may be long."""

_SESSIONS: Final = 32
_POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
)
_HEADERS: Final = {
    "Content-Security-Policy": _POLICY,
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "X-Frame-Options": "DENY",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=(), payment=(), usb=()",
}


class Keys:
    """Tokens that have not been used, and browsers that have used one.

    Args:
        announce: is told when a token was used up, so that a new one can be offered.
    """

    def __init__(self, announce: Callable[[], object] = lambda: None) -> None:
        self._announce = announce
        self._tokens: list[str] = []
        self._sessions: list[str] = []

    def invite(self) -> str:
        """A token for one more browser; those before it are good no longer."""
        self._tokens = [secrets.token_urlsafe(32)]
        return self._tokens[0]

    def redeem(self, token: str) -> str | None:
        """What the browser that brings *token* is known by from now on; None refuses it."""
        if not _is_one_of(token, self._tokens):
            return None
        self._tokens = []
        session = secrets.token_urlsafe(32)
        self._sessions = [*self._sessions[1 - _SESSIONS :], session]
        # Who is let in must not depend on whether anybody still reads what is printed.
        with contextlib.suppress(OSError, ValueError):
            self._announce()
        return session

    def knows(self, session: str) -> bool:
        """Whether a browser was given *session*."""
        return _is_one_of(session, self._sessions)

    @staticmethod
    def proof(session: str) -> str:
        """What each form of that browser has to bring with it."""
        return hmac.new(session.encode(), b"form", hashlib.sha256).hexdigest()


class Place:
    """Where the server is, and which names of it a browser may use.

    A site that makes its own name lead here (DNS rebinding) still sends that name.

    Args:
        host: what it listens on.
    """

    def __init__(self, host: str, port: int) -> None:
        self.port = port
        self.loopback = is_loopback(host)
        self._anything = not self.loopback and _is_wildcard(host)
        self._names = {"localhost", "127.0.0.1", "::1", host.lower()}
        if self._anything:
            self._names.add(socket.gethostname().lower())

    @property
    def cookie(self) -> str:
        """Name of the cookie: browsers do not tell the ports of a host apart."""
        return f"contextwindow_{self.port}"

    def answers_to(self, host: str) -> bool:
        """Whether a ``Host`` header names this server."""
        name, _, port = host.rpartition(":") if not host.endswith("]") else (host, "", "80")
        if not name:
            name, port = port, "80"
        if port != str(self.port):
            return False
        name = name.strip("[]").lower()
        # Nobody can make a number lead elsewhere.
        return name in self._names or (self._anything and _is_number(name))


class Guard:
    """Lets through who has the cookie, and forms that come from these pages.

    A form's fields are in ``scope["state"]["form"]`` behind it.

    Args:
        app: what is guarded.
        read_only: refuse every form.
    """

    def __init__(self, app: ASGIApp, keys: Keys, place: Place, *, read_only: bool) -> None:
        self._app = app
        self._keys = keys
        self._place = place
        self._read_only = read_only
        # Under "no-referrer" a form's Origin is "null", which is told from a stranger's only by
        # what browsers send to trustworthy addresses; plain HTTP elsewhere is not one.
        referrer = "no-referrer" if place.loopback else "same-origin"
        self._headers = {**_HEADERS, "Referrer-Policy": referrer}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, or pass it on."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 4403})
            return

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in self._headers.items():
                    headers.setdefault(name, value)
            await send(message)

        refused = await self._refused(scope, receive)
        await (refused or self._app)(scope, receive, send_guarded)

    async def _refused(self, scope: Scope, receive: Receive) -> Response | None:
        """What is answered instead of the page, or None where there is nothing against it."""
        headers = Headers(scope=scope)
        if not self._place.answers_to(headers.get("host", "")):
            return _no("This server does not answer to that name.", 421)
        if scope["method"] not in ("GET", "HEAD", "POST"):
            return _no("There is no such method.", 405)
        if not _invited(headers, scope["method"]):
            return _no("Another site has asked for this.")
        asked = parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True)
        tokens = [value for name, value in asked if name == "token"]
        if tokens and scope["method"] == "GET":
            return self._welcome(scope["path"], tokens[0], asked)
        session = cookie_parser(headers.get("cookie", "")).get(self._place.cookie, "")
        if not self._keys.knows(session):
            return _no(
                "Open the address that `contextwindow inspect` has printed; each is good for one"
                " browser. If you have come from another site, load this page again."
            )
        state = scope.setdefault("state", {})
        state["proof"] = self._keys.proof(session)
        if scope["method"] != "POST":
            return None
        return await self._refused_form(scope, receive, headers)

    def _welcome(self, path: str, token: str, asked: Iterable[tuple[str, str]]) -> Response:
        """Change a token for a cookie, and leave it out of the address."""
        session = self._keys.redeem(token)
        if session is None:
            return _no("This address was used before; `contextwindow inspect` prints a new one.")
        rest = urlencode([pair for pair in asked if pair[0] != "token"])
        # Two slashes at the beginning would be the name of another server.
        where = "/" + quote(path.lstrip("/\\"))
        answer = RedirectResponse(f"{where}?{rest}" if rest else where, 303)
        answer.set_cookie(self._place.cookie, session, path="/", httponly=True, samesite="strict")
        return answer

    async def _refused_form(
        self, scope: Scope, receive: Receive, headers: Headers
    ) -> Response | None:
        if self._read_only:
            return _no("The database was opened to be read only.")
        if not _own_origin(headers):
            return _no("Another site has sent this form.")
        body = await _body(receive)
        if isinstance(body, Response):
            return body
        try:
            fields = parse_qs(body.decode("utf-8"), keep_blank_values=True, max_num_fields=100)
        except ValueError:
            return _no("That is no form.", 400)
        form = {name: values[0] for name, values in fields.items()}
        if not _same(form.get("proof", ""), scope["state"]["proof"]):
            return _no("The form is not of this page; go back, and load the page again.")
        scope["state"]["form"] = form
        return None


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches a server that listens on *host*."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _is_wildcard(host: str) -> bool:
    return host == "" or (_is_number(host) and ipaddress.ip_address(host).is_unspecified)


def _is_number(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _invited(headers: Headers, method: str) -> bool:
    """Whether a page of ours has asked, or somebody who opens an address in a window."""
    site = headers.get("sec-fetch-site", "none")
    opened = headers.get("sec-fetch-mode") == "navigate"
    whole = headers.get("sec-fetch-dest", "document") == "document"
    return site in ("none", "same-origin") or (method == "GET" and opened and whole)


def _own_origin(headers: Headers) -> bool:
    origin = headers.get("origin", "")
    if origin == "null":
        return headers.get("sec-fetch-site") == "same-origin"
    return _same(origin, f"http://{headers['host']}")


async def _body(receive: Receive) -> bytes | Response:
    """What was sent, or why it is no form."""
    body = b""
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return _no("The form was cut off.", 400)
        body += bytes(message.get("body", b""))
        if len(body) > MOST_BYTES:
            return _no("The form is too long.", 413)
        if not message.get("more_body"):
            return body


def _no(why: str, status: int = 403) -> Response:
    return PlainTextResponse(why + "\n", status)


def _is_one_of(value: str, known: Iterable[str]) -> bool:
    """In a time that does not tell how near *value* comes."""
    return sum(_same(value, one) for one in known) > 0


def _same(one: str, other: str) -> bool:
    return hmac.compare_digest(one.encode("utf-8", "replace"), other.encode())
