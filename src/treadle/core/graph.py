"""Compiled graphs: blocks as nodes with dense numbers and edges, made once a plan (or an added fragment).

Node 0 is the root scope. A node's `needs` are the nodes it waits for, each with what the edge means (`REF`,
`DEFAULT`, `AFTER`, `ANY` bits, joined when there are several reasons). Compiled nodes are shared by all runs of
a plan and never change.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, ClassVar, NamedTuple, Protocol

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
    is_simple,
    is_undoable,
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
    Holds,
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
    Triggers,
)
from treadle.errors import DuplicateStepError, UnknownStepError

if TYPE_CHECKING:
    from treadle.core.run_data import Need

# Slots that name neither a step nor a signal.
_NAMELESS = frozenset({Triggers, Const, Given, Index, Item, LaneValue, PhaseInfo, StateValue})
# Of what names nothing, and of an iteration's body that is not linked yet.
NO_REFS: Mapping[str, int] = MappingProxyType({})
_NO_STEP = Step(id="", action="")


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
    # Step text of a Ref -> number of the node it names. The nodes of a plan's scope share one, for all their Refs.
    refs: Mapping[str, int] = NO_REFS
    # Names of all signals that the step waits for, those it takes as values included.
    signals: tuple[str, ...] = ()
    # Constants of the fragment that brought this node; None: the run head's.
    constants: list[str] | None = None
    # For the scope of what a step adds: that step.
    owner: Node | None = None
    # As `spec`, for steps only; read where it is known to be one.
    step: Step = _NO_STEP
    # It is a step whose effect can be undone.
    undoable: bool = False
    # It is a step that is dispatched as it is.
    simple: bool = False
    # Steps of one scope that follow each other and take the same arguments: the number of the first; 0 for others.
    alike: int = 0

    def define(self, spec: Spec) -> None:
        """Set what the plan, or the step that adds, says of this node."""
        self.spec = spec
        self.optional = spec.optional
        self.is_step = type(spec) is Step
        self.step = spec if isinstance(spec, Step) else _NO_STEP
        self.undoable = is_undoable(self.step)
        self.simple = self.is_step and is_simple(self.step)


def node_of(number: int, address: str, scope: Node, spec: Spec | None) -> Node:
    """A new node; without a block it is the scope of what a step adds."""
    if spec is None:
        return Node(number, address, scope, None)
    node = Node(number, address, scope, spec, False, spec.optional)
    if type(spec) is Step:
        node.define(spec)
    return node


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
    elif isinstance(slot, (MapOf, Predicate, Holds)):
        for value in (slot.items if isinstance(slot, MapOf) else slot.slots).values():
            yield from constants_of(value)


class Names(Protocol):
    """Where nodes are found: a plan's graph, or one run's additions on top of it."""

    # Whether it is a run: what was checked in the plan may name a row that this run has not executed.
    is_run: ClassVar[bool]

    def find(self, scope: Node, segment: str) -> Node | None:
        """The child of a scope, or None."""
        ...

    def scope_of(self, step: Node) -> Node:
        """The scope of all that a step adds; made when it is first asked for."""
        ...


class Space(Names, Protocol):
    """Where nodes are added while a run goes on."""

    def new(self, address: str, scope: Node, spec: Spec | None) -> Node:
        """Make a node with the next number."""
        ...

    def again(self, node: Node, spec: Spec) -> Node:
        """Define a node anew that was taken back.

        Raises:
            DuplicateStepError: it was not taken back; the id is in use.
        """
        ...

    def enter(self, scope: Node, segment: str, node: Node) -> None:
        """Make `node` the child of a scope."""
        ...


class Flat(NamedTuple):
    """Of a plan that has nothing but steps in its root: how many nodes each waits for, and who waits for none."""

    waits: list[int]
    first: list[int]


class Graph:
    """The nodes of a plan, by number and by address. Shared by all its runs."""

    is_run: ClassVar[bool] = False
    __slots__ = ("children", "data_needs", "dedup", "flat", "index", "nodes", "plan", "undoable")

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        root = Node(0, "", None, None)
        self.nodes: list[Node] = [root]
        self.index: dict[str, int] = {"": 0}
        self.children: dict[int, dict[str, Node]] = {}
        self.dedup: dict[str, int] = {}
        # Whether any step can be undone.
        self.undoable = False
        names: dict[int, dict[str, int]] = {}
        self._place(plan.blocks, root, names)
        self._link(names)
        self._enter_dependents()
        self.flat = _flat_of(self.nodes[1:])
        # Filled by `run_data.needs_of` when it is first asked for.
        self.data_needs: tuple[Need, ...] | None = None
        root.refs = {ref.step: _step_named(root, ref.step, self, None).number for ref in refs_of(plan.output)}

    def _place(self, blocks: list[Block], scope: Node, names: dict[int, dict[str, int]]) -> None:
        """Make the nodes of blocks, groups before their content; `names` gets what Refs mean in each scope."""
        nodes, index = self.nodes, self.index
        children = self.children[scope.number] = {}
        # What a Ref names is a sibling first of all.
        refs = names[scope.number] = {}
        prefix = f"{scope.address}/" if scope.address else ""
        before: Node | None = None
        for block in blocks:
            segment = encode_id(block.id)
            address = prefix + segment
            if segment in children:
                raise DuplicateStepError(f"step id {block.id!r} is used twice: {address!r} is there already")
            number = index[address] = len(nodes)
            if isinstance(block, Step):
                # Nearly all at once: a struct's field costs more to set than to give.
                optional, simple = block.optional, is_simple(block)
                node = Node(
                    number, address, scope, block, True, optional, (), (), refs, (), None, None, block, False, simple
                )
                refs[segment] = number
                if before is not None and block.slots == before.step.slots and block.timeout == before.step.timeout:
                    before.alike = node.alike = before.alike or before.number
                before = node
                if not simple and is_undoable(block):
                    node.undoable = self.undoable = True
                if block.dedup is not None and self.dedup.setdefault(block.dedup, number) != number:
                    raise DuplicateStepError(f"two steps have the dedup key {block.dedup!r}")
            else:
                node = Node(number, address, scope, block, False, block.optional)
                if has_value(block):
                    refs[segment] = number
            children[segment] = node
            nodes.append(node)
            if isinstance(block, Group):
                self._place(block.blocks, node, names)

    def _link(self, names: dict[int, dict[str, int]]) -> None:
        """Set the needs of all nodes. Equal ones are one tuple: the steps of a fan have the same."""
        shared: dict[Sequence[tuple[int, int]], Sequence[tuple[int, int]]] = {}
        within: Node | None = None
        refs: dict[str, int] = {}
        # Links may make scopes of what steps add, and those have nothing to link.
        for node in self.nodes[1:]:
            if node.scope is not within:
                within = node.scope
                assert within is not None
                refs = names[within.number]
            if needs := link(node, self, refs):
                node.needs = shared.setdefault(needs, needs)

    def _enter_dependents(self) -> None:
        """Set what waits for each node. Equal ones are one tuple: a join's steps have the same."""
        nodes = self.nodes
        shared: dict[tuple[tuple[int, int], ...], tuple[tuple[int, int], ...]] = {}
        several: dict[int, list[tuple[int, int]]] = {}
        for node in nodes:
            only: tuple[tuple[int, int]] = ((node.number, REF),)
            for number, flags in node.needs:
                if flags != only[0][1]:
                    only = ((node.number, flags),)
                upstream = nodes[number]
                if not upstream.dependents:
                    upstream.dependents = only
                elif (found := several.get(number)) is not None:
                    found += only
                else:
                    several[number] = [*upstream.dependents, *only]
        for number, found in several.items():
            made = tuple(found)
            nodes[number].dependents = shared.setdefault(made, made)

    def find(self, scope: Node, segment: str) -> Node | None:
        """The child of a scope, or None."""
        children = self.children.get(scope.number)
        return children.get(segment) if children is not None else None

    def scope_of(self, step: Node) -> Node:
        """The scope of all that a step adds; made when it is first asked for."""
        address = step.address + "/"
        if (number := self.index.get(address)) is not None:
            return self.nodes[number]
        assert step.scope is not None
        scope = Node(len(self.nodes), address, step.scope, None, owner=step)
        self.nodes.append(scope)
        self.index[address] = scope.number
        return scope


