"""Order without values: `after` needs the other step to succeed, `after_any` only needs it to be over."""

import asyncio

from treadle import connect, step, workflow

DONE: list[str] = []


@step
async def do(what: str) -> None:
    DONE.append(what)


@step
async def risky() -> None:
    DONE.append("risky")
    raise RuntimeError("it went wrong")


@workflow
def release() -> None:
    build = do.options(id="build").bind("build")
    test = do.options(id="test", after=build).bind("test")
    upload = risky.options(id="upload", after=[build, test], optional=True).bind()
    # Not run: what it comes after has failed.
    do.options(id="announce", after=upload, optional=True).bind("announce")
    # Run in any case, as the last of all. Ids do as well as planned values.
    do.options(id="clean up", after_any=[upload, "announce"]).bind("clean up")


async def main() -> None:
    async with connect("memory://") as app:
        run = await app.start(release)
        print((await run.wait()).status)
        print(" -> ".join(DONE))
        for view in (await run.inspect()).steps:
            print(f"  {view.address}: {view.status} {' '.join(view.skip_causes)}")


if __name__ == "__main__":
    asyncio.run(main())
