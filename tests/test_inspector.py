"""The pages of the inspector over HTTP: what they show, what they do, and what they refuse."""

from __future__ import annotations

import asyncio
import json
import re
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from inspecting import Running, inspecting, post

from contextwindow import Attachment, ContextNotFound, ContextWindow, ModelError, Store, StoreBusy
from contextwindow.testing import ScriptedModel, ScriptedReply
from contextwindow.web.charts import Bar, bars
from contextwindow.web.inspector import Inspector
from contextwindow.web.live import _events as events_of
from contextwindow.web.markup import address, prose, tag
from contextwindow.web.records import _indented

PNG = bytes.fromhex(
    "89504e470d0a1a0a0000000d494844520000000100000001080600000"
    "01f15c4890000000d49444154789c6360606060000000050001a5f645400000000049454e44ae426082"
)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store(str(tmp_path / "x.db")) as opened:
        yield opened


@pytest.fixture
def running(store: Store) -> Iterator[Running]:
    with inspecting(store) as found:
        yield found


@pytest.fixture
def client(running: Running) -> Iterator[httpx2.Client]:
    with running.client() as found:
        yield found


def talked(store: Store, name: str = "alice", *replies: Any) -> ContextWindow:
    script = replies or (ScriptedReply("Fine, thank you.", reasoning="How am I?"),)
    window = ContextWindow(store, name, model=ScriptedModel(script), system_prompt="Be kind.")
    window.add_prompt("How are you?")
    window.call_model()
    return window


def here(window: ContextWindow) -> str:
    return f"/c/{window.get_current_context().id}"


def text_of(answer: httpx2.Response) -> str:
    assert answer.status_code == 200, answer.text
    return re.sub(r"<[^>]*>", " ", answer.text)


# -- lists and searches ----------------------------------------------------------------------


def test_the_list_shows_conversations_the_last_used_first_page_by_page(
    store: Store, client: httpx2.Client
) -> None:
    for number in range(60):
        ContextWindow(store, f"context {number:02}").add_prompt("hello")
    first = client.get("/")
    names = re.findall(r"<bdi>(context \d\d)</bdi>", first.text)
    (behind,) = re.findall(r'href="([^"]*)">Next<', first.text)
    rest = client.get(behind.replace("&amp;", "&"))
    names += re.findall(r"<bdi>(context \d\d)</bdi>", rest.text)

    assert names == [f"context {number:02}" for number in reversed(range(60))]
    assert ">Next<" not in rest.text
    only = client.get("/", params={"name": "TEXT 07"})
    assert re.findall(r"<bdi>(context \d\d)</bdi>", only.text) == ["context 07"]
    assert "No conversation has such a name" in client.get("/?name=nobody").text


def test_the_list_tells_states_and_settles_what_is_dead(
    store: Store, client: httpx2.Client
) -> None:
    model = ScriptedModel([ScriptedReply("It was a dark night", fault="eof", fail_at=2)])
    window = ContextWindow(store, "cut", model=model)
    window.add_prompt("go")
    with pytest.raises(ModelError):
        window.call_model(max_resumes=0)

    assert "interrupted" in client.get("/").text


def test_the_list_tells_what_is_running(store: Store, client: httpx2.Client) -> None:
    window = ContextWindow(store, "busy", model=ScriptedModel(["one two three"]))
    window.add_prompt("go")
    with window.call_model_streaming() as stream:
        for chunk in stream:
            if chunk.delta:
                break
        assert ">running<" in client.get("/").text
        page = client.get(here(window)).text
        assert "being written" in page
        assert 'class="record kind-model-response growing"' in page
        assert "A reply is being written." in page
    assert ">cancelled<" in client.get("/").text


def test_a_search_leads_to_the_record(store: Store, client: httpx2.Client) -> None:
    window = talked(store)
    found = client.get("/search", params={"q": "thank"})
    (where,) = re.findall(r'<h2><a href="([^"#]*)#(?:r\d+)"', found.text)

    assert "<mark>thank</mark>" in found.text
    page = client.get(where.replace("&amp;", "&"))
    assert f'id="r{window.records()[-1].id}"' in page.text
    assert "Nothing was found" in client.get("/search?q=unheard").text
    assert client.get("/search?q=").status_code == 200
    assert client.get("/search", params={"q": '"((" OR *'}).status_code == 200


