"""Questions to the graph of a plan: neighbours, order, levels, the critical path in steps and in time, parts."""

from __future__ import annotations

import math
from itertools import count, pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.core.kit import step

from treadle.core.graph_analysis import Analysis, Schedule, Span
from treadle.core.plan import Block, Group, Phase, Phases, Plan
from treadle.errors import CycleError, DefinitionErrors, DuplicateStepError, UnknownStepError, UsageError


def of(*blocks: Block) -> Analysis:
    return Analysis.of(Plan(workflow="w", blocks=list(blocks)))


def graph(**needs: str) -> Analysis:
    """`graph(a="", b="a")`: b needs a."""
    return of(*(step(name, *wanted.split()) for name, wanted in needs.items()))


DIAMOND = graph(d="b c", c="a", b="a", a="")


def test_a_graph_without_steps_has_nothing_and_no_circle() -> None:
    empty = graph()

    assert (len(empty), empty.steps, empty.edges()) == (0, [], [])
    assert (empty.roots(), empty.leaves(), empty.independent_sets()) == ([], [], [])
    assert (empty.has_cycle, empty.cycles()) == (False, [])
    assert (empty.topological_order(), empty.levels(), empty.critical_path()) == ([], [], [])
    assert empty.schedule({}) == Schedule(seconds=0.0, critical_path=[], spans=[])
    assert len(empty.subgraph([])) == 0


def test_a_single_step_is_root_and_leaf() -> None:
    single = graph(a="")

    assert single.roots() == single.leaves() == single.topological_order() == single.critical_path() == ["a"]
    assert single.levels() == single.independent_sets() == [["a"]]
    assert single.dependencies("a") == single.dependents("a") == single.all_dependencies("a") == []


def test_a_chain() -> None:
    chain = graph(c="b", b="a", a="")

    assert (chain.roots(), chain.leaves()) == (["a"], ["c"])
    assert (chain.dependencies("c"), chain.dependents("a")) == (["b"], ["b"])
    assert (chain.all_dependencies("c"), chain.all_dependents("a")) == (["a", "b"], ["b", "c"])
    assert chain.edges() == [("a", "b"), ("b", "c")]
    assert chain.steps == ["c", "b", "a"]
    assert "c" in chain
    assert "d" not in chain
    assert repr(chain) == "<Analysis of 3 steps>"


def test_a_diamond() -> None:
    assert DIAMOND.dependencies("d") == ["b", "c"]
    assert DIAMOND.all_dependencies("d") == ["a", "b", "c"]
    assert DIAMOND.dependents("a") == ["b", "c"]
    assert DIAMOND.all_dependents("a") == ["b", "c", "d"]
    assert DIAMOND.topological_order() == ["a", "b", "c", "d"]


def test_the_smallest_step_that_may_come_next_comes_next() -> None:
    assert graph(z="", b="z", a="b", y="").topological_order() == ["y", "z", "b", "a"]


def test_three_steps_in_a_circle() -> None:
    circle = graph(a="c", b="a", c="b", free="")

    assert circle.has_cycle
    assert circle.cycles() == [["a", "c", "b", "a"]]
    assert circle.all_dependencies("a") == ["b", "c"]
    assert circle.dependencies("a") == ["c"]
    assert circle.roots() == ["free"]
    assert circle.independent_sets() == [["a", "b", "c"], ["free"]]
    assert circle.shortest_path("a", "c") == ["a", "b", "c"]
    for ask in (circle.topological_order, circle.levels, circle.critical_path, lambda: circle.schedule({})):
        with pytest.raises(CycleError) as caught:
            ask()
        assert sorted(set(caught.value.cycle)) == ["a", "b", "c"]
    assert circle.subgraph(["a", "b", "free"]).levels() == [["a", "free"], ["b"]]


def test_a_step_that_waits_for_itself() -> None:
    circle = graph(a="a")

    assert circle.cycles() == [["a", "a"]]
    assert circle.all_dependencies("a") == []


def test_levels() -> None:
    assert graph(a="", e="", b="a", c="a", f="e", d="b c").levels() == [["a", "e"], ["b", "c", "f"], ["d"]]


def test_the_critical_path_is_the_longest_chain() -> None:
    assert graph(a="", b="a", c="b", d="c a", e="a").critical_path() == ["a", "b", "c", "d"]


def test_of_equal_chains_the_last_end_and_the_first_dependency_are_taken() -> None:
    assert graph(a="", b="", x="a b", y="b a", w="a").critical_path() == ["b", "y"]
    assert graph(b="", a="").critical_path() == ["b"]


