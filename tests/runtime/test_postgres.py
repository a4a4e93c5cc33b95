"""The engine on a PostgreSQL server that fails: calls, connections, the server itself, and processes."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.postgres_kit import empty_schema, query, shared_server, start_server, url_of
from tests.postgres_proxy import CuttingProxy
from tests.runtime.kill_target import plan
from tests.runtime.test_anomalies import drive, insistently
from tests.runtime.test_anomalies import registry as anomalies
from tests.runtime.test_kills import LANES, check, lines, start, wait_for_lines

from treadle import PlanBuilder, Projection, connect, context, step
from treadle.errors import StoreError
from treadle.runtime.client import App
from treadle.runtime.projections import Live
from treadle.store.postgres import PostgresProjections, PostgresStore, parse_url
from treadle.store.queues import NO_LIMITS, QueueChange, QueueLimits

pytestmark = [pytest.mark.postgres, pytest.mark.usefixtures("postgres_server"), pytest.mark.soak]

# Every so many of the places where something may fail; `make soak` tries them all.
STRIDE = 1 if "TREADLE_KILLS" in os.environ else 13


KILLS = max(3, int(os.environ.get("TREADLE_KILLS", "0")) // 4)


@pytest.fixture
def proxy() -> Iterator[CuttingProxy]:
    info = shared_server().get_postmaster_info()
    assert info.socket_dir is not None
    proxy = CuttingProxy(Path(info.socket_dir, f".s.PGSQL.{info.port}"))
    yield proxy
    proxy.close()


def opened(url: str) -> PostgresStore:
    store = PostgresStore.from_url(url)
    store.open()
    return store


def limited(store: PostgresStore, limits: QueueLimits) -> PostgresStore:
    # A queue that nobody ever defined is another case than one without limits.
    if limits != NO_LIMITS:
        store.set_queues([QueueChange(name="default", defined=limits)], 0.0)
    return store


limits = pytest.mark.parametrize(
    "limits", [NO_LIMITS, QueueLimits(concurrency=2, rate=50.0, burst=3, fair=True)], ids=["unlimited", "limited"]
)


@limits
@pytest.mark.parametrize("before", [True, False], ids=["before", "after"])
def test_any_store_call_may_fail_before_or_after_it_took_effect(before: bool, limits: QueueLimits) -> None:
    nth, fired = 1, True
    while fired:
        with empty_schema() as schema:
            fired = drive(lambda: limited(opened(url_of(shared_server(), schema)), limits), nth, before=before)
        nth += STRIDE

    assert nth > 20


@limits
@pytest.mark.parametrize("before", [True, False], ids=["before", "after"])
def test_any_connection_may_be_cut_before_or_after_a_statement(
    proxy: CuttingProxy, before: bool, limits: QueueLimits
) -> None:
    def make() -> PostgresStore:
        store = limited(opened(url), limits)
        proxy.cut_at(nth, before=before)
        return store

    nth, fired = 1, True
    while fired:
        with empty_schema() as schema:
            url = url_of(shared_server(), schema, host="127.0.0.1", port=str(proxy.port), sslmode="disable")
            drive(make, 10**9, before=True)
        fired = proxy.fired
        nth += STRIDE

    assert nth > 50


@step(name="cut:give", registry=anomalies)
async def give(name: str) -> None:
    context().record("page", name, {})
    context().projection("pages").write("INSERT INTO pages_log (url) VALUES (?)", name)


@limits
@pytest.mark.parametrize("before", [True, False], ids=["before", "after"])
def test_records_and_writes_are_applied_once_wherever_a_connection_is_cut(
    proxy: CuttingProxy, before: bool, limits: QueueLimits
) -> None:
    pages = Projection(
        "pages",
        migrations=["CREATE TABLE pages (url TEXT PRIMARY KEY, seen INTEGER); CREATE TABLE pages_log (url TEXT)"],
    )
    pages.collection("page", "INSERT INTO pages VALUES (:key, 1) ON CONFLICT (url) DO UPDATE SET seen = pages.seen + 1")
    databases: list[PostgresProjections] = []

    def make() -> PostgresStore:
        store = limited(opened(url), limits)
        proxy.cut_at(nth, before=before)
        return store

    def projections() -> dict[str, Live]:
        # By a connection of its own, which is not cut.
        database = PostgresProjections(parse_url(url_of(shared_server(), schema)), hosted=True)
        database.define(pages.spec)
        databases.append(database)
        return {"pages": Live(pages, database, hosted=True)}

    async def act(app: App) -> None:
        builder = PlanBuilder("given", registry=anomalies)
        builder.step("b", give.options(after=builder.step("a", give, "a")), "b")
        planned = builder.build()
        await insistently(lambda: app.start(planned, id="run"))
        await insistently(app.run("run").wait)

    async def check(app: App) -> None:
        found = databases[-1].query("SELECT url, seen FROM pages ORDER BY url")
        assert found == [{"url": "a", "seen": 1}, {"url": "b", "seen": 1}]
        assert len(databases[-1].query("SELECT url FROM pages_log")) == 2

    nth, fired = 1, True
    while fired:
        with empty_schema() as schema:
            url = url_of(shared_server(), schema, host="127.0.0.1", port=str(proxy.port), sslmode="disable")
            drive(make, 10**9, before=True, act=act, check=check, projections=projections)
        fired = proxy.fired
        nth += 1 if STRIDE == 1 else 2

    assert nth > 15


def test_a_store_is_opened_whatever_is_cut(proxy: CuttingProxy) -> None:
    for before in (True, False):
        nth, fired = 1, True
        while fired:
            with empty_schema() as schema:
                url = url_of(shared_server(), schema, host="127.0.0.1", port=str(proxy.port), sslmode="disable")
                proxy.cut_at(nth, before=before)
                store = PostgresStore.from_url(url)
                while True:
                    try:
                        store.open()
                        break
                    except StoreError:
                        continue
                fired = proxy.fired
                proxy.cut_at(0, before=before)
                assert store.check().problems == []
                store.close()
            nth += 1


async def progress(log: Path, count: int) -> None:
    """Wait until so many steps were begun."""
    while lines(log) < count:
        await asyncio.sleep(0.01)


async def trouble(url: str, log: Path, times: int, strike: Callable[[], Any]) -> None:
    """A run goes on while the server is struck again and again; each step has exactly one outcome."""
    length = 12 * times
    async with connect(url, slots=8, threads=4, lease=5.0) as app:
        run = await app.start(plan(LANES, length), id="victim")
        for turn in range(times):
            await progress(log, (turn + 1) * 8 * LANES)
            await asyncio.to_thread(strike)
        assert await run.result(timeout=120) == LANES * length
    await check(url, length, log)


async def test_connections_are_ended_by_the_server_again_and_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KILL_LOG", str(tmp_path / "log"))
    with empty_schema() as schema:
        url = url_of(shared_server(), schema, application_name=schema)

        def strike() -> None:
            query(
                shared_server(),
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = %s",
                schema,
            )

        await trouble(url, tmp_path / "log", KILLS, strike)


async def test_the_server_is_restarted_and_crashes_in_the_middle_of_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KILL_LOG", str(tmp_path / "log"))
    folder = Path(tempfile.mkdtemp(prefix="treadle-postgres-"))
    # Only this survives a crash of the server, as the store says itself.
    server = await asyncio.to_thread(start_server, folder, synchronous_commit="on")
    crashes = [False, True]

    def strike() -> None:
        if crashes.pop():
            # What a crash does: no process says goodbye, and the next start recovers from the log.
            os.kill(server.get_pid() or 0, signal.SIGQUIT)
            process = server.get_postmaster_info().process
            assert process is not None
            process.wait(30)
        else:
            server.stop()
        server.start()

    try:
        await trouble(url_of(server, "restarted"), tmp_path / "log", 2, strike)
    finally:
        await asyncio.to_thread(server.cleanup)


@pytest.mark.parametrize(
    "limits", [NO_LIMITS, QueueLimits(concurrency=3, key_concurrency=2, fair=True)], ids=["unlimited", "limited"]
)
def test_processes_are_killed_one_after_the_other_while_others_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limits: QueueLimits
) -> None:
    monkeypatch.setenv("KILL_LEASE", "2")
    log, dice, length = tmp_path / "log", random.Random(8), max(20, KILLS * 4)
    with empty_schema() as schema:
        url = url_of(shared_server(), schema)
        limited(opened(url), limits).close()
        lives = [start(url, length, log) for _ in range(2)]
        for _ in range(KILLS):
            if not wait_for_lines(log, lines(log) + dice.randint(5, 30), lives):
                break
            victim = lives.pop(dice.randrange(len(lives)))
            victim.send_signal(signal.SIGKILL)
            victim.communicate()
            lives.append(start(url, length, log))
        answers = [life.communicate(timeout=300) for life in lives]

        assert all(life.returncode == 0 for life in lives), [err for _, err in answers]
        asyncio.run(check(url, length, log))
