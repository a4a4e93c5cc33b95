"""A program that runs workflows and tells a webhook of them; killed by the test."""

from __future__ import annotations

import asyncio
import sys

from treadle import Webhook, connect, step, workflow


@step(name="target:add")
async def add(number: int) -> int:
    await asyncio.sleep(0.002)
    return number + 1


@workflow(name="target:chain")
def chain(length: int) -> int:
    value: int = 0
    for _ in range(length):
        value = add.bind(value)
    return value


async def main(url: str, hook: str, runs: int, length: int) -> None:
    async with connect(url, events=[Webhook(hook, name="hook", kinds=["*"], history=True)]) as app:
        started = [await app.start(chain, length, id=f"run-{number}") for number in range(runs)]
        for run in started:
            await run.result()
        await app.events_delivered()
    print("done")


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])))
