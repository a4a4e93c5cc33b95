"""Dispatching: the next attempt of a step that may start now, as an event and as the task that the store is to hold."""

from __future__ import annotations

from msgspec.structs import replace

from treadle.core import events as ev
from treadle.core.apply import step_dispatched
from treadle.core.children import child_key
from treadle.core.commands import Call, ChildRun, Polling, Task
from treadle.core.decision import Decision
from treadle.core.events import Arg, Failure
from treadle.core.keys import known_key, question
from treadle.core.placement import target_of
from treadle.core.plan import Poll
from treadle.core.resolve import UnresolvedError, resolve_args
from treadle.core.retrying import due_at
from treadle.core.state import RunState, StepState
from treadle.core.undo_attempts import must_prepare, prepare


def dispatch(run: RunState, decision: Decision, step: StepState, not_before: float) -> None:
    """Ask for the step's next attempt (or its first half), at `not_before` at the earliest (0: at once)."""
    node = step.node
    poll = node.step.poll
    if run.deadline and step.around.compensates is None and max(run.now, not_before) >= run.deadline:
        failure = Failure(code="deadline", message="the run's deadline passes before this attempt may begin")
        decision.settle(run, step, ev.StepFailed(at=node.address, attempt=0, failure=failure))
        return
    try:
        args = resolve_args(run, node, node.step.slots)
        key = known_key(run, step, args) if node.step.key else ""
        target = target_of(run, step) if node.step.placement is not None else ""
    except UnresolvedError as error:
        failure = Failure(code="unresolved", message=str(error))
        decision.settle(run, step, ev.StepFailed(at=node.address, attempt=0, failure=failure))
        return
    if key is None:
        decision.record(run, ev.EvaluationAsked(at=node.address, number=step.asking + 1))
        decision.tasks.append(question(run, step, args))
        return
    if node.undoable and must_prepare(step):
        prepare(run, decision, step, args, not_before, key, target)
        return
    event = ev.StepDispatched(
        at=node.address,
        attempt=step.attempt + 1,
        generation=step.generation,
        not_before=not_before,
        deadline=deadline_of(run, step, poll, not_before) if poll is not None else 0.0,
    )
    decision.events.append(event)
    step_dispatched(run, step, event)
    decision.tasks.append(task_of(run, step, args, key, target))


def dispatch_simple(run: RunState, decision: Decision, step: StepState) -> None:
    """As `dispatch` at once, for a step of which only the slots have to be looked at."""
    node = step.node
    spec = node.step
    if node.alike and node.alike == decision.alike:
        call = decision.call
    else:
        try:
            args = resolve_args(run, node, spec.slots)
        except UnresolvedError as error:
            failure = Failure(code="unresolved", message=str(error))
            decision.settle(run, step, ev.StepFailed(at=node.address, attempt=0, failure=failure))
            return
        call = Call(args, spec.timeout, data=run.data, dry_run=run.dry_run, trace=run.trace)
        if node.alike:
            decision.alike, decision.call = node.alike, call
    attempt, generation = step.attempt + 1, step.generation
    event = ev.StepDispatched(at=node.address, attempt=attempt, generation=generation)
    decision.events.append(event)
    step_dispatched(run, step, event)
    decision.tasks.append(
        Task(
            run.key,
            node.number,
            node.address,
            generation,
            attempt,
            spec.action,
            spec.queue,
            spec.priority,
            0.0,
            call,
            run.run_id,
        )
    )


def task_of(run: RunState, step: StepState, args: dict[str, Arg], key: str = "", target: str = "") -> Task:
    """The task of a dispatched step's present attempt."""
    node = step.node
    spec = node.step
    # What undoes a run that came too late is not late itself.
    deadline = run.deadline if not run.deadline or step.around.compensates is None else 0.0
    call = Call(args, spec.timeout, "step", spec.placement, run.data, run.dry_run, deadline=deadline, trace=run.trace)
    if spec.poll is not None:
        call = replace(call, poll=Polling(spec.poll.interval, run.deadlines.get(node.number, 0.0)))
    if spec.annotations or run.reports:
        call = replace(call, progress=run.reports.get(node.number, ""), annotations=spec.annotations)
    if spec.progress_timeout is not None:
        call = replace(call, progress_timeout=spec.progress_timeout)
    if spec.child is not None:
        child, called = child_key(run.key, node.address, step.generation), spec.child
        made = ChildRun(child, run.depth + 1, called.detached, breakpoints=called.breakpoints)
        call = replace(call, child=made)
    return Task(
        run.key,
        node.number,
        node.address,
        step.generation,
        step.attempt,
        spec.action,
        spec.queue,
        spec.priority,
        step.not_before,
        call,
        run.run_id,
        0,
        key,
        target,
    )


def deadline_of(run: RunState, step: StepState, poll: Poll, not_before: float) -> float:
    """When a polled step gives up (0: never): a time after its first attempt since it was opened, and of all others."""
    if poll.timeout is None:
        return 0.0
    return run.deadlines.get(step.node.number) or due_at(max(run.now, not_before), poll.timeout)
