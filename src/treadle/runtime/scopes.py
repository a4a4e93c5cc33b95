"""How the scopes of a run look now: groups, blocks that open their content, their rows, iterations and branches.

Part of the read model of `inspection`, which puts these views into its snapshot.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Final, Literal

import msgspec

from treadle.core import events as ev
from treadle.core.addresses import encode_id
from treadle.core.blocks import AnyBody, bodies_of
from treadle.core.events import AnyEvent, Arg
from treadle.core.graph import Node
from treadle.core.opened import base_of, compensation_address
from treadle.core.plan import Block, Body, Branch, Choose, Gather, Group, Phase, Phases, Step
from treadle.core.progress import ChooseProgress, GatherProgress, PhasesProgress
from treadle.core.resolve import pending_of
from treadle.core.state import NodeState, RunState, ScopeState, StepState, settled
from treadle.core.tables import FAILED, NONE, NOT_COMPENSABLE, OPEN, RUNNING, WAITING
from treadle.core.undo import StepUndo

Kind = Literal["group", "phases", "row", "compensation", "gather", "iteration", "choose", "branch"]
_KINDS: Final[dict[type, Kind]] = {
    Group: "group",
    Phases: "phases",
    Phase: "row",
    Gather: "gather",
    Body: "iteration",
    Choose: "choose",
    Branch: "branch",
}


# A segment of an address: an id, then an entry and the number of an item, where they are written.
SEGMENT: Final = re.compile(r"(?P<name>[^#\[]*)(?:#(?P<entry>\d+))?(?:\[(?P<index>\d+)\])?")


class GatherFacts(msgspec.Struct, frozen=True, kw_only=True):
    """How far a gather is. `count` is None while its items are not known; `iterations` are those opened, by status."""

    mode: str
    limit: int
    count: int | None
    opened: int
    iterations: dict[str, int]


class PhasesFacts(msgspec.Struct, frozen=True, kw_only=True):
    """How far a Phases block is: the row it stands at (`step` counts from 0, -1: none yet), and its state."""

    phase: str
    step: int
    state: dict[str, Arg]
    # Detached cells that have not ended, by lane.
    pending: dict[str, int]


class ScopeView(msgspec.Struct, frozen=True, kw_only=True):
    """One scope. Times are seconds since the epoch, None where nothing happened yet."""

    address: str
    id: str
    kind: Kind
    # Its place in the order in which steps and scopes came into the run.
    number: int
    # The address of the scope around, empty at the top.
    scope: str
    # `waiting` (for what it needs), `open`, or its outcome.
    status: str
    optional: bool
    # A cell that nobody waits for.
    detached: bool
    # For a row: its number among all executed rows, from 0; for an iteration: the number of its item.
    index: int | None
    # For a row: it is another try of the phase before, which failed.
    again: bool
    opened_at: float | None
    finished_at: float | None
    # Why what lives in it is cancelled: `failed`, `met` or `cancelled`.
    stopping: str
    causes: list[str]
    by_condition: bool
    # What failed it, where that is no block in it.
    failure: ev.Failure | None
    waiting_on: list[str]
    missing_signals: list[str]
    gather: GatherFacts | None = None
    phases: PhasesFacts | None = None
    # For a choose: the branch that was chosen, empty for none of them, None while that is open.
    branch: str | None = None
    # For a row whose phase can be compensated: the status of that; why it failed, is skipped or parked. For a
    # compensation: the row that it is for.
    undo: str = NONE
    undo_reason: str = ""
    compensates: str = ""


class DecisionView(msgspec.Struct, frozen=True, kw_only=True):
    """What followed a row of the Phases block `at`, as the journal has it; `target` is empty if the block ended."""

    at: str
    phase: str
    step: int
    move: str
    policy: str
    rule: str
    target: str
    # Why nothing follows: no rule held, one could not be evaluated, or the limit of rows is reached.
    failure: ev.Failure | None
    overwritten: list[str]
    decided_at: float


class ScopeHistory:
    """What the journal tells of scopes and the state does not keep."""

    __slots__ = ("again", "decisions", "finished", "opened")

    def __init__(self) -> None:
        # Address -> time.
        self.opened: dict[str, float] = {}
        self.finished: dict[str, float] = {}
        self.again: set[str] = set()
        self.decisions: list[DecisionView] = []

    def note(self, run: RunState, time: float, event: AnyEvent) -> None:
        """Keep an event that was applied to the run."""
        match event:
            case ev.ScopeOpened(at=at):
                self.opened[at] = time
            case ev.ScopeSettled(at=at):
                self.finished[at] = time
            case ev.IterationsSettled():
                self.finished.update(dict.fromkeys(event.addresses(), time))
            case ev.RowOpened() | ev.IterationsOpened() | ev.BranchChosen() | ev.DecisionMade():
                self._note_block(run, time, event)
            case ev.CompensationOpened():
                self.opened[compensation_address(event.at, event.phase, event.entry)] = time
            case ev.StepsReopened():
                # A scope that is open again has no end.
                self.finished = {at: since for at, since in self.finished.items() if _is_settled(run, at)}
            case _:
                pass

    def _note_block(self, run: RunState, time: float, event: AnyEvent) -> None:
        block = run.at(getattr(event, "at", ""))
        assert isinstance(block, ScopeState)
        progress = block.block
        match event, progress:
            case ev.RowOpened(again=again), PhasesProgress(row=ScopeState() as row):
                self.opened[row.node.address] = time
                if again:
                    self.again.add(row.node.address)
            case ev.IterationsOpened(start=start, count=count), _:
                base = base_of(block)
                self.opened.update((f"{base}[{index}]", time) for index in range(start, start + count))
            case ev.BranchChosen(), ChooseProgress(scope=ScopeState() as branch):
                self.opened[branch.node.address] = time
            case ev.DecisionMade(), PhasesProgress(row=ScopeState() as row):
                self.decisions.append(_decision(event, row, time))
            case _:
                pass


def _is_settled(run: RunState, address: str) -> bool:
    state = run.at(address)
    return state is not None and settled(state)


def _decision(event: ev.DecisionMade, row: ScopeState, time: float) -> DecisionView:
    phase = row.node.spec
    assert isinstance(phase, Phase)
    return DecisionView(
        at=event.at,
        phase=phase.id,
        step=event.step,
        move=event.move,
        policy=event.policy,
        rule=event.rule,
        target=event.target,
        failure=event.failure,
        overwritten=list(event.overwritten),
        decided_at=time,
    )


# -- what a node is ----------------------------------------------------------------------------------------------------


def is_evaluation(step: StepState) -> bool:
    """Whether the step answers a question of a block (`~items`, `~rule`, `~when`), or lets time pass for it."""
    around = step.node.scope
    return around is not None and isinstance(around.spec, (Gather, Choose, Phases))


def is_detached(state: NodeState) -> bool:
    """Whether the node is a cell that nobody waits for: it lies in a scope apart from its row's."""
    around, row = state.around.node, state.node.scope
    return around is not row and row is not None and isinstance(row.spec, Phase)


