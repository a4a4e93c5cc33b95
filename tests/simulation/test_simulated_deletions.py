"""Deletions by age under seeds: only what is closed, old and called by nobody goes; planted bugs are found."""

from __future__ import annotations

import pytest
from tests.simulation import scenes
from tests.simulation.scenes import alone, broken, conduct

from treadle.authoring.builder import Planned
from treadle.runtime import retention
from treadle.runtime.retention import CLOSED, Rule
from treadle.testing import invariants
from treadle.testing.scenarios import Ask, Scenario, everywhere
from treadle.testing.sim_conduct import fraction
from treadle.testing.sim_steps import called, work
from treadle.testing.simulation import run_seed


def calling() -> Planned:
    """Two calls, and a step that goes on for long after them."""
    plan = scenes.builder()
    with plan:
        below = {"first": conduct("first"), "undo": False, "retry": False, "inner": None, "detached": False}
        ends = [called.options(id=id_).bind(below, []) for id_ in ("one", "two")]
        # Of 40 to 50 seconds.
        slow = next(name for name in map(str, range(1000)) if fraction("sleep", name, 1) > 0.8)
        work.options(id="slow", after=ends).bind(conduct(slow, 50.0), [])
    return plan.build()


# Old runs are deleted while young ones go on: first there are none, then all but the newest of each workflow.
OLD = Scenario([scenes.chain(), scenes.chain(), calling()], [Ask(25.0, "gc", 1), Ask(75.0, "gc")], seconds=80.0)
YOUNG = Scenario([scenes.chain()], [Ask(5.0, "gc", 1)])


@pytest.mark.parametrize("kind", ["", "crash_after", "error_after"])
def test_without_a_planted_bug_nothing_is_found(kind: str) -> None:
    assert not broken(everywhere(OLD, kind, "commit", "delete") if kind else alone(OLD))


def test_old_runs_are_deleted_and_young_ones_are_not() -> None:
    deletions = [line for line in OLD.play().trace if " delete " in line]

    assert deletions
    assert all(float(line.split()[0]) > 20 for line in deletions)


def test_runs_are_deleted_for_their_age_in_some_worlds() -> None:
    assert sum(" client gc" in line for seed in range(40) for line in run_seed(seed).trace) > 3


def test_a_deletion_of_what_others_have_called_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    async def everything(*_given: object) -> bool:
        return True

    monkeypatch.setattr(retention, "_is_detached", everything)

    assert broken(alone(OLD)) == invariants.DELETED


def test_a_deletion_of_what_is_young_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("treadle.runtime.client.rule_of", lambda _: Rule(0.0, 0, frozenset(CLOSED)))

    assert broken(alone(YOUNG)) == invariants.DELETED
