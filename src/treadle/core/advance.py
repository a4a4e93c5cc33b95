"""What may go on: the frontier, where `decide` looks after its inputs, node by node in the order of their numbers.

A step starts when no fence holds it: what it needs is settled, no armed breakpoint stands before it, its signals are
there, its condition is true, and the run has room for another task. None of these releases another. A pause is no
business of the core: the store grants no claim while the run is held.
"""

from __future__ import annotations

from collections.abc import Sized
from heapq import heappop, heappush

from treadle.core import events as ev
from treadle.core.apply import steps_ready
from treadle.core.children import answer_caller, tell_parent
from treadle.core.commands import Call, Task
from treadle.core.conditions import truth
from treadle.core.deadlines import end_waiting, fail_late, late_block
from treadle.core.decision import Decision, Limits
from treadle.core.dispatching import dispatch, dispatch_simple
from treadle.core.events import Arg, Failure
from treadle.core.gathers import proceed_choose, proceed_gather
from treadle.core.inputs import Cancel
from treadle.core.opened import CANCELLING, asking, iterations_succeeded, value_of_success
from treadle.core.phases import proceed_phases, row_failure
from treadle.core.plan import Choose, Gather, Phase, Phases
from treadle.core.progress import GatherProgress, PhasesProgress
from treadle.core.resolve import UnresolvedError, resolve_args, resolve_output, scope_value
from treadle.core.retrying import due_at
from treadle.core.sparse import UNWRITTEN, writable
from treadle.core.state import (
    BY_CONDITION,
    BY_FAILURE,
    NUMBER_OF_KEY,
    IterationState,
    RunState,
    ScopeState,
    StepState,
    doom_of,
    settled,
)
from treadle.core.tables import (
    CANCELLED,
    DISPATCHED,
    FAILED,
    OPEN,
    OUTCOMES,
    READY,
    SKIPPED,
    SUCCEEDED,
    WAITING,
)
from treadle.core.undo_attempts import undo_revoked, undo_runs
from treadle.core.undoing import how_far
from treadle.core.unwinding import begin_unwinding, must_unwind, unwind, unwind_block

# An event names at most so many addresses of a cause.
MAX_NAMED = 100
# A frontier of up to so many nodes is taken as the heap that it is.
_LONG = 64
_NOTHING_DUE: list[int] = []


def advance(run: RunState, decision: Decision, limits: Limits) -> None:
    """Look at everything that may go on, until nothing may or the decision is full."""
    if run.awaits:
        return
    frontier = run.frontier
    events = decision.events
    bound = len(events) + limits.events
    if run.cancelling:
        _cancel_waiting(run, decision, bound)
    elif run.deadline:
        end_waiting(run, decision, bound)
    while True:
        before = len(events)
        if run.unwindings:
            unwind(run, decision, limits, bound)
        bound = _look_around(run, decision, limits, bound)
        if run.ready:
            _start_ready(run, decision, limits, bound)
        if len(events) >= bound:
            left = bool(frontier or run.unwindings) or _next_ready(run, limits) is not None
            decision.more = decision.more or left
            return
        # The frontier may have begun an unwinding.
        if not frontier and (not run.unwindings or len(events) == before):
            return


def _look_around(run: RunState, decision: Decision, limits: Limits, bound: int) -> int:
    """Look at the frontier as far as the decision has room; gives the bound that is left for it."""
    frontier, states, events = run.frontier, run.states, decision.events
    plain = _is_plain(run)
    # Steps for which there is no room, by number, and iterations that have succeeded; one event tells of all of them.
    held: dict[int, StepState] = UNWRITTEN
    done: dict[ScopeState, dict[IterationState, Arg]] = UNWRITTEN
    # What is left of a long frontier, last first: to sort it once costs less than a heap.
    due: list[int] = _NOTHING_DUE
    while (frontier or due) and len(events) + len(held) < bound:
        if not due and len(frontier) > _LONG:
            due = sorted(frontier, reverse=True)
            frontier.clear()
        number = due.pop() if due and not (frontier and frontier[0] < due[-1]) else heappop(frontier)
        state = states[number]
        if type(state) is StepState and state.status == WAITING:
            # What has happened since it was held may keep it from starting.
            if held:
                held.pop(number, None)
            if _look(run, decision, state, limits, held, plain):
                held = held or {}
                held[number] = state
        elif type(state) is IterationState and (value := value_of_success(run, state)) is not None:
            done = done or {}
            done.setdefault(state.around, {})[state] = value
        else:
            _look_further(run, decision, state, limits)
    if due:
        # A list in order is a heap.
        frontier += due
        frontier.sort()
    if done:
        _end_iterations(run, decision, done)
    if held:
        steps = held.values()
        decision.events.append(ev.StepsReady(at=[step.node.address for step in steps]))
        steps_ready(run, steps)
        return bound - len(held) + 1
    return bound


