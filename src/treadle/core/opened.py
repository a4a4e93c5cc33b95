"""Part of `apply`: the events by which a block opens its content, asks, decides, or stops what it does not need."""

from __future__ import annotations

from collections.abc import Sequence
from heapq import heappush
from typing import TypeVar

from treadle.core import events as ev
from treadle.core.addresses import child, encode_id
from treadle.core.blocks import AnyBody
from treadle.core.conditions import fixed
from treadle.core.counts import allowed_scope_status, release, retire, retire_question, scope_at
from treadle.core.events import Arg
from treadle.core.graph import Names, Node, link, link_output, place
from treadle.core.moulds import cast, cast_steps, is_plain, mould_of
from treadle.core.plan import (
    Block,
    Body,
    Choose,
    Condition,
    Gather,
    Given,
    Holds,
    MapOf,
    Phase,
    Phases,
    Predicate,
    Slot,
    Step,
)
from treadle.core.progress import ChooseProgress, GatherProgress, PhasesProgress, Sight
from treadle.core.resolve import UnresolvedError, handle_of, known_items, lane_of, pending_of, resolve, scope_value
from treadle.core.state import (
    IterationState,
    NodeState,
    RunState,
    ScopeState,
    StepState,
    new_scope,
    pending_question,
    settled,
)
from treadle.core.tables import OPEN, SUCCEEDED
from treadle.core.undo import StepUndo
from treadle.errors import InternalError

# Why a scope is stopped in which attempts that are executed come to their end.
CANCELLING = "cancelling"
# Built-in actions that evaluate what the kernel cannot see.
ITEMS = "treadle:items"
TEST = "treadle:test"
# Tells whether a value that is not at hand is true.
TRUTH = "treadle:truth"
PAUSE = "treadle:pass"


_Kind = TypeVar("_Kind", PhasesProgress, GatherProgress, ChooseProgress)


def _block(run: RunState, at: str, kind: type[_Kind], event: str) -> tuple[ScopeState, _Kind]:
    """The open block of an event, with its progress."""
    scope = scope_at(run, at)
    allowed_scope_status(scope, event)
    progress = scope.block
    if progress is None or not isinstance(progress, kind) or scope.gated:
        raise InternalError(f"scope {at!r} is another block, or not open yet: {event} is not allowed")
    return scope, progress


def base_of(scope: ScopeState) -> str:
    """The address that the content of a block lies under: its own, with the entry from the second on."""
    assert scope.block is not None
    entry = scope.block.entry
    return scope.node.address if entry == 1 else f"{scope.node.address}#{entry}"


def row_address(block: ScopeState, phase: str, entry: int) -> str:
    """The address of a phase's n-th entry."""
    segment = encode_id(phase)
    return child(base_of(block), segment if entry == 1 else f"{segment}#{entry}")


def compensation_address(row: str, phase: str, entry: int) -> str:
    """The address of a compensating phase's n-th entry: beside the row, in the same entry of the block."""
    segment = encode_id(phase)
    return child(row.rpartition("/")[0], segment if entry == 1 else f"{segment}#{entry}")


def iteration_address(block: ScopeState, index: int) -> str:
    """The address of an item's body."""
    return f"{base_of(block)}[{index}]"


def branch_address(block: ScopeState, branch: str) -> str:
    """The address of a branch."""
    return child(base_of(block), encode_id(branch))


def _open(run: RunState, block: ScopeState, address: str, segment: str, body: AnyBody) -> ScopeState:
    """Make a body's scope; without a segment the block itself knows where it is."""
    node = run.new(address, block.node, body)
    node.constants = block.node.constants
    if segment:
        run.enter(block.node, segment, node)
    scope = run.states[node.number]
    assert isinstance(scope, ScopeState)
    block.unsettled += 1
    return scope


