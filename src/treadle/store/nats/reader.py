"""Reads: from the state that the log leads to, from the journals in the log, and from the values.

Each begins by following the log to its end, so that it sees whatever any process was told before.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable

from treadle.errors import StoreCorruptError
from treadle.store.base import (
    Health,
    InboxInput,
    Loaded,
    RunHead,
    RunQuery,
    RunRow,
    SessionRow,
    StepAnswer,
    StepRow,
    TaskRow,
)
from treadle.store.nats.health import examine
from treadle.store.nats.journal import Journal, TextRow
from treadle.store.nats.link import Link
from treadle.store.nats.log import Log
from treadle.store.nats.loop import Loop
from treadle.store.nats.values import Values
from treadle.store.queues import Bucket, KeyRow, QueueRow

_PLANS = 256


class Rooms:
    """What the handles of one store share; used on the loop's thread only."""

    def __init__(self, link: Link) -> None:
        self.link = link
        self.location = link.location
        self.values = Values(link)
        self.log = Log(link, self.values)
        self.journal = Journal(self.log)
        self._plans: OrderedDict[str, bytes] = OrderedDict()

    async def put_plans(self, plans: dict[str, bytes]) -> None:
        """Store plans by digest, those that this process has not stored or read already."""
        new = {digest: plan for digest, plan in plans.items() if digest not in self._plans}
        if new:
            await self.values.put([(self.location.plan(digest), plan) for digest, plan in new.items()])
            for digest, plan in new.items():
                self._remember(digest, plan)

    async def plan(self, digest: str) -> bytes:
        """A stored plan."""
        plan = self._plans.get(digest)
        if plan is None:
            plan = await self.values.get(self.location.plan(digest))
            if plan is None:
                raise StoreCorruptError(f"{self.location.shown}: the plan {digest} is missing")
        self._remember(digest, plan)
        return plan

    def _remember(self, digest: str, plan: bytes) -> None:
        self._plans[digest] = plan
        self._plans.move_to_end(digest)
        if len(self._plans) > _PLANS:
            self._plans.popitem(last=False)

    async def complete(self, loaded: Loaded, plan: str) -> Loaded:
        """A run as the state has it, with its plan and its journal up to that version."""
        loaded.plan = await self.plan(plan)
        loaded.rows = await self.journal.rows(loaded.head.key, 0, loaded.version, loaded.version)
        return loaded


