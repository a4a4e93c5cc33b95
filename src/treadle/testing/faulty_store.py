# ruff: noqa: D102 - the methods are the protocol's; `store.base` says what each does
"""A store whose Nth call fails, for anomaly loops.

An anomaly loop runs one scenario again and again, with the first store call failing, then the second, and so on,
until the scenario passes untouched; once with the call not taking effect, once with it taking effect and only
its answer being lost:

    for before in (True, False):
        for nth in itertools.count(1):
            store = fail_nth(MemoryStore(), nth, before=before)
            scenario(store)
            if not store.fired:
                break
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Literal, ParamSpec, TypeVar

from treadle.core.commands import Task
from treadle.errors import StoreUnavailableError
from treadle.store.base import (
    Acquired,
    Answer,
    Append,
    Health,
    InboxInput,
    Loaded,
    Postponement,
    Reader,
    Renewal,
    Report,
    Reported,
    RunHead,
    RunQuery,
    RunRow,
    SessionRow,
    StepAnswer,
    StepRow,
    Store,
    Swept,
    TaskRow,
)
from treadle.store.offers import Offer
from treadle.store.queues import Bucket, KeyRow, QueueChange, QueueRow

P = ParamSpec("P")
R = TypeVar("R")


class CallCounter:
    """Counts the calls of a store and of its readers together, and fails one of them."""

    def __init__(self, nth: int, *, before: bool) -> None:
        self.nth = nth
        self.before = before
        self.calls: list[str] = []

    @property
    def fired(self) -> bool:
        """Whether the call that fails has come."""
        return len(self.calls) >= self.nth

    def run(self, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Make the call, or fail it before or after."""
        self.calls.append(function.__name__)
        fails = len(self.calls) == self.nth
        if fails and self.before:
            raise StoreUnavailableError(f"call {self.nth}, {function.__name__}, fails before it takes effect")
        result = function(*args, **kwargs)
        if fails:
            raise StoreUnavailableError(f"call {self.nth}, {function.__name__}, fails after it took effect")
        return result


class FaultyReader:
    """A reader whose calls are counted with its store's."""

    def __init__(self, reader: Reader, counter: CallCounter) -> None:
        self._reader = reader
        self._counter = counter

    def find(self, id_or_prefix: str) -> list[str]:
        return self._counter.run(self._reader.find, id_or_prefix)

    def load(self, key: str) -> Loaded | None:
        return self._counter.run(self._reader.load, key)

    def head(self, key: str) -> tuple[RunHead, bytes] | None:
        return self._counter.run(self._reader.head, key)

    def rows(self, key: str, after: int, limit: int = 1000) -> list[tuple[int, int, float, str]]:
        return self._counter.run(self._reader.rows, key, after, limit)

    def run(self, key: str) -> RunRow | None:
        return self._counter.run(self._reader.run, key)

    def step(self, key: str, address: str) -> StepAnswer:
        return self._counter.run(self._reader.step, key, address)

    def runs(self, query: RunQuery) -> list[RunRow]:
        return self._counter.run(self._reader.runs, query)

    def dead(self, limit: int = 100) -> list[tuple[RunRow, StepRow]]:
        return self._counter.run(self._reader.dead, limit)

    def payloads(self, key: str, digests: Iterable[str]) -> dict[str, bytes]:
        return self._counter.run(self._reader.payloads, key, digests)

    def sessions(self) -> list[SessionRow]:
        return self._counter.run(self._reader.sessions)

    def waiting(self, limit: int = 100) -> list[TaskRow]:
        return self._counter.run(self._reader.waiting, limit)

    def queues(self, now: float) -> list[QueueRow]:
        return self._counter.run(self._reader.queues, now)

    def holders(self, queue: str, *, key: str | None = None, limit: int = 20) -> list[TaskRow]:
        return self._counter.run(self._reader.holders, queue, key=key, limit=limit)

    def queue_keys(self, queue: str, *, key: str | None = None, limit: int = 100) -> list[KeyRow]:
        return self._counter.run(self._reader.queue_keys, queue, key=key, limit=limit)

    def buckets(self, queue: str) -> dict[str, Bucket]:
        return self._counter.run(self._reader.buckets, queue)

    def line(self, name: str) -> list[str]:
        return self._counter.run(self._reader.line, name)

    def committed(self, key: str, version: int) -> int | None:
        return self._counter.run(self._reader.committed, key, version)

    def check(self) -> Health:
        return self._counter.run(self._reader.check)

    def close(self) -> None:
        # Not counted: closing has no outcome that a caller could act on.
        self._reader.close()


