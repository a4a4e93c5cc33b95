"""Starts of singletons: one run at a time goes on, whoever starts it; the others reuse, reject, replace or queue."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.stores_kit import empty_store, kinds

from treadle import (
    DefinitionError,
    Registry,
    RunCancelledError,
    RunExistsError,
    RunFailedError,
    SlotError,
    connect,
    context,
    step,
    workflow,
)
from treadle.core import events as ev

registry = Registry()
gates: dict[str, asyncio.Event] = {}
# What goes on now by its name, and what began in which order.
active: list[str] = []
order: list[str] = []


@pytest.fixture(params=kinds("memory", "sqlite", "postgres", "nats"))
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    gates.clear()
    active.clear()
    order.clear()
    with empty_store(request, tmp_path) as url:
        yield url


def gate(name: str) -> asyncio.Event:
    return gates.setdefault(name, asyncio.Event())


@step(registry=registry, name="single:work")
async def work(tenant: str, name: str) -> str:
    assert not [other for other in active if other.startswith(f"{tenant}:")], "two runs at a time"
    active.append(f"{tenant}:{name}")
    order.append(name)
    try:
        await gate(name).wait()
    finally:
        active.remove(f"{tenant}:{name}")
    if name.startswith("bad"):
        raise ValueError("bad")
    return name


@step(registry=registry, name="single:free")
async def free(name: str) -> str:
    order.append(name)
    await gate(name).wait()
    return name


@workflow(registry=registry, name="single:sync", singleton="tenant")
def sync(tenant: str, name: str = "one") -> str:
    return work.bind(tenant, name)


@workflow(registry=registry, name="single:queued", singleton=True, on_conflict="queue")
def queued(name: str) -> str:
    return work.bind("all", name)


@workflow(registry=registry, name="single:plain")
def plain(name: str) -> str:
    return free.bind(name)


@workflow(registry=registry, name="single:calls")
def calls(name: str) -> str:
    return queued.bind(name)


@step(registry=registry, name="single:noop")
def noop() -> str:
    return context().run_id


@workflow(registry=registry, name="single:again", singleton=True)
def again(depth: int) -> str:
    return again.bind(depth - 1) if depth else noop.bind()


async def begun(name: str) -> None:
    """Wait until a step has begun."""
    async with asyncio.timeout(20):
        while name not in order:
            await asyncio.sleep(0.005)


async def test_a_second_start_is_rejected_replaced_or_attached(url: str) -> None:
    async with connect(url, registry=registry) as app:
        first = await app.start(sync, "acme")
        await begun("one")

        again = await app.start(sync, "acme")
        assert again.id == first.id
        with pytest.raises(RunExistsError, match="holds the singleton with another workflow or input"):
            await app.start(sync, "acme", "two")
        with pytest.raises(RunExistsError, match="holds the singleton; wait for it, or choose on_conflict='queue'"):
            await app.start(sync, "acme", on_conflict="reject")
        other = await app.start(sync, "initech", "elsewhere")
        await begun("elsewhere")

        second = await app.start(sync, "acme", "two", on_conflict="replace")
        with pytest.raises(RunCancelledError):
            await first.result()
        gate("two").set()
        assert await second.result() == "two"
        gate("elsewhere").set()
        assert await other.result() == "elsewhere"
        assert await (await app.start(sync, "acme", "two")).result() == "two"


async def test_queued_starts_begin_in_their_order(url: str) -> None:
    async with connect(url, registry=registry) as app, connect(url, registry=registry, worker=False) as other:
        # Each has a store of its own in memory.
        desk = app if url == "memory://" else other
        runs = [await (app if n % 2 else desk).start(queued, f"n{n}", id=f"run-{n}") for n in range(5)]
        await begun("n0")

        (reason, *_) = await runs[2].why()
        assert (reason.code, reason.kind, reason.on) == ("singleton", "fence", ["run-0", "run-1"])
        assert reason.message.endswith("is held by run-0, with 1 more before it")
        assert order == ["n0"]
        await runs[3].cancel()
        assert (await runs[3].row()).status == "cancelled"
        for n in (0, 1, 2, 4):
            gate(f"n{n}").set()

        assert [await runs[n].result() for n in (0, 1, 2, 4)] == ["n0", "n1", "n2", "n4"]
        assert order == ["n0", "n1", "n2", "n4"]


async def test_a_start_of_the_same_id_is_the_same_run_also_in_the_line(url: str) -> None:
    async with connect(url, registry=registry) as app:
        first = await app.start(queued, "a", id="a")
        second = await app.start(queued, "b", id="b")

        again = await app.start(queued, "b", id="b")
        assert again.id == second.id
        with pytest.raises(RunExistsError, match="exists with another workflow or input"):
            await app.start(queued, "c", id="b")
        gate("a").set()
        gate("b").set()

        assert [await first.result(), await again.result()] == ["a", "b"]


async def test_starts_queue_behind_the_run_of_an_id(url: str) -> None:
    async with connect(url, registry=registry) as app:
        first = await app.start(plain, "a", id="night")
        await begun("a")

        runs = [await app.start(plain, name, id="night", on_conflict="queue") for name in "bc"]
        assert [run.id for run in runs] == ["night#2", "night#3"]
        assert order == ["a"]
        assert (await runs[0].why())[0].on == ["night"]
        for name in "abcd":
            gate(name).set()

        assert [await run.result() for run in (first, *runs)] == ["a", "b", "c"]
        assert order == ["a", "b", "c"]
        late = await app.start(plain, "d", id="night", on_conflict="queue")
        assert (late.id, await late.result()) == ("night#4", "d")


async def test_a_failed_run_lets_the_next_one_begin_and_waits_when_it_is_retried(url: str) -> None:
    async with connect(url, registry=registry) as app:
        bad = await app.start(queued, "bad")
        good = await app.start(queued, "good")
        gate("bad").set()
        with pytest.raises(RunFailedError):
            await bad.result()
        await begun("good")

        await bad.retry()
        assert (await bad.why())[0].on == [good.id]
        assert order == ["bad", "good"]
        gate("good").set()

        assert await good.result() == "good"
        with pytest.raises(RunFailedError):
            await bad.result()
        assert order == ["bad", "good", "bad"]


async def test_a_called_workflow_waits_for_its_turn(url: str) -> None:
    async with connect(url, registry=registry) as app:
        first = await app.start(queued, "a")
        await begun("a")
        caller = await app.start(calls, "b", id="caller")
        while not (await app.runs(parent=await caller.key())):
            await asyncio.sleep(0.01)
        assert order == ["a"]

        gate("a").set()
        gate("b").set()

        assert [await first.result(), await caller.result()] == ["a", "b"]


async def test_a_called_run_never_waits_for_its_caller(url: str) -> None:
    async with connect(url, registry=registry) as app:
        run = await app.start(again, 1)

        with pytest.raises(RunFailedError, match="would wait for its caller"):
            await run.result()


async def test_an_explicit_singleton_goes_before_the_declared_one(url: str) -> None:
    async with connect(url, registry=registry) as app:
        first = await app.start(plain, "a", singleton="x")
        second = await app.start(plain, "b", singleton="x", on_conflict="queue")
        third = await app.start(plain, "c", singleton="y")
        await begun("a")
        await begun("c")
        assert "b" not in order

        for name in "abc":
            gate(name).set()

        assert [await run.result() for run in (first, second, third)] == ["a", "b", "c"]


async def test_a_queued_run_survives_all_processes(url: str) -> None:
    if url == "memory://":
        pytest.skip("nothing survives in memory")
    async with connect(url, registry=registry, worker=False) as desk:
        first = await desk.start(queued, "a", id="first")
        await desk.start(queued, "b", id="second")
        await first.cancel()
    gate("b").set()

    async with connect(url, registry=registry) as app:
        assert await app.run("second", str).result() == "b"
        events = [event async for _, _, event in app.run("second").events()]
        assert any(isinstance(event, ev.TurnCame) for event in events)


async def test_the_line_goes_along_when_a_store_is_copied(tmp_path: Path) -> None:
    order.clear()
    gates.clear()
    source, target = f"sqlite:///{tmp_path}/a.db?sync=normal", f"sqlite:///{tmp_path}/b.db?sync=normal"
    async with connect(source, registry=registry, worker=False) as desk:
        for name in "abc":
            await desk.start(queued, name, id=name)
            await desk.start(plain, name, id="night", on_conflict="queue")
        async with connect(target, registry=registry, worker=False) as copy:
            report = await desk.copy_to(copy)
            assert (report.runs, report.differing) == (6, {})
            assert (await desk.copy_to(copy)).differing == {}
    for name in "abc":
        gate(name).set()

    async with connect(target, registry=registry) as app:
        for run, name in (("c", "c"), ("b", "b"), ("a", "a"), ("night#3", "c"), ("night#2", "b"), ("night", "a")):
            assert await app.run(run, str).result() == name


async def test_mistakes_are_told(url: str) -> None:
    with pytest.raises(DefinitionError, match="singleton='host': there is no parameter 'host'; there are url"):

        @workflow(registry=Registry(), singleton="host")
        def wrong(url: str) -> None: ...

    with pytest.raises(DefinitionError, match=r"singleton='a \+' is no parameter's name or expression"):

        @workflow(registry=Registry(), singleton="a +")
        def broken(a: str) -> None: ...

    with pytest.raises(DefinitionError, match="on_conflict='wait': reuse, reject, replace, queue"):

        @workflow(registry=Registry(), on_conflict="wait")  # type: ignore[call-overload]  # what is tested
        def unknown() -> None: ...

    async with connect(url, registry=registry) as app:
        with pytest.raises(DefinitionError, match="on_conflict='wait'"):
            await app.start(plain, "a", on_conflict="wait")  # type: ignore[call-overload]  # what is tested
        with pytest.raises(DefinitionError, match="singleton"):
            await app.start(plain, "a", singleton="")


def test_a_key_that_has_no_value_is_told() -> None:
    @workflow(registry=Registry(), name="single:crawl", singleton="site.host")
    def crawl(site: dict[str, str]) -> str:
        return noop.bind()

    with pytest.raises(SlotError, match="has no value for these arguments"):
        crawl.plan({"name": "x"})
