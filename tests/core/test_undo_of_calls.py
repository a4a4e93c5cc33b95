"""The undo of a step that calls a workflow: what the parent asks of its child, and what the child answers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from tests.core.kit import Driver, step, undoable
from tests.core.test_calls import KEY, call, ended, start_child, started
from tests.core.test_undo import PREPARED, undos

from treadle.core import events as ev
from treadle.core import inputs as inp
from treadle.core.commands import ChildRun
from treadle.core.events import Failure
from treadle.core.plan import Block, Phase, Phases
from treadle.core.undo import undo_of
from treadle.core.unwinding import undo_stack


class Family:
    """A parent whose step `a` has called a child; what they post to each other is delivered by `deliver`."""

    def __init__(self, *blocks: Block, child: tuple[Block, ...] = (undoable("x"),), **more: Any) -> None:
        self.parent = Driver(*(blocks or (call("a"), step("end", after_any=("a",)))), key=KEY, **more)
        value = started(self.parent)
        self.parent.give(value)
        self.child = Driver(*child, key=value.child, started=ev.RunStarted(parent=f"{KEY}/a"))

    def deliver(self) -> None:
        """Hand all posts over, until none is left."""
        drivers = {driver.key: driver for driver in (self.parent, self.child)}
        while any(driver.posts for driver in drivers.values()):
            for driver in drivers.values():
                posts, driver.posts = driver.posts, []
                for key, value in posts:
                    drivers[key].give(value, cause="post")

    def settle_child(self, *, fail: bool = False) -> None:
        self.child.finish(self.child.failed if fail else None)
        self.deliver()

    def ask(self, at: str = "a") -> inp.Unwind:
        """What the task of the parent's undo does: the child is asked, and the task ends."""
        task = self.parent.task(at)
        asked = task.call.child
        assert asked is not None
        assert task.call.purpose == "undo"
        question = inp.Unwind(number=asked.unwind, again=asked.again)
        self.child.give(question, cause="ask")
        del self.parent.tasks[task.number]
        self.parent.give(inp.ChildAsked(at=at, child=asked.key, attempt=task.attempt), cause="asked")
        return question

    def status(self) -> str:
        return undo_of(self.parent.step("a")).status

    def check(self) -> None:
        self.parent.check()
        self.child.check()


def unwinding(**more: Any) -> Family:
    """A family whose child has succeeded, and whose parent unwinds."""
    family = Family(on_failure="unwind", **more)
    family.settle_child()
    family.parent.fail("end")
    return family


def test_the_undo_of_a_call_unwinds_the_child_and_ends_with_it() -> None:
    family = unwinding()
    task = family.parent.task("a")
    assert task.action == "treadle:unwind"
    assert task.call.child == ChildRun(family.child.key, unwind=1, made=True)

    family.ask()

    assert family.parent.waiting() == []
    assert (family.parent.status(), family.status()) == ("unwinding", "running")
    assert (family.child.status(), family.child.waiting()) == ("unwinding", ["x"])
    family.child.succeed("x")
    family.deliver()
    assert family.status() == "undone"
    assert (family.parent.status(), family.parent.run.root.unwound) == ("failed", "fully")
    assert (family.child.status(), family.child.run.root.unwound) == ("succeeded", "fully")
    family.check()


def test_an_undo_waits_for_the_child_of_a_call_that_began_after_its_step_ended() -> None:
    blocks = (undoable("first"), call("a", "first"), step("end", after_any=("a",)))
    parent = Driver(*blocks, key=KEY, on_failure="unwind")
    parent.succeed("first")
    child = start_child(parent)
    parent.give(ended_undoable(child))
    parent.fail("end")

    assert parent.waiting() == ["a"]
    parent.give(inp.ChildUnwound(at="a", child=child, number=1, unwound="fully"))

    assert parent.waiting() == ["first"]
    parent.check()


def ended_undoable(child: str, outcome: str = "succeeded", at: str = "a") -> inp.ChildEnded:
    told = ended(child, outcome, at=at)
    return inp.ChildEnded(
        at=told.at, child=child, outcome=outcome, result=told.result, failure=told.failure, undoes=True
    )


def test_a_child_that_can_undo_nothing_is_not_asked() -> None:
    family = Family(child=(step("x"),), on_failure="unwind")
    family.settle_child()

    family.parent.fail("end")

    assert (family.parent.status(), family.parent.run.root.unwound) == ("failed", "")
    assert undo_stack(family.parent.run) == []
    family.check()


