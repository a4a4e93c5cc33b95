"""Gather: one body an item, how it ends, and what operators do to it."""

from __future__ import annotations

from typing import Any

import pytest
from tests.core.kit import Driver, adding, step, value_of

from treadle.core import events as ev
from treadle.core import inputs as inp
from treadle.core.analysis import check_plan
from treadle.core.decide import Limits, root_causes
from treadle.core.events import Items
from treadle.core.plan import (
    Block,
    Body,
    Branch,
    Choose,
    Const,
    Gather,
    Group,
    Holds,
    Index,
    Item,
    ListOf,
    Plan,
    Predicate,
    Ref,
    SignalValue,
    Slot,
    StateValue,
    Step,
)

ITEM: dict[str, Slot] = {"item": Item(), "index": Index()}


def body(*blocks: Any, output: str = "", slots: dict[str, Slot] | None = None) -> Body:
    inside = list(blocks) or [step("x", slots=slots or ITEM)]
    return Body(blocks=inside, output=Ref(step=output or inside[-1].id))


def scan(*blocks: Any, items: Slot | None = None, **more: Any) -> Gather:
    return Gather(id="g", items=items or Const(0), body=more.pop("body", None) or body(*blocks), **more)


def over(items: Any, *blocks: Any, **more: Any) -> Driver:
    limits = more.pop("limits", Limits())
    return Driver(scan(*blocks, **more), step("z", "g"), constants=[items], limits=limits)


# -- items and results -----------------------------------------------------------------------------------------------


def test_each_item_has_its_body_and_the_results_keep_its_order() -> None:
    driver = over(["a", "b", "c"])
    assert driver.waiting() == ["g[0]/x", "g[1]/x", "g[2]/x"]
    assert driver.args("g[1]/x") == {"item": "b", "index": 1}
    for n in (2, 0, 1):
        driver.succeed(f"g[{n}]/x", result=n * 10)

    assert driver.args("z") == {"p0": [0, 10, 20]}
    driver.finish()
    assert driver.status() == "succeeded"
    driver.check()


@pytest.mark.parametrize("mode", ["all", "any_error"])
def test_no_items_give_an_empty_list_at_once(mode: Any) -> None:
    driver = over([], mode=mode)

    assert driver.args("z") == {"p0": []}
    driver.check()


def test_a_body_without_an_output_gives_null() -> None:
    driver = over([1, 2], body=Body(blocks=[step("x")]))
    driver.succeed("g[0]/x", "g[1]/x")

    assert driver.args("z") == {"p0": [None, None]}


def test_items_may_be_made_of_slots_and_have_paths() -> None:
    slots: dict[str, Slot] = {"v": Item(path=("k",))}
    items = ListOf([Ref(step="a"), Const(0), Ref(step="a", path=("in",))])
    driver = Driver(step("a"), scan(body=body(step("x", slots=slots)), items=items), constants=[{"k": 2}])
    driver.succeed("a", result={"k": 1, "in": {"k": 3}})

    assert [driver.args(f"g[{n}]/x")["v"] for n in range(3)] == [1, 2, 3]
    driver.check()


def test_a_part_that_is_not_there_fails_its_step() -> None:
    driver = Driver(
        scan(body=body(step("x", slots={"v": Item(path=(1,))})), items=ListOf([ListOf([Const(0)])])), constants=[0]
    )

    failure = driver.step("g[0]/x").failure
    assert failure is not None
    assert failure.code == "unresolved"
    driver.check()


def test_gathers_nest_and_items_have_levels() -> None:
    slots: dict[str, Slot] = {"in": Item(), "out": Item(level=1), "i": Index(), "o": Index(level=1)}
    inner = Gather(id="h", items=Item(), body=body(step("x", slots=slots)))
    driver = over([["a", "b"], [], ["c"]], inner)
    assert driver.waiting() == ["g[0]/h[0]/x", "g[0]/h[1]/x", "g[2]/h[0]/x"]
    assert driver.args("g[0]/h[1]/x") == {"in": "b", "out": ["a", "b"], "i": 1, "o": 0}
    driver.finish()

    assert driver.status() == "succeeded"
    assert driver.step("z").status == "succeeded"
    driver.check()


