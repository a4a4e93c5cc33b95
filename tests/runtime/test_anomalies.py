"""Anomaly loops: the Nth store call fails, before or after it took effect, for every N until none is left to fail.

The production node runs on virtual time, so that waiting for the store to answer again costs nothing.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from tests.nats_kit import new_name

from treadle import PlanBuilder, Registry, Retry, RunNotRunningError, context, step, workflow
from treadle.core import events as ev
from treadle.errors import StoreError
from treadle.ports import Environment
from treadle.runtime.builtins import with_builtins
from treadle.runtime.client import App
from treadle.runtime.node import Node, Settings
from treadle.runtime.wakeups import NoWakeups
from treadle.store.base import Store
from treadle.store.blobs import MemoryBlobs
from treadle.store.committer import InlineDriver
from treadle.store.memory import MemoryStore
from treadle.store.nats import NatsStore
from treadle.store.sqlite import SqliteStore
from treadle.testing import fail_nth
from treadle.testing.sim_loop import SimLoop
from treadle.testing.sim_ports import SimClock, SimIds, SimThreads

registry = with_builtins(Registry())


@step(name="anomaly:add", registry=registry)
async def add(left: int, right: int = 1) -> int:
    return left + right


@step(name="anomaly:flaky", registry=registry)
def flaky(value: int) -> int:
    if context().attempt < 2:
        raise OSError("not yet")
    return value


@step(name="anomaly:spread", registry=registry)
async def spread(width: int) -> str:
    context().add(*[add.options(id=f"c{n}").bind(n) for n in range(width)])
    return "x" * 3000


world: dict[str, int] = {}


def look(key: str) -> int | None:
    return world.get(key)


async def put_back(key: str, state: int | None) -> None:
    world.pop(key, None)
    if state is not None:
        world[key] = state


@step(name="anomaly:put", registry=registry, prepare=look, undo=put_back, reconcile=lambda key: key in world)
async def put(key: str) -> None:
    world[key] = 1


@step(name="anomaly:fail", registry=registry)
async def fail() -> None:
    raise RuntimeError("the end")


def undoable_plan(*, fails: bool) -> Any:
    builder = PlanBuilder("undone", registry=registry, on_failure="unwind")
    builder.step("a", put, "a")
    builder.step("b", put, "b", after="a")
    builder.step("c", put, "c", after="b")
    if fails:
        builder.step("end", fail, after="c")
    return builder.build()


@step(name="anomaly:probe", registry=registry)
async def probe() -> bool:
    return context().probe == 2


@step(name="anomaly:text", registry=registry)
async def text(length: int) -> str:
    return "x" * length


@workflow(name="anomaly:called", registry=registry)
def called(length: int) -> str:
    return text.bind(length)


def plan() -> Any:
    builder = PlanBuilder("anomalies", registry=registry)
    first = builder.step("first", add, 1)
    again = builder.step("again", flaky, first, retry=Retry(attempts=3, initial="1s"))
    grown = builder.step("grown", spread, 3, after=again)
    asked = builder.step("asked", probe.wait_until("1s"))
    held = builder.step("held", add, again, signals=["go"], after=[grown, asked])
    with builder:
        # A result that travels, and one that is fetched.
        called.options(id="small").bind(10)
        called.options(id="large").bind(3000)
    builder.output([held, builder.step("last", add, held)])
    return builder.build()


async def scenario(app: App) -> None:
    """Start, pause, resume, signal and await; each call is made again until the store has answered it."""
    run = await insistently(lambda: app.start(plan(), id="run"))
    try:
        await insistently(run.pause)
        await insistently(run.resume)
    except RunNotRunningError:
        # The pause took effect although its answer was lost; so it is resumed.
        await insistently(run.resume)
    await insistently(lambda: run.signal("go"))
    assert await insistently(run.result) == [3, 4]


async def insistently(call: Callable[[], Any]) -> Any:
    while True:
        try:
            return await call()
        except StoreError:
            await asyncio.sleep(0.5)


async def checked(app: App) -> None:
    """Each step has one outcome, and nothing is left over."""
    loaded = await insistently(app.run("run").load)
    events = [event for _, _, _, text in loaded.rows for event in ev.decode_events(text)]
    outcomes = Counter(event.at for event in events if isinstance(event, ev.StepSucceeded))
    grown = ["grown", "grown/c0", "grown/c1", "grown/c2"]
    assert outcomes == dict.fromkeys(["first", "again", *grown, "asked", "held", "small", "large", "last"], 1)
    children = await insistently(lambda: app.runs(parent=loaded.head.key))
    assert {(row.id, row.status) for row in children} == {("run/small", "succeeded"), ("run/large", "succeeded")}
    assert (loaded.tasks, loaded.inbox, loaded.status) == ([], [], "succeeded")


async def undone(app: App) -> None:
    """A run fails and is unwound; then another one that has its outcome is undone in two parts."""
    world.clear()
    await insistently(lambda: app.start(undoable_plan(fails=True), id="run"))
    await insistently(app.run("run").wait)
    assert world == {}
    run = await insistently(lambda: app.start(undoable_plan(fails=False), id="undone"))
    await insistently(run.wait)
    await insistently(lambda: run.undo(to="a"))
    await insistently(run.wait)
    assert world == {"a": 1}
    await insistently(run.undo)
    await insistently(run.wait)
    assert world == {}


async def checked_undos(app: App) -> None:
    """Each step was undone once, the last one first, and nothing is left over."""
    for name, status in (("run", "failed"), ("undone", "succeeded")):
        loaded = await insistently(app.run(name).load)
        events = [event for _, _, _, text in loaded.rows for event in ev.decode_events(text)]
        assert [event.at for event in events if isinstance(event, ev.StepUndone)] == ["c", "b", "a"]
        assert [event.at for event in events if isinstance(event, ev.StepPrepared)] == ["a", "b", "c"]
        assert (loaded.tasks, loaded.inbox, loaded.status) == ([], [], status)
        row = await insistently(app.run(name).row)
        assert row.unwound == "fully"


async def cycled(app: App) -> None:
    """Runs are executed in cycles by hand, and then collected; each call is made again until it is answered."""
    for name in ("run", "other"):
        await insistently(partial(app.start, called, 10, id=name))
    async with asyncio.timeout(120):
        while await insistently(lambda: app.runs(status="running")):
            await insistently(lambda: app.run_once(limit=1))
    await asyncio.sleep(1.0)
    while (await insistently(lambda: app.gc(older_than=0))).deleted:
        pass


async def checked_cycles(app: App) -> None:
    """Everything was executed, and is gone."""
    assert await insistently(app.runs) == []
    assert await insistently(app.sessions)


def drive(
    make: Callable[[], Store],
    nth: int,
    *,
    before: bool,
    act: Callable[[App], Awaitable[None]] = scenario,
    check: Callable[[App], Awaitable[None]] = checked,
    cycles: bool = False,
) -> bool:
    """Run a scenario with the Nth store call failing; False if no call was the Nth."""
    loop = SimLoop(lambda: None)
    rng = random.Random(nth)
    clock = SimClock(loop, 0.0, 1.0)

    async def main() -> bool:
        inner = make()
        inner.open()
        store = fail_nth(inner, nth, before=before)

        async def read(function: Callable[[], Any]) -> Any:
            return function()

        environment = Environment(
            clock=clock, ids=SimIds(clock, rng), threads=SimThreads(loop, rng, 4), wakeups=NoWakeups(), store=store
        )
        node = Node(
            environment,
            driver=lambda: InlineDriver(renew_seconds=5.0),
            blobs=MemoryBlobs(),
            registry=registry,
            settings=Settings(cycles=cycles),
            in_reader=read,
        )
        await insistently(node.open)
        app = App(node, lambda: None)
        await act(app)
        await check(app)
        await app.close()
        inner.close()
        return store.fired

    asyncio.set_event_loop(loop)
    try:
        return loop.run_until_complete(main())
    finally:
        asyncio.set_event_loop(None)
        loop.dissolve()


@pytest.mark.parametrize("before", [True, False], ids=["before", "after"])
@pytest.mark.parametrize("kind", ["memory", "sqlite", pytest.param("nats", marks=pytest.mark.nats)])
def test_any_store_call_may_fail_before_or_after_it_took_effect(
    kind: str, before: bool, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    def make() -> Store:
        if kind == "memory":
            return MemoryStore()
        if kind == "nats":
            return NatsStore.from_url(f"{request.getfixturevalue('nats_server').url}/{new_name()}")
        return SqliteStore(str(tmp_path / f"{nth}.db"), sync="normal")

    nth = 1
    while drive(make, nth, before=before):
        nth += 1

    assert nth > 20


@pytest.mark.parametrize("before", [True, False], ids=["before", "after"])
def test_any_store_call_of_an_unwinding_may_fail(before: bool) -> None:
    nth = 1
    while drive(MemoryStore, nth, before=before, act=undone, check=checked_undos):
        nth += 1

    assert nth > 20


@pytest.mark.parametrize("before", [True, False], ids=["before", "after"])
def test_any_store_call_of_cycles_and_a_collection_may_fail(before: bool) -> None:
    nth = 1
    while drive(MemoryStore, nth, before=before, act=cycled, check=checked_cycles, cycles=True):
        nth += 1

    assert nth > 20
