"""Undo end to end: production engine, worker and client, in memory and on a SQLite file."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from treadle import (
    NotApplicableError,
    NotCompensable,
    Permanent,
    PlanBuilder,
    Retry,
    RunFailedError,
    RunNotSettledError,
    StepNotFoundError,
    connect,
    context,
    signal_value,
    step,
    workflow,
)
from treadle.runtime.client import App
from treadle.runtime.report import render_report
from treadle.runtime.run import Run

# What the world is like: the steps of these tests write here.
world: dict[str, Any] = {}
log: list[str] = []
mood: dict[str, str] = {}


@pytest.fixture(params=["memory", "sqlite"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    for kept in (world, log, mood):
        kept.clear()
    return "memory://" if request.param == "memory" else f"sqlite:///{tmp_path}/app.db?sync=normal"


def look(key: str) -> Any:
    log.append(f"prepare {key}")
    return {"before": world.get(key)}


async def put_back(key: str, state: dict[str, Any], result: str | None) -> None:
    log.append(f"undo {key} {result}")
    if mood.get(key) == "flaky" and context().attempt % 2:
        raise OSError("not yet")
    if mood.get(key) == "locked":
        raise Permanent("locked")
    if mood.get(key) == "sent":
        raise NotCompensable("the mail is out")
    if state["before"] is None:
        world.pop(key, None)
    else:
        world[key] = state["before"]


def unchanged(key: str, value: Any) -> bool:
    return bool(world.get(key) == value)


@step(name="undo:put", prepare=look, undo=put_back, reconcile=unchanged, retry=Retry(attempts=3, initial=0))
def put(key: str, value: Any = 1, after: Any = None) -> str:
    world[key] = value
    if mood.get(key) == "half":
        raise Permanent("stopped half way")
    return f"{key}!"


@step(name="undo:charge", undo=lambda amount: log.append(f"refund {amount} {context().idempotency_key[-8:]}"))
async def charge(amount: int) -> int:
    log.append(f"charge {amount} {context().idempotency_key[-8:]}")
    return amount


def unpack(name: str, result: int) -> None:
    log.append(f"unpack {name} {result}")


@step(name="undo:pack", undo=unpack)
async def pack(name: str, size: int = 0) -> int:
    if not size:
        raise Permanent("nothing to pack")
    return size


@step(name="undo:end")
async def end(how: str, *after: Any) -> str:
    if how == "fail":
        raise RuntimeError("the end")
    return how


@workflow(name="undo:chain", on_failure="unwind")
def chain(how: str) -> Any:
    a = put.options(id="a").bind("a", 1)
    b = put.options(id="b").bind("b", 2, a)
    return end.bind(how, put.options(id="c").bind("c", 3, b))


async def finished(app: App, how: str = "fail", **more: Any) -> Run[Any]:
    run = await app.start(chain, how, **more)
    await run.wait(20)
    return run


async def undos(run: Run[Any]) -> dict[str, str]:
    snapshot = await run.inspect()
    return {view.address: view.undo for view in snapshot.steps if view.undo != "none"}


async def test_a_failed_run_restores_what_it_touched(url: str) -> None:
    before = {"b": "was here"}
    world.update(before)
    async with connect(url) as app:
        run = await finished(app)

        row = await run.row()
        assert (row.status, row.unwound) == ("failed", "fully")
        assert world == before
        assert log == ["prepare a", "prepare b", "prepare c", "undo c c!", "undo b b!", "undo a a!"]
        with pytest.raises(RunFailedError, match="the end; what the run did was undone fully"):
            await run.result()
        text = render_report(await run.inspect())
        assert "[FAILED]  unwound" in text
        assert "undo undone" in text


async def test_a_run_may_differ_from_its_workflow(url: str) -> None:
    async with connect(url) as app:
        run = await finished(app, on_failure="stop")

        assert world == {"a": 1, "b": 2, "c": 3}
        assert (await run.row()).unwound == ""


async def test_a_step_that_acted_in_part_is_undone_too(url: str) -> None:
    mood["b"] = "half"
    async with connect(url) as app:
        await finished(app)

        assert world == {}
        assert log[-2:] == ["undo b None", "undo a a!"]


async def test_an_undo_gets_none_for_a_result_that_never_was_and_large_arguments_by_their_handles(url: str) -> None:
    builder = PlanBuilder("p", on_failure="unwind")
    builder.step("a", pack, "a" * 3000, 7)
    builder.step("b", pack, "b" * 3000, 0, after="a")
    async with connect(url) as app:
        row = await (await app.start(builder.build())).wait(20)

        assert (row.status, row.unwound) == ("failed", "fully")
        assert log == [f"unpack {'b' * 3000} None", f"unpack {'a' * 3000} 7"]


async def test_an_undo_is_tried_by_the_policy_and_one_that_fails_holds_back_nothing(url: str) -> None:
    mood.update(c="flaky", b="locked", a="sent")
    async with connect(url) as app:
        run = await finished(app)

        assert await undos(run) == {"a": "not_compensable", "b": "failed", "c": "undone"}
        assert world == {"a": 1, "b": 2}
        assert (await run.row()).unwound == "partly"
        assert "undo failed (permanent: locked)" in render_report(await run.inspect())

        mood.clear()
        await run.retry_undo("b")
        await run.wait(20)
        assert world == {"a": 1}
        await run.retry_undo()
        await run.wait(20)
        assert (await run.row()).unwound == "fully"
        with pytest.raises(NotApplicableError, match="no undo to retry"):
            await run.retry_undo()


async def test_drift_is_left_as_it_is(url: str) -> None:
    async with connect(url) as app:
        run = await finished(app, "ok")
        world["b"] = "somebody else's"

        assert await run.undo()
        await run.wait(20)

        assert world == {"b": "somebody else's"}
        view = (await run.inspect()).step("b")
        assert view is not None
        assert (view.undo, view.undo_reason) == ("skipped", "drift")
        assert await run.result() == "ok"


async def test_the_undo_stack_is_what_undo_undoes(url: str) -> None:
    async with connect(url) as app:
        run = await finished(app, "ok")

        stack = await run.undo_stack()
        assert [entry.address for entry in stack] == ["c", "b", "a"]
        assert (stack[0].undo, stack[0].outcome, stack[0].state) == ("undo:put:undo", "succeeded", '={"before":null}')
        assert [entry.address for entry in await run.undo_stack(to="a")] == ["c", "b"]
        with pytest.raises(StepNotFoundError):
            await run.undo_stack(to="nobody")
        with pytest.raises(StepNotFoundError):
            await run.undo(to="nobody")
        assert await run.undo(to="a")
        await run.wait(20)
        assert world == {"a": 1}
        assert [entry.address for entry in await run.undo_stack()] == ["a"]
        assert await run.undo()
        await run.wait(20)
        assert world == {}
        assert not await run.undo()


@workflow(name="undo:held")
def held(amount: int) -> Any:
    return end.bind(signal_value("go"), charge.bind(amount))


async def test_a_run_that_goes_on_is_cancelled_with_unwind_and_the_undo_knows_the_key(url: str) -> None:
    async with connect(url) as app:
        run = await app.start(held, 7)
        assert await run.step("charge") == 7
        with pytest.raises(RunNotSettledError):
            await run.undo()

        await run.cancel(unwind=True)
        row = await run.wait(20)

        assert (row.status, row.unwound) == ("cancelled", "fully")
        assert [line.split()[0] for line in log] == ["charge", "refund"]
        assert log[0].split()[1:] == log[1].split()[1:]


async def test_an_operator_skips_and_parks_undos_that_do_not_end(url: str) -> None:
    mood.update(c="flaky")
    slow = Retry(attempts=0, initial="1h", cap="1h")
    builder = PlanBuilder("p", on_failure="unwind", undo_limit=1)
    builder.step("a", put, "a", 1)
    builder.step("c", put, "c", 3, slots={"after": None}, retry=slow, after="a")
    builder.step("end", end, "fail", after="c")
    async with connect(url) as app:
        run = await app.start(builder.build())
        await until(lambda: "undo c c!" in log)
        while (view := (await run.inspect()).step("c")) is None or view.undo_reason == "":
            await asyncio.sleep(0)
        assert (await run.row()).status == "unwinding"
        reasons = {(reason.step, reason.code) for reason in await run.why()}
        assert {("", "unwinding"), ("a", "undo"), ("c", "backoff")} <= reasons
        assert "the next starts in" in next(r.message for r in await run.why("c") if r.code == "backoff")

        await run.park_undo("c")
        row = await run.wait(20)

        assert (row.status, row.unwound) == ("failed", "partly")
        assert await undos(run) == {"a": "undone", "c": "parked"}
        assert (await run.inspect()).undos == {"undone": 1, "parked": 1}
        said = [reason.message for reason in await run.why("c") if reason.tense == "past"]
        assert "prepared: its undo state is kept" in said
        assert "its undo failed: error: not yet" in said
        assert said[-1] == "its undo was parked (operator)"
        await run.skip_undo("c")
        assert await undos(run) == {"a": "undone", "c": "skipped"}


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not true():
            await asyncio.sleep(0)


async def test_a_rewind_undoes_first(url: str) -> None:
    async with connect(url) as app:
        run = await finished(app, "ok")
        log.clear()

        assert await run.rewind("b") == []
        await until(lambda: log.count("prepare c") == 1)
        assert await run.result(20) == "ok"

        assert log == ["undo c c!", "undo b b!", "prepare b", "prepare c"]
        assert sorted(await run.rewind("c", keep=True)) == ["c", "end"]
        await run.wait(20)


async def test_two_hundred_steps_in_random_order_leave_nothing_behind(url: str) -> None:
    dice = random.Random(5)
    builder = PlanBuilder("many", on_failure="unwind")
    for number in range(200):
        before = [f"s{dice.randrange(number)}"] if number and dice.random() < 0.6 else []
        builder.step(f"s{number}", put, f"k{number}", number, after=before)
    builder.step("end", end, "fail", after=[f"s{number}" for number in range(200)])
    async with connect(url) as app:
        run = await app.start(builder.build())
        row = await run.wait(60)

        assert (row.status, row.unwound, world) == ("failed", "fully", {})
