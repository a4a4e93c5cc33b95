"""An attempt that takes too long fails with the code `timeout`, and is tried again like any other failure."""

import asyncio
import time

from treadle import StepFailedError, connect, context, step, workflow


@step(timeout="100ms", retry=2)
async def slow_once() -> str:
    if context().attempt == 1:
        # The task is cancelled at its next await.
        await asyncio.sleep(60)
    return "quick at last"


@step(timeout="100ms")
def slow_thread() -> str:
    # A thread cannot be stopped from outside: the attempt fails at once, its slot stays taken until the thread
    # ends, and what it returns then counts for nothing. A considerate step looks at its context.
    while not context().cancelled:
        time.sleep(0.01)
    return "too late"


@workflow
def patience() -> str:
    slow_thread.options(optional=True).bind()
    return slow_once.bind()


async def main() -> None:
    async with connect("memory://") as app:
        run = await app.start(patience)
        print(await run.result())
        try:
            await run.step("slow_thread")
        except StepFailedError as error:
            print(f"{error} (kind {error.kind!r})")


if __name__ == "__main__":
    asyncio.run(main())
