"""Workflows that steps call: child runs on both stores, end to end."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from treadle import (
    App,
    ConflictError,
    PlanBuilder,
    Registry,
    Run,
    RunCancelledError,
    RunFailedError,
    SlotError,
    StepFailedError,
    connect,
    context,
    describe_run,
    or_default,
    step,
    workflow,
)
from treadle.core import events as ev
from treadle.runtime.inspection import StepView
from treadle.runtime.why import Reason

gates: dict[str, asyncio.Event] = {}
mood: dict[str, bool] = {}
calls: list[str] = []


@pytest.fixture(params=["memory", "sqlite"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    gates.clear()
    mood.clear()
    calls.clear()
    return "memory://" if request.param == "memory" else f"sqlite:///{tmp_path}/app.db?sync=normal"


def gate(name: str) -> asyncio.Event:
    return gates.setdefault(name, asyncio.Event())


@step(name="children:add")
async def add(left: int, right: int) -> int:
    return left + right


@step(name="children:text")
async def text(length: int) -> str:
    return "x" * length


@step(name="children:moody")
async def moody() -> str:
    calls.append("moody")
    if not mood.get("good"):
        raise ValueError("in a bad mood")
    return "smiles"


@step(name="children:held")
async def held() -> str:
    gate("begun").set()
    await gate("end").wait()
    return "ended"


@step(name="children:follow")
async def follow(value: Any) -> str:
    calls.append("follow")
    return f"after {value}"


@workflow(name="children:sum")
def sum_of(left: int, right: int = 1) -> int:
    return add.bind(left, right)


@workflow(name="children:text-flow")
def long_text(length: int) -> str:
    return text.bind(length)


@workflow(name="children:moody-flow")
def moods() -> str:
    return moody.bind()


@workflow(name="children:held-flow")
def holds() -> str:
    return follow.bind(held.bind())


@workflow(name="children:broken")
def broken(length: int) -> str:
    if length > 1:
        raise RuntimeError("this workflow cannot be planned")
    return text.bind(length)


@workflow(name="children:deep")
def deep(levels: int) -> str:
    return deep.bind(levels - 1) if levels else text.bind(3)


@workflow(name="children:endless")
def endless() -> str:
    return endless.bind()


@workflow(name="children:parent-sum")
def twice(left: int) -> list[int]:
    first = sum_of.bind(left)
    return [first, sum_of.options(id="second").bind(first, right=10)]


@workflow(name="children:parent-text")
def texts(length: int) -> str:
    return long_text.bind(length)


@workflow(name="children:parent-moody")
def calls_moods() -> str:
    return follow.bind(moods.bind())


@workflow(name="children:parent-held")
def calls_holds() -> str:
    return follow.bind(holds.bind())


@workflow(name="children:parent-detached")
def starts_holds() -> str:
    return follow.bind(holds.detached.options(id="started").bind())


@workflow(name="children:parent-broken")
def calls_broken() -> str:
    return broken.bind(add.bind(1, 1))


async def children(app: App, run: Run[Any]) -> list[tuple[str, str]]:
    return sorted((row.id, row.status) for row in await app.runs(parent=await run.key()))


async def reasons(run: Run[Any], name: str) -> list[Reason]:
    return [reason for reason in await run.why(name) if reason.tense == "now"]


async def until_cancelling(run: Run[Any]) -> None:
    """A parent's cancel is an input in its child's inbox: it comes a moment later."""
    async for _ in run.changes():
        if (await run.inspect()).status == "cancelling":
            return


async def until_called(run: Run[Any], name: str) -> StepView:
    """The step's view, as soon as it is known that its child runs."""
    async for _ in run.changes():
        view = (await run.inspect()).step(name)
        if view is not None and view.child_open:
            return view
    raise AssertionError("unreachable")


async def test_a_child_gives_its_result_to_the_step_that_called_it(url: str) -> None:
    async with connect(url) as app:
        run = await app.start(twice, 1, id="p")

        assert await run.result(timeout=30) == [2, 12]

        assert await children(app, run) == [("p/second", "succeeded"), ("p/sum_of", "succeeded")]
        assert await app.run("p/second").result() == 12
        views = {view.address: view for view in (await run.inspect()).steps}
        assert (views["second"].child, views["second"].child_open, views["second"].attempt) == ("p/second", False, 1)
        assert (await app.run("p/second").inspect()).parent == f"{await run.key()}/second"


