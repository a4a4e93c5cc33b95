"""Cycles: true counters, one at a time, for somebody else's loop; with a clock that stands still between them."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from treadle import (
    App,
    Cycle,
    DefinitionErrors,
    Package,
    Permanent,
    Registry,
    Retry,
    Retryable,
    RetryLater,
    StepFailedError,
    UsageError,
    connect,
    context,
    describe_run,
    sleep,
    step,
    workflow,
)
from treadle.errors import LeaseLostError, StoreError, StoreUnavailableError
from treadle.runtime import cycles
from treadle.runtime.cycles import Cycles
from treadle.runtime.engine import Engine
from treadle.testing import ManualClock

registry = Registry()


@pytest.fixture(params=["memory", "sqlite"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return "memory://" if request.param == "memory" else f"sqlite:///{tmp_path}/cycles.db?sync=normal"


def flow(function: Any) -> Any:
    return workflow(registry=Registry(), name=f"cyc:{function.__name__}")(function)


@asynccontextmanager
async def driven(url: str, clock: ManualClock | None = None, **options: Any) -> AsyncGenerator[App, None]:
    async with connect(
        url, registry=options.pop("registry", registry), worker="cycles", clock=clock or ManualClock(), **options
    ) as app:
        yield app


def counts(cycle: Cycle) -> tuple[int, int, int, int, int]:
    return cycle.processed, cycle.succeeded, cycle.retried, cycle.failed, cycle.runs


@step(registry=registry, name="cyc:one")
def one(value: int) -> int:
    return value


@step(registry=registry, name="cyc:flaky", retry=Retry(attempts=3, initial=1, backoff="fixed"))
async def flaky(fails: int) -> int:
    if context().attempt <= fails:
        raise Retryable("not yet", code="busy")
    return context().attempt


@step(registry=registry, name="cyc:final")
async def final() -> None:
    raise Permanent("no", code="never")


@step(registry=registry, name="cyc:child")
async def child(name: str) -> dict[str, str]:
    return {"child": name}


greeting = Package("greeting", title="Greeting")


@greeting.step
async def greet(name: str) -> dict[str, str]:
    context().add(child.options(id="child").bind(name))
    return {"message": "hello"}


@greeting.entrypoint
def hello(name: str) -> dict[str, str]:
    describe_run(metadata={"name": name})
    return greet.options(id="root").bind(name)


async def test_a_cycle_executes_a_step_and_what_it_adds_and_the_next_one_nothing(url: str) -> None:
    """S-001: a package with one step that emits a child."""
    async with driven(url, packages=[greeting]) as app:
        run = await app.start("greeting", "ada")

        first, second = await app.run_once(limit=2), await app.run_once(limit=2)

        assert counts(first) == (2, 2, 0, 0, 1)
        assert counts(second) == (0, 0, 0, 0, 0)
        assert await run.step("root") == {"message": "hello"}
        assert await run.step("root/child") == {"child": "ada"}
        row = await run.row()
        assert (row.status, row.workflow, row.name, row.metadata) == (
            "succeeded",
            "greeting/hello",
            "Greeting",
            {"name": "ada"},
        )


async def test_a_step_that_failed_for_good_is_retried_by_an_operator(url: str) -> None:
    """S-007: RetryStep after a permanent failure."""
    own = Registry()

    @step(registry=own, name="cyc:second-try")
    async def second_try() -> dict[str, int]:
        if context().attempt == 1:
            raise Permanent("not this time", code="first")
        return {"attempts": context().attempt}

    @flow
    def tries() -> dict[str, int]:
        return second_try.bind()

    async with driven(url, registry=own) as app:
        run = await app.start(tries)
        assert counts(await app.run_once()) == (1, 0, 0, 1, 1)
        with pytest.raises(StepFailedError) as error:
            await run.step("second_try")
        assert error.value.kind == "first"

        await run.retry("second_try")
        assert counts(await app.run_once()) == (1, 1, 0, 0, 1)
        assert await run.result(5) == {"attempts": 2}


async def test_a_run_that_is_cancelled_before_it_is_executed_is_never_executed(url: str) -> None:
    """S-008: CancelRun before execution."""

    @flow
    def never() -> int:
        return one.bind(1)

    async with driven(url) as app:
        run = await app.start(never)
        await run.cancel()

        assert counts(await app.run_once())[0] == 0
        assert (await run.row()).status == "cancelled"


async def test_a_retry_waits_for_its_delay_by_the_clock(url: str) -> None:
    """S-022: a retryable failure, fixed 1 s, three attempts."""
    clock = ManualClock()

    @flow
    def retries() -> int:
        return flaky.bind(1)

    async with driven(url, clock) as app:
        run = await app.start(retries)
        first = await app.run_once()
        assert counts(first) == (1, 0, 1, 0, 0)
        assert first.due_at == clock.now() + 1.0

        clock.advance(0.5)
        assert counts(await app.run_once()) == (0, 0, 0, 0, 0)

        clock.advance(2.0)
        assert counts(await app.run_once()) == (1, 1, 0, 0, 1)
        assert await run.result(5) == 2


async def test_the_counters_equal_what_happened(url: str) -> None:
    """X-23: forty steps of every kind, compared with the journal."""
    clock = ManualClock()

    @flow
    def mixed() -> None:
        for number in range(10):
            one.options(id=f"one {number}").bind(number)
            flaky.options(id=f"flaky {number}").bind(number % 3)
            flaky.options(id=f"lost {number}", optional=True).bind(5)
            final.options(id=f"final {number}", optional=True).bind()

    async with driven(url, clock) as app:
        run = await app.start(mixed)
        total = Cycle()
        for _ in range(4):
            total += await app.run_once()
            clock.advance(1.0)
        kinds = [type(event).__name__ async for _, _, event in run.events()]

    assert total.succeeded == kinds.count("StepSucceeded") == 20
    assert total.retried == kinds.count("AttemptFailed")
    assert total.failed == kinds.count("StepFailed") == 20
    assert total.processed == total.succeeded + total.retried + total.failed
    assert total.runs == 1


async def test_counters_are_true_where_another_process_decides_the_run(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/two.db?sync=normal"

    @flow
    def elsewhere() -> None:
        one.bind(1)
        final.options(optional=True).bind()
        flaky.options(optional=True).bind(1)

    async with (
        connect(url, registry=registry, worker=False) as desk,
        connect(url, registry=registry, worker="cycles") as app,
    ):
        await desk.start(elsewhere)

        cycle = await app.run_once()

    assert counts(cycle)[:4] == (3, 1, 1, 1)


async def test_a_limit_holds_over_a_chain_and_a_fan(url: str) -> None:
    @flow
    def wide() -> int:
        fan = [one.options(id=f"fan {number}").bind(number) for number in range(5)]
        return one.options(id="last", after=fan).bind(9)

    async with driven(url) as app:
        run = await app.start(wide)

        assert [counts(await app.run_once(limit=2))[0] for _ in range(4)] == [2, 2, 2, 0]
        assert await run.result(5) == 9


async def test_nothing_is_executed_between_two_cycles(url: str) -> None:
    @flow
    def waits() -> int:
        return one.bind(1)

    async with driven(url) as app:
        run = await app.start(waits)
        assert (await run.row()).leased == 0
        with pytest.raises(TimeoutError):
            await run.wait(timeout=0.02)
        assert (await run.inspect()).steps[0].shown == "dispatched"

        await app.run_once()
        assert await run.result(5) == 1


async def test_work_ends_when_nothing_is_due_or_waits_as_long_as_it_is_told(tmp_path: Path) -> None:
    @flow
    def short() -> int:
        return flaky.options(retry=Retry(attempts=3, initial=0.02)).bind(2)

    @flow
    def long() -> None:
        sleep.bind("3d")

    async with connect(f"sqlite:///{tmp_path}/w.db?sync=normal", registry=registry, worker="cycles") as app:
        run, other = await app.start(short), await app.start(long)

        assert counts(await app.work(max_cycles=1)) == (1, 0, 1, 0, 0)
        done = await app.work(until_idle="10s")

        assert (done.retried, done.succeeded) == (1, 1)
        assert await run.result(5) == 3
        assert (await other.row()).status == "running"
        assert counts(await app.work(until_idle=True)) == (0, 0, 0, 0, 0)


async def test_work_takes_up_what_comes_while_it_waits(tmp_path: Path) -> None:
    @flow
    def late() -> int:
        return one.bind(5)

    async with connect(f"sqlite:///{tmp_path}/w.db?sync=normal", registry=registry, worker="cycles") as app:
        working = asyncio.ensure_future(app.work())
        await asyncio.sleep(0)
        run = await app.start(late)

        assert await run.result(10) == 5
        working.cancel()
        await asyncio.wait([working])


def test_a_plain_program_drives_it_from_its_own_loop() -> None:
    @flow
    def plain() -> int:
        return one.bind(7)

    with connect("memory://", registry=registry, worker="cycles") as app:
        run = app.start(plain)
        done = 0
        while cycle := app.run_once(limit=1):
            done += cycle.processed
            if not cycle.processed:
                break
        assert done == 1
        assert run.result(5) == 7
        assert app.work(until_idle=True).processed == 0


async def test_only_an_application_that_was_opened_for_it_has_cycles() -> None:
    async with connect("memory://", registry=registry) as app:
        with pytest.raises(UsageError, match='worker="cycles"'):
            await app.run_once()
    async with driven("memory://") as app:
        with pytest.raises(UsageError, match="from 1"):
            await app.run_once(limit=0)


async def test_a_later_retry_is_counted_as_one(url: str) -> None:
    own = Registry()

    @step(registry=own, name="cyc:later")
    def later() -> int:
        if context().attempt == 1:
            raise RetryLater("5s", code="wait")
        return 1

    @flow
    def is_later() -> int:
        return later.bind()

    clock = ManualClock()
    async with driven(url, clock, registry=own) as app:
        await app.start(is_later)
        cycle = await app.run_once()
        assert (cycle.retried, cycle.due_at) == (1, clock.now() + 5)
        clock.advance(5)
        assert (await app.run_once()).succeeded == 1


async def test_a_cycle_that_is_given_up_while_it_claims_leaves_what_it_claimed_to_the_next_one(url: str) -> None:
    @flow
    def given_up() -> int:
        return one.bind(4)

    async with driven(url) as app:
        run = await app.start(given_up)
        cycle = asyncio.ensure_future(app.run_once())
        while not app._node.claiming:
            await asyncio.sleep(0)
        cycle.cancel()
        await asyncio.wait([cycle])

        async with asyncio.timeout(5):
            assert counts(await app.run_once()) == (1, 1, 0, 0, 1)
        assert await run.result(5) == 4


async def test_a_cycle_leaves_the_loop_alone_while_the_engine_waits_for_the_store(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    is_busy = True
    looks = 0

    def look(_self: Engine) -> bool:
        nonlocal looks
        looks += 1
        return is_busy

    async with driven("memory://") as app:
        monkeypatch.setattr(Engine, "busy", property(look))
        cycle = asyncio.ensure_future(app.run_once())
        for _ in range(1000):
            await asyncio.sleep(0)
        is_busy = False
        await cycle

    # Not each time that the loop goes round.
    assert 1 <= looks < 50


async def test_work_goes_on_when_the_store_was_away(monkeypatch: pytest.MonkeyPatch) -> None:
    run = Cycles.run
    failures: list[StoreError] = [StoreUnavailableError("away"), LeaseLostError("lost")]

    async def unsteady(self: Cycles, limit: int | None) -> Cycle:
        if failures:
            raise failures.pop()
        return await run(self, limit)

    monkeypatch.setattr(cycles, "RETRY_SECONDS", 0.001)
    monkeypatch.setattr(Cycles, "run", unsteady)

    @flow
    def away() -> int:
        return one.bind(1)

    async with driven("memory://") as app:
        await app.start(away)
        assert counts(await app.work(until_idle=True)) == (1, 1, 0, 0, 1)


# -- serving -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("worker", [True, "cycles"])
async def test_serving_ends_in_order_when_it_is_told_to(worker: Any) -> None:
    began, free = threading.Event(), threading.Event()
    own = Registry()

    @step(registry=own, name="cyc:held")
    def held() -> str:
        began.set()
        free.wait(20)
        return "finished"

    @flow
    def holds() -> str:
        return held.bind()

    stop = asyncio.Event()
    async with connect("memory://", registry=own, worker=worker) as app:
        run = await app.start(holds)
        serving = asyncio.ensure_future(app.serve(grace=20, stop=stop))
        while not began.is_set():
            await asyncio.sleep(0)
        stop.set()
        await asyncio.sleep(0)
        assert not serving.done()
        free.set()

        assert await asyncio.wait_for(serving, 20)
        assert await run.result(5) == "finished"


async def test_serving_tells_of_steps_that_outlive_the_grace() -> None:
    own, free = Registry(), threading.Event()

    @step(registry=own, name="cyc:stubborn")
    def stubborn() -> None:
        free.wait(20)

    @flow
    def is_stubborn() -> None:
        stubborn.bind()

    stop = asyncio.Event()
    stop.set()
    async with connect("memory://", registry=own) as app:
        await app.start(is_stubborn)
        while not app._node.worker.active:
            await asyncio.sleep(0)
        assert await app.serve(grace=0.01, stop=stop) is False
        free.set()


# -- mistakes ------------------------------------------------------------------------------------------------------


def test_a_package_without_entrypoint_and_a_step_registered_twice_are_told_together() -> None:
    """S-012, and the mistakes of B4.2."""
    twice = Package("twice")

    @twice.step(name="same")
    def one_of_them() -> None: ...

    @twice.step(name="same")
    def other() -> None: ...

    with pytest.raises(DefinitionErrors) as error:
        connect("memory://", packages=[twice])
    assert len(error.value.exceptions) == 2