class NatsReader:
    """Reads of a store, for any thread."""

    def __init__(self, loop: Loop, rooms: Rooms) -> None:
        self._loop = loop
        self._rooms = rooms

    def close(self) -> None:
        """The store itself holds what there is to close."""

    # -- from the state --------------------------------------------------------------------------------

    def find(self, id_or_prefix: str) -> list[str]:
        """Keys of the runs with this id, or whose key or id starts with it, newest first."""

        async def work() -> list[str]:
            await self._rooms.log.follow()
            return self._rooms.log.machine.store.find(id_or_prefix)

        return self._loop.call(work())

    def run(self, key: str) -> RunRow | None:
        """The run's row, or None."""

        async def work() -> RunRow | None:
            await self._rooms.log.follow()
            return self._rooms.log.machine.store.run(key)

        return self._loop.call(work())

    def runs(self, query: RunQuery) -> list[RunRow]:
        """Runs by key, newest first."""

        async def work() -> list[RunRow]:
            await self._rooms.log.follow()
            return self._rooms.log.machine.store.runs(query)

        return self._loop.call(work())

    def dead(self, limit: int = 100) -> list[tuple[RunRow, StepRow]]:
        """Steps that failed for good, newest first."""

        async def work() -> list[tuple[RunRow, StepRow]]:
            await self._rooms.log.follow()
            return self._rooms.log.machine.store.dead(limit)

        return self._loop.call(work())

    def sessions(self) -> list[SessionRow]:
        """All living sessions, oldest first."""

        async def work() -> list[SessionRow]:
            await self._rooms.log.follow()
            return self._rooms.log.machine.store.sessions()

        return self._loop.call(work())

    def waiting(self, limit: int = 100) -> list[TaskRow]:
        """Tasks that wait, in claim order."""

        async def work() -> list[TaskRow]:
            await self._rooms.log.follow()
            return self._rooms.log.machine.store.waiting(limit)

        return self._loop.call(work())

    def queues(self, now: float) -> list[QueueRow]:
        """Queues that were defined, or that have tasks, by name."""

        async def work() -> list[QueueRow]:
            await self._rooms.log.follow()
            return self._rooms.log.machine.store.queues(now)

        return self._loop.call(work())

    def queue_keys(self, queue: str, *, key: str | None = None, limit: int = 100) -> list[KeyRow]:
        """Keys of a queue's tasks, those with the most waiting ones first, or one of them."""

        async def work() -> list[KeyRow]:
            await self._rooms.log.follow()
            return self._rooms.log.machine.store.queue_keys(queue, key=key, limit=limit)

        return self._loop.call(work())

    def buckets(self, queue: str) -> dict[str, Bucket]:
        """What is stored of what a queue's rates allow."""

        async def work() -> dict[str, Bucket]:
            await self._rooms.log.follow()
            return self._rooms.log.machine.store.buckets(queue)

        return self._loop.call(work())

    def holders(self, queue: str, *, key: str | None = None, limit: int = 20) -> list[TaskRow]:
        """Leased tasks of a queue (or of one key in it), those that were leased first."""

        async def work() -> list[TaskRow]:
            await self._rooms.log.follow()
            return self._rooms.log.machine.store.holders(queue, key=key, limit=limit)

        return self._loop.call(work())

    def inbox(self, key: str) -> list[InboxInput]:
        """The inputs that wait, oldest first."""

        async def work() -> list[InboxInput]:
            await self._rooms.log.follow()
            return self._rooms.log.machine.store.inbox(key)

        return self._loop.call(work())

    # -- from the journals -----------------------------------------------------------------------------

    def load(self, key: str) -> Loaded | None:
        """The whole run, or None."""

        async def work() -> Loaded | None:
            await self._rooms.log.follow()
            machine = self._rooms.log.machine
            run = machine.run(key)
            if run is None:
                return None
            return await self._rooms.complete(machine.loaded(run), run.plan.decode())

        return self._loop.call(work())

    def head(self, key: str) -> tuple[RunHead, bytes] | None:
        """The head and the encoded plan of a run, or None."""

        async def work() -> tuple[RunHead, bytes] | None:
            await self._rooms.log.follow()
            run = self._rooms.log.machine.run(key)
            return None if run is None else (run.head, await self._rooms.plan(run.plan.decode()))

        return self._loop.call(work())

    def rows(self, key: str, after: int, limit: int = 1000) -> list[TextRow]:
        """Journal rows with a version above `after`, in order."""

        async def work() -> list[TextRow]:
            await self._rooms.log.follow()
            run = self._rooms.log.machine.run(key)
            return [] if run is None else await self._rooms.journal.rows(key, after, run.version, limit)

        return self._loop.call(work())

    def step(self, key: str, address: str) -> StepAnswer:
        """What is known of one step."""

        async def work() -> StepAnswer:
            await self._rooms.log.follow()
            run = self._rooms.log.machine.run(key)
            if run is None:
                return StepAnswer("", 0)
            status, version = run.status, run.version
            return StepAnswer(status, version, await self._rooms.journal.step(key, address, version))

        return self._loop.call(work())

    def line(self, name: str) -> list[str]:
        """Keys of the runs in the line of a name."""

        async def work() -> list[str]:
            await self._rooms.log.follow()
            return self._rooms.log.machine.store.line(name)

        return self._loop.call(work())

    def committed(self, key: str, version: int) -> int | None:
        """The commit id of the journal row of that version, None if there is none."""

        async def work() -> int | None:
            await self._rooms.log.follow()
            run = self._rooms.log.machine.run(key)
            if run is None or not 0 < version <= run.version:
                return None
            rows = await self._rooms.journal.rows(key, version - 1, run.version, 1)
            return rows[0][1]

        return self._loop.call(work())

    # -- from the values -------------------------------------------------------------------------------

    def payloads(self, key: str, digests: Iterable[str]) -> dict[str, bytes]:
        """Payload rows of a run by digest; missing ones are absent."""
        asked = list(digests)

        async def work() -> dict[str, bytes]:
            await self._rooms.log.follow()
            if not asked or self._rooms.log.machine.run(key) is None:
                return {}
            subjects = {digest: self._rooms.location.payload(key, digest) for digest in asked}
            found = await self._rooms.values.get_all(subjects.values())
            return {digest: found[subject] for digest, subject in subjects.items() if subject in found}

        return self._loop.call(work())

    def check(self) -> Health:
        """Configuration and integrity of the store."""
        return self._loop.call(examine(self._rooms.link, self._rooms.log, self._rooms.journal))
