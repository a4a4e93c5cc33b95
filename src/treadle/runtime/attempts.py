"""Attempts as a worker has them, and what a worker asks of what is around it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Protocol

import msgspec

from treadle.core.commands import Call, Task
from treadle.core.inputs import Outcome
from treadle.core.plan import Fragment
from treadle.runtime.payloads import Row
from treadle.runtime.projections import ProjectionRoom
from treadle.runtime.questions import Questions
from treadle.runtime.slots import ASYNC
from treadle.runtime.step_context import RunningStep

# An attempt has its outcome.
Finish = Callable[[Task, Outcome, list[Row]], None]
# A task is to wait until a time, with another call.
Postpone = Callable[[Task, Call, float], None]


class Steps(Protocol):
    """What a running step asks of the engine while it runs."""

    async def add_now(self, task: Task, fragments: list[Fragment]) -> None:
        """Add steps at once."""
        ...

    def progress(self, task: Task, text: str) -> None:
        """Store a progress text."""
        ...

    @property
    def projections(self) -> ProjectionRoom:
        """The application's projections."""
        ...

    @property
    def questions(self) -> Questions:
        """What a step may ask about its run."""
        ...

    async def call(self, task: Task, values: dict[str, Any], started_at: float) -> str | None:
        """Make the run that a step calls, find it, or ask it to undo what it did: its result, or None if it goes on."""
        ...


class Attempt(msgspec.Struct, eq=False, gc=False):
    """One live attempt.

    Thousands may wait for their turn, so they are outside the garbage collector: `end` cuts what refers back to them.
    """

    task: Task
    kind: int
    started_at: float
    # What its code can ask, once that begins.
    context: RunningStep | None = None
    # Its outcome went to the engine; nothing that comes later counts.
    settled: bool = False
    # The task that it runs in; None while an async one has not begun.
    handle: asyncio.Task[None] | None = None
    # The alarms for its timeout or its run's deadline, and for its silence; when it reported progress last.
    timer: asyncio.TimerHandle | None = None
    silence: asyncio.TimerHandle | None = None
    heard_at: float = 0.0
    # Its coroutine is in a middleware around a thread.
    around_thread: bool = False
    # The task of a call has begun: one that is cancelled before that never runs at all.
    calling: bool = False

    def end(self) -> asyncio.Task[None] | None:
        """Whatever its code still does no longer counts; gives the task that it runs in."""
        handle, self.handle = self.handle, None
        self.settled = True
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None
        if self.silence is not None:
            self.silence.cancel()
            self.silence = None
        return handle

    @property
    def cancellable(self) -> bool:
        """Whether its coroutine runs code that has to be told when the attempt is over."""
        return self.kind == ASYNC or self.around_thread

    @property
    def is_unborn_call(self) -> bool:
        """Whether it is to make a run, and its task has not begun."""
        return self.task.call.child is not None and not self.calling

    def facts(self) -> dict[str, Any]:
        """What its outcome says of it, whatever that is."""
        task = self.task
        return {
            "number": task.number,
            "generation": task.generation,
            "attempt": task.attempt,
            "lease": task.lease,
            "started_at": self.started_at,
        }
