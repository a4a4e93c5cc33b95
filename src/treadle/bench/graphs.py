"""The graphs of the benchmarks, and the steps they are made of."""

from __future__ import annotations

import time

from treadle.authoring.builder import PlanBuilder, Planned
from treadle.authoring.decorators import step, workflow
from treadle.authoring.openings import gather
from treadle.authoring.phases import Phase, Phases, Rule

# When each step body began, for latencies; cleared by the caller.
starts: list[float] = []


@step(name="treadle.bench:bump")
async def bump(value: int) -> int:
    """Add one."""
    starts.append(time.perf_counter())
    return value + 1


@step(name="treadle.bench:total")
async def total(values: list[int]) -> int:
    """Add all."""
    return sum(values)


@step(name="treadle.bench:numbers")
async def numbers(count: int) -> list[int]:
    """Zero and those after it."""
    return list(range(count))


@workflow(name="bench-gather")
def gathering(count: int) -> int:
    """One step that gives a list, one more for each of its items, one that sums."""
    return total.bind(gather(numbers.bind(count), bump))


async def first_lane() -> int:
    """A cell that tells when its row began."""
    starts.append(time.perf_counter())
    return 1


async def lane() -> int:
    """A cell that does nothing."""
    return 1


def phases(rows: int) -> Phases:
    """One phase of four lanes, entered so often; a rule stops it."""
    row = Phase("row", {"a": first_lane, "b": lane, "c": lane, "d": lane}, policy="rows")
    rules = [Rule.stop(when=f"step >= {rows - 1}"), Rule.repeat()]
    return Phases(row, policies={"rows": rules}, step_limit=rows)


def chain(length: int) -> Planned:
    """Steps that each use their predecessor's result."""
    builder = PlanBuilder("bench-chain")
    value = builder.step("s0", bump, 0)
    for number in range(1, length):
        value = builder.step(f"s{number}", bump, value)
    builder.output(value)
    return builder.build()


def fan(width: int) -> Planned:
    """One step, `width` parallel ones, one join that sums."""
    builder = PlanBuilder("bench-fan")
    first = builder.step("first", bump, 0)
    parts = [builder.step(f"p{number}", bump, first) for number in range(width)]
    builder.output(builder.step("join", total, parts))
    return builder.build()