def _end_iterations(run: RunState, decision: Decision, done: dict[ScopeState, dict[IterationState, Arg]]) -> None:
    for gather, found in done.items():
        assert gather.block is not None
        indexes = [scope.index for scope in found]
        decision.events.append(ev.IterationsSettled(at=gather.node.address, indexes=indexes, entry=gather.block.entry))
        iterations_succeeded(run, gather, found)


def _look_further(run: RunState, decision: Decision, state: StepState | ScopeState, limits: Limits) -> None:
    """Look at what goes on already: a scope, or a step that its scope may not need any more."""
    if isinstance(state, ScopeState):
        _look_at_scope(run, decision, state, limits)
    elif (
        (stopping := state.around.stopping)
        and state.status not in OUTCOMES
        and (stopping != CANCELLING or state.status != DISPATCHED)
    ):
        cancel(run, decision, state, hard=True)


def _next_ready(run: RunState, limits: Limits) -> StepState | None:
    """The ready step that starts next, if there is room for it."""
    ready, states = run.ready, run.states
    while ready and run.tasks < limits.dispatched and not run.cancelling:
        step = states[ready[0] & NUMBER_OF_KEY]
        if type(step) is StepState and step.status == READY and not step.tasked:
            return step
        heappop(ready)
    return None


def _start_ready(run: RunState, decision: Decision, limits: Limits, bound: int) -> None:
    ready, states, events = run.ready, run.states, decision.events
    plain = _is_plain(run)
    while ready and (room := min(bound - len(events), limits.dispatched - run.tasks)) > 0 and not run.cancelling:
        found = _first(ready, room)
        while found and len(events) < bound:
            step = states[found.pop() & NUMBER_OF_KEY]
            # As in `_next_ready`: the heap is a hint.
            if type(step) is StepState and step.status == READY and not step.tasked:
                if plain and step.node.simple:
                    dispatch_simple(run, decision, step)
                else:
                    _begin(run, decision, step, limits, True)
        for key in found:
            # Some have brought more than one event.
            heappush(ready, key)


def _first(heap: list[int], most: int) -> list[int]:
    """Take so many of the first out of a heap; the first is the last of the list."""
    if most < len(heap) // 16:
        found = [heappop(heap) for _ in range(most)]
    else:
        # A list in order is a heap, and most often it is in order already.
        heap.sort()
        found = heap[:most]
        del heap[:most]
    found.reverse()
    return found


# -- steps -----------------------------------------------------------------------------------------------------------


def _is_plain(run: RunState) -> bool:
    """Whether the run has nothing that bears on when, or with what, a simple step starts, but room for it."""
    return not (run.deadline or run.reports or run.not_before > run.now)


def _look(run: RunState, decision: Decision, step: StepState, limits: Limits, held: Sized, plain: bool) -> bool:
    """Decide a waiting step: skip it, leave it at a fence, or let it start. True if there is no room for that."""
    if run.cancelling or step.around.stopping:
        # The cancel had been past it when the step that adds it, rewound and still running then, brought it back.
        cancel(run, decision, step, hard=run.cancelling == "hard" or step.around.stopping != "")
        return False
    if step.tasked:
        return False
    # What was removed waits for its adder only, whatever its upstreams have counted.
    if step.doomed and (step.doomed == BY_FAILURE or step.removed or not step.waiting):
        _skip(run, decision, step)
        return False
    if step.waiting or step.removed:
        return False
    node = step.node
    if (run.labels or node.signals) and _is_fenced(run, decision, step):
        return False
    # Who became ready earlier goes first.
    room = not held and not run.readied and run.tasks < limits.dispatched
    if plain and room and node.simple:
        dispatch_simple(run, decision, step)
        return False
    if room or node.step.when is not None:
        return _begin(run, decision, step, limits, room)
    return not (run.deadline and fail_late(run, decision, step))


def _is_fenced(run: RunState, decision: Decision, step: StepState) -> bool:
    """Whether a breakpoint or a signal holds a step, which fails there once the run's deadline has passed."""
    node = step.node
    labels = node.step.break_before
    if labels and "b" not in step.released and not run.labels.isdisjoint(labels):
        if not fail_late(run, decision, step):
            reach(run, decision, step, "before", labels)
        return True
    for name in node.signals:
        if name not in run.signals:
            if not fail_late(run, decision, step):
                writable(run, "signal_waiters", run.signal_waiters).setdefault(name, set()).add(node.number)
            return True
    return False