def planned_at(blocks: Sequence[Block], address: str) -> Block | AnyBody | None:
    """What a plan's blocks have at an address below them, in whichever entry; None if there is nothing."""
    first, _, rest = address.partition("/")
    match = SEGMENT.fullmatch(first)
    found = next((block for block in blocks if match is not None and encode_id(block.id) == match["name"]), None)
    if match is None or found is None:
        return None
    if match["index"] is not None:
        return _inside(found.body, rest) if isinstance(found, Gather) else None
    if not rest or isinstance(found, (Step, Gather)):
        return None if rest else found
    if isinstance(found, Group):
        return planned_at(found.blocks, rest)
    second, _, below = rest.partition("/")
    name = second.partition("#")[0]
    return next((_inside(body, below) for segment, body in bodies_of(found) if segment == name), None)


def _inside(body: AnyBody, rest: str) -> Block | AnyBody | None:
    return planned_at(body.blocks, rest) if rest else body


def place_of(node: Node) -> str:
    """The address of the scope that a node is shown in; steps that a step adds are shown beside it."""
    scope = node.scope
    while scope is not None and scope.owner is not None:
        scope = scope.owner.scope
    return scope.address if scope is not None else ""


def shown_scopes(run: RunState) -> Iterator[ScopeState]:
    """The scopes that people see, those around before those in them: not the root, nor what a step adds."""
    for state in run.states[1:]:
        if isinstance(state, ScopeState) and state.node.spec is not None and not state.removed:
            yield state


