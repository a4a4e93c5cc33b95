"""A worker process of `treadle bench workers`: one thread, steps that use the processor, until its input ends."""

from __future__ import annotations

import asyncio
import sys
import time

from treadle.authoring.builder import PlanBuilder, Planned
from treadle.authoring.decorators import step
from treadle.connect import connect

# Of processor time, a step.
STEP_SECONDS = 0.005


@step(name="treadle.bench:burn")
def burn(value: int) -> int:
    """Use the processor for a while, as one thread does."""
    began = time.thread_time()
    while time.thread_time() - began < STEP_SECONDS:
        value += 1
    return 1


@step(name="treadle.bench:count")
async def count(values: list[int]) -> int:
    """How many there are."""
    return sum(values)


def burning(steps: int) -> Planned:
    """Steps beside each other that use the processor."""
    builder = PlanBuilder("bench-workers")
    builder.output(builder.step("count", count, [builder.step(f"s{number}", burn, 0) for number in range(steps)]))
    return builder.build()


async def main(url: str) -> None:
    """Tell that it is there, execute until the input ends, and tell how much processor time that took."""
    async with connect(url, threads=1):
        began = time.process_time()
        print("ready", flush=True)  # noqa: T201 - it is what the measuring process waits for
        await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
        print(time.process_time() - began)  # noqa: T201 - as above


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
