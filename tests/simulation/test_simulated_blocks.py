"""Phases, gathers and chooses under seeds: they reach the journals, and bugs planted in them are found."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from treadle.core import gathers, opened, phases
from treadle.core.progress import GatherProgress
from treadle.core.state import RunState, ScopeState
from treadle.core.tables import SUCCEEDED
from treadle.testing import invariants
from treadle.testing.simulation import run_seed


def found_by(seeds: range) -> str:
    """The invariant that the first of these seeds breaks."""
    for seed in seeds:
        report = run_seed(seed)
        if report.failures:
            return report.failures[0][0]
    return ""


def test_blocks_reach_the_journals() -> None:
    kinds: Counter[str] = Counter()
    for seed in range(5000, 5060):
        for line in run_seed(seed).trace:
            kinds[line.partition("   ")[2].partition(" ")[2].partition("(")[0]] += 1

    for kind in ("RowOpened", "DecisionMade", "IterationsOpened", "BranchChosen", "ScopeAsked", "ScopeStopped"):
        assert kinds[kind] > 0, kind


def test_values_of_a_gather_in_the_order_of_their_ends_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def hasty(_run: RunState, scope: ScopeState, progress: GatherProgress) -> None:
        progress.open.pop(scope.index)
        if scope.status == SUCCEEDED:
            progress.results.insert(0, scope.result)
            progress.results.pop()
            if progress.first and progress.winner < 0:
                progress.winner = 0

    monkeypatch.setattr(opened, "iteration_settled", hasty)

    assert found_by(range(100)) == invariants.BLOCKS


def test_variables_that_are_set_without_waiting_for_the_barrier_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    settled = opened.row_settled

    def careless(run: RunState, row: ScopeState) -> None:
        status, row.status = row.status, SUCCEEDED
        settled(run, row)
        row.status = status

    monkeypatch.setattr(opened, "row_settled", careless)

    assert found_by(range(200)) in (invariants.BLOCKS, invariants.RESULTS)


def test_a_branch_whose_condition_does_not_hold_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gathers, "truth", lambda *_: True)

    assert found_by(range(100)) == invariants.BLOCKS


def test_a_move_to_another_phase_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def stuck(progress: Any, phase: str, rule: Any) -> str:
        return "" if rule.move in ("stop", "advance") else phase

    monkeypatch.setattr(phases, "target_of", stuck)

    assert found_by(range(100)) == invariants.BLOCKS


def test_a_stop_that_leaves_its_content_alone_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def idle(run: RunState, scope: ScopeState, reason: str) -> None:
        scope.stopping = reason

    monkeypatch.setattr(opened, "_stop", idle)

    assert found_by(range(200)) == invariants.INSIDE
