"""The PostgreSQL store through a real PgBouncer in transaction mode: the whole contract, and runs of many processes."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from tests.pgbouncer_kit import POOL, Pooler, find_pgbouncer, pooler
from tests.postgres_kit import empty_schema

from treadle import Projection, Queue, connect, context, step, workflow
from treadle.store.base import Store
from treadle.store.postgres import PostgresStore
from treadle.testing import LimitsContract, StoreContract
from treadle.testing.contract_kit import MakeStore, Party, key_of, task_of

pytestmark = [
    pytest.mark.postgres,
    pytest.mark.skipif(find_pgbouncer() is None, reason="pgbouncer is not installed here (apt install pgbouncer)"),
]


@pytest.fixture(scope="module")
def bouncer(postgres_server: object) -> Iterator[Pooler]:
    # Where the user that it runs as may look.
    folder = Path(tempfile.mkdtemp(prefix="treadle-pgbouncer-"))
    with pooler(folder) as running:
        yield running
    shutil.rmtree(folder)


def opened(url: str) -> PostgresStore:
    store = PostgresStore.from_url(url)
    store.open()
    return store


class TestPooledStore(StoreContract, LimitsContract):
    @pytest.fixture
    def make_store(self, bouncer: Pooler) -> Iterator[MakeStore]:
        with empty_schema() as schema, ExitStack() as stack:

            def make() -> Store:
                store = opened(bouncer.url(schema))
                stack.callback(store.close)
                return store

            yield make


def test_many_stores_share_few_connections_of_the_server(bouncer: Pooler) -> None:
    with empty_schema() as schema:
        parties = [Party(opened(bouncer.url(schema)), f"s{number}") for number in range(3 * POOL)]
        for number, party in enumerate(parties):
            key = key_of(number)
            party.start(key, tasks=[task_of(key, n) for n in range(3)])
        taken = [task.lease for party in parties for task in party.claim(3)]

        assert len(set(taken)) == 3 * len(parties)
        assert [row[0] for row in bouncer.query("SHOW CLIENTS")].count("C") > POOL
        assert len(bouncer.query("SHOW SERVERS")) <= POOL
        assert parties[0].store.check().problems == []
        for party in parties:
            party.store.close()


@step(queue="pooled")
async def square(number: int) -> int:
    return number * number


@step
def total(values: list[int]) -> int:
    return sum(values)


@workflow
def squares(count: int) -> int:
    return total.bind([square.bind(number) for number in range(count)])


@pytest.mark.parametrize("listen", ["", "off"], ids=["listening to the server", "not listening"])
async def test_applications_share_runs_and_limits_through_it(bouncer: Pooler, listen: str) -> None:
    with empty_schema() as schema:
        url = bouncer.url(schema, listen=listen)
        limited = Queue("pooled", concurrency=3)
        async with connect(url, worker=False) as client, connect(url, queues=[limited]), connect(url, queues=[limited]):
            runs = [await client.start(squares, 20, id=f"run-{number}") for number in range(5)]

            assert [await run.result() for run in runs] == [2470] * 5
            assert (await client.check()).problems == []


@step
async def give(number: int) -> None:
    own = context()
    own.record("square", str(number), number * number)
    own.projection("squares_of").write("INSERT INTO squares_of_log (number) VALUES (?)", number)


@workflow
def giving(count: int) -> None:
    for number in range(count):
        give.bind(number)


async def test_projections_live_behind_it(bouncer: Pooler) -> None:
    made = Projection(
        "squares_of",
        migrations=[
            "CREATE TABLE squares_of (key TEXT PRIMARY KEY, square INTEGER);"
            " CREATE TABLE squares_of_log (number INTEGER)"
        ],
    )
    made.collection("square", "INSERT INTO squares_of VALUES (:key, CAST(:data #>> '{}' AS INTEGER))")
    with empty_schema() as schema:
        url = bouncer.url(schema)
        async with connect(url, projections=[made]) as app, connect(url):
            for run in [await app.start(giving, 10)]:
                await run.result()
            projection = app.projection("squares_of")

            assert await projection.query("SELECT sum(square) AS sum FROM squares_of") == [{"sum": 285}]
            assert await projection.execute("DELETE FROM squares_of_log WHERE number < ?", 5) == 5
            await projection.rebuild()
            assert len(await projection.query("SELECT * FROM squares_of")) == 10


async def test_one_that_is_killed_and_started_again_costs_time_alone(bouncer: Pooler) -> None:
    with empty_schema() as schema:
        url = bouncer.url(schema)
        async with connect(url) as app, connect(url):
            runs = [await app.start(squares, 20, id=f"run-{number}") for number in range(5)]
            bouncer.kill()
            bouncer.start()

            assert [await run.result() for run in runs] == [2470] * 5
            assert (await app.check()).problems == []
