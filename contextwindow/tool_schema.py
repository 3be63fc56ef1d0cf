"""The JSON schema of a function's arguments, and their validation, from its signature."""

from __future__ import annotations

import functools
import inspect
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, Final, Union, get_args, get_type_hints

from contextwindow.docstrings import Documented, read_docstring
from contextwindow.errors import ConfigError, ToolError
from contextwindow.tool_arguments import complaint, expected, shortened
from contextwindow.typed_dicts import readable

if TYPE_CHECKING:
    from pydantic import BaseModel

_EMPTY: Final = inspect.Parameter.empty
_POSITIONAL: Final = inspect.Parameter.POSITIONAL_ONLY
_VAR_POSITIONAL: Final = inspect.Parameter.VAR_POSITIONAL
_VAR_KEYWORD: Final = inspect.Parameter.VAR_KEYWORD


@dataclass(slots=True)
class _Argument:
    """One parameter that the model fills in; *field* is its name in the pydantic model."""

    parameter: inspect.Parameter
    hint: Any
    field: str
    always: bool = False


@dataclass(slots=True)
class FunctionSchema:
    """What a function takes, as its annotations and its docstring say.

    Args:
        function: what is called.
        name: what errors call it.
        context_type: parameters annotated with it are not the model's to fill in.
        is_method: whether the first parameter is left to the object that it is called on.

    Attributes:
        documented: its docstring.
        contexts: names of the parameters that take a *context_type*.
        extra: name of its ``**`` parameter, or None.

    Raises:
        ConfigError: a parameter cannot be described to a model; from ``build`` too.
    """

    function: Callable[..., Any]
    name: str
    context_type: type
    is_method: bool = False
    documented: Documented = field(init=False)
    contexts: list[str] = field(init=False, default_factory=list)
    extra: str | None = field(init=False, default=None)
    _positional: list[inspect.Parameter] = field(init=False, default_factory=list)
    _extra_hint: Any = field(init=False, default=Any)
    _arguments: dict[str, _Argument] = field(init=False, default_factory=dict)
    _model: type[BaseModel] | None = field(init=False, default=None)
    _schema: dict[str, Any] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        inner = plain_function(self.function)
        self.documented = read_docstring(inner.__doc__)
        namespaces = _namespaces(inner, self.context_type)
        parameters = self._parameters()
        self._positional = [one for one in parameters if one.kind is _POSITIONAL]
        for parameter in parameters:
            if parameter.kind is _VAR_POSITIONAL:
                self._refuse(parameter.name, "is *args: name each argument, or take a list")
            hint = self._hint(parameter, *namespaces)
            if _mentions(hint, self.context_type):
                self.contexts.append(parameter.name)
            elif parameter.kind is _VAR_KEYWORD:
                self.extra, self._extra_hint = parameter.name, hint
            else:
                place = f"a{len(self._arguments)}"
                self._arguments[parameter.name] = _Argument(parameter, hint, place)

    @property
    def required(self) -> list[str]:
        """Names of the parameters that have no default."""
        arguments = self._arguments.values()
        return [a.parameter.name for a in arguments if a.parameter.default is _EMPTY]

    def takes(self, name: str) -> bool:
        """Whether the function can be called with an argument *name*."""
        return name in self._arguments or (self.extra is not None and name not in self.contexts)

    def build(self) -> dict[str, Any]:
        """The JSON schema of the arguments; ``validate`` can be used from then on.

        Raises:
            ConfigError: the type of a parameter has no JSON schema.
        """
        try:
            self._model = self._make_model(list(self._arguments.values()))
            self._schema = _json_schema(self._model)
        except Exception as error:
            # Whatever a user's own type raises when it is asked for its schema.
            self._blame(error)
            raise ConfigError(f"tool {self.name!r}: {_first_line(error)}") from error
        return self._schema

    def validate(self, given: dict[str, Any]) -> dict[str, Any]:
        """*given* as the function takes it: converted, by parameter name.

        Raises:
            ToolError: says of every bad argument what was expected.
        """
        from pydantic import ValidationError

        model = self._model
        assert model is not None  # noqa: S101 - whoever validates has built
        taken = [f"- {name}: not an argument" for name in self.contexts if name in given]
        try:
            valid = model.model_validate(given)
        except ValidationError as error:
            raise complaint(taken + self._said(error)) from None
        except Exception as error:
            # Validators and constructors of the user's types raise what they like.
            raise ToolError(
                f"the arguments could not be read: {type(error).__name__}: {error}"
            ) from error
        if taken:
            raise complaint(taken)
        found = {
            name: getattr(valid, argument.field)
            for name, argument in self._arguments.items()
            if argument.always or argument.field in valid.model_fields_set
        }
        return {**(valid.model_extra or {}), **found}

    def bind(self, arguments: dict[str, Any], context: Any) -> tuple[list[Any], dict[str, Any]]:
        """Positional and keyword arguments to call the function with."""
        named = {**arguments, **dict.fromkeys(self.contexts, context)}
        positional: list[Any] = []
        for parameter in self._positional:
            if parameter.name in named:
                positional.append(named.pop(parameter.name))
            elif parameter.default is not _EMPTY:
                # One that follows may have been given.
                positional.append(parameter.default)
        return positional, named

    def _parameters(self) -> list[inspect.Parameter]:
        try:
            found = list(inspect.signature(self.function).parameters.values())
        except (TypeError, ValueError) as error:
            raise ConfigError(
                f"tool {self.name!r}: Python does not know the parameters of {self.function!r}; "
                "wrap it in a function of your own"
            ) from error
        # What a partial has filled in is not the model's to see or to change.
        filled = _filled_in(self.function)
        found = [one for one in found if one.name not in filled]
        return found[1:] if self.is_method else found

    def _hint(self, parameter: inspect.Parameter, known: Any, local: Any) -> Any:
        if parameter.annotation is _EMPTY:
            return Any

        def holder() -> None: ...

        holder.__annotations__ = {"it": parameter.annotation}
        try:
            return readable(get_type_hints(holder, known, local, include_extras=True)["it"])
        except (NameError, AttributeError, SyntaxError, TypeError) as error:
            self._refuse(
                parameter.name,
                f"has the annotation {parameter.annotation!r}, which cannot be resolved ({error}): "
                "define or import the type where the function is defined, and above it",
                error,
            )

    def _make_model(self, arguments: list[_Argument]) -> type[BaseModel]:
        from pydantic import BaseModel, ConfigDict, create_model

        config = ConfigDict(extra="allow" if self.extra else "forbid", allow_inf_nan=False)
        body: dict[str, Any] = {"model_config": config, "__module__": __name__}
        if self.extra:
            body["__annotations__"] = {"__pydantic_extra__": dict[str, self._extra_hint]}  # type: ignore[name-defined]  # a type made at run time
        base = type("Arguments", (BaseModel,), body)
        fields: dict[str, Any] = {one.field: self._field(one) for one in arguments}
        made: type[BaseModel] = create_model("Arguments", __base__=base, **fields)
        return made

    def _field(self, argument: _Argument) -> Any:
        """Type of one field with its name and description, and its default if it has one."""
        from pydantic import Field
        from pydantic.fields import FieldInfo

        hint, default = argument.hint, argument.parameter.default
        name = argument.parameter.name
        said = FieldInfo.from_annotation(hint)
        infos = [said] + ([default] if isinstance(default, FieldInfo) else [])
        argument.always = not all(info.is_required() for info in infos)
        if default is None and hint is not Any and not _mentions(hint, type(None)):
            # `x: int = None`: what stands for "not given" may be given.
            hint = _or_none(hint)
        added: dict[str, Any] = {}
        if not any(info.alias or info.validation_alias for info in infos):
            added["alias"] = name
        if not any(info.description for info in infos) and name in self.documented.arguments:
            added["description"] = self.documented.arguments[name]
        if isinstance(default, FieldInfo):
            return Annotated[hint, Field(**added)], default
        if default is _EMPTY:
            return Annotated[hint, Field(**added)]
        if _is_json(default):
            return Annotated[hint, Field(**added)], default
        return Annotated[hint, Field(**added)], Field(default_factory=lambda: None)

    def _blame(self, error: Exception) -> None:
        """Raise a ConfigError for the parameter that cannot be described, if it is one alone."""
        groups: list[tuple[str, list[_Argument]]] = [(self.extra or "", [])] + [
            (n, [a]) for n, a in self._arguments.items()
        ]
        for name, arguments in groups:
            try:
                _json_schema(self._make_model(arguments))
            except Exception as cause:  # noqa: BLE001 - as above
                self._refuse(
                    name,
                    f"cannot be described to a model: {_first_line(cause)}; use types that JSON "
                    "has, dataclasses, pydantic models, or a Tool with parameters=<JSON schema>",
                    error,
                )

    def _refuse(self, parameter: str, why: str, cause: BaseException | None = None) -> Any:
        raise ConfigError(f"tool {self.name!r}: parameter {parameter!r} {why}") from cause

    def _said(self, error: Any) -> list[str]:
        """The errors of pydantic, each with its place, and its value where that is short."""
        known = self._schema.get("properties", {})
        lines = []
        for one in error.errors(include_url=False, include_context=False):
            place = _place(one["loc"])
            if one["type"] == "extra_forbidden":
                there = f"; there are {', '.join(known) or 'none'}" if len(one["loc"]) == 1 else ""
                lines.append(f"- {place}: not an argument{there}")
            elif one["type"] == "missing":
                kind = expected(known.get(one["loc"][0])) if len(one["loc"]) == 1 else ""
                lines.append(f"- {place}: missing" + (f"; must be {kind}" if kind else ""))
            else:
                lines.append(f"- {place}: {one['msg']}, not {shortened(one['input'])}")
        return lines


