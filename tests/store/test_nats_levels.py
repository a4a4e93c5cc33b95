"""Levels of a NATS store's log: what a version writes there is read by every later one, and comes to the same.

A log and the shapes of all that is written are recorded for each level. A change of the state machine, or of what it
is given, that reads a recorded log in another way fails here: it belongs to a new level (`wire.LEVEL`).
"""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from tests.store.nats_log_kit import (
    FOLDER,
    SEED,
    LevelScribe,
    Scribe,
    digest_of,
    logs,
    look,
    plain,
    read,
    record,
    shapes,
    snapshot_of,
)

from treadle.core.commands import Task
from treadle.errors import LeaseLostError, SchemaVersionError
from treadle.store.base import Report, SessionRow
from treadle.store.nats import NatsStore, wire
from treadle.store.nats.machine import Machine
from treadle.store.nats.snapshots import decode_snapshot, encode_snapshot
from treadle.store.queues import QueueChange, QueueLimits
from treadle.testing.contract_kit import NOW, OTHER, RUN, Party, append_of, head_of, key_of, report_of, task_of


@pytest.mark.parametrize("path", logs(), ids=lambda path: path.name)
def test_a_recorded_log_comes_to_what_it_came_to_when_it_was_recorded(path: Path) -> None:
    recorded = read(path)
    machine = Machine()

    for number, (data, digest) in enumerate(zip(recorded.operations, recorded.digests, strict=True), 1):
        op = wire.decode(data)
        answer = machine.apply(op, number)

        assert digest_of(machine, number, answer) == digest, f"message {number}, {op}: {answer}"


@pytest.mark.parametrize("path", logs(), ids=lambda path: path.name)
def test_a_recorded_snapshot_leads_to_where_the_log_before_it_leads(path: Path) -> None:
    recorded = read(path)
    snapshot = decode_snapshot(recorded.snapshot)
    machine = snapshot.machine()
    seq = snapshot.seq

    for number, data in enumerate(recorded.operations[seq:], seq + 1):
        answer = machine.apply(wire.decode(data), number)

        assert digest_of(machine, number, answer) == recorded.digests[number - 1], number


def test_the_level_of_this_version_is_recorded_and_has_every_operation() -> None:
    recorded = read(FOLDER / f"log-{wire.LEVEL}.msgpack.gz")

    kinds = {type(wire.decode(data)) for data in recorded.operations}

    assert kinds == set(wire.AnyOperation.__args__)


def test_nothing_that_was_written_on_some_level_is_gone() -> None:
    now = set(shapes())

    for path in FOLDER.glob("shapes-*.txt"):
        assert set(path.read_text(encoding="utf-8").splitlines()) <= now, path.name


def test_a_changed_rule_of_the_machine_is_found_by_the_recorded_log() -> None:
    class Changed(Machine):
        def _bury(self, op: wire.BuryOp, number: int) -> list[str]:
            self.data.token += 1
            return super()._bury(op, number)

    recorded = read(FOLDER / "log-1.msgpack.gz")
    machine = Changed()

    same = [
        digest_of(machine, number, machine.apply(wire.decode(data), number)) == recorded.digests[number - 1]
        for number, data in enumerate(recorded.operations, 1)
    ]

    assert not all(same)


@pytest.mark.parametrize("seed", range(8))
def test_a_replica_that_begins_in_the_middle_comes_to_the_same(seed: int) -> None:
    recorded = record(seed, 120)
    late = decode_snapshot(recorded.snapshot).machine()

    for number, data in enumerate(recorded.operations[60:], 61):
        answer = late.apply(wire.decode(data), number)

        assert digest_of(late, number, answer) == recorded.digests[number - 1], number


# The last ones led apart: by turns of tasks that were not due, and by how full a queue was.
@pytest.mark.parametrize("seed", [*range(4), 20, 32])
def test_who_has_looked_comes_to_the_same_as_who_has_not(seed: int) -> None:
    scribe, other, dice = Scribe(seed), Machine(), random.Random(seed)

    for op, answer in scribe.write(200):
        found = other.apply(wire.decode(wire.encode(op)), scribe.count)

        assert plain(found) == plain(answer), scribe.count
        assert encode_snapshot(1, other) == encode_snapshot(1, scribe.machine), scribe.count
        for _ in range(2):
            look(other, dice, scribe.now + dice.choice((-3.0, 0.0, 0.0, 4.0)))


def test_who_has_moved_a_task_into_its_line_forgets_keys_where_others_do() -> None:
    rated = QueueLimits(key_rate=0.3, key_burst=2)
    takes = wire.Takes([("act", "default", 1)])
    report = report_of(task_of(OTHER, 1, lease=1), lease=1)
    later = [task_of(RUN, 3, not_before=NOW + 100.0)]

    def start(key: str, time: float, tasks: list[Task], report: Report | None = None) -> wire.AppendOp:
        return wire.AppendOp(
            session="s",
            key=key,
            expect=0,
            commit_id=1,
            time=time,
            events="[]",
            status="running",
            head=head_of(key),
            plan="p",
            tasks=tasks,
            takes=takes,
            report=report,
        )

    ops: list[wire.Operation] = [
        wire.OpenOp(row=SessionRow("s", "w", "", 0, 0, ["act"])),
        wire.QueuesOp(now=NOW, changes=[QueueChange(name="default", defined=rated)]),
        start(OTHER, NOW, [task_of(OTHER, 1)]),
        start(RUN, NOW + 1.0, later),
        start(key_of(3), NOW + 2.0, [task_of(key_of(3), 1, key="a")], report),
    ]
    here, there = Machine(), Machine()

    for number, op in enumerate(ops, 1):
        here.apply(op, number)
        there.due(NOW + 200.0)
        there.apply(wire.decode(wire.encode(op)), number)

    assert list(here.data.waiting.limited["default"].keys) == ["a"]
    assert encode_snapshot(1, here) == encode_snapshot(1, there)


