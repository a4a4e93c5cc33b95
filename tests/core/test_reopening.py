"""Retry and rewind: exactly what they take back, and how it runs again."""

from __future__ import annotations

from typing import Any

import pytest
from tests.core.kit import Driver, step

from treadle.core import events as ev
from treadle.core import inputs as inp
from treadle.core.decide import Limits
from treadle.core.plan import Group, Predicate, Ref, RetryPolicy


def reopened(driver: Driver) -> set[str]:
    event = driver.seen(ev.StepsReopened)[-1]
    return {*event.at}


def test_a_retry_reopens_the_step_and_what_was_skipped_because_of_it() -> None:
    driver = Driver(
        step("a"), step("b", "a"), step("c", "b"), step("d", after_any=("a",)), step("e", "a?"), constants=[0]
    )
    driver.fail("a")
    driver.finish()
    assert driver.status() == "failed"

    decision = driver.give(inp.Retry("a"))
    assert reopened(driver) == {"a", "b", "c"}
    assert set(decision.unsettled) == {1, 2, 3}
    assert driver.status() == "running"
    assert driver.task("a").attempt == 2
    assert driver.task("a").generation == 1
    driver.finish()

    assert driver.status() == "succeeded"
    assert driver.step("d").attempt == 1, "what ran is not run again"
    driver.check()


def test_budgets_start_anew_and_attempts_count_up() -> None:
    driver = Driver(step("a", retry=RetryPolicy(attempts=2, initial=0), lost_limit=2))
    driver.lose("a")
    driver.fail("a")
    driver.fail("a")
    assert driver.status() == "failed"

    driver.give(inp.Retry())
    driver.lose("a")
    driver.fail("a")

    assert driver.status("a") == "dispatched"
    assert driver.task("a").attempt == 6


def two_causes() -> Driver:
    driver = Driver(step("u"), step("v"), step("x", "u", "v"), step("y", "x"), step("z", "u"))
    driver.fail("u")
    driver.fail("v")
    return driver


def test_a_skip_with_two_causes_stays_while_one_of_them_stays() -> None:
    driver = two_causes()

    driver.give(inp.Retry("u"))
    assert reopened(driver) == {"u", "z"}
    driver.finish()
    assert driver.status() == "failed"
    assert driver.status("x") == "skipped"
    driver.give(inp.Retry("v"))
    assert reopened(driver) == {"v", "x", "y"}
    driver.finish()

    assert driver.status() == "succeeded"
    driver.check()


def test_a_retry_of_all_reopens_all() -> None:
    driver = two_causes()

    driver.give(inp.Retry())

    assert reopened(driver) == {"u", "v", "x", "y", "z"}
    driver.finish()
    assert driver.status() == "succeeded"


def test_a_retry_that_fails_again_skips_again() -> None:
    driver = Driver(step("a"), step("b", "a"))
    for _ in range(3):
        driver.fail("a")
        assert driver.status("b") == "skipped"
        assert driver.status() == "failed"
        driver.give(inp.Retry("a"))

    driver.finish()
    assert driver.status() == "succeeded"


def test_a_retry_while_the_run_goes_on() -> None:
    driver = Driver(step("a"), step("b", "a"), step("c"))
    driver.fail("a")

    driver.give(inp.Retry("a"))

    assert driver.waiting() == ["a", "c"]
    driver.finish()
    assert driver.status() == "succeeded"
    driver.check()


def test_a_skip_that_a_condition_shares_becomes_the_conditions_own() -> None:
    driver = Driver(step("c", when=Predicate("p")), step("f"), step("x", "c", "f"))
    driver.give(driver.outcome("c", False))
    driver.fail("f")
    assert not driver.step("x").by_condition

    driver.give(inp.Retry("f"))
    driver.finish()

    assert driver.step("x").by_condition
    assert driver.status() == "succeeded"


def test_skips_of_a_condition_are_not_reopened_by_a_retry() -> None:
    driver = Driver(step("c", when=Predicate("p")), step("x", "c"), step("f"))
    driver.give(driver.outcome("c", False))
    driver.fail("f")

    driver.give(inp.Retry())

    assert reopened(driver) == {"f"}


def test_a_condition_holds_for_all_of_a_generation() -> None:
    driver = Driver(step("a", when=Predicate("p")))
    driver.give(driver.outcome("a", True))
    driver.fail("a")

    driver.give(inp.Retry("a"))
    assert driver.task("a").call.purpose == "step"
    driver.succeed("a")
    driver.give(inp.Rewind("a"))

    assert driver.task("a").call.purpose == "condition"


