"""What follows from the end of an attempt: its outcome, its loss, or that a cancel took it back unstarted.

An attempt is live while the step's `tasked` names it. Whatever speaks of another one is a repetition or comes too
late, and changes nothing. An attempt that a cancel left behind is still live; its report is kept as evidence.
"""

from __future__ import annotations

from treadle.core import events as ev
from treadle.core import inputs as inp
from treadle.core.additions import added_events
from treadle.core.advance import reach
from treadle.core.apply import step_succeeded
from treadle.core.commands import Refusal
from treadle.core.deadlines import LATE, fail_late, is_late
from treadle.core.decision import Decision
from treadle.core.dispatching import dispatch
from treadle.core.effects import Given
from treadle.core.events import Failure
from treadle.core.progress import PhasesProgress
from treadle.core.resolve import phases_around, truth_of, value_of
from treadle.core.retrying import DEFAULT_RETRY, due_at, fraction_of, may_retry
from treadle.core.state import RunState, StepState
from treadle.core.tables import CANCELLED, DISPATCHED, OUTCOMES, RUNNING, SUCCEEDED
from treadle.core.undo_attempts import undo_lost, undo_outcome, undo_revoked, undo_runs


def outcome(run: RunState, decision: Decision, value: inp.Outcome, cause: str) -> Refusal | None:
    """A worker reported the end of an attempt."""
    number, attempt, states = value.number, value.attempt, run.states
    step = states[number] if 0 <= number < len(states) else None
    if type(step) is not StepState or step.tasked != attempt or not attempt or step.generation != value.generation:
        return None
    if isinstance(decision.ended, list):
        # Here, since it is for every step of a fan.
        decision.ended.append(number)
    else:
        decision.end(number)
    if attempt > 0 and value.status == SUCCEEDED and step.status == DISPATCHED:
        # What is asked for the sake of a condition or an undo has a number below zero.
        _succeeded(run, decision, step, value, cause)
    elif undo_runs(step):
        undo_outcome(run, decision, step, value, cause)
    elif step.status in OUTCOMES:
        _ended(run, decision, step, value.status, value.session, cause)
    elif value.status == CANCELLED and is_late(run, step):
        _fail(run, decision, step, value, LATE, cause)
    elif value.status == CANCELLED:
        event = ev.StepCancelled(at=step.node.address, progress=_reported(value), cause=cause)
        decision.settle(run, step, event)
    elif value.attempt < 0 and step.status != DISPATCHED:
        _evaluated(run, decision, step, value, cause)
    elif value.status == SUCCEEDED and value.attempt < 0:
        _prepared(run, decision, step, value, cause)
    else:
        _failed(run, decision, step, value, cause)
    return None


def _reported(value: inp.Outcome | inp.Lost) -> str:
    """What an attempt reported last; the questions and halves that are asked beside attempts report to nobody."""
    return value.progress if value.attempt > 0 else ""


def _ended(run: RunState, decision: Decision, step: StepState, how: str, session: str, cause: str) -> None:
    event = ev.AttemptEnded(at=step.node.address, attempt=step.tasked, outcome=how, session=session, cause=cause)
    decision.record(run, event)


def _bring(run: RunState, decision: Decision, step: StepState, value: inp.Outcome, cause: str) -> Failure | None:
    """Take what a success brings beside its result; else why the attempt fails for it."""
    if value.added:
        if run.status != RUNNING:
            # A detached cell outlived its run.
            return Failure(code="run_not_active", message=f"the run is {run.status}; no step can be added")
        added = added_events(run, step, value.added, cause, value.worker)
        if isinstance(added, Failure):
            return added
        decision.reopen(added.revived)
        for event in added.events:
            decision.record(run, event)
    if value.patch and (refused := _patch_refused(run, step)) is not None:
        return refused
    effects = value.effects
    if value.writes or (effects is not None and effects.records):
        records = effects.records if effects is not None else ()
        decision.given += (Given(value.lease, step.node.address, records, value.writes),)
    return None


