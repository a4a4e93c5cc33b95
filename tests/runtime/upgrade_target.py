"""The program of the test of upgrades: starts runs, and serves the store until it is killed."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

from treadle import PlanBuilder, Planned, connect, step

LENGTH = 12


@step(name="upgrade:work", lost_limit=1000)
async def work(before: int) -> int:
    """Add one; in the middle of the run once the gate is open."""
    while before == LENGTH // 2 and not Path(os.environ["UPGRADE_GATE"]).exists():
        await asyncio.sleep(0.02)
    return before + 1


def plan() -> Planned:
    """A chain."""
    builder = PlanBuilder("upgrade")
    value = builder.step("s0", work, 0)
    for number in range(1, LENGTH):
        value = builder.step(f"s{number}", work, value)
    builder.output(value)
    return builder.build()


async def main(url: str, worker: bool, ids: list[str]) -> None:
    """Start runs, say so, and go on."""
    async with connect(url, worker=worker, lease=2.0) as app:
        for run_id in ids:
            await app.start(plan(), id=run_id)
        print("ready", flush=True)
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2] == "worker", sys.argv[3:]))
