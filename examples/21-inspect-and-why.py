"""Looking at a run: its counts and times in one consistent read, and why each step is not running."""

import asyncio

from treadle import Retry, connect, context, signal_value, step, workflow


@step
async def load() -> int:
    context().progress("half of it")
    await asyncio.sleep(0.02)
    return 7


@step(retry=Retry(attempts=3, initial="30s"))
async def later() -> int:
    raise ConnectionError("closed until tomorrow")


@step(delay="1d")
async def tomorrow(value: int) -> int:
    return value


@step
async def decide(value: int, answer: str) -> str:
    return f"{answer} {value}"


@workflow
def waits() -> list[object]:
    value = load.bind()
    return [later.bind(), tomorrow.bind(value), decide.bind(value, signal_value("answer", type=str))]


async def main() -> None:
    async with connect("memory://") as app:
        run = await app.start(waits, id="waits-1")
        await run.step("load")
        # Now, and whenever the run may have changed.
        async for _ in run.changes():
            if (await run.inspect()).counts["retrying"]:
                break
        snapshot = await run.inspect()
        print(snapshot.status, {status: count for status, count in snapshot.counts.items() if count})
        for view in snapshot.steps:
            executed = "-" if view.exec_seconds is None else f"{view.exec_seconds * 1000:.0f} ms"
            print(f"  {view.address}: {view.shown}, executed {executed}")
        for reason in await run.why():
            print(f"  why {reason.step}: {reason.code} ({reason.kind}): {reason.message}")
        # One step's reasons tell its past too.
        for reason in await run.why("load"):
            print(f"  load, {reason.tense}: {reason.code}")
        await run.cancel(hard=True)
        print((await run.wait()).status)


if __name__ == "__main__":
    asyncio.run(main())