# -- a conversation --------------------------------------------------------------------------


def test_a_conversation_shows_what_is_live_partial_folded_and_attached(
    store: Store, client: httpx2.Client
) -> None:
    window = talked(store)
    cut = ScriptedModel([ScriptedReply("It was a dark night", fault="eof", fail_at=2)])
    window = ContextWindow(store, "alice", model=cut)
    window.set_live([window.records()[1].id], False)
    window.add_tool_call("look", {"where": "there"}, "c1")
    window.add_tool_output("nothing", "c1", error=True)
    pinned = window.add_prompt(
        "and this?", [Attachment(media_type="image/png", data=PNG, name="dot.png")]
    )
    window.pin(pinned.id)
    with pytest.raises(ModelError):
        window.call_model(max_resumes=0)

    page = client.get(here(window)).text

    articles = dict(re.findall(r'<article class="([^"]*)" id="r(\d+)"', page))
    assert "record kind-prompt unsent" in articles
    assert "record kind-model-response partial" in articles
    for kind, folded in (("tool-call", 1), ("tool-output", 1), ("reasoning", 1)):
        (one,) = re.findall(rf'<article class="record kind-{kind}.*?</article>', page, re.DOTALL)
        assert one.count("<summary><span") == folded
    assert f'<img src="{here(window)}/files/{pinned.id}/0" alt="dot.png"' in page
    assert ">pinned<" in page
    assert ">failed<" in page
    assert "The newest reply was cut off" in page


def test_a_long_conversation_is_read_in_pages_both_ways(
    store: Store, client: httpx2.Client
) -> None:
    window = ContextWindow(store, "long")
    ids = [window.add_prompt(f"prompt {number}").id for number in range(130)]

    def shown(query: str) -> list[int]:
        page = client.get(f"{here(window)}{query}").text
        return [int(one) for one in re.findall(r'data-record="(\d+)"', page)]

    assert shown("") == ids[-50:]
    assert shown(f"?before={ids[80]}") == ids[30:80]
    assert shown(f"?after={ids[29]}") == ids[30:80]
    assert shown(f"?at={ids[60]}") == ids[40:90]
    assert shown(f"?at={ids[0]}") == ids[:30]
    assert shown(f"?at={ids[-1]}") == ids[-21:]
    first = client.get(f"{here(window)}?before={ids[50]}").text
    assert ">Older<" not in first
    assert ">Newest<" in first
    assert 'data-events="' not in first
    newest = client.get(here(window)).text
    assert ">Older<" in newest
    assert ">Newer<" not in newest
    for wrong in ("?before=x", "?at=-1", "?after=99999999", "?before=1e3", "?at=" + "9" * 30):
        assert client.get(f"{here(window)}{wrong}").status_code == 400


def test_a_text_of_a_megabyte_is_shown_in_parts(store: Store, client: httpx2.Client) -> None:
    window = ContextWindow(store, "large")
    record = window.add_prompt("<b>" + "line of text\n" * 80_000)

    page = client.get(here(window))
    assert len(page.text) < 60_000
    assert "All 1,040,003 characters" in page.text
    parts = [client.get(f"{here(window)}/records/{record.id}?part={at}").text for at in range(11)]
    assert "&lt;b&gt;line of text" in parts[0]
    assert ">Next part<" in parts[0]
    assert ">Next part<" not in parts[10]
    assert client.get(f"{here(window)}/records/{record.id}?part=11").status_code == 404