class FaultyStore(FaultyReader):
    """A store whose `nth` call (of the store and its readers together, counted from 1) raises StoreUnavailableError.

    With `before` the call does not take effect; without it the call takes effect and its answer is lost. `calls`
    names the calls that were made and `fired` tells whether one of them failed.
    """

    def __init__(self, store: Store, nth: int, *, before: bool) -> None:
        super().__init__(store, CallCounter(nth, before=before))
        self._store = store
        self.durability = store.durability

    @property
    def made_room(self) -> bool:
        """As the store says of the last call that took effect."""
        return self._store.made_room

    @property
    def calls(self) -> list[str]:
        """The names of the calls made, in order."""
        return self._counter.calls

    @property
    def fired(self) -> bool:
        """Whether a call failed; False ends an anomaly loop."""
        return self._counter.fired

    def open(self, *, create: bool = True) -> None:
        self._counter.run(self._store.open, create=create)

    def reader(self) -> Reader:
        return FaultyReader(self._counter.run(self._store.reader), self._counter)

    def open_session(self, session: SessionRow) -> None:
        self._counter.run(self._store.open_session, session)

    def renew(self, session: str, waits: int | None = None) -> Renewal:
        return self._counter.run(self._store.renew, session, waits)

    def set_targets(self, session: str, targets: Sequence[str]) -> None:
        self._counter.run(self._store.set_targets, session, targets)

    def set_queues(self, changes: Sequence[QueueChange], now: float) -> list[bool]:
        return self._counter.run(self._store.set_queues, changes, now)

    def dead_sessions(self) -> list[str]:
        return self._counter.run(self._store.dead_sessions)

    def bury(self, session: str) -> list[str]:
        return self._counter.run(self._store.bury, session)

    def elect(self, role: str, session: str) -> bool:
        return self._counter.run(self._store.elect, role, session)

    def commit(self, session: str, appends: Sequence[Append], offer: Offer | None) -> list[Answer]:
        return self._counter.run(self._store.commit, session, appends, offer)

    def claim(self, session: str, offer: Offer, now: float) -> tuple[list[Task], float | None]:
        return self._counter.run(self._store.claim, session, offer, now)

    def leased(self, session: str) -> list[Task]:
        return self._counter.run(self._store.leased, session)

    def report(self, session: str, reports: Sequence[Report]) -> list[Reported]:
        return self._counter.run(self._store.report, session, reports)

    def postpone(self, session: str, items: Sequence[Postponement], now: float) -> list[bool]:
        return self._counter.run(self._store.postpone, session, items, now)

    def progress(self, session: str, items: Sequence[tuple[str, int, int, str]]) -> None:
        self._counter.run(self._store.progress, session, items)

    def post(self, inputs: Sequence[InboxInput]) -> list[bool]:
        return self._counter.run(self._store.post, inputs)

    def inbox(self, key: str) -> list[InboxInput]:
        return self._counter.run(self._store.inbox, key)

    def owned_inboxes(self, session: str) -> dict[str, list[InboxInput]]:
        return self._counter.run(self._store.owned_inboxes, session)

    def acquire(self, session: str, key: str, *, steal: bool = False) -> Acquired | None:
        return self._counter.run(self._store.acquire, session, key, steal=steal)

    def release(self, session: str, keys: Sequence[str]) -> None:
        self._counter.run(self._store.release, session, keys)

    def sweep(self, session: str, now: float) -> Swept:
        return self._counter.run(self._store.sweep, session, now)

    def wakes(self, session: str, *, tasks: bool, keys: Sequence[str]) -> list[str]:
        return self._counter.run(self._store.wakes, session, tasks=tasks, keys=keys)

    def delete(self, key: str) -> Literal["deleted", "missing", "open"]:
        return self._counter.run(self._store.delete, key)


def fail_nth(store: Store, nth: int, *, before: bool) -> FaultyStore:
    """The store with its `nth` call failing, before or after it takes effect."""
    return FaultyStore(store, nth, before=before)
