"""What the kinds of blocks have in common: the bodies they hold, the slots they read, the names they use."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from treadle.core.addresses import child, encode_id
from treadle.core.plan import (
    Block,
    Body,
    Branch,
    Choose,
    Gather,
    Group,
    Holds,
    ListOf,
    MapOf,
    Phase,
    Phases,
    Predicate,
    Ref,
    Rule,
    Step,
)

# Why an edge exists: a required Ref, a Ref with a default, required order, settled order.
REF = 1
DEFAULT = 2
AFTER = 4
ANY = 8

AnyBody = Body | Branch | Phase
# What a node is made from.
Spec = Block | AnyBody


def is_undoable(step: Step) -> bool:
    """Whether what the step does can be undone; a run that it calls and waits for may have something to undo."""
    return step.undo is not None or (step.child is not None and not step.child.detached)


def is_simple(step: Step) -> bool:
    """Whether nothing but fences and room decides when a step is dispatched, and nothing but its slots with what."""
    return (
        step.when is None
        and step.undo is None
        and step.child is None
        and step.poll is None
        and step.placement is None
        and not (step.delay or step.key or step.annotations or step.progress_timeout)
    )


def refs_of(slot: object) -> Iterator[Ref]:
    """All Refs inside a slot or a condition."""
    if isinstance(slot, Ref):
        yield slot
    elif isinstance(slot, ListOf):
        for item in slot.items:
            yield from refs_of(item)
    elif isinstance(slot, (MapOf, Predicate, Holds)):
        for value in (slot.items if isinstance(slot, MapOf) else slot.slots).values():
            yield from refs_of(value)


def bodies_of(block: object) -> Sequence[tuple[str, AnyBody]]:
    """The bodies that a block opens while the run goes on, each with the segment of its address ("": by index)."""
    if isinstance(block, Gather):
        return [("", block.body)]
    if isinstance(block, Choose):
        return [(encode_id(branch.id), branch) for branch in block.branches]
    if isinstance(block, Phases):
        return [(encode_id(phase.id), phase) for phase in (*block.phases, *block.compensations)]
    return []


def rules_of(block: Phases) -> Iterator[Rule]:
    """All rules of a Phases block."""
    for rules in block.policies.values():
        yield from rules
    if block.otherwise is not None:
        yield block.otherwise


def has_policies(block: Phases) -> bool:
    """Whether rules decide what follows a row; else rows simply advance."""
    return bool(block.policies) or block.otherwise is not None or any(phase.policy for phase in block.phases)


def slots_of(block: Block) -> Iterator[object]:
    """The slots and conditions that a block itself reads, not those of what lies in it."""
    if isinstance(block, Step):
        yield from block.slots.values()
        if block.when is not None:
            yield block.when
    elif isinstance(block, Gather):
        yield block.items
    elif isinstance(block, Choose):
        for branch in block.branches:
            if branch.when is not None:
                yield branch.when
    elif isinstance(block, Phases):
        yield from block.state.values()
        for rule in rules_of(block):
            if rule.when is not None:
                yield rule.when


class Part(NamedTuple):
    """A block, or a row or branch of one, as it is shown: the body of a gather stands for all its iterations."""

    address: str
    title: str
    spec: Block | Phase | Branch
    inner: list[Part]


def outline(blocks: Sequence[Block], scope: str = "") -> list[Part]:
    """The tree of a plan's blocks, in plan order."""
    return [_part(child(scope, encode_id(block.id)), block) for block in blocks]


def _part(address: str, block: Block) -> Part:
    if isinstance(block, Gather):
        return Part(address, block.id, block, outline(block.body.blocks, address + "[]"))
    inner = outline(block.blocks, address) if isinstance(block, Group) else []
    for segment, body in bodies_of(block):
        assert not isinstance(body, Body)
        at = child(address, segment)
        inner.append(Part(at, body.id, body, outline(body.blocks, at)))
    return Part(address, block.id, block, inner)


def has_value(block: Spec | None) -> bool:
    """Whether others may refer to the block's result."""
    if isinstance(block, Group):
        return block.output is not None
    return block is not None


def own_names(block: Block) -> Iterator[tuple[str, int]]:
    """The names of other blocks that a block itself uses, each with what the edge means."""
    for slot in slots_of(block):
        for ref in refs_of(slot):
            yield ref.step, REF if ref.default < 0 else DEFAULT
    if isinstance(block, Step) and block.placement is not None and block.placement.step:
        yield block.placement.step, AFTER
    for name in block.after:
        yield name, AFTER
    for name in block.after_any:
        yield name, ANY


def content_of(block: object) -> Iterator[tuple[list[Block], object]]:
    """The lists of blocks directly in a block, each with the output that is made of it."""
    if isinstance(block, Group):
        yield block.blocks, block.output
    elif isinstance(block, Phases):
        yield [], block.output
    for _, body in bodies_of(block):
        yield body.blocks, body.output


def names_of(block: Block) -> Iterator[tuple[str, int]]:
    """As `own_names`, with those that its content uses."""
    yield from own_names(block)
    for blocks, output in content_of(block):
        for inner in blocks:
            yield from names_of(inner)
        for ref in refs_of(output):
            yield ref.step, REF if ref.default < 0 else DEFAULT


def free_names(block: Block) -> Iterator[tuple[str, int]]:
    """The names in a block's content that mean something outside of it."""
    known = _names_inside(block)
    for blocks, output in content_of(block):
        yield from _free(blocks, output, known)


def _names_inside(block: Block) -> frozenset[str]:
    """What the content of a block may name besides its siblings: rows that were executed before."""
    return frozenset(segment for segment, _ in bodies_of(block)) if isinstance(block, Phases) else frozenset()


def _free(blocks: list[Block], output: object, known: frozenset[str]) -> Iterator[tuple[str, int]]:
    known = known | {encode_id(block.id) for block in blocks}
    for block in blocks:
        for name, flag in own_names(block):
            if name.split("/", 1)[0] not in known:
                yield name, flag
        inside = known | _names_inside(block)
        for inner, inner_output in content_of(block):
            yield from _free(inner, inner_output, inside)
    for ref in refs_of(output):
        if ref.step.split("/", 1)[0] not in known:
            yield ref.step, REF if ref.default < 0 else DEFAULT
