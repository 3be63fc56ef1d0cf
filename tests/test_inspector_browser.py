"""The inspector in a real browser: hostile text, other sites, growing replies, the keyboard."""

from __future__ import annotations

import json
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browser import Browser, browser
from inspecting import Elsewhere, Running, inspecting, until

from contextwindow import Attachment, ContextWindow, ModelError, Store
from contextwindow.testing import ScriptedModel, ScriptedReply

SEEN = "return window.hit === undefined && document.documentElement.dataset.hit === undefined"
ERRORS = """
  window.errors = [];
  addEventListener("error", (event) => window.errors.push(String(event.message)));
  addEventListener("unhandledrejection", (event) => window.errors.push(String(event.reason)));
"""
ODD = (
    "return [...document.querySelectorAll('script:not([src]), iframe, object, embed, style, base,"
    " form[action^=http], img[src^=http], link[href^=http], [onerror], [onload], [onclick],"
    " [onfocus], [onmouseover], [style], a[href^=javascript], a[href^=data]')]"
    ".map((one) => one.outerHTML.slice(0, 200))"
)


@pytest.fixture
def elsewhere() -> Iterator[Elsewhere]:
    with Elsewhere() as server:
        yield server


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "x.db"


@pytest.fixture
def store(path: Path) -> Iterator[Store]:
    with Store(str(path)) as opened:
        yield opened


@pytest.fixture
def running(store: Store) -> Iterator[Running]:
    with inspecting(store) as found:
        yield found


@pytest.fixture
def page(running: Running, tmp_path: Path) -> Iterator[Browser]:
    """A browser that was let in, and whose last page had no errors."""
    with browser(tmp_path / "profile") as window:
        window.devtools("Page.addScriptToEvaluateOnNewDocument", source=ERRORS)
        window.go(running.invitation())
        assert window.run("return location.search") == ""
        yield window
        window.devtools("Emulation.setScriptExecutionDisabled", value=False)
        assert window.run("return window.errors ?? []") == []


def context_id(store: Store, name: str | None = None) -> str:
    found = store.page_contexts().contexts
    return next(one.context_id for one in found if name in (None, one.name))


def payloads(url: str) -> dict[str, str]:
    """Ways to have a page run or fetch something, by what they try."""
    hit = f"window.hit=1;document.documentElement.dataset.hit=1;fetch(`{url}/hit`);alert(1)"
    return {
        "script": f"<script>{hit}</script>",
        "image": f"<img src={url}/hit onerror='{hit}'>",
        "attribute": f'" autofocus onfocus="{hit}" x="\'><svg onload=\'{hit}\'>',
        "closing": f"</title></textarea></div></details></svg><script src={url}/hit></script>",
        "style": f"</style><style>@import url({url}/hit);*{{background:url({url}/hit)}}</style>",
        "link": f"javascript:{hit} [a](javascript:{hit}) ![x]({url}/hit)",
        "meta": f"<meta http-equiv=refresh content='0;url={url}/hit'><base href={url}/>",
        "frame": f'<iframe srcdoc="<script>parent.hit=1</script>" src={url}/hit></iframe>',
        "cdata": f"]]>--><!--<img src={url}/hit onerror='{hit}'>\\u003cscript\\u003e{{{{7*7}}}}",
    }


def poisoned(store: Store, path: Path, text: str) -> None:
    """A conversation every text of which is *text*."""
    script = ScriptedModel(
        [
            ScriptedReply(
                f"{text} https://links.example/{text}",
                reasoning=text,
                tool_calls=[("look", {text: text})],
            ),
            ScriptedReply(text, fault="eof", fail_at=1),
        ],
        name=text,
        pieces="whole",
    )

    def look(**given: Any) -> str:
        """Look."""
        return text

    window = ContextWindow(store, text, model=script, tools=[], system_prompt=text)
    window.add_prompt(
        text,
        [
            Attachment(media_type="text/plain", data=b"x", name=text),
            Attachment(media_type="image/svg+xml", data=b"<svg onload='alert(1)'/>", name="a.svg"),
            Attachment(media_type="text/html", data=text.encode(), name="b.html"),
        ],
    )
    window.call_model()
    window.add_tool_call(text, {text: [text]}, call_id=text)
    window.add_tool_output(text, text, error=True)
    window.add_prompt(text)
    with pytest.raises(ModelError):
        window.call_model(max_resumes=0)
    fork = window.fork(f"{text} fork")
    with sqlite3.connect(path) as raw:
        values = json.dumps({text: text})
        raw.execute("UPDATE contexts SET metadata = ?", (values,))
        raw.execute("UPDATE turns SET error = ?", (text,))
        raw.execute(
            "UPDATE calls SET error = ?1, finish_reason = ?1, provider = ?1, response_id = ?1,"
            " options = ?2 WHERE id > 1",
            (text, values),
        )
        raw.execute("UPDATE calls SET finish_reason = ?, options = ?", (text, values))
    raw.close()
    assert fork.name.endswith("fork")


