"""Steps that take the same arguments: what is found once for all of them must not be seen in any."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from treadle import Next, PlanBuilder, StepCall, connect, context, step

WIDTH = 50


@pytest.fixture(params=["memory", "sqlite"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return "memory://" if request.param == "memory" else f"sqlite:///{tmp_path}/app.db?sync=normal"


@step(name="alike:numbers")
async def numbers() -> list[int]:
    return [1, 2]


@step(name="alike:one")
async def one() -> int:
    return 1


@step(name="alike:grow")
async def grow(values: list[int]) -> list[int]:
    values.append(3)
    return values


@step(name="alike:as-int")
async def as_int(value: int) -> str:
    return f"{value!r} in {context().address}"


@step(name="alike:as-float")
async def as_float(value: float) -> str:
    return f"{value!r} in {context().address}"


@step(name="alike:other-name")
async def other_name(number: int) -> str:
    return f"{number!r} in {context().address}"


async def test_a_step_that_changes_its_argument_changes_nobody_elses(url: str) -> None:
    builder = PlanBuilder("lists")
    first = builder.step("first", numbers)
    builder.output([builder.step(f"s{number}", grow, first) for number in range(WIDTH)])

    async with connect(url) as app:
        assert await (await app.start(builder.build())).result(timeout=10) == [[1, 2, 3]] * WIDTH


async def test_each_function_gets_the_value_as_it_declares_it(url: str) -> None:
    builder = PlanBuilder("functions")
    first = builder.step("first", one)
    kinds: list[Any] = [as_int, as_int, as_float, as_float, as_int, other_name]
    builder.output([builder.step(f"s{number}", kinds[number % 6], first) for number in range(WIDTH)])

    async with connect(url) as app:
        found = await (await app.start(builder.build())).result(timeout=10)

    texts = ["1", "1", "1.0", "1.0", "1", "1"]
    assert found == [f"{texts[number % 6]} in s{number}" for number in range(WIDTH)]


async def test_a_middleware_sees_the_arguments_of_each(url: str) -> None:
    seen: dict[str, dict[str, Any]] = {}

    async def note(call: StepCall, call_next: Next) -> Any:
        seen[call.address] = dict(call.arguments)
        return await call_next()

    builder = PlanBuilder("seen")
    first = builder.step("first", one)
    builder.output([builder.step(f"s{number}", as_int, first) for number in range(WIDTH)])

    async with connect(url, middleware=[note]) as app:
        await (await app.start(builder.build())).result(timeout=10)

    assert seen == {"first": {}, **{f"s{number}": {"value": 1} for number in range(WIDTH)}}
