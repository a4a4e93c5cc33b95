"""`grow`: whether a step's cost grows with the store, or with its run."""

from __future__ import annotations

import asyncio
import gc
import statistics
import time
from pathlib import Path

from treadle.bench import graphs
from treadle.connect import connect
from treadle.runtime.client import App

ROUNDS = 7
BATCH = 100
# Of runs of all sizes: a run of 100,000 steps takes some seconds, with its plan.
WIDE_ROUNDS = 5


async def grow(store: str, size: int) -> tuple[float, int, list[float], float, str]:
    """Seconds per step with 0, size/10 and size finished runs, and in one run of size/10, size and 10 size steps."""
    filled = await _stores(store, [0, size // 10, size])
    wide = await _widths(store, [max(size // 10, 1), size, size * 10])
    costs = [cost for _, cost in filled]
    notes = (
        "us per step by finished runs in the store: "
        + ", ".join(f"{count}: {cost * 1e6:.1f}" for count, cost in filled)
        + "; by steps of one run: "
        + ", ".join(f"{count}: {cost * 1e6:.1f}" for count, cost in wide)
        + "; ceiling: the empty store"
    )
    steps = ROUNDS * BATCH * 5
    return costs[-1] * steps, steps, [cost for _, cost in filled + wide], 1 / costs[0], notes


def _beside(store: str, name: str) -> str:
    """The URL of another store beside this one."""
    if not store.startswith("sqlite"):
        return store
    base, question, options = store.partition("?")
    path = Path(base.removeprefix("sqlite:///"))
    return f"sqlite:///{path.with_name(f'{path.stem}-{name}{path.suffix}')}{question}{options}"


async def _stores(store: str, counts: list[int]) -> list[tuple[int, float]]:
    """Median cost of a step in stores that hold so many finished runs; the rounds are interleaved."""
    apps: list[App] = []
    try:
        for count in counts:
            app = await connect(_beside(store, f"filled-{count}")).open()
            apps.append(app)
            for begin in range(0, count, 500):
                await _batch(app, min(500, count - begin))
        found: list[list[float]] = [[] for _ in counts]
        for _ in range(ROUNDS):
            for place, app in enumerate(apps):
                began = time.perf_counter()
                await _batch(app, BATCH)
                found[place].append((time.perf_counter() - began) / (BATCH * 5))
        return [(count, statistics.median(costs)) for count, costs in zip(counts, found, strict=True)]
    finally:
        for app in apps:
            await app.close()


async def _batch(app: App, runs: int) -> None:
    started = await asyncio.gather(*[app.start(graphs.chain(5)) for _ in range(runs)])
    await asyncio.gather(*[run.result() for run in started])


async def _widths(store: str, sizes: list[int]) -> list[tuple[int, float]]:
    """Median cost of a step in runs of so many steps; the rounds are interleaved.

    A full collection of garbage takes longer than a small run. It looks at all that the process holds, so it is made
    before the clock starts: otherwise it falls into some run, which then pays for what others have left.
    """
    found: list[list[float]] = [[] for _ in sizes]
    async with connect(_beside(store, "wide")) as app:
        for _ in range(WIDE_ROUNDS):
            for place, width in enumerate(sizes):
                planned = graphs.fan(width)
                repeats = max(1, sizes[-1] // (width * 5))
                gc.collect()
                began = time.perf_counter()
                for _ in range(repeats):
                    await (await app.start(planned)).result()
                found[place].append((time.perf_counter() - began) / (repeats * width))
    return [(width, statistics.median(costs)) for width, costs in zip(sizes, found, strict=True)]
