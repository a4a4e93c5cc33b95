"""Limits and placement in the simulation: queues with limits that change, steps that are placed, and who watches them.

Every third world is restricted: its steps wait in queues with limits, keys and priorities, and some are placed on
targets that come and go, or beside others. Operators pause queues and change limits while all goes on. What is drawn
here is drawn from the seed alone, so other draws of a world stay as they are.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, TypeVar, cast

import msgspec
from msgspec.structs import replace

from treadle.authoring.builder import Planned
from treadle.authoring.context import StepContext
from treadle.core.addresses import encode_id
from treadle.core.commands import Task
from treadle.core.plan import Block, Body, Branch, Choose, Gather, Group, Phase, Placement, Step
from treadle.runtime.step_context import RunningStep
from treadle.store.base import Answer, Append
from treadle.store.memory_data import MemoryData
from treadle.store.memory_lines import Entry
from treadle.store.memory_queues import Queue
from treadle.store.queues import DROPPED, QueueChange, QueueLimits, allows, refill
from treadle.testing.sim_loop import Life

LIMITED: Final = "no more steps of a queue or a key are executed, or start, than its limits allow; what began stays"
PLACED: Final = "a step is executed where its placement says"
TARGETS: Final = ("t0", "t1")
_QUEUES: Final = ("default", "q1", "q2", "q3")
_KEYS: Final = ("", "'a'", "'a'", "'b'", "'c'")
_BodyT = TypeVar("_BodyT", Body, Branch, Phase)
ChangeStep = Callable[[Step, Sequence[Step]], Step]
# Rounding, over some hundred starts.
_TOLERANCE = 1e-3


class Change(msgspec.Struct):
    """What an operator does to a queue at an instant."""

    name: str
    at: float
    node: int
    change: QueueChange


class Restrictions:
    """What a world restricts; nothing, in most of them."""

    def __init__(self, seed: int, seconds: float, nodes: int, queues: Sequence[QueueChange] | None = None) -> None:
        # With chosen queues nothing else is restricted.
        self.on = seed % 3 == 0 and queues is None
        self._seed = seed
        rng = random.Random(f"limits of {seed}")
        self.queues: list[QueueChange] = list(queues or ())
        self.changes: list[Change] = []
        if self.on:
            self.queues = [QueueChange(name=name, defined=_limits(rng, name)) for name in _QUEUES if rng.random() < 0.8]
            count = rng.choice((0, 3, 8))
            self.changes = [
                Change(f"queue{index}", rng.random() * seconds, rng.randrange(nodes), _change(rng))
                for index in range(count)
            ]

    def targets(self, host: int, seconds: float) -> list[str]:
        """What a host offers at a time; all of it when the trouble is over."""
        if seconds < 0:
            return [*TARGETS]
        step = f"{self._seed} {host} {int(seconds / 15)}"
        return [name for name in TARGETS if random.Random(f"{step} {name}").random() < 0.6]

    def planned(self, planned: Planned, name: str) -> Planned:
        """The plan with its steps in queues and places."""
        if not self.on:
            return planned
        rng = random.Random(f"{self._seed} {name}")
        return changed(planned, lambda step, before: _step(step, before, rng))

    def lifted(self, data: MemoryData) -> list[QueueChange]:
        """What brings the queues back to what programs have defined."""
        return [
            QueueChange(name=queue.name, override=None, paused=False)
            for queue in data.waiting.limited.values()
            if queue.paused or queue.override is not None
        ]


def _limits(rng: random.Random, name: str) -> QueueLimits:
    return QueueLimits(
        concurrency=rng.choice((0, 1, 2, 4)),
        rate=rng.choice((0.0, 0.0, 0.5, 2.0)),
        burst=rng.choice((1, 3)),
        key_concurrency=rng.choice((0, 0, 1, 2)),
        key_rate=rng.choice((0.0, 0.0, 1.0)),
        key_burst=rng.choice((1, 2)),
        fair=rng.random() < 0.4,
        weights={"a": 3.0} if rng.random() < 0.3 else {},
        # Children begin in the default queue, and are made until it takes them.
        length=0 if name == "default" else rng.choice((0, 0, 2, 6)),
        on_full=rng.choice(("reject", "wait", "drop_oldest")),
    )


def _change(rng: random.Random) -> QueueChange:
    name = rng.choice(_QUEUES)
    if rng.random() < 0.5:
        return QueueChange(name=name, paused=rng.random() < 0.5)
    return QueueChange(name=name, override=rng.choice((None, _limits(rng, name))))


def changed(planned: Planned, change: ChangeStep) -> Planned:
    """The plan with each of its steps changed; what changes it is told the steps before in the same scope."""
    blocks = _blocks(planned.plan.blocks, change)
    found = Planned(replace(planned.plan, blocks=blocks), planned.constants, planned.result, planned.about)
    found.singleton, found.on_conflict = planned.singleton, planned.on_conflict
    return found


def _blocks(blocks: Sequence[Block], change: ChangeStep) -> list[Block]:
    """The blocks of a scope with all steps in them changed; earlier ones never wait for later ones."""
    found: list[Block] = []
    steps: list[Step] = []
    for block in blocks:
        if isinstance(block, Step):
            made = change(block, steps)
            steps.append(made)
            found.append(made)
        elif isinstance(block, Group):
            found.append(replace(block, blocks=_blocks(block.blocks, change)))
        elif isinstance(block, Gather):
            found.append(replace(block, body=_body(block.body, change)))
        elif isinstance(block, Choose):
            found.append(replace(block, branches=[_body(branch, change) for branch in block.branches]))
        else:
            phases = [_body(phase, change) for phase in block.phases]
            compensations = [_body(one, change) for one in block.compensations]
            found.append(replace(block, phases=phases, compensations=compensations))
    return found


def _body(body: _BodyT, change: ChangeStep) -> _BodyT:
    return replace(body, blocks=_blocks(body.blocks, change))


def _step(step: Step, before: Sequence[Step], rng: random.Random) -> Step:
    queue, key, number = rng.choice(_QUEUES), rng.choice(_KEYS), rng.random()
    placement: Placement | None = None
    placed = [other for other in before if other.placement is not None]
    if number < 0.15:
        placement = Placement("target", target=rng.choice(TARGETS))
    elif number < 0.25 and before:
        placement = Placement("with", step=encode_id(rng.choice(before).id))
    elif number < 0.3 and placed:
        placement = Placement("follow", step=encode_id(rng.choice(placed).id))
    return replace(step, queue=queue, key=key, priority=rng.choice((0, 0, 0, 5)), placement=placement)


class LimitWatch:
    """Checks what each call of the store has leased, by counts of its own."""

    def __init__(self, data: MemoryData, fail: Callable[[str, str], None]) -> None:
        self.data = data
        self.fail = fail
        # What a session's node offers now; the world knows its nodes.
        self.offers: Callable[[str], Sequence[str]] = lambda _session: ()
        # The clocks that are most behind and most ahead; a full bucket is forgotten by any of them, or by a journal's
        # time, which stays ahead when its clock is set back.
        self.clocks: Callable[[], tuple[float, float]] = lambda: (0.0, 0.0)
        # How many tasks each queue has had leased.
        self.leased: Counter[str] = Counter()
        # Runs of which a step was given out, and how many have made place for others.
        self.begun: set[str] = set()
        self.dropped = 0
        # By queue and key: its version, and the bucket's time after each start.
        self._starts: dict[tuple[str, str], tuple[int, list[float]]] = {}

    def look(self, session: str, tasks: Sequence[Task]) -> None:
        """A session was given these."""
        for task in tasks:
            self.leased[task.queue] += 1
            if task.call.purpose == "step":
                self.begun.add(task.run)
            if task.target and task.target not in self.offers(session):
                self.fail(PLACED, f"{task.address} is for {task.target}, and {session} offers {self.offers(session)}")
        queues = self.data.waiting.limited
        held = [entry.task for own in self.data.sessions.values() for entry in own.leases.values()]
        for name in sorted({task.queue for task in tasks} & queues.keys()):
            self._check(queues[name], [task for task in tasks if task.queue == name], held)

    def made(self, append: Append, answer: Answer) -> None:
        """A run was made, perhaps in the place of others."""
        for key in answer.told:
            run = self.data.runs[key]
            if f"{DROPPED}{append.key}" not in run.inbox:
                continue
            self.dropped += 1
            if key in self.begun or run.tasks or run.head.parent:
                self.fail(LIMITED, f"run {run.head.id} makes place for {append.key}, and has begun")

    def _check(self, queue: Queue, tasks: list[Task], held: list[Task]) -> None:
        limits, where = queue.limits, f"queue {queue.name}"
        if queue.paused:
            self.fail(LIMITED, f"{where} is paused, and {tasks[0].address} was given out")
        running = [task for task in held if task.queue == queue.name]
        if 0 < limits.concurrency < len(running):
            self.fail(LIMITED, f"{where}: {len(running)} of {limits.concurrency} are executed")
        if limits.rate:
            self._rated(queue, "", len(tasks), queue.bucket, limits.rate, limits.burst)
        for key in sorted({task.key for task in tasks} - {""}):
            own = sum(task.key == key for task in running)
            if 0 < limits.key_concurrency < own:
                self.fail(LIMITED, f"{where}: {own} of {limits.key_concurrency} of key {key} are executed")
            if limits.key_rate:
                found = queue.keys.get(key)
                bucket = None if found is None else found.bucket
                count = sum(task.key == key for task in tasks)
                self._rated(queue, key, count, bucket, limits.key_rate, limits.key_burst)

    def _rated(self, queue: Queue, key: str, count: int, bucket: Any, rate: float, burst: int) -> None:
        """In any stretch of the bucket's time there are no more starts than a full bucket and its refill give."""
        behind, ahead = self.clocks()
        ahead = max([ahead, *(run.updated_at for run in self.data.runs.values())])
        if bucket is None:
            if not key or ahead - behind < 1 / rate:
                self.fail(LIMITED, f"queue {queue.name} has a rate, and a start of {key!r} left no bucket")
            # It was full again by the time of another append of this very call.
            self._starts.pop((queue.name, key), None)
            return
        version, starts = self._starts.get((queue.name, key), (-1, []))
        if version != queue.version or (starts and bucket.at < starts[-1]):
            # Other limits hold, or the clocks were set back.
            starts = []
        # One call may start several at different times, of which the bucket has the last.
        starts += [*(starts[-1:] * (count - 1)), bucket.at]
        self._starts[queue.name, key] = queue.version, starts
        until = max(bucket.at, ahead if key else 0.0)
        for index, since in enumerate(starts):
            most = burst + rate * (until - since) + _TOLERANCE
            if len(starts) - index > most:
                text = f"queue {queue.name} {key!r}: {len(starts) - index} starts since {since:.3f}, at {bucket.at:.3f}"
                self.fail(LIMITED, f"{text}, with {rate}/s and burst {burst}")
                return


