"""What a claim or an append would be handed now: foreseen in the state of a machine, which stays as it is.

The state machine keeps count of limits as it looks at them: what a rate allows is worked out, a key that is full is set
aside. Looking without an operation of the log must leave no trace of that, or processes that have looked at different
times would come to different answers. `aside` puts everything back; where no queue has limits, there is nothing to it.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import contextmanager

import msgspec

from treadle.core.commands import Task
from treadle.store.base import Append
from treadle.store.memory import MemoryData
from treadle.store.memory_data import StoredRun
from treadle.store.memory_dropping import crowded_out
from treadle.store.memory_lines import Entry
from treadle.store.memory_queues import Key, Queue, Waiting
from treadle.store.nats.wire import Takes
from treadle.store.offers import Offer
from treadle.store.queues import MOST_AHEAD_SECONDS, Bucket, refill

Counts = dict[tuple[str, str], int]


def look_afresh(waiting: Waiting, now: float | None) -> None:
    """Forget what was found full or open, and take in what is due: so that what follows depends on the log alone."""
    if not waiting.limited:
        return
    for queue in waiting.limited.values():
        limits = queue.limits
        queue.opened = False
        if now is not None and _is_ahead(queue.bucket, now):
            queue.bucket = refill(queue.bucket, limits.rate, limits.burst, now)
        for name, key in queue.keys.items():
            if now is not None and _is_ahead(key.bucket, now):
                key.bucket = refill(key.bucket, limits.key_rate, limits.key_burst, now)
            if key.closed:
                key.closed = False
                for line in queue.lines.values():
                    line.open(name)
    waiting.opening.clear()
    if now is not None:
        waiting.promote(now)
        waiting.fade(now)


def clock_was_set_back(waiting: Waiting, now: float) -> bool:
    """Whether a bucket was filled by a clock that has been set back since: then an operation of the log must tell."""
    return any(
        _is_ahead(bucket, now)
        for queue in waiting.limited.values()
        for bucket in (queue.bucket, *(key.bucket for key in queue.keys.values()))
    )


def _is_ahead(bucket: Bucket | None, now: float) -> bool:
    return bucket is not None and bucket.at - now > MOST_AHEAD_SECONDS


@contextmanager
def aside(waiting: Waiting, now: float) -> Generator[None, None, None]:
    """Look at the limits as of a time, and put back what that changes."""
    turn = waiting.turn
    if not waiting.limited:
        waiting.promote(now)
        try:
            yield
        finally:
            waiting.turn = turn
        return
    queues = [_QueueBefore(queue) for queue in waiting.limited.values()]
    fading, served = list(waiting.fading), dict(waiting.served)
    look_afresh(waiting, now)
    try:
        yield
    finally:
        look_afresh(waiting, None)
        for before in queues:
            before.put_back()
        waiting.fading, waiting.served, waiting.turn = fading, served, turn


class _QueueBefore:
    """What is counted of a queue, to be put back."""

    def __init__(self, queue: Queue) -> None:
        self.queue = queue
        self.bucket = _copy(queue.bucket)
        self.running = queue.running
        self.opened = queue.opened
        self.turns = dict(queue.turns)
        self.keys = {name: (key, key.running, _copy(key.bucket)) for name, key in queue.keys.items()}

    def put_back(self) -> None:
        """Let all be counted as it was."""
        queue = self.queue
        queue.bucket, queue.running, queue.opened, queue.turns = self.bucket, self.running, self.opened, self.turns
        keys: dict[str, Key] = {}
        for name, (key, running, bucket) in self.keys.items():
            keys[name] = key
            key.running, key.bucket = running, bucket
        queue.keys = keys


def _copy(bucket: Bucket | None) -> Bucket | None:
    return None if bucket is None else msgspec.structs.replace(bucket)


def takes_of(counts: Counts, offer: Offer, row_actions: list[str], row_targets: list[str]) -> Takes | None:
    """What is asked for, in as few words as the session's row allows."""
    if not counts:
        return None
    actions, targets = list(offer.actions()), list(offer.targets())
    return Takes(
        [(*kind, count) for kind, count in counts.items()],
        None if actions == row_actions else actions,
        None if targets == row_targets else targets,
    )