def addresses(store: Store, text: str) -> list[str]:
    """Every page of the conversation called *text*."""
    number = context_id(store, text)
    window = ContextWindow(store, text)
    from urllib.parse import quote

    pages = [
        "/",
        f"/?name={quote(text[:9])}",
        f"/search?q={quote(text)}",
        "/search?q=hit",
        "/usage",
    ]
    pages += [f"/c/{number}"]
    pages += [f"/c/{number}/{one}" for one in ("window", "export", "compact", "delete", "records")]
    pages += [f"/c/{number}/records/{one.id}" for one in window.records()]
    pages += [f"/c/{number}/calls/{one.id}" for one in window.calls()]
    pages += [f"/leave?to={quote('https://x.example/' + text)}", f"/leave?to={quote(text)}"]
    pages += [f"/c/{quote(text, safe='')}", f"/{quote(text)}"]
    return pages


@pytest.mark.parametrize("kind", list(payloads("")))
def test_hostile_text_in_every_field_runs_nothing_and_fetches_nothing(
    store: Store, path: Path, page: Browser, running: Running, elsewhere: Elsewhere, kind: str
) -> None:
    """Fault 49: XSS in every field: no script runs, no request leaves, the text is shown."""
    text = payloads(elsewhere.url)[kind]
    poisoned(store, path, text)

    for where in addresses(store, text):
        page.go(running.url + where)
        # An alert would make the next command fail.
        assert page.run(SEEN), where
        assert page.run(ODD) == [], where
    page.go(f"{running.url}/c/{context_id(store, text)}")
    page.run("for (const one of document.querySelectorAll('details')) one.open = true")
    shown = page.run("return document.querySelector('main').textContent")
    assert shown.count(text) >= 6
    assert page.run(SEEN)
    assert elsewhere.asked == []


def test_a_hostile_reply_that_grows_under_ones_eyes_is_text(
    store: Store, page: Browser, running: Running, elsewhere: Elsewhere
) -> None:
    """Fault 49: XSS in what arrives while the page is open."""
    texts = list(payloads(elsewhere.url).values())
    model = ScriptedModel([ScriptedReply(texts, reasoning=texts[:2], delay=0.05)])
    window = ContextWindow(store, "alice", model=model)
    window.add_prompt("go")
    page.go(f"{running.url}/c/{context_id(store)}")
    thread = threading.Thread(target=window.call_model)
    thread.start()

    whole = "".join(texts)
    text = "return [...document.querySelectorAll('.kind-model-response .text')].at(-1)?.textContent"
    page.until(text, lambda shown: shown == whole)
    thread.join()
    page.until("return document.querySelector('.growing') === null", bool)
    assert page.run(text) == whole
    assert page.run(SEEN)
    assert page.run(ODD) == []
    assert elsewhere.asked == []


def test_an_address_in_a_text_is_opened_only_after_it_was_shown(
    store: Store, page: Browser, running: Running, elsewhere: Elsewhere
) -> None:
    """Fault 49: A link tells nobody where it was, and is asked about before it is followed."""
    ContextWindow(store, "alice").add_prompt(f"see {elsewhere.url}/there?a=1, or not")
    page.go(f"{running.url}/c/{context_id(store)}")

    page.click("a.away")
    page.until("return document.querySelector('h1').textContent", lambda h1: "Leave" in h1)
    assert elsewhere.asked == []
    link = page.run(
        "const a = document.querySelector('a.button'); return [a.href, a.rel, a.target]"
    )
    assert link[0] == f"{elsewhere.url}/there?a=1"
    assert {"noopener", "noreferrer"} <= set(link[1].split())
    page.click("a.button")
    until(lambda: elsewhere.asked)
    assert elsewhere.asked[0] == "/there?a=1"
    assert "referer" not in elsewhere.headers[0]


