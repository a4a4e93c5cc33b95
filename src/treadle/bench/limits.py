"""`limits`: many runs in queues with limits, against the same runs without, in turns on one store."""

from __future__ import annotations

import asyncio
import statistics
import time

import msgspec

from treadle.authoring.builder import PlanBuilder, Planned
from treadle.bench import graphs
from treadle.connect import connect
from treadle.runtime.client import App
from treadle.runtime.queues import Queue

# How often each kind has its turn; an odd number, for a median.
ROUNDS = 5
STEPS = 5
FEW = 8
_QUEUES = {
    # Limits that are counted and hold nothing back, and one that holds most tasks back.
    "wide": Queue("bench-wide", concurrency=100_000, rate=1_000_000, burst=100_000),
    "keyed": Queue("bench-keyed", concurrency=100_000, key_concurrency=100_000),
    "narrow": Queue("bench-narrow", concurrency=FEW),
}


class Turn(msgspec.Struct):
    """What one turn took, in all and of the processor."""

    seconds: float
    busy: float


def _planned(queue: str, key: str) -> Planned:
    plan = PlanBuilder("limits")
    value = 0
    for number in range(STEPS):
        if key:
            value = plan.step(f"s{number}", graphs.bump, value, queue=queue, key=key)
        else:
            value = plan.step(f"s{number}", graphs.bump, value, queue=queue)
    plan.output(value)
    return plan.build()


async def limits(store: str, size: int) -> tuple[float, int, list[float], float, str]:
    """Take turns with and without limits; the ceiling is without."""
    free = _planned("bench-free", "")
    limited = {name: _planned(queue.name, "value" if name == "keyed" else "") for name, queue in _QUEUES.items()}
    turns: dict[str, list[Turn]] = {}
    durability = ""
    kinds = [("none", free), *limited.items()]
    for number in range(ROUNDS):
        async with connect(store, queues=list(_QUEUES.values())) as app:
            durability = app.durability
            # None is always the first one after a new start.
            for name, planned in kinds[number % len(kinds) :] + kinds[: number % len(kinds)]:
                turns.setdefault(name, []).append(await _turn(app, planned, size))
        async with connect(store, slots=FEW) as app:
            turns.setdefault("few", []).append(await _turn(app, free, size))
    busy = {name: statistics.median(turn.busy for turn in found) for name, found in turns.items()}
    cost = {name: busy[name] / busy["few" if name == "narrow" else "none"] - 1 for name in limited}
    notes = (
        f"{durability}; processor time beside that without limits: {cost['wide']:+.0%} where concurrency and a rate"
        f" are counted, {cost['keyed']:+.0%} where keys are too, and where {FEW} run at a time {cost['narrow']:+.0%}"
        f" beside a worker with {FEW} slots; ceiling: the same runs without limits"
    )
    seconds = statistics.median(turn.seconds for turn in turns["wide"])
    ceiling = size * STEPS / statistics.median(turn.seconds for turn in turns["none"])
    return seconds, size * STEPS, [seconds / (size * STEPS)], ceiling, notes


async def _turn(app: App, planned: Planned, size: int) -> Turn:
    async def one() -> None:
        run = await app.start(planned)
        assert await run.result() == STEPS

    # What is made at its first use is there.
    await asyncio.gather(*[one() for _ in range(max(1, size // 10))])
    began, busy = time.perf_counter(), time.process_time()
    await asyncio.gather(*[one() for _ in range(size)])
    graphs.starts.clear()
    return Turn(time.perf_counter() - began, time.process_time() - busy)
