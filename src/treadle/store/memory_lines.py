"""Lines of waiting tasks in `MemoryStore`: what the same sessions can take, in the order of claims.

A line has the tasks of one action and one target. Where keys have limits, its heap `ready` holds the first task of
each key, and the others wait `behind` it. A key that may not start is closed: what a claim meets of it goes behind
too, until the key opens. So a claim costs what it takes, however many tasks wait for a key that is full.
"""

from __future__ import annotations

from heapq import heappop, heappush

import msgspec

from treadle.core.commands import Task


class Entry(msgspec.Struct, gc=False):
    """A stored task; `session` is empty while it waits."""

    task: Task
    age: int
    # When it was leased; while it waits, since when it does.
    since: float = 0.0
    session: str = ""
    gone: bool = False
    interrupt: bool = False
    progress: str = ""
    # It must not wait again: its run's waiting tasks were taken back while it was leased.
    last: bool = False
    # Its place among the keys of a fair queue.
    turn: float = 0.0


# What claims go by: the negative priority, the turn, the age.
Order = tuple[float, float, int]
Item = tuple[float, float, int, Entry]


class Line:
    """Tasks of one action and one target in a queue."""

    __slots__ = ("behind", "fronts", "ready")

    def __init__(self) -> None:
        self.ready: list[Item] = []
        # By key: the order of the first task, which is in `ready`; and the others, all of which come after it. A key
        # that has only the latter is closed.
        self.fronts: dict[str, Order] = {}
        self.behind: dict[str, list[Item]] = {}

    def push(self, item: Item, key: str) -> None:
        """Let a task wait; `key` is empty unless keys have limits."""
        if key:
            front = self.fronts.get(key)
            if key in self.behind if front is None else front < item[:3]:
                heappush(self.behind.setdefault(key, []), item)
                return
            self.fronts[key] = item[:3]
        heappush(self.ready, item)

    def pop(self) -> None:
        """Take the first task out."""
        item = heappop(self.ready)
        if self.fronts and self.fronts.get(key := item[3].task.key) == item[:3]:
            self.advance(key)

    def advance(self, key: str) -> None:
        """Let the next task of a key be its first."""
        self.fronts.pop(key, None)
        behind = self.behind.get(key, [])
        while behind:
            item = heappop(behind)
            if not item[3].gone:
                self.fronts[key] = item[:3]
                heappush(self.ready, item)
                break
        if not behind:
            self.behind.pop(key, None)

    def fall_back(self) -> None:
        """The key of the first task is closed: the task goes behind."""
        item = heappop(self.ready)
        key = item[3].task.key
        front = self.fronts.get(key)
        if front is not None and item[:3] <= front:
            del self.fronts[key]
        heappush(self.behind.setdefault(key, []), item)

    def open(self, key: str) -> None:
        """The key may start again."""
        if key in self.behind and key not in self.fronts:
            self.advance(key)

    def items(self) -> list[Item]:
        """All that waits here."""
        return self.ready + [item for items in self.behind.values() for item in items]

    def size(self) -> int:
        """How many tasks are kept here, those that are gone included."""
        return len(self.ready) + sum(len(items) for items in self.behind.values())

    def drop_stale(self) -> int:
        """Forget the tasks that are gone; how many are left."""
        items = [item for item in self.items() if not item[3].gone]
        closed = {key for key in self.behind if key not in self.fronts}
        keys = {*self.fronts, *self.behind}
        self.ready, self.fronts, self.behind = [], {}, {}
        for item in sorted(items, key=_order):
            key = item[3].task.key
            if key in closed:
                heappush(self.behind.setdefault(key, []), item)
            else:
                self.push(item, key if key in keys else "")
        return len(items)


def _order(item: Item) -> Order:
    return item[:3]
