"""Cancel: soft and hard, what runs and what waits, and the late reports of what was left behind."""

from __future__ import annotations

import pytest
from tests.core.kit import Driver, adding, digest, step

from treadle.core import events as ev
from treadle.core import inputs as inp
from treadle.core.decide import Limits
from treadle.core.plan import Group, Predicate, RetryPolicy


def test_a_soft_cancel_lets_running_steps_finish_and_starts_nothing() -> None:
    driver = Driver(step("a"), step("b", "a"), Group(id="g", blocks=[step("x")], after=("b",)))

    cancelled = driver.give(inp.Cancel())
    assert (cancelled.revoke, cancelled.interrupts) == (True, ())
    assert driver.statuses() == {"a": "dispatched", "b": "cancelled", "g/x": "cancelled"}
    assert driver.status() == "running"
    driver.succeed("a", result=1)

    assert driver.status("a") == "succeeded"
    assert driver.status("g") == driver.status() == "cancelled"
    driver.check()


def test_a_cancel_wins_over_a_success_that_comes_later() -> None:
    driver = Driver(step("a"))

    driver.give(inp.Cancel())
    driver.succeed("a")

    assert driver.status("a") == "succeeded"
    assert driver.status() == "cancelled"


def test_tasks_that_nobody_claimed_are_cancelled_when_the_store_has_taken_them_back() -> None:
    driver = Driver(step("a"), step("b"), step("c", "a"))
    driver.give(inp.Cancel())

    driver.revoked("a")
    assert driver.statuses() == {"a": "cancelled", "b": "dispatched", "c": "cancelled"}
    driver.fail("b")

    assert driver.status() == "cancelled"
    driver.check()


def test_a_hard_cancel_ends_all_at_once_and_fences_what_comes_late() -> None:
    driver = Driver(step("a"), step("b"), step("c"), step("d", "a"), step("e"))

    decision = driver.give(inp.Cancel(hard=True))
    assert sorted(decision.interrupts) == [1, 2, 3, 5]
    assert driver.status() == "cancelled"
    late = driver.outcome("a", 1, added=adding(step("x")))
    driver.give(late)
    driver.fail("b")
    driver.lose("c")
    driver.revoked("e")

    assert set(driver.statuses().values()) == {"cancelled"}
    assert [(event.at, event.outcome) for event in driver.seen(ev.AttemptEnded)] == [
        ("a", "succeeded"),
        ("b", "failed"),
        ("c", "lost"),
        ("e", "revoked"),
    ]
    assert driver.run.tasks == 0
    assert driver.give(late).events == []
    driver.check()


def test_a_soft_cancel_may_become_a_hard_one_but_not_the_reverse() -> None:
    driver = Driver(step("a"))

    driver.give(inp.Cancel())
    assert driver.give(inp.Cancel()).events == []
    driver.give(inp.Cancel(hard=True))
    assert driver.status() == "cancelled"

    assert driver.give(inp.Cancel(), cause="again").events == [ev.InputAccepted(cause="again")]


def test_no_retry_under_a_cancel() -> None:
    for lost in (False, True):
        driver = Driver(step("a", retry=RetryPolicy()))
        driver.give(inp.Cancel())

        driver.lose("a") if lost else driver.fail("a")

        assert driver.status("a") == "cancelled"
        assert driver.status() == "cancelled"
        assert len(driver.seen(ev.AttemptLost if lost else ev.AttemptFailed)) == 1
        driver.check()


def test_a_final_failure_under_a_cancel_is_a_failure_of_the_step() -> None:
    driver = Driver(step("a"))
    driver.give(inp.Cancel())

    driver.fail("a")

    assert driver.status("a") == "failed"
    assert driver.status() == "cancelled"


@pytest.mark.parametrize("status", ["succeeded", "failed"])
def test_the_cancel_of_a_final_run_changes_nothing(status: str) -> None:
    driver = Driver(step("a"))
    driver.succeed("a") if status == "succeeded" else driver.fail("a")
    before = digest(driver.run)

    assert driver.give(inp.Cancel(hard=True)).events == []

    assert digest(driver.run) == before
    assert driver.status() == status