def test_independent_sets() -> None:
    assert graph(f="", e="f", d="", b="a", a="", c="b").independent_sets() == [["a", "b", "c"], ["d"], ["e", "f"]]


def test_the_shortest_path() -> None:
    laid = graph(a="", b="a", c="b", d="c", x="a", e="d x b")

    assert laid.shortest_path("a", "e") == ["a", "b", "e"]
    assert laid.shortest_path("c", "c") == ["c"]
    assert laid.shortest_path("e", "a") is None
    assert laid.shortest_path("x", "d") is None


def test_a_part_keeps_the_dependencies_among_its_steps() -> None:
    part = DIAMOND.subgraph(["d", "b", "a", "a"])

    assert part.steps == ["d", "b", "a"]
    assert part.edges() == [("a", "b"), ("b", "d")]
    assert part.subgraph(["a", "d"]).edges() == []
    with pytest.raises(UnknownStepError):
        part.subgraph(["c"])


@pytest.mark.parametrize(
    "ask",
    [
        lambda: DIAMOND.dependencies("x"),
        lambda: DIAMOND.dependents("x"),
        lambda: DIAMOND.all_dependencies("x"),
        lambda: DIAMOND.all_dependents("x"),
        lambda: DIAMOND.shortest_path("x", "a"),
        lambda: DIAMOND.shortest_path("a", "x"),
        lambda: DIAMOND.subgraph(["x"]),
    ],
)
def test_a_name_that_is_no_step_is_refused(ask: Any) -> None:
    with pytest.raises(UnknownStepError, match="the graph has no step 'x'"):
        ask()


def test_edges_to_steps_that_are_not_there_are_mistakes_of_the_plan() -> None:
    with pytest.raises(UnknownStepError, match="'b' names 'nowhere'"):
        graph(a="", b="nowhere")
    with pytest.raises(DefinitionErrors, match="2 mistakes in the plan of 'w'") as caught:
        of(step("a", "x"), step("a"))
    assert [type(error) for error in caught.value.exceptions] == [DuplicateStepError, UnknownStepError]


# Groups

GROUPS = of(
    step("a"),
    Group(id="g", blocks=[step("x"), step("y", "x"), Group(id="h", blocks=[step("z")])], after=("a",)),
    step("b", after=("g",)),
    Group(id="k", blocks=[step("m"), step("n")]),
)


def test_groups_are_looked_through() -> None:
    assert GROUPS.steps == ["a", "g/x", "g/y", "g/h/z", "b", "k/m", "k/n"]
    assert GROUPS.dependencies("g/h/z") == ["a"]
    assert GROUPS.dependencies("g/y") == ["a", "g/x"]
    assert GROUPS.dependencies("b") == ["g/h/z", "g/x", "g/y"]
    assert GROUPS.dependents("a") == ["g/h/z", "g/x", "g/y"]
    assert GROUPS.all_dependencies("b") == ["a", "g/h/z", "g/x", "g/y"]
    assert (GROUPS.roots(), GROUPS.leaves()) == (["a", "k/m", "k/n"], ["b", "k/m", "k/n"])
    assert GROUPS.levels() == [["a", "k/m", "k/n"], ["g/h/z", "g/x"], ["g/y"], ["b"]]
    assert GROUPS.topological_order() == ["a", "g/h/z", "g/x", "g/y", "b", "k/m", "k/n"]
    assert GROUPS.critical_path() == ["a", "g/x", "g/y", "b"]
    assert GROUPS.shortest_path("a", "b") == ["a", "g/h/z", "b"]
    assert GROUPS.subgraph(["a", "g/y", "b"]).edges() == [("a", "g/y"), ("g/y", "b")]


def test_steps_of_a_group_are_independent_unless_something_waits_for_it_or_it_for_something() -> None:
    assert GROUPS.independent_sets() == [["a", "b", "g/h/z", "g/x", "g/y"], ["k/m"], ["k/n"]]


def test_a_circle_through_a_group_names_it() -> None:
    circle = of(Group(id="g", blocks=[step("a")], after=("b",)), step("b", "g/a"))

    assert circle.has_cycle
    assert "g" in circle.cycles()[0]


def test_rows_are_looked_through_in_their_order_without_what_runs_aside() -> None:
    rows = [
        Phase(id="one", blocks=[step("x"), step("slow")], detached=("slow",), compensate="back"),
        Phase(id="two", blocks=[step("x")]),
    ]
    block = Phases(id="p", phases=rows, compensations=[Phase(id="back", blocks=[step("z")])])

    laid = of(block, step("end", after=("p",)))

    assert laid.edges() == [("p/one/x", "end"), ("p/one/x", "p/two/x"), ("p/two/x", "end")]
    assert laid.independent_sets() == [["end", "p/one/x", "p/two/x"], ["p/one/slow"]]
    assert laid.critical_path() == ["p/one/x", "p/two/x", "end"]


