"""The state of one run: what its events add up to. Changed by `apply` only.

Inside a run, steps and scopes are dense numbers; names are at the edge. A completion touches the settled node,
its scope and its dependents, nothing else.

`frontier`, `ready`, `signal_waiters` and `cancel_at` are hints of where to look next, and hold more than is
needed: `decide` checks what it finds there, and looking at a node for nothing changes nothing. They are heaps
and sets, read in the order of node numbers, never of arrival. So a state folded from the journal, whose hints
name everything that ever moved, decides exactly like the live one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from heapq import heappush
from types import MappingProxyType
from typing import ClassVar, cast

import msgspec

from treadle.core.addresses import encode_id
from treadle.core.blocks import AFTER, DEFAULT, REF, Spec
from treadle.core.events import NULL, Arg, Failure, Window
from treadle.core.graph import Graph, Node, node_of
from treadle.core.plan import Body, Choose, Gather, Phase, Phases, Step
from treadle.core.progress import GatherProgress, PhasesProgress, Progress, Sight, new_progress
from treadle.core.sparse import UNWRITTEN, writable
from treadle.core.tables import CANCELLED, FAILED, NOTHING, OPEN, OUTCOMES, SKIPPED, SUCCEEDED, WAITING
from treadle.core.undo import StepUndo, Unwinding

# Why a node may not run: an upstream was skipped by its own condition, or one did not succeed.
BY_CONDITION = 1
BY_FAILURE = 2

# The deadline of a run whose deadline has passed, in the second case before its turn came: earlier than any time.
PASSED, PASSED_UNBEGUN = -1.0, -2.0

# Shared by all nodes that have no causes; never changed.
_NO_CAUSES: Sequence[str] = ()


class WindowState(msgspec.Struct):
    """What a run's window has seen: the names of the triggers that came."""

    window: Window
    names: dict[str, None]
    # Its timer was over once. Reopened it is a timer, and no window: the name is somebody else's.
    closed: bool = False


class ScopeState(msgspec.Struct, eq=False):
    """A group, the root, all that one step adds; a block that opens its content, or one row, iteration or branch.

    Made by `new_scope`. It may lie in a circle, so the garbage collector looks at it.
    """

    node: Node
    # The root lies in itself.
    around: ScopeState
    # The number of the scope to look at when its children have settled; where detached cells lie, their block's.
    wakes: int
    # For an iteration or a row: its number.
    index: int = 0
    # Children without an outcome; what a step adds counts the step too.
    unsettled: int = 0
    # For what a compensating phase holds: the row that is compensated.
    compensates: ScopeState | None = None
    status: str = OPEN
    # For these see `StepState`.
    waiting: int = 0
    doomed: int = 0
    by_condition: bool = False
    causes: Sequence[str] = _NO_CAUSES
    more: list[tuple[int, int]] | None = None
    removed: bool = False
    dropped: bool = False
    holding: bool = False
    # Its value, if it succeeded; a group without an output gives null.
    result: Arg = NULL
    # What failed it, where that is no block in it.
    failure: Failure | None = None
    # Numbers of mandatory children that failed or were skipped by a failure, in that order. See `mark_bad`.
    bad: dict[int, None] | tuple[()] = ()
    # How many mandatory children were cancelled.
    cancelled: int = 0
    # Its content waits until what the group needs has come.
    gated: bool = False
    # What was done below it is being undone; how much was, by its last unwinding: "", "fully" or "partly".
    unwinding: Unwinding | None = None
    unwound: str = ""
    # Why what lives in it is cancelled; "" while it is not.
    stopping: str = ""
    # For a block that opens its content: how far it is.
    block: Progress | None = None
    # For a row: what its cells see of the block; what it left there, where its phase can be compensated; when it
    # ended, in the run's order, and its undo.
    sight: Sight | None = None
    left: Sight | None = None
    ended: int = 0
    undo: StepUndo | None = None
    # Whether the end of any child may be the time to go on.
    watches: bool = False

    @property
    def takes_back(self) -> ScopeState | None:
        """For a compensating phase itself, and for nothing that it holds: the row that is compensated."""
        row = self.compensates
        return row if row is not None and self.node.scope is row.node.scope else None


class IterationState(ScopeState, eq=False, gc=False):
    """One item's body in a gather, of which a run may have a million; the garbage collector need not look at it.

    Made by `new_scope`, or many at a time by `moulds`. No scope or block refers to one: its gather knows its number.
    """


