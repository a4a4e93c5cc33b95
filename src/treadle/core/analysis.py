"""Checks of a whole plan before a run exists: ids, names of other steps, circles; and its order and levels.

`check_plan` finds all mistakes in one pass; `core.graph` refuses a plan at its first. Both read names by the same
rule: the first segment is a sibling or a block of an enclosing scope, `a/b` goes down from there, and a trailing slash
means all that step `a` adds.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from typing import Literal

import msgspec

from treadle.core.addresses import check_id, child, encode_id
from treadle.core.blocks import AnyBody, Spec, bodies_of, has_value, refs_of, slots_of
from treadle.core.checks import mistakes_of, placement_mistake
from treadle.core.network import Network, circles
from treadle.core.plan import Block, Body, Branch, Choose, Gather, Group, Phase, Phases, Plan, Step
from treadle.errors import CycleError, DefinitionError, DefinitionErrors, DuplicateStepError, UnknownStepError

# How errors call the block at an address.
Where = Callable[[str], str]
EdgeKind = Literal["ref", "default", "after", "after_any", "when", "placement"]


class Edge(msgspec.Struct, frozen=True):
    """`target` waits for `source`; both are addresses. `name` is what the plan says (`a/`: all that `a` adds)."""

    source: str
    target: str
    kind: EdgeKind
    name: str


class _Scope:
    """A group, a body, or the root, while names are looked up."""

    __slots__ = ("address", "children", "gathers", "in_phases", "parent", "spec")

    def __init__(self, address: str, parent: _Scope | None, spec: Spec | None = None) -> None:
        self.address = address
        self.parent = parent
        self.spec = spec
        self.children: dict[str, tuple[Spec, _Scope | None]] = {}
        # How many gathers are around what lies in it, and whether a Phases block is.
        self.gathers: int = (parent.gathers if parent is not None else 0) + isinstance(spec, Body)
        self.in_phases: bool = isinstance(spec, Phase) or (parent is not None and parent.in_phases)


class _Survey:
    """A plan with its names resolved; mistakes are collected, not raised."""

    def __init__(self, plan: Plan, where: Where, *, ids: bool = True) -> None:
        self.where = where
        self.check_ids = ids
        self.errors: list[DefinitionError] = []
        self.steps: list[str] = []
        # Blocks in plan order: address, block, the scope they lie in.
        self.blocks: list[tuple[str, Spec, _Scope]] = []
        self.edges: list[Edge] = []
        root = _Scope("", None)
        self._enter(plan.blocks, root)
        for address, block, scope in self.blocks:
            if isinstance(block, Body | Branch | Phase):
                continue
            self.errors += mistakes_of(block, where(address), scope.gathers, scope.in_phases)
            for kind, name in names_of(block):
                self._link(address, block, kind, name, scope)
        for ref in refs_of(plan.output):
            self._resolve("the output", "ref", ref.step, root)

    def _enter(self, blocks: list[Block], scope: _Scope) -> None:
        for block in blocks:
            segment = encode_id(block.id)
            address = child(scope.address, segment)
            # Lanes are checked with their phase.
            if self.check_ids and not isinstance(scope.spec, Phase):
                self._check_id(block.id, address, scope)
            if segment in scope.children:
                continue
            inner = None if isinstance(block, Step) else _Scope(address, scope, block)
            scope.children[segment] = (block, inner)
            self.blocks.append((address, block, scope))
            if inner is None:
                self.steps.append(address)
                continue
            if isinstance(block, Group):
                if not block.blocks:
                    self.errors.append(DefinitionError(f"{self.where(address)} holds no steps; leave it out"))
                self._enter(block.blocks, inner)
                self._output(block, inner)
            for name, body in bodies_of(block):
                self._enter_body(name, body, inner)
            if isinstance(block, Phases):
                self._output(block, inner)

    def _enter_body(self, segment: str, body: AnyBody, around: _Scope) -> None:
        """A row, a branch, or the body of a gather, whose address stands for those of all its iterations."""
        address = child(around.address, segment) if segment else f"{around.address}[]"
        inner = _Scope(address, around, body)
        around.children.setdefault(segment, (body, inner))
        self.blocks.append((address, body, around))
        self._enter(body.blocks, inner)
        self._output(body, inner)

    def _output(self, block: Group | Phases | AnyBody, scope: _Scope) -> None:
        for ref in refs_of(block.output):
            self._resolve(f"the output of {self.where(scope.address)}", "ref", ref.step, scope)

    def _check_id(self, id_: str, address: str, scope: _Scope) -> None:
        try:
            check_id(id_)
        except DefinitionError as error:
            self.errors.append(error)
        if encode_id(id_) in scope.children:
            place = f"group {scope.address!r}" if scope.address else "the root scope"
            self.errors.append(DuplicateStepError(f"{self.where(address)}: its id is used twice in {place}"))

    def _link(self, address: str, block: Block, kind: EdgeKind, name: str, scope: _Scope) -> None:
        found = self._resolve(self.where(address), kind, name, scope)
        if found is None:
            return
        target, spec, row = found
        if row is not None and not self._is_earlier(row, scope, kind, name, address):
            return
        self.edges.append(Edge(source=target, target=address, kind=kind, name=name))
        if kind == "placement" and isinstance(block, Step) and block.placement is not None:
            mistake = placement_mistake(self.where(address), block.placement, spec)
            if mistake is not None:
                self.errors.append(mistake)

    def _is_earlier(self, row: tuple[_Scope, Phase], scope: _Scope, kind: EdgeKind, name: str, address: str) -> bool:
        """Whether a row that a cell names comes before the cell's own; another one needs a default."""
        around, phase = row
        own: _Scope | None = scope
        while own is not None and own.parent is not around:
            own = own.parent
        assert own is not None
        order = [body for _, body in bodies_of(around.spec)]
        if own.spec in order and order.index(phase) < order.index(own.spec):
            return True
        if kind != "default":
            self.errors.append(
                UnknownStepError(
                    f"{self.where(address)} names {name!r}, whose row may not have been executed by then; "
                    "take it with a default"
                )
            )
        return False

    def _resolve(
        self, who: str, kind: EdgeKind, name: str, scope: _Scope
    ) -> tuple[str, Spec, tuple[_Scope, Phase] | None] | None:
        """The address and block that a name means in a scope, and the row it is reached through from another one.

        None, with an error noted, if it means nothing.
        """
        first, *rest = name.removesuffix("/").split("/")
        start: _Scope | None = scope
        while start is not None and first not in start.children:
            start = start.parent
        if start is None:
            self.errors.append(UnknownStepError(f"{who} names {name!r}, which is not in its scope{_hint(name)}"))
            return None
        address, (block, inner) = child(start.address, first), start.children[first]
        row = (start, block) if isinstance(block, Phase) else None
        for segment in rest:
            if inner is None or segment not in inner.children or isinstance(block, Gather | Choose | Phases):
                self.errors.append(UnknownStepError(f"{who} names {name!r}, but {_lack(block, segment)}"))
                return None
            address = child(address, segment)
            block, inner = inner.children[segment]
        if kind in ("ref", "default", "when", "placement") and not has_value(block):
            self.errors.append(UnknownStepError(f"{who} needs one step, but {name!r} is a group"))
            return None
        return address, block, row


