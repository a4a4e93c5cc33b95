"""Every pair of a status and an event: what the tables allow happens, all else raises and changes nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from tests.core.kit import Driver, adding, digest, step

from treadle.core import events as ev
from treadle.core import inputs as inp
from treadle.core.apply import apply
from treadle.core.events import Failure
from treadle.core.plan import Group, Step, Undo
from treadle.core.state import RunState, ScopeState, StepState
from treadle.core.tables import (
    ATTEMPT,
    CANCELLED,
    DISPATCHED,
    FAILED,
    LOST,
    NONE,
    NOT_COMPENSABLE,
    NOTHING,
    OPEN,
    OUTCOMES,
    PARKED,
    PENDING,
    READY,
    RUN,
    RUNNING,
    SCOPE,
    SKIPPED,
    STEP,
    SUCCEEDED,
    TABLES,
    UNDO,
    UNDONE,
    UNWINDING,
    WAITING,
    Table,
    diagram,
    written_into,
)
from treadle.errors import InternalError

X = "a/x"
G = "a/g"
BOOM = Failure(code="boom")

STEP_EVENTS: dict[str, Callable[[RunState], ev.AnyEvent]] = {
    "evaluation_asked": lambda _: ev.EvaluationAsked(at=X),
    "condition_evaluated": lambda _: ev.ConditionEvaluated(at=X, value=True),
    "key_evaluated": lambda _: ev.KeyEvaluated(at=X, key="k"),
    "attempt_lost": lambda run: ev.AttemptLost(at=X, attempt=tasked(run)),
    "attempt_failed": lambda run: ev.AttemptFailed(at=X, attempt=tasked(run), failure=BOOM),
    "attempt_ended": lambda run: ev.AttemptEnded(at=X, attempt=tasked(run), outcome="succeeded"),
    "steps_ready": lambda _: ev.StepsReady(at=[X]),
    "step_dispatched": lambda _: ev.StepDispatched(at=X),
    "prepare_dispatched": lambda _: ev.PrepareDispatched(at=X),
    "step_prepared": lambda run: ev.StepPrepared(at=X, attempt=tasked(run), state="=1"),
    "child_started": lambda run: ev.ChildStarted(at=X, attempt=tasked(run), child="c"),
    "step_succeeded": lambda run: ev.StepSucceeded(at=X, attempt=tasked(run)),
    "step_failed": lambda run: ev.StepFailed(at=X, attempt=tasked(run), failure=BOOM),
    "step_skipped": lambda _: ev.StepSkipped(at=X, reason="upstream"),
    "step_cancelled": lambda _: ev.StepCancelled(at=X),
    "steps_reopened": lambda _: ev.StepsReopened(at=[X]),
    "steps_added": lambda _: ev.StepsAdded(by="a", into="a", blocks=[Step(id="x", action="act")]),
    "trigger_received": lambda _: ev.TriggerReceived(at=X, name="t", args=[]),
}
SCOPE_EVENTS: dict[str, ev.AnyEvent] = {
    "scope_opened": ev.ScopeOpened(at=G),
    **{f"scope_settled:{outcome}": ev.ScopeSettled(at=G, outcome=outcome) for outcome in sorted(OUTCOMES)},
    "steps_reopened": ev.StepsReopened(at=[], scopes=[G]),
    "unwinding_started": ev.UnwindingStarted(at=G),
    "unwound": ev.Unwound(at=G),
    "steps_added": ev.StepsAdded(by="a", into="a", blocks=[Group(id="g")]),
}
RUN_EVENTS: dict[str, ev.AnyEvent] = {
    "run_started": ev.RunStarted(),
    "steps_added": ev.StepsAdded(by="a", into="a", blocks=[Step(id="n", action="act")]),
    "cancel_requested": ev.CancelRequested(),
    "paused": ev.Paused(hold=3),
    "resumed": ev.Resumed(),
    "name_taken": ev.NameTaken(name="n"),
    "turn_came": ev.TurnCame(name="n"),
    "deadline_passed": ev.DeadlinePassed(),
    **{f"run_settled:{outcome}": ev.RunSettled(outcome=outcome) for outcome in sorted(OUTCOMES)},
    "steps_reopened": ev.StepsReopened(at=[]),
    "unwinding_started": ev.UnwindingStarted(),
    "unwinding_parked": ev.UnwindingParked(),
    "unwound": ev.Unwound(),
}
UNDO_EVENTS: dict[str, Callable[[StepState], ev.AnyEvent]] = {
    "unwinding_started": lambda _: ev.UnwindingStarted(again=True),
    "undo_dispatched": lambda _: ev.UndoDispatched(at="x", number=2),
    "undo_confirmed": lambda step: ev.UndoConfirmed(at="x", number=-step.tasked),
    "undo_attempt_failed": lambda step: ev.UndoAttemptFailed(at="x", number=-step.tasked, failure=BOOM),
    "undo_attempt_lost": lambda step: ev.UndoAttemptLost(at="x", number=-step.tasked),
    "step_undone": lambda step: ev.StepUndone(at="x", number=-step.tasked),
    "undo_failed": lambda _: ev.UndoFailed(at="x", failure=BOOM),
    "undo_not_compensable": lambda _: ev.UndoNotCompensable(at="x", failure=BOOM),
    "undo_skipped": lambda _: ev.UndoSkipped(at="x", reason="drift"),
    "undo_parked": lambda _: ev.UndoParked(at="x"),
    "undo_reopened": lambda _: ev.UndoReopened(at="x"),
}


def tasked(run: RunState) -> int:
    found = run.step_at(X)
    assert found is not None
    return found.tasked


def added_by_a() -> RunState:
    """A run whose step `a` runs and has added a step that waits for a signal, and an empty group that waits for it."""
    driver = Driver(step("a"))
    undo = Undo(action="undo", prepare="prepare")
    blocks = (step("x", signals=("never",), undo=undo), Group(id="g", after=("x",)))
    driver.give(inp.AddSteps(driver.task("a").number, adding(*blocks)[0]))
    return driver.run


def step_in(status: str, kind: str) -> RunState:
    """A run whose step has this status, with the kind of attempt under way that the event speaks of."""
    run = added_by_a()
    evaluating = kind == "attempt_lost" and status in (WAITING, READY)
    live = kind == "attempt_ended"
    path: dict[str, list[ev.AnyEvent]] = {
        WAITING: [],
        READY: [ev.StepsReady(at=[X])],
        DISPATCHED: [ev.StepDispatched(at=X)],
        SUCCEEDED: [ev.StepDispatched(at=X), ev.StepSucceeded(at=X, attempt=1)],
        FAILED: [ev.StepDispatched(at=X), ev.StepFailed(at=X, attempt=1, failure=BOOM)],
        SKIPPED: [ev.StepSkipped(at=X, reason="upstream")],
        CANCELLED: [ev.StepDispatched(at=X), ev.StepCancelled(at=X, live=live)],
    }
    if kind == "step_prepared" and status == DISPATCHED:
        path[DISPATCHED] = [ev.PrepareDispatched(at=X)]
    for event in path[status]:
        apply(run, event)
    if evaluating:
        apply(run, ev.EvaluationAsked(at=X))
    if kind in ("step_dispatched", "prepare_dispatched") and status == DISPATCHED:
        apply(run, ev.AttemptFailed(at=X, attempt=1, failure=BOOM))
    found = run.step_at(X)
    assert found is not None
    found.removed = kind == "steps_added"
    return run


def check(run: RunState, table: Table, before: str, kind: str, event: ev.AnyEvent, status: Callable[[], str]) -> None:
    facts = digest(run)
    if (before, kind) in table:
        apply(run, event)

        assert status() == table[before, kind]
    else:
        with pytest.raises(InternalError):
            apply(run, event)

        assert digest(run) == facts


@pytest.mark.parametrize("kind", STEP_EVENTS)
@pytest.mark.parametrize("before", [WAITING, READY, DISPATCHED, *sorted(OUTCOMES)])
def test_a_step_goes_by_its_table(before: str, kind: str) -> None:
    run = step_in(before, kind)
    found = run.step_at(X)
    assert found is not None

    check(run, STEP, before, kind, STEP_EVENTS[kind](run), lambda: found.status)


def attempt_cases() -> list[tuple[bool, str, str]]:
    """(whether it is an evaluation, the attempt's status, kind of event); not what speaks of the next attempt."""
    kinds = sorted({kind for _, kind in ATTEMPT})
    steps = [(False, before, kind) for before in (RUNNING, SUCCEEDED, FAILED, LOST, CANCELLED) for kind in kinds]
    beginnings = ("step_dispatched", "evaluation_asked")
    return [
        case
        for case in steps
        if case[2] not in ("condition_evaluated", "key_evaluated")
        and not (case[2] in beginnings and case[1] in (FAILED, LOST))
    ] + [(True, RUNNING, kind) for kind in kinds if kind not in ("step_succeeded", "attempt_failed", "child_started")]


@pytest.mark.parametrize(("evaluation", "before", "kind"), attempt_cases())
def test_an_attempt_goes_by_its_table(evaluation: bool, before: str, kind: str) -> None:
    run = added_by_a()
    apply(run, ev.EvaluationAsked(at=X) if evaluation else ev.StepDispatched(at=X))
    live = tasked(run)
    ends: dict[str, list[ev.AnyEvent]] = {
        RUNNING: [],
        SUCCEEDED: [ev.StepSucceeded(at=X, attempt=live)],
        FAILED: [ev.AttemptFailed(at=X, attempt=live, failure=BOOM)],
        LOST: [ev.AttemptLost(at=X, attempt=live)],
        CANCELLED: [ev.StepCancelled(at=X, live=True)],
    }
    for event in ends[before]:
        apply(run, event)
    found = run.step_at(X)
    assert found is not None
    attempt = found.tasked or live
    named: dict[str, ev.AnyEvent] = {
        "attempt_lost": ev.AttemptLost(at=X, attempt=attempt),
        "attempt_failed": ev.AttemptFailed(at=X, attempt=attempt, failure=BOOM),
        "attempt_ended": ev.AttemptEnded(at=X, attempt=attempt, outcome="failed"),
        "step_succeeded": ev.StepSucceeded(at=X, attempt=attempt),
        "step_failed": ev.StepFailed(at=X, attempt=attempt, failure=BOOM),
        "child_started": ev.ChildStarted(at=X, attempt=attempt, child="c"),
    }
    event = named[kind] if kind in named else STEP_EVENTS[kind](run)
    facts = digest(run)

    if (before, kind) in ATTEMPT:
        apply(run, event)
        assert not found.tasked
    else:
        with pytest.raises(InternalError):
            apply(run, event)
        assert digest(run) == facts


@pytest.mark.parametrize("kind", SCOPE_EVENTS)
@pytest.mark.parametrize("before", [OPEN, *sorted(OUTCOMES)])
def test_a_scope_goes_by_its_table(before: str, kind: str) -> None:
    run = added_by_a()
    if before != OPEN:
        apply(run, ev.ScopeSettled(at=G, outcome=before))
    if kind == "unwound" and before != SKIPPED:
        apply(run, ev.UnwindingStarted(at=G))
    scope = run.at(G)
    assert isinstance(scope, ScopeState)
    scope.removed = kind == "steps_added"

    check(run, SCOPE, before, kind, SCOPE_EVENTS[kind], lambda: scope.status)


@pytest.mark.parametrize("kind", RUN_EVENTS)
@pytest.mark.parametrize("before", [NOTHING, RUNNING, SUCCEEDED, FAILED, CANCELLED, UNWINDING])
def test_a_run_goes_by_its_table(before: str, kind: str) -> None:
    driver = Driver(step("a"), begin=before != NOTHING)
    run = driver.run
    if kind.startswith("run_settled") or before not in (NOTHING, RUNNING):
        # Only a run whose steps have settled settles.
        apply(run, ev.StepSucceeded(at="a", attempt=1)) if before != NOTHING else None
    if before in OUTCOMES:
        apply(run, ev.RunSettled(outcome=before))
    if before == UNWINDING:
        apply(run, ev.UnwindingStarted())
        if kind.startswith("run_settled") or kind in ("unwinding_started", "steps_reopened"):
            apply(run, ev.Unwound())

    check(run, RUN, before, kind, RUN_EVENTS[kind], lambda: run.status)


@pytest.mark.parametrize("kind", UNDO_EVENTS)
@pytest.mark.parametrize("before", [NONE, PENDING, RUNNING, UNDONE, FAILED, NOT_COMPENSABLE, SKIPPED, PARKED])
def test_an_undo_goes_by_its_table(before: str, kind: str) -> None:
    driver = Driver(step("a"), Step(id="x", action="act", undo=Undo(action="undo"), signals=("never",)))
    run = driver.run
    apply(run, ev.StepDispatched(at="x"))
    apply(run, ev.StepSucceeded(at="x", attempt=1))
    apply(run, ev.StepSucceeded(at="a", attempt=1))
    unwinding: list[ev.AnyEvent] = [ev.UnwindingStarted(), ev.UndoDispatched(at="x")]
    path: dict[str, list[ev.AnyEvent]] = {
        NONE: [],
        PENDING: unwinding[:1],
        RUNNING: unwinding,
        UNDONE: [*unwinding, ev.StepUndone(at="x", number=1)],
        FAILED: [*unwinding, ev.UndoFailed(at="x", failure=BOOM)],
        NOT_COMPENSABLE: [*unwinding, ev.UndoNotCompensable(at="x", failure=BOOM)],
        SKIPPED: [*unwinding, ev.UndoSkipped(at="x", reason="operator")],
        PARKED: [*unwinding, ev.UndoParked(at="x")],
    }
    for event in path[before]:
        apply(run, event)
    if kind == "undo_dispatched" and before == RUNNING:
        apply(run, ev.UndoAttemptFailed(at="x", number=1, failure=BOOM))
    over = kind == "unwinding_started" and before not in (NONE, PENDING, RUNNING)
    if over:
        apply(run, ev.Unwound())
        apply(run, ev.RunSettled(outcome=SUCCEEDED))
    found = run.step_at("x")
    assert found is not None
    assert found.undo is not None
    undo = found.undo
    if kind == "unwinding_started" and before == UNDONE:
        # It takes on nothing that is undone.
        apply(run, ev.UnwindingStarted(again=True))
        assert undo.status == UNDONE
        return

    check(run, UNDO, before, kind, UNDO_EVENTS[kind](found), lambda: undo.status)


@pytest.mark.parametrize(
    "event",
    [
        ev.StepsReady(at=["nobody"]),
        ev.StepsReady(at=["a/"]),
        ev.ScopeOpened(at="nobody"),
        ev.ScopeOpened(at="a"),
        ev.ScopeOpened(at="a/"),
        ev.ScopeSettled(at="a/", outcome="succeeded"),
        ev.ScopeSettled(at="", outcome="succeeded"),
        ev.RunSettled(outcome="succeeded"),
        ev.StepsAdded(by="a", into="nowhere", blocks=[]),
        ev.StepsAdded(by="nobody", into="", blocks=[]),
        ev.StepsAdded(by="a", into="a", blocks=[Group(id="x")]),
        ev.StepsReopened(at=["nobody"]),
        ev.StepsReopened(at=["a"]),
        ev.StepsReopened(at=[], removed=["a"]),
        ev.StepsReopened(at=[], removed=["nobody"]),
        ev.StepsReopened(at=[], scopes=["nobody"]),
        ev.StepSucceeded(at="a", attempt=2),
        ev.AttemptFailed(at="a", attempt=2, failure=BOOM),
        ev.AttemptLost(at="a", attempt=2),
        ev.PrepareDispatched(at="a"),
        ev.StepPrepared(at="a", attempt=-1),
        ev.UnwindingStarted(at="nobody"),
        ev.UnwindingStarted(to="nobody"),
        ev.Unwound(),
        ev.UndoDispatched(at="a"),
    ],
    ids=repr,
)
def test_an_event_that_names_what_is_not_there_changes_nothing(event: ev.AnyEvent) -> None:
    run = added_by_a()
    before = digest(run)

    with pytest.raises(InternalError):
        apply(run, event)

    assert digest(run) == before


def test_a_step_that_is_executed_is_not_reopened_and_one_with_an_evaluation_is_not_skipped() -> None:
    run = step_in(CANCELLED, "attempt_ended")
    with pytest.raises(InternalError, match="being executed"):
        apply(run, ev.StepsReopened(at=[X]))

    run = step_in(WAITING, "attempt_lost")
    for event in (ev.StepSkipped(at=X, reason="upstream"), ev.EvaluationAsked(at=X, number=2)):
        with pytest.raises(InternalError, match="no such attempt"):
            apply(run, event)


def test_an_undo_has_one_attempt_and_belongs_to_an_unwinding() -> None:
    driver = Driver(Step(id="x", action="act", undo=Undo(action="undo")), Group(id="g"))
    driver.succeed("x")
    driver.give(inp.Undo())
    run = driver.run

    for event, match in (
        (ev.UndoDispatched(at="x", number=2), "being executed"),
        (ev.StepUndone(at="x", number=7), "no such attempt"),
        (ev.UnwindingStarted(), "being unwound already"),
        (ev.UnwindingStarted(at="g"), "not allowed below it"),
        (ev.RunSettled(outcome="succeeded"), "being unwound"),
    ):
        with pytest.raises(InternalError, match=match):
            apply(run, event)

    driver.fail("x")
    with pytest.raises(InternalError, match="in no scope that is being unwound"):
        apply(run, ev.UndoReopened(at="x"))


def test_every_diagram_shows_every_transition() -> None:
    for name, table in TABLES.items():
        text = diagram(name)

        assert text.startswith("stateDiagram-v2\n")
        for (source, event), target in table.items():
            [line] = [line for line in text.splitlines() if f"    {source or '[*]'} --> {target}: " in line]
            assert event.replace(":", " ") in line


def test_a_page_without_a_place_for_a_diagram_is_refused() -> None:
    with pytest.raises(ValueError, match="run table"):
        written_into("no markers here")


PAGE = Path(__file__).resolve().parents[2] / "docs" / "architecture.md"


def test_the_diagrams_of_the_architecture_page_are_drawn_from_the_tables() -> None:
    page = PAGE.read_text(encoding="utf-8")

    assert written_into(page) == page, "run `python -m tests.core.test_tables` to draw them anew"


if __name__ == "__main__":
    PAGE.write_text(written_into(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
