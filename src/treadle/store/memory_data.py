"""The data behind `MemoryStore`: runs, sessions and leases. Tasks that wait are in `memory_queues`.

Journal rows keep the event objects; they become JSON text when they are first read.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence

import msgspec

from treadle.core.commands import Task
from treadle.core.events import AnyEvent
from treadle.core.inputs import Revoked, encode_input
from treadle.core.tables import RUNNING
from treadle.store.base import InboxInput, RunHead, RunQuery, RunRow, SessionRow, StepRow, TaskRow
from treadle.store.memory_lines import Entry
from treadle.store.memory_names import change_names
from treadle.store.memory_queues import Queue, Waiting


class Row(msgspec.Struct, gc=False):
    """A journal row; the events are JSON text once they were read."""

    version: int
    commit_id: int
    time: float
    events: list[AnyEvent] | str


TextRow = tuple[int, int, float, str]


class StoredSession:
    """A living session with its leases: tasks by token, and the keys of the runs that it owns."""

    __slots__ = ("id", "leases", "owned", "row")

    def __init__(self, row: SessionRow) -> None:
        self.id = row.id
        self.row = row
        self.leases: dict[int, Entry] = {}
        self.owned: dict[str, None] = {}


class StoredRun:
    """A run as stored."""

    __slots__ = (
        "by_address",
        "has_settled",
        "head",
        "hold",
        "inbox",
        "key",
        "names",
        "owner",
        "parked",
        "payloads",
        "plan",
        "rows",
        "status",
        "steps",
        "tasks",
        "unwound",
        "updated_at",
        "version",
    )

    def __init__(self, head: RunHead, plan: bytes) -> None:
        self.key = head.key
        self.head = head
        self.plan = plan
        self.version = 0
        self.status = RUNNING
        self.unwound = ""
        self.hold = 0
        # The names in whose lines it is.
        self.names: list[str] = []
        self.owner: StoredSession | None = None
        self.updated_at = head.created_at
        self.rows: list[Row] = []
        self.inbox: dict[str, InboxInput] = {}
        self.tasks: dict[int, Entry] = {}
        self.parked: list[Entry] = []
        self.payloads: dict[str, bytes] = {}
        # Whether any of its steps was ever settled.
        self.has_settled = False
        self.steps: dict[int, StepRow] = {}
        self.by_address: dict[str, StepRow] = {}


def run_row(run: StoredRun) -> RunRow:
    """A run as it is listed."""
    return RunRow(
        key=run.key,
        id=run.head.id,
        workflow=run.head.workflow,
        status=run.status,
        hold=run.hold,
        version=run.version,
        owner=run.owner.id if run.owner else "",
        labels=dict(run.head.labels),
        created_at=run.head.created_at,
        updated_at=run.updated_at,
        leased=sum(1 for entry in run.tasks.values() if entry.session),
        unwound=run.unwound,
        parent=run.head.parent,
        name=run.head.name,
        metadata=dict(run.head.metadata),
    )


def matches(run: StoredRun, query: RunQuery) -> bool:
    """Whether a run belongs to a listing."""
    head = run.head
    return (
        (not query.status or run.status == query.status)
        and (not query.workflow or head.workflow == query.workflow)
        and head.id.startswith(query.id_prefix)
        and (not query.parent or head.parent.startswith(query.parent + "/"))
        and all(head.labels.get(name) == value for name, value in query.labels.items())
        and (not query.package or head.workflow.startswith(query.package + "/"))
        and all(head.metadata.get(name) == value for name, value in query.metadata.items())
        and (not query.before or run.updated_at < query.before)
        and (not query.text or _speaks_of(head, query.text))
    )


def _speaks_of(head: RunHead, text: str) -> bool:
    wanted = _lowered(text)
    return any(wanted in _lowered(part) for part in (head.id, head.name, head.workflow, *head.metadata.values()))


def _lowered(text: str) -> str:
    """ASCII letters in one case, as SQL's `lower` does it."""
    return text.encode("utf-8", "surrogatepass").lower().decode("utf-8", "surrogatepass")


