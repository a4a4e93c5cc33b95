"""A failed attempt is tried again by the step's policy; step code can steer; a failure that stays is data."""

import asyncio

from treadle import Permanent, Retry, RetryLater, RunFailedError, connect, context, step, workflow

QUICK = Retry(attempts=4, initial="10ms", backoff="exponential", factor=2, cap="1s", jitter=0.2)


@step(retry=QUICK)
async def flaky() -> str:
    attempt = context().attempt
    print(f"  flaky, attempt {attempt}")
    if attempt < 3:
        raise ConnectionError("nobody answers")
    return f"answered at attempt {attempt}"


@step(retry=QUICK)
async def busy() -> str:
    if context().attempt == 1:
        # The service said when to come back; this delay goes before the policy's.
        raise RetryLater("20ms", "come back later")
    return "done later"


@step(retry=QUICK)
async def refused() -> str:
    print(f"  refused, attempt {context().attempt}")
    # Trying again would not help. The code is yours, and stable.
    raise Permanent("no such account", code="no_account")


@step
async def plain() -> str:
    # Without a policy the first exception is final.
    raise ValueError("a plain mistake")


@workflow
def works() -> list[str]:
    return [flaky.bind(), busy.bind()]


@workflow
def fails() -> list[str]:
    return [refused.bind(), plain.bind()]


async def main() -> None:
    async with connect("memory://") as app:
        print(await (await app.start(works)).result())
        run = await app.start(fails)
        try:
            await run.result()
        except RunFailedError as error:
            for address, text in error.failures.items():
                print(f"  {address}: {text}")
        for failure in (await run.inspect()).failures:
            print(f"  {failure.address} failed with code {failure.code!r} at attempt {failure.attempt}")


if __name__ == "__main__":
    asyncio.run(main())