def test_a_retry_in_a_group_reopens_what_waits_for_the_group() -> None:
    group = Group(id="g", blocks=[step("x"), step("y"), step("z", "x")])
    driver = Driver(group, step("after", after=("g",)))
    driver.fail("g/x")
    driver.fail("g/y")
    assert driver.status("after") == "skipped"

    driver.give(inp.Retry("g/x"))
    assert reopened(driver) == {"g/x", "g/z"}, "g fails again by y"
    driver.finish()
    assert driver.status("g") == "failed"
    driver.give(inp.Retry("g/y"))
    assert reopened(driver) == {"g/y", "after"}
    driver.finish()

    assert driver.status() == "succeeded"
    driver.check()


def test_a_retry_reopens_skipped_groups_even_empty_ones() -> None:
    inner = Group(id="h", blocks=[step("x")])
    driver = Driver(
        step("u"),
        step("v"),
        Group(id="g", blocks=[inner, step("y", after=("v",))], after=("u",)),
        Group(id="empty", after=("u",)),
        step("z", after=("empty",)),
    )
    driver.fail("u")
    driver.fail("v")

    driver.give(inp.Retry("u"))
    assert reopened(driver) == {"u", "g/h/x", "z"}
    assert driver.status("g/y") == "skipped", "v still forbids it"
    driver.finish()
    assert driver.status("empty") == "succeeded"
    assert driver.status("g/h/x") == "succeeded"
    driver.give(inp.Retry())
    driver.finish()

    assert driver.status() == "succeeded"
    driver.check()


def test_a_retry_of_a_cancelled_run_runs_the_rest() -> None:
    driver = Driver(step("a"), step("b", "a"), Group(id="g", after=("b",)), Group(id="h", blocks=[step("x", "b")]))
    driver.succeed("a")
    driver.give(inp.Cancel())
    driver.fail("b")
    assert driver.status() == "cancelled"

    driver.give(inp.Retry())
    driver.finish()

    assert driver.status() == "succeeded"
    driver.check()


def test_a_part_of_a_cancelled_run_leaves_it_cancelled() -> None:
    driver = Driver(step("a"), step("b"))
    driver.give(inp.Cancel())
    driver.revoked()

    driver.give(inp.Retry("a"))
    driver.finish()

    assert driver.statuses() == {"a": "succeeded", "b": "cancelled"}
    assert driver.status() == "cancelled"


@pytest.mark.parametrize("verb", [inp.Retry, inp.Rewind])
def test_what_cannot_be_reopened_is_refused(verb: Any) -> None:
    driver = Driver(step("a"), step("b"), Group(id="g", blocks=[step("x", "a")]))
    assert driver.refused(verb("nobody")).code == "step_not_found"
    assert driver.refused(verb("g")).code == ("not_applicable" if verb is inp.Rewind else "step_not_found")
    assert driver.refused(verb("")).code == ("step_not_found" if verb is inp.Rewind else "not_applicable")
    assert driver.refused(verb("a")).code == "not_applicable"
    driver.give(inp.Cancel(hard=True))
    driver.give(inp.Cancel(hard=True))
    refusal = driver.refused(verb("a"))
    assert refusal.code == "step_busy"
    assert "'a'" in refusal.message
    driver.finish()

    assert driver.give(verb("a")).refusals == {}


def test_nothing_is_reopened_while_a_cancel_goes_on() -> None:
    driver = Driver(step("a"), step("b"))
    driver.fail("a")
    driver.give(inp.Cancel())

    assert driver.refused(inp.Retry("a")).status == "cancelling"
    assert driver.refused(inp.Rewind("a")).status == "cancelling"


def test_a_run_without_failures_has_nothing_to_retry() -> None:
    driver = Driver(step("a"))

    assert driver.refused(inp.Retry()).code == "not_applicable"
    driver.succeed("a")
    assert driver.refused(inp.Retry("a")).code == "not_applicable"


def test_many_busy_steps_are_named_in_part() -> None:
    driver = Driver(*[step(f"s{n}") for n in range(9)])
    driver.give(inp.Cancel(hard=True))

    assert "and 4 more" in driver.refused(inp.Retry()).message


# -- rewind ----------------------------------------------------------------------------------------------------------


