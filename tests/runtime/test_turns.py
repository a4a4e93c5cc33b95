"""Async steps that share a task: to their own code each looks as if it had one to itself."""

from __future__ import annotations

import asyncio
import contextvars
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from treadle import App, PlanBuilder, RunFailedError, connect, step

seen: dict[str, object] = {}
gate: asyncio.Event
topic: contextvars.ContextVar[str] = contextvars.ContextVar("topic", default="none")


@step(name="test.turns:task_of")
async def task_of(name: str) -> None:
    """Note the task."""
    seen[name] = asyncio.current_task()


@step(name="test.turns:wait")
async def wait(name: str) -> None:
    """Note the task before and after a wait."""
    seen[name] = asyncio.current_task()
    await gate.wait()
    assert seen[name] is asyncio.current_task()


@step(name="test.turns:open_gate")
async def open_gate() -> None:
    """Let those go on that wait."""
    gate.set()


@step(name="test.turns:talk")
async def talk(about: str) -> list[str]:
    """Set a context variable, and read it again after a wait."""
    found = topic.get()
    topic.set(about)
    if about == "tea":
        await asyncio.sleep(0)
    return [found, topic.get()]


@step(name="test.turns:time_out")
async def time_out() -> str:
    """Run into a timeout of its own."""
    try:
        async with asyncio.timeout(0):
            await asyncio.Event().wait()
    except TimeoutError:
        return "timed out"
    return "never"


@step(name="test.turns:cancel_itself")
async def cancel_itself() -> str:
    """Cancel its task, and return before that has any effect."""
    task = asyncio.current_task()
    assert task is not None
    task.cancel()
    return "done"


@step(name="test.turns:patient")
async def patient() -> str:
    """Wait a turn."""
    await asyncio.sleep(0)
    return "done"


@step(name="test.turns:bump")
async def bump(value: int) -> int:
    """Add one."""
    return value + 1


@step(name="test.turns:fail")
async def fail() -> None:
    """Fail at once."""
    raise ValueError("no")


@asynccontextmanager
async def opened() -> AsyncIterator[App]:
    """An application on a store of its own."""
    global gate
    gate = asyncio.Event()
    seen.clear()
    async with connect("memory://") as app:
        yield app


async def test_a_step_that_waits_keeps_its_task_and_the_others_go_on() -> None:
    builder = PlanBuilder("turns")
    builder.step("w", wait, "w")
    builder.step("a", task_of, "a")
    builder.step("b", task_of, "b")
    builder.step("open", open_gate)

    async with opened() as app:
        await (await app.start(builder.build())).result()

    assert len(seen) == 3
    assert seen["w"] is not seen["a"]


async def test_two_steps_that_wait_have_two_tasks() -> None:
    builder = PlanBuilder("turns")
    builder.step("v", wait, "v")
    builder.step("w", wait, "w")
    builder.step("open", open_gate)

    async with opened() as app:
        await (await app.start(builder.build())).result()

    assert seen["v"] is not seen["w"]


async def test_context_variables_do_not_pass_from_one_step_to_the_next() -> None:
    builder = PlanBuilder("turns")
    builder.output([builder.step(about, talk, about) for about in ("ships", "tea", "wax")])

    async with opened() as app:
        found = await (await app.start(builder.build())).result()

    assert found == [["none", "ships"], ["none", "tea"], ["none", "wax"]]


async def test_a_timeout_inside_a_step_ends_its_own_wait_only() -> None:
    builder = PlanBuilder("turns")
    builder.output([builder.step("t", time_out), builder.step("p", patient)])

    async with opened() as app:
        assert await (await app.start(builder.build())).result() == ["timed out", "done"]


async def test_a_step_that_cancels_its_task_and_returns_cancels_no_other() -> None:
    builder = PlanBuilder("turns")
    builder.output([builder.step("c", cancel_itself), builder.step("p", patient)])

    async with opened() as app:
        assert await (await app.start(builder.build())).result() == ["done", "done"]


async def test_steps_behind_a_failed_one_are_executed() -> None:
    builder = PlanBuilder("turns")
    builder.step("f", fail)
    builder.step("a", task_of, "a")

    async with opened() as app:
        run = await app.start(builder.build())
        with pytest.raises(RunFailedError):
            await run.result()

    assert "a" in seen


async def test_a_chain_lets_the_loop_have_its_turns() -> None:
    builder = PlanBuilder("turns")
    value = builder.step("s0", bump, 0)
    for number in range(1, 200):
        value = builder.step(f"s{number}", bump, value)
    turns = 0

    async with opened() as app:
        run = await app.start(builder.build())
        ended = asyncio.ensure_future(run.result())
        while not ended.done():
            turns += 1
            await asyncio.sleep(0)

    assert turns >= 200 / 16


@pytest.mark.skipif(sys.version_info < (3, 12), reason="eager tasks came with Python 3.12")
async def test_steps_run_on_a_loop_of_eager_tasks() -> None:
    builder = PlanBuilder("turns")
    builder.step("w", wait, "w")
    builder.output([builder.step(f"p{number}", patient) for number in range(20)])
    builder.step("open", open_gate)

    async with opened() as app:
        if sys.version_info >= (3, 12):
            asyncio.get_running_loop().set_task_factory(asyncio.eager_task_factory)
        assert await (await app.start(builder.build())).result() == ["done"] * 20
