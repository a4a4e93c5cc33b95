"""Holding a run, letting it go on, and stopping it: by whoever knows its id, in this process or another."""

import asyncio

from treadle import RunCancelledError, RunNotPausedError, connect, step, workflow


@step
async def work(number: int, before: int) -> int:
    await asyncio.sleep(0.05)
    return before + number


@workflow
def long(count: int) -> int:
    total = 0
    for number in range(count):
        total = work.options(id=f"work {number}").bind(number, total)
    return total


async def main() -> None:
    async with connect("memory://") as app:
        run = await app.start(long, 4)
        # What runs now may end; nothing else starts.
        print("after pause():", await run.pause())
        await asyncio.sleep(0.1)
        snapshot = await run.inspect()
        print("a moment later:", snapshot.status, snapshot.counts["succeeded"], "of", len(snapshot.steps))
        await run.resume()
        print("result:", await run.result())
        try:
            await run.resume()
        except RunNotPausedError as error:
            print(f"too late: {error} (code {error.code!r}, status {error.status!r})")

        run = await app.start(long, 1000)
        # Soft: running steps end and count. `hard=True` ends them too.
        await run.cancel()
        try:
            await run.result()
        except RunCancelledError as error:
            print(error.code, (await run.inspect()).counts["cancelled"] > 900)


if __name__ == "__main__":
    asyncio.run(main())
