"""A provider that costs as little as it can: bytes made once, sent by a process of its own."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Final

PIECE: Final = " token"
"""The text of every chunk."""


@contextmanager
def provider() -> Iterator[str]:
    """Its address, ``/v1`` included."""
    command = [sys.executable, "-m", "benchmarks.server"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        yield f"http://127.0.0.1:{process.stdout.readline().strip()}/v1"
    finally:
        process.terminate()
        process.wait()
        process.stdout.close()


def _event(data: object, name: str = "") -> bytes:
    head = f"event: {name}\n" if name else ""
    return f"{head}data: {json.dumps(data, separators=(',', ':'))}\n\n".encode()


@lru_cache
def _chat(count: int) -> list[bytes]:
    base = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "m"}
    base |= {"service_tier": "default", "system_fingerprint": "fp_1"}

    def chunk(delta: object, reason: str | None = None) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}
        return _event({**base, "choices": [choice], "usage": None, "obfuscation": "aB3x"})

    usage = {"prompt_tokens": 9, "completion_tokens": count, "total_tokens": 9 + count}
    out = [chunk({"role": "assistant", "content": "", "refusal": None})]
    out += [chunk({"content": PIECE})] * count
    out += [chunk({}, "stop"), _event({**base, "choices": [], "usage": usage})]
    return [*out, b"data: [DONE]\n\n"]


@lru_cache
def _responses(count: int) -> list[bytes]:
    out: list[bytes] = []

    def add(kind: str, **fields: object) -> None:
        out.append(_event({"type": kind, "sequence_number": len(out), **fields}, kind))

    response = {"id": "resp_1", "object": "response", "created_at": 1, "model": "m"}
    response |= {"status": "in_progress", "output": [], "error": None, "parallel_tool_calls": True}
    response |= {"tool_choice": "auto", "tools": [], "incomplete_details": None}
    item = {"id": "msg_1", "type": "message", "status": "in_progress", "role": "assistant"}
    place = {"item_id": "msg_1", "output_index": 0, "content_index": 0}
    part = {"type": "output_text", "annotations": [], "logprobs": [], "text": ""}
    add("response.created", response=response)
    add("response.output_item.added", output_index=0, item={**item, "content": []})
    add("response.content_part.added", **place, part=part)
    for _ in range(count):
        add("response.output_text.delta", **place, delta=PIECE, logprobs=[], obfuscation="x7Qa")
    whole = {**part, "text": PIECE * count}
    done = {**item, "status": "completed", "content": [whole]}
    add("response.output_text.done", **place, text=whole["text"], logprobs=[])
    add("response.output_item.done", output_index=0, item=done)
    usage: dict[str, object] = {"input_tokens": 9, "output_tokens": count}
    usage |= {"total_tokens": 9 + count, "input_tokens_details": {"cached_tokens": 0}}
    usage |= {"output_tokens_details": {"reasoning_tokens": 0}}
    end = {**response, "status": "completed", "output": [done], "usage": usage}
    add("response.completed", response=end)
    return out


@lru_cache
def _messages(count: int) -> list[bytes]:
    def event(kind: str, **fields: object) -> bytes:
        return _event({"type": kind, **fields}, kind)

    usage: dict[str, object] = {"input_tokens": 9, "output_tokens": 1}
    usage |= {"cache_creation_input_tokens": 0, "cache_read_input_tokens": 0}
    message: dict[str, object] = {"id": "msg_1", "type": "message", "role": "assistant"}
    message |= {"model": "m", "content": [], "stop_reason": None, "stop_sequence": None}
    block = {"type": "text", "text": ""}
    delta = {"type": "text_delta", "text": PIECE}
    out = [event("message_start", message={**message, "usage": usage})]
    out += [event("content_block_start", index=0, content_block=block), event("ping")]
    out += [event("content_block_delta", index=0, delta=delta)] * count
    out += [event("content_block_stop", index=0)]
    end = {"stop_reason": "end_turn", "stop_sequence": None}
    out += [event("message_delta", delta=end, usage={"output_tokens": count})]
    return [*out, event("message_stop")]


@lru_cache
def _gemini(count: int) -> list[bytes]:
    def chunk(text: str, number: int, **fields: object) -> bytes:
        content = {"parts": [{"text": text}], "role": "model"}
        usage: dict[str, object] = {"promptTokenCount": 9, "candidatesTokenCount": number}
        usage |= {"totalTokenCount": 9 + number}
        usage |= {"promptTokensDetails": [{"modality": "TEXT", "tokenCount": 9}]}
        candidate = {"content": content, "index": 0, **fields}
        whole = {"candidates": [candidate], "usageMetadata": usage}
        return _event({**whole, "modelVersion": "m", "responseId": "r1"}).replace(b"\n", b"\r\n")

    out = [chunk(PIECE, number) for number in range(1, count)]
    return [*out, chunk(PIECE, count, finishReason="STOP")]


def _made_for(head: str) -> Callable[[int], list[bytes]]:
    """What makes the events that the path of *head* asks for."""
    if ":streamgeneratecontent" in head:
        return _gemini
    if "/v1/messages" in head:
        return _messages
    return _responses if "/responses" in head else _chat


async def _serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while True:
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin1").lower()
            size = next(line for line in head.split("\r\n") if line.startswith("content-length:"))
            await reader.readexactly(int(size.split(":")[1]))
            asked = next((one for one in head.split("\r\n") if one.startswith("x-bench:")), "")
            count, pace = (float(one) for one in (asked.split(":")[1] or "20,0").split(","))
            events = _made_for(head)(int(count))
            writer.write(
                b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n"
                b"transfer-encoding: chunked\r\n\r\n"
            )
            if pace:
                for event in events:
                    writer.write(b"%x\r\n%s\r\n" % (len(event), event))
                    await asyncio.sleep(pace)
            else:
                writer.write(b"".join(b"%x\r\n%s\r\n" % (len(one), one) for one in events))
            writer.write(b"0\r\n\r\n")
            await writer.drain()
    except (asyncio.IncompleteReadError, ConnectionError):
        writer.close()


async def _main() -> None:
    server = await asyncio.start_server(_serve, "127.0.0.1", 0, limit=1 << 26, backlog=2_048)
    print(server.sockets[0].getsockname()[1], flush=True)
    async with server:
        await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(_main())