def _flat_of(nodes: list[Node]) -> Flat | None:
    if not all(node.is_step for node in nodes):
        return None
    return Flat([len(node.needs) for node in nodes], [node.number for node in nodes if not node.needs])


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


def link(node: Node, names: Names, refs: dict[str, int]) -> tuple[tuple[int, int], ...]:
    """Resolve the names that a node of a block uses; gives its needs.

    `refs` keeps the numbers of what Refs name; nodes of one scope that are linked together share it.
    """
    spec = node.spec
    needs: dict[int, int] = {}
    if isinstance(spec, Step):
        _link_step(node, spec, names, needs, refs)
    elif isinstance(spec, Group):
        link_output(node, spec.output, names)
    else:
        assert spec is not None
        assert not isinstance(spec, (Body, Branch, Phase))
        _link_opening(node, spec, names, needs, refs)
    if spec.after or spec.after_any:
        for upstreams, flag in ((spec.after, AFTER), (spec.after_any, ANY)):
            for name in upstreams:
                _order(node, name, flag, names, needs)
    return tuple(needs.items())


def _link_step(node: Node, spec: Step, names: Names, needs: dict[int, int], refs: dict[str, int]) -> None:
    """Resolve the Refs and signals of a step."""
    signals: dict[str, None] = dict.fromkeys(spec.signals) if spec.signals else {}
    for slot in spec.slots.values():
        # The plain case of `_link_slot`.
        if type(slot) is Ref and slot.default < 0 and (known := refs.get(slot.step, -1)) >= 0:
            needs[known] = needs.get(known, 0) | REF
        elif type(slot) not in _NAMELESS:
            _link_slot(node, slot, names, needs, refs, signals)
    if spec.when is not None:
        _link_slot(node, spec.when, names, needs, refs, signals)
    placed = spec.placement
    if placed is not None and placed.step:
        number = refs[placed.step] = _number_named(node, node.scope, placed.step, names)
        if number >= 0:
            needs[number] = needs.get(number, 0) | AFTER
    if node.refs is not refs:
        node.refs = refs
    if signals or node.signals:
        node.signals = tuple(signals)


