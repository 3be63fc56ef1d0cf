"""Options of a call: what a caller may say, checked before anything is written or sent."""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal, TypedDict

from contextwindow.errors import ConfigError
from contextwindow.models.base import CallOptions, ResponseFormat


class CallArguments(TypedDict, total=False):
    """Options of ``call_model`` and ``call_model_streaming``; all may be left out.

    Attributes:
        temperature: as the provider understands it.
        max_output_tokens: tokens of the reply at the most.
        reasoning: effort (``"low"``, ``"medium"``, ``"high"`` …) or the provider's own mapping.
        response_format: a pydantic model class or a JSON schema that the reply must fit.
        timeout: seconds without a byte from the provider before ``ModelTimeout``.
        deadline: seconds for the whole turn.
        max_resumes: how often a reply that is cut off is resumed before the error is raised; 2
            unless said otherwise.
        on_busy: what to do while another turn runs on the context: ``"raise"`` ``TurnBusy``, or
            ``"wait"`` for it.
        tool_choice: ``"auto"``, ``"none"``, ``"required"`` or a tool's name.
        extra: merged into the provider's request as it is.
    """

    temperature: float | None
    max_output_tokens: int | None
    reasoning: str | dict[str, Any] | None
    response_format: Any
    timeout: float | None
    deadline: float | None
    max_resumes: int
    on_busy: Literal["raise", "wait"]
    tool_choice: str | None
    extra: Mapping[str, Any]


@dataclass(slots=True)
class Driving:
    """The options that say how a turn is driven rather than what is asked.

    Attributes:
        parse: turns the reply's text into ``reply.parsed``, with ``response_format``.
        recorded: the options as they are kept with the call.
    """

    timeout: float | None = None
    deadline: float | None = None
    max_resumes: int = 2
    wait_if_busy: bool = False
    parse: Callable[[str], Any] | None = None
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
    asked = CallOptions(
        temperature=_number(options, "temperature"),
        max_output_tokens=_count(options, "max_output_tokens", least=1),
        reasoning=_reasoning(options.get("reasoning")),
        response_format=_format(options.get("response_format")),
        tool_choice=_text(options, "tool_choice"),
        extra=_extra(options.get("extra")),
    )
    resumes = _count(options, "max_resumes", least=0)
    driving = Driving(
        timeout=_seconds(options, "timeout"),
        deadline=_seconds(options, "deadline"),
        max_resumes=2 if resumes is None else resumes,
        wait_if_busy=_busy(options.get("on_busy", "raise")),
        parse=_parser(options.get("response_format")),
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


def _busy(value: Any) -> bool:
    if value not in ("raise", "wait"):
        raise ConfigError(f"on_busy must be 'raise' or 'wait', not {value!r}")
    return bool(value == "wait")


def _format(value: Any) -> ResponseFormat | None:
    if value is None:
        return None
    if isinstance(value, dict):
        return ResponseFormat(name=str(value.get("title") or "reply"), schema=value)
    schema = getattr(value, "model_json_schema", None)
    if schema is None or not isinstance(value, type):
        raise ConfigError(f"response_format must be a pydantic model or a schema, not {value!r}")
    return ResponseFormat(name=value.__name__, schema=schema())


def _parser(value: Any) -> Callable[[str], Any] | None:
    if value is None:
        return None
    return json.loads if isinstance(value, dict) else value.model_validate_json


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