def test_another_site_can_neither_read_nor_do_anything(
    store: Store, page: Browser, running: Running, elsewhere: Elsewhere
) -> None:
    """Fault 49: CSRF and cross-origin reads, from another port, to which cookies are sent."""
    window = ContextWindow(store, "alice")
    record = window.add_prompt("secret")
    here = f"{running.url}/c/{context_id(store)}"
    elsewhere.pages["/"] = f"""<!doctype html><script>
      window.got = [];
      const note = (what) => (value) => got.push(what + ":" + String(value).slice(0, 40));
      fetch("{here}", {{credentials: "include"}}).then(note("read"), note("refused"));
      fetch("{here}", {{credentials: "include", mode: "no-cors"}})
        .then((a) => a.text()).then(note("blind"), note("refused"));
      fetch("{here}/live", {{credentials: "include", method: "POST", mode: "no-cors",
        headers: {{"Content-Type": "application/x-www-form-urlencoded"}},
        body: "record={record.id}&live=&proof=x"}}).then(() => note("posted")(""), note("refused"));
      const source = new EventSource("{here}/events?after=", {{withCredentials: true}});
      source.onmessage = note("event"); source.onerror = () => note("refused")("events");
      const script = document.createElement("script");
      script.src = "{running.url}/static/inspector.js";
      script.onload = () => note("script")("ran"); script.onerror = () => note("refused")("script");
      document.documentElement.append(script);
    </script><iframe src="{here}"></iframe>
    <form method=post action="{here}/live"><input name=record value={record.id}>
      <input name=live value=""><input name=proof value=x></form>"""
    page.go(f"{elsewhere.url}/")
    got = page.until("return window.got", lambda value: len(value) >= 5)

    told = {one.partition(":")[0] for one in got}
    assert not told & {"read", "event", "script"}, got
    assert all(one == "blind:" for one in got if one.startswith("blind")), got
    assert page.run("return frames[0].length") == 0
    page.run("document.querySelector('form').submit()")
    page.until("return document.body.textContent", lambda text: "Another site" in text)
    assert [one.live for one in window.records()] == [True]


def test_forms_work_without_scripts(store: Store, page: Browser, running: Running) -> None:
    window = ContextWindow(store, "alice")
    window.add_prompt("first")
    window.add_prompt("second")
    page.devtools("Emulation.setScriptExecutionDisabled", value=True)
    page.go(f"{running.url}/c/{context_id(store)}")

    page.click("article:nth-of-type(1) .menu summary")
    page.click("article:nth-of-type(1) .box form:nth-of-type(1) button")
    until(lambda: [one.live for one in window.records()] == [False, True])
    page.click("article:nth-of-type(2) .menu summary")
    page.click("article:nth-of-type(2) .box form:nth-of-type(2) button")
    until(lambda: [one.pinned for one in window.records()] == [False, True])
    page.click("article:nth-of-type(1) .menu summary")
    page.write("article:nth-of-type(1) .box input[name=name]", "branch\n")
    until(lambda: len(store.page_contexts().contexts) == 2)
    assert len(ContextWindow(store, "branch").records()) == 1


def test_a_reply_grows_on_the_page_and_is_there_after_a_reload(
    store: Store, page: Browser, running: Running
) -> None:
    words = [f"word{number} 🙂 " for number in range(60)]
    model = ScriptedModel([ScriptedReply(words, reasoning="Let me think.", delay=0.03)])
    window = ContextWindow(store, "alice", model=model)
    page.go(f"{running.url}/")
    window.add_prompt("Tell me.")
    page.go(f"{running.url}/c/{context_id(store)}")
    thread = threading.Thread(target=window.call_model)
    thread.start()

    text = "return document.querySelector('.kind-model-response .text')?.textContent ?? ''"
    first = page.until(text, bool)
    live = "return document.querySelector('.growing .text')?.getAttribute('aria-live')"
    assert page.run(live) == "polite"
    assert page.run("return document.getElementById('status').textContent").startswith("A reply")
    page.until(text, lambda shown: len(shown) > len(first))
    page.reload()
    assert "".join(words).startswith(page.until(text, bool))
    assert page.until(text, lambda shown: shown == "".join(words))
    thread.join()
    page.until("return document.querySelector('.growing, .partial') === null", bool)
    page.until("return document.getElementById('status').textContent", lambda told: "ended" in told)
    page.until(
        "return document.querySelector('.facts').textContent", lambda told: "running" not in told
    )
    assert page.run(text) == "".join(words)
    assert page.run("return document.querySelectorAll('article').length") == 3


