"""The alarms of attempts, on a loop of virtual time; and attempts that fall silent, in real ones."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterable
from typing import Any

import pytest

from treadle import Registry, Retry, RunFailedError, connect, context, step, workflow
from treadle.authoring import codec
from treadle.authoring.builder import Planned
from treadle.core.commands import Call, Task
from treadle.core.events import AttemptFailed, Failure
from treadle.core.plan import Plan, Step
from treadle.runtime.attempts import Attempt
from treadle.runtime.failures import ErrorText
from treadle.runtime.slots import ASYNC
from treadle.runtime.time_limits import TimeLimits
from treadle.testing.sim_loop import SimLoop

registry = Registry()
never = threading.Event()


def ended(call: Call, reports: Iterable[float] = (), ends: float = 100.0) -> list[tuple[float, str, str]]:
    """When an attempt was ended from outside, and why; it reports at these times, and returns at `ends`."""
    loop = SimLoop(lambda: None)
    found: list[tuple[float, str, str]] = []
    attempt = Attempt(Task("r", 0, "s", 1, 1, "a", "default", 0, 0.0, call), ASYNC, 1000.0)

    def end(one: Attempt, failure: Any, verdict: str) -> None:
        if not one.settled:
            found.append((loop.time(), f"{failure.code}: {failure.message}", verdict))
            one.end()

    limits = TimeLimits(loop, ErrorText(), end)
    late = limits.arm(attempt)
    if late is not None:
        found.append((loop.time(), f"{late.code}: {late.message}", "not begun"))
    for at in reports:
        loop.call_at(at, limits.heard, attempt)
    loop.call_at(ends, attempt.end)
    loop.call_at(200.0, loop.stop)
    loop.run_forever()
    loop.close()
    return found


def test_an_attempt_that_reports_nothing_is_ended_and_one_that_reports_goes_on() -> None:
    call = Call(progress_timeout=5.0)
    silent = "timeout: the attempt reported no progress for 5 s"

    assert ended(call) == [(5.0, silent, "")]
    assert ended(call, [3.0, 7.5]) == [(12.5, silent, "")]
    assert ended(call, range(1, 97, 4)) == [(98.0, silent, "")]
    assert ended(call, range(1, 100, 4)) == []
    assert ended(call, ends=4.0) == []


def test_whichever_limit_comes_first_ends_the_attempt() -> None:
    long = "timeout: the attempt took longer than 8 s"

    assert ended(Call(timeout=8.0, progress_timeout=5.0), [4.0]) == [(8.0, long, "")]
    assert ended(Call(timeout=8.0, deadline=1020.0)) == [(8.0, long, "")]
    late = "deadline: the run's deadline has passed"
    assert ended(Call(timeout=8.0, deadline=1007.0)) == [(7.0, late, "final")]
    assert ended(Call(progress_timeout=5.0, deadline=1007.0), [3.0]) == [(7.0, late, "final")]
    assert ended(Call(progress_timeout=5.0, deadline=1000.0)) == [(0.0, late, "not begun")]


@step(registry=registry, name="silent:async", progress_timeout="40ms", retry=Retry(attempts=2, initial=0))
async def falls_silent() -> str:
    own = context()
    if own.attempt == 2:
        return f"after {own.last_progress}"
    own.progress("half")
    await asyncio.Event().wait()
    return "never"


@step(registry=registry, name="silent:sync", progress_timeout="40ms", retry=Retry(attempts=2, initial=0))
def falls_silent_in_a_thread() -> str:
    own = context()
    if own.attempt == 2:
        never.set()
        return f"after {own.last_progress}"
    own.progress("half")
    never.wait(20)
    return "never"


@pytest.mark.parametrize("function", [falls_silent, falls_silent_in_a_thread])
async def test_the_next_attempt_goes_on_where_a_silent_one_stopped(function: Any) -> None:
    @workflow(registry=registry, name=f"w:{function.name}")
    def silent() -> Any:
        return function.bind()

    never.clear()
    async with connect("memory:", registry=registry) as app:
        run = await app.start(silent)
        assert await run.result(20) == "after half"
        failures = [event.failure async for _, _, event in run.events() if isinstance(event, AttemptFailed)]
        message = "the attempt reported no progress for 0.04 s"
        assert failures == [Failure(code="timeout", message=message, type="TimeoutError")]


async def test_no_attempt_of_a_plan_without_any_time_succeeds() -> None:
    plan = Plan(workflow="none", blocks=[Step(id="s", action="silent:async", timeout=0.0)])
    async with connect("memory:", registry=registry) as app:
        run = await app.start(Planned(plan, [], codec.adapter(None)))
        with pytest.raises(RunFailedError, match="took longer than 0 s"):
            await run.result(20)
