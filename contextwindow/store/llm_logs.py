"""Reading the log of `llm <https://llm.datasette.io>`_, Simon Willison's command line program.

Its tables ("Logging to SQLite" and ``llm/migrations.py``, read 2026-11) are of two generations.
Up to 2026 a conversation is its ``responses``, and what belongs to each hangs on it; since then it
is a row of ``threads`` that names the last of its ``messages``, each of which names the one before.
A log may hold both; tables and columns that an older program has not made may be missing.

What a row names is not opened: whoever made the log could name any file of this machine.
"""

# Of the queries' parts only names of tables and columns vary, and those are written here.
# ruff: noqa: S608

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any, Final

from contextwindow.attachments import LARGEST_BYTES, read_attachment
from contextwindow.errors import ConfigError, StoreError
from contextwindow.models.sse import mended
from contextwindow.records import Attachment, NewRecord, RecordType
from contextwindow.store.checks import check_json
from contextwindow.store.llm_file import LlmFile, string
from contextwindow.store.values import parse_time

_LONGEST_NAME: Final = 200
_FILE: Final = "attachment"
_PARTS: Final = (_FILE, "text", "reasoning", "tool_call", "tool_result")

_OLD: Final = {"responses": {"id", "prompt", "response", "conversation_id"}}
_NEW: Final = {
    "threads": {"id", "tip_message_hash"},
    "messages": {"hash", "parent_hash", "role"},
    "parts": {"id", "message_hash", "position", "type", "text", "payload"},
}
_SOURCES: Final = {
    "system": RecordType.SYSTEM_PROMPT,
    "user": RecordType.PROMPT,
    "assistant": RecordType.MODEL_RESPONSE,
}


@dataclass(slots=True)
class Conversation:
    """One conversation of a log."""

    id: str
    name: str
    model: str
    records: list[NewRecord] = field(default_factory=list)