def fill(
    run: RunState,
    scope: ScopeState,
    blocks: list[Block],
    apart: ScopeState | None = None,
    names: Names | None = None,
) -> list[Node]:
    """Place and link a body's blocks; what waits for nothing goes to the frontier. Detached cells lie `apart`.

    Returns the nodes of them, groups before their content.
    """
    states = run.states
    nodes = place(blocks, scope.node, scope.node.constants, run)
    is_iteration = isinstance(scope.node.spec, Body)
    first = scope.node.number
    if apart is not None:
        _detach(run, scope, nodes, apart)
    refs: dict[Node, dict[str, int]] = {}
    for node in nodes:
        state = states[node.number]
        state.around.unsettled += 1
        assert node.scope is not None
        node.needs = link(node, names or run, refs.setdefault(node.scope, {}))
        run.undoes = run.undoes or node.undoable
        if is_iteration:
            # What it takes from outside was there before the gather began.
            node.needs = tuple(edge for edge in node.needs if edge[0] > first)
        for upstream, flags in node.needs:
            above = states[upstream]
            if above.more is None:
                above.more = []
            above.more.append((node.number, flags))
        if isinstance(state, ScopeState):
            state.gated = bool(node.needs) or state.around.gated
    for node in nodes:
        state = states[node.number]
        if node.needs or state.around.gated:
            run.recount(state)
        else:
            heappush(run.frontier, node.number)
    if scope.unsettled == 0:
        heappush(run.frontier, first)
    return nodes


# -- phases ----------------------------------------------------------------------------------------------------------


def row_opened(run: RunState, event: ev.RowOpened) -> None:
    """Enter a phase: a new row with its cells."""
    block, progress = _block(run, event.at, PhasesProgress, "row_opened")
    spec = block.node.spec
    assert isinstance(spec, Phases)
    phase, segment, *_ = progress.phases[event.phase]
    if progress.step < 0:
        progress.state = {name: resolve(run, block.node, slot) for name, slot in spec.state.items()}
    if progress.row is not None:
        retire(block, progress.row)
    retire_question(run, block)
    progress.attempts = progress.attempts + 1 if event.again else 0
    progress.background = [cell for cell in progress.background if not settled(cell)]
    progress.step = event.step
    progress.entries[event.phase] = event.entry
    progress.decision, progress.rule = None, -1
    progress.patches = {}
    named = f"{segment}#{event.entry}"
    address = child(base_of(block), segment if event.entry == 1 else named)
    row = _open(run, block, address, named, phase)
    row.index = event.step
    row.sight = Sight(event.entry, progress.state, progress.previous, pending_of(run, progress))
    progress.row = row
    run.undoes = run.undoes or phase.compensate != ""
    mould = progress.moulds.get(event.phase)
    if mould is not None:
        cast(run, row, mould)
        return
    nodes = fill(run, row, phase.blocks, _outside(run, block, progress) if phase.detached else None)
    if event.entry > 1 and not phase.detached and (mould := mould_of(run, row, nodes)) is not None and mould.closed:
        progress.moulds[event.phase] = mould


def _outside(run: RunState, block: ScopeState, progress: PhasesProgress) -> ScopeState:
    """Where the detached cells of a block lie: in a scope of their own that nobody waits for."""
    outside = progress.detached
    if outside is None:
        node = run.new(child(base_of(block), "~detached"), block.node, None)
        outside = run.states[node.number] = new_scope(node, None)
        outside.wakes = block.node.number
        progress.detached = outside
    return outside


def _detach(run: RunState, row: ScopeState, nodes: list[Node], outside: ScopeState) -> None:
    """Take the detached cells out of what the row counts."""
    phase, progress = row.node.spec, row.around.block
    assert isinstance(phase, Phase)
    assert isinstance(progress, PhasesProgress)
    for node in nodes:
        if node.scope is row.node and lane_of(node.spec) in phase.detached:
            state = run.states[node.number]
            state.around = outside
            run.enter(outside.node, node.address, node)
            progress.background.append(state)


