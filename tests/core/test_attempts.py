"""Attempts: retry by policy and verdict, back-off, losses, delays, and reports that come twice or too late."""

from __future__ import annotations

import math

import pytest
from tests.core.kit import Driver, step

from treadle.core import events as ev
from treadle.core import inputs as inp
from treadle.core.decide import decide, start
from treadle.core.events import Failure
from treadle.core.plan import Predicate, RetryPolicy


def delays(policy: RetryPolicy, count: int) -> list[float]:
    return [policy.delay(failures) for failures in range(1, count + 1)]


def test_the_delays_of_each_backoff() -> None:
    assert delays(RetryPolicy(), 8) == [1, 2, 4, 8, 16, 32, 60, 60]
    assert delays(RetryPolicy(backoff="fixed", initial=3), 3) == [3, 3, 3]
    assert delays(RetryPolicy(backoff="linear", initial=2, cap=5), 3) == [2, 4, 5]
    assert delays(RetryPolicy(initial=0), 2) == [0, 0]
    assert RetryPolicy().delay(0) == 0
    assert RetryPolicy(factor=1e9, cap=7).delay(10**6) == 7


def test_jitter_takes_away_a_part_of_the_delay() -> None:
    policy = RetryPolicy(backoff="fixed", initial=10, jitter=0.5)

    assert policy.delay(1, 0.0) == 10
    assert policy.delay(1, 1.0) == 5


def test_an_attempt_is_repeated_as_the_policy_says() -> None:
    driver = Driver(step("a", retry=RetryPolicy(attempts=3, initial=2)))

    driver.fail("a")
    assert driver.task("a").not_before == driver.now + 2
    assert driver.task("a").attempt == 2
    driver.now += 10
    driver.fail("a")
    assert driver.task("a").not_before == driver.now + 4
    driver.fail("a")

    assert driver.status("a") == "failed"
    assert driver.step("a").failures == 3
    assert [event.attempt for event in driver.seen(ev.AttemptFailed)] == [1, 2]
    assert driver.seen(ev.StepFailed)[0].failure == Failure("boom", "it broke")
    driver.check()


def test_jitter_is_fixed_for_each_attempt_and_differs_between_them() -> None:
    policy = RetryPolicy(attempts=0, backoff="fixed", initial=10, jitter=1)

    def run() -> list[float]:
        driver = Driver(step("a", retry=policy))
        found = []
        for _ in range(4):
            driver.fail("a")
            found.append(driver.task("a").not_before)
        return found

    first = run()
    assert first == run()
    assert len(set(first)) == 4
    assert all(1000 <= when <= 1010 for when in first)


def test_attempts_without_end() -> None:
    driver = Driver(step("a", retry=RetryPolicy(attempts=0, initial=0)))

    for _ in range(50):
        driver.fail("a")

    assert driver.task("a").attempt == 51
    assert driver.task("a").not_before == 0


@pytest.mark.parametrize(
    ("policy", "verdict", "code", "again"),
    [
        (None, "", "boom", False),
        (None, "retry", "boom", True),
        (None, "final", "boom", False),
        (RetryPolicy(attempts=2), "", "boom", True),
        (RetryPolicy(attempts=2), "retry", "boom", True),
        (RetryPolicy(attempts=2), "final", "boom", False),
        (RetryPolicy(attempts=1), "retry", "boom", False),
        (RetryPolicy(attempts=2, never=("boom",)), "", "boom", False),
        (RetryPolicy(attempts=2, never=("boom",)), "retry", "boom", False),
        (RetryPolicy(attempts=2, never=("boom",)), "", "other", True),
    ],
)
def test_policy_and_verdict(policy: RetryPolicy | None, verdict: str, code: str, again: bool) -> None:
    driver = Driver(step("a", retry=policy))

    driver.fail("a", code=code, verdict=verdict)

    assert driver.status("a") == ("dispatched" if again else "failed")


def test_the_code_that_fails_may_say_when() -> None:
    driver = Driver(step("a", retry=RetryPolicy(attempts=2)))

    driver.fail("a", verdict="retry", delay=90.0)
    assert driver.task("a").not_before == driver.now + 90
    driver.fail("a", verdict="retry", delay=90.0)

    assert driver.status("a") == "failed", "within the step's attempts"


@pytest.mark.parametrize("delay", [0.0, -5.0, math.nan])
def test_a_delay_that_is_none_starts_at_once(delay: float) -> None:
    driver = Driver(step("a"))

    # Not through the inbox: JSON has no such number.
    outcome = driver.failed("a", verdict="retry", delay=delay)
    decision = decide(driver.run, [(outcome, "")], now=driver.now, limits=driver.limits)

    assert decision.tasks[0].not_before == 0


def test_no_delay_is_longer_than_json_can_say() -> None:
    driver = Driver(step("a"))

    driver.fail("a", verdict="retry", delay=1e300)

    assert driver.task("a").not_before < 1e10
    driver.check()


