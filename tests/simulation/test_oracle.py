"""The oracle reads a journal as it came to be: what was found with a default stays found when the step is retried."""

from __future__ import annotations

from typing import Final

import pytest
from tests.core.kit import Driver, step

from treadle.core import events as ev
from treadle.core import inputs as inp
from treadle.core.plan import Branch, Choose, Const, Predicate, Ref, Slot, encode_plan
from treadle.store.base import RunHead
from treadle.store.memory_data import Row, StoredRun
from treadle.testing import invariants
from treadle.testing.invariants import Journal
from treadle.testing.sim_conduct import Shelf, truth_of
from treadle.testing.sim_oracle import Oracle

CONSTANTS: Final = [None, *range(100)]
# Salts with which the predicate tells the default (null) from the value 1: yes and no, no and yes.
LOSES: Final = next(salt for salt in range(100) if truth_of(None, salt) and not truth_of(1, salt))
GAINS: Final = next(salt for salt in range(100) if not truth_of(None, salt) and truth_of(1, salt))


def asks(salt: int) -> Predicate:
    """A condition on the value of the step `a`, or on null."""
    slots: dict[str, Slot] = {"value": Ref(step="a", default=0), "salt": Const(index=1 + salt)}
    return Predicate(name="sim:truth", slots=slots)


def chooses(*salts: int) -> Driver:
    """A run with a step that failed and a choose that asks about it."""
    branches = [Branch(id=f"way{n}", when=asks(salt), blocks=[step("x")]) for n, salt in enumerate(salts)]
    driver = Driver(step("a"), Choose(id="c", branches=branches), constants=CONSTANTS)
    driver.fail("a")
    return driver


def retry(driver: Driver) -> None:
    """Retry the step that failed; now it succeeds."""
    driver.give(inp.Retry("a"))
    driver.succeed("a", result=1)


def broken(driver: Driver) -> set[str]:
    """The invariants that the journal breaks; the rows beside it are not there."""
    head = RunHead(key="k", id="run-1", workflow="w", plan="", constants=driver.constants)
    run = StoredRun(head, encode_plan(driver.graph.plan))
    run.rows = [Row(version, version, time, text) for version, time, text in driver.rows]
    found: set[str] = set()
    Oracle(Journal(run), Shelf(), lambda what, _: found.add(what)).judge()
    return found - {invariants.ROWS}


@pytest.mark.parametrize("answered", [False, True])
def test_a_branch_is_chosen_by_what_was_asked_before_a_retry(answered: bool) -> None:
    driver = chooses(LOSES)
    if not answered:
        retry(driver)
    driver.succeed("c/~when", result=truth_of(None, LOSES))
    if answered:
        retry(driver)
    driver.finish()

    assert [event.branch for event in driver.seen(ev.BranchChosen)] == ["way0"]
    assert not broken(driver)


@pytest.mark.parametrize("lost", [False, True])
def test_conditions_are_about_the_values_of_the_first_question_also_where_an_attempt_is_lost(lost: bool) -> None:
    driver = chooses(GAINS, GAINS)
    driver.succeed("c/~when", result=False)
    retry(driver)
    if lost:
        driver.lose("c/~when#2")
    driver.succeed("c/~when#2", result=truth_of(None, GAINS))
    driver.finish()

    assert [event.branch for event in driver.seen(ev.BranchChosen)] == [""]
    assert not broken(driver)


def test_a_step_starts_by_what_its_condition_was_before_a_retry() -> None:
    driver = Driver(step("a"), step("b", when=asks(LOSES)), constants=CONSTANTS)
    driver.fail("a")
    retry(driver)
    driver.succeed("b", result=True)
    driver.finish()

    assert driver.status("b") == "succeeded"
    assert not broken(driver)


@pytest.mark.parametrize("salt", [LOSES, GAINS])
def test_a_wrong_answer_is_found(salt: int) -> None:
    driver = chooses(salt)
    driver.succeed("c/~when", result=not truth_of(None, salt))
    driver.finish()

    assert invariants.BLOCKS in broken(driver)


def test_a_wrong_condition_of_a_step_is_found() -> None:
    driver = Driver(step("a"), step("b", when=asks(LOSES)), constants=CONSTANTS)
    driver.fail("a")
    driver.succeed("b", result=False)
    driver.finish()

    assert invariants.RESULTS in broken(driver)