# Time


def test_a_schedule_has_the_critical_path_and_everyones_slack() -> None:
    laid = graph(a="", b="a", c="a", d="b c", e="")

    found = laid.schedule({"a": 1.0, "b": 5.0, "c": 2.0, "d": 1.0, "nobody": 99.0}, default=0.5)

    assert found.seconds == 7.0
    assert found.critical_path == ["a", "b", "d"]
    assert found.spans == [
        Span(step="a", start=0.0, finish=1.0, slack=0.0),
        Span(step="e", start=0.0, finish=0.5, slack=6.5),
        Span(step="b", start=1.0, finish=6.0, slack=0.0),
        Span(step="c", start=1.0, finish=3.0, slack=3.0),
        Span(step="d", start=6.0, finish=7.0, slack=0.0),
    ]
    assert found.span("c") == found.spans[3]
    assert found.span("x") is None


def test_a_chain_that_takes_no_time_is_still_a_chain() -> None:
    assert of(Group(id="g", blocks=[step("a"), step("b", "a")])).schedule({}).critical_path == ["g/a", "g/b"]


@pytest.mark.parametrize("wrong", [-1.0, math.nan, math.inf])
def test_durations_that_are_none_are_refused(wrong: float) -> None:
    with pytest.raises(UsageError, match=r"durations are seconds from 0 on; mend a: .*, default: "):
        DIAMOND.schedule({"a": wrong, "b": 1.0}, default=wrong)


# Size


def test_wide_groups_and_long_chains_cost_what_they_hold() -> None:
    width = 2_000
    wide = of(
        Group(id="first", blocks=[step(str(number)) for number in range(width)]),
        Group(id="second", blocks=[step(str(number)) for number in range(width)], after=("first",)),
    )
    long = of(step("0"), *(step(str(number), str(number - 1)) for number in range(1, width)))

    assert [len(level) for level in wide.levels()] == [width, width]
    assert len(wide.roots()) == len(wide.leaves()) == width
    assert len(wide.independent_sets()) == 1
    assert len(wide.all_dependencies("second/0")) == width
    assert wide.shortest_path("first/7", "second/9") == ["first/7", "second/9"]
    assert len(long.critical_path()) == len(long.levels()) == width
    assert long.schedule({}, default=1.0).seconds == width


# Laws


@st.composite
def plans(draw: st.DrawFn, circles: bool = False) -> Plan:
    """Random plans of steps and nested groups; those without circles refer backwards only."""
    names: list[str] = []
    ids = count()

    def blocks(scope: str, depth: int) -> list[Block]:
        found: list[Block] = []
        for _ in range(draw(st.integers(1 if scope else 0, 3))):
            after = tuple(draw(st.lists(st.sampled_from(names), max_size=3, unique=True))) if names else ()
            # No id is used twice, so that a name means the same everywhere.
            id_ = f"n{next(ids):02}"
            address = f"{scope}{id_}"
            if depth < 2 and draw(st.booleans()):
                found.append(Group(id=id_, blocks=blocks(f"{address}/", depth + 1), after=after))
            else:
                found.append(step(id_, after=after))
            names.append(address)
        return found

    made = blocks("", 0)
    if circles and names:
        last, first = step("last", after=tuple(names[-1:])), draw(st.sampled_from(["last", "z"]))
        made = [*made, last, step("z"), step("y", after=(first,)), step("x", after=("y", "w")), step("w", after=("x",))]
    return Plan(workflow="w", blocks=made)


def waits_of(found: Analysis) -> dict[str, set[str]]:
    return {name: set(found.dependencies(name)) for name in found.steps}


@given(plans())
def test_neighbours_are_each_others(plan: Plan) -> None:
    found = Analysis.of(plan)
    waits = waits_of(found)

    assert {name for name, others in waits.items() if not others} == set(found.roots())
    assert found.edges() == sorted((source, target) for target in waits for source in waits[target])
    assert {(source, target) for source in waits for target in found.dependents(source)} == set(found.edges())
    assert set(found.leaves()) == set(waits) - {source for source, _ in found.edges()}
    for name in waits:
        assert found.dependencies(name) == sorted(waits[name])
        reached = set(waits[name]).union(*(found.all_dependencies(other) for other in waits[name]))
        assert found.all_dependencies(name) == sorted(reached)
        assert all(name in found.all_dependents(other) for other in reached)


