"""What workers are asked for the sake of undo: the first half of a step, whether an undo is safe, and the undo.

They are attempts of their step with numbers below zero: fenced, leased, timed out and placed like those of its action,
and counted apart from them. An undo is tried by the step's own retry policy. The undo of a call asks the run that was
called, and ends with that run's answer (`calls`).
"""

from __future__ import annotations

from contextlib import suppress

from treadle.core import events as ev
from treadle.core import inputs as inp
from treadle.core.children import child_key
from treadle.core.commands import Call, ChildRun, Task
from treadle.core.decision import Decision
from treadle.core.events import NULL, Arg, Failure
from treadle.core.keys import known_key
from treadle.core.placement import target_of
from treadle.core.resolve import UnresolvedError, resolve_args, truth_of
from treadle.core.retrying import DEFAULT_RETRY, due_at, fraction_of, may_retry
from treadle.core.state import RunState, StepState
from treadle.core.tables import CANCELLED, RUNNING, SUCCEEDED
from treadle.core.undo import undo_of

# The built-in action that asks the run which a step has called to undo what it did.
UNWIND = "treadle:unwind"
# The code of a failure by which an undo says that there is no way back.
NOT_COMPENSABLE = "not_compensable"


def undo_runs(step: StepState) -> bool:
    """Whether the live attempt of the step is one to undo it."""
    return step.undo is not None and step.undo.status == RUNNING


def dispatch_undo(run: RunState, decision: Decision, step: StepState, not_before: float) -> None:
    """Ask for the next attempt to undo a step, or first for whether that is safe."""
    declared, undo = step.spec.undo, undo_of(step)
    at, number = step.node.address, step.asking + 1
    check = declared is not None and bool(declared.reconcile) and not undo.confirmed
    decision.record(run, ev.UndoDispatched(at=at, number=number, check=check, not_before=not_before))
    if declared is None:
        child = ChildRun(
            child_key(run.key, at, step.generation), unwind=number, again=undo.again, made=undo.state != ""
        )
        decision.tasks.append(_task(run, step, "undo", UNWIND, {}, not_before, child))
        return
    purpose, action = ("reconcile", declared.reconcile) if check else ("undo", declared.action)
    args = resolve_args(run, step.node, step.spec.slots)
    key, target = _limits_of(run, step, args)
    args["state"] = undo.state or NULL
    args["result"] = step.result or NULL
    decision.tasks.append(_task(run, step, purpose, action, args, not_before, key=key, target=target))


def _limits_of(run: RunState, step: StepState, args: dict[str, Arg]) -> tuple[str, str]:
    """The key and the target of an undo. What cannot be told any more does not keep it from being made."""
    key = target = ""
    with suppress(UnresolvedError):
        key = (known_key(run, step, args) or "") if step.spec.key else ""
    with suppress(UnresolvedError):
        target = target_of(run, step)
    return key, target


def prepare(
    run: RunState,
    decision: Decision,
    step: StepState,
    args: dict[str, Arg],
    not_before: float,
    key: str = "",
    target: str = "",
) -> None:
    """Ask for the first half of a step."""
    declared = step.spec.undo
    assert declared is not None
    event = ev.PrepareDispatched(
        at=step.node.address, number=step.asking + 1, generation=step.generation, not_before=not_before
    )
    decision.record(run, event)
    decision.tasks.append(_task(run, step, "prepare", declared.prepare, args, not_before, key=key, target=target))


def must_prepare(step: StepState) -> bool:
    """Whether the step has a first half that has not been made."""
    declared = step.spec.undo
    return declared is not None and bool(declared.prepare) and not (step.undo is not None and step.undo.state)


def _task(
    run: RunState,
    step: StepState,
    purpose: str,
    action: str,
    args: dict[str, Arg],
    not_before: float,
    child: ChildRun | None = None,
    *,
    key: str = "",
    target: str = "",
) -> Task:
    node, spec = step.node, step.spec
    # To ask a run is quick, and can be done anywhere.
    timeout, placement = (None, None) if child is not None else (spec.timeout, spec.placement)
    return Task(
        run=run.key,
        number=node.number,
        address=node.address,
        generation=step.generation,
        attempt=step.tasked,
        action=action,
        queue=spec.queue,
        priority=spec.priority,
        not_before=not_before,
        call=Call(args, timeout, purpose, placement, run.data, run.dry_run, child=child),
        run_id=run.run_id,
        key=key,
        target=target,
    )