def claimable(data: MemoryData, offer: Offer, now: float) -> tuple[Counts, float | None, bool]:
    """Take slots of the offer for what a claim would get; when it would get more, and whether it would leave some."""
    waiting = data.waiting
    counts: Counts = {}
    taken: list[Entry] = []
    dues: list[float] = []
    with aside(waiting, now):
        if offer.free() > 0:
            for entry in waiting.candidates(offer, now, dues):
                taken.append(entry)
                kind = (entry.task.action, entry.task.queue)
                counts[kind] = counts.get(kind, 0) + 1
                if entry.task.queue in waiting.limited:
                    waiting.started(entry, now)
        left = any(waiting.has_work(queue, now) for queue in waiting.limited.values())
        if (due := waiting.next_due()) is not None:
            dues.append(due)
        for entry in taken:
            waiting.enqueue(entry, now)
    return counts, min(dues, default=None), left


def handed_over(data: MemoryData, append: Append, offer: Offer, queued: dict[str, list[tuple[int, str]]]) -> Counts:
    """Take slots of the offer for those of an append's tasks that it would be handed now.

    `queued` are the tasks, by queue, that earlier appends leave waiting; those of this append are added.
    """
    waiting, now = data.waiting, append.time
    run = data.runs.get(append.key)
    held = append.hold if append.hold is not None else run.hold if run is not None else 0
    counts: Counts = {}
    if held:
        return counts
    out = foresee_crowded_out(data, append) if run is None else []
    gone = [] if run is None else _ended_by(append, run)
    if isinstance(out, list):
        gone += [entry for other in out for entry in other.tasks.values()]
    with aside(waiting, now), _without(waiting, gone, now):
        for task in sorted(append.tasks, key=lambda task: -task.priority):
            if task.not_before > now or (task.target and task.target not in offer.targets()):
                continue
            if waiting.limited and not waiting.admits(task, now):
                continue
            if _is_first(waiting, task, now, offer, queued) and offer.take(task.action, task.queue):
                kind = (task.action, task.queue)
                counts[kind] = counts.get(kind, 0) + 1
                if task.queue in waiting.limited:
                    waiting.started(Entry(task, 0), now)
            else:
                queued.setdefault(task.queue, []).append((task.priority, task.action))
    return counts


def _ended_by(append: Append, run: StoredRun) -> list[Entry]:
    """The tasks of a run that an append ends or takes back."""
    entries = run.tasks.values()
    if append.revoke:
        taken_back = [entry for entry in entries if not entry.session]
    else:
        interrupts = [run.tasks[number] for number in append.interrupts if number in run.tasks]
        taken_back = [entry for entry in interrupts if not entry.session]
    numbers = {*append.ended, *(task.number for task in append.tasks)}
    return [run.tasks[number] for number in numbers if number in run.tasks] + [
        entry for entry in taken_back if entry.task.number not in numbers
    ]


@contextmanager
def _without(waiting: Waiting, entries: Sequence[Entry], now: float) -> Generator[None, None, None]:
    """Look at the limits and at what waits as if these tasks were ended."""
    gone = [entry for entry in entries if not entry.session]
    for entry in entries:
        if entry.session and entry.task.queue in waiting.limited:
            waiting.ended(entry)
    for entry in gone:
        entry.gone = True
    try:
        yield
    finally:
        for entry in gone:
            entry.gone = False
            if not _waits(waiting, entry):
                waiting.enqueue(entry, now)


def _waits(waiting: Waiting, entry: Entry) -> bool:
    """Whether an entry is still where it waits: what is gone leaves when it is met."""
    parked = waiting.runs[entry.task.run].parked
    lines = waiting.queue(entry.task.queue).lines.values()
    return (
        any(other is entry for other in parked)
        or any(item[-1] is entry for item in waiting.timed)
        or any(item[-1] is entry for line in lines for item in line.items())
    )


def _is_first(waiting: Waiting, task: Task, now: float, offer: Offer, queued: dict[str, list[tuple[int, str]]]) -> bool:
    """Whether a new task may be handed over, were there a slot."""
    for priority, action in queued.get(task.queue, ()):
        if priority >= task.priority and (action == task.action or action in offer.actions()):
            return False
    return not waiting.is_behind(task, now, offer)


def foresee_crowded_out(data: MemoryData, append: Append) -> Queue | list[StoredRun]:
    """The queue that has no place for the first tasks of a run; else the runs that would make place for them."""
    if not data.waiting.limited or append.head is None:
        return []
    with aside(data.waiting, append.time):
        return crowded_out(data, append)