def test_what_is_not_there_is_not_found_and_not_made(store: Store, client: httpx2.Client) -> None:
    window = talked(store)
    assert client.get("/c/nobody").status_code == 404
    assert client.get("/c/alice").status_code == 404
    assert client.get(f"{here(window)}/calls/99").status_code == 400
    assert client.get(f"{here(window)}/records/99").status_code == 400
    assert client.get(f"{here(window)}/files/1/0").status_code == 404
    assert client.get(f"{here(window)}/export/xml").status_code == 404
    assert client.get("/leave?to=javascript:alert(1)").status_code == 400
    assert client.get("/leave?to=//evil.example").status_code == 400
    assert client.get("/leave?to=http://[").status_code == 400
    assert [one.name for one in store.page_contexts().contexts] == ["alice"]


def test_a_damaged_record_is_named_and_the_others_are_shown(
    store: Store, client: httpx2.Client, tmp_path: Path
) -> None:
    window = ContextWindow(store, "damaged")
    ids = [window.add_prompt(f"prompt {number}").id for number in range(3)]
    with sqlite3.connect(tmp_path / "x.db") as raw:
        raw.execute("UPDATE records SET content = 'other words' WHERE id = ?", (ids[1],))
    raw.close()

    page = client.get(here(window))
    assert page.status_code == 500
    assert f"record {ids[1]}" in page.text
    before = client.get(f"{here(window)}?before={ids[1]}").text
    behind = client.get(f"{here(window)}?after={ids[1]}").text
    assert "prompt 0" in before
    assert "prompt 2" in behind


# -- calls and figures -----------------------------------------------------------------------


def test_a_call_shows_what_was_sent_and_what_it_cost(store: Store, client: httpx2.Client) -> None:
    window = talked(store)
    window.set_live([window.records()[1].id], False)
    (call,) = window.calls()

    page = client.get(f"{here(window)}/calls/{call.id}")

    told = text_of(page)
    for name in ("Model", "Time to first token", "Input tokens", "Read from the cache", "Duration"):
        assert name in told
    sent = [int(one) for one in re.findall(r'data-record="(\d+)"', page.text)]
    assert sent == call.manifest
    assert "Options of the request" in told


def test_the_window_is_a_picture_with_its_calls(store: Store, client: httpx2.Client) -> None:
    window = talked(store, "alice", *["word " * 40] * 4)
    for _ in range(3):
        window.add_prompt("more " * 30)
        window.call_model()
    window.compact()

    page = client.get(f"{here(window)}/window").text

    (picture,) = re.findall(r"<svg .*?</svg>", page, re.DOTALL)
    assert picture.count("<a href=") == 4
    assert picture.count("<rect ") == 11
    assert 'class="cut"' in picture
    assert "Records have left the window once" in page
    assert page.count(">Call ") >= 4
    calls = window.calls()
    older = client.get(f"{here(window)}/window?before={calls[1].id}").text
    assert f">Call {calls[0].id}<" in older
    assert f">Call {calls[1].id}<" not in older


def test_usage_is_shown_by_day_and_by_model(store: Store, client: httpx2.Client) -> None:
    assert "No call has ended yet" in client.get("/usage").text
    talked(store)
    days, models = client.get("/usage").text, client.get("/usage?by=model")

    assert days.count("<svg ") == 2
    assert days.count("<table>") == 1
    assert "scripted: scripted" in text_of(models)


def test_bars_of_nothing_and_of_everything_can_be_drawn() -> None:
    for heights in ([], [0.0], [1e-7], [1e12, 0.5], [3.0] * 400):
        made = bars("title", [Bar([("a", one)], "told") for one in heights], limit=5e11)
        assert "NaN" not in made
        assert "inf" not in made


# -- actions ---------------------------------------------------------------------------------


