"""Steps that call a workflow: what the parent and its child tell each other, and what operators do to both."""

from __future__ import annotations

from typing import Any

import pytest
from tests.core.kit import Driver, adding, handle, step

from treadle.core import events as ev
from treadle.core import inputs as inp
from treadle.core.addresses import MAX_ID_BYTES
from treadle.core.children import child_id, child_key
from treadle.core.commands import ChildRun, Task
from treadle.core.decide import Limits
from treadle.core.events import Failure
from treadle.core.plan import Child, Const, ListOf, MapOf, Phase, Phases, Ref, RetryPolicy, Step

KEY = "018bcfe5-0001-7000-8000-000000000001"


def call(id: str, *refs: str, detached: bool = False, **more: Any) -> Step:
    return step(id, *refs, action="flow", child=Child(detached), **more)


def parent_of(*blocks: Any, **more: Any) -> Driver:
    return Driver(*blocks, key=KEY, **more)


def started(driver: Driver, at: str = "a", task: Task | None = None) -> inp.ChildStarted:
    """What the store puts into the inbox when the task at `at` makes its child: the task is over."""
    task = task or driver.task(at)
    made = task.call.child
    assert made is not None
    driver.tasks.pop(task.number, None)
    return inp.ChildStarted(at=task.address, child=made.key, id=f"r/{at}", detached=made.detached, session="s", lease=7)


def start_child(driver: Driver, at: str = "a") -> str:
    value = started(driver, at)
    driver.give(value, cause=f"started-{at}")
    return value.child


def ended(child: str, outcome: str = "succeeded", result: Any = 1, at: str = "a") -> inp.ChildEnded:
    failure = None if outcome == "succeeded" else Failure(f"child_{outcome}", "it did not work")
    shown = "" if result is None else handle(result)
    return inp.ChildEnded(at=at, child=child, outcome=outcome, result="" if failure else shown, failure=failure)


# -- the parent --------------------------------------------------------------------------------------------------------


def test_the_task_of_a_call_names_the_run_to_make() -> None:
    driver = parent_of(call("a"), call("b", detached=True))

    assert driver.task("a").call.child == ChildRun(child_key(KEY, "a", 1), depth=1)
    assert driver.task("b").call.child == ChildRun(child_key(KEY, "b", 1), depth=1, detached=True)
    assert driver.task("a").action == "flow"


def test_a_step_waits_for_its_child_without_a_task_and_takes_its_result() -> None:
    driver = parent_of(call("a"), step("b", "a"))

    child = start_child(driver)

    assert driver.status("a") == "dispatched"
    assert driver.tasks == {}
    assert driver.run.calls == {1: child}
    driver.check()
    driver.give(ended(child, result="hello"), cause="ended")
    assert driver.status("a") == "succeeded"
    assert driver.args("b") == {"p0": "hello"}
    assert driver.run.calls == {}
    assert [event.cause for event in driver.seen(ev.ChildStarted)] == ["started-a"]
    assert [event.cause for event in driver.seen(ev.StepSucceeded)] == ["ended"]
    driver.check()


def test_inputs_that_come_twice_change_nothing() -> None:
    driver = parent_of(call("a"))
    first = started(driver)
    driver.give(first)
    driver.give(first)
    assert driver.posts == []
    driver.give(ended(first.child))
    driver.give(ended(first.child))
    driver.give(first)

    assert driver.kinds().count("step_succeeded") == 1
    assert driver.status() == "succeeded"
    assert driver.posts == []
    driver.check()


def test_a_child_that_fails_fails_the_step_for_good() -> None:
    driver = parent_of(call("a"), step("b", "a"))

    driver.give(ended(start_child(driver), "failed"))

    assert driver.statuses() == {"a": "failed", "b": "skipped"}
    assert driver.step("a").failure == Failure("child_failed", "it did not work")
    assert driver.status() == "failed"
    driver.check()


def test_a_child_that_an_operator_cancelled_fails_the_step() -> None:
    driver = parent_of(call("a"))

    driver.give(ended(start_child(driver), "cancelled"))

    assert driver.status("a") == "failed"
    assert driver.step("a").failure == Failure("child_cancelled", "it did not work")


def test_a_result_that_cannot_travel_is_fetched_by_another_attempt() -> None:
    driver = parent_of(call("a"), step("b", "a"))

    driver.give(ended(start_child(driver), result=None))

    task = driver.task("a")
    assert (task.attempt, driver.run.calls) == (2, {})
    driver.check()
    driver.succeed("a", result="@digest")
    assert driver.step("b").tasked
    driver.check()


