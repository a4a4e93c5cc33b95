"""Moulds: what a body holds, taken from one opening of it and cast again for those that follow.

Opening a body places its blocks and looks up every name that they use. Most names mean the same each time, counted from
where the body lies; so from the second opening on the numbers are moved, and nothing is looked up.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from heapq import heappush
from typing import NamedTuple

import msgspec

from treadle.core.blocks import Spec
from treadle.core.events import NULL
from treadle.core.graph import NO_REFS, Node
from treadle.core.plan import Body, Gather, Ref, Step
from treadle.core.progress import GatherProgress
from treadle.core.sparse import writable
from treadle.core.state import IterationState, RunState, ScopeState, StepState, new_scope


class Names(NamedTuple):
    """What Refs mean: inside of the body by numbers from its first block on, outside of it by the run's."""

    inner: tuple[tuple[str, int], ...]
    outer: Mapping[str, int]

    def at(self, base: int) -> Mapping[str, int]:
        """The numbers for a body whose first block has the number `base`."""
        if not self.inner:
            return self.outer
        return {**self.outer, **{name: base + place for name, place in self.inner}}


class Part(msgspec.Struct, frozen=True, gc=False):
    """A node of the body. Other nodes of it are named by their places in the mould, the body's own scope by -1."""

    spec: Spec
    # As `spec`, for steps only.
    step: Step
    signals: tuple[str, ...]
    scope: int
    segment: str
    # Its address, below that of the body.
    path: str
    needs: tuple[tuple[int, int], ...]
    # The place of its names among those of the mould.
    names: int
    # It is a step of the body itself that waits for nothing in it.
    plain: bool
    # As of nodes.
    undoable: bool
    simple: bool


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
        plain = around < 0 and not needs and node.is_step
        named = found[id(node.refs)]
        parts.append(
            Part(
                node.spec,
                node.step,
                node.signals,
                around,
                segment,
                path,
                needs,
                named,
                plain,
                node.undoable,
                node.simple,
            )
        )
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
    return part.plain and not mould.names[part.names].inner


def cast_steps(run: RunState, block: ScopeState, mould: Mould, base: str, indexes: range) -> None:
    """Open iterations of a gather whose body is plain: as `cast` would, for many at once."""
    gather, progress = block.node.spec, block.block
    assert isinstance(gather, Gather)
    assert isinstance(progress, GatherProgress)
    part = mould.parts[0]
    spec, signals, path = part.step, part.signals, part.path
    body, row = gather.body, block.compensates
    undoable, simple = part.undoable and row is None, part.simple
    # Nothing in it is named by the step, which waits for nothing; what the value is made of is linked by `scope_value`.
    refs = mould.names[part.names].outer
    states, addresses, frontier, now = run.states, run.index, run.frontier, run.now
    within, scopes, number = block.node, progress.scopes, len(states)
    constants = within.constants
    optional, later = body.optional, spec.optional
    for index in indexes:
        at = f"{base}[{index}]"
        inner = at + path
        first = number + 1
        above = Node(number, at, within, body, False, optional, (), (), NO_REFS, (), constants)
        node = Node(
            first, inner, above, spec, True, later, (), (), refs, signals, constants, None, spec, undoable, simple
        )
        scope = IterationState(above, block, number, index, 1, row)
        scopes[index] = number
        states += (scope, StepState(node, scope, now, 0))
        addresses[at] = number
        addresses[inner] = first
        # Its number is the highest of all, so that the heap stays one.
        frontier.append(first)
        number += 2
    progress.results += [NULL] * len(indexes)
    progress.running += len(indexes)
    block.unsettled += len(indexes)


def cast(run: RunState, scope: ScopeState, mould: Mould) -> None:
    """Give an empty body its content; what waits for nothing goes to the frontier."""
    states, frontier, now = run.states, run.frontier, run.now
    index = writable(run, "index", run.index)
    base = len(states)
    names = [each.at(base) for each in mould.names]
    within = scope.node
    prefix, constants = within.address, within.constants
    within.refs = names[mould.own]
    inside = writable(run, "children", run.children).setdefault(within.number, {})
    free, forward = not scope.gated, scope.compensates is None
    for number, part in enumerate(mould.parts, base):
        if not part.plain or not free:
            _cast_part(run, scope, part, base, number, names[part.names])
            continue
        spec = part.step
        address = prefix + part.path
        refs, undoable = names[part.names], part.undoable and forward
        node = Node(
            number,
            address,
            within,
            spec,
            True,
            spec.optional,
            (),
            (),
            refs,
            part.signals,
            constants,
            None,
            spec,
            undoable,
            part.simple,
        )
        states.append(StepState(node, scope, now, 0))
        index[address] = number
        inside[part.segment] = node
        scope.unsettled += 1
        # As in `cast_steps`.
        frontier.append(number)


def _cast_part(run: RunState, scope: ScopeState, part: Part, base: int, number: int, refs: Mapping[str, int]) -> None:
    """Cast one node of a body, of whatever kind; its number is the next one."""
    states, within, spec = run.states, scope.node, part.spec
    around = scope if part.scope < 0 else states[base + part.scope]
    assert isinstance(around, ScopeState)
    address = within.address + part.path
    waiting = len(part.needs) + around.gated
    state: StepState | ScopeState
    node = Node(number, address, around.node, spec, False, spec.optional, (), (), refs, part.signals, within.constants)
    if isinstance(spec, Step):
        node.is_step, node.step, node.simple = True, spec, part.simple
        node.undoable = part.undoable and scope.compensates is None
        state = StepState(node, around, run.now, waiting)
    else:
        state = new_scope(node, around)
        state.compensates = scope.compensates
        state.waiting = waiting
        state.gated = waiting > 0
        if around.stopping:
            state.stopping = "cancelled"
    states.append(state)
    run.index[address] = number
    if part.scope < 0:
        run.children[within.number][part.segment] = node
    else:
        run.enter(around.node, part.segment, node)
    around.unsettled += 1
    if part.needs:
        node.needs = tuple([(base + upstream, flags) for upstream, flags in part.needs])
        for upstream, flags in node.needs:
            above = states[upstream]
            if above.more is None:
                above.more = []
            above.more.append((number, flags))
    if not waiting:
        heappush(run.frontier, number)