def test_a_turn_of_another_window_appears_with_its_prompt(
    store: Store, page: Browser, running: Running
) -> None:
    model = ScriptedModel([ScriptedReply("Fine.")])
    window = ContextWindow(store, "alice", model=model)
    page.go(f"{running.url}/c/{context_id(store)}")
    page.until("return document.readyState", lambda state: state == "complete")
    window.add_prompt("How are you?")
    window.call_model()

    texts = "return [...document.querySelectorAll('article .text')].map((one) => one.textContent)"
    assert page.until(texts, lambda shown: len(shown) == 2) == ["How are you?", "Fine."]


def test_more_than_a_page_of_news_arrives_behind_an_old_partial(
    store: Store, page: Browser, running: Running
) -> None:
    cut = ScriptedModel([ScriptedReply("It was a dark", fault="eof", fail_at=1), "Fine."])
    window = ContextWindow(store, "alice", model=cut)
    window.add_prompt("Tell me.")
    with pytest.raises(ModelError):
        window.call_model(max_resumes=0)
    for number in range(5):
        window.add_prompt(f"prompt {number}")
    page.go(f"{running.url}/c/{context_id(store)}")
    page.until("return document.readyState", lambda state: state == "complete")

    for number in range(120):
        window.add_prompt(f"more {number}")
    window.call_model()

    count = "return document.querySelectorAll('article').length"
    assert page.until(count, lambda shown: shown == 128)
    order = "return [...document.querySelectorAll('article')].map((one) => +one.dataset.record)"
    assert page.run(order) == [one.id for one in window.records()]
    last = "return [...document.querySelectorAll('article .text')].at(-1).textContent"
    assert page.run(last) == "Fine."


def test_what_somebody_has_opened_stays_open_while_a_reply_grows(
    store: Store, page: Browser, running: Running
) -> None:
    words = [f"word{number} " for number in range(40)]
    model = ScriptedModel([ScriptedReply(words, reasoning="Hm.", delay=0.03)])
    window = ContextWindow(store, "alice", model=model)
    window.add_prompt("Tell me.")
    page.go(f"{running.url}/c/{context_id(store)}")
    thread = threading.Thread(target=window.call_model)
    thread.start()
    text = "return document.querySelector('.kind-model-response .text')?.textContent ?? ''"
    page.until(text, bool)
    page.run(
        "const one = document.querySelector('.kind-reasoning details:not(.menu)');"
        "one.open = true; one.querySelector('summary').focus()"
    )

    page.until(text, lambda shown: shown == "".join(words))
    thread.join()
    page.until("return document.querySelector('.growing, .partial') === null", bool)
    assert page.run("return document.querySelector('.kind-reasoning details:not(.menu)').open")
    assert page.run("return document.activeElement.tagName") == "SUMMARY"


def test_a_reply_is_resumed_from_the_page(store: Store, tmp_path: Path) -> None:
    words = [f"word{number} " for number in range(40)]
    cut = ScriptedModel([ScriptedReply(words, fault="eof", fail_at=10)])
    window = ContextWindow(store, "alice", model=cut)
    window.add_prompt("Tell me.")
    with pytest.raises(ModelError):
        window.call_model(max_resumes=0)
    model = ScriptedModel([ScriptedReply(words[10:], delay=0.02)])
    with (
        inspecting(store, model=model) as running,
        browser(tmp_path / "profile") as page,
    ):
        page.go(running.invitation())
        page.go(f"{running.url}/c/{context_id(store)}")
        assert page.run("return document.querySelector('.partial') !== null")
        page.click(".notice button")
        text = "return document.querySelector('.kind-model-response .text')?.textContent ?? ''"
        page.until(text, lambda shown: shown == "".join(words))
        page.until("return document.querySelector('.notice, .partial, .growing') === null", bool)
    assert window.turns()[-1].state == "complete"


