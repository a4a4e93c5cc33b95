"""The built-in actions: what the kernel asks workers for, since it does not see values that do not ride in events."""

from __future__ import annotations

from collections.abc import AsyncIterable, Callable
from typing import Any, Final

from treadle.authoring.registry import Definition, Registry
from treadle.authoring.sleep import sleep
from treadle.core.expressions import evaluate, holds, lookup_in, parse
from treadle.core.keys import KEY, key_text
from treadle.core.opened import ITEMS, PAUSE, TEST, TRUTH
from treadle.core.undo_attempts import UNWIND
from treadle.runtime.streams import Stream, Yielded


class Listed:
    """The items of a gather, found by `items`, as plain JSON trees: the worker stores them in chunks."""

    __slots__ = ("items",)

    def __init__(self, items: list[object]) -> None:
        self.items = items


async def truth(value: Any) -> bool:
    """The value itself; it must be a bool."""
    if not isinstance(value, bool):
        raise TypeError(f"the condition's value is a {type(value).__name__}, not a bool")
    return value


async def test(text: str, values: dict[str, Any]) -> bool:
    """Whether an expression holds for the values of its roots."""
    return holds(parse(text), lookup_in(values))


async def key(text: str, values: dict[str, Any]) -> str:
    """The key that an expression gives for the values of its roots."""
    return key_text(evaluate(parse(text), lookup_in(values)))


async def items(items: AsyncIterable[Any]) -> Any:
    """The items of a list; those of one that was yielded stay where they are."""
    assert isinstance(items, Stream)
    if items.stored is not None:
        return Yielded("null", items.stored)
    return Listed(await items.trees())


async def unwind() -> None:
    """Nothing: the worker asks the run that was called (`children.ask_child`)."""


async def pause() -> None:
    """Nothing: the task's own start time is the timer."""


_STEPS: Final[dict[str, Callable[..., Any]]] = {ITEMS: items, KEY: key, PAUSE: pause, UNWIND: unwind}
_PREDICATES: Final[dict[str, Callable[..., Any]]] = {TRUTH: truth, TEST: test}


def with_builtins(registry: Registry) -> Registry:
    """The registry, with the built-in actions in it."""
    if registry.find(TRUTH) is None:
        registry.add(sleep.definition)
        for name, function in _STEPS.items():
            registry.add(Definition(function, name=name))
        for name, function in _PREDICATES.items():
            registry.add(Definition(function, kind="predicate", name=name))
    return registry