def test_records_are_taken_out_pinned_and_forked(store: Store, client: httpx2.Client) -> None:
    window = talked(store)
    prompt = window.records()[1]

    answer = post(client, f"{here(window)}/live", here(window), record=prompt.id, live="")
    assert answer.status_code == 303
    assert answer.headers["location"] == f"{here(window)}?at={prompt.id}#r{prompt.id}"
    assert not window.records()[1].live
    post(client, f"{here(window)}/live", here(window), record=prompt.id, live="1")
    assert window.records()[1].live
    post(client, f"{here(window)}/pin", here(window), record=prompt.id, pinned="1")
    assert window.records()[1].pinned
    post(client, f"{here(window)}/pin", here(window), record=prompt.id, pinned="")
    assert not window.records()[1].pinned
    made = post(client, f"{here(window)}/fork", here(window), record=prompt.id, name="branch")
    fork = ContextWindow(store, "branch")
    assert made.headers["location"] == here(fork)
    assert len(fork.records()) == 2
    assert "Made from" in client.get(here(fork)).text
    for name in ("alice", ""):
        taken = post(client, f"{here(window)}/fork", here(window), record=prompt.id, name=name)
        assert taken.status_code == 400
    for number in ("", "x", "99999", "9" * 30):
        assert post(client, f"{here(window)}/pin", here(window), record=number).status_code == 400


def test_a_compaction_is_shown_before_it_is_done(store: Store, client: httpx2.Client) -> None:
    window = talked(store, "alice", *["word " * 40] * 4)
    for _ in range(3):
        window.add_prompt("more " * 30)
        window.call_model()
    where = f"{here(window)}/compact"
    live = len(window.live_records())

    page = client.get(where).text
    assert "Records that would leave" in page
    assert len(window.live_records()) == live
    (plan,) = re.findall(r'name="plan" value="([0-9a-f]+)"', page)
    window.pin(window.records()[1].id)
    stale = post(client, where, plan=plan)
    assert "has changed" in stale.text
    assert len(window.live_records()) == live
    (plan,) = re.findall(r'name="plan" value="([0-9a-f]+)"', stale.text)
    assert post(client, where, plan=plan).headers["location"] == f"{here(window)}/window"
    assert len(window.live_records()) < live


def test_a_conversation_is_deleted_only_by_its_name(store: Store, client: httpx2.Client) -> None:
    window = talked(store, "ali\x1bce  b")
    where = f"{here(window)}/delete"

    assert "nothing was deleted" in post(client, where, name="bob").text
    assert "nothing was deleted" in post(client, where, name="").text
    assert len(store.page_contexts().contexts) == 1
    assert post(client, where, name="ali␛ce b").headers["location"] == "/"
    assert store.page_contexts().contexts == []
    assert client.get(where).status_code == 404


def test_a_resume_that_cannot_be_says_why(store: Store, client: httpx2.Client) -> None:
    model = ScriptedModel([ScriptedReply("It was a dark night", fault="eof", fail_at=2)])
    window = ContextWindow(store, "cut", model=model)
    window.add_prompt("go")
    with pytest.raises(ModelError):
        window.call_model(max_resumes=0)
    turn = window.turns()[-1].id
    where = f"{here(window)}/resume"

    for name in ("nonsense", "openai:", "evil:model"):
        answer = post(client, where, here(window), turn=turn, model=name)
        assert answer.status_code == 400
        assert "names no" in answer.text


def test_a_resume_that_fails_is_told_on_the_next_page_once(store: Store) -> None:
    model = ScriptedModel(["never asked"])
    window = talked(store)
    with inspecting(store, model=model) as running, running.client() as client:
        turn = window.turns()[-1].id
        answer = post(client, f"{here(window)}/resume", here(window), turn=turn)
        assert answer.status_code == 303

        assert 'class="problem"' in client.get(here(window)).text
        assert 'class="problem"' not in client.get(here(window)).text
    assert model.requests == []


def test_every_page_is_there_on_every_database(database: str) -> None:
    with Store(database) as store, inspecting(store) as running, running.client() as client:
        window = talked(store)
        where, call = here(window), window.calls()[0].id
        for path in (
            "/",
            "/?name=ALI",
            "/search?q=thank",
            "/usage",
            "/usage?by=model",
            where,
            f"{where}/window",
            f"{where}/window?before={call}",
            f"{where}/calls/{call}",
            f"{where}/records/{window.records()[0].id}",
            f"{where}/export/json",
            f"{where}/compact",
            f"{where}/delete",
        ):
            assert client.get(path).status_code == 200, path
        assert events(client, f"{where}/events", "")[-1][2]["over"]
        assert post(client, f"{where}/delete", name="alice").status_code == 303
        assert store.page_contexts().contexts == []