def test_items_that_the_kernel_cannot_see_are_asked_for() -> None:
    driver = Driver(step("a"), scan(items=Ref(step="a")), step("z", "g"))
    driver.succeed("a", result="@big")
    assert driver.task("g/~items").action == "treadle:items"
    assert driver.task("g/~items").call.args == {"items": "@big"}
    driver.lose("g/~items")
    driver.give(driver.outcome("g/~items", items=Items(3, 2, ("@one", "@two"))))

    assert driver.task("g[0]/x").call.args["item"] == ev.Pick("@one", (0,))
    assert driver.task("g[2]/x").call.args["item"] == ev.Pick("@two", (0,))
    driver.finish()
    assert driver.status() == "succeeded"
    driver.check()


@pytest.mark.parametrize("value", [3, {"a": 1}, "text", None])
def test_what_is_no_list_is_asked_for_and_refused_by_the_worker(value: Any) -> None:
    driver = over(value)
    driver.fail("g/~items", code="type")

    assert driver.status() == "failed"
    assert root_causes(driver.run) == ["g/~items"]
    driver.check()


def test_an_answer_without_items_fails_the_gather() -> None:
    driver = over(3)
    driver.succeed("g/~items")

    assert driver.status() == "failed"
    driver.check()


def test_a_question_that_was_cancelled_cancels_the_gather() -> None:
    driver = over(3)
    driver.give(driver.outcome("g/~items", status="cancelled"))

    assert driver.status("g") == "cancelled"
    driver.check()


def test_a_question_that_failed_is_retried() -> None:
    driver = over(3)
    driver.fail("g/~items")
    driver.give(inp.Retry())
    driver.give(driver.outcome("g/~items", items=Items(1, 1, ("=[5]",))))

    assert driver.args("g[0]/x")["item"] == 5
    driver.finish()
    assert driver.status() == "succeeded"
    driver.check()


# -- how it ends -----------------------------------------------------------------------------------------------------


def test_the_first_failure_ends_it_and_cancels_the_rest() -> None:
    driver = over([1, 2, 3, 4], limit=2)
    driver.fail("g[1]/x")

    assert driver.statuses() == {"z": "skipped", "g[0]/x": "cancelled", "g[1]/x": "failed"}
    assert driver.status("g[0]") == "cancelled"
    assert driver.interrupted == [driver.step("g[0]/x").node.number]
    assert driver.status() == "failed"
    assert driver.seen(ev.RunSettled)[0].failures == ["g[1]/x"]
    driver.check()


def test_all_items_may_be_waited_for_after_a_failure() -> None:
    driver = over([1, 2, 3], mode="all", limit=2)
    driver.fail("g[0]/x")
    assert driver.waiting() == ["g[1]/x", "g[2]/x"]
    driver.succeed("g[1]/x", "g[2]/x")

    assert driver.status("g") == "failed"
    assert driver.status() == "failed"
    driver.check()


def test_the_first_success_may_be_all_that_is_wanted() -> None:
    driver = over([1, 2, 3], mode="first")
    driver.fail("g[0]/x")
    driver.succeed("g[2]/x", result="won")

    assert driver.args("z") == {"p0": "won"}
    assert driver.status("g[1]/x") == "cancelled"
    driver.finish()
    assert driver.status() == "succeeded"
    driver.check()


def test_no_success_and_no_items_fail_who_wants_the_first() -> None:
    driver = over([1, 2], mode="first")
    driver.fail("g[0]/x", "g[1]/x")
    assert driver.status() == "failed"
    assert driver.status("z") == "skipped"

    driver = over([], mode="first")
    failure = driver.scope("g").failure
    assert failure is not None
    assert failure.code == "no_items"


