"""Windows: a run takes triggers until its timer is over, by the order of its journal."""

from __future__ import annotations

from typing import Any

from tests.core.kit import Driver

from treadle.core import events as ev
from treadle.core import inputs as inp
from treadle.core.plan import Child, Const, Ref, Step, Triggers
from treadle.core.values import Window


def opened(*, size: int = 0, period: float = 5.0, timeout: float = 0.0, name: str = "t0") -> Driver:
    work: dict[str, Any] = {"items": Triggers()} if size else {"a": Const(0), "b": Const(1)}
    return Driver(
        Step(id="window", action="treadle:sleep", delay=timeout if size else period),
        Step(id="run", action="w", slots=work, after=("window",), child=Child()),
        output=Ref("run"),
        constants=["first"] if size else ["first", 1],
        started=ev.RunStarted(window=Window("window:w", period, timeout, size), trigger=name),
    )


def sent(driver: Driver, name: str, *args: str, keep: bool = False, cause: str = "") -> Any:
    return driver.give(inp.Trigger(name=name, args=list(args), keep=keep), cause=cause)


def test_a_window_opens_with_its_first_trigger_and_holds_both_names() -> None:
    driver = opened()

    assert driver.last.names == (("window:w", "take"), ("trigger:window:w/t0", "take"))
    assert driver.task("window").not_before == 1005.0


def test_a_trigger_without_a_name_leaves_none() -> None:
    assert opened(name="").last.names == (("window:w", "take"),)


def test_each_trigger_puts_the_timer_off_and_the_last_one_counts() -> None:
    driver = opened()
    driver.now = 1003.0
    sent(driver, "t1", '="second"', "=2", keep=True)

    assert driver.last.names == (("trigger:window:w/t1", "note"),)
    task = driver.task("window")
    assert (task.attempt, task.not_before) == (2, 1008.0)
    driver.succeed("window")
    assert driver.last.names == (("window:w", "leave"),)
    assert driver.task("run").call.args == {"a": '="second"', "b": "=2"}
    driver.check()


def test_the_timer_is_never_put_off_beyond_the_timeout() -> None:
    driver = opened(timeout=7.0)
    driver.now = 1004.0
    sent(driver, "t1", "=0", "=0")

    assert driver.task("window").not_before == 1007.0
    driver.now = 1020.0
    sent(driver, "late", "=0", "=0")
    assert driver.task("window").not_before == driver.run.now


def test_an_outcome_of_a_timer_that_was_put_off_counts_for_nothing() -> None:
    driver = opened()
    late = driver.outcome("window")
    sent(driver, "t1", "=1", "=2")

    driver.give(late)

    assert driver.task("window").attempt == 2
    driver.check()


def test_a_trigger_that_comes_twice_counts_once() -> None:
    driver = opened()
    sent(driver, "t1", "=1", "=2")

    again = sent(driver, "t1", "=3", "=4", cause="c")

    assert again.events == [ev.InputAccepted(cause="c")]
    assert again.names == ()


def test_triggers_that_are_decided_together_leave_one_timer() -> None:
    driver = opened()

    driver.give(inp.Trigger(name="t1", args=["=1", "=1"]), inp.Trigger(name="t2", args=["=2", "=2"]))

    assert driver.task("window").attempt == 3
    driver.succeed("window")
    assert driver.task("run").call.args == {"a": "=2", "b": "=2"}
    driver.check()


def test_a_batch_begins_when_it_is_full() -> None:
    driver = opened(size=3, timeout=9.0)
    sent(driver, "t1", "=1")
    assert driver.task("window").attempt == 1
    assert driver.task("window").not_before == 1009.0

    sent(driver, "t2", "=2")

    assert driver.last.names == (("window:w", "leave"),)
    assert driver.args("run") == {"items": ["first", 1, 2]}
    driver.check()


def test_a_batch_begins_when_its_time_is_over() -> None:
    driver = opened(size=3, timeout=9.0)
    sent(driver, "t1", "=1")

    driver.succeed("window")

    assert driver.args("run") == {"items": ["first", 1]}


def test_a_closed_window_takes_no_trigger() -> None:
    driver = opened()
    driver.succeed("window")

    assert driver.refused(inp.Trigger(name="t1", args=["=1", "=2"])).code == "window_closed"


def test_a_window_that_is_run_again_takes_no_trigger() -> None:
    driver = opened(size=2, timeout=9.0)
    sent(driver, "t1", '="second"')
    driver.succeed("run")
    driver.give(inp.Rewind("window", keep=True))

    assert driver.status("window") == "dispatched"
    assert driver.refused(inp.Trigger(name="t2", args=['="third"'])).code == "window_closed"
    driver.succeed("window")
    assert driver.last.names == ()
    assert driver.args("run") == {"items": ["first", "second"]}
    driver.check()


def test_a_cancelled_window_gives_its_name_back() -> None:
    driver = opened()

    driver.give(inp.Cancel())

    assert ("window:w", "leave") in driver.last.names
    assert driver.refused(inp.Trigger(name="t1", args=["=1", "=2"])).code == "window_closed"


def test_a_trigger_after_a_cancel_in_one_decision_is_refused() -> None:
    driver = opened()

    decision = driver.give(inp.Cancel(hard=True), inp.Trigger(name="t1", args=["=1", "=2"]))

    assert decision.refusals[1].code == "window_closed"
    driver.check()


def test_a_run_without_a_window_takes_no_trigger() -> None:
    driver = Driver(Step(id="a", action="act"))

    assert driver.refused(inp.Trigger(name="t1", args=[])).code == "window_closed"


def test_triggers_come_while_the_run_is_paused() -> None:
    driver = opened()
    driver.give(inp.Pause())

    sent(driver, "t1", "=1", "=2")

    assert driver.hold
    assert driver.task("window").attempt == 2
