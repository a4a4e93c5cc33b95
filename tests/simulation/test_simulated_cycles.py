"""Nodes that are driven by cycles, under seeds: what they count is what the journals say; planted bugs are found."""

from __future__ import annotations

import pytest
from tests.simulation import scenes
from tests.simulation.scenes import WRITES, alone, broken, conduct

from treadle.authoring.builder import Planned
from treadle.authoring.options import Retry
from treadle.runtime.cycles import Cycle, Cycles
from treadle.testing import invariants
from treadle.testing.scenarios import Scenario, everywhere
from treadle.testing.sim_conduct import fraction
from treadle.testing.sim_steps import work
from treadle.testing.simulation import run_seed


def failing() -> Planned:
    """A step that is tried again, one that fails for good, and one after both."""
    again = next(name for name in map(str, range(1000)) if 0.35 <= fraction("kind", name, 1) < 0.6)
    final = next(name for name in map(str, range(1000)) if 0.8 <= fraction("kind", name, 1) < 0.95)
    plan = scenes.builder()
    steps = [
        plan.step(
            "again", work, conduct(again, 0.5, fails=1.0), [], retry=Retry(attempts=2, initial=0.5), optional=True
        ),
        plan.step("final", work, conduct(final, 0.5, fails=1.0), [], optional=True),
    ]
    plan.output(plan.step("end", work, conduct("end"), [], after_any=steps))
    return plan.build()


# All machines are driven; or the one that executes is, and another one decides.
ALL = Scenario([failing()], driven=(0, 1))
ONE = Scenario([failing()], driven=(0,), starts_at=1, workers=1)


@pytest.mark.parametrize("scenario", [ALL, ONE])
@pytest.mark.parametrize("kind", ["", "crash_after", "error_before", "error_after"])
def test_without_a_planted_bug_nothing_is_found(scenario: Scenario, kind: str) -> None:
    assert not broken(everywhere(scenario, kind, *WRITES) if kind else alone(scenario))


def test_some_worlds_have_nodes_that_are_driven() -> None:
    lines = [line for seed in (3, 14, 30, 44, 65) for line in run_seed(seed).trace]

    assert sum(" Cycle(" in line and "processed=0" not in line for line in lines) > 5
    assert any("crash" in line for line in lines)


def test_counters_that_believe_what_attempts_say_of_themselves_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    async def trusting(_self: Cycles, _key: str) -> None:
        """What an attempt has handed in is what comes of it."""

    monkeypatch.setattr(Cycles, "_learn", trusting)

    assert broken(alone(ONE)) == invariants.COUNTED


def test_a_cycle_that_forgets_what_an_earlier_one_has_begun_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    run = Cycles.run

    async def forgetful(self: Cycles, limit: int | None) -> Cycle:
        self._outcomes.clear()
        return await run(self, limit)

    monkeypatch.setattr(Cycles, "run", forgetful)

    assert broken(everywhere(ALL, "error_after", "claim")) == invariants.COUNTED