def test_a_failure_without_words_has_a_code() -> None:
    driver = Driver(step("a"))

    driver.give(driver.outcome("a", status="failed"))

    assert driver.seen(ev.StepFailed)[0].failure.code == "error"


def test_a_start_delay_is_in_the_task() -> None:
    driver = Driver(step("a"), step("b", "a", delay=30))

    driver.now += 5
    driver.succeed("a")

    assert driver.task("b").not_before == driver.now + 30
    assert driver.step("b").ready_at == driver.now


def test_lost_attempts_are_made_again_and_counted_apart() -> None:
    driver = Driver(step("a", lost_limit=3, retry=RetryPolicy(attempts=2, initial=0)))

    driver.lose("a")
    driver.lose("a")
    assert driver.task("a").attempt == 3
    driver.fail("a")
    assert driver.task("a").attempt == 4, "a loss is no failure"
    driver.lose("a")

    assert driver.status("a") == "failed"
    assert [event.failure.code for event in driver.seen(ev.StepFailed)] == ["lost"]
    assert driver.status() == "failed"
    driver.check()


def test_what_was_reported_is_kept() -> None:
    driver = Driver(step("a"))

    driver.give(driver.outcome("a", 1), cause="input-1")

    [done] = driver.seen(ev.StepSucceeded)
    assert (done.session, done.token, done.started_at, done.cause, done.result) == ("s1", 7, 1000.0, "input-1", "=1")


def test_a_report_that_comes_twice_or_names_another_attempt_changes_nothing() -> None:
    driver = Driver(step("a", retry=RetryPolicy(initial=0)), step("b", "a"))
    first = driver.task("a")
    driver.fail("a")
    for stale in (
        driver.outcome(first),
        driver.failed(first),
        inp.Lost(first.number, 1, first.attempt, "s"),
        inp.Lost(first.number, 9, 2, "s"),
        inp.Lost(0, 1, 1, "s"),
        inp.Lost(-1, 1, 1, "s"),
        inp.Lost(99, 1, 1, "s"),
        inp.Lost(first.number, 1, 0, "s"),
        inp.Outcome(first.number, 2, 2),
        inp.Outcome(99, 1, 1),
    ):
        assert driver.give(stale).events == []
    last = driver.outcome("a")
    driver.give(last)

    assert driver.give(last).events == []
    assert driver.waiting() == ["b"]


def test_an_inbox_input_that_changes_nothing_leaves_a_trace() -> None:
    driver = Driver(step("a"))
    done = driver.outcome("a")
    driver.give(done, cause="one")

    driver.give(done, cause="two")

    assert driver.events[-1] == ev.InputAccepted(cause="two")
    driver.check()


def test_a_look_changes_nothing_by_itself() -> None:
    driver = Driver(step("a"))

    assert driver.give(inp.Look("s"), cause="look:s").events == [ev.InputAccepted(cause="look:s")]
    assert driver.waiting() == ["a"]
    driver.check()


def test_many_outcomes_are_one_decision() -> None:
    driver = Driver(step("a"), step("b"), step("c", "a", "b"))

    decision = driver.give(driver.outcome("a"), driver.outcome("b"))

    assert [task.address for task in decision.tasks] == ["c"]
    assert decision.ended == [1, 2]
    assert [settled.node.address for settled in decision.settled] == ["a", "b"]


def test_journal_time_never_runs_backwards() -> None:
    driver = Driver(step("a"))
    driver.now -= 500

    driver.succeed("a")

    assert driver.run.now == 1000
    assert driver.step("a").finished_at == 1000


def test_an_attempt_that_was_interrupted_without_a_cancel_cancels_its_step() -> None:
    driver = Driver(step("a", retry=RetryPolicy()), step("b", "a"), step("c", after_any=("a",)))

    driver.give(driver.outcome("a", status="cancelled"))

    assert driver.statuses() == {"a": "cancelled", "b": "skipped", "c": "dispatched"}
    driver.finish()
    assert driver.status() == "failed", "b is mandatory and was skipped"


def test_no_step_starts_before_its_run_may() -> None:
    driver = Driver(step("a"), step("b", delay=5), step("c", "a", delay=5), step("d"), begin=False)
    opens = driver.now + 100

    driver.commit(start(driver.run, now=driver.now, limits=driver.limits, started=ev.RunStarted(not_before=opens)))

    assert [driver.task(name).not_before for name in ("a", "b", "d")] == [opens, opens + 5, opens]
    driver.now = opens + 10
    driver.succeed("a")
    assert driver.task("c").not_before == driver.now + 5
    driver.check()


def test_a_condition_is_not_asked_before_its_run_may_start() -> None:
    driver = Driver(step("a", when=Predicate("p")), begin=False)

    opens = ev.RunStarted(not_before=driver.now + 9)
    driver.commit(start(driver.run, now=driver.now, limits=driver.limits, started=opens))

    assert driver.task("a").not_before == driver.now + 9
    driver.check()
