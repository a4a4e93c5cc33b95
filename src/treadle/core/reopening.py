"""Retry and rewind: which settled steps an operator's word takes back, as an event or a refusal.

A retry reopens failed and cancelled steps, and exactly what was skipped because of them: a skipped step stays as
it is while another failure that is not reopened forbids it. A rewind reopens a step and all that depends on it,
whatever came of it, as the next generation; what the rewound steps had added is removed until it is added again.

Blocks that open their content while the run goes on:
- What a failure had stopped (a row, a gather) goes on as a whole: all in it that failed or was cancelled is reopened.
- What the run has gone past (earlier rows, closed entries, a gather that has its first success) is not reopened.
- A block that is rewound, or depends on what is rewound, begins its next entry. So does a Phases block when anything
  in its rows depends on that: a row is no more than a part of the walk through them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from treadle.core import events as ev
from treadle.core.commands import Refusal
from treadle.core.compensation import compensable, rows_below
from treadle.core.graph import Node
from treadle.core.plan import Phase
from treadle.core.reshaping import below, steps_below
from treadle.core.state import (
    BY_FAILURE,
    RunState,
    ScopeState,
    StepState,
    counts_as_cancelled,
    doom_of,
    pending_question,
    settled,
)
from treadle.core.tables import CANCELLED, FAILED, NONE, RUNNING, SKIPPED, SUCCEEDED
from treadle.core.undo import is_standing

AnyState = StepState | ScopeState
# A refusal names at most so many steps.
MAX_NAMED = 5


def retry(run: RunState, at: str, cause: str) -> list[ev.AnyEvent] | Refusal:
    """Reopen a failed or cancelled step, or all of them."""
    if refused := _cancelling(run, "retry"):
        return refused
    chosen = _step_to_retry(run, at) if at else _all_to_retry(run)
    if isinstance(chosen, Refusal):
        return chosen
    found = _Retry(run, chosen)
    if undone := _undone(run, found.reopened):
        text = f"what {undone} did has been undone, or its undo was tried; rewind it, so that it is done again"
        return Refusal("not_applicable", text)
    if refused := _refused_now(run, found.reopened):
        return refused
    return [
        ev.StepsReopened(
            at=_addresses(s for s in found.reopened if isinstance(s, StepState) and not found.is_gone(s)),
            removed=_addresses(s for s in found.reopened if found.is_gone(s)),
            scopes=_addresses(s for s in found.reopened if isinstance(s, ScopeState) and not found.is_gone(s)),
            cause=cause,
        )
    ]


def _step_to_retry(run: RunState, at: str) -> list[AnyState] | Refusal:
    step = run.at(at)
    if step is None:
        return Refusal("step_not_found", f"run {run.run_id!r} has no step {at!r}")
    if isinstance(step, ScopeState):
        text = f"{at!r} is no step but a {_kind(step)}; retry a step in it, or rewind it"
        return Refusal("step_not_found", text)
    if step.status not in (FAILED, CANCELLED):
        return Refusal("not_applicable", f"step {at!r} is {step.status}; only a failed or cancelled step is retried")
    if run.is_closed(step):
        return Refusal("not_applicable", f"the run has gone past step {at!r}; rewind {_block_around(run, step)!r}")
    if _is_pause(run, step):
        return Refusal("not_applicable", f"{at!r} is the pause before a row is tried again; retry a step of the row")
    return [step]


def _all_to_retry(run: RunState) -> list[AnyState] | Refusal:
    # Besides the steps: what was cancelled before it had opened, or between two parts of its content.
    chosen: list[AnyState] = [s for s in run.states if _is_unsuccessful(s) and not run.is_closed(s)]
    chosen = [s for s in chosen if isinstance(s, ScopeState) or not _is_pause(run, s)]
    # A cancel may have come when nothing was left to cancel: such a run only settles anew.
    if chosen or run.status == CANCELLED:
        return chosen
    text = f"run {run.run_id!r} has no failed or cancelled step to retry"
    blocks = [s.node.address for s in run.states if isinstance(s, ScopeState) and s.failure and s.block]
    return Refusal("not_applicable", f"{text}; rewind {blocks[0]!r}, which failed by itself" if blocks else text)


def _is_unsuccessful(state: AnyState) -> bool:
    """Whether a retry of all concerns it: what else failed or was cancelled did so because of something in it."""
    if isinstance(state, StepState):
        return state.status in (FAILED, CANCELLED)
    return state.status == CANCELLED and (state.gated or state.block is not None)


def rewind(run: RunState, at: str, cause: str, *, keep: bool) -> list[ev.AnyEvent] | Refusal:
    """Reopen a settled step, group or block, and all that depends on it.

    Unless `keep` is set, what they have done is undone first.
    """
    if refused := _cancelling(run, "rewind"):
        return refused
    state = run.at(at) if at else None
    if state is None:
        return Refusal("step_not_found", f"run {run.run_id!r} has no step {at!r}")
    if refused := _may_not_rewind(run, state, at):
        return refused
    found = _Rewind(run, state)
    if refused := _refused_now(run, [*found.affected, *found.closing]):
        return refused
    if busy := _named(s for s in found.closing if not settled(s)):
        return Refusal("step_busy", f"{busy} would be closed but has no outcome yet; wait, or cancel the run")
    standing: list[AnyState] = [*found.standing(), *found.standing_rows()] if not keep else []
    if standing:
        if run.status == RUNNING:
            text = f"the run goes on, so what {_named(standing)} did cannot be undone first; cancel it, or keep that"
            return Refusal("run_not_settled", text, RUNNING)
        return [ev.UnwindingStarted(reason="rewind", rewind=at, cause=cause)]
    kept = [s for s in found.affected if s not in found.restarted]
    return [
        ev.StepsReopened(
            at=_addresses(s for s in kept if isinstance(s, StepState) and not found.is_removed(s)),
            rewind=True,
            removed=_addresses(s for s in found.affected if found.is_removed(s)),
            scopes=_addresses(s for s in kept if isinstance(s, ScopeState) and not found.is_removed(s)),
            restarted=_addresses(found.restarted),
            cause=cause,
        )
    ]


def _may_not_rewind(run: RunState, state: AnyState, at: str) -> Refusal | None:
    kind = _kind(state)
    if not settled(state):
        return Refusal("not_applicable", f"{kind} {at!r} is {state.status}; only a settled one is rewound")
    if state.dropped:
        adder = run.states[run.adder[state.node.number]].node.address
        return Refusal(
            "not_applicable", f"{kind} {at!r} was taken back and not added again; rewind {adder!r}, which had added it"
        )
    phases = _phases_above(run, state)
    if phases is not None:
        text = f"{at!r} lies in the rows of {phases.node.address!r}, which are not rewound one by one"
        return Refusal("not_applicable", f"{text}; rewind {phases.node.address!r}")
    if run.is_closed(state):
        return Refusal("not_applicable", f"the run has gone past {at!r}; rewind {_block_around(run, state)!r}")
    if state.node.owner is not None:
        owner = state.node.owner.address
        return Refusal("not_applicable", f"{at!r} is all that {owner!r} adds; rewind {owner!r}")
    if isinstance(state, StepState) and state.around.block is not None:
        block = state.around.node.address
        return Refusal("not_applicable", f"{at!r} is a question of {block!r}; rewind {block!r}")
    return None


def rewound_effects(run: RunState, at: str) -> list[StepState]:
    """The steps that a rewind reopens or leaves behind, and whose effects stand."""
    state = run.at(at)
    return _Rewind(run, state).standing() if state is not None else []


def rewound_rows(run: RunState, at: str) -> list[ScopeState]:
    """The rows that a rewind leaves behind, and that can be compensated."""
    state = run.at(at)
    return _Rewind(run, state).standing_rows() if state is not None else []


def _undone(run: RunState, reopened: Iterable[AnyState]) -> str:
    """What of a retry, and of what it goes on from, does not stand as it once ended: steps, and rows before them."""
    found: dict[AnyState, None] = {}
    blocks = {row.node.scope: row for row in run.compensable if row.undo is not None and row.undo.status != NONE}
    for state in reopened:
        for near in (state, *(run.states[number] for number, _ in state.node.needs)):
            if isinstance(near, StepState) and near.undo is not None and near.undo.status != NONE:
                found[near] = None
        node: Node | None = state.node if blocks else None
        while node is not None:
            if node in blocks:
                found[blocks[node]] = None
            node = node.scope
    return _named(found)


def _cancelling(run: RunState, verb: str) -> Refusal | None:
    if run.unwindings:
        text = f"run {run.run_id!r} is being unwound; wait for its end, then {verb}"
        return Refusal("run_not_running", text, "unwinding")
    if ending := _named(run.late_attempts()):
        # What tells of their end would be taken for something of before, once the deadline is lifted.
        return Refusal("step_busy", f"the run's deadline has passed, and {ending} has not ended yet; try again then")
    if not run.cancelling or run.status != RUNNING:
        return None
    text = f"run {run.run_id!r} is being cancelled; wait for its end, then {verb}"
    return Refusal("run_not_running", text, "cancelling")


def _refused_now(run: RunState, reopened: Iterable[AnyState]) -> Refusal | None:
    """A refusal while something that would be reopened, or closed, is under way."""
    states = [*reopened]
    if busy := _named(s for s in states if isinstance(s, StepState) and run.is_live(s)):
        text = f"{busy} would be reopened but is being executed; pause the run and wait, or cancel it"
        return Refusal("step_busy", text)
    scopes = {
        scope: None for state in states for scope in (state, *_scopes_above(state)) if isinstance(scope, ScopeState)
    }
    if stopping := _named(scope for scope in scopes if scope.stopping and not settled(scope)):
        return Refusal("step_busy", f"what {stopping} holds is being stopped; try again when that has ended")
    if asking := _named(step for scope in scopes if (step := pending_question(run, scope)) is not None):
        return Refusal("step_busy", f"{asking} has not ended yet; try again then")
    return None


def _addresses(states: Iterable[AnyState]) -> list[str]:
    return [state.node.address for state in states]


def _named(states: Iterable[AnyState]) -> str:
    names = [repr(state.node.address) for state in states]
    more = f" and {len(names) - MAX_NAMED} more" if len(names) > MAX_NAMED else ""
    return ", ".join(names[:MAX_NAMED]) + more


# -- where a node stands ---------------------------------------------------------------------------------------------


def _kind(state: AnyState) -> str:
    spec = state.node.spec
    return type(spec).__name__.lower() if spec is not None else "scope"


def _scopes_above(state: AnyState) -> Iterable[ScopeState]:
    """The scopes around a node, the innermost first, as far as they count it."""
    scope = state.around
    while scope is not scope.around:
        yield scope
        scope = scope.around


def _phases_above(run: RunState, state: AnyState) -> ScopeState | None:
    """The outermost Phases block that has the node in its rows."""
    found: ScopeState | None = None
    node = state.node
    while node.scope is not None:
        if isinstance(node.spec, Phase):
            around = run.states[node.scope.number]
            assert isinstance(around, ScopeState)
            found = around
        node = node.scope
    return found


def _block_around(run: RunState, state: AnyState) -> str:
    """The address of the outermost block that has gone past a node, or has to be rewound for it."""
    phases = _phases_above(run, state)
    if phases is not None:
        return phases.node.address
    found = node = state.node
    while node.scope is not None:
        node = node.scope
        around = run.states[node.number]
        if isinstance(around, ScopeState) and around.block is not None:
            found = node
    return found.address


def _is_pause(run: RunState, step: StepState) -> bool:
    """Whether the step is the pause of a Phases block: what follows it is tried again by itself."""
    return step.around.block is not None and step.spec.id == "~wait"


def _topmost_stopped(state: AnyState) -> ScopeState | None:
    """The outermost scope around a node that was stopped."""
    found: ScopeState | None = None
    for scope in _scopes_above(state):
        if scope.stopping:
            found = scope
    return found


class _Stopped:
    """The scopes that a failure had stopped and that are reopened: they go on as a whole."""

    def __init__(self, run: RunState) -> None:
        self.run = run
        self.seen: set[ScopeState] = set()

    def needed_with(self, state: AnyState) -> list[AnyState]:
        """What has to be reopened with a node, so that it does not stop again at once."""
        scope = _topmost_stopped(state)
        if scope is None or scope in self.seen:
            return []
        self.seen.add(scope)
        found = [s for s in below(self.run, scope) if _is_unsuccessful(s) and not self.run.is_closed(s)]
        return [s for s in found if isinstance(s, ScopeState) or not _is_pause(self.run, s)]


class _Retry:
    """The walk from the chosen steps to what was skipped because of them."""

    def __init__(self, run: RunState, chosen: list[AnyState]) -> None:
        self.run = run
        self.reopened: dict[AnyState, None] = dict.fromkeys(chosen)
        # Scopes of which no failure is left, and those that have some left, with their number.
        self.cleared: set[AnyState] = set()
        self.left: dict[ScopeState, int] = {}
        self.stopped = _Stopped(run)
        self.queue: deque[AnyState] = deque(chosen)
        while self.queue:
            state = self.queue.popleft()
            for stopped in self.stopped.needed_with(state):
                self._reopen(stopped)
            if state not in self.cleared or state in self.reopened:
                self._clear_around(state)
            for number in run.added_by.get(state.node.number, ()):
                added = run.states[number]
                if added.dropped:
                    self._reopen(added)
            for number, _ in run.dependents(state):
                self._consider(run.states[number])

    def is_gone(self, state: AnyState) -> bool:
        """Whether it was not added again, and waits for its adder once more."""
        return state.dropped

    def _clear_around(self, state: AnyState) -> None:
        """Count a reopened child; the scope's dependents are free when no failed or cancelled one stays."""
        self._count(state.around, state)
        own = self.run.own.get(state.node.number)
        if own is not None:
            self._count(own, state)

    def _count(self, scope: ScopeState, state: AnyState) -> None:
        if not settled(scope) or scope is scope.around:
            return
        counts = scope.node.owner is state.node or state.node.number in scope.bad or counts_as_cancelled(state)
        # What failed by itself, or was cancelled between two parts, is found anew.
        if not counts and scope.failure is None and not _is_unsuccessful(scope):
            return
        if scope not in self.left:
            owner = scope.node.owner
            adder = self.run.states[owner.number] if owner is not None else None
            failed = adder is not None and adder.status != SUCCEEDED
            self.left[scope] = len(scope.bad) + scope.cancelled + failed
        self.left[scope] -= counts
        if self.left[scope] == 0 and scope not in self.cleared:
            self.cleared.add(scope)
            self._clear_around(scope)
            self.queue.append(scope)

    def _reopen(self, state: AnyState) -> None:
        if state in self.reopened:
            return
        self.reopened[state] = None
        self.queue.append(state)
        if isinstance(state, ScopeState):
            for inner in self.run.content(state):
                self._consider(inner)

    def _consider(self, state: AnyState) -> None:
        """Reopen a node that was skipped by failures of which none stays."""
        if state in self.reopened:
            return
        skipped = state.status == SKIPPED and not state.by_condition
        # A closed group whose content is being skipped just now.
        doomed = isinstance(state, ScopeState) and state.gated and state.doomed == BY_FAILURE
        if (skipped or doomed) and not self.run.is_closed(state) and not self._still_forbidden(state):
            self._reopen(state)

    def _still_forbidden(self, state: AnyState) -> bool:
        while True:
            for number, flags in state.node.needs:
                upstream = self.run.states[number]
                if upstream in self.reopened or upstream in self.cleared or not settled(upstream):
                    continue
                if doom_of(upstream, flags) == BY_FAILURE:
                    return True
            state = state.around
            if not state.gated:
                return False


