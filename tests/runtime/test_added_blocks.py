"""Running steps add blocks that open their content while the run goes on."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from treadle import (
    Phase,
    Phases,
    PlanBuilder,
    Registry,
    RunFailedError,
    case,
    choose,
    connect,
    context,
    gather,
    group,
    holds,
    step,
    workflow,
)

registry = Registry()


@step(registry=registry)
async def double(value: int) -> int:
    return 2 * value


@step(registry=registry)
async def add_up(values: list[int]) -> int:
    return sum(values)


@step(registry=registry)
async def lane() -> int:
    return 3


def rows() -> None:
    Phases(Phase("one", {"a": lane}), Phase("two", {"a": lane, "b": lane}), id="rows").bind()


def scans() -> None:
    add_up.options(id="sum").bind(gather([1, 2, 3], double, id="scan"))


def picks() -> None:
    first = double.options(id="first").bind(4)
    choose(
        case(holds("v > 7", v=first), lambda: double.bind(10), id="big"), otherwise=lambda: double.bind(1), id="pick"
    )


def grouped() -> None:
    with group("inner"):
        gather([5], double, id="deep")


PLANS = {"rows": rows, "scans": scans, "picks": picks, "grouped": grouped}
VALUES: dict[str, Any] = {
    "rows": {"adds/rows/one/a": 3, "adds/rows/two/b": 3},
    "scans": {"adds/scan": [2, 4, 6], "adds/sum": 12},
    "picks": {"adds/pick": 20, "adds/pick/big/double": 20},
    "grouped": {"adds/inner/deep": [10], "adds/inner/deep[0]/double": 10},
}


@step(registry=registry)
async def adds(kind: str, now: bool) -> str:
    if now:
        await context().add(PLANS[kind], now=True)
    else:
        context().add(PLANS[kind])
    return kind


@workflow(registry=registry)
def adding(kind: str, now: bool) -> str:
    return adds.bind(kind, now)


@pytest.mark.parametrize("now", [False, True])
@pytest.mark.parametrize("kind", PLANS)
async def test_a_step_adds_any_block(kind: str, now: bool) -> None:
    async with connect("memory://", registry=registry) as app, asyncio.timeout(20):
        run = await app.start(adding, kind, now)

        assert await run.result() == kind
        for address, value in VALUES[kind].items():
            assert await run.step(address) == value


@step(registry=registry)
def adds_in_thread() -> int:
    context().add(scans)
    return 1


@workflow(registry=registry)
def threaded() -> int:
    return adds_in_thread.bind()


async def test_a_step_in_a_thread_adds_blocks() -> None:
    async with connect("memory://", registry=registry) as app, asyncio.timeout(20):
        run = await app.start(threaded)

        assert await run.result() == 1
        assert await run.step("adds_in_thread/sum") == 12


@step(registry=registry)
async def adds_wrongly() -> str:
    def broken() -> None:
        gather([1], double, id="scan")
        raise KeyError("half-way")

    def twice() -> None:
        gather([1], double, id="scan")
        gather([1], double, id="scan")

    async def planning() -> None:
        """Not what plans."""

    for function, error in ((broken, "half-way"), (twice, "the id is taken"), (planning, "is async")):
        with pytest.raises(Exception, match=error):
            context().add(function)
    context().add(scans)
    return "added"


@workflow(registry=registry)
def wrong() -> str:
    return adds_wrongly.bind()


async def test_what_was_planned_to_no_end_is_not_added() -> None:
    async with connect("memory://", registry=registry) as app, asyncio.timeout(20):
        run = await app.start(wrong)

        assert await run.result() == "added"
        assert await run.step("adds_wrongly/scan") == [2, 4, 6]


@step(registry=registry)
async def no_list() -> Any:
    return 1


@step(registry=registry)
async def adds_no_list() -> None:
    def planning() -> None:
        gather(no_list.bind(), double, id="scan")

    context().add(planning)


async def test_a_block_that_fails_fails_the_run() -> None:
    builder = PlanBuilder("w", registry=registry)
    builder.step("a", adds_no_list)

    async with connect("memory://", registry=registry) as app, asyncio.timeout(20):
        run = await app.start(builder.build())

        with pytest.raises(RunFailedError, match="list"):
            await run.result()
