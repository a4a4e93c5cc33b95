"""Phases: rows of lanes, with policies that pick what follows each row.

    review = Phases(
        Phase("draft", {"writer": write}, policy="go on"),
        Phase("check", {"lint": lint, "style": style}, detached={"stats": report}, policy="gate"),
        policies={
            "go on": [Rule.advance()],
            "gate": [Rule.stop(when="state.score >= 8"), Rule.loop_back("draft")],
        },
        state={"score": 0},
        step_limit=64,
    )

    result = await review.run()             # here and now, without a store; cells may be any callable
    state = review.bind(score=start)        # in a workflow: durable; cells are step functions

Both ways are the same block of the same kernel. Stored, cells are named functions and values have a JSON form; in
process they are whatever Python objects they are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, Literal, Protocol, cast

import msgspec

from treadle.authoring.bound import Bound, Condition, Node, this_frame
from treadle.authoring.builder import PlanBuilder, raise_all
from treadle.authoring.cells import Cell, Compensation, Row
from treadle.authoring.decorators import PredicateFunction, StepFunction
from treadle.authoring.openings import building, called, drafted
from treadle.authoring.options import OnFailure, Retry, on_failure_of, policy_of
from treadle.authoring.scopes import Scope
from treadle.authoring.signatures import Parameter
from treadle.authoring.undo import Declared
from treadle.authoring.undoable import Undoable, undo_calls
from treadle.authoring.values import held
from treadle.core import plan as core
from treadle.core.addresses import child, encode_id
from treadle.core.analysis import check_plan
from treadle.core.checks import mistakes_of
from treadle.core.expressions import parse
from treadle.core.graph import Graph
from treadle.core.plan import Move, RetryPolicy, Slot
from treadle.errors import DefinitionError, UsageError

if TYPE_CHECKING:
    from treadle.authoring.in_process import Table
    from treadle.authoring.outcomes import PhasesResult

# Options of a step function that hold for a cell in process too.
_IN_PROCESS: Final = frozenset({"retry", "timeout", "delay", "optional"})
# Paths of an expression that are not state or lanes are facts of the row.
FACTS: Final = ("policy", "phase", "index", "step", "entry", "pending", "phases", "outcomes")


class Rule:
    """One rule of a policy: where `when` holds, `move` is what follows.

    `when` is an expression over `state`, `lanes` and the facts of the row (see `Row`), a function of a `Row` that
    returns a bool, or None for always.
    """

    __slots__ = ("id", "move", "target", "when")

    def __init__(self, move: Move, target: str = "", *, when: When = None, id: str | None = None) -> None:
        self.move: Final = move
        self.target: Final = target
        self.when: Final = when
        self.id: Final = id

    @classmethod
    def advance(cls, *, when: When = None, id: str | None = None) -> Rule:
        """Go to the next phase; behind the last one the block ends."""
        return cls("advance", when=when, id=id)

    @classmethod
    def jump(cls, target: str, *, when: When = None, id: str | None = None) -> Rule:
        """Go to any phase, and on from there."""
        return cls("jump", target, when=when, id=id)

    @classmethod
    def loop_back(cls, target: str, *, when: When = None, id: str | None = None) -> Rule:
        """Go to an earlier phase."""
        return cls("loop_back", target, when=when, id=id)

    @classmethod
    def repeat(cls, *, when: When = None, id: str | None = None) -> Rule:
        """Execute the phase again."""
        return cls("repeat", when=when, id=id)

    @classmethod
    def stop(cls, *, when: When = None, id: str | None = None) -> Rule:
        """End the block; it has succeeded."""
        return cls("stop", when=when, id=id)

    def __repr__(self) -> str:
        target = f" to {self.target!r}" if self.target else ""
        return f"<rule {self.move}{target}{f' when {self.when!r}' if self.when is not None else ''}>"


When = str | Callable[[Row], Any] | PredicateFunction[Any, Any] | None
AnyCell = Callable[..., Any]
Cells = Mapping[str, AnyCell] | Sequence[tuple[str, AnyCell]]


class LanePlan:
    """A lane that is more than one step: `body` plans its steps and returns its value."""

    __slots__ = ("body",)

    def __init__(self, body: Callable[[], Any]) -> None:
        self.body: Final = body

    def __call__(self) -> Any:
        """Refuse: it plans steps.

        Raises:
            UsageError: always.
        """
        raise UsageError("a LanePlan plans steps of a workflow; in process a cell is a function")


class Phase:
    """One row: its cells, one a lane, and what follows it.

    Args:
        id: the name of the phase.
        cells: functions by lane. Awaited: the row ends when all of them have.
        detached: further cells, which nobody waits for; they set no variables.
        policy: the name of the policy that picks what follows.
        retry: how often the whole row is tried when a cell fails.
        compensate: the id of the compensating phase: once the row has succeeded, that is what undoes it.
    """

    def __init__(
        self,
        id: str,
        cells: Cells = (),
        *,
        detached: Cells = (),
        policy: str = "",
        retry: Retry | RetryPolicy | int | None = None,
        compensate: str = "",
    ) -> None:
        self.id: Final = id
        self.cells: Final = _pairs(cells)
        self.detached: Final = _pairs(detached)
        self.policy: Final = policy
        self.retry: Final = policy_of(retry)
        self.compensate: Final = compensate

    def __repr__(self) -> str:
        return f"<phase {self.id!r}: {', '.join(lane for lane, _ in (*self.cells, *self.detached))}>"


def _pairs(cells: Cells) -> list[tuple[str, AnyCell]]:
    return list(cells.items()) if isinstance(cells, Mapping) else list(cells)


class Lowering(Protocol):
    """How cells, rules and values become part of a plan: by name, or as the objects they are."""

    # Mistakes that were found on the way.
    errors: list[DefinitionError]

    def cell(self, phase: str, lane: str, cell: AnyCell) -> core.Block:
        """The block of a cell."""
        ...

    def condition(self, policy: str, rule: Rule, number: int) -> core.Condition | None:
        """The condition of a rule that is a function."""
        ...


class Phases:
    """Rows one after the other; see the module's head.

    Args:
        phases: the rows, in order.
        policies: ordered rules by the policy's name; the first whose condition holds decides. Without any policy each
            row is followed by the next one.
        otherwise: what follows where no rule holds; without it that is an error.
        start: the phase to begin with; the first one without it.
        step_limit: how many rows may be executed.
        state: the variables and their first values.
        on_conflict: two cells of one row that set one variable: the later lane wins, or the row fails.
        on_finish: what becomes, at the end, of detached cells that still run.
        compensations: phases that others name by `compensate=`. When the block, or its run, is unwound, they are
            executed after all undos of steps, the last row first; their cells take a `Compensation`.
        id: what the block is called in a workflow.
    """

    def __init__(
        self,
        *phases: Phase,
        policies: Mapping[str, Iterable[Rule]] | None = None,
        otherwise: Rule | None = None,
        start: str = "",
        step_limit: int = 1000,
        state: Mapping[str, Any] | None = None,
        on_conflict: Literal["last", "error"] = "last",
        on_finish: Literal["leave", "wait", "cancel"] = "leave",
        compensations: Iterable[Phase] = (),
        id: str = "phases",
    ) -> None:
        self.phases: Final = phases
        self.policies: Final = {name: list(rules) for name, rules in (policies or {}).items()}
        self.otherwise: Final = otherwise
        self.start: Final = start
        self.step_limit: Final = step_limit
        self.state: Final = dict(state or {})
        self.on_conflict: Final = on_conflict
        self.on_finish: Final = on_finish
        self.compensations: Final = list(compensations)
        self.id: Final = id
        self._compiled: dict[tuple[str, int, OnFailure | Literal[""], tuple[str, ...]], tuple[Graph, Table]] = {}

    def lowered(
        self,
        how: Lowering,
        id_: str,
        state: dict[str, Slot],
        place: Callable[[Phase, type], list[core.Block]] | None = None,
    ) -> core.Phases:
        """The block of the plan."""

        def row(phase: Phase, told: type = Cell) -> core.Phase:
            blocks = (
                place(phase, told)
                if place is not None
                else [how.cell(phase.id, lane, cell) for lane, cell in (*phase.cells, *phase.detached)]
            )
            return core.Phase(
                id=phase.id,
                blocks=blocks,
                detached=tuple(lane for lane, _ in phase.detached),
                policy=phase.policy,
                retry=phase.retry,
                compensate=phase.compensate,
            )

        return core.Phases(
            id=id_,
            phases=[row(phase) for phase in self.phases],
            policies={
                name: tuple(_rule(how, name, rule, number) for number, rule in enumerate(rules, 1))
                for name, rules in self.policies.items()
            },
            otherwise=_rule(how, "otherwise", self.otherwise, 1) if self.otherwise is not None else None,
            compensations=[row(phase, Compensation) for phase in self.compensations],
            start=self.start,
            step_limit=self.step_limit,
            state=state,
            on_conflict=self.on_conflict,
            on_finish=self.on_finish,
        )

    async def run(
        self,
        state: Mapping[str, Any] | None = None,
        *,
        start: str = "",
        step_limit: int | None = None,
        on_failure: OnFailure | None = None,
    ) -> PhasesResult:
        """Execute the block here and now, without a store; cells and rules may be any callable.

        A block that fails undoes what it did, as a stored one does: cells that are `Undoable`, or steps with an undo,
        and then phases with a compensating one. The error's `partial` tells what was undone.

        Args:
            state: first values of variables, over those of the block; the mapping is copied.
            start: the phase to begin with, instead of the block's.
            step_limit: as the block's.
            on_failure: `stop` leaves what a block did that fails.

        Raises:
            DefinitionError: the block is wrong; nothing was executed. Several mistakes come as DefinitionErrors.
            PhasesFailedError: a cell failed, no rule held, a rule raised, too many rows (`StepLimitError`).
            PhasesCancelled: the surrounding task was cancelled.

            Both of the last carry `partial`: the rows that were executed, the state, the tickets.
        """
        # The kernel is not imported for a program that only plans.
        from treadle.authoring.in_process import Execution

        values = {**self.state, **(state or {})}
        limit = self.step_limit if step_limit is None else step_limit
        key = (start or self.start, limit, on_failure_of(on_failure), tuple(values))
        compiled = self._compiled.get(key)
        if compiled is None:
            compiled = self._compiled[key] = self._compile(*key)
        graph, table = compiled
        return await Execution(graph, table, [held(value) for value in values.values()]).execute()

    def _compile(
        self, start: str, step_limit: int, on_failure: OnFailure | Literal[""], names: tuple[str, ...]
    ) -> tuple[Graph, Table]:
        """The checked plan of the block alone, and what its names mean."""
        how = _Plain()
        slots: dict[str, Slot] = {name: core.Const(number) for number, name in enumerate(names)}
        block = self.lowered(how, self.id, slots)
        block = msgspec.structs.replace(block, start=start, step_limit=step_limit)
        plan = core.Plan(workflow=self.id, blocks=[block], on_failure=on_failure)
        words = f"phases {self.id!r}"
        raise_all([*how.errors, *check_plan(plan, lambda address: _words(self.id, address))], words)
        return Graph(plan), how.table

    def bind(self, *, id: str | None = None, after: object = None, after_any: object = None, **state: Any) -> Any:
        """Plan the block in a workflow; gives the planned value of its final state, a dict by variable.

        Keyword arguments set first values of variables, planned or plain ones, over those of `state=`.

        Raises:
            UsageError: no workflow is being planned.
            DefinitionError: a cell or a rule has no name that lasts, or takes what it is not given.
        """
        builder = building("Phases.bind")
        outer = builder.scope
        node = builder.block_node(id if id is not None else self.id, "phases", this_frame(1))
        values = {**self.state, **state}
        slots = {name: drafted(value, f"variable {name!r}", node, outer) for name, value in values.items()}
        named = _Named(builder, node, outer)
        block = self.lowered(named, node.id, slots, named.place)
        order = {
            "after": outer.names_of(after, f"{node}: after=", node),
            "after_any": outer.names_of(after_any, f"{node}: after_any=", node),
        }
        outer.blocks.append(msgspec.structs.replace(block, **order))
        if named.errors:
            raise_all([*named.errors, *mistakes_of(block, f"{node}", 0, in_phases=True)], f"{node}")
        return Bound(node)


class _Plain:
    """Cells and rules as the objects they are."""

    def __init__(self) -> None:
        from treadle.authoring.in_process import Table

        self.table = Table()
        self.errors: list[DefinitionError] = []

    def cell(self, phase: str, lane: str, cell: AnyCell) -> core.Block:
        """The step of a cell."""
        name = f"cell {phase}/{lane}"
        fields: dict[str, Any] = {}
        declared: Declared | None = None
        if isinstance(cell, StepFunction):
            step = cast("StepFunction[..., Any]", cell)
            self.table.add(name, step.definition.function)
            fields = {key: step.chosen.fields[key] for key in _IN_PROCESS & step.chosen.fields.keys()}
            declared = step.declared
        elif isinstance(cell, Undoable):
            self.table.add(name, cell.function)
            declared = cell.declared
        elif callable(cell) and not isinstance(cell, LanePlan):
            self.table.add(name, cell)
        else:
            self.errors.append(
                DefinitionError(f"the cell {lane!r} of phase {phase!r} is {cell!r}; in process a cell is a function")
            )
        if declared is not None:
            fields["undo"], calls = undo_calls(name, self.table.functions[name][0], declared, self.errors)
            self.table.undos.update(calls)
        return core.Step(id=lane, action=name, **fields)

    def condition(self, policy: str, rule: Rule, number: int) -> core.Condition | None:
        """The predicate of a rule."""
        when: Any = rule.when
        name = f"rule {policy}/{number}"
        if isinstance(when, PredicateFunction):
            when = cast("PredicateFunction[..., Any]", when).definition.function
        if not callable(when) or isinstance(when, Condition):
            self.errors.append(
                DefinitionError(f"rule {number} of policy {policy!r} asks {when!r}; give an expression or a function")
            )
            return None
        self.table.add(name, when)
        return core.Predicate(name)


def _rule(how: Lowering, policy: str, rule: Rule, number: int) -> core.Rule:
    id_ = rule.id if rule.id is not None else f"{rule.move}-{number}"
    when = rule.when
    condition: core.Condition | None = None
    if isinstance(when, str):
        try:
            condition = expressed(when)
        except DefinitionError as error:
            how.errors.append(DefinitionError(f"rule {id_!r} of policy {policy!r}: {error}"))
    elif when is not None:
        condition = how.condition(policy, rule, number)
    return core.Rule(id=id_, move=rule.move, target=rule.target, when=condition)


def expressed(text: str) -> core.Holds:
    """An expression over state, lanes and the facts of a row, as a condition of the plan.

    Raises:
        ExpressionSyntaxError: the text is wrong.
        DefinitionError: it reads something else.
    """
    slots: dict[str, dict[str, Slot]] = {}
    whole: dict[str, Slot] = {}
    for path in parse(text).names():
        root = str(path[0])
        if root in FACTS:
            whole[root] = core.PhaseInfo(root)
        elif root not in ("state", "lanes"):
            known = ", ".join(("state", "lanes", *FACTS))
            raise DefinitionError(f"the rule {text!r} reads {root!r}; there are {known}")
        elif len(path) > 1 and isinstance(path[1], str):
            name = path[1]
            slots.setdefault(root, {})[name] = core.StateValue(name) if root == "state" else core.LaneValue(name)
        else:
            whole[root] = core.PhaseInfo(root)
    found: dict[str, Slot] = {root: core.MapOf(items, partial=True) for root, items in slots.items()}
    return core.Holds(text, {**found, **whole})


def _words(id_: str, address: str) -> str:
    """How errors name what lies in a block that is executed in process."""
    inner = address.removeprefix(encode_id(id_)).strip("/")
    return f"cell {inner!r}" if "/" in inner else f"phase {inner!r}" if inner else f"phases {id_!r}"


class _Named:
    """Cells and rules by their registered names."""

    def __init__(self, builder: PlanBuilder, node: Node, outer: Scope) -> None:
        self.builder = builder
        self.node = node
        self.outer = outer
        self.errors: list[DefinitionError] = []

    def place(self, phase: Phase, told: type) -> list[core.Block]:
        """The blocks of a row; its cells are planned like any other step, and take what they are `told`."""
        address = child(child(self.outer.address, self.node.segment), encode_id(phase.id))
        inner = Scope(self.outer.site, address, self.outer, self.outer.constants, kind="phase", block=self.node)
        with self.builder.inside(inner):
            for lane, cell in (*phase.cells, *phase.detached):
                inner.blocks += [self.cell(phase.id, lane, cell, told)]
        return inner.blocks

    def cell(self, phase: str, lane: str, cell: AnyCell, told: type = Cell) -> core.Block:
        """The step of a cell."""
        words = f"{self.node}: the cell {lane!r} of phase {phase!r}"
        if isinstance(cell, LanePlan):
            return self._group(lane, cell)
        if not isinstance(cell, StepFunction):
            self._note(f"{words} is {cell!r}; stored, a cell is a @step function, so that it can be found again")
            return core.Step(id=lane, action="")
        step = cast("StepFunction[..., Any]", cell)
        slots = self._told(step.definition.parameters, told, words)
        return core.Step(id=lane, action=step.name, slots=slots, **step.chosen.fields)

    def _group(self, lane: str, cell: LanePlan) -> core.Group:
        """The group of a lane that is more than one step."""
        around = self.builder.scope
        inner = Scope(around.site, child(around.address, encode_id(lane)), around, around.constants)
        with self.builder.inside(inner):
            output = drafted(called(cell.body, [], self.node), f"what lane {lane!r} returns", self.node, inner)
        return core.Group(id=lane, blocks=inner.blocks, output=output)

    def _told(self, parameters: Mapping[str, Parameter], kind: type, words: str) -> dict[str, Slot]:
        """The slots of the parameters that take what a cell or a rule is told."""
        slots: dict[str, Slot] = {}
        for name, parameter in parameters.items():
            if parameter.annotation is kind:
                slots[name] = core.PhaseInfo()
            elif parameter.required:
                self._note(
                    f"{words} takes {name!r}, which nobody gives it; annotate it as {kind.__name__}, or give a default"
                )
        return slots

    def _note(self, text: str) -> None:
        self.errors.append(DefinitionError(text))

    def condition(self, policy: str, rule: Rule, number: int) -> core.Condition | None:
        """The predicate of a rule."""
        when = rule.when
        words = f"{self.node}: rule {number} of policy {policy!r}"
        if isinstance(when, Condition):
            return self.outer.condition(self.node, when)
        if not isinstance(when, PredicateFunction):
            self._note(f"{words} asks {when!r}; stored, a condition is an expression or a @predicate function")
            return None
        predicate = cast("PredicateFunction[..., Any]", when)
        return core.Predicate(predicate.name, self._told(predicate.definition.parameters, Row, words))
