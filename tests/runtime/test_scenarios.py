"""Scenarios in which the predecessors failed, by their numbers. One that has its test elsewhere is named here.

S-001, S-007, S-008, S-022, X-17 (counters), X-23: `test_cycles`; X-15 and S-012: `test_packages`; S-011, S-013:
`test_step_context`; X-17 (a process that dies every time): `test_processes`; S-023 and X-06: `test_kills` and the
simulation, whose steps run for many times the lease; fencing of zombies by any store (X-07): the store contract.
"""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from pathlib import Path

import pytest

from treadle import DefinitionError, Registry, RunFailedError, connect, step, workflow

registry, others = Registry(), Registry()
free, began = threading.Event(), threading.Event()
calls: Counter[str] = Counter()


@step(registry=registry, name="scene:held")
def held() -> str:
    began.set()
    free.wait(30)
    return "too late"


@step(registry=registry, name="scene:nothing")
async def nothing() -> None:
    calls["nothing"] += 1


@step(registry=registry, name="scene:takes")
async def takes(value: None) -> list[None]:
    return [value]


@step(registry=others, name="scene:elsewhere")
async def elsewhere() -> str:
    return "done by who can"


@step(registry=registry, name="scene:number")
async def number(value: int) -> int:
    return value


@step(registry=registry, name="scene:text")
async def text() -> str:
    return "no number"


@workflow(registry=Registry(), name="scene:holds")
def holds() -> str:
    return held.bind()


@workflow(registry=Registry(), name="scene:nothings")
def nothings() -> list[None]:
    return takes.bind(nothing.bind())


@workflow(registry=Registry(), name="scene:mixed")
def mixed() -> list[object]:
    return [elsewhere.bind(), nothing.bind()]


async def test_an_outcome_after_a_cancel_changes_nothing() -> None:
    """X-07: a zombie that completes after the cancel."""
    async with connect("memory://", registry=registry) as app:
        run = await app.start(holds)
        while not began.is_set():
            await asyncio.sleep(0)
        await run.cancel(hard=True)
        assert (await run.wait(20)).status == "cancelled"
        free.set()
        while app._node.worker.stuck:
            await asyncio.sleep(0)

        assert (await run.row()).status == "cancelled"
        assert "StepSucceeded" not in [type(event).__name__ async for _, _, event in run.events()]


HOSTILE = [
    "x.meta",
    "two words",
    "../../etc/passwd",
    "日本",
    "a/b#2[3]~%",
    "*",
    ">",
    ".",
    "..",
    "'; DROP TABLE runs; --",
]


@pytest.mark.parametrize("kind", ["memory", "sqlite"])
async def test_hostile_ids_are_taken_as_they_are(kind: str, tmp_path: Path) -> None:
    """X-11: ids that were misrouted, or led out of a folder."""
    url = "memory://" if kind == "memory" else f"sqlite:///{tmp_path}/ids.db?sync=normal"

    @workflow(registry=Registry(), name="scene:hostile")
    def hostile() -> list[int]:
        return [number.options(id=id_).bind(index) for index, id_ in enumerate(HOSTILE)]

    async with connect(url, registry=registry) as app:
        for id_ in HOSTILE:
            run = await app.start(hostile, id=id_)
            assert await run.result(20) == list(range(len(HOSTILE)))
            assert run.id == id_
        assert {row.id for row in await app.runs()} == set(HOSTILE)
        with pytest.raises(DefinitionError):
            await app.start(hostile, id="a\x00b")


async def test_a_step_that_returns_nothing_has_the_result_null() -> None:
    """X-14: awaited, and referred to."""
    async with connect("memory://", registry=registry) as app:
        run = await app.start(nothings)

        assert await run.result(20) == [None]
        assert await run.step("nothing") is None


async def test_a_worker_without_a_step_leaves_it_to_one_that_has_it(tmp_path: Path) -> None:
    """X-22: two workers on one store, neither of which has all steps."""
    url = f"sqlite:///{tmp_path}/two.db?sync=normal"
    async with connect(url, registry=registry, worker_id="one") as one:
        run = await one.start(mixed)
        assert await run.step("nothing", timeout=20) is None
        assert (await run.row()).status == "running"
        assert "no_worker" in [reason.code for reason in await run.why("elsewhere")]

        async with connect(url, registry=others, worker_id="two"):
            assert await run.result(20) == ["done by who can", None]
        attempts = [(step.address, step.attempt) for step in (await run.inspect()).steps]

    assert ("elsewhere", 1) in attempts


async def test_an_argument_of_another_type_fails_the_step_and_is_not_tried_again() -> None:
    """S-014: the input does not fit the step's type."""

    @step(registry=registry, name="scene:untyped")
    async def untyped():
        return "no number"

    @workflow(registry=Registry(), name="scene:misfit")
    def misfit() -> int:
        return number.options(retry=5).bind(untyped.bind())

    async with connect("memory://", registry=registry) as app:
        run = await app.start(misfit)
        with pytest.raises(RunFailedError, match="type_mismatch"):
            await run.result(20)
        assert [(view.code, view.attempt) for view in (await run.inspect()).failures] == [("type_mismatch", 1)]
