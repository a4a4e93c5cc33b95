"""The in-process store: the whole `Store` protocol over dictionaries and heaps.

Several sessions may use one `MemoryStore`, or each a handle of its own on one `MemoryData` (the nodes of a
simulation). It is deterministic: no clock, no randomness, and nothing iterates in hash order. What it is given
it keeps, without copying: appends, events and tasks are not changed by the caller afterwards.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import groupby
from operator import attrgetter
from typing import Literal, NamedTuple

import msgspec

from treadle.core.commands import Task
from treadle.core.inputs import Look, Lost, encode_input
from treadle.core.tables import LIVE
from treadle.errors import LeaseLostError
from treadle.store.base import (
    WAITS_CHANGES,
    WAITS_TASKS,
    Acquired,
    Answer,
    Append,
    InboxInput,
    Postponement,
    Reader,
    Renewal,
    Report,
    Reported,
    SessionRow,
    Swept,
)
from treadle.store.memory_data import MemoryData, Row, StoredRun, StoredSession
from treadle.store.memory_dropping import crowded_out, drop
from treadle.store.memory_lines import Entry
from treadle.store.memory_names import change_names, holder_of
from treadle.store.memory_queues import Queue
from treadle.store.memory_reader import MemoryReader
from treadle.store.offers import Offer
from treadle.store.queues import QueueChange

__all__ = ["MemoryData", "MemoryStore"]

_priority_of: Callable[[Task], int] = attrgetter("priority")
_kind_of: Callable[[Task], tuple[object, ...]] = attrgetter("queue", "action", "priority", "target", "not_before")


class _Taken(NamedTuple):
    """The run of an append that takes effect, and the keys of the runs that made place for it."""

    run: StoredRun
    told: Sequence[str]


class MemoryStore(MemoryReader):
    """A store that lives as long as its data: see the head of this module, and `store.base` for the promises."""

    __slots__ = ("_room",)

    def __init__(self, data: MemoryData | None = None) -> None:
        super().__init__(data)
        self._room = False

    @property
    def made_room(self) -> bool:
        """Whether some call since this was asked last has made room."""
        found, self._room = self._room, False
        return found

    def _told(self, room: bool) -> None:
        self._room = self._room or room

    def open(self, *, create: bool = True) -> None:
        """There is nothing to open."""

    def reader(self) -> Reader:
        """Another handle on the same data."""
        return MemoryReader(self.data)

    # -- sessions --------------------------------------------------------------------------------------

    def _living(self, session: str) -> StoredSession:
        own = self.data.sessions.get(session)
        if own is None:
            raise LeaseLostError(f"session {session} was declared dead; its runs and tasks went to others")
        return own

    def open_session(self, session: SessionRow) -> None:
        """Enter a session."""
        with self.data.lock:
            self.data.sessions[session.id] = StoredSession(msgspec.structs.replace(session))

    def renew(self, session: str, waits: int | None = None) -> Renewal:
        """Count the beat up; interrupts are told again until their attempt has ended."""
        with self.data.lock:
            own = self._living(session)
            own.row.beat += 1
            if waits is not None:
                own.row.waits = waits
            return Renewal(
                [(entry.task.run, entry.task.number, token) for token, entry in own.leases.items() if entry.interrupt]
            )

    def set_targets(self, session: str, targets: Sequence[str]) -> None:
        """Change what the session's row says of its targets."""
        with self.data.lock:
            self._living(session).row.targets = list(targets)

    def set_queues(self, changes: Sequence[QueueChange], now: float) -> list[bool]:
        """Change the limits of queues; what waits in them is lined up anew."""
        data = self.data
        with data.lock:
            leased = (entry for own in data.sessions.values() for entry in own.leases.values())
            answers = data.waiting.set_limits(changes, leased, now)
            self._told(data.waiting.left_room(now))
            return answers

    def dead_sessions(self) -> list[str]:
        """None: all sessions of the data live in this process."""
        return []

    def bury(self, session: str) -> list[str]:
        """End a session; burying it twice changes nothing."""
        data = self.data
        with data.lock:
            own = data.sessions.pop(session, None)
            if own is None:
                return []
            touched = dict(own.owned)
            for token, entry in own.leases.items():
                task = entry.task
                run = data.runs[task.run]
                del run.tasks[task.number]
                data.unlease(entry)
                lost = Lost(
                    number=task.number,
                    generation=task.generation,
                    attempt=task.attempt,
                    session=session,
                    progress=entry.progress,
                )
                data.put_input(run, InboxInput(f"lost:{token}", run.key, encode_input(lost)))
                touched[run.key] = None
            own.leases.clear()
            for key in list(own.owned):
                run = data.runs[key]
                if run.status in LIVE and not run.inbox:
                    data.put_input(run, InboxInput(f"look:{session}", key, encode_input(Look(session=session))))
                data.free(run)
            # No time is given, so rates are not asked.
            self._told(data.waiting.left_room(None))
            data.elected = {role: holder for role, holder in data.elected.items() if holder is not own}
            return [key for key in touched if data.runs[key].inbox]

    def elect(self, role: str, session: str) -> bool:
        """Hold the role, if no living session holds it."""
        with self.data.lock:
            own = self._living(session)
            return self.data.elected.setdefault(role, own) is own

    def wakes(self, session: str, *, tasks: bool, keys: Sequence[str]) -> list[str]:
        """Addresses, each once; sessions that wait for changes are always among them."""
        data = self.data
        with data.lock:
            if len(data.sessions) < 2:
                # Asked after every commit, and most often there is nobody else.
                return []
            wanted = WAITS_CHANGES | (WAITS_TASKS if tasks else 0)
            owners = {run.owner.id for key in keys if (run := data.runs.get(key)) is not None and run.owner}
            found = {
                other.row.wake: None
                for other in data.sessions.values()
                if other.id != session and other.row.wake and (other.row.waits & wanted or other.id in owners)
            }
            return list(found)

    # -- appends ---------------------------------------------------------------------------------------

    def commit(self, session: str, appends: Sequence[Append], offer: Offer | None) -> list[Answer]:
        """Apply each append, or say why not."""
        answers: list[Answer] = []
        data = self.data
        with data.lock:
            own = data.sessions.get(session) or self._living(session)
            for append in appends:
                answers.append(self._append(own, append, offer))  # noqa: PERF401 - most often there is one
            if data.waiting.limited and appends:
                self._told(data.waiting.left_room(appends[-1].time))
        return answers

    def _append(self, own: StoredSession, append: Append, offer: Offer | None) -> Answer:
        data = self.data
        run = data.runs.get(append.key)
        told: Sequence[str] = ()
        if run is None or run.version != append.expect or run.owner is not own or append.head or append.names:
            found = self._changed(own, append, run)
            if isinstance(found, Answer):
                return found
            run, told = found
        # Nothing fails from here on.
        time = append.time
        run.version = version = append.expect + 1
        run.rows.append(Row(version, append.commit_id, time, append.events))
        run.status = append.status
        run.updated_at = time
        if append.payloads:
            run.payloads.update(append.payloads)
        if append.ended:
            data.end_all(run, append.ended)
        if append.consumed:
            data.consume(run, append.consumed)
        rare = append.hold is not None or append.report is not None or append.posts
        if rare or append.revoke or append.interrupts or append.unsettled or append.release:
            self._steer(run, append)
        for row in append.steps:
            run.steps[row.number] = row
            run.by_address[row.address] = row
            run.has_settled = True
        if append.undos or append.unwound is not None:
            self._undo(run, append)
        if append.names or told:
            return self._name(own, run, append, offer, told)
        return self._dispatch(own, run, append, offer) if append.tasks else Answer("committed")

    def _name(
        self, own: StoredSession, run: StoredRun, append: Append, offer: Offer | None, told: Sequence[str]
    ) -> Answer:
        told = [*told, *change_names(self.data, run, append.names)]
        answer = self._dispatch(own, run, append, offer) if append.tasks else Answer("committed")
        answer.told = list(dict.fromkeys(told))
        return answer

    def _changed(self, own: StoredSession, append: Append, run: StoredRun | None) -> _Taken | Answer:
        """The run that an append changes or makes; else why it does not take effect."""
        if run is None or run.version != append.expect or run.owner is not own or append.head is not None:
            return self._make(own, append, run)
        holder = holder_of(self.data, append)
        return Answer("held", holder=holder) if holder else _Taken(run, ())

    def _make(self, own: StoredSession, append: Append, run: StoredRun | None) -> _Taken | Answer:
        """The new run of an append that makes one; else, or if it may not, why the append does not take effect."""
        data = self.data
        head = append.head
        if append.report is not None and not _may_report(own, append.report):
            return Answer("fenced")
        if append.key in data.tombstones:
            return Answer("refused")
        if head is None:
            return Answer("conflict")
        if run is not None or head.id in data.ids:
            return Answer("exists")
        if append.expect != 0:
            return Answer("conflict")
        out = crowded_out(data, append) if data.waiting.limited else []
        if isinstance(out, Queue):
            return Answer("full", queue=out.name, on_full=out.limits.on_full)
        if append.names and (holder := holder_of(data, append)):
            return Answer("held", holder=holder)
        for other in out:
            drop(data, other, append.key)
        run = data.runs[append.key] = StoredRun(head, append.plan or b"")
        data.ids[head.id] = run.key
        if head.parent:
            data.children.setdefault(head.parent.partition("/")[0], {})[run.key] = None
        data.own(run, own)
        return _Taken(run, [other.key for other in out])

    def _undo(self, run: StoredRun, append: Append) -> None:
        """Enter what an append says of undos; after its step rows."""
        if append.unwound is not None:
            run.unwound = append.unwound
        for address, status in append.undos:
            if (row := run.by_address.get(address)) is not None:
                run.steps[row.number] = run.by_address[address] = msgspec.structs.replace(row, undo=status)

    def _steer(self, run: StoredRun, append: Append) -> None:
        """The rare parts of an append; before its own tasks, which a revoke leaves alone, and its step rows."""
        data = self.data
        for number in append.unsettled:
            if (row := run.steps.pop(number, None)) is not None:
                del run.by_address[row.address]
        if append.hold is not None:
            run.hold = append.hold
            if not run.hold:
                data.unpark(run, append.time)
        if append.revoke or append.interrupts:
            data.revoke(run, None if append.revoke else append.interrupts)
        for number in append.interrupts:
            entry = run.tasks.get(number)
            if entry is not None and entry.session:
                entry.interrupt = True
        if append.release:
            data.free(run)
        self._tell(append)

    def _tell(self, append: Append) -> None:
        """What an append does to other runs."""
        data = self.data
        if append.report is not None:
            self._report(append.report)
        for value in append.posts:
            if (target := data.runs.get(value.key)) is not None:
                data.put_input(target, value)

    def _report(self, report: Report) -> None:
        """End a task whose token is live."""
        data = self.data
        run = data.runs[report.input.key]
        data.end(run.tasks.pop(report.number))
        run.payloads.update(report.payloads)
        data.put_input(run, report.input)

    def _dispatch(self, own: StoredSession, run: StoredRun, append: Append, offer: Offer | None) -> Answer:
        """Enter the append's tasks; those that would be claimed first are the first to get slots (promise 4)."""
        data = self.data
        now = append.time
        leased: list[Task] = []
        queued = 0
        waiting = data.waiting
        asked = offer if not run.hold else None
        # The kind of task of which it is known that no waiting one goes before it.
        first: tuple[object, ...] | None = None
        for kind, tasks in self._alike(append.tasks) if len(append.tasks) > 1 else (((), append.tasks),):
            entries = data.enter(run, tasks, now)
            task = tasks[0]
            granted = 0
            if (
                asked is not None
                and task.not_before <= now
                and (kind == first or not waiting.is_behind(task, now, asked))
                and (not task.target or task.target in asked.targets())
                and (not waiting.limited or waiting.admits(task, now))
            ):
                granted = asked.take(task.action, task.queue, len(tasks))
                first = kind
            if granted == len(append.tasks):
                # All at once, most often.
                data.lease(entries, own, now)
                return Answer("committed", tasks)
            if granted:
                data.lease(entries[:granted], own, now)
                leased += tasks[:granted]
            if granted < len(tasks):
                first = None
                for entry in entries[granted:]:
                    waiting.enqueue(entry, now)
                queued += len(tasks) - granted
        return Answer("committed", leased, queued)

    def _alike(self, tasks: Sequence[Task]) -> Iterable[tuple[tuple[object, ...], Sequence[Task]]]:
        """New tasks in the order in which they would be claimed, those together of which none differs to a claim."""
        # A step that was asked for twice in one decision has its last task only.
        tasks = sorted({task.number: task for task in tasks}.values(), key=_priority_of, reverse=True)
        if self.data.waiting.limited:
            # Each takes up room that the next one may not find.
            return [(_kind_of(task), [task]) for task in tasks]
        return [(kind, list(alike)) for kind, alike in groupby(tasks, _kind_of)]

    # -- tasks -----------------------------------------------------------------------------------------

    def claim(self, session: str, offer: Offer, now: float) -> tuple[list[Task], float | None]:
        """Lease due tasks, over all queues by priority, then age."""
        data = self.data
        waiting = data.waiting
        with data.lock:
            own = self._living(session)
            waiting.promote(now)
            waiting.fade(now)
            claimed: list[Task] = []
            dues: list[float] = []
            if offer.free() > 0:
                for entry in waiting.candidates(offer, now, dues):
                    data.lease([entry], own, now)
                    claimed.append(entry.task)
            self._told(any(waiting.has_work(queue, now) for queue in waiting.limited.values()))
            if (due := waiting.next_due()) is not None:
                dues.append(due)
            return claimed, min(dues, default=None)

    def leased(self, session: str) -> list[Task]:
        """All tasks leased to the session."""
        with self.data.lock:
            return [entry.task for entry in self._living(session).leases.values()]

    def report(self, session: str, reports: Sequence[Report]) -> list[Reported]:
        """End leased tasks whose token is live."""
        data = self.data
        with data.lock:
            own = self._living(session)
            answers: list[Reported] = []
            for report in reports:
                entry = own.leases.get(report.lease)
                task = None if entry is None else entry.task
                live = task is not None and task.run == report.input.key and task.number == report.number
                if live:
                    self._report(report)
                run = data.runs.get(report.input.key)
                owner = run.owner if run is not None else None
                answers.append(Reported(live) if owner is None else Reported(live, owner.id, owner.row.wake))
            self._told(data.waiting.left_room(None))
            return answers

    def postpone(self, session: str, items: Sequence[Postponement], now: float) -> list[bool]:
        """Let tasks whose token is live wait again."""
        data = self.data
        with data.lock:
            own = self._living(session)
            answers: list[bool] = []
            for item in items:
                entry = own.leases.get(item.lease)
                if entry is None or entry.last or entry.interrupt or not _is_of(entry.task, item):
                    answers.append(False)
                    continue
                data.end(entry)
                data.age = age = data.age + 1
                task = msgspec.structs.replace(entry.task, lease=0, not_before=item.not_before, call=item.call)
                again = data.runs[item.key].tasks[item.number] = Entry(task, age, now, progress=entry.progress)
                if (queue := data.waiting.limited.get(task.queue)) is not None:
                    again.turn = queue.turn_of(task)
                data.waiting.enqueue(again, now)
                answers.append(True)
            self._told(data.waiting.left_room(now))
            return answers

    def progress(self, session: str, items: Sequence[tuple[str, int, int, str]]) -> None:
        """Set the progress text of tasks whose token is live."""
        with self.data.lock:
            own = self._living(session)
            for key, number, token, text in items:
                entry = own.leases.get(token)
                if entry is not None and entry.task.run == key and entry.task.number == number:
                    entry.progress = text

    # -- inboxes and owners ----------------------------------------------------------------------------

    def post(self, inputs: Sequence[InboxInput]) -> list[bool]:
        """Insert inputs; one that is there already stays as it is."""
        data = self.data
        with data.lock:
            answers: list[bool] = []
            for value in inputs:
                run = data.runs.get(value.key)
                if run is not None:
                    data.put_input(run, value)
                answers.append(run is not None)
            return answers

    def inbox(self, key: str) -> list[InboxInput]:
        """The inputs that wait, oldest first."""
        with self.data.lock:
            run = self.data.runs.get(key)
            return [] if run is None else list(run.inbox.values())

    def owned_inboxes(self, session: str) -> dict[str, list[InboxInput]]:
        """What waits in the inboxes of runs that the session owns, by run, oldest first."""
        with self.data.lock:
            found = [run for run in self.data.inboxes.values() if run.owner and run.owner.id == session]
            return {run.key: list(run.inbox.values()) for run in found}

    def acquire(self, session: str, key: str, *, steal: bool = False) -> Acquired | None:
        """Own the run if nobody does, or with `steal`."""
        data = self.data
        with data.lock:
            own = self._living(session)
            run = data.runs.get(key)
            if run is None:
                return None
            if run.owner is not None and run.owner is not own and not steal:
                return Acquired(None, run.owner.id)
            data.own(run, own)
            return Acquired(self._load(run), own.id)

    def release(self, session: str, keys: Sequence[str]) -> None:
        """Give runs back; those of others are left alone."""
        data = self.data
        with data.lock:
            own = self._living(session)
            for key in keys:
                if key in own.owned:
                    data.free(data.runs[key])

    def sweep(self, session: str, now: float) -> Swept:
        """Find runs that nobody decides although they have inputs."""
        data = self.data
        with data.lock:
            self._living(session)
            data.waiting.promote(now)
            stranded = [run.key for run in data.inboxes.values() if run.owner is None]
            return Swept(stranded, data.waiting.next_due())

    def delete(self, key: str) -> Literal["deleted", "missing", "open"]:
        """Remove a closed run, leaving the tombstone of its key."""
        data = self.data
        with data.lock:
            run = data.runs.get(key)
            if run is None:
                return "missing"
            family = data.family(run)
            if any(one.tasks or one.status in LIVE for one in family):
                return "open"
            for one in family:
                data.forget(one)
            return "deleted"


def _may_report(own: StoredSession, report: Report) -> bool:
    entry = own.leases.get(report.lease)
    if entry is None or entry.last or entry.interrupt:
        return False
    return entry.task.run == report.input.key and entry.task.number == report.number


def _is_of(task: Task, item: Postponement) -> bool:
    return task.run == item.key and task.number == item.number
