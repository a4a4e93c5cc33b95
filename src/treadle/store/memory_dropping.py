"""Runs that make place for new ones in `MemoryStore`, in a queue that is full and drops the oldest (promise 12)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from treadle.core.inputs import Cancel, encode_input
from treadle.core.tables import RUNNING
from treadle.store.base import Append, InboxInput
from treadle.store.queues import DROP_OLDEST, DROPPED, to_drop

if TYPE_CHECKING:
    from treadle.store.memory_data import MemoryData, StoredRun
    from treadle.store.memory_lines import Entry
    from treadle.store.memory_queues import Queue


def crowded_out(data: MemoryData, append: Append) -> Queue | list[StoredRun]:
    """The queue in which the due tasks of a new run have no place to wait; else the runs that make place for them."""
    found: list[StoredRun] = []
    waiting = data.waiting
    for name in dict.fromkeys(task.queue for task in append.tasks if task.not_before <= append.time):
        if not waiting.is_full(name, append.time):
            continue
        queue = waiting.limited[name]
        keys = _to_drop(data, queue, append.time) if queue.limits.on_full == DROP_OLDEST else None
        if keys is None:
            return queue
        found += [data.runs[key] for key in keys]
    return found


def _to_drop(data: MemoryData, queue: Queue, now: float) -> list[str] | None:
    waits: dict[str, int] = {}
    for entry in data.waiting.waiting_in(queue, now):
        waits[entry.task.run] = waits.get(entry.task.run, 0) + 1
    only_wait = [(key, waits[key]) for key in sorted(waits) if _only_waits(data.runs[key], queue.name)]
    return to_drop(only_wait, sum(waits.values()), queue.limits.length)


def _only_waits(run: StoredRun, queue: str) -> bool:
    """Whether nothing of a run has begun, and all that it has dispatched waits in one queue."""
    return (
        run.status == RUNNING
        and not run.head.parent
        and not run.has_settled
        and all(_is_fresh(entry, queue) for entry in run.tasks.values())
        and all(id_.startswith("look:") for id_ in run.inbox)
    )


def _is_fresh(entry: Entry, queue: str) -> bool:
    task = entry.task
    first = task.attempt <= 1 and task.generation == 1 and (task.call.poll is None or not task.call.poll.probes)
    return first and not entry.session and task.queue == queue


def drop(data: MemoryData, run: StoredRun, by: str) -> None:
    """Cancel a run hard, and take back what waits of it."""
    data.put_input(run, InboxInput(f"{DROPPED}{by}", run.key, encode_input(Cancel(hard=True))))
    data.revoke(run, None, f"revoked:{by}")
