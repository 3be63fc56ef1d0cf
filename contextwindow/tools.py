"""Functions that a model may call."""

from __future__ import annotations

import copy
import functools
import inspect
import json
import math
import re
from collections.abc import Awaitable, Callable, Generator
from typing import Any, Final, Protocol, overload

from contextwindow.chunks import ChildLinked, StreamChunk
from contextwindow.errors import CallbackExpired, ConfigError, ToolError
from contextwindow.records import Context
from contextwindow.tool_arguments import complaint, problems, read_object
from contextwindow.tool_schema import (
    FunctionSchema,
    check_function,
    is_async,
    is_unbound,
    own_name,
    plain_function,
)

# What OpenAI, Anthropic and Gemini all take (their API references, read 2026-11).
_NAME: Final = re.compile(r"[a-zA-Z0-9_-]{1,64}")


class Tool:
    """One function that a model may call.

    May be used by many windows and threads at once; called like a function, it is its function.
    Two tools are equal only when they are the same object.

    Args:
        name: 1 to 64 of ``a-z A-Z 0-9 _ -``, which is what every provider takes.
        description: tells the model what the tool does and when to use it.
        parameters: JSON schema of an object.  None: made from the signature of *run*, whose
            docstring then describes what *description* leaves open.
        run: called with the arguments by name; may be async.  A parameter annotated with
            ``ToolContext`` is given one.  None: the tool is external, its calls are answered by
            the caller, with ``add_tool_output``.
        timeout: seconds that a call may take, None for any time.
        idempotent: whether a call may be run again when a crash has left its outcome unknown.

    Attributes:
        is_async: whether *run* is a coroutine function.

    Raises:
        ConfigError: it cannot be offered to a model; the message says what to change.
    """

    def __init__(
        self,
        name: str,
        description: str = "",
        parameters: dict[str, Any] | None = None,
        run: Callable[..., Any] | None = None,
        *,
        timeout: float | None = None,
        idempotent: bool = False,
    ) -> None:
        self.name = _checked_name(name)
        self.timeout = _checked_timeout(self.name, timeout)
        self.idempotent = bool(idempotent)
        self.run = run
        self.is_async = run is not None and is_async(run)
        self._takes: FunctionSchema | None = None
        if run is not None:
            check_function(self.name, run)
            self._takes = FunctionSchema(run, self.name, ToolContext, is_unbound(run))
            self.__wrapped__ = run
            self.__doc__ = plain_function(run).__doc__
        if not isinstance(description, str):
            raise ConfigError(f"tool {name!r}: the description must be a str, not {description!r}")
        self.description = description
        self._is_raw = parameters is not None or run is None
        if self._takes is not None and not self._is_raw:
            self.description = description or self._takes.documented.description
            self.parameters = self._takes.build()
        else:
            self.parameters = _checked_schema(self.name, parameters)
            self._check_raw()

    def arguments(self, raw: str) -> dict[str, Any]:
        """What the model wrote, as keyword arguments for ``run``.

        With a schema made from a signature the values are validated and converted by pydantic:
        dates arrive as dates, dataclasses and models as instances, ``"3"`` for an int as 3.  A
        schema that was given as it is leaves the values as they are; of it ``type``, ``enum``,
        ``const``, ``required`` and ``additionalProperties: false`` are looked at, also within
        ``properties`` and ``items``, and nothing else.

        Args:
            raw: JSON text; without any text there are no arguments.

        Raises:
            ToolError: in words for the model, naming every bad argument.
        """
        given = read_object(raw)
        if self._takes is not None and not self._is_raw:
            return self._takes.validate(given)
        wrong = list(problems(self.parameters, given))
        if wrong:
            raise complaint(wrong)
        return given

    def call(self, arguments: dict[str, Any], context: ToolContext) -> Any:
        """Call the function; returns its result, or what is to be awaited for it.

        Args:
            arguments: as ``arguments`` gives them.
            context: given to the function where it takes one.

        Raises:
            ConfigError: the tool is external.
        """
        if self.run is None or self._takes is None:
            raise ConfigError(_external(self.name))
        positional, named = self._takes.bind(arguments, context)
        return self.run(*positional, **named)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The plain function."""
        if self.run is None:
            raise ConfigError(_external(self.name))
        return self.run(*args, **kwargs)

    def __get__(self, instance: object, owner: type | None = None) -> Tool:
        # `@tool` on a method: `agent.search` is the tool of that agent.
        if instance is None or self.run is None or not is_unbound(self.run):
            return self
        bound = copy.copy(self)
        bound.run = self.run.__get__(instance, owner)
        return bound

    def __repr__(self) -> str:
        return f"Tool({self.name!r})"

    def _check_raw(self) -> None:
        """See that the function takes what the schema describes."""
        takes = self._takes
        if takes is None:
            return
        described = self.parameters["properties"]
        for name in described:
            if not takes.takes(name):
                raise ConfigError(
                    f"tool {self.name!r}: its schema has a property {name!r}, which its function "
                    "does not take: add a parameter of that name, or **kwargs"
                )
        for name in takes.required:
            if name not in described and self.parameters.get("additionalProperties") is False:
                raise ConfigError(
                    f"tool {self.name!r}: its function needs {name!r}, which its schema does not "
                    "have: add the property, or give the parameter a default"
                )


@overload
def tool(
    function: None = None,
    /,
    *,
    name: str | None = None,
    description: str | None = None,
    timeout: float | None = None,
    idempotent: bool = False,
) -> Callable[[Callable[..., Any]], Tool]: ...


@overload
def tool(
    function: Callable[..., Any],
    /,
    *,
    name: str | None = None,
    description: str | None = None,
    timeout: float | None = None,
    idempotent: bool = False,
) -> Tool: ...


def tool(
    function: Callable[..., Any] | None = None,
    /,
    *,
    name: str | None = None,
    description: str | None = None,
    timeout: float | None = None,
    idempotent: bool = False,
) -> Tool | Callable[[Callable[..., Any]], Tool]:
    """Make a ``Tool`` from a typed function and its docstring, as ``@tool`` or ``@tool(...)``.

    The annotations give the schema, the docstring its words: what stands before the first
    section describes the tool; the entries of ``Args:`` (or in NumPy's or Sphinx's style) describe
    the arguments.

    Args:
        name: None for the function's own.
        description: None for the docstring's.
        timeout: as of ``Tool``.
        idempotent: as of ``Tool``.

    Raises:
        ConfigError: a parameter cannot be described to a model; the message says which and why.
    """
    make = functools.partial(
        _made, name=name, description=description, timeout=timeout, idempotent=idempotent
    )
    return make if function is None else make(function)


def as_tool(value: Tool | Callable[..., Any]) -> Tool:
    """*value* itself when it is a tool, otherwise the tool of that function.

    Raises:
        ConfigError: it is neither, or cannot be described to a model.
    """
    if isinstance(value, Tool):
        if value.run is not None and is_unbound(value.run):
            raise ConfigError(
                f"{value!r} is a method: take it from an object, as in Agent().{value.name}"
            )
        return value
    check_function("", value)
    return tool(value)


def output_text(value: Any) -> str:
    """What the model gets of the value that a tool has returned.

    A str goes as it is, None as ``""``, everything else as JSON: also pydantic models,
    dataclasses, dates, Decimals, enums, sets and paths.

    Raises:
        ToolError: *value* has no JSON form.
    """
    if isinstance(value, str):
        return str.__str__(value)
    if value is None:
        return ""
    if isinstance(value, (bytes, bytearray, memoryview)):
        raise ToolError("the tool returned bytes: it must decode them, or describe what they are")
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError, RecursionError):
        return _serialized(value)


class ToolContext:
    """What a running tool knows of its call, and its way to show progress.

    A tool has one for each call, in a parameter that is annotated with this class.

    Attributes:
        call_id: the provider's id of the call.
        name: the tool's name.
        turn_id: the turn that the call belongs to.
        context_id: id of the conversation.
        context_name: its name.
        store: the open ``Store`` of the conversation, None outside a window.
        reader: a ``ContextReader`` of this conversation, whichever the window has switched to
            since; None outside a window.  Its reads block.
    """

    def __init__(
        self,
        *,
        call_id: str,
        name: str,
        turn_id: str = "",
        context_id: str = "",
        context_name: str = "",
        store: Any = None,
        reader: Any = None,
        send: Callable[[Any], Any] | None = None,
    ) -> None:
        self.call_id = call_id
        self.name = name
        self.turn_id = turn_id
        self.context_id = context_id
        self.context_name = context_name
        self.store = store
        self.reader = reader
        self._send = send
        self._expired = False

    def emit(self, output: Any) -> Awaitable[None]:
        """Show *output* to whoever reads the stream, as a ``ToolOutputDelta``.

        The model does not see it, and it is not stored.  A tool that is no coroutine waits here
        until the reader has it; in a coroutine, ``await`` does that, and may be left out.

        Args:
            output: text, or a value that JSON has; it is copied.

        Raises:
            ToolError: *output* is neither.
            CallbackExpired: the tool has returned, or its time is over.
            Exception: what a hook or the reader raised for it.
        """
        return self._hand_on(_shown(output))

    def link(self, window: _Child) -> Awaitable[None]:
        """Say that *window* is a conversation that this tool holds, as a ``ChildLinked`` chunk.

        The other conversation keeps its own stream and gets this one as its parent.  Call it
        before its first turn, so that whoever reads this stream can follow that one.

        Args:
            window: an open window on the other conversation.  With an ``AsyncContextWindow``
                the result must be awaited.

        Raises:
            ContextNotFound: the other conversation was deleted.
            CallbackExpired: the tool has returned, or its time is over.
        """
        self._check_time()
        context = window.set_parent(self.context_id or None)
        if inspect.isawaitable(context):
            return self._link_later(context)
        return self._hand_on(self._linked(context))

    async def _link_later(self, context: Awaitable[Context]) -> None:
        await self._hand_on(self._linked(await context))

    def _linked(self, context: Context) -> ChildLinked:
        return ChildLinked(call_id=self.call_id, context=context.name, context_id=context.id)

    def _hand_on(self, output: Any) -> Awaitable[None]:
        self._check_time()
        sent = None if self._send is None else self._send(output)
        return _SENT if sent is None else sent

    def _check_time(self) -> None:
        if self._expired:
            raise CallbackExpired(f"tool {self.name!r} has returned: its emit is over")

    def expire(self) -> None:
        """End the use of ``emit``, from any thread."""
        self._expired = True

    def __repr__(self) -> str:
        return f"ToolContext(name={self.name!r}, call_id={self.call_id!r})"


class _Child(Protocol):
    """A window of either kind."""

    def set_parent(self, context_id: str | None) -> Any: ...


class _Sent:
    """May be awaited, and need not be."""

    def __await__(self) -> Generator[Any, None, None]:
        return
        yield


_SENT: Final = _Sent()


def _shown(output: Any) -> Any:
    """A copy of *output*: the tool may go on to change what it has shown."""
    if isinstance(output, str):
        return _sendable(str.__str__(output))
    if isinstance(output, StreamChunk):
        raise ToolError("emit takes no chunks of other streams; emit what chunk.to_dict() gives")
    try:
        text = json.dumps(output, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise ToolError(
            f"emit takes text or JSON values, not this {type(output).__name__}: {error}"
        ) from None
    return json.loads(_sendable(text))


def _sendable(text: str) -> str:
    """*text* with U+FFFD for what no stream can carry, the halves of surrogate pairs."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text


