"""Signals, breakpoints and the pause: fences that do not know of each other."""

from __future__ import annotations

from itertools import permutations

import pytest
from tests.core.kit import Driver, adding, step

from treadle.core import events as ev
from treadle.core import inputs as inp
from treadle.core.plan import Group, ListOf, Ref, SignalValue

# -- signals ---------------------------------------------------------------------------------------------------------


def test_a_signal_starts_the_step_that_waits_for_it_and_no_other() -> None:
    driver = Driver(step("a", signals=("go",)), step("free"), step("b", slots={"x": SignalValue("ok")}))

    assert driver.waiting() == ["free"]
    driver.signal("ok", [1])
    assert driver.args("b") == {"x": [1]}
    driver.signal("go")

    assert driver.waiting() == ["a", "b", "free"]
    driver.check()


def test_a_step_waits_for_all_its_signals_each_named_once() -> None:
    value = ListOf([SignalValue("b"), SignalValue("a")])
    driver = Driver(step("s", signals=("a",), slots={"x": value}))

    assert driver.step("s").node.signals == ("a", "b")
    driver.signal("a", 1)
    assert driver.waiting() == []
    driver.signal("b", 2)

    assert driver.args("s") == {"x": [2, 1]}


def test_the_first_signal_of_a_name_stays() -> None:
    driver = Driver(step("a"), step("b", "a", slots={"x": SignalValue("s")}))
    driver.signal("s", "first")

    again = driver.give(inp.Signal("s", '="second"'))
    driver.succeed("a")

    assert again.events == []
    assert driver.args("b")["x"] == "first"


def test_a_signal_may_come_before_its_step_exists() -> None:
    driver = Driver(step("a"))
    driver.signal("s", 5)

    driver.succeed("a", added=adding(step("x", slots={"v": SignalValue("s")})))

    assert driver.args("a/x") == {"v": 5}


def test_a_signal_that_comes_too_late_is_refused() -> None:
    driver = Driver(step("a"))
    driver.give(inp.Cancel())
    assert driver.refused(inp.Signal("s")).status == "cancelling"
    driver.finish()

    refusal = driver.refused(inp.Signal("s"))

    assert (refusal.code, refusal.status) == ("run_not_active", "cancelled")
    assert "cancelled" in refusal.message


def test_a_signal_needs_a_name_which_may_be_any_text() -> None:
    names = ["meta", "a.step.b", "🦜 and spaces", "x", "a/b#2[3]~%", "\n"]
    driver = Driver(*[step(f"s{n}", signals=(name,)) for n, name in enumerate(names)])

    assert driver.refused(inp.Signal("")).code == "usage"
    for name in names:
        driver.signal(name)

    assert len(driver.waiting()) == len(names)
    driver.check()


# -- breakpoints -----------------------------------------------------------------------------------------------------


def test_a_breakpoint_holds_only_where_its_label_is_armed() -> None:
    driver = Driver(step("a", break_before=("red", "blue")), step("b", break_before=("green",)), breakpoints=["blue"])

    assert driver.waiting() == ["b"]
    assert driver.seen(ev.BreakpointReached) == [
        ev.BreakpointReached(at="a", position="before", labels=("red", "blue"))
    ]
    assert driver.give(inp.Release("green")).events == []
    driver.give(inp.Release("red"))

    assert driver.waiting() == ["a", "b"], "any of its labels releases it, not only the armed one"
    driver.check()


def test_a_breakpoint_is_reached_when_what_the_step_needs_is_there() -> None:
    driver = Driver(step("a", break_after=("red",)), step("b", "a", break_before=("red",)), breakpoints=["red"])

    driver.give(inp.Release("red"))
    assert driver.seen(ev.BreakpointReleased) == []
    driver.succeed("a")
    assert [event.position for event in driver.seen(ev.BreakpointReached)] == ["after"]
    driver.give(inp.Release("red"))

    assert driver.seen(ev.BreakpointReleased)[0].after == ["a"]
    assert driver.seen(ev.BreakpointReleased)[0].before == [], "b had not arrived at its own"
    assert driver.status("b") == "waiting"
    driver.give(inp.Release("red"))
    assert driver.waiting() == ["b"]


def test_before_and_after_are_two_stops() -> None:
    driver = Driver(step("a", break_before=("red",), break_after=("red",)), step("b", "a"), breakpoints=["red"])

    driver.give(inp.Release("red"))
    assert driver.waiting() == ["a"]
    driver.succeed("a", result=42)
    assert driver.waiting() == []
    assert driver.step("a").result == "=42", "the result is there while the dependents are held"
    driver.give(inp.Release("red"))

    assert driver.args("b") == {"p0": 42}
    assert driver.give(inp.Release("red")).events == []


