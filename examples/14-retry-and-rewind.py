"""Mending a finished run: retry what failed, or rewind to a step and do it again with all that follows from it."""

import asyncio

from treadle import RunFailedError, connect, context, step, workflow

SERVER = {"up": False}
PRICES = {"tea": 3}


@step
async def order(item: str) -> str:
    print(f"  order {item}")
    return item


@step
async def price(item: str) -> int:
    if not SERVER["up"]:
        raise ConnectionError("the price list cannot be reached")
    return PRICES[item]


@step
async def bill(item: str, amount: int) -> str:
    return f"{item} costs {amount} (generation {context().generation})"


@workflow
def sale(item: str) -> str:
    ordered = order.bind(item)
    return bill.bind(ordered, price.bind(ordered))


async def main() -> None:
    async with connect("memory://") as app:
        run = await app.start(sale, "tea", id="sale-1")
        try:
            await run.result()
        except RunFailedError as error:
            print(error)

        SERVER["up"] = True
        # Exactly what failed, and what was skipped because of it; earlier results stay.
        print("reopened:", await run.retry())
        print(await run.result())

        PRICES["tea"] = 4
        # A step with an outcome is opened again, with all that depends on it, as its next generation.
        print("reopened:", await run.rewind("price"))
        print(await run.result())


if __name__ == "__main__":
    asyncio.run(main())