class _Rewind:
    """The walk from what is rewound to all that may have used what it did."""

    def __init__(self, run: RunState, start: AnyState) -> None:
        self.run = run
        self.affected: dict[AnyState, None] = {}
        # Blocks that begin their next entry, and what the present one holds.
        self.restarted: dict[ScopeState, None] = {}
        self.closing: dict[AnyState, None] = {}
        self.stopped = _Stopped(run)
        self.queue: deque[AnyState] = deque([start])
        self.climbed: set[ScopeState] = set()
        while self.queue:
            self._take(self.queue.popleft())
        for state in self.closing:
            self.affected.pop(state, None)
            if isinstance(state, ScopeState):
                self.restarted.pop(state, None)

    def is_removed(self, state: AnyState) -> bool:
        """Whether the step that added it is rewound too, or closed."""
        number = self.run.adder.get(state.node.number)
        adder = self.run.states[number] if number is not None else None
        return adder is not None and (adder in self.affected or adder in self.closing)

    def standing(self) -> list[StepState]:
        """The steps whose effects stand: of what is reopened, and of all that lies in the entries left behind."""
        steps = {state: None for state in self.affected if isinstance(state, StepState)}
        for block in self.restarted:
            steps.update(dict.fromkeys(steps_below(self.run, block)))
        return [step for step in steps if is_standing(step)]

    def standing_rows(self) -> list[ScopeState]:
        """The rows of the entries left behind whose phases can be compensated."""
        return compensable([row for block in self.restarted for row in rows_below(self.run, block)])

    def _take(self, state: AnyState) -> None:
        state = _phases_above(self.run, state) or state
        # What was taken back and not added again is not there, unless its adder is rewound once more.
        gone = state.dropped and not self.is_removed(state)
        if state in self.affected or state in self.closing or gone or self.run.is_closed(state):
            return
        self.affected[state] = None
        if isinstance(state, ScopeState):
            self._take_content(state)
        self._take_added(state)
        # Nobody can have used what has no outcome.
        if settled(state):
            self.queue += self.stopped.needed_with(state)
            self._below(state)
            own = self.run.own.get(state.node.number)
            if own is not None:
                self._climb(own)
            self._climb(state.around)

    def _take_content(self, scope: ScopeState) -> None:
        if scope.block is None or not scope.block.begun:
            self.queue += self.run.content(scope)
            return
        self.restarted[scope] = None
        for inner in below(self.run, scope):
            self.closing[inner] = None
            self._take_added(inner)

    def _take_added(self, state: AnyState) -> None:
        self.queue += (self.run.states[number] for number in self.run.added_by.get(state.node.number, ()))

    def _below(self, state: AnyState) -> None:
        self.queue += (self.run.states[number] for number, _ in self.run.dependents(state))

    def _climb(self, scope: ScopeState) -> None:
        """What depends on a scope around depends on its content."""
        while settled(scope) and scope not in self.climbed and scope is not scope.around:
            self.climbed.add(scope)
            self._below(scope)
            scope = scope.around
