"""A chat page that survives a reload and a restart of its server, in the middle of a reply.

``pip install contextwindow[web]``, then ``python examples/web_follow.py --demo`` and open
http://127.0.0.1:8000.  Reload the page while it writes; kill the server (``kill -9``) and start it
again: the reply goes on where it was, each character once.

How: the reply runs in a task of the server, not in a request.  What the browser shows comes from
the database alone, by ``follow``: as server-sent events, whose last id the browser sends back by
itself when it reconnects.  The same is there as a WebSocket.  When the server starts it resumes
what it had not finished.

A user is whoever has the cookie, and sees the conversations of that cookie alone.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import hashlib
import hmac
import logging
import os
import secrets
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import HTTPConnection, Request
from starlette.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect

from contextwindow import (
    AsyncContextWindow,
    ConfigError,
    ContextWindowError,
    Model,
    Profile,
    Record,
    RecordType,
    Store,
    WebSocketSink,
    pump_async,
)
from contextwindow.sinks import sse_event
from contextwindow.testing import ScriptedModel, ScriptedReply

COOKIE = "chat_user"
LONGEST_PROMPT = 20_000
STILL_HERE = 15.0
"""Seconds without a chunk after which a comment tells proxies that the connection is alive."""

log = logging.getLogger("web_follow")


class Chats:
    """The conversations of all users, and the replies that are under way.

    Args:
        store: the database.
        model: what answers.
        secret: signs the cookies.
    """

    def __init__(self, store: Store, model: Model, secret: bytes) -> None:
        self.store = store
        self._model = model
        self._secret = secret
        self._replies: set[asyncio.Task[None]] = set()

    def window(self, user: str, chat: str) -> AsyncContextWindow:
        """One conversation of a user; nobody else can name it."""
        return self.open(f"{user}/{chat}")

    def open(self, context: str) -> AsyncContextWindow:
        """The conversation of that name."""
        return AsyncContextWindow(self.store, context, model=self._model)

    # -- users ---------------------------------------------------------------------------

    def new_cookie(self) -> str:
        """A user nobody knows yet, signed."""
        user = secrets.token_urlsafe(16)
        return f"{user}.{self._sign(user)}"

    def user(self, connection: HTTPConnection) -> str | None:
        """Who asks; None when the cookie is missing or was not made here."""
        user, _, signature = connection.cookies.get(COOKIE, "").rpartition(".")
        genuine = hmac.compare_digest(signature.encode(), self._sign(user).encode())
        return user if user and genuine else None

    def _sign(self, user: str) -> str:
        return hmac.new(self._secret, user.encode(), hashlib.sha256).hexdigest()

    # -- replies -------------------------------------------------------------------------

    def reply(self, window: AsyncContextWindow, resume: str | None = None) -> None:
        """Have the model answer, in a task that no request and no browser can end."""
        task = asyncio.create_task(self._reply(window, resume))
        # The loop itself holds tasks only weakly.
        self._replies.add(task)
        task.add_done_callback(self._replies.discard)

    async def _reply(self, window: AsyncContextWindow, resume: str | None) -> None:
        try:
            stream = (
                window.call_model_streaming(on_busy="wait")
                if resume is None
                else window.resume_streaming(resume)
            )
            async with stream:
                async for _ in stream:
                    pass  # it is written down; who wants to see it follows
        except ContextWindowError as error:
            # It is in the database, too: followers are told.
            log.warning("a reply has ended: %s", error)

    async def go_on(self) -> None:
        """Resume the replies that an earlier run of the server has left."""
        for context in await asyncio.to_thread(self.store.list_contexts):
            window = self.open(context.name)
            turns = await window.turns()
            # Here a turn is cancelled by the end of the server alone.
            if turns and turns[-1].state in ("interrupted", "cancelled"):
                self.reply(window, turns[-1].id)

    async def stop(self) -> None:
        """Let go of the replies; what they have is stored."""
        for task in self._replies:
            task.cancel()
        await asyncio.gather(*self._replies, return_exceptions=True)


# -- pages -------------------------------------------------------------------------------------


async def page(request: Request) -> Response:
    """The page; gives whoever has none a cookie."""
    chats: Chats = request.app.state.chats
    nonce = secrets.token_urlsafe(16)
    response = HTMLResponse(
        PAGE.replace("NONCE", nonce),
        headers={
            "Content-Security-Policy": f"default-src 'none'; script-src 'nonce-{nonce}'; "
            f"style-src 'nonce-{nonce}'; connect-src 'self'; base-uri 'none'; "
            "form-action 'none'; frame-ancestors 'none'",
            "Cache-Control": "no-store",
        },
    )
    if chats.user(request) is None:
        response.set_cookie(
            COOKIE,
            chats.new_cookie(),
            max_age=365 * 86400,
            httponly=True,
            samesite="strict",
            secure=request.url.scheme == "https",
        )
    return response


def conversation(connection: HTTPConnection) -> AsyncContextWindow:
    """The conversation that a request is about.

    Raises:
        HTTPException: nobody is signed in.
    """
    chats: Chats = connection.app.state.chats
    user = chats.user(connection)
    if user is None:
        raise HTTPException(403, "load the page first: it gives you a cookie")
    return chats.window(user, connection.path_params["chat"])


async def history(request: Request) -> Response:
    """What was said so far, and the position behind it."""
    records = await conversation(request).records()
    return JSONResponse({"records": [_shown(one) for one in records], "after": _behind(records)})


def _shown(record: Record) -> dict[str, Any]:
    return {
        "id": record.id,
        "role": "user" if record.source is RecordType.PROMPT else record.source.name.lower(),
        "text": record.content if record.source in _TEXTS else record.name or "",
    }


_TEXTS = (RecordType.PROMPT, RecordType.MODEL_RESPONSE)


def _behind(records: Sequence[Record]) -> str:
    return f"{records[-1].id}:{len(records[-1].content)}" if records else ""


async def prompt(request: Request) -> Response:
    """Take a prompt; the answer is followed elsewhere."""
    # A form of another site cannot send this type.
    if request.headers.get("content-type", "").partition(";")[0] != "application/json":
        raise HTTPException(415, "send JSON")
    window = conversation(request)
    try:
        sent = await request.json()
        text, key = str(sent["text"])[:LONGEST_PROMPT], str(sent["key"])[:100]
        record = await window.add_prompt(text, key=key)
        is_last = (await window.records())[-1].id == record.id
    except (ValueError, TypeError, KeyError, ConfigError) as error:
        raise HTTPException(400, f"send {{text, key}}: {error}") from error
    if is_last:  # else the browser has sent it twice
        request.app.state.chats.reply(window)
    return JSONResponse(_shown(record), status_code=201)


async def events(request: Request) -> Response:
    """The conversation as server-sent events, from the last one that the browser has seen."""
    window = conversation(request)
    # A browser that reconnects asks for the same URL again, and says more in the header.
    after = request.headers.get("last-event-id") or request.query_params.get("after", "")
    return StreamingResponse(
        _events(window, after),
        media_type="text/event-stream",
        headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"},
    )


async def _events(window: AsyncContextWindow, after: str) -> AsyncIterator[str]:
    yield "retry: 300\n\n"
    profile = Profile("user_chat")
    while True:
        try:
            # It ends with each turn, and after a while without news: then it is begun again.
            async for chunk in window.follow(after, timeout=STILL_HERE):
                after = chunk.id or after
                if profile.takes(chunk):
                    yield sse_event(chunk, profile)
        except ConfigError:
            # The position is of a conversation that is gone.
            yield "event: reload\ndata: {}\n\n"
            return
        yield ": still here\n\n"


async def socket(websocket: WebSocket) -> None:
    """The same as a WebSocket: the client says after which id, then it is sent chunks."""
    here = websocket.headers.get("host", "")
    if urlsplit(websocket.headers.get("origin", "")).netloc != here:
        await websocket.close(4403)
        return
    try:
        window = conversation(websocket)
    except HTTPException:
        await websocket.close(4403)
        return
    await websocket.accept()
    with contextlib.suppress(WebSocketDisconnect):
        after = await websocket.receive_text()
        try:
            await pump_async(window.follow(after), WebSocketSink(websocket.send_text))
        except ConfigError as error:
            await websocket.close(4400, str(error)[:100])
            return
        await websocket.close()


def make_app(store: Store, model: Model, secret: bytes) -> Starlette:
    """The application; it goes on with unfinished replies when it starts."""

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        app.state.chats = chats = Chats(store, model, secret)
        await chats.go_on()
        yield
        await chats.stop()

    return Starlette(
        routes=[
            Route("/", page),
            Route("/chats/{chat}/history", history),
            Route("/chats/{chat}/prompts", prompt, methods=["POST"]),
            Route("/chats/{chat}/events", events),
            WebSocketRoute("/chats/{chat}/socket", socket),
        ],
        lifespan=lifespan,
    )


# -- the browser -------------------------------------------------------------------------------

PAGE = """<!doctype html>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>A reply that survives</title>
<style nonce="NONCE">
  body { font: 1rem/1.5 system-ui, sans-serif; max-width: 42rem; margin: 2rem auto }
  .user { background: #eef; padding: .4rem .8rem; border-radius: .5rem }
  .user, .model_response { white-space: pre-wrap; overflow-wrap: anywhere; margin: .8rem 0 }
  .note, #state { color: #777; font-size: .9rem }
  form { display: flex; gap: .5rem } input { flex: 1; font: inherit; padding: .4rem }
</style>
<main id="log"></main>
<form id="form"><input id="text" autocomplete="off" autofocus placeholder="Say something">
<button>Send</button></form>
<p id="state"></p>
<script nonce="NONCE">
"use strict";
const chat = new URLSearchParams(location.search).get("chat") || "main";
const at = (what) => "/chats/" + encodeURIComponent(chat) + "/" + what;
const log = document.getElementById("log");
const state = document.getElementById("state");
const texts = new Map();  // by record: its element and the characters it shows

// Everything that came from the model or a user is text, never HTML.
function line(role, text) {
  const element = document.createElement("div");
  element.className = role;
  element.textContent = text;
  log.append(element);
  return element;
}

// An id is "<record>:<number>"; the number modulo 2^32 counts characters, as Python does.
function place(id) {
  const [record, number] = id.split(":");
  return [record, Number(BigInt(number) % 4294967296n)];
}

function show(record, end, delta) {
  if (!texts.has(record)) texts.set(record, [line("model_response", ""), []]);
  const entry = texts.get(record);
  const news = Array.from(delta);
  const begin = end - news.length;
  if (begin !== entry[1].length) entry[1].length = Math.min(begin, entry[1].length);
  entry[1].push(...news);
  entry[0].textContent = entry[1].join("");
}

function cut(record, end) {
  const entry = texts.get(record);
  if (entry && end < entry[1].length) {
    entry[1].length = end;
    entry[0].textContent = entry[1].join("");
  }
}

function follow(after) {
  const source = new EventSource(at("events") + "?after=" + encodeURIComponent(after));
  source.onopen = () => { state.textContent = "" };
  source.onerror = () => { state.textContent = "The server is away; waiting for it." };
  const on = (type, act) => source.addEventListener(type, (event) => {
    act(JSON.parse(event.data), event.lastEventId);
  });
  on("stream_start", () => { state.textContent = "writing" });
  on("resumed", () => { state.textContent = "writing" });
  on("text_delta", (chunk, id) => show(...place(id), chunk.delta));
  on("refusal_delta", (chunk) => line("note", chunk.text));
  on("tool_start", (chunk) => line("note", "uses " + chunk.name));
  on("stream_failed", (chunk, id) => {
    cut(...place(id));
    state.textContent = "The reply was cut off.";
  });
  on("done", (chunk, id) => { cut(...place(id)); state.textContent = "" });
  on("reload", () => location.reload());
}

// Until the server is there: what is asked may be asked again.
async function ask(what, options) {
  for (;;) {
    try {
      return await fetch(at(what), options);
    } catch (error) {
      state.textContent = "The server is away; waiting for it.";
      await new Promise((done) => setTimeout(done, 500));
    }
  }
}

async function begin() {
  const answer = await (await ask("history")).json();
  for (const record of answer.records) {
    if (record.role === "user") line("user", record.text);
    else if (record.role === "model_response")
      show(String(record.id), Array.from(record.text).length, record.text);
  }
  follow(answer.after);
}

document.getElementById("form").addEventListener("submit", async (event) => {
  event.preventDefault();
  const input = document.getElementById("text");
  const text = input.value.trim();
  if (!text) return;
  input.value = "";
  line("user", text);
  const key = crypto.getRandomValues(new Uint32Array(4)).join("-");
  // The key makes one prompt of it, however often it is sent.
  const answer = await ask("prompts", {
    method: "POST",
    headers: {"Content-Type": "application/json"},
    body: JSON.stringify({text, key}),
  });
  if (!answer.ok) state.textContent = await answer.text();
});
begin();
</script>
"""


# -- the demonstration -------------------------------------------------------------------------


def story(prompt: str) -> str:
    """What the demonstration's model says to a prompt, always the same."""
    lines = [
        f"{number}. A reply lives in the database, not in the request that asked for it"
        f" <b>&amp;</b> not in the page that shows it: you said “{prompt[:60]}”. 🙂\n"
        for number in range(1, 9)
    ]
    return "".join(lines)


def demo_model(pace: float) -> ScriptedModel:
    """A model without a network, which can go on with a text that was cut off."""

    def answer(records: Sequence[Record], options: Any) -> ScriptedReply:
        said = [one for one in records if one.source is RecordType.PROMPT and one.id]
        whole = story(said[-1].content if said else "nothing")
        last = [one for one in records if one.id][-1:]
        partial = last[0].content if last and last[0].source is not RecordType.PROMPT else ""
        rest = whole[len(partial) :] if whole.startswith(partial) else whole
        return ScriptedReply(chunks=rest, delay=pace)

    return ScriptedModel([answer], repeat=True)


def read_secret(path: Path) -> bytes:
    """The key for the cookies, made at the first start and kept beside the database."""
    with contextlib.suppress(FileExistsError):
        file = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
        os.write(file, secrets.token_hex(32).encode())
        os.close(file)
    return path.read_bytes()


def main() -> None:
    """Serve until Ctrl-C."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--demo", action="store_true", help="a model without a network")
    parser.add_argument("--model", default="openai:gpt-5-mini", help="without --demo")
    parser.add_argument("--database", default="web_follow.db", help="a path, or a URL")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--pace", type=float, default=0.08, help="seconds a word, with --demo")
    asked = parser.parse_args()
    secret = read_secret(
        Path("web_follow.secret" if "://" in asked.database else f"{asked.database}.secret")
    )
    with Store(asked.database) as store:
        if asked.demo:
            model: Model = demo_model(asked.pace)
        else:
            from contextwindow.models.catalog import model_from_string

            model = model_from_string(asked.model)
        app = make_app(store, model, secret)
        # Streams of events have no end that could be waited for.
        uvicorn.run(app, port=asked.port, log_level="warning", timeout_graceful_shutdown=1)


if __name__ == "__main__":
    main()