# -- events ----------------------------------------------------------------------------------


def events(client: httpx2.Client, where: str, after: str, *, header: bool = False) -> list[Any]:
    """Event, id and data, up to the end of a turn."""
    params = {} if header else {"after": after}
    headers = {"Last-Event-ID": after} if header else {}
    out: list[Any] = []
    fields: dict[str, str] = {}
    with client.stream("GET", where, params=params, headers=headers) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        for line in answer.iter_lines():
            if line:
                name, _, value = line.partition(": ")
                fields[name] = value
                continue
            if "data" in fields:
                out.append((fields["event"], fields.get("id", ""), json.loads(fields["data"])))
                if out[-1][2].get("over") or out[-1][0] in ("reload", "gone"):
                    return out
            fields = {}
    return out


def test_every_event_leads_on_to_the_rest(store: Store, client: httpx2.Client) -> None:
    window = talked(
        store, "alice", ScriptedReply("one two three four 🙂 five", reasoning="Hm, so.")
    )
    where = f"{here(window)}/events"
    said = window.records()[-1].id
    whole = "one two three four 🙂 five"

    def text(found: list[Any]) -> str:
        return "".join(
            data["text"] for kind, _, data in found if kind == "text" and data["record"] == said
        )

    found = events(client, where, "")
    assert text(found) == whole
    end = 0
    for kind, _, data in found:
        if kind == "text" and data["record"] == said:
            assert data["start"] == end
            end += len(data["text"])
    for at, (_, number, _) in enumerate(found[:-1]):
        if number:
            rest = events(client, where, number, header=True)
            assert text(found[: at + 1]) + text(rest) == whole
    assert events(client, where, "999999:1")[-1][0] == "reload"
    assert events(client, where, "nonsense")[-1][0] == "reload"


# -- reading only ----------------------------------------------------------------------------


def test_a_database_that_is_read_only_is_shown_and_left_alone(tmp_path: Path) -> None:
    """Fault 49: Read-only mode offers nothing, and refuses every form."""
    with Store(str(tmp_path / "x.db")) as store:
        window = talked(store)
        where = here(window)
        call = window.calls()[0].id
        records = window.records()
    with (
        Store(str(tmp_path / "x.db"), read_only=True) as store,
        inspecting(store, read_only=True) as running,
        running.client() as client,
    ):
        for path in ("/", "/usage", "/search?q=fine", where, f"{where}/window"):
            page = client.get(path)
            assert page.status_code == 200
            assert "<form method" not in page.text
            assert 'name="proof"' not in page.text
            assert ">read only<" in page.text
        assert client.get(f"{where}/calls/{call}").status_code == 200
        assert client.get(f"{where}/export/json").status_code == 200
        for action in ("live", "pin", "fork", "resume", "compact", "delete", "nothing"):
            answer = client.post(
                f"{where}/{action}", data={"record": records[0].id, "name": "alice"}
            )
            assert answer.status_code == 403
        assert events(client, f"{where}/events", "")[-1][2]["over"]
        assert ContextWindow(store, "alice").records() == records


# -- markup ----------------------------------------------------------------------------------


def test_what_is_not_made_here_is_escaped() -> None:
    assert tag("p", "<b>", title='"<') == '<p title="&quot;&lt;">&lt;b&gt;</p>'
    assert tag("p", ["<", tag("b", "&")]) == "<p>&lt;<b>&amp;</b></p>"
    assert tag("p", None, 1234) == "<p>1,234</p>"
    assert tag("input", required=True, value=None, disabled=False) == "<input required>"
    assert tag("p", "a\r\nb\0\x1b[31m\u202e") == "<p>a\nb␀␛[31m\\u{202e}</p>"
    assert address("c", "a/b?#", x="&=") == "/c/a%2Fb%3F%23?x=%26%3D"


