"""Steps added by steps: what of the fragments is new, what is there already, and what contradicts it.

A draft is the run with the fragments on top. It makes, links and checks the nodes by the very code that `apply` uses,
so that nothing is recorded that could not be applied.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, ClassVar, cast

import msgspec

from treadle.core import events as ev
from treadle.core.addresses import check_id, encode_id
from treadle.core.blocks import Spec, bodies_of, content_of, names_of, slots_of
from treadle.core.checks import mistakes_of, placement_mistake
from treadle.core.events import Failure
from treadle.core.graph import Node, constants_of, link, node_of, place
from treadle.core.placement import runs_here
from treadle.core.plan import Block, Body, Branch, Fragment, Group, Phase, Step
from treadle.core.run_data import needs_of_block
from treadle.core.state import RunState, ScopeState, StepState, settled
from treadle.core.tables import WAITING
from treadle.core.values import key_id_of
from treadle.errors import CycleError, DefinitionError, DuplicateStepError, SlotError, UnknownStepError

# A node, and whether its start (False) or its end (True) is meant.
_Vertex = tuple[int, bool]


class Addition(msgspec.Struct):
    """The events that add fragments, and the numbers of settled steps that they bring back."""

    events: list[ev.StepsAdded]
    revived: list[int]


def added_events(
    run: RunState, adder: StepState, fragments: Sequence[Fragment], cause: str, worker: str
) -> Addition | Failure:
    """The events that add fragments on behalf of a step on a worker, or why they cannot be added (then none applies).

    A block whose id is there with the same definition is that block; with another definition it is an error.
    """
    if adder.around.block is not None:
        text = f"{adder.node.address!r} answers a question of its block; only a step of a plan adds steps"
        return Failure(code="no_additions", message=text)
    draft = _Draft(run)
    found: list[ev.StepsAdded] = []
    try:
        for fragment in fragments:
            event = draft.add(adder, fragment, fragments, cause)
            if event is not None and any(runs_here(block) for block in event.blocks):
                event = _on_worker(event, worker)
            if event is not None:
                found.append(event)
    except DefinitionError as error:
        return Failure(code=error.code, message=str(error), type=type(error).__name__)
    return Addition(found, draft.revived)


class _Draft:
    """A `graph.Space` that shows what the run would hold, without changing it."""

    is_run: ClassVar[bool] = False

    def __init__(self, run: RunState) -> None:
        self.run = run
        self.base = len(run.states)
        self.nodes: list[Node] = []
        self.children: dict[int, dict[str, Node]] = {}
        self.own: dict[int, Node] = {}
        self.dedup: dict[str, Node] = {}
        # Nodes of the run with a new definition, and those of them that are settled.
        self.again_nodes: dict[int, Node] = {}
        self.revived: list[int] = []

    # -- graph.Space -------------------------------------------------------------------------------------

    def new(self, address: str, scope: Node, spec: Spec | None) -> Node:
        """Make a node with the number that it would have."""
        node = node_of(self.base + len(self.nodes), address, scope, spec)
        self.nodes.append(node)
        return node

    def again(self, node: Node, spec: Spec) -> Node:
        """Define a node anew that a rewind took back."""
        assert not isinstance(spec, (Body, Branch, Phase))
        if not self._is_gone(node) or type(node.spec) is not type(spec):
            raise _duplicate(spec.id, node)
        assert node.scope is not None
        copy = node_of(node.number, node.address, node.scope, spec)
        self.again_nodes[node.number] = copy
        self.enter(node.scope, encode_id(spec.id), copy)
        state = self.run.states[node.number]
        if isinstance(state, StepState) and settled(state):
            self.revived.append(node.number)
        return copy

    def find(self, scope: Node, segment: str) -> Node | None:
        """The child of a scope, or None."""
        node = self.children.get(scope.number, {}).get(segment)
        return node if node is not None or scope.number >= self.base else self.run.find(scope, segment)

    def enter(self, scope: Node, segment: str, node: Node) -> None:
        """Make `node` the child of a scope."""
        self.children.setdefault(scope.number, {})[segment] = node

    def scope_of(self, step: Node) -> Node:
        """The scope of all that a step adds."""
        if (state := self.run.own.get(step.number)) is not None:
            return state.node
        if (own := self.own.get(step.number)) is None:
            assert step.scope is not None
            own = self.own[step.number] = self.new(step.address + "/", step.scope, None)
            own.owner = step
        return own

    # -- fragments ---------------------------------------------------------------------------------------

    def add(
        self, adder: StepState, fragment: Fragment, fragments: Sequence[Fragment], cause: str
    ) -> ev.StepsAdded | None:
        """Draft a fragment; its event, None if all of it is there.

        Raises:
            DefinitionError: it contradicts what is there, or itself.
        """
        scope = self._scope(adder, fragment.into)
        aliases: dict[str, str] = {}
        blocks: list[Block] = []
        nodes: list[Node] = []
        gathers, in_phases = _place_of(scope)
        for block in fragment.blocks:
            _check(block, fragment.constants, self.run.data_names)
            for mistake in _mistakes(block, gathers, in_phases):
                raise mistake
            segment = encode_id(block.id)
            held = self._held(block)
            if held is not None:
                # Its name means the step that is there, if anything of what is added uses it.
                if self.find(scope, segment) is None and segment in _first_names(fragments):
                    self.enter(scope, segment, held)
                    aliases[segment] = held.address
            elif not self._is_there(scope, segment, block, fragment.constants):
                blocks.append(block)
                placed = place([block], scope, fragment.constants, self)
                self._enter_keys(placed)
                nodes += placed
        if not blocks and not aliases:
            return None
        for node in nodes:
            node.needs = link(node, self, {})
            self._check_placement(node)
        if any(node.needs for node in nodes):
            self._refuse_cycle(nodes)
        # A step stands for the scope of what it adds, which may be new.
        into = scope.owner.address if scope.owner is not None else scope.address
        return ev.StepsAdded(
            by=adder.node.address, into=into, blocks=blocks, constants=fragment.constants, aliases=aliases, cause=cause
        )

    def _check_placement(self, node: Node) -> None:
        """Raise if a step is placed by what has no worker, or follows what has no target."""
        placed = node.spec.placement if isinstance(node.spec, Step) else None
        if placed is not None and placed.step and (number := node.refs.get(placed.step, -1)) >= 0:
            other = self._node(number)
            if mistake := placement_mistake(f"step {node.address!r}", placed, other.spec):
                raise mistake

    def _scope(self, adder: StepState, into: str | None) -> Node:
        """The scope that gets a fragment: the adder's own, or one that contains the adder."""
        if into is None or into in (adder.node.address, adder.node.address + "/"):
            return self.scope_of(adder.node)
        around = adder.around
        while True:
            scope = around.node
            named = into == scope.address or (scope.owner is not None and into == scope.owner.address)
            if named and around.block is None and (scope.scope is None or around is not around.around):
                return scope
            if around is around.around:
                break
            around = around.around
        raise UnknownStepError(
            f"steps can be added to a group, row, iteration or branch that waits for the adding step "
            f"{adder.node.address!r}; {into!r} is none"
        )

    def _held(self, block: Block) -> Node | None:
        """The step that has the block's dedup key."""
        if not isinstance(block, Step) or block.dedup is None:
            return None
        number = self.run.dedup.get(block.dedup)
        if number is not None and not self._is_gone(node := self.run.states[number].node):
            return self.again_nodes.get(number, node)
        return self.dedup.get(block.dedup)

    def _enter_keys(self, nodes: list[Node]) -> None:
        """Enter the dedup keys of new nodes; below a group a key cannot mean another step."""
        for node in nodes:
            if isinstance(node.spec, Step) and node.spec.dedup is not None:
                held = self._held(node.spec)
                if held is not None and held is not node:
                    raise DuplicateStepError(
                        f"{node.address!r} has the dedup key of {held.address!r}, but lies in a group; add it by itself"
                    )
                self.dedup[node.spec.dedup] = node

    def _is_gone(self, node: Node) -> bool:
        """Whether a rewind took the node back, and nothing of this draft brings it back."""
        if node.number >= self.base or node.number in self.again_nodes:
            return False
        state = self.run.states[node.number]
        return state.removed or state.dropped

    def _is_there(self, scope: Node, segment: str, block: Block, constants: list[str]) -> bool:
        """Whether the scope holds this very block."""
        node = self.find(scope, segment)
        if node is None or self._is_gone(node):
            return False
        assert node.spec is not None
        assert not isinstance(node.spec, (Body, Branch, Phase))
        there = node.constants if node.constants is not None else self.run.constants
        if fingerprint(node.spec, there) != fingerprint(block, constants) and not alike(
            _bare(msgspec.to_builtins(node.spec), there), _bare(msgspec.to_builtins(block), constants)
        ):
            raise _duplicate(block.id, node)
        return True

    # -- circles -----------------------------------------------------------------------------------------

    def _refuse_cycle(self, nodes: list[Node]) -> None:
        """Raise if an added step waits for itself; the run as it is holds no circle."""
        done: set[_Vertex] = set()
        for node in nodes:
            path: dict[_Vertex, Iterator[_Vertex]] = {}
            vertex: _Vertex = (node.number, False)
            if vertex not in done:
                path[vertex] = self._waits_for(vertex)
            while path:
                vertex, following = next(reversed(path.items()))
                after = next(following, None)
                if after is None:
                    done.add(vertex)
                    del path[vertex]
                elif after in path:
                    raise CycleError(self._circle([*path][[*path].index(after) :]))
                elif after not in done:
                    path[after] = self._waits_for(after)

    def _circle(self, path: list[_Vertex]) -> list[str]:
        """The addresses on a path, each once, and the first one again."""
        names = dict.fromkeys(self._node(number).address.rstrip("/") for number, _ in path)
        return [*names, next(iter(names))]

    def _node(self, number: int) -> Node:
        if number >= self.base:
            return self.nodes[number - self.base]
        return self.again_nodes.get(number) or self.run.states[number].node

    def _waits_for(self, vertex: _Vertex) -> Iterator[_Vertex]:
        """What has to happen before a node starts, or (True) ends."""
        number, ends = vertex
        node = self._node(number)
        state = self.run.states[number] if node is not self.again_nodes.get(number) and number < self.base else None
        if ends:
            if state is not None and settled(state):
                return
            if node.owner is not None:
                yield node.owner.number, True
            if not node.is_step:
                yield from ((inner, True) for inner in self._content(number))
            if state is None or state.status == WAITING or (isinstance(state, ScopeState) and state.gated):
                yield number, False
            return
        if state is not None and state.removed:
            yield self.run.adder[number], True
            return
        yield from ((upstream, True) for upstream, _ in node.needs)
        if node.scope is not None and self._is_closed(node.scope):
            yield node.scope.number, False

    def _is_closed(self, scope: Node) -> bool:
        if scope.number >= self.base or scope.number in self.again_nodes:
            return scope.owner is None
        state = self.run.states[scope.number]
        return isinstance(state, ScopeState) and state.gated

    def _content(self, number: int) -> dict[int, None]:
        """The numbers of what lies in a scope."""
        found = {node.number: None for node in self.children.get(number, {}).values() if self._lies_in(node, number)}
        if number < self.base:
            found.update((inner.node.number, None) for inner in self.run.content(self.run.states[number]))
        return found

    def _lies_in(self, node: Node, number: int) -> bool:
        return node.scope is not None and node.scope.number == number