def test_a_breakpoint_after_holds_direct_dependents_of_a_success_only() -> None:
    driver = Driver(
        step("a", break_after=("red",)),
        step("ref", "a"),
        step("order", after=("a",)),
        step("any", after_any=("a",)),
        step("default", "a?"),
        Group(id="g", blocks=[step("x")], after=("a",)),
        constants=[0],
        breakpoints=["red"],
    )
    driver.succeed("a")
    assert driver.waiting() == []

    driver.give(inp.Release("red"))

    assert driver.waiting() == ["any", "default", "g/x", "order", "ref"]
    failing = Driver(step("a", break_after=("red",)), step("b", after_any=("a",)), breakpoints=["red"])
    failing.fail("a")
    assert failing.waiting() == ["b"]


def test_a_skip_passes_through_a_step_that_stands_at_a_breakpoint() -> None:
    driver = Driver(step("a"), step("b", "a", break_before=("red",)), step("c", "b"), breakpoints=["red"])

    driver.fail("a")

    assert driver.status("c") == "skipped"
    assert driver.seen(ev.BreakpointReached) == []


def test_a_leaf_holds_nobody_and_a_final_run_has_nothing_to_release() -> None:
    driver = Driver(step("a", break_after=("red",)), breakpoints=["red"])

    driver.succeed("a")

    assert driver.status() == "succeeded"
    assert driver.give(inp.Release("red")).events == []


def test_a_release_goes_on_once_and_leaves_the_label_armed() -> None:
    driver = Driver(step("a", break_before=("red",)), step("b", "a", break_before=("red",)), breakpoints=["red"])

    driver.give(inp.Release("red"))
    driver.succeed("a")

    assert driver.waiting() == []
    driver.give(inp.Release("red"))
    assert driver.waiting() == ["b"]


def test_an_added_step_stops_at_an_armed_label() -> None:
    driver = Driver(step("a"), breakpoints=["later"])

    driver.succeed("a", added=adding(step("x", break_before=("later",))))

    assert driver.waiting() == []
    driver.give(inp.Release("later"))
    assert driver.waiting() == ["a/x"]


@pytest.mark.parametrize("order", list(permutations(["signal", "release", "need", "resume"])))
def test_no_fence_releases_another(order: tuple[str, ...]) -> None:
    driver = Driver(
        step("a"), step("b", after=("a",), signals=("s",), break_before=("red",)), breakpoints=["red"]
    )  # fmt: skip
    driver.give(inp.Pause())
    # A release counts only where the step has arrived.
    released_early = order.index("release") < order.index("need")

    for what in order:
        assert "b" not in driver.waiting() or driver.hold
        match what:
            case "signal":
                driver.signal("s")
            case "release":
                driver.give(inp.Release("red"))
            case "need":
                driver.succeed("a")
            case _:
                driver.give(inp.Resume())

    if released_early:
        assert "b" not in driver.waiting()
        driver.give(inp.Release("red"))
    assert driver.waiting() == ["b"]
    assert len([event for event in driver.seen(ev.StepDispatched) if event.at == "b"]) == 1
    driver.check()


# -- pause -----------------------------------------------------------------------------------------------------------


def test_a_pause_is_a_number_for_the_store_and_decides_nothing() -> None:
    driver = Driver(step("a"), step("b", "a"))

    paused = driver.give(inp.Pause())
    assert paused.hold == driver.run.hold == 2
    driver.succeed("a")
    assert driver.waiting() == ["b"], "its task waits in the store, where the hold stands"
    resumed = driver.give(inp.Resume())

    assert (resumed.hold, driver.run.hold) == (0, 0)
    driver.check()


def test_only_a_running_run_pauses_and_only_a_paused_one_resumes() -> None:
    driver = Driver(step("a"))
    refusal = driver.refused(inp.Resume())
    assert (refusal.code, refusal.status) == ("run_not_paused", "running")
    driver.give(inp.Pause())
    refusal = driver.refused(inp.Pause())
    assert (refusal.code, refusal.status) == ("run_not_running", "paused")
    assert "run-1" in refusal.message
    driver.give(inp.Cancel())
    assert driver.refused(inp.Pause()).status == "cancelling"
    assert driver.refused(inp.Resume()).status == "cancelling"
    driver.finish()

    assert driver.refused(inp.Pause()).status == "cancelled"
    assert driver.refused(inp.Resume()).status == "cancelled"


def test_a_run_that_ends_while_it_is_paused_is_held_no_longer() -> None:
    driver = Driver(step("a"))
    driver.give(inp.Pause())

    driver.succeed("a")

    assert driver.status() == "succeeded"
    assert driver.last.hold == driver.run.hold == 0
    driver.check()


def test_a_refusal_of_an_inbox_input_is_in_the_journal() -> None:
    driver = Driver(step("a"))

    decision = driver.give(inp.Resume(), cause="input-9")

    refusal = decision.refusals[0]
    assert decision.events == [ev.InputRefused(code="run_not_paused", message=refusal.message, cause="input-9")]


def test_a_value_of_a_signal_may_be_a_ref_of_another_step_too() -> None:
    driver = Driver(step("a"), step("b", slots={"x": ListOf([Ref("a"), SignalValue("s")])}))
    driver.signal("s", 2)
    driver.succeed("a", result=1)

    assert driver.args("b") == {"x": [1, 2]}
