"""What is peculiar to the PostgreSQL store: its URL, errors, connections, counts of round trips, and views."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from tests.postgres_kit import empty_schema, query, shared_server, url_of

from treadle.errors import (
    LeaseLostError,
    SchemaVersionError,
    StoreCorruptError,
    StoreError,
    StoreNotFoundError,
    StoreReadOnlyError,
    StoreUnavailableError,
    StoreUrlError,
)
from treadle.store.base import Store
from treadle.store.postgres import PostgresStore, parse_url
from treadle.testing.contract_kit import (
    NOW,
    OTHER,
    RUN,
    Party,
    Slots,
    append_of,
    key_of,
    start_of,
    step_of,
    task_of,
)

pytestmark = [pytest.mark.postgres, pytest.mark.usefixtures("postgres_server")]

Open = Callable[..., PostgresStore]


@pytest.fixture
def schema() -> Iterator[str]:
    with empty_schema() as name:
        yield name


@pytest.fixture
def open_store(schema: str) -> Iterator[Open]:
    stores: list[PostgresStore] = []

    def make(**options: str) -> PostgresStore:
        store = PostgresStore.from_url(url_of(shared_server(), schema, **options))
        stores.append(store)
        store.open()
        return store

    yield make
    for store in stores:
        store.close()


def backend_of(store: Store) -> int:
    assert isinstance(store, PostgresStore)
    ((pid,),) = store._link.all("SELECT pg_backend_pid()")
    assert isinstance(pid, int)
    return pid


def terminate(store: Store) -> None:
    """Let the server end the store's connection."""
    query(shared_server(), "SELECT pg_terminate_backend(%s, 5000)", backend_of(store))


# -- the URL and what is wrong with it ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("postgresql://h/d?schema=", "cannot be the name of a schema"),
        ("postgresql://h/d?schema=pg_own", "do not begin with pg_"),
        ("postgresql://h/d?pooler=session", "pooler=session is not known"),
        ("postgresql://h/d?listen=no", "neither off nor"),
        ("postgresql://h/d#x", "write # in a name or password as %23"),
        ("mysql://h/d", "is not a PostgreSQL URL"),
    ],
)
def test_a_wrong_url_says_what_is_wrong(url: str, message: str) -> None:
    with pytest.raises(StoreUrlError, match=message):
        parse_url(url)


def test_an_option_that_the_driver_does_not_know_is_named() -> None:
    with pytest.raises(StoreUrlError, match="colour"):
        PostgresStore.from_url("postgresql://h/d?colour=red").open()


def test_no_message_shows_a_password() -> None:
    location = parse_url("postgresql://ada:s3cret@h:1/d?schema=x&sslpassword=s3cret&password=s3cret")

    assert "s3cret" in location.conninfo
    assert "s3cret" not in location.shown
    with pytest.raises(StoreUrlError) as caught:
        parse_url("postgresql://ada:s3cret@h/d?schema=pg_x")
    assert "s3cret" not in str(caught.value)


def test_options_of_the_driver_stay_in_the_url() -> None:
    location = parse_url(
        "postgres://a@h1,h2:2/d?target_session_attrs=read-write&schema=s&pooler=transaction&listen=off"
    )

    assert location.conninfo == "postgresql://a@h1,h2:2/d?target_session_attrs=read-write"
    assert (location.schema, location.pooled, location.listen) == ("s", True, "off")


def test_a_server_that_is_not_there_is_unavailable_and_not_asked_again_at_once() -> None:
    store = PostgresStore.from_url("postgresql://ada@127.0.0.1:1/d?connect_timeout=2")

    with pytest.raises(StoreUnavailableError, match="check that the server runs"):
        store.open()
    with pytest.raises(StoreUnavailableError, match="check that the server runs"):
        store.open()


def test_a_database_or_role_that_is_not_there_is_named() -> None:
    folder = str(shared_server().get_postmaster_info().socket_dir)

    with pytest.raises(StoreNotFoundError, match="no such database"):
        PostgresStore.from_url(f"postgresql://postgres@/nowhere?host={folder}").open()
    with pytest.raises(StoreError, match="create the role"):
        PostgresStore.from_url(f"postgresql://nobody_here@/postgres?host={folder}").open()


