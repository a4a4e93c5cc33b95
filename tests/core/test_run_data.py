"""Slots that take from the run's data, in the kernel."""

from __future__ import annotations

from tests.core.kit import Driver, adding, step

from treadle.core.apply import new_state
from treadle.core.decide import Limits, start
from treadle.core.events import Pick, StepFailed
from treadle.core.graph import Graph
from treadle.core.plan import Data, Given, Group, ListOf, MapOf, Plan, Predicate, encode_plan
from treadle.core.run_data import needs_of
from treadle.core.state import RunState
from treadle.errors import SlotError

TAKES = step("a", slots={"host": Data("host")})


def run_of(graph: Graph, *names: str) -> RunState:
    return new_state("k", "run-1", graph, [], [], data="@d", data_names=names, dry_run=True)


def test_a_datum_is_a_part_of_the_runs_data() -> None:
    run = run_of(Graph(Plan(workflow="w", blocks=[TAKES])), "host")

    [task] = start(run, now=1.0, limits=Limits()).tasks

    assert task.call.args == {"host": Pick("@d", ("host",))}
    assert (task.call.data, task.call.dry_run) == ("@d", True)


def test_a_condition_is_asked_with_the_data() -> None:
    asked = step("a", when=Predicate("p", {"x": Data("host")}))

    [task] = start(run_of(Graph(Plan(workflow="w", blocks=[asked])), "host"), now=1.0, limits=Limits()).tasks

    assert task.call.args == {"x": Pick("@d", ("host",))}
    assert (task.call.purpose, task.call.data, task.call.dry_run) == ("condition", "@d", True)


def test_a_datum_that_is_missing_fails_the_step() -> None:
    run = run_of(Graph(Plan(workflow="w", blocks=[TAKES])))

    start(run, now=1.0, limits=Limits())

    step = run.step(1)
    assert step is not None
    assert step.failure is not None
    assert (step.status, step.failure.code) == ("failed", "unresolved")
    assert "without 'host' in its data" in step.failure.message


def test_all_needs_of_a_plan_are_found_with_their_place() -> None:
    nested = step("b", slots={"all": ListOf([MapOf({"k": Data("deep")})])})
    asked = step("c", when=Predicate("p", {"x": Data("host")}))
    plan = Plan(workflow="w", blocks=[TAKES, Group(id="g", blocks=[nested]), asked])
    graph, encoded = Graph(plan), encode_plan(plan)

    needs = needs_of(graph, encoded)

    assert [(need.address, need.action, need.parameter, need.name, need.whole) for need in needs] == [
        ("a", "act", "host", "host", True),
        ("g/b", "act", "all", "deep", False),
        ("c", "p", "x", "host", True),
    ]
    assert needs_of(graph, encoded) is needs


def test_a_plan_that_only_speaks_of_data_needs_none() -> None:
    said = step("a", slots={"x": Given('="\\"slot\\":\\"data\\""')})
    plan = Plan(workflow='"slot":"data"', blocks=[said])

    assert needs_of(Graph(plan), encode_plan(plan)) == ()


def test_an_added_step_that_lacks_its_datum_fails_the_adder() -> None:
    driver = Driver(step("adder"))

    driver.succeed("adder", added=adding(TAKES))

    [failed] = driver.seen(StepFailed)
    assert failed.failure.code == SlotError.code
    assert "takes 'host' from the run's data" in failed.failure.message
    driver.check()
