"""Deadlines of runs that wait: they pass at their time on every store, whoever decides the run, and in every state."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from tests.runtime.deadline_target import one, registry, waits
from tests.stores_kit import empty_store, kinds

from treadle import App, Debounce, Run, RunFailedError, connect, step, workflow
from treadle.core import events as ev
from treadle.core.events import decode_events
from treadle.runtime.report import header
from treadle.testing import ManualClock

ROOT = Path(__file__).resolve().parents[2]


@step(registry=registry, name="late:undo", undo=lambda result: None)
async def undoable() -> int:
    return 1


@workflow(registry=registry, name="late:calls")
def calls() -> int:
    return waits.options(id="child").bind()


@workflow(registry=registry, name="late:line", singleton=True, on_conflict="queue")
def line() -> int:
    return one.options(id="first", signals=["go"]).bind(3)


@workflow(registry=registry, name="late:undone", on_failure="unwind")
def undone() -> int:
    return one.options(id="second", signals=["go"], after=[undoable.options(id="acts").bind()]).bind(1)


@workflow(registry=registry, name="late:window", triggers=Debounce("1h"))
def window(value: int) -> int:
    return one.bind(value)


@pytest.fixture(params=kinds("memory", "sqlite", "postgres", "nats"))
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    with empty_store(request, tmp_path) as found:
        yield found


@pytest.fixture(params=kinds("sqlite", "postgres", "nats"))
def shared(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A store that outlives a process."""
    with empty_store(request, tmp_path) as found:
        yield found


@asynccontextmanager
async def driven(url: str, clock: ManualClock) -> AsyncGenerator[App, None]:
    async with connect(url, registry=registry, worker="cycles", clock=clock) as app:
        yield app


async def ended(run: Run[Any]) -> str:
    """Why a run failed."""
    with pytest.raises(RunFailedError) as caught:
        await run.result()
    return str(caught.value)


async def events_of(run: Run[Any]) -> list[ev.AnyEvent]:
    return [event for *_, text in (await run.load()).rows for event in decode_events(text)]


async def test_what_waits_fails_at_the_deadline_on_every_store(url: str) -> None:
    clock = ManualClock()
    async with driven(url, clock) as app:
        waiting = await app.start(waits, id="waiting", deadline="60s")
        calling = await app.start(calls, id="calling", deadline="60s")
        held = await app.start(waits, id="held", deadline="60s")
        holder = await app.start(line, id="holder")
        behind = await app.start(line, id="behind", deadline="60s")
        back = await app.start(undone, id="back", deadline="60s")
        paused = await app.start(waits, id="paused", deadline="60s")
        await paused.pause()
        opened = await app.trigger(window, 1, deadline="60s")
        delayed = await app.enqueue(one.bind(1), id="delayed", delay="50s", deadline="60s")
        # Alarms are nothing that an idle application waits for.
        await app.work(until_idle=True)
        clock.advance(49)
        await app.work(until_idle=True)
        assert [(await run.row()).status for run in (waiting, calling, held, behind, back, paused)] == ["running"] * 6
        assert (await app.work(until_idle=True)).runs == 0
        await delayed.pause()

        clock.advance(11)
        cycle = await app.work(until_idle=True)

        assert cycle.runs >= 8
        for run in (waiting, calling, held, behind, back, paused, opened, delayed):
            assert "deadline" in await ended(run)
        assert (await back.row()).unwound == "fully"
        assert (await holder.row()).status == "running"
        await holder.signal("go")
        await app.work(until_idle=True)
        assert await holder.result() == 3
        again = await app.trigger(window, 2)
        assert again.id != opened.id
        assert (await app.check()).problems == []


async def test_an_application_passes_deadlines_by_itself(url: str) -> None:
    async with connect(url, registry=registry) as app:
        run = await app.start(waits, deadline="200ms")

        assert await ended(run) == f"run {run.id!r} failed: step 'first': deadline: the run's deadline has passed"