def test_a_page_is_used_with_the_keyboard_and_read_aloud(
    store: Store, page: Browser, running: Running
) -> None:
    model = ScriptedModel([ScriptedReply("Fine.", reasoning="Hm.")])
    window = ContextWindow(store, "alice", model=model)
    window.add_prompt("How are you?")
    window.call_model()
    number = context_id(store)
    call = window.calls()[0].id
    for where in (
        "/",
        "/search?q=fine",
        "/usage",
        f"/c/{number}",
        f"/c/{number}/window",
        f"/c/{number}/calls/{call}",
        f"/c/{number}/compact",
        f"/c/{number}/delete",
        f"/c/{number}/export",
        "/nothing",
    ):
        page.go(running.url + where)
        assert page.run("return document.documentElement.lang") == "en"
        for landmark in ("header.banner", "main", "footer", "[role=search]", "h1"):
            count = f"return document.querySelectorAll('{landmark}').length"
            assert page.run(count) == 1, (where, landmark)
        named = """return [...document.querySelectorAll(
            'input:not([type=hidden]), button, a, summary, section, nav, svg, table')]
          .filter((one) => !(one.labels?.length || one.ariaLabel || one.textContent.trim()
            || one.querySelector('img[alt]')))
          .map((one) => one.outerHTML)"""
        assert page.run(named) == [], where
        levels = page.run(
            "return [...document.querySelectorAll('h1, h2, h3')].map((h) => h.tagName)"
        )
        assert levels[0] == "H1", where
        ids = page.run("return [...document.querySelectorAll('[id]')].map((one) => one.id)")
        assert len(ids) == len(set(ids)), where

    page.go(f"{running.url}/c/{number}")
    page.press("\ue004")
    assert page.run("return document.activeElement.textContent") == "Skip to the content"
    assert page.run("return document.activeElement.getBoundingClientRect().left >= 0")
    page.press("\ue007")
    page.until("return location.hash", lambda hash: hash == "#main")
    page.run("document.querySelector('.kind-reasoning details summary').focus()")
    page.press("\ue007")
    assert page.run("return document.querySelector('.kind-reasoning details').open")
    page.run("document.querySelector('.menu summary').focus()")
    page.press("\ue007")
    page.press("\ue00c")
    assert not page.run("return document.querySelector('.menu').open")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_pages_fit_a_narrow_screen_and_can_be_read_in_light_and_dark(
    store: Store, page: Browser, running: Running, scheme: str
) -> None:
    model = ScriptedModel([ScriptedReply("x" * 500 + " fine", reasoning="y" * 300)] * 2)
    window = ContextWindow(store, "n" * 300, model=model)
    window.add_prompt("z" * 400)
    window.call_model()
    window.add_tool_call("t" * 60, {"a": "b" * 300}, "c")
    window.add_tool_output("fine", "c", error=True)
    window.set_system_prompt("Be kind.")
    window.pin(window.add_prompt("see https://x.example").id)
    window.set_live([window.records()[0].id], False)
    number = context_id(store)
    page.devtools(
        "Emulation.setDeviceMetricsOverride",
        width=400,
        height=800,
        deviceScaleFactor=1,
        mobile=False,
    )
    page.devtools(
        "Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}]
    )
    for where in ("/", "/search?q=fine", "/usage", f"/c/{number}", f"/c/{number}/window"):
        page.go(running.url + where)
        assert page.run("return document.documentElement.scrollWidth") <= 400, where
    page.go(f"{running.url}/c/{number}")
    contrast = """
      const light = (text) => {
        const full = text.startsWith('color') ? 1 : 255;
        const [r, g, b] = text.match(/[\\d.]+/g).map((v) => {
          const c = Number(v) / full;
          return c <= .03928 ? c / 12.92 : ((c + .055) / 1.055) ** 2.4;
        });
        return .2126 * r + .7152 * g + .0722 * b;
      };
      const ground = (one) => {
        for (; one; one = one.parentElement) {
          const found = getComputedStyle(one).backgroundColor;
          if (found !== 'rgba(0, 0, 0, 0)') return found;
        }
      };
      return [...document.querySelectorAll('h1, h2, .text, .quiet, .tag, time, a, button, dt, dd')]
        .filter((one) => one.textContent.trim() && !one.classList.contains('skip'))
        .map((one) => {
          const [a, b] = [light(getComputedStyle(one).color), light(ground(one))];
          return [(Math.max(a, b) + .05) / (Math.min(a, b) + .05), one.outerHTML.slice(0, 100)];
        })
        .filter(([ratio]) => ratio < 4.5)"""
    assert page.run(contrast) == []
    dark = page.run("return getComputedStyle(document.body).backgroundColor") == "rgb(20, 22, 26)"
    assert dark == (scheme == "dark")