def _begin(run: RunState, decision: Decision, step: StepState, limits: Limits, room: bool) -> bool:
    """Let a step that no other fence holds start, by its condition. True if only the lack of room forbids it."""
    spec = step.node.step
    call: Call | None = None
    if spec.when is not None and step.condition is not True:
        if step.condition is False:
            at = step.node.address
            skipped = ev.StepSkipped(at=at, reason="condition", causes=[at], by_condition=True)
            decision.settle(run, step, skipped)
            return False
        call = _condition(run, decision, step)
        if call is None or fail_late(run, decision, step):
            return False
    if spec.child is not None and run.depth >= limits.depth:
        text = f"the run is {run.depth} calls deep, which is the limit; does {spec.action!r} call itself without end?"
        failure = Failure(code="call_depth", message=text)
        decision.settle(run, step, ev.StepFailed(at=step.node.address, attempt=0, failure=failure))
        return False
    if not room:
        return not fail_late(run, decision, step)
    if call is not None:
        decision.record(run, ev.EvaluationAsked(at=step.node.address, number=step.asking + 1))
        decision.tasks.append(_evaluation(run, step, call))
    else:
        # The delay counts from when the step was ready, in a run that has begun.
        due = run.not_before
        if spec.delay > 0:
            since = run.now if step.status == WAITING else step.ready_at
            due = due_at(max(since, due), spec.delay)
        dispatch(run, decision, step, due if due > run.now else 0.0)
    return False


def _condition(run: RunState, decision: Decision, step: StepState) -> Call | None:
    """What a worker has to be asked to know the step's condition; None if it is known now, or never will be."""
    when = step.spec.when
    assert when is not None
    at = step.node.address
    found = truth(run, step.node, when)
    if found is None:
        _, slots = asking(when)
        try:
            return _asking(run, resolve_args(run, step.node, slots))
        except UnresolvedError as error:
            found = Failure(code="unresolved", message=str(error))
    if isinstance(found, Failure):
        decision.settle(run, step, ev.StepFailed(at=at, attempt=0, failure=found))
    else:
        decision.record(run, ev.ConditionEvaluated(at=at, value=found))
    return None


def _asking(run: RunState, args: dict[str, Arg]) -> Call:
    return Call(args, purpose="condition", data=run.data, dry_run=run.dry_run)


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
        action=asking(spec.when)[0] if spec.when is not None else "",
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


def cancel(run: RunState, decision: Decision, step: StepState, *, hard: bool) -> None:
    """Cancel a step that has no outcome; a hard cancel also interrupts what a worker executes of it."""
    number = step.node.number
    if step.tasked and hard:
        decision.interrupts += (number,)
    if number in run.calls and not run.cancelling:
        # A cancel of the run tells all children at once.
        decision.posts += ((run.calls[number], Cancel(hard=hard)),)
    decision.settle(run, step, ev.StepCancelled(at=step.node.address, live=run.is_live(step)))


def withdraw(run: RunState, decision: Decision) -> None:
    """Cancel the steps whose attempts this very decision asks for: they are in no store yet that could revoke them."""
    for task in decision.tasks:
        step = run.step(task.number)
        assert step is not None
        if undo_runs(step):
            undo_revoked(run, decision, step, "")
        else:
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
            cancel(run, decision, state, hard=run.cancelling == "hard")


# -- scopes and the run ----------------------------------------------------------------------------------------------


def _look_at_scope(run: RunState, decision: Decision, scope: ScopeState, limits: Limits) -> None:
    """Open a group, let a block go on, or give a scope its outcome."""
    # Where detached cells lie has no outcome; the block that waits for them, if it does, is looked at.
    if scope.status != OPEN or _unwinds(scope) or scope.wakes != scope.node.number:
        return
    at = scope.node.address
    # While the run is cancelled no group opens, so one inside a closed group must not wait for that.
    if scope.gated and not scope.doomed and not run.cancelling and not scope.stopping:
        if not scope.waiting and not scope.removed:
            decision.record(run, ev.ScopeOpened(at=at))
        return
    goes_on = scope.watches and not scope.gated and not run.cancelling and not scope.stopping
    if (goes_on and not _proceed(run, decision, scope, limits)) or scope.unsettled:
        return
    if scope is run.root:
        _settle_run(run, decision)
        return
    settled_as = _settled_as(run, scope)
    failing = settled_as.outcome == FAILED and isinstance(scope.node.spec, Phases)
    if not failing or not unwind_block(run, decision, scope):
        decision.record(run, settled_as)


def _unwinds(scope: ScopeState) -> bool:
    """Whether a scope waits for an unwinding: its own, or that of its present row."""
    block = scope.block
    row = block.row if isinstance(block, PhasesProgress) else None
    return scope.unwinding is not None or (row is not None and row.unwinding is not None)


