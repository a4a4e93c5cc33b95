"""The port of positions: how far somebody who follows the journals has got in each run."""

from __future__ import annotations

from typing import Protocol, runtime_checkable


class Positions(Protocol):
    """Positions of followers, by a follower's name and a run's key. Usable from any thread."""

    def ready(self) -> None:
        """Make the place for them, if it is not there yet.

        Raises:
            StoreError: it cannot be made.
        """
        ...

    def position(self, name: str, run: str) -> int:
        """Up to which version of a run's journal the follower has come; 0 if it has not begun."""
        ...

    def move(self, name: str, run: str, after: int, version: int) -> bool:
        """Move it to that version, if it is at `after`; durable when this returns. False if it is another one."""
        ...

    def close(self) -> None:
        """End the connection."""
        ...


@runtime_checkable
class KeepsPositions(Protocol):
    """What a store has besides, if positions can be kept in it. They go when their runs are deleted."""

    def positions(self) -> Positions:
        """A handle for them."""
        ...
