"""The deadline of a run: no attempt begins after it, whatever it waited for; who has it run again lifts it."""

from __future__ import annotations

from tests.core.kit import Driver, step

from treadle.core import events as ev
from treadle.core import inputs as inp
from treadle.core.plan import Poll, RetryPolicy, Undo


def codes(driver: Driver) -> list[str]:
    return [event.failure.code for event in driver.seen(ev.StepFailed)]


def test_tasks_carry_the_deadline_and_the_trace() -> None:
    driver = Driver(step("a"), step("b", "a"), deadline=1010.0)

    assert (driver.task("a").call.deadline, driver.task("a").call.trace) == (1010.0, "t")
    driver.succeed("a")

    assert driver.task("b").call.deadline == 1010.0
    driver.check()


def test_what_becomes_ready_after_the_deadline_fails_without_an_attempt() -> None:
    driver = Driver(step("a"), step("b", "a"), deadline=1010.0)
    driver.now = 1010.0

    driver.succeed("a")

    assert driver.statuses() == {"a": "succeeded", "b": "failed"}
    assert (codes(driver), driver.status()) == (["deadline"], "failed")
    driver.check()


def test_an_attempt_that_could_only_begin_after_the_deadline_is_not_waited_for() -> None:
    driver = Driver(
        step("late", delay=20),
        step("again", retry=RetryPolicy(attempts=9, initial=20)),
        step("polled", poll=Poll(5)),
        deadline=1010.0,
    )

    assert driver.waiting() == ["again", "polled"]
    driver.fail("again")

    assert codes(driver) == ["deadline", "deadline"]
    driver.check()


def test_a_step_that_waited_for_a_signal_past_the_deadline_fails_when_it_comes() -> None:
    driver = Driver(step("a", signals=["go"]), deadline=1010.0)
    driver.now = 1011.0

    driver.signal("go")

    assert codes(driver) == ["deadline"]
    driver.check()


def test_a_retry_or_a_rewind_lifts_the_deadline() -> None:
    driver = Driver(step("a"), step("b", "a"), deadline=1010.0)
    driver.now = 1020.0
    driver.succeed("a")

    driver.give(inp.Retry(at="b"))

    assert driver.task("b").call.deadline == 0.0
    driver.succeed("b")
    assert driver.status() == "succeeded"
    driver.check()


def test_undo_goes_on_after_the_deadline() -> None:
    driver = Driver(
        step("a", undo=Undo(action="undo")),
        step("b", "a"),
        deadline=1010.0,
        on_failure="unwind",
    )
    driver.now = 1020.0

    driver.succeed("a")

    assert driver.task("a").call.purpose == "undo"
    assert driver.task("a").call.deadline == 0.0
    driver.finish()
    assert (driver.status(), driver.run.root.unwound) == ("failed", "fully")
    driver.check()
