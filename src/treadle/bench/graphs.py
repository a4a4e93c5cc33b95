"""The graphs of the benchmarks, and the steps they are made of."""

from __future__ import annotations

import time

from treadle.authoring.builder import PlanBuilder, Planned
from treadle.authoring.decorators import step

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
