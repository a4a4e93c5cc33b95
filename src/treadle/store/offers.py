"""Offers: what a session has room for, as the store asks it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol


class Offer(Protocol):
    """The free slots of the session that commits or claims. Asked by whoever does that, one at a time."""

    def take(self, action: str, queue: str, most: int = 1) -> int:
        """For how many of `most` tasks of an action in a queue there is a slot now; it uses up so many."""
        ...

    def free(self) -> int:
        """How many slots are free."""
        ...

    def room(self, action: str) -> int:
        """How many more tasks of an action `take` takes now, at most."""
        ...

    def actions(self) -> Sequence[str]:
        """The names that the session can execute."""
        ...

    def targets(self) -> Sequence[str]:
        """The targets whose tasks it takes, besides those that have none."""
        ...

    def full(self) -> bool:
        """Whether some kind of action has no free slot."""
        ...

    def mark(self) -> object:
        """The present count, for `reset`."""
        ...

    def reset(self, mark: object) -> None:
        """Give back what was taken since `mark`: the transaction it was for is rolled back.

        The committer does it too, when `commit` or `claim` raises.
        """
        ...
