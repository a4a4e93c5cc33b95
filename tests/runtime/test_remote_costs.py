"""What a step costs in calls of the store where one session executes it and another one decides: counted."""

from __future__ import annotations

from pathlib import Path

import pytest

from treadle import App, PlanBuilder, connect, step

STEPS = 60


@step(name="costs:work")
def work(value: int) -> int:
    return value


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/costs.db?sync=normal"


def counters(app: App) -> tuple[int, int]:
    committer = app._node.committer
    return committer.calls, committer.commits


async def test_a_step_costs_its_worker_a_claim_and_a_report_and_its_decider_a_read_and_a_commit(url: str) -> None:
    plan = PlanBuilder("costs")
    plan.output([plan.step(f"s{number}", work, number) for number in range(STEPS)])
    async with connect(url, worker=False) as decider, connect(url, threads=1) as worker:
        before = counters(decider), counters(worker)

        run = await decider.start(plan.build())
        await run.result()

        calls, commits = (now - then for now, then in zip(counters(decider), before[0], strict=True))
        worked, committed = (now - then for now, then in zip(counters(worker), before[1], strict=True))
        # The sweepers go round every second; a wake-up at the beginning and one at the end find nothing.
        rounds = 30
        assert committed == 0
        assert worked <= 2 * STEPS + rounds
        assert calls <= STEPS + rounds
        assert commits <= STEPS + 3


async def test_who_waits_for_a_run_of_others_tells_the_store_once_and_not_at_each_wake_up(url: str) -> None:
    plan = PlanBuilder("costs")
    value = 0
    for number in range(STEPS):
        value = plan.step(f"s{number}", work, value)
    plan.output(value)
    async with connect(url) as worker, connect(url, worker=False) as watcher:
        run = await worker.start(plan.build(), delay=0.05)
        before = counters(watcher)

        await watcher.run(run.id).result()

        calls = counters(watcher)[0] - before[0]
        # At each wake-up it asks for inputs, and reads the run beside the committer; it is woken at most once a commit.
        assert calls <= STEPS + 30
