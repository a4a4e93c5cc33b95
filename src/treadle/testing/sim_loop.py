"""An event loop with virtual time, on which a node can die without a single `finally` running.

Time stands still while something is ready and jumps to the next timer when nothing is. A node is a context: what
is scheduled in the context of a dead node never runs, and what a dead node held is kept, so that nothing of it is
collected while the simulation goes on. Handles run in the order in which asyncio put them; races come from seeded
delays at the ports, never from shuffling.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
from collections.abc import Callable, Coroutine, Generator
from typing import Any, TypeVarTuple, Unpack

Ts = TypeVarTuple("Ts")


class NodeCrashed(BaseException):
    """The node that made this call is dead; nothing of it may go on. Never seen by code that lives."""


class Life:
    """One life of a node: what is scheduled in its context dies with it."""

    __slots__ = ("dead", "name")

    def __init__(self, name: str) -> None:
        self.name = name
        self.dead = False

    def __repr__(self) -> str:
        return f"<{'dead' if self.dead else 'living'} {self.name}>"


LIFE: contextvars.ContextVar[Life | None] = contextvars.ContextVar("treadle_sim_life", default=None)


class Deadlock(Exception):  # noqa: N818 - it is a finding, not an error of a caller
    """Nothing is ready and no timer is set: nothing can ever happen again."""


class _VirtualSelector:
    """Waits by setting the clock."""

    def __init__(self, loop: SimLoop) -> None:
        self._loop = loop

    def select(self, timeout: float | None) -> list[Any]:
        if timeout is None:
            self._loop.deadlocked()
        elif timeout > 0:
            self._loop.pass_time(timeout)
        return []

    def close(self) -> None:
        """There is nothing to close."""


class SimLoop(asyncio.BaseEventLoop):
    """The loop. `time()` is the virtual time in seconds since the simulation began."""

    def __init__(self, on_deadlock: Callable[[], None]) -> None:
        super().__init__()
        self._virtual = 0.0
        self._selector = _VirtualSelector(self)
        self._clock_resolution = 1e-9
        self._on_deadlock = on_deadlock
        # Everything a dead node could still have run, and every task: nothing is collected before `dissolve`.
        self._kept: list[object] = []
        self._tasks: list[asyncio.Task[Any]] = []
        self._purge_at = 256
        self.handles = 0

    # -- what BaseEventLoop leaves to its subclasses -----------------------------------------------------------

    def time(self) -> float:
        """The virtual time."""
        return self._virtual

    def pass_time(self, seconds: float) -> None:
        """Let the virtual time pass."""
        self._virtual += seconds

    def deadlocked(self) -> None:
        """Report that nothing can happen any more, and stop."""
        self._on_deadlock()
        self.stop()

    def _process_events(self, event_list: list[Any]) -> None:
        """There are no files to be ready."""

    def _write_to_self(self) -> None:
        """There is no other thread to wake the loop from."""

    # -- the dead do not act -------------------------------------------------------------------------------------

    def call_soon(
        self, callback: Callable[[Unpack[Ts]], object], *args: *Ts, context: contextvars.Context | None = None
    ) -> asyncio.Handle:
        """Schedule for the next iteration, unless the caller's (or the context's) node is dead."""
        self.handles += 1
        life = LIFE.get() if context is None else context.get(LIFE)
        if life is not None and life.dead:
            self._kept.append((callback, args, context))
            handle = asyncio.Handle(_nothing, (), self, context)
            handle.cancel()
            return handle
        return super().call_soon(callback, *args, context=context)

    def call_soon_threadsafe(
        self, callback: Callable[[Unpack[Ts]], object], *args: *Ts, context: contextvars.Context | None = None
    ) -> asyncio.Handle:
        """As `call_soon`: a simulation has one thread."""
        return self.call_soon(callback, *args, context=context)

    def create_task(
        self, coro: Generator[Any, None, Any] | Coroutine[Any, Any, Any], *, name: object = None, **options: Any
    ) -> asyncio.Task[Any]:
        """Make a task and keep it, so that tasks can be listed in the order of their making."""
        task = super().create_task(coro, name=name, **options)
        self._tasks.append(task)
        if len(self._tasks) >= self._purge_at:
            self._tasks = [one for one in self._tasks if not one.done()]
            self._purge_at = 256 + 2 * len(self._tasks)
        return task

    def kill(self, life: Life) -> None:
        """Kill a node: all that was scheduled for it is taken off the loop, and kept."""
        life.dead = True
        for handle in self._handles():
            if not handle.cancelled() and handle._context.get(LIFE) is life:  # noqa: SLF001 - the only way to it
                # Cancelling a handle lets go of its callback; without this its coroutine would be collected.
                self._kept.append((handle._callback, handle._args))  # noqa: SLF001 - as above
                handle.cancel()

    # -- the end -------------------------------------------------------------------------------------------------

    def _handles(self) -> list[Any]:
        """All handles that wait; asyncio gives no other way to them."""
        return [*vars(self)["_ready"], *vars(self)["_scheduled"]]

    def pending(self) -> list[asyncio.Task[Any]]:
        """The tasks that are not done, oldest first."""
        return [task for task in self._tasks if not task.done()]

    def dissolve(self) -> None:
        """Let go of everything. What coroutines do while they are closed no longer counts."""
        for task in self._tasks:
            # The task may be pending for ever: its node is dead.
            known: Any = task
            known._log_destroy_pending = False  # noqa: SLF001 - else asyncio complains of it when it is collected
            if not task.done():
                coro = task.get_coro()
                with contextlib.suppress(BaseException):
                    coro.close()
        self._kept.clear()
        self._tasks.clear()
        vars(self)["_ready"].clear()
        vars(self)["_scheduled"].clear()
        self.close()


def _nothing() -> None:
    """What a dead node's handle would do."""


def place_of(task: asyncio.Task[Any]) -> str:
    """Where a task stands: the innermost frames of its coroutine."""
    frames = task.get_stack(limit=4)
    where = " < ".join(f"{frame.f_code.co_name}:{frame.f_lineno}" for frame in reversed(frames))
    coro: Any = task.get_coro()
    inner = getattr(coro, "cr_await", None)
    while inner is not None and getattr(inner, "cr_frame", None) is not None:
        frame = inner.cr_frame
        where += f" < {frame.f_code.co_name}:{frame.f_lineno}"
        inner = inner.cr_await
    return f"{task.get_name()} {getattr(coro, '__qualname__', coro)} at {where or 'its start'}"