def _succeeded(run: RunState, decision: Decision, step: StepState, value: inp.Outcome, cause: str) -> None:
    if value.added or value.patch or value.writes or value.effects is not None:
        failure = _bring(run, decision, step, value, cause)
        if failure is not None:
            _fail(run, decision, step, value, failure, cause)
            return
    # The most frequent event: by position, and `worker` as by `new_worker`.
    succeeded = ev.StepSucceeded(
        step.node.address,
        value.attempt,
        value.result,
        value.session,
        value.lease,
        value.started_at,
        value.patch,
        value.items,
        value.effects,
        "" if run.workers.get(value.session) == value.worker else value.worker,
        cause=cause,
    )
    decision.events.append(succeeded)
    step_succeeded(run, step, succeeded)
    decision.settled.append(step)
    if step.holding:
        reach(run, decision, step, "after", step.spec.break_after)


def _prepared(run: RunState, decision: Decision, step: StepState, value: inp.Outcome, cause: str) -> None:
    """The undo state is known: the step may act, unless its run is being cancelled, or its scope stopped."""
    event = ev.StepPrepared(
        at=step.node.address,
        attempt=value.attempt,
        state=value.result,
        session=value.session,
        token=value.lease,
        started_at=value.started_at,
        cause=cause,
    )
    decision.record(run, event)
    if run.cancelling or step.around.stopping:
        decision.settle(run, step, ev.StepCancelled(at=step.node.address))
    else:
        dispatch(run, decision, step, 0.0)


def _patch_refused(run: RunState, step: StepState) -> Failure | None:
    """Why a step may not set variables, if so."""
    found = phases_around(run, step.node)
    if found is None or found[1] is None:
        return Failure(code="no_state", message="a state patch is for cells; no Phases block is around this step")
    if found[1].takes_back is not None:
        return Failure(code="compensation_patch", message="a compensating phase reads the state and sets no variables")
    progress, row = found[0].block, found[1]
    assert isinstance(progress, PhasesProgress)
    around = step.around
    while around is not row:
        if around is around.around:
            return Failure(
                code="detached_patch", message="a detached cell cannot return state patch: nobody waits for it"
            )
        around = around.around
    return None


def _failed(run: RunState, decision: Decision, step: StepState, value: inp.Outcome, cause: str) -> None:
    """Try again, if the step's policy and the verdict of the code that failed say so."""
    failure = value.failure or Failure(code="error")
    policy = step.spec.retry or run.graph.plan.retry
    if policy is None and value.verdict == "retry":
        policy = DEFAULT_RETRY
    if policy is None or value.verdict == "final" or not may_retry(policy, step.failures, failure):
        _fail(run, decision, step, value, failure, cause)
        return
    event = ev.AttemptFailed(
        at=step.node.address,
        attempt=value.attempt,
        failure=failure,
        session=value.session,
        token=value.lease,
        started_at=value.started_at,
        progress=_reported(value),
        cause=cause,
    )
    decision.record(run, event)
    if run.cancelling or step.around.stopping:
        decision.settle(run, step, ev.StepCancelled(at=step.node.address))
        return
    delay = value.delay
    if delay is None:
        delay = policy.delay(step.failures, fraction_of(run, step, step.attempt))
    dispatch(run, decision, step, due_at(run.now, delay))


def _fail(run: RunState, decision: Decision, step: StepState, value: inp.Outcome, failure: Failure, cause: str) -> None:
    event = ev.StepFailed(
        at=step.node.address,
        # A condition that could not be evaluated is no attempt of the step.
        attempt=max(value.attempt, 0),
        failure=failure,
        session=value.session,
        token=value.lease,
        started_at=value.started_at,
        progress=_reported(value),
        cause=cause,
    )
    decision.settle(run, step, event)


def _evaluated(run: RunState, decision: Decision, step: StepState, value: inp.Outcome, cause: str) -> None:
    """A worker evaluated the step's condition or its key, or could not."""
    if step.spec.when is None or step.condition is True:
        _keyed(run, decision, step, value, cause)
        return
    if value.status == SUCCEEDED:
        truth = truth_of(value.result)
        if truth is not None:
            decision.record(run, ev.ConditionEvaluated(at=step.node.address, value=truth, cause=cause))
            return
        failure = Failure(code="condition", message="the condition did not give a bool")
    else:
        found = value.failure or Failure(code="error")
        failure = Failure(code="condition", message=found.message, type=found.type, detail=found.detail)
    _fail(run, decision, step, value, failure, cause)


