"""Finding records by their words: what is found, in which order, and what never is."""

from __future__ import annotations

import random
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import problems

from contextwindow import (
    AsyncContextWindow,
    ConfigError,
    ContextWindow,
    SearchResult,
    Store,
    StreamInterrupted,
)
from contextwindow.store import search as searching
from contextwindow.store.search_schema import SEARCHED
from contextwindow.testing import ScriptedModel, ScriptedReply

WORDS = [
    "ash",
    "birch",
    "cedar",
    "elm",
    "fir",
    "hazel",
    "larch",
    "maple",
    "oak",
    "pine",
    "rowan",
    "willow",
    "yew",
]


def ids(results: list[SearchResult]) -> list[int]:
    return [one.record.id for one in results]


def filled(database: Any, *texts: str, context: str = "chat") -> ContextWindow:
    window = ContextWindow(database, context)
    for text in texts:
        window.add_prompt(text)
    return window


# -- what is found ----------------------------------------------------------------------------


def test_a_record_is_found_by_each_of_its_words_whatever_their_case(any_database: str) -> None:
    with filled(any_database, "The quick brown fox", "The lazy dog") as window:
        for query in ("quick", "QUICK", "fox quick", "  brown\n the  "):
            assert ids(window.search(query)) == [1]
        assert ids(window.search("the")) == [2, 1]
        assert window.search("quick dog") == window.search("qui") == []


def test_every_kind_of_record_is_found_live_or_not(any_database: str) -> None:
    model = ScriptedModel([ScriptedReply("the oak answers", reasoning="oak, I think")])
    with ContextWindow(any_database, "chat", model=model, system_prompt="know oak") as window:
        window.add_prompt("which oak?")
        window.call_model()
        window.add_tool_call("look", {"tree": "oak"})
        window.add_tool_output("an oak indeed")
        window.set_live([1, 2], False)

        assert sorted(ids(window.search("oak"))) == [one.id for one in window.records()]


def test_a_window_finds_what_is_in_its_context_and_a_store_all(any_database: str) -> None:
    with Store(any_database) as store:
        filled(store, "a fox", context="one")
        two = filled(store, "another fox", "nothing", context="two")

        assert [(one.context, one.id) for one in two.search("fox")] == [("two", 2)]
        assert [(one.context, one.id) for one in store.search("fox")] == [("two", 2), ("one", 1)]


def test_what_has_changed_is_found_by_its_new_words_alone(any_database: str) -> None:
    model = ScriptedModel([ScriptedReply(["an ", "oak"], fault="eof"), " tree"])
    with ContextWindow(any_database, "chat", model=model) as window:
        window.add_prompt("go")
        with pytest.raises(StreamInterrupted):
            window.call_model(max_resumes=0)
        assert ids(window.search("oak")) == [2]
        assert window.search("tree") == []

        window.resume()

        assert ids(window.search("oak")) == ids(window.search("tree")) == [2]


def test_a_record_that_leaves_the_database_leaves_the_index(any_database: str) -> None:
    with Store(any_database) as store:
        for number in range(5):
            filled(store, *["an oak"] * 40, context=f"c{number}")
        window = ContextWindow(store, "c0")
        assert len(store.search("oak", limit=1000)) == 200

        for number in range(1, 5):
            window.delete_context(f"c{number}")

        assert len(store.search("oak", limit=1000)) == len(window.search("oak", 1000)) == 40
        assert store.examine().sound


def test_what_another_program_writes_or_deletes_is_followed(tmp_path: Path) -> None:
    path = tmp_path / "chat.db"
    with filled(path, "an oak", "a fir") as window:
        with closing(sqlite3.connect(path)) as other, other:
            other.execute("UPDATE records SET content = 'a yew', checksum = NULL WHERE id = 1")
            other.execute("DELETE FROM records WHERE id = 2")

        assert ids(window.search("yew")) == [1]
        assert window.search("oak") == window.search("fir") == []


def test_forks_and_imports_are_found(any_database: str) -> None:
    with Store(any_database) as store:
        window = filled(store, *["an oak"] * 200, context="one")
        window.fork("two", at=150)
        window.import_context(window.export_context("one"), "three")
        window.edit(10, "a yew")

        found = [one.context for one in store.search("oak", limit=1000)]
        assert {name: found.count(name) for name in found} == {
            "one": 200,
            "two": 150,
            "three": 200,
            "one (2)": 9,
        }
        assert [one.context for one in store.search("yew")] == ["one (2)"]
        assert problems(store) == []
        assert store.examine().sound


