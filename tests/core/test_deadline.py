"""The deadline of a run: no attempt begins after it, what waits for anything fails; who has it run again lifts it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from tests.core.kit import Driver, step, undoable

from treadle.core import events as ev
from treadle.core import inputs as inp
from treadle.core.deadlines import is_awaited
from treadle.core.decide import Limits, decide, start
from treadle.core.events import Window
from treadle.core.plan import (
    Block,
    Body,
    Branch,
    Child,
    Choose,
    Const,
    Gather,
    Group,
    Holds,
    Phase,
    Phases,
    Poll,
    Predicate,
    Ref,
    RetryPolicy,
    SignalValue,
    Step,
    Undo,
)


def codes(driver: Driver) -> list[str]:
    return [event.failure.code for event in driver.seen(ev.StepFailed)]


def late(*blocks: Block, **more: object) -> Driver:
    """A run whose deadline is ten seconds after its start."""
    return Driver(*blocks, deadline=1010.0, **more)  # type: ignore[arg-type]  # as they are


def passes(driver: Driver) -> None:
    """The deadline passes: who decides the run looks at it, and the store takes back what nobody has claimed."""
    driver.now = 1010.0
    driver.give(inp.Look())
    driver.check()
    if taken := [number for number in driver.interrupted if number in driver.tasks]:
        driver.revoked(*(driver.tasks[number].address for number in taken))
    driver.check()


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


# -- what waits when it passes ---------------------------------------------------------------------------------------


def signalled() -> Driver:
    return late(step("a", signals=["go"]))


def argument() -> Driver:
    return late(step("a", slots={"x": SignalValue("go")}))


def conditioned() -> Driver:
    """Its condition reads what the signal brings."""
    return late(step("a", when=Predicate("p", {"x": SignalValue("go")})))


def asked() -> Driver:
    """A worker is asked for its condition."""
    return late(step("a", when=Predicate("p", {})))


def before() -> Driver:
    return late(step("a", break_before=["l"]), breakpoints=["l"])


def unclaimed() -> Driver:
    return late(step("a"))


def delayed() -> Driver:
    return late(step("a", delay=5))


def paused() -> Driver:
    driver = late(step("a"))
    driver.give(inp.Pause())
    return driver


def prepared() -> Driver:
    return late(step("a", undo=Undo("undo", prepare="prepare")))


def retried() -> Driver:
    driver = late(step("a", retry=RetryPolicy(attempts=9, initial=5)))
    driver.fail("a")
    return driver


WAITING = [signalled, argument, conditioned, asked, before, unclaimed, delayed, paused, prepared, retried]


@pytest.mark.parametrize("made", WAITING)
def test_what_waits_at_the_deadline_fails(made: Callable[[], Driver]) -> None:
    driver = made()

    passes(driver)

    assert driver.seen(ev.DeadlinePassed) == [ev.DeadlinePassed()]
    assert codes(driver) == ["deadline"]
    assert (driver.status(), driver.tasks, driver.hold) == ("failed", {}, 0)


@pytest.mark.parametrize("made", WAITING)
def test_nothing_happens_before_the_deadline(made: Callable[[], Driver]) -> None:
    driver = made()
    driver.now = 1009.9

    driver.give(inp.Look())

    assert (driver.last.events, driver.last.interrupts, driver.status()) == ([], (), "running")


@pytest.mark.parametrize("made", WAITING)
def test_a_run_that_waited_can_be_tried_again_without_a_deadline(made: Callable[[], Driver]) -> None:
    driver = made()
    passes(driver)

    driver.give(inp.Retry(at="a"))

    assert not is_awaited(driver.run)
    driver.give(inp.Look())
    assert driver.status() == "running"
    driver.check()


def test_what_needs_what_waited_is_skipped() -> None:
    driver = late(step("a", signals=["go"]), step("b", "a"), step("c", "a?"), step("d", after_any=("b",)))

    passes(driver)

    assert driver.statuses() == {"a": "failed", "b": "skipped", "c": "failed", "d": "failed"}


def test_what_is_held_after_a_breakpoint_fails() -> None:
    driver = late(step("a", break_after=["l"]), step("b", "a"), breakpoints=["l"])
    driver.succeed("a")

    passes(driver)

    assert driver.statuses() == {"a": "succeeded", "b": "failed"}


def test_no_breakpoint_after_a_step_holds_anything_after_the_deadline() -> None:
    driver = late(step("a", break_after=["l"]), step("b", "a"), breakpoints=["l"])
    driver.now = 1010.0
    driver.give(inp.Look())

    driver.succeed("a")

    assert driver.statuses() == {"a": "succeeded", "b": "failed"}
    driver.check()


def test_steps_that_waited_for_room_fail_in_as_many_decisions_as_it_takes() -> None:
    driver = late(*[step(f"s{n}") for n in range(9)], limits=Limits(dispatched=2, events=3))
    assert len(driver.tasks) == 2

    passes(driver)

    assert codes(driver) == ["deadline"] * 9
    assert driver.status() == "failed"


def test_a_state_that_was_loaded_in_the_middle_goes_on() -> None:
    driver = late(*[step(f"s{n}", signals=["go"]) for n in range(9)], limits=Limits(events=3))
    driver.now = 1010.0
    driver.give(inp.Look(), more=False)
    assert len(codes(driver)) == 3

    driver.run = driver.folded()
    driver.give(inp.Look(session="s"), cause="l")

    assert codes(driver) == ["deadline"] * 9
    assert len(driver.seen(ev.DeadlinePassed)) == 1


def test_optional_steps_fail_and_the_run_succeeds() -> None:
    driver = late(step("a"), step("b", optional=True, signals=["go"]))
    driver.succeed("a")

    passes(driver)

    assert (driver.statuses(), driver.status()) == ({"a": "succeeded", "b": "failed"}, "succeeded")


@pytest.mark.parametrize("outcome", ["succeeded", "failed", "cancelled", "lost"])
def test_an_attempt_that_runs_ends_as_its_worker_says(outcome: str) -> None:
    driver = late(step("a", retry=RetryPolicy(attempts=9)))
    driver.now = 1010.0
    driver.give(inp.Look())
    assert driver.interrupted == [driver.task("a").number]

    if outcome == "lost":
        driver.lose("a")
    else:
        driver.give(driver.outcome("a", status=outcome))

    # What was interrupted is late, as is what could only be made again.
    assert codes(driver) == [] if outcome == "succeeded" else codes(driver)[-1:] == ["deadline"]
    assert driver.status() == ("succeeded" if outcome == "succeeded" else "failed")
    driver.check()


def test_the_run_that_a_step_called_ends_by_itself() -> None:
    driver = late(Step(id="a", action="w", child=Child()), step("b", "a"))
    task = driver.task("a")
    assert task.call.deadline == 1010.0
    assert task.call.child is not None
    driver.tasks.pop(task.number)
    child = task.call.child.key
    driver.give(inp.ChildStarted(at="a", child=child, id="c", attempt=1))

    passes(driver)

    assert (driver.statuses(), driver.posts) == ({"a": "dispatched", "b": "waiting"}, [])
    driver.give(inp.ChildEnded(at="a", child=child, outcome="failed", failure=ev.Failure("deadline")))
    assert driver.statuses() == {"a": "failed", "b": "skipped"}
    driver.check()


# -- blocks ----------------------------------------------------------------------------------------------------------

BODY = Body(blocks=[step("x", signals=["never"])], output=Ref("x"))
BLOCKS: list[Block] = [
    Group(id="g", blocks=[step("x", signals=["never"])]),
    Gather(id="g", items=Const(0), body=BODY, limit=2),
    Gather(id="g", items=SignalValue("never"), body=BODY),
    Choose(id="g", branches=[Branch(id="b", when=Holds("true"), blocks=BODY.blocks)]),
    Choose(id="g", branches=[Branch(id="b", when=Holds("v", {"v": SignalValue("never")}), blocks=BODY.blocks)]),
    Phases(
        id="g", phases=[Phase(id="one", blocks=[step("x", signals=["never"])]), Phase(id="two", blocks=[step("x")])]
    ),
]


@pytest.mark.parametrize("block", BLOCKS)
def test_a_block_fails_whatever_it_or_its_content_waits_for(block: Block) -> None:
    driver = late(block, step("z", after=("g",)), constants=[[1, 2, 3]])

    passes(driver)

    assert (driver.status("g"), driver.status("z"), driver.status()) == ("failed", "skipped", "failed")


def test_a_row_is_not_tried_again_after_the_deadline() -> None:
    phase = Phase(id="one", blocks=[step("x", signals=["never"])], retry=RetryPolicy(attempts=3, initial=1))
    driver = late(Phases(id="p", phases=[phase]))

    passes(driver)

    assert driver.status() == "failed"
    assert not driver.tasks


# -- undo ------------------------------------------------------------------------------------------------------------


def test_what_was_done_is_undone_after_the_deadline() -> None:
    driver = late(undoable("a"), step("b", "a", signals=["go"]), on_failure="unwind")
    driver.succeed("a")

    passes(driver)

    assert driver.task("a").call.purpose == "undo"
    driver.finish()
    assert (driver.status(), driver.run.root.unwound) == ("failed", "fully")
    driver.check()


def test_the_deadline_leaves_an_undo_alone_that_waits_for_a_worker() -> None:
    rows = Phase(id="one", blocks=[undoable("x"), step("y", "x")], retry=RetryPolicy(attempts=2))
    driver = late(Phases(id="p", phases=[rows]), step("b", signals=["go"]))
    driver.succeed("p/one/x")
    driver.fail("p/one/y")
    assert driver.task("p/one/x").call.purpose == "undo"

    passes(driver)

    assert driver.interrupted == []
    assert driver.task("p/one/x").call.purpose == "undo"
    driver.finish()
    assert driver.status() == "failed"
    driver.check()


def test_a_run_that_is_paused_fails_and_its_undos_wait_for_the_resume() -> None:
    driver = late(undoable("a"), step("b", "a"), on_failure="unwind")
    driver.succeed("a")
    driver.give(inp.Pause())

    passes(driver)

    assert (driver.status(), bool(driver.hold)) == ("unwinding", True)
    driver.give(inp.Resume())
    driver.finish()
    assert (driver.status(), driver.run.root.unwound) == ("failed", "fully")


# -- runs in lines, windows, cancels ---------------------------------------------------------------------------------


def test_a_run_that_waits_for_its_turn_fails_and_leaves_the_line() -> None:
    driver = late(step("a"), begin=False)
    for run in (driver.run, driver.lean):
        decision = start(run, now=driver.now, limits=driver.limits, started=ev.RunStarted(singleton="n"), enters="line")
        if run is driver.run:
            driver.commit(decision)

    passes(driver)

    assert (codes(driver), driver.status()) == (["deadline"], "failed")
    assert driver.last.names == (("n", "leave"),)
    driver.give(inp.Turn(name="n"), cause="t")
    assert driver.status() == "failed"
    driver.check()


def test_nothing_is_compensated_in_a_run_that_never_had_its_turn() -> None:
    rows = [Phase(id="p0", blocks=[step("a", optional=True)], compensate="back"), Phase(id="p1", blocks=[step("b")])]
    block = Phases(id="f", phases=rows, compensations=[Phase(id="back", blocks=[step("c")])])
    driver = late(block, begin=False)
    for run in (driver.run, driver.lean):
        decision = start(run, now=driver.now, limits=driver.limits, started=ev.RunStarted(singleton="n"), enters="line")
        if run is driver.run:
            driver.commit(decision)

    passes(driver)

    assert (driver.waiting(), driver.status("f"), driver.status()) == ([], "failed", "failed")
    assert driver.last.names == (("n", "leave"),)
    driver.check()


def window() -> Driver:
    return late(
        Step(id="window", action="treadle:sleep", delay=5.0),
        Step(id="run", action="w", after=("window",), child=Child()),
        started=ev.RunStarted(window=Window("window:w", 5.0), trigger="t"),
    )


def test_the_deadline_closes_a_window() -> None:
    driver = window()
    driver.now = 1010.0

    driver.give(inp.Look())

    assert driver.last.names == (("window:w", "leave"),)
    driver.revoked("window")
    assert driver.statuses() == {"window": "failed", "run": "skipped"}
    driver.check()


def test_a_trigger_that_comes_with_the_deadline_is_for_the_next_window() -> None:
    driver = window()
    driver.now = 1010.0

    decision = driver.give(inp.Trigger(name="u", args=[]))

    assert decision.refusals[0].code == "window_closed"
    assert decision.names == (("window:w", "leave"),)
    driver.check()


@pytest.mark.parametrize("hard", [True, False])
def test_a_run_that_is_cancelled_has_no_deadline_any_more(hard: bool) -> None:
    driver = late(step("a"), step("b", "a"))
    driver.give(inp.Cancel(hard=hard))
    assert not is_awaited(driver.run)
    driver.now = 1010.0

    driver.give(inp.Look())

    assert (driver.last.events, driver.last.interrupts, driver.last.tasks) == ([], (), [])


def test_a_cancel_after_the_deadline_cancels_what_has_not_ended() -> None:
    driver = late(step("a"), step("b", "a"))
    driver.now = 1010.0
    driver.give(inp.Look())

    driver.give(inp.Cancel())
    driver.revoked()

    assert (driver.statuses(), driver.status()) == ({"a": "cancelled", "b": "cancelled"}, "cancelled")
    driver.check()


def test_whatever_comes_first_after_the_deadline_finds_that_it_has_passed() -> None:
    driver = late(step("a", signals=["go"]), step("b", signals=["stay"]))
    driver.now = 1010.0

    driver.signal("go")

    assert codes(driver) == ["deadline", "deadline"]
    driver.check()


def test_who_rewinds_the_run_as_the_deadline_passes_lifts_it() -> None:
    driver = late(step("a"), step("b", "a", signals=["go"]))
    driver.succeed("a")
    driver.now = 1010.0

    driver.give(inp.Rewind(at="a"))

    assert (codes(driver), driver.waiting()) == ([], ["a"])
    driver.check()


def test_nothing_is_taken_back_that_was_told_before_the_run_was_reopened() -> None:
    driver = late(step("a"), step("b", signals=["go"]))
    driver.now = 1010.0
    driver.give(inp.Look())
    driver.revoked("a")
    driver.give(inp.Retry())
    number = driver.task("a").number

    driver.give(inp.Revoked([number]), cause="again")

    assert driver.waiting() == ["a"]
    driver.check()


def test_a_journal_of_a_run_whose_deadline_nobody_passed_is_decided_as_before() -> None:
    driver = late(step("a", signals=["go"]))
    driver.now = 2000.0

    driver.signal("go")

    assert driver.status() == "failed"
    assert codes(driver) == ["deadline"]
    driver.check()


@pytest.mark.parametrize("most", range(1, 16))
def test_what_is_taken_back_while_its_scope_is_stopped_is_over(most: int) -> None:
    body = Body(blocks=[step("a"), step("w", signals=["never"])], output=Ref("a"))
    driver = late(Gather(id="g", items=Const(0), body=body), constants=[[1, 2, 3]], limits=Limits(events=most))
    driver.settle()
    driver.succeed("g[0]/a")
    driver.now = 1010.0

    # Its first item fails at once, and with it the gather, which stops the others.
    driver.give(inp.Look(), more=False)
    driver.revoked(*driver.waiting())

    assert (driver.status(), driver.run.tasks, driver.waiting()) == ("failed", 0, [])
    driver.check()


def test_only_the_decision_that_finds_the_deadline_passed_ends_attempts() -> None:
    driver = late(step("a"), step("b", signals=["go"]))
    driver.now = 1010.0
    assert driver.give(inp.Look()).interrupts == (driver.task("a").number,)

    assert decide(driver.folded(), [(inp.Look(), "")], now=1011.0, limits=driver.limits).interrupts == ()


def test_the_deadline_is_not_lifted_while_attempts_are_ended_by_it() -> None:
    driver = late(step("a"), step("b", delay=20))
    driver.now = 1010.0
    driver.give(inp.Look())

    assert driver.refused(inp.Retry()).code == "step_busy"
    assert driver.refused(inp.Rewind(at="b")).code == "step_busy"
    driver.revoked("a")
    driver.give(inp.Retry())

    assert driver.waiting() == ["a", "b"]
    driver.check()
