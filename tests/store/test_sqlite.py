"""What is peculiar to the SQLite store: its views, its economy, its rows. The contract is elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import apsw
import pytest
from tests.store.sqlite_kit import connected, query

from treadle.core.events import (
    AttemptFailed,
    AttemptLost,
    Event,
    Failure,
    RunSettled,
    RunStarted,
    StepDispatched,
    StepFailed,
    StepSucceeded,
)
from treadle.errors import (
    LeaseLostError,
    StoreError,
)
from treadle.store.queues import QueueChange, QueueLimits
from treadle.store.sqlite import SqliteStore
from treadle.testing.contract_kit import (
    NOW,
    OTHER,
    RUN,
    Party,
    Slots,
    append_of,
    key_of,
    report_of,
    signal_of,
    snapshot,
    start_of,
    step_of,
    task_of,
)

# -- views -----------------------------------------------------------------------------------------------


def test_the_views_show_runs_steps_attempts_and_events(store: SqliteStore, path: Path) -> None:
    one, two = Party(store, "one"), Party(store, "two", actions=["act"])
    started: list[Any] = [RunStarted(), *(StepDispatched(at=f"step-{n}") for n in (1, 2, 3, 4))]
    (task, *_) = one.start(
        events=started, tasks=[task_of(RUN, n) for n in (1, 2, 3, 4)], slots=1, head=head_with_labels()
    ).leased
    two.claim(1)
    failure = Failure(code="boom", message="it broke")
    one.append(
        time=NOW + 5,
        events=[
            StepSucceeded(at="step-1", attempt=1, result="=5", session="one", token=task.lease, started_at=NOW + 1),
            AttemptFailed(at="step-3", attempt=1, failure=failure, session="one", token=7),
            AttemptLost(at="step-4", attempt=1, session="gone"),
            StepDispatched(at="step-3", attempt=2),
            StepFailed(at="step-9", attempt=0, failure=failure),
        ],
        ended=[1, 3],
        tasks=[task_of(RUN, 3, attempt=2, not_before=NOW + 60)],
        steps=[step_of(1, result="=5", worker="w")],
    )
    store.post([signal_of(RUN, "a")])

    (run,) = query(path, "SELECT * FROM v_runs")
    assert run["id"] == f"run-{RUN}"
    assert (run["status"], run["version"], run["owner"]) == ("running", 2, "one")
    assert (run["leased"], run["waiting"], run["inputs"]) == (1, 2, 1)
    assert run["labels"] == '{"team":"x"}'

    steps = query(path, "SELECT address, status, attempt, result, worker FROM v_steps ORDER BY number")
    assert [tuple(row.values()) for row in steps] == [
        ("step-1", "succeeded", 1, "=5", "w"),
        ("step-2", "running", 1, "", "worker-two"),
        ("step-3", "retrying", 2, "", ""),
        ("step-4", "dispatched", 1, "", ""),
    ]

    attempts = query(
        path, "SELECT address, attempt, outcome, code, message, session, token, started_at, finished_at FROM v_attempts"
    )
    (running,) = [row for row in attempts if row["outcome"] == "running"]
    assert (running["address"], running["session"], running["finished_at"]) == ("step-2", "two", 0.0)
    assert running["token"] > 0
    assert [tuple(row.values()) for row in attempts if row["outcome"] != "running"] == [
        ("step-1", 1, "succeeded", "", "", "one", task.lease, NOW + 1, NOW + 5),
        ("step-3", 1, "failed", "boom", "it broke", "one", 7, 0.0, NOW + 5),
        ("step-4", 1, "lost", "", "", "gone", 0, 0.0, NOW + 5),
    ]

    store.bury("one")
    events = query(path, "SELECT version, position, kind, at, session, kernel, time FROM v_events WHERE key = ?", RUN)
    assert [(row["version"], row["position"], row["kind"]) for row in events[:2]] == [
        (1, 0, "run_started"),
        (1, 1, "step_dispatched"),
    ]
    assert events[5] == {
        "version": 2,
        "position": 0,
        "kind": "step_succeeded",
        "at": "step-1",
        "session": "one",
        "kernel": "0.1.0",
        "time": NOW + 5,
    }
    assert len(events) == 10
    assert query(path, "SELECT owner FROM v_runs") == [{"owner": ""}]


def head_with_labels() -> Any:
    head = start_of(RUN).head
    assert head is not None
    return type(head)(
        key=head.key, id=head.id, workflow=head.workflow, plan=head.plan, labels={"team": "x"}, created_at=NOW
    )


# -- economy ---------------------------------------------------------------------------------------------


class _Trace:
    """Counts the statements that a store executes."""

    def __init__(self, store: SqliteStore) -> None:
        self.statements: list[str] = []
        connected(store).trace_v2(apsw.SQLITE_TRACE_STMT, self._note)

    def _note(self, event: dict[str, Any]) -> None:
        if not event.get("trigger"):
            self.statements.append(event["sql"])

    def names(self) -> list[str]:
        found, self.statements = self.statements, []
        return [" ".join(sql.split()[:3]) for sql in found]


def test_a_commit_reads_nothing_back_and_its_statements_do_not_grow_with_the_group(store: SqliteStore) -> None:
    one = Party(store, "one")
    keys = [key_of(number) for number in range(1, 101)]
    one.commit(*(start_of(key, tasks=[task_of(key, 1)]) for key in keys), slots=1000)
    trace = _Trace(store)

    def hop(count: int, number: int) -> list[str]:
        events: list[Event] = [StepSucceeded(at=f"step-{number}", attempt=1), StepDispatched(at=f"step-{number + 1}")]
        answers = one.commit(
            *(
                append_of(
                    key,
                    number,
                    events=events,
                    ended=[number],
                    tasks=[task_of(key, number + 1)],
                    steps=[step_of(number)],
                )
                for key in keys[:count]
            ),
            slots=1000,
        )
        assert all(answer.status == "committed" and len(answer.leased) == 1 for answer in answers)
        return trace.names()

    single, group = hop(1, 1), hop(1, 2)
    assert single == group
    # BEGIN, session, run, journal, end, step, anything waiting, task, COMMIT.
    assert len([name for name in single if not name.startswith("--")]) == 9
    fresh = [name for name in hop(1, 3) if name.startswith("SELECT")]
    assert len(fresh) == 2


def test_an_idle_claim_and_wakes_take_no_lock(store: SqliteStore, path: Path) -> None:
    one = Party(store, "one", waits=3)
    one.start()
    other = apsw.Connection(str(path))
    other.execute("BEGIN IMMEDIATE")
    connected(store).set_busy_handler(None)

    assert store.claim("one", Slots(1), NOW) == ([], None)
    assert store.wakes("one", tasks=True, keys=[RUN]) == []
    assert store.sweep("one", NOW).stranded == []

    other.execute("ROLLBACK")
    other.close()


def test_a_claim_takes_no_lock_while_all_that_wait_do_so_for_queues_that_are_full(
    store: SqliteStore, path: Path
) -> None:
    one = Party(store, "one")
    limits: dict[str, dict[str, Any]] = {
        "full": {"concurrency": 1}, "rated": {"rate": 0.5}, "keyed": {"key_concurrency": 1},
    }  # fmt: skip
    changes = [QueueChange(name=name, defined=QueueLimits(**found)) for name, found in limits.items()]
    store.set_queues([*changes, QueueChange(name="paused", paused=True)], NOW)
    tasks = [task_of(RUN, n, queue=name, key="k") for n, name in enumerate([*limits, *limits, "paused"])]
    one.start(tasks=tasks)
    assert len(one.claim(9)) == 3
    other = apsw.Connection(str(path))
    other.execute("BEGIN IMMEDIATE")
    connected(store).set_busy_handler(None)

    assert store.claim("one", Slots(9), NOW + 1) == ([], NOW + 2)

    other.execute("ROLLBACK")
    other.close()
    assert [task.queue for task in one.claim(9, now=NOW + 2)] == ["rated"]


def test_tasks_of_a_held_run_are_met_by_one_claim_only(store: SqliteStore, path: Path) -> None:
    one = Party(store, "one")
    one.start(tasks=[task_of(RUN, number, priority=number % 3) for number in range(90)])
    order = one.waiting()
    one.append(hold=1)
    assert one.claim(5) == []

    # Nothing is left to look at: the next claim does not even take the lock.
    other = apsw.Connection(str(path))
    other.execute("BEGIN IMMEDIATE")
    assert store.claim("one", Slots(5), NOW) == ([], None)
    other.execute("ROLLBACK")
    other.close()
    assert one.waiting() == order
    assert query(path, "SELECT waiting, leased FROM v_runs") == [{"waiting": 90, "leased": 0}]

    one.append(hold=0)
    assert [(task.run, task.number) for task in one.claim(1000)] == order


def test_parked_tasks_can_be_ended_and_revoked(store: SqliteStore) -> None:
    one = Party(store, "one")
    one.start(tasks=[task_of(RUN, number) for number in range(5)])
    one.append(hold=1)
    assert one.claim(5) == []

    one.append(ended=[1, 2])
    assert one.waiting() == [(RUN, 0), (RUN, 3), (RUN, 4)]
    one.append(revoke=True)

    assert one.waiting() == []
    (value,) = store.inbox(RUN)
    assert value.body == b'{"input":"revoked","numbers":[0,3,4]}'


def test_wake_addresses_are_those_that_the_last_transaction_saw(open_store: Callable[..., SqliteStore]) -> None:
    first, second = open_store(), open_store()
    Party(first, "one")
    assert first.wakes("one", tasks=True, keys=[]) == []

    two = Party(second, "two", waits=1)
    first.renew("one")
    assert first.wakes("one", tasks=True, keys=[]) == ["wake-two"]
    assert first.wakes("one", tasks=False, keys=[]) == []
    two.start()
    assert first.wakes("one", tasks=False, keys=[RUN]) == ["wake-two"]
    second.renew("two", waits=2)
    first.renew("one")
    assert first.wakes("one", tasks=False, keys=[]) == ["wake-two"]
    second.bury("two")
    assert first.wakes("one", tasks=True, keys=[RUN]) == []


def test_plans_are_stored_once_and_go_with_their_last_run(store: SqliteStore, path: Path) -> None:
    one = Party(store, "one")
    one.start(RUN, status="succeeded")
    one.commit(start_of(OTHER, status="succeeded"), start_of(key_of(3), status="succeeded"))
    plans = "SELECT uses FROM plans"

    assert query(path, plans) == [{"uses": 3}]
    assert [store.delete(key) for key in (RUN, OTHER)] == ["deleted", "deleted"]
    assert query(path, plans) == [{"uses": 1}]
    assert store.check().problems == []
    assert store.delete(key_of(3)) == "deleted"
    assert query(path, plans) == []


def test_the_number_of_a_deleted_run_is_never_used_again(
    store: SqliteStore, open_store: Callable[..., SqliteStore]
) -> None:
    one, two = Party(store, "one"), Party(open_store(), "two")
    one.start(RUN)
    one.settle(RUN)
    # This handle still knows the number of the run that the other one deletes.
    assert two.store.delete(RUN) == "deleted"

    one.start(OTHER)

    assert one.commit(append_of(RUN, 2), append_of(RUN, 1))[0].status == "refused"
    one.store.progress("one", [(RUN, 1, 1, "text")])
    assert one.row(OTHER).version == 1
    assert one.store.post([signal_of(RUN, "late")]) == [False]


@pytest.mark.parametrize(
    ("damage", "found"),
    [
        ("DELETE FROM runs", "belong to no run"),
        ("DELETE FROM heads", "have no head"),
        ("DELETE FROM plans", "have no plan"),
        ("DELETE FROM journal WHERE version = 1", "gaps in their journal"),
        ("UPDATE sessions SET ended = 1", "leased to no living session"),
        ("UPDATE plans SET uses = 7", "miscount"),
    ],
)
def test_check_finds_rows_that_belong_to_nothing(store: SqliteStore, damage: str, found: str) -> None:
    one = Party(store, "one")
    one.start(tasks=[task_of(RUN, 1)], slots=1)
    one.append()
    assert store.check().problems == []

    connected(store).execute(damage)

    assert any(found in problem for problem in store.check().problems)


def test_a_reader_is_another_connection_and_cannot_write(store: SqliteStore) -> None:
    one = Party(store, "one")
    reader = store.reader()
    one.start()

    assert reader.run(RUN) == store.run(RUN)
    assert snapshot(reader.load(RUN)) == snapshot(store.load(RUN))
    with pytest.raises(apsw.ReadOnlyError):
        connected(reader).execute("DELETE FROM runs")
    reader.close()
    with pytest.raises(StoreError, match="is not open"):
        reader.run(RUN)


def test_a_buried_session_writes_nothing(store: SqliteStore) -> None:
    one = Party(store, "one")
    one.start(tasks=[task_of(RUN, 1)], slots=1)
    store.bury("one")
    before = snapshot(store.load(RUN))
    task = task_of(RUN, 1, lease=5)

    assert one.is_refused(store.commit, [append_of(RUN, 1)], None)
    assert one.is_refused(store.claim, Slots(1), NOW)
    assert one.is_refused(store.report, [report_of(task)])
    assert one.is_refused(lambda session: store.elect("sweeper", session))
    assert one.is_refused(store.acquire, RUN)
    with pytest.raises(LeaseLostError, match="session one"):
        store.renew("one")
    assert snapshot(store.load(RUN)) == before


def test_settled_runs_remain_readable(store: SqliteStore) -> None:
    one = Party(store, "one")
    one.start()
    one.append(events=[RunSettled(outcome="succeeded")], status="succeeded", release=True)

    row = one.row()

    assert (row.status, row.owner) == ("succeeded", "")
    assert store.delete(RUN) == "deleted"
