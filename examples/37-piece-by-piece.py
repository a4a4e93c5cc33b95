"""A list of any length: one step yields its items, and another reads the results while it runs."""

import asyncio
from collections.abc import AsyncIterable, AsyncIterator

from treadle import connect, gather, step, workflow


@step
async def read_meter(hours: int) -> AsyncIterator[int]:
    # Stored as they come, some hundreds together; if the attempt fails in the middle, the next one begins anew.
    for hour in range(hours):
        yield 20 + hour % 7


@step
async def to_fahrenheit(celsius: int) -> float:
    return celsius * 1.8 + 32


@step
async def warmest(values: AsyncIterable[float]) -> float:
    # Read as far as the loop has come.
    most = 0.0
    async for value in values:
        most = max(most, value)
    return most


@workflow
def survey(hours: int) -> float:
    return warmest.bind(gather(read_meter.bind(hours), to_fahrenheit))


async def main() -> None:
    async with connect("memory://") as app:
        run = await app.start(survey, 1200)
        print(f"at most {await run.result():.1f}")


if __name__ == "__main__":
    asyncio.run(main())
