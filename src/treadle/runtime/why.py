"""Why a step is not running: each fence and each capacity reason by a stable name, now and in the past.

A fence is a fact of the run (a need, a signal, a breakpoint, a pause, a cancel, a condition); a capacity reason
is a fact of the store and its workers at this moment. `why` reads nothing: it is given the run and the
capacity of one moment, as `inspection.snapshot` is.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import msgspec

from treadle.core import events as ev
from treadle.core.commands import Polling
from treadle.core.events import AnyEvent
from treadle.core.progress import ChooseProgress
from treadle.core.state import ScopeState, StepState, settled
from treadle.core.tables import CANCELLED, DISPATCHED, FAILED, OUTCOMES, PENDING, READY, RUNNING, SKIPPED, SUCCEEDED
from treadle.core.undo import UNFINISHED
from treadle.errors import StepNotFoundError
from treadle.runtime.alarms import MARK
from treadle.runtime.inspection import (
    CANCELLING,
    PAUSED,
    PAUSING,
    held_by,
    shown_status,
)
from treadle.runtime.reasons import NAMED, clock_time, count, ended_as, listing
from treadle.runtime.reasons import Reason as Reason
from treadle.runtime.replaying import Replay, replay
from treadle.runtime.scopes import needs_of
from treadle.runtime.why_capacity import CODES as CAPACITY_CODES
from treadle.runtime.why_capacity import Capacity, waiting_reasons
from treadle.runtime.why_scopes import CODES as SCOPE_CODES
from treadle.runtime.why_scopes import Missing, missing_reason, scope_reasons, stopped_reason
from treadle.runtime.why_undo import CODES as UNDO_CODES
from treadle.runtime.why_undo import all_rows, history_of, row_reasons, unwinding_reason
from treadle.store.base import Loaded
from treadle.store.queues import DROPPED

# Every code with its meaning, for documentation and for `treadle schema`.
CODES: Final[dict[str, str]] = {
    "finished": "the run is final; nothing more starts",
    "running": "the step is being executed",
    "settled": "the step has its outcome",
    "needs": "fence: steps that it needs are not settled",
    "signal": "fence: a signal has not come",
    "breakpoint": "fence: an armed breakpoint before it, or after a step that it needs",
    "pause": "fence: the run is held",
    "cancel": "fence: the run is being cancelled; nothing new starts",
    "deadline": "the run's deadline will pass, or has passed: then nothing new starts, and what waits fails",
    "singleton": "fence: runs before it hold the name of which one run at a time goes on",
    "condition": "the step's condition is being evaluated, or was false",
    "key": "the key that the step's queue goes by is being evaluated, or was found",
    "skipped": "the step was skipped because of other steps",
    "removed": "a rewind of the step that added it took it back",
    "dispatch_limit": "capacity: the run has as many tasks in the store as it may have",
    "delay": "capacity: the step's start delay is not over",
    "probe": "capacity: a polled step waits for its next probe",
    "child": "the run that the step called goes on",
    "child_started": "the run that the step calls was made",
    "backoff": "capacity: a failed attempt is tried again later",
    **CAPACITY_CODES,
    "no_owner": "inputs of the run wait and no process decides it yet",
    "no_process": "no living process is connected to the store",
    "undecided": "an attempt has ended and its outcome is not decided yet",
    "added": "the step came into the run",
    "ready": "no fence held the step any more",
    "dispatched": "an attempt could start",
    "attempt_failed": "an attempt failed and another was due",
    "attempt_lost": "the process that executed an attempt died",
    "attempt_ended": "a late attempt ended; the step was settled already",
    "reopened": "an operator's retry or rewind reopened the step",
    "succeeded": "the step succeeded",
    "failed": "the step failed for good",
    "cancelled": "the step was cancelled",
    **UNDO_CODES,
    **SCOPE_CODES,
}


_OUTCOME: Final[dict[type[ev.Event], str]] = {
    ev.StepSucceeded: SUCCEEDED,
    ev.StepFailed: FAILED,
    ev.StepSkipped: SKIPPED,
    ev.StepCancelled: CANCELLED,
}


class _Scene:
    """Everything of one moment."""

    __slots__ = ("capacity", "now", "sessions", "tasks", "told")

    def __init__(self, loaded: Loaded, capacity: Capacity) -> None:
        self.told = replay(loaded)
        self.sessions = capacity.sessions
        self.capacity = capacity
        self.tasks = {row.task.number: row for row in loaded.tasks}
        self.now = capacity.now


def why(loaded: Loaded, capacity: Capacity, step: str | None = None) -> list[Reason]:
    """The reasons of a whole run (each unsettled step, the interesting ones first), or of one step with its past.

    A step may also be a scope, or something in a block that the block has not opened.

    Raises:
        StepNotFoundError: the run holds no step at this address, and will not by what its blocks open.
    """
    scene = _Scene(loaded, capacity)
    run = scene.told.run
    if step is not None:
        found = run.at(step)
        if isinstance(found, ScopeState) and found is not run.root:
            return [*_run_reasons(scene, loaded), *_scope_reasons(scene, found)]
        if found is None and (missing := missing_reason(run, step)) is not None:
            return [*_run_reasons(scene, loaded), *_missing_reasons(scene, missing)]
        state = run.step_at(step)
        if state is None:
            raise StepNotFoundError(f"run {run.run_id!r} has no step {step!r}", run_id=run.run_id)
        return [*_run_reasons(scene, loaded), *_step_reasons(scene, state), *history(scene.told, state)]
    open_steps = [state for state in run.steps() if not settled(state) and not state.removed]
    reasons = [reason for state in open_steps for reason in _step_reasons(scene, state)]
    for scope in run.states:
        # What a group holds, and what a block has opened, say for themselves why they wait.
        if isinstance(scope, ScopeState) and scope.block is not None and not settled(scope) and not scope.removed:
            reasons += (reason for reason in _scope_reasons(scene, scope) if reason.code not in ("content", "cancel"))
    # A step that waits for its upstreams is seldom the question; what those wait for is.
    reasons.sort(key=lambda reason: reason.code == "needs")
    if run.unwindings:
        reasons += [reason for state in run.steps() for reason in _undo_reasons(scene, state)]
        reasons += all_rows(run)
    return [*_run_reasons(scene, loaded), *reasons]


# -- the run ---------------------------------------------------------------------------------------------------


def _run_reasons(scene: _Scene, loaded: Loaded) -> Iterator[Reason]:
    run = scene.told.run
    leased = sum(1 for row in scene.tasks.values() if row.session)
    if run.status in OUTCOMES:
        yield Reason(
            code="finished", message=f"the run {ended_as(run.status)}; nothing more starts", at=scene.told.finished_at
        )
        if not leased:
            return
    shown = shown_status(run.status, hold=bool(run.hold), cancelling=bool(run.cancelling), leased=leased)
    if shown in (PAUSED, PAUSING):
        text = "the run is paused: no step starts until it is resumed"
        if shown == PAUSING:
            text = f"the run is pausing: {count(leased, 'attempt')} still run; nothing else starts until it is resumed"
        yield Reason(code="pause", kind="fence", message=text, at=scene.told.paused_at)
    elif shown == CANCELLING:
        text = f"the run is being cancelled: {count(leased, 'attempt')} still run, and nothing new starts"
        yield Reason(code="cancel", kind="fence", message=text)
    for name in run.awaits:
        text = f"the run waits for its turn: the singleton {name!r} is held"
        yield Reason(code="singleton", kind="fence", message=text, on=[name])
    if run.status == RUNNING and run.deadline and not run.cancelling:
        left, until = loaded.head.deadline - scene.now, loaded.head.deadline
        text = f"its deadline passes in {left:.1f} s; what has not begun then fails"
        if run.deadline < 0 or left <= 0:
            text = f"its deadline has passed, {-left:.1f} s ago; what has not begun fails"
        yield Reason(code="deadline", message=text, until=until if left > 0 else None)
    yield from map(unwinding_reason, run.unwindings.values())
    yield from _deciders(scene, loaded)


def _deciders(scene: _Scene, loaded: Loaded) -> Iterator[Reason]:
    alive = {session.id for session in scene.sessions}
    waiting = [item for item in loaded.inbox if item.id != MARK]
    if not any(session.actions for session in scene.sessions) and loaded.status not in OUTCOMES:
        text = "no worker is connected to this store; start `treadle worker` or `treadle run`"
        yield Reason(code="no_process", kind="capacity", message=text)
    if not waiting:
        return
    inputs = count(len(waiting), "input")
    if not loaded.owner:
        yield Reason(code="no_owner", kind="capacity", message=f"{inputs} wait and no process decides the run yet")
    elif loaded.owner not in alive:
        text = f"{inputs} wait for session {loaded.owner}, which is gone; another process takes the run over"
        yield Reason(code="no_owner", kind="capacity", message=text)
    else:
        yield Reason(code="undecided", kind="capacity", message=f"{inputs} wait for the process that decides the run")


# -- one step now ------------------------------------------------------------------------------------------------


def _step_reasons(scene: _Scene, step: StepState) -> Iterator[Reason]:
    if settled(step):
        yield _settled(scene.told, step)
        yield from _undo_reasons(scene, step)
        return
    run = scene.told.run
    at = step.node.address
    if step.removed:
        adder = run.states[run.adder[step.node.number]].node.address
        text = f"a rewind took it back; it is there again if {adder} adds it again"
        yield Reason(step=at, code="removed", kind="fence", message=text, on=[adder])
        return
    task = scene.tasks.get(step.node.number)
    if run.hold and not (task is not None and task.session):
        # What is executed now was started before the pause, and goes on.
        text = "the run is paused; resume it"
        yield Reason(step=at, code="pause", kind="fence", message=text, at=scene.told.paused_at)
    if run.awaits:
        yield Reason(step=at, code="singleton", kind="fence", message="the run waits for its turn", on=list(run.awaits))
    if run.cancelling:
        yield Reason(
            step=at, code="cancel", kind="fence", message="the run is being cancelled; the step will not start"
        )
    if step.status == DISPATCHED:
        yield from _dispatched(scene, step)
    elif step.status == READY and step.tasked:
        yield from _asked(scene, step)
    elif step.status == READY:
        text = f"ready, but the run already has its limit of tasks in the store ({run.tasks})"
        yield Reason(step=at, code="dispatch_limit", kind="capacity", message=text, at=step.ready_at or None)
    else:
        yield from _waiting(scene, step)


def _scope_reasons(scene: _Scene, scope: ScopeState) -> Iterator[Reason]:
    run, at = scene.told.run, scope.node.address
    if run.cancelling and not settled(scope):
        text = "the run is being cancelled; the block opens nothing more"
        yield Reason(step=at, code="cancel", kind="fence", message=text)
    ended = scene.told.scopes.finished.get(at)
    for reason in scope_reasons(run, scope):
        yield msgspec.structs.replace(reason, at=ended) if settled(scope) else reason
    yield from row_reasons(run, scope)
    if not settled(scope):
        for name in held_by(run, scope):
            text = f"held by the breakpoint after {name}; release it"
            yield Reason(step=at, code="breakpoint", kind="fence", message=text, on=[name])


def _missing_reasons(scene: _Scene, missing: Missing) -> Iterator[Reason]:
    """Why something is not there, and why the block that would open it does not."""
    yield missing.reason
    progress = missing.block.block
    is_chosen = isinstance(progress, ChooseProgress) and progress.branch is not None
    if not settled(missing.block) and not is_chosen:
        for reason in _scope_reasons(scene, missing.block):
            text = f"{missing.block.node.address}: {reason.message}"
            yield msgspec.structs.replace(reason, step=missing.reason.step, message=text)


def _waiting(scene: _Scene, step: StepState) -> Iterator[Reason]:
    run, at = scene.told.run, step.node.address
    open_ = [state for state in needs_of(run, step) if not settled(state)]
    if open_:
        names = [state.node.address for state in open_]
        said = [f"{state.node.address} ({state.status})" for state in open_[:NAMED]]
        text = f"needs {listing(said, len(open_))}"
        yield Reason(step=at, code="needs", kind="fence", message=text, on=names)
    for name in held_by(run, step):
        holder = run.step_at(name)
        labels = sorted(run.labels.intersection(holder.spec.break_after)) if holder is not None else []
        text = f"held by the breakpoint after {name} ({', '.join(labels)}); release it"
        since = scene.told.reached.get((name, "after"))
        yield Reason(step=at, code="breakpoint", kind="fence", message=text, on=labels, at=since)
    for name in step.node.signals:
        if name not in run.signals:
            text = f"waits for the signal {name!r}"
            yield Reason(step=at, code="signal", kind="fence", message=text, on=[name])
    labels = sorted(run.labels.intersection(step.spec.break_before))
    if labels and "b" not in step.released:
        since = scene.told.reached.get((at, "before"))
        text = f"stands at the breakpoint before it ({', '.join(labels)}); release it"
        if since is None:
            text = f"an armed breakpoint stands before it ({', '.join(labels)})"
        yield Reason(step=at, code="breakpoint", kind="fence", message=text, on=labels, at=since)
    if step.tasked:
        yield from _asked(scene, step)


def _asked(scene: _Scene, step: StepState) -> Iterator[Reason]:
    """A worker is asked for what the step's start depends on."""
    run, at = scene.told.run, step.node.address
    row = scene.tasks.get(step.node.number)
    if step.spec.when is not None and step.condition is None:
        yield Reason(step=at, code="condition", message="its condition is being evaluated by a worker")
    else:
        yield Reason(step=at, code="key", message="the key that its queue goes by is being evaluated by a worker")
    if row is not None and not row.session:
        yield from waiting_reasons(scene.capacity, row, held=run.hold != 0)