def new_scope(node: Node, around: ScopeState | None) -> ScopeState:
    """A scope that nothing has happened to."""
    spec = node.spec
    kind = IterationState if type(spec) is Body else ScopeState
    scope = kind(node, cast(ScopeState, around), node.number, waiting=len(node.needs))
    if around is None:
        scope.around = scope
    if isinstance(spec, (Gather, Choose, Phases)):
        scope.block = new_progress(spec)
        scope.watches = True
    elif isinstance(spec, Phase):
        scope.watches = True
    return scope


class StepState(msgspec.Struct, gc=False, eq=False):
    """One step of a run, first what its plain course needs. Not for the garbage collector: a run may have a million."""

    node: Node
    around: ScopeState
    added_at: float
    # Upstreams that are not settled, plus one while the group around is not open. Exact while it is unsettled.
    waiting: int
    status: str = WAITING
    # 0, or why an upstream's outcome forbids this node to run. A failure skips it at once; a condition only when all
    # else has come, so that the cause does not depend on who was first.
    doomed: int = 0
    # Taken back by a rewind of its adder, and not added again yet; `dropped`: then its adder settled without adding it.
    removed: bool = False
    # The attempt whose task is in the store (negative: an evaluation of its condition), or 0.
    tasked: int = 0
    # Attempts dispatched in all.
    attempt: int = 0
    generation: int = 1
    # Dependents that were added while the run was going on.
    more: list[tuple[int, int]] | None = None
    # Succeeded, and its dependents are held by a breakpoint after it.
    holding: bool = False
    # The handle of its result.
    result: str = ""
    worker: str = ""
    ready_at: float = 0.0
    dispatched_at: float = 0.0
    started_at: float = 0.0
    finished_at: float = 0.0
    not_before: float = 0.0
    causes: Sequence[str] = ()
    # Once a step that can be undone has begun.
    undo: StepUndo | None = None
    # A skip that no failure caused: it satisfies orders and fails nothing.
    by_condition: bool = False
    dropped: bool = False
    # Attempts that failed or were lost since the last reopening.
    failures: int = 0
    lost: int = 0
    failure: Failure | None = None
    # Number of times its condition was asked of a worker, and the answer.
    asking: int = 0
    condition: bool | None = None
    # Breakpoints ("b" before, "a" after) reported as reached, and released.
    reached: str = ""
    released: str = ""
    # The run's position when it got its outcome; kept only in runs with steps that can be undone.
    ended: int = 0

    @property
    def spec(self) -> Step:
        """The step's definition in the plan."""
        return self.node.step


NodeState = StepState | ScopeState


# Shared by all runs that have none; what is empty is no list of its own, which the garbage collector would look at.
_NONE: frozenset[str] = frozenset()
_NO_NUMBERS: frozenset[int] = frozenset()
_NOTHING_INSIDE: Mapping[str, Node] = MappingProxyType({})


