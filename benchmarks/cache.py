"""What compactions cost where providers keep prompts in a cache, in US dollars.

An agent's conversation of 300 turns is held by real windows; no provider is asked.  Each call's
request is built by the real adapters of Anthropic and OpenAI (Responses), and compared, as the
bytes that would be sent, with those of the calls before.  What their caches would have of it is
modelled here, after their documentation (prompt caching, and the types of OpenAI's SDK, read
2026-11), all that was kept still being there:

- Anthropic keeps prefixes that end at a breakpoint, and finds one that ends at a breakpoint of
  the request or up to 20 blocks before it; what is behind that, up to the last breakpoint, is
  written, and charged for that.
- OpenAI kept every prefix up to GPT-5.5, from 1,024 tokens on, in steps of 128, and charged
  nothing for it.
- From GPT-5.6 on it keeps one prefix of a request, which is taken to end where the request does,
  and finds any that it has; what is behind that is written, and charged for that.

What this is compared with is a window that stays just full: before a call that would exceed the
limit the oldest exchange leaves (``Trim`` with a target just below its trigger).  That is kind to
it: whole exchanges leave, and a second time in one turn only when it has grown by a tenth; a window
that slides by single messages loses the cache at every call.

Tokens are those of ``contextwindow.tokens``, prices those of genai-prices.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import random
import statistics
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, Final

from benchmarks.report import Figure
from contextwindow import (
    AnthropicModel,
    Compaction,
    ContextWindow,
    OpenAIResponsesModel,
    Record,
    Tool,
    Trim,
    Usage,
    tool,
)
from contextwindow.compaction import TARGET, TRIGGER
from contextwindow.models import catalog
from contextwindow.models.base import CallOptions, Model
from contextwindow.testing import ScriptedModel, ScriptedReply
from contextwindow.tokens import count_tokens

TURNS: Final = 300
WINDOW: Final = 100_000
"""Tokens that the window may hold; in a larger one, compactions are rarer still."""

# Just below the trigger: no more leaves than must, and the next turn is over it again.
_A_LITTLE: Final = 0.001
_MEAN: Final = (TRIGGER + TARGET) / 2
"""Where a window stands in the mean that is filled to one and emptied to the other."""

_LEAST_SHARE: Final = 90.0
"""Per cent."""
_MOST_COST: Final = 0.65

_DEFAULT: Final = "default"
_SUMMARIZED: Final = "default with a summarizer"
_TRIMMED: Final = "trimmed at every turn"
_SMALLER: Final = "trimmed at every turn to the default's mean"

_ROUNDS_FOR_MORE: Final = 4
"""From so many rounds on it is not one conversation but three."""

_SMALLEST_CACHED: Final = 1_024
_STEP: Final = 128
_LOOKED_BACK: Final = 20
_AROUND: Final = 4


def measure(rounds: int) -> list[Figure]:
    """Share of the input that is read from caches, and what the turns cost, by compaction."""
    strategies: dict[str, tuple[Compaction | None, bool]] = {
        _DEFAULT: (None, False),
        _SUMMARIZED: (None, True),
        _TRIMMED: (_trim_at(TRIGGER), False),
        _SMALLER: (_trim_at(_MEAN), False),
    }
    talks = [Talk(seed) for seed in range(1 if rounds < _ROUNDS_FOR_MORE else 3)]
    runs = {
        name: [run(talk, compaction, summarizes=summarizes) for talk in talks]
        for name, (compaction, summarizes) in strategies.items()
    }
    return [one for number in range(len(_caches())) for one in _figures(runs, number)]


def _figures(runs: dict[str, list[Run]], number: int) -> list[Figure]:
    """Those of one of the caches."""
    model = runs[_DEFAULT][0].caches[number].model.name
    figures = []
    for name, done in runs.items():
        shares = [100 * one.caches[number].share for one in done]
        target = _LEAST_SHARE if name in (_DEFAULT, _SUMMARIZED) else None
        costs = statistics.median(one.caches[number].cost for one in done)
        times = statistics.median(one.compactions for one in done)
        detail = f"{costs:.2f} US dollars, room made {times:.0f} times"
        what = f"{model}, {name}: share of the input read from the cache"
        figures.append(Figure(what, shares, target, least=True, unit="%", detail=detail))
    for name, other, target in (
        (_DEFAULT, _TRIMMED, _MOST_COST),
        (_SUMMARIZED, _TRIMMED, _MOST_COST),
        (_DEFAULT, _SMALLER, None),
    ):
        pairs = zip(runs[name], runs[other], strict=True)
        ratios = [
            float(ours.caches[number].cost / theirs.caches[number].cost) for ours, theirs in pairs
        ]
        what = f"{model}: cost of {TURNS} turns, {name} against {other}"
        figures.append(Figure(what, ratios, target))
    return figures


def _trim_at(trigger: float) -> Trim:
    return Trim(keep_last=2, trigger=trigger, target=trigger - _A_LITTLE)


# -- the conversation --------------------------------------------------------------------

_TEXT: Final = (
    "the a of to and in is that for it as with on by this be are from or an was at which not have"
    " call value file line test error path name list index user request response token cache"
    " server client window record stream reply query table column row key lock thread process"
    " build deploy check change commit branch merge review issue report log trace stack frame"
    " module class function method argument return raise catch retry timeout limit size count"
    " because therefore however while until before after between under above first second last"
    " should could must may will would need want look find show print read write open close start"
)
_WORDS: Final = _TEXT.split()


@dataclass(slots=True)
class Step:
    """One reply of the model: text, calls with their outputs; without calls it ends the turn."""

    text: str
    calls: list[tuple[str, str, str]] = field(default_factory=list)


@dataclass(slots=True)
class Exchange:
    """One turn: a prompt, and what the model does about it."""

    prompt: str
    steps: list[Step]


class Talk:
    """A conversation as agents have them, the same for the same *seed*.

    Three of four turns use tools, in three rounds or so, seldom in a dozen; outputs have some
    1,200 bytes, from 100 to 20,000; prompts are a line, now and then a page.
    """

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self._calls = 0
        self.system = self._text(6_000)
        self.tools = [
            (f"{verb}_{noun}", self._text(300))
            for verb in ("read", "write", "search", "run")
            for noun in ("file", "test", "page")
        ]
        self.summaries = [self._text(4_500) for _ in range(100)]
        self.exchanges = [self._exchange() for _ in range(TURNS)]

    def _exchange(self) -> Exchange:
        rounds = 0
        while rounds < 12 and self._random.random() < 0.75:
            rounds += 1
        steps = [
            Step(
                self._text(self._size(120, 0.8, 20, 800)) if self._random.random() < 0.5 else "",
                [self._call() for _ in range(self._random.choice((1, 1, 1, 1, 2, 3)))],
            )
            for _ in range(rounds)
        ]
        steps.append(Step(self._text(self._size(700, 0.9, 60, 6_000))))
        return Exchange(self._text(self._size(150, 1.2, 15, 8_000)), steps)

    def _call(self) -> tuple[str, str, str]:
        """Name of a tool, its argument, which no other call has, and its output."""
        self._calls += 1
        name, _ = self._random.choice(self.tools)
        argument = f"{self._calls} {self._text(self._size(80, 1.0, 10, 3_000))}"
        return name, argument, self._text(self._size(1_200, 1.3, 100, 20_000))

    def _size(self, middle: int, spread: float, least: int, most: int) -> int:
        return max(least, min(most, round(self._random.lognormvariate(0, spread) * middle)))

    def _text(self, size: int) -> str:
        words: list[str] = []
        while size > 0:
            word = self._random.choice(_WORDS)
            if self._random.random() < 0.1:
                word = f"{word}_{self._random.randrange(10_000)}"
            word += self._random.choice(("", "", "", "", "", "", ",", ".", "\n", "()"))
            words.append(word)
            size -= len(word) + 1
        return " ".join(words)


# -- the caches --------------------------------------------------------------------------


@dataclass(slots=True)
class Block:
    """A piece of a request that is cached as a whole or not at all.

    Attributes:
        prefix: stands for all bytes of the request up to its end.
        tokens: of it alone.
        is_marked: whether a breakpoint stands on it.
    """

    prefix: bytes
    tokens: int
    is_marked: bool


class Cache(ABC):
    """A provider's cache of prompts, and what its calls have used.

    Args:
        model: builds the requests.
    """

    def __init__(self, model: Model) -> None:
        self.model = model
        self.used: list[Usage] = []
        self._kept: set[bytes] = set()
        self._tokens: dict[bytes, int] = {}
        self._last: list[tuple[dict[str, Any], Block]] = []

    def call(self, records: Sequence[Record], options: CallOptions, answer: str) -> None:
        """Take note of a call that sends *records*."""
        blocks = self._blocks(self.model.request(records, options).body)
        read, written = self.look(blocks)
        sent = sum(block.tokens for block in blocks)
        self.used.append(Usage(sent, count_tokens(answer), read, written))

    @property
    def share(self) -> float:
        """Of the input of all calls, what was read from the cache."""
        read = sum(one.cache_read_tokens for one in self.used)
        return read / sum(one.input_tokens for one in self.used)

    @property
    def cost(self) -> Decimal:
        """US dollars of all calls, each at its own price: a long one may cost more a token.

        Raises:
            RuntimeError: genai-prices does not know the model.
        """
        found = [catalog.price(self.model.provider, self.model.name, one) for one in self.used]
        costs = [cost for cost in found if cost is not None]
        if len(costs) < len(found):
            raise RuntimeError(f"genai-prices knows no price of {self.model.name}")
        return sum(costs, Decimal(0))

    @abstractmethod
    def pieces(self, body: dict[str, Any]) -> Iterable[dict[str, Any]]:
        """The blocks of a request, in the order in which the provider reads them."""

    @abstractmethod
    def look(self, blocks: Sequence[Block]) -> tuple[int, int]:
        """Tokens that are read from the cache and written to it; what is written is kept."""

    def _blocks(self, body: dict[str, Any]) -> list[Block]:
        prefix, found = b"", []
        last, same = self._last, True
        for at, piece in enumerate(self.pieces(body)):
            # What the adapter makes equal it makes in the same order: equal bytes.
            same = same and at < len(last) and last[at][0] == piece
            block = last[at][1] if same else self._block(prefix, piece)
            prefix = block.prefix
            found.append((piece, block))
        self._last = found
        return [block for _, block in found]

    def _block(self, prefix: bytes, piece: dict[str, Any]) -> Block:
        # Where breakpoints stand is no part of what is compared.
        plain = {key: value for key, value in piece.items() if key != "cache_control"}
        prefix = hashlib.sha256(prefix + json.dumps(plain).encode()).digest()
        if prefix not in self._tokens:
            self._tokens[prefix] = count_tokens("\n".join(_texts(plain))) + _AROUND
        return Block(prefix, self._tokens[prefix], "cache_control" in piece)


class AnthropicCache(Cache):
    """Anthropic's: prefixes up to breakpoints."""

    def pieces(self, body: dict[str, Any]) -> Iterable[dict[str, Any]]:
        """Tools, system prompt, and the blocks of all messages."""
        yield from body.get("tools", ())
        yield from body.get("system", ())
        for message in body["messages"]:
            for block in message["content"]:
                yield {"role": message["role"], **block}

    def look(self, blocks: Sequence[Block]) -> tuple[int, int]:
        """Up to the last breakpoint that was one before; the rest up to the last is written."""
        marked = [at for at, block in enumerate(blocks) if block.is_marked]
        found = (
            at
            for mark in reversed(marked)
            for at in range(mark, max(-1, mark - _LOOKED_BACK), -1)
            if blocks[at].prefix in self._kept
        )
        hit = next(found, -1)
        read = sum(block.tokens for block in blocks[: hit + 1])
        written = sum(block.tokens for block in blocks[hit + 1 : marked[-1] + 1]) if marked else 0
        total = 0
        for at, block in enumerate(blocks):
            total += block.tokens
            if at in marked and total >= _SMALLEST_CACHED:
                self._kept.add(block.prefix)
        return read, written


