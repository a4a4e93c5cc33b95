"""Steps that wait: for a probe, for a time, on both stores."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from treadle import (
    App,
    DefinitionError,
    PlanBuilder,
    Poll,
    Retry,
    Run,
    RunCancelledError,
    StepCancelledError,
    StepFailedError,
    UsageError,
    connect,
    context,
    sleep,
    step,
    workflow,
)
from treadle.authoring.registry import default_registry
from treadle.runtime.inspection import StepView

probes: list[tuple[int, int]] = []
gates: dict[str, asyncio.Event] = {}


@pytest.fixture(params=["memory", "sqlite"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    probes.clear()
    gates.clear()
    return "memory://" if request.param == "memory" else f"sqlite:///{tmp_path}/app.db?sync=normal"


def gate(name: str) -> asyncio.Event:
    return gates.setdefault(name, asyncio.Event())


@step(name="waiting:ready")
async def ready(after: int) -> str | None:
    probes.append((context().attempt, context().probe))
    return "ready" if context().probe >= after else None


@step(name="waiting:ready_in_thread")
def ready_in_thread(after: int) -> list[int]:
    probes.append((context().attempt, context().probe))
    return list(range(context().probe - after + 1))


@step(name="waiting:flaky", retry=Retry(attempts=2, initial=0))
async def flaky() -> bool:
    probes.append((context().attempt, context().probe))
    if context().probe == 2:
        raise RuntimeError("the probe itself broke")
    return context().attempt > 1


@step(name="waiting:slow")
async def slow() -> bool:
    """Says when it was asked, and answers "not yet" when it is told to."""
    gate("asked").set()
    await gate("answer").wait()
    return False


@step(name="waiting:quick")
async def quick() -> str:
    return "done"


@workflow(name="waiting:async")
def waits(after: int, timeout: float) -> str | None:
    return ready.wait_until("2ms", timeout=timeout).bind(after)


@workflow(name="waiting:thread")
def waits_in_thread(after: int) -> list[int]:
    return ready_in_thread.wait_until("2ms").bind(after)


@workflow(name="waiting:flaky-flow")
def waits_flaky() -> bool:
    return flaky.wait_until("2ms").bind()


@workflow(name="waiting:slow-flow")
def waits_slow(interval: float) -> str:
    return quick.options(after=slow.wait_until(interval).bind()).bind()


@pytest.mark.parametrize("threads", [False, True])
async def test_a_probe_is_asked_until_it_is_true(url: str, threads: bool) -> None:
    async with connect(url) as app:
        run: Run[Any] = await app.start(waits_in_thread.plan(3) if threads else waits.plan(3, 60))

        assert await run.result() == ([0] if threads else "ready")

        assert probes == [(1, 1), (1, 2), (1, 3)]
        kinds = [type(event).__name__ async for _, _, event in run.events()]
        assert kinds == ["RunStarted", "StepDispatched", "StepSucceeded", "RunSettled"]


async def test_a_probe_that_is_never_true_times_out_after_a_last_look(url: str) -> None:
    async with connect(url) as app:
        run = await app.start(waits, 10**9, 0.2)

        with pytest.raises(StepFailedError, match="not true in time") as caught:
            await run.step("ready")

        assert caught.value.kind == "timeout"
        assert len(probes) >= 2


async def test_a_probe_that_raises_follows_the_retry_policy(url: str) -> None:
    async with connect(url) as app:
        assert await (await app.start(waits_flaky)).result() is True

    assert probes == [(1, 1), (1, 2), (2, 1)]


async def view_of(app: App, run: Run[Any], name: str) -> StepView:
    view = (await run.inspect()).step(name)
    assert view is not None
    return view


async def postponed(app: App, run: Run[Any], name: str) -> StepView:
    """The step's view, as soon as its task waits for the next probe."""
    async for _ in run.changes():
        view = await view_of(app, run, name)
        if view.probes and view.not_before is not None:
            return view
        await asyncio.sleep(0)
    raise AssertionError("unreachable")


