"""Watching: whether other sessions wake this one for changes of runs.

The store is told at once when somebody begins to wait here for what others decide, and only after a while that nobody
does: who is woken looks and waits again, and that would be two writes for each wake-up.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from treadle.store.base import WAITS_CHANGES, WAITS_TASKS

if TYPE_CHECKING:
    from treadle.runtime.node import Node

# How long nobody has waited before the store is told.
IDLE_SECONDS = 1.0


class Watch:
    """What other sessions wake a node's session for."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._idle: asyncio.TimerHandle | None = None
        # Whether somebody waits for changes of runs, and for a place in a queue.
        self._runs = self._places = False

    def begin(self) -> int:
        """A new session is entered: what it waits for."""
        self.stop()
        return self.waits()

    def waits(self) -> int:
        """What its session waits for."""
        node = self._node
        changes = WAITS_CHANGES if self._runs or self._places or node.feeds is not None else 0
        return (WAITS_TASKS if node.settings.worker else 0) | changes

    def changed(self, watching: bool) -> None:
        """The first one waits for a change of a run, or none does any more."""
        self._runs = watching
        self._look(watching)

    def awaits_places(self, waiting: bool) -> None:
        """The first one waits for a place in a queue, or none does any more."""
        self._places = waiting
        self._look(waiting)

    def _look(self, waiting: bool) -> None:
        self.stop()
        if waiting:
            self._tell()
        else:
            self._idle = self._node.loop.call_later(IDLE_SECONDS, self._tell)

    def _tell(self) -> None:
        node = self._node
        committer, waits = node.committer, self.waits()
        if waits != committer.waits and node.environment.wakeups.address:
            committer.waits = waits
            committer.submit(lambda store: store.renew(node.session, waits), node.renewed)

    def stop(self) -> None:
        """Tell nothing later: the session ends, or somebody waits again."""
        if self._idle is not None:
            self._idle.cancel()
            self._idle = None
