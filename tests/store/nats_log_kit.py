"""Logs of NATS stores without a server: random histories, what a machine makes of each message, and what is recorded.

`python -m tests.store.nats_log_kit` records the files of a level in `nats_logs`. What is recorded of a level that was
released is never recorded anew.
"""

from __future__ import annotations

import gzip
import hashlib
import random
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import msgspec
from msgspec import inspect

from treadle.core.commands import Call, Task
from treadle.core.tables import LIVE
from treadle.store.base import SessionRow
from treadle.store.nats import wire
from treadle.store.nats.machine import Machine
from treadle.store.nats.snapshots import Snapshot, encode_snapshot
from treadle.store.queues import Bucket, QueueChange, QueueLimits
from treadle.testing.contract_kit import (
    NOW,
    Slots,
    append_of,
    head_of,
    key_of,
    report_of,
    signal_of,
    step_of,
    task_of,
)

# A history in which all happens that may.
SEED = 12
FOLDER = Path(__file__).with_name("nats_logs")
ACTIONS = ("act", "other")
QUEUES = ("default", "slow", "fair")
# Only the newest runs wait in this one.
NEWEST = "newest"
TARGETS = ("", "", "gpu")
NAMES = ("lock", "line")
LIMITS = (
    QueueLimits(),
    QueueLimits(concurrency=2, rate=0.5, burst=2),
    QueueLimits(key_concurrency=1, key_rate=0.3, key_burst=2),
    QueueLimits(fair=True, weights={"a": 2.0}, length=6),
    QueueLimits(concurrency=1, length=3, on_full="wait"),
)


# -- histories -----------------------------------------------------------------------------------------