def test_a_child_that_ends_before_its_start_is_told_is_believed() -> None:
    driver = parent_of(call("a"))
    late = started(driver)

    driver.tasks[1] = driver.last.tasks[0]
    driver.give(ended(late.child))
    driver.give(late)

    assert driver.status() == "succeeded"
    assert driver.tasks == {}
    assert driver.posts == []
    driver.check()


def test_the_end_of_a_child_that_comes_before_its_start_after_a_hard_cancel_leaves_the_attempt_as_it_is() -> None:
    driver = parent_of(call("a"), on_failure="unwind")
    task = driver.task("a")
    driver.give(inp.Cancel(hard=True, unwind=True))
    late = started(driver, task=task)
    driver.tasks[task.number] = task

    driver.give(ended(late.child, "cancelled"))

    # The attempt lives: its task is still counted, and the unwinding waits for it.
    assert driver.run.tasks == len(driver.tasks) == 1
    driver.tasks.pop(task.number)
    driver.give(late)
    driver.finish(lambda task: driver.outcome(task, True))
    assert driver.status() == "cancelled"
    driver.check()


def test_a_detached_call_succeeds_with_the_id_of_its_child() -> None:
    driver = parent_of(call("a", detached=True), step("b", "a"))

    child = start_child(driver)

    assert driver.status("a") == "succeeded"
    assert driver.args("b") == {"p0": "r/a"}
    driver.give(ended(child, "failed"))
    driver.give(inp.Cancel())
    assert driver.posts == []
    driver.check()


def test_a_call_that_is_lost_makes_the_same_child_again() -> None:
    driver = parent_of(call("a"))
    first = driver.task("a").call.child

    driver.lose("a")

    assert driver.task("a").call.child == first


@pytest.mark.parametrize("hard", [False, True])
def test_a_cancel_reaches_the_child(hard: bool) -> None:
    driver = parent_of(call("a"), step("b", "a"))
    child = start_child(driver)

    driver.give(inp.Cancel(hard=hard))

    assert driver.posts == [(child, inp.Cancel(hard=hard))]
    assert driver.status("a") == ("cancelled" if hard else "dispatched")
    driver.give(ended(child, "cancelled"))
    assert driver.statuses() == {"a": "cancelled", "b": "cancelled"}
    assert driver.status() == "cancelled"
    assert driver.run.calls == {}
    driver.check()


def test_a_harder_cancel_reaches_the_child_too() -> None:
    driver = parent_of(call("a"))
    child = start_child(driver)

    driver.give(inp.Cancel())
    driver.give(inp.Cancel(hard=True))

    assert driver.posts == [(child, inp.Cancel()), (child, inp.Cancel(hard=True))]
    assert driver.status() == "cancelled"


def test_a_child_that_succeeds_under_a_soft_cancel_has_succeeded() -> None:
    driver = parent_of(call("a"), step("b", "a"))
    child = start_child(driver)
    driver.give(inp.Cancel())

    driver.give(ended(child))

    assert driver.statuses() == {"a": "succeeded", "b": "cancelled"}
    assert driver.status() == "cancelled"


def test_nothing_is_fetched_for_a_run_that_is_being_cancelled() -> None:
    driver = parent_of(call("a"))
    child = start_child(driver)
    driver.give(inp.Cancel())

    driver.give(ended(child, result=None))

    assert driver.status("a") == "cancelled"
    assert driver.status() == "cancelled"


@pytest.mark.parametrize("hard", [False, True])
def test_a_child_made_while_its_parent_is_cancelled_is_cancelled(hard: bool) -> None:
    driver = parent_of(call("a"))
    late = started(driver)
    driver.tasks[1] = driver.last.tasks[0]
    driver.give(inp.Cancel(hard=hard))
    driver.tasks.pop(1)

    driver.give(late)

    assert driver.posts == [(late.child, inp.Cancel(hard=hard))]
    if not hard:
        driver.give(ended(late.child, "cancelled"))
    assert driver.status() == "cancelled"
    assert driver.run.tasks == 0
    driver.check()


def test_a_pause_and_a_resume_reach_the_child() -> None:
    driver = parent_of(call("a"))
    child = start_child(driver)

    driver.give(inp.Pause())
    driver.give(inp.Resume())

    assert driver.posts == [(child, inp.Pause()), (child, inp.Resume())]