def test_a_page_that_does_not_begin_at_the_beginning_is_kept_up_to_date(
    store: Store, page: Browser, running: Running
) -> None:
    window = ContextWindow(store, "alice", model=ScriptedModel(["Fine.", "Good."]))
    records = [window.add_prompt(f"prompt {number}") for number in range(60)]
    page.go(f"{running.url}/c/{context_id(store)}?after={records[56].id}")
    page.until("return document.readyState", lambda state: state == "complete")
    page.run("window.kept = true")
    for number in range(2):
        window.add_prompt(f"more {number}")
        window.call_model()
        count = "return document.querySelectorAll('article').length"
        page.until(count, (5 + 2 * number).__eq__)
    assert page.run("return window.kept")
    texts = "return [...document.querySelectorAll('article .text')].map((one) => one.textContent)"
    news = ["more 0", "Fine.", "more 1", "Good."]
    assert page.run(texts) == ["prompt 57", "prompt 58", "prompt 59", *news]


def test_a_page_that_nobody_sees_holds_no_connection(
    store: Store, page: Browser, running: Running
) -> None:
    """A browser has six for all pages of a server: the seventh would never be shown."""
    window = ContextWindow(store, "alice", model=ScriptedModel(["Fine.", "Good."]))
    window.add_prompt("first")
    page.devtools(
        "Page.addScriptToEvaluateOnNewDocument",
        source="""
          window.sources = [];
          window.EventSource = class extends EventSource {
            constructor(...given) { super(...given); window.sources.push(this); }
          };
          window.show = (seen) => {
            Object.defineProperty(document, "hidden", {configurable: true, value: !seen});
            document.dispatchEvent(new Event("visibilitychange"));
          };""",
    )
    page.go(f"{running.url}/c/{context_id(store)}")
    states = "return window.sources.map((one) => one.readyState)"
    page.until(states, lambda found: found == [1])
    page.run("window.show(false)")
    assert page.run(states) == [2]
    window.add_prompt("second")
    window.call_model()
    assert page.run("return document.querySelectorAll('article').length") == 1

    page.run("window.show(true)")
    texts = "return [...document.querySelectorAll('article .text')].map((one) => one.textContent)"
    page.until(texts, lambda found: found == ["first", "second", "Fine."])
    page.until(states, lambda found: found == [2, 1])
    page.until("return document.querySelector('.facts').textContent", lambda told: "Calls1" in told)
    window.call_model()
    page.until(texts, lambda found: found == ["first", "second", "Fine.", "Good."])


def test_what_cannot_be_seen_is_visible_while_it_grows(
    store: Store, page: Browser, running: Running
) -> None:
    words = [f"a\u202eb\x1bc\x7fd\u200e\r\n{number} " for number in range(40)]
    model = ScriptedModel([ScriptedReply(words, delay=0.03)])
    window = ContextWindow(store, "alice", model=model)
    window.add_prompt("Tell me.")
    page.go(f"{running.url}/c/{context_id(store)}")
    thread = threading.Thread(target=window.call_model)
    thread.start()
    text = "return document.querySelector('.kind-model-response .text')?.textContent ?? ''"
    grown = page.until(text, lambda shown: "a\ufffdb␛c␡d\ufffd" in shown)
    thread.join()
    page.until("return document.querySelector('.growing, .partial') === null", bool)
    for shown in (grown, page.run(text)):
        assert not set(shown) & set("\u202e\u200e\x1b\x7f")
    assert page.run(text).startswith("a\\u{202e}b␛c␡d\\u{200e}\n0 ")
