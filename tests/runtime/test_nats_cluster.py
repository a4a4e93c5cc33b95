"""A cluster of three NATS servers that die and change their leader: nothing lost, nothing recorded twice."""

from __future__ import annotations

import asyncio
import os
import random
from collections import Counter
from typing import Any

import pytest
from tests.nats_kit import Proxy, new_name

from treadle import PlanBuilder, Registry, connect, context, step
from treadle.core import events as ev
from treadle.store.nats.development import Node, url_of

pytestmark = [pytest.mark.nats, pytest.mark.soak]

# Each loss takes seconds, and the run is to go on for as long as there are any.
KILLS = max(1, int(os.environ.get("TREADLE_KILLS", "1")) // 20)
LANES = 4
registry = Registry()
begun: list[str] = []
released = asyncio.Event()


@step(name="cluster:add", registry=registry, lost_limit=1000)
async def add(value: int) -> int:
    return value + 1


@step(name="cluster:total", registry=registry)
async def total(values: list[int]) -> int:
    return sum(values)


def plan(length: int) -> Any:
    builder = PlanBuilder("lanes", registry=registry)
    ends: list[Any] = []
    for lane in range(LANES):
        value: Any = 0
        for number in range(length):
            value = builder.step(f"l{lane}s{number}", add, value)
        ends.append(value)
    builder.output(builder.step("total", total, ends))
    return builder.build()


async def leader_of(app: Any) -> str:
    """The node that leads the log."""
    store = app._node.store
    info = await app._node.read(lambda: store._loop.call(store._rooms.link.api(f"STREAM.INFO.{store.location.log}")))
    return str(info["cluster"].get("leader", ""))


async def move_leader(app: Any) -> None:
    store = app._node.store
    subject = f"STREAM.LEADER.STEPDOWN.{store.location.log}"
    await app._node.read(lambda: store._loop.call(store._rooms.link.api(subject)))


async def disturb(app: Any, nodes: list[Node], dice: random.Random) -> None:
    """Kill the leader's node, start it again, then let another one lead."""
    name = await leader_of(app)
    victim = next((node for node in nodes if node.folder.name == name), dice.choice(nodes))
    victim.kill()
    await asyncio.sleep(dice.uniform(0.5, 3))
    victim.start()
    await asyncio.get_running_loop().run_in_executor(None, victim.wait)
    await move_leader(app)


async def check(app: Any, length: int) -> None:
    outcomes: Counter[str] = Counter()
    async for _version, _time, event in app.run("lanes").events():
        if isinstance(event, ev.StepSucceeded):
            outcomes[event.at] += 1
    assert len(outcomes) == LANES * length + 1
    assert set(outcomes.values()) == {1}
    loaded = await app.run("lanes").load()
    assert [row[0] for row in loaded.rows] == list(range(1, loaded.version + 1))
    assert (loaded.tasks, loaded.inbox) == ([], [])


async def test_a_cluster_that_loses_its_leaders_loses_no_outcome(cluster: list[Node]) -> None:
    length = 1500 * KILLS
    dice = random.Random(11)
    async with connect(url_of(cluster, "chaos"), registry=registry, lease=60) as app:
        assert "2 of 3 servers" in app.durability
        run = await app.start(plan(length), id="lanes")
        waiting = asyncio.ensure_future(run.result(timeout=600))
        for _ in range(KILLS):
            assert not waiting.done()
            await disturb(app, cluster, dice)

        assert await waiting == LANES * length

        await check(app, length)
        # A node that has just come back may still copy what it has missed.
        problems = [text for text in (await app.check()).problems if "lags behind" not in text]
        assert problems == []


@step(name="cluster:wait", registry=registry, lost_limit=1000)
async def wait_for_the_end(value: int) -> str:
    begun.append(context().worker_id)
    if context().worker_id == "cut off":
        await released.wait()
    return f"{context().worker_id} {value}"


async def test_a_worker_that_was_cut_off_longer_than_its_lease_is_fenced(nats_server: Node) -> None:
    proxy = Proxy(nats_server.port)
    name = new_name()
    builder = PlanBuilder("cut", registry=registry)
    builder.output(builder.step("wait", wait_for_the_end, 7))
    begun.clear()
    released.clear()
    try:
        url = f"nats://127.0.0.1:{proxy.port}/{name}"
        async with connect(url, registry=registry, worker_id="cut off", lease=1.5) as far:
            run = await far.start(builder.build(), id="r")
            while not begun:
                await asyncio.sleep(0.01)
            async with connect(f"{nats_server.url}/{name}", registry=registry, worker_id="near", lease=1.5) as near:
                proxy.leave()

                assert await near.run("r").result(timeout=60) == "near 7"

                # Its attempt ends late, and is told so when it is back.
                released.set()
                proxy.come_back()
                assert await run.result(timeout=60) == "near 7"
                events = [event async for *_, event in near.run("r").events()]
                assert [event.at for event in events if isinstance(event, ev.StepSucceeded)] == ["wait"]
                assert sum(isinstance(event, ev.AttemptLost) for event in events) == 1
    finally:
        proxy.close()
