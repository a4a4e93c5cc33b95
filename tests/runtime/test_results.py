"""Runs that succeeded without a result, and what is taken for a workflow or a label when a run is started."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest

from treadle import MissingPathError, PlanBuilder, StepFailedError, UsageError, connect, step


@pytest.fixture(params=["memory", "sqlite"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return "memory://" if request.param == "memory" else f"sqlite:///{tmp_path}/app.db?sync=normal"


@step(name="results:add")
async def add(left: int, right: int = 1) -> int:
    return left + right


@step(name="results:fail")
async def fail(message: str) -> int:
    raise RuntimeError(message)


@step(name="results:echo")
async def echo(value: Any) -> Any:
    return value


async def test_a_result_that_is_no_part_of_its_value_is_named_and_leaves_the_receipt(url: str) -> None:
    builder = PlanBuilder("parts")
    value = builder.step("value", echo, {"a": 1})
    builder.output([value, value["b"]])
    async with connect(url) as app:
        run = await app.start(builder.build(), id="parts-1")

        with pytest.raises(MissingPathError, match=r"run 'parts-1' has no result: .* nothing at \['b'\]") as caught:
            await run.result(10)
        receipt = await run.receipt()

    assert isinstance(caught.value, LookupError)
    assert receipt.run is not None
    assert (receipt.run.status, receipt.run.result) == ("succeeded", None)


async def test_a_result_that_needs_what_failed_says_that_it_failed(url: str) -> None:
    builder = PlanBuilder("lost")
    builder.output([builder.step("bad", fail, "no", optional=True)])
    blocks = PlanBuilder("blocks")
    with blocks.group("part", optional=True):
        inner = blocks.step("bad", fail, "no")
    blocks.output(inner)
    async with connect(url) as app:
        run = await app.start(builder.build(), id="lost-1")
        block = await app.start(blocks.build(), id="lost-2")

        with pytest.raises(StepFailedError) as failed:
            await run.result(10)
        with pytest.raises(StepFailedError) as below:
            await block.result(10)

    assert str(failed.value) == "run 'lost-1' has no result: step 'bad' failed: error: no"
    assert (failed.value.step, failed.value.kind) == ("bad", "error")
    assert "has no result: step 'part/bad' failed: error: no" in str(below.value)


async def test_what_is_no_workflow_is_not_started(url: str) -> None:
    async with connect(url) as app:
        for wrong in (add, lambda: 1, 7):
            with pytest.raises(UsageError, match="is no workflow: pass a @workflow function"):
                await app.start(cast("Any", wrong))


async def test_one_breakpoint_may_be_armed_by_its_label_alone(url: str) -> None:
    builder = PlanBuilder("one-label")
    builder.step("stop", add, 1, break_before=["check"])
    async with connect(url) as app:
        run = await app.start(builder.build(), breakpoints="check")
        async for _ in run.changes():
            if any(point.state == "blocked" for point in (await run.inspect()).breakpoints):
                break

        assert await run.release("check") == 1
