"""Middleware: functions around the execution of each attempt. The first one registered is the outermost.

    async def timed(call: StepCall, call_next: Next) -> Any:
        began = perf_counter()
        try:
            return await call_next()
        finally:
            print(call.address, perf_counter() - began)

What a middleware returns is the step's result, and what it raises is the attempt's error, steering exceptions
included. It always runs on the event loop: around a sync step `call_next()` is the way to the thread and back. A
timeout or an interruption reaches it as the cancellation of its `await`.
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import Any, cast

import msgspec

from treadle.authoring.context import step_context
from treadle.errors import UsageError
from treadle.runtime.step_context import RunningStep


class StepCall(msgspec.Struct, frozen=True):
    """The attempt that a middleware is around. `treadle.context()` works in it as in the step itself."""

    run_id: str
    address: str
    # The name under which the step's function is stored.
    action: str
    attempt: int
    generation: int
    # What the function is called with, by parameter; read-only.
    arguments: Mapping[str, Any]


Next = Callable[[], Awaitable[Any]]
Middleware = Callable[[StepCall, Next], Awaitable[Any]]
# Calls a step's function with arguments by parameter.
Invoke = Callable[[dict[str, Any]], Awaitable[Any]]


def around(invoke: Invoke, middleware: Sequence[Middleware]) -> Invoke:
    """The call of a function with all middleware around it."""

    async def call(values: dict[str, Any]) -> Any:
        step = cast("RunningStep", step_context.get())
        seen = StepCall(step.run_id, step.address, step.action, step.attempt, step.generation, MappingProxyType(values))
        next_: Next = partial(invoke, values)
        for one in reversed(middleware):
            next_ = partial(one, seen, next_)
        return await next_()

    return call


def check_middleware(given: Sequence[object]) -> None:
    """Refuse what cannot be awaited.

    Raises:
        UsageError: naming all that is no coroutine function.
    """
    wrong = [repr(one) for one in given if not _is_async(one)]
    if wrong:
        raise UsageError(f"middleware is `async def middleware(call, call_next)`; {', '.join(wrong)} is not")


def _is_async(one: object) -> bool:
    """Whether calling it gives a coroutine: a function, or an object with an async `__call__`."""
    return inspect.iscoroutinefunction(one) or inspect.iscoroutinefunction(vars(type(one)).get("__call__"))
