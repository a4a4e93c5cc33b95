"""What rewound steps had added: it is taken back until it is added again."""

from __future__ import annotations

import pytest
from tests.core.kit import Driver, adding, step

from treadle.core import events as ev
from treadle.core import inputs as inp
from treadle.core.decide import Limits
from treadle.core.plan import Block, Group, Ref


def crawl(*added: Block, into: str | None = None) -> Driver:
    """A run in which `a` has added steps that have ended."""
    driver = Driver(step("a"), step("b", after=("a/",)))
    driver.succeed("a", added=adding(*added, into=into))
    driver.finish()
    assert driver.status() == "succeeded"
    driver.give(inp.Rewind("a"))
    assert driver.waiting() == ["a"]
    return driver


def test_a_step_that_was_not_added_again_is_rewound_by_its_adder_only() -> None:
    driver = crawl(step("x"), Group(id="g", blocks=[step("z")]))
    driver.fail("a")

    for gone in ("a/x", "a/g/z"):
        refusal = driver.refused(inp.Rewind(gone))
        assert refusal.code == "not_applicable"
        assert "rewind 'a'" in refusal.message
    driver.give(inp.Rewind("a"))

    assert driver.step("a/x").removed
    driver.succeed("a", added=adding(step("x")))
    driver.finish()
    assert driver.status() == "succeeded"
    driver.check()


def test_a_rewind_above_leaves_what_was_not_added_again_alone() -> None:
    driver = Driver(step("up"), step("a"))
    driver.succeed("up")
    driver.succeed("a", added=adding(step("x", after=("up",)), into=""))
    driver.finish()
    driver.give(inp.Rewind("a"))
    driver.succeed("a")
    assert driver.status("x") == "skipped"

    driver.give(inp.Rewind("up"))

    assert driver.seen(ev.StepsReopened)[-1].at == ["up"]
    driver.finish()
    assert driver.status("x") == "skipped"
    assert driver.status() == "succeeded"
    driver.check()


@pytest.mark.parametrize("into", [None, ""])
def test_a_removed_step_comes_back_when_it_is_added_again(into: str | None) -> None:
    driver = crawl(step("x"), step("y", "x"), into=into)
    x, y = ("a/x", "a/y") if into is None else ("x", "y")
    assert driver.step(x).removed

    driver.succeed("a", added=adding(step("y"), step("x", "y", action="new"), into=into))

    assert driver.task(y).generation == 2, "with its new definition"
    driver.succeed(y)
    assert driver.task(x).action == "new"
    driver.finish()
    assert driver.status() == "succeeded"
    assert len(driver.run.steps()) == 4
    driver.check()


def test_a_removed_step_that_is_not_added_again_is_skipped_and_fails_nothing() -> None:
    driver = crawl(step("x"), step("y"), Group(id="g", blocks=[step("z")]))

    driver.succeed("a", added=adding(step("y")))

    assert driver.status("a/x") == driver.status("a/g") == driver.status("a/g/z") == "skipped"
    [skipped] = [event for event in driver.seen(ev.StepSkipped) if event.at == "a/x"]
    assert (skipped.reason, skipped.causes, skipped.by_condition) == ("removed", ["a"], True)
    assert not driver.step("a/x").removed
    driver.finish()
    assert driver.status() == "succeeded"
    driver.check()


def test_removed_steps_go_with_an_adder_that_fails_and_come_back_with_its_retry() -> None:
    driver = crawl(step("x"), Group(id="g", blocks=[step("z")]))

    driver.fail("a")
    assert driver.status("a/x") == driver.status("a/g") == driver.status("b") == "skipped"
    assert not driver.step("a/x").by_condition
    assert driver.status() == "failed"
    driver.give(inp.Retry("a"))
    assert driver.seen(ev.StepsReopened)[-1].removed == ["a/x", "a/g", "a/g/z"]
    assert driver.step("a/x").removed
    driver.succeed("a", added=adding(step("x"), Group(id="g", blocks=[step("z")])))
    driver.finish()

    assert driver.status() == "succeeded"
    driver.check()


def test_a_removed_step_may_be_added_by_another() -> None:
    driver = Driver(step("a"), step("c", after=("a",)), step("d"))
    driver.succeed("a", added=adding(step("x"), into=""))
    driver.finish()
    driver.give(inp.Rewind("a"))
    driver.succeed("a")
    assert driver.status("x") == "skipped"

    decision = driver.give(driver.outcome("c", added=adding(step("x", action="new"), into="")))

    assert decision.unsettled == (driver.step("x").node.number,)
    assert driver.task("x").action == "new"
    assert driver.run.adder[driver.step("x").node.number] == driver.step("c").node.number
    driver.finish()
    assert driver.status() == "succeeded"
    driver.check()


