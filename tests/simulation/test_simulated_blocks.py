"""Phases, gathers and chooses in the simulation: they reach the journals, and bugs planted in them are found."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from tests.simulation import scenes
from tests.simulation.scenes import alone, broken

from treadle.authoring.builder import Planned
from treadle.core import advance, gathers, opened, phases
from treadle.core.events import Arg
from treadle.core.progress import GatherProgress
from treadle.core.state import IterationState, RunState, ScopeState
from treadle.core.tables import SUCCEEDED
from treadle.testing import invariants
from treadle.testing.scenarios import Scenario
from treadle.testing.simulation import run_seed

PLANS = [scenes.gathered, scenes.chosen, scenes.moving, scenes.failing_row, scenes.failing_early]


def found(plan: Callable[[], Planned]) -> str:
    """The invariant that a run of this plan breaks."""
    return broken(alone(Scenario([plan()])))


def test_blocks_reach_the_journals() -> None:
    kinds: Counter[str] = Counter()
    for seed in range(5000, 5060):
        for line in run_seed(seed).trace:
            kinds[line.partition("   ")[2].partition(" ")[2].partition("(")[0]] += 1

    for kind in ("RowOpened", "DecisionMade", "IterationsOpened", "BranchChosen", "ScopeAsked", "ScopeStopped"):
        assert kinds[kind] > 0, kind


@pytest.mark.parametrize("plan", PLANS)
def test_without_a_planted_bug_nothing_is_found(plan: Callable[[], Planned]) -> None:
    assert not found(plan)


def test_values_of_a_gather_in_the_order_of_their_ends_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    succeeded = opened.iterations_succeeded

    def hasty(run: RunState, block: ScopeState, done: dict[IterationState, Arg]) -> None:
        assert isinstance(block.block, GatherProgress)
        before = list(block.block.results)
        succeeded(run, block, done)
        # The first item ends last, so this is never the order of the items.
        block.block.results[:] = [*before[len(done) :], *done.values()]

    for module in (opened, advance):
        monkeypatch.setattr(module, "iterations_succeeded", hasty)

    assert found(scenes.gathered) == invariants.BLOCKS


def test_variables_that_are_set_without_waiting_for_the_barrier_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    settled = opened.row_settled

    def careless(run: RunState, row: ScopeState) -> None:
        status, row.status = row.status, SUCCEEDED
        settled(run, row)
        row.status = status

    monkeypatch.setattr(opened, "row_settled", careless)

    assert found(scenes.failing_row) in (invariants.BLOCKS, invariants.RESULTS)


def test_a_branch_whose_condition_does_not_hold_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gathers, "truth", lambda *_: True)

    assert found(scenes.chosen) == invariants.BLOCKS


def test_a_move_to_another_phase_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def stuck(progress: Any, phase: str, rule: Any) -> str:
        return "" if rule.move in ("stop", "advance") else phase

    monkeypatch.setattr(phases, "target_of", stuck)

    assert found(scenes.moving) == invariants.BLOCKS


def test_a_stop_that_leaves_its_content_alone_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def idle(run: RunState, scope: ScopeState, reason: str) -> None:
        scope.stopping = reason

    monkeypatch.setattr(opened, "_stop", idle)

    assert found(scenes.failing_early) == invariants.INSIDE