class LlmLog:
    """A log that is open for reading.

    Args:
        max_bytes: characters of text and bytes of attachments that may be read from it in all.

    Attributes:
        odd_times: how many times could not be read; their neighbours' stand for them.
        odd_parts: how many parts are of a kind not known here; notes stand for them.

    Raises:
        ConfigError: it cannot be read, or is none.
    """

    def __init__(self, path: str | os.PathLike[str], max_bytes: int) -> None:
        self.odd_times = self.odd_parts = 0
        self._file = LlmFile(path, max_bytes)
        try:
            if not self._file.has(_OLD) and not self._file.has(_NEW):
                raise ConfigError(
                    f"{self._file.path} is no log of llm: it has no responses and no threads"
                )
            # No index of the log's own leads to them.
            self._responses = self._by_conversation()
            self._by_response = {
                table: self._grouped(table) for table in ("tool_calls", "tool_results")
            }
            self._ends = self._turn_ends()
        except BaseException:
            self._file.close()
            raise

    def close(self) -> None:
        """Close it."""
        self._file.close()

    def ids(self) -> list[str]:
        """Ids of the conversations, each once."""
        found = dict.fromkeys(self._responses)
        if self._file.has(_NEW):
            for (key,) in self._file.rows("SELECT id FROM threads ORDER BY rowid"):
                found[string(key)] = None
        return list(found)

    def conversation(self, key: str) -> Conversation:
        """The conversation *key*; its records may be none.

        Raises:
            ConfigError: it cannot be read.
        """
        try:
            found = self._thread(key)
            return self._conversation(key) if found is None else found
        except (ConfigError, StoreError, OverflowError, RecursionError) as error:
            raise ConfigError(f"{self._file.path}: conversation {key!r:.60}: {error}") from error

    # -- up to 2026 ------------------------------------------------------------------------

    def _by_conversation(self) -> dict[str, list[int]]:
        """Numbers of the responses of each conversation, in order."""
        found: dict[str, list[int]] = {}
        if self._file.has(_OLD):
            when = self._file.column("responses", "datetime_utc")
            for key, own, number in self._file.rows(
                f"SELECT conversation_id, id, rowid FROM responses ORDER BY {when}, rowid"
            ):
                found.setdefault(string(key) or string(own), []).append(number)
        return found

    def _grouped(self, table: str) -> dict[str, list[int]]:
        """Numbers of the rows of *table* of each response."""
        found: dict[str, list[int]] = {}
        if self._file.has({table: {"response_id"}}):
            for key, number in self._file.rows(
                f"SELECT response_id, rowid FROM {table} ORDER BY rowid"
            ):
                found.setdefault(string(key), []).append(number)
        return found

    def _conversation(self, key: str) -> Conversation:
        named = self._file.one("conversations", ("name", "model"), "id", key)
        name, model = (string(one) for one in named or ("", ""))
        found = Conversation(key, _in_a_line(name), model)
        columns = ("id", "prompt", "system", "response", "reasoning", "model")
        system = ""
        numbers = self._responses.get(key, [])
        for number, when in zip(numbers, self._times(numbers), strict=True):
            row = self._file.one("responses", columns, "rowid", number) or ()
            own, prompt, said, reply, thought, model = map(self._file.text, row)
            turn = _Turn(found.records, own, when, f"response {own!r:.40}")
            found.model = found.model or model
            asked = "\n\n".join(filter(str.strip, [*self._fragments("system", own), said]))
            if asked != system:
                turn.system(asked)
                system = asked or system
            self._outputs(turn, own)
            text = "\n".join([*self._fragments("prompt", own), *([prompt] if prompt else [])])
            files, notes = self._files("prompt_attachments", "response_id", own)
            turn.prompt("\n\n".join(filter(None, [text, *notes])), files)
            turn.reply(RecordType.REASONING, thought)
            turn.reply(RecordType.MODEL_RESPONSE, reply)
            self._calls(turn, own)
        found.name = found.name or _first_prompt(found.records)
        return found

    def _times(self, numbers: list[int]) -> list[datetime | None]:
        """When the responses were: of one that does not say it, when the one before it was."""
        rows = (self._file.one("responses", ("datetime_utc",), "rowid", one) for one in numbers)
        times = [self._moment(row and row[0]) for row in rows]
        last = next(filter(None, times), None)
        for at, time in enumerate(times):
            last = times[at] = time or last
        return times

    def _fragments(self, kind: str, response: str) -> list[str]:
        table = f"{kind}_fragments"
        if not self._file.has(
            {table: {"response_id", "fragment_id"}, "fragments": {"id", "content"}}
        ):
            return []
        order = self._file.column(table, "order")
        rows = self._file.rows(
            f"SELECT fragments.content FROM {table} "
            f"JOIN fragments ON fragments.id = {table}.fragment_id "
            f"WHERE {table}.response_id = ? ORDER BY {order}",
            response,
        )
        return [self._file.text(text) for (text,) in rows]

    def _calls(self, turn: _Turn, response: str) -> None:
        columns = ("tool_call_id", "name", "arguments")
        for call_id, name, arguments in self._of("tool_calls", columns, response):
            turn.call(string(call_id), string(name), self._file.text(arguments))

    def _outputs(self, turn: _Turn, response: str) -> None:
        columns = ("id", "tool_call_id", "name", "output", "exception")
        for own, call_id, name, output, exception in self._of("tool_results", columns, response):
            failed = self._file.text(exception)
            _, notes = self._files("tool_results_attachments", "tool_result_id", own, keep=False)
            texts = [self._file.text(output) or failed, *notes]
            turn.output(string(call_id), string(name), texts, failed=bool(failed))

    def _of(self, table: str, columns: tuple[str, ...], response: str) -> Iterator[tuple[Any, ...]]:
        for number in self._by_response[table].get(response, ()):
            row = self._file.one(table, columns, "rowid", number)
            if row is not None:
                yield row

    # -- since 2026 ------------------------------------------------------------------------

    def _turn_ends(self) -> dict[str, tuple[datetime | None, str]]:
        """Times and models of the turns, by the message that ends them: of the first one."""
        found: dict[str, tuple[datetime | None, str]] = {}
        if self._file.has({"turns": {"tip_message_hash"}}):
            when = self._file.column("turns", "datetime_utc")
            for tip, time, model in self._file.rows(
                f"SELECT tip_message_hash, {when}, {self._file.column('turns', 'model')} "
                f"FROM turns ORDER BY {when}, rowid"
            ):
                found.setdefault(string(tip), (self._moment(time), string(model)))
        return found

    def _thread(self, key: str) -> Conversation | None:
        """The conversation as a thread; None where it is of the older tables alone."""
        if not self._file.has(_NEW):
            return None
        row = self._file.one("threads", ("name", "tip_message_hash", "datetime_utc"), "id", key)
        if row is None or row[1] is None:
            return None
        found = Conversation(key, _in_a_line(self._file.text(row[0])), "")
        chain = self._chain(string(row[1]))
        ends = [self._ends.get(own) for own, _ in chain]
        # A message has the time of the turn that it belongs to: the next that ends behind it.
        times: list[datetime | None] = [self._moment(row[2])]
        for ended in reversed(ends):
            times.append((ended and ended[0]) or times[-1])
        for at, (own, role) in enumerate(chain):
            turn = _Turn(found.records, own, times[-1 - at], f"message {at} ({own!r:.40})")
            self._message(turn, own, role)
        found.model = next((ended[1] for ended in ends if ended is not None), "")
        found.name = found.name or _first_prompt(found.records)
        return found

    def _chain(self, tip: str) -> list[tuple[str, str]]:
        """Hashes and roles of the messages up to *tip*, oldest first."""
        found: dict[str, str] = {}
        at: str | None = tip
        while at:
            if at in found:
                raise ConfigError(f"message {at!r:.60} comes before itself")
            row = self._file.one("messages", ("role", "parent_hash"), "hash", at)
            if row is None:
                raise ConfigError(f"message {at!r:.60} is missing")
            self._file.spend(len(at))
            found[at] = string(row[0])
            at = string(row[1]) or None
        return list(found.items())[::-1]

    def _message(self, turn: _Turn, own: str, role: str) -> None:
        source = _SOURCES.get(role)
        files: list[Attachment] = []
        asked: list[str] = []
        for number, kind, tool, text, payload in self._file.rows(
            f"SELECT id, type, {self._file.column('parts', 'tool_name')}, text, payload FROM parts "
            "WHERE message_hash = ? ORDER BY position",
            own,
        ):
            data = _object(self._file.text(payload))
            said = self._file.text(text) or self._borrowed(data)
            kept, notes = self._files("part_attachments", "part_id", number, keep=kind == _FILE)
            if kind not in _PARTS:
                self.odd_parts += 1
                notes.append(f"[part left out: the type {mended(repr(kind)):.60} is not known]")
            if kind in ("tool_call", "tool_result"):
                _add_tool(turn, kind, string(tool), data, said, notes)
            elif kind == "reasoning":
                turn.reply(RecordType.REASONING, said)
            elif source is RecordType.MODEL_RESPONSE:
                turn.reply(source, "\n\n".join(filter(None, [said, *notes])))
            else:
                files += kept
                asked += filter(None, [said, *notes])
        if source is RecordType.SYSTEM_PROMPT:
            turn.system("\n\n".join(asked))
        else:
            turn.prompt("\n\n".join(asked), files)

    def _borrowed(self, data: dict[str, Any]) -> str:
        """Text that is put together from fragments."""
        pieces = data.get("text_ref")
        out = []
        for piece in pieces if isinstance(pieces, list) else ():
            if not isinstance(piece, dict):
                continue
            if isinstance(piece.get("literal"), str):
                out.append(mended(piece["literal"]))
            elif isinstance(piece.get("fragment"), int) and self._file.has(
                {"fragments": {"content"}}
            ):
                row = self._file.one("fragments", ("content",), "id", piece["fragment"])
                out.append(self._file.text(row[0]) if row is not None else "")
        return "".join(out)

    # -- both ------------------------------------------------------------------------------

    def _moment(self, value: object) -> datetime | None:
        """The time that a column holds; None where it holds none, or none that can be read."""
        if value is None or value == "":
            return None
        try:
            return parse_time(string(value))
        except (ConfigError, StoreError, OverflowError):
            self.odd_times += 1
            return None

    def _files(
        self, table: str, key: str, value: object, *, keep: bool = True
    ) -> tuple[list[Attachment], list[str]]:
        """Attachments, and notes on those that cannot be kept."""
        if not self._file.has({table: {key, "attachment_id"}, "attachments": {"id", "content"}}):
            return [], []
        chosen = ", ".join(self._file.column("attachments", one) for one in ("type", "path", "url"))
        rows = self._file.rows(
            f"SELECT {chosen}, CASE WHEN length(attachments.content) <= {LARGEST_BYTES} "
            f"THEN attachments.content END, length(attachments.content) FROM {table} "
            f"JOIN attachments ON attachments.id = {table}.attachment_id "
            f"WHERE {table}.{key} = ? ORDER BY {self._file.column(table, 'order')}",
            value,
        )
        files, notes = [], []
        for media_type, path, url, content, size in rows:
            self._file.spend(size if isinstance(size, int) else 0)
            name = os.path.basename(string(path).replace("\\", "/"))
            try:
                if not keep:
                    raise ConfigError("a tool's output holds text alone")
                files.append(_attachment(string(media_type), name, string(url), content, size))
            except ConfigError as error:
                what = " ".join(filter(None, ["attachment", name, f"({string(media_type)})"]))
                notes.append(f"[{what} left out: {mended(str(error))}]")
        return files, notes