def _dispatched(scene: _Scene, step: StepState) -> Iterator[Reason]:
    at = step.node.address
    row = scene.tasks.get(step.node.number)
    if step.node.number in scene.told.run.calls:
        child = scene.told.children.get(at, "")
        text = f"waits for the run {child!r} that it called; ask why of that one"
        yield Reason(step=at, code="child", message=text, at=step.started_at or None, on=[child])
        return
    if row is None:
        text = f"attempt {step.attempt} has ended; its outcome waits to be decided"
        yield Reason(step=at, code="undecided", kind="capacity", message=text)
        return
    if row.session:
        since = f" for {max(scene.now - row.started_at, 0.0):.1f} s" if row.started_at else ""
        who = row.worker or row.session
        text = f"attempt {step.attempt} is being executed by {who}{since}"
        yield Reason(step=at, code="running", message=text, at=row.started_at or None, on=[who])
        return
    due = row.task.not_before
    if due > scene.now:
        left = due - scene.now
        code, text = "delay", f"starts in {left:.1f} s: its start delay is not over"
        if (poll := row.task.call.poll) is not None and poll.probes:
            code, text = "probe", _next_probe(poll, due, left, scene.now)
        elif step.failures:
            said = f" ({step.failure.code}: {step.failure.message})" if step.failure is not None else ""
            code, text = (
                "backoff",
                f"attempt {step.attempt - 1} failed{said}; attempt {step.attempt} starts in {left:.1f} s",
            )
        yield Reason(step=at, code=code, kind="capacity", message=text, until=due)
    yield from waiting_reasons(scene.capacity, row, held=scene.told.run.hold != 0)


