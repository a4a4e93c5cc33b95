"""Plans as functions and builders make them: references, ids, groups, and every mistake with its place."""

from __future__ import annotations

import operator
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from tests.authoring.plans_kit import (
    Page,
    anything,
    blocks,
    errors_of,
    every,
    fetch,
    inc,
    is_big,
    links,
    plan,
    total,
)

from treadle.authoring.bound import or_default, ref, scope, signal_value
from treadle.authoring.builder import PlanBuilder, group
from treadle.authoring.decorators import step
from treadle.authoring.registry import Registry
from treadle.core.graph import Graph
from treadle.core.plan import (
    Const,
    Group,
    ListOf,
    Placement,
    Predicate,
    Ref,
    SignalValue,
    Step,
)
from treadle.errors import (
    CycleError,
    DefinitionError,
    DefinitionErrors,
    DuplicateStepError,
    SlotError,
    UnknownStepError,
    UsageError,
)

# The same functions as a caller without a type checker has them.
loose: Any = SimpleNamespace(
    inc=inc,
    every=every,
    total=total,
    links=links,
    fetch=fetch,
    anything=anything,
    is_big=is_big,
    iadd=operator.iadd,
    three=3,
)


# -- options that name other steps -----------------------------------------------------------------------


def test_orders_take_planned_values_ids_groups_and_lists_of_them() -> None:
    def flow() -> None:
        a = inc.options(id="a").bind(1)
        b = inc.options(id="b/c").bind(1)
        with group("g", after=a) as g:
            inc.bind(1)
        inc.options(id="d", after=[a, "b/c", [g]], after_any=scope(b)).bind(1)
        inc.options(id="e", after=(scope(g), "g/inc", ref("a"))).bind(1)

    made = blocks(plan(flow))

    assert made["d"].after == ("a", "b%2Fc", "g")
    assert made["d"].after_any == ("b%2Fc/",)
    assert made["e"].after == ("g", "g/inc", "a")


def test_a_condition_is_a_planned_bool_a_predicate_or_a_signal() -> None:
    def flow() -> None:
        page = fetch.bind("u")
        flag = anything.bind()
        inc.options(id="p", when=is_big.bind(page, limit=3)).bind(1)
        inc.options(id="r", when=flag["ok"]).bind(1)
        inc.options(id="s", when=signal_value("go", type=bool)).bind(1)

    planned = plan(flow)

    made = blocks(planned)
    assert made["p"].when == Predicate(is_big.name, {"page": Ref("fetch"), "limit": Const(1)})
    assert made["r"].when == Ref("anything", ("ok",))
    assert made["s"].when == SignalValue("go")


def test_places_name_steps() -> None:
    def flow() -> None:
        a = inc.options(id="a", on="gpu").bind(1)
        inc.options(id="b", beside=a).bind(1)
        inc.options(id="c", follow="a").bind(1)

    made = blocks(plan(flow))

    assert made["b"].placement == Placement("with", step="a")
    assert made["c"].placement == Placement("follow", step="a")


# -- ids and groups --------------------------------------------------------------------------------------


def test_default_ids_count_in_the_order_of_calls_and_step_aside() -> None:
    def flow() -> None:
        inc.bind(1)
        inc.options(id="inc-2").bind(1)
        inc.bind(1)
        with group("inc-4"):
            inc.bind(1)
        inc.bind(1)

    planned = plan(flow)

    assert [block.id for block in planned.plan.blocks] == ["inc", "inc-2", "inc-3", "inc-4", "inc-5"]
    inner = planned.plan.blocks[3]
    assert isinstance(inner, Group)
    assert [block.id for block in inner.blocks] == ["inc"]


@pytest.mark.parametrize(
    "id_", [" ", "a b", "é\u00a0ü", "../..", "a/b#2[3]~%", "x" * 512, "=", "step", "http://x/?a=b"]
)
def test_hostile_ids_are_only_ids(id_: str) -> None:
    def flow() -> object:
        first = inc.options(id=id_).bind(1)
        return inc.options(id="second", after=id_).bind(first)

    planned = plan(flow)

    assert planned.plan.blocks[0].id == id_
    assert list(Graph(planned.plan).nodes[2].needs) == [(1, 5)]