def plain_function(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function that has the docstring and the annotations of *function*."""
    while True:
        if isinstance(function, functools.partial):
            function = function.func
        elif inspect.ismethod(function) or isinstance(function, staticmethod):
            function = function.__func__
        elif hasattr(function, "__wrapped__"):
            function = function.__wrapped__
        elif not inspect.isroutine(function) and not isinstance(function, type):
            function = type(function).__call__
        else:
            return function


def check_function(name: str, run: Any) -> None:
    """See that *run* can be called for a tool.

    Raises:
        ConfigError: it is no function, or one that yields.
    """
    named = f"tool {name!r}: " if name else ""
    if isinstance(run, classmethod):
        raise ConfigError(f"{named}put @classmethod above @tool")
    if not callable(run) or isinstance(run, type):
        raise ConfigError(
            f"{named}a tool is made from a function, not from {run!r}; "
            "for a JSON schema use Tool(name, description, parameters, run)"
        )
    inner = plain_function(run)
    if inspect.isgeneratorfunction(inner) or inspect.isasyncgenfunction(inner):
        raise ConfigError(
            f"{named}{inner.__qualname__} has `yield`: take a ToolContext, show progress with its "
            "emit(), and return the output"
        )


def own_name(function: Callable[..., Any]) -> str:
    """The name that *function* was defined with.

    Raises:
        ConfigError: it has none.
    """
    inner: Any = function
    while isinstance(inner, functools.partial):
        inner = inner.func
    name = getattr(inner, "__name__", "")
    if name in ("", "<lambda>"):
        what = "a lambda" if name == "<lambda>" else repr(inner)
        raise ConfigError(f"{what} has no name that a model can call: give one with name=")
    return str(name)


def is_async(run: Callable[..., Any]) -> bool:
    """Whether *run* is a coroutine function, or an object or a partial of one."""
    while isinstance(run, functools.partial):
        run = run.func
    return inspect.iscoroutinefunction(run) or inspect.iscoroutinefunction(
        getattr(run, "__call__", None)  # noqa: B004 - the method, to look at it
    )


def is_unbound(run: Callable[..., Any]) -> bool:
    """Whether *run* is a method as it stands in the body of its class."""
    if not inspect.isfunction(run):
        return False
    around = run.__qualname__.rpartition(".")[0]
    if not around or around.endswith("<locals>"):
        return False
    first = next(iter(inspect.signature(run).parameters.values()), None)
    return (
        first is not None
        and first.name in ("self", "cls")
        and first.annotation is inspect.Parameter.empty
    )


def _filled_in(function: Callable[..., Any]) -> set[str]:
    names: set[str] = set()
    while isinstance(function, functools.partial):
        names |= function.keywords.keys()
        function = function.func
    return names


def _namespaces(
    function: Callable[..., Any], context_type: type
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Where the names in annotations of *function* are looked up."""
    known = getattr(function, "__globals__", {})
    # It is often imported for the type checker alone.
    name = context_type.__name__
    local: dict[str, Any] = {name: known.get(name, context_type)}
    if "<locals>" in getattr(function, "__qualname__", ""):
        # Types defined beside a function that is defined in a function; pydantic does the same.
        frame = inspect.currentframe()
        while frame is not None and _is_ours(frame.f_globals.get("__name__", "")):
            frame = frame.f_back
        if frame is not None and frame.f_globals is known:
            local |= frame.f_locals
    return known, local


def _is_ours(module: str) -> bool:
    return module.partition(".")[0] == __name__.partition(".")[0]


def _mentions(hint: Any, wanted: type) -> bool:
    """Whether *hint* is *wanted*, or a union or an Annotated of it."""
    if isinstance(hint, type) and not get_args(hint):
        return issubclass(hint, wanted)
    kind = getattr(hint, "__origin__", None)
    if hasattr(hint, "__metadata__"):
        return _mentions(kind, wanted)
    if kind is Union or type(hint).__name__ in ("UnionType", "Union"):
        return any(_mentions(one, wanted) for one in get_args(hint))
    return False


def _or_none(hint: Any) -> Any:
    # What an Annotated says is said of the whole; within a union its alias would be lost.
    words = getattr(hint, "__metadata__", ())
    inner: Any = Union[hint.__origin__ if words else hint, None]  # noqa: UP007 - has no `|`
    return Annotated[(inner, *words)] if words else inner


def _is_json(value: Any) -> bool:
    from pydantic_core import to_jsonable_python

    try:
        json.dumps(to_jsonable_python(value), allow_nan=False)
    except (ValueError, TypeError, RecursionError):
        return False
    return True


def _json_schema(model: type[BaseModel]) -> dict[str, Any]:
    from pydantic.json_schema import GenerateJsonSchema

    class WithoutTitles(GenerateJsonSchema):
        def field_title_should_be_set(self, schema: Any) -> bool:
            return False

    schema = model.model_json_schema(schema_generator=WithoutTitles)
    schema.pop("title", None)
    # Titles of classes are their names, which the keys of $defs say already.
    for definition in schema.get("$defs", {}).values():
        definition.pop("title", None)
    json.dumps(schema, allow_nan=False)
    return schema


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _place(path: tuple[str | int, ...]) -> str:
    """*path* as it would be written: ``stops[2].city``."""
    place = ""
    for step in path:
        place += f"[{step}]" if isinstance(step, int) else f".{step}" if place else str(step)
    return place or "the whole"
