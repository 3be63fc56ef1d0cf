"""Options of a call: what a caller may say, checked before anything is written or sent."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, TypedDict

from contextwindow.busy import ON_BUSY, OnBusy
from contextwindow.errors import ConfigError
from contextwindow.formats import read_format
from contextwindow.models.base import CallOptions
from contextwindow.records import Reply


class CallArguments(TypedDict, total=False):
    """Options of ``call_model`` and ``call_model_streaming``; all may be left out.

    Attributes:
        temperature: as the provider understands it.
        max_output_tokens: tokens of the reply at the most.
        reasoning: effort (``"low"``, ``"medium"``, ``"high"`` …) or the provider's own mapping.
        response_format: a pydantic model class, a dataclass, a TypedDict or a JSON schema that
            the reply must fit; ``reply.parsed`` is then its value.
        timeout: seconds without a byte from the provider before ``ModelTimeout``.
        deadline: seconds for the whole turn, waiting for another one included.
        max_resumes: how often a reply that is cut off is resumed before the error is raised; 2
            unless said otherwise.
        on_busy: what to do while another turn runs on the context: ``"raise"`` ``TurnBusy``,
            ``"wait"`` for it, or ``"cancel_running"``: ask it to stop, wherever it runs, and wait
            until it has.  A wait that ``deadline`` or ``cancel()`` ends raises ``TurnBusy``.
        disable_tools: offer no tools this once.
        tool_choice: ``"auto"``, ``"none"``, ``"required"`` or a tool's name; behind a round of
            tools the choice is the model's again.
        max_tool_rounds: how often the tools that the model asks for are run before the turn ends
            with an error; 50 unless said otherwise.
        extra: merged into the provider's request as it is.
    """

    temperature: float | None
    max_output_tokens: int | None
    reasoning: str | dict[str, Any] | None
    response_format: Any
    timeout: float | None
    deadline: float | None
    max_resumes: int
    on_busy: OnBusy
    disable_tools: bool
    tool_choice: str | None
    max_tool_rounds: int
    extra: Mapping[str, Any]


@dataclass(slots=True)
class Driving:
    """The options that say how a turn is driven rather than what is asked.

    Attributes:
        disable_tools: offer no tools.
        max_tool_rounds: rounds of tools in one turn.
        parse: reads ``reply.parsed`` out of the reply, with ``response_format``.
        recorded: the options as they are kept with the call.
    """

    timeout: float | None = None
    deadline: float | None = None
    max_resumes: int = 2
    on_busy: OnBusy = "raise"
    disable_tools: bool = False
    max_tool_rounds: int = 50
    parse: Callable[[Reply], Any] | None = None
    recorded: dict[str, Any] = field(default_factory=dict)


_SECRET: Final = ("header", "key", "token", "secret", "authorization")


def read_options(options: Mapping[str, Any]) -> tuple[CallOptions, Driving]:
    """*options* of a caller, checked.

    Raises:
        ConfigError: an option does not exist, or its value cannot be used.
    """
    for name in options:
        if name not in CallArguments.__annotations__:
            raise ConfigError(_unknown(name))
    form = read_format(options.get("response_format"))
    asked = CallOptions(
        temperature=_number(options, "temperature"),
        max_output_tokens=_count(options, "max_output_tokens", least=1),
        reasoning=_reasoning(options.get("reasoning")),
        response_format=None if form is None else form.sent,
        tool_choice=_text(options, "tool_choice"),
        extra=_extra(options.get("extra")),
    )
    resumes = _count(options, "max_resumes", least=0)
    rounds = _count(options, "max_tool_rounds", least=0)
    driving = Driving(
        timeout=_seconds(options, "timeout"),
        deadline=_seconds(options, "deadline"),
        max_resumes=2 if resumes is None else resumes,
        on_busy=_busy(options.get("on_busy", "raise")),
        disable_tools=_flag(options, "disable_tools"),
        max_tool_rounds=50 if rounds is None else rounds,
        parse=None if form is None else form.parse_reply,
        recorded=_recorded(asked),
    )
    return asked, driving


def _unknown(name: str) -> str:
    known = sorted(CallArguments.__annotations__)
    near = difflib.get_close_matches(name, known, 1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return (
        f"there is no option {name!r}{hint} (options: {', '.join(known)}; what only the provider "
        "knows goes into extra={...})"
    )


def _number(options: Mapping[str, Any], name: str) -> float | None:
    value = options.get(name)
    if value is None:
        return None
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not math.isfinite(value):
        raise ConfigError(f"{name} must be a number, not {value!r}")
    return value  # type: ignore[no-any-return]  # a number, as just seen


def _seconds(options: Mapping[str, Any], name: str) -> float | None:
    value = _number(options, name)
    if value is not None and not value > 0:
        raise ConfigError(f"{name} must be above 0 seconds, not {value!r}")
    return value


def _count(options: Mapping[str, Any], name: str, *, least: int) -> int | None:
    value = options.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ConfigError(f"{name} must be a whole number of {least} or above, not {value!r}")
    return value


def _flag(options: Mapping[str, Any], name: str) -> bool:
    value = options.get(name, False)
    if not isinstance(value, bool):
        raise ConfigError(f"{name} must be True or False, not {value!r}")
    return value


def _text(options: Mapping[str, Any], name: str) -> str | None:
    value = options.get(name)
    if value is not None and (not isinstance(value, str) or not value):
        raise ConfigError(f"{name} must be a non-empty str, not {value!r}")
    return value


def _reasoning(value: Any) -> str | dict[str, Any] | None:
    if value is None or isinstance(value, (str, dict)):
        return value
    raise ConfigError(f"reasoning must be an effort such as 'low', or a dict, not {value!r}")


def _extra(value: Any) -> dict[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise ConfigError(f"extra must be a dict of request fields, not {value!r}")
    for name in value:
        if not isinstance(name, str):
            raise ConfigError(f"a field of extra must be named by a str, not {name!r}")
    return dict(value)


def _busy(value: Any) -> OnBusy:
    if value not in ON_BUSY:
        raise ConfigError(f"on_busy must be one of {', '.join(ON_BUSY)}, not {value!r}")
    return value  # type: ignore[no-any-return]  # one of them, as just seen


def _recorded(options: CallOptions) -> dict[str, Any]:
    """*options* as they are kept with the call: no record, no secret."""
    kept: dict[str, Any] = {
        "temperature": options.temperature,
        "max_output_tokens": options.max_output_tokens,
        "reasoning": options.reasoning,
        "response_format": options.response_format and options.response_format.name,
        "tool_choice": options.tool_choice,
    }
    kept["extra"] = _plain(options.extra)
    return {name: value for name, value in kept.items() if value}


def _plain(value: Any) -> Any:
    """*value* as JSON takes it, without what its name says is a secret."""
    if isinstance(value, Mapping):
        return {
            str(name): "…" if any(word in str(name).lower() for word in _SECRET) else _plain(inner)
            for name, inner in value.items()
        }
    if isinstance(value, (list, tuple)):
        return [_plain(inner) for inner in value]
    if value is None or isinstance(value, (str, int, float)):
        return value
    return repr(type(value).__name__)