def test_an_optional_gather_may_fail() -> None:
    driver = Driver(scan(optional=True), step("z", "g?"), constants=[[1, 2]])
    driver.fail("g[0]/x")
    driver.revoked("g[1]/x")
    driver.finish()

    assert driver.status() == "succeeded"
    driver.check()


def test_a_required_output_that_is_missing_fails_the_iteration_and_names_it() -> None:
    driver = over([1], step("x", optional=True))
    driver.fail("g[0]/x")

    assert driver.status() == "failed"
    assert driver.seen(ev.RunSettled)[0].failures == ["g[0]"]
    scope = driver.run.at("g[0]")
    assert scope is not None
    assert scope.failure is not None
    assert "'g[0]/x' is failed" in scope.failure.message
    driver.check()


def test_an_output_that_was_skipped_by_a_condition_skips_the_iteration() -> None:
    driver = over([1, 2], step("x", when=Predicate(name="p", slots={"i": Index()})))
    driver.give(driver.outcome("g[0]/x", False))
    driver.give(driver.outcome("g[1]/x", True))
    driver.succeed("g[1]/x", result=7)

    assert driver.status("g[0]") == "skipped"
    assert driver.args("z") == {"p0": [None, 7]}
    driver.check()


@pytest.mark.parametrize(("limit", "dispatched", "open_"), [(2, 1000, 2), (0, 4, 4), (3, 2, 3)])
def test_so_many_items_are_under_way_and_no_more(limit: int, dispatched: int, open_: int) -> None:
    driver = over(list(range(9)), limit=limit, limits=Limits(dispatched=dispatched))
    most = 0
    while driver.tasks:
        states = [s for s in driver.run.states if s.node.address.startswith("g[") and s.node.address.endswith("]")]
        most = max(most, sum(state.status == "open" for state in states))
        driver.give(driver.outcome(driver.tasks[min(driver.tasks)], 1))

    assert most == open_
    assert driver.status() == "succeeded"
    driver.check()


@pytest.mark.parametrize("events", [1, 7, 1000])
def test_a_thousand_items_come_in_bounded_decisions(events: int) -> None:
    driver = over(list(range(1000)), limits=Limits(dispatched=50, events=events))
    driver.settle()
    while driver.tasks:
        driver.give(*[driver.outcome(task, 1) for task in list(driver.tasks.values())])

    assert driver.status() == "succeeded"
    value = driver.scope("g").result
    assert value_of(value) == [1] * 1000
    driver.check()


# -- what comes from outside -----------------------------------------------------------------------------------------


def test_what_a_body_takes_from_outside_is_waited_for_once() -> None:
    inner: list[Block] = [step("x", "a", "d?"), step("y", "x", after=("o",)), Group(id="k", blocks=[step("w", "b")])]
    driver = Driver(
        step("a"), step("b"), step("o"), step("d"), scan(*inner, body=Body(blocks=inner)), constants=[[1, 2]]
    )
    gather = driver.run.at("g")
    assert gather is not None
    assert {driver.run.states[number].node.address for number, _ in gather.node.needs} == {"a", "b", "o", "d"}
    driver.succeed("a", "b", "o", result=1)
    assert driver.waiting() == ["d"]
    driver.fail("d")

    assert driver.args("g[1]/x") == {"p0": 1, "p1": [1, 2]}
    driver.check()


@pytest.mark.parametrize("optional", [False, True])
def test_a_gather_below_a_failure_is_skipped(optional: bool) -> None:
    driver = Driver(step("a", optional=optional), scan(step("x", "a")), step("z", "g"), constants=[[1]])
    driver.fail("a")

    assert driver.status("g") == "skipped"
    assert driver.status("z") == "skipped"
    driver.check()


def test_a_gather_below_a_condition_is_skipped_without_harm() -> None:
    driver = Driver(step("a", when=Predicate(name="p")), scan(step("x", "a")), step("z", "g"), constants=[[1]])
    driver.give(driver.outcome("a", False))

    assert driver.status() == "succeeded"
    assert driver.statuses() == {"a": "skipped", "z": "skipped"}
    driver.check()