def test_a_store_that_was_not_made_is_not_found(schema: str) -> None:
    store = PostgresStore.from_url(url_of(shared_server(), "never_made"))

    with pytest.raises(StoreNotFoundError, match="holds no store in schema never_made"):
        store.open(create=False)
    store.close()
    assert query(shared_server(), "SELECT 1 FROM pg_namespace WHERE nspname = 'never_made'") == []


def test_a_schema_of_another_program_is_left_alone() -> None:
    query(shared_server(), "CREATE SCHEMA foreign_tables CREATE TABLE things (n integer)")
    store = PostgresStore.from_url(url_of(shared_server(), "foreign_tables"))

    with pytest.raises(StoreCorruptError, match="choose another one with"):
        store.open()

    store.close()
    query(shared_server(), "DROP SCHEMA foreign_tables CASCADE")


def test_a_newer_schema_is_refused_and_says_so(open_store: Open, schema: str) -> None:
    open_store().close()
    [(version, serves)] = query(shared_server(), f"SELECT version, serves FROM {schema}.meta")
    query(shared_server(), f"UPDATE {schema}.meta SET version = version + 1, serves = version + 1")
    try:
        with pytest.raises(SchemaVersionError, match="upgrade this installation"):
            open_store()
    finally:
        query(shared_server(), f"UPDATE {schema}.meta SET version = {version}, serves = {serves}")


def test_a_server_that_takes_no_writes_is_read_only(open_store: Open, schema: str) -> None:
    open_store().close()
    store = open_store(options="-c default_transaction_read_only=on")

    assert store.runs is not None
    with pytest.raises(StoreReadOnlyError, match="name the primary"):
        Party(store, "one")
    with pytest.raises(StoreReadOnlyError, match="name the primary"):
        PostgresStore.from_url(
            url_of(shared_server(), "not_there", options="-c default_transaction_read_only=on")
        ).open()


def test_what_a_role_may_not_do_is_told(open_store: Open, schema: str) -> None:
    open_store().close()
    query(shared_server(), "CREATE ROLE weak LOGIN")
    folder = str(shared_server().get_postmaster_info().socket_dir)
    try:
        with pytest.raises(StoreReadOnlyError, match="grant the role USAGE"):
            PostgresStore.from_url(f"postgresql://weak@/postgres?host={folder}&schema={schema}").open()
        with pytest.raises(StoreReadOnlyError, match="CREATE SCHEMA other AUTHORIZATION weak"):
            PostgresStore.from_url(f"postgresql://weak@/postgres?host={folder}&schema=other").open()
    finally:
        query(shared_server(), "DROP ROLE weak")


def test_durability_is_told_as_the_server_gives_it(open_store: Open) -> None:
    assert "synchronous_commit=off" in open_store().durability
    assert "on the server's disk" in open_store(options="-c synchronous_commit=on").durability
    assert open_store().check().facts["synchronous commit"] == "off"


# -- connections ---------------------------------------------------------------------------------------------


def test_a_read_after_a_cut_connects_again_and_a_write_is_in_doubt(open_store: Open) -> None:
    one = Party(open_store(), "one")
    one.start()

    terminate(one.store)
    assert one.row().version == 1
    terminate(one.store)
    with pytest.raises(StoreUnavailableError):
        one.commit(append_of(RUN, 1))

    assert one.store.committed(RUN, 2) is None
    assert one.append().status == "committed"


def test_what_an_earlier_connection_left_on_its_way_comes_to_nothing(open_store: Open) -> None:
    one = Party(open_store(), "one")
    one.start()
    store = one.store
    assert isinstance(store, PostgresStore)
    # The connection of a network that holds its last words back: they reach the server after the next one's.
    held_back, stale = store._link._con, store._own["one"].link
    store._link._con = None

    assert one.row().version == 1
    assert store._own["one"].link == stale + 1

    assert held_back is not None
    found = held_back.execute(
        store._link.sql("SELECT 1 FROM @sessions WHERE id = 'one' AND link = %s"), (stale,)
    ).fetchall()
    held_back.close()
    assert found == []
    assert one.append().status == "committed"