class _Turn:
    """The records of one response or message while they are put together."""

    def __init__(
        self, records: list[NewRecord], response_id: str, when: datetime | None, where: str
    ) -> None:
        self.records = records
        self._own = response_id
        self._when = when
        self._where = where

    def add(
        self, source: RecordType, content: str, *, own: str | None = None, **values: Any
    ) -> None:
        """Append a record; *own*: the id of the response that it is a part of."""
        self.records.append(
            NewRecord(
                source=source,
                content=content,
                where=self._where,
                timestamp=self._when,
                response_id=own,
                **values,
            )
        )

    def system(self, text: str) -> None:
        """Append a system prompt, if there is one; the ones before it are sent no longer."""
        if not text:
            return
        for at, one in enumerate(self.records):
            if one.source is RecordType.SYSTEM_PROMPT and one.live:
                self.records[at] = replace(one, live=False)
        self.add(RecordType.SYSTEM_PROMPT, text)

    def prompt(self, text: str, files: list[Attachment]) -> None:
        """Append a prompt, if there is one."""
        if text or files:
            self.add(RecordType.PROMPT, text, attachments=tuple(files))

    def reply(self, source: RecordType, text: str) -> None:
        """Append what the model said, if it said anything."""
        if text:
            self.add(source, text, own=self._own)

    def call(self, call_id: str, name: str, arguments: str) -> None:
        """Append a tool call."""
        self.add(
            RecordType.TOOL_CALL,
            arguments or "{}",
            own=self._own,
            call_id=call_id or None,
            name=name or None,
        )

    def output(self, call_id: str, name: str, texts: list[str], *, failed: bool) -> None:
        """Append what a tool gave back."""
        self.add(
            RecordType.TOOL_OUTPUT,
            "\n\n".join(filter(None, texts)),
            call_id=call_id or None,
            name=name or None,
            error=failed,
        )


