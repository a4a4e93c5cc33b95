"""Cycles in the simulation: nodes that work only while a loop of their own asks them to, and what they have counted.

In some worlds some machines are driven: a loop calls `run_once` and `work` again and again, as a program with a loop of
its own does, gives up on a cycle now and then, and crashes in the midst of others. What the cycles of one process have
counted must be what the journals say of its attempts.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Callable, Collection
from typing import Any, Final

import msgspec

from treadle.core import events as ev
from treadle.core.events import AnyEvent
from treadle.errors import StoreError
from treadle.runtime.client import App
from treadle.runtime.cycles import Cycle
from treadle.runtime.node import Node
from treadle.testing.invariants import CLOSED, COUNTED, Fail, Watch
from treadle.testing.sim_loop import Life, place_of
from treadle.testing.sim_shape import Host

# What a journal says of the end of an attempt, and how a cycle counts it. Of one whose step was cancelled it need not
# say where it was made.
_COUNTERS: Final[dict[type[AnyEvent], str]] = {
    ev.StepSucceeded: "succeeded",
    ev.AttemptFailed: "retried",
    ev.StepFailed: "failed",
}
# How long nobody asks for a cycle, at most.
_PAUSE: Final = 3.0
# A cycle in which nothing is left to do ends within so many seconds.
_PATIENCE: Final = 300.0


class Drive(msgspec.Struct):
    """The cycles of one life."""

    life: Life
    task: asyncio.Task[None] | None = None
    total: Cycle = Cycle()
    cycles: int = 0


class Drives:
    """The loops that drive nodes."""

    def __init__(
        self,
        seed: int,
        nodes: int,
        watch: Watch,
        say: Callable[[str], None],
        fail: Fail,
        driven: Collection[int] | None,
    ) -> None:
        # Drawn apart, so that the other worlds are what they were.
        rng = random.Random(f"cycles of {seed}")
        share = rng.choice((0.5, 1.0, 1.0)) if rng.random() < 0.2 else 0.0
        drawn = [index for index in range(nodes) if rng.random() < share]
        self.hosts = frozenset(drawn if driven is None else driven)
        self._seed = seed
        self._watch = watch
        self._say = say
        self._fail = fail
        self._drives: dict[Life, Drive] = {}
        self._over = False
        # By run: the sessions of attempts, and what the journals say of them.
        self._written: dict[str, Counter[tuple[str, str]]] = {}

    # -- what happens --------------------------------------------------------------------------------------------------

    def begin(self, host: Host) -> None:
        """A driven host is up: have its loop run."""
        life, app = host.life, host.app
        if host.index in self.hosts and life is not None and app is not None:
            drive = self._drives[life] = Drive(life)
            drive.task = asyncio.get_running_loop().create_task(self._drive(drive, app))

    def end(self, life: Life | None) -> None:
        """The loop of a life asks for nothing more; what is under way goes on."""
        drive = None if life is None else self._drives.get(life)
        if drive is not None and drive.task is not None:
            drive.task.cancel()

    async def finish(self) -> None:
        """All is closed: each loop ends with the cycle that it is in."""
        self._over = True
        running = [drive.task for drive in self._drives.values() if drive.task is not None and not drive.life.dead]
        if running:
            _, waiting = await asyncio.wait(running, timeout=_PATIENCE)
            for task in waiting:
                self._fail(CLOSED, f"a cycle does not end: {place_of(task)}")

    def wrote(self, key: str, event: AnyEvent) -> None:
        """An event came into the journal of a run."""
        name = _COUNTERS.get(type(event))
        if not self.hosts or name is None:
            return
        told: Any = event
        # What a child gave, or a step that never began, is no attempt's end; nor is what was taken back while it waited
        # for its next probe.
        if told.token and told.attempt > 0 and told.started_at:
            self._written.setdefault(key, Counter())[told.session, name] += 1

    async def _drive(self, drive: Drive, app: App) -> None:
        rng = random.Random(f"{self._seed} {drive.life.name} drives")
        while not self._over:
            try:
                cycle = await self._cycle(app, rng)
            except TimeoutError:
                # It was given up; the next one counts what it has begun.
                continue
            except StoreError as error:
                self._say(f"{drive.life.name} cycle: {type(error).__name__} {error}")
                await asyncio.sleep(rng.random())
                continue
            self._say(f"{drive.life.name} {cycle}")
            if cycle.processed != cycle.succeeded + cycle.retried + cycle.failed + cycle.cancelled:
                self._fail(COUNTED, f"{drive.life.name}: {cycle} does not add up")
            drive.total += cycle
            drive.cycles += 1
            await asyncio.sleep(_PAUSE * rng.random() ** 2)

    @staticmethod
    async def _cycle(app: App, rng: random.Random) -> Cycle:
        way, limit = rng.random(), rng.choice((None, None, 1, 2, 5))
        if way < 0.4:
            return await app.run_once(limit)
        if way < 0.6:
            async with asyncio.timeout(4 * rng.random()):
                return await app.run_once(limit)
        if way < 0.8:
            return await app.work(max_cycles=rng.randint(1, 4), limit=limit)
        return await app.work(max_cycles=20, until_idle=rng.choice((True, 1.0, 5.0)), limit=limit)

    @staticmethod
    def room(node: Node) -> int:
        """How many slots of a node are free, or would be in a cycle."""
        if node.cycles is None:
            return node.slots.free()
        node.slots.open(None)
        free = node.slots.free()
        node.slots.close()
        return free

    # -- the end -------------------------------------------------------------------------------------------------------

    def judge(self) -> None:
        """Compare what was counted with what was written.

        Of a run that was deleted meanwhile a cycle can only say what its attempts have said of themselves.
        """
        deleted = {key for key, journal in self._watch.journals.items() if journal.deleted}
        for life, drive in self._drives.items():
            written = Counter[str]()
            for key, counts in self._written.items():
                for (session, name), count in counts.items():
                    if key not in deleted and self._watch.sessions.get(session) is life:
                        written[name] += count
            counted = Counter({name: getattr(drive.total, name) for name in _COUNTERS.values()})
            # A process that has died has told nobody of its last cycle.
            if (not life.dead and written - counted) or (not deleted and counted - written):
                self._fail(COUNTED, f"the cycles of {life.name} have counted {counted}, the journals say {written}")
