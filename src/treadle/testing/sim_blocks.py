"""Blocks in the simulation's random plans: gathers, chooses and phases, nested, and the functions that they call."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterable, AsyncIterator, Mapping
from typing import Any
from zlib import crc32

import msgspec

from treadle.authoring.bound import or_default
from treadle.authoring.builder import PlanBuilder
from treadle.authoring.cells import Cell, Compensation, Patch, Row
from treadle.authoring.context import context
from treadle.authoring.decorators import predicate, step
from treadle.authoring.openings import Case, case, choose, gather, holds
from treadle.authoring.options import Retry
from treadle.authoring.phases import LanePlan, Phase, Phases, Rule
from treadle.errors import NotCompensable, Retryable
from treadle.testing.sim_conduct import Conduct, fraction, value_of
from treadle.testing.sim_steps import OBSERVER, heavy_truth, registry, truth
from treadle.testing.sim_workload import Planner

VARIABLES = ("v0", "v1", "v2")


# -- what cells and rules do -------------------------------------------------------------------------------------------


def facts_of(told: Cell | Row | Compensation) -> dict[str, Any]:
    """What of a cell's or a rule's place does not depend on when it is looked at."""
    facts = {"phase": told.phase, "index": told.index, "step": told.step, "entry": told.entry}
    values = told.previous if isinstance(told, Cell) else told.lanes
    return {**facts, "state": dict(told.state), "values": dict(values)}


def cell_value(address: str, facts: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """What a cell returns, and the variables that it sets."""
    digest = crc32(msgspec.json.encode([address, facts], order="deterministic"))
    value = {"of": address, "sum": digest, "odd": bool(digest & 1)}
    return value, {VARIABLES[digest % 3]: digest % 7} if digest % 5 < 3 else {}


def rule_truth(facts: Mapping[str, Any]) -> bool:
    """What the predicate of a rule answers."""
    return crc32(msgspec.json.encode(facts, order="deterministic")) % 3 == 0


def back_value(address: str, facts: Mapping[str, Any]) -> dict[str, Any]:
    """What a cell of a compensating phase returns."""
    return {"of": address, "sum": crc32(msgspec.json.encode([address, facts], order="deterministic")), "odd": False}


@step(registry=registry, name="sim:cell")
async def cell(cell: Cell) -> Any:
    """A cell: its value is made of all that it sees."""
    return await _fill(cell)


def _look(cell: Cell) -> dict[str, Any]:
    OBSERVER.get().asked(context(), "prepares", "")
    return facts_of(cell)


async def _take_back(cell: Cell, state: dict[str, Any]) -> None:
    own = context()
    wrong = state != facts_of(cell)
    OBSERVER.get().asked(own, "undoes", f"its state is {state}, its cell {cell}" if wrong else "")
    await asyncio.sleep(fraction("take back", own.step, own.attempt))
    if fraction("stuck", own.step, own.generation, own.attempt) < 0.1:
        raise NotCompensable("there is no way back") if own.attempt % 2 else ValueError("it cannot be taken back")


@step(registry=registry, name="sim:sure-cell", prepare=_look, undo=_take_back)
async def sure_cell(cell: Cell) -> Any:
    """A cell that can be undone."""
    return await _fill(cell)


@step(registry=registry, name="sim:back")
async def back(told: Compensation) -> Any:
    """A cell of a compensating phase: its value is made of all that it sees."""
    own = context()
    number = OBSERVER.get().began(own)
    await asyncio.sleep(2 * fraction("back", own.step, own.attempt))
    if fraction("fails", own.step, own.generation, own.attempt) < 0.15:
        raise NotCompensable("too late") if own.attempt % 2 else ValueError("it is not taken back")
    value = back_value(own.step, facts_of(told))
    OBSERVER.get().ended(number, value)
    return value


async def _fill(cell: Cell) -> Any:
    own = context()
    number = OBSERVER.get().began(own)
    await asyncio.sleep(2 * fraction("sleep", own.step, own.attempt))
    if fraction("fails", own.step, own.generation, own.attempt) < 0.12:
        raise Retryable("the cell fails") if own.attempt % 2 else ValueError("the cell fails")
    value, patch = cell_value(own.step, facts_of(cell))
    OBSERVER.get().ended(number, value)
    return Patch(value, patch) if patch else value


def yielded(conduct: Conduct, values: list[Any]) -> list[dict[str, Any]]:
    """What a step yields for its arguments: items so large that few of them make a chunk."""
    digest = crc32(msgspec.json.encode([conduct["name"], values], order="deterministic"))
    return [{"sum": digest % (7 + n), "pad": "x" * 24_000} for n in range(conduct["yields"])]


@step(registry=registry, name="sim:spring", retry=Retry(attempts=3, initial=0.5))
async def spring(conduct: Conduct, values: list[Any]) -> AsyncIterator[dict[str, Any]]:
    """A step that yields, and fails half-way now and then."""
    own = context()
    number = OBSERVER.get().began(own)
    items = yielded(conduct, values)
    for place, item in enumerate(items):
        await asyncio.sleep(0.4 * fraction("yields", conduct["name"], own.attempt, place))
        if fraction("dries", own.step, own.generation, own.attempt, place) < 0.04:
            raise ValueError("nothing more comes")
        yield item
    OBSERVER.get().ended(number, items)


@step(registry=registry, name="sim:sip")
async def sip(conduct: Conduct, values: AsyncIterable[Any]) -> dict[str, Any]:
    """A step that reads its argument while it runs."""
    own = context()
    number = OBSERVER.get().began(own)
    found: list[Any] = []
    async for value in values:
        await asyncio.sleep(0.1 * fraction("sips", conduct["name"], own.attempt, len(found)))
        found.append(value)
    made = value_of(conduct, found)
    OBSERVER.get().ended(number, made)
    return made


@predicate(registry=registry, name="sim:rule")
async def rule(row: Row) -> bool:
    """The condition of a rule; now and then it cannot tell."""
    own = context()
    await asyncio.sleep(fraction("rule", own.step, own.attempt))
    if fraction("unable", own.step) < 0.03:
        raise ValueError("the rule cannot be evaluated")
    return rule_truth(facts_of(row))


# -- plans -------------------------------------------------------------------------------------------------------------


class BlockPlanner(Planner):
    """Makes one random plan with blocks that open their content while the run goes on."""

    def __init__(self, rng: random.Random, name: str) -> None:
        super().__init__(rng, name)
        # Values that only the body around has; blocks that may be referred to; steps whose value has a list.
        self.ambient: list[Any] = []
        self.blocks: list[Any] = []
        self.lists: set[str] = set()
        self.inside = 0

    def fresh(self) -> None:
        """Forget all that was placed."""
        super().fresh()
        self.ambient, self.blocks, self.lists, self.inside = [], [], set(), 0

    def conduct(self, name: str, *, depth: int = 0) -> Conduct:
        """How a step behaves; some give lists."""
        made = super().conduct(name, depth=depth)
        if depth == 0 and self.rng.random() < 0.25:
            made["list"] = self.rng.choice((0, 1, 3, 6))
            self.lists.add(name.removeprefix(f"{self.name}:"))
        return made

    def arguments(self) -> list[Any]:
        """Also items of gathers, and values of blocks."""
        rng, values = self.rng, super().arguments()
        if self.ambient and rng.random() < 0.7:
            values.append(rng.choice(self.ambient))
        if self.blocks and rng.random() < 0.4:
            bound = rng.choice(self.blocks)
            values.append(or_default(bound, None) if rng.random() < 0.6 else bound)
        return values

    def options(self) -> dict[str, Any]:
        """No key of a step in a body: each of its iterations is another step."""
        options = super().options()
        if self.inside:
            options.pop("dedup", None)
        return options

    def block(self, builder: PlanBuilder, address: str, depth: int) -> bool:
        """Place one random block."""
        kind = self.rng.random()
        self.count += 1
        name = f"b{self.count}"
        with builder:
            if kind < 0.4:
                bound = self._gather(builder, name, depth)
            elif kind < 0.65:
                bound = self._choose(builder, name, depth)
            else:
                bound = self._phases(builder, name, depth)
        self.blocks.append(bound)
        self.addresses.append(f"{address}/{name}" if address else name)
        return True

    def _order(self) -> dict[str, Any]:
        """Edges of a block."""
        if self.placed and self.rng.random() < 0.3:
            return {"after" if self.rng.random() < 0.6 else "after_any": self.rng.choice(self.placed)}
        return {}

    def _body(self, builder: PlanBuilder, depth: int, *ambient: Any) -> Any:
        """Plan the steps of a body, which nothing outside sees; gives what it returns."""
        rng = self.rng
        kept = self.placed, self.ambient, self.addresses, self.blocks
        before = len(self.placed)
        self.placed, self.ambient = list(self.placed), [*self.ambient, *ambient]
        self.addresses, self.blocks = [], []
        self.inside += 1
        try:
            self.fill(builder, rng.choice((1, 1, 2, 3)), "", depth + 1)
            own = self.placed[before:] + self.blocks
        finally:
            self.placed, self.ambient, self.addresses, self.blocks = kept
            self.inside -= 1
        # A call that nobody waits for has no value.
        if rng.random() < 0.1 or not own:
            return rng.choice(ambient) if ambient else None
        return [or_default(bound, None) for bound in own] if rng.random() < 0.3 else own[-1]

    def _gather(self, builder: PlanBuilder, name: str, depth: int) -> Any:
        rng = self.rng
        lists = [bound for bound in self.placed if bound.__treadle_node__.id in self.lists]
        items: Any = [rng.randrange(100) for _ in range(rng.choice((0, 1, 2, 3, 5)))]
        if lists and rng.random() < 0.7:
            items = rng.choice(lists)["items"]
        elif self.placed and rng.random() < 0.5:
            items = [or_default(rng.choice(self.placed), None), *items]

        # Not drawn, so that all else stays as it is.
        streams = fraction("streams", self.name, name) < 0.35
        if streams:
            conduct = {"name": f"{self.name}:{name}", "yields": 1 + int(8 * fraction(name))}
            items = spring.options(id=f"{name}-spring").bind(conduct, [])

        def body(item: Any, index: int) -> Any:
            return self._body(builder, depth, item["sum"] if streams else item, index)

        made = gather(
            items,
            body,
            id=name,
            limit=rng.choice((0, 0, 1, 2, 3)),
            mode=rng.choice(("any_error", "any_error", "all", "first")),
            optional=rng.random() < 0.2,
            **self._order(),
        )
        if streams:
            for end, source in (("mouth", items), ("lake", made)):
                sip.options(id=f"{name}-{end}", optional=True).bind({"name": f"{self.name}:{name}-{end}"}, source)
        return made

    def _choose(self, builder: PlanBuilder, name: str, depth: int) -> Any:
        rng = self.rng
        cases = [self._case(builder, depth, f"way{n}") for n in range(rng.choice((1, 2, 3)) if self.placed else 0)]
        otherwise = (lambda: self._body(builder, depth)) if not cases or rng.random() < 0.6 else None
        return choose(*cases, otherwise=otherwise, id=name, optional=rng.random() < 0.2, **self._order())

    def _case(self, builder: PlanBuilder, depth: int, id_: str) -> Case:
        rng = self.rng
        bound, way = rng.choice(self.placed), rng.random()
        condition: Any = bound["odd"]
        if way < 0.3:
            condition = holds(f"v.sum > {rng.randrange(2**32)}", v=bound)
        elif way < 0.5:
            condition = holds("default(v.odd, true)", v=or_default(bound, None))
        elif way < 0.8:
            asked = truth if way < 0.7 else heavy_truth
            condition = asked.bind(or_default(bound, None), rng.randrange(1000))
        return case(condition, lambda: self._body(builder, depth), id=id_)

    def _phases(self, builder: PlanBuilder, name: str, depth: int) -> Any:
        rng = self.rng
        ids = [f"p{number}" for number in range(rng.choice((1, 2, 3)))]
        policies = {f"r{number}": _rules(rng, ids) for number in range(rng.choice((0, 1, 2)))}
        rows = [self._row(builder, id_, sorted(policies), depth) for id_ in ids]
        state: dict[str, Any] = {variable: rng.randrange(7) for variable in VARIABLES[: rng.randrange(4)]}
        if self.placed and rng.random() < 0.3:
            state["v1"] = or_default(rng.choice(self.placed)["sum"], 3)
        named = sorted({row.compensate for row in rows if row.compensate})
        made = Phases(
            *rows,
            compensations=[Phase(id_, self._backs(builder, depth)) for id_ in named],
            policies=policies,
            otherwise=Rule.stop(id="else") if policies and rng.random() < 0.7 else None,
            start=rng.choice(["", *ids]),
            step_limit=rng.choice((1, 3, 6, 10)),
            on_conflict=rng.choice(("last", "last", "error")),
            on_finish=rng.choice(("leave", "wait", "cancel")),
            id=name,
        )
        return made.bind(**self._order(), **state)

    def _row(self, builder: PlanBuilder, id_: str, policies: list[str], depth: int) -> Phase:
        rng = self.rng
        cells = {lane: self._cell(builder, depth) for lane in ("a", "b", "c")[: rng.choice((1, 1, 2, 3))]}
        detached = {"d": self._cell(builder, depth)} if rng.random() < 0.3 else {}
        retry = Retry(attempts=rng.choice((2, 3)), initial=rng.choice((0, 0.5))) if rng.random() < 0.4 else None
        policy = rng.choice(policies) if policies else ""
        # Some phases share a compensating one.
        by = rng.choice(("", "", f"un{id_}", "back"))
        return Phase(id_, cells, detached=detached, policy=policy, retry=retry, compensate=by)

    def _backs(self, builder: PlanBuilder, depth: int) -> dict[str, Any]:
        """The cells of a compensating phase."""
        rng = self.rng
        cells: dict[str, Any] = {}
        for lane in ("a", "b")[: rng.choice((1, 1, 2))]:
            retry = Retry(attempts=3, initial=rng.choice((0, 0.3)))
            cells[lane] = back.options(retry=retry) if rng.random() < 0.5 else back
            if depth < 2 and rng.random() < 0.2:
                cells[lane] = LanePlan(lambda: self._body(builder, depth))
        return cells

    def _cell(self, builder: PlanBuilder, depth: int) -> Any:
        rng = self.rng
        if depth < 2 and rng.random() < 0.25:
            return LanePlan(lambda: self._body(builder, depth))
        options: dict[str, Any] = {}
        if rng.random() < 0.4:
            options["retry"] = Retry(attempts=3, initial=rng.choice((0, 0.3)))
        if rng.random() < 0.15:
            options["optional"] = True
        function: Any = cell if rng.random() < 0.5 else sure_cell
        return function.options(**options) if options else function


def _rules(rng: random.Random, ids: list[str]) -> list[Rule]:
    rules: list[Rule] = []
    for number in range(rng.choice((1, 2, 3))):
        way = rng.random()
        texts = (
            f"step < {rng.randrange(6)}",
            f"default(state.{rng.choice(VARIABLES)}, 0) > {rng.randrange(7)}",
            "default(lanes.a.odd, false)",
            "entry > 1",
            "state.v0 > 2",
        )
        when: Any = rule if way < 0.3 else None if way < 0.4 else rng.choice(texts)
        move, id_ = rng.random(), f"u{number}"
        if move < 0.4:
            rules.append(Rule.advance(when=when, id=id_))
        elif move < 0.7:
            rules.append(Rule.jump(rng.choice(ids), when=when, id=id_))
        else:
            rules.append((Rule.repeat if move < 0.85 else Rule.stop)(when=when, id=id_))
    return rules
