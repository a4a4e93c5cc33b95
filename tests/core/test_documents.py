"""Stored forms: plans by content, events and inputs as JSON."""

from __future__ import annotations

from typing import get_args

import msgspec
import pytest
from tests.core.kit import adding, step

from treadle.core import events as ev
from treadle.core import inputs as inp
from treadle.core.events import Failure, decode_events, encode_events
from treadle.core.inputs import decode_input, encode_input
from treadle.core.plan import (
    Child,
    Const,
    Group,
    ListOf,
    MapOf,
    Placement,
    Plan,
    Poll,
    Predicate,
    Ref,
    RetryPolicy,
    SignalValue,
    Undo,
    decode_plan,
    encode_plan,
    plan_hash,
)

FULL = step(
    "a",
    slots={"v": ListOf([Const(0), MapOf({"k": Ref("b", path=("x", 1), default=0)}), SignalValue("s")])},
    after=("b",),
    after_any=("c",),
    when=Predicate("p", {"x": Const(0)}),
    retry=RetryPolicy(never=("x",)),
    placement=Placement("here"),
    poll=Poll(2.5, 60.0),
    child=Child(detached=True),
    dedup="k",
    annotations={"a": "b"},
    timeout=1.5,
    signals=("s",),
    break_before=("l",),
    break_after=("l",),
    undo=Undo("u", prepare="p", reconcile="r", resource="disk"),
)

EVENTS: list[ev.AnyEvent] = [
    ev.RunStarted(at="x", not_before=1.5, depth=2, parent="k/a", on_failure="unwind"),
    ev.StepsAdded(by="a", into="", blocks=[FULL, Group(id="g", blocks=[FULL])], constants=["=1"], aliases={"x": "y"}),
    ev.StepsReady(at=["a", "b"]),
    ev.StepDispatched(at="a", attempt=2, generation=3, not_before=4.5, deadline=9.5),
    ev.ChildStarted(at="a", attempt=2, child="k", id="r/a", session="s", token=7, started_at=1.5),
    ev.PrepareDispatched(at="a", number=2, generation=3, not_before=4.5),
    ev.StepPrepared(at="a", attempt=-2, state="@d", session="s", token=7, started_at=1.5),
    ev.StepSucceeded(at="a", attempt=1, result="@d", session="s", token=7, started_at=1.5),
    ev.StepSucceeded(at="a", attempt=1, patch={"k": "=1"}, items=ev.Items(3, 2, ("@a", "@b"))),
    ev.AttemptFailed(at="a", attempt=1, failure=Failure("c", "m", "t", "@d"), session="s", token=7, started_at=1.5),
    ev.AttemptLost(at="a", attempt=-1, session="s"),
    ev.AttemptEnded(at="a", attempt=1, outcome="failed", session="s"),
    ev.StepFailed(at="a", attempt=1, failure=Failure("c"), session="s", token=7, started_at=1.5),
    ev.StepSkipped(at="a", reason="upstream", causes=["b"], by_condition=True),
    ev.StepCancelled(at="a", live=True),
    ev.EvaluationAsked(at="a", number=2),
    ev.ConditionEvaluated(at="a", value=False),
    ev.KeyEvaluated(at="a", key="k"),
    ev.NameTaken(name="n", waits=True),
    ev.TurnCame(name="n"),
    ev.DeadlinePassed(),
    ev.TriggerReceived(at="a", name="t", args=["=1"], attempt=2, not_before=4.5),
    ev.SignalReceived(name='"\n🦜', value='={"x":"\\u0000"}'),
    ev.BreakpointReached(at="a", position="before", labels=("l",)),
    ev.BreakpointReleased(label="l", before=["a"], after=["b"]),
    ev.Paused(hold=3),
    ev.Resumed(),
    ev.CancelRequested(hard=True, unwind=True),
    ev.StepsReopened(at=["a"], rewind=True, removed=["b"], scopes=["g"]),
    ev.ScopeOpened(at="g"),
    ev.ScopeSettled(at="g", outcome="skipped", causes=["a"], by_condition=True),
    ev.ScopeSettled(at="g", outcome="failed", failure=Failure("c")),
    ev.ScopeStopped(at="g", reason="failed"),
    ev.ScopeAsked(at="p", what="rule", number=2, index=1, delay=0.5),
    ev.RowOpened(at="p", phase="a/b", step=3, entry=2, again=True),
    ev.DecisionMade(at="p", step=3, move="loop_back", policy="x", rule="r", target="a/b", overwritten=["k"]),
    ev.IterationsOpened(at="g", start=250, count=3),
    ev.IterationsSettled(at="g", indexes=[3, 250]),
    ev.BranchChosen(at="c", branch="b"),
    ev.RunSettled(
        outcome="failed", result=ev.ArgList([ev.ArgMap({"k": ev.Pick("=1", ("a", 1))}), "@d"]), missing=["a"]
    ),
    ev.UnwindingStarted(at="g", reason="failed", to="a", only="b", again=True, rewind="c"),
    ev.UndoDispatched(at="a", number=2, check=True, not_before=4.5),
    ev.UndoConfirmed(at="a", number=2),
    ev.UndoAttemptFailed(at="a", number=2, failure=Failure("c"), session="s"),
    ev.UndoAttemptLost(at="a", number=2, session="s"),
    ev.StepUndone(at="a", number=2, session="s", started_at=1.5),
    ev.UndoFailed(at="a", failure=Failure("c"), session="s"),
    ev.UndoNotCompensable(at="a", failure=Failure("c"), session="s"),
    ev.UndoSkipped(at="a", reason="drift"),
    ev.UndoParked(at="a", reason="cancel"),
    ev.UndoReopened(at="a"),
    ev.UnwindingAsked(number=2),
    ev.ChildAsked(at="a", number=2, session="s"),
    ev.UndoNotNeeded(at="a"),
    ev.CompensationOpened(at="p/one", phase="back", entry=2),
    ev.PhaseCompensated(at="p/one"),
    ev.UnwindingParked(hard=True),
    ev.Unwound(at="g", fully=False),
    ev.InputRefused(code="c", message="m", cause="i"),
    ev.InputAccepted(note="n", cause="i"),
]

