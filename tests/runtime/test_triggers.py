"""Triggers of workflows that collect them: one run a window, none lost, none counted twice."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.stores_kit import empty_store, kinds

from treadle import (
    Batch,
    Debounce,
    DefinitionError,
    Registry,
    RunFailedError,
    SlotError,
    connect,
    step,
    workflow,
)
from treadle.runtime.client import App

registry = Registry()
seen: list[object] = []


@pytest.fixture(params=kinds("memory", "sqlite", "postgres", "nats"))
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    seen.clear()
    with empty_store(request, tmp_path) as url:
        yield url


@step(registry=registry, name="trigger:build")
async def build(site: str, version: int, note: str) -> str:
    seen.append((site, version))
    return f"{site} {version} {note[:5]}"


@workflow(registry=registry, name="trigger:publish", triggers=Debounce("300ms", timeout="30s", key="site"))
def publish(site: str, version: int, note: str = "none") -> str:
    return build.bind(site, version, note)


@step(registry=registry, name="trigger:load")
async def load(rows: list[int]) -> list[int]:
    seen.append(list(rows))
    return rows


@workflow(registry=registry, name="trigger:insert", triggers=Batch(3, "300ms"))
def insert(rows: list[int]) -> list[int]:
    return load.bind(rows)


@workflow(registry=registry, name="trigger:never", triggers=Batch(1000, "1h", key="item % 2"))
def never(rows: list[int]) -> list[int]:
    return load.bind(rows)


async def calls(app: App, name: str) -> int:
    """How many runs of a workflow there are."""
    return len(await app.runs(workflow=name, limit=1000))


async def test_the_last_trigger_of_a_window_counts(url: str) -> None:
    async with connect(url, registry=registry) as app:
        runs = [await app.trigger(publish, "shop", version, note="n" * 5000) for version in range(5)]
        other = await app.trigger(publish, "blog", 1)

        assert len({run.id for run in runs}) == 1
        assert await runs[0].result() == "shop 4 nnnnn"
        assert await other.result() == "blog 1 none"
        assert sorted(map(str, seen)) == ["('blog', 1)", "('shop', 4)"]
        assert await calls(app, "trigger:publish") == 2

        late = await app.trigger(publish, "shop", 9)
        assert late.id != runs[0].id
        assert await late.result() == "shop 9 none"


async def test_a_batch_is_full_or_its_time_is_over(url: str) -> None:
    async with connect(url, registry=registry) as app:
        runs = [await app.trigger(insert, number) for number in range(7)]

        assert [await run.result() for run in runs[::3]] == [[0, 1, 2], [3, 4, 5], [6]]
        assert await calls(app, "trigger:insert") == 3
        assert await (await app.start(insert, [8, 9])).result() == [8, 9]


async def test_triggers_that_come_at_once_lose_none(url: str) -> None:
    async with connect(url, registry=registry) as app:
        runs = await asyncio.gather(*[app.trigger(insert, number) for number in range(20)])

        for run in {run.id: run for run in runs}.values():
            await run.result()
        assert sorted(number for rows in seen for number in rows) == list(range(20))  # type: ignore[attr-defined]  # lists


async def test_a_named_trigger_counts_once_also_after_its_window(url: str) -> None:
    async with connect(url, registry=registry) as app:
        first = await app.trigger(insert, 1, id="one")
        assert (await app.trigger(insert, 1, id="one")).id == first.id
        second = await app.trigger(insert, 2, id="two")
        assert second.id == first.id
        assert await first.result() == [1, 2]

        assert (await app.trigger(insert, 1, id="one")).id == first.id
        assert (await app.trigger(insert, 2, id="two")).id == first.id
        assert await calls(app, "trigger:insert") == 1


async def test_a_window_survives_all_processes(url: str) -> None:
    if url == "memory://":
        pytest.skip("nothing survives in memory")
    async with connect(url, registry=registry, worker=False) as desk:
        await desk.trigger(insert, 1)
        run = await desk.trigger(insert, 2)

    async with connect(url, registry=registry) as app:
        assert await app.run(run.id, list[int]).result() == [1, 2]


async def test_a_cancelled_window_lets_the_next_trigger_open_another(url: str) -> None:
    async with connect(url, registry=registry) as app:
        first = await app.trigger(never, 1)
        await first.cancel()
        assert (await first.wait()).status == "cancelled"

        second = await app.trigger(never, 1)
        third = await app.trigger(never, 2)

        assert len({first.id, second.id, third.id}) == 3
        assert any(reason.code == "delay" for reason in await second.why())
        assert seen == []


async def test_the_trigger_that_opens_a_window_says_what_the_run_is(url: str) -> None:
    async with connect(url, registry=registry) as app:
        about = {"labels": {"team": "web"}, "metadata": {"why": "deploy"}, "deadline": "1h"}
        first = await app.trigger(publish, "shop", 1, **about)  # type: ignore[arg-type]  # each has its type
        await app.trigger(publish, "shop", 2, labels={"team": "other"})
        assert await first.result() == "shop 2 none"

        (window,) = await app.runs(labels={"team": "web"}, workflow="trigger:publish~window")
        (run,) = await app.runs(labels={"team": "web"}, workflow="trigger:publish")
        assert (window.id, window.metadata, run.metadata) == (first.id, {"why": "deploy"}, {})
        deadlines = [(await app.run(id).load()).head.deadline for id in (window.id, run.id)]
        assert deadlines == [pytest.approx(window.created_at + 3600, abs=5)] * 2
        late = await app.trigger(publish, "shop", 3, deadline="1ms")
        with pytest.raises(RunFailedError, match="deadline"):
            await late.result()
        # It was closed before it was open, and is in nobody's way.
        assert await (await app.trigger(publish, "shop", 4)).result() == "shop 4 none"
        with pytest.raises(DefinitionError, match="labels="):
            await app.trigger(publish, "shop", 3, labels={"a": 1})  # type: ignore[dict-item]  # wrong on purpose


async def test_mistakes_are_told(url: str) -> None:
    other = Registry()
    with pytest.raises(DefinitionError, match="size=1"):
        workflow(registry=other, name="a", triggers=Batch(1, "1s"))(lambda items: None)
    with pytest.raises(DefinitionError, match="period='0s': a duration above zero"):
        workflow(registry=other, name="b", triggers=Debounce("0s"))(lambda items: None)
    with pytest.raises(DefinitionError, match="as its one parameter, and it has 2"):
        workflow(registry=other, name="c", triggers=Batch(2, "1s"))(lambda a, b: None)
    with pytest.raises(DefinitionError, match="there is no parameter 'host'"):
        workflow(registry=other, name="d", triggers=Debounce("1s", key="host"))(lambda url: None)
    with pytest.raises(DefinitionError, match="there is no parameter 'rows'; there are item"):
        workflow(registry=other, name="e", triggers=Batch(2, "1s", key="rows"))(lambda rows: None)
    async with connect(url, registry=registry) as app:
        with pytest.raises(SlotError, match="argument 'version'"):
            await app.trigger(publish, "shop", "new")
        with pytest.raises(SlotError, match="an item of 'rows'"):
            await app.trigger(insert, "one")
        with pytest.raises(DefinitionError, match="collects no triggers"):
            await app.trigger(plain, "a")


@workflow(registry=registry, name="trigger:plain")
def plain(name: str) -> str:
    return build.bind(name, 1, "")