def test_texts_of_scripts_without_spaces_are_found_by_any_part(any_database: str) -> None:
    with filled(any_database, "東京タワーは高い", "ไปกินข้าวกันไหม", "Tokyo 100% C++ a_b") as window:
        assert ids(window.search("タワー")) == ids(window.search("高い 東京")) == [1]
        assert ids(window.search("ข้าว")) == [2]
        assert ids(window.search("tokyo")) == [3]
        assert window.search("tokyo タワー") == window.search("大阪") == []


def test_signs_that_are_no_word_are_looked_for_as_they_stand(any_database: str) -> None:
    with filled(any_database, "100% sure :-)", "0 sure (-:", "under_score") as window:
        assert ids(window.search(":-)")) == [1]
        assert ids(window.search("sure (-:")) == [2]
        assert ids(window.search("%")) == [1]
        assert ids(window.search("_")) == [3]
        assert window.search("%%") == window.search("\\") == []


def test_accents_do_not_matter_on_sqlite(tmp_path: Path) -> None:
    with filled(tmp_path / "chat.db", "naïve café in Łódź") as window:
        (found,) = window.search("CAFE naive")

        assert [found.snippet[a:b] for a, b in found.highlights] == ["naïve", "café"]


def test_a_phrase_of_signs_and_words_is_one_word(any_database: str) -> None:
    with filled(any_database, "mail me@example.com now", "example com me") as window:
        assert ids(window.search("me@example.com")) == [1]


# -- queries are no language ------------------------------------------------------------------


@pytest.mark.parametrize(
    "query",
    [
        '"',
        '""',
        "a AND",
        "NOT",
        "NEAR(a b)",
        "content:oak",
        "{content} : oak",
        "oak*",
        "^oak",
        "-oak",
        "(",
        ")) OR scope:x",
        "oak'; DROP TABLE records; --",
        "a & | ! <-> b",
        "%s %(x)s ? :name",
        "\\",
        "x" * 10_000,
        " ".join(["oak"] * 1_000),
        "\ufffe\u202e\u0301",
    ],
)
def test_a_query_is_words_whatever_it_looks_like(any_database: str, query: str) -> None:
    with filled(any_database, query, "oak") as window:
        found = ids(window.search(query))

        assert 1 in found
        assert window.search("AND oak") in ([], window.search("oak and"))


@given(query=st.text(min_size=1, max_size=40))
def test_any_text_can_be_looked_for_and_is_found_where_it_stands(query: str) -> None:
    with ContextWindow(":memory:", "chat") as window:
        try:
            window.add_prompt(query)
        except ConfigError:
            with pytest.raises(ConfigError):
                window.search(query)
            return
        if not query.strip():
            with pytest.raises(ConfigError, match="empty"):
                window.search(query)
            return
        assert ids(window.search(query)) == [1]


@pytest.mark.parametrize(
    ("query", "limit"),
    [("", 5), (" \n", 5), (None, 5), (5, 5), ("x\0", 5), ("a", 0), ("a", -1), ("a", "5")],
)
def test_what_cannot_be_looked_for_is_said(query: Any, limit: Any) -> None:
    with filled(":memory:", "a") as window, pytest.raises(ConfigError):
        window.search(query, limit)


def test_a_raw_query_is_in_the_language_of_the_database(any_database: str) -> None:
    with filled(any_database, "an oak", "a fir", "oaks") as window:
        postgresql = any_database.startswith("postgresql")
        either = "oak | fir" if postgresql else "oak OR fir"
        beginning = "oak:*" if postgresql else "oak*"

        assert sorted(ids(window.search(either, raw=True))) == [1, 2]
        assert sorted(ids(window.search(beginning, raw=True))) == [1, 3]
        for wrong in ("oak AND (", "oak )"):
            with pytest.raises(ConfigError, match="raw query"):
                window.search(wrong, raw=True)


def test_a_raw_query_of_one_context_reads_no_other(any_database: str) -> None:
    with Store(any_database) as store:
        filled(store, "a secret oak", context="other")
        window = filled(store, "an oak", context="mine")
        hostile = "oak) OR (secret" if store.dialect == "sqlite" else "oak | secret"

        assert ids(window.search(hostile, raw=True)) == [2]


# -- order, limits, snippets ------------------------------------------------------------------


def test_what_says_more_of_the_words_comes_first(any_database: str) -> None:
    texts = ["nothing here"] * 30
    texts[7] = "oak " + "and much else that is said " * 20
    texts[20] = "oak oak"
    with filled(any_database, *texts) as window:
        assert ids(window.search("oak")) == [21, 8]


