"""A call without a workflow: durable, retried, awaited or forgotten; and the dead letters of those that failed."""

import asyncio

from treadle import Retry, RunFailedError, connect, step

bank_is_open = False


@step(retry=Retry(attempts=3, initial="10ms"))
async def resize(picture: str, width: int) -> str:
    return f"{picture}@{width}"


@step
async def charge(order: int) -> str:
    if not bank_is_open:
        raise ConnectionError("the bank does not answer")
    return f"order {order} is paid"


@step
async def answer() -> str:
    await asyncio.Event().wait()  # never
    return "too late"


async def main() -> None:
    global bank_is_open
    async with connect("memory://") as app:
        task = await app.enqueue(resize.bind("cat.png", 640))
        print("resized:", await task.result())

        # The id makes the call once, however often it is enqueued.
        for _ in range(3):
            task = await app.enqueue(charge.bind(7), id="order-7")
        await task.wait()
        [(run, dead)] = await app.dead()
        print("dead letter:", run.id, dead.address, dead.message)

        bank_is_open = True
        await app.requeue([(run, dead)])
        print("after requeue:", await task.result())

        task = await app.enqueue(answer.bind(), deadline="50ms")
        try:
            await task.result()
        except RunFailedError as error:
            print("deadline passed:", "deadline" in str(error))


asyncio.run(main())