def _proceed(run: RunState, decision: Decision, scope: ScopeState, limits: Limits) -> bool:
    """Let a block that opens its content, or a row, go on; True when its outcome may be fixed."""
    for name in scope.node.signals:
        if name not in run.signals:
            writable(run, "signal_waiters", run.signal_waiters).setdefault(name, set()).add(scope.node.number)
            return run.is_late(scope)
    spec = scope.node.spec
    if isinstance(spec, Phases):
        return proceed_phases(run, decision, scope)
    if isinstance(spec, Gather):
        return proceed_gather(run, decision, scope, limits)
    if isinstance(spec, Choose):
        return proceed_choose(run, decision, scope)
    if scope.bad and scope.unsettled:
        # A row whose cell has failed does not wait for the others.
        decision.record(run, ev.ScopeStopped(at=scope.node.address, reason="failed"))
    return True


def _settled_as(run: RunState, scope: ScopeState) -> ev.ScopeSettled:
    """The event that gives a scope its outcome; its children are settled."""
    outcome, causes = _outcome_of(run, scope)
    by_condition = scope.doomed == BY_CONDITION
    owner = scope.node.owner
    if owner is not None:
        by_condition = run.states[owner.number].by_condition
    failure: Failure | None = None
    if outcome == SUCCEEDED:
        failure = row_failure(scope) if isinstance(scope.node.spec, Phase) else late_block(run, scope)
        try:
            scope_value(run, scope)
        except UnresolvedError as error:
            blamed = run.at(error.blame) if error.blame else None
            if blamed is not None and blamed.by_condition:
                outcome, causes, by_condition = SKIPPED, [blamed], True
            else:
                failure = Failure(code="unresolved", message=str(error))
        if failure is not None:
            outcome = FAILED
    named = [cause.node.address for cause in causes[:MAX_NAMED]]
    return ev.ScopeSettled(
        at=scope.node.address,
        outcome=outcome,
        causes=named,
        by_condition=outcome == SKIPPED and by_condition,
        failure=failure,
    )


def _outcome_of(run: RunState, scope: ScopeState) -> tuple[str, list[StepState | ScopeState]]:
    """The outcome of a scope whose children are settled, and what caused it if it did not succeed."""
    if scope.gated:
        if run.cancelling or scope.cancelled or scope.stopping:
            return CANCELLED, []
        return SKIPPED, causes_of(run, scope)
    block = scope.block
    if isinstance(block, GatherProgress) and block.winner >= 0:
        return SUCCEEDED, []
    if scope.bad:
        return FAILED, [run.states[number] for number in scope.bad]
    # A block that was interrupted is not done, even if all that it had opened is.
    if scope.cancelled or (block is not None and (run.cancelling or scope.stopping)):
        return CANCELLED, []
    owner = scope.node.owner
    if owner is not None and (adder := run.states[owner.number]).status != SUCCEEDED:
        return adder.status, [adder]
    return SUCCEEDED, []


def _settle_run(run: RunState, decision: Decision) -> None:
    root = run.root
    if run.unwindings:
        # In a detached cell; its end puts the root on the frontier.
        return
    failures: list[str] = []
    faults: dict[str, Failure] = {}
    result: Arg = ev.NULL
    missing: list[str] = []
    # A cancel that came before the end wins, even if all steps could finish.
    if run.cancelling or run.cancelled:
        outcome = CANCELLED
    elif root.bad:
        outcome = FAILED
        failures = root_causes(run)[:MAX_NAMED]
        faults = {at: _fault(scope) for at in failures if isinstance(scope := run.at(at), ScopeState)}
    elif root.cancelled:
        outcome = CANCELLED
    else:
        outcome = SUCCEEDED
        result, missing = resolve_output(run)
    if must_unwind(run, outcome) and begin_unwinding(run, decision, root, reason=outcome):
        return
    if run.hold:
        decision.hold = 0
    unwound = how_far(run)
    if unwound:
        decision.unwound = unwound
    settled_as = ev.RunSettled(
        outcome=outcome, result=result, missing=missing, failures=failures, faults=faults, unwound=unwound
    )
    asked = run.asked
    decision.record(run, settled_as)
    if run.parent:
        tell_parent(run, decision, settled_as)
        if asked:
            answer_caller(run, decision, asked)


def root_causes(run: RunState) -> list[str]:
    """Addresses of what is mandatory and failed by itself, first one first; if there is none, of what was skipped."""
    found: list[str] = []
    skipped: list[str] = []
    scopes: list[ScopeState] = [run.root]
    for scope in scopes:
        for number in scope.bad:
            state = run.states[number]
            inside = isinstance(state, ScopeState) and bool(state.bad)
            if isinstance(state, ScopeState):
                scopes.append(state)
            if state.status == FAILED and (state.failure is not None or isinstance(state, StepState)):
                found.append(state.node.address)
            elif not inside:
                skipped.append(state.node.address)
    return found or skipped


def _fault(scope: ScopeState) -> Failure:
    """Why a scope is among the failures of its run."""
    if scope.failure is not None:
        return scope.failure
    return Failure(code=scope.status, message=f"because of {', '.join(scope.causes)}" if scope.causes else "")
