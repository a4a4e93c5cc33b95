"""The counters of a run: what an outcome, or taking one back, does to the scope around and to the dependents.

Part of `apply`: only the handlers of events call this. Every node counts what it still waits for (`waiting`), every
scope its children without an outcome (`unsettled`); whoever reaches zero goes to the frontier.
"""

from __future__ import annotations

from heapq import heappush

from treadle.core.events import NULL
from treadle.core.plan import Body
from treadle.core.progress import GatherProgress, PhasesProgress
from treadle.core.state import (
    BY_FAILURE,
    NodeState,
    RunState,
    ScopeState,
    StepState,
    counts_as_cancelled,
    doom_of,
    doom_of_removed,
    is_bad,
    new_scope,
    question_of,
)
from treadle.core.tables import OUTCOMES, READY, SCOPE, STEP, SUCCEEDED
from treadle.errors import InternalError


def step_of(run: RunState, at: str) -> StepState:
    """The step that an event names."""
    number = run.graph.index.get(at)
    if number is None:
        number = run.index.get(at, -1)
    states = run.states
    if 0 <= number < len(states):
        step = states[number]
        if type(step) is StepState:
            return step
    raise InternalError(f"run {run.run_id!r}: an event names step {at!r}, which is not there")


def scope_at(run: RunState, at: str) -> ScopeState:
    """The scope that an event names."""
    scope = run.at(at)
    if not isinstance(scope, ScopeState):
        raise InternalError(f"run {run.run_id!r}: an event names scope {at!r}, which is not there")
    return scope


def allowed_status(step: StepState, kind: str) -> str:
    """The status that an event of this kind leads to, by the table."""
    status = STEP.get((step.status, kind))
    if status is None:
        raise InternalError(f"step {step.node.address!r} is {step.status}: {kind} is not allowed")
    return status


def allowed_scope_status(scope: ScopeState, kind: str) -> str:
    """As `allowed_status`, for scopes."""
    status = SCOPE.get((scope.status, kind))
    if status is None:
        raise InternalError(f"scope {scope.node.address!r} is {scope.status}: {kind} is not allowed")
    return status


def task(run: RunState, step: StepState, attempt: int) -> None:
    """The step has a task in the store from now on."""
    if not step.tasked:
        run.tasks += 1
    step.tasked = attempt


def untask(run: RunState, step: StepState) -> None:
    """The step's task, if it has one, is over."""
    if step.tasked:
        step.tasked = 0
        run.tasks -= 1


def settle(run: RunState, state: StepState | ScopeState) -> None:
    """Count the outcome in the scope around and release the dependents."""
    around = state.around
    around.unsettled -= 1
    if run.undoes and isinstance(state, StepState):
        mark_ended(run, state)
    if state.status != SUCCEEDED:
        if is_bad(state):
            mark_bad(around, state.node.number)
        elif counts_as_cancelled(state):
            around.cancelled += 1
    # A row goes on early only where a cell has not succeeded; what opens its content may open more of it.
    if around.unsettled == 0 or (around.watches and (around.block is not None or state.status != SUCCEEDED)):
        heappush(run.frontier, around.wakes)
    if run.own or run.added_by:
        _settle_adder(run, state)
    if not state.holding and (state.node.dependents or state.more is not None):
        release(run, state)


def settle_success(run: RunState, step: StepState) -> None:
    """As `settle`, for a step that succeeded: the most frequent case by far."""
    around, node = step.around, step.node
    around.unsettled = unsettled = around.unsettled - 1
    if run.undoes:
        mark_ended(run, step)
    frontier = run.frontier
    if not unsettled or (around.watches and around.block is not None):
        heappush(frontier, around.wakes)
    if run.own or run.added_by:
        _settle_adder(run, step)
    if step.holding:
        return
    states = run.states
    for number, _ in node.dependents if step.more is None else run.dependents(step):
        dependent = states[number]
        dependent.waiting = waiting = dependent.waiting - 1
        if not waiting:
            heappush(frontier, number)


def mark_bad(scope: ScopeState, number: int) -> None:
    """Note a child that fails the scope. Most scopes have none, and no container for them."""
    if isinstance(scope.bad, dict):
        scope.bad[number] = None
    else:
        scope.bad = {number: None}


def unmark_bad(scope: ScopeState, number: int) -> None:
    """Take a child out of those that fail the scope, if it is one."""
    if isinstance(scope.bad, dict):
        scope.bad.pop(number, None)


def mark_ended(run: RunState, step: StepState) -> None:
    """Note where in the run's order the step ended: undos go by it."""
    run.position += 1
    step.ended = run.position


def _settle_adder(run: RunState, state: NodeState) -> None:
    """Count an adder in the scope of what it adds, and let go of what it has not added again."""
    number = state.node.number
    own = run.own.get(number)
    if own is not None:
        own.unsettled -= 1
        if own.unsettled == 0:
            heappush(run.frontier, own.node.number)
    for added in run.added_by.get(number, ()):
        gone = run.states[added]
        if gone.removed and gone.status not in OUTCOMES:
            gone.waiting = 0
            gone.doomed = doom_of_removed(state)
            heappush(run.frontier, added)