class Scribe:
    """Writes a log as processes would, and now and then as those do that have not seen what came before."""

    def __init__(self, seed: int) -> None:
        self.dice = random.Random(seed)
        self.machine = Machine()
        self.now = NOW
        self.count = 0
        self.keys = 0
        self.sessions = 0
        self.given: list[tuple[str, Task]] = []
        self.kinds: list[tuple[int, Callable[[], wire.Operation | None]]] = [
            (30, self.append),
            (14, self.start),
            (14, self.claim),
            (8, self.report),
            (5, self.postpone),
            (3, self.progress),
            (4, self.acquire),
            (4, self.open),
            (4, self.post),
            (3, self.queues),
            (2, self.bury),
            (2, self.release),
            (2, self.delete),
            (1, self.elect),
            (1, self.targets),
            (1, self.renew),
            (1, self.clear),
            (3, self.rise),
            (10, self.queued),
        ]

    def write(self, length: int) -> Iterator[tuple[wire.Operation, Any]]:
        """The next operations of the log, each with what the machine has made of it."""
        weights = [weight for weight, _ in self.kinds]
        for _ in range(length):
            self.now += self.dice.choice((0.0, 0.2, 1.0, 5.0))
            op = None
            while op is None:
                _, make = self.dice.choices(self.kinds, weights)[0]
                op = make()
            self.count += 1
            # As everybody else reads it.
            answer = self.machine.apply(wire.decode(wire.encode(op)), self.count)
            self.given += [(op.session, task) for task in tasks_of(answer)]
            yield op, answer

    def chance(self, of: int) -> bool:
        return self.dice.randrange(of) == 0

    def session(self) -> str:
        living = list(self.machine.data.sessions)
        return "s0" if self.chance(20) or not living else self.dice.choice(living)

    def key(self) -> str:
        living, gone = list(self.machine.data.runs), [*self.machine.data.tombstones, key_of(9999)]
        return self.dice.choice(gone if not living or self.chance(12) else living)

    def takes(self) -> wire.Takes:
        kinds = {(self.dice.choice(ACTIONS), self.dice.choice(QUEUES)) for _ in range(3)}
        counts = [(action, queue, self.dice.randint(1, 3)) for action, queue in sorted(kinds)]
        return wire.Takes(counts, list(ACTIONS) if self.chance(3) else None, ["gpu"] if self.chance(3) else None)

    def task(self, key: str, number: int) -> Task:
        dice = self.dice
        return task_of(
            key,
            number,
            attempt=dice.randint(1, 3),
            action=dice.choice(ACTIONS),
            queue=dice.choice(QUEUES),
            priority=dice.randint(0, 2),
            not_before=dice.choice((0.0, 0.0, self.now + 3.0)),
            key=dice.choice(("", "a", "b")),
            target=dice.choice(TARGETS),
        )

    def leased(self) -> tuple[str, Task, int]:
        """A task as some session was given it, and its token or, now and then, another."""
        session, task = self.dice.choice(self.given[-10:])
        return session, task, task.lease + self.chance(8)

    def start(self) -> wire.Operation | None:
        known = list(self.machine.data.runs)
        self.keys += 1
        key = self.key() if self.chance(8) else key_of(self.keys)
        head = head_of(key, id=f"id-{self.dice.randrange(60)}", labels={"n": str(self.keys)})
        if known and self.chance(3):
            head = head_of(key, parent=f"{self.dice.choice(known)}/step", detached=self.chance(3))
        if self.chance(6):
            head = head_of(key, singleton=NAMES[0])
        return self.filled(key, 0, head=head, plan="sha256:plan")

    def queued(self) -> wire.Operation | None:
        """A run that only waits in a queue."""
        self.keys += 1
        key = key_of(self.keys)
        return wire.AppendOp(
            session=self.session(),
            key=key,
            expect=0,
            commit_id=self.count,
            time=self.now,
            events="[]",
            status="running",
            head=head_of(key),
            plan="sha256:plan",
            tasks=[task_of(key, number, queue=NEWEST) for number in range(self.dice.randint(1, 2))],
        )

    def append(self) -> wire.Operation | None:
        key = self.key()
        run = self.machine.data.runs.get(key)
        version = (1 if run is None else run.version) + (self.dice.choice((-1, 1)) if self.chance(12) else 0)
        owner = run.owner if run is not None and not self.chance(12) else None
        return self.filled(key, max(0, version), session=self.session() if owner is None else owner.id)

    def filled(self, key: str, expect: int, **fields: Any) -> wire.AppendOp:
        dice, some = self.dice, self.chance
        numbers = dice.sample(range(1, 7), dice.randint(0, 3))
        run = self.machine.data.runs.get(key)
        inbox = [] if run is None else list(run.inbox)
        report = None
        if self.given and some(10):
            session, task, lease = self.leased()
            fields["session"], report = session, report_of(task, lease=lease, payloads=())
        return wire.AppendOp(
            **{"session": self.session(), "status": "succeeded" if some(6) else "running"} | fields,
            key=key,
            expect=expect,
            commit_id=self.count,
            time=self.now,
            events="[]",
            unwound="unwound" if some(15) else None,
            tasks=[self.task(key, number) for number in numbers],
            takes=self.takes() if not some(3) else None,
            ended=dice.sample(range(1, 7), dice.randint(0, 2)) if some(2) else [],
            consumed=dice.sample(inbox, dice.randint(0, len(inbox))),
            steps=[step_of(number, status=dice.choice(("succeeded", "failed"))) for number in numbers]
            if some(2)
            else [],
            undos=[("step-1", "undone")] if some(9) else [],
            unsettled=[1, 2] if some(9) else [],
            interrupts=[1, 2, 3] if some(10) else [],
            hold=dice.choice((0, 1)) if some(8) else None,
            revoke=some(14),
            release=some(8),
            report=report,
            posts=[signal_of(dice.choice(list(self.machine.data.runs)), f"p{self.count}")] if run and some(8) else [],
            names=[(dice.choice(NAMES), dice.choice(("take", "note", "join", "replace", "leave")))] if some(5) else [],
        )

    def claim(self) -> wire.Operation | None:
        now = self.now - 3.0 if self.chance(15) else self.now
        return wire.ClaimOp(session=self.session(), now=now, takes=self.takes())

    def report(self) -> wire.Operation | None:
        if not self.given:
            return None
        session, task, lease = self.leased()
        return wire.ReportOp(session=session, reports=[report_of(task, lease=lease, payloads=())])

    def postpone(self) -> wire.Operation | None:
        if not self.given:
            return None
        session, task, lease = self.leased()
        item = wire.Wait(task.run, task.number, lease, self.now + self.dice.choice((0.0, 2.0)), Call(args={"n": "=7"}))
        return wire.PostponeOp(session=session, now=self.now, items=[item])

    def progress(self) -> wire.Operation | None:
        if not self.given:
            return None
        session, task, lease = self.leased()
        return wire.ProgressOp(session=session, items=[(task.run, task.number, lease, f"={self.count}")])

    def post(self) -> wire.Operation | None:
        return wire.PostOp(inputs=[signal_of(self.key(), f"i{self.dice.randrange(40)}")])

    def acquire(self) -> wire.Operation | None:
        return wire.AcquireOp(session=self.session(), key=self.key(), steal=self.chance(3))

    def release(self) -> wire.Operation | None:
        return wire.ReleaseOp(session=self.session(), keys=[self.key()])

    def open(self) -> wire.Operation | None:
        if len(self.machine.data.sessions) > 3:
            return None
        self.sessions += 1
        targets = ["gpu"] if self.chance(2) else []
        name = f"s{self.sessions}"
        return wire.OpenOp(
            row=SessionRow(name, f"worker-{name}", f"wake-{name}", 0, 0, list(ACTIONS[:1]), targets=targets),
            level=wire.LEVEL,
        )

    def rise(self) -> wire.Operation | None:
        if self.machine.level >= wire.LEVEL:
            return None
        return wire.LevelOp(session=self.session(), level=wire.LEVEL)

    def bury(self) -> wire.Operation | None:
        return wire.BuryOp(dead=self.session())

    def elect(self) -> wire.Operation | None:
        return wire.ElectOp(session=self.session(), role="sweeper")

    def targets(self) -> wire.Operation | None:
        return wire.TargetsOp(session=self.session(), targets=["gpu"] if self.chance(2) else [])

    def renew(self) -> wire.Operation | None:
        return wire.RenewOp(session=self.session(), waits=self.dice.choice((None, 1, 3)))

    def queues(self) -> wire.Operation | None:
        name = self.dice.choice(QUEUES)
        change = QueueChange(name=name, defined=self.dice.choice(LIMITS), paused=self.chance(5))
        if self.chance(4):
            change = QueueChange(name=name, override=self.dice.choice((None, QueueLimits(concurrency=1))))
        if self.chance(3):
            length = self.dice.randint(2, 5)
            change = QueueChange(name=NEWEST, defined=QueueLimits(length=length, on_full="drop_oldest"))
        elif self.chance(4):
            buckets = {key: Bucket(self.dice.random(), self.now) for key in ("", "a", "c") if self.chance(2)}
            change = QueueChange(name=name, defined=QueueLimits(rate=0.5, key_rate=0.3, key_burst=2), buckets=buckets)
        return wire.QueuesOp(now=self.now, changes=[change if self.machine.level > 1 else wire.of_level_1(change)])

    def delete(self) -> wire.Operation | None:
        closed = [key for key, run in self.machine.data.runs.items() if run.status not in LIVE]
        return wire.DeleteOp(key=self.dice.choice(closed) if closed else self.key())

    def clear(self) -> wire.Operation | None:
        return wire.ClearOp(until=self.count)