async def test_between_two_probes_no_slot_is_held_and_the_next_one_is_explained(url: str) -> None:
    async with connect(url, slots=1) as app:
        run = await app.start(waits_slow, 3600)
        await gate("asked").wait()
        gate("answer").set()
        # Only one slot: this runs once the probe has given it back.
        other = await app.start(waits, 1, 60)
        assert await other.result() == "ready"

        view = await view_of(app, run, "slow")
        reasons = [reason for reason in await run.why("slow") if reason.tense == "now"]

        assert (view.status, view.shown, view.probes, view.attempt) == ("dispatched", "dispatched", 1, 1)
        assert [reason.code for reason in reasons] == ["probe"]
        assert "waits for its next probe at" in reasons[0].message
        assert "1 probe said not yet" in reasons[0].message


async def test_a_cancel_ends_a_step_that_waits_for_its_next_probe(url: str) -> None:
    async with connect(url) as app:
        run = await app.start(waits_slow, 3600)
        await gate("asked").wait()
        gate("answer").set()
        assert await (await app.start(waits, 1, 60)).result() == "ready"

        await run.cancel()

        with pytest.raises(RunCancelledError):
            await run.result(timeout=10)


@pytest.mark.parametrize("hard", [False, True])
async def test_a_cancel_during_a_probe_lets_it_end_and_nothing_follow(url: str, hard: bool) -> None:
    async with connect(url) as app:
        run = await app.start(waits_slow, 0.001)
        await gate("asked").wait()

        await run.cancel(hard=hard)
        gate("answer").set()

        with pytest.raises(RunCancelledError):
            await run.result(timeout=10)
        with pytest.raises(StepCancelledError):
            await run.step("slow")


async def test_a_pause_stops_the_probes_and_a_resume_lets_them_go_on(url: str) -> None:
    async with connect(url) as app:
        run = await app.start(waits_slow, 0.001)
        await gate("asked").wait()
        await run.pause()
        gate("answer").set()
        assert await (await app.start(waits, 1, 60)).result() == "ready"
        gate("asked").clear()
        assert (await run.inspect()).status in ("paused", "pausing")

        await run.resume()

        await gate("asked").wait()
        await run.cancel(hard=True)


