"""Steps in processes of their own: killed at their timeout, limited in memory, and tried again after a crash."""

import asyncio
import os

from treadle import Process, Retry, connect, context, step, workflow


@step(process=True, retry=Retry(attempts=2, initial=0))
def crash_once() -> str:
    own = context()
    if own.attempt == 1:
        own.progress("half of it")
        os._exit(7)  # a library that takes the whole process down
    return f"went on after {own.last_progress!r}"


@step(process=True, timeout="200ms", optional=True)
def hang() -> None:
    while True:
        pass


@step(process=Process(memory="400MB", env={"MODE": "careful"}), optional=True)
def devour() -> int:
    print("mode:", os.environ["MODE"], file=context().out)
    return len(bytearray(2**30))


@workflow
def risky() -> str:
    hang.bind()
    devour.bind()
    return crash_once.bind()


async def main() -> None:
    # The step's process imports this file under its own name, so this does not run there.
    async with connect("memory://") as app:
        run = await app.start(risky)
        await run.wait()
        print("crash_once", await run.result())
        for failure in sorted((await run.inspect()).failures, key=lambda one: one.address):
            print(f"{failure.address}: {failure.code}")


if __name__ == "__main__":
    asyncio.run(main())