@pytest.mark.parametrize("length", [10, 3000, 400_000])
async def test_results_of_any_size_come_through(url: str, length: int) -> None:
    async with connect(url) as app:
        run = await app.start(texts, length)

        assert await run.result(timeout=30) == "x" * length


async def test_a_result_made_of_parts_comes_through(url: str) -> None:
    @workflow(name="children:parts")
    def parts(length: int) -> dict[str, Any]:
        big = text.bind(length)
        return {"big": big, "sum": [add.bind(1, 2), 7], "default": or_default(text.options(id="t2").bind(1), None)}

    registry = Registry()
    for one in (add, text, parts):
        registry.add(one)
    builder = PlanBuilder("outer", registry=registry)
    with builder:
        builder.output(parts.bind(2000))
    async with connect(url, registry=registry) as app:
        found = await (await app.start(builder.build())).result(timeout=30)

    assert found == {"big": "x" * 2000, "sum": [3, 7], "default": "x"}


async def test_a_child_that_fails_fails_its_step_and_a_retry_reopens_it(url: str) -> None:
    async with connect(url) as app:
        run = await app.start(calls_moods, id="p")
        with pytest.raises(RunFailedError, match=r"run 'p/moods' failed: step 'moody': error: in a bad mood"):
            await run.result(timeout=30)
        with pytest.raises(StepFailedError) as caught:
            await run.step("moods")
        assert caught.value.kind == "child_failed"
        mood["good"] = True

        await run.retry("moods")

        assert await run.result(timeout=30) == "after smiles"
        assert calls == ["moody", "moody", "follow"]
        assert await children(app, run) == [("p/moods", "succeeded")]


async def test_a_retry_takes_the_result_of_a_child_that_was_mended_by_itself(url: str) -> None:
    async with connect(url) as app:
        run = await app.start(calls_moods, id="p")
        await run.wait(timeout=30)
        mood["good"] = True
        child = app.run("p/moods")
        await child.retry()
        assert await child.result(timeout=30) == "smiles"

        await run.retry()

        assert await run.result(timeout=30) == "after smiles"
        assert calls == ["moody", "moody", "follow"]


async def test_a_rewind_makes_another_child(url: str) -> None:
    async with connect(url) as app:
        run = await app.start(twice, 1, id="p")
        await run.result(timeout=30)

        await run.rewind("second")

        assert await run.result(timeout=30) == [2, 12]
        assert [id_ for id_, _ in await children(app, run)] == ["p/second", "p/second#2", "p/sum_of"]


async def test_a_deleted_child_fails_a_retry_and_not_a_rewind(url: str) -> None:
    async with connect(url) as app:
        run = await app.start(calls_moods, id="p")
        await run.wait(timeout=30)
        key = await app.run("p/moods").key()
        # No client does that: a run that was called goes with its caller.
        await app._node.committer.call(lambda store: store.delete(key))

        await run.retry("moods")
        with pytest.raises(RunFailedError, match="was deleted; rewind"):
            await run.result(timeout=30)
        mood["good"] = True
        await run.rewind("moods")

        assert await run.result(timeout=30) == "after smiles"


@pytest.mark.parametrize("hard", [False, True])
async def test_a_cancel_reaches_the_child(url: str, hard: bool) -> None:
    async with connect(url) as app:
        run = await app.start(calls_holds, id="p")
        await gate("begun").wait()

        await run.cancel(hard=hard)
        if not hard:
            await until_cancelling(app.run("p/holds"))
            gate("end").set()

        with pytest.raises(RunCancelledError):
            await run.result(timeout=30)
        assert (await app.run("p/holds").wait(timeout=30)).status == "cancelled"
        assert calls == []


async def test_a_cancelled_run_and_its_child_go_on_by_a_retry(url: str) -> None:
    async with connect(url) as app:
        run = await app.start(calls_holds, id="p")
        await gate("begun").wait()
        await run.cancel()
        await until_cancelling(app.run("p/holds"))
        gate("end").set()
        await run.wait(timeout=30)

        await run.retry()

        assert await run.result(timeout=30) == "after after ended"