def _hint(name: str) -> str:
    return "; in names the characters / # [ ] ~ % of an id are percent-encoded" if set(name) & set("/#[]~%") else ""


def _lack(block: Spec, segment: str) -> str:
    if isinstance(block, Group):
        return f"group {block.id!r} has no {segment!r}"
    if isinstance(block, Gather | Choose | Phases):
        return f"nothing outside refers into {block.id!r}; it gives one value of its own"
    if not isinstance(block, Step):
        return f"there is no {segment!r}"
    return (
        f"{block.id!r} is a step; what it adds is unknown before it runs (`{encode_id(block.id)}/` waits for all of it)"
    )


def names_of(block: Block) -> Iterator[tuple[EdgeKind, str]]:
    """All names of other blocks that a block uses, each with the reason."""
    for slot in slots_of(block):
        for ref in refs_of(slot):
            if isinstance(block, Step) and slot is block.when:
                yield "when", ref.step
            else:
                yield ("ref" if ref.default < 0 else "default"), ref.step
    if isinstance(block, Step) and block.placement is not None and block.placement.step:
        yield "placement", block.placement.step
    for name in block.after:
        yield "after", name
    for name in block.after_any:
        yield "after_any", name


def _plainly(address: str) -> str:
    return f"step {address!r}"


def check_plan(plan: Plan, where: Where = _plainly, *, ids: bool = True) -> list[DefinitionError]:
    """All mistakes of a plan, in plan order, circles last; empty if it can run.

    `where` gives the words for the block at an address, such as its place in a source file. With `ids=False` the ids
    themselves are taken as checked.
    """
    survey = _Survey(plan, where, ids=ids)
    errors = survey.errors
    if not survey.steps and not any(isinstance(block, Gather | Choose | Phases) for _, block, _ in survey.blocks):
        errors.append(DefinitionError(f"workflow {plan.workflow!r} has no steps; plan at least one"))
    for cycle in _cycles(_Order(survey)):
        error = CycleError(cycle)
        # The class words the circle; the places are known here only.
        error.args = (f"{error} ({', '.join(where(address) for address in dict.fromkeys(cycle))})",)
        errors.append(error)
    return errors


