"""What the fake provider refuses as OpenAI, and replies that other formats have, too."""

from __future__ import annotations

from typing import Any

import httpx2
import openai
import pytest
from four_apis import provider

from contextwindow.testing import FakeProvider, FakeReply

__all__ = ["provider"]

SEALED = ["reasoning.encrypted_content"]


def posted(provider: FakeProvider, path: str, **body: Any) -> httpx2.Response:
    return httpx2.post(f"{provider.openai_url}/{path}", json={"model": "gpt-5", **body})


def responded(provider: FakeProvider, given: Any = "hello", **body: Any) -> httpx2.Response:
    return posted(provider, "responses", input=given, **body)


def user(text: str = "hello") -> dict[str, Any]:
    return {"role": "user", "content": text}


def asking(*ids: str, **function: Any) -> dict[str, Any]:
    called = {"name": "f", "arguments": "{}", **function}
    calls = [{"id": one, "type": "function", "function": called} for one in ids]
    return {"role": "assistant", "content": None, "tool_calls": calls}


def told(call_id: str) -> dict[str, Any]:
    return {"role": "tool", "tool_call_id": call_id, "content": "x"}


def call(call_id: str = "c1", **more: Any) -> dict[str, Any]:
    return {"type": "function_call", "call_id": call_id, "name": "f", "arguments": "{}", **more}


def output(call_id: str = "c1") -> dict[str, Any]:
    return {"type": "function_call_output", "call_id": call_id, "output": "x"}


REFUSED_CHATS: list[tuple[str, list[Any]]] = [
    ("must be followed by tool messages", [user(), asking("a")]),
    ("must be followed by tool messages", [user(), asking("a", "b"), told("a")]),
    ("must be followed by tool messages", [user(), asking("a"), user(), told("a")]),
    ("must be a response to a preceeding message", [user(), told("a")]),
    ("must be a response to a preceeding message", [user(), asking("a"), told("b")]),
    ("must be a response to a preceeding message", [user(), asking("a"), told("a"), told("a")]),
    ("expected a string, got null", [user(), {"role": "assistant", "content": None}]),
    ("maximum length 40", [user(), asking("a" * 41), told("a" * 41)]),
    ("name: string does not match", [user(), asking("a", name="a b"), told("a")]),
    ("arguments: expected a string", [user(), asking("a", arguments={}), told("a")]),
]


@pytest.mark.parametrize(("why", "messages"), REFUSED_CHATS)
def test_what_chat_completions_refuses_is_refused_and_costs_no_reply(
    provider: FakeProvider, why: str, messages: list[Any]
) -> None:
    provider.reply("still there")

    refused = posted(provider, "chat/completions", messages=messages)

    assert refused.status_code == 400
    assert why in refused.json()["error"]["message"]
    taken = posted(provider, "chat/completions", messages=[user()]).json()
    assert taken["choices"][0]["message"]["content"] == "still there"


def test_what_chat_completions_takes_is_taken(provider: FakeProvider) -> None:
    said = {"role": "assistant", "content": "x"}
    loop = [asking("a", "b"), told("b"), told("a")]

    for messages in ([user(), *loop], [user(), *loop, said, user(), *loop], [user(), user()]):
        assert posted(provider, "chat/completions", messages=messages).status_code == 200


REASONING: Any = {"type": "reasoning", "id": "rs_1", "summary": []}
REFUSED: list[tuple[str, list[Any]]] = [
    ("No tool output found", [user(), call()]),
    ("No tool output found", [user(), call(), call("c2"), output("c2")]),
    ("No tool call found", [user(), output()]),
    ("No tool call found", [user(), output(), call()]),
    ("maximum length 64", [user(), call("c" * 65), output("c" * 65)]),
    ("does not match pattern", [user(), call(name="a b"), output()]),
    ("expected a string", [user(), call(arguments={}), output()]),
    ("not found", [user(), REASONING, {"role": "assistant", "content": "x"}]),
    ("verified", [user(), {**REASONING, "encrypted_content": "forged"}, call(), output()]),
    ("Duplicate item", [call("a", id="fc_1"), call("b", id="fc_1"), output("a"), output("b")]),
]


@pytest.mark.parametrize(("why", "given"), REFUSED)
def test_what_responses_refuses_is_refused_and_costs_no_reply(
    provider: FakeProvider, why: str, given: list[Any]
) -> None:
    provider.reply("still there")

    refused = responded(provider, given)

    assert refused.status_code == 400
    assert why in refused.json()["error"]["message"]
    assert "still there" in responded(provider).text


@pytest.mark.parametrize("store", [False, True])
def test_reasoning_goes_back_with_what_it_led_to(provider: FakeProvider, store: bool) -> None:
    provider.reply(FakeReply(reasoning="hm", tool_calls=[("f", {}, "c1")]))
    made = responded(provider, include=SEALED, store=store).json()["output"]
    thought, asked = made

    def status(*given: Any) -> int:
        return responded(provider, [user(), *given]).status_code

    assert status(thought, asked, output()) == 200
    assert status(thought, user()) == 400
    assert status(asked, output()) == (400 if store else 200)
    assert status({k: v for k, v in asked.items() if k != "id"}, output()) == 200
    bare = {k: v for k, v in thought.items() if k != "encrypted_content"}
    assert status(bare, asked, output()) == (200 if store else 400)


def test_a_chain_waits_for_its_outputs(provider: FakeProvider) -> None:
    provider.reply(FakeReply(tool_calls=[("f", {}, "c1")]))
    chain = {"previous_response_id": responded(provider).json()["id"]}

    assert responded(provider, [user()], **chain).status_code == 400
    assert responded(provider, [output("c2")], **chain).status_code == 400
    assert responded(provider, [output(), user()], **chain).status_code == 200


@pytest.mark.parametrize("path", ["responses", "chat/completions"])
def test_a_prompt_may_be_blocked(provider: FakeProvider, path: str) -> None:
    provider.reply(FakeReply("x", blocked=True))
    with openai.OpenAI(api_key="k", base_url=provider.openai_url, max_retries=0) as client:
        asked: Any = {"input": "?"} if path == "responses" else {"messages": [user()]}
        api: Any = client.responses if path == "responses" else client.chat.completions
        with pytest.raises(openai.BadRequestError) as caught:
            api.create(model="gpt-5", **asked)

    assert caught.value.code == "content_filter"


def test_reasoning_may_be_hidden(provider: FakeProvider) -> None:
    for _ in range(2):
        provider.reply(FakeReply("so", reasoning="let me see", hidden=True))

    made = responded(provider, include=SEALED).json()
    chat = posted(provider, "chat/completions", messages=[user()]).json()

    thought = made["output"][0]
    assert thought["summary"] == []
    assert thought["encrypted_content"]
    assert made["usage"]["output_tokens_details"] == {"reasoning_tokens": 3}
    assert "reasoning_content" not in chat["choices"][0]["message"]
    assert chat["usage"]["completion_tokens_details"]["reasoning_tokens"] == 3
