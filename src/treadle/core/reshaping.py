"""Part of `apply`: the events that change the shape of a run's graph, or take outcomes back."""

from __future__ import annotations

from treadle.core import events as ev
from treadle.core.addresses import encode_id
from treadle.core.counts import (
    allowed_scope_status,
    allowed_status,
    closed_of,
    recount_all,
    reset,
    scope_at,
    step_of,
    unsettle,
)
from treadle.core.graph import Node, link, place
from treadle.core.plan import Block, Choose, Gather, Group, Phase, Phases
from treadle.core.progress import PhasesProgress, new_progress
from treadle.core.sparse import writable
from treadle.core.state import NodeState, RunState, ScopeState, StepState, settled
from treadle.core.tables import RUN
from treadle.errors import InternalError


def steps_added(run: RunState, event: ev.StepsAdded) -> None:
    """Make the nodes of added blocks, or bring back those that a rewind had removed."""
    if (run.status, "steps_added") not in RUN:
        raise InternalError(f"run {run.run_id!r} is {run.status}: no step can be added")
    into = run.at(event.into)
    if into is None:
        raise InternalError(f"run {run.run_id!r}: steps were added to {event.into!r}, which is not there")
    adder = step_of(run, event.by)
    known = known_nodes(run, event.blocks, _scope_node(run, into))
    _check_revived(run, known)
    scope = run.scope_of(into.node) if into.node.is_step else into.node
    for segment, address in event.aliases.items():
        run.enter(scope, segment, step_of(run, address).node)
    changed: dict[int, NodeState] = {}
    for _, node in known:
        _revive(run, run.states[node.number], changed)
    count = len(run.states)
    nodes = place(event.blocks, scope, event.constants, run)
    for node in nodes:
        if node.number >= count:
            state = run.states[node.number]
            changed[node.number] = state
            state.around.unsettled += 1
    for node in nodes:
        if event.worker:
            writable(run, "added_on", run.added_on)[node.number] = event.worker
        _connect(run, node, adder)
        run.undoes = run.undoes or node.undoable
    recount_all(run, changed)


def _scope_node(run: RunState, into: StepState | ScopeState) -> Node | None:
    if isinstance(into, ScopeState):
        return into.node
    own = run.own.get(into.node.number)
    return own.node if own is not None else None


def _check_revived(run: RunState, known: list[tuple[Block, Node]]) -> None:
    """Raise if a block is there and was not taken back, before anything has changed."""
    for block, node in known:
        state = run.states[node.number]
        if not (state.removed or state.dropped) or type(node.spec) is not type(block):
            raise InternalError(f"run {run.run_id!r}: {node.address!r} was added although it is there")
        if isinstance(state, StepState):
            allowed_status(state, "steps_added")
        else:
            allowed_scope_status(state, "steps_added")


def known_nodes(run: RunState, blocks: list[Block], scope: Node | None) -> list[tuple[Block, Node]]:
    """Those of the blocks, and of the content of groups among them, whose ids are in the scope already."""
    found: list[tuple[Block, Node]] = []
    for block in blocks:
        node = run.find(scope, encode_id(block.id)) if scope is not None else None
        if node is not None:
            found.append((block, node))
            if isinstance(block, Group):
                found += known_nodes(run, block.blocks, node)
    return found


def _revive(run: RunState, state: StepState | ScopeState, changed: dict[int, NodeState]) -> None:
    """Let a node that was taken back live again: its old edges go, `_connect` makes the new ones."""
    number = state.node.number
    for upstream, _ in state.node.needs:
        above = run.states[upstream]
        above.more = [edge for edge in above.more or () if edge[0] != number]
    former = run.adder.get(number)
    if former is not None:
        run.added_by[former].remove(number)
    if isinstance(state, StepState):
        reset(run, state, allowed_status(state, "steps_added"), changed, rewind=False)
    else:
        _reopen_scope(run, state, changed)
    state.removed = state.dropped = False


def _connect(run: RunState, node: Node, adder: StepState) -> None:
    """Resolve the names of an added node and enter it with its upstreams and its adder."""
    state = run.states[node.number]
    # Set even if there are none: a step that a rewind took back may have had some.
    node.needs = link(node, run, {})
    if isinstance(state, ScopeState):
        state.gated = bool(node.needs) or state.around.gated
    elif node.step.dedup is not None:
        writable(run, "dedup", run.dedup)[node.step.dedup] = node.number
    for upstream, flags in node.needs:
        above = run.states[upstream]
        if above.more is None:
            above.more = []
        above.more.append((node.number, flags))
    writable(run, "adder", run.adder)[node.number] = adder.node.number
    writable(run, "added_by", run.added_by).setdefault(adder.node.number, []).append(node.number)


