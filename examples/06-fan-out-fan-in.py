"""Many steps at once, and one that takes all their results, in the order in which they were written."""

import asyncio
import random

from treadle import connect, step, workflow


@step
async def square(number: int) -> int:
    # Whoever ends first, the order of the results is that of the list.
    await asyncio.sleep(random.random() / 50)
    return number * number


@step
def total(numbers: list[int]) -> int:
    print(f"  got {numbers[:6]}...")
    return sum(numbers)


@workflow
def sum_of_squares(count: int) -> int:
    return total.bind([square.options(id=f"square {number}").bind(number) for number in range(count)])


async def main() -> None:
    # `slots` bounds how many async steps run at a time in this process, `threads` how many sync ones.
    async with connect("memory://", slots=20) as app:
        run = await app.start(sum_of_squares, 100)
        print(await run.result())
        print(await run.step("square 9", type=int))


if __name__ == "__main__":
    asyncio.run(main())
