"""Checks of blocks that open their content while the run goes on: policies, rules, branches, expressions, places."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import get_args

from treadle.core.addresses import check_id
from treadle.core.blocks import has_policies, rules_of, slots_of
from treadle.core.expressions import parse
from treadle.core.plan import (
    Block,
    Choose,
    Gather,
    Holds,
    Index,
    Item,
    LaneValue,
    ListOf,
    MapOf,
    Move,
    Phase,
    PhaseInfo,
    Phases,
    Placement,
    Predicate,
    Rule,
    StateValue,
    Step,
)
from treadle.errors import DefinitionError, DuplicateStepError

Found = Iterator[DefinitionError]
# How errors call the block.
Called = str


def mistakes_of(block: Block, called: Called, gathers: int, in_phases: bool) -> Found:
    """What is wrong with a block by itself.

    `called` are the words for it; `gathers` and `in_phases` say how many gathers, and whether a Phases block, are
    around it.
    """
    if isinstance(block, Phases):
        yield from _phases(block, called)
    elif isinstance(block, Choose):
        yield from _choose(block, called)
    elif isinstance(block, Gather):
        if not block.body.blocks:
            yield DefinitionError(f"{called}: its body holds no steps")
        if block.limit < 0:
            yield DefinitionError(f"{called}: limit={block.limit}; give how many items may be under way, 0 for any")
        yield from _one_of("mode", block.mode, ("any_error", "all", "first"), called)
    for slot in slots_of(block):
        yield from slot_mistakes(slot, called, gathers, in_phases or isinstance(block, Phases))


def slot_mistakes(slot: object, called: Called, gathers: int, in_phases: bool) -> Found:
    """What is wrong with a slot at its place."""
    if isinstance(slot, Item | Index) and slot.level >= gathers:
        yield DefinitionError(f"{called} takes the item of a gather, but it lies in {gathers or 'no'} gather")
    elif isinstance(slot, StateValue | LaneValue | PhaseInfo) and not in_phases:
        yield DefinitionError(f"{called} reads the state of a Phases block, but lies in none")
    elif isinstance(slot, Holds):
        yield from _expression(slot.text, called)
        for inner in slot.slots.values():
            yield from slot_mistakes(inner, called, gathers, in_phases)
    elif isinstance(slot, ListOf):
        for inner in slot.items:
            yield from slot_mistakes(inner, called, gathers, in_phases)
    elif isinstance(slot, MapOf | Predicate):
        for inner in (slot.items if isinstance(slot, MapOf) else slot.slots).values():
            yield from slot_mistakes(inner, called, gathers, in_phases)


def _expression(text: str, called: Called) -> Found:
    try:
        parse(text)
    except DefinitionError as error:
        yield DefinitionError(f"{called}: {error}")


def _one_of(name: str, value: str, known: tuple[str, ...], called: Called) -> Found:
    if value not in known:
        yield DefinitionError(f"{called}: {name}={value!r}; there are {_listed(list(known))}")


def _ids(ids: Iterable[str], what: str, called: Called) -> Found:
    seen: set[str] = set()
    for id_ in ids:
        try:
            check_id(id_, f"{what} id")
        except DefinitionError as error:
            yield DefinitionError(f"{called}: {error}")
        if id_ in seen:
            plural = "branches" if what == "branch" else f"{what}s"
            yield DuplicateStepError(f"{called}: two {plural} have the id {id_!r}")
        seen.add(id_)


def _choose(block: Choose, called: Called) -> Found:
    yield from _ids((branch.id for branch in block.branches), "branch", called)
    if not block.branches:
        yield DefinitionError(f"{called} has no branches")
    for branch in block.branches[:-1]:
        if branch.when is None:
            yield DefinitionError(f"{called}: branch {branch.id!r} has no condition, so it is the else; put it last")


# -- phases ----------------------------------------------------------------------------------------------------------


def _phases(block: Phases, called: Called) -> Found:
    yield from _ids((phase.id for phase in (*block.phases, *block.compensations)), "phase", called)
    if not block.phases:
        yield DefinitionError(f"{called}: phases are required")
    if block.step_limit < 1:
        yield DefinitionError(f"{called}: step_limit={block.step_limit}; at least one row must be allowed")
    yield from _one_of("on_conflict", block.on_conflict, ("last", "error"), called)
    yield from _one_of("on_finish", block.on_finish, ("leave", "wait", "cancel"), called)
    ids = [phase.id for phase in block.phases]
    if block.start and block.start not in ids:
        yield DefinitionError(f"{called}: start={block.start!r} is not among its phases: {_listed(ids)}")
    for phase in (*block.phases, *block.compensations):
        yield from _phase(phase, block, called)
    for phase in block.compensations:
        yield from _compensation(phase, called)
    yield from _policies(block, ids, called)


def _phase(phase: Phase, block: Phases, called: Called) -> Found:
    lanes = [cell.id for cell in phase.blocks]
    yield from _ids(lanes, "lane", f"{called}: phase {phase.id!r}")
    for lane in phase.detached:
        if lane not in lanes:
            yield DefinitionError(f"{called}: phase {phase.id!r} has no lane {lane!r} to detach: {_listed(lanes)}")
    known = [other.id for other in block.compensations]
    if phase.compensate and phase.compensate not in known:
        yield DefinitionError(
            f"{called}: phase {phase.id!r} is compensated by {phase.compensate!r}, which is not there: {_listed(known)}"
        )


def _compensation(phase: Phase, called: Called) -> Found:
    """What a compensating phase has no use for: it is executed once, when something is unwound."""
    for name, given, why in (
        ("policy", phase.policy, "nothing follows it"),
        ("retry", phase.retry, "give its cells a retry; an operator can try it again as a whole"),
        ("compensate", phase.compensate, "nothing takes a compensation back"),
        ("detached", phase.detached, "the unwinding waits for all of it"),
    ):
        if given:
            yield DefinitionError(f"{called}: the compensating phase {phase.id!r} has {name}=: {why}")


def _policies(block: Phases, ids: list[str], called: Called) -> Found:
    if not has_policies(block):
        return
    for phase in block.phases:
        if not phase.policy:
            yield DefinitionError(f"{called}: phase {phase.id!r} needs a transition policy, since others have one")
        elif phase.policy not in block.policies:
            known = _listed(list(block.policies))
            yield DefinitionError(
                f"{called}: phase {phase.id!r} names policy {phase.policy!r}, not registered: {known}"
            )
    for name, rules in block.policies.items():
        if not rules and block.otherwise is None:
            yield DefinitionError(f"{called}: policy {name!r} has no rules")
        yield from _ids((rule.id for rule in rules), f"policy {name!r} rule", called)
    for rule in rules_of(block):
        yield from _target(rule, block, ids, called)


def _target(rule: Rule, block: Phases, ids: list[str], called: Called) -> Found:
    """Literal targets are checked before anything runs."""
    words = f"{called}: rule {rule.id!r}"
    if rule.move not in get_args(Move):
        yield DefinitionError(f"{words}: there is no move {rule.move!r}; there are {_listed(list(get_args(Move)))}")
        return
    if rule.move not in ("jump", "loop_back"):
        if rule.target:
            yield DefinitionError(f"{words} has a target, but {rule.move} needs none")
        return
    if not rule.target:
        yield DefinitionError(f"{words}: {rule.move} requires a target phase")
    elif rule.target not in ids:
        yield DefinitionError(f"{words}: target {rule.target!r} is not among the phases: {_listed(ids)}")
    elif rule.move == "loop_back":
        for phase in block.phases:
            uses = rule is block.otherwise or rule in block.policies.get(phase.policy, ())
            if uses and ids.index(rule.target) >= ids.index(phase.id):
                yield DefinitionError(
                    f"{words}: loop_back to {rule.target!r} must be earlier than current phase {phase.id!r}; "
                    "jump may go anywhere"
                )


def _listed(names: list[str]) -> str:
    return ", ".join(map(repr, names)) if names else "there are none"


def placement_mistake(who: str, placed: Placement, other: object) -> DefinitionError | None:
    """What is wrong with placing a step by another block of the plan."""
    if not isinstance(other, Step):
        return DefinitionError(f"{who} is placed by {placed.step!r}, which is no step; name one of its steps")
    if placed.mode == "follow" and other.placement is None:
        return DefinitionError(f"{who} follows {placed.step!r}, which is not placed; place it, or use beside=")
    return None