def _on_worker(event: ev.StepsAdded, worker: str) -> ev.StepsAdded:
    """The event with the worker that the added blocks are to run on."""
    if not worker:
        raise DefinitionError(f"{event.by!r} adds steps with here=True, and its worker is not known; use on=")
    return msgspec.structs.replace(event, worker=worker)


def _first_names(fragments: Sequence[Fragment]) -> set[str]:
    return {name.split("/")[0] for fragment in fragments for block in fragment.blocks for name, _ in names_of(block)}


def _duplicate(id_: str, node: Node) -> DuplicateStepError:
    where = node.address.rpartition("/")[0] or "the root scope"
    return DuplicateStepError(f"step id {id_!r} is already in {where} with another definition; choose another id")


def _check(block: Block, constants: list[str], data: frozenset[str]) -> None:
    """Raise for ids that are none, and for constants and data that are not there."""
    check_id(block.id)
    slots = [*slots_of(block)]
    for blocks, output in content_of(block):
        slots.append(output)
        for inner in blocks:
            _check(inner, constants, data)
    for slot in slots:
        for index in constants_of(slot):
            if not 0 <= index < len(constants):
                raise SlotError(f"block {block.id!r} uses constant {index}, but its fragment has {len(constants)}")
    for need in needs_of_block(block.id, block):
        if need.name not in data:
            raise SlotError(need.complaint())


