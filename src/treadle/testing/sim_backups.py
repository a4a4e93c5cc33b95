"""Backups in the simulation: copies of the store and its blobs that are made at any instant, and what they are worth.

In some worlds an operator has backups made while all goes on: by the production code, so its parts come one after the
other, and runs, deletions and the removal of old blobs go on between them. When the world has ended, each copy is a
world of its own (`simulation.play`): it must be sound, have all blobs that it names, and all its runs must close.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Sequence
from typing import Final

from treadle.runtime.backup import copied
from treadle.runtime.node import Node
from treadle.store.memory import MemoryData
from treadle.testing.invariants import BACKED_UP, Fail, Watch
from treadle.testing.sim_conduct import Shelf

# The lives of machines in a world that is made of a copy are numbered from here: nobody has had their names.
LATER_LIVES: Final = 1000


class Copy:
    """What a backup has made."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.data = MemoryData()
        self.shelf = Shelf()
        # When the store was copied; negative: not yet.
        self.at = -1.0
        # Whether the backup came to its end, in the time that it has for that.
        self.whole = False


class Backups:
    """The backups of a world; none in most of them."""

    def __init__(
        self,
        seed: int,
        seconds: float,
        watch: Watch,
        shelf: Shelf,
        now: Callable[[], float],
        fail: Fail,
        asks: Sequence[float] | None = None,
    ) -> None:
        # Drawn apart, so that the other worlds are what they were.
        rng = random.Random(f"backups of {seed}")
        drawn = [seconds * rng.random() for _ in range(rng.choice((1, 2)))] if rng.random() < 0.08 else []
        self.asks = drawn if asks is None else list(asks)
        self._watch = watch
        self._shelf = shelf
        self._now = now
        self._fail = fail
        self._copies: dict[str, Copy] = {}
        watch.on_backup = self._copy_data
        shelf.on_copy = self._copy_blobs

    async def make(self, node: Node, name: str, patience: float) -> None:
        """Have a node make a backup; one that takes longer than blobs are safe is worth nothing."""
        began = self._now()
        self._copies[name] = Copy(name)
        await copied(node, name)
        self._copies[name].whole = self._now() - began < patience

    def _copy_data(self, name: str) -> None:
        data = self._watch.data
        made = self._copies[name]
        made.data = copy.deepcopy(data, {id(data.lock): made.data.lock})
        made.at = self._now()

    def _copy_blobs(self, name: str) -> None:
        self._copies[name].shelf.take(self._shelf)

    def whole(self) -> list[Copy]:
        """What was made, and has all that it names."""
        found: list[Copy] = []
        for made in self._copies.values():
            if not made.whole:
                continue
            for text in made.shelf.dangling(made.data.runs.values()):
                self._fail(BACKED_UP, f"{made.name}: {text}")
            # The oracle reads what was removed before.
            made.shelf.remember(self._shelf)
            found.append(made)
        return found