async def test_a_pause_and_a_resume_reach_the_child(url: str) -> None:
    async with connect(url) as app:
        run = await app.start(calls_holds, id="p")
        await gate("begun").wait()
        child = app.run("p/holds")

        await run.pause()
        async for _ in child.changes():
            if (await child.row()).hold:
                break
        gate("end").set()
        await child.step("held", timeout=30)
        assert calls == []
        await run.resume()

        assert await run.result(timeout=30) == "after after ended"


async def test_a_step_that_waits_for_its_child_holds_no_slot_and_is_explained(url: str) -> None:
    async with connect(url, slots=1) as app:
        run = await app.start(calls_holds, id="p")
        # The only slot is the child's step's.
        await gate("begun").wait()

        view = await until_called(run, "holds")

        (reason,) = await reasons(run, "holds")

        assert (reason.code, reason.on) == ("child", ["p/holds"])
        assert (view.status, view.shown, view.child_open) == ("dispatched", "running", True)
        with pytest.raises(ConflictError, match="still open"):
            await run.delete()
        gate("end").set()
        await run.result(timeout=30)
        await run.delete()
        assert await app.runs() == []


async def test_a_detached_child_goes_its_own_way(url: str) -> None:
    async with connect(url) as app:
        run = await app.start(starts_holds, id="p")

        assert await run.result(timeout=30) == "after p/started"

        child = app.run("p/started")
        assert (await child.row()).status == "running"
        await run.delete()
        gate("end").set()
        assert await child.result(timeout=30) == "after ended"


async def test_a_workflow_that_cannot_be_planned_fails_the_step(url: str) -> None:
    async with connect(url) as app:
        run = await app.start(calls_broken)

        with pytest.raises(RunFailedError, match="this workflow cannot be planned"):
            await run.result(timeout=30)

        assert await children(app, run) == []


async def test_calls_nest_up_to_a_limit(url: str) -> None:
    async with connect(url) as app:
        assert await (await app.start(deep, 5)).result(timeout=30) == "xxx"

        with pytest.raises(RunFailedError, match=r"32 calls deep.*call itself without end"):
            await (await app.start(endless)).result(timeout=60)


async def test_an_id_that_another_run_has_is_no_obstacle(url: str) -> None:
    async with connect(url) as app:
        await (await app.start(sum_of, 5, id="p/second")).result(timeout=30)
        run = await app.start(twice, 1, id="p")

        assert await run.result(timeout=30) == [2, 12]

        ids = [id_ for id_, _ in await children(app, run)]
        assert "p/sum_of" in ids
        assert "p/second" not in ids
        assert len(ids) == 2


async def test_a_run_that_is_replaced_is_replaced_with_its_children(url: str) -> None:
    async with connect(url) as app:
        first = await app.start(calls_holds, id="p")
        await gate("begun").wait()

        run = await app.start(calls_moods, id="p", on_conflict="replace")

        mood["good"] = True
        await run.wait(timeout=30)
        assert await children(app, run) != []
        assert await app.runs(parent=await first.key()) == []
        assert sorted(row.id for row in await app.runs()) == ["p", "p/moods"]


async def test_a_plan_calls_a_workflow_by_its_name(url: str) -> None:
    builder = PlanBuilder("named")
    builder.output(builder.step("sum", "children:sum", 1, slots={"right": 5}))
    async with connect(url) as app:
        run = await app.start(builder.build(), id="p")

        assert await run.result(timeout=30) == 6
        assert await children(app, run) == [("p/sum", "succeeded")]


async def test_a_step_may_add_a_call_while_it_runs(url: str) -> None:
    async with connect(url) as app:
        run = await app.start(adds_call, id="p")

        await run.result(timeout=30)

        assert await run.step("adder/added") == 3
        assert await children(app, run) == [("p/adder/added", "succeeded")]


@step(name="children:adder")
async def adder() -> None:
    context().add(sum_of.options(id="added").bind(1, 2))


@workflow(name="children:adds")
def adds_call() -> None:
    adder.bind()


async def test_the_parent_goes_on_in_another_process(tmp_path: Path) -> None:
    gates.clear()
    calls.clear()
    url = f"sqlite:///{tmp_path}/app.db"
    async with connect(url) as app:
        await app.start(calls_holds, id="p")
        await gate("begun").wait()
    gate("end").set()

    async with connect(url) as app:
        assert await app.run("p").result(timeout=30) == "after after ended"


