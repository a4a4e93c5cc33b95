"""Compiled graphs: blocks as nodes with dense numbers and edges, made once a plan (or an added fragment).

Node 0 is the root scope. A node's `needs` are the nodes it waits for, each with what the edge means (`REF`,
`DEFAULT`, `AFTER`, `ANY` bits, joined when there are several reasons). Compiled nodes are shared by all runs of
a plan and never change.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import ClassVar, Protocol

import msgspec

from treadle.core.addresses import child, encode_id
from treadle.core.blocks import (
    AFTER,
    ANY,
    DEFAULT,
    REF,
    Spec,
    free_names,
    has_value,
    refs_of,
    slots_of,
)
from treadle.core.plan import (
    Block,
    Body,
    Branch,
    Const,
    Gather,
    Given,
    Group,
    Index,
    Item,
    LaneValue,
    ListOf,
    MapOf,
    Opening,
    Phase,
    PhaseInfo,
    Plan,
    Predicate,
    Ref,
    SignalValue,
    Slot,
    StateValue,
    Step,
    Test,
)
from treadle.errors import DuplicateStepError, UnknownStepError

# Slots that name neither a step nor a signal.
_NAMELESS = frozenset({Const, Given, Index, Item, LaneValue, PhaseInfo, StateValue})
_NO_REFS: Mapping[str, int] = MappingProxyType({})


class Node(msgspec.Struct, gc=False, eq=False):
    """What is fixed about a step or a scope of a run. Empty collections are shared: a plan may have a million nodes."""

    number: int
    address: str
    scope: Node | None
    # The block or body it was made from; None for the root and for what a step adds.
    spec: Spec | None
    is_step: bool = False
    optional: bool = False
    needs: Sequence[tuple[int, int]] = ()
    dependents: Sequence[tuple[int, int]] = ()
    # Step text of a Ref -> number of the node it names.
    refs: Mapping[str, int] = _NO_REFS
    # Names of all signals that the step waits for, those it takes as values included.
    signals: tuple[str, ...] = ()
    # Constants of the fragment that brought this node; None: the run head's.
    constants: list[str] | None = None
    # For the scope of what a step adds: that step.
    owner: Node | None = None

    def __post_init__(self) -> None:
        if self.spec is not None:
            self.define(self.spec)

    @property
    def step(self) -> Step:
        """As `spec`, for steps only."""
        return self.spec  # type: ignore[return-value]  # pyright: ignore[reportReturnType]  # callers know that it is

    def define(self, spec: Spec) -> None:
        """Set what the plan, or the step that adds, says of this node."""
        self.spec = spec
        self.optional = spec.optional
        self.is_step = type(spec) is Step


def signals_of(slot: object) -> Iterator[str]:
    """Names of all signals whose payload a slot takes."""
    if isinstance(slot, SignalValue):
        yield slot.name
    elif isinstance(slot, ListOf):
        for item in slot.items:
            yield from signals_of(item)
    elif isinstance(slot, (MapOf, Predicate, Test)):
        for value in (slot.items if isinstance(slot, MapOf) else slot.slots).values():
            yield from signals_of(value)


def constants_of(slot: object) -> Iterator[int]:
    """The numbers of all constants that a slot uses."""
    if isinstance(slot, Const):
        yield slot.index
    elif isinstance(slot, (Ref, StateValue, LaneValue)):
        if slot.default >= 0:
            yield slot.default
    elif isinstance(slot, ListOf):
        for item in slot.items:
            yield from constants_of(item)
    elif isinstance(slot, (MapOf, Predicate, Test)):
        for value in (slot.items if isinstance(slot, MapOf) else slot.slots).values():
            yield from constants_of(value)


class Space(Protocol):
    """Where nodes are made and found: a plan's graph, or one run's additions on top of it."""

    # Whether it is a run: what was checked in the plan may name a row that this run has not executed.
    is_run: ClassVar[bool]

    def new(self, address: str, scope: Node, spec: Spec | None) -> Node:
        """Make a node with the next number."""
        ...

    def again(self, node: Node, spec: Spec) -> Node:
        """Define a node anew that was taken back.

        Raises:
            DuplicateStepError: it was not taken back; the id is in use.
        """
        ...

    def find(self, scope: Node, segment: str) -> Node | None:
        """The child of a scope, or None."""
        ...

    def enter(self, scope: Node, segment: str, node: Node) -> None:
        """Make `node` the child of a scope."""
        ...

    def scope_of(self, step: Node) -> Node:
        """The scope of all that a step adds; made when it is first asked for."""
        ...


class Graph:
    """The nodes of a plan, by number and by address. Shared by all its runs."""

    is_run: ClassVar[bool] = False
    __slots__ = ("children", "dedup", "index", "nodes", "plan")

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.nodes: list[Node] = [Node(0, "", None, None)]
        self.index: dict[str, int] = {"": 0}
        self.children: dict[int, dict[str, Node]] = {0: {}}
        self.dedup: dict[str, int] = {}
        root = self.nodes[0]
        for node in place(plan.blocks, root, None, self):
            link(node, self)
            key = node.spec.dedup if isinstance(node.spec, Step) else None
            if key is not None and self.dedup.setdefault(key, node.number) != node.number:
                raise DuplicateStepError(f"two steps have the dedup key {key!r}")
        dependents: dict[int, list[tuple[int, int]]] = {}
        for node in self.nodes:
            for number, flags in node.needs:
                dependents.setdefault(number, []).append((node.number, flags))
        for number, edges in dependents.items():
            self.nodes[number].dependents = tuple(edges)
        root.refs = {ref.step: _step_named(root, ref.step, self, None).number for ref in refs_of(plan.output)}

    def new(self, address: str, scope: Node, spec: Spec | None) -> Node:
        """Make a node with the next number."""
        node = Node(len(self.nodes), address, scope, spec)
        self.nodes.append(node)
        self.index[address] = node.number
        return node

    def again(self, node: Node, spec: Spec) -> Node:
        """Refuse a second block of one id: nothing of a plan is ever taken back."""
        raise DuplicateStepError(f"two blocks have the address {node.address!r}")

    def find(self, scope: Node, segment: str) -> Node | None:
        """The child of a scope, or None."""
        children = self.children.get(scope.number)
        return children.get(segment) if children is not None else None

    def enter(self, scope: Node, segment: str, node: Node) -> None:
        """Make `node` the child of a scope."""
        children = self.children.get(scope.number)
        if children is None:
            children = self.children[scope.number] = {}
        children[segment] = node

    def scope_of(self, step: Node) -> Node:
        """The scope of all that a step adds; made when it is first asked for."""
        address = step.address + "/"
        if (number := self.index.get(address)) is not None:
            return self.nodes[number]
        assert step.scope is not None
        scope = self.new(address, step.scope, None)
        scope.owner = step
        return scope


def place(blocks: list[Block], scope: Node, constants: list[str] | None, space: Space) -> list[Node]:
    """Make the nodes of blocks inside a scope; returns all of them, groups before their content."""
    nodes: list[Node] = []
    base = scope.owner.address if scope.owner is not None else scope.address
    for block in blocks:
        segment = encode_id(block.id)
        found = space.find(scope, segment)
        if found is None:
            node = space.new(child(base, segment), scope, block)
            space.enter(scope, segment, node)
        else:
            node = space.again(found, block)
        node.constants = constants
        nodes.append(node)
        if isinstance(block, Group):
            nodes += place(block.blocks, node, constants, space)
    return nodes


def link(node: Node, space: Space) -> None:
    """Resolve the names that a node of a block uses and set its needs."""
    spec = node.spec
    assert spec is not None
    assert not isinstance(spec, (Body, Branch, Phase))
    needs: dict[int, int] = {}
    if isinstance(spec, Step):
        _link_slots(node, spec, space, needs)
    elif isinstance(spec, Group):
        link_output(node, spec.output, space)
    else:
        _link_opening(node, spec, space, needs)
    if spec.after or spec.after_any:
        for names, flag in ((spec.after, AFTER), (spec.after_any, ANY)):
            for name in names:
                _order(node, name, flag, space, needs)
    # Set even if there are none: a step that a rewind took back may have had some.
    node.needs = tuple(needs.items())


def _link_slots(node: Node, spec: Step, space: Space, needs: dict[int, int]) -> None:
    """Resolve the Refs and signals of a step."""
    refs: dict[str, int] = {}
    signals: dict[str, None] = dict.fromkeys(spec.signals) if spec.signals else {}
    slots: list[object] = list(spec.slots.values())
    if spec.when is not None:
        # A predicate holds slots, and is walked like one.
        slots.append(spec.when)
    for slot in slots:
        if type(slot) not in _NAMELESS:
            _link_slot(node, slot, space, refs, signals, needs)
    placed = spec.placement
    if placed is not None and placed.step:
        number = refs[placed.step] = _number_named(node, node.scope, placed.step, space)
        if number >= 0:
            needs[number] = needs.get(number, 0) | AFTER
    node.refs = refs or _NO_REFS
    node.signals = tuple(signals)


def _link_slot(
    node: Node, slot: object, space: Space, refs: dict[str, int], signals: dict[str, None], needs: dict[int, int]
) -> None:
    for ref in (slot,) if isinstance(slot, Ref) else refs_of(slot):
        name = ref.step
        number = refs.get(name)
        if number is None:
            number = refs[name] = _number_named(node, node.scope, name, space)
        if number >= 0:
            needs[number] = needs.get(number, 0) | (REF if ref.default < 0 else DEFAULT)
    if type(slot) is not Ref:
        signals.update(dict.fromkeys(signals_of(slot)))


def _link_opening(node: Node, spec: Opening, space: Space, needs: dict[int, int]) -> None:
    """Resolve what a block reads before it opens anything."""
    refs: dict[str, int] = {}
    signals: dict[str, None] = {}
    for slot in slots_of(spec):
        _link_slot(node, slot, space, refs, signals, needs)
    if isinstance(spec, Gather):
        # Its iterations start when all is there that they take from outside, so that they need not wait each.
        for name, flag in free_names(spec):
            _order(node, name, flag, space, needs)
    elif not space.is_run:
        # Looked up again when a row or branch is opened; a name that means nothing is refused now.
        for name, _ in free_names(spec):
            lookup(node.scope, name, space, node)
    node.refs = refs or _NO_REFS
    node.signals = tuple(signals)


def link_output(node: Node, output: Slot | None, space: Space) -> None:
    """Resolve, from inside a scope, the names that its value is made of."""
    if output is not None:
        node.refs = {ref.step: _number_named(node, node, ref.step, space) for ref in refs_of(output)}


def _order(node: Node, name: str, flag: int, space: Space, needs: dict[int, int]) -> None:
    """Let a node wait for what a name means; a row that was not executed is not waited for."""
    try:
        number = lookup(node.scope, name, space, node).number
    except UnknownStepError:
        if not space.is_run:
            raise
        return
    needs[number] = needs.get(number, 0) | flag


def _number_named(node: Node, scope: Node | None, name: str, space: Space) -> int:
    """The number of the node that gives a value under this name; -1 for a row that was not executed."""
    try:
        return _step_named(scope, name, space, node).number
    except UnknownStepError:
        if not space.is_run:
            raise
        return -1


def _step_named(scope: Node | None, name: str, space: Space, reader: Node | None) -> Node:
    """The node that gives a value under this name: a group without an output has none."""
    # The plain case of `lookup`, a sibling.
    node = space.find(scope, name) if scope is not None and "/" not in name else None
    if node is None:
        node = lookup(scope, name, space, reader)
    if not node.is_step and not has_value(node.spec):
        who = f"step {reader.address!r}" if reader is not None else "the output"
        raise UnknownStepError(f"{who} needs one step, but {name!r} is a group")
    return node


def lookup(scope: Node | None, name: str, space: Space, reader: Node | None = None) -> Node:
    """The node that `name` (an address of encoded segments) means to a reader in `scope`.

    The first segment is a sibling, else a block of an enclosing scope; `a/b` goes down from there, and a
    trailing slash is all that step `a` adds.

    Raises:
        UnknownStepError: nothing has this name there.
    """
    node: Node | None = None
    if "/" not in name:
        rest: list[str] = []
        want_scope, first = False, name
    else:
        want_scope = name.endswith("/")
        first, *rest = name.rstrip("/").split("/")
    while scope is not None and node is None:
        node = space.find(scope, first)
        scope = scope.scope
    for segment in rest:
        if node is not None:
            node = space.find(space.scope_of(node) if node.is_step else node, segment)
    if node is None:
        where = f" that step {reader.address!r} names" if reader is not None else ""
        raise UnknownStepError(f"no step {name!r}{where} is visible there; check the id")
    return space.scope_of(node) if want_scope and node.is_step else node
