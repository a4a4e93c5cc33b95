"""The model of limits behind `store_model`.

What rates allow is known within bounds: a store may refill its buckets whenever it looks at them, or only as tasks
start, and where clocks run apart that is not the same. Whatever a store leases must be within the upper bound, and what
the lower bound allows it must lease.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

from treadle.core.commands import Task
from treadle.store.base import Append
from treadle.store.queues import NO_LIMITS, Bucket, QueueLimits, allows, next_start, refill, spend
from treadle.testing.store_model_data import ModelRun, ModelTask

# What the model's queues are limited by, one after the other.
LIMITS = (
    NO_LIMITS,
    QueueLimits(concurrency=1),
    QueueLimits(concurrency=2, key_concurrency=1),
    QueueLimits(key_concurrency=1),
    QueueLimits(key_concurrency=1, fair=True, weights={"a": 2.0}),
    QueueLimits(rate=1.0, burst=2),
    QueueLimits(key_rate=0.5, key_burst=1),
    QueueLimits(rate=0.5, burst=3, concurrency=2, key_rate=1.0, key_concurrency=2, fair=True),
    QueueLimits(fair=True),
    QueueLimits(concurrency=1, length=2),
    QueueLimits(concurrency=1, length=2, on_full="drop_oldest"),
    QueueLimits(key_concurrency=1, length=2, on_full="drop_oldest"),
)

Counts = dict[tuple[str, str], int]


class ModelQueue:
    """A queue that was defined, with the bounds of what its rates allow: of the queue (key "") and of its keys."""

    def __init__(self) -> None:
        self.limits = NO_LIMITS
        self.paused = False
        self.upper: dict[str, Bucket] = {}
        self.lower: dict[str, Bucket] = {}


class ModelLimits:
    """All queues, over the model's runs."""

    def __init__(self, runs: Mapping[str, ModelRun]) -> None:
        self.runs = runs
        self.queues: dict[str, ModelQueue] = {}
        # Clocks may have gone back since; of what was leased, and of all.
        self.latest = 0.0
        self.furthest = 0.0

    def of(self, name: str) -> QueueLimits:
        """What limits a queue."""
        return self.queues[name].limits if name in self.queues else NO_LIMITS

    def set(self, name: str, limits: QueueLimits, paused: bool) -> bool:
        """Take over a definition; whether it changes anything."""
        queue = self.queues.get(name)
        if queue is not None and (queue.limits, queue.paused) == (limits, paused):
            return False
        queue = self.queues.setdefault(name, ModelQueue())
        # A bucket outlives a change of the rate, not its end.
        for key in [*queue.upper]:
            if not (limits.key_rate if key else limits.rate):
                del queue.upper[key], queue.lower[key]
        queue.limits, queue.paused = limits, paused
        return True

    def counts(self) -> Counts:
        """Leased tasks by queue and key; those of the whole queue have no key."""
        found: Counts = {}
        for run in self.runs.values():
            for model in run.tasks.values():
                if model.session:
                    name = model.task.queue
                    found[name, ""] = found.get((name, ""), 0) + 1
                    if model.task.key:
                        place = (name, model.task.key)
                        found[place] = found.get(place, 0) + 1
        return found

    def check(self, before: Counts) -> None:
        """No queue and no key may have more leased tasks than allowed, unless they had them before."""
        for (name, key), count in self.counts().items():
            limits = self.of(name)
            most = limits.key_concurrency if key else limits.concurrency
            assert not most or count <= max(most, before.get((name, key), 0)), f"{name} {key} has {count} leased tasks"

    def may_admit(self, task: Task, now: float, *, counted: bool = True) -> bool:
        """Whether a store may lease a task, as far as limits go; `counted`: concurrency included."""
        self.latest = max(self.latest, now)
        return self._admits(task, self.latest, upper=True, counted=counted)

    def must_admit(self, task: Task, now: float) -> bool:
        """Whether no limit allows a store to keep a task waiting."""
        return self._admits(task, now, upper=False, counted=True)

    def _admits(self, task: Task, now: float, *, upper: bool, counted: bool) -> bool:
        queue = self.queues.get(task.queue)
        if queue is None:
            return True
        limits = queue.limits
        if queue.paused or (counted and self._is_full(task, limits)):
            return False
        buckets = queue.upper if upper else queue.lower
        if limits.rate and not allows(refill(buckets.get(""), limits.rate, limits.burst, now), limits.rate):
            return False
        bucket = buckets.get(task.key)
        return not (task.key and limits.key_rate) or allows(
            refill(bucket, limits.key_rate, limits.key_burst, now), limits.key_rate
        )

    def _is_full(self, task: Task, limits: QueueLimits) -> bool:
        counts = self.counts()
        name, key = task.queue, task.key
        if limits.concurrency and counts.get((name, ""), 0) >= limits.concurrency:
            return True
        return bool(key and limits.key_concurrency and counts.get((name, key), 0) >= limits.key_concurrency)

    def is_first(self, model: ModelTask, rivals: Iterable[ModelTask]) -> bool:
        """Whether a task may be claimed before its rivals of the same queue, all of which may start too."""
        fair = self.of(model.task.queue).fair
        for other in rivals:
            if other is model or other.task.queue != model.task.queue:
                continue
            if other.task.priority > model.task.priority:
                return False
            if (not fair or other.task.key == model.task.key) and other.order() < model.order():
                return False
        return True

    def started(self, task: Task, now: float) -> None:
        """A task was leased."""
        queue = self.queues.get(task.queue)
        if queue is None:
            return
        self.latest = max(self.latest, now)
        limits = queue.limits
        for key, rate, burst in (("", limits.rate, limits.burst), (task.key, limits.key_rate, limits.key_burst)):
            # The second one is that of a key, if the task has one.
            if rate and (key or rate == limits.rate):
                for buckets, time in ((queue.upper, self.latest), (queue.lower, now)):
                    bucket = buckets[key] = refill(buckets.get(key), rate, burst, time)
                    spend(bucket)

    def next_start(self, task: Task, now: float) -> float | None:
        """When a task certainly may start, if it is rates alone that keep it waiting."""
        queue = self.queues.get(task.queue)
        if queue is None or queue.paused or self._is_full(task, queue.limits) or self.must_admit(task, now):
            return None
        limits = queue.limits
        times = [now]
        for key, rate, burst in (("", limits.rate, limits.burst), (task.key, limits.key_rate, limits.key_burst)):
            if rate and (bucket := queue.lower.get(key)) is not None:
                times.append(next_start(refill(bucket, rate, burst, now), rate, now))
        return max(times)

    def is_vague(self, append: Append) -> bool:
        """Whether tasks wait that were due before the clock was set back: a store may count them, until it looks."""
        models = (model for run in self.runs.values() for model in run.tasks.values() if not model.session)
        return any(append.time < model.task.not_before <= self.furthest for model in models)

    def crowded_out(self, append: Append, told: Collection[str], *, ever_settled: bool) -> str | list[str]:
        """The queue in which a new run finds no place to wait, or the keys of the runs that make place for it.

        `told` are runs that have got inputs in this commit. Whether a step counts that was settled once, and is not
        now, is the store's choice.
        """
        found: list[str] = []
        for name in dict.fromkeys(task.queue for task in append.tasks if task.not_before <= append.time):
            limits = self.of(name)
            waits = {run.key: run.waiting_in(name, append.time) for run in self.runs.values()}
            length = sum(waits.values())
            if not limits.length or length < limits.length:
                continue
            for key in sorted(key for key, count in waits.items() if count):
                only_waits = self.runs[key].only_waits(name, ever_settled=ever_settled) and key not in told
                if length >= limits.length and limits.on_full == "drop_oldest" and only_waits:
                    found.append(key)
                    length -= waits[key]
            if length >= limits.length:
                return name
        return found
