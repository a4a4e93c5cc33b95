"""Turns: async steps that do not wait share a task of asyncio's, one after the other; one that waits keeps it.

A task costs more than all else that happens to a small step, and a step that never waits needs none of its own.
So one task takes the attempts in their order. The step that waits first keeps it, and is from then on what it would
have been in a task of its own: its `current_task()` stays the same, and only it can be cancelled. Those behind it go
to another task. Each step has a context of its own from beginning to end.

For the same reason steps that do not wait share a coroutine: a `Carrier` awaits one after the other, so that none has
to tell what it returned by an exception. Who waits keeps the carrier like the task.
"""

from __future__ import annotations

import asyncio
import types
from collections import deque
from collections.abc import Callable, Coroutine, Generator, Iterator, Sequence
from contextvars import Context
from typing import Any, Final, Generic, Protocol, TypeVar

from treadle.authoring.context import StepContext, step_context

# Attempts that come while a task works, as those of a chain do, and are still taken before the loop gets its turn:
# enough to make the loop's own cost small, few enough to hold up nobody.
FEW = 16
# What a carrier is given: the step's context if it has one, and what makes the awaitable.
_Load = tuple[StepContext | None, Callable[..., Any], Sequence[Any]]
# What a carrier gives when a step has returned; anything else is what the step waits for.
RETURNED: Final = object()


class Turn(Protocol):
    """An attempt, as far as its turn goes."""

    # The task that it runs in; None while it is waiting for its turn.
    handle: asyncio.Task[None] | None

    @property
    def settled(self) -> bool:
        """Whether it is over before it began."""
        ...


A = TypeVar("A", bound=Turn)


class Carrier:
    """A coroutine that awaits what it is given, one after the other. What a step raises is its end."""

    __slots__ = ("_result", "send", "throw")

    def __init__(self) -> None:
        self._result: Any = None
        work = self._work()
        # By `Context.run(carrier.send, load)` a step runs until it waits.
        self.send: Callable[[_Load | None], object] = work.send
        self.throw = work.throw
        work.send(None)

    async def _work(self) -> None:
        while True:
            told, function, args = await _given()
            if told is not None:
                step_context.set(told)
            self._result = await function(*args)
            # It may be long until the next one comes.
            del told, function, args

    def take(self) -> Any:
        """What the step has returned; once."""
        result, self._result = self._result, None
        return result


@types.coroutine
def _given() -> Generator[object, _Load, _Load]:
    return (yield RETURNED)


@types.coroutine
def rest(scope: Context, carrier: Carrier, awaited: object) -> Generator[object, None, Any]:
    """Go on with a step that has begun in `scope` and waits for `awaited`; gives what it returns."""
    while awaited is not RETURNED:
        thrown: BaseException | None = None
        try:
            yield awaited
        except BaseException as error:  # noqa: BLE001 - whatever comes is the coroutine's
            thrown = error
        try:
            awaited = scope.run(carrier.send, None) if thrown is None else scope.run(carrier.throw, thrown)
        finally:
            # An exception holds the frames that it has passed, and this is one of them.
            thrown = None
    return carrier.take()


class Turns(Generic[A]):
    """Executes attempts in their order. All methods are for the event loop's thread.

    `execute` gets the attempts whose turn has come, and does with each all that there is to do without waiting, by the
    present `carrier`. It gives the rest of the first one that waits or has broken the carrier, None if there is none.
    `idle` is called when no attempt waits for its turn any more; those that it adds go on in the same task.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        execute: Callable[[Iterator[A]], Coroutine[Any, Any, None] | None],
        idle: Callable[[], None] | None = None,
    ) -> None:
        self._loop = loop
        self._execute = execute
        self._idle = idle
        # What waits for its turn; who adds to it calls `go_on`.
        self.waiting: deque[A] = deque()
        # The task that takes what waits, and whether it has yet to begin.
        self._taker: asyncio.Task[None] | None = None
        self._coming = False
        # Whether an attempt is being executed as far as it goes without waiting; `idle` follows.
        self.busy = False
        # A task that is eager to begin would begin inside the one that it takes over from.
        self._nested = False
        self.carrier = Carrier()

    def add(self, attempt: A) -> None:
        """Execute an attempt soon."""
        self.waiting.append(attempt)
        self.go_on()

    def go_on(self) -> None:
        """Execute what waits, unless a task is at it."""
        if (self._taker is None or self._taker.done()) and self.waiting:
            self._begin()

    def clear(self) -> None:
        """Forget what has not begun."""
        self.waiting.clear()

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
        if self._nested:
            await asyncio.sleep(0)
        self.busy = True
        try:
            if (ending := self._execute(self._in_turn(taker))) is not None:
                # The task, and its carrier, are the attempt's own; those behind it get others.
                self.renew()
                self.busy = False
                self._leave()
                await ending
        except BaseException:
            if self._taker is taker:
                self.renew()
            raise
        finally:
            if self._taker is taker:
                self.busy = False
                self._leave()

    def _in_turn(self, taker: asyncio.Task[None]) -> Iterator[A]:
        """The attempts whose turn it is in this task, each when the one before it has ended."""
        waiting, idle, cancelling = self.waiting, self._idle, taker.cancelling
        left = max(len(waiting), FEW)
        while waiting and left:
            attempt = waiting.popleft()
            if attempt.settled:
                continue
            left -= 1
            attempt.handle = taker
            yield attempt
            if cancelling():
                # Meant for the step that is over, and not for those behind it.
                break
            if idle is not None and not waiting:
                idle()

    def renew(self) -> None:
        """Take another carrier: the present one has ended, or is an attempt's own."""
        self.carrier = Carrier()

    def _leave(self) -> None:
        self._taker = None
        if self.waiting:
            self._nested = True
            self._begin()
            self._nested = False
        elif self._idle is not None:
            self._idle()
