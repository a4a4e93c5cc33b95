"""Compensating phases: what is done for rows that are unwound, in which order, and what operators say about it."""

from __future__ import annotations

from typing import Any

import pytest
from tests.core.kit import Driver, step, undoable
from tests.core.test_undo import undos

from treadle.core import events as ev
from treadle.core import inputs as inp
from treadle.core.decide import Limits
from treadle.core.plan import (
    Block,
    Body,
    Const,
    Gather,
    Group,
    LaneValue,
    Phase,
    PhaseInfo,
    Phases,
    Predicate,
    Ref,
    RetryPolicy,
    Rule,
    StateValue,
)
from treadle.core.undo import undo_of
from treadle.core.unwinding import undo_stack

TOLD = {"told": PhaseInfo()}


def back(name: str, *cells: Block) -> Phase:
    """A compensating phase."""
    return Phase(id=name, blocks=list(cells) or [step("c", slots=TOLD)])


def saga(*rows: Phase, back: list[Phase] | None = None, **more: Any) -> Phases:
    known = [Phase(id=row.compensate, blocks=[step("c", slots=TOLD)]) for row in rows if row.compensate]
    return Phases(id="p", phases=list(rows), compensations=known if back is None else back, **more)


def row(name: str, *cells: Block, compensate: str | None = None, **more: Any) -> Phase:
    return Phase(
        id=name,
        blocks=list(cells) or [step("x")],
        compensate=f"un{name}" if compensate is None else compensate,
        **more,
    )


def three(*, last: Phase | None = None, **more: Any) -> Driver:
    """Two rows that can be compensated, and a third one."""
    return Driver(saga(row("one", undoable("x")), row("two", undoable("x")), last or row("end")), **more)


def to_the_end(driver: Driver) -> None:
    driver.succeed("p/one/x", "p/two/x")


def fates(driver: Driver) -> dict[str, str]:
    """What became of the rows that can be compensated."""
    return {row.node.address: undo_of(row).status for row in driver.run.compensable}


def opened(driver: Driver) -> list[tuple[str, str]]:
    return [(event.at, event.phase) for event in driver.seen(ev.CompensationOpened)]


# -- order -------------------------------------------------------------------------------------------------------------


def test_rows_are_compensated_after_all_undos_of_steps_the_last_one_first() -> None:
    driver = three()
    to_the_end(driver)

    driver.fail("p/end/x")

    driver.finish()
    ends = (ev.StepUndone, ev.PhaseCompensated)
    order = [(event.at, type(event).__name__) for event in driver.events if isinstance(event, ends)]
    assert order == [
        ("p/two/x", "StepUndone"),
        ("p/one/x", "StepUndone"),
        ("p/two", "PhaseCompensated"),
        ("p/one", "PhaseCompensated"),
    ]
    assert fates(driver) == {"p/one": "undone", "p/two": "undone"}
    assert (driver.status(), driver.run.root.unwound) == ("failed", "fully")
    driver.check()


def test_one_row_is_compensated_at_a_time() -> None:
    driver = three()
    to_the_end(driver)
    driver.fail("p/end/x")

    driver.succeed("p/two/x", "p/one/x")

    assert driver.waiting() == ["p/untwo/c"]
    assert driver.scope("p/two").undo is not None
    driver.check()
    driver.succeed("p/untwo/c")
    assert driver.waiting() == ["p/unone/c"]


def test_a_phase_that_failed_is_not_compensated_itself() -> None:
    driver = three()
    to_the_end(driver)

    driver.fail("p/end/x")

    driver.finish()
    assert opened(driver) == [("p/two", "untwo"), ("p/one", "unone")]