def edges(plan: Plan) -> list[Edge]:
    """Who waits for whom, and why, in plan order. Names that mean nothing are left out."""
    return _Survey(plan, _plainly).edges


def topological_order(plan: Plan) -> list[str]:
    """The addresses of all steps, each behind those it waits for, else in plan order.

    Raises:
        CycleError: there is no such order.
    """
    return [address for level in levels(plan) for address in level]


def levels(plan: Plan) -> list[list[str]]:
    """The addresses of all steps by depth: a level's steps wait only for steps of the levels before.

    Raises:
        CycleError: steps wait for each other.
    """
    survey = _Survey(plan, _plainly)
    order = _Order(survey)
    depth = order.depths()
    if None in depth:
        raise CycleError(_cycles(order)[0])
    found: dict[int, list[str]] = {}
    for address in survey.steps:
        at = depth[order.start[address]]
        assert at is not None
        found.setdefault(at, []).append(address)
    return [found[at] for at in sorted(found)]


class _Order:
    """The waits of a plan as numbers. A group is two vertices: open (its needs have come) and settled (all in it)."""

    def __init__(self, survey: _Survey) -> None:
        self.start: dict[str, int] = {}
        self.end: dict[str, int] = {}
        self.names: list[str] = []
        for address, block, _ in survey.blocks:
            self.start[address] = self.end[address] = self._vertex(address)
            if not isinstance(block, Step):
                self.end[address] = self._vertex(address)
        self.next: list[list[int]] = [[] for _ in self.names]
        self.before: list[list[int]] = [[] for _ in self.names]
        self.steps = {self.start[address] for address in survey.steps}
        for address, block, scope in survey.blocks:
            if scope.address:
                self._wait(self.start[address], self.start[scope.address])
                if not _is_detached(block, scope):
                    self._wait(self.end[scope.address], self.end[address])
            if isinstance(scope.spec, Phases) and (before := _row_before(scope, address)):
                self._wait(self.start[address], self.end[before])
        for edge in survey.edges:
            self._wait(self.start[edge.target], self.end[edge.source])

    def _vertex(self, address: str) -> int:
        self.names.append(address)
        return len(self.names) - 1

    def _wait(self, waiter: int, target: int) -> None:
        self.next[target].append(waiter)
        self.before[waiter].append(target)

    def depths(self) -> list[int | None]:
        """How many steps each vertex has before it at least; None for those in or behind a circle."""
        waits = [0] * len(self.names)
        for waiters in self.next:
            for waiter in waiters:
                waits[waiter] += 1
        depth: list[int | None] = [None] * len(self.names)
        least = [0] * len(self.names)
        queue = deque(vertex for vertex, count in enumerate(waits) if count == 0)
        while queue:
            vertex = queue.popleft()
            depth[vertex] = least[vertex]
            below = least[vertex] + (vertex in self.steps)
            for waiter in self.next[vertex]:
                least[waiter] = max(least[waiter], below)
                waits[waiter] -= 1
                if waits[waiter] == 0:
                    queue.append(waiter)
        return depth


def _is_detached(block: Spec, scope: _Scope) -> bool:
    """Whether nothing waits for a cell."""
    return (
        isinstance(scope.spec, Phase)
        and not isinstance(block, Body | Branch | Phase)
        and block.id in scope.spec.detached
    )


def _row_before(scope: _Scope, address: str) -> str:
    """The address of the row before, in the order of the plan; "" for the first."""
    rows = [inner.address for _, inner in scope.children.values() if inner is not None]
    position = rows.index(address)
    return rows[position - 1] if position else ""


def _cycles(order: _Order) -> list[list[str]]:
    """One circle of each knot, as addresses in the order of waiting, the first again at the end."""
    return circles(order.names, order.next)


def network_of(plan: Plan) -> Network:
    """A plan's steps and scopes, and who waits for whom; it may hold circles, and no other mistakes.

    Raises:
        DefinitionError: ids or names are wrong; `DefinitionErrors` if there are several mistakes.
    """
    survey = _Survey(plan, _plainly)
    if len(survey.errors) > 1:
        raise DefinitionErrors(f"{len(survey.errors)} mistakes in the plan of {plan.workflow!r}", survey.errors)
    if survey.errors:
        raise survey.errors[0]
    order = _Order(survey)
    # Compensating phases run only when a run unwinds: they are looked through.
    aside = tuple(
        f"{address}/"
        for address, block, scope in survey.blocks
        if isinstance(scope.spec, Phases) and block in scope.spec.compensations
    )
    steps = [order.start[address] for address in survey.steps if not address.startswith(aside)]
    return Network(names=order.names, before=order.before, steps=steps)
