"""Snapshots of the state: what a process needs that begins in the middle of a log.

A snapshot is a cache: all that is in it follows from the log. What is ordered in the state is ordered here, since what
follows from the order (which input of a burial comes first) must be the same in every process.

Its format is the level of the log where it was stored: whoever may apply the log from there on can read it, and a
process that is too old for the log does not begin with it. As with operations, what is new in a snapshot has its
default below the level that it came with.
"""

from __future__ import annotations

import msgspec

from treadle.core.commands import Task
from treadle.errors import SchemaVersionError
from treadle.store.base import InboxInput, RunHead, SessionRow, StepRow
from treadle.store.memory_data import MemoryData, StoredRun, StoredSession
from treadle.store.memory_lines import Entry
from treadle.store.memory_queues import Key, Queue
from treadle.store.nats.machine import Machine, outgrown
from treadle.store.nats.wire import LEVEL
from treadle.store.queues import NO_LIMITS, Bucket, QueueLimits

_NEVER = float("-inf")


class TaskState(msgspec.Struct, array_like=True):
    """As `memory_data.Entry`."""

    task: Task
    age: int
    since: float
    session: str
    interrupt: bool
    progress: str
    last: bool
    turn: float


class RunState(msgspec.Struct, array_like=True):
    """As `memory_data.StoredRun`; `steps` are its failures. On the first level it is not told what has settled."""

    head: RunHead
    plan: str
    version: int
    status: str
    unwound: str
    hold: int
    updated_at: float
    inbox: list[InboxInput]
    tasks: list[TaskState]
    steps: list[StepRow]
    has_settled: bool = True


class SessionState(msgspec.Struct, array_like=True):
    """A session, the keys of its runs, its leases as run and step number, and the level that it can apply."""

    row: SessionRow
    owned: list[str]
    leases: list[tuple[str, int]]
    level: int = 1


class QueueState(msgspec.Struct):
    """As `memory_queues.Queue`; buckets of keys by name, turns by priority, shares by priority and key."""

    name: str
    defined: QueueLimits | None
    override: QueueLimits | None
    paused: bool
    version: int
    bucket: Bucket | None
    buckets: dict[str, Bucket]
    turns: list[tuple[int, float]]
    shares: list[tuple[int, str, float]]


class Snapshot(msgspec.Struct):
    """The state after message `seq`."""

    format: int
    seq: int
    age: int
    token: int
    runs: list[RunState]
    tombstones: list[str]
    sessions: list[SessionState]
    elected: dict[str, str]
    inboxes: list[str]
    voids: dict[str, list[int]]
    deleted: dict[str, int]
    cleared: int
    queues: list[QueueState]
    fading: list[tuple[float, str, str]]
    served: dict[str, int]
    turn: int
    # Name -> keys of the runs in its line.
    lines: dict[str, list[str]] = {}

    def machine(self) -> Machine:
        """The state, as a machine that goes on from it."""
        machine = Machine()
        data = machine.data
        data.age, data.token = self.age, self.token
        for limits in self.queues:
            queue = data.waiting.limited[limits.name] = data.waiting.queue(limits.name)
            _limit(queue, limits)
        for state in self.runs:
            run = data.runs[state.head.key] = _stored(state)
            data.ids[run.head.id] = run.key
            if run.head.parent:
                data.children.setdefault(run.head.parent.partition("/")[0], {})[run.key] = None
            for entry in run.tasks.values():
                if not entry.session:
                    data.waiting.enqueue(entry, _NEVER)
        data.tombstones = dict.fromkeys(self.tombstones)
        for session in self.sessions:
            own = data.sessions[session.row.id] = StoredSession(session.row)
            machine.levels[own.id] = session.level
            for key in session.owned:
                data.own(data.runs[key], own)
            for key, number in session.leases:
                entry = data.runs[key].tasks[number]
                own.leases[entry.task.lease] = entry
        for name, queue in data.waiting.limited.items():
            leased = [entry for own in data.sessions.values() for entry in own.leases.values()]
            queue.count([entry for entry in leased if entry.task.queue == name])
        data.waiting.fading, data.waiting.served, data.waiting.turn = self.fading, self.served, self.turn
        _line_up(data, self.lines)
        data.elected = {role: data.sessions[holder] for role, holder in self.elected.items()}
        data.inboxes = {key: data.runs[key] for key in self.inboxes}
        machine.voids = self.voids
        machine.deleted = self.deleted
        machine.cleared = self.cleared
        machine.level = self.format
        return machine