def _undo_reasons(scene: _Scene, step: StepState) -> Iterator[Reason]:
    """Why the undo of a step that is being unwound has not ended."""
    undo, at = step.undo, step.node.address
    if undo is None or undo.status not in UNFINISHED:
        return
    row = scene.tasks.get(step.node.number)
    if undo.status == PENDING:
        text = "its undo waits for those of steps that began after it ended, for its resource, or for room"
        yield Reason(step=at, code="undo", kind="fence", message=text)
    elif step.node.number in scene.told.run.asked_runs:
        child = scene.told.children.get(at, "")
        text = f"the run {child!r} that it called undoes what it did; ask why of that one"
        yield Reason(step=at, code="child", message=text, on=[child])
    elif row is None:
        text = "an attempt to undo it has ended; its outcome waits to be decided"
        yield Reason(step=at, code="undecided", kind="capacity", message=text)
    elif row.session:
        who = row.worker or row.session
        what = "whether its undo is safe is being asked of" if undo.checking else "its undo is being executed by"
        yield Reason(step=at, code="undoing", message=f"{what} {who}", at=row.started_at or None, on=[who])
    else:
        if (due := row.task.not_before) > scene.now and undo.failure is not None:
            text = f"an attempt to undo it failed ({undo.failure.code}: {undo.failure.message})"
            text += f"; the next starts in {due - scene.now:.1f} s"
            yield Reason(step=at, code="backoff", kind="capacity", message=text, until=due)
        yield from waiting_reasons(scene.capacity, row, held=scene.told.run.hold != 0)


