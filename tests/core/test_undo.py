"""Undo: two halves of a step, unwinding in order, and what operators say about it."""

from __future__ import annotations

from typing import Any

import pytest
from tests.core.kit import PLAIN, Driver, adding, step, undoable

from treadle.core import events as ev
from treadle.core import inputs as inp
from treadle.core.decide import Limits
from treadle.core.plan import Block, Group, RetryPolicy, Undo
from treadle.core.undo import undo_of
from treadle.core.unwinding import undo_stack

PREPARED = Undo(action="undo", prepare="prepare")


def failing(*blocks: Block, **more: Any) -> Driver:
    """A run that unwinds when its last step, `end`, fails; all other steps of it succeed first."""
    names = tuple(block.id for block in blocks)
    return Driver(*blocks, step("end", after_any=names), on_failure="unwind", **more)


def undos(driver: Driver) -> dict[str, str]:
    return {s.node.address: s.undo.status for s in driver.run.steps() if s.undo is not None}


def unwind_all(driver: Driver) -> list[str]:
    """Succeed at every undo, oldest task first; returns the order in which they were dispatched."""
    driver.finish()
    return [event.at for event in driver.seen(ev.UndoDispatched)]


# -- two halves --------------------------------------------------------------------------------------------------------


def test_a_step_acts_only_when_its_undo_state_is_committed() -> None:
    driver = Driver(undoable("a", undo=PREPARED))
    task = driver.task("a")
    assert (task.call.purpose, task.action, task.attempt) == ("prepare", "prepare", -1)

    driver.succeed("a", result={"backup": 1})

    assert driver.kinds() == ["run_started", "prepare_dispatched", "step_prepared", "step_dispatched"]
    task = driver.task("a")
    assert (task.call.purpose, task.action, task.attempt) == ("step", "act", 1)
    driver.succeed("a")
    assert driver.status() == "succeeded"
    driver.check()


def test_later_attempts_have_the_undo_state_of_the_first() -> None:
    driver = Driver(undoable("a", undo=PREPARED, retry=RetryPolicy(attempts=3, initial=0.0)))
    driver.succeed("a", result="kept")

    driver.fail("a")
    driver.lose("a")

    assert driver.task("a").call.purpose == "step"
    assert len(driver.seen(ev.PrepareDispatched)) == 1
    assert undo_of(driver.step("a")).state == '="kept"'


def test_a_prepare_is_tried_again_by_the_policy_of_its_step_and_fails_it_unprepared() -> None:
    driver = failing(undoable("a", undo=PREPARED, retry=RetryPolicy(attempts=2, initial=5.0)))

    driver.fail("a")
    assert driver.task("a").not_before == driver.now + 5.0
    driver.lose("a")
    driver.fail("a", code="full")

    assert driver.status("a") == "failed"
    assert undo_stack(driver.run) == []
    driver.check()


def test_a_step_that_prepared_and_did_not_succeed_is_undone_too() -> None:
    driver = Driver(undoable("a", undo=PREPARED), on_failure="unwind")
    driver.succeed("a", result="backup")
    driver.fail("a")

    assert driver.status() == "unwinding"
    task = driver.task("a")
    assert (task.call.purpose, task.action) == ("undo", "undo")
    assert driver.args("a") == {"state": "backup", "result": None}
    driver.succeed("a")
    assert driver.seen(ev.RunSettled) == [ev.RunSettled(outcome="failed", failures=["a"], unwound="fully")]


def test_a_soft_cancel_lets_a_prepare_end_and_then_nothing_follows() -> None:
    driver = Driver(undoable("a", undo=PREPARED))
    driver.give(inp.Cancel(unwind=True))

    driver.succeed("a", result="backup")

    assert driver.status("a") == "cancelled"
    assert driver.task("a").call.purpose == "undo"
    driver.finish()
    assert driver.status() == "cancelled"
    assert undos(driver) == {"a": "undone"}


def test_the_undo_gets_the_arguments_and_the_result_of_its_step() -> None:
    driver = failing(step("a"), undoable("b", "a"))
    driver.succeed("a", result=1)
    driver.succeed("b", result=2)

    driver.fail("end")

    assert driver.args("b") == {"p0": 1, "state": None, "result": 2}


# -- order -------------------------------------------------------------------------------------------------------------


def test_a_chain_is_undone_from_its_end() -> None:
    driver = failing(undoable("a"), undoable("b", "a"), undoable("c", "b"))
    driver.succeed("a", "b", "c")

    driver.fail("end")

    assert driver.waiting() == ["c"]
    assert [s.node.address for s in undo_stack(driver.run)] == []
    assert unwind_all(driver) == ["c", "b", "a"]
    driver.check()


def test_steps_that_overlapped_are_undone_together() -> None:
    driver = failing(undoable("a"), undoable("b"), undoable("c", "a", "b"))
    driver.succeed("b", "a", "c")

    driver.fail("end")

    assert driver.waiting() == ["c"]
    driver.succeed("c")
    assert driver.waiting() == ["a", "b"]


def test_with_a_limit_of_one_the_order_is_the_reverse_of_completion() -> None:
    driver = failing(*(undoable(name) for name in "abcd"), undo_limit=1)
    driver.succeed("c", "a", "d", "b")

    driver.fail("end")

    assert unwind_all(driver) == ["b", "d", "a", "c"]


def test_undos_of_one_resource_are_made_one_at_a_time() -> None:
    disk = Undo(action="undo", resource="disk")
    driver = failing(undoable("a", undo=disk), undoable("b", undo=disk), undoable("c", undo=disk), undoable("d"))
    driver.succeed("a", "b", "c", "d")

    driver.fail("end")

    assert driver.waiting() == ["c", "d"]
    driver.succeed("c")
    assert driver.waiting() == ["b", "d"]
    driver.succeed("d")
    driver.fail("b")
    assert driver.waiting() == ["a"]


