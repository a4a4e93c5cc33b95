"""Unwinding where steps lie in rows, iterations and branches."""

from __future__ import annotations

from typing import Any

from tests.core.kit import Driver, step, undoable
from tests.core.test_undo import PREPARED, undos, unwind_all

from treadle.core import events as ev
from treadle.core import inputs as inp
from treadle.core.plan import Block, Body, Branch, Choose, Const, Gather, Item, Phase, Phases, RetryPolicy

AGAIN = RetryPolicy(attempts=2, initial=0.0)


def row(*, detached: tuple[str, ...] = (), **more: Any) -> Driver:
    """A Phases block whose first row is tried twice, and a second row."""
    cells: list[Block] = [undoable("a"), step("b", after=("a",)), *(undoable(lane) for lane in detached)]
    phases = [Phase(id="one", blocks=cells, retry=AGAIN, detached=detached), Phase(id="two", blocks=[undoable("x")])]
    return Driver(Phases(id="p", phases=phases), **more)


# -- a row that is tried again -------------------------------------------------------------------------------------


def test_what_a_row_did_is_undone_before_it_is_tried_again() -> None:
    driver = row()
    driver.succeed("p/one/a")

    driver.fail("p/one/b")

    assert driver.waiting() == ["p/one/a"]
    assert driver.task("p/one/a").call.purpose == "undo"
    assert driver.status() == "running"
    driver.succeed("p/one/a")
    assert driver.waiting() == ["p/one#2/a"]
    assert undos(driver)["p/one/a"] == "undone"
    assert [event.at for event in driver.seen(ev.Unwound)] == ["p/one"]
    driver.check()


def test_a_row_that_did_nothing_is_tried_again_at_once() -> None:
    cell = undoable("a", undo=PREPARED)
    driver = Driver(Phases(id="p", phases=[Phase(id="one", blocks=[cell], retry=AGAIN)]))

    driver.fail("p/one/a")

    assert driver.waiting() == ["p/one#2/a"]
    assert driver.seen(ev.UnwindingStarted) == []


def test_a_detached_cell_of_the_row_is_cancelled_and_waited_for() -> None:
    driver = row(detached=("bg",))
    driver.succeed("p/one/a")

    driver.fail("p/one/b")

    assert driver.seen(ev.UndoDispatched) == []
    driver.give(driver.outcome("p/one/bg", status="cancelled"))
    assert sorted(driver.waiting()) == ["p/one/a", "p/one/bg"]
    driver.succeed("p/one/a", "p/one/bg")
    assert sorted(driver.waiting()) == ["p/one#2/a", "p/one#2/bg"]
    driver.check()


def test_a_cancel_parks_the_unwinding_of_a_row_and_ends_the_run() -> None:
    driver = row()
    driver.succeed("p/one/a")
    driver.fail("p/one/b")

    driver.give(inp.Cancel())

    assert driver.status() == "running"
    driver.succeed("p/one/a")
    assert driver.status() == "cancelled"
    assert undos(driver)["p/one/a"] == "undone"
    driver.check()


# -- the whole run -------------------------------------------------------------------------------------------------


def test_rows_that_the_run_has_gone_past_are_undone_with_it() -> None:
    driver = row(on_failure="unwind")
    for at in ("p/one/a", "p/one/b"):
        driver.succeed(at)

    driver.fail("p/two/x")

    assert unwind_all(driver) == ["p/two/x", "p/one/a"]
    assert driver.status() == "failed"
    assert driver.run.root.unwound == "fully"
    driver.check()


def test_iterations_and_branches_are_undone_in_one_order() -> None:
    each = Body(blocks=[undoable("s", slots={"i": Item()})])
    pick = Choose(id="c", branches=[Branch(id="yes", blocks=[undoable("y")])], after=("g",))
    driver = Driver(
        Gather(id="g", items=Const(0), body=each, limit=1),
        pick,
        step("end", after=("c",)),
        constants=[[1, 2]],
        on_failure="unwind",
    )
    for at in ("g[0]/s", "g[1]/s", "c/yes/y"):
        driver.succeed(at)

    driver.fail("end")

    assert unwind_all(driver) == ["c/yes/y", "g[1]/s", "g[0]/s"]
    assert driver.run.root.unwound == "fully"
    driver.check()
