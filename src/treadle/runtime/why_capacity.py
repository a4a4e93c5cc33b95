"""Why a task that may start waits in the store: what its queue, key, placement and workers lack, by name."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Final

import msgspec

from treadle.core.commands import Task
from treadle.runtime.reasons import NAMED, Reason, clock_time, count, listing
from treadle.store.base import Loaded, Reader, SessionRow, TaskRow
from treadle.store.queues import Bucket, KeyRow, QueueRow, allows, next_start, refill

CODES: Final[dict[str, str]] = {
    "placement": "where the step is to run",
    "target_missing": "capacity: no living worker offers the target that the step is placed on",
    "no_worker": "capacity: no living worker executes this action",
    "queue_paused": "capacity: an operator has paused the queue",
    "queue_full": "capacity: as many steps of the queue are executed as may be at a time",
    "queue_rate": "capacity: the queue's rate allows no start yet",
    "key_full": "capacity: as many steps of the key are executed as may be at a time",
    "key_rate": "capacity: the key's rate allows no start yet",
    "busy": "capacity: the workers that execute it have no free slot, or others go first",
}

# Of so many keys of a run's waiting tasks it is found out what holds them back.
_KEYS: Final = 50


class Capacity(msgspec.Struct, frozen=True, kw_only=True):
    """What the store tells at one moment of its sessions and queues, as far as a run's waiting tasks ask for it."""

    now: float
    sessions: Sequence[SessionRow]
    # Tasks that wait, in the order in which they are claimed.
    waiting: Sequence[TaskRow] = ()
    queues: Mapping[str, QueueRow] = {}
    # By queue and key.
    keys: Mapping[tuple[str, str], KeyRow] = {}
    # Some of the tasks that are executed, by queue and key; the key is "" for all of the queue.
    holders: Mapping[tuple[str, str], Sequence[TaskRow]] = {}


async def look(
    read: Callable[[Callable[[], Any]], Awaitable[Any]], reader: Reader, loaded: Loaded, now: float
) -> Capacity:
    """Read what may hold a run's tasks back; nothing of queues where none of its tasks is due and waits."""
    sessions: list[SessionRow] = await read(reader.sessions)
    waiting: list[TaskRow] = await read(reader.waiting)
    due = [row.task for row in loaded.tasks if not row.session and row.task.not_before <= now]
    if not due:
        return Capacity(now=now, sessions=sessions, waiting=waiting)
    names = {task.queue for task in due}
    rows: list[QueueRow] = await read(partial(reader.queues, now))
    queues = {row.name: row for row in rows if row.name in names}
    keys: dict[tuple[str, str], KeyRow] = {}
    holders: dict[tuple[str, str], Sequence[TaskRow]] = {}
    for name, queue in queues.items():
        if 0 < queue.limits.concurrency <= queue.running:
            holders[name, ""] = await read(partial(reader.holders, name, limit=NAMED))
    limited = [task for task in due if task.key and task.queue in queues and queues[task.queue].limits.by_key]
    for name, key in list(dict.fromkeys((task.queue, task.key) for task in limited))[:_KEYS]:
        (row,) = await read(partial(reader.queue_keys, name, key=key))
        keys[name, key] = row
        if 0 < queues[name].limits.key_concurrency <= row.running:
            holders[name, key] = await read(partial(reader.holders, name, key=key, limit=NAMED))
    return Capacity(now=now, sessions=sessions, waiting=waiting, queues=queues, keys=keys, holders=holders)


def waiting_reasons(seen: Capacity, row: TaskRow, *, held: bool) -> Iterator[Reason]:
    """Why nobody executes a task that waits. While its run is held, or before it is due, its queue does not matter."""
    task = row.task
    if task.target:
        yield _placed(task)
    able = [session for session in seen.sessions if task.action in session.actions]
    there = [session for session in able if not task.target or task.target in session.targets]
    if not able:
        text = f"no living worker executes action {task.action!r}; start one with the module that defines it"
        yield Reason(step=task.address, code="no_worker", kind="capacity", message=text, on=[task.action])
    elif not there:
        yield _target_missing(seen, task)
    if task.not_before > seen.now or held:
        return
    limited = [*_limit_reasons(seen, task)]
    yield from limited
    if there and not limited:
        yield _busy(seen, row, there)


