"""Attachments from the prompt to the request, through both APIs and on every database."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import sqlite3
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from click.testing import CliRunner
from support import Open, contents, file, problems, read, run, states, usable
from test_attachment_values import PDF, PNG

from contextwindow import (
    AsyncContextWindow,
    Attachment,
    ConfigError,
    ContextWindow,
    InvalidRequest,
    Record,
    RecordCorrupt,
    RecordType,
    Store,
)
from contextwindow.cli import main
from contextwindow.testing import ScriptedModel, ScriptedReply

__all__ = ["file", "run"]

URL = "https://host.invalid/cat.png"


class TextOnly(ScriptedModel):
    """Takes text and nothing else."""

    def attachment_problem(self, attachment: Attachment) -> str | None:
        if attachment.media_type.startswith("text/"):
            return None
        return "it reads text"


def rows(database: str | Store, sql: str) -> list[tuple[Any, ...]]:
    if isinstance(database, str):
        with Store(database) as store:
            return rows(store, sql)
    with database.database.read() as connection:
        return connection.execute(sql).fetchall()


def stored(database: str | Store) -> list[str]:
    """Hashes of the bytes in the database."""
    return [row[0] for row in rows(database, "SELECT digest FROM attachments ORDER BY digest")]


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def kinds(record: Record) -> list[str]:
    return [one.media_type for one in record.attachments]


def test_a_prompt_carries_its_attachments_wherever_it_is_read(
    run: Open, database: str, tmp_path: Path
) -> None:
    (tmp_path / "cat.png").write_bytes(PNG)
    model = ScriptedModel(["A cat.", "Still."])
    window = run(database, "chat", model=model)
    given: list[Any] = [tmp_path / "cat.png", (PDF, "application/pdf"), URL, b"some text"]

    written = window.add_prompt("What is it?", given)
    reply = window.call_model()

    expected = (
        Attachment(media_type="image/png", digest=digest(PNG), name="cat.png", data=PNG),
        Attachment(media_type="application/pdf", digest=digest(PDF), data=PDF),
        Attachment(media_type="image/png", name="cat.png", url=URL),
        Attachment(media_type="text/plain", digest=digest(b"some text"), data=b"some text"),
    )
    assert written.attachments == expected
    assert window.live_records()[0] == written
    assert window.records()[0] == written
    (call,) = window.calls(reply.turn_id)
    assert window.manifest(call.id)[0].attachments == expected
    assert model.requests[0].records[0].attachments == expected
    assert window.set_live([written.id], True)[0].attachments == expected
    assert window.pin(written.id).attachments == expected
    assert all(not one.attachments for one in window.records()[1:])
    window.add_prompt("and now?")
    window.call_model()
    assert model.requests[1].records[0].attachments == expected
    assert problems(database) == []


def test_the_same_bytes_are_stored_once(run: Open, database: str) -> None:
    window = run(database, "one")
    for _ in range(3):
        window.add_prompt("again", [PNG, (PNG, "image/png")])
    window.switch_context("two")
    window.add_prompt("here too", [Attachment(media_type="", name="x.png", data=PNG)])

    assert stored(database) == [digest(PNG)]
    assert rows(database, "SELECT size_bytes, media_type FROM attachments") == [
        (len(PNG), "image/png")
    ]
    assert len(rows(database, "SELECT * FROM record_attachments")) == 7


def test_bytes_go_with_the_last_record_that_names_them(run: Open, database: str) -> None:
    window = run(database, "first")
    window.add_prompt("shared and own", [PNG, PDF, URL])
    window.switch_context("second")
    window.add_prompt("shared", [PNG])

    window.delete_context("first")
    assert stored(database) == [digest(PNG)]
    assert window.live_records()[0].attachments[0].data == PNG
    window.delete_context("second")
    assert stored(database) == []
    assert rows(database, "SELECT * FROM record_attachments") == []
    assert problems(database) == []


def test_bytes_that_are_in_use_cannot_be_deleted(database: str) -> None:
    with Store(database) as store, ContextWindow(store, "chat") as window:
        window.add_prompt("x", [PNG])
        with pytest.raises(Exception, match=r"(?i)foreign key"):
            with store.database.write() as connection:
                connection.execute("DELETE FROM attachments")
        assert window.live_records()[0].attachments[0].data == PNG


@pytest.mark.parametrize("way", ["clone", "fork", "import", "import_json"])
def test_copies_of_a_context_have_its_attachments(run: Open, database: str, way: str) -> None:
    window = run(database, "chat")
    first = window.add_prompt("one", [("naïve".encode(), "text/plain"), PNG, URL])
    window.add_prompt("two", [PNG])
    if way == "clone":
        window.clone("copy")
    elif way == "fork":
        window.fork("copy", at=first.id)
    elif way == "import":
        window.import_context(window.export_context(), "copy")
    else:
        text = window.export_context_json()
        window.delete_context("chat")
        window.import_context(text, "copy")
    window.switch_context("copy")

    copied = window.live_records()
    assert copied[0].attachments == first.attachments
    assert [len(one.attachments) for one in copied] == ([3] if way == "fork" else [3, 1])
    assert copied[0].est_tokens == first.est_tokens
    if way != "import_json":
        window.delete_context("chat")
    assert window.live_records() == copied
    assert problems(database) == []


def test_an_export_holds_the_same_bytes_once(run: Open, file: str) -> None:
    window = run(file, "chat")
    for _ in range(3):
        window.add_prompt("again", [PNG, URL])

    export = json.loads(window.export_context_json())

    assert list(export["attachments"]) == [digest(PNG)]
    assert export["records"][2]["attachments"] == [
        {"media_type": "image/png", "name": "", "digest": digest(PNG)},
        {"media_type": "image/png", "name": "cat.png", "url": URL},
    ]


def spoil(what: str) -> Callable[[dict[str, Any]], Any]:
    """A function that makes an export a hostile one."""
    other = digest(PDF)

    def change(export: dict[str, Any]) -> None:
        prompt, blobs = export["records"][0], export["attachments"]
        one = prompt["attachments"][0]
        match what:
            case "other bytes":
                blobs[one["digest"]] = "AAAA"
            case "no base64":
                blobs[one["digest"]] = "*"
            case "no text":
                blobs[one["digest"]] = 7
            case "missing bytes":
                one["digest"] = other
            case "no digest":
                del one["digest"]
            case "local file":
                one["url"] = "file:///etc/passwd"
            case "password":
                one["url"] = "https://a:b@host/x.png"
            case "control character":
                one["name"] = "a\x1b[2Jb"
            case "media type":
                one["media_type"] = "image/png\r\nX: y"
            case "other type":
                one["media_type"] = "application/pdf"
            case "no object":
                prompt["attachments"] = ["x"]
            case "no list":
                prompt["attachments"] = 7
            case "blobs no object":
                export["attachments"] = ["x"]
            case "no prompt":
                prompt["source"] = "model_response"

    return change


@pytest.mark.parametrize(
    "what",
    [
        "other bytes", "no base64", "no text", "missing bytes", "no digest", "local file",
        "password", "control character", "media type", "other type", "no object", "no list",
        "blobs no object", "no prompt",
    ],
)  # fmt: skip
def test_a_hostile_import_is_refused_whole(run: Open, file: str, what: str) -> None:
    window = run(file, "chat")
    window.add_prompt("x", [PNG])
    export = json.loads(window.export_context_json())
    spoil(what)(export)

    with pytest.raises(ConfigError, match="no whole export"):
        window.import_context(export, "copy")
    assert [one.name for one in window.list_contexts()] == ["chat"]
    assert stored(file) == [digest(PNG)]


def test_names_in_an_import_are_cleaned(run: Open, file: str) -> None:
    window = run(file, "chat")
    window.add_prompt("x", [PNG])
    export = window.export_context()
    export["records"][0]["attachments"][0]["name"] = "../../\u202eetc/gnp.exe"

    window.import_context(export, "copy")
    window.switch_context("copy")

    assert window.live_records()[0].attachments[0].name == "gnp.exe"


def test_an_export_without_attachments_is_still_read(run: Open, file: str) -> None:
    window = run(file, "chat")
    window.add_prompt("x")
    export = window.export_context()
    del export["attachments"], export["records"][0]["attachments"]

    window.import_context(export, "copy")

    assert window.context_stats("copy").total_records == 1


# -- prompts ---------------------------------------------------------------------------------


def test_a_prompt_may_be_an_attachment_alone(run: Open, database: str) -> None:
    window = run(database, "chat")

    assert window.add_prompt("", [PNG]).content == ""
    with pytest.raises(ConfigError, match="prompt is empty"):
        window.add_prompt("")
    with pytest.raises(ConfigError, match="prompt is empty"):
        window.add_prompt("", [])
    assert len(window.records()) == 1


def test_the_same_key_is_one_prompt_with_one_set_of_attachments(
    run: Open, database: str, tmp_path: Path
) -> None:
    picture = tmp_path / "upload.png"
    picture.write_bytes(PNG)
    window = run(database, "chat")
    first = window.add_prompt("look", [picture, b"text"], key="hook-1")
    picture.unlink()  # as a web framework does with an upload

    again = window.add_prompt("look", [picture, b"text"], key="hook-1")
    third = window.add_prompt("changed", [PDF], key="hook-1")

    assert again == first
    assert third == first
    assert len(rows(database, "SELECT * FROM record_attachments")) == 2
    assert len(stored(database)) == 2


def test_nothing_is_stored_when_one_of_several_cannot_be_attached(run: Open, database: str) -> None:
    window = run(database, "chat")

    with pytest.raises(ConfigError, match="neither an existing file nor a URL"):
        window.add_prompt("look", [PNG, "missing.png"])
    with pytest.raises(ConfigError, match="NUL"):
        window.add_prompt("a\0b", [PNG])
    with pytest.raises(ConfigError, match="key"):
        window.add_prompt("look", [PNG], key="")
    assert window.records() == []
    assert stored(database) == []


@pytest.mark.parametrize("alone", [PNG, "cat.png", Path("cat.png"), Attachment(media_type=""), 7])
def test_attachments_are_a_list(run: Open, file: str, alone: Any) -> None:
    with pytest.raises(ConfigError, match="attachments must be a list"):
        run(file, "chat").add_prompt("look", alone)


def test_attachments_may_come_from_a_generator(run: Open, file: str) -> None:
    window = run(file, "chat")

    assert len(window.add_prompt("look", (one for one in [PNG, PDF])).attachments) == 2


def test_the_tokens_of_a_prompt_hold_its_attachments(run: Open, database: str) -> None:
    window = run(database, "chat")
    text = b"one two three four"
    record = window.add_prompt("one", [PNG, PDF, (text, "text/plain")])

    assert record.est_tokens == 1 + 1_000 + 2 * 1_500 + 4
    assert window.live_records()[0].est_tokens == record.est_tokens
    assert window.live_tokens() == record.est_tokens
    assert window.context_stats().live_tokens == record.est_tokens
    window.set_live([record.id], False)
    assert window.live_tokens() == 0
    assert problems(database) == []


def test_the_open_database_is_never_attached(run: Open, tmp_path: Path) -> None:
    path = tmp_path / "bot.db"
    window = run(str(path), "chat")
    window.add_prompt("first")
    (tmp_path / "link.db").symlink_to(path)
    os.link(path, tmp_path / "hard.txt")
    for name in ("bot.db", "bot.db-wal", "bot.db-shm", "link.db", "hard.txt"):
        with pytest.raises(ConfigError, match="is a database that is open here"):
            window.add_prompt("steal", [tmp_path / name])

    other = sqlite3.connect(path, timeout=0)
    other.execute("BEGIN IMMEDIATE")
    other.execute("ROLLBACK")
    other.close()
    window.add_prompt("second")
    assert contents(window.records()) == ["first", "second"]


def test_files_are_read_in_a_thread_of_their_own(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("x")
    seen: list[str] = []

    class Watching(os.PathLike[str]):
        def __fspath__(self) -> str:
            seen.append(threading.current_thread().name)
            return str(tmp_path / "a.txt")

    async def scenario() -> None:
        async with AsyncContextWindow(tmp_path / "x.db", "chat") as window:
            await window.add_prompt("look", [Watching()])

    asyncio.run(scenario())
    assert seen
    assert threading.main_thread().name not in seen
    assert not [name for name in seen if name.startswith("contextwindow-store")]


def test_a_prompt_goes_to_the_context_that_was_current_when_it_was_asked_for(
    tmp_path: Path,
) -> None:
    (tmp_path / "a.txt").write_text("x")
    reading, switched = threading.Event(), threading.Event()

    class Slow(os.PathLike[str]):
        def __fspath__(self) -> str:
            reading.set()
            assert switched.wait(10)
            return str(tmp_path / "a.txt")

    async def scenario() -> tuple[int, int]:
        async with AsyncContextWindow(tmp_path / "x.db", "first") as window:
            asking = asyncio.create_task(window.add_prompt("look", [Slow()]))
            await asyncio.to_thread(reading.wait, 10)
            await window.switch_context("second")
            switched.set()
            await asking
            first, second = (
                await window.context_stats("first"),
                await window.context_stats("second"),
            )
        return first.total_records, second.total_records

    assert asyncio.run(scenario()) == (1, 0)


def test_a_cancelled_prompt_whose_file_is_still_read_is_not_written(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("x")
    reading, go_on = threading.Event(), threading.Event()

    class Slow(os.PathLike[str]):
        def __fspath__(self) -> str:
            reading.set()
            assert go_on.wait(10)
            return str(tmp_path / "a.txt")

    async def scenario() -> list[Record]:
        async with AsyncContextWindow(tmp_path / "x.db", "chat") as window:
            asking = asyncio.create_task(window.add_prompt("look", [Slow()]))
            await asyncio.to_thread(reading.wait, 10)
            asking.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asking
            go_on.set()
            return await window.records()

    assert asyncio.run(scenario()) == []


# -- models that cannot take them -------------------------------------------------------------


def test_what_the_model_cannot_take_is_refused_before_it_is_stored(
    run: Open, database: str
) -> None:
    window = run(database, "chat", model=TextOnly(["never"], name="reader-1"))

    with pytest.raises(ConfigError) as raised:
        window.add_prompt("look", [b"text", Attachment(media_type="", name="cat.png", data=PNG)])

    assert "cat.png" in str(raised.value)
    assert "reader-1" in str(raised.value)
    assert "it reads text" in str(raised.value)
    assert window.records() == []
    assert stored(database) == []
    assert kinds(window.add_prompt("read", [b"text"])) == ["text/plain"]


def test_an_unanswered_prompt_with_what_the_model_cannot_take_is_not_sent(
    run: Open, database: str
) -> None:
    run(database, "chat").add_prompt("look", [PNG])
    model = TextOnly(["next reply", "next reply"])
    window = run(database, "chat", model=model)
    window.add_prompt("please")

    with pytest.raises(InvalidRequest) as raised:
        window.call_model()

    record = window.records()[0]
    assert f"record {record.id}" in str(raised.value)
    assert "it reads text" in str(raised.value)
    assert raised.value.turn_id == window.turns()[0].id
    assert model.requests == []
    assert states(window) == ["failed"]
    assert contents(window.live_records()) == ["look", "please"]
    assert window.live_records()[0].attachments[0].data == PNG
    chunks, error = read(window.call_model_streaming())
    assert isinstance(error, InvalidRequest)
    assert [chunk.type for chunk in chunks] == ["stream_start", "stream_failed"]
    window.set_live([record.id], False)
    usable(window, database)


def test_the_failed_turn_goes_on_with_a_model_that_can(run: Open, database: str) -> None:
    run(database, "chat").add_prompt("look", [PNG])
    with pytest.raises(InvalidRequest):
        run(database, "chat", model=TextOnly(["never"])).call_model()
    model = ScriptedModel(["A cat."])

    assert run(database, "chat", model=model).call_model().text == "A cat."
    assert model.requests[0].records[0].attachments[0].data == PNG


def test_answered_attachments_do_not_stop_a_model_that_cannot_take_them(
    run: Open, database: str
) -> None:
    window = run(database, "chat", model=ScriptedModel(["A cat."]))
    window.add_prompt("look", [PNG])
    window.call_model()
    model = TextOnly(["next reply"])
    other = run(database, "chat", model=model)
    other.add_prompt("and in words?")

    assert other.call_model().text == "next reply"
    # The adapter puts a note in its place; a scripted model is shown everything.
    assert kinds(model.requests[0].records[0]) == ["image/png"]


def test_a_reply_that_was_cut_off_is_regenerated_only_by_a_model_that_sees_the_prompt(
    run: Open, database: str
) -> None:
    cut = ScriptedModel([ScriptedReply("It is a", fault="eof", fail_at=2)])
    window = run(database, "chat", model=cut)
    window.add_prompt("look", [PNG])
    with pytest.raises(Exception, match="resume"):
        window.call_model(max_resumes=0)
    model = TextOnly([" cat.", "new"])
    other = run(database, "chat", model=model)

    with pytest.raises(InvalidRequest):
        other.resume(strategy="regenerate")
    assert model.requests == []
    assert states(other) == ["interrupted"]


# -- damage ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "sql",
    [
        "UPDATE attachments SET data = {bytes}",
        "UPDATE record_attachments SET media_type = 'image/jpeg'",
        "UPDATE record_attachments SET name = 'x'",
        "UPDATE record_attachments SET url = 'https://elsewhere/' WHERE url IS NOT NULL",
        "UPDATE record_attachments SET digest = NULL",
        "DELETE FROM record_attachments WHERE idx = 1",
    ],
)
def test_damage_is_an_error_that_names_the_record(database: str, sql: str) -> None:
    model = ScriptedModel(["never", "fine"])
    with Store(database) as store, ContextWindow(store, "chat", model=model) as window:
        whole = window.add_prompt("first", [b"other"])
        broken = window.add_prompt("second", [PNG, URL])
        sql = sql.replace("{bytes}", "x'00'" if store.dialect == "sqlite" else r"'\x00'")
        joined = " AND " if " WHERE " in sql else " WHERE "
        if "UPDATE attachments" in sql:
            sql += f"{joined}digest = '{digest(PNG)}'"
        else:
            sql += f"{joined}record_id = {broken.id}"
        with store.database.write() as connection:
            connection.execute(sql)

        for look in (window.live_records, window.records, window.call_model):
            with pytest.raises(RecordCorrupt, match=f"record {broken.id} ") as raised:
                look()
            assert raised.value.record_id == broken.id
        assert model.requests == []
        assert window.records(limit=1) == [whole]
        window.set_live([broken.id], False)
        assert window.call_model().text == "never"


def test_the_doctor_names_damaged_attachments_and_mends_bytes_without_a_record(
    database: str,
) -> None:
    with Store(database) as store, ContextWindow(store, "chat") as window:
        whole, broken = window.add_prompt("x", [PDF]), window.add_prompt("y", [PNG])
        assert store.examine().sound
        empty = "x''" if store.dialect == "sqlite" else "''"
        with store.database.write() as connection:
            connection.execute(
                f"UPDATE attachments SET data = {empty} WHERE digest = '{digest(PNG)}'"
            )
            connection.execute(
                f"INSERT INTO attachments VALUES ('{digest(b'z')}', 'text/plain', 0, {empty})"
            )

        found = store.examine(mend=True)

        assert [(one.kind, one.record_id, one.mended) for one in found.problems] == [
            ("record", broken.id, False),
            ("reference", None, True),
        ]
        assert stored(store) == sorted([digest(PNG), digest(PDF)])
        assert len(store.examine().problems) == 1
        window.set_live([broken.id], False)
        assert window.live_records() == [whole]


# -- several at once ---------------------------------------------------------------------------


def test_bytes_that_lose_one_record_while_they_gain_another_stay(database: str) -> None:
    errors: list[BaseException] = []
    with Store(database) as store:
        keeper = ContextWindow(store, "keeper")

        def come_and_go(number: int) -> None:
            try:
                for _ in range(25):
                    with ContextWindow(store, f"guest-{number}") as window:
                        window.add_prompt("x", [PNG, PDF])
                        window.delete_context(f"guest-{number}")
            except BaseException as error:  # told below, in the test's own thread
                errors.append(error)

        threads = [threading.Thread(target=come_and_go, args=(number,)) for number in range(3)]
        for thread in threads:
            thread.start()
        for _ in range(25):
            keeper.add_prompt("mine", [PDF, PNG])
            keeper.switch_context("empty")
            keeper.delete_context("keeper")
            keeper.switch_context("keeper")
        keeper.add_prompt("last", [PNG])
        for thread in threads:
            thread.join()

        assert errors == []
        assert keeper.live_records()[0].attachments[0].data == PNG
        assert stored(store) == [digest(PNG)]
        assert problems(store) == []


# -- older databases, and what people see ------------------------------------------------------


def test_a_database_of_the_go_library_takes_attachments(go_file: Path) -> None:
    with ContextWindow(go_file, "new") as window:
        before = rows(str(go_file), "SELECT count(*) FROM records WHERE attached <> 0")
        window.add_prompt("look", [PNG])
        assert window.live_records()[0].attachments[0].data == PNG
    assert before == [(0,)]


def test_a_database_without_attachments_asks_for_none(
    file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from contextwindow.store import rows as store_rows

    model = ScriptedModel(["fine"])
    with ContextWindow(file, "chat", model=model) as window:
        monkeypatch.delattr(store_rows, "attachments_of")
        window.add_prompt("hello")
        assert window.call_model().text == "fine"
        assert len(window.records()) == 2


def test_the_command_line_shows_what_is_attached(file: str) -> None:
    with ContextWindow(file, "chat") as window:
        picture = Attachment(media_type="image/png", name="cat.png", data=PNG)
        window.add_prompt("look", [picture, URL, PDF])
        window.add_prompt("", [b"x"])

    output = CliRunner().invoke(main, ["show", file, "chat"]).output
    assert f"[attachment: cat.png, image/png, {len(PNG)} bytes]" in output
    assert "[attachment: cat.png, image/png, URL]" in output
    assert f"[attachment: without a name, application/pdf, {len(PDF)} bytes]" in output
    tail = CliRunner().invoke(main, ["tail", file, "chat", "--until-idle", "0.05"]).output
    assert f"[attachment: cat.png, image/png, {len(PNG)} bytes]" in tail
    lines = CliRunner().invoke(main, ["show", file, "chat", "--json"]).output.splitlines()
    assert json.loads(lines[0])["attachments"][0] == {
        "name": "cat.png",
        "media_type": "image/png",
        "size": len(PNG),
        "digest": digest(PNG),
        "url": None,
    }
    (row,) = rows(file, "SELECT text FROM transcript WHERE seq = 1")
    assert row == ("look",)


def test_attachments_are_kept_by_hash_in_a_form_that_any_tool_reads(database: str) -> None:
    with ContextWindow(database, "chat") as window:
        window.add_prompt("look", [PNG])
    url = sa.make_url(database) if "://" in database else sa.URL.create("sqlite", database=database)
    engine = sa.create_engine(url)
    with engine.connect() as connection:
        (data,) = connection.exec_driver_sql("SELECT data FROM attachments").one()
    engine.dispose()

    assert bytes(data) == PNG
    assert window.current_context == "chat"


def test_the_repr_of_a_record_shows_no_bytes(run: Open, file: str) -> None:
    record = run(file, "chat").add_prompt("look", [PNG])

    assert "IHDR" not in repr(record)
    assert record.source is RecordType.PROMPT