def _serialized(value: Any) -> str:
    from pydantic_core import to_json

    try:
        # Twice, so that it looks as the values do that json knows by itself.
        return json.dumps(json.loads(to_json(value, inf_nan_mode="strings")), ensure_ascii=False)
    except Exception as error:
        # A user's own serializer may raise anything.
        raise ToolError(
            f"the tool returned {type(value).__name__}, which has no JSON form: {error}"
        ) from error


def _made(
    function: Callable[..., Any],
    *,
    name: str | None,
    description: str | None,
    timeout: float | None,
    idempotent: bool,
) -> Tool:
    if isinstance(function, Tool):
        raise ConfigError(f"{function!r} is a tool already")
    if isinstance(function, staticmethod):
        function = function.__func__
    check_function(name or "", function)
    called = own_name(function) if name is None else name
    made = Tool(called, description or "", run=function, timeout=timeout, idempotent=idempotent)
    if description is not None:
        made.description = description
    return made


def _checked_name(name: Any) -> str:
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ConfigError(
            f"{name!r} cannot be a tool's name: providers take 1 to 64 of a-z A-Z 0-9 _ -; "
            "give another one with name="
        )
    return name


def _checked_timeout(name: str, timeout: Any) -> float | None:
    if timeout is None:
        return None
    number = isinstance(timeout, (int, float)) and not isinstance(timeout, bool)
    if not number or not math.isfinite(timeout) or timeout <= 0:
        raise ConfigError(f"tool {name!r}: timeout must be above 0 seconds, not {timeout!r}")
    return float(timeout)


def _checked_schema(name: str, parameters: Any) -> dict[str, Any]:
    """A copy of *parameters* that is a JSON schema of an object, as far as can be seen."""
    if parameters is None:
        return {"type": "object", "properties": {}}
    if not isinstance(parameters, dict):
        raise ConfigError(
            f"tool {name!r}: parameters must be a JSON schema as a dict, not {parameters!r}"
        )
    try:
        schema: dict[str, Any] = json.loads(json.dumps(parameters, allow_nan=False))
    except (TypeError, ValueError, RecursionError) as error:
        raise ConfigError(f"tool {name!r}: its parameters are not JSON: {error}") from error
    schema = {"type": "object", "properties": {}, **schema}
    if schema["type"] != "object" or not isinstance(schema["properties"], dict):
        raise ConfigError(
            f"tool {name!r}: its parameters must be the schema of an object, "
            '{"type": "object", "properties": {...}}'
        )
    return schema


def _external(name: str) -> str:
    return f"tool {name!r} has no function: its calls are answered with add_tool_output"
