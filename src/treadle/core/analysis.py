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
from treadle.core.graph import refs_of
from treadle.core.network import Network, circles
from treadle.core.plan import Block, Group, Plan, Step
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
    """A group, or the root, while names are looked up."""

    __slots__ = ("address", "children", "parent")

    def __init__(self, address: str, parent: _Scope | None) -> None:
        self.address = address
        self.parent = parent
        self.children: dict[str, tuple[Block, _Scope | None]] = {}


class _Survey:
    """A plan with its names resolved; mistakes are collected, not raised."""

    def __init__(self, plan: Plan, where: Where, *, ids: bool = True) -> None:
        self.where = where
        self.check_ids = ids
        self.errors: list[DefinitionError] = []
        self.steps: list[str] = []
        # Blocks in plan order: address, block, the scope they lie in.
        self.blocks: list[tuple[str, Block, _Scope]] = []
        self.edges: list[Edge] = []
        root = _Scope("", None)
        self._enter(plan.blocks, root)
        for address, block, scope in self.blocks:
            for kind, name in names_of(block):
                self._link(address, block, kind, name, scope)
        for ref in refs_of(plan.output):
            self._resolve("the output", "ref", ref.step, root)

    def _enter(self, blocks: list[Step | Group], scope: _Scope) -> None:
        for block in blocks:
            segment = encode_id(block.id)
            address = child(scope.address, segment)
            if self.check_ids:
                self._check_id(block.id, address, scope)
            if segment in scope.children:
                continue
            inner = _Scope(address, scope) if isinstance(block, Group) else None
            scope.children[segment] = (block, inner)
            self.blocks.append((address, block, scope))
            if isinstance(block, Group):
                assert inner is not None
                if not block.blocks:
                    self.errors.append(DefinitionError(f"{self.where(address)} holds no steps; leave it out"))
                self._enter(block.blocks, inner)
            else:
                self.steps.append(address)

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
        self.edges.append(Edge(source=found[0], target=address, kind=kind, name=name))
        if kind == "placement" and _follows(block) and isinstance(found[1], Step) and found[1].placement is None:
            self.errors.append(
                DefinitionError(
                    f"{self.where(address)} follows {name!r}, which is not placed; place it, or use beside="
                )
            )

    def _resolve(self, who: str, kind: EdgeKind, name: str, scope: _Scope) -> tuple[str, Block] | None:
        """The address and block that a name means in a scope; None, with an error noted, if it means nothing."""
        first, *rest = name.removesuffix("/").split("/")
        start: _Scope | None = scope
        while start is not None and first not in start.children:
            start = start.parent
        if start is None:
            self.errors.append(UnknownStepError(f"{who} names {name!r}, which is not in its scope{_hint(name)}"))
            return None
        address, (block, inner) = child(start.address, first), start.children[first]
        for segment in rest:
            if inner is None or segment not in inner.children:
                self.errors.append(UnknownStepError(f"{who} names {name!r}, but {_lack(block, segment)}"))
                return None
            address = child(address, segment)
            block, inner = inner.children[segment]
        if isinstance(block, Group) and kind in ("ref", "default", "when", "placement"):
            self.errors.append(UnknownStepError(f"{who} needs one step, but {name!r} is a group"))
            return None
        return address, block


def _follows(block: Block) -> bool:
    return isinstance(block, Step) and block.placement is not None and block.placement.mode == "follow"


def _hint(name: str) -> str:
    return "; in names the characters / # [ ] ~ % of an id are percent-encoded" if set(name) & set("/#[]~%") else ""


def _lack(block: Block, segment: str) -> str:
    if isinstance(block, Group):
        return f"group {block.id!r} has no {segment!r}"
    return (
        f"{block.id!r} is a step; what it adds is unknown before it runs (`{encode_id(block.id)}/` waits for all of it)"
    )


def names_of(block: Block) -> Iterator[tuple[EdgeKind, str]]:
    """All names of other blocks that a block uses, each with the reason."""
    if isinstance(block, Step):
        for slot in block.slots.values():
            for ref in refs_of(slot):
                yield ("ref" if ref.default < 0 else "default"), ref.step
        if block.when is not None:
            for ref in refs_of(block.when):
                yield "when", ref.step
        if block.placement is not None and block.placement.step:
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
    if not survey.steps:
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
            if isinstance(block, Group):
                self.end[address] = self._vertex(address)
        self.next: list[list[int]] = [[] for _ in self.names]
        self.before: list[list[int]] = [[] for _ in self.names]
        self.steps = {self.start[address] for address in survey.steps}
        for address, _, scope in survey.blocks:
            if scope.address:
                self._wait(self.start[address], self.start[scope.address])
                self._wait(self.end[scope.address], self.end[address])
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
    return Network(names=order.names, before=order.before, steps=[order.start[address] for address in survey.steps])