async def test_a_process_that_ends_leaves_the_next_probe_to_others(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/app.db"
    probes.clear()
    async with connect(url) as app:
        run = await app.start(waits, 3, 3600, id="r")
        async for _ in run.changes():
            if probes:
                break

    async with connect(url) as app:
        assert await app.run("r").result() == "ready"

    assert probes[-1][1] == 3
    assert [probe for _, probe in probes] == sorted(probe for _, probe in probes)


@pytest.mark.parametrize(
    ("poll", "complaint"),
    [
        (Poll(0), "without a pause"),
        (Poll(-1), "not a positive length"),
        (Poll("soon"), "no duration"),
        (Poll(1, 0), "over before the first probe"),
        ("1s", "give Poll"),
    ],
)
def test_a_poll_that_makes_no_sense_is_refused(poll: Poll, complaint: str) -> None:
    @workflow(name="waiting:wrong")
    def wrong() -> str | None:
        return ready.options(poll=poll).bind(1)

    try:
        with pytest.raises(Exception, match=complaint):
            wrong.plan()
    finally:
        default_registry.remove(wrong.definition)


def test_wait_until_is_short_for_the_option() -> None:
    assert ready.wait_until("2s", timeout=9).chosen.fields == ready.options(poll=Poll(2, "9s")).chosen.fields
    assert ready.options(poll=None).chosen.fields == {"poll": None}


# -- times -------------------------------------------------------------------------------------------------------------


@step(name="waiting:length")
def length(text: str) -> str:
    return text


@workflow(name="waiting:sleeps")
def sleeps(seconds: str) -> str:
    planned = sleep.bind(length.bind(seconds))
    return quick.options(after=sleep.options(after=planned).bind("1ms")).bind()


@workflow(name="waiting:sleeps-long")
def sleeps_long() -> str:
    return quick.options(after=sleep.bind("3d")).bind()


@workflow(name="waiting:plain")
def plain() -> str:
    return quick.options(delay="1h").bind()


async def test_a_sleep_is_over_after_its_time(url: str) -> None:
    async with connect(url) as app:
        run = await app.start(sleeps, "20ms")

        assert await run.result(timeout=30) == "done"

        views = {view.address: view for view in (await run.inspect()).steps}
        assert (views["sleep"].action, views["sleep"].attempt, views["sleep"].result) == ("treadle:sleep", 1, "=null")
        end = views["sleep"].finished_at
        assert end is not None
        assert end - (views["sleep"].ready_at or end) >= 0.02


async def test_a_sleep_that_is_no_duration_fails(url: str) -> None:
    async with connect(url) as app:
        run = await app.start(sleeps, "soon")

        with pytest.raises(StepFailedError, match="no duration"):
            await run.step("sleep")


def test_a_sleep_that_is_certainly_no_duration_is_refused_when_it_is_planned() -> None:
    builder = PlanBuilder("p")
    with builder:
        sleep.bind("soon")

    with pytest.raises(DefinitionError, match="no duration"):
        builder.build()


async def test_a_sleep_ends_while_all_slots_are_taken(url: str) -> None:
    async with connect(url, slots=1) as app:
        run = await app.start(sleeps_until_full)
        await gate("asked").wait()

        assert await run.step("sleep", timeout=30) is None

        gate("answer").set()
        await run.cancel(hard=True)


@workflow(name="waiting:full")
def sleeps_until_full() -> None:
    sleep.bind("50ms")
    slow.bind()


async def test_a_sleeping_step_is_explained_and_cancelled(url: str) -> None:
    async with connect(url) as app:
        run = await app.start(sleeps_long)

        (reason,) = [one for one in await run.why("sleep") if one.tense == "now"]
        await run.cancel()

        assert reason.code == "delay"
        assert reason.until is not None
        with pytest.raises(RunCancelledError):
            await run.result(timeout=10)


async def test_a_plain_sleep_is_a_wait() -> None:
    began = asyncio.get_running_loop().time()

    await sleep("5ms")

    assert asyncio.get_running_loop().time() - began >= 0.004


async def test_a_run_with_a_delay_starts_its_steps_later(url: str) -> None:
    async with connect(url) as app:
        run = await app.start(waits, 1, 60, delay="50ms")
        again = await app.start(waits, 1, 60, id="later", run_at=datetime.now(UTC) + timedelta(days=1))

        assert await run.result(timeout=30) == "ready"

        view = await view_of(app, run, "ready")
        assert view.started_at is not None
        head = (await run.load()).head
        assert head.created_at < head.not_before <= view.started_at
        assert [reason.code for reason in await again.why("ready")] == ["delay", "added", "dispatched"]
        assert (await app.start(waits, 1, 60, id="later")).id == "later"
        await again.cancel()
        with pytest.raises(RunCancelledError):
            await again.result(timeout=10)


async def test_wrong_start_times_are_refused() -> None:
    async with connect("memory://") as app:
        with pytest.raises(UsageError, match="exclude each other"):
            await app.start(plain, delay=1, run_at=datetime.now(UTC))
        with pytest.raises(UsageError, match="no time zone"):
            await app.start(plain, run_at=datetime(2030, 1, 1))  # noqa: DTZ001 - that is the mistake
        with pytest.raises(DefinitionError, match="no duration"):
            await app.start(plain, delay="soon")
        run = await app.start(plain, run_at=datetime(2001, 1, 1, tzinfo=UTC))
        assert (await view_of(app, run, "quick")).dispatched_at is not None
