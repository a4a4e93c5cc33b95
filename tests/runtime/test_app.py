"""The application end to end: production engine, worker and client, in memory and on a SQLite file."""

from __future__ import annotations

import asyncio
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from treadle import (
    ConflictError,
    DecodeError,
    NotApplicableError,
    Permanent,
    PlanBuilder,
    Retry,
    Retryable,
    RetryLater,
    RunCancelledError,
    RunExistsError,
    RunFailedError,
    RunNotActiveError,
    RunNotFoundError,
    RunNotPausedError,
    RunNotRunningError,
    StepCancelledError,
    StepFailedError,
    StepNotFoundError,
    StepSkippedError,
    UsageError,
    connect,
    context,
    or_default,
    predicate,
    signal_value,
    step,
    workflow,
)
from treadle.errors import EXIT_CODES, LeaseLostError

gates: dict[str, asyncio.Event] = {}
thread_gates: dict[str, threading.Event] = {}
calls: list[str] = []
mood: dict[str, bool] = {}


@pytest.fixture(params=["memory", "sqlite"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    calls.clear()
    gates.clear()
    thread_gates.clear()
    return "memory://" if request.param == "memory" else f"sqlite:///{tmp_path}/app.db?sync=normal"


@step(name="app:add")
async def add(left: int, right: int = 1) -> int:
    calls.append("add")
    return left + right


@step(name="app:add_in_thread")
def add_in_thread(left: int, right: int = 1) -> int:
    return left + right


@step(name="app:fail")
async def fail(message: str) -> int:
    calls.append("fail")
    raise RuntimeError(message)


@step(name="app:gate")
async def gate(name: str) -> str:
    calls.append(name)
    await gates.setdefault(name, asyncio.Event()).wait()
    return name


@step(name="app:held_thread")
def held_thread(name: str) -> str:
    calls.append(name)
    thread_gates.setdefault(name, threading.Event()).wait(30)
    return name


@step(name="app:flaky")
async def flaky(needed: int) -> int:
    calls.append("flaky")
    if context().attempt < needed:
        raise Retryable("not yet", code="busy")
    return context().attempt


@step(name="app:flaky_plainly")
async def flaky_plainly(needed: int) -> int:
    if context().attempt < needed:
        raise OSError("not yet")
    return context().attempt


@step(name="app:spawn_flaky")
async def spawn_flaky() -> None:
    context().add(flaky_plainly.options(id="flaky").bind(3))


@step(name="app:echo")
async def echo(value: Any) -> Any:
    return value


@step(name="app:grow")
async def grow(width: int) -> int:
    context().add(*[add.options(id=f"child {n}").bind(n) for n in range(width)])
    return width


@step(name="app:moody")
async def moody() -> int:
    if mood["bad"]:
        raise RuntimeError("bad mood")
    return 7


@predicate(name="app:is_big")
def is_big(value: int) -> bool:
    return value > 10


@workflow(name="app:sums")
def sums(start: int) -> int:
    first = add.bind(start)
    return add_in_thread.bind(first, add.bind(first))


async def until(count: int) -> None:
    """Let the loop go on until so many calls were noted."""
    while len(calls) < count:
        await asyncio.sleep(0)


async def test_a_workflow_of_async_and_sync_steps_gives_its_result(url: str) -> None:
    async with connect(url) as app:
        run = await app.start(sums, 3)

        assert await run.result(10) == 9


async def test_starting_the_same_id_again_attaches_and_another_input_is_refused(url: str) -> None:
    async with connect(url) as app:
        first = await app.start(sums, 3, id="same")
        again = await app.start(sums, 3, id="same")

        assert await again.key() == await first.key()
        with pytest.raises(RunExistsError):
            await app.start(sums, 4, id="same")
        with pytest.raises(RunExistsError):
            await app.start(sums, 3, id="same", on_conflict="reject")


async def test_replace_cancels_and_deletes_the_run_that_had_the_id(url: str) -> None:
    async with connect(url) as app:
        builder = PlanBuilder("gated")
        builder.step("g", gate, "old")
        await app.start(builder.build(), id="same")
        await until(1)

        run = await app.start(sums, 1, id="same", on_conflict="replace")

        assert await run.result(10) == 5
        assert len(await app.find("same")) == 1


async def test_a_failed_step_fails_the_run_and_skips_what_needs_it(url: str) -> None:
    builder = PlanBuilder("failing")
    bad = builder.step("bad", fail, "it broke")
    builder.step("after", add, bad)
    async with connect(url) as app:
        run = await app.start(builder.build(), id="f")

        with pytest.raises(RunFailedError, match="it broke") as failed:
            await run.result(10)
        with pytest.raises(StepFailedError) as step_failed:
            await run.step("bad")
        with pytest.raises(StepSkippedError) as skipped:
            await run.step("after")

        assert list(failed.value.failures) == ["bad"]
        assert step_failed.value.kind == "error"
        assert skipped.value.upstream == ["bad"]


async def test_a_default_stands_in_for_what_failed(url: str) -> None:
    builder = PlanBuilder("default")
    bad = builder.step("bad", fail, "no", optional=True)
    builder.output(builder.step("sum", add, or_default(bad, 41)))
    async with connect(url) as app:
        run = await app.start(builder.build())

        assert await run.result(10) == 42


async def test_retries_follow_the_policy_and_attempts_are_counted(url: str) -> None:
    builder = PlanBuilder("flaky")
    builder.output(builder.step("flaky", flaky, 3, retry=Retry(attempts=5, initial="1ms")))
    async with connect(url) as app:
        run = await app.start(builder.build())

        assert await run.result(10) == 3
        assert calls == ["flaky"] * 3


async def test_added_steps_take_the_retry_policy_of_their_workflow(url: str) -> None:
    builder = PlanBuilder("inherit", retry=Retry(attempts=3, initial="1ms"))
    builder.step("spawn", spawn_flaky)
    async with connect(url) as app:
        run = await app.start(builder.build())
        await run.wait(10)

        assert await run.step("spawn/flaky", type=int) == 3


async def test_the_policy_of_the_application_serves_where_nothing_else_is_said(url: str) -> None:
    builder = PlanBuilder("inherit")
    builder.output(builder.step("flaky", flaky_plainly, 2))
    builder.step("never", fail, "once", retry=None, optional=True)
    async with connect(url, retry=Retry(attempts=3, initial="1ms")) as app:
        run = await app.start(builder.build(), id="default")
        again = await app.start(builder.build(), id="default")

        assert await run.result(10) == await again.result(10) == 2
        assert calls.count("fail") == 1


async def test_plain_exceptions_are_final_without_a_policy_and_permanent_ends_retries(url: str) -> None:
    @step(name="app:never")
    async def never() -> None:
        calls.append("never")
        raise Permanent("no use", code="hopeless")

    builder = PlanBuilder("final")
    builder.step("plain", fail, "once", optional=True)
    builder.step("never", never, retry=Retry(attempts=9, initial="1ms"), optional=True)
    async with connect(url) as app:
        run = await app.start(builder.build())
        await run.wait(10)

        with pytest.raises(StepFailedError) as error:
            await run.step("never")

        assert sorted(calls) == ["fail", "never"]
        assert error.value.kind == "hopeless"


async def test_retry_later_sets_the_delay(url: str) -> None:
    @step(name="app:later")
    async def later() -> int:
        if context().attempt == 1:
            raise RetryLater("1ms")
        return context().attempt

    builder = PlanBuilder("later")
    builder.output(builder.step("later", later))
    async with connect(url) as app:
        assert await (await app.start(builder.build())).result(10) == 2


async def test_a_step_that_exits_fails_and_the_worker_goes_on(url: str) -> None:
    @step(name="app:exit")
    async def leave() -> None:
        sys.exit(3)

    @step(name="app:exit_in_thread")
    def leave_thread() -> None:
        raise SystemExit(3)

    builder = PlanBuilder("exit")
    builder.step("a", leave, optional=True)
    builder.step("b", leave_thread, optional=True)
    async with connect(url) as app:
        run = await app.start(builder.build())
        await run.wait(10)
        for name in ("a", "b"):
            with pytest.raises(StepFailedError) as error:
                await run.step(name)
            assert error.value.kind == "exit"

        assert await (await app.start(sums, 1)).result(10) == 5


async def test_a_result_that_is_no_json_fails_its_step_only(url: str) -> None:
    @step(name="app:unserialisable")
    async def unserialisable() -> Any:
        return object()

    builder = PlanBuilder("values")
    builder.step("bad", unserialisable, optional=True)
    builder.output(builder.step("good", add, 1))
    async with connect(url) as app:
        run = await app.start(builder.build())

        assert await run.result(10) == 2
        with pytest.raises(StepFailedError) as error:
            await run.step("bad")
        assert error.value.kind == "unserialisable"


@pytest.mark.parametrize("size", [10, 2_000, 300_000, 3_000_000])
async def test_values_of_every_size_reach_the_next_step_unchanged(url: str, size: int) -> None:
    text = "é$treadle=" + "x" * size
    builder = PlanBuilder("large")
    first = builder.step("first", echo, {"text": text})
    builder.output(builder.step("second", echo, first["text"]))
    async with connect(url) as app:
        run = await app.start(builder.build())

        assert await run.result(30) == text


async def test_a_result_of_another_type_than_the_caller_asks_for_is_an_error(url: str) -> None:
    async with connect(url) as app:
        run = await app.start(sums, 1, id="typed")
        await run.wait(10)

        with pytest.raises(DecodeError):
            await run.step("add", type=list)


async def test_steps_that_a_step_adds_live_below_it_and_can_be_awaited(url: str) -> None:
    builder = PlanBuilder("growing")
    builder.output(builder.step("grow", grow, 3))
    async with connect(url) as app:
        run = await app.start(builder.build())

        assert await run.result(10) == 3
        assert await run.step("grow/child 2", type=int) == 3


async def test_a_signal_is_delivered_once_and_carries_its_value(url: str) -> None:
    builder = PlanBuilder("signals")
    builder.output(builder.step("sum", add, signal_value("amount", type=int), signals=["go"]))
    async with connect(url) as app:
        run = await app.start(builder.build())

        assert [await run.signal("amount", 4), await run.signal("amount", 9)] == [True, False]
        assert await run.signal("go")
        assert await run.result(10) == 5
        with pytest.raises(RunNotActiveError):
            await run.signal("late")
        with pytest.raises(UsageError):
            await run.signal("")


async def test_breakpoints_hold_until_their_label_is_released(url: str) -> None:
    builder = PlanBuilder("breakpoints")
    first = builder.step("first", add, 1, break_after=["check"])
    builder.output(builder.step("second", add, first, break_before=["check"]))
    async with connect(url) as app:
        run = await app.start(builder.build(), breakpoints=["check"])
        assert await run.step("first", type=int) == 2

        assert await run.release("other") == 0
        assert await run.release("check") == 1
        assert await run.release("check") == 1
        assert await run.result(10) == 3


async def test_a_condition_is_a_planned_bool_or_a_predicate(url: str) -> None:
    builder = PlanBuilder("conditions")
    small = builder.step("small", add, 1)
    big = builder.step("big", add, 100)
    builder.step("skipped", add, 1, when=is_big.bind(small))
    kept = builder.step("kept", add, big, when=is_big.bind(big))
    builder.step("follows", add, 1, after="skipped")
    builder.output(kept)
    async with connect(url) as app:
        run = await app.start(builder.build())

        assert await run.result(10) == 102
        assert await run.step("follows") == 2
        with pytest.raises(StepSkippedError) as error:
            await run.step("skipped")
        assert error.value.upstream == ["skipped"]


async def test_a_paused_run_starts_nothing_and_goes_on_when_resumed(url: str) -> None:
    builder = PlanBuilder("pausing")
    first = builder.step("first", gate, "first")
    builder.output(builder.step("second", echo, first))
    async with connect(url) as app:
        run = await app.start(builder.build())
        await until(1)
        with pytest.raises(RunNotPausedError) as not_paused:
            await run.resume()

        assert await run.pause() == "pausing"
        assert (await run.inspect()).status == "pausing"
        with pytest.raises(RunNotRunningError, match="is pausing; only a running run pauses"):
            await run.pause()
        gates["first"].set()
        assert await run.step("first") == "first"
        while (await run.row()).leased:
            await asyncio.sleep(0)
        assert (await run.inspect()).status == "paused"
        await run.resume()

        assert await run.result(10) == "first"
        assert not_paused.value.status == "running"


async def test_a_soft_cancel_lets_what_runs_finish_and_starts_nothing(url: str) -> None:
    builder = PlanBuilder("cancel")
    first = builder.step("first", gate, "first")
    builder.step("second", echo, first)
    async with connect(url) as app:
        run = await app.start(builder.build())
        await until(1)

        await run.cancel()
        assert (await run.inspect()).status == "cancelling"
        gates["first"].set()

        with pytest.raises(RunCancelledError):
            await run.result(10)
        assert await run.step("first") == "first"
        with pytest.raises(StepCancelledError):
            await run.step("second")
        await run.cancel()
        assert (await run.row()).status == "cancelled"


async def test_a_hard_cancel_ends_async_steps_and_fences_threads(url: str) -> None:
    builder = PlanBuilder("hard")
    builder.step("async", gate, "async")
    builder.step("sync", held_thread, "sync")
    async with connect(url) as app:
        run = await app.start(builder.build())
        await until(2)

        await run.cancel(hard=True)

        with pytest.raises(RunCancelledError):
            await run.result(10)
        thread_gates["sync"].set()
        while (await run.row()).leased:
            await asyncio.sleep(0)
        with pytest.raises(StepCancelledError):
            await run.step("sync")


async def test_a_sync_step_past_its_timeout_fails_at_once_and_keeps_its_slot(url: str) -> None:
    builder = PlanBuilder("timeout")
    builder.step("slow", held_thread, "slow", timeout="250ms", optional=True)
    async with connect(url, threads=1) as app:
        run = await app.start(builder.build())
        await run.wait(10)
        with pytest.raises(StepFailedError) as error:
            await run.step("slow")
        second = await app.start(sums, 1)
        await asyncio.sleep(0)
        reasons = {reason.code for reason in await second.why()}
        thread_gates["slow"].set()

        assert error.value.kind == "timeout"
        assert await second.result(10) == 5
        assert reasons


async def test_retrying_a_failed_step_reopens_exactly_what_was_skipped_because_of_it(url: str) -> None:
    mood["bad"] = True
    builder = PlanBuilder("retry")
    value = builder.step("moody", moody)
    builder.output(builder.step("sum", add, value))
    async with connect(url) as app:
        run = await app.start(builder.build())
        with pytest.raises(RunFailedError):
            await run.result(10)
        mood["bad"] = False

        assert sorted(await run.retry("moody")) == ["moody", "sum"]
        assert await run.result(10) == 8
        with pytest.raises(NotApplicableError):
            await run.retry("moody")


async def test_a_rewind_runs_a_finished_step_and_all_behind_it_again(url: str) -> None:
    async with connect(url) as app:
        run = await app.start(sums, 1)
        await run.result(10)
        before = calls.count("add")

        reopened = await run.rewind("add")

        assert await run.result(10) == 5
        assert len(reopened) == 3
        assert calls.count("add") == before + 2
        assert {view.generation for view in (await run.inspect()).steps} == {2}


async def test_what_is_not_there_raises_at_once(url: str) -> None:
    async with connect(url) as app:
        with pytest.raises(RunNotFoundError):
            await app.run("nobody").result(1)
        with pytest.raises(RunNotFoundError):
            await app.run("nobody").signal("x")
        run = await app.start(sums, 1)
        await run.result(10)
        with pytest.raises(StepNotFoundError):
            await run.step("nothing")


async def test_a_deleted_run_is_gone_and_its_id_is_free(url: str) -> None:
    builder = PlanBuilder("gated")
    builder.step("g", gate, "open")
    async with connect(url) as app:
        run = await app.start(builder.build(), id="gone")
        await until(1)
        with pytest.raises(ConflictError):
            await run.delete()
        gates["open"].set()
        await run.wait(10)
        await run.delete()

        with pytest.raises(RunNotFoundError):
            await app.run("gone").row()
        assert await (await app.start(sums, 1, id="gone")).result(10) == 5


async def test_runs_are_listed_by_label_and_status(url: str) -> None:
    async with connect(url) as app:
        for number in range(3):
            await (await app.start(sums, number, labels={"parity": str(number % 2)})).result(10)

        assert len(await app.runs(labels={"parity": "0"})) == 2
        assert len(await app.runs(status="failed")) == 0
        assert len(await app.runs(workflow="app:sums", limit=2)) == 2


async def test_dead_steps_are_listed_with_their_full_error(url: str) -> None:
    builder = PlanBuilder("dead")
    builder.step("bad", fail, "x" * 10_000)
    async with connect(url) as app:
        run = await app.start(builder.build(), id="d")
        await run.wait(10)

        [(row, dead)] = await app.dead()

        assert (row.id, dead.address, dead.code) == ("d", "bad", "error")
        assert len(dead.message.encode()) <= 4096
        assert "x" * 10_000 in (await run.account(dead.detail)).text


@pytest.mark.parametrize("id_", ["with space", "ünïcode ☃", "a/b", "../up", "dots.and.more", "per%cent", "#[~]", "'\""])
async def test_hostile_ids_of_runs_and_steps_work(url: str, id_: str) -> None:
    builder = PlanBuilder("hostile")
    builder.output(builder.step(id_, add, 1))
    async with connect(url) as app:
        run = await app.start(builder.build(), id=id_)
        assert await run.result(10) == 2

        [view] = (await app.run(id_).inspect()).steps

        assert view.id == id_
        assert await app.run(id_).step(view.address, type=int) == 2


def test_the_blocking_client_does_the_same(url: str) -> None:
    with connect(url) as app:
        run = app.start(sums, 3, id="blocking")

        assert run.result(10) == 9
        assert run.step("add", type=int) == 4
        assert run.analysis().finished_at is not None
        assert next(event.__class__.__name__ for _, _, event in run.events()) == "RunStarted"


def test_every_exit_code_belongs_to_an_error_class() -> None:
    from treadle import errors

    codes = {value.code for value in vars(errors).values() if isinstance(value, type) and hasattr(value, "code")}

    assert set(EXIT_CODES) <= codes


async def test_a_closed_application_says_so(tmp_path: Path) -> None:
    builder = PlanBuilder("closed")
    builder.step("one", add, 1)
    planned = builder.build()
    async with connect(f"sqlite:///{tmp_path / 'closed.db'}") as app:
        run = await app.start(planned)
        await run.result()

    with pytest.raises(UsageError, match="the application was closed; open it again"):
        await app.runs()
    with pytest.raises(UsageError, match="the application was closed"):
        await run.inspect()
    with pytest.raises(LeaseLostError, match="its application was closed; nothing was written"):
        await app.start(planned)