def _next_probe(poll: Polling, due: float, left: float, now: float) -> str:
    text = f"waits for its next probe at {clock_time(due)}, in {left:.1f} s; {count(poll.probes, 'probe')} said not yet"
    return f"{text}; it gives up in {max(poll.deadline - now, 0.0):.1f} s" if poll.deadline else text


def _settled(told: Replay, step: StepState) -> Reason:
    at = step.node.address
    finished = step.finished_at or None
    if step.status == SKIPPED:
        reason = told.skips.get(at, "")
        if reason == "condition":
            text = "skipped: its condition was false"
            return Reason(step=at, code="condition", message=text, at=finished, on=list(step.causes))
        said = listing([_cause(told, name) for name in step.causes[:NAMED]], len(step.causes))
        if reason == "removed":
            text = f"skipped: a rewind took it back, and {said} did not add it again"
            return Reason(step=at, code="removed", message=text, at=finished, on=list(step.causes))
        return Reason(step=at, code="skipped", message=f"skipped because of {said}", at=finished, on=list(step.causes))
    if step.status == CANCELLED and (stopped := stopped_reason(told.run, step)) is not None:
        return stopped
    text = f"the step {ended_as(step.status)}"
    if step.failure is not None and step.status == FAILED:
        text = f"the step failed: {step.failure.code}: {step.failure.message}"
    return Reason(step=at, code="settled", message=text, at=finished)


