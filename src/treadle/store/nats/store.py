"""The NATS store: the `Store` port over a log in JetStream.

Each call becomes one message of the log, or one an append, all in flight at once; its answer is what that message
comes to in the state (`machine`). So an answer is as good as the server's acknowledgement, and what two processes do at
the same time has an order that all of them see. A refusal is answered without a message: then the log is followed to
its end first, so that it is no refusal of yesterday.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeVar, cast

import msgspec

from treadle.core.commands import Task
from treadle.errors import SchemaVersionError
from treadle.store.base import (
    Acquired,
    Answer,
    Append,
    InboxInput,
    Postponement,
    Reader,
    Renewal,
    Report,
    Reported,
    SessionRow,
    Swept,
)
from treadle.store.nats import streams, wire
from treadle.store.nats.blobs import NatsBlobs
from treadle.store.nats.express import NatsExpress
from treadle.store.nats.foresight import clock_was_set_back
from treadle.store.nats.link import Link
from treadle.store.nats.location import Location, parse_url
from treadle.store.nats.loop import Loop, LoopBell
from treadle.store.nats.positions import NatsPositions
from treadle.store.nats.reader import NatsReader, Rooms
from treadle.store.nats.wakeups import NatsWakeups
from treadle.store.nats.waves import Wave, append_op, hashed_plan, retake, split, without_payloads
from treadle.store.nats.wire import Takes
from treadle.store.offers import Offer
from treadle.store.queues import QueueChange

_log = logging.getLogger("treadle.store")

T = TypeVar("T")


class NatsStore(NatsReader):
    """A store on a NATS server or cluster; any number of processes on any machines may each have one."""

    def __init__(self, location: Location) -> None:
        self.location = location
        self.durability = "unknown until it is open"
        # The last call was a commit, so that the state is what the session's last transaction saw.
        self._committed = False
        self.made_room = False
        super().__init__(Loop("treadle-nats"), Rooms(Link(location)))

    @classmethod
    def from_url(cls, url: str) -> NatsStore:
        """The store that a `nats:` URL names.

        Raises:
            StoreUrlError: it is not one.
        """
        return cls(parse_url(url))

    # -- life ------------------------------------------------------------------------------------------

    def open(self, *, create: bool = True) -> None:
        """Connect, make the streams if need be, and come to the present state.

        Raises:
            MissingExtraError: nats-py is not installed.
            StoreError: of the kind that says what to do.
        """

        async def work() -> None:
            await self._rooms.link.open()
            self.durability = await streams.prepare(self._rooms.link, create=create)
            await self._rooms.log.load()

        try:
            self._loop.call(work())
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Disconnect and end the thread."""
        if self._loop.thread.is_alive():
            self._loop.call(self._rooms.link.close())
        self._loop.close()

    def reader(self) -> Reader:
        """Reads for another thread: they share the connection and the state."""
        return NatsReader(self._loop, self._rooms)

    def bell(self) -> LoopBell:
        """What the committer's thread sleeps in, so that its calls need no other thread."""
        return self._loop.bell()

    def express(self) -> NatsExpress:
        """Commits for the committer that sleeps in that bell."""
        return NatsExpress(self._loop, self._rooms, self._committed_at)

    def _committed_at(self, time: float) -> None:
        self.made_room = self._rooms.log.machine.may_have_room(time)
        self._committed = True

    def blobs(self) -> NatsBlobs:
        """Large payloads, on the same server."""
        return NatsBlobs(self._loop, self._rooms)

    def positions(self) -> NatsPositions:
        """How far followers have got in the journals, in the stream of values."""
        return NatsPositions(self._loop, self._rooms)

    def wakeups(self, name: str) -> NatsWakeups:
        """Wake-ups for one session, by the same connection; to be opened after the store."""
        return NatsWakeups(self._loop, self._rooms.link, name)

    async def _write(self, op: wire.Operation) -> Any:
        """One operation that is no append; what it comes to."""
        (result,) = await self._rooms.log.write([(self.location.other, op)])
        if isinstance(result, Exception):
            raise result
        return result

    async def _ask(self, answer: Callable[[], T], *, final: Callable[[T], bool]) -> T:
        """What the state says; if it is not what needs no second look, what the present state says."""
        found = answer()
        if not final(found):
            await self._rooms.log.follow()
            found = answer()
        return found

    async def _see_living(self, session: str) -> None:
        """Raise LeaseLostError if the session has ended, or never was."""
        log = self._rooms.log
        if not await self._ask(lambda: session in log.machine.data.sessions, final=bool):
            log.machine.living(session)

    # -- sessions --------------------------------------------------------------------------------------

    def open_session(self, session: SessionRow) -> None:
        """Enter a session.

        Raises:
            SchemaVersionError: the log has risen above what this version can apply, or its URL says.
        """
        level = self.location.level

        async def work() -> None:
            if level < wire.LEVEL:
                await self._rooms.log.follow()
                if self._rooms.log.machine.level > level:
                    raise SchemaVersionError(
                        f"the log of {self.location.shown} has risen above level {level}, where ?level={level} of the"
                        " URL is to keep it: leave that out, or copy the store to a new one"
                    )
            await self._write(wire.OpenOp(row=msgspec.structs.replace(session), level=level))

        self._loop.call(work())

    def renew(self, session: str, waits: int | None = None) -> Renewal:
        """Count the beat up; interrupts are told again until their attempt has ended."""

        async def work() -> Renewal:
            await self._see_living(session)
            return cast(Renewal, await self._write(wire.RenewOp(session=session, waits=waits)))

        return self._loop.call(work())

    def set_targets(self, session: str, targets: Sequence[str]) -> None:
        """Change the targets that the session's row names."""

        async def work() -> None:
            await self._see_living(session)
            await self._write(wire.TargetsOp(session=session, targets=list(targets)))

        self._loop.call(work())

    def set_queues(self, changes: Sequence[QueueChange], now: float) -> list[bool]:
        """Change what is stored of queues; whether each changed anything."""

        async def work() -> list[bool]:
            written = [wire.of_level_1(change) for change in changes]
            if written != list(changes) and await self._risen():
                written = list(changes)
            elif written != list(changes):
                _log.warning("the log is held on an older level: set on_full= of queues again when it has risen")
            answers: list[bool] = await self._write(wire.QueuesOp(now=now, changes=written))
            self.made_room = self._rooms.log.machine.may_have_room(now)
            return answers

        return self._loop.call(work())

    async def _risen(self) -> bool:
        """Whether the log has this version's level, now or since it may have it."""
        await self._rooms.log.follow()
        machine = self._rooms.log.machine
        session = next(iter(machine.data.sessions), "")
        if machine.level < wire.LEVEL <= machine.common_level() and session:
            await self._write(wire.LevelOp(session=session, level=wire.LEVEL))
        return self._rooms.log.machine.level >= wire.LEVEL

    def dead_sessions(self) -> list[str]:
        """None: a process that has died looks like one that is slow."""
        return []

    def bury(self, session: str) -> list[str]:
        """End a session; burying it twice changes nothing."""

        async def work() -> list[str]:
            sessions = self._rooms.log.machine.data.sessions
            if not await self._ask(lambda: session in sessions, final=bool):
                return []
            keys: list[str] = await self._write(wire.BuryOp(dead=session))
            self.made_room = self._rooms.log.machine.may_have_room(None)
            return keys

        return self._loop.call(work())

    def elect(self, role: str, session: str) -> bool:
        """Hold the role, if no living session holds it."""

        async def work() -> bool:
            await self._rooms.log.follow()
            await self._see_living(session)
            holder = self._rooms.log.machine.data.elected.get(role)
            if holder is not None:
                return holder.id == session
            return cast(bool, await self._write(wire.ElectOp(session=session, role=role)))

        return self._loop.call(work())

    def wakes(self, session: str, *, tasks: bool, keys: Sequence[str]) -> list[str]:
        """Addresses, each once, as this process has last seen the store."""
        looks = bool(keys) or not self._committed
        self._committed = False
        if not looks:
            # Asked after every commit, and answered under the lock of the state; not worth a turn of the loop.
            return self._rooms.log.machine.store.wakes(session, tasks=tasks, keys=keys)

        async def work() -> list[str]:
            await self._rooms.log.follow()
            return self._rooms.log.machine.store.wakes(session, tasks=tasks, keys=keys)

        return self._loop.call(work())

    # -- appends ---------------------------------------------------------------------------------------

    def commit(self, session: str, appends: Sequence[Append], offer: Offer | None) -> list[Answer]:
        """Write appends, as many at once as do not depend on each other."""

        async def work() -> list[Answer]:
            await self._see_living(session)
            answers: list[Answer] = []
            left = list(appends)
            while left:
                wave, left = split(self._rooms.log.machine, left)
                answers += await self._commit_wave(session, wave, offer)
            self.made_room = self._rooms.log.machine.may_have_room(appends[-1].time if appends else None)
            return answers

        found = self._loop.call(work())
        self._committed = bool(found)
        return found

    async def _commit_wave(self, session: str, appends: list[Append], offer: Offer | None) -> list[Answer]:
        log = self._rooms.log
        wave = Wave(log.machine, session, appends, offer)
        if any(wave.refusals):
            await log.follow()
            log.machine.living(session)
            wave.look_again(log.machine)
        await self._put_values(wave.accepted)
        operations = [
            (self.location.journal(append.key), append_op(session, append, takes))
            for append, takes in zip(appends, wave.takes, strict=True)
            if takes is not False
        ]
        results = iter(await log.write(operations) if operations else ())
        answers: list[Answer] = []
        for refusal in wave.refusals:
            result = next(results) if refusal is None else refusal
            if isinstance(result, Exception):
                raise result
            answers.append(result)
        wave.settle([task for answer in answers for task in answer.leased])
        return answers

    async def _put_values(self, appends: Sequence[Append]) -> None:
        """Store what the appends name and the log does not hold."""
        plans: dict[str, bytes] = {}
        values: list[tuple[str, bytes]] = []
        for append in appends:
            if append.head is not None:
                plans[hashed_plan(append)] = append.plan or b""
            values += self._payloads(append.key, append.payloads)
            if append.report is not None:
                values += self._payloads(append.report.input.key, append.report.payloads)
        if plans:
            await self._rooms.put_plans(plans)
        if values:
            await self._rooms.values.put(values)

    def _payloads(self, key: str, payloads: Sequence[tuple[str, bytes]]) -> list[tuple[str, bytes]]:
        return [(self.location.payload(key, digest), data) for digest, data in payloads]

    # -- tasks -----------------------------------------------------------------------------------------

    def claim(self, session: str, offer: Offer, now: float) -> tuple[list[Task], float | None]:
        """Lease due tasks, over all queues by priority, then age."""

        async def work() -> tuple[list[Task], float | None]:
            await self._see_living(session)
            log = self._rooms.log
            claimed: list[Task] = []
            fresh = False
            while True:
                mark = offer.mark()
                takes, due, left = log.machine.claimable(session, offer, now)
                if takes is not None:
                    tasks = await self._write(wire.ClaimOp(session=session, now=now, takes=takes))
                    retake(offer, mark, takes.total, tasks)
                    claimed += tasks
                elif fresh and clock_was_set_back(log.machine.data.waiting, now):
                    await self._write(wire.ClaimOp(session=session, now=now, takes=Takes([])))
                elif fresh:
                    self.made_room = left
                    return claimed, due
                else:
                    await log.follow()
                    log.machine.living(session)
                # After a claim of ours, what came before it in the log is applied too: the next look is at the present.
                fresh = True

        return self._loop.call(work())

    def leased(self, session: str) -> list[Task]:
        """All tasks leased to the session."""

        async def work() -> list[Task]:
            await self._rooms.log.follow()
            return self._rooms.log.machine.store.leased(session)

        return self._loop.call(work())

    def _is_live(self, session: str, key: str, number: int, lease: int) -> bool:
        """Whether a token is live in the session's hand, as far as this process knows."""
        own = self._rooms.log.machine.data.sessions.get(session)
        entry = own.leases.get(lease) if own is not None else None
        return entry is not None and entry.task.run == key and entry.task.number == number

    async def _live(self, session: str, tokens: Sequence[tuple[str, int, int]]) -> list[bool]:
        """Which of these tokens, as (run, step number, token), may be live."""
        await self._see_living(session)
        live = await self._ask(lambda: [self._is_live(session, *token) for token in tokens], final=all)
        self._rooms.log.machine.living(session)
        return live

    def report(self, session: str, reports: Sequence[Report]) -> list[Reported]:
        """End leased tasks whose token is live."""

        async def work() -> list[Reported]:
            live = await self._live(session, [(report.input.key, report.number, report.lease) for report in reports])
            if not any(live):
                return [Reported(False) for _ in live]
            chosen = [report for report, alive in zip(reports, live, strict=True) if alive]
            if values := [v for report in chosen for v in self._payloads(report.input.key, report.payloads)]:
                await self._rooms.values.put(values)
            op = wire.ReportOp(session=session, reports=[without_payloads(report) for report in chosen])
            results = iter(await self._write(op))
            self.made_room = self._rooms.log.machine.may_have_room(None)
            return [next(results) if alive else Reported(False) for alive in live]

        return self._loop.call(work())

    def postpone(self, session: str, items: Sequence[Postponement], now: float) -> list[bool]:
        """Let tasks whose token is live wait again."""

        async def work() -> list[bool]:
            live = await self._live(session, [(item.key, item.number, item.lease) for item in items])
            if not any(live):
                return live
            waits = [wire.Wait(item.key, item.number, item.lease, item.not_before, item.call) for item in items]
            op = wire.PostponeOp(session=session, now=now, items=waits)
            answers: list[bool] = await self._write(op)
            self.made_room = self._rooms.log.machine.may_have_room(now)
            return answers

        return self._loop.call(work())

    def progress(self, session: str, items: Sequence[tuple[str, int, int, str]]) -> None:
        """Set the progress text of tasks whose token is live."""

        async def work() -> None:
            if any(await self._live(session, [(key, number, lease) for key, number, lease, _ in items])):
                await self._write(wire.ProgressOp(session=session, items=list(items)))

        self._loop.call(work())

    # -- inboxes and owners ----------------------------------------------------------------------------

    def post(self, inputs: Sequence[InboxInput]) -> list[bool]:
        """Insert inputs; one that is there already stays as it is."""

        async def work() -> list[bool]:
            runs = self._rooms.log.machine.data.runs
            known = await self._ask(lambda: [value.key in runs for value in inputs], final=all)
            if not any(known):
                return known
            return cast("list[bool]", await self._write(wire.PostOp(inputs=list(inputs))))

        return self._loop.call(work())

    def owned_inboxes(self, session: str) -> dict[str, list[InboxInput]]:
        """What waits in the inboxes of runs that the session owns, by run, oldest first."""

        async def work() -> dict[str, list[InboxInput]]:
            await self._rooms.log.follow()
            return self._rooms.log.machine.store.owned_inboxes(session)

        return self._loop.call(work())

    def acquire(self, session: str, key: str, *, steal: bool = False) -> Acquired | None:
        """Own the run if nobody does, or with `steal`."""

        async def work() -> Acquired | None:
            await self._rooms.log.follow()
            machine = self._rooms.log.machine
            machine.living(session)
            run = machine.run(key)
            if run is None:
                return None
            if run.owner is not None and run.owner.id != session and not steal:
                return Acquired(None, run.owner.id)
            acquired: Acquired | None = await self._write(wire.AcquireOp(session=session, key=key, steal=steal))
            if acquired is None or acquired.run is None:
                return acquired
            await self._rooms.complete(acquired.run, run.plan.decode())
            return acquired

        return self._loop.call(work())

    def release(self, session: str, keys: Sequence[str]) -> None:
        """Give runs back; those of others are left alone."""

        async def work() -> None:
            await self._see_living(session)
            own = self._rooms.log.machine.data.sessions[session]
            if await self._ask(lambda: any(key in own.owned for key in keys), final=bool):
                await self._write(wire.ReleaseOp(session=session, keys=list(keys)))

        self._loop.call(work())

    def sweep(self, session: str, now: float) -> Swept:
        """Find runs that nobody decides although they have inputs; let the log rise, and clear it when it is time."""

        async def work() -> Swept:
            await self._rooms.log.follow()
            machine = self._rooms.log.machine
            machine.living(session)
            # First of all: where there is no room, nothing else can be written.
            await self._rooms.log.clear_up()
            machine = self._rooms.log.machine
            if (level := machine.common_level()) > machine.level:
                await self._write(wire.LevelOp(session=session, level=level))
                machine = self._rooms.log.machine
            stranded = [run.key for run in machine.data.inboxes.values() if run.owner is None]
            return Swept(stranded, machine.due(now))

        return self._loop.call(work())

    def delete(self, key: str) -> Literal["deleted", "missing", "open"]:
        """Remove a closed run, leaving the tombstone of its key."""

        async def work() -> Literal["deleted", "missing", "open"]:
            runs = self._rooms.log.machine.data.runs
            if not await self._ask(lambda: key in runs, final=bool):
                return "missing"
            answer, keys = await self._write(wire.DeleteOp(key=key))
            for gone in keys:
                self._rooms.journal.forget(gone)
                for below in (self.location.payloads(gone), self.location.bodies(gone)):
                    await self._rooms.values.purge(f"{below}.>")
            return cast(Literal["deleted", "missing", "open"], answer)

        return self._loop.call(work())
