"""Values that come and go piece by piece: what a step yields, and parameters that are read while the step runs.

A step that yields gives a list whose items are stored as they are produced. A parameter of an `async def` step that is
an `AsyncIterable[T]` or `AsyncIterator[T]`, and one of a `def` step that is an `Iterable[T]` or `Iterator[T]`, takes a
list that is read as far as the step has come.
"""

from __future__ import annotations

import collections.abc
import inspect
import typing
from collections.abc import AsyncIterable, AsyncIterator, Callable
from typing import Any, Final, TypeVar, get_args, get_origin

from treadle.errors import DefinitionError

R = TypeVar("R")


class Results(list[R], AsyncIterable[R]):
    """What a gather, or a step that yields, gives to type checkers: a list that may also be read piece by piece.

    In a test it is what a step is called with that takes an `AsyncIterable`: `await total(Results([1, 2]))`.
    """

    async def __aiter__(self) -> AsyncIterator[R]:
        for item in self:
            yield item


_ASYNC: Final[frozenset[object]] = frozenset({collections.abc.AsyncIterable, collections.abc.AsyncIterator})
_SYNC: Final[frozenset[object]] = frozenset({collections.abc.Iterable, collections.abc.Iterator})
_ITERATORS: Final[frozenset[object]] = frozenset({collections.abc.AsyncIterator, collections.abc.Iterator})
_YIELDED: Final[frozenset[object]] = _ASYNC | _SYNC | {collections.abc.AsyncGenerator, collections.abc.Generator}


def does_yield(function: Callable[..., Any]) -> bool:
    """Whether a function is a generator, async or not."""
    return inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function)


def runs_on_loop(function: Callable[..., Any]) -> bool:
    """Whether a function is executed on the event loop, not in a thread."""
    return inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function)


def yielded_item(function: Callable[..., Any], what: str, annotation: Any) -> Any:
    """The type of what a generator yields, by its return annotation.

    Raises:
        DefinitionError: the annotation is not that of a generator.
    """
    if annotation is Any:
        return Any
    bare = _bare(annotation)
    if (get_origin(bare) or bare) not in _YIELDED:
        kind = "AsyncIterator" if inspect.isasyncgenfunction(function) else "Iterator"
        raise DefinitionError(f"{what} yields, so it returns {kind}[...], not {annotation!r}")
    args = get_args(bare)
    return args[0] if args else Any


class Reading(typing.NamedTuple):
    """How a parameter is read piece by piece: the type of an item, whether it is an iterator, and where it is read."""

    item: Any
    iterator: bool
    on_loop: bool


def reading_of(function: Callable[..., Any], what: str, name: str, annotation: Any) -> Reading | None:
    """How a step's parameter is read piece by piece; None for one that is read as a whole.

    Raises:
        DefinitionError: the step could not wait for the items.
    """
    bare = _bare(annotation)
    origin: object = get_origin(bare) or bare
    try:
        piecewise = origin in (_ASYNC | _SYNC)
    except TypeError:
        return None
    if not piecewise:
        return None
    on_loop = runs_on_loop(function)
    if on_loop and origin is collections.abc.Iterator:
        raise DefinitionError(
            f"{what}: parameter {name!r} is an Iterator, which would block the event loop while items are read; "
            "take AsyncIterator, or a list"
        )
    if not on_loop and origin in _ASYNC:
        raise DefinitionError(
            f"{what}: parameter {name!r} is read on an event loop, and a def step runs in a thread; take Iterator, or "
            "make the step async def"
        )
    if on_loop and origin in _SYNC:
        return None
    args = get_args(bare)
    return Reading(args[0] if args else Any, origin in _ITERATORS, on_loop)


def _bare(annotation: Any) -> Any:
    while get_origin(annotation) is typing.Annotated:
        annotation = annotation.__origin__
    return annotation
