"""Runs in the lines of names: they wait for their turn, leave when they are closed, and come again when reopened."""

from __future__ import annotations

from tests.core.kit import Driver, step

from treadle.core import events as ev
from treadle.core import inputs as inp
from treadle.core.decide import decide, start
from treadle.core.events import Failure
from treadle.core.plan import Block, Undo

NAMED = ev.RunStarted(singleton="n")
TURN = inp.Turn(name="n")


def waiting(*blocks: Block) -> Driver:
    """A run that is behind another one."""
    driver = Driver(*blocks, begin=False)
    for run in (driver.run, driver.lean):
        decision = start(run, now=driver.now, limits=driver.limits, started=NAMED, enters="line")
        if run is driver.run:
            driver.commit(decision)
    return driver


def test_the_first_run_of_a_name_starts_and_leaves_in_its_last_append() -> None:
    driver = Driver(step("a"), started=NAMED)
    assert driver.last.names == (("n", "take"),)

    driver.succeed("a")

    assert driver.last.names == (("n", "leave"),)
    assert driver.run.status == "succeeded"


def test_a_run_without_steps_takes_and_leaves_a_name_in_one_append() -> None:
    driver = Driver(started=NAMED)

    assert driver.last.names == (
        ("n", "take"),
        ("n", "leave"),
    )


def test_a_run_that_waits_starts_nothing_before_its_turn() -> None:
    driver = waiting(step("a"))
    assert driver.last.names == (("n", "line"),)
    assert not driver.tasks
    assert driver.run.status == "running"
    driver.give(inp.Signal(name="s"))
    assert not driver.tasks

    driver.give(TURN, cause="t")

    assert [task.address for task in driver.tasks.values()] == ["a"]
    assert driver.events[-2] == ev.TurnCame(name="n", cause="t")
    driver.check()


def test_a_turn_that_comes_twice_changes_nothing() -> None:
    driver = waiting(step("a"))
    driver.give(TURN, cause="t")

    again = driver.give(TURN, cause="u")

    assert again.events == [ev.InputAccepted(cause="u")]


def test_a_cancelled_run_waits_no_more_and_leaves_the_line() -> None:
    driver = waiting(step("a"), step("b", after=("a",)))

    driver.give(inp.Cancel(hard=True))

    assert driver.run.status == "cancelled"
    assert driver.last.names == (("n", "leave"),)
    assert driver.give(TURN, cause="t").events == [ev.InputAccepted(cause="t")]
    driver.check()


def test_a_paused_run_keeps_its_place_and_its_turn() -> None:
    driver = waiting(step("a"))
    driver.give(inp.Pause())

    driver.give(TURN, cause="t")

    assert driver.hold
    assert [task.address for task in driver.tasks.values()] == ["a"]


def test_a_run_holds_its_name_until_its_last_attempt_has_ended() -> None:
    driver = Driver(step("a"), started=NAMED)
    task = driver.task("a")
    driver.give(inp.Cancel(hard=True))
    assert driver.run.status == "cancelled"
    assert not driver.last.names

    driver.give(inp.Outcome(number=task.number, generation=1, attempt=1, status="cancelled"))

    assert driver.last.names == (("n", "leave"),)


def test_a_reopened_run_waits_for_its_turn_again() -> None:
    driver = Driver(step("a"), started=NAMED)
    driver.fail("a")
    assert driver.last.names == (("n", "leave"),)

    driver.give(inp.Retry())

    assert driver.last.names == (("n", "line"),)
    assert not driver.tasks
    driver.give(TURN, cause="t")
    assert [task.address for task in driver.tasks.values()] == ["a"]
    driver.check()


def test_a_retry_that_changes_nothing_enters_no_line() -> None:
    driver = Driver(step("a"), started=NAMED)
    driver.succeed("a")

    driver.give(inp.Signal(name="late"))

    assert driver.last.names == ()


def test_one_that_is_reopened_and_cancelled_together_comes_and_goes() -> None:
    driver = Driver(step("a"), started=NAMED)
    driver.fail("a")

    driver.give(inp.Retry(), inp.Cancel())

    assert driver.run.status == "cancelled"
    assert driver.last.names == (
        ("n", "line"),
        ("n", "leave"),
    )
    assert not driver.run.awaits


def test_the_undo_of_a_closed_run_waits_for_its_turn() -> None:
    driver = Driver(step("a", undo=Undo(action="undo", prepare="prepare")), started=NAMED)
    while driver.tasks:
        driver.succeed(next(iter(driver.tasks.values())).address)

    driver.give(inp.Undo())
    assert driver.last.names == (("n", "line"),)
    assert not driver.tasks

    driver.give(TURN, cause="t")
    assert len(driver.tasks) == 1


def test_a_running_run_takes_a_further_name() -> None:
    driver = Driver(step("a"))

    driver.give(inp.TakeName(name="id:x"), cause="c")

    assert driver.last.names == (("id:x", "line"),)
    assert driver.events[-1] == ev.NameTaken(name="id:x", cause="c")
    assert driver.give(inp.TakeName(name="id:x")).names == ()
    driver.succeed("a")
    assert driver.last.names == (("id:x", "leave"),)


def test_a_closed_run_takes_no_name() -> None:
    driver = Driver(step("a"))
    driver.succeed("a")

    decision = decide(driver.run, [(inp.TakeName(name="id:x"), "")], now=1.0, limits=driver.limits)

    assert decision.names == ()
    assert decision.refusals[0].code == "run_not_active"


def test_a_cancelled_run_takes_a_name_while_its_attempts_go_on() -> None:
    driver = Driver(step("a"))
    task = driver.task("a")
    driver.give(inp.Cancel(hard=True))

    driver.give(inp.TakeName(name="id:x"))
    assert driver.last.names == (("id:x", "line"),)

    failure = Failure(code="late")
    driver.give(inp.Outcome(number=task.number, generation=1, attempt=1, status="failed", failure=failure))
    assert driver.last.names == (("id:x", "leave"),)
    driver.check()
