"""An engine forgets closed iterations; operators, observers and other processes do not notice."""

from __future__ import annotations

import asyncio
import gc
from pathlib import Path

import pytest

from treadle import App, Hooks, Registry, Run, connect, gather, predicate, signal_value, step, workflow
from treadle.authoring import codec
from treadle.authoring.builder import Planned
from treadle.core import inputs as inp
from treadle.core.plan import (
    Block,
    Body,
    Branch,
    Choose,
    Const,
    Gather,
    Item,
    Phase,
    Phases,
    Plan,
    Predicate,
    Ref,
    Rule,
    Step,
)
from treadle.core.state import ScopeState
from treadle.runtime.hooks import Boundary
from treadle.runtime.requests import request

registry = Registry()
made: list[int] = []
gates: dict[str, asyncio.Event] = {}


@predicate(registry=registry, name="always")
async def always() -> bool:
    return True


@step(registry=registry, name="numbers")
async def numbers(count: int) -> list[int]:
    return list(range(count))


@step(registry=registry, name="double")
async def double(value: int) -> int:
    made.append(value)
    return 2 * value


@step(registry=registry)
async def total(values: list[int], word: str) -> str:
    return f"{word} {sum(values)}"


@step(registry=registry)
async def wait_at(gate: str) -> str:
    await gates[gate].wait()
    return "sum"


@workflow(registry=registry)
def doubled_beside(gate: str) -> str:
    return total.bind(gather(numbers.bind(5), double, id="scan"), wait_at.bind(gate))


@workflow(registry=registry)
def doubled(count: int) -> str:
    return total.bind(gather(numbers.bind(count), double, id="scan"), signal_value("go", type=str))


async def forgotten(app: App, run: Run[str]) -> int:
    node = app._node  # pyright: ignore[reportPrivateUsage]  # there is no other way to look
    return node.engine.runs[await run.key()].state.forgotten


async def rewind(app: App, run: Run[str], at: str) -> None:
    node = app._node  # pyright: ignore[reportPrivateUsage]  # clients do not rewind
    refusal, events = await request(node, await run.key(), inp.Rewind(at))
    assert refusal is None
    assert events


@pytest.fixture(params=["memory", "sqlite"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return "memory://" if request.param == "memory" else f"sqlite:///{tmp_path / 'x.db'}"


async def test_a_step_of_a_closed_iteration_is_rewound_while_its_run_goes_on(store: str) -> None:
    made.clear()
    gate = gates[store] = asyncio.Event()
    async with connect(store, registry=registry) as app, asyncio.timeout(20):
        run = await app.start(doubled_beside, store)
        assert await run.step("scan", type=list[int]) == [0, 2, 4, 6, 8]
        assert await forgotten(app, run) == 10

        await rewind(app, run, "scan[2]/double")
        gate.set()

        assert await run.result() == "sum 20"
        assert sorted(made) == [0, 1, 2, 2, 3, 4]
        shown = await run.inspect()
        assert [each.generation for each in shown.steps if each.id == "double"] == [1, 1, 2, 1, 1]


async def test_an_iteration_that_is_waited_for_is_told_when_it_ends(store: str) -> None:
    async with connect(store, registry=registry) as app, asyncio.timeout(20):
        run = await app.start(doubled, 3)

        assert await run.step("scan[1]") == 2

        await run.signal("go", "sum")
        assert await run.result() == "sum 6"
        assert await run.step("scan[2]/double") == 4


async def test_hooks_hear_of_iterations_that_are_forgotten(store: str) -> None:
    told: list[tuple[str, str]] = []

    class Ear(Hooks):
        def scope_ended(self, boundary: Boundary) -> None:
            told.append((boundary.address, boundary.outcome))

        def step_ended(self, boundary: Boundary) -> None:
            told.append((boundary.address, boundary.outcome))

    async with connect(store, registry=registry, hooks=[Ear()]) as app, asyncio.timeout(20):
        run = await app.start(doubled, 3)
        await run.signal("go", "sum")
        assert await run.result() == "sum 6"

    for index in range(3):
        assert told.count((f"scan[{index}]", "succeeded")) == 1
        assert told.count((f"scan[{index}]/double", "succeeded")) == 1


async def test_a_run_is_loaded_without_what_is_closed_and_whole_after_a_rewind(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'x.db'}"
    async with connect(url, registry=registry) as app, asyncio.timeout(20):
        run = await app.start(doubled, 5, id="r")
        await run.step("scan", type=list[int])

    async with connect(url, registry=registry) as app, asyncio.timeout(20):
        run = app.run("r", str)
        await rewind(app, run, "scan[4]/double")
        await run.step("scan", type=list[int])

    async with connect(url, registry=registry) as app, asyncio.timeout(20):
        run = app.run("r", str)
        await run.signal("go", "sum")
        assert await run.result() == "sum 20"


def scopes_alive() -> int:
    # What the collector does not look at hides what it holds until the next time.
    for _ in range(3):
        gc.collect()
    return sum(isinstance(found, ScopeState) for found in gc.get_objects())


async def test_blocks_that_have_asked_a_worker_are_gone_with_their_run(store: str) -> None:
    asks = Predicate("always")
    cell = Step(id="cell", action="numbers", slots={"count": Const(0)})
    each = Step(id="d", action="double", slots={"value": Item()})
    blocks: list[Block] = [
        Step(id="many", action="numbers", slots={"count": Const(0)}),
        Gather(id="each", items=Ref("many"), body=Body(blocks=[each])),
        Choose(id="pick", branches=[Branch(id="b", when=asks, blocks=[cell])]),
        Phases(
            id="rows",
            phases=[Phase(id="one", blocks=[cell], policy="p")],
            policies={"p": (Rule(id="end", move="stop", when=asks),)},
        ),
    ]
    planned = Planned(Plan(workflow="asking", blocks=blocks), ["600"], codec.adapter(None))
    async with connect(store, registry=registry) as app, asyncio.timeout(30):
        await (await app.start(planned)).result()
        before = scopes_alive()

        for _ in range(3):
            await (await app.start(planned)).result()

        assert scopes_alive() == before
