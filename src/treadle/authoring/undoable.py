"""Undo of cells that are executed in process: any callables, called by the names of what they ask for."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, Final

from treadle.authoring.undo import RESULT, STATE, Declared
from treadle.core.plan import Undo
from treadle.errors import DefinitionError

Function = Callable[..., Any]


class Undoable:
    """A cell with an undo, for a Phases block that is executed in process; closures and lambdas included.

    Args:
        function: the cell.
        undo: takes back what the cell did. It asks by name for the cell's own parameter, `state` and `result`.
        prepare: looks before the cell acts; what it returns is `state`.
        reconcile: asked before the undo whether that is safe; False leaves things as they are.
        resource: undos of one resource are made one at a time.

    Stored, a cell is a `@step` function, which has its undo there.
    """

    __slots__ = ("declared", "function")

    def __init__(
        self,
        function: Function,
        *,
        undo: Function,
        prepare: Function | None = None,
        reconcile: Function | None = None,
        resource: str = "",
    ) -> None:
        self.function: Final = function
        self.declared: Final = Declared(undo, prepare, reconcile, resource)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The cell itself, as unit tests call it."""
        return self.function(*args, **kwargs)


class UndoCall:
    """A function that takes part in the undo of a cell, and the names that it asks for."""

    __slots__ = ("_cell", "_defaults", "_function", "_names", "is_async")

    def __init__(self, function: Function, names: list[str], cell: str, defaults: Mapping[str, Any]) -> None:
        self._function = function
        self._names = names
        # The parameter of the cell that takes what it is told, "" if it takes nothing; what its others are by default.
        self._cell = cell
        self._defaults = defaults
        self.is_async: Final = inspect.iscoroutinefunction(function)

    def __call__(self, told: Any, given: Mapping[str, Any]) -> Any:
        """Call it with those that it asks for of what there is."""
        known = {**self._defaults, **given}
        if self._cell:
            known[self._cell] = told
        return self._function(**{name: known[name] for name in self._names if name in known})


def undo_calls(
    name: str, cell: Function, declared: Declared, mistakes: list[DefinitionError]
) -> tuple[Undo, dict[str, UndoCall]]:
    """The undo of a cell as the kernel knows it, and what the names in it stand for."""
    parameters = _parameters(cell)
    # Those a cell function may have besides keep their defaults.
    first = next(iter(parameters), "")
    defaults = {key: known.default for key, known in parameters.items() if known.default is not known.empty}
    calls: dict[str, UndoCall] = {}
    for role, function in declared.functions.items():
        asked: list[str] = []
        for key, parameter in _parameters(function).items():
            given = role != "prepare" and key in (STATE, RESULT)
            if not (given or key in parameters or parameter.default is not parameter.empty):
                has = ", ".join(parameters) or "no parameters"
                mistakes.append(DefinitionError(f"{name}: {role}= asks for {key!r}; the cell has {has}"))
            asked.append(key)
        calls[f"{role} of {name}"] = UndoCall(function, asked, first, defaults)
    names = {
        role: f"{role} of {name}" if role in declared.functions else "" for role in ("undo", "prepare", "reconcile")
    }
    return Undo(names["undo"], names["prepare"], names["reconcile"], declared.resource), calls


def _parameters(function: Function) -> dict[str, inspect.Parameter]:
    try:
        found = inspect.signature(function).parameters
    except (TypeError, ValueError):
        return {}
    return {key: known for key, known in found.items() if known.kind not in (known.VAR_POSITIONAL, known.VAR_KEYWORD)}
