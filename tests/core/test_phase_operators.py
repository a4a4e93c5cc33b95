"""Phases again: rows that are tried again, what operators do to them, and cancels at any point."""

from __future__ import annotations

from typing import Any

import pytest
from tests.core.kit import Driver, step
from tests.core.test_detached import detached
from tests.core.test_phases import ADVANCE, PREDICATE, cell, flow, give, opened, place_of, row, rows, rule

from treadle.core import events as ev
from treadle.core import inputs as inp
from treadle.core.decide import Limits
from treadle.core.plan import (
    Const,
    Group,
    Phases,
    RetryPolicy,
    Rule,
)

# -- rows that are tried again ---------------------------------------------------------------------------------------


def retried(policy: RetryPolicy, *cells: Any) -> Driver:
    phases = [row("a", *(cells or (cell("x"), cell("y"))), retry=policy), *rows("b", policy="")]
    return Driver(Phases(id="f", phases=phases, state={"s": Const(0)}), constants=[0])


def test_a_failed_row_is_tried_again_as_its_next_entry() -> None:
    driver = retried(RetryPolicy(attempts=3, initial=0))
    give(driver, "f/a/x", s=5)
    driver.fail("f/a/y")
    told = place_of(driver.task("f/a#2/x"))
    assert (told["state"], told["entry"], told["step"]) == ({"s": 0}, 2, 0)
    driver.succeed("f/a#2/x")
    driver.fail("f/a#2/y")
    driver.succeed("f/a#3/x", "f/a#3/y")

    assert driver.waiting() == ["f/b/main"]
    assert [(event.entry, event.step, event.again) for event in driver.seen(ev.RowOpened)] == [
        (1, 0, False),
        (2, 0, True),
        (3, 0, True),
        (1, 1, False),
    ]
    driver.finish()
    assert driver.status() == "succeeded"
    driver.check()


def test_a_row_is_tried_so_often_and_no_more() -> None:
    driver = retried(RetryPolicy(attempts=2, initial=0))
    driver.fail("f/a/x")
    driver.revoked("f/a/y")
    driver.fail("f/a#2/x")
    driver.revoked()

    assert driver.status() == "failed"
    assert driver.seen(ev.RunSettled)[0].failures == ["f/a#2/x"]
    driver.check()


def test_the_next_try_waits_for_live_attempts_of_the_failed_row() -> None:
    driver = retried(RetryPolicy(attempts=2, initial=0))
    driver.fail("f/a/x")
    assert driver.status("f/a/y") == "cancelled"
    assert driver.waiting() == ["f/a/y"], "it is told to stop, and has not yet"

    driver.give(driver.outcome("f/a/y", status="cancelled"))

    assert driver.waiting() == ["f/a#2/x", "f/a#2/y"]
    driver.check()


@pytest.mark.parametrize(
    ("policy", "delays"),
    [
        (RetryPolicy(attempts=4, backoff="fixed", initial=2), [2, 2, 2]),
        (RetryPolicy(attempts=4, backoff="linear", initial=2), [2, 4, 6]),
        (RetryPolicy(attempts=4, backoff="exponential", initial=2), [2, 4, 8]),
        (RetryPolicy(attempts=4, backoff="exponential", initial=2, cap=5), [2, 4, 5]),
    ],
)
def test_the_delay_before_a_try_is_a_step_that_starts_late(policy: RetryPolicy, delays: list[float]) -> None:
    driver = retried(policy, cell("x"))
    for entry, delay in enumerate(delays, 1):
        driver.fail("f/a/x" if entry == 1 else f"f/a#{entry}/x")
        [task] = driver.tasks.values()
        assert task.action == "treadle:pass"
        assert task.address == ("f/~wait" if entry == 1 else f"f/~wait#{entry}")
        assert task.not_before == driver.now + delay
        driver.succeed(task.address)
    assert driver.waiting() == ["f/a#4/x"]
    driver.check()


def test_some_failures_are_not_tried_again() -> None:
    driver = retried(RetryPolicy(attempts=5, initial=0, never=("fatal",)), Group(id="g", blocks=[cell("x")]))
    driver.fail("f/a/g/x", code="other")
    driver.fail("f/a#2/g/x", code="fatal")

    assert driver.status() == "failed"


