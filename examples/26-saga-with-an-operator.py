"""A saga: a booking of several services is taken back, an undo fails, and an operator decides what becomes of it."""

import asyncio

from treadle import NotCompensable, Retry, connect, context, step, workflow

BOOKED: dict[str, str] = {}
SERVICE = {"hotel": "does not answer"}


def release(what: str) -> None:
    if SERVICE.get(what):
        raise ConnectionError(f"the {what} {SERVICE[what]}")
    # The key is that of the booking: no undo state is needed.
    BOOKED.pop(context().idempotency_key, None)
    print(f"  released the {what}")


@step(undo=release, retry=Retry(attempts=2, initial="10ms"))
async def book(what: str) -> str:
    BOOKED[context().idempotency_key] = what
    return what


def unsend() -> None:
    raise NotCompensable("the mail has been read")


@step(undo=unsend)
async def confirm(trip: list[str]) -> None:
    print(f"  mailed: {', '.join(trip)} are booked")


@step
async def pay(amount: int) -> None:
    raise RuntimeError(f"the card was refused for {amount}")


# One undo at a time: strictly the reverse of the order in which the steps ended.
@workflow(on_failure="unwind", undo_limit=1)
def trip(amount: int) -> None:
    flight = book.options(id="flight").bind("flight")
    hotel = book.options(id="hotel", after=flight).bind("hotel")
    car = book.options(id="car", after=hotel).bind("car")
    mailed = confirm.bind([flight, hotel, car])
    pay.options(after=mailed).bind(amount)


async def main() -> None:
    async with connect("memory://") as app:
        run = await app.start(trip, 900, id="trip-1")
        row = await run.wait()
        print(f"{row.status}, {row.unwound} unwound; still booked: {sorted(BOOKED.values())}")
        for view in (await run.inspect()).steps:
            print(f"  {view.address}: {view.status}, undo {view.undo} {view.undo_reason}".rstrip())

        # The rest went on without the hotel. When it answers again, only its undo is tried once more.
        SERVICE.clear()
        await run.retry_undo("hotel")
        await run.wait()
        print(f"still booked: {sorted(BOOKED.values())}")

        # Nothing brings the mail back; say that this is known.
        await run.skip_undo("confirm")
        view = (await run.inspect()).step("confirm")
        assert view is not None
        print(f"confirm: undo {view.undo} ({view.undo_reason})")


if __name__ == "__main__":
    asyncio.run(main())
