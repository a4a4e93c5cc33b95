"""What may go on: the frontier, where `decide` looks after its inputs, node by node in the order of their numbers.

A step starts when no fence holds it: what it needs is settled, no armed breakpoint stands before it, its signals are
there, its condition is true, and the run has room for another task. None of these releases another. A pause is no
business of the core: the store grants no claim while the run is held.
"""

from __future__ import annotations

from heapq import heappop, heappush

from msgspec.structs import replace

from treadle.core import events as ev
from treadle.core.apply import apply
from treadle.core.children import child_key, tell_parent
from treadle.core.commands import Call, ChildRun, Polling, Task
from treadle.core.decision import Decision, Limits
from treadle.core.events import Arg, Failure
from treadle.core.plan import Poll, Predicate
from treadle.core.resolve import is_inline, resolve_args, resolve_output, truth_of
from treadle.core.state import (
    BY_CONDITION,
    BY_FAILURE,
    RunState,
    ScopeState,
    StepState,
    doom_of,
    number_of_key,
    settled,
)
from treadle.core.tables import CANCELLED, DISPATCHED, FAILED, OPEN, READY, RUNNING, SKIPPED, SUCCEEDED, WAITING

# The registered predicate that tells whether a value that is not at hand is true.
TRUTH = "treadle:truth"
# No start is put off further than this (about a century): JSON has no infinity.
LONGEST_DELAY = 3.2e9
# An event names at most so many addresses of a cause.
MAX_NAMED = 100


def advance(run: RunState, decision: Decision, limits: Limits) -> None:
    """Look at everything that may go on, until nothing may or the decision is full."""
    frontier = run.frontier
    states = run.states
    events = decision.events
    bound = len(events) + limits.events
    if run.cancelling and run.status == RUNNING:
        _cancel_waiting(run, decision, bound)
    while True:
        while frontier and len(events) < bound:
            state = states[heappop(frontier)]
            if type(state) is StepState:
                if state.status == WAITING:
                    _look(run, decision, state, limits)
            else:
                assert isinstance(state, ScopeState)
                _look_at_scope(run, decision, state)
        _start_ready(run, decision, limits, bound)
        if len(events) >= bound:
            decision.more = decision.more or bool(frontier) or _next_ready(run, limits) is not None
            return
        if not frontier:
            return


def _next_ready(run: RunState, limits: Limits) -> StepState | None:
    """The ready step that starts next, if there is room for it."""
    ready = run.ready
    while ready and run.tasks < limits.dispatched and not run.cancelling:
        step = run.states[number_of_key(ready[0])]
        assert isinstance(step, StepState)
        if step.status == READY and not step.tasked:
            return step
        heappop(ready)
    return None


def _start_ready(run: RunState, decision: Decision, limits: Limits, bound: int) -> None:
    while run.ready and len(decision.events) < bound:
        step = _next_ready(run, limits)
        if step is None:
            return
        heappop(run.ready)
        _begin(run, decision, step, limits)


# -- steps -----------------------------------------------------------------------------------------------------------


def _look(run: RunState, decision: Decision, step: StepState, limits: Limits) -> None:
    """Decide a waiting step: skip it, leave it at a fence, or let it start."""
    if run.cancelling:
        # The cancel had been past it when the step that adds it, rewound and still running then, brought it back.
        cancel(run, decision, step)
        return
    if step.tasked:
        return
    # What was removed waits for its adder only, whatever its upstreams have counted.
    if step.doomed and (step.doomed == BY_FAILURE or step.removed or not step.waiting):
        _skip(run, decision, step)
        return
    if step.waiting or step.removed:
        return
    node = step.node
    if run.labels and "b" not in step.released:
        labels = node.step.break_before
        if labels and not run.labels.isdisjoint(labels):
            reach(run, decision, step, "before", labels)
            return
    for name in node.signals:
        if name not in run.signals:
            run.signal_waiters.setdefault(name, set()).add(node.number)
            return
    _begin(run, decision, step, limits)


