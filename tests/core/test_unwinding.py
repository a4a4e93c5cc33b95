"""Unwinding: when a run is unwound, what operators say, retry and rewind, and scopes below the root."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.core.kit import Driver, adding, step, undoable
from tests.core.test_undo import PREPARED, failing, one_undo, settled_as, undos, unwind_all

from treadle.core import events as ev
from treadle.core import inputs as inp
from treadle.core.commands import Task
from treadle.core.decide import Decision, Limits
from treadle.core.plan import Block, Group, RetryPolicy, Undo
from treadle.core.state import ScopeState
from treadle.core.tables import UNDO
from treadle.core.undo import undo_of
from treadle.core.unwinding import begin_unwinding, undo_stack

# -- when a run unwinds --------------------------------------------------------------------------------------------


def test_a_failed_run_stops_where_unwinding_is_not_asked_for() -> None:
    driver = Driver(undoable("a"), step("end", after=("a",)))
    driver.succeed("a")

    driver.fail("end")

    assert driver.status() == "failed"
    assert undos(driver) == {"a": "none"}


def test_a_failed_run_that_has_done_nothing_settles_at_once() -> None:
    driver = failing(undoable("a", when=None, undo=PREPARED))
    driver.fail("a")

    driver.fail("end")

    assert driver.kinds()[-1] == "run_settled"
    assert driver.run.root.unwound == ""


def test_a_cancel_stops_and_unwinds_only_if_asked() -> None:
    for unwind in (False, True):
        driver = Driver(undoable("a"), step("end", after=("a",)))
        driver.succeed("a")
        driver.give(inp.Cancel())
        driver.give(inp.Cancel(unwind=unwind))
        driver.succeed("end")

        assert driver.status() == ("unwinding" if unwind else "cancelled")
        driver.finish()
        assert driver.run.root.unwound == ("fully" if unwind else "")
        driver.check()


def test_what_a_hard_cancel_left_running_is_waited_for() -> None:
    driver = Driver(undoable("a"), undoable("b"))
    driver.succeed("a")
    driver.give(inp.Cancel(hard=True, unwind=True))
    assert driver.status() == "unwinding"
    assert driver.seen(ev.UndoDispatched) == []

    driver.give(driver.outcome("b", status="cancelled"))

    # It ended after `a` and overlapped it.
    assert driver.waiting() == ["a", "b"]
    assert unwind_all(driver) == ["b", "a"]
    assert driver.status() == "cancelled"
    driver.check()


def test_undos_wait_while_the_run_is_paused() -> None:
    driver = one_undo()

    driver.give(inp.Pause())
    assert driver.hold
    driver.give(inp.Resume())

    assert not driver.hold
    assert driver.refused(inp.Signal("go")).code == "run_not_active"
    driver.finish()
    assert settled_as(driver) == "fully"


# -- operators -----------------------------------------------------------------------------------------------------


def finished(**more: Any) -> Driver:
    driver = Driver(undoable("a"), undoable("b", "a"), undoable("c", "b"), **more)
    driver.succeed("a", "b", "c")
    return driver


def test_a_run_that_succeeded_is_undone_and_keeps_its_outcome_and_result() -> None:
    driver = finished()
    assert [s.node.address for s in undo_stack(driver.run)] == ["c", "b", "a"]

    driver.give(inp.Undo())

    assert unwind_all(driver) == ["c", "b", "a"]
    assert (driver.status(), driver.run.root.unwound) == ("succeeded", "fully")
    assert not driver.give(inp.Undo()).events
    driver.check()


def test_with_to_only_what_ended_after_that_step_is_undone() -> None:
    driver = finished()
    assert [s.node.address for s in undo_stack(driver.run, "a")] == ["c", "b"]

    driver.give(inp.Undo("a"))
    assert unwind_all(driver) == ["c", "b"]
    assert driver.run.root.unwound == "partly"

    driver.give(inp.Undo())
    driver.finish()
    assert driver.run.root.unwound == "fully"
    assert driver.refused(inp.Undo("nobody")).code == "step_not_found"


def test_a_run_that_goes_on_is_not_undone() -> None:
    driver = Driver(undoable("a"))

    assert driver.refused(inp.Undo()).code == "run_not_settled"
    assert driver.refused(inp.UndoStep("skip", "a")).code == "run_not_settled"


def test_a_cancel_of_an_unwinding_run_parks_what_is_left() -> None:
    driver = finished()
    driver.give(inp.Undo())

    driver.give(inp.Cancel())
    driver.fail("c")

    assert undos(driver) == {"a": "parked", "b": "parked", "c": "failed"}
    assert (driver.status(), driver.run.root.unwound) == ("succeeded", "partly")
    driver.give(inp.Undo())
    driver.finish()
    assert undos(driver) == {"a": "undone", "b": "undone", "c": "failed"}
    driver.check()


def test_a_hard_cancel_interrupts_the_undo_and_the_store_takes_back_what_waits() -> None:
    for hard in (True, False):
        driver = one_undo(retry=RetryPolicy(attempts=0, initial=60.0))
        driver.fail("a")

        driver.give(inp.Cancel(hard=hard))
        assert driver.revoke
        if hard:
            assert driver.interrupted
            driver.give(driver.outcome("a", status="cancelled"))
        else:
            driver.revoked()

        assert undos(driver) == {"a": "parked"}
        assert settled_as(driver) == "partly"


def test_an_undo_under_way_that_fails_after_a_cancel_is_parked() -> None:
    for end in ("fail", "lose"):
        driver = one_undo(retry=RetryPolicy(attempts=0))
        driver.give(inp.Cancel())

        getattr(driver, end)("a")

        assert undos(driver) == {"a": "parked"}
        assert settled_as(driver) == "partly"


def test_a_safe_undo_is_parked_if_a_cancel_came_while_it_was_asked() -> None:
    driver = one_undo(Undo(action="undo", reconcile="check"))
    driver.give(inp.Cancel())

    driver.succeed("a", result=True)

    assert undos(driver) == {"a": "parked"}


@pytest.mark.parametrize("verb", ["skip", "park"])
def test_an_operator_puts_off_an_undo_that_does_not_end(verb: Any) -> None:
    driver = failing(undoable("a"), undoable("b", "a", retry=RetryPolicy(attempts=0, initial=60.0)))
    driver.succeed("a", "b")
    driver.fail("end")
    driver.fail("b")
    late = driver.outcome("b")

    decision = driver.give(inp.UndoStep(verb, "b"))

    assert (decision.ended, decision.interrupts) == ((2,), (2,))
    assert driver.waiting() == ["a"]
    driver.give(late)
    driver.finish()
    assert undos(driver) == {"a": "undone", "b": {"skip": "skipped", "park": "parked"}[verb]}
    assert settled_as(driver) == "partly"


def test_an_operator_retries_an_undo_while_the_run_unwinds_and_after() -> None:
    driver = failing(undoable("a"), undoable("b", "a"))
    driver.succeed("a", "b")
    driver.fail("end")
    driver.fail("b")
    driver.give(inp.UndoStep("retry", "b"))
    assert driver.waiting() == ["a", "b"]
    driver.fail("b")
    driver.succeed("a")
    assert driver.run.root.unwound == "partly"

    driver.give(inp.UndoStep("retry"))
    driver.succeed("b")

    assert settled_as(driver) == "fully"
    assert driver.refused(inp.UndoStep("retry")).code == "not_applicable"
    assert driver.refused(inp.UndoStep("retry", "a")).code == "not_applicable"
    assert driver.refused(inp.UndoStep("skip")).code == "usage"
    assert driver.refused(inp.UndoStep("skip", "nobody")).code == "step_not_found"
    assert driver.refused(inp.UndoStep("park", "end")).code == "not_applicable"


def test_a_failed_undo_of_a_settled_run_is_put_off_in_place() -> None:
    driver = one_undo()
    driver.fail("a")

    driver.give(inp.UndoStep("park", "a"))

    assert undos(driver) == {"a": "parked"}
    driver.give(inp.UndoStep("skip", "a"))
    assert undos(driver) == {"a": "skipped"}


# -- retry and rewind ----------------------------------------------------------------------------------------------


def test_what_was_undone_is_rewound_and_not_retried() -> None:
    driver = failing(undoable("a"), undoable("b", "a"))
    driver.succeed("a", "b")
    driver.fail("end")
    driver.finish()

    refusal = driver.refused(inp.Retry())
    assert "'b' did has been undone" in refusal.message
    driver.give(inp.Rewind("a"))

    driver.finish()
    assert (driver.status(), driver.run.root.unwound) == ("succeeded", "")
    assert undos(driver) == {"a": "none", "b": "none"}
    driver.check()


def test_a_retry_keeps_the_undo_state() -> None:
    driver = Driver(undoable("a", undo=PREPARED))
    driver.succeed("a", result="first")
    driver.fail("a")

    driver.give(inp.Retry())

    assert driver.task("a").call.purpose == "step"
    assert undo_of(driver.step("a")).state == '="first"'


def test_a_rewind_first_undoes_what_it_reopens() -> None:
    driver = finished()

    driver.give(inp.Rewind("b"))
    assert driver.status() == "unwinding"
    driver.succeed("c")
    decision = driver.give(driver.outcome("b"))

    assert sorted(decision.unsettled) == [2, 3]
    assert driver.waiting() == ["b"]
    assert driver.task("b").generation == 2
    assert undos(driver) == {"a": "none", "b": "none"}
    driver.finish()
    driver.check()


def test_a_rewind_stays_undone_if_an_undo_fails() -> None:
    driver = finished()
    driver.give(inp.Rewind("b"))

    driver.succeed("c")
    driver.fail("b")

    assert (driver.status(), driver.run.root.unwound) == ("succeeded", "partly")
    assert driver.status("b") == "succeeded"


def test_a_rewind_keeps_the_effects_if_told_to() -> None:
    driver = finished()

    driver.give(inp.Rewind("b", keep=True))

    assert driver.waiting() == ["b"]
    assert driver.seen(ev.UnwindingStarted) == []


def test_a_rewind_in_a_run_that_goes_on_must_keep_the_effects() -> None:
    driver = Driver(undoable("a"), step("b"))
    driver.succeed("a")

    assert driver.refused(inp.Rewind("a")).code == "run_not_settled"
    driver.give(inp.Rewind("a", keep=True))
    assert driver.waiting() == ["a", "b"]


def test_an_unwinding_run_is_not_reopened() -> None:
    driver = one_undo()

    assert driver.refused(inp.Retry()).code == "run_not_running"
    assert driver.refused(inp.Rewind("a")).code == "run_not_running"


# -- scopes --------------------------------------------------------------------------------------------------------


def test_a_scope_below_the_root_is_unwound_by_itself() -> None:
    """What blocks that retry or abandon an entry do: the run goes on meanwhile, and the scope hears of the end."""
    driver = Driver(Group(id="g", blocks=[undoable("x"), undoable("y"), step("z", "x", "y")]), undoable("a"), step("b"))
    driver.succeed("g/x", "a")
    scope = driver.run.at("g")
    assert isinstance(scope, ScopeState)

    decision = Decision()
    assert begin_unwinding(driver.run, decision, scope, reason="retry")
    driver.commit(decision)
    driver.give(inp.Look())

    assert driver.status() == "running"
    # The other attempt below is interrupted and waited for.
    assert [task.call.purpose for task in driver.tasks.values() if task.address.startswith("g")] == ["step"]
    assert driver.status("g/z") == "cancelled"
    driver.give(driver.outcome("g/y", status="cancelled"))
    assert driver.waiting() == ["b", "g/x", "g/y"]
    driver.succeed("g/x", "g/y")
    assert (scope.unwinding, scope.unwound) == (None, "fully")
    assert undos(driver) == {"g/x": "undone", "g/y": "undone", "a": "none"}
    driver.succeed("b")
    assert driver.status("g") == "cancelled"
    driver.check()


def test_what_the_steps_of_a_scope_added_is_unwound_with_it_however_small_the_decisions() -> None:
    inner: list[Block] = [undoable("x"), *(step(f"n{n}", signals=("never",)) for n in range(5))]
    driver = Driver(Group(id="g", blocks=inner), step("b"), limits=Limits(events=1))
    driver.settle()
    driver.succeed("g/x", added=adding(undoable("y")))
    driver.succeed("g/x/y")
    scope = driver.run.at("g")
    assert isinstance(scope, ScopeState)

    decision = Decision()
    assert begin_unwinding(driver.run, decision, scope)
    driver.commit(decision)
    driver.give(inp.Look())

    assert driver.waiting() == ["b", "g/x/y"]
    driver.succeed("g/x/y")
    driver.succeed("g/x")
    assert scope.unwound == "fully"
    driver.check()


def test_a_scope_that_has_done_nothing_has_nothing_to_unwind() -> None:
    driver = Driver(Group(id="g", blocks=[step("x")]))
    scope = driver.run.at("g")
    assert isinstance(scope, ScopeState)

    assert not begin_unwinding(driver.run, Decision(), scope)


def test_a_cancel_parks_the_unwinding_of_a_scope_and_the_run_takes_it_on() -> None:
    inner: list[Block] = [undoable("x"), undoable("y", "x"), step("z", signals=("never",))]
    driver = Driver(Group(id="g", blocks=inner), step("b"))
    driver.succeed("g/x", "g/y")
    scope = driver.run.at("g")
    assert isinstance(scope, ScopeState)
    decision = Decision()
    begin_unwinding(driver.run, decision, scope)
    driver.commit(decision)
    driver.give(inp.Look())

    driver.give(inp.Cancel(unwind=True))
    driver.succeed("g/y")
    assert driver.interrupted == []
    assert undos(driver) == {"g/x": "parked", "g/y": "undone"}
    assert scope.unwound == "partly"

    driver.succeed("b")
    assert driver.waiting() == ["g/x"]
    driver.finish()
    assert (driver.status(), driver.run.root.unwound) == ("cancelled", "fully")
    driver.check()


# -- order -------------------------------------------------------------------------------------------------------------


@given(st.data(), st.integers(1, 12), st.sampled_from([0, 1, 2, 3]), st.sampled_from([1, 3, 10**6]))
def test_undos_never_overtake_and_one_at_a_time_is_the_reverse_of_completion(
    data: st.DataObject, size: int, limit: int, events: int
) -> None:
    names = [f"s{number}" for number in range(size)]
    blocks: list[Block] = []
    for number, name in enumerate(names):
        before = data.draw(st.lists(st.sampled_from(names[:number]), max_size=2)) if number else []
        how = data.draw(st.sampled_from([Undo("u"), Undo("u", prepare="p"), Undo("u", resource="r")]))
        blocks.append(step(name, after=tuple(before), undo=how))
    driver = Driver(*blocks, undo_limit=limit, limits=Limits(events=events))
    driver.settle()
    began: dict[str, int] = {}
    ended: dict[str, int] = {}
    clock = itertools.count()
    while driver.tasks:
        for at in driver.waiting():
            began.setdefault(at, next(clock))
        at = data.draw(st.sampled_from(driver.waiting()))
        driver.succeed(at)
        if driver.status(at) == "succeeded":
            ended[at] = next(clock)

    driver.give(inp.Undo())
    undone: list[str] = []
    while driver.tasks:
        left = [at for at in names if at not in undone]
        for at in driver.waiting():
            assert all(began[other] < ended[at] for other in left if other != at)
        assert not limit or len(driver.tasks) <= limit
        at = data.draw(st.sampled_from(driver.waiting()))
        driver.succeed(at)
        undone.append(at)

    assert sorted(undone) == sorted(names)
    if limit == 1:
        assert undone == sorted(names, key=lambda at: -ended[at])
    assert driver.run.root.unwound == "fully"
    driver.check()


def test_no_word_of_an_operator_is_missing_in_the_table() -> None:
    final = {"undone", "failed", "not_compensable", "skipped", "parked"}
    assert {status for status, kind in UNDO if kind == "undo_reopened"} == final - {"undone"}


def test_a_purpose_of_each_task_tells_what_the_worker_is_asked() -> None:
    seen: list[str] = []

    def answer(task: Task) -> inp.Outcome:
        seen.append(task.call.purpose)
        if task.address == "end" and task.call.purpose == "step":
            return driver.failed(task)
        return driver.outcome(task, task.call.purpose == "reconcile")

    driver = failing(undoable("a", undo=Undo(action="u", prepare="p", reconcile="r")))
    driver.finish(answer)

    assert seen == ["prepare", "step", "step", "reconcile", "undo"]
