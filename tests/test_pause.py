"""A long reply that the provider pauses is gone on with by itself."""

from __future__ import annotations

import json
from typing import Any

from openai_server import Answer, serving
from support import Open, check_order, contents, file, problems, read, responses, run

from contextwindow import AnthropicModel

__all__ = ["file", "run"]

USE = {"type": "server_tool_use", "id": "s1", "name": "web_search", "input": {"query": "x"}}
RESULT = {"type": "web_search_tool_result", "tool_use_id": "s1", "content": []}


def message(blocks: list[dict[str, Any]], reason: str) -> Answer:
    """A stream of whole *blocks* that stops for *reason*."""
    events: list[dict[str, Any]] = [
        {"type": "message_start", "message": {"id": "m", "usage": {"input_tokens": 5}}}
    ]
    for index, block in enumerate(blocks):
        events.append({"type": "content_block_start", "index": index, "content_block": block})
        events.append({"type": "content_block_stop", "index": index})
    delta = {"stop_reason": reason}
    events.append({"type": "message_delta", "delta": delta, "usage": {"output_tokens": 2}})
    events.append({"type": "message_stop"})
    lines = [f"event: {one['type']}\ndata: {json.dumps(one)}\n\n" for one in events]
    return Answer("".join(lines).encode())


def test_a_paused_reply_goes_back_as_it_came_and_is_one_reply(run: Open, file: str) -> None:
    first = message([{"type": "text", "text": "Looking. "}, USE], "pause_turn")
    second = message([RESULT, {"type": "text", "text": "Found."}], "end_turn")
    with serving(first, second) as server:
        url = server.url.removesuffix("/v1")
        model = AnthropicModel("claude-haiku-4-5", api_key="k", base_url=url)
        window = run(file, "chat", model=model)
        window.add_prompt("search")

        stream = window.call_model_streaming()
        chunks, error = read(stream)
        sent = server.requests[1]["body"]["messages"]
        runner = vars(window).get("_runner")
        if runner is None:
            model.close()
        else:
            runner.run(model.aclose())

    assert error is None
    check_order(chunks, None)
    assert stream.reply.text == "Looking. Found."
    assert stream.reply.usage.total_tokens == 14
    assert len(window.calls()) == 2
    assert contents(responses(window)) == ["Looking. ", "Found."]
    assert sent[-1] == {
        "role": "assistant",
        "content": [{"type": "text", "text": "Looking. "}, USE],
    }
    assert problems(file) == []