def test_a_group_that_comes_back_may_have_other_content() -> None:
    driver = crawl(Group(id="g", blocks=[step("x"), step("y")]))

    driver.succeed("a", added=adding(step("t"), Group(id="g", blocks=[step("y"), step("n", "y")], after=("t",))))

    assert driver.waiting() == ["a/t"]
    driver.finish()
    assert driver.statuses() == {
        "a": "succeeded",
        "b": "succeeded",
        "a/g/x": "skipped",
        "a/g/y": "succeeded",
        "a/t": "succeeded",
        "a/g/n": "succeeded",
    }
    assert driver.status() == "succeeded"
    driver.check()


def test_a_removed_step_does_not_come_back_as_a_group() -> None:
    driver = crawl(step("x"))

    driver.succeed("a", added=adding(Group(id="x")))

    assert driver.seen(ev.StepFailed)[0].failure.code == "duplicate_step"


def test_a_dedup_key_of_a_removed_step_is_free() -> None:
    driver = crawl(step("x", dedup="k"), step("y", dedup="l"))

    driver.succeed("a", added=adding(step("x", dedup="k"), step("other", dedup="l")))

    assert driver.waiting() == ["a/other", "a/x"]
    driver.finish()
    assert driver.status("a/y") == "skipped"
    assert driver.status() == "succeeded"
    driver.check()


def test_what_removed_steps_had_added_is_removed_too() -> None:
    driver = Driver(step("a"))
    driver.succeed("a", added=adding(step("x")))
    driver.succeed("a/x", added=adding(step("y")))
    driver.finish()

    driver.give(inp.Rewind("a"))
    assert driver.seen(ev.StepsReopened)[0].removed == ["a/x", "a/x/y"]
    driver.succeed("a", added=adding(step("x")))
    driver.succeed("a/x")

    assert driver.status("a/x/y") == "skipped"
    assert driver.status() == "succeeded"
    driver.check()


def test_a_removed_step_waits_for_its_adder_only() -> None:
    driver = Driver(step("u"), step("a", after=("u",)), step("p"))
    driver.succeed("u")
    driver.succeed("a", added=adding(step("x", after=("p",)), into=""))
    driver.fail("p")
    assert driver.status("x") == "skipped"
    driver.give(inp.Rewind("a"))
    driver.give(inp.Retry("p"))
    driver.succeed("p")
    assert driver.status("x") == "waiting"

    driver.succeed("a", added=adding(step("x", "u"), into=""))

    assert driver.waiting() == ["x"]
    driver.finish()
    assert driver.status() == "succeeded"
    driver.check()


def test_a_step_may_be_added_behind_a_removed_one() -> None:
    driver = Driver(step("a"), step("b"))
    driver.succeed("a", added=adding(step("x"), into=""))
    driver.succeed("x")
    driver.give(inp.Rewind("a"))

    driver.succeed("b", added=adding(step("y", after=("x",))))
    assert driver.waiting() == ["a"]
    driver.succeed("a")

    assert driver.status("x") == "skipped"
    assert driver.waiting() == ["b/y"]
    driver.check()


def test_a_removed_step_that_a_cancel_came_before_is_skipped_after_the_retry() -> None:
    driver = Driver(step("a"), step("z"), limits=Limits(events=1))
    driver.succeed("a", added=adding(step("x"), Group(id="g", blocks=[step("y")])))
    driver.finish()
    driver.give(inp.Rewind("a"))

    driver.give(driver.outcome("a"), more=False)
    driver.give(inp.Cancel())
    assert driver.status("a/g/y") == "cancelled"
    driver.give(inp.Retry())
    driver.finish()

    assert driver.status("a/x") == driver.status("a/g/y") == "skipped"
    assert driver.status() == "succeeded"
    driver.check()


def test_a_circle_through_a_removed_step_is_found() -> None:
    driver = Driver(step("a"), step("c", after=("a",)))
    driver.succeed("a", added=adding(step("x"), step("y", "x"), into=""))
    driver.finish()
    driver.give(inp.Rewind("a"))

    driver.succeed("a", added=adding(step("x", "y"), step("y", "x"), into=""))

    assert driver.seen(ev.StepFailed)[0].failure.code == "cycle"
    driver.check()


def test_an_outcome_and_its_retry_in_one_decision_leave_one_row() -> None:
    driver = Driver(step("a"), step("b"))

    decision = driver.give(driver.failed("a"), inp.Retry("a"))

    assert decision.settled == []
    assert decision.unsettled == (1,)
    assert driver.task("a").attempt == 2


def test_a_ref_of_a_reopened_step_is_read_anew() -> None:
    driver = Driver(step("a"), step("b", "a"), output=Ref("b"))
    driver.succeed("a", result=1)
    driver.succeed("b", result=1)
    driver.give(inp.Rewind("a"))
    assert driver.run.result == ev.NULL
    driver.succeed("a", result=2)

    assert driver.args("b") == {"p0": 2}
