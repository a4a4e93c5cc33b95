"""Starts in transactions of the caller: rolled back they leave no trace, committed they run."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

import apsw
import pytest

from treadle import (
    Boundary,
    Hooks,
    Queue,
    QueueFullError,
    Registry,
    RunExistsError,
    RunFailedError,
    RunNotActiveError,
    RunNotFoundError,
    UsageError,
    connect,
    step,
    workflow,
)
from treadle.store.queues import QueueChange, QueueLimits

registry = Registry()
# What the tests' own tables hold.
TABLE = "CREATE TABLE orders (id TEXT PRIMARY KEY)"
POSTGRES = pytest.param("postgres", marks=pytest.mark.postgres)
ASYNC = pytest.param("postgres-async", marks=pytest.mark.postgres)


@step(registry=registry, name="join:ship")
async def ship(order: str) -> str:
    return order[:8]


@workflow(registry=registry, name="join:fulfil", singleton="order")
def fulfil(order: str) -> str:
    return ship.bind(order)


@workflow(registry=registry, name="join:asks")
def asks(order: str) -> str:
    return ship.options(signals=["go"]).bind(order)


class Caller:
    """A connection of the caller, of any of the kinds, used in one way."""

    def __init__(self, url: str, con: Any) -> None:
        self.url = url
        self.con = con

    async def run(self, sql: str) -> None:
        found = self.con.execute(sql)
        if hasattr(found, "__await__"):
            await found

    async def orders(self) -> int:
        found = self.con.execute("SELECT count(*) FROM orders")
        if hasattr(found, "__await__"):
            return int((await (await found).fetchall())[0][0])
        return int(found.fetchall()[0][0])


@pytest.fixture(params=["apsw", POSTGRES, ASYNC])
async def caller(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    if not request.param.startswith("postgres"):
        path = f"{tmp_path}/orders.db"
        async with connect(f"sqlite:///{path}", registry=registry, worker=False):
            pass
        made: Any = apsw.Connection(path)
        made.set_busy_timeout(10_000)
        made.execute(TABLE)
        yield Caller(f"sqlite:///{path}", made)
        made.close()
        return
    import psycopg
    from tests.postgres_kit import empty_schema, shared_server, url_of

    request.getfixturevalue("postgres_server")
    with empty_schema() as schema:
        url = url_of(shared_server(), schema)
        async with connect(url, registry=registry, worker=False):
            pass
        dsn = shared_server().get_uri()
        if request.param == "postgres":
            con: Any = psycopg.connect(dsn, autocommit=True)
            con.execute(f"SET search_path TO {schema}".encode())
            con.execute("DROP TABLE IF EXISTS orders")
            con.execute(TABLE)
            yield Caller(url, con)
            con.execute("DROP TABLE orders")
            con.close()
        else:
            con = await psycopg.AsyncConnection.connect(dsn, autocommit=True)
            await con.execute(f"SET search_path TO {schema}".encode())
            await con.execute("DROP TABLE IF EXISTS orders")
            await con.execute(TABLE)
            yield Caller(url, con)
            await con.execute("DROP TABLE orders")
            await con.close()


async def test_a_committed_start_runs_and_its_transaction_holds_with_it(caller: Caller) -> None:
    async with connect(caller.url, registry=registry) as app:
        await caller.run("BEGIN")
        await caller.run("INSERT INTO orders VALUES ('a')")
        run = await app.start(fulfil, "a" * 5000, id="order-a", labels={"kind": "x"}, transaction=caller.con)
        await caller.run("COMMIT")

        assert await run.result(timeout=20) == "aaaaaaaa"
        assert await caller.orders() == 1
        assert [row.id for row in await app.runs(labels={"kind": "x"})] == ["order-a"]
        assert await app.check() is not None


async def test_a_start_that_is_rolled_back_leaves_no_trace(caller: Caller) -> None:
    async with connect(caller.url, registry=registry) as app:
        await caller.run("BEGIN")
        await caller.run("INSERT INTO orders VALUES ('a')")
        await app.start(fulfil, "a" * 5000, id="order-a", transaction=caller.con)
        await caller.run("ROLLBACK")

        assert await app.runs() == []
        assert await caller.orders() == 0
        assert (await app.check()).problems == []
        again = await app.start(fulfil, "a", id="order-a")
        assert await again.result() == "a"


async def test_a_call_is_enqueued_in_a_transaction(caller: Caller) -> None:
    async with connect(caller.url, registry=registry) as app:
        await caller.run("BEGIN")
        task = await app.enqueue(ship.bind("parcel"), transaction=caller.con)
        await caller.run("COMMIT")

        assert await task.result(timeout=20) == "parcel"


async def test_a_joined_run_that_waits_gives_up_at_its_deadline(caller: Caller) -> None:
    async with connect(caller.url, registry=registry) as app:
        await caller.run("BEGIN")
        run = await app.start(asks, "a", deadline="300ms", transaction=caller.con)
        await caller.run("COMMIT")

        with pytest.raises(RunFailedError, match="deadline"):
            await run.result(timeout=20)


async def test_an_id_that_is_taken_is_told_and_the_transaction_goes_on(caller: Caller) -> None:
    async with connect(caller.url, registry=registry) as app:
        first = await app.start(fulfil, "a", id="order-a")
        assert await first.result() == "a"
        await caller.run("BEGIN")
        await caller.run("INSERT INTO orders VALUES ('a')")

        assert (await app.start(fulfil, "a", id="order-a", transaction=caller.con)).id == "order-a"
        with pytest.raises(RunExistsError, match="exists"):
            await app.start(fulfil, "b", id="order-a", transaction=caller.con)
        with pytest.raises(UsageError, match="no part of a transaction"):
            await app.start(fulfil, "b", id="order-a", on_conflict="replace", transaction=caller.con)
        await caller.run("COMMIT")

        assert await caller.orders() == 1


async def test_a_singleton_that_is_held_is_told_or_waited_for(caller: Caller) -> None:
    async with connect(caller.url, registry=registry, worker=False) as desk:
        await desk.start(fulfil, "a", id="first")
        await caller.run("BEGIN")
        with pytest.raises(RunExistsError, match="holds the singleton"):
            await desk.start(fulfil, "a", id="second", on_conflict="reject", transaction=caller.con)
        await desk.start(fulfil, "a", id="second", on_conflict="queue", transaction=caller.con)
        await caller.run("COMMIT")
    async with connect(caller.url, registry=registry) as app:
        assert await app.run("second", str).result(timeout=20) == "a"
        assert await app.run("first", str).result(timeout=20) == "a"


async def test_what_cannot_be_joined_is_refused(caller: Caller, tmp_path: Path) -> None:
    async with connect(caller.url, registry=registry) as app:
        with pytest.raises(UsageError, match="transaction="):
            await app.start(fulfil, "a", transaction=object())
        other = sqlite3.connect(tmp_path / "other.db")
        with pytest.raises(UsageError, match=r"another copy of SQLite|no psycopg connection"):
            await app.start(fulfil, "a", transaction=other)
        other.close()
        elsewhere = apsw.Connection(str(tmp_path / "elsewhere.db"))
        with pytest.raises(UsageError, match=r"another file|no psycopg connection"):
            await app.start(fulfil, "a", transaction=elsewhere)
        elsewhere.close()
    async with connect("memory://", registry=registry) as app:
        with pytest.raises(UsageError, match="SQLite and PostgreSQL have"):
            await app.start(fulfil, "a", transaction=object())


async def test_hooks_are_told_of_a_run_that_was_started_in_a_transaction_when_it_is_committed(caller: Caller) -> None:
    told: list[str] = []

    class Telling(Hooks):
        def run_started(self, run: Boundary) -> None:
            told.append(f"started {run.run_id}")

        def run_ended(self, run: Boundary) -> None:
            told.append(f"ended {run.run_id}")

    async with connect(caller.url, registry=registry, hooks=[Telling()]) as app:
        await caller.run("BEGIN")
        await app.start(fulfil, "one", id="gone", transaction=caller.con)
        await caller.run("ROLLBACK")
        await caller.run("BEGIN")
        run = await app.start(fulfil, "one", id="there", transaction=caller.con)
        await caller.run("COMMIT")
        assert await run.result() == "one"

    assert told == ["started there", "ended there"]


@workflow(registry=registry, name="join:held")
def held(order: str) -> str:
    return ship.options(signals=["paid"], queue="docks").bind(order)


async def test_a_signal_and_a_cancel_take_effect_with_the_callers_commit_alone(caller: Caller) -> None:
    async with connect(caller.url, registry=registry) as app:
        run = await app.start(held, "a", id="order-a")
        await caller.run("BEGIN")
        assert await run.signal("paid", {"by": "x" * 2000}, transaction=caller.con)
        await run.cancel(transaction=caller.con)
        await caller.run("ROLLBACK")
        assert (await run.inspect()).status == "running"
        assert (await run.load()).inbox == []

        await caller.run("BEGIN")
        await caller.run("INSERT INTO orders VALUES ('a')")
        assert await run.signal("paid", transaction=caller.con)
        await caller.run("COMMIT")

        assert await run.result(timeout=20) == "a"
        assert await caller.orders() == 1
        with pytest.raises(RunNotActiveError, match="has its outcome, succeeded"):
            await run.signal("paid", transaction=caller.con)
        await run.cancel(transaction=caller.con)
        assert (await run.row()).status == "succeeded"


async def test_a_run_is_started_and_told_something_in_one_transaction(caller: Caller) -> None:
    async with connect(caller.url, registry=registry, worker=False) as desk, connect(caller.url, registry=registry):
        await caller.run("BEGIN")
        run = await desk.start(held, "a", id="order-a", transaction=caller.con)
        await run.signal("paid", transaction=caller.con)
        other = await desk.start(held, "b", id="order-b", transaction=caller.con)
        await other.cancel(transaction=caller.con)
        await caller.run("COMMIT")

        assert await run.result(timeout=20) == "a"
        assert (await other.wait(timeout=20)).status == "cancelled"
        assert (await desk.check()).problems == []


async def test_what_is_not_there_cannot_be_told_anything(caller: Caller) -> None:
    async with connect(caller.url, registry=registry) as app:
        run = await app.start(fulfil, "a", id="order-a")
        await run.result()
        await run.delete()
        with pytest.raises(RunNotFoundError):
            await run.signal("paid", transaction=caller.con)
        with pytest.raises(UsageError, match="transaction="):
            await run.signal("paid", transaction=object())
    async with connect("memory://", registry=registry) as app:
        run = await app.start(held, "a")
        with pytest.raises(UsageError, match="SQLite and PostgreSQL have"):
            await run.signal("paid", transaction=object())


@pytest.mark.parametrize("by", ["program", "operator"])
async def test_a_start_in_a_transaction_is_refused_where_a_queue_is_full(caller: Caller, by: str) -> None:
    docks = Queue("docks", length=2)
    async with connect(caller.url, registry=registry, queues=[docks], worker=False) as app:
        if by == "operator":
            await app.change_queue(
                QueueChange(name="docks", defined=QueueLimits(length=9), override=QueueLimits(length=2))
            )
        for name in ("a", "b"):
            await app.enqueue(ship.options(queue="docks").bind(name))
        await caller.run("BEGIN")
        with pytest.raises(QueueFullError, match="queue 'docks' is full"):
            await app.enqueue(ship.options(queue="docks").bind("c"), transaction=caller.con)
        # These begin later, or elsewhere.
        await app.enqueue(ship.options(queue="docks").bind("d"), id="d", delay="1h", transaction=caller.con)
        await app.start(held, "e", id="e", transaction=caller.con)
        await app.enqueue(ship.bind("f"), id="f", transaction=caller.con)
        await caller.run("COMMIT")

        assert {row.id for row in await app.runs()} >= {"d", "e", "f"}
        assert len(await app.runs()) == 5
