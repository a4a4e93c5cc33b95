"""Starts that wait for a place in a full queue, and what they are told by."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.stores_kit import empty_store, kinds

from treadle import App, LeaseLostError, Queue, QueueFullError, connect, step, workflow
from treadle.runtime.run import Run
from treadle.store.queues import QueueChange
from treadle.testing import ManualClock

DOCKS = Queue("docks", length=2, on_full="wait")


@step(queue="docks")
async def unload(number: int) -> int:
    return number


@workflow
def unload_all(first: int, count: int):
    return [unload.bind(first + number) for number in range(count)]


@pytest.fixture(params=kinds("memory", "sqlite", "postgres", "nats"))
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    with empty_store(request, tmp_path) as url:
        yield url


async def full(app: App) -> Run[list[int]]:
    """The run that fills the queue, of which nothing starts."""
    await app.change_queue(QueueChange(name="docks", paused=True))
    return await app.start(unload_all, 0, 2)


async def full_still(app: App) -> None:
    """Change nothing of the queue."""
    assert not await app.change_queue(QueueChange(name="docks", paused=True))


async def waiting(app: App, *starts: asyncio.Task[Run[list[int]]]) -> None:
    """Until these starts stand in the line."""
    while len(app._node.places._lines.get("docks", ())) < len(starts):
        await asyncio.sleep(0)
    assert not any(start.done() for start in starts)


async def test_a_start_waits_until_there_is_a_place_and_those_behind_it_in_their_order(url: str) -> None:
    async with connect(url, queues=[DOCKS]) as app:
        first = await full(app)
        made: list[int] = []

        async def start(number: int) -> Run[list[int]]:
            run = await app.start(unload_all, number, 2)
            made.append(number)
            return run

        starts: list[asyncio.Task[Run[list[int]]]] = []
        for number in (10, 20, 30):
            starts.append(asyncio.create_task(start(number)))
            await waiting(app, *starts)
        assert len(await app.runs()) == 1

        await app.change_queue(QueueChange(name="docks", paused=False))

        runs = [await start for start in starts]
        assert [await run.result() for run in (first, *runs)] == [[0, 1], [10, 11], [20, 21], [30, 31]]
        assert made == [10, 20, 30]


async def test_a_start_hears_of_a_place_that_was_made_by_another_process(url: str) -> None:
    if url == "memory://":
        pytest.skip("one process only")
    async with connect(url, queues=[DOCKS], worker=False) as app, connect(url) as other:
        await full(app)
        start = asyncio.create_task(app.start(unload_all, 10, 1))
        await waiting(app, start)

        await other.change_queue(QueueChange(name="docks", paused=False))

        assert await (await start).result() == [10]


async def test_a_run_that_is_cancelled_makes_a_place(url: str) -> None:
    async with connect(url, queues=[DOCKS]) as app:
        first = await full(app)
        start = asyncio.create_task(app.start(unload_all, 10, 1))
        await waiting(app, start)

        await first.cancel()

        assert (await (await start).inspect()).status == "running"


async def test_a_start_that_was_given_up_leaves_nothing_and_its_place_to_the_next(url: str) -> None:
    async with connect(url, queues=[DOCKS]) as app:
        await full(app)
        given_up = asyncio.create_task(app.start(unload_all, 10, 1, id="given-up"))
        await waiting(app, given_up)
        start = asyncio.create_task(app.start(unload_all, 20, 1))
        await waiting(app, given_up, start)

        given_up.cancel()
        await app.change_queue(QueueChange(name="docks", paused=False))

        assert await (await start).result() == [20]
        assert given_up.cancelled()
        assert [run.id for run in await app.runs() if run.id == "given-up"] == []


async def test_a_start_waits_no_longer_than_its_deadline(url: str) -> None:
    clock = ManualClock()
    async with connect(url, queues=[DOCKS], clock=clock) as app:
        await full(app)
        start = asyncio.create_task(app.start(unload_all, 10, 1, deadline="10s"))
        await waiting(app, start)

        clock.advance(10.0)
        # Whoever waits looks whenever a queue was changed.
        await full_still(app)

        with pytest.raises(QueueFullError, match="queue 'docks' is full"):
            await start
        assert len(await app.runs()) == 1


async def test_a_start_that_waits_as_its_application_is_closed_has_started_nothing(url: str) -> None:
    async with connect(url, queues=[DOCKS]) as app:
        await full(app)
        start = asyncio.create_task(app.start(unload_all, 10, 1))
        await waiting(app, start)

    with pytest.raises(LeaseLostError, match="nothing was made"):
        await start


async def test_a_start_in_the_callers_transaction_does_not_wait(tmp_path: Path) -> None:
    import apsw

    async with connect(f"sqlite:///{tmp_path}/runs.db", queues=[DOCKS]) as app:
        await full(app)

        connection = apsw.Connection(f"{tmp_path}/runs.db")
        connection.set_busy_timeout(5000)
        with connection, pytest.raises(QueueFullError):
            await app.start(unload_all, 10, 1, transaction=connection)