def test_each_entry_of_a_phase_is_compensated_with_what_it_left() -> None:
    rules = (Rule(id="again", move="repeat", when=Predicate(name="more")), Rule(id="on", move="advance"))
    driver = Driver(
        saga(row("one", policy="loop"), row("end", policy="loop"), policies={"loop": rules}, state={"n": Const(0)}),
        constants=[0],
    )
    driver.give(driver.outcome("p/one/x", "first", patch={"n": "=1"}))
    driver.succeed("p/~rule", result=True)
    driver.give(driver.outcome("p/one#2/x", "second", patch={"n": "=2"}))
    driver.succeed("p/~rule#2", result=False)
    driver.fail("p/end/x")

    told: list[dict[str, Any]] = []
    while driver.tasks:
        [task] = driver.tasks.values()
        told.append(driver.args(task.address)["told"])
        driver.succeed(task.address)

    assert told == [
        {"phase": "one", "index": 0, "step": 1, "entry": 2, "state": {"n": 2}, "lanes": {"x": "second"}},
        {"phase": "one", "index": 0, "step": 0, "entry": 1, "state": {"n": 1}, "lanes": {"x": "first"}},
    ]
    assert [s.node.address for s in driver.run.steps() if "unone" in s.node.address] == ["p/unone/c", "p/unone#2/c"]
    driver.check()


def test_a_row_left_behind_by_a_next_entry_is_compensated_with_the_run() -> None:
    driver = three(on_failure="unwind")
    to_the_end(driver)
    driver.succeed("p/end/x")
    driver.give(inp.Rewind("p", keep=True))
    driver.succeed("p#2/one/x")

    driver.fail("p#2/two/x")
    driver.finish()

    assert [at for at, _ in opened(driver)] == ["p#2/one", "p/end", "p/two", "p/one"]
    assert driver.run.at("p#2/unone/c") is not None
    assert driver.run.at("p/unone/c") is not None
    driver.check()


# -- what a compensating phase sees, and may do ------------------------------------------------------------------------


def test_a_compensating_phase_reads_state_lane_values_and_results_of_the_very_row() -> None:
    cell = step("c", slots={"s": StateValue("n"), "l": LaneValue("x"), "r": Ref("one/x"), "d": Ref("one/y", default=0)})
    first = row("one", step("x"), step("y", optional=True))
    driver = Driver(saga(first, row("end", compensate=""), back=[back("unone", cell)]), constants=["none"])
    driver.give(driver.outcome("p/one/x", "left", patch={"n": "=7"}))
    driver.fail("p/one/y")

    driver.fail("p/end/x")

    assert driver.args("p/unone/c") == {"s": 7, "l": "left", "r": "left", "d": "none"}


def test_a_compensating_phase_may_hold_blocks_of_all_kinds() -> None:
    inner = Group(id="g", blocks=[step("a"), Gather(id="each", items=Const(0), body=Body(blocks=[step("s")]))])
    driver = Driver(saga(row("one"), row("end"), back=[back("unone", inner), back("unend")]), constants=[[1, 2]])
    driver.succeed("p/one/x")
    driver.fail("p/end/x")

    driver.finish()

    assert driver.status("p/unone/g/each[1]/s") == "succeeded"
    assert fates(driver) == {"p/one": "undone"}
    driver.check()


def test_a_phases_block_in_a_compensating_phase_has_rows_and_variables_of_its_own() -> None:
    own = step("told", slots={"told": PhaseInfo(), "n": StateValue("n"), "at": PhaseInfo(fact="phase")})
    inner = Phases(id="in", phases=[row("a", step("sets"), compensate=""), row("b", own, compensate="")])
    driver = Driver(saga(row("one"), row("end"), back=[back("unone", inner), back("unend")]))
    driver.succeed("p/one/x")
    driver.fail("p/end/x")

    driver.give(driver.outcome("p/unone/in/a/sets", "left", patch={"n": "=7"}))

    told = {
        "phase": "b",
        "index": 1,
        "step": 1,
        "entry": 1,
        "state": {"n": 7},
        "previous": {"sets": "left"},
        "pending": {},
    }
    assert driver.args("p/unone/in/b/told") == {"told": told, "n": 7, "at": "b"}
    driver.finish()
    assert fates(driver) == {"p/one": "undone"}
    driver.check()


def test_nothing_compensates_a_phase_inside_of_a_compensating_phase() -> None:
    inner = saga(row("one"), row("end"))
    driver = Driver(saga(row("one"), row("end"), back=[back("unone", inner), back("unend")]), on_failure="unwind")
    driver.succeed("p/one/x")
    driver.fail("p/end/x")
    driver.succeed("p/unone/p/one/x")

    driver.fail("p/unone/p/end/x")
    driver.finish()

    assert opened(driver) == [("p/one", "unone")]
    assert fates(driver) == {"p/one": "failed"}
    driver.check()