def may_start(data: MemoryData, entry: Entry, now: float) -> bool:
    """Whether the limits of its queue leave room for a task that waits; nothing is changed by asking."""
    queue = data.waiting.limited.get(entry.task.queue)
    if queue is None:
        return True
    limits, key = queue.limits, queue.keys.get(entry.task.key) if entry.task.key else None
    if not queue.is_open():
        return False
    if limits.rate and not allows(refill(queue.bucket, limits.rate, limits.burst, now), limits.rate):
        return False
    if key is None or not limits.by_key:
        return True
    if 0 < limits.key_concurrency <= key.running:
        return False
    return not limits.key_rate or allows(refill(key.bucket, limits.key_rate, limits.key_burst, now), limits.key_rate)


def misplaced(step: StepContext, ran_on: Mapping[str, str], sessions: Mapping[str, Life], life: Life | None) -> str:
    """What is wrong with where an attempt is executed; empty if nothing is."""
    placed = cast(RunningStep, step).task.call.placement
    if placed is None or life is None:
        return ""
    here = _host(life)
    if placed.mode == "target" and step.target != placed.target:
        return f"is placed on {placed.target} and was sent to {step.target!r}"
    if placed.mode == "with":
        around = step.step.rpartition("/")[0]
        other = sessions.get(ran_on.get(f"{around}/{placed.step}" if around else placed.step, ""))
        if other is not None and _host(other) != here:
            return f"is placed beside {placed.step}, which was executed by {other.name}, and runs on {here}"
    return "" if step.target else "is placed and was sent anywhere"


def _host(life: Life) -> str:
    return life.name.partition(".")[0]
