"""Operators' inputs as events, or a refusal. Retry and rewind are worked out in `reopening`."""

from __future__ import annotations

from treadle.core import events as ev
from treadle.core import inputs as inp
from treadle.core.commands import Refusal
from treadle.core.reopening import retry, rewind
from treadle.core.state import RunState, StepState
from treadle.core.tables import RUNNING, UNWINDING, WAITING

OperatorInput = inp.Signal | inp.Pause | inp.Resume | inp.Cancel | inp.Release | inp.Retry | inp.Rewind


def operator_events(run: RunState, value: OperatorInput, cause: str) -> list[ev.AnyEvent] | Refusal:
    """The events of an operator's input; an empty list if it rightly changes nothing."""
    match value:
        case inp.Signal():
            return _signal(run, value, cause)
        case inp.Pause():
            return _pause(run, cause)
        case inp.Resume():
            return _resume(run, cause)
        case inp.Cancel():
            return _cancel(run, value, cause)
        case inp.Release():
            return _release(run, value.label, cause)
        case inp.Retry():
            return retry(run, value.at, cause)
        case inp.Rewind():
            return rewind(run, value.at, cause, keep=value.keep)


def _shown(run: RunState) -> str:
    if run.status == UNWINDING and run.hold:
        return "paused"
    if run.status != RUNNING:
        return run.status
    return "cancelling" if run.cancelling else "paused" if run.hold else RUNNING


def _goes_on(run: RunState) -> bool:
    """Whether steps may still start that are no undos: those of the run, or of a compensating phase."""
    if run.status == UNWINDING:
        return any(unwinding.compensation is not None for unwinding in run.unwindings.values())
    return run.status == RUNNING and not run.cancelling


def _pause(run: RunState, cause: str) -> list[ev.AnyEvent] | Refusal:
    shown = _shown(run)
    if shown not in (RUNNING, UNWINDING):
        return Refusal("run_not_running", f"run {run.run_id!r} is {shown}; only a running run pauses", shown)
    return [ev.Paused(hold=run.version + 1, cause=cause)]


def _resume(run: RunState, cause: str) -> list[ev.AnyEvent] | Refusal:
    shown = _shown(run)
    if shown != "paused":
        return Refusal("run_not_paused", f"run {run.run_id!r} is {shown}, not paused", shown)
    return [ev.Resumed(cause=cause)]


def _signal(run: RunState, value: inp.Signal, cause: str) -> list[ev.AnyEvent] | Refusal:
    if not _goes_on(run):
        shown = _shown(run)
        return Refusal("run_not_active", f"run {run.run_id!r} is {shown}; the signal was not delivered", shown)
    if not value.name:
        return Refusal("usage", "a signal needs a name")
    if value.name in run.signals:
        return []
    return [ev.SignalReceived(name=value.name, value=value.value, cause=cause)]


def _cancel(run: RunState, value: inp.Cancel, cause: str) -> list[ev.AnyEvent]:
    if run.status == UNWINDING:
        done = value.unwind or (not value.hard and all(one.parked for one in run.unwindings.values()))
        return [] if done else [ev.UnwindingParked(hard=value.hard, cause=cause)]
    harder = value.hard and run.cancelling != "hard"
    further = value.unwind and not run.unwind
    if run.status != RUNNING or (run.cancelling and not harder and not further):
        return []
    hard = value.hard or run.cancelling == "hard"
    return [ev.CancelRequested(hard=hard, unwind=value.unwind or run.unwind, cause=cause)]


def blocked_before(run: RunState, step: StepState) -> bool:
    """Whether the step has arrived at an armed breakpoint before it: what it needs is there (signals apart)."""
    return (
        step.status == WAITING
        and step.waiting == 0
        and not step.removed
        and "b" not in step.released
        and not run.labels.isdisjoint(step.spec.break_before)
    )


def _release(run: RunState, label: str, cause: str) -> list[ev.AnyEvent]:
    """The label goes on once; it stays armed for what comes later."""
    if not _goes_on(run):
        return []
    steps = run.steps()
    before = [s.node.address for s in steps if label in s.spec.break_before and blocked_before(run, s)]
    after = [s.node.address for s in steps if s.holding and label in s.spec.break_after]
    if not before and not after:
        return []
    return [ev.BreakpointReleased(label=label, before=before, after=after, cause=cause)]