def test_what_a_compensating_phase_did_is_never_undone() -> None:
    driver = Driver(
        saga(row("one"), row("end"), back=[back("unone", undoable("c"), Group(id="g", blocks=[undoable("d")]))])
    )
    driver.succeed("p/one/x")
    driver.fail("p/end/x")
    driver.finish()

    assert undo_stack(driver.run) == []
    assert undos(driver) == {}


def test_a_compensating_phase_sets_no_variables() -> None:
    driver = Driver(saga(row("one"), row("end")))
    driver.succeed("p/one/x")
    driver.fail("p/end/x")

    driver.give(driver.outcome("p/unone/c", patch={"n": "=1"}))

    assert driver.step("p/unone/c").failure == ev.Failure(
        code="compensation_patch", message="a compensating phase reads the state and sets no variables"
    )
    assert fates(driver) == {"p/one": "failed"}


def test_a_signal_that_a_compensating_phase_waits_for_is_taken() -> None:
    driver = Driver(saga(row("one"), row("end"), back=[back("unone", step("c", signals=("go",)))]), on_failure="unwind")
    driver.succeed("p/one/x")
    driver.fail("p/end/x")
    assert driver.status() == "unwinding"

    driver.signal("go")
    driver.finish()

    assert fates(driver) == {"p/one": "undone"}


# -- failures ----------------------------------------------------------------------------------------------------------


def test_a_compensation_that_fails_is_reported_and_the_rest_goes_on() -> None:
    driver = three()
    to_the_end(driver)
    driver.fail("p/end/x")
    driver.succeed("p/two/x", "p/one/x")

    driver.fail("p/untwo/c", code="full")
    driver.succeed("p/unone/c")

    assert fates(driver) == {"p/one": "undone", "p/two": "failed"}
    failure = undo_of(driver.scope("p/two")).failure
    assert failure is not None
    assert (failure.code, failure.message) == ("full", "p/untwo/c: it broke")
    assert (driver.status(), driver.run.root.unwound) == ("failed", "partly")
    driver.check()


def test_a_compensation_without_a_way_back_says_so() -> None:
    driver = Driver(saga(row("one"), row("end")))
    driver.succeed("p/one/x")
    driver.fail("p/end/x")

    driver.fail("p/unone/c", code="not_compensable")

    assert fates(driver) == {"p/one": "not_compensable"}
    assert driver.run.root.unwound == "partly"


def test_a_cell_of_a_compensating_phase_is_tried_again_by_its_own_policy_and_when_it_is_lost() -> None:
    cell = step("c", retry=RetryPolicy(attempts=2, initial=0.0))
    driver = Driver(saga(row("one"), row("end"), back=[back("unone", cell)]))
    driver.succeed("p/one/x")
    driver.fail("p/end/x")

    driver.fail("p/unone/c")
    driver.lose("p/unone/c")
    driver.succeed("p/unone/c")

    assert fates(driver) == {"p/one": "undone"}
    assert driver.step("p/unone/c").attempt == 3


def test_a_failing_cell_ends_the_others_and_their_attempts_are_waited_for() -> None:
    driver = Driver(saga(row("one"), row("two"), row("end"), back=[back("untwo", step("a"), step("b")), back("unone")]))
    driver.succeed("p/one/x", "p/two/x")
    driver.fail("p/end/x")

    driver.fail("p/untwo/a")

    assert fates(driver)["p/two"] == "running"
    driver.give(driver.outcome("p/untwo/b", status="cancelled"))
    assert fates(driver)["p/two"] == "failed"
    assert driver.waiting() == ["p/unone/c"]
    driver.check()


def test_an_empty_compensating_phase_compensates_at_once() -> None:
    driver = Driver(saga(row("one"), row("end"), back=[Phase(id="unone"), Phase(id="unend")]))
    driver.succeed("p/one/x")

    driver.fail("p/end/x")

    assert fates(driver) == {"p/one": "undone"}
    assert driver.status() == "failed"


# -- operators ---------------------------------------------------------------------------------------------------------