class RunState:
    """One run in memory. `version` is the journal's; `now` is the time of the row being applied."""

    is_run: ClassVar[bool] = True
    __slots__ = (
        "added_by",
        "added_on",
        "adder",
        "asked",
        "asked_runs",
        "awaits",
        "calls",
        "cancel_at",
        "cancelled",
        "cancelling",
        "children",
        "closed",
        "compensable",
        "constants",
        "data",
        "data_names",
        "deadline",
        "deadlines",
        "dedup",
        "depth",
        "dry_run",
        "forgets",
        "forgotten",
        "frontier",
        "graph",
        "hold",
        "index",
        "key",
        "keys",
        "labels",
        "missing",
        "names",
        "not_before",
        "now",
        "on_failure",
        "own",
        "parent",
        "position",
        "readied",
        "ready",
        "reports",
        "result",
        "run_id",
        "signal_waiters",
        "signals",
        "started_at",
        "states",
        "status",
        "tasks",
        "trace",
        "undoes",
        "unwind",
        "unwindings",
        "unwound",
        "version",
        "window",
        "workers",
    )

    def __init__(self, key: str, run_id: str, graph: Graph, constants: list[str], breakpoints: Sequence[str]) -> None:
        self.key = key
        self.run_id = run_id
        self.graph = graph
        self.constants = constants
        self.labels = frozenset(breakpoints) if breakpoints else _NONE
        # The run's data, as one object, and the names in it; whether actions are asked to change nothing.
        self.data_names = _NONE
        self.dry_run = False
        # When no attempt may begin or go on any more (0: never, or `PASSED`), and the trace that the run belongs to.
        self.deadline = 0.0
        self.data = self.trace = ""
        self.version = self.hold = self.depth = 0
        # No step starts before `not_before`; `depth` is how many runs called each other down to this one.
        self.now = self.started_at = self.not_before = 0.0
        # Who waits for the run's outcome: a run's key and the address of its step.
        self.parent, self.status = "", NOTHING
        self.result: Arg = NULL
        self.missing: Sequence[str] = ()
        # "", "soft" or "hard"; the next number that a cancel has to look at. Unwinding leaves `cancelled` of it.
        self.cancelling, self.cancel_at = "", 0
        # Tasks in the store; steps whose status is ready.
        self.tasks = self.readied = 0
        self.signals: dict[str, str] = UNWRITTEN
        # Signal name -> numbers of steps that found it missing.
        self.signal_waiters: dict[str, set[int]] = UNWRITTEN
        # Heap of the numbers of nodes that may have become decidable.
        self.frontier: list[int] = []
        # Ready steps that wait for room, as a heap of `ready_key`s.
        self.ready: list[int] = []
        # Step number -> the key of the run that it has called and that has not ended.
        self.calls: dict[int, str] = UNWRITTEN
        # Step number -> when it stops being polled; fixed by the first dispatch after it was opened.
        self.deadlines: dict[int, float] = UNWRITTEN
        # Step number -> what an attempt that did not succeed reported last, for the attempts after it.
        self.reports: dict[int, str] = UNWRITTEN
        self.states: list[StepState | ScopeState] = []
        # What steps added, on top of the graph: names, children of scopes, dedup keys, and who added what.
        self.index: dict[str, int] = UNWRITTEN
        self.children: dict[int, dict[str, Node]] = UNWRITTEN
        self.dedup: dict[str, int] = UNWRITTEN
        self.adder: dict[int, int] = UNWRITTEN
        self.added_by: dict[int, list[int]] = UNWRITTEN
        # By number, keys that workers have found, and who added what is to run where it was added; the ids of workers.
        self.keys: dict[int, str] = UNWRITTEN
        self.added_on: dict[int, str] = UNWRITTEN
        self.workers: dict[str, str] = {}
        # Step number -> the scope of all that the step adds, where something asked for it.
        self.own: dict[int, ScopeState] = UNWRITTEN
        # Whether iterations that have succeeded are noted, to be forgotten (see `forgetting`); how many were.
        self.forgets = False
        self.closed: Sequence[ScopeState] = ()
        self.forgotten = 0
        # Whether any step can be undone; then `position` counts the beginnings of such steps and the ends of all.
        self.undoes = graph.undoable
        self.position = 0
        # "stop" or "unwind"; whether a cancel asked to unwind; the unwindings under way, by the scope's number.
        self.on_failure: str = graph.plan.on_failure
        self.unwind = False
        self.unwindings: dict[int, Unwinding] = UNWRITTEN
        # Rows whose phase can be compensated, in the order they succeeded; whether a block was unwound by itself.
        self.compensable: Sequence[ScopeState] = ()
        self.unwound = self.cancelled = False
        # Names in whose lines the run is, and those whose turn has not come (see `singletons`).
        self.names: dict[str, None] = UNWRITTEN
        self.awaits: dict[str, None] = UNWRITTEN
        self.window: WindowState | None = None
        # By which number the caller asked to undo this run (0: it did not); steps whose undo goes on in called runs.
        self.asked, self.asked_runs = 0, _NO_NUMBERS

    # -- names -------------------------------------------------------------------------------------------

    def number_of(self, address: str) -> int | None:
        """The number of the node at an address, None if there is none."""
        number = self.graph.index.get(address)
        return number if number is not None else self.index.get(address)

    def at(self, address: str) -> StepState | ScopeState | None:
        """The step or scope at an address, None if there is none."""
        number = self.number_of(address)
        return self.states[number] if number is not None and number < len(self.states) else None

    def step_at(self, address: str) -> StepState | None:
        """The step at an address, None if there is none (or it is a scope)."""
        state = self.at(address)
        return state if isinstance(state, StepState) else None

    def step(self, number: int) -> StepState | None:
        """The step of a number, None for scopes and unknown numbers."""
        state = self.states[number] if 0 <= number < len(self.states) else None
        return state if isinstance(state, StepState) else None

    @property
    def root(self) -> ScopeState:
        """The root scope."""
        state = self.states[0]
        assert isinstance(state, ScopeState)
        return state

    def is_live(self, step: StepState) -> bool:
        """Whether something of the step goes on: an attempt, an evaluation, or the run that it called."""
        return step.tasked != 0 or step.node.number in self.calls

    def is_late(self, around: ScopeState) -> bool:
        """Whether the deadline has passed for what lies in a scope; what takes a row back has none."""
        return self.deadline < 0 and around.compensates is None

    def late_attempts(self) -> list[StepState]:
        """The steps of which an attempt has not ended yet although the deadline has passed."""
        steps = self.steps() if self.deadline < 0 else ()
        return [step for step in steps if step.tasked and not settled(step) and self.is_late(step.around)]

    def is_busy(self, scope: ScopeState) -> bool:
        """Whether something goes on of a step that lies in a scope."""
        for state in self.content(scope):
            if isinstance(state, ScopeState):
                if self.is_busy(state):
                    return True
            elif self.is_live(state) or ((own := self.own.get(state.node.number)) is not None and self.is_busy(own)):
                return True
        return False

    def steps(self) -> list[StepState]:
        """All steps, in the order they came into the run."""
        return [state for state in self.states if isinstance(state, StepState)]

    def content(self, scope: NodeState) -> list[StepState | ScopeState]:
        """The steps and groups directly in a scope."""
        number = scope.node.number
        nodes = [*self.graph.children.get(number, {}).values(), *self.inside(scope.node).values()]
        # Each once, and not the steps that a dedup key put under a second name, perhaps from another scope.
        numbers = dict.fromkeys(node.number for node in nodes)
        return [state for known in numbers if (state := self.states[known]).around is scope]

    def look(self, state: NodeState) -> None:
        """Let `decide` look at a node."""
        heappush(self.frontier, state.node.number)

    def is_closed(self, state: NodeState) -> bool:
        """Whether the run has gone past it: it lies in a row or an entry that was left, or a first success won."""
        scope = state.around
        while True:
            if isinstance(scope.block, GatherProgress) and scope.block.winner >= 0:
                return True
            if scope.around is not scope:
                scope = scope.around
                continue
            if scope is self.root:
                return False
            # Detached cells and what was left behind lie apart; only the former in what is registered.
            node = scope.node
            if self.states[node.number] is not scope or node.scope is None:
                return True
            around = self.states[node.scope.number]
            assert isinstance(around, ScopeState)
            if not isinstance(around.block, PhasesProgress) or around.block.detached is not scope:
                return True
            scope = around

    # -- graph.Space: nodes that are added while the run goes on ---------------------------------------------

    def new(self, address: str, scope: Node, spec: Spec | None) -> Node:
        """Make a node, with its state, as the next number."""
        node = node_of(len(self.states), address, scope, spec)
        around = self.states[scope.number]
        assert isinstance(around, ScopeState)
        if node.is_step:
            # Nothing takes a compensation back.
            node.undoable = node.undoable and around.compensates is None
            self.states.append(StepState(node, around, self.now, len(node.needs)))
        else:
            inner = new_scope(node, around)
            inner.compensates = around.compensates
            if around.stopping:
                inner.stopping = "cancelled"
            self.states.append(inner)
        writable(self, "index", self.index)[address] = node.number
        return node

    def again(self, node: Node, spec: Spec) -> Node:
        """Give a node that a rewind took back, and that is wanted again, its new definition."""
        node.define(spec)
        return node

    def find(self, scope: Node, segment: str) -> Node | None:
        """The child of a scope, or None."""
        node = self.inside(scope).get(segment)
        return node if node is not None else self.graph.find(scope, segment)

    def enter(self, scope: Node, segment: str, node: Node) -> None:
        """Make `node` the child of a scope."""
        inside = self.children.get(scope.number)
        if inside is None:
            # A gather keeps its iterations itself.
            inside = {} if type(scope.spec) is Gather else {**self.inside(scope)}
            writable(self, "children", self.children)[scope.number] = inside
        inside[segment] = node

    def inside(self, scope: Node) -> Mapping[str, Node]:
        """What came into a scope while the run went on, by segment."""
        found = self.children.get(scope.number)
        if type(scope.spec) is Gather:
            return {**(found or {}), **self._iterations(scope)}
        if found is None and type(scope.spec) is Body and scope.number + 1 < len(self.states):
            # The step of an iteration that was cast is entered nowhere: it has the next number.
            node = self.states[scope.number + 1].node
            if node.is_step and node.scope is scope:
                return {encode_id(node.step.id): node}
        return found if found is not None else _NOTHING_INSIDE

    def _iterations(self, gather: Node) -> dict[str, Node]:
        """The iterations of a gather's present entry that are not forgotten, by segment."""
        block = self.states[gather.number]
        assert isinstance(block, ScopeState)
        assert isinstance(block.block, GatherProgress)
        return {f"[{index}]": self.states[number].node for index, number in block.block.scopes.items()}

    def scope_of(self, step: Node) -> Node:
        """The scope of all that a step adds; made when it is first asked for."""
        own = self.own.get(step.number)
        if own is not None:
            return own.node
        assert step.scope is not None
        node = self.new(step.address + "/", step.scope, None)
        node.owner = step
        state = self.states[node.number]
        assert isinstance(state, ScopeState)
        self.open_own(state, step)
        return node

    def open_own(self, scope: ScopeState, owner: Node) -> None:
        """Count a scope of added steps in the scope around it, and its owner as its first child."""
        adder = self.states[owner.number]
        # A detached cell is not counted in its row, and neither is what it adds.
        scope.around = adder.around
        writable(self, "own", self.own)[owner.number] = scope
        if settled(adder):
            # Nothing was added and nothing will be: it has been settled all the time.
            scope.status = adder.status
            scope.by_condition = adder.by_condition
        else:
            scope.unsettled += 1
            scope.around.unsettled += 1

    # -- edges -------------------------------------------------------------------------------------------

    def dependents(self, state: NodeState) -> Sequence[tuple[int, int]]:
        """Numbers and edge flags of the nodes that wait for this one."""
        return state.node.dependents if state.more is None else [*state.node.dependents, *state.more]

    def recount(self, state: StepState | ScopeState) -> None:
        """Set `waiting` and `doomed` of an unsettled node from its upstreams' present states."""
        waiting = doomed = 0
        if state.removed:
            adder = self.states[self.adder[state.node.number]]
            if settled(adder):
                doomed = doom_of_removed(adder)
            else:
                waiting = 1
        else:
            for number, flags in state.node.needs:
                upstream = self.states[number]
                if upstream.status not in OUTCOMES or upstream.holding:
                    waiting += 1
                else:
                    doomed = max(doomed, doom_of(upstream, flags))
            if state.around.gated:
                waiting += 1
                doomed = max(doomed, state.around.doomed)
        state.waiting = waiting
        state.doomed = doomed
        # What was brought back into a scope that stops is cancelled, whatever it waits for.
        if waiting == 0 or doomed == BY_FAILURE or state.around.stopping:
            heappush(self.frontier, state.node.number)


