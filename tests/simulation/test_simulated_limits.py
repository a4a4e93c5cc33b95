"""Limits and placement under seeds: no limit is passed, nothing starves, and planted bugs are found."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import pytest

from treadle.authoring.decorators import step, workflow
from treadle.authoring.registry import Registry
from treadle.core import dispatching
from treadle.core.decide import Limits
from treadle.core.placement import target_of
from treadle.core.state import RunState, StepState
from treadle.runtime.client import App
from treadle.store import memory_queues
from treadle.store.memory_queues import Queue, Waiting
from treadle.store.queues import Bucket, QueueChange, QueueLimits
from treadle.testing import invariants
from treadle.testing.sim_faults import Profile
from treadle.testing.sim_limits import LIMITED, PLACED, Restrictions
from treadle.testing.sim_shape import Shape
from treadle.testing.sim_workload import Workload
from treadle.testing.sim_world import World
from treadle.testing.simulation import Report, play, run_seed, simulate

# A world that is found broken stops in the middle of what its nodes do.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
# Seeds whose worlds are restricted.
RESTRICTED = range(0, 90, 3)


def first_broken(seeds: range = RESTRICTED) -> str:
    """The first invariant that a seed breaks; empty if none does."""
    for seed in seeds:
        report = run_seed(seed)
        if report.failures:
            return report.failures[0][0]
    return ""


def test_restricted_worlds_have_limits_of_all_kinds_targets_and_placements() -> None:
    kinds: Counter[str] = Counter()
    for seed in range(0, 60, 3):
        restrictions = Restrictions(seed, 40.0, 3)
        for change in restrictions.queues:
            limits = change.defined
            assert isinstance(limits, QueueLimits)
            for name in ("concurrency", "rate", "key_concurrency", "key_rate", "fair", "weights", "length"):
                kinds[name] += bool(getattr(limits, name))
        kinds["paused"] += sum(change.change.paused is True for change in restrictions.changes)
        for line in run_seed(seed).trace:
            kinds["set_targets"] += " set_targets" in line
            kinds["placed"] += "StepDispatched" in line and seed > 0
    for name in ("concurrency", "rate", "key_concurrency", "key_rate", "fair", "weights", "length", "paused", "placed"):
        assert kinds[name] > 2, name
    assert kinds["set_targets"] > 20


# -- X-25 --------------------------------------------------------------------------------------------------------------

registry = Registry()
starts: list[float] = []
live: list[int] = [0, 0]


@step(name="x25:call", registry=registry, queue="api")
async def call(number: int) -> int:
    loop = asyncio.get_running_loop()
    starts.append(loop.time())
    live[0] += 1
    live[1] = max(live)
    await asyncio.sleep(0.05 + (number % 7) * 0.1)
    live[0] -= 1
    return number


@workflow(name="x25:calls", registry=registry)
def calls(count: int):
    return [call.options(id=f"c{number}").bind(number) for number in range(count)]


def test_three_at_a_time_and_five_a_second_with_a_burst_of_two_hold_for_four_workers_over_a_minute() -> None:
    starts.clear()
    live[:] = [0, 0]
    queues = [QueueChange(name="api", defined=QueueLimits(concurrency=3, rate=5.0, burst=2))]

    async def program(app: App) -> None:
        run = await app.start(calls, 400, id="x25")
        assert await run.result() == list(range(400))

    report = quiet_world(program, queues, nodes=4)

    assert report.failures == []
    assert live == [0, 3]
    assert len(starts) == 400
    began = [at for at in starts if at - starts[0] <= 60.0]
    for index, since in enumerate(began):
        for count, at in enumerate(began[index:], 1):
            # What is given out begins up to five steps of the network's pace later.
            assert count <= 2 + 5 * (at - since + 0.01) + 1e-6, (index, since, at)
    # The rate is used: nobody waits for a token that is there.
    assert len(began) >= 0.95 * (2 + 5 * 60)


def quiet_world(program: Any, queues: list[QueueChange], nodes: int) -> Report:
    """A world without trouble, with clocks that agree."""
    profile = Profile(pace=0.002, seconds=20.0)
    shape = Shape(
        nodes=nodes,
        slots=[20] * nodes,
        threads=[2] * nodes,
        limits=Limits(dispatched=1000, events=1000),
        lease=15.0,
        skews=[0.0] * nodes,
        seconds=20.0,
        inline=[False] * nodes,
        workers=[True] * nodes,
    )
    chosen = Restrictions(0, 20.0, nodes, queues)
    return play(lambda: World(3, profile, shape, Workload([], []), registry, (), program, restrictions=chosen))


# -- planted bugs ------------------------------------------------------------------------------------------------------


def test_without_a_planted_bug_nothing_is_found() -> None:
    assert first_broken() == ""


def test_a_new_task_that_is_handed_over_although_its_queue_is_full_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Waiting, "admits", lambda *_: True)

    assert first_broken() == LIMITED


def test_a_claim_that_does_not_look_at_keys_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Waiting, "may_start", lambda *_: True)

    assert first_broken() == LIMITED


def test_a_pause_that_holds_nothing_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def is_open(self: Queue) -> bool:
        most = self.limits.concurrency
        return not most or self.running < most

    monkeypatch.setattr(Queue, "is_open", is_open)

    assert first_broken(range(0, 300, 3)) == LIMITED


def test_a_start_that_costs_nothing_of_the_rate_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def free(_bucket: Bucket) -> None:
        pass

    monkeypatch.setattr(memory_queues, "spend", free)

    assert first_broken() == LIMITED


def test_a_slot_that_is_not_given_back_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    ended = Waiting.ended

    def leaking(self: Waiting, entry: Any) -> None:
        ended(self, entry)
        self.limited[entry.task.queue].running += entry.task.number % 3 == 0

    monkeypatch.setattr(Waiting, "ended", leaking)

    assert first_broken() == invariants.STORE


def test_a_key_that_never_opens_again_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Waiting, "_open", lambda *_: None)

    assert first_broken() in (invariants.PROGRESS, invariants.CLOSED, invariants.CALLERS, invariants.STORE)


def test_a_task_that_is_given_to_a_worker_without_its_target_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    enqueue = Waiting.enqueue

    def blind(self: Waiting, entry: Any, now: float) -> None:
        target, entry.task.target = entry.task.target, ""
        enqueue(self, entry, now)
        entry.task.target = target

    monkeypatch.setattr(Waiting, "enqueue", blind)

    assert first_broken() == PLACED


def test_a_step_that_is_sent_anywhere_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def anywhere(_run: RunState, _step: StepState) -> str:
        return ""

    monkeypatch.setattr(dispatching, "target_of", anywhere)

    assert first_broken() == PLACED


def test_a_step_that_is_sent_to_another_workers_place_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def elsewhere(run: RunState, step: StepState) -> str:
        found = target_of(run, step)
        return "n0" if found.startswith("n") else found

    monkeypatch.setattr(dispatching, "target_of", elsewhere)

    assert first_broken() == PLACED


def test_the_bucket_of_a_key_may_be_full_again_by_the_time_of_a_journal_that_is_ahead() -> None:
    # A clock is set back; then two appends of one call have times that lie far apart.
    simulate(seeds=[105])