def test_a_child_that_has_done_nothing_says_so() -> None:
    family = Family(child=(step("x"), undoable("y", "x")), on_failure="unwind")
    family.settle_child(fail=True)
    family.parent.fail("end")

    family.ask()
    family.deliver()

    assert family.status() == "none"
    assert family.parent.seen(ev.UndoNotNeeded)
    assert family.parent.status() == "failed"
    assert undo_stack(family.parent.run) == []
    family.check()


def test_a_failed_child_is_unwound_as_well() -> None:
    family = Family(child=(undoable("x"), step("y", "x")), on_failure="unwind")
    family.child.succeed("x")
    family.settle_child(fail=True)
    assert family.parent.status("a") == "failed"
    family.parent.fail("end")

    family.ask()
    family.child.succeed("x")
    family.deliver()

    assert family.status() == "undone"
    family.check()


def test_a_child_that_has_unwound_itself_is_undone_already() -> None:
    saga = Phases(id="p", phases=[Phase(id="one", blocks=[undoable("x")]), Phase(id="two", blocks=[step("y")])])
    family = Family(child=(saga,), on_failure="unwind")
    family.child.succeed("p/one/x")
    family.child.fail("p/two/y")
    family.child.succeed("p/one/x")
    family.deliver()
    family.parent.fail("end")

    family.ask()
    family.deliver()

    assert family.status() == "undone"
    family.check()


def test_a_child_that_is_unwound_in_part_fails_the_undo_of_its_call() -> None:
    family = unwinding(child=(undoable("x"), undoable("y")))
    family.ask()

    family.child.fail("x")
    family.child.succeed("y")
    family.deliver()

    failure = undo_of(family.parent.step("a")).failure
    assert failure is not None
    assert failure.code == "child_partly_unwound"
    assert "the undo of 'x' is failed (it broke)" in failure.message
    assert (family.parent.status(), family.parent.run.root.unwound) == ("failed", "partly")
    family.check()


def test_a_child_without_a_way_back_has_none_for_its_parent() -> None:
    family = unwinding()
    family.ask()

    family.child.fail("x", code="not_compensable")
    family.deliver()

    assert family.status() == "not_compensable"


def test_a_retry_of_the_call_s_undo_retries_what_failed_in_the_child() -> None:
    family = unwinding()
    family.ask()
    family.child.fail("x")
    family.deliver()

    family.parent.give(inp.UndoStep("retry", "a"))
    question = family.ask()
    assert question.again
    family.child.succeed("x")
    family.deliver()

    assert family.status() == "undone"
    assert family.parent.run.root.unwound == "fully"
    family.check()


def test_a_lost_question_is_asked_again_and_its_answer_counts_once() -> None:
    family = unwinding()
    first = family.parent.task("a").call.child
    assert first is not None
    # The child is asked, and the session dies before the parent hears of it.
    family.child.give(inp.Unwind(number=first.unwind), cause="ask")
    family.parent.lose("a")
    family.child.succeed("x")
    family.deliver()
    assert family.status() == "running"

    family.ask()
    family.deliver()

    assert family.status() == "undone"
    family.check()


def test_a_child_that_was_cancelled_before_it_did_anything_answers_at_once() -> None:
    family = Family(child=(undoable("x", undo=PREPARED),))
    family.child.give(inp.Cancel(hard=True, unwind=True))
    family.parent.give(inp.Cancel(hard=True, unwind=True))
    family.deliver()
    family.child.revoked("x")
    assert (family.child.status(), family.status()) == ("cancelled", "running")

    family.ask()
    family.deliver()

    assert family.status() == "none"
    assert family.parent.status() == "cancelled"
    family.check()


def test_an_answer_that_is_quicker_than_the_report_of_the_question_counts() -> None:
    family = unwinding()
    task = family.parent.task("a")
    asked = task.call.child
    assert asked is not None
    family.child.give(inp.Unwind(number=asked.unwind), cause="ask")
    family.child.succeed("x")

    family.deliver()

    assert family.status() == "undone"
    assert family.parent.waiting() == []
    family.parent.give(inp.ChildAsked(at="a", child=asked.key, attempt=task.attempt), cause="late")
    assert family.status() == "undone"
    family.check()


def test_an_answer_to_another_question_is_not_heard() -> None:
    family = unwinding()
    family.ask()

    family.parent.give(inp.ChildUnwound(at="a", child=family.child.key, number=7, unwound="fully"), cause="c")

    assert family.status() == "running"


def test_the_worker_finds_no_run_that_was_ever_made() -> None:
    parent = Driver(call("a"), step("end"), key=KEY, on_failure="unwind")
    parent.fail("end")
    parent.give(inp.Cancel(hard=True, unwind=True))
    parent.give(parent.outcome("a", status="cancelled"))
    task = parent.task("a")
    assert task.call.child is not None
    assert not task.call.child.made

    parent.succeed("a")

    assert undo_of(parent.step("a")).status == "none"
    assert parent.status() == "cancelled"
    parent.check()