def test_addresses_in_a_text_lead_to_the_page_that_asks() -> None:
    shown = prose("see https://a.example/x?y=1&z=<b>, (http://b.example).\njavascript:alert(1)")

    assert re.findall(r'href="([^"]*)"', shown) == [
        "/leave?to=https%3A%2F%2Fa.example%2Fx%3Fy%3D1%26z%3D",
        "/leave?to=http%3A%2F%2Fb.example",
    ]
    assert "&lt;b&gt;" in shown
    assert re.sub(r"<[^>]*>", "", shown).endswith("javascript:alert(1)")
    long = "https://a.example/" + "x" * 3_000
    assert prose(long) == long


def test_the_records_behind_one_are_given_alone(store: Store, client: httpx2.Client) -> None:
    window = talked(store)
    fragment = client.get(f"{here(window)}/records", params={"after": window.records()[0].id})
    assert fragment.headers["x-running"] == "0"
    assert fragment.text.count("<article") == 3
    assert "<html" not in fragment.text


@pytest.mark.parametrize(
    "odd",
    [
        "http://evil.com\u200e@good.com/path",
        "http://evil.com\\@good.com/",
        "http://good.com@evil.com/",
        "http://good.com:x@evil.com/",
        "http://@evil.com/",
        "http://evil.com\t.good.com/",
        "http://evil.com /",
        "http://evil.com\u200b.good.com/",
        "http://evil.com\u202e/",
        "http://evil.com%2f.good.com/",
        "http://evil.com:port/",
        "http://[fe80::1%25x]/",
        "javascript:alert(1)",
        "//evil.com/",
        "http:evil.com",
        "http://" + "x" * 70 + ".com/",
    ],
)
def test_an_address_that_could_be_read_as_another_is_not_left_for(
    client: httpx2.Client, odd: str
) -> None:
    """Fault 49: What the page names as the site is where the link leads."""
    assert client.get("/leave", params={"to": odd}).status_code == 400


def test_the_page_that_asks_links_what_it_shows(client: httpx2.Client) -> None:
    """Fault 49: The link is put together from what was read."""
    for given, site, linked in (
        ("http://x.example/a?b=1&c=%20#d", "x.example", "http://x.example/a?b=1&c=%20#d"),
        ('HTTPS://X.example:81/ä"<', "x.example", "https://x.example:81/%C3%A4%22%3C"),
        ("http://b\u00fccher.example", "xn--bcher-kva.example", "http://xn--bcher-kva.example"),
        ("http://[::1]:8000/", "[::1]", "http://[::1]:8000/"),
    ):
        page = client.get("/leave", params={"to": given}).text
        assert f"<dd>{site}</dd>" in page
        (href,) = re.findall(r'href="([^"]*)" rel="[^"]*" target', page)
        assert href.replace("&amp;", "&") == linked


def test_attributes_that_are_acted_upon_stay_what_they_are() -> None:
    assert tag("input", value="a\u200eb") == '<input value="a\u200eb">'
    assert tag("a", href='/a\u200e"') == '<a href="/a\u200e&quot;"></a>'
    assert tag("a", title="a\u200eb") == '<a title="a\\u{200e}b"></a>'
    shown = prose("http://evil.com\u200e@good.com/path")
    assert re.findall(r'href="([^"]*)"', shown) == ["/leave?to=http%3A%2F%2Fevil.com"]
    assert shown.endswith("</a>\\u{200e}@good.com/path")


def test_following_brings_nothing_back_that_was_deleted(store: Store) -> None:
    """Fault 49: A window is opened by name, and would make it anew."""
    inspector = Inspector(store, asyncio.Event())
    window = talked(store)
    number = window.get_current_context().id

    async def told() -> list[str]:
        stream = events_of(inspector, number, "")
        first = await anext(stream)
        store.delete_context("alice")
        return [first, *[one async for one in stream]]

    assert asyncio.run(told()) == ["retry: 500\n\n", "event: gone\ndata: {}\n\n"]
    assert store.page_contexts().contexts == []