class LevelScribe(Scribe):
    """Has processes of several versions."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self.kinds.append((6, self.rise))

    def open(self) -> wire.Operation | None:
        op = super().open()
        return None if op is None else msgspec.structs.replace(op, level=self.dice.choice((1, 2, 2, 3)))

    def rise(self) -> wire.Operation | None:
        return wire.LevelOp(session=self.session(), level=self.dice.randint(1, 3))


def tasks_of(answer: Any) -> list[Task]:
    """The tasks that an answer hands over, as they are now."""
    leased = getattr(answer, "leased", answer)
    tasks = leased if isinstance(leased, list) else []
    return [msgspec.structs.replace(task) for task in tasks if isinstance(task, Task)]


def look(machine: Machine, dice: random.Random, now: float) -> None:
    """Look at what a process would be handed, at any time, as is done between the messages of a log."""
    living, runs = list(machine.data.sessions), list(machine.data.runs)
    offer = Slots(dice.randint(0, 4), ACTIONS[: dice.randint(1, 2)], dice.choice(((), ("gpu",))))
    kind = dice.randrange(4)
    if kind == 0:
        machine.due(now)
    elif kind == 1:
        machine.may_have_room(dice.choice((now, None)))
    elif kind == 2 and living:
        machine.claimable(dice.choice(living), offer, now)
    elif living and runs:
        key = dice.choice(runs)
        tasks = [task_of(key, number, action=dice.choice(ACTIONS), queue=dice.choice(QUEUES)) for number in (1, 2, 3)]
        append = append_of(key, machine.data.runs[key].version, tasks=tasks, time=now, ended=[4])
        machine.refusal(living[0], append)
        machine.hand_over(living[0], append, offer, {})


# -- what is compared ----------------------------------------------------------------------------------


def plain(value: Any) -> Any:
    """A value as JSON, structs by the names of their fields without those that are at their defaults.

    So a field that a later version has besides changes nothing as long as it says nothing.
    """
    if isinstance(value, msgspec.Struct):
        fields = _fields(type(value))
        return {name: plain(found) for name, default in fields if (found := getattr(value, name)) != default}
    if isinstance(value, Exception):
        return type(value).__name__
    if isinstance(value, dict):
        return [[plain(name), plain(found)] for name, found in value.items()]
    if isinstance(value, list | tuple):
        return [plain(one) for one in value]
    return value


@cache
def _fields(kind: type[msgspec.Struct]) -> list[tuple[str, Any]]:
    """The names of a struct's fields, and their defaults."""
    fields = msgspec.structs.fields(kind)
    return [
        (field.name, field.default if field.default_factory is msgspec.NODEFAULT else field.default_factory())
        for field in fields
    ]


