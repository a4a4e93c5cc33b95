"""Undoing a chain or a fan, measured against the time of running it: the same steps, in the same call."""

from __future__ import annotations

import time
from itertools import pairwise

from treadle.authoring.builder import PlanBuilder, Planned
from treadle.authoring.decorators import step
from treadle.connect import connect

# When each undo began, for latencies.
_starts: list[float] = []


async def _unbump(value: int) -> None:
    _starts.append(time.perf_counter())


@step(name="treadle.bench:bump_undoable", undo=_unbump)
async def bump(value: int) -> int:
    """Add one."""
    return value + 1


def _plan(shape: str, size: int) -> Planned:
    builder = PlanBuilder("bench-unwind")
    value = builder.step("s0", bump, 0)
    for number in range(1, size):
        after = builder.step(f"s{number}", bump, value)
        value = after if shape == "chain" else value
    return builder.build()


async def unwind(store: str, size: int, shape: str) -> tuple[float, int, list[float], float, str]:
    """Seconds, steps, gaps between undos, steps a second of the run itself, and notes."""
    planned = _plan(shape, size)
    _starts.clear()
    async with connect(store) as app:
        # Run a little, so that code is compiled and memory is there.
        warm = await app.start(_plan(shape, 50))
        await warm.wait()
        await warm.undo()
        await warm.wait()
        _starts.clear()
        began = time.perf_counter()
        run = await app.start(planned)
        await run.wait()
        ran = time.perf_counter()
        await run.undo()
        row = await run.wait()
        ended = time.perf_counter()
        assert row.unwound == "fully"
        durability = app.durability
    gaps = [after - before for before, after in pairwise(_starts)]
    notes = f"{durability}; {shape}: run in {ran - began:.3f} s, undone in {ended - ran:.3f} s; ceiling: running it"
    return ended - ran, size, gaps, size / (ran - began), notes