def _cause(told: Replay, address: str) -> str:
    number = told.run.number_of(address)
    return f"{address} ({told.run.states[number].status})" if number is not None else address


# -- one step in the past --------------------------------------------------------------------------------------


def history(told: Replay, step: StepState) -> list[Reason]:
    """What the journal tells of a step: its own events, its upstreams' ends, its signals, pauses and cancels."""
    at = step.node.address
    needs = {state.node.address for state in needs_of(told.run, step)}
    found: list[Reason] = []
    added = Reason(step=at, code="added", tense="past", at=step.added_at, message="came into the run")
    for time, event in told.events:
        if time < step.added_at:
            continue
        said = _own(event, at) or _of_upstream(event, needs) or _of_run(event, step)
        if said is not None:
            code, message = said
            found.append(Reason(step=at, code=code, tense="past", at=time, message=message))
    return [added, *found]


def _own(event: AnyEvent, at: str) -> tuple[str, str] | None:
    """What an event tells of the step at `at`."""
    if isinstance(event, ev.StepsReopened):
        return ("reopened", "rewound" if event.rewind else "reopened by a retry") if at in event.at else None
    if isinstance(event, ev.StepsReady):
        return ("ready", "ready") if at in event.at else None
    if getattr(event, "at", None) != at:
        return None
    match event:
        case ev.StepDispatched(attempt=attempt):
            return "dispatched", f"attempt {attempt} dispatched"
        case ev.ChildStarted(id=id_) if id_:
            return "child_started", f"called the run {id_}"
        case ev.ConditionEvaluated(value=value):
            return "condition", f"its condition was {'true' if value else 'false'}"
        case ev.BreakpointReached(position=position, labels=labels):
            return "breakpoint", f"reached the breakpoint {position} it ({', '.join(labels)})"
        case ev.EvaluationAsked():
            return "condition", "its condition, or the key for its queue, was asked for"
        case ev.KeyEvaluated(key=key):
            return "key", f"its key is {key!r}"
        case _:
            return _ended(event)


