"""Calls without a workflow: one-step runs with typed results, deadlines, traces and ids; and what is refused."""

from __future__ import annotations

import asyncio
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from treadle import (
    DefinitionError,
    Registry,
    RunExistsError,
    RunFailedError,
    SlotError,
    UsageError,
    connect,
    context,
    step,
    workflow,
)

registry = Registry()
TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
released = threading.Event()
calls: list[str] = []


@pytest.fixture(params=["memory", "sqlite"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return "memory://" if request.param == "memory" else f"sqlite:///{tmp_path}/tasks.db?sync=normal"


@step(registry=registry, name="task:add")
async def add(a: int, b: int) -> int:
    return a + b


@step(registry=registry, name="task:traced")
def traced() -> str:
    return context().trace


@step(registry=registry, name="task:stuck", retry=3)
async def stuck() -> None:
    calls.append("stuck")
    await asyncio.Event().wait()


@step(registry=registry, name="task:blocked", timeout="1h")
def blocked() -> None:
    released.wait(30)


@step(registry=registry, name="task:broken")
async def broken() -> None:
    raise ValueError("no luck")


@step(registry=registry, name="task:wrong")
async def wrong() -> None:
    raise ValueError("no luck either")


@workflow(registry=registry, name="task:tolerant")
def tolerant() -> int:
    broken.options(optional=True).bind()
    return add.bind(1, 2)


@workflow(registry=registry, name="task:child")
def child() -> str:
    return traced.bind()


async def test_a_call_is_a_run_of_one_step(url: str) -> None:
    async with connect(url, registry=registry) as app:
        task = await app.enqueue(add.bind(1, 2), id="sum", labels={"kind": "sum"})

        assert await task.result() == 3
        row = await task.row()
        assert (row.id, row.workflow, row.labels, row.status) == ("sum", "task:add", {"kind": "sum"}, "succeeded")
        assert [step.address for step in (await task.inspect()).steps] == ["add"]


async def test_calls_that_the_call_takes_its_arguments_from_run_before_it(url: str) -> None:
    async with connect(url, registry=registry) as app:
        task = await app.enqueue(add.bind(1, add.bind(2, 3)))

        assert await task.result() == 6


async def test_the_id_makes_a_call_once(url: str) -> None:
    async with connect(url, registry=registry) as app:
        first = await app.enqueue(add.bind(1, 2), id="sum")
        second = await app.enqueue(add.bind(1, 2), id="sum")

        assert await first.key() == await second.key()
        with pytest.raises(RunExistsError, match="another workflow or input"):
            await app.enqueue(add.bind(1, 3), id="sum")


async def test_an_attempt_that_runs_at_the_deadline_is_ended_and_not_tried_again(url: str) -> None:
    async with connect(url, registry=registry) as app:
        calls.clear()
        task = await app.enqueue(stuck.bind(), deadline="300ms")

        with pytest.raises(RunFailedError, match="deadline: the run's deadline has passed"):
            await task.result()
        assert calls == ["stuck"]


async def test_a_thread_that_runs_at_the_deadline_is_not_waited_for(url: str) -> None:
    released.clear()
    async with connect(url, registry=registry) as app:
        task = await app.enqueue(blocked.bind(), deadline="300ms")

        with pytest.raises(RunFailedError, match="deadline"):
            await task.result()
        released.set()


async def test_a_call_that_waited_past_its_deadline_never_begins(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/tasks.db?sync=normal"
    calls.clear()
    async with connect(url, registry=registry, worker=False) as app:
        # Enqueued in time; nobody is there to execute it until the deadline has passed.
        await app.enqueue(stuck.bind(), id="late", deadline="1ms")
        passed = datetime.now(UTC) + timedelta(milliseconds=1)
    while datetime.now(UTC) <= passed:
        await asyncio.sleep(0)

    async with connect(url, registry=registry) as app:
        with pytest.raises(RunFailedError, match="deadline"):
            await app.run("late").result()

    assert calls == []


async def test_a_dead_call_can_be_revived_after_its_deadline(url: str) -> None:
    async with connect(url, registry=registry) as app:
        task = await app.enqueue(add.bind(1, 2), deadline=datetime(2000, 1, 1, tzinfo=UTC))
        with pytest.raises(RunFailedError, match="deadline"):
            await task.result()
        [(run, dead)] = await app.dead()
        assert (run.id, dead.address, dead.code) == (task.id, "add", "deadline")

        await task.retry("add")

        assert await task.result() == 3
        assert await app.dead() == []


async def test_what_was_requeued_or_goes_on_is_refused_and_the_others_go_on(url: str) -> None:
    async with connect(url, registry=registry) as app:
        for name in ("one", "two"):
            await (await app.enqueue(broken.bind(), id=name)).wait()
        letters = await app.dead()
        await app.run("two").retry("broken")
        await app.run("two").wait()
        await app.run("one").delete()

        answers = {answer.run: answer for answer in await app.requeue(letters)}

        assert "no run" in answers["one"].refused
        assert answers["two"].reopened == ["broken"]
        await app.run("two").wait()
        assert [(run.id, step.attempt) for run, step in await app.dead(code="error", run="two")] == [("two", 3)]


async def test_purge_keeps_runs_that_succeeded_in_spite_of_a_failure(url: str) -> None:
    async with connect(url, registry=registry) as app:
        await (await app.enqueue(broken.bind(), id="bad")).wait()
        assert (await (await app.start(tolerant, id="good")).wait()).status == "succeeded"

        answers = {answer.run: answer for answer in await app.purge(await app.dead())}

        assert answers["bad"].deleted
        assert "succeeded" in answers["good"].refused
        assert [row.id for row in await app.runs()] == ["good"]


async def test_dead_letters_are_found_behind_any_number_of_others(url: str) -> None:
    async with connect(url, registry=registry) as app:
        await (await app.enqueue(broken.bind(), id="wanted")).wait()
        for number in range(20):
            await (await app.enqueue(wrong.bind(), id=f"other-{number}")).wait()

        assert [run.id for run, _ in await app.dead(1, workflow="task:broken")] == ["wanted"]
        assert await app.dead(older_than="1h") == []
        assert len(await app.dead(5)) == 5


async def test_a_trace_reaches_steps_and_child_runs(url: str) -> None:
    async with connect(url, registry=registry) as app:
        assert await (await app.enqueue(traced.bind(), trace=TRACE)).result() == TRACE
        assert await (await app.enqueue(child.bind(), trace=TRACE)).result() == TRACE
        assert await (await app.start(child)).result() == ""


async def test_what_a_step_starts_belongs_to_its_trace(url: str) -> None:
    own = Registry()
    own.add(traced)
    async with connect(url, registry=own) as app:

        @step(registry=own, name="task:starter")
        async def starter() -> tuple[str, str]:
            task = await app.enqueue(traced.bind())
            return context().trace, await task.result()

        assert await (await app.enqueue(starter.bind(), trace=TRACE)).result() == (TRACE, TRACE)


async def test_mistakes_are_told_before_anything_is_stored(url: str) -> None:
    async with connect(url, registry=registry) as app:
        with pytest.raises(DefinitionError, match=r"7 is no planned step; give what \.bind"):
            await app.enqueue(7)
        with pytest.raises(SlotError, match="'b'"):
            await app.enqueue(add.bind(1, "x"))  # type: ignore[arg-type]  # what is refused
        with pytest.raises(UsageError, match="no traceparent"):
            await app.enqueue(add.bind(1, 2), trace="00-abc")
        with pytest.raises(UsageError, match="no time zone"):
            await app.enqueue(add.bind(1, 2), deadline=datetime(2000, 1, 1))  # noqa: DTZ001  # what is refused
        used = add.bind(1, 2)
        await app.enqueue(used)
        with pytest.raises(DefinitionError, match="belongs to another plan"):
            await app.enqueue(used)
        assert len(await app.runs()) == 1


def test_blocking_programs_enqueue_too(url: str) -> None:
    with connect(url, registry=registry) as app:
        assert app.enqueue(add.bind(1, 2), deadline="1h").result() == 3
