"""Turns: async steps that do not wait share a task of asyncio's, one after the other; one that waits keeps it.

A task costs more than all else that happens to a small step, and a step that never waits needs none of its own.
So one task takes the attempts in their order. The step that waits first keeps it, and is from then on what it would
have been in a task of its own: its `current_task()` stays the same, and only it can be cancelled. Those behind it go
to another task. Each step has a context of its own from beginning to end.
"""

from __future__ import annotations

import asyncio
import types
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Generator
from contextvars import Context
from typing import Any, Generic, Protocol, TypeVar

T = TypeVar("T")
# Attempts that come while a task works, as those of a chain do, and are still taken before the loop gets its turn:
# enough to make the loop's own cost small, few enough to hold up nobody.
FEW = 16
# What an `async def` gives when it is called.
_COROUTINE: type[Any] = types.CoroutineType


class Turn(Protocol):
    """An attempt, as far as its turn goes."""

    # The task that it runs in; None while it is waiting for its turn.
    handle: asyncio.Task[None] | None

    @property
    def settled(self) -> bool:
        """Whether it is over before it began."""
        ...


A = TypeVar("A", bound=Turn)


class Turns(Generic[A]):
    """Executes attempts in their order. All methods are for the event loop's thread."""

    def __init__(self, loop: asyncio.AbstractEventLoop, execute: Callable[[A], Awaitable[None]]) -> None:
        self._loop = loop
        self._execute = execute
        self._waiting: deque[A] = deque()
        # The task that takes what waits, and whether it has yet to begin.
        self._taker: asyncio.Task[None] | None = None
        self._coming = False

    def add(self, attempt: A) -> None:
        """Execute an attempt soon."""
        self._waiting.append(attempt)
        if self._taker is None or self._taker.done():
            self._begin()

    def keep(self, attempt: A) -> None:
        """The attempt may wait from here on: its task is its own, and those behind it get another."""
        if attempt.handle is self._taker:
            self._taker = None
            if self._waiting:
                self._begin()

    def clear(self) -> None:
        """Forget what has not begun."""
        self._waiting.clear()

    def _begin(self) -> None:
        self._coming = True
        task = self._loop.create_task(self._take())
        # An eager task has begun, and may have let go of the turn again.
        if self._coming:
            self._taker = task

    async def _take(self) -> None:
        taker = asyncio.current_task()
        assert taker is not None
        self._taker = taker
        self._coming = False
        waiting = self._waiting
        left = max(len(waiting), FEW)
        try:
            while waiting and left and self._taker is taker:
                attempt = waiting.popleft()
                if attempt.settled:
                    continue
                left -= 1
                attempt.handle = taker
                await self._execute(attempt)
                if taker.cancelling():
                    # Meant for the step that is over, and not for those behind it.
                    break
        finally:
            if self._taker is taker:
                self._taker = None
                if waiting:
                    self._begin()


def begin(function: Callable[..., Any], *args: Any) -> tuple[Coroutine[Any, Any, Any], object]:
    """Let what a function makes run until it waits; gives its coroutine, and what that waits for.

    Raises:
        StopIteration: it has returned, without ever waiting.
    """
    try:
        made = function(*args)
    except StopIteration as error:
        raise RuntimeError(f"{function!r} raised StopIteration") from error
    # A function may be made async by hand, and give another awaitable.
    coroutine: Coroutine[Any, Any, Any] = made if type(made) is _COROUTINE else _await(made)
    return coroutine, coroutine.send(None)


async def _await(made: Awaitable[T]) -> T:
    return await made


@types.coroutine
def rest(scope: Context, coroutine: Coroutine[Any, Any, T], awaited: object) -> Generator[object, None, T]:
    """Go on with a coroutine that has begun in `scope` and waits for `awaited`; gives what it returns."""
    while True:
        thrown: BaseException | None = None
        try:
            yield awaited
        except BaseException as error:  # noqa: BLE001 - whatever comes is the coroutine's
            thrown = error
        try:
            awaited = scope.run(coroutine.send, None) if thrown is None else scope.run(coroutine.throw, thrown)
        except StopIteration as end:
            result: T = end.value
            return result
        finally:
            # An exception holds the frames that it has passed, and this is one of them.
            thrown = None
