"""The hub wakes those who have something to look at, and no more of them than the event loop can bear."""

from __future__ import annotations

import asyncio

from treadle import connect
from treadle.authoring.builder import PlanBuilder
from treadle.authoring.decorators import step
from treadle.authoring.registry import Registry
from treadle.runtime.hub import LOOKS, Changed, Hub

registry = Registry()


@step(registry=registry, name="hub:one")
async def one() -> int:
    return 1


def waiting(count: int) -> tuple[Hub, dict[str, Changed]]:
    hub = Hub(lambda _watching: None)
    return hub, {f"r{n}": hub.wait(f"r{n}", end=n % 2 == 0) for n in range(count)}


def woken(futures: dict[str, Changed]) -> list[str]:
    return [key for key, future in futures.items() if future.done()]


async def test_a_wake_up_leaves_those_alone_whom_the_engine_will_tell() -> None:
    hub, futures = waiting(6)

    hub.all_changed(but={"r0", "r1", "r2", "r3"}.__contains__)

    assert woken(futures) == ["r4", "r5"]


async def test_a_few_look_at_a_time_and_each_has_its_turn() -> None:
    hub, futures = waiting(0)
    for n in range(3 * LOOKS):
        futures[f"r{n}"] = hub.wait(f"r{n}", end=True)
    looked: list[str] = []

    for _ in range(4):
        hub.look()
        now = woken(futures)
        assert len(now) == LOOKS
        looked += now
        # Who has looked waits again.
        futures.update({key: hub.wait(key, end=True) for key in now})

    assert looked == [f"r{n % (3 * LOOKS)}" for n in range(4 * LOOKS)]


async def test_neither_a_wake_up_nor_a_look_makes_all_read_who_wait_for_runs_of_this_process() -> None:
    plan = PlanBuilder("waits", registry=registry)
    plan.output(plan.step("one", one))
    planned = plan.build()
    async with connect("memory://", registry=registry) as app:
        runs = await asyncio.gather(*[app.start(planned, delay="1h") for _ in range(2 * LOOKS)])
        results = [asyncio.ensure_future(run.result()) for run in runs]
        await asyncio.sleep(0)
        node = app._node
        assert len(node.hub._ends) == 2 * LOOKS

        node._woken()
        assert len(node.hub._ends) == 2 * LOOKS
        node.hub.look()
        assert len(node.hub._ends) == LOOKS

        for result in results:
            result.cancel()
        await asyncio.gather(*results, return_exceptions=True)
