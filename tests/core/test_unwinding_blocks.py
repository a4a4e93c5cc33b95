"""Unwinding where steps lie in rows, iterations and branches."""

from __future__ import annotations

from typing import Any

from tests.core.kit import Driver, step, undoable
from tests.core.test_undo import PREPARED, undos, unwind_all

from treadle.core import events as ev
from treadle.core import inputs as inp
from treadle.core.plan import (
    Block,
    Body,
    Branch,
    Choose,
    Const,
    Gather,
    Group,
    Item,
    Phase,
    Phases,
    Predicate,
    RetryPolicy,
    Rule,
)

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


# -- a Phases block that fails -------------------------------------------------------------------------------------


def rows(*, optional: bool = False, detached: tuple[str, ...] = (), id: str = "p") -> Phases:
    """A row that can be undone, with cells that nobody waits for, and a row that fails."""
    cells: list[Block] = [undoable("a"), *(undoable(lane) for lane in detached)]
    phases = [Phase(id="one", blocks=cells, detached=detached), Phase(id="two", blocks=[step("x")])]
    return Phases(id=id, phases=phases, optional=optional)


def test_a_phases_block_that_fails_is_unwound_and_what_is_around_it_stands() -> None:
    driver = Driver(undoable("before"), rows())
    driver.succeed("before", "p/one/a")

    driver.fail("p/two/x")

    assert (driver.waiting(), driver.status()) == (["p/one/a"], "running")
    driver.succeed("p/one/a")
    assert undos(driver) == {"before": "none", "p/one/a": "undone"}
    assert driver.status("p") == "failed"
    assert (driver.status(), driver.run.root.unwound) == ("failed", "partly")
    driver.check()


def test_a_run_of_which_nothing_else_stands_is_fully_unwound() -> None:
    driver = Driver(rows())
    driver.succeed("p/one/a")

    driver.fail("p/two/x")
    driver.succeed("p/one/a")

    assert driver.seen(ev.RunSettled)[0].unwound == "fully"
    assert driver.run.root.unwound == "fully"
    driver.check()


def test_a_run_told_to_stop_leaves_what_its_blocks_did() -> None:
    driver = Driver(rows(), on_failure="stop")
    driver.succeed("p/one/a")

    driver.fail("p/two/x")

    assert undos(driver) == {"p/one/a": "none"}
    assert (driver.status(), driver.run.root.unwound) == ("failed", "")


def test_the_word_for_one_run_goes_before_that_of_its_workflow() -> None:
    driver = Driver(rows(), started=ev.RunStarted(on_failure="stop"))
    driver.succeed("p/one/a")

    driver.fail("p/two/x")

    assert undos(driver) == {"p/one/a": "none"}


def test_a_run_that_is_unwound_as_a_whole_undoes_its_block_in_the_one_order() -> None:
    driver = Driver(rows(), undoable("late"), on_failure="unwind", undo_limit=1)
    driver.succeed("p/one/a", "late")

    driver.fail("p/two/x")

    assert driver.status() == "unwinding"
    assert unwind_all(driver) == ["late", "p/one/a"]
    driver.check()


def test_a_block_whose_failure_is_tolerated_is_unwound_by_itself_even_then() -> None:
    driver = Driver(rows(optional=True), undoable("other"), on_failure="unwind")
    driver.succeed("p/one/a", "other")

    driver.fail("p/two/x")
    driver.succeed("p/one/a")

    assert undos(driver) == {"p/one/a": "undone", "other": "none"}
    assert (driver.status(), driver.run.root.unwound) == ("succeeded", "partly")
    driver.check()


def test_an_iteration_that_loses_is_unwound_where_the_first_success_counts() -> None:
    body = Body(blocks=[rows()])
    driver = Driver(Gather(id="g", items=Const(0), body=body, mode="first"), constants=[[1, 2]], on_failure="unwind")
    driver.succeed("g[0]/p/one/a", "g[1]/p/one/a")

    driver.fail("g[0]/p/two/x")
    driver.succeed("g[0]/p/one/a")
    driver.succeed("g[1]/p/two/x")

    assert undos(driver) == {"g[0]/p/one/a": "undone", "g[1]/p/one/a": "none"}
    assert driver.status() == "succeeded"


def test_a_block_that_fails_by_a_decision_is_unwound_too() -> None:
    phases = [Phase(id="one", blocks=[undoable("a")], policy="r")]
    rules: dict[str, tuple[Rule, ...]] = {"r": (Rule(id="never", move="stop", when=Predicate(name="asked")),)}
    driver = Driver(Phases(id="p", phases=phases, policies=rules))
    driver.succeed("p/one/a")

    driver.succeed("p/~rule", result=False)

    assert driver.waiting() == ["p/one/a"]
    driver.succeed("p/one/a")
    failure = driver.scope("p").failure
    assert failure is not None
    assert failure.code == "no_rule"
    driver.check()


