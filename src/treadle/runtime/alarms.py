"""Alarms: the deadlines of the runs that an engine decides, so that they pass at their time although nobody comes by.

A run with a deadline that has not passed belongs to the session that decides it until it has its outcome, even while it
waits for nothing that is in the store. So there is always somebody to set its alarm: when that session ends or dies,
its runs get an input, and whoever takes one on by that sets it anew. A run that was copied has an input of that kind
which stays where it is as long as the deadline is awaited: a copy that nobody works on keeps the journal of its source.
"""

from __future__ import annotations

import asyncio
from heapq import heappop, heappush
from typing import TYPE_CHECKING, Final

from treadle.core.deadlines import is_awaited
from treadle.core.state import RunState
from treadle.store.base import Append, InboxInput

if TYPE_CHECKING:
    from treadle.runtime.engine import Engine

# The id of the input that a copied run has.
MARK: Final = "deadline"
# The wall clock may be a little behind when the loop's says that it is time; it is asked again then.
_PAUSE_SECONDS: Final = 0.001
_AGAIN_SECONDS: Final = 1.0
# So many alarms of runs that are gone are kept besides one for each run.
_SPARE: Final = 64


class Alarms:
    """When which run is to be looked at. All methods are for the event loop's thread."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        # (time, key of the run), as a heap; that of a run which is gone is found out when its time comes.
        self._heap: list[tuple[float, str]] = []
        self._timer: asyncio.TimerHandle | None = None
        # Runs with such an input.
        self._marked: set[str] = set()

    def set(self, key: str, at: float) -> None:
        """Have a run looked at then."""
        runs = self._engine.runs
        if len(self._heap) > 2 * len(runs) + _SPARE:
            self._heap = sorted({alarm for alarm in self._heap if alarm[1] in runs})
        heappush(self._heap, (at, key))
        if self._heap[0] == (at, key):
            self._arm()

    def is_mark(self, state: RunState, item: InboxInput) -> bool:
        """Whether an input is only there so that somebody takes the run on; it is kept until it may go."""
        if item.id != MARK or not is_awaited(state):
            return False
        self._marked.add(state.key)
        return True

    def unmark(self, state: RunState, append: Append) -> None:
        """Let an append after which the deadline is not awaited take the input away."""
        if state.key in self._marked and not is_awaited(state):
            # If the append has no effect, the run is loaded again, and found with its input.
            self._marked.discard(state.key)
            append.consumed = [*append.consumed, MARK]

    def look(self) -> None:
        """Look at the runs whose time has come by the wall clock, which may have been set."""
        now = self._engine.clock.now()
        while self._heap and self._heap[0][0] <= now:
            key = heappop(self._heap)[1]
            if self._engine.look_at(key):
                # It waits for an append that is in flight, or the clock has been set back since.
                heappush(self._heap, (now + _AGAIN_SECONDS, key))
        self._arm()

    def _arm(self) -> None:
        self.close()
        if self._heap:
            left = self._heap[0][0] - self._engine.clock.now()
            self._timer = asyncio.get_running_loop().call_later(max(left, _PAUSE_SECONDS), self.look)

    def close(self) -> None:
        """Have no run looked at, until the next alarm is set."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