def fails_run(state: NodeState) -> bool:
    """Whether the failure of a node counts up to the run, or will as soon as the scopes around have settled."""
    while state.around is not state:
        around = state.around
        if settled(state) and state.node.number not in around.bad:
            return False
        if not settled(state) and state.node.optional:
            return False
        state = around
    return state.node.number == 0


# -- views -------------------------------------------------------------------------------------------------------------


def scope_views(run: RunState, history: ScopeHistory) -> list[ScopeView]:
    """All scopes that people see."""
    views: list[ScopeView] = []
    opened: dict[str, float | None] = {"": run.started_at}
    for scope in shown_scopes(run):
        view = _view(run, scope, history, opened)
        opened[view.address] = view.opened_at
        views.append(view)
    return views


def _view(run: RunState, scope: ScopeState, history: ScopeHistory, opened: dict[str, float | None]) -> ScopeView:
    node = scope.node
    at = node.address
    around = place_of(node)
    is_open = scope.status == OPEN
    own = scope.takes_back
    kind: Kind = _KINDS[type(node.spec)] if own is None else "compensation"
    facts = _facts(run, scope)
    return ScopeView(
        address=at,
        id=getattr(node.spec, "id", ""),
        kind=kind,
        number=node.number,
        scope=around,
        status=WAITING if is_open and scope.gated else scope.status,
        optional=node.optional,
        detached=is_detached(scope),
        index=scope.index if kind in ("row", "iteration", "compensation") else None,
        again=at in history.again,
        opened_at=None if scope.gated else history.opened.get(at, opened.get(around)),
        finished_at=history.finished.get(at),
        stopping=scope.stopping,
        causes=list(scope.causes),
        by_condition=scope.by_condition,
        failure=scope.failure,
        waiting_on=[state.node.address for state in needs_of(run, scope) if not settled(state)] if is_open else [],
        missing_signals=missing_signals(run, scope) if is_open else [],
        gather=facts if isinstance(facts, GatherFacts) else None,
        phases=facts if isinstance(facts, PhasesFacts) else None,
        branch=scope.block.branch if isinstance(scope.block, ChooseProgress) else None,
        undo=scope.undo.status if scope.undo is not None else NONE,
        undo_reason=undo_reason(scope.undo),
        compensates=own.node.address if own is not None else "",
    )


def undo_reason(undo: StepUndo | None) -> str:
    """Why an undo failed, is skipped or parked."""
    if undo is None:
        return ""
    if undo.failure is not None and undo.status in (FAILED, RUNNING):
        return f"{undo.failure.code}: {undo.failure.message}"
    if undo.failure is not None and undo.status == NOT_COMPENSABLE:
        return undo.failure.message
    return undo.reason


def _facts(run: RunState, scope: ScopeState) -> GatherFacts | PhasesFacts | None:
    progress, spec = scope.block, scope.node.spec
    if isinstance(progress, GatherProgress):
        assert isinstance(spec, Gather)
        return GatherFacts(
            mode=spec.mode,
            limit=spec.limit,
            count=None if progress.items is None else progress.count,
            opened=progress.opened,
            iterations=_iterations(run, scope),
        )
    if isinstance(progress, PhasesProgress):
        return PhasesFacts(
            phase=getattr(progress.row.node.spec, "id", "") if progress.row is not None else "",
            step=progress.step,
            state=progress.state,
            pending=pending_of(run, progress),
        )
    return None


def _iterations(run: RunState, gather: ScopeState) -> dict[str, int]:
    base = base_of(gather)
    counts: dict[str, int] = {}
    for state in run.content(gather):
        # Not those of an entry before.
        if isinstance(state, ScopeState) and state.node.address == f"{base}[{state.index}]":
            counts[state.status] = counts.get(state.status, 0) + 1
    return counts


def needs_of(run: RunState, state: NodeState) -> list[NodeState]:
    """What a node, and the waiting groups around it, need; each once, in plan order."""
    numbers: dict[int, None] = {}
    node: Node | None = state.node
    while node is not None:
        around = run.states[node.number]
        if around is state or (isinstance(around, ScopeState) and around.gated):
            numbers.update(dict.fromkeys(number for number, _ in node.needs))
        node = node.scope
    return [run.states[number] for number in numbers]


def missing_signals(run: RunState, state: NodeState) -> list[str]:
    """Names of the signals that a node waits for and that have not come."""
    return [name for name in state.node.signals if name not in run.signals]
