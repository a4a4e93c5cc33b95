"""The hub: wakes whoever waits for a run to change, in this process or by a datagram from another."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from itertools import islice
from typing import Final

from treadle.core.events import RunSettled

Changed = asyncio.Future[RunSettled | None]
# So many runs of this process are looked at together: what keeps the event loop busy for some milliseconds.
LOOKS: Final = 100


class Hub:
    """Waiters by run key. A wake-up says "look again"; only an end in this process brings the event with it."""

    def __init__(self, on_watching: Callable[[bool], None]) -> None:
        self._waiters: dict[str, dict[Changed, None]] = {}
        # Waiters for the outcome only, so that a run's every step does not wake them.
        self._ends: dict[str, dict[Changed, None]] = {}
        # Told when the first waiter comes and when the last one goes, so that other sessions send wake-ups.
        self._on_watching = on_watching

    def wait(self, key: str, *, end: bool = False) -> Changed:
        """A future that is resolved at the next change of the run (or at its end); take it before looking."""
        future: Changed = asyncio.get_running_loop().create_future()
        if not self._waiters and not self._ends:
            self._on_watching(True)
        (self._ends if end else self._waiters).setdefault(key, {})[future] = None
        return future

    def drop(self, key: str, future: Changed, *, end: bool = False) -> None:
        """Stop waiting."""
        by_key = self._ends if end else self._waiters
        waiters = by_key.get(key)
        if waiters is None:
            return
        waiters.pop(future, None)
        if not waiters:
            del by_key[key]
            self._idle()

    def changed(self, key: str) -> None:
        """The run has changed."""
        if key in self._waiters:
            self._wake(self._waiters.pop(key), None)

    def ended(self, key: str, event: RunSettled | None) -> None:
        """The run has its outcome (None: look what it has become)."""
        if key in self._ends:
            self._wake(self._ends.pop(key), event)

    @property
    def watched(self) -> bool:
        """Whether anybody waits."""
        return bool(self._waiters or self._ends)

    def all_changed(self, but: Callable[[str], bool] = lambda key: False) -> None:
        """Any run may have changed, `but` those of which others tell."""
        for by_key in (self._waiters, self._ends):
            for key in [key for key in by_key if not but(key)]:
                self._wake(by_key.pop(key), None)

    def look(self) -> None:
        """Let those who have waited longest look again, a few at a time: each look is a read."""
        for by_key in (self._waiters, self._ends):
            for key in list(islice(by_key, LOOKS)):
                self._wake(by_key.pop(key), None)

    def _wake(self, waiters: dict[Changed, None], event: RunSettled | None) -> None:
        for future in waiters:
            if not future.done():
                future.set_result(event)
        self._idle()

    def _idle(self) -> None:
        if not self._waiters and not self._ends:
            self._on_watching(False)
