"""Detached cells: nobody waits for them, and their outcomes stay readable."""

from __future__ import annotations

from typing import Any

import pytest
from tests.core.kit import Driver, adding, step, value_of
from tests.core.test_phases import cell, give, place_of, row, rows

from treadle.core import inputs as inp
from treadle.core.decide import Limits
from treadle.core.plan import (
    Block,
    Const,
    Group,
    Phase,
    Phases,
    RetryPolicy,
)


def detached(*, on_finish: Any = "leave", phases: int = 2) -> Driver:
    first = row("a", cell("bg"), cell("main"), detached=("bg",))
    rest = rows("b", "c", "d", policy="")[: phases - 1]
    return Driver(Phases(id="f", phases=[first, *rest], on_finish=on_finish), step("z", "f"))


def test_a_detached_cell_gates_nothing_and_is_counted_as_pending() -> None:
    driver = detached(phases=3)
    assert driver.waiting() == ["f/a/bg", "f/a/main"]
    assert place_of(driver.task("f/a/main"))["pending"] == {}
    driver.succeed("f/a/main", result=1)
    assert place_of(driver.task("f/b/main"))["pending"] == {"bg": 1}
    assert place_of(driver.task("f/b/main"))["previous"] == {"main": 1}
    driver.fail("f/a/bg")
    assert place_of(driver.task("f/b/main"))["pending"] == {"bg": 1}, "what a cell was told does not change"
    driver.succeed("f/b/main")
    assert place_of(driver.task("f/c/main"))["pending"] == {}
    driver.finish()

    assert driver.status() == "succeeded"
    assert driver.status("f/a/bg") == "failed"
    failure = driver.step("f/a/bg").failure
    assert failure is not None
    assert failure.code == "boom", "its outcome stays readable"
    driver.check()


def test_a_detached_cell_sets_nothing() -> None:
    driver = detached()
    give(driver, "f/a/bg", s=1)
    assert driver.status("f/a/bg") == "failed"
    failure = driver.step("f/a/bg").failure
    assert failure is not None
    assert "cannot return state patch" in failure.message
    driver.finish()

    assert driver.status() == "succeeded"
    assert value_of(driver.scope("f").result) == {}


def test_a_detached_cell_sees_the_state_of_its_row_however_late_it_starts() -> None:
    inner = Group(id="bg", blocks=[step("one"), cell("two", after=("one",))])
    driver = Driver(
        Phases(
            id="f",
            phases=[row("a", inner, cell("main"), detached=("bg",)), *rows("b", policy="")],
            state={"s": Const(0)},
        ),
        constants=[0],
    )
    give(driver, "f/a/main", 1, s=5)
    driver.succeed("f/a/bg/one")

    told = place_of(driver.task("f/a/bg/two"))
    assert (told["state"], told["previous"], told["phase"], told["step"]) == ({"s": 0}, {}, "a", 0)
    driver.succeed("f/b/main")
    assert driver.status() == "succeeded"
    driver.succeed("f/a/bg/two")
    assert driver.status("f/a/bg") == "succeeded"
    driver.check()


def test_a_row_of_detached_cells_only_hands_on_nothing() -> None:
    driver = Driver(Phases(id="f", phases=[row("a", cell("bg"), detached=("bg",)), *rows("b", policy="")]))

    assert place_of(driver.task("f/b/main"))["previous"] == {}
    driver.check()


def test_a_detached_cell_may_use_its_siblings() -> None:
    driver = Driver(Phases(id="f", phases=[row("a", step("bg", "main"), step("main"), detached=("bg",))]))
    driver.succeed("f/a/main", result=3)

    assert driver.args("f/a/bg") == {"p0": 3}


def test_at_the_end_detached_cells_are_left_waited_for_or_cancelled() -> None:
    for on_finish, after in (("leave", "succeeded"), ("wait", "running"), ("cancel", "succeeded")):
        driver = detached(on_finish=on_finish)
        driver.succeed("f/a/main", "f/b/main")
        assert ("z" in driver.statuses() and driver.status("z")) == (
            "dispatched" if after == "succeeded" else "waiting"
        )
        assert driver.status("f/a/bg") == ("cancelled" if on_finish == "cancel" else "dispatched")
        driver.check()
        driver.finish()

        assert driver.status() == "succeeded"
        driver.check()


@pytest.mark.parametrize(("on_finish", "ends"), [("leave", True), ("wait", False), ("cancel", True)])
def test_a_failure_ends_the_block_as_it_wants_its_detached_cells_to_end(on_finish: Any, ends: bool) -> None:
    driver = detached(on_finish=on_finish)
    driver.fail("f/a/main")

    assert (driver.status("f") == "failed") is ends
    assert driver.status("f/a/bg") == ("cancelled" if on_finish == "cancel" else "dispatched")
    driver.finish()
    assert driver.status() == "failed"
    driver.check()


def test_a_detached_attempt_of_a_settled_run_may_fail_be_tried_again_and_be_lost() -> None:
    driver = Driver(
        Phases(
            id="f",
            phases=[row("a", cell("bg", retry=RetryPolicy(attempts=2, initial=0)), cell("main"), detached=("bg",))],
        )
    )
    driver.succeed("f/a/main")
    assert driver.status() == "succeeded"

    driver.fail("f/a/bg")
    driver.lose("f/a/bg")
    assert driver.task("f/a/bg").attempt == 3
    driver.check()
    driver.succeed("f/a/bg", result=4)

    assert driver.step("f/a/bg").result == "=4"
    assert driver.status() == "succeeded"
    driver.check()


def test_a_detached_attempt_of_a_settled_run_adds_nothing() -> None:
    driver = Driver(Phases(id="f", phases=[row("a", cell("bg"), cell("main"), detached=("bg",))]))
    driver.succeed("f/a/main")
    driver.succeed("f/a/bg", added=adding(step("more")))

    failure = driver.step("f/a/bg").failure
    assert failure is not None
    assert failure.code == "run_not_active"
    driver.check()


@pytest.mark.parametrize("hard", [False, True])
def test_a_cancel_reaches_detached_cells(hard: bool) -> None:
    inner = Group(id="bg", blocks=[step("one"), step("two", after=("one",))])
    driver = Driver(Phases(id="f", phases=[row("a", inner, cell("main"), detached=("bg",))]), limits=Limits(events=1))
    driver.settle()
    driver.give(inp.Cancel(hard=hard))
    driver.finish()

    assert driver.status() == "cancelled"
    assert driver.statuses() == {
        "f/a/bg/one": "cancelled" if hard else "succeeded",
        "f/a/bg/two": "cancelled",
        "f/a/main": "cancelled" if hard else "succeeded",
    }
    assert driver.status("f/a/bg") == "cancelled"
    driver.check()


def test_a_cell_brought_back_into_a_scope_that_stops_is_looked_at_though_it_waits() -> None:
    cells: list[Block] = [step("c0", after_any=("s0",)), step("c1")]
    block = Phases(id="f", phases=[Phase(id="p", blocks=cells, detached=("c0", "c1"))], on_finish="wait")
    driver = Driver(step("s0"), block)
    waits = driver.step("f/p/c0")
    waits.around.stopping = "met"

    driver.run.recount(waits)

    # A run that is loaded looks at it in any case, and has to decide what the live one decides.
    assert waits.waiting == 1
    assert waits.node.number in driver.run.frontier