def test_handles_of_one_session_do_not_fence_each_other_off(open_store: Open) -> None:
    first, second = open_store(), open_store()
    one = Party(first, "one")
    one.start()
    assert second.renew("one").interrupts == []

    terminate(second)
    assert second.run(RUN) is not None

    assert one.append().status == "committed"
    assert second.renew("one").interrupts == []
    second.bury("one")
    with pytest.raises(LeaseLostError, match="declared dead"):
        one.append()


def test_many_may_make_the_store_at_the_same_time() -> None:
    schema, problems = "made_by_many", []

    def make() -> None:
        store = PostgresStore.from_url(url_of(shared_server(), schema))
        try:
            store.open()
            problems.extend(store.check().problems)
        except StoreError as error:
            problems.append(str(error))
        finally:
            store.close()

    threads = [threading.Thread(target=make) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert problems == []
    query(shared_server(), f"DROP SCHEMA {schema} CASCADE")


def test_sessions_on_many_connections_write_at_the_same_time_without_losing_anything(open_store: Open) -> None:
    failures: list[BaseException] = []
    tokens: list[int] = []

    def work(number: int) -> None:
        try:
            party = Party(stores[number], f"s{number}")
            for turn in range(15):
                key = key_of(100 * number + turn)
                party.start(key, tasks=[task_of(key, n) for n in range(4)])
                tokens.extend(task.lease for task in party.claim(5))
                party.append(key, ended=[0, 1], steps=[step_of(0), step_of(1)])
        except BaseException as error:  # noqa: BLE001 - told to the test's own thread
            failures.append(error)

    stores = {number: open_store() for number in range(1, 4)}
    threads = [threading.Thread(target=work, args=(number,)) for number in stores]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert failures == []
    assert len(tokens) == len(set(tokens)) > 0
    assert stores[1].check().problems == []
    for number in stores:
        stores[1].bury(f"s{number}")
    assert stores[1].check().problems == []


def test_what_goes_with_other_statements_is_sent_whole_whatever_its_size(open_store: Open) -> None:
    one = Party(open_store(), "one")
    one.start()

    # More than any buffer between here and the server holds; the server says nothing before it has all of it.
    one.append(hold=1, payloads=[(f"d{number}", bytes(250_000)) for number in range(40)])

    assert len(one.store.payloads(RUN, ["d39"])["d39"]) == 250_000


def test_a_store_does_not_cross_a_fork(open_store: Open, schema: str) -> None:
    code = (
        "import os, sys\n"
        "from treadle.errors import StoreError\n"
        "from treadle.store.postgres import PostgresStore\n"
        "store = PostgresStore.from_url(sys.argv[1]); store.open()\n"
        "child = os.fork()\n"
        "if child == 0:\n"
        "    try: store.sessions()\n"
        "    except StoreError as error: store.close(); os._exit(7 if 'after the fork' in str(error) else 1)\n"
        "    os._exit(1)\n"
        "_, status = os.waitpid(child, 0)\n"
        "print(os.waitstatus_to_exitcode(status), store.sessions())\n"
    )
    found = subprocess.run(
        [sys.executable, "-c", code, url_of(shared_server(), schema)], capture_output=True, text=True, check=False
    )

    assert found.stdout == "7 []\n", found.stderr


# -- round trips ---------------------------------------------------------------------------------------------


def trips(store: Any, call: Callable[[], object]) -> int:
    before = store._link.trips
    call()
    return int(store._link.trips - before)


def test_a_group_of_any_size_is_one_round_trip(open_store: Open) -> None:
    one = Party(open_store(), "one")
    keys = [key_of(number) for number in range(1, 51)]
    starts = [start_of(key, tasks=[task_of(key, 1)]) for key in keys]
    # The first of all asks for ranges of numbers.
    one.commit(start_of(key_of(99), tasks=[task_of(key_of(99), 1)]), slots=99)

    assert trips(one.store, lambda: one.commit(*starts, slots=99)) == 1
    hops = [append_of(key, 1, ended=[1], steps=[step_of(1)], tasks=[task_of(key, 2)]) for key in keys]
    assert trips(one.store, lambda: one.commit(*hops, slots=99)) == 1
    assert trips(one.store, lambda: one.commit(append_of(RUN, 2, revoke=True, interrupts=[2]))) == 1
    assert trips(one.store, lambda: one.store.renew("one")) == 1
    assert trips(one.store, lambda: one.claim(5)) == 1
    assert trips(one.store, lambda: one.load()) == 1


def test_a_claim_is_two_round_trips_and_a_third_where_nothing_tells_that_tasks_wait(open_store: Open) -> None:
    one = Party(open_store(), "one")
    one.start(tasks=[task_of(RUN, number) for number in range(101)])
    one.claim(1)

    assert trips(one.store, lambda: one.claim(50)) == 2
    assert trips(one.store, lambda: one.claim(100)) == 2
    assert trips(one.store, lambda: one.claim(5)) == 1
    one.commit(append_of(RUN, 1, tasks=[task_of(RUN, number) for number in range(200, 210)]))
    assert trips(one.store, lambda: one.claim(50)) == 3


def test_a_claim_asks_for_no_more_tasks_than_there_is_room_for(open_store: Open) -> None:
    class Threads(Slots):
        """Many slots, of which two are for the action that waits."""

        def free(self) -> int:
            return super().free() + 1000

        def take(self, action: str, queue: str, most: int = 1) -> int:
            asked.append(action)
            return super().take(action, queue, most)

    asked: list[str] = []
    one = Party(open_store(), "one")
    one.start(tasks=[task_of(RUN, number) for number in range(100)])

    tasks, _ = one.store.claim("one", Threads(2), NOW)

    assert [task.number for task in tasks] == [0, 1]
    # What is sent is locked and written: it would be no claim of others meanwhile.
    assert len(asked) == 2


def test_tasks_that_wait_cost_a_second_round_trip_only_when_they_come_or_go(open_store: Open) -> None:
    one, two = Party(open_store(), "one"), Party(open_store(), "two")
    one.start(RUN, tasks=[task_of(RUN, 1)], slots=1)
    two.start(OTHER, tasks=[task_of(OTHER, 1)])

    def hop(version: int) -> Callable[[], object]:
        append = append_of(RUN, version, tasks=[task_of(RUN, version + 1)])
        return lambda: one.commit(append, slots=1)

    assert [trips(one.store, hop(version)) for version in (1, 2, 3)] == [2, 1, 1]


# -- what people see -----------------------------------------------------------------------------------------


def test_the_views_show_runs_steps_attempts_and_events(open_store: Open, schema: str) -> None:
    one = Party(open_store(), "one")
    one.start(tasks=[task_of(RUN, 1), task_of(RUN, 2)], steps=[step_of(3, message="nul \0 \ud800")], slots=1)

    def ask(sql: str) -> list[tuple[Any, ...]]:
        return query(shared_server(), sql.replace("@", f"{schema}."))

    assert ask("SELECT key, status, owner, leased, waiting, labels FROM @v_runs") == [
        (RUN, "running", "one", 1, 1, "{}")
    ]
    assert ask("SELECT address, status FROM @v_steps ORDER BY number") == [
        ("step-1", "running"),
        ("step-2", "dispatched"),
        ("step-3", "succeeded"),
    ]
    assert ask("SELECT message FROM @v_steps WHERE number = 3") == [("nul \ufffd ?",)]
    assert ask("SELECT address, outcome, session FROM @v_attempts") == [("step-1", "running", "one")]
    assert ask("SELECT version, position, kind, session FROM @v_events") == [(1, 0, "run_started", "one")]
    assert ask("SELECT * FROM @v_undos") == []


def test_steps_of_very_long_addresses_are_found(open_store: Open) -> None:
    one = Party(open_store(), "one")
    address = "/".join(["x" * 500] * 20)
    one.start(steps=[step_of(1, address=address)])

    assert one.store.step(RUN, address).step == step_of(1, address=address)
    assert one.store.step(RUN, address[:-1]).step is None


def test_a_deleted_runs_plan_goes_with_the_last_run_of_it(open_store: Open, schema: str) -> None:
    one = Party(open_store(), "one")
    for key in (RUN, OTHER):
        one.start(key)
        one.settle(key)

    one.store.delete(RUN)
    assert query(shared_server(), f"SELECT count(*) FROM {schema}.plans") == [(1,)]
    one.store.delete(OTHER)
    assert query(shared_server(), f"SELECT count(*) FROM {schema}.plans") == [(0,)]
    # The store is told of the plan again, although it had it.
    one.start(key_of(3), time=NOW)