def test_of_equal_ones_the_newest_come_first_and_a_limit_is_kept(any_database: str) -> None:
    with filled(any_database, *["an oak"] * 30) as window:
        assert ids(window.search("oak", limit=3)) == [30, 29, 28]
        assert len(window.search("oak")) == 20


def test_words_that_everybody_uses_leave_the_order_of_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(searching, "_FREQUENT", 10)
    texts = ["the same the same"] * 40
    texts[3] = "the rare one"
    with filled(tmp_path / "chat.db", *texts) as window:
        assert ids(window.search("the", limit=2)) == [40, 39]
        assert ids(window.search("the rare")) == [4]


def test_a_snippet_shows_the_hit_and_where_it_is(any_database: str) -> None:
    text = "word " * 500 + "here is the OAK,\nof course " + "more " * 500
    with filled(any_database, text) as window:
        (found,) = window.search("oak")

        assert found.snippet.startswith("…")
        assert found.snippet.endswith("…")
        assert "here is the OAK, of course" in found.snippet
        assert len(found.snippet) < 300
        assert [found.snippet[a:b] for a, b in found.highlights] == ["OAK"]
        assert found.content == text


def test_the_first_million_characters_of_a_record_are_found(database: str) -> None:
    kind = "postgresql" if database.startswith("postgresql") else "sqlite"
    room = SEARCHED[kind] - 20
    with filled(database, "x " * (room // 2) + "oak" + " y" * 50 + " yew") as window:
        assert ids(window.search("oak")) == [1]
        assert window.search("yew") == []


# -- beside others ----------------------------------------------------------------------------


def test_a_database_that_is_only_read_is_searched_with_what_waits_for_its_index(
    tmp_path: Path,
) -> None:
    path = tmp_path / "chat.db"
    with filled(path, *["an oak"] * 100, "a rare oak"):
        pass
    with closing(sqlite3.connect(path)) as other:
        assert 0 < other.execute("SELECT count(*) FROM search_queue").fetchone()[0] < 128
    with Store(path, read_only=True) as store:
        assert len(store.search("oak", limit=1000)) == 101
        assert ids(store.search("rare")) == [101]
    with closing(sqlite3.connect(path)) as other:
        assert 0 < other.execute("SELECT count(*) FROM search_queue").fetchone()[0] < 128


def test_a_search_does_not_wait_for_a_writer(tmp_path: Path) -> None:
    path = tmp_path / "chat.db"
    with filled(path, "an oak") as window, closing(sqlite3.connect(path)) as other:
        other.isolation_level = None
        other.execute("BEGIN IMMEDIATE")

        assert ids(window.search("oak")) == [1]


def test_a_damaged_record_is_left_out_of_what_is_found(tmp_path: Path) -> None:
    path = tmp_path / "chat.db"
    with filled(path, "an oak", "another oak") as window:
        with closing(sqlite3.connect(path)) as other, other:
            other.execute("UPDATE records SET content = 'no oak' WHERE id = 1")

        assert ids(window.search("oak")) == [2]


def test_an_index_that_was_lost_is_told_and_made_anew(tmp_path: Path) -> None:
    path = tmp_path / "chat.db"
    with Store(path) as store:
        window = filled(store, "an oak", "a fir")
        assert ids(window.search("oak")) == [1]
        with closing(sqlite3.connect(path)) as other, other:
            other.execute("INSERT INTO search_index(search_index) VALUES ('delete-all')")
        assert window.search("oak") == []

        assert [one.kind for one in store.examine().problems] == ["index"]
        assert [one.mended for one in store.examine(mend=True).problems] == [True]

        assert ids(window.search("oak")) == [1]
        assert store.examine().sound


async def look(database: str) -> list[int]:
    async with AsyncContextWindow(database, "chat") as window:
        await window.add_prompt("an oak")
        return ids(await window.search("oak", limit=1))


def test_an_async_window_searches_as_well(database: str) -> None:
    import asyncio

    assert asyncio.run(look(database)) == [1]


@pytest.mark.parametrize("seed", range(3))
def test_after_any_changes_exactly_what_holds_the_words_is_found(database: str, seed: int) -> None:
    chance = random.Random(seed)
    with Store(database) as store:
        for step in range(150):
            window = ContextWindow(store, f"c{chance.randrange(4)}")
            match chance.randrange(10):
                case 0 if window.records():
                    window.fork(f"f{step}", at=chance.choice(window.records()).id)
                case 1 if window.records():
                    window.edit(
                        chance.choice(window.records()).id, " ".join(chance.choices(WORDS, k=3))
                    )
                case 2:
                    names = [one.name for one in store.list_contexts()]
                    window.delete_context(chance.choice(names))
                case _:
                    window.add_prompt(" ".join(chance.choices(WORDS, k=chance.randrange(1, 9))))
            if step % 10:
                continue
            word = chance.choice(WORDS)
            expected = {
                record.id
                for context in store.list_contexts()
                for record in ContextWindow(store, context.name).records()
                if word in record.content.split()
            }
            assert set(ids(store.search(word, limit=1000))) == expected
        assert store.examine().sound


# -- what a review has found ------------------------------------------------------------------


def damage(path: Path, old: bytes, new: bytes) -> None:
    """Change bytes of the file behind everybody's back."""
    assert len(old) == len(new)
    data = path.read_bytes()
    assert data.count(old) >= 1
    path.write_bytes(data.replace(old, new))


def test_a_damaged_record_that_waits_for_the_index_hides_no_other(tmp_path: Path) -> None:
    path = tmp_path / "chat.db"
    with filled(path, "needle good", "needle bad damaged"):
        pass
    damage(path, b"needle bad", b"needle \xffad")
    with Store(path, read_only=True) as store:
        assert ids(store.search("needle")) == [1]


def test_what_waits_for_the_index_is_searched_for_parts_too(tmp_path: Path) -> None:
    path = tmp_path / "chat.db"
    with filled(path, "report 日本 old", *[f"report {number}" for number in range(10)]):
        pass
    with Store(path, read_only=True) as store:
        assert ids(store.search("report 日本", limit=1)) == [1]


def test_a_search_works_where_nothing_can_be_written(tmp_path: Path) -> None:
    with Store(tmp_path / "chat.db") as store:
        texts = [" ".join(f"w{n}x{m}" for m in range(3_000)) for n in range(30)]
        window = filled(store, *[f"needle {text}" for text in texts])
        with store.database.write() as connection:
            (pages,) = connection.execute("PRAGMA page_count").fetchone() or (0,)
            connection.execute(f"PRAGMA max_page_count={pages}")

        assert len(window.search("needle", limit=100)) == 30


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("foo.method(arg) and foo.bar", ["foo", "method", "bar"]),
        ("/usr/lib/python3/site", ["python3", "/lib/python3"]),
        ("see https://github.com/a/b?c=d", ["github", "github.com", "https://github.com"]),
        ("bob@example.org", ["bob", "example", "bob@example.org"]),
        ('<div class="x">', ["class", "div", '<div class="x">']),
        ("100%sure", ["sure", "100"]),
    ],
)
def test_words_of_code_paths_and_addresses_are_found(
    any_database: str, text: str, words: list[str]
) -> None:
    with filled(any_database, text, "nothing") as window:
        for word in words:
            assert ids(window.search(word)) == [1], word