class OpenAICache(Cache):
    """OpenAI's up to GPT-5.5: every prefix, in steps."""

    def pieces(self, body: dict[str, Any]) -> Iterable[dict[str, Any]]:
        """Tools and input items."""
        yield from body.get("tools", ())
        yield from body["input"]

    def look(self, blocks: Sequence[Block]) -> tuple[int, int]:
        """Up to the first block that was not sent before, rounded down."""
        known = itertools.takewhile(lambda block: block.prefix in self._kept, blocks)
        read = _in_steps(sum(block.tokens for block in known))
        self._kept.update(block.prefix for block in blocks)
        return read, 0


class BreakpointCache(OpenAICache):
    """OpenAI's from GPT-5.6 on: the prefix that is a whole request."""

    def look(self, blocks: Sequence[Block]) -> tuple[int, int]:
        """Up to the end of the longest request that this one begins with; all else is written."""
        sent = read = 0
        for block in blocks:
            sent += block.tokens
            if block.prefix in self._kept:
                read = _in_steps(sent)
        if sent < _SMALLEST_CACHED:
            return 0, 0
        self._kept.add(blocks[-1].prefix)
        return read, sent - read


def _caches() -> list[Cache]:
    return [
        AnthropicCache(AnthropicModel("claude-sonnet-5-5", api_key="none")),
        OpenAICache(OpenAIResponsesModel("gpt-5.5", api_key="none")),
        BreakpointCache(OpenAIResponsesModel("gpt-6.1-sol", api_key="none")),
    ]