def _link_slot(
    node: Node, slot: object, names: Names, needs: dict[int, int], refs: dict[str, int], signals: dict[str, None]
) -> None:
    """Enter the needs and signals of a slot or a condition, and of all inside it."""
    if type(slot) is Ref:
        name = slot.step
        number = refs.get(name)
        if number is None:
            number = refs[name] = _number_named(node, node.scope, name, names)
        if number >= 0:
            needs[number] = needs.get(number, 0) | (REF if slot.default < 0 else DEFAULT)
    elif isinstance(slot, ListOf):
        for item in slot.items:
            # The plain case, as in `_link_step`: a join has as many items as there are steps before it.
            if type(item) is Ref and item.default < 0 and (known := refs.get(item.step, -1)) >= 0:
                needs[known] = needs.get(known, 0) | REF
            else:
                _link_slot(node, item, names, needs, refs, signals)
    elif isinstance(slot, (MapOf, Predicate, Holds)):
        # A condition holds slots, and is walked like a map.
        for item in (slot.items if isinstance(slot, MapOf) else slot.slots).values():
            _link_slot(node, item, names, needs, refs, signals)
    elif isinstance(slot, SignalValue):
        signals[slot.name] = None


def _link_opening(node: Node, spec: Opening, names: Names, needs: dict[int, int], refs: dict[str, int]) -> None:
    """Resolve what a block reads before it opens anything."""
    signals: dict[str, None] = {}
    for slot in slots_of(spec):
        _link_slot(node, slot, names, needs, refs, signals)
    if isinstance(spec, Gather):
        # Its iterations start when all is there that they take from outside, so that they need not wait each.
        for name, flag in free_names(spec):
            _order(node, name, flag, names, needs)
    elif not names.is_run:
        # Looked up again when a row or branch is opened; a name that means nothing is refused now.
        for name, _ in free_names(spec):
            lookup(node.scope, name, names, node)
    node.refs = refs
    node.signals = tuple(signals)


def link_output(node: Node, output: Slot | None, names: Names) -> None:
    """Resolve, from inside a scope, the names that its value is made of."""
    if output is not None:
        node.refs = {ref.step: _number_named(node, node, ref.step, names) for ref in refs_of(output)}


def _order(node: Node, name: str, flag: int, names: Names, needs: dict[int, int]) -> None:
    """Let a node wait for what a name means; a row that was not executed is not waited for."""
    try:
        number = lookup(node.scope, name, names, node).number
    except UnknownStepError:
        if not names.is_run:
            raise
        return
    needs[number] = needs.get(number, 0) | flag


def _number_named(node: Node, scope: Node | None, name: str, names: Names) -> int:
    """The number of the node that gives a value under this name; -1 for a row that was not executed."""
    try:
        return _step_named(scope, name, names, node).number
    except UnknownStepError:
        if not names.is_run:
            raise
        return -1


def _step_named(scope: Node | None, name: str, names: Names, reader: Node | None) -> Node:
    """The node that gives a value under this name: a group without an output has none."""
    # The plain case of `lookup`, a sibling.
    node = names.find(scope, name) if scope is not None and "/" not in name else None
    if node is None:
        node = lookup(scope, name, names, reader)
    if not node.is_step and not has_value(node.spec):
        who = f"step {reader.address!r}" if reader is not None else "the output"
        raise UnknownStepError(f"{who} needs one step, but {name!r} is a group")
    return node


def lookup(scope: Node | None, name: str, names: Names, reader: Node | None = None) -> Node:
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
        node = names.find(scope, first)
        scope = scope.scope
    for segment in rest:
        if node is not None:
            node = names.find(names.scope_of(node) if node.is_step else node, segment)
    if node is None:
        where = f" that step {reader.address!r} names" if reader is not None else ""
        raise UnknownStepError(f"no step {name!r}{where} is visible there; check the id")
    return names.scope_of(node) if want_scope and node.is_step else node