def test_a_resource_never_has_two_undos_however_the_limit_interrupts_their_order() -> None:
    disk = Undo(action="undo", resource="disk")
    driver = failing(undoable("b"), *(undoable(name, undo=disk) for name in "xacd"), undo_limit=2)
    driver.succeed("b", "x", "a", "c", "d")
    driver.fail("end")

    for waiting, ends in ((["b", "d"], "d"), (["b", "c"], "c"), (["a", "b"], "b"), (["a"], "a"), (["x"], "x")):
        assert driver.waiting() == waiting
        driver.succeed(ends)

    assert driver.run.root.unwound == "fully"
    driver.check()


def test_a_resource_goes_on_behind_an_undo_that_was_skipped_while_it_waited() -> None:
    disk = Undo(action="undo", resource="disk")
    driver = failing(*(undoable(name, undo=disk) for name in "abc"))
    driver.succeed("a", "b", "c")
    driver.fail("end")

    driver.give(inp.UndoStep("skip", "b"))
    driver.succeed("c")

    assert driver.waiting() == ["a"]


def test_the_run_has_no_more_undos_in_the_store_than_tasks() -> None:
    driver = failing(*(undoable(f"s{n}") for n in range(5)), limits=Limits(dispatched=2, events=3))
    while (step := driver.run.step_at("end")) is not None and step.status == "waiting":
        driver.succeed(driver.tasks[min(driver.tasks)].address)
    driver.fail("end")

    while driver.tasks:
        assert len(driver.tasks) <= 2
        driver.succeed(driver.tasks[min(driver.tasks)].address)

    assert set(undos(driver).values()) == {"undone"}
    driver.check()


def test_what_a_step_added_is_undone_with_the_rest() -> None:
    driver = Driver(undoable("a"), Group(id="g", blocks=[undoable("x", after=("a",))]), on_failure="unwind")
    driver.succeed("a", added=adding(undoable("y"), step("z", after=("y",))))
    driver.succeed("g/x", "a/y")

    driver.fail("a/z")

    assert driver.waiting() == ["a/y", "g/x"]
    assert unwind_all(driver) == ["a/y", "g/x", "a"]


# -- ends of an undo -----------------------------------------------------------------------------------------------


def one_undo(undo: Undo = PLAIN, **more: Any) -> Driver:
    """A failed run that is undoing its step `a`."""
    driver = failing(undoable("a", undo=undo, **more))
    driver.succeed("a")
    if undo.prepare:
        driver.succeed("a")
    driver.fail("end")
    return driver


def settled_as(driver: Driver) -> str:
    assert driver.status() == "failed"
    driver.check()
    return driver.run.root.unwound


def test_an_undo_that_fails_follows_the_policy_is_reported_and_holds_back_nothing() -> None:
    driver = failing(undoable("a"), undoable("b", "a", retry=RetryPolicy(attempts=2, initial=3.0)))
    driver.succeed("a", "b")
    driver.fail("end")

    driver.fail("b")
    assert driver.task("b").not_before == driver.now + 3.0
    driver.fail("b", code="locked")

    assert driver.waiting() == ["a"]
    driver.succeed("a")
    assert undos(driver) == {"a": "undone", "b": "failed"}
    assert settled_as(driver) == "partly"


def test_steering_exceptions_of_an_undo_count_like_those_of_a_step() -> None:
    driver = one_undo()
    driver.fail("a", verdict="retry", delay=7.0)
    assert driver.task("a").not_before == driver.now + 7.0

    driver.fail("a", verdict="final")

    assert undos(driver) == {"a": "failed"}


def test_what_cannot_be_compensated_is_known_and_not_tried_again() -> None:
    driver = one_undo(retry=RetryPolicy(attempts=0))

    driver.fail("a", code="not_compensable")

    assert undos(driver) == {"a": "not_compensable"}
    assert settled_as(driver) == "partly"


def test_an_undo_whose_worker_dies_is_made_again_at_once_so_many_times() -> None:
    driver = one_undo(lost_limit=2)

    driver.lose("a")
    assert driver.waiting() == ["a"]
    driver.lose("a")

    assert undo_of(driver.step("a")).failure == ev.Failure(
        code="lost", message="2 attempts were lost: each time the process that ran the undo died"
    )
    assert settled_as(driver) == "partly"


@pytest.mark.parametrize(("answer", "status"), [(True, "undone"), (False, "skipped"), ("yes", "failed")])
def test_reconcile_is_asked_first_and_may_refuse(answer: object, status: str) -> None:
    driver = one_undo(Undo(action="undo", prepare="prepare", reconcile="check"))
    task = driver.task("a")
    assert (task.call.purpose, task.action, driver.args("a")["state"]) == ("reconcile", "check", None)

    driver.succeed("a", result=answer)

    if status == "undone":
        # What an attempt to undo has changed would look like drift: it is not asked again.
        driver.lose("a")
        assert driver.task("a").call.purpose == "undo"
        driver.succeed("a")
    assert undos(driver) == {"a": status}
    if status == "skipped":
        assert undo_of(driver.step("a")).reason == "drift"


def test_a_late_or_repeated_report_of_an_undo_changes_nothing() -> None:
    driver = one_undo(retry=RetryPolicy(attempts=3, initial=0.0))
    first = driver.outcome("a")
    driver.fail("a")

    driver.give(first)
    assert undos(driver) == {"a": "running"}
    again = driver.outcome("a")
    driver.give(again)
    assert not driver.give(again).events