async def test_a_call_waits_for_a_worker_that_has_the_workflow(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/app.db"
    some = Registry()
    some.add(add)
    async with connect(url, registry=some) as first:
        run = await first.start(twice, 1, id="p")
        codes = [reason.code for reason in await reasons(run, "sum_of")]
        assert codes == ["no_worker"]

        async with connect(url) as second:
            assert await second.run("p").result(timeout=30) == [2, 12]


async def test_the_journal_tells_of_the_child(url: str) -> None:
    async with connect(url) as app:
        run = await app.start(texts, 10, id="p")
        await run.result(timeout=30)

        events = [event async for _, _, event in run.events()]

        assert [type(event).__name__ for event in events] == [
            "RunStarted",
            "StepDispatched",
            "ChildStarted",
            "UndoNotNeeded",
            "StepSucceeded",
            "RunSettled",
        ]
        (started,) = [event for event in events if isinstance(event, ev.ChildStarted)]
        assert started.id == "p/long_text"
        assert started.child == await app.run("p/long_text").key()


def test_wrong_arguments_and_options_are_refused_when_the_parent_is_planned() -> None:
    builder = PlanBuilder("wrong")
    with builder:
        sum_of.bind("one", 2)  # type: ignore[arg-type]  # wrong on purpose

    with pytest.raises(SlotError, match="argument 'left'"):
        builder.build()
    with pytest.raises(TypeError, match="a call of a workflow has no option 'timeout'"):
        sum_of.options(timeout=3)  # type: ignore[call-arg]  # wrong on purpose
    with pytest.raises(TypeError, match="has no option 'retry'"):
        sum_of.detached.options(retry=3)  # type: ignore[call-arg]  # wrong on purpose


@workflow(name="children:labelled")
def labelled(left: int) -> int:
    describe_run(labels={"team": "own"})
    return add.bind(left, 1)


@workflow(name="children:caller")
def caller(left: int) -> list[Any]:
    return [labelled.options(id="child").bind(left), labelled.detached.options(id="other").bind(left)]


async def test_a_child_has_the_labels_of_its_caller_unless_it_says_otherwise(url: str) -> None:
    async with connect(url) as app:
        run = await app.start(caller, 1, id="p", labels={"team": "caller", "place": "north"})

        assert await run.result(timeout=30) == [2, "p/other"]

        assert (await run.row()).labels == {"team": "caller", "place": "north"}
        for child in ("p/child", "p/other"):
            assert (await app.run(child).row()).labels == {"team": "own", "place": "north"}


@step(name="children:stood", break_before="look")
def stood(left: int) -> int:
    return left


@workflow(name="children:inner-held")
def inner_held(left: int) -> int:
    return stood.bind(left)


@workflow(name="children:below-held")
def below_held(left: int) -> int:
    return inner_held.options(id="inner", breakpoints=True).bind(left)


@workflow(name="children:armed")
def armed(left: int) -> list[Any]:
    return [
        below_held.options(id="armed", breakpoints=True).bind(left),
        below_held.options(id="free").bind(left),
        below_held.options(breakpoints=True).detached.options(id="aside").bind(left),
    ]


async def test_breakpoints_are_armed_in_a_child_where_its_call_says_so(url: str) -> None:
    async with connect(url) as app:
        run = await app.start(armed, 7, id="p", breakpoints=["look"])
        assert await run.step("free", type=int, timeout=30) == 7
        for child in ("p/armed/inner", "p/aside/inner"):
            made = app.run(child)
            await waits_at("stood", made, app)
            assert await made.release("look") == 1

        assert await run.result(timeout=30) == [7, 7, "p/aside"]
        assert [point.armed for point in (await app.run("p/free/inner").inspect()).breakpoints] == [False]


async def waits_at(step: str, run: Any, app: Any) -> None:
    """Wait until a run is there and a step of it stands at a breakpoint."""
    while not await app.find(run.id):
        await asyncio.sleep(0)
    async for _ in run.changes():
        if any(point.state == "blocked" and point.address == step for point in (await run.inspect()).breakpoints):
            return


def test_the_option_for_breakpoints_is_a_truth_value() -> None:
    with pytest.raises(TypeError, match="breakpoints='look': True arms what is armed in the run that calls"):
        inner_held.options(breakpoints="look")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]  # wrong on purpose