def row_settled(run: RunState, row: ScopeState) -> None:
    """The barrier: patches of a row that succeeded become state, the values of its cells are handed on."""
    block = row.around
    progress = block.block
    if row.status != SUCCEEDED or not isinstance(progress, PhasesProgress) or progress.row is not row:
        return
    phase = row.node.spec
    assert isinstance(phase, Phase)
    assert row.sight is not None
    # From what the row saw: it may come to its barrier again, when a cell that it did without is retried.
    state = row.sight.state
    progress.overwritten = []
    if progress.patches:
        state = dict(state)
        for number in sorted(progress.patches):
            state.update(progress.patches[number])
        progress.overwritten = conflicts(progress)
    progress.state = state
    progress.previous = previous = {}
    states, inside = run.states, run.inside(row.node)
    for id_, segment in progress.phases[phase.id].awaited:
        if (node := inside.get(segment)) is not None and (found := states[node.number]).status == SUCCEEDED:
            previous[id_] = found.result
    if phase.compensate and row.compensates is None:
        _leave(run, row, state, progress.previous)
    # From now on the phase's name means this entry to the rows that follow.
    run.enter(block.node, encode_id(phase.id), row.node)


def _leave(run: RunState, row: ScopeState, state: dict[str, ev.Arg], lanes: dict[str, ev.Arg]) -> None:
    """Keep what the compensating phase of a row is to see."""
    assert row.sight is not None
    if row.undo is None:
        row.undo = StepUndo()
        run.compensable = more(run.compensable, row)
    run.position += 1
    row.ended = run.position
    row.left = Sight(row.sight.entry, state, lanes, {})


def conflicts(progress: PhasesProgress) -> list[str]:
    """Variables that several cells of the present row set."""
    writers: dict[str, int] = {}
    for number in sorted(progress.patches):
        for name in progress.patches[number]:
            writers[name] = writers.get(name, 0) + 1
    return [name for name, count in writers.items() if count > 1]


def decision_made(run: RunState, event: ev.DecisionMade) -> None:
    """Enter what follows the present row."""
    block, progress = _block(run, event.at, PhasesProgress, "decision_made")
    progress.decision = event
    heappush(run.frontier, block.node.number)


# -- gather and choose -----------------------------------------------------------------------------------------------


def iterations_opened(run: RunState, event: ev.IterationsOpened) -> None:
    """Open the bodies of some more items."""
    block, progress = _block(run, event.at, GatherProgress, "iterations_opened")
    spec = block.node.spec
    assert isinstance(spec, Gather)
    if event.start != progress.opened:
        raise InternalError(f"gather {event.at!r} has {progress.opened} items open, not {event.start}")
    if progress.items is None:
        progress.set_items(known_items(resolve(run, block.node, spec.items)) or [])
    base = base_of(block)
    body = spec.body
    mould = progress.mould
    indexes = range(event.start, event.start + event.count)
    if mould is not None and is_plain(mould) and not block.stopping:
        cast_steps(run, block, mould, base, indexes)
        indexes = range(0)
    for index in indexes:
        scope = _open(run, block, f"{base}[{index}]", "", body)
        scope.index = index
        progress.results.append(ev.NULL)
        progress.scopes[index] = scope.node.number
        progress.running += 1
        if mould is not None:
            cast(run, scope, mould)
            continue
        nodes = fill(run, scope, body.blocks)
        link_output(scope.node, body.output, run)
        # One that is not closed lasts as long as no name can change what it means.
        if index > 0 and (mould := mould_of(run, scope, nodes)) is not None and mould.closed:
            progress.mould = mould
    progress.opened += event.count
    if progress.count == 0:
        heappush(run.frontier, block.node.number)


