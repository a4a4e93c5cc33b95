"""The oracle's own model of blocks: what gathers, chooses and phases must give, and what must not go on in them.

It reads plan, events and values, and computes by itself which items there are, which rule holds, what the state is
after each barrier and what each scope's value is; of the folded run it uses names and statuses only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from treadle.core import events as ev
from treadle.core.expressions import holds, lookup_in, parse
from treadle.core.graph import Node
from treadle.core.opened import compensation_address
from treadle.core.plan import (
    Body,
    Branch,
    Choose,
    Condition,
    Gather,
    Group,
    Holds,
    Phase,
    Phases,
    Predicate,
    Rule,
)
from treadle.core.state import NodeState, RunState, ScopeState, settled
from treadle.core.tables import FAILED, SUCCEEDED
from treadle.errors import ExpressionError
from treadle.testing.invariants import BLOCKS, INSIDE, Fail
from treadle.testing.sim_blocks import rule_truth
from treadle.testing.sim_conduct import truth_of

# Stands for what cannot be told: a path that leads to nothing, a predicate that is not ours.
UNKNOWN: Final = object()
Resolve = Callable[[RunState, Node, Any], Any]


class Walk:
    """One entry of a Phases block."""

    def __init__(self, phase: str, state: dict[str, Any]) -> None:
        # What comes next: a phase, and the step that it has.
        self.next: str | None = phase
        self.step = -1
        self.phase = ""
        self.state = state
        self.previous: dict[str, Any] = {}
        self.entries: dict[str, int] = {}
        # Step number -> what it wants to set, in the present row.
        self.patches: dict[int, dict[str, Any]] = {}
        self.overwritten: list[str] = []
        self.row = ""


class Blocks:
    """The blocks of one run."""

    def __init__(self, resolve: Resolve, value: Callable[[str], Any], assembled: Callable[[Any], Any], fail: Fail):
        self._resolve = resolve
        self._value = value
        self._assembled = assembled
        self._fail = fail
        self._walks: dict[str, Walk] = {}
        # Row's address -> what its cells are told; what a compensating phase is told that is executed for it.
        self._told: dict[str, dict[str, Any]] = {}
        self._left: dict[str, dict[str, Any]] = {}
        # Gather's address -> its items (None: it cannot be told), and the iteration that succeeded first.
        self._items: dict[str, list[Any] | None] = {}
        self._first: dict[str, int] = {}
        # Choose's address -> truths of its conditions when they were looked at; question's address -> what it asks.
        self._truths: dict[str, dict[int, Any]] = {}
        # Scope's address -> its value.
        self.values: dict[str, Any] = {}

    # -- events ----------------------------------------------------------------------------------------------------

    def before(self, run: RunState, event: ev.AnyEvent) -> None:
        """Check an event against the run that it is about to change."""
        match event:
            case ev.IterationsOpened(at=at, start=0):
                scope = _scope(run, at)
                assert isinstance(scope.node.spec, Gather)
                if at not in self._items:
                    self._items[at] = self._listed(run, scope.node, scope.node.spec)
            case ev.ScopeAsked(at=at, what="when"):
                self._looked_at(run, at)
            case ev.BranchChosen():
                self._chosen(run, event)
            case ev.RowOpened():
                self._row(run, event)
            case ev.CompensationOpened(at=at):
                self._told[compensation_address(at, event.phase, event.entry)] = self._left[at]
            case ev.DecisionMade():
                self._decided(run, event)
            case ev.StepDispatched(at=at) | ev.EvaluationAsked(at=at):
                self._started(run, at)
            case _:
                pass

    def after(self, run: RunState, event: ev.AnyEvent) -> None:
        """Follow an event that was applied."""
        match event:
            case ev.ScopeSettled(at=at, outcome=outcome):
                self._settled(run, at, outcome)
            case ev.IterationsSettled():
                for at in event.addresses():
                    self._settled(run, at, SUCCEEDED)
            case ev.StepSucceeded(at=at, patch=patch) if patch:
                self._patched(run, at, patch)
            case ev.IterationsOpened(at=at):
                self._opened(run, at)
            case ev.StepsReopened():
                self._reopened(run, event)
            case _:
                pass

    def _say(self, run: RunState, at: str, text: str) -> None:
        self._fail(BLOCKS, f"{run.run_id}@{run.version + 1} {at}: {text}")

    def _known(self, run: RunState, node: Node, slot: Any) -> Any:
        try:
            return self._resolve(run, node, slot)
        except (LookupError, TypeError):
            return UNKNOWN

    def _listed(self, run: RunState, node: Node, spec: Gather) -> list[Any] | None:
        found = self._known(run, node, spec.items)
        return [*found] if isinstance(found, list) else None

    # -- what may go on --------------------------------------------------------------------------------------------

    def _started(self, run: RunState, at: str) -> None:
        """Nothing starts in a scope that has its outcome, or is being stopped."""
        state = run.at(at)
        assert state is not None
        for scope in _around(state):
            # The scope of what a step adds has that step's outcome if it never added anything.
            if settled(scope) or scope.stopping:
                what = scope.status if settled(scope) else f"stopping ({scope.stopping})"
                self._fail(INSIDE, f"{run.run_id} {at} starts in {scope.node.address}, which is {what}")

    def _check_inside(self, run: RunState, scope: ScopeState) -> None:
        """Nothing lives in a scope that has its outcome."""
        for state in run.states:
            if not settled(state) and not state.removed and scope in _around(state):
                self._fail(INSIDE, f"{run.run_id} {scope.node.address} settled, and {state.node.address} has not")

    def _reopened(self, run: RunState, event: ev.StepsReopened) -> None:
        for at in event.restarted:
            self._walks.pop(at, None)
            self._items.pop(at, None)
            self._first.pop(at, None)
        for at in (*event.restarted, *event.removed):
            self._truths.pop(at, None)
        gone = {run.number_of(at) for at in event.at}
        for walk in self._walks.values():
            walk.patches = {number: patch for number, patch in walk.patches.items() if number not in gone}
        for at in list(self._first):
            scope = run.at(f"{_base(run, at)}[{self._first[at]}]")
            if scope is None or not settled(scope):
                del self._first[at]

    # -- gather and choose -----------------------------------------------------------------------------------------

    def item(self, run: RunState, node: Node, level: int) -> tuple[Any, int]:
        """The item of the gather around, and its number."""
        scope: Node | None = node
        while scope is not None:
            if isinstance(scope.spec, Body):
                if level == 0:
                    index = int(scope.address.rpartition("[")[2].removesuffix("]"))
                    assert scope.scope is not None
                    items = self._items[scope.scope.address]
                    if items is None:
                        raise LookupError("its items cannot be told")
                    return items[index], index
                level -= 1
            scope = scope.scope
        raise LookupError("no gather around")

    def _opened(self, run: RunState, at: str) -> None:
        gather = _scope(run, at)
        spec = gather.node.spec
        assert isinstance(spec, Gather)
        base = _base(run, at)
        open_ = [s for s in _scopes(run) if s.around is gather and s.node.address.startswith(f"{base}[")]
        items = self._items[at]
        if items is not None and len(open_) > len(items):
            self._say(run, at, f"{len(open_)} iterations of {len(items)} items")
        live = sum(1 for scope in open_ if not settled(scope))
        if spec.limit and live > spec.limit:
            self._say(run, at, f"{live} iterations are under way, and its limit is {spec.limit}")

    def _chosen(self, run: RunState, event: ev.BranchChosen) -> None:
        scope = _scope(run, event.at)
        spec = scope.node.spec
        assert isinstance(spec, Choose)
        self._looked_at(run, event.at)
        expected: Any = ""
        for index, branch in enumerate(spec.branches):
            found = self._truths[event.at][index]
            if found is UNKNOWN:
                return
            if found:
                expected = branch.id
                break
        if expected != event.branch:
            self._say(run, event.at, f"branch {event.branch!r} was chosen, not {expected!r}")

    def _looked_at(self, run: RunState, at: str) -> None:
        """Note which conditions of a choose hold with the values that there are now, if it has not looked before.

        What it has seen stays so, although a step that had failed then, so that a default was read, is retried.
        """
        scope = _scope(run, at)
        spec = scope.node.spec
        assert isinstance(spec, Choose)
        if at not in self._truths:
            self._truths[at] = {
                index: True if branch.when is None else self._holds(run, scope.node, branch.when)
                for index, branch in enumerate(spec.branches)
            }

    def _holds(self, run: RunState, node: Node, condition: Condition) -> Any:
        """Whether a condition holds."""
        try:
            if isinstance(condition, Holds):
                values: dict[str, Any] = {}
                for name, slot in condition.slots.items():
                    values[name] = self._resolve(run, node, slot)
                return holds(parse(condition.text), lookup_in(values))
            if isinstance(condition, Predicate):
                slots = {name: self._resolve(run, node, slot) for name, slot in condition.slots.items()}
                if condition.name == "sim:rule":
                    return rule_truth(stable(slots["row"]))
                return truth_of(slots["value"], slots["salt"])
            found = self._resolve(run, node, condition)
        except (LookupError, TypeError, ExpressionError):
            return UNKNOWN
        return found if isinstance(found, bool) else UNKNOWN

    # -- phases ----------------------------------------------------------------------------------------------------

    def _row(self, run: RunState, event: ev.RowOpened) -> None:
        block = _scope(run, event.at)
        spec = block.node.spec
        assert isinstance(spec, Phases)
        walk = self._walks.get(event.at)
        if walk is None:
            state = {name: self._known(run, block.node, slot) for name, slot in spec.state.items()}
            walk = self._walks[event.at] = Walk(spec.start or spec.phases[0].id, state)
        expected = (walk.phase, walk.step) if event.again else (walk.next, walk.step + 1)
        entry = walk.entries.get(event.phase, 0) + 1
        if (event.phase, event.step, event.entry) != (*expected, entry):
            self._say(run, event.at, f"{event}; expected {expected}, entry {entry}")
        walk.phase, walk.step, walk.next = event.phase, event.step, None
        walk.entries[event.phase] = event.entry
        walk.patches = {}
        index = [phase.id for phase in spec.phases].index(event.phase)
        entry_text = f"#{event.entry}" if event.entry > 1 else ""
        walk.row = f"{_base(run, event.at)}/{event.phase}{entry_text}"
        self._told[walk.row] = {
            "phase": event.phase,
            "index": index,
            "step": event.step,
            "entry": event.entry,
            "state": dict(walk.state),
            "previous": dict(walk.previous),
        }

    def _patched(self, run: RunState, at: str, patch: Mapping[str, str]) -> None:
        """Keep what an awaited cell of the present row wants to set."""
        node: Node | None = run.states[run.number_of(at) or 0].node
        inner: Node | None = None
        while node is not None and not isinstance(node.spec, Phase):
            inner, node = node, node.scope
        if node is None or inner is None or node.scope is None:
            return
        assert isinstance(node.spec, Phase)
        walk = self._walks.get(node.scope.address)
        if walk is not None and walk.row == node.address and getattr(inner.spec, "id", "") not in node.spec.detached:
            number = run.number_of(at)
            assert number is not None
            walk.patches[number] = {name: self._value(handle) for name, handle in patch.items()}

    def told(self, run: RunState, node: Node, fact: str) -> Any:
        """What a cell or a rule is told of its place."""
        scope: Node | None = node
        while scope is not None and not isinstance(scope.spec, (Phase, Phases)):
            scope = scope.scope
        if scope is None:
            raise LookupError("no Phases block around")
        if isinstance(scope.spec, Phase):
            told = self._told[scope.address]
        else:
            walk = self._walks[scope.address]
            told = {**self._told[walk.row], "state": walk.state, "lanes": walk.previous}
        return told[fact] if fact else dict(told)

    def variable(self, run: RunState, node: Node, name: str) -> Any:
        """A variable as a cell or a rule sees it."""
        return self.told(run, node, "state")[name]

    def lane(self, run: RunState, node: Node, name: str) -> Any:
        """A lane's value as a cell or a rule sees it."""
        return _values(self.told(run, node, ""))[name]

    def _barrier(self, run: RunState, row: ScopeState, outcome: str) -> None:
        """A row has its outcome: variables are set if it succeeded, and must not be if two cells contradict."""
        phase, block = row.node.spec, row.node.scope
        assert isinstance(phase, Phase)
        assert block is not None
        assert isinstance(block.spec, Phases)
        walk = self._walks[block.address]
        if walk.row != row.node.address or outcome not in (SUCCEEDED, FAILED):
            return
        writers = [name for number in sorted(walk.patches) for name in walk.patches[number]]
        twice = sorted({name for name in writers if writers.count(name) > 1})
        if outcome == FAILED:
            return
        if twice and block.spec.on_conflict == "error":
            self._say(run, row.node.address, f"it succeeded, and two of its cells set {twice}")
        state = dict(walk.state)
        for number in sorted(walk.patches):
            state.update(walk.patches[number])
        walk.state, walk.overwritten = state, twice
        walk.previous = {}
        for cell in phase.blocks:
            found = run.find(row.node, cell.id)
            if found is not None and cell.id not in phase.detached and run.states[found.number].status == SUCCEEDED:
                walk.previous[cell.id] = self.result(run.states[found.number])
        told = {name: self._told[walk.row][name] for name in ("phase", "index", "step", "entry")}
        self._left[walk.row] = {**told, "state": dict(walk.state), "lanes": dict(walk.previous)}

    def _decided(self, run: RunState, event: ev.DecisionMade) -> None:
        block = _scope(run, event.at)
        spec = block.node.spec
        assert isinstance(spec, Phases)
        walk = self._walks[event.at]
        phase = next(known for known in spec.phases if known.id == walk.phase)
        if event.failure is not None and event.failure.code not in ("no_rule", "step_limit"):
            return
        found = self._rule(run, block.node, spec, phase)
        if found is UNKNOWN:
            return
        rule: Rule | None = found
        if rule is None:
            if event.failure is None or event.failure.code != "no_rule":
                self._say(run, event.at, f"{event}; no rule holds")
            return
        target = _target(spec, phase.id, rule)
        limited = bool(target) and walk.step + 1 >= spec.step_limit
        code = event.failure.code if event.failure is not None else ""
        if (event.rule, event.move, event.target, code == "step_limit") != (rule.id, rule.move, target, limited):
            self._say(run, event.at, f"{event}; expected {rule}, then {target!r}, limit reached: {limited}")
        if sorted(event.overwritten) != walk.overwritten:
            self._say(run, event.at, f"{event}; overwritten are {walk.overwritten}")
        walk.next = event.target

    def _rule(self, run: RunState, node: Node, spec: Phases, phase: Phase) -> Any:
        """The first rule that holds after a row; None if none does."""
        if not spec.policies and spec.otherwise is None:
            return Rule(id="", move="advance")
        for rule in spec.policies.get(phase.policy, ()):
            holds_ = True if rule.when is None else self._holds(run, node, rule.when)
            if holds_ is UNKNOWN or holds_:
                return rule if holds_ is True else UNKNOWN
        return spec.otherwise

    # -- values ----------------------------------------------------------------------------------------------------

    def result(self, state: NodeState) -> Any:
        """The value of a step or scope that succeeded."""
        if isinstance(state, ScopeState):
            return self.values[state.node.address]
        return self._value(state.result)

    def _settled(self, run: RunState, at: str, outcome: str) -> None:
        scope = _scope(run, at)
        self._check_inside(run, scope)
        if isinstance(scope.node.spec, Phase):
            self._barrier(run, scope, outcome)
        if outcome != SUCCEEDED:
            return
        expected = self._expected(run, scope)
        try:
            found = self._assembled(scope.result)
        except (LookupError, TypeError):
            found = UNKNOWN
        # What a path that leads to nothing gives is seen by who uses it.
        self.values[at] = found if expected is UNKNOWN else expected
        if expected is not UNKNOWN and found != expected:
            self._say(run, at, f"its value is {_cut(found)}, not {_cut(expected)}")

    def _expected(self, run: RunState, scope: ScopeState) -> Any:
        """The value that a scope must have."""
        spec, at = scope.node.spec, scope.node.address
        if isinstance(spec, (Group, Body, Branch)):
            value = None if spec.output is None else self._known(run, scope.node, spec.output)
            if isinstance(spec, Body):
                assert scope.node.scope is not None
                self._first.setdefault(scope.node.scope.address, scope.index)
            return value
        if isinstance(spec, Gather):
            return self._gathered(run, at, spec)
        if isinstance(spec, Choose):
            branches = [s for s in _scopes(run) if s.around is scope and isinstance(s.node.spec, Branch)]
            return self.values.get(branches[-1].node.address, UNKNOWN) if branches else None
        return dict(self._walks[at].state) if isinstance(spec, Phases) else None

    def _gathered(self, run: RunState, at: str, spec: Gather) -> Any:
        if at not in self._items:
            # There were none, so none was opened.
            self._items[at] = self._listed(run, _scope(run, at).node, spec)
        items, base = self._items[at], _base(run, at)
        if items is None:
            return UNKNOWN
        if spec.mode == "first":
            return self.values[f"{base}[{self._first[at]}]"] if at in self._first else None
        values: list[Any] = []
        for index in range(len(items)):
            state = run.at(f"{base}[{index}]")
            if state is None or not (state.status == SUCCEEDED or state.by_condition):
                self._say(run, at, f"it succeeded, and its iteration {index} has not")
                return UNKNOWN
            values.append(self.values[state.node.address] if state.status == SUCCEEDED else None)
        return values