def test_fences_hold_in_bodies() -> None:
    inner = step("x", signals=("go",), break_before=("red",), when=SignalValue(name="go"))
    driver = Driver(scan(inner), constants=[[1, 2]], breakpoints=["red"])
    assert driver.waiting() == []
    driver.give(inp.Release("red"))
    driver.signal("go", True)
    driver.finish()

    assert driver.status() == "succeeded"
    driver.check()


@pytest.mark.parametrize(("into", "address"), [(None, "g[0]/x/more"), ("g[0]", "g[0]/more"), ("", "more")])
def test_steps_add_steps_in_bodies(into: str | None, address: str) -> None:
    driver = over([1])
    driver.succeed("g[0]/x", added=adding(step("more"), into=into))
    assert address in driver.waiting()
    assert (driver.status("g[0]") == "open") is (into != "")
    driver.finish()

    assert driver.status() == "succeeded"
    driver.check()


def test_nothing_is_added_to_a_gather_itself() -> None:
    driver = over([1])
    driver.succeed("g[0]/x", added=adding(step("more"), into="g"))

    assert driver.status("g[0]/x") == "failed"
    driver.check()


def test_a_question_adds_no_steps() -> None:
    driver = over(3)
    driver.succeed("g/~items", added=adding(step("more")))

    failure = driver.step("g/~items").failure
    assert failure is not None
    assert failure.code == "no_additions"


def test_a_step_adds_a_gather() -> None:
    driver = Driver(step("a"), step("z", after=("a/",)))
    driver.succeed("a", added=adding(scan(), constants=[[1, 2]]))
    assert driver.waiting() == ["a/g[0]/x", "a/g[1]/x"]
    driver.finish()

    assert driver.status() == "succeeded"
    driver.check()


@pytest.mark.parametrize(
    ("block", "said"),
    [
        (scan(limit=-1), "limit=-1"),
        (scan(body=body(step("x", slots={"i": Item(level=1)}))), "takes the item of a gather"),
        (step("x", slots={"i": Item()}), "takes the item of a gather"),
        (Choose(id="c", branches=[Branch(id="a", blocks=[step("x", "nobody")])]), "'nobody'"),
        (Choose(id="c", branches=[Branch(id="a", when=Holds(text="1 +"))]), "added block 'c'"),
        (Group(id="k", blocks=[Choose(id="c", branches=[])]), "has no branches"),
    ],
)
def test_an_added_block_is_checked_before_it_is_added(block: Any, said: str) -> None:
    driver = Driver(step("a"))
    driver.succeed("a", added=adding(block, constants=[[1]]))

    failure = driver.step("a").failure
    assert failure is not None
    assert said in failure.message
    assert driver.seen(ev.StepsAdded) == []


# -- mistakes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("block", "said"),
    [
        (Gather(id="g", items=Const(0), body=Body()), "its body holds no steps"),
        (scan(limit=-1), "limit=-1"),
        (scan(body=body(step("x", slots={"i": Item(level=1)}))), "takes the item of a gather"),
        (scan(items=Item()), "takes the item of a gather"),
        (scan(body=body(step("x", slots={"s": StateValue(name="v")}))), "reads the state of a Phases block"),
        (scan(step("x", "nobody")), "'nobody'"),
        (Choose(id="c", branches=[Branch(id="a"), Branch(id="b")]), "so it is the else; put it last"),
        (Choose(id="c", branches=[]), "has no branches"),
    ],
)
def test_mistakes_are_found_before_anything_runs(block: Any, said: str) -> None:
    errors = [str(error) for error in check_plan(Plan(workflow="w", blocks=[block, Step(id="s", action="a")]))]

    assert any(said in error for error in errors), errors


def test_nothing_outside_refers_into_an_iteration() -> None:
    errors = check_plan(Plan(workflow="w", blocks=[scan(), step("z", "g/x")]))

    assert "nothing outside refers into 'g'" in str(errors[0])
