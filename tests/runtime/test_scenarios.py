"""Scenarios in which the predecessors failed, by their numbers. One that has its test elsewhere is named here.

S-001, S-007, S-008, S-022, X-17 (counters), X-23: `test_cycles`; X-15 and S-012: `test_packages`; S-011, S-013:
`test_step_context`; X-17 (a process that dies every time): `test_processes`; S-023 and X-06: `test_kills` and the
simulation, whose steps run for many times the lease; fencing of zombies by any store (X-07): the store contract.
S-005, S-010: `test_artifacts`; S-006: `test_projections`; S-030: `test_upgrades`; S-032 to S-034: `contract_limits`;
S-038: `test_queues`; S-039: `test_inspection`; X-02 and X-03: the simulation (crashes and conflicts at each commit);
X-09: `tests/core/test_reopening`; X-10: `tests/authoring/test_drafts`; X-13: `tests/core/test_placement`; X-18 and
X-25: `test_limits_soak` and `tests/simulation/test_simulated_limits`.
"""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from pathlib import Path

import pytest

from treadle import DefinitionError, Queue, Registry, RunFailedError, StepNotFoundError, connect, step, workflow
from treadle.testing import ManualClock

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


async def test_the_view_of_a_step_tells_what_it_gave_is_empty_before_and_is_none_of_an_unknown_step() -> None:
    """S-041: done, pending and unknown; while a run goes on, a step of any name may still be added."""

    @workflow(registry=Registry(), name="scene:views")
    def views() -> list[int]:
        return [number.options(id="done").bind(1), number.options(id="waits", signals=["go"]).bind(2)]

    async with connect("memory://", registry=registry) as app:
        run = await app.start(views)
        assert await run.step("done", timeout=20) == 1

        done, waits = await run.outcome("done"), await run.outcome("waits")
        assert (done.status, done.value, done.failure) == ("succeeded", 1, None)
        assert (waits.status, waits.value, waits.failure) == ("", None, None)
        await run.signal("go")
        assert await run.result(20) == [1, 2]
        with pytest.raises(StepNotFoundError, match="unknown"):
            await run.outcome("unknown")


# -- queues -----------------------------------------------------------------------------------------------------------

live: Counter[str] = Counter()


@step(registry=registry, name="scene:queued", queue="narrow")
async def queued(value: int) -> int:
    live["now"] += 1
    live["most"] = max(live["most"], live["now"])
    for _ in range(3):
        await asyncio.sleep(0)
    live["now"] -= 1
    return value


@workflow(registry=Registry(), name="scene:queue")
def queue_of(count: int) -> list[int]:
    return [queued.options(id=f"q{value}").bind(value) for value in range(count)]


@pytest.mark.parametrize("most", [1, 2])
async def test_cycles_start_no_more_of_a_queue_than_it_may_have_at_a_time(most: int) -> None:
    """S-024 and S-025: where the former engine left the rest to the next cycle, ours goes on as room is made."""
    live.clear()
    queues = [Queue("narrow", concurrency=most)]
    async with connect("memory://", registry=registry, worker="cycles", clock=ManualClock(), queues=queues) as app:
        run = await app.start(queue_of, 3)

        assert (await app.run_once(limit=most)).processed == most
        assert (await app.run_once()).processed == 3 - most
        assert await run.result(20) == [0, 1, 2]

    assert live["most"] == most


async def test_a_rate_is_kept_by_the_clock_and_says_when_the_next_may_start() -> None:
    """S-026: two a second, one at once."""
    clock = ManualClock()
    queues = [Queue("narrow", rate="2/s", burst=1)]
    async with connect("memory://", registry=registry, worker="cycles", clock=clock, queues=queues) as app:
        run = await app.start(queue_of, 2)

        assert (await app.run_once()).processed == 1
        waits = await app.run_once()
        assert (waits.processed, waits.due_at) == (0, clock.now() + 0.5)
        assert "queue_rate" in [reason.code for reason in await run.why("q1")]
        clock.advance(0.5)
        assert (await app.run_once()).processed == 1
        assert await run.result(20) == [0, 1]


async def test_a_limited_queue_among_ten_costs_no_slot_and_starves_nobody() -> None:
    """X-19: ten queues of ready steps, four slots, and one queue whose rate is used up."""

    @workflow(registry=Registry(), name="scene:ten")
    def ten() -> list[int]:
        return [
            queued.options(id=f"q{queue}-{value}", queue=f"queue {queue}").bind(value)
            for value in range(3)
            for queue in range(10)
        ]

    clock = ManualClock()
    queues = [Queue("queue 0", rate="1/h", burst=1)]
    async with connect(
        "memory://", registry=registry, worker="cycles", clock=clock, queues=queues, slots=4, threads=1
    ) as app:
        run = await app.start(ten)

        assert (await app.run_once()).succeeded == 28
        left = [view.address for view in (await run.inspect()).steps if view.shown != "succeeded"]
        assert left == ["q0-1", "q0-2"]
        clock.advance(3600.0)
        assert (await app.run_once()).succeeded == 1
