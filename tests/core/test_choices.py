"""Choose: the first branch whose condition holds."""

from __future__ import annotations

from typing import Any

import pytest
from tests.core.kit import Driver, step

from treadle.core import events as ev
from treadle.core import inputs as inp
from treadle.core.decide import Limits, root_causes
from treadle.core.plan import (
    Body,
    Branch,
    Choose,
    Condition,
    Const,
    Gather,
    Holds,
    Index,
    Item,
    ListOf,
    MapOf,
    Phase,
    Phases,
    Predicate,
    Ref,
    SignalValue,
    StateValue,
)


def branch(id: str, when: Condition | None = None, *blocks: Any) -> Branch:
    inside = [*blocks] or [step("x")]
    return Branch(id=id, when=when, blocks=inside, output=Ref(step=inside[-1].id))


def choose(*branches: Branch, **more: Any) -> Choose:
    return Choose(id="c", branches=[*branches], **more)


YES, NO = Holds(text="1 < 2"), Holds(text="1 > 2")
ASK = Predicate(name="p")


def chosen(driver: Driver) -> list[str]:
    return [event.branch for event in driver.seen(ev.BranchChosen)]


def test_the_first_branch_that_holds_is_taken_and_gives_the_value() -> None:
    branches = [branch("a", NO), branch("b", YES, step("x"), step("y", "x")), branch("c", YES)]
    driver = Driver(choose(*branches), step("z", "c"))
    driver.succeed("c/b/x", result=1)
    driver.succeed("c/b/y", result=2)

    assert chosen(driver) == ["b"]
    assert driver.args("z") == {"p0": 2}
    assert driver.run.at("c/a") is None, "the other branches never were"
    driver.finish()
    assert driver.status() == "succeeded"
    driver.check()


def test_without_a_condition_it_is_the_else() -> None:
    driver = Driver(choose(branch("a", NO), branch("else")))

    assert driver.waiting() == ["c/else/x"]


def test_no_branch_gives_null() -> None:
    driver = Driver(choose(branch("a", NO)), step("z", "c"))

    assert driver.args("z") == {"p0": None}
    assert chosen(driver) == [""]
    driver.check()


@pytest.mark.parametrize(("value", "taken"), [(True, "yes"), (False, "no")])
def test_a_ref_and_a_signal_may_be_conditions(value: bool, taken: str) -> None:
    for when in (Ref(step="a"), SignalValue(name="s"), Holds(text="v", slots={"v": Ref(step="a")})):
        driver = Driver(step("a"), choose(branch("yes", when), branch("no")))
        assert driver.waiting() == ["a"]
        driver.succeed("a", result=value)
        driver.signal("s", value)

        assert driver.waiting() == [f"c/{taken}/x"]
        driver.check()


def test_a_ref_that_is_no_bool_fails_the_block() -> None:
    driver = Driver(step("a"), choose(branch("yes", Ref(step="a"))), step("z", "c"))
    driver.succeed("a", result=3)

    assert driver.status("c") == "failed"
    assert root_causes(driver.run)[0] == "c"
    failure = driver.scope("c").failure
    assert failure is not None
    assert "branch 'yes'" in failure.message
    driver.check()


def test_a_ref_whose_value_is_not_at_hand_is_asked_for() -> None:
    driver = Driver(step("a"), choose(branch("yes", Ref(step="a")), branch("no")))
    driver.succeed("a", result="@big")
    assert driver.task("c/~when").action == "treadle:truth"
    driver.succeed("c/~when", result=False)

    assert driver.waiting() == ["c/no/x"]


def test_an_expression_over_a_value_that_is_not_at_hand_is_asked_for() -> None:
    driver = Driver(step("a"), choose(branch("yes", Holds(text="v > 1", slots={"v": Ref(step="a")})), branch("no")))
    driver.succeed("a", result="@big")
    task = driver.task("c/~when")
    assert task.action == "treadle:test"
    assert task.call.args == {"text": '="v > 1"', "values": ev.ArgMap({"v": "@big"})}
    driver.succeed("c/~when", result=True)

    assert driver.waiting() == ["c/yes/x"]
    driver.check()