def release(run: RunState, state: NodeState) -> None:
    """Tell the dependents of a settled node that it is."""
    states = run.states
    frontier = run.frontier
    dooms = state.status != SUCCEEDED
    for number, flags in state.node.dependents if state.more is None else run.dependents(state):
        dependent = states[number]
        dependent.waiting = waiting = dependent.waiting - 1
        if dooms and (level := doom_of(state, flags)) > dependent.doomed:
            doom(run, dependent, level)
        if not waiting:
            heappush(frontier, number)


def doom(run: RunState, state: NodeState, level: int) -> None:
    """Forbid a node to run, and with a group all that waits in it."""
    # What is taken back by a rewind waits for its adder only.
    if state.removed or state.doomed >= level:
        return
    state.doomed = level
    if level == BY_FAILURE:
        heappush(run.frontier, state.node.number)
    if isinstance(state, ScopeState) and state.gated:
        for inner in run.content(state):
            if inner.status not in OUTCOMES:
                doom(run, inner, level)


def closed_of(block: ScopeState) -> ScopeState:
    """Where a block keeps what it has left behind: nobody counts it there."""
    progress = block.block
    assert progress is not None
    if progress.closed is None:
        progress.closed = new_scope(block.node, None)
        progress.closed.block = progress
    return progress.closed


def retire(block: ScopeState, state: NodeState) -> None:
    """Leave a settled row or question of a block behind: its outcome means nothing to the block any more."""
    unmark_bad(block, state.node.number)
    if counts_as_cancelled(state):
        block.cancelled -= 1
    state.around = closed_of(block)


def retire_question(run: RunState, block: ScopeState) -> None:
    """Leave behind what a block has asked last, if anything."""
    if (asking := question_of(run, block)) is not None:
        retire(block, asking)
    assert block.block is not None
    block.block.question = -1


def unsettle(run: RunState, scope: ScopeState, reopened: dict[int, NodeState]) -> None:
    """Reopen a settled scope and those around it; each is entered in `reopened`."""
    if scope is scope.around:
        # No outcome but the run's own end waits for a detached cell.
        scope = run.root
    if scope.status not in OUTCOMES:
        return
    status = allowed_scope_status(scope, "steps_reopened")
    reopened[scope.node.number] = scope
    if scope is not scope.around:
        take_back(run, scope, reopened)
    scope.status = status
    scope.by_condition = False
    scope.causes = []
    scope.failure = None
    scope.stopping = ""
    scope.unwound = ""
    scope.result = NULL
    if isinstance(scope.block, PhasesProgress) and scope.block.detached is not None:
        scope.block.detached.stopping = ""
    _unsettle_inside(run, scope)


def _unsettle_inside(run: RunState, scope: ScopeState) -> None:
    """An iteration is under way again; what was found after a row has to be found anew."""
    block = scope.around
    progress = block.block
    if isinstance(scope.node.spec, Body) and isinstance(progress, GatherProgress):
        progress.running += 1
        progress.results[scope.index] = NULL
    elif isinstance(progress, PhasesProgress) and progress.row is scope:
        progress.attempts = 0
        progress.decision, progress.rule = None, -1
        retire_question(run, block)


def take_back(run: RunState, state: StepState | ScopeState, reopened: dict[int, NodeState]) -> None:
    """Take an outcome out of the counts of the scope around, which reopens. Comes before the change of status."""
    around = state.around
    # First: what the scope counted is what its own outcome was made of.
    unsettle(run, around, reopened)
    if counts_as_cancelled(state):
        around.cancelled -= 1
    else:
        unmark_bad(around, state.node.number)
    around.unsettled += 1


def reset(run: RunState, step: StepState, status: str, reopened: dict[int, NodeState], *, rewind: bool) -> None:
    """Make a step wait again, as if it had never started; a rewind gives it the next generation."""
    if step.status in OUTCOMES:
        take_back(run, step, reopened)
        own = run.own.get(step.node.number)
        if own is not None:
            unsettle(run, own, reopened)
            own.unsettled += 1
    elif step.status == READY:
        run.readied -= 1
    reopened[step.node.number] = step
    step.status = status
    step.failures = 0
    step.lost = 0
    step.failure = None
    step.result = ""
    step.by_condition = False
    step.causes = []
    step.holding = False
    step.ended = 0
    run.deadlines.pop(step.node.number, None)
    run.keys.pop(step.node.number, None)
    step.ready_at = step.dispatched_at = step.started_at = step.finished_at = step.not_before = 0.0
    if rewind:
        step.generation += 1
        run.reports.pop(step.node.number, None)
        # A condition and a release hold for all of a generation.
        step.condition = None
        step.released = step.reached = ""
        step.undo = None


def recount_all(run: RunState, reopened: dict[int, NodeState]) -> None:
    """Count anew what the reopened nodes, their dependents and the content of closed groups among them wait for."""
    touched: set[int] = set()
    queue = list(reopened)
    for number in reopened:
        queue += (dependent for dependent, _ in run.dependents(run.states[number]))
    while queue:
        number = queue.pop()
        state = run.states[number]
        if number in touched or state.status in OUTCOMES:
            continue
        touched.add(number)
        if isinstance(state, ScopeState) and state.gated:
            queue += (inner.node.number for inner in run.content(state))
    # A scope's number is lower than those of its content, which look at it.
    for number in sorted(touched):
        run.recount(run.states[number])