def test_a_context_that_has_taken_the_name_of_another_is_left_alone(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fault 49: What is asked for by its id is not another of the same name."""
    inspector = Inspector(store, asyncio.Event())
    stale = talked(store).get_current_context()
    store.delete_context("alice")
    ContextWindow(store, "alice").add_prompt("another")
    monkeypatch.setattr(store, "context_by_id", lambda context_id: stale)

    with pytest.raises(ContextNotFound), inspector.window(stale.id):
        pytest.fail("it was opened")
    for model in (None, ScriptedModel(["more"])):
        with pytest.raises(ContextNotFound):
            asyncio.run(inspector.open(stale.id, model))
    with pytest.raises(ContextNotFound):
        asyncio.run(inspector.resume(stale.id, "turn", ScriptedModel(["more"])))
    assert [one.content for one in ContextWindow(store, "alice").records()] == ["another"]


@pytest.mark.parametrize("digits", [18, 19, 40, 5_000])
def test_no_number_of_an_address_is_too_long_to_be_refused(
    store: Store, client: httpx2.Client, digits: int
) -> None:
    window = talked(store)
    nines = "9" * digits
    for path in (
        f"?before={nines}",
        f"?after={nines}",
        f"?at={nines}",
        f"/records?after={nines}",
        f"/records/{nines}",
        f"/records/1?part={nines}",
        f"/window?before={nines}",
        f"/calls/{nines}",
        f"/calls/{window.calls()[0].id}?skip={nines}",
        f"/files/{nines}/0",
        f"/files/1/{nines}",
    ):
        answer = client.get(here(window) + path)
        assert answer.status_code in ((200, 400, 404) if digits == 18 else (400, 404)), path
    assert (
        post(client, f"{here(window)}/live", here(window), record=nines, live="").status_code == 400
    )


def test_a_context_that_cannot_be_settled_does_not_hide_the_others(
    store: Store, client: httpx2.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def reader(self: Inspector, context_id: str) -> Any:
        asked.append(context_id)
        raise StoreBusy("others write")

    monkeypatch.setattr(Inspector, "reader", reader)
    window = ContextWindow(store, "busy", model=ScriptedModel(["one two three"]))
    window.add_prompt("go")
    with window.call_model_streaming() as stream:
        next(iter(stream))
        assert ">running<" in client.get("/").text
    assert asked == [window.get_current_context().id]


def test_a_blank_name_is_not_typed_by_typing_nothing(store: Store, client: httpx2.Client) -> None:
    window = ContextWindow(store, "  ")
    for typed in ("", " ", "\t"):
        answer = post(client, f"{here(window)}/delete", name=typed)
        assert "nothing was deleted" in answer.text
    assert post(client, f"{here(window)}/delete", name="  ").status_code == 303
    assert store.page_contexts().contexts == []


def test_json_is_shown_in_lines_and_otherwise_as_it_was_stored() -> None:
    shown = _indented('{"a":1,"a": [1e400, {}, [ ]], "b,[\\"{":"x, \\\\"}')
    assert shown.splitlines() == [
        "{",
        '  "a":1,',
        '  "a": [',
        "    1e400, ",
        "    {}, ",
        "    [ ]",
        "  ], ",
        '  "b,[\\"{":"x, \\\\"',
        "}",
    ]
    for text in ("", "[INFO] a, b", "{", "[1,2", '{\n"a": [1, 2]}', "[" * 9_000 + "]" * 9_000):
        assert _indented(text) == text


@pytest.mark.parametrize("inner", ["[" * 900 + "]" * 900, "[" * 20 + "1,2,3" * 2_400 + "]" * 20])
def test_json_that_is_deep_or_many_costs_no_time(inner: str) -> None:
    text = f'[{inner.replace("31", "3,1")},"{"x" * 1_000}"]'
    began = time.perf_counter()
    shown = _indented(text)
    assert time.perf_counter() - began < 0.1
    assert len(shown) < 6 * len(text)
    assert re.sub(r"\n *", "", shown) == text
    assert "\n" in shown