def end_undo(run: RunState, decision: Decision, step: StepState, event: ev.AnyEvent) -> None:
    """Give an undo its final status; its stored row shows it."""
    decision.record(run, event)
    decision.undone += (step,)


def undo_outcome(run: RunState, decision: Decision, step: StepState, value: inp.Outcome, cause: str) -> None:
    """A worker reported the end of an attempt to undo a step."""
    at, number = step.node.address, -value.attempt
    if value.status == CANCELLED:
        end_undo(run, decision, step, ev.UndoParked(at=at, reason="cancel", cause=cause))
    elif value.status != SUCCEEDED:
        _failed(run, decision, step, value, value.failure or Failure(code="error"), cause)
    elif step.spec.undo is None:
        # There is no such run, and there never was one.
        end_undo(run, decision, step, ev.UndoNotNeeded(at=at, cause=cause))
    elif undo_of(step).checking:
        _checked(run, decision, step, value, cause)
    else:
        event = ev.StepUndone(at=at, number=number, session=value.session, started_at=value.started_at, cause=cause)
        end_undo(run, decision, step, event)


def _checked(run: RunState, decision: Decision, step: StepState, value: inp.Outcome, cause: str) -> None:
    at = step.node.address
    safe = truth_of(value.result)
    if safe is None:
        failure = Failure(code="reconcile", message="reconcile did not give a bool: True if the undo is safe")
        _failed(run, decision, step, value, failure, cause)
    elif not safe:
        end_undo(run, decision, step, ev.UndoSkipped(at=at, reason="drift", cause=cause))
    else:
        decision.record(run, ev.UndoConfirmed(at=at, number=-value.attempt, cause=cause))
        if _is_parked(run, step):
            end_undo(run, decision, step, ev.UndoParked(at=at, reason="cancel"))
        else:
            dispatch_undo(run, decision, step, 0.0)


def _failed(
    run: RunState, decision: Decision, step: StepState, value: inp.Outcome, failure: Failure, cause: str
) -> None:
    """Try the undo again, if the step's policy and the verdict of the code that failed say so."""
    at, undo = step.node.address, undo_of(step)
    if failure.code == NOT_COMPENSABLE:
        event = ev.UndoNotCompensable(at=at, failure=failure, session=value.session, cause=cause)
        end_undo(run, decision, step, event)
        return
    policy = step.spec.retry or run.graph.plan.retry
    if policy is None and value.verdict == "retry":
        policy = DEFAULT_RETRY
    if policy is None or value.verdict == "final" or not may_retry(policy, undo.failures, failure):
        end_undo(run, decision, step, ev.UndoFailed(at=at, failure=failure, session=value.session, cause=cause))
        return
    tried = ev.UndoAttemptFailed(at=at, number=-value.attempt, failure=failure, session=value.session, cause=cause)
    decision.record(run, tried)
    if _is_parked(run, step):
        end_undo(run, decision, step, ev.UndoParked(at=at, reason="cancel"))
        return
    delay = value.delay
    if delay is None:
        delay = policy.delay(undo.failures, fraction_of(run, step, step.tasked))
    dispatch_undo(run, decision, step, due_at(run.now, delay))


def _is_parked(run: RunState, step: StepState) -> bool:
    unwinding = run.unwindings.get(undo_of(step).scope)
    return unwinding is None or unwinding.parked


def undo_lost(run: RunState, decision: Decision, step: StepState, value: inp.Lost, cause: str) -> None:
    """The session that held an attempt to undo died: it is made again at once, so many times."""
    at, undo = step.node.address, undo_of(step)
    decision.record(run, ev.UndoAttemptLost(at=at, number=-value.attempt, session=value.session, cause=cause))
    if _is_parked(run, step):
        end_undo(run, decision, step, ev.UndoParked(at=at, reason="cancel"))
    elif step.spec.undo is not None and undo.lost >= step.spec.lost_limit:
        text = f"{undo.lost} attempts were lost: each time the process that ran the undo died"
        end_undo(run, decision, step, ev.UndoFailed(at=at, failure=Failure(code="lost", message=text)))
    else:
        dispatch_undo(run, decision, step, 0.0)


def undo_revoked(run: RunState, decision: Decision, step: StepState, cause: str) -> None:
    """The store took back an attempt to undo that nobody had claimed, as a cancel had asked."""
    if _is_parked(run, step):
        end_undo(run, decision, step, ev.UndoParked(at=step.node.address, reason="cancel", cause=cause))
