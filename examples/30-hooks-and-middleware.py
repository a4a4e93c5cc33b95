"""Hooks watch what begins and ends; middleware is around each attempt; the context tells a step about its run."""

import asyncio
import time
from typing import Any

from treadle import FROM_DATA, Boundary, Hooks, Next, Permanent, StepCall, connect, context, group, step, workflow


@step
def read(name: str, root: str = FROM_DATA) -> str:
    # Declared so, `root` comes from the run's data where the workflow does not give it.
    return f"{root}/{name}"


@step
async def install(path: str) -> str:
    if context().dry_run:
        print(f"would install {path}", file=context().out)
        return "nothing"
    if context().data["locked"]:
        raise PermissionError(path)
    return path


@workflow
def deploy(name: str) -> str:
    with group("files"):
        path = read.bind(name)
    return install.options(retry=3).bind(path)


class Audit(Hooks):
    """Told of each boundary after its commit. It cannot fail the run, whatever it does."""

    def scope_ended(self, scope: Boundary) -> None:
        print(f"  audit: {scope.block} {scope.address} {scope.outcome}")

    def step_started(self, step: Boundary) -> None:
        print(f"  audit: {step.address} starts with {dict(step.arguments)}")

    async def step_ended(self, step: Boundary) -> None:
        said = step.failure.message if step.failure is not None else step.result
        print(f"  audit: {step.address} {step.outcome}: {said}")

    def run_ended(self, run: Boundary) -> None:
        print(f"  audit: run {run.run_id} {run.outcome}")


async def timed(call: StepCall, call_next: Next) -> Any:
    """The outermost: it sees what the others make of a step, sync or async."""
    began = time.perf_counter()
    try:
        return await call_next()
    finally:
        quick = time.perf_counter() - began < 5
        print(f"  timed: attempt {call.attempt} of {call.address} was {'quick' if quick else 'slow'}")


async def mapped(call: StepCall, call_next: Next) -> Any:
    """Makes an error of the system one that no retry policy tries again."""
    try:
        return await call_next()
    except PermissionError as error:
        raise Permanent(f"no right to write {error}", code="forbidden") from error


async def main() -> None:
    for id_, locked, dry_run in (("open", False, False), ("locked", True, False), ("dry", True, True)):
        print(f"{id_}:")
        # Leaving the application waits until its hooks were told of everything.
        async with connect("memory://", hooks=[Audit()], middleware=[timed, mapped]) as app:
            data = {"root": "srv", "locked": locked}
            run = await app.start(deploy, "motd", id=id_, data=data, dry_run=dry_run)
            await run.wait()


if __name__ == "__main__":
    asyncio.run(main())