async def test_who_comes_next_passes_the_deadlines_of_a_session_that_ended(shared: str) -> None:
    clock = ManualClock()
    async with connect(shared, registry=registry, worker=False, clock=clock) as app:
        early = await app.start(waits, id="early", deadline="60s")
        late = await app.start(waits, id="late", deadline="600s")
        key = await early.key()
    clock.advance(60)
    async with driven(shared, clock) as app:
        await app.work(until_idle=True)
        assert "deadline" in await ended(app.run("early"))
        assert app.run("late").id == late.id
        assert (await app.run("late").load()).owner
        # Of what becomes of it no store keeps anything.
        found = await app.run(key).load()
        assert (found.tasks, found.inbox, found.owner) == ([], [], "")
        clock.advance(540)
        await app.work(until_idle=True)
        assert "deadline" in await ended(app.run("late"))


async def test_other_processes_reach_a_run_that_is_kept_for_its_deadline(shared: str) -> None:
    async with connect(shared, registry=registry) as app, connect(shared, registry=registry, worker=False) as other:
        run = await app.start(waits, id="kept", deadline="1h")
        assert (await other.run("kept").load()).owner

        assert await other.run("kept").signal("go")

        assert await run.result() == 1
        assert (await run.load()).owner == ""


@pytest.mark.soak
async def test_the_deadline_of_a_run_passes_whose_process_was_killed(shared: str) -> None:
    command = [sys.executable, "-m", "tests.runtime.deadline_target", shared]
    died = subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True)
    assert died.returncode == -9, died.stderr

    async with connect(shared, registry=registry, worker=False, lease=1) as app:
        assert "deadline" in await ended(app.run("orphan"))


async def test_a_retry_and_a_rewind_lift_the_deadline(url: str) -> None:
    clock = ManualClock()
    async with driven(url, clock) as app:
        failed = await app.start(waits, id="failed", deadline="60s")
        rewound = await app.start(undone, id="rewound", deadline="60s")
        await app.work(until_idle=True)
        await rewound.rewind("acts", keep=True)
        clock.advance(60)
        await app.work(until_idle=True)
        assert "deadline" in await ended(failed)
        assert (await rewound.inspect()).deadline is None

        await failed.retry()

        clock.advance(600)
        await app.work(until_idle=True)
        for run in (failed, rewound):
            assert (await run.row()).status == "running"
            await run.signal("go")
        await app.work(until_idle=True)
        assert [await run.result() for run in (failed, rewound)] == [1, 1]


async def test_a_cancelled_run_has_no_deadline(url: str) -> None:
    clock = ManualClock()
    async with driven(url, clock) as app:
        run = await app.start(waits, deadline="60s")
        await run.cancel()
        clock.advance(60)
        await app.work(until_idle=True)

        assert (await run.row()).status == "cancelled"
        assert not any(isinstance(event, ev.DeadlinePassed) for event in await events_of(run))


async def test_people_are_told_when_the_deadline_passes(url: str) -> None:
    clock = ManualClock()
    async with driven(url, clock) as app:
        run = await app.start(waits, deadline="60s")
        without = await app.start(waits)
        clock.advance(10)

        assert [reason.code for reason in await without.why()] == ["signal", "needs"]
        reason = next(reason for reason in await run.why() if reason.code == "deadline")
        assert reason.message == "its deadline passes in 50.0 s; what has not begun then fails"
        assert reason.until == clock.now() + 50
        seen = await run.inspect()
        assert (seen.deadline, (await without.inspect()).deadline) == (reason.until, None)
        assert "deadline in 50" in header(seen)

        clock.advance(50)
        await app.work(until_idle=True)

        past = [reason.message for reason in await run.why("first") if reason.code == "deadline"]
        assert past == ["the run's deadline passed"]
        seen = await run.inspect()
        assert [(failure.address, failure.code) for failure in seen.failures] == [("first", "deadline")]
        assert "deadline" not in header(seen)


async def test_alarms_of_runs_that_are_over_are_forgotten() -> None:
    async with connect("memory://", registry=registry) as app:
        for value in range(300):
            assert await (await app.enqueue(one.bind(value), deadline="1h")).result() == value

        assert len(app._node.engine.alarms._heap) < 100