def _line_up(data: MemoryData, lines: dict[str, list[str]]) -> None:
    data.lines = lines
    for name, line in lines.items():
        for key in line:
            data.runs[key].names.append(name)


class _Format(msgspec.Struct):
    format: int


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Snapshot).decode
_decode_format = msgspec.msgpack.Decoder(_Format).decode


def encode_snapshot(seq: int, machine: Machine) -> bytes:
    """The state of a machine that has applied message `seq`."""
    data = machine.data
    return _encode(
        Snapshot(
            format=machine.level,
            seq=seq,
            age=data.age,
            token=data.token,
            runs=[_run_state(run, machine.level) for run in data.runs.values()],
            tombstones=list(data.tombstones),
            sessions=[_session_state(own, machine.levels[own.id]) for own in data.sessions.values()],
            elected={role: own.id for role, own in data.elected.items()},
            inboxes=list(data.inboxes),
            voids=machine.voids,
            deleted=machine.deleted,
            cleared=machine.cleared,
            queues=[_queue_state(queue) for queue in data.waiting.limited.values()],
            fading=sorted(data.waiting.fading),
            served=data.waiting.served,
            turn=data.waiting.turn,
            lines=data.lines,
        )
    )


def decode_snapshot(data: bytes) -> Snapshot:
    """Read a snapshot.

    Raises:
        SchemaVersionError: the log has risen above what this version can apply.
    """
    level = _decode_format(data).format
    if level > LEVEL:
        raise SchemaVersionError(outgrown(level, LEVEL))
    return _decode(data)


def _run_state(run: StoredRun, level: int) -> RunState:
    tasks = [
        TaskState(e.task, e.age, e.since, e.session, e.interrupt, e.progress, e.last, e.turn)
        for e in run.tasks.values()
    ]
    return RunState(
        head=run.head,
        plan=run.plan.decode(),
        version=run.version,
        status=run.status,
        unwound=run.unwound,
        hold=run.hold,
        updated_at=run.updated_at,
        inbox=list(run.inbox.values()),
        tasks=tasks,
        steps=list(run.steps.values()),
        has_settled=run.has_settled or level == 1,
    )


def _session_state(own: StoredSession, level: int) -> SessionState:
    leases = [(entry.task.run, entry.task.number) for entry in own.leases.values()]
    return SessionState(own.row, list(own.owned), leases, level)


def _queue_state(queue: Queue) -> QueueState:
    return QueueState(
        name=queue.name,
        defined=queue.defined,
        override=queue.override,
        paused=queue.paused,
        version=queue.version,
        bucket=queue.bucket,
        buckets={name: key.bucket for name, key in sorted(queue.keys.items()) if key.bucket is not None},
        turns=sorted(queue.turns.items()),
        shares=sorted((priority, key, share) for (priority, key), share in queue.shares.items()),
    )


def _limit(queue: Queue, state: QueueState) -> None:
    queue.defined, queue.override, queue.paused = state.defined, state.override, state.paused
    queue.limits = state.override or state.defined or NO_LIMITS
    queue.version = state.version
    queue.bucket = state.bucket
    queue.turns = dict(state.turns)
    queue.shares = {(priority, key): share for priority, key, share in state.shares}
    for name, bucket in state.buckets.items():
        queue.keys[name] = Key()
        queue.keys[name].bucket = bucket


def _stored(state: RunState) -> StoredRun:
    run = StoredRun(state.head, state.plan.encode())
    run.version = state.version
    run.status = state.status
    run.unwound = state.unwound
    run.hold = state.hold
    run.updated_at = state.updated_at
    run.inbox = {value.id: value for value in state.inbox}
    for stored in state.tasks:
        entry = run.tasks[stored.task.number] = Entry(stored.task, stored.age, stored.since, stored.session)
        entry.progress, entry.turn = stored.progress, stored.turn
        entry.interrupt, entry.last = stored.interrupt, stored.last
    for row in state.steps:
        run.steps[row.number] = row
        run.by_address[row.address] = row
    run.has_settled = state.has_settled
    return run