def _begin(run: RunState, decision: Decision, step: StepState, limits: Limits) -> None:
    """Let a step that no other fence holds start, by its condition and by the room there is."""
    spec = step.node.step
    call: Call | None = None
    if spec.when is not None and step.condition is not True:
        if step.condition is False:
            at = step.node.address
            skipped = ev.StepSkipped(at=at, reason="condition", causes=[at], by_condition=True)
            decision.settle(run, step, skipped)
            return
        call = _condition(run, decision, step)
        if call is None:
            return
    if spec.child is not None and run.depth >= limits.depth:
        text = f"the run is {run.depth} calls deep, which is the limit; does {spec.action!r} call itself without end?"
        failure = Failure(code="call_depth", message=text)
        decision.settle(run, step, ev.StepFailed(at=step.node.address, attempt=0, failure=failure))
        return
    # Who became ready earlier goes first.
    if run.tasks >= limits.dispatched or (run.readied and step.status == WAITING):
        decision.record(run, ev.StepReady(at=step.node.address))
    elif call is not None:
        decision.record(run, ev.EvaluationAsked(at=step.node.address, number=step.asking + 1))
        decision.tasks.append(_evaluation(run, step, call))
    else:
        # The delay counts from when the step was ready, in a run that has begun.
        since = max(run.now if step.status == WAITING else step.ready_at, run.not_before)
        due = due_at(since, spec.delay) or since
        dispatch(run, decision, step, due if due > run.now else 0.0)


def due_at(since: float, delay: float) -> float:
    """When a delay is over; 0 for none, and for what is no number."""
    return since + min(delay, LONGEST_DELAY) if delay > 0 else 0.0


def dispatch(run: RunState, decision: Decision, step: StepState, not_before: float) -> None:
    """Ask for the step's next attempt, at `not_before` at the earliest (0: at once)."""
    poll = step.node.step.poll
    event = ev.StepDispatched(
        at=step.node.address,
        attempt=step.attempt + 1,
        generation=step.generation,
        not_before=not_before,
        deadline=deadline_of(run, step, poll, not_before) if poll is not None else 0.0,
    )
    decision.events.append(event)
    apply(run, event)
    decision.tasks.append(task_of(run, step))


def task_of(run: RunState, step: StepState) -> Task:
    """The task of a dispatched step's present attempt."""
    node = step.node
    spec = node.step
    call = Call(resolve_args(run, node, spec.slots), spec.timeout, "step", spec.placement)
    if spec.poll is not None:
        call = replace(call, poll=Polling(spec.poll.interval, run.deadlines.get(node.number, 0.0)))
    if spec.child is not None:
        made = ChildRun(child_key(run.key, node.address, step.generation), run.depth + 1, spec.child.detached)
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
    )


def deadline_of(run: RunState, step: StepState, poll: Poll, not_before: float) -> float:
    """When a polled step gives up (0: never): a time after its first attempt since it was opened, and of all others."""
    if poll.timeout is None:
        return 0.0
    return run.deadlines.get(step.node.number) or due_at(max(run.now, not_before), poll.timeout)


def _condition(run: RunState, decision: Decision, step: StepState) -> Call | None:
    """What a worker has to be asked to know the step's condition; None if it is known now, or never will be."""
    when = step.spec.when
    assert when is not None
    if isinstance(when, Predicate):
        return Call(resolve_args(run, step.node, when.slots), purpose="condition")
    args: dict[str, Arg] = resolve_args(run, step.node, {"value": when})
    if not is_inline(args["value"]):
        return Call(args, purpose="condition")
    at = step.node.address
    truth = truth_of(args["value"])
    if truth is None:
        failure = Failure(code="condition", message="the value of the condition is not a bool")
        decision.settle(run, step, ev.StepFailed(at=at, attempt=0, failure=failure))
    else:
        decision.record(run, ev.ConditionEvaluated(at=at, value=truth))
    return None


def _evaluation(run: RunState, step: StepState, call: Call) -> Task:
    """The task that evaluates the step's condition."""
    node = step.node
    spec = node.step
    return Task(
        run=run.key,
        number=node.number,
        address=node.address,
        generation=step.generation,
        attempt=step.tasked,
        action=spec.when.name if isinstance(spec.when, Predicate) else TRUTH,
        queue=spec.queue,
        priority=spec.priority,
        not_before=run.not_before if run.not_before > run.now else 0.0,
        call=call,
        run_id=run.run_id,
    )


def reach(run: RunState, decision: Decision, step: StepState, position: str, labels: tuple[str, ...]) -> None:
    """Report, once, that the run stands at a breakpoint."""
    if position[0] not in step.reached:
        decision.record(run, ev.BreakpointReached(at=step.node.address, position=position, labels=labels))


def _skip(run: RunState, decision: Decision, step: StepState) -> None:
    event = ev.StepSkipped(
        at=step.node.address,
        reason="removed" if step.removed else "upstream",
        causes=[cause.node.address for cause in causes_of(run, step)[:MAX_NAMED]],
        by_condition=step.doomed == BY_CONDITION,
    )
    decision.settle(run, step, event)


def causes_of(run: RunState, state: StepState | ScopeState) -> list[StepState | ScopeState]:
    """The settled upstreams (its own, and those of closed groups around) that forbid a node to run."""
    if state.removed:
        return [run.states[run.adder[state.node.number]]]
    causes: list[StepState | ScopeState] = []
    while True:
        for number, flags in state.node.needs:
            upstream = run.states[number]
            if settled(upstream) and doom_of(upstream, flags):
                causes.append(upstream)
        state = state.around
        if not state.gated:
            return causes


