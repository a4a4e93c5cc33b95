"""Backups under seeds: a copy made at any instant is a store whose runs go on; planted bugs are found."""

from __future__ import annotations

from typing import Any

import pytest
from tests.simulation import scenes
from tests.simulation.scenes import broken

from treadle.core.events import AttemptLost
from treadle.testing import invariants, sim_backups
from treadle.testing.scenarios import Ask, Scenario, everywhere
from treadle.testing.sim_backups import Backups
from treadle.testing.simulation import Report, run_seed

# Large values and a fan, while which backups begin at one instant after the other.
PLANS = [scenes.stream(), scenes.fan()]
INSTANTS = [0.6 + 0.15 * number for number in range(30)]


def at_each(**options: Any) -> list[Report]:
    """One backup each, at one instant after the other."""
    return [Scenario(PLANS, backups=[at], pace=0.05, **options).play() for at in INSTANTS]


def test_without_a_planted_bug_nothing_is_found() -> None:
    assert not broken(at_each())
    assert not broken(at_each(asks=[Ask(2.0, "cancel_unwind"), Ask(2.0, "pause", 1, 1)]))
    assert not broken(everywhere(Scenario(PLANS, backups=[1.5, 2.5], pace=0.05), "crash_after", "backup", "copy_blobs"))


def test_what_was_under_way_when_the_copy_was_made_is_taken_up_in_it() -> None:
    lines = [line for report in at_each() for line in report.trace if line.startswith("backup")]

    assert any(AttemptLost.__name__ in line for line in lines)
    assert any("RunSettled" in line for line in lines)


def test_some_worlds_have_backups() -> None:
    assert sum(any(line.startswith("backup") for line in run_seed(seed).trace) for seed in (43, 107, 108, 210)) == 4


def test_blobs_that_are_copied_before_the_store_alone_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    async def early(node: Any, name: str) -> None:
        await node.beside(lambda: node.blobs.copy_to(f"{name}-blobs"))
        await node.read(lambda: node.reader.backup(name))

    monkeypatch.setattr(sim_backups, "copied", early)

    assert broken(at_each()) == invariants.BACKED_UP


def test_a_copy_without_the_sessions_that_held_its_leases_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    copy_data = Backups._copy_data

    def careless(self: Backups, name: str) -> None:
        copy_data(self, name)
        self._copies[name].data.sessions.clear()

    monkeypatch.setattr(Backups, "_copy_data", careless)

    assert broken(at_each()) == invariants.STORE