def _busy(seen: Capacity, row: TaskRow, able: list[SessionRow]) -> Reason:
    task = row.task
    ahead = _ahead(seen, row)
    workers = f"all slots of {listing([session.worker for session in able[:NAMED]], len(able))} are busy"
    behind = f" behind {count(ahead, 'task')}" if ahead else ""
    text = f"waits in queue {task.queue!r}{behind}: {workers}"
    return Reason(
        step=task.address, code="busy", kind="capacity", message=text, on=[session.worker for session in able]
    )


# -- limits --------------------------------------------------------------------------------------------------------


def _limit_reasons(seen: Capacity, task: Task) -> Iterator[Reason]:
    """Which limits of its queue forbid a task to start now."""
    queue = seen.queues.get(task.queue)
    if queue is None:
        return
    limits = queue.limits
    if queue.paused:
        text = f"queue {task.queue!r} is paused; `treadle queues resume {task.queue}`"
        yield Reason(step=task.address, code="queue_paused", kind="capacity", message=text, on=[task.queue])
    what = f"queue {task.queue!r}"
    if 0 < limits.concurrency <= queue.running:
        yield _full(seen, task, "queue_full", what, queue.running, limits.concurrency, "")
    if limits.rate:
        yield from _rated(seen, task, "queue_rate", what, queue.bucket, limits.rate, limits.burst)
    row = seen.keys.get((task.queue, task.key))
    if row is None:
        return
    what = f"key {task.key!r} of queue {task.queue!r}"
    if 0 < limits.key_concurrency <= row.running:
        yield _full(seen, task, "key_full", what, row.running, limits.key_concurrency, task.key)
    if limits.key_rate:
        yield from _rated(seen, task, "key_rate", what, row.bucket, limits.key_rate, limits.key_burst)


def _full(seen: Capacity, task: Task, code: str, what: str, running: int, most: int, key: str) -> Reason:
    rows = seen.holders.get((task.queue, key), ())
    said = [
        f"{row.task.run_id}/{row.task.address} by {row.worker} ({max(seen.now - row.started_at, 0.0):.1f} s)"
        for row in rows[:NAMED]
    ]
    by = f": {listing(said, max(running, len(said)))}" if said else ""
    text = f"{what} executes {running} of {most} at a time{by}"
    on = [f"{row.task.run_id}/{row.task.address}" for row in rows[:NAMED]]
    return Reason(step=task.address, code=code, kind="capacity", message=text, on=on)


def _rated(
    seen: Capacity, task: Task, code: str, what: str, stored: Bucket | None, rate: float, burst: int
) -> Iterator[Reason]:
    bucket = refill(stored, rate, burst, seen.now)
    if not allows(bucket, rate):
        at = next_start(bucket, rate, seen.now)
        text = f"{what} allows its next start at {clock_time(at)}, in {at - seen.now:.2f} s"
        yield Reason(step=task.address, code=code, kind="capacity", message=text, until=at)


# -- placement -----------------------------------------------------------------------------------------------------


def _placed(task: Task) -> Reason:
    placed = task.call.placement
    text = f"is to run on {task.target!r}"
    if placed is not None and placed.mode == "with":
        text = f"is to run where {placed.step} was executed, on worker {task.target!r}"
    elif placed is not None and placed.mode == "here":
        text = f"is to run where it was added, on worker {task.target!r}"
    elif placed is not None and placed.mode == "follow":
        text = f"is to run on {task.target!r}, like {placed.step}"
    return Reason(step=task.address, code="placement", message=text, on=[task.target])


def _target_missing(seen: Capacity, task: Task) -> Reason:
    offered = sorted({target for session in seen.sessions for target in session.targets})
    text = f"no living worker that executes {task.action!r} offers the target {task.target!r}"
    if task.target in offered:
        others = [session.worker for session in seen.sessions if task.target in session.targets]
        text += f"; {listing(others[:NAMED], len(others))} offers it and does not execute that action"
    else:
        text += f"; it runs as soon as one does (offered now: {listing(offered[:NAMED], len(offered)) or 'none'})"
    return Reason(step=task.address, code="target_missing", kind="capacity", message=text, on=[task.target])


def _ahead(seen: Capacity, row: TaskRow) -> int:
    """How many due tasks of the same queue would be claimed before this one, as far as the list goes."""
    ahead = 0
    for other in seen.waiting:
        if other.task.run == row.task.run and other.task.number == row.task.number:
            break
        if other.task.queue == row.task.queue and other.task.not_before <= seen.now:
            ahead += 1
    return ahead
