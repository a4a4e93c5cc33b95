"""Starts under seeds: singletons take turns, ids are taken once, deadlines hold; planted bugs are found."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from tests.simulation import scenes
from tests.simulation.scenes import WRITES, alone, broken, conduct

from treadle.authoring.builder import Planned
from treadle.authoring.conflicts import OnConflict
from treadle.core import advance
from treadle.core import decide as core_decide
from treadle.core import events as ev
from treadle.core.decision import Decision
from treadle.core.dispatching import dispatch
from treadle.core.state import RunState
from treadle.runtime import alarms, appending, boundaries, conflicts, joining
from treadle.runtime.conflicts import start_run
from treadle.runtime.node import Node
from treadle.runtime.requests import request
from treadle.runtime.starting import Start
from treadle.store import memory, memory_dropping
from treadle.store.memory_data import MemoryData, StoredRun
from treadle.store.memory_names import change_names, put_turn
from treadle.store.queues import QueueChange, QueueLimits
from treadle.testing import invariants
from treadle.testing.scenarios import Ask, Scenario, everywhere
from treadle.testing.sim_joins import Join
from treadle.testing.sim_limits import LIMITED
from treadle.testing.sim_shape import conflict_of, singleton_of
from treadle.testing.sim_steps import work
from treadle.testing.simulation import run_seed


def waiting() -> Planned:
    """A step that waits for a signal, and one that does not."""
    plan = scenes.builder()
    plan.step("now", work, conduct("now"), [])
    plan.output(plan.step("later", work, conduct("later"), [], signals=["go"], optional=True))
    return plan.build()


def queued() -> Planned:
    """Two steps of one queue."""
    plan = scenes.builder()
    first = plan.step("a", work, conduct("a"), [], queue="docks")
    plan.output(plan.step("b", work, conduct("b"), [first], queue="docks"))
    return plan.build()


def abreast() -> Planned:
    """Two steps of one queue at a time."""
    plan = scenes.builder()
    plan.output([plan.step(name, work, conduct(name), [], queue="docks") for name in "ab"])
    return plan.build()


def docks(on_full: str) -> list[QueueChange]:
    return [QueueChange(name="docks", defined=QueueLimits(concurrency=1, length=1, on_full=on_full))]


def delayed() -> Planned:
    """A step that is tried again after a while."""
    plan = scenes.builder()
    plan.output(plan.step("later", work, conduct("later"), [], delay=5.0))
    return plan.build()


# In a scenario all runs hold one singleton.
LINE = Scenario([scenes.chain(), scenes.chain()])
REPLACED = Scenario([scenes.fan()], [Ask(2.0, "replace", 1)], conflict="replace", again=[(3.0, 1)])
# The same run is to be made at two places at once.
REJECTED = Scenario([scenes.chain()], conflict="reject", again=[(0.501, 1), (2.0, 1)])
REUSED = Scenario([scenes.chain()], conflict="reuse", again=[(0.501, 1), (2.0, 1)])
# A signal that comes when the deadline has passed, one that never comes, and an attempt that could only begin then.
LATE = Scenario([waiting()], [Ask(5.0, "signal", number=0.1)], deadline=3.0)
NEVER = Scenario([waiting(), scenes.chain()], deadline=3.0)
LONG = Scenario([waiting()], deadline=3.0, seconds=100.0)
DELAYED = Scenario([delayed()], deadline=3.0)
# Two that are committed, one after the other in line; one that is rolled back; one twice, from two places. Two of the
# transactions also send the signal that another run waits for.
JOINED = Scenario(
    [waiting()],
    joins=[
        Join("one", 0.6, 0, in_line=True),
        Join("two", 0.65, 1, 0.1, in_line=True),
        Join("gone", 0.7, 1, 0.2, rolls_back=True, tells="r0"),
        Join("plain", 1.0, 0, 1.0, tells="r0"),
        Join("plain", 1.2, 1, tells="r0"),
    ],
)
# One is executed and one may wait: the others drop it, or wait for its place.
DROPPING = Scenario([queued()] * 3, at=0.502, queues=docks("drop_oldest"))
# Of the first run one step waits, but another one has begun.
BEGUN = Scenario([abreast(), abreast()], at=0.502, queues=docks("drop_oldest"))
WAITING = Scenario([queued()] * 3, at=0.502, queues=docks("wait"))
SCENARIOS = [LINE, REPLACED, REJECTED, REUSED, LATE, NEVER, DELAYED, JOINED, DROPPING, WAITING, BEGUN]


@pytest.mark.parametrize("scenario", SCENARIOS)
@pytest.mark.parametrize("kind", ["", "crash_before", "crash_after", "error_after", "conflict"])
def test_without_a_planted_bug_nothing_is_found(scenario: Scenario, kind: str) -> None:
    operations = ("commit",) if kind == "conflict" else (*WRITES, "commit_joined")
    assert not broken(everywhere(scenario, kind, *operations) if kind else alone(scenario))


def test_the_scenarios_conflict_in_all_ways() -> None:
    assert any("TurnCame" in line for line in LINE.play().trace)
    assert any("client start run0: RunExistsError" in line for line in REJECTED.play().trace)
    assert not any("RunExistsError" in line for line in REUSED.play().trace)
    assert any("code='deadline'" in line for line in LATE.play().trace)
    assert sum("RunStarted" in line for line in REPLACED.play().trace) > 1


def test_starts_that_find_a_queue_full_wait_or_take_the_place_of_others() -> None:
    dropped, waited = DROPPING.play().trace, WAITING.play().trace

    assert sum("CancelRequested(hard=True" in line and "cause='dropped:" in line for line in dropped) == 1
    assert sum("RunSettled(outcome='succeeded'" in line for line in dropped) == 2
    assert sum("RunSettled(outcome='succeeded'" in line for line in waited) == 3
    assert any("client start run1: QueueFullError" in line for line in BEGUN.play().trace)
    begun = [float(line.split()[0]) for line in waited if "RunStarted" in line]
    assert [at > 2.0 for at in begun] == [False, False, True]


@pytest.mark.parametrize("kind", ["", "crash_before", "crash_after", "error_after", "conflict"])
def test_the_deadline_of_a_run_that_waits_passes_by_itself(kind: str) -> None:
    for report in everywhere(NEVER, kind, "commit") if kind else alone(NEVER):
        lines = report.trace
        # Whatever the world gives the runs when its trouble is over.
        before = lines[: next(number for number, line in enumerate(lines) if line.endswith("calm"))]
        for run in ("r0@", "r1@"):
            if any(run in line and "RunStarted" in line for line in before):
                passed = [float(line.split()[0]) for line in before if run in line and "DeadlinePassed" in line]
                # Started half a second after the beginning; a session that died is buried after three more.
                assert len(passed) == 1
                assert 3.5 <= passed[0] < (7.0 if kind else 3.6)
                assert any(run in line and "RunSettled" in line for line in before)


def test_joined_starts_wait_for_their_transaction_and_their_turn() -> None:
    lines = JOINED.play().trace

    assert sum("RunStarted" in line for line in lines) == 4
    assert sum("SignalReceived" in line and "plain" in line for line in lines) == 1
    assert sum("NameTaken" in line and "waits=True" in line for line in lines) == 1
    assert any("client join plain: StoreUnavailableError the transaction is rolled back" in line for line in lines)


def test_some_worlds_have_starts_that_join_transactions() -> None:
    assert sum("RunStarted" in line and " j/" in line for seed in range(30) for line in run_seed(seed).trace) > 5


def test_starts_of_worlds_do_all_that_can_be_done_about_a_conflict() -> None:
    times = [number / 1000 for number in range(999)]

    for is_singleton in (True, False):
        kinds = {conflict_of(at, host) for at in times for host in (0, 1) if bool(singleton_of(at)) == is_singleton}
        assert kinds == {"reject", "reuse", "queue"}


# -- planted bugs ------------------------------------------------------------------------------------------------------


def test_a_run_that_does_not_wait_for_its_turn_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def hasty(run: RunState, decision: Decision, name: str, how: str) -> None:
        decision.names += ((name, how),)
        decision.record(run, ev.NameTaken(name=name, waits=False))

    monkeypatch.setattr(core_decide, "enter", hasty)

    assert broken(alone(LINE)) == invariants.TURNS


def test_a_run_that_comes_into_the_line_before_its_holder_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def pushing(data: MemoryData, run: StoredRun, changes: Sequence[tuple[str, str]]) -> list[str]:
        told = change_names(data, run, changes)
        for name, verb in changes:
            if verb == "line":
                data.lines[name].reverse()
                put_turn(data, run, name)
                told.append(run.key)
        return told

    monkeypatch.setattr(memory, "change_names", pushing)

    assert broken(alone(LINE)) == invariants.TURNS


def test_a_rejecting_start_that_takes_the_run_of_another_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    attach = conflicts._attach

    async def trusting(*given: Any, reject: bool, what: str = "exists") -> None:
        await attach(*given, reject=False, what=what)

    monkeypatch.setattr(conflicts, "_attach", trusting)

    assert broken(alone(REJECTED)) == invariants.ANSWERS


def test_an_attempt_that_begins_after_the_deadline_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def blind(run: RunState, *given: Any) -> None:
        deadline, run.deadline = run.deadline, 0.0
        dispatch(run, *given)
        run.deadline = deadline

    monkeypatch.setattr(advance, "dispatch", blind)

    assert broken(alone(DELAYED)) == invariants.DEADLINES


def test_a_deadline_that_nobody_passes_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(alarms.Alarms, "set", lambda *_: None)

    assert broken(alone(LONG)) == invariants.PROGRESS


def test_a_run_with_a_deadline_that_is_given_back_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(appending, "is_awaited", lambda _run: False)

    assert broken(alone(LONG)) == invariants.PROGRESS


def test_a_run_that_has_begun_and_makes_place_for_another_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory_dropping, "_only_waits", lambda *_: True)

    assert broken(alone(BEGUN)) == LIMITED


def test_a_joined_start_that_does_not_join_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    async def alone_(node: Node, planned: Planned, start: Start, on_conflict: OnConflict, _transaction: Any) -> Any:
        return await start_run(node, planned, start, on_conflict)

    monkeypatch.setattr(conflicts, "start_joined", alone_)

    assert broken(alone(JOINED)) == invariants.JOINED


def test_a_joined_start_that_does_not_wait_in_its_line_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(joining, "NameTaken", lambda name, waits: ev.NameTaken(name=name))

    assert broken(alone(JOINED)) == invariants.TURNS


def test_a_joined_start_of_which_no_hook_is_told_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(boundaries, "JOINED", "")

    assert broken(alone(JOINED)) == invariants.HOOKS


def test_a_joined_signal_that_does_not_join_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    async def hasty(node: Node, key: str, value: Any, _transaction: Any) -> str:
        await request(node, key, value)
        return "posted"

    monkeypatch.setattr("treadle.runtime.run.request_joined", hasty)

    assert broken(alone(JOINED)) == invariants.JOINED