def _keyed(run: RunState, decision: Decision, step: StepState, value: inp.Outcome, cause: str) -> None:
    """A worker found the step's key, or could not."""
    if value.status == SUCCEEDED:
        found = value_of(value.result)
        decision.record(run, ev.KeyEvaluated(at=step.node.address, key=str(found or ""), cause=cause))
        return
    found = value.failure or Failure(code="error")
    text = f"the key {step.spec.key!r} has no value: {found.message}"
    failure = Failure(code="unresolved", message=text, type=found.type, detail=found.detail)
    _fail(run, decision, step, value, failure, cause)


def lost(run: RunState, decision: Decision, value: inp.Lost, cause: str) -> Refusal | None:
    """The session that held an attempt died: it is made again at once, so many times."""
    step = run.step(value.number)
    if step is None or step.tasked != value.attempt or not value.attempt or step.generation != value.generation:
        return None
    decision.end(value.number)
    if undo_runs(step):
        undo_lost(run, decision, step, value, cause)
        return None
    if step.status in OUTCOMES:
        _ended(run, decision, step, "lost", value.session, cause)
        return None
    at = step.node.address
    # An evaluation that was lost is asked for again by `advance`.
    found = _reported(value)
    event = ev.AttemptLost(at=at, attempt=value.attempt, session=value.session, progress=found, cause=cause)
    decision.record(run, event)
    if run.cancelling or step.around.stopping:
        decision.settle(run, step, ev.StepCancelled(at=at))
    elif step.lost >= step.spec.lost_limit:
        text = f"{step.lost} attempts were lost: each time the process that ran the step died"
        failure = Failure(code="lost", message=text)
        decision.settle(run, step, ev.StepFailed(at=at, attempt=max(value.attempt, 0), failure=failure))
    elif step.status == DISPATCHED:
        dispatch(run, decision, step, 0.0)
    return None


def revoked(run: RunState, decision: Decision, value: inp.Revoked, cause: str) -> Refusal | None:
    """The store took back tasks that nobody had claimed, as a cancel had asked."""
    for number in value.numbers:
        step = run.step(number)
        if step is not None and undo_runs(step):
            undo_revoked(run, decision, step, cause)
            continue
        if step is None or not step.tasked:
            continue
        if step.status in OUTCOMES:
            _ended(run, decision, step, "revoked", "", cause)
        elif is_late(run, step):
            fail_late(run, decision, step, cause)
        elif run.cancelling or _is_parked(run, step) or run.is_late(step.around):
            # Else it is a repetition from before the run was reopened.
            decision.settle(run, step, ev.StepCancelled(at=step.node.address, cause=cause))
    return None


def _is_parked(run: RunState, step: StepState) -> bool:
    """Whether the step belongs to a compensating phase that a cancel has stopped."""
    return step.around.compensates is not None and any(one.parked for one in run.unwindings.values())


def add_steps(run: RunState, decision: Decision, value: inp.AddSteps, cause: str) -> Refusal | None:
    """A live attempt adds steps at once."""
    step = run.step(value.number)
    if run.status != RUNNING or run.cancelling:
        shown = run.status if run.status != RUNNING else "cancelling"
        return Refusal("run_not_active", f"run {run.run_id!r} is {shown}; no step can be added", shown)
    if (
        step is None
        or step.status != DISPATCHED
        or value.generation not in (0, step.generation)
        or value.attempt not in (0, step.tasked)
    ):
        return Refusal("run_not_active", "the attempt that adds steps is over; no step was added", run.status)
    added = added_events(run, step, [value.fragment], cause, value.worker)
    if isinstance(added, Failure):
        return Refusal(added.code, added.message)
    decision.reopen(added.revived)
    for event in added.events:
        decision.record(run, event)
    return None