def snapshot_of(machine: Machine, seq: int) -> Snapshot:
    """The state as a snapshot."""
    return msgspec.msgpack.decode(encode_snapshot(seq, machine), type=Snapshot)


def digest_of(machine: Machine, seq: int, answer: Any) -> bytes:
    """What a message has come to: its answer, and after each fifth one the state."""
    state = plain(snapshot_of(machine, seq)) if seq % 5 == 0 else None
    told = msgspec.json.encode([plain(answer), state])
    return hashlib.sha256(told).digest()[:4]


# -- what is recorded ----------------------------------------------------------------------------------


class Recorded(msgspec.Struct):
    """A log with the digests of what its messages come to, and a snapshot in the middle of it."""

    operations: list[bytes]
    digests: list[bytes]
    snapshot: bytes


def record(seed: int, length: int) -> Recorded:
    """A history as this version writes and applies it."""
    scribe = Scribe(seed)
    found = Recorded([], [], b"")
    for op, answer in scribe.write(length):
        found.operations.append(wire.encode(op))
        found.digests.append(digest_of(scribe.machine, scribe.count, answer))
        if scribe.count == length // 2:
            found.snapshot = encode_snapshot(scribe.count, scribe.machine)
    return found


def logs() -> list[Path]:
    """The recorded logs of all levels."""
    return sorted(FOLDER.glob("log-*.msgpack.gz"))


def read(path: Path) -> Recorded:
    """A recorded log."""
    return msgspec.msgpack.decode(gzip.decompress(path.read_bytes()), type=Recorded)


def shapes() -> list[str]:
    """All that is written into logs and snapshots, a field a line."""
    types = msgspec.inspect.multi_type_info([wire.AnyOperation, Snapshot])
    found: dict[str, None] = {}
    waiting = list(types)
    seen: set[type] = set()
    while waiting:
        known = waiting.pop()
        waiting += _parts(known)
        if isinstance(known, inspect.StructType) and known.cls not in seen:
            seen.add(known.cls)
            for place, field in enumerate(known.fields):
                where = f"[{place}]" if known.array_like else ""
                found[f"{known.cls.__name__}{where}.{field.encode_name}: {_name(field.type)}"] = None
                waiting.append(field.type)
            if known.tag is not None:
                found[f"{known.cls.__name__} is {known.tag_field}={known.tag}"] = None
    return sorted(found)


def _parts(known: Any) -> list[Any]:
    parts = [getattr(known, name) for name in ("item_type", "key_type", "value_type") if hasattr(known, name)]
    return [*parts, *getattr(known, "types", ()), *getattr(known, "item_types", ())]


def _name(known: Any) -> str:
    if isinstance(known, inspect.StructType):
        return known.cls.__name__
    parts = sorted(map(_name, _parts(known))) if isinstance(known, inspect.UnionType) else map(_name, _parts(known))
    inner = ", ".join(parts)
    name = type(known).__name__.removesuffix("Type")
    return f"{name}[{inner}]" if inner else name


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    data = msgspec.msgpack.encode(record(SEED, 500))
    FOLDER.joinpath(f"log-{wire.LEVEL}.msgpack.gz").write_bytes(gzip.compress(data, mtime=0))
    FOLDER.joinpath(f"shapes-{wire.LEVEL}.txt").write_text("\n".join(shapes()) + "\n", encoding="utf-8")