def iterations_settled(run: RunState, event: ev.IterationsSettled) -> None:
    """Give iterations that have succeeded their outcome."""
    block, progress = _block(run, event.at, GatherProgress, "iterations_settled")
    found: dict[IterationState, Arg] = {}
    for index in event.indexes:
        scope = run.states[progress.scopes.get(index, 0)]
        value = value_of_success(run, scope) if type(scope) is IterationState else None
        if type(scope) is not IterationState or value is None or event.entry != progress.entry:
            raise InternalError(f"gather {event.at!r}: not all of {event.indexes} are iterations that may succeed now")
        found[scope] = value
    iterations_succeeded(run, block, found)


def iterations_succeeded(run: RunState, block: ScopeState, found: dict[IterationState, Arg]) -> None:
    """Apply `IterationsSettled` to the iterations that it names, each with its value."""
    progress = block.block
    assert isinstance(progress, GatherProgress)
    results = progress.results
    for scope, value in found.items():
        scope.status, scope.result = SUCCEEDED, value
        results[scope.index] = value
        if scope.more is not None:
            release(run, scope)
    if progress.first and progress.winner < 0:
        progress.winner = next(iter(found)).index
    if run.forgets:
        run.closed = [*run.closed, *found]
    progress.running -= len(found)
    block.unsettled -= len(found)
    heappush(run.frontier, block.node.number)


def value_of_success(run: RunState, scope: IterationState) -> Arg | None:
    """The value of an iteration that is done, and in which nothing speaks against its success; else None."""
    if scope.status != OPEN or scope.unsettled or scope.bad or scope.cancelled or scope.unwinding is not None:
        return None
    progress = scope.around.block
    assert isinstance(progress, GatherProgress)
    mould = progress.mould
    if mould is not None and mould.giver >= 0:
        # The plain case of `scope_value`.
        giver = run.states[scope.node.number + 1 + mould.giver]
        if giver.status == SUCCEEDED:
            return giver.result
    try:
        return scope_value(run, scope)
    except UnresolvedError:
        return None


def more(found: Sequence[ScopeState], scope: ScopeState) -> Sequence[ScopeState]:
    """What is found so far with one more, in a list that is made for the first."""
    if isinstance(found, list):
        found.append(scope)
        return found
    return [*found, scope]


def iteration_settled(run: RunState, scope: ScopeState, progress: GatherProgress) -> None:
    """Keep an iteration's value."""
    progress.running -= 1
    if scope.status == SUCCEEDED:
        if run.forgets:
            run.closed = more(run.closed, scope)
        progress.results[scope.index] = scope.result
        if progress.first and progress.winner < 0:
            progress.winner = scope.index


def branch_chosen(run: RunState, event: ev.BranchChosen) -> None:
    """Open the branch of a choose."""
    block, progress = _block(run, event.at, ChooseProgress, "branch_chosen")
    spec = block.node.spec
    assert isinstance(spec, Choose)
    progress.branch = event.branch
    if not event.branch:
        heappush(run.frontier, block.node.number)
        return
    body = next(branch for branch in spec.branches if branch.id == event.branch)
    scope = progress.scope = _open(run, block, branch_address(block, body.id), encode_id(body.id), body)
    fill(run, scope, body.blocks)
    link_output(scope.node, body.output, run)


def settled_inside(run: RunState, scope: ScopeState) -> None:
    """A row, iteration or branch has its outcome: the block around takes note."""
    spec = scope.node.spec
    if isinstance(spec, Phase):
        row_settled(run, scope)
    elif isinstance(spec, Body):
        progress = scope.around.block
        assert isinstance(progress, GatherProgress)
        iteration_settled(run, scope, progress)


# -- questions -------------------------------------------------------------------------------------------------------