def test_tries_count_anew_when_a_phase_is_entered_again() -> None:
    phase = row("a", cell("x"), retry=RetryPolicy(attempts=2, initial=0), policy="go")
    driver = Driver(Phases(id="f", phases=[phase], policies={"go": (rule("r", "repeat", "n.step < 1"), ADVANCE)}))
    driver.fail("f/a/x")
    driver.succeed("f/a#2/x")
    driver.fail("f/a#3/x")

    assert driver.waiting() == ["f/a#4/x"]


def test_a_retry_does_not_use_up_rows() -> None:
    phase = row("a", cell("x"), retry=RetryPolicy(attempts=3, initial=0), policy="go")
    driver = Driver(Phases(id="f", phases=[phase], policies={"go": (ADVANCE,)}, step_limit=1))
    driver.fail("f/a/x")
    driver.succeed("f/a#2/x")

    assert driver.status() == "succeeded"


# -- operators -------------------------------------------------------------------------------------------------------


def test_a_retry_reopens_the_row_with_what_its_failure_had_cancelled() -> None:
    driver = Driver(
        Phases(id="f", phases=[row("a", cell("x"), cell("y"), step("z", "y")), *rows("b", policy="")]), step("end", "f")
    )
    driver.fail("f/a/y")
    driver.revoked()
    assert driver.status() == "failed"

    driver.give(inp.Retry("f/a/y"))

    assert {*driver.seen(ev.StepsReopened)[0].at} == {"f/a/x", "f/a/y", "f/a/z", "end"}
    driver.finish()
    assert driver.status() == "succeeded"
    assert opened(driver) == ["a", "b"]
    driver.check()


def test_a_retry_gives_the_row_its_tries_anew() -> None:
    driver = retried(RetryPolicy(attempts=2, initial=0), cell("x"))
    driver.fail("f/a/x", "f/a#2/x")
    assert driver.status() == "failed"

    driver.give(inp.Retry())
    driver.fail("f/a#2/x")

    assert driver.waiting() == ["f/a#3/x"]
    driver.check()


def test_only_the_newest_entry_of_a_row_is_retried() -> None:
    driver = retried(RetryPolicy(attempts=2, initial=0), cell("x"), cell("o", optional=True))
    driver.fail("f/a/o", "f/a/x", "f/a#2/x")
    driver.revoked()
    refusal = driver.refused(inp.Retry("f/a/x"))
    assert refusal.code == "not_applicable"
    assert "rewind 'f'" in refusal.message

    driver.give(inp.Retry())

    assert {*driver.seen(ev.StepsReopened)[0].at} == {"f/a#2/x", "f/a#2/o"}
    driver.finish()
    assert driver.status() == "succeeded"
    driver.check()


def test_a_retry_of_a_row_that_waits_for_its_next_try_is_refused() -> None:
    driver = retried(RetryPolicy(attempts=2, initial=5), cell("x"))
    driver.fail("f/a/x")

    refusal = driver.refused(inp.Retry("f/a/x"))

    assert refusal.code == "step_busy"
    assert "'f/~wait'" in refusal.message


def test_a_run_that_was_cancelled_between_two_tries_goes_on_in_place() -> None:
    driver = retried(RetryPolicy(attempts=2, initial=5), cell("x"))
    driver.fail("f/a/x")
    driver.give(inp.Cancel(hard=True))
    driver.revoked()
    assert driver.status() == "cancelled"
    assert driver.refused(inp.Retry("f/~wait")).code == "not_applicable"

    driver.give(inp.Retry())
    driver.finish()

    assert driver.status() == "succeeded"
    assert opened(driver) == ["a", "b"]
    driver.check()


def test_a_block_that_was_cancelled_between_two_rows_goes_on() -> None:
    driver = Driver(flow(Rule(id="p", move="advance", when=PREDICATE)), constants=[0])
    driver.succeed("f/a/main")
    driver.give(inp.Cancel())
    driver.succeed("f/~rule", result=True)
    assert driver.status() == "cancelled"

    driver.give(inp.Retry())
    driver.finish(lambda task: driver.outcome(task, True))

    assert driver.status() == "succeeded"
    assert opened(driver) == ["a", "b", "c"]
    driver.check()


def test_a_retried_cell_of_the_last_row_decides_anew() -> None:
    driver = Driver(
        Phases(
            id="f",
            phases=[row("a", cell("x", optional=True), policy="go")],
            policies={"go": (rule("r", "repeat", "s == 1"), ADVANCE)},
            state={"s": Const(0)},
        ),
        constants=[0],
    )
    driver.fail("f/a/x")
    assert driver.status() == "succeeded"

    driver.give(inp.Retry())
    give(driver, "f/a/x", s=1)

    assert driver.waiting() == ["f/a#2/x"]
    driver.check()


