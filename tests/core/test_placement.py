"""Where a step is to run, worked out from the journal at every dispatch."""

from __future__ import annotations

from typing import Any

import pytest
from tests.core.kit import Driver, adding, step

from treadle.core import events as ev
from treadle.core import inputs as inp
from treadle.core.analysis import check_plan
from treadle.core.plan import Body, Const, Fragment, Gather, Group, Placement, Plan, Ref, RetryPolicy, Undo
from treadle.core.tables import FAILED

GPU = Placement("target", target="gpu")
HERE = Placement("here")


def beside(name: str) -> Placement:
    return Placement("with", step=name)


def follow(name: str) -> Placement:
    return Placement("follow", step=name)


def on(driver: Driver, worker: str, *names: str, **more: Any) -> None:
    """Steps succeed on a worker, whose session is named after it."""
    driver.succeed(*names, session=f"session of {worker}", worker=worker, **more)


def test_a_target_goes_into_the_task() -> None:
    driver = Driver(step("a", placement=GPU), step("b"))

    assert (driver.task("a").target, driver.task("b").target) == ("gpu", "")


def test_a_step_beside_another_is_for_the_worker_of_its_last_attempt() -> None:
    driver = Driver(step("a", retry=RetryPolicy(attempts=2)), step("b", placement=beside("a")))
    driver.fail("a", session="s0", worker="w0")
    on(driver, "w1", "a")

    assert driver.task("b").target == "w1"
    driver.check()


def test_the_journal_names_the_worker_of_a_session_once() -> None:
    driver = Driver(step("a"), step("b"), step("c"), step("d"))
    on(driver, "w1", "a", "b")
    on(driver, "w2", "c")
    on(driver, "w1", "d")

    assert [event.worker for event in driver.seen(ev.StepSucceeded)] == ["w1", "", "w2", ""]
    driver.check()


def test_a_step_that_follows_another_has_its_target_and_not_its_worker() -> None:
    driver = Driver(step("a", placement=GPU), step("b", placement=follow("a")), step("c", placement=follow("b")))
    on(driver, "w1", "a")
    assert driver.task("b").target == "gpu"
    on(driver, "w2", "b")

    assert driver.task("c").target == "gpu"


def test_what_follows_a_step_beside_another_is_for_that_ones_worker() -> None:
    driver = Driver(step("a"), step("b", placement=beside("a")), step("c", placement=follow("b")))
    on(driver, "w1", "a")
    on(driver, "w2", "b")

    assert driver.task("c").target == "w1"


def test_a_target_is_worked_out_again_for_every_attempt() -> None:
    driver = Driver(step("a"), step("b", placement=beside("a")))
    on(driver, "w1", "a", "b")
    driver.give(inp.Rewind("a"))
    on(driver, "w2", "a")

    assert driver.task("b").target == "w2"
    driver.check()


def test_what_is_added_to_run_here_is_for_the_worker_of_the_step_that_adds_it() -> None:
    gather = Gather(id="g", items=Const(0), body=Body(blocks=[step("x", placement=HERE)]))
    driver = Driver(step("a"))
    on(
        driver, "w1", "a",
        added=adding(
            step("n", placement=HERE), Group(id="h", blocks=[step("m", placement=HERE)]), gather, constants=[[1]]
        ),
    )  # fmt: skip

    assert {task.address: task.target for task in driver.tasks.values()} == {
        "a/n": "w1", "a/h/m": "w1", "a/g[0]/x": "w1",
    }  # fmt: skip
    assert [event.worker for event in driver.seen(ev.StepsAdded)] == ["w1"]
    driver.check()


def test_an_addition_without_such_a_step_does_not_name_its_worker() -> None:
    driver = Driver(step("a"))
    on(driver, "w1", "a", added=adding(step("n", placement=GPU)))

    assert [event.worker for event in driver.seen(ev.StepsAdded)] == [""]


def test_what_was_added_at_once_goes_where_the_adding_step_succeeds() -> None:
    """Its first attempt's worker may be gone by then."""
    driver = Driver(step("a"), step("z"))
    task = driver.task("a")
    fragment = Fragment(
        blocks=[step("n", placement=HERE), step("m", after=("n",), placement=HERE)], constants=[], into=None
    )
    driver.give(inp.AddSteps(task.number, fragment, 1, 1, worker="w1"))
    assert driver.task("a/n").target == "w1"
    driver.lose("a")
    on(driver, "w2", "a")
    on(driver, "w1", "a/n")

    assert driver.task("a/m").target == "w2"
    driver.check()


def test_here_needs_a_worker_that_is_known() -> None:
    driver = Driver(step("a"))
    task = driver.task("a")

    refusal = driver.refused(inp.AddSteps(task.number, adding(step("n", placement=HERE))[0], 1, 1))

    assert "here=True" in refusal.message


def test_a_worker_that_the_journal_does_not_tell_fails_the_step() -> None:
    """It was written by a version that did not tell it."""
    driver = Driver(step("a"), step("b", placement=beside("a")))
    driver.succeed("a", worker="")

    (failed,) = driver.seen(ev.StepFailed)
    assert (failed.failure.code, "rewind 'a'" in failed.failure.message) == ("unresolved", True)
    driver.give(inp.Rewind("a"))
    on(driver, "w1", "a")
    assert driver.task("b").target == "w1"


def test_a_step_beside_one_that_fails_is_skipped() -> None:
    driver = Driver(step("a"), step("b", placement=beside("a")), step("c", placement=beside("b")))
    driver.fail("a")

    assert [driver.status(at) for at in ("a", "b", "c")] == [FAILED, "skipped", "skipped"]


def test_the_halves_and_the_undo_of_a_step_are_placed_and_keyed_like_it() -> None:
    undo = Undo(action="undo", prepare="prepare")
    driver = Driver(
        step("a", placement=GPU, key="k", slots={"k": Const(0)}, undo=undo), step("z", "a"), constants=["host"]
    )
    first = driver.task("a")
    driver.succeed("a", result="state")
    second = driver.task("a")
    driver.succeed("a")
    driver.fail("z")
    driver.give(inp.Unwind(1))
    third = driver.task("a")

    assert [(task.call.purpose, task.target, task.key) for task in (first, second, third)] == [
        ("prepare", "gpu", "host"), ("step", "gpu", "host"), ("undo", "gpu", "host"),
    ]  # fmt: skip


def test_a_step_is_placed_by_steps_only() -> None:
    group = Group(id="g", blocks=[step("x")], output=Ref("x"))

    (mistake,) = check_plan(Plan(workflow="p", blocks=[group, step("b", placement=beside("g"))]))

    assert "is placed by 'g', which is no step" in str(mistake)


@pytest.mark.parametrize(
    ("placed", "text"),
    [(follow("a"), "follows 'a', which is not placed"), (beside("g"), "is placed by 'g', which is no step")],
)
def test_a_placement_that_means_nothing_is_refused_when_it_is_added(placed: Placement, text: str) -> None:
    driver = Driver(step("a"), Group(id="g", blocks=[step("x")], output=Ref("x")))
    task = driver.task("a")

    refusal = driver.refused(inp.AddSteps(task.number, adding(step("n", placement=placed))[0], 1, 1, worker="w"))

    assert text in refusal.message


def test_an_added_step_may_follow_one_that_is_added_with_it() -> None:
    driver = Driver(step("a"))
    on(driver, "w1", "a", added=adding(step("n", placement=HERE), step("m", placement=follow("n"))))
    on(driver, "w2", "a/n")

    assert driver.task("a/m").target == "w1"
