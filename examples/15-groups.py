"""Groups: blocks of steps with ids of their own, that others wait for as a whole."""

import asyncio

from treadle import connect, group, ref, step, workflow


@step
async def do(what: str, *needs: str) -> str:
    return what


@step
async def report(parts: list[str]) -> str:
    return ", ".join(parts)


@workflow
def deploy(hosts: list[str]) -> str:
    with group("prepare") as prepare:
        # Their addresses are `prepare/download` and `prepare/check`.
        archive = do.options(id="download").bind("downloaded")
        do.options(id="check", after=archive).bind("checked")
    done: list[str] = []
    for host in hosts:
        # The same ids again, in another group. It starts when all of `prepare` is over and succeeded.
        with group(f"host {host}", after=prepare):
            stopped = do.options(id="stop").bind(f"{host} stopped")
            done.append(do.options(id="start", after=stopped).bind(f"{host} started"))
    return report.bind([*done, ref("prepare/check", type=str)])


async def main() -> None:
    async with connect("memory://") as app:
        run = await app.start(deploy, ["one", "two"])
        print(await run.result())
        for view in (await run.inspect()).steps:
            print(f"  {view.address}")
        print(await run.step("host two/start", type=str))


if __name__ == "__main__":
    asyncio.run(main())
