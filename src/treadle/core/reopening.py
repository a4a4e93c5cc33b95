"""Retry and rewind: which settled steps an operator's word takes back, as an event or a refusal.

A retry reopens failed and cancelled steps, and exactly what was skipped because of them: a skipped step stays as
it is while another failure that is not reopened forbids it. A rewind reopens a step and all that depends on it,
whatever came of it, as the next generation; what the rewound steps had added is removed until it is added again.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from treadle.core import events as ev
from treadle.core.commands import Refusal
from treadle.core.state import BY_FAILURE, RunState, ScopeState, StepState, counts_as_cancelled, doom_of, settled
from treadle.core.tables import CANCELLED, FAILED, RUNNING, SKIPPED, SUCCEEDED

AnyState = StepState | ScopeState
# A refusal names at most so many steps.
MAX_NAMED = 5


def retry(run: RunState, at: str, cause: str) -> list[ev.AnyEvent] | Refusal:
    """Reopen a failed or cancelled step, or all of them."""
    if refused := _cancelling(run, "retry"):
        return refused
    if at:
        step = run.step_at(at)
        if step is None:
            return Refusal("step_not_found", f"run {run.run_id!r} has no step {at!r}")
        if step.status not in (FAILED, CANCELLED):
            return Refusal("usage", f"step {at!r} is {step.status}; only a failed or cancelled step is retried")
        chosen: list[AnyState] = [step]
    else:
        # Besides the steps: groups that were cancelled before they had opened, for they may be empty.
        chosen = [
            s
            for s in run.states
            if (s.status in (FAILED, CANCELLED) if isinstance(s, StepState) else s.gated and s.status == CANCELLED)
        ]
        # A cancel may have come when nothing was left to cancel: such a run only settles anew.
        if not chosen and run.status != CANCELLED:
            return Refusal("usage", f"run {run.run_id!r} has no failed or cancelled step to retry")
    if busy := _named(step for step in chosen if isinstance(step, StepState) and run.is_live(step)):
        return Refusal("step_busy", f"attempts of {busy} have not ended yet; try again then")
    found = _Retry(run, chosen)
    return [
        ev.StepsReopened(
            at=_addresses(s for s in found.reopened if isinstance(s, StepState) and not found.is_gone(s)),
            removed=_addresses(s for s in found.reopened if found.is_gone(s)),
            scopes=_addresses(s for s in found.reopened if isinstance(s, ScopeState) and not found.is_gone(s)),
            cause=cause,
        )
    ]


def rewind(run: RunState, at: str, cause: str) -> list[ev.AnyEvent] | Refusal:
    """Reopen a settled step and all that depends on it."""
    if refused := _cancelling(run, "rewind"):
        return refused
    step = run.step_at(at)
    if step is None:
        return Refusal("step_not_found", f"run {run.run_id!r} has no step {at!r}")
    if not settled(step):
        return Refusal("usage", f"step {at!r} is {step.status}; only a settled step is rewound")
    if step.dropped:
        adder = run.states[run.adder[step.node.number]].node.address
        return Refusal("usage", f"step {at!r} was taken back and not added again; rewind {adder!r}, which had added it")
    found = _Rewind(run, step)
    if busy := _named(s for s in found.affected if isinstance(s, StepState) and run.is_live(s)):
        text = f"{busy} would be reopened but is being executed; pause the run and wait, or cancel it"
        return Refusal("step_busy", text)
    return [
        ev.StepsReopened(
            at=_addresses(s for s in found.affected if isinstance(s, StepState) and not found.is_removed(s)),
            rewind=True,
            removed=_addresses(s for s in found.affected if found.is_removed(s)),
            scopes=_addresses(s for s in found.affected if isinstance(s, ScopeState) and not found.is_removed(s)),
            cause=cause,
        )
    ]


def _cancelling(run: RunState, verb: str) -> Refusal | None:
    if not run.cancelling or run.status != RUNNING:
        return None
    text = f"run {run.run_id!r} is being cancelled; wait for its end, then {verb}"
    return Refusal("run_not_running", text, "cancelling")


def _addresses(states: Iterable[AnyState]) -> list[str]:
    return [state.node.address for state in states]


def _named(states: Iterable[AnyState]) -> str:
    names = [repr(state.node.address) for state in states]
    more = f" and {len(names) - MAX_NAMED} more" if len(names) > MAX_NAMED else ""
    return ", ".join(names[:MAX_NAMED]) + more


class _Retry:
    """The walk from the chosen steps to what was skipped because of them."""

    def __init__(self, run: RunState, chosen: list[AnyState]) -> None:
        self.run = run
        self.reopened: dict[AnyState, None] = dict.fromkeys(chosen)
        # Scopes of which no failure is left, and those that have some left, with their number.
        self.cleared: set[AnyState] = set()
        self.left: dict[ScopeState, int] = {}
        self.queue: deque[AnyState] = deque(chosen)
        while self.queue:
            state = self.queue.popleft()
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
        adds = scope.node.owner is state.node
        if not adds and state.node.number not in scope.bad and not counts_as_cancelled(state):
            return
        if scope not in self.left:
            owner = scope.node.owner
            adder = self.run.states[owner.number] if owner is not None else None
            failed = adder is not None and adder.status != SUCCEEDED
            self.left[scope] = len(scope.bad) + scope.cancelled + failed
        self.left[scope] -= 1
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
        if (skipped or doomed) and not self._still_forbidden(state):
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
    """The walk from the rewound step to all that may have used what it did."""

    def __init__(self, run: RunState, step: StepState) -> None:
        self.run = run
        self.affected: dict[AnyState, None] = {}
        self.queue: deque[AnyState] = deque([step])
        self.climbed: set[ScopeState] = set()
        while self.queue:
            state = self.queue.popleft()
            # What was taken back and not added again is not there, unless its adder is rewound once more.
            if state in self.affected or (state.dropped and not self.is_removed(state)):
                continue
            self.affected[state] = None
            if isinstance(state, ScopeState):
                self.queue += run.content(state)
            self.queue += (run.states[number] for number in run.added_by.get(state.node.number, ()))
            # Nobody can have used what has no outcome.
            if settled(state):
                self._below(state)
                own = run.own.get(state.node.number)
                if own is not None:
                    self._climb(own)
                self._climb(state.around)

    def is_removed(self, state: AnyState) -> bool:
        """Whether the step that added it is rewound too."""
        adder = self.run.adder.get(state.node.number)
        return adder is not None and self.run.states[adder] in self.affected

    def _below(self, state: AnyState) -> None:
        self.queue += (self.run.states[number] for number, _ in self.run.dependents(state))

    def _climb(self, scope: ScopeState) -> None:
        """What depends on a scope around depends on its content."""
        while settled(scope) and scope not in self.climbed and scope is not scope.around:
            self.climbed.add(scope)
            self._below(scope)
            scope = scope.around
