"""Undo as it is written: `@step(undo=..., prepare=..., reconcile=..., resource=...)`, checked when the step is defined.

The functions are stored under names made from the step's: `module:step:undo` and so on. They are called by parameter
name, with the step's arguments; `undo` and `reconcile` can also ask for `state` (what `prepare` returned) and `result`
(the step's result, None if it has none).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, Literal

from treadle.authoring.registry import Definition, durable_name
from treadle.core.plan import Undo
from treadle.errors import DefinitionError

# What an undo asks for beside the step's arguments.
STATE: Final = "state"
RESULT: Final = "result"
_GIVEN: Final = {STATE: "what prepare= returned", RESULT: "the step's result"}
_ANY_NUMBER: Final = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)

Role = Literal["undo", "prepare", "reconcile"]
Function = Callable[..., Any]


class UndoDefinition(Definition):
    """A function that takes part in the undo of a step. It takes what it asks for of what the step took."""

    def __init__(self, function: Function, *, kind: Role, defaults: Mapping[str, Any], **named: Any) -> None:
        super().__init__(function, kind=kind, **named)
        # The step's own defaults of what it asks for: a plan holds only the arguments that were given.
        self.defaults: Final = dict(defaults)


class Declared:
    """What a step declares about its undo, and what is wrong with it."""

    def __init__(
        self, undo: Function | None, prepare: Function | None, reconcile: Function | None, resource: str
    ) -> None:
        self.functions: dict[Role, Function] = {}
        for role, function in self._roles(undo, prepare, reconcile):
            if function is not None:
                self.functions[role] = function
        self.resource = resource

    @staticmethod
    def _roles(*functions: Function | None) -> Iterable[tuple[Role, Function | None]]:
        roles: tuple[Role, ...] = ("undo", "prepare", "reconcile")
        return zip(roles, functions, strict=True)

    def __bool__(self) -> bool:
        return bool(self.functions) or self.resource != ""

    def definitions(
        self, step: Function, name: str | None, aliases: Iterable[str], namespace: Mapping[str, Any] | None
    ) -> tuple[Undo, list[UndoDefinition]]:
        """The stored form, and the definitions of the functions.

        Raises:
            DefinitionError: all mistakes, one a line.
        """
        stored = durable_name(step, name)
        parameters = inspect.signature(step).parameters
        mistakes: list[str] = []
        made: list[UndoDefinition] = []
        if "undo" not in self.functions:
            given = [f"{role}=" for role in self.functions] + (["resource="] if self.resource else [])
            mistakes.append(f"{' and '.join(given)} without undo=: give the function that takes the step back")
        if not isinstance(self.resource, str):  # pyright: ignore[reportUnnecessaryIsInstance]  # callers without a checker
            mistakes.append(f"resource={self.resource!r}: give a text")
        for role, function in self.functions.items():
            known = len(mistakes)
            self._check(role, function, parameters, mistakes)
            if len(mistakes) > known:
                continue
            asked = inspect.signature(function).parameters
            defaults = {
                key: known.default
                for key, known in parameters.items()
                if key in asked and known.default is not inspect.Parameter.empty
            }
            try:
                definition = UndoDefinition(
                    function,
                    kind=role,
                    defaults=defaults,
                    name=f"{stored}:{role}",
                    aliases=[f"{alias}:{role}" for alias in aliases],
                    namespace=namespace,
                )
            except DefinitionError as error:
                mistakes.append(f"{role}=: {error}")
            else:
                made.append(definition)
        if mistakes:
            raise DefinitionError("\n".join(f"@step {stored!r}: {text}" for text in mistakes))
        names = {definition.kind: definition.name for definition in made}
        undo = Undo(names["undo"], names.get("prepare", ""), names.get("reconcile", ""), self.resource)
        return undo, made

    def _check(
        self, role: Role, function: Any, parameters: Mapping[str, inspect.Parameter], mistakes: list[str]
    ) -> None:
        """Note what the function asks for that it will not get."""
        if hasattr(function, "definition"):
            mistakes.append(f"{role}={function!r}: give a plain function; it is no step of its own")
            return
        if not inspect.isroutine(function):
            mistakes.append(f"{role}={function!r}: give a function")
            return
        for name, parameter in inspect.signature(function).parameters.items():
            given = role != "prepare" and name in _GIVEN
            if parameter.kind in _ANY_NUMBER:
                mistakes.append(f"{role}= takes any number of arguments; name those of the step that it needs")
            elif given and name in parameters:
                mistakes.append(f"{role}= asks for {name!r}, {_GIVEN[name]}, but the step has a parameter of that name")
            elif given and name == STATE and "prepare" not in self.functions:
                mistakes.append(f"{role}= asks for {name!r}, but there is no prepare= that would return it")
            elif not given and name not in parameters and parameter.default is inspect.Parameter.empty:
                mistakes.append(f"{role}= asks for {name!r}; the step has {', '.join(parameters) or 'no parameters'}")