def test_a_detached_cell_of_a_block_that_fails_is_cancelled_and_waited_for() -> None:
    driver = Driver(rows(detached=("bg",)))
    driver.succeed("p/one/a")

    driver.fail("p/two/x")

    assert driver.interrupted == [driver.step("p/one/bg").node.number]
    assert driver.seen(ev.UndoDispatched) == []
    driver.give(driver.outcome("p/one/bg", status="cancelled"))
    assert sorted(driver.waiting()) == ["p/one/a", "p/one/bg"]
    driver.finish()
    assert driver.status() == "failed"
    driver.check()


def test_a_detached_cell_of_a_block_that_did_nothing_else_is_left_alone() -> None:
    phases = [Phase(id="one", blocks=[step("a"), step("bg")], detached=("bg",))]
    driver = Driver(Phases(id="p", phases=phases))

    driver.fail("p/one/a")

    assert driver.interrupted == []
    assert (driver.status(), driver.waiting()) == ("failed", ["p/one/bg"])


def test_a_cancel_does_not_unwind_a_block() -> None:
    driver = Driver(rows())
    driver.succeed("p/one/a")

    driver.give(inp.Cancel())
    driver.fail("p/two/x")

    assert undos(driver) == {"p/one/a": "none"}
    assert driver.status() == "cancelled"


def test_a_cancel_parks_the_unwinding_of_a_block() -> None:
    driver = Driver(rows())
    driver.succeed("p/one/a")
    driver.fail("p/two/x")

    driver.give(inp.Cancel(hard=True))
    driver.give(driver.outcome("p/one/a", status="cancelled"))

    assert undos(driver) == {"p/one/a": "parked"}
    assert (driver.status(), driver.run.root.unwound) == ("cancelled", "partly")
    driver.check()


def test_an_inner_block_is_unwound_before_the_row_around_fails() -> None:
    inner = Group(id="lane", blocks=[rows(id="q")])
    outer = [Phase(id="first", blocks=[undoable("y")]), Phase(id="second", blocks=[inner])]
    driver = Driver(Phases(id="p", phases=outer))
    driver.succeed("p/first/y", "p/second/lane/q/one/a")

    driver.fail("p/second/lane/q/two/x")

    assert unwind_all(driver) == ["p/second/lane/q/one/a", "p/first/y"]
    assert [event.at for event in driver.seen(ev.Unwound)] == ["p/second/lane/q", "p"]
    assert driver.run.root.unwound == "fully"
    driver.check()


def test_a_run_waits_for_the_unwinding_in_a_detached_cell() -> None:
    background = Group(id="bg", blocks=[rows(id="q")])
    driver = Driver(Phases(id="p", phases=[Phase(id="one", blocks=[step("a"), background], detached=("bg",))]))
    driver.succeed("p/one/bg/q/one/a")
    driver.fail("p/one/bg/q/two/x")

    driver.succeed("p/one/a")

    assert driver.status() == "running"
    driver.succeed("p/one/bg/q/one/a")
    assert driver.status() == "succeeded"
    driver.check()


def outliving(inner: Phases) -> Driver:
    """A run that has succeeded while a detached lane with a block goes on."""
    lane = Group(id="bg", blocks=[inner])
    driver = Driver(Phases(id="p", phases=[Phase(id="one", blocks=[step("a"), lane], detached=("bg",))]))
    driver.succeed("p/one/a")
    assert driver.status() == "succeeded"
    return driver


def test_a_block_that_outlives_its_run_and_fails_is_left_to_an_operator() -> None:
    driver = outliving(rows(id="q"))
    driver.succeed("p/one/bg/q/one/a")

    driver.fail("p/one/bg/q/two/x")

    assert driver.status("p/one/bg/q") == "failed"
    assert undos(driver) == {"p/one/bg/q/one/a": "none"}
    driver.give(inp.Undo())
    driver.succeed("p/one/bg/q/one/a")
    assert driver.run.root.unwound == "fully"
    driver.check()


def test_a_row_that_outlives_its_run_is_not_tried_again_over_what_it_did() -> None:
    cells: list[Block] = [undoable("a"), step("b", after=("a",))]
    driver = outliving(Phases(id="q", phases=[Phase(id="one", blocks=cells, retry=AGAIN)]))
    driver.succeed("p/one/bg/q/one/a")

    driver.fail("p/one/bg/q/one/b")

    assert driver.waiting() == []
    assert driver.status("p/one/bg/q") == "failed"
    driver.check()


def test_what_a_block_undid_is_rewound_with_the_block_and_can_be_unwound_anew() -> None:
    driver = Driver(rows())
    driver.succeed("p/one/a")
    driver.fail("p/two/x")
    driver.succeed("p/one/a")

    driver.give(inp.Rewind("p"))
    driver.succeed("p#2/one/a")
    driver.fail("p#2/two/x")

    assert driver.waiting() == ["p#2/one/a"]
    driver.succeed("p#2/one/a")
    assert driver.run.root.unwound == "fully"
    driver.check()
