"""Attempts are outside the garbage collector: whatever way one ends, it is let go with all that it refers to."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import threading
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from treadle import App, Permanent, Registry, TreadleError, connect, step
from treadle.authoring import codec
from treadle.authoring.builder import Planned
from treadle.core.commands import Call, Task
from treadle.core.plan import Plan, Step
from treadle.runtime.attempts import Attempt
from treadle.runtime.slots import ASYNC
from treadle.runtime.step_context import RunningStep

registry = Registry()
# Set when a step has begun, one for each event loop; and when a thread may end.
gates: dict[str, asyncio.Event] = {}
released = threading.Event()


@step(registry=registry, name="returns")
async def returns() -> None:
    await asyncio.sleep(0)


@step(registry=registry, name="raises")
async def raises() -> None:
    await asyncio.sleep(0)
    raise Permanent("no")


@step(registry=registry, name="waits")
async def waits() -> None:
    gates["begun"].set()
    await asyncio.Event().wait()


@step(registry=registry, name="blocks")
def blocks() -> None:
    released.wait(20)


async def start(app: App, action: str, timeout: float | None = None) -> Callable[[], Coroutine[Any, Any, None]]:
    plan = Plan(workflow=action, blocks=[Step(id="s", action=action, timeout=timeout)])
    run = await app.start(Planned(plan, [], codec.adapter(None)))

    async def ended() -> None:
        with contextlib.suppress(TreadleError):
            await run.result()
        released.set()

    return ended


async def returned(app: App) -> None:
    await (await start(app, "returns"))()


async def failed(app: App) -> None:
    await (await start(app, "raises"))()


async def timed_out(app: App) -> None:
    await (await start(app, "waits", 0.01))()


async def timed_out_in_a_thread(app: App) -> None:
    await (await start(app, "blocks", 0.01))()


async def interrupted(app: App) -> None:
    ended = await start(app, "waits", 60.0)
    await gates["begun"].wait()
    for row in await app.runs():
        await app.run(row.id).cancel(hard=True)
    await ended()


async def left(app: App) -> None:
    """The application is closed while the step runs."""
    await start(app, "waits", 60.0)
    await gates["begun"].wait()


def contexts_alive() -> int:
    # What the collector does not look at hides what it holds until the next time.
    for _ in range(3):
        gc.collect()
    return sum(isinstance(found, RunningStep) for found in gc.get_objects())


@pytest.mark.parametrize("way", [returned, failed, timed_out, timed_out_in_a_thread, interrupted, left])
async def test_an_attempt_is_let_go_whatever_way_it_ends(way: Callable[[App], Coroutine[Any, Any, None]]) -> None:
    gates["begun"] = asyncio.Event()
    released.clear()
    before = contexts_alive()
    async with asyncio.timeout(20):
        async with connect("memory:", registry=registry) as app:
            await way(app)
            del app
        while contexts_alive() > before:
            # A thread is on its way out.
            await asyncio.sleep(0)
    assert contexts_alive() <= before


async def test_an_attempt_that_has_ended_refers_to_nothing_that_refers_to_it() -> None:
    loop = asyncio.get_running_loop()
    call = Task("r", 0, "s", 1, 1, "returns", "default", 0, 0.0, Call())
    attempt = Attempt(call, ASYNC, 0.0)

    async def work() -> None:
        assert attempt.kind == ASYNC

    task, timer = loop.create_task(work()), loop.call_later(60, repr, attempt)
    attempt.handle, attempt.timer = task, timer

    assert attempt.end() is task
    assert attempt.settled
    assert timer.cancelled()
    assert [attempt.handle, attempt.timer] == [None, None]
    await task
