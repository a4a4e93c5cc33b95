"""NATS servers without room: work in progress waits and goes on when there is some, nothing lost, nothing twice."""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tests.disk_kit import SmallDisk, small_disk
from tests.nats_kit import Ballast, limit

from treadle import PlanBuilder, connect, step, workflow
from treadle.core import events as ev
from treadle.errors import StoreFullError
from treadle.store.nats import link as nats_link
from treadle.store.nats.development import Node, free_ports, nodes_in, start_all, url_of

pytestmark = pytest.mark.nats

gates = SimpleNamespace(begun=asyncio.Event(), full=asyncio.Event())
made: list[int] = []
LONG = 100


@step(name="full:written")
async def written(size: int) -> str:
    gates.begun.set()
    await gates.full.wait()
    return os.urandom(size // 2).hex()


@step(name="full:length")
def length_of(text: str) -> int:
    return len(text)


@workflow(name="full:measuring")
def measuring(text: str) -> int:
    return length_of.bind(text)


@workflow(name="full:writing")
def writing(size: int) -> int:
    return length_of.bind(written.bind(size))


@workflow(name="full:calling")
def calling(size: int) -> int:
    return measuring.bind(written.bind(size))


@step(name="full:link")
async def link_of(before: str) -> str:
    made.append(len(before))
    return os.urandom(5000).hex() + before[:0]


def chain() -> Any:
    builder = PlanBuilder("chain")
    value: Any = ""
    for number in range(LONG):
        value = builder.step(f"s{number}", link_of, value)
    builder.output(value)
    return builder.build()


@pytest.fixture(autouse=True)
def closed_gates() -> None:
    gates.begun, gates.full = asyncio.Event(), asyncio.Event()
    made.clear()


@pytest.fixture
def start_node(tmp_path: Path, nats_server: Node) -> Iterator[Callable[..., Node]]:
    nodes: list[Node] = []

    def make(settings: list[str], jetstream: tuple[str, ...] = (), folder: Path = tmp_path) -> Node:
        (port,) = free_ports(1)
        node = Node(folder / "node", port, settings, jetstream=jetstream)
        nodes.append(node)
        start_all([node])
        return node

    yield make
    for node in nodes:
        node.kill()


@pytest.fixture
def disk() -> Iterator[SmallDisk]:
    with small_disk() as small:
        yield small


async def until_logged(caplog: pytest.LogCaptureFixture, text: str, run: Any) -> None:
    """Wait until this is logged; the run goes on all the time."""
    while text not in caplog.text:
        assert (await run.row()).status == "running"
        await asyncio.sleep(0.02)


async def outcomes(run: Any) -> dict[str, int]:
    """How often the journal tells each step's success; no attempt failed or was lost."""
    found: Counter[str] = Counter()
    async for _version, _time, event in run.events():
        assert not isinstance(event, (ev.AttemptFailed, ev.AttemptLost, ev.StepFailed)), event
        if isinstance(event, ev.StepSucceeded):
            found[event.at] += 1
    return dict(found)


LIMITS = {
    "server": ([], ("max_file_store: 16MB",), ""),
    "account": (["accounts { A { jetstream { max_file: 16MB }, users: [{user: a, password: b}] } }"], (), "a:b@"),
}


@pytest.mark.parametrize("kind", sorted(LIMITS))
async def test_work_in_progress_waits_while_a_limit_of_the_server_is_reached(
    kind: str, start_node: Callable[..., Node], caplog: pytest.LogCaptureFixture
) -> None:
    settings, jetstream, user = LIMITS[kind]
    node = start_node(settings, jetstream)
    url = f"nats://{user}127.0.0.1:{node.port}/full"

    async with connect(url, lease=4) as app, connect(url, worker=False, lease=4) as other:
        run = await app.start(writing, 50_000)
        await gates.begun.wait()
        ballast = await asyncio.to_thread(Ballast, other._node.store)
        with pytest.raises(StoreFullError, match=r"has no room .*raise the limits .*; then work goes on"):
            await other.start(writing, 10)
        caplog.clear()
        gates.full.set()
        sessions = [session.id for session in await app.sessions()]
        await until_logged(caplog, "what is decided waits for room", run)

        await asyncio.to_thread(ballast.clear)

        assert await run.result(timeout=60) == 50_000
        assert await outcomes(run) == {"written": 1, "length_of": 1}
        assert [session.id for session in await app.sessions()] == sessions
        assert (await app.check()).problems == []


@pytest.mark.parametrize("size", [50_000, 600_000], ids=["of the run", "of the store"])
@pytest.mark.parametrize("definition", [writing, calling], ids=["result", "call"])
async def test_values_wait_for_room_and_no_attempt_fails_for_want_of_it(
    definition: Any, size: int, nats_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with connect(nats_url) as app:
        run = await app.start(definition, size)
        await gates.begun.wait()
        store: Any = app._node.store
        await asyncio.to_thread(limit, store, store.location.values, 10_000)
        gates.full.set()
        await until_logged(caplog, "waits for room", run)

        await asyncio.to_thread(limit, store, store.location.values, None)

        assert await run.result(timeout=60) == size
        assert set((await outcomes(run)).values()) == {1}


async def test_a_call_waits_for_room_for_the_run_that_it_makes(nats_url: str, caplog: pytest.LogCaptureFixture) -> None:
    async with connect(nats_url) as app:
        run = await app.start(calling, 200_000)
        await gates.begun.wait()
        store: Any = app._node.store
        # Enough for the result of the first step, and not for the plan of the run that has it for its constant.
        await asyncio.to_thread(limit, store, store.location.values, 210_000)
        gates.full.set()
        await until_logged(caplog, "waits for room", run)

        await asyncio.to_thread(limit, store, store.location.values, None)

        assert await run.result(timeout=60) == 200_000
        assert set((await outcomes(run)).values()) == {1}


async def test_after_a_full_disk_was_cleared_and_its_server_restarted_the_work_goes_on(
    disk: SmallDisk, start_node: Callable[..., Node], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A server that could not write to its disk gives no answer, and writes no more until it is restarted."""
    node = start_node([], folder=disk.path)
    url = f"nats://127.0.0.1:{node.port}/full?monitor=http://127.0.0.1:{node.monitor}"
    monkeypatch.setattr(nats_link, "ANSWER_SECONDS", 0.2)
    monkeypatch.setattr(nats_link, "PATIENCE_SECONDS", 1.0)

    async with connect(url) as app:
        run = await app.start(writing, 200_000)
        await gates.begun.wait()
        disk.fill()
        gates.full.set()
        await until_logged(caplog, "no space left on device", run)
        with pytest.raises(StoreFullError, match=r"no space left on device\. Make room on its disk, then restart it"):
            await app.start(measuring, "x" * 100_000)
        (problem,) = (await app.check()).problems
        assert "no space left on device" in problem

        disk.clear()
        await asyncio.to_thread(node.stop)
        await asyncio.to_thread(start_all, [node])

        assert await run.result(timeout=60) == 200_000
        assert await outcomes(run) == {"written": 1, "length_of": 1}
        assert (await app.check()).problems == []


@pytest.mark.soak
@pytest.mark.parametrize("count", [1, 3])
async def test_a_cluster_whose_disks_are_full_loses_nothing(count: int, tmp_path: Path, nats_server: Node) -> None:
    """With one of them full the others go on; with all of them, all goes on once they are cleared and restarted."""
    with ExitStack() as stack:
        disks = [stack.enter_context(small_disk()) for _ in range(3)]
        for number, disk in enumerate(disks, 1):
            (tmp_path / f"n{number}").symlink_to(disk.path)
        nodes = nodes_in(tmp_path, 3)
        for node in nodes:
            stack.callback(node.kill)
        start_all(nodes)
        async with connect(url_of(nodes, "full"), lease=60) as app:
            run = await app.start(chain())
            while len(made) < LONG // 10:
                await asyncio.sleep(0.02)
            for disk in disks[:count]:
                disk.fill()
            hurt = nodes[:count]
            for node in hurt:
                while await asyncio.to_thread(node.is_up):
                    await asyncio.sleep(0.02)
            if count == 1:
                await run.result(timeout=60)
            for disk, node in zip(disks, hurt, strict=False):
                disk.clear()
                await asyncio.to_thread(node.stop)
            await asyncio.to_thread(start_all, hurt)

            assert len(await run.result(timeout=120)) == 10_000
            assert set((await outcomes(run)).values()) == {1}
            assert len(await outcomes(run)) == LONG
