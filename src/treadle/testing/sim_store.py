# ruff: noqa: D102 - the methods are the protocol's; `store.base` says what each does
"""A node's handle on the shared store of a simulation: every call may fail, and is watched.

Unlike `FaultyStore`, which fails one call of a test, this one asks the seed at every call, can kill the node that
makes it, and tells the invariants what was written.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Literal, Protocol, TypeVar

from treadle.core.commands import Task
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
    Swept,
    TaskRow,
)
from treadle.store.joined import JoinedInput, JoinedStart
from treadle.store.memory import MemoryStore
from treadle.store.offers import Offer
from treadle.store.queues import Bucket, KeyRow, QueueChange, QueueRow
from treadle.testing.sim_faults import Faults
from treadle.testing.sim_joins import Transaction
from treadle.testing.sim_loop import Life

T = TypeVar("T")


class Watcher(Protocol):
    """Who is told of what happens in the store."""

    def wrote(self, life: Life, operation: str, keys: Sequence[str]) -> None:
        """The call took effect on these runs (none: on sessions only, or on any)."""
        ...

    def opened(self, session: str, life: Life) -> None:
        """A life has entered a session."""
        ...

    def leased(self, session: str, tasks: Sequence[Task]) -> None:
        """The store gave tasks to a session."""
        ...

    def crashed_sessions(self) -> list[str]:
        """Sessions whose process is known to be gone."""
        ...

    def unfit(self, append: Append) -> Answer | None:
        """The answer to an append with records that a projection in the store refuses; None if it takes them."""
        ...

    def made(self, append: Append, answer: Answer) -> None:
        """An append that makes a run brought inputs to others."""
        ...

    def given(self, append: Append) -> None:
        """An append with records is committed: a projection in the store gets them in the same transaction."""
        ...

    def copied(self, name: str) -> None:
        """A backup copies the store as it is now."""
        ...

    def deleting(self, key: str) -> None:
        """The run is about to be deleted, if it is closed."""
        ...


class SimReader:
    """Reads, each of which may fail."""

    def __init__(self, store: MemoryStore, faults: Faults, life: Life, watcher: Watcher) -> None:
        self._store = store
        self._faults = faults
        self._life = life
        self._watcher = watcher

    def _read(self, name: str, function: Callable[[], T]) -> T:
        return self._faults.call(self._life, name, function)

    def find(self, id_or_prefix: str) -> list[str]:
        return self._read("find", lambda: self._store.find(id_or_prefix))

    def load(self, key: str) -> Loaded | None:
        return self._read("load", lambda: self._store.load(key))

    def head(self, key: str) -> tuple[RunHead, bytes] | None:
        return self._read("head", lambda: self._store.head(key))

    def rows(self, key: str, after: int, limit: int = 1000) -> list[tuple[int, int, float, str]]:
        return self._read("rows", lambda: self._store.rows(key, after, limit))

    def run(self, key: str) -> RunRow | None:
        return self._read("run", lambda: self._store.run(key))

    def step(self, key: str, address: str) -> StepAnswer:
        return self._read("step", lambda: self._store.step(key, address))

    def runs(self, query: RunQuery) -> list[RunRow]:
        return self._read("runs", lambda: self._store.runs(query))

    def dead(self, limit: int = 100) -> list[tuple[RunRow, StepRow]]:
        return self._read("dead", lambda: self._store.dead(limit))

    def payloads(self, key: str, digests: Iterable[str]) -> dict[str, bytes]:
        return self._read("payloads", lambda: self._store.payloads(key, digests))

    def sessions(self) -> list[SessionRow]:
        return self._read("sessions", self._store.sessions)

    def waiting(self, limit: int = 100) -> list[TaskRow]:
        return self._read("waiting", lambda: self._store.waiting(limit))

    def queues(self, now: float) -> list[QueueRow]:
        return self._read("queues", lambda: self._store.queues(now))

    def holders(self, queue: str, *, key: str | None = None, limit: int = 20) -> list[TaskRow]:
        return self._read("holders", lambda: self._store.holders(queue, key=key, limit=limit))

    def queue_keys(self, queue: str, *, key: str | None = None, limit: int = 100) -> list[KeyRow]:
        return self._read("queue_keys", lambda: self._store.queue_keys(queue, key=key, limit=limit))

    def buckets(self, queue: str) -> dict[str, Bucket]:
        return self._read("buckets", lambda: self._store.buckets(queue))

    def line(self, name: str) -> list[str]:
        return self._read("line", lambda: self._store.line(name))

    def committed(self, key: str, version: int) -> int | None:
        return self._read("committed", lambda: self._store.committed(key, version))

    def backup(self, path: str) -> None:
        self._read("backup", lambda: self._watcher.copied(path))

    def check(self) -> Health:
        return self._read("check", self._store.check)

    def close(self) -> None:
        """There is nothing to close."""


class SimStore(SimReader):
    """The whole store as one node sees it."""

    durability = "simulated"

    def __init__(self, store: MemoryStore, faults: Faults, life: Life, watcher: Watcher) -> None:
        super().__init__(store, faults, life, watcher)

    def _write(self, name: str, function: Callable[[], T], keys: Sequence[str] = ()) -> T:
        def watched() -> T:
            value = function()
            self._watcher.wrote(self._life, name, keys)
            return value

        return self._faults.call(self._life, name, watched)

    @property
    def made_room(self) -> bool:
        """As the store says of the last call that took effect."""
        return self._store.made_room

    def open(self, *, create: bool = True) -> None:
        """There is nothing to open."""

    def reader(self) -> Reader:
        return SimReader(self._store, self._faults, self._life, self._watcher)

    def open_session(self, session: SessionRow) -> None:
        def enter() -> None:
            self._store.open_session(session)
            self._watcher.opened(session.id, self._life)

        self._write("open_session", enter)

    def renew(self, session: str, waits: int | None = None) -> Renewal:
        return self._faults.call(self._life, "renew", lambda: self._store.renew(session, waits))

    def set_targets(self, session: str, targets: Sequence[str]) -> None:
        self._write("set_targets", lambda: self._store.set_targets(session, targets))

    def set_queues(self, changes: Sequence[QueueChange], now: float) -> list[bool]:
        return self._write("set_queues", lambda: self._store.set_queues(changes, now))

    def dead_sessions(self) -> list[str]:
        return self._read("dead_sessions", self._watcher.crashed_sessions)

    def bury(self, session: str) -> list[str]:
        return self._write("bury", lambda: self._store.bury(session))

    def elect(self, role: str, session: str) -> bool:
        return self._read("elect", lambda: self._store.elect(role, session))

    def commit(self, session: str, appends: Sequence[Append], offer: Offer | None) -> list[Answer]:
        fault = self._faults.at_call(self._life, "commit")
        refused = len(appends) // 2 if fault == "conflict" else -1

        def commit() -> list[Answer]:
            refusals = {refused: Answer("conflict")} if refused >= 0 else {}
            for index, append in enumerate(appends):
                if append.given and (unfit := self._watcher.unfit(append)) is not None:
                    refusals.setdefault(index, unfit)
            taken = [append for index, append in enumerate(appends) if index not in refusals]
            answers = self._store.commit(session, taken, offer)
            for append, answer in zip(taken, answers, strict=True):
                if append.given and answer.status == "committed":
                    self._watcher.given(append)
                if append.head is not None and answer.told:
                    self._watcher.made(append, answer)
            for index in sorted(refusals):
                answers.insert(index, refusals[index])
            self._watcher.leased(session, [task for answer in answers for task in answer.leased])
            self._watcher.wrote(self._life, "commit", [append.key for append in taken])
            return answers

        return self._faults.call(self._life, "commit", commit, fault=fault)

    def join(self, transaction: Transaction, start: JoinedStart) -> str:
        # Nothing is shared before the end of the transaction, so nobody has to be told.
        return self._read("join", lambda: transaction.join(start))

    def join_input(self, transaction: Transaction, given: JoinedInput) -> str:
        return self._read("join_input", lambda: transaction.tell(given))

    def claim(self, session: str, offer: Offer, now: float) -> tuple[list[Task], float | None]:
        def claim() -> tuple[list[Task], float | None]:
            tasks, due = self._store.claim(session, offer, now)
            self._watcher.leased(session, tasks)
            if tasks:
                self._watcher.wrote(self._life, "claim", [task.run for task in tasks])
            return tasks, due

        return self._faults.call(self._life, "claim", claim)

    def leased(self, session: str) -> list[Task]:
        return self._read("leased", lambda: self._store.leased(session))

    def report(self, session: str, reports: Sequence[Report]) -> list[Reported]:
        return self._write("report", lambda: self._store.report(session, reports), [one.input.key for one in reports])

    def postpone(self, session: str, items: Sequence[Postponement], now: float) -> list[bool]:
        return self._write("postpone", lambda: self._store.postpone(session, items, now), [one.key for one in items])

    def progress(self, session: str, items: Sequence[tuple[str, int, int, str]]) -> None:
        self._write("progress", lambda: self._store.progress(session, items))

    def post(self, inputs: Sequence[InboxInput]) -> list[bool]:
        def post() -> list[bool]:
            # Twice: an input that is there already stays as it is.
            self._store.post(inputs)
            return self._store.post(inputs)

        return self._write("post", post, [one.key for one in inputs])

    def inbox(self, key: str) -> list[InboxInput]:
        return self._read("inbox", lambda: self._store.inbox(key))

    def owned_inboxes(self, session: str) -> dict[str, list[InboxInput]]:
        return self._read("owned_inboxes", lambda: self._store.owned_inboxes(session))

    def acquire(self, session: str, key: str, *, steal: bool = False) -> Acquired | None:
        return self._write("acquire", lambda: self._store.acquire(session, key, steal=steal), [key])

    def release(self, session: str, keys: Sequence[str]) -> None:
        self._write("release", lambda: self._store.release(session, keys), keys)

    def sweep(self, session: str, now: float) -> Swept:
        return self._read("sweep", lambda: self._store.sweep(session, now))

    def wakes(self, session: str, *, tasks: bool, keys: Sequence[str]) -> list[str]:
        return self._read("wakes", lambda: self._store.wakes(session, tasks=tasks, keys=keys))

    def delete(self, key: str) -> Literal["deleted", "missing", "open"]:
        def delete() -> Literal["deleted", "missing", "open"]:
            self._watcher.deleting(key)
            return self._store.delete(key)

        return self._write("delete", delete, [key])