@pytest.mark.parametrize("id_", ["", "x" * 10_000, "a\nb", "\0", "\ud800"])
def test_impossible_ids_are_refused_with_their_place(id_: str) -> None:
    (error,) = errors_of(lambda: inc.options(id=id_).bind(1))

    assert "test_builder.py:" in str(error)
    assert len(str(error)) < 600


def test_references_cross_groups_by_the_shortest_name() -> None:
    def flow() -> object:
        a = inc.options(id="a").bind(1)
        with group("outer") as outer:
            b = inc.options(id="b").bind(a)
            with group("inner"):
                c = inc.options(id="c").bind(b)
                inc.options(id="d").bind(a)
        with group("other", after=outer):
            e = inc.options(id="e").bind(c)
        return [c, e]

    planned = plan(flow)

    outer, other = (block for block in planned.plan.blocks if isinstance(block, Group))
    inner = outer.blocks[1]
    assert isinstance(inner, Group)
    c, d, e = inner.blocks[0], inner.blocks[1], other.blocks[0]
    assert isinstance(c, Step)
    assert isinstance(d, Step)
    assert isinstance(e, Step)
    assert (c.slots["x"], d.slots["x"], e.slots["x"]) == (Ref("b"), Ref("a"), Ref("outer/inner/c"))
    assert other.after == ("outer",)
    assert planned.plan.output == ListOf([Ref("outer/inner/c"), Ref("other/e")])


def test_a_name_that_a_nearer_block_would_catch_is_refused() -> None:
    def flow() -> None:
        a = inc.options(id="a").bind(1)
        with group("g"):
            inc.options(id="b").bind(a)
            inc.options(id="a").bind(2)

    (error,) = errors_of(flow)

    assert isinstance(error, DuplicateStepError)
    assert "'g' holds a 'a' too" in str(error)


def test_group_outside_a_workflow_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match="while a workflow is planned"):
        group("g")