@given(plans())
def test_levels_partition_the_steps_and_are_as_many_as_the_critical_path_is_long(plan: Plan) -> None:
    found = Analysis.of(plan)
    waits, levels, path = waits_of(found), found.levels(), found.critical_path()
    depth = {name: number for number, level in enumerate(levels) for name in level}

    assert sorted(depth) == sorted(found.steps)
    assert sum(map(len, levels)) == len(found)
    assert all(level == sorted(level) and level for level in levels)
    assert all(depth[name] == max((depth[other] + 1 for other in waits[name]), default=0) for name in waits)
    assert len(path) == len(levels)
    assert all(first in waits[second] for first, second in pairwise(path))
    if path:
        assert path[-1] == max(levels[-1])


@given(plans())
def test_the_order_takes_the_smallest_that_is_ready(plan: Plan) -> None:
    found = Analysis.of(plan)
    waits = waits_of(found)
    expected: list[str] = []
    while len(expected) < len(waits):
        expected.append(min(name for name in waits if name not in expected and waits[name] <= set(expected)))

    assert found.topological_order() == expected


@given(plans(), st.data())
def test_a_schedule_is_the_earliest_and_slack_is_what_can_be_added(plan: Plan, data: st.DataObject) -> None:
    found = Analysis.of(plan)
    waits = waits_of(found)
    seconds = {name: float(data.draw(st.integers(0, 9))) for name in waits}

    schedule = found.schedule(seconds)

    spans = {span.step: span for span in schedule.spans}
    assert list(spans) == sorted(waits, key=lambda name: (spans[name].start, name))
    for name, span in spans.items():
        assert span.start == max((spans[other].finish for other in waits[name]), default=0.0)
        assert span.finish == span.start + seconds[name]
    assert schedule.seconds == max((span.finish for span in spans.values()), default=0.0)
    assert schedule.seconds == sum(seconds[name] for name in schedule.critical_path)
    assert all(spans[name].slack == 0 for name in schedule.critical_path)
    for name in data.draw(st.lists(st.sampled_from(sorted(waits)), max_size=3)) if waits else ():
        longer = {**seconds, name: seconds[name] + spans[name].slack}
        assert found.schedule(longer).seconds == schedule.seconds
        assert found.schedule({**longer, name: longer[name] + 1}).seconds == schedule.seconds + 1
    assert found.schedule({}, default=1.0).critical_path == found.critical_path()


@given(plans())
def test_independent_sets_are_the_parts_that_no_edge_joins(plan: Plan) -> None:
    found = Analysis.of(plan)
    part = {name: {name} for name in found.steps}
    for source, target in found.edges():
        joined = part[source] | part[target]
        for name in joined:
            part[name] = joined

    assert [tuple(names) for names in found.independent_sets()] == sorted(
        {tuple(sorted(names)) for names in part.values()}
    )


@given(plans(), st.data())
def test_a_shortest_path_goes_along_edges_and_none_is_shorter(plan: Plan, data: st.DataObject) -> None:
    found = Analysis.of(plan)
    if not len(found):
        return
    start, end = data.draw(st.sampled_from(found.steps)), data.draw(st.sampled_from(found.steps))
    distance = {start: 1}
    for name in found.topological_order():
        for other in found.dependencies(name):
            if other in distance and name != start:
                distance[name] = min(distance.get(name, len(found)), distance[other] + 1)

    path = found.shortest_path(start, end)

    assert (path is None) == (end not in distance)
    assert path is None or len(path) == distance[end]
    assert path is None or (path[0], path[-1]) == (start, end)
    assert set(pairwise(path or [])) <= set(found.edges())


@given(plans(), st.data())
def test_a_part_has_the_edges_among_its_steps(plan: Plan, data: st.DataObject) -> None:
    found = Analysis.of(plan)
    kept = set(data.draw(st.lists(st.sampled_from(found.steps)))) if len(found) else set[str]()

    part = found.subgraph(kept)

    assert part.steps == [name for name in found.steps if name in kept]
    assert part.edges() == [edge for edge in found.edges() if set(edge) <= kept]


@given(plans(circles=True))
def test_circles_are_circles_and_without_them_there_is_an_order(plan: Plan) -> None:
    found = Analysis.of(plan)

    for circle in found.cycles():
        assert circle[0] == circle[-1]
        assert len(circle) > 1
    if "w" in found:
        assert found.has_cycle
        assert ["w", "x", "w"] in found.cycles() or ["x", "w", "x"] in found.cycles()
        assert "w" not in found.subgraph([name for name in found.steps if name != "w"]).topological_order()
