"""Clients of a simulated world: coroutines on its machines that ask something of the application there."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection
from contextlib import suppress
from typing import Any

from treadle.authoring.conflicts import OnConflict
from treadle.errors import InternalError, RunExistsError, RunNotActiveError, TreadleError
from treadle.runtime.client import App
from treadle.store.queues import QueueChange
from treadle.testing.invariants import ANSWERS, CALLERS, DURABLE, FOLD, Fail, Journal, Watch
from treadle.testing.sim_clients import Desk
from treadle.testing.sim_limits import Restrictions
from treadle.testing.sim_loop import Life, SimLoop, place_of
from treadle.testing.sim_oracle import Told
from treadle.testing.sim_processes import Apart
from treadle.testing.sim_shape import Host, conflict_of, singleton_of, where
from treadle.testing.sim_workload import AT_CHILDREN, LABELS, SIGNALS, Act, RunSpec, Workload


class Requests:
    """Starts and operations, each by a client that lives and dies with its machine's process."""

    def __init__(
        self,
        loop: SimLoop,
        watch: Watch,
        workload: Workload,
        restrictions: Restrictions,
        apart: Apart,
        drop: Collection[str],
        fail: Fail,
    ) -> None:
        self._loop = loop
        self._watch = watch
        self._workload = workload
        self._restrictions = restrictions
        self._apart = apart
        self._drop = drop
        self._fail = fail
        self.told: list[Told] = []
        self.desk = Desk(watch, self.told, fail)
        # The keys of runs that were told to starts which attach to none.
        self._made: set[str] = set()
        self._clients: list[tuple[str, Life, asyncio.Task[Any]]] = []

    def waiting(self) -> list[str]:
        """What clients of living processes wait for."""
        return [
            f"client {name} of {life.name} waits: {place_of(task)}"
            for name, life, task in self._clients
            if not life.dead and not task.done()
        ]

    def client(
        self, host: Host, name: str, work: Callable[[App], Awaitable[None]]
    ) -> tuple[Life, asyncio.Task[Any]] | None:
        """Let a client do something on a host; None if that is not up."""
        life, app = host.life, host.app
        if life is None or app is None or life.dead or host.context is None:
            return None
        task = self._loop.create_task(self._client(name, lambda: work(app)), context=host.context.copy())
        self._clients.append((name, life, task))
        return life, task

    async def _client(self, name: str, work: Callable[[], Awaitable[None]]) -> None:
        try:
            await work()
        except (TreadleError, TimeoutError) as error:
            self._watch.say(f"client {name}: {type(error).__name__} {error}")
            if isinstance(error, InternalError):
                self._fail(FOLD, f"client {name} was told {error!r}")
        except Exception as error:  # noqa: BLE001 - any other error is a finding
            self._fail(CALLERS, f"client {name} got {error!r} at {where(error)}")
        else:
            self._watch.say(f"client {name}: done")

    def start(self, host: Host, spec: RunSpec, *, replace: bool = False, awaits: bool = False) -> None:
        """Start a run, and perhaps wait for it."""

        async def work(app: App) -> None:
            spec.planned.singleton = singleton_of(spec.at)
            how: OnConflict = "replace" if replace else spec.conflict or conflict_of(spec.at, host.index)
            try:
                run = await app.start(
                    self._restrictions.planned(self._apart.planned(spec.planned, spec.name), spec.name),
                    id=spec.id,
                    breakpoints=spec.breakpoints,
                    on_conflict=how,
                    delay=spec.delay,
                    deadline=spec.deadline,
                )
            except RunExistsError as error:
                self._refused(spec, how, error.run_id)
                raise
            key = await run.key()
            if key not in self._watch.journals:
                self._fail(DURABLE, f"start of {spec.id} returned {key}, which is not stored")
            elif how in ("reject", "replace") or (how == "queue" and not spec.planned.singleton):
                if key in self._made:
                    self._fail(ANSWERS, f"start of {spec.id} by {how} returned {key}, which another start has made")
                self._made.add(key)
            if awaits:
                await self.desk.await_result(run, key)

        self.client(host, f"start {spec.name}", work)

    def _refused(self, spec: RunSpec, how: OnConflict, in_the_way: str) -> None:
        """A start was told that another run is in its way."""
        heads = [journal.run.head for journal in self._watch.journals.values() if journal.run.head.id == in_the_way]
        name = spec.planned.singleton
        if not any(head.id == spec.id or (name and head.singleton == name) for head in heads):
            self._fail(
                ANSWERS, f"start of {spec.id} by {how} was refused for {in_the_way!r}, which was never in its way"
            )
        if how in ("replace", "queue") and in_the_way != spec.id:
            self._fail(ANSWERS, f"start of {spec.id} by {how} was refused for {in_the_way!r}")

    def operate(self, host: Host, act: Act) -> None:
        """Do what an operator does."""
        if act.what == "gc":
            self.client(host, act.name, self.desk.sweep_old)
            return
        spec = self._workload.runs[act.run]
        if spec.name in self._drop:
            return
        if act.what == "replace":
            self.start(host, spec, replace=True)
            return

        self._ask(host, act, spec.name, self._aim(act, spec.id), spec.id, spec.step)

    def operate_on(self, host: Host, act: Act, id_: str) -> None:
        """Do what an operator does to a run that is there."""
        self._ask(host, act, id_, id_, id_, "")

    def _ask(self, host: Host, act: Act, name: str, aim: str, id_: str, step: str) -> None:
        async def work(app: App) -> None:
            # Some callers give up early.
            patience = act.number * 2 if act.number < 0.2 else None
            async with asyncio.timeout(patience):
                run = app.run(aim)
                key = await run.key()
                await self.desk.ask(act, id_, run, key, step)

        self.client(host, f"{act.name} {act.what} {name}", work)

    def limit(self, host: Host, name: str, change: QueueChange) -> None:
        """Change the limits of a queue."""

        async def work(app: App) -> None:
            await app.change_queue(change)

        self.client(host, f"{name} {change.name}", work)

    def _aim(self, act: Act, id_: str) -> str:
        """The run that an operator means: the one of this id, or now and then one below it."""
        below = [run.head.id for run in self._watch.data.runs.values() if run.head.id.startswith(f"{id_}/")]
        aimed = act.what in AT_CHILDREN and below and int(act.number * 100) % 5 == 0
        return below[int(act.number * len(below))] if aimed else id_

    def lift(self, host: Host, id_: str, journal: Journal) -> None:
        """Do for a run what its operators have left undone."""
        missing = [name for name in SIGNALS if name not in journal.signals]
        labels = [label for label in LABELS if label in journal.reached]
        if not missing and not labels and not journal.run.hold:
            return

        async def work(app: App) -> None:
            run = app.run(id_)
            if journal.run.hold:
                await run.resume()
            for name in missing:
                # A run that unwinds takes signals only while a phase is compensated.
                with suppress(RunNotActiveError):
                    await run.signal(name, "calm")
            for label in labels:
                await run.release(label)

        self.client(host, f"lift {id_}", work)