class MemoryData:
    """What the handles of one store share; every method is called with `lock` held."""

    __slots__ = (
        "age",
        "children",
        "elected",
        "ids",
        "inboxes",
        "lines",
        "lock",
        "runs",
        "sessions",
        "token",
        "tombstones",
        "waiting",
    )

    def __init__(self) -> None:
        # A reader may be used by another thread; what it sees must be one state.
        self.lock = threading.Lock()
        self.runs: dict[str, StoredRun] = {}
        self.ids: dict[str, str] = {}
        # Name -> keys of the runs in its line.
        self.lines: dict[str, list[str]] = {}
        # Key of a run -> keys of the runs that its steps have called.
        self.children: dict[str, dict[str, None]] = {}
        # Keys only; they are never reused, and a late append or report may come at any time.
        self.tombstones: dict[str, None] = {}
        self.sessions: dict[str, StoredSession] = {}
        self.elected: dict[str, StoredSession] = {}
        # Runs whose inbox is not empty.
        self.inboxes: dict[str, StoredRun] = {}
        self.waiting = Waiting(self.runs)
        self.age = 0
        self.token = 0

    # -- tasks -----------------------------------------------------------------------------------------

    def enter(self, run: StoredRun, tasks: Sequence[Task], now: float) -> list[Entry]:
        """Enter new tasks of a run in the place of those that their steps had; they wait nowhere yet."""
        known, age = run.tasks, self.age
        limited = self.waiting.limited
        entries: list[Entry] = []
        for task in tasks:
            number = task.number
            if (older := known.pop(number, None)) is not None:
                self.end(older)
            age += 1
            known[number] = entry = Entry(task, age, now)
            if limited and (queue := limited.get(task.queue)) is not None:
                entry.turn = queue.turn_of(task)
            entries.append(entry)
        self.age = age
        return entries

    def lease(self, entries: Sequence[Entry], own: StoredSession, now: float) -> None:
        """Give entries, which wait nowhere, to a session, each with a new token."""
        session, leases, token = own.id, own.leases, self.token
        for entry in entries:
            token += 1
            entry.task.lease = token
            entry.session = session
            entry.since = now
            leases[token] = entry
            if self.waiting.limited:
                self.waiting.started(entry, now)
        self.token = token

    def unlease(self, entry: Entry) -> None:
        """A leased entry is leased no more; the room that it took is free again."""
        if self.waiting.limited and entry.task.queue in self.waiting.limited:
            self.waiting.ended(entry)

    def end_all(self, run: StoredRun, numbers: Sequence[int]) -> None:
        """End the tasks of these steps of a run, if it has them."""
        tasks, sessions, limited = run.tasks, self.sessions, self.waiting.limited
        for number in numbers:
            if (entry := tasks.pop(number, None)) is None:
                continue
            if limited or not entry.session:
                self.end(entry)
            else:
                # The plain case of `end`.
                del sessions[entry.session].leases[entry.task.lease]

    def end(self, entry: Entry) -> None:
        """Forget a task that was taken out of its run, with whatever lease it had."""
        if entry.session:
            del self.sessions[entry.session].leases[entry.task.lease]
            self.unlease(entry)
        else:
            self.waiting.gone(entry)

    def unpark(self, run: StoredRun, now: float) -> None:
        """Put the tasks back that claims met while the run was held."""
        parked, run.parked = run.parked, []
        for entry in parked:
            if not entry.gone:
                self.waiting.enqueue(entry, now)

    # -- runs ------------------------------------------------------------------------------------------

    def put_input(self, run: StoredRun, value: InboxInput) -> None:
        """Add an input to the inbox unless one of its id is there."""
        if value.id not in run.inbox:
            run.inbox[value.id] = value
            self.inboxes[run.key] = run

    def consume(self, run: StoredRun, ids: Sequence[str]) -> None:
        """Take inputs out of the inbox."""
        inbox = run.inbox
        for input_id in ids:
            inbox.pop(input_id, None)
        if not inbox:
            self.inboxes.pop(run.key, None)

    def revoke(self, run: StoredRun, only: Sequence[int] | None, id: str = "") -> None:
        """End waiting tasks, all or those of some numbers, and tell the run which; leased ones must not wait again.

        `id` is that of the input by which the run is told, if it is not the append's.
        """
        numbers: list[int] = []
        for number, entry in run.tasks.items():
            if only is not None and number not in only:
                continue
            if entry.session:
                entry.last = True
            else:
                numbers.append(number)
        if not numbers:
            return
        for number in numbers:
            self.end(run.tasks.pop(number))
        run.parked = [entry for entry in run.parked if run.tasks.get(entry.task.number) is entry]
        body = encode_input(Revoked(numbers=sorted(numbers)))
        self.put_input(run, InboxInput(id or f"revoked:{run.version}", run.key, body))

    def family(self, run: StoredRun) -> list[StoredRun]:
        """A run with the runs below it that are not detached, the nearest first."""
        found = [run]
        for one in found:
            below = [self.runs[key] for key in self.children.get(one.key, ())]
            found += [child for child in below if not child.head.detached]
        return found

    def forget(self, run: StoredRun) -> None:
        """Remove a closed run, leaving the tombstone of its key."""
        self.free(run)
        change_names(self, run, [(name, "leave") for name in run.names])
        del self.runs[run.key]
        del self.ids[run.head.id]
        self.inboxes.pop(run.key, None)
        self.children.pop(run.key, None)
        siblings = self.children.get(run.head.parent.partition("/")[0])
        if siblings is not None:
            siblings.pop(run.key, None)
        self.tombstones[run.key] = None

    def task_row(self, entry: Entry) -> TaskRow:
        """A task as it is shown."""
        holder = self.sessions.get(entry.session)
        return TaskRow(
            task=msgspec.structs.replace(entry.task),
            session=entry.session,
            worker=holder.row.worker if holder else "",
            started_at=entry.since if entry.session else 0.0,
            interrupt=entry.interrupt,
            progress=entry.progress,
        )

    def free(self, run: StoredRun) -> None:
        """Let nobody own the run."""
        if run.owner is not None:
            run.owner.owned.pop(run.key, None)
            run.owner = None

    def own(self, run: StoredRun, session: StoredSession) -> None:
        """Let the session own the run, whoever did before."""
        self.free(run)
        run.owner = session
        session.owned[run.key] = None


