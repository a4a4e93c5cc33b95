"""A gather over so many items, in a process of its own; prints the most memory that it ever had, in MiB."""

from __future__ import annotations

import asyncio
import resource
import sys
from collections.abc import AsyncIterable, AsyncIterator

from treadle import connect, gather, step, workflow


@step(name="million:items")
async def items(count: int) -> AsyncIterator[int]:
    """Yield the items: nobody holds them all."""
    for number in range(count):
        yield number


@step(name="million:one")
async def one(item: int) -> int:
    """What is done for each."""
    return item % 7


@step(name="million:total")
async def total(values: AsyncIterable[int]) -> int:
    """Read the results while it runs."""
    found = 0
    async for value in values:
        found += value
    return found


@workflow(name="million:all")
def everything(count: int) -> int:
    """All of them, some hundreds at a time."""
    return total.bind(gather(items.bind(count), one, id="each", limit=500))


async def main(url: str, count: int) -> None:
    """Run it to its end."""
    async with connect(url) as app:
        run = await app.start(everything, count, id="many")
        assert await run.result() == sum(number % 7 for number in range(count))


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2])))
    # Kibibytes on Linux, bytes on macOS.
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(most // 1024 // (1024 if sys.platform == "darwin" else 1))