def _add_tool(
    turn: _Turn, kind: str, tool: str, data: dict[str, Any], said: str, notes: list[str]
) -> None:
    """Append what a part of the newer tables says of a tool."""
    call_id = mended(str(data.get("tool_call_id") or ""))
    name = tool or mended(str(data.get("name") or ""))
    if kind == "tool_call":
        arguments = data.get("arguments") or {}
        turn.call(call_id, name, mended(json.dumps(arguments, ensure_ascii=False)))
        return
    failed, output = data.get("exception"), data.get("output")
    text = output if isinstance(output, str) else json.dumps(output) if output else ""
    turn.output(
        call_id, name, [mended(text or said or str(failed or "")), *notes], failed=bool(failed)
    )


def _object(text: str) -> dict[str, Any]:
    if not text:
        return {}
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"the payload of a part is no JSON: {error}") from error
    check_json(value, "the payload of a part", texts=False)
    if not isinstance(value, dict):
        raise ConfigError("the payload of a part is no JSON object")
    return value


def _first_prompt(records: list[NewRecord]) -> str:
    """A name for a conversation without one."""
    found = (one.content for one in records if one.source is RecordType.PROMPT)
    return _in_a_line(next(found, ""))


def _in_a_line(text: str) -> str:
    return " ".join(text.split())[:_LONGEST_NAME]


def _attachment(media_type: str, name: str, url: str, content: object, size: object) -> Attachment:
    """An attachment of the log.

    Raises:
        ConfigError: it cannot be kept.
    """
    if isinstance(content, bytes) and content:
        return read_attachment(Attachment(media_type=media_type, name=name, data=content))
    if size:
        raise ConfigError(f"it has more than {LARGEST_BYTES / 1e6:.0f} MB, or is no file")
    if url:
        return read_attachment(Attachment(media_type=media_type, name=name, url=url))
    # Whoever made the log could have named any file of this machine.
    raise ConfigError("the log holds the path of the file alone, which is not opened")
