"""A node: one session of a process with its committer, engine, worker and sweeper, on one store."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Awaitable, Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, TypeVar

import msgspec

from treadle.authoring.packages import Package
from treadle.authoring.registry import Registry
from treadle.authoring.sleep import SLEEP
from treadle.core import inputs as inp
from treadle.core.commands import Call, Task
from treadle.core.decide import Limits
from treadle.core.events import decode_events
from treadle.core.plan import Fragment, Plan, RetryPolicy
from treadle.errors import LeaseLostError, SchemaVersionError, StoreError, TreadleError
from treadle.ports import Elector, Environment, PayloadCodec
from treadle.runtime.adding import add_now
from treadle.runtime.attempts import Finish
from treadle.runtime.children import ask_child, call_child
from treadle.runtime.cycles import Cycles
from treadle.runtime.engine import Engine
from treadle.runtime.event_sinks import EventSink
from treadle.runtime.events_out import Feeds
from treadle.runtime.expecting import Expected
from treadle.runtime.failures import DEFAULT_CAP, ErrorText
from treadle.runtime.hooks import Hooks
from treadle.runtime.hub import Hub
from treadle.runtime.middleware import Middleware
from treadle.runtime.observers import Observers
from treadle.runtime.owned import Owned, Pending
from treadle.runtime.payloads import Payloads, Row
from treadle.runtime.places import Places
from treadle.runtime.probes import Postponer
from treadle.runtime.projections import Live, ProjectionRoom
from treadle.runtime.questions import Questions
from treadle.runtime.retention import Rule, retain
from treadle.runtime.slots import ASYNC, THREAD, TIMER, Slots
from treadle.runtime.sweeper import Sweeper
from treadle.runtime.targets import OwnTargets, Targets
from treadle.runtime.watch import Watch
from treadle.runtime.worker import Worker
from treadle.store.base import Append, Reader, Renewal, SessionRow, Store
from treadle.store.blob_port import Blobs
from treadle.store.committer import Committer, Driver
from treadle.store.positions import Positions
from treadle.store.queues import QueueChange

_log = logging.getLogger("treadle.node")
T = TypeVar("T")


# How long after a wake-up the store is asked for interrupts.
ASK_SECONDS = 0.05


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """How a node works."""

    # Attempts at a time: on the event loop, and in threads.
    slots: int = 1000
    threads: int = 16
    # Whether this node executes steps; an operator's node only decides.
    worker: bool = True
    worker_id: str = ""
    # A session whose renewal stands still for so long is dead.
    lease_seconds: float = 15.0
    # How often an elected sweeper looks around.
    sweep_seconds: float = 1.0
    limits: Limits = Limits()
    # Who says which session sweeps; the store does where there is none.
    elector: Elector | None = None
    error_bytes: int = DEFAULT_CAP
    # The policy of steps for which neither they nor their workflow have one; fixed in a run when it is started.
    retry: RetryPolicy | None = None
    # Who is told of boundaries, and what is around each attempt; both in their order.
    hooks: tuple[Hooks, ...] = ()
    middleware: tuple[Middleware, ...] = ()
    # Limits of queues, that it makes known to the store when it begins.
    queues: tuple[QueueChange, ...] = ()
    # The targets whose tasks it executes, besides its own name, or who tells them.
    targets: Targets = ()
    # It executes only in the cycles that it is asked for.
    cycles: bool = False
    # Which closed runs are kept; None: all.
    retention: Rule | None = None
    # Where events go.
    events: tuple[EventSink, ...] = ()
    # What stands between values and the store.
    codec: PayloadCodec | None = None
    # The domains that it serves, and their settings by package.
    packages: tuple[Package, ...] = ()
    package_settings: Mapping[str, Any] = {}


class Node:
    """One session's life: `open`, work, `close`. All methods are for its event loop."""

    def __init__(
        self,
        environment: Environment,
        *,
        driver: Callable[[], Driver],
        blobs: Blobs,
        registry: Registry,
        settings: Settings,
        in_reader: Callable[[Callable[[], Any]], Awaitable[Any]],
        beside: Callable[[Callable[[], Any]], Awaitable[Any]] | None = None,
        projections: Mapping[str, Live] = MappingProxyType({}),
        sinks: Mapping[EventSink, Positions] = MappingProxyType({}),
    ) -> None:
        self.environment = environment
        self.settings = settings
        self.registry = registry
        self.blobs = blobs
        self.store: Store = environment.store
        self._driver = driver
        self._in_reader = in_reader
        # Runs what reads and writes blobs; slow, so that reads of the store need not wait for it.
        self.beside = beside or in_reader
        self._live = projections
        self.feeds = Feeds(self, sinks) if sinks else None
        self.name = settings.worker_id or f"{socket.gethostname()}-{os.getpid()}"
        self.questions = Questions(self)
        self.watch = Watch(self)
        self.places = Places(self)
        self.targets = OwnTargets(self, settings.targets)
        self.cycles = Cycles(self) if settings.worker and settings.cycles else None
        # What the runs of a package's entrypoints are called, if nothing else is said.
        self.titles = {
            workflow.name: package.title
            for package in settings.packages
            for workflow in package.entrypoints.values()
            if package.title
        }
        self.closing = False
        self.session = ""
        # The hungry worker has reason to believe that tasks wait in the store.
        self._hungry = False
        self._claiming = False
        self.expected = Expected(self)
        # This claim is for room that was made: what it leaves is for others.
        self._shares_room = False
        self._due: asyncio.TimerHandle | None = None
        # Set while a question for interrupts is on its way.
        self._asking: asyncio.TimerHandle | None = None
        # A dict, since tasks are hashed by address: whatever goes through them does so in the order of their making.
        self._tasks: dict[asyncio.Task[Any], None] = {}

    # -- life ----------------------------------------------------------------------------------------------------

    async def open(self) -> None:
        """Open the store's session and begin to work."""
        self.loop = asyncio.get_running_loop()
        # What reads journals is made at its first use, and that must not hold up steps that are under way.
        decode_events("[]")
        self.reader: Reader = await self._in_reader(self.store.reader)
        self.payloads = Payloads(self.reader, self.blobs, self._in_reader, self.beside, self.settings.codec)
        self.observers: Observers | None = None
        if self.settings.hooks:
            clock = self.environment.clock
            self.observers = Observers(
                self.settings.hooks, payloads=self.payloads, registry=self.registry, clock=clock, worker=self.name
            )
            self.spawn(self.observers.run())
        if self.feeds is not None:
            await self.feeds.prepare()
        self.projections = ProjectionRoom(self, self._live, self.beside)
        await self.targets.read()
        await self.environment.wakeups.open(self._woken)
        await self._begin()
        self.projections.follower.start()
        if self.feeds is not None:
            self.feeds.start()
        if self.settings.retention is not None:
            self.spawn(retain(self, self.settings.retention))

    async def _begin(self) -> None:
        """Enter a new session; also after one was lost."""
        environment, settings = self.environment, self.settings
        self.session = environment.ids.key()
        # A workflow is executed by making a run of it, where a step calls it.
        actions = [*self.registry.names(), *self.registry.workflows()]
        self.slots = Slots((settings.slots, settings.threads), actions, self._kind_of)
        if self.cycles is not None:
            self.slots.close()
        waits = self.watch.begin()
        self._enter(waits, actions if settings.worker else [])
        offer = self.slots if settings.worker else None
        self.committer = Committer(self.store, self.session, offer, environment.wakeups, self._driver())
        self.committer.waits = waits
        self.committer.on_renewal = self.targets.renewed
        self.committer.on_room = self._room_made
        self.hub = Hub(self.watch.changed)
        self.engine = Engine(
            session=self.session,
            committer=self.committer,
            clock=environment.clock,
            ids=environment.ids,
            hub=self.hub,
            limits=settings.limits,
            on_leased=self._leased,
            on_adopted=self._adopted,
            on_queued=self._queued,
            on_taken_back=self.places.look,
            on_interrupt=self._interrupt,
            on_lease_lost=self._lease_lost,
            is_executing=self._knows,
            on_committed=self._told_of_commits(),
            on_given=self.projections.follower.ring,
        )
        self.postponer = Postponer(
            session=self.session,
            committer=self.committer,
            engine=self.engine,
            clock=environment.clock,
            on_due=self._due_at,
        )
        self.worker = Worker(
            session=self.session,
            name=self.name,
            registry=self.registry,
            slots=self.slots,
            environment=environment,
            payloads=self.payloads,
            errors=ErrorText(settings.error_bytes),
            finish=self._told_of_ends(),
            postpone=self._postponed,
            on_free=self.look_for_tasks,
            steps=self,
            middleware=settings.middleware,
            package_settings=settings.package_settings,
        )
        self._execute = self.worker.start if self.observers is None else self._execute_observed
        self.sweeper = Sweeper(
            session=self.session,
            committer=self.committer,
            clock=environment.clock,
            engine=self.engine,
            lease_seconds=settings.lease_seconds,
            sweep_seconds=settings.sweep_seconds,
            on_due=self._due_at,
            elector=settings.elector,
        )
        self.sweeper.start()
        self.look_for_tasks()

    def _told_of_commits(self) -> Callable[[Owned, Append], None] | None:
        """Who is told of each commit of a run; nobody, as a rule."""
        observers, cycles, feeds = self.observers, self.cycles, self.feeds
        told: list[Callable[[Owned, Append], None]] = []
        if cycles is not None:
            told.append(lambda _owned, append: cycles.committed(append.key, append.events))
        told += [watcher.committed for watcher in (observers, feeds) if watcher is not None]
        if len(told) < 2:
            return told[0] if told else None

        def committed(owned: Owned, append: Append) -> None:
            for tell in told:
                tell(owned, append)

        return committed

    def _told_of_ends(self) -> Finish:
        """Where an attempt's outcome goes."""
        finish, cycles = (self._finished if self.observers is None else self._observed), self.cycles
        if cycles is None:
            return finish

        def ended(task: Task, outcome: inp.Outcome, rows: list[Row]) -> None:
            cycles.ended(task, outcome)
            finish(task, outcome, rows)

        return ended

    def _enter(self, waits: int, actions: list[str]) -> None:
        """Open the store's session, and make known what this node says of queues."""
        self.slots.aim(self.targets.offered())
        self.store.open_session(self._session_row(waits, actions))
        if self.settings.queues:
            self.store.set_queues(self.settings.queues, self.environment.clock.now())

    def _session_row(self, waits: int, actions: list[str]) -> SessionRow:
        slots = self.settings.slots if self.settings.worker else 0
        return SessionRow(
            id=self.session,
            worker=self.name,
            wake=self.environment.wakeups.address,
            beat=0,
            waits=waits,
            actions=actions,
            targets=self.targets.offered() if self.settings.worker else [],
            info={"host": socket.gethostname(), "pid": os.getpid(), "slots": slots},
        )

    async def drain(self, grace_seconds: float | None = None) -> bool:
        """Take no new attempts and wait for the live ones; False if some were still live after the grace."""
        self.slots.close()
        try:
            async with asyncio.timeout(grace_seconds):
                await self.worker.drained()
        except TimeoutError:
            return False
        return True

    async def close(self) -> None:
        """End the session: what it holds goes to other sessions at once."""
        if self.closing:
            return
        self.closing = True
        self.places.look()
        self.sweeper.stop()
        self.slots.close()
        self.worker.abandon()
        self.worker.close()
        if self.feeds is not None:
            self.feeds.close()
        self.engine.close()
        self.watch.stop()
        for timer in (self._due, self._asking):
            if timer is not None:
                timer.cancel()
        session = self.session
        committer = self.committer

        def leave(store: Store) -> None:
            keys = store.bury(session)
            committer.notify(tasks=True, keys=keys)

        try:
            await committer.call(leave)
        except StoreError as error:
            _log.warning("the session could not be ended in order, others will find it dead: %s", error)
        await committer.stop()
        if self.observers is not None:
            await self.observers.finish()
        for task in list(self._tasks):
            task.cancel()
        await self.projections.close()
        self.environment.wakeups.close()
        self.environment.threads.close(wait=False)
        await self._in_reader(self.reader.close)

    def _lease_lost(self) -> None:
        """Others declared this session dead: stop, write nothing, and begin anew."""
        if self.closing or self.engine.closed:
            return
        _log.warning("session %s was declared dead; its attempts are void, a new session begins", self.session)
        self.engine.close()
        self.sweeper.stop()
        self.worker.abandon()
        self.worker.close()
        self.slots.close()
        hub, committer = self.hub, self.committer
        waiting = [item for owned in self.engine.runs.values() for item in (*(owned.in_flight or ()), *owned.pending)]

        async def again() -> None:
            await committer.stop()
            while not self.closing:
                try:
                    await self._begin()
                    break
                except StoreError as error:
                    _log.warning("no new session yet: %s", error)
                    await asyncio.sleep(1.0)
            hub.all_changed()
            for item in waiting:
                if item.waiter is not None:
                    item.waiter(None, LeaseLostError("the session was lost before this was decided; ask again"), [])

        self.spawn(again())

    def spawn(self, work: Any) -> None:
        """Run a coroutine in the background and keep it alive."""
        task = self.loop.create_task(work)
        self._tasks[task] = None
        task.add_done_callback(lambda done: self._tasks.pop(done, None))

    def with_defaults(self, plan: Plan) -> Plan:
        """The plan with this node's default policy, if it has none of its own."""
        if self.settings.retry is None or plan.retry is not None:
            return plan
        return msgspec.structs.replace(plan, retry=self.settings.retry)

    # -- reading -------------------------------------------------------------------------------------------------

    async def read(self, function: Callable[[], T]) -> T:
        """Run a read on the thread that owns the reader."""
        value: T = await self._in_reader(function)
        return value

    # -- tasks ---------------------------------------------------------------------------------------------------

    def _kind_of(self, action: str) -> int | None:
        if action == SLEEP:
            return TIMER
        if self.registry.workflow(action) is not None:
            return ASYNC
        try:
            definition = self.registry.get(action)
        except TreadleError:
            return None
        return ASYNC if definition.is_async and definition.isolation is None else THREAD

    def _leased(self, tasks: Sequence[Task]) -> None:
        if not self.engine.closed:
            self._execute(tasks)

    def _adopted(self, task: Task) -> None:
        """Start a task whose lease came with an answer that was lost, and with it the slot that it had taken."""
        if self.slots.kind(task.action) is None or self.engine.closed:
            return
        self.slots.adopt(task.action)
        self._execute([task])

    def _execute_observed(self, tasks: Sequence[Task]) -> None:
        assert self.observers is not None
        for task in tasks:
            if self.slots.kind(task.action) is not None:
                self.observers.attempt_started(task)
                self.worker.start([task])

    def _knows(self, task: Task) -> bool:
        """Whether a lease is at work here: executed, or on its way back to wait."""
        return self.worker.knows(task) or self.postponer.knows(task)

    def _observed(self, task: Task, outcome: inp.Outcome, rows: list[Row]) -> None:
        assert self.observers is not None
        self.observers.attempt_ended(task, outcome, rows)
        self._finished(task, outcome, rows)

    def _queued(self) -> None:
        self._hungry = True
        self._claim()

    def look_for_tasks(self) -> None:
        """Claim waiting tasks if there is room for them."""
        if self.cycles is not None:
            self.cycles.stirred.set()
        self._hungry = True
        self._claim()

    @property
    def claiming(self) -> bool:
        """Whether a claim is on its way."""
        return self._claiming

    def _claim(self) -> None:
        if self._claiming or not self.settings.worker or self.engine.closed or self.slots.free() <= 0:
            return
        self._claiming = True
        self._hungry = False
        committer, clock = self.committer, self.environment.clock
        committer.submit(lambda store: committer.claim(store, clock.now()), self._claimed)

    def _room_made(self) -> None:
        """A queue with limits has room for tasks that waited: they are claimed here, or others are told of them."""
        if self.settings.worker and self.cycles is None and self.slots.free() > 0 and not self.engine.closed:
            self._shares_room = True
            self.look_for_tasks()
        else:
            self._share_room()

    def _share_room(self) -> None:
        committer = self.committer
        committer.submit(lambda _store: committer.notify(tasks=True, keys=()), lambda _value, _error: None)

    def _claimed(self, found: tuple[list[Task], float | None, bool, bool] | None, error: BaseException | None) -> None:
        self._claiming = False
        if found is None:
            if isinstance(error, LeaseLostError):
                self._lease_lost()
            elif not self.engine.closed:
                # It may have taken effect: what it leased to this session nobody else would ever execute.
                self.engine.adopt()
                self.loop.call_later(0.2, self.look_for_tasks)
            return
        tasks, due, left, room = found
        if room and self._shares_room:
            self._share_room()
        self._shares_room = False
        if tasks:
            self._leased(tasks)
            self.places.claimed(tasks)
        if due is not None:
            self._due_at(due)
        # Something has come since it was sent.
        again = self._hungry
        if left:
            # Asked on the committer's thread: a slot that was freed since must not hide that tasks were left.
            self._hungry = True
        # A claim takes all that there is room for. While a kind is full an attempt of it is live; its end asks again.
        if again or (left and not self.slots.full()):
            self._claim()

    async def claim_at_once(self) -> float | None:
        """Claim what is due, and start it; gives when the next task falls due.

        Raises:
            StoreError: nothing is known; what was claimed all the same is found later.
        """
        committer, clock = self.committer, self.environment.clock
        self._claiming = True
        self._hungry = False
        asked = committer.call(lambda store: committer.claim(store, clock.now()))
        # Also if whoever asked has given up: what is claimed is this session's to execute.
        asked.add_done_callback(
            lambda done: self._claimed(None if (error := done.exception()) else done.result(), error)
        )
        found = await asyncio.shield(asked)
        return found[1]

    def _due_at(self, at: float) -> None:
        """A waiting task falls due then: look again."""
        delay = max(0.0, at - self.environment.clock.now())
        if self._due is not None:
            if (
                not self._due.cancelled()
                and self._due.when() <= self.loop.time() + delay
                and self._due.when() > self.loop.time()
            ):
                return
            self._due.cancel()
        self._due = self.loop.call_later(delay, self.look_for_tasks)

    def _finished(self, task: Task, outcome: inp.Outcome, rows: list[Row]) -> None:
        self.engine.outcome(task, outcome, rows)
        if self._hungry:
            self._claim()

    def _postponed(self, task: Task, call: Call, at: float) -> None:
        self.postponer.postpone(task, call, at)
        if self._hungry:
            self._claim()

    def _interrupt(self, key: str, number: int) -> None:
        self.worker.interrupt(key, number)

    # -- wake-ups and renewals -----------------------------------------------------------------------------------

    def _woken(self) -> None:
        if self.closing or self.engine.closed:
            return
        self.expected.look()
        self.places.woken()
        self.engine.inboxes.look_around()
        # Of its own runs the engine tells.
        self.hub.all_changed(but=self.engine.will_tell)
        if self.feeds is not None:
            self.feeds.woken()
        self.look_for_tasks()
        if self.worker.active and self._asking is None:
            # A hard cancel elsewhere marks our tasks; the renewal's answer names them. A renewal is a write, so the
            # wake-ups of a busy neighbour share one.
            self._asking = self.loop.call_later(ASK_SECONDS, self._ask)

    def _ask(self) -> None:
        self._asking = None
        if not self.closing and not self.engine.closed:
            self.committer.submit(lambda store: store.renew(self.session), self.renewed)

    def renewed(self, renewal: Renewal | None, error: BaseException | None) -> None:
        """The store has counted the session's beat up, or could not."""
        # A store that has risen above this version has no session of it.
        if isinstance(error, LeaseLostError | SchemaVersionError):
            self._lease_lost()
        elif renewal is not None:
            for key, number, lease in renewal.interrupts:
                self.worker.interrupt(key, number, lease)

    # -- worker.Steps --------------------------------------------------------------------------------------------

    def progress(self, task: Task, text: str) -> None:
        """Store a progress text; a hint, lost without harm."""
        item = (task.run, task.number, task.lease, text)
        self.committer.submit(lambda store: store.progress(self.session, [item]), lambda _value, _error: None)

    async def call(self, task: Task, values: dict[str, Any], started_at: float) -> str | None:
        """Make the run that a step calls, or ask it to undo what it did."""
        child = task.call.child
        if child is not None and child.unwind:
            return await ask_child(self, task, child)
        return await call_child(self, task, values, started_at)

    async def add_now(self, task: Task, fragments: Sequence[Fragment]) -> None:
        """Add steps for a live attempt at once."""
        await add_now(self, task, fragments)


__all__ = ["Node", "Pending", "Settings"]