def test_what_waits_at_a_fence_is_cancelled_with_the_rest() -> None:
    driver = Driver(
        step("signal", signals=("s",)),
        step("stop", break_before=("red",)),
        step("ask", when=Predicate("p")),
        step("held", break_after=("red",)),
        Group(id="empty", after=("held",)),
        Group(id="outer", blocks=[Group(id="inner", blocks=[step("x")])], after=("held",)),
        breakpoints=["red"],
    )
    driver.succeed("held")
    driver.give(inp.Pause())

    decision = driver.give(inp.Cancel())

    assert decision.hold == 0
    assert driver.status() == "cancelled"
    assert driver.waiting() == ["ask"], "the evaluation is left alone"
    driver.succeed("ask", result=True)
    assert driver.run.tasks == 0
    assert driver.status("ask") == "cancelled"
    assert driver.give(inp.Release("red")).events == []
    driver.check()


def test_a_hard_cancel_interrupts_an_evaluation_too() -> None:
    driver = Driver(step("ask", when=Predicate("p")))

    assert driver.give(inp.Cancel(hard=True)).interrupts == (1,)


def test_a_revoked_evaluation_is_over() -> None:
    driver = Driver(step("ask", when=Predicate("p")))
    driver.give(inp.Cancel())

    driver.revoked()

    assert driver.run.tasks == 0
    driver.check()


def test_a_hard_cancel_leaves_an_evaluation_that_reports_late() -> None:
    driver = Driver(step("ask", when=Predicate("p")), step("b"))
    driver.give(inp.Cancel())
    driver.lose("ask")
    driver.finish()

    assert driver.seen(ev.AttemptEnded)[0].outcome == "lost"
    assert driver.status() == "cancelled"


def test_nothing_is_revoked_without_a_cancel() -> None:
    driver = Driver(step("a"))

    assert driver.give(inp.Revoked([1, 0, 99, -1])).events == []
    assert driver.waiting() == ["a"]


def test_steps_added_under_a_soft_cancel_are_cancelled() -> None:
    driver = Driver(step("a"))
    driver.give(inp.Cancel())

    driver.succeed("a", added=adding(step("x"), step("y", "x"), Group(id="g", after=("y",))))

    assert driver.statuses() == {"a": "succeeded", "a/x": "cancelled", "a/y": "cancelled"}
    assert driver.status("a/g") == "cancelled"
    assert driver.status() == "cancelled"
    driver.check()


def test_a_cancel_between_ready_and_dispatch_dispatches_nothing() -> None:
    driver = Driver(*[step(f"s{n}") for n in range(4)], limits=Limits(dispatched=1, events=1))
    driver.settle()
    assert driver.waiting() == ["s0"]
    assert driver.status("s1") == "ready"

    driver.give(inp.Cancel(), more=False)
    assert driver.last.more
    driver.check()
    driver.settle()
    driver.succeed("s0")

    assert len(driver.seen(ev.StepDispatched)) == 1
    assert driver.status() == "cancelled"
    driver.check()


def test_a_cancel_finds_the_skips_that_were_not_decided_yet() -> None:
    inner = Group(id="h")
    driver = Driver(
        step("a"), *[step(f"s{n}", "a") for n in range(3)], Group(id="g", blocks=[inner], after=("a",)),
        limits=Limits(events=1),
    )  # fmt: skip
    driver.settle()

    driver.give(driver.failed("a"), more=False)
    driver.give(inp.Cancel())

    assert driver.status() == "cancelled"
    assert driver.status("a") == "failed"
    driver.check()


def test_an_optional_step_that_was_cancelled_does_not_cancel_its_scope() -> None:
    driver = Driver(Group(id="g", blocks=[step("a", optional=True), step("b")]))

    driver.give(driver.outcome("g/a", status="cancelled"))
    driver.succeed("g/b")

    assert driver.status("g") == driver.status() == "succeeded"


def test_a_group_with_a_cancelled_step_is_cancelled() -> None:
    driver = Driver(Group(id="g", blocks=[step("a")]), step("z", after=("g",)))

    driver.give(driver.outcome("g/a", status="cancelled"))

    assert driver.status("g") == "cancelled"
    assert driver.status("z") == "skipped"
