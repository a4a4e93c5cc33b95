"""A workflow called from a workflow is a run of its own: with its own id, journal, and operators."""

import asyncio

from treadle import RunFailedError, connect, step, workflow

stock = {"lamp": 3}


@step
async def reserve(item: str) -> str:
    if not stock.get(item):
        raise ValueError(f"no {item} in stock")
    stock[item] -= 1
    return f"one {item}"


@step
def pack(reserved: str) -> str:
    return f"parcel with {reserved}"


@step
def report(parcels: list[str]) -> str:
    return ", ".join(parcels)


@workflow
def ship(item: str) -> str:
    return pack.bind(reserve.bind(item))


@workflow
def ship_all(items: list[str]) -> str:
    # `ship(item)` would plan its steps in place; `.bind` makes a child run of each.
    return report.bind([ship.options(id=item).bind(item) for item in items])


@workflow
def order(items: list[str]) -> str:
    # Started and left alone: the result is the child's run id.
    return ship_all.detached.bind(items)


async def main() -> None:
    async with connect("sqlite:///children.db") as app:
        run = await app.start(ship_all, ["lamp", "desk"], id="monday")
        try:
            await run.result()
        except RunFailedError as error:
            print(error)

        stock["desk"] = 1
        # A retry of the step reopens its child.
        print("retried:", await run.retry())
        print(await run.result())
        for row in await app.runs(parent=await run.key()):
            print(f"{row.id}: {row.status}")

        child = await (await app.start(order, ["lamp"], id="tuesday")).result()
        print(child, "->", await app.run(child).result())


if __name__ == "__main__":
    asyncio.run(main())