def steps_reopened(run: RunState, event: ev.StepsReopened) -> None:
    """Take outcomes back. What a rewind removes waits for its adder to add it again."""
    status = RUN.get((run.status, "steps_reopened"))
    if status is None:
        raise InternalError(f"run {run.run_id!r} is {run.status}: nothing can be reopened")
    if run.unwindings:
        raise InternalError(f"run {run.run_id!r} is being unwound: nothing can be reopened")
    steps = [step_of(run, at) for at in event.at]
    scopes = [scope_at(run, at) for at in event.scopes]
    removed: list[StepState | ScopeState] = []
    for at in event.removed:
        state = run.at(at)
        if state is None or state.node.number not in run.adder:
            raise InternalError(f"run {run.run_id!r}: {at!r} was removed, which no step has added")
        removed.append(state)
    restarted = [_begun_block(run, at) for at in event.restarted]
    again = [*steps, *(gone for gone in removed if isinstance(gone, StepState))]
    waiting = {step: allowed_status(step, "steps_reopened") for step in again}
    if busy := [step.node.address for step in waiting if run.is_live(step)]:
        raise InternalError(f"run {run.run_id!r}: {busy[0]!r} was reopened while it is being executed")
    _go_on(run, status)
    reopened: dict[int, NodeState] = {}
    unsettle(run, run.root, reopened)
    for gone in removed:
        gone.removed, gone.dropped = True, False
    for block in restarted:
        _close(run, block)
    scopes += restarted
    for scope in sorted([*scopes, *(gone for gone in removed if isinstance(gone, ScopeState))], key=_number):
        _reopen_scope(run, scope, reopened)
    for step, after in waiting.items():
        reset(run, step, after, reopened, rewind=event.rewind)
    recount_all(run, reopened)


def _go_on(run: RunState, status: str) -> None:
    """The run has no outcome any more, and nothing that was to end it."""
    run.status = status
    run.cancelling = ""
    run.unwind = run.cancelled = run.unwound = False
    # Who has it run again wants it to.
    run.deadline = 0.0
    run.root.unwound = ""
    run.result = ev.NULL
    run.missing = ()
    if run.window is not None:
        # Nothing of such a run is settled before its timer.
        run.window.closed = True


def _number(state: NodeState) -> int:
    return state.node.number


def _reopen_scope(run: RunState, scope: ScopeState, reopened: dict[int, NodeState]) -> None:
    """Make a scope wait again for what it needs, before its content may start; a block that has begun goes on."""
    unsettle(run, scope, reopened)
    reopened[scope.node.number] = scope
    begun = scope.block is not None and scope.block.begun
    scope.gated = scope.removed or (not begun and (scope.around.gated or bool(scope.node.needs)))


# -- the next entry of a block ---------------------------------------------------------------------------------------


def _begun_block(run: RunState, at: str) -> ScopeState:
    """The block that an event restarts."""
    block = scope_at(run, at)
    if block.block is None or not block.block.begun:
        raise InternalError(f"run {run.run_id!r}: {at!r} holds nothing that a next entry could leave behind")
    if busy := [state.node.address for state in below(run, block) if not settled(state)]:
        raise InternalError(f"run {run.run_id!r}: {busy[0]!r} was to be closed before it is settled")
    return block


def below(run: RunState, scope: ScopeState) -> list[NodeState]:
    """All that lies in a scope of the run's present, at any depth; detached cells and what steps added included."""
    found: list[NodeState] = []
    queue: list[ScopeState] = [scope]
    while queue:
        around = queue.pop()
        inside = run.content(around)
        found += inside
        if isinstance(around.block, PhasesProgress) and around.block.detached is not None:
            queue.append(around.block.detached)
        for state in inside:
            own = state if isinstance(state, ScopeState) else run.own.get(state.node.number)
            if own is not None:
                queue.append(own)
                if own is not state:
                    found.append(own)
    return found


def steps_below(run: RunState, scope: ScopeState) -> list[StepState]:
    """All steps of a scope's present entry, at any depth: rows and questions that it has gone past are included."""
    if scope is run.root:
        return run.steps()
    found: list[StepState] = []
    queue: list[NodeState] = [scope]
    for state in queue:
        if isinstance(state, StepState):
            found.append(state)
            own = run.own.get(state.node.number)
            if own is not None:
                queue.append(own)
        else:
            queue += _held(run, state)
    return found


def _held(run: RunState, scope: ScopeState) -> list[NodeState]:
    """What lies directly in a scope, with what its present entry has gone past; a row has its detached cells."""
    own = scope.block
    if own is not None and own.closed is not None:
        places = (scope, own.closed)
    else:
        block = scope.around.block if isinstance(scope.node.spec, Phase) else None
        detached = block.detached if isinstance(block, PhasesProgress) else None
        if detached is None:
            return run.content(scope)
        places = (scope, detached)
    # A name may mean a newer node by now, beside the one that it was made for.
    inside = {node.number for node in run.inside(scope.node).values()}
    return [state for number in sorted(inside) if (state := run.states[number]).around in places]


def _close(run: RunState, block: ScopeState) -> None:
    """Leave a block's entry behind: its content keeps its addresses and outcomes, and takes part in nothing."""
    spec, progress = block.node.spec, block.block
    assert isinstance(spec, Gather | Choose | Phases)
    assert progress is not None
    inside = below(run, block)
    closed = {state.node.number for state in inside}
    upstreams = {number for state in inside for number, _ in state.node.needs} - closed
    for number in upstreams:
        above = run.states[number]
        above.more = [edge for edge in above.more or () if edge[0] not in closed]
    run.dedup = {key: number for key, number in run.dedup.items() if number not in closed}
    for number in sorted(closed):
        for added in [added for added in run.added_by.get(number, ()) if added not in closed]:
            # The next entry may add it again: what waits for it waits for the block.
            run.added_by[number].remove(added)
            run.adder[added] = block.node.number
            run.added_by.setdefault(block.node.number, []).append(added)
    apart = closed_of(block)
    for state in run.content(block):
        state.around = apart
    run.children.pop(block.node.number, None)
    block.block = new_progress(spec, progress.entry + 1)
    block.unwound = ""
    block.bad, block.cancelled, block.unsettled = (), 0, 0
