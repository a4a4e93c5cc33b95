"""Phases that take themselves back: a deployment fails at its last phase, and what was there before comes back."""

import asyncio

from treadle import Cell, Compensation, Patch, Phase, Phases, connect, step, workflow

LIVE = {"version": 1}
TRAFFIC: list[str] = []


def put_back(cell: Cell, state: int) -> None:
    LIVE["version"] = state
    print(f"  version {state} is live again")


def look() -> int:
    """What is live now: kept before the new version is, so that a crash in between is undone too."""
    return LIVE["version"]


@step(prepare=look, undo=put_back)
async def switch(cell: Cell) -> Patch[int]:
    LIVE["version"] = cell.state["wanted"]
    return Patch(LIVE["version"], {"was": 1})


@step
async def announce(cell: Cell) -> str:
    TRAFFIC.append(f"all traffic to version {cell.previous['main']}")
    return TRAFFIC[-1]


@step
async def take_back(of: Compensation) -> None:
    # The row's own values, and the state as it was after its barrier.
    TRAFFIC.append(f"not so: {of.lanes['router']}")
    print(f"  told the router; phase {of.phase!r} is taken back")


@step
async def probe(cell: Cell) -> None:
    raise RuntimeError("three of four probes failed")


deploy = Phases(
    Phase("switch", {"main": switch}),
    Phase("announce", {"router": announce}, compensate="take back"),
    Phase("probe", {"main": probe}),
    compensations=[Phase("take back", {"router": take_back})],
    state={"wanted": 2},
    id="deploy",
)


@workflow
def release(wanted: int) -> dict[str, int]:
    state: dict[str, int] = deploy.bind(wanted=wanted)
    return state


async def main() -> None:
    async with connect("memory://") as app:
        # A Phases block that fails undoes what it did; on_failure="stop" would leave it as it is.
        run = await app.start(release, 2, id="release-2")
        row = await run.wait()
        print(f"{row.status}, {row.unwound} unwound: {LIVE}, {TRAFFIC}")
        for scope in (await run.inspect()).scopes:
            said = f", compensates {scope.compensates}" if scope.compensates else f", undo {scope.undo}"
            print(f"  {scope.kind} {scope.address}: {scope.status}{said}")


if __name__ == "__main__":
    asyncio.run(main())
