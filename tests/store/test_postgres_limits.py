"""Limits of queues in PostgreSQL where they are hard to keep: many processes at once, and definitions that change."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from functools import partial
from typing import TypeVar
from urllib.parse import quote

import psycopg
import pytest
from tests.postgres_kit import empty_schema, query, shared_server, url_of

from treadle.errors import StoreUnavailableError
from treadle.store.base import Postponement, Store
from treadle.store.postgres import PostgresStore
from treadle.store.queues import QueueChange, QueueLimits
from treadle.testing.contract_keys import limited, row_of, tasks_of
from treadle.testing.contract_kit import NOW, OTHER, RUN, Party, append_of, key_of, numbers, report_of, task_of

T = TypeVar("T")
pytestmark = [pytest.mark.postgres, pytest.mark.usefixtures("postgres_server")]

Open = Callable[[], PostgresStore]
PROCESSES = 4
COUNT = 40


@pytest.fixture
def open_store() -> Iterator[Open]:
    stores: list[PostgresStore] = []
    with empty_schema() as schema:

        def make() -> PostgresStore:
            store = PostgresStore.from_url(url_of(shared_server(), schema))
            stores.append(store)
            store.open()
            return store

        yield make
        for store in stores:
            store.close()


@pytest.fixture
def database() -> Iterator[str]:
    """A database of the test's own: its statistics are of nobody else, and nobody's snapshot keeps its dead rows."""
    name = f"claims_{os.getpid()}"
    query(shared_server(), f"CREATE DATABASE {name}")
    folder = quote(str(shared_server().get_postmaster_info().socket_dir), safe="")
    yield f"postgresql://postgres@/{name}?host={folder}"
    query(shared_server(), f"DROP DATABASE {name} WITH (FORCE)")


def trips(store: Store, call: Callable[[], object]) -> int:
    assert isinstance(store, PostgresStore)
    before = store._link.trips
    call()
    return store._link.trips - before


def test_processes_that_claim_hand_over_and_end_at_the_same_time_never_exceed_a_limit(database: str) -> None:
    store = PostgresStore.from_url(database)
    store.open()
    limits = QueueLimits(concurrency=3, key_concurrency=2)
    store.set_queues([QueueChange(name="default", defined=limits)], NOW)
    with psycopg.connect(database, autocommit=True) as con:
        con.execute("CREATE TABLE held (run text, number integer, key text); CREATE TABLE begun (process integer)")
        command = [sys.executable, "-m", "tests.store.claiming_target", database, database]

        running = [
            subprocess.Popen(
                [*command, str(number), str(COUNT), str(PROCESSES)],
                stdout=subprocess.PIPE,
                text=True,
            )
            for number in range(1, PROCESSES + 1)
        ]
        found = [[int(word) for word in process.communicate(timeout=120)[0].split()] for process in running]

        ((deadlocks,),) = con.execute(
            "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()"
        ).fetchall()
    assert [process.returncode for process in running] == [0] * PROCESSES
    most, most_of_key, had, made = zip(*found, strict=True)
    assert 1 < max(most) <= 3
    assert max(most_of_key) <= 2
    assert sum(had) == sum(made) > PROCESSES * COUNT // 2
    assert deadlocks == 0
    assert store.check().problems == []
    store.close()


def test_connections_at_once_share_one_bucket(open_store: Open) -> None:
    party = Party(open_store(), "maker")
    limited(party, rate=1.0, burst=25)
    party.start(tasks=[task_of(RUN, number) for number in range(60)])
    others = [Party(open_store(), f"s{number}") for number in range(4)]
    claimed: list[int] = []

    def claim(other: Party) -> None:
        while found := other.claim(2):
            claimed.extend(numbers(found))

    threads = [threading.Thread(target=claim, args=(other,)) for other in others]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert sorted(claimed) == list(range(25))
    assert row_of(party).running == 25


def patiently(call: Callable[[], T]) -> T:
    """Call a store again that found the definitions changed at each of its tries: it has done nothing."""
    while True:
        try:
            return call()
        except StoreUnavailableError as error:
            if "changed again and again" not in str(error):
                raise


def test_definitions_that_change_while_others_work_hold_for_what_begins_then(open_store: Open) -> None:
    worker, operator = Party(open_store(), "worker"), Party(open_store(), "operator")
    worker.start(tasks=[task_of(RUN, number) for number in range(30)])
    failures: list[BaseException] = []

    def work() -> None:
        try:
            done, version = 0, 1
            while done < 30:
                for task in patiently(lambda: worker.claim(3)):
                    ending = append_of(RUN, version, ended=[task.number])
                    patiently(partial(worker.commit, ending, slots=0))
                    version, done = version + 1, done + 1
        except BaseException as error:  # noqa: BLE001 - told to the test's own thread
            failures.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        for turn in range(40):
            limits = QueueLimits(concurrency=1 + turn % 2, key_concurrency=turn % 3, fair=turn % 5 == 0)
            operator.store.set_queues([QueueChange(name="default", defined=limits)], NOW)
    finally:
        thread.join()

    assert failures == []
    assert operator.store.check().problems == []
    assert operator.waiting() == []


def test_queues_without_limits_pay_nothing_for_those_that_have_some(open_store: Open) -> None:
    one = Party(open_store(), "one")
    one.start(tasks=[task_of(RUN, number, queue="free") for number in range(9)], slots=1)
    limited(one, name="other", concurrency=1, key_concurrency=1)
    one.start(OTHER, tasks=[task_of(OTHER, number, queue="other", key="a") for number in range(9)])

    assert trips(one.store, lambda: one.claim(2)) == 3
    hop = append_of(RUN, 1, ended=[0], tasks=[task_of(RUN, 20, queue="free", priority=1)])
    assert trips(one.store, lambda: one.commit(hop, slots=1)) <= 2
    hop = append_of(RUN, 2, ended=[20], tasks=[task_of(RUN, 21, queue="free", priority=1)])
    assert trips(one.store, lambda: one.commit(hop, slots=1)) == 1


def test_what_concerns_a_queue_with_limits_is_two_round_trips(open_store: Open) -> None:
    one = Party(open_store(), "one")
    limited(one, concurrency=2, rate=1000.0, burst=1000)
    one.start(tasks=[task_of(RUN, 0)], slots=1)

    hop = append_of(RUN, 1, ended=[0], tasks=[task_of(RUN, number) for number in range(1, 9)])
    assert trips(one.store, lambda: one.commit(hop, slots=2)) == 2
    (first, second) = one.store.leased("one")
    assert trips(one.store, lambda: one.report(report_of(first))) == 2
    assert trips(one.store, lambda: one.report(report_of(second))) == 2


def test_ends_that_nobody_knew_of_beforehand_make_room_too(open_store: Open) -> None:
    store, other = open_store(), open_store()
    one = Party(store, "one")
    one.start(tasks=[task_of(RUN, number) for number in range(4)], slots=3)
    # Of tasks that were leased before their queue had limits, the store knows nothing.
    limited(Party(other, "two"), concurrency=1)
    first, second, third = one.store.leased("one")

    assert one.report(report_of(first)) == [True]
    later = Postponement(RUN, second.number, second.lease, NOW + 60, second.call)
    assert store.postpone("one", [later], NOW) == [True]
    one.append(ended=[third.number])

    assert one.store.made_room
    assert numbers(one.claim(9)) == [3]


def test_a_fair_queue_keeps_its_turns_in_the_store(open_store: Open) -> None:
    one = Party(open_store(), "one")
    limited(one, fair=True)
    one.start(tasks=tasks_of(RUN, "a" * 6), slots=4)

    two = Party(open_store(), "two")
    two.start(key_of(9), tasks=tasks_of(key_of(9), "b"))

    assert [task.key for task in two.claim(1)] == ["b"]


@pytest.mark.parametrize(
    "limits",
    [QueueLimits(key_concurrency=1), QueueLimits(concurrency=2), QueueLimits(key_rate=0.1), QueueLimits(rate=0.1)],
)
def test_no_price_grows_with_what_has_to_wait(database: str, limits: QueueLimits) -> None:
    def rows_read() -> int:
        store._link.all("SELECT pg_stat_force_next_flush()")
        found = con.execute("SELECT sum(idx_tup_read) FROM pg_stat_user_indexes WHERE relname = 'tasks'").fetchall()
        return int(found[0][0])

    def prices(count: int) -> list[int]:
        run = key_of(count)
        later = dict.fromkeys(range(0, count, 2), NOW + 60.0)
        tasks = [task_of(run, n, key=f"k{n % 4}", not_before=later.get(n, 0.0)) for n in range(count)]
        one.start(run, tasks=tasks)
        one.claim(9)
        one.start(key_of(count + 1), tasks=[task_of(key_of(count + 1), 0, queue="free")])
        # As the server does by itself sooner or later; which index it takes depends on what it knows of the table.
        con.execute(f"ANALYZE {store.location.schema}.tasks".encode())
        begun = rows_read()
        assert [task.queue for task in one.claim(9)] == ["free"]
        claimed = rows_read()
        leased = one.store.leased("one")[0]
        one.append(ended=[leased.number], tasks=[task_of(RUN, 99, key=leased.key)], slots=1)
        ended = rows_read()
        one.report(report_of(one.store.leased("one")[0]))
        return [claimed - begun, ended - claimed, rows_read() - ended]

    store = PostgresStore.from_url(database)
    store.open()
    one = Party(store, "one")
    store.set_queues([QueueChange(name="default", defined=limits)], NOW)
    one.start(tasks=[task_of(RUN, number, key=f"k{number}") for number in range(4)], slots=4)
    with psycopg.connect(database, autocommit=True) as con:
        few, many = prices(50), prices(1500)
    store.close()

    assert all(more <= less + 100 for less, more in zip(few, many, strict=True)), (few, many)
