"""Limits of queues, from the definition in a program to the steps that wait for them."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.stores_kit import empty_store, kinds

from treadle import DefinitionError, Queue, QueueFullError, RunFailedError, connect, sleep, step, workflow
from treadle.core.events import KeyEvaluated
from treadle.runtime.queues import changes_of
from treadle.store.queues import QueueChange

active: dict[str, int] = {}
most: dict[str, int] = {}


@step(queue="limited", key="host")
async def touch(host: str, number: int) -> int:
    for name in ("", host):
        active[name] = active.get(name, 0) + 1
        most[name] = max(most.get(name, 0), active[name])
    for _ in range(3):
        await asyncio.sleep(0)
    for name in ("", host):
        active[name] -= 1
    return number


@workflow
def touch_all(count: int):
    return [touch.bind(f"host-{number % 4}", number) for number in range(count)]


@workflow
def wrong(count: int):
    return touch.options(key="hots").bind("a", count)


@pytest.fixture(autouse=True)
def _fresh() -> None:
    active.clear()
    most.clear()


@pytest.fixture(params=kinds("memory", "sqlite", "postgres"))
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    with empty_store(request, tmp_path) as url:
        yield url


async def test_never_more_run_than_the_limits_allow_and_all_come_to_their_end(url: str) -> None:
    async with connect(url, queues=[Queue("limited", concurrency=5, key_concurrency=2, fair=True)]) as app:
        run = await app.start(touch_all, 60)

        assert await run.result() == list(range(60))

    assert most[""] <= 5
    assert max(count for name, count in most.items() if name) <= 2
    assert most[""] > 1


async def test_a_paused_queue_goes_on_when_it_is_resumed(url: str) -> None:
    async with connect(url) as app:
        await app.change_queue(QueueChange(name="limited", paused=True))
        run = await app.start(touch_all, 3)
        (row,) = await app.queues()
        assert (row.name, row.waiting, row.running, row.paused) == ("limited", 3, 0, True)

        await app.change_queue(QueueChange(name="limited", paused=False))

        assert await run.result() == [0, 1, 2]


async def test_a_run_for_a_full_queue_is_refused_and_may_be_started_later(url: str) -> None:
    async with connect(url, queues=[Queue("limited", length=2)]) as app:
        await app.change_queue(QueueChange(name="limited", paused=True))
        first = await app.start(touch_all, 2)

        with pytest.raises(QueueFullError):
            await app.start(touch_all, 1)

        await app.change_queue(QueueChange(name="limited", paused=False))
        await first.result()
        assert await (await app.start(touch_all, 1)).result() == [0]


@pytest.mark.parametrize(
    ("queue", "said"),
    [
        (Queue("q", rate=0), "rate=0"),
        (Queue("q", rate="0/s"), "rate='0/s'"),
        (Queue("q", rate="ten"), "rate='ten'"),
        (Queue("q", concurrency=-1), "concurrency=-1"),
        (Queue("q", burst=3), "burst= without rate="),
        (Queue("q", key_burst=3), "key_burst= without key_rate="),
        (Queue("q", fair={"a": 0}), "a weight is a number above 0"),
        (Queue("q", length=0), "length=0"),
        (Queue("q", length=2, on_full="drop"), "on_full='drop': one of 'reject', 'wait', 'drop_oldest'"),  # type: ignore[arg-type]  # a caller without a checker
        (Queue("q", on_full="wait"), "on_full= without length="),
    ],
)
def test_limits_that_make_no_sense_are_refused_where_they_are(queue: Queue, said: str) -> None:
    with pytest.raises(DefinitionError, match="queue 'q'") as found:
        changes_of([queue])

    assert said in str(found.value)


def test_a_key_of_an_unknown_parameter_is_refused_when_the_step_is_planned() -> None:
    with pytest.raises(DefinitionError, match="there is no parameter 'hots'"):
        wrong.plan(1)


@step
async def held(gate: str) -> str:
    await asyncio.sleep(0.001)
    while gate in active:
        await asyncio.sleep(0.001)
    return gate


@step(queue="elsewhere")
async def inner() -> str:
    return "called"


@workflow
def outer():
    return inner.bind()


@workflow
def restful():
    return [held.bind("gate"), inner.options(id="after", after=sleep.bind("1ms")).bind(), outer.bind()]


async def test_sleeps_and_calls_take_up_no_capacity_and_wait_for_none(tmp_path) -> None:
    for url in ("memory://", f"sqlite:///{tmp_path / 'runs.db'}?sync=normal"):
        active["gate"] = 1
        async with connect(url, queues=[Queue("default", concurrency=1, rate="1/h")]) as app:
            run = await app.start(restful)
            assert await run.step("after", timeout=10) == "called"
            assert await run.step("outer", timeout=10) == "called"
            assert [(row.name, row.running) for row in await app.queues() if row.running] == [("default", 1)]
            del active["gate"]
            await run.result()


def test_the_queue_of_what_takes_up_nothing_has_no_limits() -> None:
    with pytest.raises(DefinitionError, match="sleeps and calls wait there"):
        changes_of([Queue("treadle:unlimited", concurrency=1)])


@step
async def read_page(host: str) -> dict[str, str]:
    return {"host": host, "body": "x" * 5000}


@step(queue="limited", key="page.host")
async def index(page: dict[str, str]) -> str:
    host = page["host"]
    active[host] = active.get(host, 0) + 1
    most[host] = max(most.get(host, 0), active[host])
    await asyncio.sleep(0.002)
    active[host] -= 1
    return host


@workflow
def index_all(count: int):
    return [index.bind(read_page.bind(f"host-{number % 2}")) for number in range(count)]


async def test_a_key_may_be_a_part_of_a_large_value(tmp_path) -> None:
    for url in ("memory://", f"sqlite:///{tmp_path / 'runs.db'}?sync=normal"):
        most.clear()
        async with connect(url, queues=[Queue("limited", key_concurrency=2)]) as app:
            run = await app.start(index_all, 20)
            assert len(await run.result(timeout=30)) == 20
            keys = [event.key for _, _, event in [row async for row in run.events()] if isinstance(event, KeyEvaluated)]
        assert sorted(set(keys)) == ["host-0", "host-1"]
        assert len(keys) == 20
        assert most == {"host-0": 2, "host-1": 2}


@step(queue="limited", key="page.nothing")
async def keyless(page: dict[str, str]) -> str:
    return "never"


async def test_a_part_that_is_not_there_is_a_failure_of_the_step() -> None:
    async with connect("memory://") as app:
        run = await app.enqueue(keyless.bind(await read_page("host")))
        with pytest.raises(RunFailedError, match=r"the key 'page.nothing' has no value"):
            await run.result(timeout=10)
