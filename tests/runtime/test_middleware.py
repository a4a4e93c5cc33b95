"""Middleware: around each attempt, on the loop, in order, and in the way of neither timeouts nor interruptions."""

from __future__ import annotations

import asyncio
import threading
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import pytest

from treadle import Next, Permanent, Registry, StepCall, UsageError, connect, context, predicate, step, workflow
from treadle.runtime.middleware import Middleware

registry = Registry()
tenant: ContextVar[str] = ContextVar("tenant", default="nobody")
gates: dict[str, threading.Event] = {}


@pytest.fixture(params=["memory", "sqlite"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return "memory://" if request.param == "memory" else f"sqlite:///{tmp_path}/middleware.db?sync=normal"


@step(registry=registry, name="mw:on-loop")
async def on_loop(value: int) -> str:
    return f"{value} {tenant.get()} {threading.current_thread() is threading.main_thread()}"


@step(registry=registry, name="mw:in-thread")
def in_thread(value: int) -> str:
    return f"{value} {tenant.get()} {threading.current_thread() is threading.main_thread()}"


@step(registry=registry, name="mw:missing", retry=5)
def missing(name: str) -> str:
    raise KeyError(name)


@step(registry=registry, name="mw:forever", timeout="50ms")
async def forever() -> str:
    await asyncio.Event().wait()
    return "never"


@step(registry=registry, name="mw:stuck", timeout="50ms")
def stuck(gate: str) -> str:
    gates[gate].wait(20)
    return "too late"


@step(registry=registry, name="mw:exits")
def exits() -> str:
    raise SystemExit(3)


@step(registry=registry, name="mw:stops")
def stops() -> str:
    raise StopIteration


@predicate(registry=registry, name="mw:yes")
async def yes() -> bool:
    return True


@workflow(registry=registry, name="mw:both")
def both(value: int) -> list[str]:
    return [on_loop.bind(value), in_thread.bind(value)]


def only(function: Any, *args: Any) -> Any:
    """A workflow's plan of one step."""

    @workflow(registry=Registry(), name=f"mw:only-{function.name}")
    def flow() -> Any:
        return function.bind(*args)

    return flow.plan()


async def failure_of(url: str, middleware: list[Middleware], planned: Any) -> tuple[str, str, int]:
    async with connect(url, registry=registry, middleware=middleware) as app:
        run = await app.start(planned)
        assert (await run.wait(timeout=20)).status == "failed"
        [failure] = (await run.inspect()).failures
        return failure.code, failure.message, failure.attempt


async def test_the_first_is_the_outermost_around_async_and_sync_steps(url: str) -> None:
    order: list[str] = []

    def named(name: str) -> Middleware:
        async def middleware(call: StepCall, call_next: Next) -> Any:
            order.append(f"{name} > {call.address}")
            result = await call_next()
            order.append(f"{name} < {call.address}")
            return result

        return middleware

    async with connect(url, registry=registry, middleware=[named("a"), named("b")]) as app:
        await (await app.start(both, 1)).result()

    for address in ("on_loop", "in_thread"):
        own = [line for line in order if line.endswith(address)]
        assert own == [f"a > {address}", f"b > {address}", f"b < {address}", f"a < {address}"]


async def test_a_middleware_sees_the_attempt_and_runs_on_the_loop(url: str) -> None:
    seen: list[StepCall] = []

    async def middleware(call: StepCall, call_next: Next) -> Any:
        assert asyncio.get_running_loop()
        assert context().address == call.address
        seen.append(call)
        with pytest.raises(TypeError):
            call.arguments["value"] = 9  # type: ignore[index]  # read-only is the point
        return await call_next()

    async with connect(url, registry=registry, middleware=[middleware]) as app:
        await (await app.start(both, 1, id="both-1")).result()

    found = {(call.run_id, call.address, call.action, call.attempt, call.generation) for call in seen}
    assert found == {("both-1", "on_loop", "mw:on-loop", 1, 1), ("both-1", "in_thread", "mw:in-thread", 1, 1)}
    assert [dict(call.arguments) for call in seen] == [{"value": 1}] * 2


async def test_context_variables_that_it_sets_hold_in_the_step(url: str) -> None:
    async def middleware(call: StepCall, call_next: Next) -> Any:
        tenant.set("ada")
        return await call_next()

    async with connect(url, registry=registry, middleware=[middleware]) as app:
        assert await (await app.start(both, 1)).result() == ["1 ada True", "1 ada False"]

    assert tenant.get() == "nobody"


async def test_it_may_change_the_result_or_do_without_the_step(url: str) -> None:
    async def changes(call: StepCall, call_next: Next) -> Any:
        return "cached" if call.address == "on_loop" else f"{await call_next()}!"

    async with connect(url, registry=registry, middleware=[changes]) as app:
        assert await (await app.start(both, 1)).result() == ["cached", "1 nobody False!"]


async def test_its_error_is_the_attempts_error_and_may_steer(url: str) -> None:
    async def maps(call: StepCall, call_next: Next) -> Any:
        try:
            return await call_next()
        except KeyError as error:
            raise Permanent(f"no {error}", code="missing") from error

    async def breaks(call: StepCall, call_next: Next) -> Any:
        raise RuntimeError("broken middleware")

    assert await failure_of(url, [maps], only(missing, "x")) == ("missing", "no 'x'", 1)
    assert await failure_of(url, [breaks], only(on_loop, 1)) == ("error", "broken middleware", 1)
    assert await failure_of(url, [breaks], only(in_thread, 1)) == ("error", "broken middleware", 1)


async def test_whatever_a_thread_raises_comes_through(url: str) -> None:
    async def passes(call: StepCall, call_next: Next) -> Any:
        return await call_next()

    assert (await failure_of(url, [passes], only(exits)))[0] == "exit"
    assert "StopIteration" in (await failure_of(url, [passes], only(stops)))[1]


@pytest.mark.parametrize("name", ["forever", "stuck"])
async def test_a_timeout_cancels_what_waits_for_the_step(url: str, name: str) -> None:
    told: list[str] = []

    async def middleware(call: StepCall, call_next: Next) -> Any:
        try:
            return await call_next()
        except asyncio.CancelledError:
            told.append(call.address)
            raise

    gates[name] = threading.Event()
    planned = only(forever) if name == "forever" else only(stuck, name)
    async with connect(url, registry=registry, middleware=[middleware], slots=1, threads=1) as app:
        run = await app.start(planned)
        assert (await run.wait(timeout=20)).status == "failed"
        [failure] = (await run.inspect()).failures
        worker = app._node.worker
        while not told:
            await asyncio.sleep(0)
        # A thread cannot be stopped: its slot is taken until it ends.
        assert (failure.code, worker.stuck) == ("timeout", int(name == "stuck"))

        gates[name].set()
        while worker.stuck or app._node.slots.free() < 2:
            await asyncio.sleep(0)
        assert await (await app.start(both, 1)).result(timeout=20)

    assert told == [name]


async def test_a_hard_cancel_reaches_a_middleware_around_a_thread(url: str) -> None:
    began, told = asyncio.Event(), asyncio.Event()

    async def middleware(call: StepCall, call_next: Next) -> Any:
        began.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            told.set()
            raise

    async with connect(url, registry=registry, middleware=[middleware]) as app:
        run = await app.start(only(in_thread, 1))
        await began.wait()
        await run.cancel(hard=True)
        await asyncio.wait_for(told.wait(), 20)
        assert (await run.wait(timeout=20)).status == "cancelled"


async def test_a_middleware_that_cancels_itself_fails_the_attempt(url: str) -> None:
    async def middleware(call: StepCall, call_next: Next) -> Any:
        raise asyncio.CancelledError

    assert "cancelled from inside" in (await failure_of(url, [middleware], only(on_loop, 1)))[1]
    assert "cancelled from inside" in (await failure_of(url, [middleware], only(in_thread, 1)))[1]


async def test_the_question_of_a_condition_has_no_middleware(url: str) -> None:
    seen: list[str] = []

    async def middleware(call: StepCall, call_next: Next) -> Any:
        seen.append(call.action)
        return await call_next()

    @workflow(registry=Registry(), name="mw:asked")
    def asked() -> str:
        return on_loop.options(when=yes.bind()).bind(1)

    async with connect(url, registry=registry, middleware=[middleware]) as app:
        await (await app.start(asked)).result()

    assert seen == ["mw:on-loop"]


async def test_without_middleware_nothing_is_around_a_step() -> None:
    async with connect("memory://", registry=registry) as app:
        await (await app.start(both, 1)).result()

        for callee in app._node.worker._callees:
            assert callee.middleware == ()
            assert callee.invoke is registry.get(callee.action).invoke


class Callable:
    async def __call__(self, call: StepCall, call_next: Next) -> Any:
        return f"object {await call_next()}"


async def test_an_object_with_an_async_call_is_a_middleware() -> None:
    async with connect("memory://", registry=registry, middleware=[Callable()]) as app:
        assert await (await app.start(both, 1)).result() == ["object 1 nobody True", "object 1 nobody False"]


@pytest.mark.parametrize("wrong", [print, lambda call, call_next: None, Callable, None])
def test_what_cannot_be_awaited_is_refused(wrong: Any) -> None:
    with pytest.raises(UsageError, match="async def middleware"):
        connect("memory://", middleware=[wrong])
