"""Starts that wait for a place in a full queue (`on_full="wait"`).

Nothing of such a start is stored: it is a coroutine of its caller, and gone with it. Those of one process stand in a
line for each queue; the first of it tries again whenever there may be a place: tasks were claimed here or taken back,
or another session woke this one. A wake-up that was lost costs no more than the pause between two sweeps.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from typing import TYPE_CHECKING

from treadle.core.commands import Task
from treadle.errors import LeaseLostError
from treadle.store.base import Answer

if TYPE_CHECKING:
    from treadle.runtime.node import Node

# A busy neighbour's wake-ups share one look.
LOOK_SECONDS = 0.05
Attempt = Callable[[], Awaitable[Answer]]


class Places:
    """The lines of a node's waiting starts, by queue."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._lines: dict[str, dict[asyncio.Event, None]] = {}
        self._looking: asyncio.TimerHandle | None = None

    async def wait(self, full: Answer, attempt: Attempt, until: float) -> Answer | None:
        """The answer to a start that found a queue full, once it is another one; None if it has waited `until` then.

        Raises:
            LeaseLostError: the application was closed meanwhile; nothing was started.
        """
        queue, free = full.queue, asyncio.Event()
        if not self._lines:
            self._node.watch.awaits_places(True)
        line = self._lines.setdefault(queue, {})
        line[free] = None
        try:
            while True:
                # Cleared before the store is asked: what is told meanwhile counts.
                free.clear()
                if self._node.closing:
                    raise LeaseLostError(
                        f"closed while a start waited for a place in queue {queue!r}; nothing was made"
                    )
                if until and self._node.environment.clock.now() >= until:
                    return None
                if next(iter(line)) is free:
                    answer = await attempt()
                    if (answer.queue, answer.on_full) != (queue, full.on_full):
                        return answer
                await self._sleep(free, until)
        finally:
            self._leave(queue, line, free)

    async def _sleep(self, free: asyncio.Event, until: float) -> None:
        """Wait until there may be a place, or it is time to look."""
        seconds = self._node.settings.sweep_seconds
        if until:
            seconds = min(seconds, max(until - self._node.environment.clock.now(), 0.0))
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await free.wait()

    def _leave(self, queue: str, line: dict[asyncio.Event, None], free: asyncio.Event) -> None:
        del line[free]
        if line:
            # There may be a place for the next one too.
            next(iter(line)).set()
        else:
            del self._lines[queue]
        if not self._lines:
            self._node.watch.awaits_places(False)

    def claimed(self, tasks: Iterable[Task]) -> None:
        """Tasks wait no more: there may be places where they did."""
        if self._lines:
            self._tell({task.queue for task in tasks})

    def look(self) -> None:
        """There may be a place in any queue."""
        self._looking = None
        self._tell(list(self._lines))

    def woken(self) -> None:
        """Another session has written something."""
        if self._lines and self._looking is None:
            self._looking = self._node.loop.call_later(LOOK_SECONDS, self.look)

    def _tell(self, queues: Iterable[str]) -> None:
        for queue in queues:
            if queue in self._lines:
                next(iter(self._lines[queue])).set()