# -- mistakes --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("function", "part"),
    [
        (lambda: loose.inc.bind("x"), "argument 'x'"),
        (lambda: loose.inc.bind(), "lacks argument 'x'"),
        (lambda: loose.inc.bind(1, 2), "takes 1 positional argument, but 2 were given"),
        (lambda: loose.inc.bind(1, x=2), "got two values for argument 'x'"),
        (lambda: loose.inc.bind(1, y=1), "has no parameter 'y'; there are: x"),
        (lambda: loose.every.bind(1, 2, 3, "x"), "argument 'rest'"),
        (lambda: loose.every.bind(1, 2, z="x"), "argument 'more'"),
        (lambda: loose.every.bind(b=2), "lacks argument 'a'"),
        (lambda: loose.total.bind([1, "x"]), "argument 'numbers'"),
        (lambda: loose.total.bind([loose.inc.bind(1), "x"]), "argument 'numbers', item 1"),
        (lambda: loose.total.bind([], {"a": loose.inc.bind(1), "b": "x"}), "argument 'names', key 'b'"),
        (lambda: loose.links.bind(Page("u", [loose.three])), "argument 'page'"),
        (lambda: loose.anything.bind(object()), "argument 'x'.*no JSON form"),
        (lambda: loose.anything.bind([1, {2: operator.add}]), "argument 'x'"),
        (lambda: loose.anything.bind(loose.inc), "is not planned; pass what its .bind"),
        (
            lambda: loose.inc.bind(loose.fetch.bind("u")),
            "<result of step 'fetch'.*> is an object, but .*int",
        ),
        (lambda: loose.inc.bind(loose.fetch.bind("u").url), "is text"),
        (lambda: loose.inc.bind(loose.fetch.bind("u").size), "what fetch returns has no stored field 'size'"),
        (lambda: loose.links.bind(loose.links.bind(loose.fetch.bind("u"))), "is a list, but an object is needed"),
        (lambda: loose.total.bind([loose.links.bind(loose.fetch.bind("u"))]), "argument 'numbers', item 0"),
        (lambda: loose.inc.bind(or_default(loose.inc.bind(1), "x")), "argument 'x', default"),
        (lambda: loose.inc.bind(or_default(loose.inc.bind(1), loose.inc.bind(2))), "a default is a plain value"),
        (lambda: loose.inc.bind(signal_value("go", type=str)), "argument 'x': <value of signal 'go'> is text"),
        (lambda: loose.inc.bind(signal_value(" ")), "a signal needs a name"),
        (lambda: loose.anything.bind(loose.is_big.bind(loose.fetch.bind("u"))), "goes into when="),
        (lambda: loose.anything.bind(Page("u", loose.links.bind(Page("u", [])))), "field 'links' of Page is a planned"),
        (lambda: loose.anything.bind(group("g").__enter__()), "has no result"),
        (lambda: loose.inc.options(when=True).bind(1), "when=True: give a planned bool"),
        (
            lambda: loose.inc.options(when=loose.links.bind(loose.fetch.bind("u"))).bind(1),
            "is a list, but a bool",
        ),
        (lambda: loose.inc.options(when=or_default(loose.anything.bind(), True)).bind(1), "a condition has no default"),
        (lambda: loose.inc.options(when=loose.is_big.bind(5)).bind(1), "when=<predicate .*is_big>: argument 'page'"),
        (lambda: loose.inc.options(here=True).bind(1), "here=True"),
        (lambda: loose.inc.options(into="root").bind(1), "into= is for steps that a running step adds"),
        (lambda: loose.inc.options(after=5).bind(1), "after=5: give planned values"),
        (lambda: loose.inc.options(beside=[loose.inc.bind(1), loose.inc.bind(2)]).bind(1), "give one planned step"),
        (lambda: loose.inc.options(follow=loose.inc.bind(1)).bind(1), "follows 'inc', which is not placed"),
        (lambda: loose.inc.options(after="nowhere").bind(1), "names 'nowhere', which is not in its scope"),
        (lambda: loose.inc.bind(ref("nowhere")), "names 'nowhere'"),
        (lambda: loose.inc.options(id="a", after="a").bind(1), "a -> a"),
        (lambda: loose.inc.options(id=5).bind(1), "an id is text"),
    ],
)
def test_a_mistake_in_a_call_names_step_and_place(function: Callable[[], object], part: str) -> None:
    errors = errors_of(function)

    assert len(errors) == 1
    with pytest.raises(type(errors[0]), match=part):
        raise errors[0]
    assert "test_builder.py:" in str(errors[0])
    assert "step '" in str(errors[0])


@pytest.mark.parametrize(
    ("function", "part"),
    [
        (lambda: None, "workflow 'w' has no steps"),
        (lambda: (inc.bind(1), object())[1], "its output: .*no JSON form"),
        (lambda: (inc.bind(1), signal_value("go"))[1], "its output: a signal's value goes to a step"),
        (lambda: (inc.bind(1), ref("nowhere"))[1], "the output names 'nowhere'"),
        (lambda: list(loose.inc.bind(1)), "iterated over"),
    ],
)
def test_a_mistake_of_a_whole_workflow_is_named(function: Callable[[], object], part: str) -> None:
    with pytest.raises(DefinitionError, match=part):
        plan(function)


def test_all_mistakes_are_raised_together() -> None:
    def flow() -> object:
        loose.inc.options(id="a").bind("x")
        inc.options(id="a").bind(1)
        inc.options(id="b", after="c", timeout="soon").bind(1)
        inc.options(id="c", after="b").bind(1)
        return ref("nowhere")

    kinds = sorted(type(error).__name__ for error in errors_of(flow))

    assert kinds == ["CycleError", "DefinitionError", "DuplicateStepError", "SlotError", "UnknownStepError"]


