"""Checks of whole plans: ids, names of other steps, circles, order and levels."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from treadle.core.analysis import Edge, check_plan, edges, levels, topological_order
from treadle.core.graph import Graph
from treadle.core.plan import Block, Group, ListOf, MapOf, Placement, Plan, Predicate, Ref, Slot, Step
from treadle.errors import CycleError, DefinitionError, DuplicateStepError, UnknownStepError


def one(id_: str, *refs: str, after: tuple[str, ...] = (), **fields: object) -> Step:
    slots: dict[str, Slot] = {f"a{number}": Ref(name) for number, name in enumerate(refs)}
    return Step(id=id_, action="m:f", slots=slots, after=after, **fields)  # type: ignore[arg-type]  # any field of a step


def plan(*blocks: Block, output: Slot | None = None) -> Plan:
    return Plan(workflow="w", blocks=list(blocks), output=output)


def messages(checked: Plan) -> list[str]:
    return [str(error) for error in check_plan(checked)]


def test_a_sound_plan_has_no_mistakes() -> None:
    sound = plan(
        one("a"),
        Group(id="g", blocks=[one("b", "a"), one("c", "b")], after=("a",)),
        one("d", "g/c", after=("a/", "g")),
        output=ListOf([Ref("d"), MapOf({"x": Ref("g/b")})]),
    )

    assert check_plan(sound) == []
    Graph(sound)


def test_a_plan_without_steps_is_refused() -> None:
    assert messages(plan()) == ["workflow 'w' has no steps; plan at least one"]


def test_a_group_without_steps_is_refused() -> None:
    found = messages(plan(one("a"), Group(id="g")))

    assert found == ["step 'g' holds no steps; leave it out"]


def test_all_mistakes_are_found_in_one_pass() -> None:
    wrong = plan(one("a", "nowhere"), one("a"), one("x\n"), one("b", "c"), one("c", "b"))

    kinds = [type(error) for error in check_plan(wrong)]

    assert kinds == [DuplicateStepError, DefinitionError, UnknownStepError, CycleError]


def test_ids_that_were_checked_before_are_not_checked_again() -> None:
    assert check_plan(plan(one("a"), one("a")), ids=False) == []


def test_a_circle_is_named_in_the_order_of_waiting_with_every_place() -> None:
    errors = check_plan(
        plan(one("a", "c"), one("b", "a"), one("c", "b"), one("behind", "a"), one("free")),
        lambda address: f"<{address}>",
    )

    assert len(errors) == 1
    assert isinstance(errors[0], CycleError)
    assert errors[0].cycle == ["a", "c", "b", "a"]
    assert "a -> c -> b -> a" in str(errors[0])
    assert "(<a>, <c>, <b>)" in str(errors[0])


def test_a_step_that_waits_for_itself_is_a_circle() -> None:
    errors = check_plan(plan(one("a", after=("a",))))

    assert [error.cycle for error in errors if isinstance(error, CycleError)] == [["a", "a"]]


def test_each_knot_is_reported_once() -> None:
    errors = check_plan(
        plan(one("a", "b"), one("b", "a"), one("between", "b"), one("c", "d", "between"), one("d", "c"))
    )

    assert [error.cycle for error in errors if isinstance(error, CycleError)] == [["a", "b", "a"], ["c", "d", "c"]]


def test_a_step_that_waits_for_its_own_group_is_a_circle() -> None:
    errors = check_plan(plan(Group(id="g", blocks=[one("a", after=("g",))])))

    assert [error.cycle for error in errors if isinstance(error, CycleError)] == [["g", "g/a", "g"]]


def test_a_group_that_waits_for_what_waits_for_it_is_a_circle() -> None:
    errors = check_plan(plan(Group(id="g", blocks=[one("a")], after=("b",)), one("b", "g/a")))

    assert [type(error) for error in errors] == [CycleError]


@pytest.mark.parametrize(
    ("block", "part"),
    [
        (one("b", "nowhere"), "step 'b' names 'nowhere', which is not in its scope"),
        (one("b", "http://x"), "are percent-encoded"),
        (one("b", "g/nowhere"), "group 'g' has no 'nowhere'"),
        (one("b", "a/inner"), "'a' is a step; what it adds is unknown before it runs"),
        (one("b", "g"), "needs one step, but 'g' is a group"),
        (one("b", when=Predicate("p", {"x": Ref("nowhere")})), "names 'nowhere'"),
        (one("b", placement=Placement("with", step="nowhere")), "names 'nowhere'"),
        (one("b", placement=Placement("follow", step="a")), "follows 'a', which is not placed"),
    ],
)
def test_a_name_that_means_nothing_is_reported(block: Step, part: str) -> None:
    found = messages(plan(one("a"), Group(id="g", blocks=[one("in")]), block))

    assert len(found) == 1
    assert part in found[0]


def test_an_output_that_names_nothing_is_reported() -> None:
    assert messages(plan(one("a"), output=Ref("b"))) == ["the output names 'b', which is not in its scope"]


def test_a_placed_step_can_be_followed() -> None:
    placed = one("a", placement=Placement("target", target="eu"))

    assert check_plan(plan(placed, one("b", placement=Placement("follow", step="a")))) == []


def test_the_nearest_block_of_a_name_is_meant() -> None:
    found = edges(plan(one("a"), Group(id="g", blocks=[one("a"), one("b", "a")])))

    assert found == [Edge(source="g/a", target="g/b", kind="ref", name="a")]


def test_edges_say_why() -> None:
    step = Step(
        id="b",
        action="m:f",
        slots={"x": ListOf([Ref("a"), Ref("c", default=0)])},
        when=Ref("a"),
        after=("a/",),
        after_any=("c",),
        placement=Placement("with", step="c"),
    )

    kinds = [(edge.kind, edge.source) for edge in edges(plan(one("a"), one("c"), step))]

    assert kinds == [
        ("ref", "a"),
        ("default", "c"),
        ("when", "a"),
        ("placement", "c"),
        ("after", "a"),
        ("after_any", "c"),
    ]


def test_levels_hold_the_steps_that_may_run_together() -> None:
    laid = plan(
        one("d", "b", "c"),
        one("b", "a"),
        one("c", "a"),
        one("a"),
        Group(id="g", blocks=[one("x"), one("y", "x")], after=("a",)),
    )

    assert levels(laid) == [["a"], ["b", "c", "g/x"], ["d", "g/y"]]
    assert topological_order(laid) == ["a", "b", "c", "g/x", "d", "g/y"]


def test_there_is_no_order_in_a_circle() -> None:
    with pytest.raises(CycleError):
        topological_order(plan(one("a", "b"), one("b", "a")))


def test_a_long_chain_and_a_long_circle_need_no_recursion() -> None:
    chain = [one("0")] + [one(str(number), str(number - 1)) for number in range(1, 5000)]

    assert check_plan(plan(*chain)) == []
    errors = check_plan(plan(one("0", "4999"), *chain[1:]))
    assert [type(error) for error in errors] == [CycleError]


@given(st.lists(st.tuples(st.integers(0, 7), st.integers(0, 7)), max_size=14))
def test_an_order_exists_exactly_where_no_circle_is_reported(pairs: list[tuple[int, int]]) -> None:
    waits: dict[int, list[str]] = {number: [] for number in range(8)}
    for waiter, target in pairs:
        waits[waiter].append(str(target))
    graph = plan(*(one(str(number), *names) for number, names in waits.items()))

    errors = check_plan(graph)

    if errors:
        for error in errors:
            assert isinstance(error, CycleError)
            steps = error.cycle
            assert all(target in waits[int(waiter)] for waiter, target in pairwise(steps))
            assert steps[0] == steps[-1]
        return
    order = topological_order(graph)
    assert sorted(order) == [str(number) for number in range(8)]
    assert all(order.index(name) < order.index(str(waiter)) for waiter, names in waits.items() for name in names)
