"""One run at a time: others are rejected, take its place, or wait for their turn in the order they came."""

import asyncio

from treadle import RunExistsError, connect, step, workflow

go = asyncio.Event()


@step
async def deploy(site: str, version: str) -> str:
    print("deploying", site, version)
    await go.wait()
    return version


@workflow(singleton="site")
def release(site: str, version: str) -> str:
    return deploy.bind(site, version)


async def main() -> None:
    async with connect("memory://") as app:
        first = await app.start(release, "shop", "1.0")
        await asyncio.sleep(0)
        try:
            await app.start(release, "shop", "1.1", on_conflict="reject")
        except RunExistsError:
            print("shop: a release goes on")

        second = await app.start(release, "shop", "1.1", on_conflict="queue")
        third = await app.start(release, "shop", "1.2", on_conflict="queue")
        for reason in await third.why():
            if reason.code == "singleton" and not reason.step:
                print("the third waits for", "the first and the second" if len(reason.on) == 2 else reason.on)

        await second.cancel()
        go.set()
        print(await first.result(), await third.result())


asyncio.run(main())
