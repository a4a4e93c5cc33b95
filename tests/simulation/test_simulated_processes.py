"""Steps in processes of their own, under seeds: whoever dies at whichever instant; planted bugs are found."""

from __future__ import annotations

import random
from typing import Any

import pytest
from tests.simulation import scenes
from tests.simulation.scenes import WRITES, alone, broken, conduct

from treadle.authoring.builder import Planned
from treadle.authoring.options import Retry
from treadle.runtime.processes import Processes
from treadle.testing.scenarios import Ask, Scenario, everywhere
from treadle.testing.sim_steps import boxed
from treadle.testing.simulation import Report, run_seed


def boxes() -> Planned:
    """Steps in processes: two one after the other, which share one, one beside them, and one with a timeout."""
    plan = scenes.builder()
    first = plan.step("a", boxed, conduct("a"), [], retry=Retry(attempts=3, initial=0.1))
    plan.step("b", boxed, conduct("b"), [], retry=Retry(attempts=3, initial=0.1))
    plan.step("c", boxed, conduct("c"), [], timeout=1.0, optional=True)
    plan.output(plan.step("end", boxed, conduct("end"), [first], retry=Retry(attempts=3, initial=0.1)))
    return plan.build()


BOXES = Scenario([boxes()], apart=True)
# Its worker is condemned, or the run cancelled, while the processes are at work.
CONDEMNED = Scenario([boxes()], [Ask(0.9, "condemn")], apart=True, workers=1, starts_at=1)
CANCELLED = Scenario([boxes()], [Ask(0.9, "cancel_hard", 1)], apart=True)
KINDS = ("crash_before", "crash_after", "error_before", "error_after", "conflict")


def deaths(scenario: Scenario) -> list[Report]:
    """The scenario with one process after the other that dies, or whose worker dies, at one instant after the other."""
    return [report for kind in KINDS for report in everywhere(scenario, kind, "step_process")]


@pytest.mark.parametrize("scenario", [BOXES, CONDEMNED, CANCELLED])
def test_without_a_planted_bug_nothing_is_found(scenario: Scenario) -> None:
    assert not broken(alone(scenario))
    assert not broken(deaths(scenario))
    assert not broken(everywhere(scenario, "crash_after", *WRITES, every=2))


def test_a_process_that_dies_fails_its_attempt_and_one_that_dies_idle_fails_none() -> None:
    def codes(kind: str) -> set[str]:
        lines = [line for report in everywhere(BOXES, kind, "step_process") for line in report.trace]
        return {
            code for code in ("process_killed", "process_exited") if any(f"code='{code}'" in line for line in lines)
        }

    assert codes("error_before") == {"process_killed"}
    assert codes("error_after") == {"process_exited"}
    assert codes("conflict") == set()


def test_some_worlds_have_steps_in_processes() -> None:
    seeds = [seed for seed in range(120) if random.Random(f"processes of {seed}").random() < 0.15]
    lines = [line for seed in seeds[:6] for line in run_seed(seed).trace]

    assert sum("fault" in line and "step_process" in line for line in lines) > 2


def test_an_attempt_that_fails_with_a_process_that_had_died_before_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    take = Processes._take

    def as_new(self: Processes, isolation: Any) -> Any:
        return take(self, isolation)[0], False

    monkeypatch.setattr(Processes, "_take", as_new)

    lines = [line for report in everywhere(BOXES, "conflict", "step_process") for line in report.trace]
    assert any("code='process_killed'" in line for line in lines)


def test_a_process_that_is_lent_to_two_steps_at_once_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def generous(self: Processes, isolation: Any) -> Any:
        idle = self._idle.setdefault(isolation, [])
        if not idle:
            idle.append(self._spawn(isolation))
        return idle[0], True

    monkeypatch.setattr(Processes, "_take", generous)

    # It is asked for both at once, and tells the one what came of the other.
    assert broken(alone(BOXES))