def test_a_rewind_begins_the_next_generation_of_all_that_depends_on_the_step() -> None:
    driver = Driver(
        step("a"),
        step("b", "a"),
        step("c", after_any=("b",)),
        step("d"),
        Group(id="g", blocks=[step("x")], after=("b",)),
    )
    driver.finish()

    driver.give(inp.Rewind("b"))

    assert reopened(driver) == {"b", "c", "g/x"}
    assert driver.task("b").generation == 2
    assert driver.task("b").attempt == 2
    assert driver.waiting() == ["b"], "the group is closed again"
    driver.finish()
    assert driver.status() == "succeeded"
    assert [driver.step(at).generation for at in ("a", "b", "c", "d", "g/x")] == [1, 2, 2, 1, 2]
    driver.check()


def test_a_late_report_of_the_old_generation_changes_nothing() -> None:
    driver = Driver(step("a"))
    old = driver.outcome("a", 1)
    driver.give(old)
    driver.give(inp.Rewind("a"))

    assert driver.give(old).events == []
    assert driver.waiting() == ["a"]


def test_a_rewind_reaches_through_the_groups_around() -> None:
    driver = Driver(
        Group(id="g", blocks=[Group(id="h", blocks=[step("x")]), step("y")]),
        step("z", after=("g",)),
        step("w", after=("g/h/x/",)),
    )
    driver.finish()

    driver.give(inp.Rewind("g/h/x"))

    assert reopened(driver) == {"g/h/x", "z", "w"}
    driver.finish()
    assert driver.status() == "succeeded"
    driver.check()


def test_a_rewind_of_a_running_run_waits_for_nobody_it_does_not_touch() -> None:
    driver = Driver(step("a"), step("b", "a"), step("c"), step("d", "a", signals=("s",)))
    driver.succeed("a")
    refusal = driver.refused(inp.Rewind("a"))
    assert (refusal.code, "'b'" in refusal.message) == ("step_busy", True)
    driver.succeed("b")

    driver.give(inp.Rewind("a"))

    assert driver.waiting() == ["a", "c"]
    driver.signal("s")
    assert driver.waiting() == ["a", "c"], "d waits for the new a"
    driver.finish()
    assert driver.status() == "succeeded"
    driver.check()


def test_a_rewind_takes_back_what_was_ready() -> None:
    driver = Driver(step("a"), step("o"), step("b", "a"), limits=Limits(dispatched=1))
    driver.succeed("a")
    assert driver.statuses() == {"a": "succeeded", "o": "dispatched", "b": "ready"}

    driver.give(inp.Rewind("a"))
    driver.settle()

    assert driver.statuses() == {"a": "ready", "o": "dispatched", "b": "waiting"}
    driver.finish()
    assert driver.status() == "succeeded"
    driver.check()


def test_a_released_breakpoint_stops_the_next_generation_again() -> None:
    driver = Driver(step("a", break_before=("red",), break_after=("red",)), step("b", "a"), breakpoints=["red"])
    for generation in (1, 2):
        driver.give(inp.Release("red"))
        assert driver.task("a").generation == generation
        driver.succeed("a")
        assert driver.status("b") == "waiting"
        driver.give(inp.Release("red"))
        driver.succeed("b")
        assert driver.status() == "succeeded"
        driver.give(inp.Rewind("a"))
        assert driver.waiting() == []
    driver.check()


def test_a_rewind_of_a_held_step_holds_its_dependents_until_the_new_one() -> None:
    driver = Driver(step("a", break_after=("red",)), step("b", "a"), breakpoints=["red"])
    driver.succeed("a")

    driver.give(inp.Rewind("a"))
    driver.succeed("a", result=2)
    assert driver.waiting() == []
    driver.give(inp.Release("red"))

    assert driver.args("b") == {"p0": 2}


def test_a_skipped_step_that_is_rewound_alone_is_skipped_again() -> None:
    driver = Driver(step("a"), Group(id="g", blocks=[step("x")], after=("a",)), step("z", after=("g",)))
    driver.fail("a")

    driver.give(inp.Rewind("g/x"))

    assert driver.status("g/x") == driver.status("g") == driver.status("z") == "skipped"
    assert driver.status() == "failed"
    driver.check()


def test_a_retry_of_a_run_that_was_cancelled_too_late_lets_it_succeed() -> None:
    driver = Driver(step("a"), output=Ref("a"))
    driver.give(inp.Cancel())
    driver.succeed("a", result=7)
    assert (driver.status(), driver.status("a")) == ("cancelled", "succeeded")

    driver.give(inp.Retry())

    assert driver.status() == "succeeded"
    assert driver.run.result == "=7"
    assert driver.step("a").attempt == 1
    driver.check()
