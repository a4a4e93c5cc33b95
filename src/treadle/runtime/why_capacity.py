"""Why a task that may start waits in the store: what its queue, key, placement and workers lack, by name."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

import msgspec

from treadle.core.commands import Task
from treadle.runtime.reasons import NAMED, Reason, count, listing
from treadle.store.base import SessionRow, TaskRow

CODES: Final[dict[str, str]] = {
    "placement": "where the step is to run",
    "target_missing": "capacity: no living worker offers the target that the step is placed on",
    "no_worker": "capacity: no living worker executes this action",
    "busy": "capacity: the workers that execute it have no free slot, or others go first",
}


class Capacity(msgspec.Struct, frozen=True, kw_only=True):
    """The sessions of one moment, and the tasks that wait, in the order in which they are claimed."""

    now: float
    sessions: Sequence[SessionRow]
    waiting: Sequence[TaskRow]


def waiting_reasons(seen: Capacity, row: TaskRow, *, held: bool) -> Iterator[Reason]:
    """Why nobody executes a task that waits. While its run is held, or before it is due, capacity does not matter."""
    task = row.task
    at = task.address
    able = [session for session in seen.sessions if task.action in session.actions]
    if task.target:
        yield _placed(task)
    if not able:
        text = f"no living worker executes action {task.action!r}; start one with the module that defines it"
        yield Reason(step=at, code="no_worker", kind="capacity", message=text, on=[task.action])
        return
    if task.target:
        able = [session for session in able if task.target in session.targets]
        if not able:
            yield _target_missing(seen, task)
            return
    if task.not_before > seen.now or held:
        return
    ahead = _ahead(seen, row)
    workers = f"all slots of {listing([session.worker for session in able[:NAMED]], len(able))} are busy"
    text = f"waits in queue {task.queue!r}: {workers}"
    if ahead:
        text = f"waits in queue {task.queue!r} behind {count(ahead, 'task')}: {workers}"
    yield Reason(step=at, code="busy", kind="capacity", message=text, on=[session.worker for session in able])


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