def _in_steps(tokens: int) -> int:
    return tokens - tokens % _STEP if tokens >= _SMALLEST_CACHED else 0


def _texts(value: object, key: str = "") -> Iterator[str]:
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from _texts(inner, name)
    elif isinstance(value, list):
        for inner in value:
            yield from _texts(inner, key)
    elif isinstance(value, str) and key not in ("id", "tool_use_id", "call_id", "type", "role"):
        yield value


# -- the runs ----------------------------------------------------------------------------


@dataclass(slots=True)
class Run:
    """What a conversation has come to.

    Attributes:
        caches: with the tokens of all calls, those that wrote summaries too.
        compactions: how often records left the window.
    """

    caches: list[Cache]
    compactions: int


def run(talk: Talk, compaction: Compaction | None, *, summarizes: bool) -> Run:
    """Hold the conversation."""
    caches = _caches()
    steps = iter([step for exchange in talk.exchanges for step in exchange.steps])
    summaries = iter(talk.summaries)

    def answer(records: Sequence[Record], options: CallOptions) -> ScriptedReply:
        step = next(steps)
        calls = [(name, {"argument": argument}) for name, argument, _ in step.calls]
        said = "\n".join([step.text, *(f"{name} {argument}" for name, argument, _ in step.calls)])
        for cache in caches:
            cache.call(records, options, said)
        return ScriptedReply(step.text, tool_calls=calls)

    def summarise(records: Sequence[Record], options: CallOptions) -> str:
        summary = next(summaries)
        for cache in caches:
            cache.call(records, options, summary)
        return summary

    writer = ScriptedModel([summarise], repeat=True, pieces="whole") if summarizes else None
    with ContextWindow(
        model=ScriptedModel([answer], repeat=True, pieces="whole"),
        system_prompt=talk.system,
        tools=_tools(talk),
        max_tokens=WINDOW,
        compaction=compaction,
        summarizer=writer,
    ) as window:
        for exchange in talk.exchanges:
            window.add_prompt(exchange.prompt)
            reply = window.call_model()
            assert reply.text.endswith(exchange.steps[-1].text)
        assert next(steps, None) is None
        events = window.compactions()
        if summarizes:
            assert any(event.summary_id is not None for event in events)
        return Run(caches, len(events))


def _tools(talk: Talk) -> list[Tool]:
    calls = (call for exchange in talk.exchanges for step in exchange.steps for call in step.calls)
    outputs = {argument: output for _, argument, output in calls}

    def look_up(argument: str) -> str:
        return outputs[argument]

    return [tool(name=name, description=about)(look_up) for name, about in talk.tools]