def problems_of(data: MemoryData) -> list[str]:
    """Broken invariants of the data, in words."""
    queues = data.waiting.queues.values()
    entries = [entry for queue in queues for line in queue.lines.values() for *_, entry in line.items()]
    entries += [entry for *_, entry in data.waiting.timed]
    entries += [entry for run in data.runs.values() for entry in run.parked]
    waits = [(entry.task.run, entry.task.number, entry.age) for entry in entries if not entry.gone]
    wait = sorted(waits)
    leases = sorted(
        (entry.task.run, entry.task.number, entry.age)
        for own in data.sessions.values()
        for entry in own.leases.values()
    )
    stored_wait = sorted(
        (run.key, number, entry.age)
        for run in data.runs.values()
        for number, entry in run.tasks.items()
        if not entry.session
    )
    stored_leases = sorted(
        (run.key, number, entry.age)
        for run in data.runs.values()
        for number, entry in run.tasks.items()
        if entry.session
    )
    problems: list[str] = []
    if wait != stored_wait:
        problems.append(f"waiting tasks {stored_wait} are queued as {wait}")
    if leases != stored_leases:
        problems.append(f"leased tasks {stored_leases} are held as {leases}")
    for queue in data.waiting.limited.values():
        problems += _miscounts(data, queue)
    for run in data.runs.values():
        if run.version != len(run.rows):
            problems.append(f"run {run.key} is at {run.version} and has {len(run.rows)} rows")
        if bool(run.inbox) != (run.key in data.inboxes):
            problems.append(f"the inbox of run {run.key} is not where a sweep looks")
        if any(run.key not in data.lines.get(name, ()) for name in run.names):
            problems.append(f"run {run.key} is not in the lines of {run.names}")
        if run.owner and (run.key not in run.owner.owned or run.owner.id not in data.sessions):
            problems.append(f"run {run.key} is owned by {run.owner.id}, which does not know it")
    return problems


def _miscounts(data: MemoryData, queue: Queue) -> list[str]:
    """What a queue with limits counts wrongly."""
    leased = [entry.task for own in data.sessions.values() for entry in own.leases.values()]
    keys = [task.key for task in leased if task.queue == queue.name]
    problems: list[str] = []
    if queue.running != len(keys):
        problems.append(f"queue {queue.name} counts {queue.running} leased tasks of {len(keys)}")
    for name, key in queue.keys.items():
        if key.running != keys.count(name):
            problems.append(f"queue {queue.name} counts {key.running} leased tasks with the key {name}")
    return problems
