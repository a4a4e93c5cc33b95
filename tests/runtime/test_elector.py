"""An elector of the user's own: who it names sweeps at once, nobody else does, and its failure stops nothing else."""

from __future__ import annotations

import asyncio
from pathlib import Path

from treadle import Registry, connect, step
from treadle.core import inputs as inp
from treadle.runtime.client import App
from treadle.runtime.node import Settings
from treadle.runtime.sweeper import ROLE
from treadle.store.base import InboxInput

registry = Registry()


@step(registry=registry, name="elector:add")
async def add(a: int, b: int) -> int:
    return a + b


class Chosen:
    """Says yes when it is told to; fails when it is told to."""

    def __init__(self) -> None:
        self.yes = False
        self.broken = False
        self.asked: list[tuple[str, str]] = []

    async def elected(self, role: str, session: str) -> bool:
        self.asked.append((role, session))
        if self.broken:
            raise OSError("the election does not answer")
        return self.yes


async def asked_again(elector: Chosen, times: int = 2) -> None:
    """Wait until it was asked so often more; by then the round before is over."""
    until = len(elector.asked) + times
    while len(elector.asked) < until:
        await asyncio.sleep(0)


async def strand(app: App, run_id: str) -> None:
    """Make a run that nobody owns, with an input of which nobody is told."""
    run = await app.enqueue(add.bind(1, 2), id=run_id, delay="1h")
    await run.cancel()
    await run.wait()
    key = await run.key()
    post = InboxInput(f"retry-{run_id}", key, inp.encode_input(inp.Retry()))
    await app._node.committer.call(lambda store: store.post([post]))


async def test_only_the_elected_session_sweeps_and_it_does_so_at_once(tmp_path: Path) -> None:
    elector = Chosen()
    async with connect(
        f"sqlite:///{tmp_path}/a.db?sync=normal",
        registry=registry,
        settings=Settings(sweep_seconds=0.001, elector=elector),
    ) as app:
        await asked_again(elector)
        await strand(app, "stranded")
        await asked_again(elector, 3)
        assert (await app.run("stranded").row()).status == "cancelled"

        elector.broken = True
        await asked_again(elector, 3)
        assert (await app.run("stranded").row()).status == "cancelled"

        elector.broken, elector.yes = False, True
        while (await app.run("stranded").row()).status == "cancelled":
            await asyncio.sleep(0)
    assert {role for role, _ in elector.asked} == {ROLE}
    assert len({session for _, session in elector.asked}) == 1