def test_a_detached_cell_is_retried_alone() -> None:
    driver = detached()
    driver.fail("f/a/bg")
    driver.succeed("f/a/main", "f/b/main", "z")
    assert driver.status() == "succeeded"

    driver.give(inp.Retry("f/a/bg"))

    assert driver.waiting() == ["f/a/bg"]
    driver.finish()
    assert driver.status() == "succeeded"
    driver.check()


def test_no_step_of_a_row_is_rewound_but_the_block_is() -> None:
    driver = Driver(step("u"), Phases(id="f", phases=rows("a", "b", policy="")), step("z", "f"))
    driver.finish()
    for at in ("f/a/main", "f/b/main", "f/a"):
        refusal = driver.refused(inp.Rewind(at))
        assert refusal.code == "not_applicable"
        assert "rewind 'f'" in refusal.message

    driver.give(inp.Rewind("f"))

    assert driver.seen(ev.StepsReopened)[0].restarted == ["f"]
    assert driver.waiting() == ["f#2/a/main"]
    assert place_of(driver.task("f#2/a/main"))["entry"] == 1
    driver.finish()
    assert driver.status() == "succeeded"
    assert driver.step("z").generation == 2
    assert driver.status("f/a/main") == "succeeded", "the entry before stays readable"
    driver.check()


def test_a_block_begins_anew_below_what_is_rewound() -> None:
    phases = [row("a", cell("main")), row("b", cell("main", "u"))]
    driver = Driver(step("u"), Phases(id="f", phases=phases), step("z", "f"))
    driver.finish()

    driver.give(inp.Rewind("u"))

    assert driver.waiting() == ["f#2/a/main", "u"]
    driver.finish()
    assert driver.status() == "succeeded"
    driver.check()


def test_a_block_that_is_under_way_is_not_rewound() -> None:
    driver = Driver(step("u"), Phases(id="f", phases=rows("a", policy=""), after=("u",)))
    driver.succeed("u")

    assert driver.refused(inp.Rewind("f")).code == "not_applicable"
    assert driver.refused(inp.Rewind("u")).code == "step_busy"
    driver.finish()


def test_a_block_that_failed_by_itself_is_rewound() -> None:
    driver = Driver(flow(rule("never", "stop", "s == 1")))
    driver.finish()
    refusal = driver.refused(inp.Retry())
    assert "rewind 'f'" in refusal.message

    driver.give(inp.Rewind("f"))
    give(driver, "f#2/a/main", s=1)

    assert driver.status() == "succeeded"
    driver.check()


# -- cancel and bounds -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("hard", [False, True])
@pytest.mark.parametrize("after", range(7))
@pytest.mark.parametrize("events", [1, 1000])
def test_a_cancel_at_any_point_ends_the_run_and_a_retry_finishes_it(hard: bool, after: int, events: int) -> None:
    phases = [row("a", cell("x"), cell("y"), policy="p"), row("b", cell("x"), policy="p")]
    policy = (Rule(id="p", move="advance", when=PREDICATE),)
    driver = Driver(
        Phases(id="f", phases=phases, policies={"p": policy}),
        step("z", "f"),
        limits=Limits(dispatched=1, events=events),
    )
    driver.settle()
    for _ in range(after):
        if driver.tasks:
            driver.give(driver.outcome(next(iter(driver.tasks.values())), True))

    driver.give(inp.Cancel(hard=hard))
    driver.finish(lambda task: driver.outcome(task, True))
    assert driver.status() in (["cancelled", "succeeded"] if after > 5 else ["cancelled"])
    driver.check()

    if driver.status() == "cancelled" and not driver.give(inp.Retry()).refusals:
        driver.finish(lambda task: driver.outcome(task, True))
        assert driver.status() == "succeeded"
    driver.check()


def test_a_pause_holds_tasks_and_changes_no_decision() -> None:
    driver = Driver(flow(ADVANCE))
    driver.give(inp.Pause())
    driver.succeed("f/a/main")
    assert driver.waiting() == ["f/b/main"]
    driver.give(inp.Resume())
    driver.finish()

    assert driver.status() == "succeeded"