@pytest.mark.parametrize("seed", range(8))
def test_a_log_never_falls_and_never_rises_above_a_living_session(seed: int) -> None:
    scribe = LevelScribe(seed)
    machine = scribe.machine
    before = 1

    for op, answer in scribe.write(200):
        level = machine.level
        assert level >= before
        assert all(known >= level for known in machine.levels.values())
        assert machine.levels.keys() == machine.data.sessions.keys()
        if isinstance(op, wire.OpenOp):
            assert isinstance(answer, SchemaVersionError) == (op.level < level)
        if isinstance(op, wire.LevelOp) and not isinstance(answer, LeaseLostError):
            assert level == max(before, op.level if op.level <= machine.common_level() else before)
        before = level
    late = snapshot_of(machine, 1).machine()
    assert (late.level, late.levels) == (machine.level, machine.levels)


def test_a_version_that_does_not_know_levels_reads_what_is_written_on_the_first() -> None:
    class Before(msgspec.Struct, tag_field="op", tag="open", forbid_unknown_fields=True):
        row: SessionRow
        session: str = ""

    op = wire.OpenOp(row=SessionRow("s", "w", "", 0, 0, ["act"]), level=1)

    assert msgspec.msgpack.decode(wire.encode(op), type=Before).row == op.row


def test_a_snapshot_of_a_higher_level_is_refused_with_what_to_do() -> None:
    machine = Machine()
    machine.level = wire.LEVEL + 1

    with pytest.raises(SchemaVersionError, match=f"risen to level {wire.LEVEL + 1}.*upgrade this program"):
        decode_snapshot(encode_snapshot(7, machine))


# -- on a server ---------------------------------------------------------------------------------------


def write(store: NatsStore, op: wire.Operation) -> None:
    """Write an operation as a newer process would."""
    store._loop.call(store._rooms.log.write([(store.location.other, op)]))


@pytest.mark.nats
def test_a_process_stops_where_the_log_rises_above_it(open_nats: Callable[[], NatsStore]) -> None:
    one, reader = Party(open_nats(), "one"), open_nats()
    one.start()
    seen = reader._rooms.log.applied
    newer = open_nats()
    # A session that could apply it, and nobody else.
    write(newer, wire.BuryOp(dead="one"))
    write(newer, wire.OpenOp(row=SessionRow("new", "w", "", 0, 0, []), level=wire.LEVEL + 1))
    write(newer, wire.LevelOp(session="new", level=wire.LEVEL + 1))
    write(newer, wire.PostOp(inputs=[]))

    for _ in range(2):
        with pytest.raises(SchemaVersionError, match="upgrade this program"):
            reader.run(RUN)
        with pytest.raises(SchemaVersionError, match="upgrade this program"):
            one.store.renew("one")
        with pytest.raises(SchemaVersionError, match="upgrade this program"):
            one.commit(append_of(RUN, 1))
        with pytest.raises(SchemaVersionError, match="upgrade this program"):
            open_nats()

    # It has applied what came before: a start, the end of a session, and the begin of another.
    assert reader._rooms.log.applied == seen + 3
    assert reader._rooms.log.machine.level == 1


@pytest.mark.nats
def test_a_log_does_not_rise_above_a_process_that_came_in_time(open_nats: Callable[[], NatsStore]) -> None:
    one, newer = Party(open_nats(), "one"), open_nats()
    write(newer, wire.OpenOp(row=SessionRow("new", "w", "", 0, 0, []), level=wire.LEVEL + 1))

    write(newer, wire.LevelOp(session="new", level=wire.LEVEL + 1))
    one.start()

    assert one.row().version == 1
    facts = one.store.check().facts
    assert (facts["level"], facts["level of this Treadle"]) == ("1", str(wire.LEVEL))


@pytest.mark.nats
def test_a_position_that_this_version_cannot_read_is_not_taken_for_another(open_nats: Callable[[], NatsStore]) -> None:
    store = open_nats()
    subject = store.location.position(RUN, "feed")
    store._loop.call(store._rooms.values.put([(subject, b"{}")]))

    with pytest.raises(SchemaVersionError, match="the position of feed was written by a newer Treadle"):
        store.positions().position("feed", RUN)


def test_histories_have_all_that_happens_to_appends() -> None:
    history = list(Scribe(SEED).write(500))

    answers = {getattr(answer, "status", "") for _, answer in history}
    assert answers >= {"committed", "conflict", "exists", "fenced", "full", "held", "refused"}
    assert {getattr(answer, "on_full", "reject") for _, answer in history} == {"reject", "wait", "drop_oldest"}