# No run has so many nodes.
_PRIORITY_SHIFT = 48
# The bits of a `ready_key` that are the step's number.
NUMBER_OF_KEY = (1 << _PRIORITY_SHIFT) - 1


def ready_key(step: StepState) -> int:
    """Orders ready steps by priority, then by number; one integer compares faster than a pair."""
    return step.node.number - (step.node.step.priority << _PRIORITY_SHIFT)


def settled(state: NodeState) -> bool:
    """Whether the node has its outcome."""
    return state.status in OUTCOMES


def question_of(run: RunState, scope: ScopeState) -> StepState | None:
    """What a block has asked last, if anything.

    Kept by its number: a step refers to the scopes around it, and nothing that they hold may refer back to it.
    """
    number = scope.block.question if scope.block is not None else -1
    return run.step(number) if number >= 0 else None


def pending_question(run: RunState, scope: ScopeState) -> StepState | None:
    """What a block has asked and does not know yet."""
    asking = question_of(run, scope)
    return asking if asking is not None and not settled(asking) else None


def doom_of(upstream: NodeState, flags: int) -> int:
    """Whether a settled upstream lets a dependent run over an edge of these flags: 0, or why it does not."""
    if upstream.status == SUCCEEDED:
        return 0
    if flags & REF:
        return BY_CONDITION if upstream.by_condition else BY_FAILURE
    if flags & DEFAULT or upstream.by_condition:
        return 0
    return BY_FAILURE if flags & AFTER else 0


def doom_of_removed(adder: NodeState) -> int:
    """What becomes of a step that its adder, settled now, has not added again."""
    return BY_CONDITION if adder.status == SUCCEEDED or adder.by_condition else BY_FAILURE


def is_bad(state: StepState | ScopeState) -> bool:
    """Whether the outcome fails the scope around."""
    node = state.node
    if node.optional:
        return False
    if node.owner is not None:
        # The step that adds counts for itself.
        return isinstance(state, ScopeState) and bool(state.bad)
    return state.status == FAILED or (state.status == SKIPPED and not state.by_condition)


def counts_as_cancelled(state: StepState | ScopeState) -> bool:
    """Whether the outcome cancels the scope around, if nothing fails it."""
    if state.status != CANCELLED or state.node.optional:
        return False
    return state.node.owner is None or (isinstance(state, ScopeState) and state.cancelled > 0)