def test_an_operator_retries_a_failed_compensation_while_the_run_unwinds_and_later() -> None:
    driver = three()
    to_the_end(driver)
    driver.fail("p/end/x")
    driver.succeed("p/two/x", "p/one/x")
    driver.fail("p/untwo/c")

    driver.give(inp.UndoStep("retry", "p/two"))
    driver.succeed("p/unone/c")
    driver.fail("p/untwo#2/c")
    assert driver.status() == "failed"
    driver.give(inp.UndoStep("retry"))
    assert driver.status() == "unwinding"
    driver.succeed("p/untwo#3/c")

    assert fates(driver) == {"p/one": "undone", "p/two": "undone"}
    assert (driver.status(), driver.run.root.unwound) == ("failed", "fully")
    driver.check()


@pytest.mark.parametrize(("verb", "status"), [("skip", "skipped"), ("park", "parked")])
def test_an_operator_gives_a_compensation_up_before_it_begins(verb: Any, status: str) -> None:
    driver = three()
    to_the_end(driver)
    driver.fail("p/end/x")

    driver.give(inp.UndoStep(verb, "p/two"))
    driver.finish()

    assert fates(driver) == {"p/one": "undone", "p/two": status}
    assert undo_of(driver.scope("p/two")).reason == "operator"
    driver.check()


@pytest.mark.parametrize(("verb", "status"), [("skip", "skipped"), ("park", "parked")])
def test_a_compensation_that_is_given_up_while_it_runs_ends_first(verb: Any, status: str) -> None:
    driver = three()
    to_the_end(driver)
    driver.fail("p/end/x")
    driver.succeed("p/two/x", "p/one/x")

    driver.give(inp.UndoStep(verb, "p/two"))

    assert driver.interrupted == [driver.step("p/untwo/c").node.number]
    assert driver.waiting() == ["p/untwo/c"]
    driver.check()
    driver.give(driver.outcome("p/untwo/c", status="cancelled"))
    assert fates(driver)["p/two"] == status
    assert driver.waiting() == ["p/unone/c"]


def test_what_is_parked_is_taken_on_by_the_next_undo() -> None:
    driver = three()
    to_the_end(driver)
    driver.fail("p/end/x")
    driver.give(inp.UndoStep("park", "p/two"))
    driver.finish()
    assert [state.node.address for state in undo_stack(driver.run)] == ["p/two"]

    driver.give(inp.Undo())
    driver.finish()

    assert fates(driver) == {"p/one": "undone", "p/two": "undone"}
    assert driver.run.root.unwound == "fully"


def test_an_undo_that_names_no_step_and_no_row_is_refused() -> None:
    driver = three()
    to_the_end(driver)
    driver.fail("p/end/x")

    assert driver.refused(inp.UndoStep("skip", "p/nowhere")).code == "step_not_found"
    assert driver.refused(inp.UndoStep("retry", "p/two")).code == "not_applicable"
    assert "no row of that name" in driver.refused(inp.UndoStep("skip", "p/end")).message


def test_a_run_that_succeeded_is_compensated_on_demand_and_only_what_ended_after_a_step() -> None:
    driver = three()
    to_the_end(driver)
    driver.succeed("p/end/x")
    assert [state.node.address for state in undo_stack(driver.run)] == ["p/two/x", "p/one/x", "p/end", "p/two", "p/one"]

    driver.give(inp.Undo(to="p/two/x"))
    driver.finish()

    assert fates(driver) == {"p/one": "none", "p/two": "undone", "p/end": "undone"}
    assert (driver.status(), driver.run.root.unwound) == ("succeeded", "partly")
    driver.give(inp.Undo())
    driver.finish()
    assert driver.run.root.unwound == "fully"
    driver.check()


def test_a_retry_of_what_was_compensated_is_refused_and_a_rewind_does_it_again() -> None:
    driver = Driver(saga(row("one"), row("end", compensate="")))
    driver.succeed("p/one/x")
    driver.fail("p/end/x")
    driver.finish()

    assert "'p/one'" in driver.refused(inp.Retry("p/end/x")).message
    driver.give(inp.Rewind("p"))

    assert driver.waiting() == ["p#2/one/x"]
    driver.succeed("p#2/one/x")
    driver.fail("p#2/end/x")
    driver.finish()
    assert fates(driver) == {"p/one": "undone", "p#2/one": "undone"}
    driver.check()


