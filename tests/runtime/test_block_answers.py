"""What clients are told of blocks: values by address, and the errors of those that failed."""

from __future__ import annotations

import asyncio

import pytest

from treadle import Registry, RunFailedError, StepFailedError, StepNotFoundError, StepSkippedError, connect, step
from treadle.authoring import codec
from treadle.authoring.builder import Planned
from treadle.core.plan import (
    Block,
    Body,
    Branch,
    Choose,
    Const,
    Gather,
    Group,
    Holds,
    Item,
    LaneValue,
    ListOf,
    Phase,
    Phases,
    Plan,
    Ref,
    Rule,
    SignalValue,
    Step,
)
from treadle.runtime.run import Run

registry = Registry()


@step(registry=registry, name="double")
async def double(value: int) -> int:
    if value < 0:
        raise ValueError("too small")
    return 2 * value


def planned(*blocks: Block, constants: tuple[int, ...] = (1, 2, 3)) -> Planned:
    return Planned(Plan(workflow="w", blocks=list(blocks)), [str(value) for value in constants], codec.adapter(None))


def scan(*, after: tuple[str, ...] = ()) -> Gather:
    body = Body(blocks=[Step(id="d", action="double", slots={"value": Item()})], output=Ref("d"))
    return Gather(id="scan", items=ListOf([Const(0), Const(1), Const(2)]), body=body, after=after)


def rows(*rules: Rule) -> Phases:
    cell = Step(id="cell", action="double", slots={"value": Const(0)})
    return Phases(
        id="deploy", phases=[Phase(id="only", blocks=[cell], policy="p")], policies={"p": rules}, state={"n": Const(1)}
    )


async def test_the_value_of_a_block_is_read_by_its_address_while_the_run_goes_on() -> None:
    waits = Step(id="last", action="double", slots={"value": SignalValue("go")})
    group = Group(id="g", blocks=[Step(id="x", action="double", slots={"value": Const(2)})], output=Ref("x"))
    choose = Choose(id="c", branches=[Branch(id="b", blocks=group.blocks, output=Ref("x"))])

    async with connect("memory://", registry=registry) as app:
        run: Run[None] = await app.start(planned(scan(), rows(Rule(id="end", move="stop")), group, choose, waits))

        async with asyncio.timeout(10):
            assert await run.step("scan", type=list[int]) == [2, 4, 6]
            assert await run.step("scan[1]") == 4
            assert await run.step("deploy") == {"n": 2}
            assert await run.step("g") == 6
            assert await run.step("c") == 6
            assert await run.step("c/b") == 6
        assert (await run.row()).status == "running"


async def test_a_closed_run_still_tells_the_values_of_its_blocks() -> None:
    async with connect("memory://", registry=registry) as app:
        run = await app.start(planned(scan()))
        await run.result()

        assert await run.step("scan") == [2, 4, 6]
        with pytest.raises(StepNotFoundError):
            await run.step("scan[3]")


async def test_a_block_without_a_value_is_an_error_that_says_why() -> None:
    below = Choose(id="c", branches=[Branch(id="b")], after=("scan",))

    async with connect("memory://", registry=registry) as app:
        run = await app.start(planned(scan(), below, constants=(1, -2, 3)))

        with pytest.raises(StepFailedError, match=r"block 'scan' of run .* failed because of scan\[1\]") as failed:
            await run.step("scan")
        with pytest.raises(StepSkippedError, match="because of scan") as skipped:
            await run.step("c")

    assert (failed.value.step, failed.value.kind) == ("scan", "failed")
    assert skipped.value.upstream == ["scan"]


async def test_the_error_of_a_run_names_the_step_that_failed_inside_a_block() -> None:
    async with connect("memory://", registry=registry) as app:
        run = await app.start(planned(scan(), constants=(1, -2, 3)))

        with pytest.raises(RunFailedError, match=r"failed: step 'scan\[1\]/d': error: too small") as caught:
            await run.result()

    assert list(caught.value.failures) == ["scan[1]/d"]


async def test_the_error_of_a_run_names_the_block_that_failed_by_itself() -> None:
    wrong = Rule(id="broken", move="stop", when=Holds("cell.x == 1", {"cell": LaneValue("cell")}))

    async with connect("memory://", registry=registry) as app:
        nothing = await app.start(planned(rows()))
        with pytest.raises(RunFailedError, match=r"failed: block 'deploy': no_rule: policy 'p' had no") as caught:
            await nothing.result()
        broken = await app.start(planned(rows(wrong)))
        with pytest.raises(RunFailedError, match=r"block 'deploy': expression_\w+: rule 'broken'") as raised:
            await broken.result()

    assert list(caught.value.failures) == ["deploy"]
    assert "\n" not in str(raised.value)


async def test_the_error_of_a_run_names_a_block_that_was_skipped_because_of_a_failure() -> None:
    first = Step(id="a", action="double", slots={"value": Const(0)}, optional=True)

    async with connect("memory://", registry=registry) as app:
        run = await app.start(planned(first, Group(id="g", blocks=[scan()], after=("a",)), constants=(-1, 2, 3)))

        with pytest.raises(RunFailedError, match=r"failed: block 'g/scan': skipped: because of a"):
            await run.result()