def test_predicates_are_asked_in_order() -> None:
    driver = Driver(choose(branch("a", ASK), branch("b", NO), branch("d", ASK), branch("else")))
    driver.succeed("c/~when", result=False)
    assert driver.waiting() == ["c/~when#2"]
    driver.succeed("c/~when#2", result=True)

    assert driver.waiting() == ["c/d/x"]
    driver.finish()
    assert driver.status() == "succeeded"
    driver.check()


def test_a_predicate_that_raises_fails_the_block_and_may_be_retried() -> None:
    driver = Driver(choose(branch("a", ASK)), step("z", "c"))
    driver.fail("c/~when")
    assert driver.status() == "failed"
    assert root_causes(driver.run)[0] == "c/~when"

    driver.give(inp.Retry())
    driver.succeed("c/~when", result=True)
    driver.finish()

    assert driver.status() == "succeeded"
    driver.check()


@pytest.mark.parametrize("how", ["number", "cancelled"])
def test_a_predicate_that_gives_no_answer_ends_the_block(how: str) -> None:
    driver = Driver(choose(branch("a", ASK)))
    driver.give(driver.outcome("c/~when", 3) if how == "number" else driver.outcome("c/~when", status="cancelled"))

    assert driver.status("c") == ("failed" if how == "number" else "cancelled")
    driver.check()


def test_a_failure_in_the_branch_fails_it_and_is_retried_there() -> None:
    driver = Driver(choose(branch("a", ASK, step("x"), step("y", "x"))), step("z", "c"))
    driver.succeed("c/~when", result=True)
    driver.fail("c/a/x")
    assert driver.status() == "failed"
    assert root_causes(driver.run)[0] == "c/a/x"

    driver.give(inp.Retry())
    assert {*driver.seen(ev.StepsReopened)[0].at} == {"c/a/x", "c/a/y", "z"}
    driver.finish()

    assert driver.status() == "succeeded"
    assert chosen(driver) == ["a"]
    driver.check()


def test_a_failed_upstream_skips_it_and_a_default_decides() -> None:
    other = Choose(id="d", branches=[branch("yes", Ref(step="a", default=0)), branch("no")])
    driver = Driver(step("a", optional=True), choose(branch("yes", Ref(step="a"))), other, constants=[True])
    driver.fail("a")

    assert driver.status("c") == "skipped"
    assert driver.waiting() == ["d/yes/x"]
    driver.check()


def test_a_branch_waits_for_what_it_takes_from_outside_only_when_it_is_taken() -> None:
    driver = Driver(step("slow"), choose(branch("a", NO, step("x", "slow")), branch("b", YES)), step("z", "c"))
    assert driver.waiting() == ["c/b/x", "slow"]
    driver.succeed("c/b/x")

    assert driver.waiting() == ["slow", "z"]
    driver.check()


def test_a_step_in_a_branch_is_rewound_in_place_and_the_block_as_its_next_entry() -> None:
    driver = Driver(step("a"), choose(branch("yes", Ref(step="a")), branch("no")), step("z", "c"))
    driver.succeed("a", result=True)
    driver.finish()

    driver.give(inp.Rewind("c/yes/x"))
    assert driver.waiting() == ["c/yes/x"]
    driver.finish()
    driver.give(inp.Rewind("a"))
    driver.succeed("a", result=False)

    assert driver.waiting() == ["c#2/no/x"]
    driver.finish()
    assert driver.status() == "succeeded"
    assert driver.step("z").generation == 3
    driver.check()


def test_a_step_of_a_branch_below_what_is_rewound_runs_again() -> None:
    driver = Driver(step("u"), choose(branch("a", YES, step("x", "u"))), step("z", "c"))
    driver.finish()
    driver.give(inp.Rewind("u"))

    assert {*driver.seen(ev.StepsReopened)[0].at} == {"u", "c/a/x", "z"}
    driver.finish()
    assert driver.status() == "succeeded"
    driver.check()