def test_a_child_made_while_its_parent_is_paused_is_paused() -> None:
    driver = parent_of(call("a"))
    late = started(driver)
    driver.tasks[1] = driver.last.tasks[0]
    driver.give(inp.Pause())
    driver.tasks.pop(1)

    driver.give(late)

    assert driver.posts == [(late.child, inp.Pause())]


def test_a_retry_calls_the_same_child_and_a_rewind_another_one() -> None:
    driver = parent_of(call("a"))
    child = start_child(driver)
    driver.give(ended(child, "failed"))

    driver.give(inp.Retry("a"))
    again = driver.task("a").call.child
    assert again is not None
    assert again.key == child
    start_child(driver)
    driver.give(ended(child))
    assert driver.status() == "succeeded"
    driver.give(inp.Rewind("a"))
    other = driver.task("a").call.child

    assert other == ChildRun(child_key(KEY, "a", 2), depth=1)
    driver.give(ended(child, "failed"))
    assert driver.status("a") == "dispatched"
    driver.check()


def test_a_step_whose_child_runs_is_not_reopened() -> None:
    driver = parent_of(step("z"), call("a", "z"))
    driver.succeed("z")
    child = start_child(driver)
    assert driver.refused(inp.Rewind("z")).code == "step_busy"
    driver.give(inp.Cancel(hard=True))

    assert driver.refused(inp.Retry("a")).code == "step_busy"
    driver.give(ended(child, "cancelled"))
    driver.give(inp.Retry("a"))

    assert driver.task("a").attempt == 2
    driver.check()


def test_a_breakpoint_after_a_call_holds() -> None:
    driver = parent_of(call("a", break_after=("look",)), step("b", "a"), breakpoints=["look"])

    driver.give(ended(start_child(driver)))

    assert driver.statuses() == {"a": "succeeded", "b": "waiting"}
    assert driver.seen(ev.BreakpointReached)[0].position == "after"


def test_a_run_that_calls_itself_without_end_fails_at_the_limit() -> None:
    deep = parent_of(call("a"), started=ev.RunStarted(depth=3), limits=Limits(depth=3))
    less = parent_of(call("a"), started=ev.RunStarted(depth=2), limits=Limits(depth=3))

    failure = deep.step("a").failure
    assert failure is not None
    assert failure.code == "call_depth"
    assert "3 calls deep" in failure.message
    made = less.task("a").call.child
    assert made is not None
    assert made.depth == 3


def test_a_call_may_be_added_by_a_step() -> None:
    driver = parent_of(step("z"))
    driver.succeed("z", added=adding(call("a")))

    child = start_child(driver, "z/a")

    assert child == child_key(KEY, "z/a", 1)
    driver.give(ended(child, at="z/a"))
    assert driver.status() == "succeeded"
    driver.check()


# -- the child ---------------------------------------------------------------------------------------------------------

PARENT = ev.RunStarted(parent=f"{KEY}/x/a", depth=1)


def told(driver: Driver) -> inp.ChildEnded:
    [(key, value)] = driver.posts
    assert key == KEY
    assert isinstance(value, inp.ChildEnded)
    assert (value.at, value.child) == ("x/a", driver.key)
    return value


def test_a_child_tells_its_parent_its_result() -> None:
    driver = Driver(step("b"), output=Ref("b"), started=PARENT)

    driver.succeed("b", result=[1])

    assert told(driver) == inp.ChildEnded(at="x/a", child="k", outcome="succeeded", result="=[1]")
    driver.check()


@pytest.mark.parametrize(
    ("result", "output", "expected"),
    [
        ("@row", Ref("b"), ""),
        ("#blob", Ref("b"), "#blob"),
        ([1, 2], Ref("b", path=(0,)), ""),
        ("x", ListOf([Ref("b"), Const(0), MapOf({'a"': Ref("b")})]), '=["x",7,{"a\\"":"x"}]'),
        ("@row", ListOf([Ref("b")]), ""),
        ("#blob", MapOf({"a": Ref("b")}), ""),
        ("x" * 900, ListOf([Ref("b"), Ref("b")]), ""),
    ],
)
def test_a_result_travels_if_any_run_can_read_it(result: Any, output: Any, expected: str) -> None:
    driver = Driver(step("b"), output=output, constants=[7], started=PARENT)

    driver.succeed("b", result=result)

    assert told(driver).result == expected


