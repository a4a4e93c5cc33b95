"""Breakpoints: places in a workflow where a run stands still for a look, if it was started with their label armed."""

import asyncio

from treadle import Run, connect, step, workflow


@step
async def build(name: str) -> str:
    return f"{name}.whl"


# Declared in the workflow, armed by the start: it costs nothing where the label is not armed.
@step(break_before="check")
async def upload(file: str) -> str:
    return f"uploaded {file}"


@step
async def announce(what: str) -> str:
    return f"told everybody: {what}"


@workflow
def release(name: str) -> str:
    # `break_after`: the step has run, and those that come after it are held.
    return announce.bind(upload.options(break_after="check").bind(build.bind(name)))


async def stop(run: Run[str]) -> None:
    """Wait until the run stands at a breakpoint, and say at which."""
    async for _ in run.changes():
        standing = [view for view in (await run.inspect()).breakpoints if view.state == "blocked"]
        if standing:
            print(f"  stands {standing[0].position} {standing[0].address}, holding {standing[0].holding}")
            return


async def main() -> None:
    async with connect("memory://") as app:
        print(await (await app.start(release, "thread")).result())

        run = await app.start(release, "treadle", breakpoints=["check"])
        await stop(run)
        print("  released:", await run.release("check"))
        await run.step("upload")
        await stop(run)
        print("  released:", await run.release("check"))
        print(await run.result())


if __name__ == "__main__":
    asyncio.run(main())