def test_a_question_is_not_rewound_but_its_block_is() -> None:
    driver = Driver(choose(branch("a", ASK)))
    driver.succeed("c/~when", result=False)
    assert "rewind 'c'" in driver.refused(inp.Rewind("c/~when")).message

    driver.give(inp.Rewind("c"))
    driver.succeed("c#2/~when", result=True)

    assert driver.waiting() == ["c#2/a/x"]
    driver.check()


def test_blocks_nest() -> None:
    pick = Choose(
        id="k",
        branches=[
            branch("odd", Holds(text="i % 2 == 1", slots={"i": Index()}), step("x", slots={"v": Item()})),
            branch("even", None, Phases(id="f", phases=[Phase(id="r", blocks=[step("y")])], state={"v": Item()})),
        ],
    )
    gather = Gather(id="g", items=Const(0), body=Body(blocks=[pick], output=Ref(step="k")))
    driver = Driver(gather, step("z", "g"), constants=[[5, 6]])
    assert driver.waiting() == ["g[0]/k/even/f/r/y", "g[1]/k/odd/x"]
    driver.succeed("g[1]/k/odd/x", result=9)
    driver.give(driver.outcome("g[0]/k/even/f/r/y", patch={"w": "=1"}))

    assert driver.args("z") == {"p0": [{"v": 5, "w": 1}, 9]}
    driver.finish()
    assert driver.status() == "succeeded"
    driver.check()


def test_a_choose_in_a_row_reads_the_state() -> None:
    when = Holds(text="v == 1", slots={"v": StateValue(name="v")})
    pick = Choose(id="k", branches=[branch("yes", when), branch("no")])
    driver = Driver(Phases(id="f", phases=[Phase(id="r", blocks=[pick])], state={"v": Const(0)}), constants=[1])

    assert driver.waiting() == ["f/r/k/yes/x"]


@pytest.mark.parametrize("hard", [False, True])
@pytest.mark.parametrize("after", range(4))
def test_a_cancel_at_any_point_ends_the_run_and_a_retry_finishes_it(hard: bool, after: int) -> None:
    driver = Driver(choose(branch("a", ASK, step("x"), step("y", "x"))), step("z", "c"), limits=Limits(events=1))
    driver.settle()
    for _ in range(after):
        driver.give(driver.outcome(next(iter(driver.tasks.values())), True))

    driver.give(inp.Cancel(hard=hard))
    driver.finish(lambda task: driver.outcome(task, True))
    assert driver.status() == "cancelled"
    driver.check()

    if not driver.give(inp.Retry()).refusals:
        driver.finish(lambda task: driver.outcome(task, True))
        assert driver.status() == "succeeded"
    driver.check()


@pytest.mark.parametrize("second", ["predicate", "expression", "ref", "part", "list"])
def test_all_questions_of_one_choice_are_about_the_same_values(second: str) -> None:
    value = Ref("a", default=0)
    conditions: dict[str, Condition] = {
        "predicate": Predicate("q", {"x": value}),
        "expression": Holds("x == 'late'", {"x": value}),
        "ref": Ref("a", default=1),
        "part": Predicate("q", {"x": Ref("b", path=("part",), default=0)}),
        "list": Predicate("q", {"x": ListOf([value, MapOf({"y": value})])}),
    }
    first = branch("one", Predicate("p", {"x": value, "z": Ref("b", default=0)}))
    other = choose(first, branch("two", conditions[second]), branch("else"))
    driver = Driver(step("a", optional=True), step("b"), other, constants=["instead", False])
    driver.succeed("b", result={"part": "of b"})
    driver.fail("a")
    assert driver.args("c/~when") == {"x": "instead", "z": {"part": "of b"}}

    # Nothing of the choose is taken back by this: it has gone on with the default.
    driver.give(inp.Retry("a"))
    driver.succeed("a", result="late" if second == "expression" else True)
    driver.succeed("c/~when", result=False)

    if second in ("expression", "ref"):
        assert chosen(driver) == ["else"]
    else:
        asked = {"predicate": "instead", "part": "of b", "list": ["instead", {"y": "instead"}]}
        assert driver.args("c/~when#2") == {"x": asked[second]}
    driver.finish()
    driver.check()