def _ended(event: AnyEvent) -> tuple[str, str] | None:
    match event:
        case ev.AttemptFailed(attempt=attempt, failure=failure):
            return "attempt_failed", f"attempt {attempt} failed: {failure.code}: {failure.message}"
        case ev.AttemptLost(attempt=attempt, session=session):
            return "attempt_lost", f"attempt {attempt} was lost: session {session} died"
        case ev.AttemptEnded(attempt=attempt, outcome=outcome):
            return "attempt_ended", f"attempt {attempt} ended late: {outcome}"
        case ev.StepSucceeded(attempt=attempt):
            return SUCCEEDED, f"attempt {attempt} succeeded"
        case ev.StepFailed(attempt=attempt, failure=failure):
            return FAILED, f"attempt {attempt} failed for good: {failure.code}: {failure.message}"
        case ev.StepSkipped(reason=reason, causes=causes):
            return "skipped", f"skipped ({reason}): {listing(causes[:NAMED], len(causes))}"
        case ev.StepCancelled():
            return CANCELLED, "cancelled"
        case _:
            return history_of(event)


def _of_upstream(event: AnyEvent, needs: set[str]) -> tuple[str, str] | None:
    at: object = getattr(event, "at", "")
    # Some kinds name many.
    if not isinstance(at, str) or at not in needs:
        return None
    match event:
        case ev.StepSucceeded() | ev.StepFailed() | ev.StepSkipped() | ev.StepCancelled():
            return "needs", f"{at} {_OUTCOME[type(event)]}"
        case ev.ScopeSettled(outcome=word):
            return "needs", f"{at} {word}"
        case ev.BreakpointReached(position="after", labels=labels):
            return "breakpoint", f"held by the breakpoint after {at} ({', '.join(labels)})"
        case _:
            return None


def _of_run(event: AnyEvent, step: StepState) -> tuple[str, str] | None:
    match event:
        case ev.SignalReceived(name=name) if name in step.node.signals:
            return "signal", f"the signal {name!r} came"
        case ev.BreakpointReleased(label=label, before=before) if step.node.address in before:
            return "breakpoint", f"released from its breakpoint ({label})"
        case ev.Paused():
            return "pause", "the run was paused"
        case ev.Resumed():
            return "pause", "the run was resumed"
        case ev.CancelRequested(cause=cause) if cause.startswith(DROPPED):
            return "cancel", f"the run made place for run {cause.removeprefix(DROPPED)} in a full queue"
        case ev.DeadlinePassed():
            return "deadline", "the run's deadline passed"
        case ev.CancelRequested(hard=hard):
            return "cancel", f"a {'hard' if hard else 'soft'} cancel was asked for"
        case _:
            return None