# -- cancel ----------------------------------------------------------------------------------------------------------


def cancel(run: RunState, decision: Decision, step: StepState) -> None:
    """Cancel a step that has no outcome; a hard cancel also interrupts what a worker executes of it."""
    if step.tasked and run.cancelling == "hard":
        decision.interrupts.append(step.node.number)
    decision.settle(run, step, ev.StepCancelled(at=step.node.address, live=run.is_live(step)))


def withdraw(run: RunState, decision: Decision) -> None:
    """Cancel the steps whose attempts this very decision asks for: they are in no store yet that could revoke them."""
    for task in decision.tasks:
        step = run.step(task.number)
        assert step is not None
        decision.settle(run, step, ev.StepCancelled(at=step.node.address))
    decision.tasks = []


def _cancel_waiting(run: RunState, decision: Decision, bound: int) -> None:
    """Cancel what has not started; with a hard cancel also what runs. Goes on where it stopped."""
    while run.cancel_at < len(run.states):
        if len(decision.events) >= bound:
            decision.more = True
            return
        state = run.states[run.cancel_at]
        run.cancel_at += 1
        if settled(state):
            continue
        if isinstance(state, ScopeState):
            # One that has no content left to cancel is looked at by nobody else.
            heappush(run.frontier, state.node.number)
        elif state.status != DISPATCHED or run.cancelling == "hard":
            cancel(run, decision, state)


# -- scopes and the run ----------------------------------------------------------------------------------------------


def _look_at_scope(run: RunState, decision: Decision, scope: ScopeState) -> None:
    """Open a group, or give a scope its outcome."""
    if scope.status != OPEN or run.status != RUNNING:
        return
    at = scope.node.address
    # While the run is cancelled no group opens, so one inside a closed group must not wait for that.
    if scope.gated and not scope.doomed and not run.cancelling:
        if not scope.waiting and not scope.removed:
            decision.record(run, ev.ScopeOpened(at=at))
        return
    if scope.unsettled:
        return
    if scope is scope.around:
        _settle_run(run, decision)
        return
    outcome, causes = _outcome_of(run, scope)
    by_condition = scope.doomed == BY_CONDITION
    owner = scope.node.owner
    if owner is not None:
        by_condition = run.states[owner.number].by_condition
    named = [cause.node.address for cause in causes[:MAX_NAMED]]
    settled_as = ev.ScopeSettled(at=at, outcome=outcome, causes=named, by_condition=outcome == SKIPPED and by_condition)
    decision.record(run, settled_as)


def _outcome_of(run: RunState, scope: ScopeState) -> tuple[str, list[StepState | ScopeState]]:
    """The outcome of a scope whose children are settled, and what caused it if it did not succeed."""
    if scope.gated:
        if run.cancelling or scope.cancelled:
            return CANCELLED, []
        return SKIPPED, causes_of(run, scope)
    if scope.bad:
        return FAILED, [run.states[number] for number in scope.bad]
    if scope.cancelled:
        return CANCELLED, []
    owner = scope.node.owner
    if owner is not None and (adder := run.states[owner.number]).status != SUCCEEDED:
        return adder.status, [adder]
    return SUCCEEDED, []


def _settle_run(run: RunState, decision: Decision) -> None:
    root = run.root
    failures: list[str] = []
    result: Arg = ev.NULL
    missing: list[str] = []
    # A cancel that came before the end wins, even if all steps could finish.
    if run.cancelling:
        outcome = CANCELLED
    elif root.bad:
        outcome = FAILED
        failures = root_causes(run)[:MAX_NAMED]
    elif root.cancelled:
        outcome = CANCELLED
    else:
        outcome = SUCCEEDED
        result, missing = resolve_output(run)
    if run.hold:
        decision.hold = 0
    settled_as = ev.RunSettled(outcome=outcome, result=result, missing=missing, failures=failures)
    decision.record(run, settled_as)
    if run.parent:
        tell_parent(run, decision, settled_as)


def root_causes(run: RunState) -> list[str]:
    """Addresses of the mandatory steps that failed by themselves, first one first; those below groups included."""
    found: list[str] = []
    scopes: list[ScopeState] = [run.root]
    for scope in scopes:
        for number in scope.bad:
            state = run.states[number]
            if isinstance(state, ScopeState):
                scopes.append(state)
            elif state.status == FAILED:
                found.append(state.node.address)
    return found or [run.states[number].node.address for number in run.root.bad]
