"""A day in the life of a three-node cluster, phase after phase: all kinds of work, failures, a dead node, the sum.

It is the story that the programs which Treadle takes the place of were tested with.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from treadle import (
    App,
    CycleError,
    Permanent,
    PlanBuilder,
    Registry,
    Retry,
    RunFailedError,
    RunNotFoundError,
    SlotError,
    StepCancelledError,
    StepFailedError,
    StepSkippedError,
    connect,
    context,
    or_default,
    step,
    workflow,
)
from treadle.store.nats.development import Node, url_of

pytestmark = [pytest.mark.nats, pytest.mark.soak]

registry = Registry()
SECONDS = 60.0


@step(name="chaos:add", registry=registry)
async def add(a: int, b: int) -> int:
    return a + b


@step(name="chaos:third_time", registry=registry, retry=Retry(attempts=3, initial="10ms"))
async def third_time() -> int:
    if context().attempt < 3:
        raise ConnectionError("not yet")
    return context().attempt


@step(name="chaos:where", registry=registry)
async def where() -> str:
    return context().worker_id


@step(name="chaos:breaks", registry=registry, retry=Retry(attempts=2, initial="10ms"))
async def breaks() -> int:
    raise ValueError("worn out")


@step(name="chaos:refuses", registry=registry, retry=3)
async def refuses() -> int:
    raise Permanent("never", code="refused")


@step(name="chaos:stands", registry=registry)
async def stands() -> int:
    await asyncio.Event().wait()
    return 0


@workflow(name="chaos:exhausted", registry=registry)
def exhausted() -> int:
    first = breaks.options(id="first").bind()
    return add.options(id="last").bind(add.options(id="middle").bind(first, 1), 1)


@workflow(name="chaos:stopped", registry=registry)
def stopped() -> int:
    return add.options(id="after").bind(stands.options(id="stands").bind(), 1)


@workflow(name="chaos:gated", registry=registry)
def gated() -> int:
    root = add.options(id="root", break_after="look").bind(1, 2)
    lost = refuses.options(id="lost", optional=True).bind()
    middle = add.options(id="middle", break_before="think").bind(root, or_default(lost, 4))
    return add.options(id="end").bind(middle, 10)


async def baseline(app: App, other: App) -> None:
    """Calls, awaited here, elsewhere and not at all; retries, targets, deadlines, and mistakes."""
    call = await app.enqueue(add.bind(1, 2), id="call")
    assert await call.result(timeout=SECONDS) == 3
    assert await other.run("call").result(timeout=SECONDS) == 3
    assert await (await app.enqueue(third_time.bind())).result(timeout=SECONDS) == 3
    for target in ("w2", "disk"):
        assert await (await app.enqueue(where.options(on=target).bind())).result(timeout=SECONDS) == "w2"
    await app.enqueue(add.bind(2, 2), id="forgotten")
    late = await app.enqueue(stands.bind(), deadline=datetime.now(UTC) + timedelta(milliseconds=300), id="late")
    with pytest.raises(RunFailedError, match="deadline"):
        await late.result(timeout=SECONDS)
    wrong: Any = "one"
    with pytest.raises(SlotError):
        await app.enqueue(add.bind(wrong, 2))
    builder = PlanBuilder("ring", registry=registry)
    builder.step("a", add, 1, 2, after="b")
    builder.step("b", add, 1, 2, after="a")
    with pytest.raises(CycleError):
        builder.build()


async def failures(app: App) -> None:
    """What is tried too often, what refuses, what is cancelled, what is deleted."""
    run = await app.start(exhausted, id="exhausted")
    with pytest.raises(RunFailedError, match="worn out"):
        await run.result(timeout=SECONDS)
    with pytest.raises(StepFailedError, match="worn out"):
        await run.step("first")
    for below in ("middle", "last"):
        with pytest.raises(StepSkippedError):
            await run.step(below)
    run = await app.start(stopped, id="stopped")
    async for _ in run.changes():
        if any(row.address == "stands" and row.status == "dispatched" for row in (await run.inspect()).steps):
            break
    await run.cancel(hard=True)
    assert (await run.wait(timeout=SECONDS)).status == "cancelled"
    with pytest.raises(StepCancelledError):
        await run.step("after")
    while (await run.load()).tasks:
        await asyncio.sleep(0.01)
    await run.delete()
    with pytest.raises(RunNotFoundError):
        await run.row()


async def blocked(app: App, label: str) -> None:
    run = app.run("gated")
    async for _ in run.changes():
        if any(label in point.labels and point.state == "blocked" for point in (await run.inspect()).breakpoints):
            return


async def test_all_kinds_of_work_on_a_cluster_that_loses_a_node(cluster: list[Node]) -> None:
    url = url_of(cluster, "day")
    async with (
        connect(url, registry=registry, worker_id="w1", lease=60) as app,
        connect(url, registry=registry, worker_id="w2", targets=["disk"], lease=60) as other,
        asyncio.timeout(4 * SECONDS),
    ):
        facts = (await app.check()).facts
        assert {facts[f"treadle-day-{stream} replicas"] for stream in ("log", "values")} == {"3"}
        await baseline(app, other)
        await failures(app)

        # The breakpoints hold over the death of a node, and are released on the two that are left.
        run = await app.start(gated, id="gated", breakpoints=["look", "think"])
        await blocked(app, "look")
        cluster[1].kill()
        assert [row.status for row in await app.runs() if row.id == "gated"] == ["running"]
        assert await run.release("look") == 1
        await blocked(app, "think")
        assert await other.run("gated").release("think") == 1
        assert await run.result(timeout=SECONDS) == 17

        statuses = Counter(row.status for row in (await run.inspect()).steps)
        codes = {dead.code for _, dead in await app.dead()}
        assert statuses == {"succeeded": 3, "failed": 1}
        assert codes >= {"deadline", "error", "refused"}
        assert await app.run("forgotten").result(timeout=SECONDS) == 4
        assert all(row.status != "running" for row in await app.runs())
        assert (await app.queues()) == []
