"""Steps that are polled: what their tasks carry, when their time is up, and what a cancel does to them."""

from __future__ import annotations

from tests.core.kit import Driver, step

from treadle.core import events as ev
from treadle.core import inputs as inp
from treadle.core.commands import Polling
from treadle.core.plan import Poll, RetryPolicy

POLL = Poll(interval=5, timeout=60)


def test_the_task_of_a_polled_step_says_how_and_until_when() -> None:
    driver = Driver(step("a", poll=POLL), step("b", poll=Poll(2)), step("c"))

    assert driver.task("a").call.poll == Polling(interval=5, deadline=driver.now + 60)
    assert driver.task("b").call.poll == Polling(interval=2)
    assert driver.task("c").call.poll is None
    assert [event.deadline for event in driver.seen(ev.StepDispatched)] == [driver.now + 60, 0, 0]
    driver.check()


def test_the_time_counts_from_the_end_of_a_start_delay() -> None:
    driver = Driver(step("a", poll=POLL, delay=100))

    assert driver.task("a").not_before == driver.now + 100
    assert driver.task("a").call.poll == Polling(interval=5, deadline=driver.now + 160)


def test_further_attempts_keep_the_deadline_of_the_first() -> None:
    driver = Driver(step("a", poll=POLL, retry=RetryPolicy(attempts=3, initial=7)))
    deadline = driver.now + 60

    driver.now += 20
    driver.fail("a")
    first = driver.task("a").call.poll
    driver.now += 20
    driver.lose("a")
    second = driver.task("a").call.poll

    assert first == second == Polling(interval=5, deadline=deadline)
    driver.check()


def test_a_reopened_step_has_all_its_time_again() -> None:
    driver = Driver(step("a", poll=POLL))
    driver.fail("a", code="timeout")
    driver.now += 1000

    driver.give(inp.Retry())

    assert driver.task("a").call.poll == Polling(interval=5, deadline=driver.now + 60)
    driver.check()


def test_a_timeout_without_end_stays_a_number() -> None:
    driver = Driver(step("a", poll=Poll(5, 1e300)))

    assert driver.run.deadlines[1] < 1e10
    driver.check()


def test_a_probe_that_is_not_true_when_its_run_is_cancelled_cancels_the_step() -> None:
    driver = Driver(step("a", poll=POLL), step("b", "a"))

    driver.give(inp.Cancel())
    driver.give(driver.outcome("a", status="cancelled"))

    assert driver.statuses() == {"a": "cancelled", "b": "cancelled"}
    assert driver.status() == "cancelled"
    driver.check()


def test_an_attempt_asked_for_in_the_decision_of_a_cancel_is_withdrawn() -> None:
    driver = Driver(step("a", retry=RetryPolicy(attempts=3, initial=3600)))

    driver.give(driver.failed("a"), inp.Cancel())

    assert driver.last.tasks == []
    assert driver.tasks == {}
    assert driver.statuses() == {"a": "cancelled"}
    assert driver.status() == "cancelled"
    driver.check()
