"""The state that a store's log leads to: what is open, and a line for each run that is kept.

It is the state machine of the memory store, fed with the operations of the log in their order. Every process that
has applied the log up to the same message holds the same state; so a lease, a conflict, a burial are what the log says,
whoever wrote it. Nothing here reads a clock or asks an offer: what a session has room for is part of the operation.

It keeps no journals, no payloads, no plans, and of step rows only those of failures, which are listed over all runs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

from treadle.core.commands import Task
from treadle.core.tables import FAILED
from treadle.errors import InternalError, LeaseLostError, SchemaVersionError
from treadle.store.base import Acquired, Answer, Append, Loaded, Postponement, SessionRow
from treadle.store.memory import MemoryData, MemoryStore
from treadle.store.memory_data import StoredRun
from treadle.store.memory_names import holder_of
from treadle.store.memory_queues import Queue
from treadle.store.nats import wire
from treadle.store.nats.foresight import (
    aside,
    claimable,
    foresee_crowded_out,
    handed_over,
    look_afresh,
    takes_of,
)
from treadle.store.nats.wire import Takes
from treadle.store.offers import Offer


class Room:
    """An offer as an operation tells it: so many tasks of an action and queue, and no more."""

    def __init__(self, takes: Takes, row: SessionRow | None) -> None:
        self._left = {(action, queue): count for action, queue, count in takes.counts}
        actions, targets = ((), ()) if row is None else (row.actions, row.targets)
        self._actions: Sequence[str] = actions if takes.actions is None else takes.actions
        self._targets: Sequence[str] = targets if takes.targets is None else takes.targets

    def take(self, action: str, queue: str, most: int = 1) -> int:
        """Use up what is left, `most` of it."""
        left = self._left.get((action, queue), 0)
        found = min(left, most)
        if found:
            self._left[action, queue] = left - found
        return found

    def free(self) -> int:
        """How many are left."""
        return sum(self._left.values())

    def room(self, action: str) -> int:
        """How many are left of an action."""
        return sum(count for (name, _), count in self._left.items() if name == action)

    def actions(self) -> Sequence[str]:
        """All that the session executes."""
        return self._actions

    def targets(self) -> Sequence[str]:
        """The targets whose tasks it takes."""
        return self._targets

    def full(self) -> bool:
        """Whether nothing is left."""
        return self.free() == 0

    def mark(self) -> object:
        """The present state."""
        return dict(self._left)

    def reset(self, mark: object) -> None:
        """Be as at the mark."""
        self._left = cast("dict[tuple[str, str], int]", mark)


def outgrown(level: int, known: int) -> str:
    """Why a process may not apply a log any more, and what to do."""
    return (
        f"the store's log has risen to level {level}, and this Treadle applies logs up to level {known}: upgrade this"
        " program. A log rises when all its processes are newer, and never falls. To go back, let the newer version"
        f" copy the store: treadle store copy FROM 'TO?level={known}'"
    )


class Machine:
    """Applies operations; each answer is a value, or the error of a session that has ended or is too old."""

    def __init__(self) -> None:
        self.data = MemoryData()
        self.store = MemoryStore(self.data)
        # Messages of a run's journal that took no effect, by the run's key: numbers of the log.
        self.voids: dict[str, list[int]] = {}
        # Deleted runs whose journals are not removed yet: the number of the message that deleted them.
        self.deleted: dict[str, int] = {}
        # Up to this message a snapshot covers the log.
        self.cleared = 0
        # The level that the log has risen to; and up to which level the living sessions can apply it.
        self.level = 1
        self.levels: dict[str, int] = {}
        self._apply: dict[type[Any], Callable[[Any, int], Any]] = {
            wire.OpenOp: self._open,
            wire.LevelOp: self._rise,
            wire.RenewOp: lambda op, _: self.store.renew(op.session, op.waits),
            wire.BuryOp: self._bury,
            wire.ElectOp: lambda op, _: self.store.elect(op.role, op.session),
            wire.TargetsOp: lambda op, _: self.store.set_targets(op.session, op.targets),
            wire.QueuesOp: self._set_queues,
            wire.AppendOp: self._append,
            wire.ClaimOp: self._claim,
            wire.ReportOp: lambda op, _: self.store.report(op.session, op.reports),
            wire.PostponeOp: self._postpone,
            wire.ProgressOp: lambda op, _: self.store.progress(op.session, op.items),
            wire.PostOp: lambda op, _: self.store.post(op.inputs),
            wire.AcquireOp: self._acquire,
            wire.ReleaseOp: lambda op, _: self.store.release(op.session, op.keys),
            wire.DeleteOp: self._delete,
            wire.ClearOp: self._clear,
        }

    def apply(self, op: wire.Operation, number: int) -> Any:
        """Apply the operation that is message `number` of the log. It never raises: the log goes on."""
        try:
            return self._apply[type(op)](op, number)
        except LeaseLostError as error:
            self._no_effect(op, number)
            return error
        except Exception as error:  # noqa: BLE001 - what one process cannot apply no other can, and none may stop at it
            self._no_effect(op, number)
            return InternalError(f"message {number} of the log, {type(op).__name__}: {type(error).__name__}: {error}")

    def _no_effect(self, op: wire.Operation, number: int) -> None:
        if isinstance(op, wire.AppendOp):
            run = self.data.runs.get(op.key)
            if run is None or run.version != op.expect + 1:
                self._void(op.key, number)

    def living(self, session: str) -> None:
        """Raise LeaseLostError for a session that has ended or never was."""
        if session not in self.data.sessions:
            raise LeaseLostError(f"session {session} was declared dead; its runs and tasks went to others")

    # -- sessions and levels ---------------------------------------------------------------------------

    def _open(self, op: wire.OpenOp, _number: int) -> SchemaVersionError | None:
        if op.level < self.level:
            return SchemaVersionError(outgrown(self.level, op.level))
        self.store.open_session(op.row)
        self.levels[op.row.id] = op.level
        return None

    def _bury(self, op: wire.BuryOp, _number: int) -> list[str]:
        self.levels.pop(op.dead, None)
        return self.store.bury(op.dead)

    def _rise(self, op: wire.LevelOp, _number: int) -> None:
        self.living(op.session)
        if not self.rises(op):
            return
        if self.level < 2:
            # Processes of the first level keep no account of that: a run of which nothing was decided has settled none.
            for run in self.data.runs.values():
                run.has_settled = run.version > 1
        self.level = op.level

    def rises(self, op: wire.LevelOp) -> bool:
        """Whether the log rises by an operation: it never falls, and leaves no living session behind."""
        return self.level < op.level <= self.common_level()

    def common_level(self) -> int:
        """The level that all living sessions can apply."""
        return min(self.levels.values(), default=self.level)

    # -- appends ---------------------------------------------------------------------------------------

    def _append(self, op: wire.AppendOp, number: int) -> Answer:
        run = self.data.runs.get(op.key)
        failed = [row for row in op.steps if row.status == FAILED]
        unsettled = op.unsettled
        if run is not None and run.steps:
            # A step that failed and has now another outcome is no failure any more.
            unsettled = [*unsettled, *(row.number for row in op.steps if row.status != FAILED)]
        append = Append(
            key=op.key,
            expect=op.expect,
            commit_id=op.commit_id,
            time=op.time,
            events=[],
            status=op.status,
            unwound=op.unwound,
            head=op.head,
            plan=op.plan.encode(),
            tasks=op.tasks,
            ended=op.ended,
            consumed=op.consumed,
            steps=failed,
            undos=op.undos,
            unsettled=unsettled,
            interrupts=op.interrupts,
            hold=op.hold,
            revoke=op.revoke,
            release=op.release,
            report=op.report,
            posts=op.posts,
            names=op.names,
        )
        look_afresh(self.data.waiting, op.time)
        own = self.data.sessions.get(op.session)
        room = None if op.takes is None else Room(op.takes, None if own is None else own.row)
        (answer,) = self.store.commit(op.session, [append], room)
        if answer.status == "committed":
            run = self.data.runs[op.key]
            run.rows.clear()
            # Of those that did not fail, no row is kept.
            run.has_settled = run.has_settled or bool(op.steps)
        else:
            self._void(op.key, number)
        return answer

    def _void(self, key: str, number: int) -> None:
        self.voids.setdefault(key, []).append(number)

    def refusal(self, session: str, append: Append) -> Answer | None:
        """The answer to an append that would not take effect now, None if it would."""
        if status := self._status(session, append):
            return Answer(cast(Any, status))
        if append.head is None:
            return None
        out = foresee_crowded_out(self.data, append)
        if isinstance(out, Queue):
            return Answer("full", queue=out.name, on_full=out.limits.on_full)
        if holder := holder_of(self.data, append):
            return Answer("held", holder=holder)
        return None

    def _status(self, session: str, append: Append) -> str:
        data = self.data
        own = data.sessions[session]
        run = data.runs.get(append.key)
        if append.report is not None and not self._may_report(session, append):
            return "fenced"
        if append.head is None and run is not None and run.version == append.expect and run.owner is own:
            return ""
        if append.key in data.tombstones:
            return "refused"
        if append.head is None:
            return "conflict"
        if run is not None or append.head.id in data.ids:
            return "exists"
        return "" if append.expect == 0 else "conflict"

    def _may_report(self, session: str, append: Append) -> bool:
        report = append.report
        assert report is not None
        entry = self.data.sessions[session].leases.get(report.lease)
        if entry is None or entry.last or entry.interrupt:
            return False
        return entry.task.run == report.input.key and entry.task.number == report.number

    def steers(self, append: Append) -> bool:
        """Whether an append changes which of the tasks that wait may be claimed, other than by adding some."""
        if append.hold is not None or append.revoke or append.interrupts or append.names:
            return True
        if any(task.queue in self.data.waiting.limited for task in append.tasks):
            # What it leases, or lets wait, counts for the next one.
            return True
        run = self.data.runs.get(append.key)
        if run is None or not run.tasks:
            return False
        numbers = [*append.ended, *(task.number for task in append.tasks)]
        return any(number in run.tasks and not run.tasks[number].session for number in numbers)

    # -- tasks -----------------------------------------------------------------------------------------

    def hand_over(
        self, session: str, append: Append, offer: Offer, queued: dict[str, list[tuple[int, str]]]
    ) -> Takes | None:
        """Take slots of the offer for those of an append's tasks that it would be handed now."""
        counts = handed_over(self.data, append, offer, queued)
        row = self.data.sessions[session].row
        return takes_of(counts, offer, row.actions, row.targets)

    def claimable(self, session: str, offer: Offer, now: float) -> tuple[Takes | None, float | None, bool]:
        """Take slots of the offer for the tasks that a claim would get now; when more, and whether some are left."""
        counts, due, left = claimable(self.data, offer, now)
        row = self.data.sessions[session].row
        return takes_of(counts, offer, row.actions, row.targets), due, left

    def _claim(self, op: wire.ClaimOp, _number: int) -> list[Task]:
        look_afresh(self.data.waiting, op.now)
        own = self.data.sessions.get(op.session)
        tasks, _ = self.store.claim(op.session, Room(op.takes, None if own is None else own.row), op.now)
        return tasks

    def _postpone(self, op: wire.PostponeOp, _number: int) -> list[bool]:
        look_afresh(self.data.waiting, op.now)
        items = [Postponement(item.key, item.number, item.lease, item.not_before, item.call) for item in op.items]
        return self.store.postpone(op.session, items, op.now)

    def _set_queues(self, op: wire.QueuesOp, _number: int) -> list[bool]:
        look_afresh(self.data.waiting, op.now)
        return self.store.set_queues(op.changes, op.now)

    def may_have_room(self, now: float | None) -> bool:
        """Whether a task waits in a queue that has limits, and may start; without a time rates are not asked."""
        waiting = self.data.waiting
        if now is None or not waiting.limited:
            return any(waiting.has_work(queue, None) for queue in waiting.limited.values())
        with aside(waiting, now):
            return any(waiting.has_work(queue, now) for queue in waiting.limited.values())

    def due(self, now: float) -> float | None:
        """When the next waiting task falls due."""
        with aside(self.data.waiting, now):
            return self.data.waiting.next_due()

    # -- runs ------------------------------------------------------------------------------------------

    def _acquire(self, op: wire.AcquireOp, _number: int) -> Acquired | None:
        self.living(op.session)
        own = self.data.sessions[op.session]
        run = self.data.runs.get(op.key)
        if run is None:
            return None
        if run.owner is not None and run.owner is not own and not op.steal:
            return Acquired(None, run.owner.id)
        self.data.own(run, own)
        return Acquired(self.loaded(run), own.id)

    def loaded(self, run: StoredRun) -> Loaded:
        """A run as it is now, but for its plan and its journal."""
        return Loaded(
            head=run.head,
            plan=b"",
            version=run.version,
            status=run.status,
            hold=run.hold,
            owner=run.owner.id if run.owner else "",
            rows=[],
            inbox=list(run.inbox.values()),
            tasks=[self.data.task_row(entry) for entry in run.tasks.values()],
        )

    def _delete(self, op: wire.DeleteOp, number: int) -> tuple[str, list[str]]:
        run = self.data.runs.get(op.key)
        keys = [] if run is None else [one.key for one in self.data.family(run)]
        answer = self.store.delete(op.key)
        if answer != "deleted":
            return answer, []
        for key in keys:
            self.voids.pop(key, None)
            self.deleted[key] = number
        return answer, keys

    def _clear(self, op: wire.ClearOp, _number: int) -> None:
        self.cleared = max(self.cleared, op.until)
        self.deleted = {key: number for key, number in self.deleted.items() if number > op.until}

    def run(self, key: str) -> StoredRun | None:
        """A run that is kept."""
        return self.data.runs.get(key)
