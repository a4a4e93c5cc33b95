"""The program that the kill tests of projections start again and again: a run whose steps give a record each."""

from __future__ import annotations

import asyncio
import os
import sys

from treadle import PlanBuilder, Projection, connect, context, step


def counts(url: str) -> Projection:
    """A projection that counts how often each record is applied."""
    made = Projection("counts", migrations=["CREATE TABLE counts (step TEXT PRIMARY KEY, seen INTEGER)"], url=url)
    made.collection(
        "count",
        "INSERT INTO counts (step, seen) VALUES (:key, 1) ON CONFLICT (step) DO UPDATE SET seen = counts.seen + 1",
    )
    return made


@step(name="projection:give", lost_limit=1000)
async def give() -> None:
    """Give a record, and leave a line."""
    context().record("count", context().step, {})
    descriptor = os.open(os.environ["KILL_LOG"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(descriptor, b"step\n")
    os.close(descriptor)


async def main(url: str, place: str) -> None:
    """Start (or attach to) the run, and execute until it has its outcome."""
    builder = PlanBuilder("counted")
    for lane in range(4):
        last = builder.step(f"l{lane}s0", give)
        for number in range(1, 20):
            last = builder.step(f"l{lane}s{number}", give, after=last)
    async with connect(url, slots=8, lease=1, projections=[counts(place)]) as app:
        await (await app.start(builder.build(), id="victim")).result()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2]))
