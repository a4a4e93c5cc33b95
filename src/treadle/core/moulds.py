"""Moulds: what a body holds, taken from one opening of it and cast again for those that follow.

Opening a body places its blocks and looks up every name that they use. Most names mean the same each time, counted from
where the body lies; so from the second opening on the numbers are moved, and nothing is looked up.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from heapq import heappush
from typing import NamedTuple

from treadle.core.blocks import Spec, is_undoable
from treadle.core.events import NULL
from treadle.core.graph import NO_REFS, Node
from treadle.core.plan import Body, Gather, Ref, Step
from treadle.core.progress import GatherProgress
from treadle.core.state import RunState, ScopeState, StepState, new_scope


class Names(NamedTuple):
    """What Refs mean: inside of the body by numbers from its first block on, outside of it by the run's."""

    inner: tuple[tuple[str, int], ...]
    outer: Mapping[str, int]

    def at(self, base: int) -> Mapping[str, int]:
        """The numbers for a body whose first block has the number `base`."""
        if not self.inner:
            return self.outer
        return {**self.outer, **{name: base + place for name, place in self.inner}}


class Part(NamedTuple):
    """A node of the body. Other nodes of it are named by their places in the mould, the body's own scope by -1."""

    spec: Spec
    signals: tuple[str, ...]
    scope: int
    segment: str
    # Its address, below that of the body.
    path: str
    needs: tuple[tuple[int, int], ...]
    # The place of its names among those of the mould.
    names: int


class Mould(NamedTuple):
    """The content of a body."""

    parts: Sequence[Part]
    names: Sequence[Names]
    # The place of the names that the body's own value is made of.
    own: int
    # Whether it uses no name of what lies outside, where a name may mean something else the next time.
    closed: bool
    # For an iteration's body: the place of the step whose result is its value; -1 where it has to be looked up.
    giver: int


def mould_of(run: RunState, scope: ScopeState, nodes: Sequence[Node]) -> Mould | None:
    """Take the mould of a body that was opened just now; None if it holds more than its blocks."""
    if not nodes or len(run.states) - nodes[0].number != len(nodes):
        return None
    base = nodes[0].number
    found: dict[int, int] = {}
    names: list[Names] = []
    for node in (scope.node, *nodes):
        if id(node.refs) not in found:
            found[id(node.refs)] = len(names)
            inner = tuple((name, number - base) for name, number in node.refs.items() if number >= base)
            names.append(Names(inner, {name: number for name, number in node.refs.items() if number < base}))
    parts: list[Part] = []
    for node in nodes:
        assert node.scope is not None
        assert node.spec is not None
        around = -1 if node.scope is scope.node else node.scope.number - base
        segment = next(segment for segment, held in run.children[node.scope.number].items() if held is node)
        needs = tuple((number - base, flags) for number, flags in node.needs)
        path = node.address.removeprefix(scope.node.address)
        parts.append(Part(node.spec, node.signals, around, segment, path, needs, found[id(node.refs)]))
    closed = not any(each.outer for each in names) and all(place >= 0 for part in parts for place, _ in part.needs)
    return Mould(parts, names, found[id(scope.node.refs)], closed, _giver(scope, base))


def _giver(scope: ScopeState, base: int) -> int:
    """The place of the step whose result, as it is, an iteration gives."""
    spec = scope.node.spec
    output = spec.output if isinstance(spec, Body) else None
    if isinstance(output, Ref) and not output.path and output.default < 0:
        return max(scope.node.refs[output.step] - base, -1)
    return -1


def is_plain(mould: Mould) -> bool:
    """Whether it is of one step that waits for nothing, and names nothing in the body."""
    if len(mould.parts) != 1:
        return False
    part = mould.parts[0]
    return isinstance(part.spec, Step) and not part.needs and not mould.names[part.names].inner


def cast_steps(run: RunState, block: ScopeState, mould: Mould, base: str, indexes: range) -> None:
    """Open iterations of a gather whose body is plain: as `cast` would, for many at once."""
    gather, progress = block.node.spec, block.block
    assert isinstance(gather, Gather)
    assert isinstance(progress, GatherProgress)
    spec, signals, _, _, path, _, named = mould.parts[0]
    assert isinstance(spec, Step)
    body, undoable, row = gather.body, is_undoable(spec) and block.compensates is None, block.compensates
    # Nothing in it is named by the step, which waits for nothing; what the value is made of is linked by `scope_value`.
    refs = mould.names[named].outer
    states, addresses, frontier, now = run.states, run.index, run.frontier, run.now
    within, opened = block.node, progress.open
    constants, inside, number = within.constants, run.children.setdefault(within.number, {}), len(states)
    optional, later = body.optional, spec.optional
    for index in indexes:
        place = f"[{index}]"
        at = base + place
        inner = at + path
        first = number + 1
        above = Node(number, at, within, body, False, optional, (), (), NO_REFS, (), constants)
        node = Node(first, inner, above, spec, True, later, (), (), refs, signals, constants, None, spec, undoable)
        scope = opened[index] = ScopeState(above, block, number, index, 1, row)
        states += (scope, StepState(node, scope, now, 0))
        addresses[at] = number
        addresses[inner] = first
        inside[place] = above
        # Its number is the highest of all, so that the heap stays one.
        frontier.append(first)
        number += 2
    progress.results += [NULL] * len(indexes)
    block.unsettled += len(indexes)


def cast(run: RunState, scope: ScopeState, mould: Mould) -> None:
    """Give an empty body its content; what waits for nothing goes to the frontier."""
    states, index, frontier, now = run.states, run.index, run.frontier, run.now
    base = len(states)
    names = [each.at(base) for each in mould.names]
    within = scope.node
    prefix, constants = within.address, within.constants
    within.refs = names[mould.own]
    inside = run.children.setdefault(within.number, {})
    for number, (spec, signals, place, segment, path, needs, named) in enumerate(mould.parts, base):
        around = scope if place < 0 else states[base + place]
        assert isinstance(around, ScopeState)
        address = prefix + path
        waiting = len(needs) + around.gated
        refs = names[named]
        state: StepState | ScopeState
        if isinstance(spec, Step):
            node = Node(
                number, address, around.node, spec, True, spec.optional, (), (), refs, signals, constants, None, spec
            )
            node.undoable = is_undoable(spec) and scope.compensates is None
            state = StepState(node, around, now, waiting)
        else:
            node = Node(
                number, address, around.node, spec, False, spec.optional, (), (), names[named], signals, constants
            )
            state = new_scope(node, around)
            state.compensates = scope.compensates
            state.waiting = waiting
            state.gated = waiting > 0
            if around.stopping:
                state.stopping = "cancelled"
        states.append(state)
        index[address] = number
        if place < 0:
            inside[segment] = node
        else:
            run.enter(around.node, segment, node)
        around.unsettled += 1
        if needs:
            node.needs = tuple([(base + upstream, flags) for upstream, flags in needs])
            for upstream, flags in node.needs:
                above = states[upstream]
                if above.more is None:
                    above.more = []
                above.more.append((number, flags))
        if not waiting:
            heappush(frontier, number)