def test_letters_that_are_put_together_are_marked_as_they_are(any_database: str) -> None:
    with filled(any_database, "강아지 이야기 그리고 고양이 집", "かく がく") as window:
        (found,) = window.search("그")
        assert [found.snippet[a:b] for a, b in found.highlights] == ["그"]
        (found,) = window.search("がく")
        assert [found.snippet[a:b] for a, b in found.highlights] == ["がく"]


@pytest.mark.parametrize("query", ['"abc', '"a" "b', "NEAR(a b, x)", "\\", "a:", "'"])
def test_a_raw_query_that_cannot_be_read_is_the_callers_mistake(
    any_database: str, query: str
) -> None:
    with filled(any_database, "a b") as window:
        try:
            window.search(query, raw=True)
        except ConfigError as error:
            assert "raw query" in str(error)  # noqa: PT017  # some databases can read it


def test_a_query_of_too_many_words_is_refused(any_database: str) -> None:
    with filled(any_database, "a") as window:
        for words in ([f"w{n}" for n in range(101)], [chr(0x4E00 + n) for n in range(1_200)]):
            with pytest.raises(ConfigError, match="words"):
                window.search(" ".join(words))


def test_the_beginning_of_a_word_is_marked_to_its_end(any_database: str) -> None:
    with filled(any_database, "prefixes here") as window:
        query = "prefi:*" if any_database.startswith("postgresql") else "prefi*"
        (found,) = window.search(query, raw=True)
        assert [found.snippet[a:b] for a, b in found.highlights] == ["prefixes"]


def test_long_records_enter_the_index_by_themselves(tmp_path: Path) -> None:
    path = tmp_path / "chat.db"
    with filled(path, "small", *["long " * 20_000] * 20) as window:
        with closing(sqlite3.connect(path)) as other:
            (size,) = other.execute("SELECT coalesce(sum(size), 0) FROM search_queue").fetchone()
        assert size <= 500_000
        assert len(window.search("long", limit=50)) == 20
