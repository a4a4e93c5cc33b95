"""Steps that take the values of many others as one list."""

from __future__ import annotations

import datetime as dt
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from treadle import PlanBuilder, RunFailedError, connect, step


@pytest.fixture(params=["memory", "sqlite"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return "memory://" if request.param == "memory" else f"sqlite:///{tmp_path}/app.db?sync=normal"


@step(name="joins:price")
async def price(cents: int) -> Decimal:
    return Decimal(cents) / 100


@step(name="joins:text")
async def text(length: int) -> str:
    return "x" * length


@step(name="joins:echo")
async def echo(value: Any) -> Any:
    return value


@step(name="joins:sum")
async def add_up(prices: list[Decimal], at: list[dt.date], plain: list[list[int]]) -> str:
    assert all(type(one) is Decimal for one in prices)
    return f"{sum(prices)} on {max(at)}, {plain}"


@step(name="joins:lengths")
async def lengths(texts: list[str], none: list[int]) -> list[int]:
    return [*map(len, texts), *none]


@step(name="joins:total")
async def total(numbers: list[int]) -> int:
    return sum(numbers)


async def test_a_list_of_values_of_any_type_arrives_as_they_were_given(url: str) -> None:
    builder = PlanBuilder("values")
    prices = [builder.step(f"p{cents}", price, cents) for cents in (5, 1999)]
    two = builder.step("two", echo, 2)
    dates = [dt.date(2024, 2, 29), dt.date(2023, 1, 1)]
    builder.output(builder.step("sum", add_up, prices, dates, [[1, two], [], [two]]))

    async with connect(url) as app:
        assert await (await app.start(builder.build())).result(10) == "20.04 on 2024-02-29, [[1, 2], [], [2]]"


async def test_short_and_long_values_and_none_at_all_are_taken_in_their_order(url: str) -> None:
    builder = PlanBuilder("sizes")
    sizes = (1, 100_000, 2, 0)
    builder.output(builder.step("all", lengths, [builder.step(f"s{size}", text, size) for size in sizes], []))

    async with connect(url) as app:
        assert await (await app.start(builder.build())).result(10) == list(sizes)


@pytest.mark.parametrize("long", [False, True])
async def test_a_value_of_a_wrong_type_is_named_by_its_place(url: str, *, long: bool) -> None:
    builder = PlanBuilder("wrong")
    # One that is stored apart takes the other way.
    bad = "no number" * (10_000 if long else 1)
    builder.output(builder.step("total", total, [builder.step("a", echo, 1), builder.step("b", echo, bad)]))

    async with connect(url) as app:
        with pytest.raises(RunFailedError, match=r"argument 'numbers': at `\$\[1\]`: expected `int`, got `str`"):
            await (await app.start(builder.build())).result(10)