def test_a_child_tells_why_it_failed() -> None:
    driver = Driver(step("b"), started=PARENT)

    driver.fail("b", code="broken", message="on purpose")

    text = "run 'run-1' failed: step 'b': broken: on purpose"
    assert told(driver).failure == Failure("child_failed", text)


def test_the_failure_of_a_grandchild_is_passed_on_as_a_failure() -> None:
    driver = Driver(call("b"), key=KEY, started=PARENT)
    cause = Failure("child_cancelled", "run 'deep' was cancelled")
    child = start_child(driver, "b")

    driver.give(inp.ChildEnded(at="b", child=child, outcome="failed", failure=cause))

    [(_, value)] = driver.posts
    assert isinstance(value, inp.ChildEnded)
    assert value.failure == Failure("child_failed", "run 'deep' was cancelled")


def test_a_child_without_a_result_fails_its_parents_step() -> None:
    driver = Driver(step("b", when=Ref("c")), step("c"), output=Ref("b"), started=PARENT)

    driver.succeed("c", result=False)

    failure = told(driver).failure
    assert failure is not None
    assert (failure.code, failure.message) == ("child_no_result", "run 'run-1' has no result: step 'b' was skipped")


def test_a_child_whose_result_failed_is_not_said_to_have_skipped_it() -> None:
    driver = Driver(step("b", optional=True), output=Ref("b"), started=PARENT)

    driver.fail("b")

    failure = told(driver).failure
    assert failure is not None
    assert (failure.code, failure.message) == ("child_no_result", "run 'run-1' has no result: step 'b' failed")


def test_a_cancelled_child_says_so_and_a_reopened_one_tells_again() -> None:
    driver = Driver(step("b"), output=Ref("b"), started=PARENT)
    driver.give(inp.Cancel())
    driver.revoked()
    first = told(driver).failure
    assert first is not None
    assert first.code == "child_cancelled"

    driver.give(inp.Retry())
    driver.succeed("b", result=2)

    assert driver.posts[1][1] == inp.ChildEnded(at="x/a", child="k", outcome="succeeded", result="=2")


# -- names -------------------------------------------------------------------------------------------------------------


def test_the_key_of_a_child_is_a_uuid_of_its_parents_time() -> None:
    keys = {child_key(KEY, "a", 1), child_key(KEY, "a", 2), child_key(KEY, "b", 1), child_key(KEY[:-1] + "2", "a", 1)}

    assert len(keys) == 4
    assert all(key.startswith("018bcfe5-0001-7") and len(key) == 36 and key[19] == "8" for key in keys)
    assert child_key(KEY, "a", 1) == child_key(KEY, "a", 1)
    assert len(child_key("k", "a", 1)) == 36


def test_the_id_of_a_child_is_readable_while_it_is_short() -> None:
    assert child_id("order-1", "ship", 1) == "order-1/ship"
    assert child_id("order-1", "ship", 3) == "order-1/ship#3"
    assert child_id("ü" * MAX_ID_BYTES, "ship", 1) == ""


def test_the_late_report_of_an_attempt_does_not_end_the_one_that_fetches_the_result() -> None:
    driver = parent_of(call("a"))
    first = driver.task("a")
    child = first.call.child
    assert child is not None
    late = inp.ChildStarted(at="a", child=child.key, id="r/a", attempt=first.attempt, session="s", lease=7)

    # A child that was reopened may end before the attempt that asked for it has said so.
    driver.give(ended(child.key, result=None))
    driver.give(late)

    assert driver.task("a").attempt == 2
    driver.succeed("a", result="fetched")
    assert driver.status() == "succeeded"
    driver.check()


def test_a_row_that_fails_cancels_the_child_of_its_other_cell_and_waits_for_it_before_it_is_tried_again() -> None:
    row = Phase(id="row", blocks=[call("a"), step("b")], retry=RetryPolicy(attempts=2, initial=0.0))
    driver = parent_of(Phases(id="p", phases=[row]))
    child = start_child(driver, "p/row/a")

    driver.fail("p/row/b")

    assert driver.posts[-1] == (child, inp.Cancel(hard=True))
    assert driver.run.at("p/row#2") is None
    driver.give(ended(child, "cancelled", at="p/row/a"))
    assert driver.waiting() == ["p/row#2/a", "p/row#2/b"]
    driver.check()
