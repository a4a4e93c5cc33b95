"""A saga that is struck at one place after the other: between any two events, while it acts and while it unwinds."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from tests.simulation import scenes
from tests.simulation.scenes import WRITES, broken

from treadle.testing.scenarios import Ask, Scenario, everywhere
from treadle.testing.simulation import Report

# All that can be undone, with little room, so that decisions end between any two events.
SAGA = Scenario([scenes.saga()], seconds=30.0)
NARROW = Scenario([scenes.saga()], seconds=30.0, dispatched=2, events=2, slots=2)
# The undo that failed is asked for again while the run still unwinds; once more for a run that a crash has kept back.
AGAIN = Scenario([scenes.stuck_undo()], [Ask(4.5, "retry_undo", 1), Ask(40.0, "retry_undo", 1)], seconds=45.0)
# Operators meet an unwinding: a cancel parks what is left, and an undo takes it on again.
PARKED = Scenario([scenes.saga()], [Ask(14.0, "cancel", 1), Ask(20.0, "undo", 1)], seconds=30.0)

KINDS_OF_EVENTS = (
    "RowOpened", "DecisionMade", "IterationsOpened", "BranchChosen", "ChildStarted", "UnwindingStarted", "StepUndone",
    "CompensationOpened", "PhaseCompensated", "UnwindingAsked",
)  # fmt: skip


def kinds(report: Report) -> set[str]:
    """The kinds of events in the journals."""
    return {line.partition("   ")[2].partition(" ")[2].partition("(")[0] for line in report.trace}


def unwound(report: Report) -> str:
    """How far the first run was unwound in the end."""
    ends = [line for line in report.trace if "  r0@" in line and "RunSettled" in line]
    return ends[-1].partition("unwound='")[2].partition("'")[0] if ends else "never settled"


def checked(reports: Iterator[Report]) -> int:
    """How many were played; each of them is sound, and unwound fully."""
    count = 0
    for report in reports:
        assert not broken([report]), report.failures
        assert unwound(report) == "fully", report.parts
        count += 1
    return count


def test_the_saga_has_all_that_can_be_undone() -> None:
    report = SAGA.play()

    assert not report.failures
    assert kinds(report) >= set(KINDS_OF_EVENTS)
    assert unwound(report) == "fully"


@pytest.mark.parametrize("kind", ["crash_before", "crash_after"])
def test_a_saga_that_is_killed_at_any_append_is_unwound_fully(kind: str) -> None:
    assert checked(everywhere(SAGA, kind, "commit")) > 40


@pytest.mark.soak
@pytest.mark.parametrize("scenario", [SAGA, NARROW], ids=["saga", "narrow"])
@pytest.mark.parametrize("kind", ["crash_before", "crash_after", "error_before", "error_after", "conflict"])
def test_a_saga_whatever_fails_at_any_write_is_unwound_fully(scenario: Scenario, kind: str) -> None:
    operations = ("commit",) if kind == "conflict" else WRITES
    # All of them in a soak.
    every = 1 if "TREADLE_SIM_SEEDS" in os.environ else 17

    assert checked(everywhere(scenario, kind, *operations, every=every)) > 2


@pytest.mark.parametrize("kind", ["crash_after", "error_after"])
def test_an_undo_that_is_retried_while_its_run_unwinds_survives_any_fault(kind: str) -> None:
    assert "UndoReopened" in kinds(AGAIN.play())

    assert checked(everywhere(AGAIN, kind, "commit")) > 10


@pytest.mark.parametrize("kind", ["crash_after", "error_after"])
def test_an_unwinding_that_is_parked_and_taken_on_again_survives_any_fault(kind: str) -> None:
    reached = kinds(PARKED.play())
    assert reached >= {"UnwindingParked", "UndoParked"}

    for report in everywhere(PARKED, kind, "commit"):
        assert not report.failures
