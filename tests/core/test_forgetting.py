"""Closed iterations give up their memory. That a run decides alike with and without it, each use of the kit checks."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import pytest
from tests.core.kit import Driver, adding, step, undoable

from treadle.core import inputs as inp
from treadle.core.decision import Limits
from treadle.core.forgetting import FORGOTTEN, needs_all
from treadle.core.plan import Block, Body, Child, Const, Gather, Group, Item, Ref, Slot
from treadle.core.state import IterationState, ScopeState

LIMITS = Limits(dispatched=10)


def gather(*blocks: Block, items: Slot | None = None) -> Gather:
    return Gather(id="g", items=items or Const(0), body=Body(blocks=list(blocks), output=Ref(step=blocks[-1].id)))


def run_of(*blocks: Block, items: Any = (0, 1, 2), **more: Any) -> Driver:
    return Driver(gather(*blocks), step("z", "g"), constants=[list(items)], limits=LIMITS, **more)


def held(driver: Driver) -> int:
    """How many nodes the forgetting run holds."""
    return sum(state is not FORGOTTEN for state in driver.lean.states)


def test_a_gather_of_many_items_holds_those_that_are_under_way() -> None:
    driver = run_of(step("x", slots={"item": Item()}), items=range(500))
    most = 0

    while driver.tasks:
        driver.give(driver.outcome(next(iter(driver.tasks.values())), 1))
        most = max(most, held(driver))

    assert driver.status() == "succeeded"
    # The root, the gather, the step behind it, and two for each of the items that may have a task.
    assert most <= 3 + 2 * LIMITS.dispatched
    assert held(driver) == 3
    assert sorted(driver.lean.index) == []
    assert driver.lean.children == {}
    assert not driver.lean.inside(driver.scope("g").node)


def test_a_run_that_is_dropped_amid_its_iterations_leaves_nothing_behind() -> None:
    def left() -> int:
        gc.collect()
        return sum(type(known) is ScopeState and known.node.address == "amid" for known in gc.get_objects())

    body = Body(blocks=[Group(id="u", blocks=[step("x", slots={"item": Item()}), step("y", "x")])])
    driver = Driver(Gather(id="amid", items=Const(0), body=body), constants=[list(range(500))], limits=LIMITS)
    for task in list(driver.tasks.values())[:5]:
        driver.give(driver.outcome(task, 1))
    assert isinstance(driver.scope("amid[0]"), IterationState)
    assert left()

    del driver
    assert not left()


def test_content_of_any_depth_is_forgotten_with_its_iteration() -> None:
    inner = Gather(id="h", items=Const(0), body=Body(blocks=[step("y")], output=Ref(step="y")))
    driver = run_of(Group(id="q", blocks=[inner], output=Ref(step="h")))

    driver.finish()

    assert driver.status() == "succeeded"
    assert held(driver) == 3


KEPT: dict[str, tuple[Block, dict[str, Any]]] = {
    "undo": (undoable("x"), {}),
    "child": (step("x", child=Child()), {}),
    "breakpoint": (step("x", break_after=("b",)), {"breakpoints": ["b"]}),
}


@pytest.mark.parametrize("name", KEPT)
def test_what_leaves_something_behind_is_kept(name: str) -> None:
    block, more = KEPT[name]
    driver = run_of(block, **more)
    before = held(driver)

    driver.finish()

    assert held(driver) >= before - 1


def test_an_iteration_that_has_added_steps_is_kept() -> None:
    driver = run_of(step("x"))

    driver.succeed("g[0]/x", added=adding(step("more")))
    driver.finish()

    assert driver.lean.at("g[0]/x/more") is not None
    assert driver.lean.at("g[1]/x") is None


def test_an_iteration_that_failed_is_kept() -> None:
    driver = run_of(step("x"))

    driver.succeed("g[0]/x")
    driver.fail("g[1]/x")
    driver.finish()

    assert driver.status() == "failed"
    assert driver.lean.at("g[0]") is None
    assert driver.lean.at("g[1]/x") is not None


def test_what_comes_late_for_a_forgotten_attempt_changes_nothing() -> None:
    driver = run_of(step("x"))
    late = driver.outcome("g[0]/x", 1)
    lost = inp.Lost(late.number, late.generation, late.attempt, "s1")
    driver.succeed("g[0]/x")
    assert driver.lean.at("g[0]/x") is None

    for value in (late, lost, inp.Revoked([late.number])):
        assert not driver.give(value).events

    driver.finish()
    assert driver.status() == "succeeded"


ABOUT: list[Callable[[], inp.AnyInput]] = [
    lambda: inp.Rewind("g[0]/x"),
    lambda: inp.Retry("g[0]/x"),
    lambda: inp.Undo("g[0]/x"),
    lambda: inp.UndoStep("skip", "g[0]/x"),
    lambda: inp.Release("b"),
]


@pytest.mark.parametrize("about", ABOUT)
def test_an_operators_word_about_what_is_forgotten_needs_all_of_the_run(about: Callable[[], inp.AnyInput]) -> None:
    driver = run_of(step("x"))
    assert not needs_all(driver.lean, [about()])

    driver.succeed("g[0]/x")

    assert needs_all(driver.lean, [about()])
    assert not needs_all(driver.lean, [inp.Pause()])
    driver.give(about())
    driver.finish()
    driver.check()


def test_a_forgotten_step_is_rewound() -> None:
    driver = run_of(step("x"))
    driver.finish()
    assert driver.status() == "succeeded"

    assert not driver.give(inp.Rewind("g[0]/x")).refusals
    driver.succeed("g[0]/x", result="again")
    driver.finish()

    assert driver.status() == "succeeded"
    assert driver.step("g[0]/x").generation == 2
    driver.check()