def test_mistakes_before_a_broken_line_are_told_with_it() -> None:
    def flow() -> object:
        x = loose.inc.bind("x")
        return inc.bind(1) if x else None

    first, second = errors_of(flow)

    assert isinstance(first, SlotError)
    assert "tested for truth" in str(second)


def test_a_circle_through_names_is_told_with_every_place() -> None:
    def flow() -> None:
        inc.options(id="a").bind(ref("b"))
        inc.options(id="b").bind(ref("a"))

    (error,) = errors_of(flow)

    assert isinstance(error, CycleError)
    assert error.cycle == ["a", "b", "a"]
    assert str(error).count("test_builder.py:") == 2


def test_an_id_used_twice_names_both_places() -> None:
    def flow() -> None:
        inc.options(id="a").bind(1)
        inc.options(id="a").bind(2)

    (error,) = errors_of(flow)

    assert isinstance(error, DuplicateStepError)
    assert str(error).count("test_builder.py:") == 2


def test_a_planned_value_of_another_workflow_is_refused() -> None:
    free = inc.bind(1)
    kept: list[Any] = []
    plan(lambda: kept.append(inc.bind(1)))

    for foreign in (free, kept[0]):
        (error,) = errors_of(lambda foreign=foreign: inc.bind(foreign))  # type: ignore[misc]  # a default in a lambda
        assert "was planned outside this workflow" in str(error)


def test_a_coroutine_is_not_a_planned_value() -> None:
    async def get() -> int:
        return 1

    (error,) = errors_of(lambda: anything.bind(get()))

    assert "was called; plan it with .bind" in str(error)


# -- the explicit builder --------------------------------------------------------------------------------


def test_a_builder_makes_the_same_plan_as_a_function() -> None:
    builder = PlanBuilder("w")
    page = builder.step("page", fetch, "u")
    with builder.group("g", after=page):
        found = builder.step(None, links, slots={"page": page}, retry=3)
    builder.output(found)
    built = builder.build()

    def flow() -> object:
        page = fetch.options(id="page").bind("u")
        with group("g", after=page):
            return links.options(retry=3).bind(page)

    planned = plan(flow)
    assert built.plan == planned.plan
    assert built.constants == planned.constants


def test_a_builder_takes_names_of_actions() -> None:
    registry = Registry()
    step(name="known", registry=registry, queue="q")(inc.definition.function)
    builder = PlanBuilder("w", registry=registry)

    a = builder.step("a", "known", 1)
    builder.step("b", "far.away:join", slots={"parts": [a, 2]}, after=a)
    planned = builder.build()

    assert blocks(planned)["a"].queue == "q"
    assert blocks(planned)["b"].slots == {"parts": ListOf([Ref("a"), Const(1)])}
    assert blocks(planned)["b"].action == "far.away:join"


def test_a_builder_checks_what_it_can() -> None:
    builder = PlanBuilder("w")
    builder.step("a", inc, "x")
    builder.step("b", "far.away:join", 1)

    with pytest.raises(DefinitionErrors) as caught:
        builder.build()

    assert [str(error).split("): ", 1)[1].split(":")[0] for error in caught.value.exceptions] == [
        "argument 'x'",
        "is known by its name only, so its arguments are given by name",
    ]


def test_inside_a_builder_bind_adds_to_it() -> None:
    with PlanBuilder("w", retry=2) as builder:
        builder.output(inc.bind(1))

    (made,) = blocks(builder.build()).values()
    assert made.retry is not None
    assert made.retry.attempts == 2


def test_a_fan_of_ten_thousand_is_one_plan() -> None:
    planned = plan(lambda: total.bind([inc.bind(number) for number in range(10_000)]))

    assert len(planned.plan.blocks) == 10_001
    assert planned.plan.blocks[9_999].id == "inc-10000"
    assert isinstance(UnknownStepError(""), DefinitionError)