def scope_asked(run: RunState, event: ev.ScopeAsked) -> None:
    """Make the step that finds out for a block what the kernel cannot see."""
    scope = scope_at(run, event.at)
    allowed_scope_status(scope, "scope_asked")
    progress = scope.block
    if progress is None or scope.gated or pending_question(run, scope) is not None:
        raise InternalError(f"scope {event.at!r} may ask nothing now: scope_asked is not allowed")
    retire_question(run, scope)
    if isinstance(progress, ChooseProgress) and progress.conditions is None:
        assert isinstance(scope.node.spec, Choose)
        progress.conditions = [fixed(run, scope.node, branch.when) for branch in scope.node.spec.branches]
    segment = f"~{event.what}" if event.number == 1 else f"~{event.what}#{event.number}"
    node = run.new(child(base_of(scope), segment), scope.node, question(scope, event))
    node.constants, node.refs = scope.node.constants, scope.node.refs
    run.enter(scope.node, segment, node)
    step = run.states[node.number]
    assert isinstance(step, StepState)
    scope.unsettled += 1
    progress.question = node.number
    progress.asked = event.number
    if isinstance(progress, PhasesProgress):
        progress.rule = event.index
    elif isinstance(progress, ChooseProgress):
        progress.tried = event.index
    heappush(run.frontier, node.number)


def question(scope: ScopeState, event: ev.ScopeAsked) -> Step:
    """The step that answers a block's question."""
    spec = scope.node.spec
    name = f"~{event.what}"
    if event.what == "wait":
        return Step(id=name, action=PAUSE, delay=event.delay)
    if event.what == "items":
        assert isinstance(spec, Gather)
        return Step(id=name, action=ITEMS, slots={"items": spec.items})
    condition = condition_at(scope, event.index)
    assert condition is not None
    action, slots = asking(condition)
    return Step(id=name, action=action, slots=slots)


def condition_at(scope: ScopeState, index: int) -> Condition | Given | None:
    """The condition of a block's n-th branch, or of the n-th rule that may follow its present row."""
    spec = scope.node.spec
    progress = scope.block
    if isinstance(spec, Choose):
        assert isinstance(progress, ChooseProgress)
        return spec.branches[index].when if progress.conditions is None else progress.conditions[index]
    assert isinstance(spec, Phases)
    assert isinstance(progress, PhasesProgress)
    assert progress.row is not None
    phase = progress.row.node.spec
    assert isinstance(phase, Phase)
    return spec.policies[phase.policy][index].when


def asking(condition: Condition | Given) -> tuple[str, dict[str, Slot]]:
    """The action that evaluates a condition, and its slots."""
    if isinstance(condition, Predicate):
        return condition.name, condition.slots
    if isinstance(condition, Holds):
        return TEST, {"text": Given(handle_of(condition.text)), "values": MapOf(condition.slots, partial=True)}
    return TRUTH, {"value": condition}


# -- stopping --------------------------------------------------------------------------------------------------------


def scope_stopped(run: RunState, event: ev.ScopeStopped) -> None:
    """Let all that lives in a scope be cancelled."""
    scope = scope_at(run, event.at)
    allowed_scope_status(scope, "scope_stopped")
    _stop(run, scope, event.reason)
    heappush(run.frontier, scope.wakes)


def _stop(run: RunState, scope: ScopeState, reason: str) -> None:
    scope.stopping = reason
    inside = reason if reason == CANCELLING else "cancelled"
    for state in _inside(run, scope):
        if isinstance(state, StepState) and (own := run.own.get(state.node.number)) is not None and not settled(own):
            _stop(run, own, inside)
        if not settled(state):
            heappush(run.frontier, state.node.number)
            if isinstance(state, ScopeState):
                _stop(run, state, inside)
    progress = scope.block
    if isinstance(progress, PhasesProgress) and progress.detached is not None:
        _stop(run, progress.detached, "cancelled")


def _inside(run: RunState, scope: ScopeState) -> list[NodeState]:
    """What lies in a scope. Detached cells have their names in their rows and lie apart."""
    around = run.states[scope.node.scope.number] if scope.node.scope is not None else None
    if isinstance(around, ScopeState) and isinstance(around.block, PhasesProgress) and around.block.detached is scope:
        return list(around.block.background)
    return run.content(scope)
