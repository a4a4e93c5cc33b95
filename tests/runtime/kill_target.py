"""The program that the kill tests start again and again: one run whose steps leave a line each time they execute."""

from __future__ import annotations

import asyncio
import os
import sys

from treadle import PlanBuilder, Planned, connect, context, step, workflow


def note(what: str) -> None:
    """Append one line to the log, atomically."""
    descriptor = os.open(os.environ["KILL_LOG"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    try:
        os.write(descriptor, f"{what}\n".encode())
    finally:
        os.close(descriptor)


@step(name="kill:work", lost_limit=1000)
async def work(number: int, before: int) -> int:
    """Add a number to what came before."""
    note(f"{context().step} {context().attempt}")
    return before + number


@step(name="kill:sync", lost_limit=1000)
def in_thread(number: int, before: int) -> int:
    """The same in a thread."""
    note(f"{context().step} {context().attempt}")
    return before + number


@step(name="kill:spread", lost_limit=1000)
async def spread(width: int) -> int:
    """Add `width` steps to the run."""
    note(f"{context().step} {context().attempt}")
    context().add(*[work.options(id=f"more {n}").bind(n, 0) for n in range(width)])
    return width


@step(name="kill:total", lost_limit=1000)
async def total(values: list[int]) -> int:
    """Add all."""
    return sum(values)


@step(name="kill:plus", lost_limit=1000)
async def plus(number: int, before: int) -> int:
    """Add, without a line."""
    return before + number


@workflow(name="kill:called")
def called(number: int, before: int) -> int:
    """A run that each lane calls."""
    return plus.bind(number, before)


def plan(lanes: int, length: int) -> Planned:
    """Lanes of chained steps that add to the run at their ends, and a join of all lanes."""
    builder = PlanBuilder("kill")
    ends = []
    for lane in range(lanes):
        value = builder.step(f"l{lane}s0", work, 1, 0)
        for place in range(1, length):
            function = in_thread if place % 5 == 0 else work
            value = builder.step(f"l{lane}s{place}", function, 1, value)
        with builder:
            value = called.options(id=f"call{lane}").bind(0, value)
        builder.step(f"spread{lane}", spread, 5, after=value)
        ends.append(value)
    builder.output(builder.step("join", total, ends))
    return builder.build()


async def main(url: str, lanes: int, length: int) -> None:
    """Start (or attach to) the run, and execute until it has its outcome."""
    # Where a dead process is known by its silence alone, the tests do not wait for it as long as people would.
    async with connect(url, slots=8, threads=4, lease=float(os.environ.get("KILL_LEASE", "15"))) as app:
        run = await app.start(plan(lanes, length), id="victim")
        print(await run.result())


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))
