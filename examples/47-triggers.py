"""Many triggers, one run: with the arguments of the last one, or with the list of all."""

import asyncio

from treadle import Batch, Debounce, connect, step, workflow


@step
async def build(site: str, revision: int) -> str:
    return f"{site} built at revision {revision}"


@workflow(triggers=Debounce("100ms", timeout="10s", key="site"))
def publish(site: str, revision: int) -> str:
    return build.bind(site, revision)


@step
async def load(rows: list[str]) -> str:
    return f"{len(rows)} rows: {rows[0]} to {rows[-1]}"


@workflow(triggers=Batch(3, timeout="100ms"))
def insert(rows: list[str]) -> str:
    return load.bind(rows)


async def main() -> None:
    async with connect("memory://") as app:
        for revision in (1, 2, 3):
            shop = await app.trigger(publish, "shop", revision)
        blog = await app.trigger(publish, "blog", 1)
        print(await shop.result(), "and", await blog.result())

        windows = [await app.trigger(insert, f"row {number}", id=f"row-{number}") for number in range(5)]
        again = await app.trigger(insert, "row 4", id="row-4")
        print(await windows[0].result(), "then", await again.result())


asyncio.run(main())
