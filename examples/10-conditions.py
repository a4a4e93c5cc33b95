"""`when`: a step that runs only if something holds. Skipped by its own condition, it disturbs nobody after it."""

import asyncio

from treadle import connect, or_default, predicate, step, workflow


@step
async def weigh(parcel: str) -> int:
    return len(parcel)


@step
async def is_fragile(parcel: str) -> bool:
    return "glass" in parcel


@predicate
def heavier_than(weight: int, limit: int) -> bool:
    return weight > limit


@step
async def call_truck(weight: int) -> str:
    return f"a truck for {weight} kg"


@step
async def wrap() -> str:
    return "wrapped"


@step
async def send(parcel: str, truck: str | None) -> str:
    return f"{parcel}: {truck or 'by bicycle'}"


@workflow
def ship(parcel: str) -> str:
    weight = weigh.bind(parcel)
    # A predicate is asked once, with the values, when all else is ready.
    truck = call_truck.options(when=heavier_than.bind(weight, 10)).bind(weight)
    # So is the result of a step that gives a bool.
    wrapped = wrap.options(when=is_fragile.bind(parcel)).bind()
    # `after` is satisfied by a step that its own condition skipped. A value that is missing needs a default.
    return send.options(after=wrapped).bind(parcel, or_default(truck, None))


async def main() -> None:
    async with connect("memory://") as app:
        for parcel in ("book", "a piano and its stool", "glass"):
            run = await app.start(ship, parcel)
            print(await run.result())
            print("  skipped:", [view.address for view in (await run.inspect()).steps if view.status == "skipped"])


if __name__ == "__main__":
    asyncio.run(main())