def _place_of(scope: Node | None) -> tuple[int, bool]:
    """How many gathers are around what is added to a scope, and whether a Phases block is."""
    gathers, in_phases = 0, False
    while scope is not None:
        gathers += isinstance(scope.spec, Body)
        in_phases = in_phases or isinstance(scope.spec, Phase)
        scope = scope.scope
    return gathers, in_phases


def _mistakes(block: Block, gathers: int, in_phases: bool) -> Iterator[DefinitionError]:
    """What is wrong with an added block, or with what lies in it."""
    yield from mistakes_of(block, f"added block {block.id!r}", gathers, in_phases)
    if isinstance(block, Group):
        for inner in block.blocks:
            yield from _mistakes(inner, gathers, in_phases)
    for _, body in bodies_of(block):
        for inner in body.blocks:
            yield from _mistakes(inner, gathers + isinstance(body, Body), in_phases or isinstance(body, Phase))


def fingerprint(block: Block, constants: list[str]) -> bytes:
    """Bytes that are equal for equal definitions, whatever numbers their constants have."""
    return msgspec.json.encode(_bare(msgspec.to_builtins(block), constants), order="deterministic")


def _bare(value: object, constants: list[str]) -> Any:
    """A definition as plain data, with its constants in place of their numbers."""
    if isinstance(value, list):
        return [_bare(item, constants) for item in cast("list[object]", value)]
    if not isinstance(value, dict):
        return value
    fields = cast("dict[str, Any]", value)
    kind = fields.get("slot")
    found = {key: _bare(item, constants) for key, item in fields.items()}
    if kind == "const":
        return ["const", constants[fields["index"]]]
    if kind in ("ref", "state", "lane") and fields.get("default", -1) >= 0:
        found["default"] = ["const", constants[fields["default"]]]
    return found


def alike(one: object, other: object) -> bool:
    """Whether two bare definitions differ only in constants that were encoded with different keys.

    With one key, equal constants of added steps are encoded equally. After a rotation nobody here can compare them,
    and an attempt that is made again must find what its predecessor added: the definition that is there stands.
    """
    if isinstance(one, list) and isinstance(other, list):
        here, there = cast("list[object]", one), cast("list[object]", other)
        if len(here) == 2 and len(there) == 2 and here[0] == there[0] == "const":
            keys = key_id_of(str(here[1])), key_id_of(str(there[1]))
            return here == there or ("" not in keys and keys[0] != keys[1])
        return len(here) == len(there) and all(map(alike, here, there))
    if isinstance(one, dict) and isinstance(other, dict):
        fields, others = cast("dict[str, object]", one), cast("dict[str, object]", other)
        return fields.keys() == others.keys() and all(alike(item, others[name]) for name, item in fields.items())
    return one == other
