"""What a step costs in commits, appends and tasks: counted, since times are noisy."""

from __future__ import annotations

from pathlib import Path

import pytest

from treadle import connect
from treadle.bench import graphs
from treadle.core import events as ev


@pytest.fixture(params=["memory", "sqlite"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return "memory://" if request.param == "memory" else f"sqlite:///{tmp_path}/counts.db?sync=normal"


async def test_a_hop_of_a_chain_is_one_append_in_one_commit(url: str) -> None:
    async with connect(url) as app:
        committer = app._node.committer
        before = committer.commits, committer.appended

        await (await app.start(graphs.chain(50))).result()

        assert committer.appended - before[1] == 51
        assert committer.commits - before[0] == 51


async def test_the_outcomes_of_a_fan_are_decided_together(url: str) -> None:
    async with connect(url) as app:
        before = app._node.committer.appended

        await (await app.start(graphs.fan(2000))).result()

        assert app._node.committer.appended - before < 100


@pytest.mark.parametrize("length", [10, 300])
async def test_a_step_leaves_two_events_whatever_the_length_of_its_run(url: str, length: int) -> None:
    async with connect(url) as app:
        run = await app.start(graphs.chain(length))
        await run.result()

        kinds = [type(event) async for _, _, event in run.events()]

        assert len(kinds) == 2 * length + 2
        assert kinds.count(ev.StepDispatched) == kinds.count(ev.StepSucceeded) == length
