"""Two workers on one store whose machines' clocks are an hour apart."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.stores_kit import empty_store, kinds

from treadle import Retry, Retryable, connect, context, sleep, step, workflow
from treadle.runtime.clock import SystemClock

RUNS = 12
HOUR = 3600.0


class Ahead(SystemClock):
    """The clock of a machine that is an hour ahead."""

    @staticmethod
    def now() -> float:
        return time.time() + HOUR


@step(name="clocks:first", retry=Retry(attempts=3, initial="10ms"))
async def first(number: int) -> int:
    if context().attempt == 1:
        raise Retryable("once more")
    return number


@step(name="clocks:second")
async def second(number: int) -> str:
    return context().worker_id


@workflow(name="clocks")
def chain(number: int) -> str:
    begun = first.bind(number)
    rested = sleep.options(after=begun).bind("20ms")
    return second.options(after=rested).bind(begun)


@pytest.fixture(params=kinds("sqlite", "postgres", "nats"))
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    with empty_store(request, tmp_path) as url:
        yield url


async def test_clocks_that_are_far_apart_lose_nothing_and_declare_nobody_dead(url: str) -> None:
    async with (
        connect(url, worker_id="right", slots=2, lease=3.0) as right,
        connect(url, worker_id="ahead", slots=2, lease=3.0, clock=Ahead()) as ahead,
        asyncio.timeout(60),
    ):
        sessions = {right._node.session, ahead._node.session}
        runs = [await (right, ahead)[number % 2].start(chain, number, id=f"r{number}") for number in range(RUNS)]
        workers = [await run.result() for run in runs]

        assert set(workers) <= {"right", "ahead"}
        for run in runs:
            events = [entry async for entry in run.events()]
            assert not [event for _, _, event in events if type(event).__name__ == "AttemptLost"]
            # Whoever decides it, the time of a run's journal never runs backwards.
            assert all(one <= two for (_, one, _), (_, two, _) in itertools.pairwise(events))
        assert {right._node.session, ahead._node.session} == sessions
