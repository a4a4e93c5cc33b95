"""Plans of chosen scenarios, of the simulation's own steps."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from treadle.authoring.builder import PlanBuilder, Planned
from treadle.authoring.openings import case, choose, gather, holds
from treadle.authoring.options import Retry
from treadle.authoring.phases import LanePlan, Phase, Phases, Rule
from treadle.testing.scenarios import Scenario, everywhere
from treadle.testing.sim_blocks import back, cell, cell_value, spring, sure_cell
from treadle.testing.sim_conduct import Conduct, fraction
from treadle.testing.sim_steps import called, make, registry, work
from treadle.testing.simulation import Report

# What processes write and take by.
WRITES = ("commit", "claim", "report", "acquire", "bury")


def conduct(name: str, seconds: float = 1.0, **more: Any) -> Conduct:
    """How a step behaves."""
    return {"name": name, "sleep": seconds, **more}


def builder(**options: Any) -> PlanBuilder:
    return PlanBuilder("scene", registry=registry, **options)


def chain() -> Planned:
    """Two steps, the first of which can be undone."""
    plan = builder()
    first = plan.step("a", make, conduct("a"), [])
    plan.output(plan.step("b", work, conduct("b"), [first]))
    return plan.build()


def fan(count: int = 4) -> Planned:
    """Some steps that overlap, and one for all."""
    plan = builder()
    steps = [plan.step(f"a{number}", work, conduct(f"a{number}", 3.0), []) for number in range(count)]
    plan.output(plan.step("end", work, conduct("end"), steps))
    return plan.build()


def stream() -> Planned:
    """A step that yields so much that it is stored piece by piece."""
    plan = builder()
    with plan:
        plan.output(spring.options(id="items").bind({"name": "spring", "yields": 6}, []))
    return plan.build()


def call() -> Planned:
    """A step that calls a workflow."""
    plan = builder()
    with plan:
        below = {"first": conduct("first"), "undo": False, "retry": False, "inner": None, "detached": False}
        plan.output(called.options(id="below").bind(below, []))
    return plan.build()


def alone(scenario: Scenario) -> Iterable[Report]:
    """The scenario as it is."""
    yield scenario.play()


def struck(kind: str, *operations: str) -> Callable[[Scenario], Iterable[Report]]:
    """The scenario with this fault at each of these calls, one at a time."""
    return lambda scenario: everywhere(scenario, kind, *operations)


def broken(reports: Iterable[Report]) -> str:
    """The invariant that the first of these broke; empty if all are sound."""
    return next((report.failures[0][0] for report in reports if report.failures), "")


# -- blocks that open their content ------------------------------------------------------------------------------------


def gathered() -> Planned:
    """A gather whose first item takes longest: its first attempt fails, by what its address says."""
    name = next(name for name in map(str, range(1000)) if _fails(f"items[0]/{name}", name) and not _any_other(name))
    plan = builder()
    with plan:
        step = work.options(id=name, retry=Retry(attempts=4, initial=1.0))
        plan.output(gather([1, 2, 3], lambda item: step.bind(conduct(name, 0.1, fails=0.5), [item]), id="items"))
    return plan.build()


def _fails(address: str, name: str) -> bool:
    return fraction("fails", name, address, 1, 1) < 0.5 and fraction("kind", name, 1) < 0.6 and _succeeds(name, address)


def _succeeds(name: str, address: str) -> bool:
    return fraction("kind", name, 1) >= 0.35 and fraction("fails", name, address, 1, 2) >= 0.5


def _any_other(name: str) -> bool:
    return any(fraction("fails", name, f"items[{number}]/{name}", 1, 1) < 0.5 for number in (1, 2))


def chosen() -> Planned:
    """A choose of which the condition of the first branch does not hold."""
    plan = builder()
    first = plan.step("a", work, conduct("a"), [])
    with plan:
        never = case(holds("v.sum < 0", v=first), lambda: work.options(id="no").bind(conduct("no"), []), id="never")
        plan.output(choose(never, otherwise=lambda: work.options(id="yes").bind(conduct("yes"), []), id="pick"))
    return plan.build()


def rows(id_: str, *, retry: bool = False, rules: Iterable[Rule] = ()) -> Planned:
    """Two rows of two lanes."""
    again = Retry(attempts=3, initial=0.5) if retry else None
    policies = {"then": [*rules, Rule.advance()]} if rules else {}
    policy = "then" if rules else ""
    block = Phases(
        Phase("p0", {"a": cell, "b": cell}, policy=policy, retry=again),
        Phase("p1", {"a": cell}, policy=policy),
        Phase("p2", {"a": cell}, policy=policy),
        policies=policies,
        state={"v0": 1},
        id=id_,
    )
    plan = builder()
    with plan:
        plan.output(block.bind())
    return plan.build()


def moving() -> Planned:
    """Rows that jump over one."""
    return rows(
        _whose(lambda id_: all(not _cell_fails(id_, at) for at in ("p0/a", "p0/b", "p2/a"))),
        rules=[
            Rule.jump("p2", when="step == 0", id="over"),
        ],
    )


def failing_row() -> Planned:
    """A row of which one lane fails, when the other one has set a variable; it is tried again."""

    def suits(id_: str) -> bool:
        return _cell_fails(id_, "p0/b") and _cell_fails(id_, "p0/b", 2) and _sets_first(id_)

    return rows(_whose(suits), retry=True)


def failing_early() -> Planned:
    """A row of which one lane fails for good while the other one has a step to follow."""
    slow = next(name for name in map(str, range(1000)) if fraction("sleep", name, 1) > 0.9)

    def lane() -> Any:
        return work.options(id="then").bind(conduct("then"), [work.options(id="slow").bind(conduct(slow, 5.0), [])])

    id_ = _whose(lambda id_: _cell_fails(id_, "p0/b") and _cell_fails(id_, "p0/b", 2))
    plan = builder()
    with plan:
        plan.output(Phases(Phase("p0", {"a": LanePlan(lane), "b": cell}), id=id_).bind())
    return plan.build()


def _whose(suits: Callable[[str], bool]) -> str:
    """The first id of a block for which its cells behave so."""
    return next(id_ for id_ in (f"rows{number}" for number in range(100_000)) if suits(id_))


def _cell_fails(id_: str, at: str, attempt: int = 1) -> bool:
    return fraction("fails", f"{id_}/{at}", 1, attempt) < 0.12


def _cell_seconds(id_: str, lane: str, attempt: int = 1) -> float:
    return 2 * fraction("sleep", f"{id_}/p0/{lane}", attempt)


def _sets_first(id_: str) -> bool:
    address = f"{id_}/p0/a"
    facts = {"phase": "p0", "index": 0, "step": 0, "entry": 1, "state": {"v0": 1}, "values": {}}
    sets = bool(cell_value(address, facts)[1])
    return sets and not _cell_fails(id_, "p0/a") and _cell_seconds(id_, "a") + 0.5 < _cell_seconds(id_, "b")


# -- a saga ------------------------------------------------------------------------------------------------------------


def saga() -> Planned:
    """All that can be undone (a step, iterations, a branch, rows, what a child did), and an end that fails."""
    plan = builder(on_failure="unwind")
    calm = _whose(lambda id_: all(_is_calm(id_, at) for at in _CELLS))
    block = Phases(
        Phase("p0", {"a": sure_cell, "b": sure_cell}, policy="on", compensate="back"),
        Phase("p1", {"a": sure_cell}, policy="back"),
        policies={"on": [Rule.advance()], "back": [Rule.loop_back("p0", when="step == 1"), Rule.advance()]},
        compensations=[Phase("back", {"a": back})],
        id=calm,
    )
    with plan:
        first = make.options(id="first").bind(conduct("first", 0.3), [])
        items = gather([1, 2], lambda item: make.options(id="m").bind(conduct("m", 0.3), [item]), id="items")
        branch = choose(
            case(
                holds("len(found) == 2", found=items), lambda: make.options(id="yes").bind(conduct("surely", 0.3), [])
            ),
            id="pick",
        )
        below = {"first": conduct("below", 0.3), "undo": True, "retry": False, "inner": None, "detached": False}
        child = called.options(id="child", after=[first, branch]).bind(below, [])
        rows_ = block.bind(after=child)
        failing = _failing_name()
        work.options(id="end", after=rows_).bind(conduct(failing, 0.1, fails=1.0), [])
    return plan.build()


_CELLS = ("p0/a", "p0/b", "p0#2/a", "p0#2/b", "p1/a", "p1#2/a", "back/a", "back#2/a")


def _is_calm(id_: str, at: str) -> bool:
    """Whether a cell does not fail, nor its undo, also if each is made again after a crash."""
    fails = any(fraction("fails", f"{id_}/{at}", 1, attempt) < 0.15 for attempt in (1, 2, 3))
    return not fails and all(fraction("stuck", f"{id_}/{at}", 1, attempt) >= 0.1 for attempt in (1, 2, 3, 4))


def _failing_name() -> str:
    """The name of a step whose first attempt fails for good."""
    return next(name for name in map(str, range(1000)) if fraction("kind", name, 1) < 0.35)


def stuck_undo() -> Planned:
    """A step whose undo fails until an operator has it tried again, behind another one."""
    name = next(name for name in map(str, range(10_000)) if _undo_fails_once(name))
    plan = builder(on_failure="unwind")
    with plan:
        before = make.options(id="before").bind(conduct("before", 3.0), [])
        stuck = make.options(id="stuck", after=before).bind(conduct(name, 0.3, fails=0.5), [])
        work.options(id="end", after=stuck).bind(conduct(_failing_name(), 0.1, fails=1.0), [])
    return plan.build()


def _undo_fails_once(name: str) -> bool:
    """Whether all goes well but the first attempt to undo it; no artifacts or blocks, which would only cost time."""
    does = fraction("fails", name, "stuck", 1, 1) >= 0.5 and fraction("prepare", name, 1, 1) >= 0.5
    fails = fraction("undo", name, 1, 2) < 0.5 and fraction("kind", "undo", name, 2) >= 0.6
    return does and fails and fraction("undo", name, 1, 4) >= 0.5 and fraction("drift", name) > 0.1