INPUTS: list[inp.AnyInput] = [
    inp.Outcome(1, 2, 3, status="failed", failure=Failure("c"), verdict="retry", delay=2.5, added=tuple(adding(FULL))),
    inp.Lost(1, 2, -3, "s"),
    inp.ChildStarted(at="a", child="k", id="r/a", detached=True, lease=7, session="s", started_at=1.5),
    inp.ChildEnded(at="a", child="k", outcome="failed", result="=1", failure=Failure("c")),
    inp.Unwind(number=3, again=True),
    inp.ChildAsked(at="a", child="k", attempt=-3, session="s"),
    inp.ChildUnwound(at="a", child="k", number=3, unwound="partly", failure=Failure("c")),
    inp.Revoked([1, 2]),
    inp.AddSteps(1, adding(FULL, constants=["c"], into="g")[0], 2, 3),
    inp.Look("s"),
    inp.Signal("s", "=1"),
    inp.TakeName("n"),
    inp.Turn("n"),
    inp.Trigger("t", ["=1"], keep=True),
    inp.Pause(),
    inp.Resume(),
    inp.Cancel(hard=True, unwind=True),
    inp.Release("l"),
    inp.Retry("a"),
    inp.Rewind("a", keep=True),
    inp.Undo("a"),
    inp.UndoStep("park", "a"),
]


def test_every_kind_of_event_survives_the_journal() -> None:
    assert {type(event) for event in EVENTS} == set(get_args(ev.AnyEvent))

    assert decode_events(encode_events(EVENTS)) == EVENTS


def test_every_field_of_an_event_survives_with_its_cause() -> None:
    for event in EVENTS:
        caused = msgspec.structs.replace(event, cause="input-1")
        [again] = decode_events(encode_events([caused]))
        assert again == caused
        assert ev.kind_of(again) in encode_events([caused])


def test_an_unknown_kind_stops_the_load() -> None:
    with pytest.raises(msgspec.ValidationError):
        decode_events('[{"kind":"step_teleported","at":"a"}]')


def test_every_input_survives_the_inbox() -> None:
    assert {type(value) for value in INPUTS} == set(get_args(inp.AnyInput))

    for value in INPUTS:
        assert decode_input(encode_input(value)) == value


def test_equal_plans_have_equal_names() -> None:
    plan = Plan(workflow="w", blocks=[FULL, Group(id="g", blocks=[FULL])], output=Ref("a"))
    stored = encode_plan(plan)

    assert decode_plan(stored) == plan
    assert plan_hash(encode_plan(decode_plan(stored))) == plan_hash(stored)
    assert plan_hash(encode_plan(Plan(workflow="v", blocks=[]))) != plan_hash(stored)