def test_a_rewind_compensates_what_stands_first_unless_it_is_to_be_kept() -> None:
    driver = Driver(saga(row("one")))
    driver.succeed("p/one/x")

    driver.give(inp.Rewind("p"))

    assert driver.status() == "unwinding"
    driver.succeed("p/unone/c")
    assert driver.waiting() == ["p#2/one/x"]
    driver.succeed("p#2/one/x")
    driver.give(inp.Rewind("p", keep=True))
    assert driver.waiting() == ["p#3/one/x"]
    driver.check()


# -- cancel, pause -----------------------------------------------------------------------------------------------------


def test_a_cancel_with_unwind_compensates() -> None:
    driver = three()
    to_the_end(driver)

    driver.give(inp.Cancel(hard=True, unwind=True))
    driver.give(driver.outcome("p/end/x", status="cancelled"))
    driver.finish()

    assert fates(driver) == {"p/one": "undone", "p/two": "undone"}
    assert (driver.status(), driver.run.root.unwound) == ("cancelled", "fully")
    driver.check()


def test_a_cancel_parks_what_is_left_and_lets_what_is_executed_come_to_its_end() -> None:
    cells = (step("c"), step("d", after=("c",)))
    driver = Driver(
        saga(row("one"), row("two"), row("end"), back=[back("unone"), back("untwo", *cells)]), on_failure="unwind"
    )
    driver.succeed("p/one/x", "p/two/x")
    driver.fail("p/end/x")

    driver.give(inp.Cancel())

    assert driver.interrupted == []
    driver.succeed("p/untwo/c")
    assert driver.status("p/untwo/d") == "cancelled"
    assert fates(driver) == {"p/one": "parked", "p/two": "parked"}
    assert undo_of(driver.scope("p/two")).reason == "cancel"
    assert (driver.status(), driver.run.root.unwound) == ("failed", "partly")
    driver.check()


def test_a_compensation_whose_last_cell_ends_after_the_cancel_is_done() -> None:
    driver = three(on_failure="unwind")
    to_the_end(driver)
    driver.fail("p/end/x")
    driver.succeed("p/two/x", "p/one/x")

    driver.give(inp.Cancel())
    driver.succeed("p/untwo/c")

    assert fates(driver) == {"p/one": "parked", "p/two": "undone"}
    driver.check()


def test_a_hard_cancel_after_a_soft_one_interrupts() -> None:
    driver = three(on_failure="unwind")
    to_the_end(driver)
    driver.fail("p/end/x")
    driver.succeed("p/two/x", "p/one/x")
    driver.give(inp.Cancel())

    driver.give(inp.Cancel(hard=True))

    assert driver.interrupted == [driver.step("p/untwo/c").node.number]
    driver.give(driver.outcome("p/untwo/c", status="cancelled"))
    assert fates(driver) == {"p/one": "parked", "p/two": "parked"}
    driver.check()


def test_a_cell_whose_task_the_store_takes_back_is_parked_with_its_row() -> None:
    driver = three(on_failure="unwind")
    to_the_end(driver)
    driver.fail("p/end/x")
    driver.succeed("p/two/x", "p/one/x")

    driver.give(inp.Cancel())
    assert driver.revoke
    driver.revoked()

    assert fates(driver) == {"p/one": "parked", "p/two": "parked"}
    assert driver.status() == "failed"
    driver.check()


def test_a_pause_holds_a_compensation() -> None:
    driver = three(on_failure="unwind")
    to_the_end(driver)
    driver.fail("p/end/x")
    driver.succeed("p/two/x", "p/one/x")

    driver.give(inp.Pause())
    assert driver.hold
    driver.give(inp.Resume())
    driver.finish()

    assert driver.run.root.unwound == "fully"
    driver.check()


@pytest.mark.parametrize("events", [1, 2, 3])
def test_a_decision_may_end_anywhere_in_an_unwinding(events: int) -> None:
    driver = three(limits=Limits(dispatched=1, events=events))
    driver.settle()
    to_the_end(driver)

    driver.fail("p/end/x")
    driver.finish()

    assert fates(driver) == {"p/one": "undone", "p/two": "undone"}
    driver.check()
