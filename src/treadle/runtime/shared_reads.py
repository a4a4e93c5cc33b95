"""Shared reads: attempts that need parts of one stored value wait for it together, and cost nothing meanwhile.

The items of a gather lie in chunks of some hundreds, and as many attempts begin before their chunk is read. A task of
asyncio's for each of them would cost more than the attempt itself.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

from treadle.core.events import Handle, Pick
from treadle.core.values import bare
from treadle.runtime.attempts import Attempt
from treadle.runtime.payloads import CACHED_TREES, Payloads


class SharedReads:
    """Attempts that wait for stored values. All methods are for the event loop's thread."""

    def __init__(self, payloads: Payloads, loop: asyncio.AbstractEventLoop, again: Callable[[Attempt], None]) -> None:
        self._payloads = payloads
        self._loop = loop
        # Executes an attempt whose value was read, whatever came of that.
        self._again = again
        self._waiting: dict[tuple[str, Handle], list[Attempt]] = {}
        # Values that were read and not kept, since they are large: each attempt reads such a one for itself.
        self._unkept: dict[tuple[str, Handle], None] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        # The value that was asked for last, since most attempts that follow need a part of the same; who waits for it,
        # None where it was at hand. Where it is gone again, each reads for itself.
        self._last: Handle = ""
        self._queue: list[Attempt] | None = None

    def wait(self, attempt: Attempt) -> bool:
        """Let an attempt that has not begun wait for the stored value that it needs a part of; False if it need not."""
        last, queue = self._last, self._queue
        for arg in attempt.task.call.args.values():
            if type(arg) is Pick:
                if arg.value is not last:
                    return self._look(attempt)
                if queue is not None:
                    queue.append(attempt)
                    return True
        return False

    def _look(self, attempt: Attempt) -> bool:
        task = attempt.task
        key, cached = task.run, self._payloads.cached
        for arg in task.call.args.values():
            if type(arg) is not Pick:
                continue
            if cached(key, arg.value) is None:
                place = (key, arg.value)
                if place not in self._waiting:
                    if place in self._unkept or bare(arg.value).startswith("="):
                        continue
                    self._waiting[place] = []
                    reading = self._loop.create_task(self._read(place))
                    self._tasks.add(reading)
                    reading.add_done_callback(self._tasks.discard)
                self._last, self._queue = arg.value, self._waiting[place]
                self._queue.append(attempt)
                return True
            self._last, self._queue = arg.value, None
        return False

    def clear(self) -> None:
        """Forget all who wait."""
        self._waiting.clear()
        self._last = ""

    async def _read(self, place: tuple[str, Handle]) -> None:
        key, handle = place
        # What is wrong with the value each attempt finds out for itself, and deals with it as its own.
        with contextlib.suppress(Exception):
            await self._payloads.trees(key, [handle])
        if self._payloads.cached(key, handle) is None:
            self._unkept[place] = None
            if len(self._unkept) > CACHED_TREES:
                del self._unkept[next(iter(self._unkept))]
        self._last = ""
        for attempt in self._waiting.pop(place, ()):
            self._again(attempt)
