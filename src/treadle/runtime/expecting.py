"""Runs that were started in transactions which may still be open: they are looked for whenever the node is woken."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from treadle.errors import TreadleError

if TYPE_CHECKING:
    from treadle.runtime.node import Node

# How long a run is looked for at each wake-up; after that the sweep finds it.
EXPECT_SECONDS = 60.0


class Expected:
    """The keys of such runs, and since when they are expected."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._since: dict[str, float] = {}

    def add(self, key: str) -> None:
        """A run was started in a transaction that is not committed yet."""
        self._since[key] = self._node.environment.clock.monotonic()

    def look(self) -> None:
        """Have runs decided whose transaction is committed by now."""
        for key, since in list(self._since.items()):
            if self._node.environment.clock.monotonic() - since > EXPECT_SECONDS:
                del self._since[key]
            else:
                self._node.spawn(self._find(key))

    async def _find(self, key: str) -> None:
        with suppress(TreadleError):
            if await self._node.engine.acquire(key) is not None:
                self._since.pop(key, None)