def stable(told: Mapping[str, Any]) -> dict[str, Any]:
    """What of a cell's or a rule's place does not depend on when it is looked at: see `sim_blocks.facts_of`."""
    facts = {name: told[name] for name in ("phase", "index", "step", "entry", "state")}
    return {**facts, "values": _values(told)}


def _values(told: Mapping[str, Any]) -> Any:
    return told["lanes"] if "lanes" in told else told["previous"]


def _target(spec: Phases, phase: str, rule: Rule) -> str:
    ids = [known.id for known in spec.phases]
    after = [*ids, ""][ids.index(phase) + 1]
    return {"stop": "", "repeat": phase, "advance": after}.get(rule.move, rule.target)


def _scope(run: RunState, at: str) -> ScopeState:
    scope = run.at(at)
    assert isinstance(scope, ScopeState)
    return scope


def _scopes(run: RunState) -> list[ScopeState]:
    return [state for state in run.states if isinstance(state, ScopeState)]


def _around(state: NodeState) -> list[ScopeState]:
    """The scopes around a node, up to the root or to where it was left apart."""
    found: list[ScopeState] = []
    scope = state.around
    while scope is not scope.around:
        found.append(scope)
        scope = scope.around
    return found


def _base(run: RunState, at: str) -> str:
    """The address that a block's present entry has."""
    block = _scope(run, at).block
    return at if block is None or block.entry == 1 else f"{at}#{block.entry}"


def _cut(value: object) -> str:
    text = repr(value)
    return text if len(text) < 200 else text[:200] + "..."