def test_the_worker_finds_that_the_child_was_deleted() -> None:
    family = unwinding()

    family.parent.fail("a", code="not_compensable")

    assert family.status() == "not_compensable"
    assert family.parent.run.root.unwound == "partly"


def test_a_child_that_goes_on_is_cancelled_and_unwound() -> None:
    family = Family(child=(undoable("x"), step("y", "x")), on_failure="unwind")
    family.child.succeed("x")
    family.settle_child(fail=True)
    family.child.give(inp.Retry())
    family.parent.fail("end")

    family.ask()
    assert family.child.interrupted
    family.child.give(family.child.outcome("y", status="cancelled"))
    family.child.succeed("x")
    family.deliver()

    assert family.child.status() == "cancelled"
    assert family.status() == "undone"
    family.check()


def test_a_child_that_an_operator_unwinds_just_now_answers_at_its_end() -> None:
    family = unwinding()
    family.child.give(inp.Undo())

    family.ask()
    family.child.succeed("x")
    family.deliver()

    assert family.status() == "undone"
    family.check()


@pytest.mark.parametrize("hard", [False, True])
def test_a_cancel_of_the_unwinding_parks_that_of_the_child(hard: bool) -> None:
    family = unwinding(child=(undoable("x"), undoable("y", "x")))
    family.ask()

    family.parent.give(inp.Cancel(hard=hard))
    family.deliver()
    family.child.give(family.child.outcome("y", status="cancelled" if hard else "succeeded"))
    family.deliver()

    assert undos(family.child) == {"x": "parked", "y": "parked" if hard else "undone"}
    assert family.status() == "parked"
    assert family.parent.status() == "failed"
    family.parent.give(inp.Undo())
    family.ask()
    family.child.finish()
    family.deliver()
    assert family.status() == "undone"
    family.check()


def _cancel_before_the_report(family: Family) -> None:
    task = family.parent.task("a")
    asked = task.call.child
    assert asked is not None
    family.child.give(inp.Unwind(number=asked.unwind), cause="ask")
    family.parent.give(inp.Cancel())
    del family.parent.tasks[task.number]
    family.parent.give(inp.ChildAsked(at="a", child=asked.key, attempt=task.attempt), cause="asked")


def _skip(family: Family) -> None:
    family.ask()
    family.parent.give(inp.UndoStep("skip", "a"))


@pytest.mark.parametrize(
    ("word", "status"), [(_cancel_before_the_report, "parked"), (_skip, "skipped")], ids=["cancel", "skip"]
)
def test_whoever_gives_the_undo_up_stops_the_child(word: Callable[[Family], None], status: str) -> None:
    family = unwinding(child=(undoable("x"), undoable("y", "x")))

    word(family)
    family.deliver()
    family.child.finish()
    family.deliver()

    assert family.status() == status
    assert family.child.status() == "succeeded"
    family.check()


def test_a_pause_of_the_unwinding_holds_the_child() -> None:
    family = unwinding()
    family.ask()

    family.parent.give(inp.Pause())
    family.deliver()
    assert family.child.hold
    family.parent.give(inp.Resume())
    family.deliver()
    assert not family.child.hold


def test_a_detached_child_is_left_alone() -> None:
    parent = Driver(call("a", detached=True), step("end"), key=KEY, on_failure="unwind")
    start_child(parent)

    parent.fail("end")

    assert parent.status() == "failed"
    assert undo_stack(parent.run) == []


def test_a_rewind_of_a_call_undoes_the_child_first() -> None:
    family = Family(call("a"))
    family.settle_child()

    family.parent.give(inp.Rewind("a"))
    family.ask()
    family.child.succeed("x")
    family.deliver()

    again = family.parent.task("a").call.child
    assert again is not None
    assert (again.unwind, again.key) != (0, family.child.key)
    assert family.parent.step("a").generation == 2
    family.check()


def test_a_row_whose_cell_calls_a_workflow_is_unwound_with_it_before_it_is_tried_again() -> None:
    driver = Driver(rows := Phases(id="p", phases=[Phase(id="one", blocks=[call("a"), step("b")])]), key=KEY)
    assert rows.phases[0].blocks
    child = start_child(driver, "p/one/a")
    driver.give(ended_undoable(child, at="p/one/a"))

    driver.fail("p/one/b")

    assert driver.task("p/one/a").action == "treadle:unwind"
    driver.give(inp.ChildUnwound(at="p/one/a", child=child, number=1, unwound="partly", failure=Failure("c", "m")))
    assert driver.status() == "failed"
    driver.check()
