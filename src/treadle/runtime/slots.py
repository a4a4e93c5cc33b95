"""The offer of a worker: how many attempts of which kind it can take, shared with the committer's thread.

A timer's end takes up nothing, so it has slots of its own: it comes in time while the others are taken.

Taken slots are counted by the committer's thread, or by the event loop's for a commit that it begins while that one
rests; freed ones by the event loop's. Each counter has one writer at a time, so no lock is needed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, cast

ASYNC: Final = 0
THREAD: Final = 1
TIMER: Final = 2
# How many timers one claim ends; the next claim follows at once.
TIMERS: Final = 16


class Slots:
    """Slots for attempts on the event loop and in threads (`sizes`), and for timers."""

    __slots__ = (
        "_allowed",
        "_closed",
        "_kind_of",
        "_kinds",
        "_names",
        "_sizes",
        "_taken",
        "_targets",
        "freed",
        "kind_of",
    )

    def __init__(self, sizes: tuple[int, int], names: Sequence[str], kind_of: Callable[[str], int | None]) -> None:
        self._sizes = (*sizes, TIMERS)
        self._names = names
        self._kind_of = kind_of
        self._kinds: dict[str, int | None] = {}
        # As `kind`, for names that were asked for before; None also for those that were not.
        self.kind_of: Callable[[str], int | None] = self._kinds.get
        self._taken: list[int] = [0, 0, 0]
        # Slots given back, by kind; changed by the event loop's thread only.
        self.freed = [0, 0, 0]
        self._targets: Sequence[str] = ()
        self._closed = False
        # How many may be taken in all; None is without limit.
        self._allowed: int | None = None

    def kind(self, action: str) -> int | None:
        """ASYNC, THREAD or TIMER, None for a name that this process does not execute."""
        try:
            return self._kinds[action]
        except KeyError:
            found = self._kinds[action] = self._kind_of(action)
            return found

    def take(self, action: str, queue: str, most: int = 1) -> int:
        """Use up slots for an action, `most` if there are so many; committer's thread only."""
        kind = self._kinds.get(action)
        if kind is None:
            kind = self.kind(action)
        if kind is None or self._closed:
            return 0
        taken = self._taken
        before = taken[kind]
        free = self._sizes[kind] - before + self.freed[kind]
        if self._allowed is not None:
            free = min(free, self._allowed - sum(taken))
        if free < most:
            most = max(0, free)
        taken[kind] = before + most
        return most

    def mark(self) -> object:
        """The present count; committer's thread only."""
        return list(self._taken)

    def reset(self, mark: object) -> None:
        """Give back what was taken since `mark`; committer's thread only."""
        self._taken = list(cast(list[int], mark))

    def adopt(self, action: str) -> None:
        """Use up a slot for a task that the store had already leased to this session; event loop only."""
        kind = self.kind(action)
        assert kind is not None
        self.freed[kind] -= 1

    def put_back(self, kind: int) -> None:
        """Free the slot of an ended attempt; event loop's thread only."""
        self.freed[kind] += 1

    def room(self, action: str) -> int:
        """How many more attempts of an action `take` takes; committer's thread only."""
        kind = self.kind(action)
        if kind is None or self._closed:
            return 0
        free = self._sizes[kind] - self._taken[kind] + self.freed[kind]
        return free if self._allowed is None else min(free, self._allowed - sum(self._taken))

    @property
    def size(self) -> int:
        """How many slots there are, of all kinds."""
        return sum(self._sizes)

    def free(self) -> int:
        """How many slots are free, of all kinds."""
        if self._closed:
            return 0
        taken = sum(self._taken)
        free = sum(self._sizes) - taken + sum(self.freed)
        return free if self._allowed is None else min(free, self._allowed - taken)

    def full(self) -> bool:
        """Whether a kind has no free slot, so that tasks of it may be left waiting."""
        return any(self._taken[kind] - self.freed[kind] >= self._sizes[kind] for kind in (ASYNC, THREAD, TIMER))

    def actions(self) -> Sequence[str]:
        """The names that can be executed."""
        return [] if self._closed else self._names

    def aim(self, targets: Sequence[str]) -> None:
        """Take the tasks of these targets from now on."""
        self._targets = tuple(targets)

    def targets(self) -> Sequence[str]:
        """The targets whose tasks are taken, besides those that have none."""
        return self._targets

    def close(self) -> None:
        """Take nothing more."""
        self._closed = True

    def open(self, limit: int | None) -> None:
        """Take again, at most `limit` from now on; for slots that were closed when nothing was under way."""
        self._allowed = None if limit is None else sum(self._taken) + limit
        self._closed = False
