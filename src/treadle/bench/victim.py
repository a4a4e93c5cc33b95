"""The process that `treadle bench recover` kills: starts runs, executes them, and leaves a line for each step begun."""

from __future__ import annotations

import asyncio
import os
import sys

from treadle.authoring.builder import PlanBuilder, Planned
from treadle.authoring.decorators import step
from treadle.connect import connect

LOG = "TREADLE_BENCH_LOG"


@step(name="treadle.bench:logged")
async def logged(run: str, number: int, value: int) -> int:
    """Note that this step was executed, then add one."""
    descriptor = os.open(os.environ[LOG], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    try:
        os.write(descriptor, f"{run} {number}\n".encode())
    finally:
        os.close(descriptor)
    return value + 1


def plan(run: str) -> Planned:
    """Five steps in a row that note their execution."""
    builder = PlanBuilder("bench-recover")
    value = 0
    for number in range(5):
        value = builder.step(f"s{number}", logged, run, number, value)
    builder.output(value)
    return builder.build()


async def main(url: str, runs: int) -> None:
    """Start the runs and wait for all of them."""
    async with connect(url) as app:
        started = await asyncio.gather(*[app.start(plan(f"r{n}"), id=f"r{n}") for n in range(runs)])
        await asyncio.gather(*[run.wait() for run in started])


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2])))
